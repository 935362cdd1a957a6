/* run.c: running calls: the team walks a segment's instructions by itself and meets only where they depend on each other. */
#include "base/term.h"
#include "exec/exec_int.h"

/* ---- one instruction ---- */

static void move_bytes(const hd_step *s, int tid, int threads)
{
    const hd_tensor *out = &s->args.out[0];
    int64_t begin, end;
    hd_split((int64_t)hd_tensor_bytes(out), 64, tid, threads, &begin, &end);
    if (end <= begin) return;
    char *to = (char *)out->data + begin;
    if (s->instr->opcode == HD_ZERO) memset(to, 0, (size_t)(end - begin));
    else memcpy(to, (const char *)s->args.in[0].data + begin, (size_t)(end - begin));
}

static void run_step(hd_exec *e, hd_step *s, int tid)
{
    if (s->instr->opcode == HD_WAIT || (s->solo && tid > 0)) return;
    if (s->instr->opcode == HD_COMM) {
        if (s->local) hd_exec_move_local(e, s, tid);
        else hd_exec_transfer(e, s);
        return;
    }
    if (s->instr->opcode != HD_KERNEL) {
        move_bytes(s, tid, s->solo ? 1 : e->threads);
        return;
    }
    hd_kernel_args a = s->args;
    a.tid = tid;
    if (s->solo) a.team = e->alone, a.threads = 1;
    a.accumulate = s->instr->accumulate == HD_ACCUMULATE_ALWAYS || (s->instr->accumulate == HD_ACCUMULATE_LATER && e->micro > 0);
    s->kernel.run(&a);
}

/* As run_step, with what is being watched: every instruction ends in a meeting when profiling. */
static void run_watched(hd_exec *e, hd_step *s, int tid)
{
    double start = hd_time();
    run_step(e, s, tid);
    if (e->profiling) hd_team_barrier(e->team, tid);
    double end = hd_time();
    bool kept = tid == 0 && e->notes && s->instr->opcode != HD_WAIT;
    int64_t note = kept ? hd_exec_note(e, s->index, false, start, end) : -1;
    if (kept && s->instr->signal >= 0) e->tokens[s->instr->signal].note = note;
    if (e->profiling && tid == 0) hd_exec_count_cost(s, end - start);
}

/* Waits for what s needs of transfers beside computing. */
static void wait_for_tokens(hd_exec *e, const hd_step *s)
{
    double start = e->notes ? hd_time() : 0;
    bool waited = hd_exec_wait_tokens(e, s->instr);
    if (e->notes && (waited || s->instr->opcode == HD_WAIT)) hd_exec_note(e, s->index, true, start, hd_time());
}

/* ---- a segment ---- */

/* Meets the team; true when the call is to stop. */
static bool meet(hd_exec *e, int tid, unsigned turn)
{
    bool *stop = &e->stop[turn & 1];
    if (tid == 0) *stop = atomic_load_explicit(&e->abort, memory_order_relaxed);
    hd_team_barrier(e->team, tid);
    if (*stop && tid == 0) e->stopped = true;
    return *stop;
}

static void run_member(void *arg, int tid)
{
    hd_exec *e = arg;
    hd_steps *segment = &e->segments[e->segment];
    bool watched = e->profiling || (e->notes && tid == 0);
    unsigned turn = 0;
    int first = e->only >= 0 ? e->only : 0, last = e->only >= 0 ? e->only + 1 : segment->n;
    for (int i = first; i < last; i++) {
        hd_step *s = &segment->steps[i];
        bool runs = hd_instr_runs(s->instr, e->micro, e->micro_batches);
        if (tid == 0 && s->instr->n_waits && runs) wait_for_tokens(e, s);
        if (s->sync && meet(e, tid, turn++)) return;
        if (!runs) continue;
        if (watched) run_watched(e, s, tid);
        else run_step(e, s, tid);
    }
}

void hd_exec_run_team(hd_exec *e)
{
    hd_team_run(e->team, run_member, e);
}

/* ---- bindings ---- */

static void rebind_tensors(const hd_exec *e, const int *buffers, int n, hd_tensor *t, const int64_t *binding)
{
    for (int i = 0; i < n; i++)
        if (buffers[i] >= 0 && e->program->buffers[buffers[i]].type.shape.sym >= 0) t[i].dim[0] = hd_buffer_tensor(e->program, buffers[i], binding).dim[0];
}

static void move_tensors(const hd_exec *e, const int *buffers, int n, hd_tensor *t, int micro)
{
    for (int i = 0; i < n; i++)
        if (buffers[i] >= 0) t[i].data = hd_exec_copy(e, buffers[i], micro);
}

/* Brings a segment's steps to the micro-batch's copies of their buffers. */
static void choose_copies(const hd_exec *e, hd_steps *segment, int micro)
{
    segment->micro = micro;
    for (int i = 0; i < segment->n; i++) {
        hd_step *s = &segment->steps[i];
        if (!s->copied) continue;
        move_tensors(e, s->instr->in, s->instr->n_in, (hd_tensor *)s->args.in, micro);
        move_tensors(e, s->instr->out, s->instr->n_out, s->args.out, micro);
    }
}

