/* shrink.c: a smaller form of a job whose ranks can't all be had any more.
 *
 * Only data parallelism is made smaller: dp becomes its largest divisor with which the ranks are enough, so that all have equal shares as before, of the same
 * micro-batches: the losses stay those of one rank. Ranks of tp, pp and cp have pieces that the others have not. What ZeRO spreads over dp is left out
 * where there is nothing left to spread it over. */
#include "train/job.h"

#include <stdio.h>
#include <string.h>

#include "plan/parallel.h"

enum { TEXT = sizeof ((hd_job *)0)->parallel };

/* The items of a --parallel text, but `dp`, and without `zero` and `keep` if they are not to be there. False: it doesn't fit. */
static bool rewrite(const char *from, int64_t dp, bool zero, char *to)
{
    int n = snprintf(to, TEXT, "dp=%lld", (long long)dp);
    for (const char *at = from; *at;) {
        int length = (int)strcspn(at, ",");
        bool spread = !strncmp(at, "zero=", 5) || (!strncmp(at, "keep", 4) && (length == 4 || at[4] == '='));
        if (strncmp(at, "dp=", 3) && (zero || !spread)) n += snprintf(to + n, (size_t)(TEXT - n), ",%.*s", length, at);
        if (n >= TEXT) return false;
        at += length + (at[length] == ',');
    }
    return true;
}

int hd_job_shrink(hd_job *job, int ranks, hd_error *err)
{
    const char *text = job->config->parallel, *plan = job->config->plan;
    hd_parallel p;
    char smaller[TEXT];
    if (!text && plan) return hd_fail(err, HD_EUNSUPPORTED, "the plan %s is for %d ranks: only dp of --parallel can be made smaller", plan, job->ranks);
    int rc = text ? hd_parallel_parse(text, &p, err) : hd_fail(err, HD_EUNSUPPORTED, "there is only one rank");
    if (rc) return rc;
    int64_t others = hd_parallel_ranks(&p) / p.dp;
    for (int64_t dp = p.dp - 1; dp >= 1; dp--) {
        hd_parallel q;
        if (p.dp % dp || dp * others > ranks) continue;
        if (!rewrite(text, dp, dp * p.cp > 1, smaller) || hd_parallel_parse(smaller, &q, err)) break;
        memcpy(job->parallel, smaller, sizeof smaller);
        job->ranks = (int)hd_parallel_ranks(&q);
        job->meshed = job->ranks > 1;
        job->mpi = job->mpi && job->meshed;
        return 0;
    }
    return hd_fail(err, HD_EUNSUPPORTED, "--parallel %s has no smaller form for %d rank%s: only dp can be made smaller", text, ranks, ranks == 1 ? "" : "s");
}
