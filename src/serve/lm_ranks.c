#include "serve/lm_ranks.h"

#include "train/ranks.h"

#define DEADLINE 300.0 /* seconds that a thread waits for another within a step. Processes wait for the next step, too, however long that takes */

/* ---- what may be asked for ---- */

static int refuse(const char *what, const char *instead, hd_error *err)
{
    return hd_fail(err, HD_EUNSUPPORTED, "--parallel: a model is served over tp=N and pp=N only, not %s: %s", what, instead);
}

int hd_lm_parallel_parse(const char *text, hd_parallel *out, hd_error *err)
{
    const uint32_t looked_at = 1u << HD_KEY_TP | 1u << HD_KEY_DP | 1u << HD_KEY_PP | 1u << HD_KEY_CP | 1u << HD_KEY_LAYERS;
    int rc = hd_parallel_parse(text ? text : "", out, err);
    if (rc) return rc;
    if (out->n_parts) return refuse("stages of different meshes", "give tp=N,pp=N", err);
    if (out->dp > 1) return refuse("dp", "start as many servers, each with a port of its own", err);
    if (out->cp > 1) return refuse("cp", "give tp=N with as many ranks", err);
    if (out->pp > HD_LM_JOBS / 2) return hd_fail(err, HD_EUNSUPPORTED, "--parallel: a model is served over at most pp=%d, not %lld", HD_LM_JOBS / 2, (long long)out->pp);
    for (int k = 0; k < HD_PARALLEL_KEYS; k++)
        if ((out->given & ~looked_at) >> k & 1) return refuse(hd_parallel_key_name((hd_parallel_key)k), "leave it out", err);
    out->overlap = 0; /* every transfer is waited for at once: nothing could run beside it */
    out->whole_sums = true;
    return 0;
}

/* ---- one job ---- */

static hd_error *failure(const hd_lm_ranks *r, uint64_t job, int i) { return &r->failed[job % HD_LM_JOBS * (uint64_t)r->here + (uint64_t)i]; }

static void do_job(hd_lm_ranks *r, uint64_t number, int i)
{
    const hd_lm_posted *p = &r->jobs[number % HD_LM_JOBS];
    hd_error *own = failure(r, number, i);
    *own = (hd_error){0};
    if (p->job(p->arg, i, own) && r->comm) hd_comm_abort(r->comm[i], own->message);
}

static void run_member(void *arg, int i)
{
    hd_lm_ranks *r = arg;
    do_job(r, r->posted - 1, i);
}

