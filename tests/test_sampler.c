/* From logits to tokens: against a plain implementation in f64 that sorts, and the sampler's promises. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "serve/sampler.h"

/* ---- the plain implementation ---- */

typedef struct item { int32_t id; double logit, p, key; } item;

static int by_key(const void *a, const void *b)
{
    const item *x = a, *y = b;
    if (x->key != y->key) return x->key < y->key ? -1 : 1;
    return x->id - y->id;
}

static int by_id(const void *a, const void *b) { return ((const item *)a)->id - ((const item *)b)->id; }

static void normalise(item *v, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++) sum += v[i].p;
    for (int i = 0; i < n; i++) v[i].p /= sum;
}

static int smallest_set(item *v, int n, double target)
{
    double sum = 0;
    int kept = 0;
    qsort(v, (size_t)n, sizeof *v, by_key);
    while (kept < n && (kept == 0 || sum < target * (1 - 1e-15))) sum += v[kept++].p;
    return kept;
}

static int32_t plain_draw(const hd_sampling *o, const double *logits, int n_logits, double u)
{
    item *v = calloc((size_t)n_logits, sizeof *v);
    int n = 0;
    double top = -INFINITY, entropy = 0;
    for (int i = 0; i < n_logits; i++) top = logits[i] > top ? logits[i] : top;
    for (int i = 0; i < n_logits; i++)
        if (logits[i] > -INFINITY) v[n++] = (item){i, logits[i], exp((logits[i] - top) / o->temperature), -logits[i]};
    qsort(v, (size_t)n, sizeof *v, by_key);
    if (o->top_k && o->top_k < n) n = (int)o->top_k;
    normalise(v, n);
    for (int i = 0; i < n; i++) entropy -= v[i].p > 0 ? v[i].p * log(v[i].p) : 0;
    for (int i = 0; i < n; i++) v[i].key = fabs(-log(v[i].p) - entropy);
    if (o->typical_p < 1) n = smallest_set(v, n, o->typical_p);
    normalise(v, n);
    for (int i = 0; i < n; i++) v[i].key = -v[i].logit;
    if (o->top_p < 1) n = smallest_set(v, n, o->top_p);
    double most = 0;
    int kept = 0;
    for (int i = 0; i < n; i++) most = v[i].p > most ? v[i].p : most;
    for (int i = 0; i < n; i++)
        if (v[i].p >= o->min_p * most) v[kept++] = v[i];
    qsort(v, (size_t)kept, sizeof *v, by_id);
    normalise(v, kept);
    int at = 0;
    while (at < kept - 1 && (u -= v[at].p) >= 0) at++;
    int32_t id = v[at].id;
    free(v);
    return id;
}

static double uniform_at(uint64_t seed, int64_t position)
{
    hd_philox b = hd_philox_block(seed, (uint64_t)position, hd_hash_string("sampler"));
    return (double)(((uint64_t)b.word[1] << 32 | b.word[0]) >> 11) / 9007199254740992.0;
}

/* ---- helpers ---- */

static float *random_logits(hd_rng *r, int n, double spread)
{
    float *x = malloc((size_t)n * sizeof *x);
    for (int i = 0; i < n; i++) x[i] = (float)(hd_rng_normal(r) * spread);
    return x;
}

static hd_token_sampler *new_sampler(const hd_sampling *o, int64_t vocab)
{
    hd_error err = {0};
    hd_token_sampler *s = hd_token_sampler_new(o, vocab, &err);
    assert_string_equal(err.message, "");
    assert_non_null(s);
    return s;
}

static double pick(hd_rng *r, const double *of, int n) { return of[hd_rng_below(r, (uint64_t)n)]; }

/* ---- tests ---- */

