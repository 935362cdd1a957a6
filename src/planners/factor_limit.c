/* factor_limit.c: least cost within a limit of bytes.
 *
 * Lagrange: for a price of a byte the problem is solved without the limit; the price between a choice that is too large and one that fits is moved until
 * neither gets better, which bounds the cost from below and leaves a choice that fits. Between the two, labels (factor_labels.c): over the states of choices
 * that were best at some price, then over more and more states that bounds at the price let in, until none that is left out can be part of anything better. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/term.h"
#include "planners/factor_core.h"

#define WIDEST 6.5e7

/* ---- prices ---- */

typedef struct point { int *choice; double cost, bytes; } point;

typedef struct pricing {
    const hd_factor_problem *p;
    const hd_factor_options *o;
    double ends;
    hd_factor_answer *best;
    hd_factor_problem priced;
    int64_t **cost, **table; /* [n][states]; [links] of zeros and HD_NEVER, for bytes alone */
    bool **seen;             /* [n][states]: part of a choice that was best at some price */
    double least_bytes;      /* the least of every variable together: bytes above it are what is paid for */
    hd_arena memory;
    hd_error *err;
} pricing;

static int64_t least_of(const hd_factor_problem *p, int v)
{
    int64_t least = p->bytes[v][0];
    for (int s = 1; s < p->states[v]; s++)
        if (p->bytes[v][s] < least) least = p->bytes[v][s];
    return least;
}

static int open_pricing(pricing *x)
{
    const hd_factor_problem *p = x->p;
    x->cost = hd_arena_alloc(&x->memory, (size_t)(p->n + 1) * sizeof *x->cost);
    x->seen = hd_arena_alloc(&x->memory, (size_t)(p->n + 1) * sizeof *x->seen);
    for (int v = 0; x->cost && x->seen && v < p->n; v++) {
        x->cost[v] = hd_arena_alloc(&x->memory, (size_t)p->states[v] * sizeof(int64_t) + 1);
        x->seen[v] = hd_arena_alloc(&x->memory, (size_t)p->states[v] * sizeof(bool) + 1);
        if (!x->cost[v] || !x->seen[v]) return HD_ENOMEM;
        x->least_bytes += (double)least_of(p, v);
    }
    x->priced = *p;
    x->priced.cost = (const int64_t *const *)x->cost, x->priced.limit = -1;
    return x->cost && x->seen ? 0 : HD_ENOMEM;
}

/* A byte above the least of its variable costs lambda; rounded down, so that what is found bounds from below. */
static void set_price(pricing *x, double lambda)
{
    for (int v = 0; v < x->p->n; v++) {
        int64_t least = least_of(x->p, v);
        for (int s = 0; s < x->p->states[v]; s++) {
            double price = fmin(lambda * (double)(x->p->bytes[v][s] - least), (double)(HD_NEVER / 8));
            x->cost[v][s] = x->p->cost[v][s] >= HD_NEVER ? HD_NEVER : x->p->cost[v][s] + (int64_t)price;
        }
    }
}

static void keep(hd_factor_answer *best, const point *x, int n, double limit)
{
    if (x->bytes > limit || isinf(x->cost) || (best->feasible && x->cost >= (double)best->cost)) return;
    memcpy(best->choice, x->choice, (size_t)n * sizeof(int));
    best->cost = (int64_t)x->cost, best->bytes = (int64_t)x->bytes, best->feasible = true;
}

/* The least of `of`, which has the problem's variables: *lower: nothing is below it. The choice is offered as a choice of the problem. */
static int solve_for(pricing *x, const hd_factor_problem *of, point *out, double *lower)
{
    hd_factor_answer a = {.choice = out->choice};
    hd_factor_options o = x->o ? *x->o : (hd_factor_options){0};
    int64_t bytes;
    double now = hd_time();
    o.nodes = o.nodes ? (o.nodes + 7) / 8 : 400;
    int rc = hd_factor_search(of, &o, x->ends > 0 ? now + fmax(0.2 * (x->ends - now), 1e-3) : 0, &a, x->err);
    x->best->nodes += a.nodes;
    if (a.widest > x->best->widest) x->best->widest = a.widest;
    int64_t cost = hd_factor_total(x->p, out->choice, &bytes);
    out->cost = a.feasible && cost < HD_NEVER ? (double)cost : INFINITY, out->bytes = (double)bytes;
    *lower = a.bound >= HD_NEVER ? INFINITY : (double)a.bound;
    if (!rc && a.feasible) keep(x->best, out, x->p->n, (double)x->p->limit);
    for (int v = 0; !rc && a.feasible && v < x->p->n; v++) x->seen[v][out->choice[v]] = true;
    return rc;
}

