/* sampler.h: from a row of logits to the next token. */
#ifndef HD_SERVE_SAMPLER_H
#define HD_SERVE_SAMPLER_H

#include "base/error.h"
#include "base/rng.h"

typedef struct hd_sampling {
    double temperature;        /* 0: greedy, the highest logit, lowest id among equals */
    int64_t top_k;             /* only the k likeliest; 0: all */
    double top_p;              /* only the smallest set of likeliest tokens whose probability reaches p (Holtzman et al. 2020); 1: all */
    double min_p;              /* only tokens at least min_p times as likely as the likeliest (Nguyen et al. 2024); 0: all */
    double repetition_penalty; /* logits of tokens seen before: divided by it where positive, multiplied where negative (Keskar et al. 2019); 1: none */
    uint64_t seed;
} hd_sampling;

typedef struct hd_token_sampler hd_token_sampler;

hd_sampling hd_sampling_default(void); /* greedy, nothing cut, no penalty */
int hd_sampling_check(const hd_sampling *o, hd_error *err);

/* For one sequence over a vocabulary of that size. NULL when out of memory or o makes no sense. */
hd_token_sampler *hd_token_sampler_new(const hd_sampling *o, int64_t vocab, hd_error *err);
void hd_token_sampler_free(hd_token_sampler *s);
/* Counts a token as seen (prompt tokens too). */
void hd_token_sampler_see(hd_token_sampler *s, int32_t token);
/* Draws a token; logits[vocab] is not changed. The order of the cuts: penalty, temperature, top_k, top_p, min_p. The nth draw of a seed is always the
 * same for the same logits. -1 when no logit is a number. Doesn't call hd_token_sampler_see. */
int32_t hd_token_sampler_draw(hd_token_sampler *s, const float *logits);

#endif
