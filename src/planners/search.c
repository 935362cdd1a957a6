/* search.c: the joint search: every form of the space estimated, the best of them estimated again from blocks lowered as they would be, and the best of
 * those lowered whole and simulated, in the order of their estimates, until what is left cannot win.
 *
 *   forms.c     the space
 *   blocks.c    what the network's parts take: first without data parallelism (few ways), then exactly (for forms that are still in)
 *   estimate.c  a form's step and memory, from blocks
 *   planner.c   trying: lowering and simulating a form whole
 *   relax.c     what is said where nothing fits
 *
 * Estimates may be wrong about memory: before a job is refused, forms are lowered whole from the one that is said to need least on.
 *
 * Work is shared among threads by index and judged in order, so their number doesn't change the answer. */
#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/term.h"
#include "base/thread.h"
#include "planners/estimate.h"
#include "planners/own_layouts.h"
#include "planners/slice_lengths.h"
#include "planners/unequal.h"
#include "planners/relax.h"

#define FAR 1.35        /* forms whose first estimate is so much worse than the best are left */
#define NETWORK_FAR 2
#define SLACK 1.08      /* of memory: what the first estimate may be wrong by */
#define LOOSE 3         /* of pieces of a network, which in one stage overlay what they keep */
#define EXACT_SLACK 1.04
#define SLICING 0.03    /* first estimates are of whole sequences: halves of them make smaller products */
#define SURE 1.03       /* an exact estimate so much above the best simulated step cannot win */
#define NETWORK_SURE 1.4 /* the same of another network, whose pieces are of different kinds and whose forms are few */
#define HOPELESS 1.4    /* forms whose first estimate is so much above what there is are not tried when nothing fits, but for a few */
enum { MOST_STAGES = HD_MAX_MESHES };
enum { KEPT = 384 /* forms that are estimated exactly */, AT_ONCE = 4 /* tries */, TIGHTER = 4 /* times that a form is made to fit */,
       LEAST = 12 /* forms tried before nothing is said to fit, at least */, FITTING = 8 /* tried after the first of them that fits */ };

typedef struct candidate { hd_form form; double step; int64_t peak; size_t index; } candidate;

typedef struct lean { int64_t peak; size_t index; } lean; /* by the first estimate; of a form */

typedef struct search {
    const hd_planner_job *job;
    hd_planner_answer *out;
    hd_error *err;
    hd_team *team;
    hd_form_list forms;
    double *step; int64_t *peak;  /* [forms] first estimates */
    hd_spread *spreads; int *spread_of; /* what data parallelism adds, by mesh; [forms] which */
    hd_blocks *blocks; size_t n_blocks; /* of the pass under way, sorted by key */
    candidate *kept; size_t n_kept;
    lean *lean; size_t n_lean;    /* where nothing of those fitted: by what they need */
    hd_least least;
    double begun;
    bool all;                     /* exhaustive: nothing is left out */
    int rc;
} search;

/* ---- sharing work ---- */

typedef struct shared { search *s; size_t n, at_once; _Atomic size_t next; _Atomic int rc; void (*each)(search *s, size_t i, hd_error *err, int *rc); } shared;

static void take_shares(void *arg, int tid)
{
    shared *h = arg;
    (void)tid;
    for (size_t begin; (begin = atomic_fetch_add(&h->next, h->at_once)) < h->n && !atomic_load(&h->rc);)
        for (size_t i = begin; i < begin + h->at_once && i < h->n; i++) {
            hd_error err = {0};
            int rc = 0;
            h->each(h->s, i, &err, &rc);
            if (rc) atomic_store(&h->rc, rc);
        }
}

static int share(search *s, size_t n, size_t at_once, void (*each)(search *, size_t, hd_error *, int *))
{
    shared h = {.s = s, .n = n, .at_once = at_once, .each = each};
    hd_team_run(s->team, take_shares, &h);
    int rc = atomic_load(&h.rc);
    return rc ? hd_fail_memory(s->err, 0, "a search for plans") : 0;
}

/* ---- blocks ---- */

static int compare_blocks(const void *x, const void *y) { return hd_block_key_compare(&((const hd_blocks *)x)->key, &((const hd_blocks *)y)->key); }

static int add_key(search *s, size_t *room, hd_block_key key)
{
    if (s->n_blocks && !hd_block_key_compare(&s->blocks[s->n_blocks - 1].key, &key)) return 0;
    if (hd_grow(&s->blocks, room, s->n_blocks + 1, sizeof *s->blocks)) return hd_fail_memory(s->err, 0, "a search for plans");
    s->blocks[s->n_blocks++] = (hd_blocks){.key = key};
    return 0;
}

