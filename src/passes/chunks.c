/* chunks.c: which chunk of the pipeline each node belongs to.
 *
 *   forward    by position. What depends on nothing but values of the step (casts of weights) goes to the first chunk that reads it.
 *   backward   to the chunk of the node that it differentiates. What has no such node (sums of contributions, nodes that other passes made) goes to
 *              the first chunk among those of its gradients: contributions come in the order of chunks backwards, so what one chunk contributes is
 *              summed there before it is sent on, in the order in which one rank would sum it.
 *   update     to the home of its parameter: the first chunk that reads it.
 * So activations only ever go to later chunks and their gradients to earlier ones. */
#include <stdlib.h>

#include "graph/op.h"
#include "passes/partition.h"

enum { UNKNOWN = -2, EVERYWHERE = -1 };

typedef struct chunker {
    hd_graph *g;
    const hd_node **live; /* [n_nodes] sorted by address */
    int *furthest;        /* [n_values] the last chunk in which forward makes or reads it, UNKNOWN: none */
    int *home;            /* [n_values] the first chunk that reads it before the update, UNKNOWN: none */
    bool rewritten;
} chunker;

static bool is_op(const hd_node *n, const char *name) { return !strcmp(n->op->name, name); }

static const hd_node *maker(const hd_graph *g, hd_value v)
{
    return v == HD_NONE || g->values[v].kind != HD_RESULT ? NULL : g->nodes[g->values[v].node];
}

/* All of its results are the same in every micro-batch. */
static bool is_of_step(const hd_graph *g, const hd_node *n)
{
    for (int k = 0; k < n->n_out; k++)
        if (g->values[n->out[k]].micro != HD_TIME_REPLICATE) return false;
    return true;
}

static int first_of(int a, int b) { return a < 0 || (b >= 0 && b < a) ? b : a; }

/* ---- forward ---- */

static bool begins(const char *path, const char *prefix)
{
    size_t n = strlen(prefix);
    return !strncmp(path, prefix, n) && (path[n] == 0 || path[n] == '.' || path[n] == '@');
}

/* Position of the first forward node under prefix: one of the micro-batch, else any. */
static int find_start(const hd_graph *g, const char *prefix)
{
    int any = -1;
    for (size_t i = 0; i < g->n_nodes; i++) {
        const hd_node *n = g->nodes[i];
        if (n->phase != HD_FORWARD || !begins(n->path, prefix)) continue;
        if (!is_of_step(g, n)) return (int)i;
        if (any < 0) any = (int)i;
    }
    return any;
}

/* A slice of an input's rows is taken where it is wanted: every stage has the inputs. */
static bool is_of_inputs(const hd_graph *g, const hd_node *n)
{
    const hd_value_info *x = n->n_in == 1 && n->in[0] != HD_NONE ? &g->values[n->in[0]] : NULL;
    if (!x || (!is_op(n, "slice") && !is_op(n, "reshape")) || x->micro == HD_TIME_REPLICATE) return false;
    return x->kind == HD_INPUT || (x->kind == HD_RESULT && is_of_inputs(g, g->nodes[x->node]));
}

static int place_forward(hd_graph *g, const char *const *first, int n_first)
{
    int from = 0, begin = 0;
    for (size_t i = 0; i < g->n_nodes; i++) g->nodes[i]->chunk = g->nodes[i]->phase == HD_FORWARD ? n_first : UNKNOWN;
    for (int k = 0; k < n_first; k++) {
        int end = find_start(g, first[k]);
        if (end < 0) return hd_fail(&g->err, HD_EINVAL, "a pipeline is to be cut before \"%s\", but no forward node is called that", first[k]);
        if (end < begin || (k && end == begin))
            return hd_fail(&g->err, HD_EINVAL, "a pipeline is to be cut before \"%s\", which doesn't come behind the cut before it", first[k]);
        for (begin = end; from < end; from++)
            if (g->nodes[from]->phase == HD_FORWARD) g->nodes[from]->chunk = k;
    }
    for (size_t i = 0; i < g->n_nodes; i++)
        if (g->nodes[i]->phase == HD_FORWARD && is_of_inputs(g, g->nodes[i])) g->nodes[i]->chunk = EVERYWHERE;
    return 0;
}

