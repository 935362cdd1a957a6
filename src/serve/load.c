/* load.c: the load generator's client: a connection for each request, streams read as they come. One thread, one event loop. */
#include "serve/load.h"

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/bufferevent_ssl.h>
#include <event2/event.h>
#include <jansson.h>
#include <math.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/mem.h"
#include "base/rng.h"
#include "base/term.h"
#include "serve/http.h"
#include "serve/server_int.h"

enum { HEAD_MOST = 65536 };

typedef struct series { double *x; size_t n, room; } series;

typedef struct target { char host[256], port[16], prefix[256]; bool tls; struct addrinfo *address; SSL_CTX *context; } target;

typedef struct load load;

typedef struct request {
    load *load;
    struct bufferevent *bev;
    struct event *deadline;
    hd_str body;              /* what came, without framing, up to the last whole line */
    hd_http_body framing;
    bool in_body, to_end /* of the connection */, finished, plain /* not a stream */;
    int status;
    double began, first, last;
    int64_t pieces, words, input, cached, output, wanted;
} request;

struct load {
    const hd_load_options *o;
    hd_load_result *r;
    target to;
    struct event_base *base;
    struct event *arrival;
    hd_rng rng;
    double input_mu, output_mu, next, begin, end;
    int64_t sent, running, within;
    series first, inter, whole, per_token;
    hd_str common;
    char *model;
    bool out_of_memory;
    json_t *reply;            /* to a plain request */
};

hd_load_options hd_load_options_default(void)
{
    return (hd_load_options){.url = "http://127.0.0.1:8080", .path = "/v1/completions", .input = {161, 1.0, 1024}, .output = {338, 0.8, 1024}, .requests = 64,
                             .concurrency = 0, .rate = 1, .cv = 1, .ignore_eos = true, .timeout = 600};
}

int hd_load_dataset(hd_load_options *o, const char *name, hd_error *err)
{
    static const struct { const char *name; hd_load_lengths input, output; } sets[] = {
        {"sharegpt", {161.31, 1.0, 1024}, {337.99, 0.8, 1024}},
        {"alpaca", {19.31, 0.5, 256}, {58.45, 0.8, 512}},
    };
    for (size_t i = 0; i < 2; i++)
        if (!strcmp(name, sets[i].name)) {
            o->input = sets[i].input;
            o->output = sets[i].output;
            return 0;
        }
    if (strcmp(name, "fixed")) return hd_fail(err, HD_EINVAL, "there is no dataset \"%s\": they are sharegpt, alpaca and fixed", name);
    o->input.sigma = o->output.sigma = 0;
    return 0;
}

/* ---- where to ---- */

static int parse_url(const char *url, target *t, hd_error *err)
{
    t->tls = !strncmp(url, "https://", 8);
    if (!t->tls && strncmp(url, "http://", 7)) return hd_fail(err, HD_EINVAL, "%s: a URL begins with http:// or https://", url);
    const char *host = url + (t->tls ? 8 : 7), *end = host + strcspn(host, "/"), *colon = NULL;
    const char *close = *host == '[' ? memchr(host, ']', (size_t)(end - host)) : NULL;
    for (const char *c = close ? close : host; c < end; c++)
        if (*c == ':') colon = c;
    const char *name_end = colon ? colon : end;
    if (close) host++, name_end = close;
    if (name_end <= host || name_end - host > 255 || strlen(end) > 255) return hd_fail(err, HD_EINVAL, "%s: not a URL of a server", url);
    snprintf(t->host, sizeof t->host, "%.*s", (int)(name_end - host), host);
    snprintf(t->port, sizeof t->port, "%.*s", colon ? (int)(end - colon - 1) : 3, colon ? colon + 1 : t->tls ? "443" : "80");
    snprintf(t->prefix, sizeof t->prefix, "%s", end);
    size_t n = strlen(t->prefix);
    while (n && t->prefix[n - 1] == '/') t->prefix[--n] = 0;
    if (n >= 3 && !strcmp(t->prefix + n - 3, "/v1")) t->prefix[n - 3] = 0;
    return 0;
}

