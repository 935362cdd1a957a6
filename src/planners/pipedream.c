/* pipedream.c: see pipedream.h. Cuts are sets of nodes closed under predecessors; the programme runs over pairs of them. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "planners/pipedream.h"

enum { MOST_CUTS = 6000, MOST_INNER_CUTS = 1200 }; /* looked at all pairs of; with two levels all triples */

typedef struct cut {
    uint64_t *set;      /* [words] of nodes inside */
    int size;
    double time, bytes; /* of all nodes inside: milliseconds; bytes of parameters */
    double crossing;    /* bytes of outputs inside that are read outside */
} cut;

typedef struct cuts { cut *list; int n, words; size_t room; hd_arena memory; } cuts;

/* ---- all cuts ---- */

static bool inside(const cut *c, int node) { return c->set[node / 64] >> (node % 64) & 1; }

static bool is_ready(const hd_profiled_graph *g, const cut *c, int node)
{
    if (inside(c, node)) return false;
    for (int e = 0; e < g->n_edges; e++)
        if (g->edges[e][1] == node && !inside(c, g->edges[e][0])) return false;
    return true;
}

static bool is_known(const cuts *all, int from, const uint64_t *set)
{
    for (int i = from; i < all->n; i++)
        if (!memcmp(all->list[i].set, set, (size_t)all->words * 8)) return true;
    return false;
}

static int add_cut(cuts *all, const cut *before, int node, int same_size, hd_error *err)
{
    uint64_t *set = hd_arena_alloc(&all->memory, (size_t)all->words * 8);
    if (!set || hd_grow(&all->list, &all->room, (size_t)all->n + 1, sizeof *all->list)) return hd_fail_memory(err, 0, "the cuts of a graph");
    if (before) memcpy(set, before->set, (size_t)all->words * 8), set[node / 64] |= 1ull << (node % 64);
    if (before && is_known(all, same_size, set)) return 0;
    if (all->n == MOST_CUTS) return hd_fail(err, HD_EUNSUPPORTED, "the graph has over %d cuts: it is too wide to look at them all; merge parallel branches", MOST_CUTS);
    all->list[all->n++] = (cut){.set = set, .size = before ? before->size + 1 : 0};
    return 0;
}

static void weigh(const hd_profiled_graph *g, cut *c)
{
    for (int i = 0; i < g->n; i++) {
        if (!inside(c, i)) continue;
        bool crosses = false;
        for (int e = 0; e < g->n_edges; e++) crosses |= g->edges[e][0] == i && !inside(c, g->edges[e][1]);
        c->time += g->nodes[i].forward + g->nodes[i].backward;
        c->bytes += g->nodes[i].parameters;
        c->crossing += crosses ? g->nodes[i].activation : 0;
    }
}

/* By size, the empty one first, all nodes last. */
static int find_cuts(const hd_profiled_graph *g, cuts *all, hd_error *err)
{
    *all = (cuts){.words = g->n / 64 + 1};
    int rc = add_cut(all, NULL, 0, 0, err), level = 0, next = all->n;
    while (!rc && all->n > level && all->list[level].size < g->n) {
        for (int c = level; !rc && c < next; c++)
            for (int node = 0; !rc && node < g->n; node++) {
                cut before = all->list[c];
                if (is_ready(g, &before, node)) rc = add_cut(all, &before, node, next, err);
            }
        level = next;
        next = all->n;
    }
    for (int i = 0; !rc && i < all->n; i++) weigh(g, &all->list[i]);
    return rc;
}

static bool is_within(const cuts *all, int a, int b)
{
    const uint64_t *x = all->list[a].set, *y = all->list[b].set;
    for (int w = 0; w < all->words; w++)
        if (x[w] & ~y[w]) return false;
    return a != b;
}

/* ---- the programme of one level ---- */

typedef struct level {
    const cuts *all;
    int count;             /* devices, or machines */
    double bandwidth;      /* bytes a millisecond */
    const struct level *inner; /* NULL: the innermost */
    int rows;              /* cuts that a run may begin behind: all of them, or the empty one */
    double *best;          /* [rows][cuts][count + 1] */
    int *cut_at, *behind;  /* the same: where the last stage begins (-1: one stage), and how many it has */
} level;

static size_t at(const level *l, int i, int j, int m) { return ((size_t)i * (size_t)l->all->n + (size_t)j) * (size_t)(l->count + 1) + (size_t)m; }

/* T^k(i -> j, m). */
static double stage_time(const level *l, int i, int j, int m)
{
    const cut *a = &l->all->list[i], *b = &l->all->list[j];
    double work = l->inner ? l->inner->best[at(l->inner, i, j, l->inner->count)] : b->time - a->time;
    double sync = 2.0 * (m - 1) * (b->bytes - a->bytes) / l->bandwidth;
    return (work > sync ? work : sync) / m;
}

