/* bench_parallel.c: training steps on several local ranks of one thread against one rank of as many threads, taking turns in one process.
 *
 *   bench_parallel [key=value ...]
 * keys: layers, width, heads, vocab, batch, sequence, micro (micro-batches of batch x sequence tokens a step), precision (f32|bf16), ranks,
 *       plans (texts of --parallel, separated by /), rounds, profile (0|1: time by op on standard error), table (NAME: lines for people
 *       instead of JSON)
 * Without keys: GPT-2 of 12 layers, width 512, vocabulary 16384 (46 M parameters), 8 micro-batches of 4 x 256 tokens, f32; dp=2 and pp=2
 * (1F1B).
 *
 * All sides have the same job. A round is one step of each; a ratio is the median of the rounds' ratios. Threads that have no turn sleep.
 * "busy" is the processor time that each rank's first thread takes for a step: what it waits longer than a moment for is not in it. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/mem.h"
#include "base/rng.h"
#include "base/term.h"
#include "base/thread.h"
#include "models/lm.h"
#include "train/session.h"

enum { MAX_RANKS = 16, MAX_SIDES = 5, MAX_ROUNDS = 256 };

typedef struct bench bench;

typedef struct member {
    bench *b;
    int side, rank;
    hd_comm *comm;
    hd_session session;
    int32_t *data; /* tokens, targets, positions, segments of a micro-batch */
    int64_t *samples;
    pthread_t thread;
    double busy[MAX_ROUNDS + 2]; /* processor seconds of its first thread, by step: waits sleep soon */
} member;

typedef struct side {
    char plan[64]; /* "": one rank */
    int ranks, threads;
    member member[MAX_RANKS];
    double seconds[MAX_ROUNDS];
} side;

struct bench {
    int64_t layers, width, heads, vocab, batch, sequence, micro, ranks, rounds, profile;
    hd_dtype precision;
    const char *plans, *table;
    side side[MAX_SIDES];
    int sides;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int turn, turns, busy; /* whose; how many so far; members at work. lock */
    bool stop;
    hd_error err;          /* the first; lock */
};

/* ---- a rank ---- */

static hd_graph *make_graph(const bench *b, hd_error *err)
{
    hd_lm_config c;
    hd_lm_config_preset(&c, HD_ARCH_GPT2);
    c.layers = b->layers, c.width = b->width, c.heads = b->heads, c.kv_heads = b->heads, c.vocab = b->vocab, c.mlp_width = 4 * b->width;
    c.max_positions = b->sequence < 1024 ? 1024 : b->sequence;
    c.embd_dropout = c.resid_dropout = c.attn_dropout = 0;
    if (hd_lm_config_check(&c, "bench", err)) return NULL;
    hd_lm_options lm = {
        .mode = HD_LM_TRAIN, .compute = b->precision, .param = HD_F32, .tokens = b->batch * b->sequence, .sequence = b->sequence};
    return hd_lm_graph(&c, &lm, err);
}

static int make_options(const member *m, hd_session_options *o, hd_error *err)
{
    const bench *b = m->b;
    const side *s = &b->side[m->side];
    *o = (hd_session_options){.plan = hd_plan_default(), .seed = 1, .sequence = b->sequence};
    o->plan.threads = s->threads;
    o->plan.precision = b->precision;
    o->plan.micro_batches = (int)b->micro;
    o->step = (hd_step_options){.optimizer = HD_ADAMW, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .clip = 1};
    o->rank = (hd_rank){m->rank, m->comm};
    return s->plan[0] ? hd_parallel_parse(s->plan, &o->parallel, err) : 0;
}

static int make_data(member *m, hd_error *err)
{
    const bench *b = m->b;
    int64_t n = b->batch * b->sequence;
    hd_rng r = hd_rng_new(7);
    m->data = hd_malloc(4 * (size_t)n * sizeof *m->data);
    m->samples = hd_malloc((size_t)n * sizeof *m->samples);
    if (!m->data || !m->samples) return hd_fail_memory(err, 4 * (size_t)n * sizeof *m->data, "a micro-batch");
    for (int64_t i = 0; i < 2 * n; i++) m->data[i] = (int32_t)hd_rng_below(&r, (uint64_t)b->vocab);
    for (int64_t i = 0; i < n; i++) {
        m->data[2 * n + i] = (int32_t)(i % b->sequence);
        m->data[3 * n + i] = (int32_t)(i / b->sequence);
        m->samples[i] = i / b->sequence;
    }
    return 0;
}

static int open_member(member *m, hd_error *err)
{
    const side *s = &m->b->side[m->side];
    hd_session_options o;
    int rc = make_options(m, &o, err);
    hd_thread_pin(m->rank * s->threads, s->threads);
    hd_graph *g = rc ? NULL : make_graph(m->b, err);
    if (!g) return err->code;
    rc = hd_session_init(&m->session, g, NULL, &o, err);
    if (!rc) rc = hd_session_start(&m->session, &o, err);
    if (!rc) rc = make_data(m, err);
    if (!rc && m->b->profile) rc = hd_exec_profile(m->session.exec[HD_TRAIN_PROGRAM], true, err);
    hd_thread_pin(m->rank * s->threads, 1); /* the team's helpers have theirs */
    return rc;
}