/* FIRST is made of layers that are kept and layers that are made again. */
static hd_block_key key_of(const search *s, const hd_form *f, bool exact, bool again)
{
    hd_form g = *f;
    if (g.recompute == HD_RECOMPUTE_FIRST) g.recompute = again ? HD_RECOMPUTE_FULL : HD_RECOMPUTE_NONE;
    return hd_block_key_of(s->job, &g, exact);
}

static void make_blocks(search *s, size_t i, hd_error *err, int *rc)
{
    hd_block_key key = s->blocks[i].key;
    *rc = hd_blocks_make(s->job, &key, &s->blocks[i], err);
}

static void forget_blocks(search *s)
{
    for (size_t i = 0; i < s->n_blocks; i++) hd_blocks_free(&s->blocks[i]);
    hd_free(s->blocks);
    s->blocks = NULL;
    s->n_blocks = 0;
}

/* Those of all the forms given, each once. */
static int find_blocks(search *s, const hd_form *form, size_t n, size_t stride, bool exact)
{
    size_t room = 0, unique = 0;
    int rc = 0;
    forget_blocks(s);
    for (int again = 0; again < 2; again++)
        for (size_t i = 0; i < n && !rc; i++) {
            const hd_form *f = (const hd_form *)((const char *)form + i * stride);
            if (!again || f->recompute == HD_RECOMPUTE_FIRST) rc = add_key(s, &room, key_of(s, f, exact, again));
        }
    if (rc || !s->n_blocks) return rc;
    qsort(s->blocks, s->n_blocks, sizeof *s->blocks, compare_blocks);
    for (size_t i = 0; i < s->n_blocks; i++)
        if (!i || compare_blocks(&s->blocks[i], &s->blocks[unique - 1])) s->blocks[unique++] = s->blocks[i];
    s->n_blocks = unique;
    return share(s, s->n_blocks, 1, make_blocks);
}

static const hd_blocks *blocks_of(const search *s, const hd_form *f, bool exact, bool again)
{
    hd_blocks key = {.key = key_of(s, f, exact, again)};
    return bsearch(&key, s->blocks, s->n_blocks, sizeof key, compare_blocks);
}

/* ---- estimates ---- */

static bool is_pinned(const search *s, hd_parallel_key k) { return s->job->pinned.given >> k & 1; }

static void estimate(const search *s, const hd_form *f, const hd_spread *spread, bool exact, int64_t capacity, hd_estimate *out)
{
    hd_estimate_blocks b = {.kept = blocks_of(s, f, exact, false), .spread = spread};
    if (f->recompute == HD_RECOMPUTE_FIRST && !is_pinned(s, HD_KEY_RECOMPUTE)) b.again = blocks_of(s, f, exact, true);
    hd_estimate_form(s->job, f, &b, capacity, out);
}

/* Blocks that stand for the form's own data parallelism need no more of it. */
static bool is_whole(const search *s, const hd_form *f) { return hd_block_key_of(s->job, f, false).dp == f->dp; }

/* Forms of one mesh stand together and spread alike. */
static int find_spreads(search *s)
{
    size_t room = 0, n = 0;
    s->spread_of = hd_calloc(s->forms.n + 1, sizeof *s->spread_of);
    if (!s->spread_of) return hd_fail_memory(s->err, s->forms.n * sizeof *s->spread_of, "a search for plans");
    for (size_t i = 0; i < s->forms.n; i++) {
        const hd_form *f = &s->forms.list[i], *last = i ? f - 1 : f;
        bool same = i && last->dp == f->dp && last->cp == f->cp && last->tp == f->tp && last->pp == f->pp;
        if (!same && hd_grow(&s->spreads, &room, n + 1, sizeof *s->spreads)) return hd_fail_memory(s->err, 0, "a search for plans");
        if (!same) hd_spread_make(s->job, f, &s->spreads[n++]);
        s->spread_of[i] = (int)n - 1;
    }
    return 0;
}

