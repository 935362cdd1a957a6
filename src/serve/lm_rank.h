/* lm_rank.h: one rank of a served model: its weights and blocks of keys and values, and the executor over them. */
#ifndef HD_SERVE_LM_RANK_H
#define HD_SERVE_LM_RANK_H

#include "exec/exec.h"
#include "serve/lm_orders.h"
#include "serve/model.h"
#include "serve/weight_cache.h"

/* One state that holds keys, values or their scales: [blocks * block, ...]. */
typedef struct hd_block_state { char *data; int64_t bytes; /* of a block */ } hd_block_state;

typedef struct hd_lm_rank {
    hd_store *store;
    hd_weight_cache cache;   /* what the store borrows of it */
    hd_team *team;
    hd_exec *exec;
    hd_rank where;
    const hd_program *program;
    int64_t block;           /* tokens in a block */
    bool prepared;           /* the segments before the repeated ones have run */
    hd_tensor tokens, positions, slots, sequences, tables, rows; /* inputs of exec; without data where this rank's stage doesn't read them */
    hd_block_state *states; int n_states;
    int64_t block_bytes;     /* of one block here */
} hd_lm_rank;

/* How a rank is made: all but `where` as they are for others. */
typedef struct hd_lm_rank_options {
    const hd_model_files *files;
    const hd_graph *graph;     /* of its stage; outlives the rank, as do program and backend */
    const hd_program *program;
    const hd_backend *backend;
    const char *weight_cache;  /* folder (weight_cache.h); NULL: none */
    int threads, number;       /* number: in the job */
    const hd_rank *where;      /* NULL: the only one */
    int64_t block, blocks;
} hd_lm_rank_options;

/* On the thread that will run it. On failure *r may be half made: close it all the same. */
int hd_lm_rank_open(hd_lm_rank *r, const hd_lm_rank_options *o, hd_error *err);
void hd_lm_rank_close(hd_lm_rank *r);

/* One step: so many tokens and rows of logits are the batch's. */
int hd_lm_rank_step(hd_lm_rank *r, const hd_batch *b, int64_t tokens, int64_t rows, hd_error *err);

/* Blocks: within this rank; out and in: [block_bytes]. */
void hd_lm_rank_copy(const hd_lm_rank *r, int32_t from, int32_t to);
void hd_lm_rank_save(const hd_lm_rank *r, int32_t block, char *out);
void hd_lm_rank_restore(const hd_lm_rank *r, int32_t block, const char *in);

#endif
