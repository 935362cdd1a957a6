/* attention_grad.c: backward attention (Dao et al. 2022, section B.4): for each key head, over key tiles, over tiles of rows:
 *
 *     P = 2^(scale q k^T - lse)    dP = dout v^T    dS = P * (dP - delta) * scale,    delta = rowsum(dout * out)
 *     dV += P^T dout    dK += dS^T q    dQ += dS k
 *
 * A head belongs to one thread. A key's gradient is summed over rows (query, then head of the group) ascending, a query's over key tiles
 * ascending, so nothing depends on the number of threads. */
#include "kernels/cpu/isa/attention_tile.h"

#if HD_ISA_LEVEL <= 2 || HD_ISA_LEVEL == 4

typedef struct backward {
    const hd_kernel_args *a;
    const hd_attention_attrs *at;
    int64_t tq, tk, hk, group, e, f, rows; /* rows = tq * group */
    int64_t ew, fw, ep, fp;                /* words of e and f; e and f rounded up to HD_VL */
    int64_t tw;                            /* words of a contracted tile of KEY_TILE keys or ROW_TILE rows */
    bool pairs;
    score_form score;
    float slope;                           /* of a score, in its own units, by the product; where scores are capped, at 0 */
    key_table keys;
    /* of the head at hand, for all rows */
    word *q, *dout;         /* [rows][ew], [rows][fw]: contracted over e or f */
    word *q_rows, *dout_rows; /* per row tile [tw][ep], [tw][fp]: contracted over rows */
    float *dq;              /* [rows][ep] */
    float *lse, *delta;     /* [rows]; lse in units of log 2 */
    /* of the key tile at hand */
    word *kt, *vt;          /* [ew][KEY_TILE], [fw][KEY_TILE] */
    word *k_rows;           /* [tw][ep] */
    float *dk, *dv;         /* [KEY_TILE][ep], [KEY_TILE][fp] */
    word *raw;              /* one tile of keys or values as words, [KEY_TILE][max(ep, fp)] */
    word *p, *ds;           /* [tw][KEY_TILE]: contracted over rows */
    word *ds_block;         /* [ROW_BLOCK][tw]: contracted over keys */
} backward;

static void backward_sizes(backward *s, const hd_kernel_args *a)
{
    const hd_tensor *q = &a->in[1], *k = &a->in[2], *v = &a->in[3];
    s->a = a;
    s->at = a->attrs;
    s->tq = q->dim[0];
    s->tk = k->dim[0];
    s->hk = k->dim[1];
    s->group = s->hk > 0 ? q->dim[1] / s->hk : 0;
    s->rows = s->tq * s->group;
    s->e = q->dim[2];
    s->f = v->dim[2];
    s->pairs = false;
#if HD_ISA_LEVEL >= 4
    s->pairs = a->in[0].dtype == HD_BF16 && q->dtype == HD_BF16 && k->dtype == HD_BF16 && v->dtype == HD_BF16;
#endif
    s->ew = word_count(s->e, s->pairs);
    s->fw = word_count(s->f, s->pairs);
    s->ep = hd_round_up(s->e, HD_VL);
    s->fp = hd_round_up(s->f, HD_VL);
    s->tw = word_count(KEY_TILE, s->pairs);
    s->score = score_form_of(s->at->scale, s->at->softcap);
    s->slope = (float)s->at->scale;
}

/* Hands out the thread's memory; with memory NULL only counts it. */
static size_t backward_memory(backward *s, char *memory)
{
    char *start = memory;
    size_t rows = (size_t)hd_round_up(s->rows, ROW_TILE), tile = KEY_TILE * 4, ew = (size_t)s->ew, fw = (size_t)s->fw;
    size_t ep = (size_t)s->ep, fp = (size_t)s->fp, tw = (size_t)s->tw, tiles = rows / ROW_TILE;
    s->q = take(&memory, rows * ew * 4);
    s->dout = take(&memory, rows * fw * 4);
    s->q_rows = take(&memory, tiles * tw * ep * 4);
    s->dout_rows = take(&memory, tiles * tw * fp * 4);
    s->dq = take(&memory, rows * ep * 4);
    s->lse = take(&memory, rows * 4);
    s->delta = take(&memory, rows * 4);
    s->kt = take(&memory, ew * tile);
    s->vt = take(&memory, fw * tile);
    s->k_rows = take(&memory, tw * ep * 4);
    s->dk = take(&memory, ep * tile);
    s->dv = take(&memory, fp * tile);
    s->raw = take(&memory, (ep > fp ? ep : fp) * tile);
    s->p = take(&memory, tw * tile);
    s->ds = take(&memory, tw * tile);
    s->ds_block = take(&memory, ROW_BLOCK * tw * 4);
    return (size_t)(memory - start);
}