static void first_estimate(search *s, size_t i, hd_error *err, int *rc)
{
    const hd_form *f = &s->forms.list[i];
    hd_estimate e;
    hd_spread spread = s->spreads[s->spread_of[i]];
    int64_t capacity = hd_planner_capacity(s->job, hd_form_ranks(f));
    (void)err, (void)rc;
    spread.zero = f->zero, spread.hold = f->hold;
    estimate(s, f, is_whole(s, f) ? NULL : &spread, false, capacity, &e);
    double slack = !s->job->network.layers && f->pp == 1 ? LOOSE : SLACK;
    s->step[i] = e.peak > slack * (double)capacity ? INFINITY : e.step * (1 + SLICING * log2(f->slices));
    s->peak[i] = e.peak;
}

static void exact_estimate(search *s, size_t i, hd_error *err, int *rc)
{
    candidate *c = &s->kept[i];
    hd_estimate e;
    int64_t capacity = hd_planner_capacity(s->job, hd_form_ranks(&c->form));
    (void)err, (void)rc;
    estimate(s, &c->form, NULL, true, capacity, &e);
    c->step = e.peak > EXACT_SLACK * (double)capacity ? INFINITY : e.step;
    c->peak = e.peak;
}

static int compare_candidates(const void *x, const void *y)
{
    const candidate *a = x, *b = y;
    if (a->step != b->step) return a->step < b->step ? -1 : 1;
    return a->index < b->index ? -1 : a->index > b->index;
}

/* ---- what is counted ---- */

static void count(search *s, const char *what, int64_t considered, int64_t cut)
{
    hd_planner_count *c = s->out->count;
    int n = s->out->n_counts, at = 0;
    while (at < n && strcmp(c[at].what, what)) at++;
    if (at == HD_PLANNER_COUNTS) return;
    if (at == n) snprintf(c[s->out->n_counts++].what, sizeof c->what, "%s", what);
    c[at].considered += considered;
    c[at].cut += cut;
}

/* By each dimension, how many forms there are and how many the first estimate left out. */
static void count_dimensions(search *s, double limit)
{
    static const char *const recompute[] = {"none", "full", "selective", "every", "by stage"};
    for (size_t i = 0; i < s->forms.n; i++) {
        const hd_form *f = &s->forms.list[i];
        bool cut = !(s->step[i] <= limit);
        char text[64];
        const struct { const char *name; int value; } numbers[] = {{"pp", f->pp}, {"tp", f->tp}, {"cp", f->cp}, {"zero", f->zero}, {"slices", f->slices}};
        for (size_t k = 0; k < sizeof numbers / sizeof *numbers; k++) {
            snprintf(text, sizeof text, "%s=%d", numbers[k].name, numbers[k].value);
            count(s, text, 1, cut);
        }
        snprintf(text, sizeof text, "recompute %s", recompute[f->recompute]);
        count(s, text, 1, cut);
        if (f->pp == 1) continue;
        snprintf(text, sizeof text, "schedule %s", hd_schedule_name((hd_schedule_kind)f->schedule));
        count(s, text, 1, cut);
    }
}

/* ---- the passes ---- */

static int keep_best(search *s)
{
    double best = INFINITY;
    size_t n = 0;
    int64_t memory = 0, far = 0;
    for (size_t i = 0; i < s->forms.n; i++) best = fmin(best, s->step[i]);
    double limit = s->all ? INFINITY : best * (s->job->network.layers ? FAR : NETWORK_FAR);
    for (size_t i = 0; i < s->forms.n; i++) {
        memory += isinf(s->step[i]);
        far += !isinf(s->step[i]) && s->step[i] > limit;
        n += s->step[i] <= limit && !isinf(s->step[i]);
    }
    count(s, "first estimate: memory", (int64_t)s->forms.n, memory);
    count(s, "first estimate: time", (int64_t)s->forms.n - memory, far);
    count_dimensions(s, isinf(limit) ? 1e300 : limit);
    s->kept = hd_calloc(n + 1, sizeof *s->kept);
    if (!s->kept) return hd_fail_memory(s->err, n * sizeof *s->kept, "a search for plans");
    for (size_t i = 0; i < s->forms.n; i++)
        if (s->step[i] <= limit && !isinf(s->step[i])) s->kept[s->n_kept++] = (candidate){s->forms.list[i], s->step[i], s->peak[i], i};
    qsort(s->kept, s->n_kept, sizeof *s->kept, compare_candidates);
    if (!s->all && s->n_kept > KEPT) count(s, "first estimate: beyond the best 384", (int64_t)s->n_kept, (int64_t)s->n_kept - KEPT), s->n_kept = KEPT;
    return 0;
}

