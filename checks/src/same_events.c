/* same_events.c: whether the simulator's trace of a job and the executor's agree event by event.
 *
 *   check_same_events TABLE [PATTERN]
 * For each job of the table (ranks_run.h; those whose --parallel holds PATTERN) the same ranks are run, as threads, and simulated, each
 * rank by itself. Of each rank and stream the events must be the same in the same order: kind, op, node, segment, chunk, micro-batch,
 * slice, number of the instruction, bytes. */
#include "base/term.h"
#include "ranks_run.h"
#include "sim/sim.h"

static int failed;

static bool same_event(const hd_trace_event *a, const hd_trace_event *b)
{
    return a->kind == b->kind && a->chunk == b->chunk && a->micro == b->micro && a->slice == b->slice && a->instr == b->instr &&
        a->bytes == b->bytes &&
           !strcmp(a->name, b->name) && !strcmp(a->path, b->path) && !strcmp(a->segment, b->segment);
}

/* The next event of a rank and stream from *at on, or NULL. */
static const hd_trace_event *next_event(const hd_trace *t, int rank, int stream, int64_t *at)
{
    while (*at < t->n_events) {
        const hd_trace_event *e = &t->events[(*at)++];
        if (e->rank == rank && e->stream == stream) return e;
    }
    return NULL;
}

static void describe(const char *who, const hd_trace_event *e)
{
    if (!e) printf("    %s: no more events\n", who);
    else printf("    %s: %s %s of %s, %s chunk %d micro %d slice %d instruction %d, %lld bytes\n", who, hd_event_kind_name(e->kind),
                e->name, e->path, e->segment,
                e->chunk, e->micro, e->slice, e->instr, (long long)e->bytes);
}

/* How many events agree; the first that don't are printed. */
static int64_t compare(const hd_trace *ran, const hd_trace *said, int rank, int stream, bool *ok)
{
    int64_t a = 0, b = 0, n = 0;
    double before = -1e300;
    for (;; n++) {
        const hd_trace_event *x = next_event(ran, rank, stream, &a), *y = next_event(said, rank, stream, &b);
        if (!x && !y) return n;
        bool ordered = x && y && x->end >= x->start && y->end >= y->start && (y->start >= before - 1e-12);
        if (x && y && same_event(x, y) && ordered) {
            before = y->start;
            continue;
        }
        printf("  rank %d, stream %d, event %lld:\n", rank, stream, (long long)n);
        describe("ran      ", x);
        describe("simulated", y);
        *ok = false;
        return n;
    }
}

/* Each rank by itself, as the executor's ranks are. */
static int simulate(const run_job *j, const hd_plan *plan, hd_trace *said, hd_programs *programs, hd_error *err)
{
    hd_cluster cluster = {0};
    hd_sim_result result = {0};
    char name[32];
    hd_session_options o = run_options(j);
    o.plan = *plan;
    hd_graph *g = run_graph(j, err);
    int rc = g ? hd_programs_make(programs, g, true, &o, err) : err->code;
    snprintf(name, sizeof name, "cpu:%d", hd_plan_ranks(plan));
    if (!rc) rc = hd_cluster_find(name, &cluster, err);
    if (!rc) rc = hd_simulate((const hd_program *const *)programs->stage, programs->n, &cluster,
                              &(hd_sim_options){.no_merge = true, .trace = said}, &result, err);
    hd_sim_result_free(&result);
    hd_cluster_free(&cluster);
    return rc;
}

static void check_job(const run_job *j)
{
    hd_error err = {0};
    hd_trace ran[RUN_MAX_RANKS] = {0}, said = {0};
    hd_programs programs = {0};
    run_result result = {0};
    int64_t events = 0, beside = 0;
    bool ok = true;
    int rc = run_all_ranks_events(j, 2, ran, &result, &err);
    if (!rc) rc = simulate(j, result.plan, &said, &programs, &err);
    for (int r = 0; r < result.ranks && !rc; r++) {
        events += compare(&ran[r], &said, r, 0, &ok);
        beside += compare(&ran[r], &said, r, 1, &ok);
    }
    ok &= !rc && events > 0;
    if (rc) printf("  %s\n", err.message);
    printf("  %-12s %-46s %lld micro  %2d ranks  %6lld events, %5lld beside  %s\n", j->model, j->parallel[0] ? j->parallel : "one rank",
           (long long)j->micro, result.ranks,
           (long long)events, (long long)beside, ok ? "PASS" : "FAIL");
    fflush(stdout);
    failed += !ok;
    for (int r = 0; r < RUN_MAX_RANKS; r++) hd_trace_free(&ran[r]);
    hd_trace_free(&said);
    hd_programs_free(&programs);
    run_result_free(&result);
}

int main(int argc, char **argv)
{
    char line[512], root[512], seen[256][208];
    int n = 0;
    FILE *f = argc > 1 ? fopen(argv[1], "r") : NULL;
    if (!f) return fprintf(stderr, "check_same_events TABLE [PATTERN]\n"), 2;
    char *slash = strrchr(argv[1], '/');
    snprintf(root, sizeof root, "%.*s/..", slash ? (int)(slash - argv[1]) : 1, slash ? argv[1] : ".");
    while (fgets(line, sizeof line, f)) {
        run_job j;
        if (line[0] == '#' || !run_read_job(line, root, &j) || (argc > 2 && !strstr(j.parallel, argv[2]))) continue;
        char key[208];
        int known = 0;
        snprintf(key, sizeof key, "%s %s %lld", j.model, j.parallel, (long long)j.micro);
        while (known < n && strcmp(seen[known], key)) known++;
        if (known < n || n == 256) continue;
        memcpy(seen[n++], key, sizeof key);
        check_job(&j);
    }
    fclose(f);
    printf("%d jobs, %d differ\n", n, failed);
    return failed || !n;
}
