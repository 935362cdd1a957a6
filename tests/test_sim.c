/* test_sim.c: the simulator on schedules whose times are known: pipelines' bubbles, transfers beside computing, ranks that are alike. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "models/lm.h"
#include "ops/ops.h"
#include "sim/sim.h"
#include "train/session.h"

enum { TOKENS = 16, ROWS = 10, DEPTH = 8 };

/* ---- machines ---- */

/* Only products take time, one second for a [TOKENS, DEPTH] x [DEPTH, DEPTH]; links are free unless bandwidth is given. */
static hd_cluster products_only(int devices, double bandwidth)
{
    hd_cluster c = {.name = "test", .n_levels = 1, .node_level = 0};
    c.device = (hd_device){.name = "device", .bandwidth = 1e300, .memory = (int64_t)1 << 40, .efficiency = {.product = 1, .memory = 1}};
    c.device.flops[HD_F32] = 2.0 * TOKENS * DEPTH * DEPTH;
    c.level[0] = (hd_level){.name = "link", .fanout = devices, .bandwidth = bandwidth, .efficiency = 1, .ports = 1};
    return c;
}

static hd_cluster shipped(const char *name)
{
    hd_cluster c;
    hd_error err = {0};
    assert_int_equal(hd_cluster_find(name, &c, &err), 0);
    return c;
}

/* ---- models ---- */

/* Layers of one product each, of equal cost in forward, and for each gradient: of weights too where they are trained. */
static hd_graph *products(int layers, bool trained)
{
    hd_graph *g = hd_graph_new();
    hd_value tokens = hd_graph_input(g, "tokens", hd_type_of(HD_I32, 1, (int64_t[]){TOKENS}), HD_TIME_SPLIT);
    hd_value table = hd_graph_param(g, "embed", hd_type_of(HD_F32, 2, (int64_t[]){ROWS, DEPTH}), (hd_init){HD_INIT_NORMAL, 1}, true, true);
    hd_value x = hd_graph_node(g, "gather", "rows", NULL, (hd_value[]){table, tokens}, 2);
    hd_graph_push(g, "layers");
    for (int i = 0; i < layers; i++) {
        hd_graph_push(g, "%d", i);
        hd_value w = hd_graph_param(g, "w", hd_type_of(HD_F32, 2, (int64_t[]){DEPTH, DEPTH}), (hd_init){HD_INIT_NORMAL, 1}, trained, true);
        x = hd_contract(g, "y", "td,de->te", x, w, HD_F32);
        hd_graph_pop(g);
    }
    hd_graph_pop(g);
    hd_graph_output(g, "loss", hd_graph_node(g, "sum_squares", "loss", NULL, &x, 1));
    return g;
}

typedef struct job {
    hd_programs programs;
    hd_sim_result sim;
} job;

static void lower_products(job *j, hd_schedule_kind schedule, int stages, int chunks, int micro, int dp, bool overlap, bool trained)
{
    hd_error err = {0};
    hd_session_options o = {.plan = hd_plan_default(), .step = {.optimizer = HD_SGD}};
    hd_plan *p = &o.plan;
    p->micro_batches = micro, p->schedule = schedule, p->chunks = chunks, p->overlap = overlap, p->threads = 1;
    snprintf(p->backend, sizeof p->backend, "null");
    p->mesh.axis[p->mesh.n++] = (hd_mesh_axis){"pp", stages, HD_AXIS_PIPELINE};
    p->mesh.axis[p->mesh.n++] = (hd_mesh_axis){"dp", dp, HD_AXIS_DATA};
    if (dp > 1) p->pins[p->n_pins++] = (hd_pin){"tokens", "dp"};
    for (int i = 1; i < stages * chunks; i++) snprintf(p->cuts[p->n_cuts++], sizeof p->cuts[0], "layers.%d", i);
    *j = (job){0};
    int rc = hd_programs_make(&j->programs, products(stages * chunks > 1 ? stages * chunks : 4, trained), true, &o, &err);
    if (rc) fail_msg("%s", err.message);
}

static void simulate(job *j, const hd_cluster *c, const hd_sim_options *o)
{
    hd_error err = {0};
    int rc = hd_simulate((const hd_program *const *)j->programs.stage, j->programs.n, c, o, &j->sim, &err);
    if (rc) fail_msg("%s", err.message);
    for (int i = 0; i < j->sim.n_ranks; i++) {
        double sum = 0;
        for (int p = 0; p < HD_SIM_PARTS; p++) sum += j->sim.rank[i].part[p];
        assert_true(fabs(sum - j->sim.step) <= 1e-9 * j->sim.step);
    }
}

