/* calibrate_links.c: collectives by size and group, between threads of this process or the ranks of the MPI job, and the disk. */
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/file.h"
#include "base/thread.h"
#include "cluster/calibrate_int.h"
#include "cluster/measure.h"

enum { MOST_RANKS = 64, MOST_RUNS = 41, LEAST_RUNS = 5, KINDS = 6 };
#define MOST_BYTES ((int64_t)32 << 20)

static const struct { const char *name; hd_transfer_kind kind; hd_dtype dtype; } kinds[] = {
    {"all_reduce", HD_ALL_REDUCE, HD_F32},   {"all_reduce", HD_ALL_REDUCE, HD_BF16},         {"all_gather", HD_ALL_GATHER, HD_F32},
    {"reduce_scatter", HD_REDUCE_SCATTER, HD_F32}, {"reduce_scatter", HD_REDUCE_SCATTER, HD_BF16}, {"all_to_all", HD_ALL_TO_ALL, HD_F32},
    {"broadcast", HD_BROADCAST, HD_F32},     {"send", HD_SEND, HD_F32},
};
static const int64_t sizes[] = {64, 1 << 12, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24, MOST_BYTES}; /* bytes of the larger side */
enum { N_KINDS = sizeof kinds / sizeof kinds[0], N_SIZES = sizeof sizes / sizeof sizes[0] };

/* ---- one rank ---- */

typedef struct member {
    hd_calibration *calibration;
    hd_comm *comm;
    hd_comm_group *all, *group; /* the world, and those that take part: this rank is one of them, or group is NULL */
    int rank, ranks;            /* of the group */
    double seconds;             /* for each kind and size */
    double result[N_KINDS][N_SIZES];
    bool pinned;
    char *in, *out;
    hd_error err;
    pthread_t thread;
    bool started;
} member;

/* One collective of so many bytes at its larger side. */
static int transfer_once(member *m, int kind, int64_t bytes)
{
    int64_t count = bytes / (int64_t)hd_dtype_size(kinds[kind].dtype), offset[MOST_RANKS + 1], to_offset[MOST_RANKS + 1];
    hd_transfer t = {.kind = kinds[kind].kind, .dtype = kinds[kind].dtype, .in = m->in, .out = m->out, .outer = 1, .inner = 1, .count = count, .middle = 1};
    if (t.kind == HD_ALL_TO_ALL) count /= m->ranks; /* `in` is cut in its first dimension, of that extent, and whole in its second */
    for (int i = 0; i <= m->ranks; i++) {
        int64_t end;
        if (i < m->ranks) hd_split(count, 1, i, m->ranks, &offset[i], &end);
        else offset[i] = count;
        to_offset[i] = i;
    }
    t.offset = offset, t.to_offset = to_offset, t.a_first = true;
    if (t.kind != HD_SEND) return hd_comm_do(m->comm, m->group, &t, &m->err);
    if (m->rank > 1) return 0;
    t.kind = m->rank ? HD_RECV : HD_SEND;
    t.peer = 1 - m->rank;
    return hd_comm_do(m->comm, m->group, &t, &m->err);
}

/* The slowest rank's time, known to all. */
static int timed(member *m, int kind, int64_t bytes, double *out)
{
    int rc = hd_comm_barrier(m->comm, m->all, &m->err);
    double begin = hd_time(), most = 0;
    if (!rc && m->group) rc = transfer_once(m, kind, bytes);
    double mine = m->group ? hd_time() - begin : 0;
    hd_transfer t = {.kind = HD_ALL_REDUCE, .dtype = HD_F64, .max = true, .in = &mine, .out = &most, .count = 1};
    if (!rc) rc = hd_comm_do(m->comm, m->all, &t, &m->err);
    *out = most;
    return rc;
}

static int measure(member *m, int kind, int size)
{
    double first, x[MOST_RUNS];
    int rc = timed(m, kind, sizes[size], &first);
    int runs = (int)(m->seconds / (first + 2e-5));
    if (runs > MOST_RUNS) runs = MOST_RUNS;
    if (runs < LEAST_RUNS) runs = LEAST_RUNS;
    for (int i = 0; i < runs && !rc; i++) rc = timed(m, kind, sizes[size], &x[i]);
    if (!rc) m->result[kind][size] = hd_calibration_median(x, runs);
    return rc;
}

