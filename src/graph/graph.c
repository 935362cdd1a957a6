/* graph.c: building: values, nodes, paths. */
#include "graph/graph.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/rng.h"
#include "graph/op.h"

/* ---- paths in use: open addressing over indices into hd_graph.values, -1 empty ---- */

typedef struct hd_path_set {
    int32_t *slot;
    size_t cap, used;
} hd_path_set;

static size_t path_probe(const hd_graph *g, const hd_path_set *s, const char *path)
{
    size_t i = hd_hash_string(path) & (s->cap - 1);
    while (s->slot[i] >= 0 && strcmp(g->values[s->slot[i]].path, path) != 0) i = (i + 1) & (s->cap - 1);
    return i;
}

static int path_set_grow(hd_graph *g)
{
    hd_path_set *s = g->paths, bigger = {.cap = s->cap ? 2 * s->cap : 256};
    bigger.slot = hd_malloc(bigger.cap * sizeof *bigger.slot);
    if (!bigger.slot) return HD_ENOMEM;
    memset(bigger.slot, 0xff, bigger.cap * sizeof *bigger.slot);
    for (size_t i = 0; i < s->cap; i++)
        if (s->slot[i] >= 0) bigger.slot[path_probe(g, &bigger, g->values[s->slot[i]].path)] = s->slot[i];
    bigger.used = s->used;
    hd_free(s->slot);
    *s = bigger;
    return 0;
}

hd_value hd_graph_find(const hd_graph *g, const char *path)
{
    if (!g->paths->cap) return HD_NONE;
    return g->paths->slot[path_probe(g, g->paths, path)];
}

/* ---- life cycle ---- */

hd_graph *hd_graph_new(void)
{
    hd_graph *g = hd_calloc(1, sizeof *g);
    if (!g) return NULL;
    g->scope = "";
    g->paths = hd_calloc(1, sizeof *g->paths);
    if (!g->paths) {
        hd_free(g);
        return NULL;
    }
    return g;
}

void hd_graph_free(hd_graph *g)
{
    if (!g) return;
    hd_free(g->paths->slot);
    hd_free(g->paths);
    hd_free(g->values);
    hd_free(g->nodes);
    hd_free(g->pairs);
    hd_free(g->outputs);
    hd_arena_free(&g->arena);
    hd_free(g);
}

/* ---- errors and names ---- */

