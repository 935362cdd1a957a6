/* server.c: the event loop: listening, messages from other threads, ticks, draining. Connections are conn.c's, calls call.c's. */
#include <arpa/inet.h>
#include <errno.h>
#include <event2/event.h>
#include <event2/listener.h>
#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "base/term.h"
#include "serve/server_int.h"

enum { POOL_THREADS = 2 };
#define CUT_SECONDS 10.0 /* that a cut-off waits for the engine to let go of its requests */

hd_server_options hd_server_options_default(void)
{
    return (hd_server_options){.host = "127.0.0.1", .port = 8080, .max_body = 8 << 20, .max_connections = 4096, .max_queued = 256, .header_seconds = 10,
                               .request_seconds = 600, .ping_seconds = 15, .page = true};
}

static void fill_options(hd_server_options *o)
{
    hd_server_options d = hd_server_options_default();
    if (!o->host) o->host = d.host;
    if (o->max_body <= 0) o->max_body = d.max_body;
    if (o->max_connections <= 0) o->max_connections = d.max_connections;
    if (o->max_queued <= 0) o->max_queued = d.max_queued;
    if (!(o->header_seconds > 0)) o->header_seconds = d.header_seconds;
    if (!(o->request_seconds > 0)) o->request_seconds = d.request_seconds;
    if (!(o->ping_seconds > 0)) o->ping_seconds = d.ping_seconds;
}

/* ---- from other threads ---- */

void hd_server_wake(hd_server *s)
{
    uint64_t one = 1;
    int saved = errno;
    ssize_t n = write(s->wake_fd, &one, sizeof one); /* full only when it is awake anyway */
    (void)n;
    errno = saved;
}

void hd_server_post(hd_server *s, hd_message *m)
{
    m->next = NULL;
    pthread_mutex_lock(&s->lock);
    bool first = !s->first;
    *s->end = m;
    s->end = &m->next;
    pthread_mutex_unlock(&s->lock);
    if (first) hd_server_wake(s);
}

void hd_server_serve(hd_server *s, const hd_served *model)
{
    atomic_store(&s->incoming, model);
    hd_server_wake(s);
}

void hd_server_fail(hd_server *s, const char *why)
{
    pthread_mutex_lock(&s->lock);
    if (!s->why) s->why = hd_strdup(why ? why : "");
    pthread_mutex_unlock(&s->lock);
    atomic_store(&s->failed, 1);
    hd_server_wake(s);
}

void hd_server_drain(hd_server *s)
{
    atomic_fetch_add(&s->drains, 1);
    hd_server_wake(s);
}

bool hd_server_is_ready(const hd_server *s) { return s->model && !s->draining; }

int hd_server_port(const hd_server *s) { return s->port; }

/* ---- the loop's side ---- */

static hd_message *take_messages(hd_server *s)
{
    pthread_mutex_lock(&s->lock);
    hd_message *m = s->first;
    s->first = NULL;
    s->end = &s->first;
    pthread_mutex_unlock(&s->lock);
    return m;
}

static void handle_messages(hd_server *s)
{
    for (hd_message *m = take_messages(s), *next; m; m = next) {
        next = m->next;
        hd_call_message(m);
    }
}

/* Connections that still wait for an answer, or for it to be written. */
static bool is_busy(const hd_server *s)
{
    for (const hd_conn *c = s->conns; c; c = c->next)
        if (c->state != HD_CONN_LINGER) return true;
    return s->n_calls > 0;
}

static void stop_listening(hd_server *s)
{
    if (s->listener) evconnlistener_free(s->listener);
    s->listener = NULL;
}

static void begin_drain(hd_server *s)
{
    s->draining = true;
    stop_listening(s);
    if (s->model) hd_engine_drain(s->model->engine);
    hd_conn_end_idle(s);
}

static void cut_off(hd_server *s)
{
    s->cutting = true;
    while (s->conns) hd_conn_free(s->conns);
    for (hd_call *c = s->calls, *next; c; c = next) {
        next = c->next;
        hd_call_cut(c);
    }
}

static void look_around(hd_server *s)
{
    int drains = atomic_load(&s->drains);
    if (drains && !s->draining) begin_drain(s);
    if ((drains > 1 || atomic_load(&s->failed)) && !s->cutting) {
        stop_listening(s);
        cut_off(s);
    }
    if (s->cutting || (s->draining && !is_busy(s))) event_base_loopbreak(s->base);
}

