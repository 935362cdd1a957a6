/* isa.h: what a kernel file sees of the instruction set it is being compiled for.
 *
 * Every file in this folder is compiled once per instruction set with HD_ISA_SUFFIX (_portable, _avx2, _avx512, _vnni, _bf16) and
 * HD_ISA_LEVEL (an hd_isa). HD_ISA(name) gives each copy its own external symbols; everything else must be static.
 *
 * The vector vocabulary: vf holds HD_VL floats (16, 8 or 4), vi as many int32, vd half as many doubles. All of them are GCC vector
 * types, so + - * / & | ^ ~ << >> and comparisons (which give a vi mask of 0 and -1) work directly. Loads and stores need no alignment.
 * _n forms touch only the first n elements of memory, 0 <= n <= HD_VL; what is not loaded is zero.
 * Rounding to bf16 and f16 is to nearest even, bit for bit as hd_bf16_from_f32 and hd_f16_from_f32 (denormals are kept). */
#ifndef HD_KERNELS_CPU_ISA_H
#define HD_KERNELS_CPU_ISA_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#include "kernels/kernel.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define HD_PASTE2(a, b) a##b
#define HD_PASTE(a, b) HD_PASTE2(a, b)
#define HD_ISA(name) HD_PASTE(name, HD_ISA_SUFFIX)

/* Whether the code being compiled may use these. */
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define HD_HAS_AVX512 1
#else
#define HD_HAS_AVX512 0
#endif
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define HD_HAS_AVX2 1
#else
#define HD_HAS_AVX2 0
#endif

#if HD_HAS_AVX512
#define HD_VL 16
#elif HD_HAS_AVX2
#define HD_VL 8
#else
#define HD_VL 4
#endif

/* Before a loop of constant length (at most 16): unrolls it, so that an array of vectors becomes registers. */
#if defined(__clang__)
#define HD_UNROLL _Pragma("clang loop unroll(full)")
#else
#define HD_UNROLL _Pragma("GCC unroll 16")
#endif

#define HD_INLINE static inline __attribute__((always_inline, unused))

typedef float vf __attribute__((vector_size(HD_VL * 4)));
typedef int32_t vi __attribute__((vector_size(HD_VL * 4)));
typedef uint32_t vu __attribute__((vector_size(HD_VL * 4)));
typedef double vd __attribute__((vector_size(HD_VL * 4)));         /* HD_VL / 2 doubles */
typedef uint16_t vh __attribute__((vector_size(HD_VL * 2)));       /* HD_VL half-words: bf16 or f16 bits */
typedef float vf_half __attribute__((vector_size(HD_VL * 2)));     /* HD_VL / 2 floats */

/* ---- load, store, broadcast ---- */

HD_INLINE vf vf_load(const float *p) { vf v; memcpy(&v, p, sizeof v); return v; }
HD_INLINE void vf_store(float *p, vf v) { memcpy(p, &v, sizeof v); }
HD_INLINE vi vi_load(const int32_t *p) { vi v; memcpy(&v, p, sizeof v); return v; }
HD_INLINE void vi_store(int32_t *p, vi v) { memcpy(p, &v, sizeof v); }
HD_INLINE vh vh_load(const uint16_t *p) { vh v; memcpy(&v, p, sizeof v); return v; }
HD_INLINE void vh_store(uint16_t *p, vh v) { memcpy(p, &v, sizeof v); }
HD_INLINE vf vf_zero(void) { return (vf){0}; }
HD_INLINE vf vf_set1(float x) { return x - (vf){0}; } /* minus: keeps -0 */
HD_INLINE vi vi_set1(int32_t x) { return (vi){0} + x; }
HD_INLINE vd vd_set1(double x) { return x - (vd){0}; }

HD_INLINE vf vf_load_n(const float *p, int n)
{
#if HD_HAS_AVX512
    return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
    vf v = {0};
    for (int i = 0; i < n; i++) v[i] = p[i];
    return v;
#endif
}
HD_INLINE void vf_store_n(float *p, vf v, int n)
{
#if HD_HAS_AVX512
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#else
    for (int i = 0; i < n; i++) p[i] = v[i];
#endif
}
HD_INLINE vh vh_load_n(const uint16_t *p, int n)
{
#if HD_HAS_AVX512
    return (vh)_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p);