hd_value hd_graph_fail(hd_graph *g, int code, const char *fmt, ...)
{
    char text[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    hd_fail(&g->err, code, "%s%s%s", g->scope, *g->scope ? ": " : "", text);
    return HD_NONE;
}

static hd_value out_of_memory(hd_graph *g)
{
    hd_fail_memory(&g->err, 0, "the graph");
    return HD_NONE;
}

void hd_graph_push(hd_graph *g, const char *fmt, ...)
{
    char name[200];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    const char *scope = hd_arena_printf(&g->arena, "%s%s%s", g->scope, *g->scope ? "." : "", name);
    if (!scope) {
        out_of_memory(g);
        return;
    }
    if (g->depth == (int)(sizeof g->outer / sizeof g->outer[0])) {
        hd_graph_fail(g, HD_EINVAL, "names are nested too deeply");
        return;
    }
    g->outer[g->depth++] = g->scope;
    g->scope = scope;
}

void hd_graph_pop(hd_graph *g)
{
    if (g->depth) g->scope = g->outer[--g->depth]; /* nothing was pushed where memory ran out */
}

static int last_number(const char *path) { return atoi(strrchr(path, '~') + 1); }

/* A path for name under the current scope; the nth of that name gets "~n" behind it, so that paths stay stable and unique. */
static const char *make_path(hd_graph *g, const char *name, bool unique)
{
    char *path = hd_arena_printf(&g->arena, "%s%s%s", g->scope, *g->scope ? "." : "", name), *last = NULL;
    if (!path || !unique || hd_graph_find(g, path) == HD_NONE) return path;
    int used = 1, next = 2; /* numbers are given one after the other: in doubling steps past the last, then by halves back to it */
    while (next > used) {
        path = hd_arena_printf(&g->arena, "%s%s%s~%d", g->scope, *g->scope ? "." : "", name, next);
        if (!path) return NULL;
        bool taken = hd_graph_find(g, path) != HD_NONE;
        if (taken && !last) used = next, next *= 2;
        else if (taken) used = next, next = used + (last_number(last) - used) / 2;
        else last = path, next = used + (next - used) / 2;
    }
    return last;
}

/* ---- values ---- */

static hd_value value_new(hd_graph *g, const char *path, hd_type type, hd_kind kind, hd_time_layout micro)
{
    if (g->err.code) return HD_NONE;
    if (!path || hd_grow(&g->values, &g->cap_values, g->n_values + 1, sizeof *g->values)) return out_of_memory(g);
    if (2 * (g->paths->used + 1) > g->paths->cap && path_set_grow(g)) return out_of_memory(g);
    size_t at = path_probe(g, g->paths, path);
    if (g->paths->slot[at] >= 0) return hd_graph_fail(g, HD_EINVAL, "the name \"%s\" is used twice", path);
    hd_value v = (hd_value)g->n_values++;
    g->values[v] = (hd_value_info){.path = path, .type = type, .kind = kind, .micro = micro, .node = -1, .result = -1};
    g->paths->slot[at] = v;
    g->paths->used++;
    return v;
}

static hd_value leaf_new(hd_graph *g, const char *name, hd_type type, hd_kind kind, hd_time_layout micro)
{
    if (g->err.code) return HD_NONE;
    const hd_shape *s = &type.shape;
    if (s->rank < 0 || s->rank > HD_MAX_RANK) return hd_graph_fail(g, HD_EINVAL, "%s: rank %d is not in 0..%d", name, s->rank, HD_MAX_RANK);
    for (int i = 0; i < s->rank; i++)
        if (s->dim[i] < 0) return hd_graph_fail(g, HD_EINVAL, "%s: extent %lld is negative", name, (long long)s->dim[i]);
    if (s->sym >= g->n_symbols || (s->sym >= 0 && (s->rank == 0 || s->dim[0] % g->symbols[s->sym].max != 0)))
        return hd_graph_fail(g, HD_EINVAL, "%s: its bounded extent does not fit its symbol", name);
    return value_new(g, make_path(g, name, false), type, kind, micro);
}

int hd_graph_symbol(hd_graph *g, const char *name, int64_t max)
{
    if (g->err.code) return -1;
    if (max < 1) return hd_graph_fail(g, HD_EINVAL, "symbol %s: its maximum must be at least 1", name);
    if (g->n_symbols == (int)(sizeof g->symbols / sizeof g->symbols[0])) return hd_graph_fail(g, HD_EINVAL, "too many symbols");
    char *copy = hd_arena_strdup(&g->arena, name);
    if (!copy) return out_of_memory(g);
    g->symbols[g->n_symbols] = (hd_symbol){copy, max};
    return g->n_symbols++;
}

hd_value hd_graph_input(hd_graph *g, const char *name, hd_type type, hd_time_layout micro)
{
    return leaf_new(g, name, type, HD_INPUT, micro);
}

static hd_value stored_new(hd_graph *g, const char *name, hd_type type, hd_init init, hd_kind kind)
{
    hd_value v = leaf_new(g, name, type, kind, HD_TIME_REPLICATE);
    if (v == HD_NONE) return v;
    g->values[v].init = hd_arena_copy(&g->arena, &init, sizeof init);
    return g->values[v].init ? v : out_of_memory(g);
}

hd_value hd_graph_param(hd_graph *g, const char *name, hd_type type, hd_init init, bool trainable, bool decay)
{
    hd_value v = stored_new(g, name, type, init, HD_PARAM);
    if (v == HD_NONE) return v;
    g->values[v].trainable = trainable;
    g->values[v].decay = decay;
    return v;
}

hd_value hd_graph_state(hd_graph *g, const char *name, hd_type type, hd_init init)
{
    return stored_new(g, name, type, init, HD_STATE);
}

hd_value hd_graph_const(hd_graph *g, const char *name, hd_type type, const void *data)
{
    hd_value v = leaf_new(g, name, type, HD_CONST, HD_TIME_REPLICATE);
    if (v == HD_NONE) return v;
    g->values[v].data = hd_arena_copy(&g->arena, data, (size_t)hd_shape_count(&type.shape) * hd_dtype_size(type.dtype));
    return g->values[v].data ? v : out_of_memory(g);
}

hd_value hd_graph_scalar(hd_graph *g, double x, hd_dtype dtype)
{
    char element[8], name[48];
    hd_store_f64(element, dtype, 0, x);
    snprintf(name, sizeof name, "const.%s.%.9g", hd_dtype_name(dtype), x);
    for (char *c = name + 6; *c; c++)
        if (*c == '.' && c > name + 10) *c = '_'; /* a dot parts scopes */
    const char *scope = g->scope;
    g->scope = ""; /* one constant, whoever asks for it */
    hd_value v = g->err.code ? HD_NONE : hd_graph_find(g, name);
    bool same = v != HD_NONE && g->values[v].data && !memcmp(g->values[v].data, element, hd_dtype_size(dtype));
    if (!same && !g->err.code) {
        const char *path = make_path(g, name, true);
        v = path ? hd_graph_const(g, path, hd_type_scalar(dtype), element) : out_of_memory(g);
    }
    g->scope = scope;
    return v;
}

/* ---- nodes ---- */

/* A piece per call if any operand is; Partial only passes into micro_sum, whose result is a value of the step. */
static hd_time_layout result_layout(const hd_graph *g, const hd_op *op, const hd_value *in, int n_in)
{
    if (!strcmp(op->name, "micro_sum")) return HD_TIME_REPLICATE;
    for (int i = 0; i < n_in; i++)
        if (in[i] != HD_NONE && g->values[in[i]].micro != HD_TIME_REPLICATE) return HD_TIME_SPLIT;
    return HD_TIME_REPLICATE;
}

static int check_operands(hd_graph *g, const hd_op *op, const hd_value *in, int n_in, hd_type *types)
{
    if (n_in < op->min_in || n_in > op->max_in)
        return hd_graph_fail(g, HD_EINVAL, "%s takes %d to %d operands, not %d", op->name, op->min_in, op->max_in, n_in);
    for (int i = 0; i < n_in; i++) {
        if (in[i] == HD_NONE) {
            types[i] = (hd_type){.absent = true, .shape.sym = -1};
            continue;
        }
        if (in[i] < 0 || (size_t)in[i] >= g->n_values) return hd_graph_fail(g, HD_EINVAL, "%s: operand %d does not exist", op->name, i);
        types[i] = g->values[in[i]].type;
    }
    return 0;
}

static hd_node *node_new(hd_graph *g, const hd_op *op, const char *path, const void *attrs, const hd_value *in, int n_in, int n_out)
{
    hd_node *n = hd_arena_alloc(&g->arena, sizeof *n);
    if (!n || hd_grow(&g->nodes, &g->cap_nodes, g->n_nodes + 1, sizeof *g->nodes)) return NULL;
    *n = (hd_node){.op = op, .path = path, .n_in = n_in, .n_out = n_out, .phase = g->phase, .origin = g->origin, .chunk = g->chunk,
                    .slice = g->slice};
    n->in = hd_arena_copy(&g->arena, in, (size_t)n_in * sizeof *in);
    n->out = hd_arena_alloc(&g->arena, (size_t)n_out * sizeof *n->out);
    if (op->attrs_size) n->attrs = hd_arena_copy(&g->arena, attrs, op->attrs_size);
    if (!path || !n->in || !n->out || (op->attrs_size && !n->attrs)) return NULL;
    g->nodes[g->n_nodes++] = n;
    return n;
}

static int node_results(hd_graph *g, hd_node *n, const hd_type *types)
{
    hd_time_layout micro = result_layout(g, n->op, n->in, n->n_in);
    for (int i = 0; i < n->n_out; i++) {
        const char *path = i ? hd_arena_printf(&g->arena, "%s.%d", n->path, i) : n->path;
        hd_value v = value_new(g, path, types[i], HD_RESULT, micro);
        if (v == HD_NONE) return g->err.code;
        g->values[v].node = (int)g->n_nodes - 1;
        g->values[v].result = i;
        n->out[i] = v;
    }
    return 0;
}

/* Only what the op describes: whatever stood between the caller's fields would make equal nodes differ, by chance. to is zeroed. */
static void copy_attrs(const hd_op *op, char *to, const char *from)
{
    static const size_t sizes[] = {
        [HD_ATTR_INT32] = sizeof(int32_t), [HD_ATTR_INT64] = sizeof(int64_t), [HD_ATTR_UINT32] = sizeof(uint32_t), [HD_ATTR_DOUBLE] = sizeof(double),
        [HD_ATTR_BOOL] = sizeof(bool), [HD_ATTR_STRING] = 64, [HD_ATTR_DTYPE] = sizeof(hd_dtype), [HD_ATTR_INT32_2] = 2 * sizeof(int32_t),
        [HD_ATTR_DIMS] = sizeof(int32_t), [HD_ATTR_CHAIN] = sizeof(hd_fused_attrs),
    };
    for (const hd_attr *a = op->attrs; a && a->name; a++) {
        memcpy(to + a->offset, from + a->offset, sizes[a->type]);
        size_t dims = a->offset + offsetof(hd_dims_attrs, dim);
        if (a->type == HD_ATTR_DIMS) memcpy(to + dims, from + dims, sizeof ((hd_dims_attrs *)0)->dim);
    }
}

hd_value hd_graph_node(hd_graph *g, const char *op_name, const char *name, const void *attrs, const hd_value *in, int n_in)
{
    if (g->err.code) return HD_NONE;
    const hd_op *op = hd_op_find(op_name);
    if (!op) return hd_graph_fail(g, HD_EUNSUPPORTED, "there is no op \"%s\"", op_name);
    _Alignas(16) char copy[1024] = {0};
    assert(op->attrs_size <= sizeof copy);
    if (op->attrs_size && attrs) copy_attrs(op, copy, attrs);
    hd_type in_types[HD_MAX_OPERANDS], out_types[HD_MAX_RESULTS] = {0};
    if (check_operands(g, op, in, n_in, in_types)) return HD_NONE;
    hd_sig sig = {.op = op, .in = in_types, .n_in = n_in, .attrs = copy};
    hd_error err = {0};
    int n_out = op->infer(&sig, out_types, &err);
    if (n_out < 0) return hd_graph_fail(g, n_out, "%s%s%s", name ? name : "", name ? ": " : "", err.message);
    hd_node *n = node_new(g, op, make_path(g, name ? name : op->name, true), copy, in, n_in, n_out);
    if (!n) return out_of_memory(g);
    return node_results(g, n, out_types) || !n->n_out ? HD_NONE : n->out[0];
}

const hd_node *hd_graph_clone(hd_graph *g, const hd_node *of, const char *prefix, const hd_value *in, int n_in)
{
    if (g->err.code) return NULL;
    const char *name = hd_arena_printf(&g->arena, "%s.%s", prefix, of->path), *scope = g->scope;
    g->scope = "";
    const char *path = name ? make_path(g, name, true) : NULL;
    g->scope = scope;
    hd_node *n = node_new(g, of->op, path, of->attrs, in, n_in, of->n_out);
    if (!n) return out_of_memory(g), NULL;
    n->chunk = of->chunk;
    n->slice = of->slice;
    n->splits = of->splits;
    n->n_splits = of->n_splits;
    for (int k = 0; k < of->n_out; k++) {
        const hd_value_info old = g->values[of->out[k]];
        const char *result = k ? hd_arena_printf(&g->arena, "%s.%d", path, k) : path;
        hd_value v = value_new(g, result, old.type, HD_RESULT, old.micro);
        if (v == HD_NONE) return NULL;
        g->values[v].whole = old.whole;
        g->values[v].layout = old.layout;
        g->values[v].node = (int)g->n_nodes - 1;
        g->values[v].result = k;
        n->out[k] = v;
    }
    return n;
}

hd_value hd_graph_result(const hd_graph *g, hd_value v, int i)
{
    if (v == HD_NONE || g->err.code || g->values[v].node < 0) return HD_NONE;
    const hd_node *n = g->nodes[g->values[v].node];
    return i < n->n_out ? n->out[i] : HD_NONE;
}

/* ---- outputs and state ---- */

void hd_graph_output(hd_graph *g, const char *name, hd_value v)
{
    if (g->err.code) return;
    char *copy = hd_arena_strdup(&g->arena, name);
    if (!copy || hd_grow(&g->outputs, &g->cap_outputs, g->n_outputs + 1, sizeof *g->outputs)) {
        out_of_memory(g);
        return;
    }
    g->outputs[g->n_outputs++] = (hd_output){copy, v};
}

hd_value hd_graph_find_output(const hd_graph *g, const char *name)
{
    for (size_t i = 0; i < g->n_outputs; i++)
        if (!strcmp(g->outputs[i].name, name)) return g->outputs[i].value;
    return HD_NONE;
}

void hd_graph_pair(hd_graph *g, hd_value in, hd_value out)
{
    if (g->err.code) return;
    const hd_type *a = &g->values[in].type, *b = &g->values[out].type;
    if (g->values[in].kind != HD_STATE && g->values[in].kind != HD_PARAM) {
        hd_graph_fail(g, HD_EINVAL, "%s is no state", g->values[in].path);
    } else if (a->dtype != b->dtype || !hd_shape_equal(&a->shape, &b->shape)) {
        hd_graph_fail(g, HD_EINVAL, "the state %s cannot become %s, which has another type", g->values[in].path, g->values[out].path);
    } else if (hd_grow(&g->pairs, &g->cap_pairs, g->n_pairs + 1, sizeof *g->pairs)) {
        out_of_memory(g);
    } else {
        g->pairs[g->n_pairs++] = (hd_state_pair){in, out};
    }
}

/* ---- parts of other graphs ---- */

static bool copy_contents(hd_graph *g, const hd_value_info *from, hd_value_info *to)
{
    const hd_shape *all = from->layout ? &from->whole : &from->type.shape;
    if (from->layout) to->layout = hd_arena_copy(&g->arena, from->layout, sizeof *from->layout);
    if (from->data) to->data = hd_arena_copy(&g->arena, from->data, (size_t)hd_shape_count(all) * hd_dtype_size(from->type.dtype));
    if (from->init) to->init = hd_arena_copy(&g->arena, from->init, sizeof *from->init);
    to->whole = from->whole;
    to->trainable = from->trainable;
    to->decay = from->decay;
    return !from->layout == !to->layout && !from->data == !to->data && !from->init == !to->init;
}

hd_value hd_graph_copy_value(hd_graph *g, const hd_graph *from, hd_value v)
{
    const hd_value_info *old = &from->values[v];
    hd_value c = value_new(g, hd_arena_strdup(&g->arena, old->path), old->type, old->kind, old->micro);
    if (c == HD_NONE) return c;
    return copy_contents(g, old, &g->values[c]) ? c : out_of_memory(g);
}

hd_node *hd_graph_copy_node(hd_graph *g, const hd_node *n, const hd_value *in, const hd_value *out)
{
    if (g->err.code) return NULL;
    hd_node *c = node_new(g, n->op, hd_arena_strdup(&g->arena, n->path), n->attrs, in, n->n_in, n->n_out);
    if (c && n->n_splits) c->splits = hd_arena_copy(&g->arena, n->splits, (size_t)n->n_splits * sizeof *n->splits);
    if (!c || (n->n_splits && !c->splits)) return out_of_memory(g), NULL;
    c->phase = n->phase;
    c->origin = NULL;
    c->chunk = n->chunk;
    c->slice = n->slice;
    c->n_splits = n->n_splits;
    for (int k = 0; k < n->n_out; k++) {
        c->out[k] = out[k];
        g->values[out[k]].node = (int)g->n_nodes - 1;
        g->values[out[k]].result = k;
    }
    return c;
}
