/* conn.c: one connection: reads a request, waits while it is answered, writes, goes on.
 *
 * HEAD -> BODY -> BUSY -> HEAD (keep-alive) or CLOSING (what is written flows off) -> LINGER (our end is shut; what still comes is thrown away for a moment, so
 * that the peer sees the answer and not a reset). Reading goes on while BUSY: that is how a hang-up is seen at once. */
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/bufferevent_ssl.h>
#include <event2/event.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "base/term.h"
#include "serve/server_int.h"

enum {
    INPUT_MOST = 64 << 10,   /* bytes read ahead */
    OUTPUT_PAUSE = 256 << 10, /* no further pipelined request is taken while so much is unread */
    OUTPUT_MOST = 64 << 20,  /* a client that reads a stream so much too slowly is cut off */
};
#define IDLE_SECONDS 75.0    /* between requests of one connection */
#define STUCK_SECONDS 30.0   /* in which nothing of what is written is taken */
#define LINGER_SECONDS 1.0

static void advance(hd_conn *c);

/* ---- deadlines ---- */

static void set_deadline(hd_conn *c, double seconds)
{
    struct timeval t = {(time_t)seconds, (suseconds_t)((seconds - (double)(time_t)seconds) * 1e6)};
    if (seconds > 0) evtimer_add(c->timer, &t);
    else evtimer_del(c->timer);
}

static size_t output_bytes(const hd_conn *c) { return evbuffer_get_length(bufferevent_get_output(c->bev)); }

/* ---- closing ---- */

void hd_conn_free(hd_conn *c)
{
    hd_server *s = c->server;
    hd_call *call = c->call;
    c->call = NULL;
    if (call) hd_call_hang_up(call);
    *(c->prev ? &c->prev->next : &s->conns) = c->next;
    if (c->next) c->next->prev = c->prev;
    s->n_conns--;
    if (c->timer) event_free(c->timer);
    if (c->bev) bufferevent_free(c->bev);
    hd_free(c);
    if (s->draining) hd_server_wake(s);
}

static void linger(hd_conn *c)
{
    SSL *ssl = c->tls ? bufferevent_openssl_get_ssl(c->bev) : NULL;
    c->state = HD_CONN_LINGER;
    if (ssl) SSL_shutdown(ssl);
    shutdown(bufferevent_getfd(c->bev), SHUT_WR);
    set_deadline(c, LINGER_SECONDS);
    if (c->server->draining) hd_server_wake(c->server);
}

/* Lets what is written flow off, then closes. */
static void close_after_writing(hd_conn *c)
{
    c->state = HD_CONN_CLOSING;
    c->deaf = true;
    set_deadline(c, STUCK_SECONDS);
    if (!output_bytes(c)) linger(c);
}

void hd_conn_end_idle(hd_server *s)
{
    for (hd_conn *c = s->conns, *next; c; c = next) {
        next = c->next;
        if (c->state == HD_CONN_HEAD || c->state == HD_CONN_BODY) hd_conn_free(c);
    }
}

/* ---- writing ---- */

static void write_bytes(hd_conn *c, const char *p, size_t n)
{
    if (n) bufferevent_write(c->bev, p, n);
    c->server->counts.stream_bytes += n;
}

static void add_cors(const hd_conn *c, hd_str *h)
{
    if (c->cors) hd_str_printf(h, "Access-Control-Allow-Origin: %s\r\nVary: Origin\r\n", c->cors);
}

static void add_end(const hd_conn *c, hd_str *h)
{
    if (c->call && *c->call->id) hd_str_printf(h, "X-Request-Id: %s\r\n", c->call->id);
    hd_str_puts(h, c->keep_alive ? (c->http10 ? "Connection: keep-alive\r\n\r\n" : "\r\n") : "Connection: close\r\n\r\n");
}

void hd_conn_answer(hd_conn *c, int status, const char *type, const char *extra, const char *body, size_t n, bool head_only)
{
    hd_str h;
    hd_str_init(&h);
    if (c->server->draining) c->keep_alive = false;
    hd_str_printf(&h, "HTTP/1.1 %d %s\r\nServer: heddle\r\n", status, hd_http_reason(status));
    if (type) hd_str_printf(&h, "Content-Type: %s\r\nX-Content-Type-Options: nosniff\r\n", type);
    if (status != 204) hd_str_printf(&h, "Content-Length: %zu\r\n", n);
    if (extra) hd_str_puts(&h, extra);
    add_cors(c, &h);
    add_end(c, &h);
    if (h.failed) c->keep_alive = false;
    else {
        write_bytes(c, h.data, h.len);
        if (!head_only) write_bytes(c, body, n);
    }
    hd_str_free(&h);
}

