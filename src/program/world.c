/* world.c: the stages of a pipeline together: whether they get to the end of a step; what a rank sends in one. */
#include <stdio.h>
#include <stdlib.h>

#include "ops/ops.h"
#include "program/program.h"

static bool is_pipe(const hd_op *op)
{
    return op->max_in == 0 || op->has_effect; /* recv, send */
}

/* ---- the ranks of all stages ---- */

int hd_program_ranks(const hd_program *p)
{
    return p->meshes.n ? hd_stages_ranks(&p->meshes) : hd_mesh_size(&p->mesh);
}

int hd_program_first_rank(const hd_program *p)
{
    return p->meshes.n ? p->meshes.first[p->stage] : hd_mesh_size(&p->mesh) / p->stages * p->stage;
}

int hd_program_place(const hd_program *p, int rank)
{
    return p->meshes.n ? rank - p->meshes.first[p->stage] : rank;
}

int hd_program_stage_of(const hd_program *p, int rank)
{
    int ranks = hd_program_ranks(p);
    if (rank >= ranks) rank = ranks - 1;
    return p->meshes.n ? hd_stages_of_rank(&p->meshes, rank) : rank / (ranks / p->stages);
}

bool hd_program_leads_stage(const hd_program *p, int rank)
{
    return p->meshes.n ? rank == p->meshes.first[hd_program_stage_of(p, rank)] : rank % (hd_program_ranks(p) / p->stages) == 0;
}

int hd_program_crossing(const hd_program *p, const hd_instr *x, hd_crossing *out, hd_error *err)
{
    const hd_pipe_attrs *a = x->attrs;
    bool send = x->op->has_effect;
    const hd_buffer *own = &p->buffers[send ? x->in[0] : x->out[0]];
    if (a->from < 0 || a->to < 0) return hd_fail(err, HD_EFORMAT, "%s: is between chunks that there aren't", x->path);
    int from = a->from % p->stages, to = a->to % p->stages, other = send ? to : from;
    if (from == to || (send ? from : to) != p->stage) return hd_fail(err, HD_EFORMAT, "%s: isn't between this stage and another", x->path);
    *out = (hd_crossing){.whole = own->layout ? own->whole : own->type.shape, .from = p->meshes.first[from], .to = p->meshes.first[to]};
    hd_layout *there = &out->layout[send], *here = &out->layout[!send];
    if (own->layout) *here = *own->layout;
    hd_error local = {0};
    if (hd_layout_parse(&p->meshes.mesh[other], a->there, out->whole.rank, there, &local)) return hd_fail(err, HD_EFORMAT, "%s: %s", x->path, local.message);
    for (int i = 0; i < 2; i++)
        if (!hd_crossing_fits(&out->layout[i], out->whole.rank)) return hd_fail(err, HD_EFORMAT, "%s: between stages only rows are cut", x->path);
    out->sender = (hd_end){&p->meshes.mesh[from], &out->layout[0]};
    out->receiver = (hd_end){&p->meshes.mesh[to], &out->layout[1]};
    return 0;
}

/* Elements that the first rank of the stage sends or receives. */
static int64_t crossing_elements(const hd_program *p, const hd_instr *x)
{
    hd_crossing c;
    int64_t rows = 0, begin;
    if (hd_program_crossing(p, x, &c, NULL)) return 0;
    bool send = x->op->has_effect;
    for (int r = 0; r < hd_mesh_size(send ? c.receiver.mesh : c.sender.mesh); r++)
        rows += hd_crossing_rows(&c.sender, send ? 0 : r, &c.receiver, send ? r : 0, &c.whole, &begin);
    return rows * hd_row_elements(&c.whole);
}

/* ---- the collectives of a step ---- */

static int pipeline_axis(const hd_mesh *m)
{
    for (int a = 0; a < m->n; a++)
        if (m->axis[a].role == HD_AXIS_PIPELINE) return a;
    return -1;
}

