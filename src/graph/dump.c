/* dump.c: a graph as text, its fingerprint, and the verifier. */
#include <stdio.h>
#include "base/rng.h"
#include "graph/graph.h"
#include "graph/op.h"

static const char *const kind_names[] = {[HD_INPUT] = "input", [HD_PARAM] = "param", [HD_STATE] = "state", [HD_CONST] = "const", [HD_RESULT] = "result"};
static const char *const micro_names[] = {[HD_TIME_REPLICATE] = "step", [HD_TIME_SPLIT] = "micro", [HD_TIME_PARTIAL] = "partial"};
static const char *const phase_names[] = {[HD_FORWARD] = "forward", [HD_BACKWARD] = "backward", [HD_UPDATE] = "update"};

static void dump_leaf(const hd_graph *g, hd_value v, hd_str *out)
{
    char type[160];
    const hd_value_info *i = &g->values[v];
    hd_str_printf(out, "%%%d = %s %s %s", v, kind_names[i->kind], i->path, hd_type_format(type, sizeof type, &i->type, g));
    if (i->kind == HD_INPUT) hd_str_printf(out, " %s", micro_names[i->micro]);
    if (i->kind == HD_PARAM) hd_str_printf(out, "%s%s", i->trainable ? " trainable" : "", i->decay ? " decay" : "");
    if (i->kind == HD_CONST && hd_shape_count(&i->type.shape) == 1) hd_str_printf(out, " %.9g", hd_load_f64(i->data, i->type.dtype, 0));
    hd_str_putc(out, '\n');
}

static void dump_node(const hd_graph *g, const hd_node *n, hd_str *out)
{
    char type[160];
    for (int k = 0; k < n->n_out; k++) hd_str_printf(out, "%s%%%d", k ? ", " : "", n->out[k]);
    hd_str_printf(out, "%s%s(", n->n_out ? " = " : "", n->op->name);
    for (int k = 0; k < n->n_in; k++) {
        hd_str_puts(out, k ? ", " : "");
        if (n->in[k] == HD_NONE) hd_str_puts(out, "-");
        else hd_str_printf(out, "%%%d", n->in[k]);
    }
    hd_str_puts(out, ") ");
    if (n->op->attrs_size) hd_attrs_print(n->op, n->attrs, out);
    if (!n->n_out) {
        hd_str_printf(out, " ; %s %s\n", n->path, phase_names[n->phase]);
        return;
    }
    const hd_value_info *first = &g->values[n->out[0]];
    hd_str_printf(out, " -> %s ; %s %s %s\n", hd_type_format(type, sizeof type, &first->type, g), n->path, phase_names[n->phase], micro_names[first->micro]);
}

void hd_graph_dump(const hd_graph *g, hd_str *out)
{
    for (int i = 0; i < g->n_symbols; i++) hd_str_printf(out, "symbol %s <= %lld\n", g->symbols[i].name, (long long)g->symbols[i].max);
    for (size_t v = 0; v < g->n_values; v++)
        if (g->values[v].kind != HD_RESULT) dump_leaf(g, (hd_value)v, out);
    for (size_t i = 0; i < g->n_nodes; i++) dump_node(g, g->nodes[i], out);
    for (size_t i = 0; i < g->n_pairs; i++) hd_str_printf(out, "becomes %%%d = %%%d\n", g->pairs[i].in, g->pairs[i].out);
    for (size_t i = 0; i < g->n_outputs; i++) hd_str_printf(out, "output %s = %%%d\n", g->outputs[i].name, g->outputs[i].value);
}

uint64_t hd_graph_fingerprint(const hd_graph *g)
{
    hd_str text;
    hd_str_init(&text);
    hd_graph_dump(g, &text);
    uint64_t h = text.failed ? 0 : hd_hash_string(text.data);
    hd_str_free(&text);
    return h;
}

/* ---- the verifier ---- */

static hd_type whole_type(const hd_graph *g, hd_value v)
{
    if (v == HD_NONE) return (hd_type){.absent = true, .shape.sym = -1};
    hd_type t = g->values[v].type;
    if (g->values[v].layout) t.shape = g->values[v].whole;
    return t;
}

/* Parameters (a copy) as coordinate 0 of a partitioned graph's mesh has them, whose types the values have. */
static void localise_first(const hd_graph *g, const hd_node *n, void *attrs)
{
    hd_type in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS];
    if (!n->n_splits || !g->mesh.n) return;
    for (int k = 0; k < n->n_in; k++) in[k] = whole_type(g, n->in[k]);
    for (int k = 0; k < n->n_out; k++) out[k] = whole_type(g, n->out[k]);
    hd_sig whole = {.op = n->op, .in = in, .out = out, .n_in = n->n_in, .n_out = n->n_out, .attrs = n->attrs};
    hd_op_localise(&whole, n->splits, n->n_splits, &g->mesh, 0, attrs);
}

