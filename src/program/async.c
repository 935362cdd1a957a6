/* async.c: transfers that run beside computing: which, from where, and who waits for them. On the drafts, between emit.c and share.c.
 *
 * A transfer of stream 1 is started where it stands and signals a token; the first instruction that touches its result, or writes to its operand,
 * waits for that. Transfers get a longer way between the two by moving instructions, never one over another that it depends on:
 *  - with one call of backward, what the update makes of a reduced gradient goes behind backward (Li et al. 2020, PyTorch DDP, section 3.2.3);
 *  - with several, a gradient's reduction goes from the update into backward, behind its last addend, and is done in the last micro-batch only;
 *  - where gradients are reduced in every micro-batch, what they are added up by goes behind the reductions of later ones;
 *  - gathers of parameters go one layer ahead (Zhao et al. 2023, PyTorch FSDP, section 3.3.2): before the first use of the layer before.
 *  - what goes round a ring (passes/ring.c) is started where it stands, before the attention to the block in hand.
 * Transfers between stages of a pipeline stay as they are: all stages meet there. Every rank of a stage has the same program, so each group's
 * transfers are started in the same order by all. */
#include <ctype.h>
#include <stdlib.h>

#include "ops/ops.h"
#include "program/lower_int.h"

/* Operands of gradients' reduce-scatters that are under way at most: more would undo what cutting gradients saves. With buckets, two of them: one that
 * is being reduced and one that waits, so that the network is never idle. */
#define MOST_SCATTERED ((int64_t)64 << 20)

typedef struct async {
    hd_lowering *l;
    int *storage;      /* [n_buffers] the buffer whose memory it certainly is */
    bool *hot_written, *hot_read; /* [n_buffers] by what is delayed */
} async;

static int no_memory(hd_lowering *l)
{
    return hd_fail_memory(l->err, l->n_drafts * sizeof(hd_draft), "lowering a graph");
}

static void *scratch(async *a, size_t n, size_t size)
{
    return hd_arena_alloc(&a->l->scratch, (n + 1) * size);
}

/* ---- who touches what ---- */

static int storage_of(const async *a, int b)
{
    return b < 0 ? -1 : a->storage[b];
}

static void find_storage(async *a)
{
    const hd_lowering *l = a->l;
    for (int b = 0; b < l->p->n_buffers; b++) a->storage[b] = l->p->buffers[b].view_of >= 0 ? l->p->buffers[b].view_of : b;
    for (size_t v = 0; v < l->g->n_values; v++)
        if (l->pair_direct[v] >= 0 && l->buffer_of[v] >= 0) a->storage[l->buffer_of[v]] = l->buffer_of[l->g->pairs[l->pair_direct[v]].in];
    for (size_t i = 0; i < l->n_drafts; i++) {
        const hd_instr *x = &l->drafts[i].instr;
        if (x->opcode == HD_VIEW && x->out[0] >= 0 && a->storage[x->out[0]] == x->out[0]) a->storage[x->out[0]] = a->storage[x->in[0]];
    }
}

static bool has(const async *a, const int *buffers, int n, int storage)
{
    for (int k = 0; k < n; k++)
        if (buffers[k] >= 0 && a->storage[buffers[k]] == storage) return true;
    return false;
}

static bool writes(const async *a, const hd_instr *x, int storage)
{
    return x->opcode != HD_VIEW && has(a, x->out, x->n_out, storage);
}

static bool touches(const async *a, const hd_instr *x, int storage)
{
    return x->opcode != HD_VIEW && (has(a, x->in, x->n_in, storage) || has(a, x->out, x->n_out, storage));
}

/* ---- which transfers ---- */

static bool is_reduction(const hd_instr *x)
{
    return x->opcode == HD_COMM && (x->op == &hd_op_all_reduce || x->op == &hd_op_reduce_scatter);
}

