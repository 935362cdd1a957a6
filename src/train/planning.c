/* planning.c: graphs and Programs of a model for any form and number of micro-batches. */
#include "train/planning.h"

#include <stdio.h>
#include <string.h>

void hd_planning_target(const hd_cluster *c, int ranks, int threads, hd_plan *plan)
{
    int cores = c->device.cores, node = hd_cluster_group(c, c->node_level), here = ranks < node ? ranks : node;
    snprintf(plan->backend, sizeof plan->backend, "%s", cores ? "cpu" : "null");
    plan->threads = !cores ? 1 : threads ? threads : cores / (here < 1 ? 1 : here);
    if (plan->threads < 1) plan->threads = 1;
}

/* The forward graph of a call of so many samples; layers 0: all. */
static hd_graph *forward(const hd_planning *p, int64_t batch, int layers, hd_error *err)
{
    hd_model shortened = *p->model; /* its network stays the model's */
    hd_model_options o = {.mode = HD_LM_TRAIN, .precision = p->precision, .batch = batch, .sequence = p->sequence, .attention = p->attention, .half_stream = p->half_stream};
    if (layers > 0 && !shortened.is_network && layers < shortened.config.layers) shortened.config.layers = layers;
    return hd_model_graph(&shortened, &o, err);
}

static int check_micro_batches(const hd_planning *p, int64_t micro_batches, hd_error *err)
{
    if (micro_batches >= 1 && p->samples % micro_batches == 0) return 0;
    return hd_fail(err, HD_EINVAL, "%lld samples of a step are no whole number for each of %lld micro-batches", (long long)p->samples, (long long)micro_batches);
}

static hd_session_options options_of(const hd_planning *p, const hd_parallel *form, int64_t micro_batches)
{
    hd_session_options o = {.step = p->step, .plan = hd_plan_default(), .sequence = p->model->is_network ? 0 : p->sequence};
    if (form) o.parallel = *form;
    o.plan.micro_batches = micro_batches;
    o.plan.precision = p->precision;
    hd_planning_target(p->cluster, form ? (int)hd_parallel_ranks(form) : 1, p->threads, &o.plan);
    return o;
}

static int lower(const void *context, const hd_parallel *form, int64_t micro_batches, int layers, hd_programs *out, hd_error *err)
{
    const hd_planning *p = context;
    int rc = check_micro_batches(p, micro_batches, err);
    if (rc) return rc;
    hd_graph *g = forward(p, p->samples / micro_batches, layers, err);
    hd_session_options o = options_of(p, form, micro_batches);
    return g ? hd_programs_make(out, g, true, &o, err) : err->code;
}

static hd_graph *whole(const void *context, int64_t micro_batches, int layers, hd_error *err)
{
    const hd_planning *p = context;
    hd_graph *g = check_micro_batches(p, micro_batches, err) ? NULL : forward(p, p->samples / micro_batches, layers, err);
    hd_session_options o = options_of(p, NULL, micro_batches);
    if (!g || !hd_session_whole(g, true, &o, err)) return g;
    hd_graph_free(g);
    return NULL;
}

/* Batch norm's mean and variance are a micro-batch's. */
static bool mixes_samples(const hd_graph *g)
{
    for (size_t i = 0; i < g->n_nodes; i++)
        if (!strcmp(g->nodes[i]->op->name, "batch_norm")) return true;
    return false;
}

/* Before parameters are cast: lookups read them themselves. */
static bool reads_tables(const hd_graph *g)
{
    for (size_t i = 0; i < g->n_nodes; i++)
        if (!strcmp(g->nodes[i]->op->name, "gather") && g->values[g->nodes[i]->in[0]].kind == HD_PARAM) return true;
    return false;
}

int hd_planning_network(const hd_planning *p, hd_planner_network *out, hd_error *err)
{
    const hd_lm_config *c = &p->model->config;
    *out = (hd_planner_network){.context = p, .lower = lower, .graph = whole, .samples = p->samples};
    if (!p->model->is_network) {
        out->layers = c->layers, out->heads = c->heads, out->kv_heads = c->kv_heads, out->sequence = p->sequence;
        out->recomputes = true;
        return 0;
    }
    hd_graph *g = forward(p, p->samples, 0, err);
    if (!g) return err->code;
    out->whole_batch = mixes_samples(g);
    out->tables = reads_tables(g);
    hd_graph_free(g);
    return 0;
}
