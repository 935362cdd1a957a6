/* batch_norm.c: normalising each channel over N, H and W of one micro-batch (Ioffe and Szegedy 2015), which is then part of the model's
 * definition. Channels are independent. Running averages are made outside, from mean and var.
 *
 * batch_norm itself never splits N, H and W. Where they are in pieces (passes/expand_norm.c) it becomes
 *   sum = reduce_sum(x), all-reduced;  squares = batch_norm_squares(x, sum), all-reduced;  batch_norm_finish(x, gamma, beta, sum, squares)
 * with the squares about the mean of all pieces, as in batch_norm itself: nothing cancels. dx needs no more of the other pieces than the sums that
 * are gamma's and beta's gradients, so it takes those. */
#include <math.h>

#include "ops/ops.h"
#include "ops/ops_int.h"

enum { Y, MEAN, RSTD, VAR };

/* ---- infer ---- */

/* Operand i is [N, C, H, W]. */
static int check_image(const hd_sig *s, int i, const char *name, hd_error *err)
{
    int rc = hd_need_float(s, i, name, err);
    return rc ? rc : hd_need_rank(s, i, name, 4, 4, err);
}

static int check_attrs(const hd_sig *s, hd_error *err)
{
    const hd_norm_attrs *at = s->attrs;
    if (!(at->eps >= 0) || !isfinite(at->eps)) return hd_op_fail(s, err, "eps must not be negative, is %g", at->eps);
    return hd_need_result_dtype(s, "dtype", at->dtype, true, err);
}

static int infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_norm_attrs *at = s->attrs;
    int rc = check_attrs(s, err);
    if (!rc) rc = check_image(s, 0, "x", err);
    if (rc) return rc;
    int64_t channels = s->in[0].shape.dim[1];
    rc = hd_need_vector(s, 1, "gamma", channels, err);
    if (!rc) rc = hd_need_vector(s, 2, "beta", channels, err);
    if (rc) return rc;
    out[Y] = hd_type_shaped(at->dtype, &s->in[0].shape);
    for (int r = MEAN; r <= VAR; r++) out[r] = hd_type_of(hd_stat_dtype(s->in[0].dtype), 1, &channels);
    return 4;
}

/* (dy, x, then vectors of one number for each channel) */
static int check_backward(const hd_sig *s, const char *const *vectors, hd_error *err)
{
    int rc = check_image(s, 1, "x", err);
    if (!rc) rc = hd_need_shape(s, 0, "dy", &s->in[1].shape, err);
    for (int i = 2; !rc && i < s->n_in; i++) rc = hd_need_vector(s, i, vectors[i - 2], s->in[1].shape.dim[1], err);
    return rc;
}

static int grad_x_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_norm_attrs *at = s->attrs;
    int rc = check_attrs(s, err);
    if (!rc) rc = check_backward(s, (const char *const[]){"gamma", "mean", "rstd", "dgamma", "dbeta"}, err);
    if (rc) return rc;
    out[0] = hd_type_shaped(at->dtype, &s->in[1].shape);
    return 1;
}

static int grad_gamma_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    int rc = check_backward(s, (const char *const[]){"mean", "rstd"}, err);
    if (rc) return rc;
    out[0] = hd_type_of(hd_stat_dtype(s->in[1].dtype), 1, &s->in[1].shape.dim[1]);
    return 1;
}

/* x is given, and a vector of a sum of it for each channel. */
static int squares_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    int rc = check_image(s, 0, "x", err);
    if (!rc) rc = hd_need_vector(s, 1, "sum", s->in[0].shape.dim[1], err);
    if (rc) return rc;
    out[0] = hd_type_of(hd_stat_dtype(s->in[0].dtype), 1, &s->in[0].shape.dim[1]);
    return 1;
}

