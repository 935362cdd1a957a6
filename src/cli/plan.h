/* plan.h: within heddle plan: a model, a cluster and a plan given by hand, and what is predicted of them. The keys of --json are documented in docs/plan.md. */
#ifndef HD_CLI_PLAN_H
#define HD_CLI_PLAN_H

#include <jansson.h>

#include "base/settings.h"
#include "models/model.h"
#include "sim/sim.h"
#include "train/planning.h"
#include "train/session.h"

typedef struct plan_config {
    const char *cluster, *parallel, *plan, *mode, *precision, *attention, *optimizer;
    const char *out, *report, *trace, *measured, *budget, *clusters, *law;
    int64_t batch, micro_batches, sequence, context, threads;
    double tokens, clip, utilisation, days;
    bool json, half_stream;
    /* searching */
    const char *planner, *device_memory, *forbid;
    hd_setting_list pins;
    int64_t devices, search_nodes, search_threads;
    double search_time;
    bool explain, keep_micro_batches;
} plan_config;

/* What is known of one plan. */
typedef struct planned {
    plan_config own;
    const plan_config *config; /* as given, or own: with what a planner chose */
    const char *path;      /* of the model; borrowed */
    hd_model model;
    hd_cluster cluster;
    hd_programs programs;
    hd_sim_result sim;
    hd_trace trace;        /* filled where somebody asks for it */
    hd_dtype precision;
    double tokens, samples; /* of a step; tokens 0: a network has none */
    double peak_flops;     /* of a device, products of that precision */
    const hd_planner *planner; /* NULL: the plan was given */
    hd_planner_answer answer;
    hd_pin *pins;          /* that --pin names; owned */
    hd_parallel form;      /* the planner's choice, pointing into answer and pins */
    char text[2048];       /* of it */
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

/* Share of the peak that so many FLOPs in so many seconds on so many devices are. */
double hd_plan_utilisation(const planned *p, double flops);

hd_step_options hd_plan_step(const plan_config *c);

/* ---- plan_search.c ---- */

/* Whether the plan is to be searched for: not given whole by --plan, --planner given, or a --parallel whose sizes are as many as the devices. */
int hd_plan_is_searched(const plan_config *c, const hd_cluster *cluster, bool *searched, hd_error *err);
/* Runs the planner; p->model and p->cluster are there. Sets p->answer, form, text, own and config. HD_ENOPLAN or HD_EINVAL and one line where there is none. */
int hd_plan_search(planned *p, hd_error *err);
/* What it chose and why, as text and as JSON. */
void hd_plan_print_search(const planned *p, hd_str *out);
json_t *hd_plan_describe_search(const planned *p);

#endif
