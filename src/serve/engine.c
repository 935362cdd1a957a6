/* engine.c: the engine's life, its queue and its step. */
#include <assert.h>
#include <string.h>
#include "base/term.h"
#include "serve/engine_int.h"

hd_engine_options hd_engine_options_default(void)
{
    return (hd_engine_options){.prompt_slowdown = 1.6, .prefix_cache = true, .chunked_prefill = true, .preemption = HD_PREEMPT_RECOMPUTE};
}

/* ---- life cycle ---- */

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static int set_sizes(hd_engine *e, hd_error *err)
{
    const hd_runner *r = e->r, *d = e->o.draft;
    const hd_engine_options *o = &e->o;
    if (d && d->vocab != r->vocab)
        return hd_fail(err, HD_EINVAL, "the draft model has a vocabulary of %lld, the model one of %lld", (long long)d->vocab, (long long)r->vocab);
    bool negative = o->max_sequences < 0 || o->token_budget < 0 || o->prompt_budget < 0 || o->swap_bytes < 0 || o->max_queued < 0 || o->ngram < 0 ||
                    o->draft_tokens < 0 || o->force_preempt < 0 || !(o->prompt_slowdown >= 0);
    if (negative)
        return hd_fail(err, HD_EINVAL, "a setting of the engine is negative");
    e->budget = o->token_budget ? least(o->token_budget, r->max_tokens) : r->max_tokens;
    e->max_sequences = o->max_sequences ? least(o->max_sequences, r->max_parts) : r->max_parts;
    e->max_sequences = least(e->max_sequences, least(e->budget, r->max_rows)); /* each that runs can always decode a token */
    if (e->max_sequences < 1) return hd_fail(err, HD_EINVAL, "an engine for no sequence");
    if (o->kv_policy == HD_KV_RESERVE) e->reserve_blocks = (r->max_context + r->block - 1) / r->block;
    e->slots = o->preemption == HD_PREEMPT_SWAP && r->block_bytes ? least(o->swap_bytes / r->block_bytes, INT32_MAX / 2) : 0;
    return 0;
}

static int make_scratch(hd_engine *e, hd_error *err)
{
    size_t n = (size_t)e->max_sequences, marks = (size_t)(e->slots > e->r->blocks ? e->slots : e->r->blocks);
    e->batches = hd_calloc((size_t)e->r->depth, sizeof *e->batches);
    bool batches = e->batches != NULL;
    for (int64_t i = 0; i < e->r->depth && batches; i++) {
        hd_engine_batch *b = &e->batches[i];
        b->parts = hd_calloc(n, sizeof *b->parts);
        b->what = hd_calloc(n, sizeof *b->what);
        batches = b->parts && b->what;
    }
    e->draft_parts = hd_calloc(n, sizeof *e->draft_parts);
    e->draft_seqs = hd_calloc(n, sizeof *e->draft_seqs);
    e->draft_fed = hd_calloc(n, sizeof *e->draft_fed);
    e->mask = hd_calloc((size_t)(e->r->vocab + 63) / 64, sizeof *e->mask);
    e->top = hd_calloc(HD_MOST_LOGPROBS, sizeof *e->top);
    e->mark = hd_calloc(marks, sizeof *e->mark);
    e->holds = hd_calloc((size_t)e->r->blocks, sizeof *e->holds);
    e->free_slot = hd_calloc((size_t)e->slots, sizeof *e->free_slot);
    e->swap = e->slots ? hd_map_memory((size_t)(e->slots * e->r->block_bytes)) : NULL;
    if (!batches || !e->draft_parts || !e->draft_seqs || !e->draft_fed || !e->mask || !e->top || !e->holds || !e->mark || !e->free_slot ||
        (e->slots && !e->swap))
        return hd_fail_memory(err, n * sizeof *e->batches->parts + (size_t)(e->slots * e->r->block_bytes), "an engine");
    for (size_t i = 0; i < marks; i++) e->mark[i] = -1;
    for (int64_t i = 0; i < e->slots; i++) e->free_slot[e->free_slots++] = (int32_t)(e->slots - 1 - i);
    return 0;
}

static void set_bounds(hd_histogram *h)
{
    for (int i = 0; i < HD_HISTOGRAM_BUCKETS; i++) h->bound[i] = 0.001 * (double)(1 << i);
}