static int finish_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    int n = infer(s, out, err), rc = n < 0 ? n : hd_need_vector(s, 3, "sum", s->in[0].shape.dim[1], err);
    if (!rc) rc = hd_need_vector(s, 4, "squares", s->in[0].shape.dim[1], err);
    return rc ? rc : n;
}

/* ---- loops ---- */

/* The channel, loop 0: dimension 1 of images, dimension 0 of vectors. */
static void channel_loop(const hd_sig *s, hd_loops *l)
{
    int loop = hd_loop_new(l, s->in[0].shape.dim[1], false);
    for (int i = 0; i < s->n_in; i++) hd_loop_in(l, i, s->in[i].shape.rank == 4 ? 1 : 0, loop);
    for (int r = 0; r < s->n_out; r++) hd_loop_out(l, r, s->out[r].shape.rank == 4 ? 1 : 0, loop);
}

/* Loops 1 to 3: the other dimensions of images. */
static void image_loops(const hd_sig *s, hd_loops *l, bool reduced)
{
    channel_loop(s, l);
    for (int d = 0; d < 4; d++) {
        if (d == 1) continue;
        int loop = hd_loop_new(l, s->in[0].shape.dim[d], reduced);
        for (int i = 0; i < s->n_in; i++)
            if (s->in[i].shape.rank == 4) hd_loop_in(l, i, d, loop);
        for (int r = 0; r < s->n_out; r++)
            if (s->out[r].shape.rank == 4) hd_loop_out(l, r, d, loop);
    }
}

static void mapped_loops(const hd_sig *s, hd_loops *l) { image_loops(s, l, false); }
static void summed_loops(const hd_sig *s, hd_loops *l) { image_loops(s, l, true); }

/* A piece still divides by the elements of all pieces. */
static void localise_count(const hd_sig *s, const hd_loops *loops, int loop, int64_t begin, int64_t end, void *attrs)
{
    hd_norm_attrs *at = attrs;
    const int64_t *x = s->in[0].shape.dim;
    (void)loops, (void)begin, (void)end;
    if (loop != 0 && !at->count) at->count = x[0] * x[2] * x[3];
}

/* ---- cost ---- */

static void cost_per_element(const hd_sig *s, hd_cost *c, double flops)
{
    c->flops = flops * (double)hd_shape_count(&s->in[0].shape);
    c->bytes = hd_cost_bytes(s);
}

static void cost(const hd_sig *s, hd_cost *c) { cost_per_element(s, c, 8); }
static void squares_cost(const hd_sig *s, hd_cost *c) { cost_per_element(s, c, 3); }
static void finish_cost(const hd_sig *s, hd_cost *c) { cost_per_element(s, c, 3); }
static void grad_x_cost(const hd_sig *s, hd_cost *c) { cost_per_element(s, c, 5); }
static void grad_gamma_cost(const hd_sig *s, hd_cost *c) { cost_per_element(s, c, 4); }

/* ---- gradient ---- */

static hd_value gamma_grad(hd_graph *g, const hd_node *n, hd_value dy)
{
    return hd_graph_node(g, "batch_norm_grad_gamma", NULL, n->attrs, (hd_value[]){dy, n->in[0], n->out[MEAN], n->out[RSTD]}, 4);
}

static hd_value beta_grad(hd_graph *g, hd_value dy)
{
    return hd_reduce(g, "reduce_sum", NULL, dy, 1u | 4u | 8u, false, hd_stat_dtype(hd_type_in(g, dy)->dtype));
}

/* The sums that dx takes are made for it first, and are the same nodes as the gradients (hd_graph_cse). */
static hd_value x_grad(hd_graph *g, const hd_node *n, hd_value dy)
{
    hd_norm_attrs at = *(const hd_norm_attrs *)n->attrs;
    hd_value dgamma = gamma_grad(g, n, dy), dbeta = beta_grad(g, dy);
    at.dtype = hd_grad_dtype(g, n->in[0]);
    return hd_graph_node(g, "batch_norm_grad_x", NULL, &at, (hd_value[]){dy, n->in[0], n->in[1], n->out[MEAN], n->out[RSTD], dgamma, dbeta}, 7);
}

