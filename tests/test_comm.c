/* Moving data between ranks: random worlds against a naive computation on the whole data, to the bit; order, aborting, deadlines, counting. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/rng.h"
#include "base/term.h"
#include "comm/comm.h"

enum { MAX_RANKS = 16, MAX_BATCH = 6, GUARD = 16 };

/* ---- threads as ranks ---- */

typedef struct rank_thread {
    hd_comm *c;
    void (*fn)(hd_comm *c, void *arg);
    void *arg;
    pthread_t thread;
} rank_thread;

static void *rank_main(void *arg)
{
    rank_thread *t = arg;
    t->fn(t->c, t->arg);
    hd_comm_free(t->c);
    return NULL;
}

static void run_world(int n, double deadline, void (*fn)(hd_comm *c, void *arg), void *arg)
{
    hd_comm *c[MAX_RANKS];
    rank_thread t[MAX_RANKS];
    hd_error err = {0};
    assert_int_equal(hd_comm_local(n, deadline, c, &err), 0);
    for (int r = 0; r < n; r++) {
        t[r] = (rank_thread){.c = c[r], .fn = fn, .arg = arg};
        assert_int_equal(pthread_create(&t[r].thread, NULL, rank_main, &t[r]), 0);
    }
    for (int r = 0; r < n; r++) pthread_join(t[r].thread, NULL);
}

/* A thread of a rank must not leave by longjmp. */
#define CHECK(condition)                                                            \
    do {                                                                            \
        if (!(condition)) {                                                         \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            abort();                                                                \
        }                                                                           \
    } while (0)

/* ---- one transfer on the whole data, naively ---- */

typedef struct whole {
    hd_transfer t;                 /* in and out are per rank */
    int n, rank[MAX_RANKS];        /* the group */
    int64_t offset[MAX_RANKS + 1], to_offset[MAX_RANKS + 1];
    bool in_place;
    unsigned char *in[MAX_RANKS], *out[MAX_RANKS], *want[MAX_RANKS];
    int64_t in_count[MAX_RANKS], out_count[MAX_RANKS];
} whole;

static void random_element(hd_rng *r, hd_dtype t, void *p, int64_t i)
{
    switch (t) {
    case HD_F64: case HD_F32: case HD_BF16: case HD_F16: hd_store_f64(p, t, i, hd_rng_normal(r) * (hd_rng_below(r, 4) ? 1 : 1e3)); break;
    case HD_I64: ((int64_t *)p)[i] = (int64_t)((uint64_t)hd_rng_u32(r) << 32 | hd_rng_u32(r)); break;
    case HD_I32: ((int32_t *)p)[i] = (int32_t)hd_rng_u32(r); break;
    default: ((uint8_t *)p)[i] = (uint8_t)hd_rng_u32(r); break;
    }
}

static void random_offsets(hd_rng *r, int n, int64_t *offset)
{
    offset[0] = 0;
    for (int i = 0; i < n; i++) offset[i + 1] = offset[i] + (int64_t)hd_rng_below(r, hd_rng_below(r, 3) ? 6 : 1);
}

/* One element of the result: addends in the order of indices. */
static void naive_reduce(const whole *w, int64_t from, void *out, int64_t to)
{
    hd_dtype t = w->t.dtype;
    float f = 0;
    double d = 0;
    int64_t k = 0;
    for (int i = 0; i < w->n; i++) {
        double x = hd_dtype_is_float(t) ? hd_load_f64(w->in[i], t, from) : 0;
        int64_t v = hd_dtype_is_float(t) ? 0 : hd_load_i64(w->in[i], t, from);
        f = !i ? (float)x : w->t.max ? (f > (float)x ? f : (float)x) : f + (float)x;
        d = !i ? x : w->t.max ? (d > x ? d : x) : d + x;
        k = !i ? v : w->t.max ? (k > v ? k : v) : (int64_t)((uint64_t)k + (uint64_t)v);
    }
    switch (t) {
    case HD_F64: ((double *)out)[to] = d; break;
    case HD_F32: ((float *)out)[to] = f; break;
    case HD_BF16: ((uint16_t *)out)[to] = hd_bf16_from_f32(f); break;
    case HD_F16: ((uint16_t *)out)[to] = hd_f16_from_f32(f); break;
    case HD_I64: ((int64_t *)out)[to] = k; break;
    case HD_I32: ((uint32_t *)out)[to] = (uint32_t)k; break;
    default: ((uint8_t *)out)[to] = (uint8_t)k; break;
    }
}

