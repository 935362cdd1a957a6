/* factor_network.c: bucket elimination. A bucket whose table would be too large is eliminated in parts, which gives a lower bound (mini-buckets, Dechter and
 * Rish 2003). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "planners/factor_int.h"

int hd_network_states(const network *net, int v) { return net->live_n[v]; }

double hd_network_entries(const network *net, const int *vars, int n)
{
    double all = 1;
    for (int i = 0; i < n; i++) all *= net->live_n[vars[i]];
    return all;
}

/* ---- projection ---- */

static int position(const int *vars, int n, int v)
{
    for (int i = 0; i < n; i++)
        if (vars[i] == v) return i;
    return -1;
}

static int add_var(int *vars, int n, int v)
{
    if (position(vars, n, v) >= 0) return n;
    if (n < MAX_SCOPE) vars[n] = v;
    return n + 1;
}

typedef struct walk { int n, states[2 * MAX_SCOPE], at[2 * MAX_SCOPE]; } walk;

/* How far each step of each digit moves in a table over vars. */
static void strides_of(const network *net, const int *digits, int n, const int *vars, int n_vars, int64_t *stride)
{
    for (int d = 0; d < n; d++) {
        int at = position(vars, n_vars, digits[d]);
        stride[d] = at < 0 ? 0 : 1;
        for (int i = at + 1; at >= 0 && i < n_vars; i++) stride[d] *= net->live_n[vars[i]];
    }
}

enum { MAX_FROM = 200 };

int hd_network_project(network *net, const factor *const *from, int n, const int *keep, int n_keep, factor *out, hd_error *err)
{
    int digits[2 * MAX_SCOPE], n_digits = n_keep, at[2 * MAX_SCOPE] = {0};
    int64_t stride[MAX_FROM + 1][2 * MAX_SCOPE], index[MAX_FROM + 1] = {0};
    *out = (factor){.n = n_keep, .bucket = -1, .made_by = -1};
    memcpy(out->var, keep, (size_t)n_keep * sizeof *keep);
    memcpy(digits, keep, (size_t)n_keep * sizeof *keep);
    for (int f = 0; f < n; f++)
        for (int i = 0; i < from[f]->n; i++) {
            if (position(digits, n_digits, from[f]->var[i]) < 0) digits[n_digits++] = from[f]->var[i];
        }
    size_t entries = (size_t)hd_network_entries(net, keep, n_keep);
    out->cost = hd_arena_alloc(&net->memory, entries * sizeof *out->cost);
    if (!out->cost) return hd_fail_memory(err, entries * sizeof *out->cost, "a table of the layout search");
    for (size_t i = 0; i < entries; i++) out->cost[i] = INFINITY;
    for (int f = 0; f < n; f++) strides_of(net, digits, n_digits, from[f]->var, from[f]->n, stride[f]);
    strides_of(net, digits, n_digits, keep, n_keep, stride[n]);
    int last = n_digits - 1, inner = n_digits ? net->live_n[digits[last]] : 1;
    double sum[inner];
    for (;;) {
        for (int i = 0; i < inner; i++) sum[i] = 0;
        for (int f = 0; f < n; f++) {
            const double *cost = &from[f]->cost[index[f]];
            int64_t step = n_digits ? stride[f][last] : 0;
            for (int i = 0; i < inner; i++) sum[i] += cost[i * step];
        }
        double *to = &out->cost[index[n]];
        int64_t step = n_digits ? stride[n][last] : 0;
        for (int i = 0; i < inner; i++) to[i * step] = sum[i] < to[i * step] ? sum[i] : to[i * step];
        int d = last - 1;
        for (; d >= 0 && at[d] + 1 == net->live_n[digits[d]]; d--) {
            for (int f = 0; f <= n; f++) index[f] -= stride[f][d] * at[d];
            at[d] = 0;
        }
        if (d < 0) return 0;
        at[d]++;
        for (int f = 0; f <= n; f++) index[f] += stride[f][d];
    }
}

/* ---- the given tables ---- */

static factor *new_factor(network *net)
{
    if (hd_grow(&net->factors, &net->room, (size_t)net->n_factors + 1, sizeof *net->factors)) return NULL;
    net->factors[net->n_factors] = (factor){.bucket = -1, .made_by = -1};
    return &net->factors[net->n_factors++];
}

static double weight(const network *net, int v, int state)
{
    int64_t cost = net->p->cost[v][state];
    double bytes = net->p->bytes ? (double)net->p->bytes[v][state] : 0;
    return cost >= HD_NEVER ? INFINITY : net->bytes_only ? bytes : (double)cost + net->lambda * bytes;
}

