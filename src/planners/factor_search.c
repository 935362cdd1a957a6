/* factor_search.c: least cost whatever the bytes: a core is reduced, its bound raised and its states cut by what is known, until tables hold what is left;
 * else a variable is fixed in each of its states in turn (branch and bound). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/term.h"
#include "planners/factor_core.h"

enum { ROUNDS = 200, CHILD_ROUNDS = 100, LOOK_EVERY = 6 };
#define AT_ONCE 2e6   /* entries of all tables that are made without a look at bounds */
#define AT_LAST 6.5e7 /* ... when bounds get no better */
#define IN_ALL 4e9    /* ... in all branches together, where their number isn't given */
#define IN_PARTS (1 << 18)

typedef struct search {
    const hd_factor_problem *p;
    hd_factor_options o;
    hd_factor_answer *best;
    int *at, *choice, *order, *rank; /* [n] */
    int64_t nodes, most;
    double spent, ends, open; /* open: least bound of what was not looked at */
    hd_error *err;
} search;

static double below(const search *s) { return s->best->feasible ? (double)s->best->cost : INFINITY; }
static bool is_late(const search *s) { return s->ends > 0 && hd_time() > s->ends; }
static bool is_closed(const search *s, const core *c) { return c->impossible || c->constant > below(s) - 0.5; }

static void offer(search *s, const core *c, const int *at)
{
    int64_t bytes, cost;
    hd_core_expand(c, at, s->choice);
    cost = hd_factor_total(s->p, s->choice, &bytes);
    if (cost >= HD_NEVER || (s->best->feasible && cost >= s->best->cost)) return;
    memcpy(s->best->choice, s->choice, (size_t)s->p->n * sizeof *s->choice);
    s->best->cost = cost, s->best->bytes = bytes, s->best->feasible = true;
}

/* Eliminates what is left; where that takes more than `work` entries nothing happens. *done: nothing below the best is left in c. */
static int by_tables(search *s, const core *c, double work, int64_t table, bool *done, double *bound)
{
    core_rest r;
    int most = 1, rc = hd_core_rest(c, &r) ? hd_fail_memory(s->err, 0, "a layout search") : 0;
    *done = false, *bound = c->constant;
    for (int k = 0; !rc && k < r.p.n; k++) most = r.p.states[k] > most ? r.p.states[k] : most;
    int *all = hd_arena_alloc(&r.memory, (size_t)most * sizeof *all), **live = hd_arena_alloc(&r.memory, (size_t)(r.p.n + 1) * sizeof *live);
    int *choice = hd_arena_alloc(&r.memory, (size_t)(r.p.n + 1) * sizeof *choice);
    if (!rc && (!all || !live || !choice)) rc = hd_fail_memory(s->err, 0, "a layout search");
    for (int i = 0; !rc && i < most; i++) all[i] = i;
    for (int k = 0; !rc && k < r.p.n; k++) live[k] = all;
    hd_factor_options o = s->o;
    if (table && (!o.table || o.table > table)) o.table = table;
    if (s->ends > 0 && work > 0) work = fmin(work, 1e4 + 2e7 * fmax(s->ends - hd_time(), 0));
    network net = {.p = &r.p, .o = &o, .live_n = (int *)(uintptr_t)r.p.states, .live = live, .most_work = work};
    if (!rc) rc = hd_network_solve(&net, s->err);
    if (!rc && !net.declined) {
        *bound = c->constant + net.constant;
        if (net.widest > s->best->widest) s->best->widest = net.widest;
        s->spent += net.spent;
        if (net.constant < INFINITY) {
            hd_network_trace(&net, choice);
            for (int k = 0; k < r.p.n; k++) s->at[r.which[k]] = choice[k];
            offer(s, c, s->at);
        }
        *done = !net.split || *bound > below(s) - 0.5;
    }
    hd_network_close(&net);
    hd_arena_free(&r.memory);
    return rc;
}

/* One pass there and one back; what is found on the way is offered. */
static void tighten_once(search *s, core *c, int n)
{
    for (int back = 0; back < 2 && !is_closed(s, c); back++) {
        hd_core_pass(c, s->order, s->rank, n, back, below(s), s->at);
        if (c->impossible) return;
        if (hd_core_descend(c, s->at) < below(s)) offer(s, c, s->at);
    }
}

