/* serve_stubs.c: weak stand-ins for functions of serve/sampler.h and serve/constrain.h, for as long as the library lacks them. */
#include <math.h>
#include <stdlib.h>
#include "serve/constrain.h"
#include "serve/sampler.h"

#define WEAK __attribute__((weak))

WEAK float hd_logits_lse(const float *logits, int64_t vocab)
{
    double most = -INFINITY, sum = 0;
    for (int64_t i = 0; i < vocab; i++) most = logits[i] > most ? logits[i] : most;
    for (int64_t i = 0; i < vocab; i++) sum += exp(logits[i] - most);
    return (float)(most + log(sum));
}

WEAK int hd_logits_top(const float *logits, int64_t vocab, float lse, int k, hd_scored_token *out)
{
    int n = 0;
    for (int64_t i = 0; i < vocab; i++) {
        int at = n;
        while (at > 0 && out[at - 1].logprob < logits[i] - lse) at--;
        if (at >= k) continue;
        if (n < k) n++;
        for (int j = n - 1; j > at; j--) out[j] = out[j - 1];
        out[at] = (hd_scored_token){(int32_t)i, logits[i] - lse};
    }
    return n;
}

WEAK hd_constraint *hd_constraint_retain(const hd_constraint *c) { return (hd_constraint *)c; }
WEAK void hd_constraint_release(const hd_constraint *c) { (void)c; }
WEAK hd_constraint_state *hd_constraint_begin(const hd_constraint *c, hd_error *err) { return (void)c, hd_fail(err, HD_EUNSUPPORTED, "no constraints"), NULL; }
WEAK void hd_constraint_end(hd_constraint_state *s) { (void)s; }
WEAK int hd_constraint_mask(hd_constraint_state *s, uint64_t *allowed, hd_error *err) { return (void)s, (void)allowed, hd_fail(err, HD_EUNSUPPORTED, "no constraints"); }
WEAK int hd_constraint_advance(hd_constraint_state *s, int32_t t, hd_error *err) { return (void)s, (void)t, hd_fail(err, HD_EUNSUPPORTED, "no constraints"); }
WEAK bool hd_constraint_complete(const hd_constraint_state *s) { return (void)s, true; }
