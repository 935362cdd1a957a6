/* top_k.c: the k largest elements of each row, and their gradient. */
#include "ops/facets.h"

static const hd_attr top_k_attrs[] = {
    {"k", HD_ATTR_INT64, offsetof(hd_topk_attrs, k), NAN},
    {"dtype", HD_ATTR_DTYPE, offsetof(hd_topk_attrs, dtype), NAN},
    {0},
};
static const hd_attr top_k_grad_attrs[] = {
    {"extent", HD_ATTR_INT64, offsetof(hd_topk_attrs, extent), NAN},
    {"dtype", HD_ATTR_DTYPE, offsetof(hd_topk_attrs, dtype), NAN},
    {0},
};

static int top_k_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_topk_attrs *p = s->attrs;
    if (hd_need_float(s, 0, "x", err) || hd_need_rank(s, 0, "x", 1, HD_MAX_RANK, err)) return HD_EINVAL;
    if (hd_need_result_dtype(s, "dtype", p->dtype, true, err)) return HD_EINVAL;
    int last = s->in[0].shape.rank - 1;
    if (last == 0 && s->in[0].shape.sym >= 0) return hd_op_fail(s, err, "the dimension to choose from must not be bounded");
    int64_t d = s->in[0].shape.dim[last];
    if (p->k < 1 || p->k > d) return hd_op_fail(s, err, "k must be between 1 and the %lld elements of a row, is %lld", (long long)d, (long long)p->k);
    out[0] = out[1] = s->in[0];
    out[0].dtype = p->dtype;
    out[1].dtype = HD_I32;
    out[0].shape.dim[last] = out[1].shape.dim[last] = p->k;
    return 2;
}

static int top_k_grad_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_topk_attrs *p = s->attrs;
    if (hd_need_float(s, 0, "dvalues", err) || hd_need_rank(s, 0, "dvalues", 1, HD_MAX_RANK, err)) return HD_EINVAL;
    if (hd_need_integer(s, 1, "index", err) || hd_need_result_dtype(s, "dtype", p->dtype, true, err)) return HD_EINVAL;
    if (!hd_shape_equal(&s->in[0].shape, &s->in[1].shape))
        return hd_op_fail(s, err, "index must have the shape of dvalues %s, is %s", HD_TYPE_TEXT(&s->in[0]), HD_TYPE_TEXT(&s->in[1]));
    out[0] = s->in[0];
    out[0].dtype = p->dtype;
    out[0].shape.dim[out[0].shape.rank - 1] = p->extent;
    return 1;
}

static void top_k_loops(const hd_sig *s, hd_loops *l) { hd_loops_rows(s, l, 1); }

/* A row is looked through once per result element, as a selection does at worst. */
static void top_k_cost(const hd_sig *s, hd_cost *c)
{
    c->flops = (double)hd_shape_count(&s->in[0].shape);
    c->bytes = hd_cost_bytes(s);
}

static hd_value top_k_grad(hd_graph *g, const hd_node *n, const hd_value *dy, int operand)
{
    if (operand || dy[0] == HD_NONE) return HD_NONE;
    const hd_shape *x = &hd_type_in(g, n->in[0])->shape;
    hd_topk_attrs p = {.extent = x->dim[x->rank - 1], .dtype = hd_grad_dtype(g, n->in[0])};
    return hd_graph_node(g, "top_k_grad", "dx", &p, (hd_value[]){dy[0], n->out[1]}, 2);
}

/* Whether element i of a row comes before element j: larger, or as large and at a lower index; NaN last. */
static bool before(const hd_kernel_args *a, int64_t row, int64_t i, int64_t j)
{
    double x = hd_get(a, 0, row + i), y = hd_get(a, 0, row + j);
    if (isnan(x) || isnan(y)) return isnan(x) == isnan(y) ? i < j : isnan(y);
    return x > y || (x == y && i < j);
}

/* The element of the row that comes right behind `last` (-1: the very first). */
static int64_t next_after(const hd_kernel_args *a, int64_t row, int64_t d, int64_t last)
{
    int64_t best = -1;
    for (int64_t i = 0; i < d; i++)
        if ((last < 0 || before(a, row, last, i)) && (best < 0 || before(a, row, i, best))) best = i;
    return best;
}

static void top_k_reference(const hd_kernel_args *a)
{
    int64_t rows, d, k = ((const hd_topk_attrs *)a->attrs)->k;
    if (a->tid) return;
    hd_rows_of(&a->in[0], &rows, &d);
    for (int64_t row = 0; row < rows; row++) {
        int64_t last = -1;
        for (int64_t i = 0; i < k; i++) {
            last = next_after(a, row * d, d, last);
            hd_put(a, 0, row * k + i, hd_get(a, 0, row * d + last));
            hd_put(a, 1, row * k + i, (double)last);
        }
    }
}

static void top_k_grad_reference(const hd_kernel_args *a)
{
    int64_t rows, k, d = ((const hd_topk_attrs *)a->attrs)->extent;
    if (a->tid) return;
    hd_rows_of(&a->in[0], &rows, &k);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < d; i++) {
            double sum = 0;
            for (int64_t j = 0; j < k; j++)
                if (hd_load_i64(a->in[1].data, a->in[1].dtype, row * k + j) == i) sum += hd_get(a, 0, row * k + j);
            hd_put(a, 0, row * d + i, sum);
        }
}

static void top_k_sample(hd_rng *r, hd_sample *s)
{
    hd_topk_attrs *p = (hd_topk_attrs *)s->attrs;
    int64_t dims[3];
    int rank = hd_sample_dims(r, 1, 3, 7, dims);
    *p = (hd_topk_attrs){.k = hd_pick(r, 1, dims[rank - 1]), .dtype = HD_F64};
    hd_sample_set(s, 0, HD_F64, rank, dims, HD_FILL_DISTINCT, 0);
}

const hd_op hd_op_top_k = {
    .name = "top_k",
    .summary = "(x[..., D]) -> (values[..., k], index[..., k]): the k largest of each row, descending, lower index first among equals",
    .min_in = 1, .max_in = 1,
    .attrs_size = sizeof(hd_topk_attrs), .attrs = top_k_attrs,
    .infer = top_k_infer, .loops = top_k_loops, .cost = top_k_cost, .grad = top_k_grad, .reference = top_k_reference, .sample = top_k_sample,
};
const hd_op hd_op_top_k_grad = {
    .name = "top_k_grad",
    .summary = "(dvalues[..., k], index[..., k]) -> dx[..., extent]: dvalues where they came from, zero elsewhere",
    .min_in = 2, .max_in = 2,
    .attrs_size = sizeof(hd_topk_attrs), .attrs = top_k_grad_attrs,
    .linear = {1}, .no_gradient = true, .is_backward = true,
    .infer = top_k_grad_infer, .loops = top_k_loops, .cost = top_k_cost, .reference = top_k_grad_reference,
};
