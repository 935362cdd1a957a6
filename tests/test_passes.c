/* Fusion: a fused graph gives the bits of the graph it was made from; norms take in the sum before them. Recomputation: the same bits in less memory.
 * Precision: rounded operands give nearly the same losses. */
#include <string.h>

#include "small_graphs.h"
#include "graph/op.h"
#include "models/lm.h"
#include "models/network.h"
#include "passes/passes.h"
#include "plan/parallel.h"

/* ---- random elementwise graphs ---- */

enum { ROUNDS = 80, NODES = 40, LEAVES = 8, SHAPES = 7 };

static const hd_shape shapes[SHAPES] = {
    {.rank = 3, .sym = -1, .dim = {5, 7, 19}}, {.rank = 3, .sym = -1, .dim = {5, 7, 19}}, {.rank = 2, .sym = -1, .dim = {7, 19}},
        {.rank = 1, .sym = -1, .dim = {19}},
    {.rank = 2, .sym = -1, .dim = {7, 1}}, {.rank = 3, .sym = -1, .dim = {5, 1, 19}}, {.rank = 0, .sym = -1},
};
static const hd_dtype dtypes[] = {HD_F32, HD_F32, HD_BF16, HD_F16};

static hd_value random_leaf(hd_graph *g, hd_rng *r, int i)
{
    char name[16];
    hd_type t = {.dtype = dtypes[hd_rng_below(r, 4)], .shape = shapes[hd_rng_below(r, SHAPES)]};
    snprintf(name, sizeof name, "leaf%d", i);
    return hd_graph_param(g, name, t, (hd_init){HD_INIT_NORMAL, 1}, true, false);
}

/* One more node over values made so far: mostly the latest, so that chains come about. */
static hd_value random_node(hd_graph *g, hd_rng *r, const hd_value *made, int n)
{
    hd_value in[3];
    for (int k = 0; k < 3; k++) in[k] = made[hd_rng_below(r, 3) ? n - 1 - (int)hd_rng_below(r,
        n < 5 ? (uint64_t)n : 5) : (int)hd_rng_below(r, (uint64_t)n)];
    if (hd_rng_below(r, 6) == 0) return hd_cast(g, NULL, in[0], dtypes[hd_rng_below(r, 4)]);
    if (hd_rng_below(r, 12) == 0 && hd_type_in(g, in[0])->shape.rank == 3)
        return hd_reduce(g, "reduce_sum", NULL, in[0], 1, true, HD_F32); /* no elementwise node: ends a chain, and may begin the next */
    hd_ew op = (hd_ew)hd_rng_below(r, HD_EW_COUNT);
    if (op == HD_EW_CAST) op = HD_EW_ADD;
    return hd_elementwise(g, NULL, op, in[0], in[1], in[2], 0.5 + (double)hd_rng_below(r, 3));
}

/* Outputs: whatever nobody reads, and some values that are read as well. */
static void random_outputs(hd_graph *g, hd_rng *r, const hd_value *made, int first, int n)
{
    char name[16];
    for (int i = first; i < n; i++) {
        bool read = false;
        for (size_t k = 0; k < g->n_nodes; k++)
            for (int j = 0; j < g->nodes[k]->n_in; j++) read = read || g->nodes[k]->in[j] == made[i];
        if (read && hd_rng_below(r, 5)) continue;
        snprintf(name, sizeof name, "out%d", i);
        hd_graph_output(g, name, made[i]);
    }
}

static hd_graph *random_graph(uint64_t seed)
{
    hd_rng r = hd_rng_new(seed);
    hd_graph *g = hd_graph_new();
    hd_value made[LEAVES + NODES];
    for (int i = 0; i < LEAVES; i++) made[i] = random_leaf(g, &r, i);
    for (int i = LEAVES; i < LEAVES + NODES; i++) made[i] = random_node(g, &r, made, i);
    random_outputs(g, &r, made, LEAVES, LEAVES + NODES);
    assert_string_equal(g->err.message, "");
    return g;
}