static void free_job(job *j)
{
    hd_sim_result_free(&j->sim);
    hd_programs_free(&j->programs);
}

static void assert_near(double got, double want)
{
    if (!(fabs(got - want) <= 1e-9 * fmax(1, fabs(want)))) fail_msg("%.12g, not %.12g", got, want);
}

/* ---- pipelines ---- */

/* Forward and backward of a chunk take a second each: m (1 + 1) v + (p - 1)(1 + 1) (Narayanan et al. 2021, sections 2.2.1, 2.2.2). Where weights are trained
 * backward takes two, and the next stage goes on after the first of them. */
static void check_bubble(hd_schedule_kind schedule, int p, int v, int m, bool trained)
{
    job j;
    hd_cluster c = products_only(p, 1e300);
    lower_products(&j, schedule, p, v, m, 1, true, trained);
    simulate(&j, &c, NULL);
    assert_int_equal(j.sim.n_ranks, p);
    double work = (trained ? 3.0 : 2.0) * m * v;
    assert_near(j.sim.step, work + 2 * (p - 1));
    assert_near(j.sim.bubble, 2 * (p - 1) / (work + 2 * (p - 1)));
    if (!trained) assert_near(j.sim.bubble, (p - 1.0) / (m * v + p - 1));
    for (int i = 0; i < p; i++) assert_near(j.sim.rank[i].part[HD_SIM_GEMM], work);
    assert_string_equal(j.sim.limit, m * v >= p - 1 ? "gemm" : "bubble");
    free_job(&j);
}

static void test_bubbles(void **state)
{
    (void)state;
    for (int p = 2; p <= 5; p++)
        for (int m = 1; m <= 9; m += 4) check_bubble(HD_SCHEDULE_GPIPE, p, 1, m, false), check_bubble(HD_SCHEDULE_1F1B, p, 1, m, false);
    for (int v = 2; v <= 3; v++) check_bubble(HD_SCHEDULE_INTERLEAVED, 4, v, 8, false), check_bubble(HD_SCHEDULE_INTERLEAVED, 2, v, 2, false);
    check_bubble(HD_SCHEDULE_GPIPE, 3, 1, 4, true);
}

/* ZB-H1 leaves (p - 1)(F + B - W) of it, here F = B = W = 1 (Qi et al. 2023, table 1). */
static void test_zero_bubble(void **state)
{
    (void)state;
    job j;
    hd_cluster c = products_only(4, 1e300);
    lower_products(&j, HD_SCHEDULE_ZERO_BUBBLE, 4, 1, 8, 1, true, true);
    simulate(&j, &c, NULL);
    assert_near(j.sim.step, 3 * 8 + 3);
    free_job(&j);
}

/* GPipe, two stages, one micro-batch: everything is on one path, transfers too. */
static void test_transfers(void **state)
{
    (void)state;
    job j;
    hd_cluster c = products_only(2, TOKENS * DEPTH * 4 / 0.25); /* an activation takes a quarter of a second */
    lower_products(&j, HD_SCHEDULE_GPIPE, 2, 1, 1, 1, true, true);
    simulate(&j, &c, NULL);
    double loss = 4 / c.level[0].bandwidth; /* over both stages: a number of four bytes, half of it each way, twice */
    assert_near(j.sim.step, 5.5 + loss);
    assert_near(j.sim.rank[0].part[HD_SIM_PIPELINE], 0.25);
    assert_near(j.sim.rank[1].part[HD_SIM_PIPELINE], 0.25);
    assert_near(j.sim.rank[0].part[HD_SIM_BUBBLE], 5.5 - 3 - 0.25);
    assert_near(j.sim.rank[0].part[HD_SIM_DATA], loss);
    assert_near(j.sim.rank[0].hidden, 0.25); /* what it sends, while it waits for the gradient */
    assert_near(j.sim.rank[0].bytes[0], TOKENS * DEPTH * 4 + 4);
    free_job(&j);
}

/* ---- beside computing ---- */

/* Data parallel, four layers, every reduction shorter than a layer's backward: only what comes behind the last product is exposed, and what is hidden is what
 * the step gets shorter by. */
