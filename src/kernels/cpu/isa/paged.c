/* paged.c: attention over keys and values in blocks of a cache (Kwon et al. 2023, section 4.1).
 *
 * Consecutive queries of one sequence are a run, cut into tiles of rows; a unit of work is a tile of rows and a key head, or a part of its rows where there
 * are fewer of them than threads. Tiles of KEY_TILE keys lie at
 * absolute positions of the sequence and are gathered through its block table while they are packed, so that a row's arithmetic knows neither where its
 * keys lie nor what else is in the call. Scores and values go through the blocks of attention_block.h. */
#include "kernels/cpu/isa/attention_block.h"

#if HD_ISA_LEVEL <= 2 || HD_ISA_LEVEL == 4

enum { Q, K, V, QPOS, QSEQ, TABLES, KSCALE, VSCALE };

#define MOST_ROWS 256 /* rows of a tile of a long run: keys are packed once for all of them */
#define FEW_ROWS 64   /* up to so many, all heads of a thread walk the keys together, so that memory is read in order */

/* Where the KEY_TILE keys at positions from t * KEY_TILE lie, and which of them some row of the tile may see. */
typedef struct key_places {
    int64_t row[KEY_TILE];                              /* of the cache; -1: seen by nobody */
    _Alignas(64) int32_t seg[KEY_TILE], pos[KEY_TILE];  /* seg: 0, or -1 where row is -1 */
    key_tile range;
} key_places;

/* What is to be asked for while the key tile at hand is worked on: rows [row, end) of the next one, heads [head, head + n) of keys, then of values. */
typedef struct ahead {
    const key_places *next; /* NULL: nothing */
    int64_t head, n;
    int row, end, operand, lines; /* lines: asked for at a time */
    const char *at, *stop;        /* what is left of a row */
} ahead;

typedef struct paged {
    const hd_kernel_args *a;
    const hd_paged_attrs *at;
    int64_t tokens, rows, hk, group, sequences, blocks;
    int shift;         /* log2 of the rows of a block */
    block_form b;
    int64_t kw;        /* words of a value column */
    word *k, *v;       /* the key tile at hand: [ew][KEY_TILE], [kw][fp] */
    float *kscale, *vscale;
    row_tile *x;       /* [hk], or one where rows are many */
    int64_t parts;     /* that the rows of a tile are cut into */
    key_places *place; /* [2]: of this key tile and of the next */
    ahead ahead;
} paged;

/* Queries [first, first + n) of one sequence. */
typedef struct query_tile {
    int64_t first, n, sequence; /* sequence < 0: there is no such one */
    rows_view view;
    int64_t tile_first, tile_last; /* key tiles that some row sees: [first, last) */
} query_tile;

static bool use_pairs(const hd_kernel_args *a)
{
#if HD_ISA_LEVEL >= 4
    return a->in[Q].dtype == HD_BF16 && a->in[K].dtype == HD_BF16 && a->in[V].dtype == HD_BF16;
#else
    (void)a;
    return false;
#endif
}

static void paged_sizes(paged *s, const hd_kernel_args *a)
{
    const hd_tensor *q = &a->in[Q], *k = &a->in[K];
    *s = (paged){.a = a, .at = a->attrs, .tokens = q->dim[0], .rows = k->dim[0], .hk = k->dim[1]};
    s->group = s->hk > 0 ? q->dim[1] / s->hk : 0;
    s->sequences = a->in[TABLES].dim[0];
    s->blocks = a->in[TABLES].dim[1];
    s->shift = __builtin_ctzll((unsigned long long)s->at->block);
    s->b = block_form_of(q, &a->in[V], s->at->scale, s->at->softcap, use_pairs(a));
    s->kw = word_count(KEY_TILE, s->b.pairs);
}

/* ---- memory of a thread ---- */

/* Queries of a tile, at most. */
static int64_t tile_queries(const paged *s)
{
    int64_t n = s->group > 0 ? MOST_ROWS / s->group : 1;
    return n < 1 ? 1 : n;
}

static int64_t most_rows(const paged *s)
{
    int64_t n = tile_queries(s);
    return (s->tokens < n ? s->tokens : n) * s->group;
}

