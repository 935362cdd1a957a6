/* trainer.h: a training run from its settings: data, steps, evaluation, checkpoints, progress, metrics. */
#ifndef HD_TRAIN_TRAINER_H
#define HD_TRAIN_TRAINER_H

#include "train/config.h"

/* The whole of `heddle train`. Prints progress on stderr and results on stdout. SIGINT and SIGTERM: saves and returns HD_EINTR; a second
 * one ends the process at once. A loss that is no number: HD_ENUMERIC, with the step and the value that went bad first; nothing is saved. */
int hd_train(const hd_train_config *c, hd_error *err);

#endif
