/* small_graphs.h: small networks and the scaffolding to lower and run them, for tests of lowering and execution. */
#ifndef TESTS_SMALL_GRAPHS_H
#define TESTS_SMALL_GRAPHS_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/rng.h"
#include "exec/exec.h"
#include "train/step.h"

enum { VOCAB = 23, WIDTH = 12, HIDDEN = 20, LAYERS = 3 };

static inline hd_value small_param(hd_graph *g, const char *name, int rank, int64_t a, int64_t b)
{
    return hd_graph_param(g, name, hd_type_of(HD_F32, rank, (int64_t[]){a, b}), (hd_init){HD_INIT_NORMAL, rank == 1 ? 1 : 0.3}, true, rank > 1);
}

static inline hd_value small_layer(hd_graph *g, hd_value x, int i)
{
    hd_norm_attrs norm = {.eps = 1e-5, .dtype = HD_F32, .sum_dtype = HD_F32};
    hd_graph_push(g, "layers");
    hd_graph_push(g, "%d", i);
    hd_value gamma = small_param(g, "gamma", 1, WIDTH, 0), beta = small_param(g, "beta", 1, WIDTH, 0);
    hd_value up = small_param(g, "up", 2, WIDTH, HIDDEN), gate = small_param(g, "gate", 2, WIDTH, HIDDEN), down = small_param(g, "down", 2, HIDDEN, WIDTH);
    hd_value h = hd_graph_node(g, "layer_norm", "norm", &norm, (hd_value[]){x, gamma, beta}, 3);
    hd_value u = hd_contract(g, "u", "td,dh->th", h, up, HD_F32), v = hd_contract(g, "v", "td,dh->th", h, gate, HD_F32);
    hd_value a = hd_mul(g, hd_elementwise(g, "act", HD_EW_SILU, u, HD_NONE, HD_NONE, 0), v);
    hd_value y = hd_add(g, x, hd_contract(g, "y", "th,hd->td", a, down, HD_F32));
    hd_graph_pop(g);
    hd_graph_pop(g);
    return y;
}

/* A language model without attention, its output layer tied to the embedding: inputs token, target [tokens] i32 a piece per micro-batch, weight
 * (1 / tokens of the step) once; outputs logits (unless training) and loss. sym: bounded tokens. */
static inline hd_graph *small_model(int64_t tokens, bool bounded)
{
    hd_graph *g = hd_graph_new();
    assert_non_null(g);
    hd_type ids = hd_type_of(HD_I32, 1, &tokens);
    if (bounded) ids.shape.sym = hd_graph_symbol(g, "tokens", tokens);
    hd_value token = hd_graph_input(g, "token", ids, HD_TIME_SPLIT), target = hd_graph_input(g, "target", ids, HD_TIME_SPLIT);
    hd_value weight = hd_graph_input(g, "weight", hd_type_scalar(HD_F32), HD_TIME_REPLICATE);
    hd_value table = small_param(g, "embed", 2, VOCAB, WIDTH);
    hd_value x = hd_graph_node(g, "gather", "embedded", &(hd_rows_attrs){.dtype = HD_F32}, (hd_value[]){table, token}, 2);
    for (int i = 0; i < LAYERS; i++) x = small_layer(g, x, i);
    hd_value logits = hd_contract(g, "logits", "td,vd->tv", x, table, HD_F32);
    hd_value each = hd_graph_node(g, "cross_entropy", "each", &(hd_dtype_attrs){HD_F32}, (hd_value[]){logits, target}, 2);
    hd_value loss = hd_mul(g, hd_reduce(g, "reduce_sum", "sum", each, 1, false, HD_F32), weight);
    hd_graph_output(g, "loss", loss);
    assert_string_equal(g->err.message, "");
    return g;
}

static inline hd_graph *small_training(int64_t tokens, bool bounded, double clip)
{
    hd_graph *g = small_model(tokens, bounded);
    hd_step_options o = {.optimizer = HD_ADAMW, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .clip = clip};
    hd_step_append(g, &o);
    assert_string_equal(g->err.message, "");
    return g;
}

/* A graph lowered and ready to run. */
typedef struct rig {
    hd_backend backend;
    hd_program *program;
    hd_store *store;
    hd_team *team;
    hd_exec *exec;
    hd_error err;
} rig;

