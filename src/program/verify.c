/* verify.c: the invariants of a program: its parts agree, and walking its schedule, what an instruction reads is what was meant.
 *
 * The walk numbers the writes and keeps, for each root, the last one, and for each buffer the one that it names. A read is right when both
 * agree and nothing else has been written to that memory since: so a result that took over an operand too early is found, whatever
 * lifetimes lowering believed in. */
#include "program/program.h"

#define MAX_BYTES ((int64_t)1 << 46)

static int wrong(hd_error *err, const char *path, const char *what)
{
    return hd_fail(err, HD_EFORMAT, "%s: %s", path, what);
}

/* ---- buffers ---- */

/* Bytes of a plain tensor, or -1 when that is absurd. */
static int64_t plain_bytes(const hd_type *t)
{
    int64_t n = (int64_t)hd_dtype_size(t->dtype);
    for (int i = 0; i < t->shape.rank; i++) {
        if (t->shape.dim[i] < 0) return -1;
        if (t->shape.dim[i] && n > MAX_BYTES / t->shape.dim[i]) return -1;
        n *= t->shape.dim[i];
    }
    return n;
}

static int verify_view(const hd_program *p, const hd_buffer *b, hd_error *err)
{
    if (b->view_of >= p->n_buffers) return wrong(err, b->path, "is a view of a buffer that there isn't");
    const hd_buffer *root = &p->buffers[b->view_of];
    if (root->view_of >= 0) return wrong(err, b->path, "is a view of a view");
    if (root->class != b->class) return wrong(err, b->path, "is a view of a buffer of another class");
    if (b->bytes > root->bytes) return wrong(err, b->path, "is larger than the memory that it is a view of");
    return 0;
}

static int verify_buffer(const hd_program *p, int i, hd_error *err)
{
    const hd_buffer *b = &p->buffers[i];
    int sym = b->type.shape.sym;
    int64_t bytes = plain_bytes(&b->type);
    if (bytes < 0 || (b->format == HD_PLAIN && bytes != b->bytes)) return wrong(err, b->path, "has other bytes than its type says");
    if (sym >= 0 && (sym >= p->n_symbols || b->type.shape.rank == 0 || b->type.shape.dim[0] % p->symbols[sym].max))
        return wrong(err, b->path, "is bounded by a symbol that doesn't fit its outermost dimension");
    if (b->format == HD_PACKED && (b->class != HD_BUFFER_CONSTANT || b->view_of >= 0)) return wrong(err, b->path, "is packed, but no constant");
    if (b->data && b->class != HD_BUFFER_CONSTANT) return wrong(err, b->path, "brings its contents, but is no constant");
    if (b->view_of >= 0) return verify_view(p, b, err);
    if (hd_buffer_in_arena(p, i) && (b->offset < 0 || b->bytes > p->arena_bytes || b->offset > p->arena_bytes - b->bytes))
        return wrong(err, b->path, "reaches out of the arena");
    return 0;
}

static int verify_frame(const hd_program *p, hd_error *err)
{
    if (p->repeat_last >= p->n_segments) return hd_fail(err, HD_EFORMAT, "the program repeats segments that there aren't");
    for (int i = 0; i < p->n_buffers; i++) {
        int rc = verify_buffer(p, i, err);
        if (rc) return rc;
    }
    return 0;
}

/* ---- instructions by themselves ---- */

static void fill_types(const hd_program *p, const int *buffers, int n, hd_type *out)
{
    for (int k = 0; k < n; k++) {
        if (buffers[k] < 0) out[k] = (hd_type){.absent = true, .shape.sym = -1};
        else out[k] = p->buffers[buffers[k]].type;
    }
}

static int verify_types(const hd_program *p, const hd_instr *x, hd_error *err)
{
    hd_type in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS] = {0};
    _Alignas(16) char attrs[1024] = {0};
    hd_error local = {0};
    if (x->n_in < x->op->min_in || x->n_in > x->op->max_in) return wrong(err, x->path, "has a wrong number of operands");
    if (x->op->attrs_size) memcpy(attrs, x->attrs, x->op->attrs_size);
    fill_types(p, x->in, x->n_in, in);
    hd_sig s = {.op = x->op, .in = in, .n_in = x->n_in, .attrs = attrs};
    int n = x->op->infer(&s, out, &local);
    if (n < 0) return hd_fail(err, HD_EFORMAT, "%s: %s", x->path, local.message);
    if (n != x->n_out) return wrong(err, x->path, "has a wrong number of results");
    for (int k = 0; k < n; k++) {
        if (x->out[k] < 0) continue;
        const hd_type *t = &p->buffers[x->out[k]].type;
        if (t->dtype != out[k].dtype || !hd_shape_equal(&t->shape, &out[k].shape)) return wrong(err, x->path, "has a result of another type than its op gives");
    }
    return 0;
}

