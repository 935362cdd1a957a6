/* schedule.c: what a step computes.
 *
 * Requests have one order: by priority (where asked for), then as they came. A preempted one keeps its place in it. A step is filled so:
 *   1. what has drawn a token decodes, in order: one token and perhaps proposals for each. Where blocks are short, the last running request is preempted.
 *   2. prompts that have begun go on, in order, as far as the budget of tokens reaches. They wait for blocks, and preempt only in a step that has nothing else.
 *   3. waiting requests are admitted in order, while there are seats and blocks. None overtakes another.
 * Without chunked prefill 2 and 3 come first, and 1 only where they have nothing.
 *
 * No deadlock: a request that could not run alone is refused (request.c), and the first of the order may have everybody's blocks. */
#include <string.h>
#include "serve/engine_int.h"

/* ---- order ---- */

static bool precedes(const hd_engine *e, const hd_work *a, const hd_work *b)
{
    if (e->o.by_priority && a->r.priority != b->r.priority) return a->r.priority < b->r.priority;
    return a->id < b->id;
}

void hd_work_enlist(hd_engine *e, hd_work_list *l, hd_work *w)
{
    hd_work *before = l->last;
    while (before && precedes(e, w, before)) before = before->prev;
    w->prev = before;
    w->next = before ? before->next : l->first;
    if (w->next) w->next->prev = w;
    else l->last = w;
    if (before) before->next = w;
    else l->first = w;
    l->count++;
}

void hd_work_delist(hd_work_list *l, hd_work *w)
{
    if (w->prev) w->prev->next = w->next;
    else l->first = w->next;
    if (w->next) w->next->prev = w->prev;
    else l->last = w->prev;
    w->next = w->prev = NULL;
    l->count--;
}

/* ---- preemption ---- */

static void preempt(hd_engine *e, hd_work *w)
{
    bool swapped = e->slots && !e->reserve_blocks && hd_swap_out(e, w);
    bool leader = true;
    for (int i = 0; i < w->n_seq && !swapped; i++) {
        hd_seq *s = &w->seq[i];
        hd_seq_drop(e, s);
        if (s->state != HD_SEQ_LIVE && s->state != HD_SEQ_BEHIND) continue;
        s->state = leader ? HD_SEQ_LIVE : HD_SEQ_BEHIND;
        leader = false;
    }
    hd_work_delist(&e->running, w);
    hd_work_enlist(e, &e->waiting, w);
    w->running = w->drew = false;
    w->useless = w->under_way;
    e->stats.preemptions++;
}

/* ---- sequences ---- */

static int64_t pending(const hd_seq *s) { return s->n_tokens - s->computed; }

