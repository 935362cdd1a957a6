/* parallel_int.h: what the files of the by-hand form share. */
#ifndef HD_PLAN_PARALLEL_INT_H
#define HD_PLAN_PARALLEL_INT_H

#include "graph/op.h"
#include "plan/parallel.h"
#include "plan/pins.h"

/* What is to be known of the network. */
typedef struct hd_outline {
    bool language;        /* a decoder-only language model of src/models */
    int64_t layers, width, heads, kv_heads, hidden, vocab; /* of a language model */
    int64_t rows;         /* leading extent of the inputs: tokens, or samples */
    int64_t sequence;     /* rows in one sequence (sample) */
    const hd_node **reader; /* [values] the forward product that takes it as its second operand, casts seen through; NULL: none */
} hd_outline;

/* The dimension of parameter v that its product's spec calls `letter`; -1: none. */
int hd_outline_dim(const hd_graph *g, const hd_outline *o, hd_value v, char letter);

/* Fills plan->pins once plan->mesh is there. */
int hd_parallel_pins(const hd_parallel *p, const hd_graph *g, const hd_outline *o, hd_plan *plan, hd_error *err);
/* Fills plan->cuts. */
int hd_parallel_cuts(const hd_parallel *p, const hd_graph *g, const hd_outline *o, hd_plan *plan, hd_error *err);

#endif
