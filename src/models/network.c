/* network.c: from a network file to a Graph: inputs, parameters, states, templates, loss and outputs. */
#include "models/network.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "models/network_int.h"

#define MAX_ITEMS 20000
#define MAX_DEPTH 8

/* ---- the file ---- */

static int check_outline(const hd_network *n, hd_error *err)
{
    static const char *const keys[] = {"heddle_network", "define", "inputs", "parameters", "state", "templates", "nodes",
                                       "loss", "loss_is", "outputs", "data", "train", NULL};
    static const char *const lists[] = {"inputs", "parameters", "state", "nodes"};
    static const char *const objects[] = {"define", "templates", "outputs", "data", "train"};
    net_where w;
    int64_t version = 0;
    snprintf(w.text, sizeof w.text, "%s", n->name);
    if (!json_is_object(n->root)) return hd_fail(err, HD_EFORMAT, "%s: must be an object", n->name);
    int rc = hd_json_need(n->root, "heddle_network", n->name, err);
    if (!rc) rc = hd_json_int(n->root, "heddle_network", 1, HD_NETWORK_VERSION, &version, n->name, err);
    if (rc) return rc;
    if (net_check_keys(n->root, keys, &w, err)) return HD_EFORMAT;
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        if (json_object_get(n->root, lists[i]) && !net_need(n->root, lists[i], JSON_ARRAY, &w, err)) return HD_EFORMAT;
    for (size_t i = 0; i < sizeof objects / sizeof *objects; i++)
        if (json_object_get(n->root, objects[i]) && !net_need(n->root, objects[i], JSON_OBJECT, &w, err)) return HD_EFORMAT;
    return net_need(n->root, "nodes", JSON_ARRAY, &w, err) ? 0 : HD_EFORMAT;
}

static hd_network *adopt(json_t *root, const char *name, hd_error *err)
{
    hd_network *n = root ? hd_calloc(1, sizeof *n) : NULL;
    if (!n) {
        if (root) hd_fail_memory(err, sizeof *n, "the network");
        json_decref(root);
        return NULL;
    }
    n->root = root;
    snprintf(n->name, sizeof n->name, "%s", name);
    if (!check_outline(n, err)) return n;
    hd_network_free(n);
    return NULL;
}

hd_network *hd_network_load(const char *path, hd_error *err) { return adopt(hd_json_load(path, err), path, err); }

hd_network *hd_network_parse(const char *text, size_t n, const char *name, hd_error *err)
{
    return adopt(hd_json_parse(text, n, name, err), name, err);
}

void hd_network_free(hd_network *n)
{
    if (!n) return;
    json_decref(n->root);
    hd_free(n);
}

const json_t *hd_network_section(const hd_network *n, const char *key) { return json_object_get(n->root, key); }
const char *hd_network_name(const hd_network *n) { return n->name; }

/* ---- inputs, parameters, states ---- */

static int read_dtype(const json_t *item, hd_dtype *out, const net_where *w, hd_error *err)
{
    const char *text = NULL;
    int rc = hd_json_string(item, "dtype", &text, w->text, err);
    if (rc || !text || !hd_dtype_parse(text, out)) return rc;
    return hd_fail(err, HD_EFORMAT, "%s: \"dtype\" must be a dtype (f32, bf16, i32, ...), is \"%.30s\"", w->text, text);
}

/* "shape" and "dtype" (f32 if left out). */
static int read_type(net_builder *b, const net_scope *s, const json_t *item, hd_type *out, const net_where *w)
{
    const json_t *shape = json_object_get(item, "shape");
    *out = hd_type_scalar(HD_F32);
    if (read_dtype(item, &out->dtype, w, b->err)) return b->err->code;
    if (!shape) return hd_fail(b->err, HD_EFORMAT, "%s: \"shape\" is missing", w->text);
    return net_shape(b, s, shape, "shape", out, w);
}

static int add_leaf(net_builder *b, const net_scope *s, const char *name, hd_value v, const net_where *w)
{
    if (v == HD_NONE) return hd_fail(b->err, b->g->err.code, "%s: %s", b->net->name, b->g->err.message);
    return net_bind(b, s, name, v, w);
}

static int add_input(net_builder *b, const net_scope *s, const json_t *item)
{
    static const char *const keys[] = {"name", "shape", "dtype", "per", NULL};
    const char *name = net_item_name(b, s, item, "input"), *per = "batch";
    if (!name) return b->err->code;
    net_where w = net_where_of(b, s, "input", name);
    hd_type t;
    if (net_check_keys(item, keys, &w, b->err) || read_type(b, s, item, &t, &w)) return b->err->code;
    if (hd_json_string(item, "per", &per, w.text, b->err)) return b->err->code;
    if (strcmp(per, "batch") && strcmp(per, "step")) return hd_fail(b->err, HD_EFORMAT, "%s: \"per\" must be \"batch\" or \"step\"", w.text);
    return add_leaf(b, s, name, hd_graph_input(b->g, name, t, *per == 's' ? HD_TIME_REPLICATE : HD_TIME_SPLIT), &w);
}

