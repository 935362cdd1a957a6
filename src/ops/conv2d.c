/* conv2d.c: 2-D convolution (cross-correlation, as every framework means it) and its two gradients.
 *
 * Loops: sample n, group g, output channel o of the group, input channel c of the group. Spatial dimensions are windows: not splittable. */
#include "ops/facets.h"

enum { CONV_X, CONV_W };

static const hd_attr conv_attrs[] = {
    {"stride", HD_ATTR_INT32_2, offsetof(hd_conv_attrs, stride), 1},
    {"pad", HD_ATTR_INT32_2, offsetof(hd_conv_attrs, pad), 0},
    {"dilation", HD_ATTR_INT32_2, offsetof(hd_conv_attrs, dilation), 1},
    {"groups", HD_ATTR_INT32, offsetof(hd_conv_attrs, groups), 1},
    {"dtype", HD_ATTR_DTYPE, offsetof(hd_conv_attrs, dtype), NAN},
    {0},
};
static const hd_attr conv_grad_x_attrs[] = {
    {"stride", HD_ATTR_INT32_2, offsetof(hd_conv_attrs, stride), 1},
    {"pad", HD_ATTR_INT32_2, offsetof(hd_conv_attrs, pad), 0},
    {"dilation", HD_ATTR_INT32_2, offsetof(hd_conv_attrs, dilation), 1},
    {"groups", HD_ATTR_INT32, offsetof(hd_conv_attrs, groups), 1},
    {"in", HD_ATTR_INT32_2, offsetof(hd_conv_attrs, in), NAN},
    {"dtype", HD_ATTR_DTYPE, offsetof(hd_conv_attrs, dtype), NAN},
    {0},
};
static const hd_attr conv_grad_w_attrs[] = {
    {"stride", HD_ATTR_INT32_2, offsetof(hd_conv_attrs, stride), 1},
    {"pad", HD_ATTR_INT32_2, offsetof(hd_conv_attrs, pad), 0},
    {"dilation", HD_ATTR_INT32_2, offsetof(hd_conv_attrs, dilation), 1},
    {"groups", HD_ATTR_INT32, offsetof(hd_conv_attrs, groups), 1},
    {"kernel", HD_ATTR_INT32_2, offsetof(hd_conv_attrs, kernel), NAN},
    {"dtype", HD_ATTR_DTYPE, offsetof(hd_conv_attrs, dtype), HD_F32},
    {0},
};

/* ---- shapes ---- */

static int check_common(const hd_sig *s, hd_error *err)
{
    const hd_conv_attrs *p = s->attrs;
    for (int i = 0; i < 2; i++) {
        if (p->stride[i] < 1) return hd_op_fail(s, err, "stride must be at least 1, is %d", p->stride[i]);
        if (p->dilation[i] < 1) return hd_op_fail(s, err, "dilation must be at least 1, is %d", p->dilation[i]);
        if (p->pad[i] < 0) return hd_op_fail(s, err, "pad must be at least 0, is %d", p->pad[i]);
    }
    if (p->groups < 1) return hd_op_fail(s, err, "groups must be at least 1, is %d", p->groups);
    for (int i = 0; i < 2; i++)
        if (s->in[i].shape.rank != 4 || !hd_dtype_is_float(s->in[i].dtype))
            return hd_op_fail(s, err, "operand %d must be a float of 4 dimensions, is %s", i, HD_TYPE_TEXT(&s->in[i]));
    return hd_need_result_dtype(s, "dtype", p->dtype, true, err);
}

static int64_t out_extent(const hd_conv_attrs *p, int i, int64_t in, int64_t kernel)
{
    int64_t span = in + 2 * (int64_t)p->pad[i] - (int64_t)p->dilation[i] * (kernel - 1) - 1;
    return span < 0 ? 0 : span / p->stride[i] + 1;
}

