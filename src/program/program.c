/* program.c: walking a program, and questions about it. */
#include "program/program.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/attrs.h"
#include "ops/ops.h"

void hd_program_free(hd_program *p)
{
    if (!p) return;
    hd_arena_free(&p->memory);
    hd_free(p);
}

/* ---- walking ---- */

hd_call_iter hd_program_calls(const hd_program *p)
{
    return (hd_call_iter){p, 0};
}

bool hd_call_next(hd_call_iter *it, hd_call *out)
{
    if (it->next >= it->program->n_calls) return false;
    *out = it->program->calls[it->next++];
    return true;
}

hd_instr_iter hd_segment_instrs(const hd_program *p, int segment)
{
    return (hd_instr_iter){&p->segments[segment], 0};
}

const hd_instr *hd_instr_next(hd_instr_iter *it)
{
    return it->next < it->segment->n_instrs ? &it->segment->instrs[it->next++] : NULL;
}

/* ---- names ---- */

const char *hd_segment_name(hd_segment_kind k)
{
    static const char *const names[] = {"prepare", "forward", "backward", "weight", "update"};
    return names[k];
}

const char *hd_role_name(hd_role r)
{
    static const char *const names[] = {"parameters", "optimizer", "state", "constants", "gradients", "activations", "scratch", "workspace",
                                        "inputs", "outputs"};
    return names[r];
}

const char *hd_buffer_class_name(hd_buffer_class c)
{
    static const char *const names[] = {"constant", "state", "saved", "scratch", "input", "output"};
    return names[c];
}

/* ---- finding ---- */

int hd_program_segment(const hd_program *p, hd_segment_kind k)
{
    for (int i = 0; i < p->n_segments; i++)
        if (p->segments[i].kind == k) return i;
    return -1;
}

hd_call hd_program_call(const hd_program *p, int segment)
{
    (void)p;
    hd_call c = {.segment = segment};
    for (int i = 0; i < HD_MAX_SYMBOLS; i++) c.binding[i] = -1;
    return c;
}

int hd_program_find(const hd_program *p, const char *path)
{
    for (int i = 0; i < p->n_buffers; i++)
        if (!strcmp(p->buffers[i].path, path)) return i;
    return -1;
}

int hd_program_input(const hd_program *p, const char *path)
{
    for (int i = 0; i < p->n_buffers; i++)
        if (p->buffers[i].class == HD_BUFFER_INPUT && p->buffers[i].view_of < 0 && !strcmp(p->buffers[i].path, path)) return i;
    return -1;
}

int hd_program_output(const hd_program *p, const char *name)
{
    for (int i = 0; i < p->n_outputs; i++)
        if (!strcmp(p->outputs[i].name, name)) return p->outputs[i].buffer;
    return -1;
}

bool hd_buffer_in_arena(const hd_program *p, int b)
{
    const hd_buffer *x = &p->buffers[b];
    return x->view_of < 0 && x->class != HD_BUFFER_CONSTANT && x->class != HD_BUFFER_STATE;
}

hd_tensor hd_buffer_tensor(const hd_program *p, int b, const int64_t *binding)
{
    const hd_buffer *x = &p->buffers[b];
    const hd_shape *s = &x->type.shape;
    hd_tensor t = {.dtype = x->type.dtype, .format = x->format, .blocks = x->type.blocks, .rank = s->rank};
    for (int i = 0; i < s->rank; i++) t.dim[i] = s->dim[i];
    if (s->sym >= 0 && binding && binding[s->sym] >= 0) t.dim[0] = binding[s->sym] * (s->dim[0] / p->symbols[s->sym].max);
    return t;
}

hd_tensor hd_buffer_piece(const hd_program *p, int b, int rank, const int64_t *binding)
{
    const hd_buffer *x = &p->buffers[b];
    hd_tensor t = hd_buffer_tensor(p, b, binding);
    if (!x->layout) return t;
    hd_shape s = hd_layout_shape(&p->mesh, x->layout, &x->whole, rank);
    bool bounded = x->type.shape.sym >= 0 && !x->layout->dim[0].n; /* as the binding says */
    for (int i = bounded; i < s.rank; i++) t.dim[i] = s.dim[i];
    return t;
}

