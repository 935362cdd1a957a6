/* transfer.c: COMM instructions: which ranks take part, whose pieces lie where, and handing them to src/comm.
 *
 * Member 0 of the team does transfers between meetings. A recv or a collective blocks it. A send is started, and waited for before the next call of its
 * segment, before prepare and update, and at the end of a step: until then lowering keeps its operand. A collective of stream 1 is started, and waited for
 * by the first instruction that says so. shard, keep_first, place and deal send nothing: the
 * team does them by itself. */
#include <stdlib.h>

#include "base/term.h"
#include "exec/exec_int.h"
#include "ops/ops.h"

typedef struct kind_of_op { const hd_op *op; hd_transfer_kind kind; bool local; } kind_of_op;

static const kind_of_op kinds[] = {
    {&hd_op_all_reduce, HD_ALL_REDUCE, false}, {&hd_op_reduce_scatter, HD_REDUCE_SCATTER, false}, {&hd_op_all_gather, HD_ALL_GATHER, false},
    {&hd_op_all_to_all, HD_ALL_TO_ALL, false}, {&hd_op_send, HD_SEND, false}, {&hd_op_recv, HD_RECV, false},
    {&hd_op_shard, HD_TRANSFER_KINDS, true}, {&hd_op_keep_first, HD_TRANSFER_KINDS, true}, {&hd_op_deal, HD_TRANSFER_KINDS, true},
    {&hd_op_place, HD_TRANSFER_KINDS, true}, {&hd_op_permute, HD_PERMUTE, false},
};

static const kind_of_op *find_kind(const hd_op *op)
{
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (kinds[i].op == op) return &kinds[i];
    return NULL;
}

/* ---- who and where ---- */

typedef struct members {
    int *ranks; /* [n] in order of index */
    int n, index;
} members;

static int find_members(hd_exec *e, const hd_step *s, const int8_t *axes, int n_axes, members *out, hd_error *err)
{
    const hd_mesh *m = &e->program->mesh;
    if (n_axes < 1) return hd_fail(err, HD_EINVAL, "%s: the program's mesh lacks its axes", s->instr->path);
    out->ranks = hd_arena_alloc(&e->memory, (size_t)hd_mesh_size(m) * sizeof *out->ranks);
    if (!out->ranks) return hd_fail_memory(err, sizeof *out, "an executor");
    out->n = hd_mesh_group(m, e->place, axes, n_axes, out->ranks);
    out->index = hd_mesh_index(m, e->place, axes, n_axes, NULL);
    return 0;
}

/* All ranks of all stages. */
static int find_everyone(hd_exec *e, members *out, hd_error *err)
{
    out->n = hd_program_ranks(e->program);
    out->index = e->rank.rank;
    out->ranks = hd_arena_alloc(&e->memory, (size_t)out->n * sizeof *out->ranks);
    if (!out->ranks) return hd_fail_memory(err, sizeof *out, "an executor");
    for (int r = 0; r < out->n; r++) out->ranks[r] = r;
    return 0;
}

/* The members' numbers in the job, of those in the program's mesh. */
static hd_comm_group *group_of(hd_exec *e, const members *m, hd_error *err)
{
    int first = e->rank.rank - e->place;
    for (int i = 0; i < m->n && first; i++) m->ranks[i] += first;
    hd_comm_group *g = hd_comm_group_get(e->rank.comm, m->ranks, m->n, err);
    for (int i = 0; i < m->n && first; i++) m->ranks[i] -= first;
    return g;
}

static bool is_over_stages(const hd_program *p, const int8_t *axes, int n)
{
    for (int i = 0; i < n; i++)
        if (p->mesh.axis[axes[i]].role == HD_AXIS_PIPELINE && p->meshes.n) return true;
    return false;
}

static void dim_piece(const hd_exec *e, int buffer, int dim, int rank, int64_t *begin, int64_t *end)
{
    const hd_buffer *b = &e->program->buffers[buffer];
    *begin = 0;
    *end = b->layout ? b->whole.dim[dim] : b->type.shape.dim[dim];
    if (b->layout) hd_dim_piece(&e->program->mesh, &b->layout->dim[dim], b->whole.dim[dim], rank, begin, end);
}

