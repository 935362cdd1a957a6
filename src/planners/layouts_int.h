/* layouts_int.h: what the files of the layout search share.
 *
 *   layouts.c       from a Graph to a problem of factor.h, and back
 *   layouts_cost.c  what a way to divide a node and a conversion cost, and what is sent in all
 *   layouts_ways.c  ways to divide nodes that only split as several nodes
 *   layouts_pins.c  an answer as pins */
#ifndef HD_PLANNERS_LAYOUTS_INT_H
#define HD_PLANNERS_LAYOUTS_INT_H

#include "passes/partition_int.h"
#include "planners/layouts.h"

#define HD_DISLIKE 1.001 /* of all-reduces where reduce-scatters are preferred: what costs the same is taken apart */

typedef struct hd_way { int8_t loop[HD_MAX_AXES]; hd_layout *in, *out; } hd_way; /* [n_in], [n_out] */
typedef struct hd_ways { hd_way *list; int n; } hd_ways;
typedef struct hd_holding { hd_layout *list; int n; size_t room; } hd_holding;

typedef struct hd_layout_memo { uint64_t key; double seconds; } hd_layout_memo; /* key 0: free */

typedef struct hd_layout_builder {
    const hd_layout_problem *p;
    const hd_graph *g;
    hd_part part;           /* types and uses of the values: nothing is held yet */
    hd_arena memory;
    hd_ways *ways;          /* [n_nodes] */
    hd_holding *held;       /* [n_values]; n 0: no variable */
    bool *saved;            /* [n_values]: made in forward, read in backward */
    bool *late;             /* [n_values]: leads to the update, or is an output, and to nothing else */
    bool *summed;           /* [n_values]: an addend of a sum over micro-batches, which takes its place in memory */
    int *variable;          /* [n_values]: -1: none */
    int *states;
    int64_t **cost, **bytes;
    hd_factor_link *links; size_t link_room;
    hd_factor_problem problem;
    hd_layout_memo *memo; size_t n_memo, memo_room; /* what collectives take; room is a power of two */
    int *ranks;             /* [mesh] scratch */
} hd_layout_builder;

/* Costs are integers, so many to a second: picoseconds, or on a cluster, where steps may take hours and HD_NEVER is no more than 1,126 s of those, nanoseconds. */
static inline double hd_layout_unit(const hd_layout_builder *b) { return b->p->cluster ? 1e9 : 1e12; }

#define HD_WAY_EXPANDED (-3) /* in hd_way.loop */

/* ---- layouts_ways.c ---- */

/* Appends to *list, of n strategies of node x (hd_part_list's), those in which axes along which x does the same on all ranks cut it as passes/expand.c does;
 * on a cluster only. Returns how many there are then, or HD_ENOMEM. */
int hd_layout_expand(const hd_layout_builder *b, const hd_node *x, hd_strategy **list, int n);

/* ---- layouts_cost.c ---- */

int hd_layout_memo_open(hd_layout_builder *b); /* before any cost is asked on a cluster */

/* Picoseconds of a step in which n does its work as w says; 0 without a cluster. */
int64_t hd_layout_work(hd_layout_builder *b, const hd_node *n, const hd_way *w);
/* Picoseconds of a step to bring v from one layout to another for `reader` (NULL: what made it, a state or an output); HD_NEVER: forbidden. */
int64_t hd_layout_conversion(hd_layout_builder *b, hd_value v, const hd_layout *from, const hd_layout *to, const hd_node *reader);
/* An operand that stands twice is brought into one layout once. */
bool hd_layout_read_before(const hd_layout_builder *b, const hd_node *n, const hd_way *w, int k);
/* Takes out of b->saved what backward makes again. 0 or HD_ENOMEM. */
int hd_layout_recompute(hd_layout_builder *b);
/* Fills out->traffic of what was chosen; out->held is there. choice: [nodes] */
void hd_layout_count(const hd_layout_builder *b, const int *choice, hd_layout_answer *out);

#endif
