/* engine.h: continuous batching over a paged K/V memory: requests in, tokens out, many at once.
 *
 * A *request* asks for one or more continuations (*choices*) of a prompt. Each *sequence* (a choice, or a beam) holds a table of blocks; blocks are shared
 * between sequences that begin alike (kv.h). Each *step* the scheduler picks, under a budget of tokens, what every running sequence decodes and which
 * prompts go on (chunked prefill; Agrawal et al. 2023), runs the model once, and draws.
 *
 * Threads: hd_engine_step and hd_engine_run belong to one thread, the engine's; hd_engine_submit, _cancel, _drain, _stats may be called from any. Events
 * come on the engine's thread, in order for each request; the callback must not block, and may cancel.
 *
 * Rules: greedy output of a request doesn't depend on what else runs, on prefix caching, chunking, preemption or speculation. A request that ended or was
 * cancelled holds no block once the step is over in which that became known. */
#ifndef HD_SERVE_ENGINE_H
#define HD_SERVE_ENGINE_H

#include "base/error.h"
#include "data/tokenizer.h"
#include "serve/constrain.h"
#include "serve/runner.h"
#include "serve/sampler.h"

/* ---- settings ---- */

typedef enum hd_kv_policy { HD_KV_PAGED, HD_KV_RESERVE /* each sequence reserves max_context rows at once (Yu et al. 2022): the rival */ } hd_kv_policy;
typedef enum hd_preemption { HD_PREEMPT_RECOMPUTE, HD_PREEMPT_SWAP } hd_preemption;

typedef struct hd_engine_options {
    int64_t max_sequences;    /* running at once; 0: the runner's max_parts */
    int64_t token_budget;     /* of a step; 0: the runner's max_tokens */
    int64_t prompt_budget;    /* prompt tokens of a step in which something decodes: fewer hold the others up less; 0: what is left */
    double prompt_slowdown;   /* and prompts may make such a step so many times as long as without, by what steps have taken so far; more
                               * where more prompts are held back than sequences decode. 0: no limit */
    hd_kv_policy kv_policy;
    bool prefix_cache;
    bool chunked_prefill;     /* false: a prompt is computed in steps of its own */
    hd_preemption preemption;
    int64_t swap_bytes;       /* host memory for swapped blocks; what doesn't fit is recomputed */
    bool by_priority;         /* smaller `priority` first, then first come; false: first come, first served */
    int64_t max_queued;       /* waiting requests; more are refused (HD_EMEMCAP); 0: no limit */
    int64_t ngram;            /* speculation by looking up the last tokens in the sequence itself (prompt lookup): most tokens to propose; 0: none */
    hd_runner *draft;         /* (optional) a small model that proposes; it must have the same vocabulary. Not owned */
    int64_t draft_tokens;     /* most tokens that it proposes */
    int64_t force_preempt;    /* tests: preempt something every so many steps; 0: only when blocks run out */
    const double *clock;      /* tests: the time in seconds, instead of hd_time() */
} hd_engine_options;

hd_engine_options hd_engine_options_default(void); /* paged, prefix cache, chunked prefill (1.6 times), recompute, no speculation */

/* ---- requests ---- */

typedef enum hd_finish {
    HD_FINISH_NONE, HD_FINISH_LENGTH /* max_tokens or the context */, HD_FINISH_EOS, HD_FINISH_STOP /* a stop string or token */,
    HD_FINISH_CANCELLED, HD_FINISH_DEADLINE, HD_FINISH_ERROR
} hd_finish;

typedef struct hd_token_logprob { int32_t token; float logprob; } hd_token_logprob;

/* What happened to one choice. Pointers live during the callback. */
typedef struct hd_engine_event {
    uint64_t request;
    int choice;                       /* 0 .. n - 1 */
    const int32_t *tokens; int64_t n_tokens; /* new ones, in order; none in an event that only ends. An eos or stop token is not among them */
    const char *text; size_t text_bytes;     /* what they add to the answer: whole characters that can't become part of a stop string any more */
    const hd_token_logprob *logprobs; /* [n_tokens]: of the drawn tokens, where asked for */
    const hd_token_logprob *top;      /* [n_tokens][top_n], likeliest first */
    int top_n;
    const hd_token_logprob *prompt_logprobs; /* [prompt tokens], the first with logprob NAN; in the first event, where asked for */
    const hd_token_logprob *prompt_top;      /* [prompt tokens][top_n] */
    hd_finish finish;                 /* not NONE: the last event of this choice */
    bool last;                        /* the last event of the request */
    const char *error;                /* HD_FINISH_ERROR */
    int64_t prompt_tokens, cached_tokens, generated_tokens; /* of the request, so far; cached: of the prompt, found in the prefix cache */
    const float *hidden; int64_t width; /* embedding requests: the final hidden state of the last token */
} hd_engine_event;

