#include "serve/lm_ranks.h"

#include <stdio.h>

#define DEADLINE 300.0 /* seconds that a rank waits for another within a step */

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

/* Ranks that have cores enough keep to their own; the caller is left where it is. */
static int keep_to_cores(void *arg, int rank, hd_error *err)
{
    const hd_lm_ranks *r = arg;
    (void)err;
    if (rank && r->n * r->threads <= hd_core_count()) hd_thread_pin(rank * r->threads, r->threads);
    return 0;
}

int hd_lm_ranks_start(hd_lm_ranks *r, int n, int threads, hd_error *err)
{
    *r = (hd_lm_ranks){.n = n, .threads = threads / n > 1 ? threads / n : 1};
    if (n == 1) return 0;
    r->failed = hd_calloc((size_t)n, sizeof *r->failed);
    r->comm = hd_calloc((size_t)n, sizeof *r->comm);
    int rc = r->failed && r->comm ? 0 : hd_fail_memory(err, (size_t)n * sizeof *r->failed, "ranks");
    if (!rc && !(r->crew = hd_team_new(n, false, err))) rc = err->code;
    if (!rc) rc = hd_comm_local(n, DEADLINE, r->comm, err);
    if (!rc) return hd_lm_ranks_run(r, keep_to_cores, r, err);
    hd_free(r->comm);
    r->comm = NULL;
    hd_lm_ranks_end(r);
    return rc;
}

void hd_lm_ranks_end(hd_lm_ranks *r)
{
    for (int i = 0; i < r->n && r->comm; i++) hd_comm_free(r->comm[i]);
    hd_team_free(r->crew);
    hd_free(r->comm);
    hd_free(r->failed);
    *r = (hd_lm_ranks){0};
}

const hd_rank *hd_lm_ranks_rank(const hd_lm_ranks *r, int rank, hd_rank *out)
{
    if (!r->comm) return NULL;
    *out = (hd_rank){.rank = rank, .comm = r->comm[rank]};
    return out;
}

/* ---- running ---- */

typedef struct running { hd_lm_ranks *ranks; int (*job)(void *arg, int rank, hd_error *err); void *arg; } running;

static void run_rank(void *arg, int rank)
{
    const running *x = arg;
    hd_error *own = &x->ranks->failed[rank];
    *own = (hd_error){0};
    if (x->job(x->arg, rank, own)) hd_comm_abort(x->ranks->comm[rank], own->message);
}

/* A rank that fails because another has says so with HD_ECOMM. */
static const hd_error *first_cause(const hd_lm_ranks *r)
{
    const hd_error *found = NULL;
    for (int i = 0; i < r->n; i++) {
        const hd_error *e = &r->failed[i];
        if (e->code && (!found || (found->code == HD_ECOMM && e->code != HD_ECOMM))) found = e;
    }
    return found;
}

int hd_lm_ranks_run(hd_lm_ranks *r, int (*job)(void *arg, int rank, hd_error *err), void *arg, hd_error *err)
{
    running x = {r, job, arg};
    if (r->n == 1) return job(arg, 0, err);
    hd_team_run(r->crew, run_rank, &x);
    const hd_error *e = first_cause(r);
    return e ? hd_fail(err, e->code, "%s", e->message) : 0;
}