static int open_memory(member *m)
{
    m->in = hd_map_memory((size_t)MOST_BYTES * 2);
    m->out = hd_map_memory((size_t)MOST_BYTES * 2);
    if (!m->in || !m->out) return hd_fail_memory(&m->err, (size_t)MOST_BYTES * 4, "a rank's data");
    memset(m->in, 0x3c, (size_t)MOST_BYTES), memset(m->out, 0x3c, (size_t)MOST_BYTES);
    return 0;
}

static void close_memory(member *m)
{
    if (m->in) hd_unmap_memory(m->in, (size_t)MOST_BYTES * 2);
    if (m->out) hd_unmap_memory(m->out, (size_t)MOST_BYTES * 2);
}

static int measure_all(member *m)
{
    int rc = 0;
    for (int k = 0; k < N_KINDS; k++)
        for (int s = 0; s < N_SIZES && !rc; s++) {
            rc = measure(m, k, s);
            if (m->rank == 0) hd_calibration_step(m->calibration, m->seconds, kinds[k].name);
        }
    return rc;
}

static int add_entries(hd_calibration *c, const member *m)
{
    int rc = 0;
    for (int k = 0; k < N_KINDS; k++)
        for (int s = 0; s < N_SIZES && !rc; s++) {
            hd_profile_entry e = {.dtype = kinds[k].dtype, .threads = m->ranks, .teams = 1, .x = {(double)sizes[s], 1, 1, 1}, .seconds = m->result[k][s]};
            snprintf(e.op, sizeof e.op, "%s", kinds[k].name);
            if (e.seconds > 0) rc = hd_calibration_add(c, &e);
        }
    return rc;
}

/* ---- ranks that are threads ---- */

static void *member_main(void *arg)
{
    member *m = arg;
    int ranks[MOST_RANKS];
    for (int i = 0; i < m->ranks; i++) ranks[i] = i;
    if (m->pinned) hd_thread_pin(m->rank, 1);
    m->all = m->group = hd_comm_group_get(m->comm, ranks, m->ranks, &m->err);
    if (!m->all || open_memory(m) || measure_all(m)) hd_comm_abort(m->comm, m->err.message);
    close_memory(m);
    hd_comm_free(m->comm);
    return NULL;
}

int hd_calibrate_collectives(hd_calibration *c, int ranks, double seconds)
{
    hd_comm *comm[MOST_RANKS];
    member *m = hd_calloc(MOST_RANKS, sizeof *m);
    if (ranks < 2 || ranks > MOST_RANKS) return hd_free(m), 0;
    int rc = m ? hd_comm_local(ranks, 60, comm, &c->err) : hd_fail_memory(&c->err, MOST_RANKS * sizeof *m, "ranks");
    for (int i = 0; i < ranks && !rc; i++) {
        m[i] = (member){.calibration = c, .comm = comm[i], .rank = i, .ranks = ranks, .seconds = seconds / (N_KINDS * N_SIZES),
                        .pinned = ranks <= hd_core_count()};
        m[i].started = !pthread_create(&m[i].thread, NULL, member_main, &m[i]);
        if (m[i].started) continue;
        rc = hd_fail(&c->err, HD_ENOMEM, "a thread for rank %d could not be started", i);
        hd_comm_abort(comm[i], c->err.message);
        for (int k = i; k < ranks; k++) hd_comm_free(comm[k]);
    }
    for (int i = 0; i < ranks && m; i++)
        if (m[i].started) pthread_join(m[i].thread, NULL);
    for (int i = 0; i < ranks && !rc; i++)
        if (m[i].err.code) rc = hd_fail(&c->err, m[i].err.code, "%s", m[i].err.message);
    if (!rc) rc = add_entries(c, &m[0]);
    hd_free(m);
    return rc;
}

