/* bench_train.c: speed of a whole training step (forward, backward, AdamW) of a language model with random weights on random tokens.
 *
 *   bench_train [key=value ...]
 * keys: arch (gpt2|llama), layers, width, heads, kv_heads, mlp, vocab, batch, sequence, precision (f32|bf16), threads, seconds, clip,
 *       profile (0|1), text (0|1), serve (0|1), table (NAME: one line for people instead of JSON)
 * Without keys: GPT-2 124M, batch 4 x 256, f32. Prints one JSON line: tokens/s (median step), FLOP/s, the bounds measured before and after
 * (FLOP/s in registers; read bandwidth), predicted and measured peak memory.
 *
 * serve=1: stays resident for a driver. It prints "ready FLOPS" (of one step), then answers each line on standard input: "run N" runs N
 * steps and prints "ran SECONDS PEAK_BYTES"; anything else, or the end of input, ends it. It measures no bounds then, so that the peak is
 * the step's own. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/term.h"
#include "cluster/measure.h"
#include "models/lm.h"
#include "train/session.h"

typedef struct bench {
    int64_t layers, width, heads, kv_heads, mlp, vocab, batch, sequence, threads;
    double seconds, clip;
    hd_architecture arch;
    hd_dtype precision;
    bool profile, text, serve;
    const char *table;
    hd_session session;
    double step_seconds[4096];
    int steps;
} bench;

static bool set_key(bench *b, const char *key, const char *value)
{
    const struct { const char *name; int64_t *at; } whole[] = {
        {"layers", &b->layers}, {"width", &b->width}, {"heads", &b->heads},       {"kv_heads", &b->kv_heads}, {"mlp", &b->mlp},
        {"vocab", &b->vocab},   {"batch", &b->batch}, {"sequence", &b->sequence}, {"threads", &b->threads},
    };
    for (size_t i = 0; i < sizeof whole / sizeof whole[0]; i++)
        if (!strcmp(key, whole[i].name)) return *whole[i].at = atoll(value), true;
    if (!strcmp(key, "seconds")) return b->seconds = atof(value), true;
    if (!strcmp(key, "clip")) return b->clip = atof(value), true;
    if (!strcmp(key, "profile")) return b->profile = atoi(value), true;
    if (!strcmp(key, "text")) return b->text = atoi(value), true;
    if (!strcmp(key, "serve")) return b->serve = atoi(value), true;
    if (!strcmp(key, "table")) return b->table = value, true;
    if (!strcmp(key, "arch")) return !hd_architecture_parse(value, &b->arch);
    if (!strcmp(key, "precision")) return !hd_dtype_parse(value, &b->precision);
    return false;
}

static bool parse(bench *b, int argc, char **argv)
{
    *b = (bench){.layers = 12, .width = 768, .heads = 12, .vocab = 50257, .batch = 4, .sequence = 256, .seconds = 10};
    b->arch = HD_ARCH_GPT2;
    b->precision = HD_F32;
    for (int i = 1; i < argc; i++) {
        char *eq = strchr(argv[i], '=');
        if (eq) *eq = 0;
        if (!eq || !set_key(b, argv[i], eq + 1)) return fprintf(stderr, "bench_train: there is no key \"%s\"\n", argv[i]), false;
    }
    return true;
}

static int start(bench *b, hd_error *err)
{
    hd_lm_config c;
    hd_lm_config_preset(&c, b->arch);
    c.layers = b->layers, c.width = b->width, c.heads = b->heads, c.kv_heads = b->kv_heads ? b->kv_heads : b->heads, c.vocab = b->vocab;
    c.mlp_width = b->mlp ? b->mlp : 4 * b->width;
    c.max_positions = b->sequence < 1024 ? 1024 : b->sequence;
    c.embd_dropout = c.resid_dropout = c.attn_dropout = 0;
    if (hd_lm_config_check(&c, "bench", err)) return err->code;
    hd_lm_options lm = {
        .mode = HD_LM_TRAIN, .compute = b->precision, .param = HD_F32, .tokens = b->batch * b->sequence, .sequence = b->sequence};
    hd_session_options o = {.plan = hd_plan_default(), .seed = 1};
    o.plan.threads = (int)b->threads;
    o.plan.precision = b->precision;
    o.step = (hd_step_options){.optimizer = HD_ADAMW, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .clip = b->clip};
    hd_graph *g = hd_lm_graph(&c, &lm, err);
    int rc = g ? hd_session_init(&b->session, g, NULL, &o, err) : err->code;
    if (!rc && b->text) {
        hd_str s;
        hd_str_init(&s);
        hd_program_dump(b->session.program[0], &s);
        fwrite(s.data, 1, s.len, stderr);
        hd_str_free(&s);
    }
    return rc ? rc : hd_session_start(&b->session, &o, err);
}

/* Element i of tokens, targets, positions or segments. */
static int32_t input_value(const bench *b, hd_rng *r, int which, int64_t i)
{
    if (which < 2) return (int32_t)hd_rng_below(r, (uint64_t)b->vocab);
    return (int32_t)(which == 2 ? i % b->sequence : i / b->sequence);
}

