/* logits.h: passes over a row of logits, vectorised by the compiler from fixed-width vectors: every machine adds in the same order.
 * For this folder's files only.
 *
 * NaN is never the highest and weighs nothing. */
#ifndef HD_SERVE_LOGITS_H
#define HD_SERVE_LOGITS_H

#include <stdint.h>

#define HD_LOGITS_BLOCK 64 /* logits whose highest is kept together */

static inline int64_t hd_logits_blocks(int64_t n) { return (n + HD_LOGITS_BLOCK - 1) / HD_LOGITS_BLOCK; }

/* The highest of x[n], -INFINITY if there is none; highest[hd_logits_blocks(n)] (may be NULL) gets each block's. */
float hd_logits_max(const float *x, int64_t n, float *highest);
/* The first place of the highest, found in one pass; -1 when all are NaN. */
int64_t hd_logits_argmax(const float *x, int64_t n);

typedef struct hd_logits_mass {
    double sum;  /* of w = exp((x - top) * scale) */
    double tilt; /* of w * (x - top) * scale, which the entropy is made of */
} hd_logits_mass;

/* Over those with x >= least. top: the highest, finite. */
hd_logits_mass hd_logits_sum(const float *x, int64_t n, float top, double scale, double least);

#define HD_LOGITS_LEVELS 12
/* The same over all; above[i] gets the sum of those with (x - top) * scale >= -(i + 1). */
hd_logits_mass hd_logits_levels(const float *x, int64_t n, float top, double scale, double above[HD_LOGITS_LEVELS]);
/* y becomes exp(y), y <= 0, as hd_logits_sum has it; 0 below -700 and for NaN. */
void hd_logits_exp(double y[8]);

#endif