/* Where the residual stands among a norm's operands and `sum` among its results; 0: no norm, or without a residual. */
static int residual_of(const hd_node *n)
{
    int at = is_op(n, "layer_norm") ? 3 : is_op(n, "rms_norm") ? 2 : 0;
    return at && at < n->n_in && n->in[at] != HD_NONE ? at : 0;
}

static void replace_reads(hd_graph *g, hd_value from, hd_value to)
{
    for (size_t i = 0; i < g->n_nodes; i++)
        for (int k = 0; k < g->nodes[i]->n_in; k++)
            if (g->nodes[i]->in[k] == from) g->nodes[i]->in[k] = to;
    for (size_t i = 0; i < g->n_outputs; i++)
        if (g->outputs[i].value == from) g->outputs[i].value = to;
    for (size_t i = 0; i < g->n_pairs; i++)
        if (g->pairs[i].out == from) g->pairs[i].out = to;
}

/* A norm that begins by adding two values of earlier chunks is given their sum, made there: one value crosses instead of two. What backward reads of
 * such a norm is the sum alone (src/ops/norm.c), and the gradients of the two are one value as before. */
static void add_before(hd_graph *g, hd_node *n, int residual)
{
    const hd_node *a = maker(g, n->in[0]), *b = maker(g, n->in[residual]);
    if (!a || !b || a->chunk >= n->chunk || b->chunk >= n->chunk) return;
    hd_ew_attrs at = {.dtype = ((const hd_norm_attrs *)n->attrs)->sum_dtype};
    g->chunk = a->chunk > b->chunk ? a->chunk : b->chunk;
    g->slice = n->slice;
    hd_value sum = hd_graph_node(g, "add", hd_arena_printf(&g->arena, "%s.sum", n->path), &at, (hd_value[]){n->in[0], n->in[residual]}, 2);
    if (sum == HD_NONE) return;
    replace_reads(g, n->out[residual], sum);
    n->in[0] = sum;
    n->in[residual] = HD_NONE;
}

static int add_before_cuts(hd_graph *g)
{
    const char *scope = g->scope;
    hd_phase phase = g->phase;
    size_t n_nodes = g->n_nodes;
    g->scope = "";
    g->phase = HD_FORWARD;
    for (size_t i = 0; i < n_nodes && !g->err.code; i++) {
        int residual = g->nodes[i]->phase == HD_FORWARD ? residual_of(g->nodes[i]) : 0;
        if (residual) add_before(g, g->nodes[i], residual);
    }
    g->scope = scope;
    g->phase = phase;
    g->chunk = g->slice = 0;
    return g->n_nodes > n_nodes ? hd_graph_sort(g) : g->err.code;
}

/* Readers stand behind what they read, so that from the end each is placed before its operands. */
static void place_step_values(chunker *c)
{
    hd_graph *g = c->g;
    for (size_t i = g->n_nodes; i-- > 0;) {
        hd_node *n = g->nodes[i];
        if (n->phase != HD_FORWARD) continue;
        int wanted = UNKNOWN;
        for (int k = 0; k < n->n_out; k++) wanted = first_of(wanted, c->home[n->out[k]]);
        const hd_node *summed = is_op(n, "micro_sum") ? maker(g, n->in[0]) : NULL;
        if (summed) n->chunk = summed->chunk;
        else if (is_of_step(g, n) && wanted >= 0) n->chunk = wanted;
        for (int k = 0; k < n->n_in; k++)
            if (n->in[k] != HD_NONE) c->home[n->in[k]] = first_of(c->home[n->in[k]], n->chunk);
    }
}

static void note_furthest(chunker *c)
{
    const hd_graph *g = c->g;
    for (size_t i = 0; i < g->n_nodes; i++) {
        const hd_node *n = g->nodes[i];
        if (n->phase != HD_FORWARD) continue;
        for (int k = 0; k < n->n_out; k++) c->furthest[n->out[k]] = n->chunk;
        for (int k = 0; k < n->n_in; k++) {
            const hd_node *from = maker(g, n->in[k]);
            if (from && c->furthest[n->in[k]] < n->chunk) c->furthest[n->in[k]] = n->chunk;
        }
    }
}

/* ---- backward ---- */

static int by_address(const void *a, const void *b)
{
    const hd_node *x = *(const hd_node *const *)a, *y = *(const hd_node *const *)b;
    return x < y ? -1 : x > y;
}

static bool is_live(const chunker *c, const hd_node *n)
{
    return n && bsearch(&n, c->live, c->g->n_nodes, sizeof *c->live, by_address);
}