static hd_value grad(hd_graph *g, const hd_node *n, const hd_value *dy, int i)
{
    static const char *const names[] = {"y", "mean", "rstd", "var"};
    for (int r = MEAN; r <= VAR; r++)
        if (dy[r] != HD_NONE) return hd_grad_refuse(g, n, names[r]);
    if (dy[Y] == HD_NONE) return HD_NONE;
    hd_value d = i == 0 ? x_grad(g, n, dy[Y]) : i == 1 ? gamma_grad(g, n, dy[Y]) : beta_grad(g, dy[Y]);
    return hd_grad_fit(g, d, n->in[i]);
}

static uint32_t may_alias(const hd_sig *s, int result)
{
    return result == Y ? hd_alias_same_type(s, result) & 1u : 0;
}

static uint32_t grad_x_may_alias(const hd_sig *s, int result)
{
    return hd_alias_same_type(s, result) & 3u;
}

/* ---- reference ---- */

/* An image's extents: elements of one channel are at (n * channels + c) * pixels + p. */
typedef struct image { int64_t samples, channels, pixels; } image;

static image image_of(const hd_tensor *x)
{
    return (image){x->dim[0], x->dim[1], x->dim[2] * x->dim[3]};
}

/* Place of the i-th of samples * pixels elements of channel c. */
static int64_t place(image m, int64_t c, int64_t i)
{
    return (i / m.pixels * m.channels + c) * m.pixels + i % m.pixels;
}

static void norm_channel(const hd_kernel_args *a, image m, int64_t c)
{
    const hd_norm_attrs *at = a->attrs;
    int64_t n = m.samples * m.pixels;
    double mean = 0, var = 0;
    for (int64_t i = 0; i < n; i++) mean += hd_get(a, 0, place(m, c, i)) / (double)n;
    for (int64_t i = 0; i < n; i++) {
        double d = hd_get(a, 0, place(m, c, i)) - mean;
        var += d * d / (double)n;
    }
    double rstd = 1 / sqrt(var + at->eps), gamma = hd_get(a, 1, c), beta = hd_get(a, 2, c);
    for (int64_t i = 0; i < n; i++) hd_put(a, Y, place(m, c, i), (hd_get(a, 0, place(m, c, i)) - mean) * rstd * gamma + beta);
    hd_put(a, MEAN, c, mean);
    hd_put(a, RSTD, c, rstd);
    hd_put(a, VAR, c, var);
}

static void reference(const hd_kernel_args *a)
{
    if (a->tid) return;
    image m = image_of(&a->in[0]);
    for (int64_t c = 0; c < m.channels; c++) norm_channel(a, m, c);
}

/* Elements that a channel has in all pieces. */
static double count_of(const hd_kernel_args *a, image m)
{
    const hd_norm_attrs *at = a->attrs;
    return (double)(at->count ? at->count : m.samples * m.pixels);
}

static void squares_reference(const hd_kernel_args *a)
{
    if (a->tid || !hd_wants(a, 0)) return;
    image m = image_of(&a->in[0]);
    for (int64_t c = 0; c < m.channels; c++) {
        double mean = hd_get(a, 1, c) / count_of(a, m), sum = 0;
        for (int64_t i = 0; i < m.samples * m.pixels; i++) {
            double d = hd_get(a, 0, place(m, c, i)) - mean;
            sum += d * d;
        }
        hd_put(a, 0, c, sum);
    }
}

