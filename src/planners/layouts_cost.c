/* layouts_cost.c: what a way to divide a node costs, what a conversion costs, and what is sent in all. */
#include <math.h>
#include <string.h>

#include "cluster/cost.h"
#include "planners/layouts_int.h"

static const char *const collective_names[HD_COLL_KINDS] = {"all-reduce", "all-gather", "reduce-scatter", "all-to-all"};
const char *hd_collective_name(hd_collective k) { return collective_names[k]; }

int hd_collective_parse(const char *name, hd_collective *out)
{
    for (int k = 0; k < HD_COLL_KINDS; k++)
        if (!strcmp(name, collective_names[k])) return *out = (hd_collective)k, 0;
    return HD_EINVAL;
}

/* ---- what a conversion costs ---- */

static const struct { const char *op; hd_collective kind; double factor; } prices[] = {
    {"all_reduce", HD_COLL_ALL_REDUCE, 2}, {"all_gather", HD_COLL_ALL_GATHER, 1}, {"reduce_scatter", HD_COLL_REDUCE_SCATTER, 1}, {"all_to_all", HD_COLL_ALL_TO_ALL, 1}};

static int price_of(const hd_convert_step *s)
{
    for (int k = 0; k < (int)(sizeof prices / sizeof *prices); k++)
        if (!strcmp(s->op, prices[k].op)) return k;
    return -1; /* sends nothing */
}

/* Bytes on the larger side of a step: what an all-gather makes, what others take. */
static double step_bytes(const hd_layout_builder *b, hd_value v, const hd_convert_step *s, const hd_layout *before)
{
    return hd_part_bytes(&b->part, v, prices[price_of(s)].kind == HD_COLL_ALL_GATHER ? &s->after : before);
}

/* By alpha and beta. */
static double plain_seconds(const hd_layout_builder *b, const hd_convert_step *s, int k, double bytes)
{
    const hd_layout_problem *p = b->p;
    double seconds = 0, halves = p->prefer_reduce_scatter && prices[k].kind == HD_COLL_ALL_REDUCE ? 2 : 1;
    for (int i = 0; i < s->n_axes; i++) {
        int a = s->axes[i];
        double n = p->mesh.axis[a].size;
        if (n > 1) seconds += halves * p->alpha[a] + prices[k].factor * (n - 1) / n * p->beta[a] * bytes;
    }
    if (p->prefer_reduce_scatter && prices[k].kind == HD_COLL_ALL_REDUCE) seconds *= HD_DISLIKE;
    return seconds;
}

/* ---- on a cluster ---- */

static hd_layout_memo *find_memo(const hd_layout_builder *b, uint64_t key)
{
    size_t at = (size_t)(key * 0x9e3779b97f4a7c15u >> 32) & (b->memo_room - 1);
    while (b->memo[at].key && b->memo[at].key != key) at = (at + 1) & (b->memo_room - 1);
    return &b->memo[at];
}

int hd_layout_memo_open(hd_layout_builder *b)
{
    b->memo_room = (size_t)1 << 14;
    b->memo = hd_arena_alloc(&b->memory, b->memo_room * sizeof *b->memo);
    b->ranks = hd_arena_alloc(&b->memory, (size_t)hd_mesh_size(&b->p->mesh) * sizeof *b->ranks);
    return b->memo && b->ranks ? 0 : HD_ENOMEM;
}

static double ask_move(hd_layout_builder *b, hd_move kind, const int8_t *axes, int n_axes, int64_t bytes, hd_dtype dtype)
{
    hd_move_cost m;
    int n = hd_mesh_group(&b->p->mesh, 0, axes, n_axes, b->ranks), world = b->p->world ? b->p->world : hd_mesh_size(&b->p->mesh);
    hd_cost_move(b->p->cluster, kind, b->ranks, n, world, bytes, dtype, &m);
    return m.seconds;
}

/* Few different collectives are asked about, each very often. */
static double move_seconds(hd_layout_builder *b, hd_move kind, const int8_t *axes, int n_axes, double bytes, hd_dtype dtype)
{
    uint64_t key = 1;
    for (int i = 0; i < n_axes; i++) key = key * 9 + (uint64_t)axes[i] + 1;
    key = (key * HD_MOVE_KINDS + (uint64_t)kind) * 64 + (uint64_t)dtype;
    key = key << 40 ^ (uint64_t)(int64_t)bytes;
    hd_layout_memo *memo = find_memo(b, key);
    if (memo->key) return memo->seconds;
    double seconds = ask_move(b, kind, axes, n_axes, (int64_t)bytes, dtype);
    if (b->n_memo < b->memo_room / 2) *memo = (hd_layout_memo){key, seconds}, b->n_memo++;
    return seconds;
}

