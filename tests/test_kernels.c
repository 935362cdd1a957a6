/* test_kernels.c: the CPU kernels of every instruction set of this machine against the ops' reference kernels: odd shapes, f32 and bf16,
 * bitwise equality over thread counts and over row counts, nothing written outside the results, extent 0. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/mem.h"
#include "base/rng.h"
#include "kernels/null/null.h"
#include "ops/ops.h"

#define GUARD 64 /* bytes behind each tensor that nobody may write */
#define MAX_THREADS 3

/* ---- tensors ---- */

static hd_rng rng;
static hd_team *teams[MAX_THREADS + 1];

static hd_tensor tensor_new(hd_dtype t, int rank, const int64_t *dim)
{
    hd_tensor x = {.dtype = t, .rank = rank};
    for (int i = 0; i < rank; i++) x.dim[i] = dim[i];
    size_t bytes = hd_tensor_bytes(&x);
    x.data = hd_malloc(bytes + GUARD);
    assert_non_null(x.data);
    memset(x.data, 0x5a, bytes + GUARD);
    return x;
}

#define DIMS(...) (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (int64_t[]){__VA_ARGS__}

static hd_tensor tensor_normal(hd_dtype t, double mean, double spread, int rank, const int64_t *dim)
{
    hd_tensor x = tensor_new(t, rank, dim);
    for (int64_t i = 0; i < hd_tensor_count(&x); i++) hd_store_f64(x.data, t, i, mean + spread * hd_rng_normal(&rng));
    return x;
}

static hd_tensor tensor_index(hd_dtype t, int64_t below, int rank, const int64_t *dim)
{
    hd_tensor x = tensor_new(t, rank, dim);
    for (int64_t i = 0; i < hd_tensor_count(&x); i++) hd_store_f64(x.data, t, i, (double)hd_rng_below(&rng, (uint64_t)below));
    return x;
}

static hd_tensor tensor_scalar(float v)
{
    hd_tensor x = tensor_new(HD_F32, 0, NULL);
    *(float *)x.data = v;
    return x;
}

static bool guard_ok(const hd_tensor *x)
{
    const unsigned char *p = (const unsigned char *)x->data + hd_tensor_bytes(x);
    for (int i = 0; i < GUARD; i++)
        if (p[i] != 0x5a) return false;
    return true;
}

/* ---- one comparison ---- */

typedef struct trial {
    const char *op;
    const void *attrs;
    int n_in, n_out;
    hd_tensor in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS]; /* out: data is not set, except in place of nothing */
    bool skip_out[HD_MAX_RESULTS];                      /* a result that nobody reads */
    bool accumulate;
    double tolerance; /* relative, of f32 results; 0: bit for bit */
    double floor;     /* absolute part, times tolerance */
    int inplace;      /* results 0 .. inplace-1 start as copies of the operands of the same number */
} trial;

static void trial_free(trial *t)
{
    for (int i = 0; i < t->n_in; i++) hd_free(t->in[i].data);
}

typedef struct call {
    const hd_kernel *kernel;
    hd_kernel_args args;
    hd_team *team;
    int threads;
} call;

static void call_one(void *arg, int tid)
{
    call *c = arg;
    hd_kernel_args a = c->args;
    a.team = c->team;
    a.tid = tid;
    a.threads = c->threads;
    c->kernel->run(&a);
}

static hd_kernel_args trial_args(const trial *t, hd_tensor *out)
{
    const hd_op *op = hd_op_find(t->op);
    assert_non_null(op);
    for (int i = 0; i < t->n_out; i++) {
        out[i] = tensor_new(t->out[i].dtype, t->out[i].rank, t->out[i].dim);
        if (t->accumulate)
            for (int64_t j = 0; j < hd_tensor_count(&out[i]); j++) hd_store_f64(out[i].data, out[i].dtype, j, (double)(j % 7) - 3);
        if (i < t->inplace && t->in[i].data) memcpy(out[i].data, t->in[i].data, hd_tensor_bytes(&out[i]));
        if (t->skip_out[i]) {
            hd_free(out[i].data);
            out[i].data = NULL;
        }
    }
    return (hd_kernel_args){.in = t->in, .out = out, .n_in = t->n_in, .n_out = t->n_out, .code = op->code, .accumulate = t->accumulate,
                            .attrs = t->attrs};
}

static void results_free(const trial *t, hd_tensor *out)
{
    for (int i = 0; i < t->n_out; i++) hd_free(out[i].data);
}

static void run_reference(const trial *t, hd_tensor *out)
{
    hd_kernel ref = {.op = t->op, .run = hd_op_find(t->op)->reference};
    call c = {&ref, trial_args(t, out), teams[1], 1};
    hd_team_run(teams[1], call_one, &c);
}

static void run_kernel(const trial *t, hd_isa isa, int threads, hd_tensor *out)
{
    call c = {.args = trial_args(t, out), .team = teams[threads], .threads = threads};
    c.kernel = hd_cpu_kernel_find(t->op, isa, &c.args);
    if (!c.kernel) fail_msg("%s: no kernel at %s", t->op, hd_isa_name(isa));
    size_t bytes = c.kernel->workspace ? c.kernel->workspace(&c.args, threads) : 0;
    char *memory = hd_malloc(bytes + 64 + GUARD);
    char *at = memory + (64 - (uintptr_t)memory % 64) % 64;
    memset(at, 0xff, bytes); /* NaN where anything is read unset */
    memset(at + bytes, 0x5a, 1);
    c.args.workspace = at;
    hd_team_run(c.team, call_one, &c);
    if (at[bytes] != 0x5a) fail_msg("%s at %s wrote past its workspace", t->op, hd_isa_name(isa));
    hd_free(memory);
}

static void compare(const trial *t, hd_isa isa, const hd_tensor *got, const hd_tensor *want, int result)
{
    double unit = got->dtype == HD_BF16 ? 0x1p-7 : got->dtype == HD_F16 ? 0x1p-10 : 0;
    for (int64_t i = 0; i < hd_tensor_count(got); i++) {
        double g = hd_load_f64(got->data, got->dtype, i), w = hd_load_f64(want->data, want->dtype, i);
        if (g == w || (isnan(g) && isnan(w))) continue;
        double bound = (t->tolerance + unit) * fabs(w) + t->tolerance * t->floor + (t->tolerance > 0 ? 1e-44 : 0);
        if (!(fabs(g - w) <= bound))
            fail_msg("%s at %s, result %d of %s, element %lld: %.9g, not %.9g (off by %.2g, allowed %.2g)", t->op, hd_isa_name(isa), result,
                     hd_dtype_name(got->dtype), (long long)i, g, w, fabs(g - w), bound);
    }
}

static void expect_same(const trial *t, hd_isa isa, const hd_tensor *a, const hd_tensor *b, size_t bytes, const char *what)
{
    if (bytes > 0 && memcmp(a->data, b->data, bytes) != 0) fail_msg("%s at %s differs over %s", t->op, hd_isa_name(isa), what);
}

