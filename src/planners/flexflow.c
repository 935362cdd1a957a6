/* flexflow.c: FlexFlow's search (Jia et al. 2019, "Beyond Data and Model Parallelism for Deep Neural Networks", section 6): a random walk over layouts of single
 * operators with the simulator as oracle.
 *
 * A state is a mesh of two axes (each factoring of the ranks is one) and a layout for any parameter or activation on it. Walks begin at data parallelism, at the
 * expert's layouts (Megatron's; tables in rows or columns), and go on by Metropolis and Hastings: a proposal gives one operator, of one layer or of all that are
 * alike, a random layout, and is accepted by exp(beta (old - new)). As there, no pipelines, and nothing is computed again. Seeds and numbers of proposals are
 * fixed, so that equal jobs have equal answers. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/rng.h"
#include "planners/rival.h"

enum {
    MOST_RANKS = 16, MOST_STARTS = 24, WALKS = 3, LARGE = 1 << 18 /* elements */,
    PROPOSALS = 400, FEWEST_PROPOSALS = 120, /* of all walks together: as many for small graphs, fewer for those of more nodes than this: */
    SMALL_GRAPH = 500,
    SEED = 2019
};
#define BETA 50.0        /* over the step that the walk begins with: 2 % worse is accepted once in e times */
#define NO_ROOM 4.0      /* a plan counts as so many times slower for each time that its memory is too small by the device's */
#define FORGET 0.15      /* of proposals: one that was accepted before is taken back */
#define ONE_LAYER 0.25   /* of proposals: only one of the layers that are alike */

typedef struct flex_start {
    hd_parallel form;
    int64_t micro_batches;
    double cost;
    bool rows; /* large parameters of a network in pieces of their first dimension over tp: experts, rows of tables, columns of products */
} flex_start;

/* A walk's state: `fixed` pins of the form that it began with, then those that proposals gave. */
typedef struct flex_state { hd_pin pin[HD_MAX_PINS]; int n; double cost; } flex_state;

typedef struct flex {
    hd_rival r;
    hd_rng rng;
    const hd_graph *g;         /* of the walk's micro-batches */
    hd_value *choice; int n_choices; /* values that proposals are about */
    hd_plan *plan;             /* the form of the walk written out */
    flex_state now, next;
} flex;

/* ---- costs ---- */

static double cost_of(const hd_rival_tried *t)
{
    double over = t->capacity > 0 ? (double)t->peak / (double)t->capacity - 1 : 1e9;
    return !t->possible ? INFINITY : t->fits ? t->step : t->step * (1 + NO_ROOM * (1 + over));
}

/* The person's own layouts come last: they win. */
static int add_given(const flex *f, hd_pin *pin, int n)
{
    for (int i = 0; i < f->r.job->n_pins && n < HD_MAX_PINS; i++) pin[n++] = f->r.job->pins[i];
    return n;
}

static int try_state(flex *f, const flex_start *s, flex_state *state, hd_error *err)
{
    hd_parallel form = s->form;
    hd_plan_found found;
    hd_error why = {0};
    int own = state->n;
    state->cost = INFINITY;
    if (!hd_rival_may_go_on(&f->r)) return 0;
    state->n = add_given(f, state->pin, own);
    form.pins = state->pin;
    form.n_pins = state->n;
    f->r.out->considered++;
    int rc = hd_planner_try(f->r.job, &form, s->micro_batches, &found, &why);
    state->n = own;
    if (rc == HD_ENOMEM) return *err = why, rc;
    if (rc) return f->r.refusals++, 0;
    hd_rival_tried t = {true, found.fits, found.step, found.peak, found.capacity};
    f->r.out->tried++;
    state->cost = cost_of(&t);
    hd_planner_keep(f->r.out, &found);
    return 0;
}

/* ---- proposals ---- */

