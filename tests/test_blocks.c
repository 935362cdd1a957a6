/* Products with block-quantized weights, bit for bit against the definition in kernels/cpu/blocks.h, over instruction sets, row counts, threads and
 * notations; rows of a table in blocks; the references of contract and gather on blocks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include "base/mem.h"
#include "base/rng.h"
#include "kernels/cpu/blocks.h"
#include "ops/ops.h"
#include "sanitized.h"

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))
#define ROWS 40

/* Where a block's f16 scale and minimum lie; -1: none. */
typedef struct block_type { const char *name; int scale, minimum; } block_type;
static const block_type types[] = {
    {"Q8_0", 0, -1}, {"Q4_0", 0, -1}, {"Q4_1", 0, 2}, {"Q5_0", 0, -1}, {"Q5_1", 0, 2}, {"IQ4_NL", 0, -1}, {"Q2_K", 80, 82},
    {"Q3_K", 108, -1}, {"Q4_K", 0, 2}, {"Q5_K", 0, 2}, {"Q6_K", 208, -1}, {"IQ4_XS", 0, -1}, {"F16", -1, -1},
};

static void put_half(unsigned char *p, double v)
{
    uint16_t h = hd_f16_from_f64(v);
    memcpy(p, &h, 2);
}

static float half_at(const unsigned char *p)
{
    uint16_t h;
    memcpy(&h, p, 2);
    return hd_f16_to_f32(h);
}

/* Random blocks with scales of a sensible size. */
static unsigned char *random_blocks(const block_type *t, const hd_quant *q, int64_t n, hd_rng *rng)
{
    int64_t blocks = n / q->block;
    unsigned char *p = hd_malloc((size_t)(blocks * q->bytes) + 1);
    assert_non_null(p);
    for (int64_t i = 0; i < blocks * q->bytes; i++) p[i] = (unsigned char)hd_rng_below(rng, 256);
    for (int64_t b = 0; b < blocks; b++) {
        if (q->plain) put_half(p + b * q->bytes, 2 * hd_rng_uniform(rng) - 1);
        if (t->scale >= 0) put_half(p + b * q->bytes + t->scale, 0.02 * hd_rng_uniform(rng) - 0.005);
        if (t->minimum >= 0) put_half(p + b * q->bytes + t->minimum, 0.1 * hd_rng_uniform(rng) - 0.02);
    }
    return p;
}

/* ---- the definition ---- */

/* A block's numbers with its scale and minimum replaced: integers times integer scales, or minima alone. */
static void numbers_with(const block_type *t, const hd_quant *q, const unsigned char *block, double scale, double minimum, float *out)
{
    unsigned char copy[512];
    memcpy(copy, block, (size_t)q->bytes);
    put_half(copy + t->scale, scale);
    if (t->minimum >= 0) put_half(copy + t->minimum, minimum);
    q->dequantize(copy, 1, out);
}

/* Rounds a block of x; returns the scale. */
static float round_block(const float *x, int n, int *q)
{
    float most = 0;
    for (int i = 0; i < n; i++) most = fmaxf(most, fabsf(x[i]));
    for (int i = 0; i < n; i++) q[i] = most > 0 ? (int)nearbyintf(x[i] * (127 / most)) : 0;
    return n == 32 ? hd_f16_to_f32(hd_f16_from_f32(most / 127)) : most / 127;
}

/* One element of y: a row of x and a column of w. */
static float define(const block_type *t, const hd_quant *q, const float *x, const unsigned char *w, int64_t k)
{
    float acc = 0, number[256], minimum[256];
    for (int64_t b = 0; b < k / q->block; b++, w += q->bytes, x += q->block) {
        int xq[256], n = q->block;
        int64_t sum = 0, sum_minimum = 0;
        if (q->plain) {
            acc = fmaf(half_at(w), *x, acc);
            continue;
        }
        float scale = round_block(x, n, xq);
        numbers_with(t, q, w, 1, 0, number);
        numbers_with(t, q, w, 0, 1, minimum);
        for (int i = 0; i < n; i++) sum += (int64_t)number[i] * xq[i], sum_minimum += (int64_t)minimum[i] * xq[i];
        acc = fmaf((float)sum, half_at(w + t->scale) * scale, acc);
        if (t->minimum < 0) continue;
        if (n == 32) acc = fmaf(half_at(w + t->minimum), scale * (float)sum_minimum, acc);
        else acc = fmaf((float)sum_minimum, half_at(w + t->minimum) * scale, acc);
    }
    return acc;
}

