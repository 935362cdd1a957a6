/* convert.c: from one layout of a value to another. */
#include <stdio.h>

#include "passes/partition_int.h"

/* ---- which collectives ---- */

typedef struct converter {
    const hd_mesh *mesh;
    const hd_shape *whole;
    const hd_layout *to;
    hd_layout now;
    hd_convert_step *steps;
    int n;
} converter;

static hd_convert_step *step_new(converter *c, const char *op, int axis)
{
    hd_convert_step *s = &c->steps[c->n++];
    *s = (hd_convert_step){.op = op, .axes = {(int8_t)axis}, .n_axes = axis < 0 ? 0 : 1};
    return s;
}

/* Whether the cuts that dimension d has now are the first of those it is to have. */
static bool is_prefix(const converter *c, int d)
{
    hd_dim_layout first = c->to->dim[d];
    if (c->now.dim[d].n > first.n) return false;
    first.n = c->now.dim[d].n;
    return hd_dim_layout_equal(c->mesh, &c->now.dim[d], &first, c->whole->dim[d]);
}

/* The dimension that is to be cut next over the axis; -1: none is ready for it. */
static int wanted_next(const converter *c, int axis)
{
    for (int d = 0; d < c->whole->rank; d++) {
        int n = c->now.dim[d].n;
        if (n < c->to->dim[d].n && c->to->dim[d].axis[n] == axis && is_prefix(c, d)) return d;
    }
    return -1;
}

/* One more cut of a dimension whose cuts so far are the first of those wanted, if perhaps in other units. */
static void cut(converter *c, int d)
{
    int n = c->now.dim[d].n + 1;
    c->now.dim[d] = c->to->dim[d];
    c->now.dim[d].n = (int8_t)n;
}

/* Straight to Split where that is wanted; what is left is summed in one go. */
static void reduce_partials(converter *c)
{
    uint32_t left = c->now.partial & ~c->to->partial;
    bool max = c->now.max;
    for (int a = 0; a < c->mesh->n; a++) {
        int d = left >> a & 1 ? wanted_next(c, a) : -1;
        if (d < 0) continue;
        hd_convert_step *s = step_new(c, "reduce_scatter", a);
        left &= ~(1u << a);
        c->now.partial &= ~(1u << a);
        cut(c, d);
        s->dim = d;
        s->max = max;
        s->after = c->now;
        a = -1; /* what had to wait for this cut */
    }
    if (!left) return;
    hd_convert_step *s = step_new(c, "all_reduce", -1);
    for (int a = 0; a < c->mesh->n; a++)
        if (left >> a & 1) s->axes[s->n_axes++] = (int8_t)a;
    c->now.partial &= ~left;
    s->max = max;
    s->after = c->now;
}

/* Takes cuts away, the innermost first, until those left are wanted. Where addends are wanted, pieces amid zeros are such. */
static void gather_dim(converter *c, int d)
{
    while (!is_prefix(c, d)) {
        int axis = c->now.dim[d].axis[--c->now.dim[d].n], to = wanted_next(c, axis);
        if (to == d) to = -1;
        bool place = c->to->partial >> axis & 1 && !c->to->max;
        hd_convert_step *s = step_new(c, to >= 0 ? "all_to_all" : place ? "place" : "all_gather", axis);
        if (to >= 0) cut(c, to);
        else if (place) c->now.partial |= 1u << axis;
        s->dim = d;
        s->to = to < 0 ? 0 : to;
        s->after = c->now;
    }
}

static void shard_dim(converter *c, int d)
{
    while (c->now.dim[d].n < c->to->dim[d].n) {
        hd_convert_step *s = step_new(c, "shard", c->to->dim[d].axis[c->now.dim[d].n]);
        cut(c, d);
        s->dim = d;
        s->after = c->now;
    }
}

