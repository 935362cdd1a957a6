/* layouts.c: see layouts.h: from a Graph to a problem of factor.h, and back. Variables are the nodes (which way each is divided), then the values (how each is
 * held); links are the operands and results. Costs are picoseconds. */
#include <stdlib.h>
#include <string.h>

#include "base/term.h"
#include "planners/layouts_int.h"

/* ---- ways to divide nodes ---- */

static bool is_heavy(const hd_node *n)
{
    static const char *const ops[] = {"contract", "conv2d", "attention"};
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        if (!strncmp(n->op->name, ops[i], strlen(ops[i]))) return true;
    return false;
}

static int axes_used(const hd_layout_builder *b, const hd_strategy *s)
{
    int used = 0;
    for (int i = 0; i < b->part.n_axes; i++) used += s->option[b->part.axis[i]].kind == HD_PART_LOOP;
    return used;
}

static int add_way(hd_layout_builder *b, const hd_node *n, const hd_strategy *s, hd_way *out)
{
    out->in = hd_arena_copy(&b->memory, s->in, (size_t)n->n_in * sizeof *s->in);
    out->out = hd_arena_copy(&b->memory, s->out, (size_t)n->n_out * sizeof *s->out);
    for (int a = 0; a < HD_MAX_AXES; a++) {
        const hd_part_option *o = &s->option[a];
        out->loop[a] = (int8_t)(o->kind == HD_PART_LOOP ? o->loop : o->kind == HD_PART_LINEAR ? -2 : o->kind == HD_PART_EXPANDED ? HD_WAY_EXPANDED : -1);
    }
    return out->in && out->out ? 0 : HD_ENOMEM;
}

/* Whether s cuts the samples, and nothing else, wherever n has them. samples: the loop of n that runs over them, or -1. */
static bool follows_samples(const hd_layout_builder *b, const hd_strategy *s, int samples)
{
    for (int i = 0; samples >= 0 && i < b->part.n_axes; i++) {
        const hd_part_option *o = &s->option[b->part.axis[i]];
        if (o->kind != HD_PART_LOOP || o->loop != samples) return false;
    }
    return true;
}

static int list_ways(hd_layout_builder *b, const hd_node *n, int samples, hd_ways *out, hd_error *err)
{
    int most = hd_part_list(&b->part, n, NULL, 0), full = 0;
    hd_strategy *all = hd_calloc((size_t)most + 1, sizeof *all);
    if (all) hd_part_list(&b->part, n, all, most);
    if (all) most = hd_layout_expand(b, n, &all, most);
    out->list = most > 0 ? hd_arena_alloc(&b->memory, (size_t)most * sizeof *out->list) : NULL;
    int rc = all && (out->list || !most) ? 0 : hd_fail_memory(err, sizeof *all, "ways to divide a node");
    for (int i = 0; !rc && i < most && is_heavy(n) && !b->p->cluster; i++) {
        int used = axes_used(b, &all[i]);
        if (used > full) full = used;
    }
    for (int i = 0; !rc && i < most; i++) {
        if (axes_used(b, &all[i]) < full || (b->p->data_parallel && !follows_samples(b, &all[i], samples))) continue;
        if (add_way(b, n, &all[i], &out->list[out->n++])) rc = hd_fail_memory(err, 0, "ways to divide a node");
    }
    hd_free(all);
    if (!rc && !out->n) rc = hd_fail(err, HD_EINVAL, "%s (%s): nothing of it can be cut over samples", n->path, n->op->name);
    return rc;
}

/* For data parallelism: which dimension of each value runs over samples, from the inputs' first on; -1: none. */
typedef struct sampled { int8_t *dim; } sampled;

static int samples_loop(const hd_layout_builder *b, const hd_node *n, sampled *s)
{
    hd_type in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS];
    hd_sig sig;
    hd_loops loops = {0};
    int loop = -1;
    hd_part_signature(&b->part, n, &sig, in, out);
    n->op->loops(&sig, &loops);
    for (int i = 0; i < n->n_in && loop < 0; i++) {
        int d = n->in[i] == HD_NONE ? -1 : s->dim[n->in[i]];
        if (d >= 0 && loops.in[i][d].n) loop = loops.in[i][d].loop[0];
    }
    for (int r = 0; r < n->n_out; r++)
        for (int d = 0; loop >= 0 && d < out[r].shape.rank; d++)
            if (loops.out[r][d].n && loops.out[r][d].loop[0] == loop) s->dim[n->out[r]] = (int8_t)d;
    return loop >= 0 && loops.extent[loop] > 1 && !(loops.whole >> loop & 1) ? loop : -1;
}