static hd_dtype sent_dtype(const hd_layout_builder *b, hd_value v, const hd_layout *before)
{
    hd_dtype dtype = b->part.value[v].dtype;
    return before->partial && hd_dtype_size(dtype) < 4 ? HD_F32 : dtype;
}

static int teams_of(const hd_layout_problem *p)
{
    int world = p->world ? p->world : hd_mesh_size(&p->mesh), node = hd_cluster_group(p->cluster, p->cluster->node_level);
    return p->teams ? p->teams : !p->cluster->device.cores ? 1 : world < node ? world : node;
}

static double cluster_seconds(hd_layout_builder *b, hd_value v, const hd_convert_step *s, int k, const hd_layout *before)
{
    static const hd_move moves[HD_COLL_KINDS] = {HD_MOVE_ALL_REDUCE, HD_MOVE_ALL_GATHER, HD_MOVE_REDUCE_SCATTER, HD_MOVE_ALL_TO_ALL};
    const hd_layout_problem *p = b->p;
    if (k < 0) /* a rank takes it out of its own memory */
        return hd_cost_copy(p->cluster, (int64_t)hd_part_bytes(&b->part, v, &s->after), p->threads, teams_of(p));
    double bytes = step_bytes(b, v, s, before);
    hd_dtype dtype = sent_dtype(b, v, before);
    if (p->prefer_reduce_scatter && prices[k].kind == HD_COLL_ALL_REDUCE)
        return HD_DISLIKE * (move_seconds(b, HD_MOVE_REDUCE_SCATTER, s->axes, s->n_axes, bytes, dtype)
                             + move_seconds(b, HD_MOVE_ALL_GATHER, s->axes, s->n_axes, bytes, dtype));
    return move_seconds(b, moves[prices[k].kind], s->axes, s->n_axes, bytes, dtype);
}

/* A value of the whole step is converted once for all calls, but what is gathered of it over DATA axes is given up after each. */
static int64_t step_times(const hd_layout_builder *b, hd_value v, const hd_convert_step *s, const hd_node *reader)
{
    int64_t calls = b->p->cluster && b->p->micro_batches > 1 ? b->p->micro_batches : 1;
    if (b->g->values[v].micro == HD_TIME_SPLIT || b->g->values[v].micro == HD_TIME_PARTIAL) return calls;
    bool again = reader && reader->phase != HD_UPDATE && !b->p->keep_gathered && !strcmp(s->op, "all_gather") && reader->n_out
                 && b->g->values[reader->out[0]].micro == HD_TIME_SPLIT && b->p->mesh.axis[s->axes[0]].role == HD_AXIS_DATA;
    return again ? calls : 1;
}

/* The part of a conversion's time that computing waits for. */
static double exposed(const hd_layout_builder *b, hd_value v)
{
    const hd_value_info *x = &b->g->values[v];
    return x->kind == HD_RESULT && b->late[v] && b->g->nodes[x->node]->phase == HD_BACKWARD ? 1 - b->p->overlap : 1;
}

static double step_seconds(hd_layout_builder *b, hd_value v, const hd_convert_step *s, const hd_layout *before, const hd_node *reader)
{
    int k = price_of(s);
    if (k >= 0 && b->p->forbidden >> prices[k].kind & 1) return INFINITY;
    if (!b->p->cluster) return k < 0 ? 0 : plain_seconds(b, s, k, step_bytes(b, v, s, before));
    return (k < 0 ? 1 : exposed(b, v)) * (double)step_times(b, v, s, reader) * cluster_seconds(b, v, s, k, before);
}

int64_t hd_layout_conversion(hd_layout_builder *b, hd_value v, const hd_layout *from, const hd_layout *to, const hd_node *reader)
{
    hd_convert_step steps[HD_MAX_STEPS];
    int n = hd_part_steps(&b->p->mesh, &b->part.value[v].whole, from, to, steps);
    double seconds = 0;
    for (int i = 0; i < n; i++) seconds += step_seconds(b, v, &steps[i], i ? &steps[i - 1].after : from, reader);
    return isinf(seconds) ? HD_NEVER : (int64_t)(seconds * hd_layout_unit(b) + 0.5);
}

