/* api_fields.c: the fields of a request, as one table: who takes them, their types and ranges. A name that nobody knows is refused, as OpenAI does; so is
 * what would have to be ignored to be accepted. */
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include "serve/server_int.h"

int hd_call_wrong(hd_call *c, int status, const char *param, const char *code, const char *fmt, ...)
{
    va_list args;
    char message[900];
    if (c->status) return HD_EINVAL;
    va_start(args, fmt);
    vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    c->status = status;
    c->error_message = hd_arena_strdup(&c->arena, message);
    c->error_param = param ? hd_arena_strdup(&c->arena, param) : NULL;
    c->error_code = code;
    return HD_EINVAL;
}

int hd_call_no_memory(hd_call *c) { return hd_call_wrong(c, 503, NULL, NULL, "out of memory"); }

/* ---- fields with a reader of their own ---- */

static int wrong_type(hd_call *c, const char *name, const char *what)
{
    return hd_call_wrong(c, 400, name, "invalid_type", "'%s' must be %s", name, what);
}

/* "a", or ["a", "b"] of at most 16. */
static int read_stop(hd_call *c, const char *name, const json_t *v)
{
    size_t n = json_is_array(v) ? json_array_size(v) : 1;
    if (!json_is_array(v) && !json_is_string(v)) return wrong_type(c, name, "a string or an array of strings");
    if (n > 16) return hd_call_wrong(c, 400, name, NULL, "'%s' may have at most 16 strings", name);
    c->params.stop = hd_arena_alloc(&c->arena, n * sizeof *c->params.stop);
    if (!c->params.stop) return hd_call_no_memory(c);
    for (size_t i = 0; i < n; i++) {
        const json_t *s = json_is_array(v) ? json_array_get(v, i) : v;
        size_t bytes = json_string_length(s);
        if (!json_is_string(s)) return wrong_type(c, name, "a string or an array of strings");
        if (!bytes || bytes > 1024) return hd_call_wrong(c, 400, name, NULL, "'%s': each string must have 1 to 1024 bytes", name);
        if (strlen(json_string_value(s)) != bytes) return hd_call_wrong(c, 400, name, NULL, "'%s': a NUL character can't be a stop", name);
        c->params.stop[c->params.n_stop] = hd_arena_strdup(&c->arena, json_string_value(s));
        if (!c->params.stop[c->params.n_stop++]) return hd_call_no_memory(c);
    }
    return 0;
}

static int32_t vocab_of(const hd_call *c)
{
    const hd_served *m = c->server->model;
    return m->tokenizer ? hd_tokenizer_vocab_size(m->tokenizer) : INT32_MAX;
}

static int read_stop_tokens(hd_call *c, const char *name, const json_t *v)
{
    size_t n = json_array_size(v);
    if (!json_is_array(v)) return wrong_type(c, name, "an array of token ids");
    if (n > 64) return hd_call_wrong(c, 400, name, NULL, "'%s' may have at most 64 ids", name);
    int32_t *ids = hd_arena_alloc(&c->arena, (n + 1) * sizeof *ids);
    if (!ids) return hd_call_no_memory(c);
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_array_get(v, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= vocab_of(c))
            return hd_call_wrong(c, 400, name, NULL, "'%s' must hold token ids from 0 to %d", name, vocab_of(c) - 1);
        ids[i] = (int32_t)json_integer_value(id);
    }
    c->params.stop_tokens = ids;
    c->params.n_stop_tokens = (int)n;
    return 0;
}

static bool parse_id(const char *s, int64_t most, int32_t *id)
{
    int64_t x = 0;
    if (!*s) return false;
    for (; *s; s++) {
        if (*s < '0' || *s > '9') return false;
        x = x * 10 + (*s - '0');
        if (x >= most) return false;
    }
    *id = (int32_t)x;
    return true;
}

