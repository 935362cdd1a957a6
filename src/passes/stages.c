/* stages.c: the part of a graph that one stage of a pipeline does.
 *
 * All stages are cut from the same graph in its order of nodes: where a node makes a value that another stage reads, the node's stage sends it
 * and the reader's receives it at that very place. So any two stages agree on the order of what passes between them.
 *
 *   a value of the micro-batch    is sent once to each stage that reads it, in the call of the chunk that makes it; it is received by the chunk
 *                                 there that runs first: the lowest in forward, the highest in backward
 *   a value of the step           before the first micro-batch (phase FORWARD), or after the last where it comes out of a sum (phase UPDATE)
 *   a parameter read elsewhere    is such a value: <path>.copy on the other stages
 *   a scalar for every stage      own part (zero where there is none), then all_reduce over "pp", at the same place on all */
#include <stdio.h>
#include <stdlib.h>

#include "graph/op.h"
#include "passes/partition.h"

#define NOWHERE (-2)    /* made and read by nobody */
#define EVERYWHERE (-1) /* on every stage */

typedef struct message { int to, number; struct message *next; } message; /* of one value, in order of stages; from: its chunk */

typedef struct cutter {
    const hd_graph *g;
    hd_graph *out;
    hd_arena scratch;
    int stage, stages, n_chunks;
    bool frozen;           /* parameters don't change: whoever reads one has it */
    int *node_chunk;       /* [nodes] */
    int *chunk;            /* [values] where it is made or kept, EVERYWHERE or NOWHERE */
    int *reads;            /* [values] nodes that read it */
    bool *late;            /* [values] of the step, and known only after the last micro-batch */
    bool *shared;          /* [values] a scalar that every stage needs, made in one */
    bool *absorbed;        /* [nodes] an addition whose sum goes on in another one */
    message **messages;    /* [values] */
    /* What there is of them in the stage's graph, HD_NONE: nothing. */
    hd_value *map;         /* [values] */
    hd_value *map_all;     /* [values] shared ones, after their all_reduce */
    hd_value *own, *every; /* [values] of absorbed additions: this stage's addends; those that every stage has */
    hd_node **map_node;    /* [nodes] */
} cutter;

static bool is_op(const hd_node *n, const char *name) { return !strcmp(n->op->name, name); }

static bool is_mine(const cutter *c, int chunk) { return chunk == EVERYWHERE || (chunk >= 0 && chunk % c->stages == c->stage); }

static bool is_scalar(const cutter *c, hd_value v) { return c->g->values[v].type.shape.rank == 0; }

/* ---- where everything is ---- */

/* A conversion of one value of a chunk is done where the value is, so that only sums over stages remain for all. */
static void place_nodes(cutter *c)
{
    const hd_graph *g = c->g;
    for (size_t v = 0; v < g->n_values; v++) c->chunk[v] = NOWHERE;
    for (size_t i = 0; i < g->n_nodes; i++) {
        const hd_node *n = g->nodes[i];
        c->node_chunk[i] = n->chunk;
        if (n->chunk == EVERYWHERE && n->op->is_comm && n->n_in == 1 && c->chunk[n->in[0]] >= 0) c->node_chunk[i] = c->chunk[n->in[0]];
        if (c->node_chunk[i] >= c->n_chunks) c->n_chunks = c->node_chunk[i] + 1;
        for (int k = 0; k < n->n_out; k++) c->chunk[n->out[k]] = c->node_chunk[i];
    }
}

/* A parameter's or state's home is the first chunk that reads it before the update. */
static void place_leaves(cutter *c)
{
    const hd_graph *g = c->g;
    for (int updates = 0; updates < 2; updates++)
        for (size_t i = 0; i < g->n_nodes; i++)
            for (int k = 0; k < g->nodes[i]->n_in; k++) {
                hd_value v = g->nodes[i]->in[k];
                if (v == HD_NONE || g->values[v].kind == HD_RESULT || (g->nodes[i]->phase == HD_UPDATE) != updates || c->node_chunk[i] < 0) continue;
                if (!updates && (c->chunk[v] < 0 || c->node_chunk[i] < c->chunk[v])) c->chunk[v] = c->node_chunk[i];
                if (updates && c->chunk[v] < 0) c->chunk[v] = c->node_chunk[i];
            }
    for (size_t i = 0; i < g->n_pairs; i++)
        if (c->chunk[g->pairs[i].in] < 0) c->chunk[g->pairs[i].in] = c->chunk[g->pairs[i].out]; /* nobody reads it */
    for (size_t v = 0; v < g->n_values; v++) {
        hd_kind kind = g->values[v].kind;
        if (kind == HD_INPUT || kind == HD_CONST || (kind == HD_PARAM && c->frozen)) c->chunk[v] = EVERYWHERE;
        else if (kind != HD_RESULT && c->chunk[v] < 0) c->chunk[v] = 0;
    }
}

