/* factor_int.h: within src/planners: eliminating variables from tables. */
#ifndef HD_PLANNERS_FACTOR_INT_H
#define HD_PLANNERS_FACTOR_INT_H

#include "planners/factor.h"

enum { MAX_SCOPE = 20 }; /* variables of one table */

/* A table over a few variables, row-major, the last one fastest. Sums of integers below 2^53 are exact in it; INFINITY forbids. */
typedef struct factor {
    int n, var[MAX_SCOPE];
    double *cost;
    int bucket;       /* where it is used up; -1: not yet */
    int made_by;      /* bucket whose message it is; -1: given */
    bool unary;       /* given: a variable's own cost, with its bytes at lambda */
} factor;

/* One eliminated variable: the tables that held it, and what became of them. */
typedef struct bucket {
    int var, n_uses; int *uses;        /* factors; their union without var is scope where nothing was split */
    int n_scope, scope[MAX_SCOPE];
    int message;                       /* factor over scope; -1: a number, or split */
    bool split;                        /* eliminated in parts: what comes out is a bound */
    double number;                     /* what came out where there is no message */
} bucket;

/* A problem with the states that are left, and its elimination. */
typedef struct network {
    const hd_factor_problem *p;
    const hd_factor_options *o;
    double lambda;                     /* a byte costs so much */
    double most_work;                  /* entries of all tables together past which nothing is eliminated; 0: none */
    bool bytes_only;                   /* costs count as nothing, but what is forbidden stays so */
    int *live_n, **live;               /* [n]: states left, in ascending order; borrowed */
    hd_arena memory;
    factor *factors; int n_factors; size_t room;
    bucket *buckets; int n_buckets;    /* in the order of elimination; variables of one state have none */
    int *bucket_of;                    /* [n], -1: none */
    double constant;                   /* what has no variables left */
    int64_t widest;
    double work, greatest;             /* entries of all tables that the order makes, and of the greatest */
    double spent;                      /* entries that were added up */
    bool split, declined;
} network;

/* Builds the factors and eliminates all variables: net->constant is the least total, or a bound where net->split. */
int hd_network_solve(network *net, hd_error *err);
void hd_network_close(network *net);
/* The choice that goes with it: states of the problem, not of `live`. */
void hd_network_trace(const network *net, int *choice);

int hd_network_states(const network *net, int v);
/* Entries of a table over these variables; saturates. */
double hd_network_entries(const network *net, const int *vars, int n);
/* out over keep[n_keep] (a subset of the variables of the given factors): the least sum over all others. */
int hd_network_project(network *net, const factor *const *from, int n, const int *keep, int n_keep, factor *out, hd_error *err);

/* The least cost below best->cost within p->limit of bytes, of a network solved at a price, none of it split. bound: nothing is below it. best: its cost is to be
 * beaten; choice, cost, bytes and feasible are set where it is, bound to what is certain. most: labels at most. */
int hd_labels_search(network *net, int64_t most, double ends, double bound, hd_factor_answer *best, hd_error *err);

/* Least cost within p->limit of bytes. ends: when the clock says so it gives up (hd_time; 0: never). */
int hd_factor_solve_limited(const hd_factor_problem *p, const hd_factor_options *o, double ends, hd_factor_answer *out, hd_error *err);

/* Least cost whatever the bytes. best: what is known so far, bettered; its bound is set. ends: likewise. */
int hd_factor_search(const hd_factor_problem *p, const hd_factor_options *o, double ends, hd_factor_answer *best, hd_error *err);

#endif
