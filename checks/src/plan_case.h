/* plan_case.h: a network, a cluster and a step's samples as a planner's job. Shared by the checks of planners. */
#ifndef CHECK_PLAN_CASE_H
#define CHECK_PLAN_CASE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/term.h"
#include "planners/planner.h"
#include "train/planning.h"

typedef struct plan_case {
    const char *name, *model, *cluster; /* model: below the source tree */
    int64_t samples, sequence;          /* of a step: sequences of so many tokens, or samples (sequence 0) */
    bool f32, sgd;                      /* else bf16 and AdamW */
    bool as_2021;                       /* attention written out with a 16-bit residual stream, as Megatron-LM was in 2021 */
    bool walk;                          /* of a short form: beside flexflow too, which takes seconds */
    int64_t micro_batches;              /* 0: searched */
    const char *pinned;                 /* --parallel; NULL: nothing */
    const char *published; int64_t published_micro_batches; /* a hand-made plan to be no slower than */
} plan_case;

typedef struct plan_run {
    hd_model model;
    hd_cluster cluster;
    hd_planning planning;
    hd_planner_job job;
} plan_run;

static inline void plan_run_close(plan_run *r)
{
    hd_model_close(&r->model);
    hd_cluster_free(&r->cluster);
    memset(r, 0, sizeof *r);
}

/* r stays where it is: the job points into it. */
static inline int plan_run_open(plan_run *r, const plan_case *c, const char *root, hd_error *err)
{
    char path[1024];
    memset(r, 0, sizeof *r);
    snprintf(path, sizeof path, "%s/%s", root, c->model);
    int rc = hd_model_open(&r->model, path, err);
    if (!rc) rc = hd_cluster_find(c->cluster, &r->cluster, err);
    r->planning = (hd_planning){.model = &r->model, .cluster = &r->cluster, .precision = c->f32 ? HD_F32 : HD_BF16, .half_stream = c->as_2021,
                                .attention = c->as_2021 ? HD_ATTENTION_MATERIALISED : HD_ATTENTION_FUSED,
                                .step = {.optimizer = c->sgd ? HD_SGD : HD_ADAMW, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = c->sgd ? 0 : 0.1, .clip = c->sgd ? 0 : 1},
                                .samples = c->samples, .sequence = c->sequence};
    if (!rc) rc = hd_planning_network(&r->planning, &r->job.network, err);
    r->job.cluster = &r->cluster;
    r->job.pinned = hd_parallel_default();
    r->job.micro_batches = c->micro_batches;
    r->job.quiet = true;
    if (!rc && c->pinned) rc = hd_parallel_parse(c->pinned, &r->job.pinned, err);
    if (rc) plan_run_close(r);
    return rc;
}

/* "3:3:3:2" as "3*3:2". */
static inline void plan_fold_layers(char *text)
{
    char *list = strstr(text, "layers="), *at = list ? list + 7 : NULL, *to = at;
    while (at && *at >= '0' && *at <= '9') {
        long layers = strtol(at, &at, 10), times = 1;
        while (*at == ':') {
            char *end;
            if (strtol(at + 1, &end, 10) != layers) break;
            times++;
            at = end;
        }
        char run[48]; /* never longer than what it stands for */
        int n = times > 1 ? snprintf(run, sizeof run, "%ld*%ld", layers, times) : snprintf(run, sizeof run, "%ld", layers);
        memcpy(to, run, (size_t)n);
        to += n;
        if (*at == ':') *to++ = ':', at++;
    }
    if (at) memmove(to, at, strlen(at) + 1);
}

/* The text of a form; "" at worst. */
static inline void plan_text(const hd_plan_found *f, char *out, size_t size)
{
    hd_str text;
    hd_str_init(&text);
    out[0] = 0;
    if (!hd_parallel_print(&f->form, &text)) {
        if (text.len) plan_fold_layers(text.data);
        snprintf(out, size, "%s%s", text.len ? text.data : "one rank", f->pins ? " + layouts" : "");
    }
    hd_str_free(&text);
}

#endif