static int list_all_ways(hd_layout_builder *b, hd_error *err)
{
    const hd_graph *g = b->g;
    sampled s = {hd_arena_alloc(&b->memory, g->n_values + 1)};
    int rc = s.dim ? 0 : hd_fail_memory(err, g->n_values, "a layout search");
    for (size_t v = 0; !rc && v < g->n_values; v++)
        s.dim[v] = (int8_t)(g->values[v].kind == HD_INPUT && g->values[v].micro == HD_TIME_SPLIT && g->values[v].type.shape.rank ? 0 : -1);
    for (size_t i = 0; !rc && i < g->n_nodes; i++) rc = list_ways(b, g->nodes[i], samples_loop(b, g->nodes[i], &s), &b->ways[i], err);
    return rc;
}

/* ---- how values are held ---- */

static int add_held(hd_layout_builder *b, hd_value v, const hd_layout *l)
{
    hd_holding *h = &b->held[v];
    for (int i = 0; i < h->n; i++)
        if (hd_layout_equal(&b->p->mesh, &h->list[i], l, &b->part.value[v].whole)) return 0;
    if (hd_grow(&h->list, &h->room, (size_t)h->n + 1, sizeof *h->list)) return HD_ENOMEM;
    h->list[h->n++] = *l;
    return 0;
}

/* Leaves are held in no addends. Whole comes first: where costs are equal it is taken. */
static int list_held(hd_layout_builder *b, hd_error *err)
{
    const hd_graph *g = b->g;
    static const hd_layout whole;
    int rc = 0;
    for (size_t v = 0; !rc && v < g->n_values; v++)
        if (b->part.value[v].used) rc = add_held(b, (hd_value)v, &whole);
    for (size_t i = 0; !rc && i < g->n_nodes; i++)
        for (int k = 0; k < g->nodes[i]->n_in + g->nodes[i]->n_out; k++) {
            const hd_node *n = g->nodes[i];
            hd_value v = k < n->n_in ? n->in[k] : n->out[k - n->n_in];
            for (int w = 0; !rc && v != HD_NONE && b->part.value[v].used && w < b->ways[i].n; w++) {
                const hd_layout *l = k < n->n_in ? &b->ways[i].list[w].in[k] : &b->ways[i].list[w].out[k - n->n_in];
                if (!l->partial || g->values[v].kind == HD_RESULT) rc = add_held(b, v, l);
            }
        }
    for (size_t k = 0; !rc && k < g->n_pairs; k++)
        for (int i = 0; !rc && i < b->held[g->pairs[k].out].n; i++)
            if (!b->held[g->pairs[k].out].list[i].partial) rc = add_held(b, g->pairs[k].in, &b->held[g->pairs[k].out].list[i]);
    return rc ? hd_fail_memory(err, 0, "a layout search") : 0;
}

static void learn(hd_layout_builder *b)
{
    const hd_graph *g = b->g;
    for (size_t v = 0; v < g->n_values; v++) {
        hd_part_value *x = &b->part.value[v];
        x->dtype = g->values[v].type.dtype;
        x->whole = g->values[v].type.shape;
        b->late[v] = true;
    }
    for (size_t i = g->n_nodes; i-- > 0;) {
        const hd_node *n = g->nodes[i];
        for (int k = 0; k < n->n_in; k++) {
            if (n->in[k] == HD_NONE) continue;
            const hd_value_info *x = &g->values[n->in[k]];
            b->part.value[n->in[k]].used = true;
            b->part.value[n->in[k]].readers++;
            bool sum = !strcmp(n->op->name, "micro_sum");
            b->summed[n->in[k]] |= sum;
            b->late[n->in[k]] &= n->phase == HD_UPDATE || ((sum || hd_part_passes_gradient(n)) && b->late[n->out[0]]);
            b->saved[n->in[k]] |= n->phase == HD_BACKWARD && x->kind == HD_RESULT && g->nodes[x->node]->phase == HD_FORWARD;
        }
    }
    for (size_t i = 0; i < g->n_outputs; i++) b->part.value[g->outputs[i].value].used = true;
    for (size_t i = 0; i < g->n_pairs; i++) b->part.value[g->pairs[i].out].used = true;
}

