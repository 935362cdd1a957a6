/* test_stages.c: graphs cut into the stages of a pipeline compute what the whole computes. All stages are run side by side by reference kernels,
 * node by node; what one sends another receives. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include "exec/store.h"
#include "graph/op.h"
#include "models/lm.h"
#include "models/network.h"
#include "passes/partition.h"
#include "passes/passes.h"
#include "sanitized.h"
#include "train/step.h"

enum { MOST_STAGES = 5, MOST_MESSAGES = 2048, MOST_SUMS = 64, SEQUENCE = 5, TOKENS = 10, BATCH = 4 };

/* ---- running graphs side by side ---- */

typedef struct letter { hd_pipe_attrs at; const void *data; bool taken; } letter;

typedef struct world {
    hd_arena arena;
    int n;
    hd_graph *g[MOST_STAGES];
    void **data[MOST_STAGES]; /* [values] */
    size_t at[MOST_STAGES];   /* next node */
    int sums[MOST_STAGES];    /* all_reduces so far */
    float sum[MOST_SUMS][MOST_STAGES];
    bool there[MOST_SUMS][MOST_STAGES];
    letter *mail;
    int n_mail;
} world;

static size_t bytes_of(const hd_type *t) { return (size_t)hd_shape_count(&t->shape) * hd_dtype_size(t->dtype); }

static void *space(world *w, size_t bytes)
{
    void *p = hd_arena_alloc(&w->arena, bytes + 64);
    assert_non_null(p);
    return p;
}

/* Input data that depends on name and element alone. */
static double input_element(const char *name, int64_t i)
{
    uint64_t h = hd_hash_mix(hd_hash_string(name), (uint64_t)i);
    static const struct { const char *name; double v; } scalars[] = {{"lr", 0.05}, {"step", 3}, {"inv_divisor", 0.13}};
    for (size_t k = 0; k < sizeof scalars / sizeof scalars[0]; k++)
        if (!strcmp(name, scalars[k].name)) return scalars[k].v;
    if (!strcmp(name, "positions")) return (double)(i % SEQUENCE);
    if (!strcmp(name, "segments") || !strcmp(name, "samples")) return (double)(i / SEQUENCE);
    if (!strcmp(name, "tokens") || !strcmp(name, "targets") || !strcmp(name, "label") || !strcmp(name, "key")) return (double)(h % 7);
    return (double)(h % 1000) / 500 - 1;
}

static void *leaf_data(world *w, const hd_value_info *v, const hd_store *store)
{
    void *p = space(w, bytes_of(&v->type));
    if (v->kind == HD_PARAM || v->kind == HD_STATE) memcpy(p, hd_store_find(store, v->path)->data, bytes_of(&v->type));
    else if (v->kind == HD_CONST) memcpy(p, v->data, bytes_of(&v->type));
    else for (int64_t i = 0; i < hd_shape_count(&v->type.shape); i++) hd_store_f64(p, v->type.dtype, i, input_element(v->path, i));
    return p;
}

static hd_tensor tensor(const world *w, int stage, hd_value v)
{
    hd_tensor t = {0};
    if (v == HD_NONE) return t;
    const hd_type *type = &w->g[stage]->values[v].type;
    t = (hd_tensor){.data = w->data[stage][v], .dtype = type->dtype, .rank = type->shape.rank};
    for (int d = 0; d < t.rank; d++) t.dim[d] = type->shape.dim[d];
    return t;
}

static void run_kernel(world *w, int stage, const hd_node *n)
{
    hd_tensor in[HD_MAX_OPERANDS] = {{0}}, out[HD_MAX_RESULTS] = {{0}};
    for (int k = 0; k < n->n_in; k++) {
        in[k] = tensor(w, stage, n->in[k]);
        assert_true(n->in[k] == HD_NONE || in[k].data);
    }
    for (int k = 0; k < n->n_out; k++) {
        w->data[stage][n->out[k]] = space(w, bytes_of(&w->g[stage]->values[n->out[k]].type));
        out[k] = tensor(w, stage, n->out[k]);
    }
    hd_kernel_args a = {.in = in, .out = out, .n_in = n->n_in, .n_out = n->n_out, .code = n->op->code, .attrs = n->attrs, .threads = 1};
    if (n->op->is_view) memcpy(out[0].data, in[0].data, hd_tensor_bytes(&out[0]));
    else n->op->reference(&a);
}

