/* minmax.h: least sum + weight * greatest, over choices whose costs are known: what a pipeline of `weight` + 1 equal pieces takes. */
#ifndef HD_PLANNERS_MINMAX_H
#define HD_PLANNERS_MINMAX_H

#include <stddef.h>

typedef struct hd_minmax {
    void *arg;
    /* Least sum when no cost is above `cap`; INFINITY if there is no such choice. Never grows with cap. */
    double (*least)(void *arg, double cap);
    const double *caps; int n; /* ascending: all values that the greatest may take */
    double weight;             /* >= 0 */
} hd_minmax;

/* The cap at which least(cap) + weight * cap is least (the smallest such); INFINITY: nothing is possible. *calls (may be NULL): of least. */
double hd_minmax_solve(const hd_minmax *m, int *calls);

/* Sorts costs and drops those that are there twice or infinite; returns how many are left. */
int hd_minmax_caps(double *costs, int n);

#endif