static int count_nodes(const hd_graph *g, const char *op)
{
    int n = 0;
    for (size_t i = 0; i < g->n_nodes; i++) n += !strcmp(g->nodes[i]->op->name, op);
    return n;
}

/* Elements that differ; two that are no number are alike. */
static int64_t differing(const hd_tensor *a, const hd_tensor *b)
{
    int64_t wrong = 0;
    assert_int_equal(a->dtype, b->dtype);
    assert_int_equal(hd_tensor_count(a), hd_tensor_count(b));
    for (int64_t i = 0; i < hd_tensor_count(a); i++) {
        double x = hd_load_f64(a->data, a->dtype, i), y = hd_load_f64(b->data, b->dtype, i);
        wrong += memcmp(&x, &y, sizeof x) != 0 && !(isnan(x) && isnan(y));
    }
    return wrong;
}

/* On the CPU's kernels: the reference goes through a chain in f64, and so rounds less often than node by node. */
static void expect_same_outputs(const hd_graph *plain, const hd_graph *fused, int threads, uint64_t seed)
{
    rig a, b;
    rig_open(&a, plain, "cpu", 1, threads);
    rig_open(&b, fused, "cpu", 1, threads);
    assert_int_equal(hd_exec_step(a.exec, NULL, &a.err), 0);
    assert_int_equal(hd_exec_step(b.exec, NULL, &b.err), 0);
    for (size_t i = 0; i < plain->n_outputs; i++) {
        hd_tensor x, y;
        assert_int_equal(hd_exec_output(a.exec, plain->outputs[i].name, &x, NULL), 0);
        assert_int_equal(hd_exec_output(b.exec, plain->outputs[i].name, &y, NULL), 0);
        int64_t wrong = differing(&x, &y);
        if (wrong) fail_msg("seed %llu, %d threads: %s differs in %lld of %lld elements", (unsigned long long)seed, threads,
                            plain->outputs[i].name, (long long)wrong, (long long)hd_tensor_count(&x));
    }
    rig_close(&a, false);
    rig_close(&b, false);
}

static void test_fused_equals_unfused(void **state)
{
    (void)state;
    int fused_nodes = 0, left_alone = 0;
    for (uint64_t seed = 1; seed <= ROUNDS; seed++) {
        hd_error err = {0};
        hd_graph *plain = random_graph(seed), *fused = random_graph(seed);
        assert_int_equal(hd_pass_fuse_elementwise(fused), 0);
        if (hd_graph_verify(fused, &err)) fail_msg("seed %llu: %s", (unsigned long long)seed, err.message);
        fused_nodes += count_nodes(fused, "fused");
        left_alone += (int)fused->n_nodes - count_nodes(fused, "fused");
        expect_same_outputs(plain, fused, 1 + (int)(seed % 2), seed);
        hd_graph_free(plain);
        hd_graph_free(fused);
    }
    if (fused_nodes < 3 * ROUNDS) fail_msg("only %d fused nodes in %d graphs (%d nodes left alone)", fused_nodes, ROUNDS, left_alone);
}

/* x*w + bias, gelu, times a gate, rounded: one node; its value before the gate is read elsewhere, too. */
static void test_bias_and_activation_are_one_node(void **state)
{
    (void)state;
    hd_graph *g = hd_graph_new();
    hd_value x = small_param(g, "x", 2, 4, 6), w = small_param(g, "w", 2, 6, 5), bias = small_param(g, "bias", 1, 5, 0),
        gate = small_param(g, "gate", 2, 4, 5);
    hd_value y = hd_add(g, hd_cast(g, NULL, hd_contract(g, "y", "ab,bc->ac", x, w, HD_BF16), HD_F32), bias);
    hd_value a = hd_elementwise(g, "a", HD_EW_GELU_TANH, y, HD_NONE, HD_NONE, 0);
    hd_graph_output(g, "a", a);
    hd_graph_output(g, "out", hd_cast(g, "out", hd_mul(g, a, gate), HD_BF16));
    assert_int_equal(hd_pass_fuse_elementwise(g), 0);
    assert_int_equal(g->n_nodes, 2);
    assert_int_equal(count_nodes(g, "fused"), 1);
    hd_graph_free(g);
}

