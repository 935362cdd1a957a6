/* beam.c: beam search. Of each beam's logits the likeliest `per_beam` tokens are taken (found without sorting the vocabulary; Wang et al. 2021, section
 * 3.2), of all of them the likeliest `beams` that don't end go on. A candidate that ends the text becomes a hypothesis where it is among the first `beams`.
 * The search is over when no beam can come to be better than the worst hypothesis kept. A beam that goes on twice shares its blocks: they are copied when
 * one of the two writes. */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "serve/engine_int.h"

static int ends(const hd_request *r) { return (r->ignore_eos ? 0 : r->n_eos) + r->n_stop_tokens; }

int hd_beams_new(hd_work *w, int64_t vocab, hd_error *err)
{
    hd_arena *a = &w->arena;
    size_t beams = (size_t)w->r.beams, limit = (size_t)w->limit, k = (size_t)w->top_n;
    hd_beams *b = w->beams = hd_arena_alloc(a, sizeof *b);
    bool ok = b != NULL;
    if (ok) {
        b->per_beam = w->r.beams + (ends(&w->r) > w->r.beams ? ends(&w->r) : w->r.beams);
        if (b->per_beam > vocab) b->per_beam = (int)vocab;
        b->best = hd_arena_alloc(a, (beams + 1) * sizeof *b->best);
        b->candidates = hd_arena_alloc(a, beams * (size_t)b->per_beam * sizeof *b->candidates);
        b->chosen = hd_arena_alloc(a, beams * sizeof *b->chosen);
        b->top = hd_arena_alloc(a, (size_t)b->per_beam * sizeof *b->top);
        b->kept = hd_arena_alloc(a, beams * sizeof *b->kept);
        ok = b->best && b->candidates && b->chosen && b->top && b->kept;
    }
    for (size_t i = 0; ok && i <= beams; i++) {
        hd_hypothesis *h = &b->best[i];
        h->tokens = hd_arena_alloc(a, (limit + 1) * sizeof *h->tokens);
        h->logprobs = w->r.logprobs >= 0 ? hd_arena_alloc(a, limit * sizeof *h->logprobs) : NULL;
        h->top = k ? hd_arena_alloc(a, limit * k * sizeof *h->top) : NULL;
        ok = h->tokens && (w->r.logprobs < 0 || h->logprobs) && (!k || h->top);
    }
    return ok ? 0 : hd_fail_memory(err, limit * beams * sizeof(int32_t), "beams");
}

/* ---- hypotheses ---- */

static double normal(const hd_work *w, double score, int64_t length) { return score / pow((double)(length > 0 ? length : 1), w->r.length_penalty); }

/* Keeps a beam's answer where it is among the best. length: tokens that count, an ending one included. */
static void keep(hd_work *w, const hd_seq *s, double score, int64_t length, hd_finish why)
{
    hd_beams *b = w->beams;
    hd_hypothesis h = b->best[b->n];
    h.score = normal(w, score, length);
    h.n = hd_answered(s);
    h.finish = why;
    memcpy(h.tokens, s->tokens + w->r.n_prompt, (size_t)h.n * sizeof *h.tokens);
    if (h.logprobs) memcpy(h.logprobs, s->logprobs, (size_t)h.n * sizeof *h.logprobs);
    if (h.top) memcpy(h.top, s->top, (size_t)(h.n * w->top_n) * sizeof *h.top);
    int at = b->n;
    for (; at > 0 && b->best[at - 1].score < h.score; at--) b->best[at] = b->best[at - 1];
    b->best[at] = h; /* the place behind the last keeps the memory of what fell out */
    if (b->n < w->r.beams) b->n++;
}

/* Whether no beam can still beat the worst that is kept: sums of logprobs only fall. */
static bool over(const hd_work *w, double best_sum, int64_t length)
{
    const hd_beams *b = w->beams;
    if (b->n < w->r.beams) return false;
    double most = normal(w, best_sum, w->r.length_penalty > 0 ? w->limit : length + 1);
    return b->best[b->n - 1].score >= most;
}

