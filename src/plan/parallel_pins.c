/* parallel_pins.c: which layout each value is to have; pins.c says so in as few pins as do. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plan/parallel_int.h"

typedef struct pinner {
    const hd_parallel *p;
    const hd_graph *g;
    const hd_outline *o;
    hd_plan *plan;
    hd_error *err;
    hd_layout *layout; /* [values] */
    bool *pinned;      /* [values] */
    int dp, cp;        /* axes, -1: none */
    int tp[2], n_tp, n_kv; /* tensor-parallel axes; the first n_kv of them split key/value heads */
} pinner;

static void append(hd_dim_layout *d, int axis, int64_t unit)
{
    if (axis < 0) return;
    d->unit[d->n] = unit;
    d->axis[d->n++] = (int8_t)axis;
}

static hd_layout *pin(pinner *s, hd_value v)
{
    s->pinned[v] = true;
    s->layout[v] = (hd_layout){0};
    return &s->layout[v];
}

/* ---- inputs: sequences over dp, tokens of one over cp; samples of other networks over dp and tp ---- */

static void split_rows(const pinner *s, hd_dim_layout *d, int64_t unit)
{
    append(d, s->dp, unit);
    append(d, s->cp, 1);
    for (int i = 0; i < s->n_tp && !s->o->language; i++) append(d, s->tp[i], 1);
}

/* Of one sequence, in a value of so many rows: all of them, or those of the slice that the path names. 0: the rows are something else. */
static int64_t tokens_of(const pinner *s, const char *path, int64_t rows)
{
    const char *mark = strchr(path, '@');
    int64_t batch = s->o->rows / s->o->sequence;
    int slice = mark ? atoi(mark + 1) : 0;
    if (!mark) return rows == s->o->rows ? s->o->sequence : 0;
    return slice < s->plan->n_slices && rows == batch * s->plan->slices[slice] ? s->plan->slices[slice] : 0;
}

/* With slices it is the tokens of each that are over cp. */
static void pin_slices(pinner *s)
{
    for (size_t v = 0; v < s->g->n_values && s->plan->n_slices && s->cp >= 0; v++) {
        const hd_value_info *i = &s->g->values[v];
        const char *mark = strchr(i->path, '@'); /* "slice.tokens@2" */
        int64_t tokens = mark && !strncmp(i->path, "slice.", 6) && i->type.shape.rank ? tokens_of(s, i->path, i->type.shape.dim[0]) : 0;
        if (i->kind == HD_RESULT && tokens && !mark[1 + strspn(mark + 1, "0123456789")]) split_rows(s, &pin(s, (hd_value)v)->dim[0], tokens);
    }
}

static void pin_inputs(pinner *s)
{
    for (size_t v = 0; v < s->g->n_values; v++) {
        const hd_value_info *i = &s->g->values[v];
        if (i->kind != HD_INPUT || i->micro != HD_TIME_SPLIT || !i->type.shape.rank) continue;
        int64_t batch = s->o->rows / s->o->sequence, n = i->type.shape.dim[0];
        if (n % batch || (s->o->language && n != s->o->rows)) continue;
        hd_dim_layout *d = &pin(s, (hd_value)v)->dim[0];
        if (s->plan->n_slices) append(d, s->dp, n / batch); /* whole sequences, for slices to be taken of them */
        else split_rows(s, d, n / batch);
    }
}

/* ---- parameters: columns, rows, vocabulary ---- */

