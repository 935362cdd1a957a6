/* stages.c: see stages.h. Least sums from a layer to the end, over devices left and the number of stages that follow; the latter is counted only as far
 * as some option's memory depends on it. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "planners/minmax.h"
#include "planners/stages.h"
#include "planners/table.h"

/* ---- profiles ---- */

static const hd_column columns[] = {{"first_layer", HD_COLUMN_COUNT}, {"last_layer", HD_COLUMN_COUNT}, {"submesh_devices", HD_COLUMN_COUNT},
                                    {"config", HD_COLUMN_TEXT}, {"cost", HD_COLUMN_COST}, {"max_succeeding_stages", HD_COLUMN_SIGNED}, {0}};

static int read_option(const hd_table *t, int row, const char *name, hd_stage_option *o, hd_error *err)
{
    const hd_cell *c = hd_table_row(t, row);
    *o = (hd_stage_option){.first = (int)c[0].integer, .last = (int)c[1].integer, .devices = (int)c[2].integer, .cost = c[4].number,
                           .max_succeeding = (int)c[5].integer};
    memcpy(o->config, c[3].text, strlen(c[3].text));
    if (o->last < o->first) return hd_fail(err, HD_EFORMAT, "%s:%d: last_layer %d is before first_layer %d", name, t->line[row], o->last, o->first);
    if (o->last > 1 << 20) return hd_fail(err, HD_EFORMAT, "%s:%d: last_layer %d is above 1048576", name, t->line[row], o->last);
    if (o->devices < 1) return hd_fail(err, HD_EFORMAT, "%s:%d: submesh_devices must be at least 1", name, t->line[row]);
    return 0;
}

static int same_option(const hd_stage_option *a, const hd_stage_option *b)
{
    return a->first == b->first && a->last == b->last && a->devices == b->devices && !strcmp(a->config, b->config);
}

static int by_first(const void *a, const void *b)
{
    const hd_stage_option *x = a, *y = b;
    if (x->first != y->first) return (x->first > y->first) - (x->first < y->first);
    if (x->last != y->last) return (x->last > y->last) - (x->last < y->last);
    if (x->devices != y->devices) return (x->devices > y->devices) - (x->devices < y->devices);
    return strcmp(x->config, y->config);
}

int hd_stage_profile_parse(const char *text, size_t n, const char *name, hd_stage_profile *out, hd_error *err)
{
    hd_table t;
    int rc = hd_table_parse(text, n, name, columns, &t, err);
    *out = (hd_stage_profile){0};
    if (rc) return rc;
    out->options = hd_calloc((size_t)t.n, sizeof *out->options);
    if (!out->options) rc = hd_fail_memory(err, 0, name);
    for (int i = 0; !rc && i < t.n; i++) rc = read_option(&t, i, name, &out->options[out->n++], err);
    if (!rc) qsort(out->options, (size_t)out->n, sizeof *out->options, by_first);
    out->first = rc ? 0 : out->options[0].first;
    for (int i = 0; !rc && i < out->n; i++) {
        const hd_stage_option *o = &out->options[i];
        if (i && same_option(o - 1, o))
            rc = hd_fail(err, HD_EFORMAT, "%s: layers %d to %d on %d devices with config %s are there twice", name, o->first, o->last, o->devices, o->config);
        if (o->last > out->last) out->last = o->last;
    }
    hd_table_free(&t);
    if (rc) hd_stage_profile_free(out);
    return rc;
}

void hd_stage_profile_free(hd_stage_profile *p)
{
    hd_free(p->options);
    *p = (hd_stage_profile){0};
}

/* ---- the programme ---- */

typedef struct solver {
    const hd_stage_profile *p;
    int layers, devices;
    int counted;   /* stages that follow are counted up to this: so many or more are one */
    bool no_limit; /* as if memory were endless: to tell what stands against a plan */
    double *rest;  /* [counted + 1][layers + 1][devices + 1]: least sum from a layer to the end, on exactly so many devices */
} solver;

static double *rest_of(const solver *s, int follow, int layer)
{
    return s->rest + ((size_t)follow * (size_t)(s->layers + 1) + (size_t)layer) * (size_t)(s->devices + 1);
}

static bool fits(const solver *s, const hd_stage_option *o, int follow) { return s->no_limit || o->max_succeeding >= follow; }
static int one_more(const solver *s, int follow) { return follow < s->counted ? follow + 1 : s->counted; }

static void relax(solver *s, const hd_stage_option *o)
{
    int layer = o->first - s->p->first, next = o->last - s->p->first + 1;
    for (int follow = 0; follow <= s->counted; follow++) {
        if (!fits(s, o, follow)) continue;
        double *to = rest_of(s, one_more(s, follow), layer);
        const double *from = rest_of(s, follow, next);
        for (int d = o->devices; d <= s->devices; d++) {
            double sum = o->cost + from[d - o->devices];
            if (sum < to[d]) to[d] = sum;
        }
    }
}

static double best_whole(const solver *s, int *follow)
{
    double best = INFINITY;
    for (int f = 0; f <= s->counted; f++) {
        double sum = rest_of(s, f, 0)[s->devices];
        if (sum < best) best = sum, *follow = f;
    }
    return best;
}