bool hd_conn_stream_begin(hd_conn *c, const char *type)
{
    hd_str h;
    hd_str_init(&h);
    c->chunked_out = !c->http10;
    if (c->http10 || c->server->draining) c->keep_alive = false;
    hd_str_printf(&h, "HTTP/1.1 200 OK\r\nServer: heddle\r\nContent-Type: %s\r\nCache-Control: no-cache\r\nX-Accel-Buffering: no\r\n", type);
    if (c->chunked_out) hd_str_puts(&h, "Transfer-Encoding: chunked\r\n");
    add_cors(c, &h);
    add_end(c, &h);
    bool fine = !h.failed;
    if (fine) write_bytes(c, h.data, h.len);
    hd_str_free(&h);
    return fine;
}

static void give_up(hd_conn *c)
{
    c->server->counts.hang_ups++;
    hd_conn_free(c);
}

void hd_conn_stream_write(hd_conn *c, const char *p, size_t n)
{
    char size[24];
    if (!n) return;
    if (output_bytes(c) > OUTPUT_MOST) {
        set_deadline(c, 0.001); /* not here: the caller still holds the call */
        return;
    }
    if (c->chunked_out) write_bytes(c, size, (size_t)snprintf(size, sizeof size, "%zx\r\n", n));
    write_bytes(c, p, n);
    if (c->chunked_out) write_bytes(c, "\r\n", 2);
}

void hd_conn_stream_end(hd_conn *c)
{
    if (c->chunked_out) write_bytes(c, "0\r\n\r\n", 5);
}

/* ---- reading ---- */

static hd_call *begin_call(hd_conn *c)
{
    c->call = hd_call_new(c->server, c);
    if (!c->call) close_after_writing(c);
    return c->call;
}

/* What can't be framed: answered, and closed, since nobody knows where the next request would begin. */
static void refuse_framing(hd_conn *c, int status)
{
    c->keep_alive = false;
    if (!c->call && !begin_call(c)) return;
    c->state = HD_CONN_BUSY;
    const char *why = status == 413 ? "the body is larger than this server takes" : status == 408 ? "the request took too long to come"
        : hd_http_reason(status);
    hd_call_refuse(c->call, status, "invalid_request_error", NULL, NULL, "%s", why);
}

static void head_came(hd_conn *c, const hd_http_head *h)
{
    c->served = true;
    c->http10 = !h->minor;
    c->keep_alive = h->keep_alive;
    c->cors = NULL;
    if (!begin_call(c)) return;
    hd_http_body_begin(&c->body, h, c->server->options.max_body);
    c->state = HD_CONN_BUSY;
    if (h->length > 0 || h->chunked) c->state = HD_CONN_BODY;
    if (!hd_call_head(c->call, h)) return; /* answered: if a body was to come, the connection is closing */
    if (h->length > c->server->options.max_body) refuse_framing(c, 413);
    else if (c->state == HD_CONN_BUSY) hd_call_body(c->call);
    else {
        if (h->expect_continue) write_bytes(c, "HTTP/1.1 100 Continue\r\n\r\n", 25);
        set_deadline(c, c->server->options.header_seconds);
    }
}

/* Both: whether there may be more to do. */
static bool read_head(hd_conn *c, struct evbuffer *in)
{
    size_t have = evbuffer_get_length(in), n = have < HD_HTTP_HEAD_MAX ? have : HD_HTTP_HEAD_MAX, used = 0;
    if (!n) return false;
    hd_http_head h;
    const char *p = (const char *)evbuffer_pullup(in, (ssize_t)n);
    int rc = p ? hd_http_parse_head(p, n, &h, &used) : 400;
    if (!rc) {
        if (!c->late) set_deadline(c, c->server->options.header_seconds);
        c->late = true;
        return false;
    }
    c->late = false;
    set_deadline(c, 0);
    if (rc != 1) refuse_framing(c, rc);
    else head_came(c, &h); /* its texts point into the buffer: drained only now */
    evbuffer_drain(in, used);
    return true;
}

static bool read_body(hd_conn *c, struct evbuffer *in)
{
    size_t n = evbuffer_get_contiguous_space(in), used;
    if (!n) return false;
    hd_call *call = c->call;
    size_t before = call->body.len;
    int rc = hd_http_body_feed(&c->body, (const char *)evbuffer_pullup(in, (ssize_t)n), n, &used, &call->body);
    evbuffer_drain(in, used);
    call->held += (int64_t)(call->body.len - before);
    c->server->held += (int64_t)(call->body.len - before);
    if (call->body.failed) {
        c->keep_alive = false;
        c->state = HD_CONN_BUSY;
        hd_call_refuse(call, 503, "server_error", NULL, NULL, "out of memory");
    } else if (rc == 1) {
        set_deadline(c, 0);
        c->state = HD_CONN_BUSY;
        hd_call_body(call);
    } else if (rc) refuse_framing(c, rc);
    return true;
}

