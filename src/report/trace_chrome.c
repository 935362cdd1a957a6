#include "report/trace_chrome.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>
#include "base/json.h"
#include "base/rng.h"

#define VERSION 1
#define FLUSH 65536 /* bytes of text that are kept before they are written */
#define MICRO 1e6

/* ---- writing: the file ---- */

static void temporary_name(char *out, size_t n, const char *path)
{
    snprintf(out, n, "%s.tmp", path);
}

static void flush(hd_chrome *c)
{
    if (!c->file || c->text.failed) return;
    if (fwrite(c->text.data, 1, c->text.len, c->file) != c->text.len && !c->written_errno) c->written_errno = errno ? errno : EIO;
    hd_str_clear(&c->text);
}

static void flush_if_long(hd_chrome *c)
{
    if (c->text.len >= FLUSH) flush(c);
}

int hd_chrome_begin(hd_chrome *c, const char *path, hd_error *err)
{
    char name[4200];
    *c = (hd_chrome){.path = path};
    hd_str_init(&c->text);
    if (!path) return 0;
    temporary_name(name, sizeof name, path);
    c->file = fopen(name, "w");
    if (!c->file) return hd_fail_errno(err, "%s", name);
    hd_str_puts(&c->text, "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n");
    return 0;
}

void hd_chrome_drop(hd_chrome *c)
{
    char name[4200];
    if (c->file) {
        fclose(c->file);
        temporary_name(name, sizeof name, c->path);
        unlink(name);
    }
    hd_str_free(&c->text);
    *c = (hd_chrome){0};
}

static int check_written(const hd_chrome *c, hd_error *err)
{
    if (c->text.failed) return hd_fail_memory(err, c->text.len, "a trace");
    if (c->written_errno) return hd_fail(err, HD_EIO, "%s: %s", c->path, strerror(c->written_errno));
    return 0;
}

int hd_chrome_end(hd_chrome *c, hd_error *err)
{
    char name[4200];
    const hd_trace *w = &c->whole;
    hd_str_printf(&c->text, "{\"name\":\"end\",\"ph\":\"i\",\"s\":\"g\",\"pid\":0,\"tid\":0,\"ts\":%.3f}\n],\n", w->seconds * MICRO);
    hd_str_printf(&c->text, "\"otherData\":{\"heddle_trace\":%d,\"ranks\":%d,\"steps\":%d,\"seconds\":%.9f,\"by_call\":%s}}\n", VERSION,
                  w->ranks,
                  w->steps ? w->steps : 1, w->seconds, w->by_call ? "true" : "false");
    flush(c);
    int rc = check_written(c, err);
    if (!rc && fclose(c->file)) rc = hd_fail_errno(err, "%s", c->path);
    if (!rc) c->file = NULL;
    temporary_name(name, sizeof name, c->path);
    if (!rc && rename(name, c->path)) rc = hd_fail_errno(err, "%s", c->path);
    hd_chrome_drop(c);
    return rc;
}

int hd_chrome_put(hd_chrome *c, const void *text, size_t n, hd_error *err)
{
    hd_str_add(&c->text, text, n);
    flush_if_long(c);
    return check_written(c, err);
}

/* ---- writing: events ---- */

/* `text` as what stands between a JSON string's quotes. */
static void put_escaped(hd_str *s, const char *text)
{
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        if (*p == '"' || *p == '\\') hd_str_putc(s, '\\');
        if (*p < ' ') hd_str_printf(s, "\\u%04x", *p);
        else hd_str_putc(s, (char)*p);
    }
}

static bool is_shown(const hd_chrome *c, int rank)
{
    return !c->one_per_stage || !c->program || hd_program_leads_stage(c->program, rank);
}

static void put_thread(hd_chrome *c, int rank, int tid)
{
    hd_str_printf(&c->text, "{\"ph\":\"M\",\"pid\":%d,\"tid\":%d,\"name\":\"thread_name\",\"args\":{\"name\":\"%s\"}},\n", rank, tid,
                  tid ? "transfers beside computing" : "computing");
}

static void put_names(hd_chrome *c, int rank)
{
    hd_str_printf(&c->text, "{\"ph\":\"M\",\"pid\":%d,\"name\":\"process_name\",\"args\":{\"name\":\"stage %d, rank %d\"}},\n", rank,
                  c->program ? hd_program_stage_of(c->program, rank) : 0, rank);
    hd_str_printf(&c->text, "{\"ph\":\"M\",\"pid\":%d,\"name\":\"process_sort_index\",\"args\":{\"sort_index\":%d}},\n", rank, rank);
    put_thread(c, rank, 0);
}