static size_t thread_bytes(backward *s)
{
    return key_table_bytes(s->tk) + backward_memory(s, (char *)64);
}

static size_t workspace_attention_grad(const hd_kernel_args *a, int threads)
{
    backward s;
    backward_sizes(&s, a);
    return thread_bytes(&s) * (size_t)threads;
}

/* ---- packing ---- */

static float row_delta(const backward *s, int64_t at)
{
    const hd_tensor *dout = &s->a->in[0], *out = &s->a->in[4];
    vf sum = vf_zero();
    for (int64_t j = 0; j < s->f; j += HD_VL) {
        int n = lanes_left(s->f, j);
        sum = vf_fma(vf_load_upto(dout->data, dout->dtype, at + j, n), vf_load_upto(out->data, out->dtype, at + j, n), sum);
    }
    return vf_hsum(sum);
}

/* [ROW_TILE] rows of n elements in words -> [tw][width] contracted over rows. */
static void pack_contracted(const backward *s, word *dst, int64_t width, const word *src, int64_t words, int64_t n)
{
    if (s->pairs) {
        for (int r = 0; r < KEY_TILE; r += 2)
            pack_interleaved(dst + r / 2 * width, width, (const uint16_t *)(src + r * words), (const uint16_t *)(src + (r + 1) * words), n);
        return;
    }
    for (int r = 0; r < KEY_TILE; r++) pack_row(dst + r * width, width, src, HD_F32, r * words, n, false);
}

static void pack_head(backward *s, int64_t head)
{
    const hd_tensor *dout = &s->a->in[0], *q = &s->a->in[1];
    const float *lse = s->a->in[5].data;
    int64_t heads = s->hk * s->group, padded = hd_round_up(s->rows, ROW_TILE);
    for (int64_t r = 0; r < s->rows; r++) {
        int64_t at = r / s->group * heads + head * s->group + r % s->group;
        pack_row(s->q + r * s->ew, s->ew, q->data, q->dtype, at * s->e, s->e, s->pairs);
        pack_row(s->dout + r * s->fw, s->fw, dout->data, dout->dtype, at * s->f, s->f, s->pairs);
        s->lse[r] = (float)(lse[at] * LOG2E);
        s->delta[r] = row_delta(s, at * s->f);
    }
    memset(s->q + s->rows * s->ew, 0, (size_t)((padded - s->rows) * s->ew) * 4);
    memset(s->dout + s->rows * s->fw, 0, (size_t)((padded - s->rows) * s->fw) * 4);
    for (int64_t r = s->rows; r < padded; r++) s->lse[r] = s->delta[r] = 0;
    for (int64_t r = 0; r < padded; r += ROW_TILE) {
        pack_contracted(s, s->q_rows + r / ROW_TILE * s->tw * s->ep, s->ep, s->q + r * s->ew, s->ew, s->e);
        pack_contracted(s, s->dout_rows + r / ROW_TILE * s->tw * s->fp, s->fp, s->dout + r * s->fw, s->fw, s->f);
    }
    memset(s->dq, 0, (size_t)(padded * s->ep) * 4);
}

/* Rows of keys or values of one tile as words in raw, [KEY_TILE][words], zero after the last. Padding keys become zero. */
static void load_tile(backward *s, const hd_tensor *x, int64_t head, int64_t j0, int64_t n, int64_t words)
{
    for (int64_t j = 0; j < KEY_TILE; j++) {
        word *dst = s->raw + j * words;
        if (s->keys.seg[j0 + j] >= 0) pack_row(dst, words, x->data, x->dtype, ((j0 + j) * s->hk + head) * n, n, s->pairs);
        else memset(dst, 0, (size_t)words * 4);
    }
}

