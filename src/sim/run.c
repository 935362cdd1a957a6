/* run.c: going through the step, as the executor does (src/exec/run.c, transfer.c).
 *
 * An actor goes on until it must wait for what another has not come to yet; whoever makes that happen wakes it. Transfers:
 *  - A collective begins when all have come to it (those beside computing: and when each one's last such transfer has ended, they go one after the other).
 *  - A message begins when it is sent and wanted; the sender waits for its end before its segment's next call, around prepare and update, and at the end.
 *    GPUs' libraries send from a stream of their own, out of buffers that live until then: there the next call is not held up.
 *  - Where a CPU's cores move the bytes, computing beside a transfer is slower, and the transfer too, until somebody waits for it (hd_level).
 *  - Between threads of one process whoever waits does the work (src/comm/local.c): a transfer beside computing begins when all wait for it, and a send takes
 *    as long as copying, into the receiver if that waits already, else aside, from where the receiver copies it again. */
#include <math.h>
#include <string.h>

#include "sim/sim_int.h"

/* ---- events and time ---- */

static int add_event(sim *s, const sim_actor *a, const sim_step *t, bool wait, double start, double end)
{
    if (!s->options->trace) return 0;
    const hd_segment *g = &a->program->segments[a->call.segment];
    hd_trace_event e = {.rank = a->rank, .stream = t->instr->signal >= 0 && !wait, .kind = wait ? HD_EVENT_WAIT : t->event, .name = wait ? "wait" : hd_instr_name(t->instr),
                        .path = t->instr->path, .segment = hd_segment_name(g->kind), .chunk = g->chunk, .micro = a->call.micro, .slice = a->call.slice,
                        .instr = t->index, .start = s->offset + start, .end = s->offset + end, .bytes = wait ? 0 : t->bytes};
    return hd_trace_add(s->options->trace, &e, s->err);
}

static void spend(sim_actor *a, hd_sim_part part, double seconds)
{
    if (!(seconds > 0)) return;
    a->out.part[part] += seconds;
    a->time += seconds;
}

/* Goes on at `end` of what began at `begin`: until then it waits for others, which counts to `waiting`. */
static void spend_until(sim_actor *a, double begin, double end, hd_sim_part waiting, hd_sim_part part)
{
    spend(a, waiting, begin - a->time);
    if (!(end > a->time)) return;
    a->out.part[part] += end - a->time;
    a->time = end;
}

/* Of a transfer from begin to end, what lies before the rank wanted it to have ended. */
static void count_hidden(sim_actor *a, double begin, double end)
{
    double exposed = fmax(0, fmin(end - begin, end - a->time));
    a->out.hidden += end - begin - exposed;
}

static void count_bytes(sim_actor *a, const hd_move_cost *m)
{
    for (int l = 0; m && l < HD_MAX_LEVELS; l++) a->out.bytes[l] += m->bytes[l];
}

static void wake(sim *s, int actor)
{
    if (s->actors[actor].ready) return;
    s->actors[actor].ready = true;
    s->ready[s->n_ready++] = actor;
}

/* ---- meetings ---- */

static int widen(sim *s, void *ring, size_t *cap, size_t size, int64_t first, int64_t last)
{
    char **data = ring;
    size_t room = *cap ? *cap * 2 : 4;
    char *wider = hd_calloc(room, size);
    if (!wider) return sim_no_memory(s);
    for (int64_t i = first; i < last; i++) memcpy(wider + (size_t)i % room * size, *data + (size_t)i % *cap * size, size);
    hd_free(*data);
    *data = wider;
    *cap = room;
    return 0;
}

static sim_instance *instance_of(sim_meeting *m, int64_t number) { return &m->ring[(size_t)number % m->cap]; }

