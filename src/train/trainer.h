/* trainer.h: a training run from its settings: data, steps, evaluation, checkpoints, progress, metrics. */
#ifndef HD_TRAIN_TRAINER_H
#define HD_TRAIN_TRAINER_H

#include "train/config.h"

/* The whole of `heddle train`. Prints progress on stderr and results on stdout. SIGINT and SIGTERM: saves and returns HD_EINTR; a second
 * one ends the process at once. A loss that is no number: HD_ENUMERIC, with the step and the value that went bad first; nothing is saved.
 * With a plan for many ranks it starts them (threads of one child process, or MPI processes), watches over them, and starts them again from the last
 * checkpoint as often as c->restarts allows. To be called before the process has other threads. job.c. */
int hd_train(const hd_train_config *c, hd_error *err);

/* What one rank of the job does (rank NULL: the only one). Only the first prints. trainer.c. */
int hd_train_rank(const hd_train_config *c, const hd_rank *rank, hd_error *err);

#endif
