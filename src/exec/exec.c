/* exec.c: resolving a program: where each buffer is, which kernel computes each instruction, where the team has to meet. */
#include <stdlib.h>

#include "exec/exec_int.h"
#include "base/term.h"
#include "exec/pack.h"

static int no_memory(hd_error *err)
{
    return hd_fail_memory(err, sizeof(hd_exec), "an executor");
}

/* ---- where each buffer is ---- */

static int locate_stored(hd_exec *e, int b, hd_error *err)
{
    const hd_buffer *x = &e->program->buffers[b];
    if (x->data) {
        e->data[b] = (void *)x->data;
        return 0;
    }
    if (x->format == HD_PACKED && !hd_store_find(e->store, x->path)) {
        const hd_packer packer = {e->program, e->backend, e->team, e->place};
        int rc = hd_pack_constant(&packer, e->store, b, err);
        if (rc) return rc;
    }
    hd_type type = hd_buffer_piece_type(e->program, b, e->place);
    hd_store_tensor *t = hd_store_bind(e->store, x->path, &type, x->format, err);
    if (!t) return err->code;
    if (t->bytes < x->bytes && x->format == HD_PACKED) return hd_fail(err, HD_EINVAL, "%s was packed for another instruction set", x->path);
    e->data[b] = t->data;
    return 0;
}

static int locate_buffers(hd_exec *e, hd_error *err)
{
    const hd_program *p = e->program;
    for (int b = 0; b < p->n_buffers; b++) {
        int rc = 0;
        if (hd_buffer_in_arena(p, b)) e->data[b] = (char *)e->arena + p->buffers[b].offset;
        else if (p->buffers[b].view_of < 0) rc = locate_stored(e, b, err);
        if (rc) return rc;
    }
    for (int b = 0; b < p->n_buffers; b++) e->data[b] = e->data[hd_buffer_root(p, b)];
    return 0;
}

/* ---- instructions ---- */

void *hd_exec_copy(const hd_exec *e, int b, int micro)
{
    const hd_buffer *root = &e->program->buffers[hd_buffer_root(e->program, b)];
    return (char *)e->data[b] + (root->copies > 1 ? micro % root->copies * root->bytes : 0);
}

hd_tensor hd_exec_tensor(const hd_exec *e, int b, const int64_t *binding)
{
    hd_tensor t = hd_buffer_piece(e->program, b, e->place, binding);
    t.data = hd_exec_copy(e, b, e->micro);
    return t;
}

static hd_tensor *resolve_tensors(hd_exec *e, const int *buffers, int n, hd_step *s)
{
    hd_tensor *t = hd_arena_alloc(&e->memory, (size_t)(n ? n : 1) * sizeof *t);
    for (int i = 0; t && i < n; i++) {
        if (buffers[i] < 0) continue;
        t[i] = hd_exec_tensor(e, buffers[i], NULL);
        s->bounded |= e->program->buffers[buffers[i]].type.shape.sym >= 0;
        s->copied |= e->program->buffers[buffers[i]].copies > 1;
    }
    return t;
}

static bool has_packed(const hd_step *s)
{
    for (int i = 0; i < s->args.n_in; i++)
        if (s->args.in[i].data && s->args.in[i].format == HD_PACKED) return true;
    return false;
}

static int resolve_kernel(hd_exec *e, hd_step *s, hd_error *err)
{
    const hd_op *op = s->instr->op;
    s->kernel = e->backend->find(e->backend, op, &s->args);
    if (!s->kernel.run) return hd_fail(err, HD_EUNSUPPORTED, "%s: the back end %s cannot compute %s", s->instr->path, e->backend->name, op->name);
    if (s->kernel.run == op->reference && has_packed(s))
        return hd_fail(err, HD_EUNSUPPORTED, "%s: no kernel of this machine takes its packed operand", s->instr->path);
    size_t want = s->kernel.workspace ? s->kernel.workspace(&s->args, e->threads) : 0;
    if (want <= (size_t)s->workspace_bytes) return 0;
    if (has_packed(s) || !op->reference) return hd_fail(err, HD_EINVAL, "%s: the program was lowered for another machine or back end", s->instr->path);
    s->kernel = (hd_kernel){.op = op->name, .run = op->reference};
    return 0;
}

