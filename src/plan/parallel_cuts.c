/* parallel_cuts.c: where a pipeline's chunks begin: between layers for language models, anywhere for other networks; evenly by floating-point
 * operations. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "ops/ops.h"
#include "plan/parallel_int.h"

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

/* Products and attention alone: elementwise work is little, and differs between training and evaluation, which must be cut alike. */
static double work_of(const hd_graph *g, const hd_node *n)
{
    return n->phase == HD_FORWARD && (n->op == &hd_op_contract || n->op == &hd_op_attention) ? flops_of(g, n) : 0;
}

/* What each layer computes, the largest one or the head being 1000: what stands before the layers goes with the first, the head with the last. */
static void weigh_layers(const hd_graph *g, int64_t layers, int64_t *weight)
{
    double most = 0, work[2] = {0}; /* before and behind the layers */
    double *layer = hd_calloc((size_t)layers, sizeof *layer);
    bool inside = false;
    for (int64_t l = 0; l < layers; l++) weight[l] = 1;
    if (!layer) return; /* equal numbers will do */
    for (size_t i = 0; i < g->n_nodes; i++) {
        const hd_node *n = g->nodes[i];
        bool in_layer = !strncmp(n->path, "layers.", 7);
        int64_t l = in_layer ? atoll(n->path + 7) : 0;
        inside |= in_layer;
        *(in_layer && l < layers ? &layer[l] : &work[inside]) += work_of(g, n);
    }
    layer[0] += work[0];
    for (int64_t l = 0; l < layers; l++) most = layer[l] > most ? layer[l] : most;
    if (work[1] > most) most = work[1];
    layer[layers - 1] += work[1];
    for (int64_t l = 0; l < layers && most > 0; l++) weight[l] = (int64_t)(1000 * layer[l] / most + 0.5);
    hd_free(layer);
}

/* How fast chunk c is done: the ranks of its stage, where those differ. */
static double speed_of(const hd_parallel *p, int c)
{
    if (!p->n_parts) return 1;
    hd_parallel one = hd_parallel_of_part(p, hd_parallel_part_of_stage(p, c % (int)p->pp));
    return (double)(one.dp * one.cp * one.tp);
}

/* Layers begin[c] .. begin[c + 1] - 1 become chunk c, so that the sum of the chunks' times to the 16th power is least: the slowest chunk sets
 * the pace, and among cuts with the same slowest one the others are as even as can be. `cost` and `from` have room for chunks * (layers + 1). */
static void balance(const hd_parallel *p, const int64_t *weight, int64_t layers, int chunks, double *cost, int *from, int64_t *begin)
{
    double mean = 0;
    for (int64_t l = 0; l < layers; l++) mean += (double)weight[l] / chunks;
    for (int c = 0; c < chunks; c++)
        for (int64_t end = c + 1; end <= layers - (chunks - 1 - c); end++) {
            double *best = &cost[c * (layers + 1) + end], work = 0, unit = mean * speed_of(p, c);
            *best = INFINITY;
            for (int64_t at = end - 1; at >= c; at--) {
                work += (double)weight[at] / unit;
                if (!c && at) continue;
                double all = pow(work, 16) + (c ? cost[(c - 1) * (layers + 1) + at] : 0);
                if (all < *best) *best = all, from[c * (layers + 1) + end] = (int)at;
            }
        }
    begin[chunks] = layers;
    for (int c = chunks - 1; c >= 0; c--) begin[c] = from[c * (layers + 1) + begin[c + 1]];
}

static int balance_layers(const hd_parallel *p, const hd_graph *g, int64_t layers, int chunks, int64_t *begin, hd_error *err)
{
    size_t n = (size_t)chunks * ((size_t)layers + 1);
    int64_t *weight = hd_calloc((size_t)layers, sizeof *weight);
    double *cost = hd_calloc(n, sizeof *cost);
    int *from = hd_calloc(n, sizeof *from);
    bool room = weight && cost && from;
    if (room) {
        weigh_layers(g, layers, weight);
        balance(p, weight, layers, chunks, cost, from, begin);
    }
    hd_free(weight);
    hd_free(cost);
    hd_free(from);
    return room ? 0 : hd_fail_memory(err, n * sizeof *cost, "cutting a pipeline");
}

static int cut_layers(const hd_parallel *p, const hd_graph *g, const hd_outline *o, int chunks, hd_plan *plan, hd_error *err)
{
    int64_t begin[HD_MAX_CUTS + 2] = {0}, total = 0;
    for (int c = 0; c < p->n_layers; c++) begin[c + 1] = total += p->layers[c];
    if (p->n_layers && total != o->layers) return hd_fail(err, HD_EINVAL, "--parallel: layers adds up to %" PRId64 ", the model has %" PRId64, total, o->layers);
    if (chunks > o->layers)
        return hd_fail(err, HD_EINVAL, "--parallel: %d chunks and %" PRId64 " layers: give pp x v of at most %" PRId64, chunks, o->layers, o->layers);
    int rc = p->n_layers ? 0 : balance_layers(p, g, o->layers, chunks, begin, err);
    for (int c = 1; c < chunks && !rc; c++) snprintf(plan->cuts[plan->n_cuts++], sizeof plan->cuts[0], "layers.%d", (int)begin[c]);
    return rc;
}

/* A node that a chunk can begin with: done in each micro-batch, and its name fits. */
static bool can_begin(const hd_graph *g, const hd_node *n)
{
    return n->phase == HD_FORWARD && g->values[n->out[0]].micro != HD_TIME_REPLICATE && strlen(n->path) < sizeof ((hd_plan *)0)->cuts[0];
}

/* Of all work, what is to be done before chunk c. */
static double share_before(const hd_parallel *p, double total, int c, int chunks)
{
    double before = 0, all = 0;
    if (!p->n_parts) return total * c / chunks;
    for (int k = 0; k < chunks; k++) {
        if (k < c) before += speed_of(p, k);
        all += speed_of(p, k);
    }
    return total * before / all;
}

/* Chunk c begins at the first node with at least c of `chunks` equal parts of all work before it, but late enough for each chunk to have a node. */
static int cut_by_work(const hd_parallel *p, const hd_graph *g, int chunks, hd_plan *plan, hd_error *err)
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
            if (seen++ && (must || before >= share_before(p, total, c, chunks))) snprintf(plan->cuts[plan->n_cuts++], sizeof plan->cuts[0], "%s", n->path);
        }
        before += flops_of(g, n);
    }
    return 0;
}

int hd_parallel_cuts(const hd_parallel *p, const hd_graph *g, const hd_outline *o, hd_plan *plan, hd_error *err)
{
    int chunks = (int)(p->pp * p->chunks);
    plan->n_cuts = p->n_cuts;
    if (p->n_cuts) return memcpy(plan->cuts, p->cuts, (size_t)p->n_cuts * sizeof *p->cuts), 0;
    if (chunks == 1 && !p->n_layers) return 0;
    return o->language ? cut_layers(p, g, o, chunks, plan, err) : cut_by_work(p, g, chunks, plan, err);
}
