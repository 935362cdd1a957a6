/* norm.c: layer_norm, rms_norm and their gradients (Ba et al. 2016; Zhang and Sennrich 2019).
 *
 * One row at a time: it is read once into a buffer of the thread, and everything else happens there. */
#include "kernels/cpu/isa/columns.h"
#include "kernels/cpu/isa/rows.h"

#if HD_ISA_LEVEL <= 2

/* Per thread: two padded rows. */
static size_t workspace_rows(const hd_kernel_args *a, int threads)
{
    return (size_t)threads * 2 * (size_t)hd_round_up(tensor_columns(&a->in[0]) + 1, 64) * sizeof(float);
}

static float *thread_rows(const hd_kernel_args *a, int64_t d)
{
    return (float *)a->workspace + (size_t)a->tid * 2 * (size_t)hd_round_up(d + 1, 64);
}

HD_INLINE vf sum_term_deviation(vf x, vf y, float mean)
{
    (void)y;
    return (x - mean) * (x - mean);
}

/* sum over [0, d) of (x - mean)^2: the padding is zero, so it goes in as mean^2 and is taken off lane by lane at the end. */
static double row_deviation(float *x, int64_t d, float mean)
{
    for (int64_t j = d; j % HD_VL != 0; j++) x[j] = mean;
    double sum = row_sum_of(x, x, d, sum_term_deviation, mean);
    for (int64_t j = d; j % HD_VL != 0; j++) x[j] = 0;
    return sum;
}

/* s = x + residual into the buffer; optionally stored as `sum`. */
static void load_sum(float *s, const hd_tensor *x, const hd_tensor *residual, const hd_tensor *sum, int64_t at, int64_t d)
{
    row_load(s, x->data, x->dtype, at, d);
    if (residual) {
        hd_tensor r = *residual;
        for (int64_t j = 0; j < d; j += HD_VL) vf_store(s + j, vf_load(s + j) + vf_load_upto(r.data, r.dtype, at + j, lanes_left(d, j)));
    }
    if (sum) row_store(sum->data, sum->dtype, at, s, d);
}

static const hd_tensor *optional(const hd_kernel_args *a, int i)
{
    return i < a->n_in && a->in[i].data ? &a->in[i] : NULL;
}

static hd_tensor *result(const hd_kernel_args *a, int i)
{
    return i < a->n_out && a->out[i].data ? &a->out[i] : NULL;
}

/* y = (s - mean) * rstd * (gamma + offset) + beta for the row at `at`. The tensors are copies, so that stores can't be taken to change
 * them; an absent beta has no data. */
static void normalise_row(hd_tensor y, int64_t at, int64_t d, const float *s, float mean, float rstd, hd_tensor gamma, float offset,
                          hd_tensor beta)
{
    for (int64_t j = 0; j < d; j += HD_VL) {
        int n = lanes_left(d, j);
        vf g = vf_load_upto(gamma.data, gamma.dtype, j, n) + offset;
        vf v = (vf_load(s + j) - mean) * rstd;
        v = beta.data ? vf_fma(v, g, vf_load_upto(beta.data, beta.dtype, j, n)) : v * g;
        vf_store_upto(y.data, y.dtype, at + j, v, n);
    }
}

static void run_layer_norm(const hd_kernel_args *a)
{
    const hd_norm_attrs *at = a->attrs;
    int64_t d = tensor_columns(&a->in[0]), begin, end;
    hd_tensor beta = optional(a, 2) ? a->in[2] : (hd_tensor){0}, *mean_out = result(a, 1), *rstd_out = result(a, 2);
    float *s = thread_rows(a, d);
    hd_split(tensor_rows(&a->in[0]), 1, a->tid, a->threads, &begin, &end);
    for (int64_t r = begin; r < end && d > 0; r++) {
        load_sum(s, &a->in[0], optional(a, 3), result(a, 3), r * d, d);
        float mean = (float)(row_sum(s, d) / (double)d);
        float rstd = (float)(1 / sqrt(row_deviation(s, d, mean) / (double)d + at->eps));
        if (a->out[0].data) normalise_row(a->out[0], r * d, d, s, mean, rstd, a->in[1], 0, beta);
        if (mean_out) ((float *)mean_out->data)[r] = mean;
        if (rstd_out) ((float *)rstd_out->data)[r] = rstd;
    }
}

static void run_rms_norm(const hd_kernel_args *a)
{
    const hd_norm_attrs *at = a->attrs;
    int64_t d = tensor_columns(&a->in[0]), begin, end;
    hd_tensor *rstd_out = result(a, 1);
    float *s = thread_rows(a, d);
    hd_split(tensor_rows(&a->in[0]), 1, a->tid, a->threads, &begin, &end);
    for (int64_t r = begin; r < end && d > 0; r++) {
        load_sum(s, &a->in[0], optional(a, 2), result(a, 2), r * d, d);
        float rstd = (float)(1 / sqrt(row_dot(s, s, d) / (double)d + at->eps));
        if (a->out[0].data) normalise_row(a->out[0], r * d, d, s, 0, rstd, a->in[1], (float)at->offset, (hd_tensor){0});
        if (rstd_out) ((float *)rstd_out->data)[r] = rstd;
    }
}