static void test_overlap(void **state)
{
    (void)state;
    job with, without;
    double layer = DEPTH * DEPTH * 4, seconds = 0.125; /* a layer's gradient, over a ring of two: as long as its bytes at the link's rate */
    hd_cluster c = products_only(2, layer / seconds);
    lower_products(&with, HD_SCHEDULE_GPIPE, 1, 1, 1, 2, true, true);
    lower_products(&without, HD_SCHEDULE_GPIPE, 1, 1, 1, 2, false, true);
    simulate(&with, &c, NULL);
    simulate(&without, &c, NULL);
    double table = seconds * ROWS / DEPTH, loss = 4 / c.level[0].bandwidth, all = 4 * seconds + table + loss;
    assert_int_equal(with.sim.n_ranks, 1);
    assert_int_equal(with.sim.rank[0].alike, 2);
    assert_near(without.sim.part[HD_SIM_DATA], all);
    assert_near(without.sim.hidden, 0);
    assert_near(with.sim.part[HD_SIM_DATA] + with.sim.hidden, all);
    assert_true(with.sim.hidden >= 3 * seconds - 1e-9);
    assert_near(without.sim.step - with.sim.step, with.sim.hidden);
    free_job(&with);
    free_job(&without);
}

/* ---- ranks that are alike ---- */

static void lower_model(job *j, const char *parallel, int64_t batch, int64_t micro, int64_t layers, int64_t vocab)
{
    hd_lm_config c;
    hd_error err = {0};
    hd_lm_config_preset(&c, HD_ARCH_GPT2);
    c.layers = layers, c.width = 48, c.heads = c.kv_heads = 6, c.head_dim = 8, c.mlp_width = 100, c.vocab = vocab, c.max_positions = 32;
    hd_session_options o = {.plan = hd_plan_default(), .sequence = 32, .step = {.optimizer = HD_ADAMW, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .clip = 1}};
    o.plan.micro_batches = micro, o.plan.threads = 1;
    snprintf(o.plan.backend, sizeof o.plan.backend, "null");
    int rc = hd_parallel_parse(parallel, &o.parallel, &err);
    hd_lm_options lm = {.mode = HD_LM_TRAIN, .compute = HD_F32, .param = HD_F32, .tokens = batch * 32, .sequence = 32};
    hd_graph *g = rc ? NULL : hd_lm_graph(&c, &lm, &err);
    *j = (job){0};
    if (!g || hd_programs_make(&j->programs, g, true, &o, &err)) fail_msg("%s: %s", parallel, err.message);
}

/* Merged and rank by rank: the same, for each rank. Returns how many stood for all. */
static int check_merging(const char *parallel, int64_t batch, int64_t micro, int64_t layers, int64_t vocab, const char *cluster)
{
    job one, all;
    hd_cluster c = shipped(cluster);
    lower_model(&one, parallel, batch, micro, layers, vocab);
    all = (job){.programs = one.programs};
    simulate(&one, &c, NULL);
    simulate(&all, &c, &(hd_sim_options){.no_merge = true});
    assert_int_equal(all.sim.n_ranks, all.sim.ranks);
    assert_true(fabs(one.sim.step - all.sim.step) <= 1e-9 * all.sim.step);
    assert_true(fabs(one.sim.hidden - all.sim.hidden) <= 1e-9 * all.sim.step);
    int stood = 0, count = one.sim.n_ranks;
    for (int p = 0; p < HD_SIM_PARTS; p++) assert_true(fabs(one.sim.part[p] - all.sim.part[p]) <= 1e-9 * all.sim.step);
    for (int i = 0; i < count; i++) {
        const hd_sim_rank *r = &one.sim.rank[i], *own = &all.sim.rank[r->rank];
        stood += r->alike;
        for (int p = 0; p < HD_SIM_PARTS; p++) assert_true(fabs(r->part[p] - own->part[p]) <= 1e-9 * all.sim.step);
        for (int l = 0; l < HD_MAX_LEVELS; l++) assert_true(fabs(r->bytes[l] - own->bytes[l]) <= 1e-9 * own->bytes[l]);
    }
    assert_int_equal(stood, one.sim.ranks);
    assert_true(fabs(one.sim.flops - all.sim.flops) <= 1e-9 * all.sim.flops);
    hd_sim_result_free(&all.sim);
    free_job(&one);
    hd_cluster_free(&c);
    return count;
}

