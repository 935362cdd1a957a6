/* verify.c: the invariants of a program: its parts agree, and walking its schedule, what an instruction reads is what was meant.
 *
 * The walk numbers the writes and keeps, for each root, the last one, and for each buffer the one that it names. A read is right when both
 * agree and nothing else has been written to that memory since: so a result that took over an operand too early is found, whatever
 * lifetimes lowering believed in. */
#include "ops/ops.h"
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
    return t->blocks ? hd_type_bytes(t) : n;
}

static int verify_view(const hd_program *p, const hd_buffer *b, hd_error *err)
{
    if (b->view_of >= p->n_buffers) return wrong(err, b->path, "is a view of a buffer that there isn't");
    const hd_buffer *root = &p->buffers[b->view_of];
    if (root->view_of >= 0) return wrong(err, b->path, "is a view of a view");
    if (root->class != b->class) return wrong(err, b->path, "is a view of a buffer of another class");
    if (b->copies != root->copies) return wrong(err, b->path, "has another number of copies than the memory that it is a view of");
    if (b->bytes > root->bytes) return wrong(err, b->path, "is larger than the memory that it is a view of");
    return 0;
}

/* The largest piece is that of coordinate 0. */
static int verify_layout(const hd_program *p, const hd_buffer *b, hd_error *err)
{
    if (!p->mesh.n) return wrong(err, b->path, "has a layout, but the program no mesh");
    if (b->whole.rank != b->type.shape.rank || plain_bytes(&(hd_type){.dtype = b->type.dtype, .shape = b->whole}) < 0)
        return wrong(err, b->path, "is a piece of something of another rank, or of absurd size");
    hd_shape s = hd_layout_largest(&p->mesh, b->layout, &b->whole);
    for (int i = 0; i < s.rank; i++)
        if (s.dim[i] != b->type.shape.dim[i]) return wrong(err, b->path, "isn't the piece that its layout says");
    return 0;
}

static int verify_copies(const hd_program *p, const hd_buffer *b, int i, hd_error *err)
{
    if (b->copies < 1 || b->copies > (p->n_calls > 1 ? p->n_calls : 1)) return wrong(err, b->path, "has more copies than there are calls");
    if (b->copies > 1 && !hd_buffer_in_arena(p, hd_buffer_root(p, i))) return wrong(err, b->path, "has copies, but isn't in the arena");
    if (b->bytes && b->copies > MAX_BYTES / b->bytes) return wrong(err, b->path, "has copies of absurd size");
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
    if (b->type.blocks && (b->class != HD_BUFFER_CONSTANT || b->data || b->layout || b->view_of >= 0 || hd_shape_count(&b->type.shape) % b->type.blocks->block))
        return wrong(err, b->path, "lies in blocks, but is no parameter of whole blocks");
    if (b->format == HD_PACKED && (b->class != HD_BUFFER_CONSTANT || b->view_of >= 0)) return wrong(err, b->path, "is packed, but no constant");
    if (b->data && b->class != HD_BUFFER_CONSTANT) return wrong(err, b->path, "brings its contents, but is no constant");
    if (b->layout && verify_layout(p, b, err)) return HD_EFORMAT;
    if (b->view_of >= 0 && verify_view(p, b, err)) return HD_EFORMAT;
    if (verify_copies(p, b, i, err)) return HD_EFORMAT;
    if (b->view_of >= 0) return 0;
    int64_t all = b->bytes * b->copies;
    if (hd_buffer_in_arena(p, i) && (b->offset < 0 || all > p->arena_bytes || b->offset > p->arena_bytes - all))
        return wrong(err, b->path, "reaches out of the arena");
    return 0;
}

static bool same_mesh(const hd_mesh *a, const hd_mesh *b)
{
    bool same = a->n == b->n;
    for (int i = 0; same && i < a->n; i++)
        same = !strcmp(a->axis[i].name, b->axis[i].name) && a->axis[i].size == b->axis[i].size && a->axis[i].role == b->axis[i].role;
    return same;
}

