/* order.c: into which segment each node goes, and in which order.
 *
 * Graph order is kept, except that a node which overwrites a state waits for every other reader of the old one, and that with one
 * micro-batch the update moves into the backward segment: each part as soon as its operands are there, so that a gradient dies at once. */
#include <assert.h>

#include "ops/ops.h"
#include "program/lower_int.h"

bool hd_is_micro_sum(const hd_node *n)
{
    return n->op == &hd_op_micro_sum;
}

static bool out_of_memory(hd_lowering *l, const void *p)
{
    if (p) return false;
    hd_fail_memory(l->err, l->g->n_values * sizeof(int), "lowering a graph");
    return true;
}

static int *filled(hd_lowering *l, size_t n, int with)
{
    int *a = hd_arena_alloc(&l->scratch, n * sizeof *a);
    for (size_t i = 0; a && i < n; i++) a[i] = with;
    return a;
}

/* ---- what is live ---- */

static bool *find_live(hd_lowering *l)
{
    const hd_graph *g = l->g;
    bool *live = hd_arena_alloc(&l->scratch, g->n_nodes + 1);
    if (!live) return NULL;
    bool *wanted = hd_arena_alloc(&l->scratch, g->n_values + 1);
    if (!wanted) return NULL;
    memcpy(wanted, l->kept, g->n_values);
    for (size_t i = g->n_nodes; i-- > 0;) {
        const hd_node *n = g->nodes[i];
        live[i] = n->op->has_effect;
        for (int k = 0; k < n->n_out; k++) live[i] |= wanted[n->out[k]];
        for (int k = 0; live[i] && k < n->n_in; k++)
            if (n->in[k] != HD_NONE) wanted[n->in[k]] = true;
    }
    return live;
}

static int add_item(hd_lowering *l, hd_item item)
{
    if (hd_grow(&l->items, &l->cap_items, l->n_items + 1, sizeof *l->items)) return hd_fail_memory(l->err, sizeof item, "lowering a graph");
    l->items[l->n_items++] = item;
    return 0;
}

static int collect_items(hd_lowering *l)
{
    const hd_graph *g = l->g;
    bool *live = find_live(l);
    if (out_of_memory(l, live)) return HD_ENOMEM;
    for (size_t i = 0; i < g->n_nodes; i++) {
        const hd_node *n = g->nodes[i];
        if (!live[i]) continue;
        if (add_item(l, (hd_item){.node = n, .pair = -1})) return HD_ENOMEM;
        for (int k = 0; k < n->n_out; k++) l->item_of[n->out[k]] = (int)l->n_items - 1;
        for (int k = 0; k < n->n_in; k++)
            if (n->in[k] != HD_NONE) l->uses[n->in[k]]++;
        l->has_backward |= n->phase == HD_BACKWARD;
        l->has_update |= n->phase == HD_UPDATE;
    }
    return 0;
}

static int collect_readers(hd_lowering *l)
{
    size_t n_values = l->g->n_values;
    l->readers = hd_arena_alloc(&l->scratch, n_values * sizeof *l->readers);
    int *count = filled(l, n_values, 0);
    if (out_of_memory(l, l->readers) || out_of_memory(l, count)) return HD_ENOMEM;
    for (size_t v = 0; v < n_values; v++) {
        l->readers[v] = filled(l, (size_t)l->uses[v], -1);
        if (out_of_memory(l, l->readers[v])) return HD_ENOMEM;
    }
    for (size_t i = 0; i < l->n_items; i++) {
        const hd_node *n = l->items[i].node;
        for (int k = 0; k < n->n_in; k++)
            if (n->in[k] != HD_NONE) l->readers[n->in[k]][count[n->in[k]]++] = (int)i;
    }
    return 0;
}

/* ---- segments ---- */

/* Whether v can be read in prepare: it changes neither with the micro-batch nor, where prepare is not called each step, with the input. */
static bool is_early(const hd_lowering *l, hd_value v)
{
    const hd_value_info *i = &l->g->values[v];
    if (i->kind == HD_RESULT) return l->available[v] == HD_SEGMENT_PREPARE;
    if (i->kind == HD_INPUT) return l->many && i->micro == HD_TIME_REPLICATE;
    if (l->pair_in[v] < 0) return true;
    bool each = l->g->values[l->g->pairs[l->pair_in[v]].out].micro != HD_TIME_REPLICATE; /* a state that changes in each micro-batch */
    return !each && (l->has_backward || l->has_update);
}

