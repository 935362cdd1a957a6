/* The register tile of the dense product, one instance for each number of rows and of vectors, so that edges waste no multiply-adds and
 * every instance sums in the same order. */
#include "kernels/cpu/isa/gemm_trim.h"

HD_INLINE vacc start(const int32_t *init, int j)
{
#if HD_GEMM_UNIT == 4
    return acc_load(init + j * HD_VL);
#else
    (void)init, (void)j;
    return (vacc){0};
#endif
}

HD_INLINE void store_tile(int mr, int nv, vacc acc[HD_GEMM_MR][HD_GEMM_NV], gemm_acc *const *c, bool add)
{
    HD_UNROLL
    for (int i = 0; i < mr; i++)
        HD_UNROLL
        for (int j = 0; j < nv; j++) {
            gemm_acc *p = c[i] + j * HD_VL;
            acc_store(p, add ? acc_load(p) + acc[i][j] : acc[i][j]);
        }
}

/* One row streams b from memory: ask for it this many words of k ahead (4.6 KiB with 48 words a step), into the second-level cache. Measured on Zen 4 with bf16
 * weights: as quick with 16, 10 % slower with 48, or into the first level. */
#define STREAM_AHEAD 24

HD_INLINE void micro(int mr, int nv, const uint32_t *a, const uint32_t *b, const int32_t *init, int64_t kw, gemm_acc *const *c, bool add)
{
    vacc acc[HD_GEMM_MR][HD_GEMM_NV];
    HD_UNROLL
    for (int i = 0; i < mr; i++)
        HD_UNROLL
        for (int j = 0; j < nv; j++) {
            acc[i][j] = start(init, j);
            __builtin_prefetch(c[i] + j * HD_VL, 1);
        }
    for (int64_t k = 0; k < kw; k++) {
        vf bv[HD_GEMM_NV];
        HD_UNROLL
        for (int j = 0; j < nv; j++) {
            bv[j] = vf_load((const float *)b + j * HD_VL);
            if (mr <= 2) __builtin_prefetch(b + STREAM_AHEAD * HD_GEMM_NR + j * HD_VL, 0, 2);
        }
        HD_UNROLL
        for (int i = 0; i < mr; i++) {
            vf av = vf_set1(((const float *)a)[i]);
            HD_UNROLL
            for (int j = 0; j < nv; j++) acc[i][j] = multiply_add(av, bv[j], acc[i][j]);
        }
        a += mr;
        b += HD_GEMM_NR;
    }
    store_tile(mr, nv, acc, c, add);
}

#define NAME(mr, nv) micro_##mr##_##nv
#define INSTANCE(mr, nv) \
    static void NAME(mr, nv)(const uint32_t *a, const uint32_t *b, const int32_t *init, int64_t kw, gemm_acc *const *c, bool add) \
    { micro(mr, nv, a, b, init, kw, c, add); }

#if HD_GEMM_NV == 3
#define INSTANCES(mr) INSTANCE(mr, 1) INSTANCE(mr, 2) INSTANCE(mr, 3)
#define ROW(mr) {NAME(mr, 1), NAME(mr, 2), NAME(mr, 3)}
#else
#define INSTANCES(mr) INSTANCE(mr, 1) INSTANCE(mr, 2)
#define ROW(mr) {NAME(mr, 1), NAME(mr, 2)}
#endif

INSTANCES(1) INSTANCES(2) INSTANCES(3) INSTANCES(4)
#if HD_GEMM_MR >= 6
INSTANCES(5) INSTANCES(6)
#endif
#if HD_GEMM_MR >= 8
INSTANCES(7) INSTANCES(8)
#endif

static const gemm_micro_fn instances[HD_GEMM_MR][HD_GEMM_NV] = {
    ROW(1), ROW(2), ROW(3), ROW(4),
#if HD_GEMM_MR >= 6
    ROW(5), ROW(6),
#endif
#if HD_GEMM_MR >= 8
    ROW(7), ROW(8),
#endif
};

gemm_micro_fn HD_ISA(hd_gemm_micro)(int mr, int nv)
{
    return instances[mr - 1][nv - 1];
}

/* ---- the same over trimmed panels ---- */

#if HD_GEMM_UNIT == 2
/* Vectors of words v .. v + 3 of a group: step s of k is vectors 3 * s .. 3 * s + 2. */
HD_INLINE void add_third(int mr, const uint32_t *a, int v, const __m512i word[4], vacc acc[HD_GEMM_MR][HD_GEMM_NV])
{
    HD_UNROLL
    for (int i = 0; i < 4; i++)
        HD_UNROLL
        for (int r = 0; r < mr; r++) {
            int step = (v + i) / HD_GEMM_NV, j = (v + i) % HD_GEMM_NV;
            acc[r][j] = multiply_add(vf_set1(((const float *)a)[step * mr + r]), (vf)word[i], acc[r][j]);
        }
}

/* A group that has something rare, or whose last steps are none. */
HD_INLINE void add_rare_group(int mr, const uint32_t *a, trim_reader *t, int steps, vacc acc[HD_GEMM_MR][HD_GEMM_NV])
{
    uint16_t word[HD_GEMM_TRIM_ELEMENTS];
    trim_group(t, word);
    for (int step = 0; step < steps; step++)
        HD_UNROLL
        for (int r = 0; r < mr; r++)
            HD_UNROLL
            for (int j = 0; j < HD_GEMM_NV; j++) {
                vf b;
                memcpy(&b, word + (step * HD_GEMM_NV + j) * 32, sizeof b);
                acc[r][j] = multiply_add(vf_set1(((const float *)a)[step * mr + r]), b, acc[r][j]);
            }
}

