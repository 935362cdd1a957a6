/* minmax.c: see minmax.h. Alpa (Zheng et al. 2022, section 5.2) and TeraPipe (Li et al. 2021, section 3.3) try every value of the greatest cost; here an
 * interval of values is left out when the sums at its ends are equal, or when the sum at its upper end with the lowest cap inside cannot beat the best. */
#include <math.h>
#include <stdlib.h>

#include "planners/minmax.h"

typedef struct search { const hd_minmax *m; double best; int at, calls; } search;

static double look(search *s, int i)
{
    double sum = s->m->least(s->m->arg, s->m->caps[i]), total = sum + s->m->weight * s->m->caps[i];
    s->calls++;
    if (total < s->best || (total == s->best && i < s->at && isfinite(total))) s->best = total, s->at = i;
    return sum;
}

/* Between lo and hi, both looked at, with these sums. */
static void narrow(search *s, int lo, int hi, double sum_lo, double sum_hi)
{
    if (hi - lo < 2 || sum_lo == sum_hi || sum_hi + s->m->weight * s->m->caps[lo + 1] > s->best) return;
    int middle = lo + (hi - lo) / 2;
    double sum = look(s, middle);
    narrow(s, lo, middle, sum_lo, sum);
    narrow(s, middle, hi, sum, sum_hi);
}

double hd_minmax_solve(const hd_minmax *m, int *calls)
{
    search s = {.m = m, .best = INFINITY, .at = -1};
    if (m->n) {
        double high = look(&s, m->n - 1), low = m->n > 1 ? look(&s, 0) : high;
        if (isfinite(high)) narrow(&s, 0, m->n - 1, low, high);
    }
    if (calls) *calls = s.calls;
    return s.at < 0 ? INFINITY : m->caps[s.at];
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int hd_minmax_caps(double *costs, int n)
{
    int kept = 0;
    qsort(costs, (size_t)n, sizeof *costs, ascending);
    for (int i = 0; i < n && isfinite(costs[i]); i++)
        if (!kept || costs[i] != costs[kept - 1]) costs[kept++] = costs[i];
    return kept;
}
