/* planner.c: what all planners share: trying a form, and the list of the best. */
#include "planners/planner.h"

#include <string.h>

#include "base/mem.h"

static const hd_planner *const planners[] = {&hd_planner_search, &hd_planner_exhaustive, &hd_planner_megatron, &hd_planner_zero, &hd_planner_data_parallel, &hd_planner_flexflow};
enum { PLANNERS = sizeof planners / sizeof *planners };

const char *hd_planner_name(int i) { return i < PLANNERS ? planners[i]->name : NULL; }

const hd_planner *hd_planner_find(const char *name)
{
    for (int i = 0; i < PLANNERS; i++)
        if (!strcmp(name, planners[i]->name)) return planners[i];
    return NULL;
}

int hd_planner_ranks(const hd_planner_job *job)
{
    int all = hd_cluster_devices(job->cluster);
    return job->ranks > 0 && job->ranks < all ? job->ranks : all;
}

int64_t hd_planner_capacity(const hd_planner_job *job, int ranks)
{
    const hd_cluster *c = job->cluster;
    int node = hd_cluster_group(c, c->node_level), teams = !c->device.cores ? 1 : ranks < node ? ranks : node;
    int64_t has = c->device.memory > c->device.reserved ? (c->device.memory - c->device.reserved) / teams : 0;
    return job->memory > 0 && job->memory < has ? job->memory : has;
}

/* ---- what is pinned ---- */

static bool same_number(const hd_parallel *a, const hd_parallel *b, size_t offset)
{
    return *(const int64_t *)((const char *)a + offset) == *(const int64_t *)((const char *)b + offset);
}

typedef bool same_fn(const hd_parallel *a, const hd_parallel *b);

/* b: what is wanted. Without the key it is 1F1B, or interleaved. */
static bool same_schedule(const hd_parallel *a, const hd_parallel *b)
{
    if (b->has_schedule) return a->has_schedule && a->schedule == b->schedule;
    return !a->has_schedule || a->schedule == (a->chunks > 1 ? HD_SCHEDULE_INTERLEAVED : HD_SCHEDULE_1F1B);
}
static bool same_recompute(const hd_parallel *a, const hd_parallel *b)
{
    return a->recompute == b->recompute && (a->recompute != HD_RECOMPUTE_EVERY || a->every == b->every)
           && (a->recompute != HD_RECOMPUTE_FIRST || (a->n_first == b->n_first && !memcmp(a->first, b->first, (size_t)a->n_first * sizeof *a->first)));
}
static bool same_layers(const hd_parallel *a, const hd_parallel *b)
{
    return a->n_layers == b->n_layers && !memcmp(a->layers, b->layers, (size_t)a->n_layers * sizeof *a->layers);
}
static bool same_slices(const hd_parallel *a, const hd_parallel *b)
{
    return a->slices == b->slices && a->n_lengths == b->n_lengths && !memcmp(a->lengths, b->lengths, (size_t)a->n_lengths * sizeof *a->lengths);
}
static bool same_attention(const hd_parallel *a, const hd_parallel *b) { return a->has_attention == b->has_attention && a->gather == b->gather; }
static bool same_order(const hd_parallel *a, const hd_parallel *b) { return a->has_order == b->has_order && a->plain == b->plain; }
static bool same_tables(const hd_parallel *a, const hd_parallel *b) { return a->tables == b->tables; }

#define NUMBER(key, field) [key] = {offsetof(hd_parallel, field), NULL}
static const struct { size_t offset; same_fn *same; } fields[HD_PARALLEL_KEYS] = {
    NUMBER(HD_KEY_OVERLAP, overlap), NUMBER(HD_KEY_BUCKET, bucket), NUMBER(HD_KEY_SPARSE, sparse), NUMBER(HD_KEY_DP, dp), NUMBER(HD_KEY_TP, tp), NUMBER(HD_KEY_PP, pp),
    NUMBER(HD_KEY_CP, cp), NUMBER(HD_KEY_SP, sp), NUMBER(HD_KEY_KEEP, keep), NUMBER(HD_KEY_SCATTER, scatter), NUMBER(HD_KEY_HALF_WIRE, half_wire),
    NUMBER(HD_KEY_REGATHER, regather), NUMBER(HD_KEY_ZERO, zero), NUMBER(HD_KEY_V, chunks), [HD_KEY_SCHEDULE] = {0, same_schedule},
    [HD_KEY_RECOMPUTE] = {0, same_recompute}, [HD_KEY_LAYERS] = {0, same_layers}, [HD_KEY_SLICES] = {0, same_slices}, [HD_KEY_ATTENTION] = {0, same_attention},
    [HD_KEY_ORDER] = {0, same_order}, [HD_KEY_TABLES] = {0, same_tables},
};

static bool same_parts(const hd_parallel *a, const hd_parallel *b)
{
    return a->n_parts == b->n_parts && !memcmp(a->part, b->part, (size_t)a->n_parts * sizeof *a->part);
}

