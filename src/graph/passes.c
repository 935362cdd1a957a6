/* passes.c: passes over any graph that know nothing of particular ops. */
#include "base/rng.h"
#include "graph/graph.h"
#include "graph/op.h"

void hd_graph_keep_nodes(hd_graph *g, const bool *keep)
{
    size_t n = 0;
    for (size_t i = 0; i < g->n_nodes; i++) {
        if (!keep[i]) continue;
        g->nodes[n] = g->nodes[i];
        for (int k = 0; k < g->nodes[n]->n_out; k++) g->values[g->nodes[n]->out[k]].node = (int)n;
        n++;
    }
    g->n_nodes = n;
}

/* ---- order ---- */

typedef struct sorter {
    hd_graph *g;
    hd_node **order;
    size_t n;
    bool *done; /* [nodes] */
} sorter;

/* Node i after what it reads. Depth is that of the nodes out of order. */
static void emit_sorted(sorter *s, int i)
{
    if (s->done[i]) return;
    s->done[i] = true;
    const hd_node *n = s->g->nodes[i];
    for (int k = 0; k < n->n_in; k++)
        if (n->in[k] != HD_NONE && s->g->values[n->in[k]].node >= 0) emit_sorted(s, s->g->values[n->in[k]].node);
    s->order[s->n++] = s->g->nodes[i];
}

int hd_graph_sort(hd_graph *g)
{
    if (g->err.code) return g->err.code;
    sorter s = {.g = g, .order = hd_calloc(g->n_nodes + 1, sizeof *s.order), .done = hd_calloc(g->n_nodes + 1, sizeof *s.done)};
    if (s.order && s.done) {
        for (size_t i = 0; i < g->n_nodes; i++) emit_sorted(&s, (int)i);
        memcpy(g->nodes, s.order, g->n_nodes * sizeof *s.order);
        for (size_t i = 0; i < g->n_nodes; i++)
            for (int k = 0; k < g->nodes[i]->n_out; k++) g->values[g->nodes[i]->out[k]].node = (int)i;
    } else {
        hd_fail_memory(&g->err, g->n_nodes, "sorting the graph");
    }
    hd_free(s.order);
    hd_free(s.done);
    return g->err.code;
}

static void set_depths(const hd_graph *g, int *depth, int *most)
{
    for (size_t i = 0; i < g->n_nodes; i++) {
        const hd_node *n = g->nodes[i];
        for (int k = 0; k < n->n_in; k++) {
            int maker = n->in[k] == HD_NONE ? -1 : g->values[n->in[k]].node;
            if (maker >= 0 && depth[maker] >= depth[i]) depth[i] = depth[maker] + 1;
        }
        if (depth[i] > *most) *most = depth[i];
    }
}

int hd_graph_sort_by_depth(hd_graph *g)
{
    if (g->err.code) return g->err.code;
    int *depth = hd_calloc(g->n_nodes + 1, sizeof *depth), most = 0;
    hd_node **order = hd_calloc(g->n_nodes + 1, sizeof *order);
    if (depth && order) {
        size_t at = 0;
        set_depths(g, depth, &most);
        for (int d = 0; d <= most; d++)
            for (size_t i = 0; i < g->n_nodes; i++)
                if (depth[i] == d) order[at++] = g->nodes[i];
        memcpy(g->nodes, order, g->n_nodes * sizeof *order);
        for (size_t i = 0; i < g->n_nodes; i++)
            for (int k = 0; k < g->nodes[i]->n_out; k++) g->values[g->nodes[i]->out[k]].node = (int)i;
    } else {
        hd_fail_memory(&g->err, g->n_nodes, "sorting the graph");
    }
    hd_free(depth);
    hd_free(order);
    return g->err.code;
}

/* ---- common subexpressions ---- */

static uint64_t node_hash(const hd_node *n)
{
    uint64_t h = hd_hash_string(n->op->name);
    for (int i = 0; i < n->n_in; i++) h = hd_hash_mix(h, (uint64_t)(uint32_t)n->in[i]);
    const unsigned char *a = n->attrs;
    for (size_t i = 0; i < n->op->attrs_size; i++) h = (h ^ a[i]) * 0x100000001b3ull;
    return h;
}

