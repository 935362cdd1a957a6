/* latency.c: how soon a server answers, and how soon it lets go: start, prefix cache, long prompts beside streams, hang-ups, SIGTERM, n-gram speculation.
 *
 *   check_latency HEDDLE MODEL FOLDER JUDGED [SHORT]    SHORT: prompts a tenth as long */
#include <math.h>
#include "wire.h"

typedef struct job {
    const char *heddle, *model;
    char log[300];
    bool judged;
    int64_t prefix, prompt;  /* tokens */
    wire_tally tally;
} job;

/* ---- requests ---- */

/* A streamed completion of n words, of `most` tokens. */
static void make_body(hd_str *o, int64_t n, unsigned seed, int64_t most, const char *more)
{
    hd_str_clear(o);
    hd_str_printf(o, "{\"stream\": true, \"temperature\": 0, \"ignore_eos\": true, \"max_tokens\": %lld, %s", (long long)most, more);
    wire_ascii_bias(o);
    hd_str_puts(o, ", \"prompt\": \"");
    wire_words(o, n, seed);
    hd_str_puts(o, "\"}");
}

static wire_stream stream_of(const wire_server *s, const char *body)
{
    return (wire_stream){.port = s->port, .path = "/v1/completions", .body = body, .seconds = 300, .cut_after = -1};
}

/* Seconds to the first token; negative: it failed. */
static double first_token(const wire_server *s, const char *body)
{
    wire_stream w = stream_of(s, body);
    wire_stream_run(&w);
    double seconds = w.failed || !w.n ? -1 : w.first - w.asked;
    wire_stream_free(&w);
    return seconds;
}

/* ---- the start ---- */

static void check_start(job *j)
{
    static const char *const flags[] = {"--no-log", NULL};
    hd_str body;
    wire_server s;
    hd_str_init(&body);
    make_body(&body, 4, 1, 1, "");
    double best = 1e9;
    for (int i = 0; i < 3; i++) {
        double start = hd_time();
        if (!wire_serve(&s, j->heddle, j->model, flags, j->log, 120)) break;
        double answer = first_token(&s, body.data), seconds = hd_time() - start;
        if (answer >= 0 && seconds < best) best = seconds;
        wire_end(&s, SIGTERM, 30);
    }
    wire_report(&j->tally, "seconds from the start to the first answer, file cached (best of 3)", best, "<=", 2, j->judged);
    hd_str_free(&body);
}

/* ---- prefix cache ---- */

static void check_prefix(job *j, const wire_server *s)
{
    double ratios[5], first = 0, second = 0;
    hd_str body;
    hd_str_init(&body);
    for (unsigned i = 0; i < 5; i++) {
        make_body(&body, j->prefix, 1000 + i, 1, "");
        double a = first_token(s, body.data), b = first_token(s, body.data);
        ratios[i] = a > 0 && b >= 0 ? b / a : NAN;
        if (isnan(ratios[i])) ratios[i] = 1e9;
        first += a / 5, second += b / 5;
    }
    printf("  time to the first token of %lld tokens: %.0f ms, again %.0f ms\n", (long long)j->prefix, first * 1e3, second * 1e3);
    wire_report(&j->tally, "a repeated prefix: time to the first token over the first time's (median)", wire_percentile(ratios, 5, 0.5), "<=", 0.2, j->judged);
    hd_str_free(&body);
}

/* ---- a long prompt beside streams ---- */

enum { BESIDE = 4 };

/* p99 of the gaps of `w` between two times, and their median. */
static double p99_of(const wire_stream *w, int n, double from, double to, double *median)
{
    int64_t total = 0, k = 0;
    for (int i = 0; i < n; i++) total += w[i].n;
    double *x = malloc(sizeof(double) * (size_t)(total + 1));
    if (!x) abort();
    for (int i = 0; i < n; i++)
        for (int64_t e = 1; e < w[i].n; e++)
            if (w[i].times[e] >= from && w[i].times[e] < to) x[k++] = w[i].times[e] - w[i].times[e - 1];
    double p = wire_percentile(x, k, 0.99);
    *median = wire_percentile(x, k, 0.5);
    free(x);
    return k ? p : NAN;
}

