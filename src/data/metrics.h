/* metrics.h: how good predictions are, beside the loss. */
#ifndef HD_DATA_METRICS_H
#define HD_DATA_METRICS_H

#include "base/error.h"

/* Share of the n rows of scores[n, classes] whose largest score is at the label; NaN is never the largest. */
double hd_metric_accuracy(const float *scores, const int32_t *labels, int64_t n, int64_t classes);

/* Area under the receiver operating characteristic: the probability that a sample with label 1 scores above one with label 0, ties counted
 * half. NaN when there is only one kind, or a score is NaN. */
int hd_metric_auc(const float *scores, const int32_t *labels, int64_t n, double *out, hd_error *err);

#endif
