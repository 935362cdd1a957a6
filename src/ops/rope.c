/* rope.c: rotary position embedding (Su et al. 2021): pairs of features of each head turned by position * frequency. */
#include "ops/facets.h"

enum { ROPE_X, ROPE_POSITION, ROPE_FREQ };

static const hd_attr rope_attrs[] = {
    {"interleaved", HD_ATTR_BOOL, offsetof(hd_rope_attrs, interleaved), 0},
    {"inverse", HD_ATTR_BOOL, offsetof(hd_rope_attrs, inverse), 0},
    {"scale", HD_ATTR_DOUBLE, offsetof(hd_rope_attrs, scale), 1},
    {"dtype", HD_ATTR_DTYPE, offsetof(hd_rope_attrs, dtype), NAN},
    {0},
};

static int rope_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_rope_attrs *p = s->attrs;
    const hd_shape *x = &s->in[ROPE_X].shape, *position = &s->in[ROPE_POSITION].shape, *freq = &s->in[ROPE_FREQ].shape;
    if (hd_need_float(s, ROPE_X, "x", err) || hd_need_rank(s, ROPE_X, "x", 3, 3, err)) return HD_EINVAL;
    if (hd_need_float(s, ROPE_FREQ, "inv_freq", err) || hd_need_rank(s, ROPE_FREQ, "inv_freq", 1, 1, err)) return HD_EINVAL;
    if (s->in[ROPE_POSITION].dtype != HD_I32 || position->rank != 1 || position->dim[0] != x->dim[0] || position->sym != x->sym)
        return hd_op_fail(s, err, "position must be i32, one for each row of x %s, is %s", HD_TYPE_TEXT(&s->in[ROPE_X]),
                          HD_TYPE_TEXT(&s->in[ROPE_POSITION]));
    if (freq->dim[0] > x->dim[2] / 2)
        return hd_op_fail(s, err, "inv_freq must have at most %lld elements for x %s, is %s", (long long)(x->dim[2] / 2), HD_TYPE_TEXT(&s->in[ROPE_X]),
                          HD_TYPE_TEXT(&s->in[ROPE_FREQ]));
    if (hd_need_result_dtype(s, "dtype", p->dtype, true, err)) return HD_EINVAL;
    out[0] = hd_type_shaped(p->dtype, x);
    return 1;
}

static void rope_loops(const hd_sig *s, hd_loops *l)
{
    hd_loop_in(l, ROPE_POSITION, 0, hd_loop_through(s, l, ROPE_X, 0, 0));
    hd_loop_through(s, l, ROPE_X, 1, 1);
}

/* Four products, two sums for each pair; sines and cosines once per token and frequency, not counted. */
static void rope_cost(const hd_sig *s, hd_cost *c)
{
    const int64_t *x = s->in[ROPE_X].shape.dim;
    c->flops = 6.0 * (double)(x[0] * x[1] * s->in[ROPE_FREQ].shape.dim[0]);
    c->bytes = hd_cost_bytes(s);
}

/* A rotation's transpose is its inverse. */
static hd_value rope_grad(hd_graph *g, const hd_node *n, const hd_value *dy, int operand)
{
    if (operand || dy[0] == HD_NONE) return HD_NONE;
    hd_rope_attrs p = *(const hd_rope_attrs *)n->attrs;
    p.inverse = !p.inverse;
    p.dtype = hd_grad_dtype(g, n->in[ROPE_X]);
    return hd_graph_node(g, "rope", "dx", &p, (hd_value[]){dy[0], n->in[ROPE_POSITION], n->in[ROPE_FREQ]}, 3);
}

static uint32_t rope_alias(const hd_sig *s, int result) { return hd_alias_same_type(s, result) & 1u << ROPE_X; }

/* Features [0, 2*half) of the head that begins at x. */
static void rotate_head(const hd_kernel_args *a, int64_t at, int64_t half, double position)
{
    const hd_rope_attrs *p = a->attrs;
    for (int64_t i = 0; i < half; i++) {
        double angle = position * hd_get(a, ROPE_FREQ, i);
        double c = cos(angle) * p->scale, s = sin(p->inverse ? -angle : angle) * p->scale;
        int64_t first = at + (p->interleaved ? 2 * i : i), second = p->interleaved ? first + 1 : first + half;
        double u = hd_get(a, ROPE_X, first), v = hd_get(a, ROPE_X, second);
        hd_put(a, 0, first, u * c - v * s);
        hd_put(a, 0, second, v * c + u * s);
    }
}

static void rope_reference(const hd_kernel_args *a)
{
    const hd_tensor *x = &a->in[ROPE_X];
    if (a->tid) return;
    int64_t half = a->in[ROPE_FREQ].dim[0], heads = x->dim[1], size = x->dim[2];
    for (int64_t t = 0; t < x->dim[0]; t++)
        for (int64_t h = 0; h < heads; h++) {
            int64_t at = (t * heads + h) * size;
            rotate_head(a, at, half, hd_get(a, ROPE_POSITION, t));
            for (int64_t i = 2 * half; i < size; i++) hd_put(a, 0, at + i, hd_get(a, ROPE_X, at + i));
        }
}

static void rope_sample(hd_rng *r, hd_sample *s)
{
    int64_t size = hd_pick(r, 2, 9), dims[3] = {hd_pick(r, 1, 7), hd_pick(r, 1, 3), size};
    *(hd_rope_attrs *)s->attrs = (hd_rope_attrs){.scale = hd_coin(r) ? 1 : 1.25, .dtype = HD_F64};
    ((hd_rope_attrs *)s->attrs)->interleaved = hd_coin(r);
    ((hd_rope_attrs *)s->attrs)->inverse = hd_coin(r);
    hd_sample_set(s, ROPE_X, HD_F64, 3, dims, HD_FILL_NORMAL, 0);
    hd_sample_set(s, ROPE_POSITION, HD_I32, 1, dims, HD_FILL_INDEX, 1000);
    hd_sample_set(s, ROPE_FREQ, HD_F32, 1, (int64_t[]){hd_pick(r, 1, size / 2)}, HD_FILL_POSITIVE, 0);
}

const hd_op hd_op_rope = {
    .name = "rope",
    .summary = "(x[T, H, E], position[T], inv_freq[R/2]) -> y: the first R of E features turned by position * inv_freq",
    .min_in = 3, .max_in = 3,
    .attrs_size = sizeof(hd_rope_attrs), .attrs = rope_attrs,
    .linear = {1},
    .infer = rope_infer, .loops = rope_loops, .cost = rope_cost, .grad = rope_grad, .may_alias = rope_alias, .reference = rope_reference,
    .sample = rope_sample,
};
