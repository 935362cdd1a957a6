/* test_planning.c: models as planners see them: lowered for any form and number of micro-batches, and their graphs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "train/planning.h"

enum { SEQ = 12, SAMPLES = 6 };

static hd_model small_gpt2(void)
{
    hd_model m = {0};
    hd_lm_config *c = &m.config;
    hd_lm_config_preset(c, HD_ARCH_GPT2);
    c->vocab = 29, c->width = 24, c->layers = 4, c->heads = c->kv_heads = 4, c->head_dim = 6, c->mlp_width = 40, c->max_positions = 16;
    return m;
}

static hd_model example(const char *name)
{
    char path[1024];
    hd_model m;
    hd_error err = {0};
    snprintf(path, sizeof path, TEST_SOURCE_DIR "/examples/%s", name);
    if (hd_model_open(&m, path, &err)) fail_msg("%s", err.message);
    return m;
}

static hd_cluster shipped(const char *name)
{
    hd_cluster c;
    hd_error err = {0};
    if (hd_cluster_find(name, &c, &err)) fail_msg("%s", err.message);
    return c;
}

static hd_planning planning_of(const hd_model *m, const hd_cluster *c)
{
    return (hd_planning){.model = m, .cluster = c, .precision = HD_F32, .samples = SAMPLES, .sequence = SEQ, .step = {.optimizer = HD_ADAMW, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .clip = 1}};
}

static hd_parallel form_of(const char *text)
{
    hd_parallel p;
    hd_error err = {0};
    if (hd_parallel_parse(text, &p, &err)) fail_msg("%s: %s", text, err.message);
    return p;
}

static void test_language_model(void **state)
{
    (void)state;
    hd_error err = {0};
    hd_model m = small_gpt2();
    hd_cluster c = shipped("cpu:4");
    hd_planning p = planning_of(&m, &c);
    hd_planner_network n;
    hd_programs whole, cut;
    hd_parallel one = form_of("dp=1"), four = form_of("pp=2,tp=2");
    assert_int_equal(hd_planning_network(&p, &n, &err), 0);
    assert_true(n.layers == 4 && n.heads == 4 && n.kv_heads == 4 && n.sequence == SEQ && n.samples == SAMPLES && n.recomputes && !n.whole_batch);
    assert_int_equal(n.lower(n.context, &one, 1, 0, &whole, &err), 0);
    assert_int_equal(n.lower(n.context, &four, 3, 0, &cut, &err), 0);
    assert_true(whole.n == 1 && cut.n == 2 && cut.plan.micro_batches == 3);
    assert_true(whole.parameters == cut.parameters && whole.flops == cut.flops);
    hd_programs_free(&cut);
    assert_int_equal(n.lower(n.context, &one, 2, 1, &cut, &err), 0); /* one layer of four */
    assert_true(cut.parameters < whole.parameters && cut.parameters > whole.parameters / 4);
    hd_programs_free(&cut);
    hd_programs_free(&whole);
    assert_int_equal(n.lower(n.context, &one, 4, 0, &cut, &err), HD_EINVAL);
    assert_non_null(strstr(err.message, "6 samples of a step"));
    hd_cluster_free(&c);
}

static void test_graphs(void **state)
{
    (void)state;
    hd_error err = {0};
    hd_model m = small_gpt2();
    hd_cluster c = shipped("cpu:2");
    hd_planning p = planning_of(&m, &c);
    hd_planner_network n;
    assert_int_equal(hd_planning_network(&p, &n, &err), 0);
    hd_graph *g = n.graph(n.context, 2, 3, &err);
    assert_non_null(g);
    assert_true(hd_graph_find(g, "grad.layers.2.attn.q") != HD_NONE && hd_graph_find(g, "layers.3.attn.q") == HD_NONE && hd_graph_find(g, "lr") != HD_NONE);
    assert_int_equal(g->values[hd_graph_find(g, "tokens")].type.shape.dim[0], SAMPLES / 2 * SEQ);
    hd_graph_free(g);
    assert_null(n.graph(n.context, 5, 0, &err));
    hd_cluster_free(&c);
}

static void test_networks(void **state)
{
    static const struct { const char *name; bool whole_batch; } cases[] = {{"mlp.json", false}, {"convnet.json", true}, {"two_tower.json", false}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hd_error err = {0};
        hd_model m = example(cases[i].name);
        hd_cluster c = shipped("cpu:2");
        hd_planning p = planning_of(&m, &c);
        hd_planner_network n;
        hd_plan_found found;
        hd_parallel two = form_of("dp=2");
        assert_int_equal(hd_planning_network(&p, &n, &err), 0);
        assert_true(n.whole_batch == cases[i].whole_batch && !n.layers && !n.recomputes);
        hd_planner_job job = {.network = n, .cluster = &c};
        if (hd_planner_try(&job, &two, 1, &found, &err)) fail_msg("%s: %s", cases[i].name, err.message);
        assert_true(found.fits && found.step > 0 && found.peak > 0);
        hd_plan_found_free(&found);
        hd_cluster_free(&c);
        hd_model_close(&m);
    }
}

static void test_one_rank_computes_again(void **state)
{
    (void)state;
    hd_error err = {0};
    hd_model m = small_gpt2();
    hd_cluster c = shipped("cpu:2");
    hd_planning p = planning_of(&m, &c);
    hd_planner_network n;
    hd_programs kept, again;
    hd_memory more, less;
    hd_parallel none = form_of("dp=1"), full = form_of("recompute=full");
    assert_int_equal(hd_planning_network(&p, &n, &err), 0);
    assert_true(!n.lower(n.context, &none, 1, 0, &kept, &err) && !n.lower(n.context, &full, 1, 0, &again, &err));
    assert_true(!hd_program_memory(kept.stage[0], &more, &err) && !hd_program_memory(again.stage[0], &less, &err));
    assert_true(again.plan.n_recompute > 0 && less.arena < more.arena);
    hd_programs_free(&kept);
    hd_programs_free(&again);
    hd_cluster_free(&c);
}

static void test_threads(void **state)
{
    (void)state;
    hd_cluster c = shipped("cpu:2"), gpus = shipped("dgx-a100-80:8");
    hd_plan plan = hd_plan_default();
    c.device.cores = 7;
    c.level[0].fanout = 4;
    static const struct { int ranks, asked, threads; } cases[] = {{1, 0, 7}, {2, 0, 3}, {3, 0, 2}, {4, 0, 1}, {64, 0, 1}, {2, 5, 5}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hd_planning_target(&c, cases[i].ranks, cases[i].asked, &plan);
        assert_int_equal(plan.threads, cases[i].threads);
        assert_string_equal(plan.backend, "cpu");
    }
    hd_planning_target(&gpus, 8, 4, &plan);
    assert_int_equal(plan.threads, 1);
    assert_string_equal(plan.backend, "null");
    hd_cluster_free(&c);
    hd_cluster_free(&gpus);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_language_model), cmocka_unit_test(test_graphs), cmocka_unit_test(test_networks), cmocka_unit_test(test_one_rank_computes_again), cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
