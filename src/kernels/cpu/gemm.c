#include "kernels/cpu/gemm.h"

static bool contiguous(const hd_einsum_nest *l)
{
    return l->n > 0 && l->stride[2][l->n - 1] == 1;
}

static void swap_operands(hd_einsum_nest *l)
{
    for (int i = 0; i < l->n; i++) {
        int64_t s = l->stride[0][i];
        l->stride[0][i] = l->stride[1][i];
        l->stride[1][i] = s;
    }
}

/* Vectors run along n: let n be the side on which c is contiguous and long. Products commute, so no bit changes. */
static void orient(hd_gemm *g)
{
    if (g->packed || contiguous(&g->n) || (!contiguous(&g->m) && g->n.total > 1)) return;
    if (g->m.total <= 1) return;
    hd_einsum_nest l = g->m;
    g->m = g->n;
    g->n = l;
    const void *p = g->a;
    g->a = g->b;
    g->b = p;
    hd_dtype t = g->ta;
    g->ta = g->tb;
    g->tb = t;
    swap_operands(&g->batch);
    swap_operands(&g->m);
    swap_operands(&g->n);
    swap_operands(&g->k);
}

bool hd_gemm_from_contract(hd_gemm *g, const hd_kernel_args *args)
{
    const hd_contract_attrs *attrs = args->attrs;
    const hd_tensor *a = &args->in[0], *b = &args->in[1];
    hd_einsum e;
    int64_t extent[HD_EINSUM_LABELS];
    memset(g, 0, sizeof *g);
    if (hd_einsum_parse(&e, attrs->spec, NULL) || hd_einsum_extents(&e, a, b, extent, NULL)) return false;
    g->a = a->data, g->ta = a->dtype;
    g->b = b->data, g->tb = b->dtype;
    g->c = args->n_out > 0 ? args->out[0].data : NULL;
    g->tc = attrs->dtype;
    g->packed = b->format == HD_PACKED;
    g->accumulate = args->accumulate;
    hd_einsum_loops(&e, extent, HD_EINSUM_BATCH, &g->batch);
    hd_einsum_loops(&e, extent, HD_EINSUM_M, &g->m);
    hd_einsum_loops(&e, extent, HD_EINSUM_N, &g->n);
    hd_einsum_loops(&e, extent, HD_EINSUM_K, &g->k);
    if (a->format != HD_PLAIN) return false;
    orient(g);
    return true;
}

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* Cycles or so of the busiest thread when tm x tn threads share the product: one multiply-add of a 16-lane vector a cycle, and packing of
 * either operand at half a cycle a word (measured on Zen 4; only the proportion matters). */
static double split_cost(const hd_gemm *g, int tm, int tn, int unit, int rows, int width)
{
    double m = (double)(ceil_div(ceil_div(g->m.total, rows), tm) * rows);
    double n = (double)(ceil_div(ceil_div(g->n.total, width), tn) * width);
    double depth = (double)ceil_div(g->k.total, unit);
    if (m > (double)g->m.total) m = (double)g->m.total;
    return depth * (m * n / 16 + 0.5 * m + (g->packed ? 4.0 : 0.5) * n);
}

hd_gemm_split hd_gemm_choose_split(const hd_gemm *g, int threads, int unit, int rows, int width)
{
    hd_gemm_split best = {1, 1, threads};
    if (g->batch.total >= 4 * (int64_t)threads || (g->batch.total > 1 && g->batch.total % threads == 0))
        return (hd_gemm_split){threads, 1, 1};
    double best_cost = 0;
    for (int tm = 1; tm <= threads; tm++) {
        double cost = split_cost(g, tm, threads / tm, unit, rows, width);
        if (tm == 1 || cost < best_cost) best_cost = cost, best = (hd_gemm_split){1, tm, threads / tm};
    }
    return best;
}

int hd_gemm_unit(hd_dtype t)
{
    return t == HD_F32 ? 1 : t == HD_BF16 ? 2 : t == HD_I8 ? 4 : 0;
}

int hd_gemm_panel_width(hd_isa isa)
{
    return isa >= HD_ISA_AVX512 ? 48 : isa == HD_ISA_AVX2 ? 16 : 8;
}

