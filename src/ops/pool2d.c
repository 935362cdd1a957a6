/* pool2d.c: maximum and average over windows of [N, C, H, W], and their gradients. A window never reads across samples or channels. */
#include "ops/facets.h"

static const hd_attr pool_attrs[] = {
    {"kernel", HD_ATTR_INT32_2, offsetof(hd_conv_attrs, kernel), NAN},
    {"stride", HD_ATTR_INT32_2, offsetof(hd_conv_attrs, stride), 1},
    {"pad", HD_ATTR_INT32_2, offsetof(hd_conv_attrs, pad), 0},
    {"dilation", HD_ATTR_INT32_2, offsetof(hd_conv_attrs, dilation), 1},
    {"dtype", HD_ATTR_DTYPE, offsetof(hd_conv_attrs, dtype), NAN},
    {0},
};
static const hd_attr pool_grad_attrs[] = {
    {"kernel", HD_ATTR_INT32_2, offsetof(hd_conv_attrs, kernel), NAN},
    {"stride", HD_ATTR_INT32_2, offsetof(hd_conv_attrs, stride), 1},
    {"pad", HD_ATTR_INT32_2, offsetof(hd_conv_attrs, pad), 0},
    {"dilation", HD_ATTR_INT32_2, offsetof(hd_conv_attrs, dilation), 1},
    {"in", HD_ATTR_INT32_2, offsetof(hd_conv_attrs, in), 0},
    {"dtype", HD_ATTR_DTYPE, offsetof(hd_conv_attrs, dtype), NAN},
    {0},
};

/* ---- shapes ---- */

static int check_attrs(const hd_sig *s, hd_error *err)
{
    const hd_conv_attrs *p = s->attrs;
    for (int i = 0; i < 2; i++) {
        if (p->kernel[i] < 1) return hd_op_fail(s, err, "kernel must be at least 1, is %d", p->kernel[i]);
        if (p->stride[i] < 1) return hd_op_fail(s, err, "stride must be at least 1, is %d", p->stride[i]);
        if (p->dilation[i] < 1) return hd_op_fail(s, err, "dilation must be at least 1, is %d", p->dilation[i]);
        if (p->pad[i] < 0 || p->pad[i] > p->kernel[i] / 2)
            return hd_op_fail(s, err, "pad must be between 0 and half the kernel, is %d for a kernel of %d", p->pad[i], p->kernel[i]);
    }
    for (int i = 0; i < s->n_in; i++)
        if (s->in[i].shape.rank != 4 || !hd_dtype_is_float(s->in[i].dtype))
            return hd_op_fail(s, err, "operand %d must be a float [N, C, H, W], is %s", i, HD_TYPE_TEXT(&s->in[i]));
    return hd_need_result_dtype(s, "dtype", p->dtype, true, err);
}

static int64_t out_extent(const hd_conv_attrs *p, int i, int64_t in)
{
    int64_t span = in + 2 * (int64_t)p->pad[i] - (int64_t)p->dilation[i] * (p->kernel[i] - 1) - 1;
    return span < 0 ? 0 : span / p->stride[i] + 1;
}

/* The result of pooling x, with dtype. */
static hd_type pooled(const hd_conv_attrs *p, const hd_type *x, hd_dtype dtype)
{
    const int64_t *d = x->shape.dim;
    hd_type y = hd_type_of(dtype, 4, (int64_t[]){d[0], d[1], out_extent(p, 0, d[2]), out_extent(p, 1, d[3])});
    y.shape.sym = x->shape.sym;
    return y;
}

static int pool_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_conv_attrs *p = s->attrs;
    if (check_attrs(s, err)) return HD_EINVAL;
    out[0] = pooled(p, &s->in[0], p->dtype);
    if (out[0].shape.dim[2] < 1 || out[0].shape.dim[3] < 1)
        return hd_op_fail(s, err, "x %s is smaller than the kernel of %d x %d", HD_TYPE_TEXT(&s->in[0]), p->kernel[0], p->kernel[1]);
    return 1;
}

