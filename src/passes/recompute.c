/* recompute.c: what backward needs again and is cheap to make again is not kept (Chen et al. 2016, in its simplest form).
 *
 * An elementwise result of the forward phase that backward reads is computed a second time there, when all its operands are kept anyway
 * (backward reads them too, they last the whole step, or they are themselves made again). A GELU over a Transformer's widest activation so costs
 * one pass over memory instead of a fifth of all that is kept. */
#include "graph/op.h"
#include "passes/passes.h"

typedef struct recompute {
    hd_graph *g;
    bool *kept;      /* [values] a backward node reads it */
    hd_value *again; /* [values] its second computation, HD_NONE: none */
} recompute;

static bool is_elementwise(const hd_node *n)
{
    return n->op->attrs_size == sizeof(hd_ew_attrs) && n->n_out == 1 && !strcmp(n->op->name, hd_ew_name((hd_ew)n->op->code));
}

static bool is_output(const hd_graph *g, hd_value v)
{
    for (size_t i = 0; i < g->n_outputs; i++)
        if (g->outputs[i].value == v) return true;
    return false;
}

static bool worth_it(const recompute *r, const hd_node *n)
{
    const hd_graph *g = r->g;
    hd_value y = n->out[0];
    if (n->phase != HD_FORWARD || !is_elementwise(n) || !r->kept[y] || g->values[y].micro == HD_TIME_REPLICATE || is_output(g, y)) return false;
    for (int k = 0; k < n->n_in; k++) {
        hd_value x = n->in[k];
        if (!r->kept[x] && r->again[x] == HD_NONE && g->values[x].micro != HD_TIME_REPLICATE) return false;
    }
    return true;
}

static void compute_again(recompute *r, const hd_node *n)
{
    hd_graph *g = r->g;
    hd_value in[3];
    for (int k = 0; k < n->n_in; k++) in[k] = r->again[n->in[k]] != HD_NONE ? r->again[n->in[k]] : n->in[k];
    r->again[n->out[0]] = hd_graph_node(g, n->op->name, n->path, n->attrs, in, n->n_in);
}

static int run(recompute *r, size_t n_nodes)
{
    hd_graph *g = r->g;
    for (size_t i = 0; i < n_nodes; i++)
        for (int k = 0; k < g->nodes[i]->n_in; k++)
            if (g->nodes[i]->phase != HD_FORWARD && g->nodes[i]->in[k] != HD_NONE) r->kept[g->nodes[i]->in[k]] = true;
    for (size_t v = 0; v < g->n_values; v++) r->again[v] = HD_NONE;
    g->scope = "again";
    g->phase = HD_BACKWARD;
    for (size_t i = 0; i < n_nodes && !g->err.code; i++)
        if (worth_it(r, g->nodes[i])) compute_again(r, g->nodes[i]);
    for (size_t i = 0; i < n_nodes && !g->err.code; i++)
        for (int k = 0; k < g->nodes[i]->n_in; k++) {
            hd_value x = g->nodes[i]->in[k];
            if (g->nodes[i]->phase != HD_FORWARD && x != HD_NONE && r->again[x] != HD_NONE) g->nodes[i]->in[k] = r->again[x];
        }
    return hd_graph_sort(g);
}

int hd_pass_recompute_elementwise(hd_graph *g)
{
    if (g->err.code) return g->err.code;
    const char *scope = g->scope;
    hd_phase phase = g->phase;
    recompute r = {.g = g, .kept = hd_calloc(g->n_values, sizeof *r.kept), .again = hd_calloc(g->n_values, sizeof *r.again)};
    if (r.kept && r.again) run(&r, g->n_nodes);
    else hd_fail_memory(&g->err, g->n_values, "recomputation");
    hd_free(r.kept);
    hd_free(r.again);
    g->scope = scope;
    g->phase = phase;
    return g->err.code;
}
