/* ranks_run.h: a small training job on any number of local ranks, with everything that a check compares: losses, the first step's gradients,
 * and what each rank computed, held and sent. Shared by the checks of parallel training. */
#ifndef CHECK_RANKS_RUN_H
#define CHECK_RANKS_RUN_H

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/rng.h"
#include "base/str.h"
#include "base/thread.h"
#include "comm/comm.h"
#include "kernels/attrs.h"
#include "models/lm.h"
#include "models/network.h"
#include "passes/passes.h"
#include "plan/parallel.h"
#include "searched.h"
#include "train/session.h"

enum { RUN_STEPS = 10, RUN_MAX_RANKS = 16, RUN_MAX_TENSORS = 256 };

typedef struct run_job {
    char model[32], parallel[128]; /* parallel "": one rank */
    int64_t micro, batch, sequence, seed; /* seed: of initial values and data */
    hd_dtype precision;
    hd_optimizer optimizer;
    double dropout, clip;
    const char *root; /* of the source tree: examples */
} run_job;

/* One tensor, whole: what the first step left in the optimizer's state, which began at zero: a multiple of the gradient; or, of other states (running
 * averages), what the last step left. */
typedef struct run_tensor { char path[128]; int64_t count; float *data; bool state; } run_tensor;

typedef struct run_rank {
    double flops;                           /* of one step, by the graph's own counts */
    double product_flops;                   /* of matrix products, convolutions and attention only, of this rank's real pieces */
    int64_t parameter_bytes, store_bytes, arena_bytes;
    int64_t sent[HD_TRANSFER_KINDS];        /* of all steps */
} run_rank;

typedef struct run_result {
    int ranks;
    double loss[RUN_STEPS];
    run_tensor tensor[RUN_MAX_TENSORS]; int n_tensors;
    run_rank rank[RUN_MAX_RANKS];
    hd_plan *plan;
    double seconds;
} run_result;

static inline void run_result_free(run_result *r)
{
    for (int i = 0; i < r->n_tensors; i++) free(r->tensor[i].data);
    r->n_tensors = 0;
    free(r->plan);
    r->plan = NULL;
}

/* ---- models ---- */

typedef struct run_model { const char *name; hd_architecture arch; int64_t layers, width, heads, kv_heads, mlp, vocab; bool tied; } run_model;

static const run_model run_models[] = {
    {"gpt2", HD_ARCH_GPT2, 4, 48, 4, 4, 96, 96, true},
    {"gpt2-odd", HD_ARCH_GPT2, 3, 33, 3, 3, 61, 101, true},
    {"gpt2-untied", HD_ARCH_GPT2, 4, 40, 4, 4, 80, 97, false},
    {"gpt2-shallow", HD_ARCH_GPT2, 4, 32, 4, 4, 64, 64, true},
    {"gpt2-deep", HD_ARCH_GPT2, 8, 32, 4, 4, 64, 64, true},
    {"llama", HD_ARCH_LLAMA, 4, 48, 6, 2, 100, 99, false},
    {"llama-packed", HD_ARCH_LLAMA, 4, 48, 6, 2, 100, 99, false}, /* several documents in a sequence, and padding */
    {"llama-tied", HD_ARCH_LLAMA, 4, 64, 8, 2, 96, 128, true},
    {"llama-odd", HD_ARCH_LLAMA, 5, 30, 3, 1, 77, 83, false},
    {"qwen2", HD_ARCH_QWEN2, 4, 48, 4, 2, 96, 90, true},
    {"gpt2-materialised", HD_ARCH_GPT2, 4, 48, 4, 4, 96, 96, true},
    {"llama-materialised", HD_ARCH_LLAMA, 4, 48, 6, 2, 100, 99, false},
    {"gpt2-50m", HD_ARCH_GPT2, 14, 512, 8, 8, 2048, 8192, true}, /* to measure with, not to compare */
};

static inline const run_model *run_find_model(const char *name)
{
    for (size_t i = 0; i < sizeof run_models / sizeof *run_models; i++)
        if (!strcmp(run_models[i].name, name)) return &run_models[i];
    return NULL;
}

