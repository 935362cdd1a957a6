/* trace.h: what happened, or would: events by rank and stream. The executor fills it while it runs, the simulator while it predicts; the report draws it.
 *
 * Names are borrowed (paths and op names of the Program). Times are seconds from the beginning of the first step that the trace holds. */
#ifndef HD_BASE_TRACE_H
#define HD_BASE_TRACE_H

#include <stdint.h>
#include "base/error.h"
#include "base/str.h"

typedef enum hd_event_kind {
    HD_EVENT_PRODUCT, HD_EVENT_MEMORY_BOUND, /* kernels */
    HD_EVENT_COPY,                           /* zeroing and copying */
    HD_EVENT_TENSOR_COMM,                    /* collectives over MODEL axes */
    HD_EVENT_DATA_COMM,                      /* collectives over DATA axes, and those of the update over the pipeline */
    HD_EVENT_PIPELINE_COMM,                  /* sends and receives between stages */
    HD_EVENT_WAIT,                           /* nothing but waiting for a token */
    HD_EVENT_KINDS
} hd_event_kind;

typedef struct hd_trace_event {
    int rank, stream;        /* stream 0: computing; 1: transfers beside it */
    hd_event_kind kind;
    const char *name, *path; /* op, node */
    const char *segment;     /* "forward", ... */
    int chunk, micro, slice;
    int instr;               /* in its segment */
    double start, end;
} hd_trace_event;

typedef struct hd_memory_sample { int rank; double time; int64_t bytes; } hd_memory_sample; /* live bytes from this time on */

typedef struct hd_trace {
    hd_trace_event *events; int64_t n_events, room;
    hd_memory_sample *memory; int64_t n_memory, memory_room;
    int ranks;
    double seconds;          /* of the step(s) */
} hd_trace;

const char *hd_event_kind_name(hd_event_kind k); /* "gemm", "memory-bound", ... : keys of --json and categories of Chrome traces */
int hd_trace_add(hd_trace *t, const hd_trace_event *e, hd_error *err);
int hd_trace_add_memory(hd_trace *t, const hd_memory_sample *m, hd_error *err);
void hd_trace_free(hd_trace *t);

#endif
