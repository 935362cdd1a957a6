/* test_engine_requests.c: what an engine gives for each kind of request: choices, beams, endings, logprobs, embeddings, refusals; cancelling, deadlines,
 * draining, threads, and memory that runs out. */
#include "engine_bench.h"

#include <math.h>
#include <pthread.h>

enum { LENGTH = 37 };

static void fill_prompt(int32_t *prompt, int64_t n, uint64_t seed)
{
    hd_rng rng = hd_rng_new(seed);
    for (int64_t i = 0; i < n; i++) prompt[i] = (int32_t)hd_rng_below(&rng, 90);
}

static hd_request plain(const int32_t *prompt, int64_t n, int64_t max_tokens)
{
    hd_request r = hd_request_default();
    r.prompt = prompt;
    r.n_prompt = n;
    r.max_tokens = max_tokens;
    return r;
}

static answer *run_one(bench *b, hd_request r)
{
    answer *a = hd_calloc(1, sizeof *a);
    bench_open(b);
    submit(b, r, a);
    run_all(b);
    assert_int_equal(a->lasts, 1);
    bench_close(b);
    return a;
}

static void check_same(const answer *a, int i, const answer *b, int j)
{
    assert_int_equal(a->n[i], b->n[j]);
    assert_int_equal(a->finish[i], b->finish[j]);
    assert_memory_equal(a->tokens[i], b->tokens[j], (size_t)a->n[i] * sizeof(int32_t));
    assert_memory_equal(a->logprobs[i], b->logprobs[j], (size_t)a->n[i] * sizeof(float));
}

/* ---- several choices ---- */

static hd_request sampled(const int32_t *prompt, uint64_t seed)
{
    hd_request r = plain(prompt, LENGTH, 30);
    r.sampling.temperature = 1;
    r.sampling.seed = seed;
    r.logprobs = 1;
    return r;
}

static void test_n(void **state)
{
    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        bench b = bench_default();
        int32_t prompt[LENGTH];
        fill_prompt(prompt, LENGTH, 1);
        if (kind == 1) b.o.force_preempt = 5;
        if (kind == 2) b.o.force_preempt = 5, b.o.preemption = HD_PREEMPT_SWAP, b.o.swap_bytes = 1 << 20;
        if (kind == 3) b.o.kv_policy = HD_KV_RESERVE;
        hd_request r = sampled(prompt, 5);
        r.n = 4;
        answer *all = run_one(&b, r);
        assert_memory_not_equal(all->tokens[0], all->tokens[1], 30 * sizeof(int32_t));
        r.n = 1;
        for (int i = 0; i < 4; i++) {
            r.sampling.seed = i ? hd_hash_mix(5, (uint64_t)i) : 5;
            answer *one = run_one(&b, r);
            check_same(all, i, one, 0);
            hd_free(one);
        }
        hd_free(all);
    }
}

static double mean(const answer *a, int c)
{
    double sum = 0;
    for (int64_t i = 0; i < a->n[c]; i++) sum += a->logprobs[c][i];
    return sum / (double)a->n[c];
}

static void test_best_of(void **state)
{
    (void)state;
    bench b = bench_default();
    int32_t prompt[LENGTH];
    fill_prompt(prompt, LENGTH, 2);
    hd_request r = sampled(prompt, 9);
    r.n = 6;
    answer *all = run_one(&b, r);
    r.best_of = 6;
    r.n = 2;
    answer *best = run_one(&b, r);
    assert_int_equal(best->events, 2);
    int first = 0, second = -1;
    for (int i = 1; i < 6; i++)
        if (mean(all, i) > mean(all, first)) first = i;
    for (int i = 0; i < 6; i++)
        if (i != first && (second < 0 || mean(all, i) > mean(all, second))) second = i;
    check_same(best, 0, all, first);
    check_same(best, 1, all, second);
    hd_free(all);
    hd_free(best);
}

static void test_sharing(void **state)
{
    (void)state;
    bench b = bench_default();
    int32_t prompt[LENGTH];
    answer *a = hd_calloc(1, sizeof *a);
    fill_prompt(prompt, LENGTH, 3);
    hd_request r = sampled(prompt, 9);
    r.n = 4;
    bench_open(&b);
    submit(&b, r, a);
    one_step(&b);
    one_step(&b);
    assert_int_equal(hd_kv_held(&b.e->kv), LENGTH / 4 + 4); /* 9 full blocks of the prompt, and a last one for each */
    run_all(&b);
    hd_engine_stats s = bench_close(&b);
    assert_int_equal(s.copies, 3); /* the last to write is the only one left */
    assert_true(s.saved_sum / s.saved_steps > 0.3);
    hd_free(a);
}

/* ---- beams, beside a search written down plainly ---- */

typedef struct beam { int32_t tokens[MOST_TOKENS]; int64_t n; double sum, score; hd_finish why; } beam;
typedef struct expansion { double sum; int beam; int32_t token; } expansion;

static int best_expansion(const void *x, const void *y)
{
    const expansion *a = x, *b = y;
    return a->sum != b->sum ? a->sum < b->sum ? 1 : -1 : 0;
}

static int best_score(const void *x, const void *y)
{
    const beam *a = x, *b = y;
    return a->score != b->score ? a->score < b->score ? 1 : -1 : 0;
}

static bool ends(const hd_request *r, int32_t token)
{
    for (int i = 0; i < r->n_eos; i++)
        if (r->eos[i] == token) return true;
    return false;
}

