/* plan_html.c: what plan.html draws, as one compact JSON object. Times are integers of a unit that cuts the drawing's span into four
 * million, each counted from the end of what stands before it; memory is in KiB. So a call of a plan with a hundred thousand of them
 * takes about twenty bytes. */
#include "report/plan_html.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "report/page.h"
#include "report/parts.h"

enum { MOST_ROWS = 64, MOST_EVENTS = 60000, MOST_SAMPLES = 700, SPAN = 4000000 };

/* ---- JSON ---- */

static void put_string(hd_str *s, const char *text)
{
    hd_str_putc(s, '"');
    for (const unsigned char *p = (const unsigned char *)(text ? text : ""); *p; p++) {
        bool named = *p == '"' || *p == '\\';
        if (*p < ' ' || *p == '<' || *p == '>' || *p == '&') hd_str_printf(s, "\\u%04x", *p); /* it stands inside a script element */
        else hd_str_printf(s, named ? "\\%c" : "%c", *p);
    }
    hd_str_putc(s, '"');
}

static void put_number(hd_str *s, double v)
{
    if (isfinite(v)) hd_str_printf(s, "%.6g", v);
    else hd_str_puts(s, "null");
}

static void put_numbers(hd_str *s, const double *v, int n)
{
    hd_str_putc(s, '[');
    for (int i = 0; i < n; i++) {
        if (i) hd_str_putc(s, ',');
        put_number(s, v[i]);
    }
    hd_str_putc(s, ']');
}

static void put_sizes(hd_str *s, const int64_t *v, int n)
{
    hd_str_putc(s, '[');
    for (int i = 0; i < n; i++) hd_str_printf(s, "%s%lld", i ? "," : "", (long long)v[i]);
    hd_str_putc(s, ']');
}

/* Frees a text that went into s. */
static void end_text(hd_str *s, hd_str *text)
{
    s->failed |= text->failed;
    hd_str_free(text);
}

/* ---- ranks ---- */

typedef struct page {
    const hd_report *r;
    const hd_program *program; /* of the first stage */
    hd_str *s;
    hd_error *err;
} page;

/* ---- the plan ---- */

static void put_mesh(const page *p, const hd_mesh *m)
{
    static const char *const roles[] = {[HD_AXIS_DATA] = "data", [HD_AXIS_MODEL] = "model", [HD_AXIS_PIPELINE] = "pipeline"};
    hd_str_puts(p->s, "\"mesh\":[");
    for (int a = 0; a < m->n; a++)
        hd_str_printf(p->s, "%s[\"%s\",%d,\"%s\"]", a ? "," : "", m->axis[a].name, m->axis[a].size, roles[m->axis[a].role]);
    hd_str_puts(p->s, "],");
}

/* The layers whose nodes a program has: a mark for each number that stands as ".N." in a kernel's path. */
typedef struct layers { bool has[4096]; int n; char others[160]; } layers;

static void note_other(layers *l, const char *path)
{
    char head[40];
    size_t n = strcspn(path, ".");
    snprintf(head, sizeof head, "%.*s", (int)(n < 30 ? n : 30), path);
    for (const char *c = head; *c; c++)
        if (*c == '(' || *c == '/' || *c == ' ') return; /* made by passes: no part of the model that a person would know */
    size_t at = strlen(l->others), length = strlen(head);
    const char *found = strstr(l->others, head);
    if (!length || (found && (found[length] == ',' || !found[length])) || at + length + 3 > sizeof l->others) return;
    snprintf(l->others + at, sizeof l->others - at, "%s%s", at ? ", " : "", head);
}

static void find_layers(const hd_program *p, layers *l)
{
    *l = (layers){0};
    for (int b = 0; b < p->n_buffers; b++) {
        const hd_buffer *x = &p->buffers[b];
        if (x->role != HD_ROLE_PARAMETER || x->view_of >= 0) continue;
        const char *dot = strpbrk(x->path, "0123456789");
        bool numbered = dot && dot > x->path && dot[-1] == '.';
        int layer = numbered ? atoi(dot) : -1;
        if (layer >= 0 && layer < (int)(sizeof l->has / sizeof *l->has)) l->has[layer] = true, l->n = layer >= l->n ? layer + 1 : l->n;
        else note_other(l, x->path);
    }
}