/* Numbers that are whole parts of a path become '*': the same operator of all layers. */
static void generalise(const char *path, char *out, size_t size)
{
    size_t n = 0;
    for (const char *at = path; *at && n + 2 < size;) {
        size_t length = strcspn(at, "."), digits = strspn(at, "0123456789");
        bool number = length && digits == length && at != path;
        n += (size_t)snprintf(out + n, size - n, "%.*s", number ? 1 : (int)length, number ? "*" : at);
        at += length;
        if (n + 1 < size && *at == '.') out[n++] = *at++;
    }
    out[n < size ? n : size - 1] = 0;
}

/* Each axis goes over one dimension that it can cut, or none. */
static hd_layout propose_layout(flex *f, const hd_shape *shape)
{
    const hd_mesh *m = &f->plan->mesh;
    hd_layout l = {0};
    int64_t left[HD_MAX_RANK];
    for (int d = 0; d < shape->rank; d++) left[d] = shape->dim[d];
    for (int a = 0; a < m->n; a++) {
        int d = (int)hd_rng_below(&f->rng, (uint64_t)shape->rank + 1) - 1;
        if (d < 0 || left[d] % m->axis[a].size || l.dim[d].n == HD_MAX_SPLITS) continue;
        l.dim[d].axis[l.dim[d].n] = (int8_t)a;
        l.dim[d].unit[l.dim[d].n++] = 1;
        left[d] /= m->axis[a].size;
    }
    return l;
}

static void set_pin(flex_state *s, int fixed, const char *pattern, const char *layout)
{
    int at = fixed;
    while (at < s->n && strcmp(s->pin[at].pattern, pattern)) at++;
    if (at == HD_MAX_PINS) return;
    if (at == s->n) s->n++;
    snprintf(s->pin[at].pattern, sizeof s->pin[at].pattern, "%s", pattern);
    snprintf(s->pin[at].layout, sizeof s->pin[at].layout, "%s", layout);
}

/* A parameter's averages lie as it does. */
static void set_value(flex *f, flex_state *to, hd_value v, const char *pattern, const char *layout)
{
    char state[96];
    set_pin(to, f->plan->n_pins, pattern, layout);
    if (f->g->values[v].kind != HD_PARAM) return;
    snprintf(state, sizeof state, "exp_avg.%s", f->g->values[v].path);
    if (hd_graph_find(f->g, state) == HD_NONE) return;
    snprintf(state, sizeof state, "exp_avg*.%s", pattern);
    if (strlen(state) < sizeof to->pin[0].pattern) set_pin(to, f->plan->n_pins, state, layout);
}

static int propose(flex *f, hd_error *err)
{
    int fixed = f->plan->n_pins;
    hd_str text;
    char pattern[256];
    f->next = f->now;
    if (f->next.n > fixed && hd_rng_uniform(&f->rng) < FORGET) {
        int at = fixed + (int)hd_rng_below(&f->rng, (uint64_t)(f->next.n - fixed));
        f->next.n--;
        memmove(&f->next.pin[at], &f->next.pin[at + 1], (size_t)(f->next.n - at) * sizeof *f->next.pin);
        return 0;
    }
    hd_value v = f->choice[hd_rng_below(&f->rng, (uint64_t)f->n_choices)];
    const hd_value_info *i = &f->g->values[v];
    hd_layout l = propose_layout(f, &i->type.shape);
    if (hd_rng_uniform(&f->rng) < ONE_LAYER) snprintf(pattern, sizeof pattern, "%s", i->path);
    else generalise(i->path, pattern, sizeof pattern);
    hd_str_init(&text);
    hd_layout_print(&f->plan->mesh, &l, i->type.shape.rank, &text);
    bool fits = !text.failed && text.len < sizeof f->next.pin[0].layout && strlen(pattern) < sizeof f->next.pin[0].pattern;
    if (fits) set_value(f, &f->next, v, pattern, text.data);
    int rc = text.failed ? hd_fail_memory(err, 64, "a plan") : 0;
    hd_str_free(&text);
    return rc;
}