static int read_bias(hd_call *c, const char *name, const json_t *v)
{
    const char *key;
    json_t *b;
    if (!json_is_object(v)) return wrong_type(c, name, "an object of token ids and numbers");
    if (json_object_size(v) > 4096) return hd_call_wrong(c, 400, name, NULL, "'%s' may name at most 4096 tokens", name);
    hd_logit_bias *bias = hd_arena_alloc(&c->arena, (json_object_size(v) + 1) * sizeof *bias);
    if (!bias) return hd_call_no_memory(c);
    int n = 0;
    json_object_foreach((json_t *)(uintptr_t)v, key, b)
    {
        double x = json_number_value(b);
        if (!parse_id(key, vocab_of(c), &bias[n].token)) return hd_call_wrong(c, 400, name, NULL, "'%s': \"%.40s\" is no token id of this model", name, key);
        if (!json_is_number(b) || !(x >= -100 && x <= 100)) return hd_call_wrong(c, 400, name, NULL, "'%s': a bias must be a number from -100 to 100", name);
        bias[n++].bias = (float)x;
    }
    c->params.sampling.bias = bias;
    c->params.sampling.n_bias = n;
    return 0;
}

static int read_stream_options(hd_call *c, const char *name, const json_t *v)
{
    const char *key;
    json_t *x;
    if (!json_is_object(v)) return wrong_type(c, name, "an object");
    json_object_foreach((json_t *)(uintptr_t)v, key, x)
    {
        bool known = !strcmp(key, "include_usage") || !strcmp(key, "continuous_usage_stats") || !strcmp(key, "include_obfuscation");
        if (!known) return hd_call_wrong(c, 400, name, "unknown_parameter", "'%s': there is no \"%.60s\"", name, key);
        if (!json_is_boolean(x) && !json_is_null(x)) return hd_call_wrong(c, 400, name, "invalid_type", "'%s': \"%.60s\" must be a boolean", name, key);
        if (strcmp(key, "include_usage") && json_is_true(x)) return hd_call_wrong(c, 400, name, NULL, "'%s': \"%.60s\" is not supported", name, key);
    }
    c->params.include_usage = json_is_true(json_object_get(v, "include_usage"));
    return 0;
}

/* completions: a number of likeliest tokens; chat: whether there are any. */
static int read_logprobs(hd_call *c, const char *name, const json_t *v)
{
    bool chat = c->api == &hd_api_chat;
    if (chat && !json_is_boolean(v)) return wrong_type(c, name, "a boolean");
    if (chat) {
        c->params.want_logprobs = json_is_true(v);
        return 0;
    }
    int64_t k = json_integer_value(v);
    if (!json_is_integer(v)) return wrong_type(c, name, "an integer");
    if (k < 0 || k > 20) return hd_call_wrong(c, 400, name, NULL, "'%s' must be from 0 to 20", name);
    c->params.want_logprobs = true;
    c->params.top_logprobs = k;
    return 0;
}

static int read_model(hd_call *c, const char *name, const json_t *v)
{
    if (!json_is_string(v)) return wrong_type(c, name, "a string");
    if (!strcmp(json_string_value(v), c->server->model->name)) return 0;
    return hd_call_wrong(c, 404, name, "model_not_found", "there is no model \"%.100s\" here, only \"%s\"", json_string_value(v), c->server->model->name);
}

static int read_seed(hd_call *c, const char *name, const json_t *v)
{
    if (!json_is_integer(v)) return wrong_type(c, name, "an integer");
    c->params.seed = json_integer_value(v);
    c->params.has_seed = true;
    return 0;
}

static int read_salt(hd_call *c, const char *name, const json_t *v)
{
    if (!json_is_string(v) || !json_string_length(v)) return wrong_type(c, name, "a string that isn't empty");
    c->params.salt = hd_guard_salt(c->salt, json_string_value(v));
    return 0;
}

static int read_tool_choice(hd_call *c, const char *name, const json_t *v)
{
    const char *s = json_string_value(v);
    if (s && (!strcmp(s, "none") || !strcmp(s, "auto"))) return 0;
    return hd_call_wrong(c, 400, name, "unsupported", "'%s' may only be \"none\" or \"auto\": a call of a tool can't be enforced here", name);
}

static int read_modalities(hd_call *c, const char *name, const json_t *v)
{
    const char *only = json_string_value(json_array_get(v, 0));
    if (json_array_size(v) == 1 && only && !strcmp(only, "text")) return 0;
    return hd_call_wrong(c, 400, name, "unsupported", "'%s' may only be [\"text\"]", name);
}

