/* A served model over ranks, tensor-parallel, in a pipeline and both: one rank's logits to the bit, whatever else is in the batch, whatever does not divide, of weights in GGUF's blocks
 * too; blocks of keys and values that move; an engine that finds prefixes and swaps. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>
#include "base/mem.h"
#include "base/thread.h"
#include "serve/engine.h"
#include "serve/lm_orders.h"
#include "serve/lm_ranks.h"
#include "serve/lm_runner.h"
#include "random_steps.h"

#define DATA TEST_SOURCE_DIR "/tests/data/"
static hd_lm_runner_options options(const char *parallel, hd_dtype kv, hd_dtype precision)
{
    hd_lm_runner_options o = hd_lm_runner_options_default();
    o.precision = precision, o.kv = kv, o.threads = 2, o.context = LENGTH, o.block = BLOCK, o.max_tokens = 40, o.max_parts = SEQUENCES, o.max_rows = 40;
    o.parallel = parallel;
    return o;
}

static int ranks_of(const char *parallel)
{
    hd_parallel p;
    assert_int_equal(hd_lm_parallel_parse(parallel, &p, NULL), 0);
    return (int)(p.tp * p.pp);
}

/* One rank, then the ranks over other batches. */
static void compare(const char *path, const hd_lm_config *c, const char *parallel, hd_dtype kv, hd_dtype precision)
{
    hd_error e = {0};
    for (int round = 0; round < 2; round++) {
        hd_runner *r;
        hd_lm_runner_info info;
        hd_lm_runner_options o = options(round ? parallel : NULL, kv, precision);
        need(c ? hd_lm_runner_open_random(&r, c, 5, &o, &info, &e) : hd_lm_runner_open(&r, path, &o, &info, &e), &e);
        assert_int_equal(info.kv_bytes, r->blocks * r->block_bytes);
        assert_int_equal(info.ranks, round ? ranks_of(parallel) : 1);
        draw_text(9, r->vocab);
        run_all(r, 7 + (uint64_t)round);
        if (round && memcmp(want, got, sizeof want)) fail_msg("%s over %s: other bits than one rank's", path ? path : "random weights", parallel);
        memcpy(want, got, sizeof want);
        r->close(r);
    }
}

static void test_families(void **state)
{
    (void)state;
    static const char *const models[] = {"gpt2", "llama3", "mistral-window", "qwen2", "qwen3", "phi3", "gemma2", "gemma3"};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        char dir[1024];
        snprintf(dir, sizeof dir, DATA "models/logits/%s", models[i]);
        compare(dir, NULL, "tp=2", HD_F32, HD_F32);
        compare(dir, NULL, "pp=2", HD_F32, HD_F32);
    }
}

static void test_element_types(void **state)
{
    (void)state;
    compare(DATA "models/logits/llama3", NULL, "tp=2", HD_I8, HD_F32);
    compare(DATA "models/logits/llama3", NULL, "tp=3", HD_F16, HD_F32);
    compare(DATA "models/logits/mistral-window", NULL, "tp=2", HD_BF16, HD_BF16);
    compare(DATA "models/logits/qwen2", NULL, "pp=2", HD_I8, HD_BF16);
    compare(DATA "models/logits/gemma3", NULL, "tp=2,pp=2", HD_F16, HD_F32);
}

static hd_lm_config config(int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t mlp, int64_t vocab)
{
    hd_lm_config c;
    hd_lm_config_preset(&c, HD_ARCH_QWEN3);
    c.width = 37, c.layers = 3, c.heads = heads, c.kv_heads = kv_heads, c.head_dim = head_dim, c.mlp_width = mlp, c.vocab = vocab, c.max_positions = 64;
    c.init_std = 0.2;
    return c;
}

