/* unequal.h: stages of different meshes: Alpa's programme (stages.h) over predicted costs. Within src/planners. */
#ifndef HD_PLANNERS_UNEQUAL_H
#define HD_PLANNERS_UNEQUAL_H

#include "planners/blocks.h"

/* Where a pipeline of stages on different numbers of data-parallel ranks, all ranks of the job in use, takes least for so many micro-batches by what its blocks take:
 * *out is that form, with cuts[HD_BLOCK_CLASSES] for its own; *stages 0: none was found, or all stages are alike. HD_ENOMEM. */
int hd_unequal_stages(const hd_planner_job *job, int64_t micro_batches, char (*cuts)[64], hd_parallel *out, int *stages, hd_error *err);

#endif
