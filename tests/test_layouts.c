/* Layouts searched for on a cluster, as pins: what is found is what the simulator says of the lowered program, ZeRO follows from little memory, layers' pins
 * fit deeper models. That such plans train as one rank does is checks/equality's. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/model.h"
#include "passes/passes.h"
#include "planners/layouts.h"
#include "sim/sim.h"
#include "train/session.h"

typedef struct job {
    const char *network;  /* of examples; NULL: a GPT-2 */
    int64_t layers, batch, micro; /* layers: of the GPT-2 */
    const char *cluster;
    int dp, tp;
    hd_dtype precision;
} job;

enum { SEQUENCE = 256 };

static void need(int rc, const hd_error *err)
{
    if (rc) fail_msg("%s", err->message);
}

static hd_graph *forward(const job *j)
{
    hd_error err = {0};
    hd_model m = {0};
    if (j->network) {
        char path[512];
        snprintf(path, sizeof path, "%s/examples/%s.json", TEST_SOURCE_DIR, j->network);
        need(hd_model_open(&m, path, &err), &err);
    } else {
        hd_lm_config_preset(&m.config, HD_ARCH_GPT2);
        m.config.layers = j->layers, m.config.width = 512, m.config.heads = m.config.kv_heads = 8, m.config.mlp_width = 2048, m.config.vocab = 8192;
        m.config.max_positions = SEQUENCE, m.config.embd_dropout = m.config.resid_dropout = m.config.attn_dropout = 0;
        need(hd_lm_config_check(&m.config, "gpt2", &err), &err);
    }
    hd_graph *g = hd_model_graph(&m, &(hd_model_options){.mode = HD_LM_TRAIN, .precision = j->precision, .batch = j->batch, .sequence = SEQUENCE}, &err);
    hd_model_close(&m);
    need(!g, &err);
    return g;
}

static hd_session_options options(const job *j, const hd_cluster *c)
{
    hd_session_options o = {.sequence = j->network ? 0 : SEQUENCE, .plan = hd_plan_default()};
    o.step = (hd_step_options){.optimizer = HD_ADAMW, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8};
    o.plan.micro_batches = j->micro;
    o.plan.precision = j->precision;
    o.plan.threads = 1;
    snprintf(o.plan.backend, sizeof o.plan.backend, "%s", c->device.cores ? "cpu" : "null");
    o.parallel = hd_parallel_default();
    return o;
}

static hd_graph *training(const job *j, const hd_cluster *c)
{
    hd_graph *g = forward(j);
    hd_session_options o = options(j, c);
    hd_pass_fuse_residual_norm(g);
    hd_pass_precision(g, j->precision);
    need(hd_step_append(g, &o.step), &g->err);
    return g;
}

static void add_axis(hd_mesh *m, const char *name, int size, hd_axis_role role)
{
    if (size == 1) return;
    m->axis[m->n] = (hd_mesh_axis){.size = size, .role = role};
    snprintf(m->axis[m->n++].name, sizeof m->axis->name, "%s", name);
}

static hd_layout_problem problem(const job *j, const hd_cluster *c, const hd_graph *g)
{
    hd_layout_problem p = {.graph = g, .cluster = c, .threads = 1, .micro_batches = j->micro, .overlap = HD_LAYOUT_OVERLAP, .memory = -1, .search = {.table = 1 << 18, .nodes = 100}};
    add_axis(&p.mesh, "dp", j->dp, HD_AXIS_DATA);
    add_axis(&p.mesh, "tp", j->tp, HD_AXIS_MODEL);
    return p;
}

/* Seconds of a step, with those pins or the form's own. */
static double simulate(const job *j, const hd_cluster *c, int dp, int tp, const hd_pin *pins, int n)
{
    hd_error err = {0};
    hd_session_options o = options(j, c);
    hd_programs p;
    hd_sim_result r;
    o.parallel.dp = dp, o.parallel.tp = tp, o.parallel.pins = pins, o.parallel.n_pins = n;
    need(hd_programs_make(&p, forward(j), true, &o, &err), &err);
    need(hd_simulate((const hd_program *const *)p.stage, p.n, c, &(hd_sim_options){0}, &r, &err), &err);
    double step = r.step;
    hd_sim_result_free(&r);
    hd_programs_free(&p);
    return step;
}