typedef enum part { QUERY_HEADS, KEY_HEADS, EVERY_UNIT } part;
/* letter: what the product's spec calls the dimension that is split; 0: the first dimension. */
typedef struct rule { const char *pattern; char letter; part part; } rule;
static const rule rules[] = {
    {"layers.*.attn.q", 'h', QUERY_HEADS}, {"layers.*.attn.k", 'h', KEY_HEADS}, {"layers.*.attn.v", 'h', KEY_HEADS}, {"layers.*.attn.o", 'h', QUERY_HEADS},
    {"layers.*.attn.q_bias", 0, QUERY_HEADS}, {"layers.*.attn.k_bias", 0, KEY_HEADS}, {"layers.*.attn.v_bias", 0, KEY_HEADS},
    {"layers.*.mlp.up", 'f', EVERY_UNIT}, {"layers.*.mlp.gate", 'f', EVERY_UNIT}, {"layers.*.mlp.down", 'f', EVERY_UNIT},
    {"layers.*.mlp.up_bias", 0, EVERY_UNIT}, {"layers.*.mlp.gate_bias", 0, EVERY_UNIT}, {"embed.tokens", 0, EVERY_UNIT}, {"head", 0, EVERY_UNIT},
};
/* In place of those before where no sum may be cut: what they sum is gathered, and each rank has some of the results. */
static const rule whole_sums[] = {{"layers.*.attn.o", 'd', EVERY_UNIT}, {"layers.*.mlp.down", 'd', EVERY_UNIT}};

static const rule *find_rule(const pinner *s, const char *path)
{
    for (size_t r = 0; r < sizeof whole_sums / sizeof *whole_sums && s->p->whole_sums; r++)
        if (hd_path_match(whole_sums[r].pattern, path)) return &whole_sums[r];
    for (size_t r = 0; r < sizeof rules / sizeof *rules; r++)
        if (hd_path_match(rules[r].pattern, path)) return &rules[r];
    return NULL;
}

/* Query heads go with their key/value head: pieces begin at multiples of the group. */
static void split_model(const pinner *s, hd_dim_layout *d, part what)
{
    int n = what == KEY_HEADS ? s->n_kv : s->n_tp;
    int64_t group = s->o->kv_heads ? s->o->heads / s->o->kv_heads : 1;
    for (int i = 0; i < n; i++) append(d, s->tp[i], what == QUERY_HEADS && i < s->n_kv ? group : 1);
}

/* Whether a forward lookup reads rows of parameter v, casts seen through; of a language model's only that of words counts: others have few rows. */
static bool is_table(const pinner *s, hd_value v)
{
    if (s->o->language) return !strcmp(s->g->values[v].path, "embed.tokens");
    for (size_t i = 0; i < s->g->n_nodes; i++) {
        const hd_node *n = s->g->nodes[i];
        if (n->phase != HD_FORWARD || strcmp(n->op->name, "gather")) continue;
        hd_value table = n->in[0];
        while (s->g->values[table].kind == HD_RESULT && !strcmp(s->g->nodes[s->g->values[table].node]->op->name, "cast"))
            table = s->g->nodes[s->g->values[table].node]->in[0];
        if (table == v) return true;
    }
    return false;
}

/* A table of numbers, one a row, has no columns. */
static void split_table(const pinner *s, hd_layout *l, int rank)
{
    bool columns = s->p->tables == HD_TABLES_COLUMNS;
    if (columns && rank < 2) return;
    *l = (hd_layout){0};
    split_model(s, &l->dim[columns ? rank - 1 : 0], EVERY_UNIT);
}

static void pin_parameters(pinner *s)
{
    for (size_t v = 0; v < s->g->n_values; v++) {
        const hd_value_info *i = &s->g->values[v];
        if (i->kind != HD_PARAM) continue;
        hd_layout *l = pin(s, (hd_value)v);
        const rule *r = s->n_tp ? find_rule(s, i->path) : NULL;
        int dim = r && r->letter ? hd_outline_dim(s->g, s->o, (hd_value)v, r->letter) : 0;
        if (r && dim >= 0) split_model(s, &l->dim[dim], r->part);
        bool own = s->p->tables && (!s->o->language || s->p->tables == HD_TABLES_COLUMNS);
        if (own && is_table(s, (hd_value)v)) split_table(s, l, i->type.shape.rank);
    }
}

