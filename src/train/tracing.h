/* tracing.h: which steps of a run are traced, and bringing all ranks' events together in one file. */
#ifndef HD_TRAIN_TRACING_H
#define HD_TRAIN_TRACING_H

#include "exec/exec.h"
#include "report/trace_chrome.h"

/* Zeroed: nothing is traced. */
typedef struct hd_tracing {
    const char *path; /* NULL: nothing to do, or done */
    const hd_rank *rank;
    hd_exec *exec;
    int64_t skip;     /* steps before the first that is kept: caches, pages and the machine's clock settle */
    int steps;        /* that are kept */
    hd_chrome file;   /* the first rank's */
} hd_tracing;

/* Every rank calls these around the same steps. path NULL: nothing is traced. remaining: steps that the run has left. */
int hd_tracing_begin(hd_tracing *t, const char *path, const hd_rank *rank, hd_exec *exec, int64_t remaining, hd_error *err);
int hd_tracing_before(hd_tracing *t, hd_error *err); /* a step */
int hd_tracing_after(hd_tracing *t, hd_error *err);  /* writes the file behind the last */
void hd_tracing_free(hd_tracing *t);

#endif