/* The step that the search says, that of the program which its pins lead to, and that of plain data parallelism. */
static void compare(const job *j)
{
    hd_error err = {0};
    hd_cluster c;
    hd_layout_answer a;
    hd_pin pins[HD_MAX_PINS];
    int n;
    need(hd_cluster_find(j->cluster, &c, &err), &err);
    hd_graph *g = training(j, &c);
    hd_layout_problem p = problem(j, &c, g);
    need(hd_layouts_solve(&p, &a, &err), &err);
    assert_true(a.feasible);
    need(hd_layout_pins(&p, &a, false, pins, HD_MAX_PINS, &n, &err), &err);
    double step = simulate(j, &c, j->dp, j->tp, pins, n), plain = simulate(j, &c, j->dp * j->tp, 1, NULL, 0);
    print_message("%-10s %-14s dp=%d,tp=%d: searched %.4g ms, simulated %.4g (%.3f), dp=%d %.4g (%.3f); %d pins\n", j->network ? j->network : "gpt2", j->cluster, j->dp,
                  j->tp, a.seconds * 1e3, step * 1e3, step / a.seconds, j->dp * j->tp, plain * 1e3, step / plain, n);
    assert_true(step > 0.85 * a.seconds && step < 1.1 * a.seconds);
    assert_true(step < 1.1 * plain);
    assert_true(n <= 200);
    hd_layout_answer_free(&a);
    hd_graph_free(g);
    hd_cluster_free(&c);
}

static void test_predictions(void **state)
{
    (void)state;
    static const job jobs[] = {
        {"mlp", 0, 4096, 1, "dgx-a100-80:8", 2, 1, HD_F32},      {"mlp", 0, 4096, 2, "dgx-a100-80:8", 4, 1, HD_F32},
        {"mlp", 0, 4096, 1, "dgx-a100-80:8", 2, 2, HD_F32},      {"mlp", 0, 256, 1, "cpu:2", 2, 1, HD_F32},
        {"convnet", 0, 1024, 1, "dgx-a100-80:8", 2, 1, HD_F32},  {"convnet", 0, 1024, 1, "dgx-a100-80:8", 4, 1, HD_F32},
        {"two_tower", 0, 4096, 1, "dgx-a100-80:8", 2, 1, HD_F32}, {"two_tower", 0, 4096, 1, "dgx-a100-80:8", 2, 2, HD_F32},
        {NULL, 2, 64, 1, "dgx-a100-80:8", 2, 1, HD_BF16},        {NULL, 3, 64, 2, "dgx-a100-80:8", 4, 1, HD_BF16},
        {NULL, 2, 64, 1, "dgx-a100-80:8", 2, 2, HD_BF16},        {NULL, 2, 64, 1, "dgx-a100-80:8", 2, 4, HD_BF16},
    };
    for (size_t i = 0; i < sizeof jobs / sizeof *jobs; i++) compare(&jobs[i]);
}

/* Of eight micro-batches: their sums of gradients cost what those of one do; what is sent besides is the logits, which the network gives. */
static void test_sums_once(void **state)
{
    (void)state;
    double sent[2], work[2];
    for (int k = 0; k < 2; k++) {
        const job j = {"mlp", 0, 512, k ? 8 : 1, "dgx-a100-80:8", 4, 1, HD_F32};
        hd_error err = {0};
        hd_cluster c;
        hd_layout_answer a;
        need(hd_cluster_find(j.cluster, &c, &err), &err);
        hd_graph *g = training(&j, &c);
        hd_layout_problem p = problem(&j, &c, g);
        p.data_parallel = true, p.overlap = 0;
        need(hd_layouts_solve(&p, &a, &err), &err);
        assert_true(a.feasible && a.proven);
        sent[k] = a.seconds - a.work, work[k] = a.work;
        hd_layout_answer_free(&a);
        hd_graph_free(g);
        hd_cluster_free(&c);
    }
    print_message("of one micro-batch %.4g ms sending, %.4g computing; of eight %.4g, %.4g\n", sent[0] * 1e3, work[0] * 1e3, sent[1] * 1e3, work[1] * 1e3);
    assert_true(sent[0] > 0 && sent[1] > sent[0] && sent[1] < 2 * sent[0]);
    assert_true(work[1] > 6 * work[0]);
}

