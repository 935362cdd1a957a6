/* blocks.c: contract with packed block-quantized weights: x is rounded once, then each thread multiplies its own panels of columns.
 *
 *     round x into records of (chunk of k, row): the team shares them, and meets
 *     for each few panels of this thread
 *         for each block of rows, for each few chunks of k      the panels' chunks stay in the first-level cache, sums in scratch
 *             for each few rows: register tile                  blocks_micro.h
 * One tile alone takes all of k at once, so that weights are read in order; of several, each fetches a share of the chunks that come next. */
#include "kernels/cpu/isa/blocks_isa.h"

#include "kernels/einsum.h"

#if HD_BLOCKS_HERE

#define CHUNK HD_BLOCKS_CHUNK
#define WIDTH HD_BLOCKS_WIDTH
#define ROWS HD_BLOCKS_ROWS
#define PANELS HD_BLOCKS_PANELS
#define RANGE 2          /* chunks of k that a few panels keep in the first-level cache: 17 KiB of 8-bit weights */
#define ROWS_BLOCK 512   /* rows whose sums are kept: 64 KiB */
#define AHEAD 1024       /* bytes between what is multiplied and what is fetched, in one pass over the weights */

typedef struct product {
    const hd_blocks_kind *kind;
    int kind_id;
    int64_t m, n, k, chunks;
    hd_einsum_nest rows; /* element offsets of x's and y's rows */
    hd_dtype tx, ty;
    const void *x;
    void *y;
    const uint8_t *w;
    bool accumulate;
    int64_t panel_bytes, chunk_bytes, row_bytes;
    char *rounded; /* [chunk][row] records */
} product;

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* ---- the notation ---- */

/* Whether the loops are one run of neighbours in operand o, or nothing. */
static bool is_run(const hd_einsum_nest *l, int o) { return l->n == 0 || (l->n == 1 && l->stride[o][0] == 1); }

/* Reads the loops: no batch, k innermost and in one order in x and w, n all of w's rows and innermost in y. */
static bool read_loops(product *p, const hd_kernel_args *a)
{
    const hd_contract_attrs *at = a->attrs;
    hd_einsum e;
    int64_t extent[HD_EINSUM_LABELS];
    hd_einsum_nest batch, n, k;
    if (hd_einsum_parse(&e, at->spec, NULL) || hd_einsum_extents(&e, &a->in[0], &a->in[1], extent, NULL)) return false;
    hd_einsum_loops(&e, extent, HD_EINSUM_BATCH, &batch);
    hd_einsum_loops(&e, extent, HD_EINSUM_M, &p->rows);
    hd_einsum_loops(&e, extent, HD_EINSUM_N, &n);
    hd_einsum_loops(&e, extent, HD_EINSUM_K, &k);
    p->m = p->rows.total, p->n = n.total, p->k = k.total;
    if (batch.total != 1 || !is_run(&k, 0) || !is_run(&k, 1) || !is_run(&n, 2)) return false;
    return n.n == 0 || n.stride[1][0] == p->k;
}

static bool read_product(product *p, const hd_kernel_args *a)
{
    const hd_tensor *x = &a->in[0], *w = &a->in[1];
    memset(p, 0, sizeof *p);
    p->kind_id = hd_blocks_kind_of(w->blocks);
    if (p->kind_id < 0 || w->format != HD_PACKED || x->format != HD_PLAIN || x->blocks || !read_loops(p, a)) return false;
    p->kind = &hd_blocks_kinds[p->kind_id];
    p->tx = x->dtype, p->ty = ((const hd_contract_attrs *)a->attrs)->dtype;
    if (p->k % w->blocks->block || !is_vf_dtype(p->tx) || !is_vf_dtype(p->ty)) return false;
    p->chunks = ceil_div(p->k, CHUNK);
    p->x = x->data, p->w = w->data;
    p->accumulate = a->accumulate;
    p->panel_bytes = hd_blocks_panel_bytes(p->kind, p->k);
    p->chunk_bytes = hd_blocks_chunk_bytes(p->kind, CHUNK);
    p->row_bytes = hd_blocks_row_bytes(p->kind);
    p->rounded = a->workspace;
    return true;
}

/* Where row r lies in operand o (0: x, 2: y), in elements. */
static int64_t row_offset(const product *p, int o, int64_t r)
{
    return p->rows.n == 1 ? r * p->rows.stride[o][0] : hd_einsum_offset(&p->rows, o, r);
}

