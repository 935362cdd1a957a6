/* Dense products against the machine's bounds, measured in the same run, and against oneDNN (when built with it) and OpenBLAS (when it
 * can be loaded). Sides take turns, best of several rounds each.
 *     bench_gemm [threads [rounds]]
 * Products of many rows are held against the arithmetic bound, products of one row against the read bandwidth. */
#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/mem.h"
#include "base/term.h"
#include "kernels/cpu/gemm.h"
#ifdef HEDDLE_HAVE_ONEDNN
#include <dnnl.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* ---- bounds ---- */

#define STEPS 400000
#define READ_BYTES ((size_t)256 << 20)

#if defined(__x86_64__)
/* Sixteen independent chains hide the latency of any multiply-add unit so far. */
__attribute__((target("avx512f"), noinline)) static double spin_f32(void)
{
    __m512 acc[16], x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(1e-6f);
    for (int i = 0; i < 16; i++) acc[i] = _mm512_set1_ps((float)i);
    double start = hd_time();
    for (int k = 0; k < STEPS; k++) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) acc[i] = _mm512_fmadd_ps(acc[i], x, y);
        __asm__ volatile("" : "+v"(x), "+v"(y));
    }
    double seconds = hd_time() - start;
    for (int i = 1; i < 16; i++) acc[0] = _mm512_add_ps(acc[0], acc[i]);
    volatile float keep = _mm512_reduce_add_ps(acc[0]);
    (void)keep;
    return 16.0 * 32 * STEPS / seconds;
}

__attribute__((target("avx512f,avx512bf16"), noinline)) static double spin_bf16(void)
{
    __m512 acc[16];
    __m512i x = _mm512_set1_epi16(0x3c00), y = _mm512_set1_epi16(0x3c10);
    for (int i = 0; i < 16; i++) acc[i] = _mm512_set1_ps((float)i);
    double start = hd_time();
    for (int k = 0; k < STEPS; k++) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) acc[i] = _mm512_dpbf16_ps(acc[i], (__m512bh)x, (__m512bh)y);
        __asm__ volatile("" : "+v"(x), "+v"(y));
    }
    double seconds = hd_time() - start;
    for (int i = 1; i < 16; i++) acc[0] = _mm512_add_ps(acc[0], acc[i]);
    volatile float keep = _mm512_reduce_add_ps(acc[0]);
    (void)keep;
    return 16.0 * 64 * STEPS / seconds;
}

__attribute__((target("avx512f,avx512vnni"), noinline)) static double spin_i8(void)
{
    __m512i acc[16], x = _mm512_set1_epi8(3), y = _mm512_set1_epi8(-2);
    for (int i = 0; i < 16; i++) acc[i] = _mm512_set1_epi32(i);
    double start = hd_time();
    for (int k = 0; k < STEPS; k++) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) acc[i] = _mm512_dpbusd_epi32(acc[i], x, y);
        __asm__ volatile("" : "+v"(x), "+v"(y));
    }
    double seconds = hd_time() - start;
    for (int i = 1; i < 16; i++) acc[0] = _mm512_add_epi32(acc[0], acc[i]);
    volatile int keep = _mm512_reduce_add_epi32(acc[0]);
    (void)keep;
    return 16.0 * 128 * STEPS / seconds;
}

__attribute__((target("avx2,fma"), noinline)) static double spin_avx2(void)
{
    __m256 acc[12], x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(1e-6f);
    for (int i = 0; i < 12; i++) acc[i] = _mm256_set1_ps((float)i);
    double start = hd_time();
    for (int k = 0; k < STEPS; k++) {
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++) acc[i] = _mm256_fmadd_ps(acc[i], x, y);
        __asm__ volatile("" : "+x"(x), "+x"(y));
    }
    double seconds = hd_time() - start;
    for (int i = 1; i < 12; i++) acc[0] = _mm256_add_ps(acc[0], acc[i]);
    volatile float keep = acc[0][0];
    (void)keep;
    return 12.0 * 16 * STEPS / seconds;
}
#endif