/* Nothing is fetched ahead: what is read goes up without a gap, and the machine's own prefetching alone is quickest (Zen 4: 32 GB/s of bf16 from memory of
 * which one thread reads 27; with prefetches between the loads 26). */
HD_INLINE void micro_trimmed(int mr, const uint32_t *a, const hd_gemm_trim *b, int64_t group, int64_t kw, gemm_acc *const *c, bool add)
{
    vacc acc[HD_GEMM_MR][HD_GEMM_NV];
    trim_reader t = trim_open(b, (uint32_t)group);
    HD_UNROLL
    for (int i = 0; i < mr; i++)
        HD_UNROLL
        for (int j = 0; j < HD_GEMM_NV; j++) acc[i][j] = (vacc){0};
    for (int64_t k = 0; k < kw; k += HD_GEMM_TRIM_STEPS, a += HD_GEMM_TRIM_STEPS * mr) {
        if (__builtin_expect(trim_has_rare(&t) || kw - k < HD_GEMM_TRIM_STEPS, 0))
            add_rare_group(mr, a, &t, kw - k < HD_GEMM_TRIM_STEPS ? (int)(kw - k) : HD_GEMM_TRIM_STEPS, acc);
        else
            HD_UNROLL
            for (int third = 0; third < TRIM_THIRDS; third++) {
                __m512i word[4];
                trim_third(&t, third, word);
                add_third(mr, a, 4 * third, word, acc);
                /* The next third is not unpacked before this one is used up: many rows leave few registers. */
                __asm__ volatile("" : "+r"(t.group), "+v"(acc[mr - 1][HD_GEMM_NV - 1]));
            }
        trim_next(&t);
    }
    store_tile(mr, HD_GEMM_NV, acc, c, add);
}

#define TRIMMED(mr) \
    static void micro_trimmed_##mr(const uint32_t *a, const hd_gemm_trim *b, int64_t group, int64_t kw, gemm_acc *const *c, bool add) \
    { micro_trimmed(mr, a, b, group, kw, c, add); }
TRIMMED(1) TRIMMED(2) TRIMMED(3) TRIMMED(4) TRIMMED(5) TRIMMED(6) TRIMMED(7) TRIMMED(8)

gemm_trimmed_fn HD_ISA(hd_gemm_micro_trimmed)(int mr)
{
    static const gemm_trimmed_fn by_rows[HD_GEMM_MR] = {micro_trimmed_1, micro_trimmed_2, micro_trimmed_3, micro_trimmed_4,
                                                        micro_trimmed_5, micro_trimmed_6, micro_trimmed_7, micro_trimmed_8};
    return by_rows[mr - 1];
}
#endif

/* ---- one row against columns that lie next to each other ---- */

#if HD_GEMM_UNIT < 4
/* Words of columns j .. j+n-1 at one word of k; last: the word has only its first element. */
HD_INLINE vf stream_word(const char *p, hd_dtype t, int64_t step, int64_t j, int n, bool last)
{
#if HD_GEMM_UNIT == 2
    (void)t;
    const uint16_t *even = (const uint16_t *)p + j, *odd = even + step;
    vh a = n == HD_VL ? vh_load(even) : vh_load_n(even, n), b = {0};
    if (!last) b = n == HD_VL ? vh_load(odd) : vh_load_n(odd, n);
    return (vf)(__builtin_convertvector(a, vu) | __builtin_convertvector(b, vu) << 16);
#else
    (void)step, (void)last;
    return n == HD_VL ? vf_load_as(p, t, j) : vf_load_as_n(p, t, j, n);
#endif
}

/* `words` steps of the chain (a constant) for all columns. */
HD_INLINE void stream_words(gemm_acc *sum, int64_t columns, const uint32_t *x, int x_stride, const char *b, hd_dtype t, int64_t step,
                            int words, bool last)
{
    int64_t bytes = step * HD_GEMM_UNIT * (t == HD_F32 ? 4 : 2);
    for (int64_t j = 0; j < columns; j += HD_VL) {
        int n = columns - j < HD_VL ? (int)(columns - j) : HD_VL;
        vf s = n == HD_VL ? vf_load(sum + j) : vf_load_n(sum + j, n);
        for (int i = 0; i < words; i++)
            s = multiply_add(vf_set1(((const float *)x)[i * x_stride]), stream_word(b + i * bytes, t, step, j, n, last), s);
        if (n == HD_VL) vf_store(sum + j, s);
        else vf_store_n(sum + j, s, n);
    }
}

HD_INLINE void stream_row(gemm_acc *sum, int64_t columns, const uint32_t *x, int x_stride, const char *b, hd_dtype t, int64_t step,
                          int64_t kn)
{
    int64_t bytes = step * HD_GEMM_UNIT * (t == HD_F32 ? 4 : 2), words = kn / HD_GEMM_UNIT, w = 0;
    for (; w + 4 <= words; w += 4) stream_words(sum, columns, x + w * x_stride, x_stride, b + w * bytes, t, step, 4, false);
    for (; w < words; w++) stream_words(sum, columns, x + w * x_stride, x_stride, b + w * bytes, t, step, 1, false);
    if (kn % HD_GEMM_UNIT) stream_words(sum, columns, x + w * x_stride, x_stride, b + w * bytes, t, step, 1, true);
}

void HD_ISA(hd_gemm_stream_row)(gemm_acc *sum, int64_t columns, const uint32_t *x, int x_stride, const void *b, hd_dtype tb, int64_t step,
                                int64_t kn)
{
    if (tb == HD_F32) stream_row(sum, columns, x, x_stride, b, HD_F32, step, kn);
    else if (tb == HD_BF16) stream_row(sum, columns, x, x_stride, b, HD_BF16, step, kn);
    else stream_row(sum, columns, x, x_stride, b, HD_F16, step, kn);
}
#endif
