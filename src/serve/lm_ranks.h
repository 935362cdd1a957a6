/* lm_ranks.h: the ranks of a served model: threads of this process that do the same thing at the same time, each to its pieces.
 *
 * One rank is the caller's own thread and needs nothing else. Of several the first is the caller's, the others are a crew that waits between the steps. */
#ifndef HD_SERVE_LM_RANKS_H
#define HD_SERVE_LM_RANKS_H

#include "base/thread.h"
#include "exec/exec.h"
#include "plan/parallel.h"

typedef struct hd_lm_ranks {
    int n;            /* at least 1 */
    int threads;      /* of each rank's team */
    hd_team *crew;    /* NULL: one rank */
    hd_comm **comm;   /* [n] endpoints; NULL: one rank */
    hd_error *failed; /* [n] by rank, of the running job */
} hd_lm_ranks;

/* Reads a --parallel (NULL or "": one rank). HD_EINVAL or HD_EUNSUPPORTED and one line for what serving doesn't take: only tp=N splits a served model. */
int hd_lm_parallel_parse(const char *text, hd_parallel *out, hd_error *err);

/* n ranks that share so many threads, each with at least one. On failure *r is empty. */
int hd_lm_ranks_start(hd_lm_ranks *r, int n, int threads, hd_error *err);
void hd_lm_ranks_end(hd_lm_ranks *r); /* once nothing uses the endpoints */

/* job(arg, rank, err) on every rank's thread; returns when all have ended. If one fails, the others' waits end too, and it is that one's error. */
int hd_lm_ranks_run(hd_lm_ranks *r, int (*job)(void *arg, int rank, hd_error *err), void *arg, hd_error *err);

/* For hd_exec_new_rank; *out is filled. NULL: the only one. */
const hd_rank *hd_lm_ranks_rank(const hd_lm_ranks *r, int rank, hd_rank *out);

#endif