#else
    vh v = {0};
    for (int i = 0; i < n; i++) v[i] = p[i];
    return v;
#endif
}
HD_INLINE void vh_store_n(uint16_t *p, vh v, int n)
{
#if HD_HAS_AVX512
    _mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1), (__m256i)v);
#else
    for (int i = 0; i < n; i++) p[i] = v[i];
#endif
}

/* ---- arithmetic ---- */

/* a * b + c: one rounding where the instruction set has a fused multiply-add, two on the portable x86 path. */
HD_INLINE vf vf_fma(vf a, vf b, vf c)
{
#if HD_HAS_AVX512
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif HD_HAS_AVX2
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}
/* c - a * b */
HD_INLINE vf vf_fnma(vf a, vf b, vf c) { return vf_fma(-a, b, c); }
HD_INLINE vf vf_sqrt(vf a)
{
#if HD_HAS_AVX512
    return (vf)_mm512_sqrt_ps((__m512)a);
#elif HD_HAS_AVX2
    return (vf)_mm256_sqrt_ps((__m256)a);
#else
    for (int i = 0; i < HD_VL; i++) a[i] = sqrtf(a[i]);
    return a;
#endif
}
/* mask ? a : b, lane by lane; mask lanes are 0 or -1. */
HD_INLINE vf vf_select(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }
HD_INLINE vi vi_select(vi mask, vi a, vi b) { return (a & mask) | (b & ~mask); }
/* As x86's maxps(a, b): b where either is NaN. */
HD_INLINE vf vf_max(vf a, vf b)
{
#if HD_HAS_AVX512
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif HD_HAS_AVX2
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return vf_select((vi)(a > b), a, b);
#endif
}
HD_INLINE vf vf_min(vf a, vf b)
{
#if HD_HAS_AVX512
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif HD_HAS_AVX2
    return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return vf_select((vi)(a < b), a, b);
#endif
}
HD_INLINE vf vf_abs(vf a) { return (vf)((vi)a & 0x7fffffff); }
/* Nearest integer, ties to even; |a| < 2^22. */
HD_INLINE vf vf_round(vf a)
{
    const vf magic = vf_set1(12582912.0f); /* 1.5 * 2^23 */
    return (a + magic) - magic;
}
/* Toward zero; out-of-range lanes are unspecified. */
HD_INLINE vi vi_from_vf(vf a) { return __builtin_convertvector(a, vi); }
HD_INLINE vf vf_from_vi(vi a) { return __builtin_convertvector(a, vf); }

/* ---- to and from double: the low and the high half of the lanes ---- */

HD_INLINE vd vd_low(vf a)
{
    vf_half h;
    memcpy(&h, &a, sizeof h);
    return __builtin_convertvector(h, vd);
}
HD_INLINE vd vd_high(vf a)
{
    vf_half h;
    memcpy(&h, (const char *)&a + sizeof h, sizeof h);
    return __builtin_convertvector(h, vd);
}
HD_INLINE vf vf_from_vd(vd low, vd high)
{
    vf_half h[2] = {__builtin_convertvector(low, vf_half), __builtin_convertvector(high, vf_half)};
    vf r;
    memcpy(&r, h, sizeof r);
    return r;
}

/* ---- across lanes: always as a balanced tree (lane i with lane i + half), so the same order everywhere for one HD_VL ---- */

HD_INLINE float vf_hsum(vf a)
{
#if HD_HAS_AVX2
#if HD_HAS_AVX512
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256((__m512)a), _mm512_extractf32x8_ps((__m512)a, 1));
#else
    __m256 h = (__m256)a;
#endif
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
#else
    for (int half = HD_VL / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) a[i] = a[i] + a[i + half];
    return a[0];
#endif
}
HD_INLINE double vd_hsum(vd a)
{
    for (int half = HD_VL / 4; half > 0; half /= 2)
        for (int i = 0; i < half; i++) a[i] = a[i] + a[i + half];
    return a[0];
}
/* Largest lane; NaN lanes make it unspecified. */
HD_INLINE float vf_hmax(vf a)
{
#if HD_HAS_AVX512
    return _mm512_reduce_max_ps((__m512)a);
#else
    float m = a[0];
    for (int i = 1; i < HD_VL; i++) m = a[i] > m ? a[i] : m;
    return m;
#endif
}

