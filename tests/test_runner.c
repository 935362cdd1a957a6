/* A language model as a runner: its logits are those of all of a sequence at once without any cache, and, bit for bit, the same however the tokens are cut into
 * steps, whatever else is in them, and wherever the blocks lie; and so are the generator's. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <cmocka.h>
#include "../checks/src/model_run.h"
#include "base/mem.h"
#include "serve/generator.h"
#include "random_steps.h"

#define DATA TEST_SOURCE_DIR "/tests/data/models/logits/"
static const char *const models[] = {"gpt2", "llama3", "mistral-window", "qwen2", "qwen3", "gemma3"};

/* By the graph of evaluation, which keeps nothing: a sequence at a time. */
static int64_t reference(const char *dir, int64_t seed)
{
    model_run m;
    hd_lm_config c;
    hd_error e = {0};
    hd_tensor logits;
    double tokens[LENGTH], positions[LENGTH], zeros[LENGTH] = {0}, one = 1;
    hd_lm_options o = {.mode = HD_LM_EVAL, .tokens = LENGTH, .logits = true, .compute = HD_F32, .param = HD_F32};
    need(hd_lm_config_load(&c, dir, &e), &e);
    need(model_run_open(&m, hd_lm_graph(&c, &o, &e), "cpu", 1, 1, &e), &e);
    need(hd_lm_weights_load(m.store, &c, dir, &e), &e);
    assert_true(c.vocab <= MOST_VOCAB);
    draw_text((uint64_t)seed, c.vocab);
    for (int s = 0; s < SEQUENCES; s++) {
        for (int i = 0; i < LENGTH; i++) {
            tokens[i] = text[s][i];
            positions[i] = i;
        }
        const struct { const char *name; const double *v; int n; } inputs[] = {
            {"tokens", tokens, LENGTH}, {"positions", positions, LENGTH}, {"segments", zeros, LENGTH}, {"targets", zeros, LENGTH}, {"inv_divisor", &one, 1}};
        for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++) need(model_run_set(&m, inputs[i].name, inputs[i].v, inputs[i].n, &e), &e);
        need(hd_exec_step(m.exec, NULL, &e), &e);
        need(hd_exec_output(m.exec, "logits", &logits, &e), &e);
        for (int i = 0; i < LENGTH; i++) memcpy(want[s][i], (const float *)logits.data + i * c.vocab, (size_t)c.vocab * sizeof(float));
    }
    model_run_close(&m);
    return c.vocab;
}

static hd_runner *open_runner(const char *dir, int threads, hd_dtype kv, hd_dtype precision)
{
    hd_runner *r;
    hd_error e = {0};
    hd_lm_runner_info info;
    hd_lm_runner_options o = hd_lm_runner_options_default();
    o.precision = precision, o.kv = kv, o.threads = threads, o.context = LENGTH, o.block = BLOCK, o.max_tokens = 40, o.max_parts = SEQUENCES, o.max_rows = 40;
    need(hd_lm_runner_open(&r, dir, &o, &info, &e), &e);
    assert_int_equal(info.kv_bytes, r->blocks * r->block_bytes);
    assert_true(r->blocks >= BLOCKS_EACH);
    return r;
}

static void expect_near(const char *name, int64_t vocab, double tolerance)
{
    double most = 0, worst = 0;
    for (int s = 0; s < SEQUENCES; s++)
        for (int i = 0; i < LENGTH; i++)
            for (int v = 0; v < vocab; v++) {
                double d = fabs((double)got[s][i][v] - (double)want[s][i][v]);
                most = fmax(most, fabs((double)want[s][i][v]));
                if (!(d <= worst)) worst = isfinite(d) ? d : INFINITY;
            }
    if (!(worst <= tolerance * most)) fail_msg("%s: logits differ by %g of %g", name, worst, most);
}

static void test_equal_to_evaluation(void **state)
{
    (void)state;
    char dir[1024];
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        snprintf(dir, sizeof dir, DATA "%s", models[i]);
        int64_t vocab = reference(dir, (int64_t)i);
        hd_runner *r = open_runner(dir, 1, HD_F32, HD_F32);
        run_all(r, 7);
        expect_near(models[i], vocab, 2e-6);
        r->close(r);
    }
}