/* The first chunk among its gradients', but no later than what of forward it needs was last seen. UNKNOWN: reads no gradient. */
static int chunk_of_operands(const chunker *c, const hd_node *n)
{
    const hd_graph *g = c->g;
    int gradients = UNKNOWN, values = UNKNOWN;
    for (int k = 0; k < n->n_in; k++) {
        const hd_node *from = maker(g, n->in[k]);
        if (!from) continue;
        if (from->phase != HD_FORWARD) gradients = first_of(gradients, from->chunk);
        else if (g->values[n->in[k]].micro != HD_TIME_REPLICATE && c->furthest[n->in[k]] > values) values = c->furthest[n->in[k]];
    }
    return gradients >= 0 && values >= 0 && values < gradients ? values : gradients;
}

static void place_backward(chunker *c)
{
    hd_graph *g = c->g;
    for (size_t i = 0; i < g->n_nodes; i++) {
        hd_node *n = g->nodes[i];
        if (n->phase != HD_BACKWARD) continue;
        const hd_node *summed = is_op(n, "micro_sum") ? maker(g, n->in[0]) : NULL;
        if (summed) n->chunk = summed->chunk;
        else n->chunk = is_live(c, n->origin) ? n->origin->chunk : chunk_of_operands(c, n);
    }
    int *wanted = c->furthest; /* of gradients, from here on: the last chunk that reads it */
    for (size_t i = g->n_nodes; i-- > 0;) {
        hd_node *n = g->nodes[i];
        if (n->phase != HD_BACKWARD) continue;
        bool unknown = n->chunk == UNKNOWN;
        for (int k = 0; unknown && k < n->n_out; k++)
            if (wanted[n->out[k]] > n->chunk) n->chunk = wanted[n->out[k]];
        if (n->chunk == UNKNOWN) n->chunk = 0;
        for (int k = 0; k < n->n_in; k++) {
            const hd_node *from = maker(g, n->in[k]);
            if (from && from->phase == HD_BACKWARD && wanted[n->in[k]] < n->chunk) wanted[n->in[k]] = n->chunk;
        }
    }
}

/* ---- gradients of what several chunks read ---- */

typedef struct addends { hd_value *list; size_t n, cap; } addends;

static bool is_mixed_sum(const hd_graph *g, hd_value v)
{
    const hd_node *n = maker(g, v);
    if (!n || n->phase != HD_BACKWARD || n->origin || !is_op(n, "add")) return false;
    const hd_node *a = maker(g, n->in[0]), *b = maker(g, n->in[1]);
    bool same_shape = hd_shape_equal(&g->values[n->in[0]].type.shape, &g->values[n->in[1]].type.shape);
    return a && b && same_shape && (a->chunk != b->chunk || is_mixed_sum(g, n->in[0]) || is_mixed_sum(g, n->in[1]));
}

static int collect_addends(const hd_graph *g, hd_value v, addends *out)
{
    if (is_mixed_sum(g, v)) {
        const hd_node *n = maker(g, v);
        int rc = collect_addends(g, n->in[0], out);
        return rc ? rc : collect_addends(g, n->in[1], out);
    }
    if (hd_grow(&out->list, &out->cap, out->n + 1, sizeof *out->list)) return HD_ENOMEM;
    out->list[out->n++] = v;
    return 0;
}

/* The sum over the step of the addends from `at` on that come from the same chunk; they are struck out. */
static hd_value sum_of_chunk(hd_graph *g, addends *a, size_t at, const char *path)
{
    int chunk = maker(g, a->list[at])->chunk;
    hd_value sum = HD_NONE;
    g->chunk = chunk;
    g->phase = HD_BACKWARD;
    for (size_t i = at; i < a->n && !g->err.code; i++) {
        if (a->list[i] == HD_NONE || maker(g, a->list[i])->chunk != chunk) continue;
        sum = hd_add(g, sum, a->list[i]);
        a->list[i] = HD_NONE;
    }
    return hd_graph_node(g, "micro_sum", hd_arena_printf(&g->arena, "%s.chunk%d", path, chunk), NULL, &sum, 1);
}