static void pack_key_tile(backward *s, int64_t head, int64_t t)
{
    load_tile(s, &s->a->in[2], head, t * KEY_TILE, s->e, s->ew);
    transpose_words(s->kt, s->raw, s->ew, s->ew, KEY_TILE);
    pack_contracted(s, s->k_rows, s->ep, s->raw, s->ew, s->e);
    load_tile(s, &s->a->in[3], head, t * KEY_TILE, s->f, s->fw);
    transpose_words(s->vt, s->raw, s->fw, s->fw, KEY_TILE);
    memset(s->dk, 0, (size_t)(KEY_TILE * s->ep) * 4);
    memset(s->dv, 0, (size_t)(KEY_TILE * s->fp) * 4);
}

/* ---- a block of ROW_BLOCK rows against the key tile ---- */

/* Row i of a block's P and dS, in place over scores and dP; zero outside the mask's range. Capped: d tanh = 1 - tanh^2. */
HD_INLINE void row_gradient(const backward *s, float *x, float *dp, int64_t row, int i, const block_mask *mask)
{
    float lse = s->lse[row], delta = s->delta[row], cap = s->score.cap;
    for (int v = 0; v < TILE_VECTORS; v++) {
        vf p = vf_zero(), ds = vf_zero();
        if (v >= mask->first && v < mask->last) {
            vf raw = vf_load(x + v * HD_VL), slope = vf_set1(s->slope);
            if (cap > 0) {
                vf t = vf_tanh(raw * s->score.scale);
                p = vf_exp2(vf_fma(t, vf_set1(cap), vf_set1(-lse)));
                slope = slope * vf_fnma(t, t, vf_set1(1));
            } else {
                p = vf_exp2(vf_fma(raw, vf_set1(s->score.scale), vf_set1(-lse)));
            }
            if (!mask->all) p = vf_select(mask->seen[i][v], p, vf_zero());
            ds = p * (vf_load(dp + v * HD_VL) - delta) * slope;
        }
        vf_store(x + v * HD_VL, p);
        vf_store(dp + v * HD_VL, ds);
    }
}

/* Stores ROW_BLOCK rows of x from row r of the tile on as words contracted over rows, and, in `block`, over keys. */
HD_INLINE void store_words(const float (*x)[KEY_TILE], word *over_rows, int r, word *block, bool pairs)
{
    for (int i = 0; i < ROW_BLOCK; i++) {
        if (!pairs) memcpy(over_rows + (r + i) * KEY_TILE, x[i], sizeof x[i]);
        if (!pairs && block) memcpy(block + i * KEY_TILE, x[i], sizeof x[i]);
    }
    for (int i = 0; i < ROW_BLOCK && pairs; i += 2)
        for (int j = 0; j < KEY_TILE; j += HD_VL) {
            vh even = bf16_from_vf(vf_load(x[i] + j)), odd = bf16_from_vf(vf_load(x[i + 1] + j));
            vu both = __builtin_convertvector(even, vu) | __builtin_convertvector(odd, vu) << 16;
            vi_store((int32_t *)over_rows + (r + i) / 2 * KEY_TILE + j, (vi)both);
            if (!block) continue;
            vh_store((uint16_t *)block + i * KEY_TILE + j, even);
            vh_store((uint16_t *)block + (i + 1) * KEY_TILE + j, odd);
        }
}

