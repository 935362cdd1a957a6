/* graph.h: the Graph: one micro-batch's forward and backward plus one update, as a static dataflow of ops on values.
 *
 * Invariants (checked by hd_graph_verify):
 *  - Single assignment: a value is an input, a parameter, a state, a constant, or one result of one node.
 *  - Nodes stand in an order in which every operand is defined before it is used.
 *  - Paths are unique and stable: a value's path is the scope and name it was built under ("layers.3.attn.q"), whatever passes do later.
 *  - Only the outermost dimension of a shape may be bounded by a symbol (tokens of this call); dim[0] is then its maximum.
 *
 * Building never has to be checked call by call: the first error stays in g->err, and from then on every builder function returns
 * HD_NONE and does nothing. Everything is owned by the graph's arena. */
#ifndef HD_GRAPH_GRAPH_H
#define HD_GRAPH_GRAPH_H

#include "base/mem.h"
#include "base/str.h"
#include "graph/layout.h"
#include "kernels/kernel.h"
#include "tensor/quant.h"

typedef int32_t hd_value; /* index into hd_graph.values */
#define HD_NONE ((hd_value)-1)

typedef struct hd_type {
    hd_dtype dtype;
    hd_shape shape;
    bool absent; /* an optional operand that is not given */
    const hd_quant *blocks; /* HD_PARAM: the Store holds its rows (all but the last dimensions that a product sums) in blocks of this type, as a GGUF file does;
                             * dtype is what they count as. Only contractions (as operand 1) and gather read such a value. NULL: elements of dtype */
} hd_type;

typedef enum hd_kind { HD_INPUT, HD_PARAM, HD_STATE, HD_CONST, HD_RESULT } hd_kind;

/* The layout over a time axis: once per step; a piece per call; accumulated over the calls. */
typedef enum hd_time_layout { HD_TIME_REPLICATE, HD_TIME_SPLIT, HD_TIME_PARTIAL } hd_time_layout;

typedef enum hd_phase { HD_FORWARD, HD_BACKWARD, HD_UPDATE } hd_phase;

typedef struct hd_op hd_op; /* graph/op.h */

/* A loop of a node's op that is cut over mesh axes. */
typedef struct hd_loop_split { int loop; hd_dim_layout over; } hd_loop_split;

typedef struct hd_node {
    const hd_op *op;
    const char *path;
    void *attrs;       /* the op's parameter struct, or NULL */
    int n_in, n_out;
    hd_value *in;      /* [n_in], HD_NONE for an absent optional operand */
    hd_value *out;     /* [n_out] */
    hd_phase phase;
    const struct hd_node *origin; /* the node that this one differentiates; NULL: none. Sums of gradients have none */
    int chunk;                    /* of the pipeline: chunks 0, 1, ... of the forward pass; 0 without one */
    int slice;                    /* of the sequence's tokens, where it is cut into slices (hd_pass_slices); 0 without */
    hd_loop_split *splits;        /* [n_splits] loops of which each rank does a piece; attrs are those of the whole (hd_node_attrs) */
    int n_splits;
} hd_node;

typedef struct hd_value_info {
    const char *path;
    hd_type type;         /* of the largest piece, that of coordinate 0, once the graph is partitioned */
    hd_shape whole;       /* of all pieces together; meaningless where layout is NULL */
    const hd_layout *layout; /* NULL: whole on every rank */
    hd_kind kind;
    hd_time_layout micro; /* over micro-batches. HD_TIME_PARTIAL: only micro_sum may read it */
    int node, result;     /* producer (index into hd_graph.nodes) and which of its results; -1 unless HD_RESULT */
    const void *data;     /* HD_CONST: its elements; HD_PARAM, HD_STATE: initial elements or NULL */
    const struct hd_init *init; /* HD_PARAM, HD_STATE without data: how to fill it; NULL: zeros */
    bool trainable, decay;      /* HD_PARAM: is updated; is subject to weight decay */
} hd_value_info;

/* Initial values, from the key (seed, path): independent of order and sharding. */
typedef struct hd_init {
    enum { HD_INIT_CONSTANT, HD_INIT_NORMAL, HD_INIT_UNIFORM } how;
    double a; /* the constant; the standard deviation; the half-width */
} hd_init;

typedef struct hd_symbol { const char *name; int64_t max; } hd_symbol;