static void naive_all_to_all(whole *w)
{
    const hd_transfer *t = &w->t;
    size_t size = hd_dtype_size(t->dtype);
    int64_t A = w->offset[w->n], B = w->to_offset[w->n], M = t->middle, I = t->inner;
    for (int i = 0; i < w->n; i++)
        for (int j = 0; j < w->n; j++)
            for (int64_t o = 0; o < t->outer; o++)
                for (int64_t a = w->offset[i]; a < w->offset[i + 1]; a++)
                    for (int64_t m = 0; m < M; m++)
                        for (int64_t b = w->to_offset[j]; b < w->to_offset[j + 1]; b++)
                            for (int64_t k = 0; k < I; k++) {
                                int64_t ca = w->offset[i + 1] - w->offset[i], la = a - w->offset[i];
                                int64_t cb = w->to_offset[j + 1] - w->to_offset[j], lb = b - w->to_offset[j];
                                int64_t from = t->a_first ? (((o * ca + la) * M + m) * B + b) * I + k : (((o * B + b) * M + m) * ca + la) * I + k;
                                int64_t to = t->a_first ? (((o * A + a) * M + m) * cb + lb) * I + k : (((o * cb + lb) * M + m) * A + a) * I + k;
                                memcpy(w->want[j] + (size_t)to * size, w->in[i] + (size_t)from * size, size);
                            }
}

static void naive(whole *w)
{
    const hd_transfer *t = &w->t;
    size_t size = hd_dtype_size(t->dtype);
    int64_t E = w->offset[w->n], I = t->inner;
    if (t->kind == HD_ALL_TO_ALL) naive_all_to_all(w);
    for (int j = 0; j < w->n; j++) {
        int64_t piece = w->offset[j + 1] - w->offset[j];
        if (t->kind == HD_BROADCAST) memcpy(w->want[j], w->in[t->peer], (size_t)t->count * size);
        if (t->kind == HD_PERMUTE) memcpy(w->want[j], w->in[(j + t->peer) % w->n], (size_t)w->out_count[j] * size);
        for (int64_t e = 0; t->kind == HD_ALL_REDUCE && e < t->count; e++) naive_reduce(w, e, w->want[j], e);
        for (int64_t o = 0; o < t->outer; o++)
            for (int64_t e = 0; e < piece; e++)
                for (int64_t k = 0; k < I; k++) {
                    int64_t whole_at = (o * E + w->offset[j] + e) * I + k, piece_at = (o * piece + e) * I + k;
                    if (t->kind == HD_REDUCE_SCATTER) naive_reduce(w, whole_at, w->want[j], piece_at);
                    for (int i = 0; t->kind == HD_ALL_GATHER && i < w->n; i++)
                        memcpy(w->want[i] + (size_t)whole_at * size, w->in[j] + (size_t)piece_at * size, size);
                }
    }
}

static void set_counts(whole *w)
{
    const hd_transfer *t = &w->t;
    int64_t all = t->outer * t->inner * w->offset[w->n];
    for (int i = 0; i < w->n; i++) {
        int64_t a = w->offset[i + 1] - w->offset[i], b = w->to_offset[i + 1] - w->to_offset[i], mine = t->outer * t->inner * a;
        w->in_count[i] = w->out_count[i] = t->count;
        if (t->kind == HD_REDUCE_SCATTER) w->in_count[i] = all, w->out_count[i] = mine;
        if (t->kind == HD_ALL_GATHER) w->in_count[i] = mine, w->out_count[i] = all;
        int from = (i + t->peer) % w->n;
        if (t->kind == HD_PERMUTE) w->in_count[i] = mine, w->out_count[i] = t->outer * t->inner * (w->offset[from + 1] - w->offset[from]);
        if (t->kind == HD_ALL_TO_ALL) w->in_count[i] = mine * t->middle * w->to_offset[w->n], w->out_count[i] = all * t->middle * b;
    }
}