static int find_target(load *l, hd_error *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    int rc = parse_url(l->o->url, &l->to, err);
    if (rc) return rc;
    int found = getaddrinfo(l->to.host, l->to.port, &hints, &l->to.address);
    if (found) return hd_fail(err, HD_EINVAL, "%s: %s", l->to.host, gai_strerror(found));
    if (!l->to.tls) return 0;
    l->to.context = SSL_CTX_new(TLS_client_method());
    if (!l->to.context) return hd_fail_memory(err, 0, "TLS");
    SSL_CTX_set_default_verify_paths(l->to.context);
    if (!l->o->insecure) SSL_CTX_set_verify(l->to.context, SSL_VERIFY_PEER, NULL);
    return 0;
}

/* ---- figures ---- */

static void add(load *l, series *s, double x)
{
    if (hd_grow(&s->x, &s->room, s->n + 1, sizeof *s->x)) l->out_of_memory = true;
    else s->x[s->n++] = x;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The smallest that at least a share of all don't exceed (nearest rank). */
static double quantile(const series *s, double share)
{
    size_t rank = (size_t)ceil(share * (double)s->n);
    return s->x[rank ? rank - 1 : 0];
}

static hd_load_figures figures_of(series *s)
{
    hd_load_figures f = {.n = (int64_t)s->n};
    double sum = 0;
    if (!s->n) return f;
    qsort(s->x, s->n, sizeof *s->x, ascending);
    for (size_t i = 0; i < s->n; i++) sum += s->x[i];
    f.mean = sum / (double)s->n;
    f.p50 = quantile(s, 0.5);
    f.p90 = quantile(s, 0.9);
    f.p99 = quantile(s, 0.99);
    f.most = s->x[s->n - 1];
    return f;
}

/* ---- one request ---- */

static void send_next(load *l);

static void end_request(request *q, const char *why)
{
    load *l = q->load;
    double now = hd_time();
    int64_t tokens = q->output ? q->output : q->pieces;
    if (!q->plain) {
        if (why) {
            l->r->failed++;
            if (!*l->r->why) snprintf(l->r->why, sizeof l->r->why, "%s", why);
        } else {
            l->r->done++;
            l->r->input_tokens += q->input ? q->input : q->words;
            l->r->cached_tokens += q->cached;
            l->r->output_tokens += tokens;
            add(l, &l->whole, now - q->began);
            if (q->pieces) add(l, &l->first, q->first - q->began);
            if (tokens) add(l, &l->per_token, (now - q->began) / (double)tokens);
            double inter = tokens > 1 ? (q->last - q->first) / (double)(tokens - 1) : 0;
            bool fine = q->pieces && (!(l->o->slo_first > 0) || q->first - q->began <= l->o->slo_first) && (!(l->o->slo_inter > 0) || inter <= l->o->slo_inter);
            l->within += fine;
        }
        l->end = now;
        if (l->o->progress) l->o->progress(l->o->arg, l->r->done + l->r->failed, l->o->requests);
    } else if (why && !*l->r->why) snprintf(l->r->why, sizeof l->r->why, "%s", why);
    l->running--;
    if (q->deadline) event_free(q->deadline);
    if (q->bev) bufferevent_free(q->bev);
    hd_str_free(&q->body);
    bool plain = q->plain;
    hd_free(q);
    if (!plain && l->o->concurrency > 0) send_next(l);
    if (!l->running && (plain || l->sent >= l->o->requests)) event_base_loopbreak(l->base);
}

/* One event's data. Text of any choice is a piece. */
static void take_event(request *q, const char *p, size_t n)
{
    json_t *j = json_loadb(p, n, 0, NULL);
    const json_t *choice = json_array_get(json_object_get(j, "choices"), 0), *usage = json_object_get(j, "usage");
    const json_t *text = json_object_get(choice, "text") ? json_object_get(choice, "text") : json_object_get(json_object_get(choice, "delta"), "content");
    if (json_string_length(text)) {
        double now = hd_time();
        if (!q->pieces++) q->first = now;
        else add(q->load, &q->load->inter, now - q->last);
        q->last = now;
    }
    if (json_is_object(usage)) {
        q->input = json_integer_value(json_object_get(usage, "prompt_tokens"));
        q->output = json_integer_value(json_object_get(usage, "completion_tokens"));
        q->cached = json_integer_value(json_object_get(json_object_get(usage, "prompt_tokens_details"), "cached_tokens"));
    }
    json_decref(j);
}

/* Takes the whole lines off the body; true when the stream says that it is over. */
static bool take_lines(request *q)
{
    char *at = q->body.data, *end = at + q->body.len;
    bool over = false;
    for (char *line_end; !over && (line_end = memchr(at, '\n', (size_t)(end - at))); at = line_end + 1) {
        size_t n = (size_t)(line_end - at);
        if (n && at[n - 1] == '\r') n--;
        if (n < 6 || memcmp(at, "data:", 5)) continue;
        const char *data = at + 5 + (at[5] == ' ');
        n -= (size_t)(data - at);
        over = n == 6 && !memcmp(data, "[DONE]", 6);
        if (!over) take_event(q, data, n);
    }
    size_t rest = (size_t)(end - at);
    memmove(q->body.data, at, rest);
    q->body.len = rest;
    q->body.data[rest] = 0;
    return over;
}

static bool find_field(const char *head, const char *name, char *out, size_t room)
{
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line, "\r\n")) {
        line += 2;
        size_t n = strlen(name);
        if (strncasecmp(line, name, n) || line[n] != ':') continue;
        const char *v = line + n + 1 + strspn(line + n + 1, " \t");
        snprintf(out, room, "%.*s", (int)strcspn(v, "\r\n"), v);
        return true;
    }
    return false;
}