static void trial_check(const trial *t)
{
    hd_tensor want[HD_MAX_RESULTS], one[HD_MAX_RESULTS], got[HD_MAX_RESULTS];
    run_reference(t, want);
    for (int isa = 0; isa <= (int)hd_isa_detect(); isa++) {
        if (isa == HD_ISA_VNNI) continue;
        run_kernel(t, (hd_isa)isa, 1, one);
        for (int i = 0; i < t->n_out; i++) {
            if (!one[i].data) continue;
            compare(t, (hd_isa)isa, &one[i], &want[i], i);
            if (!guard_ok(&one[i])) fail_msg("%s at %s wrote past result %d", t->op, hd_isa_name((hd_isa)isa), i);
        }
        for (int n = 2; n <= MAX_THREADS; n++) {
            run_kernel(t, (hd_isa)isa, n, got);
            for (int i = 0; i < t->n_out; i++)
                if (got[i].data) expect_same(t, (hd_isa)isa, &one[i], &got[i], hd_tensor_bytes(&one[i]) + GUARD, "threads");
            results_free(t, got);
        }
        results_free(t, one);
    }
    results_free(t, want);
}

/* The same trial with only the first rows of the operands in `sliced`: their results must be bit for bit those of the whole. */
static void trial_check_rows(const trial *t, uint32_t sliced, int64_t rows)
{
    hd_tensor whole[HD_MAX_RESULTS], part[HD_MAX_RESULTS];
    trial fewer = *t;
    for (int i = 0; i < t->n_in; i++)
        if (sliced >> i & 1 && t->in[i].data) fewer.in[i].dim[0] = rows;
    for (int i = 0; i < t->n_out; i++) fewer.out[i].dim[0] = rows;
    for (int isa = 0; isa <= (int)hd_isa_detect(); isa++) {
        run_kernel(t, (hd_isa)isa, 1, whole);
        run_kernel(&fewer, (hd_isa)isa, 2, part);
        for (int i = 0; i < t->n_out; i++)
            if (part[i].data) expect_same(t, (hd_isa)isa, &whole[i], &part[i], hd_tensor_bytes(&part[i]), "row counts");
        results_free(t, whole);
        results_free(t, part);
    }
}

static const hd_dtype float_types[] = {HD_F32, HD_BF16, HD_F16};

static hd_tensor like(const hd_tensor *x, hd_dtype t)
{
    hd_tensor y = *x;
    y.dtype = t;
    y.data = NULL;
    return y;
}

static hd_tensor shape(hd_dtype t, int rank, const int64_t *dim)
{
    hd_tensor y = {.dtype = t, .rank = rank};
    for (int i = 0; i < rank; i++) y.dim[i] = dim[i];
    return y;
}

/* ---- elementwise ---- */

/* Values that unary functions must get right besides ordinary ones. */
static const float specials[] = {0,      -0.0f,  1,     -1,    0.5f,  -0.5f,  INFINITY, -INFINITY, NAN,     1e-30f, -1e-30f, 1e-40f,
                                 88.5f,  -88.5f, 104,   -104,  30,    -30,    12,       -12,       1000,    -1000,  0.7071f, 2.5e-3f,
                                 9000.5f, -9000.5f, 6.2831853f, 3.1415927f, 1.5707964f, 1e-3f, 1.0001f, 0.9999f};

static void put_specials(hd_tensor *x)
{
    int64_t n = hd_tensor_count(x), k = (int64_t)(sizeof specials / sizeof *specials);
    for (int64_t i = 0; i < n && i < k; i++) hd_store_f64(x->data, x->dtype, n - 1 - i, specials[i]);
}

static double ew_tolerance(int op)
{
    switch (op) {
    case HD_EW_NEG: case HD_EW_ABS: case HD_EW_RELU: case HD_EW_SIGN: case HD_EW_ISFINITE: case HD_EW_COPY: case HD_EW_CAST:
    case HD_EW_LT: case HD_EW_LE: case HD_EW_EQ: case HD_EW_MAX: case HD_EW_MIN: case HD_EW_SELECT: case HD_EW_RELU_GRAD:
        return 0;
    case HD_EW_GELU_GRAD: case HD_EW_GELU_TANH_GRAD: case HD_EW_SILU_GRAD: case HD_EW_GELU: case HD_EW_GELU_TANH: return 2e-6;
    default: return 4e-7;
    }
}

static void check_ew(int op, hd_dtype in, hd_dtype out, int64_t n, bool special)
{
    hd_ew_attrs at;
    memset(&at, 0, sizeof at);
    at.imm = 0.37;
    at.dtype = out;
    trial t = {.op = hd_ew_name((hd_ew)op), .attrs = &at, .n_in = hd_ew_arity((hd_ew)op), .n_out = 1, .floor = 0.3};
    t.tolerance = ew_tolerance(op);
    bool positive = op == HD_EW_POW || op == HD_EW_POWI;
    for (int i = 0; i < t.n_in; i++) {
        t.in[i] = tensor_normal(in, positive ? 3 : 0, positive ? 0.4 : 2, DIMS(3, n));
        if (special && i == 0 && !positive) put_specials(&t.in[i]);
    }
    if (op == HD_EW_TANH_GRAD || op == HD_EW_SIGMOID_GRAD) t.floor = 10;
    t.out[0] = shape(out, DIMS(3, n));
    trial_check(&t);
    trial_free(&t);
}

static void test_elementwise(void **state)
{
    (void)state;
    for (int op = 0; op < HD_EW_COUNT; op++) {
        check_ew(op, HD_F32, HD_F32, 401, op != HD_EW_TANH_GRAD && op != HD_EW_SIGMOID_GRAD);
        check_ew(op, HD_BF16, HD_BF16, 37, false);
        check_ew(op, HD_BF16, HD_F32, 5, false);
        check_ew(op, HD_F32, HD_F16, 1, false);
        check_ew(op, HD_F32, HD_BF16, 0, false);
    }
}

/* Operands of these extents against a result of [3, 5, n]. */
static void check_broadcast(int64_t n, hd_dtype dtype)
{
    const int64_t shapes[][3] = {{3, 5, n}, {1, 1, n}, {3, 1, n}, {3, 5, 1}, {1, 5, 1}, {1, 5, n}, {1, 1, 1}, {3, 1, 1}};
    hd_ew_attrs at;
    memset(&at, 0, sizeof at);
    at.dtype = dtype;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int rank = 3; rank >= 0; rank--) {
            trial t = {.op = "add", .attrs = &at, .n_in = 2, .n_out = 1, .tolerance = 1e-6, .floor = 0.1};
            bool first = (i + (size_t)rank) % 2;
            t.in[first] = tensor_normal(HD_F32, 0, 1, DIMS(3, 5, n));
            int64_t lead = 1;
            for (int d = 0; d < 3 - rank; d++) lead *= shapes[i][d];
            if (lead == 1) { /* else fewer dimensions would change the shape */
                t.in[!first] = tensor_normal(dtype, 0, 1, rank, shapes[i] + 3 - rank);
                t.out[0] = shape(dtype, DIMS(3, 5, n));
                trial_check(&t);
            }
            trial_free(&t);
        }
}