static int conv_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_conv_attrs *p = s->attrs;
    if (check_common(s, err)) return HD_EINVAL;
    const int64_t *x = s->in[CONV_X].shape.dim, *w = s->in[CONV_W].shape.dim;
    if (x[1] != w[1] * p->groups || w[0] % p->groups)
        return hd_op_fail(s, err, "w must be [O, C/groups, kh, kw] for x %s and groups %d, is %s", HD_TYPE_TEXT(&s->in[CONV_X]), p->groups,
                          HD_TYPE_TEXT(&s->in[CONV_W]));
    out[0] = hd_type_of(p->dtype, 4, (int64_t[]){x[0], w[0], out_extent(p, 0, x[2], w[2]), out_extent(p, 1, x[3], w[3])});
    out[0].shape.sym = s->in[CONV_X].shape.sym;
    if (out[0].shape.dim[2] < 1 || out[0].shape.dim[3] < 1)
        return hd_op_fail(s, err, "x %s with padding %d, %d is smaller than the kernel of w %s", HD_TYPE_TEXT(&s->in[CONV_X]), p->pad[0], p->pad[1],
                          HD_TYPE_TEXT(&s->in[CONV_W]));
    return 1;
}

static int grad_x_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_conv_attrs *p = s->attrs;
    if (check_common(s, err)) return HD_EINVAL;
    const int64_t *dy = s->in[0].shape.dim, *w = s->in[1].shape.dim;
    bool fits = dy[1] == w[0] && w[0] % p->groups == 0;
    for (int i = 0; i < 2; i++) fits = fits && dy[2 + i] == out_extent(p, i, p->in[i], w[2 + i]);
    if (!fits)
        return hd_op_fail(s, err, "dy %s is not what w %s makes of a %d x %d input", HD_TYPE_TEXT(&s->in[0]), HD_TYPE_TEXT(&s->in[1]), p->in[0], p->in[1]);
    out[0] = hd_type_of(p->dtype, 4, (int64_t[]){dy[0], w[1] * p->groups, p->in[0], p->in[1]});
    out[0].shape.sym = s->in[0].shape.sym;
    return 1;
}

static int grad_w_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_conv_attrs *p = s->attrs;
    if (check_common(s, err)) return HD_EINVAL;
    const int64_t *dy = s->in[0].shape.dim, *x = s->in[1].shape.dim;
    bool fits = dy[0] == x[0] && dy[1] % p->groups == 0 && x[1] % p->groups == 0;
    for (int i = 0; i < 2; i++) fits = fits && dy[2 + i] == out_extent(p, i, x[2 + i], p->kernel[i]);
    if (!fits)
        return hd_op_fail(s, err, "dy %s is not what a %d x %d kernel makes of x %s", HD_TYPE_TEXT(&s->in[0]), p->kernel[0], p->kernel[1],
                          HD_TYPE_TEXT(&s->in[1]));
    out[0] = hd_type_of(p->dtype, 4, (int64_t[]){dy[1], x[1] / p->groups, p->kernel[0], p->kernel[1]});
    return 1;
}

/* ---- loops ----
 * dims of [N, C, H, W]: C is (g, c); of w[O, C/groups, ..]: O is (g, o); of y: O is (g, o). */

typedef struct conv_loop_set { int n, g, o, c; } conv_loop_set;

static conv_loop_set conv_loops_new(const hd_sig *s, hd_loops *l, int64_t n, int64_t o, int64_t c, int reduced)
{
    const hd_conv_attrs *p = s->attrs;
    conv_loop_set r;
    r.n = hd_loop_new(l, n, reduced == 'n');
    r.g = hd_loop_new(l, p->groups, false);
    r.o = hd_loop_new(l, o / p->groups, reduced == 'o');
    r.c = hd_loop_new(l, c / p->groups, reduced == 'c');
    return r;
}

static void map_image(hd_dim_map *map, int n, int g, int channel)
{
    map[0] = (hd_dim_map){1, {(int8_t)n}};
    map[1] = (hd_dim_map){2, {(int8_t)g, (int8_t)channel}};
}

static void map_weight(hd_dim_map *map, conv_loop_set r)
{
    map[0] = (hd_dim_map){2, {(int8_t)r.g, (int8_t)r.o}};
    map[1] = (hd_dim_map){1, {(int8_t)r.c}};
}

static void conv_loops(const hd_sig *s, hd_loops *l)
{
    const int64_t *x = s->in[CONV_X].shape.dim;
    conv_loop_set r = conv_loops_new(s, l, x[0], s->in[CONV_W].shape.dim[0], x[1], 'c');
    map_image(l->in[CONV_X], r.n, r.g, r.c);
    map_weight(l->in[CONV_W], r);
    map_image(l->out[0], r.n, r.g, r.o);
}

