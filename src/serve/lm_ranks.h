/* lm_ranks.h: the ranks of a served model, which do the same jobs in the same order, each to its pieces: threads of this process, or one of an MPI job's
 * processes each (lm_orders.h: how these come to do the same thing).
 *
 * One rank is the caller's own thread and needs nothing else. Ranks of which only one job is under way at a time are the caller and a crew that waits between
 * jobs. Where there may be more, as in a pipeline, each rank of this process has a thread that takes jobs from a queue. */
#ifndef HD_SERVE_LM_RANKS_H
#define HD_SERVE_LM_RANKS_H

#include <pthread.h>
#include "base/thread.h"
#include "exec/exec.h"
#include "plan/parallel.h"

typedef int (*hd_lm_job)(void *arg, int i, hd_error *err); /* on rank i of this process, from 0 to here - 1 */

enum { HD_LM_JOBS = 64 }; /* posted and not waited for, at most */

typedef struct hd_lm_posted { hd_lm_job job; void *arg; } hd_lm_posted;
typedef struct hd_lm_worker { struct hd_lm_ranks *ranks; int i; pthread_t thread; uint64_t done; /* jobs */ } hd_lm_worker;

typedef struct hd_lm_ranks {
    int n;            /* at least 1 */
    int here, first;  /* as many of them are of this process, from this one on */
    int threads;      /* of each rank's team */
    hd_comm **comm;   /* [here] endpoints; NULL: one rank */
    hd_team *crew;    /* NULL: one rank here, or a queue */
    hd_lm_worker *workers; int n_workers; /* [here] with a queue */
    hd_lm_posted jobs[HD_LM_JOBS];
    hd_error *failed; /* [HD_LM_JOBS][here] */
    uint64_t posted;  /* jobs, since the start */
    bool stop;
    pthread_mutex_t lock; /* with a queue: of posted, done and stop */
    pthread_cond_t changed;
} hd_lm_ranks;

/* Reads a --parallel (NULL or "": one rank). HD_EINVAL or HD_EUNSUPPORTED and one line for what serving doesn't take: only tp=N and pp=N split a served model. */
int hd_lm_parallel_parse(const char *text, hd_parallel *out, hd_error *err);

/* n ranks; those of a machine share so many threads, each with at least one. queue: jobs are posted before earlier ones are done. mpi: they are the processes
 * of the MPI job that this one is of. *r stays where it is. On failure *r is empty. */
int hd_lm_ranks_start(hd_lm_ranks *r, int n, int threads, bool queue, bool mpi, hd_error *err);
void hd_lm_ranks_end(hd_lm_ranks *r); /* once nothing uses the endpoints */

/* A job for every rank of this process, behind those posted before. Without a queue it has been done when this returns. Returns its number. */
uint64_t hd_lm_ranks_post(hd_lm_ranks *r, hd_lm_job job, void *arg);
/* Until a posted job has ended on all ranks here. If one fails, the others' waits end too, and it is that one's error. */
int hd_lm_ranks_wait(hd_lm_ranks *r, uint64_t number, hd_error *err);
/* Both. */
int hd_lm_ranks_run(hd_lm_ranks *r, hd_lm_job job, void *arg, hd_error *err);

/* For hd_exec_new_rank: rank i of this process; *out is filled. NULL: the only one. */
const hd_rank *hd_lm_ranks_rank(const hd_lm_ranks *r, int i, hd_rank *out);
/* Ends the waits of the ranks of other processes, if there are any. */
void hd_lm_ranks_abort(const hd_lm_ranks *r, const char *why);

#endif
