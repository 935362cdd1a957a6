#include "serve/generator.h"

#include "base/term.h"
#include "serve/outlet.h"

/* ---- life cycle ---- */

static int build(hd_generator *g, const hd_generator_options *o, hd_error *err)
{
    const hd_lm_config *c = &g->files.config;
    int64_t most = c->max_positions ? c->max_positions : 4096;
    g->context = o->context ? o->context : most < 4096 ? most : 4096;
    if (g->context > most && c->family == HD_FAMILY_GPT2)
        return hd_fail(err, HD_EINVAL, "a context of %lld tokens is more than the %lld positions of this model", (long long)g->context, (long long)most);
    g->chunk = o->chunk ? o->chunk : 512;
    if (g->chunk > g->context) g->chunk = g->context;
    hd_lm_options lm = {.mode = HD_LM_GENERATE, .compute = o->precision, .param = o->precision, .tokens = g->chunk, .context = g->context, .rows = 1};
    g->graph = hd_lm_graph(c, &lm, err);
    return g->graph ? hd_model_finish_graph(&g->files, g->graph, &g->backend, NULL, NULL, err) : err->code;
}

static int lower(hd_generator *g, const hd_generator_options *o, hd_error *err)
{
    hd_plan plan = hd_plan_default();
    plan.precision = o->precision;
    plan.threads = o->threads ? o->threads : hd_core_count();
    plan.pack = o->pack;
    int rc = hd_lower(g->graph, &plan, &g->backend.target, &g->program, err);
    if (!rc && !(g->team = hd_team_new(plan.threads, true, err))) rc = err->code;
    return rc;
}

static int find_inputs(hd_generator *g, hd_error *err)
{
    const struct { const char *name; hd_tensor *to; } inputs[] = {
        {"tokens", &g->tokens}, {"positions", &g->positions}, {"segments", &g->segments}, {"slots", &g->slots},
        {"context_positions", &g->context_positions}, {"context_segments", &g->context_segments}, {"rows", &g->rows},
    };
    for (size_t i = 0; i < sizeof inputs / sizeof inputs[0]; i++) {
        if (hd_program_input(g->program, inputs[i].name) < 0) continue; /* nothing in this model reads it */
        if (hd_exec_input(g->exec, inputs[i].name, inputs[i].to, err)) return err->code;
    }
    return 0;
}

static int open_model(hd_generator *g, const hd_generator_options *asked, hd_error *err)
{
    hd_generator_options o = *asked;
    g->files.keep_blocks = o.pack;
    int rc = hd_backend_open(&g->backend, o.backend ? o.backend : "cpu", err);
    if (!rc && hd_model_files_in_blocks(&g->files, g->backend.isa)) o.precision = HD_F32;
    if (!rc) rc = build(g, &o, err);
    if (!rc) rc = lower(g, &o, err);
    if (!rc) rc = hd_model_check_memory(g->program, 1, "a smaller --context, or --precision bf16", err);
    if (!rc) hd_model_leave_empty(&g->files, g->graph);
    if (!rc && !(g->store = hd_model_store(&g->files, g->graph, 0, err))) rc = err->code;
    if (!rc && !(g->exec = hd_exec_new(g->program, g->store, &g->backend, g->team, err))) rc = err->code;
    if (!rc) hd_model_drop_plain(g->store, g->program);
    if (!rc) rc = find_inputs(g, err);
    if (rc) hd_generator_close(g);
    return rc;
}

int hd_generator_open(hd_generator *g, const char *dir, const hd_generator_options *o, hd_error *err)
{
    *g = (hd_generator){0};
    int rc = hd_model_files_open(&g->files, dir, err);
    return rc ? rc : open_model(g, o, err);
}

int hd_generator_open_random(hd_generator *g, const hd_lm_config *c, uint64_t seed, const hd_generator_options *o, hd_error *err)
{
    *g = (hd_generator){.files = {.config = *c, .seed = seed}};
    return open_model(g, o, err);
}

