/* position.c: rope and dropout: what depends on where a token stands. */
#include "base/rng.h"
#include "kernels/cpu/isa/rows.h"
#include "kernels/cpu/isa/vmath.h"

#if HD_ISA_LEVEL <= 2

static int64_t row_elements(const hd_tensor *t)
{
    int64_t n = 1;
    for (int i = 1; i < t->rank; i++) n *= t->dim[i];
    return n;
}

/* ---- rope (Su et al. 2021) ---- */

#define PAIRS 128 /* pairs of features whose angles are made at a time */

/* Angle minus the nearest multiple of pi/2, and that multiple's lowest bits as a double: angles are f64, as positions may be large. */
HD_INLINE vd angle_reduce(vd angle, vd *quadrant)
{
    const vd magic = vd_set1(6755399441055744.0); /* 1.5 * 2^52 */
    vd n = (angle * 0.63661977236758134308 + magic) - magic;
    vd r = angle - n * 1.57079632673412561417;
    r = r - n * 6.07710050650619224932e-11;
    vd quarter = (n * 0.25 + magic) - magic; /* keeps n - 4 * quarter within [-2, 2] */
    *quadrant = n - quarter * 4.0;
    return r;
}

/* cos and sin, times scale, of position * inv_freq[i .. i+n). */
static void rope_angles(float *c, float *s, const hd_tensor *freq, int64_t i, int64_t n, double position, double scale)
{
    for (int64_t j = 0; j < n; j += HD_VL) {
        vf f = vf_load_upto(freq->data, freq->dtype, i + j, lanes_left(n, j));
        vd ql, qh, low = angle_reduce(vd_low(f) * position, &ql), high = angle_reduce(vd_high(f) * position, &qh);
        vf cosine, sine = vf_sincos_quadrant(vf_from_vd(low, high), vi_from_vf(vf_from_vd(ql, qh)), &cosine);
        vf_store(c + j, cosine * (float)scale);
        vf_store(s + j, sine * (float)scale);
    }
}

HD_INLINE void rotate_halves(const hd_tensor *x, const hd_tensor *y, int64_t at, int64_t half, int64_t n, const float *c, const float *s)
{
    for (int64_t j = 0; j < n; j += HD_VL) {
        int m = lanes_left(n, j);
        vf u = vf_load_upto(x->data, x->dtype, at + j, m), v = vf_load_upto(x->data, x->dtype, at + half + j, m);
        vf cj = vf_load(c + j), sj = vf_load(s + j);
        vf_store_upto(y->data, y->dtype, at + j, vf_fnma(v, sj, u * cj), m);
        vf_store_upto(y->data, y->dtype, at + half + j, vf_fma(u, sj, v * cj), m);
    }
}

static void rotate_neighbours(const hd_tensor *x, const hd_tensor *y, int64_t at, int64_t n, const float *c, const float *s)
{
    float pair[2 * PAIRS + HD_VL];
    row_load(pair, x->data, x->dtype, at, 2 * n);
    for (int64_t j = 0; j < n; j++) {
        float u = pair[2 * j], v = pair[2 * j + 1];
        pair[2 * j] = u * c[j] - v * s[j];
        pair[2 * j + 1] = v * c[j] + u * s[j];
    }
    row_store(y->data, y->dtype, at, pair, 2 * n);
}

static void copy_rest(const hd_tensor *x, const hd_tensor *y, int64_t at, int64_t n)
{
    for (int64_t j = 0; j < n; j += HD_VL) {
        int m = lanes_left(n, j);
        vf_store_upto(y->data, y->dtype, at + j, vf_load_upto(x->data, x->dtype, at + j, m), m);
    }
}