/* micro_sum(add(a, b)) -> add(micro_sum(a), micro_sum(b)), in place for the last addition, so that the value stays who it is. */
static int split_sum(hd_graph *g, hd_node *n)
{
    addends a = {0};
    hd_value all = HD_NONE;
    const char *scope = g->scope;
    g->scope = "";
    if (collect_addends(g, n->in[0], &a)) hd_fail_memory(&g->err, a.cap, "cutting a graph");
    for (size_t i = 0; i < a.n && !g->err.code; i++) {
        if (a.list[i] == HD_NONE) continue;
        hd_value sum = sum_of_chunk(g, &a, i, n->path);
        g->phase = HD_UPDATE;
        all = hd_add(g, all, sum);
    }
    hd_free(a.list);
    g->scope = scope;
    if (g->err.code) return g->err.code;
    hd_node *last = g->nodes[g->values[all].node]; /* takes the place of n */
    n->op = last->op;
    n->attrs = last->attrs;
    n->in = last->in;
    n->n_in = last->n_in;
    n->phase = last->phase;
    return 0;
}

static int split_sums(chunker *c)
{
    hd_graph *g = c->g;
    hd_phase phase = g->phase;
    size_t n_nodes = g->n_nodes;
    for (size_t i = 0; i < n_nodes && !g->err.code; i++) {
        hd_node *n = g->nodes[i];
        if (n->phase != HD_BACKWARD || !is_op(n, "micro_sum") || !is_mixed_sum(g, n->in[0])) continue;
        if (!split_sum(g, n)) c->rewritten = true;
    }
    g->phase = phase;
    g->chunk = 0;
    if (!c->rewritten || hd_graph_sort(g)) return g->err.code;
    return hd_graph_dce(g);
}

/* ---- update ---- */

static void note_home(chunker *c)
{
    const hd_graph *g = c->g;
    for (size_t v = 0; v < g->n_values; v++) c->home[v] = UNKNOWN;
    for (size_t i = 0; i < g->n_nodes; i++)
        for (int k = 0; k < g->nodes[i]->n_in; k++) {
            hd_value v = g->nodes[i]->in[k];
            if (v != HD_NONE && g->nodes[i]->phase != HD_UPDATE) c->home[v] = first_of(c->home[v], g->nodes[i]->chunk);
        }
}

static hd_value parameter_made(const hd_graph *g, const hd_value *pair_of, const hd_node *n)
{
    for (int k = 0; k < n->n_out; k++)
        if (pair_of[n->out[k]] != HD_NONE && g->values[pair_of[n->out[k]]].kind == HD_PARAM) return pair_of[n->out[k]];
    return HD_NONE;
}

static int first_operand_chunk(const chunker *c, const hd_node *n)
{
    int chunk = UNKNOWN;
    for (int k = 0; k < n->n_in; k++) {
        if (n->in[k] == HD_NONE) continue;
        const hd_node *from = maker(c->g, n->in[k]);
        hd_kind kind = c->g->values[n->in[k]].kind;
        if (from) chunk = first_of(chunk, from->chunk);
        else if (kind == HD_PARAM || kind == HD_STATE) chunk = first_of(chunk, c->home[n->in[k]]);
    }
    return chunk;
}

static bool all_scalars(const hd_graph *g, const hd_value *v, int n)
{
    for (int k = 0; k < n; k++)
        if (v[k] != HD_NONE && g->values[v[k]].type.shape.rank) return false;
    return true;
}

static int chunk_of_update(const chunker *c, const hd_value *pair_of, const hd_node *n)
{
    const hd_graph *g = c->g;
    hd_value p = parameter_made(g, pair_of, n);
    int operands = first_operand_chunk(c, n);
    if (p != HD_NONE && c->home[p] >= 0) return c->home[p];
    bool own = is_op(n, "micro_sum") || is_op(n, "sum_squares") || !all_scalars(g, n->in, n->n_in) || !all_scalars(g, n->out, n->n_out);
    if (!own || (operands < 0 && all_scalars(g, n->out, n->n_out))) return EVERYWHERE;
    return operands < 0 ? 0 : operands;
}

static int place_update(chunker *c)
{
    hd_graph *g = c->g;
    hd_value *pair_of = hd_malloc((g->n_values + 1) * sizeof *pair_of);
    if (!pair_of) return hd_fail_memory(&g->err, g->n_values, "cutting a graph");
    for (size_t v = 0; v < g->n_values; v++) pair_of[v] = HD_NONE;
    for (size_t i = 0; i < g->n_pairs; i++) pair_of[g->pairs[i].out] = g->pairs[i].in;
    for (size_t i = 0; i < g->n_nodes; i++)
        if (g->nodes[i]->phase == HD_UPDATE) g->nodes[i]->chunk = chunk_of_update(c, pair_of, g->nodes[i]);
    hd_free(pair_of);
    return 0;
}