/* Templates, prompts and events may count on it from now on. */
static void take_model(hd_server *s, const hd_served *m)
{
    size_t n = 0;
    s->model_copy = *m;
    for (int32_t id = 0; m->tokenizer && id < hd_tokenizer_vocab_size(m->tokenizer); id++)
        if (hd_tokenizer_bytes(m->tokenizer, id, &n) && (int64_t)n > s->longest_token) s->longest_token = (int64_t)n;
    s->model = &s->model_copy;
}

static void on_wake(evutil_socket_t fd, short what, void *server)
{
    hd_server *s = server;
    uint64_t count;
    (void)what;
    ssize_t n = read(fd, &count, sizeof count);
    (void)n;
    const hd_served *m = atomic_load(&s->incoming);
    if (m && !s->model) take_model(s, m);
    handle_messages(s);
    look_around(s);
}

static void on_tick(evutil_socket_t fd, short what, void *server)
{
    hd_server *s = server;
    (void)fd, (void)what;
    double now = hd_time();
    for (hd_call *c = s->calls, *next; c; c = next) {
        next = c->next;
        hd_call_ping(c, now);
    }
    look_around(s);
}

/* ---- listening ---- */

static void name_peer(const struct sockaddr *a, char *out, size_t room)
{
    char host[48] = "?";
    int port = 0;
    if (a->sa_family == AF_INET) {
        const struct sockaddr_in *v4 = (const void *)a;
        inet_ntop(AF_INET, &v4->sin_addr, host, sizeof host);
        port = ntohs(v4->sin_port);
    } else if (a->sa_family == AF_INET6) {
        const struct sockaddr_in6 *v6 = (const void *)a;
        inet_ntop(AF_INET6, &v6->sin6_addr, host, sizeof host);
        port = ntohs(v6->sin6_port);
    }
    snprintf(out, room, a->sa_family == AF_INET6 ? "[%s]:%d" : "%s:%d", host, port);
}

static void on_accept(struct evconnlistener *l, evutil_socket_t fd, struct sockaddr *a, int n, void *server)
{
    hd_server *s = server;
    char peer[64];
    (void)l, (void)n;
    s->counts.connections++;
    if (s->n_conns >= s->options.max_connections) {
        s->counts.too_many++;
        hd_conn_turn_away(s, fd);
        return;
    }
    name_peer(a, peer, sizeof peer);
    hd_conn_accept(s, fd, peer);
}

/* No file descriptors are left, most likely: those that wait are looked at again a little later. */
static void on_accept_error(struct evconnlistener *l, void *server)
{
    hd_server *s = server;
    struct timeval later = {0, 100000};
    evconnlistener_disable(l);
    evtimer_add(s->again, &later);
}

static void on_again(evutil_socket_t fd, short what, void *server)
{
    hd_server *s = server;
    (void)fd, (void)what;
    if (s->listener) evconnlistener_enable(s->listener);
}

static int find_port(int fd)
{
    struct sockaddr_storage a;
    socklen_t n = sizeof a;
    if (getsockname(fd, (struct sockaddr *)&a, &n)) return 0;
    return ntohs(a.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&a)->sin6_port : ((struct sockaddr_in *)&a)->sin_port);
}

static int listen_at(hd_server *s, hd_error *err)
{
    const hd_server_options *o = &s->options;
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *found = NULL;
    char port[16];
    if (o->port < 0 || o->port > 65535) return hd_fail(err, HD_EINVAL, "port %d: ports are 0 to 65535", o->port);
    snprintf(port, sizeof port, "%d", o->port);
    int rc = getaddrinfo(o->host, port, &hints, &found);
    if (rc) return hd_fail(err, HD_EINVAL, "host %s: %s", o->host, gai_strerror(rc));
    s->listener = evconnlistener_new_bind(s->base, on_accept, s, LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC | LEV_OPT_REUSEABLE, 1024, found->ai_addr,
                                          (int)found->ai_addrlen);
    freeaddrinfo(found);
    if (!s->listener) return hd_fail_errno(err, "%s port %d", o->host, o->port);
    evconnlistener_set_error_cb(s->listener, on_accept_error);
    s->port = find_port(evconnlistener_get_fd(s->listener));
    return 0;
}

/* ---- life ---- */

/* The server's own copies of the options' strings. */
static int keep_options(hd_server *s, const hd_server_options *o, hd_error *err)
{
    s->options = *o;
    fill_options(&s->options);
    s->options.host = hd_arena_strdup(&s->arena, s->options.host);
    if (o->cors) s->options.cors = hd_arena_strdup(&s->arena, o->cors);
    s->options.api_keys = NULL; /* their hashes are the guard's */
    s->running_of_key = hd_arena_alloc(&s->arena, sizeof(int64_t) * (size_t)(o->n_api_keys + 1));
    if (!s->options.host || (o->cors && !s->options.cors) || !s->running_of_key) return hd_fail_memory(err, 64, "the server's options");
    s->guard = hd_guard_new(o, err);
    return s->guard ? 0 : err->code;
}