int64_t hd_gemm_panel_words(hd_dtype t, int64_t k, int width)
{
    int64_t header = t == HD_I8 ? width : t == HD_BF16 ? (int64_t)sizeof(hd_gemm_trim) / 4 : 0;
    return ceil_div(k, hd_gemm_unit(t)) * width + header;
}

/* The loops over b alone; false when b cannot be packed: a K label that b hasn't, or a dtype without panels at this instruction set. */
static bool loops_of_b(hd_isa isa, const char *spec, const hd_tensor *b, hd_einsum_nest *batch, hd_einsum_nest *n, hd_einsum_nest *k)
{
    hd_einsum e;
    int64_t extent[HD_EINSUM_LABELS];
    if (!hd_gemm_unit(b->dtype) || (b->dtype == HD_I8 && isa < HD_ISA_VNNI)) return false;
    if (hd_einsum_parse(&e, spec, NULL) || b->rank != e.rank[1]) return false;
    for (int i = 0; i < e.count; i++) {
        int dim = e.label[i].dim[1];
        if (dim < 0 && hd_einsum_group(&e, i) == HD_EINSUM_K) return false;
        extent[i] = dim < 0 ? 1 : b->dim[dim];
    }
    hd_einsum_loops(&e, extent, HD_EINSUM_BATCH, batch);
    hd_einsum_loops(&e, extent, HD_EINSUM_N, n);
    hd_einsum_loops(&e, extent, HD_EINSUM_K, k);
    return true;
}

size_t hd_gemm_packed_bytes(hd_isa isa, const char *spec, const hd_tensor *b)
{
    hd_einsum_nest batch, n, k;
    if (!loops_of_b(isa, spec, b, &batch, &n, &k)) return 0;
    int width = hd_gemm_panel_width(isa);
    return (size_t)(batch.total * ceil_div(n.total, width) * hd_gemm_panel_words(b->dtype, k.total, width)) * 4;
}

/* One step of k of a panel: from[column[j]] to to[j * unit], in elements of 4, 2 or 1 bytes. */
static void copy_step(void *to, const void *from, const int64_t *column, int count, int unit)
{
    if (unit == 1)
        for (int j = 0; j < count; j++) ((uint32_t *)to)[j] = ((const uint32_t *)from)[column[j]];
    else if (unit == 2)
        for (int j = 0; j < count; j++) ((uint16_t *)to)[j * 2] = ((const uint16_t *)from)[column[j]];
    else
        for (int j = 0; j < count; j++) ((uint8_t *)to)[j * 4] = ((const uint8_t *)from)[column[j]];
}

/* One panel: columns at element offsets column[count], k steps as in the loops k. */
static void pack_panel(char *dst, const char *src, hd_dtype t, const int64_t *column, int count, const hd_einsum_nest *k, int width)
{
    int64_t size = (int64_t)hd_dtype_size(t), run = k->n ? k->extent[k->n - 1] : 1, step = k->n ? k->stride[1][k->n - 1] : 0;
    int unit = hd_gemm_unit(t);
    memset(dst, 0, (size_t)hd_gemm_panel_words(t, k->total, width) * 4);
    int32_t *header = (int32_t *)dst;
    if (t == HD_I8) dst += width * 4;
    if (t == HD_BF16) dst += sizeof(hd_gemm_trim);
    for (int64_t first = 0; first < k->total; first += run) {
        const char *from = src + hd_einsum_offset(k, 1, first) * size;
        for (int64_t i = first; i < first + run; i++, from += step * size) {
            copy_step(dst + (i / unit * width * unit + i % unit) * size, from, column, count, unit);
            if (t == HD_I8)
                for (int j = 0; j < count; j++) header[j] -= 128 * ((const int8_t *)from)[column[j]];
        }
    }
}

/* ---- trimmed panels ---- */