static int tighten(search *s, core *c, int rounds, bool *done, double *bound)
{
    double last = c->constant;
    int n = hd_core_order(c, s->order, s->rank), rc = 0;
    *done = false;
    for (int round = 1; !rc && round <= rounds && (round == 1 || !is_late(s)); round++) {
        tighten_once(s, c, n);
        *bound = c->constant;
        if ((*done = is_closed(s, c))) return 0;
        if (round % LOOK_EVERY) continue;
        int before = hd_core_left(c);
        if (hd_core_reduce(c)) return hd_fail_memory(s->err, 0, "a layout search");
        if ((*done = is_closed(s, c))) return 0;
        n = hd_core_order(c, s->order, s->rank);
        if (n < before || !n) rc = by_tables(s, c, AT_ONCE, 0, done, bound);
        if (rc || *done) return rc;
        if (c->constant - last < 0.002 * (below(s) - last) || c->constant - last < 1) break;
        last = c->constant;
    }
    return rc;
}

/* ---- branch and bound ---- */

static int explore(search *s, core *c, int rounds);

static int branch_var(const core *c)
{
    double most = -1;
    int best = -1;
    for (int v = 0; v < c->n; v++) {
        if (c->var[v].gone) continue;
        double weight = c->var[v].n_links * log2(c->var[v].n);
        if (weight > most) most = weight, best = v;
    }
    return best;
}

static int branch(search *s, const core *c)
{
    int v = branch_var(c), n = c->var[v].n, rc = 0;
    double margin[n];
    bool seen[n];
    memset(seen, 0, sizeof seen);
    hd_core_margins(c, v, margin);
    for (int k = 0; !rc && k < n; k++) {
        int i = -1;
        for (int j = 0; j < n; j++)
            if (!seen[j] && (i < 0 || margin[j] < margin[i])) i = j;
        seen[i] = true;
        if (margin[i] > below(s) - 0.5) break;
        core child;
        rc = hd_core_copy(&child, c) ? hd_fail_memory(s->err, 0, "a layout search") : 0;
        if (!rc) hd_core_keep_only(&child, v, i);
        if (!rc) rc = explore(s, &child, CHILD_ROUNDS);
        hd_core_close(&child);
    }
    return rc;
}

static int explore(search *s, core *c, int rounds)
{
    bool done = false;
    double bound = c->constant;
    s->nodes++;
    if (hd_core_reduce(c)) return hd_fail_memory(s->err, 0, "a layout search");
    if (is_closed(s, c)) return 0;
    int rc = by_tables(s, c, AT_ONCE, 0, &done, &bound);
    if (!rc && !done) rc = tighten(s, c, rounds, &done, &bound);
    if (!rc && !done && !is_late(s)) rc = by_tables(s, c, AT_LAST, 0, &done, &bound);
    if (!rc && !done && (!s->best->feasible || !is_late(s))) rc = by_tables(s, c, 0, IN_PARTS, &done, &bound);
    if (rc || done) return rc;
    if (s->nodes < s->most && (s->o.nodes || s->spent < IN_ALL) && !is_late(s)) return branch(s, c);
    if (bound < c->constant) bound = c->constant;
    if (bound < s->open) s->open = bound;
    return 0;
}

int hd_factor_search(const hd_factor_problem *p, const hd_factor_options *o, double ends, hd_factor_answer *best, hd_error *err)
{
    search s = {.p = p, .o = o ? *o : (hd_factor_options){0}, .best = best, .ends = ends, .open = INFINITY, .err = err};
    size_t n = (size_t)p->n + 1;
    int *room = hd_calloc(4 * n, sizeof *room);
    core c;
    s.most = s.o.nodes ? s.o.nodes : 20000;
    s.at = room, s.choice = room + n, s.order = room + 2 * n, s.rank = room + 3 * n;
    int rc = hd_core_open(&c, p, false, NULL, NULL) || !room ? hd_fail_memory(err, 0, "a layout search") : 0;
    if (!rc) rc = explore(&s, &c, ROUNDS);
    hd_core_close(&c);
    hd_free(room);
    best->nodes += s.nodes;
    best->bound = best->feasible ? best->cost : HD_NEVER;
    if (s.open < (double)best->bound) best->bound = (int64_t)ceil(s.open - 1e-6);
    return rc;
}
