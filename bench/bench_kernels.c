/* bench_kernels.c: GB/s or GFLOP/s of the CPU kernels other than dense products, at the shapes of GPT-2 124M (1024 tokens).
 *
 *     bench_kernels [--threads N] [--isa NAME] [--cpu] [FILTER]
 *
 * Prints one line a kernel: the best of several runs, bytes or flops being those the op must move or do. FILTER is a substring of the line.
 * --cpu takes the process's CPU time instead of the wall clock's: for one thread on a machine that others use too. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/mem.h"
#include "base/rng.h"
#include "base/term.h"
#include "kernels/kernel.h"

#define SECONDS_PER_CASE 0.25

typedef struct bench {
    const hd_kernel *kernel;
    hd_kernel_args args;
    hd_tensor in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS];
    hd_team *team;
    int threads;
    hd_isa isa;
    const char *filter;
    bool cpu_time;
} bench;

static void call(void *arg, int tid)
{
    bench *b = arg;
    hd_kernel_args a = b->args;
    a.tid = tid;
    b->kernel->run(&a);
}

static hd_tensor tensor(hd_dtype t, int rank, const int64_t *dim)
{
    hd_tensor x = {.dtype = t, .rank = rank};
    for (int i = 0; i < rank; i++) x.dim[i] = dim[i];
    x.data = hd_map_memory(hd_tensor_bytes(&x) + 64);
    if (!x.data) exit(1);
    return x;
}

/* Numbers in [0, 1) for what is a float array; scalars and integers stay as they were set. */
static void fill(hd_tensor *x)
{
    hd_rng r = hd_rng_new(7);
    int64_t n = hd_tensor_count(x);
    if (!x->data || !hd_dtype_is_float(x->dtype) || x->rank == 0) return;
    for (int64_t i = 0; i < n; i++) hd_store_f64(x->data, x->dtype, i, hd_rng_u32(&r) * 0x1p-32);
}

static double now(const bench *b)
{
    struct timespec t;
    if (!b->cpu_time) return hd_time();
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#define DIMS(...) (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (int64_t[]){__VA_ARGS__}

static void prepare(bench *b, const char *op, const void *attrs, int code)
{
    b->args.in = b->in;
    b->args.out = b->out;
    b->args.code = code;
    b->args.attrs = attrs;
    b->args.team = b->team;
    b->args.threads = b->threads;
    b->kernel = hd_cpu_kernel_find(op, b->isa, &b->args);
    size_t bytes = b->kernel && b->kernel->workspace ? b->kernel->workspace(&b->args, b->threads) : 0;
    b->args.workspace = bytes ? hd_map_memory(bytes) : NULL;
}

/* Runs and prints one case, then frees its memory. work: bytes or flops of one run. */
static void measure(bench *b, const char *label, const char *op, const void *attrs, int code, double work, const char *unit)
{
    if (b->filter && !strstr(label, b->filter)) goto done;
    prepare(b, op, attrs, code);
    for (int i = 0; i < b->args.n_in; i++) fill(&b->in[i]);
    for (int i = 0; i < b->args.n_out; i++) fill(&b->out[i]);
    if (!b->kernel) {
        printf("%-44s no kernel\n", label);
        goto done;
    }
    double best = INFINITY, start = hd_time();
    for (int i = 0; i < 3 || hd_time() - start < SECONDS_PER_CASE; i++) {
        double t = now(b);
        hd_team_run(b->team, call, b);
        t = now(b) - t;
        if (i > 0 && t < best) best = t;
    }
    printf("%-44s %9.1f us  %8.2f %s\n", label, best * 1e6, work / best * 1e-9, unit);
done:
    for (int i = 0; i < b->args.n_in; i++)
        if (b->in[i].data) hd_unmap_memory(b->in[i].data, hd_tensor_bytes(&b->in[i]) + 64);
    for (int i = 0; i < b->args.n_out; i++)
        if (b->out[i].data) hd_unmap_memory(b->out[i].data, hd_tensor_bytes(&b->out[i]) + 64);
    memset(b->in, 0, sizeof b->in);
    memset(b->out, 0, sizeof b->out);
    memset(&b->args, 0, sizeof b->args);
}

static double traffic(const bench *b)
{
    double bytes = 0;
    for (int i = 0; i < b->args.n_in; i++) bytes += b->in[i].data ? (double)hd_tensor_bytes(&b->in[i]) : 0;
    for (int i = 0; i < b->args.n_out; i++) bytes += b->out[i].data ? (double)hd_tensor_bytes(&b->out[i]) : 0;
    return bytes;
}

static void add_in(bench *b, hd_dtype t, int rank, const int64_t *dim)
{
    b->in[b->args.n_in++] = tensor(t, rank, dim);
}

static void add_out(bench *b, hd_dtype t, int rank, const int64_t *dim)
{
    b->out[b->args.n_out++] = tensor(t, rank, dim);
}

static void bench_elementwise(bench *b, hd_dtype t, const char *type)
{
    char label[64];
    const hd_ew ops[] = {HD_EW_ADD, HD_EW_GELU_TANH, HD_EW_GELU, HD_EW_GELU_TANH_GRAD, HD_EW_SILU, HD_EW_EXP, HD_EW_TANH, HD_EW_CAST};
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
        hd_ew_attrs at = {.dtype = t};
        bool cast = ops[i] == HD_EW_CAST;
        for (int k = 0; k < hd_ew_arity(ops[i]); k++) add_in(b, cast ? HD_F32 : t, DIMS(1024, 3072));
        add_out(b, cast ? HD_BF16 : t, DIMS(1024, 3072));
        snprintf(label, sizeof label, "%s %s [1024, 3072]", hd_ew_name(ops[i]), type);
        measure(b, label, hd_ew_name(ops[i]), &at, ops[i], traffic(b), "GB/s");
    }
    hd_fused_attrs f = {.n_in = 2, .n_steps = 2, .n_out = 1};
    f.step[0] = (hd_chain_step){.op = HD_EW_ADD, .arg = {0, 1}};
    f.step[1] = (hd_chain_step){.op = HD_EW_GELU_TANH, .arg = {2}};
    f.out[0] = 3;
    f.out_dtype[0] = t;
    add_in(b, t, DIMS(1024, 3072));
    add_in(b, HD_F32, DIMS(3072));
    add_out(b, t, DIMS(1024, 3072));
    snprintf(label, sizeof label, "fused bias + gelu_tanh %s [1024, 3072]", type);
    measure(b, label, "fused", &f, 0, traffic(b), "GB/s");
}

