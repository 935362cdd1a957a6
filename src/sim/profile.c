/* profile.c: what the calls of each stage take by themselves, without going through a step: for planners. */
#include <stdlib.h>

#include "ops/ops.h"
#include "sim/sim_int.h"

int sim_teams(const hd_cluster *c, int world)
{
    int node = hd_cluster_group(c, c->node_level);
    return !c->device.cores ? 1 : world < node ? world : node;
}

static int collective(sim *s, const hd_program *p, const hd_instr *x, int *ranks, double *seconds)
{
    int first = s->first[p->stage], own = 0, axes = sim_find_axes(s, p->stage, ((const hd_comm_attrs *)x->attrs)->axes);
    hd_move_cost move;
    if (axes < 0) return axes;
    *seconds = 0;
    if (s->axes[axes].across) return 0; /* scalars of the update */
    int n = sim_group(s, axes, first, ranks);
    for (int i = 0; i < n; i++) ranks[i] -= first;
    while (ranks[own]) own++;
    *seconds = sim_collective_cost(s, p, x, ranks, n, own, sim_transfer_bytes(p, x, first, NULL), &move);
    return 0;
}

static int add_instr(sim *s, const hd_program *p, const hd_instr *x, int *ranks, hd_sim_segment *out)
{
    int64_t open[HD_MAX_SYMBOLS];
    double seconds = 0;
    int rc = 0, first = s->first[p->stage];
    for (int i = 0; i < HD_MAX_SYMBOLS; i++) open[i] = -1;
    if (sim_is_pipe(x)) {
        if (x->op == &hd_op_send) out->sent += sim_transfer_bytes(p, x, first, NULL);
        return 0;
    }
    if (sim_is_collective(x)) {
        rc = collective(s, p, x, ranks, &seconds);
        if (x->stream) *(x->last ? &out->beside_last : &out->beside) += seconds;
        else out->seconds += seconds, out->moving += seconds;
        return rc;
    }
    if (x->opcode == HD_KERNEL) {
        hd_kernel_cost c;
        sim_kernel_cost(s, p, x, first, open, &c);
        seconds = c.seconds;
    } else if (x->opcode != HD_WAIT && x->opcode != HD_VIEW) {
        seconds = sim_copy_cost(s, p, x, first, open);
    }
    out->seconds += seconds;
    return 0;
}

/* Values of each micro-batch have a copy for each of them. */
static void measure_saved(const hd_program *p, hd_sim_stage *out)
{
    bool single = hd_program_micro_batches(p) == 1;
    int64_t copies = 0;
    for (int i = 0; i < p->n_buffers; i++) {
        const hd_buffer *b = &p->buffers[i];
        if (b->view_of >= 0 || !hd_buffer_in_arena(p, i) || b->class != HD_BUFFER_SAVED || b->role == HD_ROLE_GRADIENT) continue;
        *(single || b->copies > 1 ? &out->saved : &out->held) += b->bytes;
        copies += b->bytes * b->copies;
    }
    out->rest = out->memory.arena - copies - out->memory.role[HD_ROLE_GRADIENT];
    if (out->rest < 0) out->rest = 0;
}

static int profile_stage(sim *s, const hd_program *p, int *ranks, hd_sim_stage *out)
{
    *out = (hd_sim_stage){.segment = hd_calloc((size_t)p->n_segments + 1, sizeof *out->segment)};
    if (!out->segment) return sim_no_memory(s);
    int rc = hd_program_memory(p, &out->memory, s->err);
    for (; out->n < p->n_segments && !rc; out->n++) {
        hd_sim_segment *seg = &out->segment[out->n];
        seg->kind = p->segments[out->n].kind;
        seg->chunk = p->segments[out->n].chunk;
        hd_instr_iter it = hd_segment_instrs(p, out->n);
        for (const hd_instr *x; !rc && (x = hd_instr_next(&it));) rc = add_instr(s, p, x, ranks, seg);
    }
    measure_saved(p, out);
    return rc;
}

int hd_sim_stages(const hd_program *const *programs, int n, const hd_cluster *c, int world, hd_sim_stage *out, hd_error *err)
{
    hd_error local = {0};
    hd_sim_options none = {0};
    sim s = {.programs = programs, .stages = n, .cluster = c, .options = &none, .err = err ? err : &local};
    for (int i = 0; i < n; i++) out[i] = (hd_sim_stage){0};
    int rc = sim_place_init(&s);
    int *ranks = rc ? NULL : hd_malloc((size_t)s.world * sizeof *ranks);
    if (!rc && !ranks) rc = sim_no_memory(&s);
    s.world = world;
    s.teams = sim_teams(c, world);
    for (int i = 0; i < n && !rc; i++) rc = profile_stage(&s, programs[i], ranks, &out[i]);
    hd_free(ranks);
    hd_free(s.axes);
    hd_arena_free(&s.memory);
    if (rc) hd_sim_stages_free(out, n);
    return rc;
}

void hd_sim_stages_free(hd_sim_stage *stages, int n)
{
    for (int i = 0; i < n; i++) {
        hd_free(stages[i].segment);
        stages[i] = (hd_sim_stage){0};
    }
}
