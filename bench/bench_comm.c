/* bench_comm.c: all-reduce and all-gather between ranks that are threads of this process, against the copy bandwidth of the same threads.
 *
 *   bench_comm [key=value ...]
 * keys: ranks, mb (of f32, on each rank once the collective has ended), seconds (of measuring, for each figure), table (NAME: lines for
 *       people instead of JSON)
 * Without keys: 2 ranks, 64 MB (of 2^20 bytes). Prints one JSON line.
 *
 * The bytes of a collective are those that must pass: each input read once, each output written once. A copy's are those read and written
 * by all threads, each between memory of its own, by whichever loop is fastest on this machine. It is measured before and after each round;
 * a round around which it differs by over 10 % is done again, a few times at most; figures are medians of rounds. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include "base/mem.h"
#include "base/term.h"
#include "base/thread.h"
#include "comm/comm.h"

enum { MAX_RANKS = 64, MAX_ROUNDS = 512, TRIES = 4, REPEATS = 4, COLLECTIVES = 2 };

typedef struct series {
    double figure[MAX_ROUNDS], fraction[MAX_ROUNDS], bound[MAX_ROUNDS]; /* bytes/s; of the bound; the bound, bytes/s */
    int n, repeated, uneven;
} series;

typedef struct bench {
    int64_t ranks, mb;
    double seconds;
    const char *table;
    hd_comm *comm[MAX_RANKS];
    series series[COLLECTIVES]; /* rank 0's */
    const char *loop;           /* the fastest copy's name; rank 0's */
} bench;

typedef struct rank {
    bench *b;
    int rank, loop;
    hd_comm *comm;
    hd_comm_group *all;
    float *in, *out; /* [count] each */
    int64_t count, offset[MAX_RANKS + 1];
    pthread_t thread;
    int rc;
    hd_error err;
} rank;

/* ---- copies ---- */

static void copy_plain(void *to, const void *from, size_t n) { memcpy(to, from, n); }

#if defined(__x86_64__)
static void copy_stream(void *to, const void *from, size_t n)
{
    for (size_t k = 0; k < n; k += 64)
        for (size_t i = 0; i < 64; i += 16)
            _mm_stream_si128((__m128i *)((char *)to + k + i), _mm_load_si128((const __m128i *)((const char *)from + k + i)));
    _mm_sfence();
}

__attribute__((target("avx512f"))) static void copy_stream_wide(void *to, const void *from, size_t n)
{
    for (size_t k = 0; k < n; k += 64) _mm512_stream_si512((void *)((char *)to + k), _mm512_load_si512((const char *)from + k));
    _mm_sfence();
}