static void test_against_plain(void **state)
{
    (void)state;
    static const int sizes[] = {1, 2, 7, 63, 64, 65, 130, 1023, 3001};
    static const double temperatures[] = {0.1, 0.7, 1, 2.5}, ps[] = {1, 0.95, 0.5, 0.01, 1}, mins[] = {0, 0, 0.05, 0.5, 1};
    static const int64_t ks[] = {0, 0, 1, 2, 40, 50, 2000};
    hd_rng r = hd_rng_new(11);
    int different = 0;
    for (int trial = 0; trial < 1500; trial++) {
        int n = sizes[hd_rng_below(&r, 9)];
        hd_sampling o = hd_sampling_default();
        o.temperature = pick(&r, temperatures, 4);
        o.top_p = pick(&r, ps, 5);
        o.typical_p = pick(&r, ps, 5);
        o.min_p = pick(&r, mins, 5);
        o.top_k = ks[hd_rng_below(&r, 7)];
        o.seed = (uint64_t)trial;
        float *x = random_logits(&r, n, trial % 3 ? 3 : 0.01);
        uint64_t allowed[48];
        bool masked = trial % 5 == 0;
        for (int w = 0; w < 48; w++) allowed[w] = w % 3 ? 0x8001000f00f00011u : w % 2 ? 0 : UINT64_MAX;
        double *d = malloc((size_t)n * sizeof *d);
        for (int i = 0; i < n; i++) d[i] = !masked || allowed[i / 64] >> i % 64 & 1 ? x[i] : -INFINITY;
        hd_token_sampler *s = new_sampler(&o, n);
        for (int64_t position = 0; position < 3; position++)
            different += hd_token_sampler_draw(s, x, masked ? allowed : NULL, position) != plain_draw(&o, d, n, uniform_at(o.seed, position));
        hd_token_sampler_free(s);
        free(x);
        free(d);
    }
    assert_int_equal(different, 0);
}

static void test_penalties_against_plain(void **state)
{
    (void)state;
    hd_rng r = hd_rng_new(12);
    enum { N = 100 };
    for (int trial = 0; trial < 200; trial++) {
        hd_logit_bias bias[] = {{3, 1.5f}, {99, -2.25f}, {50, -INFINITY}};
        hd_sampling o = hd_sampling_default();
        o.temperature = 0.9, o.repetition_penalty = 1.3, o.frequency_penalty = 0.4, o.presence_penalty = 0.25, o.bias = bias, o.n_bias = 3, o.seed = 5;
        float *x = random_logits(&r, N, 2);
        int prompt[N] = {0}, answer[N] = {0};
        hd_token_sampler *s = new_sampler(&o, N);
        for (int i = 0; i < 60; i++) {
            int t = (int)hd_rng_below(&r, N), kind = (int)hd_rng_below(&r, 3);
            if (kind == 0) hd_token_sampler_see(s, t, false), prompt[t]++;
            if (kind == 1) hd_token_sampler_see(s, t, true), answer[t]++;
            if (kind == 2) hd_token_sampler_see(s, t, true), hd_token_sampler_unsee(s, t);
        }
        hd_token_sampler_unsee(s, -1);
        hd_token_sampler_see(s, N, true);
        double d[N];
        for (int i = 0; i < N; i++) {
            float v = x[i];
            for (int b = 0; b < 3; b++) v += bias[b].token == i ? bias[b].bias : 0;
            if (prompt[i] || answer[i]) v = v > 0 ? v / 1.3f : v * 1.3f;
            if (answer[i]) v -= (float)(answer[i] * 0.4 + 0.25);
            d[i] = v;
        }
        hd_error err = {0};
        hd_token_sampler *f = hd_token_sampler_fork(s, 77, &err);
        assert_non_null(f);
        for (int64_t position = 0; position < 5; position++) {
            assert_int_equal(hd_token_sampler_draw(s, x, NULL, position), plain_draw(&o, d, N, uniform_at(5, position)));
            assert_int_equal(hd_token_sampler_draw(f, x, NULL, position), plain_draw(&o, d, N, uniform_at(77, position)));
        }
        hd_token_sampler_free(s);
        hd_token_sampler_free(f);
        free(x);
    }
}

