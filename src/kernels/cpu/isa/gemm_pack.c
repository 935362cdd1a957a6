/* Packing: from wherever an operand lies to words [k][rows], converting on the way.
 *
 * Three routes: rows next to each other in memory are copied k by k; rows with k running through memory are transposed in registers, a
 * square of vectors at a time; anything else goes element by element. */
#include "kernels/cpu/isa/gemm_isa.h"

/* ---- registers: T x T words transposed; T is 4, 8 or 16 ---- */

#define TILE_SMALL (HD_VL < 8 ? 4 : 8) /* for the rows of A, of which there are at most 8 */

typedef uint32_t w4 __attribute__((vector_size(16)));

HD_INLINE void transpose4(w4 *r)
{
    w4 a = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5), b = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
    w4 c = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7), d = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
    r[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
    r[1] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
    r[2] = __builtin_shufflevector(c, d, 0, 1, 4, 5);
    r[3] = __builtin_shufflevector(c, d, 2, 3, 6, 7);
}

#if HD_HAS_AVX2
HD_INLINE void transpose8(__m256i *r)
{
    __m256i t[8];
    HD_UNROLL
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
    }
    HD_UNROLL
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    HD_UNROLL
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x20);
        t[i + 4] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x31);
    }
    memcpy(r, t, sizeof t);
}
#endif

#if HD_HAS_AVX512
HD_INLINE void transpose16(__m512i *r)
{
    __m512i t[16];
    HD_UNROLL
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    HD_UNROLL
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    HD_UNROLL
    for (int j = 0; j < 8; j++) { /* quarters 0 and 2 of rows j and j+4, then 1 and 3 */
        int i = j < 4 ? j : j + 4;
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    }
    HD_UNROLL
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}
#endif

/* ---- one k run: elements data + offset[i] + step * k, k = 0 .. n-1 ---- */

typedef struct run {
    const char *data;      /* at the run's first k */
    hd_dtype dtype;
    const int64_t *offset; /* elements */
    int count;
    int64_t step, n;
    uint32_t bias;
} run;

HD_INLINE int64_t element_size(hd_dtype t) { return t == HD_F32 ? 4 : t == HD_I8 ? 1 : 2; }

/* Into L2; L1 has too few ways for rows a power of two apart. */
HD_INLINE void ask(const void *p) { __builtin_prefetch(p, 0, 2); }

/* One vector of words of a row: as they lie in memory, or converted where UNIT is 1. lanes is 16, 8 or 4. */
HD_INLINE void load_words(void *out, int lanes, hd_dtype t, const char *p, int64_t word)
{
#if HD_GEMM_UNIT == 1
    if (t != HD_F32) {
        const uint16_t *h = (const uint16_t *)p + word;
#if HD_HAS_AVX512
        if (lanes == 8) {
            __m128i x = _mm_loadu_si128((const void *)h);
            __m256i y = t == HD_BF16 ? _mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16) : _mm256_castps_si256(_mm256_cvtph_ps(x));
            memcpy(out, &y, 32);
            return;
        }
#endif
        vf v = vf_load_as(h, t, 0);
        memcpy(out, &v, (size_t)lanes * 4);
        return;
    }
#else
    (void)t;
#endif
    memcpy(out, p + word * 4, (size_t)lanes * 4);
}

/* The first words of `lanes` rows from row `first` on; rows past the end repeat the last one. */
HD_INLINE void row_pointers(const char **row, int lanes, const run *r, int first)
{
    for (int i = 0; i < lanes; i++) row[i] = r->data + r->offset[first + i < r->count ? first + i : r->count - 1] * element_size(r->dtype);
}

/* Words begin .. of rows first .. first+TILE_SMALL-1, as many whole tiles as there are before `end`. Returns where it stopped. */
static int64_t transpose_small(uint32_t *dst, int stride, const run *r, int first, int64_t begin, int64_t end)
{
    const char *row[TILE_SMALL];
    row_pointers(row, TILE_SMALL, r, first);
    for (; begin + TILE_SMALL <= end; begin += TILE_SMALL) {
#if HD_HAS_AVX2
        __m256i v[8];
        const __m256i bias = _mm256_set1_epi32((int)r->bias);
#else
        w4 v[4];
        const w4 bias = (w4){0} + r->bias;
#endif
        HD_UNROLL
        for (int i = 0; i < TILE_SMALL; i++) {
            load_words(&v[i], TILE_SMALL, r->dtype, row[i], begin);
            v[i] = v[i] ^ bias;
        }
#if HD_HAS_AVX2
        transpose8(v);
#else
        transpose4(v);
#endif
        HD_UNROLL
        for (int i = 0; i < TILE_SMALL; i++) memcpy(dst + (begin + i) * stride + first, &v[i], sizeof v[i]);
    }
    return begin;
}