/* Where in dimension `dim` of this rank's piece of buffer `whole` each member's piece of buffer `cut` begins: n + 1 numbers. */
static int64_t *find_offsets(hd_exec *e, const hd_step *s, const members *m, int cut, int whole, int dim, hd_error *err)
{
    int64_t *offset = hd_arena_alloc(&e->memory, ((size_t)m->n + 1) * sizeof *offset), first, last, at = 0;
    if (!offset) {
        hd_fail_memory(err, sizeof *offset, "an executor");
        return NULL;
    }
    dim_piece(e, whole, dim, e->place, &first, &last);
    for (int j = 0; j < m->n; j++) {
        int64_t begin, end;
        dim_piece(e, cut, dim, m->ranks[j], &begin, &end);
        if (end > begin && begin - first != at) {
            hd_fail(err, HD_EINVAL, "%s: the pieces of %s don't lie one behind the other", s->instr->path, e->program->buffers[cut].path);
            return NULL;
        }
        offset[j] = at;
        at += end - begin;
    }
    offset[m->n] = at;
    if (at == last - first) return offset;
    hd_fail(err, HD_EINVAL, "%s: the pieces of %s don't make up %s", s->instr->path, e->program->buffers[cut].path, e->program->buffers[whole].path);
    return NULL;
}

static int64_t product(const hd_tensor *t, int first, int end)
{
    int64_t n = 1;
    for (int i = first; i < end; i++) n *= t->dim[i];
    return n;
}

/* ---- resolving ---- */

static int resolve_exchange(hd_exec *e, hd_step *s, const members *m, hd_error *err)
{
    const hd_comm_attrs *a = s->instr->attrs;
    const hd_tensor *in = &s->args.in[0];
    int x = s->instr->in[0], y = s->instr->out[0], low = a->dim < a->to ? a->dim : a->to, high = a->dim < a->to ? a->to : a->dim;
    hd_transfer *t = &s->transfer;
    if (a->dim == a->to) return hd_fail(err, HD_EINVAL, "%s: gathers the dimension that it cuts", s->instr->path);
    t->offset = find_offsets(e, s, m, x, y, a->dim, err);
    t->to_offset = t->offset ? find_offsets(e, s, m, y, x, a->to, err) : NULL;
    t->outer = product(in, 0, low);
    t->middle = product(in, low + 1, high);
    t->inner = product(in, high + 1, in->rank);
    t->a_first = a->dim < a->to;
    return t->to_offset ? 0 : HD_EINVAL;
}

/* What each member gives. */
static int resolve_permute(hd_exec *e, hd_step *s, const members *m, hd_error *err)
{
    const hd_comm_attrs *a = s->instr->attrs;
    const hd_tensor *in = &s->args.in[0];
    int64_t *offset = hd_arena_alloc(&e->memory, ((size_t)m->n + 1) * sizeof *offset);
    if (!offset) return hd_fail_memory(err, sizeof *offset, "an executor");
    offset[0] = 0;
    for (int j = 0; j < m->n; j++) {
        int64_t begin, end;
        dim_piece(e, s->instr->in[0], a->dim, m->ranks[j], &begin, &end);
        offset[j + 1] = offset[j] + end - begin;
    }
    hd_transfer *t = &s->transfer;
    t->offset = offset;
    t->outer = product(in, 0, a->dim);
    t->inner = product(in, a->dim + 1, in->rank);
    t->peer = 1 % m->n;
    int next = (m->index + 1) % m->n;
    if (s->args.out[0].dim[a->dim] == offset[next + 1] - offset[next]) return 0;
    return hd_fail(err, HD_EINVAL, "%s: the next rank has another number of rows than this one is to get", s->instr->path);
}

/* Transfer k of the step. */
static int resolve_member(hd_exec *e, hd_step *s, const members *m, int k, hd_transfer *t, hd_error *err)
{
    hd_comm_attrs own;
    const hd_instr one = hd_instr_member(e->program, s->instr, k, &own);
    const hd_comm_attrs *a = one.attrs;
    const hd_tensor *in = &s->args.in[k];
    bool cut = one.op == &hd_op_reduce_scatter || one.op == &hd_op_shard || one.op == &hd_op_deal;
    *t = (hd_transfer){.kind = s->transfer.kind, .max = a->max, .dtype = in->dtype, .count = hd_tensor_count(in)};
    if (!cut && one.op != &hd_op_all_gather && one.op != &hd_op_place) return 0;
    t->offset = find_offsets(e, s, m, cut ? one.out[0] : one.in[0], cut ? one.in[0] : one.out[0], a->dim, err);
    t->outer = product(in, 0, a->dim);
    t->inner = product(in, a->dim + 1, in->rank);
    return t->offset ? 0 : HD_EINVAL;
}

