/* counts.c: what a parallel plan sends and when, counted in the text of its Programs, not by any counter of Heddle's own.
 *
 *   check_counts
 * Reads the dump of every stage's Program: "buffer %N ... bytes=B", "segment KIND ...", "%A = op(%B) axes=X ...", "call KIND micro=M ...". */
#include "base/term.h"
#include "ranks_run.h"

enum { MAX_BUFFERS = 20000, MAX_SEGMENTS = 64, MAX_CALLS = 4096, MAX_STAGES = 16 };

static int failed;

static void report(const char *what, double value, const char *relation, double bound, bool ok)
{
    printf("  %-78s %-12.6g %s %-12.6g %s\n", what, value, relation, bound, ok ? "PASS" : "FAIL");
    failed += !ok;
}

static void report_equal(const char *what, double value, double bound)
{
    report(what, value, "==", bound, fabs(value - bound) <= 1e-9 * fabs(bound));
}

/* ---- a program's text ---- */

typedef struct comm_line { int segment; bool last; char op[24], axes[64]; double in, out; } comm_line; /* last: in a step's last micro-batch only */
typedef struct call_line { char segment[32]; int micro; } call_line;

typedef struct text_facts {
    double *bytes; /* [MAX_BUFFERS] */
    char segment[MAX_SEGMENTS][32];
    int calls_of[MAX_SEGMENTS], n_segments;
    comm_line *comm; int n_comm;
    call_line *call; int n_calls;
} text_facts;

static const char *const comm_ops[] = {"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send", "recv"};

/* The name of a segment as it stands behind "segment " or "call ": its kind, and "chunk=N" where there is one. */
static void segment_name(const char *at, char *out, size_t size)
{
    char kind[24] = "";
    int chunk = 0;
    sscanf(at, "%23s", kind);
    const char *c = strstr(at, "chunk=");
    if (c) chunk = atoi(c + 6);
    snprintf(out, size, "%s %d", kind, chunk);
}

/* Bytes of the buffers that are named from `at` to `end`: one, or those of a list. */
static double sum_list(const text_facts *f, const char *at, const char *end)
{
    double bytes = 0;
    for (; end && (at = strchr(at, '%')) && at < end; at++) bytes += f->bytes[atoi(at + 1)];
    return bytes;
}

static void read_instr(text_facts *f, const char *line)
{
    for (size_t k = 0; k < sizeof comm_ops / sizeof *comm_ops; k++) {
        char open[32];
        snprintf(open, sizeof open, "%s(", comm_ops[k]);
        const char *at = strstr(line, open), *semicolon = strchr(line, ';');
        if (!at || (at > line && at[-1] != ' ') || (semicolon && at > semicolon)) continue;
        comm_line *c = &f->comm[f->n_comm++];
        *c = (comm_line){.segment = f->n_segments - 1};
        snprintf(c->op, sizeof c->op, "%s", comm_ops[k]);
        c->out = sum_list(f, line, at);
        c->in = sum_list(f, at, strchr(at, ')'));
        const char *axes = strstr(line, "axes="), *note = strstr(line, " @last ");
        c->last = note && (!semicolon || note < semicolon);
        if (axes) sscanf(axes + 5, "%63[^ ]", c->axes);
        return;
    }
}

static void read_line(text_facts *f, const char *line)
{
    int b;
    while (*line == ' ') line++;
    if (sscanf(line, "buffer %%%d", &b) == 1) {
        const char *at = strstr(line, " bytes=");
        if (at && b < MAX_BUFFERS) f->bytes[b] = atof(at + 7);
    } else if (!strncmp(line, "segment ", 8)) {
        segment_name(line + 8, f->segment[f->n_segments++], 32);
    } else if (!strncmp(line, "call ", 5)) {
        call_line *c = &f->call[f->n_calls++];
        const char *micro = strstr(line, "micro=");
        segment_name(line + 5, c->segment, sizeof c->segment);
        c->micro = micro ? atoi(micro + 6) : 0;
        for (int s = 0; s < f->n_segments; s++) f->calls_of[s] += !strcmp(f->segment[s], c->segment);
    } else if (f->n_segments) {
        read_instr(f, line);
    }
}