#if HD_HAS_AVX512
static int64_t transpose_large(uint32_t *dst, int stride, const run *r, int first, int64_t end)
{
    const char *row[16];
    int64_t w = 0, ahead = r->count > 1 ? (r->offset[1] - r->offset[0]) * stride * element_size(r->dtype) : 0; /* one panel */
    row_pointers(row, 16, r, first);
    for (; w + 16 <= end; w += 16) {
        __m512i v[16];
        const __m512i bias = _mm512_set1_epi32((int)r->bias);
        HD_UNROLL
        for (int i = 0; i < 16; i++) {
            load_words(&v[i], 16, r->dtype, row[i], w);
            ask(row[i] + w * HD_GEMM_UNIT * element_size(r->dtype) + ahead);
            if (HD_GEMM_UNIT == 4) v[i] = _mm512_xor_si512(v[i], bias);
        }
        transpose16(v);
        HD_UNROLL
        for (int i = 0; i < 16; i++) memcpy(dst + (w + i) * stride + first, &v[i], 64);
    }
    return w;
}
#endif

/* The whole tiles of one panel of a run whose step is 1: k goes through memory. Returns how many elements of k it did. In a panel narrower
 * than a tile each store spills into the next k, which is then written over: so k ascends. */
static int64_t pack_transposed(uint32_t *dst, int stride, const run *r)
{
    int64_t words = r->n / HD_GEMM_UNIT, large = 0, done = 0;
#if HD_HAS_AVX512
    if (stride % 16 == 0)
        for (int i = 0; i < r->count; i += 16) large = transpose_large(dst, stride, r, i, words);
#endif
    for (int i = 0; i < r->count; i += TILE_SMALL) done = transpose_small(dst, stride, r, i, large, words);
    return done * HD_GEMM_UNIT;
}

typedef uint16_t h8 __attribute__((vector_size(16)));
typedef uint32_t u8 __attribute__((vector_size(32)));

#if HD_GEMM_UNIT == 1
/* n neighbouring elements to words. */
HD_INLINE void copy_words(uint32_t *dst, const char *p, hd_dtype t, int n)
{
    int i = 0;
    for (; i + HD_VL <= n; i += HD_VL) vf_store((float *)dst + i, vf_load_as(p, t, i));
#if HD_HAS_AVX512
    if (i + 8 <= n) load_words(dst + i, 8, t, p, i), i += 8;
#endif
    for (; i < n; i++) ((float *)dst)[i] = f32_load_as(p, t, i);
}
#endif

#if HD_GEMM_UNIT == 2
/* n neighbouring elements of two steps of k to words: the first in the low half. */
HD_INLINE void copy_pairs(uint32_t *dst, const uint16_t *even, const uint16_t *odd, int n)
{
    int i = 0;
    for (; i + HD_VL <= n; i += HD_VL) {
        vu x = __builtin_convertvector(vh_load(even + i), vu) | __builtin_convertvector(vh_load(odd + i), vu) << 16;
        memcpy(dst + i, &x, sizeof x);
    }
    if (i + 8 <= n) {
        h8 a, b;
        memcpy(&a, even + i, 16), memcpy(&b, odd + i, 16);
        u8 x = __builtin_convertvector(a, u8) | __builtin_convertvector(b, u8) << 16;
        memcpy(dst + i, &x, 32);
        i += 8;
    }
    for (; i < n; i++) dst[i] = even[i] | (uint32_t)odd[i] << 16;
}
#endif

#if HD_GEMM_UNIT == 4
HD_INLINE void copy_quads(uint32_t *dst, const char *p, int64_t step, int n, uint32_t bias)
{
    for (int i = 0; i < n; i++)
        dst[i] = ((uint8_t)p[i] | (uint32_t)(uint8_t)p[step + i] << 8 | (uint32_t)(uint8_t)p[2 * step + i] << 16 |
                  (uint32_t)(uint8_t)p[3 * step + i] << 24) ^ bias;
}
#endif

#define ROWS_AHEAD 16 /* steps of k */

/* A run whose rows are neighbours in memory, over all panels, so that what is read together lies together. Returns the elements of k
 * done. */