/* Draws come as often as they should: chi-square with 7 degrees of freedom, below 29.9 with probability 0.9999. */
static void test_frequencies(void **state)
{
    (void)state;
    enum { N = 8, DRAWS = 40000 };
    float x[N] = {0.5f, -1, 2, 0, 1, 1, -2, 0.25f};
    hd_sampling o = hd_sampling_default();
    o.temperature = 1.5;
    for (int filtered = 0; filtered < 2; filtered++) {
        int count[N] = {0};
        o.top_k = filtered ? N : 0;
        hd_token_sampler *s = new_sampler(&o, N);
        for (int i = 0; i < DRAWS; i++) count[hd_token_sampler_draw(s, x, NULL, i)]++;
        hd_token_sampler_free(s);
        double sum = 0, chi = 0;
        for (int i = 0; i < N; i++) sum += exp(x[i] / 1.5);
        for (int i = 0; i < N; i++) {
            double expected = DRAWS * exp(x[i] / 1.5) / sum;
            chi += (count[i] - expected) * (count[i] - expected) / expected;
        }
        assert_true(chi < 29.9);
    }
}

static void test_positions(void **state)
{
    (void)state;
    enum { N = 500, DRAWS = 50 };
    hd_rng r = hd_rng_new(13);
    float *x = random_logits(&r, N, 1);
    hd_sampling o = hd_sampling_default();
    o.temperature = 1, o.top_p = 0.9, o.seed = 21;
    hd_token_sampler *a = new_sampler(&o, N), *b = new_sampler(&o, N);
    int32_t first[DRAWS];
    int distinct = 0;
    for (int i = 0; i < DRAWS; i++) first[i] = hd_token_sampler_draw(a, x, NULL, i), distinct += i && first[i] != first[i - 1];
    for (int i = DRAWS; i-- > 0;) assert_int_equal(hd_token_sampler_draw(b, x, NULL, i), first[i]);
    assert_true(distinct > 30);
    hd_token_sampler_free(a);
    hd_token_sampler_free(b);
    free(x);
}

static void test_greedy(void **state)
{
    (void)state;
    hd_rng r = hd_rng_new(14);
    hd_sampling o = hd_sampling_default();
    for (int n = 1; n < 300; n += 13) {
        float *x = random_logits(&r, n, 1);
        int most = 0;
        for (int i = 0; i < n; i++) x[i] = floorf(x[i] * 2), most = x[i] > x[most] ? i : most; /* with ties */
        hd_token_sampler *s = new_sampler(&o, n);
        assert_int_equal(hd_token_sampler_draw(s, x, NULL, 0), most);
        x[most] = NAN;
        int32_t next = hd_token_sampler_draw(s, x, NULL, 0);
        assert_true(n == 1 ? next == -1 : next >= 0 && next != most);
        hd_token_sampler_free(s);
        free(x);
    }
}

static void test_odd_logits(void **state)
{
    (void)state;
    enum { N = 130 };
    float x[N];
    uint64_t none[3] = {0}, one[3] = {0};
    one[1] = 1u << 5;
    for (int kind = 0; kind < 6; kind++) {
        hd_sampling o = hd_sampling_default();
        o.temperature = kind ? 1e-310 * (kind == 1) + kind : 0;
        o.top_k = kind == 2 ? 5 : 0, o.top_p = kind == 3 ? 0.5 : 1, o.typical_p = kind == 4 ? 0.5 : 1, o.min_p = kind == 5 ? 0.1 : 0;
        hd_token_sampler *s = new_sampler(&o, N);
        for (int i = 0; i < N; i++) x[i] = NAN;
        assert_int_equal(hd_token_sampler_draw(s, x, NULL, 0), -1);
        x[100] = -INFINITY, x[120] = -INFINITY;
        assert_int_equal(hd_token_sampler_draw(s, x, NULL, 0), 100);
        x[77] = -1e30f;
        assert_int_equal(hd_token_sampler_draw(s, x, NULL, 0), 77);
        x[88] = INFINITY;
        assert_int_equal(hd_token_sampler_draw(s, x, NULL, 0), 88);
        for (int i = 0; i < N; i++) x[i] = (float)i;
        assert_int_equal(hd_token_sampler_draw(s, x, none, 0), -1);
        assert_int_equal(hd_token_sampler_draw(s, x, one, 0), 69);
        x[69] = -INFINITY;
        assert_int_equal(hd_token_sampler_draw(s, x, one, 0), 69);
        hd_token_sampler_free(s);
    }
}

