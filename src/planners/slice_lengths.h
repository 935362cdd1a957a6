/* slice_lengths.h: how long each slice of a sequence should be: TeraPipe's programme (slices.h) on predicted costs. Within src/planners. */
#ifndef HD_PLANNERS_SLICE_LENGTHS_H
#define HD_PLANNERS_SLICE_LENGTHS_H

#include "planners/planner.h"

/* Sets p's slices to lengths that go through its pipeline quickest, as what a layer takes for a slice is fitted to a + b length + c length (context + length / 2)
 * (Li et al. 2021, section 3.3 fits the part of the context likewise); p->n_lengths 0: none better than equal ones were found. HD_ENOMEM. */
int hd_slice_lengths(const hd_planner_job *job, hd_parallel *p, int64_t micro_batches, hd_error *err);

#endif