/* 1: the head has come; 0: not yet; -1: it is none. */
static int read_head(request *q, struct evbuffer *in)
{
    struct evbuffer_ptr end = evbuffer_search(in, "\r\n\r\n", 4, NULL);
    char value[64];
    if (end.pos < 0) return evbuffer_get_length(in) > HEAD_MOST ? -1 : 0;
    char *head = hd_calloc((size_t)end.pos + 5, 1);
    if (!head) return -1;
    evbuffer_remove(in, head, (size_t)end.pos + 4);
    hd_http_head h = {.length = -1};
    bool fine = sscanf(head, "HTTP/1.%*d %d", &q->status) == 1;
    if (find_field(head, "transfer-encoding", value, sizeof value)) h.chunked = !strcasecmp(value, "chunked");
    if (find_field(head, "content-length", value, sizeof value)) h.length = strtoll(value, NULL, 10);
    q->to_end = !h.chunked && h.length < 0;
    hd_http_body_begin(&q->framing, &h, (int64_t)1 << 40);
    hd_free(head);
    q->in_body = q->status != 100;
    return fine ? 1 : -1;
}

static void end_body(request *q)
{
    char why[256];
    if (q->status == 200 && q->plain) {
        json_decref(q->load->reply);
        q->load->reply = json_loadb(q->body.data, q->body.len, 0, NULL);
    }
    snprintf(why, sizeof why, "status %d: %.200s", q->status, q->body.data);
    end_request(q, q->status == 200 ? NULL : why);
}

static void on_read(struct bufferevent *b, void *arg)
{
    request *q = arg;
    struct evbuffer *in = bufferevent_get_input(b);
    for (int rc; !q->in_body;)
        if ((rc = read_head(q, in)) != 1) {
            if (rc < 0) end_request(q, "not an HTTP answer");
            return;
        }
    int rc = 0;
    for (size_t n; !rc && ((n = evbuffer_get_contiguous_space(in)) || (!q->to_end && !q->framing.chunked && !q->framing.left)); ) {
        size_t used = n;
        const char *p = n ? (const char *)evbuffer_pullup(in, (ssize_t)n) : "";
        if (q->to_end) hd_str_add(&q->body, p, n);
        else rc = hd_http_body_feed(&q->framing, p, n, &used, &q->body);
        evbuffer_drain(in, used);
        if (q->status == 200 && !q->plain && take_lines(q)) q->finished = true;
    }
    if (rc > 1 || q->body.failed) end_request(q, "a badly framed answer");
    else if (rc == 1) end_body(q);
    else if (q->to_end && q->finished) end_body(q);
}

static void on_event(struct bufferevent *b, short what, void *arg)
{
    request *q = arg;
    (void)b;
    if (what & BEV_EVENT_CONNECTED) return;
    if ((what & BEV_EVENT_EOF) && q->in_body && q->to_end) end_body(q);
    else end_request(q, what & BEV_EVENT_EOF ? "the server closed the connection before its answer was whole" : "no connection");
}

static void on_deadline(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    end_request(arg, "no whole answer in time");
}

