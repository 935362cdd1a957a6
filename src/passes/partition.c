/* partition.c: the walk: layouts of what is given, then node by node the cheapest strategy and the conversions that it asks for. */
#include <stdio.h>

#include "base/str.h"
#include "passes/partition_int.h"

static const hd_layout whole_layout;

/* ---- pins ---- */

static int pin_value(hd_part *p, hd_value v, const hd_pin *pin)
{
    hd_part_value *i = &p->value[v];
    hd_error err = {0};
    if (hd_layout_parse(p->mesh, pin->layout, i->whole.rank, &i->target, &err)) {
        hd_graph_fail(p->g, err.code, "the pin %s = \"%s\" on %s: %s", pin->pattern, pin->layout, p->g->values[v].path, err.message);
        return p->g->err.code;
    }
    for (int a = 0; a < p->mesh->n; a++)
        if (p->mesh->axis[a].role == HD_AXIS_PIPELINE && ((hd_layout_axes(&i->target, i->whole.rank) | i->target.partial) >> a & 1)) {
            hd_graph_fail(p->g, HD_EINVAL, "the pin %s = \"%s\": the pipeline's axis cuts no value", pin->pattern, pin->layout);
            return p->g->err.code;
        }
    if (i->target.partial && p->g->values[v].kind != HD_RESULT) {
        hd_graph_fail(p->g, HD_EINVAL, "the pin %s = \"%s\" on %s: only results can be partial", pin->pattern, pin->layout, p->g->values[v].path);
        return p->g->err.code;
    }
    i->has_target = i->pinned = true;
    return 0;
}

/* Whether v is still part of the graph. */
static bool exists(const hd_graph *g, hd_value v)
{
    const hd_value_info *i = &g->values[v];
    if (i->kind != HD_RESULT) return true;
    const hd_node *n = i->node >= 0 && (size_t)i->node < g->n_nodes ? g->nodes[i->node] : NULL;
    return n && i->result < n->n_out && n->out[i->result] == v;
}

static int set_pins(hd_part *p, const hd_pin *pins, int n)
{
    for (int k = 0; k < n; k++) {
        int matches = 0;
        for (size_t v = 0; v < p->n_values; v++) {
            if (!exists(p->g, (hd_value)v) || !hd_path_match(pins[k].pattern, p->g->values[v].path)) continue;
            matches++;
            if (pin_value(p, (hd_value)v, &pins[k])) return p->g->err.code;
        }
        if (!matches) return hd_graph_fail(p->g, HD_EINVAL, "the pin %s = \"%s\" matches nothing", pins[k].pattern, pins[k].layout), HD_EINVAL;
    }
    return 0;
}

/* ---- what there is to know beforehand ---- */

static void learn_values(hd_part *p)
{
    const hd_graph *g = p->g;
    for (size_t v = 0; v < p->n_values; v++) {
        hd_part_value *i = &p->value[v];
        i->dtype = g->values[v].type.dtype;
        i->whole = g->values[v].type.shape;
        i->weight = g->values[v].kind == HD_PARAM || g->values[v].kind == HD_STATE || g->values[v].kind == HD_CONST;
    }
    for (size_t i = 0; i < g->n_nodes; i++) {
        const hd_node *n = g->nodes[i];
        bool weight = true;
        for (int k = 0; k < n->n_in; k++) {
            if (n->in[k] == HD_NONE) continue;
            p->value[n->in[k]].used = true;
            p->value[n->in[k]].readers++;
            weight &= p->value[n->in[k]].weight;
        }
        if (!n->n_in) weight = hd_part_receives_weight(p, n);
        for (int k = 0; k < n->n_out; k++) p->value[n->out[k]].weight = weight;
    }
    for (size_t i = 0; i < g->n_outputs; i++) p->value[g->outputs[i].value].used = true;
    for (size_t i = 0; i < g->n_pairs; i++) p->value[g->pairs[i].out].used = true;
}

bool hd_part_passes_gradient(const hd_node *n)
{
    static const char *const ops[] = {"add", "cast", "reshape", "scale", "mul", "transpose", "broadcast", "reduce_sum"};
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        if (!strcmp(n->op->name, ops[i])) return true;
    return false;
}

static bool passes_gradient_on(const hd_node *n) { return hd_part_passes_gradient(n) || !strcmp(n->op->name, "micro_sum"); }

