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

static unsigned extra_layers; /* bit i: layer i has two products more */

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
        for (unsigned k = 0; k < 1 + 2 * (extra_layers >> i & 1); k++) x = hd_contract(g, "y", "td,de->te", x, w, HD_F32);
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

/* ---- random pipelines against a naive model ---- */

enum { MOST_STAGES = 6, MOST_KEYS = 128, MOST_MESSAGES = 256 };

/* Ends of everything as far as is known; raised until nothing changes. */
typedef struct naive {
    const hd_programs *p;
    const hd_cluster *c;
    double latency, end[MOST_STAGES];
    double sent[MOST_KEYS][MOST_MESSAGES], taken[MOST_KEYS][MOST_MESSAGES]; /* [from, to, number][how many before] */
    double arrived[MOST_STAGES][64];                                        /* at collectives of all stages */
    int keys[MOST_KEYS][3], n_keys;
} naive;

static int key_of(naive *n, const hd_pipe_attrs *a)
{
    for (int i = 0; i < n->n_keys; i++)
        if (n->keys[i][0] == a->from && n->keys[i][1] == a->to && n->keys[i][2] == a->number) return i;
    assert_true(n->n_keys < MOST_KEYS);
    memcpy(n->keys[n->n_keys], (int[]){a->from, a->to, a->number}, sizeof n->keys[0]);
    return n->n_keys++;
}

typedef struct sending { int segment, key, index; } sending;

static double after_sends(const naive *n, sending *list, int *count, int segment, double t)
{
    int kept = 0;
    for (int i = 0; i < *count; i++) {
        if (segment >= 0 && list[i].segment != segment) list[kept++] = list[i];
        else t = fmax(t, n->taken[list[i].key][list[i].index]);
    }
    *count = kept;
    return t;
}

static double naive_stage(naive *n, int stage)
{
    const hd_program *p = n->p->stage[stage];
    int received[MOST_KEYS] = {0}, posted[MOST_KEYS] = {0}, sendings = 0, meetings = 0;
    sending list[MOST_MESSAGES];
    double t = 0;
    for (int k = 0; k < p->n_calls; k++) {
        const hd_segment *g = &p->segments[p->calls[k].segment];
        bool once = g->kind == HD_SEGMENT_PREPARE || g->kind == HD_SEGMENT_UPDATE;
        if (once || n->c->device.cores) t = after_sends(n, list, &sendings, once ? -1 : p->calls[k].segment, t); /* GPUs send out of buffers of their own */
        for (int i = 0; i < g->n_instrs; i++) {
            const hd_instr *x = &g->instrs[i];
            int key = x->op == &hd_op_send || x->op == &hd_op_recv ? key_of(n, x->attrs) : -1;
            if (x->opcode == HD_KERNEL && x->op == &hd_op_contract) t += 1;
            if (x->op == &hd_op_send) n->sent[key][posted[key]] = t, list[sendings++] = (sending){p->calls[k].segment, key, posted[key]++};
            if (x->op == &hd_op_recv) t = fmax(t, n->sent[key][received[key]]) + n->latency, n->taken[key][received[key]++] = t;
            if (x->op == &hd_op_all_reduce) {
                int all[MOST_STAGES] = {0, 1, 2, 3, 4, 5};
                hd_move_cost cost;
                n->arrived[stage][meetings] = t;
                for (int s = 0; s < n->p->n; s++) t = fmax(t, n->arrived[s][meetings]);
                hd_cost_move(n->c, HD_MOVE_ALL_REDUCE, all, n->p->n, n->p->n, 4, HD_F32, &cost);
                t += cost.seconds;
                meetings++;
            }
        }
        if (once) t = after_sends(n, list, &sendings, p->calls[k].segment, t);
    }
    return after_sends(n, list, &sendings, -1, t);
}

static double naive_step(const hd_programs *p, const hd_cluster *c)
{
    naive *n = calloc(1, sizeof *n), *before = calloc(1, sizeof *n);
    double step = 0;
    *n = (naive){.p = p, .c = c, .latency = c->level[0].latency};
    do {
        memcpy(before, n, sizeof *n);
        for (int s = 0; s < p->n; s++) n->end[s] = naive_stage(n, s);
    } while (memcmp(before, n, sizeof *n));
    for (int s = 0; s < p->n; s++) step = fmax(step, n->end[s]);
    free(n);
    free(before);
    return step;
}