static inline hd_graph *run_lm_graph(const run_job *j, const run_model *m, hd_error *err)
{
    hd_lm_config c;
    hd_lm_config_preset(&c, m->arch);
    c.layers = m->layers, c.width = m->width, c.heads = m->heads, c.kv_heads = m->kv_heads, c.mlp_width = m->mlp, c.vocab = m->vocab;
    c.max_positions = 64, c.tie_embeddings = m->tied;
    c.init_std = 0.08; /* small models learn faster from it: losses then tell runs apart */
    c.embd_dropout = c.resid_dropout = c.attn_dropout = j->dropout;
    if (hd_lm_config_check(&c, m->name, err)) return NULL;
    hd_lm_options o = {.mode = HD_LM_TRAIN, .compute = j->precision, .param = HD_F32, .tokens = j->batch * j->sequence, .sequence = j->sequence,
                       .attention = strstr(m->name, "-materialised") ? HD_ATTENTION_MATERIALISED : HD_ATTENTION_FUSED};
    o.half_stream = o.attention && m->arch == HD_ARCH_GPT2;
    return hd_lm_graph(&c, &o, err);
}

static inline hd_graph *run_graph(const run_job *j, hd_error *err)
{
    const run_model *m = run_find_model(j->model);
    if (m) return run_lm_graph(j, m, err);
    char path[512];
    snprintf(path, sizeof path, "%s/examples/%s.json", j->root, j->model);
    hd_network *n = hd_network_load(path, err);
    hd_graph *g = n ? hd_network_graph(n, &(hd_network_options){.batch = j->batch, .train = true}, err) : NULL;
    hd_network_free(n);
    return g;
}

static inline hd_session_options run_options(const run_job *j)
{
    hd_session_options o = {.plan = hd_plan_default(), .seed = (uint64_t)(11 + j->seed)};
    o.plan.micro_batches = j->micro;
    o.plan.precision = j->precision;
    o.plan.threads = 1;
    o.step = (hd_step_options){.optimizer = j->optimizer, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .momentum = 0.9, .weight_decay = 0.1, .clip = j->clip};
    return o;
}

/* The plan of a job, from its --parallel text; or with layouts that are searched for. */
static inline int run_plan(const run_job *j, hd_plan *plan, hd_error *err)
{
    hd_parallel p = {.slices = 1};
    hd_graph *g = run_graph(j, err);
    hd_session_options o = run_options(j);
    bool least;
    const char *form = searched_form(j->parallel, &least);
    hd_pin pins[HD_MAX_PINS];
    *plan = o.plan;
    int rc = g ? 0 : err->code;
    if (!rc && j->parallel[0]) rc = hd_parallel_parse(form ? form : j->parallel, &p, err);
    if (!rc && p.slices > 1) rc = hd_parallel_slices(&p, j->sequence, plan, err);
    if (!rc) hd_pass_fuse_residual_norm(g), hd_pass_precision(g, j->precision), hd_pass_slices(g, plan->slices, plan->n_slices);
    if (!rc) rc = hd_step_append(g, &o.step);
    if (!rc) rc = hd_pass_slices_backward(g, plan->slices, plan->n_slices);
    if (!rc && form) rc = searched_pins(g, &p, j->micro, least, pins, err);
    if (!rc && j->parallel[0]) rc = hd_parallel_expand(&p, g, j->sequence, plan, err);
    hd_graph_free(g);
    return rc;
}

/* ---- one rank ---- */

typedef struct run_shared {
    const run_job *job;
    const hd_plan *plan;
    run_result *result;
    hd_comm *comm[RUN_MAX_RANKS];
    hd_trace *events; /* [ranks]: each takes that of the last step; NULL: nobody does */
    int steps;        /* 0: RUN_STEPS */
    FILE **trace; /* [ranks]: each writes its losses and a checksum of every tensor that it holds, to the bit; NULL: nobody does */
    pthread_mutex_t lock;
    hd_error err; /* the first */
} run_shared;

typedef struct run_thread {
    run_shared *shared;
    int rank, step;
    hd_rank at;
    hd_session session;
    pthread_t thread;
} run_thread;

