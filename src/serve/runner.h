/* runner.h: a model over a paged K/V memory: a step takes tokens of many sequences and gives the logits of the rows wanted.
 *
 * A runner decides nothing: which tokens, in which blocks, is the engine's (engine.h). It is one table, so that an engine can be tested over a model that
 * computes nothing (tests/fake_runner.h), and a draft model is a runner too.
 *
 * Rules: a block is `block` rows of every layer's keys and values, numbered 0 .. blocks - 1; the runner keeps no note of what is in them. A row of logits
 * depends on the tokens of its own sequence alone, bit for bit, whatever else is in the batch and however the tokens were cut into steps. One thread at a time. */
#ifndef HD_SERVE_RUNNER_H
#define HD_SERVE_RUNNER_H

#include "base/error.h"

/* Some tokens of one sequence, which follow those that its blocks already hold. */
typedef struct hd_batch_part {
    const int32_t *tokens; /* [n] */
    int64_t n;             /* at least 1 */
    int64_t position;      /* of the first: so many tokens are in the blocks */
    const int32_t *blocks; /* [(position + n + block - 1) / block]: those that hold positions 0 .. position + n - 1 */
    int64_t rows;          /* logits are wanted of the last `rows` of these tokens; 0: of none */
} hd_batch_part;

typedef struct hd_batch {
    const hd_batch_part *parts; /* [n_parts], at most max_parts; their tokens at most max_tokens, their rows at most max_rows, in all */
    int64_t n_parts;
} hd_batch;

typedef struct hd_runner hd_runner;
struct hd_runner {
    int64_t vocab, width;    /* of a row of logits; of a row of the final hidden state */
    int64_t max_tokens, max_parts, max_rows; /* of a step */
    int64_t max_context;     /* longest sequence */
    int64_t block, blocks;   /* tokens in a block; how many blocks there are */
    int64_t block_bytes;     /* of a block's keys and values over all layers: what save and restore move */
    int64_t depth;           /* steps that may be under way at a time: the stages of a pipeline, else 1 */
    /* Begins a step, which may read and write blocks once those begun before have. b may go when this returns. */
    int (*begin)(hd_runner *r, const hd_batch *b, hd_error *err);
    /* Waits for the end of the first step that has not been finished. Rows of logits come in the order of its parts. */
    int (*finish)(hd_runner *r, hd_error *err);
    const float *(*logits)(hd_runner *r, int64_t row); /* [vocab] of the step finished last, until the next is */
    const float *(*hidden)(hd_runner *r, int64_t row); /* [width]: the final norm's result, likewise */
    /* Blocks: after the steps begun so far. */
    void (*copy_block)(hd_runner *r, int32_t from, int32_t to);
    void (*save_block)(hd_runner *r, int32_t block, void *out);          /* block_bytes */
    void (*restore_block)(hd_runner *r, int32_t block, const void *in);
    void (*close)(hd_runner *r); /* frees r */
};

/* A whole step, while none is under way. */
static inline int hd_runner_step(hd_runner *r, const hd_batch *b, hd_error *err)
{
    int rc = r->begin(r, b, err);
    return rc ? rc : r->finish(r, err);
}

#endif
