/* factor.c: see factor.h. Dominated states go first; then the network is eliminated; where its tables would be too wide, a variable is fixed in each of its
 * states in turn (branch and bound over the mini-buckets' bounds). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

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

/* ---- states that are left ---- */

typedef struct states { int *n, **list; hd_arena memory; } states;

static int all_states(const hd_factor_problem *p, states *out)
{
    *out = (states){0};
    out->n = hd_arena_alloc(&out->memory, (size_t)(p->n + 1) * sizeof(int));
    out->list = hd_arena_alloc(&out->memory, (size_t)(p->n + 1) * sizeof(int *));
    if (!out->n || !out->list) return HD_ENOMEM;
    for (int v = 0; v < p->n; v++) {
        out->list[v] = hd_arena_alloc(&out->memory, (size_t)p->states[v] * sizeof(int));
        if (!out->list[v]) return HD_ENOMEM;
        for (int s = 0; s < p->states[v]; s++)
            if (p->cost[v][s] < HD_NEVER) out->list[v][out->n[v]++] = s;
    }
    return 0;
}

typedef struct linked { int *first, *link; } linked; /* links of variable v: link[first[v]] .. link[first[v + 1] - 1] */

static int find_links(const hd_factor_problem *p, hd_arena *memory, linked *out)
{
    out->first = hd_arena_alloc(memory, (size_t)(p->n + 2) * sizeof(int));
    out->link = hd_arena_alloc(memory, (size_t)(2 * p->n_links + 1) * sizeof(int));
    if (!out->first || !out->link) return HD_ENOMEM;
    for (int i = 0; i < p->n_links; i++) out->first[p->links[i].a + 2]++, out->first[p->links[i].b + 2]++;
    for (int v = 0; v < p->n; v++) out->first[v + 2] += out->first[v + 1];
    for (int i = 0; i < p->n_links; i++) out->link[out->first[p->links[i].a + 1]++] = i, out->link[out->first[p->links[i].b + 1]++] = i;
    return 0;
}

/* The most that state `to` of v costs over this link beyond state `from`, whatever the other end does. */
static int64_t worst_change(const hd_factor_problem *p, const states *live, const hd_factor_link *l, int v, int from, int to)
{
    int64_t worst = -HD_NEVER;
    bool first = l->a == v;
    int other = first ? l->b : l->a;
    for (int i = 0; i < live->n[other]; i++) {
        int s = live->list[other][i];
        int64_t x = first ? l->cost[(int64_t)from * p->states[other] + s] : l->cost[(int64_t)s * p->states[v] + from];
        int64_t y = first ? l->cost[(int64_t)to * p->states[other] + s] : l->cost[(int64_t)s * p->states[v] + to];
        if (x >= HD_NEVER) continue;
        if (y >= HD_NEVER) return HD_NEVER;
        if (y - x > worst) worst = y - x;
    }
    return worst;
}

static bool beats(const hd_factor_problem *p, const states *live, const linked *l, int v, int winner, int loser)
{
    int64_t change = p->cost[v][winner] - p->cost[v][loser];
    if (p->bytes && p->limit >= 0 && p->bytes[v][winner] > p->bytes[v][loser]) return false;
    for (int i = l->first[v]; i < l->first[v + 1]; i++) {
        int64_t worst = worst_change(p, live, &p->links[l->link[i]], v, loser, winner);
        if (worst >= HD_NEVER) return false;
        if (worst <= -HD_NEVER) return true; /* the loser is forbidden whatever happens */
        change += worst;
    }
    return change <= 0;
}

static void drop_dominated(const hd_factor_problem *p, states *live, const linked *l)
{
    for (int v = 0; v < p->n; v++) {
        int *list = live->list[v];
        for (int i = 0; i < live->n[v]; i++)
            for (int j = 0; j < live->n[v]; j++) {
                if (i == j || !beats(p, live, l, v, list[j], list[i])) continue;
                memmove(&list[i], &list[i + 1], (size_t)(live->n[v] - i - 1) * sizeof *list);
                live->n[v]--, i--;
                break;
            }
    }
}

/* ---- branch and bound ---- */