static bool same_letter(const hd_pipe_attrs *a, const hd_pipe_attrs *b)
{
    return a->from == b->from && a->to == b->to && a->number == b->number;
}

static bool receive(world *w, int stage, const hd_node *n)
{
    const hd_pipe_attrs *at = n->attrs;
    for (int i = 0; i < w->n_mail; i++) {
        if (w->mail[i].taken || !same_letter(&w->mail[i].at, at)) continue;
        w->mail[i].taken = true;
        w->data[stage][n->out[0]] = (void *)(uintptr_t)w->mail[i].data;
        return true;
    }
    return false;
}

static void send(world *w, int stage, const hd_node *n)
{
    assert_true(w->n_mail < MOST_MESSAGES);
    for (int i = 0; i < w->n_mail; i++) assert_false(same_letter(&w->mail[i].at, n->attrs));
    w->mail[w->n_mail++] = (letter){.at = *(const hd_pipe_attrs *)n->attrs, .data = w->data[stage][n->in[0]]};
}

static bool reduce(world *w, int stage, const hd_node *n)
{
    int k = w->sums[stage];
    float total = 0;
    assert_true(k < MOST_SUMS);
    assert_string_equal(((const hd_comm_attrs *)n->attrs)->axes, "pp");
    w->sum[k][stage] = *(float *)w->data[stage][n->in[0]];
    w->there[k][stage] = true;
    for (int i = 0; i < w->n; i++) {
        if (!w->there[k][i]) return false;
        total += w->sum[k][i];
    }
    w->data[stage][n->out[0]] = space(w, sizeof total);
    *(float *)w->data[stage][n->out[0]] = total;
    w->sums[stage]++;
    return true;
}

/* False where the node must wait for another stage. */
static bool run_node(world *w, int stage, const hd_node *n)
{
    if (!strcmp(n->op->name, "recv")) return receive(w, stage, n);
    if (!strcmp(n->op->name, "all_reduce")) return reduce(w, stage, n);
    if (!strcmp(n->op->name, "send")) send(w, stage, n);
    else run_kernel(w, stage, n);
    return true;
}

static void world_run(world *w, const hd_store *store)
{
    bool done = false;
    w->mail = hd_calloc(MOST_MESSAGES, sizeof *w->mail);
    for (int s = 0; s < w->n; s++) {
        w->data[s] = space(w, w->g[s]->n_values * sizeof(void *));
        for (size_t v = 0; v < w->g[s]->n_values; v++)
            if (w->g[s]->values[v].kind != HD_RESULT) w->data[s][v] = leaf_data(w, &w->g[s]->values[v], store);
    }
    while (!done) {
        bool moved = false;
        done = true;
        for (int s = 0; s < w->n; s++) {
            for (; w->at[s] < w->g[s]->n_nodes && run_node(w, s, w->g[s]->nodes[w->at[s]]); w->at[s]++) moved = true;
            done &= w->at[s] == w->g[s]->n_nodes;
        }
        if (!moved && !done) fail_msg("the stages wait for each other");
    }
    for (int i = 0; i < w->n_mail; i++) assert_true(w->mail[i].taken);
    for (int s = 0; s < w->n; s++) assert_int_equal(w->sums[s], w->sums[0]);
}

static void world_close(world *w)
{
    for (int s = 0; s < w->n; s++) hd_graph_free(w->g[s]);
    hd_free(w->mail);
    hd_arena_free(&w->arena);
}

/* ---- what must hold for the stages' graphs ---- */

/* Only sums over micro-batches make a value of the step out of pieces. */
static void check_time(const hd_graph *g)
{
    for (size_t i = 0; i < g->n_nodes; i++) {
        const hd_node *n = g->nodes[i];
        bool pieces = false;
        for (int k = 0; k < n->n_in; k++) pieces |= n->in[k] != HD_NONE && g->values[n->in[k]].micro == HD_TIME_SPLIT;
        for (int k = 0; k < n->n_out && pieces && strcmp(n->op->name, "micro_sum"); k++) assert_int_equal(g->values[n->out[k]].micro, HD_TIME_SPLIT);
    }
}