static int64_t pack_adjacent(const gemm_panels *to, uint32_t *dst, const run *r)
{
    const char *p = r->data + r->offset[0] * element_size(r->dtype);
    int64_t k = 0, step = r->step * element_size(r->dtype), bytes = r->count * element_size(r->dtype);
    for (; k + HD_GEMM_UNIT <= r->n; k += HD_GEMM_UNIT, p += HD_GEMM_UNIT * step, dst += to->width) {
        for (int u = 0; u < HD_GEMM_UNIT; u++)
            for (int64_t line = 0; line < bytes; line += 64) ask(p + (ROWS_AHEAD + u) * step + line);
        for (int i = 0; i < r->count; i += to->width) {
            uint32_t *panel = dst + i / to->width * to->distance;
            int n = r->count - i < to->width ? r->count - i : to->width;
#if HD_GEMM_UNIT == 1
            copy_words(panel, p + i * element_size(r->dtype), r->dtype, n);
#elif HD_GEMM_UNIT == 2
            copy_pairs(panel, (const uint16_t *)p + i, (const uint16_t *)(p + step) + i, n);
#else
            copy_quads(panel, p + i, step, n, r->bias);
#endif
        }
    }
    return k;
}

/* The rest of one panel, element by element, k from `done` on; `at` is the run's first k within the block. The first element of a word
 * clears the others. */
static void pack_elements(uint32_t *dst, int stride, const run *r, int64_t at, int64_t done)
{
    for (int64_t k = done; k < r->n; k++) {
        int64_t word = (at + k) / HD_GEMM_UNIT * stride;
        int part = (int)((at + k) % HD_GEMM_UNIT);
        for (int i = 0; i < r->count; i++) {
            int64_t from = r->offset[i] + k * r->step;
#if HD_GEMM_UNIT == 1
            (void)part;
            ((float *)dst)[word + i] = f32_load_as(r->data, r->dtype, from);
#elif HD_GEMM_UNIT == 2
            uint32_t value = ((const uint16_t *)r->data)[from];
            dst[word + i] = part ? dst[word + i] | value << 16 : value;
#else
            uint32_t value = ((const uint8_t *)r->data)[from] ^ (uint8_t)r->bias;
            dst[word + i] = part ? dst[word + i] | value << 8 * part : value;
#endif
        }
    }
}

static bool rows_adjacent(const gemm_source *s)
{
    for (int i = 1; i < s->count; i++)
        if (s->offset[i] != s->offset[0] + i) return false;
    return s->count > 1;
}

/* A single row whose step is 1 (a token's activations): as it lies. Returns the elements of k done. */
static int64_t pack_single(uint32_t *dst, const run *r)
{
    const char *p = r->data + r->offset[0] * element_size(r->dtype);
    int64_t words = r->n / HD_GEMM_UNIT;
#if HD_GEMM_UNIT == 1
    copy_words(dst, p, r->dtype, (int)words);
#else
    memcpy(dst, p, (size_t)words * 4);
    if (HD_GEMM_UNIT == 4)
        for (int64_t i = 0; i < words; i++) dst[i] ^= r->bias;
#endif
    return words * HD_GEMM_UNIT;
}

/* One run of k into every panel (rows adjacent) or into a single one. */
static void pack_run(const gemm_panels *to, const run *all, int64_t at, bool adjacent)
{
    uint32_t *first = to->words + at / HD_GEMM_UNIT * to->width;
    int64_t done = 0;
    if (at % HD_GEMM_UNIT == 0) {
        if (adjacent) done = pack_adjacent(to, first, all);
        else if (all->step == 1) done = to->width == 1 ? pack_single(first, all) : pack_transposed(first, to->width, all);
    }
    if (done == all->n) return;
    for (int i = 0; i < all->count; i += to->width) {
        run r = *all;
        r.offset += i;
        r.count = all->count - i < to->width ? all->count - i : to->width;
        pack_elements(to->words + i / to->width * to->distance, to->width, &r, at, done);
    }
}

static void pack_runs(const gemm_panels *to, const gemm_source *s, int64_t k0, int64_t kn, uint32_t bias, bool adjacent)
{
    const hd_einsum_nest *k = s->k;
    int64_t inner = k->n ? k->extent[k->n - 1] : 1, step = k->n ? k->stride[s->operand][k->n - 1] : 0;
    for (int64_t at = 0; at < kn;) {
        int64_t left = inner - (k0 + at) % inner;
        run r = {.dtype = s->dtype, .offset = s->offset, .count = s->count, .step = step, .bias = bias};
        r.n = left < kn - at ? left : kn - at;
        r.data = (const char *)s->data + hd_einsum_offset(k, s->operand, k0 + at) * element_size(s->dtype);
        pack_run(to, &r, at, adjacent);
        at += r.n;
    }
}