static void find_late(cutter *c)
{
    const hd_graph *g = c->g;
    for (size_t i = 0; i < g->n_nodes; i++) {
        const hd_node *n = g->nodes[i];
        bool late = is_op(n, "micro_sum") || n->phase == HD_UPDATE;
        for (int k = 0; k < n->n_in; k++) late |= n->in[k] != HD_NONE && c->late[n->in[k]];
        for (int k = 0; k < n->n_out; k++) c->late[n->out[k]] = late && g->values[n->out[k]].micro == HD_TIME_REPLICATE;
    }
}

/* ---- sums over stages ---- */

/* An addition for every stage of something that only some have. */
static bool is_sum_over_stages(const cutter *c, size_t node)
{
    const hd_graph *g = c->g;
    const hd_node *n = g->nodes[node];
    if (c->stages == 1 || c->node_chunk[node] != EVERYWHERE || !is_op(n, "add")) return false;
    for (int k = 0; k < n->n_in; k++) {
        const hd_value_info *v = &g->values[n->in[k]];
        if (c->chunk[n->in[k]] >= 0 || (v->kind == HD_RESULT && c->absorbed[v->node])) return true;
    }
    return false;
}

static bool is_wanted(const hd_graph *g, hd_value v)
{
    for (size_t i = 0; i < g->n_outputs; i++)
        if (g->outputs[i].value == v) return true;
    for (size_t i = 0; i < g->n_pairs; i++)
        if (g->pairs[i].out == v) return true;
    return false;
}

static void find_sums(cutter *c)
{
    const hd_graph *g = c->g;
    int *reader = hd_arena_alloc(&c->scratch, (g->n_values + 1) * sizeof *reader);
    if (!reader) {
        hd_fail_memory(&c->out->err, g->n_values, "cutting a graph");
        return;
    }
    for (size_t i = 0; i < g->n_nodes; i++)
        for (int k = 0; k < g->nodes[i]->n_in; k++)
            if (g->nodes[i]->in[k] != HD_NONE) reader[g->nodes[i]->in[k]] = (int)i;
    for (size_t i = 0; i < g->n_nodes; i++) {
        hd_value y = g->nodes[i]->n_out ? g->nodes[i]->out[0] : HD_NONE;
        if (!is_sum_over_stages(c, i) || c->reads[y] != 1 || is_wanted(g, y)) continue;
        const hd_node *next = g->nodes[reader[y]];
        c->absorbed[i] = c->node_chunk[reader[y]] == EVERYWHERE && is_op(next, "add");
    }
}

static void find_shared(cutter *c)
{
    const hd_graph *g = c->g;
    if (c->stages == 1) return;
    for (size_t i = 0; i < g->n_nodes; i++) {
        const hd_node *n = g->nodes[i];
        if (c->node_chunk[i] != EVERYWHERE || is_sum_over_stages(c, i)) continue;
        for (int k = 0; k < n->n_in; k++)
            if (n->in[k] != HD_NONE && c->chunk[n->in[k]] >= 0) c->shared[n->in[k]] = true;
    }
    for (size_t i = 0; i < g->n_outputs; i++)
        if (is_scalar(c, g->outputs[i].value) && c->chunk[g->outputs[i].value] >= 0) c->shared[g->outputs[i].value] = true;
    for (size_t v = 0; v < g->n_values; v++)
        if (c->shared[v] && !is_scalar(c, (hd_value)v))
            hd_fail(&c->out->err, HD_EUNSUPPORTED, "every stage would need %s, which is no scalar", g->values[v].path);
}

/* ---- messages ---- */