/* What stage a sends to b in the order in which b receives it. */
static void check_order(const world *w, int a, int b)
{
    size_t i = 0, k = 0;
    for (;;) {
        for (; i < w->g[a]->n_nodes; i++)
            if (!strcmp(w->g[a]->nodes[i]->op->name, "send") && ((const hd_pipe_attrs *)w->g[a]->nodes[i]->attrs)->to % w->n == b) break;
        for (; k < w->g[b]->n_nodes; k++)
            if (!strcmp(w->g[b]->nodes[k]->op->name, "recv") && ((const hd_pipe_attrs *)w->g[b]->nodes[k]->attrs)->from % w->n == a) break;
        if (i == w->g[a]->n_nodes || k == w->g[b]->n_nodes) break;
        const hd_node *x = w->g[a]->nodes[i++], *y = w->g[b]->nodes[k++];
        assert_true(same_letter(x->attrs, y->attrs));
        assert_int_equal(x->phase, y->phase);
    }
    assert_true(i == w->g[a]->n_nodes && k == w->g[b]->n_nodes);
}

/* Within a call no later chunk is waited for; each node is where it may be. */
static void check_chunks(const world *w, int s)
{
    for (size_t i = 0; i < w->g[s]->n_nodes; i++) {
        const hd_node *n = w->g[s]->nodes[i];
        assert_true(n->chunk == -1 || n->chunk % w->n == s);
        if (strcmp(n->op->name, "send") || w->g[s]->values[n->in[0]].micro == HD_TIME_REPLICATE) continue;
        const hd_pipe_attrs *at = n->attrs;
        assert_true(n->phase == HD_FORWARD ? at->from < at->to : at->from > at->to);
    }
}

/* What is sent on needs none of them. Returns how many there are. */
static int check_weight_parts(const hd_graph *g)
{
    bool *flags = hd_calloc(g->n_nodes + 1, 1);
    int count = hd_graph_weight_parts(g, flags);
    for (size_t i = 0; i < g->n_nodes; i++) {
        const hd_node *n = g->nodes[i];
        for (int k = 0; k < n->n_in && !flags[i] && n->phase == HD_BACKWARD && strcmp(n->op->name, "micro_sum"); k++) {
            int from = n->in[k] == HD_NONE ? -1 : g->values[n->in[k]].node;
            if (from >= 0) assert_false(flags[from]);
        }
    }
    hd_free(flags);
    return count;
}

/* Each parameter and state is kept by exactly one stage. */
static void check_homes(const world *w, const hd_graph *whole)
{
    for (size_t v = 0; v < whole->n_values; v++) {
        int homes = 0;
        if (whole->values[v].kind != HD_PARAM && whole->values[v].kind != HD_STATE) continue;
        for (int s = 0; s < w->n; s++) {
            hd_value x = hd_graph_find(w->g[s], whole->values[v].path);
            homes += x != HD_NONE && w->g[s]->values[x].kind == whole->values[v].kind;
        }
        assert_int_equal(homes, 1);
    }
}

/* ---- comparing ---- */

static void compare(const char *what, const hd_type *t, const void *got, const void *want, double tolerance)
{
    double most = tolerance > 0 ? 1e-2 : 0, worst = 0; /* a gradient that is zero but for rounding is not compared with itself */
    for (int64_t i = 0; i < hd_shape_count(&t->shape); i++) {
        double a = hd_load_f64(got, t->dtype, i), b = hd_load_f64(want, t->dtype, i), d = fabs(a - b);
        most = fmax(most, fabs(b));
        if (!(d <= worst)) worst = isfinite(d) ? d : INFINITY;
    }
    if (!(worst <= tolerance * most)) fail_msg("%s differs by %g of %g", what, worst, most);
}

