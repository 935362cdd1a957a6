/* factor.c: see factor.h; factor_search.c and factor_limit.c do the work. */
#include "base/term.h"
#include "planners/factor_int.h"

int64_t hd_factor_total(const hd_factor_problem *p, const int *choice, int64_t *bytes)
{
    int64_t cost = 0, taken = 0;
    for (int v = 0; v < p->n; v++) {
        cost += p->cost[v][choice[v]];
        if (p->bytes) taken += p->bytes[v][choice[v]];
        if (cost > HD_NEVER) cost = HD_NEVER;
    }
    for (int i = 0; i < p->n_links; i++) {
        const hd_factor_link *l = &p->links[i];
        cost += l->cost[(int64_t)choice[l->a] * p->states[l->b] + choice[l->b]];
        if (cost > HD_NEVER) cost = HD_NEVER;
    }
    if (bytes) *bytes = taken;
    return cost;
}

int hd_factor_solve(const hd_factor_problem *p, const hd_factor_options *o, hd_factor_answer *out, hd_error *err)
{
    double ends = o && o->seconds > 0 ? hd_time() + o->seconds : 0;
    *out = (hd_factor_answer){.choice = hd_calloc((size_t)p->n + 1, sizeof(int)), .bound = HD_NEVER};
    int rc = out->choice ? 0 : hd_fail_memory(err, 0, "a layout search");
    if (!rc) rc = p->limit >= 0 && p->bytes ? hd_factor_solve_limited(p, o, ends, out, err) : hd_factor_search(p, o, ends, out, err);
    if (rc) hd_factor_answer_free(out);
    return rc;
}

void hd_factor_answer_free(hd_factor_answer *a)
{
    hd_free(a->choice);
    *a = (hd_factor_answer){0};
}