static void check_long_prompt(job *j, const wire_server *s)
{
    wire_stream w[BESIDE];
    atomic_bool stop = false;
    hd_str body[BESIDE], prompt;
    hd_str_init(&prompt);
    for (int i = 0; i < BESIDE; i++) {
        hd_str_init(&body[i]);
        make_body(&body[i], 16, 50 + (unsigned)i, 3900, "");
        w[i] = stream_of(s, body[i].data);
        w[i].stop = &stop;
        wire_stream_start(&w[i]);
    }
    double quiet = j->judged ? 6 : 2, begin = hd_time() + 1, arrival = begin + quiet;
    while (hd_time() < arrival) usleep(10000);
    make_body(&prompt, j->prompt, 99, 1, "");
    arrival = hd_time();
    double answered = first_token(s, prompt.data), median_before, median_during;
    double end = hd_time();
    usleep(300000);
    atomic_store(&stop, true);
    for (int i = 0; i < BESIDE; i++) wire_stream_join(&w[i]);
    double before = p99_of(w, BESIDE, begin, arrival, &median_before), during = p99_of(w, BESIDE, arrival, end, &median_during);
    double last = 0;
    int64_t streamed = 0;
    for (int i = 0; i < BESIDE; i++) {
        last = w[i].last > last ? w[i].last : last;
        streamed += w[i].failed ? 0 : 1;
    }
    printf("  %d streams, p99 (median) between tokens: %.1f (%.1f) ms, while a prompt of %lld tokens is computed "
           "%.1f (%.1f) ms; its first token after %.2f s\n", BESIDE, before * 1e3,
           median_before * 1e3, (long long)j->prompt, during * 1e3, median_during * 1e3, answered);
    wire_report(&j->tally, "streams that ran on past the prompt", (double)streamed * (last > end && answered > 0), "==", BESIDE, true);
    wire_report(&j->tally, "p99 inter-token latency with the prompt / without", during / before, "<=", 2, j->judged);
    for (int i = 0; i < BESIDE; i++) {
        wire_stream_free(&w[i]);
        hd_str_free(&body[i]);
    }
    hd_str_free(&prompt);
}

/* ---- hang-ups ---- */

typedef struct look { double steps, running, waiting, used, hang_ups; } look;

static look look_at(const wire_server *s)
{
    wire_answer a;
    look l = {-1, -1, -1, -1, -1};
    if (wire_ask(s->port, "/metrics", NULL, 60, &a) == 200)
        l = (look){wire_metric_of(a.body.data, "heddle_steps_total"), wire_metric_of(a.body.data, "heddle_requests_running"),
            wire_metric_of(a.body.data, "heddle_requests_waiting"),
                   wire_metric_of(a.body.data, "heddle_kv_blocks_used"), wire_metric_of(a.body.data, "heddle_http_hang_ups_total")};
    hd_str_free(&a.body);
    return l;
}

static int ask_open(const wire_server *s, const char *body)
{
    hd_str o;
    hd_str_init(&o);
    wire_request(&o, "/v1/completions", body, strlen(body));
    int fd = wire_connect(s->port);
    if (fd >= 0 && !wire_send(fd, o.data, o.len)) close(fd), fd = -1;
    hd_str_free(&o);
    return fd;
}

/* Waits until /metrics shows what `there` asks for. */
static bool wait_for(const wire_server *s, bool (*there)(const look *now, const look *before), const look *before, look *now)
{
    for (double end = hd_time() + 60; hd_time() < end; usleep(500)) {
        *now = look_at(s);
        if (there(now, before)) return true;
    }
    return false;
}

static bool one_waits(const look *now, const look *before) { return now->waiting > before->waiting; }
static bool has_begun(const look *now, const look *before) { return now->used >= before->used + 2; }
static bool has_decoded(const look *now, const look *before) { return now->steps >= before->steps + 6 && now->used > before->used; }
static bool is_seen(const look *now, const look *before) { return now->hang_ups > before->hang_ups; }
static bool is_gone(const look *now, const look *before) { return now->running + now->waiting <= before->running + before->waiting &&
    now->used <= before->used; }