/* What a product's kernel can add to for nothing stays an add. */
static void test_additions_to_products_stay(void **state)
{
    (void)state;
    hd_graph *g = hd_graph_new();
    hd_value x = small_param(g, "x", 2, 4, 6), w = small_param(g, "w", 2, 6, 5), other = small_param(g, "other", 2, 4, 5);
    hd_value y = hd_add(g, other, hd_contract(g, "y", "ab,bc->ac", x, w, HD_F32));
    hd_graph_output(g, "out", hd_elementwise(g, "out", HD_EW_RELU, y, HD_NONE, HD_NONE, 0));
    assert_int_equal(hd_pass_fuse_elementwise(g), 0);
    assert_int_equal(count_nodes(g, "add"), 1);
    assert_int_equal(count_nodes(g, "fused"), 0);
    hd_graph_free(g);
}

/* a -> reduced -> b, b also reads a: a and b cannot be one node around the sum between them. */
static void test_no_group_around_what_it_feeds(void **state)
{
    (void)state;
    hd_graph *g = hd_graph_new();
    hd_error err = {0};
    hd_value x = small_param(g, "x", 2, 4, 6);
    hd_value a = hd_elementwise(g, "a", HD_EW_TANH, x, HD_NONE, HD_NONE, 0);
    hd_value mean = hd_reduce(g, "reduce_mean", "mean", a, 2, true, HD_F32);
    hd_graph_output(g, "out", hd_elementwise(g, "b", HD_EW_SUB, a, mean, HD_NONE, 0));
    assert_int_equal(hd_pass_fuse_elementwise(g), 0);
    assert_int_equal(hd_graph_verify(g, &err), 0);
    assert_int_equal(count_nodes(g, "fused"), 0);
    assert_int_equal(g->n_nodes, 3);
    hd_graph_free(g);
}

/* A whole training step, fused and not: the same losses and parameters to the last bit. */
static void test_training_step_has_the_same_bits(void **state)
{
    (void)state;
    rig a, b;
    hd_graph *plain = small_training(24, false, 1), *fused = small_training(24, false, 1);
    assert_int_equal(hd_pass_fuse_elementwise(fused), 0);
    assert_true(count_nodes(fused, "fused") > LAYERS);
    rig_open(&a, plain, "cpu", 1, 2);
    rig_open(&b, fused, "cpu", 1, 2);
    for (int i = 1; i <= 3; i++) {
        float x = train_step(&a, 24, 1, i), y = train_step(&b, 24, 1, i);
        assert_memory_equal(&x, &y, sizeof x);
    }
    assert_true(store_distance(a.store, b.store) == 0);
    rig_close(&a, false);
    rig_close(&b, false);
    hd_graph_free(plain);
    hd_graph_free(fused);
}

/* ---- norms ---- */

typedef struct norm_case {
    const char *op;
    hd_dtype dtype;  /* of the norm's result */
    bool read_later, read_before, stretched; /* the sum is an operand after the norm, before it; one addend broadcasts */
    int expected;    /* adds that are left */
} norm_case;

static hd_graph *norm_graph(const norm_case *c)
{
    hd_graph *g = hd_graph_new();
    hd_norm_attrs at = {.eps = 1e-5, .dtype = c->dtype, .sum_dtype = HD_F32};
    hd_value a = small_param(g, "a", 2, 6, 17), b = c->stretched ? small_param(g, "b", 1, 17, 0) : small_param(g, "b", 2, 6, 17);
    hd_value gamma = small_param(g, "gamma", 1, 17, 0), beta = small_param(g, "beta", 1, 17, 0);
    hd_value sum = hd_add(g, a, b), total = HD_NONE;
    if (c->read_before) total = hd_reduce(g, "reduce_sum", "early", hd_elementwise(g, NULL, HD_EW_SQUARE, sum, HD_NONE, HD_NONE, 0), 3,
        false, HD_F32);
    hd_value y = hd_graph_node(g, c->op, "y", &at, (hd_value[]){sum, gamma, beta}, strcmp(c->op, "rms_norm") ? 3 : 2);
    total = hd_add(g, total, hd_reduce(g, "reduce_sum", "of_norm", hd_elementwise(g, NULL, HD_EW_SIN, hd_cast(g, NULL, y, HD_F32),
        HD_NONE, HD_NONE, 0), 3, false, HD_F32));
    if (c->read_later) total = hd_add(g, total, hd_reduce(g, "reduce_sum", "late", hd_elementwise(g, NULL, HD_EW_COS, sum, HD_NONE,
        HD_NONE, 0), 3, false, HD_F32));
    hd_graph_output(g, "loss", total);
    assert_string_equal(g->err.message, "");
    return g;
}