/* All hypotheses, best first, without ever stopping early. */
static int search_plainly(const fake_options *f, const hd_request *r, beam *done)
{
    static beam live[8], next[8];
    static expansion all[8 * 128];
    int n_live = 1, n_done = 0;
    float logits[128];
    int32_t tokens[2 * MOST_TOKENS];
    live[0] = (beam){0};
    for (int64_t step = 0; step < r->max_tokens && n_live; step++) {
        int n = 0, chosen = 0;
        for (int i = 0; i < n_live; i++) {
            memcpy(tokens, r->prompt, (size_t)r->n_prompt * sizeof *tokens);
            memcpy(tokens + r->n_prompt, live[i].tokens, (size_t)live[i].n * sizeof *tokens);
            fake_logits(f, tokens, r->n_prompt + live[i].n, logits);
            float lse = hd_logits_lse(logits, f->vocab);
            for (int32_t t = 0; t < f->vocab; t++)
                if (!(ends(r, t) && step < r->min_tokens)) all[n++] = (expansion){live[i].sum + (double)(logits[t] - lse), i, t};
        }
        qsort(all, (size_t)n, sizeof *all, best_expansion);
        for (int k = 0; k < n && chosen < r->beams; k++) {
            beam x = live[all[k].beam];
            x.sum = all[k].sum;
            if (ends(r, all[k].token)) {
                x.score = x.sum / pow((double)(x.n + 1), r->length_penalty);
                x.why = HD_FINISH_EOS;
                if (k < r->beams) done[n_done++] = x;
                continue;
            }
            x.tokens[x.n++] = all[k].token;
            next[chosen++] = x;
        }
        n_live = chosen;
        memcpy(live, next, sizeof live);
    }
    for (int i = 0; i < n_live; i++) {
        live[i].score = live[i].sum / pow((double)live[i].n, r->length_penalty);
        live[i].why = HD_FINISH_LENGTH;
        done[n_done++] = live[i];
    }
    qsort(done, (size_t)n_done, sizeof *done, best_score);
    return n_done;
}

static void check_beams(bench *b, hd_request r)
{
    static beam done[8 * 64];
    answer *a = run_one(b, r);
    int n = search_plainly(&b->f, &r, done);
    assert_true(n >= r.n);
    for (int i = 0; i < r.n; i++) {
        assert_int_equal(a->n[i], done[i].n);
        assert_memory_equal(a->tokens[i], done[i].tokens, (size_t)done[i].n * sizeof(int32_t));
        assert_int_equal(a->finish[i], done[i].why);
    }
    assert_int_equal(a->events, r.n);
    hd_free(a);
}

static void test_beams(void **state)
{
    (void)state;
    static const int32_t eos[] = {11, 23, 57, 3, 80, 41, 66, 19};
    int32_t prompt[LENGTH];
    for (int kind = 0; kind < 72; kind++) {
        bench b = bench_default();
        fill_prompt(prompt, LENGTH, (uint64_t)kind);
        hd_request r = plain(prompt, 1 + kind % 36, 5 + kind % 31);
        r.beams = 1 + kind % 6;
        r.n = 1 + kind % 6 / 2;
        r.eos = eos;
        r.n_eos = kind % 3 ? kind % 9 : 8;
        r.length_penalty = (double)(kind % 4) - 1;
        r.min_tokens = kind % 5;
        if (kind % 4 == 1) b.o.force_preempt = 3;
        if (kind % 4 == 2) b.o.force_preempt = 3, b.o.preemption = HD_PREEMPT_SWAP, b.o.swap_bytes = 1 << 20;
        if (kind % 3 == 2) b.o.prefix_cache = false;
        if (kind % 5 == 3) b.o.chunked_prefill = false;
        check_beams(&b, r);
    }
}

/* ---- endings ---- */

static hd_tokenizer *byte_tokenizer(void)
{
    static const char *const specials[] = {"<eos>"};
    hd_bpe_spec spec = {.pretokenizer = HD_PRETOK_GPT2, .vocab_size = 257, .specials = specials, .special_count = 1, .quiet = true};
    hd_error err = {0};
    hd_bpe_trainer *trainer = hd_bpe_trainer_new(&spec, &err);
    assert_non_null(trainer);
    assert_int_equal(hd_bpe_trainer_feed(trainer, "a", 1, &err), 0);
    hd_tokenizer *t = hd_bpe_trainer_finish(trainer, &err);
    if (!t) fail_msg("%s", err.message);
    hd_bpe_trainer_free(trainer);
    return t;
}

/* An engine that says `text`, a byte a token. */
static answer *say(const hd_tokenizer *t, const char *text, hd_request r, int64_t ngram)
{
    hd_ids ids = {0};
    hd_error err = {0};
    static int32_t prompt[3] = {1, 2, 3};
    for (int i = 0; i < 3; i++) assert_int_equal(hd_ids_append(&ids, prompt[i], &err), 0);
    assert_int_equal(hd_tokenizer_encode(t, text, strlen(text), false, &ids, &err), 0);
    int32_t eos = hd_tokenizer_id(t, "<eos>");
    assert_int_equal(hd_ids_append(&ids, eos, &err), 0);
    bench b = bench_default();
    b.t = t;
    b.f.vocab = 260;
    b.f.script = ids.data;
    b.f.n_script = (int64_t)ids.len;
    b.o.ngram = ngram;
    r.prompt = prompt;
    r.n_prompt = 3;
    r.eos = &eos;
    r.n_eos = 1;
    answer *a = run_one(&b, r);
    hd_ids_free(&ids);
    return a;
}

