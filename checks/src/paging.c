/* paging.c: what K/V memory is worth when it is paged, beside reserving each sequence's longest (Yu et al. 2022, Orca), on one engine and model.
 *
 *   check_paging MODEL CONTEXT REQUESTS SCALE
 * Requests with the lengths of ShareGPT (means 161 and 338; Kwon et al. 2023, section 6.1) divided by SCALE wait all at once for a K/V memory of 2.5 times
 * CONTEXT tokens, in blocks of 16 / SCALE. Then prompts as Alpaca's with n = 4 and with 4 beams: what sharing between a request's own sequences saves. One
 * line, as JSON. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "base/term.h"
#include "serve/engine.h"
#include "serve/lm_runner.h"
#include "serve/load.h"

enum { PARTS = 64 };

typedef struct job {
    const char *model;
    int64_t context, requests, block;
    double scale;
    hd_runner *r;
    hd_error err;
} job;

typedef struct figures { double seconds, waste, saved, running; int64_t most, tokens; } figures;

static void need(const job *j, bool ok)
{
    if (ok) return;
    fprintf(stderr, "check_paging: %s\n", j->err.message);
    exit(1);
}

static void ignore(void *arg, const hd_engine_event *e) { (void)arg, (void)e; }

static void open_runner(job *j)
{
    hd_lm_runner_info info;
    hd_lm_runner_options o = hd_lm_runner_options_default();
    o.context = j->context;
    o.block = j->block;
    o.max_parts = PARTS;
    o.max_tokens = 256;
    o.kv_bytes = 0;
    for (int round = 0; round < 2; round++) { /* the second time it is known what a block takes */
        need(j, !hd_lm_runner_open(&j->r, j->model, &o, &info, &j->err));
        o.kv_bytes = j->r->block_bytes * (j->context * 5 / 2 / j->block);
        if (!round) j->r->close(j->r);
    }
}

static void submit_all(job *j, hd_engine *e, const char *dataset, int n, int beams)
{
    hd_load_options o = hd_load_options_default();
    need(j, !hd_load_dataset(&o, dataset, &j->err));
    hd_load_lengths *l[2] = {&o.input, &o.output};
    for (int i = 0; i < 2; i++) {
        l[i]->mean /= j->scale;
        l[i]->most = (int64_t)((double)l[i]->most / j->scale);
        if (l[i]->most > j->context / 2) l[i]->most = j->context / 2;
    }
    double mu[2] = {hd_load_mu(&o.input), hd_load_mu(&o.output)};
    int32_t *prompt = hd_calloc((size_t)j->context, sizeof *prompt);
    need(j, prompt != NULL);
    hd_rng rng = hd_rng_new(11);
    for (int64_t i = 0; i < j->requests; i++) {
        hd_request r = hd_request_default();
        r.prompt = prompt;
        r.n_prompt = hd_load_length(&o.input, mu[0], &rng);
        r.max_tokens = hd_load_length(&o.output, mu[1], &rng);
        r.n = n;
        r.beams = beams;
        r.sampling.temperature = 1;
        r.sampling.seed = (uint64_t)i;
        r.event = ignore;
        for (int64_t k = 0; k < r.n_prompt; k++) prompt[k] = (int32_t)hd_rng_below(&rng, (uint64_t)j->r->vocab);
        need(j, !hd_engine_submit(e, &r, NULL, &j->err));
    }
    hd_free(prompt);
}

static figures measure(job *j, hd_kv_policy policy, const char *dataset, int n, int beams)
{
    hd_engine_options o = hd_engine_options_default();
    hd_engine_stats s = {0};
    o.kv_policy = policy;
    o.prefix_cache = false;
    hd_engine *e = hd_engine_new(j->r, NULL, &o, &j->err);
    need(j, e != NULL);
    submit_all(j, e, dataset, n, beams);
    double start = hd_time(), running = 0, steps = 0;
    for (bool busy = true; busy;) {
        need(j, !hd_engine_step(e, &busy, &j->err));
        hd_engine_stats_read(e, &s);
        if (s.waiting) running += (double)s.running, steps++; /* while there is somebody to take in */
    }
    figures f = {.seconds = hd_time() - start, .waste = s.waste_sum / s.waste_steps, .saved = s.saved_steps > 0 ? s.saved_sum / s.saved_steps : 0,
                 .running = steps > 0 ? running / steps : 0, .most = s.most_running, .tokens = (int64_t)s.generated_tokens};
    hd_engine_free(e);
    return f;
}

int main(int argc, char **argv)
{
    if (argc < 5) return fprintf(stderr, "check_paging MODEL CONTEXT REQUESTS SCALE\n"), 2;
    job j = {.model = argv[1], .context = atoll(argv[2]), .requests = atoll(argv[3]), .scale = atof(argv[4])};
    j.block = (int64_t)(16 / j.scale);
    open_runner(&j);
    figures paged = measure(&j, HD_KV_PAGED, "sharegpt", 1, 0), reserved = measure(&j, HD_KV_RESERVE, "sharegpt", 1, 0);
    j.scale = 1;
    figures choices = measure(&j, HD_KV_PAGED, "alpaca", 4, 0), beams = measure(&j, HD_KV_PAGED, "alpaca", 1, 4);
    double rate = (double)paged.tokens / paged.seconds, reserved_rate = (double)reserved.tokens / reserved.seconds;
    printf("{\"waste_percent\": %.3f, \"running\": %.2f, \"most\": %lld, \"tokens\": %lld, \"tokens_per_second\": %.2f, ", 100 * paged.waste, paged.running,
           (long long)paged.most, (long long)paged.tokens, rate);
    printf("\"reserved_waste_percent\": %.3f, \"reserved_running\": %.2f, \"reserved_most\": %lld, \"reserved_tokens\": %lld, ", 100 * reserved.waste,
           reserved.running, (long long)reserved.most, (long long)reserved.tokens);
    printf("\"reserved_tokens_per_second\": %.2f, \"more_running\": %.3f, \"faster\": %.3f, \"saved_choices_percent\": %.2f, \"saved_beams_percent\": %.2f}\n",
           reserved_rate, paged.running / reserved.running, rate / reserved_rate, 100 * choices.saved, 100 * beams.saved);
    j.r->close(j.r);
    return 0;
}
