/* optimizer.c: adamw and sgd: one pass over parameter, state and gradient. */
#include "kernels/cpu/isa/rows.h"

#if HD_ISA_LEVEL <= 2

static float scalar(const hd_kernel_args *a, int i, float absent)
{
    return i < a->n_in && a->in[i].data ? *(const float *)a->in[i].data : absent;
}

/* ok == 0: the results are the operands, and the copy is the parameter's. */
static void keep(const hd_kernel_args *a, int states, int64_t begin, int64_t end)
{
    for (int i = 0; i < states; i++)
        if (a->out[i].data && a->in[i].data && a->out[i].data != a->in[i].data && begin < end)
            memcpy((float *)a->out[i].data + begin, (const float *)a->in[i].data + begin, (size_t)(end - begin) * sizeof(float));
}

typedef struct adam_step {
    float gain1, gain2; /* 1 - beta1, 1 - beta2 */
    float eps;
    float rate;       /* lr / (1 - beta1^t) */
    float root_scale; /* 1 / sqrt(1 - beta2^t) */
    float decay;      /* 1 - lr * weight_decay */
    float scale;      /* of the gradient */
} adam_step;

static adam_step adam_constants(const hd_kernel_args *a)
{
    const hd_optimizer_attrs *at = a->attrs;
    double lr = scalar(a, 4, 0), t = scalar(a, 5, 1);
    return (adam_step){
        .gain1 = (float)(1 - at->beta1),
        .gain2 = (float)(1 - at->beta2),
        .eps = (float)at->eps,
        .rate = (float)(lr / (1 - pow(at->beta1, t))),
        .root_scale = (float)(1 / sqrt(1 - pow(at->beta2, t))),
        .decay = (float)(1 - lr * at->weight_decay),
        .scale = scalar(a, 6, 1),
    };
}

/* Updates *m and *v and returns the new parameter. */
HD_INLINE vf adam_update(const adam_step *s, vf p, vf *m, vf *v, vf g)
{
    g = g * s->scale;
    *m = vf_fma(g - *m, vf_set1(s->gain1), *m);
    *v = vf_fma(g * g - *v, vf_set1(s->gain2), *v);
    vf denominator = vf_fma(vf_sqrt(*v), vf_set1(s->root_scale), vf_set1(s->eps));
    return vf_fma(p, vf_set1(s->decay), -(*m * s->rate / denominator));
}

HD_INLINE void adam_lanes(const hd_kernel_args *a, const adam_step *s, int64_t i, int n)
{
    vf m = vf_load_upto(a->in[1].data, HD_F32, i, n), v = vf_load_upto(a->in[2].data, HD_F32, i, n);
    vf g = vf_load_upto(a->in[3].data, a->in[3].dtype, i, n);
    vf p = adam_update(s, vf_load_upto(a->in[0].data, HD_F32, i, n), &m, &v, g);
    if (a->out[0].data) vf_store_upto(a->out[0].data, HD_F32, i, p, n);
    if (a->out[1].data) vf_store_upto(a->out[1].data, HD_F32, i, m, n);
    if (a->out[2].data) vf_store_upto(a->out[2].data, HD_F32, i, v, n);
    if (a->n_out > 3 && a->out[3].data) vf_store_upto(a->out[3].data, a->out[3].dtype, i, p, n);
}

static void run_adamw(const hd_kernel_args *a)
{
    adam_step s = adam_constants(a);
    int64_t i, end;
    hd_split(hd_tensor_count(&a->in[0]), 64, a->tid, a->threads, &i, &end);
    if (scalar(a, 7, 1) == 0) {
        keep(a, 3, i, end);
        if (a->n_out > 3 && a->out[3].data)
            for (; i < end; i += HD_VL) {
                int n = lanes_left(end, i);
                vf_store_upto(a->out[3].data, a->out[3].dtype, i, vf_load_upto(a->in[0].data, HD_F32, i, n), n);
            }
        return;
    }
    for (; i + HD_VL <= end; i += HD_VL) adam_lanes(a, &s, i, HD_VL);
    if (i < end) adam_lanes(a, &s, i, (int)(end - i));
}

typedef struct sgd_step {
    float lr, momentum, decay, scale;
    bool nesterov;
} sgd_step;

HD_INLINE void sgd_lanes(const hd_kernel_args *a, const sgd_step *s, int64_t i, int n)
{
    vf p = vf_load_upto(a->in[0].data, HD_F32, i, n), g = vf_load_upto(a->in[2].data, a->in[2].dtype, i, n) * s->scale, step = g;
    if (a->in[1].data) {
        vf m = vf_fma(vf_set1(s->momentum), vf_load_upto(a->in[1].data, HD_F32, i, n), g);
        step = s->nesterov ? vf_fma(vf_set1(s->momentum), m, g) : m;
        if (a->n_out > 1 && a->out[1].data) vf_store_upto(a->out[1].data, HD_F32, i, m, n);
    }
    step = vf_fma(vf_set1(s->decay), p, step);
    if (a->out[0].data) vf_store_upto(a->out[0].data, HD_F32, i, vf_fnma(vf_set1(s->lr), step, p), n);
}

static void run_sgd(const hd_kernel_args *a)
{
    const hd_optimizer_attrs *at = a->attrs;
    sgd_step s = {scalar(a, 3, 0), (float)at->momentum, (float)at->weight_decay, scalar(a, 4, 1), at->nesterov};
    int64_t i, end;
    hd_split(hd_tensor_count(&a->in[0]), 64, a->tid, a->threads, &i, &end);
    if (scalar(a, 5, 1) == 0) {
        keep(a, a->n_out < 2 ? a->n_out : 2, i, end);
        return;
    }
    for (; i + HD_VL <= end; i += HD_VL) sgd_lanes(a, &s, i, HD_VL);
    if (i < end) sgd_lanes(a, &s, i, (int)(end - i));
}

static bool scalars_are_f32(const hd_kernel_args *a, int first)
{
    for (int i = first; i < a->n_in; i++)
        if (a->in[i].dtype != HD_F32) return false;
    return true;
}

static bool supports_adamw(const hd_kernel_args *a)
{
    if (a->accumulate || a->n_in < 5 || !is_vf_dtype(a->in[3].dtype) || !scalars_are_f32(a, 4)) return false;
    for (int i = 0; i < 3; i++)
        if (a->in[i].dtype != HD_F32 || a->out[i].dtype != HD_F32) return false;
    return a->n_out <= 3 || !a->out[3].data || is_vf_dtype(a->out[3].dtype);
}

static bool supports_sgd(const hd_kernel_args *a)
{
    return !a->accumulate && a->n_in >= 4 && a->in[0].dtype == HD_F32 && a->out[0].dtype == HD_F32 && is_vf_dtype(a->in[2].dtype) &&
           scalars_are_f32(a, 3);
}

const hd_kernel HD_ISA(hd_kernels_optimizer)[] = {
    {"adamw", supports_adamw, NULL, run_adamw},
    {"sgd", supports_sgd, NULL, run_sgd},
    {0},
};

#else
const hd_kernel HD_ISA(hd_kernels_optimizer)[] = {{0}};
#endif
