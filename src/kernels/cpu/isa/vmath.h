/* vmath.h: elementary functions over vectors of f32, branch-free, within about 2 ulp of the definition (tests/test_kernels.c measures it).
 *
 * Range reduction and polynomials for exp, log, tanh and the trigonometric functions are those of Cody and Waite 1980 as published in
 * Moshier's Cephes library; erfc is a polynomial in 1/(1 + 0.4 z) times exp(-z^2), fitted to 1.5e-8 for this file.
 * NaN comes out as NaN; infinities give the limits. Every lane is computed alike, so a value never depends on its neighbours. */
#ifndef HD_KERNELS_CPU_VMATH_H
#define HD_KERNELS_CPU_VMATH_H

#include "kernels/cpu/isa/isa.h"

/* The sign bit of s put on the magnitude of x (x >= 0). */
HD_INLINE vf vf_with_sign(vf x, vf s)
{
    return (vf)((vi)x | ((vi)s & (int32_t)0x80000000));
}

/* NaN in either comes through. */
HD_INLINE vf vf_larger(vf a, vf b)
{
    return vf_select((a > b) | (a != a), a, b);
}

HD_INLINE vf vf_smaller(vf a, vf b)
{
    return vf_select((a < b) | (a != a), a, b);
}

/* 2^n for -126 <= n <= 127. */
HD_INLINE vf vf_pow2(vi n)
{
    return (vf)((n + 127) << 23);
}

/* x * 2^n for an integer -150 <= n <= 129, with gradual underflow. */
HD_INLINE vf vf_scale2(vf x, vf n)
{
#if HD_HAS_AVX512
    return (vf)_mm512_scalef_ps((__m512)x, (__m512)n);
#else
    vi k = vi_from_vf(n), half = k >> 1;
    return x * vf_pow2(half) * vf_pow2(k - half);
#endif
}

/* 2^x for x <= 315 (or NaN): a polynomial fitted to 3e-9 on [-1/2, 1/2]; 0 below -149, infinity from 129 on. */
HD_INLINE vf vf_exp2(vf x)
{
    x = vf_max(vf_set1(-150.0f), x);
#if !HD_HAS_AVX512
    x = vf_min(vf_set1(129.0f), x);
#endif
    vf n = vf_round(x), r = x - n;
    vf p = vf_set1(1.546144469646172e-4f);
    p = vf_fma(p, r, vf_set1(1.3400428177419153e-3f));
    p = vf_fma(p, r, vf_set1(9.61805667852609e-3f));
    p = vf_fma(p, r, vf_set1(5.550327226670944e-2f));
    p = vf_fma(p, r, vf_set1(0.24022650922288827f));
    p = vf_fma(p, r, vf_set1(0.6931472067028321f));
    return vf_scale2(vf_fma(p, r, vf_set1(1.0f)), n);
}

