/* measure.c: loops that do nothing but keep one unit of the machine busy, to know its bounds. Not ops of any graph: run by src/cluster/measure.c.
 *
 * code is the number of iterations; out[0] f64 [threads] gets the operations (or bytes) that each thread did. measure.read reads its share
 * of in[0] once. */
#include "kernels/cpu/isa/isa.h"

#define CHAINS 12 /* independent sums: enough to hide the latency of a multiply-add */

static void report(const hd_kernel_args *a, double work, float keep)
{
    __asm__ volatile("" : : "x"(keep));
    ((double *)a->out[0].data)[a->tid] = work;
}

static void f32_run(const hd_kernel_args *a)
{
    vf x = vf_set1(0.999f), y = vf_set1(1e-6f), r[CHAINS];
    for (int i = 0; i < CHAINS; i++) r[i] = vf_set1((float)i);
    for (int k = 0; k < a->code; k++) {
HD_UNROLL
        for (int i = 0; i < CHAINS; i++) r[i] = vf_fma(r[i], x, y);
        __asm__ volatile("" : "+x"(x), "+x"(y));
    }
    vf s = r[0];
    for (int i = 1; i < CHAINS; i++) s += r[i];
    report(a, 2.0 * HD_VL * CHAINS * a->code, vf_hsum(s));
}

#if defined(__AVX512BF16__)
static void bf16_run(const hd_kernel_args *a)
{
    __m512i x = _mm512_set1_epi16(0x3c00), y = _mm512_set1_epi16(0x3c10);
    __m512 r[CHAINS];
    for (int i = 0; i < CHAINS; i++) r[i] = _mm512_set1_ps((float)i);
    for (int k = 0; k < a->code; k++) {
HD_UNROLL
        for (int i = 0; i < CHAINS; i++) r[i] = _mm512_dpbf16_ps(r[i], (__m512bh)x, (__m512bh)y);
        __asm__ volatile("" : "+x"(x), "+x"(y));
    }
    __m512 s = r[0];
    for (int i = 1; i < CHAINS; i++) s = _mm512_add_ps(s, r[i]);
    report(a, 64.0 * CHAINS * a->code, vf_hsum((vf)s));
}
#endif

#if defined(__AVX512VNNI__)
static void i8_run(const hd_kernel_args *a)
{
    __m512i x = _mm512_set1_epi8(3), y = _mm512_set1_epi8(-2), r[CHAINS];
    for (int i = 0; i < CHAINS; i++) r[i] = _mm512_set1_epi32(i);
    for (int k = 0; k < a->code; k++) {
HD_UNROLL
        for (int i = 0; i < CHAINS; i++) r[i] = _mm512_dpbusd_epi32(r[i], x, y);
        __asm__ volatile("" : "+x"(x), "+x"(y));
    }
    __m512i s = r[0];
    for (int i = 1; i < CHAINS; i++) s = _mm512_add_epi32(s, r[i]);
    report(a, 128.0 * CHAINS * a->code, (float)_mm512_reduce_add_epi32(s));
}
#endif

/* Eight streams of one vector each, over this thread's piece of the memory. */
static void read_run(const hd_kernel_args *a)
{
    int64_t begin, end;
    hd_split((int64_t)hd_tensor_bytes(&a->in[0]) / 64, 8, a->tid, a->threads, &begin, &end);
    const char *p = (const char *)a->in[0].data;
    vi s[8] = {{0}};
    int64_t step = (int64_t)(8 * sizeof(vi)), i = begin * 64;
    for (; i + step <= end * 64; i += step)
        for (int k = 0; k < 8; k++) {
            vi v;
            memcpy(&v, p + i + k * (int64_t)sizeof v, sizeof v);
            s[k] ^= v;
        }
    for (int k = 1; k < 8; k++) s[0] ^= s[k];
    report(a, (double)(i - begin * 64), (float)s[0][0]);
}

const hd_kernel HD_ISA(hd_kernels_measure)[] = {
    {.op = "measure.f32", .run = f32_run},
#if defined(__AVX512BF16__)
    {.op = "measure.bf16", .run = bf16_run},
#endif
#if defined(__AVX512VNNI__)
    {.op = "measure.i8", .run = i8_run},
#endif
    {.op = "measure.read", .run = read_run},
    {.op = NULL},
};
