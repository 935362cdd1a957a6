/* sim.c: from programs and a cluster to a result. */
#include "sim/sim.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/term.h"
#include "sim/sim_int.h"

/* ---- names ---- */

const char *hd_sim_part_name(hd_sim_part p)
{
    static const char *const names[] = {"gemm", "memory-bound", "tensor-parallel", "pipeline-transfer", "bubble", "data-parallel", "idle"};
    return names[p];
}

const char *hd_sim_kind_name(hd_sim_kind k)
{
    static const char *const names[] = {"parameters", "gradients", "optimizer", "activations", "buffers"};
    return names[k];
}

/* ---- memory ---- */

static hd_sim_kind kind_of(hd_role r)
{
    switch (r) {
    case HD_ROLE_PARAMETER: return HD_SIM_PARAMETERS;
    case HD_ROLE_GRADIENT: return HD_SIM_GRADIENTS;
    case HD_ROLE_OPTIMIZER: return HD_SIM_OPTIMIZER;
    case HD_ROLE_ACTIVATION: return HD_SIM_ACTIVATIONS;
    default: return HD_SIM_BUFFERS;
    }
}

/* What the arena is longer than its contents at the peak, its holes, are buffers too; so is the workspace. Ranks on CPUs share the node's memory. */
static void fill_memory(const hd_cluster *c, const hd_memory *m, int teams, hd_sim_rank *out)
{
    int64_t named = 0;
    out->memory = *m;
    for (int r = 0; r < HD_ROLE_COUNT; r++) {
        out->kind[kind_of((hd_role)r)] += m->role[r];
        named += m->role[r];
    }
    out->workspace = c->device.cores ? 0 : HD_SIM_WORKSPACE;
    out->kind[HD_SIM_BUFFERS] += m->total - named + out->workspace;
    out->peak = m->total + out->workspace;
    out->capacity = c->device.memory > c->device.reserved ? (c->device.memory - c->device.reserved) / teams : 0;
}

/* What helps most against the kind that takes most. */
static const char *remedy(hd_sim_kind k)
{
    static const char *const help[HD_SIM_KINDS] = {
        [HD_SIM_PARAMETERS] = "more tp or pp, or zero=3 over more dp",
        [HD_SIM_GRADIENTS] = "more tp or pp, or zero=2 over more dp",
        [HD_SIM_OPTIMIZER] = "zero=1 over more dp, or more tp or pp",
        [HD_SIM_ACTIVATIONS] = "recompute=full, a smaller --batch with more --micro-batches, or more tp with sp",
        [HD_SIM_BUFFERS] = "a smaller --batch with more --micro-batches, or more tp",
    };
    return help[k];
}

int hd_sim_check_memory(const hd_sim_result *r, hd_error *err)
{
    const hd_sim_rank *worst = NULL;
    char need[24], have[24], over[24], most[24];
    for (int i = 0; i < r->n_ranks; i++)
        if (!worst || r->rank[i].peak - r->rank[i].capacity > worst->peak - worst->capacity) worst = &r->rank[i];
    if (!worst || worst->peak <= worst->capacity) return 0;
    hd_sim_kind k = HD_SIM_PARAMETERS;
    for (int i = 0; i < HD_SIM_KINDS; i++)
        if (worst->kind[i] > worst->kind[k]) k = (hd_sim_kind)i;
    return hd_fail(err, HD_EMEMCAP, "rank %d needs %s of memory and has %s: %s too much, most of it %s (%s). What would help: %s; %lld times as many devices at the least",
                   worst->rank,
                   hd_format_bytes(need, (double)worst->peak), hd_format_bytes(have, (double)worst->capacity),
                   hd_format_bytes(over, (double)(worst->peak - worst->capacity)), hd_sim_kind_name(k), hd_format_bytes(most, (double)worst->kind[k]), remedy(k),
                   worst->capacity > 0 ? (long long)((worst->peak + worst->capacity - 1) / worst->capacity) : 1LL);
}

/* ---- setting up ---- */

static int init_actor(sim *s, sim_actor *a)
{
    a->micro_batches = hd_program_micro_batches(a->program);
    a->n_tokens = hd_program_tokens(a->program);
    a->tokens = hd_arena_alloc(&s->memory, ((size_t)a->n_tokens + 1) * sizeof *a->tokens);
    return a->tokens ? 0 : sim_no_memory(s);
}