static int max_grad_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_conv_attrs *p = s->attrs;
    if (check_attrs(s, err)) return HD_EINVAL;
    hd_type y = pooled(p, &s->in[1], s->in[0].dtype);
    for (int i = 0; i < 3; i += 2)
        if (!hd_shape_equal(&s->in[i].shape, &y.shape))
            return hd_op_fail(s, err, "%s must be %s for x %s, is %s", i ? "y" : "dy", HD_TYPE_TEXT(&y), HD_TYPE_TEXT(&s->in[1]), HD_TYPE_TEXT(&s->in[i]));
    out[0] = s->in[1];
    out[0].dtype = p->dtype;
    return 1;
}

static int avg_grad_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_conv_attrs *p = s->attrs;
    if (check_attrs(s, err)) return HD_EINVAL;
    const int64_t *dy = s->in[0].shape.dim;
    if (dy[2] != out_extent(p, 0, p->in[0]) || dy[3] != out_extent(p, 1, p->in[1]))
        return hd_op_fail(s, err, "dy %s is not what pooling makes of a %d x %d input", HD_TYPE_TEXT(&s->in[0]), p->in[0], p->in[1]);
    out[0] = hd_type_of(p->dtype, 4, (int64_t[]){dy[0], dy[1], p->in[0], p->in[1]});
    out[0].shape.sym = s->in[0].shape.sym;
    return 1;
}

/* ---- loops, cost ---- */

static void pool_loops(const hd_sig *s, hd_loops *l)
{
    for (int d = 0; d < 2; d++) {
        int loop = hd_loop_new(l, s->in[0].shape.dim[d], false);
        for (int i = 0; i < s->n_in; i++) hd_loop_in(l, i, d, loop);
        hd_loop_out(l, 0, d, loop);
    }
}

/* One operation per tap of a window; the windows are those of operand 0 in a gradient, of the result otherwise. */
static void pool_cost(const hd_sig *s, hd_cost *c)
{
    const hd_conv_attrs *p = s->attrs;
    const hd_shape *windows = s->op->is_backward ? &s->in[0].shape : &s->out[0].shape;
    c->flops = (double)hd_shape_count(windows) * p->kernel[0] * p->kernel[1];
    c->bytes = hd_cost_bytes(s);
}

/* ---- gradients ---- */

static hd_value max_grad(hd_graph *g, const hd_node *n, const hd_value *dy, int operand)
{
    if (operand || dy[0] == HD_NONE) return HD_NONE;
    hd_conv_attrs p = *(const hd_conv_attrs *)n->attrs;
    p.dtype = hd_grad_dtype(g, n->in[0]);
    return hd_graph_node(g, "max_pool2d_grad", "dx", &p, (hd_value[]){dy[0], n->in[0], n->out[0]}, 3);
}

static hd_value avg_grad(hd_graph *g, const hd_node *n, const hd_value *dy, int operand)
{
    if (operand || dy[0] == HD_NONE) return HD_NONE;
    const hd_type *x = hd_type_in(g, n->in[0]);
    hd_conv_attrs p = *(const hd_conv_attrs *)n->attrs;
    for (int i = 0; i < 2; i++) p.in[i] = (int32_t)x->shape.dim[2 + i];
    p.dtype = hd_grad_dtype(g, n->in[0]);
    return hd_graph_node(g, "avg_pool2d_grad", "dx", &p, (hd_value[]){dy[0]}, 1);
}

/* ---- the definition ---- */

/* The element of an H x W plane that tap (ki, kj) of output (i, j) reads, or -1 in the padding. */
static int64_t tap(const hd_conv_attrs *p, const int64_t *plane, int64_t i, int64_t j, int ki, int kj)
{
    int64_t y = i * p->stride[0] - p->pad[0] + (int64_t)ki * p->dilation[0];
    int64_t x = j * p->stride[1] - p->pad[1] + (int64_t)kj * p->dilation[1];
    return y < 0 || x < 0 || y >= plane[0] || x >= plane[1] ? -1 : y * plane[1] + x;
}