static void read_text(text_facts *f, const char *text)
{
    *f = (text_facts){.bytes = calloc(MAX_BUFFERS, sizeof(double)), .comm = calloc(8192, sizeof(comm_line)), .call = calloc(MAX_CALLS, sizeof(call_line))};
    char *copy = strdup(text), *at = copy;
    for (char *line; (line = strsep(&at, "\n"));) read_line(f, line);
    free(copy);
}

static void free_text(text_facts *f)
{
    free(f->bytes);
    free(f->comm);
    free(f->call);
}

/* Times that an op over these axes is done in a step, and the bytes of its larger side, both summed over calls; messages below `least` bytes are not counted. */
static double count_comm(const text_facts *f, const char *op, const char *axes, double least, double *bytes)
{
    double n = 0;
    if (bytes) *bytes = 0;
    for (int i = 0; i < f->n_comm; i++) {
        const comm_line *c = &f->comm[i];
        double size = c->in > c->out ? c->in : c->out;
        if (strcmp(c->op, op) || (axes && strcmp(c->axes, axes)) || size < least) continue;
        int times = c->last ? 1 : f->calls_of[c->segment];
        n += times;
        if (bytes) *bytes += size * times;
    }
    return n;
}

/* ---- jobs ---- */

static run_job job_of(const char *model, const char *parallel, int64_t micro)
{
    run_job j = {.micro = micro, .batch = 8, .sequence = 16, .precision = HD_F32, .optimizer = HD_ADAMW};
    snprintf(j.model, sizeof j.model, "%s", model);
    snprintf(j.parallel, sizeof j.parallel, "%s", parallel);
    return j;
}

/* The text of one stage's program. */
static int stage_facts(const run_job *j, int stage, text_facts *f, int64_t *parameter_bytes)
{
    hd_error err = {0};
    hd_session s = {0};
    hd_session_options o = run_options(j);
    hd_str text;
    hd_str_init(&text);
    int rc = run_plan(j, &o.plan, &err);
    hd_rank rank = {.rank = hd_plan_first_rank(&o.plan, stage)};
    o.rank = rank;
    hd_graph *g = rc ? NULL : run_graph(j, &err);
    if (!rc) rc = g ? hd_session_init(&s, g, NULL, &o, &err) : err.code;
    if (rc) {
        printf("  %s %s: %s\n", j->model, j->parallel, err.message);
        failed++;
        return rc;
    }
    hd_program_dump(s.program[HD_TRAIN_PROGRAM], &text);
    read_text(f, text.data);
    if (parameter_bytes) {
        *parameter_bytes = 0;
        const hd_graph *whole = s.graph[HD_TRAIN_PROGRAM];
        for (size_t v = 0; v < whole->n_values; v++) {
            const hd_value_info *x = &whole->values[v];
            if (x->kind == HD_PARAM) *parameter_bytes += hd_shape_count(x->layout ? &x->whole : &x->type.shape) * (int64_t)hd_dtype_size(x->type.dtype);
        }
    }
    hd_str_free(&text);
    hd_session_free(&s);
    return 0;
}

typedef struct per_layer { double reduces, gathers, scatters, reduce_bytes, gather_bytes, scatter_bytes; } per_layer;

static per_layer tensor_counts(const char *model, const char *parallel)
{
    per_layer p = {0};
    text_facts f;
    run_job j = job_of(model, parallel, 1);
    if (stage_facts(&j, 0, &f, NULL)) return p;
    double least = 2048; /* losses and norms of a row are smaller than any activation here */
    p.reduces = count_comm(&f, "all_reduce", "tp", least, &p.reduce_bytes);
    p.gathers = count_comm(&f, "all_gather", "tp", least, &p.gather_bytes);
    p.scatters = count_comm(&f, "reduce_scatter", "tp", least, &p.scatter_bytes);
    free_text(&f);
    return p;
}