static int learn_gradients(hd_part *p)
{
    const hd_graph *g = p->g;
    bool *other = hd_calloc(p->n_values + 1, sizeof *other); /* something else reads it */
    if (!other) return hd_fail_memory(&p->g->err, p->n_values, "partitioning");
    for (size_t i = 0; i < g->n_outputs; i++) other[g->outputs[i].value] = true;
    for (size_t i = g->n_nodes; i-- > 0;) {
        const hd_node *n = g->nodes[i];
        bool leads = n->n_out > 0 && hd_part_passes_gradient(n);
        for (int k = 0; k < n->n_out; k++) {
            hd_part_value *v = &p->value[n->out[k]];
            v->gradient = v->used && !other[n->out[k]];
            leads &= v->gradient;
        }
        leads |= !strcmp(n->op->name, "micro_sum");
        for (int k = 0; k < n->n_in; k++)
            if (n->in[k] != HD_NONE && !leads) other[n->in[k]] = true;
    }
    hd_free(other);
    return 0;
}

/* Which gradients are one of several addends of their parameter's, and which are reduced before their sum over micro-batches. */
static void learn_sums(hd_part *p)
{
    for (size_t i = p->g->n_nodes; i-- > 0;) {
        const hd_node *n = p->g->nodes[i];
        bool sum = !strcmp(n->op->name, "micro_sum"), add = !strcmp(n->op->name, "add");
        if (!n->n_out || !passes_gradient_on(n)) continue;
        const hd_part_value *out = &p->value[n->out[0]];
        for (int k = 0; k < n->n_in; k++) {
            if (n->in[k] == HD_NONE) continue;
            p->value[n->in[k]].shared |= add || out->shared;
            p->value[n->in[k]].each |= out->each || (sum && out->pinned && !out->target.partial);
        }
    }
}

/* Parameter, states and gradient of an optimizer's node; -1: none. */
typedef struct optimizer_operands { const char *op; int param, state[2], grad; } optimizer_operands;
static const optimizer_operands optimizers[] = {{"adamw", 0, {1, 2}, 3}, {"sgd", 0, {1, -1}, 2}};

static void follow_parameter(hd_part *p, const hd_node *n, const optimizer_operands *o)
{
    hd_part_value *param = &p->value[n->in[o->param]], *grad = &p->value[n->in[o->grad]];
    grad->has_home = true;
    grad->home = param->target;
    for (int k = 1; k >= 0; k--) {
        hd_value state = o->state[k] < 0 ? HD_NONE : n->in[o->state[k]];
        if (state == HD_NONE) continue;
        if (!p->value[state].has_target) p->value[state].target = param->target;
        p->value[state].has_target = true;
        grad->home = p->value[state].target;
    }
    if (grad->pinned) grad->home = grad->target;
}

static void follow_parameters(hd_part *p)
{
    for (size_t i = 0; i < p->g->n_nodes; i++)
        for (size_t k = 0; k < sizeof optimizers / sizeof *optimizers; k++)
            if (!strcmp(p->g->nodes[i]->op->name, optimizers[k].op)) follow_parameter(p, p->g->nodes[i], &optimizers[k]);
}

/* What a gradient is the sum of had better lie as it will, too. */
static void pass_homes_back(hd_part *p)
{
    static const char *const ops[] = {"micro_sum", "add", "cast"};
    for (size_t i = p->g->n_nodes; i-- > 0;) {
        const hd_node *n = p->g->nodes[i];
        bool passes = false;
        for (size_t k = 0; k < sizeof ops / sizeof *ops; k++) passes |= !strcmp(n->op->name, ops[k]);
        const hd_part_value *out = passes ? &p->value[n->out[0]] : NULL;
        for (int k = 0; out && out->has_home && k < n->n_in; k++) {
            hd_part_value *in = &p->value[n->in[k]];
            if (in->has_home || !hd_shape_equal(&in->whole, &out->whole)) continue;
            in->has_home = true;
            in->home = in->pinned ? in->target : out->home;
        }
    }
}