static void compare_worlds(const world *stages, const world *whole, double tolerance)
{
    const hd_graph *g = whole->g[0];
    size_t pairs = 0, outputs = 0;
    for (int s = 0; s < stages->n; s++) {
        const hd_graph *part = stages->g[s];
        for (size_t i = 0; i < part->n_pairs; i++, pairs++) {
            const char *path = part->values[part->pairs[i].in].path;
            for (size_t k = 0; k < g->n_pairs; k++)
                if (!strcmp(path, g->values[g->pairs[k].in].path))
                    compare(path, &g->values[g->pairs[k].in].type, stages->data[s][part->pairs[i].out], whole->data[0][g->pairs[k].out], tolerance);
        }
        for (size_t i = 0; i < g->n_outputs; i++) {
            const hd_type *t = &g->values[g->outputs[i].value].type;
            hd_value v = hd_graph_find_output(part, g->outputs[i].name);
            if (t->shape.rank == 0) assert_true(v != HD_NONE);
            if (v == HD_NONE) continue;
            compare(g->outputs[i].name, t, stages->data[s][v], whole->data[0][g->outputs[i].value], tolerance);
            outputs += t->shape.rank > 0;
        }
    }
    assert_int_equal(pairs, g->n_pairs);
    for (size_t i = 0; i < g->n_outputs; i++) outputs -= g->values[g->outputs[i].value].type.shape.rank > 0;
    assert_int_equal(outputs, 0);
}

/* ---- models ---- */

typedef enum end { TRAIN, GRADIENTS, EVALUATE } end;

typedef struct model {
    const char *name; /* "gpt2", "llama" or a file in examples */
    bool tied;
    hd_dtype compute;
    double dropout, clip;
    hd_optimizer optimizer;
    end end;
    bool fused;
} model;

static hd_graph *lm_graph(const model *m, hd_error *err)
{
    hd_lm_config c = {0};
    hd_lm_config_preset(&c, strcmp(m->name, "gpt2") ? HD_ARCH_LLAMA : HD_ARCH_GPT2);
    c.vocab = 19, c.width = 12, c.layers = 3, c.heads = 2, c.kv_heads = 2, c.head_dim = 6, c.mlp_width = 10, c.max_positions = 16;
    c.init_std = 0.3;
    c.tie_embeddings = m->tied;
    c.bos = -1, c.n_eos = 0;
    c.embd_dropout = c.resid_dropout = m->dropout;
    hd_lm_options o = {.mode = m->end == EVALUATE ? HD_LM_EVAL : HD_LM_TRAIN, .compute = m->compute, .param = HD_F32, .tokens = TOKENS, .logits = true};
    return hd_lm_graph(&c, &o, err);
}

static hd_graph *file_graph(const model *m, hd_error *err)
{
    char path[1024];
    snprintf(path, sizeof path, TEST_SOURCE_DIR "/examples/%s", m->name);
    hd_network *n = hd_network_load(path, err);
    hd_graph *g = n ? hd_network_graph(n, &(hd_network_options){.batch = BATCH, .train = m->end != EVALUATE}, err) : NULL;
    hd_network_free(n);
    return g;
}

static hd_graph *build(const model *m)
{
    hd_error err = {0};
    hd_graph *g = strstr(m->name, ".json") ? file_graph(m, &err) : lm_graph(m, &err);
    assert_string_equal(err.message, "");
    hd_pass_fuse_residual_norm(g);
    if (m->end == GRADIENTS) hd_step_append_gradients(g);
    hd_step_options o = {.optimizer = m->optimizer, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-2, .momentum = 0.9, .weight_decay = 0.1, .clip = m->clip};
    if (m->end == TRAIN) hd_step_append(g, &o);
    assert_string_equal(g->err.message, "");
    return g;
}

/* n_cuts places in the forward pass, with no regard to what lies there. */
static int pick_cuts(const hd_graph *g, int n_cuts, int seed, const char **cuts)
{
    const char *paths[2048];
    int n = 0, at = 0;
    for (size_t i = 0; i < g->n_nodes && n < 2048; i++)
        if (g->nodes[i]->phase == HD_FORWARD && g->values[g->nodes[i]->out[0]].micro == HD_TIME_SPLIT) paths[n++] = g->nodes[i]->path;
    for (int k = 0; k < n_cuts; k++) {
        int room = (n - 1 - at) / (n_cuts - k);
        at += 1 + (int)(hd_hash_mix((uint64_t)seed, (uint64_t)k) % (uint64_t)room);
        cuts[k] = paths[at];
    }
    return n_cuts;
}

