/* curve.h: what share of a device's peak a matrix product reaches, by its shape: the documented curve that stands in where nothing was measured.
 *
 *   share = product * F / (F + product_half) * k / (k + depth_half) * s / (s + depth_half)
 *
 * F: FLOPs of one call, all its batches together; k: the summed extent; s: the shorter side of one result. (hd_efficiency.) Why:
 *   product       Of very large products: the tensor cores are fed through shared memory and registers and clocks fall under full load, so cuBLAS and CUTLASS
 *                 end at 75 to 90 % of the data sheet's rate (A100, 312 TFLOP/s).
 *   product_half  A grid of tiles runs in waves over the chip's multiprocessors: the last wave is partly empty and every call fills and drains the memory
 *                 pipeline once. Lost time is about constant per call, so the share is F / (F + what could have been done in that time).
 *   depth_half    A tile (128 x 256 of the result) loads k steps of operands: prologue (first loads) and epilogue (results written, converted) cost as much as
 *                 some tens of steps. The same along a short side: a tile that sticks out computes zeros.
 *   memory        Streaming kernels reach 75 to 90 % of DRAM's rate: refresh, row misses, turning between reads and writes. */
#ifndef HD_CLUSTER_CURVE_H
#define HD_CLUSTER_CURVE_H

#include "cluster/cluster.h"
#include "graph/op.h"

/* batch products of [m, k] by [k, n]. */
typedef struct hd_product_shape { double batch, m, n, k; } hd_product_shape;

/* The share of the peak, 0..efficiency->product. */
double hd_curve_product(const hd_efficiency *e, const hd_product_shape *s);

/* The products inside an op: contractions, attention and its gradient, convolutions. False: it has none, memory bounds it. */
bool hd_curve_shape(const hd_sig *sig, hd_product_shape *out);

#endif
