/* live.c: what is live in memory while a step goes on: the lives of single copies, where placement (hd_program_lives) keeps room for all
 * of them. */
#include <string.h>

#include "program/program.h"

/* From where to where a root is used, in the order of segments. */
typedef struct use { int first_segment, first, last_segment, last; bool accumulated; } use;

/* How the bytes that are live change over one call of a segment. */
typedef struct change { int64_t *at; } change; /* [n_instrs + 1] before each instruction; behind the last */

enum { EACH, FIRST, LAST, WHEN }; /* in each call of the segment, in a step's first, in its last */

typedef struct walk {
    const hd_program *p;
    use *uses;                     /* [n_buffers] */
    change (*changes)[WHEN];       /* [n_segments] */
    int *first_micro, *last_micro; /* [n_segments] of a step's first call and last; -1: none */
    int64_t always;                /* live all the time */
    hd_arena memory;
} walk;

/* ---- uses ---- */

static void touch(walk *w, int buffer, int segment, int instr, bool accumulated)
{
    if (buffer < 0) return;
    use *u = &w->uses[hd_buffer_root(w->p, buffer)];
    if (u->first_segment < 0) u->first_segment = segment, u->first = instr;
    u->last_segment = segment;
    u->last = instr;
    u->accumulated |= accumulated;
}

static void touch_instr(walk *w, const hd_instr *x, int segment, int instr)
{
    bool adds = x->accumulate == HD_ACCUMULATE_LATER;
    for (int i = 0; i < x->n_in; i++) touch(w, x->in[i], segment, instr, false);
    for (int i = 0; i < x->n_out; i++) touch(w, x->out[i], segment, instr, adds);
    touch(w, x->workspace, segment, instr, false);
}

/* [token] the transfers that signal them */
static const hd_instr **find_transfers(walk *w)
{
    const hd_instr **list = hd_arena_alloc(&w->memory, ((size_t)hd_program_tokens(w->p) + 1) * sizeof *list);
    for (int s = 0; list && s < w->p->n_segments; s++)
        for (int i = 0; i < w->p->segments[s].n_instrs; i++)
            if (w->p->segments[s].instrs[i].signal >= 0) list[w->p->segments[s].instrs[i].signal] = &w->p->segments[s].instrs[i];
    return list;
}

/* What is under way is in use until somebody has waited for it. */
static int find_uses(walk *w, hd_error *err)
{
    const hd_program *p = w->p;
    const hd_instr **transfers = find_transfers(w);
    w->uses = hd_arena_alloc(&w->memory, ((size_t)p->n_buffers + 1) * sizeof *w->uses);
    if (!transfers || !w->uses) return hd_fail_memory(err, (size_t)p->n_buffers * sizeof *w->uses, "memory over time");
    for (int b = 0; b < p->n_buffers; b++) w->uses[b].first_segment = -1;
    for (int s = 0; s < p->n_segments; s++) {
        for (int i = 0; i < p->segments[s].n_instrs; i++) {
            const hd_instr *x = &p->segments[s].instrs[i];
            for (int k = 0; k < x->n_waits; k++)
                if (transfers[x->waits[k]]) touch_instr(w, transfers[x->waits[k]], s, i);
            if (x->opcode != HD_VIEW) touch_instr(w, x, s, i);
        }
    }
    return 0;
}

/* ---- changes ---- */

static bool is_once(const hd_program *p, int segment)
{
    hd_segment_kind k = p->segments[segment].kind;
    return k == HD_SEGMENT_PREPARE || k == HD_SEGMENT_UPDATE;
}

static int make_changes(walk *w, hd_error *err)
{
    const hd_program *p = w->p;
    w->changes = hd_arena_alloc(&w->memory, ((size_t)p->n_segments + 1) * sizeof *w->changes);
    w->first_micro = hd_arena_alloc(&w->memory, ((size_t)p->n_segments + 1) * sizeof *w->first_micro);
    w->last_micro = hd_arena_alloc(&w->memory, ((size_t)p->n_segments + 1) * sizeof *w->last_micro);
    bool failed = !w->changes || !w->first_micro || !w->last_micro;
    for (int s = 0; s < p->n_segments && !failed; s++) {
        for (int k = 0; k < WHEN; k++) {
            w->changes[s][k].at = hd_arena_alloc(&w->memory, ((size_t)p->segments[s].n_instrs + 1) * sizeof(int64_t));
            failed |= !w->changes[s][k].at;
        }
        w->first_micro[s] = w->last_micro[s] = -1;
    }
    hd_call_iter it = hd_program_calls(p);
    for (hd_call c; !failed && hd_call_next(&it, &c);) {
        if (w->first_micro[c.segment] < 0) w->first_micro[c.segment] = c.micro;
        w->last_micro[c.segment] = c.micro;
    }
    return failed ? hd_fail_memory(err, (size_t)p->n_segments * sizeof *w->changes, "memory over time") : 0;
}