/* The least bytes of any choice that is not forbidden. */
static int solve_bytes(pricing *x, point *out, double *lower)
{
    const hd_factor_problem *p = x->p;
    hd_factor_problem only = *p;
    hd_factor_link *links = hd_arena_alloc(&x->memory, (size_t)(p->n_links + 1) * sizeof *links);
    if (!links) return hd_fail_memory(x->err, 0, "a layout search");
    for (int i = 0; i < p->n_links; i++) {
        int entries = p->states[p->links[i].a] * p->states[p->links[i].b];
        int64_t *table = hd_arena_alloc(&x->memory, (size_t)entries * sizeof *table);
        if (!table) return hd_fail_memory(x->err, 0, "a layout search");
        for (int k = 0; k < entries; k++) table[k] = p->links[i].cost[k] >= HD_NEVER ? HD_NEVER : 0;
        links[i] = (hd_factor_link){p->links[i].a, p->links[i].b, table};
    }
    for (int v = 0; v < p->n; v++)
        for (int s = 0; s < p->states[v]; s++) x->cost[v][s] = p->cost[v][s] >= HD_NEVER ? HD_NEVER : p->bytes[v][s];
    only.cost = (const int64_t *const *)x->cost, only.links = links, only.limit = -1;
    return solve_for(x, &only, out, lower);
}

static int64_t trial_total(const pricing *x, const point *at) { return hd_factor_total(&x->priced, at->choice, NULL); }

/* Moves the price between a choice that is too large and one that fits until the bound is the greatest. */
static int find_price(pricing *x, point *at, double *bound, double *lambda)
{
    double limit = (double)x->p->limit;
    point low = at[0], high = at[1], trial = at[2]; /* low: too many bytes, high: fits */
    int rc = 0;
    for (int round = 0; !rc && round < 60 && !(x->ends > 0 && hd_time() > x->ends); round++) {
        double price = (high.cost - low.cost) / (low.bytes - high.bytes), lower;
        set_price(x, price);
        rc = solve_for(x, &x->priced, &trial, &lower);
        if (rc) break;
        double here = lower - price * (limit - x->least_bytes), line = low.cost + price * (low.bytes - x->least_bytes);
        if (here > *bound || round == 0) *lambda = price;
        if (here > *bound) *bound = here;
        if (isinf(trial.cost) || lower < (double)trial_total(x, &trial) - 0.5 || lower >= line - 1e-9 * fabs(line) - x->p->n) break;
        point *end = trial.bytes > limit ? &low : &high, old = *end;
        if (trial.bytes == end->bytes && trial.cost >= end->cost) break;
        *end = trial, trial = old;
    }
    return rc;
}

/* ---- the whole ---- */

enum { PRUNING_ROUNDS = 60 };

/* Raises c's bound; states with which it is `below` or more go. */
static int tighten(core *c, double below, int *order, int *rank)
{
    int n = hd_core_order(c, order, rank);
    for (int round = 0; round < PRUNING_ROUNDS && !c->impossible; round++) {
        double before = c->constant;
        hd_core_pass(c, order, rank, n, false, below, NULL);
        if (!c->impossible) hd_core_pass(c, order, rank, n, true, below, NULL);
        c->impossible |= c->constant > below - 0.5;
        if (round % 8 == 7 && !c->impossible) hd_core_drop_infinite(c);
        if (c->constant - before < 1e-4 * (below - before)) break;
    }
    if (!c->impossible) hd_core_drop_infinite(c);
    return 0;
}

/* Takes the states that are left in c, of those variables that are. */
static void take_live(const core *c, int *live_n, int **live)
{
    for (int v = 0; v < c->n; v++) {
        if (c->var[v].gone) continue;
        live_n[v] = c->var[v].n;
        memcpy(live[v], c->var[v].state, (size_t)c->var[v].n * sizeof(int));
    }
}

/* Of live the states that may be part of something below that cost, by bounds at the price: first with variables of few links eliminated, which bounds better
 * but says nothing of those, then with all. *none: there is nothing; *lowest: the bound. */
