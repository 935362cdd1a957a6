/* wire.c: gradients summed over data-parallel ranks in a narrower dtype than f32, as Megatron-LM and DeepSpeed do in mixed precision: half the bytes, each addend
 * rounded once and the sum once.
 *
 *     all_reduce(g)   becomes   f32(all_reduce(bf16(g)))      reduce_scatter likewise */
#include <stdio.h>

#include "passes/partition_int.h"

typedef struct narrower { hd_part part; hd_dtype wire; hd_value *to; /* [values] */ hd_node **order; size_t n_order; } narrower;

static bool over_data_only(const hd_graph *g, const char *axes)
{
    int8_t axis[HD_MAX_AXES];
    int n = hd_mesh_parse_axes(&g->mesh, axes, axis);
    for (int i = 0; i < n; i++)
        if (g->mesh.axis[axis[i]].role != HD_AXIS_DATA) return false;
    return n > 0;
}

static bool is_gradient_sum(const hd_graph *g, const hd_node *n)
{
    if (strcmp(n->op->name, "all_reduce") && strcmp(n->op->name, "reduce_scatter")) return false;
    const hd_value_info *x = &g->values[n->in[0]];
    return n->phase != HD_FORWARD && x->type.dtype == HD_F32 && x->type.shape.rank > 0 && over_data_only(g, ((const hd_comm_attrs *)n->attrs)->axes);
}

/* x in another dtype, in the layout `layout` of that whole shape; `name` behind its path. */
static hd_value cast_piece(narrower *w, hd_value x, hd_dtype dtype, const char *name)
{
    hd_graph *g = w->part.g;
    hd_loop_split splits[HD_MAX_RANK];
    char path[300];
    int n = 0;
    const hd_layout layout = *g->values[x].layout;
    const hd_shape whole = g->values[x].whole;
    hd_time_layout micro = g->values[x].micro;
    snprintf(path, sizeof path, "%s.%s", g->values[x].path, name);
    hd_value y = hd_cast(g, path, x, dtype);
    if (y == HD_NONE || hd_part_set_layout(&w->part, y, &layout, &whole)) return HD_NONE;
    g->values[y].micro = micro;
    for (int d = 0; d < whole.rank; d++)
        if (layout.dim[d].n) splits[n++] = (hd_loop_split){d, layout.dim[d]};
    hd_node *node = g->nodes[g->n_nodes - 1];
    node->splits = hd_arena_copy(&g->arena, splits, (size_t)n * sizeof *splits);
    node->n_splits = n;
    if (n && !node->splits) hd_fail_memory(&g->err, sizeof splits, "a cast");
    w->order[w->n_order++] = node;
    return y;
}

static void narrow(narrower *w, hd_node *n)
{
    hd_graph *g = w->part.g;
    hd_value sum = n->out[0];
    g->scope = "", g->phase = n->phase, g->chunk = n->chunk, g->slice = n->slice, g->origin = n->origin;
    hd_value narrow = g->values[n->in[0]].layout && g->values[sum].layout ? cast_piece(w, n->in[0], w->wire, "wire") : HD_NONE;
    w->order[w->n_order++] = n;
    if (narrow == HD_NONE) return;
    n->in[0] = narrow;
    g->values[sum].type.dtype = w->wire;
    hd_value wide = cast_piece(w, sum, HD_F32, "wide");
    if (wide != HD_NONE) w->to[sum] = wide;
}

static void replace_reads(narrower *w, hd_node *n)
{
    for (int k = 0; k < n->n_in; k++)
        if (n->in[k] != HD_NONE && (size_t)n->in[k] < w->part.n_values && w->to[n->in[k]] != HD_NONE) n->in[k] = w->to[n->in[k]];
}

static void run(narrower *w, size_t n_nodes)
{
    hd_graph *g = w->part.g;
    for (size_t v = 0; v < w->part.n_values; v++) w->to[v] = HD_NONE;
    for (size_t i = 0; i < n_nodes && !g->err.code; i++) {
        hd_node *n = g->nodes[i];
        replace_reads(w, n);
        if (is_gradient_sum(g, n)) narrow(w, n);
        else w->order[w->n_order++] = n;
    }
    if (g->err.code || w->n_order != g->n_nodes) return;
    memcpy(g->nodes, w->order, w->n_order * sizeof *w->order);
    for (size_t i = 0; i < g->n_nodes; i++)
        for (int k = 0; k < g->nodes[i]->n_out; k++) g->values[g->nodes[i]->out[k]].node = (int)i;
    for (size_t i = 0; i < g->n_outputs; i++)
        if (w->to[g->outputs[i].value] != HD_NONE) g->outputs[i].value = w->to[g->outputs[i].value];
    for (size_t i = 0; i < g->n_pairs; i++)
        if (w->to[g->pairs[i].out] != HD_NONE) g->pairs[i].out = w->to[g->pairs[i].out];
}

int hd_pass_narrow_gradients(hd_graph *g, hd_dtype wire)
{
    if (g->err.code || wire == HD_F32) return g->err.code;
    narrower w = {.part = {.g = g, .mesh = &g->mesh, .n_values = g->n_values}, .wire = wire};
    const char *scope = g->scope;
    const hd_node *origin = g->origin;
    hd_phase phase = g->phase;
    int chunk = g->chunk, slice = g->slice;
    w.to = hd_calloc(g->n_values + 1, sizeof *w.to);
    w.order = hd_calloc(3 * g->n_nodes + 1, sizeof *w.order);
    if (w.to && w.order) run(&w, g->n_nodes);
    else hd_fail_memory(&g->err, g->n_nodes, "narrowing gradients");
    hd_free(w.to);
    hd_free(w.order);
    g->scope = scope, g->origin = origin, g->phase = phase, g->chunk = chunk, g->slice = slice;
    return g->err.code;
}