static void rope_token(const hd_kernel_args *a, int64_t t)
{
    const hd_rope_attrs *at = a->attrs;
    const hd_tensor *x = &a->in[0], *y = &a->out[0], *freq = &a->in[2];
    int64_t heads = x->dim[1], e = x->dim[2], half = freq->dim[0];
    double position = ((const int32_t *)a->in[1].data)[t];
    _Alignas(64) float c[PAIRS + HD_VL], s[PAIRS + HD_VL];
    for (int64_t i = 0; i < half; i += PAIRS) {
        int64_t n = half - i < PAIRS ? half - i : PAIRS;
        rope_angles(c, s, freq, i, n, at->inverse ? -position : position, at->scale);
        for (int64_t h = 0; h < heads; h++) {
            int64_t row = (t * heads + h) * e;
            if (at->interleaved) rotate_neighbours(x, y, row + 2 * i, n, c, s);
            else rotate_halves(x, y, row + i, half, n, c, s);
        }
    }
    for (int64_t h = 0; h < heads && 2 * half < e; h++) copy_rest(x, y, (t * heads + h) * e + 2 * half, e - 2 * half);
}

static void run_rope(const hd_kernel_args *a)
{
    int64_t begin, end;
    if (!a->out[0].data) return;
    hd_split(a->in[0].dim[0], 1, a->tid, a->threads, &begin, &end);
    for (int64_t t = begin; t < end; t++) rope_token(a, t);
}

static bool supports_rope(const hd_kernel_args *a)
{
    return !a->accumulate && is_vf_dtype(a->in[0].dtype) && a->in[1].dtype == HD_I32 && is_vf_dtype(a->in[2].dtype) &&
           is_vf_dtype(a->out[0].dtype) && a->in[0].rank == 3;
}

/* ---- dropout ---- */

/* High and low words of the 32 x 32 bit products of each lane with m. */
HD_INLINE void multiply_wide(vu x, uint32_t m, vu *high, vu *low)
{
    typedef uint64_t vl __attribute__((vector_size(HD_VL * 4)));
    vl even = (vl)x & 0xffffffffu, odd = (vl)x >> 32;
#if HD_HAS_AVX512
    even = (vl)_mm512_mul_epu32((__m512i)even, _mm512_set1_epi64(m));
    odd = (vl)_mm512_mul_epu32((__m512i)odd, _mm512_set1_epi64(m));
#elif HD_HAS_AVX2
    even = (vl)_mm256_mul_epu32((__m256i)even, _mm256_set1_epi64x(m));
    odd = (vl)_mm256_mul_epu32((__m256i)odd, _mm256_set1_epi64x(m));
#else
    even *= m;
    odd *= m;
#endif
    *high = (vu)((even >> 32) | (odd & 0xffffffff00000000u));
    *low = (vu)((even & 0xffffffffu) | (odd << 32));
}

/* Which of HD_VL consecutive blocks a lane makes: so that transposing groups of four lanes puts all words in order (see store_words). */
HD_INLINE uint32_t block_of_lane(int lane)
{
    return (uint32_t)(lane % 4 * (HD_VL / 4) + lane / 4);
}

/* The words of HD_VL blocks, in the order of features. */
HD_INLINE void store_words(uint32_t *word, const vu c[4])
{
#if HD_HAS_AVX512
    __m512i a = _mm512_unpacklo_epi32((__m512i)c[0], (__m512i)c[1]), b = _mm512_unpackhi_epi32((__m512i)c[0], (__m512i)c[1]);
    __m512i d = _mm512_unpacklo_epi32((__m512i)c[2], (__m512i)c[3]), e = _mm512_unpackhi_epi32((__m512i)c[2], (__m512i)c[3]);
    _mm512_storeu_si512(word, _mm512_unpacklo_epi64(a, d));
    _mm512_storeu_si512(word + 16, _mm512_unpackhi_epi64(a, d));
    _mm512_storeu_si512(word + 32, _mm512_unpacklo_epi64(b, e));
    _mm512_storeu_si512(word + 48, _mm512_unpackhi_epi64(b, e));
#else
    for (int l = 0; l < HD_VL; l++)
        for (int w = 0; w < 4; w++) word[4 * block_of_lane(l) + (uint32_t)w] = c[w][l];
#endif
}