/* Loss and gradients of a graph and of the same with its norm fused. */
static void expect_same_gradients(const norm_case *c)
{
    rig a, b;
    hd_graph *plain = norm_graph(c), *fused = norm_graph(c);
    assert_int_equal(hd_pass_fuse_residual_norm(fused), 0);
    int residual = strcmp(c->op, "rms_norm") ? 3 : 2, taken = 0;
    for (size_t i = 0; i < fused->n_nodes; i++) taken += !strcmp(fused->nodes[i]->op->name, c->op) && fused->nodes[i]->n_in > residual;
    assert_int_equal(taken, c->expected);
    assert_int_equal(hd_step_append_gradients(plain), 0);
    assert_int_equal(hd_step_append_gradients(fused), 0);
    rig_open(&a, plain, "cpu", 1, 1);
    rig_open(&b, fused, "cpu", 1, 1);
    assert_int_equal(hd_exec_step(a.exec, NULL, &a.err), 0);
    assert_int_equal(hd_exec_step(b.exec, NULL, &b.err), 0);
    for (size_t i = 0; i < plain->n_outputs; i++) {
        hd_tensor x, y;
        assert_int_equal(hd_exec_output(a.exec, plain->outputs[i].name, &x, NULL), 0);
        assert_int_equal(hd_exec_output(b.exec, plain->outputs[i].name, &y, NULL), 0);
        for (int64_t k = 0; k < hd_tensor_count(&x); k++) {
            double p = hd_load_f64(x.data, x.dtype, k), q = hd_load_f64(y.data, y.dtype, k);
            if (!(fabs(p - q) <= 2e-6 * (1 + fabs(p)))) fail_msg("%s: %s[%lld] is %g, fused %g", c->op, plain->outputs[i].name,
                (long long)k, p, q);
        }
    }
    rig_close(&a, false);
    rig_close(&b, false);
    hd_graph_free(plain);
    hd_graph_free(fused);
}

static void test_norm_takes_in_the_sum(void **state)
{
    static const norm_case cases[] = {
        {"layer_norm", HD_F32, false, false, false, 1}, {"layer_norm", HD_F32, true, false, false, 1}, {"layer_norm", HD_BF16, true,
            false, false, 1},
        {"rms_norm", HD_F32, false, false, false, 1},   {"rms_norm", HD_F32, true, false, false, 1},   {"rms_norm", HD_BF16, true, false,
            false, 1},
        {"layer_norm", HD_F32, true, true, false, 0},   {"rms_norm", HD_F32, true, true, false, 0}, /* the sum is wanted before the norm */
        {"layer_norm", HD_F32, true, false, true, 0},   {"rms_norm", HD_F32, true, false, true, 0},
            /* a norm's residual does not broadcast */
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) expect_same_gradients(&cases[i]);
}

