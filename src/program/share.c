/* share.c: whose memory each buffer is: views, states and their new values, results that take over a dying operand; then class and role. */
#include <assert.h>

#include "program/lower_int.h"

typedef struct sharing {
    hd_lowering *l;
    hd_program *p;
    int *root;      /* [n_buffers] -1: not decided yet */
    int *last;      /* [n_buffers] of a root: position of the last instruction that reads any of its members */
    int *frequency; /* [n_buffers] of a root: how often its contents are made anew */
    int *from, *to; /* [n_buffers] of a root: segments that touch it */
    bool *carried;  /* [n_buffers] a sum over micro-batches */
    int *ends;      /* [n_drafts] where the transfer beside computing that begins here has ended for sure; -1: none does */
} sharing;

static void note_reads(sharing *s, const int *buffers, int n, int at)
{
    for (int i = 0; i < n; i++)
        if (buffers[i] >= 0 && s->last[buffers[i]] < at) s->last[buffers[i]] = at;
}

/* The first wait behind it in its segment, or else the last of all. */
static int find_end(const hd_lowering *l, size_t i)
{
    int end = -1;
    for (size_t k = i + 1; k < l->n_drafts && l->drafts[i].instr.signal >= 0; k++) {
        const hd_instr *y = &l->drafts[k].instr;
        for (int w = 0; w < y->n_waits; w++) {
            if (y->waits[w] != l->drafts[i].instr.signal) continue;
            end = (int)k;
            if (l->drafts[k].segment == l->drafts[i].segment) return end;
        }
    }
    return end;
}

/* What a transfer beside computing writes is taken over by nobody before it has ended; what it reads only by its own result (place_all). */
static void note_transfers(sharing *s)
{
    const hd_lowering *l = s->l;
    for (size_t i = 0; i < l->n_drafts; i++) {
        s->ends[i] = find_end(l, i);
        if (s->ends[i] >= 0) note_reads(s, l->drafts[i].instr.out, l->drafts[i].instr.n_out, s->ends[i]);
    }
}

/* First by buffer; joining two merges them. */
static void collect_reads(sharing *s)
{
    const hd_lowering *l = s->l;
    for (size_t i = 0; i < l->n_drafts; i++) {
        const hd_instr *x = &l->drafts[i].instr;
        bool sent = x->opcode == HD_COMM && x->op->has_effect;
        note_reads(s, x->in, x->n_in, sent ? INT32_MAX : (int)i); /* nobody takes it over: nobody knows when it has gone */
        if (x->accumulate) note_reads(s, x->out, x->n_out, (int)i);
    }
    note_transfers(s);
    for (size_t i = 0; i < l->g->n_outputs; i++) s->last[l->buffer_of[l->g->outputs[i].value]] = INT32_MAX;
    for (size_t i = 0; i < l->n_groups; i++)
        if (l->groups[i].micro) s->carried[l->buffer_of[l->groups[i].root]] = true;
}

static void join(sharing *s, int b, int root)
{
    s->root[b] = root;
    if (s->last[b] > s->last[root]) s->last[root] = s->last[b];
}

static bool is_leaf(const sharing *s, int b)
{
    hd_buffer_class c = s->p->buffers[b].class;
    return c == HD_BUFFER_CONSTANT || c == HD_BUFFER_STATE || c == HD_BUFFER_INPUT;
}

/* What is decided before any instruction: leaves are roots, so are carried sums; new values written in place belong to their state; addends that
 * are reshapes of a sum belong to it. */
static void join_known(sharing *s)
{
    hd_lowering *l = s->l;
    for (int b = 0; b < s->p->n_buffers; b++)
        if (is_leaf(s, b) || s->carried[b]) s->root[b] = b, s->frequency[b] = 2;
    for (size_t v = 0; v < l->g->n_values; v++)
        if (l->pair_direct[v] >= 0 && l->buffer_of[v] >= 0) join(s, l->buffer_of[v], l->buffer_of[l->g->pairs[l->pair_direct[v]].in]);
}

static hd_sig sig_of(const sharing *s, const hd_instr *x, hd_type *in, hd_type *out)
{
    for (int k = 0; k < x->n_in; k++) {
        if (x->in[k] < 0) in[k] = (hd_type){.absent = true, .shape.sym = -1};
        else in[k] = s->p->buffers[x->in[k]].type;
    }
    for (int k = 0; k < x->n_out; k++) {
        if (x->out[k] < 0) out[k] = (hd_type){.absent = true, .shape.sym = -1};
        else out[k] = s->p->buffers[x->out[k]].type;
    }
    return (hd_sig){x->op, in, out, x->n_in, x->n_out, x->attrs};
}

/* Whether another operand, or an earlier result, of x is the memory of root. */
static bool is_taken(const sharing *s, const hd_instr *x, int result, uint32_t mask, int root)
{
    for (int k = 0; k < x->n_in; k++)
        if (x->in[k] >= 0 && s->root[x->in[k]] == root && !(mask >> k & 1)) return true;
    for (int k = 0; k < x->n_out; k++)
        if (k != result && x->out[k] >= 0 && s->root[x->out[k]] == root) return true;
    return false;
}

static bool can_take(const sharing *s, const hd_instr *x, int result, uint32_t mask, int operand, int at)
{
    int out = x->out[result], root = s->root[x->in[operand]];
    const hd_buffer *b = &s->p->buffers[root], *new = &s->p->buffers[out];
    if (is_leaf(s, root) || s->last[root] != at || b->bytes != new->bytes || b->type.shape.sym != new->type.shape.sym) return false;
    if (s->frequency[root] != hd_draft_frequency(s->l, &s->l->drafts[at])) return false;
    return !is_taken(s, x, result, mask, root);
}

