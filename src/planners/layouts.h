/* layouts.h: the layout of every value of a Graph on a mesh, so that least is sent: Alpa's intra-operator level (Zheng et al. 2022, section 4), exactly.
 *
 * Choices are a way to divide each node (which of its loops each axis cuts; or the same on all ranks; or addends passed on), and for each value one layout in
 * which it is held between the node that makes it and those that read it. What is paid: the collectives from what the node leaves to what is held, and from
 * there to what each reader needs (passes/convert.c says which). State ends in the layout that it began in; outputs end whole. Products, convolutions and
 * attention use all axes where some way of dividing them does, so that all ranks work; nothing else about computing counts.
 *
 * A collective over n ranks, of b bytes on the larger side, takes alpha + 2 (n - 1) / n beta b for an all-reduce, alpha + (n - 1) / n beta b for an all-gather or
 * a reduce-scatter, and alpha + (n - 1) / n beta b for an all-to-all of b bytes on each rank; over several axes the sum of one after the other. */
#ifndef HD_PLANNERS_LAYOUTS_H
#define HD_PLANNERS_LAYOUTS_H

#include "graph/graph.h"
#include "planners/factor.h"

typedef enum hd_collective { HD_COLL_ALL_REDUCE, HD_COLL_ALL_GATHER, HD_COLL_REDUCE_SCATTER, HD_COLL_ALL_TO_ALL, HD_COLL_KINDS } hd_collective;
const char *hd_collective_name(hd_collective k); /* "all-reduce", ... */
int hd_collective_parse(const char *name, hd_collective *out); /* 0 or HD_EINVAL */

typedef struct hd_layout_problem {
    const hd_graph *graph;         /* whole: not partitioned; its values keep their paths */
    hd_mesh mesh;                  /* no pipeline axis; at most 3 axes of more than one rank */
    double alpha[HD_MAX_AXES], beta[HD_MAX_AXES]; /* by axis: seconds; seconds a byte */
    int64_t memory;                /* bytes of a rank for parameters, states, their gradients, and what forward keeps for backward; negative: endless */
    bool data_parallel;            /* every node that has the samples' dimension cuts that and no other */
    bool prefer_reduce_scatter;    /* an all-reduce counts as the two halves that it could be taken apart into, and a thousandth more */
    uint32_t forbidden;            /* bit k: no collectives of this kind */
    hd_factor_options search;
    bool ilp; double ilp_seconds;  /* by CBC instead */
} hd_layout_problem;

typedef struct hd_layout_traffic { int64_t count, combined; double bytes; } hd_layout_traffic; /* combined: gradients' over the same axes as one message */

typedef struct hd_layout_node { const hd_node *node; int8_t loop[HD_MAX_AXES]; } hd_layout_node; /* by axis: the loop cut; -1 none; -2 addends passed on */

typedef struct hd_layout_answer {
    bool feasible, proven;
    double seconds, bound;         /* of communication in one step; no choice takes less than bound */
    int64_t memory;                /* bytes of a rank; where nothing fits: the least that anything takes */
    hd_layout *held;               /* [graph n_values]: the layout in which a value is held; owned */
    hd_layout_node *nodes; int n_nodes; /* owned */
    hd_layout_traffic traffic[HD_COLL_KINDS];
    int variables; int64_t widest, branches;
    double build_seconds, solve_seconds;
} hd_layout_answer;

int hd_layouts_solve(const hd_layout_problem *p, hd_layout_answer *out, hd_error *err);
void hd_layout_answer_free(hd_layout_answer *a);

#endif
