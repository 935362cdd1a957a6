/* scatter.c: what tensor-parallel ranks would all send whole goes in pieces, one from each, and is gathered where it is read (Narayanan et al. 2021, section 4.1).
 *
 * Between nodes each rank then has a piece on its own port instead of the whole; the gather stays inside the node.
 *     v, whole on all ranks of the axes       chunk c:  v.scattered = shard(v)    -> send
 *     read in chunk d of another stage        recv -> v.gathered<d> = all_gather  -> what read v
 * A value is gathered once for each chunk that reads it, before its first reader there; backward finds it kept. */
#include <stdio.h>

#include "passes/partition_int.h"

typedef struct gather { int chunk; hd_value value; struct gather *next; } gather;

typedef struct scatterer {
    hd_part part;          /* graph and mesh, for making conversions */
    int stages;
    size_t n_nodes;        /* before any new one */
    hd_arena scratch;
    hd_layout *piece;      /* [values] */
    bool *wanted;          /* [values] goes in pieces */
    hd_value *shard;       /* [values] */
    gather **gathers;      /* [values] */
    hd_node **order; size_t n_order;
} scatterer;

/* Rows are cut further over all axes of role MODEL, if none of them cuts v or adds it up. */
static bool find_piece(const scatterer *s, hd_value v, hd_layout *out)
{
    const hd_graph *g = s->part.g;
    const hd_value_info *i = &g->values[v];
    *out = i->layout ? *i->layout : (hd_layout){0};
    if (i->kind != HD_RESULT || i->micro != HD_TIME_SPLIT || !hd_dtype_is_float(i->type.dtype) || i->type.shape.rank < 2) return false;
    uint32_t used = hd_layout_axes(out, i->type.shape.rank) | out->partial, cut = 0;
    for (int a = 0; a < g->mesh.n; a++) {
        if (g->mesh.axis[a].role != HD_AXIS_MODEL || g->mesh.axis[a].size < 2) continue;
        hd_dim_layout *d = &out->dim[0];
        if (used >> a & 1 || d->n == HD_MAX_SPLITS) return false;
        d->unit[d->n] = 1;
        d->axis[d->n++] = (int8_t)a;
        cut |= 1u << a;
    }
    return cut != 0;
}

static bool is_elsewhere(const scatterer *s, hd_value v, int chunk)
{
    const hd_value_info *i = &s->part.g->values[v];
    int from = i->kind == HD_RESULT ? s->part.g->nodes[i->node]->chunk : -1;
    return from >= 0 && chunk >= 0 && from % s->stages != chunk % s->stages;
}

static void find_wanted(scatterer *s)
{
    const hd_graph *g = s->part.g;
    for (size_t i = 0; i < s->n_nodes; i++)
        for (int k = 0; k < g->nodes[i]->n_in; k++) {
            hd_value v = g->nodes[i]->in[k];
            if (v != HD_NONE && !s->wanted[v] && is_elsewhere(s, v, g->nodes[i]->chunk)) s->wanted[v] = find_piece(s, v, &s->piece[v]);
        }
}

/* v's layout `from` brought to `to` by new nodes, which go to the end of the order. */
static hd_value convert(scatterer *s, hd_value x, const hd_layout *from, const hd_layout *to, const char *path, const hd_node *reader)
{
    hd_graph *g = s->part.g;
    hd_convert_step steps[HD_MAX_STEPS];
    hd_shape whole = g->values[x].whole;
    hd_time_layout micro = g->values[x].micro;
    int n = hd_part_steps(&g->mesh, &whole, from, to, steps);
    for (int i = 0; i < n && !g->err.code; i++) {
        x = hd_part_emit(&s->part, x, path, &steps[i], reader);
        if (x == HD_NONE) return x;
        g->values[x].micro = micro;
        s->order[s->n_order++] = g->nodes[g->n_nodes - 1];
    }
    return x;
}

static void give_layout(scatterer *s, hd_value v)
{
    hd_value_info *i = &s->part.g->values[v];
    hd_shape whole = i->type.shape;
    if (!i->layout) hd_part_set_layout(&s->part, v, &(hd_layout){0}, &whole);
}

