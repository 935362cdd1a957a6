/* theory_network.h: the same for networks from files, from the file's forward graph alone: products, convolutions and batch norms over the samples of a
 * rank, what crosses from one stage's nodes to another's, and the sums over data-parallel ranks. Used by equality.c. */
#ifndef CHECK_THEORY_NETWORK_H
#define CHECK_THEORY_NETWORK_H

#include "theory.h"

enum { NETWORK_VALUES = 4096 };

typedef struct network_facts {
    const hd_graph *g;  /* forward only, whole */
    theory_job t;
    double share;       /* of the samples of a micro-batch that the largest piece has */
    int stage;
    int chunk[NETWORK_VALUES], reads[NETWORK_VALUES]; /* [values] of its node, or of the first that reads it; which stages read it (bits) */
    bool learns[NETWORK_VALUES]; /* [values] depends on a parameter that is trained */
} network_facts;

static inline double network_bytes(const network_facts *f, hd_value v)
{
    return (double)hd_shape_count(&f->g->values[v].type.shape) * (double)hd_dtype_size(f->g->values[v].type.dtype) * f->share;
}

/* Nodes go to chunks by their place in the file: a chunk begins with the node that the plan's cut names. */
static inline void network_place(network_facts *f, const hd_plan *plan)
{
    const hd_graph *g = f->g;
    int chunk = 0, stages = (int)f->t.p.pp;
    for (size_t v = 0; v < g->n_values; v++) f->chunk[v] = -1, f->learns[v] = g->values[v].kind == HD_PARAM && g->values[v].trainable;
    for (size_t i = 0; i < g->n_nodes; i++) {
        const hd_node *n = g->nodes[i];
        if (chunk < plan->n_cuts && !strcmp(plan->cuts[chunk], n->path)) chunk++;
        for (int k = 0; k < n->n_in; k++) {
            if (n->in[k] == HD_NONE) continue;
            if (f->chunk[n->in[k]] < 0) f->chunk[n->in[k]] = chunk;
            f->reads[n->in[k]] |= 1 << chunk % stages;
            f->learns[n->out[0]] |= f->learns[n->in[k]];
        }
        for (int r = 0; r < n->n_out; r++) f->chunk[n->out[r]] = chunk;
    }
}

static inline bool network_is_here(const network_facts *f, hd_value v) { return f->chunk[v] >= 0 && f->chunk[v] % f->t.p.pp == f->stage; }

/* ---- parameters ---- */

/* Only contractions have their operands rounded for bf16; convolutions compute in f32. */
static inline bool network_is_wide(const network_facts *f, hd_value v)
{
    for (size_t i = 0; i < f->g->n_nodes; i++)
        for (int k = 0; k < f->g->nodes[i]->n_in; k++)
            if (f->g->nodes[i]->in[k] == v && !strcmp(f->g->nodes[i]->op->name, "contract")) return false;
    return true;
}

static inline void network_parameter(const network_facts *f, hd_value v, theory *out)
{
    const hd_shape *s = &f->g->values[v].type.shape;
    theory_tensor x = {.dim = {1, 1, 1, 1}, .rank = s->rank, .cut = -1, .wide = network_is_wide(f, v)};
    for (int d = 0; d < s->rank; d++) x.dim[d] = s->dim[d];
    out->parameter_bytes += 4 * (f->t.p.zero == 3 ? theory_spread(&f->t, &x) : theory_count(&x));
    out->sent += theory_gradient_sent(&f->t, &x);
    out->scalars += 8;
}

/* ---- work ---- */

/* Forward; for the gradient of each operand that has one, as much again. */
static inline double network_flops(const network_facts *f, const hd_node *n)
{
    if (strcmp(n->op->name, "contract") && strcmp(n->op->name, "conv2d")) return 0;
    hd_type in[2] = {f->g->values[n->in[0]].type, f->g->values[n->in[1]].type}, out = f->g->values[n->out[0]].type;
    hd_cost cost = {0};
    n->op->cost(&(hd_sig){.op = n->op, .in = in, .out = &out, .n_in = 2, .n_out = 1, .attrs = n->attrs}, &cost);
    return cost.flops * f->share * (1 + f->learns[n->in[0]] + f->learns[n->in[1]]);
}

/* Batch norm over the samples of all ranks: of each channel the sum and the sum of squares about the mean on the way there, the two sums that its
 * derivative takes on the way back (Ioffe and Szegedy 2015, section 3), all-reduced. */
static inline double network_norm_sent(const network_facts *f, const hd_node *n)
{
    if (strcmp(n->op->name, "batch_norm")) return 0;
    double ranks = (double)f->t.ranks, channels = (double)f->g->values[n->in[1]].type.shape.dim[0];
    return (f->learns[n->in[0]] ? 4 : 2) * channels * 4 * 2 * (ranks - 1) / ranks;
}

/* ---- between stages: each value once to each stage that reads it, and its gradient back from each ---- */

static inline double network_crossing(const network_facts *f, hd_value v)
{
    const hd_value_info *i = &f->g->values[v];
    double sent = 0;
    if (i->kind != HD_RESULT || i->micro == HD_TIME_REPLICATE) return 0;
    for (int s = 0; s < f->t.p.pp; s++) {
        if (!(f->reads[v] >> s & 1) || f->chunk[v] % f->t.p.pp == s) continue;
        if (network_is_here(f, v)) sent += network_bytes(f, v);
        if (s == f->stage && f->learns[v]) sent += network_bytes(f, v);
    }
    return sent;
}

/* What the file gives back of each micro-batch, beside the loss, is whole on every rank. */
static inline double network_outputs_sent(const network_facts *f)
{
    double sent = 0;
    for (size_t i = 0; i < f->g->n_outputs; i++) {
        hd_value v = f->g->outputs[i].value;
        if (f->g->values[v].type.shape.rank && network_is_here(f, v)) sent += (double)(f->t.ranks - 1) * network_bytes(f, v);
    }
    return sent;
}

/* ---- the whole ---- */

static inline void network_sum(network_facts *f, theory *out)
{
    const hd_graph *g = f->g;
    double sent = network_outputs_sent(f), flops = 0;
    for (size_t v = 0; v < g->n_values; v++) {
        if (g->values[v].kind == HD_PARAM && network_is_here(f, (hd_value)v)) network_parameter(f, (hd_value)v, out);
        sent += network_crossing(f, (hd_value)v);
    }
    for (size_t i = 0; i < g->n_nodes; i++) {
        if (!network_is_here(f, g->nodes[i]->out[0])) continue;
        flops += network_flops(f, g->nodes[i]);
        sent += network_norm_sent(f, g->nodes[i]);
    }
    out->flops = (double)f->t.j->micro * flops;
    out->sent += (double)f->t.j->micro * sent;
    out->scalars += 512; /* loss, norms, and what the ranks tell each other at the start */
}

static inline theory theory_of_network(const run_job *j, const hd_plan *plan, int rank)
{
    theory out = {0};
    hd_error err = {0};
    hd_graph *g = run_graph(j, &err);
    network_facts *f = calloc(1, sizeof *f);
    f->g = g;
    f->t.j = j;
    if (g && g->n_values <= NETWORK_VALUES && !hd_parallel_parse(j->parallel, &f->t.p, &err)) {
        f->t.ranks = f->t.p.dp;
        f->share = (double)theory_piece(j->batch, f->t.p.dp) / (double)j->batch;
        f->stage = (int)(rank / (hd_mesh_size(&plan->mesh) / f->t.p.pp));
        network_place(f, plan);
        network_sum(f, &out);
    }
    hd_graph_free(g);
    free(f);
    return out;
}

#endif