static double least(void *arg, double cap)
{
    solver *s = arg;
    size_t all = (size_t)(s->counted + 1) * (size_t)(s->layers + 1) * (size_t)(s->devices + 1);
    int follow = 0;
    for (size_t i = 0; i < all; i++) s->rest[i] = INFINITY;
    rest_of(s, 0, s->layers)[0] = 0;
    for (int i = s->p->n - 1; i >= 0; i--) /* sorted by first layer: what follows is known */
        if (s->p->options[i].cost <= cap && s->p->options[i].devices <= s->devices) relax(s, &s->p->options[i]);
    return best_whole(s, &follow);
}

/* The option that the sum at (follow, layer, devices) came from, and what was before it. */
static int came_from(const solver *s, double cap, int *follow, int layer, int devices)
{
    double sum = rest_of(s, *follow, layer)[devices];
    for (int i = 0; i < s->p->n; i++) {
        const hd_stage_option *o = &s->p->options[i];
        if (o->first - s->p->first != layer || o->cost > cap || o->devices > devices) continue;
        for (int f = 0; f <= s->counted; f++)
            if (one_more(s, f) == *follow && fits(s, o, f) && o->cost + rest_of(s, f, o->last - s->p->first + 1)[devices - o->devices] == sum)
                return *follow = f, i;
    }
    return -1;
}

static int take_path(const solver *s, double cap, hd_stage_plan *out)
{
    int follow = 0, layer = 0, devices = s->devices;
    best_whole(s, &follow);
    out->option = hd_calloc((size_t)s->layers, sizeof *out->option);
    if (!out->option) return HD_ENOMEM;
    while (layer < s->layers) {
        int i = came_from(s, cap, &follow, layer, devices);
        const hd_stage_option *o = &s->p->options[i];
        out->option[out->n++] = i;
        out->sum += o->cost;
        if (o->cost > out->greatest) out->greatest = o->cost;
        layer = o->last - s->p->first + 1;
        devices -= o->devices;
    }
    return 0;
}

/* As few as memory asks for: options that may be followed by all stages there can be are free, the others' greatest bound is counted to. */
static int stages_to_count(const hd_stage_profile *p, int layers, int devices)
{
    int most = layers < devices ? layers : devices, counted = 0;
    for (int i = 0; i < p->n; i++) {
        int limit = p->options[i].max_succeeding + 1;
        if (limit < most && limit > counted) counted = limit;
    }
    return counted;
}

static int solver_init(solver *s, const hd_stage_profile *p, int devices, hd_error *err)
{
    *s = (solver){.p = p, .layers = p->last - p->first + 1, .devices = devices};
    s->counted = stages_to_count(p, s->layers, devices);
    double all = (double)(s->counted + 1) * (s->layers + 1) * (devices + 1.0);
    if (all > 5e8) return hd_fail(err, HD_EINVAL, "%d layers on %d devices with memory that depends on up to %d stages are too many: cluster layers first",
                                  s->layers, devices, s->counted);
    s->rest = hd_calloc((size_t)all, sizeof *s->rest);
    return s->rest ? 0 : hd_fail_memory(err, (size_t)all * sizeof *s->rest, "a programme over stages");
}

static int infeasible(solver *s, hd_error *err)
{
    s->no_limit = true;
    bool memory = least(s, 1e300) < INFINITY;
    if (memory) return hd_fail(err, HD_EINVAL, "infeasible: layers %d to %d on exactly %d devices fit only without the profile's max_succeeding_stages (memory)",
                               s->p->first, s->p->last, s->devices);
    return hd_fail(err, HD_EINVAL, "infeasible: no stages of the profile cover layers %d to %d with exactly %d devices", s->p->first, s->p->last, s->devices);
}

int hd_stages_solve(const hd_stage_profile *p, int devices, int64_t micro, hd_stage_plan *out, hd_error *err)
{
    solver s;
    double *caps = hd_calloc((size_t)p->n, sizeof *caps), cap = INFINITY;
    int rc = solver_init(&s, p, devices, err);
    *out = (hd_stage_plan){0};
    if (!rc && !caps) rc = hd_fail_memory(err, 0, "a programme over stages");
    for (int i = 0; !rc && i < p->n; i++) caps[i] = p->options[i].cost;
    if (!rc) {
        hd_minmax m = {.arg = &s, .least = least, .caps = caps, .n = hd_minmax_caps(caps, p->n), .weight = (double)(micro - 1)};
        cap = hd_minmax_solve(&m, NULL);
        if (isinf(cap)) rc = infeasible(&s, err);
        else least(&s, cap);
    }
    if (!rc && take_path(&s, cap, out)) rc = hd_fail_memory(err, 0, "a plan of stages");
    out->objective = out->sum + (double)(micro - 1) * out->greatest;
    hd_free(caps);
    hd_free(s.rest);
    return rc;
}

void hd_stage_plan_free(hd_stage_plan *p)
{
    hd_free(p->option);
    *p = (hd_stage_plan){0};
}