/* Parameters, and what forward's operators give of each sample. */
static int list_choices(flex *f, hd_error *err)
{
    f->n_choices = 0;
    f->choice = hd_malloc((f->g->n_values + 1) * sizeof *f->choice);
    if (!f->choice) return hd_fail_memory(err, f->g->n_values, "a search");
    for (size_t v = 0; v < f->g->n_values; v++) {
        const hd_value_info *i = &f->g->values[v];
        bool result = i->kind == HD_RESULT && i->micro == HD_TIME_SPLIT && i->node >= 0 && (size_t)i->node < f->g->n_nodes;
        result = result && f->g->nodes[i->node]->phase == HD_FORWARD;
        if (i->type.shape.rank && i->path && *i->path && (result || (i->kind == HD_PARAM && i->trainable))) f->choice[f->n_choices++] = (hd_value)v;
    }
    return 0;
}

/* ---- walks ---- */

static int count_proposals(const hd_graph *g)
{
    double n = PROPOSALS * fmin(1, SMALL_GRAPH / (double)(g->n_nodes + 1));
    return n < FEWEST_PROPOSALS ? FEWEST_PROPOSALS : (int)n;
}

/* As an expert may begin with a network that isn't known. */
static int lay_rows(flex *f, const flex_start *s, hd_error *err)
{
    int axis = hd_mesh_find(&f->plan->mesh, "tp");
    for (size_t v = 0; v < f->g->n_values && axis >= 0; v++) {
        const hd_value_info *i = &f->g->values[v];
        char pattern[256];
        if (i->kind != HD_PARAM || i->type.shape.rank < 2 || hd_shape_count(&i->type.shape) < LARGE) continue;
        if (i->type.shape.dim[0] % f->plan->mesh.axis[axis].size) continue;
        char layout[64] = "tp";
        for (int d = 1; d < i->type.shape.rank; d++) snprintf(layout + strlen(layout), sizeof layout - strlen(layout), ",-");
        generalise(i->path, pattern, sizeof pattern);
        if (strlen(pattern) < sizeof f->now.pin[0].pattern) set_value(f, &f->now, (hd_value)v, pattern, layout);
    }
    return try_state(f, s, &f->now, err);
}

static int go(flex *f, const flex_start *s, int proposals, hd_error *err)
{
    memcpy(f->now.pin, f->plan->pins, sizeof f->now.pin);
    f->now.n = f->plan->n_pins;
    f->now.cost = s->cost;
    int rc = s->rows ? lay_rows(f, s, err) : 0;
    double beta = BETA / (isfinite(f->now.cost) ? f->now.cost : s->cost);
    for (int i = 0; i < proposals && !rc && f->n_choices && hd_rival_may_go_on(&f->r); i++) {
        rc = propose(f, err);
        if (!rc) rc = try_state(f, s, &f->next, err);
        double chance = hd_rng_uniform(&f->rng);
        if (!rc && chance < exp(beta * (f->now.cost - f->next.cost))) f->now = f->next;
    }
    return rc;
}

static int walk(flex *f, flex_start *s, int walks, hd_error *err)
{
    const hd_planner_network *n = &f->r.job->network;
    hd_graph *g = n->graph(n->context, s->micro_batches, 0, err);
    if (!g) return err->code;
    f->g = g;
    *f->plan = hd_plan_default();
    f->plan->micro_batches = s->micro_batches;
    int rc = hd_parallel_expand(&s->form, g, n->layers ? n->sequence : 0, f->plan, err);
    if (!rc) rc = list_choices(f, err);
    s->form.tables = HD_TABLES_OPEN; /* from here on the layouts say it */
    if (!rc) rc = go(f, s, count_proposals(g) / walks, err);
    hd_free(f->choice);
    f->choice = NULL;
    hd_graph_free(g);
    return rc;
}

/* ---- where walks begin ---- */

static void add_start(flex_start *list, int *n, const flex_start *s)
{
    int at = *n;
    if (!isfinite(s->cost)) return;
    while (at && list[at - 1].cost > s->cost) at--;
    if (at == MOST_STARTS) return;
    if (*n == MOST_STARTS) --*n;
    memmove(&list[at + 1], &list[at], (size_t)(*n - at) * sizeof *list);
    list[at] = *s;
    ++*n;
}