static void put_times(hd_str *s, int rank, int tid, double start, double end)
{
    hd_str_printf(s, "\"ph\":\"X\",\"pid\":%d,\"tid\":%d,\"ts\":%.3f,\"dur\":%.3f,", rank, tid, start * MICRO, (end - start) * MICRO);
}

static void put_call(hd_str *s, const hd_trace_call *k)
{
    hd_str_printf(s, "{\"name\":\"%s %d\",\"cat\":\"call\",", k->segment, k->micro);
    put_times(s, k->rank, 0, k->start, k->end);
    hd_str_printf(s, "\"args\":{\"segment\":\"%s\",\"chunk\":%d,\"micro\":%d,\"slice\":%d,\"events\":%lld", k->segment, k->chunk, k->micro,
                  k->slice,
                  (long long)k->events);
    if (k->bytes) hd_str_printf(s, ",\"bytes\":%lld", (long long)k->bytes);
    for (int i = 0; i < HD_TRACE_SYMBOLS; i++)
        if (k->binding[i] >= 0) hd_str_printf(s, ",\"symbol%d\":%lld", i, (long long)k->binding[i]);
    for (int i = 0; i < HD_EVENT_KINDS; i++)
        if (k->seconds[i] > 0) hd_str_printf(s, ",\"%s\":%.3f", hd_event_kind_name((hd_event_kind)i), k->seconds[i] * MICRO);
    hd_str_puts(s, "}},\n");
}

static void put_event(hd_str *s, const hd_trace_event *e, int tid)
{
    hd_str_printf(s, "{\"name\":\"%s\",\"cat\":\"%s\",", e->name, hd_event_kind_name(e->kind));
    put_times(s, e->rank, tid, e->start, e->end);
    hd_str_puts(s, "\"args\":{\"path\":\"");
    put_escaped(s, e->path ? e->path : "");
    hd_str_printf(s, "\",\"segment\":\"%s\",\"chunk\":%d,\"micro\":%d,\"slice\":%d,\"instr\":%d", e->segment, e->chunk, e->micro, e->slice,
                  e->instr);
    if (e->bytes) hd_str_printf(s, ",\"bytes\":%lld", (long long)e->bytes);
    hd_str_puts(s, "}},\n");
}

/* Of one thread, events must lie beside or inside each other: transfers that overlap go to threads of their own. */
typedef struct lanes { int rank, used; double end[32]; } lanes;

static int find_lane(hd_chrome *c, lanes *l, const hd_trace_event *e)
{
    const int most = sizeof l->end / sizeof l->end[0];
    if (l->rank != e->rank) *l = (lanes){.rank = e->rank};
    int at = 0;
    while (at < l->used && at < most - 1 && l->end[at] > e->start) at++;
    if (at == l->used) put_thread(c, e->rank, 1 + l->used++);
    l->end[at] = e->end;
    return 1 + at;
}

/* Transfers apart, rank by rank, since lanes are those of one rank. */
static void put_transfers(hd_chrome *c, const hd_trace *t, int rank)
{
    lanes l = {.rank = -1};
    for (int64_t i = 0; i < t->n_events; i++, flush_if_long(c))
        if (t->events[i].stream && t->events[i].rank == rank) put_event(&c->text, &t->events[i], find_lane(c, &l, &t->events[i]));
}

static void put_memory(hd_str *s, const hd_memory_sample *m)
{
    hd_str_printf(s, "{\"name\":\"memory\",\"ph\":\"C\",\"pid\":%d,\"ts\":%.3f,\"args\":{\"bytes\":%lld}},\n", m->rank, m->time * MICRO,
                  (long long)m->bytes);
}

static void note_whole(hd_trace *w, const hd_trace *t)
{
    if (t->ranks > w->ranks) w->ranks = t->ranks;
    if (t->steps > w->steps) w->steps = t->steps;
    if (t->seconds > w->seconds) w->seconds = t->seconds;
    w->by_call |= t->by_call;
}

int hd_chrome_add(hd_chrome *c, const hd_trace *t, hd_error *err)
{
    note_whole(&c->whole, t);
    for (int r = 0; r < t->ranks && r < t->latest_room; r++)
        if (t->latest[r] >= 0 && is_shown(c, r)) put_names(c, r);
    for (int64_t i = 0; i < t->n_calls; i++, flush_if_long(c))
        if (is_shown(c, t->calls[i].rank)) put_call(&c->text, &t->calls[i]);
    for (int64_t i = 0; i < t->n_events; i++, flush_if_long(c))
        if (!t->events[i].stream && is_shown(c, t->events[i].rank)) put_event(&c->text, &t->events[i], 0);
    for (int r = 0; r < t->ranks && t->n_events; r++)
        if (is_shown(c, r)) put_transfers(c, t, r);
    for (int64_t i = 0; i < t->n_memory; i++, flush_if_long(c))
        if (is_shown(c, t->memory[i].rank)) put_memory(&c->text, &t->memory[i]);
    return check_written(c, err);
}