static void random_group(hd_rng *r, int world, whole *w)
{
    int order[MAX_RANKS];
    for (int i = 0; i < world; i++) order[i] = i;
    for (int i = world - 1; i > 0; i--) {
        int k = (int)hd_rng_below(r, (uint64_t)i + 1), keep = order[i];
        order[i] = order[k];
        order[k] = keep;
    }
    w->n = hd_rng_below(r, 2) ? world : 1 + (int)hd_rng_below(r, (uint64_t)world);
    memcpy(w->rank, order, sizeof order);
}

/* like: of the same group, kind and type; NULL: of any. */
static whole *new_whole_like(hd_rng *r, int world, int64_t scale, const whole *like)
{
    whole *w = calloc(1, sizeof *w);
    random_group(r, world, w);
    w->t = (hd_transfer){.kind = (hd_transfer_kind)hd_rng_below(r, HD_SEND), .dtype = (hd_dtype)hd_rng_below(r, HD_DTYPE_COUNT), .max = hd_rng_below(r, 4) == 0,
        .outer = 1 + (int64_t)hd_rng_below(r, 3), .inner = 1 + (int64_t)hd_rng_below(r, (uint64_t)(7 * scale)), .middle = 1 + (int64_t)hd_rng_below(r, 3),
        .count = (int64_t)hd_rng_below(r, (uint64_t)(1500 * scale)), .a_first = hd_rng_below(r, 2) != 0};
    if (like) {
        w->n = like->n;
        memcpy(w->rank, like->rank, sizeof w->rank);
        w->t.kind = like->t.kind, w->t.dtype = like->t.dtype, w->t.max = like->t.max;
    }
    w->t.peer = (int)hd_rng_below(r, (uint64_t)w->n);
    random_offsets(r, w->n, w->offset);
    random_offsets(r, w->n, w->to_offset);
    set_counts(w);
    w->in_place = (w->t.kind == HD_ALL_REDUCE || w->t.kind == HD_BROADCAST) && hd_rng_below(r, 2);
    size_t size = hd_dtype_size(w->t.dtype);
    for (int i = 0; i < w->n; i++) {
        w->in[i] = malloc((size_t)w->in_count[i] * size + GUARD);
        w->out[i] = malloc((size_t)w->out_count[i] * size + GUARD);
        w->want[i] = malloc((size_t)w->out_count[i] * size + GUARD);
        memset(w->out[i], 0xa5, (size_t)w->out_count[i] * size + GUARD);
        memset(w->want[i], 0xa5, (size_t)w->out_count[i] * size + GUARD);
        for (int64_t e = 0; e < w->in_count[i]; e++) random_element(r, w->t.dtype, w->in[i], e);
    }
    naive(w);
    for (int i = 0; i < w->n && w->in_place; i++) memcpy(w->out[i], w->in[i], (size_t)w->in_count[i] * size);
    return w;
}

static whole *new_whole(hd_rng *r, int world, int64_t scale) { return new_whole_like(r, world, scale, NULL); }

static void check_whole(const whole *w)
{
    size_t size = hd_dtype_size(w->t.dtype);
    for (int i = 0; i < w->n; i++)
        if (memcmp(w->out[i], w->want[i], (size_t)w->out_count[i] * size + GUARD))
            fail_msg("kind %d, dtype %d, max %d, %d ranks, in place %d: index %d has something else", (int)w->t.kind, (int)w->t.dtype, (int)w->t.max, w->n,
                     (int)w->in_place, i);
}

static void free_whole(whole *w)
{
    for (int i = 0; i < w->n; i++) {
        free(w->in[i]);
        free(w->out[i]);
        free(w->want[i]);
    }
    free(w);
}

/* ---- random worlds ---- */

typedef struct batch { whole *w[MAX_BATCH]; int n, seed; } batch;