/* Result `result` of the instruction at position `at` writes buffer b for the first time. */
static void place_result(sharing *s, const hd_instr *x, int result, int b, int at)
{
    hd_type in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS];
    hd_comm_attrs own;
    hd_instr member;
    if (hd_instr_is_list(x)) member = hd_instr_member(s->p, x, result, &own), x = &member, result = 0;
    bool kernel = (x->opcode == HD_KERNEL || x->opcode == HD_COMM) && x->accumulate == HD_ACCUMULATE_NEVER && x->op->may_alias;
    hd_sig sig = {0};
    if (kernel) sig = sig_of(s, x, in, out);
    uint32_t mask = kernel ? x->op->may_alias(&sig, result) : 0;
    for (int k = 0; k < x->n_in && mask; k++) {
        if (!(mask >> k & 1) || x->in[k] < 0 || !can_take(s, x, result, mask, k, at)) continue;
        join(s, b, s->root[x->in[k]]);
        return;
    }
    s->root[b] = b;
    s->frequency[b] = hd_draft_frequency(s->l, &s->l->drafts[at]);
}

static void place_all(sharing *s)
{
    hd_lowering *l = s->l;
    for (size_t i = 0; i < l->n_drafts; i++) {
        const hd_instr *x = &l->drafts[i].instr;
        if (x->workspace >= 0) s->root[x->workspace] = x->workspace;
        for (int k = 0; k < x->n_out; k++) {
            int b = x->out[k];
            if (b < 0 || s->root[b] >= 0) continue;
            int preset = s->p->buffers[b].view_of; /* a reshape of a sum's buffer, which may itself come into being here */
            int target = preset >= 0 ? preset : b;
            if (x->opcode == HD_VIEW) join(s, b, s->root[x->in[0]]);
            else if (s->root[target] < 0) place_result(s, x, k, target, (int)i);
            if (preset >= 0 && s->root[b] < 0) join(s, b, s->root[target]);
        }
        for (int k = 0; k < x->n_in && s->ends[i] >= 0; k++)
            if (s->last[s->root[x->in[k]]] < s->ends[i]) s->last[s->root[x->in[k]]] = s->ends[i];
    }
}

/* ---- class and role ---- */

static void widen(sharing *s, const int *buffers, int n, int segment)
{
    for (int i = 0; i < n; i++) {
        if (buffers[i] < 0) continue;
        int r = s->root[buffers[i]];
        if (segment < s->from[r]) s->from[r] = segment;
        if (segment > s->to[r]) s->to[r] = segment;
    }
}

static void classify_roots(sharing *s)
{
    const hd_lowering *l = s->l;
    hd_buffer *buffers = s->p->buffers;
    for (size_t i = 0; i < l->n_drafts; i++) {
        const hd_draft *d = &l->drafts[i];
        widen(s, d->instr.in, d->instr.n_in, d->segment);
        widen(s, d->instr.out, d->instr.n_out, d->segment);
    }
    for (int b = 0; b < s->p->n_buffers; b++) {
        if (s->root[b] != b || is_leaf(s, b) || s->from[b] == s->to[b] || buffers[b].role != HD_ROLE_SCRATCH) continue;
        buffers[b].class = HD_BUFFER_SAVED;
        buffers[b].role = HD_ROLE_ACTIVATION;
    }
    for (size_t v = 0; v < l->g->n_values; v++) {
        if (l->buffer_of[v] < 0 || l->item_of[v] < 0) continue;
        int r = s->root[l->buffer_of[v]];
        if (hd_is_micro_sum(l->items[l->item_of[v]].node) && !is_leaf(s, r)) buffers[r].role = HD_ROLE_GRADIENT;
    }
    for (int b = 0; b < s->p->n_buffers; b++)
        if (s->carried[b]) buffers[b].role = HD_ROLE_GRADIENT;
    for (size_t i = 0; i < l->g->n_outputs; i++) {
        int r = s->root[l->buffer_of[l->g->outputs[i].value]];
        if (!is_leaf(s, r)) buffers[r].class = HD_BUFFER_OUTPUT, buffers[r].role = HD_ROLE_OUTPUT;
    }
}

static void write_back(sharing *s)
{
    for (int b = 0; b < s->p->n_buffers; b++) {
        int r = s->root[b] >= 0 ? s->root[b] : b;
        hd_buffer *x = &s->p->buffers[b];
        x->view_of = r == b ? -1 : r;
        x->class = s->p->buffers[r].class;
        x->role = s->p->buffers[r].role;
        assert(x->bytes <= s->p->buffers[r].bytes);
    }
}

static int *new_ints(sharing *s, int with)
{
    int *a = hd_arena_alloc(&s->l->scratch, ((size_t)s->p->n_buffers + 1) * sizeof *a);
    for (int i = 0; a && i < s->p->n_buffers; i++) a[i] = with;
    return a;
}

int hd_lower_share(hd_lowering *l)
{
    sharing s = {.l = l, .p = l->p};
    s.root = new_ints(&s, -1);
    s.last = new_ints(&s, -1);
    s.frequency = new_ints(&s, 0);
    s.from = new_ints(&s, INT32_MAX);
    s.to = new_ints(&s, -1);
    s.carried = hd_arena_alloc(&l->scratch, (size_t)l->p->n_buffers + 1);
    s.ends = hd_arena_alloc(&l->scratch, (l->n_drafts + 1) * sizeof *s.ends);
    if (!s.ends || !s.root || !s.last || !s.frequency || !s.from || !s.to || !s.carried)
        return hd_fail_memory(l->err, (size_t)l->p->n_buffers * sizeof(int), "lowering a graph");
    collect_reads(&s);
    join_known(&s);
    place_all(&s);
    classify_roots(&s);
    write_back(&s);
    return 0;
}