static int estimate_first(search *s)
{
    s->step = hd_calloc(s->forms.n + 1, sizeof *s->step);
    s->peak = hd_calloc(s->forms.n + 1, sizeof *s->peak);
    if (!s->step || !s->peak) return hd_fail_memory(s->err, s->forms.n * 16, "a search for plans");
    int rc = find_blocks(s, s->forms.list, s->forms.n, sizeof *s->forms.list, false);
    if (!rc) rc = find_spreads(s);
    return rc ? rc : share(s, s->forms.n, 256, first_estimate);
}

static int estimate_all(search *s)
{
    int rc = estimate_first(s);
    if (!rc) rc = keep_best(s);
    s->out->considered = (int64_t)s->forms.n;
    if (!rc && s->n_kept) rc = find_blocks(s, &s->kept->form, s->n_kept, sizeof *s->kept, true);
    if (!rc) rc = share(s, s->n_kept, 1, exact_estimate);
    if (rc || !s->n_kept) return rc;
    qsort(s->kept, s->n_kept, sizeof *s->kept, compare_candidates);
    size_t before = s->n_kept;
    while (s->n_kept && isinf(s->kept[s->n_kept - 1].step)) s->n_kept--;
    count(s, "exact estimate: memory", (int64_t)before, (int64_t)(before - s->n_kept));
    s->out->estimated = (int64_t)s->n_kept;
    return 0;
}

/* ---- trying ---- */

typedef struct attempt { const candidate *of; hd_plan_found found; int rc, tries; char refused[256]; } attempt;
typedef struct attempts { search *s; attempt list[AT_ONCE]; int n; size_t first; } attempts;

/* Chunks of a network from a file begin where blocks do. */
static void write_cuts(const hd_blocks *b, const hd_form *f, const int *layers, char (*cuts)[64], hd_parallel *out)
{
    int at = 0, n = f->pp * f->chunks - 1;
    if (!b->cuts || n < 1) return;
    for (int c = 0; c < n; c++) {
        at += layers[c];
        memcpy(cuts[c], b->cuts[at - 1], sizeof *cuts);
    }
    out->cuts = (const char (*)[64])cuts;
    out->n_cuts = n;
}

static void form_at(search *s, const hd_form *f, int64_t capacity, char (*cuts)[64], hd_estimate *e, hd_parallel *out)
{
    estimate(s, f, NULL, true, capacity, e);
    bool chosen = f->recompute == HD_RECOMPUTE_FIRST && !is_pinned(s, HD_KEY_RECOMPUTE);
    hd_form_write(s->job, f, s->job->network.layers ? e->layers : NULL, chosen ? e->first : NULL, out);
    const hd_blocks *b = blocks_of(s, f, true, false);
    if (!s->job->network.layers && b) write_cuts(b, f, e->layers, cuts, out);
}

/* A form that was to fit and doesn't, by as much, is planned again for that much less, with more layers made again. */
static void attempt_one(search *s, attempt *a)
{
    hd_form f = a->of->form;
    int64_t has = hd_planner_capacity(s->job, hd_form_ranks(&f)), capacity = has;
    for (a->tries = 0; a->tries < TIGHTER; a->tries++) {
        char cuts[HD_BLOCK_CLASSES][64];
        hd_estimate e;
        hd_parallel p;
        hd_error err = {0};
        form_at(s, &f, capacity, cuts, &e, &p);
        if (isinf(e.step)) break;
        hd_plan_found_free(&a->found);
        a->rc = hd_planner_try(s->job, &p, f.micro_batches, &a->found, &err);
        a->found.estimate = e.step;
        if (a->rc || a->found.fits || f.recompute != HD_RECOMPUTE_FIRST || is_pinned(s, HD_KEY_RECOMPUTE)) {
            a->tries++;
            break;
        }
        capacity -= a->found.peak - a->found.capacity > has / 100 ? a->found.peak - a->found.capacity : has / 100;
    }
}

static void attempt_share(void *arg, int tid)
{
    attempts *a = arg;
    for (int i = tid; i < a->n; i += hd_team_size(a->s->team)) attempt_one(a->s, &a->list[i]);
}

static int64_t most_tries(const search *s)
{
    int64_t layers = s->job->network.layers, most = layers ? 1500 / layers : 96;
    if (s->all) return INT64_MAX;
    return s->job->nodes > 0 ? s->job->nodes : most < 12 ? 12 : most > 96 ? 96 : most;
}

static double sure(const search *s) { return s->job->network.layers ? SURE : NETWORK_SURE; }
static bool out_of_time(const search *s) { return s->job->seconds > 0 && hd_time() - s->begun > s->job->seconds; }