/* ---- variables and links ---- */

static bool takes_memory(const hd_layout_builder *b, hd_value v)
{
    const hd_value_info *x = &b->g->values[v];
    bool gradient = x->kind == HD_RESULT && b->late[v] && !b->summed[v] && b->g->nodes[x->node]->phase != HD_UPDATE && x->type.shape.rank;
    if (b->p->cluster) gradient = x->kind == HD_RESULT && !strcmp(b->g->nodes[x->node]->op->name, "micro_sum") && x->type.shape.rank; /* the rest comes and goes */
    return x->kind == HD_PARAM || x->kind == HD_STATE || b->saved[v] || gradient;
}

/* Of a pipeline's first stages several micro-batches are on their way at once. */
static int64_t copies(const hd_layout_builder *b, hd_value v)
{
    return b->saved[v] && b->g->values[v].micro != HD_TIME_REPLICATE && b->p->in_flight > 1 ? b->p->in_flight : 1;
}

static int set_variables(hd_layout_builder *b, hd_error *err)
{
    size_t most = b->g->n_nodes + b->g->n_values + 1;
    b->states = hd_arena_alloc(&b->memory, most * sizeof *b->states);
    b->cost = hd_arena_alloc(&b->memory, most * sizeof *b->cost);
    b->bytes = hd_arena_alloc(&b->memory, most * sizeof *b->bytes);
    if (!b->states || !b->cost || !b->bytes) return hd_fail_memory(err, 0, "a layout search");
    int n = 0;
    for (size_t i = 0; i < b->g->n_nodes; i++) b->states[n++] = b->ways[i].n;
    for (size_t v = 0; v < b->g->n_values; v++) {
        b->variable[v] = b->held[v].n ? n : -1;
        if (b->held[v].n) b->states[n++] = b->held[v].n;
    }
    for (int k = 0; k < n; k++) {
        b->cost[k] = hd_arena_alloc(&b->memory, (size_t)b->states[k] * sizeof(int64_t));
        b->bytes[k] = hd_arena_alloc(&b->memory, (size_t)b->states[k] * sizeof(int64_t));
        if (!b->cost[k] || !b->bytes[k]) return hd_fail_memory(err, 0, "a layout search");
    }
    for (size_t i = 0; i < b->g->n_nodes; i++)
        for (int w = 0; w < b->ways[i].n; w++) b->cost[i][w] = hd_layout_work(b, b->g->nodes[i], &b->ways[i].list[w]);
    for (size_t v = 0; v < b->g->n_values; v++)
        for (int i = 0; i < b->held[v].n && takes_memory(b, (hd_value)v); i++)
            b->bytes[b->variable[v]][i] = copies(b, (hd_value)v) * (int64_t)hd_part_bytes(&b->part, (hd_value)v, &b->held[v].list[i]);
    b->problem.n = n;
    return 0;
}

static int64_t *new_link(hd_layout_builder *b, int x, int y)
{
    int64_t *cost = hd_arena_alloc(&b->memory, (size_t)b->states[x] * (size_t)b->states[y] * sizeof *cost);
    if (!cost || hd_grow(&b->links, &b->link_room, (size_t)b->problem.n_links + 1, sizeof *b->links)) return NULL;
    b->links[b->problem.n_links++] = (hd_factor_link){x, y, cost};
    return cost;
}

static int link_operand(hd_layout_builder *b, int node, int k)
{
    const hd_node *n = b->g->nodes[node];
    const hd_holding *h = &b->held[n->in[k]];
    int64_t *cost = new_link(b, b->variable[n->in[k]], node);
    for (int i = 0; cost && i < h->n; i++)
        for (int w = 0; w < b->ways[node].n; w++) {
            const hd_way *x = &b->ways[node].list[w];
            cost[i * b->ways[node].n + w] = hd_layout_read_before(b, n, x, k) ? 0 : hd_layout_conversion(b, n->in[k], &h->list[i], &x->in[k], n);
        }
    return cost ? 0 : HD_ENOMEM;
}

