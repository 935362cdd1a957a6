/* prompts.c: what is gone on from: texts and token ids of a request, as prompts of a call. On the pool. */
#include <string.h>
#include "serve/server_int.h"

static hd_prompt *next_prompt(hd_call *c) { return &c->prompts[c->n_prompts]; }

/* Too long for the context even if every token were the vocabulary's longest: nobody has to wait for so much text to be encoded. A normalizer may shrink it a
 * little, hence the factor. */
static bool is_hopeless(const hd_call *c, size_t n)
{
    const hd_server *s = c->server;
    return s->longest_token > 0 && (double)n > 4.0 * (double)s->longest_token * (double)s->model->context + 4096;
}

int hd_prompt_add_text(hd_call *c, hd_encoder *e, const char *text, size_t n, bool special, bool keep_text)
{
    hd_ids ids = {0};
    if (is_hopeless(c, n))
        return hd_call_wrong(c, 400, c->api == &hd_api_chat ? "messages" : c->api == &hd_api_embeddings ? "input" : "prompt", "context_length_exceeded",
                             "This model's maximum context length is %lld tokens. A text of %zu bytes can't be so short.",
                                 (long long)c->server->model->context, n);
    hd_error err = {0};
    hd_prompt *p = next_prompt(c);
    int rc = hd_encoder_run(e, text, n, special, &ids, &err);
    if (!rc) {
        p->ids = hd_arena_copy(&c->arena, ids.data ? (const void *)ids.data : (const void *)"", ids.len * sizeof *ids.data);
        p->n = (int64_t)ids.len;
        p->text = keep_text ? hd_arena_copy(&c->arena, text, n) : NULL;
        p->text_bytes = keep_text ? n : 0;
        if (!p->ids || (keep_text && !p->text)) rc = HD_ENOMEM;
        c->n_prompts++;
    }
    hd_ids_free(&ids);
    if (rc == HD_ENOMEM) return hd_call_no_memory(c);
    return rc ? hd_call_wrong(c, 400, NULL, NULL, "%s", err.message) : 0;
}

/* Ids of a prompt, echoed as their text. */
static int keep_decoded(hd_call *c, hd_prompt *p)
{
    hd_str text;
    hd_str_init(&text);
    int rc = hd_tokenizer_decode(c->server->model->tokenizer, p->ids, (size_t)p->n, false, &text, NULL);
    p->text = rc ? NULL : hd_arena_copy(&c->arena, text.data, text.len);
    p->text_bytes = text.len;
    hd_str_free(&text);
    return p->text ? 0 : hd_call_no_memory(c);
}

int hd_prompt_add_ids(hd_call *c, const json_t *list, const char *param)
{
    const hd_served *m = c->server->model;
    size_t n = json_array_size(list);
    int32_t vocab = m->tokenizer ? hd_tokenizer_vocab_size(m->tokenizer) : INT32_MAX, *ids = hd_arena_alloc(&c->arena, (n + 1) * sizeof *ids);
    if (!ids) return hd_call_no_memory(c);
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_array_get(list, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= vocab)
            return hd_call_wrong(c, 400, param, NULL, "'%s': token ids must be integers from 0 to %d", param, vocab - 1);
        ids[i] = (int32_t)json_integer_value(id);
    }
    hd_prompt *p = next_prompt(c);
    *p = (hd_prompt){.ids = ids, .n = (int64_t)n};
    c->n_prompts++;
    return c->params.echo && m->tokenizer ? keep_decoded(c, p) : 0;
}

static int add_one(hd_call *c, hd_encoder *e, const json_t *v, const char *param, bool special, bool keep_text)
{
    if (json_is_array(v)) return hd_prompt_add_ids(c, v, param);
    if (!json_is_string(v)) return hd_call_wrong(c, 400, param, "invalid_type", "'%s' must be a string, an array of strings, or arrays of token ids", param);
    return hd_prompt_add_text(c, e, json_string_value(v), json_string_length(v), special, keep_text);
}

/* "text"; ["text", ...]; [1, 2, 3]; [[1, 2], [3]]. */
int hd_prompts_read(hd_call *c, const json_t *v, const char *param, int most, bool special, bool keep_text)
{
    hd_error err = {0};
    bool list = json_is_array(v) && !json_is_integer(json_array_get(v, 0));
    size_t n = list ? json_array_size(v) : 1;
    if (!v || json_is_null(v)) return hd_call_wrong(c, 400, param, "missing_required_parameter", "'%s' is missing", param);
    if (!n || n > (size_t)most) return hd_call_wrong(c, 400, param, NULL, "'%s' must have 1 to %d entries", param, most);
    c->prompts = hd_arena_alloc(&c->arena, n * sizeof *c->prompts);
    hd_encoder *e = hd_encoder_new(c->server->model->tokenizer, &err);
    int rc = c->prompts && e ? 0 : hd_call_no_memory(c);
    for (size_t i = 0; i < n && !rc && !atomic_load(&c->cancelled); i++) rc = add_one(c, e, list ? json_array_get(v, i) : v, param, special, keep_text);
    hd_encoder_free(e);
    return rc;
}

int hd_prompts_check(hd_call *c, const char *param)
{
    int64_t context = c->server->model->context, longest = 0, *wanted = &c->params.max_tokens;
    bool embed = c->api == &hd_api_embeddings;
    for (int i = 0; i < c->n_prompts; i++) {
        if (!c->prompts[i].n) return hd_call_wrong(c, 400, param, NULL, "'%s' has no token", param);
        if (c->prompts[i].n > longest) longest = c->prompts[i].n;
    }
    if (*wanted == 0) { /* only the prompt's log-probabilities are wanted */
        c->params.drop_answer = true;
        *wanted = 1;
    }
    int64_t room = context - longest, least = embed ? 0 : *wanted > 0 ? *wanted : 1;
    if (room < least)
        return hd_call_wrong(c, 400, param, "context_length_exceeded",
                             "This model's maximum context length is %lld tokens. However, you requested %lld tokens (%lld in the %s, %lld in the completion).",
                             (long long)context, (long long)(longest + least), (long long)longest, param, (long long)least);
    if (*wanted < 0) *wanted = embed ? 1 : room;
    if (c->params.min_tokens > *wanted)
        return hd_call_wrong(c, 400, "min_tokens", NULL, "'min_tokens' must be at most the %lld tokens that there may be", (long long)*wanted);
    return 0;
}
