/* abuse.c: requests that nobody should send, while one client streams in peace: each gets the right answer,
 * the stream's bytes stay as they were, nothing is left.
 *
 *   check_abuse HEDDLE MODEL FOLDER TEMPLATE ROUNDS CONNECTIONS */
#include <sys/resource.h>
#include "base/json.h"
#include "wire.h"
#include "abuse_cases.h"

enum { ANSWER_SECONDS = 60 };

typedef struct job {
    wire_server server;
    wire_tally tally;
    int round, connections;
    int64_t sent, wrong;       /* of all classes */
    int64_t class_sent, class_wrong;
    double slowest;            /* seconds to an answer, of the class */
    bool judged;
} job;

/* ---- the verdict on one answer ---- */

static bool is_error(const wire_answer *a, const char *word)
{
    json_t *root = json_loadb(a->body.data, a->body.len, 0, NULL), *error = json_object_get(root, "error");
    const char *message = json_string_value(json_object_get(error, "message"));
    bool fine = message && *message && !strchr(message, '\n') && json_is_string(json_object_get(error, "type")) && json_object_get(error, "param") &&
        json_object_get(error, "code");
    fine = fine && (!word || !*word || strstr(a->body.data, word));
    json_decref(root);
    return fine;
}

static void judge(job *j, const wire_answer *a, int status, const char *word, const char *what)
{
    j->sent++, j->class_sent++;
    if (a->status == status && a->whole && is_error(a, word)) return;
    j->wrong++, j->class_wrong++;
    printf("    expected %d%s%s, got %d%s \"%.120s\" for %.140s\n", status, word && *word ? " with " : "", word ? word : "", a->status,
        a->whole ? "" : ", cut short,", a->body.data ? a->body.data : "", what);
}

static void bad_bytes(job *j, const char *bytes, size_t n, int status, const char *word)
{
    wire_answer a = {.length = -1};
    double start = hd_time();
    int fd = wire_connect(j->server.port);
    if (fd >= 0) {
        wire_send(fd, bytes, n); /* it may be refused before all of it is sent */
        wire_read(fd, ANSWER_SECONDS, &a);
        close(fd);
    }
    if (hd_time() - start > j->slowest) j->slowest = hd_time() - start;
    judge(j, &a, status, word, bytes);
    hd_str_free(&a.body);
}

static void bad_body(job *j, const char *path, const char *body, size_t n, int status, const char *word)
{
    hd_str o;
    wire_answer a = {.length = -1};
    hd_str_init(&o);
    wire_request(&o, path, body, n);
    double start = hd_time();
    int fd = wire_connect(j->server.port);
    if (fd >= 0) {
        wire_send(fd, o.data, o.len);
        wire_read(fd, ANSWER_SECONDS, &a);
        close(fd);
    }
    if (hd_time() - start > j->slowest) j->slowest = hd_time() - start;
    judge(j, &a, status, word, body);
    hd_str_free(&a.body);
    hd_str_free(&o);
}

static void class_done(job *j, const char *name, int64_t least)
{
    printf("  %-28s %6lld sent, %lld answered wrongly, the slowest answer after %.2f s\n", name, (long long)j->class_sent, (long long)j->class_wrong,
        j->slowest);
    fflush(stdout);
    if (j->class_sent < least) j->wrong++, printf("    fewer than %lld\n", (long long)least);
    j->class_sent = j->class_wrong = 0;
    j->slowest = 0;
}

static void bodies(job *j, const char *name, const body_case *list, size_t n)
{
    for (size_t i = 0; i < n; i++) bad_body(j, list[i].path, list[i].body, strlen(list[i].body), list[i].status ? list[i].status : 400, list[i].word);
    class_done(j, name, 10);
}

/* ---- classes that are made ---- */

static void framing(job *j)
{
    for (size_t i = 0; i < sizeof framing_cases / sizeof framing_cases[0]; i++)
        bad_bytes(j, framing_cases[i].bytes, framing_cases[i].n, framing_cases[i].status, "");
    class_done(j, "framing", 10);
}

static void templates(job *j)
{
    char body[256];
    for (int i = 1; i <= BOMBS; i++) {
        snprintf(body, sizeof body, "{" HELLO ", \"chat_template_kwargs\": {\"bomb\": %d}}", i);
        bad_body(j, CHAT, body, strlen(body), 400, "template");
    }
    class_done(j, "exploding templates", 10);
}