static void bench_norm(bench *b, hd_dtype t, const char *type)
{
    char label[64];
    hd_norm_attrs at = {.eps = 1e-5, .dtype = t, .sum_dtype = t};
    add_in(b, t, DIMS(1024, 768));
    add_in(b, HD_F32, DIMS(768));
    add_in(b, HD_F32, DIMS(768));
    add_in(b, t, DIMS(1024, 768));
    add_out(b, t, DIMS(1024, 768));
    add_out(b, HD_F32, DIMS(1024));
    add_out(b, HD_F32, DIMS(1024));
    add_out(b, t, DIMS(1024, 768));
    snprintf(label, sizeof label, "layer_norm + residual %s [1024, 768]", type);
    measure(b, label, "layer_norm", &at, 0, traffic(b), "GB/s");
    add_in(b, t, DIMS(1024, 768));
    add_in(b, t, DIMS(1024, 768));
    add_in(b, HD_F32, DIMS(768));
    add_in(b, HD_F32, DIMS(1024));
    add_in(b, HD_F32, DIMS(1024));
    add_in(b, t, DIMS(1024, 768));
    add_out(b, t, DIMS(1024, 768));
    snprintf(label, sizeof label, "layer_norm_grad_x + add %s [1024, 768]", type);
    measure(b, label, "layer_norm_grad_x", &at, 0, traffic(b), "GB/s");
    add_in(b, t, DIMS(1024, 768));
    add_in(b, t, DIMS(1024, 768));
    add_in(b, HD_F32, DIMS(1024));
    add_in(b, HD_F32, DIMS(1024));
    add_out(b, HD_F32, DIMS(768));
    snprintf(label, sizeof label, "layer_norm_grad_gamma %s [1024, 768]", type);
    measure(b, label, "layer_norm_grad_gamma", &at, 0, traffic(b), "GB/s");
    hd_reduce_attrs r = {.axes = 1, .dtype = HD_F32};
    add_in(b, t, DIMS(1024, 3072));
    add_out(b, HD_F32, DIMS(3072));
    snprintf(label, sizeof label, "reduce_sum over rows %s [1024, 3072]", type);
    measure(b, label, "reduce_sum", &r, 0, traffic(b), "GB/s");
}