/* A collective of several ranks of one stage. */
bool hd_lower_runs_beside(const hd_lowering *l, const hd_instr *x)
{
    int8_t axes[HD_MAX_AXES];
    int group = 1;
    if (!is_reduction(x) && !(x->opcode == HD_COMM && (x->op == &hd_op_all_gather || x->op == &hd_op_permute))) return false;
    int n = hd_mesh_parse_axes(&l->g->mesh, ((const hd_comm_attrs *)x->attrs)->axes, axes);
    for (int i = 0; i < n; i++) {
        const hd_mesh_axis *axis = &l->g->mesh.axis[axes[i]];
        if (axis->role == HD_AXIS_PIPELINE && l->stages > 1) return false;
        group *= axis->size;
    }
    return group > 1;
}

static int64_t operand_bytes(const hd_lowering *l, const hd_instr *x)
{
    int64_t bytes = 0;
    for (int k = 0; k < x->n_in; k++) bytes += l->p->buffers[x->in[k]].bytes;
    return bytes;
}

/* ---- moving ---- */

/* Sorts drafts by key, which is scaled so that there is room between neighbours. Stable. */
typedef struct placed_draft { int64_t key; size_t number; hd_draft draft; } placed_draft;

static int compare_placed(const void *x, const void *y)
{
    const placed_draft *a = x, *b = y;
    if (a->key != b->key) return a->key < b->key ? -1 : 1;
    return (a->number > b->number) - (a->number < b->number);
}

static int sort_by(async *a, const int64_t *key)
{
    hd_lowering *l = a->l;
    placed_draft *all = hd_malloc((l->n_drafts + 1) * sizeof *all);
    if (!all) return no_memory(l);
    for (size_t i = 0; i < l->n_drafts; i++) all[i] = (placed_draft){key[i], i, l->drafts[i]};
    qsort(all, l->n_drafts, sizeof *all, compare_placed);
    for (size_t i = 0; i < l->n_drafts; i++) l->drafts[i] = all[i].draft;
    hd_free(all);
    return 0;
}

static int64_t *new_keys(async *a)
{
    int64_t *key = scratch(a, a->l->n_drafts, sizeof *key);
    for (size_t i = 0; key && i < a->l->n_drafts; i++) key[i] = 4 * (int64_t)i + 2;
    return key;
}

static size_t segment_end(const hd_lowering *l, size_t i)
{
    size_t end = i;
    while (end < l->n_drafts && l->drafts[end].segment == l->drafts[i].segment) end++;
    return end;
}

/* ---- reductions from the update into the last backward ---- */

/* Behind which draft all of update's operand i is there: the last that writes it, if all who do are of one segment of backward, and nobody touches
 * it behind that before the update. Else -1. */
static int64_t last_addend(const async *a, size_t i)
{
    const hd_lowering *l = a->l;
    int storage = storage_of(a, l->drafts[i].instr.in[0]);
    int64_t last = -1;
    if (l->drafts[i].instr.in[0] != storage) return -1;
    for (size_t k = 0; k < i; k++) {
        const hd_draft *d = &l->drafts[k];
        if (last >= 0 && d->segment != l->update && touches(a, &d->instr, storage)) {
            if (d->segment != l->drafts[last].segment) return -1;
            last = (int64_t)k;
        }
        if (d->instr.opcode == HD_VIEW && d->instr.out[0] == storage && d->segment != l->update) last = (int64_t)k;
        if (!writes(a, &d->instr, storage) || d->segment == 0) continue;
        if (d->segment == l->update || d->instr.last) return -1;
        last = (int64_t)k;
    }
    if (last < 0) return -1;
    hd_segment_kind kind = hd_lower_kind(l, l->drafts[last].segment);
    return kind == HD_SEGMENT_BACKWARD || kind == HD_SEGMENT_WEIGHT ? last : -1;
}

static int start_in_backward(async *a)
{
    hd_lowering *l = a->l;
    int64_t *key = new_keys(a);
    if (!key) return no_memory(l);
    for (size_t i = 0; i < l->n_drafts; i++) {
        hd_draft *d = &l->drafts[i];
        if (d->segment != l->update || !is_reduction(&d->instr) || !hd_lower_runs_beside(l, &d->instr)) continue;
        if (storage_of(a, d->instr.out[0]) != d->instr.out[0]) continue;
        int64_t behind = last_addend(a, i);
        if (behind < 0) continue;
        key[i] = 4 * behind + 3;
        d->segment = l->drafts[behind].segment;
        d->instr.last = true;
    }
    return sort_by(a, key);
}