static int index_in(const whole *w, int rank)
{
    for (int i = 0; i < w->n; i++)
        if (w->rank[i] == rank) return i;
    return -1;
}

/* Starts all of its transfers in order, waits in an order of its own. */
static void run_batch(hd_comm *c, void *arg)
{
    batch *b = arg;
    hd_ticket ticket[MAX_BATCH];
    bool open[MAX_BATCH] = {false};
    hd_error err = {0};
    int left = 0;
    hd_rng r = hd_rng_new((uint64_t)b->seed * 100 + (uint64_t)hd_comm_rank(c));
    for (int k = 0; k < b->n; k++) {
        whole *w = b->w[k];
        int i = index_in(w, hd_comm_rank(c));
        if (i < 0) continue;
        hd_comm_group *g = hd_comm_group_get(c, w->rank, w->n, &err);
        CHECK(g && g == hd_comm_group_get(c, w->rank, w->n, &err) && hd_comm_group_index(g) == i && hd_comm_group_size(g) == w->n);
        hd_transfer t = w->t;
        t.offset = w->offset;
        t.to_offset = w->to_offset;
        t.in = w->in_place ? w->out[i] : w->in[i];
        t.out = w->out[i];
        CHECK(hd_comm_start(c, g, &t, &ticket[k], &err) == 0);
        open[k] = true;
        left++;
    }
    while (left) {
        int k = (int)hd_rng_below(&r, (uint64_t)b->n);
        if (!open[k]) continue;
        int rc = hd_comm_wait(c, ticket[k], &err);
        if (rc) fprintf(stderr, "%s\n", err.message);
        CHECK(rc == 0);
        open[k] = false;
        left--;
    }
}

static void test_random(void **state)
{
    (void)state;
    for (int seed = 0; seed < 150; seed++) {
        hd_rng r = hd_rng_new((uint64_t)seed);
        int world = 1 + (int)hd_rng_below(&r, seed % 3 ? 5 : MAX_RANKS);
        batch b = {.n = 1 + (int)hd_rng_below(&r, MAX_BATCH), .seed = seed};
        for (int k = 0; k < b.n; k++) b.w[k] = new_whole(&r, world, 1);
        run_world(world, 30, run_batch, &b);
        for (int k = 0; k < b.n; k++) {
            check_whole(b.w[k]);
            free_whole(b.w[k]);
        }
    }
}

/* All of them as one list. */
static void run_list(hd_comm *c, void *arg)
{
    batch *b = arg;
    hd_transfer part[MAX_BATCH], list = {.kind = b->w[0]->t.kind, .dtype = b->w[0]->t.dtype, .max = b->w[0]->t.max, .part = part, .n_parts = b->n};
    hd_error err = {0};
    int i = index_in(b->w[0], hd_comm_rank(c));
    if (i < 0) return;
    for (int k = 0; k < b->n; k++) {
        whole *w = b->w[k];
        part[k] = w->t;
        part[k].offset = w->offset;
        part[k].in = w->in_place ? w->out[i] : w->in[i];
        part[k].out = w->out[i];
    }
    hd_comm_group *g = hd_comm_group_get(c, b->w[0]->rank, b->w[0]->n, &err);
    CHECK(g && hd_comm_do(c, g, &list, &err) == 0);
    list.kind = HD_BROADCAST;
    CHECK(hd_comm_do(c, g, &list, &err) == HD_EINVAL);
}

static void test_lists(void **state)
{
    (void)state;
    for (int seed = 0; seed < 60; seed++) {
        hd_rng r = hd_rng_new((uint64_t)seed + 5000);
        int world = 1 + (int)hd_rng_below(&r, seed % 3 ? 5 : MAX_RANKS);
        batch b = {.n = 1 + (int)hd_rng_below(&r, MAX_BATCH)};
        do {
            if (b.w[0]) free_whole(b.w[0]);
            b.w[0] = new_whole(&r, world, seed % 5 ? 1 : 100);
        } while (b.w[0]->t.kind > HD_ALL_GATHER);
        for (int k = 1; k < b.n; k++) b.w[k] = new_whole_like(&r, world, 1, b.w[0]);
        run_world(world, 30, run_list, &b);
        for (int k = 0; k < b.n; k++) {
            check_whole(b.w[k]);
            free_whole(b.w[k]);
        }
    }
}