/* The number of the actor's next instance there, which comes to be if it is the first. Negative: out of memory. */
static int64_t join(sim *s, const sim_step *t)
{
    sim_meeting *m = &s->meetings[t->place];
    int64_t number = m->joined[t->member]++;
    if (number < m->last) return number;
    if ((size_t)(m->last - m->first) >= m->cap) {
        int rc = widen(s, &m->ring, &m->cap, sizeof *m->ring, m->first, m->last);
        if (rc) return rc;
    }
    m->last = number + 1;
    *instance_of(m, number) = (sim_instance){0};
    return number;
}

static void leave(sim_meeting *m, int64_t number)
{
    instance_of(m, number)->left++;
    while (m->first < m->last && instance_of(m, m->first)->left == m->n) m->first++;
}

static void resolve(sim *s, sim_meeting *m, sim_instance *i, double begin)
{
    i->begin = begin;
    i->end = begin + i->seconds;
    i->resolved = true;
    for (int k = 0; k < m->n; k++) wake(s, m->actor[k]);
}

static double drag_of(const sim_step *t) { return t->move ? t->move->drag : 0; }

static const sim_queued *queue_head(const sim_actor *a) { return a->head < a->n_queue ? &a->queue[a->head] : NULL; }

/* Whether all have come to the instance at the head of the actor's queue, and it is at the head of everyone's. */
static bool may_settle(const sim *s, const sim_actor *a, double *begin)
{
    const sim_queued *q = queue_head(a);
    if (!q) return false;
    const sim_meeting *m = &s->meetings[q->meeting];
    const sim_instance *i = instance_of(&s->meetings[q->meeting], q->number);
    *begin = i->latest;
    if (i->arrived < m->n) return false;
    for (int k = 0; k < m->n; k++) {
        const sim_actor *b = &s->actors[m->actor[k]];
        const sim_queued *r = queue_head(b);
        if (!r || r->meeting != q->meeting || r->number != q->number) return false;
        *begin = fmax(*begin, b->beside);
    }
    return true;
}

static void look_at_queue(sim *s, int actor)
{
    if (s->actors[actor].moved) return;
    s->actors[actor].moved = true;
    s->moved[s->n_moved++] = actor;
}

/* Transfers beside computing go off, and those behind them, as far as they can. */
static void settle(sim *s, int meeting)
{
    for (int k = 0; k < s->meetings[meeting].n; k++) look_at_queue(s, s->meetings[meeting].actor[k]);
    while (s->n_moved) {
        double begin;
        sim_actor *a = &s->actors[s->moved[--s->n_moved]];
        a->moved = false;
        if (!may_settle(s, a, &begin)) continue;
        sim_queued q = *queue_head(a);
        sim_meeting *m = &s->meetings[q.meeting];
        sim_instance *i = instance_of(m, q.number);
        resolve(s, m, i, begin);
        for (int k = 0; k < m->n; k++) {
            s->actors[m->actor[k]].beside = i->end;
            s->actors[m->actor[k]].head++;
            look_at_queue(s, m->actor[k]);
        }
    }
}

static void arrive(sim *s, sim_actor *a, const sim_step *t, int64_t number, bool queued)
{
    sim_meeting *m = &s->meetings[t->place];
    sim_instance *i = instance_of(m, number);
    i->arrived++;
    i->latest = fmax(i->latest, a->time);
    i->seconds = fmax(i->seconds, queued ? t->seconds / (1 - drag_of(t)) : t->seconds);
    if (queued) settle(s, t->place);
    else if (i->arrived == m->n) resolve(s, m, i, i->latest);
}

/* Whether all have seen its end. */
static bool is_over(const sim *s, const sim_queued *q) { return q->number < s->meetings[q->meeting].first; }

/* Settled ones stay until they are over: what is known later may still move them. */
static void drop_over(const sim *s, sim_actor *a)
{
    size_t kept = 0, settled = 0;
    for (size_t i = 0; i < a->n_queue; i++) {
        if (i < a->head && is_over(s, &a->queue[i])) continue;
        settled += i < a->head;
        a->queue[kept++] = a->queue[i];
    }
    a->head = settled, a->n_queue = kept;
}

