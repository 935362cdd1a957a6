/* factor_labels.c: labels (cost, bytes) go up the elimination tree of a network that was solved at a price of a byte; one is dropped when another is no worse in
 * both, or when its cost, the price of its bytes and the least that all outside of it can cost reach what is to be beaten. That is first a little above the
 * bound, then more: what is found below it is best. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/term.h"
#include "planners/factor_int.h"

typedef struct label { double cost, bytes; int a, b; /* labels that it is made of; a < 0: variable b in state -1 - a */ } label;
typedef struct entry { int *label, n; } entry; /* by cost, ascending; bytes descend */

typedef struct limited {
    const hd_factor_problem *p;
    network *net;            /* at a price */
    factor *outside;         /* [buckets]: over the scope of each */
    entry **entries;         /* [buckets][entries of the scope] */
    label *pool; int n_pool; size_t room; int64_t most;
    double constant, constant_bytes; /* of variables with one state */
    double goal;             /* only totals below it count */
    double ends;             /* by the clock; 0: never */
    bool full;
} limited;

/* ---- bounds from outside ---- */

static int outside_of(limited *s, int at, hd_error *err)
{
    network *net = s->net;
    const bucket *b = &net->buckets[at], *up;
    if (b->message < 0) {
        s->outside[at] = (factor){.cost = hd_arena_alloc(&net->memory, sizeof(double))};
        if (!s->outside[at].cost) return hd_fail_memory(err, 0, "a layout search");
        s->outside[at].cost[0] = net->constant - b->number;
        return 0;
    }
    int parent = net->factors[b->message].bucket, n = 0;
    up = &net->buckets[parent];
    const factor **list = hd_calloc((size_t)up->n_uses + 1, sizeof *list);
    if (!list) return hd_fail_memory(err, 0, "a layout search");
    for (int i = 0; i < up->n_uses; i++)
        if (up->uses[i] != b->message) list[n++] = &net->factors[up->uses[i]];
    list[n++] = &s->outside[parent];
    int rc = hd_network_project(net, list, n, b->scope, b->n_scope, &s->outside[at], err);
    hd_free(list);
    return rc;
}

/* ---- labels ---- */

static int new_label(limited *s, label x)
{
    if (s->n_pool >= s->most || hd_grow(&s->pool, &s->room, (size_t)s->n_pool + 1, sizeof *s->pool)) return s->full = true, -1;
    s->pool[s->n_pool] = x;
    return s->n_pool++;
}

typedef struct bag { label *list; int n; size_t room; } bag;

static bool put(bag *b, label x)
{
    if (hd_grow(&b->list, &b->room, (size_t)b->n + 1, sizeof *b->list)) return false;
    b->list[b->n++] = x;
    return true;
}

