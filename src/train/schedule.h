/* schedule.h: learning rate as a function of the step. */
#ifndef HD_TRAIN_SCHEDULE_H
#define HD_TRAIN_SCHEDULE_H

#include "base/error.h"

typedef enum hd_lr_shape { HD_LR_CONSTANT, HD_LR_COSINE, HD_LR_LINEAR, HD_LR_WSD, HD_LR_COUNT } hd_lr_shape;

typedef struct hd_lr_schedule {
    hd_lr_shape shape;
    double peak, least; /* after warm-up; at the end */
    int64_t steps;      /* of the whole run */
    int64_t warmup;     /* steps of linear rise from 0 */
    int64_t decay;      /* wsd (Hu et al. 2024): steps of the linear fall at the end */
} hd_lr_schedule;

int hd_lr_shape_parse(const char *name, hd_lr_shape *out); /* "constant", "cosine", "linear", "wsd"; 0 or HD_EINVAL */
/* The rate of step 1, 2, ..., steps; `least` from then on (constant: peak). */
double hd_lr_at(const hd_lr_schedule *s, int64_t step);

#endif
