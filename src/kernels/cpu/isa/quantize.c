/* quantize.c: rows of floats into eight bits with one scale each, for caches of keys and values. */
#include "kernels/cpu/isa/rows.h"
#include "kernels/cpu/isa/vmath.h"

#if HD_ISA_LEVEL <= 2

/* NaN where there is one. */
static float largest(const hd_tensor *y, int64_t at, int64_t n)
{
    vf most = vf_zero();
    for (int64_t j = 0; j < n; j += HD_VL) most = vf_larger(most, vf_abs(vf_load_upto(y->data, y->dtype, at + j, lanes_left(n, j))));
    float r = most[0];
    for (int l = 1; l < HD_VL; l++) r = isnan(most[l]) || most[l] > r ? most[l] : r;
    return r;
}

static void store_bytes(int8_t *dst, vi q, int n)
{
#if HD_HAS_AVX512
    _mm_mask_storeu_epi8(dst, (__mmask16)((1u << n) - 1), _mm512_cvtepi32_epi8((__m512i)q));
#else
    for (int l = 0; l < n; l++) dst[l] = (int8_t)q[l];
#endif
}

static void run_quantize(const hd_kernel_args *a)
{
    const hd_tensor *y = &a->in[0];
    int8_t *q = a->out[0].data;
    float *scales = a->n_out > 1 ? a->out[1].data : NULL;
    int64_t n = y->dim[2], begin, end;
    hd_split(y->dim[0] * y->dim[1], 1, a->tid, a->threads, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        float scale = largest(y, r * n, n) / 127;
        bool usable = scale > 0 && scale < INFINITY;
        if (scales) scales[r] = scale;
        for (int64_t j = 0; q && j < n; j += HD_VL) {
            int m = lanes_left(n, j);
            vf x = usable ? vf_load_upto(y->data, y->dtype, r * n + j, m) / scale : vf_zero();
            x = vf_max(vf_set1(-127), vf_min(vf_set1(127), vf_round(x)));
            store_bytes(q + r * n + j, vi_from_vf(x), m);
        }
    }
}

static bool supports_quantize(const hd_kernel_args *a)
{
    return !a->accumulate && is_vf_dtype(a->in[0].dtype) && (is_absent(&a->out[0]) || a->out[0].dtype == HD_I8) &&
           (is_absent(&a->out[1]) || a->out[1].dtype == HD_F32);
}

const hd_kernel HD_ISA(hd_kernels_quantize)[] = {
    {"quantize_rows", supports_quantize, NULL, run_quantize},
    {0},
};

#else
const hd_kernel HD_ISA(hd_kernels_quantize)[] = {{0}};
#endif
