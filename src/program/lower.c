/* lower.c: Graph -> Program, step by step: order.c, group.c, emit.c, async.c, share.c, then placement. */
#include <stdlib.h>

#include "program/lower_int.h"
#include "program/schedule.h"

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
    p->segments = hd_arena_alloc(&p->memory, ((size_t)l->update + 1) * sizeof *p->segments);
    hd_instr *instrs = hd_arena_alloc(&p->memory, (l->n_drafts + 1) * sizeof *instrs);
    if (!p->segments || !instrs) return no_memory(l);
    for (size_t i = 0, last = SIZE_MAX; i < l->n_drafts; i++) {
        int number = l->drafts[i].segment;
        hd_segment *s = &p->segments[p->n_segments - (last != SIZE_MAX)];
        if (last != (size_t)number) {
            s = &p->segments[p->n_segments++];
            *s = (hd_segment){.kind = hd_lower_kind(l, number), .chunk = hd_lower_chunk(l, number), .instrs = &instrs[i]};
            last = (size_t)number;
        }
        instrs[i] = l->drafts[i].instr;
        s->n_instrs++;
    }
    return 0;
}

static void add_call(hd_program *p, hd_segment_kind kind, int chunk, int micro, int slice)
{
    int segment = hd_program_segment_of(p, kind, chunk);
    if (segment < 0) return;
    p->calls[p->n_calls] = hd_program_call(p, segment);
    p->calls[p->n_calls].slice = slice;
    p->calls[p->n_calls++].micro = micro;
}

/* The slices of a slot one after the other: forward from the first, backward from the last (TeraPipe, Li et al. 2021, section 3). */
static void add_slices(hd_lowering *l, hd_segment_kind kind, const hd_slot *slot)
{
    for (int i = 0; i < l->slices; i++) {
        int slice = kind == HD_SEGMENT_FORWARD ? i : l->slices - 1 - i;
        add_call(l->p, kind, slot->chunk * l->slices + slice, slot->micro, slice);
    }
}

static bool in_loop(const hd_program *p, int segment)
{
    return p->segments[segment].kind != HD_SEGMENT_PREPARE && p->segments[segment].kind != HD_SEGMENT_UPDATE;
}

static void find_repeated(hd_lowering *l)
{
    hd_program *p = l->p;
    p->repeat_first = p->repeat_last = -1;
    bool inference = !l->has_backward && !l->has_update;
    if (l->plan->micro_batches == 1 && !inference) return;
    for (int s = 0; s < p->n_segments; s++) {
        if (!in_loop(p, s)) continue;
        if (p->repeat_first < 0) p->repeat_first = s;
        p->repeat_last = s;
    }
}

/* A forward pass alone takes the chunks in order, whatever the schedule of training is. */
static int make_slots(hd_lowering *l, hd_slot **slots, int *n)
{
    int chunks = l->chunks / l->slices;
    if (l->has_backward || l->plan->micro_batches > 1 || chunks == 1)
        return hd_schedule_make(l->plan->schedule, l->stage, l->stages, chunks, (int)l->plan->micro_batches, slots, n, l->err);
    *n = chunks;
    *slots = hd_calloc((size_t)chunks, sizeof **slots);
    for (int c = 0; *slots && c < chunks; c++) (*slots)[c] = (hd_slot){HD_SLOT_FORWARD, c, 0};
    return *slots ? 0 : no_memory(l);
}

static int make_schedule(hd_lowering *l)
{
    static const hd_segment_kind kinds[] = {[HD_SLOT_FORWARD] = HD_SEGMENT_FORWARD, [HD_SLOT_BACKWARD] = HD_SEGMENT_BACKWARD,
                                            [HD_SLOT_WEIGHT] = HD_SEGMENT_WEIGHT};
    hd_program *p = l->p;
    hd_slot *slots;
    int n, rc = make_slots(l, &slots, &n);
    if (rc) return rc;
    p->calls = hd_arena_alloc(&p->memory, ((size_t)n * (size_t)l->slices + 2) * sizeof *p->calls);
    if (p->calls) {
        add_call(p, HD_SEGMENT_PREPARE, 0, 0, 0);
        for (int i = 0; i < n; i++) add_slices(l, kinds[slots[i].kind], &slots[i]);
        add_call(p, HD_SEGMENT_UPDATE, 0, 0, 0);
        find_repeated(l);
    }
    hd_free(slots);
    return p->calls ? 0 : no_memory(l);
}

/* ---- copies ---- */

/* Of each root: the loop's segments that touch it. */
typedef struct touched { int first, last; bool outside, sent_later; } touched;