/* A state (or parameter) and the value that it becomes; both share one buffer. */
typedef struct hd_state_pair { hd_value in, out; } hd_state_pair;

/* A value that the step gives back, under a name: "loss", "logits", ... */
typedef struct hd_output { const char *name; hd_value value; } hd_output;

typedef struct hd_graph {
    hd_arena arena;
    hd_value_info *values; size_t n_values, cap_values;
    hd_node **nodes; size_t n_nodes, cap_nodes; /* in a defined-before-used order; entries stay where they are in memory */
    hd_symbol symbols[8]; int n_symbols;
    hd_state_pair *pairs; size_t n_pairs, cap_pairs;
    hd_output *outputs; size_t n_outputs, cap_outputs;
    const char *scope;  /* "" or "layers.3.attn" */
    const char *outer[16]; int depth; /* the scopes that hd_graph_pop goes back to */
    hd_phase phase;     /* of nodes built from now on */
    const hd_node *origin; int chunk, slice; /* likewise */
    hd_mesh mesh;       /* that it was partitioned for; n = 0: not partitioned */
    uint32_t ring;      /* mask of the mesh's axes: attention over tokens that are cut over one sends keys and values round (passes/ring.c) */
    uint32_t zigzag;    /* likewise: each rank's tokens of a sequence are an early and a late part of it (passes/deal.c) */
    int64_t rows_micro; /* hd_pass_partition may have ranks exchange a table's gradient as the rows that it is made of; micro-batches of a step, 0: it may not */
    int stage;          /* of the pipeline, that hd_graph_stage made it for; 0 without one */
    hd_stages stages;   /* of different meshes: those of all stages, mesh being this one's; n = 0: all are of mesh */
    struct hd_path_set *paths; /* paths in use */
    hd_error err;
} hd_graph;

/* ---- life cycle ---- */

hd_graph *hd_graph_new(void); /* NULL when out of memory */
void hd_graph_free(hd_graph *g);

/* ---- shapes ---- */

hd_type hd_type_of(hd_dtype dtype, int rank, const int64_t *dims);
hd_type hd_type_scalar(hd_dtype dtype);
char *hd_type_format(char *out, size_t n, const hd_type *t, const hd_graph *g); /* "f32[1024, 768]", "bf16[tokens<=512, 64]", "f32:Q4_K[768, 768]"; g may be NULL */
bool hd_type_equal(const hd_type *a, const hd_type *b); /* dtype, shape and blocks */
int64_t hd_type_bytes(const hd_type *t);                /* at the symbols' maxima; 0 of an absent one */

/* ---- building ---- */

/* Names for what follows: "a" then "b" gives paths "a.b.name". hd_graph_pop undoes the last push. */
void hd_graph_push(hd_graph *g, const char *fmt, ...) HD_PRINTF(2, 3);
void hd_graph_pop(hd_graph *g);

int hd_graph_symbol(hd_graph *g, const char *name, int64_t max); /* the symbol's index; negative after an error */

hd_value hd_graph_input(hd_graph *g, const char *name, hd_type type, hd_time_layout micro);
hd_value hd_graph_param(hd_graph *g, const char *name, hd_type type, hd_init init, bool trainable, bool decay);
hd_value hd_graph_state(hd_graph *g, const char *name, hd_type type, hd_init init);
hd_value hd_graph_const(hd_graph *g, const char *name, hd_type type, const void *data); /* copies data */
hd_value hd_graph_scalar(hd_graph *g, double v, hd_dtype dtype);                         /* an unnamed constant */

/* Appends a node; op by name; attrs (may be NULL) is copied. Returns result 0. name becomes the last part of the path of its results
 * (".1", ".2" behind it for results other than the first). A name in use gets a number behind it. */
hd_value hd_graph_node(hd_graph *g, const char *op, const char *name, const void *attrs, const hd_value *in, int n_in);
/* Appends a copy of a node over other operands of the same types, with the splits, chunk and results' layouts of the original, in the graph's phase and
 * with its origin; its path is prefix "." the original's. Nothing is inferred anew: the graph may be partitioned. NULL after an error. */
const hd_node *hd_graph_clone(hd_graph *g, const hd_node *of, const char *prefix, const hd_value *in, int n_in);
hd_value hd_graph_result(const hd_graph *g, hd_value v, int i); /* result i of the node that makes v; HD_NONE if there is none */

