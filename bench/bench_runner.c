/* bench_runner.c: speed of a model as it is served (serve/lm_runner.h): decoding of 1 .. many sequences at once, and prompts.
 *
 *   bench_runner MODEL [key=value ...]
 * keys: threads, context (tokens in the cache when decoding; 128), rows (sequences that decode at once; 1), prompt (tokens; 0: no prompts), seconds (4),
 *       precision (f32|bf16), kv (f32|bf16|f16|i8)
 * Prints one JSON line. Decoding is held against the read bandwidth that the same threads reach, measured before and after each round: bytes are those of the
 * matrices as the file holds them, the head once. Products are held against the arithmetic bound of int8 (of f32 or bf16 where the file holds such): two operations
 * for each weight and row. Figures are medians of rounds. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/mem.h"
#include "base/term.h"
#include "cluster/measure.h"
#include "serve/lm_runner.h"
#include "serve/model.h"

enum { MAX_ROUNDS = 256, STEPS = 8 };

typedef struct bench {
    const char *model;
    int64_t threads, context, rows, prompt;
    double seconds;
    hd_lm_runner_options o;
    hd_runner *r;
    hd_lm_runner_info info;
    hd_team *team;
    void *buffer;
    double weights, weight_bytes; /* of the matrices that a token needs */
    bool plain;                   /* the file holds no blocks */
    int32_t *tokens, *tables;
    hd_batch_part *parts;
} bench;

static bool set_key(bench *b, const char *key, const char *value)
{
    const struct { const char *name; int64_t *at; } whole[] = {{"threads", &b->threads}, {"context", &b->context}, {"rows", &b->rows}, {"prompt", &b->prompt}};
    for (size_t i = 0; i < sizeof whole / sizeof whole[0]; i++)
        if (!strcmp(key, whole[i].name)) return *whole[i].at = atoll(value), true;
    if (!strcmp(key, "seconds")) return b->seconds = atof(value), true;
    if (!strcmp(key, "precision")) return !hd_dtype_parse(value, &b->o.precision);
    if (!strcmp(key, "kv")) return !hd_dtype_parse(value, &b->o.kv);
    return false;
}

/* What one token reads: every matrix of the file but a table of embeddings that isn't the head too. */
static int count_weights(bench *b, hd_error *err)
{
    hd_model_files files;
    int rc = hd_model_files_open(&files, b->model, err);
    if (rc) return rc;
    b->plain = true;
    for (size_t i = 0; i < files.file.count; i++) {
        const hd_weight *w = &files.file.tensors[i];
        if (w->rank != 2 || (!strcmp(w->name, "token_embd.weight") && !files.config.tie_embeddings)) continue;
        b->weights += (double)(w->dim[0] * w->dim[1]);
        b->weight_bytes += (double)w->bytes;
        b->plain &= files.file.types[i]->plain;
    }
    if (!files.is_gguf) b->weights = (double)hd_lm_config_parameters(&files.config), b->weight_bytes = b->weights * (double)hd_dtype_size(files.config.dtype);
    hd_model_files_close(&files);
    return 0;
}

static int open_bench(bench *b, hd_error *err)
{
    int64_t longest = b->context + STEPS * MAX_ROUNDS > b->prompt ? b->context + 64 : b->prompt, block = 16;
    if (longest < b->prompt) longest = b->prompt;
    b->o.threads = (int)b->threads, b->o.block = block, b->o.context = longest, b->o.max_parts = b->rows;
    b->o.max_tokens = b->prompt > 512 ? b->prompt : 512;
    if (b->o.max_tokens < b->rows) b->o.max_tokens = b->rows;
    int rc = count_weights(b, err);
    if (!rc) rc = hd_lm_runner_open(&b->r, b->model, &b->o, &b->info, err);
    if (!rc && !(b->team = hd_team_new(b->info.threads, true, err))) rc = err->code;
    if (rc) return rc;
    int64_t each = (longest + block - 1) / block;
    b->buffer = hd_map_memory(HD_MEASURE_READ_BYTES);
    b->tokens = hd_calloc((size_t)(longest + b->rows), sizeof *b->tokens);
    b->tables = hd_calloc((size_t)(each * b->rows), sizeof *b->tables);
    b->parts = hd_calloc((size_t)b->rows, sizeof *b->parts);
    if (!b->buffer || !b->tokens || !b->tables || !b->parts) return hd_fail_memory(err, HD_MEASURE_READ_BYTES, "measuring");
    if (b->r->blocks < each * b->rows) return hd_fail(err, HD_EMEMCAP, "there is no room for %lld sequences of %lld", (long long)b->rows, (long long)longest);
    memset(b->buffer, 1, HD_MEASURE_READ_BYTES); /* pages that nobody has written are one and the same */
    for (int64_t i = 0; i < each * b->rows; i++) b->tables[i] = (int32_t)i;
    for (int64_t i = 0; i < longest + b->rows; i++) b->tokens[i] = (int32_t)(i * 7919 % b->r->vocab);
    for (int64_t i = 0; i < b->rows; i++) b->parts[i] = (hd_batch_part){b->tokens + i, 1, 0, b->tables + i * each, 1};
    return 0;
}