typedef struct ending { const char *says, *stop[2], *text; hd_finish why; int64_t max, min; } ending;

static void test_endings(void **state)
{
    (void)state;
    static const ending cases[] = {
        {"hello", {0}, "hello", HD_FINISH_EOS, 99, 0},
        {"hello", {0}, "hel", HD_FINISH_LENGTH, 3, 0},
        {"hello STOP there", {"STOP"}, "hello ", HD_FINISH_STOP, 99, 0},
        {"hello STO", {"STOP"}, "hello STO", HD_FINISH_EOS, 99, 0},
        {"hello STO", {"STOP"}, "hello ST", HD_FINISH_LENGTH, 8, 0},
        {"aaab aab", {"aab", "zz"}, "a", HD_FINISH_STOP, 99, 0},
        {"d\xc3\xa9j\xc3\xa0 vu", {"j\xc3\xa0"}, "d\xc3\xa9", HD_FINISH_STOP, 99, 0},
        {"d\xc3\xa9j\xc3\xa0 vu", {0}, "d\xef\xbf\xbd", HD_FINISH_LENGTH, 2, 0},
        {"\xe2\x82\xac" "5 \xf0\x9f\x99\x82 x", {"\xf0\x9f\x99\x82"}, "\xe2\x82\xac" "5 ", HD_FINISH_STOP, 99, 0},
        {"stop stop stop", {"stop"}, "stop ", HD_FINISH_STOP, 99, 5},
        {"abcabcabcabcabcX end", {"X"}, "abcabcabcabcabc", HD_FINISH_STOP, 99, 0},
        {"x", {"x"}, "", HD_FINISH_STOP, 99, 0},
    };
    hd_tokenizer *t = byte_tokenizer();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int64_t ngram = 0; ngram < 6; ngram += 5) {
            hd_request r = hd_request_default();
            r.stop = cases[i].stop;
            r.n_stop = !cases[i].stop[0] ? 0 : cases[i].stop[1] ? 2 : 1;
            r.max_tokens = cases[i].max;
            r.min_tokens = cases[i].min;
            answer *a = say(t, cases[i].says, r, ngram);
            assert_string_equal(a->text[0], cases[i].text);
            assert_int_equal(a->finish[0], cases[i].why);
            hd_free(a);
        }
    hd_tokenizer_free(t);
}

static void test_stop_tokens(void **state)
{
    (void)state;
    int32_t prompt[LENGTH], fourth;
    fill_prompt(prompt, LENGTH, 8);
    bench b = bench_default();
    hd_request r = plain(prompt, LENGTH, 20);
    answer *free_run = run_one(&b, r);
    fourth = free_run->tokens[0][3];
    for (int i = 0; i < 3; i++) assert_true(free_run->tokens[0][i] != fourth);
    r.stop_tokens = &fourth;
    r.n_stop_tokens = 1;
    answer *a = run_one(&b, r);
    assert_int_equal(a->n[0], 3);
    assert_int_equal(a->finish[0], HD_FINISH_STOP);
    hd_free(a);
    r.stop_tokens = NULL;
    r.n_stop_tokens = 0;
    r.eos = &fourth;
    r.n_eos = 1;
    a = run_one(&b, r);
    assert_int_equal(a->finish[0], HD_FINISH_EOS);
    hd_free(a);
    r.ignore_eos = true;
    a = run_one(&b, r);
    check_same(a, 0, free_run, 0);
    hd_free(a);
    r.ignore_eos = false;
    r.min_tokens = 10; /* it isn't drawn where it would have been */
    a = run_one(&b, r);
    assert_true(a->n[0] >= 10 && a->tokens[0][3] != fourth);
    hd_free(a);
    hd_free(free_run);
}

/* ---- constraints ---- */

static void follow_by_hand(const fake_options *f, const hd_constraint *c, const int32_t *prompt, int64_t n, int32_t *out)
{
    int32_t tokens[2 * MOST_TOKENS];
    float logits[300];
    memcpy(tokens, prompt, (size_t)n * sizeof *tokens);
    for (int64_t i = 0; i < c->length; i++) {
        fake_logits(f, tokens, n + i, logits);
        int32_t best = -1;
        for (int32_t t = 0; t < f->vocab; t++)
            if (t != c->eos && t % c->modulus == i % c->modulus && (best < 0 || logits[t] > logits[best])) best = t;
        tokens[n + i] = out[i] = best;
    }
}

