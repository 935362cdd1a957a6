/* live.c: how much memory holds something at each moment. A root comes to be with the first instruction that touches it and goes with the last, once in every
 * micro-batch, or once in the step where an end lies outside the loop. The arena as placed is at least the most of this: what has gone leaves a hole. */
#include <stdlib.h>

#include "sim/sim_int.h"

typedef struct ends { int first, last; bool first_once, last_once; } ends; /* numbers through all segments; not in every micro-batch */

typedef struct sim_live {
    int64_t always, now, shown;  /* the Store, inputs and outputs; at this moment; as last said */
    int *base;                   /* [segments] number of the first instruction */
    int *born, *born_at;         /* roots by their first instruction; [instructions + 1] where each one's begin */
    int *gone, *gone_at;         /* the same by their last */
    bool *once;                  /* [buffers] not in every micro-batch */
    bool *late;                  /* [buffers] begins before the loop and ends in it */
    bool *here;                  /* [buffers] of those: it is there */
} sim_live;

static bool is_once(const hd_program *p, int segment, const hd_instr *x)
{
    hd_segment_kind k = p->segments[segment].kind;
    return x->last || k == HD_SEGMENT_PREPARE || k == HD_SEGMENT_UPDATE;
}

static void touch(const hd_program *p, ends *e, const int *buffers, int n, int at, bool once)
{
    for (int i = 0; i < n; i++) {
        if (buffers[i] < 0) continue;
        ends *x = &e[hd_buffer_root(p, buffers[i])];
        if (x->last < 0) x->first = at, x->first_once = once;
        x->last = at, x->last_once = once;
    }
}

static int find_ends(const hd_program *p, ends *e, int *base)
{
    int at = 0;
    for (int b = 0; b < p->n_buffers; b++) e[b].last = -1;
    for (int s = 0; s < p->n_segments; s++) {
        hd_instr_iter it = hd_segment_instrs(p, s);
        base[s] = at;
        for (const hd_instr *x; (x = hd_instr_next(&it)); at++) {
            if (x->opcode == HD_VIEW) continue;
            bool once = is_once(p, s, x);
            touch(p, e, x->in, x->n_in, at, once);
            touch(p, e, x->out, x->n_out, at, once);
            touch(p, e, &x->workspace, 1, at, once);
        }
    }
    return at;
}

static bool is_constant(const hd_program *p, int b)
{
    hd_buffer_class c = p->buffers[b].class;
    return !hd_buffer_in_arena(p, b) || c == HD_BUFFER_INPUT || c == HD_BUFFER_OUTPUT;
}

static void sort_ends(const hd_program *p, sim_live *l, const ends *e, int instrs)
{
    for (int b = 0; b < p->n_buffers; b++) {
        if (p->buffers[b].view_of >= 0) continue;
        if (is_constant(p, b)) l->always += p->buffers[b].bytes * p->buffers[b].copies;
        if (is_constant(p, b) || e[b].last < 0) continue;
        l->once[b] = e[b].first_once || e[b].last_once;
        l->late[b] = e[b].first_once && !e[b].last_once;
        l->born_at[e[b].first + 1]++;
        l->gone_at[e[b].last + 1]++;
    }
    for (int i = 0; i < instrs; i++) l->born_at[i + 1] += l->born_at[i], l->gone_at[i + 1] += l->gone_at[i];
}

static int fill_lists(const hd_program *p, sim_live *l, const ends *e, int instrs)
{
    int *next = hd_calloc(2 * (size_t)instrs + 2, sizeof *next), *next_gone = next + instrs + 1;
    for (int i = 0; next && i < instrs; i++) next[i] = l->born_at[i], next_gone[i] = l->gone_at[i];
    for (int b = 0; next && b < p->n_buffers; b++) {
        if (p->buffers[b].view_of >= 0 || is_constant(p, b) || e[b].last < 0) continue;
        l->born[next[e[b].first]++] = b;
        l->gone[next_gone[e[b].last]++] = b;
    }
    hd_free(next);
    return next ? 0 : HD_ENOMEM;
}

int sim_live_init(sim *s, sim_actor *a)
{
    const hd_program *p = a->program;
    size_t buffers = (size_t)p->n_buffers + 1, instrs = 1;
    for (int i = 0; i < p->n_segments; i++) instrs += (size_t)p->segments[i].n_instrs;
    sim_live *l = a->live = hd_arena_alloc(&s->memory, sizeof *l);
    ends *e = hd_calloc(buffers, sizeof *e);
    bool failed = !l || !e;
    if (!failed) {
        l->base = hd_arena_alloc(&s->memory, ((size_t)p->n_segments + 1) * sizeof *l->base);
        int **const lists[] = {&l->born, &l->gone};
        for (int i = 0; i < 2; i++) failed |= !(*lists[i] = hd_arena_alloc(&s->memory, buffers * sizeof(int)));
        int **const starts[] = {&l->born_at, &l->gone_at};
        for (int i = 0; i < 2; i++) failed |= !(*starts[i] = hd_arena_alloc(&s->memory, (instrs + 1) * sizeof(int)));
        bool **const flags[] = {&l->once, &l->late, &l->here};
        for (int i = 0; i < 3; i++) failed |= !(*flags[i] = hd_arena_alloc(&s->memory, buffers));
        failed |= !l->base;
    }
    if (!failed) {
        int n = find_ends(p, e, l->base);
        sort_ends(p, l, e, n);
        failed = fill_lists(p, l, e, n) != 0;
    }
    hd_free(e);
    return failed ? sim_no_memory(s) : 0;
}

void sim_live_restart(sim_actor *a)
{
    sim_live *l = a->live;
    l->now = l->always;
    l->shown = -1;
    for (int b = 0; b < a->program->n_buffers; b++) l->here[b] = false;
}

static int show(sim *s, const sim_actor *a)
{
    sim_live *l = a->live;
    if (l->now == l->shown) return 1;
    l->shown = l->now;
    int rc = hd_trace_add_memory(s->options->trace, &(hd_memory_sample){a->rank, s->offset + a->time, l->now}, s->err);
    return rc ? rc : 1;
}

int sim_live_before(sim *s, sim_actor *a, int instr)
{
    sim_live *l = a->live;
    int at = l->base[a->call.segment] + instr;
    for (int i = l->born_at[at]; i < l->born_at[at + 1]; i++) {
        int b = l->born[i];
        if (l->once[b] && l->here[b]) continue;
        l->here[b] = true;
        l->now += a->program->buffers[b].bytes;
    }
    return show(s, a);
}

int sim_live_after(sim *s, sim_actor *a, int instr)
{
    sim_live *l = a->live;
    int at = l->base[a->call.segment] + instr;
    for (int i = l->gone_at[at]; i < l->gone_at[at + 1]; i++) {
        int b = l->gone[i];
        if (l->late[b] && a->call.micro < a->micro_batches - 1) continue;
        l->here[b] = false;
        l->now -= a->program->buffers[b].bytes;
    }
    return show(s, a);
}