int hd_part_steps(const hd_mesh *mesh, const hd_shape *whole, const hd_layout *from, const hd_layout *to, hd_convert_step *steps)
{
    converter c = {.mesh = mesh, .whole = whole, .to = to, .now = *from, .steps = steps};
    if (hd_layout_equal(mesh, from, to, whole)) return 0;
    reduce_partials(&c);
    if (!c.now.partial) c.now.max = false;
    for (int d = 0; d < whole->rank; d++) gather_dim(&c, d);
    for (int d = 0; d < whole->rank; d++) shard_dim(&c, d);
    uint32_t first = to->partial & ~c.now.partial;
    if (!first) return c.n;
    hd_convert_step *s = step_new(&c, "keep_first", -1);
    for (int a = 0; a < mesh->n; a++)
        if (first >> a & 1) s->axes[s->n_axes++] = (int8_t)a;
    c.now.partial |= first;
    s->after = c.now;
    return c.n;
}

/* ---- what they cost ---- */

/* Far more than any choice between ways of moving the right thing. */
#define WRONG_THING 1000.0

double hd_part_weight(const hd_part *p, hd_value v, int axis)
{
    const hd_part_value *i = &p->value[v];
    bool activation = p->g->values[v].micro != HD_TIME_REPLICATE && !i->gradient;
    if (p->mesh->axis[axis].role == HD_AXIS_DATA) return activation ? WRONG_THING : 1;
    return i->weight ? WRONG_THING : 1;
}

double hd_part_bytes(const hd_part *p, hd_value v, const hd_layout *layout)
{
    const hd_part_value *i = &p->value[v];
    size_t size = hd_dtype_size(i->dtype);
    if (layout->partial && size < 4) size = 4;
    double bytes = (double)hd_shape_count(&i->whole) * (double)size;
    for (int d = 0; d < i->whole.rank; d++)
        for (int k = 0; k < layout->dim[d].n; k++) bytes /= p->mesh->axis[layout->dim[d].axis[k]].size;
    return bytes;
}

/* Bytes that leave a rank, of pieces of `bytes` before the step, over n ranks. */
static double step_bytes(const hd_convert_step *s, double bytes, double n)
{
    switch (s->op[0] == 'a' ? s->op[4] : s->op[0]) {
    case 'r': return s->op[0] == 'r' ? bytes * (n - 1) / n : 2 * bytes * (n - 1) / n; /* reduce_scatter, all_reduce */
    case 'g': return bytes * (n - 1);                                                 /* all_gather */
    case 't': return bytes * (n - 1) / n;                                             /* all_to_all */
    default: return 0;
    }
}

static double conversion_cost(const hd_part *p, hd_value v, const hd_layout *from, const hd_layout *to, double over_data)
{
    hd_convert_step steps[HD_MAX_STEPS];
    int n = hd_part_steps(p->mesh, &p->value[v].whole, from, to, steps);
    double cost = 0;
    for (int i = 0; i < n; i++) {
        double ranks = 1, weight = 1;
        for (int k = 0; k < steps[i].n_axes; k++) {
            bool given = over_data > 0 && p->mesh->axis[steps[i].axes[k]].role == HD_AXIS_DATA;
            double w = given ? over_data : hd_part_weight(p, v, steps[i].axes[k]);
            ranks *= p->mesh->axis[steps[i].axes[k]].size;
            if (w > weight) weight = w;
        }
        cost += weight * step_bytes(&steps[i], hd_part_bytes(p, v, i ? &steps[i - 1].after : from), ranks);
    }
    return cost;
}

double hd_part_conversion_cost(const hd_part *p, hd_value v, const hd_layout *from, const hd_layout *to)
{
    return conversion_cost(p, v, from, to, 0);
}

double hd_part_pin_cost(const hd_part *p, hd_value v, const hd_layout *from, const hd_layout *to)
{
    return conversion_cost(p, v, from, to, p->value[v].pinned && p->g->values[v].kind == HD_RESULT ? 1 : 0);
}

double hd_part_rows_cost(const hd_part *p, hd_value v, const hd_layout *from, const hd_layout *to)
{
    return conversion_cost(p, v, from, to, (double)p->g->rows_micro);
}

/* ---- the forms of a value ---- */