hd_engine *hd_engine_new(hd_runner *r, const hd_tokenizer *t, const hd_engine_options *o, hd_error *err)
{
    hd_engine *e = hd_calloc(1, sizeof *e);
    if (!e) return hd_fail_memory(err, sizeof *e, "an engine"), NULL;
    e->r = r;
    e->t = t;
    e->o = o ? *o : hd_engine_options_default();
    e->next_id = 1;
    hd_str_init(&e->text);
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->wake, NULL);
    int rc = set_sizes(e, err);
    if (!rc) rc = hd_kv_init(&e->kv, r->blocks, r->block, err);
    if (!rc && e->o.draft) rc = hd_kv_init(&e->draft_kv, e->o.draft->blocks, e->o.draft->block, err);
    if (!rc) rc = make_scratch(e, err);
    if (rc) {
        hd_engine_free(e);
        return NULL;
    }
    hd_histogram *all[] = {&e->stats.first_token, &e->stats.inter_token, &e->stats.queue, &e->stats.whole};
    for (int i = 0; i < 4; i++) set_bounds(all[i]);
    e->stats.blocks = r->blocks;
    e->stats.block = r->block;
    e->shown = e->stats;
    e->made = true;
    return e;
}

/* ---- the queue ---- */

static void append_incoming(hd_engine *e, hd_work *w)
{
    w->prev = e->incoming.last;
    if (w->prev) w->prev->next = w;
    else e->incoming.first = w;
    e->incoming.last = w;
    e->incoming.count++;
    w->all_next = e->all;
    if (e->all) e->all->all_prev = w;
    e->all = w;
    e->open++;
}

static int refusal(const hd_engine *e, hd_error *err)
{
    if (e->draining) return hd_fail(err, HD_EINTR, "the engine is about to stop and takes no more requests");
    if (e->o.max_queued && e->queued + e->incoming.count >= e->o.max_queued)
        return hd_fail(err, HD_EMEMCAP, "%lld requests are waiting already", (long long)(e->queued + e->incoming.count));
    return 0;
}

int hd_engine_submit(hd_engine *e, const hd_request *r, uint64_t *id, hd_error *err)
{
    hd_error own = {0};
    hd_work *w = hd_work_new(e, r, &own);
    if (!w) return hd_fail(err, own.code, "%s", own.message);
    w->arrival = hd_engine_time(e);
    pthread_mutex_lock(&e->lock);
    int rc = refusal(e, &own);
    if (!rc) {
        w->id = e->next_id++;
        if (id) *id = w->id;
        append_incoming(e, w);
        pthread_cond_signal(&e->wake);
    }
    pthread_mutex_unlock(&e->lock);
    if (!rc) return 0;
    hd_work_free(w);
    return hd_fail(err, rc, "%s", own.message);
}

void hd_engine_cancel(hd_engine *e, uint64_t id)
{
    pthread_mutex_lock(&e->lock);
    for (hd_work *w = e->all; w; w = w->all_next)
        if (w->id == id) {
            atomic_store(&w->cancel, true);
            atomic_store(&e->any_cancel, true);
            pthread_cond_signal(&e->wake);
            break;
        }
    pthread_mutex_unlock(&e->lock);
}

static void take_incoming(hd_engine *e)
{
    pthread_mutex_lock(&e->lock);
    hd_work *w = e->incoming.first;
    e->incoming = (hd_work_list){0};
    e->queued = e->waiting.count;
    for (hd_work *next; w; w = next) {
        next = w->next;
        hd_work_enlist(e, &e->waiting, w);
        e->queued++;
    }
    pthread_mutex_unlock(&e->lock);
}

static void forget(hd_engine *e, hd_work *w)
{
    pthread_mutex_lock(&e->lock);
    if (w->all_prev) w->all_prev->all_next = w->all_next;
    else e->all = w->all_next;
    if (w->all_next) w->all_next->all_prev = w->all_prev;
    e->open--;
    pthread_mutex_unlock(&e->lock);
    hd_work_free(w);
}

/* ---- what has ended ---- */

static void reap_list(hd_engine *e, hd_work_list *l)
{
    for (hd_work *w = l->first, *next; w; w = next) {
        next = w->next;
        if (!w->ended && atomic_load(&w->cancel)) hd_work_end(e, w, HD_FINISH_CANCELLED, NULL);
        if (!w->ended && w->r.deadline > 0 && e->now >= w->r.deadline) hd_work_end(e, w, HD_FINISH_DEADLINE, NULL);
        if (!w->ended || w->under_way) continue;
        hd_work_delist(l, w);
        forget(e, w);
    }
}

/* Ends what was cancelled (also by the callbacks that this calls) or is too late, and frees what has ended. */
static void reap(hd_engine *e)
{
    do {
        atomic_store(&e->any_cancel, false);
        reap_list(e, &e->running);
        reap_list(e, &e->waiting);
    } while (atomic_load(&e->any_cancel) && (e->running.first || e->waiting.first));
}

/* ---- a step ---- */

static int64_t count_unique(hd_engine *e, const hd_work *w, int64_t *all)
{
    int64_t unique = 0;
    for (int i = 0; i < w->n_seq; i++)
        for (int64_t j = 0; j < w->seq[i].n_table; j++, ++*all)
            if (e->mark[w->seq[i].table[j]] < 0) e->mark[w->seq[i].table[j]] = 1, unique++;
    for (int i = 0; i < w->n_seq; i++)
        for (int64_t j = 0; j < w->seq[i].n_table; j++) e->mark[w->seq[i].table[j]] = -1;
    return unique;
}

