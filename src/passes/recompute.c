/* recompute.c: what backward needs again is made again instead of being kept (Chen et al. 2016): what is cheap to make, or what a plan names.
 *
 * Cheap: an elementwise result of the forward phase that backward reads is computed a second time there, when all its operands are kept anyway
 * (backward reads them too, they last the whole step, or they are themselves made again). A GELU over a Transformer's widest activation so costs
 * one pass over memory instead of a fifth of all that is kept.
 *
 * Named: the nodes that lead from what is kept to a named value that backward reads have clones in backward, each just before its first reader. As
 * backward goes through the layers one by one, one layer's clones live at a time. */
#include <string.h>

#include "graph/op.h"
#include "passes/partition.h"
#include "passes/passes.h"

int hd_pass_share_gathers(hd_graph *g)
{
    if (g->err.code) return g->err.code;
    hd_node **first = hd_calloc(g->n_values + 1, sizeof *first); /* [values] the first gather of it in backward */
    hd_value *to = hd_calloc(g->n_values + 1, sizeof *to);
    for (size_t v = 0; to && v < g->n_values; v++) to[v] = (hd_value)v;
    for (size_t i = 0; first && to && i < g->n_nodes; i++) {
        hd_node *n = g->nodes[i];
        for (int k = 0; k < n->n_in; k++)
            if (n->in[k] != HD_NONE) n->in[k] = to[n->in[k]];
        if (n->phase != HD_BACKWARD || !n->op->is_comm || strcmp(n->op->name, "all_gather")) continue;
        hd_node *same = first[n->in[0]];
        if (!same) first[n->in[0]] = n;
        else if (!memcmp(same->attrs, n->attrs, n->op->attrs_size)) to[n->out[0]] = same->out[0];
    }
    if (!first || !to) hd_fail_memory(&g->err, g->n_values, "recomputation");
    hd_free(first);
    hd_free(to);
    return g->err.code;
}

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
    if (n->phase != HD_FORWARD || !is_elementwise(n)) return false;
    hd_value y = n->out[0];
    if (!r->kept[y] || g->values[y].micro == HD_TIME_REPLICATE || is_output(g, y)) return false;
    for (int k = 0; k < n->n_in; k++) {
        hd_value x = n->in[k];
        if (!r->kept[x] && r->again[x] == HD_NONE && g->values[x].micro != HD_TIME_REPLICATE && !hd_is_regathered(g, x)) return false;
    }
    return true;
}

static hd_value gather_again(recompute *r, hd_value x)
{
    hd_graph *g = r->g;
    if (r->again[x] != HD_NONE || !hd_is_regathered(g, x)) return r->again[x] != HD_NONE ? r->again[x] : x;
    const hd_node *n = g->nodes[g->values[x].node];
    hd_value from = gather_again(r, n->in[0]);
    g->origin = n;
    const hd_node *clone = hd_graph_clone(g, n, "again", &from, 1);
    return clone ? r->again[x] = clone->out[0] : x;
}

static void compute_again(recompute *r, const hd_node *n)
{
    hd_graph *g = r->g;
    hd_value in[3];
    for (int k = 0; k < n->n_in; k++) in[k] = gather_again(r, n->in[k]);
    g->origin = n;
    const hd_node *clone = hd_graph_clone(g, n, "again", in, n->n_in); /* lies over a mesh as the original does */
    if (clone) r->again[n->out[0]] = clone->out[0];
}

static int run(recompute *r, size_t n_nodes)
{
    hd_graph *g = r->g;
    for (size_t i = 0; i < n_nodes; i++)
        for (int k = 0; k < g->nodes[i]->n_in; k++)
            if (g->nodes[i]->phase != HD_FORWARD && g->nodes[i]->in[k] != HD_NONE) r->kept[g->nodes[i]->in[k]] = true;
    for (size_t v = 0; v < g->n_values; v++) r->again[v] = HD_NONE;
    g->phase = HD_BACKWARD;
    for (size_t i = 0; i < n_nodes && !g->err.code; i++)
        if (worth_it(r, g->nodes[i])) compute_again(r, g->nodes[i]);
    for (size_t i = 0; i < n_nodes && !g->err.code; i++)
        for (int k = 0; k < g->nodes[i]->n_in; k++) {
            hd_value x = g->nodes[i]->in[k];
            if (g->nodes[i]->phase != HD_FORWARD && x != HD_NONE && r->again[x] != HD_NONE) g->nodes[i]->in[k] = r->again[x];
        }
    hd_graph_sort(g);
    return g->err.code;
}