static int resolve_list(hd_exec *e, hd_step *s, const members *m, hd_error *err)
{
    int n = s->instr->n_in, rc = 0;
    hd_transfer *parts = hd_arena_alloc(&e->memory, (size_t)n * sizeof *parts);
    if (!parts) return hd_fail_memory(err, sizeof *parts, "an executor");
    for (int k = 0; k < n && !rc; k++) rc = resolve_member(e, s, m, k, &parts[k], err);
    s->transfer = (hd_transfer){.kind = s->transfer.kind, .max = parts->max, .dtype = parts->dtype, .part = parts, .n_parts = n};
    return rc;
}

static int resolve_collective(hd_exec *e, hd_step *s, hd_error *err)
{
    const hd_comm_attrs *a = s->instr->attrs;
    int8_t axes[HD_MAX_AXES];
    members m = {0};
    int n_axes = hd_mesh_parse_axes(&e->program->mesh, a->axes, axes);
    bool all = n_axes > 0 && is_over_stages(e->program, axes, n_axes);
    int rc = all ? find_everyone(e, &m, err) : find_members(e, s, axes, n_axes, &m, err);
    if (rc) return rc;
    s->member = m.index;
    s->members = m.n;
    if (hd_instr_is_list(s->instr)) rc = resolve_list(e, s, &m, err);
    else rc = resolve_member(e, s, &m, 0, &s->transfer, err);
    if (!rc && s->instr->op == &hd_op_all_to_all) rc = resolve_exchange(e, s, &m, err);
    if (!rc && s->instr->op == &hd_op_permute) rc = resolve_permute(e, s, &m, err);
    if (!rc && e->rank.comm && !s->local) {
        s->group = all ? hd_comm_group_get(e->rank.comm, m.ranks, m.n, err) : group_of(e, &m, err);
        rc = s->group ? 0 : HD_ECOMM;
    }
    return rc;
}

static hd_message *new_messages(hd_exec *e, hd_step *s, int most, hd_error *err)
{
    s->messages = hd_arena_alloc(&e->memory, ((size_t)most + 1) * sizeof *s->messages);
    if (!s->messages) hd_fail_memory(err, (size_t)most * sizeof *s->messages, "an executor");
    return s->messages;
}

/* Stages of one mesh: the whole piece, with the rank of the same coordinates. */
static int resolve_message(hd_exec *e, hd_step *s, hd_error *err)
{
    const hd_pipe_attrs *a = s->instr->attrs;
    const hd_program *p = e->program;
    bool send = s->transfer.kind == HD_SEND;
    int8_t axis = -1;
    members m = {0};
    for (int i = 0; i < p->mesh.n; i++)
        if (p->mesh.axis[i].role == HD_AXIS_PIPELINE) axis = (int8_t)i;
    if (axis < 0) return hd_fail(err, HD_EINVAL, "%s: the program's mesh has no pipeline", s->instr->path);
    int rc = find_members(e, s, &axis, 1, &m, err);
    if (rc) return rc;
    hd_message *x = new_messages(e, s, 1, err);
    if (!x) return HD_ENOMEM;
    s->n_messages = 1;
    x->transfer = s->transfer;
    x->transfer.peer = (send ? a->to : a->from) % m.n;
    if (x->transfer.peer == m.index) return hd_fail(err, HD_EINVAL, "%s: its other end is the same stage", s->instr->path);
    if (e->rank.comm) x->group = group_of(e, &m, err);
    return !e->rank.comm || x->group ? 0 : HD_ECOMM;
}