/* Whether result r may lie over the operands of the same root. */
static int verify_aliases(const hd_program *p, const hd_instr *x, int r, hd_error *err)
{
    hd_type in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS];
    fill_types(p, x->in, x->n_in, in);
    fill_types(p, x->out, x->n_out, out);
    hd_sig s = {x->op, in, out, x->n_in, x->n_out, x->attrs};
    int root = hd_buffer_root(p, x->out[r]);
    uint32_t mask = x->op->may_alias && !x->accumulate ? x->op->may_alias(&s, r) : 0;
    for (int k = 0; k < x->n_in; k++)
        if (x->in[k] >= 0 && hd_buffer_root(p, x->in[k]) == root && !(mask >> k & 1)) return wrong(err, x->path, "writes over an operand that it still reads");
    for (int k = 0; k < r; k++)
        if (x->out[k] >= 0 && hd_buffer_root(p, x->out[k]) == root) return wrong(err, x->path, "writes two results to the same memory");
    return 0;
}

static int verify_plain(const hd_program *p, const hd_instr *x, hd_error *err)
{
    int n_in = x->opcode != HD_ZERO;
    if (x->n_out != 1 || x->out[0] < 0 || x->n_in != n_in || (n_in && x->in[0] < 0)) return wrong(err, x->path, "has wrong operands");
    bool same = n_in && hd_buffer_root(p, x->in[0]) == hd_buffer_root(p, x->out[0]);
    if (x->opcode == HD_VIEW && !same) return wrong(err, x->path, "is a view, but its result is other memory");
    if (x->opcode == HD_COPY && (same || p->buffers[x->in[0]].bytes != p->buffers[x->out[0]].bytes)) return wrong(err, x->path, "copies between wrong buffers");
    return 0;
}

static int verify_instr(const hd_program *p, const hd_instr *x, hd_error *err)
{
    int rc = x->op ? verify_types(p, x, err) : 0;
    if (!rc && x->accumulate && (!x->op || !x->op->can_accumulate)) rc = wrong(err, x->path, "cannot accumulate");
    if (!rc && x->opcode != HD_KERNEL) rc = verify_plain(p, x, err);
    for (int k = 0; k < x->n_out && !rc; k++) {
        if (x->out[k] < 0 || x->opcode == HD_VIEW) continue;
        hd_buffer_class c = p->buffers[x->out[k]].class;
        if (c == HD_BUFFER_CONSTANT || c == HD_BUFFER_INPUT) rc = wrong(err, x->path, "writes to a constant or an input");
        else if (x->opcode == HD_KERNEL) rc = verify_aliases(p, x, k, err);
    }
    if (!rc && x->workspace >= 0 && p->buffers[x->workspace].role != HD_ROLE_WORKSPACE) rc = wrong(err, x->path, "has something else as its workspace");
    return rc;
}

static int verify_instrs(const hd_program *p, hd_error *err)
{
    for (int s = 0; s < p->n_segments; s++) {
        hd_instr_iter it = hd_segment_instrs(p, s);
        for (const hd_instr *x; (x = hd_instr_next(&it));) {
            int rc = verify_instr(p, x, err);
            if (rc) return rc;
        }
    }
    return 0;
}

/* ---- walking the schedule ---- */

typedef struct walk {
    const hd_program *p;
    int count;    /* writes so far */
    int *changes; /* [n_buffers] of a root: number of the last write to it; -1: its memory holds something else */
    int *named;   /* [n_buffers] number of the write that this buffer names; -2: none */
    int *held;    /* roots that hold their memory now, by offset, disjoint; n_held of them */
    int n_held;
    hd_error *err;
} walk;

