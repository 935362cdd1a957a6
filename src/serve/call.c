/* call.c: one request's life on the loop: let in, prepared, answered, logged. What it does in the engine is submit.c's. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "base/term.h"
#include "serve/server_int.h"

#define HELD_MOST ((int64_t)512 << 20) /* bytes of bodies that all calls may hold together */

hd_call *hd_call_new(hd_server *s, hd_conn *conn)
{
    hd_call *c = hd_calloc(1, sizeof *c);
    if (!c) return NULL;
    c->server = s;
    c->conn = conn;
    c->key = -1;
    c->began = hd_time();
    c->created = time(NULL);
    hd_str_init(&c->body);
    hd_str_init(&c->answer);
    c->path = "";
    c->peer = hd_arena_strdup(&c->arena, conn->peer);
    c->next = s->calls;
    if (c->next) c->next->prev = c;
    s->calls = c;
    s->n_calls++;
    return c;
}

static void free_choices(hd_call *c)
{
    for (int64_t i = 0; c->choices && i < c->n_prompts * c->params.n; i++) {
        hd_choice *h = &c->choices[i];
        hd_str *const all[] = {&h->text, &h->tokens, &h->logprobs, &h->top, &h->offsets, &h->prompt_logprobs};
        for (size_t k = 0; k < sizeof all / sizeof all[0]; k++) hd_str_free(all[k]);
    }
    for (int i = 0; c->vectors && i < c->n_prompts; i++) hd_str_free(&c->vectors[i]);
}

/* Frees a call that nobody holds any more. */
static void release(hd_call *c)
{
    hd_server *s = c->server;
    if (!c->ended || c->in_pool || c->n_live) return;
    *(c->prev ? &c->prev->next : &s->calls) = c->next;
    if (c->next) c->next->prev = c->prev;
    s->n_calls--;
    if (c->counted) s->running_of_key[c->key]--;
    s->held -= c->held;
    free_choices(c);
    if (c->constraint) hd_constraint_release(c->constraint);
    hd_str_free(&c->body);
    hd_str_free(&c->answer);
    hd_arena_free(&c->arena);
    hd_free(c);
    if (s->draining) hd_server_wake(s);
}

void hd_call_end(hd_call *c)
{
    hd_server *s = c->server;
    hd_conn *conn = c->conn;
    if (c->ended) return;
    c->ended = true;
    s->counts.requests++;
    s->counts.by_status[c->logged_status >= 100 && c->logged_status < 600 ? c->logged_status / 100 : 0]++;
    if (s->options.log) hd_call_log(c);
    c->conn = NULL;
    hd_call_cancel(c);
    release(c);
    if (conn) hd_conn_next(conn);
}

/* ---- answers ---- */

void hd_call_answer(hd_call *c, int status, const char *type, const char *body, size_t n)
{
    c->logged_status = status;
    if (c->conn) hd_conn_answer(c->conn, status, type, NULL, body, n, c->head_only);
    hd_call_end(c);
}

/* Seconds after which trying again makes sense: as long as the requests that wait will take at the present pace. */
static int retry_after(const hd_server *s)
{
    hd_engine_stats st;
    if (!s->model) return 5;
    hd_engine_stats_read(s->model->engine, &st);
    double mean = st.whole.count ? st.whole.sum / (double)st.whole.count : 1, each = mean / (double)(st.running > 0 ? st.running : 1);
    double wait = each * (double)(st.waiting + 1);
    return wait < 1 ? 1 : wait > 60 ? 60 : (int)wait;
}

static void write_error(hd_str *o, const char *type, const char *message, const char *param, const char *code)
{
    hd_str_puts(o, "{\"error\": {\"message\": ");
    hd_out_text(o, message);
    hd_str_puts(o, ", \"type\": ");
    hd_out_text(o, type);
    hd_str_puts(o, ", \"param\": ");
    hd_out_text(o, param);
    hd_str_puts(o, ", \"code\": ");
    hd_out_text(o, code);
    hd_str_puts(o, "}}");
}