static void grad_x_loops(const hd_sig *s, hd_loops *l)
{
    conv_loop_set r = conv_loops_new(s, l, s->in[0].shape.dim[0], s->in[0].shape.dim[1], s->out[0].shape.dim[1], 'o');
    map_image(l->in[0], r.n, r.g, r.o);
    map_weight(l->in[1], r);
    map_image(l->out[0], r.n, r.g, r.c);
}

static void grad_w_loops(const hd_sig *s, hd_loops *l)
{
    conv_loop_set r = conv_loops_new(s, l, s->in[0].shape.dim[0], s->in[0].shape.dim[1], s->in[1].shape.dim[1], 'n');
    map_image(l->in[0], r.n, r.g, r.o);
    map_image(l->in[1], r.n, r.g, r.c);
    map_weight(l->out[0], r);
}

/* A shard of the groups is a convolution of fewer groups. Loop 1 is the group in all three. */
static void conv_localise(const hd_sig *s, const hd_loops *loops, int loop, int64_t begin, int64_t end, void *attrs)
{
    (void)s, (void)loops;
    if (loop == 1) ((hd_conv_attrs *)attrs)->groups = (int32_t)(end - begin);
}

/* ---- cost: each output element is a sum of C/groups * kh * kw products; the gradients do the same products ---- */

static void conv_cost(const hd_sig *s, hd_cost *c)
{
    const int64_t *w = s->in[CONV_W].shape.dim;
    c->flops = 2.0 * (double)hd_shape_count(&s->out[0].shape) * (double)(w[1] * w[2] * w[3]);
    c->bytes = hd_cost_bytes(s);
}

static void grad_x_cost(const hd_sig *s, hd_cost *c)
{
    const int64_t *w = s->in[1].shape.dim;
    c->flops = 2.0 * (double)hd_shape_count(&s->in[0].shape) * (double)(w[1] * w[2] * w[3]);
    c->bytes = hd_cost_bytes(s);
}

static void grad_w_cost(const hd_sig *s, hd_cost *c)
{
    const int64_t *w = s->out[0].shape.dim;
    c->flops = 2.0 * (double)hd_shape_count(&s->in[0].shape) * (double)(w[1] * w[2] * w[3]);
    c->bytes = hd_cost_bytes(s);
}

/* ---- gradient ---- */

static hd_value conv_grad(hd_graph *g, const hd_node *n, const hd_value *dy, int operand)
{
    if (dy[0] == HD_NONE) return HD_NONE;
    const hd_type *x = hd_type_in(g, n->in[CONV_X]), *w = hd_type_in(g, n->in[CONV_W]);
    hd_conv_attrs p = *(const hd_conv_attrs *)n->attrs;
    for (int i = 0; i < 2; i++) {
        p.in[i] = operand == CONV_X ? (int32_t)x->shape.dim[2 + i] : 0;
        p.kernel[i] = operand == CONV_W ? (int32_t)w->shape.dim[2 + i] : 0;
    }
    p.dtype = operand == CONV_X ? hd_grad_dtype(g, n->in[CONV_X]) : hd_stat_dtype(w->dtype);
    if (operand == CONV_X) return hd_graph_node(g, "conv2d_grad_x", "dx", &p, (hd_value[]){dy[0], n->in[CONV_W]}, 2);
    hd_value dw = hd_graph_node(g, "conv2d_grad_w", "dw", &p, (hd_value[]){dy[0], n->in[CONV_X]}, 2);
    return hd_grad_fit(g, dw, n->in[CONV_W]);
}

/* ---- the definition ---- */

/* All extents of one convolution, whichever of x, w, y is the result. */
typedef struct conv_dims {
    int64_t n, groups, o, c;       /* o, c: channels of one group */
    int64_t in[2], kernel[2], out[2];
    const hd_conv_attrs *p;
} conv_dims;

static conv_dims dims_of(const hd_kernel_args *a, const hd_tensor *x, const hd_tensor *w, const hd_tensor *y)
{
    conv_dims d = {.p = a->attrs, .n = x->dim[0], .c = w->dim[1]};
    d.groups = d.p->groups;
    d.o = w->dim[0] / d.groups;
    for (int i = 0; i < 2; i++) d.in[i] = x->dim[2 + i], d.kernel[i] = w->dim[2 + i], d.out[i] = y->dim[2 + i];
    return d;
}