/* ---- what computing and transfers lose to each other ---- */

/* Gradients' buckets are about so large, and as many are under way. */
enum { CONTENTION_ROUNDS = 5, CONTENTION_PIECES = 16 };
#define CONTENTION_BYTES ((int64_t)1 << 20)

/* Seconds that a piece of computing takes, over at least so many seconds of it. */
static double seconds_of_work(hd_team *team, double least)
{
    hd_isa isa = hd_isa_detect();
    double begin = hd_time(), now = begin;
    int pieces = 0;
    for (; now - begin < least || !pieces; pieces++, now = hd_time()) hd_measure(HD_BOUND_F32, team, isa, 1, NULL);
    return (now - begin) / pieces;
}

/* The group's sums, all begun at once, and computing beside them for `work` seconds. *piece: seconds that a piece of computing took; *waited: for the sums then. */
static int sums_beside(member *m, hd_team *team, double work, double *piece, double *waited)
{
    hd_transfer t = {.kind = HD_ALL_REDUCE, .dtype = HD_F32, .count = CONTENTION_BYTES / 4};
    hd_ticket ticket[CONTENTION_PIECES];
    int begun = 0, rc = hd_comm_barrier(m->comm, m->all, &m->err);
    for (; begun < CONTENTION_PIECES && m->group && !rc; begun += !rc) {
        t.in = m->in + begun * CONTENTION_BYTES, t.out = m->out + begun * CONTENTION_BYTES;
        rc = hd_comm_start(m->comm, m->group, &t, &ticket[begun], &m->err);
    }
    *piece = work > 0 && !rc ? seconds_of_work(team, work) : 0;
    double begin = hd_time();
    for (int i = 0; i < begun; i++) {
        hd_error err = {0};
        int failed = hd_comm_wait(m->comm, ticket[i], rc ? &err : &m->err);
        if (!rc) rc = failed;
    }
    *waited = hd_time() - begin;
    return rc;
}

/* One round: sums alone, computing alone, both. All ranks of the job compute. */
static int contend(member *m, hd_team *team, double *contention, double *drag)
{
    double sums, piece, beside, waited, work = 0;
    int rc = sums_beside(m, team, 0, &piece, &sums);
    hd_transfer most = {.kind = HD_ALL_REDUCE, .dtype = HD_F64, .max = true, .in = &sums, .out = &work, .count = 1};
    if (!rc) rc = hd_comm_do(m->comm, m->all, &most, &m->err);
    if (!rc) rc = hd_comm_barrier(m->comm, m->all, &m->err);
    double alone = rc ? 1 : seconds_of_work(team, 0.3 * work);
    if (!rc) rc = sums_beside(m, team, 0.8 * work, &beside, &waited);
    *contention = rc ? 0 : fmin(fmax(0, 1 - alone / beside), 0.9);
    *drag = rc || !m->group ? 0 : fmin(fmax(0, 1 - (sums - waited) / (0.8 * work)), 0.9);
    return rc;
}

/* The greatest medians among the ranks; known to all. */
static int measure_contention(member *m, hd_level *l)
{
    hd_team *team = hd_team_new(hd_calibration_cores(m->calibration), true, &m->err);
    double contention[CONTENTION_ROUNDS], drag[CONTENTION_ROUNDS], mine[2], out[2];
    hd_transfer most = {.kind = HD_ALL_REDUCE, .dtype = HD_F64, .max = true, .in = mine, .out = out, .count = 2};
    int rc = team ? 0 : m->err.code;
    for (int i = 0; i < CONTENTION_ROUNDS && !rc; i++) rc = contend(m, team, &contention[i], &drag[i]);
    if (!rc) {
        mine[0] = hd_calibration_median(contention, CONTENTION_ROUNDS), mine[1] = hd_calibration_median(drag, CONTENTION_ROUNDS);
        rc = hd_comm_do(m->comm, m->all, &most, &m->err);
    }
    if (!rc) l->contention = out[0], l->drag = out[1];
    hd_team_free(team);
    return rc;
}

/* ---- the job's own ranks ---- */