static void put_layers(hd_str *s, const hd_program *p)
{
    layers *l = hd_malloc(sizeof *l);
    hd_str text;
    if (!l) {
        s->failed = true;
        return;
    }
    hd_str_init(&text);
    find_layers(p, l);
    int count = 0;
    for (int i = 0; i < l->n; i++) {
        if (!l->has[i]) continue;
        int end = i;
        while (end + 1 < l->n && l->has[end + 1]) end++;
        hd_str_printf(&text, end > i ? "%s%d–%d" : "%s%d", text.len ? ", " : "", i, end);
        count += end - i + 1;
        i = end;
    }
    hd_str_puts(s, "\"layers\":");
    put_string(s, text.data);
    hd_str_printf(s, ",\"n_layers\":%d,\"others\":", count);
    put_string(s, l->others);
    end_text(s, &text);
    hd_free(l);
}

/* Bytes of a stage's parameters on its first rank. */
static int64_t parameter_bytes(const hd_program *p)
{
    int64_t bytes = 0;
    for (int b = 0; b < p->n_buffers; b++)
        if (p->buffers[b].role == HD_ROLE_PARAMETER && p->buffers[b].view_of < 0 && !hd_buffer_in_arena(p, b)) bytes += p->buffers[b].bytes;
    return bytes;
}

static int put_stages(const page *p)
{
    hd_str_puts(p->s, "\"stages\":[");
    for (int i = 0; i < p->r->n_programs; i++) {
        const hd_program *x = p->r->programs[i];
        hd_memory m;
        int rc = hd_program_memory(x, &m, p->err);
        if (rc) return rc;
        int first = hd_program_first_rank(x), ranks = x->meshes.n ? hd_mesh_size(&x->mesh) : hd_program_ranks(x) / x->stages;
        hd_str_printf(p->s, "%s{\"stage\":%d,\"first\":%d,\"ranks\":%d,", i ? "," : "", x->stage, first, ranks);
        put_mesh(p, &x->mesh);
        put_layers(p->s, x);
        hd_str_printf(p->s, ",\"parameters\":%lld,\"total\":%lld,\"roles\":", (long long)parameter_bytes(x), (long long)m.total);
        put_sizes(p->s, m.role, HD_ROLE_COUNT);
        hd_str_puts(p->s, "}");
    }
    hd_str_puts(p->s, "],");
    return 0;
}

/* ---- what is split how ---- */

typedef struct split { int stage; char pattern[96], shape[64], layout[160]; hd_role role; int count; int64_t bytes; } split;
typedef struct splits { split list[160]; int n; } splits;

/* Numbers of layers as "*". */
static void make_pattern(char *out, size_t n, const char *path)
{
    size_t at = 0;
    for (const char *c = path; *c && at + 2 < n;) {
        bool number = *c >= '0' && *c <= '9' && c > path && c[-1] == '.';
        if (!number) {
            out[at++] = *c++;
            continue;
        }
        while (*c >= '0' && *c <= '9') c++;
        out[at++] = '*';
    }
    out[at] = 0;
}

static void print_shape(char *out, size_t n, const hd_shape *s)
{
    size_t at = (size_t)snprintf(out, n, "[");
    for (int i = 0; i < s->rank && at < n; i++) at += (size_t)snprintf(out + at, n - at, "%s%lld", i ? ", " : "", (long long)s->dim[i]);
    if (at < n) snprintf(out + at, n - at, "]");
}

static void note_split(hd_str *s, splits *all, const hd_program *p, const hd_buffer *b)
{
    split x = {.role = b->role, .stage = p->stage};
    hd_shape whole = b->layout ? b->whole : b->type.shape;
    hd_str layout;
    hd_str_init(&layout);
    if (b->layout) hd_layout_print(&p->mesh, b->layout, whole.rank, &layout);
    make_pattern(x.pattern, sizeof x.pattern, b->path);
    print_shape(x.shape, sizeof x.shape, &whole);
    snprintf(x.layout, sizeof x.layout, "%s", layout.data);
    end_text(s, &layout);
    int at = 0;
    while (at < all->n && (strcmp(all->list[at].pattern, x.pattern) || strcmp(all->list[at].layout, x.layout) ||
                           strcmp(all->list[at].shape, x.shape))) at++;
    if (at == (int)(sizeof all->list / sizeof *all->list)) return;
    if (at == all->n) all->list[all->n++] = x;
    all->list[at].count++;
    all->list[at].bytes += b->bytes;
}

