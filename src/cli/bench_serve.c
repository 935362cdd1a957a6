/* bench_serve.c: heddle bench serve: load on any OpenAI-compatible server, and what its users would see of it. */
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/term.h"
#include "cli/cli.h"
#include "serve/load.h"

typedef struct config {
    const char *url, *dataset, *arrivals, *endpoint, *api_key, *model;
    double rate, cv, temperature, timeout, slo_first, slo_inter;
    int64_t concurrency, requests, common_tokens, own_tokens, output_tokens, seed;
    bool ignore_eos, insecure, json;
} config;

#define AT(field) offsetof(config, field)
static const hd_setting settings[] = {
    {"url", HD_SET_STRING, AT(url), "http://127.0.0.1:8080", 0, 0, "URL", "the server"},
    {"endpoint", HD_SET_STRING, AT(endpoint), "completions", 0, 0, "completions|chat", "which of its two"},
    {"api_key", HD_SET_STRING, AT(api_key), NULL, 0, 0, "KEY", "sent with each request"},
    {"model", HD_SET_STRING, AT(model), NULL, 0, 0, "NAME", "without it, the first that the server names"},
    {"dataset", HD_SET_STRING, AT(dataset), "sharegpt", 0, 0, "sharegpt|alpaca|fixed", "lengths with the means of these datasets, or fixed ones"},
    {"arrivals", HD_SET_STRING, AT(arrivals), "poisson", 0, 0, "poisson|gamma", "when requests come, without --concurrency"},
    {"rate", HD_SET_NUMBER, AT(rate), "1", 1e-6, 1e6, "R", "requests a second"},
    {"cv", HD_SET_NUMBER, AT(cv), "1", 0, 100, "C", "gamma: coefficient of variation of the gaps; the larger, the burstier"},
    {"concurrency", HD_SET_INT, AT(concurrency), "0", 0, 1e5, "N", "so many requests at once instead, each following another"},
    {"requests", HD_SET_INT, AT(requests), "64", 1, 1e7, "N", "in all"},
    {"common_tokens", HD_SET_INT, AT(common_tokens), "0", 0, 1e6, "N", "words that all prompts begin with, about a token each"},
    {"own_tokens", HD_SET_INT, AT(own_tokens), "0", 0, 1e6, "N", "words of each prompt's own; 0: the dataset's"},
    {"output_tokens", HD_SET_INT, AT(output_tokens), "0", 0, 1e6, "N", "tokens of each answer; 0: the dataset's"},
    {"ignore_eos", HD_SET_BOOL, AT(ignore_eos), "true", 0, 0, NULL, "answers are as long as drawn (servers that don't know \"ignore_eos\": --no-ignore-eos)"},
    {"temperature", HD_SET_NUMBER, AT(temperature), "0", 0, 2, "X", "of the answers"},
    {"seed", HD_SET_INT, AT(seed), "0", 0, 9e15, "N", "of lengths, words and arrivals"},
    {"timeout", HD_SET_NUMBER, AT(timeout), "600", 1, 1e6, "S", "seconds after which a request has failed"},
    {"slo_first", HD_SET_NUMBER, AT(slo_first), "0", 0, 1e6, "S", "objective: seconds to the first token; 0: none"},
    {"slo_inter", HD_SET_NUMBER, AT(slo_inter), "0", 0, 1e6, "S", "objective: mean seconds between a request's tokens; 0: none"},
    {"insecure", HD_SET_BOOL, AT(insecure), NULL, 0, 0, NULL, "https: any certificate will do"},
    {"json", HD_SET_BOOL, AT(json), NULL, 0, 0, NULL, "one JSON object with the keys of docs/serving.md"},
    {0},
};

static int make_options(const config *c, hd_load_options *o, hd_error *err)
{
    *o = hd_load_options_default();
    o->url = c->url;
    o->path = strcmp(c->endpoint, "chat") ? "/v1/completions" : "/v1/chat/completions";
    o->api_key = c->api_key, o->model = c->model;
    int rc = hd_load_dataset(o, c->dataset, err);
    if (c->own_tokens) o->input = (hd_load_lengths){(double)c->own_tokens, 0, c->own_tokens};
    if (c->output_tokens) o->output = (hd_load_lengths){(double)c->output_tokens, 0, c->output_tokens};
    if (!rc && !strcmp(c->dataset, "fixed") && (!c->own_tokens || !c->output_tokens)) rc = hd_fail(err, HD_EINVAL,
                                                                                                   "--dataset fixed needs --own-tokens and --output-tokens");
    o->common = c->common_tokens;
    o->requests = c->requests;
    o->concurrency = c->concurrency;
    o->rate = c->rate;
    o->cv = strcmp(c->arrivals, "gamma") ? 1 : c->cv;
    o->ignore_eos = c->ignore_eos;
    o->insecure = c->insecure;
    o->temperature = c->temperature;
    o->seed = (uint64_t)c->seed;
    o->timeout = c->timeout;
    o->slo_first = c->slo_first, o->slo_inter = c->slo_inter;
    return rc;
}

