/* load.h: a load generator: streams completions from any OpenAI-compatible server, many at once, and measures what its users would see.
 *
 * *Lengths* are drawn from log-normal distributions with the published means of two datasets (Kwon et al. 2023, section 6.1), cut at `most` without moving the
 * mean. *Arrivals* are a Poisson or Gamma process of some rate (open loop: a slow server doesn't slow them), or a fixed number of requests at once. */
#ifndef HD_SERVE_LOAD_H
#define HD_SERVE_LOAD_H

#include <stdbool.h>
#include <stdint.h>
#include "base/error.h"
#include "base/rng.h"
#include "base/str.h"

typedef struct hd_load_lengths {
    double mean, sigma;   /* of the log-normal; sigma 0: always the mean */
    int64_t most;
} hd_load_lengths;

typedef struct hd_load_options {
    const char *url;          /* "http://host:port" or https, perhaps with a path before /v1 */
    const char *api_key, *model; /* NULL: none; the first of /v1/models */
    const char *path;         /* after the URL: "/v1/completions" or "/v1/chat/completions" */
    hd_load_lengths input, output;
    int64_t common;           /* words that all prompts begin with, before those of `input` */
    int64_t requests;
    int64_t concurrency;      /* > 0: so many at once; else by rate */
    double rate, cv;          /* per second; coefficient of variation of the gaps: 1 is Poisson, else Gamma */
    bool ignore_eos;          /* answers as long as drawn */
    bool insecure;            /* https: whatever certificate */
    double temperature;
    uint64_t seed;
    double timeout;           /* seconds of one request; 0: 600 */
    double slo_first, slo_inter; /* seconds to the first token, and between tokens on average; 0: not judged */
    void (*progress)(void *arg, int64_t done, int64_t total); /* (optional) */
    void *arg;
} hd_load_options;

hd_load_options hd_load_options_default(void);
/* "sharegpt", "alpaca" or "fixed" (the lengths that are set). HD_EINVAL for others. */
int hd_load_dataset(hd_load_options *o, const char *name, hd_error *err);

typedef struct hd_load_figures { double mean, p50, p90, p99, most; int64_t n; } hd_load_figures; /* seconds */

typedef struct hd_load_result {
    int64_t done, failed;
    int64_t input_tokens, cached_tokens, output_tokens; /* as the server counts, else by words and pieces */
    double seconds;           /* from the first arrival to the last end */
    hd_load_figures first, inter, whole, per_token;  /* to the first token; between pieces; of a request; whole / tokens (normalized latency) */
    double attained;          /* of all requests: those within both SLOs, 0 to 1; NAN: none given */
    char why[256];            /* the first failure */
} hd_load_result;

int hd_load_run(const hd_load_options *o, hd_load_result *r, hd_error *err);

/* ---- load_shape.c ---- */

double hd_load_gap(hd_rng *g, double rate, double cv); /* seconds to the next arrival */
/* The log-normal's mu for which lengths cut to 1 .. most have that mean. */
double hd_load_mu(const hd_load_lengths *l);
int64_t hd_load_length(const hd_load_lengths *l, double mu, hd_rng *g);
/* Appends n words of about one token each, drawn from g. */
void hd_load_words(hd_str *o, int64_t n, hd_rng *g);

#endif
