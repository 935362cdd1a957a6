/* loss.c: softmax, cross_entropy and their gradients: one row at a time, in pieces of HD_SUM_BLOCK whose sums are added in f64.
 *
 * Maximum and sum are found in one pass (Milakov and Gimelshein 2018): when a piece raises the maximum, the sum so far is rescaled. */
#include "kernels/cpu/isa/rows.h"
#include "kernels/cpu/isa/vmath.h"

#if HD_ISA_LEVEL <= 2

typedef struct row_stats {
    float max;
    double sum; /* of exp(x - max) */
} row_stats;

HD_INLINE vf sum_term_exp(vf x, vf y, float max)
{
    (void)y;
    return vf_exp(x - max);
}

static float buffer_max(const float *x, int64_t n)
{
    vf m = vf_load(x);
    for (int64_t j = HD_VL; j < n; j += HD_VL) m = vf_max(vf_load(x + j), m);
    return vf_hmax(m);
}

/* At least one column. */
static row_stats row_softmax_stats(const hd_tensor *x, int64_t at, int64_t columns)
{
    _Alignas(64) float buffer[HD_SUM_BLOCK];
    row_stats s = {-INFINITY, 0};
    for (int64_t c = 0; c < columns; c += HD_SUM_BLOCK) {
        int64_t n = columns - c < HD_SUM_BLOCK ? columns - c : HD_SUM_BLOCK;
        row_load(buffer, x->data, x->dtype, at + c, n);
        for (int64_t j = n; j % HD_VL != 0; j++) buffer[j] = -INFINITY;
        float max = buffer_max(buffer, n);
        if (max > s.max) {
            s.sum *= exp((double)s.max - (double)max);
            s.max = max;
        }
        s.sum += row_sum_of(buffer, buffer, n, sum_term_exp, s.max > -INFINITY ? s.max : 0);
    }
    return s;
}

static void run_softmax(const hd_kernel_args *a)
{
    const hd_tensor *x = &a->in[0], *y = &a->out[0];
    int64_t d = tensor_columns(x), begin, end;
    if (!y->data || d == 0) return;
    hd_split(tensor_rows(x), 1, a->tid, a->threads, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        row_stats s = row_softmax_stats(x, r * d, d);
        float scale = (float)(1 / s.sum);
        for (int64_t j = 0; j < d; j += HD_VL) {
            int n = lanes_left(d, j);
            vf v = vf_exp(vf_load_upto(x->data, x->dtype, r * d + j, n) - s.max) * scale;
            vf_store_upto(y->data, y->dtype, r * d + j, v, n);
        }
    }
}

static double row_dot_of(const hd_tensor *x, const hd_tensor *y, int64_t at, int64_t columns)
{
    _Alignas(64) float bx[HD_SUM_BLOCK], by[HD_SUM_BLOCK];
    double total = 0;
    for (int64_t c = 0; c < columns; c += HD_SUM_BLOCK) {
        int64_t n = columns - c < HD_SUM_BLOCK ? columns - c : HD_SUM_BLOCK;
        row_load(bx, x->data, x->dtype, at + c, n);
        row_load(by, y->data, y->dtype, at + c, n);
        total += row_dot(bx, by, n);
    }
    return total;
}

/* dx = y * (dy - sum(y * dy)) */
static void run_softmax_grad(const hd_kernel_args *a)
{
    const hd_tensor *y = &a->in[0], *dy = &a->in[1], *dx = &a->out[0];
    int64_t d = tensor_columns(y), begin, end;
    if (!dx->data || d == 0) return;
    hd_split(tensor_rows(y), 1, a->tid, a->threads, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        float dot = (float)row_dot_of(y, dy, r * d, d);
        for (int64_t j = 0; j < d; j += HD_VL) {
            int n = lanes_left(d, j);
            vf v = vf_load_upto(y->data, y->dtype, r * d + j, n) * (vf_load_upto(dy->data, dy->dtype, r * d + j, n) - dot);
            vf_store_upto(dx->data, dx->dtype, r * d + j, v, n);
        }
    }
}

static void run_cross_entropy(const hd_kernel_args *a)
{
    const hd_tensor *x = &a->in[0];
    const int32_t *target = a->in[1].data;
    float *loss = a->out[0].data, *lse = a->n_out > 1 ? a->out[1].data : NULL;
    int64_t v = tensor_columns(x), begin, end;
    hd_split(tensor_rows(x), 1, a->tid, a->threads, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        bool counted = target[r] >= 0 && target[r] < v;
        if (!counted && !lse) {
            if (loss) loss[r] = 0;
            continue;
        }
        row_stats s = v > 0 ? row_softmax_stats(x, r * v, v) : (row_stats){-INFINITY, 0};
        double l = s.max + log(s.sum);
        if (lse) lse[r] = (float)l;
        if (loss) loss[r] = counted ? (float)(l - f32_load_as(x->data, x->dtype, r * v + target[r])) : 0;
    }
}