bool hd_part_usable(const hd_part *p, hd_value v, const hd_held *h, int phase, int chunk)
{
    bool kept = p->g->values[v].micro != HD_TIME_REPLICATE && !h->gathered; /* an activation is kept for backward as it was needed in forward */
    if (p->keep_gathered && p->value[v].weight) kept = phase != HD_UPDATE;
    return (h->phase < 0 || h->phase == phase || (kept && h->phase <= phase)) && (h->chunk < 0 || h->chunk == chunk);
}

/* Whether an earlier phase has gathered v to just this, so that it will be gathered again for whoever reads it: nobody should go another way. */
static bool gathered_before(const hd_part *p, hd_value v, const hd_layout *to, int phase, int chunk)
{
    for (const hd_held *h = p->value[v].held; h; h = h->next)
        if (h->gathered && h->phase < phase && h->chunk == chunk && hd_layout_equal(p->mesh, &h->layout, to, &p->value[v].whole)) return true;
    return false;
}

const hd_held *hd_part_nearest(const hd_part *p, hd_value v, const hd_layout *to, int phase, int chunk, double *cost)
{
    const hd_held *best = NULL;
    double least = 0;
    for (const hd_held *h = p->value[v].held; h; h = h->next) {
        if (!hd_part_usable(p, v, h, phase, chunk)) continue;
        double c = hd_part_conversion_cost(p, v, &h->layout, to);
        if (best && c >= least && !(c == least && hd_layout_equal(p->mesh, &h->layout, to, &p->value[v].whole))) continue;
        best = h;
        least = c;
    }
    if (cost) *cost = least > 0 && gathered_before(p, v, to, phase, chunk) ? 1e-3 * hd_part_bytes(p, v, to) : least;
    return best;
}

int hd_part_set_layout(hd_part *p, hd_value x, const hd_layout *layout, const hd_shape *whole)
{
    hd_graph *g = p->g;
    if (g->err.code || x == HD_NONE) return g->err.code;
    const hd_layout *copy = hd_arena_copy(&g->arena, layout, sizeof *layout);
    if (!copy) return hd_fail_memory(&g->err, sizeof *layout, "a layout");
    hd_value_info *i = &g->values[x];
    i->layout = copy;
    i->whole = *whole;
    i->type.shape = hd_layout_largest(p->mesh, copy, whole);
    return 0;
}

bool hd_is_regathered(const hd_graph *g, hd_value v)
{
    if (g->values[v].kind != HD_RESULT || g->values[v].micro != HD_TIME_SPLIT) return false;
    const hd_node *n = g->nodes[g->values[v].node];
    if (!n->op->is_comm || n->n_in != 1) return false;
    return g->values[n->in[0]].micro == HD_TIME_REPLICATE || hd_is_regathered(g, n->in[0]);
}

/* Whether what the step makes of a value of the whole step belongs to the reader's call. */
static bool belongs_to_call(const hd_part *p, const hd_convert_step *s, const hd_node *reader)
{
    if (p->keep_gathered || strcmp(s->op, "all_gather") || reader->phase == HD_UPDATE || !reader->n_out) return false;
    return p->mesh->axis[s->axes[0]].role == HD_AXIS_DATA && p->g->values[reader->out[0]].micro == HD_TIME_SPLIT;
}

static bool is_gather(const hd_graph *g, hd_value x)
{
    return g->values[x].kind == HD_RESULT && !strcmp(g->nodes[g->values[x].node]->op->name, "all_gather");
}

int hd_part_hold(hd_part *p, hd_value v, hd_value x, const hd_layout *layout, int phase, int chunk)
{
    hd_held *h = hd_arena_alloc(&p->g->arena, sizeof *h), **end = &p->value[v].held;
    if (!h) return hd_fail_memory(&p->g->err, sizeof *h, "a layout");
    *h = (hd_held){.layout = *layout, .value = x, .phase = phase, .chunk = chunk, .gathered = is_gather(p->g, x)};
    while (*end) end = &(*end)->next;
    *end = h;
    return 0;
}

/* ---- nodes ---- */

