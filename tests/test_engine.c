/* test_engine.c: what an engine puts out is the same whatever else it does (fake_runner.h notices every wrong block). */
#include "engine_bench.h"

enum { PROMPTS = 7, ANSWER = 40, LONGEST = 101 };
static const int64_t lengths[PROMPTS] = {1, 3, 16, 17, 63, 64, 101};

/* Prompts that share beginnings: the longer one begins as the shorter ones do, but for the odd ones. */
static void make_prompt(int which, int32_t *out)
{
    hd_rng rng = hd_rng_new(which % 2 ? 100 : (uint64_t)which);
    for (int64_t i = 0; i < lengths[which]; i++) out[i] = (int32_t)hd_rng_below(&rng, 90);
}

static hd_request request_of(int which, int32_t *prompt)
{
    make_prompt(which, prompt);
    hd_request r = hd_request_default();
    r.prompt = prompt;
    r.n_prompt = lengths[which];
    r.max_tokens = ANSWER;
    r.logprobs = TOP;
    return r;
}

static void check_greedy(const bench *b, int which, const answer *a)
{
    int32_t prompt[LONGEST], tokens[ANSWER];
    float logprobs[ANSWER];
    make_prompt(which, prompt);
    greedy_reference(&b->f, prompt, lengths[which], ANSWER, tokens, logprobs);
    assert_int_equal(a->n[0], ANSWER);
    assert_int_equal(a->finish[0], HD_FINISH_LENGTH);
    assert_int_equal(a->lasts, 1);
    assert_memory_equal(a->tokens[0], tokens, sizeof tokens);
    assert_memory_equal(a->logprobs[0], logprobs, sizeof logprobs);
    assert_memory_equal(a->likeliest[0], tokens, sizeof tokens);
}

/* A neighbour: anything at all. */
static hd_request random_request(hd_rng *rng, int32_t *prompt)
{
    hd_request r = request_of((int)hd_rng_below(rng, PROMPTS), prompt);
    r.max_tokens = 1 + (int64_t)hd_rng_below(rng, ANSWER);
    r.sampling.temperature = hd_rng_below(rng, 3) ? 0.9 : 0;
    r.sampling.seed = hd_rng_below(rng, 100);
    r.n = 1 + (int)hd_rng_below(rng, 3);
    r.logprobs = (int)hd_rng_below(rng, 5) - 1;
    r.prompt_logprobs = hd_rng_below(rng, 5) == 0;
    r.priority = (int)hd_rng_below(rng, 3);
    if (hd_rng_below(rng, 6) == 0) r.best_of = r.n + 1;
    if (hd_rng_below(rng, 20) == 0) r.embed = true, r.n = 1, r.best_of = 0;
    return r;
}

/* The prompts, each amid neighbours; cancels some of the neighbours on the way. */
static hd_engine_stats run_amid(bench *b, int neighbours, uint64_t seed, bool beams)
{
    int32_t prompts[PROMPTS][LONGEST], other[LONGEST];
    answer *a = hd_calloc(PROMPTS, sizeof *a), *rest = hd_calloc((size_t)neighbours + 1, sizeof *rest);
    uint64_t *ids = hd_calloc((size_t)neighbours + 1, sizeof *ids);
    hd_rng rng = hd_rng_new(seed);
    bench_open(b);
    for (int i = 0, mine = 0; i < neighbours + PROMPTS; i++) {
        if (mine < PROMPTS && (i * PROMPTS / (neighbours + PROMPTS) == mine || i - mine == neighbours)) {
            submit(b, request_of(mine, prompts[mine]), &a[mine]);
            mine++;
        } else {
            hd_request r = random_request(&rng, other);
            if (beams && hd_rng_below(&rng, 3) == 0) r.beams = 3, r.best_of = 0, r.n = 2, r.embed = false;
            ids[i - mine] = submit(b, r, &rest[i - mine]);
        }
        if (i % 3 == 0) one_step(b);
    }
    for (int i = 0; i < neighbours; i += 5) {
        hd_engine_cancel(b->e, ids[i]);
        one_step(b);
        assert_int_equal(rest[i].lasts, 1);
    }
    run_all(b);
    for (int i = 0; i < PROMPTS; i++) check_greedy(b, i, &a[i]);
    for (int i = 0; i < neighbours; i++) assert_int_equal(rest[i].lasts, 1);
    hd_engine_stats s = bench_close(b);
    hd_free(a);
    hd_free(rest);
    hd_free(ids);
    return s;
}

