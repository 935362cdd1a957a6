/* image.c: batch_norm (Ioffe and Szegedy 2015) and pooling over [N, C, H, W], one channel or plane at a time. */
#include "kernels/cpu/isa/rows.h"

#if HD_ISA_LEVEL <= 2

typedef struct image {
    int64_t samples, channels, pixels;
} image;

static image image_of(const hd_tensor *x)
{
    return (image){x->dim[0], x->dim[1], x->dim[2] * x->dim[3]};
}

/* Sums over one channel, samples ascending, of x, of x * (y - mean), or of (x - mean)^2: see channel_sum. */
typedef enum channel_term { TERM_X, TERM_X_DEVIATION, TERM_SQUARE } channel_term;

static double channel_sum(image m, int64_t c, const hd_tensor *x, const hd_tensor *y, float mean, channel_term term)
{
    _Alignas(64) float bx[HD_SUM_BLOCK], by[HD_SUM_BLOCK];
    double total = 0;
    for (int64_t n = 0; n < m.samples; n++) {
        int64_t at = (n * m.channels + c) * m.pixels;
        for (int64_t p = 0; p < m.pixels; p += HD_SUM_BLOCK) {
            int64_t k = m.pixels - p < HD_SUM_BLOCK ? m.pixels - p : HD_SUM_BLOCK;
            row_load(bx, x->data, x->dtype, at + p, k);
            if (term == TERM_X) {
                total += row_sum(bx, k);
                continue;
            }
            row_load(by, y->data, y->dtype, at + p, k);
            for (int64_t j = 0; j < k; j++) by[j] -= mean;
            total += row_dot(term == TERM_SQUARE ? by : bx, by, k);
        }
    }
    return total;
}

/* out = (x - mean) * gain + shift + extra * y over one channel; y may be NULL. */
static void channel_map(image m, int64_t c, const hd_tensor *out, const hd_tensor *x, float mean, float gain, float shift,
                        const hd_tensor *y, float extra)
{
    for (int64_t n = 0; n < m.samples; n++) {
        int64_t at = (n * m.channels + c) * m.pixels;
        for (int64_t p = 0; p < m.pixels; p += HD_VL) {
            int k = lanes_left(m.pixels, p);
            vf v = vf_fma(vf_load_upto(x->data, x->dtype, at + p, k) - mean, vf_set1(gain), vf_set1(shift));
            if (y) v = vf_fma(vf_load_upto(y->data, y->dtype, at + p, k), vf_set1(extra), v);
            vf_store_upto(out->data, out->dtype, at + p, v, k);
        }
    }
}

static void store_channel(const hd_kernel_args *a, int i, int64_t c, double v)
{
    if (i < a->n_out && a->out[i].data) ((float *)a->out[i].data)[c] = (float)v;
}

static void run_batch_norm(const hd_kernel_args *a)
{
    const hd_norm_attrs *at = a->attrs;
    const hd_tensor *x = &a->in[0], *gamma = &a->in[1], *beta = &a->in[2];
    image m = image_of(x);
    double count = (double)(m.samples * m.pixels);
    int64_t begin, end;
    hd_split(m.channels, 1, a->tid, a->threads, &begin, &end);
    for (int64_t c = begin; c < end; c++) {
        double mean = channel_sum(m, c, x, NULL, 0, TERM_X) / count;
        double var = channel_sum(m, c, x, x, (float)mean, TERM_SQUARE) / count, rstd = 1 / sqrt(var + at->eps);
        float gain = (float)rstd * f32_load_as(gamma->data, gamma->dtype, c);
        if (a->out[0].data) channel_map(m, c, &a->out[0], x, (float)mean, gain, f32_load_as(beta->data, beta->dtype, c), NULL, 0);
        store_channel(a, 1, c, mean);
        store_channel(a, 2, c, rstd);
        store_channel(a, 3, c, var);
    }
}

