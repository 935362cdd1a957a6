/* draw.c: from logits to tokens, from tokens to events. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "base/term.h"
#include "serve/engine_int.h"

void hd_histogram_add(hd_histogram *h, double seconds, int64_t times)
{
    h->count += (uint64_t)times;
    h->sum += seconds * (double)times;
    for (int i = 0; i < HD_HISTOGRAM_BUCKETS; i++)
        if (seconds <= h->bound[i]) {
            h->bucket[i] += (uint64_t)times;
            return;
        }
}

/* ---- events ---- */

void hd_event_send(hd_engine *e, hd_work *w, hd_engine_event *ev)
{
    ev->request = w->id;
    ev->top_n = w->top_n;
    ev->prompt_tokens = w->r.n_prompt;
    ev->cached_tokens = w->cached;
    ev->generated_tokens = w->generated;
    if (!w->prompt_sent && w->prompt_scored >= w->r.n_prompt) {
        ev->prompt_logprobs = w->prompt_logprobs;
        ev->prompt_top = w->prompt_top;
        w->prompt_sent = true;
    }
    if (ev->finish != HD_FINISH_NONE) {
        e->stats.finished[ev->finish]++;
        ev->last = --w->open == 0;
    }
    if (ev->last) {
        w->ended = true;
        hd_histogram_add(&e->stats.whole, e->now - w->arrival, 1);
    }
    if (!ev->text) ev->text = "";
    w->r.event(w->r.arg, ev);
}

/* Times between its tokens: those that came at once share what passed since the last ones. */
static void time_tokens(hd_engine *e, hd_seq *s, int64_t n)
{
    if (s->last_time > 0) hd_histogram_add(&e->stats.inter_token, (e->now - s->last_time) / (double)n, n);
    else if (!s->w->first) {
        s->w->first = e->now;
        hd_histogram_add(&e->stats.first_token, e->now - s->w->arrival, 1);
    }
    s->last_time = e->now;
}

static void send_answer(hd_engine *e, hd_seq *s, int choice)
{
    hd_work *w = s->w;
    int64_t n = hd_answered(s) - s->sent;
    if (!n && !s->outlet.ready && s->finish == HD_FINISH_NONE) return;
    hd_engine_event ev = {.choice = choice, .n_tokens = n, .finish = s->finish, .error = s->error, .text = s->outlet.held.data, .text_bytes = s->outlet.ready};
    if (n) ev.tokens = s->tokens + w->r.n_prompt + s->sent;
    if (n && s->logprobs) ev.logprobs = s->logprobs + s->sent;
    if (n && s->top) ev.top = s->top + s->sent * w->top_n;
    s->sent += n;
    hd_event_send(e, w, &ev);
    hd_outlet_drop(&s->outlet);
}

static double mean_logprob(const hd_seq *s) { return s->scored ? s->score / (double)s->scored : 0; }

/* best_of: once all have ended, the n best, best first. */
static void send_ranked(hd_engine *e, hd_work *w)
{
    for (int i = 0; i < w->n_seq; i++)
        if (w->seq[i].state != HD_SEQ_DONE) return;
    for (int choice = 0; choice < w->r.n; choice++) {
        hd_seq *best = NULL;
        for (int i = 0; i < w->n_seq; i++)
            if (w->seq[i].sent >= 0 && (!best || mean_logprob(&w->seq[i]) > mean_logprob(best))) best = &w->seq[i];
        send_answer(e, best, choice);
        best->sent = -1;
    }
}

void hd_seq_send(hd_engine *e, hd_seq *s)
{
    if (s->w->ranked) {
        if (s->state == HD_SEQ_DONE) send_ranked(e, s->w);
    } else {
        send_answer(e, s, (int)(s - s->w->seq));
    }
}

/* ---- endings ---- */

void hd_seq_end(hd_engine *e, hd_seq *s, hd_finish why, const char *error)
{
    if (s->state == HD_SEQ_DONE) return;
    hd_error err = {0};
    if (e->t && why != HD_FINISH_CANCELLED && why != HD_FINISH_ERROR && !s->outlet.stopped) {
        hd_token_stream_end(&s->stream, &s->outlet.held, &err);
        hd_outlet_look(&s->outlet, true);
        if (s->outlet.stopped && why != HD_FINISH_DEADLINE) why = HD_FINISH_STOP;
    }
    s->finish = why;
    s->error = error;
    s->state = HD_SEQ_DONE;
    hd_seq_drop(e, s);
}

