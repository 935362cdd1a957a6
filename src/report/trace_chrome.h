/* trace_chrome.h: traces as Chrome trace JSON, which Perfetto (ui.perfetto.dev) and chrome://tracing open, and back.
 *
 * A process is a rank, with its stage in its name; thread 0 holds what it computes and waits for, inside the calls; threads from 1 on
 * transfers beside computing. An event has the category of its kind (hd_event_kind_name; "call") and in args its node's path, segment,
 * chunk, micro-batch, slice, number and bytes. Live memory is a counter. "otherData" has heddle_trace (the version, 1), ranks, steps,
 * seconds and by_call. Times are microseconds, to the nanosecond. */
#ifndef HD_REPORT_TRACE_CHROME_H
#define HD_REPORT_TRACE_CHROME_H

#include <stdio.h>
#include "base/trace.h"
#include "program/program.h"

/* A file that is being written, piece by piece, under another name until it is whole. */
typedef struct hd_chrome {
    const char *path; /* borrowed; NULL: everything stays in text */
    FILE *file;
    hd_str text;      /* not written yet */
    int written_errno;
    const hd_program *program; /* borrowed: of any stage; says which stage a rank is in. NULL: there is one */
    bool one_per_stage;    /* only the first rank of each stage: for jobs of thousands */
    hd_trace whole;        /* ranks, steps, seconds of all that was added */
} hd_chrome;

/* path NULL: hd_chrome_add leaves its text in c->text, for hd_chrome_put of another rank. */
int hd_chrome_begin(hd_chrome *c, const char *path, hd_error *err);
int hd_chrome_add(hd_chrome *c, const hd_trace *t, hd_error *err);
int hd_chrome_put(hd_chrome *c, const void *text, size_t n, hd_error *err);
/* Closes the file and gives it its name; after a failure (of this or of anything before) nothing is left of it. Frees c's memory
 * whatever comes back. */
int hd_chrome_end(hd_chrome *c, hd_error *err);
void hd_chrome_drop(hd_chrome *c); /* the same without a file in the end */

/* begin, add, end. program may be NULL. */
int hd_chrome_write(const char *path, const hd_trace *t, const hd_program *program, bool one_per_stage, hd_error *err);

/* Reads such a file that Heddle wrote. HD_EFORMAT and one line for any other. Free *out with hd_trace_free; it is empty on failure. */
int hd_chrome_read(const char *path, hd_trace *out, hd_error *err);

#endif
