/* predict_run.h: training jobs of a few seconds on local ranks: their steps timed, their Programs for the simulator, and time by op of rank 0. For
 * checks/predict-local. */
#ifndef CHECK_PREDICT_RUN_H
#define CHECK_PREDICT_RUN_H

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "base/term.h"
#include "base/thread.h"
#include "models/lm.h"
#include "train/session.h"

enum { PREDICT_MAX_RANKS = 8, PREDICT_STEPS = 5, PREDICT_WARM = 2 };

typedef struct predict_model { const char *name; hd_architecture arch; int64_t layers, width, heads, kv_heads, mlp, vocab; } predict_model;

typedef struct predict_job {
    const predict_model *model;
    const char *parallel;  /* "": one rank */
    hd_dtype precision;
    int64_t micro, batch, sequence; /* micro-batches of batch x sequence tokens */
    int ranks, threads;    /* threads of each rank */
} predict_job;

typedef struct predict_crew predict_crew;

typedef struct predict_rank {
    predict_crew *crew;
    int rank;
    hd_comm *comm;
    hd_session session;
    int32_t *data;
    int64_t *samples;
    pthread_t thread;
    hd_error err;
} predict_rank;

struct predict_crew {
    const predict_job *job;
    predict_rank rank[PREDICT_MAX_RANKS];
    pthread_barrier_t gate;
    int steps;
    bool profile, told;  /* told: a step for each line of standard input, its seconds on standard output; else so many */
    bool stop;           /* by rank 0 before a gate */
    double seconds[64];  /* of each step, until the last rank is done */
    hd_str by_op;        /* of rank 0, when profile */
};

static inline hd_graph *predict_graph(const predict_job *j, hd_error *err)
{
    const predict_model *m = j->model;
    hd_lm_config c;
    hd_lm_config_preset(&c, m->arch);
    c.layers = m->layers, c.width = m->width, c.heads = m->heads, c.kv_heads = m->kv_heads, c.vocab = m->vocab, c.mlp_width = m->mlp;
    c.max_positions = 1024;
    c.embd_dropout = c.resid_dropout = c.attn_dropout = 0;
    if (hd_lm_config_check(&c, m->name, err)) return NULL;
    hd_lm_options lm = {.mode = HD_LM_TRAIN, .compute = j->precision, .param = HD_F32, .tokens = j->batch * j->sequence, .sequence = j->sequence};
    return hd_lm_graph(&c, &lm, err);
}

static inline int predict_options(const predict_job *j, int rank, hd_comm *comm, hd_session_options *o, hd_error *err)
{
    *o = (hd_session_options){.plan = hd_plan_default(), .seed = 1, .sequence = j->sequence};
    o->plan.threads = j->threads;
    o->plan.precision = j->precision;
    o->plan.micro_batches = (int)j->micro;
    o->step = (hd_step_options){.optimizer = HD_ADAMW, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .clip = 1};
    o->rank = (hd_rank){rank, comm};
    return j->parallel[0] ? hd_parallel_parse(j->parallel, &o->parallel, err) : 0;
}

/* A session with its graph and Program, nothing allocated yet. */
static inline int predict_session(const predict_job *j, int rank, hd_comm *comm, hd_session *s, hd_session_options *o, hd_error *err)
{
    int rc = predict_options(j, rank, comm, o, err);
    hd_graph *g = rc ? NULL : predict_graph(j, err);
    return g ? hd_session_init(s, g, NULL, o, err) : err->code;
}

/* ---- a rank ---- */

static inline int predict_data(predict_rank *r)
{
    const predict_job *j = r->crew->job;
    int64_t n = j->batch * j->sequence;
    hd_rng rng = hd_rng_new(7);
    r->data = hd_malloc(4 * (size_t)n * sizeof *r->data);
    r->samples = hd_malloc((size_t)n * sizeof *r->samples);
    if (!r->data || !r->samples) return hd_fail_memory(&r->err, 4 * (size_t)n * sizeof *r->data, "a micro-batch");
    for (int64_t i = 0; i < 2 * n; i++) r->data[i] = (int32_t)hd_rng_below(&rng, (uint64_t)j->model->vocab);
    for (int64_t i = 0; i < n; i++) {
        r->data[2 * n + i] = (int32_t)(i % j->sequence);
        r->data[3 * n + i] = (int32_t)(i / j->sequence);
        r->samples[i] = i / j->sequence;
    }
    return 0;
}

static inline int predict_fill(void *arg, hd_exec *e, hd_segment_kind kind, hd_call *call, hd_error *err)
{
    const predict_rank *r = arg;
    int64_t n = r->crew->job->batch * r->crew->job->sequence;
    static const char *const names[] = {"tokens", "targets", "positions", "segments"};
    int rc = 0;
    (void)call;
    if (kind != HD_SEGMENT_FORWARD) return 0;
    for (int i = 0; i < 4 && !rc; i++) rc = hd_exec_put(e, names[i], r->data + i * n, err);
    return rc ? rc : hd_exec_put(e, "samples", r->samples, err);
}

