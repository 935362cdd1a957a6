/* factor_core.h: within src/planners: a problem of factor.h that shrinks.
 *
 * Equal transformations only: what a core says of a choice is what the problem says of it. Variables of one state go into their neighbours' costs; those of at
 * most two links are eliminated (a link between the two takes their place), where their bytes don't matter; dominated states go; costs move between variables
 * and links so that the constant, which no choice can fall below, grows (sequential tree-reweighted messages: Kolmogorov 2006, 2015); and states with which
 * that bound reaches what is to be beaten go, too. What is left is small enough to be eliminated, or is branched over (factor.c). */
#ifndef HD_PLANNERS_FACTOR_CORE_H
#define HD_PLANNERS_FACTOR_CORE_H

#include "planners/factor_int.h"

typedef struct core_var {
    int n, *state;         /* states left: of the problem, ascending */
    double *cost, *bytes;  /* [n]; INFINITY: dropped, or never possible */
    int *link, n_links; size_t room; /* those still there */
    bool gone, dirty;      /* dirty: something near it has changed since it was looked at */
} core_var;

typedef struct core_link { int a, b; double *cost; bool gone; } core_link; /* [n of a][n of b] */

/* A variable that is gone: its best state once those near it are known. */
typedef struct core_record {
    int var, n, *state; double *cost;
    int near, other[2], other_n[2], *other_state[2]; const double *table[2]; bool first[2]; /* first: var is the table's first index */
} core_record;

typedef struct core {
    const hd_factor_problem *p;
    const struct core *from;   /* what it is a copy of: variables that were gone there are found there */
    int n;
    core_var *var;
    core_link *link; int n_links; size_t link_room;
    core_record *record; int n_records; size_t record_room;
    double constant, constant_bytes;
    bool tied;                 /* bytes count: choices may only be given up for those that take no more */
    bool whole;                /* states that others dominate stay: what is left bounds, state by state */
    bool impossible;
    hd_arena memory;
} core;

/* live (NULL: all): states of each variable, as in network. */
int hd_core_open(core *c, const hd_factor_problem *p, bool tied, const int *live_n, int *const *live);
int hd_core_copy(core *c, const core *from); /* from must outlive it */
void hd_core_close(core *c);

int hd_core_reduce(core *c);                  /* until nothing more goes; 0 or HD_ENOMEM */
int hd_core_keep_only(core *c, int v, int i); /* state i of those left */
void hd_core_drop_infinite(core *c);          /* states of infinite cost */
int hd_core_left(const core *c);              /* variables that are not gone */

/* One pass over all variables in this order (rank: where each stands in it), or backwards; states with which a total of `below` or more is certain become
 * infinite. round (NULL: none): [n] a choice made on the way, by position among those left. */
int hd_core_order(const core *c, int *order, int *rank);
void hd_core_pass(core *c, const int *order, const int *rank, int n, bool backwards, double below, int *round);
/* Betters a choice (by position) variable by variable; returns its total. */
double hd_core_descend(const core *c, int *at);
/* Least total of each state of v, as far as is known. */
void hd_core_margins(const core *c, int v, double *out);

/* From positions of those left to states of the problem, of all variables. */
void hd_core_expand(const core *c, const int *at, int *choice);

/* What is left as a problem: which[k] is the variable that is k there; state i there is position i. */
typedef struct core_rest { hd_factor_problem p; int *which; hd_arena memory; } core_rest;
int hd_core_rest(const core *c, core_rest *out);

#endif
