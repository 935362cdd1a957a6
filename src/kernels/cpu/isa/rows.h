/* rows.h: pieces of rows as f32: converting loads and stores of any length, and sums in one fixed order.
 *
 * Buffers named "padded" have room for n rounded up to HD_VL; what a padded load adds is zero. */
#ifndef HD_KERNELS_CPU_ROWS_H
#define HD_KERNELS_CPU_ROWS_H

#include "kernels/cpu/isa/isa.h"

/* Elements of an f32 sum between two roundings into f64. Part of every long sum's definition: do not change per kernel. */
#define HD_SUM_BLOCK 1024

HD_INLINE int64_t hd_round_up(int64_t n, int64_t unit)
{
    return (n + unit - 1) / unit * unit;
}

/* vf_load_as and vf_store_as of 1 <= n <= HD_VL elements, without the cost of a partial access where n is HD_VL. */
HD_INLINE vf vf_load_upto(const void *p, hd_dtype t, int64_t i, int n)
{
    return n == HD_VL ? vf_load_as(p, t, i) : vf_load_as_n(p, t, i, n);
}

HD_INLINE void vf_store_upto(void *p, hd_dtype t, int64_t i, vf v, int n)
{
    if (n == HD_VL) vf_store_as(p, t, i, v);
    else vf_store_as_n(p, t, i, v, n);
}

/* Elements from j to the end of n, at most HD_VL. */
HD_INLINE int lanes_left(int64_t n, int64_t j)
{
    return n - j < HD_VL ? (int)(n - j) : HD_VL;
}

/* As bf16_from_vf for what is no NaN. */
HD_INLINE vh bf16_from_vf_finite(vf a)
{
    vu u = (vu)a;
    return __builtin_convertvector((u + 0x7fffu + ((u >> 16) & 1u)) >> 16, vh);
}

/* dst[0..n) (padded) = elements i.. of a f32, bf16 or f16 array. */
HD_INLINE void row_load(float *dst, const void *src, hd_dtype t, int64_t i, int64_t n)
{
    int64_t j = 0;
    for (; j + HD_VL <= n; j += HD_VL) vf_store(dst + j, vf_load_as(src, t, i + j));
    if (j < n) vf_store(dst + j, vf_load_as_n(src, t, i + j, (int)(n - j)));
}

HD_INLINE void row_store(void *dst, hd_dtype t, int64_t i, const float *src, int64_t n)
{
    int64_t j = 0;
    for (; j + HD_VL <= n; j += HD_VL) vf_store_as(dst, t, i + j, vf_load(src + j));
    if (j < n) vf_store_as_n(dst, t, i + j, vf_load_n(src + j, (int)(n - j)), (int)(n - j));
}

/* Sum of f(v) over a padded buffer whose padding f takes to zero: two chains per block of HD_SUM_BLOCK, blocks added in f64. */
HD_INLINE double row_sum_of(const float *x, const float *y, int64_t n, vf (*f)(vf x, vf y, float c), float c)
{
    double total = 0;
    for (int64_t b = 0; b < n; b += HD_SUM_BLOCK) {
        int64_t end = b + HD_SUM_BLOCK < n ? b + HD_SUM_BLOCK : n;
        vf s0 = vf_zero(), s1 = vf_zero();
        int64_t j = b;
        for (; j + HD_VL < end; j += 2 * HD_VL) {
            s0 = s0 + f(vf_load(x + j), vf_load(y + j), c);
            s1 = s1 + f(vf_load(x + j + HD_VL), vf_load(y + j + HD_VL), c);
        }
        if (j < end) s0 = s0 + f(vf_load(x + j), vf_load(y + j), c);
        vf s = s0 + s1;
        total += vd_hsum(vd_low(s) + vd_high(s));
    }
    return total;
}

HD_INLINE vf sum_term_value(vf x, vf y, float c)
{
    (void)y, (void)c;
    return x;
}

HD_INLINE vf sum_term_product(vf x, vf y, float c)
{
    (void)c;
    return x * y;
}

HD_INLINE double row_sum(const float *x, int64_t n)
{
    return row_sum_of(x, x, n, sum_term_value, 0);
}

HD_INLINE double row_dot(const float *x, const float *y, int64_t n)
{
    return row_sum_of(x, y, n, sum_term_product, 0);
}

/* Rows of a tensor seen as a matrix whose last dimension is the columns: 0 when there are none. */
HD_INLINE int64_t tensor_columns(const hd_tensor *t)
{
    return t->rank > 0 ? t->dim[t->rank - 1] : 1;
}

HD_INLINE int64_t tensor_rows(const hd_tensor *t)
{
    int64_t rows = 1;
    for (int i = 0; i + 1 < t->rank; i++) rows *= t->dim[i];
    return rows;
}

/* A zeroed struct stands for an absent operand even before any data is known. */
HD_INLINE bool is_absent(const hd_tensor *t)
{
    return !t->data && t->dtype == HD_F64 && t->rank == 0;
}

/* Whether the vector loads take every operand in [first, last], and every result. Absent ones pass. */
HD_INLINE bool operands_are_vf(const hd_kernel_args *a, int first, int last)
{
    for (int i = first; i <= last && i < a->n_in; i++)
        if (!is_vf_dtype(a->in[i].dtype) && !is_absent(&a->in[i])) return false;
    return true;
}

HD_INLINE bool results_are_vf(const hd_kernel_args *a)
{
    for (int i = 0; i < a->n_out; i++)
        if (!is_vf_dtype(a->out[i].dtype) && !is_absent(&a->out[i])) return false;
    return true;
}

#endif
