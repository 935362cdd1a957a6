/* blocks_micro.h: the register tile of products with block-quantized weights: a few rows of x times a few panels over chunks of k.
 *
 * Everything is inlined with the kind, rows and panels as constants, one function for each combination. */
#ifndef HD_KERNELS_CPU_BLOCKS_MICRO_H
#define HD_KERNELS_CPU_BLOCKS_MICRO_H

#include "kernels/cpu/isa/blocks_isa.h"

/* One chunk of n elements. */
typedef struct tile_chunk {
    const uint8_t *w; /* of the first panel */
    int64_t panel_bytes;
    const uint8_t *fetch;
    int fetch_lines;
    const char *x;
    int64_t n;
    float *acc;
} tile_chunk;

HD_INLINE bi broadcast_word(const void *p)
{
    int32_t v;
    memcpy(&v, p, 4);
    return bi_set1(v);
}

/* Word i (0 .. 7) of the five vectors at v (put_five in kernels/cpu/blocks.c), and word i (0 .. 3) of the three at v. */
HD_INLINE bi word_of_five(const uint8_t *v, int i)
{
    if (i < 5) return bi_and(bi_load(v + 64 * i), 31);
    bi low = bi_down(bi_load(v + 128 * (i - 5)), 5);
    if (i < 7) return bi_and(bi_pick(7, low, bi_down(bi_load(v + 128 * (i - 5) + 64), 2)), 31);
    low = bi_pick(7, low, bi_down(bi_load(v + 64), 4));
    return bi_and(bi_pick(15, low, bi_down(bi_load(v + 192), 3)), 31);
}
HD_INLINE bi word_of_three(const uint8_t *v, int i)
{
    if (i < 3) return bi_and(bi_load(v + 64 * i), 63);
    bi low = bi_pick(3, bi_down(bi_load(v), 6), bi_down(bi_load(v + 64), 4));
    return bi_and(bi_pick(15, low, bi_down(bi_load(v + 128), 2)), 63);
}

/* Word i (0 .. 7) of group g (of 32 elements), unsigned; odd: g % 2, known when compiling. */
HD_INLINE bi weight_word(const hd_blocks_kind kind, const uint8_t *q, int64_t g, int odd, int i)
{
    if (kind.bits == 8) return bi_load(q + 64 * (8 * g + i));
    if (kind.bits == 6) return word_of_three(q + 64 * (6 * g + i / 4 * 3), i % 4);
    if (kind.bits == 5) return word_of_five(q + 64 * 5 * g, i);
    bi v = bi_load(kind.super ? q + 64 * (8 * (g / 2) + i) : q + 64 * (4 * g + i % 4));
    v = bi_and((kind.super ? odd : i / 4) ? bi_down(v, 4) : v, 15);
    return kind.table ? bi_lookup(v) : v;
}

/* Adds the products of words of one group, `count` of them from `first` on, to sum[row][panel]. */
HD_INLINE void add_words(const hd_blocks_kind kind, int rows, int panels, const tile_chunk *c, const uint8_t *q, int64_t g, int odd, int first,
                         int count, bi sum[HD_BLOCKS_ROWS][HD_BLOCKS_PANELS])
{
    const hd_blocks_row *x = (const hd_blocks_row *)c->x;
HD_UNROLL
    for (int s = 0; s < count; s++) {
        int i = first + (kind.bits == 4 && !kind.super ? s % 2 * 4 + s / 2 : s); /* both halves of a vector after each other */
        bi w[HD_BLOCKS_PANELS];
HD_UNROLL
        for (int j = 0; j < panels; j++) w[j] = weight_word(kind, q + j * c->panel_bytes, g, odd, i);
HD_UNROLL
        for (int r = 0; r < rows; r++) {
            bi four = broadcast_word(x[r].q + 32 * g + 4 * i);
HD_UNROLL
            for (int j = 0; j < panels; j++) sum[r][j] = bi_dot(sum[r][j], w[j], four);
        }
    }
}