static void put_splits(const page *p)
{
    splits *all = hd_calloc(1, sizeof *all);
    if (!all) {
        p->s->failed = true;
        return;
    }
    for (int i = 0; i < p->r->n_programs; i++) {
        const hd_program *x = p->r->programs[i];
        for (int b = 0; b < x->n_buffers; b++) {
            bool state = x->buffers[b].role == HD_ROLE_PARAMETER || x->buffers[b].role == HD_ROLE_OPTIMIZER;
            if (state && x->buffers[b].view_of < 0 && !hd_buffer_in_arena(x, b)) note_split(p->s, all, x, &x->buffers[b]);
        }
    }
    hd_str_puts(p->s, "\"splits\":[");
    for (int i = 0; i < all->n; i++) {
        const split *x = &all->list[i];
        hd_str_puts(p->s, i ? ",{\"path\":" : "{\"path\":");
        put_string(p->s, x->pattern);
        hd_str_printf(p->s, ",\"stage\":%d,\"role\":\"%s\",\"count\":%d,\"bytes\":%lld,\"shape\":\"%s\",\"layout\":", x->stage, hd_role_name(x->role), x->count,
                      (long long)x->bytes, x->shape);
        put_string(p->s, x->layout);
        hd_str_putc(p->s, '}');
    }
    hd_str_puts(p->s, "],");
    hd_free(all);
}

/* ---- timelines ---- */

/* Segments and nodes by number, in the order in which they are met. */
typedef struct names { const void **slot; int *number; size_t size, used; const char **text, **more; size_t room; } names;

static size_t slot_of(const names *n, const char *a, const char *b)
{
    size_t i = (size_t)(((uintptr_t)a >> 3) * 31 + ((uintptr_t)b >> 3)) * 0x9e3779b97f4a7c15u >> 20 & (n->size - 1);
    while (n->slot[i] && (n->text[n->number[i]] != a || n->more[n->number[i]] != b)) i = (i + 1) & (n->size - 1);
    return i;
}

static bool grow_names(names *n)
{
    names bigger = *n;
    bigger.size = n->size ? 2 * n->size : 1024;
    const char **text = hd_realloc_array(n->text, bigger.size, sizeof *text);
    if (text) n->text = bigger.text = text;
    const char **more = hd_realloc_array(n->more, bigger.size, sizeof *more);
    if (more) n->more = bigger.more = more;
    bigger.slot = hd_calloc(bigger.size, sizeof *bigger.slot);
    bigger.number = hd_calloc(bigger.size, sizeof *bigger.number);
    bool ok = text && more && bigger.slot && bigger.number;
    for (size_t i = 0; i < n->size && ok; i++) {
        if (!n->slot[i]) continue;
        size_t at = slot_of(&bigger, n->text[n->number[i]], n->more[n->number[i]]);
        bigger.slot[at] = n->slot[i];
        bigger.number[at] = n->number[i];
    }
    hd_free(ok ? n->slot : bigger.slot);
    hd_free(ok ? n->number : bigger.number);
    if (ok) *n = bigger;
    return ok;
}

/* The number of a pair of texts, which are told apart by where they lie; -1: no memory. */
static int number_of(names *n, const char *a, const char *b)
{
    if (2 * n->used >= n->size && !grow_names(n)) return -1;
    size_t at = slot_of(n, a, b);
    if (!n->slot[at]) {
        n->text[n->used] = a;
        n->more[n->used] = b;
        n->number[at] = (int)n->used++;
        n->slot[at] = n;
    }
    return n->number[at];
}

static void free_names(names *n)
{
    hd_free(n->slot);
    hd_free(n->number);
    hd_free(n->text);
    hd_free(n->more);
}

typedef struct timeline {
    const page *p;
    const hd_trace *t;
    double unit; /* seconds */
    double *waiting; /* [n_events] hd_trace_waiting */
    int *row;    /* [t->ranks] which row shows the rank, or -1 */
    int rows;
    bool events; /* few enough to be drawn one by one */
} timeline;

