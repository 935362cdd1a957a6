/* The dense product: how its loops walk the caches, and how the result leaves the register tile.
 *
 *     for each batch of this thread's share, rows x columns of this thread's share:
 *         for mc: rows that stay packed together          (A block: L2, or L3 when deep)
 *             for jc: columns that share one pass over k
 *                 for each block of k
 *                     pack A (once for each mc when all blocks fit, else again for each jc)
 *                     for each few panels of columns: pack B (or find it packed)
 *                         for each panel: for each MR rows: register tile
 *
 * Threads share nothing: each packs what it needs, and there is no barrier.
 * With at most MR rows and columns of b next to each other in memory, b is not packed but multiplied where it lies (stream_columns).
 * Partial sums go through c itself where c is f32 (int32) with columns next to each other, else through scratch, and are rounded once. */
#include "kernels/cpu/isa/gemm_trim.h"

#define MR HD_GEMM_MR
#define NR HD_GEMM_NR
#define KW HD_GEMM_KWORDS
#define KE (KW * HD_GEMM_UNIT)             /* elements of k in one block */
#define A_WORDS (512 * 1024)               /* packed A at most: 2 MiB a thread */
#define ROWS_DEEP 512                      /* rows of a block when A's depth doesn't fit */
#define ROWS_MAX 1024
#define COLUMNS_DEEP (16 * 48)             /* columns that share a pass over k through scratch */
#define STREAM_COLUMNS 1024                /* of one row at a time: 4 KiB of sums, and four rows of b, stay in L1 */
#define B_GROUP 4                          /* panels of B packed at once; columns that share a pass over k when A is kept */
#define SLACK (2 * HD_VL + 64)             /* words that packing may spill; also keeps pieces on separate cache lines */
#define A_BIAS (HD_GEMM_UNIT == 4 ? 0x80808080u : 0u)

typedef struct piece { int64_t begin, end; } piece;

/* One block: rows mc .. mc+rows-1, k0 .. k0+kn-1. */
typedef struct block { int64_t mc, rows, k0, kn; bool first, last; const uint32_t *a; } block;

/* One thread's view of the product. */
typedef struct walk {
    const hd_gemm *g;
    int64_t k, blocks;       /* elements of k; blocks of them */
    bool keep_a;             /* all k of the rows stay packed */
    bool direct;             /* partial sums in c */
    bool edge_only;          /* ... but for the last, narrower panel, at most one of which uses scratch */
    bool stream;             /* b is not packed: few rows */
    bool add_first;          /* the first block adds too: c accumulates */
    int64_t rows_max, columns_max;
    uint32_t *a, *b;         /* packed */
    gemm_acc *scratch;       /* [column group][rows][NR] */
    const char *base_a, *base_b;
    char *base_c;            /* of this batch */
    int64_t batch;           /* index */
    piece m, n;              /* this thread's rows and columns */
} walk;

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
static int64_t word_count(int64_t k) { return ceil_div(k, HD_GEMM_UNIT); }

bool HD_ISA(hd_gemm_takes)(const hd_gemm *g)
{
#if HD_GEMM_UNIT == 2
    return g->ta == HD_BF16 && g->tb == HD_BF16 && is_vf_dtype(g->tc);
#elif HD_GEMM_UNIT == 4
    return g->ta == HD_I8 && g->tb == HD_I8 && g->tc == HD_I32;
#else
    return is_vf_dtype(g->ta) && is_vf_dtype(g->tb) && is_vf_dtype(g->tc) && !(g->packed && g->tb == HD_F16);
#endif
}

/* ---- sizes ---- */

/* Whether A's rows can stay packed over all of k with enough rows for B's packing to pay. */
static bool keeps_a(const hd_gemm *g)
{
    return word_count(g->k.total) * 256 <= A_WORDS;
}

static int64_t rows_in_block(const hd_gemm *g)
{
    if (!keeps_a(g)) return ROWS_DEEP;
    int64_t depth = word_count(g->k.total);
    int64_t rows = depth ? A_WORDS / depth / MR * MR : ROWS_MAX;
    return min64(rows, ROWS_MAX);
}

