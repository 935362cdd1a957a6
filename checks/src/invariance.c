/* invariance.c: greedy answers of a model do not depend on what else the engine does: tokens and log-probabilities, byte for byte.
 *
 *   check_invariance MODEL PRECISION [PROMPTS [TOKENS [NEIGHBOURS]]]     20 prompts of 128 tokens each, amid 31 neighbours at a time; PRECISION: f32, bf16
 * The reference is each prompt alone on an engine with neither prefix cache nor speculation nor chunks. The same answers come of a model that is cut over
 * tensor-parallel ranks. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "base/term.h"
#include "serve/engine.h"
#include "serve/lm_runner.h"
#include "tensor/dtype.h"

enum { MOST_PROMPT = 96, COMMON = 40, BLOCK = 8, PARTS = 32 };

typedef struct answer { int32_t *tokens; float *logprobs; int64_t n; bool ended; } answer;

typedef struct job {
    const char *model;
    hd_dtype precision;
    int64_t prompts, tokens, neighbours;
    hd_runner *r, *draft;
    int64_t vocab;
    int32_t (*prompt)[MOST_PROMPT];
    int64_t *length;
    answer *want, *got;
} job;

typedef struct variant {
    const char *name;
    hd_engine_options o;
    bool drafts;
    size_t must; /* where in the stats a figure stands that must not be 0; 0: nowhere */
} variant;

static void need(int rc, const hd_error *err)
{
    if (!rc) return;
    printf("  %s\n", err->message);
    exit(1);
}

static void *take_memory(size_t n, size_t size)
{
    void *p = hd_calloc(n, size);
    if (!p) exit(1);
    return p;
}

static void take(void *arg, const hd_engine_event *e)
{
    answer *a = arg;
    if (!a) return;
    for (int64_t i = 0; i < e->n_tokens; i++) {
        a->tokens[a->n] = e->tokens[i];
        a->logprobs[a->n++] = e->logprobs[i].logprob;
    }
    a->ended |= e->last;
}

static hd_request request_of(const job *j, int64_t i, answer *a)
{
    hd_request r = hd_request_default();
    r.prompt = j->prompt[i];
    r.n_prompt = j->length[i];
    r.max_tokens = j->tokens;
    r.logprobs = 0;
    r.event = take;
    r.arg = a;
    a->n = 0;
    a->ended = false;
    return r;
}

static hd_request neighbour(const job *j, hd_rng *rng)
{
    int64_t i = (int64_t)hd_rng_below(rng, (uint64_t)j->prompts);
    hd_request r = hd_request_default();
    r.prompt = j->prompt[i];
    r.n_prompt = 1 + (int64_t)hd_rng_below(rng, (uint64_t)j->length[i]);
    r.max_tokens = 1 + (int64_t)hd_rng_below(rng, (uint64_t)j->tokens);
    r.sampling.temperature = 1;
    r.sampling.seed = hd_rng_u32(rng);
    r.priority = (int)hd_rng_below(rng, 3) - 1;
    r.n = 1 + (hd_rng_below(rng, 4) == 0);
    if (hd_rng_below(rng, 8) == 0) r.beams = 3;
    r.event = take;
    return r;
}

static hd_engine_stats finish(hd_engine *e, hd_error *err)
{
    hd_engine_stats s;
    for (bool busy = true; busy;) need(hd_engine_step(e, &busy, err), err);
    hd_engine_stats_read(e, &s);
    hd_engine_free(e);
    return s;
}

static void run_alone(job *j)
{
    hd_engine_options o = hd_engine_options_default();
    hd_error err = {0};
    o.prefix_cache = o.chunked_prefill = false;
    for (int64_t i = 0; i < j->prompts; i++) {
        hd_engine *e = hd_engine_new(j->r, NULL, &o, &err);
        need(!e, &err);
        hd_request r = request_of(j, i, &j->want[i]);
        need(hd_engine_submit(e, &r, NULL, &err), &err);
        finish(e, &err);
    }
}