static hd_phase phase_of(const cutter *c, hd_value v)
{
    const hd_value_info *i = &c->g->values[v];
    if (i->micro == HD_TIME_REPLICATE) return c->late[v] ? HD_UPDATE : HD_FORWARD;
    return i->kind == HD_RESULT && c->g->nodes[i->node]->phase != HD_FORWARD ? HD_BACKWARD : HD_FORWARD;
}

static int check_direction(cutter *c, hd_value v, int to)
{
    const hd_value_info *i = &c->g->values[v];
    int from = c->chunk[v];
    bool sent = from % c->stages != to % c->stages;
    hd_error *err = &c->out->err;
    if (sent && i->kind == HD_STATE) return hd_fail(err, HD_EUNSUPPORTED, "the state %s is used in chunks %d and %d of the pipeline", i->path, from, to);
    if (i->micro == HD_TIME_REPLICATE || (phase_of(c, v) == HD_FORWARD ? from < to : from > to)) return 0;
    return hd_fail(err, HD_EUNSUPPORTED, "%s is made in chunk %d of the pipeline, too late for chunk %d", i->path, from, to);
}

/* One message for each stage that reads v; several chunks there share it. */
static int note_message(cutter *c, hd_value v, int to)
{
    message **at = &c->messages[v];
    while (*at && (*at)->to % c->stages < to % c->stages) at = &(*at)->next;
    if (*at && (*at)->to % c->stages == to % c->stages) {
        bool earlier = phase_of(c, v) == HD_BACKWARD ? to > (*at)->to : to < (*at)->to;
        if (earlier) (*at)->to = to;
        return 0;
    }
    message *m = hd_arena_alloc(&c->scratch, sizeof *m);
    if (!m) return hd_fail_memory(&c->out->err, sizeof *m, "cutting a graph");
    *m = (message){.to = to, .next = *at};
    *at = m;
    return 0;
}

static int note_reader(cutter *c, hd_value v, int to)
{
    if (v == HD_NONE || to < 0 || c->chunk[v] < 0 || c->chunk[v] == to) return 0;
    if (check_direction(c, v, to)) return c->out->err.code;
    return c->chunk[v] % c->stages == to % c->stages ? 0 : note_message(c, v, to);
}

/* Nodes read; so do states of what they become. */
static int find_messages(cutter *c)
{
    const hd_graph *g = c->g;
    int rc = 0;
    for (size_t i = 0; i < g->n_nodes; i++)
        for (int k = 0; k < g->nodes[i]->n_in && !rc; k++) rc = note_reader(c, g->nodes[i]->in[k], c->node_chunk[i]);
    for (size_t i = 0; i < g->n_pairs && !rc; i++) rc = note_reader(c, g->pairs[i].out, c->chunk[g->pairs[i].in]);
    return rc;
}

static void number_value(cutter *c, hd_value v, int *next)
{
    for (message *m = c->messages[v]; m; m = m->next) m->number = next[c->chunk[v] * c->n_chunks + m->to]++;
}

/* In the order in which they are sent: parameters, then by node. */
static int number_messages(cutter *c)
{
    const hd_graph *g = c->g;
    int *next = hd_arena_alloc(&c->scratch, (size_t)c->n_chunks * (size_t)c->n_chunks * sizeof *next);
    if (!next) return hd_fail_memory(&c->out->err, (size_t)c->n_chunks, "cutting a graph");
    for (size_t v = 0; v < g->n_values; v++)
        if (g->values[v].kind != HD_RESULT) number_value(c, (hd_value)v, next);
    for (size_t i = 0; i < g->n_nodes; i++)
        for (int k = 0; k < g->nodes[i]->n_out; k++) number_value(c, g->nodes[i]->out[k], next);
    return 0;
}

/* ---- making the stage's nodes ---- */

/* The value v of g in the new graph, made where it isn't there yet. */
static hd_value copy_value(cutter *c, hd_value v)
{
    if (c->map[v] == HD_NONE) c->map[v] = hd_graph_copy_value(c->out, c->g, v);
    return c->map[v];
}

static const char *path_with(cutter *c, hd_value v, const char *ending)
{
    return hd_arena_printf(&c->out->arena, "%s%s", c->g->values[v].path, ending);
}