/* Position of the first held root that ends behind offset. */
static int first_behind(const walk *w, int64_t offset)
{
    int low = 0, high = w->n_held;
    while (low < high) {
        int middle = (low + high) / 2;
        const hd_buffer *b = &w->p->buffers[w->held[middle]];
        if (b->offset + b->bytes <= offset) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* Root takes its memory from whatever holds it. */
static int hold(walk *w, int root, const char *path)
{
    const hd_buffer *b = &w->p->buffers[root];
    if (!hd_buffer_in_arena(w->p, root) || b->bytes == 0) return 0;
    int at = first_behind(w, b->offset), end = at;
    if (at < w->n_held && w->held[at] == root) return 0;
    for (; end < w->n_held && w->p->buffers[w->held[end]].offset < b->offset + b->bytes; end++) {
        w->changes[w->held[end]] = -1;
        if (w->p->buffers[w->held[end]].class == HD_BUFFER_INPUT)
            return hd_fail(w->err, HD_EFORMAT, "%s: writes over the input %s", path, w->p->buffers[w->held[end]].path);
    }
    memmove(&w->held[at + 1], &w->held[end], (size_t)(w->n_held - end) * sizeof *w->held);
    w->held[at] = root;
    w->n_held += 1 - (end - at);
    return 0;
}

static int read_buffer(walk *w, int b, const char *path)
{
    int root = hd_buffer_root(w->p, b);
    if (w->named[b] == -2) return hd_fail(w->err, HD_EFORMAT, "%s: reads %%%d (%s) before it is written", path, b, w->p->buffers[b].path);
    if (w->changes[root] != w->named[b])
        return hd_fail(w->err, HD_EFORMAT, "%s: reads %%%d (%s), but its memory has been written over", path, b, w->p->buffers[b].path);
    return 0;
}

static int write_buffer(walk *w, int b, const char *path)
{
    int root = hd_buffer_root(w->p, b);
    int rc = hold(w, root, path);
    w->changes[root] = ++w->count;
    w->named[b] = w->changes[root];
    return rc;
}

static int walk_view(walk *w, const hd_instr *x)
{
    int root = hd_buffer_root(w->p, x->in[0]);
    w->named[x->out[0]] = w->changes[root] >= 0 && w->named[x->in[0]] == w->changes[root] ? w->changes[root] : -2;
    return 0;
}

/* After all of x's writes: its operands, results and workspace must not have taken each other's memory. */
static int check_apart(walk *w, const hd_instr *x)
{
    for (int k = 0; k < x->n_in; k++)
        if (x->in[k] >= 0 && w->changes[hd_buffer_root(w->p, x->in[k])] < 0) return wrong(w->err, x->path, "its result lies over an operand's memory");
    for (int k = 0; k < x->n_out; k++)
        if (x->out[k] >= 0 && w->changes[hd_buffer_root(w->p, x->out[k])] < 0) return wrong(w->err, x->path, "two results lie over each other");
    return 0;
}

static int walk_instr(walk *w, const hd_instr *x, int micro)
{
    int rc = 0;
    if (x->opcode == HD_VIEW) return walk_view(w, x);
    bool adds = x->accumulate == HD_ACCUMULATE_ALWAYS || (x->accumulate == HD_ACCUMULATE_LATER && micro > 0);
    for (int k = 0; k < x->n_in && !rc; k++)
        if (x->in[k] >= 0) rc = read_buffer(w, x->in[k], x->path);
    for (int k = 0; k < x->n_out && !rc && adds; k++)
        if (x->out[k] >= 0) rc = read_buffer(w, x->out[k], x->path);
    if (!rc && x->workspace >= 0) rc = write_buffer(w, x->workspace, x->path);
    for (int k = 0; k < x->n_out && !rc; k++)
        if (x->out[k] >= 0) rc = write_buffer(w, x->out[k], x->path);
    if (!rc && x->workspace >= 0 && w->changes[x->workspace] < 0) rc = wrong(w->err, x->path, "its result lies over its workspace");
    return rc ? rc : check_apart(w, x);
}

/* From one call to the next, a state's new value is its value. */
static int walk_call(walk *w, const hd_call *c)
{
    hd_instr_iter it = hd_segment_instrs(w->p, c->segment);
    for (const hd_instr *x; (x = hd_instr_next(&it));) {
        int rc = walk_instr(w, x, c->micro);
        if (rc) return rc;
    }
    for (int b = 0; b < w->p->n_buffers; b++)
        if (w->p->buffers[b].class == HD_BUFFER_STATE && w->p->buffers[b].view_of < 0) w->named[b] = w->changes[b];
    return 0;
}

static int walk_begin(walk *w)
{
    int rc = 0;
    for (int b = 0; b < w->p->n_buffers && !rc; b++) {
        const hd_buffer *x = &w->p->buffers[b];
        bool there = x->view_of < 0 && (x->class == HD_BUFFER_INPUT || x->class == HD_BUFFER_CONSTANT || x->class == HD_BUFFER_STATE);
        w->named[b] = there ? 0 : -2;
        w->changes[b] = 0;
        if (there) rc = hold(w, b, x->path);
    }
    return rc;
}

/* Micro-batches past the third repeat what the second and third did. */
static int walk_schedule(walk *w)
{
    const hd_program *p = w->p;
    int rc = walk_begin(w);
    hd_call_iter it = hd_program_calls(p);
    for (hd_call c; !rc && hd_call_next(&it, &c);)
        if (c.micro < 3) rc = walk_call(w, &c);
    bool again = p->repeat_first >= 0 && p->repeat_last == p->n_segments - 1;
    for (int s = p->repeat_first; again && s <= p->repeat_last && !rc; s++) {
        hd_call c = hd_program_call(p, s);
        rc = walk_call(w, &c);
    }
    for (int i = 0; i < p->n_outputs && !rc && p->n_calls; i++) rc = read_buffer(w, p->outputs[i].buffer, p->outputs[i].name);
    return rc;
}

int hd_program_verify(const hd_program *p, hd_error *err)
{
    size_t n = (size_t)p->n_buffers + 1;
    hd_error local = {0};
    walk w = {.p = p, .err = err ? err : &local};
    int rc = verify_frame(p, w.err);
    if (!rc) rc = verify_instrs(p, w.err);
    if (rc) return rc;
    w.changes = hd_calloc(n, sizeof *w.changes);
    w.named = hd_calloc(n, sizeof *w.named);
    w.held = hd_calloc(n, sizeof *w.held);
    if (!w.changes || !w.named || !w.held) rc = hd_fail_memory(w.err, n * sizeof(int), "verifying a program");
    else rc = walk_schedule(&w);
    hd_free(w.changes);
    hd_free(w.named);
    hd_free(w.held);
    return rc;
}