static int prune_at(pricing *x, double lambda, double cost, int *live_n, int **live, bool *none, double *lowest)
{
    int *order = hd_calloc(2 * ((size_t)x->p->n + 1), sizeof *order), *rank = order + x->p->n + 1, rc = order ? 0 : HD_ENOMEM;
    double below = cost + lambda * ((double)x->p->limit - x->least_bytes);
    set_price(x, lambda);
    for (int all = 0; !rc && all < 2 && !*none; all++) {
        core c = {0};
        rc = hd_core_open(&c, &x->priced, false, live_n, live);
        c.whole = true;
        if (!rc && !all) rc = hd_core_reduce(&c);
        if (!rc && !c.impossible) rc = tighten(&c, below, order, rank);
        *none = !rc && c.impossible;
        *lowest = c.constant - (below - cost);
        if (!rc && !*none) take_live(&c, live_n, live);
        hd_core_close(&c);
    }
    hd_free(order);
    return rc ? hd_fail_memory(x->err, 0, "a layout search") : 0;
}

/* Entries of all tables at most in which labels are kept: what the time allows. */
static double widest(const pricing *x) { return x->ends > 0 ? fmin(WIDEST, 1e4 + 1e7 * fmax(x->ends - hd_time(), 0)) : WIDEST; }

/* What labels find in these states. *bound: of the problem so reduced; risen where labels show it. *wide: too wide for labels. */
static int finish(pricing *x, double lambda, int *live_n, int **live, double *bound, bool *wide)
{
    hd_factor_answer *best = x->best, inner = {0};
    network net = {0};
    core c = {0};
    core_rest r = {0};
    int most = 1, rc = hd_core_open(&c, x->p, true, live_n, live) || hd_core_reduce(&c) || (!c.impossible && hd_core_rest(&c, &r)) ? HD_ENOMEM : 0;
    for (int k = 0; k < r.p.n; k++) most = r.p.states[k] > most ? r.p.states[k] : most;
    int *all = hd_arena_alloc(&r.memory, (size_t)most * sizeof *all), **mine = hd_arena_alloc(&r.memory, (size_t)(r.p.n + 1) * sizeof *mine);
    int *at = hd_arena_alloc(&r.memory, (size_t)(x->p->n + 1) * sizeof *at);
    inner.choice = hd_arena_alloc(&r.memory, (size_t)(r.p.n + 1) * sizeof(int));
    if (rc || !all || !mine || !at || !inner.choice) rc = hd_fail_memory(x->err, 0, "a layout search");
    for (int i = 0; !rc && i < most; i++) all[i] = i;
    for (int k = 0; !rc && k < r.p.n; k++) mine[k] = all;
    if (!rc && c.impossible) *bound = (double)best->cost;
    if (!rc && !c.impossible) {
        net = (network){.p = &r.p, .o = x->o, .lambda = lambda, .live_n = (int *)(uintptr_t)r.p.states, .live = mine, .most_work = widest(x)};
        rc = hd_network_solve(&net, x->err);
        inner.cost = best->cost - (int64_t)c.constant, inner.bound = (int64_t)ceil(*bound - 0.01) - (int64_t)c.constant;
        *wide = net.declined || net.split;
        if (!rc && !*wide) rc = hd_labels_search(&net, 1000 * (x->o && x->o->nodes ? x->o->nodes : 8000), x->ends, *bound - c.constant, &inner, x->err);
        *bound = (double)inner.bound + c.constant;
        for (int k = 0; !rc && inner.feasible && k < r.p.n; k++) at[r.which[k]] = inner.choice[k];
        if (!rc && inner.feasible) {
            hd_core_expand(&c, at, best->choice);
            best->cost = hd_factor_total(x->p, best->choice, &best->bytes);
        }
    }
    best->nodes += inner.nodes;
    hd_network_close(&net);
    hd_arena_free(&r.memory);
    hd_core_close(&c);
    return rc;
}

static int all_states(pricing *x, int **live_n, int ***live)
{
    int n = x->p->n;
    *live_n = hd_arena_alloc(&x->memory, (size_t)(n + 1) * sizeof **live_n);
    *live = hd_arena_alloc(&x->memory, (size_t)(n + 1) * sizeof **live);
    for (int v = 0; *live_n && *live && v < n; v++) {
        (*live)[v] = hd_arena_alloc(&x->memory, (size_t)x->p->states[v] * sizeof(int) + 1);
        if (!(*live)[v]) return hd_fail_memory(x->err, 0, "a layout search");
        for (int s = 0; s < x->p->states[v]; s++) (*live)[v][(*live_n)[v]++] = s;
    }
    return *live_n && *live ? 0 : hd_fail_memory(x->err, 0, "a layout search");
}

