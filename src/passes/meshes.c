/* meshes.c: the stages of a pipeline on meshes of their own.
 *
 * Each stage is cut from the whole graph and then partitioned by itself. How the receiving stage wants a value that crosses is asked of the whole graph,
 * partitioned over that stage's mesh as if all of it ran there: what a rank would hold of the value had it made it. It arrives cut further, into rows that
 * only one rank of the mesh gets, and is gathered there: every byte crosses the border once (Zhuang et al. 2022, section 3). */
#include <stdio.h>

#include "passes/partition_int.h"

static bool is_op(const hd_node *n, const char *name) { return !strcmp(n->op->name, name); }

static const hd_layout whole_layout;

/* ---- one stage: what crosses ---- */

bool hd_part_receives_weight(const hd_part *p, const hd_node *n)
{
    return n->phase == HD_FORWARD && n->n_out && p->g->values[n->out[0]].micro == HD_TIME_REPLICATE;
}

/* How v, which is received, is wanted: as it is pinned, where a gradient ends, or as the whole graph holds it on this mesh. A parameter's copy is wanted as
 * the parameter. */
static hd_layout wanted_layout(const hd_part *p, hd_value v)
{
    const hd_part_value *i = &p->value[v];
    char path[512];
    snprintf(path, sizeof path, "%s", p->g->values[v].path);
    hd_value there = hd_graph_find(p->like, path);
    size_t n = strlen(path), ending = strlen(".copy");
    if (there == HD_NONE && n > ending && !strcmp(path + n - ending, ".copy")) path[n - ending] = 0, there = hd_graph_find(p->like, path);
    const hd_layout *of_like = there == HD_NONE ? NULL : p->like->values[there].layout;
    hd_layout l = i->pinned ? i->target : i->has_home ? i->home : of_like ? *of_like : whole_layout;
    l.partial = 0;
    l.max = false;
    return l;
}

static void receive(hd_part *p, hd_node *n)
{
    hd_value v = n->out[0];
    hd_part_value *i = &p->value[v];
    hd_layout wanted = wanted_layout(p, v), landing = hd_crossing_landing(p->mesh, &wanted, i->whole.rank);
    hd_pipe_attrs *at = n->attrs;
    if (at->symbol) hd_fail(&p->g->err, HD_EUNSUPPORTED, "%s has a bounded extent: it cannot go to a stage of another mesh", p->g->values[v].path);
    hd_shape piece = hd_layout_shape(p->mesh, &landing, &i->whole, 0);
    for (int d = 0; d < piece.rank; d++) at->shape.dim[d] = piece.dim[d];
    i->target = wanted;
    i->pinned = i->has_target = true;
    if (!hd_part_append(p, n)) hd_part_hold_results(p, n, &landing);
}

/* As it lies if that will do, else converted in the least way. */
static void send(hd_part *p, hd_node *n)
{
    hd_value v = n->in[0];
    const hd_held *from = NULL;
    for (const hd_held *h = p->value[v].held; h; h = h->next) {
        if (!hd_part_usable(p, v, h, n->phase, n->chunk)) continue;
        if (!from || (!hd_crossing_fits(&from->layout, p->value[v].whole.rank) && hd_crossing_fits(&h->layout, p->value[v].whole.rank))) from = h;
    }
    if (!from) {
        hd_fail(&p->g->err, HD_EUNSUPPORTED, "%s: nothing of it is there to be sent", p->g->values[v].path);
        return;
    }
    bool fits = hd_crossing_fits(&from->layout, p->value[v].whole.rank);
    hd_layout to = fits ? from->layout : hd_crossing_start(&from->layout, p->value[v].whole.rank);
    n->in[0] = hd_part_convert(p, v, &to, n);
    if (!p->g->err.code) hd_part_append(p, n);
}

/* Over all ranks of all stages: each gives an addend, a stage that has the whole on several ranks only one of them. */
static void sum_over_stages(hd_part *p, hd_node *n)
{
    hd_layout addend = {0};
    for (int i = 0; i < p->n_axes; i++) addend.partial |= 1u << p->axis[i];
    n->in[0] = hd_part_convert(p, n->in[0], &addend, n);
    if (!p->g->err.code && !hd_part_append(p, n)) hd_part_hold_results(p, n, &whole_layout);
}