/* ---- rounding x ---- */

typedef int8_t vb __attribute__((vector_size(HD_VL)));

/* Largest lane of what isn't negative. */
HD_INLINE int32_t largest_lane(vi v)
{
#if HD_HAS_AVX512
    return _mm512_reduce_max_epi32((__m512i)v);
#else
    int32_t most = 0;
    for (int i = 0; i < HD_VL; i++) most = v[i] > most ? v[i] : most;
    return most;
#endif
}

HD_INLINE vi larger(vi a, vi b)
{
#if HD_HAS_AVX512
    return (vi)_mm512_max_epi32((__m512i)a, (__m512i)b);
#else
    return vi_select((vi)(a > b), a, b);
#endif
}

/* Largest magnitude of x[0 .. n-1], n a multiple of 16: magnitudes are ordered as their bits are, and what isn't finite comes last. */
HD_INLINE float largest(const float *x, int n)
{
    vi most = {0};
    for (int i = 0; i < n; i += HD_VL) most = larger(most, vi_load((const int32_t *)(x + i)) & 0x7fffffff);
    int32_t bits = largest_lane(most);
    float r;
    memcpy(&r, &bits, 4);
    return r;
}

/* q = x * inverse to nearest even. */
HD_INLINE void round_run(const float *x, int n, float inverse, int8_t *q)
{
    for (int i = 0; i < n; i += HD_VL) {
        vb b = __builtin_convertvector(vi_from_vf(vf_round(vf_load(x + i) * inverse)), vb);
        memcpy(q + i, &b, sizeof b);
    }
}

/* Sums of 16 neighbours each. */
static void sum_sixteens(const int8_t *q, int32_t sum[16])
{
#if HD_ISA_LEVEL == 3
    __m512i t[4];
    for (int i = 0; i < 4; i++) t[i] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), _mm512_loadu_si512(q + 64 * i));
    __m512i low = _mm512_add_epi32(_mm512_unpacklo_epi32(t[0], t[1]), _mm512_unpackhi_epi32(t[0], t[1]));
    __m512i high = _mm512_add_epi32(_mm512_unpacklo_epi32(t[2], t[3]), _mm512_unpackhi_epi32(t[2], t[3]));
    __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high)); /* [quarter][vector] */
    const __m512i turn = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_si512(sum, _mm512_permutexvar_epi32(turn, all));
#else
    for (int s = 0; s < 16; s++) {
        sum[s] = 0;
        for (int i = 0; i < 16; i++) sum[s] += q[16 * s + i];
    }
#endif
}

/* Rounds n elements in blocks that share a scale; a scale is NaN where an element isn't finite. */
static void round_blocks(const float *x, int n, int block, hd_blocks_row *r)
{
    float most[16] = {0}, inverse[16];
    for (int b = 0; b * block < n; b++) most[b] = largest(x + b * block, block);
    for (int b = 0; b < 8; b++) {
        bool tiny = most[b] < 0x1p-100f, finite = most[b] < INFINITY;
        inverse[b] = tiny ? 0 : 127 / most[b];
        most[b] = tiny ? 0 : finite ? most[b] / 127 : NAN;
    }
    for (int b = 0; b * block < n; b++) {
        if (inverse[b] > 0) round_run(x + b * block, block, inverse[b], r->q + b * block);
        else memset(r->q + b * block, 0, (size_t)block);
    }
    for (int b = 0; block == 32 && b < 8; b += HD_VL) vf_store(most + b, vf_from_f16(f16_from_vf(vf_load(most + b))));
    memcpy(r->scale, most, sizeof r->scale);
}

/* What the kind wants to know of the sums of q. */
static void sum_record(const hd_blocks_kind *kind, hd_blocks_row *r)
{
    int32_t sum[16];
    sum_sixteens(r->q, sum);
    for (int s = 0; kind->sub == 32 && s < 8; s++) sum[s] = sum[2 * s] + sum[2 * s + 1];
    for (int s = 0; s < HD_BLOCKS_CHUNK / kind->sub; s++) {
        if (!kind->minimum) r->init[s] = -kind->offset * sum[s];
        else if (kind->super) r->sum[s] = (int16_t)sum[s];
        else r->scaled[s] = r->scale[s] * (float)sum[s];
    }
}