static int make_events(hd_server *s, hd_error *err)
{
    double every = s->options.ping_seconds / 4 < 1 ? s->options.ping_seconds / 4 : 1;
    struct timeval t = {(time_t)every, (suseconds_t)((every - (double)(time_t)every) * 1e6)};
    s->base = event_base_new();
    s->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (!s->base || s->wake_fd < 0) return hd_fail_errno(err, "the event loop");
    s->wake_event = event_new(s->base, s->wake_fd, EV_READ | EV_PERSIST, on_wake, s);
    s->tick = event_new(s->base, -1, EV_PERSIST, on_tick, s);
    s->again = evtimer_new(s->base, on_again, s);
    if (!s->wake_event || !s->tick || !s->again || event_add(s->wake_event, NULL) || event_add(s->tick, &t)) return hd_fail_memory(err, 0, "the event loop");
    return 0;
}

hd_server *hd_server_new(const hd_server_options *o, hd_error *err)
{
    hd_error local = {0};
    hd_server *s = hd_calloc(1, sizeof *s);
    if (!s) return hd_fail_memory(err, sizeof *s, "the server"), NULL;
    s->wake_fd = -1;
    s->end = &s->first;
    s->started = time(NULL);
    pthread_mutex_init(&s->lock, NULL);
    int rc = keep_options(s, o, &local);
    if (!rc) rc = make_events(s, &local);
    if (!rc) rc = listen_at(s, &local);
    if (!rc && !(s->pool = hd_pool_new(s, POOL_THREADS, &local))) rc = local.code;
    if (!rc) return s;
    hd_fail(err, rc, "%s", local.message);
    hd_server_free(s);
    return NULL;
}

/* A peer that has gone must not end the process: SIGPIPE stays blocked on this thread while the loop runs, and is taken back afterwards. */
static void hold_pipe_signal(sigset_t *before)
{
    sigset_t pipe_only;
    sigemptyset(&pipe_only);
    sigaddset(&pipe_only, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe_only, before);
}

static void release_pipe_signal(const sigset_t *before)
{
    sigset_t pipe_only;
    struct timespec none = {0, 0};
    sigemptyset(&pipe_only);
    sigaddset(&pipe_only, SIGPIPE);
    if (!sigismember(before, SIGPIPE))
        while (sigtimedwait(&pipe_only, NULL, &none) > 0) continue;
    pthread_sigmask(SIG_SETMASK, before, NULL);
}

/* After a cut-off: what the pool and the engine still hold is waited for, a little. */
static void let_go(hd_server *s)
{
    double end = hd_time() + CUT_SECONDS;
    while (s->n_calls && hd_time() < end) {
        handle_messages(s);
        if (s->n_calls) usleep(2000);
    }
}

int hd_server_run(hd_server *s, hd_error *err)
{
    sigset_t before;
    hold_pipe_signal(&before);
    look_around(s);
    if (!(s->cutting || (s->draining && !is_busy(s)))) event_base_dispatch(s->base);
    stop_listening(s);
    bool cut = s->cutting;
    if (!cut) cut_off(s); /* connections that linger */
    let_go(s);
    release_pipe_signal(&before);
    if (atomic_load(&s->failed)) return hd_fail(err, HD_EIO, "%s", s->why ? s->why : "the model failed");
    return cut ? hd_fail(err, HD_EINTR, "cut off what ran") : 0;
}

void hd_server_free(hd_server *s)
{
    if (!s) return;
    stop_listening(s);
    if (!s->cutting && s->base) cut_off(s);
    if (s->base) let_go(s);
    hd_pool_free(s->pool);
    if (s->base) handle_messages(s);
    if (s->n_calls) return; /* the engine stands still and holds requests that point here: better to leave them than to crash later */
    if (s->wake_event) event_free(s->wake_event);
    if (s->tick) event_free(s->tick);
    if (s->again) event_free(s->again);
    if (s->base) event_base_free(s->base);
    if (s->wake_fd >= 0) close(s->wake_fd);
    hd_guard_free(s->guard);
    pthread_mutex_destroy(&s->lock);
    hd_free(s->why);
    hd_arena_free(&s->arena);
    hd_free(s);
}
