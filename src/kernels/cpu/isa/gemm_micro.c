/* The register tile of the dense product, one instance for each number of rows and of vectors, so that edges waste no multiply-adds and
 * every instance sums in the same order. */
#include "kernels/cpu/isa/gemm_isa.h"

#if HD_GEMM_UNIT == 4
typedef vi vacc;
#else
typedef vf vacc;
#endif

HD_INLINE vacc acc_load(const gemm_acc *p) { vacc v; memcpy(&v, p, sizeof v); return v; }
HD_INLINE void acc_store(gemm_acc *p, vacc v) { memcpy(p, &v, sizeof v); }

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

HD_INLINE vacc start(const int32_t *init, int j)
{
#if HD_GEMM_UNIT == 4
    return acc_load(init + j * HD_VL);
#else
    (void)init, (void)j;
    return (vacc){0};
#endif
}

/* One row streams b from memory: ask for it this many words of k ahead (48 words a step: 6 KiB). */
#define STREAM_AHEAD 32

HD_INLINE void micro(int mr, int nv, const uint32_t *a, const uint32_t *b, const int32_t *init, int64_t kw, gemm_acc *const *c, bool add)
{
    vacc acc[HD_GEMM_MR][HD_GEMM_NV];
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) {
            acc[i][j] = start(init, j);
            __builtin_prefetch(c[i] + j * HD_VL, 1);
        }
    for (int64_t k = 0; k < kw; k++) {
        vf bv[HD_GEMM_NV];
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) {
            bv[j] = vf_load((const float *)b + j * HD_VL);
            if (mr <= 2) __builtin_prefetch(b + STREAM_AHEAD * HD_GEMM_NR + j * HD_VL);
        }
#pragma GCC unroll 16
        for (int i = 0; i < mr; i++) {
            vf av = vf_set1(((const float *)a)[i]);
#pragma GCC unroll 4
            for (int j = 0; j < nv; j++) acc[i][j] = multiply_add(av, bv[j], acc[i][j]);
        }
        a += mr;
        b += HD_GEMM_NR;
    }
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) {
            gemm_acc *p = c[i] + j * HD_VL;
            acc_store(p, add ? acc_load(p) + acc[i][j] : acc[i][j]);
        }
}

#define NAME(mr, nv) micro_##mr##_##nv
#define INSTANCE(mr, nv) \
    static void NAME(mr, nv)(const uint32_t *a, const uint32_t *b, const int32_t *init, int64_t kw, gemm_acc *const *c, bool add) \
    { micro(mr, nv, a, b, init, kw, c, add); }

#if HD_GEMM_NV == 3
#define INSTANCES(mr) INSTANCE(mr, 1) INSTANCE(mr, 2) INSTANCE(mr, 3)
#define ROW(mr) {NAME(mr, 1), NAME(mr, 2), NAME(mr, 3)}
#else
#define INSTANCES(mr) INSTANCE(mr, 1) INSTANCE(mr, 2)
#define ROW(mr) {NAME(mr, 1), NAME(mr, 2)}
#endif

INSTANCES(1) INSTANCES(2) INSTANCES(3) INSTANCES(4)
#if HD_GEMM_MR >= 6
INSTANCES(5) INSTANCES(6)
#endif
#if HD_GEMM_MR >= 8
INSTANCES(7) INSTANCES(8)
#endif

static const gemm_micro_fn instances[HD_GEMM_MR][HD_GEMM_NV] = {
    ROW(1), ROW(2), ROW(3), ROW(4),
#if HD_GEMM_MR >= 6
    ROW(5), ROW(6),
#endif
#if HD_GEMM_MR >= 8
    ROW(7), ROW(8),
#endif
};

gemm_micro_fn HD_ISA(hd_gemm_micro)(int mr, int nv)
{
    return instances[mr - 1][nv - 1];
}