/* Elements that a channel has in all pieces. */
static double count_of(const hd_kernel_args *a, image m)
{
    const hd_norm_attrs *at = a->attrs;
    return (double)(at->count ? at->count : m.samples * m.pixels);
}

static void run_batch_norm_squares(const hd_kernel_args *a)
{
    const hd_tensor *x = &a->in[0];
    image m = image_of(x);
    int64_t begin, end;
    hd_split(m.channels, 1, a->tid, a->threads, &begin, &end);
    for (int64_t c = begin; c < end; c++)
        store_channel(a, 0, c, channel_sum(m, c, x, x, (float)(f32_load_as(a->in[1].data, a->in[1].dtype, c) / count_of(a, m)), TERM_SQUARE));
}

static void run_batch_norm_finish(const hd_kernel_args *a)
{
    const hd_norm_attrs *at = a->attrs;
    const hd_tensor *gamma = &a->in[1], *beta = &a->in[2];
    image m = image_of(&a->in[0]);
    int64_t begin, end;
    hd_split(m.channels, 1, a->tid, a->threads, &begin, &end);
    for (int64_t c = begin; c < end; c++) {
        double mean = f32_load_as(a->in[3].data, a->in[3].dtype, c) / count_of(a, m);
        double var = f32_load_as(a->in[4].data, a->in[4].dtype, c) / count_of(a, m), rstd = 1 / sqrt(var + at->eps);
        float gain = (float)rstd * f32_load_as(gamma->data, gamma->dtype, c);
        if (a->out[0].data) channel_map(m, c, &a->out[0], &a->in[0], (float)mean, gain, f32_load_as(beta->data, beta->dtype, c), NULL, 0);
        store_channel(a, 1, c, mean);
        store_channel(a, 2, c, rstd);
        store_channel(a, 3, c, var);
    }
}

/* dx = gamma * rstd * (dy - mean(dy) - xhat * mean(dy * xhat)) */
static void run_batch_norm_grad_x(const hd_kernel_args *a)
{
    const hd_tensor *dy = &a->in[0], *x = &a->in[1], *gamma = &a->in[2];
    const float *mean = a->in[3].data, *rstd = a->in[4].data;
    image m = image_of(x);
    int64_t begin, end;
    if (!a->out[0].data) return;
    hd_split(m.channels, 1, a->tid, a->threads, &begin, &end);
    for (int64_t c = begin; c < end; c++) {
        double slope = f32_load_as(a->in[5].data, a->in[5].dtype, c) / count_of(a, m) * rstd[c];
        double mean_dy = f32_load_as(a->in[6].data, a->in[6].dtype, c) / count_of(a, m);
        float gain = f32_load_as(gamma->data, gamma->dtype, c) * rstd[c];
        channel_map(m, c, &a->out[0], x, mean[c], (float)(-gain * slope), (float)(-gain * mean_dy), dy, gain);
    }
}

static void run_batch_norm_grad_gamma(const hd_kernel_args *a)
{
    const float *mean = a->in[2].data, *rstd = a->in[3].data;
    image m = image_of(&a->in[1]);
    int64_t begin, end;
    if (!a->out[0].data) return;
    hd_split(m.channels, 1, a->tid, a->threads, &begin, &end);
    for (int64_t c = begin; c < end; c++) {
        double sum = channel_sum(m, c, &a->in[0], &a->in[1], mean[c], TERM_X_DEVIATION) * rstd[c];
        f32_store_as(a->out[0].data, HD_F32, c, (float)(a->accumulate ? sum + ((float *)a->out[0].data)[c] : sum));
    }
}

static bool supports_batch_norm(const hd_kernel_args *a)
{
    return !a->accumulate && operands_are_vf(a, 0, a->n_in - 1) && results_are_vf(a) && a->in[0].rank == 4;
}

static bool supports_batch_gamma(const hd_kernel_args *a)
{
    return operands_are_vf(a, 0, a->n_in - 1) && a->out[0].dtype == HD_F32 && a->in[0].rank == 4;
}

/* ---- pooling: windows of a plane ---- */