HD_INLINE void begin_sums(const hd_blocks_kind kind, int rows, int panels, const tile_chunk *c, int64_t sub, bi sum[HD_BLOCKS_ROWS][HD_BLOCKS_PANELS])
{
    const hd_blocks_row *x = (const hd_blocks_row *)c->x;
HD_UNROLL
    for (int r = 0; r < rows; r++) {
        bi init = kind.offset ? bi_set1(x[r].init[sub]) : bi_zero();
HD_UNROLL
        for (int j = 0; j < panels; j++) sum[r][j] = init;
    }
}

/* ---- blocks of 32: y += products * (scale of w * scale of x) [+ minimum * (scale of x * sum of x)] ---- */

HD_INLINE void add_block_32(const hd_blocks_kind kind, int rows, int panels, const tile_chunk *c, int64_t b, const bi sum[HD_BLOCKS_ROWS][HD_BLOCKS_PANELS],
                            bf acc[HD_BLOCKS_ROWS][HD_BLOCKS_PANELS])
{
    const hd_blocks_row *x = (const hd_blocks_row *)c->x;
HD_UNROLL
    for (int j = 0; j < panels; j++) {
        const uint8_t *header = c->w + j * c->panel_bytes;
        bf scale = bf_from_f16(header + 32 * b);
HD_UNROLL
        for (int r = 0; r < rows; r++) acc[r][j] = bf_fma(bf_from_bi(sum[r][j]), bf_mul(scale, bf_set1(x[r].scale[b])), acc[r][j]);
        if (!kind.minimum) continue;
        bf minimum = bf_from_f16(header + 32 * (c->n / 32 + b));
HD_UNROLL
        for (int r = 0; r < rows; r++) acc[r][j] = bf_fma(minimum, bf_set1(x[r].scaled[b]), acc[r][j]);
    }
}

/* Fetches some lines for every 32 elements, so that memory never waits for arithmetic. Into the second-level cache: the first level's few outstanding
 * misses are for what is read now. */
HD_INLINE void fetch_lines(const tile_chunk *c, int panels, int64_t block, int64_t blocks)
{
    const uint8_t *first = c->fetch + 64 * block * c->fetch_lines;
    for (int64_t i = 0; i < blocks * c->fetch_lines; i++)
HD_UNROLL
        for (int j = 0; j < panels; j++) __builtin_prefetch(first + j * c->panel_bytes + 64 * i, 0, 2);
}

HD_INLINE void tile_32(const hd_blocks_kind kind, int rows, int panels, const tile_chunk *c)
{
    bf acc[HD_BLOCKS_ROWS][HD_BLOCKS_PANELS];
    const uint8_t *q = c->w + hd_blocks_header_bytes(&kind, c->n);
HD_UNROLL
    for (int r = 0; r < rows; r++)
HD_UNROLL
        for (int j = 0; j < panels; j++) acc[r][j] = bf_load(c->acc + 16 * (r * panels + j));
    for (int64_t b = 0; b < c->n / 32; b++) {
        bi sum[HD_BLOCKS_ROWS][HD_BLOCKS_PANELS];
        fetch_lines(c, panels, b, 1);
        begin_sums(kind, rows, panels, c, b, sum);
        add_words(kind, rows, panels, c, q, b, 0, 0, 8, sum);
        add_block_32(kind, rows, panels, c, b, (const bi(*)[HD_BLOCKS_PANELS])sum, acc);
    }
HD_UNROLL
    for (int r = 0; r < rows; r++)
HD_UNROLL
        for (int j = 0; j < panels; j++) bf_store(c->acc + 16 * (r * panels + j), acc[r][j]);
}

/* ---- K types: y += (sum over sub-blocks of their integer scale * products) * (f16 scale * scale of x), less the same of minima ---- */