static void advance(hd_conn *c)
{
    struct evbuffer *in = bufferevent_get_input(c->bev);
    if (c->advancing) return; /* a call that was answered at once: the loop below goes on */
    c->advancing = true;
    for (bool more = true; more;) {
        if (c->deaf) evbuffer_drain(in, evbuffer_get_length(in));
        if (c->state == HD_CONN_HEAD) more = output_bytes(c) <= OUTPUT_PAUSE && read_head(c, in);
        else if (c->state == HD_CONN_BODY) more = read_body(c, in);
        else more = false;
    }
    c->advancing = false;
    if (c->state == HD_CONN_BUSY && evbuffer_get_length(in) >= INPUT_MOST) { /* read on, so that a hang-up is seen; but no further request is taken */
        c->deaf = true;
        c->keep_alive = false;
        evbuffer_drain(in, evbuffer_get_length(in));
    }
}

void hd_conn_next(hd_conn *c)
{
    c->call = NULL;
    if (!c->keep_alive || c->deaf || c->server->draining) {
        close_after_writing(c);
        return;
    }
    c->state = HD_CONN_HEAD;
    c->cors = NULL;
    set_deadline(c, IDLE_SECONDS);
    advance(c);
}

/* ---- events ---- */

static void on_read(struct bufferevent *b, void *conn)
{
    (void)b;
    advance(conn);
}

static void on_written(struct bufferevent *b, void *conn)
{
    hd_conn *c = conn;
    (void)b;
    if (c->state == HD_CONN_CLOSING && !output_bytes(c)) linger(c);
    else if (c->state == HD_CONN_HEAD) advance(c);
}

static void on_event(struct bufferevent *b, short what, void *conn)
{
    hd_conn *c = conn;
    (void)b;
    if (what & BEV_EVENT_CONNECTED) return;
    bool ended = what & BEV_EVENT_EOF;
    if (c->state == HD_CONN_CLOSING && ended && output_bytes(c)) return; /* a peer that only ended its half may still read */
    if (c->state == HD_CONN_BUSY) give_up(c);
    else if (c->state == HD_CONN_HEAD && ended && output_bytes(c)) close_after_writing(c);
    else hd_conn_free(c);
}

static void on_deadline(evutil_socket_t fd, short what, void *conn)
{
    hd_conn *c = conn;
    (void)fd, (void)what;
    bool partly = c->late || c->state == HD_CONN_BODY;
    if (c->state == HD_CONN_BUSY) give_up(c);
    else if (partly && (c->state == HD_CONN_HEAD || c->state == HD_CONN_BODY)) {
        c->server->counts.cut_off++;
        refuse_framing(c, 408);
    } else hd_conn_free(c);
}

/* ---- new connections ---- */

static struct bufferevent *wrap(hd_server *s, int fd, bool *tls)
{
    hd_error err = {0};
    SSL *ssl = hd_guard_tls(s->guard, &err);
    *tls = ssl != NULL;
    if (err.code) return NULL;
    if (!ssl) return bufferevent_socket_new(s->base, fd, BEV_OPT_CLOSE_ON_FREE);
    struct bufferevent *b = bufferevent_openssl_socket_new(s->base, fd, ssl, BUFFEREVENT_SSL_ACCEPTING, BEV_OPT_CLOSE_ON_FREE);
    if (b) bufferevent_openssl_set_allow_dirty_shutdown(b, 1);
    else SSL_free(ssl);
    return b;
}

void hd_conn_accept(hd_server *s, int fd, const char *peer)
{
    int on = 1;
    hd_conn *c = hd_calloc(1, sizeof *c);
    struct timeval stuck = {(time_t)STUCK_SECONDS, 0};
    if (!c || !(c->bev = wrap(s, fd, &c->tls))) {
        hd_free(c);
        close(fd);
        return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); /* tokens are small and must not wait for one another */
    c->server = s;
    snprintf(c->peer, sizeof c->peer, "%s", peer);
    c->next = s->conns;
    if (c->next) c->next->prev = c;
    s->conns = c;
    s->n_conns++;
    c->timer = evtimer_new(s->base, on_deadline, c);
    if (!c->timer) {
        hd_conn_free(c);
        return;
    }
    bufferevent_setcb(c->bev, on_read, on_written, on_event, c);
    bufferevent_setwatermark(c->bev, EV_READ, 0, INPUT_MOST);
    bufferevent_set_timeouts(c->bev, NULL, &stuck);
    set_deadline(c, s->options.header_seconds);
    bufferevent_enable(c->bev, EV_READ | EV_WRITE);
}

void hd_conn_turn_away(hd_server *s, int fd)
{
    static const char full[] = "HTTP/1.1 503 Service Unavailable\r\nServer: heddle\r\nContent-Type: application/json\r\nRetry-After: 1\r\nContent-Length: 109\r\n"
                               "Connection: close\r\n\r\n"
                               "{\"error\": {\"message\": \"too many connections\", \"type\": \"server_error\", \"param\": null, \"code\": \"connections\"}}\n";
    (void)s;
    ssize_t n = send(fd, full, sizeof full - 1, MSG_NOSIGNAL | MSG_DONTWAIT); /* with TLS it reads as noise: better than a handshake for each */
    (void)n;
    close(fd);
}