static int read_encoding(hd_call *c, const char *name, const json_t *v)
{
    const char *s = json_string_value(v);
    if (!s || (strcmp(s, "float") && strcmp(s, "base64"))) return hd_call_wrong(c, 400, name, NULL, "'%s' must be \"float\" or \"base64\"", name);
    c->params.base64 = s[0] == 'b';
    return 0;
}

static int read_dimensions(hd_call *c, const char *name, const json_t *v)
{
    if (!json_is_integer(v)) return wrong_type(c, name, "an integer");
    if (json_integer_value(v) == c->server->model->width) return 0;
    return hd_call_wrong(c, 400, name, NULL, "'%s': this model's embeddings have %lld numbers, and can't be cut", name, (long long)c->server->model->width);
}

static int read_suffix(hd_call *c, const char *name, const json_t *v)
{
    if (json_is_string(v) && !json_string_length(v)) return 0;
    return hd_call_wrong(c, 400, name, "unsupported", "'%s' is not supported: this model only goes on from a prompt", name);
}

static int refuse(hd_call *c, const char *name, const json_t *v)
{
    (void)v;
    return hd_call_wrong(c, 400, name, "unsupported", "'%s' is not supported", name);
}

/* ---- the table ---- */

typedef enum kind { INT, NUM, BOOL, OWN /* `read` */, PASS /* whoever uses it looks at it, or nothing depends on it */ } kind;

typedef struct field {
    const char *name;
    int endpoints;
    kind kind;
    size_t at;              /* in hd_params */
    double lo, hi;
    int (*read)(hd_call *c, const char *name, const json_t *v);
} field;