static int enqueue(sim *s, sim_actor *a, int meeting, int64_t number)
{
    if (a->n_queue == a->cap_queue) drop_over(s, a);
    if (hd_grow(&a->queue, &a->cap_queue, a->n_queue + 1, sizeof *a->queue)) return sim_no_memory(s);
    a->queue[a->n_queue++] = (sim_queued){meeting, number};
    return 0;
}

/* ---- collectives ---- */

static int collective(sim *s, sim_actor *a, const sim_step *t)
{
    if (!a->begun) {
        a->number = join(s, t);
        if (a->number < 0) return HD_ENOMEM;
        a->begun = true;
        a->since = a->time;
        arrive(s, a, t, a->number, false);
    }
    sim_meeting *m = &s->meetings[t->place];
    const sim_instance *i = instance_of(m, a->number);
    if (!i->resolved) return 0;
    spend_until(a, i->begin, i->end, t->across ? HD_SIM_BUBBLE : t->part, t->part);
    count_bytes(a, t->move);
    int rc = add_event(s, a, t, false, a->since, a->time);
    leave(m, a->number);
    return rc ? rc : 1;
}

static int start_beside(sim *s, sim_actor *a, const sim_step *t)
{
    sim_token *k = &a->tokens[t->instr->signal];
    int64_t number = join(s, t);
    if (number < 0) return HD_ENOMEM;
    *k = (sim_token){.pending = true, .meeting = t->place, .number = number, .step = t, .event = -1};
    count_bytes(a, t->move);
    hd_trace *trace = s->options->trace;
    int rc = add_event(s, a, t, false, a->time, a->time);
    if (!rc && trace && !trace->by_call) k->event = trace->n_events - 1;
    if (rc || s->in_process) return rc ? rc : 1;
    rc = enqueue(s, a, t->place, number);
    if (!rc) arrive(s, a, t, number, true);
    return rc ? rc : 1;
}

/* What lies beside computing from `from` on, when at `from` the rank begins to wait for what would end at `to`: until then it goes `quicker` times as fast. */
static double hurried_time(double t, double from, double to, double quicker)
{
    if (t <= from) return t;
    return t <= to ? from + (t - from) / quicker : t - (to - from) * (1 - 1 / quicker);
}

/* The actor stands before a transfer that was to go on beside computing: it, and those before it, need no longer share the cores. */
static void hurry(sim *s, const sim_actor *a, const sim_token *k)
{
    double quicker = 1 / (1 - drag_of(k->step));
    sim_meeting *m = &s->meetings[k->meeting];
    sim_instance *i = instance_of(m, k->number);
    double from = a->time, to = i->end;
    if (quicker <= 1 || i->hurried || to <= from) return;
    for (size_t q = 0; q < a->head; q++) {
        if (is_over(s, &a->queue[q])) continue;
        sim_instance *o = instance_of(&s->meetings[a->queue[q].meeting], a->queue[q].number);
        if (o->end <= from) continue;
        o->hurried |= o->end <= to;
        o->begin = hurried_time(o->begin, from, to, quicker);
        o->end = hurried_time(o->end, from, to, quicker);
    }
    for (int j = 0; j < m->n; j++) {
        sim_actor *b = &s->actors[m->actor[j]];
        b->beside = hurried_time(b->beside, from, to, quicker);
    }
}

/* Seconds that computing since the transfer's begin takes longer for having had it beside, charged when it is waited for. */
static double lost_beside(const sim_actor *a, const sim_step *t, const sim_instance *i)
{
    double share = t->move ? t->move->contention : 0, computing = fmax(0, a->time - i->begin);
    return fmin(share * (i->end - i->begin), share / (1 - share) * computing);
}