/* {"normal": 0.02}: how, and its one number. he and lecun are normal with variance 2/n and 1/n (He et al. 2015; LeCun et al. 1998). */
static int read_init(net_builder *b, const net_scope *s, const json_t *item, hd_init *out, const net_where *w)
{
    static const char *const keys[] = {"constant", "normal", "uniform", "he", "lecun", NULL};
    const json_t *j = json_object_get(item, "init");
    *out = (hd_init){HD_INIT_CONSTANT, 0};
    if (!j) return 0;
    j = net_resolve(b, s, j, w);
    if (!j) return b->err->code;
    if (!json_is_object(j) || json_object_size(j) != 1)
        return hd_fail(b->err, HD_EFORMAT, "%s: \"init\" must be an object with one of constant, normal, uniform, he, lecun", w->text);
    if (net_check_keys(j, keys, w, b->err)) return b->err->code;
    for (int i = 0; keys[i]; i++) {
        const json_t *v = json_object_get(j, keys[i]);
        if (!v) continue;
        double a;
        if (net_number(b, s, v, keys[i], &a, w)) return b->err->code;
        if (!isfinite(a) || (i > 0 && a < 0) || (i > 2 && a <= 0)) return hd_fail(b->err, HD_EFORMAT, "%s: \"%s\" makes no sense: %g", w->text, keys[i], a);
        *out = (hd_init){i == 0 ? HD_INIT_CONSTANT : i == 2 ? HD_INIT_UNIFORM : HD_INIT_NORMAL, i == 3 ? sqrt(2 / a) : i == 4 ? sqrt(1 / a) : a};
    }
    return 0;
}

static int add_parameter(net_builder *b, const net_scope *s, const json_t *item)
{
    static const char *const keys[] = {"name", "shape", "dtype", "init", "decay", "trainable", NULL};
    const char *name = net_item_name(b, s, item, "parameter");
    if (!name) return b->err->code;
    net_where w = net_where_of(b, s, "parameter", name);
    hd_type t;
    hd_init init;
    if (net_check_keys(item, keys, &w, b->err) || read_type(b, s, item, &t, &w) || read_init(b, s, item, &init, &w)) return b->err->code;
    if (!hd_dtype_is_float(t.dtype)) return hd_fail(b->err, HD_EFORMAT, "%s: \"dtype\" must be floating-point", w.text);
    bool decay = t.shape.rank >= 2, trainable = true; /* biases and norms' weights are vectors, and not decayed */
    if (hd_json_bool(item, "decay", &decay, w.text, b->err) || hd_json_bool(item, "trainable", &trainable, w.text, b->err)) return b->err->code;
    return add_leaf(b, s, name, hd_graph_param(b->g, name, t, init, trainable, decay), &w);
}

static int add_state(net_builder *b, const net_scope *s, const json_t *item)
{
    static const char *const keys[] = {"name", "shape", "dtype", "init", "becomes", NULL};
    const char *name = net_item_name(b, s, item, "state");
    if (!name) return b->err->code;
    net_where w = net_where_of(b, s, "state", name);
    hd_type t;
    hd_init init;
    if (net_check_keys(item, keys, &w, b->err) || read_type(b, s, item, &t, &w) || read_init(b, s, item, &init, &w)) return b->err->code;
    if (!net_need(item, "becomes", JSON_STRING, &w, b->err)) return b->err->code;
    return add_leaf(b, s, name, hd_graph_state(b->g, name, t, init), &w);
}

/* ---- what is computed once per step ---- */

static hd_value inv_divisor(net_builder *b)
{
    hd_value v = hd_graph_find(b->g, "inv_divisor");
    const char *scope = b->g->scope;
    b->g->scope = "";
    if (v == HD_NONE) v = hd_graph_input(b->g, "inv_divisor", hd_type_scalar(HD_F32), HD_TIME_REPLICATE);
    b->g->scope = scope;
    return v;
}