/* Of several chunks, and past the caches. */
static void test_large(void **state)
{
    (void)state;
    for (int seed = 0; seed < 10; seed++) {
        hd_rng r = hd_rng_new((uint64_t)seed + 1000);
        int world = 2 + seed % 3;
        batch b = {.n = 2, .seed = seed};
        for (int k = 0; k < b.n; k++) b.w[k] = new_whole(&r, world, k ? 400 : 40);
        run_world(world, 30, run_batch, &b);
        for (int k = 0; k < b.n; k++) {
            check_whole(b.w[k]);
            free_whole(b.w[k]);
        }
    }
}

/* Two ranks have code of their own: 9 MB, odd extents, outputs at all alignments. */
static void run_two(hd_comm *c, void *arg)
{
    float **m = arg;
    int ranks[] = {0, 1}, r = hd_comm_rank(c);
    hd_error err = {0};
    hd_comm_group *g = hd_comm_group_get(c, ranks, 2, &err);
    for (int skew = 0; skew < 3; skew++)
        for (int in_place = 0; in_place < 2; in_place++) {
            enum { N = 1200007 };
            float *in = m[r], *out = m[2 + r] + (r ? skew : 1);
            if (in_place) memcpy(out, in, N * sizeof *in);
            hd_transfer t = {.kind = HD_ALL_REDUCE, .dtype = HD_F32, .in = in_place ? out : in, .out = out, .count = N};
            CHECK(hd_comm_do(c, g, &t, &err) == 0);
            int64_t wrong = 0;
            for (int64_t i = 0; i < N; i++) wrong += !(out[i] == m[0][i] + m[1][i]);
            CHECK(wrong == 0);
            CHECK(hd_comm_barrier(c, g, &err) == 0);
        }
    for (int skew = 0; skew < 3; skew++) {
        int64_t half[] = {0, 600001, 1200007}, wrong = 0;
        float *out = m[2 + r] + (r ? skew : 1);
        hd_transfer t = {.kind = HD_ALL_GATHER, .dtype = HD_F32, .in = m[r] + 3, .out = out, .outer = 1, .inner = 1, .offset = half};
        CHECK(hd_comm_do(c, g, &t, &err) == 0);
        for (int64_t i = 0; i < half[2]; i++) wrong += !(out[i] == (i < half[1] ? m[0][3 + i] : m[1][3 + i - half[1]]));
        CHECK(wrong == 0);
        CHECK(hd_comm_barrier(c, g, &err) == 0);
    }
}

static void test_two_ranks(void **state)
{
    (void)state;
    enum { N = 1200016 };
    float *m[4];
    hd_rng r = hd_rng_new(3);
    for (int k = 0; k < 4; k++) {
        m[k] = malloc(N * sizeof **m);
        for (int64_t i = 0; i < N; i++) m[k][i] = (float)hd_rng_u32(&r) * 1e-5f;
    }
    run_world(2, 30, run_two, m);
    for (int k = 0; k < 4; k++) free(m[k]);
}

/* ---- messages ---- */

enum { MESSAGES = 40 };