bool hd_planner_allows(const hd_planner_job *job, const hd_parallel *form, int64_t micro_batches)
{
    hd_parallel none = hd_parallel_default();
    if (job->micro_batches && micro_batches != job->micro_batches) return false;
    if (job->pinned.n_parts && !same_parts(&job->pinned, form)) return false;
    for (int k = 0; k < HD_KEY_AUTO; k++) {
        bool given = job->pinned.given >> k & 1;
        if (!given && !(job->forbidden >> k & 1)) continue;
        const hd_parallel *wanted = given ? &job->pinned : &none;
        if (fields[k].same ? !fields[k].same(form, wanted) : !same_number(form, wanted, fields[k].offset)) return false;
    }
    return true;
}

/* ---- trying ---- */

static int copy_lists(hd_plan_found *f, const hd_parallel *form, hd_error *err)
{
    f->form = *form;
    if (form->n_pins) f->pins = hd_malloc((size_t)form->n_pins * sizeof *f->pins);
    if (form->n_cuts) f->cuts = hd_malloc((size_t)form->n_cuts * sizeof *f->cuts);
    if ((form->n_pins && !f->pins) || (form->n_cuts && !f->cuts)) return hd_fail_memory(err, 0, "a plan's layouts");
    if (f->pins) memcpy(f->pins, form->pins, (size_t)form->n_pins * sizeof *f->pins);
    if (f->cuts) memcpy(f->cuts, form->cuts, (size_t)form->n_cuts * sizeof *f->cuts);
    f->form.pins = f->pins;
    f->form.cuts = (const char (*)[64])f->cuts;
    return 0;
}

/* A cap (--device-memory) is of each rank, of whatever the device has. */
static void learn_memory(const hd_planner_job *job, const hd_sim_result *s, hd_plan_found *f)
{
    int64_t least = INT64_MAX;
    f->fits = true;
    for (int i = 0; i < s->n_ranks; i++) {
        int64_t capacity = s->rank[i].capacity;
        if (job->memory > 0 && job->memory < capacity) capacity = job->memory;
        if (capacity - s->rank[i].peak < least) least = capacity - s->rank[i].peak, f->peak = s->rank[i].peak, f->capacity = capacity;
    }
    f->fits = least >= 0;
}

int hd_planner_try(const hd_planner_job *job, const hd_parallel *form, int64_t micro_batches, hd_plan_found *out, hd_error *err)
{
    hd_programs programs = {0};
    hd_sim_result s = {0};
    *out = (hd_plan_found){.micro_batches = micro_batches};
    int rc = job->network.lower(job->network.context, form, micro_batches, 0, &programs, err);
    if (!rc) rc = hd_simulate((const hd_program *const *)programs.stage, programs.n, job->cluster, NULL, &s, err);
    if (!rc) rc = copy_lists(out, form, err);
    if (!rc) {
        out->step = s.step;
        out->limit = s.limit;
        memcpy(out->part, s.part, sizeof out->part);
        for (int p = 0; p < HD_SIM_PARTS; p++)
            if (s.part[p] > s.part[out->most]) out->most = (hd_sim_part)p;
        learn_memory(job, &s, out);
    }
    hd_sim_result_free(&s);
    hd_programs_free(&programs);
    if (rc) hd_plan_found_free(out);
    return rc;
}

/* ---- the best ---- */

void hd_plan_found_free(hd_plan_found *f)
{
    hd_free(f->pins);
    hd_free(f->cuts);
    *f = (hd_plan_found){0};
}

void hd_planner_answer_free(hd_planner_answer *a)
{
    for (int i = 0; i < a->n; i++) hd_plan_found_free(&a->best[i]);
    a->n = 0;
}

static int compare(const hd_plan_found *a, const hd_plan_found *b)
{
    hd_str x, y;
    if (a->step != b->step) return a->step < b->step ? -1 : 1;
    if (a->micro_batches != b->micro_batches) return a->micro_batches < b->micro_batches ? -1 : 1;
    hd_str_init(&x);
    hd_str_init(&y);
    int order = hd_parallel_print(&a->form, &x) || hd_parallel_print(&b->form, &y) || x.failed || y.failed ? 0 : strcmp(x.data, y.data);
    hd_str_free(&x);
    hd_str_free(&y);
    return order ? order : (a->pins != NULL) - (b->pins != NULL);
}

void hd_planner_keep(hd_planner_answer *a, hd_plan_found *f)
{
    int at = a->n;
    while (at && compare(f, &a->best[at - 1]) < 0) at--;
    if (at == HD_PLANNER_BEST || !f->fits) {
        hd_plan_found_free(f);
        return;
    }
    if (a->n == HD_PLANNER_BEST) hd_plan_found_free(&a->best[--a->n]);
    memmove(&a->best[at + 1], &a->best[at], (size_t)(a->n - at) * sizeof *a->best);
    a->best[at] = *f;
    a->n++;
    *f = (hd_plan_found){0};
}