/* Stages of different meshes: runs of rows, with every rank of the other stage that wants or has some of ours. */
static int resolve_messages(hd_exec *e, hd_step *s, hd_error *err)
{
    hd_crossing c;
    members all = {0};
    bool send = s->transfer.kind == HD_SEND;
    int rc = hd_program_crossing(e->program, s->instr, &c, err);
    if (!rc) rc = find_everyone(e, &all, err);
    if (rc) return rc;
    const hd_end *own = send ? &c.sender : &c.receiver, *other = send ? &c.receiver : &c.sender;
    int ranks = hd_mesh_size(other->mesh);
    int64_t row = hd_row_elements(&c.whole), first = 0, last;
    if (!new_messages(e, s, ranks, err)) return HD_ENOMEM;
    hd_comm_group *group = e->rank.comm ? hd_comm_group_get(e->rank.comm, all.ranks, all.n, err) : NULL;
    if (e->rank.comm && !group) return HD_ECOMM;
    if (c.whole.rank) hd_dim_piece(own->mesh, &own->layout->dim[0], c.whole.dim[0], e->place, &first, &last);
    for (int r = 0; r < ranks; r++) {
        int64_t begin, rows = hd_crossing_rows(&c.sender, send ? e->place : r, &c.receiver, send ? r : e->place, &c.whole, &begin);
        if (!rows) continue;
        hd_message *x = &s->messages[s->n_messages++];
        *x = (hd_message){.transfer = s->transfer, .group = group};
        x->transfer.peer = (send ? c.to : c.from) + r;
        x->transfer.count = rows * row;
        x->offset = (c.whole.rank ? begin - first : 0) * row * (int64_t)hd_dtype_size(s->transfer.dtype);
    }
    return 0;
}

static int resolve_pipe(hd_exec *e, hd_step *s, hd_error *err)
{
    enum { CHUNKS = 512, NUMBERS = 4096 }; /* a tag's parts */
    const hd_pipe_attrs *a = s->instr->attrs;
    const hd_tensor *x = s->transfer.kind == HD_SEND ? &s->args.in[0] : &s->args.out[0];
    if (a->from < 0 || a->to < 0 || a->from >= CHUNKS || a->to >= CHUNKS || a->number < 0 || a->number >= NUMBERS)
        return hd_fail(err, HD_EUNSUPPORTED, "%s: too many chunks, or values between two of them", s->instr->path);
    s->transfer.dtype = x->dtype;
    s->transfer.count = hd_tensor_count(x);
    s->transfer.tag = (a->from * CHUNKS + a->to) * NUMBERS + a->number;
    return e->program->meshes.n ? resolve_messages(e, s, err) : resolve_message(e, s, err);
}

int hd_exec_resolve_transfer(hd_exec *e, hd_step *s, hd_error *err)
{
    const kind_of_op *k = find_kind(s->instr->op);
    if (!k) return hd_fail(err, HD_EUNSUPPORTED, "%s: no transfer is known for %s", s->instr->path, s->instr->op->name);
    s->local = k->local;
    s->solo = !k->local;
    s->transfer.kind = k->kind;
    return k->kind == HD_SEND || k->kind == HD_RECV ? resolve_pipe(e, s, err) : resolve_collective(e, s, err);
}

/* The outermost dimension follows the symbol: it is never the one that is cut. */
void hd_exec_rebind_transfer(hd_step *s)
{
    const hd_comm_attrs *a = s->instr->attrs;
    const hd_tensor *in = &s->args.in[0];
    hd_transfer *t = &s->transfer;
    if (t->n_parts) return; /* of training, whose tokens are no symbol */
    if (s->n_messages) {    /* stages of one mesh: the other end has the same binding */
        s->messages->transfer.count = hd_tensor_count(t->kind == HD_SEND ? in : &s->args.out[0]);
        return;
    }
    t->count = hd_tensor_count(in);
    if (t->offset) t->outer = product(in, 0, t->to_offset && a->to < a->dim ? a->to : a->dim);
}

/* ---- running ---- */

/* This member's share of the bytes of `out`, whose rows of `row` bytes begin every `stride` bytes in `in`. */
static void copy_rows(const hd_exec *e, const hd_step *s, const char *in, int64_t row, int64_t stride, int tid)
{
    int64_t begin, end;
    char *out = s->args.out[0].data;
    hd_split((int64_t)hd_tensor_bytes(&s->args.out[0]), 64, tid, e->threads, &begin, &end);
    while (begin < end) {
        int64_t within = begin % row, n = row - within < end - begin ? row - within : end - begin;
        memcpy(out + begin, in + begin / row * stride + within, (size_t)n);
        begin += n;
    }
}

