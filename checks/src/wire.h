/* wire.h: what the checks of the server share: a `heddle serve` of their own, requests by hand over sockets, streams with the time of each event, /metrics.
 * None of it trusts the server: all reads have deadlines. */
#ifndef CHECK_WIRE_H
#define CHECK_WIRE_H

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/mem.h"
#include "base/str.h"
#include "base/term.h"

/* ---- verdicts ---- */

typedef struct wire_tally { int failed; } wire_tally;

static inline bool wire_report(wire_tally *t, const char *what, double value, const char *relation, double bound, bool judged)
{
    bool fine = relation[0] == '<' ? value <= bound : relation[0] == '>' ? value >= bound : value == bound;
    const char *verdict = fine ? "PASS" : judged ? "FAIL" : "(not judged)";
    if (!fine && judged) t->failed++;
    printf("  %-72s %-10.4g %s %-8.4g %s\n", what, value, relation, bound, verdict);
    fflush(stdout);
    return fine;
}

/* ---- a server of our own ---- */

typedef struct wire_server {
    pid_t pid;
    int port;
    double ready_seconds; /* from its start to its readiness */
    char log[300];        /* its standard error */
} wire_server;

enum { WIRE_MOST_FLAGS = 48 };

static inline void wire_exec(const char *heddle, const char *model, const char *const *flags, const char *log)
{
    const char *argv[WIRE_MOST_FLAGS + 8] = {heddle, "serve", model, "--port", "0"};
    int n = 5, fd = open(log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    for (int i = 0; flags && flags[i] && i < WIRE_MOST_FLAGS; i++) argv[n++] = flags[i];
    if (fd >= 0) dup2(fd, 2);
    execv(heddle, (char *const *)(uintptr_t)argv);
    _exit(127);
}

/* The number behind the last `before` in the log; -1: it isn't there yet. */
static inline int wire_log_port(const char *log)
{
    hd_str text;
    hd_str_init(&text);
    int port = -1, fd = open(log, O_RDONLY | O_CLOEXEC);
    char piece[4096];
    for (ssize_t n; fd >= 0 && (n = read(fd, piece, sizeof piece)) > 0;) hd_str_add(&text, piece, (size_t)n);
    if (fd >= 0) close(fd);
    const char *at = text.data ? strstr(text.data, "listening on 127.0.0.1:") : NULL;
    if (at && strchr(at, '\n')) port = atoi(at + 23);
    hd_str_free(&text);
    return port;
}

static inline int wire_connect(int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (!connect(fd, (struct sockaddr *)&a, sizeof a)) return fd;
    close(fd);
    return -1;
}

static inline bool wire_send(int fd, const char *p, size_t n)
{
    while (n) {
        ssize_t k = send(fd, p, n, MSG_NOSIGNAL);
        if (k <= 0 && errno != EINTR) return false;
        if (k > 0) p += k, n -= (size_t)k;
    }
    return true;
}

/* ---- answers ---- */

typedef struct wire_reader {
    int fd;
    double deadline;     /* hd_time() */
    char buffer[1 << 14];
    size_t at, n;
    bool ended;          /* the peer closed, or the deadline passed */
    bool late;
} wire_reader;

static inline void wire_reader_begin(wire_reader *r, int fd, double seconds)
{
    r->fd = fd, r->at = r->n = 0, r->ended = r->late = false;
    r->deadline = hd_time() + seconds;
}

static inline int wire_byte(wire_reader *r)
{
    while (r->at == r->n && !r->ended) {
        double left = r->deadline - hd_time();
        struct pollfd p = {.fd = r->fd, .events = POLLIN};
        if (left <= 0 || poll(&p, 1, (int)(left * 1000) + 1) == 0) {
            r->late = r->ended = true;
            break;
        }
        ssize_t k = recv(r->fd, r->buffer, sizeof r->buffer, 0);
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) r->ended = true;
        else r->at = 0, r->n = (size_t)k;
    }
    return r->at < r->n ? (unsigned char)r->buffer[r->at++] : -1;
}