static inline uint64_t run_word(uint64_t a, uint64_t b)
{
    return hd_hash_mix(hd_hash_mix(0x9e3779b97f4a7c15u, a), b);
}

/* Text with something to learn: each token is mostly a function of the one before. */
static inline void run_fill_tokens(const run_job *j, uint64_t sample, int64_t vocab, int32_t *tokens, int32_t *targets)
{
    int64_t at = (int64_t)(run_word(sample, 1) % (uint64_t)vocab);
    for (int64_t i = 0; i < j->sequence; i++) {
        int64_t next = run_word(sample, (uint64_t)i + 7) % 4 ? (at * 5 + 3) % vocab : (int64_t)(run_word(sample, (uint64_t)i + 99) % (uint64_t)vocab);
        tokens[i] = (int32_t)at;
        targets[i] = run_word(sample, (uint64_t)i + 1000) % 9 ? (int32_t)next : -1;
        at = next;
    }
}

/* Documents of 1, 4, 7, ... tokens, from position 0 each; the last two tokens are padding, which sees nothing. */
static inline void run_pack(int64_t sequence, int32_t *positions, int32_t *segments)
{
    int64_t at = 0, length = 1;
    for (int64_t i = 0; i < sequence; i++, at++) {
        if (at == length) at = 0, length += 3;
        positions[i] = (int32_t)at;
        segments[i] = i < sequence - 2 ? (int32_t)(segments[0] * 100 + length) : -1;
    }
}

static inline int run_put_lm(const run_job *j, const run_model *m, hd_exec *e, uint64_t first, hd_error *err)
{
    size_t n = (size_t)(j->batch * j->sequence);
    int32_t *data = malloc(4 * n * sizeof *data);
    int64_t *samples = malloc(n * sizeof *samples);
    for (int64_t b = 0; b < j->batch; b++) {
        run_fill_tokens(j, first + (uint64_t)b, m->vocab, data + b * j->sequence, data + n + b * j->sequence);
        for (int64_t i = 0; i < j->sequence; i++) {
            data[2 * n + (size_t)(b * j->sequence + i)] = (int32_t)i;
            data[3 * n + (size_t)(b * j->sequence + i)] = (int32_t)b;
            samples[b * j->sequence + i] = (int64_t)first + b;
        }
        if (strstr(m->name, "packed")) run_pack(j->sequence, data + 2 * n + b * j->sequence, data + 3 * n + b * j->sequence);
    }
    int rc = hd_exec_put(e, "tokens", data, err);
    if (!rc) rc = hd_exec_put(e, "targets", data + n, err);
    if (!rc) rc = hd_exec_put(e, "positions", data + 2 * n, err);
    if (!rc) rc = hd_exec_put(e, "segments", data + 3 * n, err);
    if (!rc) rc = hd_exec_put(e, "samples", samples, err);
    free(data);
    free(samples);
    return rc;
}

static inline int run_put_images(const run_job *j, hd_exec *e, uint64_t first, hd_error *err)
{
    enum { CLASSES = 10 };
    int64_t pixels = strcmp(j->model, "mlp") ? 256 : 784;
    float *image = malloc((size_t)(j->batch * pixels) * sizeof *image);
    int64_t *samples = malloc((size_t)j->batch * sizeof *samples);
    int32_t *label = calloc(2 * (size_t)j->batch, sizeof *label), *positions = label + j->batch;
    for (int64_t b = 0; b < j->batch; b++) {
        label[b] = (int32_t)(run_word(first + (uint64_t)b, 3) % CLASSES);
        samples[b] = (int64_t)first + b;
        for (int64_t i = 0; i < pixels; i++)
            image[b * pixels + i] = (float)(run_word(first + (uint64_t)b, (uint64_t)i + 50) % 1000) / 1000 + 0.2f * (float)((i + label[b]) % CLASSES == 0);
    }
    int rc = hd_exec_put(e, "image", image, err);
    if (!rc) rc = hd_exec_put(e, "label", label, err);
    if (!rc) rc = hd_exec_put(e, "samples", samples, err); /* of dropout */
    if (!rc) rc = hd_exec_put(e, "positions", positions, err);
    free(samples);
    free(image);
    free(label);
    return rc;
}

