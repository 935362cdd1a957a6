/* paged_attention.c: attention over keys and values that lie in blocks of a cache (Kwon et al. 2023, section 4.1), and rows into eight bits for such
 * a cache.
 *
 * With row(s, p) = tables[s, p / block] * block + p % block, x[i,h,p] = scale * q[i,h] . k[row, h'] and, softcap > 0, x = softcap * tanh(x / softcap):
 *   out[i,h] = sum_p softmax(x)[p] v[row, h'] over positions p of sequence qseq[i] that query i sees. */
#include "ops/facets.h"

enum { Q, K, V, QPOS, QSEQ, TABLES, KSCALE, VSCALE, N };

static const hd_attr paged_attrs[] = {
    {"scale", HD_ATTR_DOUBLE, offsetof(hd_paged_attrs, scale), NAN},
    {"softcap", HD_ATTR_DOUBLE, offsetof(hd_paged_attrs, softcap), 0},
    {"window", HD_ATTR_INT64, offsetof(hd_paged_attrs, window), 0},
    {"block", HD_ATTR_INT64, offsetof(hd_paged_attrs, block), NAN},
    {"mean_keys", HD_ATTR_INT64, offsetof(hd_paged_attrs, mean_keys), 0},
    {"dtype", HD_ATTR_DTYPE, offsetof(hd_paged_attrs, dtype), NAN},
    {0},
};

/* ---- shapes ---- */

/* A cache of floats, or of i8 with a scale for each row and head. */
static int check_cache(const hd_sig *s, int i, const char *name, int scale, const char *scale_name, hd_error *err)
{
    bool bytes = s->in[i].dtype == HD_I8;
    if (!bytes && hd_need_float(s, i, name, err)) return HD_EINVAL;
    if (hd_need_rank(s, i, name, 3, 3, err)) return HD_EINVAL;
    if (bytes != hd_sig_has(s, scale))
        return hd_op_fail(s, err, "%s must be given where %s is i8, and only there", scale_name, name);
    if (!bytes) return 0;
    const hd_type *t = &s->in[scale];
    const hd_shape *x = &s->in[i].shape;
    if (t->dtype == HD_F32 && t->shape.rank == 2 && t->shape.dim[0] == x->dim[0] && t->shape.dim[1] == x->dim[1] && t->shape.sym == x->sym) return 0;
    return hd_op_fail(s, err, "%s must be f32[%lld, %lld], one for each row and head of %s, is %s", scale_name, (long long)x->dim[0], (long long)x->dim[1],
                      name, HD_TYPE_TEXT(t));
}

static int check_caches(const hd_sig *s, hd_error *err)
{
    if (check_cache(s, K, "k", KSCALE, "kscale", err) || check_cache(s, V, "v", VSCALE, "vscale", err)) return HD_EINVAL;
    const hd_shape *q = &s->in[Q].shape, *k = &s->in[K].shape, *v = &s->in[V].shape;
    bool grouped = k->dim[1] ? q->dim[1] % k->dim[1] == 0 : q->dim[1] == 0; /* a shard may have no heads */
    if (k->dim[2] != q->dim[2] || !grouped)
        return hd_op_fail(s, err, "k must be [R, Hk, %lld] with Hk dividing the %lld heads of q, is %s", (long long)q->dim[2], (long long)q->dim[1],
                          HD_TYPE_TEXT(&s->in[K]));
    if (v->dim[0] != k->dim[0] || v->sym != k->sym || v->dim[1] != k->dim[1])
        return hd_op_fail(s, err, "v must have the rows and heads of k %s, is %s", HD_TYPE_TEXT(&s->in[K]), HD_TYPE_TEXT(&s->in[V]));
    return 0;
}

static int check_tables(const hd_sig *s, hd_error *err)
{
    static const char *const names[] = {"qpos", "qseq"};
    const hd_shape *q = &s->in[Q].shape;
    for (int i = QPOS; i <= QSEQ; i++) {
        const hd_shape *t = &s->in[i].shape;
        if (s->in[i].dtype == HD_I32 && t->rank == 1 && t->dim[0] == q->dim[0] && t->sym == q->sym) continue;
        return hd_op_fail(s, err, "%s must be i32[%lld], one for each row of q, is %s", names[i - QPOS], (long long)q->dim[0], HD_TYPE_TEXT(&s->in[i]));
    }
    if (hd_need_dtype(s, TABLES, "tables", HD_I32, err)) return HD_EINVAL;
    return hd_need_rank(s, TABLES, "tables", 2, 2, err);
}