/* The type of a buffer before it was cut. */
static hd_type whole_type(const hd_program *p, int b)
{
    if (b < 0) return (hd_type){.absent = true, .shape.sym = -1};
    hd_type t = p->buffers[b].type;
    if (p->buffers[b].layout) t.shape = p->buffers[b].whole;
    return t;
}

void hd_instr_attrs(const hd_program *p, const hd_instr *x, int rank, void *attrs)
{
    hd_type in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS];
    if (x->op->attrs_size) memcpy(attrs, x->attrs, x->op->attrs_size);
    if (!x->n_splits) return;
    for (int i = 0; i < x->n_in; i++) in[i] = whole_type(p, x->in[i]);
    for (int i = 0; i < x->n_out; i++) out[i] = whole_type(p, x->out[i]);
    hd_sig whole = {x->op, in, out, x->n_in, x->n_out, x->attrs};
    hd_op_localise(&whole, x->splits, x->n_splits, &p->mesh, rank, attrs);
}

static int cut_dimension(const hd_program *p, const hd_buffer *in, const hd_buffer *out)
{
    for (int d = 0; in->layout && out->layout && d < in->whole.rank && d < out->whole.rank; d++) {
        if (!hd_dim_layout_equal(&p->mesh, &in->layout->dim[d], &out->layout->dim[d], in->whole.dim[d])) return d;
    }
    return -1;
}

hd_instr hd_instr_member(const hd_program *p, const hd_instr *x, int k, hd_comm_attrs *own)
{
    hd_instr one = *x;
    if (!hd_instr_is_list(x)) return one;
    one.in = &x->in[k];
    one.out = &x->out[k];
    one.n_in = one.n_out = 1;
    if (((const hd_comm_attrs *)x->attrs)->dim >= 0) return one;
    const hd_buffer *out = &p->buffers[*one.out];
    *own = *(const hd_comm_attrs *)x->attrs;
    own->dim = cut_dimension(p, &p->buffers[*one.in], out);
    own->extent = own->dim < 0 ? 0 : out->type.shape.dim[own->dim];
    one.attrs = own;
    return one;
}

int hd_program_segment_of(const hd_program *p, hd_segment_kind k, int chunk)
{
    for (int s = 0; s < p->n_segments; s++)
        if (p->segments[s].kind == k && p->segments[s].chunk == chunk) return s;
    return -1;
}

int hd_program_tokens(const hd_program *p)
{
    int n = 0;
    for (int s = 0; s < p->n_segments; s++)
        for (int i = 0; i < p->segments[s].n_instrs; i++)
            if (p->segments[s].instrs[i].signal >= n) n = p->segments[s].instrs[i].signal + 1;
    return n;
}

int hd_program_micro_batches(const hd_program *p)
{
    int n = 1;
    for (int i = 0; i < p->n_calls; i++)
        if (p->calls[i].micro >= n) n = p->calls[i].micro + 1;
    return n;
}

/* ---- lifetimes ---- */

static void touch(hd_life *l, int at)
{
    if (at < l->first) l->first = at;
    if (at > l->last) l->last = at;
}

static void touch_all(const hd_program *p, hd_life *lives, const int *buffers, int n, int at)
{
    for (int i = 0; i < n; i++)
        if (buffers[i] >= 0) touch(&lives[hd_buffer_root(p, buffers[i])], at);
}

static bool is_in_loop(const hd_program *p, int segment)
{
    return p->segments[segment].kind != HD_SEGMENT_PREPARE && p->segments[segment].kind != HD_SEGMENT_UPDATE;
}