static void finish_reference(const hd_kernel_args *a)
{
    const hd_norm_attrs *at = a->attrs;
    image m = image_of(&a->in[0]);
    for (int64_t c = 0; !a->tid && c < m.channels; c++) {
        double mean = hd_get(a, 3, c) / count_of(a, m), var = hd_get(a, 4, c) / count_of(a, m), rstd = 1 / sqrt(var + at->eps);
        for (int64_t i = 0; i < m.samples * m.pixels; i++)
            hd_put(a, Y, place(m, c, i), (hd_get(a, 0, place(m, c, i)) - mean) * rstd * hd_get(a, 1, c) + hd_get(a, 2, c));
        hd_put(a, MEAN, c, mean);
        hd_put(a, RSTD, c, rstd);
        hd_put(a, VAR, c, var);
    }
}

/* dx = gamma * rstd * (dy - mean(dy) - xhat * mean(dy * xhat)) */
static void grad_x_reference(const hd_kernel_args *a)
{
    if (a->tid || !hd_wants(a, 0)) return;
    image m = image_of(&a->in[1]);
    for (int64_t c = 0; c < m.channels; c++) {
        double gamma = hd_get(a, 2, c), mean = hd_get(a, 3, c), rstd = hd_get(a, 4, c);
        double mean_dyx = hd_get(a, 5, c) / count_of(a, m), mean_dy = hd_get(a, 6, c) / count_of(a, m);
        for (int64_t i = 0; i < m.samples * m.pixels; i++) {
            int64_t p = place(m, c, i);
            hd_put(a, 0, p, gamma * rstd * (hd_get(a, 0, p) - mean_dy - (hd_get(a, 1, p) - mean) * rstd * mean_dyx));
        }
    }
}

static void grad_gamma_reference(const hd_kernel_args *a)
{
    if (a->tid || !hd_wants(a, 0)) return;
    image m = image_of(&a->in[1]);
    for (int64_t c = 0; c < m.channels; c++) {
        double sum = 0, mean = hd_get(a, 2, c), rstd = hd_get(a, 3, c);
        for (int64_t i = 0; i < m.samples * m.pixels; i++)
            sum += hd_get(a, 0, place(m, c, i)) * (hd_get(a, 1, place(m, c, i)) - mean) * rstd;
        hd_put(a, 0, c, sum);
    }
}

/* ---- samples ---- */

/* x and its dimensions. */
static void sample_image(hd_rng *r, hd_sample *s, int64_t dims[4])
{
    dims[0] = hd_pick(r, 2, 4), dims[1] = hd_pick(r, 1, 5), dims[2] = hd_pick(r, 1, 5), dims[3] = hd_pick(r, 2, 5);
    hd_sample_set(s, 0, HD_F64, 4, dims, HD_FILL_NORMAL, 0);
}

static void sample(hd_rng *r, hd_sample *s)
{
    int64_t dims[4];
    hd_norm_attrs *at = (hd_norm_attrs *)s->attrs;
    sample_image(r, s, dims);
    hd_sample_set(s, 1, HD_F64, 1, &dims[1], HD_FILL_POSITIVE, 0);
    hd_sample_set(s, 2, HD_F64, 1, &dims[1], HD_FILL_NORMAL, 0);
    at->eps = hd_coin(r) ? 1e-5 : 1e-2;
    at->dtype = HD_F64;
}

static void squares_sample(hd_rng *r, hd_sample *s)
{
    int64_t dims[4];
    sample_image(r, s, dims);
    hd_sample_set(s, 1, HD_F64, 1, &dims[1], HD_FILL_NORMAL, 0);
    ((hd_norm_attrs *)s->attrs)->count = hd_coin(r) ? hd_pick(r, 1, 300) : 0;
}

static void finish_sample(hd_rng *r, hd_sample *s)
{
    sample(r, s);
    hd_sample_set(s, 3, HD_F64, 1, s->in[1].shape.dim, HD_FILL_NORMAL, 0);
    hd_sample_set(s, 4, HD_F64, 1, s->in[1].shape.dim, HD_FILL_POSITIVE, 0);
    ((hd_norm_attrs *)s->attrs)->count = hd_coin(r) ? hd_pick(r, 1, 300) : 0;
}