static int latest_operand(const hd_lowering *l, const hd_node *n, bool *early)
{
    int latest = HD_SEGMENT_PREPARE;
    *early = true;
    for (int k = 0; k < n->n_in; k++) {
        if (n->in[k] == HD_NONE) continue;
        if (l->available[n->in[k]] > latest) latest = l->available[n->in[k]];
        *early &= is_early(l, n->in[k]);
    }
    for (int k = 0; k < n->n_out; k++) {
        const hd_value_info *i = &l->g->values[n->out[k]];
        *early &= i->micro == HD_TIME_REPLICATE && i->type.shape.sym < 0;
    }
    return latest;
}

/* Which of the stage's own chunks, cut into slices, a node belongs to. */
static int own_chunk(const hd_lowering *l, const hd_node *n)
{
    int chunk = l->stages > 1 && n->chunk > 0 ? n->chunk / l->stages : 0;
    return chunk * l->slices + n->slice;
}

/* The node's segment in the loop over micro-batches, at least `from`. */
static int loop_segment(const hd_lowering *l, int item, int from)
{
    const hd_node *n = l->items[item].node;
    hd_segment_kind kind = n->phase == HD_FORWARD || !l->has_backward ? HD_SEGMENT_FORWARD : HD_SEGMENT_BACKWARD;
    if (l->weight && l->weight[item]) kind = HD_SEGMENT_WEIGHT;
    int s = hd_lower_segment(l, kind, own_chunk(l, n));
    return s > from ? s : from;
}

/* Over the micro-batches, what a node makes; or takes, if it makes nothing. */
static hd_time_layout micro_of(const hd_lowering *l, const hd_node *n)
{
    if (n->n_out) return l->g->values[n->out[0]].micro;
    return n->n_in && n->in[0] != HD_NONE ? l->g->values[n->in[0]].micro : HD_TIME_REPLICATE;
}

static int choose_segment(hd_lowering *l, int item)
{
    const hd_node *n = l->items[item].node;
    bool early;
    int latest = latest_operand(l, n, &early);
    bool once = micro_of(l, n) == HD_TIME_REPLICATE && !hd_is_micro_sum(n);
    /* A piece in each call, whatever phase wants the sum. */
    if (l->many && hd_is_micro_sum(n)) return latest > 0 ? latest : hd_lower_segment(l, HD_SEGMENT_FORWARD, own_chunk(l, n));
    if (n->phase != HD_UPDATE && early && once) return HD_SEGMENT_PREPARE;
    if (n->phase == HD_UPDATE && (l->many || !l->has_backward)) return l->update;
    if (l->many && once && latest == l->update) return l->update;
    return loop_segment(l, item, latest);
}

static bool is_weight_part(const hd_lowering *l, int item)
{
    const hd_node *n = l->items[item].node;
    if (n->phase != HD_BACKWARD || n->op->is_comm || hd_is_micro_sum(n)) return false;
    for (int k = 0; k < n->n_out; k++) {
        if (l->kept[n->out[k]]) return false;
        for (int r = 0; r < l->uses[n->out[k]]; r++) {
            int reader = l->readers[n->out[k]][r];
            if (!l->weight[reader] && !hd_is_micro_sum(l->items[reader].node)) return false;
        }
    }
    return true;
}

/* Backward nodes that lead to sums over the micro-batches only: nobody waits for them (Qi et al. 2023, section 2). */
static int find_weight_parts(hd_lowering *l)
{
    if (l->plan->schedule != HD_SCHEDULE_ZERO_BUBBLE || l->stages == 1) return 0;
    l->weight = hd_arena_alloc(&l->scratch, l->n_items + 1);
    if (out_of_memory(l, l->weight)) return HD_ENOMEM;
    for (size_t i = l->n_items; i-- > 0;) l->weight[i] = is_weight_part(l, (int)i);
    return 0;
}

static int assign_segments(hd_lowering *l)
{
    for (size_t i = 0; i < l->n_items; i++) {
        hd_item *item = &l->items[i];
        const hd_node *n = item->node;
        item->segment = choose_segment(l, (int)i);
        bool sum = hd_is_micro_sum(n) && l->many;
        for (int k = 0; k < n->n_out; k++) l->available[n->out[k]] = sum ? l->update : item->segment;
        if (item->segment == l->update && l->many && (sum || micro_of(l, n) == HD_TIME_SPLIT))
            return hd_fail(l->err, HD_EUNSUPPORTED, "%s: is wanted in each micro-batch, but needs a value of the whole step", n->path);
    }
    return 0;
}