static int fill(void *arg, hd_exec *e, hd_segment_kind kind, hd_call *call, hd_error *err)
{
    const member *m = arg;
    int64_t n = m->b->batch * m->b->sequence;
    (void)call;
    if (kind != HD_SEGMENT_FORWARD) return 0;
    int rc = hd_exec_put(e, "tokens", m->data, err);
    if (!rc) rc = hd_exec_put(e, "targets", m->data + n, err);
    if (!rc) rc = hd_exec_put(e, "positions", m->data + 2 * n, err);
    if (!rc) rc = hd_exec_put(e, "segments", m->data + 3 * n, err);
    return rc ? rc : hd_exec_put(e, "samples", m->samples, err);
}

static int run_step(member *m, int step, hd_error *err)
{
    hd_exec *e = m->session.exec[HD_TRAIN_PROGRAM];
    float lr = 1e-4f, number = (float)step, share = 1 / (float)(m->b->micro * m->b->batch * m->b->sequence);
    int64_t key[2] = {5, step};
    hd_exec_hooks hooks = {.arg = m, .before = fill};
    int rc = hd_exec_put(e, "lr", &lr, err);
    if (!rc) rc = hd_exec_put(e, "step", &number, err);
    if (!rc) rc = hd_exec_put(e, "inv_divisor", &share, err);
    if (!rc) rc = hd_exec_put(e, "key", key, err);
    return rc ? rc : hd_exec_step(e, &hooks, err);
}

/* ---- taking turns ---- */

static double thread_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void work_done(member *m, int rc, const hd_error *err)
{
    bench *b = m->b;
    pthread_mutex_lock(&b->lock);
    if (rc && (!b->err.code || b->err.code == HD_ECOMM)) b->err = *err;
    if (rc) b->stop = true;
    b->busy--;
    pthread_cond_broadcast(&b->changed);
    pthread_mutex_unlock(&b->lock);
    if (rc && m->comm) hd_comm_abort(m->comm, err->message);
}

/* Waits for the next turn of this member's side; its number, or 0 at the end. */
static int next_turn(member *m, int seen)
{
    bench *b = m->b;
    pthread_mutex_lock(&b->lock);
    while (!b->stop && (b->turn != m->side || b->turns == seen)) pthread_cond_wait(&b->changed, &b->lock);
    int turn = b->stop ? 0 : b->turns;
    pthread_mutex_unlock(&b->lock);
    return turn;
}

static void *member_main(void *arg)
{
    member *m = arg;
    hd_error err = {0};
    int turn = next_turn(m, 0);
    if (!turn) return NULL;
    int rc = open_member(m, &err);
    work_done(m, rc, &err);
    for (int step = 1; !rc && (turn = next_turn(m, turn)); step++) {
        double begin = thread_seconds();
        rc = run_step(m, step, &err);
        m->busy[step - 1] = thread_seconds() - begin;
        work_done(m, rc, &err);
    }
    return NULL;
}

/* One turn of a side, in seconds. */
static double give_turn(bench *b, int which)
{
    double begin = hd_time();
    pthread_mutex_lock(&b->lock);
    b->turn = which;
    b->turns++;
    b->busy = b->side[which].ranks;
    pthread_cond_broadcast(&b->changed);
    while (b->busy) pthread_cond_wait(&b->changed, &b->lock);
    pthread_mutex_unlock(&b->lock);
    return hd_time() - begin;
}

static void stop_all(bench *b)
{
    pthread_mutex_lock(&b->lock);
    b->stop = true;
    pthread_cond_broadcast(&b->changed);
    pthread_mutex_unlock(&b->lock);
}

/* ---- all ---- */

static int start_side(bench *b, int which, hd_error *err)
{
    side *s = &b->side[which];
    hd_comm *comm[MAX_RANKS] = {NULL};
    int rc = s->plan[0] ? hd_comm_local(s->ranks, 120, comm, err) : 0;
    for (int r = 0; r < s->ranks && !rc; r++) {
        s->member[r] = (member){.b = b, .side = which, .rank = r, .comm = comm[r]};
        if (pthread_create(&s->member[r].thread, NULL, member_main, &s->member[r]))
            rc = hd_fail(err, HD_ENOMEM, "cannot start a thread for rank %d", r);
    }
    if (!rc) give_turn(b, which);
    return rc ? rc : b->err.code;
}

static void end_side(bench *b, side *s)
{
    for (int r = 0; r < s->ranks; r++) {
        member *m = &s->member[r];
        if (m->thread) pthread_join(m->thread, NULL);
        hd_exec *e = m->session.exec[HD_TRAIN_PROGRAM];
        if (e && b->profile) {
            hd_str text;
            hd_str_init(&text);
            hd_exec_profile_print(e, &text);
            fprintf(stderr, "%s rank %d\n%s", s->plan[0] ? s->plan : "one rank", r, text.data);
            hd_str_free(&text);
        }
        hd_session_free(&m->session);
        hd_comm_free(m->comm);
        hd_free(m->data);
        hd_free(m->samples);
    }
}

