/* engine_bench.h: an engine over a fake runner, and what came of its requests. For the tests of the engine. */
#ifndef ENGINE_BENCH_H
#define ENGINE_BENCH_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "base/rng.h"
#include "base/term.h"
#include "fake_constraint.h"
#include "fake_runner.h"
#include "serve/engine_int.h"

enum { MOST_CHOICES = 8, MOST_TOKENS = 160, MOST_TEXT = 1024, TOP = 3 };

/* What came of a request. */
typedef struct answer {
    int32_t tokens[MOST_CHOICES][MOST_TOKENS];
    float logprobs[MOST_CHOICES][MOST_TOKENS];
    int32_t likeliest[MOST_CHOICES][MOST_TOKENS];
    int64_t n[MOST_CHOICES];
    char text[MOST_CHOICES][MOST_TEXT];
    size_t bytes[MOST_CHOICES];
    hd_finish finish[MOST_CHOICES];
    float prompt[MOST_TOKENS];
    int64_t n_prompt;
    float hidden[8];
    int events, ends, lasts;
    int64_t cached;
    uint64_t id;
    hd_engine *cancel_in; /* the callback cancels at this event */
    int cancel_at;
    char error[128];
} answer;

static inline void take(void *arg, const hd_engine_event *e)
{
    answer *a = arg;
    int c = e->choice;
    assert_true(c >= 0 && c < MOST_CHOICES && !a->lasts && a->finish[c] == HD_FINISH_NONE);
    assert_true(a->n[c] + e->n_tokens <= MOST_TOKENS && a->bytes[c] + e->text_bytes < MOST_TEXT);
    if (!a->id) a->id = e->request;
    assert_int_equal(a->id, e->request);
    for (int64_t i = 0; i < e->n_tokens; i++, a->n[c]++) {
        a->tokens[c][a->n[c]] = e->tokens[i];
        if (e->logprobs) {
            assert_int_equal(e->logprobs[i].token, e->tokens[i]);
            a->logprobs[c][a->n[c]] = e->logprobs[i].logprob;
        }
        if (e->top) a->likeliest[c][a->n[c]] = e->top[i * e->top_n].token;
    }
    memcpy(a->text[c] + a->bytes[c], e->text, e->text_bytes);
    a->bytes[c] += e->text_bytes;
    if (e->prompt_logprobs) {
        assert_int_equal(a->events, 0);
        a->n_prompt = e->prompt_tokens;
        for (int64_t i = 0; i < e->prompt_tokens; i++) a->prompt[i] = e->prompt_logprobs[i].logprob;
    }
    for (int64_t i = 0; e->hidden && i < e->width; i++) a->hidden[i] = e->hidden[i];
    a->events++;
    a->finish[c] = e->finish;
    a->ends += e->finish != HD_FINISH_NONE;
    a->lasts += e->last;
    a->cached = e->cached_tokens;
    if (e->error) snprintf(a->error, sizeof a->error, "%s", e->error);
    if (a->cancel_in && a->events == a->cancel_at) hd_engine_cancel(a->cancel_in, e->request);
}

/* ---- an engine under test ---- */

typedef struct bench {
    fake_options f, df;
    hd_engine_options o;
    hd_runner *r, *draft;
    hd_engine *e;
    const hd_tokenizer *t;
    double clock;          /* seconds: under bench_keep_time */
} bench;

static int64_t bench_depth = 1; /* steps that the model may have under way */

static inline bench bench_default(void)
{
    bench b = {.f = fake_options_default(), .o = hd_engine_options_default()};
    b.f.depth = bench_depth;
    b.o.prompt_slowdown = 0; /* steps are the same on any machine */
    return b;
}

/* Time passes only while the model computes. Not with more threads than one. */
static inline void bench_keep_time(bench *b)
{
    b->clock = 1;
    b->f.clock = &b->clock;
    b->o.clock = &b->clock;
}

static inline void bench_open(bench *b)
{
    hd_error err = {0};
    b->r = fake_runner_new(&b->f);
    assert_non_null(b->r);
    if (b->o.draft_tokens) {
        b->draft = fake_runner_new(&b->df);
        assert_non_null(b->draft);
        b->o.draft = b->draft;
    }
    b->e = hd_engine_new(b->r, b->t, &b->o, &err);
    if (!b->e) fail_msg("%s", err.message);
}

static inline void check(bench *b)
{
    hd_error err = {0};
    if (hd_engine_check(b->e, &err)) fail_msg("%s", err.message);
    assert_int_equal(fake_runner_counts(b->r).broken, 0);
}

static inline bool one_step(bench *b)
{
    hd_error err = {0};
    bool busy;
    if (hd_engine_step(b->e, &busy, &err)) fail_msg("%s", err.message);
    check(b);
    return busy;
}

static inline void run_all(bench *b)
{
    int steps = 0;
    while (one_step(b))
        if (++steps > 200000) fail_msg("the engine doesn't come to an end");
    assert_int_equal(hd_kv_held(&b->e->kv), 0);
}

static inline hd_engine_stats bench_close(bench *b)
{
    hd_engine_stats s;
    hd_engine_stats_read(b->e, &s);
    assert_int_equal(s.running + s.waiting, 0);
    assert_int_equal(hd_kv_held(&b->e->kv), 0);
    if (b->draft) assert_int_equal(hd_kv_held(&b->e->draft_kv), 0);
    if (b->draft) assert_int_equal(fake_runner_counts(b->draft).broken, 0);
    hd_engine_free(b->e);
    b->r->close(b->r);
    if (b->draft) b->draft->close(b->draft);
    b->draft = NULL;
    return s;
}

static inline uint64_t submit(bench *b, hd_request r, answer *a)
{
    hd_error err = {0};
    uint64_t id = 0;
    r.event = take;
    r.arg = a;
    if (hd_engine_submit(b->e, &r, &id, &err)) fail_msg("%s", err.message);
    return id;
}

static inline int refused(bench *b, hd_request r)
{
    hd_error err = {0};
    answer a = {0};
    r.event = take;
    r.arg = &a;
    int rc = hd_engine_submit(b->e, &r, NULL, &err);
    if (rc) assert_true(err.message[0] != 0);
    return rc;
}

/* ---- what must come out ---- */

static inline void greedy_reference(const fake_options *f, const int32_t *prompt, int64_t n, int64_t count, int32_t *out, float *logprobs)
{
    int32_t tokens[2 * MOST_TOKENS];
    float *logits = hd_malloc((size_t)f->vocab * sizeof *logits);
    memcpy(tokens, prompt, (size_t)n * sizeof *tokens);
    for (int64_t i = 0; i < count; i++) {
        fake_logits(f, tokens, n + i, logits);
        tokens[n + i] = out[i] = fake_likeliest(f, logits);
        logprobs[i] = logits[out[i]] - hd_logits_lse(logits, f->vocab);
    }
    hd_free(logits);
}

#endif