static double link_cost(const network *net, const hd_factor_link *l, int a, int b)
{
    int64_t cost = l->cost[(int64_t)a * net->p->states[l->b] + b];
    return cost >= HD_NEVER ? INFINITY : net->bytes_only ? 0 : (double)cost;
}

static int add_unary(network *net, int v)
{
    factor *f = new_factor(net);
    if (!f || !(f->cost = hd_arena_alloc(&net->memory, (size_t)net->live_n[v] * sizeof *f->cost))) return HD_ENOMEM;
    f->n = 1, f->var[0] = v, f->unary = true;
    for (int s = 0; s < net->live_n[v]; s++) f->cost[s] = weight(net, v, net->live[v][s]);
    return 0;
}

/* Variables of one state take no part: what they cost goes to the others. unary[v]: the factor of v alone. */
static int add_link(network *net, const hd_factor_link *l)
{
    int na = net->live_n[l->a], nb = net->live_n[l->b];
    factor *f = new_factor(net);
    if (!f || !(f->cost = hd_arena_alloc(&net->memory, (size_t)na * (size_t)nb * sizeof *f->cost))) return HD_ENOMEM;
    if (na > 1) f->var[f->n++] = l->a;
    if (nb > 1) f->var[f->n++] = l->b;
    for (int i = 0; i < na; i++)
        for (int j = 0; j < nb; j++) f->cost[i * nb + j] = link_cost(net, l, net->live[l->a][i], net->live[l->b][j]);
    if (!f->n) net->constant += f->cost[0], net->n_factors--;
    return 0;
}

static int add_given(network *net, hd_error *err)
{
    const hd_factor_problem *p = net->p;
    int rc = 0;
    for (int v = 0; !rc && v < p->n; v++) {
        if (net->live_n[v] > 1) rc = add_unary(net, v);
        else net->constant += weight(net, v, net->live[v][0]);
    }
    for (int i = 0; !rc && i < p->n_links; i++) rc = add_link(net, &p->links[i]);
    return rc ? hd_fail_memory(err, 0, "the tables of a layout search") : 0;
}

/* ---- order ---- */

typedef struct neighbours { int *list, n; size_t room; } neighbours;

static bool are_neighbours(const neighbours *a, int v) { return position(a->list, a->n, v) >= 0; }

static int join(neighbours *all, int a, int b)
{
    if (a == b || are_neighbours(&all[a], b)) return 0;
    if (hd_grow(&all[a].list, &all[a].room, (size_t)all[a].n + 1, sizeof(int)) || hd_grow(&all[b].list, &all[b].room, (size_t)all[b].n + 1, sizeof(int)))
        return HD_ENOMEM;
    all[a].list[all[a].n++] = b;
    all[b].list[all[b].n++] = a;
    return 0;
}

static void part(neighbours *all, int a, int b)
{
    int at = position(all[a].list, all[a].n, b);
    if (at >= 0) all[a].list[at] = all[a].list[--all[a].n];
}

/* The size of the table that eliminating v makes, and how many pairs it newly joins: the order is by the first, then by the second. */
static void judge(const network *net, const neighbours *all, int v, double *size, int *fill)
{
    *size = hd_network_entries(net, all[v].list, all[v].n) * net->live_n[v];
    *fill = 0;
    for (int i = 0; i < all[v].n; i++)
        for (int j = i + 1; j < all[v].n; j++) *fill += !are_neighbours(&all[all[v].list[i]], all[v].list[j]);
}

typedef struct ordering { neighbours *all; double *size; int *fill; bool *done; } ordering;

static int next_var(const ordering *o, int n)
{
    int best = -1;
    for (int v = 0; v < n; v++)
        if (!o->done[v] && (best < 0 || o->size[v] < o->size[best] || (o->size[v] == o->size[best] && o->fill[v] < o->fill[best]))) best = v;
    return best;
}

static int eliminate_from_order(const network *net, ordering *o, int v)
{
    neighbours *mine = &o->all[v];
    o->done[v] = true;
    for (int i = 0; i < mine->n; i++) part(o->all, mine->list[i], v);
    for (int i = 0; i < mine->n; i++)
        for (int j = i + 1; j < mine->n; j++)
            if (join(o->all, mine->list[i], mine->list[j])) return HD_ENOMEM;
    for (int i = 0; i < mine->n; i++) {
        int a = mine->list[i];
        judge(net, o->all, a, &o->size[a], &o->fill[a]);
        for (int j = 0; j < o->all[a].n; j++) {
            int b = o->all[a].list[j];
            judge(net, o->all, b, &o->size[b], &o->fill[b]);
        }
    }
    return 0;
}

