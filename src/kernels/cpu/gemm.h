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
 * columns, padded with zeros, and a word holds hd_gemm_unit(dtype) neighbours in k, lowest first. Headers: int8 has one row of int32,
 * -128 times each column's sum, which undoes the offset that makes the other operand unsigned; bf16 has an hd_gemm_trim; f32 none. The k
 * order is that of the K labels in the notation; every K label must occur in b. */
#ifndef HD_KERNELS_CPU_GEMM_H
#define HD_KERNELS_CPU_GEMM_H

#include "kernels/einsum.h"
#include "kernels/kernel.h"

/* Words of k in one block of the summation order. Also the depth of a cache block: 48 columns x 384 words are 72 KiB of a 1 MiB L2. */
#define HD_GEMM_KWORDS 384

/* Trimmed panels: bf16 in 12 bits without loss, for HD_ISA_BF16. Of a trained matrix's weights nearly all share 16 values of the upper byte
 * (the sign and seven bits of the exponent; that few exponents occur is the observation behind DFloat11, Zhang et al. 2025, arXiv:2504.11651,
 * which codes them at variable length). So a panel whose weights allow it has, instead of its k words, groups of HD_GEMM_TRIM_STEPS words of k,
 * the last one filled up, as three times
 *     codes of upper bytes [64], of `low[0]` in the low four bits and of `low[1]` in the high    low[2][64]: lower bytes
 * and behind them `rare` entries: weights of any other upper byte, ascending. In the order of an untrimmed panel a third is four vectors of 32
 * bf16; element e of vector v is byte 16 * (e / 8) + 8 * (v % 2) + e % 8 of low[v / 2], where interleaving the bytes of two registers puts it
 * into place.
 * The panel's room stays what it would be untrimmed; what is saved is that a quarter of it is not read. */
enum { HD_GEMM_TRIM_STEPS = 4, HD_GEMM_TRIM_WIDTH = 48, HD_GEMM_TRIM_ELEMENTS = HD_GEMM_TRIM_STEPS * HD_GEMM_TRIM_WIDTH * 2,
       HD_GEMM_TRIM_BYTES = HD_GEMM_TRIM_ELEMENTS * 3 / 2 };
typedef struct hd_gemm_trim {
    uint32_t groups;        /* 0: the panel is not trimmed */
    uint32_t rare;          /* how many */
    uint8_t high[16];       /* upper bytes by code */
    uint8_t unused[40];
} hd_gemm_trim;
typedef struct hd_gemm_rare { uint32_t at /* element of the panel: group * HD_GEMM_TRIM_ELEMENTS + v * 32 + e */, high; } hd_gemm_rare;

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