typedef struct search {
    const hd_factor_problem *p;
    const hd_factor_options *o;
    states *live;
    hd_factor_answer *best;
    int *trial;
    int64_t nodes, most;
    double open; /* least bound of what was not looked at */
} search;

/* Of the buckets that were split, the variable whose states take up most of the table. */
static int branch_var(const network *net)
{
    int best = -1;
    for (int i = 0; i < net->n_buckets; i++) {
        const bucket *b = &net->buckets[i];
        if (!b->split) continue;
        for (int k = -1; k < b->n_scope && k < MAX_SCOPE; k++) {
            int v = k < 0 ? b->var : b->scope[k];
            if (best < 0 || net->live_n[v] > net->live_n[best]) best = v;
        }
        break;
    }
    return best;
}

static void keep_if_better(search *s, const network *net)
{
    hd_network_trace(net, s->trial);
    int64_t bytes, cost = hd_factor_total(s->p, s->trial, &bytes);
    if (cost >= HD_NEVER || (s->best->feasible && cost >= s->best->cost)) return;
    memcpy(s->best->choice, s->trial, (size_t)s->p->n * sizeof *s->trial);
    s->best->cost = cost, s->best->bytes = bytes, s->best->feasible = true;
}

static int look(search *s, hd_error *err);

static int branch(search *s, int v, hd_error *err)
{
    int n = s->live->n[v], *list = s->live->list[v], rc = 0;
    for (int i = 0; !rc && i < n; i++) {
        s->live->n[v] = 1, s->live->list[v] = &list[i];
        rc = look(s, err);
    }
    s->live->n[v] = n, s->live->list[v] = list;
    return rc;
}

static int look(search *s, hd_error *err)
{
    network net = {.p = s->p, .o = s->o, .live_n = s->live->n, .live = s->live->list};
    int rc = hd_network_solve(&net, err), v = -1;
    double bound = net.constant;
    s->nodes++;
    if (net.widest > s->best->widest) s->best->widest = net.widest;
    if (!rc && bound < INFINITY) keep_if_better(s, &net);
    if (!rc && net.split && !(s->best->feasible && bound > (double)s->best->cost - 0.5)) v = branch_var(&net);
    hd_network_close(&net);
    if (rc || v < 0) return rc;
    if (s->nodes < s->most) return branch(s, v, err);
    if (bound < s->open) s->open = bound;
    return 0;
}

static int solve_free(const hd_factor_problem *p, const hd_factor_options *o, states *live, hd_factor_answer *out, hd_error *err)
{
    search s = {.p = p, .o = o, .live = live, .best = out, .most = o && o->nodes ? o->nodes : 20000, .open = INFINITY};
    s.trial = hd_calloc((size_t)p->n + 1, sizeof *s.trial);
    int rc = s.trial ? look(&s, err) : hd_fail_memory(err, 0, "a layout search");
    out->nodes = s.nodes;
    out->bound = out->feasible ? out->cost : HD_NEVER;
    if (s.open < (double)out->bound) out->bound = (int64_t)ceil(s.open - 1e-6);
    hd_free(s.trial);
    return rc;
}

int hd_factor_solve(const hd_factor_problem *p, const hd_factor_options *o, hd_factor_answer *out, hd_error *err)
{
    states live;
    linked l = {0};
    *out = (hd_factor_answer){.choice = hd_calloc((size_t)p->n + 1, sizeof(int)), .bound = HD_NEVER};
    int rc = all_states(p, &live);
    if (!rc) rc = find_links(p, &live.memory, &l);
    if (rc || !out->choice) rc = hd_fail_memory(err, 0, "a layout search");
    bool possible = !rc;
    for (int v = 0; possible && v < p->n; v++) possible = live.n[v] > 0;
    if (possible) drop_dominated(p, &live, &l);
    if (possible) rc = p->limit >= 0 && p->bytes ? hd_factor_solve_limited(p, o, live.n, live.list, out, err) : solve_free(p, o, &live, out, err);
    hd_arena_free(&live.memory);
    if (rc) hd_factor_answer_free(out);
    return rc;
}

void hd_factor_answer_free(hd_factor_answer *a)
{
    hd_free(a->choice);
    *a = (hd_factor_answer){0};
}