HD_INLINE void add_group(const hd_blocks_kind kind, int rows, int panels, const tile_chunk *c, const uint8_t *q, int64_t g, int odd,
                         bi total[HD_BLOCKS_ROWS][HD_BLOCKS_PANELS])
{
    int parts = 32 / kind.sub;
HD_UNROLL
    for (int part = 0; part < parts; part++) {
        bi sum[HD_BLOCKS_ROWS][HD_BLOCKS_PANELS];
        int64_t sub = g * parts + part;
        begin_sums(kind, rows, panels, c, sub, sum);
        add_words(kind, rows, panels, c, q, g, odd, part * kind.sub / 4, kind.sub / 4, sum);
HD_UNROLL
        for (int j = 0; j < panels; j++) {
            bi scale = bi_from_i8(c->w + j * c->panel_bytes + 64 + 16 * sub);
HD_UNROLL
            for (int r = 0; r < rows; r++) total[r][j] = bi_add(total[r][j], bi_mul(sum[r][j], scale));
        }
    }
}

/* Sums over sub-blocks of minimum * sum of x. */
HD_INLINE void sum_minima(const hd_blocks_kind kind, int rows, int panels, const tile_chunk *c, bi total[HD_BLOCKS_ROWS][HD_BLOCKS_PANELS])
{
    const hd_blocks_row *x = (const hd_blocks_row *)c->x;
    int subs = HD_BLOCKS_CHUNK / kind.sub;
HD_UNROLL
    for (int r = 0; r < rows; r++)
HD_UNROLL
        for (int j = 0; j < panels; j++) total[r][j] = bi_zero();
HD_UNROLL
    for (int pair = 0; pair < subs / 2; pair++)
HD_UNROLL
        for (int j = 0; j < panels; j++) {
            bi minima = bi_pairs_from_u8(c->w + j * c->panel_bytes + 64 + 16 * subs + 32 * pair);
HD_UNROLL
            for (int r = 0; r < rows; r++) total[r][j] = bi_dot_pairs(total[r][j], minima, broadcast_word(&x[r].sum[2 * pair]));
        }
}

HD_INLINE void add_totals(int rows, int panels, const tile_chunk *c, int header, bool subtract, const bi total[HD_BLOCKS_ROWS][HD_BLOCKS_PANELS])
{
    const hd_blocks_row *x = (const hd_blocks_row *)c->x;
HD_UNROLL
    for (int j = 0; j < panels; j++) {
        bf scale = bf_from_f16(c->w + j * c->panel_bytes + header);
HD_UNROLL
        for (int r = 0; r < rows; r++) {
            float *at = c->acc + 16 * (r * panels + j);
            bf product = bf_from_bi(total[r][j]), factor = bf_mul(scale, bf_set1(x[r].scale[0]));
            bf_store(at, subtract ? bf_fnma(product, factor, bf_load(at)) : bf_fma(product, factor, bf_load(at)));
        }
    }
}

HD_INLINE void tile_k(const hd_blocks_kind kind, int rows, int panels, const tile_chunk *c)
{
    const uint8_t *q = c->w + hd_blocks_header_bytes(&kind, HD_BLOCKS_CHUNK);
    const int together = 2; /* groups that share vectors where there are four bits */
    bi total[HD_BLOCKS_ROWS][HD_BLOCKS_PANELS];
HD_UNROLL
    for (int r = 0; r < rows; r++)
HD_UNROLL
        for (int j = 0; j < panels; j++) total[r][j] = bi_zero();
    for (int64_t g = 0; g < 8; g += together) {
        fetch_lines(c, panels, g, together);
HD_UNROLL
        for (int i = 0; i < together; i++) add_group(kind, rows, panels, c, q, g + i, i, total);
    }
    add_totals(rows, panels, c, 0, false, (const bi(*)[HD_BLOCKS_PANELS])total);
    if (!kind.minimum) return;
    sum_minima(kind, rows, panels, c, total);
    add_totals(rows, panels, c, 32, true, (const bi(*)[HD_BLOCKS_PANELS])total);
}

/* ---- f16 ---- */