static void bench_loss(bench *b, hd_dtype t, const char *type)
{
    char label[64];
    hd_entropy_attrs at = {.dtype = t};
    add_in(b, t, DIMS(256, 50257));
    add_in(b, HD_I32, DIMS(256));
    add_out(b, HD_F32, DIMS(256));
    add_out(b, HD_F32, DIMS(256));
    snprintf(label, sizeof label, "cross_entropy %s [256, 50257]", type);
    measure(b, label, "cross_entropy", &at, 0, traffic(b), "GB/s");
    add_in(b, HD_F32, DIMS(256));
    add_in(b, t, DIMS(256, 50257));
    add_in(b, HD_I32, DIMS(256));
    add_in(b, HD_F32, DIMS(256));
    add_out(b, t, DIMS(256, 50257));
    snprintf(label, sizeof label, "cross_entropy_grad %s [256, 50257]", type);
    measure(b, label, "cross_entropy_grad", &at, 0, traffic(b), "GB/s");
}

static void bench_rest(bench *b)
{
    hd_optimizer_attrs o = {.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1};
    for (int i = 0; i < 4; i++) add_in(b, HD_F32, DIMS(16 << 20));
    for (int i = 0; i < 4; i++) {
        add_in(b, HD_F32, 0, NULL);
        *(float *)b->in[4 + i].data = 1;
    }
    for (int i = 0; i < 3; i++) add_out(b, HD_F32, DIMS(16 << 20));
    add_out(b, HD_BF16, DIMS(16 << 20));
    measure(b, "adamw f32 + bf16 copy [16 M], out of place", "adamw", &o, 0, traffic(b), "GB/s");
    add_in(b, HD_F32, DIMS(32 << 20));
    add_out(b, HD_F32, 0, NULL);
    measure(b, "sum_squares f32 [32 M]", "sum_squares", NULL, 0, traffic(b), "GB/s");
    hd_rows_attrs r = {.rows = 50257, .dtype = HD_F32};
    add_in(b, HD_F32, DIMS(50257, 768));
    add_in(b, HD_I32, DIMS(1024));
    add_out(b, HD_F32, DIMS(1024, 768));
    for (int i = 0; i < 1024; i++) ((int32_t *)b->in[1].data)[i] = (int32_t)((unsigned)i * 7919u % 50257u);
    measure(b, "gather f32 [50257, 768], 1024 rows", "gather", &r, 0, 2 * (double)hd_tensor_bytes(&b->out[0]), "GB/s");
    hd_rope_attrs rope = {.scale = 1, .dtype = HD_F32};
    add_in(b, HD_F32, DIMS(1024, 12, 64));
    add_in(b, HD_I32, DIMS(1024));
    add_in(b, HD_F32, DIMS(32));
    add_out(b, HD_F32, DIMS(1024, 12, 64));
    measure(b, "rope f32 [1024, 12, 64]", "rope", &rope, 0, traffic(b), "GB/s");
    hd_dropout_attrs d = {.p = 0.1, .dtype = HD_F32};
    add_in(b, HD_F32, DIMS(1024, 768));
    add_in(b, HD_I64, DIMS(2));
    add_in(b, HD_I64, DIMS(1024));
    add_in(b, HD_I32, DIMS(1024));
    add_out(b, HD_F32, DIMS(1024, 768));
    measure(b, "dropout f32 [1024, 768]", "dropout", &d, 0, traffic(b), "GB/s");
    hd_dims_attrs p = {.rank = 3, .dim = {1, 0, 2}};
    add_in(b, HD_F32, DIMS(1024, 12, 64));
    add_out(b, HD_F32, DIMS(12, 1024, 64));
    measure(b, "transpose f32 [1024, 12, 64] heads first", "transpose", &p, 0, traffic(b), "GB/s");
    p = (hd_dims_attrs){.rank = 2, .dim = {1, 0}};
    add_in(b, HD_F32, DIMS(1024, 3072));
    add_out(b, HD_F32, DIMS(3072, 1024));
    measure(b, "transpose f32 [1024, 3072]", "transpose", &p, 0, traffic(b), "GB/s");
}

