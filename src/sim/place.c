/* place.c: how ranks are numbered over meshes and stages, and who talks to whom. Stages of one mesh: its pipeline axis tells them apart, and ranks at equal
 * places of two stages are each other's ends. Stages of different meshes: ranks are numbered stage after stage, and every rank whose rows another wants is an
 * end of it (graph/layout.h, hd_stages, hd_crossing_rows). */
#include <string.h>

#include "ops/ops.h"
#include "sim/sim_int.h"

int sim_no_memory(sim *s) { return hd_fail_memory(s->err, sizeof(sim_step), "simulating a step"); }

/* ---- ranks and stages ---- */

static int check_stage(const sim *s, int stage)
{
    const hd_program *p = s->programs[stage];
    if (p->stages != s->stages || p->stage != stage) return hd_fail(s->err, HD_EINVAL, "program %d is of stage %d of %d", stage, p->stage, p->stages);
    if (hd_program_ranks(p) != s->world || p->meshes.n != s->programs[0]->meshes.n) return hd_fail(s->err, HD_EINVAL, "the programs are of different jobs");
    return 0;
}

int sim_place_init(sim *s)
{
    s->world = hd_program_ranks(s->programs[0]);
    s->meshes = s->programs[0]->meshes.n > 0;
    s->first = hd_arena_alloc(&s->memory, ((size_t)s->stages + 1) * sizeof *s->first);
    if (!s->first) return sim_no_memory(s);
    for (int i = 0; i < s->stages; i++) {
        int rc = check_stage(s, i);
        if (rc) return rc;
        s->first[i] = hd_program_first_rank(s->programs[i]);
    }
    s->first[s->stages] = s->world;
    return 0;
}

int sim_stage_of(const sim *s, int rank)
{
    int low = 0, high = s->stages;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (s->first[middle] <= rank) low = middle;
        else high = middle;
    }
    return low;
}

int sim_first_rank(const sim *s, int stage) { return s->first[stage]; }

/* ---- groups ---- */

static int fill_axes(sim *s, sim_axes *x, int stage)
{
    const hd_mesh *m = &s->programs[stage]->mesh;
    x->n = hd_mesh_parse_axes(m, x->text, x->axis);
    if (x->n < 1) return hd_fail(s->err, HD_EFORMAT, "the program's mesh has no axes %s", x->text);
    for (int i = 0; i < x->n; i++) {
        x->size *= m->axis[x->axis[i]].size;
        x->across |= m->axis[x->axis[i]].role == HD_AXIS_PIPELINE && s->stages > 1;
    }
    if (x->across && s->meshes) x->size = s->world;
    x->offset = hd_arena_alloc(&s->memory, (size_t)x->size * sizeof *x->offset);
    if (!x->offset) return sim_no_memory(s);
    if (x->across && s->meshes) for (int i = 0; i < s->world; i++) x->offset[i] = i;
    else hd_mesh_group(m, 0, x->axis, x->n, x->offset);
    return 0;
}

int sim_find_axes(sim *s, int stage, const char *text)
{
    if (!s->meshes) stage = 0;
    for (size_t i = 0; i < s->n_axes; i++)
        if (s->axes[i].stage == stage && !strcmp(s->axes[i].text, text)) return (int)i;
    if (hd_grow(&s->axes, &s->cap_axes, s->n_axes + 1, sizeof *s->axes)) return sim_no_memory(s);
    sim_axes *x = &s->axes[s->n_axes];
    *x = (sim_axes){.size = 1, .stage = stage};
    if (strlen(text) >= sizeof x->text) return hd_fail(s->err, HD_EFORMAT, "the program's mesh has no axes %s", text);
    memcpy(x->text, text, strlen(text) + 1);
    int rc = fill_axes(s, x, stage);
    return rc ? rc : (int)s->n_axes++;
}

int sim_group(const sim *s, int axes, int rank, int *ranks)
{
    const sim_axes *x = &s->axes[axes];
    const hd_program *p = s->programs[x->stage];
    bool all = x->across && s->meshes;
    int base = all ? 0 : rank - x->offset[hd_mesh_index(&p->mesh, hd_program_place(p, rank), x->axis, x->n, NULL)];
    for (int i = 0; i < x->size; i++) ranks[i] = base + x->offset[i];
    return x->size;
}

/* ---- ends of sends and receives ---- */

static int crossing_ends(sim *s, const hd_program *p, const hd_instr *x, int rank, sim_end *list)
{
    hd_crossing c;
    bool send = x->op == &hd_op_send;
    int rc = hd_program_crossing(p, x, &c, s->err), n = 0, place = hd_program_place(p, rank);
    if (rc) return rc;
    int64_t row = hd_row_elements(&c.whole) * (int64_t)hd_dtype_size(p->buffers[send ? x->in[0] : x->out[0]].type.dtype), begin;
    for (int r = 0; r < hd_mesh_size(send ? c.receiver.mesh : c.sender.mesh); r++) {
        int64_t rows = hd_crossing_rows(&c.sender, send ? place : r, &c.receiver, send ? r : place, &c.whole, &begin);
        if (rows) list[n++] = (sim_end){(send ? c.to : c.from) + r, rows * row};
    }
    return n;
}

int sim_other_stage(const sim *s, const hd_instr *x)
{
    const hd_pipe_attrs *at = x->attrs;
    return (x->op == &hd_op_send ? at->to : at->from) % s->stages;
}

int sim_ends(sim *s, const hd_program *p, const hd_instr *x, int rank, sim_end *list)
{
    if (s->meshes) return crossing_ends(s, p, x, rank, list);
    list[0] = (sim_end){rank - s->first[p->stage] + s->first[sim_other_stage(s, x)], sim_transfer_bytes(p, x, rank, NULL)};
    return 1;
}

/* ---- transfers ---- */

bool sim_is_pipe(const hd_instr *x) { return x->opcode == HD_COMM && (x->op == &hd_op_send || x->op == &hd_op_recv); }

bool sim_is_collective(const hd_instr *x) { return x->opcode == HD_COMM && !sim_is_pipe(x) && !x->op->sends_nothing; }

hd_move sim_move_kind(const hd_instr *x)
{
    static const struct { const hd_op *op; hd_move kind; } kinds[] = {
        {&hd_op_all_reduce, HD_MOVE_ALL_REDUCE}, {&hd_op_all_gather, HD_MOVE_ALL_GATHER}, {&hd_op_reduce_scatter, HD_MOVE_REDUCE_SCATTER},
        {&hd_op_all_to_all, HD_MOVE_ALL_TO_ALL},
    };
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (kinds[i].op == x->op) return kinds[i].kind;
    return HD_MOVE_SEND;
}