static int64_t few_rows(const paged *s)
{
    int64_t rows = most_rows(s);
    return rows < FEW_ROWS ? rows : FEW_ROWS;
}

/* Of the rows under way: one tile of many rows, or one of few for each key head. */
static size_t states_bytes(const paged *s)
{
    size_t many = row_tile_bytes(&s->b, most_rows(s)), few = (size_t)s->hk * row_tile_bytes(&s->b, few_rows(s));
    return many > few ? many : few;
}

static size_t thread_bytes(const paged *s)
{
    return aligned((size_t)(s->b.ew * KEY_TILE) * 4) + aligned((size_t)(s->kw * s->b.fp) * 4) + 2 * aligned(KEY_TILE * 4) +
           aligned(2 * sizeof(key_places)) + aligned((size_t)s->hk * sizeof(row_tile)) + states_bytes(s);
}

static size_t workspace_paged(const hd_kernel_args *a, int threads)
{
    paged s;
    paged_sizes(&s, a);
    return thread_bytes(&s) * (size_t)threads;
}

/* Returns where the rows' states go. */
static char *paged_memory(paged *s)
{
    char *memory = (char *)s->a->workspace + thread_bytes(s) * (size_t)s->a->tid;
    s->k = take(&memory, (size_t)(s->b.ew * KEY_TILE) * 4);
    s->v = take(&memory, (size_t)(s->kw * s->b.fp) * 4);
    s->kscale = take(&memory, KEY_TILE * 4);
    s->vscale = take(&memory, KEY_TILE * 4);
    s->place = take(&memory, 2 * sizeof(key_places));
    s->x = take(&memory, (size_t)s->hk * sizeof(row_tile));
    return memory;
}

/* ---- runs of queries ---- */

HD_INLINE const int32_t *ids(const paged *s, int operand)
{
    return s->a->in[operand].data;
}

/* Positions for which the table has entries. */
HD_INLINE int64_t table_keys(const paged *s)
{
    int64_t n = s->blocks << s->shift;
    return n < INT32_MAX - KEY_TILE ? n : INT32_MAX - KEY_TILE;
}

HD_INLINE row_view view_at(const paged *s, int64_t query)
{
    return view_of(s->at->window, true, ids(s, QPOS)[query], 0);
}

/* The tile that begins at a query: of one sequence, of as many queries as a tile takes. */
static query_tile query_tile_at(const paged *s, int64_t first)
{
    query_tile t = {.first = first, .sequence = ids(s, QSEQ)[first], .view = ROWS_VIEW_NONE};
    int64_t end = first + tile_queries(s), last;
    int64_t i = first;
    for (; i < s->tokens && i < end && ids(s, QSEQ)[i] == t.sequence; i++) rows_view_add(&t.view, view_at(s, i));
    t.n = i - first;
    if (t.sequence < 0 || t.sequence >= s->sequences) {
        t.sequence = -1;
        return t;
    }
    last = (int64_t)t.view.hi_max + 1 < table_keys(s) ? (int64_t)t.view.hi_max + 1 : table_keys(s);
    t.tile_first = t.view.lo_min + 1 > 0 ? (t.view.lo_min + 1) / KEY_TILE : 0;
    t.tile_last = last > 0 ? key_tiles(last) : 0;
    return t;
}

/* First row of part i of a tile's rows. */
HD_INLINE int64_t part_row(const paged *s, const query_tile *t, int64_t i)
{
    return t->n * s->group * i / s->parts;
}

/* About what a unit of the tile takes: packing a key tile costs as much as some rows. */
static int64_t unit_cost(const paged *s, const query_tile *t)
{
    int64_t tiles = t->tile_last > t->tile_first ? t->tile_last - t->tile_first : 0;
    return 1 + tiles * (t->n * s->group / s->parts + 8);
}

/* ---- key tiles ---- */