/* The best that mixes choices that were best at some price. */
static int mix(pricing *x, double lambda, double bound)
{
    int *live_n, **live, rc = all_states(x, &live_n, &live);
    for (int v = 0; !rc && v < x->p->n; v++) {
        live_n[v] = 0;
        for (int s = 0; s < x->p->states[v]; s++)
            if (x->seen[v][s]) live[v][live_n[v]++] = s;
    }
    bool wide;
    return rc ? rc : finish(x, lambda, live_n, live, &bound, &wide);
}

/* Adds the states that were part of a choice that was best at some price. */
static void add_seen(const pricing *x, int *live_n, int **live)
{
    for (int v = 0; v < x->p->n; v++) {
        int states = x->p->states[v], n = 0;
        bool in[states];
        memcpy(in, x->seen[v], (size_t)states * sizeof *in);
        for (int i = 0; i < live_n[v]; i++) in[live[v][i]] = true;
        for (int s = 0; s < states; s++)
            if (in[s]) live[v][n++] = s;
        live_n[v] = n;
    }
}

/* Of all choices below `below` the best, and of some others; *bound: nothing below it is left. */
static int search_below(pricing *x, double lambda, double below, double *bound, bool *wide)
{
    double lower = *bound, lowest;
    int *live_n, **live;
    bool none = false;
    int rc = all_states(x, &live_n, &live);
    if (!rc) rc = prune_at(x, lambda, below, live_n, live, &none, &lowest);
    if (!rc && !none) add_seen(x, live_n, live);
    if (none) lower = below;
    else if (!rc) rc = finish(x, lambda, live_n, live, &lower, wide);
    *bound = fmin(lower, below);
    return rc;
}

/* States are let in by their bounds, more and more: what is found below what they were let in by is best. */
static int search_rest(pricing *x, double lambda, double bound)
{
    int *live_n, **live, rc = all_states(x, &live_n, &live);
    double lowest = bound;
    bool none = false, wide = false;
    if (!rc) rc = prune_at(x, lambda, (double)x->best->cost, live_n, live, &none, &lowest);
    if (none) bound = (double)x->best->cost;
    for (double part = 1.0 / 32; !rc && part <= 1 && !wide && bound < (double)x->best->cost - 0.5 && !(x->ends > 0 && hd_time() > x->ends); part *= 2) {
        double below = part < 1 ? lowest + part * ((double)x->best->cost - lowest) : (double)x->best->cost, risen = bound;
        rc = search_below(x, lambda, below, &risen, &wide);
        if (risen > bound) bound = risen;
    }
    x->best->bound = (int64_t)ceil(fmin(bound, (double)x->best->cost) - 0.01);
    return rc;
}

/* ---- where labels would be too wide: one variable is fixed in each of its states in turn ---- */

typedef struct division { pricing *x; double lambda; int64_t nodes, most; } division;

static int branch_var(const hd_factor_problem *p, const int *live_n)
{
    int best = -1, *links = hd_calloc((size_t)p->n + 1, sizeof *links);
    double most = 0;
    for (int i = 0; links && i < p->n_links; i++) links[p->links[i].a]++, links[p->links[i].b]++;
    for (int v = 0; links && v < p->n; v++)
        if (links[v] * log2(live_n[v]) > most) most = links[v] * log2(live_n[v]), best = v;
    hd_free(links);
    return best;
}

static int divide(division *d, const int *live_n, int *const *live, double *bound);

static int divide_by(division *d, int v, int *live_n, int **live, double *bound)
{
    int n = live_n[v], *list = live[v], rc = 0;
    double least = INFINITY;
    live_n[v] = 1;
    for (int i = 0; !rc && i < n; i++) {
        double lower = *bound;
        live[v] = &list[i];
        rc = divide(d, live_n, live, &lower);
        least = fmin(least, lower);
    }
    *bound = fmax(*bound, least);
    return rc;
}