static int by_cost(const void *a, const void *b)
{
    const label *x = a, *y = b;
    if (x->cost != y->cost) return x->cost < y->cost ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static void drop_worse(bag *b)
{
    int kept = 0;
    if (b->n) qsort(b->list, (size_t)b->n, sizeof *b->list, by_cost);
    for (int i = 0; i < b->n; i++)
        if (!kept || b->list[i].bytes < b->list[kept - 1].bytes) b->list[kept++] = b->list[i];
    b->n = kept;
}

/* Everything in `parts` with everything in child; rest: the least that what has not been added yet costs at the price. */
static bool combine(limited *s, bag *parts, const entry *child, double rest)
{
    bag out = {0};
    bool ok = true;
    for (int i = 0; ok && i < parts->n; i++) {
        int mine = -1;
        for (int k = 0; ok && k < child->n; k++) {
            const label *c = &s->pool[child->label[k]];
            label x = {parts->list[i].cost + c->cost, parts->list[i].bytes + c->bytes, 0, child->label[k]};
            if (x.cost + s->net->lambda * x.bytes + rest >= s->goal) continue;
            if (mine < 0) ok = (mine = new_label(s, parts->list[i])) >= 0;
            x.a = mine;
            ok = ok && put(&out, x);
        }
        ok = ok && out.n < 4000000;
    }
    drop_worse(&out);
    hd_free(parts->list);
    *parts = out;
    return ok;
}

typedef struct cursor { int at[MAX_SCOPE]; int state; } cursor; /* of a bucket's scope, and its variable */

static int64_t index_of(const network *net, const bucket *b, const cursor *c, const factor *f)
{
    int64_t index = 0;
    for (int i = 0; i < f->n; i++) {
        int v = f->var[i], at = c->state;
        for (int k = 0; k < b->n_scope && v != b->var; k++)
            if (b->scope[k] == v) at = c->at[k];
        index = index * net->live_n[v] + at;
    }
    return index;
}

/* The labels of one assignment of scope and variable, added to `all`. */
static bool label_state(limited *s, int at, const cursor *c, double outside, bag *all)
{
    const network *net = s->net;
    const bucket *b = &net->buckets[at];
    int state = net->live[b->var][c->state];
    double cost = 0, rest = outside;
    bag parts = {0};
    bool ok = true;
    for (int i = 0; i < b->n_uses; i++) {
        const factor *f = &net->factors[b->uses[i]];
        double x = f->unary ? (double)s->p->cost[b->var][state] : f->cost[index_of(net, b, c, f)];
        if (f->made_by >= 0) rest += x;
        else cost += x;
    }
    double bytes = (double)s->p->bytes[b->var][state];
    if (!(cost + net->lambda * bytes + rest < s->goal)) return true;
    ok = put(&parts, (label){cost, bytes, -1 - state, b->var});
    for (int i = 0; ok && i < b->n_uses; i++) {
        const factor *f = &net->factors[b->uses[i]];
        if (f->made_by < 0) continue;
        int64_t index = index_of(net, b, c, f);
        rest -= f->cost[index];
        ok = combine(s, &parts, &s->entries[f->made_by][index], rest);
    }
    for (int i = 0; ok && i < parts.n; i++) ok = put(all, parts.list[i]);
    hd_free(parts.list);
    return ok;
}

static bool keep_entry(limited *s, bag *all, entry *out)
{
    drop_worse(all);
    *out = (entry){0};
    if (!all->n) return true;
    out->label = hd_arena_alloc(&s->net->memory, (size_t)(all->n + 1) * sizeof(int));
    bool ok = out->label;
    for (int i = 0; ok && i < all->n; i++) ok = (out->label[out->n++] = new_label(s, all->list[i])) >= 0;
    return ok;
}

static bool label_bucket(limited *s, int at)
{
    network *net = s->net;
    const bucket *b = &net->buckets[at];
    size_t n = (size_t)hd_network_entries(net, b->scope, b->n_scope);
    cursor c = {0};
    if (!s->entries[at]) s->entries[at] = hd_arena_alloc(&net->memory, n * sizeof(entry));
    bool ok = s->entries[at];
    for (size_t i = 0; ok && i < n; i++) {
        bag all = {0};
        ok = !(s->ends > 0 && i % 16 == 0 && hd_time() > s->ends);
        double inside = b->message < 0 ? b->number : net->factors[b->message].cost[i];
        bool hopeful = inside + s->outside[at].cost[i] < s->goal;
        for (c.state = 0; hopeful && ok && c.state < net->live_n[b->var]; c.state++) ok = label_state(s, at, &c, s->outside[at].cost[i], &all);
        ok = ok && keep_entry(s, &all, &s->entries[at][i]);
        hd_free(all.list);
        for (int d = b->n_scope - 1; d >= 0 && ++c.at[d] == net->live_n[b->scope[d]]; d--) c.at[d] = 0;
    }
    return ok;
}

static void unfold(const limited *s, const label *x, int *choice)
{
    while (x->a >= 0) {
        unfold(s, &s->pool[x->b], choice);
        x = &s->pool[x->a];
    }
    choice[x->b] = -1 - x->a;
}

/* Labels of whole choices: those of the roots together. */
static bool label_whole(limited *s, bag *whole)
{
    const network *net = s->net;
    double rest = net->constant;
    bool ok = put(whole, (label){s->constant, s->constant_bytes, INT32_MIN, 0}); /* of no variable */
    rest -= s->constant + net->lambda * s->constant_bytes;
    for (int i = 0; ok && i < net->n_buckets; i++) {
        const bucket *b = &net->buckets[i];
        if (b->message >= 0) continue;
        rest -= b->number;
        ok = combine(s, whole, &s->entries[i][0], rest);
    }
    return ok;
}

static void take_label(const limited *s, label x, hd_factor_answer *best)
{
    for (int v = 0; v < s->p->n; v++) best->choice[v] = s->net->live[v][0];
    for (; x.a >= 0; x = s->pool[x.a]) unfold(s, &s->pool[x.b], best->choice);
    best->cost = hd_factor_total(s->p, best->choice, &best->bytes);
    best->feasible = true;
}

/* The least cost below `below` that fits; *found: there is one. One that fits but costs more is kept where it is better than the best so far. False: out of
 * room. */
static bool look_below(limited *s, double below, hd_factor_answer *best, bool *found)
{
    bag whole = {0};
    bool ok = true;
    s->n_pool = 0, *found = false;
    s->goal = below + s->net->lambda * (double)s->p->limit;
    for (int i = 0; ok && i < s->net->n_buckets; i++) ok = label_bucket(s, i);
    ok = ok && label_whole(s, &whole);
    int first = 0;
    while (first < whole.n && whole.list[first].bytes > (double)s->p->limit) first++;
    if (ok && first < whole.n) {
        *found = whole.list[first].cost < below;
        if (whole.list[first].cost < (double)best->cost) take_label(s, whole.list[first], best);
    }
    hd_free(whole.list);
    return ok;
}

/* ---- the whole ---- */

static void note_constants(limited *s)
{
    for (int v = 0; v < s->p->n; v++)
        if (s->net->live_n[v] == 1) s->constant_bytes += (double)s->p->bytes[v][s->net->live[v][0]];
    double numbers = 0;
    for (int i = 0; i < s->net->n_buckets; i++)
        if (s->net->buckets[i].message < 0) numbers += s->net->buckets[i].number;
    s->constant = s->net->constant - numbers - s->net->lambda * s->constant_bytes;
}

/* Closes the gap between bound and best, or as much of it as there is room for. */
static int close_gap(limited *s, double bound, hd_factor_answer *best, hd_error *err)
{
    int rc = 0;
    double gap = (double)best->cost - bound;
    s->outside = hd_calloc((size_t)s->net->n_buckets + 1, sizeof *s->outside);
    s->entries = hd_calloc((size_t)s->net->n_buckets + 1, sizeof *s->entries);
    if (!s->outside || !s->entries) return hd_fail_memory(err, 0, "a layout search");
    for (int i = s->net->n_buckets - 1; !rc && i >= 0; i--) rc = outside_of(s, i, err);
    note_constants(s);
    for (double part = 1.0 / 64; !rc && gap >= 0.5; part *= 4) {
        bool found, last = part >= 1;
        double below = last ? (double)best->cost - 0.5 : bound + gap * part;
        if (!look_below(s, below, best, &found)) break;
        if (found || last) return best->bound = best->cost, 0;
        best->bound = (int64_t)ceil(below - 0.01);
    }
    return rc;
}

int hd_labels_search(network *net, int64_t most, double ends, double bound, hd_factor_answer *best, hd_error *err)
{
    limited s = {.p = net->p, .net = net, .most = most, .ends = ends};
    int rc = close_gap(&s, bound, best, err);
    best->nodes += s.n_pool / 1000;
    hd_free(s.outside), hd_free(s.entries), hd_free(s.pool);
    return rc;
}