/* With the largest micro-batches that fit, or the smallest that there are. */
static int try_start(flex *f, const hd_parallel *form, flex_start *list, int *n, hd_error *err)
{
    hd_rival *r = &f->r;
    flex_start s = {.form = hd_rival_settle(r, form)};
    int64_t micro[HD_RIVAL_DIVISORS];
    hd_rival_tried t;
    int rc = hd_rival_try_largest(r, form, &t, &s.micro_batches, err), count = hd_rival_micro_batches(r, hd_rival_ways(r, &s.form), micro);
    if (!rc && !t.fits && count) {
        s.micro_batches = micro[count - 1];
        rc = hd_rival_try(r, form, s.micro_batches, &t, err);
    }
    s.cost = cost_of(&t);
    if (!rc) add_start(list, n, &s);
    return rc;
}

static int list_starts(flex *f, flex_start *list, int *n, hd_error *err)
{
    const hd_planner_network *network = &f->r.job->network;
    int rc = 0;
    for (int64_t tp = 1; tp <= f->r.ranks && !rc; tp++) {
        if (f->r.ranks % tp) continue;
        hd_parallel form = hd_parallel_default();
        form.tp = tp;
        form.dp = f->r.ranks / tp;
        if (tp == 1 || network->layers) rc = try_start(f, &form, list, n, err);
        for (int t = HD_TABLES_ROWS; t <= HD_TABLES_COLUMNS && tp > 1 && !network->layers && !rc; t++) {
            form.tables = (hd_tables)t;
            rc = try_start(f, &form, list, n, err);
        }
    }
    return rc;
}

/* Of a network that is no language model the last two walks begin on the narrowest and the widest mesh, with large parameters in pieces. */
static void add_rows(flex_start *list, int *n)
{
    flex_start narrow = {0}, wide = {0};
    for (int i = 0; i < *n; i++) {
        if (list[i].form.tp < 2) continue;
        if (!narrow.form.tp || list[i].form.tp < narrow.form.tp) narrow = list[i];
        if (list[i].form.tp > wide.form.tp) wide = list[i];
    }
    if (!wide.form.tp) return;
    narrow.rows = wide.rows = true;
    list[1] = wide;
    list[2] = narrow;
    *n = 3;
}

static int search(flex *f, hd_error *err)
{
    flex_start list[MOST_STARTS];
    int n = 0, rc = list_starts(f, list, &n, err), walks;
    if (!rc && !f->r.job->network.layers) add_rows(list, &n);
    walks = n < WALKS ? n : WALKS;
    for (int i = 0; i < walks && !rc && f->r.ranks > 1; i++) {
        f->rng = hd_rng_new(hd_hash_mix(SEED, (uint64_t)i));
        rc = walk(f, &list[i], walks, err);
    }
    return rc;
}

static int find(const hd_planner_job *job, hd_planner_answer *out, hd_error *err)
{
    int ranks = hd_planner_ranks(job);
    if (ranks > MOST_RANKS) return hd_rival_decline(out, "flexflow's random walk is for up to %d devices, and here are %d", MOST_RANKS, ranks);
    if (job->pinned.n_parts || job->pinned.pp > 1) return hd_rival_decline(out, "flexflow knows no pipelines, and one is pinned");
    flex *f = hd_calloc(1, sizeof *f);
    if (f) f->plan = hd_calloc(1, sizeof *f->plan);
    int rc = f && f->plan ? hd_rival_begin(&f->r, job, out, err) : hd_fail_memory(err, sizeof *f, "a search");
    if (!rc) rc = search(f, err);
    if (f && f->plan && !rc) hd_rival_end(&f->r, "flexflow");
    if (f) hd_free(f->plan);
    hd_free(f);
    return rc;
}

const hd_planner hd_planner_flexflow = {"flexflow", "FlexFlow's random walk over layouts of single operators, up to 16 devices", find};