static void test_broadcast(void **state)
{
    (void)state;
    const int64_t widths[] = {1, 3, 17, 191, 193, 1030};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        check_broadcast(widths[i], HD_F32);
        check_broadcast(widths[i], HD_BF16);
    }
}

static void test_casts(void **state)
{
    (void)state;
    const hd_dtype types[] = {HD_F32, HD_BF16, HD_F16, HD_I8, HD_U8, HD_I32, HD_I64};
    hd_ew_attrs at;
    memset(&at, 0, sizeof at);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        for (size_t j = 0; j < 3; j++) {
            if (types[i] >= HD_I64 && types[i] <= HD_I32 && types[j] != HD_F32) continue;
            trial t = {.op = "cast", .attrs = &at, .n_in = 1, .n_out = 1};
            at.dtype = types[j];
            t.in[0] = types[i] <= HD_F16 ? tensor_normal(types[i], 0, 3, DIMS(7, 33)) : tensor_index(types[i], 100, DIMS(7, 33));
            t.out[0] = shape(types[j], DIMS(7, 33));
            trial_check(&t);
            trial_free(&t);
        }
}

/* f64 and integers: the definition itself. */
static void test_any_dtype(void **state)
{
    (void)state;
    const hd_dtype types[][3] = {{HD_F64, HD_F64, HD_F64}, {HD_I32, HD_I32, HD_I32}, {HD_I64, HD_I64, HD_U8}, {HD_I32, HD_F32, HD_F32}};
    const int ops[] = {HD_EW_ADD, HD_EW_MUL, HD_EW_LT, HD_EW_EQ, HD_EW_MAX};
    hd_ew_attrs at;
    memset(&at, 0, sizeof at);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        for (size_t k = 0; k < sizeof ops / sizeof *ops; k++) {
            trial t = {.op = hd_ew_name((hd_ew)ops[k]), .attrs = &at, .n_in = 2, .n_out = 1};
            at.dtype = types[i][2];
            t.in[0] = tensor_index(types[i][0], 100, DIMS(3, 1, 7));
            t.in[1] = tensor_index(types[i][1], 100, DIMS(5, 7));
            t.out[0] = shape(types[i][2], DIMS(3, 5, 7));
            trial_check(&t);
            trial_free(&t);
        }
}

/* y0 = gelu(x + bias) * s, y1 = bf16(x + bias), with the operand also a result. */
static void test_fused(void **state)
{
    (void)state;
    hd_fused_attrs at;
    memset(&at, 0, sizeof at);
    at.n_in = 3;
    at.n_steps = 4;
    at.n_out = 3;
    at.step[0] = (hd_chain_step){.op = HD_EW_ADD, .arg = {0, 1, 0}};
    at.step[1] = (hd_chain_step){.op = HD_EW_GELU, .arg = {3, 0, 0}};
    at.step[2] = (hd_chain_step){.op = HD_EW_CAST, .arg = {3, 0, 0}, .dtype = HD_BF16};
    at.step[3] = (hd_chain_step){.op = HD_EW_MUL, .arg = {4, 2, 0}};
    at.out[0] = 6;
    at.out[1] = 5;
    at.out[2] = 0;
    at.out_dtype[0] = HD_F32;
    at.out_dtype[1] = HD_BF16;
    at.out_dtype[2] = HD_F32;
    const int64_t widths[] = {0, 1, 7, 200, 768, 2048};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        int64_t n = widths[i];
        trial t = {.op = "fused", .attrs = &at, .n_in = 3, .n_out = 3, .tolerance = 2e-6, .floor = 1};
        t.in[0] = tensor_normal(i % 2 ? HD_F32 : HD_BF16, 0, 1, DIMS(9, n));
        t.in[1] = tensor_normal(HD_F32, 0, 1, DIMS(n));
        t.in[2] = tensor_normal(HD_F32, 0, 1, DIMS(9, 1));
        t.out[0] = shape(HD_F32, DIMS(9, n));
        t.out[1] = shape(HD_BF16, DIMS(9, n));
        t.out[2] = shape(HD_F32, DIMS(9, n));
        trial_check(&t);
        trial_free(&t);
    }
}

/* ---- norms ---- */

static void check_layer_norm(int64_t rows, int64_t d, hd_dtype in, hd_dtype out, bool beta, bool residual)
{
    hd_norm_attrs at;
    memset(&at, 0, sizeof at);
    at.eps = 1e-5;
    at.dtype = out;
    at.sum_dtype = in;
    trial t = {.op = "layer_norm", .attrs = &at, .n_in = 4, .n_out = 4, .tolerance = 2e-5, .floor = 0.3};
    t.in[0] = tensor_normal(in, 0.7, 2, DIMS(rows, d));
    t.in[1] = tensor_normal(in, 1, 0.1, DIMS(d));
    if (beta) t.in[2] = tensor_normal(in, 0, 1, DIMS(d));
    if (residual) t.in[3] = tensor_normal(in, 0, 1, DIMS(rows, d));
    t.out[0] = shape(out, DIMS(rows, d));
    t.out[1] = t.out[2] = shape(HD_F32, DIMS(rows));
    t.out[3] = shape(in, DIMS(rows, d));
    trial_check(&t);
    t.skip_out[1] = t.skip_out[3] = true;
    trial_check(&t);
    if (rows > 2) trial_check_rows(&t, 1 | 8, rows / 2);
    trial_free(&t);
}

static void check_rms_norm(int64_t rows, int64_t d, hd_dtype in, hd_dtype out, double offset)
{
    hd_norm_attrs at;
    memset(&at, 0, sizeof at);
    at.eps = 1e-6;
    at.offset = offset;
    at.dtype = out;
    at.sum_dtype = HD_F32;
    trial t = {.op = "rms_norm", .attrs = &at, .n_in = 3, .n_out = 3, .tolerance = 2e-5, .floor = 0.3};
    t.in[0] = tensor_normal(in, 0.2, 2, DIMS(rows, d));
    t.in[1] = tensor_normal(in, 1, 0.1, DIMS(d));
    t.in[2] = tensor_normal(HD_F32, 0, 1, DIMS(rows, d));
    t.out[0] = shape(out, DIMS(rows, d));
    t.out[1] = shape(HD_F32, DIMS(rows));
    t.out[2] = shape(HD_F32, DIMS(rows, d));
    trial_check(&t);
    if (rows > 2) trial_check_rows(&t, 1 | 4, rows / 2);
    trial_free(&t);
}