/* Floating-point operations a second of this thread; 0 where it isn't known how to measure it. */
static double spin(hd_dtype t)
{
#if defined(__x86_64__)
    hd_isa isa = hd_isa_detect();
    if (t == HD_I8) return isa >= HD_ISA_VNNI ? spin_i8() : 0;
    if (t == HD_BF16 && isa >= HD_ISA_BF16) return spin_bf16();
    if (isa >= HD_ISA_AVX512) return spin_f32();
    return isa >= HD_ISA_AVX2 ? spin_avx2() : 0;
#else
    (void)t;
    return 0;
#endif
}

static double read_bytes(const char *p, size_t n)
{
    typedef uint64_t lane __attribute__((vector_size(64)));
    lane sum[4] = {{0}};
    double start = hd_time();
    for (size_t i = 0; i + 256 <= n; i += 256)
        for (int j = 0; j < 4; j++) sum[j] ^= *(const lane *)(p + i + 64 * (size_t)j);
    double seconds = hd_time() - start;
    volatile uint64_t keep = (sum[0] ^ sum[1] ^ sum[2] ^ sum[3])[0];
    (void)keep;
    return (double)n / seconds;
}

typedef struct bound_job { hd_team *team; hd_dtype dtype; bool memory; const char *data; double rate[256]; } bound_job;

static void bound_member(void *arg, int tid)
{
    bound_job *j = arg;
    int n = hd_team_size(j->team);
    hd_team_barrier(j->team, tid);
    j->rate[tid] = j->memory ? read_bytes(j->data + READ_BYTES / (size_t)n * (size_t)tid, READ_BYTES / (size_t)n) : spin(j->dtype);
}

/* Best of three, summed over the team: operations a second, or bytes read a second. */
static double measure_bound(hd_team *team, hd_dtype dtype, const char *memory)
{
    double best = 0;
    for (int round = 0; round < 3; round++) {
        bound_job j = {.team = team, .dtype = dtype, .memory = memory != NULL, .data = memory};
        double sum = 0;
        hd_team_run(team, bound_member, &j);
        for (int i = 0; i < hd_team_size(team); i++) sum += j.rate[i];
        best = fmax(best, sum);
    }
    return best;
}

/* ---- one product, done by several sides ---- */

typedef struct product {
    const char *what;
    int64_t m, n, k;
    bool ta, tb; /* a lies as [k, m]; b lies as [n, k] */
    hd_dtype dtype, result;
    bool packed;
} product;

typedef struct operands { hd_tensor a, b, c; void *packed; size_t bytes[4]; } operands;

static hd_tensor fill_tensor(hd_dtype t, int64_t rows, int64_t columns, size_t *bytes)
{
    hd_tensor x = {.dtype = t, .rank = 2, .dim = {rows, columns}};
    *bytes = hd_tensor_bytes(&x) + 4096;
    x.data = hd_map_memory(*bytes);
    if (!x.data) exit(1);
    for (int64_t i = 0; i < rows * columns; i++) {
        float v = (float)((i * 2654435761u >> 7) % 255) / 127.0f - 1;
        if (t == HD_BF16) ((uint16_t *)x.data)[i] = hd_bf16_from_f32(v);
        else if (t == HD_I8) ((int8_t *)x.data)[i] = (int8_t)(v * 127);
        else ((float *)x.data)[i] = v;
    }
    return x;
}

typedef struct job { hd_kernel_args args; const hd_kernel *kernel; } job;

static void kernel_member(void *arg, int tid)
{
    job *j = arg;
    hd_kernel_args a = j->args;
    a.tid = tid;
    j->kernel->run(&a);
}

static double time_team(hd_team *team, void (*fn)(void *, int), void *arg)
{
    double start = hd_time();
    hd_team_run(team, fn, arg);
    return hd_time() - start;
}

