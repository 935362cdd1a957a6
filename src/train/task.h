/* task.h: what is being trained on what: the part of a run that differs between a language model and any other network.
 *
 * Sample n of a run is always the same, whatever the batch: where a run stands in its data is one number. */
#ifndef HD_TRAIN_TASK_H
#define HD_TRAIN_TASK_H

#include "train/checkpoint.h"
#include "train/config.h"

typedef struct hd_metric { const char *name; double value; } hd_metric;

#define HD_MAX_METRICS 6
typedef struct hd_evaluation {
    hd_metric metric[HD_MAX_METRICS]; /* "loss" first, then "perplexity", "bits_per_byte", "accuracy", "auc", ... */
    int n;
    int64_t units; /* tokens or samples that were evaluated */
} hd_evaluation;

typedef struct hd_task hd_task;
struct hd_task {
    const hd_train_config *config;
    const hd_rank *rank;
    const char *unit;        /* "tokens" or "samples" */
    double units_per_sample;
    void (*free)(hd_task *t);
    /* The forward graphs of one micro-batch; the caller owns them. */
    int (*graphs)(hd_task *t, hd_graph **train, hd_graph **eval, hd_error *err);
    /* Fills parameters from the model given, or from a checkpoint directory. from NULL: the model given (nothing to do for a new one). */
    int (*load)(hd_task *t, hd_store *store, const char *from, hd_error *err);
    /* Fills the inputs of a step (before its first call), and of one micro-batch. first: number of its first sample. Every rank is given the whole
     * batch and takes what it reads of it. */
    int (*begin_step)(hd_task *t, hd_exec *e, int64_t first, int64_t step, hd_error *err);
    int (*fill)(hd_task *t, hd_exec *e, int64_t first, hd_error *err);
    /* Held-out data, at most max_batches batches (0: all). Leaves *out empty when there is none. */
    int (*evaluate)(hd_task *t, hd_exec *e, int64_t max_batches, hd_evaluation *out, hd_error *err);
    /* The model as a directory that others load: all of it (share NULL), or its frame or this rank's pieces (see hd_model_writer). */
    int (*write_model)(hd_task *t, const hd_store *store, const char *dir, hd_share *share, hd_error *err);
};

/* A language model (model is a directory or config.json) or a network file. rank (NULL: the only one) must outlive it; all ranks of a job make theirs at the
 * same time. NULL and err on failure; freed by its free. */
hd_task *hd_lm_task_new(const hd_train_config *c, const hd_rank *rank, hd_error *err);
hd_task *hd_network_task_new(const hd_train_config *c, const hd_rank *rank, hd_error *err);

/* Set an input of the program, if it reads one of that name, from the whole of it: each rank takes its piece. A scalar; an array; "samples", for rows
 * first, first, ... of rows_each rows, by way of scratch[rows in all]. */
int hd_task_set_scalar(hd_exec *e, const char *name, double value, hd_error *err);
int hd_task_number_samples(hd_exec *e, int64_t first, int64_t rows_each, int64_t rows, int64_t *scratch, hd_error *err);

#endif
