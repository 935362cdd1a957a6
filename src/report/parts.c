#include "report/parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- who waits for whom ---- */

/* One end of a transfer between stages, or one stage's part in what all do together. Of those with equal keys
 * the k-th of each rank, in order of their begin, belong together. */
typedef struct end {
    const char *base; int length; /* path of what is sent: ends' paths without ".to7" (send) and ".copy" (recv) */
    int micro, slice;
    int stage;   /* that receives; together: 0 */
    int place;   /* which rank of its stage; together: 0 */
    int rank;
    double start;
    int64_t event;
} end;

typedef struct ends { end *list; int64_t n; } ends;

static int compare_keys(const end *a, const end *b)
{
    int shorter = a->length < b->length ? a->length : b->length, c = strncmp(a->base, b->base, (size_t)shorter);
    if (!c) c = a->length - b->length;
    if (!c) c = a->micro - b->micro;
    if (!c) c = a->slice - b->slice;
    if (!c) c = a->stage - b->stage;
    return c ? c : a->place - b->place;
}

static int by_key_and_rank(const void *x, const void *y)
{
    const end *a = x, *b = y;
    int c = compare_keys(a, b);
    if (!c) c = a->rank - b->rank;
    return c ? c : (a->start > b->start) - (a->start < b->start);
}

/* The same for ranks that exchange messages with each other in each transfer: those that differ only in their stage; where stages are of different
 * meshes, all. */
static int place_of(const hd_program *p, int rank)
{
    return p->meshes.n ? 0 : rank % (hd_program_ranks(p) / p->stages);
}

static bool is_send(const hd_trace_event *e) { return !strcmp(e->name, "send"); }

static end end_of(const hd_program *p, const hd_trace_event *e, int64_t i)
{
    end x = {.base = e->path, .length = (int)strlen(e->path), .micro = e->micro, .slice = e->slice, .stage = hd_program_stage_of(p, e->rank),
             .place = place_of(p, e->rank),
             .rank = e->rank, .start = e->start, .event = i};
    const char *to = is_send(e) ? strstr(e->path, ".to") : NULL;
    for (const char *next = to; next && (next = strstr(next + 1, ".to"));) to = next;
    if (to) x.length = (int)(to - e->path), x.stage = atoi(to + 3) % p->stages;
    else if (x.length > 5 && !strcmp(e->path + x.length - 5, ".copy")) x.length -= 5;
    return x;
}

/* What all ranks do together in prepare and update, where some may come late. */
static bool is_together(const hd_trace_event *e)
{
    return e->kind == HD_EVENT_DATA_COMM && !e->stream && (!strcmp(e->segment, "update") || !strcmp(e->segment, "prepare"));
}

typedef enum end_kind { SENDS, RECVS, TOGETHER } end_kind;

static int find_ends(const hd_trace *t, const hd_program *p, end_kind kind, ends *out, hd_error *err)
{
    *out = (ends){.list = hd_malloc((size_t)t->n_events * sizeof *out->list + 1)};
    if (!out->list) return hd_fail_memory(err, (size_t)t->n_events * sizeof *out->list, "what ranks wait for");
    for (int64_t i = 0; i < t->n_events; i++) {
        const hd_trace_event *e = &t->events[i];
        bool piped = e->kind == HD_EVENT_PIPELINE_COMM && !e->stream && is_send(e) == (kind == SENDS);
        if (kind == TOGETHER ? !is_together(e) : !piped) continue;
        out->list[out->n] = end_of(p, e, i);
        if (kind == TOGETHER) out->list[out->n].stage = out->list[out->n].place = 0;
        out->n++;
    }
    if (out->n) qsort(out->list, (size_t)out->n, sizeof *out->list, by_key_and_rank);
    return 0;
}

static double within(const hd_trace_event *e, double until)
{
    return fmin(fmax(until - e->start, 0), e->end - e->start);
}

/* How many of list[0 .. n-1] have the key of the first. */
static int64_t count_alike(const end *list, int64_t n)
{
    int64_t k = 1;
    while (k < n && !compare_keys(list, list + k)) k++;
    return k;
}

/* When the last rank has begun its k-th send; list[0 .. n-1]: of one key, by rank and then by begin. */
static double kth_begin(const end *list, int64_t n, int64_t k)
{
    double last = -INFINITY;
    for (int64_t i = 0, nth = 0; i < n; i++) {
        nth = i && list[i].rank == list[i - 1].rank ? nth + 1 : 0;
        if (nth == k) last = fmax(last, list[i].start);
    }
    return last;
}

