/* gemm_isa.h: the parts of the dense product at one instruction set. Each level multiplies one kind of word:
 * bf16 pairs (HD_GEMM_UNIT 2), int8 quadruples (4), or f32 (1), to which everything else is converted while it is packed. */
#ifndef HD_KERNELS_CPU_ISA_GEMM_H
#define HD_KERNELS_CPU_ISA_GEMM_H

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/isa/isa.h"

#if HD_ISA_LEVEL == 4
#define HD_GEMM_UNIT 2
#elif HD_ISA_LEVEL == 3
#define HD_GEMM_UNIT 4
#else
#define HD_GEMM_UNIT 1
#endif

/* The register tile: MR rows by NV vectors of accumulators, sized to 32 (AVX-512) or 16 registers with B's vectors and a broadcast
 * beside. */
#if HD_HAS_AVX512
#define HD_GEMM_MR 8
#define HD_GEMM_NV 3
#elif HD_HAS_AVX2
#define HD_GEMM_MR 6
#define HD_GEMM_NV 2
#else
#define HD_GEMM_MR 4
#define HD_GEMM_NV 2
#endif
#define HD_GEMM_NR (HD_GEMM_NV * HD_VL)

#if HD_GEMM_UNIT == 4
typedef int32_t gemm_acc;
typedef vi vacc;
#else
typedef float gemm_acc;
typedef vf vacc;
#endif

HD_INLINE vacc acc_load(const gemm_acc *p) { vacc v; memcpy(&v, p, sizeof v); return v; }
HD_INLINE void acc_store(gemm_acc *p, vacc v) { memcpy(p, &v, sizeof v); }

/* c + a * b, word by word: the one step that every sum is a chain of. */
HD_INLINE vacc multiply_add(vf a, vf b, vacc c)
{
#if HD_GEMM_UNIT == 4
    return (vi)_mm512_dpbusd_epi32((__m512i)c, (__m512i)a, (__m512i)b);
#elif HD_GEMM_UNIT == 2
    return (vf)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
#else
    return vf_fma(a, b, c);
#endif
}

/* c[i][0 .. nv*HD_VL) = (add ? c : 0) + sum over kw words of a[k][mr] * b[k][NR], for one register tile; init: b's header row (int8),
 * else unused. */
typedef void (*gemm_micro_fn)(const uint32_t *a, const uint32_t *b, const int32_t *init, int64_t kw, gemm_acc *const *c, bool add);
gemm_micro_fn HD_ISA(hd_gemm_micro)(int mr, int nv);

/* The same of all NR columns of a trimmed panel, from group `group` of it on; bf16 only. */
typedef void (*gemm_trimmed_fn)(const uint32_t *a, const hd_gemm_trim *b, int64_t group, int64_t kw, gemm_acc *const *c, bool add);
gemm_trimmed_fn HD_ISA(hd_gemm_micro_trimmed)(int mr);

/* `count` rows (or columns) of an operand, each beginning at element offset[i] of data, and which way k runs from there. */
typedef struct gemm_source {
    const void *data;
    hd_dtype dtype;
    const int64_t *offset;     /* [count] */
    int count;
    const hd_einsum_nest *k;
    int operand;               /* which strides of k: 0 or 1 */
} gemm_source;

/* Where they are packed to: panels of `width` rows, panel p at words + p * distance as [ceil(kn/UNIT)][width] words. */
typedef struct gemm_panels {
    uint32_t *words;
    int width;
    int64_t distance;
} gemm_panels;

/* Packs k0 .. k0+kn-1 of the source. k past the end is zero; rows past count in the last panel are undefined. May write up to 2*HD_VL
 * words past the end of a panel, so they are written in order. bias: the bits that each int8 is xored with. */
void HD_ISA(hd_gemm_pack_words)(const gemm_panels *to, const gemm_source *s, int64_t k0, int64_t kn, uint32_t bias);
/* The same for columns n0 .. n0+count-1 of b read through g->window, from element `origin` of b on. */
void HD_ISA(hd_gemm_pack_window)(uint32_t *dst, int stride, const hd_gemm *g, int64_t origin, int64_t n0, int count, int64_t k0,
                                 int64_t kn);

/* Few rows against a b whose columns are neighbours in memory, without packing b: sum[0 .. columns) += over kn steps of k of a row of words
 * x[ceil(kn/UNIT)][x_stride] times b, whose element (k, j) is b[k * step + j]. The same chain as the register tile's. Not for int8. */
void HD_ISA(hd_gemm_stream_row)(gemm_acc *sum, int64_t columns, const uint32_t *x, int x_stride, const void *b, hd_dtype tb, int64_t step,
                                int64_t kn);

/* Whether this level multiplies operands of these dtypes. */
bool HD_ISA(hd_gemm_takes)(const hd_gemm *g);
/* Runs the whole product on the team of args; scratch is args->workspace, hd_gemm_workspace bytes. */
void HD_ISA(hd_gemm_run)(const hd_gemm *g, const hd_kernel_args *args);
size_t HD_ISA(hd_gemm_workspace)(const hd_gemm *g, int threads);

#endif