/* ---- what a way to divide a node costs ---- */

/* Nodes of values of the whole step are done once, but for the sums over micro-batches. */
static int64_t node_times(const hd_layout_builder *b, const hd_node *n)
{
    bool once = n->phase == HD_UPDATE || !n->n_out || b->g->values[n->out[0]].micro == HD_TIME_REPLICATE;
    bool sum = !strcmp(n->op->name, "micro_sum");
    int64_t calls = b->p->micro_batches > 1 ? b->p->micro_batches : 1;
    return sum ? 0 : once ? 1 : calls; /* a sum is formed where its addends are made (program/group.c) */
}

static double kernel_seconds(const hd_layout_builder *b, const hd_node *n, const hd_way *w)
{
    hd_type in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS];
    hd_sig sig;
    hd_kernel_cost cost;
    hd_part_signature(&b->part, n, &sig, in, out);
    for (int k = 0; k < n->n_in; k++)
        if (n->in[k] != HD_NONE) in[k].shape = hd_layout_shape(&b->p->mesh, &w->in[k], &in[k].shape, 0);
    for (int r = 0; r < n->n_out; r++) {
        out[r].shape = hd_layout_shape(&b->p->mesh, &w->out[r], &out[r].shape, 0);
        if (w->out[r].partial && hd_dtype_is_float(out[r].dtype) && hd_dtype_size(out[r].dtype) < 4) out[r].dtype = HD_F32;
    }
    hd_cost_kernel(b->p->cluster, &sig, b->p->threads, teams_of(b->p), &cost);
    return cost.seconds;
}

/* The sums that a node which is done as several makes on the way: two numbers a channel in turn, three a row. */
static double expansion_seconds(hd_layout_builder *b, const hd_node *n, const hd_way *w)
{
    int8_t axes[HD_MAX_AXES];
    int count = 0, sums = strcmp(n->op->name, "batch_norm") ? 3 : 2, vector = sums == 3 ? 0 : 1;
    for (int a = 0; a < b->p->mesh.n; a++)
        if (w->loop[a] == HD_WAY_EXPANDED) axes[count++] = (int8_t)a;
    if (!count) return 0;
    hd_shape shape = hd_layout_shape(&b->p->mesh, &w->out[vector], &b->part.value[n->out[vector]].whole, 0);
    return sums * move_seconds(b, HD_MOVE_ALL_REDUCE, axes, count, 4.0 * (double)hd_shape_count(&shape), HD_F32);
}

int64_t hd_layout_work(hd_layout_builder *b, const hd_node *n, const hd_way *w)
{
    int64_t times = b->p->cluster && !n->op->is_view ? node_times(b, n) : 0;
    if (!times) return 0;
    return (int64_t)((double)times * (kernel_seconds(b, n, w) + expansion_seconds(b, n, w)) * hd_layout_unit(b) + 0.5);
}

/* An operand that stands twice is brought into one layout once. */
bool hd_layout_read_before(const hd_layout_builder *b, const hd_node *n, const hd_way *w, int k)
{
    for (int i = 0; i < k; i++)
        if (n->in[i] == n->in[k] && hd_layout_equal(&b->p->mesh, &w->in[i], &w->in[k], &b->part.value[n->in[k]].whole)) return true;
    return false;
}

/* ---- what backward makes again ---- */

static bool is_named(const hd_layout_builder *b, hd_value v)
{
    for (int i = 0; i < b->p->n_recompute; i++)
        if (hd_path_match(b->p->recompute[i], b->g->values[v].path)) return true;
    return false;
}

static bool is_made_forward(const hd_graph *g, hd_value v)
{
    return v != HD_NONE && g->values[v].kind == HD_RESULT && g->nodes[g->values[v].node]->phase == HD_FORWARD;
}

/* Named values aren't kept, but what they are made of. again: [nodes] */
static void keep_for_named(hd_layout_builder *b, bool *again)
{
    for (size_t i = b->g->n_nodes; i-- > 0;) {
        const hd_node *n = b->g->nodes[i];
        for (int k = 0; k < n->n_in && (n->phase == HD_BACKWARD || again[i]); k++) {
            hd_value v = n->in[k];
            if (!is_made_forward(b->g, v)) continue;
            bool named = b->g->values[v].micro != HD_TIME_REPLICATE && is_named(b, v);
            if (named) again[b->g->values[v].node] = true;
            b->saved[v] = !named;
        }
    }
}