static void test_constraints(void **state)
{
    (void)state;
    hd_tokenizer *t = byte_tokenizer();
    int32_t prompt[LENGTH], want[20], eos = 256;
    fill_prompt(prompt, LENGTH, 6);
    for (int kind = 0; kind < 8; kind++) {
        hd_constraint c = {.vocab = 260, .length = 20, .modulus = 3, .eos = eos};
        bench b = bench_default();
        b.t = t;
        b.f.vocab = 260;
        b.f.order = kind & 1;
        if (kind & 1) b.o.ngram = 3;
        if (kind & 2) b.o.force_preempt = 4;
        hd_request r = plain(prompt, LENGTH, kind == 7 ? 12 : 60);
        r.n = 1 + (kind & 4) / 2;
        r.eos = &eos;
        r.n_eos = 1;
        r.ignore_eos = kind == 3;
        r.min_tokens = kind == 4 ? 40 : 0; /* the constraint goes before it */
        r.constraint = &c;
        answer *a = run_one(&b, r);
        follow_by_hand(&b.f, &c, prompt, LENGTH, want);
        for (int i = 0; i < r.n; i++) {
            assert_int_equal(a->n[i], kind == 7 ? 12 : 20);
            assert_int_equal(a->finish[i], kind == 7 ? HD_FINISH_LENGTH : HD_FINISH_EOS);
            assert_memory_equal(a->tokens[i], want, (size_t)a->n[i] * sizeof *want);
        }
        assert_true(!c.holds && !c.states);
        hd_free(a);
        c.fail_after = 7;
        a = run_one(&b, r);
        assert_true(a->n[0] == 7 && a->finish[0] == HD_FINISH_ERROR && strstr(a->error, "as asked for") && !c.holds && !c.states);
        hd_free(a);
    }
    hd_tokenizer_free(t);
}

/* ---- logprobs of the prompt, embeddings, the cache ---- */

static void test_prompt_logprobs(void **state)
{
    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        bench b = bench_default();
        int32_t prompt[LENGTH];
        float logits[128];
        fill_prompt(prompt, LENGTH, 4);
        if (kind & 1) b.f.max_rows = 5, b.f.max_parts = 3;
        if (kind & 2) b.o.token_budget = 7;
        hd_request r = plain(prompt, LENGTH, kind ? 4 : 0);
        r.prompt_logprobs = true;
        r.logprobs = 2;
        bench_open(&b);
        for (int again = 0; again < 2; again++) { /* the second time there are blocks to be found, but the logits are still wanted */
            answer *a = hd_calloc(1, sizeof *a);
            submit(&b, r, a);
            run_all(&b);
            assert_int_equal(a->n_prompt, LENGTH);
            assert_true(isnan(a->prompt[0]));
            for (int64_t i = 1; i < LENGTH; i++) {
                fake_logits(&b.f, prompt, i, logits);
                float want = logits[prompt[i]] - hd_logits_lse(logits, b.f.vocab);
                assert_memory_equal(&a->prompt[i], &want, sizeof want);
            }
            hd_free(a);
        }
        bench_close(&b);
    }
}

static void test_embedding(void **state)
{
    (void)state;
    bench b = bench_default();
    int32_t prompt[LENGTH];
    fill_prompt(prompt, LENGTH, 4);
    hd_request r = plain(prompt, LENGTH, 16);
    r.embed = true;
    bench_open(&b);
    answer *a = hd_calloc(2, sizeof *a);
    for (int i = 0; i < 2; i++) {
        submit(&b, r, &a[i]);
        run_all(&b);
        assert_true(a[i].lasts == 1 && a[i].events == 1 && a[i].n[0] == 0);
    }
    assert_true(a[0].hidden[0] != 0 && a[1].cached == 36);
    assert_memory_equal(a[0].hidden, a[1].hidden, 4 * sizeof(float));
    bench_close(&b);
    hd_free(a);
}

static void test_prefix_and_salt(void **state)
{
    (void)state;
    bench b = bench_default();
    int32_t prompt[LENGTH];
    fill_prompt(prompt, LENGTH, 4);
    hd_request r = plain(prompt, LENGTH, 5);
    answer *a = hd_calloc(4, sizeof *a);
    bench_open(&b);
    for (int i = 0; i < 4; i++) {
        r.salt = i < 2 ? 0 : 77;
        submit(&b, r, &a[i]);
        run_all(&b);
    }
    assert_true(a[0].cached == 0 && a[1].cached == 36 && a[2].cached == 0 && a[3].cached == 36);
    for (int i = 1; i < 4; i++) check_same(&a[0], 0, &a[i], 0);
    hd_engine_stats s = bench_close(&b);
    assert_int_equal(s.cached_tokens, 72);
    assert_int_equal(s.prompt_tokens, 4 * LENGTH);
    assert_int_equal(s.generated_tokens, 20);
    assert_int_equal(s.finished[HD_FINISH_LENGTH], 4);
    assert_true(s.first_token.count == 4 && s.queue.count == 4 && s.whole.count == 4 && s.inter_token.count == 16);
    hd_free(a);
}

/* Two requests at once with one prompt: what the first has computed, the second need not. */
static void prefix_at_once(int64_t depth)
{
    bench b = bench_default();
    b.f.depth = depth;
    int32_t prompt[100];
    fill_prompt(prompt, 100, 4);
    answer *a = hd_calloc(3, sizeof *a);
    bench_open(&b);
    for (int i = 0; i < 3; i++) submit(&b, plain(prompt, 100, 5), &a[i]);
    run_all(&b);
    assert_true(a[0].cached == 0 && a[1].cached == 96 && a[2].cached == 96);
    for (int i = 1; i < 3; i++) check_same(&a[0], 0, &a[i], 0);
    assert_int_equal(fake_runner_counts(b.r).tokens, 100 + 2 * 4 + 3 * 4);
    bench_close(&b);
    hd_free(a);
}

static void test_prefix_at_once(void **state)
{
    (void)state;
    for (int64_t depth = 1; depth <= 3; depth++) prefix_at_once(depth);
}

/* ---- several steps under way ---- */

