/* cluster_run.h: a published training set-up brought to a prediction: GPT of a given shape, a plan given by hand, every stage lowered, simulated on a cluster.
 * Shared by the checks of the simulator against published measurements. */
#ifndef CHECK_CLUSTER_RUN_H
#define CHECK_CLUSTER_RUN_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "base/term.h"
#include "cluster/size.h"
#include "exec/backend.h"
#include "models/lm.h"
#include "passes/passes.h"
#include "plan/parallel.h"
#include "sim/sim.h"
#include "train/step.h"

enum { CLUSTER_STAGES = 64, CLUSTER_SEQUENCE = 2048, CLUSTER_VOCAB = 51200 };

/* Megatron-LM as of 2021: attention written out with dropout of its weights, 16-bit residual stream, everything of a layer recomputed, reductions at the end. */
typedef struct cluster_job {
    int64_t layers, width, heads;
    int64_t tp, pp, dp, chunks, zero;
    int64_t batch, micro_batch;      /* sequences of a step, and of one rank's micro-batch */
    bool whole;                      /* without scatter/gather between stages */
    bool keep;                       /* without recomputation */
    bool fused;                      /* attention in one kernel */
} cluster_job;

typedef struct cluster_programs { hd_program *program[CLUSTER_STAGES]; int n; double seconds; } cluster_programs;

static inline void cluster_model(const cluster_job *j, hd_lm_config *c)
{
    hd_lm_config_preset(c, HD_ARCH_GPT2);
    c->layers = j->layers, c->width = j->width, c->heads = c->kv_heads = j->heads, c->head_dim = j->width / j->heads, c->mlp_width = 4 * j->width;
    c->vocab = CLUSTER_VOCAB, c->max_positions = CLUSTER_SEQUENCE;
    c->embd_dropout = c->resid_dropout = 0; /* fused with bias and residual there: one pass, which the additions are here */
}

static inline hd_graph *cluster_graph(const cluster_job *j, hd_error *err)
{
    hd_lm_config c;
    cluster_model(j, &c);
    hd_lm_options o = {.mode = HD_LM_TRAIN, .compute = HD_BF16, .param = HD_F32, .tokens = j->dp * j->micro_batch * CLUSTER_SEQUENCE, .sequence = CLUSTER_SEQUENCE,
                       .attention = j->fused ? HD_ATTENTION_FUSED : HD_ATTENTION_MATERIALISED, .half_stream = true};
    return hd_lm_graph(&c, &o, err);
}

/* As many layers in each chunk; the by-hand form would count the head as some of the last one's. */
static inline void cluster_parallel(const cluster_job *j, hd_str *out)
{
    hd_str_printf(out, "dp=%d,tp=%d,pp=%d,v=%d,overlap=%d", (int)j->dp, (int)j->tp, (int)j->pp, (int)j->chunks, j->zero == 3);
    if (j->zero) hd_str_printf(out, ",zero=%d", (int)j->zero);
    if (!j->whole) hd_str_puts(out, ",scatter");
    hd_str_puts(out, ",half_wire");
    if (!j->keep) hd_str_puts(out, ",recompute=full");
    for (int64_t i = 0, n = j->pp * j->chunks; i < n && n > 1; i++)
        hd_str_printf(out, "%s%d", i ? ":" : ",layers=", (int)((i + 1) * j->layers / n - i * j->layers / n));
}

static inline int cluster_plan(const cluster_job *j, const hd_graph *g, hd_plan *plan, hd_error *err)
{
    hd_parallel p;
    hd_str text;
    hd_str_init(&text);
    cluster_parallel(j, &text);
    *plan = hd_plan_default();
    plan->micro_batches = j->batch / (j->dp * j->micro_batch);
    plan->precision = HD_BF16;
    plan->threads = 1;
    int rc = hd_parallel_parse(text.data, &p, err);
    if (!rc) rc = hd_parallel_expand(&p, g, CLUSTER_SEQUENCE, plan, err);
    hd_str_free(&text);
    return rc;
}

static inline int cluster_stage(const hd_graph *whole, const hd_plan *plan, int stage, hd_program **out, hd_error *err)
{
    hd_graph *g = hd_graph_stage(whole, stage, hd_plan_stages(plan), err);
    hd_backend backend;
    if (!g) return err->code;
    g->stage = stage;
    if (plan->n_recompute) hd_pass_recompute(g, plan->recompute, plan->n_recompute);
    hd_pass_fuse_elementwise(g);
    int rc = hd_backend_open(&backend, "null", err);
    if (!rc) rc = g->err.code ? hd_fail(err, g->err.code, "%s", g->err.message) : hd_lower(g, plan, &backend.target, out, err);
    hd_graph_free(g);
    return rc;
}

static inline int cluster_cut(hd_graph *g, const hd_plan *plan)
{
    const char *first[HD_MAX_CUTS];
    for (int i = 0; i < plan->n_cuts; i++) first[i] = plan->cuts[i];
    if (plan->n_cuts) hd_pass_chunks(g, first, plan->n_cuts);
    if (plan->mesh.n) hd_pass_partition(g, &plan->mesh, plan->pins, plan->n_pins, plan->keep_gathered);
    if (plan->half_wire) hd_pass_narrow_sums(g, HD_BF16);
    if (plan->scatter) hd_pass_scatter(g, hd_plan_stages(plan));
    return g->err.code;
}

static inline void cluster_programs_free(cluster_programs *p)
{
    for (int i = 0; i < p->n; i++) hd_program_free(p->program[i]);
    p->n = 0;
}

static inline int cluster_lower(const cluster_job *j, cluster_programs *out, hd_error *err)
{
    *out = (cluster_programs){.seconds = hd_time()};
    static hd_plan plan;
    hd_step_options step = {.optimizer = HD_ADAMW, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .clip = 1};
    hd_graph *g = cluster_graph(j, err);
    if (!g) return err->code;
    int rc = hd_step_append(g, &step);
    if (!rc) rc = cluster_plan(j, g, &plan, err);
    if (!rc) rc = cluster_cut(g, &plan);
    if (rc && !err->code) hd_fail(err, rc, "%s", g->err.message);
    for (int i = 0; i < j->pp && !rc; i++) {
        rc = cluster_stage(g, &plan, i, &out->program[i], err);
        if (!rc) out->n++;
    }
    hd_graph_free(g);
    if (rc) cluster_programs_free(out);
    out->seconds = hd_time() - out->seconds;
    return rc;
}

static inline int cluster_simulate(const cluster_programs *p, const hd_cluster *c, hd_sim_result *out, hd_error *err)
{
    return hd_simulate((const hd_program *const *)p->program, p->n, c, NULL, out, err);
}

/* Achieved FLOP/s of a GPU as the paper counts them: all of the model's products, with those computed again. */
static inline double cluster_rate(const cluster_job *j, double step)
{
    hd_lm_config c;
    cluster_model(j, &c);
    return hd_lm_train_flops(&c, j->batch * CLUSTER_SEQUENCE, CLUSTER_SEQUENCE, HD_ATTENTION_MATERIALISED, true) / step / (double)(j->tp * j->pp * j->dp);
}

#endif