/* In order of their estimates, some at once. */
static int try_best(search *s)
{
    hd_planner_answer *out = s->out;
    int64_t most = most_tries(s), unfit = 0;
    size_t next = 0;
    while (next < s->n_kept && out->tried < most && !(out_of_time(s) && out->n)) {
        attempts a = {.s = s};
        if (!s->all && out->n && s->kept[next].step > sure(s) * out->best[0].step) break;
        for (; a.n < AT_ONCE && next < s->n_kept && out->tried + a.n < most; next++) a.list[a.n++].of = &s->kept[next];
        hd_team_run(s->team, attempt_share, &a);
        for (int i = 0; i < a.n; i++) {
            out->tried += a.list[i].tries;
            if (a.list[i].rc == HD_ENOMEM) return hd_fail_memory(s->err, 0, "a search for plans");
            unfit += !a.list[i].rc && !a.list[i].found.fits;
            hd_planner_keep(out, &a.list[i].found);
        }
    }
    out->cut_off = next < s->n_kept && !(out->n && s->kept[next].step > sure(s) * out->best[0].step);
    count(s, "simulated: memory", out->tried, unfit);
    count(s, "not simulated: estimate above the best", (int64_t)s->n_kept, (int64_t)(s->n_kept - next));
    return 0;
}

/* ---- where nothing of these fits ---- */

static int compare_lean(const void *x, const void *y)
{
    const lean *a = x, *b = y;
    if (a->peak != b->peak) return a->peak < b->peak ? -1 : 1;
    return a->index < b->index ? -1 : a->index > b->index;
}

/* What needs least first; what has no estimate, since the network could not be cut into blocks so, last: to hear why. Layers made again where memory asks for it are
 * all of them here. */
static int sort_lean(search *s)
{
    s->lean = hd_malloc((s->forms.n + 1) * sizeof *s->lean);
    if (!s->lean) return hd_fail_memory(s->err, s->forms.n * sizeof *s->lean, "a search for plans");
    for (size_t i = 0; i < s->forms.n; i++) {
        const hd_form *f = &s->forms.list[i];
        bool unknown = s->peak[i] <= 0 && (s->job->network.layers || f->pp > 1);
        if (f->recompute == HD_RECOMPUTE_FIRST && !is_pinned(s, HD_KEY_RECOMPUTE)) continue;
        s->lean[s->n_lean++] = (lean){unknown ? INT64_MAX : s->peak[i], i};
    }
    qsort(s->lean, s->n_lean, sizeof *s->lean, compare_lean);
    return 0;
}

static void try_one_lean(search *s, size_t i, attempt *a)
{
    const hd_form *f = &s->forms.list[s->lean[i].index];
    hd_error err = {0};
    hd_parallel p;
    hd_form_write(s->job, f, NULL, NULL, &p);
    a->rc = hd_planner_try(s->job, &p, f->micro_batches, &a->found, &err);
    if (a->rc && !a->refused[0]) snprintf(a->refused, sizeof a->refused, "%.*s", (int)sizeof a->refused - 1, err.message);
}

static void try_lean_share(void *arg, int tid)
{
    attempts *a = arg;
    for (int i = tid; i < a->n; i += hd_team_size(a->s->team)) try_one_lean(a->s, a->first + (size_t)i, &a->list[i]);
}

static double lack_of(int64_t peak, int64_t capacity) { return (double)peak / (double)(capacity > 0 ? capacity : 1); }

static void learn_least(search *s, const hd_form *f, const attempt *a)
{
    hd_least *l = &s->least;
    if (a->rc) {
        if (!l->refused[0]) memcpy(l->refused, a->refused, sizeof l->refused);
        return;
    }
    if (l->known && lack_of(a->found.peak, a->found.capacity) >= lack_of(l->peak, l->capacity)) return;
    l->known = true, l->fits = a->found.fits;
    l->form = *f, l->peak = a->found.peak, l->capacity = a->found.capacity;
}

static bool is_hopeless(const search *s, size_t i)
{
    if (i >= s->n_lean) return true;
    return i >= LEAST && (double)s->lean[i].peak > HOPELESS * (double)hd_planner_capacity(s->job, hd_form_ranks(&s->forms.list[s->lean[i].index]));
}