bool hd_program_in_order(const hd_program *p)
{
    int next = p->repeat_first, micro = 0;
    for (int i = 0; i < p->n_calls; i++) {
        const hd_call *c = &p->calls[i];
        if (!is_in_loop(p, c->segment)) continue;
        if (p->repeat_first < 0) { /* once through */
            if (c->segment <= next || c->micro) return false;
            next = c->segment;
            continue;
        }
        if (c->segment != next || c->micro != micro) return false;
        next = next == p->repeat_last ? (micro++, p->repeat_first) : next + 1;
    }
    return true;
}

/* Instructions of the loop, numbered through all segments; false: there is none. */
static bool find_loop(const hd_program *p, int *begin, int *end)
{
    *begin = INT32_MAX;
    *end = -1;
    for (int s = 0, at = 0; s < p->n_segments; at += p->segments[s++].n_instrs) {
        if (!is_in_loop(p, s)) continue;
        if (at < *begin) *begin = at;
        *end = at + p->segments[s].n_instrs - 1;
    }
    return *end >= *begin;
}

/* Where calls of the loop come in another order than micro-batch by micro-batch, what passes from one to another is kept through all of them. */
static void keep_all(const hd_program *p, hd_life *lives)
{
    int begin, end;
    find_loop(p, &begin, &end);
    for (int b = 0; b < p->n_buffers; b++) {
        hd_life *l = &lives[b];
        if (l->last < 0 || !hd_buffer_in_arena(p, b) || l->first > end || l->last < begin) continue;
        bool one = false;
        for (int s = 0, at = 0; s < p->n_segments; at += p->segments[s++].n_instrs)
            one |= is_in_loop(p, s) && l->first >= at && l->last < at + p->segments[s].n_instrs;
        if (one) continue;
        if (l->first > begin) l->first = begin;
        if (l->last < end) l->last = end;
    }
}

/* A send may go on until the next call of its segment, or until the loop's end; in prepare and update to the end of the call. */
static void keep_sent(const hd_program *p, hd_life *lives)
{
    int begin, end;
    find_loop(p, &begin, &end);
    for (int s = 0, at = 0; s < p->n_segments; at += p->segments[s++].n_instrs) {
        hd_instr_iter it = hd_segment_instrs(p, s);
        for (const hd_instr *x; (x = hd_instr_next(&it));) {
            if (x->opcode != HD_COMM || !x->op->has_effect) continue;
            if (is_in_loop(p, s)) touch_all(p, lives, x->in, x->n_in, begin);
            touch_all(p, lives, x->in, x->n_in, is_in_loop(p, s) ? end : at + p->segments[s].n_instrs - 1);
        }
    }
}

/* What is done in the last micro-batch only works on sums over all of them. */
static void keep_sums(const hd_program *p, hd_life *lives)
{
    int begin, end;
    if (!find_loop(p, &begin, &end)) return;
    for (int s = 0; s < p->n_segments; s++) {
        hd_instr_iter it = hd_segment_instrs(p, s);
        for (const hd_instr *x; (x = hd_instr_next(&it));) {
            if (!x->last || !is_in_loop(p, s)) continue;
            touch_all(p, lives, x->in, x->n_in, begin);
            touch_all(p, lives, x->in, x->n_in, end);
        }
    }
}

static bool waits_for(const hd_instr *x, int token)
{
    for (int w = 0; w < x->n_waits; w++)
        if (x->waits[w] == token) return true;
    return false;
}

/* A transfer beside computing keeps its operands and its results until somebody has waited for it: the first behind it in its segment; where all who wait are
 * in others, whichever. */
static void keep_transfer(const hd_program *p, hd_life *lives, int segment, int instr)
{
    const hd_segment *own = &p->segments[segment];
    const hd_instr *x = &own->instrs[instr];
    int first = instr + 1;
    while (first < own->n_instrs && !waits_for(&own->instrs[first], x->signal)) first++;
    bool here = first < own->n_instrs;
    for (int s = 0, at = 0; s < p->n_segments; s++)
        for (int i = 0; i < p->segments[s].n_instrs; i++, at++) {
            if (here ? s != segment || i != first : !waits_for(&p->segments[s].instrs[i], x->signal)) continue;
            touch_all(p, lives, x->in, x->n_in, at);
            touch_all(p, lives, x->out, x->n_out, at);
        }
}

