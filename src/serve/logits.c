#include "serve/logits.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "serve/sampler.h"

enum { LANES = 16, WIDE = 8 };
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t masks __attribute__((vector_size(4 * LANES)));
typedef float half_floats __attribute__((vector_size(4 * WIDE)));
typedef double doubles __attribute__((vector_size(8 * WIDE)));
typedef int64_t longs __attribute__((vector_size(8 * WIDE)));

#define ALWAYS static inline __attribute__((always_inline))

/* ---- the highest ---- */

ALWAYS void keep_higher(floats *m, const floats *v)
{
    masks more = *v > *m;
    *m = (floats)(((masks)*v & more) | ((masks)*m & ~more));
}

/* Of a block of n <= HD_LOGITS_BLOCK. */
ALWAYS float block_max(const float *x, int64_t n)
{
    floats m[HD_LOGITS_BLOCK / LANES];
    float most = -INFINITY;
    if (n < HD_LOGITS_BLOCK) {
        for (int64_t i = 0; i < n; i++) most = x[i] > most ? x[i] : most;
        return most;
    }
    floats low = (floats){0} - INFINITY;
    memcpy(m, x, sizeof m);
    for (int i = 0; i < HD_LOGITS_BLOCK / LANES; i++) keep_higher(&low, &m[i]);
    for (int i = 0; i < LANES; i++) most = low[i] > most ? low[i] : most;
    return most;
}

ALWAYS int64_t block_size(int64_t n, int64_t from) { return n - from < HD_LOGITS_BLOCK ? n - from : HD_LOGITS_BLOCK; }

ALWAYS float max_body(const float *x, int64_t n, float *highest)
{
    float most = -INFINITY;
    for (int64_t i = 0, b = 0; i < n; i += HD_LOGITS_BLOCK, b++) {
        float m = block_max(x + i, block_size(n, i));
        if (highest) highest[b] = m;
        most = m > most ? m : most;
    }
    return most;
}

static int64_t first_number(const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (x[i] == x[i]) return i;
    return -1;
}

ALWAYS int64_t argmax_body(const float *x, int64_t n)
{
    float most = -INFINITY;
    int64_t at = -1;
    for (int64_t i = 0; i < n; i += HD_LOGITS_BLOCK) {
        float m = block_max(x + i, block_size(n, i));
        if (m > most) most = m, at = i;
    }
    if (at < 0) return first_number(x, n);
    while (x[at] != most) at++;
    return at;
}

/* ---- sums of exponentials ---- */

/* exp by y = k ln 2 + r, |r| <= ln 2 / 2, and Taylor's polynomial of degree 12 (its rest is below 2^-52). */
ALWAYS void exp_lanes(doubles *y)
{
    const double shift = 0x1.8p52, ln2_high = 0x1.62e42fefa39efp-1, ln2_low = 0x1.abc9e3b39803fp-56;
    longs live = *y >= -700.0;
    doubles x = (doubles)((longs)*y & live); /* NaN and what is too small become 0 */
    doubles k = x * 1.4426950408889634 + shift;
    longs exponent = (longs)k << 52;
    k -= shift;
    doubles r = (x - k * ln2_high) - k * ln2_low;
    static const double c[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720,
                               1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1, 1};
    doubles p = (doubles){0} + c[0];
    for (int i = 1; i < 13; i++) p = p * r + c[i];
    *y = (doubles)(((longs)p + exponent) & live);
}

ALWAYS void exp_body(double *y)
{
    doubles v;
    memcpy(&v, y, sizeof v);
    exp_lanes(&v);
    memcpy(y, &v, sizeof v);
}

typedef struct sums { doubles sum, tilt, above[HD_LOGITS_LEVELS]; } sums;

ALWAYS void add_lanes(const float *x, float top, double scale, double least, bool levels, sums *s)
{
    half_floats v;
    memcpy(&v, x, sizeof v);
    doubles d = __builtin_convertvector(v, doubles);
    longs in = d >= least;
    doubles y = (d - (double)top) * scale, w = y;
    exp_lanes(&w);
    w = (doubles)((longs)w & in);
    longs some = w > 0; /* 0 times -infinity is no part of the sum */
    s->sum += w;
    s->tilt += w * (doubles)((longs)y & some);
    for (int i = 0; levels && i < HD_LOGITS_LEVELS; i++) s->above[i] += (doubles)((longs)w & (y >= -(double)(i + 1)));
}

ALWAYS double all_lanes(const doubles *v)
{
    double sum = 0;
    for (int i = 0; i < WIDE; i++) sum += (*v)[i];
    return sum;
}

