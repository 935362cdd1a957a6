/* lower.c: Graph -> Program, step by step: order.c, group.c, emit.c, share.c, then placement. */
#include <stdlib.h>

#include "program/lower_int.h"

static int no_memory(hd_lowering *l)
{
    return hd_fail_memory(l->err, sizeof(hd_program), "lowering a graph");
}

static int copy_symbols(hd_lowering *l)
{
    hd_program *p = l->p;
    p->n_symbols = l->g->n_symbols;
    for (int i = 0; i < p->n_symbols; i++) {
        p->symbols[i] = l->g->symbols[i];
        p->symbols[i].name = hd_arena_strdup(&p->memory, l->g->symbols[i].name);
        if (!p->symbols[i].name) return no_memory(l);
    }
    return 0;
}

static int compare_drafts(const void *x, const void *y)
{
    const hd_draft *a = x, *b = y;
    if (a->segment != b->segment) return a->segment - b->segment;
    return a->instr.stream - b->instr.stream;
}

/* Stable by segment: `stream` holds the position while sorting. */
static void sort_drafts(hd_lowering *l)
{
    for (size_t i = 0; i < l->n_drafts; i++) l->drafts[i].instr.stream = (int)i;
    if (l->n_drafts) qsort(l->drafts, l->n_drafts, sizeof *l->drafts, compare_drafts);
    for (size_t i = 0; i < l->n_drafts; i++) l->drafts[i].instr.stream = 0;
}

static int make_segments(hd_lowering *l)
{
    hd_program *p = l->p;
    p->segments = hd_arena_alloc(&p->memory, HD_SEGMENT_KINDS * sizeof *p->segments);
    hd_instr *instrs = hd_arena_alloc(&p->memory, (l->n_drafts + 1) * sizeof *instrs);
    if (!p->segments || !instrs) return no_memory(l);
    for (size_t i = 0; i < l->n_drafts; i++) {
        hd_segment *s = p->n_segments ? &p->segments[p->n_segments - 1] : NULL;
        if (!s || (int)s->kind != l->drafts[i].segment) {
            s = &p->segments[p->n_segments++];
            *s = (hd_segment){.kind = (hd_segment_kind)l->drafts[i].segment, .instrs = &instrs[i]};
        }
        instrs[i] = l->drafts[i].instr;
        s->n_instrs++;
    }
    return 0;
}

static void add_call(hd_program *p, hd_segment_kind kind, int micro)
{
    int segment = hd_program_segment(p, kind);
    if (segment < 0) return;
    p->calls[p->n_calls] = hd_program_call(p, segment);
    p->calls[p->n_calls++].micro = micro;
}

static int make_schedule(hd_lowering *l)
{
    hd_program *p = l->p;
    int micro = (int)l->plan->micro_batches;
    p->calls = hd_arena_alloc(&p->memory, (2 * (size_t)micro + 2) * sizeof *p->calls);
    if (!p->calls) return no_memory(l);
    add_call(p, HD_SEGMENT_PREPARE, 0);
    for (int i = 0; i < micro; i++) {
        add_call(p, HD_SEGMENT_FORWARD, i);
        add_call(p, HD_SEGMENT_BACKWARD, i);
    }
    add_call(p, HD_SEGMENT_UPDATE, 0);
    p->repeat_first = p->repeat_last = -1;
    bool inference = !l->has_backward && !l->has_update;
    if (micro == 1 && !inference) return 0;
    int forward = hd_program_segment(p, HD_SEGMENT_FORWARD), backward = hd_program_segment(p, HD_SEGMENT_BACKWARD);
    p->repeat_first = forward >= 0 ? forward : backward;
    p->repeat_last = backward >= 0 ? backward : forward;
    return 0;
}

static int make_outputs(hd_lowering *l)
{
    hd_program *p = l->p;
    const hd_graph *g = l->g;
    p->outputs = hd_arena_alloc(&p->memory, (g->n_outputs + 1) * sizeof *p->outputs);
    if (!p->outputs) return no_memory(l);
    for (size_t i = 0; i < g->n_outputs; i++) {
        p->outputs[i] = (hd_port){hd_arena_strdup(&p->memory, g->outputs[i].name), l->buffer_of[g->outputs[i].value]};
        if (!p->outputs[i].name) return no_memory(l);
    }
    p->n_outputs = (int)g->n_outputs;
    return 0;
}

/* Moves the buffers from the growing array into the program's arena. */
static int keep_buffers(hd_lowering *l)
{
    hd_program *p = l->p;
    hd_buffer *growing = p->buffers;
    p->buffers = hd_arena_copy(&p->memory, growing, (size_t)p->n_buffers * sizeof *growing);
    hd_free(growing);
    return p->buffers ? 0 : no_memory(l);
}

static int place_buffers(hd_lowering *l)
{
    hd_program *p = l->p;
    size_t n = (size_t)p->n_buffers + 1;
    hd_life *lives = hd_arena_alloc(&l->scratch, n * sizeof *lives);
    hd_block *blocks = hd_arena_alloc(&l->scratch, n * sizeof *blocks);
    int *buffer = hd_arena_alloc(&l->scratch, n * sizeof *buffer), count = 0;
    if (!lives || !blocks || !buffer) return no_memory(l);
    hd_program_lives(p, lives);
    for (int b = 0; b < p->n_buffers; b++) {
        if (lives[b].last < 0) continue;
        buffer[count] = b;
        blocks[count++] = (hd_block){.bytes = p->buffers[b].bytes, .first = lives[b].first, .last = lives[b].last};
    }
    int rc = hd_place(blocks, count, &p->arena_bytes, &p->arena_bound, l->err);
    for (int i = 0; i < count && !rc; i++) p->buffers[buffer[i]].offset = blocks[i].offset;
    return rc;
}

static int finish(hd_lowering *l)
{
    int rc = keep_buffers(l);
    if (!rc) rc = make_segments(l);
    if (!rc) rc = make_schedule(l);
    if (!rc) rc = make_outputs(l);
    return rc ? rc : place_buffers(l);
}

static int lower(hd_lowering *l)
{
    int rc = copy_symbols(l);
    if (!rc) rc = hd_lower_order(l);
    if (!rc) rc = hd_lower_groups(l);
    if (!rc) rc = hd_lower_emit(l);
    if (rc) return rc;
    sort_drafts(l);
    rc = hd_lower_share(l);
    return rc;
}

static void free_lowering(hd_lowering *l)
{
    for (size_t i = 0; i < l->n_groups; i++) hd_free(l->groups[i].addends);
    hd_free(l->groups);
    hd_free(l->items);
    hd_free(l->drafts);
    hd_arena_free(&l->scratch);
}

int hd_lower(const hd_graph *g, const hd_plan *plan, const hd_target *target, hd_program **out, hd_error *err)
{
    hd_error local = {0};
    hd_plan whole = *plan;
    *out = NULL;
    hd_plan_complete(&whole, NULL);
    int rc = g->err.code ? hd_fail(err, g->err.code, "%s", g->err.message) : hd_plan_check(&whole, g, err);
    if (rc) return rc;
    hd_lowering l = {.g = g, .plan = &whole, .target = target, .err = err ? err : &local};
    l.p = hd_calloc(1, sizeof *l.p);
    if (!l.p) return no_memory(&l);
    l.p->threads = whole.threads;
    rc = lower(&l);
    if (rc) {
        hd_free(l.p->buffers);
        l.p->buffers = NULL;
    } else {
        rc = finish(&l);
    }
    free_lowering(&l);
    if (rc) hd_program_free(l.p);
    else *out = l.p;
    return rc;
}