/* Who likes what: by the parity of user and item, mostly. */
static inline int run_put_clicks(const run_job *j, hd_exec *e, uint64_t first, hd_error *err)
{
    enum { USERS = 500, ITEMS = 300 };
    int32_t *id = malloc(2 * (size_t)j->batch * sizeof *id);
    float *click = malloc((size_t)j->batch * sizeof *click);
    for (int64_t b = 0; b < j->batch; b++) {
        uint64_t sample = first + (uint64_t)b;
        id[b] = (int32_t)(run_word(sample, 4) % USERS / (run_word(sample, 5) % 3 ? 40 : 1)); /* some come often */
        id[j->batch + b] = (int32_t)(run_word(sample, 6) % ITEMS);
        click[b] = run_word(sample, 7) % 8 ? (float)((id[b] + id[j->batch + b]) % 2) : 0;
    }
    int rc = hd_exec_put(e, "user", id, err);
    if (!rc) rc = hd_exec_put(e, "item", id + j->batch, err);
    if (!rc) rc = hd_exec_put(e, "click", click, err);
    free(id);
    free(click);
    return rc;
}

/* A network's inputs: hd_exec_put passes over those that it has not got. */
static inline int run_put_network(const run_job *j, hd_exec *e, uint64_t first, hd_error *err)
{
    int rc = run_put_images(j, e, first, err);
    return rc ? rc : run_put_clicks(j, e, first, err);
}

static inline uint64_t run_first_sample(const run_job *j, int step)
{
    return (uint64_t)(j->seed * 100000 + step * j->micro * j->batch);
}

static inline int run_before(void *arg, hd_exec *e, hd_segment_kind kind, hd_call *call, hd_error *err)
{
    run_thread *t = arg;
    const run_job *j = t->shared->job;
    const run_model *m = run_find_model(j->model);
    if (kind != HD_SEGMENT_FORWARD) return 0;
    uint64_t first = run_first_sample(j, t->step) + (uint64_t)(call->micro * j->batch);
    return m ? run_put_lm(j, m, e, first, err) : run_put_network(j, e, first, err);
}

static inline double run_divisor(const run_job *j, int step)
{
    const run_model *m = run_find_model(j->model);
    int64_t counted = 0;
    int32_t tokens[512], targets[512];
    if (!m) return (double)(j->batch * j->micro);
    for (int64_t s = 0; s < j->batch * j->micro; s++) {
        run_fill_tokens(j, run_first_sample(j, step) + (uint64_t)s, m->vocab, tokens, targets);
        for (int64_t i = 0; i < j->sequence; i++) counted += targets[i] >= 0;
    }
    return (double)counted;
}

static inline int run_step(run_thread *t, double *loss, hd_error *err)
{
    hd_exec *e = t->session.exec[HD_TRAIN_PROGRAM];
    const run_job *j = t->shared->job;
    float lr = j->optimizer == HD_ADAMW ? 1e-3f : 0.005f, number = (float)(t->step + 1), inverse = (float)(1 / run_divisor(j, t->step));
    int64_t key[2] = {5, t->step};
    hd_exec_hooks hooks = {.arg = t, .before = run_before};
    hd_tensor out;
    int rc = hd_exec_put(e, "lr", &lr, err);
    if (!rc) rc = hd_exec_put(e, "step", &number, err);
    if (!rc) rc = hd_exec_put(e, "inv_divisor", &inverse, err);
    if (!rc) rc = hd_exec_put(e, "key", key, err);
    if (!rc) rc = hd_exec_step(e, &hooks, err);
    if (!rc) rc = hd_exec_output(e, "loss", &out, err);
    if (!rc) *loss = hd_load_f64(out.data, out.dtype, 0);
    return rc;
}

/* Which optimizer state is a multiple of the gradient after the first step. */
static inline const char *run_gradient_prefix(const run_job *j) { return j->optimizer == HD_ADAMW ? "exp_avg." : "momentum."; }

