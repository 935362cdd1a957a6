/* factor_core.c: see factor_core.h: opening, eliminating, dominance, and back to a choice. factor_tighten.c moves costs. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "planners/factor_core.h"

/* ---- opening ---- */

static void *take(core *c, size_t n, size_t size) { return hd_arena_alloc(&c->memory, (n ? n : 1) * size); }

static int note_link(core *c, int v, int link)
{
    core_var *x = &c->var[v];
    if (hd_grow(&x->link, &x->room, (size_t)x->n_links + 1, sizeof *x->link)) return HD_ENOMEM;
    x->link[x->n_links++] = link;
    return 0;
}

static int find_link(const core *c, int a, int b)
{
    const core_var *x = &c->var[c->var[a].n_links < c->var[b].n_links ? a : b];
    for (int i = 0; i < x->n_links; i++) {
        const core_link *l = &c->link[x->link[i]];
        if ((l->a == a && l->b == b) || (l->a == b && l->b == a)) return x->link[i];
    }
    return -1;
}

/* Adds cost [n of a][n of b], which the core now owns, to what stands between a and b. */
static int add_link(core *c, int a, int b, double *cost)
{
    int at = find_link(c, a, b), na = c->var[a].n, nb = c->var[b].n;
    if (at >= 0) {
        core_link *l = &c->link[at];
        for (int i = 0; i < na; i++)
            for (int j = 0; j < nb; j++) l->cost[l->a == a ? i * nb + j : j * na + i] += cost[i * nb + j];
        return 0;
    }
    if (hd_grow(&c->link, &c->link_room, (size_t)c->n_links + 1, sizeof *c->link)) return HD_ENOMEM;
    c->link[c->n_links] = (core_link){a, b, cost, false};
    if (note_link(c, a, c->n_links) || note_link(c, b, c->n_links)) return HD_ENOMEM;
    c->n_links++;
    return 0;
}

static double real(int64_t cost) { return cost >= HD_NEVER ? INFINITY : (double)cost; }

static int open_var(core *c, int v, const int *live_n, int *const *live)
{
    const hd_factor_problem *p = c->p;
    core_var *x = &c->var[v];
    x->n = live_n ? live_n[v] : p->states[v], x->dirty = true;
    x->state = take(c, (size_t)x->n, sizeof *x->state);
    x->cost = take(c, (size_t)x->n, sizeof *x->cost);
    x->bytes = take(c, (size_t)x->n, sizeof *x->bytes);
    if (!x->state || !x->cost || !x->bytes) return HD_ENOMEM;
    for (int i = 0; i < x->n; i++) {
        x->state[i] = live ? live[v][i] : i;
        x->cost[i] = real(p->cost[v][x->state[i]]);
        x->bytes[i] = p->bytes ? (double)p->bytes[v][x->state[i]] : 0;
    }
    return 0;
}

static int open_link(core *c, const hd_factor_link *l)
{
    const core_var *a = &c->var[l->a], *b = &c->var[l->b];
    double *cost = take(c, (size_t)a->n * (size_t)b->n, sizeof *cost);
    if (!cost) return HD_ENOMEM;
    for (int i = 0; i < a->n; i++)
        for (int j = 0; j < b->n; j++) cost[i * b->n + j] = real(l->cost[(int64_t)a->state[i] * c->p->states[l->b] + b->state[j]]);
    return add_link(c, l->a, l->b, cost);
}

int hd_core_open(core *c, const hd_factor_problem *p, bool tied, const int *live_n, int *const *live)
{
    *c = (core){.p = p, .n = p->n, .tied = tied};
    c->var = hd_calloc((size_t)p->n + 1, sizeof *c->var);
    int rc = c->var ? 0 : HD_ENOMEM;
    for (int v = 0; !rc && v < p->n; v++) rc = open_var(c, v, live_n, live);
    for (int i = 0; !rc && i < p->n_links; i++) rc = open_link(c, &p->links[i]);
    if (!rc) hd_core_drop_infinite(c);
    return rc;
}