/* Steps between the server's noticing of a hang-up and the blocks' being free. The step that runs at that moment counts too: one is the least there can be. */
static void check_hang_up(job *j, const wire_server *s, const char *phase, const char *body, bool (*there)(const look *now, const look *before))
{
    char what[120];
    look before = look_at(s), now, seen;
    double steps = 1e9;
    int fd = ask_open(s, body);
    bool fine = fd >= 0 && wait_for(s, there, &before, &now);
    if (fd >= 0) close(fd);
    if (fine && wait_for(s, is_seen, &now, &seen) && wait_for(s, is_gone, &before, &now)) steps = now.steps - seen.steps;
    snprintf(what, sizeof what, "hang-up while %s: steps until it holds nothing", phase);
    wire_report(&j->tally, what, steps, "<=", 1, true);
}

static void check_hang_ups(job *j)
{
    static const char *const flags[] = {"--no-log", "--max-sequences", "1", "--no-prefix-cache", NULL};
    static const char *const seats[] = {"--no-log", "--no-prefix-cache", "--token-budget", "64", NULL};
    hd_str body;
    wire_server s;
    hd_str_init(&body);
    if (!wire_serve(&s, j->heddle, j->model, seats, j->log, 120)) abort();
    make_body(&body, j->prompt, 7, 4, "");
    check_hang_up(j, &s, "its prompt is computed", body.data, has_begun);
    make_body(&body, 8, 7, 1000, "");
    check_hang_up(j, &s, "generating", body.data, has_decoded);
    make_body(&body, 8, 7, 1000, "\"n\": 4, ");
    check_hang_up(j, &s, "generating four", body.data, has_decoded);
    wire_end(&s, SIGTERM, 60);

    if (!wire_serve(&s, j->heddle, j->model, flags, j->log, 120)) abort();
    make_body(&body, 8, 7, 1000, "");
    look none = look_at(&s), now;
    int fd = ask_open(&s, body.data); /* has the only seat; a fixed number of blocks would be held were it not decoding: `used` of the other is 0 anyway */
    if (fd < 0 || !wait_for(&s, has_decoded, &none, &now)) fprintf(stderr, "no stream has begun\n");
    look before = look_at(&s), seen;
    int waiting = ask_open(&s, body.data);
    double steps = 1e9;
    bool fine = waiting >= 0 && wait_for(&s, one_waits, &before, &now);
    if (waiting >= 0) close(waiting);
    if (fine && wait_for(&s, is_seen, &now, &seen)) {
        while (look_at(&s).waiting > before.waiting && hd_time() < seen.steps + 1e9) continue;
        steps = look_at(&s).steps - seen.steps;
    }
    wire_report(&j->tally, "hang-up while it waits: steps until it is gone", steps, "<=", 2, true); /* the one that is asked in has come on meanwhile */
    close(fd);
    wire_report(&j->tally, "requests and blocks left", wire_left(s.port, 20), "==", 0, true);
    wire_end(&s, SIGTERM, 60);
    hd_str_free(&body);
}

/* ---- SIGTERM ---- */

static void check_drain(job *j)
{
    static const char *const flags[] = {"--no-log", NULL};
    wire_stream w[BESIDE];
    hd_str body[BESIDE];
    wire_server s;
    if (!wire_serve(&s, j->heddle, j->model, flags, j->log, 120)) abort();
    for (int i = 0; i < BESIDE; i++) {
        hd_str_init(&body[i]);
        make_body(&body[i], 16, (unsigned)i, 40, "");
        w[i] = stream_of(&s, body[i].data);
        wire_stream_start(&w[i]);
    }
    look none = {0}, now;
    wait_for(&s, has_decoded, &none, &now);
    int idle = wire_connect(s.port), status = wire_end(&s, SIGTERM, 120);
    int64_t whole = 0;
    for (int i = 0; i < BESIDE; i++) {
        wire_stream_join(&w[i]);
        whole += w[i].done && !w[i].failed && w[i].n >= 38; /* pieces: a token or two may add no text by itself */
        wire_stream_free(&w[i]);
        hd_str_free(&body[i]);
    }
    if (idle >= 0) close(idle);
    wire_report(&j->tally, "SIGTERM: streams that came to their end", (double)whole, "==", BESIDE, true);
    wire_report(&j->tally, "SIGTERM: exit status", status, "==", 0, true);
}

