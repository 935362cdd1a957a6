/* reduce.c: reduce_sum, reduce_mean, reduce_max over chosen dimensions; sum_squares over all. */
#include <math.h>

#include "ops/ops.h"
#include "ops/ops_int.h"

enum { SUM, MEAN, MAX, SQUARES };

/* ---- infer ---- */

static int infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_reduce_attrs *at = s->attrs;
    const hd_shape *x = &s->in[0].shape;
    int rc = hd_need_result_dtype(s, "dtype", at->dtype, s->op->code == MEAN, err);
    if (rc) return rc;
    if (s->in[0].absent) return hd_op_fail(s, err, "x is missing");
    if (at->axes >> x->rank) return hd_op_fail(s, err, "axes %#x name a dimension that x, of rank %d, does not have", at->axes, x->rank);
    out[0] = (hd_type){.dtype = at->dtype, .shape.sym = -1};
    hd_shape *y = &out[0].shape;
    for (int d = 0; d < x->rank; d++) {
        bool gone = at->axes >> d & 1;
        if (d == 0 && !gone) y->sym = x->sym;
        if (!gone || at->keep) y->dim[y->rank++] = gone ? 1 : x->dim[d];
    }
    return 1;
}

static int squares_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    int rc = hd_need_float(s, 0, "x", err);
    if (rc) return rc;
    out[0] = hd_type_scalar(hd_stat_dtype(s->in[0].dtype));
    return 1;
}

/* ---- loops. The mean divides by the whole extent, so the dimensions it runs over stay whole. ---- */

static void loops(const hd_sig *s, hd_loops *l)
{
    const hd_reduce_attrs *at = s->attrs;
    int y = 0;
    for (int d = 0; d < s->in[0].shape.rank; d++) {
        bool gone = at->axes >> d & 1;
        if (!gone || s->op->code != MEAN) {
            int loop = hd_loop_new(l, s->in[0].shape.dim[d], gone);
            hd_loop_in(l, 0, d, loop);
            if (!gone) hd_loop_out(l, 0, y, loop);
        }
        if (!gone || at->keep) y++;
    }
}

static void squares_loops(const hd_sig *s, hd_loops *l)
{
    for (int d = 0; d < s->in[0].shape.rank; d++) hd_loop_in(l, 0, d, hd_loop_new(l, s->in[0].shape.dim[d], true));
}

static void cost(const hd_sig *s, hd_cost *c)
{
    double elements = (double)hd_shape_count(&s->in[0].shape);
    c->flops = (s->op->code == SQUARES ? 2 : 1) * elements;
    if (s->op->code == MEAN) c->flops += (double)hd_shape_count(&s->out[0].shape);
    c->bytes = hd_cost_bytes(s);
}

/* ---- gradients ---- */

/* v, of the result's shape, with the dimensions that are gone put back as extent 1. */
static hd_value with_kept(hd_graph *g, hd_value v, uint32_t axes, const hd_shape *x)
{
    hd_dims_attrs at = {.rank = x->rank};
    if (hd_type_in(g, v)->shape.rank == x->rank) return v;
    for (int d = 0; d < x->rank; d++) at.dim[d] = axes >> d & 1 ? 1 : x->dim[d];
    if (x->sym >= 0 && !(axes & 1)) at.dim[0] = -1;
    return hd_reshape(g, NULL, v, at.rank, at.dim);
}

/* 1 for each element of x, of x's shape, whatever x holds. */
static hd_value ones_like(hd_graph *g, hd_value x)
{
    hd_value zero = hd_scale(g, hd_elementwise(g, NULL, HD_EW_ISFINITE, x, HD_NONE, HD_NONE, 0), 0);
    return hd_elementwise(g, NULL, HD_EW_OFFSET, zero, HD_NONE, HD_NONE, 1);
}