static void touch(const hd_program *p, touched *t, const int *buffers, int n, int segment)
{
    for (int i = 0; i < n; i++) {
        if (buffers[i] < 0) continue;
        touched *x = &t[hd_buffer_root(p, buffers[i])];
        if (!in_loop(p, segment)) {
            x->outside = true;
            continue;
        }
        if (x->last < 0) x->first = segment;
        x->last = segment;
    }
}

static void touch_all(const hd_program *p, touched *t)
{
    for (int s = 0; s < p->n_segments; s++) {
        hd_instr_iter it = hd_segment_instrs(p, s);
        for (const hd_instr *x; (x = hd_instr_next(&it));) {
            touch(p, t, x->in, x->n_in, s);
            touch(p, t, x->out, x->n_out, s);
            if (x->opcode != HD_COMM || !x->op->has_effect || !in_loop(p, s)) continue;
            touched *sent = &t[hd_buffer_root(p, x->in[0])];
            sent->sent_later |= sent->first != s || p->buffers[hd_buffer_root(p, x->in[0])].class == HD_BUFFER_INPUT;
        }
    }
}

/* Copies that micro-batches need between their calls of segments first and last: the widest window of micro-batches under way. */
static int count_copies(const hd_lowering *l, int first, int last, int *begin, int *end)
{
    const hd_program *p = l->p;
    int micro = (int)l->plan->micro_batches, widest = 1;
    for (int m = 0; m < micro; m++) begin[m] = INT32_MAX, end[m] = -1;
    for (int i = 0; i < p->n_calls; i++) {
        const hd_call *c = &p->calls[i];
        if (c->segment != first && c->segment != last) continue;
        if (i < begin[c->micro]) begin[c->micro] = i;
        if (i > end[c->micro]) end[c->micro] = i;
    }
    for (int m = 0; m < micro; m++)
        for (int k = m + widest; k < micro; k++) /* apart by k - m, both under way: more copies than that */
            if (begin[k] < end[m] && begin[m] < end[k]) widest = k - m + 1;
    return widest;
}

static int first_forward(const hd_program *p)
{
    for (int s = 0; s < p->n_segments; s++)
        if (p->segments[s].kind == HD_SEGMENT_FORWARD) return s;
    return -1;
}

/* What passes from one call of the loop to another has a copy for each micro-batch that may be under way between them; an input from when it is filled,
 * before the micro-batch's first forward call. Sums over micro-batches have one. */