static void check_norm_grads(int64_t rows, int64_t d, hd_dtype in, hd_dtype out, bool layer)
{
    hd_norm_attrs at;
    memset(&at, 0, sizeof at);
    at.eps = 1e-6;
    at.dtype = out;
    at.offset = layer ? 0 : 1;
    trial t = {.op = layer ? "layer_norm_grad_x" : "rms_norm_grad_x", .attrs = &at, .n_in = layer ? 6 : 5, .n_out = 1, .floor = 1};
    t.tolerance = 2e-5;
    int k = 0;
    t.in[k++] = tensor_normal(in, 0.1, 1, DIMS(rows, d));
    t.in[k++] = tensor_normal(in, 0, 1, DIMS(rows, d));
    t.in[k++] = tensor_normal(HD_F32, 1, 0.2, DIMS(d));
    if (layer) t.in[k++] = tensor_normal(HD_F32, 0, 0.1, DIMS(rows));
    t.in[k++] = tensor_normal(HD_F32, 1, 0.1, DIMS(rows));
    t.in[k++] = tensor_normal(in, 0, 1, DIMS(rows, d));
    t.out[0] = shape(out, DIMS(rows, d));
    trial_check(&t);
    if (rows > 2) trial_check_rows(&t, ~4u, rows / 2);
    trial g = {.op = layer ? "layer_norm_grad_gamma" : "rms_norm_grad_gamma", .attrs = &at, .n_in = layer ? 4 : 3, .n_out = 1};
    g.tolerance = 2e-5;
    g.floor = sqrt((double)rows + 1);
    at.dtype = HD_F32;
    g.in[0] = t.in[0];
    g.in[1] = t.in[1];
    g.in[2] = t.in[3];
    g.in[3] = t.in[4];
    g.out[0] = shape(HD_F32, DIMS(d));
    trial_check(&g);
    g.accumulate = true;
    trial_check(&g);
    trial_free(&t);
}

static void test_norms(void **state)
{
    (void)state;
    const int64_t widths[] = {1, 7, 64, 129, 768, 1025};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        hd_dtype in = float_types[i % 2], out = float_types[(i / 2) % 2];
        int64_t rows = i == 1 ? 0 : i == 2 ? 131 : 5;
        check_layer_norm(rows, widths[i], in, out, i % 3 != 0, i % 2 == 0);
        check_rms_norm(rows, widths[i], out, in, (double)(i % 2));
        check_norm_grads(rows, widths[i], in, out, true);
        check_norm_grads(rows, widths[i], out, in, false);
    }
}

/* ---- reductions ---- */

static void test_reductions(void **state)
{
    (void)state;
    const int64_t shapes[][4] = {{3, 1, 5, 37}, {130, 1, 1, 150}, {2, 3, 4, 5}, {7, 2, 1, 2050}, {3, 0, 2, 4}, {1, 1, 300, 3}};
    const char *const ops[] = {"reduce_sum", "reduce_mean", "reduce_max"};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (uint32_t axes = 1; axes < 16; axes++)
            for (int k = 0; k < 3; k++) {
                hd_reduce_attrs at;
                memset(&at, 0, sizeof at);
                at.axes = axes;
                at.keep = true;
                at.dtype = float_types[axes % 2];
                trial t = {.op = ops[k], .attrs = &at, .n_in = 1, .n_out = 1, .tolerance = 1e-6, .floor = 20};
                t.in[0] = tensor_normal(float_types[i % 3], 0.1, 1, 4, shapes[i]);
                t.out[0] = like(&t.in[0], at.dtype);
                int64_t count = 1;
                for (int d = 0; d < 4; d++)
                    if (axes >> d & 1) {
                        count *= t.out[0].dim[d];
                        t.out[0].dim[d] = 1;
                    }
                if (count > 0 || k == 0) trial_check(&t);
                t.accumulate = k == 0;
                if (k == 0) trial_check(&t);
                trial_free(&t);
            }
    const int64_t counts[] = {0, 1, 1000, 40000};
    for (int i = 0; i < 4; i++) {
        trial t = {.op = "sum_squares", .n_in = 1, .n_out = 1, .tolerance = 1e-6};
        t.in[0] = tensor_normal(float_types[i % 2], 0, 1, DIMS(counts[i]));
        t.out[0] = shape(HD_F32, 0, NULL);
        trial_check(&t);
        trial_free(&t);
    }
}

/* ---- softmax and losses ---- */

static void test_softmax(void **state)
{
    (void)state;
    const int64_t widths[] = {1, 3, 100, 1024, 2500};
    for (int i = 0; i < 10; i++) {
        hd_dtype_attrs at = {float_types[i % 2]};
        int64_t d = widths[i / 2];
        trial t = {.op = "softmax", .attrs = &at, .n_in = 1, .n_out = 1, .tolerance = 2e-6, .floor = 1e-3};
        t.in[0] = tensor_normal(float_types[i % 3], 0, 4, DIMS(2, 3, d));
        t.out[0] = like(&t.in[0], at.dtype);
        trial_check(&t);
        trial_check_rows(&t, 1, 1);
        trial g = {.op = "softmax_grad", .attrs = &at, .n_in = 2, .n_out = 1, .tolerance = 4e-6, .floor = 0.3};
        g.in[0] = t.in[0];
        g.in[1] = tensor_normal(HD_F32, 0, 1, DIMS(2, 3, d));
        g.out[0] = t.out[0];
        g.floor = 10 * sqrt((double)d);
        trial_check(&g);
        trial_free(&g);
    }
}

static void check_entropy(int64_t rows, int64_t v, hd_dtype in)
{
    hd_entropy_attrs at = {.dtype = HD_F32};
    trial t = {.op = "cross_entropy", .attrs = &at, .n_in = 2, .n_out = 2, .tolerance = 2e-6, .floor = 1};
    t.in[0] = tensor_normal(in, 0, 5, DIMS(rows, v));
    t.in[1] = tensor_index(HD_I32, v, DIMS(rows));
    if (rows > 3) {
        ((int32_t *)t.in[1].data)[1] = -100;
        ((int32_t *)t.in[1].data)[2] = (int32_t)v;
    }
    t.out[0] = t.out[1] = shape(HD_F32, DIMS(rows));
    trial_check(&t);
    if (rows > 2) trial_check_rows(&t, 3, rows / 2);
    hd_tensor forward[2];
    run_reference(&t, forward);
    at.dtype = in;
    trial g = {.op = "cross_entropy_grad", .attrs = &at, .n_in = 4, .n_out = 1, .tolerance = 4e-6, .floor = 1e-3};
    g.in[0] = tensor_normal(HD_F32, 0, 1, DIMS(rows));
    g.in[1] = t.in[0];
    g.in[2] = t.in[1];
    g.in[3] = forward[1];
    g.out[0] = like(&t.in[0], in);
    trial_check(&g);
    if (rows > 2) trial_check_rows(&g, 15, rows / 2);
    at.first = 2; /* a shard of more columns, some of whose targets lie before it and some behind */
    at.classes = v + 4;
    trial_check(&g);
    trial part = {.op = "cross_entropy_part", .attrs = &at, .n_in = 2, .n_out = 3, .tolerance = 2e-6, .floor = 1};
    part.in[0] = t.in[0];
    part.in[1] = t.in[1];
    part.out[0] = part.out[1] = part.out[2] = shape(HD_F32, DIMS(rows));
    trial_check(&part);
    hd_free(forward[0].data);
    trial_free(&g);
}