/* ---- bf16 and f16 ---- */

HD_INLINE vf vf_from_bf16(vh h) { return (vf)(__builtin_convertvector(h, vu) << 16); }
HD_INLINE vh bf16_from_vf(vf a)
{
#if HD_HAS_AVX512
    __m512i u = (__m512i)a, high = _mm512_srli_epi32(u, 16), odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    __m512i r = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(u, odd), _mm512_set1_epi32(0x7fff)), 16);
    __mmask16 nan = _mm512_cmp_ps_mask((__m512)a, (__m512)a, _CMP_UNORD_Q);
    return (vh)_mm512_cvtepi32_epi16(_mm512_mask_or_epi32(r, nan, high, _mm512_set1_epi32(0x40)));
#else
    vu u = (vu)a;
    vu rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    vu nan = (u >> 16) | 0x40u;
    vi is_nan = (vi)(a != a);
    return __builtin_convertvector((rounded & ~(vu)is_nan) | (nan & (vu)is_nan), vh);
#endif
}
HD_INLINE vf vf_from_f16(vh h)
{
#if HD_HAS_AVX512
    return (vf)_mm512_cvtph_ps((__m256i)h);
#elif HD_HAS_AVX2
    return (vf)_mm256_cvtph_ps((__m128i)h);
#else
    vf v;
    for (int i = 0; i < HD_VL; i++) v[i] = hd_f16_to_f32(h[i]);
    return v;
#endif
}
HD_INLINE vh f16_from_vf(vf a)
{
#if HD_HAS_AVX512
    return (vh)_mm512_cvtps_ph((__m512)a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif HD_HAS_AVX2
    return (vh)_mm256_cvtps_ph((__m256)a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    vh h;
    for (int i = 0; i < HD_VL; i++) h[i] = hd_f16_from_f32(a[i]);
    return h;
#endif
}

/* ---- elements i .. i+HD_VL-1 (or i+n-1) of an array of f32, bf16 or f16 ---- */

HD_INLINE vf vf_load_as(const void *p, hd_dtype t, int64_t i)
{
    if (t == HD_F32) return vf_load((const float *)p + i);
    vh h = vh_load((const uint16_t *)p + i);
    return t == HD_BF16 ? vf_from_bf16(h) : vf_from_f16(h);
}
HD_INLINE vf vf_load_as_n(const void *p, hd_dtype t, int64_t i, int n)
{
    if (t == HD_F32) return vf_load_n((const float *)p + i, n);
    vh h = vh_load_n((const uint16_t *)p + i, n);
    return t == HD_BF16 ? vf_from_bf16(h) : vf_from_f16(h);
}
HD_INLINE void vf_store_as(void *p, hd_dtype t, int64_t i, vf v)
{
    if (t == HD_F32) vf_store((float *)p + i, v);
    else vh_store((uint16_t *)p + i, t == HD_BF16 ? bf16_from_vf(v) : f16_from_vf(v));
}
HD_INLINE void vf_store_as_n(void *p, hd_dtype t, int64_t i, vf v, int n)
{
    if (t == HD_F32) vf_store_n((float *)p + i, v, n);
    else vh_store_n((uint16_t *)p + i, t == HD_BF16 ? bf16_from_vf(v) : f16_from_vf(v), n);
}
/* One element. */
HD_INLINE float f32_load_as(const void *p, hd_dtype t, int64_t i)
{
    if (t == HD_F32) return ((const float *)p)[i];
    uint16_t h = ((const uint16_t *)p)[i];
    return t == HD_BF16 ? hd_bf16_to_f32(h) : hd_f16_to_f32(h);
}
HD_INLINE void f32_store_as(void *p, hd_dtype t, int64_t i, float v)
{
    if (t == HD_F32) ((float *)p)[i] = v;
    else ((uint16_t *)p)[i] = t == HD_BF16 ? hd_bf16_from_f32(v) : hd_f16_from_f32(v);
}
/* Whether the loads and stores above take t. */
HD_INLINE bool is_vf_dtype(hd_dtype t) { return t == HD_F32 || t == HD_BF16 || t == HD_F16; }

#endif