static void set_sides(bench *b)
{
    b->side[b->sides++] = (side){.ranks = 1, .threads = (int)b->ranks};
    for (const char *at = b->plans; at && *at && b->sides < MAX_SIDES;) {
        size_t n = strcspn(at, "/");
        side *s = &b->side[b->sides++];
        *s = (side){.ranks = (int)b->ranks, .threads = 1};
        snprintf(s->plan, sizeof s->plan, "%.*s", (int)n, at);
        at += n + (at[n] == '/');
    }
}

static int run(bench *b)
{
    hd_error err = {0};
    int rc = 0;
    set_sides(b);
    for (int i = 0; i < b->sides && !rc; i++) rc = start_side(b, i, &err);
    for (int i = 0; i < b->sides && !rc && !b->err.code; i++) give_turn(b, i);
    for (int round = 0; round < b->rounds && !rc; round++)
        for (int i = 0; i < b->sides && !b->err.code; i++) b->side[i].seconds[round] = give_turn(b, i);
    stop_all(b);
    for (int i = 0; i < b->sides; i++) end_side(b, &b->side[i]);
    if (!b->err.code) b->err = err;
    return b->err.code;
}

/* ---- results ---- */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const double *x, int64_t n)
{
    double sorted[MAX_ROUNDS];
    memcpy(sorted, x, (size_t)n * sizeof *x);
    qsort(sorted, (size_t)n, sizeof *x, by_value);
    return sorted[n / 2];
}

static double ratio(const bench *b, int which)
{
    double x[MAX_ROUNDS];
    for (int64_t i = 0; i < b->rounds; i++) x[i] = b->side[0].seconds[i] / b->side[which].seconds[i];
    return median(x, b->rounds);
}

static void print(const bench *b)
{
    double tokens = (double)(b->micro * b->batch * b->sequence);
    if (!b->table)
        printf("{\"ranks\": %lld, \"tokens\": %.0f, \"rounds\": %lld, \"sides\": [", (long long)b->ranks, tokens, (long long)b->rounds);
    for (int i = 0; i < b->sides; i++) {
        const side *s = &b->side[i];
        double speed = tokens / median(s->seconds, b->rounds);
        if (b->table) {
            printf("%-14s %-4s %-24s %9.0f tokens/s  %.3f of one rank's\n", b->table, hd_dtype_name(b->precision), i ? s->plan : "one rank", speed,
                   ratio(b, i));
            continue;
        }
        printf("%s{\"plan\": \"%s\", \"tokens_per_second\": %.1f, \"ratio\": %.4f, \"busy\": [", i ? ", " : "", s->plan, speed, ratio(b, i));
        for (int r = 0; r < s->ranks; r++) printf("%s%.4f", r ? ", " : "", median(s->member[r].busy + 1, b->rounds));
        printf("]}");
    }
    if (!b->table) printf("]}\n");
}

static bool set_key(bench *b, const char *key, const char *value)
{
    const struct { const char *name; int64_t *at; } whole[] = {
        {"layers", &b->layers},     {"width", &b->width}, {"heads", &b->heads}, {"vocab", &b->vocab},   {"batch", &b->batch},
        {"sequence", &b->sequence}, {"micro", &b->micro}, {"ranks", &b->ranks}, {"rounds", &b->rounds}, {"profile", &b->profile},
    };
    for (size_t i = 0; i < sizeof whole / sizeof whole[0]; i++)
        if (!strcmp(key, whole[i].name)) return *whole[i].at = atoll(value), true;
    if (!strcmp(key, "precision")) return !hd_dtype_parse(value, &b->precision);
    if (!strcmp(key, "plans")) return b->plans = value, true;
    if (!strcmp(key, "table")) return b->table = value, true;
    return false;
}

static bool parse(bench *b, int argc, char **argv)
{
    *b = (bench){.layers = 12, .width = 512, .heads = 8, .vocab = 16384, .batch = 4, .sequence = 256, .micro = 8, .ranks = 2, .rounds = 3,
                 .plans = "dp=2/pp=2,schedule=1f1b", .precision = HD_F32, .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER, .turn = -1};
    for (int i = 1; i < argc; i++) {
        char *eq = strchr(argv[i], '=');
        if (eq) *eq = 0;
        if (!eq || !set_key(b, argv[i], eq + 1)) return fprintf(stderr, "bench_parallel: there is no key \"%s\"\n", argv[i]), false;
    }
    if (b->ranks < 1 || b->ranks > MAX_RANKS || b->rounds < 1 || b->rounds > MAX_ROUNDS)
        return fprintf(stderr, "bench_parallel: ranks is 1 to %d, rounds 1 to %d\n", MAX_RANKS, MAX_ROUNDS), false;
    return true;
}

int main(int argc, char **argv)
{
    static bench b;
    if (!parse(&b, argc, argv)) return 2;
    int rc = run(&b);
    if (rc) fprintf(stderr, "bench_parallel: %s\n", b.err.message);
    else print(&b);
    return rc ? 1 : 0;
}