/* A line without its end; false: there is none. */
static inline bool wire_line(wire_reader *r, hd_str *line)
{
    hd_str_clear(line);
    for (int c; (c = wire_byte(r)) >= 0;) {
        if (c == '\n') {
            if (line->len && line->data[line->len - 1] == '\r') line->data[--line->len] = 0;
            return true;
        }
        hd_str_putc(line, (char)c);
    }
    return false;
}

typedef struct wire_answer {
    int status;          /* 0: none came */
    int64_t length;      /* -1: not said */
    bool chunked, close, retry_after, whole;
    hd_str body;
} wire_answer;

static inline bool wire_head(wire_reader *r, wire_answer *a)
{
    hd_str line;
    hd_str_init(&line);
    a->status = 0, a->length = -1, a->chunked = a->close = a->retry_after = false;
    bool fine = wire_line(r, &line) && !strncmp(line.data ? line.data : "", "HTTP/1.1 ", 9);
    if (fine) a->status = atoi(line.data + 9);
    while (fine && (fine = wire_line(r, &line)) && line.len) {
        if (!strncasecmp(line.data, "content-length:", 15)) a->length = atoll(line.data + 15);
        a->chunked |= !strncasecmp(line.data, "transfer-encoding: chunked", 26);
        a->close |= !strncasecmp(line.data, "connection: close", 17);
        a->retry_after |= !strncasecmp(line.data, "retry-after:", 12);
    }
    hd_str_free(&line);
    if (fine && a->status == 100) return wire_head(r, a);
    return fine;
}

static inline bool wire_take(wire_reader *r, int64_t n, hd_str *out)
{
    for (int c; n > 0; n--) {
        if ((c = wire_byte(r)) < 0) return false;
        hd_str_putc(out, (char)c);
    }
    return true;
}

static inline bool wire_body(wire_reader *r, wire_answer *a)
{
    if (!a->chunked) return a->length < 0 ? false : wire_take(r, a->length, &a->body);
    hd_str line;
    hd_str_init(&line);
    bool fine = true;
    for (long size = 1; fine && size;) {
        fine = wire_line(r, &line) && line.len;
        size = fine ? strtol(line.data, NULL, 16) : 0;
        fine = fine && wire_take(r, size, &a->body) && wire_line(r, &line);
    }
    hd_str_free(&line);
    return fine;
}

/* Reads one whole answer; a->body is to be freed in any case. */
static inline void wire_read(int fd, double seconds, wire_answer *a)
{
    wire_reader *r = malloc(sizeof *r);
    *a = (wire_answer){.length = -1};
    hd_str_init(&a->body);
    if (!r) return;
    wire_reader_begin(r, fd, seconds);
    a->whole = wire_head(r, a) && wire_body(r, a);
    free(r);
}

/* Writes a POST of `body` (NULL: a GET). */
static inline void wire_request(hd_str *o, const char *path, const char *body, size_t n)
{
    hd_str_printf(o, "%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\n", body ? "POST" : "GET", path);
    if (body) hd_str_printf(o, "Content-Type: application/json\r\nContent-Length: %zu\r\n", n);
    hd_str_puts(o, "\r\n");
    if (body) hd_str_add(o, body, n);
}

/* One request on a connection of its own. */
static inline int wire_ask(int port, const char *path, const char *body, double seconds, wire_answer *a)
{
    hd_str o;
    hd_str_init(&o);
    wire_request(&o, path, body, body ? strlen(body) : 0);
    int fd = wire_connect(port);
    *a = (wire_answer){.length = -1};
    hd_str_init(&a->body);
    if (fd >= 0 && wire_send(fd, o.data, o.len)) wire_read(fd, seconds, a);
    if (fd >= 0) close(fd);
    hd_str_free(&o);
    return a->status;
}

/* ---- /metrics ---- */