/* Of these states; *bound: nothing below it is left in them (the best is found otherwise). */
static int divide(division *d, const int *live_n, int *const *live, double *bound)
{
    pricing *x = d->x;
    int *n, **list;
    double lowest = *bound;
    bool none = false, wide = false;
    if (d->nodes >= d->most || (x->ends > 0 && hd_time() > x->ends)) return 0;
    d->nodes++, x->best->nodes++;
    hd_arena kept = x->memory;
    x->memory = (hd_arena){0};
    int rc = all_states(x, &n, &list), v;
    for (int i = 0; !rc && i < x->p->n; i++) n[i] = live_n[i], memcpy(list[i], live[i], (size_t)live_n[i] * sizeof(int));
    if (!rc) rc = prune_at(x, d->lambda, (double)x->best->cost, n, list, &none, &lowest);
    *bound = none ? (double)x->best->cost : fmax(*bound, lowest);
    if (!rc && !none) rc = finish(x, d->lambda, n, list, bound, &wide);
    if (!rc && wide && (v = branch_var(x->p, n)) >= 0) rc = divide_by(d, v, n, list, bound);
    hd_arena_free(&x->memory);
    x->memory = kept;
    return rc;
}

static int divide_all(pricing *x, double lambda)
{
    int64_t states = 1;
    for (int v = 0; v < x->p->n; v++) states += x->p->states[v];
    division d = {x, lambda, 0, x->o && x->o->nodes ? x->o->nodes : 200000 / states + 8};
    double bound = (double)x->best->bound;
    int *live_n, **live, rc = all_states(x, &live_n, &live);
    if (!rc) rc = divide(&d, live_n, live, &bound);
    x->best->bound = (int64_t)ceil(fmin(bound, (double)x->best->cost) - 0.01);
    return rc;
}

static int solve_priced(pricing *x, point *at)
{
    hd_factor_problem free = *x->p;
    double bound, least, lambda = 0, limit = (double)x->p->limit;
    free.limit = -1;
    int rc = solve_for(x, &free, &at[0], &bound);
    x->best->bound = isinf(bound) ? HD_NEVER : (int64_t)bound;
    if (rc || isinf(at[0].cost) || x->best->feasible) return rc;
    rc = solve_bytes(x, &at[1], &least);
    if (!rc && least > limit) x->best->bound = HD_NEVER, x->best->bytes = (int64_t)least;
    if (rc || !x->best->feasible || at[0].bytes <= limit) return rc;
    rc = find_price(x, at, &bound, &lambda);
    x->best->bound = (int64_t)ceil(bound - 0.01);
    if (rc || x->best->bound >= x->best->cost) return rc;
    rc = mix(x, lambda, bound);
    if (!rc) rc = search_rest(x, lambda, bound);
    return rc || x->best->bound >= x->best->cost ? rc : divide_all(x, lambda);
}

/* First what can go whatever the price: then the rest. */
int hd_factor_solve_limited(const hd_factor_problem *p, const hd_factor_options *o, double ends, hd_factor_answer *out, hd_error *err)
{
    core c;
    core_rest r = {0};
    hd_factor_answer inner = {.bound = HD_NEVER};
    pricing x = {.o = o, .ends = ends, .best = &inner, .err = err};
    point at[3] = {0};
    int rc = hd_core_open(&c, p, true, NULL, NULL) || hd_core_reduce(&c) || (!c.impossible && hd_core_rest(&c, &r)) ? HD_ENOMEM : 0;
    if (!rc && c.impossible) goto end;
    x.p = &r.p;
    inner.choice = hd_arena_alloc(&r.memory, (size_t)(p->n + 1) * sizeof(int));
    for (int i = 0; i < 3; i++)
        if (!(at[i].choice = hd_arena_alloc(&r.memory, (size_t)(p->n + 1) * sizeof(int)))) rc = HD_ENOMEM;
    if (!inner.choice || (!rc && open_pricing(&x))) rc = HD_ENOMEM;
    if (rc) {
        hd_fail_memory(err, 0, "a layout search");
        goto end;
    }
    rc = solve_priced(&x, at);
    out->widest = inner.widest, out->nodes = inner.nodes, out->feasible = inner.feasible;
    out->bound = inner.bound >= HD_NEVER ? HD_NEVER : inner.bound + (int64_t)c.constant;
    out->bytes = inner.bytes + (int64_t)c.constant_bytes;
    if (inner.feasible) {
        int *whole = hd_arena_alloc(&r.memory, (size_t)(p->n + 1) * sizeof *whole);
        for (int k = 0; whole && k < r.p.n; k++) whole[r.which[k]] = inner.choice[k];
        if (whole) hd_core_expand(&c, whole, out->choice);
        else rc = hd_fail_memory(err, 0, "a layout search");
        out->cost = hd_factor_total(p, out->choice, &out->bytes);
        if (out->bound > out->cost) out->bound = out->cost;
    }
end:
    hd_arena_free(&x.memory);
    hd_arena_free(&r.memory);
    hd_core_close(&c);
    return rc;
}