static void test_same_bits(void **state)
{
    (void)state;
    char dir[1024];
    static const hd_dtype kv[] = {HD_F32, HD_BF16, HD_F16, HD_I8};
    static const double loose[] = {2e-6, 2e-2, 4e-3, 4e-2};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++)
        for (int k = 0; k < 4; k++) {
            snprintf(dir, sizeof dir, DATA "%s", models[i]);
            int64_t vocab = reference(dir, 5);
            for (int round = 0; round < 3; round++) {
                hd_runner *r = open_runner(dir, 1 + round, kv[k], HD_F32);
                run_all(r, 11 + (uint64_t)round);
                if (!round) expect_near(models[i], vocab, loose[k]);
                if (!round) memcpy(want, got, sizeof want);
                else if (memcmp(want, got, sizeof want)) fail_msg("%s with %s keys: other bits in another batch", models[i], hd_dtype_name(kv[k]));
                r->close(r);
            }
        }
}

/* A block copied, or saved and restored elsewhere, serves as well. */
static void test_blocks_move(void **state)
{
    (void)state;
    reference(DATA "llama3", 3);
    hd_runner *r = open_runner(DATA "llama3", 1, HD_I8, HD_F32);
    expect_blocks_move(r);
    r->close(r);
}

/* One sequence in pieces, back and on again; a prompt longer than a step. */
static void test_generator(void **state)
{
    (void)state;
    hd_generator g;
    hd_error e = {0};
    const float *logits;
    int64_t vocab = reference(DATA "gemma3", 9);
    hd_generator_options o = {.precision = HD_F32, .threads = 2, .context = LENGTH, .chunk = 5};
    need(hd_generator_open(&g, DATA "gemma3", &o, &e), &e);
    size_t bytes = (size_t)vocab * sizeof(float);
    for (int i = 0; i < LENGTH; i++) {
        need(hd_generator_feed(&g, &text[1][i], 1, &logits, &e), &e);
        memcpy(got[1][i], logits, bytes);
    }
    for (int s = 0; s < SEQUENCES; s++)
        if (s != 1) memcpy(got[s], want[s], sizeof *got);
    expect_near("gemma3", vocab, 2e-6);
    static const int pieces[][2] = {{0, 13}, {13, LENGTH}, {4, 6}, {6, 21}, {0, LENGTH}}; /* from where, to where */
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        if (pieces[i][0]) hd_generator_rewind(&g, pieces[i][0]);
        else hd_generator_reset(&g);
        need(hd_generator_feed(&g, text[1] + pieces[i][0], pieces[i][1] - pieces[i][0], &logits, &e), &e);
        assert_int_equal(g.length, pieces[i][1]);
        assert_memory_equal(logits, got[1][pieces[i][1] - 1], bytes);
    }
    assert_int_equal(hd_generator_feed(&g, text[1], 1, &logits, &e), HD_EINVAL); /* the context is full */
    hd_generator_reset(&g);
    assert_int_equal(hd_generator_feed(&g, text[1], 0, &logits, &e), HD_EINVAL);
    assert_int_equal(hd_generator_feed(&g, &(int32_t){(int32_t)vocab}, 1, &logits, &e), HD_EINVAL);
    hd_generator_close(&g);
}

static void test_refusals(void **state)
{
    (void)state;
    hd_runner *r = open_runner(DATA "llama3", 1, HD_F32, HD_F32);
    int32_t table[BLOCKS_EACH] = {0, 1, 2, 3}, tokens[64] = {0};
    const hd_batch_part bad[] = {{tokens, LENGTH + 1, 0, table, 0}, {tokens, 1, LENGTH, table, 0}, {tokens, 0, 0, table, 0}, {tokens, 1, 0, table, 2}, {tokens, 1, -1, table, 0}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        hd_error e = {0};
        assert_int_equal(hd_runner_step(r, &(hd_batch){&bad[i], 1}, &e), HD_EINVAL);
    }
    r->close(r);
    hd_lm_runner_options o = hd_lm_runner_options_default();
    hd_error e = {0};
    o.block = 12;
    assert_int_equal(hd_lm_runner_open(&r, DATA "llama3", &o, NULL, &e), HD_EINVAL);
    e = (hd_error){0};
    o.block = 16, o.kv_bytes = 100;
    assert_int_equal(hd_lm_runner_open(&r, DATA "llama3", &o, NULL, &e), HD_EMEMCAP);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_equal_to_evaluation), cmocka_unit_test(test_same_bits), cmocka_unit_test(test_blocks_move), cmocka_unit_test(test_generator),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
