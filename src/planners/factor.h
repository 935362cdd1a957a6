/* factor.h: discrete choices that cost by themselves and in pairs: the engine of layout search.
 *
 * Variable v takes one of states[v] values. A total is the sum of one cost for each variable and one for each pair that is linked; costs are integers
 * (nanoseconds, or any unit), HD_NEVER forbids. Each state also takes bytes, of which the sum may be limited. Exact: states that another state of the same
 * variable beats whatever the others do are dropped, and those that a lower bound shows to be in nothing better (factor_core.h); what is left is eliminated one
 * variable at a time (bucket elimination, Dechter 1999), or branched over. With a limit, labels (cost, bytes) that nothing dominates are kept instead of one
 * cost, and pruned by Lagrangian bounds from both sides. */
#ifndef HD_PLANNERS_FACTOR_H
#define HD_PLANNERS_FACTOR_H

#include <stdbool.h>
#include <stdint.h>
#include "base/error.h"
#include "base/mem.h"
#include "base/str.h"

#define HD_NEVER ((int64_t)1 << 50) /* and anything above it */

typedef struct hd_factor_link { int a, b; const int64_t *cost; /* [states of a][states of b] */ } hd_factor_link;

typedef struct hd_factor_problem {
    int n;
    const int *states;             /* [n], each >= 1 */
    const int64_t *const *cost;    /* [n][states], >= 0 */
    const int64_t *const *bytes;   /* [n][states], >= 0; NULL: none take any */
    const hd_factor_link *links; int n_links; /* a != b; several of one pair add up */
    int64_t limit;                 /* of bytes; negative: none */
} hd_factor_problem;

typedef struct hd_factor_options {
    int64_t table;      /* entries of one table at most; 0: 2^24. Wider problems are cut by fixing a variable at a time (branch and bound) */
    int64_t nodes;      /* branches (and labels / 1000) at most; 0: 20,000, or as many as add up 4e9 entries of tables. What is left open shows as a gap */
    double seconds;     /* by the clock, likewise; 0: however long it takes */
} hd_factor_options;

typedef struct hd_factor_answer {
    int *choice;        /* [n]; owned */
    int64_t cost, bytes;
    int64_t bound;      /* no choice costs less: cost - bound is the gap, 0 when the answer is proven best */
    int64_t widest, nodes; /* greatest table; branches taken */
    bool feasible;
} hd_factor_answer;

/* 0 also where nothing is possible (feasible false; bound is then HD_NEVER, or with a limit the least bytes possible stand in bytes). HD_ENOMEM. */
int hd_factor_solve(const hd_factor_problem *p, const hd_factor_options *o, hd_factor_answer *out, hd_error *err);
void hd_factor_answer_free(hd_factor_answer *a);

/* Total of a given choice; HD_NEVER or more: forbidden. bytes may be NULL. */
int64_t hd_factor_total(const hd_factor_problem *p, const int *choice, int64_t *bytes);

/* The same problem as an integer programme, solved by CBC (seconds 0: however long it takes), whose library is looked for at run time. HD_EUNSUPPORTED
 * where it isn't installed. */
int hd_factor_solve_ilp(const hd_factor_problem *p, double seconds, hd_factor_answer *out, hd_error *err);

#endif
