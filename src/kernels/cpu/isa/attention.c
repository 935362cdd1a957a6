/* attention.c: forward attention: for each key head and tile of rows, over key tiles, an online softmax (attention_block.h). */
#include "kernels/cpu/isa/attention_block.h"

#if HD_ISA_LEVEL <= 2 || HD_ISA_LEVEL == 4

typedef struct forward {
    const hd_kernel_args *a;
    const hd_attention_attrs *at;
    int64_t tq, tk, hk, group; /* queries, keys, key heads, query heads of a key head */
    block_form b;
    int64_t kw;                /* words of a value column */
    key_table keys;
    word *k, *v;       /* of the head at hand, kept for all its row tiles; per tile: [ew][KEY_TILE] and [kw][fp] */
    uint8_t *packed;   /* [tiles] */
} forward;

static bool use_pairs(const hd_kernel_args *a)
{
#if HD_ISA_LEVEL >= 4
    return a->in[0].dtype == HD_BF16 && a->in[1].dtype == HD_BF16 && a->in[2].dtype == HD_BF16;
#else
    (void)a;
    return false;
#endif
}

static void forward_sizes(forward *s, const hd_kernel_args *a)
{
    const hd_tensor *q = &a->in[0], *k = &a->in[1], *v = &a->in[2];
    s->a = a;
    s->at = a->attrs;
    s->tq = q->dim[0];
    s->tk = k->dim[0];
    s->hk = k->dim[1];
    s->group = s->hk > 0 ? q->dim[1] / s->hk : 0;
    s->b = block_form_of(q, v, s->at->scale, s->at->softcap, use_pairs(a));
    s->kw = word_count(KEY_TILE, s->b.pairs);
}

/* Rows of a row tile: all that a key head has, where one tile holds them. */
static int64_t tile_rows(const forward *s)
{
    int64_t rows = s->tq * s->group;
    return rows < ROW_TILE ? rows : ROW_TILE;
}

static size_t forward_thread_bytes(const forward *s)
{
    size_t tiles = (size_t)key_tiles(s->tk);
    return key_table_bytes(s->tk) + aligned(tiles * (size_t)(s->b.ew * KEY_TILE) * 4) + aligned(tiles * (size_t)(s->kw * s->b.fp) * 4) + aligned(tiles) +
           aligned(sizeof(row_tile)) + row_tile_bytes(&s->b, tile_rows(s));
}

static size_t workspace_attention(const hd_kernel_args *a, int threads)
{
    forward s;
    forward_sizes(&s, a);
    return forward_thread_bytes(&s) * (size_t)threads;
}

/* Returns the thread's row tile. */
static row_tile *forward_memory(forward *s)
{
    char *memory = (char *)s->a->workspace + forward_thread_bytes(s) * (size_t)s->a->tid;
    s->keys = key_table_make(&memory, s->tk, s->a->in[4].data, s->a->in[6].data);
    size_t tiles = (size_t)s->keys.tiles;
    s->k = take(&memory, tiles * (size_t)(s->b.ew * KEY_TILE) * 4);
    s->v = take(&memory, tiles * (size_t)(s->kw * s->b.fp) * 4);
    s->packed = take(&memory, tiles);
    row_tile *t = take(&memory, sizeof *t);
    row_tile_memory(&s->b, t, tile_rows(s), &memory);
    return t;
}

/* ---- packing ---- */

static void pack_keys(const forward *s, word *dst, int64_t head, int64_t j0, int n)
{
    const hd_tensor *k = &s->a->in[1];
    int64_t row = s->hk * s->b.e, at = j0 * row + head * s->b.e;
    if (k->dtype == HD_F32) {
        transpose_words(dst, (const word *)k->data + at, row, s->b.ew, n);
        return;
    }
    if (s->b.pairs && s->b.e % 2 == 0) {
        transpose_words(dst, (const word *)((const uint16_t *)k->data + at), row / 2, s->b.ew, n);
        return;
    }
    for (int64_t w = 0; w < s->b.ew; w += 16) { /* a strip of 16 words through a small buffer */
        word strip[KEY_TILE][16];
        int64_t words = s->b.ew - w < 16 ? s->b.ew - w : 16, elements = s->b.pairs ? 2 : 1, from = w * elements;
        int64_t left = s->b.e - from < 16 * elements ? s->b.e - from : 16 * elements;
        for (int j = 0; j < n; j++) pack_row(strip[j], 16, k->data, k->dtype, at + j * row + from, left, s->b.pairs);
        transpose_words(dst + w * KEY_TILE, &strip[0][0], 16, words, n);
    }
}

/* Values of padding keys become zero, so that garbage behind a cache's end can't leak as 0 * NaN. */
static void pack_values(const forward *s, word *dst, int64_t head, int64_t j0, int n)
{
    const hd_tensor *v = &s->a->in[2];
    int64_t row = s->hk * s->b.f, at = j0 * row + head * s->b.f;
    const int32_t *seg = s->keys.seg + j0;
    if (s->b.pairs) {
        const uint16_t *p = (const uint16_t *)v->data + at;
        for (int j = 0; j < KEY_TILE; j += 2)
            pack_interleaved(dst + j / 2 * s->b.fp, s->b.fp, j < n && seg[j] >= 0 ? p + j * row : NULL,
                             j + 1 < n && seg[j + 1] >= 0 ? p + (j + 1) * row : NULL, s->b.f);
        return;
    }
    for (int j = 0; j < KEY_TILE; j++) {
        if (j < n && seg[j] >= 0) pack_row(dst + j * s->b.fp, s->b.fp, v->data, v->dtype, at + j * row, s->b.f, false);
        else memset(dst + j * s->b.fp, 0, (size_t)s->b.fp * sizeof(word));
    }
}