#ifdef HEDDLE_HAVE_ONEDNN
/* oneDNN, sequential in each of our threads: its share of the columns, or of the rows when there are few columns. */
typedef struct dnnl_side {
    const product *p;
    const operands *o;
    int threads;
    dnnl_primitive_t prim[256];
    dnnl_stream_t stream[256];
    dnnl_memory_t mem[256][3];
    bool ok;
} dnnl_side;

static dnnl_data_type_t dnnl_type(hd_dtype t)
{
    return t == HD_BF16 ? dnnl_bf16 : t == HD_I8 ? dnnl_s8 : t == HD_I32 ? dnnl_s32 : dnnl_f32;
}

static void dnnl_prepare(void *arg, int tid)
{
    dnnl_side *s = arg;
    const product *p = s->p;
    int64_t n0, n1, size = (int64_t)hd_dtype_size(p->dtype), out = (int64_t)hd_dtype_size(p->result);
    void (*set_threads)(int) = (void (*)(int))dlsym(RTLD_DEFAULT, "omp_set_num_threads"); /* libdnnl brings its OpenMP along */
    if (set_threads) set_threads(1);
    hd_split(p->n, 16, tid, s->threads, &n0, &n1);
    dnnl_dims_t da = {p->m, p->k}, db = {p->k, n1 - n0}, dc = {p->m, n1 - n0};
    dnnl_dims_t sa = {p->ta ? 1 : p->k, p->ta ? p->m : 1}, sb = {p->tb ? 1 : p->n, p->tb ? p->k : 1}, sc = {p->n, 1};
    dnnl_memory_desc_t a, b, c;
    dnnl_matmul_desc_t d;
    dnnl_primitive_desc_t pd;
    dnnl_engine_t engine;
    dnnl_memory_desc_init_by_strides(&a, 2, da, dnnl_type(p->dtype), sa);
    dnnl_memory_desc_init_by_strides(&b, 2, db, dnnl_type(p->dtype), sb);
    dnnl_memory_desc_init_by_strides(&c, 2, dc, dnnl_type(p->result), sc);
    if (dnnl_engine_create(&engine, dnnl_cpu, 0) || dnnl_stream_create(&s->stream[tid], engine, dnnl_stream_default_flags) ||
        dnnl_matmul_desc_init(&d, &a, &b, NULL, &c) || dnnl_primitive_desc_create(&pd, &d, NULL, engine, NULL) ||
        dnnl_primitive_create(&s->prim[tid], pd)) {
        s->ok = false;
        return;
    }
    dnnl_memory_create(&s->mem[tid][0], &a, engine, s->o->a.data);
    dnnl_memory_create(&s->mem[tid][1], &b, engine, (char *)s->o->b.data + n0 * size * (p->tb ? p->k : 1));
    dnnl_memory_create(&s->mem[tid][2], &c, engine, (char *)s->o->c.data + n0 * out);
}

static void dnnl_member(void *arg, int tid)
{
    dnnl_side *s = arg;
    dnnl_exec_arg_t args[3] = {{DNNL_ARG_SRC, s->mem[tid][0]}, {DNNL_ARG_WEIGHTS, s->mem[tid][1]}, {DNNL_ARG_DST, s->mem[tid][2]}};
    dnnl_primitive_execute(s->prim[tid], s->stream[tid], 3, args);
    dnnl_stream_wait(s->stream[tid]);
}
#endif

typedef void (*sgemm_fn)(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda, const float *b, int ldb,
                         float beta, float *c, int ldc);

/* OpenBLAS's sgemm with its own threads; NULL when it isn't there. */
static sgemm_fn load_openblas(int threads)
{
    void *lib = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
    if (!lib) return NULL;
    void (*set_threads)(int) = (void (*)(int))dlsym(lib, "openblas_set_num_threads");
    if (set_threads) set_threads(threads);
    return (sgemm_fn)dlsym(lib, "cblas_sgemm");
}