/* ---- ZeRO ---- */

static int64_t ways(const pinner *s, const hd_dim_layout *d)
{
    int64_t n = 1;
    for (int i = 0; i < d->n; i++) n *= s->plan->mesh.axis[d->axis[i]].size;
    return n;
}

/* Over dp and cp, on the largest dimension that nothing splits; behind the tensor-parallel axes where every other is smaller than the data-parallel ranks. */
static hd_layout spread(const pinner *s, const hd_layout *from, const hd_shape *shape)
{
    hd_layout l = *from;
    int64_t most = 1, ranks = s->p->dp * s->p->cp;
    int best = -1;
    for (int pass = 0; pass < 2; pass++)
        for (int d = 0; d < shape->rank; d++) {
            int64_t extent = shape->dim[d] / ways(s, &from->dim[d]);
            if ((pass == 0) == (from->dim[d].n == 0) && extent > most && (pass == 0 || most < ranks)) best = d, most = extent;
        }
    if (best < 0) return l;
    append(&l.dim[best], s->dp, 1);
    append(&l.dim[best], s->cp, 1);
    return l;
}

/* The parameter that a state such as exp_avg.<param> belongs to, HD_NONE: none. */
static hd_value parameter_of(const pinner *s, const char *path)
{
    static const char *const prefixes[] = {"exp_avg.", "exp_avg_sq.", "momentum."};
    for (int i = 0; i < 3; i++)
        if (!strncmp(path, prefixes[i], strlen(prefixes[i]))) return hd_graph_find(s->g, path + strlen(prefixes[i]));
    return HD_NONE;
}

static void pin_states(pinner *s)
{
    for (size_t v = 0; v < s->g->n_values; v++) {
        const hd_value_info *i = &s->g->values[v];
        hd_value param = i->kind == HD_STATE ? parameter_of(s, i->path) : HD_NONE;
        if (param == HD_NONE || !hd_shape_equal(&i->type.shape, &s->g->values[param].type.shape)) continue;
        hd_layout l = s->p->zero ? spread(s, &s->layout[param], &i->type.shape) : s->layout[param];
        *pin(s, (hd_value)v) = l;
    }
}

/* Keys and values kept between calls, [rows, key/value heads, ...], and their scales: each rank has those of its heads. */
static void pin_caches(pinner *s)
{
    for (size_t v = 0; v < s->g->n_values && s->n_tp && s->o->language; v++) {
        const hd_value_info *i = &s->g->values[v];
        bool heads = i->kind == HD_STATE && !strncmp(i->path, "kv.", 3) && i->type.shape.rank > 1 && i->type.shape.dim[1] == s->o->kv_heads;
        if (heads) split_model(s, &pin(s, (hd_value)v)->dim[1], KEY_HEADS);
    }
}

/* The sums over micro-batches that v, a gradient, is made of: behind casts, and additions where a parameter is used twice. */
static void pin_sums(pinner *s, hd_value v, const hd_layout *l, const hd_shape *shape)
{
    const hd_value_info *i = &s->g->values[v];
    if (i->kind != HD_RESULT || i->micro != HD_TIME_REPLICATE || !hd_shape_equal(&i->type.shape, shape)) return;
    const hd_node *n = s->g->nodes[i->node];
    if (!strcmp(n->op->name, "micro_sum")) {
        *pin(s, v) = *l;
        return;
    }
    for (int k = 0; k < n->n_in; k++)
        if (n->in[k] != HD_NONE) pin_sums(s, n->in[k], l, shape);
}

static void pin_gradients(pinner *s)
{
    for (size_t k = 0; k < s->g->n_pairs; k++) {
        hd_value param = s->g->pairs[k].in, out = s->g->pairs[k].out;
        const hd_shape *shape = &s->g->values[param].type.shape;
        if (s->g->values[param].kind != HD_PARAM || s->g->values[out].kind != HD_RESULT || !shape->rank) continue; /* a number is in no pieces */
        const hd_node *update = s->g->nodes[s->g->values[out].node];
        hd_layout l = spread(s, &s->layout[param], shape);
        for (int j = 0; j < update->n_in; j++)
            if (update->in[j] != HD_NONE && update->phase == HD_UPDATE) pin_sums(s, update->in[j], &l, shape);
    }
}

