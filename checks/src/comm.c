/* comm.c: a fixed random sequence of transfers on a world of any transport, and one sum over what all ranks got: the same for all transports.
 *
 *   check_comm local N [rounds]     N threads
 *   mpirun -n N check_comm mpi [rounds]
 *   check_comm ... abort            the last rank aborts after a moment; the others must hear of it
 *   check_comm ... silent           the last rank does nothing: the deadline of 1 s ends it */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/rng.h"
#include "comm/comm.h"

enum { MAX_RANKS = 64, BATCH = 4 };

typedef struct job { int rounds; bool abort, silent; } job;
typedef struct rank_thread { hd_comm *c; const job *j; int rc; pthread_t thread; } rank_thread;

typedef struct one {
    hd_transfer t;
    int n, rank[MAX_RANKS], index;
    int64_t offset[MAX_RANKS + 1], to_offset[MAX_RANKS + 1], in_count, out_count;
    unsigned char *in, *out;
} one;

static void cut(hd_rng *r, int n, int64_t *offset)
{
    offset[0] = 0;
    for (int i = 0; i < n; i++) offset[i + 1] = offset[i] + (int64_t)hd_rng_below(r, 9);
}

static void set_counts(one *w)
{
    const hd_transfer *t = &w->t;
    int i = w->index;
    int64_t whole = t->outer * t->inner * w->offset[w->n], mine = t->outer * t->inner * (w->offset[i + 1] - w->offset[i]);
    w->in_count = w->out_count = t->count;
    if (t->kind == HD_REDUCE_SCATTER) w->in_count = whole, w->out_count = mine;
    if (t->kind == HD_ALL_GATHER) w->in_count = mine, w->out_count = whole;
    int from = (i + t->peer) % w->n;
    if (t->kind == HD_PERMUTE) w->in_count = mine, w->out_count = t->outer * t->inner * (w->offset[from + 1] - w->offset[from]);
    if (t->kind == HD_ALL_TO_ALL) w->in_count = mine * t->middle * w->to_offset[w->n], w->out_count = whole * t->middle * (w->to_offset[i + 1] - w->to_offset[i]);
}

/* Every rank draws the same numbers; only the data depend on the rank. */
static void draw(hd_rng *r, int world, int rank, one *w)
{
    static const hd_dtype dtypes[] = {HD_F32, HD_BF16, HD_F64, HD_I32, HD_F16};
    memset(w, 0, sizeof *w);
    w->index = -1;
    int first = (int)hd_rng_below(r, (uint64_t)world), step = hd_rng_below(r, 2) ? 1 : world - 1;
    w->n = hd_rng_below(r, 3) ? world : 1 + (int)hd_rng_below(r, (uint64_t)world);
    for (int i = 0; i < w->n; i++) {
        w->rank[i] = (first + i * step) % world;
        if (w->rank[i] == rank) w->index = i;
    }
    int64_t scale = hd_rng_below(r, 8) ? 1 : 200;
    w->t = (hd_transfer){.kind = (hd_transfer_kind)hd_rng_below(r, HD_SEND), .dtype = dtypes[hd_rng_below(r, 5)], .max = hd_rng_below(r, 4) == 0,
        .outer = 1 + (int64_t)hd_rng_below(r, 3), .middle = 1 + (int64_t)hd_rng_below(r, 3), .inner = 1 + (int64_t)hd_rng_below(r, (uint64_t)(9 * scale)),
        .count = (int64_t)hd_rng_below(r, (uint64_t)(2000 * scale)), .peer = (int)hd_rng_below(r, (uint64_t)w->n), .a_first = hd_rng_below(r, 2) != 0};
    cut(r, w->n, w->offset);
    cut(r, w->n, w->to_offset);
    bool in_place = (w->t.kind == HD_ALL_REDUCE || w->t.kind == HD_BROADCAST) && hd_rng_below(r, 2);
    uint64_t seed = (uint64_t)hd_rng_u32(r) << 8 | (uint64_t)rank;
    if (w->index < 0) return;
    set_counts(w);
    size_t size = hd_dtype_size(w->t.dtype);
    w->out = hd_calloc((size_t)w->out_count + 1, size);
    w->in = in_place ? w->out : hd_calloc((size_t)w->in_count + 1, size);
    hd_rng data = hd_rng_new(seed);
    for (int64_t e = 0; e < w->in_count; e++) hd_store_f64(w->in, w->t.dtype, e, hd_rng_normal(&data) * 100);
    w->t.in = w->in;
    w->t.out = w->out;
    w->t.offset = w->offset;
    w->t.to_offset = w->to_offset;
}

