/* layouts.h: the layout of every value of a Graph on a mesh, so that a step takes least: Alpa's intra-operator level (Zheng et al. 2022, section 4), exactly.
 *
 * Choices are a way to divide each node (which of its loops each axis cuts; or the same on all ranks; or addends passed on), and for each value one layout in
 * which it is held between the node that makes it and those that read it. What is paid: the collectives from what the node leaves to what is held, and from
 * there to what each reader needs (passes/convert.c says which). State ends in the layout that it began in; outputs end whole.
 *
 * On a cluster a node takes what its kernel does on a rank's piece, and a conversion what its collectives do there (cluster/cost.h): in each micro-batch what
 * belongs to one, once what is done once a step, gradients' sums among it. But for `overlap` nothing runs beside anything else, and each reader pays for its
 * own conversion. Memory is without what lowering makes again in backward (passes/recompute.c), and its time is not counted.
 *
 * Without one only what is sent counts; products, convolutions and attention then use all axes where some way of dividing them does, so that all ranks work.
 * A collective over n ranks, of b bytes on the larger side, takes alpha + 2 (n - 1) / n beta b for an all-reduce, alpha + (n - 1) / n beta b for an all-gather or
 * a reduce-scatter, and alpha + (n - 1) / n beta b for an all-to-all of b bytes on each rank; over several axes the sum of one after the other. */
#ifndef HD_PLANNERS_LAYOUTS_H
#define HD_PLANNERS_LAYOUTS_H

#include "cluster/cluster.h"
#include "graph/graph.h"
#include "passes/partition.h"
#include "planners/factor.h"

typedef enum hd_collective { HD_COLL_ALL_REDUCE, HD_COLL_ALL_GATHER, HD_COLL_REDUCE_SCATTER, HD_COLL_ALL_TO_ALL, HD_COLL_KINDS } hd_collective;
const char *hd_collective_name(hd_collective k); /* "all-reduce", ... */
int hd_collective_parse(const char *name, hd_collective *out); /* 0 or HD_EINVAL */

#define HD_LAYOUT_OVERLAP 0.8 /* by the simulator, of language models on 4 to 8 GPUs of a node: 0.7 to 1 */

typedef struct hd_layout_problem {
    const hd_graph *graph;         /* whole: not partitioned; its values keep their paths */
    hd_mesh mesh;                  /* no pipeline axis; at most 3 axes of more than one rank */
    const hd_cluster *cluster;     /* whose ranks 0, 1, ... the mesh's are; NULL: alpha and beta */
    int world;                     /* ranks of the job, which share ports with those of the mesh (hd_cost_move); 0: the mesh's */
    int threads, teams;            /* of a rank, and of a node (hd_cost_kernel); 0: one, and all ranks of the node */
    int64_t micro_batches;         /* of a step, of which the graph is one; 0: one */
    double overlap;                /* share of what sums of gradients take that runs beside computing, 0 .. 1: it costs nothing */
    bool keep_gathered;            /* what is gathered of parameters over DATA axes stays for the step; else each call gathers it, forward and backward */
    double alpha[HD_MAX_AXES], beta[HD_MAX_AXES]; /* by axis: seconds; seconds a byte */
    int64_t memory;                /* bytes of a rank for parameters, states, their gradients, and what forward keeps for backward; negative: endless */
    int64_t in_flight;             /* micro-batches for which it keeps that at once; 0: one */
    const char (*recompute)[64]; int n_recompute; /* on a cluster: patterns of what backward makes again instead (hd_plan); borrowed */
    bool data_parallel;            /* every node that has the samples' dimension cuts that and no other */
    bool prefer_reduce_scatter;    /* an all-reduce counts as the two halves that it could be taken apart into, and a thousandth more */
    uint32_t forbidden;            /* bit k: no collectives of this kind */
    hd_factor_options search;
    bool ilp; double ilp_seconds;  /* by CBC instead */
} hd_layout_problem;

typedef struct hd_layout_traffic { int64_t count, combined; double bytes; } hd_layout_traffic; /* combined: gradients' over the same axes as one message */

typedef struct hd_layout_node { const hd_node *node; int8_t loop[HD_MAX_AXES]; } hd_layout_node; /* by axis: the loop cut; -1 none; -2 addends passed on;
                                                                                              * -3 as several nodes, passes/expand.c */

typedef struct hd_layout_answer {
    bool feasible, proven;
    double seconds, bound;         /* of one step: of communication, and on a cluster of kernels; no choice takes less than bound */
    double work;                   /* of these, kernels' */
    int64_t memory;                /* bytes of a rank; where nothing fits: the least that anything takes */
    hd_layout *held;               /* [graph n_values]: the layout in which a value is held; owned */
    hd_layout *made;               /* [graph n_values]: in which its node leaves it; owned */
    hd_layout_node *nodes; int n_nodes; /* owned */
    hd_layout_traffic traffic[HD_COLL_KINDS];
    int variables; int64_t widest, branches;
    double build_seconds, solve_seconds;
} hd_layout_answer;

int hd_layouts_solve(const hd_layout_problem *p, hd_layout_answer *out, hd_error *err);
void hd_layout_answer_free(hd_layout_answer *a);

/* As few pins as make hd_pass_partition hold what the answer says, in pins[most]: parameters, states and inputs, and results that it would lay otherwise, or
 * bring elsewhere. With `repeat` layers that are alike are named together, "layers.*.attn.q", so that the pins also fit the same model with more layers.
 * *n: how many. HD_EINVAL and one line where more than `most` are needed, or a path is too long for a pin. */
int hd_layout_pins(const hd_layout_problem *p, const hd_layout_answer *a, bool repeat, hd_pin *pins, int most, int *n, hd_error *err);

#endif