#define P(member) offsetof(hd_params, member)
#define MOST_TOKENS 1e9
static const field table[] = {
    {"model", HD_FOR_BOTH | HD_FOR_EMBED, OWN, 0, 0, 0, read_model},
    {"messages", HD_FOR_CHAT, PASS, 0, 0, 0, NULL},
    {"prompt", HD_FOR_TEXT, PASS, 0, 0, 0, NULL},
    {"input", HD_FOR_EMBED, PASS, 0, 0, 0, NULL},
    {"temperature", HD_FOR_BOTH, NUM, P(sampling.temperature), 0, 2, NULL},
    {"top_p", HD_FOR_BOTH, NUM, P(sampling.top_p), 0, 1, NULL},
    {"top_k", HD_FOR_BOTH, INT, P(sampling.top_k), -1, 1e9, NULL},
    {"min_p", HD_FOR_BOTH, NUM, P(sampling.min_p), 0, 1, NULL},
    {"typical_p", HD_FOR_BOTH, NUM, P(sampling.typical_p), 0, 1, NULL},
    {"repetition_penalty", HD_FOR_BOTH, NUM, P(sampling.repetition_penalty), 0.01, 100, NULL},
    {"frequency_penalty", HD_FOR_BOTH, NUM, P(sampling.frequency_penalty), -2, 2, NULL},
    {"presence_penalty", HD_FOR_BOTH, NUM, P(sampling.presence_penalty), -2, 2, NULL},
    {"length_penalty", HD_FOR_BOTH, NUM, P(length_penalty), -10, 10, NULL},
    {"logit_bias", HD_FOR_BOTH, OWN, 0, 0, 0, read_bias},
    {"seed", HD_FOR_BOTH, OWN, 0, 0, 0, read_seed},
    {"n", HD_FOR_BOTH, INT, P(n), 1, 128, NULL},
    {"best_of", HD_FOR_BOTH, INT, P(best_of), 1, 128, NULL},
    {"use_beam_search", HD_FOR_BOTH, BOOL, P(beams), 0, 0, NULL},
    {"max_tokens", HD_FOR_BOTH, INT, P(max_tokens), 0, MOST_TOKENS, NULL},
    {"max_completion_tokens", HD_FOR_CHAT, INT, P(max_tokens), 0, MOST_TOKENS, NULL},
    {"min_tokens", HD_FOR_BOTH, INT, P(min_tokens), 0, MOST_TOKENS, NULL},
    {"ignore_eos", HD_FOR_BOTH, BOOL, P(ignore_eos), 0, 0, NULL},
    {"stop", HD_FOR_BOTH, OWN, 0, 0, 0, read_stop},
    {"stop_token_ids", HD_FOR_BOTH, OWN, 0, 0, 0, read_stop_tokens},
    {"skip_special_tokens", HD_FOR_BOTH, BOOL, P(skip_special), 0, 0, NULL},
    {"stream", HD_FOR_BOTH, BOOL, P(stream), 0, 0, NULL},
    {"stream_options", HD_FOR_BOTH, OWN, 0, 0, 0, read_stream_options},
    {"echo", HD_FOR_TEXT, BOOL, P(echo), 0, 0, NULL},
    {"logprobs", HD_FOR_BOTH, OWN, 0, 0, 0, read_logprobs},
    {"top_logprobs", HD_FOR_CHAT, INT, P(top_logprobs), 0, 20, NULL},
    {"prompt_logprobs", HD_FOR_BOTH, INT, P(prompt_logprobs), 0, 20, NULL},
    {"priority", HD_FOR_BOTH, INT, P(priority), -1000000, 1000000, NULL},
    {"cache_salt", HD_FOR_BOTH, OWN, 0, 0, 0, read_salt},
    {"response_format", HD_FOR_BOTH, PASS, 0, 0, 0, NULL},
    {"guided_json", HD_FOR_BOTH, PASS, 0, 0, 0, NULL},
    {"guided_regex", HD_FOR_BOTH, PASS, 0, 0, 0, NULL},
    {"guided_grammar", HD_FOR_BOTH, PASS, 0, 0, 0, NULL},
    {"guided_choice", HD_FOR_BOTH, PASS, 0, 0, 0, NULL},
    {"regex", HD_FOR_BOTH, PASS, 0, 0, 0, NULL},
    {"grammar", HD_FOR_BOTH, PASS, 0, 0, 0, NULL},
    {"tools", HD_FOR_CHAT, PASS, 0, 0, 0, NULL},
    {"tool_choice", HD_FOR_CHAT, OWN, 0, 0, 0, read_tool_choice},
    {"chat_template_kwargs", HD_FOR_CHAT, PASS, 0, 0, 0, NULL},
    {"add_generation_prompt", HD_FOR_CHAT, PASS, 0, 0, 0, NULL},
    {"add_special_tokens", HD_FOR_BOTH | HD_FOR_EMBED, PASS, 0, 0, 0, NULL},
    {"suffix", HD_FOR_TEXT, OWN, 0, 0, 0, read_suffix},
    {"modalities", HD_FOR_CHAT, OWN, 0, 0, 0, read_modalities},
    {"encoding_format", HD_FOR_EMBED, OWN, 0, 0, 0, read_encoding},
    {"dimensions", HD_FOR_EMBED, OWN, 0, 0, 0, read_dimensions},
    /* Of OpenAI's own; no answer depends on them. */
    {"user", HD_FOR_BOTH | HD_FOR_EMBED, PASS, 0, 0, 0, NULL},
    {"safety_identifier", HD_FOR_BOTH, PASS, 0, 0, 0, NULL},
    {"prompt_cache_key", HD_FOR_BOTH, PASS, 0, 0, 0, NULL},
    {"metadata", HD_FOR_CHAT, PASS, 0, 0, 0, NULL},
    {"store", HD_FOR_CHAT, PASS, 0, 0, 0, NULL},
    {"service_tier", HD_FOR_CHAT, PASS, 0, 0, 0, NULL},
    {"parallel_tool_calls", HD_FOR_CHAT, PASS, 0, 0, 0, NULL},
    {"prediction", HD_FOR_CHAT, PASS, 0, 0, 0, NULL},
    /* Answers would. */
    {"audio", HD_FOR_CHAT, OWN, 0, 0, 0, refuse},
    {"functions", HD_FOR_CHAT, OWN, 0, 0, 0, refuse},
    {"function_call", HD_FOR_CHAT, OWN, 0, 0, 0, refuse},
    {"web_search_options", HD_FOR_CHAT, OWN, 0, 0, 0, refuse},
    {"reasoning_effort", HD_FOR_CHAT, OWN, 0, 0, 0, refuse},
    {"verbosity", HD_FOR_CHAT, OWN, 0, 0, 0, refuse},
};