/* At most so many tries; some more than the first that fits, for the quickest of them. */
static int try_lean(search *s, int64_t most)
{
    hd_planner_answer *out = s->out;
    int64_t fitting = 0, unfit = 0;
    size_t next = 0;
    int rc = sort_lean(s);
    while (!rc && !is_hopeless(s, next) && (int64_t)next < most && fitting < FITTING && !(out_of_time(s) && out->n)) {
        attempts a = {.s = s, .first = next};
        for (; a.n < AT_ONCE && next < s->n_lean && (int64_t)next < most; next++) a.n++;
        hd_team_run(s->team, try_lean_share, &a);
        for (int i = 0; i < a.n; i++) {
            if (a.list[i].rc == HD_ENOMEM) rc = hd_fail_memory(s->err, 0, "a search for plans");
            learn_least(s, &s->forms.list[s->lean[a.first + (size_t)i].index], &a.list[i]);
            unfit += !a.list[i].rc && !a.list[i].found.fits;
            hd_planner_keep(out, &a.list[i].found);
        }
        fitting += out->n ? a.n : 0;
        out->tried += a.n;
    }
    count(s, "simulated from the least memory on", (int64_t)next, unfit);
    return rc;
}

static int64_t most_lean(const search *s)
{
    int64_t layers = s->job->network.layers, most = layers ? 6000 / layers : 512, left = s->job->nodes - s->out->tried;
    most = most < 2 * LEAST ? 2 * LEAST : most > 512 ? 512 : most;
    return s->job->nodes > 0 && left < most ? left : most;
}

/* ---- slices of different lengths ---- */

/* For the best form whose sequences go through the pipeline in slices: early tokens attend to few others, so early slices may be longer. */
static int try_uneven(search *s)
{
    const hd_plan_found *of = NULL;
    hd_parallel p;
    hd_plan_found found;
    hd_error err = {0};
    for (int i = 0; i < s->out->n && !of; i++)
        if (s->out->best[i].form.slices > 1 && !s->out->best[i].form.n_lengths) of = &s->out->best[i];
    if (!of || is_pinned(s, HD_KEY_SLICES)) return 0;
    p = of->form;
    int rc = hd_slice_lengths(s->job, &p, of->micro_batches, s->err);
    if (rc || !p.n_lengths) return rc;
    s->out->tried++;
    if (hd_planner_try(s->job, &p, of->micro_batches, &found, &err)) return err.code == HD_ENOMEM ? hd_fail(s->err, HD_ENOMEM, "%s", err.message) : 0;
    hd_planner_keep(s->out, &found);
    return 0;
}

/* ---- how many gradients are reduced together ---- */

/* Sizes beside the usual one, for the best forms: what is best follows from how long a message takes to begin and from what is left when backward ends. Ranks in
 * one process reduce when somebody waits, in buckets of any size. */
static const int64_t bucket_sizes[] = {0, 1 << 20, 32 << 20};
enum { BUCKET_SIZES = sizeof bucket_sizes / sizeof *bucket_sizes, BUCKETED = 3 };

typedef struct bucket_tries { search *s; int n; hd_plan_found found[BUCKETED * BUCKET_SIZES]; int rc[BUCKETED * BUCKET_SIZES]; } bucket_tries;

static bool has_buckets(const hd_parallel *p) { return p->overlap && p->bucket == HD_PLAN_BUCKET && (p->dp > 1 || p->cp > 1); }

static void try_bucket_share(void *arg, int tid)
{
    bucket_tries *b = arg;
    for (int i = tid; i < b->n; i += hd_team_size(b->s->team)) {
        const hd_plan_found *of = &b->s->out->best[i / BUCKET_SIZES];
        hd_parallel p = of->form;
        hd_error err = {0};
        p.bucket = bucket_sizes[i % BUCKET_SIZES];
        b->rc[i] = has_buckets(&of->form) ? hd_planner_try(b->s->job, &p, of->micro_batches, &b->found[i], &err) : HD_EINVAL;
    }
}

static int try_buckets(search *s)
{
    bucket_tries b = {.s = s, .n = (s->out->n < BUCKETED ? s->out->n : BUCKETED) * BUCKET_SIZES};
    int64_t before = s->out->tried;
    int rc = 0;
    if (is_pinned(s, HD_KEY_BUCKET) || s->job->forbidden >> HD_KEY_BUCKET & 1 || hd_cluster_nodes(s->job->cluster) < 2 || out_of_time(s)) return 0;
    hd_team_run(s->team, try_bucket_share, &b);
    for (int i = 0; i < b.n; i++) {
        if (b.rc[i] == HD_ENOMEM) rc = hd_fail_memory(s->err, 0, "a search for plans");
        if (b.rc[i]) continue;
        s->out->tried++;
        hd_planner_keep(s->out, &b.found[i]);
    }
    count(s, "sizes of buckets, of the best", s->out->tried - before, 0);
    return rc;
}