/* ---- running the kernel ---- */

typedef struct job { hd_kernel_args args; const hd_kernel *kernel; } job;

static void run_member(void *arg, int tid)
{
    job *j = arg;
    hd_kernel_args a = j->args;
    a.tid = tid;
    j->kernel->run(&a);
}

/* The workspace is poisoned, and the bytes after it must stay as they are. */
static bool run_op(const char *op, hd_isa isa, hd_kernel_args *a, hd_team *team)
{
    job j = {*a, hd_cpu_kernel_find(op, isa, a)};
    if (!j.kernel) return false;
    int threads = hd_team_size(team);
    size_t bytes = j.kernel->workspace ? j.kernel->workspace(a, threads) : 0;
    unsigned char *raw = hd_malloc(bytes + 192), *workspace = raw + (64 - (uintptr_t)raw % 64);
    assert_non_null(raw);
    memset(workspace, 0xff, bytes + 64);
    j.args.workspace = workspace;
    j.args.threads = threads;
    j.args.team = team;
    hd_team_run(team, run_member, &j);
    for (int i = 0; i < 64; i++) assert_int_equal(workspace[bytes + (size_t)i], 0xff);
    hd_free(raw);
    return true;
}

static void *pack(hd_isa isa, const hd_quant *q, const void *rows, int64_t n, int64_t k, int threads, size_t *bytes)
{
    *bytes = hd_blocks_packed_bytes(isa, q, n, k);
    unsigned char *packed = hd_malloc(*bytes + 64);
    assert_non_null(packed);
    memset(packed, 0xee, *bytes + 64);
    for (int tid = threads - 1; tid >= 0; tid--) hd_blocks_pack(isa, q, rows, n, k, packed, tid, threads);
    for (int i = 0; i < 64; i++) assert_int_equal(packed[*bytes + (size_t)i], 0xee);
    return packed;
}

static hd_team *teams[4];

static int start_teams(void **state)
{
    (void)state;
    for (int i = 1; i < 4; i++)
        if (!(teams[i] = hd_team_new(i, false, NULL))) return -1;
    return 0;
}

static int stop_teams(void **state)
{
    (void)state;
    for (int i = 1; i < 4; i++) hd_team_free(teams[i]);
    return 0;
}

typedef struct product { const block_type *t; const hd_quant *q; int64_t n, k; unsigned char *w; float *x, *want; } product;

static product new_product(const block_type *t, int64_t n, int64_t k, hd_rng *rng)
{
    const hd_quant *q = hd_quant_by_name(t->name);
    k = (k + q->block - 1) / q->block * q->block;
    product p = {t, q, n, k, random_blocks(t, q, n * k, rng), hd_malloc((size_t)(ROWS * k + 1) * 4), hd_malloc((size_t)(ROWS * n) * 4)};
    assert_true(p.x && p.want);
    for (int64_t i = 0; i < ROWS * k; i++) p.x[i] = (float)(hd_rng_uniform(rng) * 2 - 1) * (i / k == 3 ? 0 : i / 32 % 5 ? 1.0f : 0.01f);
    for (int64_t r = 0; r < ROWS; r++)
        for (int64_t c = 0; c < n; c++) p.want[r * n + c] = define(t, q, p.x + r * k, p.w + c * (k / q->block) * q->bytes, k);
    return p;
}

static void free_product(product *p) { hd_free(p->w), hd_free(p->x), hd_free(p->want); }

/* Elements that are not the same bits. */
static int64_t count_different(const float *y, const float *want, int64_t n)
{
    int64_t wrong = 0;
    for (int64_t i = 0; i < n; i++) wrong += memcmp(&y[i], &want[i], 4) != 0;
    return wrong;
}

static int64_t multiply(const product *p, hd_isa isa, const void *packed, int64_t rows, int threads)
{
    float *y = hd_malloc((size_t)(rows * p->n + 16) * 4);
    assert_non_null(y);
    for (int64_t i = 0; i < rows * p->n + 16; i++) y[i] = 777;
    hd_tensor in[2] = {{.data = p->x, .dtype = HD_F32, .rank = 2, .dim = {rows, p->k}},
                       {.data = (void *)packed, .dtype = HD_F32, .format = HD_PACKED, .blocks = p->q, .rank = 2, .dim = {p->n, p->k}}};
    hd_tensor out = {.data = y, .dtype = HD_F32, .rank = 2, .dim = {rows, p->n}};
    hd_contract_attrs attrs = {.spec = "td,fd->tf", .dtype = HD_F32};
    hd_kernel_args args = {.in = in, .out = &out, .n_in = 2, .n_out = 1, .attrs = &attrs};
    assert_true(run_op("contract", isa, &args, teams[threads]));
    int64_t wrong = count_different(y, p->want, rows * p->n);
    for (int i = 0; i < 16; i++) wrong += y[rows * p->n + i] != 777;
    hd_free(y);
    return wrong;
}

