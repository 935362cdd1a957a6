/* norm.c: layer_norm (Ba et al. 2016) and rms_norm (Zhang and Sennrich 2019) over the last dimension, with the residual addition in front.
 * With s = x + residual, the gradients of x and of residual are the same value: what flows back through y, plus what flows into `sum`. */
#include <math.h>

#include "ops/ops.h"
#include "ops/ops_int.h"

enum { LAYER, RMS }; /* hd_op.code */

/* Operands and results of each, by place; -1 where there is none. */
typedef struct layout { int beta, residual, mean, rstd, sum; } layout;
static const layout forward_layout[] = {[LAYER] = {2, 3, 1, 2, 3}, [RMS] = {-1, 2, -1, 1, 2}};

/* ---- infer ---- */

static int check_attrs(const hd_sig *s, hd_error *err)
{
    const hd_norm_attrs *at = s->attrs;
    int rc = hd_need_result_dtype(s, "dtype", at->dtype, true, err);
    if (rc) return rc;
    if (!(at->eps >= 0) || !isfinite(at->eps)) return hd_op_fail(s, err, "eps must not be negative, is %g", at->eps);
    if (!isfinite(at->offset)) return hd_op_fail(s, err, "offset must be finite");
    return 0;
}

/* Operand i is [..., D] with something to normalise over. */
static int check_rows(const hd_sig *s, int i, const char *name, hd_error *err)
{
    int rc = hd_need_float(s, i, name, err);
    if (!rc) rc = hd_need_rank(s, i, name, 1, HD_MAX_RANK, err);
    if (!rc && s->in[i].shape.rank == 1 && s->in[i].shape.sym >= 0)
        rc = hd_op_fail(s, err, "%s must not be bounded in its last dimension", name);
    return rc;
}

static int64_t features(const hd_type *t)
{
    return t->shape.dim[t->shape.rank - 1];
}

static int infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_norm_attrs *at = s->attrs;
    const layout *p = &forward_layout[s->op->code];
    const hd_type *x = &s->in[0];
    int rc = check_attrs(s, err);
    if (!rc) rc = hd_need_result_dtype(s, "sum_dtype", at->sum_dtype, true, err);
    if (!rc) rc = check_rows(s, 0, "x", err);
    if (!rc) rc = hd_need_vector(s, 1, "gamma", features(x), err);
    if (!rc && p->beta >= 0 && hd_sig_has(s, p->beta)) rc = hd_need_vector(s, p->beta, "beta", features(x), err);
    if (!rc && hd_sig_has(s, p->residual)) rc = hd_need_shape(s, p->residual, "residual", &x->shape, err);
    if (rc) return rc;
    hd_shape rows = hd_shape_drop_last(&x->shape);
    out[0] = hd_type_shaped(at->dtype, &x->shape);
    if (p->mean >= 0) out[p->mean] = hd_type_shaped(hd_stat_dtype(x->dtype), &rows);
    out[p->rstd] = hd_type_shaped(hd_stat_dtype(x->dtype), &rows);
    out[p->sum] = hd_type_shaped(at->sum_dtype, &x->shape);
    return p->sum + 1;
}

/* (dy, s, gamma, [mean,] rstd, add?) */
static int grad_x_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_norm_attrs *at = s->attrs;
    int rc = check_attrs(s, err), i = 3;
    if (!rc) rc = check_rows(s, 1, "s", err);
    if (!rc) rc = hd_need_shape(s, 0, "dy", &s->in[1].shape, err);
    if (!rc) rc = hd_need_vector(s, 2, "gamma", features(&s->in[1]), err);
    if (rc) return rc;
    hd_shape rows = hd_shape_drop_last(&s->in[1].shape);
    if (s->op->code == LAYER) rc = hd_need_shape(s, i++, "mean", &rows, err);
    if (!rc) rc = hd_need_shape(s, i++, "rstd", &rows, err);
    if (!rc && hd_sig_has(s, i)) rc = hd_need_shape(s, i, "add", &s->in[1].shape, err);
    if (rc) return rc;
    out[0] = hd_type_shaped(at->dtype, &s->in[1].shape);
    return 1;
}