static void find_places(const paged *s, key_places *p, const query_tile *q, int64_t t)
{
    const int32_t *table = ids(s, TABLES) + q->sequence * s->blocks;
    int64_t keys = table_keys(s), inside = (1 << s->shift) - 1;
    p->range = (key_tile){INT32_MAX, -1, INT32_MAX, INT32_MIN, false};
    for (int j = 0; j < KEY_TILE; j++) {
        int64_t pos = t * KEY_TILE + j, row = -1;
        if (pos < keys && pos <= q->view.hi_max && pos > q->view.lo_min) {
            int64_t block = table[pos >> s->shift];
            row = block < 0 ? -1 : (block << s->shift) + (pos & inside);
            if (row >= s->rows) row = -1;
        }
        p->row[j] = row;
        p->seg[j] = row < 0 ? -1 : 0;
        p->pos[j] = (int32_t)pos;
        p->range.padded |= row < 0;
        if (row < 0) continue;
        p->range.seg_min = p->range.seg_max = 0;
        p->range.pos_min = pos < p->range.pos_min ? (int32_t)pos : p->range.pos_min;
        p->range.pos_max = (int32_t)pos;
    }
}

/* ---- asking ahead: one head's pieces lie far apart, so that the hardware would not fetch them by itself. While head i of n is at work, the i-th part of
 * the next key tile's rows is asked for, in the order of memory, into the second-level cache, a few lines at a time: the processor has few outstanding
 * ones, and a burst would make it wait. ---- */

#define LINE 64
#if HD_HAS_AVX512
#define DIRECT_ROWS 8
#else
#define DIRECT_ROWS 0
#endif

/* Whether keys and values are multiplied where they lie: see advance_direct. */
static bool takes_direct(const paged *s, const row_tile *x)
{
    return x->rows <= DIRECT_ROWS && !s->b.pairs && s->b.e % HD_VL == 0 && s->b.f % HD_VL == 0;
}

#define ASK_ROWS 2
#define ASK_BLOCK 4

/* Times that ask_ahead is called for a key tile: see there. */
static int64_t times_asked(const paged *s, const row_tile *x)
{
    int64_t squares = (s->b.e + 15) / 16 * (KEY_TILE / 16), blocks = ASK_BLOCK * ((x->rows + ROW_BLOCK - 1) / ROW_BLOCK);
    if (takes_direct(s, x)) return squares + blocks;
    bool words = s->b.pairs || s->a->in[K].dtype == HD_F32; /* keys are packed without asking */
    return (words ? 0 : squares) + KEY_TILE / ASK_ROWS + blocks;
}

static void ahead_begin(paged *s, const key_places *next, int64_t begin, int64_t n, int64_t i)
{
    const hd_tensor *k = &s->a->in[K], *v = &s->a->in[V];
    int64_t lines = KEY_TILE * (s->b.e * (int64_t)hd_dtype_size(k->dtype) + s->b.f * (int64_t)hd_dtype_size(v->dtype)) / LINE;
    s->ahead = (ahead){.next = next, .head = begin, .n = n, .row = (int)(i * KEY_TILE / n), .end = (int)((i + 1) * KEY_TILE / n), .operand = K};
    s->ahead.lines = (int)(lines / times_asked(s, &s->x[i])) + 1;
}

/* Goes to the next row of keys or values; false at the end. */
static bool ahead_row(paged *s, ahead *h)
{
    while (h->row < h->end && h->next->row[h->row] < 0) h->row++;
    if (h->row >= h->end) {
        h->next = NULL;
        return false;
    }
    const hd_tensor *t = &s->a->in[h->operand];
    int64_t bytes = t->dim[2] * (int64_t)hd_dtype_size(t->dtype);
    h->at = (const char *)t->data + (h->next->row[h->row] * s->hk + h->head) * bytes;
    h->stop = h->at + h->n * bytes;
    if (h->operand == V) h->row++;
    h->operand = h->operand == K ? V : K;
    return true;
}

/* Called for every 16 keys by 16 features that are packed, every ASK_ROWS rows of values, and every block of rows (which counts ASK_BLOCK times). */
HD_INLINE void ask_ahead(paged *s, int times)
{
    ahead *h = &s->ahead;
    if (!h->next) return;
    for (int i = 0; i < times * h->lines; i++, h->at += LINE) {
        if (h->at >= h->stop && !ahead_row(s, h)) return;
        __builtin_prefetch(h->at, 0, 2);
    }
}