static void check_product(const block_type *t, int64_t n, int64_t k, hd_rng *rng)
{
    static const int few[] = {1, 2, 7, 40};
    product p = new_product(t, n, k, rng);
    hd_isa best = hd_isa_detect();
    for (hd_isa isa = HD_ISA_PORTABLE; isa <= best; isa++) {
        size_t bytes;
        void *packed = pack(isa, p.q, p.w, n, p.k, 1 + (int)(n % 3), &bytes);
        for (int rows = 1; rows <= ROWS; rows++) {
            bool chosen = isa == best;
            for (int i = 0; i < COUNT(few); i++) chosen |= rows == few[i];
            for (int threads = 1; chosen && threads < 4; threads++) {
                int64_t wrong = multiply(&p, isa, packed, rows, threads);
                if (wrong) print_error("%s %s: %d rows x %d columns x %d, %d threads: %d wrong\n", hd_isa_name(isa), t->name, rows, (int)n, (int)p.k,
                                       threads, (int)wrong);
                assert_int_equal(wrong, 0);
            }
        }
        hd_free(packed);
    }
    free_product(&p);
}

static void test_products(void **state)
{
    (void)state;
    static const int64_t shapes[][2] = {{1, 32}, {16, 96}, {37, 256}, {100, 800}, {67, 1056}};
    hd_rng rng = hd_rng_new(11);
    for (int t = 0; t < COUNT(types); t++)
        for (int s = SANITIZED ? t % 3 : 0; s < COUNT(shapes); s += SANITIZED ? 3 : 1) check_product(&types[t], shapes[s][0], shapes[s][1] + (types[t].scale < 0 ? 5 : 0), &rng);
}

/* ---- notations and element types ---- */

/* spec over x and w with the given dimensions: the same bits as the plain product of rows and columns, with x and y rounded to their types. */
static void check_spec(const char *spec, const int64_t *x_dim, int x_rank, const int64_t *w_dim, int w_rank, int y_rank, hd_dtype tx, hd_dtype ty,
                       bool accumulate, hd_rng *rng)
{
    const block_type *t = &types[0];
    int64_t k = 64, n = 3 * 40, rows = 6;
    product p = new_product(t, n, k, rng);
    size_t bytes;
    void *packed = pack(hd_isa_detect(), p.q, p.w, n, k, 1, &bytes);
    hd_tensor in[2] = {{.dtype = tx, .rank = x_rank}, {.data = packed, .format = HD_PACKED, .blocks = p.q, .rank = w_rank}};
    hd_tensor out = {.dtype = ty, .rank = y_rank, .dim = {rows * n}};
    memcpy(in[0].dim, x_dim, sizeof *x_dim * (size_t)x_rank), memcpy(in[1].dim, w_dim, sizeof *w_dim * (size_t)w_rank);
    unsigned char x[6 * 64 * 4], y[6 * 120 * 4];
    hd_convert(x, tx, p.x, HD_F32, rows * k);
    hd_convert(p.x, HD_F32, x, tx, rows * k);
    for (int64_t i = 0; i < rows * n; i++) hd_store_f64(y, ty, i, accumulate ? 0.5 : 99);
    in[0].data = x, out.data = y;
    hd_contract_attrs attrs = {.dtype = ty};
    snprintf(attrs.spec, sizeof attrs.spec, "%s", spec);
    hd_kernel_args args = {.in = in, .out = &out, .n_in = 2, .n_out = 1, .attrs = &attrs, .accumulate = accumulate};
    assert_true(run_op("contract", hd_isa_detect(), &args, teams[2]));
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < n; c++) {
            float want = define(t, p.q, p.x + r * k, p.w + c * (k / 32) * 34, k) + (accumulate ? 0.5f : 0), got = (float)hd_load_f64(y, ty, r * n + c);
            float rounding = ty == HD_F32 ? (accumulate ? 1e-6f : 0) : ty == HD_BF16 ? 0x1p-8f : 0x1p-11f;
            assert_true(fabsf(got - want) <= rounding * (1 + fabsf(want)));
        }
    hd_free(packed);
    free_product(&p);
}