/* This member's share of the bytes of `out`, in whose rows of `row` bytes `piece` bytes from `first` on are those of `in`, and the others zero. */
static void place_rows(const hd_exec *e, const hd_step *s, int64_t row, int64_t first, int64_t piece, int tid)
{
    int64_t begin, end;
    const char *in = s->args.in[0].data;
    char *out = s->args.out[0].data;
    hd_split((int64_t)hd_tensor_bytes(&s->args.out[0]), 64, tid, e->threads, &begin, &end);
    while (begin < end) {
        int64_t within = begin % row, border = within < first ? first : within < first + piece ? first + piece : row;
        int64_t n = border - within < end - begin ? border - within : end - begin;
        if (within >= first && within < first + piece) memcpy(out + begin, in + begin / row * piece + within - first, (size_t)n);
        else memset(out + begin, 0, (size_t)n);
        begin += n;
    }
}

/* Of n rows that a rank is dealt the first of these are early ones. */
static int64_t early(int64_t n) { return (n + 1) / 2; }

/* The whole's rows are, in order: all ranks' early ones, then their late ones, those of the last rank first (Llama 3, section 3.3.2). */
static void deal_rows(const hd_exec *e, const hd_step *s, int tid)
{
    const hd_transfer *t = &s->transfer;
    const hd_tensor *in = &s->args.in[0];
    const int ranks = s->members;
    int64_t own = t->offset[s->member + 1] - t->offset[s->member], first = 0, second = t->offset[ranks], row = t->inner * (int64_t)hd_dtype_size(in->dtype);
    for (int j = 0; j < ranks; j++) {
        int64_t n = t->offset[j + 1] - t->offset[j];
        if (j < s->member) first += early(n);
        if (j <= s->member) second -= n - early(n);
    }
    for (int64_t o = tid; o < t->outer; o += e->threads) {
        const char *from = (const char *)in->data + o * t->offset[ranks] * row;
        char *to = (char *)s->args.out[0].data + o * own * row;
        memcpy(to, from + first * row, (size_t)(early(own) * row));
        memcpy(to + early(own) * row, from + second * row, (size_t)((own - early(own)) * row));
    }
}

void hd_exec_move_local(const hd_exec *e, const hd_step *s, int tid)
{
    const hd_tensor *in = &s->args.in[0], *out = &s->args.out[0];
    const hd_transfer *t = &s->transfer;
    int64_t size = (int64_t)hd_dtype_size(in->dtype), bytes = (int64_t)hd_tensor_bytes(out);
    if (bytes == 0 || !strcmp(e->backend->name, "null")) return;
    bool place = s->instr->op == &hd_op_place;
    if (s->instr->op == &hd_op_deal) {
        deal_rows(e, s, tid);
    } else if (place || s->instr->op == &hd_op_shard) {
        int64_t begin = t->offset[s->member] * t->inner * size, piece = t->offset[s->member + 1] * t->inner * size - begin;
        int64_t whole = (place ? out : in)->dim[((const hd_comm_attrs *)s->instr->attrs)->dim] * t->inner * size;
        if (place) place_rows(e, s, whole, begin, piece, tid);
        else copy_rows(e, s, (const char *)in->data + begin, piece, whole, tid);
    } else if (s->member == 0) {
        if (in->data != out->data) copy_rows(e, s, in->data, bytes, bytes, tid);
    } else {
        int64_t begin, end;
        hd_split(bytes, 64, tid, e->threads, &begin, &end);
        if (end > begin) memset((char *)out->data + begin, 0, (size_t)(end - begin));
    }
}

static void note_failure(hd_exec *e, int rc)
{
    e->comm_rc = rc;
    atomic_store(&e->abort, true);
}

static void start_message(hd_exec *e, const hd_step *s, hd_message *m)
{
    if (m->transfer.kind == HD_SEND) m->transfer.in = (const char *)s->args.in[0].data + m->offset;
    else m->transfer.out = (char *)s->args.out[0].data + m->offset;
    int rc = hd_comm_start(e->rank.comm, m->group, &m->transfer, &m->ticket, &e->comm_err);
    m->pending = !rc;
    if (rc) note_failure(e, rc);
}