static struct bufferevent *connect_to(load *l)
{
    struct bufferevent *b;
    if (l->to.tls) {
        SSL *ssl = SSL_new(l->to.context);
        if (!ssl) return NULL;
        SSL_set_tlsext_host_name(ssl, l->to.host);
        if (!l->o->insecure) SSL_set1_host(ssl, l->to.host);
        b = bufferevent_openssl_socket_new(l->base, -1, ssl, BUFFEREVENT_SSL_CONNECTING, BEV_OPT_CLOSE_ON_FREE | BEV_OPT_DEFER_CALLBACKS);
        if (b) bufferevent_openssl_set_allow_dirty_shutdown(b, 1);
    } else b = bufferevent_socket_new(l->base, -1, BEV_OPT_CLOSE_ON_FREE | BEV_OPT_DEFER_CALLBACKS);
    if (!b) return NULL;
    if (!bufferevent_socket_connect(b, l->to.address->ai_addr, (int)l->to.address->ai_addrlen)) {
        int on = 1;
        setsockopt(bufferevent_getfd(b), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        return b;
    }
    bufferevent_free(b);
    return NULL;
}

/* Sends a request; body NULL: GET. Its beginning is `began`: when it was due, not when there was time for it. */
static request *send_request(load *l, const char *path, const hd_str *body, double began)
{
    double seconds = l->o->timeout > 0 ? l->o->timeout : 600;
    struct timeval t = {(time_t)seconds, 0};
    request *q = hd_calloc(1, sizeof *q);
    if (!q) return l->out_of_memory = true, NULL;
    q->load = l;
    q->began = began;
    q->plain = !body;
    hd_str_init(&q->body);
    l->running++;
    q->bev = connect_to(l);
    q->deadline = evtimer_new(l->base, on_deadline, q);
    if (!q->bev || !q->deadline || evtimer_add(q->deadline, &t)) {
        end_request(q, "no connection");
        return NULL;
    }
    struct evbuffer *out = bufferevent_get_output(q->bev);
    bool v6 = strchr(l->to.host, ':') != NULL;
    evbuffer_add_printf(out, "%s %s%s HTTP/1.1\r\nHost: %s%s%s:%s\r\nConnection: close\r\n", body ? "POST" : "GET", l->to.prefix, path, v6 ? "[" : "",
                        l->to.host, v6 ? "]" : "",
                        l->to.port);
    if (l->o->api_key) evbuffer_add_printf(out, "Authorization: Bearer %s\r\n", l->o->api_key);
    if (body) evbuffer_add_printf(out, "Content-Type: application/json\r\nContent-Length: %zu\r\n", body->len);
    evbuffer_add(out, "\r\n", 2);
    if (body) evbuffer_add(out, body->data, body->len);
    bufferevent_setcb(q->bev, on_read, NULL, on_event, q);
    bufferevent_enable(q->bev, EV_READ | EV_WRITE);
    return q;
}

/* ---- many ---- */

static void write_body(load *l, hd_str *o, int64_t *words, int64_t *wanted)
{
    hd_str prompt;
    bool chat = strstr(l->o->path, "chat") != NULL;
    *words = hd_load_length(&l->o->input, l->input_mu, &l->rng);
    *wanted = hd_load_length(&l->o->output, l->output_mu, &l->rng);
    hd_str_init(&prompt);
    hd_str_add(&prompt, l->common.data, l->common.len);
    hd_load_words(&prompt, *words, &l->rng);
    *words += l->o->common;
    hd_str_puts(o, chat ? "{\"messages\": [{\"role\": \"user\", \"content\": " : "{\"prompt\": ");
    hd_out_string(o, prompt.data, prompt.len);
    hd_str_printf(o, "%s, \"max_tokens\": %lld, \"temperature\": %.6g, \"stream\": true, \"stream_options\": {\"include_usage\": true}", chat ? "}]" : "",
                  (long long)*wanted, l->o->temperature);
    if (l->o->ignore_eos) hd_str_puts(o, ", \"ignore_eos\": true");
    if (l->model) {
        hd_str_puts(o, ", \"model\": ");
        hd_out_text(o, l->model);
    }
    hd_str_putc(o, '}');
    hd_str_free(&prompt);
}

static void send_at(load *l, double began)
{
    hd_str body;
    int64_t words, wanted;
    hd_str_init(&body);
    write_body(l, &body, &words, &wanted);
    l->sent++;
    request *q = body.failed ? NULL : send_request(l, l->o->path, &body, began);
    if (q) q->words = words, q->wanted = wanted;
    if (body.failed) l->out_of_memory = true;
    hd_str_free(&body);
}

static void send_next(load *l)
{
    if (l->sent < l->o->requests && !l->out_of_memory) send_at(l, hd_time());
}

static void wait_for_arrival(load *l)
{
    double seconds = fmax(l->next - hd_time(), 0);
    struct timeval t = {(time_t)seconds, (suseconds_t)((seconds - floor(seconds)) * 1e6)};
    evtimer_add(l->arrival, &t);
}

static void on_arrival(evutil_socket_t fd, short what, void *arg)
{
    load *l = arg;
    (void)fd, (void)what;
    double due = l->next;
    l->next += hd_load_gap(&l->rng, l->o->rate, l->o->cv);
    if (l->sent + 1 < l->o->requests) wait_for_arrival(l);
    send_at(l, due);
}

static int ask_model(load *l, hd_error *err)
{
    if (l->o->model) {
        l->model = hd_strdup(l->o->model);
        return l->model ? 0 : hd_fail_memory(err, 0, "the model's name");
    }
    if (send_request(l, "/v1/models", NULL, hd_time())) event_base_dispatch(l->base);
    const char *id = json_string_value(json_object_get(json_array_get(json_object_get(l->reply, "data"), 0), "id"));
    if (*l->r->why) return hd_fail(err, HD_EIO, "%s/v1/models: %s", l->o->url, l->r->why);
    l->model = id ? hd_strdup(id) : NULL;
    return 0;
}

static int send_all(load *l, hd_error *err)
{
    const hd_load_options *o = l->o;
    l->begin = l->next = hd_time();
    l->arrival = evtimer_new(l->base, on_arrival, l);
    if (!l->arrival) return hd_fail_memory(err, 0, "the event loop");
    for (int64_t i = 0; i < o->concurrency && i < o->requests; i++) send_next(l);
    if (o->concurrency <= 0) wait_for_arrival(l);
    while (l->r->done + l->r->failed < o->requests && !l->out_of_memory)
        if (event_base_dispatch(l->base) == 1) break; /* nothing is left to wait for */
    return l->out_of_memory ? hd_fail_memory(err, 0, "the load") : 0;
}

static void sum_up(load *l)
{
    hd_load_result *r = l->r;
    r->seconds = l->end - l->begin;
    r->first = figures_of(&l->first);
    r->inter = figures_of(&l->inter);
    r->whole = figures_of(&l->whole);
    r->per_token = figures_of(&l->per_token);
    bool judged = l->o->slo_first > 0 || l->o->slo_inter > 0;
    r->attained = judged ? (double)l->within / (double)(r->done + r->failed) : NAN;
}

static void free_load(load *l)
{
    if (l->arrival) event_free(l->arrival);
    if (l->base) event_base_free(l->base);
    if (l->to.address) freeaddrinfo(l->to.address);
    SSL_CTX_free(l->to.context);
    series *const all[] = {&l->first, &l->inter, &l->whole, &l->per_token};
    for (size_t i = 0; i < 4; i++) hd_free(all[i]->x);
    json_decref(l->reply);
    hd_str_free(&l->common);
    hd_free(l->model);
}

int hd_load_run(const hd_load_options *o, hd_load_result *r, hd_error *err)
{
    load l = {.o = o, .r = r, .rng = hd_rng_new(o->seed)};
    hd_rng common = hd_rng_new(42);
    *r = (hd_load_result){0};
    if (o->requests < 1 || (o->concurrency <= 0 && !(o->rate > 0))) return hd_fail(err, HD_EINVAL, "a load needs requests, and a rate or a number at once");
    hd_str_init(&l.common);
    hd_load_words(&l.common, o->common, &common);
    l.input_mu = hd_load_mu(&o->input);
    l.output_mu = hd_load_mu(&o->output);
    l.base = event_base_new();
    int rc = l.base ? find_target(&l, err) : hd_fail_memory(err, 0, "the event loop");
    if (!rc) rc = ask_model(&l, err);
    if (!rc) rc = send_all(&l, err);
    if (!rc) sum_up(&l);
    free_load(&l);
    return rc;
}