static int64_t words_of_a(const hd_gemm *g)
{
    int64_t rows = min64(round_up(g->m.total, MR), rows_in_block(g));
    return round_up(rows * (keeps_a(g) ? word_count(g->k.total) : KW) + SLACK, 16);
}

#define TRIM_ROWS (12 * MR) /* up to so many, reading a trimmed panel for each tile (7 % of a tile) is quicker than writing it out once */
#define TRIM_K (2 * HD_GEMM_TRIM_STEPS) /* elements of k in a group of a trimmed panel */

/* Words from one panel of a group to the next: a header row, and one block of k, in whole groups of trimmed panels. */
static int64_t group_distance(const hd_gemm *g)
{
    return (round_up(min64(word_count(g->k.total), KW), TRIM_K) + 1) * NR;
}

static int64_t words_of_b(const hd_gemm *g)
{
    return round_up(min64(B_GROUP, ceil_div(g->n.total, NR)) * group_distance(g) + SLACK, 16);
}

/* Whether b can be read where it lies when there are few rows: its columns are neighbours, and so are c's. */
static bool can_stream(const hd_gemm *g)
{
    return HD_GEMM_UNIT < 4 && !g->packed && !g->window && g->n.n == 1 && g->n.stride[1][0] == 1 && g->n.stride[2][0] == 1 && g->k.n == 1;
}

static int64_t words_of_scratch(const hd_gemm *g)
{
    int64_t rows = min64(round_up(g->m.total, MR), rows_in_block(g));
    int64_t columns = min64(round_up(g->n.total, NR), keeps_a(g) ? B_GROUP * NR : COLUMNS_DEEP);
    int64_t stream = can_stream(g) ? 2 * STREAM_COLUMNS * min64(g->m.total, MR) : 0;
    return (rows * columns > stream ? rows * columns : stream) + SLACK;
}

static int64_t words_of_thread(const hd_gemm *g)
{
    return round_up(words_of_a(g) + words_of_b(g) + words_of_scratch(g), 16);
}

size_t HD_ISA(hd_gemm_workspace)(const hd_gemm *g, int threads)
{
    return (size_t)(words_of_thread(g) * threads) * 4;
}

/* ---- offsets ---- */

/* Element offsets of operand o at loop indices first .. first+count-1. */
static void offsets(int64_t *out, const hd_einsum_nest *l, int o, int64_t first, int count)
{
    int64_t index[HD_EINSUM_LABELS], at = 0, rest = first;
    if (l->n <= 1) {
        int64_t stride = l->n ? l->stride[o][0] : 0;
        for (int i = 0; i < count; i++) out[i] = (first + i) * stride;
        return;
    }
    for (int j = l->n - 1; j >= 0; j--) {
        index[j] = rest % l->extent[j];
        rest /= l->extent[j];
        at += index[j] * l->stride[o][j];
    }
    for (int i = 0; i < count; i++) {
        out[i] = at;
        for (int j = l->n - 1; j >= 0; j--) {
            at += l->stride[o][j];
            if (++index[j] < l->extent[j]) break;
            at -= index[j] * l->stride[o][j];
            index[j] = 0;
        }
    }
}

/* ---- packing ---- */

#define A_GROUP 8 /* panels of A packed at once: 64 neighbouring rows are whole cache lines even of bf16 */

/* Rows mc .. mc+rows-1, one block of k; panels of MR rows (the last one narrower) one after the other. */
static void pack_a(const walk *w, uint32_t *dst, int64_t mc, int64_t rows, int64_t k0, int64_t kn)
{
    const hd_gemm *g = w->g;
    int64_t offset[A_GROUP * MR], kw = word_count(kn);
    gemm_source s = {.data = w->base_a, .dtype = g->ta, .offset = offset, .k = &g->k, .operand = 0};
    for (int64_t i = 0; i < rows; i += s.count) {
        s.count = (int)min64(A_GROUP * MR, rows - i);
        if (s.count > MR) s.count = s.count / MR * MR;
        offsets(offset, &g->m, 0, mc + i, s.count);
        gemm_panels to = {dst + i * kw, (int)min64(MR, s.count), MR * kw};
        HD_ISA(hd_gemm_pack_words)(&to, &s, k0, kn, A_BIAS);
    }
}