/* All messages are started; those that are received, waited for. */
static void transfer_messages(hd_exec *e, hd_step *s)
{
    for (int i = 0; i < s->n_messages && !e->comm_rc; i++) start_message(e, s, &s->messages[i]);
    for (int i = 0; i < s->n_messages && s->transfer.kind == HD_RECV; i++) {
        hd_message *m = &s->messages[i];
        if (!m->pending) continue;
        int rc = hd_comm_wait(e->rank.comm, m->ticket, e->comm_rc ? &(hd_error){0} : &e->comm_err);
        m->pending = false;
        if (rc && !e->comm_rc) note_failure(e, rc);
    }
}

void hd_exec_transfer(hd_exec *e, hd_step *s)
{
    if (!e->rank.comm || e->comm_rc) return;
    if (s->transfer.kind == HD_SEND || s->transfer.kind == HD_RECV) {
        transfer_messages(e, s);
        return;
    }
    s->transfer.in = s->instr->n_in ? s->args.in[0].data : NULL;
    s->transfer.out = s->instr->n_out ? s->args.out[0].data : NULL;
    for (int k = 0; k < s->transfer.n_parts; k++) {
        hd_transfer *part = (hd_transfer *)&s->transfer.part[k]; /* ours, of resolve_list */
        part->in = s->args.in[k].data;
        part->out = s->args.out[k].data;
    }
    int rc = 0;
    if (s->instr->signal >= 0 && e->only < 0) {
        hd_token *t = &e->tokens[s->instr->signal];
        if (t->pending) rc = hd_comm_wait(e->rank.comm, t->ticket, &e->comm_err); /* of a step that was stopped */
        t->pending = false;
        if (!rc) rc = hd_comm_start(e->rank.comm, s->group, &s->transfer, &t->ticket, &e->comm_err);
        t->pending = !rc;
        t->step = s;
    } else {
        rc = hd_comm_do(e->rank.comm, s->group, &s->transfer, &e->comm_err);
    }
    if (rc) note_failure(e, rc);
}

bool hd_exec_wait_tokens(hd_exec *e, const hd_instr *x)
{
    bool waited = false;
    for (int i = 0; i < x->n_waits; i++) {
        hd_token *t = &e->tokens[x->waits[i]];
        if (!t->pending) continue;
        double start = e->profiling ? hd_time() : 0;
        int rc = hd_comm_wait(e->rank.comm, t->ticket, e->comm_rc ? &(hd_error){0} : &e->comm_err);
        t->pending = false;
        waited = true;
        if (e->profiling) t->step->seconds += hd_time() - start;
        if (e->notes && t->note >= 0) e->notes->events[t->note].end = hd_time();
        if (rc && !e->comm_rc) note_failure(e, rc);
    }
    return waited;
}

int hd_exec_finish_tokens(hd_exec *e, hd_error *err)
{
    int rc = 0;
    for (int i = 0; i < e->n_tokens && e->rank.comm; i++) {
        if (!e->tokens[i].pending) continue;
        hd_error local = {0};
        int failed = hd_comm_wait(e->rank.comm, e->tokens[i].ticket, rc ? &local : err);
        e->tokens[i].pending = false;
        if (!rc) rc = failed;
    }
    return rc;
}

int hd_exec_finish_sends(hd_exec *e, int segment, hd_error *err)
{
    int rc = 0;
    for (int i = 0; segment >= 0 && i < e->segments[segment].n; i++) {
        hd_step *s = &e->segments[segment].steps[i];
        for (int k = 0; k < s->n_messages; k++) {
            hd_error local = {0};
            if (!s->messages[k].pending) continue;
            int failed = hd_comm_wait(e->rank.comm, s->messages[k].ticket, rc ? &local : err);
            s->messages[k].pending = false;
            if (!rc) rc = failed;
        }
    }
    return rc;
}

int hd_exec_finish_all_sends(hd_exec *e, hd_error *err)
{
    int rc = 0;
    for (int s = 0; s < e->program->n_segments && e->rank.comm && e->segments; s++) {
        hd_error local = {0};
        int failed = hd_exec_finish_sends(e, s, rc ? &local : err);
        if (!rc) rc = failed;
    }
    return rc;
}
