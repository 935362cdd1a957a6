/* sampler.h: from a row of logits to the next token.
 *
 * The nth draw of a seed is always the same for the same logits, whatever else was drawn in between: the random number's counter is the position. So speculation
 * needs no rejection rule of its own: a proposed token is right when it is the one that would have been drawn (exact in distribution, and to the token). */
#ifndef HD_SERVE_SAMPLER_H
#define HD_SERVE_SAMPLER_H

#include "base/error.h"
#include "base/rng.h"

typedef struct hd_logit_bias { int32_t token; float bias; } hd_logit_bias;

typedef struct hd_sampling {
    double temperature;        /* 0: greedy, the highest logit, lowest id among equals */
    int64_t top_k;             /* only the k likeliest; 0: all */
    double top_p;              /* only the smallest set of likeliest tokens whose probability reaches p (Holtzman et al. 2020); 1: all */
    double min_p;              /* only tokens at least min_p times as likely as the likeliest (Nguyen et al. 2024); 0: all */
    double typical_p;          /* only the smallest set of tokens of the most typical information whose probability reaches p (Meister et al. 2023); 1: all */
    double repetition_penalty; /* logits of tokens seen before: divided by it where positive, multiplied where negative (Keskar et al. 2019); 1: none */
    double frequency_penalty, presence_penalty; /* off the logit: times the count of the token in the answer; once if it is there (OpenAI's API); 0: none */
    const hd_logit_bias *bias; int n_bias;      /* added to logits */
    uint64_t seed;
} hd_sampling;

typedef struct hd_token_sampler hd_token_sampler;

hd_sampling hd_sampling_default(void); /* greedy, nothing cut, no penalty */
int hd_sampling_check(const hd_sampling *o, int64_t vocab, hd_error *err);

/* For one sequence over a vocabulary of that size; the bias is copied. NULL when out of memory or o makes no sense. */
hd_token_sampler *hd_token_sampler_new(const hd_sampling *o, int64_t vocab, hd_error *err);
/* One in the same state, with another seed: another choice of the same request. */
hd_token_sampler *hd_token_sampler_fork(const hd_token_sampler *s, uint64_t seed, hd_error *err);
void hd_token_sampler_free(hd_token_sampler *s);

/* Counts a token: of the prompt (repetition penalty only) or of the answer. */
void hd_token_sampler_see(hd_token_sampler *s, int32_t token, bool answer);
/* Takes the last answer token back: what was speculated and is not so. */
void hd_token_sampler_unsee(hd_token_sampler *s, int32_t token);

/* Draws the token at `position` of the answer. allowed (may be NULL: all): bit t of a set of vocab bits. logits[vocab] isn't changed. The order: bias, penalties,
 * allowed, temperature, top_k, typical_p, top_p, min_p. Without sorting the vocabulary (Wang et al. 2021, section 3.2: candidates above a bound found in one
 * pass). -1: no allowed logit is a number. Doesn't see the token. */
int32_t hd_token_sampler_draw(hd_token_sampler *s, const float *logits, const uint64_t *allowed, int64_t position);

/* ---- log-probabilities of the model's own distribution, before any of the above ---- */

typedef struct hd_scored_token { int32_t token; float logprob; } hd_scored_token;

/* log of the sum of exp(logits): logprob of t = logits[t] - it. */
float hd_logits_lse(const float *logits, int64_t vocab);
/* The k likeliest, likeliest first, lower id among equals; returns how many there are (min(k, vocab)). O(vocab + k log k). */
int hd_logits_top(const float *logits, int64_t vocab, float lse, int k, hd_scored_token *out);

#endif