/* A value made in the new graph is what v is: over micro-batches and over the mesh. */
static hd_value like(cutter *c, hd_value made, hd_value v)
{
    const hd_value_info *from = &c->g->values[v];
    if (made == HD_NONE) return made;
    hd_value_info *to = &c->out->values[made];
    to->micro = from->micro;
    to->whole = from->whole;
    to->layout = from->layout ? hd_arena_copy(&c->out->arena, from->layout, sizeof *from->layout) : NULL;
    if (from->layout && !to->layout) hd_fail_memory(&c->out->err, sizeof *from->layout, "cutting a graph");
    return made;
}

/* What is made for value v belongs to the slice that makes v. */
static int slice_of(const cutter *c, hd_value v)
{
    return c->g->values[v].kind == HD_RESULT ? c->g->nodes[c->g->values[v].node]->slice : 0;
}

static hd_value make_node(cutter *c, const char *op, const char *path, const void *attrs, const hd_value *in, int n_in, hd_phase phase, int chunk, int slice)
{
    c->out->slice = slice;
    c->out->phase = phase;
    c->out->chunk = chunk;
    return hd_graph_node(c->out, op, path, attrs, in, n_in);
}

static hd_pipe_attrs pipe_attrs(const cutter *c, hd_value v, const message *m)
{
    const hd_type *t = &c->g->values[v].type;
    hd_pipe_attrs at = {.from = c->chunk[v], .to = m->to, .number = m->number, .dtype = t->dtype, .shape.rank = t->shape.rank, .symbol = t->shape.sym + 1};
    for (int d = 0; d < t->shape.rank; d++) at.shape.dim[d] = t->shape.dim[d];
    return at;
}

/* v leaves this stage, or comes to it, if it does. */
static void pass_on(cutter *c, hd_value v)
{
    bool leaf = c->g->values[v].kind != HD_RESULT;
    for (const message *m = c->messages[v]; m; m = m->next) {
        hd_pipe_attrs at = pipe_attrs(c, v, m);
        char ending[24];
        snprintf(ending, sizeof ending, ".to%d", m->to);
        if (is_mine(c, at.from)) {
            make_node(c, "send", path_with(c, v, ending), &at, &c->map[v], 1, phase_of(c, v), at.from, slice_of(c, v));
        } else if (is_mine(c, m->to)) {
            hd_value got = make_node(c, "recv", path_with(c, v, leaf ? ".copy" : ""), &at, NULL, 0, phase_of(c, v), m->to, slice_of(c, v));
            c->map[v] = like(c, got, v);
        }
    }
}

static int last_chunk(const cutter *c)
{
    int chunk = (c->n_chunks - 1) / c->stages * c->stages + c->stage;
    if (chunk >= c->n_chunks) chunk -= c->stages;
    return chunk < 0 ? EVERYWHERE : chunk;
}

/* The sum over stages of x (HD_NONE: nothing here), which takes the place of v. */
static hd_value over_stages(cutter *c, hd_value x, hd_value v, const char *path, hd_phase phase)
{
    bool once = c->g->values[v].micro == HD_TIME_REPLICATE;
    hd_comm_attrs at = {.axes = "pp"};
    if (x == HD_NONE) x = hd_graph_scalar(c->out, 0, c->g->values[v].type.dtype);
    return like(c, make_node(c, "all_reduce", path, &at, &x, 1, phase, once ? EVERYWHERE : last_chunk(c), slice_of(c, v)), v);
}

static void share(cutter *c, hd_value v)
{
    hd_value own = is_mine(c, c->chunk[v]) ? c->map[v] : HD_NONE;
    c->map_all[v] = over_stages(c, own, v, path_with(c, v, ".all"), phase_of(c, v));
}

/* ---- an addition over stages: this stage's addends apart from those that all have ---- */

static hd_value add_as(cutter *c, const hd_node *n, const char *path, hd_value a, hd_value b)
{
    if (a == HD_NONE || b == HD_NONE) return a == HD_NONE ? b : a;
    return like(c, make_node(c, "add", path, n->attrs, (hd_value[]){a, b}, 2, n->phase, EVERYWHERE, n->slice), n->out[0]);
}

static void split_addend(const cutter *c, hd_value v, hd_value *own, hd_value *every)
{
    const hd_value_info *i = &c->g->values[v];
    bool absorbed = i->kind == HD_RESULT && c->absorbed[i->node], part = c->chunk[v] >= 0;
    *own = absorbed ? c->own[v] : part && is_mine(c, c->chunk[v]) ? c->map[v] : HD_NONE;
    *every = absorbed ? c->every[v] : part ? HD_NONE : c->map[v];
}