/* In half the memory that data parallelism takes, states lie in pieces over the data axis: ZeRO comes out by itself. */
static void test_zero(void **state)
{
    (void)state;
    const job j = {NULL, 2, 8, 2, "dgx-a100-80:8", 4, 1, HD_BF16};
    hd_error err = {0};
    hd_cluster c;
    hd_layout_answer a;
    need(hd_cluster_find(j.cluster, &c, &err), &err);
    hd_graph *g = training(&j, &c);
    hd_layout_problem p = problem(&j, &c, g);
    p.data_parallel = true;
    p.memory = 1;
    need(hd_layouts_solve(&p, &a, &err), &err);
    assert_false(a.feasible);
    p.memory = a.memory + a.memory / 50; /* of data parallelism at least: the update may be cut all the same */
    hd_layout_answer_free(&a);
    need(hd_layouts_solve(&p, &a, &err), &err);
    assert_true(a.feasible && a.memory <= p.memory);
    int64_t whole = 0, pieces = 0;
    for (size_t v = 0; v < g->n_values; v++) {
        const hd_value_info *x = &g->values[v];
        if (x->kind != HD_PARAM && x->kind != HD_STATE) continue;
        hd_shape piece = hd_layout_shape(&p.mesh, &a.held[v], &x->type.shape, 0);
        whole += hd_shape_count(&x->type.shape);
        pieces += hd_shape_count(&piece);
    }
    print_message("parameters and states: %.3f of them on a rank\n", (double)pieces / (double)whole);
    assert_true(pieces < whole * 3 / 10);
    hd_layout_answer_free(&a);
    hd_graph_free(g);
    hd_cluster_free(&c);
}

/* Pins of two layers, of six. */
static void test_repeat(void **state)
{
    (void)state;
    const job j = {NULL, 3, 64, 1, "dgx-a100-80:8", 4, 1, HD_BF16}, deep = {NULL, 6, 64, 1, "dgx-a100-80:8", 4, 1, HD_BF16};
    hd_error err = {0};
    hd_cluster c;
    hd_layout_answer a;
    hd_pin pins[HD_MAX_PINS];
    int n;
    need(hd_cluster_find(j.cluster, &c, &err), &err);
    hd_graph *g = training(&j, &c);
    hd_layout_problem p = problem(&j, &c, g);
    need(hd_layouts_solve(&p, &a, &err), &err);
    need(hd_layout_pins(&p, &a, true, pins, HD_MAX_PINS, &n, &err), &err);
    for (int i = 0; i < n; i++)
        for (const char *at = pins[i].pattern; (at = strstr(at, "layers.")); at += 7) assert_false(at[7] >= '0' && at[7] <= '9');
    double few = simulate(&j, &c, 4, 1, pins, n), many = simulate(&deep, &c, 4, 1, pins, n), plain = simulate(&deep, &c, 4, 1, NULL, 0);
    print_message("3 layers %.4g ms, 6 layers by the same %d pins %.4g, dp=4 %.4g\n", few * 1e3, n, many * 1e3, plain * 1e3);
    assert_true(many < 1.05 * plain && many < 2 * few);
    hd_layout_answer_free(&a);
    hd_graph_free(g);
    hd_cluster_free(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_predictions), cmocka_unit_test(test_sums_once), cmocka_unit_test(test_zero), cmocka_unit_test(test_repeat)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