/* Among the first n ranks, or those of one rank on each machine (stride = ranks on a machine). */
static int measure_group(hd_calibration *c, int n, int stride, int level, double seconds)
{
    hd_comm *comm = c->options->comm;
    int ranks[MOST_RANKS], me = hd_comm_rank(comm);
    bool inside = me % stride == 0 && me / stride < n;
    for (int i = 0; i < n; i++) ranks[i] = i * stride;
    member *m = hd_calloc(1, sizeof *m);
    if (!m) return hd_fail_memory(&c->err, sizeof *m, "a rank");
    *m = (member){.calibration = c, .comm = comm, .all = c->all, .rank = inside ? me / stride : n, .ranks = n, .seconds = seconds / (N_KINDS * N_SIZES)};
    if (inside) m->group = hd_comm_group_get(comm, ranks, n, &m->err);
    hd_level *l = &c->out->level[level];
    int rc = m->err.code ? m->err.code : open_memory(m);
    if (!rc) rc = measure_all(m);
    if (!rc) rc = measure_contention(m, l);
    close_memory(m);
    if (rc) hd_fail(&c->err, rc, "%s", m->err.message);
    double small = m->result[N_KINDS - 1][0], large = m->result[N_KINDS - 1][N_SIZES - 1];
    if (!rc) l->latency = small, l->bandwidth = (double)MOST_BYTES / fmax(large - small, 1e-9);
    if (!rc) rc = add_entries(c, m);
    hd_free(m);
    return rc;
}

int hd_calibrate_job(hd_calibration *c, double seconds)
{
    int world = hd_comm_size(c->options->comm), on_host = c->options->on_host, hosts = world / on_host;
    if (world > MOST_RANKS) world = MOST_RANKS;
    int rc = on_host > 1 ? measure_group(c, on_host < world ? on_host : world, 1, 0, seconds / 2) : 0;
    if (!rc && hosts > 1) rc = measure_group(c, hosts < MOST_RANKS ? hosts : MOST_RANKS, on_host, 1, seconds / 2);
    return rc;
}

/* ---- disk ---- */

#define DISK_BYTES ((size_t)128 << 20)
#define DISK_PIECE ((size_t)4 << 20)

static double write_file(int fd, char *piece, const char *path, hd_error *err)
{
    double begin = hd_time();
    for (size_t at = 0; at < DISK_BYTES; at += DISK_PIECE)
        if (hd_write_all(fd, piece, DISK_PIECE, path, err)) return 0;
    if (fdatasync(fd)) return 0;
    return (double)DISK_BYTES / (hd_time() - begin);
}

static double read_file(int fd, char *piece)
{
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    double begin = hd_time();
    for (size_t at = 0; at < DISK_BYTES; at += DISK_PIECE)
        if (pread(fd, piece, DISK_PIECE, (off_t)at) != (ssize_t)DISK_PIECE) return 0;
    return (double)DISK_BYTES / (hd_time() - begin);
}

/* The slower of writing (to the device) and reading (what has left the page cache). A directory that cannot be written to leaves the disk out. */
int hd_calibrate_disk(hd_calibration *c, const char *dir, double seconds)
{
    char path[4096];
    struct statvfs fs;
    hd_error err = {0};
    snprintf(path, sizeof path, "%s/heddle-calibrate-%d.tmp", dir, (int)getpid());
    char *piece = hd_map_memory(DISK_PIECE);
    int fd = piece ? open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600) : -1;
    if (fd >= 0 && !statvfs(dir, &fs)) {
        memset(piece, 0x3c, DISK_PIECE);
        double written = write_file(fd, piece, path, &err), read = written > 0 ? read_file(fd, piece) : 0;
        c->out->device.disk_bandwidth = fmin(written, read);
        c->out->device.disk = read > 0 ? (int64_t)fs.f_bavail * (int64_t)fs.f_frsize : 0;
    }
    if (fd >= 0) close(fd), unlink(path);
    if (piece) hd_unmap_memory(piece, DISK_PIECE);
    hd_calibration_step(c, seconds, "disk");
    return 0;
}
