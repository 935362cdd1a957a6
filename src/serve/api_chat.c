/* api_chat.c: /v1/chat/completions. */
#include <string.h>
#include "base/json.h"
#include "serve/server_int.h"

/* ---- messages: checked, and as templates want them ---- */

static int wrong_message(hd_call *c, size_t i, const char *what) { return hd_call_wrong(c, 400, "messages", NULL, "'messages[%zu]': %s", i, what); }

/* The text of [{"type": "text", "text": "..."}, ...], or NULL. */
static json_t *join_parts(hd_call *c, size_t i, const json_t *parts)
{
    hd_str text;
    hd_str_init(&text);
    json_t *joined = NULL;
    for (size_t k = 0; k < json_array_size(parts); k++) {
        const json_t *part = json_array_get(parts, k), *t = json_object_get(part, "text");
        const char *type = json_string_value(json_object_get(part, "type"));
        if (!type || strcmp(type, "text") || !json_is_string(t)) {
            hd_call_wrong(c, 400, "messages", "unsupported", "'messages[%zu].content[%zu]': this model reads text only: {\"type\": \"text\", \"text\": ...}",
                          i, k);
            hd_str_free(&text);
            return NULL;
        }
        hd_str_add(&text, json_string_value(t), json_string_length(t));
    }
    if (!text.failed) joined = json_stringn_nocheck(text.data, text.len);
    if (!joined) hd_call_no_memory(c);
    hd_str_free(&text);
    return joined;
}

static int check_role(hd_call *c, size_t i, const json_t *m, json_t *out)
{
    static const char *const roles[] = {"system", "user", "assistant", "tool"};
    const char *role = json_string_value(json_object_get(m, "role"));
    if (!role) return wrong_message(c, i, "\"role\" must be a string");
    if (!strcmp(role, "developer")) role = "system"; /* no template knows the new name */
    for (size_t k = 0; k < sizeof roles / sizeof roles[0]; k++)
        if (!strcmp(role, roles[k])) return json_object_set_new(out, "role", json_string(role)) ? hd_call_no_memory(c) : 0;
    return wrong_message(c, i, "\"role\" must be system, developer, user, assistant or tool");
}

static int check_content(hd_call *c, size_t i, const json_t *m, json_t *out)
{
    json_t *v = json_object_get(m, "content");
    bool may_miss = json_array_size(json_object_get(m, "tool_calls")) > 0;
    if (!v || json_is_null(v)) {
        if (!may_miss) return wrong_message(c, i, "\"content\" is missing");
        return json_object_set_new(out, "content", json_string("")) ? hd_call_no_memory(c) : 0;
    }
    if (!json_is_string(v) && !json_is_array(v)) return wrong_message(c, i, "\"content\" must be a string or an array of parts");
    json_t *text = json_is_string(v) ? json_incref(v) : join_parts(c, i, v);
    if (!text) return HD_EINVAL;
    return json_object_set_new(out, "content", text) ? hd_call_no_memory(c) : 0;
}

/* Templates take a call's arguments as an object; OpenAI's clients send its text. */
static int unpack_calls(hd_call *c, size_t i, json_t *calls)
{
    size_t k;
    json_t *call;
    if (!json_is_array(calls)) return wrong_message(c, i, "\"tool_calls\" must be an array");
    json_array_foreach(calls, k, call)
    {
        json_t *function = json_object_get(call, "function"), *arguments = json_object_get(function, "arguments");
        if (!json_is_string(json_object_get(function, "name"))) return wrong_message(c, i, "each of \"tool_calls\" needs a \"function\" with a \"name\"");
        json_t *object = json_is_string(arguments) ? json_loads(json_string_value(arguments), 0, NULL) : NULL;
        if (object && json_object_set_new(function, "arguments", object)) return hd_call_no_memory(c);
    }
    return 0;
}

static int add_message(hd_call *c, size_t i, const json_t *m, json_t *list)
{
    static const char *const further[] = {"name", "tool_call_id"};
    json_t *out = json_object(), *calls = json_object_get(m, "tool_calls");
    int rc = json_is_object(m) ? 0 : wrong_message(c, i, "must be an object");
    if (!out || json_array_append_new(list, out)) return hd_call_no_memory(c);
    if (!rc) rc = check_role(c, i, m, out);
    if (!rc) rc = check_content(c, i, m, out);
    for (size_t k = 0; k < 2 && !rc; k++) {
        json_t *v = json_object_get(m, further[k]);
        if (v && !json_is_null(v) && !json_is_string(v)) rc = wrong_message(c, i, "\"name\" and \"tool_call_id\" must be strings");
        else if (json_is_string(v) && json_object_set(out, further[k], v)) rc = hd_call_no_memory(c);
    }
    if (!rc && calls && !json_is_null(calls)) {
        json_t *copy = json_deep_copy(calls);
        if (!copy || json_object_set_new(out, "tool_calls", copy)) return hd_call_no_memory(c);
        rc = unpack_calls(c, i, copy);
    }
    return rc;
}

