/* generator.h: text from one model, one sequence at a time: prompt in, tokens out.
 *
 * A runner (lm_runner.h) with one sequence: its blocks are the sequence's own, in order, so that feeding more tokens continues it, and a chat pays for each turn
 * once. The logits of a token are the same, bit for bit, however those before it were fed. */
#ifndef HD_SERVE_GENERATOR_H
#define HD_SERVE_GENERATOR_H

#include "serve/lm_runner.h"
#include "serve/sampler.h"

typedef struct hd_generator_options {
    hd_dtype precision; /* of weights, cache and arithmetic: f32 or bf16; weights that stay in blocks are multiplied with numbers in f32 */
    int threads;        /* 0: one per core */
    int64_t context;    /* most tokens of a sequence, prompt included; 0: what the model was made for, at most 4096 */
    const char *weight_cache; /* folder of packed weights (weight_cache.h); NULL: none */
    int64_t chunk;      /* most tokens of one step; 0: 512 */
} hd_generator_options;

typedef struct hd_generator {
    hd_runner *runner;
    hd_lm_runner_info info; /* config, tokenizer (NULL: the model has none) and program are here */
    int32_t *table;         /* [runner->blocks] 0, 1, 2, ... */
    int64_t length;         /* tokens in the blocks */
} hd_generator;

/* ---- life cycle ---- */

/* Loads a Hugging Face directory (config.json, weights, tokenizer.json where there is one) or a GGUF file; path must outlive *g. On failure *g is empty. */
int hd_generator_open(hd_generator *g, const char *path, const hd_generator_options *o, hd_error *err);
/* The same for a config and random weights (seed): for benchmarks. */
int hd_generator_open_random(hd_generator *g, const hd_lm_config *c, uint64_t seed, const hd_generator_options *o, hd_error *err);
void hd_generator_close(hd_generator *g);

/* ---- use ---- */

void hd_generator_reset(hd_generator *g); /* forgets the sequence */
void hd_generator_rewind(hd_generator *g, int64_t length); /* forgets what comes after its first `length` tokens */
/* Appends n >= 1 tokens to the sequence and sets *logits to the row of the last one, [vocab] f32, valid until the next feed. HD_EINVAL when the
 * sequence would be longer than the context. */
int hd_generator_feed(hd_generator *g, const int32_t *tokens, int64_t n, const float **logits, hd_error *err);

/* What becomes of a generation; text arrives as whole UTF-8 characters that can no longer become part of a stop string. */
typedef struct hd_generate_request {
    hd_sampling sampling;
    int64_t max_tokens;
    const char *const *stop; /* [n_stop] strings that end the text; not part of it */
    int n_stop;
    bool ignore_eos;
    hd_ids *drawn; /* (optional) gets the drawn tokens; the last may not be in the blocks yet: hd_generator.length tells */
    int (*text)(void *arg, const char *text, size_t n); /* non-zero stops the generation */
    void *arg;
} hd_generate_request;

typedef struct hd_generate_result {
    int64_t prompt_tokens, new_tokens;
    double prompt_seconds, new_seconds;
    enum { HD_STOP_LENGTH, HD_STOP_EOS, HD_STOP_STRING, HD_STOP_CALLER, HD_STOP_CONTEXT } why;
} hd_generate_result;

/* Feeds the prompt's tokens and draws until something stops it. */
int hd_generate(hd_generator *g, const int32_t *prompt, int64_t n, const hd_generate_request *r, hd_generate_result *out, hd_error *err);

#endif
