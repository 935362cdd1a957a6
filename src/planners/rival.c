/* rival.c: forms that keep to what is pinned, each tried once. */
#include "planners/rival.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/rng.h"
#include "base/term.h"

/* ---- the network ---- */

/* Of the smallest micro-batches: parameters don't depend on them. */
static int measure(hd_rival *r, hd_error *err)
{
    const hd_planner_network *n = &r->job->network;
    int64_t micro = r->job->micro_batches ? r->job->micro_batches : n->whole_batch ? 1 : n->samples;
    hd_graph *g = n->graph(n->context, micro, 0, err);
    if (!g) return err->code;
    for (size_t v = 0; v < g->n_values; v++) {
        const hd_value_info *i = &g->values[v];
        double bytes = (double)hd_shape_count(&i->type.shape) * (double)hd_dtype_size(i->type.dtype);
        if (i->kind == HD_PARAM) r->weights += bytes;
        if (i->kind == HD_STATE && i->type.shape.rank) r->states += bytes;
    }
    hd_graph_free(g);
    return 0;
}

int hd_rival_begin(hd_rival *r, const hd_planner_job *job, hd_planner_answer *out, hd_error *err)
{
    memset(r, 0, sizeof *r);
    memset(out, 0, sizeof *out);
    r->job = job;
    r->out = out;
    r->ranks = hd_planner_ranks(job);
    r->started = hd_time();
    return measure(r, err);
}

int hd_rival_decline(hd_planner_answer *out, const char *fmt, ...)
{
    va_list args;
    memset(out, 0, sizeof *out);
    va_start(args, fmt);
    vsnprintf(out->why, sizeof out->why, fmt, args);
    va_end(args);
    return 0;
}

static void add_count(hd_planner_answer *a, const char *what, int64_t considered, int64_t cut)
{
    hd_planner_count *c = &a->count[a->n_counts++];
    snprintf(c->what, sizeof c->what, "%s", what);
    c->considered = considered;
    c->cut = cut;
}

bool hd_rival_may_go_on(hd_rival *r)
{
    const hd_planner_job *job = r->job;
    if ((job->nodes <= 0 || r->out->tried < job->nodes) && (job->seconds <= 0 || hd_time() - r->started < job->seconds)) return true;
    return r->out->cut_off = true, false;
}

void hd_rival_end(hd_rival *r, const char *who)
{
    hd_planner_answer *a = r->out;
    double gb = 1e-9;
    a->estimated = a->considered - r->against_pins - r->over_memory;
    add_count(a, "forms: kept to what is pinned", a->considered, r->against_pins);
    add_count(a, "bound: parameters and states alone", a->considered - r->against_pins, r->over_memory);
    add_count(a, "network: can be split so", a->estimated, r->refusals);
    a->seconds = hd_time() - r->started;
    if (a->n) return;
    if (r->lack > 0)
        snprintf(a->why, sizeof a->why,
                 "of the %" PRId64 " forms that %s tried, %s lacks least: it needs %.1f GB of a device and has %.1f; more devices, a smaller batch or the planner \"%s\" may help", a->tried, who, r->nearest_text, (double)r->nearest.peak * gb, (double)r->nearest.capacity * gb, hd_planner_name(0));
    else if (r->refused[0]) snprintf(a->why, sizeof a->why, "%s knows no form that the network can be split by: %s", who, r->refused);
    else
        snprintf(a->why, sizeof a->why,
                 "%s: parameters and optimizer states alone (%.1f GB) leave no room on %d devices of %.1f GB, or what is pinned leaves nothing to try", who, (r->weights + r->states) * gb, r->ranks, (double)hd_planner_capacity(r->job, r->ranks) * gb);
}

/* ---- forms ---- */

#define NUMBER(key, field) {key, offsetof(hd_parallel, field)}
static const struct { hd_parallel_key key; size_t offset; } numbers[] = {
    NUMBER(HD_KEY_OVERLAP, overlap), NUMBER(HD_KEY_BUCKET, bucket), NUMBER(HD_KEY_SPARSE, sparse), NUMBER(HD_KEY_DP, dp), NUMBER(HD_KEY_TP, tp),
    NUMBER(HD_KEY_PP, pp),
    NUMBER(HD_KEY_CP, cp), NUMBER(HD_KEY_SP, sp), NUMBER(HD_KEY_KEEP, keep), NUMBER(HD_KEY_SCATTER, scatter), NUMBER(HD_KEY_HALF_WIRE, half_wire),
    NUMBER(HD_KEY_REGATHER, regather), NUMBER(HD_KEY_ZERO, zero), NUMBER(HD_KEY_V, chunks),
};

