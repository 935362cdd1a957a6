/* inspect_trace.c: what is in a trace that heddle train or heddle plan wrote. */
#include "cli/inspect.h"

#include "report/trace_chrome.h"

static int count_ranks(const hd_trace *t)
{
    int n = 0;
    for (int64_t r = 0; r < t->latest_room; r++) n += t->latest[r] >= 0;
    return n ? n : 1;
}

/* Seconds of one step by kind of event, means over the ranks that the file shows; transfers beside computing apart. */
static json_t *sum_kinds(const hd_trace *t)
{
    double seconds[HD_EVENT_KINDS] = {0}, beside = 0, share = 1.0 / count_ranks(t) / (t->steps ? t->steps : 1);
    for (int64_t i = 0; i < t->n_calls; i++)
        for (int k = 0; k < HD_EVENT_KINDS; k++) seconds[k] += t->calls[i].seconds[k] * share;
    for (int64_t i = 0; i < t->n_events; i++)
        if (t->events[i].stream) beside += (t->events[i].end - t->events[i].start) * share;
    json_t *j = json_object();
    for (int k = 0; k < HD_EVENT_KINDS; k++) json_object_set_new(j, hd_event_kind_name((hd_event_kind)k), json_real(seconds[k]));
    json_object_set_new(j, "beside", json_real(beside));
    return j;
}

int hd_inspect_trace(const char *path, json_t **out, hd_error *err)
{
    hd_trace t;
    int64_t most = 0;
    int rc = hd_chrome_read(path, &t, err);
    if (rc) return rc;
    for (int64_t i = 0; i < t.n_memory; i++) most = t.memory[i].bytes > most ? t.memory[i].bytes : most;
    for (int64_t i = 0; i < t.n_calls; i++) most = t.calls[i].bytes > most ? t.calls[i].bytes : most;
    int steps = t.steps ? t.steps : 1;
    *out = json_pack("{s:s, s:s, s:i, s:i, s:f, s:I, s:I, s:o, s:I}", "kind", "trace", "path", path, "ranks", t.ranks, "steps", steps,
                     "step_seconds", t.seconds / steps, "calls",
                     (json_int_t)t.n_calls, "events", (json_int_t)t.n_events, "seconds", sum_kinds(&t), "memory_bytes", (json_int_t)most);
    hd_trace_free(&t);
    return *out ? 0 : hd_fail_memory(err, 1024, "a description");
}