/* The sum as an output of the graph: it is the norm's result from then on. */
static void test_sum_that_is_an_output(void **state)
{
    (void)state;
    rig r;
    hd_tensor sum, ta, tb;
    hd_graph *g = hd_graph_new();
    hd_norm_attrs at = {.eps = 1e-5, .dtype = HD_F32, .sum_dtype = HD_BF16};
    hd_value a = small_param(g, "a", 2, 6, 17), b = small_param(g, "b", 2, 6, 17), gamma = small_param(g, "gamma", 1, 17, 0),
        s = hd_add(g, a, b);
    hd_graph_output(g, "y", hd_graph_node(g, "rms_norm", "y", &at, (hd_value[]){s, gamma}, 2));
    hd_graph_output(g, "sum", s);
    assert_int_equal(hd_pass_fuse_residual_norm(g), 0);
    assert_int_equal(g->n_nodes, 1);
    rig_open(&r, g, "cpu", 1, 1);
    assert_int_equal(hd_exec_step(r.exec, NULL, &r.err), 0);
    assert_int_equal(hd_exec_output(r.exec, "sum", &sum, NULL), 0);
    assert_int_equal(sum.dtype, HD_F32);
    ta = hd_store_tensor_view(hd_store_find(r.store, "a"));
    tb = hd_store_tensor_view(hd_store_find(r.store, "b"));
    for (int i = 0; i < 6 * 17; i++) assert_true(((float *)sum.data)[i] == ((float *)ta.data)[i] + ((float *)tb.data)[i]);
    rig_close(&r, false);
    hd_graph_free(g);
}

/* ---- recomputation ---- */

enum { SEQ = 11, TOKENS = 2 * SEQ };

/* A language model with dropout that ends in gradients or in an update. */
static hd_graph *language_model(bool llama, hd_dtype compute, bool update)
{
    hd_error err = {0};
    hd_lm_config c;
    hd_lm_config_preset(&c, llama ? HD_ARCH_LLAMA : HD_ARCH_GPT2);
    c.vocab = 29, c.width = 24, c.layers = 4, c.heads = 4, c.kv_heads = llama ? 2 : 4, c.head_dim = 6, c.mlp_width = 56, c.max_positions = 16;
    c.embd_dropout = c.resid_dropout = 0.1;
    hd_lm_options o = {.mode = HD_LM_TRAIN, .compute = compute, .param = HD_F32, .tokens = TOKENS, .sequence = SEQ};
    hd_graph *g = hd_lm_graph(&c, &o, &err);
    if (!g) fail_msg("%s", err.message);
    hd_step_options s = {.optimizer = HD_ADAMW, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .clip = 1};
    if (update) hd_step_append(g, &s);
    else hd_step_append_gradients(g);
    assert_string_equal(g->err.message, "");
    return g;
}

/* Any input of the graphs here: ids below 5, places of sequences of SEQ tokens, numbers between -1 and 1. */
static double input_element(const char *name, hd_dtype dtype, int64_t i, int64_t micro)
{
    if (!strcmp(name, "positions")) return (double)(i % SEQ);
    if (!strcmp(name, "segments")) return (double)(i / SEQ);
    if (!strcmp(name, "inv_divisor")) return 1.0 / 64;
    if (!strcmp(name, "lr")) return 0.01;
    if (!strcmp(name, "step")) return 1;
    uint64_t h = hd_hash_mix(hd_hash_string(name) + (uint64_t)micro, (uint64_t)i);
    return dtype == HD_F32 ? (double)(h % 2001) / 1000 - 1 : (double)(h % 5);
}

static int fill_inputs(void *arg, hd_exec *e, hd_segment_kind kind, hd_call *call, hd_error *err)
{
    (void)arg;
    const hd_program *p = hd_exec_program(e);
    for (int b = 0; b < p->n_buffers; b++) {
        hd_tensor t;
        if (p->buffers[b].class != HD_BUFFER_INPUT || (p->buffers[b].micro == HD_TIME_SPLIT) != (kind == HD_SEGMENT_FORWARD)) continue;
        if (hd_exec_input(e, p->buffers[b].path, &t, err)) return err->code;
        int64_t micro = kind == HD_SEGMENT_FORWARD ? call->micro : 0;
        for (int64_t i = 0; i < hd_tensor_count(&t); i++) hd_store_f64(t.data, t.dtype, i, input_element(p->buffers[b].path, t.dtype, i, micro));
    }
    return 0;
}

static void run_step(rig *r)
{
    hd_exec_hooks hooks = {.before = fill_inputs};
    hd_call none = {0};
    assert_int_equal(fill_inputs(NULL, r->exec, HD_SEGMENT_PREPARE, &none, &r->err), 0);
    if (hd_exec_step(r->exec, &hooks, &r->err)) fail_msg("%s", r->err.message);
}