static void test_cross_entropy(void **state)
{
    (void)state;
    check_entropy(5, 1, HD_F32);
    check_entropy(9, 37, HD_BF16);
    check_entropy(6, 1024, HD_F32);
    check_entropy(4, 3001, HD_BF16);
    check_entropy(0, 8, HD_F32);
}

/* ---- optimizers ---- */

static void check_adamw(int64_t n, float ok, bool copy)
{
    hd_optimizer_attrs at;
    memset(&at, 0, sizeof at);
    at.beta1 = 0.9;
    at.beta2 = 0.95;
    at.eps = 1e-8;
    at.weight_decay = 0.1;
    trial t = {.op = "adamw", .attrs = &at, .n_in = 8, .n_out = 4, .tolerance = 4e-7, .floor = 1, .inplace = 3};
    for (int i = 0; i < 4; i++) t.in[i] = tensor_normal(HD_F32, 0, i == 2 ? 0 : 1, DIMS(n));
    for (int64_t i = 0; i < n; i++) ((float *)t.in[2].data)[i] = (float)(i % 11) * 0.1f;
    t.in[4] = tensor_scalar(1e-3f);
    t.in[5] = tensor_scalar(7);
    t.in[6] = tensor_scalar(0.3f);
    t.in[7] = tensor_scalar(ok);
    for (int i = 0; i < 3; i++) t.out[i] = shape(HD_F32, DIMS(n));
    t.out[3] = shape(HD_BF16, DIMS(n));
    t.skip_out[3] = !copy;
    trial_check(&t);
    trial_free(&t);
}

static void check_sgd(int64_t n, float ok, double momentum, bool nesterov)
{
    hd_optimizer_attrs at;
    memset(&at, 0, sizeof at);
    at.momentum = momentum;
    at.weight_decay = 0.01;
    at.nesterov = nesterov;
    trial t = {.op = "sgd", .attrs = &at, .n_in = 6, .n_out = 2, .tolerance = 1e-6, .floor = 1, .inplace = 2};
    for (int i = 0; i < 3; i++) t.in[i] = tensor_normal(HD_F32, 0, 1, DIMS(n));
    t.in[3] = tensor_scalar(0.1f);
    t.in[4] = tensor_scalar(0.5f);
    t.in[5] = tensor_scalar(ok);
    t.out[0] = t.out[1] = shape(HD_F32, DIMS(n));
    if (momentum == 0) {
        hd_free(t.in[1].data);
        t.in[1] = (hd_tensor){0};
        t.n_out = 1;
    }
    trial_check(&t);
    trial_free(&t);
}

static void test_optimizers(void **state)
{
    (void)state;
    for (int ok = 0; ok < 2; ok++) {
        check_adamw(1003, (float)ok, true);
        check_adamw(5, (float)ok, false);
        check_sgd(333, (float)ok, 0.9, false);
        check_sgd(70, (float)ok, 0.9, true);
        check_sgd(70, (float)ok, 0, false);
    }
    check_adamw(0, 1, true);
}

/* ---- attention ---- */

typedef struct attention_case {
    int64_t tq, tk, hq, hk, e, f;
    bool causal;
    int64_t window;
    int segments; /* 0: one; else documents of random length; negative: also padding and shuffled positions */
    hd_dtype dtype;
    double softcap;
} attention_case;

static void fill_ids(hd_tensor *pos, hd_tensor *seg, int64_t n, int segments, int64_t first)
{
    int32_t *p = pos->data, *s = seg->data, at = (int32_t)first, id = 0;
    int64_t length = segments == 0 ? n : n / (abs(segments)) + 1;
    for (int64_t i = 0; i < n; i++) {
        if (segments != 0 && i > 0 && i % length == 0) {
            at = 0;
            id++;
        }
        p[i] = at++;
        s[i] = id;
        if (segments < 0 && hd_rng_below(&rng, 8) == 0) s[i] = -1;
        if (segments < 0) p[i] = (int32_t)hd_rng_below(&rng, (uint64_t)length);
    }
}

static void check_attention(const attention_case *c)
{
    hd_attention_attrs at;
    memset(&at, 0, sizeof at);
    at.scale = 1 / sqrt((double)c->e);
    at.causal = c->causal;
    at.window = c->window;
    at.softcap = c->softcap;
    at.dtype = c->dtype;
    bool bf16 = c->dtype == HD_BF16;
    trial t = {.op = "attention", .attrs = &at, .n_in = 7, .n_out = 2, .tolerance = bf16 ? 8e-3 : 4e-6, .floor = 1};
    t.in[0] = tensor_normal(c->dtype, 0, 1, DIMS(c->tq, c->hq, c->e));
    t.in[1] = tensor_normal(c->dtype, 0, 1, DIMS(c->tk, c->hk, c->e));
    t.in[2] = tensor_normal(c->dtype, 0, 1, DIMS(c->tk, c->hk, c->f));
    for (int i = 3; i < 7; i++) t.in[i] = tensor_new(HD_I32, DIMS(i % 2 ? c->tq : c->tk));
    fill_ids(&t.in[3], &t.in[5], c->tq, c->segments, c->tq < c->tk ? c->tk - c->tq : 0);
    fill_ids(&t.in[4], &t.in[6], c->tk, c->segments, 0);
    t.out[0] = shape(c->dtype, DIMS(c->tq, c->hq, c->f));
    t.out[1] = shape(HD_F32, DIMS(c->tq, c->hq));
    trial_check(&t);
    if (c->tq > 2) trial_check_rows(&t, 1 | 8 | 32, c->tq / 2 + 1);
    hd_tensor forward[2];
    run_reference(&t, forward);
    trial g = {.op = "attention_grad", .attrs = &at, .n_in = 10, .n_out = 3, .tolerance = bf16 ? 1.5e-2 : 1e-5};
    g.floor = 1 + sqrt((double)c->tq / 64);
    g.in[0] = tensor_normal(c->dtype, 0, 1, DIMS(c->tq, c->hq, c->f));
    for (int i = 0; i < 3; i++) g.in[1 + i] = t.in[i];
    g.in[4] = forward[0];
    g.in[5] = forward[1];
    for (int i = 0; i < 4; i++) g.in[6 + i] = t.in[3 + i];
    for (int i = 0; i < 3; i++) g.out[i] = like(&t.in[i], c->dtype);
    trial_check(&g);
    trial_free(&g);
}