/* A value of each micro-batch, averaged over them: its share is batch / samples of the step. */
static hd_value step_mean(net_builder *b, hd_value v, hd_dtype dtype)
{
    hd_graph *g = b->g;
    if (hd_info(g, v)->micro == HD_TIME_REPLICATE) return hd_cast(g, NULL, v, dtype);
    hd_value share = hd_mul(g, v, hd_scale(g, inv_divisor(b), (double)b->o->batch));
    share = hd_cast(g, NULL, share, dtype);
    return hd_graph_node(g, "micro_sum", NULL, NULL, &share, 1);
}

/* Pairs a state with what its "becomes" names in the same scope. */
static int close_state(net_builder *b, const net_scope *s, const json_t *item)
{
    const char *name = json_string_value(json_object_get(item, "name"));
    net_where w = net_where_of(b, s, "state", name);
    const json_t *self = json_string(name);
    hd_value state = HD_NONE, next = HD_NONE;
    int rc = self ? net_value(b, s, self, &state, &w) : hd_fail_memory(b->err, 0, "names");
    json_decref((json_t *)self);
    if (!rc) rc = net_value(b, s, json_object_get(item, "becomes"), &next, &w);
    if (rc) return rc;
    if (next == HD_NONE || !hd_dtype_is_float(hd_type_in(b->g, next)->dtype))
        return hd_fail(b->err, HD_EFORMAT, "%s: \"becomes\" must name a floating-point value", w.text);
    next = step_mean(b, next, hd_type_in(b->g, state)->dtype);
    if (next != HD_NONE) hd_graph_pair(b->g, state, next);
    return b->g->err.code ? hd_fail(b->err, b->g->err.code, "%s: %s", w.text, b->g->err.message) : 0;
}

/* ---- blocks: the file itself, or one use of a template ---- */

static int build_block(net_builder *b, const net_scope *s, const json_t *block);

/* What an argument stands for in the caller, as JSON of its own. NULL and an error when it can't be replaced. */
static json_t *replaced(net_builder *b, const net_scope *caller, const char *key, const json_t *j, const net_where *w)
{
    const char *text = json_string_value(j);
    int64_t product;
    if (text && text[0] == '$' && strchr(text, '*'))
        return net_integer(b, caller, j, key, 0, (int64_t)1 << 40, &product, w) ? NULL : json_integer(product);
    j = net_resolve(b, caller, j, w);
    return j ? json_deep_copy(j) : NULL;
}

/* An argument that names a value of the caller is bound to that value, and is a string besides ("spec", "dtype", ...). */
static int bind_argument(net_builder *b, const net_scope *caller, const char *key, const json_t *j, json_t *args, json_t *bound, const net_where *w)
{
    hd_value v = HD_NONE;
    hd_error none = {0}, *err = b->err;
    b->err = &none; /* whether it names a value is a question here, not an error */
    json_t *copy = replaced(b, caller, key, j, w);
    hd_error unresolved = none;
    bool is_value = json_is_string(j) && !json_is_number(copy) && !net_value(b, caller, j, &v, w) && v != HD_NONE;
    b->err = err;
    if (!copy && !is_value) return unresolved.code ? hd_fail(err, unresolved.code, "%s", unresolved.message) : hd_fail_memory(err, 0, "arguments");
    if (is_value && json_object_set_new(bound, key, json_integer(v))) return hd_fail_memory(err, 0, "arguments");
    return copy && json_object_set_new(args, key, copy) ? hd_fail_memory(err, 0, "arguments") : 0;
}

/* Builds one use under the name `label` and says which value is its result. */
static int use_once(net_builder *b, const net_scope *caller, const json_t *block, const char *label, const json_t *args, const json_t *bound, hd_value *result,
                    const net_where *w)
{
    char path[500];
    int n = snprintf(path, sizeof path, "%s%s%s", caller->path, *caller->path ? "." : "", label);
    if (n < 0 || n >= (int)sizeof path) return hd_fail(b->err, HD_EFORMAT, "%s: the name is too long", w->text);
    net_scope s = {.path = path, .args = args, .bound = bound, .depth = caller->depth + 1};
    if (s.depth > MAX_DEPTH) return hd_fail(b->err, HD_EFORMAT, "%s: templates are nested too deep", w->text);
    hd_graph_push(b->g, "%s", label);
    int rc = build_block(b, &s, block);
    if (!rc) rc = net_need(block, "result", JSON_STRING, w, b->err) ? net_value(b, &s, json_object_get(block, "result"), result, w) : b->err->code;
    hd_graph_pop(b->g);
    return rc;
}

typedef struct net_use {
    const char *name, *carry;
    const json_t *block;
    int64_t times; /* 0: once, without a number */
} net_use;