static int link_result(hd_layout_builder *b, int node, int r)
{
    const hd_node *n = b->g->nodes[node];
    const hd_holding *h = &b->held[n->out[r]];
    if (!h->n) return 0;
    int64_t *cost = new_link(b, node, b->variable[n->out[r]]);
    for (int w = 0; cost && w < b->ways[node].n; w++)
        for (int i = 0; i < h->n; i++) cost[w * h->n + i] = hd_layout_conversion(b, n->out[r], &b->ways[node].list[w].out[r], &h->list[i], NULL);
    return cost ? 0 : HD_ENOMEM;
}

static int link_pair(hd_layout_builder *b, const hd_state_pair *pair)
{
    const hd_holding *in = &b->held[pair->in], *out = &b->held[pair->out];
    if (!in->n || pair->in == pair->out) return 0;
    int64_t *cost = new_link(b, b->variable[pair->in], b->variable[pair->out]);
    for (int i = 0; cost && i < in->n; i++)
        for (int k = 0; k < out->n; k++) cost[i * out->n + k] = hd_layout_conversion(b, pair->out, &out->list[k], &in->list[i], NULL);
    return cost ? 0 : HD_ENOMEM;
}

static int link_all(hd_layout_builder *b, hd_error *err)
{
    const hd_graph *g = b->g;
    static const hd_layout whole;
    int rc = 0;
    for (size_t i = 0; !rc && i < g->n_nodes; i++) {
        for (int k = 0; !rc && k < g->nodes[i]->n_in; k++)
            if (g->nodes[i]->in[k] != HD_NONE) rc = link_operand(b, (int)i, k);
        for (int r = 0; !rc && r < g->nodes[i]->n_out; r++) rc = link_result(b, (int)i, r);
    }
    for (size_t k = 0; !rc && k < g->n_pairs; k++) rc = link_pair(b, &g->pairs[k]);
    for (size_t k = 0; !rc && k < g->n_outputs; k++) {
        hd_value v = g->outputs[k].value;
        for (int i = 0; i < b->held[v].n; i++) {
            int64_t cost = hd_layout_conversion(b, v, &b->held[v].list[i], &whole, NULL);
            b->cost[b->variable[v]][i] = cost >= HD_NEVER ? HD_NEVER : b->cost[b->variable[v]][i] + cost;
        }
    }
    b->problem.states = b->states, b->problem.links = b->links;
    b->problem.cost = (const int64_t *const *)b->cost, b->problem.bytes = (const int64_t *const *)b->bytes;
    b->problem.limit = b->p->memory;
    return rc ? hd_fail_memory(err, 0, "a layout search") : 0;
}

/* Of ways that cost the same, one that divides the work: a picosecond for each axis that a node leaves alone. The answer's seconds are without it. */
static int64_t undivided(const hd_layout_builder *b, const hd_way *w)
{
    int64_t n = 0;
    for (int i = 0; i < b->part.n_axes; i++) n += w->loop[b->part.axis[i]] == -1;
    return n;
}

static void prefer_divided(hd_layout_builder *b)
{
    for (size_t i = 0; i < b->g->n_nodes; i++)
        for (int w = 0; w < b->ways[i].n; w++) b->cost[i][w] += undivided(b, &b->ways[i].list[w]);
}

/* ---- the answer ---- */

static int take_answer(const hd_layout_builder *b, const hd_factor_answer *f, hd_layout_answer *out, hd_error *err)
{
    out->feasible = f->feasible;
    out->proven = f->bound >= (f->feasible ? f->cost : HD_NEVER);
    int64_t ties = 0;
    for (size_t i = 0; f->feasible && i < b->g->n_nodes; i++) ties += undivided(b, &b->ways[i].list[f->choice[i]]);
    if (!out->proven) ties = (int64_t)b->g->n_nodes * b->part.n_axes;
    out->seconds = (double)(f->cost - ties) / hd_layout_unit(b), out->bound = (double)(f->bound - ties) / hd_layout_unit(b);
    out->memory = f->bytes, out->widest = f->widest, out->branches = f->nodes, out->variables = b->problem.n;
    if (!f->feasible) return 0;
    out->held = hd_calloc(b->g->n_values + 1, sizeof *out->held);
    out->nodes = hd_calloc(b->g->n_nodes + 1, sizeof *out->nodes);
    out->made = hd_calloc(b->g->n_values + 1, sizeof *out->made);
    if (!out->held || !out->nodes || !out->made) return hd_fail_memory(err, 0, "a layout search");
    for (size_t v = 0; v < b->g->n_values; v++)
        if (b->held[v].n) out->held[v] = b->held[v].list[f->choice[b->variable[v]]];
    for (size_t i = 0; i < b->g->n_nodes; i++) {
        out->nodes[i].node = b->g->nodes[i];
        out->work += (double)b->cost[i][f->choice[i]] / hd_layout_unit(b);
        for (int r = 0; r < b->g->nodes[i]->n_out; r++) out->made[b->g->nodes[i]->out[r]] = b->ways[i].list[f->choice[i]].out[r];
        memcpy(out->nodes[i].loop, b->ways[i].list[f->choice[i]].loop, sizeof out->nodes[i].loop);
    }
    out->n_nodes = (int)b->g->n_nodes;
    hd_layout_count(b, f->choice, out);
    return 0;
}

