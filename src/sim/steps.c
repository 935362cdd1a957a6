/* steps.c: what each instruction takes on one rank: kernels by its own pieces, transfers by where the group lies in the cluster. */
#include <stdlib.h>
#include <string.h>

#include "ops/ops.h"
#include "sim/sim_int.h"

/* ---- kernels ---- */

static hd_type piece_type(const hd_program *p, int b, int rank, const int64_t *binding)
{
    if (b < 0) return (hd_type){.absent = true, .shape.sym = -1};
    hd_tensor t = hd_buffer_piece(p, b, hd_program_place(p, rank), binding);
    hd_type type = {.dtype = t.dtype, .blocks = t.blocks, .shape = {.rank = t.rank, .sym = -1}};
    for (int i = 0; i < t.rank; i++) type.shape.dim[i] = t.dim[i];
    return type;
}

void sim_kernel_cost(const sim *s, const hd_program *p, const hd_instr *x, int rank, const int64_t *binding, hd_kernel_cost *out)
{
    _Alignas(16) char attrs[HD_MAX_ATTRS];
    hd_type in[HD_MAX_OPERANDS], results[HD_MAX_RESULTS];
    uint32_t packed = 0;
    for (int i = 0; i < x->n_in; i++)
        if (x->in[i] >= 0 && p->buffers[x->in[i]].format == HD_PACKED) packed |= 1u << i;
    for (int i = 0; i < x->n_in; i++) in[i] = piece_type(p, x->in[i], rank, binding);
    for (int i = 0; i < x->n_out; i++) results[i] = piece_type(p, x->out[i], rank, binding);
    hd_instr_attrs(p, x, hd_program_place(p, rank), attrs);
    if (x->op == &hd_op_paged_attention && s->options->keys > 0) ((hd_paged_attrs *)attrs)->mean_keys = s->options->keys;
    hd_sig sig = {.op = x->op, .in = in, .out = results, .n_in = x->n_in, .n_out = x->n_out, .attrs = attrs};
    hd_cost_kernel_packed(s->cluster, &sig, packed, p->threads, s->teams, out);
}

/* Made again in backward: hd_pass_recompute's clones. */
static bool is_again(const hd_instr *x) { return !strncmp(x->path, "again.", 6); }

static void fill_kernel(sim *s, const sim_actor *a, sim_step *t, const int64_t *binding)
{
    hd_kernel_cost c = {0};
    sim_kernel_cost(s, a->program, t->instr, a->rank, binding, &c);
    t->seconds = c.seconds;
    t->part = c.kind == HD_COST_PRODUCT ? HD_SIM_GEMM : HD_SIM_MEMORY_BOUND;
    if (c.kind != HD_COST_PRODUCT) return;
    t->hardware = c.flops;
    if (!is_again(t->instr)) t->flops = t->instr->op == &hd_op_attention_grad ? c.flops * 4 / 5 : c.flops; /* one of its five products makes the scores again */
}

/* Zeroing, copying, and what a rank takes out of its own memory. A first addend that stays where it is is zeroed by all others. */
double sim_copy_cost(const sim *s, const hd_program *p, const hd_instr *x, int rank, const int64_t *binding)
{
    int64_t bytes = 0;
    for (int k = 0; k < x->n_out; k++) {
        hd_type out = piece_type(p, x->out[k], rank, binding);
        bytes += hd_type_bytes(&out);
    }
    return hd_cost_copy(s->cluster, bytes, p->threads, s->teams);
}

static void fill_copy(sim *s, const sim_actor *a, sim_step *t, const int64_t *binding)
{
    t->part = HD_SIM_MEMORY_BOUND;
    t->seconds = sim_copy_cost(s, a->program, t->instr, a->rank, binding);
}

/* ---- transfers ---- */

int64_t sim_transfer_bytes(const hd_program *p, const hd_instr *x, int rank, const int64_t *binding)
{
    int64_t sum = 0; /* over the members of a list */
    for (int k = 0; k < x->n_in || k < x->n_out; k++) {
        hd_type in = piece_type(p, k < x->n_in ? x->in[k] : -1, rank, binding), out = piece_type(p, k < x->n_out ? x->out[k] : -1, rank, binding);
        sum += hd_type_bytes(&in) > hd_type_bytes(&out) ? hd_type_bytes(&in) : hd_type_bytes(&out);
    }
    return sum;
}

static hd_dtype transfer_dtype(const hd_program *p, const hd_instr *x) { return p->buffers[x->n_in ? x->in[0] : x->out[0]].type.dtype; }

