/* parallel_cuts.c: where a pipeline's chunks begin: by layers for language models, by floating-point operations for other networks. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/thread.h"
#include "plan/parallel_int.h"

static int cut_layers(const hd_parallel *p, const hd_outline *o, int chunks, hd_plan *plan, hd_error *err)
{
    int64_t at = 0, total = 0;
    for (int c = 0; c < p->n_layers; c++) total += p->layers[c];
    if (p->n_layers && total != o->layers) return hd_fail(err, HD_EINVAL, "--parallel: layers adds up to %" PRId64 ", the model has %" PRId64, total, o->layers);
    if (chunks > o->layers)
        return hd_fail(err, HD_EINVAL, "--parallel: %d chunks and %" PRId64 " layers: give pp x v of at most %" PRId64, chunks, o->layers, o->layers);
    for (int c = 1; c < chunks; c++) {
        int64_t end;
        if (p->n_layers) at += p->layers[c - 1];
        else hd_split(o->layers, 1, c, chunks, &at, &end);
        snprintf(plan->cuts[plan->n_cuts++], sizeof plan->cuts[0], "layers.%d", (int)at);
    }
    return 0;
}

static double flops_of(const hd_graph *g, const hd_node *n)
{
    hd_type in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS];
    hd_cost cost = {0};
    for (int k = 0; k < n->n_in; k++) in[k] = n->in[k] == HD_NONE ? (hd_type){.absent = true, .shape.sym = -1} : g->values[n->in[k]].type;
    for (int k = 0; k < n->n_out; k++) out[k] = g->values[n->out[k]].type;
    hd_sig s = {.op = n->op, .in = in, .out = out, .n_in = n->n_in, .n_out = n->n_out, .attrs = n->attrs};
    if (n->op->cost) n->op->cost(&s, &cost);
    return cost.flops;
}

/* A node that a chunk can begin with: done in each micro-batch, and its name fits. */
static bool can_begin(const hd_graph *g, const hd_node *n)
{
    return n->phase == HD_FORWARD && g->values[n->out[0]].micro != HD_TIME_REPLICATE && strlen(n->path) < sizeof ((hd_plan *)0)->cuts[0];
}

/* Chunk c begins at the first node with at least c of `chunks` equal parts of all work before it, but late enough for each chunk to have a node. */
static int cut_by_work(const hd_graph *g, int chunks, hd_plan *plan, hd_error *err)
{
    double total = 0, before = 0;
    int nodes = 0, seen = 0;
    for (size_t i = 0; i < g->n_nodes; i++) {
        if (g->nodes[i]->phase == HD_FORWARD) total += flops_of(g, g->nodes[i]);
        nodes += can_begin(g, g->nodes[i]);
    }
    if (chunks > nodes) return hd_fail(err, HD_EINVAL, "--parallel: %d chunks and %d nodes: give pp x v of at most %d", chunks, nodes, nodes);
    for (size_t i = 0; i < g->n_nodes && plan->n_cuts < chunks - 1; i++) {
        const hd_node *n = g->nodes[i];
        if (n->phase != HD_FORWARD) continue;
        if (can_begin(g, n)) {
            int c = plan->n_cuts + 1;
            bool must = nodes - seen == chunks - c; /* one node for each chunk that is left */
            if (seen++ && (must || before >= total * c / chunks)) snprintf(plan->cuts[plan->n_cuts++], sizeof plan->cuts[0], "%s", n->path);
        }
        before += flops_of(g, n);
    }
    return 0;
}

int hd_parallel_cuts(const hd_parallel *p, const hd_graph *g, const hd_outline *o, hd_plan *plan, hd_error *err)
{
    int chunks = (int)(p->pp * p->chunks);
    plan->n_cuts = 0;
    if (chunks == 1 && !p->n_layers) return 0;
    return o->language ? cut_layers(p, o, chunks, plan, err) : cut_by_work(g, chunks, plan, err);
}
