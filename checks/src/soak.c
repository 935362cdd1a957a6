/* soak.c: a server at saturating load for a long time, with clients that leave at random: its memory stays, its pace stays, nothing fails.
 *
 *   check_soak HEDDLE MODEL FOLDER MINUTES JUDGED */
#include "base/rng.h"
#include "wire.h"

enum { CLIENTS = 24 };

typedef struct client {
    pthread_t thread;
    int number, port;
    double end;
    int64_t requests, cut, errors, tokens;
    double *gaps;            /* [n][2]: when, how long */
    int64_t n, room;
    int status;              /* of the last error */
} client;

static void keep_gaps(client *c, const wire_stream *s)
{
    for (int64_t i = 1; i < s->n; i++) {
        if (c->n == c->room) {
            double *more = realloc(c->gaps, sizeof(double) * 2 * (size_t)(c->room = c->room * 2 + 4096));
            if (!more) abort();
            c->gaps = more;
        }
        c->gaps[2 * c->n] = s->times[i];
        c->gaps[2 * c->n++ + 1] = s->times[i] - s->times[i - 1];
    }
}

static void make_body(hd_rng *g, hd_str *o)
{
    int64_t prompt = 8 + (int64_t)hd_rng_below(g, 300), shared = hd_rng_below(g, 3) ? 0 : 64;
    hd_str_puts(o, "{\"stream\": true, \"ignore_eos\": true, ");
    hd_str_printf(o, "\"temperature\": %s, \"seed\": %d, \"max_tokens\": %d, ", hd_rng_below(g, 2) ? "0" : "0.8", (int)hd_rng_below(g, 1000),
        8 + (int)hd_rng_below(g, 200));
    if (!hd_rng_below(g, 8)) hd_str_puts(o, "\"n\": 2, ");
    if (!hd_rng_below(g, 8)) hd_str_puts(o, "\"logprobs\": 3, ");
    if (!hd_rng_below(g, 16)) hd_str_puts(o, "\"guided_regex\": \"[a-z ]{4,40}\", \"ignore_eos\": false, ");
    hd_str_puts(o, "\"prompt\": \"");
    wire_words(o, shared, 1);
    wire_words(o, prompt, (unsigned)hd_rng_below(g, 1 << 30));
    hd_str_puts(o, "\"}");
}

static void *run_client(void *arg)
{
    client *c = arg;
    hd_rng g = hd_rng_new((uint64_t)c->number + 1);
    hd_str body;
    hd_str_init(&body);
    while (hd_time() < c->end) {
        hd_str_clear(&body);
        make_body(&g, &body);
        wire_stream s = {.port = c->port, .path = "/v1/completions", .body = body.data, .seconds = 300, .cut_after = hd_rng_below(&g, 4) ? -1
            : (int64_t)hd_rng_below(&g, 40)};
        wire_stream_run(&s);
        c->requests++;
        c->cut += s.cut_after >= 0;
        c->tokens += s.n;
        if (s.failed || s.status != 200) c->errors++, c->status = s.status;
        keep_gaps(c, &s);
        wire_stream_free(&s);
    }
    hd_str_free(&body);
    return NULL;
}

/* p99 of the gaps that end between two times. */
static double p99_between(const client *all, double from, double to)
{
    int64_t n = 0, most = 0;
    for (int i = 0; i < CLIENTS; i++) most += all[i].n;
    double *x = malloc(sizeof(double) * (size_t)(most + 1));
    if (!x) abort();
    for (int i = 0; i < CLIENTS; i++)
        for (int64_t k = 0; k < all[i].n; k++)
            if (all[i].gaps[2 * k] >= from && all[i].gaps[2 * k] < to) x[n++] = all[i].gaps[2 * k + 1];
    double p = wire_percentile(x, n, 0.99);
    free(x);
    return p;
}

static void watch(const wire_server *s, double start, double end, double mark, double *at_mark)
{
    double shown = start;
    *at_mark = 0;
    for (double now; (now = hd_time()) < end; usleep(200000)) {
        if (!*at_mark && now >= mark) *at_mark = wire_rss(s->pid);
        if (now < shown + 60) continue;
        shown = now;
        printf("  minute %2.0f: %.1f MiB resident, %.0f tokens, %.0f preemptions\n", (now - start) / 60, wire_rss(s->pid),
            wire_metric(s->port, "heddle_generated_tokens_total"),
               wire_metric(s->port, "heddle_preemptions_total"));
        fflush(stdout);
    }
}

static void soak(const wire_server *s, double minutes, bool judged, wire_tally *t)
{
    client *all = calloc(CLIENTS, sizeof *all);
    double start = hd_time(), end = start + 60 * minutes, mark = start + (minutes > 6 ? 180 : 30 * minutes), at_mark;
    if (!all) abort();
    for (int i = 0; i < CLIENTS; i++) {
        all[i].number = i, all[i].port = s->port, all[i].end = end;
        if (pthread_create(&all[i].thread, NULL, run_client, &all[i])) abort();
    }
    watch(s, start, end, mark, &at_mark);
    double rss = wire_rss(s->pid);
    client sum = {0};
    for (int i = 0; i < CLIENTS; i++) {
        pthread_join(all[i].thread, NULL);
        sum.requests += all[i].requests, sum.cut += all[i].cut, sum.errors += all[i].errors, sum.tokens += all[i].tokens;
        if (all[i].status || all[i].errors) sum.status = all[i].status;
    }
    printf("  %lld requests, %lld of them cut, %lld pieces, %.0f preemptions, %.0f most blocks\n", (long long)sum.requests, (long long)sum.cut,
        (long long)sum.tokens,
           wire_metric(s->port, "heddle_preemptions_total"), wire_metric(s->port, "heddle_kv_blocks"));
    double first = p99_between(all, start, start + 20 * minutes), last = p99_between(all, end - 20 * minutes, end);
    printf("  p99 inter-token latency: %.1f ms in the first third, %.1f ms in the last\n", first * 1e3, last * 1e3);
    if (sum.errors) printf("  the last error had status %d\n", sum.status);
    wire_report(t, "errors", (double)sum.errors, "==", 0, true);
    wire_report(t, "requests cut off by their clients", (double)sum.cut, ">=", 5, true);
    wire_report(t, "resident memory at the end / at minute 3 (or half-time)", rss / at_mark, "<=", 1.02, judged);
    wire_report(t, "p99 inter-token latency, last third / first third", last / first, "<=", 1.1, judged);
    wire_report(t, "requests and blocks left afterwards", wire_left(s->port, 10), "==", 0, true);
    for (int i = 0; i < CLIENTS; i++) free(all[i].gaps);
    free(all);
}

int main(int argc, char **argv)
{
    if (argc != 6) return fprintf(stderr, "usage: check_soak HEDDLE MODEL FOLDER MINUTES JUDGED\n"), 2;
    char log[300];
    wire_server s;
    wire_tally t = {0};
    signal(SIGPIPE, SIG_IGN);
    snprintf(log, sizeof log, "%s/soak.log", argv[3]);
    const char *flags[] = {"--no-log", "--max-sequences", "16", "--kv-bytes", "8M", "--context", "1024", "--speculate", "ngram:3", NULL};
    if (!wire_serve(&s, argv[1], argv[2], flags, log, 60)) return 1;
    soak(&s, atof(argv[4]), atoi(argv[5]), &t);
    wire_report(&t, "status after SIGTERM", wire_end(&s, SIGTERM, 60), "==", 0, true);
    return t.failed != 0;
}
