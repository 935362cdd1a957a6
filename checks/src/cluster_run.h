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
#include "models/lm.h"
#include "sim/sim.h"
#include "train/session.h"

enum { CLUSTER_SEQUENCE = 2048, CLUSTER_VOCAB = 51200 };

/* Megatron-LM as of 2021: attention written out with dropout of its weights, 16-bit residual stream, everything of a layer recomputed, reductions at the end. */
typedef struct cluster_job {
    int64_t layers, width, heads;
    int64_t tp, pp, dp, chunks, zero;
    int64_t batch, micro_batch;      /* sequences of a step, and of one rank's micro-batch */
    bool whole;                      /* without scatter/gather between stages */
    bool keep;                       /* without recomputation */
    bool fused;                      /* attention in one kernel */
} cluster_job;

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
    hd_str_printf(out, "dp=%d,tp=%d,pp=%d,v=%d,overlap=%d", (int)j->dp, (int)j->tp, (int)j->pp, (int)j->chunks, 0);
    if (j->zero == 3) hd_str_puts(out, ",regather");
    if (j->zero) hd_str_printf(out, ",zero=%d", (int)j->zero);
    if (!j->whole) hd_str_puts(out, ",scatter");
    hd_str_puts(out, ",half_wire");
    if (!j->keep) hd_str_puts(out, ",recompute=full");
    for (int64_t i = 0, n = j->pp * j->chunks; i < n && n > 1; i++)
        hd_str_printf(out, "%s%d", i ? ":" : ",layers=", (int)((i + 1) * j->layers / n - i * j->layers / n));
}

/* The programs that heddle plan would make. */
static inline int cluster_lower(const cluster_job *j, hd_programs *out, hd_error *err)
{
    hd_session_options o = {.plan = hd_plan_default(), .sequence = CLUSTER_SEQUENCE};
    hd_str text;
    hd_str_init(&text);
    cluster_parallel(j, &text);
    o.plan.micro_batches = j->batch / (j->dp * j->micro_batch);
    o.plan.precision = HD_BF16;
    o.plan.threads = 1;
    snprintf(o.plan.backend, sizeof o.plan.backend, "null");
    o.step = (hd_step_options){.optimizer = HD_ADAMW, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .clip = 1};
    int rc = hd_parallel_parse(text.data, &o.parallel, err);
    hd_graph *g = rc ? NULL : cluster_graph(j, err);
    if (!rc) rc = g ? hd_programs_make(out, g, true, &o, err) : err->code;
    hd_str_free(&text);
    return rc;
}

static inline int cluster_simulate(const hd_programs *p, const hd_cluster *c, hd_sim_result *out, hd_error *err)
{
    return hd_simulate((const hd_program *const *)p->stage, p->n, c, NULL, out, err);
}

/* Achieved FLOP/s of a GPU as the paper counts them: all of the model's products, with those computed again. */
static inline double cluster_rate(const cluster_job *j, double step)
{
    hd_lm_config c;
    cluster_model(j, &c);
    return hd_lm_train_flops(&c, j->batch * CLUSTER_SEQUENCE, CLUSTER_SEQUENCE, HD_ATTENTION_MATERIALISED, true) / step / (double)(j->tp * j->pp * j->dp);
}

#endif