static int choose_rows(timeline *l)
{
    int n = l->t->ranks;
    l->row = hd_malloc(((size_t)n + 1) * sizeof *l->row);
    if (!l->row) return hd_fail_memory(l->p->err, (size_t)n * sizeof *l->row, "a report");
    int present = 0;
    for (int r = 0; r < n; r++) present += r < l->t->latest_room && l->t->latest[r] >= 0;
    for (int r = 0; r < n; r++) {
        bool has = r < l->t->latest_room && l->t->latest[r] >= 0;
        l->row[r] = has && (present <= MOST_ROWS || hd_program_leads_stage(l->p->program, r)) ? l->rows++ : -1;
    }
    int64_t shown = 0;
    for (int64_t i = 0; i < l->t->n_events; i++) shown += l->row[l->t->events[i].rank] >= 0;
    l->events = shown <= MOST_EVENTS;
    return 0;
}

static int64_t units(const timeline *l, double seconds)
{
    return llround(seconds / l->unit);
}

static double exposed(const hd_trace_call *c)
{
    return c->seconds[HD_EVENT_TENSOR_COMM] + c->seconds[HD_EVENT_DATA_COMM] + c->seconds[HD_EVENT_PIPELINE_COMM] +
           c->seconds[HD_EVENT_WAIT];
}

/* segment, chunk and micro-batch, from the end of the call before to its begin, how long, how much of that it waits and communicates */
static void put_calls(const timeline *l, int rank)
{
    static const char *const segments[] = {"prepare", "forward", "backward", "weight", "update"};
    hd_str *s = l->p->s;
    int64_t at = 0;
    const char *comma = "";
    hd_str_puts(s, "\"calls\":[");
    for (int64_t i = 0; i < l->t->n_calls; i++) {
        const hd_trace_call *c = &l->t->calls[i];
        if (c->rank != rank) continue;
        int segment = 0;
        while (segment < 4 && strcmp(segments[segment], c->segment)) segment++;
        int64_t begin = units(l, c->start), end = units(l, c->end);
        hd_str_printf(s, "%s%d,%d,%d,%lld,%lld,%lld", comma, segment, c->chunk, c->micro, (long long)(begin - at), (long long)(end - begin),
                      (long long)units(l, exposed(c)));
        at = end;
        comma = ",";
    }
    hd_str_puts(s, "]");
}

/* Seconds by kind of all calls of a segment and chunk: [[segment, chunk, calls, seconds...], ...]. */
static void put_sums(const timeline *l, int rank)
{
    enum { MOST = 512 };
    typedef struct sum { const char *segment; int chunk; int64_t calls; double seconds[HD_EVENT_KINDS + 1]; } sum;
    sum *list = hd_calloc(MOST, sizeof *list);
    int n = 0;
    if (!list) l->p->s->failed = true;
    for (int64_t i = 0; i < l->t->n_calls && list; i++) {
        const hd_trace_call *c = &l->t->calls[i];
        if (c->rank != rank) continue;
        int at = 0;
        while (at < n && (list[at].chunk != c->chunk || strcmp(list[at].segment, c->segment))) at++;
        if (at == MOST) continue;
        if (at == n) list[n++] = (sum){.segment = c->segment, .chunk = c->chunk};
        list[at].calls++;
        for (int k = 0; k < HD_EVENT_KINDS; k++) list[at].seconds[k] += c->seconds[k];
        list[at].seconds[HD_EVENT_KINDS] += c->end - c->start;
    }
    hd_str_puts(l->p->s, ",\"sums\":[");
    for (int i = 0; i < n; i++) {
        hd_str_printf(l->p->s, "%s[\"%s\",%d,%lld,", i ? "," : "", list[i].segment, list[i].chunk, (long long)list[i].calls);
        put_numbers(l->p->s, list[i].seconds, HD_EVENT_KINDS + 1);
        hd_str_putc(l->p->s, ']');
    }
    hd_str_puts(l->p->s, "]");
    hd_free(list);
}

typedef struct event_writer { hd_str *s; int64_t at; const char *comma; } event_writer;

