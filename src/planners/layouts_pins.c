/* layouts_pins.c: an answer of the layout search as pins: those that make the partitioner (passes/partition.c) hold every value as the answer does.
 *
 * Left alone, the partitioner goes node by node and sends the fewest bytes; wherever that is what the answer does, too, nothing has to be said. So what it
 * does with the pins so far is tried on a copy of the graph, and the first values that it lays otherwise are pinned as well, until none is left. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plan/pins.h"
#include "planners/layouts_int.h"

enum { ROUNDS = 200 };

typedef struct pinner {
    const hd_layout_problem *p;
    const hd_graph *g;
    hd_arena memory;
    hd_layout *held, *made; /* [values] what is wanted */
    bool *pinned, *same, *off; /* [values] off: lies otherwise than wanted, in the copy */
    bool *forced, *any;     /* [values] a pin says how its node leaves it; one might */
    bool *stuck;            /* [values] cannot be brought about: nothing follows from it */
    hd_pin *pins; int n, room;
} pinner;

/* ---- what is wanted ---- */

static bool differs(const pinner *s, hd_value v, const hd_layout *a, const hd_layout *b)
{
    return !hd_layout_equal(&s->p->mesh, a, b, &s->g->values[v].type.shape);
}

/* The number behind "layers." in a path: where it stands, its length; 0: there is none. */
static size_t find_layer(const char *path, size_t *digits)
{
    for (const char *at = path; (at = strstr(at, "layers.")); at++) {
        if (at != path && at[-1] != '.') continue;
        *digits = strspn(at + 7, "0123456789");
        if (*digits && at[7 + *digits] == '.') return (size_t)(at + 7 - path);
    }
    return 0;
}

static long layer_of(const char *path)
{
    size_t digits, at = find_layer(path, &digits);
    return at ? atol(path + at) : -1;
}

/* The value of layer `layer` that is to that layer what v is to its own; v where there is none. */
static hd_value counterpart(const hd_graph *g, hd_value v, long layer)
{
    const char *path = g->values[v].path;
    char other[1024];
    size_t digits, at = find_layer(path, &digits);
    if (!at || at > 512) return v;
    snprintf(other, sizeof other, "%.*s%ld%s", (int)at, path, layer, path + at + digits);
    hd_value u = hd_graph_find(g, other);
    bool alike = u != HD_NONE && g->values[u].kind == g->values[v].kind && hd_shape_equal(&g->values[u].type.shape, &g->values[v].type.shape);
    return alike ? u : v;
}

/* Every layer as the middle one: what is first or last is not like those between. */
static void repeat_layers(pinner *s, const hd_layout_answer *a)
{
    long layers = 0;
    for (size_t v = 0; v < s->g->n_values; v++) {
        long layer = layer_of(s->g->values[v].path);
        if (layer >= layers) layers = layer + 1;
    }
    for (size_t v = 0; layers > 1 && v < s->g->n_values; v++) {
        hd_value u = counterpart(s->g, (hd_value)v, layers / 2);
        s->held[v] = a->held[u];
        s->made[v] = a->made[u];
    }
}

/* What lies whole on all ranks of addends' axes too; a number is in no pieces. */
static bool can_pin(const pinner *s, hd_value v)
{
    const hd_value_info *x = &s->g->values[v];
    const hd_node *maker = x->kind == HD_RESULT ? s->g->nodes[x->node] : NULL;
    if (!x->type.shape.rank || s->held[v].partial) return false;
    return !maker || maker->phase == HD_UPDATE || x->micro != HD_TIME_REPLICATE || !s->made[v].partial; /* a pin would sum it in each micro-batch */
}

static bool is_leaf(const hd_value_info *x) { return x->kind == HD_PARAM || x->kind == HD_STATE || (x->kind == HD_INPUT && x->micro == HD_TIME_SPLIT); }

/* s->any: results that are not on the way to the update alone. How gradients' addends are summed the partitioner knows best: late, and many together. */
static void find_ways(pinner *s)
{
    const hd_graph *g = s->g;
    for (size_t i = g->n_nodes; i-- > 0;) {
        const hd_node *n = g->nodes[i];
        bool sum = n->phase == HD_UPDATE || !strcmp(n->op->name, "micro_sum"), passes = hd_part_passes_gradient(n) && !s->any[n->out[0]];
        for (int k = 0; k < n->n_in; k++)
            if (n->in[k] != HD_NONE && g->values[n->in[k]].kind == HD_RESULT) s->any[n->in[k]] |= !sum && !passes;
    }
}