static int read_use(net_builder *b, const net_scope *s, const json_t *item, net_use *u, const net_where *w)
{
    static const char *const keys[] = {"template", "name", "with", "times", "carry", "mode", NULL};
    static const char *const block_keys[] = {"parameters", "state", "nodes", "result", NULL};
    if (net_check_keys(item, keys, w, b->err)) return b->err->code;
    const json_t *which = net_need(item, "template", JSON_STRING, w, b->err);
    if (!which) return b->err->code;
    u->block = json_object_get(json_object_get(b->net->root, "templates"), json_string_value(which));
    if (!json_is_object(u->block)) return hd_fail(b->err, HD_EFORMAT, "%s: there is no template \"%.60s\"", w->text, json_string_value(which));
    if (net_check_keys(u->block, block_keys, w, b->err)) return b->err->code;
    if (json_object_get(item, "with") && !net_need(item, "with", JSON_OBJECT, w, b->err)) return b->err->code;
    const json_t *times = json_object_get(item, "times");
    if (times && net_integer(b, s, times, "times", 1, MAX_ITEMS, &u->times, w)) return b->err->code;
    if (hd_json_string(item, "carry", &u->carry, w->text, b->err)) return b->err->code;
    if (u->times && !u->carry) return hd_fail(b->err, HD_EFORMAT, "%s: \"times\" needs \"carry\": the argument that takes the result before", w->text);
    return 0;
}

static int run_use(net_builder *b, const net_scope *s, const net_use *u, json_t *args, json_t *bound, const net_where *w)
{
    hd_value result = HD_NONE;
    char label[100];
    for (int64_t i = 0; i < (u->times ? u->times : 1); i++) {
        if (++b->n_items > MAX_ITEMS) return hd_fail(b->err, HD_EFORMAT, "%s: more than %d items", b->net->name, MAX_ITEMS);
        if (u->times) snprintf(label, sizeof label, "%s.%lld", u->name, (long long)i);
        else snprintf(label, sizeof label, "%s", u->name);
        if (i && json_object_set_new(bound, u->carry, json_integer(result))) return hd_fail_memory(b->err, 0, "arguments");
        int rc = use_once(b, s, u->block, label, args, bound, &result, w);
        if (rc) return rc;
        if (result == HD_NONE) return hd_fail(b->err, HD_EFORMAT, "%s: the template's \"result\" must name a value", w->text);
    }
    return net_bind(b, s, u->name, result, w);
}

static int use_template(net_builder *b, const net_scope *s, const json_t *item)
{
    net_use u = {.name = net_item_name(b, s, item, "node")};
    if (!u.name) return b->err->code;
    net_where w = net_where_of(b, s, "node", u.name);
    int rc = read_use(b, s, item, &u, &w);
    if (rc) return rc;
    json_t *args = json_object(), *bound = json_object(), *v;
    const char *key;
    if (!args || !bound) rc = hd_fail_memory(b->err, 0, "arguments");
    json_object_foreach(json_object_get(item, "with"), key, v) {
        if (!rc) rc = bind_argument(b, s, key, v, args, bound, &w);
    }
    if (!rc) rc = run_use(b, s, &u, args, bound, &w);
    json_decref(args);
    json_decref(bound);
    return rc;
}

/* A node of an op, or a use of a template; nothing when it belongs to the other mode. */
static int add_node(net_builder *b, const net_scope *s, const json_t *item)
{
    net_where w = net_where_of(b, s, "node", "?");
    const char *mode = NULL;
    if (!json_is_object(item)) return hd_fail(b->err, HD_EFORMAT, "%s: must be an object", w.text);
    if (hd_json_string(item, "mode", &mode, w.text, b->err)) return b->err->code;
    if (mode && strcmp(mode, "train") && strcmp(mode, "eval")) return hd_fail(b->err, HD_EFORMAT, "%s: \"mode\" must be \"train\" or \"eval\"", w.text);
    if (mode && (*mode == 't') != b->o->train) return 0;
    return json_object_get(item, "template") ? use_template(b, s, item) : net_node(b, s, item);
}

static int each(net_builder *b, const net_scope *s, const json_t *block, const char *key, int (*add)(net_builder *, const net_scope *, const json_t *))
{
    const json_t *list = json_object_get(block, key);
    if (list && !json_is_array(list)) return hd_fail(b->err, HD_EFORMAT, "%s: \"%s\" must be a list", b->net->name, key);
    for (size_t i = 0; i < json_array_size(list); i++) {
        if (++b->n_items > MAX_ITEMS) return hd_fail(b->err, HD_EFORMAT, "%s: more than %d items", b->net->name, MAX_ITEMS);
        int rc = add(b, s, json_array_get(list, i));
        if (rc) return rc;
    }
    return 0;
}