static void put_event(event_writer *w, int name, hd_event_kind kind, const hd_trace_event *e, int64_t begin, int64_t end)
{
    hd_str_printf(w->s, "%s%d,%d,%d,%d,%lld,%lld", w->comma, name, (int)kind, e->stream, e->micro, (long long)(begin - w->at),
                  (long long)(end - begin));
    w->at = begin;
    w->comma = ",";
}

/* name, kind, stream, micro-batch, from the begin of the event before, how long. A transfer that waits for another stage is two: the
 * waiting and the rest. */
static void put_events(const timeline *l, int rank, names *n)
{
    event_writer w = {.s = l->p->s, .comma = ""};
    hd_str_puts(w.s, ",\"events\":[");
    for (int64_t i = 0; i < l->t->n_events && l->events; i++) {
        const hd_trace_event *e = &l->t->events[i];
        if (e->rank != rank) continue;
        int number = number_of(n, e->name, e->path);
        int64_t begin = units(l, e->start), end = units(l, e->end), middle = units(l, e->start + l->waiting[i]);
        if (number < 0) w.s->failed = true;
        if (middle > begin) put_event(&w, number, HD_EVENT_WAIT, e, begin, middle);
        put_event(&w, number, e->kind, e, middle, end);
    }
    hd_str_puts(w.s, "]");
}

/* The most in each of MOST_SAMPLES pieces of the span, from samples that hold until the next. */
typedef struct bins { int64_t most[MOST_SAMPLES]; int64_t last; int at; double width; } bins;

static void add_sample(bins *b, double time, int64_t bytes)
{
    int to = (int)(time / b->width);
    if (to < 0) to = 0;
    if (to >= MOST_SAMPLES) to = MOST_SAMPLES - 1;
    for (; b->at < to; b->at++)
        if (b->most[b->at + 1] < b->last) b->most[b->at + 1] = b->last;
    if (b->most[to] < bytes) b->most[to] = bytes;
    b->last = bytes;
}

/* KiB in each piece of the span, "[...]"; empty where nothing is known. */
static void put_memory(const timeline *l, int rank)
{
    bins *b = hd_calloc(1, sizeof *b);
    bool any = false;
    if (!b) {
        l->p->s->failed = true;
        return;
    }
    b->width = l->t->seconds / MOST_SAMPLES;
    for (int64_t i = 0; i < l->t->n_memory; i++)
        if (l->t->memory[i].rank == rank) add_sample(b, l->t->memory[i].time, l->t->memory[i].bytes), any = true;
    for (int64_t i = 0; i < l->t->n_calls && !any && l->t->by_call; i++)
        if (l->t->calls[i].rank == rank) add_sample(b, l->t->calls[i].start, l->t->calls[i].bytes);
    any |= b->last > 0;
    add_sample(b, l->t->seconds, b->last);
    hd_str_puts(l->p->s, ",\"memory\":[");
    for (int i = 0; i < MOST_SAMPLES && any; i++) hd_str_printf(l->p->s, "%s%lld", i ? "," : "", (long long)(b->most[i] + 1023) / 1024);
    hd_str_puts(l->p->s, "]");
    hd_free(b);
}

static void put_names(hd_str *s, const names *n)
{
    hd_str_puts(s, "],\"names\":[");
    for (size_t i = 0; i < n->used; i++) {
        hd_str_puts(s, i ? ",[" : "[");
        put_string(s, n->text[i]);
        hd_str_putc(s, ',');
        put_string(s, n->more[i]);
        hd_str_putc(s, ']');
    }
    hd_str_puts(s, "]}");
}

static int put_timeline(const page *p, const char *key, const hd_trace *t)
{
    timeline l = {.p = p, .t = t, .unit = t->seconds > 0 ? t->seconds / SPAN : 1};
    names n = {0};
    int rc = choose_rows(&l);
    if (!rc) rc = hd_trace_waiting(t, p->program, &l.waiting, p->err);
    if (rc) {
        hd_free(l.row);
        return rc;
    }
    hd_str_printf(p->s, ",\"%s\":{\"seconds\":%.9g,\"steps\":%d,\"unit\":%.12g,\"rows\":[", key, t->seconds, t->steps ? t->steps : 1,
                  l.unit);
    const char *comma = "";
    for (int r = 0; r < t->ranks; r++) {
        double part[HD_SIM_PARTS];
        if (l.row[r] < 0) continue;
        hd_str_printf(p->s, "%s{\"rank\":%d,\"stage\":%d,", comma, r, hd_program_stage_of(p->program, r));
        comma = ",";
        put_calls(&l, r);
        put_sums(&l, r);
        put_events(&l, r, &n);
        put_memory(&l, r);
        if (t->n_events) {
            hd_trace_parts(t, l.waiting, r, part);
            hd_str_puts(p->s, ",\"parts\":");
            put_numbers(p->s, part, HD_SIM_PARTS);
        }
        hd_str_putc(p->s, '}');
    }
    put_names(p->s, &n);
    free_names(&n);
    hd_free(l.waiting);
    hd_free(l.row);
    return 0;
}