static int copy_var(core *c, const core *from, int v)
{
    const core_var *y = &from->var[v];
    core_var *x = &c->var[v];
    *x = (core_var){.n = y->n, .gone = y->gone, .dirty = y->dirty};
    if (y->gone) return 0;
    x->state = hd_arena_copy(&c->memory, y->state, (size_t)y->n * sizeof *y->state);
    x->cost = hd_arena_copy(&c->memory, y->cost, (size_t)y->n * sizeof *y->cost);
    x->bytes = hd_arena_copy(&c->memory, y->bytes, (size_t)y->n * sizeof *y->bytes);
    return x->state && x->cost && x->bytes ? 0 : HD_ENOMEM;
}

int hd_core_copy(core *c, const core *from)
{
    *c = (core){.p = from->p, .from = from, .n = from->n, .tied = from->tied, .constant = from->constant, .constant_bytes = from->constant_bytes,
                .impossible = from->impossible};
    c->var = hd_calloc((size_t)c->n + 1, sizeof *c->var);
    int rc = c->var ? 0 : HD_ENOMEM;
    for (int v = 0; !rc && v < c->n; v++) rc = copy_var(c, from, v);
    for (int i = 0; !rc && i < from->n_links; i++) {
        const core_link *l = &from->link[i];
        if (l->gone) continue;
        double *cost = hd_arena_copy(&c->memory, l->cost, (size_t)from->var[l->a].n * (size_t)from->var[l->b].n * sizeof *cost);
        rc = cost ? add_link(c, l->a, l->b, cost) : HD_ENOMEM;
    }
    return rc;
}

void hd_core_close(core *c)
{
    for (int v = 0; c->var && v < c->n; v++) hd_free(c->var[v].link);
    hd_free(c->var);
    hd_free(c->link);
    hd_free(c->record);
    hd_arena_free(&c->memory);
    *c = (core){0};
}

int hd_core_left(const core *c)
{
    int left = 0;
    for (int v = 0; v < c->n; v++) left += !c->var[v].gone;
    return left;
}

/* ---- states that go ---- */

static void soil(core *c, int v)
{
    for (int i = 0; i < c->var[v].n_links; i++) {
        const core_link *l = &c->link[c->var[v].link[i]];
        c->var[l->a].dirty = c->var[l->b].dirty = true;
    }
    c->var[v].dirty = true;
}

/* Keeps the states of v that kept[n] lists, ascending. */
static void keep_states(core *c, int v, const int *kept, int n)
{
    core_var *x = &c->var[v];
    for (int k = 0; k < x->n_links; k++) {
        core_link *l = &c->link[x->link[k]];
        int na = c->var[l->a].n, nb = c->var[l->b].n, to = 0;
        if (l->a == v) {
            for (int i = 0; i < n; i++) memmove(&l->cost[i * nb], &l->cost[kept[i] * nb], (size_t)nb * sizeof *l->cost);
            continue;
        }
        for (int i = 0; i < na; i++)
            for (int j = 0; j < n; j++) l->cost[to++] = l->cost[i * nb + kept[j]];
    }
    for (int i = 0; i < n; i++) x->state[i] = x->state[kept[i]], x->cost[i] = x->cost[kept[i]], x->bytes[i] = x->bytes[kept[i]];
    x->n = n;
    c->impossible |= n == 0;
    soil(c, v);
}

int hd_core_keep_only(core *c, int v, int i)
{
    keep_states(c, v, &i, 1);
    return 0;
}

void hd_core_drop_infinite(core *c)
{
    for (int v = 0; v < c->n; v++) {
        core_var *x = &c->var[v];
        int n = 0, room = x->gone ? 0 : x->n, kept[room + 1];
        for (int i = 0; i < room; i++)
            if (x->cost[i] < INFINITY) kept[n++] = i;
        if (!x->gone && n < x->n) keep_states(c, v, kept, n);
    }
}

/* ---- dominance ---- */