static void *work(void *arg)
{
    hd_lm_worker *w = arg;
    hd_lm_ranks *r = w->ranks;
    pthread_mutex_lock(&r->lock);
    for (;;) {
        while (!r->stop && w->done == r->posted) pthread_cond_wait(&r->changed, &r->lock);
        if (w->done == r->posted) break;
        pthread_mutex_unlock(&r->lock);
        do_job(r, w->done, w->i);
        pthread_mutex_lock(&r->lock);
        w->done++;
        pthread_cond_broadcast(&r->changed);
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

/* ---- life cycle ---- */

/* Threads that have cores enough keep to their own; the caller is left where it is. */
static int keep_to_cores(void *arg, int i, hd_error *err)
{
    const hd_lm_ranks *r = arg;
    (void)err;
    if (i && r->n * r->threads <= hd_core_count()) hd_thread_pin(i * r->threads, r->threads);
    return 0;
}

static int start_crew(hd_lm_ranks *r, hd_error *err)
{
    if (!(r->crew = hd_team_new(r->here, false, err))) return err->code;
    return hd_lm_ranks_run(r, keep_to_cores, r, err);
}

static int start_queue(hd_lm_ranks *r, hd_error *err)
{
    if (!(r->workers = hd_calloc((size_t)r->here, sizeof *r->workers))) return hd_fail_memory(err, (size_t)r->here * sizeof *r->workers, "ranks");
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->changed, NULL);
    for (; r->n_workers < r->here; r->n_workers++) {
        hd_lm_worker *w = &r->workers[r->n_workers];
        *w = (hd_lm_worker){.ranks = r, .i = r->n_workers};
        if (pthread_create(&w->thread, NULL, work, w)) return hd_fail(err, HD_ENOMEM, "a thread for rank %d could not be started", r->n_workers);
    }
    return 0;
}

static int start_process(hd_lm_ranks *r, hd_error *err)
{
    int size = 1;
    hd_comm_mpi_launched(&r->first, &size);
    if (size == r->n) return hd_comm_mpi(0, r->comm, err);
    return hd_fail(err, HD_EINVAL, "--parallel is for %d ranks, and mpirun started %d processes", r->n, size);
}

int hd_lm_ranks_start(hd_lm_ranks *r, int n, int threads, bool queue, bool mpi, hd_error *err)
{
    int share = threads / (mpi ? hd_ranks_on_host(n) : n);
    *r = (hd_lm_ranks){.n = n, .here = mpi ? 1 : n, .threads = share > 1 ? share : 1};
    r->failed = hd_calloc((size_t)r->here * HD_LM_JOBS, sizeof *r->failed);
    if (n > 1) r->comm = hd_calloc((size_t)r->here, sizeof *r->comm);
    int rc = r->failed && (r->comm || n == 1) ? 0 : hd_fail_memory(err, (size_t)n * HD_LM_JOBS * sizeof *r->failed, "ranks");
    if (!rc && n > 1) rc = mpi ? start_process(r, err) : hd_comm_local(n, DEADLINE, r->comm, err);
    if (!rc && n > 1 && queue && !r->first) rc = start_queue(r, err); /* other processes do one order after the other */
    else if (!rc && r->here > 1) rc = start_crew(r, err);
    if (rc) hd_lm_ranks_end(r);
    return rc;
}

static void end_queue(hd_lm_ranks *r)
{
    pthread_mutex_lock(&r->lock);
    r->stop = true;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
    for (int i = 0; i < r->n_workers; i++) pthread_join(r->workers[i].thread, NULL);
    pthread_mutex_destroy(&r->lock);
    pthread_cond_destroy(&r->changed);
    hd_free(r->workers);
}

void hd_lm_ranks_end(hd_lm_ranks *r)
{
    if (r->workers) end_queue(r);
    for (int i = 0; i < r->here && r->comm; i++)
        if (r->comm[i]) hd_comm_free(r->comm[i]);
    hd_team_free(r->crew);
    hd_free(r->comm);
    hd_free(r->failed);
    *r = (hd_lm_ranks){0};
}

const hd_rank *hd_lm_ranks_rank(const hd_lm_ranks *r, int i, hd_rank *out)
{
    if (!r->comm) return NULL;
    *out = (hd_rank){.rank = r->first + i, .comm = r->comm[i]};
    return out;
}

void hd_lm_ranks_abort(const hd_lm_ranks *r, const char *why)
{
    if (r->here < r->n && r->comm) hd_comm_abort(r->comm[0], why);
}

/* ---- running ---- */

uint64_t hd_lm_ranks_post(hd_lm_ranks *r, hd_lm_job job, void *arg)
{
    if (r->workers) pthread_mutex_lock(&r->lock);
    uint64_t number = r->posted++;
    r->jobs[number % HD_LM_JOBS] = (hd_lm_posted){job, arg};
    if (r->workers) {
        pthread_cond_broadcast(&r->changed);
        pthread_mutex_unlock(&r->lock);
    } else if (r->crew) {
        hd_team_run(r->crew, run_member, r);
    } else {
        do_job(r, number, 0);
    }
    return number;
}

static bool is_done(const hd_lm_ranks *r, uint64_t number)
{
    for (int i = 0; i < r->n_workers; i++)
        if (r->workers[i].done <= number) return false;
    return true;
}

/* A rank that fails because another has says so with HD_ECOMM. */
static const hd_error *first_cause(const hd_lm_ranks *r, uint64_t number)
{
    const hd_error *found = NULL;
    for (int i = 0; i < r->here; i++) {
        const hd_error *e = failure(r, number, i);
        if (e->code && (!found || (found->code == HD_ECOMM && e->code != HD_ECOMM))) found = e;
    }
    return found;
}

int hd_lm_ranks_wait(hd_lm_ranks *r, uint64_t number, hd_error *err)
{
    if (r->workers) {
        pthread_mutex_lock(&r->lock);
        while (!is_done(r, number)) pthread_cond_wait(&r->changed, &r->lock);
        pthread_mutex_unlock(&r->lock);
    }
    const hd_error *e = first_cause(r, number);
    return e ? hd_fail(err, e->code, "%s", e->message) : 0;
}

int hd_lm_ranks_run(hd_lm_ranks *r, hd_lm_job job, void *arg, hd_error *err)
{
    return hd_lm_ranks_wait(r, hd_lm_ranks_post(r, job, arg), err);
}