/* Equal logits: the lower ids are taken. */
static void test_ties(void **state)
{
    (void)state;
    enum { N = 200 };
    float x[N];
    for (int i = 0; i < N; i++) x[i] = i % 2 ? 1 : 0;
    for (int kind = 0; kind < 3; kind++) {
        hd_sampling o = hd_sampling_default();
        o.temperature = 1;
        if (kind == 0) o.top_k = 10;
        if (kind == 1) o.temperature = 0.01, o.top_p = 0.1;
        if (kind == 2) o.temperature = 0.01, o.typical_p = 0.1;
        hd_token_sampler *s = new_sampler(&o, N);
        int highest = 0;
        for (int i = 0; i < 500; i++) {
            int32_t t = hd_token_sampler_draw(s, x, NULL, i);
            assert_int_equal(t % 2, 1);
            highest = t > highest ? t : highest;
        }
        assert_int_equal(highest, 19);
        hd_token_sampler_free(s);
    }
}

static void test_scores(void **state)
{
    (void)state;
    hd_rng r = hd_rng_new(15);
    for (int n = 1; n < 4000; n = n * 2 + 1) {
        float *x = random_logits(&r, n, 4);
        x[n / 2] = NAN;
        x[n / 3] = n > 1 ? x[0] : 1;
        double sum = 0, top = -INFINITY;
        for (int i = 0; i < n; i++) top = x[i] > top ? x[i] : top;
        for (int i = 0; i < n; i++) sum += x[i] == x[i] ? exp(x[i] - top) : 0;
        float lse = hd_logits_lse(x, n);
        if (isfinite(top)) assert_true(!(fabs(lse - (top + log(sum))) > 1e-6 * (1 + fabs(lse))));
        hd_scored_token out[20];
        int k = hd_logits_top(x, n, lse, 20, out);
        assert_int_equal(k, n < 20 ? n : 20);
        for (int i = 0; i < k; i++) {
            int rank = 0;
            int32_t t = out[i].token;
            for (int j = 0; j < n; j++) {
                float a = x[j] == x[j] ? x[j] : -INFINITY, b = x[t] == x[t] ? x[t] : -INFINITY;
                rank += a > b || (a == b && j < t);
            }
            assert_int_equal(rank, i);
            if (x[t] == x[t]) assert_true(out[i].logprob == (x[t] == lse ? 0 : x[t] - lse));
        }
        free(x);
    }
    float x[] = {-INFINITY, -INFINITY};
    assert_true(hd_logits_lse(x, 2) == -INFINITY);
}