static void copy_number(hd_parallel *to, const hd_parallel *from, size_t offset)
{
    *(int64_t *)((char *)to + offset) = *(const int64_t *)((const char *)from + offset);
}

static void copy_key(hd_parallel *to, const hd_parallel *from, hd_parallel_key key)
{
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (numbers[i].key == key) copy_number(to, from, numbers[i].offset);
    if (key == HD_KEY_SCHEDULE) to->has_schedule = from->has_schedule, to->schedule = from->schedule;
    if (key == HD_KEY_RECOMPUTE) to->recompute = from->recompute, to->every = from->every;
    if (key == HD_KEY_LAYERS) to->n_layers = from->n_layers, memcpy(to->layers, from->layers, sizeof to->layers);
    if (key == HD_KEY_SLICES) to->slices = from->slices, to->n_lengths = from->n_lengths, memcpy(to->lengths, from->lengths, sizeof to->lengths);
    if (key == HD_KEY_ATTENTION) to->has_attention = from->has_attention, to->gather = from->gather;
    if (key == HD_KEY_ORDER) to->has_order = from->has_order, to->plain = from->plain;
    if (key == HD_KEY_TABLES) to->tables = from->tables;
}

hd_parallel hd_rival_settle(const hd_rival *r, const hd_parallel *form)
{
    const hd_planner_job *job = r->job;
    hd_parallel f = *form, none = hd_parallel_default();
    for (int k = 0; k < HD_KEY_AUTO; k++) {
        if (job->pinned.given >> k & 1) copy_key(&f, &job->pinned, (hd_parallel_key)k);
        else if (job->forbidden >> k & 1) copy_key(&f, &none, (hd_parallel_key)k);
    }
    if (!(job->pinned.given >> HD_KEY_DP & 1) && !(job->forbidden >> HD_KEY_DP & 1)) {
        int64_t micro = job->micro_batches ? job->micro_batches : 1, samples = job->network.samples / micro;
        f.dp = r->ranks / (f.tp * f.pp * f.cp);
        if (f.dp > samples) f.dp = samples;
        if (f.dp < 1) f.dp = 1;
    }
    if (f.dp * f.cp == 1) f.zero = f.keep = f.regather = 0;
    if (f.pp == 1 && !(job->pinned.given >> HD_KEY_V & 1)) f.chunks = 1;
    for (int k = 0; k < HD_KEY_AUTO && f.dp * f.cp == 1; k++)
        if ((k == HD_KEY_ZERO || k == HD_KEY_KEEP || k == HD_KEY_REGATHER) && job->pinned.given >> k & 1) copy_key(&f, &job->pinned, (hd_parallel_key)k);
    f.given = job->pinned.given;
    return f;
}

bool hd_rival_may_fit(const hd_rival *r, const hd_parallel *form)
{
    double model = (double)(form->tp * form->pp), all = (double)(form->dp * form->cp);
    double least = r->weights / model / (form->zero == 3 ? all : 1) + r->states / model / (form->zero ? all : 1);
    return least <= (double)hd_planner_capacity(r->job, r->ranks);
}

/* ---- trying ---- */

static int describe(const hd_parallel *form, int64_t micro_batches, char *out, size_t size)
{
    hd_str text;
    hd_str_init(&text);
    int rc = hd_parallel_print(form, &text);
    if (!rc) snprintf(out, size, "%s with %" PRId64 " micro-batch%s", text.len ? text.data : "one rank", micro_batches, micro_batches > 1 ? "es" : "");
    hd_str_free(&text);
    return rc;
}