static inline void rig_open_store(rig *r, const hd_graph *g, const char *backend, int micro, int threads, bool pack, hd_store *store)
{
    *r = (rig){0};
    hd_plan plan = hd_plan_default();
    plan.micro_batches = micro;
    plan.threads = threads;
    plan.pack = pack;
    hd_backend_open(&r->backend, backend, &r->err);
    if (!r->err.code) hd_lower(g, &plan, &r->backend.target, &r->program, &r->err);
    if (!r->err.code) hd_program_verify(r->program, &r->err);
    r->store = store ? store : hd_store_new(g, 1, &r->err);
    r->team = hd_team_new(threads, false, &r->err);
    if (!r->err.code) r->exec = hd_exec_new(r->program, r->store, &r->backend, r->team, &r->err);
    assert_string_equal(r->err.message, "");
}

static inline void rig_open(rig *r, const hd_graph *g, const char *backend, int micro, int threads)
{
    rig_open_store(r, g, backend, micro, threads, false, NULL);
}

static inline void rig_close(rig *r, bool keep_store)
{
    hd_exec_free(r->exec);
    hd_program_free(r->program);
    hd_team_free(r->team);
    if (!keep_store) hd_store_free(r->store);
}

/* Data for small_model: token i of the step is a hash of i. */
static inline void fill_tokens(hd_exec *e, int64_t first, int64_t count, int64_t step)
{
    hd_tensor token, target;
    assert_int_equal(hd_exec_input(e, "token", &token, NULL), 0);
    assert_int_equal(hd_exec_input(e, "target", &target, NULL), 0);
    for (int64_t i = 0; i < count; i++) {
        uint64_t h = hd_hash_mix((uint64_t)step, (uint64_t)(first + i));
        ((int32_t *)token.data)[i] = (int32_t)(h % VOCAB);
        ((int32_t *)target.data)[i] = (int32_t)(h / VOCAB % VOCAB);
    }
}

static inline void set_scalar(hd_exec *e, const char *name, float v)
{
    hd_tensor t;
    assert_int_equal(hd_exec_input(e, name, &t, NULL), 0);
    *(float *)t.data = v;
}

static inline float get_scalar(hd_exec *e, const char *name)
{
    hd_tensor t;
    assert_int_equal(hd_exec_output(e, name, &t, NULL), 0);
    return *(float *)t.data;
}

typedef struct feeder { int64_t per_micro, step; } feeder;

static inline int feed_micro(void *arg, hd_exec *e, hd_segment_kind kind, hd_call *call, hd_error *err)
{
    const feeder *f = arg;
    (void)err;
    if (kind == HD_SEGMENT_FORWARD) fill_tokens(e, call->micro * f->per_micro, f->per_micro, f->step);
    return 0;
}

/* One training step over micro * per_micro tokens; returns the loss. */
static inline float train_step(rig *r, int64_t per_micro, int64_t micro, int step)
{
    feeder f = {per_micro, step};
    hd_exec_hooks hooks = {.arg = &f, .before = feed_micro};
    set_scalar(r->exec, "weight", 1.0f / (float)(per_micro * micro));
    set_scalar(r->exec, "lr", 0.01f);
    set_scalar(r->exec, "step", (float)step);
    assert_int_equal(hd_exec_step(r->exec, &hooks, &r->err), 0);
    return get_scalar(r->exec, "loss");
}

/* Largest difference of two stores' parameters, relative to 1 + size; non-finite values count as infinite. */
static inline double store_distance(const hd_store *a, const hd_store *b)
{
    double most = 0;
    assert_int_equal(a->n_tensors, b->n_tensors);
    for (size_t i = 0; i < a->n_tensors; i++) {
        const hd_store_tensor *x = a->tensors[i], *y = hd_store_find(b, x->path);
        assert_non_null(y);
        for (int64_t k = 0; k < hd_shape_count(&x->type.shape); k++) {
            double u = hd_load_f64(x->data, x->type.dtype, k), v = hd_load_f64(y->data, y->type.dtype, k);
            double d = fabs(u - v) / (1 + fabs(u));
            if (!(d <= most)) most = isfinite(d) ? d : INFINITY;
        }
    }
    return most;
}

#endif