static void copy_rep(void *to, const void *from, size_t n) { __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory"); }
#endif

static const struct { const char *name; void (*copy)(void *to, const void *from, size_t n); bool wide; } loops[] = {
    {"memcpy", copy_plain, false},
#if defined(__x86_64__)
    {"16 bytes past the caches", copy_stream, false}, {"64 bytes past the caches", copy_stream_wide, true}, {"rep movsb", copy_rep, false},
#endif
};
enum { LOOPS = sizeof loops / sizeof loops[0] };

static bool can_run(int loop)
{
#if defined(__x86_64__)
    return !loops[loop].wide || __builtin_cpu_supports("avx512f");
#else
    return !loops[loop].wide;
#endif
}

/* ---- what is measured: REPEATS of it, seconds of one on the slowest rank ---- */

static int do_copy(rank *r) { return loops[r->loop].copy(r->out, r->in, (size_t)r->count * sizeof *r->in), 0; }

static int do_all_reduce(rank *r)
{
    hd_transfer t = {.kind = HD_ALL_REDUCE, .dtype = HD_F32, .in = r->in, .out = r->out, .count = r->count};
    return hd_comm_do(r->comm, r->all, &t, &r->err);
}

static int do_all_gather(rank *r)
{
    hd_transfer t = {.kind = HD_ALL_GATHER, .dtype = HD_F32, .in = r->in, .out = r->out, .outer = 1, .inner = 1, .offset = r->offset};
    return hd_comm_do(r->comm, r->all, &t, &r->err);
}

static double time_of(rank *r, int (*what)(rank *))
{
    int rc = hd_comm_barrier(r->comm, r->all, &r->err);
    double seconds = -hd_time(), most = 0;
    for (int i = 0; i < REPEATS && !rc; i++) rc = what(r);
    seconds = (seconds + hd_time()) / REPEATS;
    hd_transfer t = {.kind = HD_ALL_REDUCE, .dtype = HD_F64, .max = true, .in = &seconds, .out = &most, .count = 1};
    if (!rc) rc = hd_comm_do(r->comm, r->all, &t, &r->err);
    if (rc) r->rc = rc;
    return most;
}

static double copy_bandwidth(rank *r)
{
    return 2.0 * (double)r->b->ranks * (double)r->count * sizeof *r->in / time_of(r, do_copy);
}

static void choose_loop(rank *r)
{
    double best = 0;
    int fastest = 0;
    for (int round = 0; round < 3; round++)
        for (r->loop = 0; r->loop < LOOPS; r->loop++) {
            double x = can_run(r->loop) ? copy_bandwidth(r) : 0;
            if (x > best) best = x, fastest = r->loop;
        }
    r->loop = fastest;
    r->b->loop = loops[fastest].name; /* the same on all */
}

/* ---- rounds: every rank goes through the same ones, because all know the same times ---- */

static const struct { const char *name, *key; int (*run)(rank *); } collectives[COLLECTIVES] = {
    {"all-reduce", "all_reduce", do_all_reduce}, {"all-gather", "all_gather", do_all_gather}};

static double bytes_of(const rank *r, int which)
{
    double n = (double)r->b->ranks, bytes = (double)r->count * sizeof *r->in;
    return which == 0 ? 2 * n * bytes : bytes + n * bytes;
}

static void measure(rank *r, int which, series *s)
{
    int attempt = 0;
    double spent = 0;
    time_of(r, collectives[which].run);
    while (!r->rc && s->n < MAX_ROUNDS && (s->n < 3 || spent < r->b->seconds)) {
        double before = copy_bandwidth(r), seconds = time_of(r, collectives[which].run), after = copy_bandwidth(r);
        bool uneven = fmax(before, after) > 1.1 * fmin(before, after);
        spent += 3 * REPEATS * seconds;
        if (uneven && ++attempt < TRIES) {
            s->repeated++;
            continue;
        }
        attempt = 0;
        s->uneven += uneven;
        s->figure[s->n] = bytes_of(r, which) / seconds;
        s->bound[s->n] = (before + after) / 2;
        s->fraction[s->n] = s->figure[s->n] / s->bound[s->n];
        s->n++;
    }
}

/* ---- ranks ---- */

static int make_room(rank *r)
{
    size_t bytes = (size_t)r->b->mb << 20;
    r->count = (int64_t)(bytes / sizeof *r->in);
    r->in = hd_map_memory(bytes);
    r->out = hd_map_memory(bytes);
    if (!r->in || !r->out) return hd_fail_memory(&r->err, 2 * bytes, "a rank's data");
    for (int64_t i = 0; i < r->count; i++) r->in[i] = (float)(i % 1000 + r->rank);
    memset(r->out, 1, bytes);
    for (int64_t i = 0; i <= r->b->ranks; i++) {
        int64_t end;
        if (i < r->b->ranks) hd_split(r->count, 16, (int)i, (int)r->b->ranks, &r->offset[i], &end);
        else r->offset[i] = r->count;
    }
    return 0;
}

static int check_sums(rank *r)
{
    int64_t n = r->b->ranks, more = n * (n - 1) / 2;
    r->rc = do_all_reduce(r);
    for (int64_t i = 0; i < r->count && !r->rc; i++)
        if (!(r->out[i] == (float)(n * (i % 1000) + more))) r->rc = hd_fail(&r->err, HD_EINVAL, "element %lld is wrong", (long long)i);
    return r->rc;
}

static void *rank_main(void *arg)
{
    rank *r = arg;
    int ranks[MAX_RANKS];
    series *mine = hd_calloc(COLLECTIVES, sizeof *mine);
    if (r->b->ranks <= hd_core_count()) hd_thread_pin(r->rank, 1);
    for (int i = 0; i < r->b->ranks; i++) ranks[i] = i;
    r->rc = mine ? make_room(r) : hd_fail_memory(&r->err, sizeof *mine, "a rank's figures");
    if (!r->rc && !(r->all = hd_comm_group_get(r->comm, ranks, (int)r->b->ranks, &r->err))) r->rc = r->err.code;
    if (!r->rc && !check_sums(r)) choose_loop(r);
    for (int i = 0; i < COLLECTIVES && !r->rc; i++) measure(r, i, &mine[i]);
    if (r->rc) hd_comm_abort(r->comm, r->err.message);
    if (mine && r->rank == 0) memcpy(r->b->series, mine, sizeof r->b->series);
    if (r->in) hd_unmap_memory(r->in, (size_t)r->b->mb << 20);
    if (r->out) hd_unmap_memory(r->out, (size_t)r->b->mb << 20);
    hd_free(mine);
    hd_comm_free(r->comm);
    return NULL;
}

static int run(bench *b, hd_error *err)
{
    static rank r[MAX_RANKS];
    int rc = hd_comm_local((int)b->ranks, 60, b->comm, err);
    if (rc) return rc;
    for (int i = 0; i < b->ranks; i++) {
        r[i] = (rank){.b = b, .rank = i, .comm = b->comm[i]};
        if (pthread_create(&r[i].thread, NULL, rank_main, &r[i])) return hd_fail(err, HD_ENOMEM, "cannot start a thread for rank %d", i);
    }
    for (int i = 0; i < b->ranks; i++) pthread_join(r[i].thread, NULL);
    for (int i = 0; i < b->ranks && !rc; i++)
        if (r[i].rc) rc = hd_fail(err, r[i].rc, "%s", r[i].err.message);
    return rc;
}

/* ---- results ---- */

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

static void print_lines(bench *b)
{
    for (int i = 0; i < COLLECTIVES; i++) {
        series *s = &b->series[i];
        printf("%-14s %lld ranks %-10s of %lld MB %8.1f GB/s of %7.1f: %5.1f %%\n", b->table, (long long)b->ranks, collectives[i].name,
               (long long)b->mb, 1e-9 * median(s->figure, s->n), 1e-9 * median(s->bound, s->n), 100 * median(s->fraction, s->n));
    }
}

static void print_json(bench *b)
{
    printf("{\"ranks\": %lld, \"mb\": %lld, \"copy\": \"%s\"", (long long)b->ranks, (long long)b->mb, b->loop);
    for (int i = 0; i < COLLECTIVES; i++) {
        series *s = &b->series[i];
        const char *k = collectives[i].key;
        printf(", \"%s_gbs\": %.2f, \"%s_copy_gbs\": %.2f, \"%s_fraction\": %.3f", k, 1e-9 * median(s->figure, s->n), k, 1e-9 * median(s->bound, s->n),
               k, median(s->fraction, s->n));
        printf(", \"%s_rounds\": %d, \"%s_repeated\": %d, \"%s_uneven\": %d", k, s->n, k, s->repeated, k, s->uneven);
    }
    printf("}\n");
}

static bool parse(bench *b, int argc, char **argv)
{
    *b = (bench){.ranks = 2, .mb = 64, .seconds = 4};
    for (int i = 1; i < argc; i++) {
        char *eq = strchr(argv[i], '=');
        if (eq) *eq = 0;
        if (eq && !strcmp(argv[i], "ranks")) b->ranks = atoll(eq + 1);
        else if (eq && !strcmp(argv[i], "mb")) b->mb = atoll(eq + 1);
        else if (eq && !strcmp(argv[i], "seconds")) b->seconds = atof(eq + 1);
        else if (eq && !strcmp(argv[i], "table")) b->table = eq + 1;
        else return fprintf(stderr, "bench_comm: there is no key \"%s\"\n", argv[i]), false;
    }
    if (b->ranks < 1 || b->ranks > MAX_RANKS || b->mb < 1 || b->mb > 4096)
        return fprintf(stderr, "bench_comm: ranks is 1 to %d, mb 1 to 4096\n", MAX_RANKS), false;
    return true;
}

int main(int argc, char **argv)
{
    static bench b;
    hd_error err = {0};
    if (!parse(&b, argc, argv)) return 2;
    int rc = run(&b, &err);
    if (rc) fprintf(stderr, "bench_comm: %s\n", err.message);
    else if (b.table) print_lines(&b);
    else print_json(&b);
    return rc ? 1 : 0;
}