/* Computing that lost so much to a transfer came later to those that it began after it. */
static void delay_later(sim *s, const sim_actor *a, const sim_token *k, double lost)
{
    sim_meeting *m = &s->meetings[k->meeting];
    sim_instance *i = instance_of(m, k->number);
    double end = i->end;
    bool later = false;
    if (i->charged || !(lost > 0)) return;
    i->charged = true;
    for (size_t q = 0; q < a->head; q++) {
        if (is_over(s, &a->queue[q])) continue;
        sim_instance *o = instance_of(&s->meetings[a->queue[q].meeting], a->queue[q].number);
        if (later) {
            o->latest += lost;
            double shift = fmax(0, fmax(o->latest, end) - o->begin);
            o->begin += shift, o->end += shift;
            end = o->end;
        }
        later |= o == i;
    }
    for (int j = 0; j < m->n; j++) s->actors[m->actor[j]].beside = fmax(s->actors[m->actor[j]].beside, end);
}

/* 1: it has come, 0: not yet. */
static int wait_token(sim *s, sim_actor *a, sim_token *k)
{
    sim_meeting *m = &s->meetings[k->meeting];
    if (s->in_process && !k->waiting) arrive(s, a, k->step, k->number, false);
    k->waiting = true;
    const sim_instance *i = instance_of(m, k->number);
    if (!i->resolved) return 0;
    double lost = lost_beside(a, k->step, i);
    delay_later(s, a, k, lost);
    spend(a, k->step->part, lost);
    hurry(s, a, k);
    count_hidden(a, i->begin, i->end);
    spend_until(a, i->begin, i->end, k->step->across ? HD_SIM_BUBBLE : k->step->part, k->step->part);
    if (k->event >= 0) s->options->trace->events[k->event].end = s->offset + i->end;
    leave(m, k->number);
    k->pending = false;
    return 1;
}

static int wait_tokens(sim *s, sim_actor *a, const sim_step *t)
{
    const hd_instr *x = t->instr;
    if (a->awaited) return 1;
    if (!a->waiting) a->since = a->time;
    for (int i = 0; i < x->n_waits; i++) {
        sim_token *k = &a->tokens[x->waits[i]];
        if (!k->pending) continue;
        a->waiting = true;
        if (!wait_token(s, a, k)) return 0;
    }
    int rc = a->waiting || x->opcode == HD_WAIT ? add_event(s, a, t, true, a->since, a->time) : 0;
    a->waiting = false;
    a->awaited = true;
    return rc ? rc : 1;
}

/* ---- messages ---- */

static sim_message *message_of(sim_channel *c, int64_t number) { return &c->ring[(size_t)number % c->cap]; }

static int reach_message(sim *s, sim_channel *c, int64_t number)
{
    if (number < c->last) return 0;
    if ((size_t)(c->last - c->first) >= c->cap && widen(s, &c->ring, &c->cap, sizeof *c->ring, c->first, c->last)) return HD_ENOMEM;
    c->last = number + 1;
    *message_of(c, number) = (sim_message){0};
    return 0;
}

static void leave_message(sim_channel *c, int64_t number)
{
    message_of(c, number)->left++;
    while (c->first < c->last && message_of(c, c->first)->left == 2) c->first++;
}

static void meet_message(sim *s, sim_channel *c, sim_message *m)
{
    if (!m->sent || !m->wanted) return;
    bool late = m->wanted_at > m->sent_at;
    m->begin = fmax(m->sent_at, m->wanted_at);
    m->end = m->begin + m->seconds;
    if (s->in_process && late) m->end = fmax(m->wanted_at, m->sent_at + m->seconds) + m->seconds;
    m->resolved = true;
    wake(s, c->sender);
    wake(s, c->receiver);
}

