/* overlap.c: what running reductions beside backward saves: a data-parallel step with and without, in alternation, beside backward alone and the
 * step's transfers alone, all on the same two ranks.
 *
 *   mpirun -n 2 check_overlap MODEL MICRO BATCH SEQUENCE ROUNDS
 * prints "KEY SECONDS" lines from rank 0: on, off, backward, transfers (each the median of its rounds). */
#include "base/term.h"
#include "ranks_run.h"

enum { MOST_ROUNDS = 32, KINDS = 4 };
static const char *const names[KINDS] = {"on", "off", "backward", "transfers"};

typedef struct one_run {
    run_thread thread;
    run_shared shared;
    run_result result;
    run_job job;
    hd_plan plan;
    double begin, backward; /* of the last backward call */
} one_run;

static int open_run(one_run *r, const run_job *j, const char *parallel, hd_comm *comm, hd_error *err)
{
    r->job = *j;
    snprintf(r->job.parallel, sizeof r->job.parallel, "%s", parallel);
    if (!*parallel) r->job.micro = 2; /* so that the update is no part of backward */
    int rc = run_plan(&r->job, &r->plan, err);
    r->shared = (run_shared){.job = &r->job, .plan = &r->plan, .result = &r->result};
    r->thread = (run_thread){.shared = &r->shared, .rank = *parallel ? hd_comm_rank(comm) : 0};
    hd_session_options o = run_options(&r->job);
    o.plan = r->plan;
    if (*parallel) o.rank = (hd_rank){hd_comm_rank(comm), comm};
    hd_graph *g = rc ? NULL : run_graph(&r->job, err);
    if (!rc) rc = g ? hd_session_init(&r->thread.session, g, NULL, &o, err) : err->code;
    return rc ? rc : hd_session_start(&r->thread.session, &o, err);
}

static int before_backward(void *arg, hd_exec *e, hd_segment_kind kind, hd_call *call, hd_error *err)
{
    one_run *r = arg;
    r->begin = hd_time();
    return run_before(&r->thread, e, kind, call, err);
}

static int after_backward(void *arg, hd_exec *e, hd_segment_kind kind, const hd_call *call, hd_error *err)
{
    one_run *r = arg;
    (void)e, (void)call, (void)err;
    if (kind == HD_SEGMENT_BACKWARD) r->backward = hd_time() - r->begin;
    return 0;
}

static int time_step(one_run *r, double *seconds, hd_error *err)
{
    double loss, begin = hd_time();
    int rc = run_step(&r->thread, &loss, err);
    *seconds = hd_time() - begin;
    return rc;
}

static int time_backward(one_run *r, double *seconds, hd_error *err)
{
    hd_exec_hooks hooks = {.arg = r, .before = before_backward, .after = after_backward};
    int rc = hd_exec_step(r->thread.session.exec[HD_TRAIN_PROGRAM], &hooks, err);
    *seconds = r->backward;
    return rc;
}

/* The all-reduces of the step, one after the other, with nothing to compute. */
static int time_transfers(const hd_program *p, hd_comm *c, void *memory, double *seconds, hd_error *err)
{
    int all[2] = {0, 1}, rc = 0, micro_batches = hd_program_micro_batches(p);
    hd_comm_group *g = hd_comm_group_get(c, all, 2, err);
    if (!g) return HD_ECOMM;
    double begin = hd_time();
    hd_call_iter calls = hd_program_calls(p);
    for (hd_call call; !rc && hd_call_next(&calls, &call);) {
        hd_instr_iter it = hd_segment_instrs(p, call.segment);
        for (const hd_instr *x; !rc && (x = hd_instr_next(&it));) {
            if (x->opcode != HD_COMM || strcmp(x->op->name, "all_reduce") || !hd_instr_runs(x, call.micro, micro_batches)) continue;
            hd_transfer t = {.kind = HD_ALL_REDUCE, .dtype = HD_F32, .in = memory, .out = memory, .count = p->buffers[x->in[0]].bytes / 4};
            rc = hd_comm_do(c, g, &t, err);
        }
    }
    *seconds = hd_time() - begin;
    return rc;
}

static int compare_doubles(const void *x, const void *y)
{
    double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

static int measure(const run_job *j, int rounds, hd_comm *comm, hd_error *err)
{
    static one_run runs[3];
    static double seconds[KINDS][MOST_ROUNDS];
    static const char *const parallel[3] = {"dp=2", "dp=2,overlap=0", ""};
    int all[2] = {0, 1}, rc = 0;
    hd_comm_group *g = hd_comm_group_get(comm, all, 2, err);
    if (!g || hd_comm_size(comm) != 2) return hd_fail(err, HD_EINVAL, "start it as two ranks");
    for (int i = 0; i < 3 && !rc; i++) rc = open_run(&runs[i], j, parallel[i], comm, err);
    const hd_program *p = rc ? NULL : runs[1].thread.session.program[HD_TRAIN_PROGRAM];
    int64_t most = 4;
    for (int b = 0; p && b < p->n_buffers; b++) most = p->buffers[b].bytes > most ? p->buffers[b].bytes : most;
    void *memory = calloc(1, (size_t)most);
    for (int i = -1; i < rounds && !rc; i++) { /* -1: not counted */
        for (int k = 0; k < KINDS && !rc; k++) {
            double *to = &seconds[k][i < 0 ? 0 : i];
            rc = hd_comm_barrier(comm, g, err);
            if (!rc) rc = k < 2 ? time_step(&runs[k], to, err) : k == 2 ? time_backward(&runs[2], to, err) : time_transfers(p, comm, memory, to, err);
        }
    }
    for (int k = 0; k < KINDS && !rc && hd_comm_rank(comm) == 0; k++) {
        qsort(seconds[k], (size_t)rounds, sizeof **seconds, compare_doubles);
        printf("%s %.4f\n", names[k], seconds[k][rounds / 2]);
    }
    for (int i = 0; i < 3; i++) hd_session_free(&runs[i].thread.session);
    free(memory);
    return rc;
}

int main(int argc, char **argv)
{
    hd_error err = {0};
    hd_comm *comm;
    if (argc != 6 || atoi(argv[5]) < 1 || atoi(argv[5]) > MOST_ROUNDS) {
        fprintf(stderr, "usage: mpirun -n 2 check_overlap MODEL MICRO BATCH SEQUENCE ROUNDS\n");
        return 2;
    }
    run_job j = {.micro = atoll(argv[2]), .batch = atoll(argv[3]), .sequence = atoll(argv[4]), .precision = HD_F32, .optimizer = HD_ADAMW};
    snprintf(j.model, sizeof j.model, "%s", argv[1]);
    int rc = hd_comm_mpi(120, &comm, &err);
    if (!rc && (rc = measure(&j, atoi(argv[5]), comm, &err))) hd_comm_abort(comm, err.message);
    if (rc) fprintf(stderr, "check_overlap: %s\n", err.message);
    if (!rc) hd_comm_free(comm);
    return rc != 0;
}