/* What v's links cost, state by state: rows[n of v][width], link after link; start[k]: where link k begins. */
static double *spread(const core *c, int v, int *start, int *width)
{
    const core_var *x = &c->var[v];
    int at = 0;
    for (int k = 0; k < x->n_links; k++) {
        const core_link *l = &c->link[x->link[k]];
        start[k] = at;
        at += c->var[l->a == v ? l->b : l->a].n;
    }
    start[x->n_links] = *width = at;
    double *rows = hd_malloc(((size_t)x->n * (size_t)at + 1) * sizeof *rows);
    for (int k = 0; rows && k < x->n_links; k++) {
        const core_link *l = &c->link[x->link[k]];
        int m = start[k + 1] - start[k];
        for (int i = 0; i < x->n; i++)
            for (int j = 0; j < m; j++) rows[(size_t)i * (size_t)at + (size_t)(start[k] + j)] = l->cost[l->a == v ? i * m + j : j * x->n + i];
    }
    return rows;
}

/* The most that the winner costs beyond the loser, whatever the others do; INFINITY: it may be forbidden where the loser is not. */
static double worst_change(const double *winner, const double *loser, const int *start, int n)
{
    double change = 0;
    for (int k = 0; k < n; k++) {
        double worst = -INFINITY;
        for (int j = start[k]; j < start[k + 1]; j++) {
            double d = winner[j] - loser[j]; /* not a number where both are forbidden */
            worst = d > worst ? d : worst;
        }
        if (worst == INFINITY) return INFINITY;
        change += worst;
    }
    return change;
}

/* -1: out of memory; else how many states went. */
static int drop_dominated(core *c, int v)
{
    core_var *x = &c->var[v];
    int start[x->n_links + 1], kept[x->n], n = 0, width, before = x->n;
    bool out[x->n];
    double *rows = spread(c, v, start, &width);
    if (!rows) return -1;
    memset(out, 0, sizeof out);
    for (int i = 0; i < x->n; i++)
        for (int j = 0; j < x->n && !out[i]; j++) {
            if (i == j || out[j] || (c->tied && x->bytes[j] > x->bytes[i])) continue;
            double change = x->cost[j] - x->cost[i] + worst_change(&rows[(size_t)j * (size_t)width], &rows[(size_t)i * (size_t)width], start, x->n_links);
            out[i] = change < 0 || (change == 0 && (j < i || (c->tied && x->bytes[j] < x->bytes[i])));
        }
    hd_free(rows);
    for (int i = 0; i < x->n; i++)
        if (!out[i]) kept[n++] = i;
    if (n < before) keep_states(c, v, kept, n);
    return before - n;
}

/* ---- eliminating ---- */

static core_record *new_record(core *c, int v)
{
    const core_var *x = &c->var[v];
    if (hd_grow(&c->record, &c->record_room, (size_t)c->n_records + 1, sizeof *c->record)) return NULL;
    core_record *r = &c->record[c->n_records++];
    *r = (core_record){.var = v, .n = x->n, .state = x->state, .cost = x->cost};
    return r;
}

static void unlink_from(core *c, int v, int link)
{
    core_var *x = &c->var[v];
    for (int i = 0; i < x->n_links; i++)
        if (x->link[i] == link) {
            x->link[i] = x->link[--x->n_links];
            return;
        }
}

/* v is done with: its links go. */
static void leave(core *c, int v)
{
    core_var *x = &c->var[v];
    soil(c, v);
    for (int k = 0; k < x->n_links; k++) {
        core_link *l = &c->link[x->link[k]];
        unlink_from(c, l->a == v ? l->b : l->a, x->link[k]);
        l->gone = true;
    }
    x->n_links = 0, x->gone = true;
    c->constant_bytes += x->bytes[0];
}

static int settle(core *c, int v)
{
    core_var *x = &c->var[v];
    if (!new_record(c, v)) return HD_ENOMEM;
    for (int k = 0; k < x->n_links; k++) {
        const core_link *l = &c->link[x->link[k]];
        core_var *y = &c->var[l->a == v ? l->b : l->a];
        for (int i = 0; i < y->n; i++) y->cost[i] += l->cost[i]; /* the table is one row, or one column */
    }
    c->constant += x->cost[0];
    leave(c, v);
    return 0;
}