/* ---- the whole ---- */

static int open_builder(hd_layout_builder *b, const hd_layout_problem *p, hd_error *err)
{
    const hd_graph *g = p->graph;
    *b = (hd_layout_builder){.p = p, .g = g, .part = {.g = (hd_graph *)(uintptr_t)g, .mesh = &p->mesh, .n_values = g->n_values}};
    for (int a = 0; a < p->mesh.n; a++)
        if (p->mesh.axis[a].size > 1) b->part.axis[b->part.n_axes++] = a;
    if (b->part.n_axes > 3) return hd_fail(err, HD_EUNSUPPORTED, "a mesh of over 3 axes is too much for the layout search");
    b->part.value = hd_arena_alloc(&b->memory, (g->n_values + 1) * sizeof *b->part.value);
    b->ways = hd_arena_alloc(&b->memory, (g->n_nodes + 1) * sizeof *b->ways);
    b->held = hd_arena_alloc(&b->memory, (g->n_values + 1) * sizeof *b->held);
    b->saved = hd_arena_alloc(&b->memory, g->n_values + 1);
    b->late = hd_arena_alloc(&b->memory, g->n_values + 1);
    b->summed = hd_arena_alloc(&b->memory, g->n_values + 1);
    b->variable = hd_arena_alloc(&b->memory, (g->n_values + 1) * sizeof *b->variable);
    bool ready = !p->cluster || !hd_layout_memo_open(b);
    return ready && b->part.value && b->ways && b->held && b->saved && b->late && b->summed && b->variable ? 0 : hd_fail_memory(err, 0, "a layout search");
}

static void close_builder(hd_layout_builder *b)
{
    for (size_t v = 0; b->held && v < b->g->n_values; v++) hd_free(b->held[v].list);
    hd_free(b->links);
    hd_arena_free(&b->memory);
}

static int build(hd_layout_builder *b, hd_error *err)
{
    learn(b);
    if (b->p->cluster && hd_layout_recompute(b)) return hd_fail_memory(err, 0, "a layout search");
    int rc = list_all_ways(b, err);
    if (!rc) rc = list_held(b, err);
    if (!rc) rc = set_variables(b, err);
    if (!rc) prefer_divided(b);
    return rc ? rc : link_all(b, err);
}

int hd_layouts_solve(const hd_layout_problem *p, hd_layout_answer *out, hd_error *err)
{
    hd_layout_builder b;
    hd_factor_answer f = {0};
    double start = hd_time();
    *out = (hd_layout_answer){0};
    int rc = open_builder(&b, p, err);
    if (!rc) rc = build(&b, err);
    out->build_seconds = hd_time() - start;
    start = hd_time();
    if (!rc) rc = p->ilp ? hd_factor_solve_ilp(&b.problem, p->ilp_seconds, &f, err) : hd_factor_solve(&b.problem, &p->search, &f, err);
    out->solve_seconds = hd_time() - start;
    if (!rc) rc = take_answer(&b, &f, out, err);
    hd_factor_answer_free(&f);
    close_builder(&b);
    if (rc) hd_layout_answer_free(out);
    return rc;
}

void hd_layout_answer_free(hd_layout_answer *a)
{
    hd_free(a->held);
    hd_free(a->made);
    hd_free(a->nodes);
    *a = (hd_layout_answer){0};
}