typedef struct window {
    int64_t first[2], last[2]; /* taps [first, last) that fall inside the plane, of rows and columns */
    int64_t origin[2];         /* the plane's row and column of tap 0 */
} window;

static window window_at(const hd_conv_attrs *p, const int64_t in[2], int64_t i, int64_t j)
{
    int64_t at[2] = {i, j};
    window w;
    for (int d = 0; d < 2; d++) {
        int64_t step = p->dilation[d] > 0 ? p->dilation[d] : 1;
        w.origin[d] = at[d] * p->stride[d] - p->pad[d];
        w.first[d] = w.origin[d] < 0 ? (-w.origin[d] + step - 1) / step : 0;
        w.last[d] = w.origin[d] >= in[d] ? 0 : (in[d] - w.origin[d] + step - 1) / step;
        if (w.last[d] > p->kernel[d]) w.last[d] = p->kernel[d];
    }
    return w;
}

/* Index within the plane of tap (ki, kj). */
static int64_t tap_at(const hd_conv_attrs *p, const window *w, const int64_t in[2], int64_t ki, int64_t kj)
{
    int64_t di = p->dilation[0] > 0 ? p->dilation[0] : 1, dj = p->dilation[1] > 0 ? p->dilation[1] : 1;
    return (w->origin[0] + ki * di) * in[1] + w->origin[1] + kj * dj;
}

/* First largest element of a window as an index into x, or -1 for a window without any; NaN counts as largest. */
static int64_t window_max(const hd_conv_attrs *p, const hd_tensor *x, int64_t plane, const int64_t in[2], int64_t i, int64_t j)
{
    window w = window_at(p, in, i, j);
    int64_t best = -1, base = plane * in[0] * in[1];
    float most = 0;
    for (int64_t ki = w.first[0]; ki < w.last[0]; ki++)
        for (int64_t kj = w.first[1]; kj < w.last[1]; kj++) {
            int64_t at = base + tap_at(p, &w, in, ki, kj);
            float v = f32_load_as(x->data, x->dtype, at);
            if (best >= 0 && !(v > most)) continue;
            best = at;
            most = v;
        }
    return best;
}

static void run_max_pool(const hd_kernel_args *a)
{
    const hd_tensor *x = &a->in[0], *y = &a->out[0];
    int64_t in[2] = {x->dim[2], x->dim[3]}, size = y->dim[2] * y->dim[3], begin, end;
    if (!y->data) return;
    hd_split(y->dim[0] * y->dim[1], 1, a->tid, a->threads, &begin, &end);
    for (int64_t u = begin * size; u < end * size; u++) {
        int64_t best = window_max(a->attrs, x, u / size, in, u % size / y->dim[3], u % y->dim[3]);
        f32_store_as(y->data, y->dtype, u, best < 0 ? 0 : f32_load_as(x->data, x->dtype, best));
    }
}

/* The thread's plane of dx in f32. */
static size_t workspace_pool_grad(const hd_kernel_args *a, int threads)
{
    return (size_t)threads * (size_t)hd_round_up(a->out[0].dim[2] * a->out[0].dim[3], 16) * sizeof(float);
}

static float *plane_buffer(const hd_kernel_args *a)
{
    return (float *)a->workspace + a->tid * hd_round_up(a->out[0].dim[2] * a->out[0].dim[3], 16);
}

static void run_max_pool_grad(const hd_kernel_args *a)
{
    const hd_tensor *dy = &a->in[0], *x = &a->in[1], *dx = &a->out[0];
    int64_t in[2] = {x->dim[2], x->dim[3]}, size = dy->dim[2] * dy->dim[3], pixels = in[0] * in[1], begin, end;
    float *plane = plane_buffer(a);
    if (!dx->data) return;
    hd_split(dx->dim[0] * dx->dim[1], 1, a->tid, a->threads, &begin, &end);
    for (int64_t p = begin; p < end; p++) {
        memset(plane, 0, (size_t)pixels * sizeof(float));
        for (int64_t u = 0; u < size; u++) {
            int64_t best = window_max(a->attrs, x, p, in, u / dy->dim[3], u % dy->dim[3]);
            if (best >= 0) plane[best - p * pixels] += f32_load_as(dy->data, dy->dtype, p * size + u);
        }
        row_store(dx->data, dx->dtype, p * pixels, plane, pixels);
    }
}

