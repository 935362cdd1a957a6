/* trace.h: what happened, or would: events by rank and stream. The executor fills it while it runs, the simulator while it predicts; the
 * report draws it.
 *
 * Which events there are is settled by the Program, so that both give the same in the same order:
 *  - Each instruction that runs is one event, except VIEWs: of stream 0 in the order of the Program. A transfer of stream 1 is one of
 *    stream 1, from when it is started to when it has ended, as far as is known: at the latest when somebody has waited for it.
 *  - An instruction that waits for tokens of transfers under way (started, and not waited for yet) has an event WAIT before it, of its
 *    own number and path; of an instruction that is nothing but a wait there is only that.
 *  - A send takes as long as handing over takes; a recv, and a collective of stream 0, from when this rank comes to it to when the data
 *    is there.
 *
 * Calls are made out of events as they are added: one lasts from its first event to its last of stream 0. Names are borrowed (paths and
 * op names of the Program, which must live as long) or live in `names`. Times are seconds from the beginning of the first step that the
 * trace holds. A zeroed struct is an empty trace. */
#ifndef HD_BASE_TRACE_H
#define HD_BASE_TRACE_H

#include <stdint.h>
#include "base/error.h"
#include "base/mem.h"
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
    const char *name, *path; /* op ("zero", "copy", "wait" where there is none), node */
    const char *segment;     /* "forward", ... */
    int chunk, micro, slice;
    int instr;               /* in its segment */
    double start, end;
    int64_t bytes;           /* of a transfer: its larger side on this rank, of a send or recv what goes over; else 0 */
} hd_trace_event;

#define HD_TRACE_SYMBOLS 8   /* at least HD_MAX_SYMBOLS */

typedef struct hd_trace_call {
    int rank;
    const char *segment;
    int chunk, micro, slice;
    int last;                       /* number of its last instruction so far */
    int64_t events;
    double start, end;
    double seconds[HD_EVENT_KINDS]; /* of its events of stream 0; what is missing to end - start is between instructions */
    int64_t bytes;                  /* most that were live during it, where it is known; else 0 */
    int64_t binding[HD_TRACE_SYMBOLS]; /* of symbols; negative: the maximum */
} hd_trace_call;

typedef struct hd_memory_sample { int rank; double time; int64_t bytes; } hd_memory_sample; /* live bytes from this time on */

typedef struct hd_trace {
    hd_trace_event *events; int64_t n_events, room;
    hd_trace_call *calls; int64_t n_calls, calls_room; /* of one rank: in order */
    hd_memory_sample *memory; int64_t n_memory, memory_room;
    int ranks;
    double seconds;          /* of the step(s) */
    int steps;               /* how many; 0: one */
    /* Set before the first event: only calls are kept (of a plan with millions of events), and of transfers beside computing nothing. */
    bool by_call;
    int64_t *latest; int64_t latest_room; /* [rank] its latest call */
    hd_arena names;          /* of names that nobody else keeps */
} hd_trace;

const char *hd_event_kind_name(hd_event_kind k); /* "gemm", "memory-bound", ... : keys of --json and categories of Chrome traces */
int hd_event_kind_parse(const char *name);       /* the kind, or -1 */
int hd_trace_add(hd_trace *t, const hd_trace_event *e, hd_error *err);
/* With by_call: becomes the most of the rank's latest call. */
int hd_trace_add_memory(hd_trace *t, const hd_memory_sample *m, hd_error *err);
/* A call as it is: of traces that hold no events (by_call). */
int hd_trace_add_call(hd_trace *t, const hd_trace_call *c, hd_error *err);
void hd_trace_free(hd_trace *t); /* leaves an empty trace */

#endif