static void answer_error(hd_call *c, int status, const char *body, size_t n)
{
    char extra[96] = "";
    if (status == 429 || status == 503) snprintf(extra, sizeof extra, "Retry-After: %d\r\n", retry_after(c->server));
    if (status == 401) snprintf(extra, sizeof extra, "WWW-Authenticate: Bearer\r\n");
    if (status == 405) snprintf(extra, sizeof extra, "Allow: %s\r\n", c->error_param ? c->error_param : "GET");
    hd_conn_answer(c->conn, status, "application/json", extra, body, n, c->head_only);
}

void hd_call_refuse(hd_call *c, int status, const char *type, const char *param, const char *code, const char *fmt, ...)
{
    va_list args;
    char message[1024];
    hd_str o;
    if (c->ended) return;
    va_start(args, fmt);
    vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    hd_str_init(&o);
    write_error(&o, type, message, param, code);
    c->logged_error = hd_arena_strdup(&c->arena, message);
    c->logged_status = status;
    if (c->conn && c->streaming) { /* the head has gone already */
        hd_conn_stream_write(c->conn, "data: ", 6);
        hd_conn_stream_write(c->conn, o.data, o.len);
        hd_conn_stream_write(c->conn, "\n\ndata: [DONE]\n\n", 16);
        hd_conn_stream_end(c->conn);
    } else if (c->conn) {
        hd_str_putc(&o, '\n');
        answer_error(c, status, o.data, o.len);
    }
    hd_str_free(&o);
    hd_call_end(c);
}

static const char *type_of(int status)
{
    if (status == 401) return "authentication_error";
    if (status == 429) return "rate_limit_error";
    return status >= 500 ? "server_error" : "invalid_request_error";
}

/* ---- letting in ---- */

/* A head refused: a body that was still to come is not read, so the connection ends with the answer. */
#define TURN_AWAY(c, status, param, code, ...)                                                    \
    do {                                                                                          \
        if ((c)->conn->state == HD_CONN_BODY) (c)->conn->keep_alive = false;                      \
        (c)->conn->state = HD_CONN_BUSY;                                                          \
        hd_call_refuse(c, status, type_of(status), param, code, __VA_ARGS__);                     \
    } while (0)

/* The origin that may read the answer, as it came. */
static void check_origin(hd_call *c, const hd_http_head *h)
{
    const char *allowed = c->server->options.cors;
    if (!allowed || !h->origin.p) return;
    bool any = !strcmp(allowed, "*"), same = h->origin.n == strlen(allowed) && !memcmp(h->origin.p, allowed, h->origin.n);
    if (any || same) c->conn->cors = allowed;
}

static void answer_preflight(hd_call *c)
{
    const char *extra = c->conn->cors ? "Access-Control-Allow-Methods: GET, POST, OPTIONS\r\nAccess-Control-Allow-Headers: authorization, content-type\r\n"
                                        "Access-Control-Max-Age: 600\r\n"
                                      : "Allow: GET, HEAD, POST, OPTIONS\r\n";
    if (c->conn->state == HD_CONN_BODY) c->conn->keep_alive = false;
    c->conn->state = HD_CONN_BUSY;
    c->logged_status = 204;
    hd_conn_answer(c->conn, 204, NULL, extra, "", 0, false);
    hd_call_end(c);
}

static bool check_ready(hd_call *c)
{
    const hd_server *s = c->server;
    if (c->api && c->api->while_loading) return true;
    if (!s->model) TURN_AWAY(c, 503, NULL, "loading", "the model is still being loaded");
    else if (s->draining) TURN_AWAY(c, 503, NULL, "draining", "the server is going down and takes no more requests");
    else return true;
    return false;
}

static bool check_key(hd_call *c, const hd_http_head *h)
{
    c->key = hd_guard_key(c->server->guard, h->authorization, &c->salt);
    if (c->key < 0 && !(c->api && c->api->open)) {
        TURN_AWAY(c, 401, NULL, "invalid_api_key", "%s",
                  h->authorization.p ? "incorrect API key provided" : "no API key provided: send it as \"Authorization: Bearer KEY\"");
        return false;
    }
    if (c->salt) snprintf(c->key_name, sizeof c->key_name, "%08x", (unsigned)(c->salt >> 32));
    return true;
}

