/* slices.c: see slices.h. Shortest paths over positions in the sequence. */
#include <math.h>
#include <stdlib.h>

#include "planners/minmax.h"
#include "planners/slices.h"
#include "planners/table.h"

/* ---- profiles ---- */

static const hd_column columns[] = {{"len", HD_COLUMN_COUNT}, {"ctx", HD_COLUMN_COUNT}, {"ms", HD_COLUMN_COST}, {0}};

static int by_context(const void *a, const void *b)
{
    const hd_slice_option *x = a, *y = b;
    return x->context != y->context ? (x->context > y->context) - (x->context < y->context) : (x->length > y->length) - (x->length < y->length);
}

static int check_options(hd_slice_profile *p, const char *name, hd_error *err)
{
    for (int i = 0; i < p->n; i++) {
        const hd_slice_option *o = &p->options[i];
        if (o->length < 1) return hd_fail(err, HD_EFORMAT, "%s: a slice of %d tokens behind %d: len must be at least 1", name, o->length, o->context);
        if (o->length > INT32_MAX / 2 || o->context > INT32_MAX / 2) return hd_fail(err, HD_EFORMAT, "%s: a sequence of over 2^30 tokens", name);
        if (i && !by_context(o - 1, o)) return hd_fail(err, HD_EFORMAT, "%s: len %d with ctx %d is there twice", name, o->length, o->context);
        if (o->length + o->context > p->tokens) p->tokens = o->length + o->context;
    }
    return 0;
}

int hd_slice_profile_parse(const char *text, size_t n, const char *name, hd_slice_profile *out, hd_error *err)
{
    hd_table t;
    int rc = hd_table_parse(text, n, name, columns, &t, err);
    *out = (hd_slice_profile){0};
    if (rc) return rc;
    out->options = hd_calloc((size_t)t.n, sizeof *out->options);
    if (!out->options) rc = hd_fail_memory(err, 0, name);
    for (int i = 0; !rc && i < t.n; i++) {
        const hd_cell *c = hd_table_row(&t, i);
        out->options[out->n++] = (hd_slice_option){(int)c[0].integer, (int)c[1].integer, c[2].number};
    }
    if (!rc) qsort(out->options, (size_t)out->n, sizeof *out->options, by_context);
    if (!rc) rc = check_options(out, name, err);
    hd_table_free(&t);
    if (rc) hd_slice_profile_free(out);
    return rc;
}

void hd_slice_profile_free(hd_slice_profile *p)
{
    hd_free(p->options);
    *p = (hd_slice_profile){0};
}

/* ---- the programme ---- */

typedef struct solver {
    const hd_slice_profile *p;
    double *rest;  /* [tokens + 1]: least sum from a position to the end */
    int *first;    /* [tokens + 1]: the option taken there, -1: none */
} solver;

static double least(void *arg, double cap)
{
    solver *s = arg;
    const hd_slice_profile *p = s->p;
    for (int t = 0; t < p->tokens; t++) s->rest[t] = INFINITY, s->first[t] = -1;
    s->rest[p->tokens] = 0;
    for (int i = p->n - 1; i >= 0; i--) { /* sorted by context: what follows is known */
        const hd_slice_option *o = &p->options[i];
        double sum = o->cost + s->rest[o->context + o->length];
        if (o->cost <= cap && sum < s->rest[o->context]) s->rest[o->context] = sum, s->first[o->context] = i;
    }
    return s->rest[0];
}

static int take_path(const solver *s, hd_slice_plan *out)
{
    for (int at = 0; at < s->p->tokens; at += s->p->options[s->first[at]].length) out->n++;
    out->option = hd_calloc((size_t)out->n, sizeof *out->option);
    if (!out->option) return HD_ENOMEM;
    for (int at = 0, i = 0; i < out->n; at += s->p->options[out->option[i++]].length) {
        const hd_slice_option *o = &s->p->options[s->first[at]];
        out->option[i] = s->first[at];
        out->sum += o->cost;
        if (o->cost > out->greatest) out->greatest = o->cost;
    }
    return 0;
}

/* How many tokens from the beginning can be made up of slices at all. */
static int reach(const solver *s)
{
    int far = 0;
    for (int t = 0; t <= s->p->tokens; t++) s->first[t] = t == 0;
    for (int i = 0; i < s->p->n; i++) {
        const hd_slice_option *o = &s->p->options[i];
        if (!s->first[o->context] || !isfinite(o->cost)) continue;
        s->first[o->context + o->length] = 1;
        if (o->context + o->length > far) far = o->context + o->length;
    }
    return far;
}

int hd_slices_solve(const hd_slice_profile *p, int stages, hd_slice_plan *out, hd_error *err)
{
    size_t room = (size_t)p->tokens + 1;
    solver s = {.p = p, .rest = hd_calloc(room, sizeof *s.rest), .first = hd_calloc(room, sizeof *s.first)};
    double *caps = hd_calloc((size_t)p->n, sizeof *caps), cap;
    int rc = s.rest && s.first && caps ? 0 : hd_fail_memory(err, room * 12, "a programme over slices");
    *out = (hd_slice_plan){0};
    for (int i = 0; !rc && i < p->n; i++) caps[i] = p->options[i].cost;
    if (!rc) {
        hd_minmax m = {.arg = &s, .least = least, .caps = caps, .n = hd_minmax_caps(caps, p->n), .weight = stages - 1};
        cap = hd_minmax_solve(&m, NULL);
        if (isinf(cap)) rc = hd_fail(err, HD_EINVAL, "no slices make up all %d tokens: those of the profile get to token %d", p->tokens, reach(&s));
        if (!rc) least(&s, cap);
    }
    if (!rc && take_path(&s, out)) rc = hd_fail_memory(err, 0, "a plan of slices");
    out->objective = out->sum + (stages - 1) * out->greatest;
    hd_free(caps);
    hd_free(s.rest);
    hd_free(s.first);
    return rc;
}

void hd_slice_plan_free(hd_slice_plan *p)
{
    hd_free(p->option);
    *p = (hd_slice_plan){0};
}
