/* attention_tile.h: what forward and backward attention share: small dense products on packed tiles, packing, and which keys a query sees.
 *
 * Words: packed operands are 32-bit words, either one f32 or two consecutive bf16 of the contracted dimension, so that one product
 * serves both: a word of A is broadcast, a vector of words of B is loaded, and the step is a fused multiply-add or a bf16 dot product. The
 * bf16 form (pairs) is used when all operands are bf16 and the instruction set has it.
 * Key tiles lie at multiples of KEY_TILE from key 0, so that a query row's arithmetic never depends on which other rows are in the call.
 * Rows: query i and head g of a group of G share their keys; row r = i * G + g. Blocks of up to ROW_BLOCK rows go through the products. */
#ifndef HD_KERNELS_CPU_ATTENTION_TILE_H
#define HD_KERNELS_CPU_ATTENTION_TILE_H

#include "kernels/cpu/isa/rows.h"
#include "kernels/cpu/isa/vmath.h"

#define KEY_TILE 64
#define ROW_TILE 64
#define ROW_BLOCK 4

/* Vectors of a product's column group: ROW_BLOCK x GROUP accumulators stay in registers. */
#if HD_HAS_AVX512
#define GROUP 4
#else
#define GROUP 2
#endif

#define LOG2E 1.4426950408889634
#define LN2 0.6931471805599453

typedef uint32_t word;

/* ---- products ---- */

HD_INLINE vi words_load(const word *p)
{
    vi v;
    memcpy(&v, p, sizeof v);
    return v;
}

HD_INLINE vf word_multiply_add(vf acc, vi a, vi b, bool pairs)
{
#if HD_ISA_LEVEL >= 4
    if (pairs) return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#endif
    (void)pairs;
    return vf_fma((vf)a, (vf)b, acc);
}

/* c[i][0 .. nv*HD_VL) = start + sum over k of a[i*a_row + k*a_step] * b[k*ldb ...], i < rows; start is c[i] * scale[i], c[i] or 0. */
typedef struct product {
    const word *a, *b;
    float *c;
    int64_t a_row, a_step, ldb, ldc; /* words, words, words, floats */
    int k;
    const float *scale; /* per row, or NULL */
    bool add;           /* start from c; else from 0 */
} product;

HD_INLINE void product_group(const product *p, int64_t col, int rows, int nv, bool pairs)
{
    vf acc[ROW_BLOCK][GROUP];
    HD_UNROLL
    for (int i = 0; i < rows; i++)
        HD_UNROLL
        for (int v = 0; v < nv; v++) {
            acc[i][v] = p->add ? vf_load(p->c + i * p->ldc + col + v * HD_VL) : vf_zero();
            if (p->scale) acc[i][v] = acc[i][v] * p->scale[i];
        }
    const word *b = p->b + col, *a = p->a;
    int64_t ldb = p->ldb, a_row = p->a_row, a_step = p->a_step;
    for (int k = 0; k < p->k; k++, b += ldb, a += a_step) {
        vi bv[GROUP];
        HD_UNROLL
        for (int v = 0; v < nv; v++) bv[v] = words_load(b + v * HD_VL);
        HD_UNROLL
        for (int i = 0; i < rows; i++) {
            vi av = vi_set1((int32_t)a[i * a_row]);
            HD_UNROLL
            for (int v = 0; v < nv; v++) acc[i][v] = word_multiply_add(acc[i][v], av, bv[v], pairs);
        }
    }
    HD_UNROLL
    for (int i = 0; i < rows; i++)
        HD_UNROLL
        for (int v = 0; v < nv; v++) vf_store(p->c + i * p->ldc + col + v * HD_VL, acc[i][v]);
}

/* columns is a multiple of HD_VL. Inlined with constant rows and pairs. */
HD_INLINE void product_run(const product *p, int64_t columns, int rows, bool pairs)
{
    int64_t col = 0;
    for (; col + GROUP * HD_VL <= columns; col += GROUP * HD_VL) product_group(p, col, rows, GROUP, pairs);
    for (; GROUP > 2 && col + 2 * HD_VL <= columns; col += 2 * HD_VL) product_group(p, col, rows, 2, pairs);
    for (; col < columns; col += HD_VL) product_group(p, col, rows, 1, pairs);
}