typedef struct hd_request {
    const int32_t *prompt; int64_t n_prompt; /* copied */
    hd_sampling sampling;                    /* its arrays are copied */
    int n;                    /* choices that come back; 1 */
    int best_of;              /* drawn, of which the n with the highest mean logprob come back (at the end); 0: n */
    int beams;                /* beam search with so many beams (LightSeq's way: no sort of the vocabulary), n of which come back; 0: none */
    double length_penalty;    /* beams: score = sum of logprobs / length^penalty; 1 */
    int64_t max_tokens, min_tokens;
    const char *const *stop; int n_stop;     /* strings that end a choice and aren't part of it, across token and character borders; copied */
    const int32_t *stop_tokens; int n_stop_tokens;
    const int32_t *eos; int n_eos;           /* the model's own; copied */
    bool ignore_eos;
    int logprobs;             /* -1: none; k: of the drawn token and of the k likeliest */
    bool prompt_logprobs;     /* of the prompt too */
    bool embed;               /* no token is drawn: the final hidden state comes in one event */
    bool skip_special;        /* special tokens add no text */
    int priority;
    uint64_t salt;            /* prefixes are shared only between requests of one salt */
    double deadline;          /* hd_time at which it ends with HD_FINISH_DEADLINE; 0: none */
    const hd_constraint *constraint; /* (optional) what the text must be; retained */
    void (*event)(void *arg, const hd_engine_event *e);
    void *arg;
} hd_request;

hd_request hd_request_default(void);

/* ---- the engine ---- */

typedef struct hd_engine hd_engine;

/* tokenizer (NULL: events carry no text, no stop strings, no constraints) and runner must outlive it. NULL on failure. */
hd_engine *hd_engine_new(hd_runner *r, const hd_tokenizer *t, const hd_engine_options *o, hd_error *err);
void hd_engine_free(hd_engine *e); /* requests still there end with HD_FINISH_CANCELLED */

/* Queues a request and sets *id (from 1). HD_EINVAL: it makes no sense (an empty or too long prompt, no place for it ever); HD_EMEMCAP: too many are waiting;
 * HD_EINTR: draining. */
int hd_engine_submit(hd_engine *e, const hd_request *r, uint64_t *id, hd_error *err);
void hd_engine_cancel(hd_engine *e, uint64_t id); /* unknown or ended: nothing happens */

/* One step; *busy: false where there was nothing to do. An error is the model's (the requests of the step have ended with HD_FINISH_ERROR). */
int hd_engine_step(hd_engine *e, bool *busy, hd_error *err);
/* Steps until hd_engine_stop, sleeping while there is nothing to do; returns 0. A step that fails ends its requests, and the next ones go on. */
int hd_engine_run(hd_engine *e, hd_error *err);
void hd_engine_stop(hd_engine *e);
/* No more requests are taken; *idle when the last has ended (hd_engine_stats.running and .waiting are 0). */
void hd_engine_drain(hd_engine *e);

/* ---- what it is doing ---- */

#define HD_HISTOGRAM_BUCKETS 24
typedef struct hd_histogram {
    double bound[HD_HISTOGRAM_BUCKETS]; /* upper bounds in seconds, ascending; what is above the last counts only in `count` */
    uint64_t bucket[HD_HISTOGRAM_BUCKETS]; /* above the bound before, up to this one: not cumulated */
    uint64_t count;
    double sum;
} hd_histogram;

typedef struct hd_engine_stats {
    int64_t running, waiting, swapped;            /* requests */
    int64_t blocks, blocks_used, blocks_cached;   /* used: held by sequences; cached: held by nobody, but findable by their hash */
    int64_t block, tokens_held;                   /* tokens in blocks held, each block counted once: waste = 1 - tokens_held / (blocks_used * block) */
    uint64_t steps, prompt_tokens, cached_tokens, generated_tokens; /* since the start */
    uint64_t preemptions, swaps_out, swaps_in, copies;              /* copies: of blocks on write */
    uint64_t proposed, accepted;                  /* speculated tokens */
    uint64_t finished[8];                         /* choices, by hd_finish */
    double waste_sum, waste_steps;                /* sum over steps of the waste, and their number */
    double saved_sum, saved_steps;                /* sharing between a request's own sequences: sum over steps of 1 - blocks / blocks without sharing */
    int64_t most_running;
    hd_histogram first_token, inter_token, queue, whole; /* seconds */
} hd_engine_stats;

void hd_engine_stats_read(hd_engine *e, hd_engine_stats *out);

#endif