static void cut_addition(cutter *c, size_t node)
{
    const hd_node *n = c->g->nodes[node];
    hd_value y = n->out[0], own[2], every[2];
    for (int k = 0; k < 2; k++) split_addend(c, n->in[k], &own[k], &every[k]);
    c->own[y] = add_as(c, n, path_with(c, y, ".stage"), own[0], own[1]);
    c->every[y] = add_as(c, n, path_with(c, y, ".every"), every[0], every[1]);
    if (c->absorbed[node]) return;
    bool alone = c->every[y] == HD_NONE;
    hd_value sum = over_stages(c, c->own[y], y, path_with(c, y, alone ? "" : ".stages"), n->phase);
    c->map[y] = alone ? sum : add_as(c, n, n->path, sum, c->every[y]);
}

/* ---- copying ---- */

static void copy_node(cutter *c, size_t node)
{
    const hd_node *n = c->g->nodes[node];
    hd_value in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS];
    bool all = c->node_chunk[node] == EVERYWHERE;
    for (int k = 0; k < n->n_in; k++) {
        if (n->in[k] == HD_NONE) in[k] = HD_NONE;
        else in[k] = all && c->shared[n->in[k]] ? c->map_all[n->in[k]] : c->map[n->in[k]];
    }
    for (int k = 0; k < n->n_out; k++) out[k] = copy_value(c, n->out[k]);
    c->map_node[node] = hd_graph_copy_node(c->out, n, in, out);
    if (c->map_node[node]) c->map_node[node]->chunk = c->node_chunk[node];
}

static void copy_nodes(cutter *c)
{
    const hd_graph *g = c->g;
    for (size_t i = 0; i < g->n_nodes && !c->out->err.code; i++) {
        const hd_node *n = g->nodes[i];
        if (is_sum_over_stages(c, i)) cut_addition(c, i);
        else if (is_mine(c, c->node_chunk[i])) copy_node(c, i);
        for (int k = 0; k < n->n_out; k++) {
            pass_on(c, n->out[k]);
            if (c->shared[n->out[k]]) share(c, n->out[k]);
        }
    }
}

/* What a stage reads; on a single one, all there is, so that nothing changes. */
static void copy_leaves(cutter *c)
{
    const hd_graph *g = c->g;
    for (size_t i = 0; i < g->n_nodes && c->stages > 1; i++)
        for (int k = 0; k < g->nodes[i]->n_in; k++) {
            hd_value v = g->nodes[i]->in[k];
            if (v != HD_NONE && c->chunk[v] == EVERYWHERE && g->values[v].kind != HD_RESULT && is_mine(c, c->node_chunk[i])) c->map[v] = 0;
        }
    for (size_t v = 0; v < g->n_values; v++) {
        bool kept = g->values[v].kind == HD_PARAM || g->values[v].kind == HD_STATE;
        bool wanted = c->stages == 1 || c->map[v] == 0 || (kept && is_mine(c, c->chunk[v]));
        c->map[v] = HD_NONE;
        if (wanted) copy_value(c, (hd_value)v);
    }
    for (size_t v = 0; v < g->n_values; v++) {
        if (g->values[v].kind == HD_RESULT) continue;
        pass_on(c, (hd_value)v);
        if (c->shared[v]) share(c, (hd_value)v);
    }
}

static void copy_ends(cutter *c)
{
    const hd_graph *g = c->g;
    for (size_t i = 0; i < g->n_pairs; i++) {
        hd_value in = g->pairs[i].in, out = g->pairs[i].out;
        if (!is_mine(c, c->chunk[in])) continue;
        if (c->map[out] == HD_NONE) {
            hd_fail(&c->out->err, HD_EUNSUPPORTED, "%s is kept in chunk %d of the pipeline, but its next value doesn't come there", g->values[in].path,
                    c->chunk[in]);
            return;
        }
        hd_graph_pair(c->out, c->map[in], c->map[out]);
    }
    for (size_t i = 0; i < g->n_outputs; i++) {
        hd_value v = g->outputs[i].value;
        if (c->shared[v]) hd_graph_output(c->out, g->outputs[i].name, c->map_all[v]);
        else if (is_mine(c, c->chunk[v])) hd_graph_output(c->out, g->outputs[i].name, copy_value(c, v));
    }
}