static void keep_transfers(const hd_program *p, hd_life *lives)
{
    for (int s = 0; s < p->n_segments; s++)
        for (int i = 0; i < p->segments[s].n_instrs; i++)
            if (p->segments[s].instrs[i].signal >= 0) keep_transfer(p, lives, s, i);
}

/* What is made outside the repeated segments and used inside them, or the other way round, lives through all of them. */
static void extend_over_loop(const hd_program *p, hd_life *l, int begin, int end, int last)
{
    bool inside = l->first <= end && l->last >= begin;
    if (!inside) return;
    if (l->first < begin && l->last < end) l->last = end;
    if (l->last > end && l->first > begin) l->first = begin;
    /* With nothing behind the loop, the next round may begin without what stands before it. */
    bool resident = p->repeat_last == p->n_segments - 1;
    if (resident && l->first < begin) l->last = last;
}

/* A workspace is kept from its instruction's neighbours too: those that don't depend on each other then need no meeting of threads between them. */
#define WORKSPACE_LINGERS 2

static void touch_workspace(const hd_program *p, hd_life *lives, const hd_instr *x, int at, int segment_end)
{
    if (x->workspace < 0) return;
    int last = at + WORKSPACE_LINGERS < segment_end ? at + WORKSPACE_LINGERS : segment_end;
    touch_all(p, lives, &x->workspace, 1, at);
    touch_all(p, lives, &x->workspace, 1, last);
}

void hd_program_lives(const hd_program *p, hd_life *lives)
{
    int at = 0, begin = -1, end = -1;
    for (int i = 0; i < p->n_buffers; i++) lives[i] = (hd_life){INT32_MAX, -1};
    for (int s = 0; s < p->n_segments; s++) {
        if (s == p->repeat_first) begin = at;
        int segment_end = at + p->segments[s].n_instrs - 1;
        hd_instr_iter it = hd_segment_instrs(p, s);
        for (const hd_instr *x; (x = hd_instr_next(&it)); at++) {
            if (x->opcode == HD_VIEW) continue;
            touch_all(p, lives, x->in, x->n_in, at);
            touch_all(p, lives, x->out, x->n_out, at);
            touch_workspace(p, lives, x, at, segment_end);
        }
        if (s == p->repeat_last) end = at - 1;
    }
    int last = at > 0 ? at - 1 : 0;
    keep_sent(p, lives);
    keep_transfers(p, lives);
    keep_sums(p, lives);
    if (!hd_program_in_order(p)) keep_all(p, lives);
    for (int i = 0; i < p->n_buffers; i++)
        if (begin >= 0 && hd_buffer_in_arena(p, i) && lives[i].last >= 0) extend_over_loop(p, &lives[i], begin, end, last);
    for (int i = 0; i < p->n_buffers; i++) {
        hd_buffer_class c = p->buffers[i].class;
        if (c == HD_BUFFER_INPUT || c == HD_BUFFER_OUTPUT) lives[hd_buffer_root(p, i)] = (hd_life){0, last}; /* the caller's between calls */
    }
    for (int i = 0; i < p->n_buffers; i++)
        if (!hd_buffer_in_arena(p, i)) lives[i] = (hd_life){INT32_MAX, -1};
}

/* ---- traces ---- */

