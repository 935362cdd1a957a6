/* gemm.h: dense products: the problem as every instruction set's kernels see it, and constant operands packed beforehand.
 *
 *     c[batch, m, n] (+)= sum over k of a[batch, m, k] * b[batch, n, k]
 *
 * with batch, m, n and k each a nest of loops with any strides, so that transposed and headed tensors are read and written where they lie.
 *
 * Summation order, one for each (dtypes, instruction set): k ascending in blocks of HD_GEMM_KWORDS words; inside a block one chain of
 * fused multiply-adds from zero for each element of c (a word is one f32, a pair of bf16 as vdpbf16ps adds them, or four int8); the
 * blocks are added in order. It doesn't depend on m, n, the number of threads, the layout of the operands, or whether b came packed.
 *
 * Packed b (HD_PACKED): [batch][panel][header][k words][panel width] words of 4 bytes, where a panel is hd_gemm_panel_width(isa)
 * columns, padded with zeros, and a word holds hd_gemm_unit(dtype) neighbours in k, lowest first. Only int8 has a header: one row of
 * int32, -128 times each column's sum, which undoes the offset that makes the other operand unsigned. The k order is that of the K
 * labels in the notation; every K label must occur in b. */
#ifndef HD_KERNELS_CPU_GEMM_H
#define HD_KERNELS_CPU_GEMM_H

#include "kernels/einsum.h"
#include "kernels/kernel.h"

/* Words of k in one block of the summation order. Also the depth of a cache block: 48 columns x 384 words are 72 KiB of a 1 MiB L2. */
#define HD_GEMM_KWORDS 384

/* A strided operand's role taken by pieces of images, for convolutions: column j of b is an output position, and k a (channel, ky, kx),
 * or the other way round (transposed). Element (k, j) is image[channel][y][x] at
 *     y = (oy * step[0] + ky * tap[0] + shift[0]) / divide[0]   (x likewise)
 * and 0 where the division leaves a remainder or (y, x) is outside of the image. */
typedef struct hd_gemm_window {
    int64_t height, width;        /* of one image plane */
    int64_t out_w, out_plane;     /* output columns of a row; output positions of one image */
    int64_t kernel_w, kernel_plane;
    int64_t step[2], tap[2], shift[2], divide[2];
    int64_t image_stride;         /* elements from one image to the next; output positions run on over images */
    bool transposed;              /* columns are (channel, ky, kx), k is positions */
} hd_gemm_window;

typedef struct hd_gemm {
    const void *a, *b;
    void *c;
    hd_dtype ta, tb, tc;
    bool packed;     /* b is HD_PACKED */
    bool accumulate; /* add to c */
    hd_einsum_nest batch, m, n, k;
    const hd_gemm_window *window; /* not NULL: b is read through it, and the b strides of n and k are not used */
} hd_gemm;

/* Fills g from contract's operands; false when the notation and the operands don't agree. Swaps a and b where that makes c's rows
 * contiguous. */
bool hd_gemm_from_contract(hd_gemm *g, const hd_kernel_args *args);

/* How a team shares one problem: batches over tb, rows over tm, columns over tn threads. */
typedef struct hd_gemm_split { int tb, tm, tn; } hd_gemm_split;
hd_gemm_split hd_gemm_choose_split(const hd_gemm *g, int threads, int unit, int rows, int width);

/* Elements of k in one word: 1 for f32, 2 for bf16, 4 for i8; 0 for a dtype that cannot be packed. */
int hd_gemm_unit(hd_dtype t);
/* Columns of one panel. */
int hd_gemm_panel_width(hd_isa isa);
/* Words of one packed panel of depth k, its header included. */
int64_t hd_gemm_panel_words(hd_dtype t, int64_t k, int width);

/* Bytes of the second operand b of contract `spec` when packed for isa; 0 when no kernel of isa takes it packed. Only b's shape is read. */
size_t hd_gemm_packed_bytes(hd_isa isa, const char *spec, const hd_tensor *b);
/* Writes member tid's share (of `threads`) of packed b to dst, which has hd_gemm_packed_bytes bytes and is 64-byte aligned. */
void hd_gemm_pack(hd_isa isa, const char *spec, const hd_tensor *b, void *dst, int tid, int threads);

#endif