static int resolve_step(hd_exec *e, hd_step *s, hd_error *err)
{
    const hd_program *p = e->program;
    const hd_instr *x = s->instr;
    s->args = (hd_kernel_args){.n_in = x->n_in, .n_out = x->n_out, .attrs = x->attrs, .team = e->team, .threads = e->threads};
    s->args.accumulate = x->accumulate != HD_ACCUMULATE_NEVER;
    if (x->n_splits) {
        void *attrs = hd_arena_alloc(&e->memory, x->op->attrs_size + 1);
        if (!attrs) return no_memory(err);
        hd_instr_attrs(p, x, e->place, attrs);
        s->args.attrs = attrs;
    }
    s->args.in = resolve_tensors(e, x->in, x->n_in, s);
    s->args.out = resolve_tensors(e, x->out, x->n_out, s);
    if (!s->args.in || !s->args.out) return no_memory(err);
    if (x->workspace >= 0) {
        s->args.workspace = e->data[x->workspace];
        s->workspace_bytes = p->buffers[x->workspace].bytes;
    }
    if (x->opcode == HD_COMM) return hd_exec_resolve_transfer(e, s, err);
    if (x->opcode != HD_KERNEL) return 0;
    s->args.code = x->op->code;
    return resolve_kernel(e, s, err);
}

/* How often each buffer is read. */
static int *count_reads(hd_exec *e)
{
    const hd_program *p = e->program;
    int *reads = hd_arena_alloc(&e->memory, (size_t)(p->n_buffers + 1) * sizeof *reads);
    for (int s = 0; s < p->n_segments && reads; s++) {
        hd_instr_iter it = hd_segment_instrs(p, s);
        for (const hd_instr *x; (x = hd_instr_next(&it));)
            for (int i = 0; i < x->n_in; i++)
                if (x->in[i] >= 0) reads[x->in[i]]++;
    }
    return reads;
}

static bool only_updates(const hd_exec *e, const hd_instr *x, const int *reads)
{
    int written = 0;
    for (int i = 0; i < x->n_out; i++) {
        int b = x->out[i];
        if (b < 0) continue;
        if (e->program->buffers[b].class != HD_BUFFER_STATE || (reads[b] && x->opcode == HD_KERNEL)) return false;
        written++;
    }
    return written > 0;
}

static int resolve_segment(hd_exec *e, int segment, const int *reads, hd_error *err)
{
    hd_steps *out = &e->segments[segment];
    out->steps = hd_arena_alloc(&e->memory, (size_t)(e->program->segments[segment].n_instrs + 1) * sizeof *out->steps);
    if (!out->steps) return no_memory(err);
    for (int i = 0; i < HD_MAX_SYMBOLS; i++) out->binding[i] = -1;
    hd_instr_iter it = hd_segment_instrs(e->program, segment);
    int index = 0;
    for (const hd_instr *x; (x = hd_instr_next(&it)); index++) {
        if (x->opcode == HD_VIEW) continue;
        hd_step *s = &out->steps[out->n++];
        s->instr = x;
        s->index = index;
        s->updates_only = only_updates(e, x, reads);
        int rc = resolve_step(e, s, err);
        if (rc) return rc;
        hd_step_choose_solo(e, s);
    }
    out->micro = e->micro;
    return 0;
}

/* ---- meetings ---- */

/* Member 0 walks 32 KiB of first-level cache in about a microsecond, which is what a meeting of two threads costs. */
#define SOLO_BYTES 32768
#define SOLO_FLOPS 65536

bool hd_step_choose_solo(const hd_exec *e, hd_step *s)
{
    if (s->instr->opcode == HD_COMM || s->instr->opcode == HD_WAIT) return false; /* member 0's, or the team's */
    hd_cost c = hd_step_cost(s);
    bool before = s->solo;
    s->solo = e->threads > 1 && c.bytes <= SOLO_BYTES && c.flops <= SOLO_FLOPS;
    return s->solo != before;
}

typedef struct span { const char *begin, *end; } span;
typedef struct spans { span *list; size_t n; } spans;

#define STEPS_UNASKED 16 /* at most, between two meetings: that is where the abort flag is read */

/* What has been touched since the last meeting, by solo steps and by those of the whole team. */
typedef struct touched { spans read, written; } touched;

static span buffer_span(const hd_exec *e, int b)
{
    const char *p = e->data[b];
    const hd_buffer *x = &e->program->buffers[b], *root = &e->program->buffers[hd_buffer_root(e->program, b)];
    return (span){p, p + (x->copies - 1) * root->bytes + x->bytes};
}

static bool touches(const spans *all, span s)
{
    for (size_t i = 0; i < all->n; i++)
        if (s.begin < all->list[i].end && all->list[i].begin < s.end) return true;
    return false;
}