/* Meshes of each stage's own: the pipeline's axis, of size 1, comes first. */
static int verify_meshes(const hd_program *p, hd_error *err)
{
    if (p->meshes.n != p->stages) return hd_fail(err, HD_EFORMAT, "the program is of one of %d stages, and has the meshes of %d", p->stages, p->meshes.n);
    for (int s = 0; s < p->meshes.n; s++) {
        const hd_mesh *m = &p->meshes.mesh[s];
        for (int a = 0; a < m->n; a++)
            if ((m->axis[a].role == HD_AXIS_PIPELINE) != (a == 0)) return hd_fail(err, HD_EFORMAT, "the mesh of stage %d doesn't begin with the pipeline's axis", s);
        if (!m->n || m->axis[0].size != 1) return hd_fail(err, HD_EFORMAT, "the mesh of stage %d has no pipeline's axis of size 1", s);
    }
    return same_mesh(&p->mesh, &p->meshes.mesh[p->stage]) ? 0 : hd_fail(err, HD_EFORMAT, "the program's mesh isn't that of its stage");
}

/* A pipeline's axis has a coordinate for each stage. */
static int verify_stages(const hd_program *p, hd_error *err)
{
    int size = 1;
    if (p->meshes.n) return verify_meshes(p, err);
    for (int a = 0; a < p->mesh.n; a++)
        if (p->mesh.axis[a].role == HD_AXIS_PIPELINE) size = p->mesh.axis[a].size;
    return size == p->stages ? 0 : hd_fail(err, HD_EFORMAT, "the program is of one of %d stages, but its mesh is for %d", p->stages, size);
}

static int verify_frame(const hd_program *p, hd_error *err)
{
    if (verify_stages(p, err)) return err->code;
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

/* The types before anything was cut. */
static void fill_whole(const hd_program *p, const int *buffers, int n, hd_type *out)
{
    fill_types(p, buffers, n, out);
    for (int k = 0; k < n; k++)
        if (buffers[k] >= 0 && p->buffers[buffers[k]].layout) out[k].shape = p->buffers[buffers[k]].whole;
}

/* That the whole op is a valid one, and has the loops that are cut. */
static int verify_splits(const hd_program *p, const hd_instr *x, hd_error *err)
{
    hd_type in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS] = {0};
    _Alignas(16) char attrs[HD_MAX_ATTRS] = {0};
    hd_error local = {0};
    hd_loops loops = {0};
    if (!p->mesh.n) return wrong(err, x->path, "has loops that are cut, but the program no mesh");
    memcpy(attrs, x->attrs ? x->attrs : (const void *)"", x->attrs ? x->op->attrs_size : 0);
    fill_whole(p, x->in, x->n_in, in);
    hd_sig s = {.op = x->op, .in = in, .n_in = x->n_in, .attrs = attrs};
    int n = x->op->infer(&s, out, &local);
    if (n < 0) return hd_fail(err, HD_EFORMAT, "%s: before it was cut: %s", x->path, local.message);
    s.out = out;
    s.n_out = n;
    x->op->loops(&s, &loops);
    for (int i = 0; i < x->n_splits; i++)
        if (x->splits[i].loop < 0 || x->splits[i].loop >= loops.n) return wrong(err, x->path, "has no such loop to cut");
    return 0;
}

static int verify_types(const hd_program *p, const hd_instr *x, hd_error *err)
{
    hd_type in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS] = {0};
    _Alignas(16) char attrs[HD_MAX_ATTRS] = {0};
    hd_error local = {0};
    if (x->n_in < x->op->min_in || x->n_in > x->op->max_in) return wrong(err, x->path, "has a wrong number of operands");
    int rc = x->n_splits ? verify_splits(p, x, err) : 0;
    if (rc) return rc;
    hd_instr_attrs(p, x, 0, attrs);
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

static int verify_pipe(const hd_program *p, const hd_instr *x, hd_error *err)
{
    hd_crossing c;
    if (p->stages == 1) return wrong(err, x->path, "reaches another stage, but there is one only");
    return p->meshes.n ? hd_program_crossing(p, x, &c, err) : 0;
}