static void end_at_once(hd_engine *e, hd_work *w, hd_finish why)
{
    int left = w->open;
    for (int i = 0; i < left; i++) {
        hd_engine_event ev = {.choice = w->r.n - left + i, .finish = why, .error = w->error};
        hd_event_send(e, w, &ev);
    }
}

void hd_work_end(hd_engine *e, hd_work *w, hd_finish why, const char *error)
{
    if (w->ended) return;
    if (error) {
        snprintf(w->message, sizeof w->message, "%s", error);
        w->error = w->message;
    }
    if (w->swapped) hd_swap_drop(e, w);
    bool early = why == HD_FINISH_CANCELLED || why == HD_FINISH_ERROR;
    if (w->beams && !early) {
        hd_beams_end(e, w, why);
        return;
    }
    for (int i = 0; i < w->n_seq; i++) {
        hd_seq *s = &w->seq[i];
        if (s->state == HD_SEQ_DONE) continue;
        hd_seq_end(e, s, why, w->error);
        if (!early || !w->ranked) hd_seq_send(e, s);
    }
    if (!w->ended) end_at_once(e, w, why);
}

/* ---- drawing ---- */

static bool is_among(const int32_t *set, int n, int32_t token)
{
    for (int i = 0; i < n; i++)
        if (set[i] == token) return true;
    return false;
}

static bool any_allowed(const uint64_t *mask, int64_t words)
{
    for (int64_t i = 0; i < words; i++)
        if (mask[i]) return true;
    return false;
}

static void forbid(const hd_engine *e, uint64_t *mask, const int32_t *set, int n)
{
    for (int i = 0; i < n; i++)
        if (set[i] >= 0 && set[i] < e->r->vocab) mask[set[i] / 64] &= ~(UINT64_C(1) << (set[i] % 64));
}

static bool may_be_anything(const hd_seq *s) { return !s->constraint && hd_answered(s) >= s->w->r.min_tokens; }

/* The tokens that may come next in *allowed; NULL: all. A constraint goes before min_tokens where they contradict each other. */
static int next_allowed(hd_engine *e, hd_seq *s, const uint64_t **allowed, hd_error *err)
{
    const hd_request *r = &s->w->r;
    int64_t words = (e->r->vocab + 63) / 64;
    bool ends = hd_answered(s) >= r->min_tokens;
    *allowed = NULL;
    if (may_be_anything(s)) return 0;
    *allowed = e->mask;
    memset(e->mask, s->constraint ? 0 : 0xff, (size_t)words * sizeof *e->mask);
    int rc = s->constraint ? hd_constraint_mask(s->constraint, e->mask, err) : 0;
    if (rc || ends) return rc;
    if (!r->ignore_eos || s->constraint) forbid(e, e->mask, r->eos, r->n_eos);
    forbid(e, e->mask, r->stop_tokens, r->n_stop_tokens);
    return s->constraint && !any_allowed(e->mask, words) ? hd_constraint_mask(s->constraint, e->mask, err) : 0;
}

static void score_token(hd_engine *e, hd_seq *s, const float *logits, int32_t token, bool ending)
{
    if (!s->logprobs && !s->w->ranked) return;
    int64_t at = hd_answered(s);
    float lse = hd_logits_lse(logits, e->r->vocab);
    s->score += logits[token] - lse;
    s->scored++;
    if (!s->logprobs || ending) return;
    s->logprobs[at] = (hd_token_logprob){token, logits[token] - lse};
    if (!s->top) return;
    int n = hd_logits_top(logits, e->r->vocab, lse, s->w->top_n, e->top);
    for (int i = 0; i < n; i++) s->top[at * s->w->top_n + i] = (hd_token_logprob){e->top[i].token, e->top[i].logprob};
}

static int add_text(hd_engine *e, hd_seq *s, int32_t token, hd_error *err)
{
    if (!e->t) return 0;
    int rc = hd_token_stream_push(e->t, &s->stream, token, s->w->r.skip_special, &s->outlet.held, err);
    if (s->outlet.held.failed) return hd_fail_memory(err, s->outlet.held.len, "an answer's text");
    if (hd_answered(s) < s->w->r.min_tokens) hd_outlet_pass(&s->outlet);
    else hd_outlet_look(&s->outlet, false);
    return rc;
}

