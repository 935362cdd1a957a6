/* lm_runner.h: a language model as a runner: a Graph with paged attention, lowered once, over a Store whose K/V states are the blocks. */
#ifndef HD_SERVE_LM_RUNNER_H
#define HD_SERVE_LM_RUNNER_H

#include "data/tokenizer.h"
#include "models/config.h"
#include "serve/model.h"
#include "serve/runner.h"

typedef struct hd_lm_runner_options {
    hd_dtype precision;  /* of arithmetic between products: f32 or bf16; HD_DTYPE_COUNT: f32 for models in blocks or f16, else the stored dtype */
    hd_dtype kv;         /* of the K/V blocks: f32, bf16, f16 or i8; HD_DTYPE_COUNT: f16 where precision is f32 and the model is in blocks, else precision */
    int threads;         /* of all ranks together, each with at least one; 0: one per core */
    int64_t context;     /* longest sequence; 0: what the model was made for, at most 8192 */
    int64_t max_tokens;  /* of a step; 0: 512 */
    int64_t max_parts;   /* sequences of a step; 0: 64 */
    int64_t max_rows;    /* of logits; 0: max_parts + 64 */
    int64_t block;       /* tokens in a block; 0: 16 */
    int64_t kv_bytes;    /* for the blocks; 0: what max_parts sequences of the full context need, at most 60 % of what is free once the weights are there */
    int64_t blocks;      /* so many, whatever memory there is; 0: as many as kv_bytes says */
    const char *weight_cache; /* folder of packed weights (weight_cache.h); NULL: they are packed at every start. Must outlive the runner's opening */
    bool keep_blocks;    /* weights in GGUF's block types are kept so; false: all are dequantized to `precision` */
    const char *backend; /* NULL: "cpu" */
    const char *advice;  /* what to try where memory doesn't suffice; NULL: settings of `heddle serve` */
    const char *parallel; /* "tp=2": the model in pieces over two ranks (lm_ranks.h); NULL: one rank */
    bool mpi;             /* those are the processes of the MPI job that this one is of, and each opens a runner; else threads of this process */
} hd_lm_runner_options;

hd_lm_runner_options hd_lm_runner_options_default(void);

/* What was opened. */
typedef struct hd_lm_runner_info {
    const hd_lm_config *config;     /* the runner's */
    hd_tokenizer *tokenizer;        /* the runner's; NULL: the model has none */
    int64_t weight_bytes, kv_bytes, arena_bytes; /* of all ranks together */
    int64_t kv_rank_bytes;          /* of the rank that has most */
    const char *weights;            /* "Q4_K, Q6_K, F32": what the file holds */
    int64_t mapped_bytes;           /* of files of packed weights, of this process's ranks */
    int mapped, packed;             /* packed weights that were in such files already; those that were packed now */
    hd_dtype precision, kv;
    int threads, ranks;             /* threads of each rank */
    const hd_program *program;      /* the runner's */
} hd_lm_runner_info;

/* A Hugging Face directory or GGUF file. *out is closed by its `close`. HD_EMEMCAP says what would fit. */
int hd_lm_runner_open(hd_runner **out, const char *model, const hd_lm_runner_options *o, hd_lm_runner_info *info, hd_error *err);
/* The same of files that are open already (*files goes over to the runner, on failure too). */
int hd_lm_runner_open_files(hd_runner **out, hd_model_files *files, const hd_lm_runner_options *o, hd_lm_runner_info *info, hd_error *err);
/* Does what the first process's runner does, in another process of the same MPI job, until that is closed. */
int hd_lm_runner_follow(hd_runner *r, hd_error *err);
/* hd_lm_runner_open over random weights: for tests and benchmarks. */
int hd_lm_runner_open_random(hd_runner **out, const hd_lm_config *c, uint64_t seed, const hd_lm_runner_options *o, hd_lm_runner_info *info, hd_error *err);

#endif