static void describe_one(const hd_program *p, const hd_instr *x, hd_comm_count *out)
{
    const hd_buffer *in = x->n_in ? &p->buffers[x->in[0]] : NULL, *made = x->n_out ? &p->buffers[x->out[0]] : NULL;
    int64_t a = in ? hd_shape_count(&in->type.shape) : 0, b = made ? hd_shape_count(&made->type.shape) : 0;
    int axis = pipeline_axis(&p->mesh), group = 1;
    *out = (hd_comm_count){.op = x->op->name, .elements = a > b ? a : b, .transfers = 1};
    out->bytes = out->elements * (int64_t)hd_dtype_size((in ? in : made)->type.dtype);
    if (is_pipe(x->op)) {
        if (p->meshes.n) out->bytes = crossing_elements(p, x) * (int64_t)hd_dtype_size((in ? in : made)->type.dtype);
        snprintf(out->axes, sizeof out->axes, "%s", axis >= 0 ? p->mesh.axis[axis].name : "");
        return;
    }
    int8_t axes[HD_MAX_AXES];
    const hd_comm_attrs *attrs = x->attrs;
    int n = hd_mesh_parse_axes(&p->mesh, attrs->axes, axes);
    for (int i = 0; i < n; i++) group *= axes[i] == axis && p->meshes.n ? hd_stages_ranks(&p->meshes) : p->mesh.axis[axes[i]].size;
    snprintf(out->axes, sizeof out->axes, "%s", attrs->axes);
    if (x->op == &hd_op_permute) return; /* the whole piece goes on */
    out->bytes = out->bytes / group * (group - 1) + out->bytes % group * (group - 1) / group;
    if (!strcmp(x->op->name, "all_reduce")) out->bytes *= 2;
}

/* A list is one transfer of what its members send. */
static void describe(const hd_program *p, const hd_instr *x, hd_comm_count *out)
{
    hd_comm_attrs own;
    hd_instr member = hd_instr_member(p, x, 0, &own);
    describe_one(p, &member, out);
    for (int k = 1; k < x->n_in; k++) {
        hd_comm_count one;
        member = hd_instr_member(p, x, k, &own);
        describe_one(p, &member, &one);
        out->elements += one.elements;
        out->bytes += one.bytes;
    }
}

static void add_count(hd_comm_count *out, int most, int *n, const hd_comm_count *c)
{
    int k = 0;
    while (k < *n && k < most && (strcmp(out[k].op, c->op) || strcmp(out[k].axes, c->axes))) k++;
    if (k >= most) return;
    if (k == *n) out[(*n)++] = (hd_comm_count){.op = c->op};
    memcpy(out[k].axes, c->axes, sizeof c->axes);
    out[k].transfers += c->transfers;
    out[k].elements += c->elements;
    out[k].bytes += c->bytes;
}

int hd_program_count(const hd_program *p, hd_comm_count *out, int most)
{
    int n = 0, micro_batches = hd_program_micro_batches(p);
    hd_call_iter calls = hd_program_calls(p);
    for (hd_call c; hd_call_next(&calls, &c);) {
        hd_instr_iter it = hd_segment_instrs(p, c.segment);
        for (const hd_instr *x; (x = hd_instr_next(&it));) {
            hd_comm_count one;
            if (x->opcode != HD_COMM || x->op->sends_nothing) continue;
            if (!hd_instr_runs(x, c.micro, micro_batches)) continue;
            describe(p, x, &one);
            add_count(out, most, &n, &one);
        }
    }
    return n;
}

/* ---- progress ---- */

typedef struct stage {
    const hd_program *p;
    int call, instr;   /* where it is */
} stage;

typedef struct message {
    int from, to, number; /* chunks; of the chunk's number */
    int sender, segment;  /* stage and segment */
    const hd_program *p;  /* the sender's */
    const hd_instr *instr;
    bool taken;
} message;

typedef struct world {
    const hd_program *const *programs;
    stage *stages;
    int n;
    message *sends; size_t n_sends, cap_sends, first; /* those before `first` have all been taken */
    hd_error *err;
} world;

static const hd_instr *instr_at(const stage *s)
{
    const hd_segment *g = &s->p->segments[s->p->calls[s->call].segment];
    return s->instr < g->n_instrs ? &g->instrs[s->instr] : NULL;
}