static void count_buffer(walk *w, int b)
{
    const hd_program *p = w->p;
    const hd_buffer *x = &p->buffers[b];
    const use *u = &w->uses[b];
    if (x->class == HD_BUFFER_INPUT || x->class == HD_BUFFER_OUTPUT) {
        w->always += x->bytes * x->copies;
        return;
    }
    if (u->first_segment < 0) return;
    bool once = u->accumulated || is_once(p, u->first_segment) || is_once(p, u->last_segment);
    w->changes[u->first_segment][once ? FIRST : EACH].at[u->first] += x->bytes;
    w->changes[u->last_segment][once ? LAST : EACH].at[u->last + 1] -= x->bytes;
}

static int sum_changes(walk *w, hd_error *err)
{
    hd_memory total;
    for (int b = 0; b < w->p->n_buffers; b++)
        if (hd_buffer_in_arena(w->p, b)) count_buffer(w, b);
    int rc = hd_program_memory(w->p, &total, err);
    w->always += rc ? 0 : total.store;
    return rc;
}

/* ---- calls ---- */

static int find_segment(const hd_program *p, const hd_trace_call *c)
{
    for (int s = 0; s < p->n_segments; s++)
        if (p->segments[s].chunk == c->chunk && !strcmp(hd_segment_name(p->segments[s].kind), c->segment)) return s;
    return -1;
}

typedef struct call_walk { const walk *w; int segment; bool when[WHEN]; int next; int64_t live; } call_walk;

/* Goes on to behind the change before instruction `instr`; the most on the way. */
static int64_t walk_to(call_walk *c, int instr)
{
    int64_t most = c->live;
    for (; c->next <= instr; c->next++) {
        for (int k = 0; k < WHEN; k++)
            if (c->when[k]) c->live += c->w->changes[c->segment][k].at[c->next];
        if (c->live > most) most = c->live;
    }
    return most;
}

/* The samples of one call, whose events of stream 0 begin at *event of the trace. */
static int sample_call(call_walk *c, const hd_trace_call *call, int rank, int64_t *event, hd_trace *t, hd_error *err)
{
    int rc = 0;
    int64_t left = call->events, before = -1;
    for (; left && !rc && *event < t->n_events; ++*event) {
        const hd_trace_event e = t->events[*event];
        if (e.rank != rank || e.stream) continue;
        left--;
        walk_to(c, e.instr);
        if (c->live != before) rc = hd_trace_add_memory(t, &(hd_memory_sample){rank, e.start, c->live}, err);
        before = c->live;
    }
    return rc;
}

static int walk_calls(const walk *w, int rank, hd_trace *t, hd_error *err)
{
    int64_t live = w->always, event = 0;
    int rc = 0;
    for (int64_t i = 0; i < t->n_calls && !rc; i++) {
        const hd_trace_call call = t->calls[i];
        int s = call.rank == rank ? find_segment(w->p, &call) : -1;
        if (s < 0) continue;
        call_walk c = {.w = w, .segment = s, .live = live, .when = {true, call.micro == w->first_micro[s], call.micro == w->last_micro[s]}};
        if (t->by_call) t->calls[i].bytes = walk_to(&c, w->p->segments[s].n_instrs);
        else rc = sample_call(&c, &call, rank, &event, t, err);
        walk_to(&c, w->p->segments[s].n_instrs);
        live = c.live;
        if (!rc && !t->by_call) rc = hd_trace_add_memory(t, &(hd_memory_sample){rank, call.end, live}, err);
    }
    return rc;
}

int hd_program_trace_memory(const hd_program *p, int rank, hd_trace *t, hd_error *err)
{
    walk w = {.p = p};
    int rc = find_uses(&w, err);
    if (!rc) rc = make_changes(&w, err);
    if (!rc) rc = sum_changes(&w, err);
    if (!rc) rc = walk_calls(&w, rank, t, err);
    hd_arena_free(&w.memory);
    return rc;
}