static bool check_room(hd_call *c)
{
    hd_server *s = c->server;
    if (c->api->method != HD_HTTP_POST) return true;
    if (s->options.per_key > 0 && s->running_of_key[c->key] >= s->options.per_key) {
        s->counts.refused_key++;
        TURN_AWAY(c, 429, NULL, "concurrency", "this key has %lld requests running already, the most it may", (long long)s->options.per_key);
        return false;
    }
    if (s->held > HELD_MOST) {
        TURN_AWAY(c, 503, NULL, "memory", "too many bytes of requests are being held");
        return false;
    }
    s->running_of_key[c->key]++;
    c->counted = true;
    return true;
}

/* A browser's form or plain text would come from any page without asking (no preflight), so it isn't taken. */
static bool check_type(hd_call *c, const hd_http_head *h)
{
    hd_http_text t = h->content_type;
    const char *end = t.p ? memchr(t.p, ';', t.n) : NULL;
    if (end) t.n = (size_t)(end - t.p);
    while (t.n && t.p[t.n - 1] == ' ') t.n--;
    if (c->api->method != HD_HTTP_POST || !t.p || hd_http_text_is(t, "application/json")) return true;
    TURN_AWAY(c, 415, NULL, NULL, "the content type must be application/json");
    return false;
}

static bool check_route(hd_call *c, const hd_http_head *h)
{
    bool known;
    const char *allow = NULL;
    c->api = hd_api_find(h->path, h->method, &known, &allow);
    if (c->api) return true;
    if (!check_ready(c) || !check_key(c, h)) return false;
    c->error_param = allow;
    if (known) TURN_AWAY(c, 405, NULL, NULL, "%s takes %s", c->path, allow);
    else TURN_AWAY(c, 404, NULL, "unknown_url", "there is no %s", c->path);
    return false;
}

bool hd_call_head(hd_call *c, const hd_http_head *h)
{
    c->path = hd_arena_printf(&c->arena, "%.*s", (int)h->path.n, h->path.p);
    if (!c->path) c->path = "";
    c->head_only = h->method == HD_HTTP_HEAD;
    check_origin(c, h);
    if (h->method == HD_HTTP_OPTIONS) {
        answer_preflight(c);
        return false;
    }
    if (!check_route(c, h) || !check_ready(c) || !check_key(c, h) || !check_type(c, h) || !check_room(c)) return false;
    snprintf(c->id, sizeof c->id, "%s%016llx%08llx", c->api->prefix ? c->api->prefix : "req-", (unsigned long long)hd_guard_random(),
             (unsigned long long)(hd_guard_random() & 0xffffffffu));
    return true;
}

void hd_call_body(hd_call *c)
{
    if (c->api->now) c->api->now(c);
    else hd_pool_add(c->server->pool, c);
}

/* ---- from the pool, from the engine, from the connection ---- */

static void prepared(hd_call *c)
{
    c->in_pool = false;
    if (c->ended) release(c); /* hung up meanwhile */
    else if (c->status) hd_call_refuse(c, c->status, type_of(c->status), c->error_param, c->error_code, "%s", c->error_message ? c->error_message
                                       : "out of memory");
    else if (!c->n_prompts) hd_call_answer(c, 200, "application/json", c->answer.data, c->answer.len);
    else hd_call_submit(c);
}

void hd_call_message(hd_message *m)
{
    hd_call *c = m->call;
    bool owned = m->owned;
    if (!m->sub) prepared(c);
    else {
        if (m->event.last) {
            m->sub->ended = true;
            c->n_live--;
            c->n_ended++;
        }
        if (c->ended) release(c);
        else hd_call_event(c, m->sub, &m->event);
    }
    if (owned) hd_free(m);
}

void hd_call_hang_up(hd_call *c)
{
    c->conn = NULL;
    atomic_store(&c->cancelled, true);
    c->logged_status = c->logged_status ? c->logged_status : 499;
    if (!c->logged_error) c->logged_error = "the client hung up";
    hd_call_end(c);
}

void hd_call_cut(hd_call *c)
{
    c->logged_error = "cut off";
    hd_call_hang_up(c);
}

void hd_call_ping(hd_call *c, double now)
{
    if (!c->streaming || !c->conn || c->ended || now - c->last_write < c->server->options.ping_seconds) return;
    c->last_write = now;
    hd_conn_stream_write(c->conn, ": ping\n\n", 8);
}