static bool is_once(const stage *s)
{
    hd_segment_kind k = s->p->segments[s->p->calls[s->call].segment].kind;
    return k == HD_SEGMENT_PREPARE || k == HD_SEGMENT_UPDATE;
}

/* Whether sends of stage i (of one segment; -1: of all) are under way. */
static const message *under_way(const world *w, int i, int segment)
{
    for (size_t k = w->first; k < w->n_sends; k++) {
        const message *m = &w->sends[k];
        if (!m->taken && m->sender == i && (segment < 0 || m->segment == segment)) return m;
    }
    return NULL;
}

/* Before a call its segment's last sends must have gone, before and behind prepare and update all of them; so must they at the end. */
static const message *blocking_send(const world *w, int i)
{
    const stage *s = &w->stages[i];
    if (s->call >= s->p->n_calls) return under_way(w, i, -1);
    if (s->instr > 0 && instr_at(s)) return NULL;
    if (is_once(s)) return under_way(w, i, -1);
    return s->instr == 0 ? under_way(w, i, s->p->calls[s->call].segment) : NULL;
}

static int start_send(world *w, int i, const hd_instr *x)
{
    const hd_pipe_attrs *a = x->attrs;
    if (hd_grow(&w->sends, &w->cap_sends, w->n_sends + 1, sizeof *w->sends)) return hd_fail_memory(w->err, sizeof *w->sends, "verifying a pipeline");
    const stage *s = &w->stages[i];
    w->sends[w->n_sends++] = (message){a->from, a->to, a->number, i, s->p->calls[s->call].segment, s->p, x, false};
    return 1;
}

/* Both ends of what crosses between different meshes say the same. */
static bool same_crossing(const hd_program *p, const hd_instr *send, const hd_program *q, const hd_instr *recv)
{
    hd_crossing a, b;
    if (hd_program_crossing(p, send, &a, NULL) || hd_program_crossing(q, recv, &b, NULL) || !hd_shape_equal(&a.whole, &b.whole)) return false;
    return hd_layout_equal(a.sender.mesh, &a.layout[0], &b.layout[0], &a.whole) && hd_layout_equal(a.receiver.mesh, &a.layout[1], &b.layout[1], &a.whole);
}

static bool ends_fit(const message *m, const hd_program *q, const hd_instr *recv)
{
    const hd_type *sent = &m->p->buffers[m->instr->in[0]].type, *want = &q->buffers[recv->out[0]].type;
    if (sent->dtype != want->dtype) return false;
    return m->p->meshes.n ? same_crossing(m->p, m->instr, q, recv) : hd_shape_equal(&sent->shape, &want->shape);
}

/* 1: it has been taken, 0: it isn't there yet, negative: what is there doesn't fit. */
static int take_message(world *w, int i, const hd_instr *x)
{
    const hd_pipe_attrs *a = x->attrs;
    for (size_t k = w->first; k < w->n_sends; k++) {
        message *m = &w->sends[k];
        if (m->taken || m->from != a->from || m->to != a->to || m->number != a->number) continue;
        if (!ends_fit(m, w->stages[i].p, x))
            return hd_fail(w->err, HD_EFORMAT, "%s: receives another type than chunk %d sends", x->path, a->from);
        m->taken = true;
        while (w->first < w->n_sends && w->sends[w->first].taken) w->first++;
        return 1;
    }
    return 0;
}

static bool spans_stages(const hd_program *p, const hd_instr *x)
{
    int8_t axes[HD_MAX_AXES];
    if (!x || x->opcode != HD_COMM || is_pipe(x->op) || x->op->sends_nothing) return false;
    int n = hd_mesh_parse_axes(&p->mesh, ((const hd_comm_attrs *)x->attrs)->axes, axes);
    for (int i = 0; i < n; i++)
        if (axes[i] == pipeline_axis(&p->mesh)) return true;
    return false;
}

static bool same_collective(const stage *a, const hd_instr *x, const stage *b, const hd_instr *y)
{
    const hd_type *s = &a->p->buffers[x->in[0]].type, *t = &b->p->buffers[y->in[0]].type;
    return x->op == y->op && !memcmp(x->attrs, y->attrs, x->op->attrs_size) && s->dtype == t->dtype && hd_shape_equal(&s->shape, &t->shape);
}