static int verify_types(const hd_graph *g, const hd_node *n, hd_error *err)
{
    hd_type in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS] = {0};
    for (int k = 0; k < n->n_in; k++) {
        if (n->in[k] == HD_NONE) in[k] = (hd_type){.absent = true, .shape.sym = -1};
        else in[k] = g->values[n->in[k]].type;
    }
    _Alignas(16) char attrs[1024] = {0};
    if (n->op->attrs_size) memcpy(attrs, n->attrs, n->op->attrs_size);
    localise_first(g, n, attrs);
    hd_sig sig = {.op = n->op, .in = in, .n_in = n->n_in, .attrs = attrs};
    int got = n->op->infer(&sig, out, err);
    if (got < 0) return hd_error_context(err, "%s", n->path);
    if (got != n->n_out) return hd_fail(err, HD_EINVAL, "%s: has %d results, its op gives %d", n->path, n->n_out, got);
    for (int k = 0; k < got; k++) {
        const hd_type *t = &g->values[n->out[k]].type;
        if (t->dtype != out[k].dtype || !hd_shape_equal(&t->shape, &out[k].shape))
            return hd_fail(err, HD_EINVAL, "%s: result %d is not of the type that its op infers", n->path, k);
    }
    return 0;
}

/* Whether one of the first n nodes makes v. */
static bool is_made(const hd_graph *g, hd_value v, size_t n)
{
    const hd_value_info *i = &g->values[v];
    const hd_node *maker = i->node >= 0 && (size_t)i->node < n ? g->nodes[i->node] : NULL;
    return maker && i->result < maker->n_out && maker->out[i->result] == v;
}

static int verify_node(const hd_graph *g, size_t i, hd_error *err)
{
    const hd_node *n = g->nodes[i];
    for (int k = 0; k < n->n_in; k++) {
        if (n->in[k] == HD_NONE) continue;
        if (n->in[k] < 0 || (size_t)n->in[k] >= g->n_values) return hd_fail(err, HD_EINVAL, "%s: operand %d does not exist", n->path, k);
        const hd_value_info *v = &g->values[n->in[k]];
        if (v->kind == HD_RESULT && !is_made(g, n->in[k], i)) return hd_fail(err, HD_EINVAL, "%s: operand %d (%s) is used before it is defined", n->path, k, v->path);
    }
    for (int k = 0; k < n->n_out; k++) {
        const hd_value_info *v = &g->values[n->out[k]];
        if (v->kind != HD_RESULT || v->node != (int)i || v->result != k) return hd_fail(err, HD_EINVAL, "%s: result %d is not its own", n->path, k);
    }
    return verify_types(g, n, err);
}

static int verify_reachable(const hd_graph *g, hd_value v, const char *what, hd_error *err)
{
    if (v < 0 || (size_t)v >= g->n_values) return hd_fail(err, HD_EINVAL, "%s does not exist", what);
    const hd_value_info *i = &g->values[v];
    if (i->kind == HD_RESULT && !is_made(g, v, g->n_nodes)) return hd_fail(err, HD_EINVAL, "%s: %s is made by no node", what, i->path);
    return 0;
}

int hd_graph_verify(const hd_graph *g, hd_error *err)
{
    int rc = 0;
    if (g->err.code) return hd_fail(err, g->err.code, "%s", g->err.message);
    for (size_t v = 0; v < g->n_values && !rc; v++)
        if (hd_graph_find(g, g->values[v].path) != (hd_value)v) rc = hd_fail(err, HD_EINVAL, "the path %s is not unique", g->values[v].path);
    for (size_t i = 0; i < g->n_nodes && !rc; i++) rc = verify_node(g, i, err);
    for (size_t i = 0; i < g->n_outputs && !rc; i++) rc = verify_reachable(g, g->outputs[i].value, g->outputs[i].name, err);
    for (size_t i = 0; i < g->n_pairs && !rc; i++) {
        rc = verify_reachable(g, g->pairs[i].out, g->values[g->pairs[i].in].path, err);
        for (size_t k = 0; k < i && !rc; k++)
            if (g->pairs[k].in == g->pairs[i].in) rc = hd_fail(err, HD_EINVAL, "the state %s becomes two values", g->values[g->pairs[i].in].path);
    }
    return rc;
}