static int read_number(hd_call *c, const field *f, const json_t *v)
{
    double x = json_number_value(v);
    if (f->kind == INT ? !json_is_integer(v) : !json_is_number(v)) return wrong_type(c, f->name, f->kind == INT ? "an integer" : "a number");
    if (!(x >= f->lo && x <= f->hi))
        return hd_call_wrong(c, 400, f->name, x < f->lo ? "below_min_value" : "above_max_value",
                             "'%s' must be from %.10g to %.10g", f->name, f->lo, f->hi);
    if (f->kind == INT) *(int64_t *)((char *)&c->params + f->at) = json_integer_value(v);
    else *(double *)((char *)&c->params + f->at) = x;
    return 0;
}

static int read_field(hd_call *c, const field *f, const json_t *v)
{
    if (f->kind == PASS) return 0;
    if (f->kind == OWN) return f->read(c, f->name, v);
    if (f->kind != BOOL) return read_number(c, f, v);
    if (!json_is_boolean(v)) return wrong_type(c, f->name, "a boolean");
    *(bool *)((char *)&c->params + f->at) = json_is_true(v);
    return 0;
}

static const field *find_field(const char *name, int endpoint)
{
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if ((table[i].endpoints & endpoint) && !strcmp(table[i].name, name)) return &table[i];
    return NULL;
}

/* What must hold between the fields. */
static int check_together(hd_call *c, const json_t *root)
{
    hd_params *p = &c->params;
    const json_t *a = json_object_get(root, "max_tokens"), *b = json_object_get(root, "max_completion_tokens");
    if (json_is_integer(a) && json_is_integer(b) && json_integer_value(a) != json_integer_value(b))
        return hd_call_wrong(c, 400, "max_tokens", NULL, "'max_tokens' and 'max_completion_tokens' differ");
    if (p->best_of < p->n && p->best_of) return hd_call_wrong(c, 400, "best_of", NULL, "'best_of' must be at least 'n'");
    if (p->stream && p->best_of > p->n && !p->beams) return hd_call_wrong(c, 400, "best_of", NULL, "with 'stream', 'best_of' must be 'n'");
    if (p->top_logprobs > 0 && !p->want_logprobs) return hd_call_wrong(c, 400, "top_logprobs", NULL, "'top_logprobs' needs 'logprobs'");
    if (p->include_usage && !p->stream) return hd_call_wrong(c, 400, "stream_options", NULL, "'stream_options' is only for 'stream'");
    if (p->beams && p->n * 2 > 128) return hd_call_wrong(c, 400, "n", NULL, "beam search takes 'n' up to 64");
    if (p->max_tokens == 0 && !p->echo) return hd_call_wrong(c, 400, "max_tokens", "below_min_value", "'max_tokens' must be at least 1");
    return 0;
}

int hd_fields_read(hd_call *c, const json_t *root, int endpoint, hd_error *err)
{
    const char *name;
    json_t *v;
    (void)err;
    c->params = (hd_params){.sampling = c->server->model->sampling, .n = 1, .max_tokens = -1, .top_logprobs = -1, .prompt_logprobs = -1, .length_penalty = 1,
                            .skip_special = true, .salt = c->salt};
    json_object_foreach((json_t *)(uintptr_t)root, name, v)
    {
        const field *f = find_field(name, endpoint);
        if (!f && json_is_null(v)) continue;
        if (!f) return hd_call_wrong(c, 400, name, "unknown_parameter", "Unrecognized request argument supplied: %.100s", name);
        int rc = json_is_null(v) ? 0 : read_field(c, f, v);
        if (rc) return rc;
    }
    hd_params *p = &c->params;
    if (p->sampling.top_k < 0) p->sampling.top_k = 0; /* -1, as vLLM says it: all */
    if (!(p->sampling.top_p > 0)) p->sampling.top_p = 1e-9; /* the likeliest alone */
    if (!(p->sampling.typical_p > 0)) p->sampling.typical_p = 1e-9;
    p->sampling.seed = p->has_seed ? (uint64_t)p->seed : hd_guard_random();
    return check_together(c, root);
}