static int read_messages(hd_call *c, const json_t *root, json_t *list)
{
    const json_t *messages = json_object_get(root, "messages");
    if (!messages || json_is_null(messages)) return hd_call_wrong(c, 400, "messages", "missing_required_parameter", "'messages' is missing");
    if (!json_is_array(messages)) return hd_call_wrong(c, 400, "messages", "invalid_type", "'messages' must be an array");
    if (!json_array_size(messages) || json_array_size(messages) > 4096) return hd_call_wrong(c, 400, "messages", NULL,
                                                                                             "'messages' must have 1 to 4096 entries");
    int rc = 0;
    for (size_t i = 0; i < json_array_size(messages) && !rc; i++) rc = add_message(c, i, json_array_get(messages, i), list);
    return rc;
}

/* The tools that the template is given; NULL: none. */
static int read_tools(hd_call *c, const json_t *root, const json_t **tools)
{
    const json_t *v = json_object_get(root, "tools");
    const char *choice = json_string_value(json_object_get(root, "tool_choice"));
    *tools = NULL;
    if (!v || json_is_null(v)) return 0;
    if (!json_is_array(v) || json_array_size(v) > 256) return hd_call_wrong(c, 400, "tools", NULL, "'tools' must be an array of at most 256 tools");
    for (size_t i = 0; i < json_array_size(v); i++) {
        const json_t *tool = json_array_get(v, i), *function = json_object_get(tool, "function");
        const char *type = json_string_value(json_object_get(tool, "type"));
        if (!type || strcmp(type, "function") || !json_is_string(json_object_get(function, "name")))
            return hd_call_wrong(c, 400, "tools", NULL, "'tools[%zu]' must be {\"type\": \"function\", \"function\": {\"name\": ...}}", i);
    }
    if (json_array_size(v) && !(choice && !strcmp(choice, "none"))) *tools = v;
    return 0;
}

static int read_bool(hd_call *c, const json_t *root, const char *name, bool *out)
{
    const json_t *v = json_object_get(root, name);
    if (!v || json_is_null(v)) return 0;
    if (!json_is_boolean(v)) return hd_call_wrong(c, 400, name, "invalid_type", "'%s' must be a boolean", name);
    *out = json_is_true(v);
    return 0;
}

int hd_chat_render(hd_call *c, const json_t *root, hd_str *out)
{
    const hd_chat_template *t = c->server->model->template;
    const json_t *tools, *extra = json_object_get(root, "chat_template_kwargs");
    hd_error err = {0};
    bool open_answer = true;
    if (!t) return hd_call_wrong(c, 400, "messages", "unsupported", "this model has no chat template: use /v1/completions");
    if (extra && !json_is_null(extra) && !json_is_object(extra))
        return hd_call_wrong(c, 400, "chat_template_kwargs", "invalid_type", "'chat_template_kwargs' must be an object");
    json_t *list = json_array();
    if (!list) return hd_call_no_memory(c);
    int rc = read_messages(c, root, list);
    if (!rc) rc = read_tools(c, root, &tools);
    if (!rc) rc = read_bool(c, root, "add_generation_prompt", &open_answer);
    if (!rc) {
        rc = hd_chat_template_render(t, list, tools, json_is_object(extra) ? extra : NULL, open_answer, out, &err);
        if (!rc && out->failed) rc = hd_call_no_memory(c);
        else if (rc) hd_call_wrong(c, rc == HD_ENOMEM ? 503 : 400, "messages", NULL, "the model's chat template: %s", err.message);
    }
    json_decref(list);
    return rc;
}

/* What ends an answer besides the model's own tokens: a token where there is one of that name, else a text. */
static int add_template_stop(hd_call *c)
{
    const hd_served *m = c->server->model;
    hd_params *p = &c->params;
    const char *stop = hd_chat_template_stop(m->template);
    if (!stop || p->ignore_eos) return 0;
    int32_t id = hd_tokenizer_id(m->tokenizer, stop);
    for (int i = 0; i < m->n_eos; i++)
        if (m->eos[i] == id) return 0;
    int32_t *ids = hd_arena_alloc(&c->arena, sizeof *ids * (size_t)(p->n_stop_tokens + 1));
    const char **texts = hd_arena_alloc(&c->arena, sizeof *texts * (size_t)(p->n_stop + 1));
    if (!ids || !texts) return hd_call_no_memory(c);
    if (id >= 0) {
        if (p->n_stop_tokens) memcpy(ids, p->stop_tokens, sizeof *ids * (size_t)p->n_stop_tokens);
        ids[p->n_stop_tokens++] = id;
        p->stop_tokens = ids;
    } else {
        if (p->n_stop) memcpy(texts, p->stop, sizeof *texts * (size_t)p->n_stop);
        texts[p->n_stop++] = stop;
        p->stop = texts;
    }
    return 0;
}