/* The k-th recv of a rank waits for the k-th send of all that send with its key. */
static void wait_for_sends(const hd_trace *t, const ends *sends, const ends *recvs, double *waiting)
{
    for (int64_t r = 0, s = 0, n; r < recvs->n; r += n) {
        const end *first = &recvs->list[r];
        n = count_alike(first, recvs->n - r);
        while (s < sends->n && compare_keys(&sends->list[s], first) < 0) s++;
        if (s == sends->n || compare_keys(&sends->list[s], first)) continue;
        int64_t m = count_alike(&sends->list[s], sends->n - s);
        for (int64_t i = 0, k = 0; i < n; i++) {
            k = i && first[i].rank == first[i - 1].rank ? k + 1 : 0;
            waiting[first[i].event] = within(&t->events[first[i].event], kth_begin(&sends->list[s], m, k));
        }
    }
}

/* list[0 .. n-1]: of one key, by rank and then by begin. The k-th of each rank belong together; only what spans stages counts. */
static void wait_for_last(const hd_trace *t, const hd_program *p, const end *list, int64_t n, double *waiting)
{
    bool spans = false;
    int64_t each = 0;
    for (int64_t i = 0; i < n; i++) {
        spans |= hd_program_stage_of(p, list[i].rank) != hd_program_stage_of(p, list[0].rank);
        each += list[i].rank == list[0].rank;
    }
    if (!spans || n % each) return;
    for (int64_t k = 0; k < each; k++) {
        double last = -INFINITY;
        for (int64_t i = k; i < n; i += each) last = fmax(last, list[i].start);
        for (int64_t i = k; i < n; i += each) waiting[list[i].event] = within(&t->events[list[i].event], last);
    }
}

int hd_trace_waiting(const hd_trace *t, const hd_program *p, double **out, hd_error *err)
{
    ends of[3] = {{0}};
    *out = hd_calloc((size_t)t->n_events + 1, sizeof **out);
    int rc = *out ? 0 : hd_fail_memory(err, (size_t)t->n_events * sizeof **out, "what ranks wait for");
    for (int k = 0; k < 3 && !rc && p->stages > 1; k++) rc = find_ends(t, p, (end_kind)k, &of[k], err);
    if (!rc) wait_for_sends(t, &of[SENDS], &of[RECVS], *out);
    for (int64_t i = 0, n; i < of[TOGETHER].n && !rc; i += n) {
        const end *first = &of[TOGETHER].list[i];
        n = count_alike(first, of[TOGETHER].n - i);
        wait_for_last(t, p, first, n, *out);
    }
    for (int k = 0; k < 3; k++) hd_free(of[k].list);
    if (rc) {
        hd_free(*out);
        *out = NULL;
    }
    return rc;
}

/* ---- parts ---- */

/* What a wait waits for: the kind of the transfer beside computing that ends in it. */
static hd_sim_part part_of_wait(const hd_trace *t, const hd_trace_event *wait)
{
    enum { FAR = 400 }; /* events that may lie between the transfer's begin and the wait */
    for (const hd_trace_event *e = wait - 1; e >= t->events && wait - e < FAR; e--)
        if (e->stream && e->rank == wait->rank && e->end >= wait->start && e->end <= wait->end + 1e-6)
            return e->kind == HD_EVENT_TENSOR_COMM ? HD_SIM_TENSOR : HD_SIM_DATA;
    return HD_SIM_DATA;
}

void hd_trace_parts(const hd_trace *t, const double *waiting, int rank, double part[HD_SIM_PARTS])
{
    static const hd_sim_part of[HD_EVENT_KINDS] = {[HD_EVENT_PRODUCT] = HD_SIM_GEMM, [HD_EVENT_MEMORY_BOUND] = HD_SIM_MEMORY_BOUND,
                                                   [HD_EVENT_COPY] = HD_SIM_MEMORY_BOUND,
                                                   [HD_EVENT_TENSOR_COMM] = HD_SIM_TENSOR, [HD_EVENT_DATA_COMM] = HD_SIM_DATA,
                                                   [HD_EVENT_PIPELINE_COMM] = HD_SIM_PIPELINE, [HD_EVENT_WAIT] = HD_SIM_DATA};
    int steps = t->steps ? t->steps : 1;
    double sum = 0;
    memset(part, 0, HD_SIM_PARTS * sizeof *part);
    for (int64_t i = 0; i < t->n_events; i++) {
        const hd_trace_event *e = &t->events[i];
        if (e->rank != rank || e->stream) continue;
        part[e->kind == HD_EVENT_WAIT ? part_of_wait(t, e) : of[e->kind]] += e->end - e->start - waiting[i];
        part[HD_SIM_BUBBLE] += waiting[i];
    }
    for (int k = 0; k < HD_SIM_PARTS; k++) part[k] /= steps, sum += part[k];
    part[HD_SIM_IDLE] += fmax(0, t->seconds / steps - sum);
}