static bool any_touches(const hd_exec *e, const spans *all, const int *buffers, int n)
{
    for (int i = 0; i < n; i++)
        if (buffers[i] >= 0 && touches(all, buffer_span(e, buffers[i]))) return true;
    return false;
}

static void add_spans(const hd_exec *e, spans *all, const int *buffers, int n)
{
    for (int i = 0; i < n; i++)
        if (buffers[i] >= 0) all->list[all->n++] = buffer_span(e, buffers[i]);
}

static bool conflicts(const hd_exec *e, const touched *t, const hd_instr *x)
{
    return any_touches(e, &t->written, x->in, x->n_in) || any_touches(e, &t->written, x->out, x->n_out) ||
           any_touches(e, &t->read, x->out, x->n_out) || any_touches(e, &t->written, &x->workspace, 1) ||
           any_touches(e, &t->read, &x->workspace, 1);
}

/* Member 0 sees what it did itself, so solo steps meet only for what the team has touched. */
int hd_exec_find_meetings(hd_exec *e, hd_steps *segment, hd_error *err)
{
    touched by[2] = {0}; /* [solo] */
    size_t reads = 1, writes = 1;
    for (int i = 0; i < segment->n; i++) reads += (size_t)segment->steps[i].instr->n_in, writes += (size_t)segment->steps[i].instr->n_out + 1;
    span *lists = hd_malloc(2 * (reads + writes) * sizeof *lists);
    if (!lists) return no_memory(err);
    for (int solo = 0; solo < 2; solo++) {
        by[solo].read.list = lists + (size_t)solo * (reads + writes);
        by[solo].written.list = by[solo].read.list + reads;
    }
    for (int i = 0, met = 0; i < segment->n; i++) {
        hd_step *s = &segment->steps[i];
        const hd_instr *x = s->instr;
        s->sync = i - met >= STEPS_UNASKED || x->n_waits || x->opcode == HD_WAIT || conflicts(e, &by[false], x) || (!s->solo && conflicts(e, &by[true], x));
        if (s->sync) by[0].read.n = by[0].written.n = by[1].read.n = by[1].written.n = 0, met = i;
        touched *t = &by[s->solo];
        add_spans(e, &t->read, x->in, x->n_in);
        add_spans(e, &t->written, x->out, x->n_out);
        add_spans(e, &t->written, &x->workspace, 1);
    }
    hd_free(lists);
    return 0;
}

/* ---- life cycle ---- */

static int resolve(hd_exec *e, hd_error *err)
{
    const hd_program *p = e->program;
    if (!e->arena) e->arena = e->own_arena = e->backend->alloc(e->backend, (size_t)p->arena_bytes);
    if (!e->arena) return hd_fail_memory(err, (size_t)p->arena_bytes, "the program's arena");
    e->data = hd_arena_alloc(&e->memory, (size_t)(p->n_buffers + 1) * sizeof *e->data);
    e->segments = hd_arena_alloc(&e->memory, (size_t)(p->n_segments + 1) * sizeof *e->segments);
    int *reads = count_reads(e);
    e->n_tokens = hd_program_tokens(p);
    e->micro_batches = hd_program_micro_batches(p);
    e->tokens = hd_arena_alloc(&e->memory, ((size_t)e->n_tokens + 1) * sizeof *e->tokens);
    if (!e->tokens || !e->data || !e->segments || !reads) return no_memory(err);
    int rc = locate_buffers(e, err);
    for (int s = 0; s < p->n_segments && !rc; s++) {
        rc = resolve_segment(e, s, reads, err);
        if (!rc) rc = hd_exec_find_meetings(e, &e->segments[s], err);
    }
    return rc;
}

hd_exec *hd_exec_new(const hd_program *program, hd_store *store, const hd_backend *backend, hd_team *team, hd_error *err)
{
    return hd_exec_new_sharing(program, store, backend, team, NULL, err);
}

hd_exec *hd_exec_new_sharing(const hd_program *program, hd_store *store, const hd_backend *backend, hd_team *team, hd_exec *host, hd_error *err)
{
    return hd_exec_new_rank(program, store, backend, team, host, NULL, err);
}