/* Elements at .. at+n-1 of x. */
static void round_record(const product *p, int64_t at, int64_t n, void *record)
{
    float x[CHUNK], *to = p->kind->bits == 16 ? record : x;
    for (int64_t i = 0; i < n; i += HD_VL) {
        if (n - i >= HD_VL) vf_store(to + i, vf_load_as(p->x, p->tx, at + i));
        else vf_store_n(to + i, vf_load_as_n(p->x, p->tx, at + i, (int)(n - i)), (int)(n - i));
    }
    if (p->kind->bits == 16) return;
    if (n < CHUNK) memset(((hd_blocks_row *)record)->q + n, 0, (size_t)(CHUNK - n));
    round_blocks(x, (int)n, p->kind->super ? CHUNK : 32, record);
    sum_record(p->kind, record);
}

/* This member's share of the records. */
static void round_rows(const product *p, const hd_kernel_args *a)
{
    int64_t begin, end;
    hd_split(p->m * p->chunks, 1, a->tid, a->threads, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        int64_t chunk = i / p->m, row = i % p->m;
        round_record(p, row_offset(p, 0, row) + chunk * CHUNK, min64(CHUNK, p->k - chunk * CHUNK), p->rounded + i * p->row_bytes);
    }
}

/* ---- multiplying ---- */

/* Rows, panels and chunks of one step: `chunks` of k from `chunk` on. */
typedef struct step { int64_t row, rows, panel, chunk, chunks; int panels; } step;

/* How a block of rows is cut into tiles, for so many panels. */
typedef struct tiling {
    int64_t rows, tiles, range; /* range: chunks of k at a time */
    int panels;
    struct { int64_t begin, rows; hd_blocks_micro run; } tile[ROWS_BLOCK];
} tiling;

/* Columns of panel `panel`, at most 16. */
static int64_t columns_of(const product *p, int64_t panel) { return min64(WIDTH, p->n - panel * WIDTH); }

static void load_sums(const product *p, const step *s, float *acc)
{
    memset(acc, 0, (size_t)(s->rows * s->panels * WIDTH) * sizeof *acc);
    for (int64_t r = 0; p->accumulate && r < s->rows; r++)
        for (int j = 0; j < s->panels; j++, acc += WIDTH) {
            int64_t at = row_offset(p, 2, s->row + r) + (s->panel + j) * WIDTH, count = columns_of(p, s->panel + j);
            for (int64_t i = 0; i < count; i++) acc[i] = f32_load_as(p->y, p->ty, at + i);
        }
}

static void store_sums(const product *p, const step *s, const float *acc)
{
    int64_t count = min64(s->panels * WIDTH, p->n - s->panel * WIDTH);
    for (int64_t r = 0; r < s->rows; r++, acc += s->panels * WIDTH) {
        int64_t i = 0, at = row_offset(p, 2, s->row + r) + s->panel * WIDTH;
        for (; i + HD_VL <= count; i += HD_VL) vf_store_as(p->y, p->ty, at + i, vf_load(acc + i));
        if (i < count) vf_store_as_n(p->y, p->ty, at + i, vf_load_n(acc + i, (int)(count - i)), (int)(count - i));
    }
}

/* Tiles that share the rows. Two of a few rows take turns at a range of k while the next is fetched, which one pass over the weights does less well: there
 * only the machine's own prefetching and a short look ahead cover memory. Measured on Zen 4: pays from two rows on, from four with 8 bits, never with f16. */
static int64_t tile_count(const product *p, int64_t rows)
{
    int64_t least = p->kind->bits == 16 || rows < (p->kind->bits == 8 ? 4 : 2) ? 1 : 2, tiles = ceil_div(rows, ROWS);
    return tiles < least ? least : tiles;
}

static void plan_tiles(const product *p, int64_t rows, int panels, tiling *g)
{
    if (g->rows == rows && g->panels == panels) return;
    g->rows = rows, g->panels = panels;
    g->tiles = tile_count(p, rows);
    g->range = g->tiles > 1 ? RANGE : p->chunks + 1;
    for (int64_t i = 0; i < g->tiles; i++) {
        int64_t end;
        hd_split(rows, 1, (int)i, (int)g->tiles, &g->tile[i].begin, &end);
        g->tile[i].rows = end - g->tile[i].begin;
        g->tile[i].run = HD_ISA(hd_blocks_micro_of)(p->kind_id, (int)g->tile[i].rows, panels);
    }
}