/* Every rank to its neighbour, three tags mixed; the receiver takes the tags one after the other: each comes in order. */
static void run_messages(hd_comm *c, void *arg)
{
    (void)arg;
    int n = hd_comm_size(c), r = hd_comm_rank(c), ranks[MAX_RANKS];
    hd_error err = {0};
    for (int i = 0; i < n; i++) ranks[i] = i;
    hd_comm_group *g = hd_comm_group_get(c, ranks, n, &err);
    for (int round = 0; round < 3; round++) {
        int32_t got[3][MESSAGES][5], value[5];
        hd_ticket early[MESSAGES];
        for (int k = 0; k < MESSAGES / 2; k++) { /* half of tag 0 is asked for beforehand */
            hd_transfer t = {.kind = HD_RECV, .dtype = HD_I32, .out = got[0][k], .count = 5, .peer = (r + n - 1) % n, .tag = 0};
            CHECK(hd_comm_start(c, g, &t, &early[k], &err) == 0);
        }
        for (int k = 0; k < MESSAGES * 3; k++) {
            for (int e = 0; e < 5; e++) value[e] = r * 1000 + k;
            CHECK(hd_comm_do(c, g, &(hd_transfer){.kind = HD_SEND, .dtype = HD_I32, .in = value, .count = 5, .peer = (r + 1) % n, .tag = k % 3}, &err) == 0);
        }
        for (int tag = 2; tag >= 0; tag--)
            for (int k = tag ? 0 : MESSAGES / 2; k < MESSAGES; k++) {
                hd_transfer t = {.kind = HD_RECV, .dtype = HD_I32, .out = got[tag][k], .count = 5, .peer = (r + n - 1) % n, .tag = tag};
                CHECK(hd_comm_do(c, g, &t, &err) == 0);
            }
        for (int k = 0; k < MESSAGES / 2; k++) CHECK(hd_comm_wait(c, early[k], &err) == 0);
        for (int tag = 0; tag < 3; tag++)
            for (int k = 0; k < MESSAGES; k++) CHECK(got[tag][k][0] == (r + n - 1) % n * 1000 + k * 3 + tag && got[tag][k][4] == got[tag][k][0]);
    }
}

static void test_messages(void **state)
{
    (void)state;
    for (int n = 1; n <= 5; n++) run_world(n, 30, run_messages, NULL);
}

/* Once warm, nothing is allocated. */
static void run_warm(hd_comm *c, void *arg)
{
    (void)arg;
    int ranks[] = {0, 1, 2}, r = hd_comm_rank(c);
    float x[300], y[300];
    hd_error err = {0};
    hd_comm_group *g = hd_comm_group_get(c, ranks, 3, &err);
    uint64_t before = 0;
    for (int i = 0; i < 300; i++) x[i] = (float)i;
    for (int k = 0; k < 200; k++) {
        if (k == 100) {
            CHECK(hd_comm_barrier(c, g, &err) == 0);
            before = hd_mem_count();
            CHECK(hd_comm_barrier(c, g, &err) == 0);
        }
        CHECK(hd_comm_do(c, g, &(hd_transfer){.kind = HD_ALL_REDUCE, .dtype = HD_F32, .in = x, .out = y, .count = 300}, &err) == 0);
        CHECK(hd_comm_do(c, g, &(hd_transfer){.kind = HD_SEND, .dtype = HD_F32, .in = x, .count = 300, .peer = (r + 1) % 3, .tag = 4}, &err) == 0);
        CHECK(hd_comm_do(c, g, &(hd_transfer){.kind = HD_RECV, .dtype = HD_F32, .out = y, .count = 300, .peer = (r + 2) % 3, .tag = 4}, &err) == 0);
        CHECK(hd_comm_barrier(c, g, &err) == 0);
    }
    CHECK(hd_mem_count() == before);
    CHECK(hd_comm_barrier(c, g, &err) == 0);
}

static void test_warm(void **state)
{
    (void)state;
    run_world(3, 30, run_warm, NULL);
}

/* ---- ends ---- */