#if HD_GEMM_UNIT == 4
/* -128 times each column's sum: what the bias of A adds too much. */
static void sum_columns(int32_t *header, const uint32_t *words, int64_t kw)
{
    vi sum[HD_GEMM_NV] = {{0}};
    for (int64_t k = 0; k < kw; k++)
        for (int j = 0; j < HD_GEMM_NV; j++)
            sum[j] = (vi)_mm512_dpbusd_epi32((__m512i)sum[j], _mm512_set1_epi8(1), _mm512_loadu_si512(words + k * NR + j * HD_VL));
    for (int j = 0; j < HD_GEMM_NV; j++) vi_store(header + j * HD_VL, sum[j] * -128);
}
#endif

#if HD_GEMM_UNIT == 1
/* Packed bf16 pairs to f32. */
static void unpack_pairs(float *dst, const uint32_t *pairs, int64_t k)
{
    for (int64_t i = 0; i < k; i++)
        for (int j = 0; j < NR; j += HD_VL) {
            vu word;
            memcpy(&word, pairs + i / 2 * NR + j, sizeof word);
            word = i % 2 ? word & 0xffff0000u : word << 16;
            memcpy(dst + i * NR + j, &word, sizeof word);
        }
}
#endif

#if HD_GEMM_UNIT < 4
/* Pairs of bf16 of k0 .. k0+kn-1 of a packed panel: where they lie, or written to dst, which has room for kn rounded up to a group. */
static const uint32_t *find_pairs(uint32_t *dst, const uint32_t *panel, int64_t k0, int64_t kn)
{
    const hd_gemm_trim *head = (const hd_gemm_trim *)panel;
    if (!head->groups) return (const uint32_t *)(head + 1) + k0 / 2 * NR;
#if HD_HAS_AVX512
    trim_reader t = trim_open(head, (uint32_t)(k0 / TRIM_K));
    uint32_t *to = dst;
    for (int64_t k = 0; k < kn; k += TRIM_K, to += HD_GEMM_TRIM_STEPS * NR) {
        trim_group(&t, (uint16_t *)to);
        trim_next(&t);
    }
#else
    (void)kn; /* never packed so for this instruction set */
#endif
    return dst;
}
#endif

/* One panel of one block of k, ready for the register tile. */
typedef struct ready {
    const uint32_t *words;
    const int32_t *init;
    const hd_gemm_trim *trimmed; /* instead of words: read from group `group` on */
    int64_t group;
} ready;

/* The panel that begins at column j of packed b, for one block of k. */
static ready packed_panel(const walk *w, int64_t j, const block *b)
{
    const hd_gemm *g = w->g;
    int64_t words = hd_gemm_panel_words(g->tb, w->k, NR);
    const uint32_t *panel = (const uint32_t *)g->b + (w->batch * ceil_div(g->n.total, NR) + j / NR) * words;
#if HD_GEMM_UNIT == 4
    static const int32_t none[NR];
    return (ready){.words = panel + NR + b->k0 / HD_GEMM_UNIT * NR, .init = b->k0 ? none : (const int32_t *)panel};
#elif HD_GEMM_UNIT == 2
    const hd_gemm_trim *head = (const hd_gemm_trim *)panel;
    if (head->groups && b->rows <= TRIM_ROWS && g->n.total - j >= NR) return (ready){.trimmed = head, .group = b->k0 / TRIM_K};
    return (ready){.words = find_pairs(w->b, panel, b->k0, b->kn)};
#else
    if (g->tb != HD_BF16) return (ready){.words = panel + b->k0 * NR};
    unpack_pairs((float *)w->b, find_pairs(w->b + round_up(b->kn, TRIM_K) / 2 * NR, panel, b->k0, b->kn), b->kn); /* in place: each row is read before it is written over */
    return (ready){.words = w->b};
#endif
}