/* ---- states: in place, or by a copy at the end ---- */

/* Calls visit(l, arg, item, operand's value) for every live reader of v and of the views of v; stops when it returns false. */
static bool each_reader(hd_lowering *l, hd_value v, bool (*visit)(hd_lowering *, void *, int, hd_value), void *arg)
{
    for (int r = 0; r < l->uses[v]; r++) {
        int item = l->readers[v][r];
        const hd_node *n = l->items[item].node;
        if (!visit(l, arg, item, v)) return false;
        if (n->op->is_view && n->in[0] == v && !each_reader(l, n->out[0], visit, arg)) return false;
    }
    return true;
}

typedef struct overwrite { int producer, result; bool safe; } overwrite;

static hd_sig sig_of(const hd_lowering *l, const hd_node *n, hd_type *in, hd_type *out)
{
    for (int k = 0; k < n->n_in; k++) {
        if (n->in[k] == HD_NONE) in[k] = (hd_type){.absent = true, .shape.sym = -1};
        else in[k] = l->g->values[n->in[k]].type;
    }
    for (int k = 0; k < n->n_out; k++) out[k] = l->g->values[n->out[k]].type;
    return (hd_sig){n->op, in, out, n->n_in, n->n_out, n->attrs};
}

/* Whether node n may write result r over the memory of value v, which it reads. */
static bool may_overwrite(const hd_lowering *l, const hd_node *n, int r, hd_value v)
{
    hd_type in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS];
    hd_sig s = sig_of(l, n, in, out);
    uint32_t mask = n->op->may_alias ? n->op->may_alias(&s, r) : 0;
    for (int k = 0; k < n->n_in; k++)
        if (n->in[k] == v && !(mask >> k & 1)) return false;
    return true;
}

static bool check_reader(hd_lowering *l, void *arg, int item, hd_value v)
{
    overwrite *o = arg;
    const hd_item *reader = &l->items[item], *producer = &l->items[o->producer];
    if (item == o->producer) o->safe = may_overwrite(l, producer->node, o->result, v);
    else o->safe = item < o->producer && reader->segment <= producer->segment;
    return o->safe;
}

static bool is_direct_pair(hd_lowering *l, const hd_state_pair *pair)
{
    const hd_value_info *out = &l->g->values[pair->out];
    if (out->kind != HD_RESULT || l->pair_direct[pair->out] >= 0) return false;
    overwrite o = {l->item_of[pair->out], out->result, true};
    const hd_node *n = l->items[o.producer].node;
    if (n->op->is_view) return false;
    each_reader(l, pair->in, check_reader, &o);
    return o.safe;
}

static bool latest_reader(hd_lowering *l, void *arg, int item, hd_value v)
{
    int *latest = arg;
    (void)v;
    if (l->items[item].segment > *latest) *latest = l->items[item].segment;
    return true;
}

static int add_copy(hd_lowering *l, int pair)
{
    const hd_state_pair *x = &l->g->pairs[pair];
    int made = l->available[x->out], latest = made > HD_SEGMENT_FORWARD ? made : HD_SEGMENT_FORWARD;
    each_reader(l, x->in, latest_reader, &latest);
    bool piece = l->g->values[x->out].micro == HD_TIME_SPLIT;
    if (piece && latest == l->update && l->many)
        return hd_fail(l->err, HD_EUNSUPPORTED, "state %s changes in each micro-batch, but its old value is read after the last", l->g->values[x->in].path);
    return add_item(l, (hd_item){.pair = pair, .segment = latest});
}

static hd_value behind_views(const hd_graph *g, hd_value v)
{
    while (g->values[v].kind == HD_RESULT && g->nodes[g->values[v].node]->op->is_view && !hd_is_micro_sum(g->nodes[g->values[v].node]))
        v = g->nodes[g->values[v].node]->in[0];
    return v;
}

/* An output is read after the step, when a state has its new value already. */
static int check_outputs(hd_lowering *l)
{
    const hd_graph *g = l->g;
    for (size_t i = 0; i < g->n_outputs; i++) {
        hd_value v = behind_views(g, g->outputs[i].value);
        if (l->pair_in[v] >= 0 && g->pairs[l->pair_in[v]].out != v)
            return hd_fail(l->err, HD_EUNSUPPORTED, "output %s is the old value of state %s, which the step writes over", g->outputs[i].name, g->values[v].path);
    }
    return 0;
}