/* ---- stages of different meshes ---- */

/* For as many micro-batches as the best form has, and for more: a pipeline wants them. Only where nothing is pinned or forbidden that says how stages are. */
static int try_unequal(search *s)
{
    const uint32_t theirs = ~(1u << HD_KEY_OVERLAP | 1u << HD_KEY_BUCKET | 1u << HD_KEY_SPARSE | 1u << HD_KEY_AUTO);
    char cuts[MOST_STAGES][64];
    int rc = 0, stages;
    int64_t micro = s->out->n ? s->out->best[0].micro_batches : 1, tried = 0, found_any = 0;
    if ((s->job->pinned.given | s->job->forbidden) & theirs || s->job->n_pins || hd_planner_ranks(s->job) < 3) return 0;
    for (int times = 1; times <= 4 && !rc && !out_of_time(s); times *= 2) {
        hd_plan_found found;
        hd_parallel p;
        hd_error err = {0};
        if (s->job->network.samples % (micro * times) || (s->job->micro_batches && times > 1)) continue;
        rc = hd_unequal_stages(s->job, micro * times, cuts, &p, &stages, s->err);
        if (rc || !stages) continue;
        found_any++, s->out->tried++, tried++;
        if (!hd_planner_try(s->job, &p, micro * times, &found, &err)) hd_planner_keep(s->out, &found);
        else if (err.code == HD_ENOMEM) rc = hd_fail(s->err, HD_ENOMEM, "%s", err.message);
    }
    count(s, "stages of different meshes", found_any, found_any - tried);
    return rc;
}

/* ---- layouts of its own ---- */

/* Meshes and micro-batches whose layouts are searched for: of networks without names that the forms know, each mesh of all ranks; of a language model those of
 * the best forms. */
enum { MESHES = 6 };

static bool same_mesh(const hd_form *a, const hd_form *b)
{
    return a->pp == b->pp && a->dp == b->dp && a->tp == b->tp && a->cp == b->cp && a->micro_batches == b->micro_batches;
}

/* The form without what layouts decide. */
static hd_form bare(const hd_form *f)
{
    hd_form g = *f;
    g.sp = g.zero = g.hold = g.scatter = g.tables = 0;
    return g;
}

/* The smallest micro-batches of so many data-parallel ranks: where nothing fits otherwise. */
static int64_t most_micro(const search *s, int64_t dp)
{
    int64_t samples = s->job->network.samples, most = 1;
    if (s->job->micro_batches) return s->job->micro_batches;
    for (int64_t m = 1; m <= samples / dp; m++) most = samples % m == 0 ? m : most;
    return most;
}

static int list_meshes(const search *s, hd_form *list)
{
    int n = 0;
    bool language = s->job->network.layers > 0, lean = s->n_lean > 0;
    size_t forms = lean ? s->n_lean < KEPT ? s->n_lean : KEPT : s->n_kept;
    for (size_t i = 0; i < forms && n < (language && !lean ? 2 : MESHES); i++) {
        const hd_form *f = lean ? &s->forms.list[s->lean[i].index] : &s->kept[i].form;
        bool known = (f->dp == 1 && f->tp == 1) || f->cp > 1 || (!language && f->pp > 1);
        for (int k = 0; k < n && !known; k++) known = same_mesh(&list[k], f);
        if (!known) list[n++] = bare(f);
    }
    if (language || is_pinned(s, HD_KEY_TP) || s->job->forbidden >> HD_KEY_TP & 1) return n;
    /* Model parallelism of such networks is in no form but those of tables. */
    int ranks = hd_planner_ranks(s->job);
    for (int tp = 2; tp <= ranks && n < 2 * MESHES; tp++) {
        hd_form f = {.pp = 1, .dp = ranks / tp, .cp = 1, .tp = tp, .chunks = 1, .slices = 1, .micro_batches = s->out->n ? s->out->best[0].micro_batches : most_micro(s, ranks / tp)};
        bool known = ranks % tp || (is_pinned(s, HD_KEY_DP) && f.dp != s->job->pinned.dp);
        for (int k = 0; k < n && !known; k++) known = same_mesh(&list[k], &f);
        if (!known) list[n++] = f;
    }
    return n;
}