static void fill_zero(const hd_tensor *y, int64_t at, int64_t n)
{
    size_t size = hd_dtype_size(y->dtype);
    memset((char *)y->data + (size_t)at * size, 0, (size_t)n * size);
}

static void run_cross_entropy_part(const hd_kernel_args *a)
{
    const hd_entropy_attrs *at = a->attrs;
    const hd_tensor *x = &a->in[0];
    const int32_t *target = a->in[1].data;
    float *max = a->out[0].data, *sum = a->out[1].data, *picked = a->out[2].data;
    int64_t v = tensor_columns(x), classes = at->classes ? at->classes : v, begin, end;
    hd_split(tensor_rows(x), 1, a->tid, a->threads, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        int64_t t = target[r] >= 0 && target[r] < classes ? target[r] - at->first : -1;
        row_stats s = v > 0 ? row_softmax_stats(x, r * v, v) : (row_stats){-INFINITY, 0};
        if (max) max[r] = s.max;
        if (sum) sum[r] = (float)s.sum;
        if (picked) picked[r] = t >= 0 && t < v ? f32_load_as(x->data, x->dtype, r * v + t) : 0;
    }
}

/* dlogits = (exp(x - lse) - onehot) * dloss for one row; x and y may be the same memory, so the target's entry (-1: it is in no column here) is
 * read first. The tensors are copies, so that stores can't be taken to change them. */
static void entropy_row(hd_tensor x, hd_tensor y, int64_t at, int64_t v, int64_t target, float lse, float dloss)
{
    float hit = target >= 0 ? f32_load_as(x.data, x.dtype, at + target) : 0;
    int64_t j = 0;
    for (; j + HD_VL <= v; j += HD_VL) vf_store_as(y.data, y.dtype, at + j, vf_exp(vf_load_as(x.data, x.dtype, at + j) - lse) * dloss);
    if (j < v) {
        vf p = vf_exp(vf_load_as_n(x.data, x.dtype, at + j, (int)(v - j)) - lse) * dloss;
        vf_store_as_n(y.data, y.dtype, at + j, p, (int)(v - j));
    }
    if (target >= 0) f32_store_as(y.data, y.dtype, at + target, (float)(expm1((double)hit - (double)lse) * dloss));
}

static void run_cross_entropy_grad(const hd_kernel_args *a)
{
    const hd_entropy_attrs *at = a->attrs;
    const float *dloss = a->in[0].data, *lse = a->in[3].data;
    const hd_tensor *x = &a->in[1], *y = &a->out[0];
    const int32_t *target = a->in[2].data;
    int64_t v = tensor_columns(x), classes = at->classes ? at->classes : v, begin, end;
    if (!y->data) return;
    hd_split(tensor_rows(x), 1, a->tid, a->threads, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        int64_t t = target[r] - at->first;
        if (target[r] < 0 || target[r] >= classes) fill_zero(y, r * v, v);
        else entropy_row(*x, *y, r * v, v, t >= 0 && t < v ? t : -1, lse[r], dloss[r]);
    }
}

static bool supports_rows(const hd_kernel_args *a)
{
    return operands_are_vf(a, 0, a->n_in - 1) && results_are_vf(a) && !a->accumulate;
}

static bool supports_entropy(const hd_kernel_args *a)
{
    if (a->accumulate || a->in[0].rank < 1 || !is_vf_dtype(a->in[0].dtype) || a->in[1].dtype != HD_I32) return false;
    for (int i = 0; i < a->n_out; i++)
        if (a->out[i].data && a->out[i].dtype != HD_F32) return false;
    return a->out[0].dtype == HD_F32;
}

static bool supports_entropy_grad(const hd_kernel_args *a)
{
    const hd_tensor *logits = &a->in[1], *y = &a->out[0];
    if (a->accumulate || a->in[0].dtype != HD_F32 || a->in[2].dtype != HD_I32 || a->in[3].dtype != HD_F32) return false;
    if (y->data && y->data == logits->data && y->dtype != logits->dtype) return false;
    return is_vf_dtype(logits->dtype) && is_vf_dtype(y->dtype);
}

const hd_kernel HD_ISA(hd_kernels_loss)[] = {
    {"softmax", supports_rows, NULL, run_softmax},
    {"softmax_grad", supports_rows, NULL, run_softmax_grad},
    {"cross_entropy", supports_entropy, NULL, run_cross_entropy},
    {"cross_entropy_grad", supports_entropy_grad, NULL, run_cross_entropy_grad},
    {"cross_entropy_part", supports_entropy, NULL, run_cross_entropy_part},
    {0},
};

#else
const hd_kernel HD_ISA(hd_kernels_loss)[] = {{0}};
#endif
