/* scale.c: how long simulating large jobs takes, lowering included, and whether merging alike ranks changes anything.
 *
 *   check_scale row DP     the 1,008 B parameters of Narayanan et al. 2021, table 1, row ten (tp 8, pp 64), over DP data-parallel ranks: one line
 *   check_scale merge      64 ranks, merged and rank by rank, under plans whose pieces are uneven: a line for each */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/term.h"
#include "models/lm.h"
#include "sim/sim.h"
#include "train/session.h"

typedef struct job {
    const char *parallel, *cluster;
    int64_t layers, width, heads, vocab, batch, micro, sequence;
    hd_programs programs;
    hd_cluster machines;
} job;

static int lower(job *j, hd_error *err)
{
    hd_lm_config c;
    hd_lm_config_preset(&c, HD_ARCH_GPT2);
    c.layers = j->layers, c.width = j->width, c.heads = c.kv_heads = j->heads, c.head_dim = j->width / j->heads, c.mlp_width = 4 * j->width, c.vocab = j->vocab;
    c.max_positions = j->sequence;
    hd_session_options o = {.plan = hd_plan_default(), .sequence = j->sequence};
    o.step = (hd_step_options){.optimizer = HD_ADAMW, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .clip = 1};
    o.plan.micro_batches = j->micro, o.plan.precision = HD_BF16, o.plan.threads = 1;
    snprintf(o.plan.backend, sizeof o.plan.backend, "null");
    int rc = hd_parallel_parse(j->parallel, &o.parallel, err);
    if (!rc) rc = hd_cluster_find(j->cluster, &j->machines, err);
    if (rc) return rc;
    hd_lm_options lm = {.mode = HD_LM_TRAIN, .compute = HD_BF16, .param = HD_F32, .tokens = j->batch * j->sequence, .sequence = j->sequence};
    hd_graph *g = hd_lm_graph(&c, &lm, err);
    return g ? hd_programs_make(&j->programs, g, true, &o, err) : err->code;
}

static int simulate(const job *j, bool no_merge, hd_sim_result *out, hd_error *err)
{
    return hd_simulate((const hd_program *const *)j->programs.stage, j->programs.n, &j->machines, &(hd_sim_options){.no_merge = no_merge}, out, err);
}

static int run_row(const char *dp, hd_error *err)
{
    char parallel[64], cluster[64];
    snprintf(parallel, sizeof parallel, "dp=%s,tp=8,pp=64,recompute=full", dp);
    snprintf(cluster, sizeof cluster, "dgx-a100-80:%d", 512 * atoi(dp));
    job j = {.parallel = parallel, .cluster = cluster, .layers = 128, .width = 25600, .heads = 160, .vocab = 51200, .batch = atoi(dp), .micro = 512, .sequence = 2048};
    hd_sim_result r = {0};
    double begin = hd_time();
    int rc = lower(&j, err);
    double lowered = hd_time() - begin;
    if (!rc) rc = simulate(&j, false, &r, err);
    if (!rc) printf("ranks %d simulated %d lowering %.2f seconds %.2f peak_bytes %llu step %.6f tflops %.2f bubble %.4f\n", r.ranks, r.n_ranks, lowered, hd_time() - begin,
                    (unsigned long long)hd_memory_peak(), r.step, j.programs.flops / r.step / r.ranks / 1e12, r.bubble);
    hd_sim_result_free(&r);
    hd_programs_free(&j.programs);
    hd_cluster_free(&j.machines);
    return rc;
}

/* Of all numbers of all ranks, as a fraction of the step (of the bytes). */
static double largest_difference(const hd_sim_result *one, const hd_sim_result *all)
{
    double most = fabs(one->step - all->step) / all->step;
    for (int i = 0; i < one->n_ranks; i++) {
        const hd_sim_rank *a = &one->rank[i], *b = &all->rank[a->rank];
        for (int p = 0; p < HD_SIM_PARTS; p++) most = fmax(most, fabs(a->part[p] - b->part[p]) / all->step);
        for (int l = 0; l < HD_MAX_LEVELS; l++) most = fmax(most, fabs(a->bytes[l] - b->bytes[l]) / fmax(1, b->bytes[l]));
        most = fmax(most, fabs(a->hidden - b->hidden) / all->step);
    }
    for (int p = 0; p < HD_SIM_PARTS; p++) most = fmax(most, fabs(one->part[p] - all->part[p]) / all->step);
    return most;
}

static int run_merge(hd_error *err)
{
    static const struct { const char *parallel, *cluster; int64_t vocab, batch; } cases[] = {
        {"dp=4,tp=4,pp=4,recompute=full", "dgx-a100-80:64", 51200, 8}, {"dp=2,tp=8,pp=4,v=2,sp", "dgx-a100-80:64", 51200, 8},
        {"dp=4,tp=4,pp=4,zero=2", "p3.16xlarge:64", 50257, 7}, {"dp=8,tp=2,pp=4,zero=3", "dgx-h100:64", 50257, 9},
        {"dp=16,tp=4,zero=1", "dgx-a100-40:64", 50257, 17}, {"dp=4,cp=2,tp=2,pp=4", "dgx-a100-80:64", 50257, 4},
    };
    int rc = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases && !rc; i++) {
        job j = {.parallel = cases[i].parallel, .cluster = cases[i].cluster, .layers = 8, .width = 1024, .heads = 16, .vocab = cases[i].vocab, .batch = cases[i].batch,
                 .micro = 8, .sequence = 512};
        hd_sim_result one = {0}, all = {0};
        rc = lower(&j, err);
        if (!rc) rc = simulate(&j, false, &one, err);
        if (!rc) rc = simulate(&j, true, &all, err);
        if (!rc) printf("plan %s merged %d of %d difference %.3g\n", j.parallel, one.n_ranks, all.n_ranks, largest_difference(&one, &all));
        hd_sim_result_free(&one);
        hd_sim_result_free(&all);
        hd_programs_free(&j.programs);
        hd_cluster_free(&j.machines);
    }
    return rc;
}

int main(int argc, char **argv)
{
    hd_error err = {0};
    int rc = HD_EINVAL;
    if (argc == 3 && !strcmp(argv[1], "row") && atoi(argv[2]) > 0) rc = run_row(argv[2], &err);
    else if (argc == 2 && !strcmp(argv[1], "merge")) rc = run_merge(&err);
    else hd_fail(&err, HD_EINVAL, "usage: check_scale row DP | merge");
    if (rc) fprintf(stderr, "check_scale: %s\n", err.message);
    return rc ? 1 : 0;
}