/* The prompts come in between the neighbours; new neighbours come as long as prompts are on their way. */
static hd_engine_stats run_amid(job *j, const variant *v)
{
    hd_error err = {0};
    hd_engine_options o = v->o;
    hd_rng rng = hd_rng_new(5);
    bool busy;
    if (v->drafts) o.draft = j->draft;
    hd_engine *e = hd_engine_new(j->r, NULL, &o, &err);
    need(!e, &err);
    for (int64_t i = 0; i < j->prompts; i++) {
        for (int64_t k = i * j->neighbours / j->prompts; k < (i + 1) * j->neighbours / j->prompts; k++) {
            hd_request r = neighbour(j, &rng);
            if (o.kv_policy == HD_KV_RESERVE) r.beams = 0;
            need(hd_engine_submit(e, &r, NULL, &err), &err);
        }
        hd_request r = request_of(j, i, &j->got[i]);
        need(hd_engine_submit(e, &r, NULL, &err), &err);
        if (i % 2) need(hd_engine_step(e, &busy, &err), &err);
    }
    return finish(e, &err);
}

/* over: the ranks, "" of one. */
static bool compare(job *j, const char *over, const variant *v)
{
    double start = hd_time();
    hd_engine_stats s = run_amid(j, v);
    int64_t equal = 0, tokens = 0;
    for (int64_t i = 0; i < j->prompts; i++) {
        const answer *a = &j->want[i], *b = &j->got[i];
        bool same = a->ended && b->ended && a->n == b->n && !memcmp(a->tokens, b->tokens, (size_t)a->n * sizeof *a->tokens);
        equal += same && !memcmp(a->logprobs, b->logprobs, (size_t)a->n * sizeof *a->logprobs);
        tokens += b->n;
    }
    uint64_t must = 1;
    if (v->must) memcpy(&must, (const char *)&s + v->must, sizeof must);
    bool ok = equal == j->prompts && tokens == j->prompts * j->tokens && must > 0;
    char name[80];
    snprintf(name, sizeof name, "%s%s%s", over, *over ? ", " : "", v->name);
    printf("  %-44s equal %lld of %-3lld found %-6llu preempted %-4llu swapped %-4llu right guesses %llu of %llu, %.1f s  %s\n", name, (long long)equal,
           (long long)j->prompts, (unsigned long long)s.cached_tokens, (unsigned long long)s.preemptions, (unsigned long long)s.swaps_out,
           (unsigned long long)s.accepted, (unsigned long long)s.proposed, hd_time() - start, ok ? "PASS" : "FAIL");
    return ok;
}

static void make_prompts(job *j)
{
    hd_rng rng = hd_rng_new(3);
    int32_t common[COMMON];
    for (int i = 0; i < COMMON; i++) common[i] = (int32_t)hd_rng_below(&rng, (uint64_t)j->vocab);
    for (int64_t i = 0; i < j->prompts; i++) {
        j->length[i] = 1 + (int64_t)hd_rng_below(&rng, MOST_PROMPT);
        for (int64_t k = 0; k < j->length[i]; k++) j->prompt[i][k] = i % 2 && k < COMMON ? common[k] : (int32_t)hd_rng_below(&rng, (uint64_t)j->vocab);
    }
}

static hd_runner *open_runner(const job *j, const char *parallel)
{
    hd_runner *r;
    hd_error err = {0};
    hd_lm_runner_info info;
    hd_lm_runner_options o = hd_lm_runner_options_default();
    o.precision = j->precision;
    o.context = MOST_PROMPT + j->tokens + 8;
    o.block = BLOCK;
    o.max_parts = PARTS;
    o.max_tokens = 128;
    o.parallel = parallel;
    need(hd_lm_runner_open(&r, j->model, &o, &info, &err), &err);
    return r;
}

static bool compare_ranks(job *j, const char *parallel, const variant *v, size_t n)
{
    hd_runner *one = j->r;
    bool ok = true;
    j->r = open_runner(j, parallel);
    for (size_t i = 0; i < n; i++) ok &= compare(j, parallel, &v[i]);
    j->r->close(j->r);
    j->r = one;
    return ok;
}

