/* measure.h: this machine's bounds, measured in a moment: what a kernel could reach at best. */
#ifndef HD_CLUSTER_MEASURE_H
#define HD_CLUSTER_MEASURE_H

#include "kernels/kernel.h"

typedef enum hd_bound {
    HD_BOUND_F32,  /* f32 multiply-adds in registers, FLOP/s */
    HD_BOUND_BF16, /* bf16 dot products in registers, FLOP/s; f32's where there are none */
    HD_BOUND_I8,   /* int8 dot products in registers, OP/s; f32's where there are none */
    HD_BOUND_READ, /* reading memory far larger than the caches, byte/s */
} hd_bound;

/* What all members of the team reach together, the best of `rounds` rounds of about 5 ms (READ: 30 ms, over 512 MiB that are mapped and given
 * back unless buffer, of at least that size, is given). 0 on failure (out of memory). */
#define HD_MEASURE_READ_BYTES ((size_t)512 << 20)
double hd_measure(hd_bound bound, hd_team *team, hd_isa isa, int rounds, void *buffer);

/* The median of `rounds` rounds instead of the best: for saying how fast memory was just now. */
double hd_measure_median(hd_bound bound, hd_team *team, hd_isa isa, int rounds, void *buffer);

#endif