static int run_round(hd_comm *c, hd_rng *r, uint64_t *sum, hd_error *err)
{
    one *w = hd_calloc(BATCH, sizeof *w);
    hd_ticket ticket[BATCH] = {{0}};
    int rc = 0, rank = hd_comm_rank(c);
    for (int k = 0; k < BATCH; k++) draw(r, hd_comm_size(c), rank, &w[k]);
    for (int k = 0; k < BATCH && !rc; k++) {
        if (w[k].index < 0) continue;
        hd_comm_group *g = hd_comm_group_get(c, w[k].rank, w[k].n, err);
        rc = g ? hd_comm_start(c, g, &w[k].t, &ticket[k], err) : err->code;
    }
    for (int k = 0; k < BATCH && !rc; k++) rc = hd_comm_wait(c, ticket[(k + rank) % BATCH], err);
    for (int k = 0; k < BATCH && !rc; k++)
        if (w[k].index >= 0) *sum = hd_hash_mix(*sum, hd_checksum(HD_CHECKSUM_INIT, w[k].out, (size_t)w[k].out_count * hd_dtype_size(w[k].t.dtype)));
    for (int k = 0; k < BATCH && !rc; k++) {
        if (w[k].in != w[k].out) hd_free(w[k].in);
        hd_free(w[k].out);
    }
    if (!rc) hd_free(w);
    return rc;
}

/* Transfers of one kind as a list, which lie side by side in memory or with gaps, in place or not: all ranks draw the same but for the gaps. */
static int pass_list(hd_comm *c, hd_comm_group *all, hd_rng *r, uint64_t *sum, hd_error *err)
{
    enum { PARTS = 5, LENGTH = 4000 };
    static _Thread_local float in[PARTS * LENGTH], out[PARTS * LENGTH];
    int64_t offset[PARTS][MAX_RANKS + 1], at = 0, to = 0;
    hd_transfer part[PARTS], list = {.kind = (hd_transfer_kind)hd_rng_below(r, HD_ALL_TO_ALL), .dtype = HD_F32, .part = part, .n_parts = PARTS};
    int n = hd_comm_size(c), rank = hd_comm_rank(c);
    bool in_place = hd_rng_below(r, 2) && list.kind == HD_ALL_REDUCE;
    int64_t gap = hd_rng_below(r, 2) && rank % 2 ? 3 : 0; /* on some ranks */
    for (int i = 0; i < PARTS * LENGTH; i++) in[i] = (float)(rank + 1) * 0.37f + (float)i * 1e-3f, out[i] = 0;
    for (int p = 0; p < PARTS; p++) {
        int64_t outer = 1 + (int64_t)hd_rng_below(r, 2), inner = 1 + (int64_t)hd_rng_below(r, 9);
        cut(r, n, offset[p]);
        int64_t whole = outer * inner * offset[p][n], mine = outer * inner * (offset[p][rank + 1] - offset[p][rank]);
        part[p] = (hd_transfer){.kind = list.kind, .dtype = HD_F32, .in = in + at, .out = in_place ? in + at : out + to, .outer = outer, .inner = inner,
                                .offset = offset[p], .count = whole};
        at += (list.kind == HD_ALL_GATHER ? mine : whole) + gap;
        to += (list.kind == HD_REDUCE_SCATTER ? mine : whole) + gap;
    }
    int rc = at > PARTS * LENGTH || to > PARTS * LENGTH ? hd_fail(err, HD_EINVAL, "too many elements") : hd_comm_do(c, all, &list, err);
    for (int p = 0; p < PARTS && !rc; p++) {
        int64_t count = list.kind == HD_REDUCE_SCATTER ? part[p].outer * part[p].inner * (offset[p][rank + 1] - offset[p][rank]) : part[p].count;
        *sum = hd_hash_mix(*sum, hd_checksum(HD_CHECKSUM_INIT, part[p].out, (size_t)count * 4));
    }
    return rc;
}