static void send_hypothesis(hd_engine *e, hd_work *w, int choice)
{
    const hd_hypothesis *h = &w->beams->best[choice];
    hd_error err = {0};
    hd_token_stream stream = {0};
    hd_str_clear(&e->text);
    for (int64_t i = 0; i < h->n && e->t; i++) hd_token_stream_push(e->t, &stream, h->tokens[i], w->r.skip_special, &e->text, &err);
    if (e->t) hd_token_stream_end(&stream, &e->text, &err);
    hd_engine_event ev = {.choice = choice, .tokens = h->tokens, .n_tokens = h->n, .text = e->text.data, .text_bytes = e->text.len, .logprobs = h->logprobs,
                          .top = h->top, .finish = h->finish};
    if (e->text.failed) ev.finish = HD_FINISH_ERROR, ev.error = "out of memory for the text";
    hd_event_send(e, w, &ev);
}

void hd_beams_end(hd_engine *e, hd_work *w, hd_finish why)
{
    for (int i = 0; i < w->n_seq; i++) {
        hd_seq *s = &w->seq[i];
        if (s->state == HD_SEQ_LIVE || s->state == HD_SEQ_BEHIND) keep(w, s, s->score, hd_answered(s), why);
        hd_seq_drop(e, s);
        s->state = HD_SEQ_DONE;
    }
    int n = w->r.n < w->beams->n ? w->r.n : w->beams->n;
    for (int i = 0; i < n; i++) send_hypothesis(e, w, i);
    for (int i = n; i < w->r.n; i++) { /* cut off before there were as many */
        hd_engine_event ev = {.choice = i, .finish = why};
        hd_event_send(e, w, &ev);
    }
}

/* ---- a step ---- */

static int best_first(const void *x, const void *y)
{
    const hd_beam_candidate *a = x, *b = y;
    if (a->score != b->score) return a->score < b->score ? 1 : -1;
    if (a->seq != b->seq) return a->seq - b->seq;
    return a->token - b->token;
}

static int collect(hd_engine *e, hd_work *w)
{
    hd_beams *b = w->beams;
    int n = 0;
    for (int i = 0; i < w->n_seq; i++) {
        hd_seq *s = &w->seq[i];
        if (s->state != HD_SEQ_LIVE) continue;
        const float *logits = e->r->logits(e->r, s->row);
        int k = hd_logits_top(logits, e->r->vocab, hd_logits_lse(logits, e->r->vocab), b->per_beam, b->top);
        for (int j = 0; j < k; j++) b->candidates[n++] = (hd_beam_candidate){s->score + b->top[j].logprob, b->top[j].logprob, b->top[j].token, i};
    }
    qsort(b->candidates, (size_t)n, sizeof *b->candidates, best_first);
    return n;
}

static hd_finish ending(const hd_request *r, int32_t token)
{
    for (int i = 0; i < r->n_eos && !r->ignore_eos; i++)
        if (r->eos[i] == token) return HD_FINISH_EOS;
    for (int i = 0; i < r->n_stop_tokens; i++)
        if (r->stop_tokens[i] == token) return HD_FINISH_STOP;
    return HD_FINISH_NONE;
}

/* Sets chosen; returns how many beams go on. */
static int choose(hd_work *w, int n)
{
    hd_beams *b = w->beams;
    int chosen = 0;
    for (int i = 0, rank = 0; i < n && chosen < w->r.beams; i++) {
        const hd_beam_candidate *c = &b->candidates[i];
        const hd_seq *s = &w->seq[c->seq];
        hd_finish why = ending(&w->r, c->token);
        if (!(c->score > -INFINITY) || (why != HD_FINISH_NONE && hd_answered(s) < w->r.min_tokens)) continue;
        if (why == HD_FINISH_NONE) b->chosen[chosen++] = *c;
        else if (rank < w->r.beams) keep(w, s, c->score, hd_answered(s) + 1, why);
        rank++;
    }
    return chosen;
}