static const hd_attr attrs[] = {{"eps", HD_ATTR_DOUBLE, offsetof(hd_norm_attrs, eps), 1e-5},
                                {"dtype", HD_ATTR_DTYPE, offsetof(hd_norm_attrs, dtype), NAN},
                                {0}};
static const hd_attr piece_attrs[] = {{"eps", HD_ATTR_DOUBLE, offsetof(hd_norm_attrs, eps), 1e-5},
                                      {"count", HD_ATTR_INT64, offsetof(hd_norm_attrs, count), 0},
                                      {"dtype", HD_ATTR_DTYPE, offsetof(hd_norm_attrs, dtype), NAN},
                                      {0}};
static const hd_attr squares_attrs[] = {{"count", HD_ATTR_INT64, offsetof(hd_norm_attrs, count), 0}, {0}};

const hd_op hd_op_batch_norm = {
    .name = "batch_norm",
    .summary = "(x[N, C, H, W], gamma[C], beta[C]) -> (y, mean[C], rstd[C], var[C]): each channel normalised over N, H, W",
    .min_in = 3, .max_in = 3,
    .attrs_size = sizeof(hd_norm_attrs),
    .attrs = attrs,
    .infer = infer,
    .loops = channel_loop,
    .cost = cost,
    .grad = grad,
    .may_alias = may_alias,
    .reference = reference,
    .sample = sample,
};

const hd_op hd_op_batch_norm_squares = {
    .name = "batch_norm_squares",
    .summary = "(x[N, C, H, W], sum[C]) -> squares[C]: of x less its mean, which is sum over the elements of a channel",
    .min_in = 2, .max_in = 2,
    .attrs_size = sizeof(hd_norm_attrs),
    .attrs = squares_attrs,
    .no_gradient = true,
    .infer = squares_infer,
    .loops = summed_loops,
    .localise = localise_count,
    .cost = squares_cost,
    .reference = squares_reference,
    .sample = squares_sample,
};

const hd_op hd_op_batch_norm_finish = {
    .name = "batch_norm_finish",
    .summary = "(x[N, C, H, W], gamma[C], beta[C], sum[C], squares[C]) -> (y, mean[C], rstd[C], var[C]) from what all pieces come to",
    .min_in = 5, .max_in = 5,
    .attrs_size = sizeof(hd_norm_attrs),
    .attrs = piece_attrs,
    .no_gradient = true,
    .infer = finish_infer,
    .loops = mapped_loops,
    .localise = localise_count,
    .cost = finish_cost,
    .may_alias = may_alias,
    .reference = finish_reference,
    .sample = finish_sample,
};

const hd_op hd_op_batch_norm_grad_x = {
    .name = "batch_norm_grad_x",
    .summary = "(dy[N, C, H, W], x[N, C, H, W], gamma[C], mean[C], rstd[C], dgamma[C], dbeta[C]) -> dx of batch_norm",
    .min_in = 7, .max_in = 7,
    .attrs_size = sizeof(hd_norm_attrs),
    .attrs = piece_attrs,
    .linear = {1u | 1u << 5 | 1u << 6},
    .no_gradient = true,
    .is_backward = true,
    .infer = grad_x_infer,
    .loops = mapped_loops,
    .localise = localise_count,
    .cost = grad_x_cost,
    .may_alias = grad_x_may_alias,
    .reference = grad_x_reference,
};

const hd_op hd_op_batch_norm_grad_gamma = {
    .name = "batch_norm_grad_gamma",
    .summary = "(dy[N, C, H, W], x[N, C, H, W], mean[C], rstd[C]) -> dgamma[C] of batch_norm",
    .min_in = 4, .max_in = 4,
    .attrs_size = sizeof(hd_norm_attrs),
    .attrs = attrs,
    .linear = {1},
    .no_gradient = true,
    .is_backward = true,
    .infer = grad_gamma_infer,
    .loops = summed_loops,
    .cost = grad_gamma_cost,
    .reference = grad_gamma_reference,
};