int hd_chrome_write(const char *path, const hd_trace *t, const hd_program *program, bool one_per_stage, hd_error *err)
{
    hd_chrome c;
    int rc = hd_chrome_begin(&c, path, err);
    c.program = program;
    c.one_per_stage = one_per_stage;
    if (!rc) rc = hd_chrome_add(&c, t, err);
    if (!rc) return hd_chrome_end(&c, err);
    hd_chrome_drop(&c);
    return rc;
}

/* ---- reading ---- */

/* Each text once, in the trace's arena. */
typedef struct interner { const char **slot; size_t size, used; } interner;

static const char **find_slot(const interner *in, const char *text)
{
    size_t i = hd_hash_string(text) & (in->size - 1);
    while (in->slot[i] && strcmp(in->slot[i], text)) i = (i + 1) & (in->size - 1);
    return &in->slot[i];
}

static bool grow_interner(interner *in)
{
    interner bigger = {.size = in->size ? 2 * in->size : 256, .used = in->used};
    bigger.slot = hd_calloc(bigger.size, sizeof *bigger.slot);
    if (!bigger.slot) return false;
    for (size_t i = 0; i < in->size; i++)
        if (in->slot[i]) *find_slot(&bigger, in->slot[i]) = in->slot[i];
    hd_free(in->slot);
    *in = bigger;
    return true;
}

static const char *intern(interner *in, hd_arena *names, const char *text)
{
    if (2 * in->used >= in->size && !grow_interner(in)) return NULL;
    const char **slot = find_slot(in, text);
    if (*slot) return *slot;
    *slot = hd_arena_strdup(names, text);
    in->used += *slot != NULL;
    return *slot;
}

typedef struct reader {
    const char *path;
    hd_trace *t;
    interner names;
    hd_error *err;
} reader;

static int read_int(const json_t *j, const char *key, int64_t lo, int *out, const reader *r)
{
    int64_t v = *out;
    int rc = hd_json_int(j, key, lo, INT32_MAX, &v, r->path, r->err);
    *out = (int)v;
    return rc;
}

/* A string member, kept with the trace; "" where it is missing. */
static int read_name(reader *r, const json_t *j, const char *key, const char **out)
{
    const char *text = "";
    int rc = hd_json_string(j, key, &text, r->path, r->err);
    if (!rc) *out = intern(&r->names, &r->t->names, text);
    return !rc && !*out ? hd_fail_memory(r->err, strlen(text), "a trace") : rc;
}

static int read_times(reader *r, const json_t *j, double *start, double *end)
{
    double ts = 0, dur = 0;
    int rc = hd_json_number(j, "ts", -1e15, 1e15, &ts, r->path, r->err);
    if (!rc) rc = hd_json_number(j, "dur", 0, 1e15, &dur, r->path, r->err);
    *start = ts / MICRO;
    *end = (ts + dur) / MICRO;
    return rc;
}

/* What calls and events have in common: pid, and the place in the schedule in args. */
static int read_place(reader *r, const json_t *j, int *rank, const char **segment, int *chunk, int *micro, int *slice)
{
    const json_t *args = json_object_get(j, "args");
    int rc = read_int(j, "pid", 0, rank, r);
    if (!rc && *rank >= HD_MAX_RANKS) rc = hd_fail(r->err, HD_EFORMAT, "%s: \"pid\" %d is no rank", r->path, *rank);
    if (!rc) rc = read_name(r, args, "segment", segment);
    if (!rc) rc = read_int(args, "chunk", 0, chunk, r);
    if (!rc) rc = read_int(args, "micro", 0, micro, r);
    if (!rc) rc = read_int(args, "slice", 0, slice, r);
    return rc;
}

static int read_call(reader *r, const json_t *j)
{
    hd_trace_call c = {0};
    const json_t *args = json_object_get(j, "args");
    int rc = read_place(r, j, &c.rank, &c.segment, &c.chunk, &c.micro, &c.slice);
    if (!rc) rc = read_times(r, j, &c.start, &c.end);
    if (!rc) rc = hd_json_int(args, "bytes", 0, INT64_MAX, &c.bytes, r->path, r->err);
    if (!rc) rc = hd_json_int(args, "events", 0, INT64_MAX, &c.events, r->path, r->err);
    for (int k = 0; k < HD_EVENT_KINDS && !rc; k++) {
        double us = 0;
        rc = hd_json_number(args, hd_event_kind_name((hd_event_kind)k), 0, 1e15, &us, r->path, r->err);
        c.seconds[k] = us / MICRO;
    }
    for (int i = 0; i < HD_TRACE_SYMBOLS; i++) c.binding[i] = -1;
    return rc ? rc : hd_trace_add_call(r->t, &c, r->err);
}