/* ---- figures ---- */

static void put_fact(hd_str *s, const char *label, const char *value, const char *note)
{
    hd_str_puts(s, !s->len || s->data[s->len - 1] == '[' ? "[" : ",["); /* empty: out of memory, which is said at the end */
    put_string(s, label);
    hd_str_putc(s, ',');
    put_string(s, value);
    hd_str_putc(s, ',');
    put_string(s, note);
    hd_str_putc(s, ']');
}

/* 1234567 as "1.23 M". */
static char *format_count(char *out, size_t n, double v)
{
    static const char *const units[] = {"", " k", " M", " G", " T", " P", " E"};
    int u = 0;
    while (v >= 1000 && u < 6) v /= 1000, u++;
    snprintf(out, n, v >= 100 || (u == 0 && v == floor(v)) ? "%.0f%s" : v >= 10 ? "%.1f%s" : "%.2f%s", v, units[u]);
    return out;
}

static char *format_time(char *out, size_t n, double seconds)
{
    if (seconds < 1e-3) snprintf(out, n, "%.0f µs", seconds * 1e6);
    else if (seconds < 1) snprintf(out, n, seconds < 0.1 ? "%.2f ms" : "%.0f ms", seconds * 1e3);
    else snprintf(out, n, seconds < 10 ? "%.2f s" : "%.1f s", seconds);
    return out;
}

static double measured_step(const hd_report *r)
{
    return r->measured ? r->measured->seconds / (r->measured->steps ? r->measured->steps : 1) : 0;
}

static double predicted_step(const hd_report *r)
{
    return r->sim ? r->sim->step : r->predicted->seconds / (r->predicted->steps ? r->predicted->steps : 1);
}

static void put_step_facts(const page *p)
{
    char a[48], b[48], note[96] = "for one update of all parameters";
    double step = predicted_step(p->r), measured = measured_step(p->r);
    if (measured > 0) {
        snprintf(note, sizeof note, "measured: %s (%+.1f %% predicted)", format_time(a, sizeof a, measured), 100 * (step / measured - 1));
        put_fact(p->s, "Step time, predicted", format_time(b, sizeof b, step), note);
    } else {
        put_fact(p->s, "Step time, predicted", format_time(b, sizeof b, step), note);
    }
    if (p->r->tokens > 0 && step > 0) {
        snprintf(note, sizeof note, "%s tokens in a step", format_count(a, sizeof a, p->r->tokens));
        put_fact(p->s, "Tokens per second", format_count(b, sizeof b, p->r->tokens / step), note);
    }
    if (p->r->samples > 0 && step > 0) put_fact(p->s, "Samples per second", format_count(b, sizeof b, p->r->samples / step), NULL);
}

static void put_speed_facts(const page *p)
{
    char a[48], note[128] = "";
    const hd_sim_result *s = p->r->sim;
    const hd_cluster *c = p->r->cluster;
    bool nodes = c && c->device.cores; /* of a CPU the rates are the node's */
    double devices = nodes ? hd_cluster_nodes(c) : s->ranks, rate = s->flops / devices / s->step,
        peak = c ? c->device.flops[p->r->plan->precision] : 0;
    if (c && peak <= 0) peak = c->device.flops[HD_F32];
    format_count(a, sizeof a, rate);
    hd_str value;
    hd_str_init(&value);
    hd_str_printf(&value, "%s%sFLOP/s", a, strchr(a, ' ') ? "" : " ");
    double hardware = s->hardware_flops / devices / s->step;
    const char *form = hardware > 1.005 * rate ? "%.1f %% of its peak; %.1f %% with what is computed twice" : "%.1f %% of its peak";
    if (peak > 0) snprintf(note, sizeof note, form, 100 * rate / peak, 100 * hardware / peak);
    put_fact(p->s, nodes ? "Model's work per node" : "Model's work per device", value.data, note);
    end_text(p->s, &value);
    snprintf(a, sizeof a, "%.1f %%", 100 * s->bubble);
    if (p->r->n_programs > 1) put_fact(p->s, "Pipeline bubble", a, "of all devices' time goes to waiting for other stages");
}