static void run_avg_pool(const hd_kernel_args *a)
{
    const hd_conv_attrs *p = a->attrs;
    const hd_tensor *x = &a->in[0], *y = &a->out[0];
    int64_t in[2] = {x->dim[2], x->dim[3]}, size = y->dim[2] * y->dim[3], begin, end;
    if (!y->data) return;
    hd_split(y->dim[0] * y->dim[1], 1, a->tid, a->threads, &begin, &end);
    for (int64_t u = begin * size; u < end * size; u++) {
        window w = window_at(p, in, u % size / y->dim[3], u % y->dim[3]);
        double sum = 0;
        for (int64_t ki = w.first[0]; ki < w.last[0]; ki++)
            for (int64_t kj = w.first[1]; kj < w.last[1]; kj++)
                sum += f32_load_as(x->data, x->dtype, u / size * in[0] * in[1] + tap_at(p, &w, in, ki, kj));
        f32_store_as(y->data, y->dtype, u, (float)(sum / ((double)p->kernel[0] * p->kernel[1])));
    }
}

static void run_avg_pool_grad(const hd_kernel_args *a)
{
    const hd_conv_attrs *p = a->attrs;
    const hd_tensor *dy = &a->in[0], *dx = &a->out[0];
    int64_t in[2] = {dx->dim[2], dx->dim[3]}, size = dy->dim[2] * dy->dim[3], pixels = in[0] * in[1], begin, end;
    float *plane = plane_buffer(a);
    if (!dx->data) return;
    hd_split(dx->dim[0] * dx->dim[1], 1, a->tid, a->threads, &begin, &end);
    for (int64_t c = begin; c < end; c++) {
        memset(plane, 0, (size_t)pixels * sizeof(float));
        for (int64_t u = 0; u < size; u++) {
            window w = window_at(p, in, u / dy->dim[3], u % dy->dim[3]);
            float share = (float)(f32_load_as(dy->data, dy->dtype, c * size + u) / ((double)p->kernel[0] * p->kernel[1]));
            for (int64_t ki = w.first[0]; ki < w.last[0]; ki++)
                for (int64_t kj = w.first[1]; kj < w.last[1]; kj++) plane[tap_at(p, &w, in, ki, kj)] += share;
        }
        row_store(dx->data, dx->dtype, c * pixels, plane, pixels);
    }
}

static bool supports_pool(const hd_kernel_args *a)
{
    return !a->accumulate && operands_are_vf(a, 0, a->n_in - 1) && results_are_vf(a) && a->in[0].rank == 4;
}

const hd_kernel HD_ISA(hd_kernels_image)[] = {
    {"batch_norm", supports_batch_norm, NULL, run_batch_norm},
    {"batch_norm_squares", supports_batch_norm, NULL, run_batch_norm_squares},
    {"batch_norm_finish", supports_batch_norm, NULL, run_batch_norm_finish},
    {"batch_norm_grad_x", supports_batch_norm, NULL, run_batch_norm_grad_x},
    {"batch_norm_grad_gamma", supports_batch_gamma, NULL, run_batch_norm_grad_gamma},
    {"max_pool2d", supports_pool, NULL, run_max_pool},
    {"max_pool2d_grad", supports_pool, workspace_pool_grad, run_max_pool_grad},
    {"avg_pool2d", supports_pool, NULL, run_avg_pool},
    {"avg_pool2d_grad", supports_pool, workspace_pool_grad, run_avg_pool_grad},
    {0},
};

#else
const hd_kernel HD_ISA(hd_kernels_image)[] = {{0}};
#endif