static int read_event(reader *r, const json_t *j, int kind)
{
    hd_trace_event e = {.kind = (hd_event_kind)kind};
    const json_t *args = json_object_get(j, "args");
    int rc = read_place(r, j, &e.rank, &e.segment, &e.chunk, &e.micro, &e.slice);
    if (!rc) rc = read_int(j, "tid", 0, &e.stream, r);
    e.stream = e.stream > 0; /* which of the threads for transfers means nothing */
    if (!rc) rc = read_name(r, j, "name", &e.name);
    if (!rc) rc = read_name(r, args, "path", &e.path);
    if (!rc) rc = read_int(args, "instr", 0, &e.instr, r);
    if (!rc) rc = read_times(r, j, &e.start, &e.end);
    if (!rc) rc = hd_json_int(args, "bytes", 0, INT64_MAX, &e.bytes, r->path, r->err);
    return rc ? rc : hd_trace_add(r->t, &e, r->err);
}

static int read_memory(reader *r, const json_t *j)
{
    hd_memory_sample m = {0};
    double ts = 0;
    int rc = read_int(j, "pid", 0, &m.rank, r);
    if (!rc && m.rank >= HD_MAX_RANKS) rc = hd_fail(r->err, HD_EFORMAT, "%s: \"pid\" %d is no rank", r->path, m.rank);
    if (!rc) rc = hd_json_number(j, "ts", -1e15, 1e15, &ts, r->path, r->err);
    if (!rc) rc = hd_json_int(json_object_get(j, "args"), "bytes", 0, INT64_MAX, &m.bytes, r->path, r->err);
    m.time = ts / MICRO;
    return rc ? rc : hd_trace_add_memory(r->t, &m, r->err);
}

static int read_any(reader *r, const json_t *j)
{
    const char *phase = json_string_value(json_object_get(j, "ph")), *category = json_string_value(json_object_get(j, "cat"));
    if (!phase) return hd_fail(r->err, HD_EFORMAT, "%s: an event has no \"ph\"", r->path);
    if (!strcmp(phase, "C")) return read_memory(r, j);
    if (strcmp(phase, "X") || !category) return 0;
    if (!strcmp(category, "call")) return r->t->by_call ? read_call(r, j) : 0; /* else made anew of events */
    int kind = hd_event_kind_parse(category);
    return kind < 0 ? 0 : read_event(r, j, kind);
}

static int read_whole(reader *r, const json_t *j)
{
    int64_t version = 0, ranks = 0, steps = 1;
    const json_t *other = json_object_get(j, "otherData");
    int rc = hd_json_int(other, "heddle_trace", 1, INT32_MAX, &version, r->path, r->err);
    if (!rc && !version) return hd_fail(r->err, HD_EFORMAT, "%s is no trace that heddle wrote", r->path);
    if (!rc && version > VERSION) return hd_fail(r->err, HD_EFORMAT, "%s is a trace of version %lld, newer than %d", r->path,
                                                 (long long)version, VERSION);
    if (!rc) rc = hd_json_int(other, "ranks", 0, HD_MAX_RANKS, &ranks, r->path, r->err);
    if (!rc) rc = hd_json_int(other, "steps", 1, INT32_MAX, &steps, r->path, r->err);
    if (!rc) rc = hd_json_number(other, "seconds", 0, 1e12, &r->t->seconds, r->path, r->err);
    if (!rc) rc = hd_json_bool(other, "by_call", &r->t->by_call, r->path, r->err);
    r->t->ranks = (int)ranks;
    r->t->steps = (int)steps;
    if (!rc && !json_is_array(json_object_get(j, "traceEvents"))) rc = hd_fail(r->err, HD_EFORMAT, "%s: \"traceEvents\" must be a list",
                                                                               r->path);
    return rc;
}

int hd_chrome_read(const char *path, hd_trace *out, hd_error *err)
{
    *out = (hd_trace){0};
    hd_error local = {0};
    reader r = {.path = path, .t = out, .err = err ? err : &local};
    json_t *j = hd_json_load(path, r.err), *event;
    if (!j) return r.err->code;
    size_t i;
    int rc = read_whole(&r, j);
    json_array_foreach(json_object_get(j, "traceEvents"), i, event) {
        if (rc) break;
        rc = read_any(&r, event);
    }
    json_decref(j);
    hd_free(r.names.slot);
    if (rc) hd_trace_free(out);
    return rc;
}