/* ---- scores ---- */

/* From a product of query and key to a score in units of log 2: x * scale, or cap * tanh(x * scale) where scores are capped. */
typedef struct score_form {
    float scale, cap;
} score_form;

HD_INLINE score_form score_form_of(double scale, double softcap)
{
    if (softcap > 0) return (score_form){(float)(scale / softcap), (float)(softcap * LOG2E)};
    return (score_form){(float)(scale * LOG2E), 0};
}

HD_INLINE vf score_of(const score_form *form, vf x)
{
    return form->cap > 0 ? vf_tanh(x * form->scale) * form->cap : x * form->scale;
}

/* ---- packing ---- */

/* Words that n contracted elements take. */
HD_INLINE int64_t word_count(int64_t n, bool pairs)
{
    return pairs ? (n + 1) / 2 : n;
}

/* dst[0 .. words) = a row of n elements at `at`, the rest zero. words >= word_count(n). */
static inline void pack_row(word *dst, int64_t words, const void *src, hd_dtype t, int64_t at, int64_t n, bool pairs)
{
    if (pairs) {
        memcpy(dst, (const uint16_t *)src + at, (size_t)n * 2);
        if (n < words * 2) memset((uint16_t *)dst + n, 0, (size_t)(words * 2 - n) * 2);
        return;
    }
    float *f = (float *)dst;
    int64_t j = 0;
    for (; j + HD_VL <= n; j += HD_VL) vf_store(f + j, vf_load_as(src, t, at + j));
    if (j < n) vf_store_n(f + j, vf_load_as_n(src, t, at + j, (int)(n - j)), (int)(n - j));
    if (n < words) memset(f + n, 0, (size_t)(words - n) * sizeof(float));
}

