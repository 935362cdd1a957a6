/* buckets.c: gradients' reductions put together (Li et al. 2020, PyTorch DDP, section 3.2.2; Sergeev and Del Balso 2018, Horovod's tensor fusion): a
 * transfer has a cost of its own, and most gradients are small. On the drafts, between async.c's moves and its tokens.
 *
 * Reductions of a segment over the same data axes, in the order in which backward makes what they reduce, become one COMM with a list of operands and
 * results, where the last of them stood. It is begun once there are enough bytes, so that earlier ones run beside what is still to be computed; a network whose
 * gradients are few bytes in all has smaller ones, for the same reason. An addend's place in its sum is as before: the same bits. lower.c places
 * operands of one list side by side, so that a transport need not pack them. */
#include "ops/ops.h"
#include "program/lower_int.h"

/* Buckets that a segment's reductions make, if they can; of a full one, what the first is (each later one twice as much, until they are full: the sooner
 * something is under way the better, as DDP's first bucket of 1 MiB); kinds at a time. */
enum { AT_LEAST = 8, FIRST_PART = 4, MOST_OPEN = 8 };

typedef struct bucket {
    int member[HD_MAX_LIST]; /* drafts */
    int n;
    int64_t bytes;
    size_t before; /* the first draft that touches what a member works on */
} bucket;

typedef struct bucketing {
    hd_lowering *l;
    const int *storage;  /* [n_buffers] */
    int64_t full, enough; /* bytes: of a full bucket; of the next */
    bucket *open;        /* [MOST_OPEN] n = 0: free */
    int made;
} bucketing;

static int no_memory(hd_lowering *l)
{
    return hd_fail_memory(l->err, sizeof(bucket), "lowering a graph");
}

static const hd_comm_attrs *attrs_of(const hd_instr *x) { return x->attrs; }

/* A reduction over data axes, but of a mere number: guards and clipping wait for those. */
static bool may_join(const hd_lowering *l, const hd_instr *x)
{
    int8_t axes[HD_MAX_AXES];
    bool data = false;
    if (x->opcode != HD_COMM || (x->op != &hd_op_all_reduce && x->op != &hd_op_reduce_scatter) || attrs_of(x)->max) return false;
    if (!l->p->buffers[x->in[0]].type.shape.rank || !hd_lower_runs_beside(l, x)) return false;
    int n = hd_mesh_parse_axes(&l->g->mesh, attrs_of(x)->axes, axes);
    for (int i = 0; i < n; i++) data |= l->g->mesh.axis[axes[i]].role == HD_AXIS_DATA;
    return data;
}

static int64_t operand_bytes(const hd_lowering *l, const hd_instr *x) { return l->p->buffers[x->in[0]].bytes; }

static bool is_storage(const bucketing *b, const int *buffers, int n, int storage)
{
    for (int k = 0; k < n; k++)
        if (buffers[k] >= 0 && b->storage[buffers[k]] == storage) return true;
    return false;
}

/* The first draft behind i that must stay behind it: one that reads or writes its result, or names it anew, or writes its operand. */
static size_t first_behind(const bucketing *b, size_t i)
{
    const hd_lowering *l = b->l;
    const hd_instr *x = &l->drafts[i].instr;
    int in = b->storage[x->in[0]], out = b->storage[x->out[0]];
    for (size_t k = i + 1; k < l->n_drafts; k++) {
        const hd_instr *y = &l->drafts[k].instr;
        if (is_storage(b, y->in, y->n_in, out) || is_storage(b, y->out, y->n_out, out) || is_storage(b, y->out, y->n_out, in)) return k;
    }
    return l->n_drafts;
}

static bool are_alike(const hd_lowering *l, const hd_draft *a, const hd_draft *b)
{
    const hd_instr *x = &a->instr, *y = &b->instr;
    return x->op == y->op && x->last == y->last && !strcmp(attrs_of(x)->axes, attrs_of(y)->axes) &&
           l->p->buffers[x->in[0]].type.dtype == l->p->buffers[y->in[0]].type.dtype;
}