/* All stages stand at a collective over the pipeline's axis: they pass it together. 1, or 0 if they don't. */
static int pass_collective(world *w)
{
    for (int i = 0; i < w->n; i++) {
        stage *s = &w->stages[i];
        const hd_instr *x = s->call < s->p->n_calls && !(s->instr == 0 && blocking_send(w, i)) ? instr_at(s) : NULL;
        if (!spans_stages(s->p, x)) return 0;
        if (i && !same_collective(&w->stages[0], instr_at(&w->stages[0]), s, x))
            return hd_fail(w->err, HD_EFORMAT, "%s: stage %d comes to it where stage 0 comes to %s", x->path, i, instr_at(&w->stages[0])->path);
    }
    for (int i = 0; i < w->n; i++) w->stages[i].instr++;
    return 1;
}

/* One step of stage i: 1 if it got on. */
static int advance(world *w, int i)
{
    stage *s = &w->stages[i];
    if (s->call >= s->p->n_calls || blocking_send(w, i)) return 0;
    const hd_instr *x = instr_at(s);
    int rc = 1;
    if (!x) {
        s->call++;
        s->instr = 0;
        return 1;
    }
    if (x->opcode == HD_COMM && x->op->has_effect) rc = start_send(w, i, x);
    else if (x->opcode == HD_COMM && is_pipe(x->op)) rc = take_message(w, i, x);
    else if (spans_stages(s->p, x)) rc = 0;
    if (rc > 0) s->instr++;
    return rc;
}

/* Until nobody gets on. */
static int run_world(world *w)
{
    for (int any = 1; any;) {
        any = 0;
        for (int i = 0; i < w->n; i++) {
            int rc;
            while ((rc = advance(w, i)) > 0) any = 1;
            if (rc < 0) return rc;
        }
        int rc = any ? 0 : pass_collective(w);
        if (rc < 0) return rc;
        any |= rc;
    }
    return 0;
}

static int report_stuck(const world *w)
{
    for (int i = 0; i < w->n; i++) {
        const stage *s = &w->stages[i];
        const message *m = blocking_send(w, i);
        if (m) return hd_fail(w->err, HD_EFORMAT, "stage %d waits for ever for chunk %d to take what chunk %d sends (number %d)", i, m->to, m->from, m->number);
        if (s->call < s->p->n_calls)
            return hd_fail(w->err, HD_EFORMAT, "stage %d waits for ever at %s in call %d", i, instr_at(s) ? instr_at(s)->path : "the end", s->call);
    }
    return 0;
}

/* All are of one mesh, or know the same meshes. */
static bool same_stages(const hd_program *p, const hd_program *q)
{
    if (p->meshes.n != q->meshes.n) return false;
    if (!p->meshes.n) return hd_mesh_size(&p->mesh) == hd_mesh_size(&q->mesh);
    for (int s = 0; s < p->meshes.n; s++)
        if (p->meshes.first[s + 1] != q->meshes.first[s + 1]) return false;
    return true;
}

static int check_stages(const world *w)
{
    for (int i = 0; i < w->n; i++) {
        const hd_program *p = w->programs[i];
        if (p->stages != w->n || p->stage != i) return hd_fail(w->err, HD_EINVAL, "program %d is of stage %d of %d", i, p->stage, p->stages);
        if (!same_stages(p, w->programs[0])) return hd_fail(w->err, HD_EINVAL, "the stages are of different meshes, or don't agree on them");
    }
    return 0;
}

int hd_program_verify_world(const hd_program *const *stages, int n, hd_error *err)
{
    hd_error local = {0};
    world w = {.programs = stages, .n = n, .err = err ? err : &local};
    int rc = check_stages(&w);
    if (rc) return rc;
    w.stages = hd_calloc((size_t)n + 1, sizeof *w.stages);
    if (!w.stages) return hd_fail_memory(w.err, (size_t)n * sizeof *w.stages, "verifying a pipeline");
    for (int i = 0; i < n; i++) w.stages[i].p = stages[i];
    rc = run_world(&w);
    if (!rc) rc = report_stuck(&w);
    hd_free(w.stages);
    hd_free(w.sends);
    return rc;
}