static void count_sharing(hd_engine *e)
{
    int64_t all = 0, unique = 0;
    for (const hd_work *w = e->running.first; w; w = w->next)
        if (w->n_seq > 1 && w->forked) unique += count_unique(e, w, &all);
    if (!all) return;
    e->stats.saved_sum += 1 - (double)unique / (double)all;
    e->stats.saved_steps++;
}

static void show_stats(hd_engine *e)
{
    hd_engine_stats *s = &e->stats;
    s->running = e->running.count;
    s->swapped = 0;
    for (const hd_work *w = e->waiting.first; w; w = w->next) s->swapped += w->swapped;
    s->blocks_used = hd_kv_held(&e->kv);
    s->blocks_cached = e->kv.cached.count;
    s->tokens_held = e->kv.rows_held;
    pthread_mutex_lock(&e->lock);
    e->shown = *s;
    e->queued = e->waiting.count;
    pthread_mutex_unlock(&e->lock);
}

static void count_step(hd_engine *e)
{
    hd_engine_stats *s = &e->stats;
    int64_t held = hd_kv_held(&e->kv);
    s->steps++;
    if (e->running.count > s->most_running) s->most_running = e->running.count;
    if (held) {
        s->waste_sum += 1 - (double)e->kv.rows_held / (double)(held * e->kv.block);
        s->waste_steps++;
    }
    count_sharing(e);
}

static void fail_parts(hd_engine *e, const char *why)
{
    for (int64_t i = 0; i < e->at->n_parts; i++)
        if (e->at->what[i].seq) hd_work_end(e, e->at->what[i].seq->w, HD_FINISH_ERROR, why);
}

static void mark_parts(hd_engine *e, bool under_way)
{
    for (int64_t i = 0; i < e->at->n_parts; i++)
        if (e->at->what[i].seq) e->at->what[i].seq->w->under_way = under_way;
}

static double blend(double mean, double x) { return mean > 0 ? mean + 0.2 * (x - mean) : x; }

/* The same for what must not be taken for too long: one step that was held up hardly counts. */
static double settle(double mean, double x)
{
    if (!(mean > 0)) return x;
    if (x < mean) return mean + 0.3 * (x - mean);
    return mean + 0.1 * ((x < 2 * mean ? x : 2 * mean) - mean);
}

/* What prompts cost: the time of a step above that of one that only decodes, a token. */
static void learn_times(hd_engine *e, double seconds)
{
    bool decoded = e->at->n_tokens > e->at->n_prompt;
    if (!e->at->n_prompt) {
        e->decode_seconds = settle(e->decode_seconds, seconds);
        e->beside = 0;
    } else if (!decoded || e->decode_seconds > 0) {
        e->beside += decoded;
        double each = (seconds - (decoded ? e->decode_seconds : 0)) / (double)e->at->n_prompt;
        e->prompt_seconds = blend(e->prompt_seconds, each > 0 ? each : 0);
    }
}

/* In a pipeline, pieces of prompts that give no logits are as good as computed: whatever reads their blocks comes behind them. So a prompt's next piece can begin
 * in the first stage while this one is in the second (Li et al. 2021, TeraPipe: slices of one sequence). */
static void part_early(hd_engine *e)
{
    for (int64_t i = 0; i < e->at->n_parts && e->r->depth > 1; i++) {
        if (e->at->what[i].rows) continue;
        hd_part_done(e, i);
        e->at->what[i].seq = NULL;
    }
}

static int begin_batch(hd_engine *e, hd_error *err)
{
    hd_error own = {0};
    e->at->begun = hd_engine_time(e);
    int rc = e->r->begin(e->r, &(hd_batch){e->at->parts, e->at->n_parts}, &own);
    if (rc) {
        fail_parts(e, own.message);
        return hd_fail(err, rc, "%s", own.message);
    }
    part_early(e);
    mark_parts(e, true);
    e->begun++;
    return 0;
}

/* What a preempted request was computed for is of no use; the next time it is. */
static void forgive(hd_engine *e)
{
    for (int64_t i = 0; i < e->at->n_parts; i++)
        if (e->at->what[i].seq) e->at->what[i].seq->w->useless = false;
}