static int make_order(network *net, int *order, int *n_order, hd_error *err)
{
    int n = net->p->n, rc = 0, v = -1;
    ordering o = {hd_calloc((size_t)n, sizeof *o.all), hd_calloc((size_t)n, sizeof *o.size), hd_calloc((size_t)n, sizeof *o.fill), hd_calloc((size_t)n, sizeof *o.done)};
    if (!o.all || !o.size || !o.fill || !o.done) rc = HD_ENOMEM;
    for (int f = 0; !rc && f < net->n_factors; f++)
        if (net->factors[f].n == 2) rc = join(o.all, net->factors[f].var[0], net->factors[f].var[1]);
    for (int i = 0; !rc && i < n; i++) o.done[i] = net->live_n[i] == 1, judge(net, o.all, i, &o.size[i], &o.fill[i]);
    for (*n_order = 0; !rc && (v = next_var(&o, n)) >= 0; order[(*n_order)++] = v) {
        net->work += o.size[v];
        if (o.size[v] > net->greatest) net->greatest = o.size[v];
        rc = eliminate_from_order(net, &o, v);
    }
    for (int i = 0; o.all && i < n; i++) hd_free(o.all[i].list);
    hd_free(o.all);
    hd_free(o.size);
    hd_free(o.fill);
    hd_free(o.done);
    return rc ? hd_fail_memory(err, 0, "the order of a layout search") : 0;
}

/* ---- elimination ---- */

typedef struct uses { int *list, n; size_t room; } uses; /* factors that hold a variable and have not been used up */

static int give(network *net, uses *held, int f)
{
    const factor *x = &net->factors[f];
    for (int i = 0; i < x->n; i++) {
        uses *u = &held[x->var[i]];
        if (hd_grow(&u->list, &u->room, (size_t)u->n + 1, sizeof(int))) return HD_ENOMEM;
        u->list[u->n++] = f;
    }
    return 0;
}

static int take_uses(network *net, uses *held, bucket *b)
{
    uses *u = &held[b->var];
    b->uses = hd_arena_alloc(&net->memory, (size_t)(u->n + 1) * sizeof(int));
    if (!b->uses) return HD_ENOMEM;
    for (int i = 0; i < u->n; i++)
        if (net->factors[u->list[i]].bucket < 0) b->uses[b->n_uses++] = u->list[i];
    return 0;
}

static int union_scope(const network *net, const int *factors, int n, int without, int *scope)
{
    int count = 0;
    for (int i = 0; i < n; i++)
        for (int k = 0; k < net->factors[factors[i]].n; k++)
            if (net->factors[factors[i]].var[k] != without) count = add_var(scope, count, net->factors[factors[i]].var[k]);
    return count;
}

static bool is_small(const network *net, const int *scope, int n, int v)
{
    double most = net->o && net->o->table ? (double)net->o->table : 1 << 24;
    return n < MAX_SCOPE && hd_network_entries(net, scope, n) * net->live_n[v] <= most;
}

/* One part of a bucket becomes a message: a factor, or -1 (a number). */
static int send_message(network *net, uses *held, const int *group, int n, int v, int *message, double *number, hd_error *err)
{
    const factor *from[MAX_FROM];
    int scope[MAX_SCOPE], n_scope = union_scope(net, group, n, v, scope);
    factor out;
    for (int i = 0; i < n; i++) from[i] = &net->factors[group[i]];
    double entries = hd_network_entries(net, scope, n_scope) * net->live_n[v];
    if (entries > (double)net->widest) net->widest = (int64_t)entries;
    net->spent += entries;
    int rc = hd_network_project(net, from, n, scope, n_scope, &out, err);
    if (rc) return rc;
    *message = -1;
    if (!n_scope) return *number += out.cost[0], net->constant += out.cost[0], 0;
    factor *f = new_factor(net);
    if (!f) return hd_fail_memory(err, 0, "a layout search");
    *f = out;
    *message = net->n_factors - 1;
    return give(net, held, *message) ? hd_fail_memory(err, 0, "a layout search") : 0;
}