static inline run_tensor *run_find_tensor(run_result *r, const char *path, int64_t count)
{
    for (int i = 0; i < r->n_tensors; i++)
        if (!strcmp(r->tensor[i].path, path)) return &r->tensor[i];
    if (r->n_tensors == RUN_MAX_TENSORS) return NULL;
    run_tensor *t = &r->tensor[r->n_tensors++];
    memset(t->path, 0, sizeof t->path);
    memmove(t->path, path, strnlen(path, sizeof t->path - 1));
    t->count = count;
    t->data = calloc((size_t)count, sizeof *t->data);
    return t;
}

/* The gradients, or the states that are not the optimizer's. */
static inline void run_collect(run_thread *t, bool states)
{
    const hd_store *s = t->session.store;
    const char *prefix = run_gradient_prefix(t->shared->job);
    pthread_mutex_lock(&t->shared->lock);
    for (size_t i = 0; i < s->n_tensors; i++) {
        const hd_store_tensor *x = s->tensors[i];
        bool of_optimizer = !strncmp(x->path, "exp_avg", 7) || !strncmp(x->path, "momentum.", 9);
        if (states ? x->kind != HD_STATE || of_optimizer : strncmp(x->path, prefix, strlen(prefix)) != 0) continue;
        const hd_shape *whole = x->layout ? &x->whole : &x->type.shape;
        run_tensor *to = run_find_tensor(t->shared->result, states ? x->path : x->path + strlen(prefix), hd_shape_count(whole));
        if (to) to->state = states;
        if (to) hd_layout_put(&s->mesh, x->layout, whole, s->rank, sizeof(float), x->data, to->data);
    }
    pthread_mutex_unlock(&t->shared->lock);
}

/* Which tokens of a sequence a rank has that holds rows in such a layout, where the last axis cuts them: positions, in order. Returns how many. Dealt
 * zig-zag they are two parts: with all ranks' first parts one after the other and then their second ones backwards. */
static inline int run_tokens_of(const hd_graph *g, const hd_dim_layout *d, int64_t sequence, int rank, int64_t *position)
{
    const hd_mesh *m = &g->mesh;
    const hd_mesh_axis *axis = &m->axis[d->axis[d->n - 1]];
    bool zigzag = g->zigzag >> d->axis[d->n - 1] & 1;
    int64_t begin[RUN_MAX_RANKS], end[RUN_MAX_RANKS], first = 0, last = sequence;
    int self = (hd_mesh_coordinate(m, rank, d->axis[d->n - 1]) + d->shift[d->n - 1]) % axis->size, n = 0;
    for (int c = 0; c < axis->size; c++) hd_split(sequence, 1, c, axis->size, &begin[c], &end[c]);
    for (int64_t i = begin[self]; !zigzag && i < end[self]; i++) position[n++] = i;
    if (!zigzag) return n;
    for (int c = 0; c < self; c++) first += (end[c] - begin[c] + 1) / 2, last -= (end[c] - begin[c]) / 2;
    for (int64_t i = 0; i < (end[self] - begin[self] + 1) / 2; i++) position[n++] = first + i;
    last -= (end[self] - begin[self]) / 2;
    for (int64_t i = 0; i < (end[self] - begin[self]) / 2; i++) position[n++] = last + i;
    return n;
}

/* Where tokens of one sequence are cut over ranks: the pairs of a query and a key that it sees, of those that the rank has in this node. Negative: they aren't.
 * Queries are the last of the tokens that there are keys of: a slice of the sequence, or all of it. */
static inline double run_pairs_seen(const hd_graph *g, const hd_node *n, int rank, int64_t batch)
{
    int64_t q_at[512], k_at[512], seen = 0;
    int q = strcmp(n->op->name, "attention") ? 1 : 0, cp = hd_mesh_find(&g->mesh, "cp");
    const hd_layout *lq = g->values[n->in[q]].layout, *lk = g->values[n->in[q + 1]].layout;
    int64_t own = g->values[n->in[q]].whole.dim[0] / batch, sequence = g->values[n->in[q + 1]].whole.dim[0] / batch, before = sequence - own;
    if (cp < 0 || sequence > 512) return -1;
    if (!lq->dim[0].n || lq->dim[0].axis[lq->dim[0].n - 1] != cp) { /* some heads of all tokens */
        hd_shape rows = hd_layout_shape(&g->mesh, lq, &g->values[n->in[q]].whole, rank);
        return (double)(rows.dim[0] / own) * (double)(before * own + own * (own + 1) / 2);
    }
    bool all = !lk->dim[0].n || lk->dim[0].axis[lk->dim[0].n - 1] != cp;
    int nq = run_tokens_of(g, &lq->dim[0], own, rank, q_at), nk = all ? 0 : run_tokens_of(g, &lk->dim[0], sequence, rank, k_at);
    for (int64_t j = 0; all && j < sequence; j++) k_at[nk++] = j;
    for (int i = 0; i < nq; i++)
        for (int j = 0; j < nk; j++) seen += k_at[j] <= before + q_at[i];
    return (double)seen;
}