/* g = dy * (gamma + offset) and xhat = (s - mean) * rstd into padded buffers. */
static void load_gradient(float *g, float *xhat, const hd_kernel_args *a, int64_t at, int64_t d, float mean, float rstd, float offset)
{
    hd_tensor dy = a->in[0], s = a->in[1], gamma = a->in[2];
    for (int64_t j = 0; j < d; j += HD_VL) {
        int n = lanes_left(d, j);
        vf weight = vf_load_upto(gamma.data, gamma.dtype, j, n) + offset;
        vf_store(g + j, vf_load_upto(dy.data, dy.dtype, at + j, n) * weight);
        vf_store(xhat + j, (vf_load_upto(s.data, s.dtype, at + j, n) - mean) * rstd);
    }
    for (int64_t j = d; j % HD_VL != 0; j++) xhat[j] = 0;
}

/* dx = rstd * (g - mean(g) - xhat * mean(g * xhat)) + add; without the first mean for rms_norm. */
static void store_gradient(hd_tensor dx, hd_tensor add, int64_t at, int64_t d, const float *g, const float *xhat, float rstd, float mean_g,
                           float mean_gx)
{
    for (int64_t j = 0; j < d; j += HD_VL) {
        int n = lanes_left(d, j);
        vf v = vf_fnma(vf_load(xhat + j), vf_set1(mean_gx), vf_load(g + j) - mean_g) * rstd;
        if (add.data) v = v + vf_load_upto(add.data, add.dtype, at + j, n);
        vf_store_upto(dx.data, dx.dtype, at + j, v, n);
    }
}

static void norm_grad_x(const hd_kernel_args *a, bool centred, const float *mean, const float *rstd, float offset, const hd_tensor *add)
{
    int64_t d = tensor_columns(&a->in[0]), begin, end;
    float *g = thread_rows(a, d), *xhat = g + hd_round_up(d + 1, 64);
    hd_split(tensor_rows(&a->in[0]), 1, a->tid, a->threads, &begin, &end);
    if (!a->out[0].data) return;
    for (int64_t r = begin; r < end && d > 0; r++) {
        load_gradient(g, xhat, a, r * d, d, centred ? mean[r] : 0, rstd[r], offset);
        float mean_g = centred ? (float)(row_sum(g, d) / (double)d) : 0;
        float mean_gx = (float)(row_dot(g, xhat, d) / (double)d);
        store_gradient(a->out[0], add ? *add : (hd_tensor){0}, r * d, d, g, xhat, rstd[r], mean_g, mean_gx);
    }
}

static void run_layer_norm_grad_x(const hd_kernel_args *a)
{
    norm_grad_x(a, true, a->in[3].data, a->in[4].data, 0, optional(a, 5));
}

static void run_rms_norm_grad_x(const hd_kernel_args *a)
{
    const hd_norm_attrs *at = a->attrs;
    norm_grad_x(a, false, NULL, a->in[3].data, (float)at->offset, optional(a, 4));
}

/* ---- dgamma: a sum over rows of dy * xhat ---- */

HD_INLINE vf term_layer_gamma(const column_source *c, int64_t row, int64_t at, int n)
{
    vf dy = vf_load_upto(c->x->data, c->x->dtype, at, n), s = vf_load_upto(c->s->data, c->s->dtype, at, n);
    return dy * ((s - c->mean[row]) * c->rstd[row]);
}

HD_INLINE vf term_rms_gamma(const column_source *c, int64_t row, int64_t at, int n)
{
    vf dy = vf_load_upto(c->x->data, c->x->dtype, at, n), s = vf_load_upto(c->s->data, c->s->dtype, at, n);
    return dy * (s * c->rstd[row]);
}

static size_t workspace_gamma(const hd_kernel_args *a, int threads)
{
    (void)threads;
    return column_workspace(tensor_rows(&a->in[0]), tensor_columns(&a->in[0]));
}

static void run_layer_norm_grad_gamma(const hd_kernel_args *a)
{
    column_source c = {.x = &a->in[0], .s = &a->in[1], .mean = a->in[2].data, .rstd = a->in[3].data};
    column_sum(a, &c, tensor_rows(c.x), tensor_columns(c.x), 1, term_layer_gamma);
}

static void run_rms_norm_grad_gamma(const hd_kernel_args *a)
{
    column_source c = {.x = &a->in[0], .s = &a->in[1], .rstd = a->in[2].data};
    column_sum(a, &c, tensor_rows(c.x), tensor_columns(c.x), 1, term_rms_gamma);
}

static bool supports_norm(const hd_kernel_args *a)
{
    return !a->accumulate && operands_are_vf(a, 0, a->n_in - 1) && results_are_vf(a) && a->in[0].rank > 0;
}

static bool supports_gamma(const hd_kernel_args *a)
{
    return operands_are_vf(a, 0, a->n_in - 1) && a->out[0].dtype == HD_F32 && a->in[0].rank > 0;
}

const hd_kernel HD_ISA(hd_kernels_norm)[] = {
    {"layer_norm", supports_norm, workspace_rows, run_layer_norm},
    {"layer_norm_grad_x", supports_norm, workspace_rows, run_layer_norm_grad_x},
    {"layer_norm_grad_gamma", supports_gamma, workspace_gamma, run_layer_norm_grad_gamma},
    {"rms_norm", supports_norm, workspace_rows, run_rms_norm},
    {"rms_norm_grad_x", supports_norm, workspace_rows, run_rms_norm_grad_x},
    {"rms_norm_grad_gamma", supports_gamma, workspace_gamma, run_rms_norm_grad_gamma},
    {0},
};

#else
const hd_kernel HD_ISA(hd_kernels_norm)[] = {{0}};
#endif