static void pin_first(pinner *s)
{
    find_ways(s);
    for (size_t v = 0; v < s->g->n_values; v++) {
        const hd_value_info *x = &s->g->values[v];
        if (!hd_value_is_live(s->g, (hd_value)v)) continue;
        s->same[v] = can_pin(s, (hd_value)v);
        bool moved = x->kind == HD_RESULT && s->g->nodes[x->node]->phase != HD_UPDATE && differs(s, (hd_value)v, &s->held[v], &s->made[v]);
        s->pinned[v] = s->same[v] && (is_leaf(x) || moved);
    }
}

/* ---- what the partitioner does ---- */

typedef struct numbered { const hd_node *node; size_t index; } numbered;

static int by_address(const void *a, const void *b)
{
    const numbered *x = a, *y = b;
    return x->node < y->node ? -1 : x->node > y->node;
}

static void copy_origins(const hd_graph *g, hd_graph *to)
{
    numbered *all = hd_malloc((g->n_nodes + 1) * sizeof *all);
    if (!all) {
        hd_fail_memory(&to->err, g->n_nodes, "a layout search");
        return;
    }
    for (size_t i = 0; i < g->n_nodes; i++) all[i] = (numbered){g->nodes[i], i};
    qsort(all, g->n_nodes, sizeof *all, by_address);
    for (size_t i = 0; i < g->n_nodes; i++) {
        const numbered key = {.node = g->nodes[i]->origin}, *origin = key.node ? bsearch(&key, all, g->n_nodes, sizeof *all, by_address) : NULL;
        if (origin) to->nodes[i]->origin = to->nodes[origin->index];
    }
    hd_free(all);
}

/* With the same numbers of values and nodes. */
static hd_graph *copy_graph(const hd_graph *g)
{
    hd_graph *to = hd_graph_new();
    if (!to) return NULL;
    memcpy(to->symbols, g->symbols, sizeof to->symbols);
    to->n_symbols = g->n_symbols;
    to->ring = g->ring, to->zigzag = g->zigzag;
    for (size_t v = 0; v < g->n_values; v++) hd_graph_copy_value(to, g, (hd_value)v);
    for (size_t i = 0; i < g->n_nodes; i++) hd_graph_copy_node(to, g->nodes[i], g->nodes[i]->in, g->nodes[i]->out);
    for (size_t i = 0; i < g->n_pairs; i++) hd_graph_pair(to, g->pairs[i].in, g->pairs[i].out);
    for (size_t i = 0; i < g->n_outputs; i++) hd_graph_output(to, g->outputs[i].name, g->outputs[i].value);
    if (!to->err.code) copy_origins(g, to);
    return to;
}

static int write_pins(pinner *s, hd_error *err)
{
    const hd_pinning held = {.graph = s->g, .mesh = &s->p->mesh, .layout = s->held, .pinned = s->pinned, .same = s->same};
    const hd_pinning made = {.graph = s->g, .mesh = &s->p->mesh, .layout = s->made, .pinned = s->forced, .same = s->any, .mark = "="};
    int rc = hd_pins_write(&held, s->pins, s->room, &s->n, err), more = 0;
    if (!rc && s->n <= s->room) rc = hd_pins_write(&made, s->pins + s->n, s->room - s->n, &more, err);
    s->n += more;
    return rc;
}

/* Fills s->off: what the copy's nodes leave otherwise than wanted. What several nodes do, or none does any more, is taken for right. */
static int try_pins(pinner *s, hd_error *err)
{
    hd_graph *to = copy_graph(s->g);
    if (!to) return hd_fail_memory(err, s->g->n_nodes, "a layout search");
    to->rows_micro = s->p->micro_batches > 1 ? s->p->micro_batches : 1; /* as plans have it (hd_plan.sparse) */
    if (!to->err.code) hd_pass_partition(to, &s->p->mesh, s->pins, s->n, s->p->keep_gathered);
    int rc = to->err.code ? hd_fail(err, to->err.code, "%s", to->err.message) : 0;
    for (size_t v = 0; v < s->g->n_values && !rc; v++) {
        const hd_value_info *x = &to->values[v];
        bool there = s->g->values[v].kind == HD_RESULT && s->g->values[v].type.shape.rank && x->layout;
        there = there && hd_value_is_live(s->g, (hd_value)v) && hd_value_is_live(to, (hd_value)v);
        s->off[v] = there && differs(s, (hd_value)v, x->layout, &s->made[v]);
    }
    hd_graph_free(to);
    return rc;
}