/* (dy, s, [mean,] rstd) */
static int grad_gamma_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    int rc = check_rows(s, 1, "s", err), i = 2;
    if (!rc) rc = hd_need_shape(s, 0, "dy", &s->in[1].shape, err);
    if (rc) return rc;
    hd_shape rows = hd_shape_drop_last(&s->in[1].shape);
    if (s->op->code == LAYER) rc = hd_need_shape(s, i++, "mean", &rows, err);
    if (!rc) rc = hd_need_shape(s, i, "rstd", &rows, err);
    if (rc) return rc;
    int64_t d = features(&s->in[1]);
    out[0] = hd_type_of(hd_stat_dtype(s->in[1].dtype), 1, &d);
    return 1;
}

/* ---- loops: rows split, features stay whole ---- */

/* Maps loop to the dimension d of every operand and result that has rows: all but gamma and beta. rows is the number of row dimensions. */
static void map_row(const hd_sig *s, hd_loops *l, int loop, int d, int rows, uint32_t vectors)
{
    for (int i = 0; i < s->n_in; i++)
        if (hd_sig_has(s, i) && !(vectors >> i & 1)) hd_loop_in(l, i, d, loop);
    for (int r = 0; r < s->n_out; r++)
        if (s->out[r].shape.rank >= rows) hd_loop_out(l, r, d, loop);
}

static void loops(const hd_sig *s, hd_loops *l)
{
    int rows = s->in[0].shape.rank - 1;
    uint32_t vectors = s->op->code == LAYER ? 1u << 1 | 1u << 2 : 1u << 1;
    for (int d = 0; d < rows; d++) map_row(s, l, hd_loop_new(l, s->in[0].shape.dim[d], false), d, rows, vectors);
}

static void grad_x_loops(const hd_sig *s, hd_loops *l)
{
    int rows = s->in[0].shape.rank - 1;
    for (int d = 0; d < rows; d++) map_row(s, l, hd_loop_new(l, s->in[0].shape.dim[d], false), d, rows, 1u << 2);
}

/* Each feature's gradient is a sum over rows, and needs no other feature. */
static void grad_gamma_loops(const hd_sig *s, hd_loops *l)
{
    int rows = s->in[0].shape.rank - 1;
    for (int d = 0; d <= rows; d++) {
        int loop = hd_loop_new(l, s->in[0].shape.dim[d], d < rows);
        for (int i = 0; i < s->n_in; i++)
            if (d < s->in[i].shape.rank) hd_loop_in(l, i, d, loop);
        if (d == rows) hd_loop_out(l, 0, 0, loop);
    }
}

/* ---- cost, in operations per element ---- */

static void cost_per_element(const hd_sig *s, hd_cost *c, double flops)
{
    c->flops = flops * (double)hd_shape_count(&s->in[0].shape);
    c->bytes = hd_cost_bytes(s);
}

/* Mean 1, variance 3, normalising 2, gamma and beta 1 each; RMS: squares 2, scaling 2. */
static void cost(const hd_sig *s, hd_cost *c)
{
    const layout *p = &forward_layout[s->op->code];
    double beta = p->beta >= 0 && hd_sig_has(s, p->beta), residual = hd_sig_has(s, p->residual);
    cost_per_element(s, c, (s->op->code == LAYER ? 7 : 4) + beta + residual);
}

static void grad_x_cost(const hd_sig *s, hd_cost *c)
{
    cost_per_element(s, c, (s->op->code == LAYER ? 11 : 8) + hd_sig_has(s, s->op->code == LAYER ? 5 : 4));
}

static void grad_gamma_cost(const hd_sig *s, hd_cost *c)
{
    cost_per_element(s, c, s->op->code == LAYER ? 4 : 3);
}

/* ---- gradients ---- */

/* What was normalised: x itself, or the sum with the residual. */
static hd_value normalised(const hd_node *n)
{
    const layout *p = &forward_layout[n->op->code];
    bool residual = p->residual < n->n_in && n->in[p->residual] != HD_NONE;
    return residual ? n->out[p->sum] : n->in[0];
}

/* One value for x and for residual, in the wider of their dtypes, so that the two calls build equal nodes. */
static hd_dtype grad_s_dtype(const hd_graph *g, const hd_node *n)
{
    const layout *p = &forward_layout[n->op->code];
    hd_dtype t = hd_grad_dtype(g, n->in[0]);
    if (p->residual >= n->n_in || n->in[p->residual] == HD_NONE) return t;
    return hd_float_wider(t, hd_grad_dtype(g, n->in[p->residual]));
}