/* As many batches as there may be, of as many sequences each. */
static void test_steps_under_way(void **state)
{
    (void)state;
    for (int64_t depth = 1; depth <= 4; depth++) {
        bench b = bench_default();
        int32_t prompt[LENGTH];
        fill_prompt(prompt, LENGTH, 4);
        b.f.depth = depth;
        answer *a = hd_calloc(7, sizeof *a);
        bench_open(&b);
        for (int i = 0; i < 7; i++) submit(&b, plain(prompt, LENGTH, 40), &a[i]);
        for (int i = 0; i < 60 && b.e->running.count < 7; i++) one_step(&b);
        for (int i = 0; i < 20; i++) one_step(&b);
        for (int i = 0; i < depth; i++, one_step(&b)) {
            const hd_engine_batch *last = &b.e->batches[(b.e->begun - 1) % (uint64_t)depth];
            assert_true(last->n_parts >= 7 / depth && last->n_parts <= (7 + depth - 1) / depth);
        }
        assert_int_equal(fake_runner_counts(b.r).most_steps, depth);
        run_all(&b);
        for (int i = 1; i < 7; i++) check_same(&a[0], 0, &a[i], 0);
        assert_int_equal(a[6].cached, LENGTH / 4 * 4);
        bench_close(&b);
        hd_free(a);
    }
}

/* Pieces of one prompt follow each other without waiting for the end of the one before. */
static void test_pieces_under_way(void **state)
{
    (void)state;
    answer *a = hd_calloc(4, sizeof *a);
    int32_t prompt[150];
    fill_prompt(prompt, 150, 4);
    for (int depth = 1; depth <= 4; depth++) {
        bench b = bench_default();
        b.f.depth = depth;
        b.o.token_budget = 20;
        bench_open(&b);
        submit(&b, plain(prompt, 150, 3), &a[depth - 1]);
        for (int i = 0; i < depth; i++) one_step(&b);
        assert_int_equal(fake_runner_counts(b.r).most_steps, depth);
        run_all(&b);
        check_same(&a[0], 0, &a[depth - 1], 0);
        assert_int_equal(fake_runner_counts(b.r).tokens, 150 + 2);
        bench_close(&b);
    }
    hd_free(a);
}

/* What is under way when its request is cut off, or gives way and comes back, does no harm; its blocks are free at once. */
static void test_useless_steps(void **state)
{
    (void)state;
    for (int swap = 0; swap < 2; swap++) {
        bench b = bench_default();
        int32_t prompt[LENGTH];
        fill_prompt(prompt, LENGTH, 4);
        b.f.depth = 2;
        b.o.by_priority = true;
        b.o.max_sequences = 2;
        if (swap) b.o.preemption = HD_PREEMPT_SWAP, b.o.swap_bytes = 1 << 20;
        answer *a = hd_calloc(4, sizeof *a);
        bench_open(&b);
        hd_request r = plain(prompt, LENGTH, 30);
        for (int i = 0; i < 4; i++) {
            r.priority = i < 2;
            uint64_t id = submit(&b, r, &a[i]);
            for (int k = 0; k < 9 && i; k++) one_step(&b);
            if (i != 3) continue;
            hd_engine_cancel(b.e, id);
            one_step(&b);
            assert_int_equal(a[3].finish[0], HD_FINISH_CANCELLED);
        }
        run_all(&b);
        hd_engine_stats s = bench_close(&b);
        assert_true(s.preemptions > 0);
        for (int i = 1; i < 3; i++) check_same(&a[0], 0, &a[i], 0);
        hd_free(a);
    }
}

/* ---- being cut off ---- */

typedef enum phase { QUEUED, PREFILL, DECODE, PREEMPTED, SWAPPED, PHASES } phase;

static void test_cancel(void **state)
{
    (void)state;
    for (int phase = 0; phase < PHASES; phase++)
        for (int form = 0; form < 3; form++) {
            bench b = bench_default();
            int32_t prompt[100], other[LENGTH];
            fill_prompt(prompt, 100, 4);
            fill_prompt(other, LENGTH, 5);
            b.o.max_sequences = 4;
            b.o.token_budget = 20;
            b.o.by_priority = true;
            if (phase == SWAPPED) b.o.preemption = HD_PREEMPT_SWAP, b.o.swap_bytes = 1 << 20;
            answer *a = hd_calloc(2, sizeof *a);
            bench_open(&b);
            hd_request first = plain(other, LENGTH, 100), r = plain(prompt, 100, 40);
            first.n = 4;
            r.priority = 1;
            r.n = form == 1 ? 3 : form == 2 ? 2 : 1;
            r.beams = form == 2 ? 4 : 0;
            if (phase == QUEUED) submit(&b, first, &a[0]);
            uint64_t id = submit(&b, r, &a[1]);
            for (int i = 0; i < (phase == QUEUED ? 4 : phase == PREFILL ? 2 : 9); i++) one_step(&b);
            if (phase == PREEMPTED || phase == SWAPPED) submit(&b, first, &a[0]), one_step(&b);
            hd_engine_stats s;
            hd_engine_stats_read(b.e, &s);
            if (phase == SWAPPED) assert_true(s.swapped == 1 && s.swaps_out == 1);
            if (phase == PREEMPTED) assert_true(s.preemptions == 1 && s.waiting == 1);
            if (phase == PREFILL) assert_int_equal(a[1].events, 0);
            if (phase == DECODE) assert_int_equal(b.e->running.first->forked, true);
            hd_engine_cancel(b.e, id);
            one_step(&b);
            assert_true(a[1].lasts == 1 && a[1].finish[0] == HD_FINISH_CANCELLED && a[1].ends == r.n);
            if (phase == PREFILL || phase == DECODE) assert_int_equal(hd_kv_held(&b.e->kv), 0);
            int64_t mine = 0;
            for (hd_work *w = b.e->running.first; w; w = w->next) mine += w->id == id;
            for (hd_work *w = b.e->waiting.first; w; w = w->next) mine += w->id == id;
            assert_int_equal(mine, 0);
            run_all(&b);
            if (b.e->slots) assert_int_equal(b.e->free_slots, b.e->slots);
            bench_close(&b);
            hd_free(a);
        }
}

