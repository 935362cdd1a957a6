/* api_completions.c: /v1/completions. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "serve/server_int.h"

enum { PROMPTS_MOST = 256, CHOICES_MOST = 1024 };

static int prepare(hd_call *c, const json_t *root, hd_error *err)
{
    const json_t *special = json_object_get(root, "add_special_tokens");
    int rc = hd_fields_read(c, root, HD_FOR_TEXT, err);
    if (rc) return rc;
    if (special && !json_is_boolean(special) && !json_is_null(special))
        return hd_call_wrong(c, 400, "add_special_tokens", "invalid_type", "'add_special_tokens' must be a boolean");
    rc = hd_prompts_read(c, json_object_get(root, "prompt"), "prompt", PROMPTS_MOST, !json_is_false(special), c->params.echo);
    if (rc) return rc;
    if (c->params.max_tokens < 0) c->params.max_tokens = 16; /* OpenAI's */
    if (c->n_prompts * c->params.n > CHOICES_MOST)
        return hd_call_wrong(c, 400, "n", NULL, "'n' times the number of prompts must be at most %d", CHOICES_MOST);
    return hd_prompts_check(c, "prompt");
}

/* ---- log-probabilities: four lists side by side ---- */

/* A token as text; one that is no text by itself as "bytes:\xf0\x9f", as OpenAI does. */
static int64_t put_token(hd_call *c, hd_str *o, int32_t id)
{
    size_t n = 0;
    const char *bytes = c->server->model->tokenizer ? hd_tokenizer_bytes(c->server->model->tokenizer, id, &n) : NULL;
    hd_str quoted;
    hd_str_init(&quoted);
    hd_out_string(&quoted, bytes ? bytes : "", bytes ? n : 0);
    if (strstr(quoted.data, "\xef\xbf\xbd") || (bytes && memchr(bytes, 0, n))) { /* a NUL: many readers of JSON take none in a key */
        hd_str_puts(o, "\"bytes:");
        for (size_t i = 0; i < n; i++) hd_str_printf(o, "\\\\x%02x", (unsigned char)bytes[i]);
        hd_str_putc(o, '"');
    } else hd_str_add(o, quoted.data, quoted.len);
    hd_str_free(&quoted);
    return bytes ? hd_count_characters(bytes, n) : 0;
}

static void put_top(hd_call *c, hd_str *o, hd_token_logprob own, const hd_token_logprob *top, int n)
{
    bool seen = false;
    hd_str_putc(o, '{');
    for (int k = 0; k < n; k++) {
        seen |= top[k].token == own.token;
        if (k) hd_str_puts(o, ", ");
        put_token(c, o, top[k].token);
        hd_str_puts(o, ": ");
        hd_out_logprob(o, top[k].logprob);
    }
    if (!seen) {
        if (n) hd_str_puts(o, ", ");
        put_token(c, o, own.token);
        hd_str_puts(o, ": ");
        hd_out_logprob(o, own.logprob);
    }
    hd_str_putc(o, '}');
}

static void add_token(hd_call *c, hd_choice *h, hd_token_logprob own, const hd_token_logprob *top, int n)
{
    const char *comma = h->tokens.len ? ", " : "";
    hd_str_puts(&h->tokens, comma);
    hd_str_printf(&h->offsets, "%s%lld", comma, (long long)h->offset);
    h->offset += put_token(c, &h->tokens, own.token);
    hd_str_puts(&h->logprobs, comma);
    hd_out_logprob(&h->logprobs, own.logprob); /* NAN, the first of a prompt: null */
    hd_str_puts(&h->top, comma);
    if (isnan(own.logprob) || c->params.top_logprobs <= 0) hd_str_puts(&h->top, "null");
    else put_top(c, &h->top, own, top, n);
}

static int top_of(const hd_call *c, int there) { return (int)(c->params.top_logprobs < there ? c->params.top_logprobs : there); }

/* The prompt in front of the answer. */
static void echo_prompt(hd_call *c, hd_sub *s, hd_choice *h)
{
    const hd_prompt *p = &c->prompts[s->index];
    hd_str_add(&h->text, p->text, p->text_bytes);
    for (int64_t i = 0; c->params.want_logprobs && s->prompt_logprobs && i < p->n; i++) {
        hd_token_logprob own = s->prompt_logprobs[i];
        own.token = p->ids[i];
        add_token(c, h, own, s->prompt_top ? s->prompt_top + i * s->top_n : NULL, s->prompt_top ? top_of(c, s->top_n) : 0);
    }
}

static void take(hd_call *c, hd_sub *s, hd_choice *h, const hd_engine_event *e)
{
    hd_out_prompt_logprobs(c, h, s);
    if (c->params.echo && !h->echoed) echo_prompt(c, s, h);
    h->echoed = true;
    if (c->params.drop_answer) return;
    hd_str_add(&h->text, e->text ? e->text : "", e->text ? e->text_bytes : 0);
    for (int64_t i = 0; c->params.want_logprobs && e->logprobs && i < e->n_tokens; i++)
        add_token(c, h, e->logprobs[i], e->top ? e->top + i * e->top_n : NULL, e->top ? top_of(c, e->top_n) : 0);
}

/* ---- answers ---- */

static void put_head(const hd_call *c, hd_str *o)
{
    hd_str_printf(o, "{\"id\": \"%s\", \"object\": \"text_completion\", \"created\": %lld, \"model\": ", c->id, (long long)c->created);
    hd_out_text(o, c->server->model->name);
    hd_str_puts(o, ", \"system_fingerprint\": \"heddle-" HEDDLE_VERSION "\", \"choices\": [");
}

static void put_choice(const hd_call *c, hd_str *o, int index, const hd_choice *h)
{
    hd_str_printf(o, "{\"index\": %d, \"text\": ", index);
    hd_out_string(o, h->text.data, h->text.len);
    if (c->params.want_logprobs)
        hd_str_printf(o, ", \"logprobs\": {\"tokens\": [%s], \"token_logprobs\": [%s], \"top_logprobs\": [%s], \"text_offset\": [%s]}", h->tokens.data,
                      h->logprobs.data,
                      h->top.data, h->offsets.data);
    else hd_str_puts(o, ", \"logprobs\": null");
    if (h->prompt_logprobs.len) hd_str_printf(o, ", \"prompt_logprobs\": [%s]", h->prompt_logprobs.data);
    hd_str_puts(o, ", \"finish_reason\": ");
    hd_out_text(o, hd_out_finish(h->finish));
    hd_str_putc(o, '}');
}

static void chunk(hd_call *c, int index, hd_choice *h, hd_str *o)
{
    put_head(c, o);
    put_choice(c, o, index, h);
    hd_str_puts(o, c->params.include_usage ? "], \"usage\": null}" : "]}");
}

static void whole(hd_call *c, hd_str *o)
{
    put_head(c, o);
    for (int i = 0; i < c->n_prompts * (int)c->params.n; i++) {
        if (i) hd_str_puts(o, ", ");
        put_choice(c, o, i, &c->choices[i]);
    }
    hd_str_puts(o, "], ");
    hd_out_usage(o, c);
    hd_str_putc(o, '}');
}

const hd_api hd_api_completions = {.path = "/v1/completions", .method = HD_HTTP_POST, .prefix = "cmpl-", .prepare = prepare, .take = take, .chunk = chunk,
                                   .whole = whole};