static int paged_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_paged_attrs *p = s->attrs;
    if (hd_need_float(s, Q, "q", err) || hd_need_rank(s, Q, "q", 3, 3, err)) return HD_EINVAL;
    if (check_caches(s, err) || check_tables(s, err)) return HD_EINVAL;
    if (p->block < 8 || p->block > 256 || (p->block & (p->block - 1)))
        return hd_op_fail(s, err, "block must be a power of two from 8 to 256, is %lld", (long long)p->block);
    if (p->window < 0 || p->mean_keys < 0) return hd_op_fail(s, err, "window and mean_keys must not be negative");
    if (!(p->softcap >= 0) || !isfinite(p->softcap) || !isfinite(p->scale)) return hd_op_fail(s, err, "scale and softcap must be finite, softcap not negative");
    if (hd_need_result_dtype(s, "dtype", p->dtype, true, err)) return HD_EINVAL;
    out[0] = hd_type_shaped(p->dtype, &s->in[Q].shape);
    out[0].shape.dim[2] = s->in[V].shape.dim[2];
    return 1;
}

/* Tokens, key heads, and the query heads that share one. Which rows of the cache a token reads is data: they and the features are whole. */
static void paged_loops(const hd_sig *s, hd_loops *l)
{
    int64_t heads = s->in[K].shape.dim[1];
    int token = hd_loop_new(l, s->in[Q].shape.dim[0], false), head = hd_loop_new(l, heads, false);
    int group = hd_loop_new(l, heads ? s->in[Q].shape.dim[1] / heads : 1, false);
    hd_dim_map both = {2, {(int8_t)head, (int8_t)group}};
    for (int i = Q; i <= QSEQ; i++)
        if (i != K && i != V) hd_loop_in(l, i, 0, token);
    l->in[Q][1] = both;
    hd_loop_out(l, 0, 0, token);
    l->out[0][1] = both;
    for (int i = K; i <= VSCALE; i++)
        if ((i == K || i == V || i >= KSCALE) && hd_sig_has(s, i)) hd_loop_in(l, i, 1, head);
}

/* Keys that one query sees, on average. */
static double keys_seen(const hd_sig *s)
{
    const hd_paged_attrs *p = s->attrs;
    double all = (double)s->in[TABLES].shape.dim[1] * (double)p->block, keys = p->mean_keys > 0 ? (double)p->mean_keys : all / 2;
    return p->window > 0 && (double)p->window < keys ? (double)p->window : keys;
}

/* Two products. Of the cache, each sequence's keys are read once: by at most as many queries as there are, of as many sequences as the tables name. */
static void paged_cost(const hd_sig *s, hd_cost *c)
{
    const int64_t *q = s->in[Q].shape.dim;
    double tokens = (double)q[0], heads = (double)s->in[K].shape.dim[1], e = (double)q[2], f = (double)s->in[V].shape.dim[2];
    double rows = keys_seen(s) * fmin(tokens, (double)s->in[TABLES].shape.dim[0]);
    double row = heads * (e * (double)hd_dtype_size(s->in[K].dtype) + f * (double)hd_dtype_size(s->in[V].dtype));
    if (hd_sig_has(s, KSCALE)) row += heads * 4;
    if (hd_sig_has(s, VSCALE)) row += heads * 4;
    c->flops = 2 * tokens * keys_seen(s) * (double)q[1] * (e + f);
    c->bytes = rows * row + tokens * (double)q[1] * (e * (double)hd_dtype_size(s->in[Q].dtype) + f * (double)hd_dtype_size(s->out[0].dtype)) + tokens * 8 +
               4 * (double)hd_shape_count(&s->in[TABLES].shape);
}

/* ---- the definition ---- */

typedef struct paged_view {
    const hd_kernel_args *a;
    const hd_paged_attrs *p;
    int64_t tokens, rows, hq, hk, group, e, f, sequences, blocks;
} paged_view;

static paged_view view_of(const hd_kernel_args *a)
{
    paged_view w = {.a = a, .p = a->attrs, .tokens = a->in[Q].dim[0], .rows = a->in[K].dim[0], .hq = a->in[Q].dim[1], .hk = a->in[K].dim[1]};
    w.group = w.hk ? w.hq / w.hk : 0;
    w.e = a->in[Q].dim[2];
    w.f = a->in[V].dim[2];
    w.sequences = a->in[TABLES].dim[0];
    w.blocks = a->in[TABLES].dim[1];
    return w;
}