typedef struct shape {
    const char *name;
    int64_t tokens, heads, kv_heads, e, segments;
    bool causal;
} shape;

static void fill_ids(hd_tensor *pos, hd_tensor *seg, int64_t n, int64_t segments)
{
    int64_t length = n / segments;
    for (int64_t i = 0; i < n; i++) {
        ((int32_t *)pos->data)[i] = (int32_t)(i % length);
        ((int32_t *)seg->data)[i] = (int32_t)(i / length);
    }
}

/* Scores that queries see: half of a causal segment's square. */
static double pairs_seen(const shape *s)
{
    double length = (double)s->tokens / (double)s->segments;
    return (double)s->segments * (s->causal ? length * (length + 1) / 2 : length * length);
}

static void bench_attention(bench *b, const shape *s, hd_dtype t, const char *type)
{
    char label[64];
    hd_attention_attrs at = {.scale = 1 / sqrt((double)s->e), .causal = s->causal, .dtype = t};
    double flops = 4 * pairs_seen(s) * (double)(s->heads * s->e);
    add_in(b, t, DIMS(s->tokens, s->heads, s->e));
    for (int i = 0; i < 2; i++) add_in(b, t, DIMS(s->tokens, s->kv_heads, s->e));
    for (int i = 0; i < 4; i++) add_in(b, HD_I32, DIMS(s->tokens));
    fill_ids(&b->in[3], &b->in[5], s->tokens, s->segments);
    fill_ids(&b->in[4], &b->in[6], s->tokens, s->segments);
    add_out(b, t, DIMS(s->tokens, s->heads, s->e));
    add_out(b, HD_F32, DIMS(s->tokens, s->heads));
    snprintf(label, sizeof label, "attention %s %s", type, s->name);
    measure(b, label, "attention", &at, 0, flops, "GFLOP/s");
    add_in(b, t, DIMS(s->tokens, s->heads, s->e));
    add_in(b, t, DIMS(s->tokens, s->heads, s->e));
    for (int i = 0; i < 2; i++) add_in(b, t, DIMS(s->tokens, s->kv_heads, s->e));
    add_in(b, t, DIMS(s->tokens, s->heads, s->e));
    add_in(b, HD_F32, DIMS(s->tokens, s->heads));
    for (int i = 0; i < 4; i++) add_in(b, HD_I32, DIMS(s->tokens));
    fill_ids(&b->in[6], &b->in[8], s->tokens, s->segments);
    fill_ids(&b->in[7], &b->in[9], s->tokens, s->segments);
    add_out(b, t, DIMS(s->tokens, s->heads, s->e));
    for (int i = 0; i < 2; i++) add_out(b, t, DIMS(s->tokens, s->kv_heads, s->e));
    snprintf(label, sizeof label, "attention_grad %s %s", type, s->name);
    measure(b, label, "attention_grad", &at, 0, flops * 2.5, "GFLOP/s");
}

typedef struct paged_shape {
    const char *name;
    int64_t sequences, queries, keys, heads, kv_heads, e; /* of each sequence: queries, the last of its keys */
} paged_shape;

/* The blocks of each sequence one after the other from a multiplicative walk, so that neighbours lie apart. */
static void fill_tables(hd_tensor *tables, int64_t blocks)
{
    int32_t *t = tables->data;
    for (int64_t i = 0; i < hd_tensor_count(tables); i++) t[i] = (int32_t)((i * 7919) % blocks);
}

