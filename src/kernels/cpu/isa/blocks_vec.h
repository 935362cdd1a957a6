/* blocks_vec.h: 16 lanes of int32 (bi) or float (bf), as products with block-quantized weights use them: one vector with AVX-512 VNNI, two with AVX2,
 * arrays otherwise. A bi also holds 64 bytes: a word of four neighbours in k for each of 16 columns. Every level computes the same bits. */
#ifndef HD_KERNELS_CPU_BLOCKS_VEC_H
#define HD_KERNELS_CPU_BLOCKS_VEC_H

#include "kernels/cpu/isa/isa.h"

/* The numbers of IQ4 types, plus 128; and the same bytes signed. */
#define HD_IQ4_VALUES 1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241
#define HD_IQ4_SIGNED 1, 24, 45, 63, 79, 93, 106, 118, -127, -115, -103, -90, -75, -59, -39, -15

#if defined(__AVX512VNNI__)

typedef __m512i bi;
typedef __m512 bf;

HD_INLINE bi bi_set1(int32_t x) { return _mm512_set1_epi32(x); }
HD_INLINE bi bi_load(const void *p) { return _mm512_loadu_si512(p); }
HD_INLINE bi bi_add(bi a, bi b) { return _mm512_add_epi32(a, b); }
HD_INLINE bi bi_mul(bi a, bi b) { return _mm512_mullo_epi32(a, b); }
/* acc + the products of four unsigned bytes of w and four signed ones of x. */
HD_INLINE bi bi_dot(bi acc, bi w, bi x) { return _mm512_dpbusd_epi32(acc, w, x); }
/* acc + the products of two neighbouring int16. */
HD_INLINE bi bi_dot_pairs(bi acc, bi w, bi x) { return _mm512_dpwssd_epi32(acc, w, x); }
/* 16 int8 as int32; 32 uint8 as int16. */
HD_INLINE bi bi_from_i8(const void *p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128(p)); }
HD_INLINE bi bi_pairs_from_u8(const void *p) { return _mm512_cvtepu8_epi16(_mm256_loadu_si256(p)); }
/* Bytes, of which the bits asked for are right: masked; shifted down (the top `count` bits are anything); a's where the mask has ones, b's elsewhere. */
HD_INLINE bi bi_and(bi v, int mask) { return _mm512_and_si512(v, _mm512_set1_epi8((char)mask)); }
HD_INLINE bi bi_down(bi v, int count) { return _mm512_srli_epi16(v, (unsigned)count); }
HD_INLINE bi bi_pick(int mask, bi a, bi b) { return _mm512_ternarylogic_epi32(_mm512_set1_epi8((char)mask), a, b, 0xca); }
HD_INLINE bi bi_lookup(bi v)
{
    const __m128i table = _mm_setr_epi8(HD_IQ4_SIGNED);
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), v);
}
HD_INLINE bf bf_set1(float x) { return _mm512_set1_ps(x); }
HD_INLINE bf bf_load(const float *p) { return _mm512_loadu_ps(p); }
HD_INLINE void bf_store(float *p, bf v) { _mm512_storeu_ps(p, v); }
HD_INLINE bf bf_from_bi(bi v) { return _mm512_cvtepi32_ps(v); }
HD_INLINE bf bf_from_f16(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256(p)); }
HD_INLINE bf bf_mul(bf a, bf b) { return _mm512_mul_ps(a, b); }
HD_INLINE bf bf_fma(bf a, bf b, bf c) { return _mm512_fmadd_ps(a, b, c); }
HD_INLINE bf bf_fnma(bf a, bf b, bf c) { return _mm512_fnmadd_ps(a, b, c); } /* c - a * b */

#elif HD_HAS_AVX2

typedef struct bi { __m256i v[2]; } bi;
typedef struct bf { __m256 v[2]; } bf;

#define HD_EACH_HALF HD_UNROLL for (int i = 0; i < 2; i++)