/* Two depths of one model, so that embedding and head fall out: gpt2-deep has 8 layers, gpt2-shallow 4. */
static void check_tensor_parallel(void)
{
    per_layer a = tensor_counts("gpt2-shallow", "tp=2"), b = tensor_counts("gpt2-deep", "tp=2");
    report_equal("tensor parallel: all-reduces of activations per layer", (b.reduces - a.reduces) / 4, 4);
    report_equal("tensor parallel: all-gathers of activations per layer", (b.gathers - a.gathers) / 4, 0);
    per_layer c = tensor_counts("gpt2-shallow", "tp=2,sp"), d = tensor_counts("gpt2-deep", "tp=2,sp");
    double gathers = (d.gathers - c.gathers) / 4, scatters = (d.scatters - c.scatters) / 4, again = gathers - 4;
    report_equal("sequence parallel: reduce-scatters per layer", scatters, 4);
    report("sequence parallel: all-gathers per layer, 4 and what backward gathers again", gathers, ">=", 4, gathers >= 4 && again <= 2);
    report_equal("sequence parallel: all-reduces of activations per layer", (d.reduces - c.reduces) / 4, 0);
    report_equal("sequence parallel: bytes of 4 gathers and scatters over those of all-reduces (each counts twice)",
                 ((d.gather_bytes - c.gather_bytes) * 4 / gathers + d.scatter_bytes - c.scatter_bytes) / 2 / (b.reduce_bytes - a.reduce_bytes), 1);
}

/* As many transfers as the rule gives: a bucket ends with the gradient that brings it to an eighth of all, the first to a quarter of that, the second to half. */
static void check_buckets(const text_facts *f, double parameters)
{
    text_facts each;
    run_job j = job_of("gpt2", "dp=2,bucket=0", 1);
    double bytes, transfers = count_comm(f, "all_reduce", "dp", 16, NULL);
    report("data parallel: transfers of gradients in buckets", transfers, "<=", 10, transfers <= 10 && transfers > 1);
    if (stage_facts(&j, 0, &each, NULL)) return;
    double alone = count_comm(&each, "all_reduce", "dp", 16, &bytes);
    report("... and without: one for each parameter", alone, ">=", 4 * transfers, alone >= 4 * transfers);
    report_equal("... of as many bytes", bytes / parameters, 1);
    free_text(&each);
}

static void check_data_parallel(void)
{
    text_facts f;
    int64_t parameters;
    double reduce, gather, scatter;
    run_job j = job_of("gpt2", "dp=2", 1);
    if (!stage_facts(&j, 0, &f, &parameters)) {
        count_comm(&f, "all_reduce", "dp", 16, &reduce);
        report_equal("data parallel: bytes all-reduced over those of the gradients", reduce / (double)parameters, 1);
        check_buckets(&f, (double)parameters);
        free_text(&f);
    }
    j = job_of("gpt2", "dp=2", 4);
    if (!stage_facts(&j, 0, &f, &parameters)) {
        count_comm(&f, "all_reduce", "dp", 16, &reduce);
        report_equal("data parallel, 4 micro-batches: the same, once a step", reduce / (double)parameters, 1);
        free_text(&f);
    }
    j = job_of("gpt2", "dp=2,zero=3", 1);
    if (!stage_facts(&j, 0, &f, &parameters)) {
        count_comm(&f, "all_gather", "dp", 16, &gather);
        count_comm(&f, "reduce_scatter", "dp", 16, &scatter);
        double moved = (gather + scatter) / (double)parameters;
        report("ZeRO-3: bytes gathered and scattered over those of the parameters", moved, "<=", 3, moved <= 3 + 1e-9 && moved > 2);
        free_text(&f);
    }
}

/* ---- time ---- */

typedef struct timeline { text_facts stage[MAX_STAGES]; int stages, chunks; } timeline;