/* Elements i .. i+n-1 of f32, bf16, f16 or i8, 1 <= n <= HD_VL. */
HD_INLINE vf cache_load(const void *p, hd_dtype t, int64_t i, int n)
{
    if (t != HD_I8) return vf_load_upto(p, t, i, n);
    const int8_t *at = (const int8_t *)p + i;
#if HD_HAS_AVX512
    __m128i x = n == HD_VL ? _mm_loadu_si128((const __m128i *)at) : _mm_maskz_loadu_epi8((__mmask16)((1u << n) - 1), at);
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x));
#else
#if HD_HAS_AVX2
    if (n == HD_VL) return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)at)));
#endif
    vf v = vf_zero();
    for (int l = 0; l < n; l++) v[l] = at[l];
    return v;
#endif
}

/* s->k[c * KEY_TILE + j] = feature c of key j as f32; zeros where at[j] is negative. */
HD_INLINE void transpose_cache(paged *s, const void *src, hd_dtype t, const int64_t at[KEY_TILE], int64_t n)
{
    float *dst = (float *)s->k;
#if HD_HAS_AVX512
    for (int j = 0; j < KEY_TILE; j += 16)
        for (int64_t c = 0; c < n; c += 16) {
            __m512i x[16];
            ask_ahead(s, 1);
            HD_UNROLL
            for (int i = 0; i < 16; i++) x[i] = at[j + i] >= 0 ? (__m512i)cache_load(src, t, at[j + i] + c, lanes_left(n, c)) : _mm512_setzero_si512();
            transpose_16(x);
            HD_UNROLL
            for (int i = 0; i < 16; i++)
                if (c + i < n) _mm512_storeu_si512(dst + (c + i) * KEY_TILE + j, x[i]);
        }
#else
    for (int j = 0; j < KEY_TILE; j++)
        for (int64_t c = 0; c < n; c += HD_VL) {
            int m = lanes_left(n, c);
            vf x = at[j] >= 0 ? cache_load(src, t, at[j] + c, m) : vf_zero();
            for (int l = 0; l < m; l++) dst[(c + l) * KEY_TILE + j] = x[l];
        }
#endif
}

/* Pairs of an odd width: a row's last word has one element. */
static void pack_odd_pairs(const paged *s, const int64_t at[KEY_TILE])
{
    for (int j = 0; j < KEY_TILE; j++)
        for (int64_t w = 0; w < s->b.ew; w++) {
            const uint16_t *p = (const uint16_t *)s->a->in[K].data + at[j] + 2 * w;
            s->k[w * KEY_TILE + j] = at[j] < 0 ? 0 : p[0] | (word)(2 * w + 1 < s->b.e ? p[1] : 0) << 16;
        }
}

static void pack_keys(paged *s, const key_places *p, int64_t head)
{
    const hd_tensor *k = &s->a->in[K];
    bool words = s->b.pairs && s->b.e % 2 == 0;
    int64_t at[KEY_TILE];
    for (int j = 0; j < KEY_TILE; j++) at[j] = p->row[j] < 0 ? -1 : (p->row[j] * s->hk + head) * s->b.e / (words ? 2 : 1);
    if (words || k->dtype == HD_F32) transpose_gathered(s->k, k->data, at, s->b.ew);
    else if (s->b.pairs) pack_odd_pairs(s, at);
    else if (k->dtype == HD_BF16) transpose_cache(s, k->data, HD_BF16, at, s->b.e);
    else if (k->dtype == HD_F16) transpose_cache(s, k->data, HD_F16, at, s->b.e);
    else transpose_cache(s, k->data, HD_I8, at, s->b.e);
}

HD_INLINE void convert_row(float *dst, const void *src, hd_dtype t, int64_t at, int64_t n)
{
    int64_t c = 0;
    for (; c + HD_VL <= n; c += HD_VL) vf_store(dst + c, cache_load(src, t, at + c, HD_VL));
    if (c < n) vf_store(dst + c, cache_load(src, t, at + c, (int)(n - c)));
}

HD_INLINE void convert_rows(paged *s, const int64_t row[KEY_TILE], int64_t head, hd_dtype t)
{
    float *dst = (float *)s->v;
    for (int j = 0; j < KEY_TILE; j++, dst += s->b.fp) {
        if (j % ASK_ROWS == 0) ask_ahead(s, 1);
        if (row[j] >= 0) convert_row(dst, s->a->in[V].data, t, (row[j] * s->hk + head) * s->b.f, s->b.f);
        else memset(dst, 0, (size_t)s->b.fp * sizeof(float));
    }
}