/* ---- updates behind backward ---- */

static bool any_hot(const async *a, const bool *hot, const int *buffers, int n)
{
    for (int k = 0; k < n; k++)
        if (buffers[k] >= 0 && hot[a->storage[buffers[k]]]) return true;
    return false;
}

static void heat(const async *a, bool *hot, const int *buffers, int n)
{
    for (int k = 0; k < n; k++)
        if (buffers[k] >= 0) hot[a->storage[buffers[k]]] = true;
}

/* Whether the update, and nothing else, reads what draft i makes. */
static bool is_for_update(const async *a, size_t i, size_t end)
{
    const hd_lowering *l = a->l;
    int storage = storage_of(a, l->drafts[i].instr.out[0]), readers = 0;
    for (size_t k = i + 1; k < end; k++) {
        if (!touches(a, &l->drafts[k].instr, storage)) continue;
        if (!l->drafts[k].late) return false;
        readers++;
    }
    return readers > 0;
}

static int delay_updates(async *a, size_t begin, size_t end)
{
    hd_lowering *l = a->l;
    int64_t *key = new_keys(a);
    if (!key) return no_memory(l);
    for (size_t i = begin; i < end; i++) {
        const hd_draft *d = &l->drafts[i];
        const hd_instr *x = &d->instr;
        bool reads = any_hot(a, a->hot_written, x->in, x->n_in);
        bool after = reads || any_hot(a, a->hot_written, x->out, x->n_out) || any_hot(a, a->hot_read, x->out, x->n_out);
        if (after) {
            key[i] += 4 * (int64_t)(end - begin);
            heat(a, a->hot_read, x->in, x->n_in);
            heat(a, a->hot_written, x->out, x->n_out);
        } else if (is_reduction(x) && hd_lower_runs_beside(l, x) && is_for_update(a, i, end)) {
            heat(a, a->hot_written, x->out, x->n_out);
        }
    }
    /* Those of later segments stay behind. */
    for (size_t i = end; i < l->n_drafts; i++) key[i] += 4 * (int64_t)(end - begin);
    return sort_by(a, key);
}

/* ---- sums of scattered gradients ---- */

/* The reduction of this segment that makes what the sum at draft i adds; i if there is none. */
static size_t added_reduction(const async *a, size_t begin, size_t i)
{
    const hd_lowering *l = a->l;
    const hd_instr *x = &l->drafts[i].instr;
    if (x->opcode != HD_KERNEL || x->op != &hd_op_add || x->in[0] != x->out[0] || x->in[1] < 0) return i;
    for (size_t k = i; k-- > begin;) {
        const hd_instr *y = &l->drafts[k].instr;
        if (writes(a, y, storage_of(a, x->in[1]))) return is_reduction(y) && hd_lower_runs_beside(l, y) ? k : i;
    }
    return i;
}

/* In front of which draft the sum must stand: of the next that touches its memory, or of the reduction with which more than there may be would be
 * under way. */
static size_t latest_place(const async *a, size_t reduction, size_t i, size_t end)
{
    const hd_lowering *l = a->l;
    const hd_instr *x = &l->drafts[i].instr;
    int64_t under_way = operand_bytes(l, &l->drafts[reduction].instr);
    for (size_t k = reduction + 1; k < end; k++) {
        const hd_instr *y = &l->drafts[k].instr;
        if (k <= i) continue;
        if (touches(a, y, storage_of(a, x->out[0])) || touches(a, y, storage_of(a, x->in[1]))) return k;
        if (y->opcode == HD_VIEW && (has(a, y->out, 1, storage_of(a, x->out[0])) || has(a, y->out, 1, storage_of(a, x->in[1])))) return k;
        if (is_reduction(y)) under_way += operand_bytes(l, y);
        if (under_way > MOST_SCATTERED) return k;
    }
    return end;
}

/* Where each micro-batch's gradients are reduced, they are added up later in the call. */
static int add_later(async *a, size_t begin, size_t end)
{
    hd_lowering *l = a->l;
    int64_t *key = new_keys(a);
    if (!key) return no_memory(l);
    for (size_t i = begin; i < end; i++) {
        size_t reduction = added_reduction(a, begin, i);
        if (reduction < i) key[i] = 4 * (int64_t)latest_place(a, reduction, i, end) + 1;
    }
    return sort_by(a, key);
}