/* Packs `count` columns from column j on, at most B_GROUP panels. */
static void pack_b(const walk *w, int64_t j, int count, int64_t k0, int64_t kn)
{
    const hd_gemm *g = w->g;
    gemm_panels to = {w->b + NR, NR, group_distance(g)};
#if HD_GEMM_UNIT == 1
    if (g->window) {
        for (int i = 0; i < count; i += NR)
            HD_ISA(hd_gemm_pack_window)(to.words + i / NR * to.distance, NR, g, hd_einsum_offset(&g->batch, 1, w->batch), j + i,
                                        (int)min64(NR, count - i), k0, kn);
        return;
    }
#endif
    int64_t offset[B_GROUP * NR];
    gemm_source s = {.data = w->base_b, .dtype = g->tb, .offset = offset, .count = count, .k = &g->k, .operand = 1};
    offsets(offset, &g->n, 1, j, count);
    HD_ISA(hd_gemm_pack_words)(&to, &s, k0, kn, 0);
#if HD_GEMM_UNIT == 4
    for (int i = 0; i < count; i += NR)
        sum_columns((int32_t *)w->b + i / NR * to.distance, to.words + i / NR * to.distance, word_count(kn));
#endif
}

/* Panel i of the group packed last. */
static ready group_panel(const walk *w, int64_t i)
{
    const uint32_t *header = w->b + i * group_distance(w->g);
    return (ready){.words = header + NR, .init = (const int32_t *)header};
}

/* ---- results ---- */

/* Where a panel's sums go while k goes on, and its columns in c. */
typedef struct target {
    int64_t column[NR];  /* offsets in c */
    int count;
    bool adjacent, direct;
    gemm_acc *scratch;   /* [rows][NR], unless direct */
} target;

static void set_target(const walk *w, target *t, int64_t j, int count, gemm_acc *scratch)
{
    offsets(t->column, &w->g->n, 2, j, count);
    t->count = count;
    t->adjacent = true;
    for (int i = 1; i < count; i++) t->adjacent &= t->column[i] == t->column[0] + i;
    t->direct = w->direct && t->adjacent && count % HD_VL == 0;
    t->scratch = scratch;
}

#if HD_GEMM_UNIT == 4
static gemm_acc load_c(const void *c, hd_dtype t, int64_t i) { (void)t; return ((const int32_t *)c)[i]; }
static void store_c(void *c, hd_dtype t, int64_t i, gemm_acc v) { (void)t; ((int32_t *)c)[i] = v; }
static void store_row(void *c, hd_dtype t, const gemm_acc *from, int n)
{
    (void)t;
    memcpy(c, from, (size_t)n * 4);
}
#else
static gemm_acc load_c(const void *c, hd_dtype t, int64_t i) { return f32_load_as(c, t, i); }
static void store_c(void *c, hd_dtype t, int64_t i, gemm_acc v) { f32_store_as(c, t, i, v); }
static void store_row(void *c, hd_dtype t, const gemm_acc *from, int n)
{
    int i = 0;
    for (; i + HD_VL <= n; i += HD_VL) vf_store_as(c, t, i, vf_load(from + i));
    if (i < n) vf_store_as_n(c, t, i, vf_load_n(from + i, n - i), n - i);
}
#endif

/* Copies `rows` rows, at offsets row[] of c, between c and scratch: out when k is done, in before it begins where c accumulates. */
static void move_rows(const walk *w, const target *t, const int64_t *row, int rows, gemm_acc *scratch, bool out)
{
    hd_dtype tc = w->g->tc;
    int64_t size = (int64_t)hd_dtype_size(tc);
    for (int i = 0; i < rows; i++, scratch += NR) {
        char *c = w->base_c + row[i] * size;
        if (out && t->adjacent) store_row(c + t->column[0] * size, tc, scratch, t->count);
        else if (out)
            for (int j = 0; j < t->count; j++) store_c(c, tc, t->column[j], scratch[j]);
        else
            for (int j = 0; j < t->count; j++) scratch[j] = load_c(c, tc, t->column[j]);
    }
}

/* ---- the loops ---- */

