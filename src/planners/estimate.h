/* estimate.h: what a step of a form takes, put together from blocks: the pipeline's latency formula of each schedule, memory by stage. Within src/planners.
 *
 * With F_s and B_s a stage's forward and backward of a micro-batch, m micro-batches, v chunks a stage and S slices a step takes
 *     m max(F_s + B_s) + (sum(F_s + B_s) - max(F_s + B_s)) / (v S) + transfers of the fill + the update and what of gradients' sums is not hidden
 * (GPipe, 1F1B: Narayanan et al. 2021, section 2.2; v: section 2.2.2; S: Li et al. 2021, section 3.2); zero-bubble's fill is (p - 1)(F + B - 2 W) (Qi et al. 2023), summed over stages that differ.
 * Stages wait for each other's results: m's factor is the slowest mean round over neighbouring stages, their transfers to each other and back included (the
 * cycle that limits an event graph, Baccelli et al. 1992). Stage s of p keeps min(m, p - s) micro-batches (1F1B). */
#ifndef HD_PLANNERS_ESTIMATE_H
#define HD_PLANNERS_ESTIMATE_H

#include "planners/blocks.h"

/* The blocks that a form's estimate is made of: as its recomputation says; FIRST: of layers that are kept, and of those that are made again. */
typedef struct hd_estimate_blocks { const hd_blocks *kept, *again; const hd_spread *spread; /* NULL: exact blocks */ } hd_estimate_blocks;

typedef struct hd_estimate {
    double step;           /* seconds; INFINITY: impossible */
    int64_t peak;          /* bytes of the stage that needs most */
    int layers[HD_MAX_CUTS + 1]; /* blocks of each chunk */
    int first[HD_MAX_CUTS + 1];  /* FIRST: of them made again */
} hd_estimate;

/* capacity: of a rank; FIRST makes as many layers of each stage again as that asks for, and is impossible where that is none or all. */
void hd_estimate_form(const hd_planner_job *job, const hd_form *f, const hd_estimate_blocks *b, int64_t capacity, hd_estimate *out);

#endif