/* What reads of v become in node n. */
static hd_value gathered(scatterer *s, hd_value v, const hd_node *n)
{
    hd_graph *g = s->part.g;
    char path[300];
    for (const gather *x = s->gathers[v]; x; x = x->next)
        if (x->chunk == n->chunk) return x->value;
    gather *x = hd_arena_alloc(&s->scratch, sizeof *x);
    if (!x) return hd_fail_memory(&g->err, sizeof *x, "scattering"), HD_NONE;
    snprintf(path, sizeof path, "%s.gathered%d", g->values[v].path, n->chunk);
    hd_layout to = *g->values[v].layout;
    *x = (gather){n->chunk, convert(s, s->shard[v], &s->piece[v], &to, path, n), s->gathers[v]};
    s->gathers[v] = x;
    return x->value;
}

static void read_gathered(scatterer *s, hd_node *n)
{
    for (int k = 0; k < n->n_in && !s->part.g->err.code; k++)
        if (n->in[k] != HD_NONE && (size_t)n->in[k] < s->part.n_values && s->wanted[n->in[k]] && is_elsewhere(s, n->in[k], n->chunk))
            n->in[k] = gathered(s, n->in[k], n);
}

static void cut_results(scatterer *s, const hd_node *n)
{
    hd_graph *g = s->part.g;
    char path[300];
    for (int k = 0; k < n->n_out && !g->err.code; k++) {
        hd_value v = n->out[k];
        if (!s->wanted[v]) continue;
        give_layout(s, v);
        if (g->err.code) return;
        hd_layout from = *g->values[v].layout;
        snprintf(path, sizeof path, "%s.scattered", g->values[v].path);
        s->shard[v] = convert(s, v, &from, &s->piece[v], path, n);
    }
}

static int put_back(scatterer *s)
{
    hd_graph *g = s->part.g;
    if (g->err.code || s->n_order != g->n_nodes) return g->err.code;
    memcpy(g->nodes, s->order, s->n_order * sizeof *s->order);
    for (size_t i = 0; i < g->n_nodes; i++)
        for (int k = 0; k < g->nodes[i]->n_out; k++) g->values[g->nodes[i]->out[k]].node = (int)i;
    return 0;
}

/* Each wanted value has at most a shard and a gather by axis for each reader. */
static bool make_room(scatterer *s)
{
    const hd_graph *g = s->part.g;
    size_t n = g->n_values + 1, most = s->n_nodes;
    s->piece = hd_arena_alloc(&s->scratch, n * sizeof *s->piece);
    s->wanted = hd_arena_alloc(&s->scratch, n * sizeof *s->wanted);
    s->shard = hd_arena_alloc(&s->scratch, n * sizeof *s->shard);
    s->gathers = hd_arena_alloc(&s->scratch, n * sizeof *s->gathers);
    if (!s->piece || !s->wanted || !s->shard || !s->gathers) return false;
    find_wanted(s);
    for (size_t i = 0; i < s->n_nodes; i++) {
        for (int k = 0; k < g->nodes[i]->n_in; k++) most += g->nodes[i]->in[k] != HD_NONE && s->wanted[g->nodes[i]->in[k]] ? (size_t)g->mesh.n : 0;
        for (int k = 0; k < g->nodes[i]->n_out; k++) most += s->wanted[g->nodes[i]->out[k]] ? (size_t)g->mesh.n : 0;
    }
    s->order = hd_arena_alloc(&s->scratch, most * sizeof *s->order);
    return s->order;
}

int hd_pass_scatter(hd_graph *g, int stages)
{
    if (g->err.code || stages < 2) return g->err.code;
    scatterer s = {.part = {.g = g, .mesh = &g->mesh, .n_values = g->n_values}, .stages = stages, .n_nodes = g->n_nodes};
    const char *scope = g->scope;
    const hd_node *origin = g->origin;
    hd_phase phase = g->phase;
    int chunk = g->chunk, slice = g->slice;
    if (!make_room(&s)) hd_fail_memory(&g->err, g->n_values, "scattering");
    for (size_t i = 0; i < s.n_nodes && !g->err.code; i++) {
        hd_node *n = g->nodes[i];
        read_gathered(&s, n);
        s.order[s.n_order++] = n;
        cut_results(&s, n);
    }
    put_back(&s);
    hd_arena_free(&s.scratch);
    g->scope = scope, g->origin = origin, g->phase = phase, g->chunk = chunk, g->slice = slice;
    return g->err.code;
}