/* Values that nobody sees are zero, so that what a block held before can't leak as 0 * NaN. */
static void pack_values(paged *s, const int64_t row[KEY_TILE], int64_t head)
{
    const hd_tensor *v = &s->a->in[V];
    if (s->b.pairs) {
        const uint16_t *p = (const uint16_t *)v->data + head * s->b.f;
        int64_t step = s->hk * s->b.f;
        for (int j = 0; j < KEY_TILE; j += 2) {
            ask_ahead(s, 1);
            pack_interleaved(s->v + j / 2 * s->b.fp, s->b.fp, row[j] >= 0 ? p + row[j] * step : NULL, row[j + 1] >= 0 ? p + row[j + 1] * step : NULL,
                             s->b.f);
        }
    } else if (v->dtype == HD_F32) {
        convert_rows(s, row, head, HD_F32);
    } else if (v->dtype == HD_BF16) {
        convert_rows(s, row, head, HD_BF16);
    } else if (v->dtype == HD_F16) {
        convert_rows(s, row, head, HD_F16);
    } else {
        convert_rows(s, row, head, HD_I8);
    }
}

/* NULL where there are no scales. */
static const float *gather_scales(const paged *s, float *dst, int operand, const int64_t row[KEY_TILE], int64_t head)
{
    const float *scale = operand < s->a->n_in ? s->a->in[operand].data : NULL;
    if (!scale) return NULL;
    for (int j = 0; j < KEY_TILE; j++) dst[j] = row[j] < 0 ? 0 : scale[row[j] * s->hk + head];
    return dst;
}

/* Whether every packed value is a finite number. */
static bool values_finite(const paged *s, const packed_tile *tile)
{
    vf sum = vf_zero();
    vi bad = {0};
    for (int64_t i = 0; i < s->kw * s->b.fp; i += HD_VL) {
        vi w = words_load(tile->v + i);
        if (s->b.pairs) bad |= (vi)((w & 0x7f80) == 0x7f80) | (vi)((w & 0x7f800000) == 0x7f800000);
        else sum = sum + (vf)w * 0.0f;
    }
    for (int j = 0; tile->vscale && j < KEY_TILE; j += HD_VL) sum = sum + vf_load(tile->vscale + j) * 0.0f;
    return !any_lane(bad | (vi)(sum != 0.0f));
}

/* ---- a tile of rows over a key tile ---- */

HD_INLINE row_view row_view_at(const paged *s, const row_tile *x, int r)
{
    return view_at(s, (x->first + r) / s->group);
}

/* Rows [from, to) of the tile against the packed keys. */
static void advance_blocks(paged *s, row_tile *x, int from, int to, const packed_tile *tile, const key_places *p)
{
    for (int r = from, n; r < to; r += n) {
        block_mask mask;
        row_view views[ROW_BLOCK];
        rows_view block = ROWS_VIEW_NONE;
        n = block_rows(to - r);
        for (int i = 0; i < n; i++) {
            views[i] = row_view_at(s, x, r + i);
            rows_view_add(&block, views[i]);
        }
        if (sees_none(&block, &p->range)) continue;
        if (sees_all(&block, &p->range)) block_mask_all(&mask);
        else block_mask_make(&mask, p->seg, p->pos, views, n);
        ask_ahead(s, ASK_BLOCK);
        if (mask.first < mask.last) forward_block_any(&s->b, x, r, n, tile, &mask);
    }
}

/* Where a key that some rows don't see has a value that is no number: each query by itself, with the values it doesn't see as zeros. */
static void advance_queries(paged *s, row_tile *x, const packed_tile *tile, const key_places *p)
{
    for (int r = 0, end; r < x->rows; r = end) {
        int64_t next = (x->first + r) / s->group * s->group + s->group - x->first; /* query */
        end = next < x->rows ? (int)next : x->rows;
        row_view view = row_view_at(s, x, r);
        packed_tile mine = *tile;
        int64_t row[KEY_TILE];
        for (int j = 0; j < KEY_TILE; j++) row[j] = p->pos[j] > view.lo && p->pos[j] <= view.hi ? p->row[j] : -1;
        pack_values(s, row, x->head);
        mine.vscale = gather_scales(s, s->vscale, VSCALE, row, x->head);
        advance_blocks(s, x, r, end, &mine, p);
    }
}