static void test_random_pipelines(void **state)
{
    (void)state;
    hd_rng r = hd_rng_new(5);
    for (int i = 0; i < 60; i++) {
        job j;
        int p = 2 + (int)(hd_rng_u32(&r) % 5), v = 1, m = 1 + (int)(hd_rng_u32(&r) % 9);
        hd_schedule_kind kind = (hd_schedule_kind)(hd_rng_u32(&r) % HD_SCHEDULE_KINDS);
        if (kind == HD_SCHEDULE_INTERLEAVED) v = 2, m = p * (1 + (int)(hd_rng_u32(&r) % 2));
        hd_cluster c = products_only(p, 1e300);
        c.level[0].latency = (double)(hd_rng_u32(&r) % 4) * 0.375;
        if (hd_rng_u32(&r) % 2) { /* nodes of one CPU each */
            c.device.cores = 1;
            c.level[c.n_levels++] = c.level[0];
            c.level[0].fanout = 1;
        }
        extra_layers = (unsigned)hd_rng_u32(&r);
        lower_products(&j, kind, p, v, m, 1, true, hd_rng_u32(&r) % 2);
        extra_layers = 0;
        simulate(&j, &c, NULL);
        assert_near(j.sim.step, naive_step(&j.programs, &c));
        free_job(&j);
    }
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

/* What computing and transfers lose to each other makes a step longer, but not longer than it would be with one after the other; and it is the same whether
 * ranks are merged. */
static void test_overlap_shares_cores(void **state)
{
    (void)state;
    static const struct { double contention, drag; } lost[] = {{0, 0}, {0.25, 0}, {0, 0.25}, {0, 0.5}, {0.125, 0.75}, {0, 0.9375}};
    double layer = DEPTH * DEPTH * 4, last = 0;
    hd_cluster c = products_only(2, layer / 0.125);
    job without;
    lower_products(&without, HD_SCHEDULE_GPIPE, 1, 1, 1, 2, false, true);
    simulate(&without, &c, NULL);
    for (size_t i = 0; i < sizeof lost / sizeof *lost; i++) {
        job with, all;
        c.level[0].contention = lost[i].contention, c.level[0].drag = lost[i].drag;
        lower_products(&with, HD_SCHEDULE_GPIPE, 1, 1, 1, 2, true, true);
        all = (job){.programs = with.programs};
        simulate(&with, &c, NULL);
        simulate(&all, &c, &(hd_sim_options){.no_merge = true});
        double sum = 0;
        for (int p = 0; p < HD_SIM_PARTS; p++) sum += with.sim.part[p];
        assert_near(sum, with.sim.step);
        assert_near(with.sim.step, all.sim.step);
        assert_true(with.sim.step <= without.sim.step + 1e-9);
        if (i == 0) last = with.sim.step;
        else assert_true(with.sim.step > last + (lost[i].contention > 0 || lost[i].drag > 0.9 ? 1e-3 : -1e-9));
        hd_sim_result_free(&all.sim);
        free_job(&with);
    }
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
    /* keys and values round a ring, within nodes and across */
    assert_true(check_merging("dp=2,cp=4,attention=ring", 2, 4, 2, 96, "dgx-a100-80:8") <= 8);
    assert_true(check_merging("cp=16,attention=ring", 1, 2, 2, 96, "dgx-a100-80:16") <= 16);
    /* stages of different meshes */
    assert_true(check_merging("dp=4,tp=2|pp=2,dp=2,tp=2|dp=8", 8, 4, 4, 96, "dgx-a100-80:24") < 24);
    assert_true(check_merging("dp=3|pp=2,dp=2,tp=2", 5, 4, 5, 101, "dgx-a100-80:16") <= 11);
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
/* Where only memory takes time: a token's step is longer by the keys and values that it reads more of, in f16, of 2 heads of 8 in each of 2 layers. */
static void test_keys(void **state)
{
    (void)state;
    job j = {0};
    hd_error err = {0};
    hd_lm_config c;
    hd_cluster machine = products_only(1, 1e300);
    hd_session_options o = {.plan = hd_plan_default()};
    hd_lm_options lm = {.mode = HD_LM_SERVE, .compute = HD_F32, .param = HD_F32, .tokens = 8, .context = 512, .kv = HD_F16, .block = 16, .blocks = 32, .sequences = 1};
    int64_t binding[HD_MAX_SYMBOLS] = {1, 1}; /* tokens, rows */
    double step[2];
    machine.device.flops[HD_F32] = 1e300, machine.device.bandwidth = 1e6;
    snprintf(o.plan.backend, sizeof o.plan.backend, "null");
    o.plan.threads = 1;
    hd_lm_config_preset(&c, HD_ARCH_LLAMA);
    c.layers = 2, c.width = 32, c.heads = 4, c.kv_heads = 2, c.vocab = 50, c.mlp_width = 40, c.max_positions = 512;
    assert_int_equal(hd_lm_config_check(&c, "test", &err), 0);
    if (hd_programs_make(&j.programs, hd_lm_graph(&c, &lm, &err), false, &o, &err)) fail_msg("%s", err.message);
    for (int i = 0; i < 2; i++) {
        simulate(&j, &machine, &(hd_sim_options){.binding = binding, .keys = i ? 300 : 100});
        step[i] = j.sim.step;
        hd_sim_result_free(&j.sim);
    }
    assert_near(step[1] - step[0], 2 * 200 * 2 * 2 * 8 * 2 / 1e6);
    free_job(&j);
}

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
        cmocka_unit_test(test_bubbles), cmocka_unit_test(test_zero_bubble), cmocka_unit_test(test_transfers), cmocka_unit_test(test_random_pipelines),
        cmocka_unit_test(test_overlap), cmocka_unit_test(test_overlap_shares_cores), cmocka_unit_test(test_alike), cmocka_unit_test(test_memory),
        cmocka_unit_test(test_keys), cmocka_unit_test(test_trace), cmocka_unit_test(test_too_few_devices),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