static int try_own(search *s, const hd_form *f, hd_pin *pins)
{
    hd_error err = {0};
    hd_parallel p;
    hd_plan_found found;
    int n = 0, rc = hd_own_layouts(s->job, f, hd_planner_capacity(s->job, hd_form_ranks(f)), pins, &n, s->err);
    if (rc || !n) return rc;
    hd_form_write(s->job, f, NULL, NULL, &p);
    p.pins = pins;
    p.n_pins = n;
    s->out->tried++;
    if (hd_planner_try(s->job, &p, f->micro_batches, &found, &err)) return err.code == HD_ENOMEM ? hd_fail(s->err, HD_ENOMEM, "%s", err.message) : 0;
    hd_planner_keep(s->out, &found);
    return 0;
}

/* What layouts decide is left to them. */
static bool may_have_layouts(const search *s)
{
    const uint32_t theirs = 1u << HD_KEY_SP | 1u << HD_KEY_ZERO | 1u << HD_KEY_KEEP | 1u << HD_KEY_REGATHER | 1u << HD_KEY_SCATTER | 1u << HD_KEY_TABLES;
    return !((s->job->pinned.given | s->job->forbidden) & theirs);
}

static int try_layouts(search *s)
{
    if (!may_have_layouts(s)) return 0;
    hd_form list[2 * MESHES + 1];
    hd_pin *pins = hd_malloc(HD_MESH_PINS * sizeof *pins);
    int rc = pins ? 0 : hd_fail_memory(s->err, 0, "a search for plans"), n = rc ? 0 : list_meshes(s, list);
    int64_t before = s->out->tried;
    for (int i = 0; i < n && !rc && !out_of_time(s); i++) rc = try_own(s, &list[i], pins);
    count(s, "layouts searched for, by mesh", n, n - (s->out->tried - before));
    hd_free(pins);
    return rc;
}

/* ---- the planners ---- */

static int begin(search *s)
{
    int threads = s->job->threads > 0 ? s->job->threads : hd_core_count();
    int rc = hd_forms_list(s->job, &s->forms, s->err);
    s->team = rc ? NULL : hd_team_new(threads, false, s->err);
    s->least.forms = s->forms.n;
    return rc ? rc : s->team ? 0 : s->err->code;
}

static void end(search *s)
{
    forget_blocks(s);
    hd_team_free(s->team);
    hd_free(s->forms.list);
    hd_free(s->step);
    hd_free(s->peak);
    hd_free(s->spreads);
    hd_free(s->spread_of);
    hd_free(s->kept);
    hd_free(s->lean);
    s->out->seconds = hd_time() - s->begun;
}

static int run(search *s)
{
    int rc = begin(s);
    if (!rc && s->forms.n) rc = estimate_all(s);
    if (!rc) rc = try_best(s);
    if (!rc && s->forms.n && !s->out->n) rc = try_lean(s, most_lean(s));
    if (!rc) rc = try_uneven(s);
    if (!rc) rc = try_unequal(s);
    if (!rc) rc = try_layouts(s);
    if (!rc) rc = try_buckets(s);
    if (!rc && !s->out->n) rc = hd_relax_explain(s->job, &s->least, s->out->why, sizeof s->out->why, s->err);
    end(s);
    if (rc) hd_planner_answer_free(s->out);
    return rc;
}

int hd_search_least(const hd_planner_job *job, int most, hd_least *out, hd_error *err)
{
    hd_planner_answer answer = {0};
    search s = {.job = job, .out = &answer, .err = err, .begun = hd_time()};
    int rc = begin(&s);
    if (!rc && s.forms.n) rc = estimate_first(&s);
    if (!rc && s.forms.n) rc = try_lean(&s, most);
    *out = s.least;
    end(&s);
    hd_planner_answer_free(&answer);
    return rc;
}

static int find(const hd_planner_job *job, hd_planner_answer *out, hd_error *err)
{
    search s = {.job = job, .out = out, .err = err, .begun = hd_time()};
    *out = (hd_planner_answer){0};
    return run(&s);
}

static int find_exhaustive(const hd_planner_job *job, hd_planner_answer *out, hd_error *err)
{
    search s = {.job = job, .out = out, .err = err, .begun = hd_time(), .all = true};
    *out = (hd_planner_answer){0};
    return run(&s);
}

const hd_planner hd_planner_search = {"search", "every form of parallelism together: estimated by parts, the best simulated", find};
const hd_planner hd_planner_exhaustive = {"exhaustive", "the same space, every form that may fit simulated; for small cases", find_exhaustive};
