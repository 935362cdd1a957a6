#include "serve/lm_ranks.h"

#include "train/ranks.h"

#define DEADLINE 300.0 /* seconds that a thread waits for another within a step. Processes wait for the next step, too, however long that takes */

/* ---- what may be asked for ---- */

static int refuse(const char *what, const char *instead, hd_error *err)
{
    return hd_fail(err, HD_EUNSUPPORTED, "--parallel: a model is served over tp=N only, not %s: %s", what, instead);
}

int hd_lm_parallel_parse(const char *text, hd_parallel *out, hd_error *err)
{
    int rc = hd_parallel_parse(text ? text : "", out, err);
    if (rc) return rc;
    if (out->n_parts || out->pp > 1) return refuse("pp", "leave it out, or give tp=N with as many ranks", err);
    if (out->dp > 1) return refuse("dp", "start as many servers, each with a port of its own", err);
    if (out->cp > 1) return refuse("cp", "give tp=N with as many ranks", err);
    uint32_t rest = out->given & ~(1u << HD_KEY_TP | 1u << HD_KEY_DP | 1u << HD_KEY_PP | 1u << HD_KEY_CP);
    for (int k = 0; k < HD_PARALLEL_KEYS; k++)
        if (rest >> k & 1) return refuse(hd_parallel_key_name((hd_parallel_key)k), "leave it out", err);
    out->overlap = 0; /* every transfer is waited for at once: nothing could run beside it */
    out->whole_sums = true;
    return 0;
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

static int start_threads(hd_lm_ranks *r, hd_error *err)
{
    if (!(r->crew = hd_team_new(r->n, false, err))) return err->code;
    int rc = hd_comm_local(r->n, DEADLINE, r->comm, err);
    return rc ? rc : hd_lm_ranks_run(r, keep_to_cores, r, err);
}

static int start_process(hd_lm_ranks *r, hd_error *err)
{
    int size = 1;
    hd_comm_mpi_launched(&r->first, &size);
    if (size == r->n) return hd_comm_mpi(0, r->comm, err);
    return hd_fail(err, HD_EINVAL, "--parallel is for %d ranks, and mpirun started %d processes", r->n, size);
}

int hd_lm_ranks_start(hd_lm_ranks *r, int n, int threads, bool mpi, hd_error *err)
{
    int share = threads / (mpi ? hd_ranks_on_host(n) : n);
    *r = (hd_lm_ranks){.n = n, .here = mpi ? 1 : n, .threads = share > 1 ? share : 1};
    if (n == 1) return 0;
    r->failed = hd_calloc((size_t)r->here, sizeof *r->failed);
    r->comm = hd_calloc((size_t)r->here, sizeof *r->comm);
    int rc = r->failed && r->comm ? 0 : hd_fail_memory(err, (size_t)n * sizeof *r->failed, "ranks");
    if (!rc) rc = (mpi ? start_process : start_threads)(r, err);
    if (rc) hd_lm_ranks_end(r);
    return rc;
}

void hd_lm_ranks_end(hd_lm_ranks *r)
{
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

typedef struct running { hd_lm_ranks *ranks; int (*job)(void *arg, int i, hd_error *err); void *arg; } running;

static void run_rank(void *arg, int i)
{
    const running *x = arg;
    hd_error *own = &x->ranks->failed[i];
    *own = (hd_error){0};
    if (x->job(x->arg, i, own)) hd_comm_abort(x->ranks->comm[i], own->message);
}

/* A rank that fails because another has says so with HD_ECOMM. */
static const hd_error *first_cause(const hd_lm_ranks *r)
{
    const hd_error *found = NULL;
    for (int i = 0; i < r->here; i++) {
        const hd_error *e = &r->failed[i];
        if (e->code && (!found || (found->code == HD_ECOMM && e->code != HD_ECOMM))) found = e;
    }
    return found;
}

int hd_lm_ranks_run(hd_lm_ranks *r, int (*job)(void *arg, int i, hd_error *err), void *arg, hd_error *err)
{
    running x = {r, job, arg};
    if (r->n == 1) return job(arg, 0, err);
    if (r->crew) hd_team_run(r->crew, run_rank, &x);
    else run_rank(&x, 0);
    const hd_error *e = first_cause(r);
    return e ? hd_fail(err, e->code, "%s", e->message) : 0;
}