static hd_value grad_s(hd_graph *g, const hd_node *n, const hd_value *dy)
{
    const layout *p = &forward_layout[n->op->code];
    hd_norm_attrs at = *(const hd_norm_attrs *)n->attrs;
    if (dy[0] == HD_NONE) return dy[p->sum];
    at.dtype = at.sum_dtype = grad_s_dtype(g, n);
    hd_value in[6] = {dy[0], normalised(n), n->in[1]};
    int k = 3;
    if (p->mean >= 0) in[k++] = n->out[p->mean];
    in[k++] = n->out[p->rstd];
    if (dy[p->sum] != HD_NONE) in[k++] = dy[p->sum];
    return hd_graph_node(g, n->op->code == LAYER ? "layer_norm_grad_x" : "rms_norm_grad_x", NULL, &at, in, k);
}

static hd_value grad_gamma(hd_graph *g, const hd_node *n, hd_value dy)
{
    const layout *p = &forward_layout[n->op->code];
    if (dy == HD_NONE) return HD_NONE;
    hd_value in[4] = {dy, normalised(n)};
    int k = 2;
    if (p->mean >= 0) in[k++] = n->out[p->mean];
    in[k++] = n->out[p->rstd];
    return hd_graph_node(g, n->op->code == LAYER ? "layer_norm_grad_gamma" : "rms_norm_grad_gamma", NULL, n->attrs, in, k);
}

static hd_value grad(hd_graph *g, const hd_node *n, const hd_value *dy, int i)
{
    const layout *p = &forward_layout[n->op->code];
    if (p->mean >= 0 && dy[p->mean] != HD_NONE) return hd_grad_refuse(g, n, "mean");
    if (dy[p->rstd] != HD_NONE) return hd_grad_refuse(g, n, "rstd");
    if (n->in[i] == HD_NONE) return HD_NONE;
    if (i == 1) return hd_grad_fit(g, grad_gamma(g, n, dy[0]), n->in[1]);
    if (i == p->beta) return hd_grad_bias(g, dy[0], n->in[i]);
    return hd_grad_fit(g, grad_s(g, n, dy), n->in[i]);
}

/* y over x or residual, sum over residual or x. */
static uint32_t may_alias(const hd_sig *s, int result)
{
    const layout *p = &forward_layout[s->op->code];
    uint32_t rows = 1u << 0 | 1u << p->residual;
    return result == 0 || result == p->sum ? hd_alias_same_type(s, result) & rows : 0;
}

/* dx over dy, s or add. */
static uint32_t grad_x_may_alias(const hd_sig *s, int result)
{
    uint32_t rows = 3u | 1u << (s->op->code == LAYER ? 5 : 4);
    return hd_alias_same_type(s, result) & rows;
}

/* ---- reference ---- */

/* One row's view of the operands. */
typedef struct row_stats { double mean, rstd; } row_stats;

static double summed(const hd_kernel_args *a, const layout *p, int64_t i)
{
    return hd_get(a, 0, i) + (hd_given(a, p->residual) ? hd_get(a, p->residual, i) : 0);
}

static row_stats stats_of_row(const hd_kernel_args *a, const layout *p, int64_t at, int64_t n)
{
    const hd_norm_attrs *attrs = a->attrs;
    double mean = 0, square = 0;
    if (p->mean >= 0)
        for (int64_t i = 0; i < n; i++) mean += summed(a, p, at + i) / (double)n;
    for (int64_t i = 0; i < n; i++) {
        double d = summed(a, p, at + i) - mean;
        square += d * d;
    }
    return (row_stats){mean, 1 / sqrt(square / (double)n + attrs->eps)};
}

/* Everything of an element is read before anything of it is written: y and sum may lie over x and residual. */
static void norm_row(const hd_kernel_args *a, const layout *p, int64_t at, int64_t n, row_stats t)
{
    const hd_norm_attrs *attrs = a->attrs;
    double offset = a->code == RMS ? attrs->offset : 0;
    for (int64_t i = 0; i < n; i++) {
        double s = summed(a, p, at + i);
        double y = (s - t.mean) * t.rstd * (hd_get(a, 1, i) + offset);
        if (p->beta >= 0 && hd_given(a, p->beta)) y += hd_get(a, p->beta, i);
        hd_put(a, 0, at + i, y);
        hd_put(a, p->sum, at + i, s);
    }
}