static int make_copies(hd_lowering *l)
{
    hd_program *p = l->p;
    size_t n = (size_t)p->n_buffers + 1, micro = (size_t)l->plan->micro_batches, segments = (size_t)p->n_segments + 1;
    touched *t = hd_arena_alloc(&l->scratch, n * sizeof *t);
    int *ends = hd_arena_alloc(&l->scratch, 2 * micro * sizeof *ends), *known = hd_arena_alloc(&l->scratch, segments * segments * sizeof *known);
    if (!t || !ends || !known) return no_memory(l);
    for (size_t b = 0; b < n; b++) t[b] = (touched){.first = -1, .last = -1};
    touch_all(p, t);
    for (size_t i = 0; i < l->n_groups; i++)
        if (l->groups[i].micro) t[hd_buffer_root(p, l->buffer_of[l->groups[i].root])].outside = true;
    int forward = first_forward(p);
    for (int b = 0; b < p->n_buffers; b++) {
        hd_buffer *x = &p->buffers[b];
        bool input = x->class == HD_BUFFER_INPUT;
        if (!hd_buffer_in_arena(p, b) || t[b].outside || t[b].last < 0 || (input && x->micro != HD_TIME_SPLIT)) continue;
        if (input && forward >= 0) t[b].first = forward;
        if (t[b].first == t[b].last && !t[b].sent_later) continue;
        int *copies = &known[(size_t)t[b].first * segments + (size_t)t[b].last];
        if (!*copies) *copies = count_copies(l, t[b].first, t[b].last, ends, ends + micro);
        x->copies = *copies + t[b].sent_later; /* the send ends only before the next call of its segment */
    }
    for (int b = 0; b < p->n_buffers; b++) p->buffers[b].copies = p->buffers[hd_buffer_root(p, b)].copies;
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

/* Operands of a list of transfers lie side by side: place them as one block. Each buffer's block, and where in it the buffer begins. */
typedef struct placed { int block; int64_t at; } placed;

enum { ALIGN = 64 }; /* as place.c */

static int64_t align(int64_t bytes) { return (bytes + ALIGN - 1) / ALIGN * ALIGN; }

/* buffers: of a list, or one alone. */
static void add_block(const hd_program *p, const hd_life *lives, const int *buffers, int n, placed *where, hd_block *blocks, int *count)
{
    hd_block *block = &blocks[*count];
    *block = (hd_block){.first = INT32_MAX, .last = -1};
    for (int k = 0; k < n; k++) {
        int b = hd_buffer_root(p, buffers[k]);
        if (lives[b].last < 0 || where[b].block >= 0) continue;
        where[b] = (placed){*count, align(block->bytes)};
        block->bytes = where[b].at + p->buffers[b].bytes * p->buffers[b].copies;
        if (lives[b].first < block->first) block->first = lives[b].first;
        if (lives[b].last > block->last) block->last = lives[b].last;
    }
    *count += block->last >= 0;
}

static void add_blocks(const hd_program *p, const hd_life *lives, placed *where, hd_block *blocks, int *count)
{
    for (int b = 0; b < p->n_buffers; b++) where[b].block = -1;
    for (int s = 0; s < p->n_segments; s++)
        for (int i = 0; i < p->segments[s].n_instrs; i++) {
            const hd_instr *x = &p->segments[s].instrs[i];
            if (hd_instr_is_list(x)) add_block(p, lives, x->in, x->n_in, where, blocks, count);
        }
    for (int b = 0; b < p->n_buffers; b++)
        if (p->buffers[b].view_of < 0) add_block(p, lives, &b, 1, where, blocks, count);
}

static int place_buffers(hd_lowering *l)
{
    hd_program *p = l->p;
    size_t n = (size_t)p->n_buffers + 1;
    hd_life *lives = hd_arena_alloc(&l->scratch, n * sizeof *lives);
    hd_block *blocks = hd_arena_alloc(&l->scratch, n * sizeof *blocks);
    placed *where = hd_arena_alloc(&l->scratch, n * sizeof *where);
    int count = 0;
    if (!lives || !blocks || !where) return no_memory(l);
    hd_program_lives(p, lives);
    add_blocks(p, lives, where, blocks, &count);
    int rc = hd_place(blocks, count, &p->arena_bytes, &p->arena_bound, l->err);
    for (int b = 0; b < p->n_buffers && !rc; b++)
        if (where[b].block >= 0) p->buffers[b].offset = blocks[where[b].block].offset + where[b].at;
    return rc;
}

static int finish(hd_lowering *l)
{
    int rc = keep_buffers(l);
    if (!rc) rc = make_segments(l);
    if (!rc) rc = make_schedule(l);
    if (!rc) rc = make_copies(l);
    if (!rc) rc = make_outputs(l);
    return rc ? rc : place_buffers(l);
}

/* Which part of the pipeline the graph is: its chunks say so. */
static int find_stage(hd_lowering *l)
{
    const hd_graph *g = l->g;
    int found = -1;
    l->stages = 1;
    for (int a = 0; a < g->mesh.n; a++)
        if (g->mesh.axis[a].role == HD_AXIS_PIPELINE) l->stages = g->stages.n ? g->stages.n : g->mesh.axis[a].size;
    l->chunks = l->stages > 1 ? l->plan->chunks : 1;
    l->slices = 1;
    for (size_t i = 0; i < g->n_nodes; i++)
        if (g->nodes[i]->slice >= l->slices) l->slices = g->nodes[i]->slice + 1;
    for (size_t i = 0; i < g->n_nodes && l->stages > 1; i++) {
        const hd_node *n = g->nodes[i];
        if (n->phase == HD_UPDATE || n->chunk < 0) continue;
        if (found >= 0 && n->chunk % l->stages != found)
            return hd_fail(l->err, HD_EINVAL, "%s: is in chunk %d, which isn't one of stage %d of %d", n->path, n->chunk, found, l->stages);
        if (n->chunk / l->stages >= l->chunks)
            return hd_fail(l->err, HD_EINVAL, "%s: is in chunk %d; the plan has %d stages of %d chunks", n->path, n->chunk, l->stages, l->chunks);
        found = n->chunk % l->stages;
    }
    l->stage = found >= 0 ? found : g->stages.n ? g->stage : 0;
    l->many = l->plan->micro_batches > 1 || l->stages > 1 || l->slices > 1;
    l->chunks *= l->slices;
    l->update = 1 + 3 * l->chunks;
    l->p->mesh = g->mesh;
    l->p->stage = l->stage;
    l->p->stages = l->stages;
    return hd_stages_copy(&l->p->meshes, &g->stages, &l->p->memory) ? no_memory(l) : 0;
}

static int lower(hd_lowering *l)
{
    int rc = copy_symbols(l);
    if (!rc) rc = find_stage(l);
    if (!rc) rc = hd_lower_order(l);
    if (!rc) rc = hd_lower_groups(l);
    if (!rc) rc = hd_lower_emit(l);
    if (rc) return rc;
    sort_drafts(l);
    rc = hd_lower_async(l);
    return rc ? rc : hd_lower_share(l);
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