double sim_collective_cost(sim *s, const hd_program *p, const hd_instr *x, const int *ranks, int n, int own, int64_t bytes, hd_move_cost *out)
{
    hd_dtype dtype = transfer_dtype(p, x);
    bool round = x->op == &hd_op_permute; /* each to its neighbour */
    if (round) hd_cost_move(s->cluster, HD_MOVE_SEND, (int[]){ranks[own], ranks[(own + 1) % n]}, 2, s->world, bytes, dtype, out);
    else hd_cost_move(s->cluster, sim_move_kind(x), ranks, n, s->world, bytes, dtype, out);
    return out->seconds;
}

static int compare_ints(const void *x, const void *y) { return *(const int *)x - *(const int *)y; }

/* The meeting of those classes over those axes. */
static int find_meeting(sim *s, int axes, const int *actors, int n)
{
    for (size_t i = 0; i < s->n_meetings; i++)
        if (s->meetings[i].axes == axes && s->meetings[i].n == n && !memcmp(s->meetings[i].actor, actors, (size_t)n * sizeof *actors)) return (int)i;
    if (hd_grow(&s->meetings, &s->cap_meetings, s->n_meetings + 1, sizeof *s->meetings)) return sim_no_memory(s);
    sim_meeting *m = &s->meetings[s->n_meetings];
    *m = (sim_meeting){.axes = axes, .n = n, .actor = hd_arena_copy(&s->memory, actors, (size_t)n * sizeof *actors),
                       .joined = hd_arena_alloc(&s->memory, (size_t)n * sizeof *m->joined)};
    return m->actor && m->joined ? (int)s->n_meetings++ : sim_no_memory(s);
}

static int fill_collective(sim *s, const sim_actor *a, sim_step *t, int *ranks, const int64_t *binding)
{
    int axes = sim_find_axes(s, a->stage, ((const hd_comm_attrs *)t->instr->attrs)->axes), self = (int)(a - s->actors), members = 0;
    if (axes < 0) return axes;
    int n = sim_group(s, axes, a->rank, ranks);
    t->verb = SIM_COLLECTIVE;
    t->across = s->axes[axes].across;
    t->part = t->event == HD_EVENT_TENSOR_COMM ? HD_SIM_TENSOR : HD_SIM_DATA;
    t->bytes = sim_transfer_bytes(a->program, t->instr, a->rank, binding);
    int own = 0;
    while (ranks[own] != a->rank) own++;
    hd_move_cost *move = hd_arena_alloc(&s->memory, sizeof *move);
    if (!move) return sim_no_memory(s);
    t->seconds = sim_collective_cost(s, a->program, t->instr, ranks, n, own, t->bytes, move);
    t->move = move;
    for (int i = 0; i < n; i++) ranks[i] = s->class_of[ranks[i]];
    qsort(ranks, (size_t)n, sizeof *ranks, compare_ints);
    for (int i = 0; i < n; i++)
        if (!i || ranks[i] != ranks[members - 1]) ranks[members++] = ranks[i];
    t->place = find_meeting(s, t->across && s->meshes ? -1 : axes, ranks, members); /* -1: of all ranks, whatever the axes are named in each stage */
    for (int i = 0; i < members; i++)
        if (ranks[i] == self) t->member = i;
    return t->place < 0 ? t->place : 0;
}

static int find_channel(sim *s, const sim_channel *want)
{
    for (size_t i = 0; i < s->n_channels; i++) {
        const sim_channel *c = &s->channels[i];
        if (c->sender == want->sender && c->receiver == want->receiver && c->from == want->from && c->to == want->to && c->number == want->number) return (int)i;
    }
    if (hd_grow(&s->channels, &s->cap_channels, s->n_channels + 1, sizeof *s->channels)) return sim_no_memory(s);
    s->channels[s->n_channels] = *want;
    return (int)s->n_channels++;
}

/* All messages of one instruction share the rank's port: each takes as long as all of its. */
static int cost_ends(sim *s, const sim_actor *a, sim_step *t, const sim_end *ends, int n)
{
    bool send = t->verb == SIM_SEND;
    hd_move_cost *sum = hd_arena_alloc(&s->memory, sizeof *sum), one;
    if (!sum) return sim_no_memory(s);
    for (int i = 0; i < n; i++) t->bytes += ends[i].bytes;
    for (int i = 0; i < n; i++) {
        int ranks[2] = {send ? a->rank : ends[i].rank, send ? ends[i].rank : a->rank};
        hd_dtype dtype = transfer_dtype(a->program, t->instr);
        hd_cost_move(s->cluster, HD_MOVE_SEND, ranks, 2, s->world, t->bytes, dtype, &one);
        if (one.seconds > t->seconds) t->seconds = one.seconds;
        hd_cost_move(s->cluster, HD_MOVE_SEND, ranks, 2, s->world, ends[i].bytes, dtype, &one);
        for (int l = 0; l < HD_MAX_LEVELS; l++) sum->bytes[l] += one.bytes[l];
    }
    sum->seconds = t->seconds;
    t->move = sum;
    return 0;
}