void HD_ISA(hd_gemm_pack_words)(const gemm_panels *to, const gemm_source *s, int64_t k0, int64_t kn, uint32_t bias)
{
    if (rows_adjacent(s)) {
        pack_runs(to, s, k0, kn, bias, true);
        return;
    }
    for (int i = 0; i < s->count; i += to->width) {
        gemm_source part = *s;
        gemm_panels panel = {to->words + i / to->width * to->distance, to->width, 0};
        part.offset += i;
        part.count = s->count - i < to->width ? s->count - i : to->width;
        pack_runs(&panel, &part, k0, kn, bias, false);
    }
}

/* ---- convolutions: f32 words gathered from images ---- */

#if HD_GEMM_UNIT == 1
/* The image coordinate that a window names before division, as an index into a row or column of `extent`; -1 where nothing is. */
HD_INLINE int64_t window_index(int64_t at, int64_t divide, int64_t extent)
{
    if (divide > 1) {
        if (at % divide) return -1;
        at /= divide;
    }
    return at < 0 || at >= extent ? -1 : at;
}

/* n neighbouring output positions of one output row: image row at `from` (elements), columns x, x + step, ...; to dst[0], dst[gap], ... */
static void gather_row(float *dst, int64_t gap, const hd_gemm *g, int64_t from, int64_t x, int64_t n)
{
    const hd_gemm_window *w = g->window;
    int64_t step = w->step[1], first = 0, last = n;
    if (w->divide[1] > 1) { /* a gradient's window, whose step is 1: every divide-th position is one of dy's */
        int64_t divide = w->divide[1], phase = (x % divide + divide) % divide, i = phase ? divide - phase : 0;
        for (int64_t j = 0; j < n; j++) dst[j * gap] = 0.0f;
        for (int64_t at = (x + i) / divide; i < n; i += divide, at++)
            if (at >= 0 && at < w->width) dst[i * gap] = f32_load_as(g->b, g->tb, from + at);
        return;
    }
    while (first < n && x + first * step < 0) first++;
    while (last > first && x + (last - 1) * step >= w->width) last--;
    for (int64_t i = 0; i < first; i++) dst[i * gap] = 0.0f;
    for (int64_t i = last; i < n; i++) dst[i * gap] = 0.0f;
    if (g->tb == HD_F32 && gap == 1 && step == 1) memcpy(dst + first, (const float *)g->b + from + x + first, (size_t)(last - first) * 4);
    else
        for (int64_t i = first; i < last; i++) dst[i * gap] = f32_load_as(g->b, g->tb, from + x + i * step);
}

/* What tap t (channel, ky, kx) sees at output positions first .. first+n-1, to dst[0], dst[gap], ... */
static void gather_tap(float *dst, int64_t gap, const hd_gemm *g, int64_t origin, int64_t t, int64_t first, int64_t n)
{
    const hd_gemm_window *w = g->window;
    int64_t channel = t / w->kernel_plane, ky = t % w->kernel_plane / w->kernel_w, kx = t % w->kernel_w;
    origin += channel * w->height * w->width;
    while (n > 0) {
        int64_t image = first / w->out_plane, oy = first % w->out_plane / w->out_w, ox = first % w->out_plane % w->out_w;
        int64_t len = w->out_w - ox < n ? w->out_w - ox : n;
        int64_t y = window_index(oy * w->step[0] + ky * w->tap[0] + w->shift[0], w->divide[0], w->height);
        int64_t x = ox * w->step[1] + kx * w->tap[1] + w->shift[1];
        if (y >= 0) gather_row(dst, gap, g, origin + image * w->image_stride + y * w->width, x, len);
        else
            for (int64_t i = 0; i < len; i++) dst[i * gap] = 0.0f;
        dst += len * gap, first += len, n -= len;
    }
}

void HD_ISA(hd_gemm_pack_window)(uint32_t *dst, int stride, const hd_gemm *g, int64_t origin, int64_t n0, int count, int64_t k0, int64_t kn)
{
    float *to = (float *)dst;
    if (g->window->transposed)
        for (int i = 0; i < count; i++) gather_tap(to + i, stride, g, origin, n0 + i, k0, kn);
    else
        for (int64_t k = 0; k < kn; k++) gather_tap(to + k * stride, 1, g, origin, k0 + k, n0, count);
}
#endif