/* ---- what has to be said ---- */

static bool add(pinner *s, hd_value v)
{
    if (v == HD_NONE || s->pinned[v] || !s->same[v]) return false;
    return s->pinned[v] = true;
}

/* Pins v, the first thing that goes wrong on its way; if it cannot be or that does not help, what it is made of, and then how its node is to leave it. */
static bool put_right(pinner *s, hd_value v)
{
    const hd_node *n = s->g->nodes[s->g->values[v].node];
    if (add(s, v)) return true;
    bool any = false;
    for (int k = 0; k < n->n_in; k++) any |= add(s, n->in[k]);
    bool force = !any && s->any[v] && !s->forced[v];
    s->stuck[v] = !any && !force;
    s->forced[v] |= force;
    return any || force;
}

static bool follows(const pinner *s, const hd_node *n)
{
    for (int k = 0; k < n->n_in; k++)
        if (n->in[k] != HD_NONE && s->off[n->in[k]] && !s->stuck[n->in[k]] && !s->pinned[n->in[k]]) return true;
    return false;
}

/* Pins the first values of every path that go wrong, in all layers at once. Returns whether there were any. */
static bool pin_more(pinner *s)
{
    bool any = false;
    memset(s->stuck, 0, s->g->n_values);
    for (size_t i = 0; i < s->g->n_nodes; i++) {
        const hd_node *n = s->g->nodes[i];
        if (n->phase == HD_UPDATE || follows(s, n)) continue;
        for (int r = 0; r < n->n_out; r++)
            if (s->off[n->out[r]]) any |= put_right(s, n->out[r]);
    }
    return any;
}

static int find_pins(pinner *s, hd_error *err)
{
    pin_first(s);
    for (int round = 0; round < ROUNDS; round++) {
        int rc = write_pins(s, err);
        if (!rc && s->n > s->room) rc = hd_fail(err, HD_EINVAL, "layouts of this network need more than the %d pins that a plan has room for", s->room);
        if (!rc) rc = try_pins(s, err);
        if (rc || !pin_more(s)) return rc;
    }
    return 0;
}

static int open_pinner(pinner *s, const hd_layout_answer *a, hd_error *err)
{
    size_t n = s->g->n_values + 1;
    s->held = hd_arena_alloc(&s->memory, n * sizeof *s->held);
    s->made = hd_arena_alloc(&s->memory, n * sizeof *s->made);
    s->pinned = hd_arena_alloc(&s->memory, n);
    s->same = hd_arena_alloc(&s->memory, n);
    s->off = hd_arena_alloc(&s->memory, n);
    s->stuck = hd_arena_alloc(&s->memory, n);
    s->forced = hd_arena_alloc(&s->memory, n);
    s->any = hd_arena_alloc(&s->memory, n);
    if (!s->held || !s->made || !s->pinned || !s->same || !s->off || !s->stuck || !s->forced || !s->any)
        return hd_fail_memory(err, n * sizeof *s->held, "a layout search");
    memcpy(s->held, a->held, (n - 1) * sizeof *s->held);
    memcpy(s->made, a->made, (n - 1) * sizeof *s->made);
    return 0;
}

int hd_layout_pins(const hd_layout_problem *p, const hd_layout_answer *a, bool repeat, hd_pin *pins, int most, int *n, hd_error *err)
{
    pinner s = {.p = p, .g = p->graph, .pins = pins, .room = most};
    *n = 0;
    if (!a->feasible) return hd_fail(err, HD_EINVAL, "there are no layouts to pin: nothing fits");
    int rc = open_pinner(&s, a, err);
    if (!rc && repeat) repeat_layers(&s, a);
    if (!rc) rc = find_pins(&s, err);
    if (!rc) *n = s.n;
    hd_arena_free(&s.memory);
    return rc;
}