/* One channel with each class of ranks at the other end. */
static int find_channels(sim *s, const sim_actor *a, sim_step *t, const sim_end *ends, int n)
{
    const hd_pipe_attrs *at = t->instr->attrs;
    bool send = t->verb == SIM_SEND;
    int self = (int)(a - s->actors), *list = hd_arena_alloc(&s->memory, ((size_t)n + 1) * sizeof *list);
    if (!list) return sim_no_memory(s);
    for (int i = 0; i < n; i++) {
        int other = s->class_of[ends[i].rank], known = 0;
        int c = find_channel(s, &(sim_channel){.sender = send ? self : other, .receiver = send ? other : self, .from = at->from, .to = at->to, .number = at->number});
        if (c < 0) return c;
        while (known < t->n_channels && list[known] != c) known++;
        if (known == t->n_channels) list[t->n_channels++] = c;
    }
    t->channels = list;
    return 0;
}

static int fill_pipe(sim *s, const sim_actor *a, sim_step *t)
{
    sim_end *ends = hd_malloc((size_t)s->world * sizeof *ends);
    if (!ends) return sim_no_memory(s);
    t->verb = t->instr->op == &hd_op_send ? SIM_SEND : SIM_RECV;
    t->part = HD_SIM_PIPELINE;
    int n = sim_ends(s, a->program, t->instr, a->rank, ends), rc = n < 0 ? n : 0;
    if (!rc) rc = cost_ends(s, a, t, ends, n);
    if (!rc) rc = find_channels(s, a, t, ends, n);
    hd_free(ends);
    return rc;
}

/* ---- a segment ---- */

static int fill_step(sim *s, const sim_actor *a, sim_step *t, int *ranks, const int64_t *binding)
{
    const hd_instr *x = t->instr;
    t->event = hd_instr_event_kind(a->program, x);
    t->verb = x->opcode == HD_WAIT ? SIM_WAIT : SIM_COMPUTE;
    if (sim_is_pipe(x)) return fill_pipe(s, a, t);
    if (sim_is_collective(x)) return fill_collective(s, a, t, ranks, binding);
    if (x->opcode == HD_KERNEL) fill_kernel(s, a, t, binding);
    else if (x->opcode != HD_WAIT) fill_copy(s, a, t, binding);
    return 0;
}

static sim_variant *make_variant(sim *s, sim_actor *a, int segment, const int64_t *binding)
{
    int n = a->program->segments[segment].n_instrs, index = 0;
    sim_variant *v = hd_arena_alloc(&s->memory, sizeof *v);
    int *ranks = hd_malloc((size_t)s->world * sizeof *ranks);
    if (v) v->steps = hd_arena_alloc(&s->memory, (size_t)n * sizeof *v->steps);
    bool failed = !v || !ranks || !v->steps;
    if (failed) sim_no_memory(s);
    if (!failed) v->segment = segment, memcpy(v->binding, binding, sizeof v->binding);
    hd_instr_iter it = hd_segment_instrs(a->program, segment);
    for (const hd_instr *x; !failed && (x = hd_instr_next(&it)); index++) {
        if (x->opcode == HD_VIEW) continue;
        sim_step *t = &v->steps[v->n++];
        t->instr = x;
        t->index = index;
        failed = fill_step(s, a, t, ranks, binding);
    }
    hd_free(ranks);
    return failed ? NULL : v;
}

const sim_variant *sim_variant_of(sim *s, sim_actor *a, const hd_call *call)
{
    int64_t binding[HD_MAX_SYMBOLS];
    for (int i = 0; i < HD_MAX_SYMBOLS; i++) {
        int64_t given = s->options->binding ? s->options->binding[i] : -1;
        binding[i] = call->binding[i] >= 0 || given < 0 ? call->binding[i] : given;
    }
    for (size_t i = 0; i < a->n_variants; i++)
        if (a->variants[i]->segment == call->segment && !memcmp(a->variants[i]->binding, binding, sizeof binding)) return a->variants[i];
    if (hd_grow(&a->variants, &a->cap_variants, a->n_variants + 1, sizeof *a->variants)) return sim_no_memory(s), NULL;
    sim_variant *v = make_variant(s, a, call->segment, binding);
    if (v) a->variants[a->n_variants++] = v;
    return v;
}
