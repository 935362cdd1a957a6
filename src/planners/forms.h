/* forms.h: the forms that a job may take: the space that search and exhaustive share. Within src/planners.
 *
 * Dimensions: ranks (all; on CPUs also fewer, of more threads), pp, tp, cp with dp the rest; micro-batches (divisors of the samples); sp; zero and how long
 * gathered parameters are held; recomputation; schedule and virtual stages; token slices; tables. A form that a dominated choice makes never better is not in it:
 * GPipe where 1F1B keeps less in the same time, pieces sent whole where scatter sends less, is there only when pinned. */
#ifndef HD_PLANNERS_FORMS_H
#define HD_PLANNERS_FORMS_H

#include "planners/planner.h"

typedef enum hd_hold { HD_HOLD_CALL, HD_HOLD_STEP, HD_HOLD_BRIEFLY, HD_HOLDS } hd_hold; /* zero=3; keep; regather */

typedef struct hd_form {
    int pp, dp, cp, tp, chunks, slices;
    int64_t micro_batches;
    uint8_t sp, zero, hold, scatter, recompute /* hd_recompute; FIRST: as many layers as memory asks for */, schedule, tables;
} hd_form;

typedef struct hd_form_list { hd_form *list; size_t n, room; } hd_form_list;

/* All forms that the job allows, in one order. A job that allows none: n = 0. HD_ENOMEM; HD_ENOPLAN where its pins contradict the devices. */
int hd_forms_list(const hd_planner_job *job, hd_form_list *out, hd_error *err);

static inline int hd_form_ranks(const hd_form *f) { return f->pp * f->dp * f->cp * f->tp; }
/* Writes it as --parallel's form, with what job->pinned gives beside. layers: of each chunk, NULL: left open; again: of each chunk, for HD_RECOMPUTE_FIRST. */
void hd_form_write(const hd_planner_job *job, const hd_form *f, const int *layers, const int *again, hd_parallel *out);
/* Samples that a rank has in a micro-batch, the greatest share. */
int64_t hd_form_share(const hd_planner_job *job, const hd_form *f);

#endif