/* Index of the first maximum of a window in x (NaN counts as highest), or -1 for a window of padding only. */
static int64_t first_max(const hd_kernel_args *a, const hd_tensor *x, int64_t plane, int64_t i, int64_t j)
{
    const hd_conv_attrs *p = a->attrs;
    int64_t best = -1;
    double best_value = 0;
    for (int ki = 0; ki < p->kernel[0]; ki++)
        for (int kj = 0; kj < p->kernel[1]; kj++) {
            int64_t at = tap(p, x->dim + 2, i, j, ki, kj);
            if (at < 0) continue;
            at += plane * x->dim[2] * x->dim[3];
            double v = hd_load_f64(x->data, x->dtype, at);
            if (best < 0 || v > best_value || (isnan(v) && !isnan(best_value))) best = at, best_value = v;
        }
    return best;
}

static void max_reference(const hd_kernel_args *a)
{
    const hd_tensor *x = &a->in[0], *y = &a->out[0];
    if (a->tid || !y->data) return;
    int64_t at = 0;
    for (int64_t plane = 0; plane < y->dim[0] * y->dim[1]; plane++)
        for (int64_t i = 0; i < y->dim[2]; i++)
            for (int64_t j = 0; j < y->dim[3]; j++, at++) {
                int64_t best = first_max(a, x, plane, i, j);
                hd_store_f64(y->data, y->dtype, at, best < 0 ? 0 : hd_load_f64(x->data, x->dtype, best));
            }
}

/* dx of one element: the sum over the windows of its plane that it wins. */
static double max_grad_at(const hd_kernel_args *a, int64_t plane, int64_t at)
{
    const hd_tensor *dy = &a->in[0], *x = &a->in[1];
    double sum = 0;
    for (int64_t i = 0; i < dy->dim[2]; i++)
        for (int64_t j = 0; j < dy->dim[3]; j++)
            if (first_max(a, x, plane, i, j) == at) sum += hd_load_f64(dy->data, dy->dtype, (plane * dy->dim[2] + i) * dy->dim[3] + j);
    return sum;
}

static void max_grad_reference(const hd_kernel_args *a)
{
    hd_tensor *dx = &a->out[0];
    if (a->tid || !dx->data) return;
    int64_t size = dx->dim[2] * dx->dim[3];
    for (int64_t plane = 0; plane < dx->dim[0] * dx->dim[1]; plane++)
        for (int64_t i = 0; i < size; i++) hd_store_f64(dx->data, dx->dtype, plane * size + i, max_grad_at(a, plane, plane * size + i));
}

static double average_at(const hd_kernel_args *a, int64_t plane, int64_t i, int64_t j)
{
    const hd_conv_attrs *p = a->attrs;
    const hd_tensor *x = &a->in[0];
    double sum = 0;
    for (int ki = 0; ki < p->kernel[0]; ki++)
        for (int kj = 0; kj < p->kernel[1]; kj++) {
            int64_t at = tap(p, x->dim + 2, i, j, ki, kj);
            if (at >= 0) sum += hd_load_f64(x->data, x->dtype, plane * x->dim[2] * x->dim[3] + at);
        }
    return sum / ((double)p->kernel[0] * p->kernel[1]);
}

static void avg_reference(const hd_kernel_args *a)
{
    hd_tensor *y = &a->out[0];
    if (a->tid || !y->data) return;
    int64_t at = 0;
    for (int64_t plane = 0; plane < y->dim[0] * y->dim[1]; plane++)
        for (int64_t i = 0; i < y->dim[2]; i++)
            for (int64_t j = 0; j < y->dim[3]; j++, at++) hd_store_f64(y->data, y->dtype, at, average_at(a, plane, i, j));
}

