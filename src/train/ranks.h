/* ranks.h: what the ranks of one training job agree on outside of their programs. A rank that is NULL, or has nobody to talk to, is a job of its own. */
#ifndef HD_TRAIN_RANKS_H
#define HD_TRAIN_RANKS_H

#include "exec/exec.h"

bool hd_rank_is_first(const hd_rank *rank); /* the one that reports, and does what is to be done once */

/* How many of the job's n processes run on this machine, by what mpirun says in the environment; n where it says nothing. */
int hd_ranks_on_host(int n);

/* Every rank of the job calls these in the same order, if nothing else is said. */
int hd_ranks_barrier(const hd_rank *rank, hd_error *err);
int hd_ranks_sum(const hd_rank *rank, int64_t *v, int64_t n, hd_error *err); /* v[n] becomes the sum over all ranks */
int hd_ranks_max(const hd_rank *rank, int64_t *v, int64_t n, hd_error *err);
int hd_ranks_give(const hd_rank *rank, int from, int to, void *data, int64_t bytes, hd_error *err); /* to's data becomes what `from` has there; only those two call it */
/* A message of a tag (from 1 on) of its own to another rank, which may come to it later: `data` stays as it is until hd_comm_wait. */
int hd_ranks_send(const hd_rank *rank, int to, int tag, const void *data, int64_t bytes, hd_ticket *sent, hd_error *err);
int hd_ranks_receive(const hd_rank *rank, int from, int tag, void *data, int64_t bytes, hd_error *err);
int hd_ranks_tell(const hd_rank *rank, int from, void *data, int64_t bytes, hd_error *err); /* data becomes what rank `from` has there */

/* Output `name` of e's last call, whole, on every rank: f32, row-major. *out is malloced (hd_free) and *count its elements; NULL and 0 where no rank has one. */
int hd_ranks_output(hd_exec *e, const char *name, float **out, int64_t *count, hd_error *err);

#endif