/* Leaves lie as pinned, or whole; what a state becomes lies as the state. */
static void lay_leaves(hd_part *p)
{
    hd_graph *g = p->g;
    for (size_t v = 0; v < p->n_values && !g->err.code; v++) {
        hd_part_value *i = &p->value[v];
        if (g->values[v].kind == HD_RESULT) continue;
        if (!hd_part_set_layout(p, (hd_value)v, &i->target, &i->whole)) hd_part_hold(p, (hd_value)v, (hd_value)v, &i->target, -1, -1);
    }
    for (size_t k = 0; k < g->n_pairs && !g->err.code; k++) {
        hd_part_value *out = &p->value[g->pairs[k].out];
        if (g->values[g->pairs[k].out].kind != HD_RESULT) continue;
        out->has_target = true;
        out->target = p->value[g->pairs[k].in].target;
    }
}

/* ---- nodes ---- */

int hd_part_append(hd_part *p, hd_node *n)
{
    hd_graph *g = p->g;
    if (hd_grow(&g->nodes, &g->cap_nodes, g->n_nodes + 1, sizeof *g->nodes)) return hd_fail_memory(&g->err, g->n_nodes, "the graph");
    g->nodes[g->n_nodes++] = n;
    for (int k = 0; k < n->n_out; k++) g->values[n->out[k]].node = (int)g->n_nodes - 1;
    return 0;
}

/* The sum of two gradients of one parameter is a sum of addends too, and they are summed between ranks once. */
static bool adds_addends(const hd_part *p, const hd_node *n)
{
    const hd_part_value *a = &p->value[n->in[0]], *b = n->n_in == 2 ? &p->value[n->in[1]] : NULL;
    if (strcmp(n->op->name, "add") || !b || !a->has_home || !b->has_home || !a->held || !b->held || !p->value[n->out[0]].has_home) return false;
    return hd_layout_equal(p->mesh, &a->held->layout, &b->held->layout, &a->whole);
}

/* A gradient's addends are summed when the update first reads it, into the layout that the optimizer wants it in. */
static void bring_home(hd_part *p, const hd_node *n)
{
    if (adds_addends(p, n)) return;
    for (int k = 0; k < n->n_in && n->phase == HD_UPDATE; k++) {
        hd_part_value *v = n->in[k] == HD_NONE ? NULL : &p->value[n->in[k]];
        if (!v || !v->has_home || !v->held || !v->held->layout.partial || v->home.partial) continue;
        hd_value x = hd_part_convert(p, n->in[k], &v->home, n);
        if (x == HD_NONE) return;
        v->held = NULL;
        hd_part_hold(p, n->in[k], x, &v->home, -1, -1);
    }
}

static hd_dtype *dtype_attr(const hd_node *n)
{
    for (const hd_attr *a = n->op->attrs; n->attrs && a && a->name; a++)
        if (a->type == HD_ATTR_DTYPE) return (hd_dtype *)(void *)((char *)n->attrs + a->offset);
    return NULL;
}

/* Addends are f32: where the node would round them to less it gives f32 instead, and the sum is rounded. */
static void widen_addends(hd_part *p, hd_node *n, const hd_strategy *s)
{
    bool narrow = false;
    for (int r = 0; r < n->n_out; r++) {
        const hd_part_value *v = &p->value[n->out[r]];
        narrow |= v->used && s->out[r].partial && hd_dtype_is_float(v->dtype) && hd_dtype_size(v->dtype) < 4;
    }
    hd_dtype *dtype = narrow ? dtype_attr(n) : NULL;
    if (!dtype) return;
    hd_type in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS], wide[HD_MAX_RESULTS] = {0};
    hd_sig sig;
    *dtype = HD_F32;
    hd_part_signature(p, n, &sig, in, out);
    if (n->op->infer(&sig, wide, &p->g->err) != n->n_out) return;
    for (int r = 0; r < n->n_out; r++) p->g->values[n->out[r]].type.dtype = wide[r].dtype;
}

static void set_splits(hd_part *p, hd_node *n, const hd_strategy *s)
{
    hd_loop_split splits[HD_MAX_LOOPS];
    int count = 0;
    for (int l = 0; l < HD_MAX_LOOPS; l++)
        if (s->loop[l].n) splits[count++] = (hd_loop_split){l, s->loop[l]};
    n->splits = hd_arena_copy(&p->g->arena, splits, (size_t)count * sizeof *splits);
    n->n_splits = n->splits ? count : 0;
    if (!n->splits) hd_fail_memory(&p->g->err, sizeof splits, "partitioning");
}