static bool is_product(const hd_op *op)
{
    static const char *const names[] = {"contract", "conv2d", "attention"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (!strncmp(op->name, names[i], strlen(names[i]))) return true;
    return false;
}

static hd_event_kind transfer_kind(const hd_program *p, const hd_instr *x)
{
    int8_t axes[HD_MAX_AXES];
    if (x->op == &hd_op_send || x->op == &hd_op_recv) return HD_EVENT_PIPELINE_COMM;
    if (x->op->sends_nothing) return HD_EVENT_COPY;
    int n = hd_mesh_parse_axes(&p->mesh, ((const hd_comm_attrs *)x->attrs)->axes, axes);
    bool model = n > 0;
    for (int i = 0; i < n; i++) model &= p->mesh.axis[axes[i]].role == HD_AXIS_MODEL;
    return model ? HD_EVENT_TENSOR_COMM : HD_EVENT_DATA_COMM;
}

hd_event_kind hd_instr_event_kind(const hd_program *p, const hd_instr *x)
{
    if (x->opcode == HD_WAIT) return HD_EVENT_WAIT;
    if (x->opcode == HD_COMM) return transfer_kind(p, x);
    if (x->opcode == HD_KERNEL) return is_product(x->op) ? HD_EVENT_PRODUCT : HD_EVENT_MEMORY_BOUND;
    return HD_EVENT_COPY;
}

const char *hd_instr_name(const hd_instr *x)
{
    if (x->op) return x->op->name;
    return x->opcode == HD_ZERO ? "zero" : x->opcode == HD_WAIT ? "wait" : "copy";
}

int64_t hd_program_events(const hd_program *p)
{
    int64_t events = 0;
    hd_call_iter calls = hd_program_calls(p);
    for (hd_call c; hd_call_next(&calls, &c);) {
        hd_instr_iter it = hd_segment_instrs(p, c.segment);
        for (const hd_instr *x; (x = hd_instr_next(&it));) events += x->opcode != HD_VIEW ? 1 + (x->n_waits > 0) : 0;
    }
    return events;
}

/* ---- memory ---- */

/* The moment at which most bytes are live. */
static int peak_moment(const hd_program *p, const hd_life *lives, int64_t *change, int moments)
{
    int64_t live = 0, most = -1;
    int best = 0;
    memset(change, 0, (size_t)(moments + 1) * sizeof *change);
    for (int i = 0; i < p->n_buffers; i++) {
        if (lives[i].last < 0) continue;
        change[lives[i].first] += p->buffers[i].bytes * p->buffers[i].copies;
        change[lives[i].last + 1] -= p->buffers[i].bytes * p->buffers[i].copies;
    }
    for (int t = 0; t < moments; t++) {
        live += change[t];
        if (live > most) most = live, best = t;
    }
    return best;
}

int hd_program_memory(const hd_program *p, hd_memory *out, hd_error *err)
{
    int moments = 1;
    for (int s = 0; s < p->n_segments; s++) moments += p->segments[s].n_instrs;
    *out = (hd_memory){.arena = p->arena_bytes};
    hd_life *lives = hd_malloc((size_t)p->n_buffers * sizeof *lives);
    int64_t *change = hd_malloc(((size_t)moments + 1) * sizeof *change);
    int rc = 0;
    if (!lives || !change) {
        rc = hd_fail_memory(err, (size_t)moments * sizeof *change, "a program's memory by role");
    } else {
        hd_program_lives(p, lives);
        int peak = peak_moment(p, lives, change, moments);
        for (int i = 0; i < p->n_buffers; i++) {
            const hd_buffer *b = &p->buffers[i];
            bool store = b->view_of < 0 && !hd_buffer_in_arena(p, i);
            if (store) out->store += b->bytes;
            if (store || (lives[i].first <= peak && peak <= lives[i].last)) out->role[b->role] += b->bytes * b->copies;
        }
        out->total = out->store + out->arena;
    }
    hd_free(lives);
    hd_free(change);
    return rc;
}

void hd_memory_print(const hd_memory *m, hd_str *out)
{
    char text[32];
    for (int r = 0; r < HD_ROLE_COUNT; r++)
        if (m->role[r]) hd_str_printf(out, "%-12s %12s\n", hd_role_name((hd_role)r), hd_format_bytes(text, (double)m->role[r]));
    hd_str_printf(out, "%-12s %12s\n", "arena", hd_format_bytes(text, (double)m->arena));
    hd_str_printf(out, "%-12s %12s\n", "total", hd_format_bytes(text, (double)m->total));
}