/* Row of the cache that holds position p of query i's sequence; -1 where the query doesn't see it. */
static int64_t row_seen(const paged_view *w, int64_t i, int64_t p)
{
    int64_t position = ((const int32_t *)w->a->in[QPOS].data)[i], sequence = ((const int32_t *)w->a->in[QSEQ].data)[i];
    if (sequence < 0 || sequence >= w->sequences || p > position || p >= w->blocks * w->p->block) return -1;
    if (w->p->window > 0 && position - p >= w->p->window) return -1;
    int64_t block = ((const int32_t *)w->a->in[TABLES].data)[sequence * w->blocks + p / w->p->block], row = block * w->p->block + p % w->p->block;
    return block >= 0 && row < w->rows ? row : -1;
}

static double cached(const paged_view *w, int which, int scale, int64_t row, int64_t head, int64_t n, int64_t c)
{
    double x = hd_get(w->a, which, (row * w->hk + head) * n + c);
    return hd_given(w->a, scale) ? x * hd_get(w->a, scale, row * w->hk + head) : x;
}

static double score(const paged_view *w, int64_t i, int64_t h, int64_t row)
{
    double sum = 0;
    for (int64_t c = 0; c < w->e; c++) sum += hd_get(w->a, Q, (i * w->hq + h) * w->e + c) * cached(w, K, KSCALE, row, h / w->group, w->e, c);
    sum *= w->p->scale;
    return w->p->softcap > 0 ? w->p->softcap * tanh(sum / w->p->softcap) : sum;
}

/* Sums run over a chunk of features at a time, so that each score is computed once a chunk and not once a feature. */
enum { CHUNK = 64 };

static void add_row(const paged_view *w, double *sum, double weight, int64_t row, int64_t head, int64_t first, int64_t n)
{
    for (int64_t c = 0; c < n; c++) sum[c] += weight * cached(w, V, VSCALE, row, head, w->f, first + c);
}

static void output_row(const paged_view *w, int64_t i, int64_t h)
{
    int64_t last = ((const int32_t *)w->a->in[QPOS].data)[i], all = w->blocks * w->p->block;
    int64_t end = last < all ? last + 1 : all, at = (i * w->hq + h) * w->f;
    double max = -INFINITY;
    for (int64_t p = 0, row; p < end; p++)
        if ((row = row_seen(w, i, p)) >= 0) max = fmax(max, score(w, i, h, row));
    for (int64_t c = 0; c < w->f; c += CHUNK) {
        int64_t n = w->f - c < CHUNK ? w->f - c : CHUNK;
        double y[CHUNK] = {0}, sum = 0;
        for (int64_t p = 0, row; p < end; p++) {
            if ((row = row_seen(w, i, p)) < 0) continue;
            double weight = exp(score(w, i, h, row) - max);
            sum += weight;
            add_row(w, y, weight, row, h / w->group, c, n);
        }
        for (int64_t k = 0; k < n; k++) hd_put(w->a, 0, at + c + k, sum == 0 ? 0 : y[k] / sum);
    }
}

static void paged_reference(const hd_kernel_args *a)
{
    if (a->tid) return;
    paged_view w = view_of(a);
    for (int64_t i = 0; i < w.tokens; i++)
        for (int64_t h = 0; h < w.hq; h++) output_row(&w, i, h);
}

static void sample_cache(hd_rng *r, hd_sample *s, int i, int scale, const int64_t *dim, bool bytes)
{
    (void)r;
    hd_sample_set(s, i, bytes ? HD_I8 : HD_F64, 3, dim, bytes ? HD_FILL_INDEX : HD_FILL_NORMAL, 100);
    if (bytes) hd_sample_set(s, scale, HD_F32, 2, dim, HD_FILL_POSITIVE, 0);
    else hd_sample_absent(s, scale);
}