static int fill_context(bench *b, hd_error *err)
{
    int rc = 0;
    for (int64_t i = 0; i < b->rows && !rc; i++)
        for (int64_t at = 0; at < b->context && !rc; at += b->r->max_tokens) {
            int64_t n = b->context - at < b->r->max_tokens ? b->context - at : b->r->max_tokens;
            rc = hd_runner_step(b->r, &(hd_batch){&(hd_batch_part){b->tokens + at, n, at, b->parts[i].blocks, 0}, 1}, err);
        }
    return rc;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, int n)
{
    qsort(x, (size_t)n, sizeof *x, by_value);
    return n ? x[n / 2] : NAN;
}

/* Seconds of one decoding step of all sequences. */
static int decode(bench *b, double *seconds, hd_error *err)
{
    int rc = 0;
    double begin = hd_time();
    for (int i = 0; i < STEPS && !rc; i++) {
        for (int64_t k = 0; k < b->rows; k++) b->parts[k].position = b->context + i;
        rc = hd_runner_step(b->r, &(hd_batch){b->parts, b->rows}, err);
    }
    *seconds = (hd_time() - begin) / STEPS;
    return rc;
}

static int prompt(bench *b, double *seconds, hd_error *err)
{
    double begin = hd_time();
    int rc = hd_runner_step(b->r, &(hd_batch){&(hd_batch_part){b->tokens, b->prompt, 0, b->tables, 1}, 1}, err);
    *seconds = hd_time() - begin;
    return rc;
}

static int measure(bench *b, hd_error *err)
{
    static double step[MAX_ROUNDS], prefill[MAX_ROUNDS], read[MAX_ROUNDS], bound[MAX_ROUNDS], reads[MAX_ROUNDS], sums[MAX_ROUNDS];
    hd_isa isa = hd_isa_detect();
    hd_bound kind = !b->plain ? HD_BOUND_I8 : b->info.precision == HD_BF16 ? HD_BOUND_BF16 : HD_BOUND_F32;
    int n = 0, rc = fill_context(b, err);
    for (double begin = hd_time(); !rc && n < MAX_ROUNDS && (n < 3 || hd_time() - begin < b->seconds); n++) {
        double before = hd_measure(HD_BOUND_READ, b->team, isa, 1, b->buffer);
        rc = decode(b, &step[n], err);
        read[n] = (before + hd_measure(HD_BOUND_READ, b->team, isa, 1, b->buffer)) / 2;
        bound[n] = hd_measure(kind, b->team, isa, 2, NULL);
        if (!rc && b->prompt) rc = prompt(b, &prefill[n], err);
        reads[n] = b->weight_bytes / step[n] / read[n];
        sums[n] = 2 * b->weights * (double)b->rows / step[n] / bound[n];
    }
    if (rc) return rc;
    double s = median(step, n), p = b->prompt ? median(prefill, n) : NAN, most = median(bound, n);
    printf("{\"weights\": \"%s\", \"threads\": %d, \"rows\": %lld, \"context\": %lld, \"precision\": \"%s\", \"kv\": \"%s\", \"tokens_per_second\": %.2f, "
           "\"gbs\": %.2f, \"read_gbs\": %.2f, \"read_fraction\": %.3f, \"gops\": %.1f, \"bound_gops\": %.1f, \"ops_fraction\": %.3f",
           b->info.weights, b->info.threads, (long long)b->rows, (long long)b->context, hd_dtype_name(b->info.precision), hd_dtype_name(b->info.kv), (double)b->rows / s,
           b->weight_bytes / s * 1e-9, median(read, n) * 1e-9, median(reads, n), 2 * b->weights * (double)b->rows / s * 1e-9, most * 1e-9, median(sums, n));
    if (b->prompt)
        printf(", \"prompt\": %lld, \"prefill_tokens_per_second\": %.1f, \"prefill_fraction\": %.3f", (long long)b->prompt, (double)b->prompt / p,
               2 * b->weights * (double)b->prompt / p / most);
    printf(", \"rounds\": %d}\n", n);
    return 0;
}

int main(int argc, char **argv)
{
    hd_error err = {0};
    bench b = {.model = argc > 1 ? argv[1] : NULL, .context = 128, .rows = 1, .seconds = 4, .o = hd_lm_runner_options_default()};
    bool good = argc > 1;
    for (int i = 2; i < argc && good; i++) {
        char *value = strchr(argv[i], '=');
        if (value) *value++ = 0;
        good = value && set_key(&b, argv[i], value);
    }
    if (!good || b.rows < 1 || b.context < 1) return fprintf(stderr, "usage: bench_runner MODEL [threads=N context=N rows=N prompt=N seconds=X precision=f32|bf16 kv=f16]\n"), 2;
    int rc = open_bench(&b, &err);
    if (!rc) rc = measure(&b, &err);
    if (rc) fprintf(stderr, "bench_runner: %s\n", err.message);
    if (b.r) b.r->close(b.r);
    hd_team_free(b.team);
    if (b.buffer) hd_unmap_memory(b.buffer, HD_MEASURE_READ_BYTES);
    hd_free(b.tokens);
    hd_free(b.tables);
    hd_free(b.parts);
    return rc ? 1 : 0;
}