/* Whether the rank is one of the program's mesh and stage, and the world is as large. */
static int check_rank(const hd_program *p, const hd_rank *r, hd_error *err)
{
    int size = hd_program_ranks(p), first = hd_program_first_rank(p), own = p->meshes.n ? hd_mesh_size(&p->mesh) : size / p->stages;
    if (r->rank < 0 || r->rank >= size) return hd_fail(err, HD_EINVAL, "there is no rank %d in the program's mesh of %d", r->rank, size);
    if (r->rank < first || r->rank >= first + own) return hd_fail(err, HD_EINVAL, "rank %d isn't of stage %d, which the program is for", r->rank, p->stage);
    if (!r->comm) return 0;
    if (hd_comm_size(r->comm) != size || hd_comm_rank(r->comm) != r->rank)
        return hd_fail(err, HD_EINVAL, "rank %d of %d was given the endpoint of rank %d of %d", r->rank, size, hd_comm_rank(r->comm), hd_comm_size(r->comm));
    return 0;
}

hd_exec *hd_exec_new_rank(const hd_program *program, hd_store *store, const hd_backend *backend, hd_team *team, hd_exec *host, const hd_rank *rank, hd_error *err)
{
    hd_error local = {0};
    if (!err) err = &local;
    if (hd_team_size(team) > program->threads) {
        hd_fail(err, HD_EINVAL, "the program was lowered for %d threads, the team has %d", program->threads, hd_team_size(team));
        return NULL;
    }
    if (rank && check_rank(program, rank, err)) return NULL;
    hd_exec *e = hd_calloc(1, sizeof *e);
    if (!e) {
        no_memory(err);
        return NULL;
    }
    *e = (hd_exec){.program = program, .store = store, .backend = backend, .team = team, .threads = hd_team_size(team), .only = -1};
    if (rank) e->rank = *rank, e->place = hd_program_place(program, rank->rank), e->ranked = true;
    e->alone = hd_team_new(1, false, err);
    if (host && program->arena_bytes <= host->program->arena_bytes) e->arena = host->arena;
    for (int i = 0; i < HD_MAX_SYMBOLS; i++) e->binding[i] = -1;
    const char *profile = getenv("HEDDLE_PROFILE");
    e->profiling = e->print_profile = profile && !strcmp(profile, "1");
    if (!e->alone || resolve(e, err)) {
        e->print_profile = false;
        hd_exec_free(e);
        return NULL;
    }
    return e;
}

void hd_exec_free(hd_exec *e)
{
    if (!e) return;
    if (e->print_profile) {
        hd_str text;
        hd_str_init(&text);
        hd_exec_profile_print(e, &text);
        hd_log("time by op\n%s", text.data);
        hd_str_free(&text);
    }
    hd_exec_finish_all_sends(e, &(hd_error){0});
    hd_exec_finish_tokens(e, &(hd_error){0});
    if (e->own_arena) e->backend->free(e->backend, e->own_arena, (size_t)e->program->arena_bytes);
    hd_exec_free_notes(e);
    hd_team_free(e->alone);
    hd_arena_free(&e->memory);
    hd_free(e);
}

const hd_rank *hd_exec_rank(const hd_exec *e)
{
    return e->ranked ? &e->rank : NULL;
}

const hd_program *hd_exec_program(const hd_exec *e)
{
    return e->program;
}

int64_t hd_exec_arena_bytes(const hd_exec *e)
{
    return e->own_arena ? e->program->arena_bytes : 0;
}

/* ---- data in and out ---- */

int hd_exec_input(hd_exec *e, const char *name, hd_tensor *out, hd_error *err)
{
    int b = hd_program_input(e->program, name);
    if (b < 0) return hd_fail(err, HD_EINVAL, "the program has no input \"%s\"", name);
    *out = hd_exec_tensor(e, b, NULL);
    return 0;
}

int hd_exec_put(hd_exec *e, const char *name, const void *whole, hd_error *err)
{
    int b = hd_program_input(e->program, name);
    (void)err;
    if (b < 0) return 0;
    const hd_buffer *x = &e->program->buffers[b];
    hd_layout_take(&e->program->mesh, x->layout, x->layout ? &x->whole : &x->type.shape, e->place, hd_dtype_size(x->type.dtype), whole,
                   hd_exec_copy(e, b, e->micro));
    return 0;
}

int hd_exec_output(hd_exec *e, const char *name, hd_tensor *out, hd_error *err)
{
    int b = hd_program_output(e->program, name);
    if (b < 0) b = hd_program_find(e->program, name);
    if (b < 0) return hd_fail(err, HD_EINVAL, "the program has no output \"%s\"", name);
    *out = hd_exec_tensor(e, b, e->binding);
    return 0;
}