static bool node_same(const hd_node *a, const hd_node *b)
{
    return a->op == b->op && a->n_in == b->n_in && a->n_out == b->n_out && !memcmp(a->in, b->in, (size_t)a->n_in * sizeof *a->in) &&
           (!a->op->attrs_size || !memcmp(a->attrs, b->attrs, a->op->attrs_size));
}

static bool makes_state(const bool *state, const hd_node *n)
{
    for (int k = 0; k < n->n_out; k++)
        if (state[n->out[k]]) return true;
    return false;
}

static void replace_uses(hd_graph *g, const hd_value *to)
{
    for (size_t i = 0; i < g->n_outputs; i++) g->outputs[i].value = to[g->outputs[i].value];
    for (size_t i = 0; i < g->n_pairs; i++) g->pairs[i].out = to[g->pairs[i].out];
}

static void merge_nodes(hd_graph *g, hd_value *to, bool *keep, const bool *state, int32_t *table, size_t cap)
{
    for (size_t i = 0; i < g->n_nodes; i++) {
        hd_node *n = g->nodes[i];
        for (int k = 0; k < n->n_in; k++)
            if (n->in[k] != HD_NONE) n->in[k] = to[n->in[k]];
        keep[i] = true;
        if (makes_state(state, n)) continue;
        size_t at = node_hash(n) & (cap - 1);
        while (table[at] >= 0 && !node_same(g->nodes[table[at]], n)) at = (at + 1) & (cap - 1);
        if (table[at] < 0) {
            table[at] = (int32_t)i;
            continue;
        }
        keep[i] = false;
        for (int k = 0; k < n->n_out; k++) to[n->out[k]] = g->nodes[table[at]]->out[k];
    }
}

int hd_graph_cse(hd_graph *g)
{
    if (g->err.code) return g->err.code;
    size_t cap = 64;
    while (cap < 2 * g->n_nodes) cap *= 2;
    hd_value *to = hd_calloc(g->n_values + 1, sizeof *to);
    bool *keep = hd_calloc(g->n_nodes + 1, sizeof *keep), *state = hd_calloc(g->n_values + 1, sizeof *state); /* [values] what a state becomes */
    int32_t *table = hd_malloc(cap * sizeof *table);
    if (to && keep && state && table) {
        for (size_t p = 0; p < g->n_pairs; p++) state[g->pairs[p].out] = true;
        memset(table, 0xff, cap * sizeof *table);
        for (size_t i = 0; i < g->n_values; i++) to[i] = (hd_value)i;
        merge_nodes(g, to, keep, state, table, cap);
        replace_uses(g, to);
        hd_graph_keep_nodes(g, keep);
    } else {
        hd_fail_memory(&g->err, cap, "merging common subexpressions");
    }
    hd_free(to);
    hd_free(keep);
    hd_free(state);
    hd_free(table);
    return g->err.code;
}

/* ---- dead code ---- */

int hd_graph_dce(hd_graph *g)
{
    if (g->err.code) return g->err.code;
    bool *live = hd_calloc(g->n_values + 1, sizeof *live), *keep = hd_calloc(g->n_nodes + 1, sizeof *keep);
    if (!live || !keep) {
        hd_free(live);
        hd_free(keep);
        return hd_fail_memory(&g->err, g->n_values, "dropping dead nodes");
    }
    for (size_t i = 0; i < g->n_outputs; i++) live[g->outputs[i].value] = true;
    for (size_t i = 0; i < g->n_pairs; i++) live[g->pairs[i].out] = true;
    for (size_t i = g->n_nodes; i-- > 0;) {
        const hd_node *n = g->nodes[i];
        keep[i] = n->op->has_effect;
        for (int k = 0; k < n->n_out; k++) keep[i] |= live[n->out[k]];
        for (int k = 0; keep[i] && k < n->n_in; k++)
            if (n->in[k] != HD_NONE) live[n->in[k]] = true;
    }
    hd_graph_keep_nodes(g, keep);
    hd_free(live);
    hd_free(keep);
    return 0;
}