/* Pairs of queries and keys are all counted, also those that a causal mask hides, unless the tokens of one sequence are cut: then those that see each
 * other, since whole tiles that see nothing are passed over. */
static inline double run_attention_flops(const hd_sig *s, double seen)
{
    bool forward = !s->op->is_backward;
    const int64_t *q = s->in[forward ? 0 : 1].shape.dim, *k = s->in[forward ? 1 : 2].shape.dim;
    const hd_attention_attrs *at = s->attrs;
    int64_t keys = at->max_keys > 0 && at->max_keys < k[0] ? at->max_keys : k[0];
    return (forward ? 4.0 : 10.0) * (double)(q[1] * q[2]) * (seen >= 0 ? seen : (double)(q[0] * keys));
}

static inline double run_product_flops(const hd_graph *g, int rank, int64_t batch)
{
    double flops = 0;
    for (size_t i = 0; i < g->n_nodes; i++) {
        const hd_node *n = g->nodes[i];
        bool product = !strcmp(n->op->name, "contract") || !strncmp(n->op->name, "conv2d", 6);
        if (!product && strcmp(n->op->name, "attention") && strcmp(n->op->name, "attention_grad")) continue;
        hd_type in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS];
        for (int k = 0; k < n->n_in + n->n_out; k++) {
            hd_value v = k < n->n_in ? n->in[k] : n->out[k - n->n_in];
            hd_type *x = k < n->n_in ? &in[k] : &out[k - n->n_in];
            *x = v == HD_NONE ? (hd_type){.absent = true, .shape.sym = -1} : g->values[v].type;
            if (v != HD_NONE && g->values[v].layout) x->shape = hd_layout_shape(&g->mesh, g->values[v].layout, &g->values[v].whole, rank);
        }
        hd_sig s = {.op = n->op, .in = in, .out = out, .n_in = n->n_in, .n_out = n->n_out, .attrs = n->attrs};
        hd_cost cost = {0};
        if (product) n->op->cost(&s, &cost);
        flops += product ? cost.flops : run_attention_flops(&s, run_pairs_seen(g, n, rank, batch));
    }
    return flops;
}

static inline void run_note_rank(run_thread *t)
{
    run_rank *r = &t->shared->result->rank[t->rank];
    const hd_store *s = t->session.store;
    r->flops = t->session.flops[HD_TRAIN_PROGRAM];
    r->product_flops = (double)t->shared->job->micro * run_product_flops(t->session.graph[HD_TRAIN_PROGRAM], hd_program_place(t->session.program[HD_TRAIN_PROGRAM], t->rank), t->shared->job->batch);
    r->arena_bytes = t->session.program[HD_TRAIN_PROGRAM]->arena_bytes;
    for (size_t i = 0; i < s->n_tensors; i++) {
        r->store_bytes += s->tensors[i]->bytes;
        if (s->tensors[i]->kind == HD_PARAM) r->parameter_bytes += hd_shape_count(&s->tensors[i]->type.shape) * (int64_t)hd_dtype_size(s->tensors[i]->type.dtype);
    }
    if (t->shared->comm[t->rank]) hd_comm_sent(t->shared->comm[t->rank], r->sent);
}