/* table[n of v][n of the other], turned where it must be. */
static double *from_var(core *c, int v, const core_link *l)
{
    int n = c->var[v].n, m = c->var[l->a == v ? l->b : l->a].n;
    if (l->a == v) return l->cost;
    double *turned = take(c, (size_t)n * (size_t)m, sizeof *turned);
    for (int i = 0; turned && i < n; i++)
        for (int j = 0; j < m; j++) turned[i * m + j] = l->cost[j * n + i];
    return turned;
}

static int remember(core *c, int v)
{
    const core_var *x = &c->var[v];
    core_record *r = new_record(c, v);
    if (!r) return HD_ENOMEM;
    for (int k = 0; k < x->n_links; k++) {
        const core_link *l = &c->link[x->link[k]];
        int u = l->a == v ? l->b : l->a;
        r->other[k] = u, r->other_n[k] = c->var[u].n, r->table[k] = l->cost, r->first[k] = l->a == v;
        r->other_state[k] = hd_arena_copy(&c->memory, c->var[u].state, (size_t)c->var[u].n * sizeof(int));
        if (!r->other_state[k]) return HD_ENOMEM;
    }
    r->near = x->n_links;
    return 0;
}

static int eliminate_leaf(core *c, int v)
{
    core_var *x = &c->var[v];
    const core_link *l = &c->link[x->link[0]];
    core_var *y = &c->var[l->a == v ? l->b : l->a];
    for (int j = 0; j < y->n; j++) {
        double least = INFINITY;
        for (int i = 0; i < x->n; i++) least = fmin(least, x->cost[i] + l->cost[l->a == v ? i * y->n + j : j * x->n + i]);
        y->cost[j] += least;
    }
    return 0;
}

static int eliminate_middle(core *c, int v)
{
    core_var *x = &c->var[v];
    const core_link *l[2] = {&c->link[x->link[0]], &c->link[x->link[1]]};
    int a = l[0]->a == v ? l[0]->b : l[0]->a, b = l[1]->a == v ? l[1]->b : l[1]->a, na = c->var[a].n, nb = c->var[b].n;
    const double *to_a = from_var(c, v, l[0]), *to_b = from_var(c, v, l[1]);
    double *cost = take(c, (size_t)na * (size_t)nb, sizeof *cost);
    if (!to_a || !to_b || !cost) return HD_ENOMEM;
    for (int i = 0; i < na * nb; i++) cost[i] = INFINITY;
    for (int s = 0; s < x->n; s++)
        for (int i = 0; i < na; i++) {
            double here = x->cost[s] + to_a[s * na + i], *row = &cost[i * nb];
            const double *there = &to_b[s * nb];
            for (int j = 0; j < nb; j++) row[j] = here + there[j] < row[j] ? here + there[j] : row[j];
        }
    leave(c, v);
    return add_link(c, a, b, cost);
}

static bool is_free(const core *c, int v)
{
    const core_var *x = &c->var[v];
    for (int i = 1; c->tied && i < x->n; i++)
        if (x->bytes[i] != x->bytes[0]) return false;
    return true;
}

static int eliminate(core *c, int v)
{
    core_var *x = &c->var[v];
    int rc = remember(c, v);
    if (!rc && x->n_links == 2) return eliminate_middle(c, v);
    if (!rc && x->n_links == 1) rc = eliminate_leaf(c, v);
    double least = INFINITY;
    for (int i = 0; i < x->n; i++) least = fmin(least, x->cost[i]);
    if (!x->n_links) c->constant += least;
    return rc ? rc : (leave(c, v), 0);
}

