/* wire.c: sums over ranks sent in a narrower dtype than f32, as Megatron-LM and DeepSpeed do in mixed precision: half the bytes, each addend rounded once and the
 * sum once.
 *
 *   gradients, over DATA axes           all_reduce(g)         becomes   f32(all_reduce(bf16(g)))
 *   activations, over MODEL axes        bf16(all_reduce(x))   becomes   all_reduce(bf16(x)); a product that only this reads gives bf16 itself
 * reduce_scatter likewise. */
#include <stdio.h>

#include "passes/partition_int.h"

typedef struct narrower {
    hd_part part;
    hd_dtype wire;
    hd_value *to;      /* [values] what is read instead; HD_NONE: itself */
    int *reads;        /* [values] nodes that read it, outputs and states */
    const hd_node **reader; /* [values] the last one */
    hd_node **order; size_t n_order;
} narrower;

static bool over_data_only(const hd_graph *g, const char *axes)
{
    int8_t axis[HD_MAX_AXES];
    int n = hd_mesh_parse_axes(&g->mesh, axes, axis);
    for (int i = 0; i < n; i++)
        if (g->mesh.axis[axis[i]].role != HD_AXIS_DATA) return false;
    return n > 0;
}

static bool is_wide_sum(const hd_graph *g, const hd_node *n)
{
    if (strcmp(n->op->name, "all_reduce") && strcmp(n->op->name, "reduce_scatter")) return false;
    const hd_value_info *x = &g->values[n->in[0]], *y = &g->values[n->out[0]];
    return x->type.dtype == HD_F32 && x->type.shape.rank > 0 && x->layout && y->layout && !((const hd_comm_attrs *)n->attrs)->max;
}

static bool is_gradient_sum(const hd_graph *g, const hd_node *n)
{
    return is_wide_sum(g, n) && n->phase != HD_FORWARD && over_data_only(g, ((const hd_comm_attrs *)n->attrs)->axes);
}

/* The cast to the wire's dtype that is all that becomes of an activation's sum; NULL: something else. */
static const hd_node *cast_behind(const narrower *w, const hd_node *n)
{
    const hd_graph *g = w->part.g;
    if (!is_wide_sum(g, n) || g->values[n->in[0]].micro != HD_TIME_SPLIT || w->reads[n->out[0]] != 1) return NULL;
    const hd_node *r = w->reader[n->out[0]];
    return r && !strcmp(r->op->name, "cast") && g->values[r->out[0]].type.dtype == w->wire ? r : NULL;
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

/* x, an addend that only n reads, in the wire's dtype. */
static hd_value narrow_addend(narrower *w, hd_value x)
{
    hd_graph *g = w->part.g;
    hd_node *from = g->values[x].kind == HD_RESULT ? g->nodes[g->values[x].node] : NULL;
    if (!from || strcmp(from->op->name, "contract") || w->reads[x] != 1) return cast_piece(w, x, w->wire, "wire");
    ((hd_contract_attrs *)from->attrs)->dtype = w->wire;
    g->values[x].type.dtype = w->wire;
    return x;
}

static void narrow_activation(narrower *w, hd_node *n, const hd_node *cast)
{
    hd_graph *g = w->part.g;
    g->scope = "", g->phase = n->phase, g->chunk = n->chunk, g->slice = n->slice, g->origin = n->origin;
    hd_value x = narrow_addend(w, n->in[0]);
    w->order[w->n_order++] = n;
    if (x == HD_NONE) return;
    n->in[0] = x;
    g->values[n->out[0]].type.dtype = w->wire;
    w->to[cast->out[0]] = n->out[0];
}

static void count_reads(narrower *w)
{
    const hd_graph *g = w->part.g;
    for (size_t v = 0; v < w->part.n_values; v++) w->to[v] = HD_NONE;
    for (size_t i = 0; i < g->n_nodes; i++)
        for (int k = 0; k < g->nodes[i]->n_in; k++)
            if (g->nodes[i]->in[k] != HD_NONE) w->reads[g->nodes[i]->in[k]]++, w->reader[g->nodes[i]->in[k]] = g->nodes[i];
    for (size_t i = 0; i < g->n_outputs; i++) w->reads[g->outputs[i].value] += 2;
    for (size_t i = 0; i < g->n_pairs; i++) w->reads[g->pairs[i].out] += 2;
}

/* Values stay; nodes whose only result is read as something else now go. */
static bool is_bypassed(const narrower *w, const hd_node *n)
{
    return n->n_out == 1 && !strcmp(n->op->name, "cast") && (size_t)n->out[0] < w->part.n_values && w->to[n->out[0]] != HD_NONE;
}

static void replace_reads(narrower *w, hd_node *n)
{
    for (int k = 0; k < n->n_in; k++)
        if (n->in[k] != HD_NONE && (size_t)n->in[k] < w->part.n_values && w->to[n->in[k]] != HD_NONE) n->in[k] = w->to[n->in[k]];
}

static void run(narrower *w)
{
    hd_graph *g = w->part.g;
    size_t n_nodes = g->n_nodes;
    count_reads(w);
    for (size_t i = 0; i < n_nodes && !g->err.code; i++) {
        hd_node *n = g->nodes[i];
        const hd_node *cast = cast_behind(w, n);
        if (is_bypassed(w, n)) continue;
        replace_reads(w, n);
        if (is_gradient_sum(g, n)) narrow(w, n);
        else if (cast) narrow_activation(w, n, cast);
        else w->order[w->n_order++] = n;
    }
    if (g->err.code) return;
    memcpy(g->nodes, w->order, w->n_order * sizeof *w->order);
    g->n_nodes = w->n_order;
    for (size_t i = 0; i < g->n_nodes; i++)
        for (int k = 0; k < g->nodes[i]->n_out; k++) g->values[g->nodes[i]->out[k]].node = (int)i;
    for (size_t i = 0; i < g->n_outputs; i++)
        if (w->to[g->outputs[i].value] != HD_NONE) g->outputs[i].value = w->to[g->outputs[i].value];
    for (size_t i = 0; i < g->n_pairs; i++)
        if (w->to[g->pairs[i].out] != HD_NONE) g->pairs[i].out = w->to[g->pairs[i].out];
}

int hd_pass_narrow_sums(hd_graph *g, hd_dtype wire)
{
    if (g->err.code || wire == HD_F32) return g->err.code;
    narrower w = {.part = {.g = g, .mesh = &g->mesh, .n_values = g->n_values}, .wire = wire};
    const char *scope = g->scope;
    const hd_node *origin = g->origin;
    hd_phase phase = g->phase;
    int chunk = g->chunk, slice = g->slice;
    w.to = hd_calloc(g->n_values + 1, sizeof *w.to);
    w.order = hd_calloc(3 * g->n_nodes + 1, sizeof *w.order);
    w.reads = hd_calloc(g->n_values + 1, sizeof *w.reads);
    w.reader = hd_calloc(g->n_values + 1, sizeof *w.reader);
    if (w.to && w.order && w.reads && w.reader) run(&w);
    else hd_fail_memory(&g->err, g->n_nodes, "narrowing sums");
    void *const all[] = {w.to, w.order, w.reads, w.reader};
    for (int i = 0; i < 4; i++) hd_free(all[i]);
    g->scope = scope, g->origin = origin, g->phase = phase, g->chunk = chunk, g->slice = slice;
    return g->err.code;
}