static int verify_comm(const hd_program *p, const hd_instr *x, hd_error *err)
{
    int8_t axes[HD_MAX_AXES];
    if (!x->op->is_comm) return wrong(err, x->path, "is no transfer between ranks");
    if (!p->mesh.n) return wrong(err, x->path, "is a transfer, but the program has no mesh");
    for (int k = 0; k < x->n_in + x->n_out; k++)
        if ((k < x->n_in ? x->in[k] : x->out[k - x->n_in]) < 0) return wrong(err, x->path, "has wrong operands");
    if (x->op->max_in == 0 || x->op->has_effect) return verify_pipe(p, x, err);
    int n = hd_mesh_parse_axes(&p->mesh, ((const hd_comm_attrs *)x->attrs)->axes, axes);
    if (n < 1) return wrong(err, x->path, "is over axes that the mesh lacks");
    bool over_stages = false;
    for (int i = 0; i < n; i++) over_stages |= p->mesh.axis[axes[i]].role == HD_AXIS_PIPELINE;
    if (over_stages && p->meshes.n && (n > 1 || x->op != &hd_op_all_reduce)) return wrong(err, x->path, "is over stages of different meshes, but no all_reduce over \"pp\"");
    return 0;
}

/* A transfer beside computing: within a stage, for all meet where stages do. */
static int verify_stream(const hd_program *p, const hd_instr *x, hd_error *err)
{
    int8_t axes[HD_MAX_AXES];
    if (x->stream < 0 || x->stream > 1 || (x->stream == 1) != (x->signal >= 0)) return wrong(err, x->path, "is of stream 1 without a token to signal, or the other way round");
    if (x->last && x->stream != 1) return wrong(err, x->path, "is done in the last micro-batch only, but is no transfer of stream 1");
    if (x->stream == 0) return 0;
    if (x->opcode != HD_COMM || x->op->max_in == 0 || x->op->has_effect) return wrong(err, x->path, "is of stream 1, but no collective");
    if (x->op->sends_nothing) return wrong(err, x->path, "is of stream 1, but sends nothing");
    int n = hd_mesh_parse_axes(&p->mesh, ((const hd_comm_attrs *)x->attrs)->axes, axes);
    for (int i = 0; i < n; i++)
        if (p->mesh.axis[axes[i]].role == HD_AXIS_PIPELINE && p->stages > 1) return wrong(err, x->path, "is of stream 1, but stages meet at it");
    return 0;
}

static int verify_instr(const hd_program *p, const hd_instr *x, hd_error *err);

/* Each member by itself; and apart from the others, for all are under way at once. */
static int verify_list(const hd_program *p, const hd_instr *x, hd_error *err)
{
    if (x->op != &hd_op_all_reduce && x->op != &hd_op_reduce_scatter) return wrong(err, x->path, "is a list, but no reduction");
    if (x->n_in != x->n_out) return wrong(err, x->path, "has not as many results as operands");
    for (int k = 0; k < x->n_in; k++)
        if (x->in[k] < 0 || x->out[k] < 0) return wrong(err, x->path, "has wrong operands");
    for (int k = 0; k < x->n_in; k++) {
        hd_comm_attrs own;
        hd_instr member = hd_instr_member(p, x, k, &own);
        int rc = verify_instr(p, &member, err);
        if (rc) return rc;
        if (p->buffers[x->in[k]].type.dtype != p->buffers[x->in[0]].type.dtype) return wrong(err, x->path, "is a list of several dtypes");
        int root = hd_buffer_root(p, x->out[k]);
        for (int i = 0; i < x->n_in; i++)
            if (i != k && (hd_buffer_root(p, x->in[i]) == root || hd_buffer_root(p, x->out[i]) == root))
                return wrong(err, x->path, "writes over another of its operands or results");
    }
    return 0;
}