static int plan_states(hd_lowering *l)
{
    for (size_t i = 0; i < l->g->n_pairs; i++) {
        const hd_state_pair *pair = &l->g->pairs[i];
        const hd_value_info *in = &l->g->values[pair->in], *out = &l->g->values[pair->out];
        if (in->type.dtype != out->type.dtype || !hd_shape_equal(&in->type.shape, &out->type.shape))
            return hd_fail(l->err, HD_EINVAL, "state %s would become a value of another type, %s", in->path, out->path);
        if (is_direct_pair(l, pair)) l->pair_direct[pair->out] = (int)i;
        else if (behind_views(l->g, pair->out) != pair->in && add_copy(l, (int)i)) return l->err ? l->err->code : HD_ENOMEM;
    }
    return 0;
}

/* ---- dependences and the order ---- */

typedef struct dep { int from, to; } dep;
typedef struct deps { hd_lowering *l; dep *list; size_t n, cap; int writer; bool failed; } deps;

static void add_dep(deps *d, int from, int to)
{
    if (from < 0 || from == to) return;
    if (hd_grow(&d->list, &d->cap, d->n + 1, sizeof *d->list)) d->failed = true;
    else d->list[d->n++] = (dep){from, to};
}

static bool reader_first(hd_lowering *l, void *arg, int item, hd_value v)
{
    (void)l, (void)v;
    deps *d = arg;
    add_dep(d, item, d->writer);
    return !d->failed;
}

/* Who writes over the old value of pair i. */
static int writer_of_pair(const hd_lowering *l, int i)
{
    if (l->pair_direct[l->g->pairs[i].out] == i) return l->item_of[l->g->pairs[i].out];
    for (size_t k = 0; k < l->n_items; k++)
        if (l->items[k].pair == i) return (int)k;
    return -1;
}

/* Whether an item waits for other stages of the pipeline. */
static bool crosses_stages(const hd_lowering *l, const hd_node *n)
{
    if (!n || !n->op->is_comm || l->stages == 1) return false;
    if (n->op == &hd_op_send || n->op == &hd_op_recv) return true;
    int8_t axes[HD_MAX_AXES];
    int count = hd_mesh_parse_axes(&l->g->mesh, ((const hd_comm_attrs *)n->attrs)->axes, axes);
    for (int i = 0; i < count; i++)
        if (l->g->mesh.axis[axes[i]].role == HD_AXIS_PIPELINE) return true;
    return false;
}

/* Collectives between stages keep the graph's order, which is the same on all of them. */
static void chain_stages(deps *d)
{
    const hd_lowering *l = d->l;
    int last = -1;
    for (size_t i = 0; i < l->n_items; i++) {
        const hd_node *n = l->items[i].node;
        if (!crosses_stages(l, n) || n->op == &hd_op_send || n->op == &hd_op_recv) continue;
        add_dep(d, last, (int)i);
        last = (int)i;
    }
}

static void collect_deps(deps *d)
{
    hd_lowering *l = d->l;
    for (size_t i = 0; i < l->n_items; i++) {
        const hd_node *n = l->items[i].node;
        if (!n) {
            const hd_state_pair *pair = &l->g->pairs[l->items[i].pair];
            add_dep(d, l->item_of[pair->out], (int)i);
            int source = l->pair_in[pair->out]; /* the copy of a state comes before that state changes */
            if (source >= 0) add_dep(d, (int)i, writer_of_pair(l, source));
            continue;
        }
        for (int k = 0; k < n->n_in; k++)
            if (n->in[k] != HD_NONE) add_dep(d, l->item_of[n->in[k]], (int)i);
    }
    chain_stages(d);
    for (size_t i = 0; i < l->g->n_pairs; i++) {
        d->writer = writer_of_pair(l, (int)i);
        if (d->writer >= 0) each_reader(l, l->g->pairs[i].in, reader_first, d);
    }
}

/* Smaller runs earlier among items that are ready. */
static int64_t rank_of(const hd_lowering *l, int item)
{
    const hd_item *x = &l->items[item];
    /* A view costs nothing, and an update may wait for it; another stage waits for what is sent. */
    bool soon = x->node && (x->node->phase == HD_UPDATE || x->node->op->is_view || x->node->op->has_effect);
    return (int64_t)x->segment << 40 | (int64_t)!soon << 32 | item;
}

typedef struct heap { int64_t *ranks; int n; } heap;

static void heap_push(heap *h, int64_t rank)
{
    int i = h->n++;
    for (; i > 0 && h->ranks[(i - 1) / 2] > rank; i = (i - 1) / 2) h->ranks[i] = h->ranks[(i - 1) / 2];
    h->ranks[i] = rank;
}