static inline double wire_metric_of(const char *text, const char *name)
{
    size_t n = strlen(name);
    for (const char *p = text; p && *p; p = strchr(p, '\n') ? strchr(p, '\n') + 1 : NULL)
        if (!strncmp(p, name, n) && p[n] == ' ') return atof(p + n + 1);
    return -1;
}

static inline double wire_metric(int port, const char *name)
{
    wire_answer a;
    double x = -1;
    if (wire_ask(port, "/metrics", NULL, 30, &a) == 200) x = wire_metric_of(a.body.data, name);
    hd_str_free(&a.body);
    return x;
}

/* Waits until nothing runs, waits or holds a block; what is left of all three after `seconds`. */
static inline double wire_left(int port, double seconds)
{
    double end = hd_time() + seconds, left = -1;
    do {
        wire_answer a;
        if (wire_ask(port, "/metrics", NULL, 30, &a) == 200)
            left = wire_metric_of(a.body.data, "heddle_requests_running") + wire_metric_of(a.body.data, "heddle_requests_waiting") +
                   wire_metric_of(a.body.data, "heddle_kv_blocks_used");
        hd_str_free(&a.body);
        if (left != 0) usleep(10000);
    } while (left != 0 && hd_time() < end);
    return left;
}

/* Resident memory in MiB. */
static inline double wire_rss(pid_t pid)
{
    char path[64], line[256];
    double kib = -1;
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, "VmRSS:", 6)) kib = atof(line + 6);
    if (f) fclose(f);
    return kib / 1024;
}

/* ---- life of the server ---- */

static inline bool wire_is_ready(int port)
{
    wire_answer a;
    int status = wire_ask(port, "/health", NULL, 10, &a);
    hd_str_free(&a.body);
    return status == 200;
}

/* Starts it and waits until it is ready; false: it ended, or took longer than `seconds`. */
static inline bool wire_serve(wire_server *s, const char *heddle, const char *model, const char *const *flags, const char *log, double seconds)
{
    double start = hd_time();
    snprintf(s->log, sizeof s->log, "%s", log);
    s->port = -1;
    unlink(log);
    s->pid = fork();
    if (!s->pid) wire_exec(heddle, model, flags, log);
    while (hd_time() < start + seconds) {
        int status;
        if (s->port <= 0) s->port = wire_log_port(log);
        if (s->port > 0 && wire_is_ready(s->port)) {
            s->ready_seconds = hd_time() - start;
            return true;
        }
        if (waitpid(s->pid, &status, WNOHANG) == s->pid) break;
        usleep(5000);
    }
    fprintf(stderr, "the server didn't get ready: see %s\n", log);
    if (hd_time() >= start + seconds) kill(s->pid, SIGKILL), waitpid(s->pid, NULL, 0);
    s->pid = 0;
    return false;
}

/* Its exit status after `sig` (128 and the signal's number where one ended it); -1: it had to be killed after `seconds`. */
static inline int wire_end(wire_server *s, int sig, double seconds)
{
    int status = 0;
    if (s->pid <= 0) return -1;
    kill(s->pid, sig);
    for (double end = hd_time() + seconds; hd_time() < end; usleep(5000))
        if (waitpid(s->pid, &status, WNOHANG) == s->pid) {
            s->pid = 0;
            return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        }
    kill(s->pid, SIGKILL);
    waitpid(s->pid, &status, 0);
    s->pid = 0;
    return -1;
}

/* ---- streams ---- */

typedef struct wire_stream {
    int port;
    const char *path, *body;
    double seconds;          /* to wait for all of it */
    int64_t cut_after;       /* hangs up after so many events; -1: never */
    const atomic_bool *stop; /* hangs up once this is set; NULL: never */
    int status;
    double asked, first, last; /* hd_time() */
    double *times; int64_t n, room; /* of each event with text */
    hd_str text;             /* of all "text": and "content": fields, as they stand in the JSON */
    bool done, failed;       /* [DONE] came; an "error" came, or it broke off */
    pthread_t thread;
} wire_stream;