static int finish_batch(hd_engine *e, hd_error *err)
{
    hd_error own = {0};
    e->at = &e->batches[e->finished++ % (uint64_t)e->r->depth];
    int rc = e->r->finish(e->r, &own);
    e->now = hd_engine_time(e);
    learn_times(e, e->now - (e->at->begun > e->freed ? e->at->begun : e->freed));
    e->freed = e->now;
    mark_parts(e, false);
    if (rc) fail_parts(e, own.message);
    else hd_draw_ahead(e);
    for (int64_t i = 0; i < e->at->n_parts && !rc; i++)
        if (e->at->what[i].seq) hd_part_done(e, i);
    forgive(e);
    for (hd_work *w = e->running.first; w && !rc; w = w->next)
        if (w->beams && !w->under_way) hd_beams_step(e, w);
    if (!rc) count_step(e);
    return rc ? hd_fail(err, rc, "%s", own.message) : 0;
}

/* The next batch begins, if there is one. The first one under way is finished once no more may begin, or nothing else is to be done. */
static int run_batches(hd_engine *e, hd_error *err)
{
    int rc = 0;
    e->at = &e->batches[e->begun % (uint64_t)e->r->depth];
    hd_engine_plan_step(e);
    bool any = e->at->n_parts > 0;
    e->planned = any;
    if (any) rc = begin_batch(e, err);
    uint64_t under_way = e->begun - e->finished;
    if (!rc && under_way && (!any || under_way == (uint64_t)e->r->depth)) rc = finish_batch(e, err);
    return rc;
}

/* A step that computes nothing is followed by one that does (a swapped request was taken in, say). Were it ever not so, nobody would wait for good. */
static void watch(hd_engine *e)
{
    enum { PATIENCE = 8 };
    hd_work *first = e->running.first ? e->running.first : e->waiting.first;
    e->idle_steps = e->planned || e->begun > e->finished || !first ? 0 : e->idle_steps + 1;
    assert(e->idle_steps < PATIENCE);
    if (e->idle_steps >= PATIENCE) hd_work_end(e, first, HD_FINISH_ERROR, "the engine could not go on with this request");
}

int hd_engine_step(hd_engine *e, bool *busy, hd_error *err)
{
    int rc = 0;
    take_incoming(e);
    e->now = hd_engine_time(e);
    bool any = e->waiting.first || e->running.first;
    reap(e);
    rc = run_batches(e, err);
    watch(e);
    reap(e);
    show_stats(e);
    if (busy) *busy = any;
#ifndef NDEBUG
    if (!rc) rc = hd_engine_check(e, err);
#endif
    return rc;
}

int hd_engine_run(hd_engine *e, hd_error *err)
{
    (void)err; /* a step that failed has ended its requests with the reason; the next ones may do */
    for (bool stop = false, busy; !stop;) {
        hd_engine_step(e, &busy, NULL);
        pthread_mutex_lock(&e->lock);
        while (!busy && !e->stopping && !e->incoming.first) pthread_cond_wait(&e->wake, &e->lock);
        stop = e->stopping;
        pthread_mutex_unlock(&e->lock);
    }
    return 0;
}

void hd_engine_stop(hd_engine *e)
{
    pthread_mutex_lock(&e->lock);
    e->stopping = true;
    pthread_cond_signal(&e->wake);
    pthread_mutex_unlock(&e->lock);
}

void hd_engine_drain(hd_engine *e)
{
    pthread_mutex_lock(&e->lock);
    e->draining = true;
    pthread_mutex_unlock(&e->lock);
}

void hd_engine_stats_read(hd_engine *e, hd_engine_stats *out)
{
    pthread_mutex_lock(&e->lock);
    *out = e->shown;
    if (out->running > e->open) out->running = e->open;
    out->waiting = e->open - out->running;
    pthread_mutex_unlock(&e->lock);
}

void hd_engine_free(hd_engine *e)
{
    if (!e) return;
    hd_engine_drain(e);
    if (e->kv.of && e->made) {
        take_incoming(e);
        for (hd_work *w = e->running.first; w; w = w->next) atomic_store(&w->cancel, true);
        for (hd_work *w = e->waiting.first; w; w = w->next) atomic_store(&w->cancel, true);
        reap(e);
        while (e->begun > e->finished) finish_batch(e, &(hd_error){0});
        reap(e);
    }
    hd_kv_clear(&e->kv);
    hd_kv_clear(&e->draft_kv);
    for (int64_t i = 0; e->batches && i < e->r->depth; i++) {
        hd_free(e->batches[i].parts);
        hd_free(e->batches[i].what);
    }
    hd_free(e->batches);
    hd_free(e->draft_parts);
    hd_free(e->draft_seqs);
    hd_free(e->draft_fed);
    hd_free(e->mask);
    hd_free(e->top);
    hd_free(e->mark);
    hd_free(e->holds);
    hd_free(e->free_slot);
    if (e->swap) hd_unmap_memory(e->swap, (size_t)(e->slots * e->r->block_bytes));
    hd_str_free(&e->text);
    pthread_cond_destroy(&e->wake);
    pthread_mutex_destroy(&e->lock);
    hd_free(e);
}