/* The 16 most frequent upper bytes; code[byte]: 1 + which one, 0 for others. Returns how many elements have another. */
static int64_t choose_codes(const uint16_t *x, int64_t n, uint8_t *high, uint8_t *code)
{
    int64_t count[256] = {0}, rare = n;
    for (int64_t i = 0; i < n; i++) count[x[i] >> 8]++;
    memset(code, 0, 256);
    for (int i = 0; i < 16; i++) {
        int best = 0;
        for (int b = 1; b < 256; b++)
            if (count[b] > count[best]) best = b;
        high[i] = (uint8_t)best;
        if (count[best]) code[best] = (uint8_t)(1 + i);
        rare -= count[best];
        count[best] = 0;
    }
    return rare;
}

/* Group g of n elements, of which those past the end are zero. Appends what is rare. */
static void trim_group(uint8_t *to, const uint16_t *x, int64_t n, const uint8_t *code, hd_gemm_rare *rare, uint32_t *rares, int64_t g)
{
    memset(to, 0, HD_GEMM_TRIM_BYTES);
    for (int64_t i = 0; i < n; i++) {
        int64_t v = i / 32 % 4, e = i % 32, byte = 16 * (e / 8) + 8 * (v % 2) + e % 8;
        uint8_t *codes = to + i / 128 * 192, *low = codes + 64 * (1 + v / 2);
        int c = code[x[i] >> 8] - 1;
        low[byte] = (uint8_t)x[i];
        if (c < 0) rare[(*rares)++] = (hd_gemm_rare){(uint32_t)(g * HD_GEMM_TRIM_ELEMENTS + i), x[i] >> 8};
        else codes[byte] |= (uint8_t)(c << 4 * (v / 2));
    }
}

/* Trims a packed panel of `words` words of k where it lies. It stays as it is where more than every fourth group would have something rare, which
 * is slow to put into its place. */
static void trim_panel(char *panel, int64_t words)
{
    enum { MOST = 4096 };
    hd_gemm_rare rare[MOST];
    hd_gemm_trim head = {0};
    uint16_t *x = (uint16_t *)(panel + sizeof head), group[HD_GEMM_TRIM_ELEMENTS];
    int64_t n = words * HD_GEMM_TRIM_WIDTH * 2, groups = ceil_div(words, HD_GEMM_TRIM_STEPS);
    uint8_t code[256];
    int64_t others = choose_codes(x, n, head.high, code);
    if (others > groups / 4 || others > MOST || n > UINT32_MAX) return;
    if (groups * HD_GEMM_TRIM_BYTES + others * (int64_t)sizeof *rare > n * 2) return;
    for (int64_t g = 0; g < groups; g++) {
        int64_t first = g * HD_GEMM_TRIM_ELEMENTS, count = n - first < HD_GEMM_TRIM_ELEMENTS ? n - first : HD_GEMM_TRIM_ELEMENTS;
        memcpy(group, x + first, (size_t)count * 2);
        trim_group((uint8_t *)x + g * HD_GEMM_TRIM_BYTES, group, count, code, rare, &head.rare, g);
    }
    head.groups = (uint32_t)groups;
    memcpy((char *)x + groups * HD_GEMM_TRIM_BYTES, rare, head.rare * sizeof *rare);
    memcpy(panel, &head, sizeof head);
}

void hd_gemm_pack(hd_isa isa, const char *spec, const hd_tensor *b, void *dst, int tid, int threads)
{
    hd_einsum_nest batch, n, k;
    if (!loops_of_b(isa, spec, b, &batch, &n, &k)) return;
    int width = hd_gemm_panel_width(isa);
    int64_t panels = ceil_div(n.total, width), words = hd_gemm_panel_words(b->dtype, k.total, width);
    int64_t begin, end, column[64];
    hd_split(batch.total * panels, 1, tid, threads, &begin, &end);
    for (int64_t p = begin; p < end; p++) {
        int64_t first = p % panels * width, origin = hd_einsum_offset(&batch, 1, p / panels);
        int count = (int)(n.total - first < width ? n.total - first : width);
        for (int j = 0; j < count; j++) column[j] = origin + hd_einsum_offset(&n, 1, first + j);
        pack_panel((char *)dst + p * words * 4, b->data, b->dtype, column, count, &k, width);
        if (b->dtype == HD_BF16 && isa >= HD_ISA_BF16) trim_panel((char *)dst + p * words * 4, ceil_div(k.total, 2));
    }
}