/* A kernel that doesn't take the new extents gives way to one that does, and that to the reference when it wants more workspace than there is. */
static void rebind_kernel(const hd_exec *e, hd_step *s)
{
    const hd_op *op = s->instr->op;
    if (!s->kernel.supports || s->kernel.supports(&s->args)) return;
    s->kernel = e->backend->find(e->backend, op, &s->args);
    size_t want = s->kernel.workspace ? s->kernel.workspace(&s->args, e->threads) : 0;
    if (want > (size_t)s->workspace_bytes) s->kernel = (hd_kernel){.op = op->name, .run = op->reference};
}

static int rebind(hd_exec *e, hd_steps *segment, const int64_t *binding, hd_error *err)
{
    bool moved = false;
    memcpy(segment->binding, binding, sizeof segment->binding);
    for (int i = 0; i < segment->n; i++) {
        hd_step *s = &segment->steps[i];
        if (!s->bounded) continue;
        rebind_tensors(e, s->instr->in, s->instr->n_in, (hd_tensor *)s->args.in, binding);
        rebind_tensors(e, s->instr->out, s->instr->n_out, s->args.out, binding);
        if (s->instr->opcode == HD_KERNEL) rebind_kernel(e, s);
        if (s->instr->opcode == HD_COMM) hd_exec_rebind_transfer(s);
        moved |= hd_step_choose_solo(e, s);
    }
    return moved ? hd_exec_find_meetings(e, segment, err) : 0;
}

int hd_exec_bind(hd_exec *e, const hd_call *call, hd_error *err)
{
    const hd_program *p = e->program;
    int64_t binding[HD_MAX_SYMBOLS];
    if (call->segment < 0 || call->segment >= p->n_segments) return hd_fail(err, HD_EINVAL, "the program has no segment %d", call->segment);
    for (int i = 0; i < HD_MAX_SYMBOLS; i++) {
        binding[i] = call->binding[i] < 0 ? -1 : call->binding[i];
        if (i < p->n_symbols && binding[i] > p->symbols[i].max)
            return hd_fail(err, HD_EINVAL, "%s = %lld is more than the program's maximum of %lld", p->symbols[i].name, (long long)binding[i],
                           (long long)p->symbols[i].max);
    }
    hd_steps *segment = &e->segments[call->segment];
    int rc = memcmp(segment->binding, binding, sizeof binding) ? rebind(e, segment, binding, err) : 0;
    if (rc) return rc;
    if (segment->micro != call->micro) choose_copies(e, segment, call->micro);
    memcpy(e->binding, binding, sizeof binding);
    e->segment = call->segment;
    e->micro = call->micro;
    return 0;
}

/* ---- calls and steps ---- */

static bool is_once(const hd_exec *e, int segment)
{
    hd_segment_kind kind = e->program->segments[segment].kind;
    return kind == HD_SEGMENT_PREPARE || kind == HD_SEGMENT_UPDATE;
}

/* What was sent must have gone before it is written over. */
static int finish_before(hd_exec *e, int segment, hd_error *err)
{
    if (!e->rank.comm) return 0;
    return is_once(e, segment) ? hd_exec_finish_all_sends(e, err) : hd_exec_finish_sends(e, segment, err);
}

int hd_exec_call(hd_exec *e, const hd_call *call, hd_error *err)
{
    int rc = hd_exec_bind(e, call, err);
    if (!rc) rc = finish_before(e, call->segment, err);
    if (rc) return rc;
    e->comm_rc = 0;
    e->stopped = atomic_load(&e->abort);
    if (e->notes) hd_exec_note_call(e, call);
    if (!e->stopped) hd_exec_run_team(e);
    if (e->comm_rc) {
        atomic_store(&e->abort, false);
        return hd_fail(err, e->comm_rc, "%s", e->comm_err.message);
    }
    if (!e->stopped) return is_once(e, call->segment) ? hd_exec_finish_sends(e, call->segment, err) : 0;
    atomic_store(&e->abort, false);
    return hd_fail(err, HD_EINTR, "stopped");
}

int hd_exec_step(hd_exec *e, const hd_exec_hooks *hooks, hd_error *err)
{
    hd_call_iter it = hd_program_calls(e->program);
    hd_call call;
    double begin = e->notes ? hd_time() : 0;
    while (hd_call_next(&it, &call)) {
        hd_segment_kind kind = e->program->segments[call.segment].kind;
        e->micro = call.micro;
        int rc = hooks && hooks->before ? hooks->before(hooks->arg, e, kind, &call, err) : 0;
        if (!rc) rc = hd_exec_call(e, &call, err);
        if (!rc && hooks && hooks->after) rc = hooks->after(hooks->arg, e, kind, &call, err);
        if (rc) return rc;
    }
    int rc = hd_exec_finish_all_sends(e, err);
    if (e->notes && !rc) hd_exec_note_step(e, begin, hd_time());
    return rc;
}

void hd_exec_abort(hd_exec *e)
{
    atomic_store(&e->abort, true);
}