bool hd_part_cross(hd_part *p, hd_node *n)
{
    static const struct { const char *op; void (*cross)(hd_part *, hd_node *); } ways[] = {
        {"recv", receive}, {"send", send}, {"all_reduce", sum_over_stages}};
    if (!p->like) return false;
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        if (is_op(n, ways[i].op)) return ways[i].cross(p, n), true;
    return false;
}

/* ---- all stages ---- */

typedef struct planner {
    const hd_graph *g;
    const hd_stages *stages;
    const hd_stage_pins *pins;
    bool keep_gathered;
    int only;        /* the stage that is wanted, -1: all */
    hd_graph **out;
    hd_error *err;
} planner;

static bool matches_any(const hd_graph *g, const char *pattern)
{
    for (size_t i = 0; i < g->n_values; i++)
        if (hd_path_match(pattern, g->values[i].path)) return true;
    return false;
}

/* The pins of a stage that match something in g. */
static hd_pin *pins_in(planner *c, const hd_graph *g, int stage, int *n)
{
    const hd_stage_pins *pins = &c->pins[stage];
    hd_pin *list = hd_calloc((size_t)pins->n + 1, sizeof *list);
    *n = 0;
    if (!list) hd_fail_memory(c->err, (size_t)pins->n * sizeof *list, "a plan's layouts");
    for (int i = 0; i < pins->n && list; i++)
        if (matches_any(g, pins->pins[i].pattern)) list[(*n)++] = pins->pins[i];
    return list;
}

/* g: a stage; or, like being NULL, the whole graph, which must have what each pin names. */
static int partition(planner *c, hd_graph *g, int stage, const hd_graph *like)
{
    const hd_stage_pins *pins = &c->pins[stage];
    int n = pins->n;
    g->ring = pins->ring;
    g->zigzag = pins->zigzag;
    g->rows_micro = c->g->rows_micro;
    hd_pin *list = like ? pins_in(c, g, stage, &n) : NULL;
    if (like && !list) return c->err->code;
    hd_part_run(g, &c->stages->mesh[stage], like ? list : pins->pins, n, c->keep_gathered, like);
    hd_free(list);
    return g->err.code ? hd_fail(c->err, g->err.code, "%s", g->err.message) : 0;
}

/* Of a stage that nothing more need be known of: how its parameters and states lie. */
static int lay_leaves(planner *c, hd_graph *g, int stage)
{
    int n;
    hd_pin *list = pins_in(c, g, stage, &n);
    if (!list) return c->err->code;
    hd_part_leaves(g, &c->stages->mesh[stage], list, n);
    hd_free(list);
    return g->err.code ? hd_fail(c->err, g->err.code, "%s", g->err.message) : 0;
}

static int cut_stage(planner *c, int stage)
{
    hd_graph *g = c->out[stage] = hd_graph_stage(c->g, stage, c->stages->n, false, c->err);
    if (!g) return c->err->code;
    g->stage = stage;
    return hd_stages_copy(&g->stages, c->stages, &g->arena) ? hd_fail_memory(c->err, (size_t)c->stages->n * sizeof(hd_mesh), "the meshes of a pipeline") : 0;
}

/* Whether all of the stage has to be known: it is wanted, or sends to one that is, or receives from it. */
static bool is_near(const planner *c, int stage)
{
    const hd_graph *g = c->out[stage];
    if (c->only < 0 || stage == c->only) return true;
    for (size_t i = 0; i < g->n_nodes; i++) {
        const hd_pipe_attrs *at = g->nodes[i]->attrs;
        if ((is_op(g->nodes[i], "send") || is_op(g->nodes[i], "recv")) && (at->from % c->stages->n == c->only || at->to % c->stages->n == c->only)) return true;
    }
    return false;
}