static void check_stages(const model *m, int stages, int chunks, int seed, double tolerance)
{
    int weight_parts = 0;
    hd_error err = {0};
    const char *cuts[32];
    world whole = {.n = 1, .g = {build(m)}}, parts = {.n = stages};
    hd_store *store = hd_store_new(whole.g[0], 7, &err);
    world_run(&whole, store);
    hd_graph *g = build(m);
    assert_int_equal(hd_pass_chunks(g, cuts, pick_cuts(g, stages * chunks - 1, seed, cuts)), 0);
    hd_graph_verify(g, &err);
    for (int s = 0; s < stages; s++) {
        parts.g[s] = hd_graph_stage(g, s, stages, false, &err);
        assert_string_equal(err.message, "");
        if (m->fused) assert_int_equal(hd_pass_recompute_elementwise(parts.g[s]), 0);
        if (m->fused) assert_int_equal(hd_pass_fuse_elementwise(parts.g[s]), 0);
        hd_graph_verify(parts.g[s], &err);
        assert_string_equal(err.message, "");
        check_time(parts.g[s]);
        check_chunks(&parts, s);
        weight_parts += check_weight_parts(parts.g[s]);
    }
    assert_int_equal(weight_parts > 0, m->end != EVALUATE);
    check_homes(&parts, g);
    hd_graph_free(g); /* nothing of the stages is in it */
    for (int a = 0; a < stages; a++)
        for (int b = 0; b < stages; b++) check_order(&parts, a, b);
    world_run(&parts, store);
    compare_worlds(&parts, &whole, tolerance);
    world_close(&parts);
    world_close(&whole);
    hd_store_free(store);
}

/* ---- tests ---- */

static const model models[] = {
    {"gpt2", true, HD_F32, 0.1, 0.5, HD_ADAMW, TRAIN, false},  {"gpt2", true, HD_BF16, 0, 0.5, HD_SGD, TRAIN, false},
    {"llama", true, HD_F32, 0, 0.5, HD_SGD, TRAIN, true},       {"llama", false, HD_F32, 0, 0, HD_SGD, TRAIN, true},
    {"gpt2", false, HD_F32, 0.1, 0, HD_ADAMW, TRAIN, true},    {"llama", true, HD_BF16, 0, 0, HD_ADAMW, TRAIN, false},
    {"gpt2", true, HD_F32, 0, 0, HD_SGD, GRADIENTS, false},     {"gpt2", true, HD_F32, 0, 0, HD_SGD, EVALUATE, false},
    {"convnet.json", false, HD_F32, 0, 0.5, HD_SGD, TRAIN, false}, {"convnet.json", false, HD_F32, 0, 0, HD_ADAMW, EVALUATE, false},
    {"mlp.json", false, HD_F32, 0, 0.5, HD_ADAMW, TRAIN, true}, {"two_tower.json", false, HD_F32, 0, 0, HD_SGD, TRAIN, false},
};

static double tolerance_of(const model *m) { return m->compute == HD_BF16 ? 1e-2 : 2e-5; }

static void test_stages(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof models / sizeof models[0]; i++)
        for (int stages = 2; stages <= 4; stages++)
            for (int chunks = 1; chunks <= 3; chunks += SANITIZED ? 2 : 1) {
                if (!strcmp(models[i].name, "mlp.json") && stages * chunks > 6) continue;
                check_stages(&models[i], stages, chunks, (int)i + stages, tolerance_of(&models[i]));
            }
}

/* Without ties and clipping no sum has another order, and no sum is rounded that a norm kept to itself: the same bits. */
static void test_same_bits(void **state)
{
    (void)state;
    static const model exact[] = {
        {"convnet.json", false, HD_F32, 0, 0, HD_ADAMW, TRAIN, false},
        {"mlp.json", false, HD_F32, 0, 0, HD_SGD, TRAIN, false},
        {"two_tower.json", false, HD_F32, 0, 0, HD_ADAMW, TRAIN, false},
    };
    for (int seed = 0; seed < 9; seed++) check_stages(&exact[seed % 3], 2 + seed / 3, 1 + seed % 2, seed, 0);
}

static void test_one_stage(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof models / sizeof models[0]; i++) {
        hd_error err = {0};
        hd_graph *g = build(&models[i]);
        assert_int_equal(hd_pass_chunks(g, NULL, 0), 0);
        hd_graph *one = hd_graph_stage(g, 0, 1, false, &err);
        assert_non_null(one);
        assert_true(hd_graph_fingerprint(one) == hd_graph_fingerprint(g));
        hd_graph_free(one);
        hd_graph_free(g);
        check_stages(&models[i], 1, 3, (int)i, tolerance_of(&models[i]));
    }
}