/* ---- tests ---- */

static void test_alone(void **state)
{
    (void)state;
    for (int i = 0; i < PROMPTS; i++) {
        bench b = bench_default();
        int32_t prompt[LONGEST];
        answer a = {0};
        bench_open(&b);
        submit(&b, request_of(i, prompt), &a);
        run_all(&b);
        check_greedy(&b, i, &a);
        bench_close(&b);
    }
}

static void test_amid(void **state)
{
    (void)state;
    bench b = bench_default();
    hd_engine_stats s = run_amid(&b, 31, 1, false);
    assert_true(s.cached_tokens > 0 && s.copies > 0);
    assert_int_equal(s.preemptions, 0);
}

static void test_without_prefix_cache(void **state)
{
    (void)state;
    bench b = bench_default();
    b.o.prefix_cache = false;
    assert_int_equal(run_amid(&b, 31, 2, true).cached_tokens, 0);
}

static void test_without_chunks(void **state)
{
    (void)state;
    bench b = bench_default();
    b.o.chunked_prefill = false;
    run_amid(&b, 31, 3, true);
}

static void test_small_budget(void **state)
{
    (void)state;
    bench b = bench_default();
    b.o.token_budget = 9;
    run_amid(&b, 31, 4, true);
    b.o.token_budget = 0;
    b.o.prompt_budget = 3;
    run_amid(&b, 31, 4, true);
}

static void test_preempt_recompute(void **state)
{
    (void)state;
    for (int cache = 0; cache < 2; cache++) {
        bench b = bench_default();
        b.o.force_preempt = 3;
        b.o.prefix_cache = cache;
        assert_true(run_amid(&b, 31, 5, true).preemptions > 20);
    }
}

static void test_preempt_swap(void **state)
{
    (void)state;
    bench b = bench_default();
    b.o.force_preempt = 3;
    b.o.preemption = HD_PREEMPT_SWAP;
    b.o.swap_bytes = 1 << 20;
    hd_engine_stats s = run_amid(&b, 31, 6, true);
    assert_true(s.swaps_out > 20 && s.swaps_in > 20);
    b.o.swap_bytes = 14 * 4 * 16; /* little: some is recomputed */
    s = run_amid(&b, 31, 7, true);
    assert_true(s.swaps_out > 5 && s.preemptions > s.swaps_out);
}

static void test_speculation(void **state)
{
    (void)state;
    for (int kind = 1; kind < 4; kind++) {
        bench b = bench_default();
        b.f.order = 1;
        if (kind & 1) b.o.ngram = 4;
        if (kind & 2) {
            b.o.draft_tokens = 3;
            b.df = b.f;
            b.df.seed = 7; /* the same local part: mostly right */
            b.df.block = 3;
            b.df.blocks = kind == 2 ? 100 : 900;
            b.df.max_tokens = 11;
            b.df.max_parts = 5;
        }
        hd_engine_stats s = run_amid(&b, 31, 8, true);
        assert_true(s.proposed > 100 && s.accepted > 20 && s.accepted < s.proposed);
    }
}

static void test_priorities(void **state)
{
    (void)state;
    bench b = bench_default();
    b.o.by_priority = true;
    b.o.max_sequences = 5;
    b.f.blocks = 100;
    assert_true(run_amid(&b, 31, 9, true).preemptions > 0);
}

static void test_reserve(void **state)
{
    (void)state;
    bench b = bench_default();
    b.o.kv_policy = HD_KV_RESERVE;
    b.f.blocks = 40 * 5; /* five reservations */
    hd_engine_stats s = run_amid(&b, 31, 10, false);
    assert_true(s.most_running <= 5);
    b.o.force_preempt = 4;
    run_amid(&b, 31, 11, false);
}