/* Outputs and parameters after two steps are alike to the last bit; returns by how many bytes b's arena is smaller. */
static int64_t expect_same_steps(const hd_graph *a, const hd_graph *b, int micro)
{
    rig x, y;
    rig_open(&x, a, "cpu", micro, 2);
    rig_open(&y, b, "cpu", micro, 2);
    for (int step = 0; step < 2; step++) {
        run_step(&x);
        run_step(&y);
        for (size_t i = 0; i < a->n_outputs; i++) {
            hd_tensor u, v;
            assert_int_equal(hd_exec_output(x.exec, a->outputs[i].name, &u, NULL), 0);
            assert_int_equal(hd_exec_output(y.exec, a->outputs[i].name, &v, NULL), 0);
            int64_t wrong = differing(&u, &v);
            if (wrong) fail_msg("step %d: %s differs in %lld elements", step, a->outputs[i].name, (long long)wrong);
            assert_true(isfinite(hd_load_f64(u.data, u.dtype, 0)));
        }
    }
    assert_true(store_distance(x.store, y.store) == 0);
    int64_t less = x.program->arena_bytes - y.program->arena_bytes;
    rig_close(&x, false);
    rig_close(&y, false);
    return less;
}

static void recompute_by(hd_graph *g, const char *how)
{
    hd_parallel p;
    hd_plan plan = hd_plan_default();
    hd_error err = {0};
    if (hd_parallel_parse(how, &p, &err) || hd_parallel_expand(&p, g, SEQ, &plan, &err)) fail_msg("%s", err.message);
    size_t before = g->n_nodes;
    assert_int_equal(hd_pass_recompute(g, plan.recompute, plan.n_recompute), 0);
    assert_true(g->n_nodes > before);
    if (hd_graph_verify(g, &err)) fail_msg("%s: %s", how, err.message);
}

static void test_recomputation_has_the_same_bits(void **state)
{
    static const char *const ways[] = {"recompute=full", "recompute=selective", "recompute=every:2"};
    (void)state;
    for (int llama = 0; llama < 2; llama++)
        for (int way = 0; way < 3; way++)
            for (int update = 0; update < 2; update++) {
                hd_dtype compute = way == 1 ? HD_BF16 : HD_F32;
                hd_graph *plain = language_model(llama, compute, update), *again = language_model(llama, compute, update);
                recompute_by(again, ways[way]);
                int64_t less = expect_same_steps(plain, again, 1 + (way + llama) % 2);
                if (less <= 0) fail_msg("%s, %s: %lld bytes more", llama ? "llama" : "gpt2", ways[way], -(long long)less);
                hd_graph_free(plain);
                hd_graph_free(again);
            }
}

/* All passes together, as a session has them. */
static void test_recomputation_with_the_other_passes(void **state)
{
    (void)state;
    hd_graph *plain = language_model(false, HD_BF16, true), *again = language_model(false, HD_BF16, true);
    recompute_by(again, "recompute=full");
    assert_int_equal(hd_pass_recompute_elementwise(again), 0);
    assert_int_equal(hd_pass_fuse_elementwise(again), 0);
    assert_true(expect_same_steps(plain, again, 2) > 0);
    hd_graph_free(plain);
    hd_graph_free(again);
}

/* One layer's clones at a time: in graph order, all clones of a layer stand after the last of the layer above. Kept: the layer's input; nothing of a
 * whole step is cloned. */
static void test_recomputation_goes_layer_by_layer(void **state)
{
    (void)state;
    hd_graph *g = language_model(true, HD_F32, true);
    recompute_by(g, "recompute=full");
    int layer = 99, clones = 0;
    for (size_t i = 0; i < g->n_nodes; i++) {
        const hd_node *n = g->nodes[i];
        int at;
        if (sscanf(n->path, "again.layers.%d.", &at) != 1) continue;
        assert_true(at <= layer && n->phase == HD_BACKWARD && n->origin && n->origin->phase == HD_FORWARD);
        assert_true(g->values[n->out[0]].micro == HD_TIME_SPLIT);
        assert_null(strstr(n->path, "mlp.out")); /* nothing in backward needs it */
        layer = at;
        clones++;
    }
    assert_int_equal(layer, 0);
    assert_true(clones >= 4 * 10);
    hd_graph_free(g);
}