/* Runs the calls of all stages with one slot a call; forward of a chunk waits for the chunk before it, backward for the one behind it. Returns the last
 * slot's end, or -1 when nothing can go on. */
static int play(const timeline *t, int backward_slots)
{
    enum { MAX_CHUNKS = 64, MAX_MICRO = 64 };
    static int done[2][MAX_CHUNKS][MAX_MICRO];
    int next[MAX_STAGES] = {0}, clock[MAX_STAGES] = {0}, last = 0, all = t->stages * t->chunks;
    memset(done, -1, sizeof done);
    for (bool moved = true; moved;) {
        moved = false;
        for (int s = 0; s < t->stages; s++) {
            while (next[s] < t->stage[s].n_calls) {
                const call_line *c = &t->stage[s].call[next[s]];
                bool forward = !strncmp(c->segment, "forward", 7), backward = !strncmp(c->segment, "backward", 8);
                if (forward || backward) {
                    int chunk = s + t->stages * atoi(strchr(c->segment, ' ')), from = forward ? chunk - 1 : chunk + 1, ready = 0;
                    if (from >= 0 && from < all) ready = done[backward][from][c->micro];
                    if (ready < 0) break;
                    int begin = clock[s] > ready ? clock[s] : ready;
                    clock[s] = done[backward][chunk][c->micro] = begin + (forward ? 1 : backward_slots);
                    if (clock[s] > last) last = clock[s];
                }
                next[s]++;
                moved = true;
            }
        }
    }
    for (int s = 0; s < t->stages; s++)
        if (next[s] < t->stage[s].n_calls) return -1;
    return last;
}

static int most_in_flight(const text_facts *f)
{
    int now = 0, most = 0;
    for (int i = 0; i < f->n_calls; i++) {
        now += !strncmp(f->call[i].segment, "forward", 7);
        if (now > most) most = now;
        now -= !strncmp(f->call[i].segment, "backward", 8);
    }
    return most;
}

static bool load_timeline(timeline *t, const char *schedule, int stages, int chunks, int micro)
{
    char parallel[128];
    snprintf(parallel, sizeof parallel, chunks > 1 ? "pp=%d,schedule=%s,v=%d" : "pp=%d,schedule=%s", stages, schedule, chunks);
    run_job j = job_of("gpt2-deep", parallel, micro);
    j.batch = 1;
    *t = (timeline){.stages = stages, .chunks = chunks};
    for (int s = 0; s < stages; s++)
        if (stage_facts(&j, s, &t->stage[s], NULL)) return false;
    return true;
}

static void free_timeline(timeline *t)
{
    for (int s = 0; s < t->stages; s++) free_text(&t->stage[s]);
}

static void check_schedules(void)
{
    timeline t;
    char what[120];
    int p = 4, m = 8;
    if (load_timeline(&t, "1f1b", p, 1, m)) {
        for (int s = 0; s < p; s++) {
            int most = most_in_flight(&t.stage[s]);
            snprintf(what, sizeof what, "1F1B: micro-batches in flight on stage %d of %d", s, p);
            report(what, most, "<=", p - s, most <= p - s);
        }
        report_equal("1F1B, 4 stages, 8 micro-batches: slots, forward and backward (p + m - 1 each)", play(&t, 1), 2 * (p + m - 1));
        free_timeline(&t);
    }
    if (load_timeline(&t, "gpipe", p, 1, m)) {
        report_equal("GPipe, 4 stages, 8 micro-batches: slots", play(&t, 1), 2 * (p + m - 1));
        free_timeline(&t);
    }
    if (load_timeline(&t, "interleaved", p, 2, m)) {
        double slots = play(&t, 1), bubble = slots - 2 * 2 * m; /* in slots of half the size */
        report_equal("interleaved, 2 chunks: bubble in whole slots, (p - 1) / v each way", bubble / 2, 2.0 * (p - 1) / 2);
        free_timeline(&t);
    }
}

int main(void)
{
    check_tensor_parallel();
    check_data_parallel();
    check_schedules();
    return failed > 0;
}