static void spread_parameters(pinner *s)
{
    for (size_t v = 0; v < s->g->n_values; v++)
        if (s->g->values[v].kind == HD_PARAM) s->layout[v] = spread(s, &s->layout[v], &s->g->values[v].type.shape);
}

/* ---- sequence parallel: the residual stream ---- */

static bool in_stream(const hd_node *n)
{
    static const char *const paths[] = {"layers.*.norm1", "layers.*.norm2", "norm", "layers.*.attn.out", "layers.*.mlp.out", "layers.*.out_biased",
                                        "layers.*.dropout", "layers.*.attn.sum", "layers.*.mlp_sum", "embed.lookup", "embed.place", "embed.sum", "embed.dropout"};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
        if (hd_path_match(paths[i], n->path)) return true;
    return false;
}

/* [tokens, width], or a number for each token. */
static void pin_stream_value(pinner *s, hd_value v, bool sp)
{
    const hd_value_info *i = &s->g->values[v];
    const hd_shape *shape = &i->type.shape;
    int64_t tokens = i->type.shape.rank ? tokens_of(s, i->path, shape->dim[0]) : 0;
    if (i->kind != HD_RESULT || i->micro != HD_TIME_SPLIT || shape->rank < 1 || shape->rank > 2 || !tokens) return;
    if (shape->rank == 2 && shape->dim[1] != s->o->width) return;
    hd_layout *l = pin(s, v);
    split_rows(s, &l->dim[0], tokens);
    for (int a = 0; a < s->n_tp && sp; a++) append(&l->dim[0], s->tp[a], 1);
}

/* Without sequence parallelism the sums of a stream in 16 bits are whole on each tensor-parallel rank; left alone, they would be summed in pieces. */
static void pin_rounded_sums(pinner *s)
{
    for (size_t i = 0; i < s->g->n_nodes; i++) {
        const hd_node *n = s->g->nodes[i];
        if (n->phase == HD_FORWARD && (hd_path_match("layers.*.attn.sum", n->path) || hd_path_match("layers.*.mlp_sum", n->path))) pin_stream_value(s, n->out[0], false);
    }
}

/* Whether row i of result r of n, a node of backward, belongs to row i of its first operand, by the op's own loops: so it is with gradients of the
 * stream, and not with those of tables and gains, however many rows these have. */
static bool keeps_rows(const hd_graph *g, const hd_node *n, int r)
{
    hd_type in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS];
    hd_loops loops = {0};
    for (int k = 0; k < n->n_in; k++) in[k] = n->in[k] == HD_NONE ? (hd_type){.absent = true, .shape.sym = -1} : g->values[n->in[k]].type;
    for (int k = 0; k < n->n_out; k++) out[k] = g->values[n->out[k]].type;
    n->op->loops(&(hd_sig){.op = n->op, .in = in, .out = out, .n_in = n->n_in, .n_out = n->n_out, .attrs = n->attrs}, &loops);
    const hd_dim_map *from = &loops.in[0][0], *to = &loops.out[r][0];
    return from->n == 1 && to->n == 1 && from->loop[0] == to->loop[0];
}

