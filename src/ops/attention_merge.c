/* attention_merge.c: attention to some of the keys and to others of them into attention to all: the monoid of softmax, whose elements are
 * (log of the sum of exponentials, weighted mean of the values). Its zero is (-inf, 0).
 *
 *   lse = log(exp(lse_a) + exp(lse_b)); out = exp(lse_a - lse) out_a + exp(lse_b - lse) out_b.
 * What goes round a ring is merged so (Liu et al. 2023, section 3), as are keys that are split for decoding. */
#include "ops/facets.h"

enum { OUT_A, LSE_A, OUT_B, LSE_B, N };

static const hd_attr attrs[] = {{"dtype", HD_ATTR_DTYPE, offsetof(hd_dtype_attrs, dtype), NAN}, {0}};

static int infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_dtype_attrs *p = s->attrs;
    if (hd_need_float(s, OUT_A, "out_a", err) || hd_need_rank(s, OUT_A, "out_a", 3, 3, err)) return HD_EINVAL;
    const hd_shape *rows = &s->in[OUT_A].shape;
    hd_shape lse = hd_shape_drop_last(rows);
    if (hd_need_shape(s, LSE_A, "lse_a", &lse, err) || hd_need_shape(s, OUT_B, "out_b", rows, err) || hd_need_shape(s, LSE_B, "lse_b", &lse, err)) return HD_EINVAL;
    if (hd_need_result_dtype(s, "dtype", p->dtype, true, err)) return HD_EINVAL;
    out[0] = hd_type_shaped(p->dtype, rows);
    out[1] = hd_type_shaped(hd_stat_dtype(s->in[LSE_A].dtype), &lse);
    return 2;
}

static void loops(const hd_sig *s, hd_loops *l)
{
    for (int d = 0; d < 2; d++) {
        int loop = hd_loop_new(l, s->in[OUT_A].shape.dim[d], false);
        for (int i = 0; i < N; i++) hd_loop_in(l, i, d, loop);
        for (int r = 0; r < 2; r++) hd_loop_out(l, r, d, loop);
    }
}

/* Two exponentials (12 each) and a logarithm a row; a multiplication and a multiply-add an element. */
static void cost(const hd_sig *s, hd_cost *c)
{
    c->flops = 3 * (double)hd_shape_count(&s->in[OUT_A].shape) + 40 * (double)hd_shape_count(&s->in[LSE_A].shape);
    c->bytes = hd_cost_bytes(s);
}

static void merge_row(const hd_kernel_args *a, int64_t r, int64_t n)
{
    double x = hd_get(a, LSE_A, r), y = hd_get(a, LSE_B, r), most = fmax(x, y), base = most > -INFINITY ? most : 0; /* neither saw anything: 0, not NaN */
    double wx = exp(x - base), wy = exp(y - base), sum = wx + wy, scale = sum == 0 ? 0 : 1 / sum;
    for (int64_t i = r * n; i < (r + 1) * n; i++) hd_put(a, 0, i, (wx * hd_get(a, OUT_A, i) + wy * hd_get(a, OUT_B, i)) * scale);
    hd_put(a, 1, r, base + log(sum));
}

static void reference(const hd_kernel_args *a)
{
    int64_t rows, n;
    if (a->tid) return;
    hd_rows_of(&a->in[OUT_A], &rows, &n);
    for (int64_t r = 0; r < rows; r++) merge_row(a, r, n);
}

static uint32_t may_alias(const hd_sig *s, int result)
{
    return hd_alias_same_type(s, result) & (result ? 1u << LSE_A : 1u << OUT_A);
}

static void sample(hd_rng *r, hd_sample *s)
{
    int64_t dims[3] = {hd_pick(r, 1, 9), hd_pick(r, 1, 5), hd_pick(r, 1, 37)};
    for (int i = 0; i < N; i++) hd_sample_set(s, i, HD_F64, i % 2 ? 2 : 3, dims, HD_FILL_NORMAL, 0);
    ((hd_dtype_attrs *)s->attrs)->dtype = HD_F64;
}

const hd_op hd_op_attention_merge = {
    .name = "attention_merge",
    .summary = "(out_a[T, H, F], lse_a[T, H], out_b[T, H, F], lse_b[T, H]) -> (out, lse): attention to the keys of both",
    .min_in = N, .max_in = N,
    .attrs_size = sizeof(hd_dtype_attrs), .attrs = attrs,
    .no_gradient = true,
    .infer = infer, .loops = loops, .cost = cost, .may_alias = may_alias, .reference = reference, .sample = sample,
};