static void reference(const hd_kernel_args *a)
{
    const layout *p = &forward_layout[a->code];
    int64_t rows, n;
    if (a->tid) return;
    hd_rows_of(&a->in[0], &rows, &n);
    for (int64_t r = 0; r < rows; r++) {
        row_stats t = stats_of_row(a, p, r * n, n);
        norm_row(a, p, r * n, n, t);
        if (p->mean >= 0) hd_put(a, p->mean, r, t.mean);
        hd_put(a, p->rstd, r, t.rstd);
    }
}

/* With h = dy * (gamma + offset) and xhat = (s - mean) * rstd:
 * dx = rstd * (h - mean(h) - xhat * mean(h * xhat)); RMS has no mean(h). */
static void grad_x_row(const hd_kernel_args *a, int64_t r, int64_t n, row_stats t)
{
    const hd_norm_attrs *at = a->attrs;
    double offset = a->code == RMS ? at->offset : 0, mean_h = 0, mean_hx = 0;
    int add = a->code == LAYER ? 5 : 4;
    for (int64_t i = 0; i < n; i++) {
        double h = hd_get(a, 0, r * n + i) * (hd_get(a, 2, i) + offset);
        if (a->code == LAYER) mean_h += h / (double)n;
        mean_hx += h * (hd_get(a, 1, r * n + i) - t.mean) * t.rstd / (double)n;
    }
    for (int64_t i = 0; i < n; i++) {
        double h = hd_get(a, 0, r * n + i) * (hd_get(a, 2, i) + offset);
        double dx = t.rstd * (h - mean_h - (hd_get(a, 1, r * n + i) - t.mean) * t.rstd * mean_hx);
        hd_put(a, 0, r * n + i, dx + (hd_given(a, add) ? hd_get(a, add, r * n + i) : 0));
    }
}

static void grad_x_reference(const hd_kernel_args *a)
{
    int64_t rows, n;
    if (a->tid || !hd_wants(a, 0)) return;
    hd_rows_of(&a->in[1], &rows, &n);
    for (int64_t r = 0; r < rows; r++) {
        row_stats t = {a->code == LAYER ? hd_get(a, 3, r) : 0, hd_get(a, a->code == LAYER ? 4 : 3, r)};
        grad_x_row(a, r, n, t);
    }
}

static void grad_gamma_reference(const hd_kernel_args *a)
{
    int64_t rows, n;
    if (a->tid || !hd_wants(a, 0)) return;
    hd_rows_of(&a->in[1], &rows, &n);
    for (int64_t i = 0; i < n; i++) {
        double sum = 0;
        for (int64_t r = 0; r < rows; r++) {
            double mean = a->code == LAYER ? hd_get(a, 2, r) : 0, rstd = hd_get(a, a->code == LAYER ? 3 : 2, r);
            sum += hd_get(a, 0, r * n + i) * (hd_get(a, 1, r * n + i) - mean) * rstd;
        }
        hd_put(a, 0, i, sum);
    }
}

/* ---- samples ---- */

static void sample_for(hd_rng *r, hd_sample *s, int code)
{
    const layout *p = &forward_layout[code];
    hd_norm_attrs *at = (hd_norm_attrs *)s->attrs;
    int64_t dims[HD_MAX_RANK];
    int rank = hd_sample_dims(r, 1, 3, 5, dims);
    dims[rank - 1] = hd_pick(r, 2, 41);
    hd_sample_set(s, 0, HD_F64, rank, dims, HD_FILL_NORMAL, 0);
    hd_sample_set(s, 1, HD_F64, 1, &dims[rank - 1], HD_FILL_POSITIVE, 0);
    if (p->beta >= 0) {
        if (hd_coin(r)) hd_sample_set(s, p->beta, HD_F64, 1, &dims[rank - 1], HD_FILL_NORMAL, 0);
        else hd_sample_absent(s, p->beta);
    }
    if (hd_coin(r)) hd_sample_set(s, p->residual, HD_F64, rank, dims, HD_FILL_NORMAL, 0);
    else if (hd_coin(r)) hd_sample_absent(s, p->residual);
    at->eps = hd_coin(r) ? 1e-5 : 1e-2;
    at->offset = code == RMS && hd_coin(r) ? 1 : 0;
    at->dtype = at->sum_dtype = HD_F64;
}