static int post(sim *s, sim_actor *a, const sim_step *t, int channel)
{
    sim_channel *c = &s->channels[channel];
    int64_t number = c->sent++;
    if (reach_message(s, c, number)) return HD_ENOMEM;
    sim_message *m = message_of(c, number);
    m->sent = true;
    m->sent_at = a->time;
    m->seconds = fmax(m->seconds, t->seconds);
    meet_message(s, c, m);
    if (s->in_process) {
        leave_message(c, number);
        return 0;
    }
    if (hd_grow(&a->sends, &a->cap_sends, a->n_sends + 1, sizeof *a->sends)) return sim_no_memory(s);
    a->sends[a->n_sends++] = (sim_pending){channel, a->call.segment, a->n_sent, number};
    return 0;
}

static int send(sim *s, sim_actor *a, const sim_step *t)
{
    double start = a->time;
    int rc = 0;
    a->n_sent++;
    for (int i = 0; i < t->n_channels && !rc; i++) rc = post(s, a, t, t->channels[i]);
    count_bytes(a, t->move);
    if (s->in_process) spend(a, t->part, t->seconds);
    if (!rc) rc = add_event(s, a, t, false, start, a->time);
    return rc ? rc : 1;
}

static int want(sim *s, sim_actor *a, const sim_step *t, int channel)
{
    sim_channel *c = &s->channels[channel];
    if (reach_message(s, c, c->received)) return HD_ENOMEM;
    sim_message *m = message_of(c, c->received);
    m->wanted = true;
    m->wanted_at = a->time;
    m->seconds = fmax(m->seconds, t->seconds);
    meet_message(s, c, m);
    return 0;
}

static int receive(sim *s, sim_actor *a, const sim_step *t)
{
    double begin = 0, end = 0;
    for (int i = 0; i < t->n_channels && !a->begun; i++) {
        int rc = want(s, a, t, t->channels[i]);
        if (rc) return rc;
    }
    if (!a->begun) a->since = a->time;
    a->begun = true;
    for (int i = 0; i < t->n_channels; i++) {
        sim_channel *c = &s->channels[t->channels[i]];
        const sim_message *m = message_of(c, c->received);
        if (!m->resolved) return 0;
        begin = fmax(begin, m->begin);
        end = fmax(end, m->end);
    }
    for (int i = 0; i < t->n_channels; i++) leave_message(&s->channels[t->channels[i]], s->channels[t->channels[i]].received++);
    spend_until(a, begin, end, HD_SIM_BUBBLE, t->part);
    int rc = add_event(s, a, t, false, a->since, a->time);
    return rc ? rc : 1;
}

/* From the first beginning to the last end of messages first .. end-1 of one instruction. False: not all have been taken. */
static bool span_of(const sim *s, const sim_actor *a, size_t first, size_t end, double *from, double *begin, double *last)
{
    *from = INFINITY;
    *begin = *last = 0;
    for (size_t i = first; i < end; i++) {
        sim_channel *c = &s->channels[a->sends[i].channel];
        const sim_message *m = message_of(c, a->sends[i].number);
        if (!m->resolved) return false;
        *from = fmin(*from, m->begin);
        *begin = fmax(*begin, m->begin);
        *last = fmax(*last, m->end);
    }
    return true;
}

/* Waits for sends of a segment (-1: of all); 0: not all have been taken yet. */
static int finish_sends(sim *s, sim_actor *a, int segment)
{
    size_t kept = 0;
    bool blocked = false;
    for (size_t i = 0, end; i < a->n_sends; i = end) {
        double from, begin, last;
        for (end = i + 1; end < a->n_sends && a->sends[end].instr == a->sends[i].instr;) end++;
        bool wanted = !blocked && (segment < 0 || a->sends[i].segment == segment);
        bool taken = wanted && span_of(s, a, i, end, &from, &begin, &last);
        blocked |= wanted && !taken;
        for (size_t k = i; k < end; k++) {
            if (taken) leave_message(&s->channels[a->sends[k].channel], a->sends[k].number);
            else a->sends[kept++] = a->sends[k];
        }
        if (!taken) continue;
        count_hidden(a, from, last);
        spend_until(a, begin, last, HD_SIM_BUBBLE, HD_SIM_PIPELINE);
    }
    a->n_sends = kept;
    return !blocked;
}