/* Beams go on together. */
static bool beams_ready(const hd_work *w)
{
    for (int i = 0; i < w->n_seq; i++)
        if (w->seq[i].state == HD_SEQ_BEHIND || (w->seq[i].state == HD_SEQ_LIVE && pending(&w->seq[i]) > 1)) return false;
    return true;
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static void add_part(hd_engine *e, hd_seq *s, int64_t n, int64_t rows, bool draws)
{
    e->at->parts[e->at->n_parts] = (hd_batch_part){.tokens = s->tokens + s->computed, .n = n, .position = s->computed, .blocks = s->table, .rows = rows};
    e->at->what[e->at->n_parts++] = (hd_part){.seq = s, .row = e->at->n_rows, .rows = rows, .draws = draws};
    e->at->n_tokens += n;
    e->at->n_rows += rows;
}

static int64_t decoding(const hd_work *w)
{
    int64_t n = 0;
    for (int i = 0; i < w->n_seq; i++) n += hd_seq_decodes(&w->seq[i]);
    return n;
}

/* ---- 1. decoding ---- */

/* How many of its proposals there is room for, leaving one token and row for each of the `after` that follow. */
static int64_t proposals(hd_engine *e, hd_seq *s, int64_t after)
{
    int64_t n = least(s->proposed, least(e->budget - e->at->n_tokens, e->r->max_rows - e->at->n_rows) - 1 - after);
    while (n > 0 && hd_seq_needs(e, s, s->computed + 1 + n) > hd_kv_available(&e->kv)) n--;
    return n > 0 ? n : 0;
}

/* False: the request itself had to be preempted. */
static bool decode_seq(hd_engine *e, hd_seq *s, int64_t after)
{
    s->proposed = proposals(e, s, after);
    while (!hd_seq_reserve(e, s, s->computed + 1 + s->proposed)) {
        hd_work *victim = e->running.last;
        s->proposed = 0;
        preempt(e, victim);
        if (victim == s->w) return false;
    }
    add_part(e, s, 1 + s->proposed, 1 + s->proposed, true);
    return true;
}

/* Which requests decode in this step: an even share of those that aren't under way, so that as many batches as there may be have the same to do. Returns how
 * many sequences that is. */
static int64_t choose_decoding(hd_engine *e)
{
    int64_t all = 0, idle = 0, n = 0, batches = e->r->depth - (int64_t)(e->begun - e->finished);
    for (const hd_work *w = e->running.first; w; w = w->next) {
        int64_t more = decoding(w);
        all += more;
        if (!w->under_way) idle += more;
    }
    int64_t share = least((all + e->r->depth - 1) / e->r->depth, (idle + batches - 1) / batches);
    for (hd_work *w = e->running.first; w; w = w->next) {
        int64_t more = decoding(w);
        w->goes = !w->under_way && (!n || n + more <= share);
        if (w->goes) n += more;
    }
    return n;
}

static void decode_all(hd_engine *e)
{
    int64_t left = choose_decoding(e);
    hd_propose(e);
    for (hd_work *w = e->running.first, *next; w; w = next) {
        int64_t parts = e->at->n_parts, tokens = e->at->n_tokens, rows = e->at->n_rows;
        bool kept = true;
        for (int i = 0; i < w->n_seq && kept && w->goes; i++)
            if (hd_seq_decodes(&w->seq[i]) && (!w->beams || beams_ready(w))) kept = decode_seq(e, &w->seq[i], --left);
        next = kept ? w->next : NULL; /* it was the last that ran */
        if (!kept) e->at->n_parts = parts, e->at->n_tokens = tokens, e->at->n_rows = rows;
    }
}

/* ---- 2. prompts ---- */

/* Tokens of the next chunk and the rows wanted of it. 0: nothing to do, or no room. */
static int64_t chunk(const hd_engine *e, const hd_seq *s, int64_t *rows, bool *draws)
{
    const hd_work *w = s->w;
    int64_t end = s->n_tokens, rows_left = e->r->max_rows - e->at->n_rows;
    bool scores = w->r.prompt_logprobs && w->prompt_scored < w->r.n_prompt;
    if (w->beams && w->forked) end--; /* the last token is decoded, with the other beams */
    int64_t n = least(end - s->computed, e->prompt_left);
    if (scores) n = least(n, rows_left);
    else if (rows_left < 1) n = least(n, s->n_tokens - 1 - s->computed);
    *draws = s->computed + n == s->n_tokens;
    *rows = scores ? n : *draws;
    return n > 0 ? n : 0;
}

/* Whether the batch computes, for another sequence, just the block that this one needs next: then it is found once that is done. */
static bool is_computed_in(const hd_engine *e, const hd_engine_batch *b, const hd_seq *s)
{
    int64_t end = (s->known + 1) * e->r->block;
    for (int64_t i = 0; i < b->n_parts; i++) {
        const hd_seq *o = b->what[i].seq;
        if (!o || o->w->r.salt != s->w->r.salt || o->w->ended || o->w->useless) continue;
        if (o->known > s->known || b->parts[i].position + b->parts[i].n - o->proposed < end) continue;
        if (!memcmp(o->tokens, s->tokens, (size_t)end * sizeof *s->tokens)) return true;
    }
    return false;
}

/* In this batch, or one that is under way. */
static bool computed_by_another(const hd_engine *e, const hd_seq *s)
{
    if (!hd_seq_may_find(e, s)) return false;
    for (uint64_t k = e->finished; k <= e->begun; k++)
        if (is_computed_in(e, &e->batches[k % (uint64_t)e->r->depth], s)) return true;
    return false;
}

static void prompt_seq(hd_engine *e, hd_seq *s)
{
    hd_seq_match(e, s);
    if (computed_by_another(e, s)) return;
    int64_t rows;
    bool draws;
    int64_t n = chunk(e, s, &rows, &draws);
    if (!n || e->at->n_parts >= e->max_sequences) return;
    while (!hd_seq_reserve(e, s, s->computed + n)) {
        hd_work *victim = e->running.last;
        if (e->at->n_parts || victim == s->w) return;
        preempt(e, victim);
    }
    add_part(e, s, n, rows, draws);
    e->prompt_left -= n;
    e->at->n_prompt += n;
}

static void prompts_of(hd_engine *e, hd_work *w)
{
    if (w->under_way) return;
    hd_work_catch_up(e, w);
    for (int i = 0; i < w->n_seq; i++)
        if (w->seq[i].state == HD_SEQ_LIVE && !hd_seq_decodes(&w->seq[i])) prompt_seq(e, &w->seq[i]);
}

static void prompts_all(hd_engine *e)
{
    for (hd_work *w = e->running.first; w; w = w->next) prompts_of(e, w);
}

/* ---- 3. admission ---- */

static int64_t seats_taken(const hd_engine *e)
{
    int64_t n = 0;
    for (const hd_work *w = e->running.first; w; w = w->next)
        for (int i = 0; i < w->n_seq; i++) n += w->beams || w->seq[i].state != HD_SEQ_DONE;
    return n;
}

static int64_t seats_wanted(const hd_work *w)
{
    int64_t n = 0;
    for (int i = 0; i < w->n_seq; i++) n += w->beams || w->seq[i].state != HD_SEQ_DONE;
    return n;
}

/* Blocks that a request will take soon: for what its sequences have to compute and the token that follows. */
static int64_t blocks_wanted(const hd_engine *e, const hd_work *w)
{
    int64_t n = 0, shared = w->r.n_prompt / e->r->block;
    for (int i = 0; i < w->n_seq; i++) {
        const hd_seq *s = &w->seq[i];
        int64_t all = hd_blocks_for(e, s->n_tokens + 1);
        if (s->state == HD_SEQ_LIVE && all > s->n_table) n += all - s->n_table;
        if (s->state == HD_SEQ_BEHIND) n += all - shared;
        if (s->state == HD_SEQ_UNUSED && !w->forked) n += 1;
    }
    return n;
}

static bool has_room(hd_engine *e, const hd_work *w)
{
    if (seats_taken(e) + seats_wanted(w) > e->max_sequences) return false;
    if (e->reserve_blocks) return seats_wanted(w) * e->reserve_blocks <= hd_kv_available(&e->kv);
    if (!e->running.first) return true;
    int64_t promised = w->swapped ? w->slots : 0;
    for (const hd_work *x = e->running.first; x; x = x->next) promised += blocks_wanted(e, x);
    return promised + blocks_wanted(e, w) <= hd_kv_available(&e->kv);
}

static void claim_all(hd_engine *e, hd_work *w)
{
    for (int i = 0; i < w->n_seq && e->reserve_blocks; i++)
        if (w->seq[i].state != HD_SEQ_DONE) hd_seq_claim(e, &w->seq[i]);
}

/* Moves a waiting request among the running; false: there is no room for it. */
static bool admit(hd_engine *e, hd_work *w)
{
    if (!w->swapped && w->seq[0].state == HD_SEQ_LIVE) hd_seq_match(e, &w->seq[0]);
    if (!has_room(e, w) || (w->swapped && !hd_swap_in(e, w))) {
        for (int i = 0; i < w->n_seq && !w->swapped; i++) hd_seq_drop(e, &w->seq[i]);
        return false;
    }
    hd_error err = {0};
    if (hd_work_begin(e, w, &err)) {
        hd_work_end(e, w, HD_FINISH_ERROR, err.message);
        return true;
    }
    hd_work_delist(&e->waiting, w);
    hd_work_enlist(e, &e->running, w);
    w->running = true;
    claim_all(e, w);
    if (!w->scheduled) {
        w->scheduled = e->now;
        hd_histogram_add(&e->stats.queue, e->now - w->arrival, 1);
    }
    return true;
}

static hd_work *first_waiting(const hd_engine *e)
{
    hd_work *w = e->waiting.first;
    while (w && w->ended) w = w->next;
    return w;
}

static void admit_all(hd_engine *e)
{
    for (hd_work *w; (w = first_waiting(e)) && e->prompt_left > 0;) {
        e->no_room = !admit(e, w);
        if (e->no_room) return;
        if (w->running) prompts_of(e, w);
    }
}

/* ---- a step ---- */

/* By priority: whoever runs and comes after the first that waits makes way for it. */
static void make_way(hd_engine *e)
{
    for (hd_work *w; e->o.by_priority && (w = first_waiting(e)) && e->running.first;) {
        hd_work *victim = e->running.last;
        if (has_room(e, w) || victim->r.priority <= w->r.priority) return;
        preempt(e, victim);
    }
}

/* Tests: preempts the last one that has drawn since it was admitted, so that everybody still gets on. */
static void preempt_by_force(hd_engine *e)
{
    if (!e->o.force_preempt || e->stats.steps % (uint64_t)e->o.force_preempt) return;
    for (hd_work *w = e->running.last; w; w = w->prev)
        if (w->drew) {
            preempt(e, w);
            return;
        }
}

/* Prompts that only their share of a step holds back, for each sequence that decodes beside them: what a longer step costs these it saves those. At least 1. */
static double pressure(const hd_engine *e)
{
    int64_t held = e->no_room ? 0 : least(e->waiting.count, e->max_sequences - seats_taken(e)), drawing = 0;
    for (const hd_work *w = e->running.first; w; w = w->next) {
        int64_t n = decoding(w);
        drawing += n;
        for (int i = 0; i < w->n_seq; i++) held += w->seq[i].state == HD_SEQ_LIVE;
        held -= n;
    }
    return held > drawing ? (double)held / (double)drawing : 1;
}

/* Tokens that prompts may take of a step, beside what decodes. Until it is known how long a token takes, few. Now and then none, so that it stays known how long
 * a step takes without. */
static int64_t prompt_share(const hd_engine *e)
{
    enum { FEWEST = 4, FIRST = 32, LOOK_EVERY = 32 };
    int64_t left = e->budget - e->at->n_tokens;
    if (!e->at->n_parts) return left;
    if (e->o.prompt_budget) left = least(left, e->o.prompt_budget);
    if (!(e->o.prompt_slowdown > 0)) return left;
    if (e->beside >= LOOK_EVERY) return 0;
    if (!(e->decode_seconds > 0) || !(e->prompt_seconds > 0)) return least(left, FIRST);
    double most = pressure(e) * (e->o.prompt_slowdown - 1) * e->decode_seconds / e->prompt_seconds;
    return most < FEWEST ? least(left, FEWEST) : most < (double)left ? (int64_t)most : left;
}

void hd_engine_plan_step(hd_engine *e)
{
    e->at->n_parts = e->at->n_tokens = e->at->n_rows = e->at->n_prompt = 0;
    preempt_by_force(e);
    make_way(e);
    if (e->o.chunked_prefill) decode_all(e);
    e->prompt_left = prompt_share(e);
    prompts_all(e);
    admit_all(e);
    if (!e->o.chunked_prefill && !e->at->n_parts) decode_all(e);
}
