/* pipedream.h: PipeDream's optimizer (Narayanan et al. 2019, section 3.1): a profiled graph cut into stages, each replicated over some devices, so that the
 * slowest stage or link is as quick as can be.
 *
 *     A^k(i -> j, m) = min( T^k(i -> j, m),  min over s, m' of max( A^k(i -> s, m - m'), 2 a_s / B_k, T^k(s + 1 -> j, m') ) )
 *     T^k(i -> j, m) = max( A^{k-1}(i -> j, m_{k-1}), 2 (m - 1) w(i -> j) / B_k ) / m
 *
 * A^0 is the sum of forward and backward times; w and a are bytes of parameters and of what crosses a cut; level 1 is the devices of a machine, level 2 the
 * machines, B_k the bandwidth between them. Where the graph is no chain, i and j are sets of nodes closed under predecessors, and a_s counts the
 * outputs of nodes inside that something outside reads. */
#ifndef HD_PLANNERS_PIPEDREAM_H
#define HD_PLANNERS_PIPEDREAM_H

#include <stdint.h>
#include "base/error.h"
#include "base/mem.h"

typedef struct hd_profiled_node {
    char *name, *what;         /* "node4", "Conv2d(...)"; in memory */
    double forward, backward;  /* milliseconds */
    double activation, parameters; /* bytes */
} hd_profiled_node;

typedef struct hd_profiled_graph {
    hd_arena memory;
    hd_profiled_node *nodes; int n;      /* in an order in which predecessors come first */
    int (*edges)[2]; int n_edges;        /* from, to */
} hd_profiled_graph;

enum { HD_PIPEDREAM_LEVELS = 2 };

typedef struct hd_pipedream_machines {
    int levels;                          /* 1 or 2 */
    int count[HD_PIPEDREAM_LEVELS];      /* devices of a machine; machines */
    double bandwidth[HD_PIPEDREAM_LEVELS]; /* bytes a second between them */
} hd_pipedream_machines;

/* Nodes first .. last of `order`, on `replicas` devices of each of `machines` machines, all with the same parameters. */
typedef struct hd_pipedream_stage { int first, last, replicas, machines; } hd_pipedream_stage;

typedef struct hd_pipedream_plan {
    double bottleneck;                   /* milliseconds for one micro-batch */
    int *order;                          /* [graph n]: nodes, stage by stage; owned */
    hd_pipedream_stage *stages; int n;   /* owned; consecutive stages with the same machines share them where the outer level has them as one */
} hd_pipedream_plan;

/* PipeDream's own profile format: "node1 -- Conv2d(3, 64) -- forward_compute_time=1.0, backward_compute_time=2.0, activation_size=8.0, parameter_size=4.0"
 * and edges "<tab>node1 -- node2"; activation_size may be a list "[1.0; 2.0]", which is summed. */
int hd_profiled_graph_parse(const char *text, size_t n, const char *name, hd_profiled_graph *out, hd_error *err);
void hd_profiled_graph_free(hd_profiled_graph *g);

/* HD_EUNSUPPORTED where the graph has too many cuts to look at them all. */
int hd_pipedream_solve(const hd_profiled_graph *g, const hd_pipedream_machines *m, hd_pipedream_plan *out, hd_error *err);
void hd_pipedream_plan_free(hd_pipedream_plan *p);

#endif