static int verify_instr(const hd_program *p, const hd_instr *x, hd_error *err)
{
    if (hd_instr_is_list(x)) return verify_list(p, x, err);
    if (x->opcode == HD_WAIT) return x->n_in || x->n_out || !x->n_waits ? wrong(err, x->path, "waits for nothing, or does more than wait") : verify_stream(p, x, err);
    int rc = x->op ? verify_types(p, x, err) : 0;
    if (!rc && x->accumulate && (!x->op || !x->op->can_accumulate)) rc = wrong(err, x->path, "cannot accumulate");
    if (!rc && x->opcode == HD_COMM) rc = verify_comm(p, x, err);
    else if (!rc && x->opcode != HD_KERNEL) rc = verify_plain(p, x, err);
    for (int k = 0; k < x->n_out && !rc; k++) {
        if (x->out[k] < 0 || x->opcode == HD_VIEW) continue;
        hd_buffer_class c = p->buffers[x->out[k]].class;
        if (c == HD_BUFFER_CONSTANT || c == HD_BUFFER_INPUT) rc = wrong(err, x->path, "writes to a constant or an input");
        else if (x->opcode == HD_KERNEL || x->opcode == HD_COMM) rc = verify_aliases(p, x, k, err);
    }
    if (!rc) rc = verify_stream(p, x, err);
    if (!rc && x->workspace >= 0 && p->buffers[x->workspace].role != HD_ROLE_WORKSPACE) rc = wrong(err, x->path, "has something else as its workspace");
    return rc;
}