/* All rows of a block against one panel: the register tile, and what comes before the first and after the last block of k. */
static void multiply_panel(const walk *w, const block *b, const target *t, ready panel)
{
    int64_t kw = word_count(b->kn), row[MR];
    int nv = (t->count + HD_VL - 1) / HD_VL;
    bool add = !b->first || w->add_first;
    gemm_micro_fn full = HD_ISA(hd_gemm_micro)(MR, nv);
    for (int64_t i = 0; i < b->rows; i += MR) {
        int mr = (int)min64(MR, b->rows - i);
        gemm_acc *c[MR], *scratch = t->scratch + (b->first && b->last ? 0 : i * NR); /* one tile stays in L1 */
        offsets(row, &w->g->m, 2, b->mc + i, mr);
        for (int r = 0; r < mr; r++) c[r] = t->direct ? (gemm_acc *)w->base_c + row[r] + t->column[0] : scratch + r * NR;
        if (b->first && w->add_first && !t->direct) move_rows(w, t, row, mr, scratch, false);
#if HD_GEMM_UNIT == 2
        if (panel.trimmed) HD_ISA(hd_gemm_micro_trimmed)(mr)(b->a + i * kw, panel.trimmed, panel.group, kw, c, add);
        else
#endif
        (mr == MR ? full : HD_ISA(hd_gemm_micro)(mr, nv))(b->a + i * kw, panel.words, panel.init, kw, c, add);
        if (b->last && !t->direct) move_rows(w, t, row, mr, scratch, true);
    }
}

/* Columns jc .. end-1 of a block; scratch holds their partial sums. */
static void run_columns(const walk *w, const block *b, int64_t jc, int64_t end)
{
    for (int64_t jg = jc; jg < end; jg += B_GROUP * NR) {
        int64_t group_end = min64(jg + B_GROUP * NR, end);
        if (!w->g->packed) pack_b(w, jg, (int)(group_end - jg), b->k0, b->kn);
        for (int64_t j = jg; j < group_end; j += NR) {
            target t;
            set_target(w, &t, j, (int)min64(NR, end - j), w->edge_only ? w->scratch : w->scratch + (j - jc) * b->rows);
            multiply_panel(w, b, &t, w->g->packed ? packed_panel(w, j, b) : group_panel(w, (j - jg) / NR));
        }
    }
}

#if HD_GEMM_UNIT < 4
/* Columns jc .. jc+count-1 of all (few) rows: sums of one block of k, then of all blocks, in scratch as [2][rows][STREAM_COLUMNS]. */
static void stream_columns(const walk *w, int64_t jc, int count)
{
    const hd_gemm *g = w->g;
    int64_t row[MR], rows = w->m.end - w->m.begin, step = g->k.stride[1][0];
    int64_t sb = (int64_t)hd_dtype_size(g->tb), sc = (int64_t)hd_dtype_size(g->tc);
    gemm_acc *sum = w->scratch, *total = sum + rows * STREAM_COLUMNS;
    offsets(row, &g->m, 2, w->m.begin, (int)rows);
    for (int64_t k0 = 0; k0 < w->k; k0 += KE) {
        int64_t kn = min64(KE, w->k - k0);
        uint32_t *a = w->a + (w->keep_a ? rows * word_count(k0) : 0);
        if (!w->keep_a || jc == w->n.begin) pack_a(w, a, w->m.begin, rows, k0, kn);
        memset(sum, 0, (size_t)(rows * STREAM_COLUMNS) * sizeof *sum);
        for (int64_t k = 0; k < kn; k += 4 * HD_GEMM_UNIT) /* four words at a time: every row finds them in L1 */
            for (int64_t i = 0; i < rows; i++)
                HD_ISA(hd_gemm_stream_row)(sum + i * STREAM_COLUMNS, count, a + k / HD_GEMM_UNIT * rows + i, (int)rows,
                                           w->base_b + ((k0 + k) * step + jc) * sb, g->tb, step, min64(4 * HD_GEMM_UNIT, kn - k));
        for (int64_t i = 0; i < rows; i++) {
            gemm_acc *t = total + i * STREAM_COLUMNS, *s = sum + i * STREAM_COLUMNS;
            const char *c = w->base_c + row[i] * sc;
            for (int j = 0; j < count; j++) t[j] = k0 ? t[j] + s[j] : w->add_first ? load_c(c, g->tc, jc + j) + s[j] : s[j];
        }
    }
    for (int64_t i = 0; i < rows; i++) store_row(w->base_c + (row[i] + jc) * sc, g->tc, total + i * STREAM_COLUMNS, count);
}
#endif

