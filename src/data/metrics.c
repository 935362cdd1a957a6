#include "data/metrics.h"

#include <math.h>
#include <stdlib.h>

#include "base/mem.h"

double hd_metric_accuracy(const float *scores, const int32_t *labels, int64_t n, int64_t classes)
{
    int64_t right = 0;
    for (int64_t i = 0; i < n; i++) {
        const float *s = scores + i * classes;
        int64_t best = -1;
        for (int64_t c = 0; c < classes; c++)
            if (!isnan(s[c]) && (best < 0 || s[c] > s[best])) best = c;
        right += best >= 0 && best == labels[i];
    }
    return n ? (double)right / (double)n : 0;
}

typedef struct scored { float score; int32_t label; } scored;

static int by_score(const void *x, const void *y)
{
    float a = ((const scored *)x)->score, b = ((const scored *)y)->score;
    return (a > b) - (a < b);
}

/* Pairs (negative, positive) in the right order, ties half. */
static double pairs_in_order(const scored *s, int64_t n, double *negatives)
{
    double pairs = 0;
    *negatives = 0;
    for (int64_t i = 0; i < n;) {
        double here[2] = {0};
        int64_t j = i;
        for (; j < n && s[j].score == s[i].score; j++) here[s[j].label != 0]++;
        pairs += here[1] * (*negatives + here[0] / 2);
        *negatives += here[0];
        i = j;
    }
    return pairs;
}

int hd_metric_auc(const float *scores, const int32_t *labels, int64_t n, double *out, hd_error *err)
{
    scored *s = hd_malloc((size_t)(n ? n : 1) * sizeof *s);
    if (!s) return hd_fail_memory(err, (size_t)n * sizeof *s, "the metric");
    bool nan = false;
    for (int64_t i = 0; i < n; i++) {
        s[i] = (scored){scores[i], labels[i]};
        nan |= isnan(scores[i]);
    }
    double negatives = 0, pairs = 0;
    if (!nan) {
        qsort(s, (size_t)n, sizeof *s, by_score);
        pairs = pairs_in_order(s, n, &negatives);
    }
    *out = nan ? NAN : pairs / (negatives * ((double)n - negatives));
    hd_free(s);
    return 0;
}