/* Rows 2i and 2i+1 of n bf16 elements interleaved into dst[0 .. words); b may be NULL for zeros. words is a multiple of HD_VL. */
static inline void pack_interleaved(word *dst, int64_t words, const uint16_t *a, const uint16_t *b, int64_t n)
{
    int64_t j = 0;
#if HD_HAS_AVX512
    __m512i low = _mm512_cvtepu16_epi32(_mm256_set_epi16(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
    low = _mm512_or_si512(low, _mm512_slli_epi32(_mm512_add_epi32(low, _mm512_set1_epi32(32)), 16)); /* a0 b0 a1 b1 ... */
    for (; a && b && j + 32 <= n; j += 32) {
        __m512i x = _mm512_loadu_si512(a + j), y = _mm512_loadu_si512(b + j);
        _mm512_storeu_si512(dst + j, _mm512_permutex2var_epi16(x, low, y));
        _mm512_storeu_si512(dst + j + 16, _mm512_permutex2var_epi16(x, _mm512_add_epi16(low, _mm512_set1_epi16(16)), y));
    }
#endif
    for (; j < words; j += HD_VL) {
        int m = j >= n ? 0 : lanes_left(n, j);
        vu lo = m > 0 && a ? __builtin_convertvector(vh_load_n(a + j, m), vu) : (vu){0};
        vu hi = m > 0 && b ? __builtin_convertvector(vh_load_n(b + j, m), vu) : (vu){0};
        vi_store((int32_t *)dst + j, (vi)(lo | hi << 16));
    }
}

#if HD_HAS_AVX512
/* In place: x[i] lane j <-> x[j] lane i, by halves of 1, 2, 4 and 8 lanes. */
HD_INLINE void transpose_16(__m512i x[16])
{
    HD_UNROLL
    for (int d = 1; d < 16; d *= 2) {
        int32_t lo[16], hi[16];
        HD_UNROLL
        for (int l = 0; l < 16; l++) {
            lo[l] = l & d ? 16 + l - d : l;
            hi[l] = l & d ? 16 + l : l + d;
        }
        __m512i ilo = _mm512_loadu_si512(lo), ihi = _mm512_loadu_si512(hi);
        HD_UNROLL
        for (int i = 0; i < 16; i++)
            if (!(i & d)) {
                __m512i a = x[i], b = x[i + d];
                x[i] = _mm512_permutex2var_epi32(a, ilo, b);
                x[i + d] = _mm512_permutex2var_epi32(a, ihi, b);
            }
    }
}
#endif

/* dst[w * KEY_TILE + j] = word w of row j, at src + at[j]; zeros where at[j] is negative. */
HD_INLINE void transpose_gathered(word *dst, const word *src, const int64_t at[KEY_TILE], int64_t words)
{
#if HD_HAS_AVX512
    for (int64_t w = 0; w < words; w += 16)
        for (int j = 0; j < KEY_TILE; j += 16) {
            __m512i x[16];
            __mmask16 mask = (__mmask16)(words - w >= 16 ? 0xffff : (1u << (words - w)) - 1);
            HD_UNROLL
            for (int i = 0; i < 16; i++)
                x[i] = at[j + i] >= 0 ? _mm512_maskz_loadu_epi32(mask, src + at[j + i] + w) : _mm512_setzero_si512();
            transpose_16(x);
            HD_UNROLL
            for (int i = 0; i < 16; i++)
                if (w + i < words) _mm512_storeu_si512(dst + (w + i) * KEY_TILE + j, x[i]);
        }
#else
    for (int j = 0; j < KEY_TILE; j++)
        for (int64_t w = 0; w < words; w++) dst[w * KEY_TILE + j] = at[j] >= 0 ? src[at[j] + w] : 0;
#endif
}

/* The same from rows that lie ld words apart, n of them. */
static inline void transpose_words(word *dst, const word *src, int64_t ld, int64_t words, int n)
{
    int64_t at[KEY_TILE];
    for (int j = 0; j < KEY_TILE; j++) at[j] = j < n ? j * ld : -1;
    transpose_gathered(dst, src, at, words);
}

/* ---- who sees whom ---- */

/* A query row sees key j when its segment is seg, and lo < its position <= hi. A padding query has seg -2. */
typedef struct row_view {
    int32_t seg, lo, hi;
} row_view;

/* The same for several rows: the ranges of seg, lo and hi. */
typedef struct rows_view {
    int32_t seg_min, seg_max, lo_min, lo_max, hi_min, hi_max;
} rows_view;

typedef struct key_tile {
    int32_t seg_min, seg_max, pos_min, pos_max; /* over keys that are not padding; seg_max < 0: none */
    bool padded;                                /* some key of the tile is padding */
} key_tile;

typedef struct key_table {
    int64_t n, tiles;
    int32_t *seg, *pos; /* [tiles * KEY_TILE]; padding has seg -1 */
    key_tile *tile;     /* [tiles] */
} key_table;

HD_INLINE int64_t key_tiles(int64_t keys)
{
    return (keys + KEY_TILE - 1) / KEY_TILE;
}

HD_INLINE size_t aligned(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

HD_INLINE size_t key_table_bytes(int64_t keys)
{
    size_t tiles = (size_t)key_tiles(keys);
    return 2 * aligned(tiles * KEY_TILE * sizeof(int32_t)) + aligned(tiles * sizeof(key_tile));
}

/* Takes bytes from *memory, keeping 64-byte alignment. */
HD_INLINE void *take(char **memory, size_t bytes)
{
    void *p = *memory;
    *memory += aligned(bytes);
    return p;
}

static inline key_table key_table_make(char **memory, int64_t n, const int32_t *pos, const int32_t *seg)
{
    key_table t = {.n = n, .tiles = key_tiles(n)};
    t.seg = take(memory, (size_t)t.tiles * KEY_TILE * sizeof(int32_t));
    t.pos = take(memory, (size_t)t.tiles * KEY_TILE * sizeof(int32_t));
    t.tile = take(memory, (size_t)t.tiles * sizeof(key_tile));
    for (int64_t i = 0; i < t.tiles; i++) {
        key_tile k = {INT32_MAX, -1, INT32_MAX, INT32_MIN, false};
        for (int64_t j = i * KEY_TILE; j < (i + 1) * KEY_TILE; j++) {
            bool real = j < n && seg[j] >= 0;
            t.seg[j] = real ? seg[j] : -1;
            t.pos[j] = real ? pos[j] : 0;
            k.padded |= !real;
            if (!real) continue;
            k.seg_min = seg[j] < k.seg_min ? seg[j] : k.seg_min;
            k.seg_max = seg[j] > k.seg_max ? seg[j] : k.seg_max;
            k.pos_min = pos[j] < k.pos_min ? pos[j] : k.pos_min;
            k.pos_max = pos[j] > k.pos_max ? pos[j] : k.pos_max;
        }
        t.tile[i] = k;
    }
    return t;
}

HD_INLINE row_view view_of(int64_t window, bool causal, int32_t pos, int32_t seg)
{
    int64_t lo = window > 0 && window < INT32_MAX ? (int64_t)pos - window : INT32_MIN;
    return (row_view){seg < 0 ? -2 : seg, lo < INT32_MIN ? INT32_MIN : (int32_t)lo, causal ? pos : INT32_MAX};
}

HD_INLINE void rows_view_add(rows_view *v, row_view r)
{
    v->seg_min = r.seg < v->seg_min ? r.seg : v->seg_min;
    v->seg_max = r.seg > v->seg_max ? r.seg : v->seg_max;
    v->lo_min = r.lo < v->lo_min ? r.lo : v->lo_min;
    v->lo_max = r.lo > v->lo_max ? r.lo : v->lo_max;
    v->hi_min = r.hi < v->hi_min ? r.hi : v->hi_min;
    v->hi_max = r.hi > v->hi_max ? r.hi : v->hi_max;
}

#define ROWS_VIEW_NONE ((rows_view){INT32_MAX, INT32_MIN, INT32_MAX, INT32_MIN, INT32_MAX, INT32_MIN})

/* Rows [first, first + n) of row r = query * group + head. */
static inline rows_view view_of_rows(const hd_attention_attrs *at, const int32_t *pos, const int32_t *seg, int64_t first, int64_t n,
                                     int64_t group)
{
    rows_view v = ROWS_VIEW_NONE;
    for (int64_t q = first / group; q <= (first + n - 1) / group; q++) rows_view_add(&v, view_of(at->window, at->causal, pos[q], seg[q]));
    return v;
}

/* No row sees any key of the tile (false: perhaps some does). */
HD_INLINE bool sees_none(const rows_view *r, const key_tile *k)
{
    return k->seg_max < 0 || r->seg_max < k->seg_min || r->seg_min > k->seg_max || r->hi_max < k->pos_min || r->lo_min >= k->pos_max;
}

/* Every row sees every key of the tile. */
HD_INLINE bool sees_all(const rows_view *r, const key_tile *k)
{
    return !k->padded && r->seg_min == r->seg_max && k->seg_min == k->seg_max && r->seg_min == k->seg_min && r->hi_min >= k->pos_max &&
           r->lo_max < k->pos_min;
}

#define TILE_VECTORS (KEY_TILE / HD_VL)

/* What the rows of a block see of a key tile, which all of it lies in vectors [first, last). */
typedef struct block_mask {
    bool all; /* every row sees every key: seen is not filled */
    int first, last;
    vi seen[ROW_BLOCK][TILE_VECTORS];
} block_mask;

HD_INLINE bool any_lane(vi mask)
{
#if HD_HAS_AVX512
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif HD_HAS_AVX2
    return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
    int32_t any = 0;
    for (int i = 0; i < HD_VL; i++) any |= mask[i];
    return any != 0;
#endif
}

/* tile_seg, tile_pos: of the tile's KEY_TILE keys. */
static inline void block_mask_make(block_mask *m, const int32_t *tile_seg, const int32_t *tile_pos, const row_view *views, int rows)
{
    m->all = false;
    m->first = TILE_VECTORS;
    m->last = 0;
    for (int v = 0; v < TILE_VECTORS; v++) {
        vi seg = vi_load(tile_seg + v * HD_VL), pos = vi_load(tile_pos + v * HD_VL), any = {0};
        for (int r = 0; r < rows; r++) {
            m->seen[r][v] = (vi)(seg == views[r].seg) & (vi)(pos > views[r].lo) & (vi)(pos <= views[r].hi);
            any |= m->seen[r][v];
        }
        if (!any_lane(any)) continue;
        if (m->first == TILE_VECTORS) m->first = v;
        m->last = v + 1;
    }
}

HD_INLINE void block_mask_all(block_mask *m)
{
    m->all = true;
    m->first = 0;
    m->last = TILE_VECTORS;
}

#endif