static void test_few_blocks(void **state)
{
    (void)state;
    for (int kind = 0; kind < 8; kind++) {
        bench b = bench_default();
        b.f.blocks = 3 * 36; /* three of the longest with all their choices, if they share */
        b.o.prefix_cache = kind & 1;
        b.o.chunked_prefill = kind & 2;
        if (kind & 4) b.o.preemption = HD_PREEMPT_SWAP, b.o.swap_bytes = 1 << 20;
        hd_engine_stats s = run_amid(&b, 31, 12 + (uint64_t)kind, true);
        assert_true(s.preemptions > 0);
    }
}

/* Random settings, few blocks, many kinds of neighbours. */
static void storm(uint64_t seed)
{
    hd_rng rng = hd_rng_new(seed);
    bench b = bench_default();
    b.f.block = 1 + (int64_t)hd_rng_below(&rng, 9);
    b.f.order = (int)hd_rng_below(&rng, 3);
    b.f.max_tokens = 8 + (int64_t)hd_rng_below(&rng, 120);
    b.f.max_rows = 8 + (int64_t)hd_rng_below(&rng, 60);
    b.f.blocks = (101 + ANSWER + b.f.block) / b.f.block + 4 * ((ANSWER + 2 * b.f.block) / b.f.block) + (int64_t)hd_rng_below(&rng, 60);
    b.o.max_sequences = 4 + (int64_t)hd_rng_below(&rng, 20);
    b.o.prefix_cache = hd_rng_below(&rng, 2);
    b.o.chunked_prefill = hd_rng_below(&rng, 3);
    b.o.by_priority = hd_rng_below(&rng, 2);
    b.o.prompt_budget = hd_rng_below(&rng, 2) ? 5 : 0;
    b.o.force_preempt = (int64_t)hd_rng_below(&rng, 6);
    b.o.ngram = hd_rng_below(&rng, 2) ? 4 : 0;
    if (hd_rng_below(&rng, 2)) b.o.preemption = HD_PREEMPT_SWAP, b.o.swap_bytes = (int64_t)hd_rng_below(&rng, 100000);
    if (hd_rng_below(&rng, 3) == 0) {
        b.o.draft_tokens = 1 + (int64_t)hd_rng_below(&rng, 4);
        b.df = b.f;
        b.df.block = 1 + (int64_t)hd_rng_below(&rng, 7);
        if (hd_rng_below(&rng, 3) == 0) b.df.fail_at = 6; /* goes on without */
        b.df.max_parts = 1 + (int64_t)hd_rng_below(&rng, 8);
    }
    bool reserve = hd_rng_below(&rng, 5) == 0;
    if (reserve) b.o.kv_policy = HD_KV_RESERVE, b.f.blocks = 6 * ((b.f.max_context + b.f.block) / b.f.block);
    run_amid(&b, 5 + (int)hd_rng_below(&rng, 40), seed, !reserve);
}

static void test_storms(void **state)
{
    (void)state;
    const char *wish = getenv("STORMS"), *first = getenv("STORM");
    uint64_t n = wish ? strtoull(wish, NULL, 10) : 25, from = first ? strtoull(first, NULL, 10) : 1;
    for (uint64_t seed = from; seed < from + n; seed++) {
        if (wish) print_message("storm %llu\n", (unsigned long long)seed);
        storm(seed);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_alone), cmocka_unit_test(test_amid), cmocka_unit_test(test_without_prefix_cache), cmocka_unit_test(test_without_chunks),
        cmocka_unit_test(test_small_budget), cmocka_unit_test(test_preempt_recompute), cmocka_unit_test(test_preempt_swap), cmocka_unit_test(test_speculation),
        cmocka_unit_test(test_priorities), cmocka_unit_test(test_reserve), cmocka_unit_test(test_few_blocks),
        cmocka_unit_test(test_storms),
    };
    int failed = 0;
    for (; bench_depth <= 3; bench_depth++) failed += cmocka_run_group_tests(tests, NULL, NULL);
    return failed;
}
