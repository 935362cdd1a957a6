/* network_node.c: one node of a network file: its op and parameters, as the op's own table describes them. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "graph/op.h"
#include "models/network_int.h"

/* ---- parameters ---- */

static int set_pair(net_builder *b, const net_scope *s, const hd_attr *a, const json_t *j, int32_t *out, const net_where *w)
{
    bool list = json_is_array(j);
    if (list && json_array_size(j) != 2) return hd_fail(b->err, HD_EFORMAT, "%s: \"%s\" must be an integer or a list of 2", w->text, a->name);
    for (size_t i = 0; i < 2; i++) {
        int64_t v;
        int rc = net_integer(b, s, list ? json_array_get(j, i) : j, a->name, INT32_MIN, INT32_MAX, &v, w);
        if (rc) return rc;
        out[i] = (int32_t)v;
    }
    return 0;
}

static int set_dims(net_builder *b, const net_scope *s, const hd_attr *a, const json_t *j, hd_dims_attrs *out, const net_where *w)
{
    if (!json_is_array(j) || json_array_size(j) > HD_MAX_RANK)
        return hd_fail(b->err, HD_EFORMAT, "%s: \"%s\" must be a list of at most %d integers", w->text, a->name, HD_MAX_RANK);
    out->rank = (int32_t)json_array_size(j);
    for (int i = 0; i < out->rank; i++) {
        int rc = net_integer(b, s, json_array_get(j, (size_t)i), a->name, -1, (int64_t)1 << 40, &out->dim[i], w);
        if (rc) return rc;
    }
    return 0;
}

/* A set of dimensions: a list of their numbers, or the bits themselves. */
static int set_mask(net_builder *b, const net_scope *s, const hd_attr *a, const json_t *j, uint32_t *out, const net_where *w)
{
    int64_t v;
    int rc;
    if (!json_is_array(j)) {
        rc = net_integer(b, s, j, a->name, 0, UINT32_MAX, &v, w);
        if (!rc) *out = (uint32_t)v;
        return rc;
    }
    *out = 0;
    for (size_t i = 0; i < json_array_size(j); i++) {
        rc = net_integer(b, s, json_array_get(j, i), a->name, 0, HD_MAX_RANK - 1, &v, w);
        if (rc) return rc;
        *out |= 1u << v;
    }
    return 0;
}

static int set_text(net_builder *b, const hd_attr *a, const json_t *j, void *out, const net_where *w)
{
    const char *text = json_string_value(j);
    if (!text || strlen(text) >= 64) return hd_fail(b->err, HD_EFORMAT, "%s: \"%s\" must be a string of at most 63 bytes", w->text, a->name);
    if (a->type == HD_ATTR_STRING) return strcpy(out, text), 0;
    if (!hd_dtype_parse(text, out)) return 0;
    return hd_fail(b->err, HD_EFORMAT, "%s: \"%s\" must be a dtype (f32, bf16, i32, ...), is \"%s\"", w->text, a->name, text);
}

static int set_attr(net_builder *b, const net_scope *s, const hd_attr *a, const json_t *j, char *attrs, const net_where *w)
{
    void *p = attrs + a->offset;
    int64_t v = 0;
    int rc = 0;
    j = net_resolve(b, s, j, w);
    if (!j) return b->err->code;
    switch (a->type) {
    case HD_ATTR_INT32:
        rc = net_integer(b, s, j, a->name, INT32_MIN, INT32_MAX, &v, w);
        if (!rc) *(int32_t *)p = (int32_t)v;
        return rc;
    case HD_ATTR_INT64: return net_integer(b, s, j, a->name, INT64_MIN, INT64_MAX, p, w);
    case HD_ATTR_DOUBLE: return net_number(b, s, j, a->name, p, w);
    case HD_ATTR_UINT32: return set_mask(b, s, a, j, p, w);
    case HD_ATTR_INT32_2: return set_pair(b, s, a, j, p, w);
    case HD_ATTR_DIMS: return set_dims(b, s, a, j, p, w);
    case HD_ATTR_STRING: case HD_ATTR_DTYPE: return set_text(b, a, j, p, w);
    case HD_ATTR_BOOL:
        if (!json_is_boolean(j)) return hd_fail(b->err, HD_EFORMAT, "%s: \"%s\" must be true or false", w->text, a->name);
        *(bool *)p = json_is_true(j);
        return 0;
    case HD_ATTR_CHAIN: break;
    }
    return hd_fail(b->err, HD_EUNSUPPORTED, "%s: \"%s\" can't be given in a file", w->text, a->name);
}

/* What a file leaves out: a dtype is that of operand 0, a site the hash of the node's path; the preset otherwise. */
static int preset_attr(net_builder *b, const hd_attr *a, hd_value first, const char *path, char *attrs, const net_where *w)
{
    if (!strcmp(a->name, "site") && a->type == HD_ATTR_INT64) return *(int64_t *)(attrs + a->offset) = (int64_t)hd_hash_string(path), 0;
    if (!isnan(a->preset)) return 0;
    if (a->type == HD_ATTR_DTYPE && first != HD_NONE) return *(hd_dtype *)(attrs + a->offset) = hd_type_in(b->g, first)->dtype, 0;
    return hd_fail(b->err, HD_EFORMAT, "%s: \"%s\" is missing", w->text, a->name);
}

