/* plan.h: within heddle plan: a model, a cluster and a plan given by hand, and what is predicted of them. The keys of --json are documented in docs/plan.md. */
#ifndef HD_CLI_PLAN_H
#define HD_CLI_PLAN_H

#include <jansson.h>

#include "models/model.h"
#include "sim/sim.h"
#include "train/session.h"

typedef struct plan_config {
    const char *cluster, *parallel, *plan, *mode, *precision, *attention, *optimizer;
    const char *out, *report, *trace, *measured, *budget, *clusters, *law;
    int64_t batch, micro_batches, sequence, context, threads;
    double tokens, clip, utilisation, days;
    bool json, half_stream;
} plan_config;

/* What is known of one plan. */
typedef struct planned {
    const plan_config *config;
    const char *path;      /* of the model; borrowed */
    hd_model model;
    hd_cluster cluster;
    hd_programs programs;
    hd_sim_result sim;
    hd_trace trace;        /* filled where somebody asks for it */
    hd_dtype precision;
    double tokens, samples; /* of a step; tokens 0: a network has none */
    double peak_flops;     /* of a device, products of that precision */
} planned;

/* Finds model and cluster, lowers all stages and simulates a step. On failure nothing is left to free. */
int hd_plan_predict(const plan_config *c, const char *model, planned *p, hd_error *err);
void hd_plan_free(planned *p);

/* plan_print.c: of a training step */
json_t *hd_plan_describe(const planned *p); /* NULL: out of memory */
void hd_plan_print_text(const planned *p, hd_str *out);

/* plan_serve.c: of generating text on one device: prints it */
int hd_plan_serve(const plan_config *c, const char *model, hd_error *err);

/* plan_size.c: what a budget, or a number of tokens, is best spent on; words: a model, or none. Prints it */
int hd_plan_size(const plan_config *c, const char *const *words, int n_words, hd_error *err);

/* Options of a session for lowering on that cluster: the back end, and threads of a rank. */
void hd_plan_target(const plan_config *c, const hd_cluster *cluster, int ranks, hd_plan *plan);
/* Share of the peak that so many FLOPs in so many seconds on so many devices are. */
double hd_plan_utilisation(const planned *p, double flops);

#endif
