/* api_misc.c: the route table, and what answers without the engine: models, health, metrics, tokens, the chat page. */
#include <string.h>
#include "serve/page.h"
#include "serve/server_int.h"

static void answer_text(hd_call *c, int status, const char *type, hd_str *o)
{
    if (o->failed) hd_call_refuse(c, 503, "server_error", NULL, NULL, "out of memory");
    else hd_call_answer(c, status, type, o->data, o->len);
    hd_str_free(o);
}

static void now_health(hd_call *c)
{
    const hd_server *s = c->server;
    hd_str o;
    hd_str_init(&o);
    hd_str_printf(&o, "{\"status\": \"%s\"}\n", !s->model ? "loading" : s->draining ? "draining" : "ok");
    answer_text(c, hd_server_is_ready(s) ? 200 : 503, "application/json", &o);
}

static void now_metrics(hd_call *c)
{
    hd_str o;
    hd_str_init(&o);
    hd_metrics_write(c->server, &o);
    answer_text(c, 200, "text/plain; version=0.0.4; charset=utf-8", &o);
}

static void put_model(const hd_call *c, hd_str *o)
{
    hd_str_puts(o, "{\"id\": ");
    hd_out_text(o, c->server->model->name);
    hd_str_printf(o, ", \"object\": \"model\", \"created\": %lld, \"owned_by\": \"heddle\", \"max_model_len\": %lld}", (long long)c->server->started,
                  (long long)c->server->model->context);
}

static void now_models(hd_call *c)
{
    hd_str o;
    hd_str_init(&o);
    hd_str_puts(&o, "{\"object\": \"list\", \"data\": [");
    put_model(c, &o);
    hd_str_puts(&o, "]}\n");
    answer_text(c, 200, "application/json", &o);
}

static void now_model(hd_call *c)
{
    const char *name = c->path + strlen("/v1/models/");
    hd_str o;
    if (strcmp(name, c->server->model->name)) {
        hd_call_refuse(c, 404, "invalid_request_error", "model", "model_not_found", "there is no model \"%.200s\" here, only \"%s\"", name,
                       c->server->model->name);
        return;
    }
    hd_str_init(&o);
    put_model(c, &o);
    hd_str_putc(&o, '\n');
    answer_text(c, 200, "application/json", &o);
}

static void now_page(hd_call *c)
{
    if (!c->server->options.page) hd_call_refuse(c, 404, "invalid_request_error", NULL, "unknown_url", "there is no page here");
    else hd_call_answer(c, 200, "text/html; charset=utf-8", (const char *)hd_chat_page, hd_chat_page_size);
}

/* ---- tokens: {"prompt" or "content": TEXT} or {"messages": [...]}; {"tokens": [...]} ---- */

static int check_names(hd_call *c, const json_t *root, const char *const *known)
{
    const char *name;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)root, name, v)
    {
        const char *const *k = known;
        while (*k && strcmp(*k, name)) k++;
        if (!*k && !json_is_null(v)) return hd_call_wrong(c, 400, name, "unknown_parameter", "Unrecognized request argument supplied: %.100s", name);
    }
    const json_t *model = json_object_get(root, "model");
    if (!model || json_is_null(model)) return 0;
    if (json_is_string(model) && !strcmp(json_string_value(model), c->server->model->name)) return 0;
    return hd_call_wrong(c, 404, "model", "model_not_found", "there is only the model \"%s\" here", c->server->model->name);
}

static int flag_of(hd_call *c, const json_t *root, const char *name, bool *out)
{
    const json_t *v = json_object_get(root, name);
    if (!v || json_is_null(v)) return 0;
    if (!json_is_boolean(v)) return hd_call_wrong(c, 400, name, "invalid_type", "'%s' must be a boolean", name);
    *out = json_is_true(v);
    return 0;
}

static int text_to_encode(hd_call *c, const json_t *root, bool *special, hd_str *text)
{
    const json_t *v = json_object_get(root, "prompt") ? json_object_get(root, "prompt") : json_object_get(root, "content");
    bool chat = json_object_get(root, "messages") != NULL;
    *special = !chat;
    int rc = flag_of(c, root, "add_special_tokens", special);
    if (!rc) rc = flag_of(c, root, "add_special", special);
    if (rc || chat) return rc ? rc : hd_chat_render(c, root, text);
    if (!json_is_string(v)) return hd_call_wrong(c, 400, "prompt", v ? "invalid_type" : "missing_required_parameter", "'prompt' must be a string");
    hd_str_add(text, json_string_value(v), json_string_length(v));
    return text->failed ? hd_call_no_memory(c) : 0;
}

