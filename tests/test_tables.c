/* Tables that lookups read: gradients exchanged as rows where that is fewer bytes, tables in columns and rows; the same numbers as one rank. */
#include "base/term.h"
#include "../checks/src/ranks_run.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static run_job job_of(const char *model, const char *parallel, int64_t micro, int64_t batch)
{
    run_job j = {.micro = micro, .batch = batch, .sequence = 8, .precision = HD_F32, .optimizer = HD_ADAMW, .root = TEST_SOURCE_DIR};
    snprintf(j.model, sizeof j.model, "%s", model);
    snprintf(j.parallel, sizeof j.parallel, "%s", parallel);
    return j;
}

/* Bytes that a rank sends in a step, as its program says. */
static int64_t bytes_of(const char *model, const char *parallel, int64_t micro, int64_t batch)
{
    enum { KINDS = 32 };
    run_job j = job_of(model, parallel, micro, batch);
    hd_error err = {0};
    hd_session s = {0};
    hd_session_options o = run_options(&j);
    hd_comm_count count[KINDS];
    int64_t bytes = 0;
    if (run_plan(&j, &o.plan, &err) || hd_session_init(&s, run_graph(&j, &err), NULL, &o, &err)) fail_msg("%s %s: %s", model, parallel, err.message);
    int n = hd_program_count(s.program[HD_TRAIN_PROGRAM], count, KINDS);
    for (int i = 0; i < n; i++) bytes += count[i].bytes;
    hd_session_free(&s);
    return bytes;
}

static void test_fewer_bytes(void **state)
{
    (void)state;
    static const char *const parallel[][2] = {{"dp=2,sparse=0", "dp=2"}, {"dp=4,sparse=0", "dp=4"}, {"dp=2,zero=1,sparse=0", "dp=2,zero=1"}, {"dp=4,zero=2,sparse=0", "dp=4,zero=2"}};
    for (size_t i = 0; i < sizeof parallel / sizeof *parallel; i++)
        for (int64_t micro = 1; micro <= 3; micro += 2) {
            int64_t few = bytes_of("two_tower", parallel[i][1], micro, 8), all = bytes_of("two_tower", parallel[i][0], micro, 8);
            if (!(few < all)) fail_msg("%s, %d micro-batches: %lld bytes, %lld without rows", parallel[i][1], (int)micro, (long long)few, (long long)all);
            int64_t many = bytes_of("two_tower", parallel[i][1], micro, 4096), whole = bytes_of("two_tower", parallel[i][0], micro, 4096);
            assert_int_equal(many, whole); /* more samples than rows */
        }
    assert_true(bytes_of("llama", "dp=2", 1, 4) < bytes_of("llama", "dp=2,sparse=0", 1, 4));
    assert_int_equal(bytes_of("llama-tied", "dp=2", 1, 4), bytes_of("llama-tied", "dp=2,sparse=0", 1, 4)); /* the head's gradient is summed anyway */
}

static void run(const char *model, const char *parallel, int64_t micro, run_result *out)
{
    run_job j = job_of(model, parallel, micro, 96);
    hd_error err = {0};
    *out = (run_result){0};
    if (run_all_ranks(&j, out, &err)) fail_msg("%s %s: %s", model, parallel, err.message);
}

/* Rows are added in the order of one rank: what reaches the table is the same to the bit, as what each sample gives is. */
static void test_same_bits(void **state)
{
    (void)state;
    static run_result one, many;
    run("two_tower", "", 1, &one);
    for (int ranks = 2; ranks <= 4; ranks++) {
        char parallel[32];
        snprintf(parallel, sizeof parallel, "dp=%d", ranks);
        run("two_tower", parallel, 1, &many);
        for (int t = 0; t < one.n_tensors; t++) {
            const run_tensor *a = &one.tensor[t], *b = run_find_tensor(&many, a->path, a->count);
            if (!strstr(a->path, "table")) continue;
            assert_memory_equal(a->data, b->data, (size_t)a->count * sizeof *a->data);
        }
        run_result_free(&many);
    }
    run_result_free(&one);
}

/* Each rank has its columns or rows, of the optimizer's states too. */
static void test_shares(void **state)
{
    (void)state;
    static const struct { const char *parallel; int64_t tables; } cases[] = { /* elements of tables and their biases on rank 0 */
        {"dp=4", 800 * 17}, {"tp=4,tables=columns", 800 * 4 + 800}, {"tp=4,tables=rows", 200 * 17}, {"dp=2,tp=2,tables=columns", 800 * 8 + 800},
    };
    static run_result r, one;
    run("two_tower", "", 2, &one);
    int64_t others = one.rank[0].parameter_bytes / 4 - 800 * 17;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        run("two_tower", cases[i].parallel, 2, &r);
        assert_int_equal(r.rank[0].parameter_bytes / 4, cases[i].tables + others);
        for (int s = 0; s < RUN_STEPS; s++)
            if (!(fabs(r.loss[s] - one.loss[s]) <= 1e-5)) fail_msg("%s: loss %.7f instead of %.7f in step %d", cases[i].parallel, r.loss[s], one.loss[s], s);
        run_result_free(&r);
    }
    run_result_free(&one);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_fewer_bytes), cmocka_unit_test(test_same_bits), cmocka_unit_test(test_shares)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