/* Rank 1 aborts while the others wait, each for something else. */
static void run_abort(hd_comm *c, void *arg)
{
    (void)arg;
    int n = hd_comm_size(c), r = hd_comm_rank(c), ranks[MAX_RANKS];
    double begin = hd_time();
    float x[10] = {0}, y[10];
    char why[200];
    hd_error err = {0};
    hd_ticket a, b;
    for (int i = 0; i < n; i++) ranks[i] = i;
    hd_comm_group *g = hd_comm_group_get(c, ranks, n, &err);
    if (r == 1) {
        usleep(50000);
        hd_comm_abort(c, "the disk is full");
        hd_comm_abort(c, "a later cause");
    } else {
        hd_transfer reduce = {.kind = HD_ALL_REDUCE, .dtype = HD_F32, .in = x, .out = y, .count = 10};
        hd_transfer recv = {.kind = HD_RECV, .dtype = HD_F32, .out = y, .count = 10, .peer = 1};
        CHECK(hd_comm_start(c, g, &reduce, &a, &err) == 0 && hd_comm_start(c, g, &recv, &b, &err) == 0);
        CHECK(hd_comm_wait(c, r % 2 ? a : b, &err) == HD_ECOMM && strstr(err.message, "rank 1") && strstr(err.message, "the disk is full"));
        err = (hd_error){0};
        CHECK(hd_comm_wait(c, r % 2 ? b : a, &err) == HD_ECOMM && strstr(err.message, "the disk is full"));
    }
    err = (hd_error){0};
    CHECK(hd_comm_barrier(c, g, &err) == HD_ECOMM);
    CHECK(hd_comm_aborted(c, why, sizeof why) && strstr(why, "the disk is full"));
    CHECK(hd_time() - begin < 10);
}

static void test_abort(void **state)
{
    (void)state;
    for (int n = 2; n < 8; n++) run_world(n, 0, run_abort, NULL);
}

/* The last rank is silent; the first that says so ends it for all. */
static void run_deadline(hd_comm *c, void *arg)
{
    (void)arg;
    int n = hd_comm_size(c), r = hd_comm_rank(c), ranks[MAX_RANKS];
    hd_error err = {0};
    char text[64];
    for (int i = 0; i < n; i++) ranks[i] = i;
    hd_comm_group *g = hd_comm_group_get(c, ranks, n, &err);
    snprintf(text, sizeof text, "rank %d has been silent", n - 1);
    if (r == n - 1) {
        while (!hd_comm_aborted(c, NULL, 0)) usleep(1000);
        return;
    }
    CHECK(hd_comm_barrier(c, g, &err) == HD_ECOMM && strstr(err.message, text));
}

static void test_deadline(void **state)
{
    (void)state;
    double begin = hd_time();
    run_world(4, 0.1, run_deadline, NULL);
    assert_true(hd_time() - begin >= 0.1 && hd_time() - begin < 5);
}

/* Without a deadline, a rank that left is missed all the same. */
static void run_leave(hd_comm *c, void *arg)
{
    int *how = arg, ranks[] = {0, 1, 2}, r = hd_comm_rank(c);
    float x = 0;
    hd_error err = {0};
    hd_comm_group *g = hd_comm_group_get(c, ranks, 3, &err);
    if (r == 2) return;
    int rc = *how ? hd_comm_do(c, g, &(hd_transfer){.kind = HD_RECV, .dtype = HD_F32, .out = &x, .count = 1, .peer = 2}, &err) : hd_comm_barrier(c, g, &err);
    CHECK(rc == HD_ECOMM && strstr(err.message, "rank 2 has left"));
}

static void test_leave(void **state)
{
    (void)state;
    for (int how = 0; how < 2; how++) run_world(3, 0, run_leave, &how);
}

/* Ranks that disagree are told so. */
static void run_disagree(hd_comm *c, void *arg)
{
    int *how = arg, ranks[] = {0, 1}, r = hd_comm_rank(c);
    float x[4] = {0}, y[4];
    hd_error err = {0};
    hd_comm_group *g = hd_comm_group_get(c, ranks, 2, &err);
    hd_transfer t = {.kind = HD_ALL_REDUCE, .dtype = HD_F32, .in = x, .out = y, .count = r ? 3 : 4};
    if (*how == 1) t = (hd_transfer){.kind = r ? HD_SEND : HD_RECV, .dtype = HD_F32, .in = x, .out = y, .count = r ? 3 : 4, .peer = !r};
    int rc = hd_comm_do(c, g, &t, &err);
    if (rc == 0 && r) rc = hd_comm_barrier(c, g, &err);
    CHECK(rc == HD_ECOMM);
}

static void test_disagree(void **state)
{
    (void)state;
    for (int how = 0; how < 2; how++) run_world(2, 30, run_disagree, &how);
}

/* ---- bad input, counting ---- */