static void copy_answer(hd_work *w, const hd_seq *from, hd_seq *to)
{
    int64_t n = hd_answered(from);
    memcpy(to->tokens + w->r.n_prompt, from->tokens + w->r.n_prompt, (size_t)n * sizeof *to->tokens);
    if (to->logprobs) memcpy(to->logprobs, from->logprobs, (size_t)n * sizeof *to->logprobs);
    if (to->top) memcpy(to->top, from->top, (size_t)(n * w->top_n) * sizeof *to->top);
    to->n_tokens = from->n_tokens;
    to->row = from->row;
}

/* Each chosen candidate gets a sequence: the first of a beam that beam itself, a further one a copy in a free place. Sets seq of the chosen to it. */
static void place(hd_engine *e, hd_work *w, int chosen)
{
    hd_beams *b = w->beams;
    for (int i = 0; i < w->n_seq; i++) b->kept[i] = false;
    for (int i = 0; i < chosen; i++) b->kept[b->chosen[i].seq] = true;
    for (int i = 0; i < w->n_seq; i++) {
        if (b->kept[i] || w->seq[i].state != HD_SEQ_LIVE) continue;
        hd_seq_drop(e, &w->seq[i]);
        w->seq[i].state = HD_SEQ_UNUSED;
    }
    for (int i = 0, place = 0; i < chosen; i++) {
        hd_seq *from = &w->seq[b->chosen[i].seq];
        if (b->kept[b->chosen[i].seq]) {
            b->kept[b->chosen[i].seq] = false;
            continue;
        }
        while (w->seq[place].state != HD_SEQ_UNUSED) place++;
        assert(place < w->n_seq);
        hd_seq_share(e, from, &w->seq[place], from->computed);
        copy_answer(w, from, &w->seq[place]);
        w->seq[place].state = HD_SEQ_LIVE;
        b->chosen[i].seq = place;
    }
}

static void append(hd_engine *e, hd_work *w, const hd_beam_candidate *c)
{
    hd_seq *s = &w->seq[c->seq];
    int64_t at = hd_answered(s);
    if (s->logprobs) s->logprobs[at] = (hd_token_logprob){c->token, c->logprob};
    if (s->top) {
        const float *logits = e->r->logits(e->r, s->row);
        int n = hd_logits_top(logits, e->r->vocab, hd_logits_lse(logits, e->r->vocab), w->top_n, e->top);
        for (int i = 0; i < n; i++) s->top[at * w->top_n + i] = (hd_token_logprob){e->top[i].token, e->top[i].logprob};
    }
    s->tokens[s->n_tokens++] = c->token;
    s->score = c->score;
}

void hd_beams_step(hd_engine *e, hd_work *w)
{
    hd_beams *b = w->beams;
    bool ready = false;
    for (int i = 0; i < w->n_seq; i++) ready |= w->seq[i].state == HD_SEQ_LIVE && w->seq[i].row >= 0;
    if (!ready || w->ended) return;
    w->forked = w->drew = true;
    int64_t length = 0;
    int chosen = choose(w, collect(e, w));
    for (int i = 0; i < w->n_seq; i++)
        if (w->seq[i].state == HD_SEQ_LIVE) length = hd_answered(&w->seq[i]) + 1;
    place(e, w, chosen);
    for (int i = 0; i < chosen; i++) append(e, w, &b->chosen[i]);
    for (int i = 0; i < w->n_seq; i++) w->seq[i].row = -1;
    w->generated += chosen;
    e->stats.generated_tokens += (uint64_t)chosen;
    if (!chosen || over(w, b->chosen[0].score, length)) {
        for (int i = 0; i < w->n_seq; i++) {
            hd_seq_drop(e, &w->seq[i]);
            w->seq[i].state = HD_SEQ_DONE;
        }
        hd_beams_end(e, w, chosen || b->n ? HD_FINISH_LENGTH : HD_FINISH_ERROR);
    } else if (length >= w->limit) {
        hd_beams_end(e, w, HD_FINISH_LENGTH);
    }
}