static int count_messages(const hd_graph *g, const char *op, int from, int to, hd_phase phase, hd_time_layout micro)
{
    int n = 0;
    for (size_t i = 0; i < g->n_nodes; i++) {
        const hd_node *x = g->nodes[i];
        const hd_pipe_attrs *at = x->attrs;
        if (strcmp(x->op->name, op) || at->from != from || at->to != to || x->phase != phase) continue;
        n += g->values[x->n_in ? x->in[0] : x->out[0]].micro == micro;
    }
    return n;
}

/* Cut between layers: one activation forth and one gradient back; the tied embedding forth and its gradient back, once per step. */
static void test_messages(void **state)
{
    (void)state;
    static const char *const cuts[] = {"layers.1", "layers.2"};
    for (int which = 0; which < 2; which++) {
        hd_error err = {0};
        hd_graph *g = build(&models[which * 2]), *part[3];
        assert_int_equal(hd_pass_chunks(g, cuts, 2), 0);
        for (int s = 0; s < 3; s++) assert_non_null(part[s] = hd_graph_stage(g, s, 3, false, &err));
        for (int s = 0; s < 3; s++)
            for (int to = 0; to < 3; to++) {
                assert_int_equal(count_messages(part[s], "send", s, to, HD_FORWARD, HD_TIME_SPLIT), to == s + 1);
                assert_int_equal(count_messages(part[s], "send", s, to, HD_BACKWARD, HD_TIME_SPLIT), to == s - 1);
                assert_int_equal(count_messages(part[s], "send", s, to, HD_FORWARD, HD_TIME_REPLICATE), s == 0 && to == 2);
                assert_int_equal(count_messages(part[s], "send", s, to, HD_UPDATE, HD_TIME_REPLICATE), s == 2 && to == 0);
                assert_int_equal(count_messages(part[s], "recv", to, s, HD_FORWARD, HD_TIME_SPLIT), to == s - 1);
                assert_int_equal(count_messages(part[s], "recv", to, s, HD_BACKWARD, HD_TIME_SPLIT), to == s + 1);
            }
        for (int s = 0; s < 3; s++) hd_graph_free(part[s]);
        hd_graph_free(g);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    static const char *const bad[][2] = {{"layers.9", NULL}, {"layers.2", "layers.1"}, {"layers.1", "layers.1"}, {"layer", NULL}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        hd_graph *g = build(&models[0]);
        assert_int_equal(hd_pass_chunks(g, bad[i], bad[i][1] ? 2 : 1), HD_EINVAL);
        assert_non_null(strstr(g->err.message, bad[i][bad[i][1] ? 1 : 0]));
        hd_graph_free(g);
    }
    hd_error err = {0};
    hd_graph *g = build(&models[0]);
    assert_null(hd_graph_stage(g, 2, 2, false, &err));
    assert_int_equal(err.code, HD_EINVAL);
    hd_graph_free(g);
}

/* Any allocation may fail. */
static void test_memory(void **state)
{
    (void)state;
    int failed = 0;
    for (uint64_t nth = 1; nth < 400; nth += nth < 40 ? 1 : 23) {
        const char *cuts[] = {"layers.1", "layers.2"};
        hd_error err = {0};
        hd_graph *g = build(&models[0]);
        hd_mem_fail_at(nth);
        uint64_t before = hd_mem_failed();
        hd_pass_chunks(g, cuts, 2);
        hd_graph *part = hd_graph_stage(g, 2, 3, false, &err);
        bool hit = hd_mem_failed() > before;
        hd_mem_fail_at(0);
        if (hit) assert_true(!part && (err.code == HD_ENOMEM || g->err.code == HD_ENOMEM));
        else assert_non_null(part);
        failed += hit;
        hd_graph_free(part);
        hd_graph_free(g);
    }
    assert_true(failed > 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_one_stage), cmocka_unit_test(test_stages), cmocka_unit_test(test_same_bits),
                                       cmocka_unit_test(test_messages),
                                       cmocka_unit_test(test_refusals), cmocka_unit_test(test_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
