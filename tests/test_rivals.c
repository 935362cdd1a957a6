/* test_rivals.c: planners of published rules: what their rules say comes out, pins are kept to, and where nothing can be had they say why. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "planners/planner.h"
#include "train/planning.h"

#define GIB ((int64_t)1 << 30)

typedef struct setting {
    hd_model model;
    hd_cluster cluster;
    hd_planning planning;
    hd_planner_job job;
} setting;

static void close_setting(setting *s)
{
    hd_model_close(&s->model);
    hd_cluster_free(&s->cluster);
}

static void start(setting *s, const char *cluster, int64_t samples)
{
    hd_error err = {0};
    assert_int_equal(hd_cluster_find(cluster, &s->cluster, &err), 0);
    s->planning = (hd_planning){.model = &s->model, .cluster = &s->cluster, .precision = HD_BF16, .samples = samples, .sequence = 64,
                                .step = {.optimizer = HD_ADAMW, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .clip = 1}};
    assert_int_equal(hd_planning_network(&s->planning, &s->job.network, &err), 0);
    s->job.cluster = &s->cluster;
    s->job.pinned = hd_parallel_default();
    s->job.quiet = true;
}

/* A GPT of 4 layers, 4 heads and 64 features. */
static void open_gpt(setting *s, const char *cluster, int64_t samples)
{
    memset(s, 0, sizeof *s);
    hd_lm_config *c = &s->model.config;
    hd_lm_config_preset(c, HD_ARCH_GPT2);
    c->layers = 4, c->width = 64, c->heads = c->kv_heads = 4, c->head_dim = 16, c->mlp_width = 256, c->vocab = 512, c->max_positions = 64;
    start(s, cluster, samples);
}

static void open_network(setting *s, const char *file, const char *cluster, int64_t samples)
{
    char path[512];
    hd_error err = {0};
    memset(s, 0, sizeof *s);
    snprintf(path, sizeof path, TEST_SOURCE_DIR "/%s", file);
    assert_int_equal(hd_model_open(&s->model, path, &err), 0);
    start(s, cluster, samples);
}

static void pin(setting *s, const char *text)
{
    hd_error err = {0};
    assert_int_equal(hd_parallel_parse(text, &s->job.pinned, &err), 0);
}

static hd_planner_answer find(const setting *s, const char *planner)
{
    hd_planner_answer a;
    hd_error err = {0};
    int rc = hd_planner_find(planner)->find(&s->job, &a, &err);
    if (rc) fail_msg("%s: %s", planner, err.message);
    assert_int_equal(a.n == 0, a.why[0] != 0);
    assert_true(a.tried <= a.considered);
    for (int i = 0; i < a.n; i++) {
        assert_true(a.best[i].fits);
        assert_true(!i || !(a.best[i].step < a.best[i - 1].step));
        assert_true(hd_planner_allows(&s->job, &a.best[i].form, a.best[i].micro_batches));
    }
    return a;
}

/* ---- what the rules say ---- */

static void test_megatron_is_as_narrow_as_fits(void **state)
{
    (void)state;
    setting s;
    open_gpt(&s, "dgx-a100-80:8", 24);
    hd_planner_answer a = find(&s, "megatron");
    assert_true(a.n > 0);
    assert_int_equal(a.best[0].form.tp * a.best[0].form.pp, 1); /* takeaway #2: it fits on one device */
    assert_int_equal(a.best[0].form.dp, 8);
    hd_planner_answer_free(&a);
    close_setting(&s);
}

/* Bytes of a device of the plan that a planner finds with plenty of them. */
static int64_t need_of(setting *s, const char *planner)
{
    hd_planner_answer a = find(s, planner);
    int64_t peak = a.n ? a.best[0].peak : 0;
    hd_planner_answer_free(&a);
    return peak;
}

static void test_megatron_is_wider_where_memory_is_short(void **state)
{
    (void)state;
    setting s;
    open_gpt(&s, "dgx-a100-80:8", 24);
    pin(&s, "tp=1,pp=1,recompute=full");
    s.job.micro_batches = 3; /* the smallest micro-batches for dp=8 */
    int64_t alone = need_of(&s, "megatron");
    s.job.pinned = hd_parallel_default();
    s.job.micro_batches = 0;
    s.job.memory = alone - 1;
    hd_planner_answer a = find(&s, "megatron");
    assert_true(a.n > 0);
    assert_true(a.best[0].form.tp > 1);
    assert_true(a.best[0].peak <= s.job.memory);
    hd_planner_answer_free(&a);
    close_setting(&s);
}

static void test_zero_goes_up_where_memory_is_short(void **state)
{
    (void)state;
    setting s;
    open_gpt(&s, "dgx-a100-80:8", 24);
    s.job.micro_batches = 3;
    pin(&s, "zero=0,recompute=full");
    int64_t plain = need_of(&s, "zero");
    s.job.pinned = hd_parallel_default();
    s.job.memory = plain - 1;
    hd_planner_answer a = find(&s, "zero"), b;
    assert_true(a.n > 0);
    assert_true(a.best[0].form.zero > 0);
    assert_int_equal(a.best[0].form.dp, 8);
    hd_planner_answer_free(&a);
    b = find(&s, "data-parallel");
    assert_int_equal(b.n, 0);
    assert_non_null(strstr(b.why, "lacks least"));
    close_setting(&s);
}