static void test_elementwise_recomputation(void **state)
{
    (void)state;
    hd_graph *plain = language_model(false, HD_F32, true), *again = language_model(false, HD_F32, true);
    assert_int_equal(hd_pass_recompute_elementwise(again), 0);
    int clones = 0;
    for (size_t i = 0; i < again->n_nodes; i++) clones += !strncmp(again->nodes[i]->path, "again.", 6);
    assert_true(clones >= 4);
    assert_true(expect_same_steps(plain, again, 2) > 0);
    hd_graph_free(plain);
    hd_graph_free(again);
}

/* ---- precision ---- */

static hd_graph *network(const char *name, hd_dtype precision, bool update)
{
    hd_error err = {0};
    char path[1024];
    snprintf(path, sizeof path, TEST_SOURCE_DIR "/examples/%s", name);
    hd_network *n = hd_network_load(path, &err);
    hd_graph *g = n ? hd_network_graph(n, &(hd_network_options){.batch = 6, .train = true}, &err) : NULL;
    if (!g) fail_msg("%s", err.message);
    hd_network_free(n);
    assert_int_equal(hd_pass_precision(g, precision), 0);
    if (update) hd_step_append(g, &(hd_step_options){.optimizer = HD_SGD, .momentum = 0.9});
    assert_string_equal(g->err.message, "");
    return g;
}

static double second_loss(const hd_graph *g)
{
    rig r;
    rig_open(&r, g, "cpu", 2, 2);
    run_step(&r);
    run_step(&r);
    double loss = get_scalar(r.exec, "loss");
    rig_close(&r, false);
    return loss;
}

static void test_precision(void **state)
{
    static const char *const names[] = {"mlp.json", "two_tower.json"};
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        hd_graph *wide = network(names[i], HD_F32, true), *narrow = network(names[i], HD_BF16, true), *forward = network(names[i], HD_BF16, false);
        double a = second_loss(wide), b = second_loss(narrow);
        if (!(fabs(a - b) <= 0.03 * (0.01 + fabs(a))) || a == b) fail_msg("%s: a loss of %g in f32, of %g in bf16", names[i], a, b);
        for (size_t v = 0; v < forward->n_values; v++) { /* each parameter is rounded once, and its cast belongs to the step */
            int casts = 0;
            for (size_t k = 0; k < forward->n_nodes && forward->values[v].kind == HD_PARAM; k++) {
                const hd_node *n = forward->nodes[k];
                bool cast = !strcmp(n->op->name, "cast") && n->in[0] == (hd_value)v;
                if (cast) assert_int_equal(forward->values[n->out[0]].micro, HD_TIME_REPLICATE);
                casts += cast;
            }
            assert_true(casts <= 1);
        }
        assert_true(count_nodes(forward, "cast") > 2);
        assert_int_equal(count_nodes(wide, "cast"), 0);
        hd_graph_free(wide);
        hd_graph_free(narrow);
        hd_graph_free(forward);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fused_equals_unfused),
        cmocka_unit_test(test_bias_and_activation_are_one_node),
        cmocka_unit_test(test_additions_to_products_stay),
        cmocka_unit_test(test_no_group_around_what_it_feeds),
        cmocka_unit_test(test_training_step_has_the_same_bits),
        cmocka_unit_test(test_norm_takes_in_the_sum),
        cmocka_unit_test(test_sum_that_is_an_output),
        cmocka_unit_test(test_recomputation_has_the_same_bits),
        cmocka_unit_test(test_recomputation_with_the_other_passes),
        cmocka_unit_test(test_recomputation_goes_layer_by_layer),
        cmocka_unit_test(test_elementwise_recomputation),
        cmocka_unit_test(test_precision),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