static inline void wire_stream_add_text(wire_stream *s, const char *event)
{
    const char *at = strstr(event, "\"text\": \""), *content = strstr(event, "\"content\": \"");
    if (at) at += 9;
    else if (content) at = content + 12;
    if (!at) return;
    const char *end = at;
    while (*end && *end != '"') end += *end == '\\' && end[1] ? 2 : 1;
    if (end == at) return;
    hd_str_add(&s->text, at, (size_t)(end - at));
    s->last = hd_time();
    if (!s->n) s->first = s->last;
    if (s->n == s->room) {
        double *more = realloc(s->times, sizeof(double) * (size_t)(s->room = s->room * 2 + 64));
        if (!more) abort();
        s->times = more;
    }
    s->times[s->n++] = s->last;
}

static inline bool wire_is_stopped(const wire_stream *s) { return s->stop && atomic_load(s->stop); }

static inline void wire_stream_read(wire_stream *s, wire_reader *r)
{
    hd_str line;
    wire_answer a = {0};
    hd_str_init(&line);
    if (!wire_head(r, &a)) s->failed = true;
    s->status = a.status;
    while (!s->failed && !s->done && a.status == 200 && wire_line(r, &line)) { /* chunk sizes are lines too, and no events */
        if ((s->cut_after >= 0 && s->n >= s->cut_after) || wire_is_stopped(s)) break;
        if (!line.data || strncmp(line.data, "data: ", 6)) continue;
        if (!strcmp(line.data + 6, "[DONE]")) s->done = true;
        else if (!strncmp(line.data + 6, "{\"error\"", 8)) s->failed = true;
        else wire_stream_add_text(s, line.data + 6);
    }
    if (s->cut_after < 0 && !s->done && !wire_is_stopped(s)) s->failed = true;
    hd_str_free(&line);
}

static inline void *wire_stream_run(void *arg)
{
    wire_stream *s = arg;
    hd_str o;
    wire_reader *r = malloc(sizeof *r);
    hd_str_init(&o);
    hd_str_init(&s->text);
    wire_request(&o, s->path, s->body, strlen(s->body));
    s->n = s->status = 0, s->done = s->failed = false;
    s->asked = hd_time();
    int fd = r ? wire_connect(s->port) : -1;
    if (fd < 0 || !wire_send(fd, o.data, o.len)) s->failed = true;
    else {
        wire_reader_begin(r, fd, s->seconds);
        wire_stream_read(s, r);
    }
    if (fd >= 0) close(fd);
    free(r);
    hd_str_free(&o);
    return NULL;
}

static inline void wire_stream_start(wire_stream *s)
{
    if (pthread_create(&s->thread, NULL, wire_stream_run, s)) abort();
}

static inline void wire_stream_join(wire_stream *s) { pthread_join(s->thread, NULL); }

static inline void wire_stream_free(wire_stream *s)
{
    free(s->times);
    s->times = NULL;
    s->room = 0;
    hd_str_free(&s->text);
}

/* ---- gaps ---- */

static inline int wire_by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static inline double wire_percentile(double *x, int64_t n, double share)
{
    if (!n) return 0;
    qsort(x, (size_t)n, sizeof *x, wire_by_size);
    int64_t i = (int64_t)(share * (double)(n - 1) + 0.5);
    return x[i];
}

/* ---- bodies ---- */

/* Words of one token each of check_random_gguf's tokenizer: pairs of letters, so that n words are n tokens, all prompts of one `seed` alike. */
static inline void wire_words(hd_str *o, int64_t n, unsigned seed)
{
    for (int64_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        hd_str_printf(o, " %c%c", 'a' + (int)(seed >> 8) % 26, 'a' + (int)(seed >> 16) % 26);
    }
}

/* Bytes that are no whole character keep text back; without them every token is an event. */
static inline void wire_ascii_bias(hd_str *o)
{
    hd_str_puts(o, "\"logit_bias\": {");
    for (int i = 128; i < 256; i++) hd_str_printf(o, "%s\"%d\": -100", i > 128 ? ", " : "", i);
    hd_str_puts(o, "}");
}

#endif