static void put_memory_fact(const page *p)
{
    char a[32], b[32], note[96] = "";
    const hd_sim_result *s = p->r->sim;
    const hd_sim_rank *most = NULL;
    for (int i = 0; i < s->n_ranks; i++)
        if (!most || s->rank[i].peak > most->peak) most = &s->rank[i];
    if (!most) return;
    if (most->capacity > 0)
        snprintf(note, sizeof note, "%.2g %% of %s, on rank %d", 100.0 * (double)most->peak / (double)most->capacity,
                 hd_format_bytes(b, (double)most->capacity), most->rank);
    put_fact(p->s, "Memory at the peak", hd_format_bytes(a, (double)most->peak), note);
}

static void put_facts(const page *p)
{
    hd_str_puts(p->s, "\"facts\":[");
    put_step_facts(p);
    if (p->r->sim && p->r->sim->step > 0) put_speed_facts(p);
    if (p->r->sim) put_memory_fact(p);
    for (int i = 0; i < p->r->n_facts; i++) put_fact(p->s, p->r->facts[i].label, p->r->facts[i].value, p->r->facts[i].note);
    hd_str_puts(p->s, "],");
}

/* ---- the simulator's figures by rank ---- */

static void put_sim_rank(const page *p, const hd_sim_rank *k, bool first)
{
    hd_str_printf(p->s, "%s{\"rank\":%d,\"stage\":%d,\"alike\":%d,\"parts\":", first ? "" : ",", k->rank, hd_program_stage_of(p->program, k->rank),
                  k->alike);
    put_numbers(p->s, k->part, HD_SIM_PARTS);
    hd_str_puts(p->s, ",\"hidden\":");
    put_number(p->s, k->hidden);
    hd_str_puts(p->s, ",\"bytes\":");
    put_numbers(p->s, k->bytes, HD_MAX_LEVELS);
    hd_str_printf(p->s, ",\"total\":%lld,\"capacity\":%lld,\"roles\":", (long long)k->peak, (long long)k->capacity);
    put_sizes(p->s, k->kind, HD_SIM_KINDS);
    hd_str_putc(p->s, '}');
}

static void put_sim(const page *p)
{
    const hd_sim_result *s = p->r->sim;
    bool first = true;
    hd_str_puts(p->s, "\"ranks\":[");
    for (int i = 0; s && i < s->n_ranks; i++) {
        if (s->n_ranks > MOST_ROWS && !hd_program_leads_stage(p->program, s->rank[i].rank)) continue;
        put_sim_rank(p, &s->rank[i], first);
        first = false;
    }
    hd_str_puts(p->s, "],\"limit\":");
    put_string(p->s, s ? s->limit : "");
    hd_str_printf(p->s, ",\"step\":%.9g,\"measured_step\":%.9g", predicted_step(p->r), measured_step(p->r));
}

/* ---- inputs ---- */

static void put_lists(hd_str *s, bool simulated)
{
    hd_str_puts(s, "\"roles\":[");
    for (int i = 0; i < (simulated ? (int)HD_SIM_KINDS : (int)HD_ROLE_COUNT); i++)
        hd_str_printf(s, "%s\"%s\"", i ? "," : "", simulated ? hd_sim_kind_name((hd_sim_kind)i) : hd_role_name((hd_role)i));
    hd_str_puts(s, "],\"kinds\":[");
    for (int i = 0; i < HD_EVENT_KINDS; i++) hd_str_printf(s, "%s\"%s\"", i ? "," : "", hd_event_kind_name((hd_event_kind)i));
    hd_str_puts(s, "],");
}