/* One instruction a token. */
static int verify_signals(const hd_program *p, hd_error *err)
{
    int n = hd_program_tokens(p), rc = 0;
    bool *seen = hd_calloc((size_t)n + 1, 1);
    if (!seen) return hd_fail_memory(err, (size_t)n, "verifying a program");
    for (int s = 0; s < p->n_segments; s++) {
        hd_instr_iter it = hd_segment_instrs(p, s);
        for (const hd_instr *x; (x = hd_instr_next(&it)) && !rc;) {
            if (x->signal < 0) continue;
            if (seen[x->signal]) rc = wrong(err, x->path, "signals a token that another signals");
            seen[x->signal] = true;
        }
    }
    hd_free(seen);
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

/* One copy of a buffer is a slot. */
typedef struct walk {
    const hd_program *p;
    int count;    /* writes so far */
    int micro;    /* of the running call */
    int *slot;    /* [n_buffers] first slot of each buffer */
    int *buffer;  /* [slots] whose slot it is */
    int *changes; /* [slots] of a root: number of the last write to it; -1: its memory holds something else */
    int *named;   /* [slots] number of the write that this buffer names; -2: none */
    int *filled;  /* [slots] of an input: micro-batch that it was filled for; -1: whichever */
    int *sent;    /* [slots] of a root: number of the write that a send under way takes; 0: none */
    int *sender;  /* [slots] segment of that send */
    int *receiving, *taking; /* [slots] of a root: transfers under way that write it; that read it */
    struct { const hd_instr *instr; int micro; } *token; /* [n_tokens] the transfer that will signal it, and in which micro-batch; instr NULL: none under way */
    int n_tokens, micro_batches;
    int *held;    /* slots of roots that hold their memory now, by offset, disjoint; n_held of them */
    int n_held;
    bool in_order;
    hd_error *err;
} walk;

static int slot_of(const walk *w, int b)
{
    return w->slot[b] + w->micro % w->p->buffers[b].copies;
}

static int root_slot(const walk *w, int b)
{
    return slot_of(w, hd_buffer_root(w->p, b));
}

static int64_t slot_offset(const walk *w, int slot)
{
    const hd_buffer *b = &w->p->buffers[w->buffer[slot]];
    return b->offset + (slot - w->slot[w->buffer[slot]]) * b->bytes;
}

/* Position of the first held slot that ends behind offset. */
static int first_behind(const walk *w, int64_t offset)
{
    int low = 0, high = w->n_held;
    while (low < high) {
        int middle = (low + high) / 2;
        if (slot_offset(w, w->held[middle]) + w->p->buffers[w->buffer[w->held[middle]]].bytes <= offset) low = middle + 1;
        else high = middle;
    }
    return low;
}

static int lose(walk *w, int slot, const char *path)
{
    const hd_buffer *b = &w->p->buffers[w->buffer[slot]];
    w->changes[slot] = -1;
    if (w->sent[slot]) return hd_fail(w->err, HD_EFORMAT, "%s: writes over %s, which is still being sent", path, b->path);
    if (w->receiving[slot] || w->taking[slot]) return hd_fail(w->err, HD_EFORMAT, "%s: writes over %s, which a transfer still uses", path, b->path);
    return b->class == HD_BUFFER_INPUT ? hd_fail(w->err, HD_EFORMAT, "%s: writes over the input %s", path, b->path) : 0;
}

/* A root's slot takes its memory from whatever holds it. */
static int hold(walk *w, int slot, const char *path)
{
    const hd_buffer *b = &w->p->buffers[w->buffer[slot]];
    if (!hd_buffer_in_arena(w->p, w->buffer[slot]) || b->bytes == 0) return 0;
    int64_t offset = slot_offset(w, slot);
    int at = first_behind(w, offset), end = at;
    if (at < w->n_held && w->held[at] == slot) return 0;
    for (; end < w->n_held && slot_offset(w, w->held[end]) < offset + b->bytes; end++) {
        int rc = lose(w, w->held[end], path);
        if (rc) return rc;
    }
    memmove(&w->held[at + 1], &w->held[end], (size_t)(w->n_held - end) * sizeof *w->held);
    w->held[at] = slot;
    w->n_held += 1 - (end - at);
    return 0;
}

static int read_buffer(walk *w, int b, const char *path)
{
    int slot = slot_of(w, b), root = root_slot(w, b);
    const char *name = w->p->buffers[b].path;
    if (w->receiving[root]) return hd_fail(w->err, HD_EFORMAT, "%s: reads %%%d (%s) before its transfer is waited for", path, b, name);
    if (w->named[slot] == -2) return hd_fail(w->err, HD_EFORMAT, "%s: reads %%%d (%s) before it is written", path, b, name);
    if (w->changes[root] != w->named[slot]) return hd_fail(w->err, HD_EFORMAT, "%s: reads %%%d (%s), but its memory has been written over", path, b, name);
    if (w->filled[root] >= 0 && w->filled[root] != w->micro)
        return hd_fail(w->err, HD_EFORMAT, "%s: reads %%%d (%s) in micro-batch %d, but it has been filled for %d", path, b, name, w->micro, w->filled[root]);
    return 0;
}

static int write_buffer(walk *w, int b, const char *path)
{
    int root = root_slot(w, b);
    if (w->sent[root]) return hd_fail(w->err, HD_EFORMAT, "%s: writes to %s, which is still being sent", path, w->p->buffers[b].path);
    if (w->receiving[root] || w->taking[root])
        return hd_fail(w->err, HD_EFORMAT, "%s: writes to %s before its transfer is waited for", path, w->p->buffers[b].path);
    int rc = hold(w, root, path);
    w->changes[root] = ++w->count;
    w->named[slot_of(w, b)] = w->changes[root];
    return rc;
}

static int walk_view(walk *w, const hd_instr *x)
{
    int root = root_slot(w, x->in[0]), named = w->named[slot_of(w, x->in[0])];
    w->named[slot_of(w, x->out[0])] = w->changes[root] >= 0 && named == w->changes[root] ? w->changes[root] : -2;
    return 0;
}

/* After all of x's writes: its operands, results and workspace must not have taken each other's memory. */
static int check_apart(walk *w, const hd_instr *x)
{
    for (int k = 0; k < x->n_in; k++)
        if (x->in[k] >= 0 && w->changes[root_slot(w, x->in[k])] < 0) return wrong(w->err, x->path, "its result lies over an operand's memory");
    for (int k = 0; k < x->n_out; k++)
        if (x->out[k] >= 0 && w->changes[root_slot(w, x->out[k])] < 0) return wrong(w->err, x->path, "two results lie over each other");
    return 0;
}

static void begin_send(walk *w, const hd_instr *x, int segment)
{
    int root = root_slot(w, x->in[0]);
    if (hd_buffer_in_arena(w->p, w->buffer[root])) w->sent[root] = w->changes[root] + 1, w->sender[root] = segment;
}

/* Counts what x takes and receives in that micro-batch up, or down. */
static void mark_transfer(walk *w, const hd_instr *x, int micro, int by)
{
    int now = w->micro;
    w->micro = micro;
    for (int k = 0; k < x->n_in; k++) w->taking[root_slot(w, x->in[k])] += by;
    for (int k = 0; k < x->n_out; k++) w->receiving[root_slot(w, x->out[k])] += by;
    w->micro = now;
}

static int begin_transfer(walk *w, const hd_instr *x)
{
    if (w->token[x->signal].instr) return wrong(w->err, x->path, "is started again before it was waited for");
    w->token[x->signal].instr = x;
    w->token[x->signal].micro = w->micro;
    mark_transfer(w, x, w->micro, 1);
    return 0;
}

static int end_transfers(walk *w, const hd_instr *x)
{
    for (int i = 0; i < x->n_waits; i++) {
        int t = x->waits[i];
        if (t < 0 || t >= w->n_tokens) return wrong(w->err, x->path, "waits for a token that nobody signals");
        if (!w->token[t].instr) continue;
        mark_transfer(w, w->token[t].instr, w->token[t].micro, -1);
        w->token[t].instr = NULL;
    }
    return 0;
}

static int walk_instr(walk *w, const hd_instr *x, int segment)
{
    if (x->opcode == HD_VIEW) return walk_view(w, x);
    if (!hd_instr_runs(x, w->micro, w->micro_batches)) return 0;
    int rc = end_transfers(w, x);
    bool adds = x->accumulate == HD_ACCUMULATE_ALWAYS || (x->accumulate == HD_ACCUMULATE_LATER && w->micro > 0);
    for (int k = 0; k < x->n_in && !rc; k++)
        if (x->in[k] >= 0) rc = read_buffer(w, x->in[k], x->path);
    for (int k = 0; k < x->n_out && !rc && adds; k++)
        if (x->out[k] >= 0) rc = read_buffer(w, x->out[k], x->path);
    if (!rc && x->workspace >= 0) rc = write_buffer(w, x->workspace, x->path);
    for (int k = 0; k < x->n_out && !rc; k++)
        if (x->out[k] >= 0) rc = write_buffer(w, x->out[k], x->path);
    if (!rc && x->workspace >= 0 && w->changes[root_slot(w, x->workspace)] < 0) rc = wrong(w->err, x->path, "its result lies over its workspace");
    if (!rc) rc = check_apart(w, x);
    if (!rc && x->opcode == HD_COMM && x->op->has_effect) begin_send(w, x, segment);
    return !rc && x->signal >= 0 ? begin_transfer(w, x) : rc;
}

/* Sends of this segment, or all, have gone. */
static void end_sends(walk *w, int segment, bool all)
{
    for (int i = 0; i < w->n_held; i++)
        if (all || w->sender[w->held[i]] == segment) w->sent[w->held[i]] = 0;
}

/* The caller fills the pieces of a micro-batch before each forward call of it; where calls don't come in order, that is checked. */
static void fill_inputs(walk *w, const hd_segment *s)
{
    if (w->in_order || s->kind != HD_SEGMENT_FORWARD) return;
    for (int b = 0; b < w->p->n_buffers; b++) {
        const hd_buffer *x = &w->p->buffers[b];
        if (x->class == HD_BUFFER_INPUT && x->view_of < 0 && x->micro == HD_TIME_SPLIT) w->filled[slot_of(w, b)] = w->micro;
    }
}

/* From one call to the next, a state's new value is its value. */
static int walk_call(walk *w, const hd_call *c)
{
    const hd_segment *s = &w->p->segments[c->segment];
    bool once = s->kind == HD_SEGMENT_PREPARE || s->kind == HD_SEGMENT_UPDATE;
    w->micro = c->micro;
    end_sends(w, c->segment, once);
    fill_inputs(w, s);
    hd_instr_iter it = hd_segment_instrs(w->p, c->segment);
    for (const hd_instr *x; (x = hd_instr_next(&it));) {
        int rc = walk_instr(w, x, c->segment);
        if (rc) return rc;
    }
    if (once) end_sends(w, c->segment, true);
    for (int b = 0; b < w->p->n_buffers; b++)
        if (w->p->buffers[b].class == HD_BUFFER_STATE && w->p->buffers[b].view_of < 0) w->named[w->slot[b]] = w->changes[w->slot[b]];
    return 0;
}

static int walk_begin(walk *w)
{
    int rc = 0;
    w->in_order = hd_program_in_order(w->p);
    for (int b = 0, at = 0; b < w->p->n_buffers && !rc; b++) {
        const hd_buffer *x = &w->p->buffers[b];
        bool there = x->view_of < 0 && (x->class == HD_BUFFER_INPUT || x->class == HD_BUFFER_CONSTANT || x->class == HD_BUFFER_STATE);
        w->slot[b] = at;
        for (int k = 0; k < x->copies && !rc; k++, at++) {
            w->buffer[at] = b;
            w->named[at] = there ? 0 : -2;
            w->filled[at] = -1;
            if (there) rc = hold(w, at, x->path);
        }
    }
    return rc;
}

/* Where micro-batches come in order, those past the third repeat what the second and third did, but for the last. */
static int walk_schedule(walk *w)
{
    const hd_program *p = w->p;
    int rc = walk_begin(w);
    hd_call_iter it = hd_program_calls(p);
    for (hd_call c; !rc && hd_call_next(&it, &c);)
        if (c.micro < 3 || c.micro == w->micro_batches - 1 || !w->in_order) rc = walk_call(w, &c);
    bool again = p->repeat_first >= 0 && p->repeat_last == p->n_segments - 1 && w->in_order;
    for (int s = p->repeat_first; again && s <= p->repeat_last && !rc; s++) {
        hd_call c = hd_program_call(p, s);
        rc = walk_call(w, &c);
    }
    for (int t = 0; t < w->n_tokens && !rc; t++)
        if (w->token[t].instr) rc = wrong(w->err, w->token[t].instr->path, "is never waited for");
    for (int i = 0; i < p->n_outputs && !rc && p->n_calls; i++) rc = read_buffer(w, p->outputs[i].buffer, p->outputs[i].name);
    return rc;
}

static int walk_all(walk *w)
{
    const hd_program *p = w->p;
    size_t slots = 1, n = (size_t)p->n_buffers + 1;
    for (int b = 0; b < p->n_buffers; b++) slots += (size_t)p->buffers[b].copies;
    int **arrays[] = {&w->buffer, &w->changes, &w->named, &w->filled, &w->sent, &w->sender, &w->receiving, &w->taking, &w->held};
    enum { ARRAYS = sizeof arrays / sizeof *arrays };
    int *all = hd_calloc(n + ARRAYS * slots, sizeof *all);
    w->n_tokens = hd_program_tokens(p);
    w->micro_batches = hd_program_micro_batches(p);
    w->token = hd_calloc((size_t)w->n_tokens + 1, sizeof *w->token);
    if (!all || !w->token) {
        hd_free(all);
        hd_free(w->token);
        return hd_fail_memory(w->err, (n + ARRAYS * slots) * sizeof *all, "verifying a program");
    }
    w->slot = all;
    for (size_t i = 0; i < ARRAYS; i++) *arrays[i] = all + n + i * slots;
    int rc = walk_schedule(w);
    hd_free(all);
    hd_free(w->token);
    return rc;
}

int hd_program_verify(const hd_program *p, hd_error *err)
{
    hd_error local = {0};
    walk w = {.p = p, .err = err ? err : &local};
    int rc = verify_frame(p, w.err);
    if (!rc) rc = verify_instrs(p, w.err);
    if (!rc) rc = verify_signals(p, w.err);
    return rc ? rc : walk_all(&w);
}