static void solve_cell(level *l, int i, int j, int m)
{
    size_t here = at(l, i, j, m);
    double best = stage_time(l, i, j, m);
    l->cut_at[here] = -1, l->behind[here] = m;
    for (int s = i + 1; s < j; s++) {
        double cross = 2 * l->all->list[s].crossing / l->bandwidth;
        if (cross >= best || !is_within(l->all, i, s) || !is_within(l->all, s, j)) continue;
        for (int k = 1; k < m; k++) {
            double head = l->best[at(l, i, s, m - k)], tail = stage_time(l, s, j, k), worst = head > tail ? head : tail;
            if (worst < cross) worst = cross;
            if (worst < best) best = worst, l->cut_at[here] = s, l->behind[here] = k;
        }
    }
    l->best[here] = best;
}

static int solve_level(level *l, hd_error *err)
{
    size_t cells = (size_t)l->rows * (size_t)l->all->n * (size_t)(l->count + 1);
    l->best = hd_calloc(cells, sizeof *l->best);
    l->cut_at = hd_calloc(cells, sizeof *l->cut_at);
    l->behind = hd_calloc(cells, sizeof *l->behind);
    if (!l->best || !l->cut_at || !l->behind) return hd_fail_memory(err, cells * 16, "a programme over cuts");
    for (int i = 0; i < l->rows; i++)
        for (int j = i + 1; j < l->all->n; j++)
            if (is_within(l->all, i, j))
                for (int m = 1; m <= l->count; m++) solve_cell(l, i, j, m);
    return 0;
}

static void free_level(level *l)
{
    hd_free(l->best);
    hd_free(l->cut_at);
    hd_free(l->behind);
}

/* ---- the plan ---- */

static int add_nodes(const cuts *all, int i, int j, const hd_profiled_graph *g, hd_pipedream_plan *out, int used)
{
    for (int node = 0; node < g->n; node++)
        if (inside(&all->list[j], node) && !inside(&all->list[i], node)) out->order[used++] = node;
    return used;
}

static void add_stages(const level *l, int i, int j, int m, int machines, const hd_profiled_graph *g, hd_pipedream_plan *out)
{
    int s = l->cut_at[at(l, i, j, m)], behind = l->behind[at(l, i, j, m)];
    if (s >= 0) add_stages(l, i, s, m - behind, machines, g, out);
    int first = s >= 0 ? s : i;
    if (l->inner) {
        add_stages(l->inner, first, j, l->inner->count, behind, g, out);
        return;
    }
    int used = out->n ? out->stages[out->n - 1].last + 1 : 0;
    out->stages[out->n++] = (hd_pipedream_stage){used, add_nodes(l->all, first, j, g, out, used) - 1, behind, machines};
}

static int make_plan(const level *l, const hd_profiled_graph *g, hd_pipedream_plan *out, hd_error *err)
{
    int last = l->all->n - 1;
    out->order = hd_calloc((size_t)g->n, sizeof *out->order);
    out->stages = hd_calloc((size_t)g->n, sizeof *out->stages);
    if (!out->order || !out->stages) return hd_fail_memory(err, 0, "a plan of stages");
    out->bottleneck = l->best[at(l, 0, last, l->count)];
    add_stages(l, 0, last, l->count, 1, g, out);
    return 0;
}

int hd_pipedream_solve(const hd_profiled_graph *g, const hd_pipedream_machines *m, hd_pipedream_plan *out, hd_error *err)
{
    cuts all;
    level levels[HD_PIPEDREAM_LEVELS] = {0};
    *out = (hd_pipedream_plan){0};
    int rc = find_cuts(g, &all, err);
    if (!rc && m->levels > 1 && all.n > MOST_INNER_CUTS)
        rc = hd_fail(err, HD_EUNSUPPORTED, "the graph has %d cuts, over %d: too many for two levels of machines", all.n, MOST_INNER_CUTS);
    for (int k = 0; !rc && k < m->levels; k++) {
        levels[k] = (level){.all = &all, .count = m->count[k], .bandwidth = m->bandwidth[k] / 1e3, .inner = k ? &levels[k - 1] : NULL,
                            .rows = k + 1 < m->levels ? all.n : 1};
        rc = solve_level(&levels[k], err);
    }
    if (!rc) rc = make_plan(&levels[m->levels - 1], g, out, err);
    for (int k = 0; k < HD_PIPEDREAM_LEVELS; k++) free_level(&levels[k]);
    hd_free(all.list);
    hd_arena_free(&all.memory);
    if (rc) hd_pipedream_plan_free(out);
    return rc;
}

void hd_pipedream_plan_free(hd_pipedream_plan *p)
{
    hd_free(p->order);
    hd_free(p->stages);
    *p = (hd_pipedream_plan){0};
}