/* ---- gathers of parameters, one layer ahead ---- */

/* How much of a path names its layer: up to its first number; all of it if there is none. */
static size_t layer_name(const char *path)
{
    for (size_t i = 0; path[i]; i++)
        if (isdigit((unsigned char)path[i]) && (i == 0 || path[i - 1] == '.')) return i + strspn(path + i, "0123456789");
    return strlen(path);
}

typedef struct gather { size_t at, maker, first_use; bool made; const char *path; } gather;

/* Whether draft i gathers a parameter, or what one kernel makes of one (a cast). */
static bool is_parameter_gather(const async *a, size_t begin, size_t i, size_t end, gather *out)
{
    const hd_lowering *l = a->l;
    const hd_instr *x = &l->drafts[i].instr;
    if (x->opcode != HD_COMM || x->op != &hd_op_all_gather || !hd_lower_runs_beside(l, x)) return false;
    *out = (gather){.at = i, .first_use = end};
    int in = x->in[0];
    for (size_t k = i; k-- > begin;) {
        const hd_instr *y = &l->drafts[k].instr;
        if (!has(a, y->out, y->n_out, storage_of(a, in))) continue;
        if (out->made || y->opcode != HD_KERNEL || y->n_in != 1 || y->workspace >= 0) return false;
        out->made = true;
        out->maker = k;
        in = y->in[0];
    }
    hd_role role = l->p->buffers[storage_of(a, in)].role;
    if (role != HD_ROLE_PARAMETER || storage_of(a, x->out[0]) != x->out[0]) return false;
    out->path = l->p->buffers[in].path;
    for (size_t k = i + 1; k < end && out->first_use == end; k++)
        if (touches(a, &l->drafts[k].instr, x->out[0])) out->first_use = k;
    return true;
}

static bool same_layer(const gather *a, const gather *b)
{
    size_t n = layer_name(a->path);
    return n == layer_name(b->path) && !memcmp(a->path, b->path, n);
}

/* Each layer's gathers go before the first use of the layer's before. */
static int gather_ahead(async *a, size_t begin, size_t end)
{
    hd_lowering *l = a->l;
    int64_t *key = new_keys(a);
    gather *all = scratch(a, end - begin, sizeof *all);
    size_t n = 0, layer = 0, before = 0;
    if (!key || !all) return no_memory(l);
    for (size_t i = begin; i < end; i++)
        if (is_parameter_gather(a, begin, i, end, &all[n])) n++;
    for (size_t i = 0; i < n; i++) {
        if (i && !same_layer(&all[i], &all[layer])) before = layer, layer = i;
        size_t to = layer ? all[before].first_use : begin;
        for (size_t k = before; k < layer; k++)
            if (all[k].first_use < to) to = all[k].first_use;
        if (to >= all[i].at) continue;
        key[all[i].at] = 4 * (int64_t)to + 1;
        if (all[i].made && to <= all[i].maker) key[all[i].maker] = 4 * (int64_t)to;
    }
    return sort_by(a, key);
}

/* ---- what must stay behind a transfer ---- */

static bool needs(const async *a, const hd_instr *x, const hd_instr *y)
{
    for (int m = 0; m < x->n_in; m++)
        if (touches(a, y, storage_of(a, x->out[m])) || writes(a, y, storage_of(a, x->in[m]))) return true;
    return false;
}

/* The first draft behind i that touches its results or writes to its operands; n_drafts: none. */
static size_t first_touch(const async *a, size_t i)
{
    const hd_lowering *l = a->l;
    for (size_t k = i + 1; k < l->n_drafts; k++)
        if (needs(a, &l->drafts[i].instr, &l->drafts[k].instr)) return k;
    return l->n_drafts;
}

/* ---- pieces of parameters, for the update ---- */