/* ---- few rows (decoding): packing would cost as much as the products. 16 keys at a time are transposed in registers and multiplied there; values are
 * taken as they lie. The order of sums is that of packed tiles. ---- */

#if HD_HAS_AVX512

/* Products of `rows` queries with the 16 keys at at[]: out[r][0 .. 16). */
HD_INLINE void direct_products(paged *s, const float *q, int rows, hd_dtype t, const int64_t at[16], float *out)
{
    const void *src = s->a->in[K].data;
    vf acc[DIRECT_ROWS];
    for (int r = 0; r < rows; r++) acc[r] = vf_zero();
    for (int64_t c = 0; c < s->b.e; c += 16, q += 16) {
        __m512i k[16];
        ask_ahead(s, 1);
        HD_UNROLL
        for (int i = 0; i < 16; i++) k[i] = at[i] >= 0 ? (__m512i)cache_load(src, t, at[i] + c, HD_VL) : _mm512_setzero_si512();
        transpose_16(k);
        HD_UNROLL
        for (int i = 0; i < 16; i++)
            HD_UNROLL
            for (int r = 0; r < rows; r++) acc[r] = vf_fma(vf_set1(q[r * s->b.ew + i]), (vf)k[i], acc[r]);
    }
    for (int r = 0; r < rows; r++) vf_store(out + r * KEY_TILE, acc[r]);
}

HD_INLINE void direct_products_rows(paged *s, const float *q, int rows, hd_dtype t, const int64_t at[16], float *out)
{
    for (int n; rows > 0; rows -= n, q += n * s->b.ew, out += n * KEY_TILE) {
        n = rows >= 8 ? 8 : rows >= 4 ? 4 : rows >= 2 ? 2 : 1;
        if (n == 8) direct_products(s, q, 8, t, at, out);
        else if (n == 4) direct_products(s, q, 4, t, at, out);
        else if (n == 2) direct_products(s, q, 2, t, at, out);
        else direct_products(s, q, 1, t, at, out);
    }
}

static void products_of(paged *s, const float *q, int rows, const int64_t at[16], float *out)
{
    hd_dtype t = s->a->in[K].dtype;
    if (t == HD_F16) direct_products_rows(s, q, rows, HD_F16, at, out);
    else if (t == HD_BF16) direct_products_rows(s, q, rows, HD_BF16, at, out);
    else if (t == HD_I8) direct_products_rows(s, q, rows, HD_I8, at, out);
    else direct_products_rows(s, q, rows, HD_F32, at, out);
}

HD_INLINE void direct_values_group(const packed_tile *tile, const float *w, float *o, int64_t ldo, int rows, int nv, int64_t c, int first, int n,
                                   const float *scale, hd_dtype t)
{
    vf acc[ROW_BLOCK][4];
    HD_UNROLL
    for (int r = 0; r < rows; r++)
        HD_UNROLL
        for (int v = 0; v < nv; v++) {
            acc[r][v] = vf_load(o + r * ldo + c + v * HD_VL);
            if (scale) acc[r][v] = acc[r][v] * scale[r];
        }
    for (int k = first; k < first + n; k++) {
        vf b[4];
        HD_UNROLL
        for (int v = 0; v < nv; v++) b[v] = tile->v_at[k] >= 0 ? cache_load(tile->v_data, t, tile->v_at[k] + c + v * HD_VL, HD_VL) : vf_zero();
        HD_UNROLL
        for (int r = 0; r < rows; r++)
            HD_UNROLL
            for (int v = 0; v < nv; v++) acc[r][v] = vf_fma(vf_set1(w[r * KEY_TILE + k]), b[v], acc[r][v]);
    }
    HD_UNROLL
    for (int r = 0; r < rows; r++)
        HD_UNROLL
        for (int v = 0; v < nv; v++) vf_store(o + r * ldo + c + v * HD_VL, acc[r][v]);
}