/* dx of one element of a plane: dy of every window that reads it, divided by the window's size. */
static double avg_grad_at(const hd_kernel_args *a, int64_t plane, int64_t at)
{
    const hd_conv_attrs *p = a->attrs;
    const hd_tensor *dy = &a->in[0];
    double sum = 0;
    for (int64_t i = 0; i < dy->dim[2]; i++)
        for (int64_t j = 0; j < dy->dim[3]; j++)
            for (int ki = 0; ki < p->kernel[0]; ki++)
                for (int kj = 0; kj < p->kernel[1]; kj++)
                    if (tap(p, a->out[0].dim + 2, i, j, ki, kj) == at)
                        sum += hd_load_f64(dy->data, dy->dtype, (plane * dy->dim[2] + i) * dy->dim[3] + j);
    return sum / ((double)p->kernel[0] * p->kernel[1]);
}

static void avg_grad_reference(const hd_kernel_args *a)
{
    hd_tensor *dx = &a->out[0];
    if (a->tid || !dx->data) return;
    int64_t size = dx->dim[2] * dx->dim[3];
    for (int64_t plane = 0; plane < dx->dim[0] * dx->dim[1]; plane++)
        for (int64_t i = 0; i < size; i++) hd_store_f64(dx->data, dx->dtype, plane * size + i, avg_grad_at(a, plane, i));
}

static void pool_sample(hd_rng *r, hd_sample *s)
{
    hd_conv_attrs *p = (hd_conv_attrs *)s->attrs;
    int64_t x[4] = {hd_pick(r, 1, 3), hd_pick(r, 1, 3)};
    p->dtype = HD_F64;
    for (int i = 0; i < 2; i++) {
        p->kernel[i] = (int32_t)hd_pick(r, 1, 3);
        p->stride[i] = (int32_t)hd_pick(r, 1, 3);
        p->dilation[i] = (int32_t)hd_pick(r, 1, 2);
        p->pad[i] = (int32_t)hd_pick(r, 0, p->kernel[i] / 2);
        x[2 + i] = p->dilation[i] * (p->kernel[i] - 1) + hd_pick(r, 1, 4);
    }
    hd_sample_set(s, s->n_in, HD_F64, 4, x, HD_FILL_DISTINCT, 0);
}

const hd_op hd_op_max_pool2d = {
    .name = "max_pool2d",
    .summary = "(x[N, C, H, W]) -> y[N, C, H', W']: largest element of each window",
    .min_in = 1, .max_in = 1,
    .attrs_size = sizeof(hd_conv_attrs), .attrs = pool_attrs,
    .infer = pool_infer, .loops = pool_loops, .cost = pool_cost, .grad = max_grad, .reference = max_reference, .sample = pool_sample,
};
const hd_op hd_op_max_pool2d_grad = {
    .name = "max_pool2d_grad",
    .summary = "(dy, x, y) -> dx: the first maximum of a window gets all of its dy",
    .min_in = 3, .max_in = 3,
    .attrs_size = sizeof(hd_conv_attrs), .attrs = pool_grad_attrs,
    .linear = {1}, .no_gradient = true, .is_backward = true,
    .infer = max_grad_infer, .loops = pool_loops, .cost = pool_cost, .reference = max_grad_reference,
};
const hd_op hd_op_avg_pool2d = {
    .name = "avg_pool2d",
    .summary = "(x[N, C, H, W]) -> y[N, C, H', W']: mean of each window, padding counted as zeros",
    .min_in = 1, .max_in = 1,
    .attrs_size = sizeof(hd_conv_attrs), .attrs = pool_attrs,
    .linear = {1},
    .infer = pool_infer, .loops = pool_loops, .cost = pool_cost, .grad = avg_grad, .reference = avg_reference, .sample = pool_sample,
};
const hd_op hd_op_avg_pool2d_grad = {
    .name = "avg_pool2d_grad",
    .summary = "(dy[N, C, H', W']) -> dx[N, C, in]: each window's dy spread evenly over it",
    .min_in = 1, .max_in = 1,
    .attrs_size = sizeof(hd_conv_attrs), .attrs = pool_grad_attrs,
    .linear = {1}, .no_gradient = true, .is_backward = true,
    .infer = avg_grad_infer, .loops = pool_loops, .cost = pool_cost, .reference = avg_grad_reference,
};