static void learn_nearest(hd_rival *r, const hd_rival_tried *t, const char *text)
{
    double lack = (double)t->peak / (double)(t->capacity > 0 ? t->capacity : 1);
    if (t->fits || (r->lack > 0 && lack >= r->lack)) return;
    r->lack = lack;
    r->nearest = *t;
    snprintf(r->nearest_text, sizeof r->nearest_text, "%.*s", (int)sizeof r->nearest_text - 1, text);
}

/* What a network refuses is no error of the job. */
static int try_new(hd_rival *r, const hd_parallel *f, int64_t micro_batches, const char *text, hd_rival_tried *t, hd_error *err)
{
    hd_plan_found found;
    hd_error why = {0};
    if (!hd_planner_allows(r->job, f, micro_batches) || hd_parallel_ranks(f) > r->ranks) return r->against_pins++, 0;
    if (!hd_rival_may_fit(r, f)) return r->over_memory++, 0;
    int rc = hd_planner_try(r->job, f, micro_batches, &found, &why);
    if (rc == HD_ENOMEM) return *err = why, rc;
    if (rc) {
        r->refusals++;
        if (!r->refused[0]) snprintf(r->refused, sizeof r->refused, "%.*s", (int)sizeof r->refused - 1, why.message);
        return 0;
    }
    r->out->tried++;
    *t = (hd_rival_tried){true, found.fits, found.step, found.peak, found.capacity};
    learn_nearest(r, t, text);
    hd_planner_keep(r->out, &found);
    return 0;
}

int hd_rival_try(hd_rival *r, const hd_parallel *form, int64_t micro_batches, hd_rival_tried *t, hd_error *err)
{
    char text[512];
    hd_parallel f = hd_rival_settle(r, form);
    *t = (hd_rival_tried){0};
    int rc = describe(&f, micro_batches, text, sizeof text);
    if (rc) return hd_fail_memory(err, sizeof text, "a plan");
    uint64_t key = hd_hash_string(text);
    for (int i = 0; i < r->n_known; i++)
        if (r->key[i] == key) return *t = r->known[i], 0;
    if (!hd_rival_may_go_on(r)) return 0;
    r->out->considered++;
    rc = try_new(r, &f, micro_batches, text, t, err);
    if (rc || r->n_known == HD_RIVAL_TRIES) return rc;
    r->key[r->n_known] = key;
    r->known[r->n_known++] = *t;
    return 0;
}

/* ---- micro-batches ---- */

static int list_divisors(int64_t samples, int64_t dp, bool even, int64_t *out)
{
    int n = 0;
    for (int64_t m = 1; m <= samples && n < HD_RIVAL_DIVISORS; m++)
        if (samples % m == 0 && samples / m >= dp && (!even || samples / m % dp == 0)) out[n++] = m;
    return n;
}

int64_t hd_rival_ways(const hd_rival *r, const hd_parallel *form)
{
    return form->dp * (r->job->network.layers ? 1 : form->tp);
}

int hd_rival_micro_batches(const hd_rival *r, int64_t dp, int64_t *out)
{
    const hd_planner_job *job = r->job;
    out[0] = job->micro_batches ? job->micro_batches : 1;
    if (job->micro_batches || job->network.whole_batch) return 1;
    int n = list_divisors(job->network.samples, dp, true, out);
    return n ? n : list_divisors(job->network.samples, dp, false, out);
}

int hd_rival_try_largest(hd_rival *r, const hd_parallel *form, hd_rival_tried *best, int64_t *micro_batches, hd_error *err)
{
    int64_t list[HD_RIVAL_DIVISORS];
    hd_parallel f = hd_rival_settle(r, form);
    hd_rival_tried t;
    int n = hd_rival_micro_batches(r, hd_rival_ways(r, &f), list), low = 0, high = n; /* all before low don't fit, all from high on do */
    *best = (hd_rival_tried){0};
    for (int at = 0; low < high; at = low + (high - low) / 2) {
        int rc = hd_rival_try(r, form, list[at], &t, err);
        if (rc) return rc;
        if (t.fits) high = at;
        else low = at + 1;
    }
    for (int i = high; i < n && i < high + 2; i++) {
        int rc = hd_rival_try(r, form, list[i], &t, err);
        if (rc) return rc;
        if (t.fits && (!best->fits || t.step < best->step)) *best = t, *micro_batches = list[i];
    }
    return 0;
}