void hd_part_hold_result(hd_part *p, hd_value v, hd_value x, const hd_layout *layout, const hd_node *maker)
{
    hd_part_value *i = &p->value[v];
    if (hd_part_set_layout(p, x, layout, &i->whole) || hd_part_hold(p, v, x, layout, -1, -1)) return;
    if (!i->pinned || !i->used || hd_layout_equal(p->mesh, layout, &i->target, &i->whole)) return;
    x = hd_part_convert(p, v, &i->target, maker);
    if (x == HD_NONE) return;
    i->held = NULL;
    hd_part_hold(p, v, x, &i->target, -1, -1);
}

void hd_part_hold_results(hd_part *p, const hd_node *n, const hd_layout *out)
{
    for (int r = 0; r < n->n_out && !p->g->err.code; r++) hd_part_hold_result(p, n->out[r], n->out[r], &out[r], n);
}

void hd_part_apply(hd_part *p, hd_node *n, const hd_strategy *s)
{
    hd_value in[HD_MAX_OPERANDS];
    for (int k = 0; k < n->n_in && !p->g->err.code; k++) in[k] = n->in[k] == HD_NONE ? HD_NONE : hd_part_convert(p, n->in[k], &s->in[k], n);
    if (p->g->err.code) return;
    widen_addends(p, n, s);
    memcpy(n->in, in, (size_t)n->n_in * sizeof *in);
    set_splits(p, n, s);
    if (!p->g->err.code && !hd_part_append(p, n)) hd_part_hold_results(p, n, s->out);
}

static void partition_node(hd_part *p, hd_node *n)
{
    hd_strategy s;
    bring_home(p, n);
    if (p->g->err.code || hd_part_cross(p, n) || hd_part_expand(p, n)) return;
    hd_part_choose(p, n, &s);
    hd_part_apply(p, n, &s);
}

/* ---- the end ---- */

/* Outputs are whole, states become what lies as they do. */
static void finish(hd_part *p)
{
    hd_graph *g = p->g;
    for (size_t i = 0; i < g->n_pairs && !g->err.code; i++) {
        hd_value v = g->pairs[i].out;
        const hd_node reader = {.phase = HD_UPDATE, .chunk = g->values[v].node < 0 ? 0 : g->nodes[g->values[v].node]->chunk};
        hd_value x = hd_part_convert(p, v, &p->value[g->pairs[i].in].target, &reader);
        if (x != HD_NONE) g->pairs[i].out = x;
    }
    for (size_t i = 0; i < g->n_outputs && !g->err.code; i++) {
        hd_value v = g->outputs[i].value;
        const hd_node *maker = g->values[v].node < 0 ? NULL : g->nodes[g->values[v].node];
        hd_node reader = {.phase = maker ? maker->phase : HD_FORWARD, .chunk = maker ? maker->chunk : 0, .slice = maker ? maker->slice : 0};
        if (g->values[v].micro == HD_TIME_REPLICATE && reader.phase == HD_BACKWARD) reader.phase = HD_UPDATE;
        hd_value x = hd_part_convert(p, v, &whole_layout, &reader);
        if (x != HD_NONE) g->outputs[i].value = x;
    }
}

/* The graph's nodes, but sums over micro-batches right behind what they sum: a gradient that is kept in pieces is scattered before the next is made. */
static int list_nodes(const hd_graph *g, hd_node **nodes)
{
    int *next = hd_malloc(2 * (g->n_nodes + 1) * sizeof *next), *first = next ? next + g->n_nodes + 1 : NULL; /* of the sums of a node's results */
    size_t n = 0;
    if (!next) return HD_ENOMEM;
    for (size_t i = 0; i < g->n_nodes; i++) first[i] = -1;
    for (size_t i = g->n_nodes; i-- > 0;) {
        const hd_node *sum = g->nodes[i];
        int maker = strcmp(sum->op->name, "micro_sum") ? -1 : g->values[sum->in[0]].node;
        next[i] = maker < 0 ? (int)i : first[maker]; /* itself: stays where it is */
        if (maker >= 0) first[maker] = (int)i;
    }
    for (size_t i = 0; i < g->n_nodes; i++) {
        if (next[i] == (int)i) nodes[n++] = g->nodes[i];
        for (int k = first[i]; k >= 0; k = next[k]) nodes[n++] = g->nodes[k];
    }
    hd_free(next);
    return 0;
}

