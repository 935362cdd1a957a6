/* attention_block.h: a block of rows against one packed tile of keys: the online softmax (Dao et al. 2022; Milakov and Gimelshein 2018) that forward
 * attention over plain and over paged keys share, with scores in units of log 2 so that the exponential is a power of two. */
#ifndef HD_KERNELS_CPU_ATTENTION_BLOCK_H
#define HD_KERNELS_CPU_ATTENTION_BLOCK_H

#include "kernels/cpu/isa/attention_tile.h"

/* What all blocks of a call have in common. */
typedef struct block_form {
    int64_t e, f;    /* widths of keys and of values */
    int64_t ew, fp;  /* words of a query row; floats of an output row, a multiple of HD_VL */
    bool pairs;
    score_form score;
} block_form;

/* A tile of rows on its way over the keys. */
typedef struct row_tile {
    int64_t head, first; /* key head; first row */
    int rows;
    rows_view view;
    word *q;             /* [rows][ew] */
    float *o;            /* [rows][fp]: sum of weights * values, the weights relative to 2^max */
    float *max, *sum;    /* [rows] */
} row_tile;

/* A key tile as the products take it: k is [ew][KEY_TILE]. */
typedef struct packed_tile packed_tile;
/* o[rows][..] (ldo apart) = o * scale (where not NULL) + w[rows][KEY_TILE] times the values of keys [first, first + n). */
typedef void values_fn(const packed_tile *tile, const float *w, float *o, int64_t ldo, int rows, int first, int n, const float *scale);
struct packed_tile {
    const word *k, *v;
    int64_t ldv;                  /* words between rows of v */
    const float *kscale, *vscale; /* [KEY_TILE], or NULL: what each key and value is to be times */
    /* Where keys and values are taken as they lie, not packed (NULL: they are packed): */
    float (*products)[KEY_TILE];  /* [rows of the tile] of queries and keys, there already */
    values_fn *values;
    const void *v_data;
    hd_dtype v_dtype;
    const int64_t *v_at;          /* [KEY_TILE] elements from v_data; negative: zeros */
    int64_t f;
};

HD_INLINE block_form block_form_of(const hd_tensor *q, const hd_tensor *v, double scale, double softcap, bool pairs)
{
    block_form b = {.e = q->dim[2], .f = v->dim[2], .pairs = pairs};
    b.ew = word_count(b.e, pairs);
    b.fp = hd_round_up(b.f, HD_VL);
    b.score = score_form_of(scale, softcap);
    return b;
}

HD_INLINE size_t row_tile_bytes(const block_form *b, int64_t rows)
{
    return aligned((size_t)(rows * b->ew) * 4) + aligned((size_t)(rows * b->fp) * 4) + 2 * aligned((size_t)rows * 4);
}

HD_INLINE void row_tile_memory(const block_form *b, row_tile *x, int64_t rows, char **memory)
{
    x->q = take(memory, (size_t)(rows * b->ew) * 4);
    x->o = take(memory, (size_t)(rows * b->fp) * 4);
    x->max = take(memory, (size_t)rows * 4);
    x->sum = take(memory, (size_t)rows * 4);
}

/* Where row r of a tile begins in a [T, heads, n] tensor, in units of n. */
HD_INLINE int64_t row_place(const row_tile *x, int r, int64_t hk, int64_t group)
{
    int64_t i = (x->first + r) / group, g = (x->first + r) % group;
    return (i * hk + x->head) * group + g;
}

/* Queries packed, nothing seen yet. x->head, first and rows are set. */
static inline void row_tile_clear(const block_form *b, row_tile *x, const hd_tensor *q, int64_t hk, int64_t group)
{
    memset(x->o, 0, (size_t)(x->rows * b->fp) * sizeof(float));
    for (int r = 0; r < x->rows; r++) {
        x->max[r] = -INFINITY;
        x->sum[r] = 0;
        pack_row(x->q + r * b->ew, b->ew, q->data, q->dtype, row_place(x, r, hk, group) * b->e, b->e, b->pairs);
    }
}

/* Row r's output: the weighted sum over the sum of weights; 0 where nothing was seen. */
static inline void row_tile_store(const block_form *b, const row_tile *x, int r, const hd_tensor *out, int64_t place)
{
    float *o = x->o + r * b->fp, inverse = x->sum[r] == 0 ? 0 : 1 / x->sum[r];
    for (int64_t j = 0; j < b->fp; j += HD_VL) vf_store(o + j, vf_load(o + j) * inverse);
    row_store(out->data, out->dtype, place * b->f, o, b->f);
}