/* Every tensor that this rank holds: parameters and the optimizer's state, which after the first step is the gradients'. */
static inline void run_trace_tensors(const run_thread *t)
{
    const hd_store *s = t->session.store;
    FILE *f = t->shared->trace ? t->shared->trace[t->rank] : NULL;
    for (size_t i = 0; f && i < s->n_tensors; i++)
        fprintf(f, "step %d %s %lld %016llx\n", t->step + 1, s->tensors[i]->path, (long long)s->tensors[i]->bytes,
                (unsigned long long)hd_checksum(HD_CHECKSUM_INIT, s->tensors[i]->data, (size_t)s->tensors[i]->bytes));
}

static inline void run_trace_step(const run_thread *t, double loss)
{
    if (t->shared->trace) fprintf(t->shared->trace[t->rank], "step %d loss %a\n", t->step + 1, loss);
    if (t->step == 0 || t->step == RUN_STEPS - 1) run_trace_tensors(t);
}

static inline int run_count_steps(const run_shared *s) { return s->steps ? s->steps : RUN_STEPS; }

/* The rank's events, with paths that outlive its program. */
static inline int run_take_events(run_thread *t, hd_error *err)
{
    hd_exec *e = t->session.exec[HD_TRAIN_PROGRAM];
    hd_trace *to = &t->shared->events[t->rank];
    int rc = hd_exec_trace_take(e, hd_exec_trace_begin(e), to, err);
    for (int64_t i = 0; i < to->n_events; i++) to->events[i].path = hd_arena_strdup(&to->names, to->events[i].path);
    return rc;
}

static inline int run_rank_body(run_thread *t, hd_error *err)
{
    const run_job *j = t->shared->job;
    hd_session_options o = run_options(j);
    o.plan = *t->shared->plan;
    t->at = (hd_rank){t->rank, t->shared->comm[t->rank]};
    o.rank = t->at;
    hd_graph *g = run_graph(j, err);
    int rc = g ? hd_session_init(&t->session, g, NULL, &o, err) : err->code;
    if (!rc && t->rank == 0) rc = hd_program_verify(t->session.program[HD_TRAIN_PROGRAM], err);
    if (!rc) rc = hd_session_start(&t->session, &o, err);
    for (t->step = 0; t->step < run_count_steps(t->shared) && !rc; t->step++) {
        double loss = NAN;
        bool last = t->shared->events && t->step == run_count_steps(t->shared) - 1;
        if (last) rc = hd_exec_trace(t->session.exec[HD_TRAIN_PROGRAM], 1, err);
        if (!rc) rc = run_step(t, &loss, err);
        if (!rc && last) rc = run_take_events(t, err);
        if (t->rank == 0) t->shared->result->loss[t->step] = loss;
        if (!rc && t->step == 0) run_collect(t, false);
        if (!rc && t->step == RUN_STEPS - 1) run_collect(t, true);
        if (!rc) run_trace_step(t, loss);
    }
    if (!rc) run_note_rank(t);
    return rc;
}

static inline void *run_rank_main(void *arg)
{
    run_thread *t = arg;
    hd_error err = {0};
    if (t->shared->result->ranks <= hd_core_count()) hd_thread_pin(t->rank, 1);
    if (run_rank_body(t, &err)) {
        pthread_mutex_lock(&t->shared->lock);
        if (!t->shared->err.code || (t->shared->err.code == HD_ECOMM && err.code != HD_ECOMM)) t->shared->err = err;
        pthread_mutex_unlock(&t->shared->lock);
        if (t->shared->comm[t->rank]) hd_comm_abort(t->shared->comm[t->rank], err.message);
    }
    hd_session_free(&t->session);
    return NULL;
}

/* ---- all ranks ---- */