static void layer_sample(hd_rng *r, hd_sample *s) { sample_for(r, s, LAYER); }
static void rms_sample(hd_rng *r, hd_sample *s) { sample_for(r, s, RMS); }

/* ---- the table ---- */

static const hd_attr layer_attrs[] = {{"eps", HD_ATTR_DOUBLE, offsetof(hd_norm_attrs, eps), 1e-5},
                                      {"dtype", HD_ATTR_DTYPE, offsetof(hd_norm_attrs, dtype), NAN},
                                      {"sum_dtype", HD_ATTR_DTYPE, offsetof(hd_norm_attrs, sum_dtype), NAN},
                                      {0}};
static const hd_attr rms_attrs[] = {{"eps", HD_ATTR_DOUBLE, offsetof(hd_norm_attrs, eps), 1e-6},
                                    {"offset", HD_ATTR_DOUBLE, offsetof(hd_norm_attrs, offset), 0},
                                    {"dtype", HD_ATTR_DTYPE, offsetof(hd_norm_attrs, dtype), NAN},
                                    {"sum_dtype", HD_ATTR_DTYPE, offsetof(hd_norm_attrs, sum_dtype), NAN},
                                    {0}};

#define NORM                                                                                                        \
    .attrs_size = sizeof(hd_norm_attrs), .infer = infer, .loops = loops, .cost = cost, .grad = grad, .may_alias = may_alias, \
    .reference = reference
#define GRAD_X                                                                                                               \
    .attrs_size = sizeof(hd_norm_attrs), .is_backward = true, .no_gradient = true, .infer = grad_x_infer, .loops = grad_x_loops, \
    .cost = grad_x_cost, .may_alias = grad_x_may_alias, .reference = grad_x_reference
#define GRAD_GAMMA                                                                                                          \
    .attrs_size = sizeof(hd_norm_attrs), .is_backward = true, .no_gradient = true, .can_accumulate = true, .linear = {1},    \
    .infer = grad_gamma_infer, .loops = grad_gamma_loops, .cost = grad_gamma_cost, .reference = grad_gamma_reference

const hd_op hd_op_layer_norm = {
    .name = "layer_norm", .code = LAYER, .min_in = 2, .max_in = 4, .attrs = layer_attrs, NORM, .sample = layer_sample,
    .summary = "(x[..., D], gamma[D], beta[D]?, residual[..., D]?) -> (y, mean[...], rstd[...], sum): s = x + residual normalised over D"};
const hd_op hd_op_layer_norm_grad_x = {
    .name = "layer_norm_grad_x", .code = LAYER, .min_in = 5, .max_in = 6, .attrs = layer_attrs, .linear = {1 | 32}, GRAD_X,
    .summary = "(dy[..., D], s[..., D], gamma[D], mean[...], rstd[...], add[..., D]?) -> dx of layer_norm, plus add"};
const hd_op hd_op_layer_norm_grad_gamma = {
    .name = "layer_norm_grad_gamma", .code = LAYER, .min_in = 4, .max_in = 4, .attrs = layer_attrs, GRAD_GAMMA,
    .summary = "(dy[..., D], s[..., D], mean[...], rstd[...]) -> dgamma[D] of layer_norm"};
const hd_op hd_op_rms_norm = {
    .name = "rms_norm", .code = RMS, .min_in = 2, .max_in = 3, .attrs = rms_attrs, NORM, .sample = rms_sample,
    .summary = "(x[..., D], gamma[D], residual[..., D]?) -> (y, rstd[...], sum): s = x + residual over its RMS, times gamma + offset"};
const hd_op hd_op_rms_norm_grad_x = {
    .name = "rms_norm_grad_x", .code = RMS, .min_in = 4, .max_in = 5, .attrs = rms_attrs, .linear = {1 | 16}, GRAD_X,
    .summary = "(dy[..., D], s[..., D], gamma[D], rstd[...], add[..., D]?) -> dx of rms_norm, plus add"};
const hd_op hd_op_rms_norm_grad_gamma = {
    .name = "rms_norm_grad_gamma", .code = RMS, .min_in = 3, .max_in = 3, .attrs = rms_attrs, GRAD_GAMMA,
    .summary = "(dy[..., D], s[..., D], rstd[...]) -> dgamma[D] of rms_norm"};