static double time_openblas(sgemm_fn sgemm, const product *p, const operands *o)
{
    enum { ROW_MAJOR = 101, PLAIN = 111, TRANSPOSED = 112 };
    double start = hd_time();
    sgemm(ROW_MAJOR, p->ta ? TRANSPOSED : PLAIN, p->tb ? TRANSPOSED : PLAIN, (int)p->m, (int)p->n, (int)p->k, 1, o->a.data,
          (int)(p->ta ? p->m : p->k), o->b.data, (int)(p->tb ? p->k : p->n), 0, o->c.data, (int)p->n);
    return hd_time() - start;
}

static void print_rate(const product *p, double seconds, double bound)
{
    double work = p->m < 16 ? (double)(p->n * p->k) * (double)hd_dtype_size(p->dtype) : 2.0 * (double)(p->m * p->n) * (double)p->k;
    if (!(seconds < 1e9)) printf(" %14s", "-");
    else printf("  %7.1f %4.0f%%", work / seconds * 1e-9, bound > 0 ? 100 * work / seconds / bound : 0);
}

static void run_product(const product *p, hd_team *team, int rounds, const double *bound, sgemm_fn sgemm)
{
    operands o = {0};
    o.a = fill_tensor(p->dtype, p->ta ? p->k : p->m, p->ta ? p->m : p->k, &o.bytes[0]);
    o.b = fill_tensor(p->dtype, p->tb ? p->n : p->k, p->tb ? p->k : p->n, &o.bytes[1]);
    o.c = fill_tensor(p->result, p->m, p->n, &o.bytes[2]);
    hd_contract_attrs attrs = {.dtype = p->result};
    snprintf(attrs.spec, sizeof attrs.spec, "%s,%s->mn", p->ta ? "km" : "mk", p->tb ? "nk" : "kn");
    hd_tensor in[2] = {o.a, o.b};
    hd_isa isa = hd_isa_detect();
    if (p->packed) {
        o.bytes[3] = hd_gemm_packed_bytes(isa, attrs.spec, &o.b);
        if (!o.bytes[3]) return;
        in[1].format = HD_PACKED, in[1].data = o.packed = hd_map_memory(o.bytes[3]);
        hd_gemm_pack(isa, attrs.spec, &o.b, o.packed, 0, 1);
    }
    int threads = hd_team_size(team);
    job j = {{.in = in, .out = &o.c, .n_in = 2, .n_out = 1, .attrs = &attrs, .team = team, .threads = threads}, NULL};
    j.kernel = hd_cpu_kernel_find("contract", isa, &j.args);
    if (!j.kernel) return;
    size_t workspace = j.kernel->workspace(&j.args, threads);
    j.args.workspace = hd_map_memory(workspace + 64);
    double best[3] = {1e30, 1e30, 1e30};
#ifdef HEDDLE_HAVE_ONEDNN
    dnnl_side side = {.p = p, .o = &o, .threads = threads, .ok = !p->packed};
    if (side.ok) hd_team_run(team, dnnl_prepare, &side);
#endif
    for (int round = 0; round < rounds; round++) {
        best[0] = fmin(best[0], time_team(team, kernel_member, &j));
#ifdef HEDDLE_HAVE_ONEDNN
        if (side.ok) best[1] = fmin(best[1], time_team(team, dnnl_member, &side));
#endif
        if (sgemm && p->dtype == HD_F32 && !p->packed) best[2] = fmin(best[2], time_openblas(sgemm, p, &o));
    }
    double limit = p->m < 16 ? bound[HD_DTYPE_COUNT] : bound[p->dtype];
    printf("%-22s %-4s %5lld %6lld %5lld %s%s%s", p->what, hd_dtype_name(p->dtype), (long long)p->m, (long long)p->n, (long long)p->k,
           p->ta ? "t" : "n", p->tb ? "t" : "n", p->packed ? "p" : " ");
    for (int i = 0; i < 3; i++) print_rate(p, best[i], limit);
    printf("  %.1f MiB\n", (double)workspace / 1048576);
    fflush(stdout);
    hd_unmap_memory(j.args.workspace, workspace + 64);
    hd_unmap_memory(o.a.data, o.bytes[0]), hd_unmap_memory(o.b.data, o.bytes[1]), hd_unmap_memory(o.c.data, o.bytes[2]);
    if (o.packed) hd_unmap_memory(o.packed, o.bytes[3]);
}

