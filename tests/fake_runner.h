/* fake_runner.h: a runner that computes nothing but knows everything: each row of its blocks holds a token and a running hash of the sequence up to there,
 * and logits are a hash of all rows before, read through the block table. So a mistake in tables, copies, sharing, swapping or recomputation changes the
 * output, and is counted in `broken`. */
#ifndef FAKE_RUNNER_H
#define FAKE_RUNNER_H

#include "serve/runner.h"

typedef struct fake_options {
    int64_t vocab, max_tokens, max_parts, max_rows, max_context, block, blocks;
    uint64_t seed;
    int order;             /* 0: logits are of the whole beginning; k: mostly of the last k tokens, so that text repeats itself */
    const int32_t *script; /* [n_script] (optional) the likeliest token at a position */
    int64_t n_script;
    int64_t fail_at;       /* the step that fails, from 1; 0: none */
    int64_t depth;         /* steps under way at a time; 0: 1 */
    int64_t slow_us, token_us; /* a step takes so long at least, and for each token */
    double *clock;         /* which time passes then, in seconds; NULL: the machine's */
} fake_options;

typedef struct fake_counts { int64_t steps, tokens, rows, broken, copies, saves, restores, most_parts, most_steps; } fake_counts;

fake_options fake_options_default(void);
hd_runner *fake_runner_new(const fake_options *o); /* NULL: out of memory */
fake_counts fake_runner_counts(const hd_runner *r);

/* The logits after a sequence, without any runner. logits: [vocab]. */
void fake_logits(const fake_options *o, const int32_t *tokens, int64_t n, float *logits);
int32_t fake_likeliest(const fake_options *o, const float *logits);

#endif