/* ---- instructions and calls ---- */

static int compute(sim *s, sim_actor *a, const sim_step *t)
{
    double start = a->time;
    spend(a, t->part, t->seconds);
    a->out.flops += t->flops;
    a->out.hardware_flops += t->hardware;
    int rc = add_event(s, a, t, false, start, a->time);
    return rc ? rc : 1;
}

static int do_step(sim *s, sim_actor *a, const sim_step *t)
{
    switch (t->verb) {
    case SIM_COMPUTE: return compute(s, a, t);
    case SIM_COLLECTIVE: return t->instr->signal >= 0 ? start_beside(s, a, t) : collective(s, a, t);
    case SIM_SEND: return send(s, a, t);
    case SIM_RECV: return receive(s, a, t);
    case SIM_WAIT: break;
    }
    return 1;
}

static bool is_once(const sim_actor *a, int segment)
{
    hd_segment_kind k = a->program->segments[segment].kind;
    return k == HD_SEGMENT_PREPARE || k == HD_SEGMENT_UPDATE;
}

static int begin_call(sim *s, sim_actor *a)
{
    const hd_program *p = a->program;
    if (a->calls.next >= p->n_calls) {
        if (!finish_sends(s, a, -1)) return 0;
        a->done = true;
        return 0;
    }
    int segment = p->calls[a->calls.next].segment;
    if ((!s->buffered || is_once(a, segment)) && !finish_sends(s, a, is_once(a, segment) ? -1 : segment)) return 0;
    hd_call_next(&a->calls, &a->call);
    a->variant = sim_variant_of(s, a, &a->call);
    a->at = 0;
    a->in_call = true;
    return a->variant ? 1 : s->err->code;
}

static int end_call(sim *s, sim_actor *a)
{
    if (is_once(a, a->call.segment) && !finish_sends(s, a, a->call.segment)) return 0;
    a->in_call = false;
    return 1;
}

/* 1: it got on, 0: it waits, or has done all. */
static int advance(sim *s, sim_actor *a)
{
    if (!a->in_call) return begin_call(s, a);
    if (a->at >= a->variant->n) return end_call(s, a);
    const sim_step *t = &a->variant->steps[a->at];
    int rc = 1;
    if (hd_instr_runs(t->instr, a->call.micro, a->micro_batches)) {
        if (t->instr->n_waits || t->verb == SIM_WAIT) rc = wait_tokens(s, a, t);
        if (rc > 0) rc = do_step(s, a, t);
    }
    if (rc <= 0) return rc;
    a->at++;
    a->awaited = a->begun = false;
    return 1;
}

static int report_stuck(const sim *s)
{
    for (int i = 0; i < s->n_actors; i++) {
        const sim_actor *a = &s->actors[i];
        if (a->done) continue;
        const char *path = a->in_call && a->at < a->variant->n ? a->variant->steps[a->at].instr->path : "the end of a call";
        return hd_fail(s->err, HD_EFORMAT, "rank %d waits for ever at %s in call %d of its step", a->rank, path, a->calls.next - 1);
    }
    return 0;
}

int sim_run_step(sim *s)
{
    s->n_ready = 0;
    for (int i = 0; i < s->n_actors; i++) {
        sim_actor *a = &s->actors[i];
        a->calls = hd_program_calls(a->program);
        a->time = a->beside = 0;
        a->done = a->in_call = a->ready = false;
        a->out = (hd_sim_rank){.rank = a->rank, .alike = a->alike};
    }
    for (int i = s->n_actors; i-- > 0;) wake(s, i);
    while (s->n_ready) {
        sim_actor *a = &s->actors[s->ready[--s->n_ready]];
        int rc;
        while ((rc = advance(s, a)) > 0) {}
        a->ready = false;
        if (rc < 0) return rc;
    }
    return report_stuck(s);
}