static int fill(bench *b, hd_error *err)
{
    hd_exec *e = b->session.exec[0];
    static const char *const names[] = {"tokens", "targets", "positions", "segments"};
    hd_tensor t;
    hd_rng r = hd_rng_new(7);
    for (int k = 0; k < 4; k++) {
        if (hd_program_input(b->session.program[0], names[k]) < 0) continue;
        if (hd_exec_input(e, names[k], &t, err)) return err->code;
        for (int64_t i = 0; i < b->batch * b->sequence; i++)
            ((int32_t *)t.data)[i] = input_value(b, &r, k, i);
    }
    const double share = 1.0 / (double)(b->batch * b->sequence);
    const struct { const char *name; double v; } scalars[] = {{"inv_divisor", share}, {"lr", 1e-4}, {"step", 1}};
    for (int k = 0; k < 3; k++) {
        if (hd_exec_input(e, scalars[k].name, &t, err)) return err->code;
        hd_store_f64(t.data, t.dtype, 0, scalars[k].v);
    }
    return 0;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int run(bench *b, hd_error *err)
{
    hd_exec *e = b->session.exec[0];
    int rc = b->profile ? hd_exec_profile(e, true, err) : 0;
    for (double begin = hd_time(); !rc && b->steps < 4096 && (b->steps < 3 || hd_time() - begin < b->seconds);) {
        double t = hd_time();
        rc = hd_exec_step(e, NULL, err);
        b->step_seconds[b->steps++] = hd_time() - t;
    }
    qsort(b->step_seconds, (size_t)b->steps, sizeof(double), by_value);
    return rc;
}

/* ---- results ---- */

typedef struct bounds { double flops, read; } bounds;

/* READ maps 512 MiB for a moment: the peak is taken before. */
static bounds measure_bounds(const bench *b)
{
    hd_bound kind = b->precision == HD_BF16 ? HD_BOUND_BF16 : HD_BOUND_F32;
    return (bounds){hd_measure(kind, b->session.team, hd_isa_detect(), 9, NULL),
                    hd_measure_median(HD_BOUND_READ, b->session.team, hd_isa_detect(), 5, NULL)};
}

static void print_json(const bench *b, const bounds *before, const bounds *after, uint64_t peak)
{
    double seconds = b->step_seconds[b->steps / 2], tokens = (double)(b->batch * b->sequence), flops = b->session.flops[0] / seconds;
    printf("{\"tokens_per_second\": %.1f, \"step_seconds\": %.5f, \"fastest\": %.5f, \"steps\": %d, \"gflops\": %.1f, "
           "\"bound_gflops\": %.1f, \"fraction\": %.3f, "
           "\"read_gbs_before\": %.1f, \"read_gbs_after\": %.1f, \"predicted_bytes\": %lld, \"peak_bytes\": %llu}\n",
           tokens / seconds, seconds, b->step_seconds[0], b->steps, flops * 1e-9, fmin(before->flops, after->flops) * 1e-9,
           flops / fmax(before->flops, after->flops), before->read * 1e-9, after->read * 1e-9, (long long)b->session.predicted_bytes,
           (unsigned long long)peak);
}

static void print_line(const bench *b, const bounds *before, const bounds *after, uint64_t peak)
{
    char predicted[24], measured[24];
    double seconds = b->step_seconds[b->steps / 2], flops = b->session.flops[0] / seconds, bound = fmax(before->flops, after->flops);
    printf("%-14s %-4s %lld x %-4lld %9.0f tokens/s %8.1f GFLOP/s of %7.1f: %5.1f %%   memory %s, predicted %s\n", b->table,
           hd_dtype_name(b->precision), (long long)b->batch, (long long)b->sequence, (double)(b->batch * b->sequence) / seconds,
           flops * 1e-9, bound * 1e-9, 100 * flops / bound, hd_format_bytes(measured, (double)peak),
           hd_format_bytes(predicted, (double)b->session.predicted_bytes));
}

static int measure(bench *b, hd_error *err)
{
    int rc = fill(b, err);
    if (!rc) rc = hd_exec_step(b->session.exec[0], NULL, err);
    uint64_t peak = hd_memory_peak(); /* every step takes the same memory */
    bounds before = measure_bounds(b);
    if (!rc) rc = run(b, err);
    bounds after = measure_bounds(b);
    if (rc) return rc;
    if (b->table) print_line(b, &before, &after, peak);
    else print_json(b, &before, &after, peak);
    if (!b->profile) return 0;
    hd_str s;
    hd_str_init(&s);
    hd_exec_profile_print(b->session.exec[0], &s);
    fprintf(stderr, "%s", s.data);
    hd_str_free(&s);
    return 0;
}

/* ---- as a driver's worker ---- */

static int serve(bench *b, hd_error *err)
{
    char line[64];
    int rc = fill(b, err);
    if (!rc) rc = hd_exec_step(b->session.exec[0], NULL, err);
    if (!rc) printf("ready %.0f\n", b->session.flops[0]), fflush(stdout);
    while (!rc && fgets(line, sizeof line, stdin) && strncmp(line, "run ", 4) == 0) {
        int steps = atoi(line + 4);
        double begin = hd_time();
        for (int i = 0; i < steps && !rc; i++) rc = hd_exec_step(b->session.exec[0], NULL, err);
        printf("ran %.6f %llu\n", hd_time() - begin, (unsigned long long)hd_memory_peak());
        fflush(stdout);
    }
    return rc;
}

int main(int argc, char **argv)
{
    static bench b;
    hd_error err = {0};
    if (!parse(&b, argc, argv)) return 2;
    int rc = start(&b, &err);
    if (!rc) rc = b.serve ? serve(&b, &err) : measure(&b, &err);
    if (rc) fprintf(stderr, "bench_train: %s\n", err.message);
    hd_session_free(&b.session);
    return rc ? 1 : 0;
}