/* In as few parts as tables allow, first come first served. */
static int split_bucket(network *net, uses *held, const bucket *b, hd_error *err)
{
    bool *taken = hd_calloc((size_t)b->n_uses + 1, 1);
    if (!taken) return hd_fail_memory(err, 0, "a layout search");
    int rc = 0, message;
    double number = 0;
    for (int first = 0; !rc && first < b->n_uses; first++) {
        int group[MAX_FROM], n = 0, scope[MAX_SCOPE];
        if (taken[first]) continue;
        for (int i = first; i < b->n_uses && n < MAX_FROM; i++) {
            if (taken[i]) continue;
            group[n] = b->uses[i];
            if (n && !is_small(net, scope, union_scope(net, group, n + 1, b->var, scope), b->var)) continue;
            taken[i] = true, n++;
        }
        rc = send_message(net, held, group, n, b->var, &message, &number, err);
    }
    hd_free(taken);
    net->split = true;
    return rc;
}

static int eliminate(network *net, uses *held, bucket *b, int at, hd_error *err)
{
    if (take_uses(net, held, b)) return hd_fail_memory(err, 0, "a layout search");
    for (int i = 0; i < b->n_uses; i++) net->factors[b->uses[i]].bucket = at;
    b->n_scope = union_scope(net, b->uses, b->n_uses, b->var, b->scope);
    b->message = -1;
    b->split = b->n_uses > MAX_FROM || !is_small(net, b->scope, b->n_scope, b->var);
    if (b->split) return split_bucket(net, held, b, err);
    int rc = send_message(net, held, b->uses, b->n_uses, b->var, &b->message, &b->number, err);
    if (!rc && b->message >= 0) net->factors[b->message].made_by = at;
    return rc;
}

static int eliminate_all(network *net, const int *order, int n, hd_error *err)
{
    uses *held = hd_calloc((size_t)net->p->n, sizeof *held);
    int rc = held ? 0 : hd_fail_memory(err, 0, "a layout search");
    for (int f = 0; !rc && f < net->n_factors; f++)
        if (give(net, held, f)) rc = hd_fail_memory(err, 0, "a layout search");
    for (int i = 0; !rc && i < n; i++) {
        net->buckets[i] = (bucket){.var = order[i]};
        net->bucket_of[order[i]] = i;
        rc = eliminate(net, held, &net->buckets[i], i, err);
        if (!rc) net->n_buckets++;
    }
    for (int v = 0; held && v < net->p->n; v++) hd_free(held[v].list);
    hd_free(held);
    return rc;
}

int hd_network_solve(network *net, hd_error *err)
{
    int n = net->p->n, n_order = 0;
    int *order = hd_calloc((size_t)n + 1, sizeof *order);
    net->buckets = hd_calloc((size_t)n + 1, sizeof *net->buckets);
    net->bucket_of = hd_calloc((size_t)n + 1, sizeof *net->bucket_of);
    int rc = order && net->buckets && net->bucket_of ? add_given(net, err) : hd_fail_memory(err, 0, "a layout search");
    for (int v = 0; !rc && v < n; v++) net->bucket_of[v] = -1;
    if (!rc) rc = make_order(net, order, &n_order, err);
    net->declined = net->most_work > 0 && net->work > net->most_work;
    if (!rc && !net->declined) rc = eliminate_all(net, order, n_order, err);
    hd_free(order);
    return rc;
}

void hd_network_close(network *net)
{
    hd_free(net->factors);
    hd_free(net->buckets);
    hd_free(net->bucket_of);
    hd_arena_free(&net->memory);
    net->factors = NULL, net->buckets = NULL, net->bucket_of = NULL;
}

/* ---- the choice ---- */

static int64_t index_at(const network *net, const factor *f, const int *at)
{
    int64_t index = 0;
    for (int i = 0; i < f->n; i++) index = index * net->live_n[f->var[i]] + at[f->var[i]];
    return index;
}

static int best_state(const network *net, const bucket *b, int *at)
{
    double least = INFINITY;
    int best = 0;
    for (int s = 0; s < net->live_n[b->var]; s++) {
        double sum = 0;
        at[b->var] = s;
        for (int i = 0; i < b->n_uses; i++) sum += net->factors[b->uses[i]].cost[index_at(net, &net->factors[b->uses[i]], at)];
        if (sum < least) least = sum, best = s;
    }
    return best;
}

void hd_network_trace(const network *net, int *choice)
{
    memset(choice, 0, (size_t)net->p->n * sizeof *choice);
    for (int i = net->n_buckets - 1; i >= 0; i--) choice[net->buckets[i].var] = best_state(net, &net->buckets[i], choice);
    for (int v = 0; v < net->p->n; v++) choice[v] = net->live[v][choice[v]];
}
