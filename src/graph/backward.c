/* backward.c: reverse-mode differentiation, Graph -> Graph. */
#include "graph/graph.h"
#include "graph/op.h"

typedef struct backward {
    hd_graph *g;
    size_t n_values;  /* values that existed before */
    bool *needed;     /* [n_values] a wanted value lies at or behind it */
    hd_value *grad;   /* [n_values] sum of the contributions so far, HD_NONE: none */
} backward;

static void mark_needed(backward *b, const hd_value *wrt, int n)
{
    const hd_graph *g = b->g;
    for (int i = 0; i < n; i++) b->needed[wrt[i]] = true;
    for (size_t i = 0; i < g->n_nodes; i++) {
        const hd_node *node = g->nodes[i];
        bool any = false;
        for (int k = 0; k < node->n_in; k++) any |= node->in[k] != HD_NONE && b->needed[node->in[k]];
        for (int k = 0; k < node->n_out; k++) b->needed[node->out[k]] |= any;
    }
}

/* A value of the step (weights, or what is computed from them once) sums the pieces of all micro-batches: d, or its sum. */
static hd_value sum_of_pieces(hd_graph *g, hd_value v, hd_value d)
{
    if (d == HD_NONE || g->err.code) return d;
    if (g->values[v].micro != HD_TIME_REPLICATE || g->values[d].micro == HD_TIME_REPLICATE) return d;
    const char *scope = g->scope;
    g->scope = "grad";
    hd_value sum = hd_graph_node(g, "micro_sum", g->values[v].path, NULL, &d, 1);
    g->scope = scope;
    return sum;
}

/* Adds a contribution to the gradient of v. Where one of two is a piece per call and the other the step's already (a weight that is read both
 * as it is and rounded once per step), each is summed over the calls by itself. */
static void contribute(backward *b, hd_value v, hd_value d)
{
    hd_graph *g = b->g;
    hd_value old = b->grad[v];
    if (old != HD_NONE && d != HD_NONE && !g->err.code && g->values[old].micro != g->values[d].micro) {
        old = sum_of_pieces(g, v, old);
        d = sum_of_pieces(g, v, d);
    }
    b->grad[v] = hd_add(g, old, d);
}

static bool gather_results(const backward *b, const hd_node *n, hd_value *dy)
{
    bool any = false;
    for (int k = 0; k < n->n_out; k++) {
        dy[k] = b->grad[n->out[k]];
        any |= dy[k] != HD_NONE;
    }
    return any;
}

static void node_backward(backward *b, const hd_node *n)
{
    hd_graph *g = b->g;
    hd_value dy[HD_MAX_RESULTS];
    for (int k = 0; k < n->n_out; k++) b->grad[n->out[k]] = sum_of_pieces(g, n->out[k], b->grad[n->out[k]]);
    if (!gather_results(b, n, dy) || !n->op->grad) return;
    for (int k = 0; k < n->n_in && !g->err.code; k++) {
        if (n->in[k] == HD_NONE || !b->needed[n->in[k]]) continue;
        const char *scope = hd_arena_printf(&g->arena, "grad.%s", n->path);
        g->scope = scope ? scope : "grad";
        g->origin = n;
        hd_value d = n->op->grad(g, n, dy, k);
        g->origin = NULL;
        contribute(b, n->in[k], d);
    }
}

static int run(backward *b, hd_value loss, const hd_value *wrt, int n, hd_value *grad)
{
    hd_graph *g = b->g;
    size_t n_nodes = g->n_nodes;
    mark_needed(b, wrt, n);
    for (size_t i = 0; i < b->n_values; i++) b->grad[i] = HD_NONE;
    b->grad[loss] = hd_graph_scalar(g, 1, g->values[loss].type.dtype);
    for (size_t i = n_nodes; i-- > 0 && !g->err.code;) {
        const hd_node *node = g->nodes[i];
        bool wanted = false;
        for (int k = 0; k < node->n_out; k++) wanted |= b->needed[node->out[k]];
        if (wanted) node_backward(b, node);
    }
    for (int i = 0; i < n; i++) {
        if (g->values[wrt[i]].kind != HD_RESULT) b->grad[wrt[i]] = sum_of_pieces(g, wrt[i], b->grad[wrt[i]]);
        grad[i] = b->grad[wrt[i]];
        for (int k = 0; k < i; k++)
            if (wrt[k] == wrt[i]) grad[i] = grad[k];
    }
    return g->err.code;
}

int hd_graph_backward(hd_graph *g, hd_value loss, const hd_value *wrt, int n, hd_value *grad)
{
    if (g->err.code) return g->err.code;
    if (g->values[loss].type.shape.rank != 0) {
        char t[80];
        hd_graph_fail(g, HD_EINVAL, "the loss must be a scalar, \"%s\" is %s", g->values[loss].path, hd_type_format(t, sizeof t, &g->values[loss].type, g));
        return g->err.code;
    }
    const char *scope = g->scope;
    hd_phase phase = g->phase;
    backward b = {.g = g, .n_values = g->n_values};
    b.needed = hd_calloc(g->n_values, sizeof *b.needed);
    b.grad = hd_calloc(g->n_values, sizeof *b.grad);
    g->phase = HD_BACKWARD;
    if (!b.needed || !b.grad) hd_fail_memory(&g->err, g->n_values, "the gradients");
    else run(&b, loss, wrt, n, grad);
    g->phase = phase;
    g->scope = scope;
    hd_free(b.needed);
    hd_free(b.grad);
    return g->err.code;
}
