/* bench_decode.c: speed of generating from a language model with random weights: prefill, then one token at a time with the K/V cache.
 *
 *   bench_decode [key=value ...]
 * keys: arch (gpt2|llama), layers, width, heads, kv_heads, mlp, vocab, context, prompt, precision (f32|bf16), threads, seconds,
 *       equal (N), text (1: the program on standard error), table (NAME: lines for people instead of JSON)
 * Without keys: GPT-2 124M in bf16, decoding around a context of 128 tokens, a prompt of 512. Prints one JSON line.
 *
 * Decoding is held against the read bandwidth that the same threads reach, measured around each round: bytes are those of the matrices that
 * one token must read, the head once. Prefill is held against the arithmetic bound: FLOPs are those of the matrices for every token, of
 * causal attention, and of one row of logits. A round around which the bandwidth differs by over 10 % is done again, a few times at most;
 * figures are medians of rounds.
 * equal=N measures nothing: it decodes N tokens with the cache and compares each one's logits with those of feeding all tokens so far at
 * once. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/mem.h"
#include "base/rng.h"
#include "base/term.h"
#include "cluster/measure.h"
#include "serve/generator.h"

enum { MAX_ROUNDS = 512, TRIES = 4, TOKENS_A_ROUND = 32 };

typedef struct bench {
    int64_t layers, width, heads, kv_heads, mlp, vocab, context, prompt, threads, equal, text;
    double seconds;
    hd_architecture arch;
    hd_dtype precision;
    const char *table;
    hd_generator g;
    hd_team *team; /* for the bounds */
    void *buffer;
    int32_t *tokens;
} bench;

static bool set_key(bench *b, const char *key, const char *value)
{
    const struct { const char *name; int64_t *at; } whole[] = {
        {"layers", &b->layers},   {"width", &b->width}, {"heads", &b->heads},     {"kv_heads", &b->kv_heads},
        {"mlp", &b->mlp},         {"vocab", &b->vocab}, {"context", &b->context}, {"prompt", &b->prompt},
        {"threads", &b->threads}, {"equal", &b->equal}, {"text", &b->text},
    };
    for (size_t i = 0; i < sizeof whole / sizeof whole[0]; i++)
        if (!strcmp(key, whole[i].name)) return *whole[i].at = atoll(value), true;
    if (!strcmp(key, "seconds")) return b->seconds = atof(value), true;
    if (!strcmp(key, "table")) return b->table = value, true;
    if (!strcmp(key, "arch")) return !hd_architecture_parse(value, &b->arch);
    if (!strcmp(key, "precision")) return !hd_dtype_parse(value, &b->precision);
    return false;
}

static bool parse(bench *b, int argc, char **argv)
{
    *b = (bench){.layers = 12, .width = 768, .heads = 12, .vocab = 50257, .context = 128, .prompt = 512, .seconds = 4};
    b->arch = HD_ARCH_GPT2;
    b->precision = HD_BF16;
    for (int i = 1; i < argc; i++) {
        char *eq = strchr(argv[i], '=');
        if (eq) *eq = 0;
        if (!eq || !set_key(b, argv[i], eq + 1)) return fprintf(stderr, "bench_decode: there is no key \"%s\"\n", argv[i]), false;
    }
    if (b->context < 2 * TOKENS_A_ROUND || b->prompt < 1)
        return fprintf(stderr, "bench_decode: context is at least %d, prompt at least 1\n", 2 * TOKENS_A_ROUND), false;
    return true;
}

/* ---- starting ---- */

static int64_t longest(const bench *b)
{
    int64_t n = b->context + TOKENS_A_ROUND;
    if (b->prompt > n) n = b->prompt;
    return b->equal + 1 > n ? b->equal + 1 : n;
}

static void print_program(const hd_program *p)
{
    hd_str s;
    hd_str_init(&s);
    hd_program_dump(p, &s);
    fwrite(s.data, 1, s.len, stderr);
    hd_str_free(&s);
}

static int start(bench *b, hd_error *err)
{
    hd_lm_config c;
    hd_lm_config_preset(&c, b->arch);
    c.layers = b->layers, c.width = b->width, c.heads = b->heads, c.kv_heads = b->kv_heads ? b->kv_heads : b->heads, c.vocab = b->vocab;
    c.mlp_width = b->mlp ? b->mlp : 4 * b->width;
    c.max_positions = longest(b) < 1024 ? 1024 : longest(b);
    if (hd_lm_config_check(&c, "bench", err)) return err->code;
    if (!b->threads) b->threads = hd_core_count();
    hd_generator_options o = {
        .precision = b->precision, .threads = (int)b->threads, .context = longest(b), .chunk = b->prompt};
    int rc = hd_generator_open_random(&b->g, &c, 1, &o, err);
    if (rc) return rc;
    if (b->text) print_program(b->g.info.program);
    b->tokens = hd_malloc((size_t)longest(b) * sizeof *b->tokens);
    b->team = hd_team_new((int)b->threads, true, err);
    b->buffer = b->equal ? NULL : hd_map_memory(HD_MEASURE_READ_BYTES);
    if (!b->team) return err->code;
    if (!b->tokens || (!b->buffer && !b->equal)) return hd_fail_memory(err, HD_MEASURE_READ_BYTES, "measuring");
    if (b->buffer) memset(b->buffer, 1, HD_MEASURE_READ_BYTES);
    hd_rng r = hd_rng_new(7);
    for (int64_t i = 0; i < longest(b); i++) b->tokens[i] = (int32_t)hd_rng_below(&r, (uint64_t)b->vocab);
    return 0;
}