static inline int run_all_ranks_shared(const run_job *j, run_result *out, run_shared s, hd_error *err)
{
    hd_plan *plan = malloc(sizeof *plan);
    s.job = j, s.plan = plan, s.result = out;
    run_thread *threads = calloc(RUN_MAX_RANKS, sizeof *threads);
    *out = (run_result){0};
    int rc = run_plan(j, plan, err), n = rc ? 0 : hd_plan_ranks(plan);
    if (n > RUN_MAX_RANKS) rc = hd_fail(err, HD_EINVAL, "%d ranks: at most %d here", n, RUN_MAX_RANKS);
    if (!rc && hd_plan_is_meshed(plan)) rc = hd_comm_local(n, 60, s.comm, err);
    out->ranks = n;
    pthread_mutex_init(&s.lock, NULL);
    double begin = hd_time();
    for (int r = 0; r < n && !rc; r++) {
        threads[r] = (run_thread){.shared = &s, .rank = r};
        pthread_create(&threads[r].thread, NULL, run_rank_main, &threads[r]);
    }
    for (int r = 0; r < n && !rc; r++) pthread_join(threads[r].thread, NULL);
    out->seconds = hd_time() - begin;
    for (int r = 0; r < n && hd_plan_is_meshed(plan); r++) hd_comm_free(s.comm[r]);
    if (!rc && s.err.code) rc = hd_fail(err, s.err.code, "%s", s.err.message);
    pthread_mutex_destroy(&s.lock);
    free(threads);
    out->plan = plan;
    return rc;
}

static inline int run_all_ranks_traced(const run_job *j, run_result *out, FILE **trace, hd_error *err)
{
    return run_all_ranks_shared(j, out, (run_shared){.trace = trace}, err);
}

/* The same for so many steps; events[RUN_MAX_RANKS] are each rank's of the last, to be freed with hd_trace_free. */
static inline int run_all_ranks_events(const run_job *j, int steps, hd_trace *events, run_result *out, hd_error *err)
{
    return run_all_ranks_shared(j, out, (run_shared){.events = events, .steps = steps}, err);
}

/* Runs a job on as many ranks as its plan has. *out is to be freed with run_result_free whatever comes back. */
static inline int run_all_ranks(const run_job *j, run_result *out, hd_error *err)
{
    return run_all_ranks_traced(j, out, NULL, err);
}

/* This process's rank of a job that all processes of c's world run. */
static inline int run_process_rank(const run_job *j, hd_comm *c, FILE *trace, hd_error *err)
{
    hd_plan *plan = malloc(sizeof *plan);
    run_result *result = calloc(1, sizeof *result);
    FILE *traces[RUN_MAX_RANKS] = {NULL};
    run_shared s = {.job = j, .plan = plan, .result = result, .trace = traces, .lock = PTHREAD_MUTEX_INITIALIZER};
    run_thread t = {.shared = &s, .rank = hd_comm_rank(c)};
    int rc = run_plan(j, plan, err);
    if (!rc && hd_plan_ranks(plan) != hd_comm_size(c))
        rc = hd_fail(err, HD_EINVAL, "%s needs %d ranks, and there are %d", j->parallel, hd_plan_ranks(plan), hd_comm_size(c));
    if (!rc) {
        s.comm[t.rank] = c;
        traces[t.rank] = trace;
        rc = run_rank_body(&t, err);
        hd_session_free(&t.session);
    }
    run_result_free(result);
    free(result);
    free(plan);
    return rc;
}

/* ---- tables of jobs ---- */

/* One line of equality.tsv; it is cut up. */
static inline bool run_read_job(char *line, const char *root, run_job *j)
{
    char *field[9], *at = line;
    for (int i = 0; i < 9; i++) {
        field[i] = strsep(&at, "\t\n");
        if (!field[i]) return false;
    }
    *j = (run_job){.micro = atoll(field[2]), .dropout = atof(field[5]), .clip = atof(field[6]), .batch = atoll(field[7]), .sequence = atoll(field[8]), .root = root};
    snprintf(j->model, sizeof j->model, "%s", field[0]);
    snprintf(j->parallel, sizeof j->parallel, "%s", strcmp(field[1], "-") ? field[1] : "");
    j->optimizer = strcmp(field[4], "adamw") ? HD_SGD : HD_ADAMW;
    return !hd_dtype_parse(field[3], &j->precision);
}

/* ---- comparing ---- */

static inline double run_norm(const float *a, const float *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = (double)a[i] - (b ? (double)b[i] : 0);
        sum += d * d;
    }
    return sqrt(sum);
}

static inline double run_global_norm(const run_result *r)
{
    double sum = 0;
    for (int i = 0; i < r->n_tensors; i++) {
        double n = r->tensor[i].state ? 0 : run_norm(r->tensor[i].data, NULL, r->tensor[i].count);
        sum += n * n;
    }
    return sqrt(sum);
}

#endif