/* Copies of pieces go in front of what reads them: they are a memory move, and only in the way until then. */
static int cut_late(async *a, size_t begin, size_t end)
{
    hd_lowering *l = a->l;
    int64_t *key = new_keys(a);
    if (!key) return no_memory(l);
    for (size_t i = begin; i < end; i++) {
        const hd_instr *x = &l->drafts[i].instr;
        if (!l->drafts[i].late || x->op != &hd_op_shard) continue;
        size_t to = first_touch(a, i), k = i + 1;
        while (k < end && !(l->drafts[k].instr.opcode == HD_VIEW && has(a, l->drafts[k].instr.out, 1, storage_of(a, x->out[0])))) k++;
        if (k < to) to = k;
        if (to < end) key[i] = 4 * (int64_t)to + 1;
    }
    return sort_by(a, key);
}

/* ---- tokens ---- */

static int add_wait(hd_lowering *l, hd_instr *x, int token)
{
    int *waits = hd_arena_alloc(&l->p->memory, ((size_t)x->n_waits + 1) * sizeof *waits);
    if (!waits) return no_memory(l);
    for (int i = 0; i < x->n_waits; i++) waits[i] = x->waits[i];
    waits[x->n_waits++] = token;
    x->waits = waits;
    return 0;
}

static bool waits_for(const hd_instr *x, int token)
{
    for (int i = 0; i < x->n_waits; i++)
        if (x->waits[i] == token) return true;
    return false;
}

static bool is_next(const hd_lowering *l, size_t i, size_t other)
{
    size_t k = i + 1;
    while (k < other && l->drafts[k].instr.opcode == HD_VIEW) k++;
    return k == other;
}

/* Of those scattered, the oldest are waited for where more would be under way than there may. */
static int bound_scattered(async *a, size_t i, size_t *oldest)
{
    hd_lowering *l = a->l;
    hd_instr *x = &l->drafts[i].instr;
    int64_t under_way = operand_bytes(l, x), most = MOST_SCATTERED;
    size_t first = i;
    if (l->bucket_bytes && 2 * l->bucket_bytes < most) most = 2 * l->bucket_bytes;
    for (size_t k = i; k-- > *oldest;) {
        const hd_draft *d = &l->drafts[k];
        if (d->segment != l->drafts[i].segment) break;
        if (d->instr.signal < 0 || d->instr.op != &hd_op_reduce_scatter) continue;
        under_way += operand_bytes(l, &d->instr);
        if (under_way > most && first < i) break; /* one besides it may always be */
        first = k;
    }
    for (size_t k = *oldest; k < first; k++) {
        const hd_draft *d = &l->drafts[k];
        if (d->instr.signal < 0 || d->instr.op != &hd_op_reduce_scatter || d->segment != l->drafts[i].segment) continue;
        if (x->n_waits == HD_MAX_WAITS) break;
        int rc = add_wait(l, x, d->instr.signal);
        if (rc) return rc;
        *oldest = k + 1;
    }
    return 0;
}

/* Who waits for what draft i starts and draft `at` is the first to touch: that, or where it waits for as many as it may, the last before it that can do
 * with one more; i: nobody can. */
static size_t waiter_of(const async *a, size_t i, size_t at)
{
    const hd_lowering *l = a->l;
    for (size_t k = at; k > i; k--) {
        const hd_instr *y = &l->drafts[k].instr;
        bool runs = k == at || (y->opcode != HD_VIEW && (!y->last || l->drafts[i].instr.last));
        if (runs && y->n_waits < HD_MAX_WAITS) return k;
    }
    return i;
}

/* Gives draft i a token if there is something to do until it is wanted; *open: nobody behind it waits. */
static int start_early(async *a, size_t i, size_t *oldest, bool *open)
{
    hd_lowering *l = a->l;
    hd_draft *d = &l->drafts[i];
    size_t at = first_touch(a, i);
    bool over = d->instr.last || (d->segment == 0 && l->chunks == 1); /* may reach into later segments */
    *open = at == l->n_drafts || (l->drafts[at].segment != d->segment && !over);
    size_t waiter = *open ? i : waiter_of(a, i, at);
    bool crowded = !*open && waiter == i;
    if (!d->instr.last && (crowded || is_next(l, i, *open ? segment_end(l, i) : waiter))) return *open = false, 0;
    *open |= crowded;
    d->instr.stream = 1;
    d->instr.signal = l->n_tokens++;
    int rc = *open ? 0 : add_wait(l, &l->drafts[waiter].instr, d->instr.signal);
    /* What is reduced in the last micro-batch only has been summed up all the time: giving it up early saves nothing, and would hold up what other stages
     * wait for. */
    if (!rc && !d->instr.last && d->instr.op == &hd_op_reduce_scatter) rc = bound_scattered(a, i, oldest);
    return rc;
}

