/* place.c: how ranks are numbered over the mesh and the stages, and who talks to whom. All programs are of one mesh; its pipeline axis tells the stages
 * apart, and ranks at equal places of two stages are each other's ends. */
#include <string.h>

#include "ops/ops.h"
#include "sim/sim_int.h"

int sim_no_memory(sim *s) { return hd_fail_memory(s->err, sizeof(sim_step), "simulating a step"); }

/* ---- ranks and stages ---- */

int sim_place_init(sim *s)
{
    const hd_mesh *m = &s->programs[0]->mesh;
    s->world = hd_mesh_size(m);
    s->pipeline = -1;
    for (int a = 0; a < m->n; a++)
        if (m->axis[a].role == HD_AXIS_PIPELINE) s->pipeline = a;
    int stages = s->pipeline >= 0 ? m->axis[s->pipeline].size : 1;
    if (stages != s->stages) return hd_fail(s->err, HD_EINVAL, "%d programs of a pipeline of %d stages", s->stages, stages);
    s->per_stage = s->world / stages;
    for (int i = 0; i < stages; i++) {
        const hd_program *p = s->programs[i];
        if (p->stages != stages || p->stage != i) return hd_fail(s->err, HD_EINVAL, "program %d is of stage %d of %d", i, p->stage, p->stages);
        if (hd_mesh_size(&p->mesh) != s->world) return hd_fail(s->err, HD_EINVAL, "the stages are of different meshes");
    }
    return 0;
}

int sim_stage_of(const sim *s, int rank)
{
    return s->pipeline >= 0 ? hd_mesh_coordinate(&s->programs[0]->mesh, rank, s->pipeline) : 0;
}

static int stage_stride(const sim *s)
{
    const hd_mesh *m = &s->programs[0]->mesh;
    int stride = 1;
    for (int a = s->pipeline + 1; a < m->n; a++) stride *= m->axis[a].size;
    return stride;
}

int sim_first_rank(const sim *s, int stage) { return s->pipeline >= 0 ? stage * stage_stride(s) : 0; }

int sim_peer(const sim *s, int rank, int chunk) { return rank + (chunk % s->stages - sim_stage_of(s, rank)) * stage_stride(s); }

/* ---- groups ---- */

int sim_find_axes(sim *s, const char *text)
{
    const hd_mesh *m = &s->programs[0]->mesh;
    for (size_t i = 0; i < s->n_axes; i++)
        if (!strcmp(s->axes[i].text, text)) return (int)i;
    if (hd_grow(&s->axes, &s->cap_axes, s->n_axes + 1, sizeof *s->axes)) return sim_no_memory(s);
    sim_axes *x = &s->axes[s->n_axes];
    *x = (sim_axes){.size = 1};
    x->n = hd_mesh_parse_axes(m, text, x->axis);
    if (x->n < 1 || strlen(text) >= sizeof x->text) return hd_fail(s->err, HD_EFORMAT, "the program's mesh has no axes %s", text);
    memcpy(x->text, text, strlen(text) + 1);
    for (int i = 0; i < x->n; i++) {
        x->size *= m->axis[x->axis[i]].size;
        x->across |= x->axis[i] == s->pipeline;
    }
    x->offset = hd_arena_alloc(&s->memory, (size_t)x->size * sizeof *x->offset);
    if (!x->offset) return sim_no_memory(s);
    hd_mesh_group(m, 0, x->axis, x->n, x->offset);
    return (int)s->n_axes++;
}

int sim_group(const sim *s, int axes, int rank, int *ranks)
{
    const sim_axes *x = &s->axes[axes];
    int index = hd_mesh_index(&s->programs[0]->mesh, rank, x->axis, x->n, NULL), base = rank - x->offset[index];
    for (int i = 0; i < x->size; i++) ranks[i] = base + x->offset[i];
    return x->size;
}

/* ---- transfers ---- */

bool sim_is_pipe(const hd_instr *x) { return x->opcode == HD_COMM && (x->op == &hd_op_send || x->op == &hd_op_recv); }

bool sim_is_collective(const hd_instr *x)
{
    return x->opcode == HD_COMM && !sim_is_pipe(x) && x->op != &hd_op_shard && x->op != &hd_op_keep_first;
}

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