/* v stretched to x's shape. A bounded extent cannot be said in numbers: there x lends its shape. */
static hd_value stretch(hd_graph *g, hd_value v, uint32_t axes, hd_value x)
{
    hd_shape shape = hd_type_in(g, x)->shape;
    if (shape.sym >= 0 && (axes & 1)) return hd_mul(g, ones_like(g, x), v);
    hd_dims_attrs at = {.rank = shape.rank};
    for (int d = 0; d < shape.rank; d++) at.dim[d] = d == 0 && shape.sym >= 0 ? -1 : shape.dim[d];
    return hd_graph_node(g, "broadcast", NULL, &at, &v, 1);
}

/* dy over the number of elements that each mean is of. */
static hd_value over_count(hd_graph *g, hd_value dy, uint32_t axes, hd_value x)
{
    const hd_shape *s = &hd_type_in(g, x)->shape;
    double n = 1;
    if (s->sym >= 0 && (axes & 1)) {
        hd_value count = hd_reduce(g, "reduce_sum", NULL, ones_like(g, x), axes, true, hd_stat_dtype(hd_type_in(g, dy)->dtype));
        return hd_elementwise(g, NULL, HD_EW_DIV, dy, count, HD_NONE, 0);
    }
    for (int d = 0; d < s->rank; d++)
        if (axes >> d & 1) n *= (double)s->dim[d];
    return hd_scale(g, dy, 1 / (n > 0 ? n : 1));
}

/* Equal maxima share dy evenly. */
static hd_value max_grad(hd_graph *g, hd_value x, hd_value y, hd_value dy, uint32_t axes)
{
    hd_value is_max = hd_elementwise(g, NULL, HD_EW_EQ, x, y, HD_NONE, 0);
    if (is_max == HD_NONE) return HD_NONE;
    hd_value count = hd_reduce(g, "reduce_sum", NULL, is_max, axes, true, hd_stat_dtype(hd_type_in(g, is_max)->dtype));
    return hd_mul(g, is_max, hd_elementwise(g, NULL, HD_EW_DIV, dy, count, HD_NONE, 0));
}

static hd_value grad(hd_graph *g, const hd_node *n, const hd_value *dy, int i)
{
    const hd_reduce_attrs *at = n->attrs;
    hd_value x = n->in[i];
    hd_shape shape = hd_type_in(g, x)->shape;
    if (dy[0] == HD_NONE || !hd_dtype_is_float(hd_type_in(g, x)->dtype)) return HD_NONE;
    hd_value d = with_kept(g, dy[0], at->axes, &shape);
    if (d == HD_NONE) return HD_NONE;
    if (n->op->code == MAX) return hd_grad_fit(g, max_grad(g, x, with_kept(g, n->out[0], at->axes, &shape), d, at->axes), x);
    if (n->op->code == MEAN) d = over_count(g, d, at->axes, x);
    return hd_grad_fit(g, stretch(g, d, at->axes, x), x);
}

static hd_value squares_grad(hd_graph *g, const hd_node *n, const hd_value *dy, int i)
{
    if (dy[0] == HD_NONE) return HD_NONE;
    return hd_grad_fit(g, hd_mul(g, n->in[i], hd_scale(g, dy[0], 2)), n->in[i]);
}

/* ---- reference ---- */

/* The dimensions of x that are in `axes`: how many elements they span, and where the i-th of those lies in x. */
static int64_t span(const hd_tensor *x, uint32_t axes)
{
    int64_t n = 1;
    for (int d = 0; d < x->rank; d++)
        if (axes >> d & 1) n *= x->dim[d];
    return n;
}

static int64_t offset(const hd_tensor *x, uint32_t axes, int64_t i)
{
    int64_t at = 0, step = 1;
    for (int d = x->rank - 1; d >= 0; d--) {
        if (axes >> d & 1) {
            at += i % x->dim[d] * step;
            i /= x->dim[d];
        }
        step *= x->dim[d];
    }
    return at;
}