/* Forward results, and in backward what norms and dropouts take and give: the stream's gradient. */
static void pin_stream(pinner *s)
{
    for (size_t i = 0; i < s->g->n_nodes; i++) {
        const hd_node *n = s->g->nodes[i], *of = n->phase == HD_FORWARD ? n : n->origin;
        if (n->phase == HD_UPDATE || !of || !in_stream(of)) continue;
        if (n->phase == HD_BACKWARD && (!strcmp(of->op->name, "contract") || !strcmp(of->op->name, "add"))) continue;
        for (int k = 0; k < n->n_out; k++)
            if (n->phase == HD_FORWARD || keeps_rows(s->g, n, k)) pin_stream_value(s, n->out[k], true);
        if (n->phase == HD_BACKWARD && n->in[0] != HD_NONE) pin_stream_value(s, n->in[0], true);
    }
}

/* Features that come from columns of tables are whole from then on: the stream is not to go on in pieces of features. */
static void pin_lookups(pinner *s)
{
    hd_value x = hd_graph_find(s->g, "embed.lookup");
    if (x != HD_NONE && s->o->language) split_rows(s, &pin(s, x)->dim[0], s->o->sequence);
}

/* Of a network: each sample's features at its own rank. */
static void pin_features(pinner *s)
{
    for (size_t i = 0; i < s->g->n_nodes; i++) {
        const hd_node *n = s->g->nodes[i];
        if (n->phase != HD_FORWARD || strcmp(n->op->name, "gather") || s->g->values[n->in[0]].kind != HD_PARAM) continue;
        const hd_value_info *x = &s->g->values[n->out[0]];
        if (x->micro == HD_TIME_SPLIT && x->type.shape.rank && x->type.shape.dim[0] == s->o->rows) split_rows(s, &pin(s, n->out[0])->dim[0], 1);
    }
}

/* ---- all of them ---- */

static int pin_all(pinner *s)
{
    pin_inputs(s);
    pin_slices(s);
    pin_parameters(s);
    pin_states(s);
    pin_caches(s);
    if (s->p->zero >= 2) pin_gradients(s);
    if (s->p->zero >= 3) spread_parameters(s);
    if (s->p->sp) pin_stream(s);
    else if (s->n_tp) pin_rounded_sums(s);
    if (!s->p->sp && s->o->language && s->p->tables == HD_TABLES_COLUMNS) pin_lookups(s);
    if (!s->o->language && s->p->tables) pin_features(s);
    const hd_pinning all = {.graph = s->g, .mesh = &s->plan->mesh, .layout = s->layout, .pinned = s->pinned, .sliced = s->plan->n_slices > 0};
    int rc = hd_pins_write(&all, s->plan->pins, HD_MESH_PINS, &s->plan->n_pins, s->err);
    if (!rc && s->plan->n_pins > HD_MESH_PINS)
        rc = hd_fail(s->err, HD_EINVAL, "--parallel: this network's names need more than %d pins: give a plan file", HD_MESH_PINS);
    return rc;
}

int hd_parallel_pins(const hd_parallel *p, const hd_graph *g, const hd_outline *o, hd_plan *plan, hd_error *err)
{
    const hd_mesh *m = &plan->mesh;
    pinner s = {.p = p, .g = g, .o = o, .plan = plan, .err = err, .dp = hd_mesh_find(m, "dp"), .cp = hd_mesh_find(m, "cp")};
    static const char *const names[] = {"tp", "tp0", "tp1"};
    for (int i = 0; i < 3; i++)
        if (hd_mesh_find(m, names[i]) >= 0) s.tp[s.n_tp++] = hd_mesh_find(m, names[i]);
    s.n_kv = s.n_tp == 2 || (s.n_tp && p->tp <= o->kv_heads) ? 1 : 0;
    plan->n_pins = 0;
    if (s.dp < 0 && s.cp < 0 && !s.n_tp) return 0;
    s.layout = hd_calloc(g->n_values + 1, sizeof *s.layout);
    s.pinned = hd_calloc(g->n_values + 1, sizeof *s.pinned);
    int rc = s.layout && s.pinned ? pin_all(&s) : hd_fail_memory(err, g->n_values * sizeof *s.layout, "a plan");
    hd_free(s.layout);
    hd_free(s.pinned);
    return rc;
}