static int set_attrs(net_builder *b, const net_scope *s, const json_t *item, const hd_op *op, hd_value first, char *attrs, const net_where *w)
{
    char path[700];
    snprintf(path, sizeof path, "%s%s%s", s->path, *s->path ? "." : "", json_string_value(json_object_get(item, "name")));
    hd_attrs_preset(op, attrs);
    for (const hd_attr *a = op->attrs; a && a->name; a++) {
        const json_t *j = json_object_get(item, a->name);
        int rc = j ? set_attr(b, s, a, j, attrs, w) : preset_attr(b, a, first, path, attrs, w);
        if (rc) return rc;
    }
    return 0;
}

static int check_node_keys(const json_t *item, const hd_op *op, const net_where *w, hd_error *err)
{
    const char *keys[40] = {"op", "name", "in", "mode"};
    char known[300] = "";
    int n = 4;
    for (const hd_attr *a = op->attrs; a && a->name && n < 39; a++) {
        size_t len = strlen(known);
        snprintf(known + len, sizeof known - len, "%s%s", len ? ", " : "", a->name);
        keys[n++] = a->name;
    }
    hd_error unknown = {0};
    if (!net_check_keys(item, keys, w, &unknown)) return 0;
    return hd_fail(err, HD_EFORMAT, "%s; op %s has %s", unknown.message, op->name, n > 4 ? known : "no parameters");
}

/* ---- the node ---- */

/* Whether a file may name it: not what another op's gradient makes, not chains and symbols, which Heddle's passes make, not a step's end. */
static bool is_for_files(const hd_op *op)
{
    static const char *const own[] = {"micro_sum", "adamw", "sgd"};
    for (const hd_attr *a = op->attrs; a && a->name; a++)
        if (a->type == HD_ATTR_CHAIN || !strcmp(a->name, "sym")) return false;
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        if (!strcmp(op->name, own[i])) return false;
    return !op->is_backward && !op->is_comm;
}

static const hd_op *find_op(net_builder *b, const json_t *item, const net_where *w)
{
    const json_t *j = net_need(item, "op", JSON_STRING, w, b->err);
    const hd_op *op = j ? hd_op_find(json_string_value(j)) : NULL;
    if (op && is_for_files(op)) return op;
    if (j) hd_fail(b->err, HD_EFORMAT, "%s: there is no op \"%.60s\"", w->text, json_string_value(j));
    return NULL;
}

static int read_operands(net_builder *b, const net_scope *s, const json_t *item, const hd_op *op, hd_value *in, const net_where *w)
{
    const json_t *list = net_need(item, "in", JSON_ARRAY, w, b->err);
    if (!list) return b->err->code;
    int n = (int)json_array_size(list);
    if (n < op->min_in || n > op->max_in) {
        char want[40];
        snprintf(want, sizeof want, op->min_in == op->max_in ? "%d" : "%d to %d", op->min_in, op->max_in);
        return hd_fail(b->err, HD_EFORMAT, "%s: op %s takes %s operands, not %d: %s", w->text, op->name, want, n, op->summary);
    }
    for (int i = 0; i < n; i++) {
        int rc = net_value(b, s, json_array_get(list, (size_t)i), &in[i], w);
        if (rc) return rc;
        if (in[i] == HD_NONE && i < op->min_in) return hd_fail(b->err, HD_EFORMAT, "%s: operand %d of op %s can't be left out", w->text, i, op->name);
    }
    return n;
}

/* The graph's message without the scope and name in front, which net_where says already. */
static const char *without_path(const hd_graph *g, const char *name)
{
    const char *m = g->err.message;
    size_t scope = strlen(g->scope), n = strlen(name);
    if (scope && !strncmp(m, g->scope, scope) && !strncmp(m + scope, ": ", 2)) m += scope + 2;
    return !strncmp(m, name, n) && !strncmp(m + n, ": ", 2) ? m + n + 2 : m;
}

int net_node(net_builder *b, const net_scope *s, const json_t *item)
{
    const char *name = net_item_name(b, s, item, "node");
    if (!name) return b->err->code;
    net_where w = net_where_of(b, s, "node", name);
    const hd_op *op = find_op(b, item, &w);
    if (!op || check_node_keys(item, op, &w, b->err)) return b->err->code;
    hd_value in[HD_MAX_OPERANDS];
    int n = read_operands(b, s, item, op, in, &w);
    if (n < 0) return n;
    _Alignas(16) char attrs[1024] = {0};
    int rc = set_attrs(b, s, item, op, n ? in[0] : HD_NONE, attrs, &w);
    if (rc) return rc;
    hd_value v = hd_graph_node(b->g, op->name, name, attrs, in, n);
    if (v == HD_NONE) return hd_fail(b->err, b->g->err.code, "%s: %s", w.text, without_path(b->g, name));
    for (int i = 0; hd_graph_result(b->g, v, i) != HD_NONE; i++)
        if (net_check_size(b, hd_graph_result(b->g, v, i), &w)) return b->err->code;
    return net_bind(b, s, name, v, &w);
}
