#include "serve/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/mem.h"

typedef struct candidate { float logit; int32_t id; } candidate;

struct hd_token_sampler {
    hd_sampling o;
    int64_t vocab;
    unsigned char *seen;   /* [vocab] */
    candidate *candidates; /* [vocab] */
    double *weight;        /* [vocab] */
    hd_rng rng;
};

hd_sampling hd_sampling_default(void)
{
    return (hd_sampling){.top_p = 1, .typical_p = 1, .repetition_penalty = 1};
}

int hd_sampling_check(const hd_sampling *o, int64_t vocab, hd_error *err)
{
    (void)vocab;
    if (!(o->temperature >= 0 && o->temperature <= 100)) return hd_fail(err, HD_EINVAL, "the temperature must be from 0 to 100, not %g", o->temperature);
    if (o->top_k < 0) return hd_fail(err, HD_EINVAL, "top-k must not be negative");
    if (!(o->top_p > 0 && o->top_p <= 1)) return hd_fail(err, HD_EINVAL, "top-p must be above 0 and at most 1, not %g", o->top_p);
    if (!(o->min_p >= 0 && o->min_p <= 1)) return hd_fail(err, HD_EINVAL, "min-p must be from 0 to 1, not %g", o->min_p);
    if (!(o->repetition_penalty > 0 && o->repetition_penalty <= 100))
        return hd_fail(err, HD_EINVAL, "the repetition penalty must be above 0 and at most 100, not %g", o->repetition_penalty);
    return 0;
}

hd_token_sampler *hd_token_sampler_new(const hd_sampling *o, int64_t vocab, hd_error *err)
{
    if (hd_sampling_check(o, vocab, err)) return NULL;
    hd_token_sampler *s = hd_calloc(1, sizeof *s);
    if (s) {
        *s = (hd_token_sampler){.o = *o, .vocab = vocab, .rng = hd_rng_new(o->seed)};
        s->seen = hd_calloc((size_t)vocab, 1);
        s->candidates = hd_calloc((size_t)vocab, sizeof *s->candidates);
        s->weight = hd_calloc((size_t)vocab, sizeof *s->weight);
        if (s->seen && s->candidates && s->weight) return s;
    }
    hd_fail_memory(err, (size_t)vocab * 24, "a sampler");
    hd_token_sampler_free(s);
    return NULL;
}

void hd_token_sampler_free(hd_token_sampler *s)
{
    if (!s) return;
    hd_free(s->seen);
    hd_free(s->candidates);
    hd_free(s->weight);
    hd_free(s);
}

void hd_token_sampler_see(hd_token_sampler *s, int32_t token, bool answer)
{
    (void)answer;
    if (token >= 0 && token < s->vocab) s->seen[token] = 1;
}

static float penalised(const hd_token_sampler *s, const float *logits, int64_t i)
{
    float x = logits[i];
    if (!s->seen[i] || s->o.repetition_penalty == 1) return x;
    return x > 0 ? (float)(x / s->o.repetition_penalty) : (float)(x * s->o.repetition_penalty);
}

static int32_t greedy(const hd_token_sampler *s, const float *logits)
{
    int32_t best = -1;
    float most = -INFINITY;
    for (int64_t i = 0; i < s->vocab; i++) {
        float x = penalised(s, logits, i);
        if (x > most || (best < 0 && x == x)) most = x, best = (int32_t)i;
    }
    return best;
}

static int likeliest_first(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    if (x->logit != y->logit) return x->logit < y->logit ? 1 : -1;
    return (x->id > y->id) - (x->id < y->id);
}

/* Candidates in descending order, cut to top_k. */
static int64_t collect(hd_token_sampler *s, const float *logits)
{
    int64_t n = 0;
    for (int64_t i = 0; i < s->vocab; i++) {
        float x = penalised(s, logits, i);
        if (x == x && x > -INFINITY) s->candidates[n++] = (candidate){x, (int32_t)i};
    }
    qsort(s->candidates, (size_t)n, sizeof *s->candidates, likeliest_first);
    return s->o.top_k && s->o.top_k < n ? s->o.top_k : n;
}

/* Probabilities (not normalised, the first is 1) of the n candidates, cut by top_p and min_p; returns how many are left, their sum in *sum. */
static int64_t weigh(hd_token_sampler *s, int64_t n, double *sum)
{
    double total = 0, kept = 0;
    for (int64_t i = 0; i < n; i++) total += s->weight[i] = exp((s->candidates[i].logit - s->candidates[0].logit) / s->o.temperature);
    int64_t left = 0;
    while (left < n && (left == 0 || (kept < s->o.top_p * total && s->weight[left] >= s->o.min_p))) kept += s->weight[left++];
    *sum = kept;
    return left;
}

int32_t hd_token_sampler_draw(hd_token_sampler *s, const float *logits, const uint64_t *allowed, int64_t position)
{
    (void)allowed, (void)position;
    if (s->o.temperature == 0) return greedy(s, logits);
    double sum, u = hd_rng_uniform(&s->rng);
    int64_t n = weigh(s, collect(s, logits), &sum);
    if (n == 0) return -1;
    u *= sum;
    for (int64_t i = 0; i < n - 1; i++)
        if ((u -= s->weight[i]) < 0) return s->candidates[i].id;
    return s->candidates[n - 1].id;
}
