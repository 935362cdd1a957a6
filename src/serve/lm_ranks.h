/* lm_ranks.h: the ranks of a served model, which do the same thing at the same time, each to its pieces: threads of this process, or one of an MPI job's
 * processes each (lm_orders.h: how these come to do the same thing).
 *
 * One rank is the caller's own thread and needs nothing else. Of several in a process the first is the caller's, the others are a crew that waits
 * between steps. */
#ifndef HD_SERVE_LM_RANKS_H
#define HD_SERVE_LM_RANKS_H

#include "base/thread.h"
#include "exec/exec.h"
#include "plan/parallel.h"

typedef struct hd_lm_ranks {
    int n;            /* at least 1 */
    int here, first;  /* as many of them are of this process, from this one on */
    int threads;      /* of each rank's team */
    hd_team *crew;    /* NULL: one rank here */
    hd_comm **comm;   /* [here] endpoints; NULL: one rank */
    hd_error *failed; /* [here] of the running job */
} hd_lm_ranks;

/* Reads a --parallel (NULL or "": one rank). HD_EINVAL or HD_EUNSUPPORTED and one line for what serving doesn't take: only tp=N splits a served model. */
int hd_lm_parallel_parse(const char *text, hd_parallel *out, hd_error *err);

/* n ranks; those of a machine share so many threads, each with at least one. mpi: they are the processes of the MPI job that this one is of. On failure *r is
 * empty. */
int hd_lm_ranks_start(hd_lm_ranks *r, int n, int threads, bool mpi, hd_error *err);
void hd_lm_ranks_end(hd_lm_ranks *r); /* once nothing uses the endpoints */

/* job(arg, i, err) on the thread of every rank of this process, i from 0 to here - 1; returns when all have ended. If one fails, the others' waits end too, and
 * it is that one's error. */
int hd_lm_ranks_run(hd_lm_ranks *r, int (*job)(void *arg, int i, hd_error *err), void *arg, hd_error *err);

/* For hd_exec_new_rank: rank i of this process; *out is filled. NULL: the only one. */
const hd_rank *hd_lm_ranks_rank(const hd_lm_ranks *r, int i, hd_rank *out);
/* Ends the waits of the ranks of other processes, if there are any. */
void hd_lm_ranks_abort(const hd_lm_ranks *r, const char *why);

#endif