static void repeat(hd_str *o, const char *before, const char *piece, int64_t n, const char *after)
{
    hd_str_clear(o);
    hd_str_puts(o, before);
    for (int64_t i = 0; i < n; i++) hd_str_puts(o, piece);
    hd_str_puts(o, after);
}

/* Schemas that are large or deep. */
static void big_schemas(job *j)
{
    static const struct { const char *before, *piece; int64_t n; const char *after; } list[] = {
        {"{\"prompt\": \"a\", \"guided_json\": ", "{\"items\": ", 600, ""},
        {"{\"prompt\": \"a\", \"guided_json\": {\"enum\": [1", ", {\"a\": [[[[1]]]]}", 40000, "]}}"},
        {"{\"prompt\": \"a\", \"guided_regex\": \"", "(a?b?c?d?){90}", 4000, "\"}"},
        {"{\"prompt\": \"a\", \"guided_regex\": \"", "(", 50000, "\"}"},
        {"{\"prompt\": \"a\", \"guided_grammar\": \"root ::= ", "(", 50000, "\"}"},
        {"{\"prompt\": \"a\", \"guided_choice\": [\"a\"", ", \"b\"", 2000, "]}"},
        {"{\"prompt\": \"a\", \"guided_json\": ", "[", 5000, "}"},
    };
    hd_str o;
    hd_str_init(&o);
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) {
        repeat(&o, list[i].before, list[i].piece, list[i].n, list[i].after);
        if (!i) { /* closed again, so that depth is all that is wrong */
            hd_str_puts(&o, "{}");
            for (int k = 0; k < 600; k++) hd_str_putc(&o, '}');
            hd_str_putc(&o, '}');
        }
        bad_body(j, TEXT, o.data, o.len, 400, "");
    }
    hd_str_free(&o);
    for (size_t i = 0; i < sizeof schema_cases / sizeof schema_cases[0]; i++)
        bad_body(j, schema_cases[i].path, schema_cases[i].body, strlen(schema_cases[i].body), 400, schema_cases[i].word);
    class_done(j, "exploding schemas", 10);
}

static void oversize(job *j)
{
    static const struct { int status; const char *before, *piece; int64_t n; const char *after; } heads[] = {
        {431, "GET / HTTP/1.1\r\nHost: a\r\nX: ", "x", 20000, "\r\n\r\n"},
        {431, "GET / HTTP/1.1\r\nHost: a\r\n", "X: y\r\n", 200, "\r\n"},
        {414, "GET /", "x", 5000, " HTTP/1.1\r\nHost: a\r\n\r\n"},
        {414, "GET /", "x", 30000, " HTTP/1.1\r\nHost: a\r\n\r\n"},
        {413, "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1048577\r\n\r\n", "x", 0, ""},
        {413, "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999999999\r\n\r\n", "x", 100, ""},
        {413, "POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", "10000\r\n", 0, "fffffff\r\n"},
        {413, "POST /v1/completions HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 9999999\r\n\r\n", "", 0, ""},
        {400, "POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;", "x", 5000, "\r\n"},
        {400, "POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", "X: yyyyyyyyyyyyyyyyyyyyyy\r\n", 400, "\r\n"},
    };
    static const struct { const char *path, *before, *piece; int64_t n; const char *after, *word; } list[] = {
        {TEXT, "{\"prompt\": \"", " ab", 2000, "\"}", "context_length_exceeded"},
        {TEXT, "{\"prompt\": \"", "a", 900000, "\"}", "context_length_exceeded"},
        {TEXT, "{\"prompt\": [1", ", 1", 2000, "]}", "context_length_exceeded"},
        {TEXT, "{\"prompt\": [\"a\"", ", \"a\"", 100000, "]}", "prompt"},
        {TEXT, "{\"prompt\": \"a\", \"n\": 128, \"prompt\": [\"a\"", ", \"a\"", 2000, "]}", ""},
        {TEXT, "{\"prompt\": \"a\", \"stop\": [\"a\"", ", \"a\"", 16, "]}", "stop"},
        {TEXT, "{\"prompt\": \"a\", \"stop\": \"", "a", 1025, "\"}", "stop"},
        {TEXT, "{\"prompt\": \"a\", \"stop_token_ids\": [1", ", 1", 64, "]}", "stop_token_ids"},
        {TEXT, "{\"prompt\": ", "[", 100000, "", ""},
        {TEXT, "{\"prompt\": \"a\", \"x\": ", "{\"a\":", 100000, "", ""},
        {TEXT, "{\"prompt\": \"a\", \"seed\": 1", "0", 100000, "}", ""},
        {TEXT, "{\"prompt\": \"a\", \"model\": \"", "m", 100000, "\"}", "404"},
        {TEXT, "{\"prompt\": \"a\", \"", "k", 100000, "\": 1}", "kkk"},
        {CHAT, "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}", ", {\"role\": \"user\", \"content\": \"a\"}", 4096, "]}", "messages"},
        {CHAT, "{" HELLO ", \"tools\": [{}", ", {}", 300, "]}", "tools"},
        {EMBED, "{\"input\": \"", " ab", 2000, "\"}", "context_length_exceeded"},
        {"/detokenize", "{\"tokens\": [1", ", 1", 300000, "", ""},
    };
    hd_str o;
    hd_str_init(&o);
    for (size_t i = 0; i < sizeof heads / sizeof heads[0]; i++) {
        repeat(&o, heads[i].before, heads[i].piece, heads[i].n, heads[i].after);
        bad_bytes(j, o.data, o.len, heads[i].status, "");
    }
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) {
        bool missing = !strcmp(list[i].word, "404");
        repeat(&o, list[i].before, list[i].piece, list[i].n, list[i].after);
        bad_body(j, list[i].path, o.data, o.len, missing ? 404 : 400, missing ? "" : list[i].word);
    }
    hd_str_free(&o);
    class_done(j, "oversize", 10);
}