static void run_rows(const walk *w, int64_t mc, int64_t rows)
{
    for (int64_t jc = w->n.begin; jc < w->n.end; jc += w->columns_max)
        for (int64_t i = 0; i < w->blocks; i++) {
            block b = {.mc = mc, .rows = rows, .k0 = i * KE, .kn = min64(KE, w->k - i * KE), .first = i == 0, .last = i == w->blocks - 1};
            uint32_t *a = w->a + (w->keep_a ? rows * word_count(b.k0) : 0);
            b.a = a;
            if (!w->keep_a || jc == w->n.begin) pack_a(w, a, mc, rows, b.k0, b.kn);
            run_columns(w, &b, jc, min64(jc + w->columns_max, w->n.end));
        }
}

static void run_batch(walk *w, int64_t batch)
{
    const hd_gemm *g = w->g;
    w->batch = batch;
    w->base_a = (const char *)g->a + hd_einsum_offset(&g->batch, 0, batch) * (int64_t)hd_dtype_size(g->ta);
    w->base_b = (const char *)g->b + hd_einsum_offset(&g->batch, 1, batch) * (int64_t)hd_dtype_size(g->tb);
    w->base_c = (char *)g->c + hd_einsum_offset(&g->batch, 2, batch) * (int64_t)hd_dtype_size(g->tc);
#if HD_GEMM_UNIT < 4
    if (w->stream) {
        for (int64_t j = w->n.begin; j < w->n.end; j += STREAM_COLUMNS) stream_columns(w, j, (int)min64(STREAM_COLUMNS, w->n.end - j));
        return;
    }
#endif
    for (int64_t mc = w->m.begin; mc < w->m.end; mc += w->rows_max) run_rows(w, mc, min64(w->rows_max, w->m.end - mc));
}

void HD_ISA(hd_gemm_run)(const hd_gemm *g, const hd_kernel_args *args)
{
    if (!g->batch.total || !g->m.total || !g->n.total) return;
    hd_gemm_split s = hd_gemm_choose_split(g, args->threads, HD_GEMM_UNIT, MR, NR);
    int tid = args->tid, at_b = tid / (s.tm * s.tn), at_m = tid / s.tn % s.tm, at_n = tid % s.tn;
    if (at_b >= s.tb) return;
    walk w = {.g = g, .k = g->k.total, .keep_a = keeps_a(g), .direct = g->tc == HD_F32 || g->tc == HD_I32, .add_first = g->accumulate};
    w.stream = can_stream(g) && w.k && g->m.total <= MR;
    w.blocks = w.k ? ceil_div(w.k, KE) : 1;
    w.rows_max = rows_in_block(g);
    w.edge_only = w.direct && g->n.n == 1 && g->n.stride[2][0] == 1;
    w.columns_max = w.keep_a ? (g->packed ? NR : B_GROUP * NR) : w.edge_only ? g->n.total : COLUMNS_DEEP;
    w.a = (uint32_t *)args->workspace + words_of_thread(g) * tid;
    w.b = w.a + words_of_a(g);
    w.scratch = (gemm_acc *)(w.b + words_of_b(g));
    hd_split(g->m.total, MR, at_m, s.tm, &w.m.begin, &w.m.end);
    hd_split(g->n.total, NR, at_n, s.tn, &w.n.begin, &w.n.end);
    piece batches;
    hd_split(g->batch.total, 1, at_b, s.tb, &batches.begin, &batches.end);
    for (int64_t i = batches.begin; i < batches.end; i++) run_batch(&w, i);
}
