/* trace.c: keeping what happens while a program runs, and making a trace of it. */
#include "base/term.h"
#include "exec/exec_int.h"

_Static_assert(HD_TRACE_SYMBOLS >= HD_MAX_SYMBOLS, "a call of a trace holds all bindings");

/* ---- keeping ---- */

void hd_exec_free_notes(hd_exec *e)
{
    for (int i = 0; i < e->n_tokens && e->tokens; i++) e->tokens[i].note = -1;
    if (!e->notes) return;
    hd_free(e->notes->events);
    hd_free(e->notes->calls);
    hd_free(e->notes);
    e->notes = NULL;
}

int hd_exec_trace(hd_exec *e, int steps, hd_error *err)
{
    hd_exec_free_notes(e);
    if (steps <= 0) return 0;
    hd_notes *n = hd_calloc(1, sizeof *n);
    if (!n) return hd_fail_memory(err, sizeof *n, "a trace");
    n->most_steps = steps;
    n->room = hd_program_events(e->program) * steps;
    n->calls_room = e->program->n_calls * steps;
    n->events = hd_calloc((size_t)n->room + 1, sizeof *n->events);
    n->calls = hd_calloc((size_t)n->calls_room + 1, sizeof *n->calls);
    e->notes = n;
    if (n->events && n->calls) return 0;
    int rc = hd_fail_memory(err, (size_t)n->room * sizeof *n->events, "a trace");
    hd_exec_free_notes(e);
    return rc;
}

void hd_exec_note_call(hd_exec *e, const hd_call *c)
{
    hd_notes *n = e->notes;
    if (n->n_calls >= n->calls_room) {
        n->n_calls = n->calls_room + 1; /* behind the last step: nothing of it is kept */
        return;
    }
    hd_call_note *to = &n->calls[n->n_calls++];
    *to = (hd_call_note){.segment = c->segment, .micro = c->micro, .slice = c->slice};
    memcpy(to->binding, c->binding, sizeof to->binding);
}

int64_t hd_exec_note(hd_exec *e, int instr, bool wait, double start, double end)
{
    hd_notes *n = e->notes;
    if (n->n >= n->room || n->n_calls > n->calls_room || e->only >= 0) return -1;
    n->events[n->n] = (hd_note){n->n_calls - 1, instr, wait, start, end};
    return n->n++;
}

void hd_exec_note_step(hd_exec *e, double begin, double end)
{
    hd_notes *n = e->notes;
    if (n->steps == n->most_steps) return;
    if (!n->steps) n->begin = begin;
    n->end = end;
    n->steps++;
}

/* ---- taking ---- */

bool hd_exec_trace_full(const hd_exec *e)
{
    return e->notes && e->notes->steps == e->notes->most_steps;
}

double hd_exec_trace_begin(const hd_exec *e)
{
    return e->notes ? e->notes->begin : 0;
}

/* The step of an instruction that is no VIEW. */
static const hd_step *find_step(const hd_exec *e, int segment, int instr)
{
    const hd_steps *s = &e->segments[segment];
    int lo = 0, hi = s->n - 1;
    while (lo < hi) {
        int mid = (lo + hi) / 2;
        if (s->steps[mid].index < instr) lo = mid + 1;
        else hi = mid;
    }
    return &s->steps[lo];
}

static int64_t piece_bytes(const hd_exec *e, int b, const int64_t *binding)
{
    hd_tensor t = b < 0 ? (hd_tensor){0} : hd_buffer_piece(e->program, b, e->place, binding);
    return b < 0 ? 0 : (int64_t)hd_tensor_bytes(&t);
}

/* Of a send or recv what its messages hold; of a collective the larger side, of a list that of each member. */
static int64_t moved_bytes(const hd_exec *e, const hd_step *s, const int64_t *binding)
{
    const hd_instr *x = s->instr;
    int64_t sum = 0;
    if (x->opcode != HD_COMM || x->op->sends_nothing) return 0;
    for (int i = 0; i < s->n_messages; i++) sum += s->messages[i].transfer.count * (int64_t)hd_dtype_size(s->messages[i].transfer.dtype);
    if (hd_instr_event_kind(e->program, x) == HD_EVENT_PIPELINE_COMM) return sum;
    for (int k = 0; k < x->n_in || k < x->n_out; k++) {
        int64_t in = k < x->n_in ? piece_bytes(e, x->in[k], binding) : 0, out = k < x->n_out ? piece_bytes(e, x->out[k], binding) : 0;
        sum += in > out ? in : out;
    }
    return sum;
}

static hd_trace_event make_event(const hd_exec *e, const hd_note *n, double zero)
{
    const hd_call_note *c = &e->notes->calls[n->call];
    const hd_segment *s = &e->program->segments[c->segment];
    const hd_instr *x = &s->instrs[n->instr];
    bool beside = x->stream == 1 && !n->wait;
    return (hd_trace_event){.rank = e->rank.rank, .stream = beside, .kind = n->wait ? HD_EVENT_WAIT : hd_instr_event_kind(e->program, x),
                            .name = n->wait ? "wait" : hd_instr_name(x), .path = x->path, .segment = hd_segment_name(s->kind),
                                .chunk = s->chunk,
                            .micro = c->micro, .slice = c->slice, .instr = n->instr, .start = n->start - zero, .end = n->end - zero,
                            .bytes = n->wait ? 0 : moved_bytes(e, find_step(e, c->segment, n->instr), c->binding)};
}

int hd_exec_trace_take(hd_exec *e, double zero, hd_trace *t, hd_error *err)
{
    hd_notes *n = e->notes;
    int rc = 0;
    if (!n) return 0;
    for (int64_t i = 0; i < n->n && !rc; i++) {
        hd_trace_event event = make_event(e, &n->events[i], zero);
        rc = hd_trace_add(t, &event, err);
        int64_t call = rc || event.rank >= t->latest_room ? -1 : t->latest[event.rank];
        if (call >= 0) memcpy(t->calls[call].binding, n->calls[n->events[i].call].binding, sizeof n->calls->binding);
    }
    if (n->steps > t->steps) t->steps = n->steps;
    if (n->end - zero > t->seconds) t->seconds = n->end - zero;
    hd_exec_free_notes(e);
    return rc;
}