static int init(sim *s)
{
    const hd_cluster *c = s->cluster;
    int rc = sim_place_init(s), devices = hd_cluster_devices(c);
    if (rc) return rc;
    if (s->world > devices) return hd_fail(s->err, HD_EINVAL, "the plan is for %d ranks, and %s has %d device%s: name %s:%d, or split over fewer", s->world, c->name,
                                           devices, devices == 1 ? "" : "s", c->name, s->world);
    s->teams = sim_teams(c, s->world);
    s->buffered = !c->device.cores;
    s->in_process = c->device.cores && s->world == s->teams;
    rc = sim_find_alike(s);
    if (rc) return rc;
    s->ready = hd_arena_alloc(&s->memory, (size_t)s->n_actors * sizeof *s->ready);
    s->moved = hd_arena_alloc(&s->memory, (size_t)s->n_actors * sizeof *s->moved);
    if (!s->ready || !s->moved) return sim_no_memory(s);
    for (int i = 0; i < s->n_actors && !rc; i++) rc = init_actor(s, &s->actors[i]);
    return rc;
}

static void finish(sim *s)
{
    for (int i = 0; i < s->n_actors && s->actors; i++) {
        hd_free(s->actors[i].variants);
        hd_free(s->actors[i].sends);
        hd_free(s->actors[i].queue);
    }
    for (size_t i = 0; i < s->n_meetings; i++) hd_free(s->meetings[i].ring);
    for (size_t i = 0; i < s->n_channels; i++) hd_free(s->channels[i].ring);
    hd_free(s->meetings);
    hd_free(s->channels);
    hd_free(s->axes);
    hd_arena_free(&s->memory);
}

/* ---- results ---- */

/* To the step's end ranks wait: for other stages, or for others of their own stage. */
static void fill_ends(sim *s, hd_sim_result *out)
{
    for (int i = 0; i < s->n_actors; i++) out->step = fmax(out->step, s->actors[i].time);
    for (int i = 0; i < s->n_actors; i++) {
        sim_actor *a = &s->actors[i];
        double stage = 0;
        for (int k = 0; k < s->n_actors; k++)
            if (s->actors[k].stage == a->stage) stage = fmax(stage, s->actors[k].time);
        a->out.part[HD_SIM_IDLE] += stage - a->time;
        a->out.part[HD_SIM_BUBBLE] += out->step - stage;
    }
}

static int fill_result(sim *s, hd_sim_result *out)
{
    double parts[HD_SIM_PARTS] = {0};
    out->rank = hd_calloc((size_t)s->n_actors + 1, sizeof *out->rank);
    if (!out->rank) return sim_no_memory(s);
    fill_ends(s, out);
    out->ranks = s->world;
    out->n_ranks = s->n_actors;
    for (int i = 0; i < s->n_actors; i++) {
        hd_sim_rank *r = &out->rank[i];
        hd_memory m;
        *r = s->actors[i].out;
        int rc = hd_program_memory(s->actors[i].program, &m, s->err);
        if (rc) return rc;
        fill_memory(s->cluster, &m, s->teams, r);
        out->flops += r->flops * r->alike;
        out->hardware_flops += r->hardware_flops * r->alike;
        for (int p = 0; p < HD_SIM_PARTS; p++) parts[p] += r->part[p] * r->alike;
        for (int l = 0; l < HD_MAX_LEVELS; l++) out->bytes[l] += r->bytes[l] * r->alike;
        out->hidden += r->hidden * r->alike / s->world;
    }
    hd_sim_part most = HD_SIM_GEMM;
    for (int p = 0; p < HD_SIM_PARTS; p++) {
        out->part[p] = parts[p] / s->world;
        if (parts[p] > parts[most]) most = (hd_sim_part)p;
    }
    out->bubble = out->step > 0 ? out->part[HD_SIM_BUBBLE] / out->step : 0;
    out->limit = hd_sim_part_name(most);
    return 0;
}

static int run_steps(sim *s, hd_sim_result *out)
{
    int steps = s->options->steps > 0 ? s->options->steps : 1, rc = 0;
    for (int i = 0; i < steps && !rc; i++) {
        rc = sim_run_step(s);
        double end = 0;
        for (int k = 0; k < s->n_actors; k++) end = fmax(end, s->actors[k].time);
        s->offset += end;
    }
    hd_trace *t = s->options->trace;
    if (t) t->seconds = s->offset, t->steps = steps, t->ranks = s->world;
    for (int i = 0; t && i < s->n_actors && !rc; i++) rc = hd_program_trace_memory(s->actors[i].program, s->actors[i].rank, t, s->err);
    return rc ? rc : fill_result(s, out);
}

int hd_simulate(const hd_program *const *programs, int n, const hd_cluster *c, const hd_sim_options *o, hd_sim_result *out, hd_error *err)
{
    hd_error local = {0};
    hd_sim_options none = {0};
    sim s = {.programs = programs, .stages = n, .cluster = c, .options = o ? o : &none, .err = err ? err : &local};
    *out = (hd_sim_result){0};
    int rc = n < 1 ? hd_fail(s.err, HD_EINVAL, "there are no programs to simulate") : init(&s);
    if (!rc) rc = run_steps(&s, out);
    finish(&s);
    if (rc) hd_sim_result_free(out);
    return rc;
}

void hd_sim_result_free(hd_sim_result *r)
{
    hd_free(r->rank);
    *r = (hd_sim_result){0};
}