static int build_block(net_builder *b, const net_scope *s, const json_t *block)
{
    int rc = each(b, s, block, "parameters", add_parameter);
    if (!rc) rc = each(b, s, block, "state", add_state);
    if (!rc) rc = each(b, s, block, "nodes", add_node);
    if (!rc && b->o->train) rc = each(b, s, block, "state", close_state);
    return rc;
}

/* ---- loss and outputs ---- */

static int add_loss(net_builder *b, const net_scope *s)
{
    const json_t *root = b->net->root, *j = json_object_get(root, "loss");
    const char *is = "sum";
    net_where w;
    hd_value v;
    snprintf(w.text, sizeof w.text, "%s: \"loss\"", b->net->name);
    if (hd_json_string(root, "loss_is", &is, b->net->name, b->err)) return b->err->code;
    if (strcmp(is, "sum") && strcmp(is, "mean")) return hd_fail(b->err, HD_EFORMAT, "%s: \"loss_is\" must be \"sum\" or \"mean\"", b->net->name);
    if (!j) return b->o->train ? hd_fail(b->err, HD_EFORMAT, "%s: is missing", w.text) : 0;
    if (!json_is_string(j)) return hd_fail(b->err, HD_EFORMAT, "%s: must be a name", w.text);
    if (net_value(b, s, j, &v, &w)) return b->err->code;
    const hd_type *t = v == HD_NONE ? NULL : hd_type_in(b->g, v);
    char text[120];
    if (!t || t->shape.rank || !hd_dtype_is_float(t->dtype))
        return hd_fail(b->err, HD_EFORMAT, "%s: must be a floating-point scalar (sum it over the batch with reduce_sum), is %s", w.text,
                       t ? hd_type_format(text, sizeof text, t, b->g) : "nothing");
    hd_value share = hd_scale(b->g, inv_divisor(b), *is == 'm' ? (double)b->o->batch : 1);
    hd_graph_output(b->g, "loss", hd_elementwise(b->g, "loss", HD_EW_MUL, hd_cast(b->g, NULL, v, HD_F32), *is == 'm' ? share : inv_divisor(b), HD_NONE, 0));
    return 0;
}

static int add_outputs(net_builder *b, const net_scope *s)
{
    const char *key;
    json_t *j;
    json_object_foreach(json_object_get(b->net->root, "outputs"), key, j) {
        net_where w = net_where_of(b, s, "output", key);
        hd_value v;
        if (!strcmp(key, "loss") || !strcmp(key, "ok") || !strcmp(key, "grad_norm"))
            return hd_fail(b->err, HD_EFORMAT, "%s: Heddle uses this name itself", w.text);
        if (!json_is_string(j)) return hd_fail(b->err, HD_EFORMAT, "%s: must be a name", w.text);
        if (net_value(b, s, j, &v, &w)) return b->err->code;
        if (v == HD_NONE) return hd_fail(b->err, HD_EFORMAT, "%s: must name a value", w.text);
        hd_graph_output(b->g, key, v);
    }
    return 0;
}

static int build(net_builder *b)
{
    net_scope file = {.path = ""};
    int rc = each(b, &file, b->net->root, "inputs", add_input);
    if (!rc) rc = build_block(b, &file, b->net->root);
    if (!rc) rc = add_loss(b, &file);
    if (!rc) rc = add_outputs(b, &file);
    if (!rc && b->g->err.code) rc = hd_fail(b->err, b->g->err.code, "%s: %s", b->net->name, b->g->err.message);
    if (!rc && !b->g->n_outputs) rc = hd_fail(b->err, HD_EFORMAT, "%s: neither \"loss\" nor \"outputs\": nothing would be computed", b->net->name);
    if (!rc && (rc = hd_graph_verify(b->g, b->err))) hd_error_context(b->err, "%s", b->net->name);
    return rc;
}

hd_graph *hd_network_graph(const hd_network *n, const hd_network_options *o, hd_error *err)
{
    hd_error own = {0};
    net_builder b = {.net = n, .o = o, .err = err ? err : &own, .g = hd_graph_new(), .names = json_object(), .given = json_object()};
    int rc;
    if (!b.g || !b.names || !b.given || json_object_set_new(b.given, "batch", json_integer(o->batch))) rc = hd_fail_memory(b.err, 0, "the network");
    else if (o->batch < 1 || o->batch > (1 << 24)) rc = hd_fail(b.err, HD_EINVAL, "a batch must have 1 to 16777216 samples, not %lld", (long long)o->batch);
    else rc = build(&b);
    json_decref(b.names);
    json_decref(b.given);
    if (!rc) return b.g;
    hd_graph_free(b.g);
    return NULL;
}