void hd_part_build_for(hd_graph *g, const hd_node *reader)
{
    g->scope = "";
    g->phase = reader->phase;
    g->chunk = reader->chunk;
    g->slice = reader->slice;
    g->origin = reader->origin;
}

hd_value hd_part_emit(hd_part *p, hd_value x, const char *path, const hd_convert_step *s, const hd_node *reader)
{
    hd_graph *g = p->g;
    char name[300];
    if (g->err.code) return HD_NONE;
    const hd_shape whole = g->values[x].whole;
    const hd_shape after = hd_layout_largest(p->mesh, &s->after, &whole);
    hd_comm_attrs at = {.dim = s->dim, .to = s->to, .max = s->max};
    bool has_dim = strcmp(s->op, "all_reduce") && strcmp(s->op, "keep_first");
    if (has_dim) at.extent = after.dim[s->dim];
    if (!strcmp(s->op, "all_to_all")) at.to_extent = after.dim[s->to];
    hd_mesh_print_axes(p->mesh, s->axes, s->n_axes, at.axes, sizeof at.axes);
    snprintf(name, sizeof name, "%s.%s", path, s->op);
    hd_part_build_for(g, reader);
    hd_value y = hd_graph_node(g, s->op, name, &at, &x, 1);
    hd_part_set_layout(p, y, &s->after, &whole);
    if (!g->err.code && belongs_to_call(p, s, reader)) g->values[y].micro = HD_TIME_SPLIT;
    return g->err.code ? HD_NONE : y;
}

void hd_part_split_dims(hd_part *p, hd_node *n, const hd_layout *layout, int rank)
{
    hd_loop_split splits[HD_MAX_RANK] = {0};
    int count = 0;
    for (int d = 0; d < rank; d++)
        if (layout->dim[d].n) splits[count++] = (hd_loop_split){d, layout->dim[d]};
    n->splits = hd_arena_copy(&p->g->arena, splits, (size_t)count * sizeof *splits);
    n->n_splits = n->splits ? count : 0;
    if (count && !n->splits) hd_fail_memory(&p->g->err, sizeof splits, "partitioning");
}

/* x, which v is held as, back in v's own dtype. Its addends are summed. */
static hd_value emit_cast(hd_part *p, hd_value v, hd_value x, const hd_layout *layout, const hd_node *reader)
{
    hd_graph *g = p->g;
    char name[300];
    const hd_shape whole = p->value[v].whole;
    snprintf(name, sizeof name, "%s.%s", g->values[v].path, hd_dtype_name(p->value[v].dtype));
    hd_part_build_for(g, reader);
    hd_value y = hd_cast(g, name, x, p->value[v].dtype);
    if (hd_part_set_layout(p, y, layout, &whole) || y == HD_NONE) return HD_NONE;
    hd_part_split_dims(p, g->nodes[g->values[y].node], layout, whole.rank);
    return y;
}

hd_value hd_part_convert(hd_part *p, hd_value v, const hd_layout *to, const hd_node *reader)
{
    hd_graph *g = p->g;
    hd_convert_step steps[HD_MAX_STEPS];
    const hd_held *from = hd_part_nearest(p, v, to, reader->phase, reader->chunk, NULL);
    if (!from || g->err.code) return HD_NONE;
    const char *path = g->values[v].path;
    hd_value x = from->value;
    const hd_layout *now = &from->layout;
    int n = hd_part_steps(p->mesh, &p->value[v].whole, now, to, steps);
    for (int i = 0; i <= n && !g->err.code; i++) {
        if (!now->partial && g->values[x].type.dtype != p->value[v].dtype) {
            x = emit_cast(p, v, x, now, reader);
            if (!g->err.code) hd_part_hold(p, v, x, now, reader->phase, reader->chunk);
        }
        if (i == n || g->err.code) break;
        x = hd_part_emit(p, x, path, &steps[i], reader);
        now = &steps[i].after;
        bool raw = !now->partial && !g->err.code && g->values[x].type.dtype != p->value[v].dtype;
        if (!raw && !g->err.code) hd_part_hold(p, v, x, now, reader->phase, reader->chunk);
    }
    return g->err.code ? HD_NONE : x;
}
