/* test_paged.c: attention over blocks of a cache: against its reference over longer sequences and every dtype of cache, and the rules of independence,
 * bit for bit: a query in a chunk or alone, whatever blocks hold the keys, whatever else is in the call, whatever the number of threads; stale rows. */
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
#include "ops/ops.h"
#include "sanitized.h"

#define MAX_THREADS 3

static hd_rng rng;
static hd_team *teams[MAX_THREADS + 1];

/* A cache, sequences in it, and queries. Sequence s has keys[s] positions; logical keys and values are kept in f32, so that they can be laid anew. */
typedef struct scene {
    hd_paged_attrs at;
    int64_t hq, hk, e, f, rows, sequences, blocks;
    hd_dtype q_type, cache_type;
    int64_t keys[8];
    float *k[8], *v[8]; /* [keys][hk][e], [keys][hk][f] */
    hd_tensor cache_k, cache_v, kscale, vscale, tables;
} scene;

static hd_tensor tensor_new(hd_dtype t, int rank, const int64_t *dim)
{
    hd_tensor x = {.dtype = t, .rank = rank};
    for (int i = 0; i < rank; i++) x.dim[i] = dim[i];
    x.data = hd_calloc(hd_tensor_bytes(&x) + 64, 1);
    assert_non_null(x.data);
    return x;
}

#define DIMS(...) (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (int64_t[]){__VA_ARGS__}

static float *normals(int64_t n)
{
    float *x = hd_malloc((size_t)n * sizeof *x + 4);
    for (int64_t i = 0; i < n; i++) x[i] = (float)hd_rng_normal(&rng);
    return x;
}

static scene scene_new(int64_t hq, int64_t hk, int64_t e, int64_t f, int64_t block, hd_dtype q, hd_dtype cache, int sequences, const int64_t *keys)
{
    scene s = {.hq = hq, .hk = hk, .e = e, .f = f, .q_type = q, .cache_type = cache, .sequences = sequences};
    s.at = (hd_paged_attrs){.scale = 1 / sqrt((double)e), .block = block, .dtype = q};
    for (int i = 0; i < sequences; i++) {
        int64_t n = (keys[i] + block - 1) / block;
        s.keys[i] = keys[i];
        s.blocks = n > s.blocks ? n : s.blocks;
        s.rows += (n + 1) * block;
        s.k[i] = normals(keys[i] * hk * e);
        s.v[i] = normals(keys[i] * hk * f);
    }
    s.rows += 2 * block + 3; /* the last block isn't whole */
    s.cache_k = tensor_new(cache, DIMS(s.rows, hk, e));
    s.cache_v = tensor_new(cache, DIMS(s.rows, hk, f));
    s.tables = tensor_new(HD_I32, DIMS(s.sequences, s.blocks));
    if (cache == HD_I8) {
        s.kscale = tensor_new(HD_F32, DIMS(s.rows, hk));
        s.vscale = tensor_new(HD_F32, DIMS(s.rows, hk));
    }
    return s;
}

static void scene_free(scene *s)
{
    for (int i = 0; i < s->sequences; i++) {
        hd_free(s->k[i]);
        hd_free(s->v[i]);
    }
    hd_free(s->cache_k.data);
    hd_free(s->cache_v.data);
    hd_free(s->kscale.data);
    hd_free(s->vscale.data);
    hd_free(s->tables.data);
}

static void store_row(hd_tensor *cache, hd_tensor *scale, int64_t at, const float *x, int64_t n)
{
    float most = 0, unit = 1;
    if (cache->dtype == HD_I8) {
        for (int64_t c = 0; c < n; c++) most = fmaxf(most, fabsf(x[c]));
        ((float *)scale->data)[at] = unit = most > 0 ? most / 127 : 1;
    }
    for (int64_t c = 0; c < n; c++) hd_store_f64(cache->data, cache->dtype, at * n + c, cache->dtype == HD_I8 ? rint(x[c] / unit) : x[c]);
}

/* What lies where nothing was written: not a number, or for i8 a scale that isn't. */
static void poison(hd_tensor *t)
{
    for (int64_t i = 0; t->data && i < hd_tensor_count(t); i++) hd_store_f64(t->data, t->dtype, i, t->dtype == HD_I8 ? 77 : NAN);
}