static int heap_pop(heap *h)
{
    int64_t top = h->ranks[0], moved = h->ranks[--h->n];
    int i = 0;
    for (int child; (child = 2 * i + 1) < h->n; i = child) {
        if (child + 1 < h->n && h->ranks[child + 1] < h->ranks[child]) child++;
        if (h->ranks[child] >= moved) break;
        h->ranks[i] = h->ranks[child];
    }
    h->ranks[i] = moved;
    return (int)(uint32_t)top;
}

static int list_schedule(hd_lowering *l, const deps *d)
{
    int n = (int)l->n_items, done = 0;
    int *start = filled(l, (size_t)n + 2, 0), *next = filled(l, d->n, 0), *left = filled(l, (size_t)n, 0);
    heap h = {hd_arena_alloc(&l->scratch, ((size_t)n + 1) * sizeof(int64_t)), 0};
    if (out_of_memory(l, start) || out_of_memory(l, next) || out_of_memory(l, left) || out_of_memory(l, h.ranks)) return HD_ENOMEM;
    for (size_t i = 0; i < d->n; i++) start[d->list[i].from + 2]++, left[d->list[i].to]++;
    for (int i = 0; i < n; i++) start[i + 2] += start[i + 1];
    for (size_t i = 0; i < d->n; i++) next[start[d->list[i].from + 1]++] = d->list[i].to;
    for (int i = 0; i < n; i++)
        if (!left[i]) heap_push(&h, rank_of(l, i));
    while (h.n) {
        int item = heap_pop(&h);
        l->position[item] = done;
        l->order[done++] = item;
        for (int k = start[item]; k < start[item + 1]; k++)
            if (!--left[next[k]]) heap_push(&h, rank_of(l, next[k]));
    }
    if (done < n) return hd_fail(l->err, HD_EUNSUPPORTED, "states become each other's old values in a circle: they cannot be written in place");
    return 0;
}

static int check_segments(hd_lowering *l)
{
    for (size_t i = 1; i < l->n_items; i++)
        if (l->items[l->order[i]].segment < l->items[l->order[i - 1]].segment)
            return hd_fail(l->err, HD_EUNSUPPORTED, "a state is overwritten in an earlier segment than the last that reads it");
    return 0;
}

static int order_items(hd_lowering *l)
{
    deps d = {.l = l};
    l->order = filled(l, l->n_items, 0);
    l->position = filled(l, l->n_items, 0);
    int rc = 0;
    if (out_of_memory(l, l->order) || out_of_memory(l, l->position)) return HD_ENOMEM;
    collect_deps(&d);
    if (d.failed) rc = hd_fail_memory(l->err, d.n * sizeof *d.list, "lowering a graph");
    if (!rc) rc = list_schedule(l, &d);
    if (!rc) rc = check_segments(l);
    hd_free(d.list);
    return rc;
}

/* ---- all of it ---- */

static int begin(hd_lowering *l)
{
    const hd_graph *g = l->g;
    size_t n = g->n_values + 1;
    l->item_of = filled(l, n, -1);
    l->uses = filled(l, n, 0);
    l->available = filled(l, n, HD_SEGMENT_PREPARE);
    l->pair_in = filled(l, n, -1);
    l->pair_direct = filled(l, n, -1);
    l->kept = hd_arena_alloc(&l->scratch, n);
    if (!l->item_of || !l->uses || !l->available || !l->pair_in || !l->pair_direct || out_of_memory(l, l->kept))
        return hd_fail_memory(l->err, n * sizeof(int), "lowering a graph");
    for (size_t i = 0; i < g->n_outputs; i++) l->kept[g->outputs[i].value] = true;
    for (size_t i = 0; i < g->n_pairs; i++) {
        l->kept[g->pairs[i].out] = true;
        l->pair_in[g->pairs[i].in] = (int)i;
    }
    for (size_t v = 0; v < g->n_values; v++)
        if (g->values[v].kind == HD_INPUT && g->values[v].micro == HD_TIME_SPLIT) l->available[v] = HD_SEGMENT_FORWARD;
    return 0;
}

int hd_lower_order(hd_lowering *l)
{
    int rc = begin(l);
    if (!rc) rc = collect_items(l);
    if (!rc) rc = collect_readers(l);
    if (!rc) rc = find_weight_parts(l);
    if (!rc) rc = assign_segments(l);
    if (!rc) rc = check_outputs(l);
    if (!rc) rc = plan_states(l);
    return rc ? rc : order_items(l);
}