/* To the next rank and from the one before, with two tags taken in the other order. */
static int pass_on(hd_comm *c, hd_comm_group *all, hd_rng *r, uint64_t *sum, hd_error *err)
{
    enum { LENGTH = 5000 };
    static _Thread_local int32_t out[2][LENGTH], in[2][LENGTH];
    int n = hd_comm_size(c), rank = hd_comm_rank(c), rc = 0;
    int64_t count[2] = {(int64_t)hd_rng_below(r, LENGTH), (int64_t)hd_rng_below(r, 40)};
    hd_ticket ticket[4];
    for (int k = 0; k < 2 && !rc; k++) {
        for (int i = 0; i < LENGTH; i++) out[k][i] = rank * 100003 + i * (k + 1);
        rc = hd_comm_start(c, all, &(hd_transfer){.kind = HD_SEND, .dtype = HD_I32, .in = out[k], .count = count[k], .peer = (rank + 1) % n, .tag = k}, &ticket[k], err);
    }
    for (int k = 1; k >= 0 && !rc; k--)
        rc = hd_comm_start(c, all, &(hd_transfer){.kind = HD_RECV, .dtype = HD_I32, .out = in[k], .count = count[k], .peer = (rank + n - 1) % n, .tag = k},
                           &ticket[2 + k], err);
    for (int k = 0; k < 4 && !rc; k++) rc = hd_comm_wait(c, ticket[k], err);
    for (int k = 0; k < 2 && !rc; k++) *sum = hd_hash_mix(*sum, hd_checksum(HD_CHECKSUM_INIT, in[k], (size_t)count[k] * 4));
    return rc;
}

static int run_job(hd_comm *c, const job *j, hd_error *err)
{
    int n = hd_comm_size(c), rank = hd_comm_rank(c), ranks[MAX_RANKS], rc = 0;
    uint64_t sum = (uint64_t)rank, all[MAX_RANKS];
    int64_t offset[MAX_RANKS + 1];
    hd_rng r = hd_rng_new(17);
    for (int i = 0; i < n; i++) ranks[i] = i;
    for (int i = 0; i <= n; i++) offset[i] = i;
    hd_comm_group *g = hd_comm_group_get(c, ranks, n, err);
    for (int k = 0; k < j->rounds && !rc && g; k++) {
        rc = run_round(c, &r, &sum, err);
        if (!rc) rc = pass_on(c, g, &r, &sum, err);
        if (!rc) rc = pass_list(c, g, &r, &sum, err);
        if (k || rank != n - 1) continue;
        if (j->abort) hd_comm_abort(c, "asked to abort");
        if (j->silent) sleep(3);
    }
    if (rc || !g) return rc ? rc : err->code;
    rc = hd_comm_do(c, g, &(hd_transfer){.kind = HD_ALL_GATHER, .dtype = HD_I64, .in = &sum, .out = all, .outer = 1, .inner = 1, .offset = offset}, err);
    if (!rc && rank == 0) printf("%016llx\n", (unsigned long long)hd_checksum(HD_CHECKSUM_INIT, all, (size_t)n * sizeof *all));
    return rc;
}

static void *rank_main(void *arg)
{
    rank_thread *t = arg;
    hd_error err = {0};
    int rank = hd_comm_rank(t->c);
    t->rc = run_job(t->c, t->j, &err);
    if (t->rc) {
        fprintf(stderr, "check_comm: rank %d ends: %s\n", rank, err.message);
        hd_comm_abort(t->c, err.message);
    }
    hd_comm_free(t->c);
    return NULL;
}

static int run_local(int n, const job *j, double deadline, hd_error *err)
{
    rank_thread t[MAX_RANKS];
    hd_comm *c[MAX_RANKS];
    int rc = hd_comm_local(n, deadline, c, err);
    for (int r = 0; r < n && !rc; r++) {
        t[r] = (rank_thread){.c = c[r], .j = j};
        pthread_create(&t[r].thread, NULL, rank_main, &t[r]);
    }
    for (int r = 0; r < n && !rc; r++) pthread_join(t[r].thread, NULL);
    for (int r = 0; r < n && !rc; r++) rc = t[r].rc;
    return rc;
}

int main(int argc, char **argv)
{
    bool mpi = argc > 1 && !strcmp(argv[1], "mpi");
    int n = !mpi && argc > 2 ? atoi(argv[2]) : 0, rest = mpi ? 2 : 3;
    job j = {.rounds = 30};
    hd_error err = {0};
    for (int i = rest; i < argc; i++) {
        if (!strcmp(argv[i], "abort")) j.abort = true;
        else if (!strcmp(argv[i], "silent")) j.silent = true;
        else j.rounds = atoi(argv[i]);
    }
    if (!mpi && (n < 1 || n > MAX_RANKS)) return fprintf(stderr, "check_comm local N | mpi, [rounds] [abort] [silent]\n"), 2;
    double deadline = j.silent ? 1 : 60;
    if (!mpi) return run_local(n, &j, deadline, &err) != 0;
    rank_thread t = {.j = &j};
    if (hd_comm_mpi(deadline, &t.c, &err)) return fprintf(stderr, "check_comm: %s\n", err.message), 1;
    rank_main(&t);
    return t.rc != 0;
}