/* What the tiles fetch: one alone, a little ahead of what it multiplies; of several each its share of the range that comes next. */
static void plan_fetch(const product *p, const step *s, int64_t tiles, hd_blocks_tile *t)
{
    int64_t lines = p->chunk_bytes / 64;
    t->fetch_lines = (int)ceil_div(lines, 8 * tiles);
    t->fetch = t->w + AHEAD, t->fetch_chunk_bytes = p->chunk_bytes;
    if (tiles == 1) return;
    t->fetch = s->chunk + s->chunks < p->chunks ? t->w + s->chunks * p->chunk_bytes : p->w + (s->panel + s->panels) * p->panel_bytes;
    t->fetch_chunk_bytes = 64 * 8 * t->fetch_lines;
}

/* All tiles over one range of k; s->row, s->rows: all rows. acc has their sums, tile by tile. */
static void run_range(const product *p, const tiling *g, step s, float *acc)
{
    bool first = s.chunk == 0, last = s.chunk + s.chunks >= p->chunks;
    hd_blocks_tile t = {.w = p->w + s.panel * p->panel_bytes + s.chunk * p->chunk_bytes, .panel_bytes = p->panel_bytes, .chunk_bytes = p->chunk_bytes};
    t.x_chunk_bytes = p->m * p->row_bytes;
    t.k = min64(s.chunks * CHUNK, p->k - s.chunk * CHUNK);
    plan_fetch(p, &s, g->tiles, &t);
    const char *x = p->rounded + (s.chunk * p->m + s.row) * p->row_bytes;
    const uint8_t *stop = t.fetch + s.chunks * p->chunk_bytes;
    for (int64_t i = 0; i < g->tiles; i++) {
        step rows = s;
        rows.row += g->tile[i].begin, rows.rows = g->tile[i].rows;
        t.acc = acc + g->tile[i].begin * s.panels * WIDTH;
        t.x = x + g->tile[i].begin * p->row_bytes;
        if (first) load_sums(p, &rows, t.acc);
        g->tile[i].run(&t);
        if (last) store_sums(p, &rows, t.acc);
        t.fetch += s.chunks * t.fetch_chunk_bytes;
        if (g->tiles > 1 && t.fetch >= stop) t.fetch_lines = 0;
    }
}

static void multiply(const product *p, const hd_kernel_args *a, float *acc)
{
    /* One row is as fast as memory: one stream. F16 needs several chains to be. */
    int64_t begin, end;
    int most = p->m == 1 && p->kind->bits < 16 ? 1 : PANELS;
    tiling g;
    g.rows = 0;
    hd_split(ceil_div(p->n, WIDTH), 1, a->tid, a->threads, &begin, &end);
    for (int64_t panel = begin; panel < end;) {
        int panels = end - panel >= most ? most : 1;
        for (int64_t row = 0; row < p->m; row += ROWS_BLOCK) {
            plan_tiles(p, min64(ROWS_BLOCK, p->m - row), panels, &g);
            step s = {.row = row, .rows = g.rows, .panel = panel, .panels = panels, .chunks = g.range};
            for (; s.chunk < p->chunks || s.chunk == 0; s.chunk += g.range) run_range(p, &g, s, acc);
        }
        panel += panels;
    }
}

/* ---- the kernel ---- */

static bool supports(const hd_kernel_args *a)
{
    product p;
    return a->n_in >= 2 && read_product(&p, a);
}

static int64_t acc_bytes(const product *p) { return min64(p->m, ROWS_BLOCK) * PANELS * WIDTH * 4; }
static int64_t rounded_bytes(const product *p) { return (p->m * p->chunks * p->row_bytes + 63) / 64 * 64; }

static size_t workspace(const hd_kernel_args *a, int threads)
{
    product p;
    return read_product(&p, a) ? (size_t)(rounded_bytes(&p) + acc_bytes(&p) * threads) : 0;
}

static void run(const hd_kernel_args *a)
{
    product p;
    if (!read_product(&p, a) || !a->out[0].data || !p.m || !p.n) return;
    p.y = a->out[0].data;
    round_rows(&p, a);
    if (a->threads > 1) hd_team_barrier(a->team, a->tid);
    multiply(&p, a, (float *)(p.rounded + rounded_bytes(&p) + acc_bytes(&p) * a->tid));
}

const hd_kernel HD_ISA(hd_kernels_blocks)[] = {
    {"contract", supports, workspace, run},
    {0},
};

#else
const hd_kernel HD_ISA(hd_kernels_blocks)[] = {{0}};
#endif