static void test_data_parallel_is_plain(void **state)
{
    (void)state;
    setting s;
    open_gpt(&s, "dgx-a100-80:8", 24);
    hd_planner_answer a = find(&s, "data-parallel");
    assert_true(a.n > 0);
    for (int i = 0; i < a.n; i++) {
        const hd_parallel *f = &a.best[i].form;
        assert_int_equal(f->dp, 8);
        assert_int_equal(f->tp * f->pp * f->cp, 1);
        assert_int_equal(f->zero, 0);
    }
    hd_planner_answer_free(&a);
    close_setting(&s);
}

static void test_flexflow_is_no_worse_than_its_starts(void **state)
{
    (void)state;
    setting s;
    open_network(&s, "examples/two_tower.json", "cpu-25g:4", 64);
    hd_planner_answer plain = find(&s, "data-parallel"), a = find(&s, "flexflow"), b = find(&s, "flexflow");
    assert_true(plain.n && a.n && b.n);
    assert_true(a.best[0].step <= plain.best[0].step);
    assert_true(a.best[0].step == b.best[0].step); /* the seed is fixed */
    assert_int_equal(a.tried, b.tried);
    assert_true(a.tried > 50); /* most of what it proposes can be had */
    hd_planner_answer_free(&plain);
    hd_planner_answer_free(&a);
    hd_planner_answer_free(&b);
    close_setting(&s);
}

/* ---- pins, and what cannot be ---- */

static void test_pins_are_kept_to(void **state)
{
    static const char *const planners[] = {"megatron", "zero", "data-parallel", "flexflow"};
    (void)state;
    setting s;
    open_gpt(&s, "dgx-a100-80:4", 12);
    pin(&s, "tp=2,recompute=every:2,bucket=0");
    s.job.micro_batches = 3;
    s.job.forbidden = 1u << HD_KEY_ZERO | 1u << HD_KEY_PP;
    s.job.nodes = 40;
    for (int i = 0; i < 4; i++) {
        hd_planner_answer a = find(&s, planners[i]);
        assert_true(a.n > 0);
        assert_int_equal(a.best[0].form.tp, 2);
        assert_int_equal(a.best[0].form.dp, 2);
        assert_int_equal(a.best[0].form.zero, 0);
        assert_int_equal(a.best[0].form.recompute, HD_RECOMPUTE_EVERY);
        assert_int_equal(a.best[0].micro_batches, 3);
        hd_planner_answer_free(&a);
    }
    close_setting(&s);
}

static void expect_none(const setting *s, const char *planner, const char *why)
{
    hd_planner_answer a = find(s, planner);
    assert_int_equal(a.n, 0);
    if (!strstr(a.why, why)) fail_msg("%s: \"%s\" doesn't say \"%s\"", planner, a.why, why);
    hd_planner_answer_free(&a);
}

static void test_what_cannot_be_is_said(void **state)
{
    (void)state;
    setting s;
    hd_pin given = {"*", "-"};
    open_network(&s, "examples/mlp.json", "dgx-a100-80:4", 64);
    expect_none(&s, "megatron", "Transformer");
    s.job.memory = 1000;
    expect_none(&s, "zero", "no room");
    s.job.memory = 0;
    s.job.pins = &given, s.job.n_pins = 1;
    expect_none(&s, "data-parallel", "named parameters");
    close_setting(&s);
    open_gpt(&s, "dgx-a100-80:24", 24);
    expect_none(&s, "flexflow", "16");
    close_setting(&s);
    open_gpt(&s, "dgx-a100-80:4", 12);
    s.job.memory = GIB / 200;
    expect_none(&s, "megatron", "GB");
    close_setting(&s);
}

static void test_limits_cut_it_off(void **state)
{
    static const char *const planners[] = {"megatron", "zero", "data-parallel", "flexflow"};
    (void)state;
    setting s;
    open_gpt(&s, "dgx-a100-80:4", 12);
    s.job.nodes = 2;
    for (int i = 0; i < 4; i++) {
        hd_planner_answer a = find(&s, planners[i]);
        assert_true(a.n > 0 && a.tried <= 2);
        assert_true(a.cut_off);
        hd_planner_answer_free(&a);
    }
    close_setting(&s);
}

/* More devices than samples: each sample has one. */
static void test_few_samples(void **state)
{
    (void)state;
    setting s;
    open_gpt(&s, "dgx-a100-80:8", 3);
    hd_planner_answer a = find(&s, "zero");
    assert_true(a.n > 0);
    assert_int_equal(a.best[0].form.dp, 3);
    hd_planner_answer_free(&a);
    close_setting(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_megatron_is_as_narrow_as_fits),
        cmocka_unit_test(test_megatron_is_wider_where_memory_is_short),
        cmocka_unit_test(test_zero_goes_up_where_memory_is_short),
        cmocka_unit_test(test_data_parallel_is_plain),
        cmocka_unit_test(test_flexflow_is_no_worse_than_its_starts),
        cmocka_unit_test(test_pins_are_kept_to),
        cmocka_unit_test(test_what_cannot_be_is_said),
        cmocka_unit_test(test_limits_cut_it_off),
        cmocka_unit_test(test_few_samples),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