HD_INLINE float power_of_two(float x)
{
    return vf_exp2(vf_set1(x))[0];
}

/* Scales and masks row r of a block's scores; returns its maximum. */
HD_INLINE float row_scores(const score_form *form, float *x, int r, const block_mask *mask, const float *kscale)
{
    vf best = vf_set1(-INFINITY);
    for (int v = mask->first; v < mask->last; v++) {
        vf y = vf_load(x + v * HD_VL);
        if (kscale) y = y * vf_load(kscale + v * HD_VL);
        y = score_of(form, y);
        if (!mask->all) y = vf_select(mask->seen[r][v], y, vf_set1(-INFINITY));
        vf_store(x + v * HD_VL, y);
        best = vf_max(y, best);
    }
    return vf_hmax(best);
}

/* The words of 2^(x - max) for the product with the values; returns the sum. What lies outside the mask's range is not written. */
HD_INLINE float row_weights(const float *x, word *w, float max, const block_mask *mask, const float *vscale, bool pairs)
{
    vf total = vf_zero();
    for (int v = mask->first; v < mask->last; v++) {
        vf p = vf_exp2(vf_load(x + v * HD_VL) - max);
        total = total + p;
        if (pairs) {
            vh_store((uint16_t *)w + v * HD_VL, bf16_from_vf_finite(p));
            continue;
        }
        if (vscale) p = p * vf_load(vscale + v * HD_VL);
        vf_store((float *)w + v * HD_VL, p);
    }
    return vf_hsum(total);
}

HD_INLINE void forward_block(const block_form *b, row_tile *y, int row, int rows, const packed_tile *tile, const block_mask *mask, bool pairs)
{
    _Alignas(64) float own[ROW_BLOCK][KEY_TILE];
    _Alignas(64) word w[ROW_BLOCK][KEY_TILE];
    float correction[ROW_BLOCK];
    bool rescale = false;
    int j0 = mask->first * HD_VL, n = (mask->last - mask->first) * HD_VL, k0 = pairs ? j0 / 2 : j0;
    float (*x)[KEY_TILE] = tile->products ? tile->products + row : own;
    product scores = {y->q + row * b->ew, tile->k + j0, &x[0][j0], b->ew, 1, KEY_TILE, KEY_TILE, (int)b->ew, NULL, false};
    if (!tile->products) product_run(&scores, n, rows, pairs);
    for (int r = 0; r < rows; r++) {
        float best = row_scores(&b->score, x[r], r, mask, tile->kscale), old = y->max[row + r];
        float max = best > old ? best : old, base = max > -INFINITY ? max : 0;
        correction[r] = 1;
        if (max > old) {
            correction[r] = power_of_two(old - base);
            rescale = true;
        }
        y->max[row + r] = max;
        y->sum[row + r] = y->sum[row + r] * correction[r] + row_weights(x[r], w[r], base, mask, tile->vscale, pairs);
    }
    if (tile->values) {
        tile->values(tile, (const float *)&w[0][0], y->o + row * b->fp, b->fp, rows, j0, n, rescale ? correction : NULL);
        return;
    }
    product values = {&w[0][k0], tile->v + k0 * tile->ldv, y->o + row * b->fp, KEY_TILE, 1, tile->ldv, b->fp, pairs ? n / 2 : n,
                      rescale ? correction : NULL, true};
    product_run(&values, b->fp, rows, pairs);
}

HD_INLINE void forward_block_rows(const block_form *b, row_tile *y, int row, int rows, const packed_tile *tile, const block_mask *mask, bool pairs)
{
    if (rows == 4) forward_block(b, y, row, 4, tile, mask, pairs);
    else if (rows == 2) forward_block(b, y, row, 2, tile, mask, pairs);
    else forward_block(b, y, row, 1, tile, mask, pairs);
}

/* rows: as block_rows says. */
static inline void forward_block_any(const block_form *b, row_tile *y, int row, int rows, const packed_tile *tile, const block_mask *mask)
{
#if HD_ISA_LEVEL >= 4
    if (b->pairs) {
        forward_block_rows(b, y, row, rows, tile, mask, true);
        return;
    }
#endif
    forward_block_rows(b, y, row, rows, tile, mask, false);
}

/* Rows of a block: 4, or what is left as 2 and 1. */
HD_INLINE int block_rows(int left)
{
    return left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

#endif
