#include "serve/generator.h"

#include <stdio.h>
#include "base/file.h"
#include "base/term.h"
#include "data/tokenizer_gguf.h"
#include "models/gguf.h"
#include "models/weights.h"
#include "passes/passes.h"

/* ---- life cycle ---- */

static int build(hd_generator *g, const hd_generator_options *o, hd_error *err)
{
    int64_t most = g->config.max_positions ? g->config.max_positions : 4096;
    g->context = o->context ? o->context : most < 4096 ? most : 4096;
    if (g->context > most && g->config.family == HD_FAMILY_GPT2)
        return hd_fail(err, HD_EINVAL, "a context of %lld tokens is more than the %lld positions of this model", (long long)g->context, (long long)most);
    g->chunk = o->chunk ? o->chunk : 512;
    if (g->chunk > g->context) g->chunk = g->context;
    hd_lm_options lm = {.mode = HD_LM_GENERATE, .compute = o->precision, .param = o->precision, .tokens = g->chunk, .context = g->context, .rows = 1};
    g->graph = hd_lm_graph(&g->config, &lm, err);
    if (!g->graph) return err->code;
    hd_pass_fuse_residual_norm(g->graph);
    hd_graph_cse(g->graph);
    hd_graph_dce(g->graph);
    hd_pass_fuse_elementwise(g->graph);
    hd_graph_sort_by_depth(g->graph); /* for one token, what counts is how often the threads must meet */
    return hd_graph_verify(g->graph, err);
}