static int64_t at_x(const conv_dims *d, int64_t n, int64_t g, int64_t c, int64_t i, int64_t j)
{
    return (((n * d->groups + g) * d->c + c) * d->in[0] + i) * d->in[1] + j;
}
static int64_t at_w(const conv_dims *d, int64_t g, int64_t o, int64_t c, int64_t i, int64_t j)
{
    return (((g * d->o + o) * d->c + c) * d->kernel[0] + i) * d->kernel[1] + j;
}
static int64_t at_y(const conv_dims *d, int64_t n, int64_t g, int64_t o, int64_t i, int64_t j)
{
    return (((n * d->groups + g) * d->o + o) * d->out[0] + i) * d->out[1] + j;
}

/* The input coordinate that tap k of output coordinate i reads, or -1 in the padding. */
static int64_t tap(const conv_dims *d, int axis, int64_t i, int64_t k)
{
    int64_t at = i * d->p->stride[axis] - d->p->pad[axis] + k * d->p->dilation[axis];
    return at < d->in[axis] ? at : -1;
}

static double conv_at(const hd_kernel_args *a, const conv_dims *d, int64_t n, int64_t g, int64_t o, int64_t i, int64_t j)
{
    double sum = 0;
    for (int64_t c = 0; c < d->c; c++)
        for (int64_t ki = 0; ki < d->kernel[0]; ki++)
            for (int64_t kj = 0; kj < d->kernel[1]; kj++) {
                int64_t xi = tap(d, 0, i, ki), xj = tap(d, 1, j, kj);
                if (xi < 0 || xj < 0) continue;
                sum += hd_get(a, 0, at_x(d, n, g, c, xi, xj)) *
                       hd_get(a, 1, at_w(d, g, o, c, ki, kj));
            }
    return sum;
}

static void conv_reference(const hd_kernel_args *a)
{
    if (a->tid || !a->out[0].data) return;
    conv_dims d = dims_of(a, &a->in[0], &a->in[1], &a->out[0]);
    for (int64_t n = 0; n < d.n; n++)
        for (int64_t g = 0; g < d.groups; g++)
            for (int64_t o = 0; o < d.o; o++)
                for (int64_t i = 0; i < d.out[0]; i++)
                    for (int64_t j = 0; j < d.out[1]; j++) hd_put(a, 0, at_y(&d, n, g, o, i, j), conv_at(a, &d, n, g, o, i, j));
}

/* dx at one place: every (output, tap) pair that reads it. */
static double grad_x_at(const hd_kernel_args *a, const conv_dims *d, int64_t n, int64_t g, int64_t c, int64_t xi, int64_t xj)
{
    double sum = 0;
    for (int64_t o = 0; o < d->o; o++)
        for (int64_t i = 0; i < d->out[0]; i++)
            for (int64_t ki = 0; ki < d->kernel[0]; ki++) {
                if (tap(d, 0, i, ki) != xi) continue;
                for (int64_t j = 0; j < d->out[1]; j++)
                    for (int64_t kj = 0; kj < d->kernel[1]; kj++)
                        if (tap(d, 1, j, kj) == xj)
                            sum += hd_get(a, 0, at_y(d, n, g, o, i, j)) *
                                   hd_get(a, 1, at_w(d, g, o, c, ki, kj));
            }
    return sum;
}

static void grad_x_reference(const hd_kernel_args *a)
{
    if (a->tid || !a->out[0].data) return;
    conv_dims d = dims_of(a, &a->out[0], &a->in[1], &a->in[0]);
    for (int64_t n = 0; n < d.n; n++)
        for (int64_t g = 0; g < d.groups; g++)
            for (int64_t c = 0; c < d.c; c++)
                for (int64_t i = 0; i < d.in[0]; i++)
                    for (int64_t j = 0; j < d.in[1]; j++) hd_put(a, 0, at_x(&d, n, g, c, i, j), grad_x_at(a, &d, n, g, c, i, j));
}