static void test_cancel_in_callback(void **state)
{
    (void)state;
    bench b = bench_default();
    int32_t prompt[LENGTH];
    fill_prompt(prompt, LENGTH, 4);
    answer *a = hd_calloc(1, sizeof *a);
    bench_open(&b);
    a->cancel_in = b.e;
    a->cancel_at = 5;
    hd_request r = plain(prompt, LENGTH, 50);
    r.n = 3;
    submit(&b, r, a);
    while (!a->lasts) {
        one_step(&b);
        if (a->events >= 5) assert_int_equal(hd_kv_held(&b.e->kv), 0);
    }
    assert_int_equal(a->finish[0], HD_FINISH_CANCELLED);
    bench_close(&b);
    hd_free(a);
}

static void test_deadline(void **state)
{
    (void)state;
    bench b = bench_default();
    int32_t prompt[LENGTH];
    fill_prompt(prompt, LENGTH, 4);
    bench_keep_time(&b);
    b.f.slow_us = 2000;
    b.o.max_sequences = 1;
    answer *a = hd_calloc(3, sizeof *a);
    bench_open(&b);
    hd_request r = plain(prompt, LENGTH, 100);
    r.deadline = b.clock + 0.03;
    submit(&b, r, &a[0]);
    submit(&b, r, &a[1]); /* never runs */
    r.deadline = 0;
    r.max_tokens = 3;
    submit(&b, r, &a[2]);
    run_all(&b);
    assert_true(a[0].finish[0] == HD_FINISH_DEADLINE && a[0].n[0] > 0 && a[0].n[0] < 100);
    assert_true(a[1].finish[0] == HD_FINISH_DEADLINE && a[1].n[0] == 0);
    assert_int_equal(a[2].finish[0], HD_FINISH_LENGTH);
    bench_close(&b);
    hd_free(a);
}

static void test_drain(void **state)
{
    (void)state;
    bench b = bench_default();
    int32_t prompt[LENGTH];
    fill_prompt(prompt, LENGTH, 4);
    answer *a = hd_calloc(1, sizeof *a);
    bench_open(&b);
    submit(&b, plain(prompt, LENGTH, 10), a);
    one_step(&b);
    hd_engine_drain(b.e);
    assert_int_equal(refused(&b, plain(prompt, LENGTH, 10)), HD_EINTR);
    run_all(&b);
    assert_int_equal(a->n[0], 10);
    bench_close(&b);
    hd_free(a);
}

static void test_freed_while_busy(void **state)
{
    (void)state;
    bench b = bench_default();
    int32_t prompt[LENGTH];
    fill_prompt(prompt, LENGTH, 4);
    answer *a = hd_calloc(2, sizeof *a);
    bench_open(&b);
    submit(&b, plain(prompt, LENGTH, 10), &a[0]);
    one_step(&b);
    submit(&b, plain(prompt, LENGTH, 10), &a[1]);
    hd_engine_free(b.e);
    assert_true(a[0].finish[0] == HD_FINISH_CANCELLED && a[1].finish[0] == HD_FINISH_CANCELLED && a[0].lasts == 1 && a[1].lasts == 1);
    b.r->close(b.r);
    hd_free(a);
}

static void fail_model(int64_t depth)
{
    bench b = bench_default();
    int32_t prompt[LENGTH];
    fill_prompt(prompt, LENGTH, 4);
    b.f.depth = depth;
    b.f.fail_at = 4;
    answer *a = hd_calloc(3, sizeof *a);
    bench_open(&b);
    for (int i = 0; i < 2; i++) submit(&b, plain(prompt, LENGTH, 10), &a[i]);
    hd_error err = {0};
    int rc = 0, steps = 0;
    for (; !rc; steps++, check(&b)) rc = hd_engine_step(b.e, NULL, &err);
    assert_int_equal(rc, HD_ENUMERIC);
    if (depth == 1) assert_int_equal(steps, 4);
    int failed = 0;
    for (int i = 0; i < 2; i++) failed += a[i].finish[0] == HD_FINISH_ERROR && strstr(a[i].error, "as asked for");
    assert_int_equal(failed, depth == 1 ? 2 : 1); /* of two batches, the one */
    submit(&b, plain(prompt, LENGTH, 10), &a[2]); /* what comes later is served */
    run_all(&b);
    assert_int_equal(a[2].finish[0], HD_FINISH_LENGTH);
    bench_close(&b);
    hd_free(a);
}

static void test_failing_model(void **state)
{
    (void)state;
    fail_model(1);
    fail_model(2);
}

/* ---- priorities ---- */