static void test_alike(void **state)
{
    (void)state;
    assert_int_equal(check_merging("dp=8,tp=2,pp=4", 8, 4, 4, 96, "dgx-a100-80:64"), 4);
    /* uneven: a vocabulary of 101 over 2, 5 sequences over 4, heads over 3, 3 stages within and across nodes */
    assert_true(check_merging("dp=2,tp=2,pp=2", 4, 3, 4, 101, "dgx-a100-80:8") < 8);
    assert_true(check_merging("dp=4,tp=3,pp=2,zero=2", 5, 2, 4, 101, "dgx-a100-80:24") <= 24);
    assert_true(check_merging("dp=3,tp=3,pp=3,sp", 5, 4, 5, 101, "p3.16xlarge:32") <= 27);
    assert_true(check_merging("dp=2,cp=2,tp=2,pp=2,v=2,zero=3", 2, 4, 4, 101, "dgx-h100:16") < 16);
    assert_true(check_merging("dp=2,tp=2", 4, 2, 2, 101, "cpu:4") <= 4);
    assert_true(check_merging("pp=2,schedule=zero-bubble,slices=2", 2, 4, 4, 96, "cpu:2") <= 2);
}

/* ---- memory and traces ---- */

static void test_memory(void **state)
{
    (void)state;
    job j;
    hd_error err = {0};
    hd_cluster c = shipped("dgx-a100-80:8");
    hd_trace t = {0};
    lower_model(&j, "dp=2,tp=2,pp=2", 4, 4, 4, 96);
    simulate(&j, &c, &(hd_sim_options){.trace = &t});
    assert_int_equal(hd_sim_check_memory(&j.sim, &err), 0);
    for (int i = 0; i < j.sim.n_ranks; i++) {
        const hd_sim_rank *r = &j.sim.rank[i];
        int64_t sum = 0, most = 0;
        for (int k = 0; k < HD_SIM_KINDS; k++) sum += r->kind[k];
        assert_true(sum == r->peak);
        for (int64_t k = 0; k < t.n_memory; k++)
            if (t.memory[k].rank == r->rank && t.memory[k].bytes > most) most = t.memory[k].bytes;
        if (!(most > r->memory.store && most <= r->memory.total)) fail_msg("%lld of %lld + %lld", (long long)most, (long long)r->memory.store, (long long)r->memory.arena);
    }
    c.device.memory = c.device.reserved + j.sim.rank[0].peak - 1;
    hd_sim_result_free(&j.sim);
    simulate(&j, &c, NULL);
    assert_int_equal(hd_sim_check_memory(&j.sim, &err), HD_EMEMCAP);
    assert_non_null(strstr(err.message, "rank 0"));
    hd_trace_free(&t);
    free_job(&j);
}

/* Each rank's events come in time order on stream 0, and lie within the step; there are as many as the executor keeps. */
static void test_trace(void **state)
{
    (void)state;
    job j;
    hd_cluster c = shipped("dgx-a100-80:4");
    hd_trace t = {0};
    lower_model(&j, "dp=2,pp=2", 4, 2, 4, 96);
    simulate(&j, &c, &(hd_sim_options){.trace = &t, .no_merge = true, .steps = 2});
    assert_int_equal(t.steps, 2);
    assert_true(fabs(t.seconds - 2 * j.sim.step) <= 1e-9 * t.seconds);
    for (int r = 0; r < 4; r++) {
        double last = 0;
        int64_t n = 0;
        for (int64_t i = 0; i < t.n_events; i++) {
            const hd_trace_event *e = &t.events[i];
            if (e->rank != r) continue;
            assert_true(e->end >= e->start && e->end <= t.seconds * (1 + 1e-12));
            if (e->stream == 0) assert_true(e->start >= last - 1e-12), last = e->end;
            n++;
        }
        assert_true(n > 0 && n <= 2 * hd_program_events(j.programs.stage[r / 2]));
    }
    hd_trace_free(&t);
    free_job(&j);
}

static void test_too_few_devices(void **state)
{
    (void)state;
    job j;
    hd_error err = {0};
    hd_cluster c = products_only(1, 1e300);
    lower_products(&j, HD_SCHEDULE_GPIPE, 2, 1, 1, 1, true, true);
    assert_int_equal(hd_simulate((const hd_program *const *)j.programs.stage, j.programs.n, &c, NULL, &j.sim, &err), HD_EINVAL);
    assert_non_null(strstr(err.message, "2 ranks"));
    free_job(&j);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bubbles), cmocka_unit_test(test_zero_bubble), cmocka_unit_test(test_transfers), cmocka_unit_test(test_overlap),
        cmocka_unit_test(test_alike), cmocka_unit_test(test_memory), cmocka_unit_test(test_trace), cmocka_unit_test(test_too_few_devices),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
