/* slices.h: TeraPipe's programme (Li et al. 2021, section 3.3): a sequence cut into slices of tokens that go through a pipeline one after the other. */
#ifndef HD_PLANNERS_SLICES_H
#define HD_PLANNERS_SLICES_H

#include "base/error.h"
#include "base/mem.h"

/* What one stage takes for `length` tokens that follow `context` others. */
typedef struct hd_slice_option { int length, context; double cost; } hd_slice_option;

typedef struct hd_slice_profile { hd_slice_option *options; int n, tokens; } hd_slice_profile; /* tokens: of the whole sequence, the greatest length + context */

typedef struct hd_slice_plan {
    double objective, sum, greatest;
    int *option, n; /* indices into the profile, in the order of the sequence; owned */
} hd_slice_plan;

/* Columns len, ctx, ms (table.h). */
int hd_slice_profile_parse(const char *text, size_t n, const char *name, hd_slice_profile *out, hd_error *err);
void hd_slice_profile_free(hd_slice_profile *p);

/* Least sum + (stages - 1) * greatest over slices that make up the sequence. HD_EINVAL, naming how far one gets, where there are none. */
int hd_slices_solve(const hd_slice_profile *p, int stages, hd_slice_plan *out, hd_error *err);
void hd_slice_plan_free(hd_slice_plan *p);

#endif