static void show_progress(void *arg, int64_t done, int64_t total)
{
    (void)total;
    hd_progress_update(arg, (double)done, NULL);
}

static json_t *figures_json(const hd_load_figures *f)
{
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:I}", "mean", f->mean, "p50", f->p50, "p90", f->p90, "p99", f->p99, "max", f->most, "n", (json_int_t)f->n);
}

static int print_json(const hd_load_result *r, hd_error *err)
{
    json_t *j = json_pack("{s:I, s:I, s:f, s:I, s:I, s:I, s:f, s:f, s:f, s:o, s:o, s:o, s:o}", "done", (json_int_t)r->done, "failed", (json_int_t)r->failed,
                          "seconds", r->seconds,
                          "input_tokens", (json_int_t)r->input_tokens, "cached_tokens", (json_int_t)r->cached_tokens, "output_tokens",
                              (json_int_t)r->output_tokens,
                          "requests_per_second", (double)r->done / r->seconds, "input_tokens_per_second", (double)r->input_tokens / r->seconds,
                              "output_tokens_per_second",
                          (double)r->output_tokens / r->seconds, "first_token", figures_json(&r->first), "inter_token", figures_json(&r->inter), "request",
                              figures_json(&r->whole),
                          "normalized", figures_json(&r->per_token));
    if (j && !isnan(r->attained)) json_object_set_new(j, "slo_attained", json_real(r->attained));
    if (j && *r->why) json_object_set_new(j, "first_failure", json_string(r->why));
    char *text = j ? json_dumps(j, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) : NULL;
    if (text) puts(text);
    int rc = text ? 0 : hd_fail_memory(err, 0, "the figures");
    free(text);
    json_decref(j);
    return rc;
}

static void print_line(const char *what, const hd_load_figures *f)
{
    printf("  %-22s %9.1f %9.1f %9.1f %9.1f %9.1f\n", what, f->mean * 1e3, f->p50 * 1e3, f->p90 * 1e3, f->p99 * 1e3, f->most * 1e3);
}

static void print_text(const hd_load_result *r)
{
    printf("%lld requests in %.1f s, %lld failed%s%s\n", (long long)(r->done + r->failed), r->seconds, (long long)r->failed, *r->why ? ": " : "", r->why);
    printf("%.2f requests/s, %.1f output tokens/s, %.1f input tokens/s (%.0f %% of them cached)\n", (double)r->done / r->seconds,
           (double)r->output_tokens / r->seconds,
           (double)r->input_tokens / r->seconds, r->input_tokens ? 100.0 * (double)r->cached_tokens / (double)r->input_tokens : 0.0);
    printf("  %-22s %9s %9s %9s %9s %9s\n", "ms", "mean", "p50", "p90", "p99", "max");
    print_line("to the first token", &r->first);
    print_line("between tokens", &r->inter);
    print_line("whole request", &r->whole);
    print_line("whole request / token", &r->per_token);
    if (!isnan(r->attained)) printf("%.1f %% of the requests within the objectives\n", 100 * r->attained);
}

static int run(const void *config_, const char *const *words, int n_words, hd_error *err)
{
    const config *c = config_;
    hd_load_options o;
    hd_load_result r;
    hd_progress progress;
    (void)words, (void)n_words;
    int rc = make_options(c, &o, err);
    if (rc) return rc;
    signal(SIGPIPE, SIG_IGN);
    hd_progress_begin(&progress, "requests", (double)c->requests, c->json);
    o.progress = show_progress, o.arg = &progress;
    rc = hd_load_run(&o, &r, err);
    if (rc) hd_progress_hide(&progress);
    if (rc) return rc;
    hd_progress_end(&progress, NULL);
    if (c->json) rc = print_json(&r, err);
    else print_text(&r);
    return !rc && !r.done ? hd_fail(err, HD_EIO, "no request succeeded: %s", r.why) : rc;
}

const hd_command hd_cmd_bench_serve = {
    .name = "bench serve",
    .usage = "[flags]",
    .summary = "load on a server: throughput, latencies, objectives met",
    .details = "Streams completions from any OpenAI-compatible server. Lengths: log-normal with the means of ShareGPT (161 tokens in, 338 out) or Alpaca (19 in, 58 out), as\n"
               "Kwon et al. 2023 state them in section 6.1. Latencies count from when a request was due, so that a server that falls behind shows it.",
    .settings = settings,
    .config_size = sizeof(config),
    .max_words = 0,
    .run = run,
};