/* An elementwise result whose operands are kept is made again of them. again: [values] */
static void drop_cheap(hd_layout_builder *b, bool *again)
{
    for (size_t i = 0; i < b->g->n_nodes; i++) {
        const hd_node *n = b->g->nodes[i];
        bool cheap = n->phase == HD_FORWARD && n->n_out == 1 && n->op->attrs_size == sizeof(hd_ew_attrs) && !strcmp(n->op->name, hd_ew_name((hd_ew)n->op->code));
        if (!cheap || !b->saved[n->out[0]] || b->g->values[n->out[0]].micro == HD_TIME_REPLICATE) continue;
        for (int k = 0; k < n->n_in && cheap; k++)
            cheap = !is_made_forward(b->g, n->in[k]) || b->saved[n->in[k]] || again[n->in[k]] || b->g->values[n->in[k]].micro == HD_TIME_REPLICATE;
        if (cheap) again[n->out[0]] = true, b->saved[n->out[0]] = false;
    }
}

int hd_layout_recompute(hd_layout_builder *b)
{
    bool *nodes = hd_arena_alloc(&b->memory, b->g->n_nodes + 1), *values = hd_arena_alloc(&b->memory, b->g->n_values + 1);
    if (!nodes || !values) return HD_ENOMEM;
    if (b->p->n_recompute) keep_for_named(b, nodes);
    drop_cheap(b, values);
    return 0;
}

/* ---- what is sent in all ---- */

typedef struct counter { hd_layout_answer *out; uint32_t late[HD_COLL_KINDS][64]; int n_late[HD_COLL_KINDS]; } counter;

/* Late collectives of one kind over the same axes go as one message. */
static bool is_joined(counter *c, hd_collective kind, uint32_t axes)
{
    for (int i = 0; i < c->n_late[kind]; i++)
        if (c->late[kind][i] == axes) return true;
    if (c->n_late[kind] < 64) c->late[kind][c->n_late[kind]++] = axes;
    return false;
}

static void count_conversion(const hd_layout_builder *b, counter *c, hd_value v, const hd_layout *from, const hd_layout *to, bool late)
{
    hd_convert_step steps[HD_MAX_STEPS];
    int n = hd_part_steps(&b->p->mesh, &b->part.value[v].whole, from, to, steps);
    for (int i = 0; i < n; i++) {
        int k = price_of(&steps[i]);
        uint32_t axes = 0;
        if (k < 0) continue;
        for (int a = 0; a < steps[i].n_axes; a++) axes |= 1u << steps[i].axes[a];
        hd_layout_traffic *t = &c->out->traffic[prices[k].kind];
        bool joins = late && (prices[k].kind == HD_COLL_ALL_REDUCE || prices[k].kind == HD_COLL_REDUCE_SCATTER);
        t->count++;
        t->combined += !(joins && is_joined(c, prices[k].kind, axes));
        t->bytes += step_bytes(b, v, &steps[i], i ? &steps[i - 1].after : from);
    }
}

void hd_layout_count(const hd_layout_builder *b, const int *choice, hd_layout_answer *out)
{
    const hd_graph *g = b->g;
    static const hd_layout whole;
    counter c = {.out = out};
    for (size_t i = 0; i < g->n_nodes; i++) {
        const hd_node *n = g->nodes[i];
        const hd_way *w = &b->ways[i].list[choice[i]];
        for (int k = 0; k < n->n_in; k++)
            if (n->in[k] != HD_NONE && !hd_layout_read_before(b, n, w, k)) count_conversion(b, &c, n->in[k], &out->held[n->in[k]], &w->in[k], b->late[n->in[k]]);
        for (int r = 0; r < n->n_out; r++)
            if (b->held[n->out[r]].n) count_conversion(b, &c, n->out[r], &w->out[r], &out->held[n->out[r]], b->late[n->out[r]]);
    }
    for (size_t k = 0; k < g->n_pairs; k++)
        if (g->pairs[k].in != g->pairs[k].out) count_conversion(b, &c, g->pairs[k].out, &out->held[g->pairs[k].out], &out->held[g->pairs[k].in], true);
    for (size_t k = 0; k < g->n_outputs; k++) count_conversion(b, &c, g->outputs[k].value, &out->held[g->outputs[k].value], &whole, true);
}