HD_INLINE void direct_values_rows(const packed_tile *tile, const float *w, float *o, int64_t ldo, int rows, int first, int n, const float *scale, hd_dtype t)
{
    int64_t c = 0;
    for (; c + 4 * HD_VL <= tile->f; c += 4 * HD_VL) direct_values_group(tile, w, o, ldo, rows, 4, c, first, n, scale, t);
    for (; c < tile->f; c += HD_VL) direct_values_group(tile, w, o, ldo, rows, 1, c, first, n, scale, t);
}

HD_INLINE void direct_values(const packed_tile *tile, const float *w, float *o, int64_t ldo, int rows, int first, int n, const float *scale, hd_dtype t)
{
    if (rows == 4) direct_values_rows(tile, w, o, ldo, 4, first, n, scale, t);
    else if (rows == 2) direct_values_rows(tile, w, o, ldo, 2, first, n, scale, t);
    else direct_values_rows(tile, w, o, ldo, 1, first, n, scale, t);
}

static void values_of(const packed_tile *tile, const float *w, float *o, int64_t ldo, int rows, int first, int n, const float *scale)
{
    if (tile->v_dtype == HD_F16) direct_values(tile, w, o, ldo, rows, first, n, scale, HD_F16);
    else if (tile->v_dtype == HD_BF16) direct_values(tile, w, o, ldo, rows, first, n, scale, HD_BF16);
    else if (tile->v_dtype == HD_I8) direct_values(tile, w, o, ldo, rows, first, n, scale, HD_I8);
    else direct_values(tile, w, o, ldo, rows, first, n, scale, HD_F32);
}

static void advance_direct(paged *s, row_tile *x, const key_places *p)
{
    _Alignas(64) float products[DIRECT_ROWS][KEY_TILE];
    int64_t k_at[KEY_TILE], v_at[KEY_TILE];
    for (int j = 0; j < KEY_TILE; j++) {
        k_at[j] = p->row[j] < 0 ? -1 : (p->row[j] * s->hk + x->head) * s->b.e;
        v_at[j] = p->row[j] < 0 ? -1 : (p->row[j] * s->hk + x->head) * s->b.f;
    }
    packed_tile tile = {.kscale = gather_scales(s, s->kscale, KSCALE, p->row, x->head), .vscale = gather_scales(s, s->vscale, VSCALE, p->row, x->head),
                        .products = products, .values = values_of, .v_data = s->a->in[V].data, .v_dtype = s->a->in[V].dtype, .v_at = v_at, .f = s->b.f};
    for (int j = 0; j < KEY_TILE; j += HD_VL) {
        bool any = false;
        for (int i = 0; i < HD_VL; i++) any |= k_at[j + i] >= 0;
        if (any) products_of(s, (const float *)x->q, x->rows, k_at + j, &products[0][j]);
    }
    advance_blocks(s, x, 0, x->rows, &tile, p);
}

#else

static void advance_direct(paged *s, row_tile *x, const key_places *p)
{
    (void)s, (void)x, (void)p;
}

#endif

static void row_tile_advance(paged *s, row_tile *x, const key_places *p)
{
    const rows_view *v = &x->view;
    bool alike = (v->hi_min == v->hi_max && v->lo_min == v->lo_max) || (p->range.pos_max <= v->hi_min && p->range.pos_min > v->lo_max);
    if (sees_none(v, &p->range)) return;
    if (alike && takes_direct(s, x)) {
        advance_direct(s, x, p);
        return;
    }
    pack_keys(s, p, x->head);
    pack_values(s, p->row, x->head);
    packed_tile tile = {.k = s->k, .v = s->v, .ldv = s->b.fp};
    tile.kscale = gather_scales(s, s->kscale, KSCALE, p->row, x->head);
    tile.vscale = gather_scales(s, s->vscale, VSCALE, p->row, x->head);
    if (alike || values_finite(s, &tile)) advance_blocks(s, x, 0, x->rows, &tile, p);
    else advance_queries(s, x, &tile, p);
}