/* Heads, hidden features and words that don't divide by the ranks; fewer key/value heads than ranks. */
static void test_odd_sizes(void **state)
{
    (void)state;
    static const struct { int64_t heads, kv_heads, head_dim, mlp, vocab; const char *parallel; } cases[] = {
        {6, 3, 8, 41, 61, "tp=2"}, {5, 5, 6, 7, 13, "tp=3"}, {5, 1, 6, 11, 17, "tp=2"}, {8, 2, 4, 9, 19, "tp=4"}, {6, 2, 4, 10, 11, "tp=4"},
        {6, 3, 8, 41, 61, "pp=3"}, {5, 5, 6, 7, 13, "pp=2,layers=1:2"}, {5, 1, 6, 11, 17, "tp=2,pp=3"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hd_lm_config c = config(cases[i].heads, cases[i].kv_heads, cases[i].head_dim, cases[i].mlp, cases[i].vocab);
        compare(NULL, &c, cases[i].parallel, HD_F32, HD_F32);
    }
}

/* Large enough for products that could begin with what they are added to. */
static void test_sums_at_cuts(void **state)
{
    (void)state;
    hd_lm_config c = config(8, 2, 32, 512, 500);
    c.width = 256;
    c.init_std = 0.02;
    compare(NULL, &c, "pp=3", HD_F32, HD_F32);
}

/* Every block type of GGUF, read from the file where it lies. */
static void test_blocks_of_weights(void **state)
{
    (void)state;
    compare(DATA "gguf/llama-mixed.gguf", NULL, "tp=2", HD_DTYPE_COUNT, HD_DTYPE_COUNT);
    compare(DATA "gguf/llama-mixed.gguf", NULL, "pp=2", HD_DTYPE_COUNT, HD_DTYPE_COUNT);
    compare(DATA "gguf/llama-mixed.gguf", NULL, "tp=2,pp=2", HD_DTYPE_COUNT, HD_DTYPE_COUNT);
}

static void test_memory(void **state)
{
    (void)state;
    hd_error e = {0};
    static const struct { int64_t heads, kv_heads; const char *parallel; int64_t most, all; } cases[] = { /* heads' keys in all layers: on the rank that has most, on all */
        {6, 3, NULL, 9, 9}, {6, 3, "tp=2", 6, 9}, {5, 1, "tp=2", 3, 6}, {8, 2, "tp=4", 3, 12}, {6, 3, "pp=2,layers=2:1", 6, 9}, {6, 3, "tp=2,pp=3", 2, 9},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hd_lm_config c = config(cases[i].heads, cases[i].kv_heads, 8, 40, 50);
        hd_lm_runner_options o = options(cases[i].parallel, HD_I8, HD_F32);
        hd_lm_runner_info info;
        hd_runner *r;
        need(hd_lm_runner_open_random(&r, &c, 1, &o, &info, &e), &e);
        int64_t head = r->blocks * BLOCK * 2 * (8 + 4);
        assert_int_equal(info.kv_bytes, cases[i].all * head);
        assert_int_equal(info.kv_rank_bytes, cases[i].most * head);
        assert_int_equal(info.threads, i ? 1 : 2);
        r->close(r);
    }
}

/* A block copied, or saved and restored elsewhere, serves as well: on all ranks. */
static void move_blocks(const char *parallel)
{
    hd_error e = {0};
    hd_runner *r;
    hd_lm_runner_options o = options(parallel, HD_I8, HD_F32);
    need(hd_lm_runner_open(&r, DATA "models/logits/llama3", &o, NULL, &e), &e);
    draw_text(3, r->vocab);
    expect_blocks_move(r);
    r->close(r);
}

static void test_blocks_move(void **state)
{
    (void)state;
    move_blocks("tp=2");
    move_blocks("pp=2");
    move_blocks("tp=2,pp=2");
}

/* ---- an engine over ranks ---- */

enum { REQUESTS = 6, ANSWER = 9 };
typedef struct answer { int32_t tokens[ANSWER]; float logprobs[ANSWER]; int64_t n; } answer;

static void take(void *arg, const hd_engine_event *event)
{
    answer *a = arg;
    assert_true(a->n + event->n_tokens <= ANSWER && event->finish != HD_FINISH_ERROR);
    for (int64_t i = 0; i < event->n_tokens; i++, a->n++) a->tokens[a->n] = event->tokens[i], a->logprobs[a->n] = event->logprobs[i].logprob;
}

/* All requests, which begin alike, on one engine, or each on one of its own. */
static hd_engine_stats answer_all(hd_runner *r, const hd_engine_options *o, bool alone, answer *a)
{
    hd_error err = {0};
    hd_engine_stats stats = {0};
    hd_engine *e = NULL;
    memset(a, 0, REQUESTS * sizeof *a);
    for (int i = 0; i < REQUESTS; i++) {
        hd_request q = hd_request_default();
        q.prompt = text[i % 2], q.n_prompt = 12 + i, q.max_tokens = ANSWER, q.logprobs = 0, q.ignore_eos = true, q.event = take, q.arg = &a[i];
        if (!e && !(e = hd_engine_new(r, NULL, o, &err))) fail_msg("%s", err.message);
        need(hd_engine_submit(e, &q, NULL, &err), &err);
        if (!alone && i + 1 < REQUESTS) continue;
        for (bool busy = true; busy;) need(hd_engine_step(e, &busy, &err), &err);
        hd_engine_stats_read(e, &stats);
        hd_engine_free(e);
        e = NULL;
    }
    return stats;
}

static void compare_engines(const char *parallel)
{
    hd_error err = {0};
    hd_runner *r;
    static answer alone[REQUESTS], amid[REQUESTS];
    hd_lm_config c = config(6, 3, 8, 41, 61);
    hd_lm_runner_options o = options(parallel, HD_F32, HD_F32);
    o.max_parts = 4;
    need(hd_lm_runner_open_random(&r, &c, 5, &o, NULL, &err), &err);
    draw_text(2, 61);
    hd_engine_options bare = hd_engine_options_default(), all = bare;
    bare.prefix_cache = bare.chunked_prefill = false;
    all.force_preempt = 3, all.preemption = HD_PREEMPT_SWAP, all.swap_bytes = 1 << 20, all.token_budget = 9;
    answer_all(r, &bare, true, alone);
    hd_engine_stats s = answer_all(r, &all, false, amid);
    assert_true(s.swaps_out > 0 && s.swaps_in > 0 && s.cached_tokens > 0);
    for (int i = 0; i < REQUESTS; i++) {
        assert_int_equal(alone[i].n, ANSWER);
        assert_memory_equal(&alone[i], &amid[i], sizeof alone[i]);
    }
    r->close(r);
}

static void test_engine(void **state)
{
    (void)state;
    compare_engines("tp=2");
    compare_engines("pp=2");
    compare_engines("tp=2,pp=3");
}

/* ---- what one process tells the others ---- */

typedef struct talk { hd_comm *comm[2]; hd_runner sizes; hd_batch batch; } talk;

static void tell_all(hd_lm_orders *o, const talk *t)
{
    hd_error e = {0};
    const hd_lm_order all[] = {{.kind = HD_LM_ORDER_STEP, .batch = hd_lm_orders_keep(o, &t->batch)}, {.kind = HD_LM_ORDER_COPY, .from = 3, .to = 5}, {.kind = HD_LM_ORDER_CLOSE}};
    for (int i = 0; i < 3; i++) need(hd_lm_orders_tell(o, &all[i], &e), &e);
}

static void hear_all(hd_lm_orders *o, const talk *t)
{
    hd_error e = {0};
    hd_lm_order got_order;
    need(hd_lm_orders_hear(o, &got_order, &e), &e);
    assert_true(got_order.kind == HD_LM_ORDER_STEP && got_order.batch.n_parts == t->batch.n_parts);
    for (int64_t i = 0; i < t->batch.n_parts; i++) {
        const hd_batch_part *a = &t->batch.parts[i], *b = &got_order.batch.parts[i];
        assert_true(a->n == b->n && a->position == b->position && a->rows == b->rows && !memcmp(a->tokens, b->tokens, (size_t)a->n * sizeof *a->tokens));
        assert_memory_equal(a->blocks, b->blocks, (size_t)((a->position + a->n + BLOCK - 1) / BLOCK) * sizeof *a->blocks);
    }
    need(hd_lm_orders_hear(o, &got_order, &e), &e);
    assert_true(got_order.kind == HD_LM_ORDER_COPY && got_order.from == 3 && got_order.to == 5);
    need(hd_lm_orders_hear(o, &got_order, &e), &e);
    assert_true(got_order.kind == HD_LM_ORDER_CLOSE);
}

static void talk_as(void *arg, int who)
{
    const talk *t = arg;
    hd_error e = {0};
    hd_lm_orders o;
    hd_rank rank = {who, t->comm[who]};
    need(hd_lm_orders_init(&o, &rank, &t->sizes, &e), &e);
    (who ? hear_all : tell_all)(&o, t);
    hd_lm_orders_free(&o);
}

static void test_orders(void **state)
{
    (void)state;
    hd_error e = {0};
    const int32_t words[] = {5, 6, 7, 8, 9, 10, 11}, blocks[] = {4, 1, 0, 2};
    const hd_batch_part parts[] = {{words, 1, 24, blocks, 1}, {words + 1, 6, 3, blocks + 2, 0}};
    talk t = {.sizes = {.max_tokens = 7, .max_parts = 2, .max_context = 32, .block = BLOCK}, .batch = {parts, 2}};
    hd_team *team = hd_team_new(2, false, &e);
    need(!team, &e);
    need(hd_comm_local(2, 60, t.comm, &e), &e);
    hd_team_run(team, talk_as, &t);
    hd_comm_free(t.comm[0]);
    hd_comm_free(t.comm[1]);
    hd_team_free(team);
}

/* ---- what is refused ---- */

static void test_refusals(void **state)
{
    (void)state;
    static const struct { const char *parallel, *says; int code; } cases[] = {
        {"pp=4", "layers", HD_EINVAL}, {"pp=33", "at most pp=32", HD_EUNSUPPORTED}, {"pp=2,schedule=gpipe", "schedule", HD_EUNSUPPORTED}, {"dp=2", "dp", HD_EUNSUPPORTED}, {"cp=2", "cp", HD_EUNSUPPORTED}, {"tp=2,sp", "sp", HD_EUNSUPPORTED},
        {"auto", "auto", HD_EUNSUPPORTED}, {"tp=2|tp=1", "different meshes", HD_EUNSUPPORTED}, {"tp=two", "tp", HD_EINVAL}, {"ranks=2", "ranks", HD_EINVAL},
        {"tp=7", "6 heads", HD_EINVAL}, {"tp=4", "3 key/value heads", HD_EINVAL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hd_error e = {0};
        hd_runner *r;
        hd_lm_config c = config(6, 3, 8, 41, 61);
        hd_lm_runner_options o = options(cases[i].parallel, HD_F32, HD_F32);
        assert_int_equal(hd_lm_runner_open_random(&r, &c, 1, &o, NULL, &e), cases[i].code);
        if (!strstr(e.message, cases[i].says)) fail_msg("%s: %s", cases[i].parallel, e.message);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_families), cmocka_unit_test(test_element_types), cmocka_unit_test(test_odd_sizes), cmocka_unit_test(test_sums_at_cuts), cmocka_unit_test(test_blocks_of_weights),
        cmocka_unit_test(test_memory), cmocka_unit_test(test_blocks_move), cmocka_unit_test(test_engine), cmocka_unit_test(test_orders),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
