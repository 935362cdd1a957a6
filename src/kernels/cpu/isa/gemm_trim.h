/* gemm_trim.h: reads trimmed panels of bf16 (gemm.h), with AVX-512BW. */
#ifndef HD_KERNELS_CPU_ISA_GEMM_TRIM_H
#define HD_KERNELS_CPU_ISA_GEMM_TRIM_H

#include "kernels/cpu/isa/gemm_isa.h"

#if HD_HAS_AVX512
enum { TRIM_THIRDS = 3 };

/* Where a trimmed panel is being read. */
typedef struct trim_reader {
    const uint8_t *group;
    const hd_gemm_rare *rare, *end; /* the next rare weight */
    uint32_t number;                /* of the group */
    __m512i high;                   /* the upper bytes, four times */
} trim_reader;

/* From group `first` on. */
HD_INLINE trim_reader trim_open(const hd_gemm_trim *t, uint32_t first)
{
    const uint8_t *groups = (const uint8_t *)(t + 1);
    trim_reader r = {.group = groups + (int64_t)first * HD_GEMM_TRIM_BYTES, .number = first};
    r.rare = (const hd_gemm_rare *)(groups + (int64_t)t->groups * HD_GEMM_TRIM_BYTES);
    r.end = r.rare + t->rare;
    while (r.rare < r.end && r.rare->at / HD_GEMM_TRIM_ELEMENTS < first) r.rare++;
    r.high = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)t->high));
    return r;
}

/* Vectors 4 * third .. 4 * third + 3 of the group, as if nothing in it were rare. */
HD_INLINE void trim_third(const trim_reader *r, int third, __m512i v[4])
{
    const __m512i nibble = _mm512_set1_epi8(15);
    const uint8_t *from = r->group + third * (HD_GEMM_TRIM_BYTES / TRIM_THIRDS);
    __m512i codes = _mm512_loadu_si512(from);
    for (int i = 0; i < 2; i++) {
        __m512i low = _mm512_loadu_si512(from + 64 * (1 + i));
        __m512i high = _mm512_shuffle_epi8(r->high, _mm512_and_si512(i ? _mm512_srli_epi16(codes, 4) : codes, nibble));
        v[2 * i] = _mm512_unpacklo_epi8(low, high);
        v[2 * i + 1] = _mm512_unpackhi_epi8(low, high);
    }
}

HD_INLINE bool trim_has_rare(const trim_reader *r) { return r->rare < r->end && r->rare->at / HD_GEMM_TRIM_ELEMENTS == r->number; }

/* The whole group, with what is rare in it. */
HD_INLINE void trim_group(trim_reader *r, uint16_t *out)
{
    for (int third = 0; third < TRIM_THIRDS; third++) {
        __m512i v[4];
        trim_third(r, third, v);
        for (int i = 0; i < 4; i++) _mm512_storeu_si512(out + (4 * third + i) * 32, v[i]);
    }
    for (; trim_has_rare(r); r->rare++) {
        uint16_t *x = &out[r->rare->at % HD_GEMM_TRIM_ELEMENTS];
        *x = (uint16_t)((*x & 255u) | r->rare->high << 8);
    }
}

HD_INLINE void trim_next(trim_reader *r)
{
    r->group += HD_GEMM_TRIM_BYTES;
    r->number++;
}
#endif
#endif