/* Heads [begin, begin + n) of rows [from, to) of a tile. */
static void run_heads(paged *s, const query_tile *q, int64_t begin, int64_t n, int64_t from, int64_t to, char *memory)
{
    for (int64_t i = 0; i < n; i++) {
        row_tile *x = &s->x[i];
        *x = (row_tile){.head = begin + i, .first = q->first * s->group + from, .rows = (int)(to - from), .view = q->view};
        row_tile_memory(&s->b, x, x->rows, &memory);
        row_tile_clear(&s->b, x, &s->a->in[Q], s->hk, s->group);
    }
    if (q->sequence >= 0 && q->tile_first < q->tile_last) find_places(s, &s->place[q->tile_first & 1], q, q->tile_first);
    for (int64_t t = q->tile_first; q->sequence >= 0 && t < q->tile_last; t++) {
        bool more = t + 1 < q->tile_last;
        if (more) find_places(s, &s->place[(t + 1) & 1], q, t + 1);
        for (int64_t i = 0; i < n; i++) {
            ahead_begin(s, more ? &s->place[(t + 1) & 1] : NULL, begin, n, i);
            row_tile_advance(s, &s->x[i], &s->place[t & 1]);
        }
    }
    for (int64_t i = 0; i < n; i++)
        for (int r = 0; r < s->x[i].rows; r++) row_tile_store(&s->b, &s->x[i], r, &s->a->out[0], row_place(&s->x[i], r, s->hk, s->group));
}

/* Units [begin, end) of a tile. All heads together where rows are few, else one by one, or a head's part by itself. */
static void run_tile(paged *s, const query_tile *q, int64_t begin, int64_t end, char *memory)
{
    int64_t step = s->parts == 1 && q->n * s->group <= FEW_ROWS ? end - begin : 1;
    for (int64_t u = begin; u < end; u += step) {
        int64_t part = u % s->parts;
        run_heads(s, q, u / s->parts, step, part_row(s, q, part), part_row(s, q, part + 1), memory);
    }
}

/* Units lie in a row, tile by tile, head by head, part by part; each thread has a stretch of about the same cost. A unit is of the thread in whose stretch
 * its middle lies. */
static int64_t thread_of(int64_t before, int64_t cost, int64_t total, int threads)
{
    return (int64_t)(((double)before + (double)cost / 2) * threads / (double)total);
}

/* Cuts rows into parts where there are fewer units than threads; returns what all units cost. */
static int64_t count_units(paged *s)
{
    int64_t units = 0, total = 0;
    s->parts = 1;
    for (int64_t i = 0; i < s->tokens; i += query_tile_at(s, i).n) units += s->hk;
    if (units < s->a->threads) s->parts = (s->a->threads + units - 1) / units;
    for (int64_t i = 0; i < s->tokens;) {
        query_tile q = query_tile_at(s, i);
        total += unit_cost(s, &q) * s->hk * s->parts;
        i += q.n;
    }
    return total;
}

static void run_paged(const hd_kernel_args *a)
{
    paged s;
    paged_sizes(&s, a);
    if (s.tokens * s.group * s.hk * s.b.f == 0 || !a->out[0].data) return;
    char *memory = paged_memory(&s);
    int64_t total = count_units(&s), before = 0;
    for (int64_t i = 0; i < s.tokens;) {
        query_tile q = query_tile_at(&s, i);
        int64_t cost = unit_cost(&s, &q), begin = 0, end = 0;
        for (int64_t u = 0; u < s.hk * s.parts; u++, before += cost) {
            int64_t thread = thread_of(before, cost, total, a->threads);
            if (thread < a->tid) begin = end = u + 1;
            else if (thread == a->tid) end = u + 1;
        }
        run_tile(&s, &q, begin, end, memory);
        i += q.n;
    }
}

static bool supports_cache(const hd_kernel_args *a, int i, int scale)
{
    bool given = scale < a->n_in && !is_absent(&a->in[scale]);
    return given ? a->in[i].dtype == HD_I8 && a->in[scale].dtype == HD_F32 : is_vf_dtype(a->in[i].dtype);
}

static bool supports_paged(const hd_kernel_args *a)
{
    if (a->accumulate || !is_vf_dtype(a->in[Q].dtype) || !results_are_vf(a)) return false;
    return supports_cache(a, K, KSCALE) && supports_cache(a, V, VSCALE);
}

const hd_kernel HD_ISA(hd_kernels_paged)[] = {
    {"paged_attention", supports_paged, workspace_paged, run_paged},
    {0},
};

#else
const hd_kernel HD_ISA(hd_kernels_paged)[] = {{0}};
#endif
