/* fuse_norm.c: norm(a + b) -> one norm with a residual operand; its `sum` result takes the place of a + b. */
#include "graph/op.h"
#include "passes/passes.h"

/* Where the residual stands among the operands and `sum` among the results. */
typedef struct norm_layout { const char *op; int residual, sum; } norm_layout;
static const norm_layout layouts[] = {{"layer_norm", 3, 3}, {"rms_norm", 2, 2}};

static const norm_layout *layout_of(const hd_node *n)
{
    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++)
        if (!strcmp(n->op->name, layouts[i].op)) return &layouts[i];
    return NULL;
}

/* The add whose sum node n normalises, if nothing reads that sum before n. */
static const hd_node *summed_before(const hd_graph *g, size_t n)
{
    hd_value x = g->nodes[n]->in[0];
    const hd_value_info *info = &g->values[x];
    if (info->node < 0 || strcmp(g->nodes[info->node]->op->name, "add")) return NULL;
    if (info->type.dtype != HD_F32 && info->type.dtype != HD_F64) return NULL; /* the fused norm would read the sum before it is rounded */
    const hd_node *add = g->nodes[info->node];
    if (!hd_type_equal(&info->type, hd_type_in(g, add->in[0])) || !hd_type_equal(&info->type, hd_type_in(g, add->in[1]))) return NULL;
    for (size_t i = (size_t)info->node + 1; i < n; i++)
        for (int k = 0; k < g->nodes[i]->n_in; k++)
            if (g->nodes[i]->in[k] == x) return NULL;
    return add;
}

static void replace_reads(hd_graph *g, hd_value from, hd_value to, size_t after)
{
    for (size_t i = after + 1; i < g->n_nodes; i++)
        for (int k = 0; k < g->nodes[i]->n_in; k++)
            if (g->nodes[i]->in[k] == from) g->nodes[i]->in[k] = to;
    for (size_t i = 0; i < g->n_outputs; i++)
        if (g->outputs[i].value == from) g->outputs[i].value = to;
    for (size_t i = 0; i < g->n_pairs; i++)
        if (g->pairs[i].out == from) g->pairs[i].out = to;
}

static int fuse(hd_graph *g, size_t at, const norm_layout *l, const hd_node *add)
{
    hd_node *n = g->nodes[at];
    hd_value x = n->in[0], *in = hd_arena_alloc(&g->arena, (size_t)(l->residual + 1) * sizeof *in);
    if (!in) return hd_fail_memory(&g->err, 64, "a fused norm");
    for (int k = 0; k < l->residual; k++) in[k] = k < n->n_in ? n->in[k] : HD_NONE;
    in[0] = add->in[0];
    in[l->residual] = add->in[1];
    n->in = in;
    n->n_in = l->residual + 1;
    ((hd_norm_attrs *)n->attrs)->sum_dtype = g->values[x].type.dtype;
    g->values[n->out[l->sum]].type = g->values[x].type;
    replace_reads(g, x, n->out[l->sum], at);
    return 0;
}

int hd_pass_fuse_residual_norm(hd_graph *g)
{
    for (size_t i = 0; i < g->n_nodes && !g->err.code; i++) {
        const norm_layout *l = layout_of(g->nodes[i]);
        if (!l || (l->residual < g->nodes[i]->n_in && g->nodes[i]->in[l->residual] != HD_NONE)) continue;
        const hd_node *add = summed_before(g, i);
        if (add) fuse(g, i, l, add);
    }
    return g->err.code ? g->err.code : hd_graph_dce(g);
}