static void finish(bench *b)
{
    hd_generator_close(&b->g);
    hd_team_free(b->team);
    if (b->buffer) hd_unmap_memory(b->buffer, HD_MEASURE_READ_BYTES);
    hd_free(b->tokens);
}

/* ---- what a token costs at least ---- */

/* Elements of the matrices of all layers. */
static double layer_elements(const hd_lm_config *c)
{
    double q = (double)(c->heads * c->head_dim), kv = (double)(c->kv_heads * c->head_dim), d = (double)c->width;
    double mlp = (c->family == HD_FAMILY_GPT2 ? 2 : 3) * d * (double)c->mlp_width;
    return (double)c->layers * (2 * d * q + 2 * d * kv + mlp);
}

static double head_elements(const hd_lm_config *c)
{
    return (double)c->vocab * (double)c->width;
}

static double prefill_flops(const hd_lm_config *c, double tokens)
{
    double pairs = tokens * (tokens + 1) / 2, attention = 4 * pairs * (double)(c->layers * c->heads * c->head_dim);
    return 2 * tokens * layer_elements(c) + attention + 2 * head_elements(c);
}

/* ---- measuring ---- */

typedef struct series {
    double figure[MAX_ROUNDS], fraction[MAX_ROUNDS], bound[MAX_ROUNDS]; /* seconds; of the bound; the bound */
    int n, repeated, uneven;
} series;

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, int n)
{
    qsort(x, (size_t)n, sizeof *x, by_value);
    return n ? x[n / 2] : 0;
}

static double read_bandwidth(const bench *b)
{
    return hd_measure_median(HD_BOUND_READ, b->team, hd_isa_detect(), 5, b->buffer);
}

static double flop_bound(const bench *b)
{
    return hd_measure(b->precision == HD_BF16 ? HD_BOUND_BF16 : HD_BOUND_F32, b->team, hd_isa_detect(), 5, NULL);
}

/* Seconds a token, over TOKENS_A_ROUND tokens whose contexts are b->context in the mean. */
static int decode_round(bench *b, double *seconds, hd_error *err)
{
    const float *logits;
    int64_t first = b->context - TOKENS_A_ROUND / 2;
    hd_generator_reset(&b->g);
    int rc = hd_generator_feed(&b->g, b->tokens, first, &logits, err);
    double begin = hd_time();
    for (int i = 0; i < TOKENS_A_ROUND && !rc; i++) rc = hd_generator_feed(&b->g, b->tokens + first + i, 1, &logits, err);
    *seconds = (hd_time() - begin) / TOKENS_A_ROUND;
    return rc;
}

static int prefill_round(bench *b, double *seconds, hd_error *err)
{
    const float *logits;
    hd_generator_reset(&b->g);
    double begin = hd_time();
    int rc = hd_generator_feed(&b->g, b->tokens, b->prompt, &logits, err);
    *seconds = hd_time() - begin;
    return rc;
}

/* Rounds for b->seconds, at least three; `work` per figure is held against what `bound` says before and after. */
static int measure(bench *b, series *s, int (*round)(bench *, double *, hd_error *), double (*bound)(const bench *), double work,
                   hd_error *err)
{
    double ignored, begin = hd_time();
    int rc = round(b, &ignored, err), attempt = 0;
    while (!rc && s->n < MAX_ROUNDS && (s->n < 3 || hd_time() - begin < b->seconds)) {
        double before = bound(b), seconds = 0;
        rc = round(b, &seconds, err);
        double after = bound(b), most = fmax(before, after);
        bool uneven = most > 1.1 * fmin(before, after);
        if (uneven && ++attempt < TRIES) {
            s->repeated++;
            continue;
        }
        attempt = 0;
        s->uneven += uneven;
        s->figure[s->n] = seconds;
        s->bound[s->n] = (before + after) / 2;
        s->fraction[s->n] = work / seconds / s->bound[s->n];
        s->n++;
    }
    return rc;
}