void hd_generator_close(hd_generator *g)
{
    hd_exec_free(g->exec);
    hd_team_free(g->team);
    hd_program_free(g->program);
    hd_store_free(g->store);
    hd_graph_free(g->graph);
    hd_model_files_close(&g->files);
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

static void put(const hd_tensor *t, int64_t i, int64_t v)
{
    if (t->data) ((int32_t *)t->data)[i] = (int32_t)v;
}

static void fill_inputs(hd_generator *g, const int32_t *tokens, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        put(&g->tokens, i, tokens[i]);
        put(&g->positions, i, g->length + i);
        put(&g->segments, i, 0);
        put(&g->slots, i, g->length + i);
        put(&g->context_positions, g->length + i, g->length + i);
        put(&g->context_segments, g->length + i, 0);
    }
    put(&g->rows, 0, n - 1);
}

static int64_t symbol_value(const hd_generator *g, const char *name, int64_t tokens)
{
    if (!strcmp(name, "tokens")) return tokens;
    return strcmp(name, "context") ? 1 : g->length + tokens; /* the other one is "rows" */
}

static int feed_chunk(hd_generator *g, const int32_t *tokens, int64_t n, hd_error *err)
{
    fill_inputs(g, tokens, n);
    for (int segment = 0; segment < g->program->n_segments; segment++) {
        hd_call call = hd_program_call(g->program, segment);
        for (int s = 0; s < g->program->n_symbols; s++) call.binding[s] = symbol_value(g, g->program->symbols[s].name, n);
        bool prepared = segment < g->program->repeat_first && g->length > 0;
        if (!prepared && hd_exec_call(g->exec, &call, err)) return err->code;
    }
    g->length += n;
    return 0;
}

static int check_tokens(const hd_generator *g, const int32_t *tokens, int64_t n, hd_error *err)
{
    if (n < 1) return hd_fail(err, HD_EINVAL, "there is no token to start from: give a prompt");
    if (g->length + n > g->context)
        return hd_fail(err, HD_EINVAL, "%lld tokens are more than the context of %lld", (long long)(g->length + n), (long long)g->context);
    for (int64_t i = 0; i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= g->files.config.vocab)
            return hd_fail(err, HD_EINVAL, "token %d is not in the model's vocabulary of %lld", tokens[i], (long long)g->files.config.vocab);
    return 0;
}

int hd_generator_feed(hd_generator *g, const int32_t *tokens, int64_t n, const float **logits, hd_error *err)
{
    int rc = check_tokens(g, tokens, n, err);
    for (int64_t i = 0; i < n && !rc; i += g->chunk) rc = feed_chunk(g, tokens + i, n - i < g->chunk ? n - i : g->chunk, err);
    hd_tensor out;
    if (!rc) rc = hd_exec_output(g->exec, "logits", &out, err);
    if (!rc) *logits = out.data;
    return rc;
}

/* ---- generating ---- */

static bool is_eos(const hd_generator *g, int32_t token)
{
    for (int i = 0; i < g->files.config.n_eos; i++)
        if (g->files.config.eos[i] == token) return true;
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
    if (g->files.tokenizer) rc = hd_token_stream_push(g->files.tokenizer, &x->stream, token, true, &x->outlet.held, err);
    if (rc) return rc;
    release(x, false);
    if (x->outlet.stopped) return x->out->why = HD_STOP_STRING, 0;
    if (x->refused) return x->out->why = HD_STOP_CALLER, 0;
    if (x->out->new_tokens >= x->r->max_tokens) return x->out->why = HD_STOP_LENGTH, 0;
    if (g->length >= g->context) return x->out->why = HD_STOP_CONTEXT, 0;
    *done = false;
    return hd_generator_feed(g, &token, 1, &x->logits, err);
}

int hd_generate(hd_generator *g, const int32_t *prompt, int64_t n, const hd_generate_request *r, hd_generate_result *out, hd_error *err)
{
    *out = (hd_generate_result){.prompt_tokens = n};
    generation x = {.g = g, .r = r, .out = out};
    hd_outlet_init(&x.outlet, r->stop, r->n_stop);
    x.sampler = hd_token_sampler_new(&r->sampling, g->files.config.vocab, err);
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