static void test_attention(void **state)
{
    (void)state;
    const attention_case cases[] = {
        {1, 1, 1, 1, 1, 1, true, 0, 0, HD_F32, 0},          {70, 70, 2, 2, 64, 64, true, 0, 0, HD_F32, 0},
        {131, 131, 3, 1, 33, 17, true, 0, 3, HD_F32, 0},    {130, 200, 4, 2, 16, 80, false, 0, -2, HD_F32, 0},
        {1, 150, 6, 2, 64, 64, true, 0, 0, HD_F32, 0},      {5, 77, 2, 2, 7, 5, true, 9, 0, HD_F32, 0},
        {0, 10, 2, 1, 8, 8, true, 0, 0, HD_F32, 0},         {10, 0, 2, 1, 8, 8, true, 0, 0, HD_F32, 0},
        {70, 70, 2, 2, 64, 64, true, 0, 0, HD_BF16, 0},     {131, 131, 3, 1, 33, 17, true, 0, 3, HD_BF16, 0},
        {130, 200, 4, 2, 16, 80, false, 0, -2, HD_BF16, 0}, {1, 150, 6, 2, 64, 64, true, 0, 0, HD_BF16, 0},
        {66, 140, 3, 3, 96, 40, true, 20, -3, HD_BF16, 0},  {100, 100, 2, 1, 256, 130, true, 0, 2, HD_F32, 0},
        {90, 90, 4, 2, 32, 32, true, 0, 2, HD_F32, 1.5}, {70, 130, 4, 2, 32, 32, true, 40, -2, HD_BF16, 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_attention(&cases[i]);
}

/* Rows of which one side, or both, saw no key at all; and an lse far above the other. */
static void check_merge(int64_t rows, int64_t heads, int64_t n, hd_dtype in, hd_dtype out)
{
    hd_dtype_attrs at = {.dtype = out};
    trial t = {.op = "attention_merge", .attrs = &at, .n_in = 4, .n_out = 2, .tolerance = out == HD_BF16 ? 8e-3 : 2e-6, .floor = 1};
    for (int i = 0; i < 4; i++) t.in[i] = i % 2 ? tensor_normal(HD_F32, 0, 3, DIMS(rows, heads)) : tensor_normal(in, 0, 1, DIMS(rows, heads, n));
    for (int64_t r = 0; r < rows * heads; r++)
        for (int k = 0; k < 2; k++) {
            float *lse = t.in[1 + 2 * k].data, *x = t.in[2 * k].data;
            if (r % 4 == 3) lse[r] += k ? 200 : 0;
            if (!(r % 4 == k || r % 4 == 2)) continue;
            lse[r] = -INFINITY;
            for (int64_t c = 0; in == HD_F32 && c < n; c++) x[r * n + c] = 0;
        }
    t.out[0] = shape(out, DIMS(rows, heads, n));
    t.out[1] = shape(HD_F32, DIMS(rows, heads));
    trial_check(&t);
    hd_tensor got[2];
    run_reference(&t, got);
    for (int64_t r = 0; r < rows * heads; r++) {
        float lse = ((float *)got[1].data)[r];
        assert_true(r % 4 == 2 ? isinf(lse) && lse < 0 : isfinite(lse));
        for (int64_t c = 0; c < n; c++) assert_true(isfinite(hd_load_f64(got[0].data, out, r * n + c)));
    }
    results_free(&t, got);
    trial_free(&t);
}

static void test_attention_merge(void **state)
{
    (void)state;
    check_merge(5, 3, 33, HD_F32, HD_F32);
    check_merge(9, 1, 64, HD_F32, HD_BF16);
    check_merge(4, 2, 7, HD_BF16, HD_F32);
    check_merge(0, 2, 8, HD_F32, HD_F32);
}

/* ---- rows by index, positions, moves, images ---- */

static void test_index(void **state)
{
    (void)state;
    const int64_t widths[] = {1, 5, 64, 200};
    for (int i = 0; i < 8; i++) {
        int64_t d = widths[i / 2];
        hd_dtype in = float_types[i % 2], out = float_types[i / 2 % 2];
        hd_rows_attrs at;
        memset(&at, 0, sizeof at);
        at.rows = 13;
        at.first = i % 3;
        at.dtype = out;
        trial t = {.op = "gather", .attrs = &at, .n_in = 2, .n_out = 1};
        t.in[0] = tensor_normal(in, 0, 1, DIMS(13, d));
        t.in[1] = tensor_index(i % 2 ? HD_I32 : HD_I64, 17, DIMS(7, 9));
        t.out[0] = shape(out, DIMS(7, 9, d));
        trial_check(&t);
        at.dtype = HD_F32;
        trial s = {.op = "scatter_add", .attrs = &at, .n_in = 2, .n_out = 1, .tolerance = 1e-6, .floor = 5};
        s.in[0] = tensor_normal(in, 0, 1, DIMS(7, 9, d));
        s.in[1] = t.in[1];
        s.out[0] = shape(HD_F32, DIMS(13, d));
        trial_check(&s);
        s.accumulate = true;
        trial_check(&s);
        hd_free(s.in[0].data);
        trial u = {.op = "update_rows", .attrs = &at, .n_in = 3, .n_out = 1};
        u.in[0] = t.in[0];
        u.in[1] = tensor_normal(in, 0, 1, DIMS(6, d));
        u.in[2] = tensor_index(HD_I32, 15, DIMS(6));
        u.out[0] = like(&t.in[0], in);
        trial_check(&u);
        u.inplace = 1;
        trial_check(&u);
        hd_free(u.in[1].data);
        hd_free(u.in[2].data);
        at.dtype = out;
        trial o = {.op = "one_hot", .attrs = &at, .n_in = 1, .n_out = 1};
        o.in[0] = t.in[1];
        o.out[0] = shape(out, DIMS(7, 9, 13));
        trial_check(&o);
        trial_free(&t);
    }
}

static void test_top_k(void **state)
{
    (void)state;
    for (int64_t k = 1; k <= 40; k += 13) {
        hd_topk_attrs at;
        memset(&at, 0, sizeof at);
        at.k = k;
        at.extent = 40;
        at.dtype = float_types[k % 2];
        trial t = {.op = "top_k", .attrs = &at, .n_in = 1, .n_out = 2};
        t.in[0] = tensor_normal(float_types[k % 2], 0, 1, DIMS(3, 5, 40)); /* bf16 has equals */
        ((uint16_t *)t.in[0].data)[3] = 0x7fff;
        t.out[0] = shape(at.dtype, DIMS(3, 5, k));
        t.out[1] = shape(HD_I32, DIMS(3, 5, k));
        trial_check(&t);
        hd_tensor forward[2];
        run_reference(&t, forward);
        trial g = {.op = "top_k_grad", .attrs = &at, .n_in = 2, .n_out = 1, .tolerance = 1e-6};
        g.in[0] = tensor_normal(HD_F32, 0, 1, DIMS(3, 5, k));
        g.in[1] = forward[1];
        g.out[0] = shape(at.dtype, DIMS(3, 5, 40));
        trial_check(&g);
        hd_free(forward[0].data);
        trial_free(&g);
        trial_free(&t);
    }
}

static void test_position(void **state)
{
    (void)state;
    for (int i = 0; i < 16; i++) {
        int64_t e = i % 4 == 0 ? 64 : i % 4 == 1 ? 13 : i % 4 == 2 ? 2 : 300, half = i % 3 == 0 ? e / 2 : (e / 2 + 1) / 2;
        hd_rope_attrs at;
        memset(&at, 0, sizeof at);
        at.interleaved = i & 1;
        at.inverse = i & 2;
        at.scale = 1.25;
        at.dtype = float_types[i % 2];
        trial t = {.op = "rope", .attrs = &at, .n_in = 3, .n_out = 1, .tolerance = 6e-7, .floor = 3};
        t.in[0] = tensor_normal(float_types[i / 2 % 2], 0, 1, DIMS(5, 3, e));
        t.in[1] = tensor_index(HD_I32, i % 5 ? 2000 : 1000000, DIMS(5));
        t.in[2] = tensor_normal(HD_F32, 0.3, 0.2, DIMS(half));
        t.out[0] = shape(at.dtype, DIMS(5, 3, e));
        trial_check(&t);
        if (at.dtype == t.in[0].dtype) t.inplace = 1;
        trial_check(&t);
        trial_free(&t);
    }
    const int64_t widths[] = {0, 1, 7, 64, 131, 768};
    for (int i = 0; i < 12; i++) {
        hd_dropout_attrs at;
        memset(&at, 0, sizeof at);
        at.p = i % 3 == 0 ? 0.5 : i % 3 == 1 ? 0.1 : 0;
        at.site = 0x123456789abcdef;
        at.dtype = float_types[i % 2];
        trial t = {.op = "dropout", .attrs = &at, .n_in = 4, .n_out = 1, .tolerance = 2e-7};
        t.in[0] = tensor_normal(float_types[i / 3 % 2], 3, 0.5, DIMS(4, 1, widths[i / 2]));
        t.in[1] = tensor_index(HD_I64, INT64_MAX, DIMS(2));
        t.in[2] = tensor_index(HD_I64, INT64_MAX, DIMS(4));
        t.in[3] = tensor_index(HD_I32, 1 << 30, DIMS(4));
        t.out[0] = shape(at.dtype, DIMS(4, 1, widths[i / 2]));
        trial_check(&t);
        trial_check_rows(&t, 13, 2);
        trial_free(&t);
    }
}

static void check_transpose(hd_dtype dtype, int rank, const int64_t *dim, const int64_t *order)
{
    hd_dims_attrs at;
    memset(&at, 0, sizeof at);
    at.rank = rank;
    trial t = {.op = "transpose", .attrs = &at, .n_in = 1, .n_out = 1};
    t.in[0] = tensor_index(dtype, 100, rank, dim);
    t.out[0] = like(&t.in[0], dtype);
    for (int i = 0; i < rank; i++) {
        at.dim[i] = order[i];
        t.out[0].dim[i] = dim[order[i]];
    }
    trial_check(&t);
    trial_free(&t);
}

static void test_moves(void **state)
{
    (void)state;
    const hd_dtype types[] = {HD_F32, HD_BF16, HD_I64, HD_I8};
    for (int i = 0; i < 4; i++) {
        hd_dtype d = types[i];
        check_transpose(d, DIMS(5, 37), (int64_t[]){1, 0});
        check_transpose(d, DIMS(3, 5, 7, 2), (int64_t[]){3, 1, 0, 2});
        check_transpose(d, DIMS(19, 5, 33), (int64_t[]){1, 0, 2});
        check_transpose(d, DIMS(4, 19, 35), (int64_t[]){0, 2, 1});
        check_transpose(d, DIMS(4, 19, 35), (int64_t[]){2, 0, 1});
        check_transpose(d, DIMS(4, 6), (int64_t[]){0, 1});
        check_transpose(d, DIMS(0, 6), (int64_t[]){1, 0});
        for (int32_t axis = 0; axis < 3; axis++) {
            hd_slice_attrs at = {.axis = axis, .begin = 1, .end = 4};
            trial t = {.op = "slice", .attrs = &at, .n_in = 1, .n_out = 1};
            t.in[0] = tensor_index(d, 100, DIMS(5, 7, 19));
            t.out[0] = like(&t.in[0], d);
            t.out[0].dim[axis] = 3;
            trial_check(&t);
            t.op = "pad";
            t.out[0].dim[axis] = t.in[0].dim[axis] + 5;
            trial_check(&t);
            hd_axis_attrs axis_at = {axis};
            int64_t dims[3] = {5, 7, 19};
            t.op = "concat";
            t.attrs = &axis_at;
            t.n_in = 3;
            for (int k = 1; k < 3; k++) {
                dims[axis] = k == 1 ? 3 : 0;
                t.in[k] = tensor_index(d, 100, 3, dims);
            }
            t.out[0].dim[axis] = t.in[0].dim[axis] + 3;
            trial_check(&t);
            trial_free(&t);
        }
    }
    hd_dims_attrs at = {.rank = 3, .dim = {4, 3, 5}};
    trial t = {.op = "broadcast", .attrs = &at, .n_in = 1, .n_out = 1};
    t.in[0] = tensor_normal(HD_BF16, 0, 1, DIMS(3, 1));
    t.out[0] = shape(HD_BF16, DIMS(4, 3, 5));
    trial_check(&t);
    trial_free(&t);
}

static void check_batch_norm(int64_t n, int64_t c, int64_t h, int64_t w, hd_dtype in)
{
    hd_norm_attrs at;
    memset(&at, 0, sizeof at);
    at.eps = 1e-5;
    at.dtype = in;
    trial t = {.op = "batch_norm", .attrs = &at, .n_in = 3, .n_out = 4, .tolerance = 4e-6, .floor = 2};
    t.in[0] = tensor_normal(in, 1, 2, DIMS(n, c, h, w));
    t.in[1] = tensor_normal(HD_F32, 1, 0.3, DIMS(c));
    t.in[2] = tensor_normal(HD_F32, 0, 1, DIMS(c));
    t.out[0] = like(&t.in[0], in);
    t.out[1] = t.out[2] = t.out[3] = shape(HD_F32, DIMS(c));
    trial_check(&t);
    hd_tensor forward[4];
    run_reference(&t, forward);
    trial g = {.op = "batch_norm_grad_x", .attrs = &at, .n_in = 7, .n_out = 1, .tolerance = 1e-5, .floor = 1};
    g.in[0] = tensor_normal(in, 0.2, 1, DIMS(n, c, h, w));
    g.in[1] = t.in[0];
    g.in[2] = t.in[1];
    g.in[3] = forward[1];
    g.in[4] = forward[2];
    g.in[5] = tensor_normal(HD_F32, 3, 9, DIMS(c));
    g.in[6] = tensor_normal(HD_F32, 1, 9, DIMS(c));
    g.out[0] = like(&t.in[0], in);
    trial_check(&g);
    trial gamma = {.op = "batch_norm_grad_gamma", .attrs = &at, .n_in = 4, .n_out = 1, .tolerance = 1e-5};
    gamma.floor = sqrt((double)(n * h * w));
    gamma.in[0] = g.in[0];
    gamma.in[1] = t.in[0];
    gamma.in[2] = forward[1];
    gamma.in[3] = forward[2];
    gamma.out[0] = shape(HD_F32, DIMS(c));
    trial_check(&gamma);
    hd_free(g.in[0].data);
    hd_free(g.in[5].data);
    hd_free(g.in[6].data);
    trial_free(&t);
    results_free(&t, forward);
}

/* A piece of a batch of which `count` elements a channel are elsewhere as well; it may be empty. */
static void check_batch_norm_piece(int64_t n, int64_t c, int64_t h, int64_t w, int64_t count, hd_dtype in)
{
    hd_norm_attrs at;
    memset(&at, 0, sizeof at);
    at.eps = 1e-5;
    at.dtype = in;
    at.count = count;
    trial squares = {.op = "batch_norm_squares", .attrs = &at, .n_in = 2, .n_out = 1, .tolerance = 2e-6};
    squares.in[0] = tensor_normal(in, 1, 2, DIMS(n, c, h, w));
    squares.in[1] = tensor_normal(HD_F32, (double)count, 3, DIMS(c));
    squares.out[0] = shape(HD_F32, DIMS(c));
    trial_check(&squares);
    trial finish = {.op = "batch_norm_finish", .attrs = &at, .n_in = 5, .n_out = 4, .tolerance = 4e-6, .floor = 2};
    finish.in[0] = squares.in[0];
    finish.in[1] = tensor_normal(HD_F32, 1, 0.3, DIMS(c));
    finish.in[2] = tensor_normal(HD_F32, 0, 1, DIMS(c));
    finish.in[3] = squares.in[1];
    finish.in[4] = tensor_normal(HD_F32, 4 * (double)count, 1, DIMS(c));
    finish.out[0] = like(&squares.in[0], in);
    finish.out[1] = finish.out[2] = finish.out[3] = shape(HD_F32, DIMS(c));
    trial_check(&finish);
    trial_free(&finish);
}

static void check_pool(hd_conv_attrs at, hd_dtype dtype)
{
    int64_t in[2] = {11, 9}, out[2];
    for (int d = 0; d < 2; d++) out[d] = (in[d] + 2 * at.pad[d] - at.dilation[d] * (at.kernel[d] - 1) - 1) / at.stride[d] + 1;
    at.in[0] = 11;
    at.in[1] = 9;
    at.dtype = dtype;
    trial t = {.op = "max_pool2d", .attrs = &at, .n_in = 1, .n_out = 1, .tolerance = 1e-6, .floor = 1};
    t.in[0] = tensor_normal(dtype, 0, 1, DIMS(2, 3, 11, 9));
    t.out[0] = shape(dtype, DIMS(2, 3, out[0], out[1]));
    trial_check(&t);
    hd_tensor forward[1];
    run_reference(&t, forward);
    t.op = "avg_pool2d";
    trial_check(&t);
    trial g = {.op = "max_pool2d_grad", .attrs = &at, .n_in = 3, .n_out = 1, .tolerance = 1e-6, .floor = 4};
    g.in[0] = tensor_normal(dtype, 0, 1, DIMS(2, 3, out[0], out[1]));
    g.in[1] = t.in[0];
    g.in[2] = forward[0];
    g.out[0] = like(&t.in[0], dtype);
    trial_check(&g);
    g.op = "avg_pool2d_grad";
    g.n_in = 1;
    trial_check(&g);
    g.n_in = 3;
    trial_free(&g);
}

static void test_images(void **state)
{
    (void)state;
    check_batch_norm(3, 5, 7, 11, HD_F32);
    check_batch_norm(2, 3, 1, 1, HD_BF16);
    check_batch_norm(2, 2, 40, 40, HD_BF16);
    check_batch_norm_piece(3, 5, 7, 11, 1000, HD_F32);
    check_batch_norm_piece(2, 3, 40, 40, 3300, HD_BF16);
    check_batch_norm_piece(1, 3, 1, 1, 7, HD_F16);
    check_batch_norm_piece(0, 5, 7, 11, 400, HD_F32);
    check_pool((hd_conv_attrs){.kernel = {2, 2}, .stride = {2, 2}, .dilation = {1, 1}}, HD_F32);
    check_pool((hd_conv_attrs){.kernel = {3, 2}, .stride = {1, 2}, .dilation = {2, 1}, .pad = {1, 1}}, HD_BF16);
}

/* The null back end has a kernel for anything and touches nothing. */
static void test_null(void **state)
{
    (void)state;
    hd_tensor y = tensor_new(HD_F32, DIMS(4));
    hd_kernel_args a = {.out = &y, .n_out = 1, .threads = 1};
    const hd_kernel *k = hd_null_kernel_find("anything", &a);
    assert_non_null(k);
    k->run(&a);
    assert_int_equal(((unsigned char *)y.data)[5], 0x5a);
    hd_free(y.data);
}

static int set_up(void **state)
{
    (void)state;
    rng = hd_rng_new(20);
    for (int n = 1; n <= MAX_THREADS; n++) teams[n] = hd_team_new(n, false, NULL);
    return teams[MAX_THREADS] ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    for (int n = 1; n <= MAX_THREADS; n++) hd_team_free(teams[n]);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_elementwise), cmocka_unit_test(test_broadcast),     cmocka_unit_test(test_casts),
        cmocka_unit_test(test_fused),       cmocka_unit_test(test_norms),         cmocka_unit_test(test_reductions),
        cmocka_unit_test(test_softmax),     cmocka_unit_test(test_cross_entropy), cmocka_unit_test(test_optimizers),
        cmocka_unit_test(test_attention), cmocka_unit_test(test_attention_merge),   cmocka_unit_test(test_index),         cmocka_unit_test(test_top_k),
        cmocka_unit_test(test_position),    cmocka_unit_test(test_moves),         cmocka_unit_test(test_images),
        cmocka_unit_test(test_any_dtype),   cmocka_unit_test(test_null),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