/* exp(x) for x already within [-104, 89]; gradual underflow, overflow to infinity. */
HD_INLINE vf vf_exp_core(vf x)
{
    vf n = vf_round(x * 1.44269504088896341f);
    vf r = vf_fma(n, vf_set1(-0.693359375f), x);
    r = vf_fma(n, vf_set1(2.12194440e-4f), r);
    vf p = vf_set1(1.9875691500e-4f);
    p = vf_fma(p, r, vf_set1(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set1(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set1(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set1(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set1(5.0000001201e-1f));
    return vf_scale2(vf_fma(p, r * r, r) + 1.0f, n);
}

HD_INLINE vf vf_exp(vf x)
{
    return vf_exp_core(vf_max(vf_set1(-104.0f), vf_min(vf_set1(89.0f), x)));
}

/* log of a positive, normal, finite number. */
HD_INLINE vf vf_log_normal(vf x)
{
    vi bits = (vi)x;
    vi e = ((bits >> 23) & 0xff) - 126;
    vf m = (vf)((bits & 0x007fffff) | 0x3f000000); /* [0.5, 1) */
    vi small = m < 0.707106781186547524f;
    e += small; /* -1 where small */
    m = vf_select(small, m + m, m) - 1.0f;
    vf z = m * m, n = vf_from_vi(e);
    vf p = vf_set1(7.0376836292e-2f);
    p = vf_fma(p, m, vf_set1(-1.1514610310e-1f));
    p = vf_fma(p, m, vf_set1(1.1676998740e-1f));
    p = vf_fma(p, m, vf_set1(-1.2420140846e-1f));
    p = vf_fma(p, m, vf_set1(1.4249322787e-1f));
    p = vf_fma(p, m, vf_set1(-1.6668057665e-1f));
    p = vf_fma(p, m, vf_set1(2.0000714765e-1f));
    p = vf_fma(p, m, vf_set1(-2.4999993993e-1f));
    p = vf_fma(p, m, vf_set1(3.3333331174e-1f));
    p = p * m * z;
    p = vf_fma(n, vf_set1(-2.12194440e-4f), p);
    p = vf_fma(z, vf_set1(-0.5f), p);
    return vf_fma(n, vf_set1(0.693359375f), m + p);
}

HD_INLINE vf vf_log(vf x)
{
    vi tiny = x < 1.17549435e-38f;
    vf scaled = vf_select(tiny, x * 8388608.0f, x);
    vf y = vf_log_normal(scaled) - vf_select(tiny, vf_set1(15.942385152878742f), vf_set1(0.0f)); /* 23 ln 2 */
    y = vf_select(x == 0.0f, vf_set1(-INFINITY), y);
    y = vf_select(x == INFINITY, x, y);
    return vf_select((x < 0.0f) | (x != x), vf_set1(NAN), y);
}

/* log(1 + u) for 0 <= u <= 1 (Kahan's correction of the rounding in 1 + u). */
HD_INLINE vf vf_log1p(vf u)
{
    vf w = 1.0f + u, d = w - 1.0f;
    vi same = d == 0.0f;
    vf y = vf_log_normal(w) * (u / vf_select(same, vf_set1(1.0f), d));
    return vf_select(same, u, y);
}

HD_INLINE vf vf_tanh(vf x)
{
    vf a = vf_abs(x), z = x * x;
    vf p = vf_set1(-5.70498872745e-3f);
    p = vf_fma(p, z, vf_set1(2.06390887954e-2f));
    p = vf_fma(p, z, vf_set1(-5.37397155531e-2f));
    p = vf_fma(p, z, vf_set1(1.33314422036e-1f));
    p = vf_fma(p, z, vf_set1(-3.33332819422e-1f));
    vf near = vf_fma(p * z, x, x);
    vf b = vf_min(vf_set1(20.0f), a);
    vf far = vf_with_sign(1.0f - 2.0f / (vf_exp_core(b + b) + 1.0f), x);
    return vf_select(a < 0.625f, near, far);
}

HD_INLINE vf vf_sigmoid(vf x)
{
    return 1.0f / (1.0f + vf_exp(-x));
}

HD_INLINE vf vf_softplus(vf x)
{
    return vf_larger(x, vf_set1(0.0f)) + vf_log1p(vf_exp(-vf_abs(x)));
}

HD_INLINE vf vf_silu(vf x)
{
    x = vf_max(vf_set1(-104.0f), x); /* where it is -0 already */
    return x / (1.0f + vf_exp(-x));
}

HD_INLINE vf vf_silu_grad(vf x)
{
    x = vf_max(vf_set1(-100.0f), x);
    vf s = vf_sigmoid(x);
    return s * vf_fma(x, 1.0f - s, vf_set1(1.0f));
}

/* erfc(z) exp(z^2) / t at t = 1 / (1 + 0.4 z), z >= 0. */
HD_INLINE vf vf_erfcx_over_t(vf t)
{
    vf p = vf_set1(-0.03432290083822319f);
    p = vf_fma(p, t, vf_set1(0.22343910159472335f));
    p = vf_fma(p, t, vf_set1(-0.5579407389542907f));
    p = vf_fma(p, t, vf_set1(0.625323409660384f));
    p = vf_fma(p, t, vf_set1(-0.34826920221778723f));
    p = vf_fma(p, t, vf_set1(0.30585649479698634f));
    p = vf_fma(p, t, vf_set1(0.11818731305920491f));
    p = vf_fma(p, t, vf_set1(0.21733909477252242f));
    p = vf_fma(p, t, vf_set1(0.22466608540276392f));
    return vf_fma(p, t, vf_set1(0.22572134374752884f));
}

HD_INLINE vf vf_erf(vf x)
{
    vf a = vf_abs(x), z = x * x;
    vf p = vf_set1(7.853861353153693e-5f);
    p = vf_fma(p, z, vf_set1(-8.010193625184903e-4f));
    p = vf_fma(p, z, vf_set1(5.188327685732524e-3f));
    p = vf_fma(p, z, vf_set1(-2.685381193529856e-2f));
    p = vf_fma(p, z, vf_set1(1.128358514861418e-1f));
    p = vf_fma(p, z, vf_set1(-3.761262582423300e-1f));
    p = vf_fma(p, z, vf_set1(1.128379165726710e+0f));
    vf b = vf_min(vf_set1(9.0f), a);
    vf t = 1.0f / vf_fma(b, vf_set1(0.4f), vf_set1(1.0f));
    vf far = 1.0f - t * vf_erfcx_over_t(t) * vf_exp_core(-b * b);
    return vf_select(a < 1.0f, x * p, vf_with_sign(far, x));
}

/* The standard normal distribution's Phi(x) and, through *density, phi(x) without its 1/sqrt(2 pi): exp(-x^2/2). |x| <= 14 or NaN. */
HD_INLINE vf vf_normal_cdf(vf x, vf *density)
{
    vf a = vf_abs(x);
    vf e = vf_exp2(-0.72134752044448170f * a * a); /* log2(e) / 2 */
    vf t = 1.0f / vf_fma(a, vf_set1(0.28284271247461901f), vf_set1(1.0f)); /* 0.4 / sqrt(2) */
    vf tail = 0.5f * t * vf_erfcx_over_t(t) * e;
    *density = e;
    return vf_select(x < 0.0f, tail, 1.0f - tail);
}

HD_INLINE vf vf_clamp(vf x, float bound)
{
    return vf_max(vf_set1(-bound), vf_min(vf_set1(bound), x));
}

HD_INLINE vf vf_gelu(vf x)
{
    vf e, y = x * vf_normal_cdf(vf_clamp(x, 14.0f), &e);
    return vf_select(x < -14.0f, vf_set1(-0.0f), y);
}

HD_INLINE vf vf_gelu_grad(vf x)
{
    x = vf_clamp(x, 14.0f);
    vf e, cdf = vf_normal_cdf(x, &e);
    return vf_fma(x * 0.39894228040143267794f, e, cdf);
}

#define GELU_SLOPE 1.5957691216057308f /* 2 sqrt(2/pi) */
#define GELU_CUBIC 0.0713548162726f    /* that times 0.044715 */

/* The logistic function of 2 sqrt(2/pi) (x + 0.044715 x^3): x times this is the tanh form of gelu. x >= -14. */
HD_INLINE vf vf_gelu_tanh_gate(vf x)
{
    vf minus = x * vf_fma(x * x, vf_set1(-GELU_CUBIC * 1.4426950408889634f), vf_set1(-GELU_SLOPE * 1.4426950408889634f));
    return 1.0f / (1.0f + vf_exp2(minus));
}

HD_INLINE vf vf_gelu_tanh(vf x)
{
    x = vf_max(vf_set1(-14.0f), x); /* where it is -0 already */
    return x * vf_gelu_tanh_gate(x);
}

HD_INLINE vf vf_gelu_tanh_grad(vf x)
{
    x = vf_clamp(x, 14.0f);
    vf s = vf_gelu_tanh_gate(x);
    vf slope = vf_fma(x * x, vf_set1(3 * GELU_CUBIC), vf_set1(GELU_SLOPE));
    return s * vf_fma(x * (1.0f - s), slope, vf_set1(1.0f));
}

/* sin and, through *cosine, cos of r + quadrant * pi/2, |r| <= pi/4. */
HD_INLINE vf vf_sincos_quadrant(vf r, vi quadrant, vf *cosine)
{
    vf z = r * r;
    vf s = vf_fma(vf_fma(vf_set1(-1.9515295891e-4f), z, vf_set1(8.3321608736e-3f)), z, vf_set1(-1.6666654611e-1f));
    s = vf_fma(s * z, r, r);
    vf c = vf_fma(vf_fma(vf_set1(2.443315711809948e-5f), z, vf_set1(-1.388731625493765e-3f)), z, vf_set1(4.166664568298827e-2f));
    c = vf_fma(c, z * z, vf_fma(z, vf_set1(-0.5f), vf_set1(1.0f)));
    vi odd = (quadrant & 1) != 0;
    *cosine = (vf)((vi)vf_select(odd, s, c) ^ (((quadrant + 1) & 2) << 30));
    return (vf)((vi)vf_select(odd, c, s) ^ ((quadrant & 2) << 30));
}

/* sin (phase 0) or cos (phase 1) of |x| <= 8192, reduced by pi/2 in three parts. */
HD_INLINE vf vf_sincos(vf x, int phase)
{
    vf n = vf_round(x * 0.63661977236758134308f), cosine;
    vf r = vf_fma(n, vf_set1(-1.5703125f), x);
    r = vf_fma(n, vf_set1(-4.83751296997070312e-4f), r);
    r = vf_fma(n, vf_set1(-7.5497894158615964e-8f), r);
    vf sine = vf_sincos_quadrant(r, vi_from_vf(n), &cosine);
    return phase ? cosine : sine;
}

#endif