static double grad_w_at(const hd_kernel_args *a, const conv_dims *d, int64_t g, int64_t o, int64_t c, int64_t ki, int64_t kj)
{
    double sum = 0;
    for (int64_t n = 0; n < d->n; n++)
        for (int64_t i = 0; i < d->out[0]; i++)
            for (int64_t j = 0; j < d->out[1]; j++) {
                int64_t xi = tap(d, 0, i, ki), xj = tap(d, 1, j, kj);
                if (xi < 0 || xj < 0) continue;
                sum += hd_get(a, 0, at_y(d, n, g, o, i, j)) *
                       hd_get(a, 1, at_x(d, n, g, c, xi, xj));
            }
    return sum;
}

static void grad_w_reference(const hd_kernel_args *a)
{
    if (a->tid || !a->out[0].data) return;
    conv_dims d = dims_of(a, &a->in[1], &a->out[0], &a->in[0]);
    for (int64_t g = 0; g < d.groups; g++)
        for (int64_t o = 0; o < d.o; o++)
            for (int64_t c = 0; c < d.c; c++)
                for (int64_t i = 0; i < d.kernel[0]; i++)
                    for (int64_t j = 0; j < d.kernel[1]; j++) hd_put(a, 0, at_w(&d, g, o, c, i, j), grad_w_at(a, &d, g, o, c, i, j));
}

static void conv_sample(hd_rng *r, hd_sample *s)
{
    hd_conv_attrs *p = (hd_conv_attrs *)s->attrs;
    p->groups = (int32_t)hd_pick(r, 1, 2);
    p->dtype = HD_F64;
    int64_t x[4] = {hd_pick(r, 1, 3), p->groups * hd_pick(r, 1, 3)}, w[4] = {p->groups * hd_pick(r, 1, 2), x[1] / p->groups};
    for (int i = 0; i < 2; i++) {
        p->stride[i] = (int32_t)hd_pick(r, 1, 2);
        p->dilation[i] = (int32_t)hd_pick(r, 1, 2);
        w[2 + i] = hd_pick(r, 1, 3);
        p->pad[i] = (int32_t)hd_pick(r, 0, w[2 + i] - 1);
        x[2 + i] = p->dilation[i] * (w[2 + i] - 1) + hd_pick(r, 1, 3);
    }
    hd_sample_set(s, s->n_in, HD_F64, 4, x, HD_FILL_NORMAL, 0);
    hd_sample_set(s, s->n_in, HD_F64, 4, w, HD_FILL_NORMAL, 0);
}

const hd_op hd_op_conv2d = {
    .name = "conv2d",
    .summary = "(x[N, C, H, W], w[O, C/groups, kh, kw]) -> y[N, O, H', W']: 2-D convolution",
    .min_in = 2, .max_in = 2,
    .attrs_size = sizeof(hd_conv_attrs), .attrs = conv_attrs,
    .linear = {1, 2},
    .infer = conv_infer, .loops = conv_loops, .localise = conv_localise, .cost = conv_cost, .grad = conv_grad,
    .reference = conv_reference, .sample = conv_sample,
};
const hd_op hd_op_conv2d_grad_x = {
    .name = "conv2d_grad_x",
    .summary = "(dy[N, O, H', W'], w[O, C/groups, kh, kw]) -> dx[N, C, in]: gradient of conv2d for x",
    .min_in = 2, .max_in = 2,
    .attrs_size = sizeof(hd_conv_attrs), .attrs = conv_grad_x_attrs,
    .linear = {1, 2}, .no_gradient = true, .is_backward = true,
    .infer = grad_x_infer, .loops = grad_x_loops, .localise = conv_localise, .cost = grad_x_cost, .reference = grad_x_reference,
};
const hd_op hd_op_conv2d_grad_w = {
    .name = "conv2d_grad_w",
    .summary = "(dy[N, O, H', W'], x[N, C, H, W]) -> dw[O, C/groups, kernel]: gradient of conv2d for w",
    .min_in = 2, .max_in = 2,
    .attrs_size = sizeof(hd_conv_attrs), .attrs = conv_grad_w_attrs,
    .linear = {1, 2}, .can_accumulate = true, .no_gradient = true, .is_backward = true,
    .infer = grad_w_infer, .loops = grad_w_loops, .localise = conv_localise, .cost = grad_w_cost, .reference = grad_w_reference,
};
