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
        for (int s = 0; s < COUNT(shapes); s++) check_product(&types[t], shapes[s][0], shapes[s][1] + (types[t].scale < 0 ? 5 : 0), &rng);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_products)};
    return cmocka_run_group_tests(tests, start_teams, stop_teams);
}