static void test_priority_order(void **state)
{
    (void)state;
    bench b = bench_default();
    int32_t prompt[LENGTH];
    fill_prompt(prompt, LENGTH, 4);
    b.o.by_priority = true;
    b.o.max_sequences = 1;
    answer *a = hd_calloc(3, sizeof *a);
    hd_request r = plain(prompt, LENGTH, 10);
    bench_open(&b);
    r.priority = 5;
    submit(&b, r, &a[0]);
    for (int i = 0; i < 4; i++) one_step(&b);
    submit(&b, r, &a[1]);
    r.priority = 1;
    submit(&b, r, &a[2]);
    while (!a[2].lasts) one_step(&b);
    assert_true(!a[0].lasts && a[0].n[0] < 6 && !a[1].events);
    while (!a[0].lasts) one_step(&b);
    assert_false(a[1].events);
    run_all(&b);
    for (int i = 1; i < 3; i++) check_same(&a[0], 0, &a[i], 0);
    assert_int_equal(bench_close(&b).preemptions, 1);
    hd_free(a);
}

/* Steps until the last of `n` prompts of 140 tokens, which come while one request decodes, has drawn. Without prompts a step takes `decode` tokens' time. */
static int64_t steps_of_prompts(int n, double slowdown)
{
    enum { MOST = 4, DECODE = 20 };
    bench b = bench_default();
    int32_t prompt[MOST][140];
    int64_t steps = 0;
    bench_keep_time(&b);
    b.f.token_us = 100;
    b.f.slow_us = (DECODE - 1) * b.f.token_us;
    b.f.max_tokens = 150;
    b.o.prompt_slowdown = slowdown;
    answer *a = hd_calloc(1 + MOST, sizeof *a);
    bench_open(&b);
    fill_prompt(prompt[0], 140, 4);
    submit(&b, plain(prompt[0], 10, 60), &a[0]);
    for (int i = 0; i < 9; i++) one_step(&b);
    for (int i = 0; i < n; i++) {
        fill_prompt(prompt[i], 140, (uint64_t)(5 + i));
        submit(&b, plain(prompt[i], 140, 3), &a[1 + i]);
    }
    for (bool all = false; !all; steps++) {
        one_step(&b);
        all = true;
        for (int i = 1; i <= n; i++) all &= a[i].events > 0;
    }
    run_all(&b);
    bench_close(&b);
    hd_free(a);
    return steps;
}

/* Long prompts beside a stream: one goes on in pieces that hold the stream up little. Where many wait for one that draws, they take larger pieces. */
static void test_slowdown(void **state)
{
    (void)state;
    int64_t one = steps_of_prompts(1, 1.8), four = steps_of_prompts(4, 1.8);
    assert_int_equal(steps_of_prompts(1, 0), 1);
    assert_int_equal(steps_of_prompts(4, 0), 4);
    assert_true(one >= 9 && one <= 18);   /* 16 tokens a step, 0.8 of its 20, once it is known what a token takes */
    assert_true(four > 4 && four <= 32);  /* 64 tokens while all four wait, 16 for the last; 44 steps, were it always 16 */
}

/* ---- refusals ---- */

static void test_refusals(void **state)
{
    (void)state;
    bench b = bench_default();
    int32_t prompt[200] = {0}, bad[2] = {5, 97}, negative[1] = {-1};
    static const char *const empty[] = {""}, *const word[] = {"x"};
    b.f.blocks = 30;
    b.o.max_sequences = 6;
    b.o.max_queued = 2;
    bench_open(&b);
    hd_request ok = plain(prompt, 20, 10), r;
#define REFUSED(change) do { r = ok; change; assert_true(refused(&b, r) < 0); } while (0)
    REFUSED(r.n_prompt = 0);
    REFUSED(r.prompt = NULL);
    REFUSED(r.n_prompt = 161);
    REFUSED(r.n_prompt = 160);
    REFUSED((r.prompt = bad, r.n_prompt = 2));
    REFUSED((r.prompt = negative, r.n_prompt = 1));
    REFUSED(r.n = 0);
    REFUSED(r.n = 7);
    REFUSED((r.n = 3, r.best_of = 2));
    REFUSED((r.n = 3, r.beams = 2));
    REFUSED(r.beams = -1);
    REFUSED(r.max_tokens = -1);
    REFUSED(r.min_tokens = 11);
    REFUSED(r.logprobs = -2);
    REFUSED(r.logprobs = 100000);
    REFUSED(r.length_penalty = NAN);
    REFUSED(r.sampling.temperature = -1);
    REFUSED(r.sampling.temperature = NAN);
    REFUSED((r.stop = empty, r.n_stop = 1));
    REFUSED((r.stop = word, r.n_stop = 1)); /* there is no tokenizer */
    REFUSED((r.embed = true, r.n = 2));
    REFUSED((r.n_prompt = 100, r.max_tokens = 60)); /* 40 blocks of 30 */
    REFUSED((r.n_prompt = 40, r.max_tokens = 20, r.n = 5)); /* 10 + 5 * 5 */
#undef REFUSED
    answer *a = hd_calloc(3, sizeof *a);
    for (int i = 0; i < 2; i++) submit(&b, ok, &a[i]);
    assert_int_equal(refused(&b, ok), HD_EMEMCAP);
    run_all(&b);
    ok.n_prompt = 40;
    ok.max_tokens = 16;
    ok.n = 5; /* 10 + 5 * 4 */
    submit(&b, ok, &a[2]);
    run_all(&b);
    assert_int_equal(a[2].lasts, 1);
    bench_close(&b);
    hd_free(a);
}