int hd_pass_recompute_elementwise(hd_graph *g)
{
    if (g->err.code) return g->err.code;
    hd_phase phase = g->phase;
    const hd_node *origin = g->origin;
    recompute r = {.g = g, .kept = hd_calloc(g->n_values, sizeof *r.kept), .again = hd_calloc(g->n_values, sizeof *r.again)};
    if (r.kept && r.again) run(&r, g->n_nodes);
    else hd_fail_memory(&g->err, g->n_values, "recomputation");
    hd_free(r.kept);
    hd_free(r.again);
    g->phase = phase;
    g->origin = origin;
    return g->err.code;
}

/* ---- a named set ---- */

typedef struct named {
    hd_graph *g;
    size_t n_nodes;       /* before any clone */
    const char (*patterns)[64];
    int n_patterns;
    bool *match;          /* [values] is not kept for backward */
    bool *again;          /* [nodes] has a clone */
    hd_value *clone;      /* [values] of the original graph; HD_NONE: none */
    const hd_node **made; /* [nodes] the clone */
    hd_node **order;      /* nodes and clones in the new order */
    size_t n_order;
    bool *placed;         /* [nodes] the clone stands in order already */
} named;

static bool is_named(const named *r, hd_value v)
{
    for (int i = 0; i < r->n_patterns; i++)
        if (hd_path_match(r->patterns[i], r->g->values[v].path)) return true;
    return false;
}

/* What moves a named value between ranks makes a named value: it lies between two that are made again. */
static void match_values(named *r)
{
    for (size_t i = 0; i < r->n_nodes; i++) {
        const hd_node *n = r->g->nodes[i];
        if (n->phase != HD_FORWARD || n->op->has_effect || n->op->max_in == 0) continue; /* what another stage sends comes once: it is kept */
        for (int k = 0; k < n->n_out; k++) {
            hd_value v = n->out[k];
            if (r->g->values[v].micro == HD_TIME_REPLICATE || is_output(r->g, v)) continue;
            bool moved = n->op->is_comm && n->in[0] != HD_NONE && r->match[n->in[0]];
            r->match[v] = is_named(r, v) || moved || hd_is_regathered(r->g, v);
        }
    }
}

/* The result of a norm that is the sum of its operand and its residual, if that is kept: the clone then is a norm of the sum, without a residual.
 * Otherwise a layer's first norm would make all layers before it again. HD_NONE: not such a norm. */
static hd_value kept_sum(const named *r, const hd_node *n, int *n_in)
{
    bool layer = !strcmp(n->op->name, "layer_norm");
    int residual = layer ? 3 : 2;
    if ((!layer && strcmp(n->op->name, "rms_norm")) || n->n_in <= residual || n->in[residual] == HD_NONE) return HD_NONE;
    hd_value sum = n->out[residual]; /* the sum stands among the results where the residual does among the operands */
    if (r->match[sum] || r->g->values[sum].type.dtype != HD_F32) return HD_NONE;
    *n_in = residual;
    return sum;
}

static void want(named *r, hd_value v)
{
    if (v != HD_NONE && r->match[v]) r->again[r->g->values[v].node] = true;
}

static void find_nodes(named *r)
{
    const hd_graph *g = r->g;
    for (size_t i = r->n_nodes; i-- > 0;) {
        const hd_node *n = g->nodes[i];
        int n_in = n->n_in;
        if (n->phase == HD_FORWARD && (!r->again[i] || kept_sum(r, n, &n_in) != HD_NONE)) continue;
        for (int k = 0; k < n_in; k++) want(r, n->in[k]);
    }
}