static bool same_mesh(const planner *c, int a, int b)
{
    const hd_mesh *x = &c->stages->mesh[a], *y = &c->stages->mesh[b];
    bool same = x->n == y->n && c->pins[a].n == c->pins[b].n && c->pins[a].pins == c->pins[b].pins;
    for (int i = 0; same && i < x->n; i++)
        same = !strcmp(x->axis[i].name, y->axis[i].name) && x->axis[i].size == y->axis[i].size && x->axis[i].role == y->axis[i].role;
    return same;
}

/* This stage and all later ones on the same mesh. */
static int partition_alike(planner *c, int stage)
{
    hd_graph *like = hd_graph_stage(c->g, 0, 1, false, c->err);
    int rc = like ? partition(c, like, stage, NULL) : c->err->code;
    for (int s = stage; s < c->stages->n && !rc; s++)
        if (!c->out[s]->mesh.n && is_near(c, s) && same_mesh(c, stage, s)) rc = partition(c, c->out[s], s, like);
    hd_graph_free(like);
    return rc;
}

static int partition_stages(planner *c)
{
    int rc = 0;
    for (int s = 0; s < c->stages->n && !rc; s++) {
        if (c->out[s]->mesh.n) continue;
        if (is_near(c, s)) rc = partition_alike(c, s);
        else rc = lay_leaves(c, c->out[s], s);
    }
    return rc;
}

/* ---- both ends know of each other ---- */

static const hd_node *find_end(const hd_graph *g, const char *op, const hd_pipe_attrs *at)
{
    for (size_t i = 0; i < g->n_nodes; i++) {
        const hd_pipe_attrs *x = g->nodes[i]->attrs;
        if (is_op(g->nodes[i], op) && x->from == at->from && x->to == at->to && x->number == at->number) return g->nodes[i];
    }
    return NULL;
}

static int tell_end(planner *c, const hd_mesh *mesh, const hd_value_info *of, hd_pipe_attrs *at)
{
    hd_str text;
    hd_str_init(&text);
    hd_layout_print(mesh, of->layout, of->whole.rank, &text);
    bool fits = !text.failed && text.len < sizeof at->there;
    if (fits) memcpy(at->there, text.data, text.len + 1);
    hd_str_free(&text);
    return fits ? 0 : hd_fail(c->err, HD_EUNSUPPORTED, "%s: the text of its layout is too long to be told to another stage", of->path);
}

static int join(planner *c, int stage)
{
    const hd_graph *g = c->out[stage];
    for (size_t i = 0; i < g->n_nodes; i++) {
        hd_node *n = g->nodes[i];
        if (!is_op(n, "send")) continue;
        int to = ((hd_pipe_attrs *)n->attrs)->to % c->stages->n;
        if (c->only >= 0 && c->only != stage && c->only != to) continue;
        const hd_graph *other = c->out[to];
        const hd_node *got = find_end(other, "recv", n->attrs);
        if (!got) return hd_fail(c->err, HD_EINVAL, "%s: stage %d doesn't receive it", n->path, to);
        int rc = tell_end(c, &c->stages->mesh[to], &other->values[got->out[0]], n->attrs);
        if (!rc) rc = tell_end(c, &c->stages->mesh[stage], &g->values[n->in[0]], got->attrs);
        if (rc) return rc;
    }
    return 0;
}

int hd_graph_stages(const hd_graph *g, const hd_stages *s, const hd_stage_pins *pins, bool keep_gathered, int only, hd_graph **out, hd_error *err)
{
    planner c = {.g = g, .stages = s, .pins = pins, .keep_gathered = keep_gathered, .only = only, .out = out, .err = err};
    int rc = 0;
    for (int i = 0; i < s->n; i++) out[i] = NULL;
    for (int i = 0; i < s->n && !rc; i++) rc = cut_stage(&c, i);
    if (!rc) rc = partition_stages(&c);
    for (int i = 0; i < s->n && !rc; i++) rc = join(&c, i);
    for (int i = 0; i < s->n && rc; i++) {
        hd_graph_free(out[i]);
        out[i] = NULL;
    }
    return rc;
}