/* ---- casts ---- */

enum { NOBODY = -2, SEVERAL = -3 };

/* A cast that only another chunk reads, which gets what is cast as well, is made there: one value is sent, not two. */
static int place_casts(hd_graph *g)
{
    int *reader = hd_malloc(2 * (g->n_values + 1) * sizeof *reader), *late = reader ? reader + g->n_values + 1 : NULL; /* the chunk; the last but casts */
    if (!reader) return hd_fail_memory(&g->err, g->n_values, "cutting a graph");
    for (size_t v = 0; v < 2 * (g->n_values + 1); v++) reader[v] = NOBODY;
    for (size_t i = 0; i < g->n_nodes; i++) {
        const hd_node *n = g->nodes[i];
        for (int k = 0; k < n->n_in; k++) {
            hd_value v = n->in[k];
            if (v == HD_NONE) continue;
            reader[v] = reader[v] == NOBODY || reader[v] == n->chunk ? n->chunk : SEVERAL;
            if (!is_op(n, "cast") && g->values[v].node >= 0 && n->chunk != g->nodes[g->values[v].node]->chunk) late[v] = n->chunk;
        }
    }
    for (size_t i = 0; i < g->n_nodes; i++) {
        hd_node *n = g->nodes[i];
        if (n->phase == HD_UPDATE || !is_op(n, "cast") || is_of_step(g, n)) continue;
        int to = reader[n->out[0]];
        if (to >= 0 && to != n->chunk && late[n->in[0]] == to) n->chunk = to;
    }
    hd_free(reader);
    return 0;
}

/* ---- the pass ---- */

static int run(chunker *c)
{
    hd_graph *g = c->g;
    for (size_t v = 0; v < g->n_values; v++) c->home[v] = c->furthest[v] = UNKNOWN;
    for (size_t i = 0; i < g->n_nodes; i++) c->live[i] = g->nodes[i];
    qsort(c->live, g->n_nodes, sizeof *c->live, by_address);
    place_step_values(c);
    note_furthest(c);
    place_backward(c);
    if (split_sums(c)) return g->err.code;
    int *home = hd_realloc_array(c->home, g->n_values + 1, sizeof *home);
    if (!home) return hd_fail_memory(&g->err, g->n_values, "cutting a graph");
    c->home = home;
    note_home(c);
    return place_update(c) || place_casts(g) ? g->err.code : 0;
}

int hd_pass_chunks(hd_graph *g, const char *const *first, int n_first)
{
    if (g->err.code) return g->err.code;
    for (size_t i = 0; i < g->n_nodes; i++) g->nodes[i]->chunk = 0;
    if (!n_first) return 0;
    if (place_forward(g, first, n_first) || add_before_cuts(g)) return g->err.code;
    chunker c = {.g = g, .live = hd_calloc(g->n_nodes + 1, sizeof *c.live), .furthest = hd_calloc(g->n_values + 1, sizeof *c.furthest),
                 .home = hd_calloc(g->n_values + 1, sizeof *c.home)};
    if (c.live && c.furthest && c.home) run(&c);
    else hd_fail_memory(&g->err, g->n_values, "cutting a graph");
    hd_free(c.live);
    hd_free(c.furthest);
    hd_free(c.home);
    return g->err.code;
}

/* ---- the two parts of backward ---- */

int hd_graph_weight_parts(const hd_graph *g, bool *flags)
{
    bool *sent = hd_calloc(g->n_values + 1, sizeof *sent);
    int count = 0;
    if (!sent) return HD_ENOMEM;
    for (size_t i = g->n_nodes; i-- > 0;) {
        const hd_node *n = g->nodes[i];
        bool onward = n->phase == HD_BACKWARD && is_op(n, "send");
        for (int k = 0; k < n->n_out; k++) onward |= sent[n->out[k]];
        if (is_op(n, "micro_sum")) onward = false;
        for (int k = 0; k < n->n_in; k++)
            if (onward && n->in[k] != HD_NONE) sent[n->in[k]] = true;
        flags[i] = n->phase == HD_BACKWARD && !onward && !is_op(n, "send") && !is_op(n, "recv") && !is_of_step(g, n);
        count += flags[i];
    }
    hd_free(sent);
    return count;
}