static void put_cluster(const page *p)
{
    const hd_cluster *c = p->r->cluster;
    hd_str_puts(p->s, "\"cluster\":");
    if (!c) {
        hd_str_puts(p->s, "null,");
        return;
    }
    hd_str_puts(p->s, "{\"name\":");
    put_string(p->s, c->name);
    hd_str_puts(p->s, ",\"note\":");
    put_string(p->s, c->note);
    hd_str_puts(p->s, ",\"device\":");
    put_string(p->s, c->device.name);
    hd_str_printf(p->s, ",\"memory\":%lld,\"reserved\":%lld,\"node\":%d,\"levels\":[", (long long)c->device.memory,
                  (long long)c->device.reserved,
                  hd_cluster_group(c, c->node_level));
    for (int i = 0; i < c->n_levels; i++) hd_str_printf(p->s, "%s[\"%s\",%d,%.6g,%.6g]", i ? "," : "", c->level[i].name,
                                                        c->level[i].fanout, c->level[i].bandwidth, c->level[i].latency);
    hd_str_puts(p->s, "]},");
}

/* What text goes into the page as a string. */
static int put_text(const page *p, const char *key, int rc, hd_str *text)
{
    if (rc || text->failed) return hd_fail_memory(p->err, text->len, "a report");
    hd_str_printf(p->s, "\"%s\":", key);
    put_string(p->s, text->data);
    hd_str_putc(p->s, ',');
    return 0;
}

static int put_inputs(const page *p)
{
    hd_str text;
    hd_str_init(&text);
    int rc = put_text(p, "plan_text", hd_plan_print(p->r->plan, &text), &text);
    hd_str_clear(&text);
    if (!rc && p->r->cluster) {
        hd_cluster bare = *p->r->cluster;
        bare.profile = NULL;
        bare.n_profile = 0; /* thousands of lines that say nothing to a reader */
        rc = put_text(p, "cluster_text", hd_cluster_print(&bare, &text), &text);
    }
    hd_str_free(&text);
    return rc;
}

static int put_data(const page *p)
{
    const hd_plan *plan = p->r->plan;
    hd_str_puts(p->s, "{\"title\":");
    put_string(p->s, p->r->title);
    hd_str_puts(p->s, ",\"command\":");
    put_string(p->s, p->r->command);
    hd_str_printf(p->s, ",\"schedule\":\"%s\",\"chunks\":%d,\"micro_batches\":%lld,\"precision\":\"%s\",\"world\":%d,\"slices\":%d,",
                  hd_schedule_name(plan->schedule), plan->chunks,
                  (long long)plan->micro_batches, hd_dtype_name(plan->precision), hd_program_ranks(p->program), plan->n_slices);
    put_lists(p->s, p->r->sim != NULL);
    put_mesh(p, &p->r->plan->mesh);
    put_facts(p);
    put_cluster(p);
    put_splits(p);
    int rc = put_stages(p);
    if (!rc) rc = put_inputs(p);
    if (rc) return rc;
    put_sim(p);
    rc = put_timeline(p, "predicted", p->r->predicted);
    if (!rc && p->r->measured) rc = put_timeline(p, "measured", p->r->measured);
    hd_str_puts(p->s, "}");
    return rc;
}

int hd_report_html(const hd_report *r, const char *path, hd_error *err)
{
    static const char mark[] = "@DATA@";
    hd_str s;
    hd_error local = {0};
    hd_str_init(&s);
    page p = {.r = r, .program = r->programs[0], .s = &s, .err = err ? err : &local};
    const char *text = (const char *)hd_plan_page, *at = strstr(text, mark);
    int ranks = hd_program_ranks(p.program);
    if (r->measured && r->measured->ranks != ranks)
        return hd_fail(p.err, HD_EINVAL, "the trace is of a run of %d rank%s, the plan for %d", r->measured->ranks,
                       r->measured->ranks == 1 ? "" : "s", ranks);
    hd_str_add(&s, text, (size_t)(at - text));
    int rc = put_data(&p);
    hd_str_puts(&s, at + sizeof mark - 1);
    if (!rc && s.failed) rc = hd_fail_memory(p.err, s.len, "a report");
    if (!rc) rc = hd_file_write_atomic(path, s.data, s.len, p.err);
    hd_str_free(&s);
    return rc;
}
