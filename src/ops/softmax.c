/* softmax.c: softmax over the last dimension, and its gradient from the result. */
#include <math.h>

#include "ops/ops.h"
#include "ops/ops_int.h"

static int infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_dtype_attrs *at = s->attrs;
    int rc = hd_need_float(s, 0, "x", err);
    if (!rc) rc = hd_need_rank(s, 0, "x", 1, HD_MAX_RANK, err);
    if (!rc) rc = hd_need_result_dtype(s, "dtype", at->dtype, true, err);
    if (!rc && s->in[0].shape.rank == 1 && s->in[0].shape.sym >= 0) rc = hd_op_fail(s, err, "x must not be bounded in its last dimension");
    if (rc) return rc;
    out[0] = hd_type_shaped(at->dtype, &s->in[0].shape);
    return 1;
}

static int grad_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    int rc = infer(s, out, err);
    if (rc < 0) return rc;
    rc = hd_need_shape(s, 1, "dy", &s->in[0].shape, err);
    return rc ? rc : 1;
}

static void loops(const hd_sig *s, hd_loops *l)
{
    hd_loops_rows(s, l, 1);
}

/* Maximum, subtraction, exponential (12), sum, multiplication by the sum's reciprocal. */
static void cost(const hd_sig *s, hd_cost *c)
{
    c->flops = 16 * (double)hd_shape_count(&s->out[0].shape);
    c->bytes = hd_cost_bytes(s);
}

static void grad_cost(const hd_sig *s, hd_cost *c)
{
    c->flops = 4 * (double)hd_shape_count(&s->out[0].shape);
    c->bytes = hd_cost_bytes(s);
}

static hd_value grad(hd_graph *g, const hd_node *n, const hd_value *dy, int i)
{
    if (dy[0] == HD_NONE) return HD_NONE;
    hd_dtype_attrs at = {.dtype = hd_grad_dtype(g, n->in[i])};
    return hd_graph_node(g, "softmax_grad", NULL, &at, (hd_value[]){n->out[0], dy[0]}, 2);
}

static void softmax_row(const hd_kernel_args *a, int64_t at, int64_t n)
{
    double most = -INFINITY, sum = 0;
    for (int64_t i = at; i < at + n; i++) most = fmax(most, hd_get(a, 0, i));
    for (int64_t i = at; i < at + n; i++) sum += exp(hd_get(a, 0, i) - most);
    for (int64_t i = at; i < at + n; i++) hd_put(a, 0, i, exp(hd_get(a, 0, i) - most) / sum);
}

static void reference(const hd_kernel_args *a)
{
    int64_t rows, n;
    if (a->tid || !hd_wants(a, 0)) return;
    hd_rows_of(&a->in[0], &rows, &n);
    for (int64_t r = 0; r < rows; r++) softmax_row(a, r * n, n);
}

/* dx = y * (dy - sum of y * dy) */
static void grad_reference(const hd_kernel_args *a)
{
    int64_t rows, n;
    if (a->tid || !hd_wants(a, 0)) return;
    hd_rows_of(&a->in[0], &rows, &n);
    for (int64_t r = 0; r < rows; r++) {
        double dot = 0;
        for (int64_t i = r * n; i < (r + 1) * n; i++) dot += hd_get(a, 0, i) * hd_get(a, 1, i);
        for (int64_t i = r * n; i < (r + 1) * n; i++) hd_put(a, 0, i, hd_get(a, 0, i) * (hd_get(a, 1, i) - dot));
    }
}

static void sample(hd_rng *r, hd_sample *s)
{
    int64_t dims[HD_MAX_RANK];
    int rank = hd_sample_dims(r, 1, 3, 5, dims);
    dims[rank - 1] = hd_pick(r, 1, 37);
    hd_sample_set(s, 0, HD_F64, rank, dims, HD_FILL_NORMAL, 0);
    ((hd_dtype_attrs *)s->attrs)->dtype = HD_F64;
}

static const hd_attr attrs[] = {{"dtype", HD_ATTR_DTYPE, offsetof(hd_dtype_attrs, dtype), NAN}, {0}};

const hd_op hd_op_softmax = {
    .name = "softmax",
    .summary = "(x[..., D]) -> y, exp(x) over its sum along the last dimension",
    .min_in = 1, .max_in = 1,
    .attrs_size = sizeof(hd_dtype_attrs),
    .attrs = attrs,
    .infer = infer,
    .loops = loops,
    .cost = cost,
    .grad = grad,
    .may_alias = hd_alias_same_type,
    .reference = reference,
    .sample = sample,
};

const hd_op hd_op_softmax_grad = {
    .name = "softmax_grad",
    .summary = "(y[..., D], dy[..., D]) -> dx of y = softmax(x)",
    .min_in = 2, .max_in = 2,
    .attrs_size = sizeof(hd_dtype_attrs),
    .attrs = attrs,
    .linear = {2},
    .no_gradient = true,
    .is_backward = true,
    .infer = grad_infer,
    .loops = loops,
    .cost = grad_cost,
    .may_alias = hd_alias_same_type,
    .reference = grad_reference,
};