static int prepare(hd_call *c, const json_t *root, hd_error *err)
{
    hd_str text;
    bool special = false; /* the template writes them itself */
    int rc = hd_fields_read(c, root, HD_FOR_CHAT, err);
    if (rc) return rc;
    hd_str_init(&text);
    rc = hd_chat_render(c, root, &text);
    hd_encoder *e = rc ? NULL : hd_encoder_new(c->server->model->tokenizer, err);
    c->prompts = hd_arena_alloc(&c->arena, sizeof *c->prompts);
    if (!rc && (!e || !c->prompts)) rc = hd_call_no_memory(c);
    if (!rc) rc = read_bool(c, root, "add_special_tokens", &special);
    if (!rc) rc = hd_prompt_add_text(c, e, text.data, text.len, special, false);
    hd_encoder_free(e);
    hd_str_free(&text);
    if (!rc) rc = hd_prompts_check(c, "messages");
    if (!rc) rc = add_template_stop(c);
    return rc;
}

/* ---- answers ---- */

static void put_token(hd_call *c, hd_str *o, hd_token_logprob t)
{
    size_t n = 0;
    const char *bytes = c->server->model->tokenizer ? hd_tokenizer_bytes(c->server->model->tokenizer, t.token, &n) : NULL;
    hd_str_puts(o, "{\"token\": ");
    hd_out_string(o, bytes ? bytes : "", bytes ? n : 0);
    hd_str_puts(o, ", \"logprob\": ");
    hd_out_logprob(o, t.logprob);
    hd_str_puts(o, ", \"bytes\": [");
    for (size_t i = 0; bytes && i < n; i++) hd_str_printf(o, i ? ", %d" : "%d", (unsigned char)bytes[i]);
    hd_str_puts(o, "]");
}

static void take(hd_call *c, hd_sub *s, hd_choice *h, const hd_engine_event *e)
{
    int top = (int)(c->params.top_logprobs < e->top_n ? c->params.top_logprobs : e->top_n);
    hd_str_add(&h->text, e->text ? e->text : "", e->text ? e->text_bytes : 0);
    hd_out_prompt_logprobs(c, h, s);
    for (int64_t i = 0; c->params.want_logprobs && e->logprobs && i < e->n_tokens; i++) {
        if (h->tokens.len) hd_str_puts(&h->tokens, ", ");
        put_token(c, &h->tokens, e->logprobs[i]);
        hd_str_puts(&h->tokens, ", \"top_logprobs\": [");
        for (int k = 0; k < top && e->top; k++) {
            if (k) hd_str_puts(&h->tokens, ", ");
            put_token(c, &h->tokens, e->top[i * e->top_n + k]);
            hd_str_putc(&h->tokens, '}');
        }
        hd_str_puts(&h->tokens, "]}");
    }
}

static void put_logprobs(const hd_call *c, hd_str *o, const hd_choice *h)
{
    if (c->params.want_logprobs) hd_str_printf(o, ", \"logprobs\": {\"content\": [%s], \"refusal\": null}", h->tokens.data);
    else hd_str_puts(o, ", \"logprobs\": null");
    hd_str_puts(o, ", \"finish_reason\": ");
    hd_out_text(o, hd_out_finish(h->finish));
    hd_str_putc(o, '}');
}

static void put_head(const hd_call *c, hd_str *o, const char *object)
{
    hd_str_printf(o, "{\"id\": \"%s\", \"object\": \"%s\", \"created\": %lld, \"model\": ", c->id, object, (long long)c->created);
    hd_out_text(o, c->server->model->name);
    hd_str_puts(o, ", \"system_fingerprint\": \"heddle-" HEDDLE_VERSION "\", \"choices\": [");
}

static void put_prompt_logprobs(hd_str *o, const hd_choice *h)
{
    if (h->prompt_logprobs.len) hd_str_printf(o, ", \"prompt_logprobs\": [%s]", h->prompt_logprobs.data);
}

static void chunk(hd_call *c, int index, hd_choice *h, hd_str *o)
{
    put_head(c, o, "chat.completion.chunk");
    hd_str_printf(o, "{\"index\": %d, \"delta\": {", index);
    if (!h->began) hd_str_puts(o, "\"role\": \"assistant\", ");
    hd_str_puts(o, "\"content\": ");
    hd_out_string(o, h->text.data, h->text.len);
    hd_str_putc(o, '}');
    put_logprobs(c, o, h);
    hd_str_putc(o, ']');
    put_prompt_logprobs(o, h);
    hd_str_puts(o, c->params.include_usage ? ", \"usage\": null}" : "}");
}

static void whole(hd_call *c, hd_str *o)
{
    put_head(c, o, "chat.completion");
    for (int i = 0; i < c->params.n; i++) {
        const hd_choice *h = &c->choices[i];
        hd_str_printf(o, "%s{\"index\": %d, \"message\": {\"role\": \"assistant\", \"content\": ", i ? ", " : "", i);
        hd_out_string(o, h->text.data, h->text.len);
        hd_str_puts(o, ", \"refusal\": null}");
        put_logprobs(c, o, h);
    }
    hd_str_putc(o, ']');
    put_prompt_logprobs(o, &c->choices[0]);
    hd_str_puts(o, ", ");
    hd_out_usage(o, c);
    hd_str_putc(o, '}');
}

const hd_api hd_api_chat = {.path = "/v1/chat/completions", .method = HD_HTTP_POST, .prefix = "chatcmpl-", .prepare = prepare, .take = take, .chunk = chunk,
                            .whole = whole};