/* hd_philox_block for HD_VL counters at once: counter (sample, position << 32 | block .. block + HD_VL - 1). */
HD_INLINE void philox_lanes(uint64_t key, uint64_t sample, uint32_t position, uint32_t block, vu c[4])
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    c[0] = (vu)vi_set1((int32_t)(uint32_t)sample);
    c[1] = (vu)vi_set1((int32_t)(uint32_t)(sample >> 32));
    c[3] = (vu)vi_set1((int32_t)position);
    uint32_t blocks[HD_VL];
    for (int l = 0; l < HD_VL; l++) blocks[l] = block + block_of_lane(l);
    memcpy(&c[2], blocks, sizeof blocks);
    for (int round = 0; round < 10; round++) {
        vu h0, l0, h1, l1;
        multiply_wide(c[0], 0xd2511f53u, &h0, &l0);
        multiply_wide(c[2], 0xcd9e8d57u, &h1, &l1);
        c[0] = h1 ^ c[1] ^ k0;
        c[2] = h0 ^ c[3] ^ k1;
        c[1] = l1;
        c[3] = l0;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
}

/* Words that keep: those whose 24 bits are at least this. */
static uint32_t keep_from(double p)
{
    return (uint32_t)ceil(p * 0x1p24);
}

static void dropout_row(const hd_kernel_args *a, int64_t row, int64_t size, uint64_t key, uint32_t from, float scale)
{
    const hd_tensor *x = &a->in[0], *y = &a->out[0];
    uint64_t sample = (uint64_t)((const int64_t *)a->in[2].data)[row];
    uint32_t position = (uint32_t)((const int32_t *)a->in[3].data)[row];
    for (int64_t f = 0; f < size; f += 4 * HD_VL) {
        _Alignas(64) uint32_t word[4 * HD_VL];
        vu c[4];
        philox_lanes(key, sample, position, (uint32_t)(f / 4), c);
        store_words(word, c);
        for (int64_t j = f; j < size && j < f + 4 * HD_VL; j += HD_VL) {
            int m = lanes_left(size, j);
            vi keep = (vi)(((vu)vi_load((const int32_t *)word + (j - f)) >> 8) >= from);
            vf v = vf_load_upto(x->data, x->dtype, row * size + j, m) * scale;
            vf_store_upto(y->data, y->dtype, row * size + j, (vf)((vi)v & keep), m);
        }
    }
}

static void run_dropout(const hd_kernel_args *a)
{
    const hd_dropout_attrs *at = a->attrs;
    const int64_t *seed = a->in[1].data;
    int64_t size = row_elements(&a->in[0]), begin, end;
    if (!a->out[0].data || size == 0) return;
    uint64_t key = hd_hash_mix(hd_hash_mix((uint64_t)seed[0], (uint64_t)seed[1]), (uint64_t)at->site);
    hd_split(a->in[0].dim[0], 1, a->tid, a->threads, &begin, &end);
    for (int64_t r = begin; r < end; r++) dropout_row(a, r, size, key, keep_from(at->p), (float)(1 / (1 - at->p)));
}

static bool supports_dropout(const hd_kernel_args *a)
{
    return !a->accumulate && is_vf_dtype(a->in[0].dtype) && a->in[1].dtype == HD_I64 && a->in[2].dtype == HD_I64 &&
           a->in[3].dtype == HD_I32 && is_vf_dtype(a->out[0].dtype) && a->in[0].rank > 0;
}

const hd_kernel HD_ISA(hd_kernels_position)[] = {
    {"rope", supports_rope, NULL, run_rope},
    {"dropout", supports_dropout, NULL, run_dropout},
    {0},
};

#else
const hd_kernel HD_ISA(hd_kernels_position)[] = {{0}};
#endif
