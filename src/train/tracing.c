#include "train/tracing.h"

#include <math.h>
#include <string.h>
#include "base/term.h"
#include "train/ranks.h"

enum { SKIP = 2, STEPS = 3, ROUNDS = 8 };

int hd_tracing_begin(hd_tracing *t, const char *path, const hd_rank *rank, hd_exec *exec, int64_t remaining, hd_error *err)
{
    *t = (hd_tracing){0};
    if (!path || remaining < 1) return 0;
    int64_t skip = remaining > SKIP ? SKIP : remaining - 1;
    *t = (hd_tracing){.path = path, .rank = rank, .exec = exec, .skip = skip,
                      .steps = remaining - skip < STEPS ? (int)(remaining - skip) : STEPS};
    int rc = hd_chrome_begin(&t->file, hd_rank_is_first(rank) ? path : NULL, err);
    t->file.program = hd_exec_program(exec);
    return rc;
}

void hd_tracing_free(hd_tracing *t)
{
    if (t->exec) hd_chrome_drop(&t->file);
    *t = (hd_tracing){0};
}

int hd_tracing_before(hd_tracing *t, hd_error *err)
{
    return t->path && t->skip-- == 0 ? hd_exec_trace(t->exec, t->steps, err) : 0;
}

/* ---- one clock ---- */

/* Rank r's clock less rank 0's, by the quickest of several questions and answers (Mills 1991: the answer was given in the middle). Both
 * call it. */
static int compare_clocks(const hd_rank *rank, int r, double *skew, hd_error *err)
{
    double shortest = INFINITY;
    int rc = 0;
    *skew = 0;
    for (int i = 0; i < ROUNDS && !rc; i++) {
        double asked = hd_time(), there = 0;
        rc = hd_ranks_give(rank, 0, r, &(double){0}, sizeof there, err);
        if (rank->rank == r) there = hd_time();
        if (!rc) rc = hd_ranks_give(rank, r, 0, &there, sizeof there, err);
        double took = hd_time() - asked;
        if (rank->rank == 0 && took < shortest) shortest = took, *skew = there - (asked + took / 2);
    }
    return rc ? rc : hd_ranks_give(rank, 0, r, skew, sizeof *skew, err);
}

/* This rank's clock less rank 0's. Threads have the same. */
static int find_skew(const hd_rank *rank, double *skew, hd_error *err)
{
    int rc = 0;
    double other;
    *skew = 0;
    if (!rank || !rank->comm || !strcmp(hd_comm_transport(rank->comm), "local")) return 0;
    if (rank->rank) return compare_clocks(rank, rank->rank, skew, err);
    for (int r = 1; r < hd_comm_size(rank->comm) && !rc; r++) rc = compare_clocks(rank, r, &other, err);
    return rc;
}

/* When the first rank's first step began, by this rank's clock. */
static int find_zero(const hd_tracing *t, double *zero, hd_error *err)
{
    double skew;
    int rc = find_skew(t->rank, &skew, err);
    int64_t before = -(int64_t)((hd_exec_trace_begin(t->exec) - skew) * 1e9);
    if (!rc) rc = hd_ranks_max(t->rank, &before, 1, err);
    *zero = (double)-before * 1e-9 + skew;
    return rc;
}

/* ---- one file ---- */

/* Rank r's text goes to the first rank's file. Both call it. */
static int give_text(hd_tracing *t, int r, hd_error *err)
{
    hd_str *text = &t->file.text;
    int64_t n = (int64_t)text->len;
    bool first = hd_rank_is_first(t->rank);
    int rc = hd_ranks_give(t->rank, r, 0, &n, sizeof n, err);
    if (rc || !first) return rc ? rc : hd_ranks_give(t->rank, r, 0, text->data, n, err);
    char *theirs = hd_malloc((size_t)n + 1);
    rc = theirs ? hd_ranks_give(t->rank, r, 0, theirs, n, err) : hd_fail_memory(err, (size_t)n, "a trace");
    if (!rc) rc = hd_chrome_put(&t->file, theirs, (size_t)n, err);
    hd_free(theirs);
    return rc;
}

static int gather(hd_tracing *t, const hd_trace *mine, hd_error *err)
{
    int64_t last = (int64_t)(mine->seconds * 1e9);
    int ranks = t->rank && t->rank->comm ? hd_comm_size(t->rank->comm) : 1;
    int rc = hd_ranks_max(t->rank, &last, 1, err);
    if (!rc) rc = hd_chrome_add(&t->file, mine, err);
    t->file.whole.ranks = ranks;
    t->file.whole.seconds = (double)last * 1e-9;
    if (!hd_rank_is_first(t->rank)) return rc ? rc : give_text(t, t->rank->rank, err);
    for (int r = 1; r < ranks && !rc; r++) rc = give_text(t, r, err);
    return rc ? rc : hd_chrome_end(&t->file, err);
}

int hd_tracing_after(hd_tracing *t, hd_error *err)
{
    if (!t->path || !hd_exec_trace_full(t->exec)) return 0;
    hd_trace mine = {0};
    double zero;
    int rc = find_zero(t, &zero, err);
    if (!rc) rc = hd_exec_trace_take(t->exec, zero, &mine, err);
    if (!rc) rc = hd_program_trace_memory(hd_exec_program(t->exec), t->rank ? t->rank->rank : 0, &mine, err);
    if (!rc) rc = gather(t, &mine, err);
    hd_trace_free(&mine);
    t->path = NULL;
    return rc;
}