/* An instruction that does nothing but wait, at the end of a segment. */
static int add_end(hd_lowering *l, int segment, int token)
{
    hd_draft *end = &l->drafts[l->n_drafts - 1];
    bool room = end->instr.opcode == HD_WAIT && end->segment == segment && end->instr.n_waits < HD_MAX_WAITS;
    if (room) return add_wait(l, &end->instr, token);
    if (hd_grow(&l->drafts, &l->cap_drafts, l->n_drafts + 1, sizeof *l->drafts)) return no_memory(l);
    int *none = hd_arena_alloc(&l->p->memory, sizeof *none);
    char *path = hd_arena_strdup(&l->p->memory, "wait");
    if (!none || !path) return no_memory(l);
    hd_draft *d = &l->drafts[l->n_drafts++];
    *d = (hd_draft){.instr = {.opcode = HD_WAIT, .path = path, .in = none, .out = none, .workspace = -1, .signal = -1}, .segment = segment};
    return add_wait(l, &d->instr, token);
}

static int assign_tokens(async *a)
{
    hd_lowering *l = a->l;
    size_t n = l->n_drafts, oldest = 0;
    bool *open = scratch(a, n, 1);
    if (!open) return no_memory(l);
    for (size_t i = 0; i < n; i++) {
        int rc = hd_lower_runs_beside(l, &l->drafts[i].instr) ? start_early(a, i, &oldest, &open[i]) : 0;
        if (rc) return rc;
    }
    for (size_t i = 0; i < n; i++) {
        if (!open[i] || l->drafts[i].instr.signal < 0) continue;
        bool waited = false;
        for (size_t k = i + 1; k < n && !waited; k++)
            waited = l->drafts[k].segment == l->drafts[i].segment && waits_for(&l->drafts[k].instr, l->drafts[i].instr.signal);
        int rc = waited ? 0 : add_end(l, l->drafts[i].segment, l->drafts[i].instr.signal);
        if (rc) return rc;
    }
    if (l->n_drafts == n) return 0;
    int64_t *key = new_keys(a);
    if (!key) return no_memory(l);
    for (size_t i = 0; i < l->n_drafts; i++) key[i] = l->drafts[i].segment;
    return sort_by(a, key);
}

/* ---- all of it ---- */

static int move_all(async *a)
{
    hd_lowering *l = a->l;
    int rc = l->many ? start_in_backward(a) : 0;
    for (size_t i = 0, end; i < l->n_drafts && !rc; i = end) {
        end = segment_end(l, i);
        hd_segment_kind kind = hd_lower_kind(l, l->drafts[i].segment);
        bool loop = kind != HD_SEGMENT_PREPARE && kind != HD_SEGMENT_UPDATE;
        if (loop) rc = gather_ahead(a, i, end);
        if (!rc && kind == HD_SEGMENT_BACKWARD && !l->many) rc = delay_updates(a, i, end);
        if (!rc && loop && l->many) rc = add_later(a, i, end);
        if (!rc) rc = cut_late(a, i, end);
    }
    return rc;
}

int hd_lower_async(hd_lowering *l)
{
    if (!l->g->mesh.n || !l->plan->overlap) return 0;
    async a = {.l = l};
    size_t n = (size_t)l->p->n_buffers;
    a.storage = scratch(&a, n, sizeof *a.storage);
    a.hot_written = scratch(&a, n, 1);
    a.hot_read = scratch(&a, n, 1);
    if (!a.storage || !a.hot_written || !a.hot_read) return no_memory(l);
    find_storage(&a);
    int rc = move_all(&a);
    if (!rc) rc = hd_lower_buckets(l, a.storage);
    if (!rc) rc = assign_tokens(&a);
    return rc;
}