int hd_core_reduce(core *c)
{
    bool changed = true;
    int rc = 0;
    while (changed && !rc && !c->impossible) {
        changed = false;
        hd_core_drop_infinite(c);
        for (int v = 0; v < c->n && !rc && !c->impossible; v++) {
            core_var *x = &c->var[v];
            if (x->gone || !x->dirty) continue;
            changed = true, x->dirty = false;
            int went = x->n > 1 && !c->whole ? drop_dominated(c, v) : 0;
            if (went < 0) rc = HD_ENOMEM;
            else if (x->n == 1) rc = settle(c, v);
            else if (x->n_links <= 2 && is_free(c, v)) rc = eliminate(c, v);
        }
    }
    for (int v = 0; v < c->n; v++) c->impossible |= !c->var[v].gone && !c->var[v].n;
    c->impossible |= !(c->constant < INFINITY);
    return rc;
}

/* ---- back ---- */

static int position_of(const int *list, int n, int state)
{
    for (int i = 0; i < n; i++)
        if (list[i] == state) return i;
    return 0;
}

static int best_of(const core_record *r, const int *choice)
{
    double least = INFINITY;
    int best = 0, at[2] = {0};
    for (int k = 0; k < r->near; k++) at[k] = position_of(r->other_state[k], r->other_n[k], choice[r->other[k]]);
    for (int i = 0; i < r->n; i++) {
        double sum = r->cost[i];
        for (int k = 0; k < r->near; k++) sum += r->table[k][r->first[k] ? i * r->other_n[k] + at[k] : at[k] * r->n + i];
        if (sum < least) least = sum, best = i;
    }
    return r->state[best];
}

void hd_core_expand(const core *c, const int *at, int *choice)
{
    for (int v = 0; v < c->n; v++)
        if (!c->var[v].gone) choice[v] = c->var[v].state[at[v]];
    for (; c; c = c->from)
        for (int i = c->n_records - 1; i >= 0; i--) choice[c->record[i].var] = best_of(&c->record[i], choice);
}

/* ---- what is left, as a problem ---- */

static int64_t whole(double cost) { return cost < (double)HD_NEVER ? (int64_t)cost : HD_NEVER; }

static int64_t *whole_table(core_rest *r, const double *cost, int n)
{
    int64_t *to = hd_arena_alloc(&r->memory, (size_t)n * sizeof *to + 1);
    for (int i = 0; to && i < n; i++) to[i] = whole(cost[i]);
    return to;
}

int hd_core_rest(const core *c, core_rest *out)
{
    int left = hd_core_left(c), n = 0;
    *out = (core_rest){0};
    int *states = hd_arena_alloc(&out->memory, (size_t)(left + 1) * sizeof *states);
    const int64_t **cost = hd_arena_alloc(&out->memory, (size_t)(left + 1) * sizeof *cost), **bytes = hd_arena_alloc(&out->memory, (size_t)(left + 1) * sizeof *bytes);
    hd_factor_link *links = hd_arena_alloc(&out->memory, (size_t)(c->n_links + 1) * sizeof *links);
    out->which = hd_arena_alloc(&out->memory, (size_t)(left + 1) * sizeof *out->which);
    int *at = hd_arena_alloc(&out->memory, (size_t)(c->n + 1) * sizeof *at);
    if (!states || !cost || !bytes || !links || !out->which || !at) return HD_ENOMEM;
    for (int v = 0; v < c->n; v++) {
        const core_var *x = &c->var[v];
        if (x->gone) continue;
        states[n] = x->n, out->which[n] = v;
        cost[n] = whole_table(out, x->cost, x->n), bytes[n] = whole_table(out, x->bytes, x->n);
        if (!cost[n] || !bytes[n]) return HD_ENOMEM;
        at[v] = n++;
    }
    out->p = (hd_factor_problem){.n = n, .states = states, .cost = cost, .bytes = c->p->bytes ? bytes : NULL, .links = links, .limit = -1};
    if (c->p->limit >= 0) out->p.limit = c->p->limit - (int64_t)c->constant_bytes;
    for (int i = 0; i < c->n_links; i++) {
        const core_link *l = &c->link[i];
        if (l->gone) continue;
        const int64_t *table = whole_table(out, l->cost, c->var[l->a].n * c->var[l->b].n);
        if (!table) return HD_ENOMEM;
        links[out->p.n_links++] = (hd_factor_link){at[l->a], at[l->b], table};
    }
    return 0;
}