/* ---- the origin of each node, in the new graph ---- */

typedef struct numbered { const hd_node *node; size_t index; } numbered;

static int by_address(const void *a, const void *b)
{
    const numbered *x = a, *y = b;
    return x->node < y->node ? -1 : x->node > y->node;
}

static void copy_origins(cutter *c)
{
    const hd_graph *g = c->g;
    numbered *all = hd_arena_alloc(&c->scratch, (g->n_nodes + 1) * sizeof *all);
    if (!all) {
        hd_fail_memory(&c->out->err, g->n_nodes, "cutting a graph");
        return;
    }
    for (size_t i = 0; i < g->n_nodes; i++) all[i] = (numbered){g->nodes[i], i};
    qsort(all, g->n_nodes, sizeof *all, by_address);
    for (size_t i = 0; i < g->n_nodes; i++) {
        if (!c->map_node[i] || !g->nodes[i]->origin) continue;
        numbered *origin = bsearch(&(numbered){.node = g->nodes[i]->origin}, all, g->n_nodes, sizeof *all, by_address);
        if (origin) c->map_node[i]->origin = c->map_node[origin->index];
    }
}

/* ---- the whole ---- */

static int begin(cutter *c)
{
    const hd_graph *g = c->g;
    size_t nv = g->n_values + 1, nn = g->n_nodes + 1;
    int **numbers[] = {&c->node_chunk, &c->chunk, &c->reads, &c->map, &c->map_all, &c->own, &c->every};
    bool **flags[] = {&c->late, &c->shared, &c->absorbed};
    bool ok = true;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        ok &= (*numbers[i] = hd_arena_alloc(&c->scratch, (nv + nn) * sizeof **numbers[i])) != NULL;
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) ok &= (*flags[i] = hd_arena_alloc(&c->scratch, nv + nn)) != NULL;
    c->messages = hd_arena_alloc(&c->scratch, nv * sizeof *c->messages);
    c->map_node = hd_arena_alloc(&c->scratch, nn * sizeof *c->map_node);
    if (!ok || !c->messages || !c->map_node) return hd_fail_memory(&c->out->err, nv * sizeof(int), "cutting a graph");
    for (size_t v = 0; v < nv; v++) c->map[v] = c->map_all[v] = c->own[v] = c->every[v] = HD_NONE;
    for (size_t i = 0; i < g->n_nodes; i++)
        for (int k = 0; k < g->nodes[i]->n_in; k++)
            if (g->nodes[i]->in[k] != HD_NONE) c->reads[g->nodes[i]->in[k]]++;
    return 0;
}

static int plan(cutter *c)
{
    c->n_chunks = 1;
    if (begin(c)) return c->out->err.code;
    place_nodes(c);
    place_leaves(c);
    find_late(c);
    find_sums(c);
    find_shared(c);
    if (!c->out->err.code) find_messages(c);
    return c->out->err.code ? c->out->err.code : number_messages(c);
}

static void make(cutter *c)
{
    const hd_graph *g = c->g;
    for (int i = 0; i < g->n_symbols; i++) hd_graph_symbol(c->out, g->symbols[i].name, g->symbols[i].max);
    c->out->mesh = g->mesh;
    copy_leaves(c);
    copy_nodes(c);
    if (!c->out->err.code) copy_ends(c);
    if (!c->out->err.code) copy_origins(c);
    c->out->phase = HD_FORWARD;
    c->out->chunk = c->out->slice = 0;
}

hd_graph *hd_graph_stage(const hd_graph *g, int stage, int stages, bool frozen, hd_error *err)
{
    if (g->err.code || stages < 1 || stage < 0 || stage >= stages) {
        hd_fail(err, g->err.code ? g->err.code : HD_EINVAL, "there is no stage %d of %d%s%s", stage, stages, g->err.code ? ": " : "", g->err.message);
        return NULL;
    }
    cutter c = {.g = g, .out = hd_graph_new(), .stage = stage, .stages = stages, .frozen = frozen};
    if (!c.out) {
        hd_fail_memory(err, sizeof *c.out, "a graph");
        return NULL;
    }
    if (!plan(&c)) make(&c);
    hd_arena_free(&c.scratch);
    if (!c.out->err.code) return c.out;
    hd_fail(err, c.out->err.code, "%s", c.out->err.message);
    hd_graph_free(c.out);
    return NULL;
}