static void test_refused(void **state)
{
    (void)state;
    hd_comm *c[2];
    hd_error err = {0};
    int twice[] = {0, 0}, far[] = {0, 2}, other[] = {1}, both[] = {0, 1};
    float x[2] = {0};
    int64_t falls[] = {0, 2, 1};
    hd_ticket ticket;
    assert_int_equal(hd_comm_local(0, 0, c, &err), HD_EINVAL);
    assert_int_equal(hd_comm_local(2, 0, c, NULL), 0);
    assert_null(hd_comm_group_get(c[0], twice, 2, NULL));
    assert_null(hd_comm_group_get(c[0], far, 2, NULL));
    assert_null(hd_comm_group_get(c[0], other, 1, NULL));
    assert_null(hd_comm_group_get(c[0], both, 0, NULL));
    assert_null(hd_comm_group_get(c[0], both, 3, NULL));
    hd_comm_group *g = hd_comm_group_get(c[0], both, 2, NULL);
    assert_non_null(g);
    assert_int_equal(hd_comm_start(c[0], g, &(hd_transfer){.kind = HD_SEND, .in = x, .peer = 2, .count = 1}, &ticket, NULL), HD_EINVAL);
    assert_int_equal(hd_comm_start(c[0], g, &(hd_transfer){.kind = HD_ALL_REDUCE, .in = x, .out = x, .count = -1}, &ticket, NULL), HD_EINVAL);
    assert_int_equal(hd_comm_start(c[0], g, &(hd_transfer){.kind = HD_ALL_GATHER, .in = x, .out = x, .outer = 1, .inner = 1, .offset = falls}, &ticket, NULL),
                     HD_EINVAL);
    assert_int_equal(hd_comm_start(c[0], g, &(hd_transfer){.kind = HD_TRANSFER_KINDS}, &ticket, NULL), HD_EINVAL);
    assert_int_equal(hd_comm_wait(c[0], (hd_ticket){12345}, NULL), HD_EINVAL);
    hd_comm_free(c[0]);
    hd_comm_free(c[1]);
}

static void run_count(hd_comm *c, void *arg)
{
    (void)arg;
    int ranks[] = {0, 1, 2}, r = hd_comm_rank(c);
    int64_t offset[] = {0, 1, 3, 6}, sent[HD_TRANSFER_KINDS];
    float x[60] = {0}, y[60];
    hd_error err = {0};
    hd_comm_group *g = hd_comm_group_get(c, ranks, 3, &err), *alone = hd_comm_group_get(c, &ranks[r], 1, &err);
    hd_transfer t = {.dtype = HD_F32, .in = x, .out = y, .count = 30, .outer = 1, .inner = 5, .middle = 1, .offset = offset, .to_offset = (int64_t[]){0, 1, 1, 2}};
    for (t.kind = 0; t.kind < HD_SEND; t.kind++) CHECK(hd_comm_do(c, g, &t, &err) == 0);
    int64_t one[] = {0, 6};
    t.kind = HD_ALL_GATHER;
    t.offset = one;
    CHECK(hd_comm_do(c, alone, &t, &err) == 0);
    hd_comm_sent(c, sent);
    CHECK(sent[HD_ALL_REDUCE] == 160 && sent[HD_REDUCE_SCATTER] == 80 && sent[HD_ALL_GATHER] == 80 && sent[HD_BROADCAST] == (r ? 0 : 240));
    CHECK(sent[HD_PERMUTE] == 0); /* peer 0: nobody's but one's own */
    CHECK(sent[HD_ALL_TO_ALL] == (offset[r + 1] - offset[r]) * 2 * 5 * 4 * 2 / 3);
}

static void test_count(void **state)
{
    (void)state;
    run_world(3, 30, run_count, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random), cmocka_unit_test(test_lists),   cmocka_unit_test(test_large),    cmocka_unit_test(test_two_ranks), cmocka_unit_test(test_messages),
        cmocka_unit_test(test_warm),     cmocka_unit_test(test_abort),    cmocka_unit_test(test_deadline),  cmocka_unit_test(test_leave),
        cmocka_unit_test(test_disagree), cmocka_unit_test(test_refused),  cmocka_unit_test(test_count),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