HD_INLINE bi bi_set1(int32_t x) { return (bi){{_mm256_set1_epi32(x), _mm256_set1_epi32(x)}}; }
HD_INLINE bi bi_load(const void *p)
{
    const __m256i *q = p;
    return (bi){{_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)}};
}
HD_INLINE bi bi_add(bi a, bi b)
{
    HD_EACH_HALF a.v[i] = _mm256_add_epi32(a.v[i], b.v[i]);
    return a;
}
HD_INLINE bi bi_mul(bi a, bi b)
{
    HD_EACH_HALF a.v[i] = _mm256_mullo_epi32(a.v[i], b.v[i]);
    return a;
}
/* maddubs saturates beyond 32767, so that the top bit of w goes on its own, as 64: 2 * 127 * 127 and 2 * 64 * 127 fit. */
HD_INLINE bi bi_dot(bi acc, bi w, bi x)
{
    const __m256i low = _mm256_set1_epi8(127), top = _mm256_set1_epi8(64), one = _mm256_set1_epi16(1), two = _mm256_set1_epi16(2);
    HD_EACH_HALF {
        __m256i a = _mm256_maddubs_epi16(_mm256_and_si256(w.v[i], low), x.v[i]);
        __m256i b = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(w.v[i], 1), top), x.v[i]);
        acc.v[i] = _mm256_add_epi32(acc.v[i], _mm256_add_epi32(_mm256_madd_epi16(a, one), _mm256_madd_epi16(b, two)));
    }
    return acc;
}
HD_INLINE bi bi_dot_pairs(bi acc, bi w, bi x)
{
    HD_EACH_HALF acc.v[i] = _mm256_add_epi32(acc.v[i], _mm256_madd_epi16(w.v[i], x.v[i]));
    return acc;
}
HD_INLINE bi bi_from_i8(const void *p)
{
    __m128i b = _mm_loadu_si128(p);
    return (bi){{_mm256_cvtepi8_epi32(b), _mm256_cvtepi8_epi32(_mm_srli_si128(b, 8))}};
}
HD_INLINE bi bi_pairs_from_u8(const void *p)
{
    const __m128i *q = p;
    return (bi){{_mm256_cvtepu8_epi16(_mm_loadu_si128(q)), _mm256_cvtepu8_epi16(_mm_loadu_si128(q + 1))}};
}
HD_INLINE bi bi_and(bi v, int mask)
{
    HD_EACH_HALF v.v[i] = _mm256_and_si256(v.v[i], _mm256_set1_epi8((char)mask));
    return v;
}
HD_INLINE bi bi_down(bi v, int count)
{
    HD_EACH_HALF v.v[i] = _mm256_srli_epi16(v.v[i], count);
    return v;
}
HD_INLINE bi bi_pick(int mask, bi a, bi b)
{
    const __m256i m = _mm256_set1_epi8((char)mask);
    HD_EACH_HALF a.v[i] = _mm256_or_si256(_mm256_and_si256(m, a.v[i]), _mm256_andnot_si256(m, b.v[i]));
    return a;
}
HD_INLINE bi bi_lookup(bi v)
{
    const __m256i table = _mm256_broadcastsi128_si256(_mm_setr_epi8(HD_IQ4_SIGNED));
    HD_EACH_HALF v.v[i] = _mm256_shuffle_epi8(table, v.v[i]);
    return v;
}
HD_INLINE bf bf_set1(float x) { return (bf){{_mm256_set1_ps(x), _mm256_set1_ps(x)}}; }
HD_INLINE bf bf_load(const float *p) { return (bf){{_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}}; }
HD_INLINE void bf_store(float *p, bf v)
{
    HD_EACH_HALF _mm256_storeu_ps(p + 8 * i, v.v[i]);
}
HD_INLINE bf bf_from_bi(bi v) { return (bf){{_mm256_cvtepi32_ps(v.v[0]), _mm256_cvtepi32_ps(v.v[1])}}; }
HD_INLINE bf bf_from_f16(const void *p)
{
    const __m128i *q = p;
    return (bf){{_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))}};
}
HD_INLINE bf bf_mul(bf a, bf b)
{
    HD_EACH_HALF a.v[i] = _mm256_mul_ps(a.v[i], b.v[i]);
    return a;
}
HD_INLINE bf bf_fma(bf a, bf b, bf c)
{
    HD_EACH_HALF c.v[i] = _mm256_fmadd_ps(a.v[i], b.v[i], c.v[i]);
    return c;
}
HD_INLINE bf bf_fnma(bf a, bf b, bf c)
{
    HD_EACH_HALF c.v[i] = _mm256_fnmadd_ps(a.v[i], b.v[i], c.v[i]);
    return c;
}