/* Lays the sequences into blocks in random order; everything else is poison, and table entries behind a sequence's end name blocks of others or none. */
static void scene_lay(scene *s)
{
    int64_t block = s->at.block, n = s->rows / block, next = 0, *order = hd_malloc((size_t)n * sizeof *order);
    for (int64_t i = 0; i < n; i++) {
        int64_t j = (int64_t)hd_rng_below(&rng, (uint64_t)i + 1);
        order[i] = order[j];
        order[j] = i;
    }
    poison(&s->cache_k);
    poison(&s->cache_v);
    poison(&s->kscale);
    poison(&s->vscale);
    for (int64_t i = 0; i < s->sequences * s->blocks; i++) ((int32_t *)s->tables.data)[i] = (int32_t)hd_rng_below(&rng, (uint64_t)n + 3) - 1;
    for (int64_t q = 0; q < s->sequences; q++)
        for (int64_t p = 0; p < s->keys[q]; p++) {
            int32_t *entry = (int32_t *)s->tables.data + q * s->blocks + p / block;
            if (p % block == 0) *entry = (int32_t)order[next++];
            int64_t row = *entry * block + p % block;
            for (int64_t h = 0; h < s->hk; h++) {
                store_row(&s->cache_k, &s->kscale, row * s->hk + h, s->k[q] + (p * s->hk + h) * s->e, s->e);
                store_row(&s->cache_v, &s->vscale, row * s->hk + h, s->v[q] + (p * s->hk + h) * s->f, s->f);
            }
        }
    hd_free(order);
}

/* ---- queries ---- */

typedef struct queries {
    hd_tensor q, pos, seq;
} queries;

static queries queries_new(const scene *s, int64_t n)
{
    queries x = {tensor_new(s->q_type, DIMS(n, s->hq, s->e)), tensor_new(HD_I32, DIMS(n)), tensor_new(HD_I32, DIMS(n))};
    for (int64_t i = 0; i < n * s->hq * s->e; i++) hd_store_f64(x.q.data, s->q_type, i, hd_rng_normal(&rng));
    return x;
}

static void queries_free(queries *x)
{
    hd_free(x->q.data);
    hd_free(x->pos.data);
    hd_free(x->seq.data);
}

static void set_query(queries *x, int64_t i, int64_t pos, int64_t seq)
{
    ((int32_t *)x->pos.data)[i] = (int32_t)pos;
    ((int32_t *)x->seq.data)[i] = (int32_t)seq;
}

/* Rows order[0 .. n) of x, in that order. */
static queries queries_pick(const scene *s, const queries *x, const int64_t *order, int64_t n)
{
    queries y = queries_new(s, n);
    size_t row = (size_t)(s->hq * s->e) * hd_dtype_size(s->q_type);
    for (int64_t i = 0; i < n; i++) {
        memcpy((char *)y.q.data + (size_t)i * row, (const char *)x->q.data + (size_t)order[i] * row, row);
        set_query(&y, i, ((int32_t *)x->pos.data)[order[i]], ((int32_t *)x->seq.data)[order[i]]);
    }
    return y;
}

typedef struct call {
    const hd_kernel *kernel;
    hd_kernel_args args;
} call;

static void call_one(void *arg, int tid)
{
    call *c = arg;
    hd_kernel_args a = c->args;
    a.tid = tid;
    c->kernel->run(&a);
}

/* isa < 0: the reference. */
static hd_tensor run(const scene *s, const queries *x, int isa, int threads)
{
    hd_tensor in[8] = {x->q, s->cache_k, s->cache_v, x->pos, x->seq, s->tables, s->kscale, s->vscale};
    hd_tensor out = tensor_new(s->q_type, DIMS(x->q.dim[0], s->hq, s->f));
    memset(out.data, 0xff, hd_tensor_bytes(&out));
    hd_kernel ref = {.op = "paged_attention", .run = hd_op_paged_attention.reference};
    call c = {&ref, {.in = in, .out = &out, .n_in = s->cache_type == HD_I8 ? 8 : 6, .n_out = 1, .attrs = &s->at, .team = teams[threads], .threads = threads}};
    if (isa >= 0) c.kernel = hd_cpu_kernel_find("paged_attention", (hd_isa)isa, &c.args);
    assert_non_null(c.kernel);
    size_t bytes = c.kernel->workspace ? c.kernel->workspace(&c.args, threads) : 0;
    char *memory = hd_malloc(bytes + 128), *at = memory + (64 - (uintptr_t)memory % 64) % 64;
    memset(at, 0xff, bytes);
    memset(at + bytes, 0x5a, 1);
    c.args.workspace = at;
    hd_team_run(teams[threads], call_one, &c);
    if (at[bytes] != 0x5a) fail_msg("wrote past its workspace");
    hd_free(memory);
    return out;
}

static void expect_close(const hd_tensor *got, const hd_tensor *want, double tolerance, const char *what)
{
    double unit = got->dtype == HD_BF16 ? 0x1p-7 : 0;
    for (int64_t i = 0; i < hd_tensor_count(want); i++) {
        double g = hd_load_f64(got->data, got->dtype, i), w = hd_load_f64(want->data, want->dtype, i);
        if (!(fabs(g - w) <= tolerance * (1 + fabs(w)) + unit * fabs(w))) fail_msg("%s: element %lld is %.9g, not %.9g", what, (long long)i, g, w);
    }
}