static int lower(hd_generator *g, const hd_generator_options *o, hd_error *err)
{
    hd_plan plan = hd_plan_default();
    plan.precision = o->precision;
    plan.threads = o->threads ? o->threads : hd_core_count();
    plan.pack = o->pack;
    int rc = hd_backend_open(&g->backend, o->backend ? o->backend : "cpu", err);
    if (!rc) rc = hd_lower(g->graph, &plan, &g->backend.target, &g->program, err);
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

/* Plain weights that no instruction reads, since they are held packed. */
static void drop_plain(hd_generator *g)
{
    for (size_t i = g->store->n_tensors; i-- > 0;) {
        const char *path = g->store->tensors[i]->path;
        if (g->store->tensors[i]->format == HD_PLAIN && hd_program_find(g->program, path) < 0) hd_store_drop(g->store, path);
    }
}

static int check_memory(const hd_generator *g, hd_error *err)
{
    hd_memory m;
    char need[24], have[24];
    if (hd_program_memory(g->program, &m, err)) return err->code;
    uint64_t available = hd_memory_available();
    if ((uint64_t)m.total <= available) return 0;
    return hd_fail(err, HD_EMEMCAP, "this model needs %lld bytes (%s) and %llu (%s) are available: try a smaller --context, or --precision bf16",
                   (long long)m.total, hd_format_bytes(need, (double)m.total), (unsigned long long)available, hd_format_bytes(have, (double)available));
}

/* All parameters will be read: none is drawn first. */
static void leave_empty(hd_graph *g)
{
    for (size_t i = 0; i < g->n_values; i++)
        if (g->values[i].kind == HD_PARAM) g->values[i].init = NULL;
}

/* dir NULL: random weights from seed. */
static int open_model(hd_generator *g, const char *dir, uint64_t seed, const hd_generator_options *o, hd_error *err)
{
    int rc = build(g, o, err);
    if (!rc) rc = lower(g, o, err);
    if (!rc) rc = check_memory(g, err);
    if (!rc && dir) leave_empty(g->graph);
    if (!rc && !(g->store = hd_store_new(g->graph, seed, err))) rc = err->code;
    if (!rc && dir) rc = hd_lm_weights_load(g->store, &g->config, dir, err);
    if (!rc && !(g->exec = hd_exec_new(g->program, g->store, &g->backend, g->team, err))) rc = err->code;
    if (!rc) drop_plain(g);
    if (!rc) rc = find_inputs(g, err);
    if (rc) hd_generator_close(g);
    return rc;
}

/* The tokenizer that a directory or a GGUF file has; none is no error. */
static int open_tokenizer(hd_generator *g, const char *model, hd_error *err)
{
    char path[4096];
    if (hd_gguf_is(model)) return hd_tokenizer_open_gguf(&g->tokenizer, model, err);
    int rc = hd_path_join(path, sizeof path, model, "tokenizer.json", err);
    if (!rc && hd_file_exists(path) && !(g->tokenizer = hd_tokenizer_load(path, err))) rc = err->code;
    return rc;
}

int hd_generator_open(hd_generator *g, const char *dir, const hd_generator_options *o, hd_error *err)
{
    *g = (hd_generator){0};
    int rc = hd_lm_config_open(&g->config, dir, err);
    if (!rc) rc = open_tokenizer(g, dir, err);
    if (rc) {
        hd_generator_close(g);
        return rc;
    }
    return open_model(g, dir, 0, o, err);
}

int hd_generator_open_random(hd_generator *g, const hd_lm_config *c, uint64_t seed, const hd_generator_options *o, hd_error *err)
{
    *g = (hd_generator){.config = *c};
    return open_model(g, NULL, seed, o, err);
}

void hd_generator_close(hd_generator *g)
{
    hd_exec_free(g->exec);
    hd_team_free(g->team);
    hd_program_free(g->program);
    hd_store_free(g->store);
    hd_graph_free(g->graph);
    hd_tokenizer_free(g->tokenizer);
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
        if (tokens[i] < 0 || tokens[i] >= g->config.vocab)
            return hd_fail(err, HD_EINVAL, "token %d is not in the model's vocabulary of %lld", tokens[i], (long long)g->config.vocab);
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

/* Text on its way to the caller: what could still become a stop string waits. */
typedef struct outlet {
    const hd_generate_request *r;
    hd_str held;
    bool stopped; /* a stop string came */
    bool refused; /* the caller had enough */
} outlet;

static void emit(outlet *o, size_t n)
{
    if (n && o->r->text && o->r->text(o->r->arg, o->held.data, n)) o->refused = true;
    memmove(o->held.data, o->held.data + n, o->held.len - n);
    o->held.len -= n;
    o->held.data[o->held.len] = 0;
}

/* Where the first stop string stands whole, or the length. */
static size_t find_stop(const outlet *o)
{
    size_t at = o->held.len;
    for (int i = 0; i < o->r->n_stop; i++) {
        const char *hit = memmem(o->held.data, o->held.len, o->r->stop[i], strlen(o->r->stop[i]));
        if (hit && (size_t)(hit - o->held.data) < at) at = (size_t)(hit - o->held.data);
    }
    return at;
}

/* How many bytes at the end could be the beginning of a stop string. */
static size_t possible_stop(const outlet *o)
{
    size_t most = 0;
    for (int i = 0; i < o->r->n_stop; i++) {
        size_t n = strlen(o->r->stop[i]);
        for (size_t k = n ? n - 1 : 0; k > most; k--)
            if (k <= o->held.len && !memcmp(o->held.data + o->held.len - k, o->r->stop[i], k)) most = k;
    }
    return most;
}

static void release(outlet *o, bool all)
{
    if (!o->held.len) return;
    size_t at = find_stop(o);
    if (at < o->held.len) {
        o->stopped = true;
        emit(o, at);
    } else {
        emit(o, all ? o->held.len : o->held.len - possible_stop(o));
    }
}

static bool is_eos(const hd_generator *g, int32_t token)
{
    for (int i = 0; i < g->config.n_eos; i++)
        if (g->config.eos[i] == token) return true;
    return false;
}

typedef struct generation {
    hd_generator *g;
    const hd_generate_request *r;
    hd_generate_result *out;
    hd_token_sampler *sampler;
    hd_token_stream stream;
    outlet outlet;
    const float *logits;
} generation;

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
    if (g->tokenizer) rc = hd_token_stream_push(g->tokenizer, &x->stream, token, true, &x->outlet.held, err);
    if (rc) return rc;
    release(&x->outlet, false);
    if (x->outlet.stopped) return x->out->why = HD_STOP_STRING, 0;
    if (x->outlet.refused) return x->out->why = HD_STOP_CALLER, 0;
    if (x->out->new_tokens >= x->r->max_tokens) return x->out->why = HD_STOP_LENGTH, 0;
    if (g->length >= g->context) return x->out->why = HD_STOP_CONTEXT, 0;
    *done = false;
    return hd_generator_feed(g, &token, 1, &x->logits, err);
}

int hd_generate(hd_generator *g, const int32_t *prompt, int64_t n, const hd_generate_request *r, hd_generate_result *out, hd_error *err)
{
    *out = (hd_generate_result){.prompt_tokens = n};
    generation x = {.g = g, .r = r, .out = out, .outlet = {.r = r}};
    hd_str_init(&x.outlet.held);
    x.sampler = hd_token_sampler_new(&r->sampling, g->config.vocab, err);
    int rc = x.sampler ? 0 : err->code;
    double start = hd_time();
    if (!rc) rc = hd_generator_feed(g, prompt, n, &x.logits, err);
    for (int64_t i = 0; i < n && !rc; i++) hd_token_sampler_see(x.sampler, prompt[i], false);
    out->prompt_seconds = hd_time() - start;
    start = hd_time();
    for (bool done = r->max_tokens <= 0; !rc && !done;) rc = one_token(&x, &done, err);
    if (!rc) rc = hd_token_stream_end(&x.stream, &x.outlet.held, err);
    if (!rc && !x.outlet.stopped && !x.outlet.refused) release(&x.outlet, true);
    out->new_seconds = hd_time() - start;
    hd_token_sampler_free(x.sampler);
    hd_str_free(&x.outlet.held);
    return rc;
}