HD_INLINE void backward_block(backward *s, int64_t row0, int r, const block_mask *mask, bool pairs)
{
    _Alignas(64) float x[ROW_BLOCK][KEY_TILE], dp[ROW_BLOCK][KEY_TILE];
    int64_t row = row0 + r;
    int j0 = mask->first * HD_VL, n = (mask->last - mask->first) * HD_VL, k0 = pairs ? j0 / 2 : j0;
    product scores = {s->q + row * s->ew, s->kt + j0, &x[0][j0], s->ew, 1, KEY_TILE, KEY_TILE, (int)s->ew, NULL, false};
    product_run(&scores, n, ROW_BLOCK, pairs);
    product dots = {s->dout + row * s->fw, s->vt + j0, &dp[0][j0], s->fw, 1, KEY_TILE, KEY_TILE, (int)s->fw, NULL, false};
    product_run(&dots, n, ROW_BLOCK, pairs);
    for (int i = 0; i < ROW_BLOCK; i++) row_gradient(s, x[i], dp[i], row + i, i, mask);
    store_words(x, s->p, r, NULL, pairs);
    store_words(dp, s->ds, r, s->ds_block, pairs);
    product queries = {s->ds_block + k0, s->k_rows + k0 * s->ep, s->dq + row * s->ep, s->tw, 1, s->ep, s->ep, pairs ? n / 2 : n,
                       NULL, true};
    product_run(&queries, s->ep, ROW_BLOCK, pairs);
}

/* Rows of a tile that see something of each vector of keys; both ends are multiples of ROW_BLOCK. */
typedef struct row_ranges {
    int first[TILE_VECTORS], last[TILE_VECTORS];
} row_ranges;

/* Gradients of the tile's keys and values from the rows that see them. */
HD_INLINE void backward_keys(backward *s, int64_t tile, const row_ranges *rows, bool pairs)
{
    int per_word = pairs ? 2 : 1;
    for (int j = 0; j < KEY_TILE; j += ROW_BLOCK) {
        int k0 = rows->first[j / HD_VL] / per_word, k = rows->last[j / HD_VL] / per_word - k0;
        if (k <= 0) continue;
        const word *dout = s->dout_rows + (tile * s->tw + k0) * s->fp, *q = s->q_rows + (tile * s->tw + k0) * s->ep;
        product dv = {s->p + k0 * KEY_TILE + j, dout, s->dv + j * s->fp, 1, KEY_TILE, s->fp, s->fp, k, NULL, true};
        product_run(&dv, s->fp, ROW_BLOCK, pairs);
        product dk = {s->ds + k0 * KEY_TILE + j, q, s->dk + j * s->ep, 1, KEY_TILE, s->ep, s->ep, k, NULL, true};
        product_run(&dk, s->ep, ROW_BLOCK, pairs);
    }
}

static void backward_block_any(backward *s, int64_t row0, int r, const block_mask *mask)
{
#if HD_ISA_LEVEL >= 4
    if (s->pairs) {
        backward_block(s, row0, r, mask, true);
        return;
    }
#endif
    backward_block(s, row0, r, mask, false);
}

static void backward_keys_any(backward *s, int64_t tile, const row_ranges *rows)
{
#if HD_ISA_LEVEL >= 4
    if (s->pairs) {
        backward_keys(s, tile, rows, true);
        return;
    }
#endif
    backward_keys(s, tile, rows, false);
}

/* ---- a tile of rows against the key tile ---- */

static void zero_block(backward *s, int r)
{
    size_t bytes = (size_t)(s->pairs ? ROW_BLOCK / 2 : ROW_BLOCK) * KEY_TILE * sizeof(word);
    int64_t at = (s->pairs ? r / 2 : r) * KEY_TILE;
    memset(s->p + at, 0, bytes);
    memset(s->ds + at, 0, bytes);
}

/* Rows past the end see nothing. */
static void make_mask(const backward *s, block_mask *mask, int64_t row, int64_t tile)
{
    const int32_t *pos = s->a->in[6].data, *seg = s->a->in[8].data;
    row_view views[ROW_BLOCK];
    for (int64_t i = 0; i < ROW_BLOCK; i++) {
        int64_t q = (row + i) / s->group;
        views[i] = row + i < s->rows ? view_of(s->at->window, s->at->causal, pos[q], seg[q]) : (row_view){-2, 0, 0};
    }
    block_mask_make(mask, s->keys.seg + tile * KEY_TILE, s->keys.pos + tile * KEY_TILE, views, ROW_BLOCK);
}