/* Appends a drawn token and says whether the answer ends with it. */
static int append(hd_engine *e, hd_seq *s, int32_t token, hd_finish *why, hd_error *err)
{
    hd_work *w = s->w;
    s->tokens[s->n_tokens++] = token;
    w->generated++;
    w->drew = true;
    e->stats.generated_tokens++;
    hd_token_sampler_see(s->sampler, token, true);
    int rc = s->constraint ? hd_constraint_advance(s->constraint, token, err) : 0;
    if (!rc) rc = add_text(e, s, token, err);
    if (s->outlet.stopped) *why = HD_FINISH_STOP;
    else if (s->constraint && !rc && hd_constraint_complete(s->constraint)) *why = HD_FINISH_EOS;
    else if (hd_answered(s) >= w->limit) *why = HD_FINISH_LENGTH;
    return rc;
}

/* One token from one row, of a request that goes on as it did. */
static bool is_plain(const hd_part *p)
{
    const hd_seq *s = p->seq;
    if (!s || !p->draws || s->proposed || s->state != HD_SEQ_LIVE) return false;
    const hd_work *w = s->w;
    return w->forked && !w->beams && !w->r.embed && !w->ended && !w->useless && may_be_anything(s);
}

static void draw_share(void *arg, int tid)
{
    const hd_engine *e = arg;
    for (int64_t i = tid; i < e->at->n_parts; i += e->r->threads) {
        const hd_part *p = &e->at->what[i];
        if (!is_plain(p)) continue;
        hd_seq *s = p->seq;
        s->token = hd_token_sampler_draw(s->sampler, e->r->logits(e->r, p->row + p->rows - 1), NULL, hd_answered(s));
        s->ahead = true;
    }
}

void hd_draw_ahead(hd_engine *e)
{
    int64_t plain = 0;
    for (int64_t i = 0; i < e->at->n_parts && plain < 2; i++) plain += is_plain(&e->at->what[i]);
    if (plain > 1 && e->r->threads > 1) e->r->each(e->r, draw_share, e);
}

/* Draws the next token from a row of logits. *why: how the answer ends with it. */
static int draw(hd_engine *e, hd_seq *s, const float *logits, int32_t *token, hd_finish *why, hd_error *err)
{
    const hd_request *r = &s->w->r;
    const uint64_t *allowed;
    int rc = next_allowed(e, s, &allowed, err);
    if (rc) return rc;
    *token = s->ahead ? s->token : hd_token_sampler_draw(s->sampler, logits, allowed, hd_answered(s));
    s->ahead = false;
    if (*token < 0) return hd_fail(err, HD_ENUMERIC, "the model's logits are not numbers");
    if (is_among(r->eos, r->n_eos, *token) && (!r->ignore_eos || s->constraint)) *why = HD_FINISH_EOS;
    else if (is_among(r->stop_tokens, r->n_stop_tokens, *token)) *why = HD_FINISH_STOP;
    score_token(e, s, logits, *token, *why != HD_FINISH_NONE);
    return *why == HD_FINISH_NONE ? append(e, s, *token, why, err) : 0;
}

/* Draws from the rows from `row` on: one token, and one more after each proposal that turned out right. */
static void draw_rows(hd_engine *e, hd_seq *s, int64_t row)
{
    hd_error err = {0};
    hd_finish why = HD_FINISH_NONE;
    int64_t proposed = s->proposed, computed = s->computed, before = s->n_tokens, accepted = 0;
    s->proposed = 0;
    int rc = 0;
    for (int64_t i = 0; i <= proposed && why == HD_FINISH_NONE && !rc; i++) {
        int32_t token, guess = i < proposed ? s->tokens[s->n_tokens] : -1;
        rc = draw(e, s, e->r->logits(e->r, row + i), &token, &why, &err);
        if (rc || token != guess) break;
        accepted += s->n_tokens > before + i; /* an ending token isn't appended */
    }
    e->stats.proposed += (uint64_t)proposed;
    e->stats.accepted += (uint64_t)accepted;
    hd_seq_computed(e, s, computed + accepted);
    hd_draft_keep(s, s->computed);
    if (s->n_tokens > before) time_tokens(e, s, s->n_tokens - before);
    if (rc) {
        snprintf(s->w->message, sizeof s->w->message, "%s", err.message);
        hd_seq_end(e, s, HD_FINISH_ERROR, s->w->message);
    } else if (why != HD_FINISH_NONE) {
        hd_seq_end(e, s, why, NULL);
    }
    hd_seq_send(e, s);
}