static int prepare_tokenize(hd_call *c, const json_t *root, hd_error *err)
{
    static const char *const names[] = {"model", "prompt", "content", "messages", "tools", "add_special_tokens", "add_special", "add_generation_prompt",
                                        "chat_template_kwargs", NULL};
    const hd_served *m = c->server->model;
    hd_ids ids = {0};
    hd_str text;
    bool special;
    hd_str_init(&text);
    int rc = check_names(c, root, names);
    if (!rc) rc = text_to_encode(c, root, &special, &text);
    if (!rc) rc = hd_tokenizer_encode(m->tokenizer, text.data, text.len, special, &ids, err);
    hd_str_free(&text);
    if (!rc) {
        hd_str_printf(&c->answer, "{\"count\": %zu, \"max_model_len\": %lld, \"tokens\": [", ids.len, (long long)m->context);
        for (size_t i = 0; i < ids.len; i++) hd_str_printf(&c->answer, i ? ", %d" : "%d", ids.data[i]);
        hd_str_puts(&c->answer, "]}\n");
    }
    hd_ids_free(&ids);
    return !rc && c->answer.failed ? hd_call_no_memory(c) : rc;
}

static int prepare_detokenize(hd_call *c, const json_t *root, hd_error *err)
{
    static const char *const names[] = {"model", "tokens", "skip_special_tokens", NULL};
    const json_t *list = json_object_get(root, "tokens");
    bool skip = false;
    hd_str text;
    int rc = check_names(c, root, names);
    if (!rc) rc = flag_of(c, root, "skip_special_tokens", &skip);
    if (!rc && !json_is_array(list)) rc = hd_call_wrong(c, 400, "tokens", list ? "invalid_type" : "missing_required_parameter",
                                                        "'tokens' must be an array of token ids");
    c->prompts = hd_arena_alloc(&c->arena, sizeof *c->prompts);
    if (!rc && !c->prompts) rc = hd_call_no_memory(c);
    if (!rc) rc = hd_prompt_add_ids(c, list, "tokens");
    c->n_prompts = 0; /* nothing for the engine */
    if (rc) return rc;
    hd_str_init(&text);
    rc = hd_tokenizer_decode(c->server->model->tokenizer, c->prompts[0].ids, (size_t)c->prompts[0].n, skip, &text, err);
    hd_str_puts(&c->answer, "{\"prompt\": ");
    hd_out_string(&c->answer, text.data, text.len);
    hd_str_puts(&c->answer, ", \"content\": ");
    hd_out_string(&c->answer, text.data, text.len);
    hd_str_puts(&c->answer, "}\n");
    hd_str_free(&text);
    return !rc && c->answer.failed ? hd_call_no_memory(c) : rc;
}

/* ---- routes ---- */

static const hd_api health = {.path = "/health", .method = HD_HTTP_GET, .open = true, .while_loading = true, .now = now_health};
static const hd_api metrics = {.path = "/metrics", .method = HD_HTTP_GET, .while_loading = false, .now = now_metrics};
static const hd_api models = {.path = "/v1/models", .method = HD_HTTP_GET, .now = now_models};
static const hd_api model = {.path = "/v1/models/", .method = HD_HTTP_GET, .now = now_model}; /* and a name */
static const hd_api page = {.path = "/", .method = HD_HTTP_GET, .open = true,
                            .now = now_page}; /* it holds nothing of the model's, and asks for the key itself */
static const hd_api tokenize = {.path = "/tokenize", .method = HD_HTTP_POST, .prefix = "tok-", .prepare = prepare_tokenize};
static const hd_api detokenize = {.path = "/detokenize", .method = HD_HTTP_POST, .prefix = "tok-", .prepare = prepare_detokenize};
static const hd_api *const routes[] = {&hd_api_chat, &hd_api_completions, &hd_api_embeddings, &models, &model, &tokenize, &detokenize, &health, &metrics,
                                       &page};

static bool is_path(const hd_api *a, hd_http_text path)
{
    size_t n = strlen(a->path);
    if (a == &model) return path.n > n && !memcmp(path.p, a->path, n);
    return path.n == n && !memcmp(path.p, a->path, n);
}

const hd_api *hd_api_find(hd_http_text path, hd_http_method m, bool *path_known, const char **allow)
{
    *path_known = false;
    for (size_t i = 0; i < sizeof routes / sizeof routes[0]; i++) {
        if (!is_path(routes[i], path)) continue;
        *path_known = true;
        *allow = routes[i]->method == HD_HTTP_GET ? "GET, HEAD" : "POST";
        if (routes[i]->method == m || (m == HD_HTTP_HEAD && routes[i]->method == HD_HTTP_GET)) return routes[i];
        return NULL;
    }
    return NULL;
}