/* Nodes are taken out of the graph, and come back one by one behind what converts their operands. */
static void walk(hd_part *p)
{
    hd_graph *g = p->g;
    size_t n = g->n_nodes;
    hd_node **nodes = hd_malloc((n + 1) * sizeof *nodes);
    if (!nodes || list_nodes(g, nodes)) {
        hd_free(nodes);
        hd_fail_memory(&g->err, n, "partitioning");
        return;
    }
    g->n_nodes = 0;
    for (size_t i = 0; i < n && !g->err.code; i++) partition_node(p, nodes[i]);
    hd_free(nodes);
    if (!g->err.code) finish(p);
}

/* Values of nodes dropped before have no pieces, but a layout as all have. */
static void lay_unused(hd_part *p)
{
    for (size_t v = 0; v < p->n_values && !p->g->err.code; v++)
        if (!p->g->values[v].layout) hd_part_set_layout(p, (hd_value)v, &whole_layout, &p->value[v].whole);
}

static int check_mesh(hd_graph *g, const hd_mesh *mesh)
{
    if (mesh->n < 0 || mesh->n > HD_MAX_AXES) return hd_graph_fail(g, HD_EINVAL, "a mesh has at most %d axes", HD_MAX_AXES), g->err.code;
    for (int a = 0; a < mesh->n; a++)
        if (mesh->axis[a].size < 1) return hd_graph_fail(g, HD_EINVAL, "axis %s of the mesh has no ranks", mesh->axis[a].name), g->err.code;
    if (g->mesh.n) return hd_graph_fail(g, HD_EINVAL, "the graph is partitioned already"), g->err.code;
    return 0;
}

static void run(hd_part *p, const hd_pin *pins, int n_pins)
{
    learn_values(p);
    if (set_pins(p, pins, n_pins) || learn_gradients(p)) return;
    learn_sums(p);
    follow_parameters(p);
    pass_homes_back(p);
    lay_leaves(p);
    if (!p->g->err.code) walk(p);
    lay_unused(p);
}

int hd_part_leaves(hd_graph *g, const hd_mesh *mesh, const hd_pin *pins, int n_pins)
{
    if (g->err.code || check_mesh(g, mesh)) return g->err.code;
    hd_part p = {.g = g, .mesh = &g->mesh, .n_values = g->n_values, .value = hd_calloc(g->n_values + 1, sizeof *p.value)};
    if (!p.value) return hd_fail_memory(&g->err, g->n_values, "partitioning");
    g->mesh = *mesh;
    learn_values(&p);
    if (!set_pins(&p, pins, n_pins)) {
        follow_parameters(&p);
        lay_leaves(&p);
    }
    hd_free(p.value);
    return g->err.code;
}

int hd_pass_partition(hd_graph *g, const hd_mesh *mesh, const hd_pin *pins, int n_pins, bool keep_gathered)
{
    return hd_part_run(g, mesh, pins, n_pins, keep_gathered, NULL);
}

int hd_part_run(hd_graph *g, const hd_mesh *mesh, const hd_pin *pins, int n_pins, bool keep_gathered, const hd_graph *like)
{
    if (g->err.code || check_mesh(g, mesh)) return g->err.code;
    hd_part p = {.g = g, .mesh = &g->mesh, .n_values = g->n_values, .keep_gathered = keep_gathered, .like = like};
    const char *scope = g->scope;
    const hd_node *origin = g->origin;
    hd_phase phase = g->phase;
    int chunk = g->chunk, slice = g->slice;
    g->mesh = *mesh;
    for (int a = 0; a < mesh->n; a++)
        if (mesh->axis[a].size > 1 && mesh->axis[a].role != HD_AXIS_PIPELINE) p.axis[p.n_axes++] = a;
    p.value = hd_calloc(p.n_values + 1, sizeof *p.value);
    g->scope = "";
    if (p.value) run(&p, pins, n_pins);
    else hd_fail_memory(&g->err, p.n_values, "partitioning");
    hd_free(p.value);
    g->scope = scope;
    g->origin = origin;
    g->phase = phase;
    g->chunk = chunk;
    g->slice = slice;
    return g->err.code;
}