static void test_notations(void **state)
{
    (void)state;
    hd_rng rng = hd_rng_new(5);
    static const hd_dtype dtypes[] = {HD_F32, HD_BF16, HD_F16};
    for (int i = 0; i < 9; i++) {
        hd_dtype tx = dtypes[i / 3], ty = dtypes[i % 3];
        check_spec("td,fd->tf", (int64_t[]){6, 64}, 2, (int64_t[]){120, 64}, 2, 2, tx, ty, false, &rng);
        check_spec("td,hed->the", (int64_t[]){6, 64}, 2, (int64_t[]){3, 40, 64}, 3, 3, tx, ty, i % 2, &rng);
        check_spec("the,dhe->td", (int64_t[]){6, 2, 32}, 3, (int64_t[]){120, 2, 32}, 3, 2, tx, ty, false, &rng);
        check_spec("abd,fd->abf", (int64_t[]){2, 3, 64}, 3, (int64_t[]){120, 64}, 2, 3, tx, ty, false, &rng);
    }
}

/* What the kernels must leave alone. */
static void test_refusals(void **state)
{
    (void)state;
    static const struct { const char *spec; int x_rank, w_rank; int64_t x[4], w[4]; } cases[] = {
        {"dt,fd->tf", 2, 2, {64, 6}, {8, 64}},          {"td,df->tf", 2, 2, {6, 64}, {64, 64}},       {"td,fd->ft", 2, 2, {6, 64}, {8, 64}},
        {"bd,bfd->bf", 2, 3, {2, 64}, {2, 8, 64}},      {"teh,dhe->td", 3, 3, {6, 32, 2}, {8, 2, 32}}, {"td,fd->tf", 2, 2, {6, 40}, {8, 40}},
        {"td,hed->teh", 2, 3, {6, 64}, {2, 4, 64}},     {"td,hdf->thf", 2, 3, {6, 64}, {2, 64, 64}},
    };
    for (int i = 0; i < COUNT(cases); i++) {
        hd_tensor in[2] = {{.dtype = HD_F32, .rank = cases[i].x_rank},
                           {.format = HD_PACKED, .blocks = hd_quant_by_name("Q4_0"), .rank = cases[i].w_rank}};
        memcpy(in[0].dim, cases[i].x, sizeof cases[i].x), memcpy(in[1].dim, cases[i].w, sizeof cases[i].w);
        hd_tensor out = {.dtype = HD_F32, .rank = 2};
        hd_contract_attrs attrs = {.dtype = HD_F32};
        snprintf(attrs.spec, sizeof attrs.spec, "%s", cases[i].spec);
        hd_kernel_args args = {.in = in, .out = &out, .n_in = 2, .n_out = 1, .attrs = &attrs};
        assert_null(hd_cpu_kernel_find("contract", hd_isa_detect(), &args));
        in[1].format = HD_PLAIN;
        assert_null(hd_cpu_kernel_find("contract", hd_isa_detect(), &args));
    }
    assert_int_equal(hd_blocks_packed_bytes(HD_ISA_VNNI, hd_quant_by_name("IQ2_XS"), 16, 256), 0);
    assert_int_equal(hd_blocks_packed_bytes(HD_ISA_VNNI, hd_quant_by_name("F32"), 16, 256), 0);
    assert_int_equal(hd_blocks_packed_bytes(HD_ISA_VNNI, hd_quant_by_name("Q4_0"), 16, 33), 0);
}

/* A row that isn't finite gives NaN, and leaves the others alone. */
static void test_not_finite(void **state)
{
    (void)state;
    hd_rng rng = hd_rng_new(6);
    for (int t = 0; t < COUNT(types); t++) {
        product p = new_product(&types[t], 16, 256, &rng);
        size_t bytes;
        void *packed = pack(hd_isa_detect(), p.q, p.w, 16, 256, 1, &bytes);
        p.x[256 + 70] = t % 2 ? INFINITY : NAN;
        p.x[512 + 3] = 1e-40f;
        p.x[512 + 40] = 0;
        float y[3 * 16];
        hd_tensor in[2] = {{.data = p.x, .dtype = HD_F32, .rank = 2, .dim = {3, 256}},
                           {.data = packed, .format = HD_PACKED, .blocks = p.q, .rank = 2, .dim = {16, 256}}};
        hd_tensor out = {.data = y, .dtype = HD_F32, .rank = 2, .dim = {3, 16}};
        hd_contract_attrs attrs = {.spec = "td,fd->tf", .dtype = HD_F32};
        hd_kernel_args args = {.in = in, .out = &out, .n_in = 2, .n_out = 1, .attrs = &attrs};
        assert_true(run_op("contract", hd_isa_detect(), &args, teams[1]));
        for (int i = 0; i < 16; i++) {
            assert_true(isfinite(y[i]) && y[i] == p.want[i]);
            assert_false(isfinite(y[16 + i]));
            assert_true(isfinite(y[32 + i]));
        }
        hd_free(packed);
        free_product(&p);
    }
}