/* The sum, sum of squares or maximum of the elements of x that share the place `base` in the dimensions that stay. */
static double reduce_one(const hd_kernel_args *a, uint32_t axes, int64_t base)
{
    int64_t n = span(&a->in[0], axes);
    double sum = 0, most = -INFINITY;
    for (int64_t i = 0; i < n; i++) {
        double v = hd_get(a, 0, base + offset(&a->in[0], axes, i));
        sum += a->code == SQUARES ? v * v : v;
        if (v > most || v != v) most = v; /* a NaN stays: nothing is larger */
    }
    if (a->code == MAX) return most;
    return a->code == MEAN ? sum / (double)n : sum;
}

static void reference(const hd_kernel_args *a)
{
    if (a->tid || !hd_wants(a, 0)) return;
    const hd_reduce_attrs *at = a->attrs;
    uint32_t axes = a->code == SQUARES ? UINT32_MAX : at->axes;
    int64_t count = span(&a->in[0], ~axes);
    for (int64_t i = 0; i < count; i++) hd_put(a, 0, i, reduce_one(a, axes, offset(&a->in[0], ~axes, i)));
}

/* ---- samples ---- */

static void sample_with(hd_rng *r, hd_sample *s, hd_fill how)
{
    hd_reduce_attrs *at = (hd_reduce_attrs *)s->attrs;
    int64_t dims[HD_MAX_RANK];
    int rank = hd_sample_dims(r, 1, 4, 6, dims);
    hd_sample_set(s, 0, HD_F64, rank, dims, how, 0);
    at->axes = (uint32_t)hd_pick(r, 1, (1 << rank) - 1);
    at->keep = hd_coin(r);
    at->dtype = HD_F64;
}

static void sample(hd_rng *r, hd_sample *s) { sample_with(r, s, HD_FILL_NORMAL); }
static void max_sample(hd_rng *r, hd_sample *s) { sample_with(r, s, HD_FILL_DISTINCT); }

static void squares_sample(hd_rng *r, hd_sample *s)
{
    int64_t dims[HD_MAX_RANK];
    int rank = hd_sample_dims(r, 0, 3, 7, dims);
    hd_sample_set(s, 0, HD_F64, rank, dims, HD_FILL_NORMAL, 0);
}

/* ---- the table ---- */

static const hd_attr attrs[] = {{"axes", HD_ATTR_UINT32, offsetof(hd_reduce_attrs, axes), NAN},
                                {"keep", HD_ATTR_BOOL, offsetof(hd_reduce_attrs, keep), 0},
                                {"dtype", HD_ATTR_DTYPE, offsetof(hd_reduce_attrs, dtype), NAN},
                                {0}};

#define REDUCE                                                                                                              \
    .min_in = 1, .max_in = 1, .attrs_size = sizeof(hd_reduce_attrs), .attrs = attrs, .infer = infer, .loops = loops, .cost = cost, \
    .grad = grad, .reference = reference

const hd_op hd_op_reduce_sum = {.name = "reduce_sum", .code = SUM, REDUCE,
                                .summary = "(x) -> y, the sum of x over the dimensions in axes",
                                .linear = {1}, .can_accumulate = true, .sample = sample};
const hd_op hd_op_reduce_mean = {.name = "reduce_mean", .code = MEAN, REDUCE,
                                .summary = "(x) -> y, the mean of x over the dimensions in axes",
                                 .linear = {1}, .sample = sample};
const hd_op hd_op_reduce_max = {.name = "reduce_max", .code = MAX, REDUCE,
                                .summary = "(x) -> y, the largest of x over the dimensions in axes",
                                .reduce_max = true, .sample = max_sample};
const hd_op hd_op_sum_squares = {.name = "sum_squares",
                                 .code = SQUARES,
                                 .summary = "(x) -> the sum of x^2 over all elements, a scalar (f32; f64 for f64)",
                                 .min_in = 1, .max_in = 1,
                                 .infer = squares_infer,
                                 .loops = squares_loops,
                                 .cost = cost,
                                 .grad = squares_grad,
                                 .reference = reference,
                                 .sample = squares_sample};