static void note_range(row_ranges *ranges, const block_mask *mask, int r)
{
    for (int v = mask->first; v < mask->last; v++) {
        if (ranges->last[v] == 0) ranges->first[v] = r;
        ranges->last[v] = r + ROW_BLOCK;
    }
}

static void backward_rows(backward *s, int64_t row0, int64_t t)
{
    const int32_t *pos = s->a->in[6].data, *seg = s->a->in[8].data;
    const key_tile *tile = &s->keys.tile[t];
    int rows = (int)(s->rows - row0 < ROW_TILE ? s->rows - row0 : ROW_TILE);
    rows_view all = view_of_rows(s->at, pos, seg, row0, rows, s->group);
    row_ranges ranges = {{0}, {0}};
    if (sees_none(&all, tile)) return;
    for (int r = 0; r < rows; r += ROW_BLOCK) {
        block_mask mask = {.first = 0, .last = 0};
        int n = rows - r < ROW_BLOCK ? rows - r : ROW_BLOCK;
        rows_view block = view_of_rows(s->at, pos, seg, row0 + r, n, s->group);
        if (n == ROW_BLOCK && sees_all(&block, tile)) block_mask_all(&mask);
        else if (!sees_none(&block, tile)) make_mask(s, &mask, row0 + r, t);
        if (mask.first < mask.last) backward_block_any(s, row0, r, &mask);
        else zero_block(s, r);
        note_range(&ranges, &mask, r);
    }
    backward_keys_any(s, row0 / ROW_TILE, &ranges);
}

static void store_keys(const backward *s, int64_t head, int64_t t)
{
    const hd_tensor *dk = &s->a->out[1], *dv = &s->a->out[2];
    for (int64_t j = t * KEY_TILE; j < (t + 1) * KEY_TILE && j < s->tk; j++) {
        int64_t i = j - t * KEY_TILE, at = j * s->hk + head;
        if (dk->data) row_store(dk->data, dk->dtype, at * s->e, s->dk + i * s->ep, s->e);
        if (dv->data) row_store(dv->data, dv->dtype, at * s->f, s->dv + i * s->fp, s->f);
    }
}

static void store_queries(const backward *s, int64_t head)
{
    const hd_tensor *dq = &s->a->out[0];
    for (int64_t r = 0; r < s->rows && dq->data; r++) {
        int64_t at = r / s->group * s->hk * s->group + head * s->group + r % s->group;
        row_store(dq->data, dq->dtype, at * s->e, s->dq + r * s->ep, s->e);
    }
}

static void run_attention_grad(const hd_kernel_args *a)
{
    backward s;
    int64_t begin, end;
    backward_sizes(&s, a);
    hd_split(s.hk, 1, a->tid, a->threads, &begin, &end);
    if (begin >= end) return;
    char *memory = (char *)a->workspace + thread_bytes(&s) * (size_t)a->tid;
    s.keys = key_table_make(&memory, s.tk, a->in[7].data, a->in[9].data);
    backward_memory(&s, memory);
    for (int64_t head = begin; head < end; head++) {
        pack_head(&s, head);
        for (int64_t t = 0; t < s.keys.tiles; t++) {
            pack_key_tile(&s, head, t);
            for (int64_t row0 = 0; row0 < s.rows; row0 += ROW_TILE) backward_rows(&s, row0, t);
            store_keys(&s, head, t);
        }
        store_queries(&s, head);
    }
}

static bool supports_attention_grad(const hd_kernel_args *a)
{
    if (a->accumulate || !operands_are_vf(a, 0, 4) || a->in[5].dtype != HD_F32 || !results_are_vf(a)) return false;
    for (int i = 6; i < 10; i++)
        if (a->in[i].dtype != HD_I32) return false;
    return a->in[1].rank == 3 && a->in[2].rank == 3;
}

const hd_kernel HD_ISA(hd_kernels_attention_grad)[] = {
    {"attention_grad", supports_attention_grad, workspace_attention_grad, run_attention_grad},
    {0},
};

#else
const hd_kernel HD_ISA(hd_kernels_attention_grad)[] = {{0}};
#endif