/* The bucket's members become one, in the place of the last; the others are marked as gone. */
static int close_bucket(bucketing *b, bucket *k)
{
    hd_lowering *l = b->l;
    hd_arena *memory = &l->p->memory;
    int n = k->n;
    k->n = 0;
    if (n < 2) return 0;
    hd_instr *x = &l->drafts[k->member[n - 1]].instr;
    int *in = hd_arena_alloc(memory, (size_t)n * sizeof *in), *out = hd_arena_alloc(memory, (size_t)n * sizeof *out);
    hd_comm_attrs *attrs = hd_arena_copy(memory, x->attrs, sizeof *attrs);
    x->path = hd_arena_printf(memory, "bucket.%d", b->made++);
    if (!in || !out || !attrs || !x->path) return no_memory(l);
    for (int i = 0; i < n; i++) {
        in[i] = l->drafts[k->member[i]].instr.in[0];
        out[i] = l->drafts[k->member[i]].instr.out[0];
        if (i < n - 1) l->drafts[k->member[i]].segment = -1;
    }
    if (x->op == &hd_op_reduce_scatter) attrs->dim = -1, attrs->extent = 0;
    x->attrs = attrs;
    x->in = in;
    x->out = out;
    x->n_in = x->n_out = n;
    return 0;
}

/* The open bucket of reductions like that of draft i, or a free one. */
static bucket *find_bucket(bucketing *b, size_t i)
{
    bucket *free = NULL;
    for (int k = 0; k < MOST_OPEN; k++) {
        if (b->open[k].n && are_alike(b->l, &b->l->drafts[b->open[k].member[0]], &b->l->drafts[i])) return &b->open[k];
        if (!b->open[k].n) free = &b->open[k];
    }
    return free;
}

/* Whether x works on memory that a member works on: a gradient may also be a statistic that is wanted by itself, under another name. */
static bool shares_memory(const bucketing *b, const bucket *k, const hd_instr *x)
{
    int in = b->storage[x->in[0]], out = b->storage[x->out[0]];
    for (int m = 0; m < k->n; m++) {
        const hd_instr *y = &b->l->drafts[k->member[m]].instr;
        if (is_storage(b, y->in, 1, in) || is_storage(b, y->in, 1, out) || is_storage(b, y->out, 1, in) || is_storage(b, y->out, 1, out)) return true;
    }
    return false;
}

static int join(bucketing *b, size_t i)
{
    const hd_instr *x = &b->l->drafts[i].instr;
    bucket *k = find_bucket(b, i);
    if (!k) return 0;
    if (k->n && shares_memory(b, k, x)) {
        int rc = close_bucket(b, k);
        if (rc) return rc;
    }
    if (!k->n) k->bytes = 0, k->before = SIZE_MAX;
    size_t before = first_behind(b, i);
    k->member[k->n++] = (int)i;
    k->bytes += operand_bytes(b->l, x);
    if (before < k->before) k->before = before;
    if (k->bytes < b->enough && k->n < HD_MAX_LIST) return 0;
    b->enough = 2 * b->enough < b->full ? 2 * b->enough : b->full;
    return close_bucket(b, k);
}

/* Drafts begin .. end, a segment. */
static int fill_buckets(bucketing *b, size_t begin, size_t end)
{
    hd_lowering *l = b->l;
    int64_t total = 0;
    int rc = 0;
    for (size_t i = begin; i < end; i++)
        if (may_join(l, &l->drafts[i].instr)) total += operand_bytes(l, &l->drafts[i].instr);
    b->full = total / AT_LEAST < l->plan->bucket ? total / AT_LEAST : l->plan->bucket;
    b->enough = b->full / FIRST_PART;
    if (b->full > l->bucket_bytes) l->bucket_bytes = b->full;
    for (size_t i = begin; i < end && !rc; i++) {
        for (int k = 0; k < MOST_OPEN && !rc; k++)
            if (b->open[k].n && b->open[k].before <= i) rc = close_bucket(b, &b->open[k]);
        if (!rc && may_join(l, &l->drafts[i].instr)) rc = join(b, i);
    }
    for (int k = 0; k < MOST_OPEN && !rc; k++) rc = close_bucket(b, &b->open[k]);
    return rc;
}

int hd_lower_buckets(hd_lowering *l, const int *storage)
{
    bucketing b = {.l = l, .storage = storage, .open = hd_arena_alloc(&l->scratch, MOST_OPEN * sizeof *b.open)};
    int rc = b.open ? 0 : no_memory(l);
    for (size_t i = 0, end; i < l->n_drafts && !rc && l->plan->bucket; i = end) {
        end = i;
        while (end < l->n_drafts && l->drafts[end].segment == l->drafts[i].segment) end++;
        hd_segment_kind kind = hd_lower_kind(l, l->drafts[i].segment);
        if (kind != HD_SEGMENT_PREPARE && kind != HD_SEGMENT_FORWARD) rc = fill_buckets(&b, i, end);
    }
    size_t kept = 0;
    for (size_t i = 0; i < l->n_drafts; i++)
        if (l->drafts[i].segment >= 0) l->drafts[kept++] = l->drafts[i];
    l->n_drafts = kept;
    return rc;
}