/* ---- the prompt ---- */

/* Row i of the part is of the token at position + i, and tells of the one after it. */
static void score_prompt(hd_engine *e, hd_work *w, const hd_batch_part *p, int64_t row, int64_t rows)
{
    int64_t first = p->position + p->n - rows;
    w->prompt_logprobs[0] = (hd_token_logprob){w->r.prompt[0], NAN};
    for (int64_t i = 0; i < rows && first + i + 1 < w->r.n_prompt; i++) {
        int64_t at = first + i + 1;
        if (at < w->prompt_scored) continue;
        const float *logits = e->r->logits(e->r, row + i);
        float lse = hd_logits_lse(logits, e->r->vocab);
        w->prompt_logprobs[at] = (hd_token_logprob){w->r.prompt[at], logits[w->r.prompt[at]] - lse};
        int n = w->top_n ? hd_logits_top(logits, e->r->vocab, lse, w->top_n, e->top) : 0;
        for (int k = 0; k < n; k++) w->prompt_top[at * w->top_n + k] = (hd_token_logprob){e->top[k].token, e->top[k].logprob};
        w->prompt_scored = at + 1;
    }
    for (int k = 0; k < w->top_n; k++) w->prompt_top[k] = (hd_token_logprob){-1, NAN};
    if (p->position + p->n >= w->r.n_prompt) w->prompt_scored = w->r.n_prompt;
}

static void send_embedding(hd_engine *e, hd_seq *s, int64_t row)
{
    hd_engine_event ev = {.hidden = e->r->hidden(e->r, row), .width = e->r->width, .finish = HD_FINISH_STOP};
    hd_seq_end(e, s, HD_FINISH_STOP, NULL);
    hd_event_send(e, s->w, &ev);
}

/* The prompt is computed: all choices begin from here, and from one row of logits. */
static void begin_choices(hd_engine *e, hd_work *w, int64_t row)
{
    hd_seq *first = &w->seq[0];
    w->forked = true;
    w->drew = true;
    for (int i = 1; i < w->n_seq && w->limit; i++) {
        hd_seq_share(e, first, &w->seq[i], first->computed);
        w->seq[i].state = HD_SEQ_LIVE;
    }
    if (!w->limit) hd_work_end(e, w, HD_FINISH_LENGTH, NULL);
    for (int i = 0; i < w->n_seq && w->limit; i++) draw_rows(e, &w->seq[i], row);
}

static void count_prompt(hd_engine *e, hd_work *w)
{
    w->cached = w->fed < w->r.n_prompt ? w->r.n_prompt - w->fed : 0;
    e->stats.prompt_tokens += (uint64_t)w->r.n_prompt;
    e->stats.cached_tokens += (uint64_t)w->cached;
}

void hd_part_done(hd_engine *e, int64_t part)
{
    const hd_part *what = &e->at->what[part];
    const hd_batch_part *p = &e->at->parts[part];
    hd_seq *s = what->seq;
    hd_work *w = s->w;
    if (s->state != HD_SEQ_LIVE || w->ended || w->useless) return; /* ended, also by what came before it in this step, or preempted */
    if (!w->forked) w->fed += p->n;
    hd_seq_computed(e, s, p->position + p->n - s->proposed);
    if (w->r.prompt_logprobs && w->prompt_scored < w->r.n_prompt && what->rows) score_prompt(e, w, p, what->row, what->rows);
    hd_work_catch_up(e, w);
    if (!what->draws) return;
    if (!w->forked) count_prompt(e, w);
    int64_t row = what->row + what->rows - 1 - s->proposed;
    if (w->r.embed) send_embedding(e, s, row);
    else if (w->beams && w->limit) s->row = row;
    else if (!w->forked) begin_choices(e, w, row);
    else draw_rows(e, s, row);
}