/* GPT-2 small's products: forward, dx ("n" weights), dw (a transposed, k tokens), logits; then one row, as in decoding. */
static const struct { const char *what; int64_t m, n, k; bool ta, tb, packed; } shapes[] = {
    {"forward", 256, 768, 768, 0, 1, 0},       {"forward", 512, 768, 768, 0, 1, 0},    {"forward", 1024, 3072, 768, 0, 1, 0},
    {"forward", 1024, 768, 3072, 0, 1, 0},     {"conv1d weights", 1024, 3072, 768, 0, 0, 0}, {"packed weights", 1024, 3072, 768, 0, 1, 1},
    {"weight gradient", 768, 3072, 1024, 1, 0, 0}, {"logits", 256, 50257, 768, 0, 1, 0}, {"logits gradient", 256, 768, 50257, 0, 0, 0},
    {"embedding gradient", 50257, 768, 256, 1, 0, 0},
    {"one row", 1, 50257, 768, 0, 1, 0},       {"one row", 1, 50257, 768, 0, 0, 0},    {"one row, packed", 1, 50257, 768, 0, 1, 1},
    {"four rows, packed", 4, 50257, 768, 0, 1, 1},
};

int main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : hd_core_count(), rounds = argc > 2 ? atoi(argv[2]) : 7;
    hd_error err = {0};
    hd_team *team = threads >= 1 && threads <= 256 ? hd_team_new(threads, true, &err) : NULL;
    char *memory = hd_map_memory(READ_BYTES);
    if (!team || !memory || rounds < 1) {
        fprintf(stderr, "bench_gemm [threads [rounds]]: %s\n", err.message);
        return 2;
    }
    memset(memory, 1, READ_BYTES);
    double bound[HD_DTYPE_COUNT + 1] = {0};
    static const hd_dtype dtypes[] = {HD_F32, HD_BF16, HD_I8};
    for (int i = 0; i < 3; i++) bound[dtypes[i]] = measure_bound(team, dtypes[i], NULL);
    bound[HD_DTYPE_COUNT] = measure_bound(team, HD_F32, memory);
    printf("%s, %d threads; bounds: f32 %.1f GFLOP/s, bf16 %.1f GFLOP/s, int8 %.1f GOP/s, read %.1f GB/s\n",
           hd_isa_name(hd_isa_detect()), threads,
           bound[HD_F32] * 1e-9, bound[HD_BF16] * 1e-9, bound[HD_I8] * 1e-9, bound[HD_DTYPE_COUNT] * 1e-9);
    printf("GFLOP/s and fraction of the bound; one to four rows: GB/s of weights\n");
    printf("%-22s %-4s %5s %6s %5s     %14s%14s%14s  workspace\n", "", "", "m", "n", "k", "heddle", "oneDNN", "OpenBLAS");
    sgemm_fn sgemm = load_openblas(threads);
    for (int d = 0; d < 3; d++)
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            product p = {shapes[i].what, shapes[i].m, shapes[i].n, shapes[i].k, shapes[i].ta, shapes[i].tb, dtypes[d], dtypes[d],
                         shapes[i].packed};
            if (dtypes[d] == HD_I8) p.result = HD_I32;
            run_product(&p, team, rounds, bound, sgemm);
        }
    hd_unmap_memory(memory, READ_BYTES);
    hd_team_free(team);
    return 0;
}