/* ---- plain blocks: references, and rows of a table ---- */

static void test_reference(void **state)
{
    (void)state;
    hd_rng rng = hd_rng_new(8);
    const hd_op *contract = hd_op_find("contract");
    for (int t = 0; t < COUNT(types); t++) {
        product p = new_product(&types[t], 5, 256, &rng);
        float w[5 * 256], y[3 * 5];
        p.q->dequantize(p.w, 5 * 256 / p.q->block, w);
        hd_tensor in[2] = {{.data = p.x, .dtype = HD_F32, .rank = 2, .dim = {3, 256}},
                           {.data = p.w, .dtype = HD_F32, .blocks = p.q, .rank = 2, .dim = {5, 256}}};
        hd_tensor out = {.data = y, .dtype = HD_F32, .rank = 2, .dim = {3, 5}};
        hd_contract_attrs attrs = {.spec = "td,fd->tf", .dtype = HD_F32};
        hd_kernel_args args = {.in = in, .out = &out, .n_in = 2, .n_out = 1, .attrs = &attrs, .threads = 1};
        contract->reference(&args);
        for (int i = 0; i < 15; i++) {
            double want = 0, magnitude = 0;
            for (int k = 0; k < 256; k++) {
                double v = (double)p.x[i / 5 * 256 + k] * w[i % 5 * 256 + k];
                want += v, magnitude += fabs(v);
            }
            assert_true(y[i] == (float)want);
            assert_true(fabs(p.want[i / 5 * 5 + i % 5] - want) <= 0.02 * magnitude); /* the packed product rounds x */
        }
        free_product(&p);
    }
}

static void check_gather(const block_type *t, hd_dtype dtype, hd_rng *rng)
{
    static const int32_t index[6] = {2, 0, 7, -1, 6, 2};
    const hd_quant *q = hd_quant_by_name(t->name);
    unsigned char *table = random_blocks(t, q, 7 * 256, rng), y[6 * 256 * 4], want[6 * 256 * 4] = {0};
    size_t row = 256 * hd_dtype_size(dtype);
    for (int i = 0; i < 6; i++)
        if (index[i] >= 0 && index[i] < 7) {
            float numbers[256];
            q->dequantize(table + index[i] * 256 / q->block * q->bytes, 256 / q->block, numbers);
            hd_convert(want + (size_t)i * row, dtype, numbers, HD_F32, 256);
        }
    hd_tensor in[2] = {{.data = table, .dtype = HD_F32, .blocks = q, .rank = 2, .dim = {7, 256}},
                       {.data = (void *)index, .dtype = HD_I32, .rank = 1, .dim = {6}}};
    hd_tensor out = {.data = y, .dtype = dtype, .rank = 2, .dim = {6, 256}};
    hd_rows_attrs attrs = {.rows = 7, .dtype = dtype};
    hd_kernel_args args = {.in = in, .out = &out, .n_in = 2, .n_out = 1, .attrs = &attrs, .threads = 1};
    for (hd_isa isa = HD_ISA_PORTABLE; isa <= hd_isa_detect(); isa++) {
        memset(y, 0xee, sizeof y);
        assert_true(run_op("gather", isa, &args, teams[3]));
        assert_memory_equal(y, want, 6 * row);
    }
    memset(y, 0xee, sizeof y);
    hd_op_find("gather")->reference(&args);
    assert_memory_equal(y, want, 6 * row);
    hd_free(table);
}

static void test_gather(void **state)
{
    (void)state;
    hd_rng rng = hd_rng_new(9);
    for (int t = 0; t < COUNT(types); t++) {
        check_gather(&types[t], HD_F32, &rng);
        check_gather(&types[t], HD_BF16, &rng);
        check_gather(&types[t], HD_F16, &rng);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products),  cmocka_unit_test(test_notations), cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_not_finite), cmocka_unit_test(test_reference), cmocka_unit_test(test_gather),
    };
    return cmocka_run_group_tests(tests, start_teams, stop_teams);
}