/* Row i of `part` against row order[i] of `whole`. */
static void expect_rows(const hd_tensor *part, const hd_tensor *whole, const int64_t *order, int isa, const char *what)
{
    size_t row = hd_tensor_bytes(whole) / (size_t)whole->dim[0];
    for (int64_t i = 0; i < part->dim[0]; i++)
        if (memcmp((char *)part->data + (size_t)i * row, (char *)whole->data + (size_t)(order ? order[i] : i) * row, row))
            fail_msg("%s: row %lld has other bits %s", hd_isa_name((hd_isa)isa), (long long)i, what);
}

/* ---- the cases ---- */

typedef struct paged_case {
    int64_t hq, hk, e, f, block;
    hd_dtype q, cache;
    double softcap;
    int64_t window;
} paged_case;

static const paged_case cases[] = {
    {8, 1, 64, 64, 16, HD_F32, HD_F16, 0, 0},   {4, 2, 64, 64, 64, HD_F32, HD_I8, 0, 0},     {4, 4, 16, 48, 8, HD_F32, HD_F32, 0, 0},
    {3, 1, 33, 17, 32, HD_F32, HD_BF16, 2, 0},  {4, 1, 256, 256, 16, HD_BF16, HD_BF16, 0, 0}, {6, 2, 31, 40, 128, HD_BF16, HD_BF16, 1.5, 70},
    {8, 4, 64, 64, 256, HD_F32, HD_F16, 0, 100}, {2, 2, 7, 5, 8, HD_BF16, HD_I8, 3, 9},
    {7, 1, 32, 80, 64, HD_F32, HD_BF16, 0, 0},
};

static scene scene_of(const paged_case *c)
{
    static const int64_t keys[] = {150, 1, 64, 201};
    scene s = scene_new(c->hq, c->hk, c->e, c->f, c->block, c->q, c->cache, 4, keys);
    s.at.softcap = c->softcap;
    s.at.window = c->window;
    scene_lay(&s);
    return s;
}

/* Whole prompts of sequences 0 and 3, the only key of 1, the last of 2, no sequence, a position before the first. */
static queries all_queries(const scene *s)
{
    int64_t n = s->keys[0] + s->keys[3] + 5, i = 0;
    queries x = queries_new(s, n);
    for (int64_t p = 0; p < s->keys[0]; p++) set_query(&x, i++, p, 0);
    set_query(&x, i++, 0, 1);
    set_query(&x, i++, 63, 2);
    set_query(&x, i++, 5, -1);
    set_query(&x, i++, 5, 4);
    set_query(&x, i++, -1, 3);
    for (int64_t p = 0; p < s->keys[3]; p++) set_query(&x, i++, p, 3);
    return x;
}

static void check_zero(const scene *s, const hd_tensor *out)
{
    for (int64_t i = s->keys[0] + 2; i < s->keys[0] + 5; i++)
        for (int64_t c = 0; c < s->hq * s->f; c++) assert_true(hd_load_f64(out->data, out->dtype, i * s->hq * s->f + c) == 0);
}

static void check_case(const paged_case *c)
{
    scene s = scene_of(c);
    queries x = all_queries(&s);
    int64_t n = x.q.dim[0], order[400], m = 0;
    hd_tensor want = run(&s, &x, -1, 1);
    for (int64_t i = n - 1; i >= 0; i -= 1 + (int64_t)hd_rng_below(&rng, 9)) order[m++] = i; /* others, in another order: runs of one */
    for (int isa = 0; isa <= (int)hd_isa_detect(); isa++) {
        hd_tensor whole = run(&s, &x, isa, 1), threads = run(&s, &x, isa, 3);
        expect_close(&whole, &want, c->q == HD_BF16 ? 8e-3 : c->cache == HD_I8 ? 2e-5 : 4e-6, hd_isa_name((hd_isa)isa));
        check_zero(&s, &whole);
        expect_rows(&threads, &whole, NULL, isa, "with 3 threads");
        queries some = queries_pick(&s, &x, order, m);
        hd_tensor alone = run(&s, &some, isa, 2);
        expect_rows(&alone, &whole, order, isa, "among other queries");
        for (int64_t i = 0; i < n; i += 37) {
            queries one = queries_pick(&s, &x, &i, 1);
            hd_tensor single = run(&s, &one, isa, 2);
            expect_rows(&single, &whole, &i, isa, "alone");
            hd_free(single.data);
            queries_free(&one);
        }
        hd_free(whole.data);
        hd_free(threads.data);
        hd_free(alone.data);
        queries_free(&some);
    }
    hd_free(want.data);
    queries_free(&x);
    scene_free(&s);
}