int main(int argc, char **argv)
{
    if (argc < 3) return fprintf(stderr, "check_invariance MODEL PRECISION [PROMPTS [TOKENS [NEIGHBOURS]]]\n"), 2;
    job j = {.model = argv[1], .precision = strcmp(argv[2], "bf16") ? HD_F32 : HD_BF16, .prompts = argc > 3 ? atoll(argv[3]) : 20,
             .tokens = argc > 4 ? atoll(argv[4]) : 128, .neighbours = argc > 5 ? atoll(argv[5]) : 31};
    size_t n = (size_t)j.prompts;
    j.r = open_runner(&j, NULL);
    j.draft = open_runner(&j, NULL);
    j.vocab = j.r->vocab;
    j.prompt = take_memory(n, sizeof *j.prompt);
    j.length = take_memory(n, sizeof *j.length);
    j.want = take_memory(n, sizeof *j.want);
    j.got = take_memory(n, sizeof *j.got);
    for (size_t i = 0; i < 2 * n; i++) {
        answer *a = i < n ? &j.want[i] : &j.got[i - n];
        a->tokens = take_memory((size_t)j.tokens, sizeof *a->tokens);
        a->logprobs = take_memory((size_t)j.tokens, sizeof *a->logprobs);
    }
    make_prompts(&j);
    run_alone(&j);
    hd_engine_options o = hd_engine_options_default(), bare = o, whole = o, small = o, again = o, swap = o, look = o, draft = o, reserve = o, order = o;
    bare.prefix_cache = false;
    whole.chunked_prefill = false;
    small.token_budget = 40, small.prompt_budget = 7;
    again.force_preempt = 5;
    swap.force_preempt = 5, swap.preemption = HD_PREEMPT_SWAP, swap.swap_bytes = 256 << 20;
    look.ngram = 4;
    draft.draft_tokens = 3;
    reserve.kv_policy = HD_KV_RESERVE;
    order.by_priority = true, order.max_sequences = 4;
    const variant all[] = {
        {"amid neighbours", o, false, offsetof(hd_engine_stats, cached_tokens)},
        {"without the prefix cache", bare, false, 0},
        {"prompts in steps of their own", whole, false, 0},
        {"small chunks", small, false, 0},
        {"preempted, computed again", again, false, offsetof(hd_engine_stats, preemptions)},
        {"preempted, swapped", swap, false, offsetof(hd_engine_stats, swaps_out)},
        {"speculation by looking up", look, false, offsetof(hd_engine_stats, proposed)},
        {"speculation by a draft model", draft, true, offsetof(hd_engine_stats, accepted)},
        {"reserved K/V memory", reserve, false, 0},
        {"by priority, few at once", order, false, offsetof(hd_engine_stats, preemptions)},
    };
    const variant over_ranks[] = {
        {"without the prefix cache", bare, false, 0},
        {"small chunks", small, false, offsetof(hd_engine_stats, cached_tokens)},
        {"preempted, swapped", swap, false, offsetof(hd_engine_stats, swaps_out)},
        {"speculation by a draft model", draft, true, offsetof(hd_engine_stats, accepted)},
    };
    static const char *const forms[] = {"tp=2", "pp=3", "tp=2,pp=2"};
    bool ok = true;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) ok &= compare(&j, "", &all[i]);
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) ok &= compare_ranks(&j, forms[i], over_ranks, sizeof over_ranks / sizeof *over_ranks);
    ok &= compare_ranks(&j, "tp=4", over_ranks, 1); /* two ranks for each key/value head */
    for (size_t i = 0; i < 2 * n; i++) {
        answer *a = i < n ? &j.want[i] : &j.got[i - n];
        hd_free(a->tokens);
        hd_free(a->logprobs);
    }
    hd_free(j.prompt);
    hd_free(j.length);
    hd_free(j.want);
    hd_free(j.got);
    j.r->close(j.r);
    j.draft->close(j.draft);
    return !ok;
}
