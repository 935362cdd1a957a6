/* stages.h: Alpa's inter-operator programme (Zheng et al. 2022, section 5.2): layers to stages, each on a submesh, from measured or predicted costs. */
#ifndef HD_PLANNERS_STAGES_H
#define HD_PLANNERS_STAGES_H

#include "base/error.h"
#include "base/mem.h"

/* Layers first .. last as one stage on so many devices. */
typedef struct hd_stage_option {
    int first, last, devices;
    char config[64];    /* how, in the profile's own words */
    double cost;        /* of one micro-batch; INFINITY: impossible */
    int max_succeeding; /* most stages that may follow it: each keeps one more micro-batch's activations (1F1B); -1: it never fits */
} hd_stage_option;

typedef struct hd_stage_profile { hd_stage_option *options; int n, first, last; } hd_stage_profile; /* first, last: layers of the model */

typedef struct hd_stage_plan {
    double objective, sum, greatest;
    int *option, n; /* indices into the profile, in the order of the model; owned */
} hd_stage_plan;

/* Columns first_layer, last_layer, submesh_devices, config, cost, max_succeeding_stages (table.h). */
int hd_stage_profile_parse(const char *text, size_t n, const char *name, hd_stage_profile *out, hd_error *err);
void hd_stage_profile_free(hd_stage_profile *p);

/* Least sum + (micro - 1) * greatest over stages that cover all layers and use exactly `devices`. HD_EINVAL, saying what stands against it, where there are
 * none. */
int hd_stages_solve(const hd_stage_profile *p, int devices, int64_t micro, hd_stage_plan *out, hd_error *err);
void hd_stage_plan_free(hd_stage_plan *p);

#endif