static void test_cases(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i += SANITIZED ? 2 : 1) check_case(&cases[i]);
}

/* The same keys in other blocks, and in blocks of another size. */
static void test_blocks(void **state)
{
    (void)state;
    static const int64_t keys[] = {150, 1, 64, 201}, sizes[] = {8, 16, 64, 256};
    for (int isa = 0; isa <= (int)hd_isa_detect(); isa++) {
        hd_tensor first = {0};
        for (int i = 0; i < 5; i++) {
            rng = hd_rng_new(99);
            scene s = scene_new(4, 2, 24, 24, sizes[i % 4], HD_F32, HD_F16, 4, keys);
            queries x = all_queries(&s);
            for (int k = 0; k <= i; k++) scene_lay(&s);
            hd_tensor out = run(&s, &x, isa, 1);
            if (i) expect_rows(&out, &first, NULL, isa, "in other blocks");
            else first = out;
            if (i) hd_free(out.data);
            queries_free(&x);
            scene_free(&s);
        }
        hd_free(first.data);
    }
}

/* A prompt in pieces, the keys of later pieces not yet there: bit for bit the whole. */
static void test_pieces(void **state)
{
    (void)state;
    const int64_t n = 150;
    const hd_dtype caches[] = {HD_F16, HD_BF16, HD_I8, HD_F32};
    for (int isa = 0; isa <= (int)hd_isa_detect(); isa++)
        for (int c = 0; c < 4; c++) {
            scene s = scene_new(4, 2, 64, 32, 16, caches[c] == HD_BF16 ? HD_BF16 : HD_F32, caches[c], 1, &n);
            queries x = queries_new(&s, n);
            for (int64_t p = 0; p < n; p++) set_query(&x, p, p, 0);
            scene_lay(&s);
            hd_tensor whole = run(&s, &x, isa, 1);
            for (int64_t from = 0, size; from < n; from += size) {
                int64_t order[150];
                size = from % 3 ? 1 : 29;
                if (from + size > n) size = n - from;
                for (int64_t i = 0; i < size; i++) order[i] = from + i;
                s.keys[0] = from + size;
                scene_lay(&s);
                queries part = queries_pick(&s, &x, order, size);
                hd_tensor out = run(&s, &part, isa, 2);
                expect_rows(&out, &whole, order, isa, "in pieces");
                hd_free(out.data);
                queries_free(&part);
            }
            hd_free(whole.data);
            queries_free(&x);
            scene_free(&s);
        }
}

/* A key and a value that are no numbers, at one position: queries before it are as they were, those from it on show it. */
static void test_not_a_number(void **state)
{
    (void)state;
    const int64_t n = 100, at = 41;
    const hd_dtype types[] = {HD_F32, HD_BF16};
    for (int isa = 0; isa <= (int)hd_isa_detect(); isa++)
        for (int c = 0; c < 2; c++) {
            scene s = scene_new(3, 1, 16, 20, 8, types[c], types[c], 1, &n);
            queries x = queries_new(&s, n);
            int64_t before[41];
            for (int64_t p = 0; p < n; p++) set_query(&x, p, p, 0);
            for (int64_t p = 0; p < at; p++) before[p] = p;
            scene_lay(&s);
            hd_tensor clean = run(&s, &x, isa, 1);
            for (int64_t i = 0; i < s.f; i++) s.v[0][at * s.f + i] = i % 2 ? NAN : INFINITY;
            s.k[0][at * s.e] = NAN;
            scene_lay(&s);
            hd_tensor out = run(&s, &x, isa, 3), head = out; /* fewer tiles of rows than threads */
            head.dim[0] = at;
            expect_rows(&head, &clean, before, isa, "before what is no number");
            for (int64_t i = at * s.hq * s.f; i < n * s.hq * s.f; i++) assert_true(isnan(hd_load_f64(out.data, out.dtype, i)));
            hd_free(out.data);
            hd_free(clean.data);
            queries_free(&x);
            scene_free(&s);
        }
}

static int set_up(void **state)
{
    (void)state;
    rng = hd_rng_new(20);
    for (int i = 1; i <= MAX_THREADS; i++) {
        hd_error err = {0};
        teams[i] = hd_team_new(i, false, &err);
        if (!teams[i]) return -1;
    }
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    for (int i = 1; i <= MAX_THREADS; i++) hd_team_free(teams[i]);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cases), cmocka_unit_test(test_blocks), cmocka_unit_test(test_pieces),
                                       cmocka_unit_test(test_not_a_number)};
#ifdef __SANITIZE_THREAD__
    cmocka_set_test_filter("test_cases"); /* with 1, 2 and 3 threads; the others let them do the same, for half a minute */
#endif
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