/* ---- threads ---- */

typedef struct client { bench *b; uint64_t seed; int ended, cancelled, failed; } client;

static void count_end(void *arg, const hd_engine_event *e)
{
    client *c = arg;
    if (!e->last) return;
    c->ended++; /* the engine's thread alone */
}

static void *be_client(void *arg)
{
    client *c = arg;
    hd_rng rng = hd_rng_new(c->seed);
    int32_t prompt[LENGTH];
    for (int i = 0; i < 40; i++) {
        uint64_t id;
        fill_prompt(prompt, LENGTH, hd_rng_below(&rng, 3));
        hd_request r = plain(prompt, LENGTH, 1 + (int64_t)hd_rng_below(&rng, 20));
        r.n = 1 + (int)hd_rng_below(&rng, 2);
        r.event = count_end;
        r.arg = c;
        c->failed += hd_engine_submit(c->b->e, &r, &id, NULL) != 0;
        if (hd_rng_below(&rng, 3) == 0) hd_engine_cancel(c->b->e, id);
        hd_engine_stats s;
        hd_engine_stats_read(c->b->e, &s);
    }
    return NULL;
}

static void *be_engine(void *arg)
{
    bench *b = arg;
    hd_engine_run(b->e, NULL);
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    enum { threads = 3 };
    bench b = bench_default();
    pthread_t engine, clients[threads];
    client c[threads];
    b.f.blocks = 120;
    bench_open(&b);
    assert_int_equal(pthread_create(&engine, NULL, be_engine, &b), 0);
    for (int i = 0; i < threads; i++) {
        c[i] = (client){&b, (uint64_t)i, 0, 0, 0};
        assert_int_equal(pthread_create(&clients[i], NULL, be_client, &c[i]), 0);
    }
    for (int i = 0; i < threads; i++) pthread_join(clients[i], NULL);
    hd_engine_drain(b.e);
    hd_engine_stats s;
    do {
        struct timespec nap = {.tv_nsec = 1000000};
        nanosleep(&nap, NULL);
        hd_engine_stats_read(b.e, &s);
    } while (s.running + s.waiting);
    hd_engine_stop(b.e);
    pthread_join(engine, NULL);
    check(&b);
    for (int i = 0; i < threads; i++) assert_true(c[i].ended == 40 && !c[i].failed);
    bench_close(&b);
}

/* ---- memory that runs out ---- */

static void run_without_memory(uint64_t nth, bool *failed)
{
    static answer a[4];
    memset(a, 0, sizeof a);
    bench b = bench_default();
    int32_t prompt[LENGTH];
    hd_error err = {0};
    fill_prompt(prompt, LENGTH, 4);
    b.o.preemption = HD_PREEMPT_SWAP;
    b.o.swap_bytes = 1 << 16;
    b.o.force_preempt = 4;
    b.r = fake_runner_new(&b.f);
    uint64_t before = hd_mem_failed();
    hd_mem_fail_at(nth);
    b.e = hd_engine_new(b.r, NULL, &b.o, &err);
    if (!b.e) assert_int_equal(err.code, HD_ENOMEM);
    for (int i = 0; i < 4 && b.e; i++) {
        hd_request r = plain(prompt, LENGTH, 6);
        r.n = 1 + i % 3;
        r.beams = i == 3 ? 3 : 0;
        r.n = i == 3 ? 2 : r.n;
        r.logprobs = 2;
        r.prompt_logprobs = i == 1;
        r.event = take;
        r.arg = &a[i];
        err = (hd_error){0};
        int rc = hd_engine_submit(b.e, &r, NULL, &err);
        if (rc) assert_int_equal(rc, HD_ENOMEM);
        if (rc) a[i].lasts = 1;
        one_step(&b);
    }
    if (b.e) run_all(&b);
    hd_mem_fail_at(0);
    *failed = hd_mem_failed() > before;
    for (int i = 0; i < 4 && b.e; i++) assert_int_equal(a[i].lasts, 1);
    if (b.e) bench_close(&b);
    else b.r->close(b.r);
}

static void test_memory(void **state)
{
    (void)state;
    int injected = 0;
    bool failed = true;
    for (uint64_t nth = 1; failed && nth < 2000; nth++) {
        run_without_memory(nth, &failed);
        injected += failed;
    }
    print_message("           %d allocations failed, one at a time\n", injected);
    assert_true(injected > 30 && !failed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_n), cmocka_unit_test(test_best_of), cmocka_unit_test(test_sharing), cmocka_unit_test(test_beams),
        cmocka_unit_test(test_endings), cmocka_unit_test(test_stop_tokens), cmocka_unit_test(test_constraints),
        cmocka_unit_test(test_prompt_logprobs), cmocka_unit_test(test_embedding), cmocka_unit_test(test_prefix_and_salt),
        cmocka_unit_test(test_prefix_at_once), cmocka_unit_test(test_steps_under_way), cmocka_unit_test(test_pieces_under_way), cmocka_unit_test(test_useless_steps), cmocka_unit_test(test_cancel), cmocka_unit_test(test_cancel_in_callback),
        cmocka_unit_test(test_deadline), cmocka_unit_test(test_drain), cmocka_unit_test(test_freed_while_busy), cmocka_unit_test(test_failing_model),
        cmocka_unit_test(test_priority_order), cmocka_unit_test(test_slowdown), cmocka_unit_test(test_refusals), cmocka_unit_test(test_threads),
        cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