static inline int predict_step(predict_rank *r, int step)
{
    const predict_job *j = r->crew->job;
    hd_exec *e = r->session.exec[HD_TRAIN_PROGRAM];
    float lr = 1e-4f, number = (float)step, share = 1 / (float)(j->micro * j->batch * j->sequence);
    int64_t key[2] = {5, step};
    hd_exec_hooks hooks = {.arg = r, .before = predict_fill};
    int rc = hd_exec_put(e, "lr", &lr, &r->err);
    if (!rc) rc = hd_exec_put(e, "step", &number, &r->err);
    if (!rc) rc = hd_exec_put(e, "inv_divisor", &share, &r->err);
    if (!rc) rc = hd_exec_put(e, "key", key, &r->err);
    return rc ? rc : hd_exec_step(e, &hooks, &r->err);
}

static inline int predict_open(predict_rank *r)
{
    const predict_job *j = r->crew->job;
    hd_session_options o;
    if (j->ranks > 1 && j->ranks * j->threads <= hd_core_count()) hd_thread_pin(r->rank * j->threads, j->threads);
    int rc = predict_session(j, r->rank, r->comm, &r->session, &o, &r->err);
    if (!rc) rc = hd_session_start(&r->session, &o, &r->err);
    return rc ? rc : predict_data(r);
}

static inline void *predict_rank_main(void *arg)
{
    predict_rank *r = arg;
    predict_crew *c = r->crew;
    int rc = predict_open(r);
    if (rc && r->comm) hd_comm_abort(r->comm, r->err.message);
    for (int step = 0;; step++) {
        char line[16];
        if (r->rank == 0) c->stop = c->told ? !fgets(line, sizeof line, stdin) : step == c->steps;
        pthread_barrier_wait(&c->gate);
        if (c->stop) break;
        if (step == PREDICT_WARM && c->profile && !rc) rc = hd_exec_profile(r->session.exec[HD_TRAIN_PROGRAM], true, &r->err);
        pthread_barrier_wait(&c->gate);
        double begin = hd_time();
        if (!rc) rc = predict_step(r, step + 1);
        if (rc && r->comm) hd_comm_abort(r->comm, r->err.message);
        pthread_barrier_wait(&c->gate);
        if (r->rank == 0 && c->told) printf("%.9g 0\n", hd_time() - begin), fflush(stdout);
        else if (r->rank == 0) c->seconds[step] = hd_time() - begin;
    }
    if (!rc && r->rank == 0 && c->profile) hd_exec_profile_print(r->session.exec[HD_TRAIN_PROGRAM], &c->by_op);
    hd_session_free(&r->session);
    hd_free(r->data);
    hd_free(r->samples);
    return NULL;
}

/* All ranks; PREDICT_WARM steps and then PREDICT_STEPS, crew->seconds hold them all, or as many as are asked for. */
static inline int predict_measure(predict_crew *c, const predict_job *j, bool profile, bool told, hd_error *err)
{
    hd_comm *comm[PREDICT_MAX_RANKS] = {NULL};
    *c = (predict_crew){.job = j, .steps = PREDICT_WARM + PREDICT_STEPS, .profile = profile, .told = told};
    hd_str_init(&c->by_op);
    int rc = j->parallel[0] ? hd_comm_local(j->ranks, 120, comm, err) : 0;
    if (rc) return rc;
    pthread_barrier_init(&c->gate, NULL, (unsigned)j->ranks);
    for (int r = 0; r < j->ranks; r++) {
        c->rank[r] = (predict_rank){.crew = c, .rank = r, .comm = comm[r]};
        if (pthread_create(&c->rank[r].thread, NULL, predict_rank_main, &c->rank[r])) abort();
    }
    for (int r = 0; r < j->ranks; r++) pthread_join(c->rank[r].thread, NULL);
    for (int r = 0; r < j->ranks && !rc; r++)
        if (c->rank[r].err.code) rc = hd_fail(err, c->rank[r].err.code, "rank %d: %s", r, c->rank[r].err.message);
    for (int r = 0; r < j->ranks; r++)
        if (comm[r]) hd_comm_free(comm[r]);
    pthread_barrier_destroy(&c->gate);
    return rc;
}

/* ---- Programs: one of each stage, and all ranks' sessions as the process that runs them has them ---- */

typedef struct predict_programs { hd_session session[PREDICT_MAX_RANKS]; const hd_program *program[PREDICT_MAX_RANKS]; int ranks, n; } predict_programs;

static inline int predict_programs_make(const predict_job *j, predict_programs *p, hd_error *err)
{
    *p = (predict_programs){0};
    for (int r = 0; r < j->ranks; r++) {
        hd_session_options o;
        hd_session *s = &p->session[p->ranks];
        int rc = predict_session(j, r, NULL, s, &o, err);
        if (rc) return rc;
        p->ranks++;
        const hd_program *program = s->program[HD_TRAIN_PROGRAM];
        if (program->stage == p->n) p->program[p->n++] = program;
    }
    return 0;
}

static inline void predict_programs_free(predict_programs *p)
{
    for (int i = 0; i < p->ranks; i++) hd_session_free(&p->session[i]);
}

#endif