HD_INLINE void tile_f16(int rows, int panels, const tile_chunk *c)
{
    bf acc[HD_BLOCKS_ROWS][HD_BLOCKS_PANELS];
    const float *x = (const float *)c->x;
HD_UNROLL
    for (int r = 0; r < rows; r++)
HD_UNROLL
        for (int j = 0; j < panels; j++) acc[r][j] = bf_load(c->acc + 16 * (r * panels + j));
    for (int64_t k = 0; k < c->n; k++) {
        bf w[HD_BLOCKS_PANELS];
        if (k % 32 == 0) fetch_lines(c, panels, k / 32, 1);
HD_UNROLL
        for (int j = 0; j < panels; j++) w[j] = bf_from_f16(c->w + j * c->panel_bytes + 32 * k);
HD_UNROLL
        for (int r = 0; r < rows; r++)
HD_UNROLL
            for (int j = 0; j < panels; j++) acc[r][j] = bf_fma(w[j], bf_set1(x[r * HD_BLOCKS_CHUNK + k]), acc[r][j]);
    }
HD_UNROLL
    for (int r = 0; r < rows; r++)
HD_UNROLL
        for (int j = 0; j < panels; j++) bf_store(c->acc + 16 * (r * panels + j), acc[r][j]);
}

/* ---- all chunks ---- */

HD_INLINE void run_tile(const hd_blocks_kind kind, int rows, int panels, const hd_blocks_tile *t)
{
    tile_chunk c = {.w = t->w, .panel_bytes = t->panel_bytes, .fetch = t->fetch, .fetch_lines = t->fetch_lines, .x = t->x, .acc = t->acc};
    for (int64_t k = 0; k < t->k; k += HD_BLOCKS_CHUNK) {
        c.n = t->k - k < HD_BLOCKS_CHUNK ? t->k - k : HD_BLOCKS_CHUNK;
        if (kind.bits == 16) tile_f16(rows, panels, &c);
        else if (kind.super) tile_k(kind, rows, panels, &c);
        else tile_32(kind, rows, panels, &c);
        c.w += t->chunk_bytes;
        c.fetch += t->fetch_chunk_bytes;
        c.x += t->x_chunk_bytes;
    }
}

#define HD_BLOCKS_TILE(name, rows, panels) \
    static void tile_##name##_##rows##_##panels(const hd_blocks_tile *t) { run_tile(kind_##name, rows, panels, t); }
#define HD_BLOCKS_KIND(name, bits, sub, super, minimum, table, offset) \
    static const hd_blocks_kind kind_##name = {bits, sub, super, minimum, table, offset};
#define HD_BLOCKS_ENTRY(name, rows, panels) tile_##name##_##rows##_##panels

#if HD_BLOCKS_ROWS == 6
#define HD_BLOCKS_TILES_OF(name, panels) \
    HD_BLOCKS_TILE(name, 1, panels) HD_BLOCKS_TILE(name, 2, panels) HD_BLOCKS_TILE(name, 3, panels) \
    HD_BLOCKS_TILE(name, 4, panels) HD_BLOCKS_TILE(name, 5, panels) HD_BLOCKS_TILE(name, 6, panels)
#define HD_BLOCKS_TILES(name, ...) HD_BLOCKS_TILES_OF(name, 1) HD_BLOCKS_TILES_OF(name, 2)
#define HD_BLOCKS_ROW(name, panels) \
    {HD_BLOCKS_ENTRY(name, 1, panels), HD_BLOCKS_ENTRY(name, 2, panels), HD_BLOCKS_ENTRY(name, 3, panels), \
     HD_BLOCKS_ENTRY(name, 4, panels), HD_BLOCKS_ENTRY(name, 5, panels), HD_BLOCKS_ENTRY(name, 6, panels)}
#define HD_BLOCKS_ENTRIES(name, ...) [HD_BLOCKS_##name] = {HD_BLOCKS_ROW(name, 1), HD_BLOCKS_ROW(name, 2)},
#else
#define HD_BLOCKS_TILES(name, ...) HD_BLOCKS_TILE(name, 1, 1)
#define HD_BLOCKS_ENTRIES(name, ...) [HD_BLOCKS_##name] = {{HD_BLOCKS_ENTRY(name, 1, 1)}},
#endif

#endif