/* ---- slow drips: all at once; the server's limit is a second ---- */

static void slow_drip(job *j)
{
    static const struct { const char *at_once, *drip; } list[] = {
        {"", "GET /health HTTP/1.1\r\nHost: a\r\nX: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy"},
        {"G", ""},
        {"GET / HTTP/1.1\r\n", ""},
        {"GET / HTTP/1.1\r\nHost: a\r\n", "A: b\r\nA: b\r\nA: b\r\nA: b\r\nA: b\r\nA: b\r\nA: b\r\nA: b\r\nA: b\r\nA: b\r\nA: b\r\n"},
        {"GET / HTTP/1.1\r\nHost: a\r\n\r", ""},
        {"\r\n\r\n", "\r\n"},
        {"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n", "{\"prompt\": \"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"},
        {"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n", ""},
        {"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 13\r\n\r\n{\"prompt\": 1", ""},
        {"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        "5\r\naaaaa\r\n5\r\naaaaa\r\n5\r\naaaaa\r\n5\r\naaaaa\r\n5\r\naaaaa\r\n"},
        {"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;", "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee"},
        {"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", "X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy"},
    };
    enum { KINDS = sizeof list / sizeof list[0] };
    int fd[KINDS];
    double start = hd_time();
    for (int i = 0; i < KINDS; i++) {
        fd[i] = wire_connect(j->server.port);
        wire_send(fd[i], list[i].at_once, strlen(list[i].at_once));
    }
    for (size_t k = 0; k < 20; k++, usleep(80000))
        for (int i = 0; i < KINDS; i++)
            if (k < strlen(list[i].drip)) wire_send(fd[i], list[i].drip + k, 1);
    for (int i = 0; i < KINDS; i++) {
        wire_answer a;
        wire_read(fd[i], 10, &a);
        judge(j, &a, 408, "too long", list[i].at_once);
        hd_str_free(&a.body);
        close(fd[i]);
    }
    j->slowest = hd_time() - start;
    class_done(j, "slow drip", 10);
}

/* ---- hang-ups: in each phase, by FIN, by RST, or of the sending half ---- */

static void leave(int fd, int how)
{
    struct linger now = {1, 0};
    if (how == 1) setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    if (how == 2) {
        shutdown(fd, SHUT_WR);
        usleep(20000);
    }
    close(fd);
}

static void hang_ups(job *j)
{
    hd_str longest, many, beams;
    hd_str *const bodies_[] = {&longest, &many, &beams};
    static const char *const more[] = {"", "\"n\": 3, ", "\"use_beam_search\": true, \"best_of\": 3, "};
    static const int waits[] = {0, 300, 3000, 30000, 100000}; /* microseconds */
    for (int i = 0; i < 3; i++) {
        hd_str_init(bodies_[i]);
        hd_str_printf(bodies_[i], "{\"stream\": %s, \"ignore_eos\": true, \"max_tokens\": 300, %s\"prompt\": \"", i == 2 ? "false" : "true", more[i]);
        wire_words(bodies_[i], 600, (unsigned)i);
        hd_str_puts(bodies_[i], "\"}");
    }
    for (int how = 0; how < 3; how++) {
        for (int part = 0; part < 4; part++) { /* before, within the head, after it, within the body */
            hd_str o;
            hd_str_init(&o);
            wire_request(&o, TEXT, longest.data, longest.len);
            size_t head = (size_t)(strstr(o.data, "\r\n\r\n") + 4 - o.data), n = part == 0 ? 0 : part == 1 ? head / 2 : part == 2 ? head :
                head + longest.len / 2;
            int fd = wire_connect(j->server.port);
            wire_send(fd, o.data, n);
            usleep(2000);
            leave(fd, how);
            j->sent++, j->class_sent++;
            hd_str_free(&o);
        }
        for (size_t w = 0; w < sizeof waits / sizeof waits[0]; w++) { /* on the pool, waiting, in the prompt, generating */
            int fd[12];
            for (int i = 0; i < 12; i++) {
                hd_str o;
                hd_str_init(&o);
                wire_request(&o, TEXT, bodies_[i % 3]->data, bodies_[i % 3]->len);
                fd[i] = wire_connect(j->server.port);
                wire_send(fd[i], o.data, o.len);
                hd_str_free(&o);
            }
            usleep((useconds_t)waits[w]);
            for (int i = 0; i < 12; i++) leave(fd[i], how);
            j->sent += 12, j->class_sent += 12;
        }
    }
    for (int i = 0; i < 3; i++) hd_str_free(bodies_[i]);
    class_done(j, "hang-ups", 10);
}

/* ---- many connections at once, each with a bad request in the end ---- */

/* Two answers on one connection, of which the second counts. Both may have come in one piece. */
static void read_second(int fd, wire_answer *a)
{
    static wire_reader r; /* of the only thread that does this */
    wire_reader_begin(&r, fd, ANSWER_SECONDS);
    *a = (wire_answer){.length = -1};
    hd_str_init(&a->body);
    if (!wire_head(&r, a) || !wire_body(&r, a) || a->status != 200) return;
    hd_str_clear(&a->body);
    a->whole = wire_head(&r, a) && wire_body(&r, a);
}

static void many_connections(job *j)
{
    static const char bad[] = "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 14\r\n\r\n{\"prompt\": 7}\n";
    static const char good[] = "GET /health HTTP/1.1\r\nHost: a\r\n\r\n";
    int n = j->connections, *fd = calloc((size_t)n, sizeof *fd), open = 0;
    if (!fd) abort();
    for (int i = 0; i < n; i++) { /* a good request first: an idle connection has longer than a new one */
        open += (fd[i] = wire_connect(j->server.port)) >= 0;
        if (fd[i] >= 0) wire_send(fd[i], good, sizeof good - 1);
    }
    double held = wire_metric(j->server.port, "heddle_http_connections");
    for (int i = 0; i < n; i++)
        if (fd[i] >= 0) wire_send(fd[i], bad, sizeof bad - 1);
    for (int i = 0; i < n; i++) {
        wire_answer a = {.length = -1};
        if (fd[i] >= 0) read_second(fd[i], &a);
        judge(j, &a, 400, "prompt", bad);
        hd_str_free(&a.body);
    }
    printf("    %d connections opened, the server held %.0f\n", open, held);
    if (open != n || held < n) j->wrong++;
    for (int i = 0; i < n; i++)
        if (fd[i] >= 0) close(fd[i]);
    free(fd);
    class_done(j, "connections", 10);
}

/* ---- the client that streams in peace ---- */

typedef struct peace {
    pthread_t thread;
    wire_stream stream;
    hd_str body, text;       /* text: of the first one, alone */
    atomic_bool stop;
    int64_t whole, other;    /* streams that were as the first, and not */
    double slowest;          /* the longest wait for a token */
} peace;

static void *stream_in_peace(void *arg)
{
    peace *p = arg;
    while (!atomic_load(&p->stop)) {
        wire_stream_run(&p->stream);
        bool same = !p->stream.failed && p->stream.text.len == p->text.len && !memcmp(p->stream.text.data, p->text.data, p->text.len);
        if (same) p->whole++;
        else p->other++;
        for (int64_t i = 1; i < p->stream.n; i++) {
            double gap = p->stream.times[i] - p->stream.times[i - 1];
            if (gap > p->slowest) p->slowest = gap;
        }
        wire_stream_free(&p->stream);
    }
    return NULL;
}

static void begin_peace(job *j, peace *p)
{
    hd_str_init(&p->body);
    hd_str_init(&p->text);
    hd_str_puts(&p->body, "{\"stream\": true, \"temperature\": 0, \"ignore_eos\": true, \"max_tokens\": 200, \"prompt\": \" in peace ab cd\"}");
    p->stream = (wire_stream){.port = j->server.port, .path = TEXT, .body = p->body.data, .seconds = 300, .cut_after = -1};
    wire_stream_run(&p->stream);
    if (!p->stream.failed) hd_str_add(&p->text, p->stream.text.data, p->stream.text.len);
    wire_stream_free(&p->stream);
    wire_report(&j->tally, "bytes of the stream that is left in peace", (double)p->text.len, ">=", 100, true);
    if (pthread_create(&p->thread, NULL, stream_in_peace, p)) abort();
}

static void end_peace(job *j, peace *p)
{
    atomic_store(&p->stop, true);
    pthread_join(p->thread, NULL);
    printf("  the longest that it waited for a token: %.2f s\n", p->slowest);
    wire_report(&j->tally, "streams in peace that were as the one alone", (double)p->whole, ">=", 1, true);
    wire_report(&j->tally, "streams in peace that were not", (double)p->other, "==", 0, true);
    hd_str_free(&p->body);
    hd_str_free(&p->text);
}

static void one_round(job *j)
{
    framing(j);
    bodies(j, "types", type_cases, sizeof type_cases / sizeof type_cases[0]);
    bodies(j, "ranges", range_cases, sizeof range_cases / sizeof range_cases[0]);
    bodies(j, "unicode", unicode_cases, sizeof unicode_cases / sizeof unicode_cases[0]);
    big_schemas(j);
    templates(j);
    oversize(j);
    slow_drip(j);
    hang_ups(j);
    many_connections(j);
}

static double open_connections(const job *j)
{
    double n = 0;
    for (int i = 0; i < 100 && (n = wire_metric(j->server.port, "heddle_http_connections")) > 1; i++) usleep(50000);
    return n;
}

int main(int argc, char **argv)
{
    if (argc != 7) return fprintf(stderr, "usage: check_abuse HEDDLE MODEL FOLDER TEMPLATE ROUNDS CONNECTIONS\n"), 2;
    static job j;
    static peace p;
    char log[300];
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN);
    snprintf(log, sizeof log, "%s/abuse.log", argv[3]);
    const char *flags[] = {"--no-log", "--context", "1024", "--max-body", "1M", "--header-timeout", "1", "--max-connections", "20000", "--max-sequences", "8",
        "--chat-template", argv[4], NULL};
    if (!wire_serve(&j.server, argv[1], argv[2], flags, log, 120)) return 1;
    int rounds = atoi(argv[5]);
    double after_first = 0, rss = wire_rss(j.server.pid);
    printf("  %.1f MiB resident before\n", rss);
    begin_peace(&j, &p);
    j.connections = atoi(argv[6]);
    for (int i = 0; i < rounds; i++) {
        one_round(&j);
        rss = wire_rss(j.server.pid);
        printf("  %.1f MiB resident after round %d\n", rss, i + 1);
        if (!i) after_first = rss;
    }
    end_peace(&j, &p);
    wire_report(&j.tally, "bad requests", (double)j.sent, ">=", 300, true);
    wire_report(&j.tally, "wrong answers", (double)j.wrong, "==", 0, true);
    wire_report(&j.tally, "requests and blocks left", wire_left(j.server.port, 30), "==", 0, true);
    wire_report(&j.tally, "connections left, beside the one that asks", open_connections(&j) - 1, "==", 0, true);
    if (rounds > 1) wire_report(&j.tally, "resident memory after the last round / after the first", rss / after_first, "<=", 1.5, true);
    wire_report(&j.tally, "status after SIGTERM", wire_end(&j.server, SIGTERM, 60), "==", 0, true);
    return j.tally.failed != 0;
}