static void bench_paged(bench *b, const paged_shape *s, hd_dtype q, hd_dtype cache, const char *type)
{
    char label[96];
    const int64_t block = 16;
    int64_t each = (s->keys + block - 1) / block, blocks = s->sequences * each + 1, tokens = s->sequences * s->queries;
    while (blocks % 7919 == 0) blocks++;
    hd_paged_attrs at = {.scale = 1 / sqrt((double)s->e), .block = block, .dtype = q};
    add_in(b, q, DIMS(tokens, s->heads, s->e));
    for (int i = 0; i < 2; i++) add_in(b, cache, DIMS(blocks * block, s->kv_heads, s->e));
    for (int i = 0; i < 2; i++) add_in(b, HD_I32, DIMS(tokens));
    add_in(b, HD_I32, DIMS(s->sequences, each));
    for (int i = 0; i < 2 && cache == HD_I8; i++) add_in(b, HD_F32, DIMS(blocks * block, s->kv_heads));
    for (int64_t i = 0; i < tokens; i++) {
        ((int32_t *)b->in[3].data)[i] = (int32_t)(s->keys - s->queries + i % s->queries);
        ((int32_t *)b->in[4].data)[i] = (int32_t)(i / s->queries);
    }
    fill_tables(&b->in[5], blocks);
    add_out(b, q, DIMS(tokens, s->heads, s->e));
    snprintf(label, sizeof label, "paged %s %s", type, s->name);
    double pairs = (double)tokens * ((double)s->keys - (double)(s->queries - 1) / 2);
    double bytes = 2.0 * (double)(s->sequences * s->keys * s->kv_heads) * ((double)s->e * (double)hd_dtype_size(cache) + (cache == HD_I8 ? 4 : 0));
    if (s->queries == 1) measure(b, label, "paged_attention", &at, 0, bytes, "GB/s");
    else measure(b, label, "paged_attention", &at, 0, 4 * pairs * (double)(s->heads * s->e), "GFLOP/s");
}

static void bench_paged_all(bench *b)
{
    static const paged_shape shapes[] = {
        {"1 x 500 keys, 32/4 heads of 64", 1, 1, 500, 32, 4, 64},       {"1 x 2000 keys, 32/4 heads of 64", 1, 1, 2000, 32, 4, 64},
        {"32 x 500 keys, 32/4 heads of 64", 32, 1, 500, 32, 4, 64},     {"1 x 2000 keys, 4/1 heads of 256", 1, 1, 2000, 4, 1, 256},
        {"32 x 500 keys, 4/1 heads of 256", 32, 1, 500, 4, 1, 256},     {"prefill 512, 32/4 heads of 64", 1, 512, 512, 32, 4, 64},
        {"prefill 512, 4/1 heads of 256", 1, 512, 512, 4, 1, 256},      {"prefill 512 of 2000, 32/4 heads of 64", 1, 512, 2000, 32, 4, 64},
    };
    static const struct { hd_dtype q, cache; const char *name; } types[] = {
        {HD_F32, HD_F16, "f16"}, {HD_F32, HD_BF16, "f32/bf16"}, {HD_BF16, HD_BF16, "bf16"}, {HD_F32, HD_I8, "i8"}, {HD_F32, HD_F32, "f32"}};
    for (size_t t = 0; t < sizeof types / sizeof *types; t++)
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) bench_paged(b, &shapes[i], types[t].q, types[t].cache, types[t].name);
}

int main(int argc, char **argv)
{
    bench b = {.threads = 1, .isa = hd_isa_detect()};
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--threads") == 0 && i + 1 < argc) b.threads = atoi(argv[++i]);
        else if (strcmp(argv[i], "--isa") == 0 && i + 1 < argc) hd_isa_parse(argv[++i], &b.isa);
        else if (strcmp(argv[i], "--cpu") == 0) b.cpu_time = true;
        else b.filter = argv[i];
    }
    hd_error err = {0};
    b.team = hd_team_new(b.threads, true, &err);
    if (!b.team) {
        fprintf(stderr, "bench_kernels: %s\n", err.message);
        return 1;
    }
    printf("instruction set %s, %d thread%s\n", hd_isa_name(b.isa), b.threads, b.threads == 1 ? "" : "s");
    static const shape shapes[] = {
        {"4 x 256 causal, 12 heads of 64", 1024, 12, 12, 64, 4, true},
        {"4096 causal, 12 heads of 64", 4096, 12, 12, 64, 1, true},
        {"2048 full, 4 heads of 64", 2048, 4, 4, 64, 1, false},
        {"2048 causal, 8/2 heads of 128", 2048, 8, 2, 128, 1, true},
    };
    const hd_dtype types[] = {HD_F32, HD_BF16};
    const char *const names[] = {"f32", "bf16"};
    for (int t = 0; t < 2; t++) {
        bench_elementwise(&b, types[t], names[t]);
        bench_norm(&b, types[t], names[t]);
        bench_loss(&b, types[t], names[t]);
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) bench_attention(&b, &shapes[i], types[t], names[t]);
    }
    bench_rest(&b);
    bench_paged_all(&b);
    hd_team_free(b.team);
    return 0;
}
