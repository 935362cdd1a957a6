/* curve.h: what kernels reach of a device's peaks where nothing was measured: the roofline at an efficiency that depends on the shape. */
#ifndef HD_CLUSTER_CURVE_H
#define HD_CLUSTER_CURVE_H

#include "cluster/cost.h"

/* What a kernel does, as the curves see it. */
typedef struct hd_work {
    hd_cost_kind kind;
    hd_dtype dtype;        /* of operand 0 */
    double flops, bytes;
    double m, n, k, batch; /* PRODUCT: [batch] products of m x k by k x n. Attention: queries, a head's features, keys that a query sees, heads */
} hd_work;

void hd_cost_work(const hd_sig *sig, hd_work *out); /* cost.c */

/* FLOP/s and bytes/s that one rank can have at most: of a CPU, its threads' share of the cores, and its share of the node's memory bandwidth. */
double hd_curve_rate(const hd_device *d, hd_dtype dtype, int threads, int teams);
double hd_curve_bandwidth(const hd_device *d, int threads, int teams);

/* Seconds of one kernel, launch included. */
double hd_curve_seconds(const hd_device *d, const hd_work *w, int threads, int teams);

#endif