void hd_graph_output(hd_graph *g, const char *name, hd_value v);
hd_value hd_graph_find_output(const hd_graph *g, const char *name);
void hd_graph_pair(hd_graph *g, hd_value in, hd_value out); /* state `in` becomes `out` */
hd_value hd_graph_find(const hd_graph *g, const char *path); /* HD_NONE if there is none */

/* Records an error of the person building (message with the current path in front). Returns HD_NONE. */
hd_value hd_graph_fail(hd_graph *g, int code, const char *fmt, ...) HD_PRINTF(3, 4);

/* ---- parts of other graphs, for passes that cut one: nothing is inferred or checked ---- */

/* A value with the path, type, layout, contents and flags that v has in `from`. One of kind HD_RESULT waits for its node. */
hd_value hd_graph_copy_value(hd_graph *g, const hd_graph *from, hd_value v);
/* Appends a copy of n, of another graph, with these operands and results of g; without origin. NULL and g->err when out of memory. */
hd_node *hd_graph_copy_node(hd_graph *g, const hd_node *n, const hd_value *in, const hd_value *out);

static inline const hd_value_info *hd_info(const hd_graph *g, hd_value v) { return &g->values[v]; }
static inline const hd_type *hd_type_in(const hd_graph *g, hd_value v) { return &g->values[v].type; }

/* ---- common nodes, named after the op ---- */

hd_value hd_contract(hd_graph *g, const char *name, const char *spec, hd_value a, hd_value b, hd_dtype dtype);
/* Elementwise by opcode; the result's dtype is that of promotion (f64 > f32 > bf16 = f16 > integers; bf16 with f16 gives f32). b, c: HD_NONE if unary. */
hd_value hd_elementwise(hd_graph *g, const char *name, hd_ew op, hd_value a, hd_value b, hd_value c, double imm);
hd_value hd_cast(hd_graph *g, const char *name, hd_value x, hd_dtype dtype); /* x itself when it has that dtype */
hd_value hd_add(hd_graph *g, hd_value a, hd_value b);   /* HD_NONE counts as zero: returns the other */
hd_value hd_mul(hd_graph *g, hd_value a, hd_value b);
hd_value hd_scale(hd_graph *g, hd_value a, double factor);
hd_value hd_reduce(hd_graph *g, const char *op, const char *name, hd_value x, uint32_t axes, bool keep, hd_dtype dtype);
/* Sums g over the dimensions that broadcasting stretched, so that it has shape `to` (f32 sums). */
hd_value hd_sum_to_shape(hd_graph *g, hd_value x, const hd_shape *to);
hd_value hd_reshape(hd_graph *g, const char *name, hd_value x, int rank, const int64_t *dims);
hd_value hd_transpose(hd_graph *g, const char *name, hd_value x, const int *perm);

/* ---- derivatives ---- */

/* Appends the backward nodes of scalar `loss` and fills grad[i] with the gradient of wrt[i] (HD_NONE where loss doesn't depend on it).
 * `loss` is seeded with 1. Gradients of values that are HD_TIME_REPLICATE over micro-batches while their contributions are a piece per call
 * are passed through micro_sum: the once-per-step gradient. Returns 0 or g->err.code. */
int hd_graph_backward(hd_graph *g, hd_value loss, const hd_value *wrt, int n, hd_value *grad);

/* ---- text, checks ---- */

void hd_graph_dump(const hd_graph *g, hd_str *out);   /* one line per value or node */
int hd_graph_verify(const hd_graph *g, hd_error *err); /* the invariants above, and that every node's types are what its op infers */
uint64_t hd_graph_fingerprint(const hd_graph *g);      /* of the dump without constants' contents */

/* ---- passes over any graph: Graph -> Graph in place ---- */

int hd_graph_cse(hd_graph *g); /* merges equal nodes of equal operands (common subexpressions) */
/* Keeps the nodes for which keep[i], in order, and renumbers. Values of dropped nodes stay in the table, unused. */
void hd_graph_keep_nodes(hd_graph *g, const bool *keep);
int hd_graph_sort(hd_graph *g); /* puts nodes back into a defined-before-used order, keeping the order they have where that allows */
/* Orders nodes by the length of the longest chain of nodes before them: what doesn't depend on each other stands together. Values live longer. */
int hd_graph_sort_by_depth(hd_graph *g);
int hd_graph_dce(hd_graph *g); /* drops nodes whose results lead to no output and no state */

#endif