ALWAYS hd_logits_mass sum_body(const float *x, int64_t n, float top, double scale, double least, double *above)
{
    sums s = {0};
    int64_t i = 0;
    for (; i + WIDE <= n; i += WIDE) add_lanes(x + i, top, scale, least, above != NULL, &s);
    if (i < n) {
        float rest[WIDE];
        for (int j = 0; j < WIDE; j++) rest[j] = i + j < n ? x[i + j] : -INFINITY;
        add_lanes(rest, top, scale, least, above != NULL, &s);
    }
    for (int j = 0; above && j < HD_LOGITS_LEVELS; j++) above[j] = all_lanes(&s.above[j]);
    return (hd_logits_mass){all_lanes(&s.sum), all_lanes(&s.tilt)};
}

/* ---- the same for each instruction set: no product is fused with a sum, so all give the same bits ---- */

#define VARIANTS(attribute, suffix) \
    attribute static float max##suffix(const float *x, int64_t n, float *h) { return max_body(x, n, h); } \
    attribute static int64_t argmax##suffix(const float *x, int64_t n) { return argmax_body(x, n); } \
    attribute static hd_logits_mass sum##suffix(const float *x, int64_t n, float top, double scale, double least) \
    { \
        return sum_body(x, n, top, scale, least, NULL); \
    } \
    attribute static void exp##suffix(double *y) { exp_body(y); } \
    attribute static hd_logits_mass levels##suffix(const float *x, int64_t n, float top, double scale, double *above) \
    { \
        return sum_body(x, n, top, scale, -INFINITY, above); \
    }

VARIANTS(, _plain)
#if defined(__x86_64__)
VARIANTS(__attribute__((target("avx2"))), _avx2)
VARIANTS(__attribute__((target("avx512f,avx512dq,avx512vl"))), _avx512)
static bool has_avx512(void) { return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"); }
#define DISPATCH(name, ...) \
    (has_avx512() ? name##_avx512(__VA_ARGS__) : __builtin_cpu_supports("avx2") ? name##_avx2(__VA_ARGS__) : name##_plain(__VA_ARGS__))
#else
#define DISPATCH(name, ...) name##_plain(__VA_ARGS__)
#endif

float hd_logits_max(const float *x, int64_t n, float *highest) { return DISPATCH(max, x, n, highest); }
int64_t hd_logits_argmax(const float *x, int64_t n) { return DISPATCH(argmax, x, n); }

void hd_logits_exp(double y[WIDE]) { DISPATCH(exp, y); }

hd_logits_mass hd_logits_sum(const float *x, int64_t n, float top, double scale, double least) { return DISPATCH(sum, x, n, top, scale, least); }

hd_logits_mass hd_logits_levels(const float *x, int64_t n, float top, double scale, double above[HD_LOGITS_LEVELS])
{
    return DISPATCH(levels, x, n, top, scale, above);
}

float hd_logits_lse(const float *logits, int64_t vocab)
{
    float top = hd_logits_max(logits, vocab, NULL);
    if (isinf(top)) return top;
    return (float)(top + log(hd_logits_sum(logits, vocab, top, 1, -INFINITY).sum));
}

/* ---- the likeliest ---- */

/* Whether a stands before b. */
static bool before(hd_scored_token a, hd_scored_token b) { return a.logprob != b.logprob ? a.logprob > b.logprob : a.token < b.token; }

static int likeliest_first(const void *a, const void *b)
{
    const hd_scored_token *x = a, *y = b;
    return before(*x, *y) ? -1 : before(*y, *x);
}

/* out[k] is a heap, the last in order at its root: puts t in the place of the root. */
static void replace_root(hd_scored_token *out, int k, hd_scored_token t)
{
    int at = 0;
    for (int child; (child = 2 * at + 1) < k; at = child) {
        if (child + 1 < k && before(out[child], out[child + 1])) child++;
        if (!before(t, out[child])) break;
        out[at] = out[child];
    }
    out[at] = t;
}

static void put(hd_scored_token *out, int *n, int k, hd_scored_token t)
{
    if (*n == k) {
        if (before(t, out[0])) replace_root(out, k, t);
        return;
    }
    int at = (*n)++;
    for (; at > 0 && before(out[(at - 1) / 2], t); at = (at - 1) / 2) out[at] = out[(at - 1) / 2];
    out[at] = t;
}

int hd_logits_top(const float *logits, int64_t vocab, float lse, int k, hd_scored_token *out)
{
    int n = 0;
    if (k > vocab) k = (int)vocab;
    if (k <= 0) return 0;
    for (int64_t i = 0; i < vocab; i += HD_LOGITS_BLOCK) {
        int64_t size = block_size(vocab, i);
        if (n == k && !(block_max(logits + i, size) > out[0].logprob)) continue;
        for (int64_t j = i; j < i + size; j++) put(out, &n, k, (hd_scored_token){(int32_t)j, logits[j] == logits[j] ? logits[j] : -INFINITY});
    }
    qsort(out, (size_t)n, sizeof *out, likeliest_first);
    for (int i = 0; i < n; i++) out[i].logprob = out[i].logprob == lse ? 0 : out[i].logprob - lse;
    return n;
}