static packed_tile pack_tile(const forward *s, int64_t head, int64_t t)
{
    int64_t left = s->tk - t * KEY_TILE;
    int n = (int)(left < KEY_TILE ? left : KEY_TILE);
    word *k = s->k + t * s->b.ew * KEY_TILE, *v = s->v + t * s->kw * s->b.fp;
    if (!s->packed[t]) {
        pack_keys(s, k, head, t * KEY_TILE, n);
        pack_values(s, v, head, t * KEY_TILE, n);
        s->packed[t] = 1;
    }
    return (packed_tile){.k = k, .v = v, .ldv = s->b.fp};
}

/* ---- one tile of rows ---- */

static void row_tile_begin(const forward *s, row_tile *x, int64_t head, int64_t first)
{
    int64_t left = s->tq * s->group - first;
    x->head = head;
    x->first = first;
    x->rows = (int)(left < ROW_TILE ? left : ROW_TILE);
    x->view = view_of_rows(s->at, s->a->in[3].data, s->a->in[5].data, first, x->rows, s->group);
    row_tile_clear(&s->b, x, &s->a->in[0], s->hk, s->group);
}

static void row_tile_end(const forward *s, const row_tile *x)
{
    const hd_tensor *out = &s->a->out[0];
    float *lse = s->a->n_out > 1 ? s->a->out[1].data : NULL;
    for (int r = 0; r < x->rows; r++) {
        int64_t at = row_place(x, r, s->hk, s->group);
        if (out->data) row_tile_store(&s->b, x, r, out, at);
        if (lse) lse[at] = x->sum[r] == 0 ? -INFINITY : (float)((x->max[r] + log2(x->sum[r])) * LN2);
    }
}

static void make_mask(const forward *s, block_mask *mask, int64_t row, int n, int64_t tile)
{
    const int32_t *pos = s->a->in[3].data, *seg = s->a->in[5].data;
    row_view views[ROW_BLOCK];
    for (int i = 0; i < n; i++) views[i] = view_of(s->at->window, s->at->causal, pos[(row + i) / s->group], seg[(row + i) / s->group]);
    block_mask_make(mask, s->keys.seg + tile * KEY_TILE, s->keys.pos + tile * KEY_TILE, views, n);
}

/* Takes a row tile over key tile t. */
static void row_tile_advance(const forward *s, row_tile *x, int64_t t)
{
    const int32_t *pos = s->a->in[3].data, *seg = s->a->in[5].data;
    const key_tile *tile = &s->keys.tile[t];
    if (sees_none(&x->view, tile)) return;
    packed_tile packed = pack_tile(s, x->head, t);
    for (int r = 0, n; r < x->rows; r += n) {
        block_mask mask;
        n = block_rows(x->rows - r);
        rows_view block = view_of_rows(s->at, pos, seg, x->first + r, n, s->group);
        if (sees_none(&block, tile)) continue;
        if (sees_all(&block, tile)) block_mask_all(&mask);
        else make_mask(s, &mask, x->first + r, n, t);
        if (mask.first < mask.last) forward_block_any(&s->b, x, r, n, &packed, &mask);
    }
}

/* Units are tiles of rows, head by head. Whole heads go to one thread where they divide evenly (keys are packed once); else
 * tiles go round, since later tiles of a causal head are the longer ones. */
static void run_units(forward *s, row_tile *x)
{
    const hd_kernel_args *a = s->a;
    int64_t tiles = (s->tq * s->group + ROW_TILE - 1) / ROW_TILE, head = -1, begin = a->tid, end = s->hk * tiles, step = a->threads;
    if (s->hk % a->threads == 0) {
        hd_split(s->hk * tiles, 1, a->tid, a->threads, &begin, &end);
        step = 1;
    }
    for (int64_t u = begin; u < end; u += step) {
        if (u / tiles != head) {
            head = u / tiles;
            memset(s->packed, 0, (size_t)s->keys.tiles);
        }
        row_tile_begin(s, x, head, u % tiles * ROW_TILE);
        for (int64_t t = 0; t < s->keys.tiles; t++) row_tile_advance(s, x, t);
        row_tile_end(s, x);
    }
}

static void run_attention(const hd_kernel_args *a)
{
    forward s;
    forward_sizes(&s, a);
    if (s.tq * s.group * s.hk == 0) return;
    run_units(&s, forward_memory(&s));
}

static bool supports_attention(const hd_kernel_args *a)
{
    if (a->accumulate || !operands_are_vf(a, 0, 2) || !is_vf_dtype(a->out[0].dtype)) return false;
    if (a->in[0].rank != 3 || a->in[1].rank != 3) return false;
    for (int i = 3; i < 7; i++)
        if (a->in[i].dtype != HD_I32) return false;
    return true;
}

const hd_kernel HD_ISA(hd_kernels_attention)[] = {
    {"attention", supports_attention, workspace_attention, run_attention},
    {0},
};

#else
const hd_kernel HD_ISA(hd_kernels_attention)[] = {{0}};
#endif
