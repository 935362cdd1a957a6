#include "serve/generator.h"

#include "base/term.h"
#include "serve/outlet.h"

enum { BLOCK = 16 /* positions in a block */ };

/* ---- life cycle ---- */

/* The runner's settings. */
static int complete(const hd_model_files *files, const hd_generator_options *o, hd_lm_runner_options *r, hd_error *err)
{
    hd_backend cpu;
    int64_t most = files->config.max_positions ? files->config.max_positions : 4096;
    int rc = hd_backend_open(&cpu, "cpu", err);
    if (rc) return rc;
    *r = hd_lm_runner_options_default();
    r->precision = r->kv = hd_model_files_in_blocks(files, cpu.isa) ? HD_F32 : o->precision;
    r->threads = o->threads;
    r->weight_cache = o->weight_cache;
    r->context = o->context ? o->context : most < 4096 ? most : 4096;
    r->max_tokens = o->chunk ? o->chunk : 512;
    if (r->max_tokens > r->context) r->max_tokens = r->context;
    r->max_parts = r->max_rows = 1;
    r->block = BLOCK;
    r->blocks = (r->context + BLOCK - 1) / BLOCK;
    r->advice = "a smaller --context, or --precision bf16";
    return 0;
}

/* Takes over *files. */
static int open_runner(hd_generator *g, hd_model_files *files, const hd_generator_options *o, hd_error *err)
{
    hd_lm_runner_options r;
    int rc = complete(files, o, &r, err);
    if (rc) hd_model_files_close(files);
    else rc = hd_lm_runner_open_files(&g->runner, files, &r, &g->info, err);
    if (rc) return rc;
    g->table = hd_malloc((size_t)g->runner->blocks * sizeof *g->table);
    for (int64_t i = 0; g->table && i < g->runner->blocks; i++) g->table[i] = (int32_t)i;
    if (g->table) return 0;
    hd_generator_close(g);
    return hd_fail_memory(err, 0, "a table of blocks");
}

int hd_generator_open(hd_generator *g, const char *path, const hd_generator_options *o, hd_error *err)
{
    hd_model_files files;
    *g = (hd_generator){0};
    int rc = hd_model_files_open(&files, path, err);
    return rc ? rc : open_runner(g, &files, o, err);
}

int hd_generator_open_random(hd_generator *g, const hd_lm_config *c, uint64_t seed, const hd_generator_options *o, hd_error *err)
{
    hd_model_files files = {.config = *c, .seed = seed};
    *g = (hd_generator){0};
    return open_runner(g, &files, o, err);
}

void hd_generator_close(hd_generator *g)
{
    if (g->runner) g->runner->close(g->runner);
    hd_free(g->table);
    *g = (hd_generator){0};
}

/* ---- feeding ---- */

void hd_generator_reset(hd_generator *g)
{
    g->length = 0;
}

void hd_generator_rewind(hd_generator *g, int64_t length)
{
    if (length < g->length) g->length = length;
}

static int check_tokens(const hd_generator *g, const int32_t *tokens, int64_t n, hd_error *err)
{
    const hd_runner *r = g->runner;
    if (n < 1) return hd_fail(err, HD_EINVAL, "there is no token to start from: give a prompt");
    if (g->length + n > r->max_context)
        return hd_fail(err, HD_EINVAL, "%lld tokens are more than the context of %lld", (long long)(g->length + n), (long long)r->max_context);
    for (int64_t i = 0; i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= r->vocab)
            return hd_fail(err, HD_EINVAL, "token %d is not in the model's vocabulary of %lld", tokens[i], (long long)r->vocab);
    return 0;
}