/* Rows that begin no whole block, tables that name blocks which aren't there, sequences without a table, positions beyond it. */
static void paged_sample(hd_rng *r, hd_sample *s)
{
    hd_paged_attrs *p = (hd_paged_attrs *)s->attrs;
    int64_t tokens = hd_pick(r, 1, 7), hk = hd_pick(r, 1, 2), e = hd_pick(r, 1, 5), f = hd_pick(r, 1, 5), blocks = hd_pick(r, 1, 3);
    int64_t rows = hd_pick(r, 5, 30), sequences = hd_pick(r, 1, 3);
    bool k8 = !hd_pick(r, 0, 2), v8 = !hd_pick(r, 0, 2);
    *p = (hd_paged_attrs){.scale = (k8 ? 0.02 : 1) / sqrt((double)e), .block = 8, .dtype = HD_F64};
    p->softcap = hd_coin(r) ? 0 : 1.5;
    p->window = hd_coin(r) ? 0 : hd_pick(r, 1, 9);
    hd_sample_set(s, Q, HD_F64, 3, (int64_t[]){tokens, hk * hd_pick(r, 1, 3), e}, HD_FILL_NORMAL, 0);
    sample_cache(r, s, K, KSCALE, (int64_t[]){rows, hk, e}, k8);
    sample_cache(r, s, V, VSCALE, (int64_t[]){rows, hk, f}, v8);
    hd_sample_set(s, QPOS, HD_I32, 1, &tokens, HD_FILL_INDEX, (double)(blocks * 8 + 3));
    hd_sample_set(s, QSEQ, HD_I32, 1, &tokens, hd_coin(r) ? HD_FILL_SEGMENTS : HD_FILL_INDEX, (double)sequences + 1);
    hd_sample_set(s, TABLES, HD_I32, 2, (int64_t[]){sequences, blocks}, HD_FILL_INDEX, (double)(rows / 8 + 2));
}

/* ---- quantize_rows ---- */

static int quantize_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    if (hd_need_float(s, 0, "y", err) || hd_need_rank(s, 0, "y", 3, 3, err)) return HD_EINVAL;
    hd_shape rows = hd_shape_drop_last(&s->in[0].shape);
    out[0] = hd_type_shaped(HD_I8, &s->in[0].shape);
    out[1] = hd_type_shaped(HD_F32, &rows);
    return 2;
}

static void quantize_loops(const hd_sig *s, hd_loops *l)
{
    for (int d = 0; d < 2; d++) hd_loop_out(l, 1, d, hd_loop_through(s, l, 0, d, d));
}

/* The largest, a division, rounding. */
static void quantize_cost(const hd_sig *s, hd_cost *c)
{
    c->flops = 4 * (double)hd_shape_count(&s->in[0].shape);
    c->bytes = hd_cost_bytes(s);
}

/* In f32 as the kernels do it, so that halves fall alike: y is rounded to f32 first, the scale is f32, and so is their quotient. */
static void quantize_row(const hd_kernel_args *a, int64_t row, int64_t n)
{
    float most = 0;
    for (int64_t i = row * n; i < (row + 1) * n; i++) {
        float v = fabsf((float)hd_get(a, 0, i));
        most = isnan(v) || v > most ? v : most;
        if (isnan(most)) break;
    }
    float scale = most / 127;
    hd_put(a, 1, row, scale);
    for (int64_t i = row * n; i < (row + 1) * n; i++) {
        float v = (float)hd_get(a, 0, i), q = scale > 0 && isfinite(scale) ? v / scale : 0;
        hd_put(a, 0, i, rint(fmax(-127, fmin(127, (double)q))));
    }
}

static void quantize_reference(const hd_kernel_args *a)
{
    int64_t rows = a->in[0].dim[0] * a->in[0].dim[1];
    if (a->tid) return;
    for (int64_t r = 0; r < rows; r++) quantize_row(a, r, a->in[0].dim[2]);
}

static void quantize_sample(hd_rng *r, hd_sample *s)
{
    hd_sample_set(s, 0, HD_F64, 3, (int64_t[]){hd_pick(r, 1, 7), hd_pick(r, 1, 4), hd_pick(r, 1, 37)}, HD_FILL_NORMAL, 0);
}

const hd_op hd_op_paged_attention = {
    .name = "paged_attention",
    .summary = "(q[T, Hq, E], k[R, Hk, E], v[R, Hk, F], qpos, qseq, tables[S, B], kscale?, vscale?) -> out[T, Hq, F]: attention through block tables",
    .min_in = TABLES + 1, .max_in = N,
    .attrs_size = sizeof(hd_paged_attrs), .attrs = paged_attrs,
    .no_gradient = true,
    .infer = paged_infer, .loops = paged_loops, .cost = paged_cost, .reference = paged_reference, .sample = paged_sample,
};
const hd_op hd_op_quantize_rows = {
    .name = "quantize_rows",
    .summary = "(y[T, H, E]) -> (q i8[T, H, E], scale f32[T, H]): each row of a head in eight bits, its scale max |y| / 127",
    .min_in = 1, .max_in = 1,
    .no_gradient = true,
    .infer = quantize_infer, .loops = quantize_loops, .cost = quantize_cost, .reference = quantize_reference, .sample = quantize_sample,
};
