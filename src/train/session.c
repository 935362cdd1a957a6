#include "train/session.h"

#include <stdio.h>
#include "base/term.h"

double hd_graph_flops(const hd_graph *g)
{
    double flops = 0;
    for (size_t i = 0; i < g->n_nodes; i++) {
        const hd_node *n = g->nodes[i];
        hd_type in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS];
        for (int k = 0; k < n->n_in; k++)
            in[k] = n->in[k] == HD_NONE ? (hd_type){.absent = true, .shape.sym = -1} : g->values[n->in[k]].type;
        for (int k = 0; k < n->n_out; k++) out[k] = g->values[n->out[k]].type;
        hd_sig sig = {.op = n->op, .in = in, .out = out, .n_in = n->n_in, .n_out = n->n_out, .attrs = n->attrs};
        hd_cost cost = {0};
        if (n->op->cost) n->op->cost(&sig, &cost);
        flops += cost.flops;
    }
    return flops;
}

/* ---- from forward graphs to programs ---- */

static int finish_graph(hd_graph *g, bool train, const hd_session_options *o)
{
    hd_pass_fuse_residual_norm(g);
    hd_pass_precision(g, o->plan.precision);
    if (o->lora) hd_pass_lora(g, o->lora);
    if (train) hd_step_append(g, &o->step), hd_pass_recompute_elementwise(g);
    else hd_graph_cse(g), hd_graph_dce(g);
    return hd_pass_fuse_elementwise(g);
}

static int make_program(hd_session *s, int which, const hd_session_options *o, hd_error *err)
{
    hd_graph *g = s->graph[which];
    bool train = which == HD_TRAIN_PROGRAM;
    if (!g) return 0;
    hd_plan plan = o->plan;
    if (!train) plan.micro_batches = 1;
    finish_graph(g, train, o);
    int rc = hd_graph_verify(g, err);
    if (!rc) rc = hd_lower(g, &plan, &s->backend.target, &s->program[which], err);
    double calls = train ? (double)plan.micro_batches : 1;
    s->flops[which] = calls * hd_graph_flops(g); /* the update is counted with each micro-batch: a few operations per parameter */
    return rc;
}

static int predict(hd_session *s, const hd_session_options *o, hd_error *err)
{
    int64_t arena = 0, store = 0;
    for (int i = 0; i < HD_SESSION_PROGRAMS; i++) {
        hd_memory m;
        if (!s->program[i]) continue;
        if (hd_program_memory(s->program[i], &m, err)) return err->code;
        if (!o->share_arena || m.arena > arena) arena += m.arena; /* hd_exec_new_sharing: too large to share is apart */
        if (m.store > store) store = m.store;
    }
    s->predicted_bytes = (int64_t)hd_memory_resident() + arena + store;
    return 0;
}

int hd_session_init(hd_session *s, hd_graph *train, hd_graph *eval, const hd_session_options *o, hd_error *err)
{
    *s = (hd_session){.graph = {train, eval}};
    int rc = hd_backend_open(&s->backend, o->plan.backend[0] ? o->plan.backend : "cpu", err);
    for (int i = 0; i < HD_SESSION_PROGRAMS && !rc; i++) rc = make_program(s, i, o, err);
    if (!rc) rc = predict(s, o, err);
    if (rc) hd_session_free(s);
    return rc;
}

void hd_session_free(hd_session *s)
{
    for (int i = 0; i < HD_SESSION_PROGRAMS; i++) {
        hd_exec_free(s->exec[i]);
        hd_program_free(s->program[i]);
        hd_graph_free(s->graph[i]);
    }
    hd_store_free(s->store);
    hd_team_free(s->team);
    *s = (hd_session){0};
}

/* ---- ready to run ---- */

static int check_memory(const hd_session *s, const hd_session_options *o, hd_error *err)
{
    char need[24], have[24];
    int64_t now = (int64_t)hd_memory_resident(), cap = o->memory ? o->memory : (int64_t)hd_memory_available() + now;
    if (s->predicted_bytes <= cap) return 0;
    hd_format_bytes(need, (double)s->predicted_bytes);
    hd_format_bytes(have, (double)cap);
    return hd_fail(err, HD_EMEMCAP, "this needs %lld bytes (%s) of memory and %lld (%s) are %s: try a smaller --batch or --sequence, or --precision bf16",
                   (long long)s->predicted_bytes, need, (long long)cap, have, o->memory ? "allowed" : "available");
}

int hd_session_start(hd_session *s, const hd_session_options *o, hd_error *err)
{
    int threads = o->plan.threads ? o->plan.threads : hd_core_count();
    int rc = check_memory(s, o, err);
    if (rc) return rc;
    s->team = hd_team_new(threads, true, err);
    if (!s->team) return err->code;
    const hd_graph *first = s->graph[HD_TRAIN_PROGRAM] ? s->graph[HD_TRAIN_PROGRAM] : s->graph[HD_EVAL_PROGRAM];
    s->store = hd_store_new(first, o->seed, err);
    if (!s->store) return err->code;
    for (int i = 0; i < HD_SESSION_PROGRAMS; i++) {
        if (!s->program[i]) continue;
        if (hd_store_add_graph(s->store, s->graph[i], o->seed, err)) return err->code;
        s->exec[i] = hd_exec_new_sharing(s->program[i], s->store, &s->backend, s->team, o->share_arena ? s->exec[HD_TRAIN_PROGRAM] : NULL, err);
        if (!s->exec[i]) return err->code;
    }
    return 0;
}

int hd_session_merge_lora(hd_session *s, const hd_session_options *o, hd_error *err)
{
    hd_plan plan = hd_plan_default();
    plan.threads = o->plan.threads;
    hd_program *program = NULL;
    hd_exec *exec = NULL;
    const hd_graph *adapted = s->graph[HD_TRAIN_PROGRAM] ? s->graph[HD_TRAIN_PROGRAM] : s->graph[HD_EVAL_PROGRAM];
    hd_graph *g = hd_lora_merge_graph(adapted, o->lora, err);
    int rc = g ? hd_lower(g, &plan, &s->backend.target, &program, err) : err->code;
    if (!rc && !(exec = hd_exec_new(program, s->store, &s->backend, s->team, err))) rc = err->code;
    if (!rc) rc = hd_exec_step(exec, NULL, err);
    hd_exec_free(exec);
    hd_program_free(program);
    hd_graph_free(g);
    return rc;
}
