#include "base/trace.h"

#include <string.h>

static const char *const kind_names[HD_EVENT_KINDS] = {
    [HD_EVENT_PRODUCT] = "gemm", [HD_EVENT_MEMORY_BOUND] = "memory-bound", [HD_EVENT_COPY] = "copy",
        [HD_EVENT_TENSOR_COMM] = "tensor-parallel",
    [HD_EVENT_DATA_COMM] = "data-parallel", [HD_EVENT_PIPELINE_COMM] = "pipeline-transfer", [HD_EVENT_WAIT] = "wait",
};

const char *hd_event_kind_name(hd_event_kind k)
{
    return kind_names[k];
}

int hd_event_kind_parse(const char *name)
{
    for (int k = 0; k < HD_EVENT_KINDS; k++)
        if (!strcmp(kind_names[k], name)) return k;
    return -1;
}

/* Room for one more of `n` elements. */
static int make_room(void *array, int64_t *room, int64_t n, size_t size, hd_error *err)
{
    size_t capacity = (size_t)*room;
    if (hd_grow(array, &capacity, (size_t)n + 1, size)) return hd_fail_memory(err, (size_t)(n + 1) * size, "a trace");
    *room = (int64_t)capacity;
    return 0;
}

/* ---- calls ---- */

static int note_rank(hd_trace *t, int rank, hd_error *err)
{
    int64_t before = t->latest_room;
    int rc = rank >= t->latest_room ? make_room(&t->latest, &t->latest_room, rank, sizeof *t->latest, err) : 0;
    for (int64_t r = before; r < t->latest_room && !rc; r++) t->latest[r] = -1;
    if (!rc && rank >= t->ranks) t->ranks = rank + 1;
    return rc;
}

int hd_trace_add_call(hd_trace *t, const hd_trace_call *c, hd_error *err)
{
    int rc = note_rank(t, c->rank, err);
    if (!rc) rc = make_room(&t->calls, &t->calls_room, t->n_calls, sizeof *t->calls, err);
    if (rc) return rc;
    t->latest[c->rank] = t->n_calls;
    t->calls[t->n_calls++] = *c;
    return 0;
}

/* Whether the event goes on with the call. A WAIT has the number of the instruction behind it. */
static bool is_of_call(const hd_trace_call *c, const hd_trace_event *e)
{
    return c->chunk == e->chunk && c->micro == e->micro && c->slice == e->slice && e->instr >= c->last && !strcmp(c->segment, e->segment);
}

static int add_to_call(hd_trace *t, const hd_trace_event *e, hd_error *err)
{
    int rc = note_rank(t, e->rank, err);
    if (rc || e->stream) return rc;
    int64_t at = t->latest[e->rank];
    if (at < 0 || !is_of_call(&t->calls[at], e)) {
        hd_trace_call c = {.rank = e->rank, .segment = e->segment, .chunk = e->chunk, .micro = e->micro, .slice = e->slice,
                           .start = e->start};
        for (int i = 0; i < HD_TRACE_SYMBOLS; i++) c.binding[i] = -1;
        rc = hd_trace_add_call(t, &c, err);
        if (rc) return rc;
        at = t->n_calls - 1;
    }
    hd_trace_call *c = &t->calls[at];
    c->last = e->instr;
    c->events++;
    c->end = e->end;
    c->seconds[e->kind] += e->end - e->start;
    return 0;
}

/* ---- adding ---- */

int hd_trace_add(hd_trace *t, const hd_trace_event *e, hd_error *err)
{
    int rc = add_to_call(t, e, err);
    if (rc || t->by_call) return rc;
    rc = make_room(&t->events, &t->room, t->n_events, sizeof *t->events, err);
    if (!rc) t->events[t->n_events++] = *e;
    return rc;
}

int hd_trace_add_memory(hd_trace *t, const hd_memory_sample *m, hd_error *err)
{
    int rc = note_rank(t, m->rank, err);
    if (rc) return rc;
    if (t->by_call) {
        int64_t at = t->latest[m->rank];
        if (at >= 0 && t->calls[at].bytes < m->bytes) t->calls[at].bytes = m->bytes;
        return 0;
    }
    rc = make_room(&t->memory, &t->memory_room, t->n_memory, sizeof *t->memory, err);
    if (!rc) t->memory[t->n_memory++] = *m;
    return rc;
}

void hd_trace_free(hd_trace *t)
{
    hd_free(t->events);
    hd_free(t->calls);
    hd_free(t->memory);
    hd_free(t->latest);
    hd_arena_free(&t->names);
    *t = (hd_trace){0};
}