static void print_json(const bench *b, series *d, series *p, double bytes, double flops)
{
    double token = median(d->figure, d->n), prompt = median(p->figure, p->n);
    printf("{\"threads\": %lld, \"decode_ms\": %.4f, \"decode_tokens_per_second\": %.1f, \"weight_bytes\": %.0f, \"decode_gbs\": %.2f, "
           "\"read_gbs\": %.2f, \"decode_fraction\": %.3f, ",
           (long long)b->threads, 1e3 * token, 1 / token, bytes, bytes / token * 1e-9, median(d->bound, d->n) * 1e-9,
           median(d->fraction, d->n));
    printf("\"prefill_tokens\": %lld, \"prefill_ms\": %.2f, \"prefill_tokens_per_second\": %.0f, \"prefill_gflops\": %.1f, "
           "\"bound_gflops\": %.1f, \"prefill_fraction\": %.3f, \"rounds\": %d, \"repeated\": %d, \"uneven\": %d, \"peak_bytes\": %llu}\n",
           (long long)b->prompt, 1e3 * prompt, (double)b->prompt / prompt, flops / prompt * 1e-9, median(p->bound, p->n) * 1e-9,
           median(p->fraction, p->n), d->n + p->n, d->repeated + p->repeated, d->uneven + p->uneven, (unsigned long long)hd_memory_peak());
}

static void print_lines(const bench *b, series *d, series *p, double bytes, double flops)
{
    double token = median(d->figure, d->n), prompt = median(p->figure, p->n);
    printf("%-14s %-4s %lld thread%s decode at %lld    %9.1f tokens/s %8.1f GB/s of %7.1f: %5.1f %%\n", b->table,
           hd_dtype_name(b->precision), (long long)b->threads, b->threads == 1 ? " " : "s", (long long)b->context, 1 / token,
           bytes / token * 1e-9, median(d->bound, d->n) * 1e-9, 100 * median(d->fraction, d->n));
    printf("%-14s %-4s %lld thread%s prefill of %lld   %9.0f tokens/s %8.1f GFLOP/s of %7.1f: %5.1f %%\n", b->table,
           hd_dtype_name(b->precision), (long long)b->threads, b->threads == 1 ? " " : "s", (long long)b->prompt,
           (double)b->prompt / prompt, flops / prompt * 1e-9, median(p->bound, p->n) * 1e-9, 100 * median(p->fraction, p->n));
}

static int measure_all(bench *b, hd_error *err)
{
    static series decode, prefill;
    double bytes = (layer_elements(b->g.info.config) + head_elements(b->g.info.config)) * (double)hd_dtype_size(b->precision);
    double flops = prefill_flops(b->g.info.config, (double)b->prompt);
    int rc = measure(b, &decode, decode_round, read_bandwidth, bytes, err);
    if (!rc) rc = measure(b, &prefill, prefill_round, flop_bound, flops, err);
    if (rc) return rc;
    if (b->table) print_lines(b, &decode, &prefill, bytes, flops);
    else print_json(b, &decode, &prefill, bytes, flops);
    return 0;
}

/* ---- the cache against full recomputation ---- */

/* All tokens one at a time first; then each prefix at once, from an empty cache. */
static int compare_logits(bench *b, hd_error *err)
{
    int64_t v = b->vocab, n = b->equal;
    const float *logits;
    double worst = 0, largest = 0;
    float *kept = hd_malloc((size_t)(n * v) * sizeof *kept);
    if (!kept) return hd_fail_memory(err, (size_t)(n * v) * sizeof *kept, "logits to compare");
    int rc = 0;
    for (int64_t i = 0; i < n && !rc; i++) {
        rc = hd_generator_feed(&b->g, b->tokens + i, 1, &logits, err);
        if (!rc) memcpy(kept + i * v, logits, (size_t)v * sizeof *kept);
    }
    for (int64_t i = 0; i < n && !rc; i++) {
        hd_generator_reset(&b->g);
        rc = hd_generator_feed(&b->g, b->tokens, i + 1, &logits, err);
        for (int64_t j = 0; j < v && !rc; j++) {
            double d = fabs((double)logits[j] - (double)kept[i * v + j]);
            if (!(d <= worst)) worst = isnan(d) ? INFINITY : d;
            largest = fmax(largest, fabs((double)logits[j]));
        }
    }
    hd_free(kept);
    if (!rc)
        printf("{\"threads\": %lld, \"compared\": %lld, \"largest_difference\": %.9g, \"largest_logit\": %.9g}\n", (long long)b->threads,
               (long long)n, worst, largest);
    return rc;
}

int main(int argc, char **argv)
{
    static bench b;
    hd_error err = {0};
    if (!parse(&b, argc, argv)) return 2;
    int rc = start(&b, &err);
    if (!rc) rc = b.equal ? compare_logits(&b, &err) : measure_all(&b, &err);
    if (rc) fprintf(stderr, "bench_decode: %s\n", err.message);
    finish(&b);
    return rc ? 1 : 0;
}