#else

typedef union bi { int32_t v[16]; uint8_t byte[64]; int8_t signed_byte[64]; int16_t half[32]; } bi;
typedef struct bf { float v[16]; } bf;

#define HD_EACH(n) for (int i = 0; i < (n); i++)

HD_INLINE bi bi_set1(int32_t x)
{
    bi a;
    HD_EACH(16) a.v[i] = x;
    return a;
}
HD_INLINE bi bi_load(const void *p)
{
    bi a;
    memcpy(&a, p, sizeof a);
    return a;
}
HD_INLINE bi bi_add(bi a, bi b)
{
    HD_EACH(16) a.v[i] += b.v[i];
    return a;
}
HD_INLINE bi bi_mul(bi a, bi b)
{
    HD_EACH(16) a.v[i] *= b.v[i];
    return a;
}
HD_INLINE bi bi_dot(bi acc, bi w, bi x)
{
    HD_EACH(64) acc.v[i / 4] += w.byte[i] * x.signed_byte[i];
    return acc;
}
HD_INLINE bi bi_dot_pairs(bi acc, bi w, bi x)
{
    HD_EACH(32) acc.v[i / 2] += w.half[i] * x.half[i];
    return acc;
}
HD_INLINE bi bi_from_i8(const void *p)
{
    bi a;
    HD_EACH(16) a.v[i] = ((const int8_t *)p)[i];
    return a;
}
HD_INLINE bi bi_pairs_from_u8(const void *p)
{
    bi a;
    HD_EACH(32) a.half[i] = ((const uint8_t *)p)[i];
    return a;
}
HD_INLINE bi bi_and(bi v, int mask)
{
    HD_EACH(64) v.byte[i] &= (uint8_t)mask;
    return v;
}
HD_INLINE bi bi_down(bi v, int count)
{
    HD_EACH(64) v.byte[i] = (uint8_t)(v.byte[i] >> count);
    return v;
}
HD_INLINE bi bi_pick(int mask, bi a, bi b)
{
    HD_EACH(64) a.byte[i] = (uint8_t)((a.byte[i] & mask) | (b.byte[i] & ~mask));
    return a;
}
HD_INLINE bi bi_lookup(bi v)
{
    static const uint8_t table[16] = {HD_IQ4_VALUES};
    HD_EACH(64) v.byte[i] = table[v.byte[i]];
    return v;
}
HD_INLINE bf bf_set1(float x)
{
    bf a;
    HD_EACH(16) a.v[i] = x;
    return a;
}
HD_INLINE bf bf_load(const float *p)
{
    bf a;
    memcpy(&a, p, sizeof a);
    return a;
}
HD_INLINE void bf_store(float *p, bf v) { memcpy(p, &v, sizeof v); }
HD_INLINE bf bf_from_bi(bi v)
{
    bf a;
    HD_EACH(16) a.v[i] = (float)v.v[i];
    return a;
}
HD_INLINE bf bf_from_f16(const void *p)
{
    bf a;
    HD_EACH(16) {
        uint16_t h;
        memcpy(&h, (const char *)p + 2 * i, 2);
        a.v[i] = hd_f16_to_f32(h);
    }
    return a;
}
HD_INLINE bf bf_mul(bf a, bf b)
{
    HD_EACH(16) a.v[i] *= b.v[i];
    return a;
}
HD_INLINE bf bf_fma(bf a, bf b, bf c)
{
    HD_EACH(16) c.v[i] = fmaf(a.v[i], b.v[i], c.v[i]);
    return c;
}
HD_INLINE bf bf_fnma(bf a, bf b, bf c)
{
    HD_EACH(16) c.v[i] = fmaf(-a.v[i], b.v[i], c.v[i]);
    return c;
}

#endif

HD_INLINE bi bi_zero(void) { return bi_set1(0); }

#endif
