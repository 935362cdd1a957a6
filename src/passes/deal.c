/* deal.c: which tokens of a sequence each rank has, where they are cut over an axis of g->zigzag: an early part and a late one, so that with a
 * causal mask all ranks have as many keys to see (Brandon et al. 2023; Llama 3, section 3.3.2, with the parts of rank i of n being i and 2n-1-i).
 *
 * Nothing in the graph depends on the order of a sequence's rows: positions and segments are operands. So only the inputs are dealt: each is there
 * whole, and the piece that the layout gives a rank is not cut out of it in a row, but dealt. A graph that gives back a row for each token keeps the
 * plain order. */
#include "graph/op.h"
#include "passes/partition.h"

/* The innermost axis that cuts v's rows, if they are to be dealt over it; -1: none. */
static int dealt_axis(const hd_graph *g, hd_value v)
{
    const hd_value_info *i = &g->values[v];
    const hd_dim_layout *d = i->layout ? &i->layout->dim[0] : NULL;
    if (!d || !i->whole.rank || !d->n) return -1;
    int axis = d->axis[d->n - 1];
    return g->zigzag >> axis & 1 && g->mesh.axis[axis].size > 1 ? axis : -1;
}

static bool gives_rows(const hd_graph *g)
{
    for (size_t i = 0; i < g->n_outputs; i++) {
        const hd_value_info *v = &g->values[g->outputs[i].value];
        if (v->micro == HD_TIME_SPLIT && (v->layout ? v->whole.rank : v->type.shape.rank) > 0) return true;
    }
    return false;
}

static void read_instead(hd_graph *g, hd_value from, hd_value to, size_t n_nodes)
{
    for (size_t i = 0; i < n_nodes; i++)
        for (int k = 0; k < g->nodes[i]->n_in; k++)
            if (g->nodes[i]->in[k] == from) g->nodes[i]->in[k] = to;
}

static void deal(hd_graph *g, hd_value v, int axis, size_t n_nodes)
{
    const hd_value_info i = g->values[v];
    hd_layout whole = *i.layout;
    hd_comm_attrs at = {.dim = 0, .extent = i.type.shape.dim[0]};
    const int8_t axes = (int8_t)axis;
    whole.dim[0].n--;
    hd_mesh_print_axes(&g->mesh, &axes, 1, at.axes, sizeof at.axes);
    hd_layout *copy = hd_arena_copy(&g->arena, &whole, sizeof whole);
    if (!copy) {
        hd_fail_memory(&g->err, sizeof whole, "dealing tokens");
        return;
    }
    g->values[v].layout = copy;
    g->values[v].type.shape = hd_layout_largest(&g->mesh, copy, &i.whole);
    hd_value y = hd_graph_node(g, "deal", hd_arena_printf(&g->arena, "%s.dealt", i.path), &at, &v, 1);
    if (g->err.code) return;
    g->values[y].layout = i.layout;
    g->values[y].whole = i.whole;
    read_instead(g, v, y, n_nodes);
}

/* The last n nodes go to the front. */
static void rotate(hd_graph *g, size_t n)
{
    hd_node **last = hd_arena_copy(&g->arena, g->nodes + g->n_nodes - n, n * sizeof *last);
    if (!last) {
        hd_fail_memory(&g->err, n, "dealing tokens");
        return;
    }
    memmove(g->nodes + n, g->nodes, (g->n_nodes - n) * sizeof *g->nodes);
    memcpy(g->nodes, last, n * sizeof *last);
    for (size_t i = 0; i < g->n_nodes; i++)
        for (int k = 0; k < g->nodes[i]->n_out; k++) g->values[g->nodes[i]->out[k]].node = (int)i;
}

int hd_pass_deal(hd_graph *g)
{
    if (g->err.code || gives_rows(g)) return g->err.code;
    const char *scope = g->scope;
    const hd_node *origin = g->origin;
    hd_phase phase = g->phase;
    int chunk = g->chunk, slice = g->slice;
    size_t n_values = g->n_values, n_nodes = g->n_nodes;
    g->scope = "";
    g->origin = NULL;
    g->phase = HD_FORWARD;
    g->chunk = g->stage;
    g->slice = 0;
    for (size_t v = 0; v < n_values && !g->err.code; v++) {
        bool input = g->values[v].kind == HD_INPUT && g->values[v].micro == HD_TIME_SPLIT;
        int axis = input ? dealt_axis(g, (hd_value)v) : -1;
        if (axis >= 0) deal(g, (hd_value)v, axis, n_nodes);
    }
    if (!g->err.code && g->n_nodes > n_nodes) rotate(g, g->n_nodes - n_nodes);
    g->scope = scope;
    g->origin = origin;
    g->phase = phase;
    g->chunk = chunk;
    g->slice = slice;
    return g->err.code;
}
