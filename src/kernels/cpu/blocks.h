/* blocks.h: products with weights in the block types of GGUF files, repacked once for the instruction set.
 *
 *     y[t, n] = sum over k of x[t, k] * w[n, k]         the op `contract` where operand 1 has `blocks` (hd_tensor) and is HD_PACKED
 *
 * Weights: [columns][k] as in the file, a column (a row of the file's tensor) being whole blocks; packed into panels of 16 columns, so that one vector holds
 * the same four (k) of 16 columns. Integer types keep their integers; scales and minima are laid out for vectors, at most 4 % more bytes than the file.
 *
 * Numbers, one definition for every row count, thread count and instruction set that has these kernels:
 *   x is rounded to int8 in blocks of 32 (types with blocks of 32) or 256 (K types) elements: scale = max |x| / 127 as f32 (rounded to f16 where the block is 32,
 *   as ggml's Q8_0 is), to nearest even; F16 weights take x as it is, in f32.
 *   A block's integer products are summed exactly; blocks are added in f32 by fused multiply-adds, k ascending: one chain for an element of y.
 * The result is rounded once to y's dtype. x may be f32, bf16 or f16; y likewise. */
#ifndef HD_KERNELS_CPU_BLOCKS_H
#define HD_KERNELS_CPU_BLOCKS_H

#include "kernels/kernel.h"
#include "tensor/quant.h"

/* Bytes of w [columns, k] packed for isa, a multiple of 64; 0: no kernel of isa takes this type (the weights are then dequantized when they are loaded). */
size_t hd_blocks_packed_bytes(hd_isa isa, const hd_quant *type, int64_t columns, int64_t k);
/* Writes member tid's share (of `threads`) of the panels to dst, 64-byte aligned. rows: as in the file, at any alignment. */
void hd_blocks_pack(hd_isa isa, const hd_quant *type, const void *rows, int64_t columns, int64_t k, void *dst, int tid, int threads);

#endif