int hd_generator_feed(hd_generator *g, const int32_t *tokens, int64_t n, const float **logits, hd_error *err)
{
    hd_runner *r = g->runner;
    int rc = check_tokens(g, tokens, n, err);
    for (int64_t i = 0, m; i < n && !rc; i += m) {
        m = n - i < r->max_tokens ? n - i : r->max_tokens;
        hd_batch_part part = {tokens + i, m, g->length, g->table, i + m == n};
        rc = hd_runner_step(r, &(hd_batch){&part, 1}, err);
        if (!rc) g->length += m;
    }
    if (!rc) *logits = r->logits(r, 0);
    return rc;
}

/* ---- generating ---- */

static bool is_eos(const hd_generator *g, int32_t token)
{
    for (int i = 0; i < g->info.config->n_eos; i++)
        if (g->info.config->eos[i] == token) return true;
    return false;
}

typedef struct generation {
    hd_generator *g;
    const hd_generate_request *r;
    hd_generate_result *out;
    hd_token_sampler *sampler;
    hd_token_stream stream;
    hd_outlet outlet;
    bool refused; /* the caller had enough */
    const float *logits;
} generation;

/* Hands on the text that may go out. */
static void release(generation *x, bool all)
{
    hd_outlet *o = &x->outlet;
    hd_outlet_look(o, all);
    if (o->ready && x->r->text && x->r->text(x->r->arg, o->held.data, o->ready)) x->refused = true;
    hd_outlet_drop(o);
}

/* Draws one token and feeds it. *done is set when the text ends with it. */
static int one_token(generation *x, bool *done, hd_error *err)
{
    hd_generator *g = x->g;
    int32_t token = hd_token_sampler_draw(x->sampler, x->logits, NULL, x->out->new_tokens);
    int rc = 0;
    *done = true;
    if (token < 0) return hd_fail(err, HD_ENUMERIC, "the model's logits are not numbers");
    if (is_eos(g, token) && !x->r->ignore_eos) return x->out->why = HD_STOP_EOS, 0;
    x->out->new_tokens++;
    hd_token_sampler_see(x->sampler, token, true);
    if (x->r->drawn && (rc = hd_ids_append(x->r->drawn, token, err))) return rc;
    if (g->info.tokenizer) rc = hd_token_stream_push(g->info.tokenizer, &x->stream, token, true, &x->outlet.held, err);
    if (rc) return rc;
    release(x, false);
    if (x->outlet.stopped) return x->out->why = HD_STOP_STRING, 0;
    if (x->refused) return x->out->why = HD_STOP_CALLER, 0;
    if (x->out->new_tokens >= x->r->max_tokens) return x->out->why = HD_STOP_LENGTH, 0;
    if (g->length >= g->runner->max_context) return x->out->why = HD_STOP_CONTEXT, 0;
    *done = false;
    return hd_generator_feed(g, &token, 1, &x->logits, err);
}

int hd_generate(hd_generator *g, const int32_t *prompt, int64_t n, const hd_generate_request *r, hd_generate_result *out, hd_error *err)
{
    *out = (hd_generate_result){.prompt_tokens = n};
    generation x = {.g = g, .r = r, .out = out};
    hd_outlet_init(&x.outlet, r->stop, r->n_stop);
    x.sampler = hd_token_sampler_new(&r->sampling, g->info.config->vocab, err);
    int rc = x.sampler ? 0 : err->code;
    double start = hd_time();
    if (!rc) rc = hd_generator_feed(g, prompt, n, &x.logits, err);
    for (int64_t i = 0; i < n && !rc; i++) hd_token_sampler_see(x.sampler, prompt[i], false);
    out->prompt_seconds = hd_time() - start;
    start = hd_time();
    for (bool done = r->max_tokens <= 0; !rc && !done;) rc = one_token(&x, &done, err);
    if (!rc) rc = hd_token_stream_end(&x.stream, &x.outlet.held, err);
    if (!rc && !x.outlet.stopped && !x.refused) release(&x, true);
    out->new_seconds = hd_time() - start;
    hd_token_sampler_free(x.sampler);
    hd_outlet_free(&x.outlet);
    return rc;
}