static void test_bad_options(void **state)
{
    (void)state;
    hd_logit_bias outside = {10, 1}, nan = {1, NAN};
    struct { size_t at; double v; } bad[] = {
        {offsetof(hd_sampling, temperature), -1}, {offsetof(hd_sampling, temperature), NAN}, {offsetof(hd_sampling, top_p), 0}, {offsetof(hd_sampling, top_p), 1.1},
        {offsetof(hd_sampling, min_p), -0.1}, {offsetof(hd_sampling, min_p), 2}, {offsetof(hd_sampling, typical_p), 0}, {offsetof(hd_sampling, typical_p), NAN},
        {offsetof(hd_sampling, repetition_penalty), 0}, {offsetof(hd_sampling, frequency_penalty), INFINITY}, {offsetof(hd_sampling, presence_penalty), NAN},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        hd_error err = {0};
        hd_sampling o = hd_sampling_default();
        memcpy((char *)&o + bad[i].at, &bad[i].v, sizeof(double));
        assert_null(hd_token_sampler_new(&o, 10, &err));
        assert_int_equal(err.code, HD_EINVAL);
    }
    hd_sampling o = hd_sampling_default();
    o.n_bias = 1, o.bias = &outside;
    assert_int_equal(hd_sampling_check(&o, 10, NULL), HD_EINVAL);
    o.bias = &nan;
    assert_int_equal(hd_sampling_check(&o, 10, NULL), HD_EINVAL);
    o.n_bias = 0, o.top_k = -1;
    assert_int_equal(hd_sampling_check(&o, 10, NULL), HD_EINVAL);
    assert_int_equal(hd_sampling_check(&(hd_sampling){.top_p = 1}, 0, NULL), HD_EINVAL);
}

static void test_allocations(void **state)
{
    (void)state;
    hd_logit_bias bias = {1, 1};
    hd_sampling o = hd_sampling_default();
    o.temperature = 1, o.top_p = 0.5, o.presence_penalty = 1, o.bias = &bias, o.n_bias = 1;
    hd_token_sampler *s = NULL, *f = NULL;
    for (uint64_t nth = 1; !f; nth++) {
        hd_error err = {0};
        hd_mem_fail_at(nth);
        s = hd_token_sampler_new(&o, 1000, &err);
        if (s) f = hd_token_sampler_fork(s, 3, &err);
        hd_mem_fail_at(0);
        if (!f) assert_int_equal(err.code, HD_ENOMEM);
        if (!f) hd_token_sampler_free(s);
        assert_true(nth < 100);
    }
    float x[1000] = {0};
    uint64_t before = hd_mem_count();
    for (int i = 0; i < 10; i++) hd_token_sampler_see(s, hd_token_sampler_draw(s, x, NULL, i), true);
    assert_int_equal(hd_mem_count(), before);
    hd_token_sampler_free(s);
    hd_token_sampler_free(f);
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Prints what a draw takes; bounds belong to checks. */
static void test_speed(void **state)
{
    (void)state;
    enum { N = 262144, TIMES = 10 };
    hd_rng r = hd_rng_new(16);
    float *x = random_logits(&r, N, 2.5);
    for (int i = 0; i < 20; i++) x[hd_rng_below(&r, N)] += 20; /* as a model's: few tokens have most of the mass */
    static const char *const names[] = {"greedy", "temperature", "top-k 40", "top-p 0.95", "typical 0.95", "min-p 0.05", "top-p 0.95, flat"};
    for (int kind = 0; kind < 7; kind++) {
        hd_sampling o = hd_sampling_default();
        o.temperature = kind == 0 ? 0 : kind == 6 ? 50 : 1;
        if (kind == 2) o.top_k = 40;
        if (kind == 3 || kind == 6) o.top_p = 0.95;
        if (kind == 4) o.typical_p = 0.95;
        if (kind == 5) o.min_p = 0.05;
        hd_token_sampler *s = new_sampler(&o, N);
        double best = 1e9;
        for (int i = 0; i < TIMES; i++) {
            double from = seconds();
            assert_true(hd_token_sampler_draw(s, x, NULL, i) >= 0);
            double took = seconds() - from;
            best = took < best ? took : best;
        }
        printf("  %-18s %.3f ms\n", names[kind], best * 1e3);
        hd_token_sampler_free(s);
    }
    free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_plain), cmocka_unit_test(test_penalties_against_plain), cmocka_unit_test(test_frequencies),
        cmocka_unit_test(test_positions),     cmocka_unit_test(test_greedy),                  cmocka_unit_test(test_odd_logits),
        cmocka_unit_test(test_ties),          cmocka_unit_test(test_scores),                  cmocka_unit_test(test_bad_options),
        cmocka_unit_test(test_allocations),   cmocka_unit_test(test_speed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
