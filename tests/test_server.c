/* The HTTP server, in process, over a model that computes nothing: framing, endpoints, errors, streams, hang-ups, limits, keys, draining. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "base/json.h"
#include "base/mem.h"
#include "base/term.h"
#include "fake_runner.h"
#include "serve/http.h"
#include "serve/load.h"
#include "serve/server.h"

/* ---- the parser alone ---- */

static int head_status(const char *text, size_t n)
{
    hd_http_head h;
    size_t used;
    return hd_http_parse_head(text, n, &h, &used);
}

#define H "Host: x\r\n"
static void test_heads(void **state)
{
    static const struct { const char *text; int status; } cases[] = {
        {"GET / HTTP/1.1\r\n" H "\r\n", 1}, {"\r\nGET /a?b=c HTTP/1.1\r\n" H "\r\n", 1}, {"GET http://x/a HTTP/1.1\r\n" H "\r\n", 1},
            {"GET / HTTP/1.0\r\n\r\n", 1},
        {"GET / HTTP/1.1\r\n" H, 0}, {"GET / HT", 0}, {"", 0}, {"OPTIONS * HTTP/1.1\r\n" H "\r\n", 1},
        {"GET / HTTP/1.1\r\n\r\n", 400}, {"GET / HTTP/1.1\r\n" H H "\r\n", 400}, {"GET / HTTP/2.0\r\n" H "\r\n", 505}, {"GET / HTTP/1.1 \r\n" H "\r\n", 400},
        {"GET  / HTTP/1.1\r\n" H "\r\n", 400}, {"GET / http/1.1\r\n" H "\r\n", 400}, {"GET\t/ HTTP/1.1\r\n" H "\r\n", 400}, {"GET a HTTP/1.1\r\n" H "\r\n",
            400},
        {"GET * HTTP/1.1\r\n" H "\r\n", 400}, {"GET /\x80 HTTP/1.1\r\n" H "\r\n", 400}, {"GET /\n" H "\r\n", 400}, {"GET / HTTP/1.1\n" H "\n", 400},
        {"GET / HTTP/1.1\r\r\n" H "\r\n", 400}, {"G@T / HTTP/1.1\r\n" H "\r\n", 400}, {"\x16\x03\x01\x02", 400}, {"{\"a\": 1}", 400}, {" GET / HTTP/1.1\r\n",
            400},
        {"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400}, {"GET / HTTP/1.1\r\n" H " folded\r\n\r\n", 400}, {"GET / HTTP/1.1\r\n" H "A\r\n\r\n", 400},
            {"GET / HTTP/1.1\r\n" H ": x\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\n" H "A: b\001c\r\n\r\n", 400}, {"GET / HTTP/1.1\r\n" H "A: b\rc\r\n\r\n", 400},
            {"POST / HTTP/1.1\r\n" H "Content-Length: 5\r\n\r\n", 1},
        {"POST / HTTP/1.1\r\n" H "Content-Length: -5\r\n\r\n", 400}, {"POST / HTTP/1.1\r\n" H "Content-Length: 5, 5\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\n" H "Content-Length: 5\r\nContent-Length: 5\r\n\r\n", 400}, {"POST / HTTP/1.1\r\n" H "Content-Length: 0x5\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\n" H "Content-Length: 99999999999999999999\r\n\r\n", 400}, {"POST / HTTP/1.1\r\n" H "Content-Length:\r\n\r\n", 400},
            {"POST / HTTP/1.1\r\n" H "Content-Length: +5\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n", 1}, {"POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
            400},
        {"POST / HTTP/1.1\r\n" H "Transfer-Encoding: gzip\r\n\r\n", 501}, {"POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked, chunked\r\n\r\n", 501},
        {"POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
            {"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\n" H "Expect: 200-ok\r\n\r\n", 417}, {"GET / HTTP/1.1\r\n" H "Authorization: a\r\nAuthorization: b\r\n\r\n", 400},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        if (head_status(cases[i].text, strlen(cases[i].text)) != cases[i].status) fail_msg("case %zu: %d, not %d: %s", i, head_status(cases[i].text,
            strlen(cases[i].text)), cases[i].status, cases[i].text);
    assert_int_equal(head_status("GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n", 29), 400);
    char *big = malloc(40000);
    memset(big, 'a', 40000);
    memcpy(big, "GET /", 5);
    assert_int_equal(head_status(big, 40000), 414);
    memcpy(big, "GET / HTTP/1.1\r\nA: ", 19);
    assert_int_equal(head_status(big, 40000), 431);
    free(big);
}

static void test_chunks(void **state)
{
    static const struct { const char *text; int status; const char *body; } cases[] = {
        {"5\r\nhello\r\n0\r\n\r\n", 1, "hello"}, {"3\r\nhel\r\n2;x=\"y\"\r\nlo\r\n0\r\nT: v\r\n\r\n", 1, "hello"}, {"A\r\n0123456789\r\n0\r\n\r\n", 1,
            "0123456789"},
        {"5\r\nhel", 0, NULL}, {"5\nhello\r\n0\r\n\r\n", 400, NULL}, {"5\r\nhelloX\r\n", 400, NULL}, {"\r\n", 400, NULL}, {"-5\r\n", 400, NULL},
            {"5 \r\nhello", 400, NULL},
        {"0\r\n\n", 400, NULL}, {"ffffffffffffffff\r\n", 400, NULL}, {"fffffff\r\n", 413, NULL}, {"g\r\n", 400, NULL}, {"5\r\nhello\r\n0\r\nA\nB\r\n\r\n",
            400, NULL},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (size_t step = 1; step < 8; step += 3) {
            hd_http_head h = {.chunked = true, .length = -1};
            hd_http_body b;
            hd_str out;
            size_t used, n = strlen(cases[i].text);
            int rc = 0;
            hd_str_init(&out);
            hd_http_body_begin(&b, &h, 1000);
            for (size_t at = 0; at < n && !rc; at += step) rc = hd_http_body_feed(&b, cases[i].text + at, at + step < n ? step : n - at, &used, &out);
            if (rc != cases[i].status) fail_msg("chunks %zu, %zu at once: %d, not %d", i, step, rc, cases[i].status);
            if (rc == 1) assert_string_equal(out.data, cases[i].body);
            hd_str_free(&out);
        }
}

/* ---- a server with its engine ---- */

typedef struct world {
    hd_tokenizer *tokenizer;
    hd_chat_template *template;
    hd_vocabulary *vocabulary;
    fake_options fake;
    hd_runner *runner;
    hd_engine *engine;
    hd_server *server;
    hd_served served;
    pthread_t loop, engine_thread;
    int rc;
    int32_t eos[2];
    bool joined;
} world;

typedef struct setting { hd_server_options server; hd_engine_options engine; fake_options fake; bool not_served; } setting;

static setting usual(void)
{
    setting s = {.server = hd_server_options_default(), .engine = hd_engine_options_default(), .fake = fake_options_default()};
    s.server.port = 0;
    s.fake.max_context = 256, s.fake.block = 8, s.fake.blocks = 256, s.fake.max_tokens = 64, s.fake.max_parts = 16, s.fake.max_rows = 64;
    return s;
}

static hd_tokenizer *make_tokenizer(void)
{
    static const char *const specials[] = {"<eos>", "<|im_start|>", "<|im_end|>"};
    hd_bpe_spec spec = {.pretokenizer = HD_PRETOK_GPT2, .vocab_size = 300, .specials = specials, .special_count = 3, .quiet = true};
    hd_error err = {0};
    hd_bpe_trainer *b = hd_bpe_trainer_new(&spec, &err);
    assert_non_null(b);
    const char *text = "the quick brown fox jumps over the lazy dog and then the dog jumps over the fox that was there when the others went away";
    for (int i = 0; i < 4; i++) assert_int_equal(hd_bpe_trainer_feed(b, text, strlen(text), &err), 0);
    hd_tokenizer *t = hd_bpe_trainer_finish(b, &err);
    hd_bpe_trainer_free(b);
    assert_non_null(t);
    return t;
}

static void *run_loop(void *arg)
{
    world *w = arg;
    hd_error err = {0};
    w->rc = hd_server_run(w->server, &err);
    return NULL;
}

static void *run_engine(void *arg)
{
    hd_error err = {0};
    while (hd_engine_run(((world *)arg)->engine, &err)) err = (hd_error){0};
    return NULL;
}

static void begin(world *w, setting s)
{
    static const char template[] = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    hd_error err = {0};
    *w = (world){.tokenizer = make_tokenizer()};
    w->eos[0] = hd_tokenizer_id(w->tokenizer, "<eos>");
    w->template = hd_chat_template_parse(template, sizeof template - 1, "test", w->tokenizer, &err);
    if (!w->template) fail_msg("%s", err.message);
    w->vocabulary = hd_vocabulary_new(w->tokenizer, w->eos, 1, &err);
    s.fake.vocab = hd_tokenizer_vocab_size(w->tokenizer);
    w->fake = s.fake;
    w->runner = fake_runner_new(&s.fake);
    w->engine = hd_engine_new(w->runner, w->tokenizer, &s.engine, &err);
    if (!w->engine) fail_msg("%s", err.message);
    w->server = hd_server_new(&s.server, &err);
    if (!w->server) fail_msg("%s", err.message);
    hd_sampling sampling = hd_sampling_default();
    w->served = (hd_served){.name = "fake", .engine = w->engine, .tokenizer = w->tokenizer, .template = w->template, .vocabulary = w->vocabulary,
                            .eos = w->eos, .n_eos = 1,
                            .context = s.fake.max_context, .width = w->runner->width, .sampling = sampling};
    assert_int_equal(pthread_create(&w->engine_thread, NULL, run_engine, w), 0);
    if (!s.not_served) hd_server_serve(w->server, &w->served);
    assert_int_equal(pthread_create(&w->loop, NULL, run_loop, w), 0);
}

static int join(world *w)
{
    if (!w->joined) pthread_join(w->loop, NULL);
    w->joined = true;
    return w->rc;
}

static void end(world *w)
{
    if (!w->joined) hd_server_drain(w->server);
    join(w);
    hd_server_free(w->server);
    hd_engine_stop(w->engine);
    pthread_join(w->engine_thread, NULL);
    hd_engine_stats st;
    hd_engine_stats_read(w->engine, &st);
    assert_int_equal(st.running, 0);
    assert_int_equal(st.blocks_used, 0);
    hd_engine_free(w->engine);
    w->runner->close(w->runner);
    hd_vocabulary_free(w->vocabulary);
    hd_chat_template_free(w->template);
    hd_tokenizer_free(w->tokenizer);
}

/* ---- a client ---- */

static int dial_port(int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval limit = {10, 0};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (connect(fd, (struct sockaddr *)&a, sizeof a)) {
        close(fd);
        return -1;
    }
    return fd;
}

static int dial(world *w)
{
    int fd = dial_port(hd_server_port(w->server));
    assert_true(fd >= 0);
    return fd;
}

static void say(int fd, const char *p, size_t n)
{
    while (n) {
        ssize_t k = send(fd, p, n, MSG_NOSIGNAL);
        if (k <= 0) return;
        p += k;
        n -= (size_t)k;
    }
}

typedef struct reply { int status; hd_str head, body; bool whole; } reply;

static void free_reply(reply *r)
{
    hd_str_free(&r->head);
    hd_str_free(&r->body);
}

/* One byte: slow, but tests' answers are small. 0: the end. */
static int next_byte(int fd)
{
    unsigned char c;
    return recv(fd, &c, 1, 0) == 1 ? c : -1;
}

/* One answer, its framing undone. head_only: of HEAD. */
static reply listen_to(int fd, bool head_only)
{
    reply r = {0};
    hd_http_head h = {.length = 0};
    hd_http_body b;
    size_t used;
    int c;
    hd_str_init(&r.head);
    hd_str_init(&r.body);
    while (!strstr(r.head.data, "\r\n\r\n") && (c = next_byte(fd)) >= 0) hd_str_putc(&r.head, (char)c);
    if (sscanf(r.head.data, "HTTP/1.1 %d", &r.status) != 1) return r;
    if (r.status == 100) {
        free_reply(&r);
        return listen_to(fd, head_only);
    }
    const char *length = strstr(r.head.data, "Content-Length: ");
    h.chunked = strstr(r.head.data, "Transfer-Encoding: chunked") != NULL;
    if (length) h.length = atoll(length + 16);
    hd_http_body_begin(&b, &h, 1 << 30);
    int rc = head_only || (!h.chunked && !h.length);
    bool to_end = !h.chunked && !length && r.status != 204;
    while (!rc && (c = next_byte(fd)) >= 0) {
        char byte = (char)c;
        rc = hd_http_body_feed(&b, &byte, 1, &used, &r.body);
    }
    while (to_end && (c = next_byte(fd)) >= 0) hd_str_putc(&r.body, (char)c);
    r.whole = rc == 1 || to_end;
    return r;
}

static void send_request(int fd, const char *method, const char *path, const char *fields, const char *body)
{
    hd_str s;
    hd_str_init(&s);
    hd_str_printf(&s, "%s %s HTTP/1.1\r\nHost: x\r\n%s", method, path, fields);
    if (body) hd_str_printf(&s, "Content-Type: application/json\r\nContent-Length: %zu\r\n", strlen(body));
    hd_str_puts(&s, "\r\n");
    if (body) hd_str_puts(&s, body);
    say(fd, s.data, s.len);
    hd_str_free(&s);
}

static reply ask(world *w, const char *method, const char *path, const char *fields, const char *body)
{
    int fd = dial(w);
    send_request(fd, method, path, fields, body);
    reply r = listen_to(fd, !strcmp(method, "HEAD"));
    close(fd);
    return r;
}

static reply post(world *w, const char *path, const char *body) { return ask(w, "POST", path, "", body); }

static json_t *json_of(reply *r, int status)
{
    if (r->status != status) fail_msg("status %d, not %d: %s", r->status, status, r->body.data);
    hd_error err = {0};
    json_t *j = hd_json_parse(r->body.data, r->body.len, "answer", &err);
    if (!j) fail_msg("%s: %s", err.message, r->body.data);
    free_reply(r);
    return j;
}

static json_t *posted(world *w, const char *path, const char *body)
{
    reply r = post(w, path, body);
    return json_of(&r, 200);
}

static const json_t *at(const json_t *j, const char *path) /* "choices.0.text" */
{
    char part[64];
    while (j && *path) {
        size_t n = strcspn(path, ".");
        snprintf(part, sizeof part, "%.*s", (int)n, path);
        j = json_is_array(j) ? json_array_get(j, (size_t)atoi(part)) : json_object_get(j, part);
        path += n + (path[n] == '.');
    }
    return j;
}

static const char *text_at(const json_t *j, const char *path)
{
    const char *s = json_string_value(at(j, path));
    if (!s) fail_msg("no %s", path);
    return s;
}

/* The text of all events of choice `index`; what else there is, checked. */
static void join_events(const char *events, int index, hd_str *text, char *finish, json_t **usage)
{
    bool done = false;
    *usage = NULL;
    *finish = 0;
    for (const char *line = events; line && *line; line = strchr(line, '\n'), line = line ? line + 1 : NULL) {
        if (strncmp(line, "data: ", 6)) continue;
        assert_false(done);
        if (!strncmp(line, "data: [DONE]", 12)) {
            done = true;
            continue;
        }
        json_t *j = json_loads(line + 6, JSON_DISABLE_EOF_CHECK | JSON_ALLOW_NUL, NULL);
        assert_non_null(j);
        const json_t *choice = at(j, "choices.0"), *piece = at(choice, "text") ? at(choice, "text") : at(choice, "delta.content");
        if (json_is_object(at(j, "usage"))) *usage = json_incref((json_t *)(uintptr_t)at(j, "usage"));
        if (choice && json_integer_value(at(choice, "index")) == index) {
            if (piece) hd_str_add(text, json_string_value(piece), json_string_length(piece));
            if (json_is_string(at(choice, "finish_reason"))) snprintf(finish, 16, "%s", json_string_value(at(choice, "finish_reason")));
        }
        json_decref(j);
    }
    assert_true(done);
}

/* What greedy decoding gives, by the model alone. */
static void expect_text(world *w, const char *prompt, int n, hd_str *out)
{
    hd_ids ids = {0};
    float *logits = malloc(sizeof *logits * (size_t)w->fake.vocab);
    assert_int_equal(hd_tokenizer_encode(w->tokenizer, prompt, strlen(prompt), true, &ids, NULL), 0);
    size_t from = ids.len;
    for (int i = 0; i < n; i++) {
        fake_logits(&w->fake, ids.data, (int64_t)ids.len, logits);
        int32_t t = fake_likeliest(&w->fake, logits);
        if (t == w->eos[0]) break;
        hd_ids_append(&ids, t, NULL);
    }
    hd_tokenizer_decode(w->tokenizer, ids.data + from, ids.len - from, true, out, NULL);
    hd_ids_free(&ids);
    free(logits);
}

static void wait_idle(world *w)
{
    hd_engine_stats st = {.running = 1};
    for (int i = 0; i < 500 && (st.running || st.waiting || st.blocks_used); i++) {
        usleep(4000);
        hd_engine_stats_read(w->engine, &st);
    }
    assert_int_equal(st.running + st.waiting, 0);
    assert_int_equal(st.blocks_used, 0);
}

/* ---- tests ---- */

static void test_misc(void **state)
{
    (void)state;
    world w;
    begin(&w, usual());
    reply r = ask(&w, "GET", "/health", "", NULL);
    json_t *j = json_of(&r, 200);
    assert_string_equal(text_at(j, "status"), "ok");
    json_decref(j);
    r = ask(&w, "GET", "/v1/models", "", NULL);
    j = json_of(&r, 200);
    assert_string_equal(text_at(j, "data.0.id"), "fake");
    json_decref(j);
    static const struct { const char *method, *path; int status; const char *has; } cases[] = {
        {"GET", "/v1/models/fake", 200, "\"max_model_len\": 256"}, {"GET", "/v1/models/gone", 404, "model_not_found"}, {"GET", "/", 200, "<!doctype html>"},
            {"HEAD", "/", 200, ""},
        {"GET", "/nowhere", 404, "unknown_url"}, {"GET", "/v1/completions", 405, "takes POST"}, {"POST", "/health", 405, "takes GET"}, {"DELETE",
            "/v1/models", 405, "takes"},
        {"GET", "/health?x=1", 200, "ok"}, {"OPTIONS", "/v1/completions", 204, ""}, {"GET", "/metrics", 200, "heddle_requests_running 0"},
        {"GET", "/metrics", 200, "heddle_time_to_first_token_seconds_bucket{le=\"+Inf\"} 0"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        r = ask(&w, cases[i].method, cases[i].path, "", NULL);
        if (r.status != cases[i].status || !strstr(r.body.data, cases[i].has)) fail_msg("%s %s: %d %s", cases[i].method, cases[i].path, r.status, r.body.data);
        free_reply(&r);
    }
    end(&w);
}

static void test_completions(void **state)
{
    (void)state;
    world w;
    hd_str expected, text;
    char finish[16];
    json_t *usage;
    begin(&w, usual());
    hd_str_init(&expected);
    hd_str_init(&text);
    expect_text(&w, "the quick fox", 12, &expected);
    json_t *j = posted(&w, "/v1/completions", "{\"model\": \"fake\", \"prompt\": \"the quick fox\", \"max_tokens\": 12, \"temperature\": 0}");
    assert_string_equal(text_at(j, "choices.0.text"), expected.data);
    assert_string_equal(text_at(j, "object"), "text_completion");
    assert_true(json_integer_value(at(j, "usage.prompt_tokens")) > 0);
    assert_int_equal(json_integer_value(at(j, "usage.total_tokens")), json_integer_value(at(j, "usage.prompt_tokens")) + json_integer_value(at(j,
        "usage.completion_tokens")));
    json_decref(j);

    reply r = post(&w, "/v1/completions",
                   "{\"prompt\": \"the quick fox\", \"max_tokens\": 12, \"temperature\": 0, \"stream\": true, \"stream_options\": {\"include_usage\": true}}");
    assert_int_equal(r.status, 200);
    assert_true(r.whole);
    assert_non_null(strstr(r.head.data, "text/event-stream"));
    join_events(r.body.data, 0, &text, finish, &usage);
    assert_string_equal(text.data, expected.data);
    assert_true(!strcmp(finish, "length") || !strcmp(finish, "stop"));
    assert_true(json_integer_value(at(usage, "completion_tokens")) > 0);
    json_decref(usage);
    free_reply(&r);

    /* several prompts, several choices, echo, log-probabilities of both */
    j = posted(&w, "/v1/completions",
               "{\"prompt\": [\"the dog\", \"a fox\"], \"n\": 2, \"max_tokens\": 5, \"temperature\": 1, \"seed\": 7, \"echo\": true, \"logprobs\": 2, \"ignore_eos\": true}");
    assert_int_equal(json_array_size(at(j, "choices")), 4);
    for (size_t i = 0; i < 4; i++) {
        const json_t *c = json_array_get(at(j, "choices"), i), *tokens = at(c, "logprobs.tokens");
        assert_int_equal(json_integer_value(at(c, "index")), (int)i);
        assert_int_equal(strncmp(text_at(c, "text"), i < 2 ? "the dog" : "a fox", i < 2 ? 7 : 5), 0);
        size_t n = json_array_size(tokens);
        assert_true(n > 5);
        assert_int_equal(json_array_size(at(c, "logprobs.token_logprobs")), n);
        assert_int_equal(json_array_size(at(c, "logprobs.top_logprobs")), n);
        assert_int_equal(json_array_size(at(c, "logprobs.text_offset")), n);
        assert_true(json_is_null(at(c, "logprobs.token_logprobs.0")));
        assert_true(json_real_value(at(c, "logprobs.token_logprobs.1")) < 0);
        assert_true(json_object_size(at(c, "logprobs.top_logprobs.1")) >= 2);
        assert_string_equal(text_at(c, "finish_reason"), "length");
    }
    json_decref(j);

    /* token ids; best_of; beams; prompt log-probabilities alone; the same seed twice */
    hd_str long_text;
    hd_str_init(&long_text);
    hd_str_puts(&long_text, "{\"prompt\": \"");
    for (int i = 0; i < 40000; i++) hd_str_puts(&long_text, "aaaaaaaaaaaaaaaa");
    hd_str_puts(&long_text, "\"}");
    r = post(&w, "/v1/completions", long_text.data);
    assert_int_equal(r.status, 400);
    assert_non_null(strstr(r.body.data, "context_length_exceeded"));
    free_reply(&r);
    hd_str_free(&long_text);
    static const char *const fine[] = {
        "{\"prompt\": [5, 6, 7], \"max_tokens\": 3}", "{\"prompt\": [[5, 6], [7]], \"max_tokens\": 3}",
            "{\"prompt\": \"a\", \"n\": 2, \"best_of\": 4, \"max_tokens\": 3, \"temperature\": 1}",
        "{\"prompt\": \"a\", \"n\": 2, \"use_beam_search\": true, \"best_of\": 4, \"max_tokens\": 4}",
            "{\"prompt\": \"the dog\", \"max_tokens\": 0, \"echo\": true, \"logprobs\": 1}",
        "{\"prompt\": \"the dog\", \"max_tokens\": 2, \"prompt_logprobs\": 2}",
            "{\"prompt\": \"a\", \"stop\": [\"z\", \"qq\"], \"logit_bias\": {\"5\": -100}, \"user\": \"u\", \"suffix\": null}",
        "{\"prompt\": \"a\", \"max_tokens\": 3, \"response_format\": {\"type\": \"text\"}, \"cache_salt\": \"s\", \"priority\": -3, \"top_k\": -1, \"top_p\": 0}",
    };
    for (size_t i = 0; i < sizeof fine / sizeof fine[0]; i++) json_decref(posted(&w, "/v1/completions", fine[i]));
    j = posted(&w, "/v1/completions", fine[4]);
    assert_string_equal(text_at(j, "choices.0.text"), "the dog");
    json_decref(j);
    const char *seeded = "{\"prompt\": \"a\", \"max_tokens\": 9, \"temperature\": 1.5, \"seed\": 99}";
    json_t *a = posted(&w, "/v1/completions", seeded), *b = posted(&w, "/v1/completions", seeded);
    assert_string_equal(text_at(a, "choices.0.text"), text_at(b, "choices.0.text"));
    json_decref(a);
    json_decref(b);
    hd_str_free(&expected);
    hd_str_free(&text);
    end(&w);
}

static void test_chat(void **state)
{
    (void)state;
    world w;
    hd_str text;
    char finish[16];
    json_t *usage;
    begin(&w, usual());
    hd_str_init(&text);
    const char *plain = "{\"messages\": [{\"role\": \"developer\", \"content\": \"be kind\"}, {\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"hi\"}]}], "
                        "\"max_completion_tokens\": 8, \"temperature\": 0, \"logprobs\": true, \"top_logprobs\": 3, \"ignore_eos\": true}";
    json_t *j = posted(&w, "/v1/chat/completions", plain);
    assert_string_equal(text_at(j, "choices.0.message.role"), "assistant");
    assert_int_equal(json_array_size(at(j, "choices.0.logprobs.content")), 8);
    assert_int_equal(json_array_size(at(j, "choices.0.logprobs.content.0.top_logprobs")), 3);
    assert_string_equal(text_at(j, "choices.0.finish_reason"), "length");
    char *whole = strdup(text_at(j, "choices.0.message.content"));
    json_decref(j);
    const char *streamed = "{\"messages\": [{\"role\": \"system\", \"content\": \"be kind\"}, {\"role\": \"user\", \"content\": \"hi\"}], \"max_tokens\": 8, \"temperature\": 0, "
                           "\"stream\": true, \"ignore_eos\": true, \"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\": {}}}], \"tool_choice\": \"auto\"}";
    reply r = post(&w, "/v1/chat/completions", streamed);
    join_events(r.body.data, 0, &text, finish, &usage);
    assert_string_equal(text.data, whole);
    assert_string_equal(finish, "length");
    assert_non_null(strstr(r.body.data, "\"delta\": {\"role\": \"assistant\", "));
    assert_null(usage);
    free_reply(&r);
    free(whole);
    hd_str_free(&text);
    end(&w);
}

static void test_wrong_fields(void **state)
{
    (void)state;
    world w;
    begin(&w, usual());
    static const struct { const char *path, *body; int status; const char *has; } cases[] = {
        {"/v1/completions", "", 400, "not valid JSON"}, {"/v1/completions", "{", 400, "line 1"}, {"/v1/completions", "[]", 400, "JSON object"},
            {"/v1/completions", "{}", 400, "\"param\": \"prompt\""},
        {"/v1/completions", "{\"prompt\": \"a\", \"max_tokens\": \"5\"}", 400, "max_tokens"}, {"/v1/completions", "{\"prompt\": \"a\", \"max_tokens\": 0}",
            400, "at least 1"},
        {"/v1/completions", "{\"prompt\": \"a\", \"max_tokens\": -1}", 400, "max_tokens"}, {"/v1/completions", "{\"prompt\": \"a\", \"max_tokens\": 1.5}",
            400, "an integer"},
        {"/v1/completions", "{\"prompt\": \"a\", \"temperature\": 3}", 400, "temperature"}, {"/v1/completions", "{\"prompt\": \"a\", \"temperature\": \"x\"}",
            400, "a number"},
        {"/v1/completions", "{\"prompt\": \"a\", \"top_p\": 1.1}", 400, "top_p"}, {"/v1/completions", "{\"prompt\": \"a\", \"n\": 0}", 400, "'n'"},
            {"/v1/completions", "{\"prompt\": \"a\", \"n\": 1000000}", 400, "'n'"},
        {"/v1/completions", "{\"prompt\": \"a\", \"stream\": 1}", 400, "boolean"}, {"/v1/completions", "{\"prompt\": \"a\", \"stop\": 5}", 400, "stop"},
            {"/v1/completions", "{\"prompt\": \"a\", \"stop\": \"\"}", 400, "stop"},
        {"/v1/completions", "{\"prompt\": \"a\", \"stop\": [\"a\", 1]}", 400, "stop"}, {"/v1/completions", "{\"prompt\": \"a\", \"logit_bias\": {\"x\": 1}}",
            400, "logit_bias"},
        {"/v1/completions", "{\"prompt\": \"a\", \"logit_bias\": {\"100000\": 1}}", 400, "no token id"}, {"/v1/completions",
            "{\"prompt\": \"a\", \"logit_bias\": {\"1\": 101}}", 400, "-100 to 100"},
        {"/v1/completions", "{\"prompt\": \"a\", \"best_of\": 1, \"n\": 2}", 400, "best_of"}, {"/v1/completions",
            "{\"prompt\": \"a\", \"best_of\": 3, \"stream\": true}", 400, "best_of"},
        {"/v1/completions", "{\"prompt\": \"a\", \"suffix\": \"b\"}", 400, "suffix"}, {"/v1/completions", "{\"prompt\": \"a\", \"model\": \"gpt-9\"}", 404,
            "model_not_found"},
        {"/v1/completions", "{\"prompt\": \"a\", \"surprise\": 1}", 400, "Unrecognized request argument supplied: surprise"}, {"/v1/completions",
            "{\"prompt\": [1, 2, 100000]}", 400, "token ids"},
        {"/v1/completions", "{\"prompt\": [1, \"a\"]}", 400, "token ids"}, {"/v1/completions", "{\"prompt\": []}", 400, "prompt"}, {"/v1/completions",
            "{\"prompt\": [[]]}", 400, "no token"},
        {"/v1/completions", "{\"prompt\": {}}", 400, "prompt"}, {"/v1/completions", "{\"prompt\": \"a\", \"max_tokens\": 1000}", 400,
            "context_length_exceeded"},
        {"/v1/completions", "{\"prompt\": \"\xff\xfe\"}", 400, "not valid JSON"}, {"/v1/completions", "{\"prompt\": \"\\ud800\"}", 400, "not valid JSON"},
            {"/v1/completions", "{\"prompt\": \"a\", \"logprobs\": 50}", 400, "logprobs"},
        {"/v1/completions", "{\"prompt\": \"a\", \"min_tokens\": 5, \"max_tokens\": 2}", 400, "min_tokens"}, {"/v1/completions",
            "{\"prompt\": \"a\", \"stream_options\": {\"include_usage\": true}}", 400, "stream_options"},
        {"/v1/completions", "{\"prompt\": \"a\", \"response_format\": {\"type\": \"yaml\"}}", 400, "response_format"}, {"/v1/completions",
            "{\"prompt\": \"a\", \"guided_regex\": \"(\"}", 400, "guided_regex"},
        {"/v1/completions", "{\"prompt\": \"a\", \"regex\": \"a\", \"guided_regex\": \"a\"}", 400, "only one constraint"}, {"/v1/completions",
            "{\"prompt\": \"a\", \"guided_json\": 5}", 400, "guided_json"},
        {"/v1/completions", "{\"prompt\": \"a\", \"seed\": \"x\"}", 400, "seed"}, {"/v1/completions", "{\"prompt\": \"a\", \"seed\": 1e30}", 400, "seed"},
            {"/v1/completions", "{\"prompt\": \"a\", \"temperature\": NaN}", 400, "not valid JSON"},
        {"/v1/chat/completions", "{\"prompt\": \"a\"}", 400, "Unrecognized"}, {"/v1/chat/completions", "{}", 400, "messages"}, {"/v1/chat/completions",
            "{\"messages\": []}", 400, "messages"},
        {"/v1/chat/completions", "{\"messages\": [5]}", 400, "messages[0]"}, {"/v1/chat/completions",
            "{\"messages\": [{\"role\": \"king\", \"content\": \"a\"}]}", 400, "role"},
        {"/v1/chat/completions", "{\"messages\": [{\"role\": \"user\"}]}", 400, "content"}, {"/v1/chat/completions",
            "{\"messages\": [{\"role\": \"user\", \"content\": 5}]}", 400, "content"},
        {"/v1/chat/completions", "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image_url\", \"image_url\": {}}]}]}", 400, "text only"},
        {"/v1/chat/completions", "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}], \"tool_choice\": \"required\"}", 400, "tool_choice"},
        {"/v1/chat/completions", "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}], \"tools\": [{}]}", 400, "tools"}, {"/v1/chat/completions",
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}], \"functions\": []}", 400, "functions"},
        {"/v1/chat/completions", "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}], \"top_logprobs\": 2}", 400, "top_logprobs"},
            {"/v1/chat/completions", "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}], \"logprobs\": 2}", 400, "logprobs"},
        {"/v1/embeddings", "{\"input\": \"\"}", 400, "no token"}, {"/v1/embeddings", "{\"input\": \"a\", \"encoding_format\": \"hex\"}", 400,
            "encoding_format"}, {"/v1/embeddings", "{\"input\": \"a\", \"dimensions\": 1}", 400, "dimensions"},
        {"/v1/embeddings", "{\"input\": \"a\", \"temperature\": 1}", 400, "Unrecognized"}, {"/tokenize", "{\"prompt\": 5}", 400, "prompt"}, {"/tokenize",
            "{\"text\": \"a\"}", 400, "Unrecognized"}, {"/detokenize", "{\"tokens\": [-1]}", 400, "tokens"},
        {"/detokenize", "{\"tokens\": \"a\"}", 400, "tokens"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        reply r = post(&w, cases[i].path, cases[i].body);
        if (r.status != cases[i].status || !strstr(r.body.data, cases[i].has)) fail_msg("%s %s: %d %s", cases[i].path, cases[i].body, r.status, r.body.data);
        json_t *j = json_loads(r.body.data, 0, NULL);
        assert_true(json_is_string(at(j, "error.message")) && json_is_string(at(j, "error.type")) && at(j, "error.param") && at(j, "error.code"));
        json_decref(j);
        free_reply(&r);
    }
    end(&w);
}

static void test_embeddings(void **state)
{
    (void)state;
    world w;
    begin(&w, usual());
    json_t *j = posted(&w, "/v1/embeddings", "{\"input\": [\"the dog\", \"a fox\"]}");
    assert_int_equal(json_array_size(at(j, "data")), 2);
    assert_int_equal((int64_t)json_array_size(at(j, "data.1.embedding")), w.runner->width);
    double square = 0;
    for (int64_t i = 0; i < w.runner->width; i++) square += pow(json_number_value(json_array_get(at(j, "data.0.embedding"), (size_t)i)), 2);
    assert_true(fabs(square - 1) <= 1e-5);
    json_decref(j);
    j = posted(&w, "/v1/embeddings", "{\"input\": [1, 2, 3], \"encoding_format\": \"base64\"}");
    assert_int_equal((int64_t)strlen(text_at(j, "data.0.embedding")), (w.runner->width * 4 + 2) / 3 * 4);
    assert_int_equal(json_integer_value(at(j, "usage.prompt_tokens")), 3);
    json_decref(j);
    hd_str many;
    hd_str_init(&many);
    hd_str_puts(&many, "{\"input\": [");
    for (int i = 0; i < 100; i++) hd_str_printf(&many, "%s\"text %d\"", i ? ", " : "", i);
    hd_str_puts(&many, "]}");
    j = posted(&w, "/v1/embeddings", many.data);
    assert_int_equal(json_array_size(at(j, "data")), 100);
    json_decref(j);
    hd_str_free(&many);
    j = posted(&w, "/tokenize", "{\"prompt\": \"the quick fox\"}");
    char *body = json_dumps(at(j, "tokens"), JSON_COMPACT), *request = malloc(strlen(body) + 32);
    assert_int_equal(json_integer_value(at(j, "count")), (int64_t)json_array_size(at(j, "tokens")));
    sprintf(request, "{\"tokens\": %s}", body);
    json_decref(j);
    j = posted(&w, "/detokenize", request);
    assert_string_equal(text_at(j, "prompt"), "the quick fox");
    json_decref(j);
    free(body);
    free(request);
    j = posted(&w, "/tokenize", "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}");
    assert_true(json_integer_value(at(j, "count")) > 3);
    json_decref(j);
    end(&w);
}

/* Answers that must match an expression do; what can't be is refused. */
static void test_constrained(void **state)
{
    (void)state;
    world w;
    begin(&w, usual());
    json_t *j = posted(&w, "/v1/completions", "{\"prompt\": \"a\", \"max_tokens\": 40, \"guided_regex\": \"(yes|no) [0-9]{3}\", \"temperature\": 1}");
    const char *s = text_at(j, "choices.0.text");
    assert_true(strlen(s) > 5 && (!strncmp(s, "yes ", 4) || !strncmp(s, "no ", 3)));
    json_decref(j);
    j = posted(&w, "/v1/completions", "{\"prompt\": \"a\", \"max_tokens\": 40, \"guided_choice\": [\"red\", \"gr(een\"]}");
    assert_true(!strcmp(text_at(j, "choices.0.text"), "red") || !strcmp(text_at(j, "choices.0.text"), "gr(een"));
    json_decref(j);
    end(&w);
}

static void test_keys(void **state)
{
    (void)state;
    world w;
    setting s = usual();
    static const char *const keys[] = {"secret-one", "secret-two"};
    s.server.api_keys = keys, s.server.n_api_keys = 2;
    s.server.cors = "https://example.org";
    s.server.vllm_metrics = true;
    begin(&w, s);
    reply m = ask(&w, "GET", "/metrics", "Authorization: Bearer secret-two\r\n", NULL);
    assert_non_null(strstr(m.body.data, "vllm:num_requests_running{model_name=\"fake\"} 0"));
    assert_non_null(strstr(m.body.data, "vllm:request_success_total{model_name=\"fake\",finished_reason=\"stop\"} 0"));
    assert_non_null(strstr(m.body.data, "vllm:time_to_first_token_seconds_bucket{model_name=\"fake\",le=\"+Inf\"} 0"));
    free_reply(&m);
    static const struct { const char *method, *path, *fields; int status; } cases[] = {
        {"GET", "/health", "", 200}, {"GET", "/", "", 200}, {"GET", "/v1/models", "", 401}, {"GET", "/metrics", "", 401}, {"GET", "/nowhere", "", 401},
        {"GET", "/v1/models", "Authorization: Bearer secret-one\r\n", 200}, {"GET", "/v1/models", "Authorization: bearer secret-two\r\n", 200},
        {"GET", "/v1/models", "Authorization: Bearer secret-on\r\n", 401}, {"GET", "/v1/models", "Authorization: Bearer secret-onee\r\n", 401}, {"GET",
            "/v1/models", "Authorization: Bearer\r\n", 401},
        {"GET", "/v1/models", "Authorization: Basic secret-one\r\n", 401}, {"GET", "/nowhere", "Authorization: Bearer secret-one\r\n", 404},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        reply r = ask(&w, cases[i].method, cases[i].path, cases[i].fields, NULL);
        if (r.status != cases[i].status) fail_msg("%zu: %s %s %s: %d", i, cases[i].method, cases[i].path, cases[i].fields, r.status);
        free_reply(&r);
    }
    reply r = post(&w, "/v1/completions", "{\"prompt\": \"a\"}");
    assert_int_equal(r.status, 401);
    assert_non_null(strstr(r.head.data, "WWW-Authenticate: Bearer"));
    free_reply(&r);
    r = ask(&w, "OPTIONS", "/v1/completions", "Origin: https://example.org\r\n", NULL);
    assert_int_equal(r.status, 204);
    assert_non_null(strstr(r.head.data, "Access-Control-Allow-Origin: https://example.org\r\n"));
    assert_non_null(strstr(r.head.data, "Access-Control-Allow-Headers: authorization"));
    free_reply(&r);
    r = ask(&w, "GET", "/health", "Origin: https://evil.example\r\n", NULL);
    assert_null(strstr(r.head.data, "Access-Control"));
    free_reply(&r);
    end(&w);
}

/* What is refused before a body is read. */
static void test_framing(void **state)
{
    (void)state;
    world w;
    setting s = usual();
    s.server.max_body = 1000;
    begin(&w, s);
    int fd = dial(&w);
    send_request(fd, "POST", "/v1/completions", "", "{\"prompt\": \"a\", \"max_tokens\": 3, \"stream\": true}"); /* a connection goes on after a stream */
    for (int i = 0; i < 3; i++) send_request(fd, "GET", "/health", "", NULL); /* pipelined */
    send_request(fd, "POST", "/v1/completions", "", "{\"prompt\": \"a\", \"max_tokens\": 3}");
    send_request(fd, "GET", "/v1/models", "Connection: close\r\n", NULL);
    for (int i = -1; i < 5; i++) {
        reply r = listen_to(fd, false);
        assert_int_equal(r.status, 200);
        assert_non_null(strstr(r.body.data, i < 0 ? "[DONE]" : i < 3 ? "\"ok\"" : i == 3 ? "text_completion" : "\"list\""));
        assert_non_null(strstr(r.head.data, "X-Request-Id: "));
        free_reply(&r);
    }
    assert_int_equal(next_byte(fd), -1);
    close(fd);
    static const struct { const char *text; int status; } cases[] = {
        {"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2000\r\n\r\n", 413},
            {"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3ff\r\n", 413},
        {"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}", 415},
            {"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400},
        {"GET / HTTP/1.1\r\n\r\n", 400}, {"GET / HTTP/3.0\r\nHost: x\r\n\r\n", 505}, {"\x16\x03\x01\x02\x00\x01", 400},
        {"POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}", 400},
        {"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", 400},
        {"POST /v1/completions HTTP/1.0\r\nContent-Length: 32\r\n\r\n{\"prompt\": \"a\", \"max_tokens\": 3}", 200}, {"GET /health HTTP/1.0\r\n\r\n", 200},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        fd = dial(&w);
        say(fd, cases[i].text, i == 6 ? 6 : strlen(cases[i].text));
        reply r = listen_to(fd, false);
        if (r.status != cases[i].status) fail_msg("case %zu: %d, not %d: %s", i, r.status, cases[i].status, r.body.data);
        free_reply(&r);
        close(fd);
    }
    end(&w);
}

/* A stream goes on undisturbed while others do what they shouldn't. */
static void test_abuse_beside_stream(void **state)
{
    (void)state;
    world w;
    setting s = usual();
    s.fake.slow_us = 2000;
    begin(&w, s);
    hd_str expected, text;
    char finish[16];
    json_t *usage;
    hd_str_init(&expected);
    hd_str_init(&text);
    const char *body = "{\"prompt\": \"the dog\", \"max_tokens\": 120, \"temperature\": 0, \"ignore_eos\": true, \"stream\": true}";
    reply r = post(&w, "/v1/completions", body);
    join_events(r.body.data, 0, &expected, finish, &usage);
    free_reply(&r);
    int stream = dial(&w);
    send_request(stream, "POST", "/v1/completions", "", body);
    static const char *const bad[] = {
        "GARBAGE\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n", "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"half",
            "GET", "",
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 44\r\n\r\n{\"prompt\": \"a\", \"max_tokens\": 99, \"n\": 4     }",
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffff\r\n",
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 52\r\n\r\n{\"prompt\": \"a\", \"stream\": true, \"max_tokens\": 99    }",
    };
    for (int round = 0; round < 6; round++)
        for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
            int fd = dial(&w);
            say(fd, bad[i], strlen(bad[i]));
            if (round % 3 == 1) usleep(2000);
            if (round % 3 == 2) {
                struct linger hard = {1, 0};
                setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
            }
            close(fd);
        }
    r = listen_to(stream, false);
    close(stream);
    assert_true(r.whole);
    join_events(r.body.data, 0, &text, finish, &usage);
    assert_string_equal(text.data, expected.data);
    free_reply(&r);
    wait_idle(&w);
    hd_str_free(&expected);
    hd_str_free(&text);
    end(&w);
}

/* Hang-ups while queued, in a prompt, while decoding; streamed and not. */
static void test_hang_up(void **state)
{
    (void)state;
    world w;
    setting s = usual();
    s.fake.slow_us = 5000;
    s.engine.max_sequences = 2;
    begin(&w, s);
    for (int stream = 0; stream < 2; stream++)
        for (int wait = 0; wait < 3; wait++) {
            int fd[6];
            char body[128];
            snprintf(body, sizeof body, "{\"prompt\": \"the dog\", \"max_tokens\": 200, \"ignore_eos\": true, \"stream\": %s}", stream ? "true" : "false");
            for (int i = 0; i < 6; i++) send_request(fd[i] = dial(&w), "POST", "/v1/completions", "", body);
            usleep((useconds_t)wait * 20000);
            for (int i = 0; i < 6; i++) close(fd[i]);
            double start = hd_time();
            wait_idle(&w);
            assert_true(hd_time() - start < 1); /* 200 tokens take longer */
        }
    end(&w);
}

static void test_limits(void **state)
{
    (void)state;
    world w;
    setting s = usual();
    s.fake.slow_us = 5000;
    s.engine.max_sequences = 1;
    s.server.max_queued = s.engine.max_queued = 2;
    s.server.max_connections = 8;
    begin(&w, s);
    const char *body = "{\"prompt\": \"the dog\", \"max_tokens\": 100, \"ignore_eos\": true, \"stream\": true}";
    int fd[8], busy = 0;
    for (int i = 0; i < 5; i++) {
        fd[i] = dial(&w);
        send_request(fd[i], "POST", "/v1/completions", "", body);
        usleep(30000);
    }
    for (int i = 3; i < 5; i++) { /* one runs, two wait */
        reply r = listen_to(fd[i], false);
        busy += r.status == 429 && strstr(r.head.data, "Retry-After: ");
        free_reply(&r);
    }
    assert_int_equal(busy, 2);
    for (int i = 5; i < 8; i++) fd[i] = dial(&w);
    usleep(20000);
    int extra = dial(&w), more = dial(&w), third = dial(&w);
    reply r = listen_to(third, false);
    assert_int_equal(r.status, 503);
    free_reply(&r);
    close(extra), close(more), close(third);
    for (int i = 0; i < 8; i++) close(fd[i]);
    wait_idle(&w);
    end(&w);

    s = usual();
    s.fake.slow_us = 5000;
    s.server.per_key = 1;
    begin(&w, s);
    fd[0] = dial(&w);
    send_request(fd[0], "POST", "/v1/completions", "", body);
    usleep(50000);
    r = post(&w, "/v1/completions", body);
    assert_int_equal(r.status, 429);
    free_reply(&r);
    close(fd[0]);
    wait_idle(&w);
    json_decref(posted(&w, "/v1/completions", "{\"prompt\": \"a\", \"max_tokens\": 2}"));
    end(&w);
}

static void test_deadlines(void **state)
{
    (void)state;
    world w;
    setting s = usual();
    s.server.header_seconds = 0.2;
    s.server.ping_seconds = 0.05;
    begin(&w, s);
    static const char *const slow[] = {"GET / HT", "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"};
    for (size_t i = 0; i < 2; i++) {
        int fd = dial(&w);
        double start = hd_time();
        say(fd, slow[i], strlen(slow[i]));
        for (int k = 0; k < 5; k++) {
            usleep(20000);
            say(fd, " ", 1); /* a drip doesn't put it off */
        }
        reply r = listen_to(fd, false);
        assert_int_equal(r.status, 408);
        assert_true(hd_time() - start < 1.5);
        free_reply(&r);
        close(fd);
    }
    int fd = dial(&w); /* nothing at all: closed without a word */
    assert_int_equal(next_byte(fd), -1);
    close(fd);
    end(&w);

    s = usual();
    s.fake.slow_us = 20000;
    s.server.request_seconds = 0.3;
    s.server.ping_seconds = 0.02;
    begin(&w, s);
    reply r = post(&w, "/v1/completions", "{\"prompt\": \"a\", \"max_tokens\": 200, \"ignore_eos\": true, \"stream\": true, \"n\": 2, \"best_of\": 2}");
    assert_true(r.whole);
    assert_non_null(strstr(r.body.data, "[DONE]"));
    free_reply(&r);
    r = post(&w, "/v1/completions", "{\"prompt\": \"a\", \"max_tokens\": 200, \"ignore_eos\": true, \"n\": 1, \"best_of\": 3, \"temperature\": 1}");
    assert_true(r.status == 200 || r.status == 504);
    free_reply(&r);
    end(&w);
}

static void test_drain(void **state)
{
    (void)state;
    world w;
    setting s = usual();
    s.fake.slow_us = 3000;
    hd_str text;
    char finish[16];
    json_t *usage;
    hd_str_init(&text);
    begin(&w, s);
    int stream = dial(&w), idle = dial(&w), port = hd_server_port(w.server);
    send_request(stream, "POST", "/v1/completions", "", "{\"prompt\": \"the dog\", \"max_tokens\": 100, \"ignore_eos\": true, \"stream\": true}");
    usleep(60000);
    hd_server_drain(w.server);
    assert_int_equal(next_byte(idle), -1);
    assert_int_equal(dial_port(port), -1);
    reply r = listen_to(stream, false);
    assert_true(r.whole);
    join_events(r.body.data, 0, &text, finish, &usage);
    assert_string_equal(finish, "length");
    free_reply(&r);
    assert_int_equal(join(&w), 0);
    close(stream), close(idle);
    end(&w);

    begin(&w, s); /* the second call cuts off */
    stream = dial(&w);
    send_request(stream, "POST", "/v1/completions", "", "{\"prompt\": \"the dog\", \"max_tokens\": 200, \"ignore_eos\": true, \"stream\": true}");
    usleep(60000);
    hd_server_drain(w.server);
    hd_server_drain(w.server);
    assert_int_equal(join(&w), HD_EINTR);
    r = listen_to(stream, false);
    assert_false(r.whole);
    free_reply(&r);
    close(stream);
    end(&w);
    hd_str_free(&text);
}

static void test_loading(void **state)
{
    (void)state;
    world w;
    setting s = usual();
    s.not_served = true;
    begin(&w, s);
    reply r = ask(&w, "GET", "/health", "", NULL);
    assert_int_equal(r.status, 503);
    assert_non_null(strstr(r.body.data, "loading"));
    free_reply(&r);
    r = post(&w, "/v1/completions", "{\"prompt\": \"a\"}");
    assert_int_equal(r.status, 503);
    assert_non_null(strstr(r.head.data, "Retry-After"));
    free_reply(&r);
    hd_server_serve(w.server, &w.served);
    for (int i = 0; i < 100; i++) {
        r = ask(&w, "GET", "/health", "", NULL);
        int status = r.status;
        free_reply(&r);
        if (status == 200) break;
        usleep(2000);
    }
    json_decref(posted(&w, "/v1/completions", "{\"prompt\": \"a\", \"max_tokens\": 2}"));
    hd_server_fail(w.server, "the disk is on fire");
    assert_int_equal(join(&w), HD_EIO);
    end(&w);
    hd_error err = {0};
    hd_server_options o = hd_server_options_default();
    o.host = "no.such.host.invalid";
    assert_null(hd_server_new(&o, &err));
    o.host = NULL, o.port = 0, o.tls_cert = "/nowhere.pem", o.tls_key = "/nowhere.pem", err = (hd_error){0};
    assert_null(hd_server_new(&o, &err));
    assert_non_null(strstr(err.message, "nowhere.pem"));
}

static void test_model_failure(void **state)
{
    (void)state;
    world w;
    setting s = usual();
    s.fake.fail_at = 3;
    begin(&w, s);
    reply r = post(&w, "/v1/completions", "{\"prompt\": \"the dog\", \"max_tokens\": 20, \"ignore_eos\": true}");
    assert_int_equal(r.status, 500);
    free_reply(&r);
    json_decref(posted(&w, "/v1/completions", "{\"prompt\": \"the dog\", \"max_tokens\": 20, \"ignore_eos\": true}"));
    end(&w);
}

/* ---- TLS ---- */

static void write_pem(char *cert_path, char *key_path)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *x = X509_new();
    X509_set_version(x, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(x), 1);
    X509_gmtime_adj(X509_getm_notBefore(x), -60);
    X509_gmtime_adj(X509_getm_notAfter(x), 3600);
    X509_set_pubkey(x, key);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(x), "CN", MBSTRING_ASC, (const unsigned char *)"localhost", -1, -1, 0);
    X509_set_issuer_name(x, X509_get_subject_name(x));
    assert_true(X509_sign(x, key, EVP_sha256()) > 0);
    FILE *f = fdopen(mkstemp(cert_path), "w");
    PEM_write_X509(f, x);
    fclose(f);
    f = fdopen(mkstemp(key_path), "w");
    PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL);
    fclose(f);
    X509_free(x);
    EVP_PKEY_free(key);
}

static void test_tls_and_load(void **state)
{
    (void)state;
    world w;
    setting s = usual();
    char cert[] = "/tmp/heddle-cert-XXXXXX", key[] = "/tmp/heddle-key-XXXXXX", url[64];
    write_pem(cert, key);
    for (int tls = 0; tls < 2; tls++) {
        s.server.tls_cert = tls ? cert : NULL, s.server.tls_key = tls ? key : NULL;
        begin(&w, s);
        if (tls) { /* no TLS: refused, nothing breaks */
            int fd = dial(&w);
            send_request(fd, "GET", "/health", "", NULL);
            reply r = listen_to(fd, false);
            assert_int_equal(r.status, 0);
            free_reply(&r);
            close(fd);
        }
        snprintf(url, sizeof url, "%s://127.0.0.1:%d", tls ? "https" : "http", hd_server_port(w.server));
        hd_load_options o = hd_load_options_default();
        hd_load_result r;
        hd_error err = {0};
        o.url = url, o.insecure = true, o.requests = 12, o.concurrency = tls ? 4 : 0, o.rate = 200, o.cv = 2;
        o.input = (hd_load_lengths){10, 0.5, 40}, o.output = (hd_load_lengths){6, 0.5, 20}, o.common = 4;
        o.slo_first = 5, o.slo_inter = 1;
        if (hd_load_run(&o, &r, &err)) fail_msg("%s", err.message);
        if (r.failed) fail_msg("%s", r.why);
        assert_int_equal(r.done, 12);
        assert_true(r.output_tokens >= 12 && r.input_tokens > 60);
        assert_true(r.first.p50 > 0 && r.first.p99 >= r.first.p50 && r.attained == 1);
        end(&w);
    }
    unlink(cert);
    unlink(key);
}

static void test_load_shapes(void **state)
{
    (void)state;
    hd_load_lengths l = {161, 1.0, 1024};
    hd_rng g = hd_rng_new(5);
    double mu = hd_load_mu(&l), sum = 0, gaps = 0, squares = 0;
    for (int i = 0; i < 20000; i++) sum += (double)hd_load_length(&l, mu, &g);
    assert_true(fabs(sum / 20000 - 161) <= 8);
    for (int i = 0; i < 20000; i++) {
        double x = hd_load_gap(&g, 4, 2);
        gaps += x;
        squares += x * x;
    }
    double mean = gaps / 20000, cv = sqrt(squares / 20000 - mean * mean) / mean;
    assert_true(fabs(mean - 0.25) <= 0.02 && fabs(cv - 2) <= 0.15);
    hd_load_options o = hd_load_options_default();
    hd_load_result r;
    hd_error err = {0};
    o.url = "ftp://x";
    assert_int_equal(hd_load_run(&o, &r, &err), HD_EINVAL);
    err = (hd_error){0}, o.url = "http://127.0.0.1:1";
    assert_int_not_equal(hd_load_run(&o, &r, &err), 0);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_heads), cmocka_unit_test(test_chunks), cmocka_unit_test(test_load_shapes), cmocka_unit_test(test_misc),
            cmocka_unit_test(test_completions),
        cmocka_unit_test(test_chat), cmocka_unit_test(test_wrong_fields), cmocka_unit_test(test_embeddings), cmocka_unit_test(test_constrained),
            cmocka_unit_test(test_keys),
        cmocka_unit_test(test_framing), cmocka_unit_test(test_abuse_beside_stream), cmocka_unit_test(test_hang_up), cmocka_unit_test(test_limits),
            cmocka_unit_test(test_deadlines),
        cmocka_unit_test(test_drain), cmocka_unit_test(test_loading), cmocka_unit_test(test_model_failure), cmocka_unit_test(test_tls_and_load),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