/* ---- n-gram speculation ---- */

/* Tokens/s of an answer that repeats itself: greedy answers of random weights soon run in a circle, and logit_bias keeps them to a few tokens. */
static double repeat_speed(const job *j, const char *how, hd_str *text, double *share)
{
    const char *flags[] = {"--no-log", "--speculate", how, NULL};
    wire_server s;
    hd_str body;
    hd_str_init(&body);
    *share = 0;
    if (!wire_serve(&s, j->heddle, j->model, flags, j->log, 120)) return -1;
    hd_str_puts(&body, "{\"stream\": true, \"temperature\": 0, \"ignore_eos\": true, \"max_tokens\": 160, \"prompt\": \"");
    for (int i = 0; i < 24; i++) hd_str_puts(&body, " the ab cd of ef gh");
    hd_str_puts(&body, "\", ");
    wire_ascii_bias(&body);
    hd_str_puts(&body, "}");
    wire_stream w = stream_of(&s, body.data);
    wire_stream_run(&w);
    double proposed = wire_metric(s.port, "heddle_speculated_tokens_total");
    if (proposed > 0) *share = wire_metric(s.port, "heddle_speculated_accepted_total") / proposed;
    hd_str_add(text, w.text.data, w.text.len);
    double speed = w.failed ? -1 : 159 / (w.last - w.first);
    wire_stream_free(&w);
    wire_end(&s, SIGTERM, 60);
    hd_str_free(&body);
    return speed;
}

static void check_speculation(job *j)
{
    hd_str plain, guessed;
    double share;
    hd_str_init(&plain);
    hd_str_init(&guessed);
    double a = repeat_speed(j, "none", &plain, &share), b = repeat_speed(j, "ngram:4", &guessed, &share);
    bool same = plain.len && plain.len == guessed.len && !memcmp(plain.data, guessed.data, plain.len);
    size_t k = 0;
    while (k < plain.len && k < guessed.len && plain.data[k] == guessed.data[k]) k++;
    if (!same) printf("  after %zu bytes of %zu: \"%.40s\", with speculation, of %zu: \"%.40s\"\n", k, plain.len, plain.data + k, guessed.len,
        guessed.data + k);
    printf("  %.1f tokens/s, with n-gram speculation %.1f; %.0f %% of what was guessed was right\n", a, b, 100 * share);
    wire_report(&j->tally, "the same answer with speculation", same, "==", 1, true);
    wire_report(&j->tally, "tokens/s with n-gram speculation / without, repetitive text", b / a, ">=", 1.3, j->judged);
    hd_str_free(&plain);
    hd_str_free(&guessed);
}

int main(int argc, char **argv)
{
    if (argc < 5) return fprintf(stderr, "usage: check_latency HEDDLE MODEL FOLDER JUDGED [SHORT]\n"), 2;
    bool brief = argc > 5 && atoi(argv[5]);
    job j = {.heddle = argv[1], .model = argv[2], .judged = atoi(argv[4]), .prefix = 400, .prompt = brief ? 800 : 4000};
    static const char *const flags[] = {"--no-log", NULL};
    wire_server s;
    signal(SIGPIPE, SIG_IGN);
    snprintf(j.log, sizeof j.log, "%s/latency.log", argv[3]);
    check_start(&j);
    if (!wire_serve(&s, j.heddle, j.model, flags, j.log, 120)) return 1;
    check_prefix(&j, &s);
    check_long_prompt(&j, &s);
    wire_end(&s, SIGTERM, 60);
    check_hang_ups(&j);
    check_drain(&j);
    check_speculation(&j);
    return j.tally.failed != 0;
}