static hd_value instead(const named *r, hd_value v)
{
    return v != HD_NONE && r->clone[v] != HD_NONE ? r->clone[v] : v;
}

static void make_clone(named *r, size_t i)
{
    hd_graph *g = r->g;
    const hd_node *n = g->nodes[i];
    hd_value in[HD_MAX_OPERANDS];
    int n_in = n->n_in;
    hd_value sum = kept_sum(r, n, &n_in);
    for (int k = 0; k < n_in; k++) in[k] = instead(r, n->in[k]);
    if (sum != HD_NONE) in[0] = sum;
    g->origin = n;
    const hd_node *clone = r->made[i] = hd_graph_clone(g, n, "again", in, n_in);
    for (int k = 0; clone && k < n->n_out; k++)
        if (r->match[n->out[k]]) r->clone[n->out[k]] = clone->out[k];
}

/* The clone that makes v, and before it those that it reads. Depth is that of the named nodes in a row. */
static void place_clone(named *r, int i)
{
    if (r->placed[i]) return;
    r->placed[i] = true;
    const hd_node *original = r->g->nodes[i];
    int n_in = original->n_in;
    bool from_sum = kept_sum(r, original, &n_in) != HD_NONE;
    for (int k = from_sum ? n_in : 0; k < n_in; k++)
        if (original->in[k] != HD_NONE && r->clone[original->in[k]] != HD_NONE) place_clone(r, r->g->values[original->in[k]].node);
    r->order[r->n_order++] = (hd_node *)r->made[i];
}

static void put_in_order(named *r)
{
    hd_graph *g = r->g;
    for (size_t i = 0; i < r->n_nodes; i++) {
        hd_node *n = g->nodes[i];
        for (int k = 0; k < n->n_in && n->phase != HD_FORWARD; k++) {
            if (n->in[k] == HD_NONE || r->clone[n->in[k]] == HD_NONE) continue;
            place_clone(r, g->values[n->in[k]].node);
            n->in[k] = r->clone[n->in[k]];
        }
        r->order[r->n_order++] = n;
    }
    memcpy(g->nodes, r->order, r->n_order * sizeof *r->order);
    g->n_nodes = r->n_order;
    for (size_t i = 0; i < g->n_nodes; i++)
        for (int k = 0; k < g->nodes[i]->n_out; k++) g->values[g->nodes[i]->out[k]].node = (int)i;
}

static void run_named(named *r)
{
    hd_graph *g = r->g;
    size_t n_values = g->n_values;
    for (size_t v = 0; v < n_values; v++) r->clone[v] = HD_NONE;
    match_values(r);
    find_nodes(r);
    g->phase = HD_BACKWARD;
    for (size_t i = 0; i < r->n_nodes && !g->err.code; i++)
        if (r->again[i]) make_clone(r, i);
    if (g->err.code) return;
    put_in_order(r);
}

int hd_pass_recompute(hd_graph *g, const char (*patterns)[64], int n)
{
    if (g->err.code || n == 0) return g->err.code;
    hd_phase phase = g->phase;
    const hd_node *origin = g->origin;
    named r = {.g = g, .n_nodes = g->n_nodes, .patterns = patterns, .n_patterns = n};
    size_t nodes = g->n_nodes + 1, values = g->n_values + 1;
    r.match = hd_calloc(values, sizeof *r.match);
    r.clone = hd_calloc(values, sizeof *r.clone);
    r.again = hd_calloc(nodes, sizeof *r.again);
    r.made = hd_calloc(nodes, sizeof *r.made);
    r.placed = hd_calloc(nodes, sizeof *r.placed);
    r.order = hd_calloc(2 * nodes, sizeof *r.order);
    if (r.match && r.clone && r.again && r.made && r.placed && r.order) run_named(&r);
    else hd_fail_memory(&g->err, nodes, "recomputation");
    void *const all[] = {r.match, r.clone, r.again, r.made, r.placed, r.order};
    for (int i = 0; i < 6; i++) hd_free(all[i]);
    g->phase = phase;
    g->origin = origin;
    return g->err.code;
}
