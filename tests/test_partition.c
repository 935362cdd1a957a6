/* Partitioning: a graph over a mesh gives what the graph gives, and the collectives in it are the ones that a person would have put there. */
#include "lockstep.h"

#include <string.h>

#include "base/thread.h"
#include "models/lm.h"
#include "models/network.h"
#include "passes/partition.h"
#include "passes/passes.h"
#include "train/step.h"

/* ---- data ---- */

enum { SEQUENCE = 6, CLASSES = 10 };

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && !strcmp(text + n - m, end);
}

static int64_t fill_integer(const char *path, int64_t i, int64_t n, uint64_t h)
{
    if (!strcmp(path, "positions")) return i % SEQUENCE;
    if (!strcmp(path, "samples")) return 100 + i / SEQUENCE;
    if (!strcmp(path, "segments")) return i == n - 1 ? -1 : i / SEQUENCE;
    if (!strcmp(path, "targets")) return i % 7 == 3 ? -1 : (int64_t)(h % 37);
    if (!strcmp(path, "tokens")) return (int64_t)(h % 37);
    if (!strcmp(path, "key")) return 3 + i;
    return (int64_t)(h % CLASSES);
}

static double fill_number(const hd_graph *g, hd_value v, hd_rng *r)
{
    const hd_value_info *i = &g->values[v];
    if (!strcmp(i->path, "lr")) return 0.01;
    if (!strcmp(i->path, "step")) return 3;
    if (!strcmp(i->path, "inv_divisor")) return 1.0 / 24;
    double x = hd_rng_normal(r) * (i->kind == HD_INPUT ? 1 : 0.3);
    if (!strncmp(i->path, "exp_avg_sq.", 11)) return 0.1 + x * x;
    return ends_with(i->path, "gamma") || ends_with(i->path, "scale") ? 1 + x : x;
}

static void fill_leaf(const hd_graph *g, hd_value v, const hd_shape *whole, void *data)
{
    const hd_value_info *info = &g->values[v];
    int64_t n = hd_shape_count(whole);
    hd_rng r = hd_rng_new(hd_hash_string(info->path));
    if (info->data) {
        memcpy(data, info->data, (size_t)n * hd_dtype_size(info->type.dtype));
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        double x = hd_dtype_is_float(info->type.dtype) ? fill_number(g, v, &r) : (double)fill_integer(info->path, i, n, hd_rng_u32(&r));
        hd_store_f64(data, info->type.dtype, i, x);
    }
}

/* ---- graphs ---- */

typedef struct model_case {
    const char *name;
    hd_architecture arch;
    int64_t layers, width, heads, kv_heads, head_dim, mlp, vocab, sequences;
    bool tied;
    double dropout, clip;
    hd_optimizer optimizer;
    hd_dtype compute;
} model_case;

static const model_case gpt2 = {"gpt2", HD_ARCH_GPT2, 2, 12, 3, 3, 4, 17, 37, 4, true, 0.1, 0.5, HD_ADAMW, HD_F32};
static const model_case gpt2_even = {"gpt2 even", HD_ARCH_GPT2, 2, 16, 4, 4, 4, 28, 36, 4, true, 0.1, 0.5, HD_ADAMW, HD_F32};
static const model_case llama = {"llama", HD_ARCH_LLAMA, 2, 12, 6, 3, 4, 17, 37, 4, false, 0, 0, HD_SGD, HD_F32};
static const model_case llama_even = {"llama even", HD_ARCH_LLAMA, 2, 16, 8, 2, 4, 28, 36, 4, false, 0, 1, HD_ADAMW, HD_F32};
static const model_case qwen_tied = {"qwen tied", HD_ARCH_QWEN2, 2, 12, 6, 3, 4, 17, 37, 4, true, 0, 1, HD_ADAMW, HD_F32};

static hd_step_options step_of(hd_optimizer optimizer, double clip)
{
    return (hd_step_options){.optimizer = optimizer, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .momentum = 0.9, .weight_decay = 0.1, .clip = clip};
}

static hd_graph *build_model(const model_case *m, int64_t layers)
{
    hd_error err = {0};
    hd_lm_config c;
    hd_lm_config_preset(&c, m->arch);
    c.vocab = m->vocab, c.width = m->width, c.layers = layers, c.heads = m->heads, c.kv_heads = m->kv_heads, c.head_dim = m->head_dim;
    c.mlp_width = m->mlp, c.max_positions = 16, c.tie_embeddings = m->tied, c.embd_dropout = c.resid_dropout = m->dropout;
    hd_lm_options o = {.mode = HD_LM_TRAIN, .compute = m->compute, .param = HD_F32, .tokens = SEQUENCE * m->sequences, .sequence = SEQUENCE};
    hd_graph *g = hd_lm_graph(&c, &o, &err);
    assert_string_equal(err.message, "");
    hd_step_options step = step_of(m->optimizer, m->clip);
    hd_pass_fuse_residual_norm(g);
    hd_step_append(g, &step);
    assert_string_equal(g->err.message, "");
    return g;
}

static hd_graph *build_file(const char *name, int64_t batch)
{
    char path[400];
    hd_error err = {0};
    snprintf(path, sizeof path, "%s/examples/%s", TEST_SOURCE_DIR, name);
    hd_network *n = hd_network_load(path, &err);
    assert_string_equal(err.message, "");
    hd_graph *g = hd_network_graph(n, &(hd_network_options){.batch = batch, .train = true}, &err);
    assert_string_equal(err.message, "");
    hd_network_free(n);
    hd_step_options step = step_of(HD_ADAMW, 1);
    hd_pass_fuse_residual_norm(g);
    hd_step_append(g, &step);
    assert_string_equal(g->err.message, "");
    return g;
}

/* ---- meshes and pins ---- */

typedef struct layout_case {
    const char *name;
    hd_mesh mesh;
    hd_pin pins[24];
} layout_case;

#define ROWS(cut) {"tokens", cut}, {"positions", cut}, {"segments", cut}, {"targets", cut}
#define DP(n) {"dp", n, HD_AXIS_DATA}
#define TP(n) {"tp", n, HD_AXIS_MODEL}

/* Columns, then rows, in the order in which each family keeps its weights. */

#define GPT2_TP_PINS \
    {"layers.*.attn.q", "-,tp,-"}, {"layers.*.attn.k", "-,tp,-"}, {"layers.*.attn.v", "-,tp,-"}, {"layers.*.attn.q_bias", "tp,-"}, \
    {"layers.*.attn.k_bias", "tp,-"}, {"layers.*.attn.v_bias", "tp,-"}, {"layers.*.attn.o", "tp,-,-"}, {"layers.*.mlp.up", "-,tp"}, \
    {"layers.*.mlp.up_bias", "tp"}, {"layers.*.mlp.down", "tp,-"}, {"embed.tokens", "tp,-"}
#define LLAMA_TP_PINS(q) \
    {"layers.*.attn.q", q}, {"layers.*.attn.k", "tp,-,-"}, {"layers.*.attn.v", "tp,-,-"}, {"layers.*.attn.o", "-,tp,-"}, \
    {"layers.*.mlp.gate", "tp,-"}, {"layers.*.mlp.up", "tp,-"}, {"layers.*.mlp.down", "-,tp"}, {"embed.tokens", "tp,-"}

static int count_pins(const layout_case *c)
{
    int n = 0;
    while (n < 24 && c->pins[n].pattern[0]) n++;
    return n;
}

static void partition(hd_graph *g, const layout_case *c)
{
    hd_error err = {0};
    int ring = hd_mesh_find(&c->mesh, "ring"), dealt = hd_mesh_find(&c->mesh, "dealt");
    g->ring = ring >= 0 ? 1u << ring : 0; /* by what the cases call their axes */
    if (dealt >= 0) g->ring = g->zigzag = 1u << dealt;
    hd_pass_partition(g, &c->mesh, c->pins, count_pins(c), false);
    hd_pass_deal(g);
    if (g->err.code) fail_msg("%s: %s", c->name, g->err.message);
    if (hd_graph_verify(g, &err)) fail_msg("%s: %s", c->name, err.message);
}

/* ---- the same results ---- */

static double tolerance = 1e-5;

static void expect_piece(const world *a, hd_value u, const world *b, hd_value v, const char *what, const char *name)
{
    double d = piece_distance(b, v, *place(a, u, 0), a->g->values[u].type.dtype);
    if (!(d <= tolerance)) fail_msg("%s, %s: differs by %g", name, what, d);
}

static void expect_same(hd_graph *plain, hd_graph *split, const layout_case *c, const char *model)
{
    world a, b;
    char name[1700];
    snprintf(name, sizeof name, "%s over %s", model, c->name);
    partition(split, c);
    world_run(&a, plain, fill_leaf);
    world_run(&b, split, fill_leaf);
    assert_int_equal(plain->n_outputs, split->n_outputs);
    for (size_t i = 0; i < plain->n_outputs; i++) expect_piece(&a, plain->outputs[i].value, &b, split->outputs[i].value, plain->outputs[i].name, name);
    assert_int_equal(plain->n_pairs, split->n_pairs);
    for (size_t i = 0; i < plain->n_pairs; i++) {
        assert_int_equal(plain->pairs[i].in, split->pairs[i].in);
        const hd_value_info *in = &split->values[split->pairs[i].in], *out = &split->values[split->pairs[i].out];
        if (!hd_layout_equal(&split->mesh, in->layout, out->layout, &in->whole)) fail_msg("%s: %s becomes what lies differently", name, in->path);
        expect_piece(&a, plain->pairs[i].out, &b, split->pairs[i].out, in->path, name);
    }
    world_free(&a);
    world_free(&b);
    hd_graph_free(plain);
    hd_graph_free(split);
}

static void expect_same_model(const model_case *m, const layout_case *c)
{
    expect_same(build_model(m, m->layers), build_model(m, m->layers), c, m->name);
}

static void test_nothing_pinned(void **state)
{
    (void)state;
    const layout_case one = {.name = "one rank"}, many = {.name = "unused ranks", .mesh = {2, {DP(2), TP(3)}}};
    expect_same_model(&gpt2, &one);
    expect_same_model(&llama, &many);
}

static void test_data_parallel(void **state)
{
    (void)state;
    const layout_case two = {"dp 2", {1, {DP(2)}}, {ROWS("dp*6"), {"samples", "dp*6"}}}, three = {"dp 3", {1, {DP(3)}}, {ROWS("dp*6")}};
    expect_same_model(&gpt2, &two);
    expect_same_model(&llama, &three);
    expect_same_model(&qwen_tied, &three);
}

static void test_tensor_parallel(void **state)
{
    (void)state;
    const layout_case a = {"tp 2", {1, {TP(2)}}, {GPT2_TP_PINS}}, b = {"tp 3", {1, {TP(3)}}, {GPT2_TP_PINS}};
    const layout_case c = {"tp 2", {1, {TP(2)}}, {LLAMA_TP_PINS("tp*2,-,-"), {"head", "tp,-"}}};
    const layout_case d = {"tp 3 across groups", {1, {TP(3)}}, {LLAMA_TP_PINS("tp,-,-")}};
    expect_same_model(&gpt2, &a);
    expect_same_model(&gpt2, &b);
    expect_same_model(&llama, &c);
    expect_same_model(&qwen_tied, &d);
}

static void test_data_and_tensor_parallel(void **state)
{
    (void)state;
    const layout_case a = {"dp 2 x tp 2", {2, {DP(2), TP(2)}}, {ROWS("dp*6"), {"samples", "dp*6"}, GPT2_TP_PINS}};
    const layout_case b = {"tp 2 x dp 2", {2, {TP(2), DP(2)}}, {ROWS("dp*6"), LLAMA_TP_PINS("tp,-,-"), {"head", "tp,-"}}};
    expect_same_model(&gpt2, &a);
    expect_same_model(&gpt2_even, &a);
    expect_same_model(&llama_even, &b);
}

#define FACTORED {"x", 2, HD_AXIS_MODEL}, {"y", 2, HD_AXIS_MODEL}

/* How many nodes of an op there are in a phase. */
static int count_nodes(const hd_graph *g, const char *op, hd_phase phase)
{
    int n = 0;
    for (size_t i = 0; i < g->n_nodes; i++) n += !strcmp(g->nodes[i]->op->name, op) && g->nodes[i]->phase == phase;
    return n;
}

/* What the steps of a ring say of their cost adds up to the pairs that a causal mask, and a window, leave. */
static void expect_all_pairs(const char *axis, int ranks, int64_t tokens, int64_t window)
{
    hd_graph *g = hd_graph_new();
    hd_value in[7], y;
    double pairs = 0, seen = 0;
    hd_attention_attrs at = {.scale = 1, .causal = true, .window = window, .dtype = HD_F32};
    layout_case c = {"pairs", {1, {{"", ranks, HD_AXIS_DATA}}}, {{"x*", ""}}};
    snprintf(c.mesh.axis[0].name, sizeof c.mesh.axis[0].name, "%s", axis);
    snprintf(c.pins[0].layout, sizeof c.pins[0].layout, "%s,-,-", axis);
    snprintf(c.pins[1].pattern, sizeof c.pins[1].pattern, "id*");
    snprintf(c.pins[1].layout, sizeof c.pins[1].layout, "%s", axis);
    for (int i = 0; i < 7; i++) {
        hd_type t = i < 3 ? hd_type_of(HD_F32, 3, (int64_t[]){tokens, 1, 2}) : hd_type_of(HD_I32, 1, &tokens);
        char name[16];
        snprintf(name, sizeof name, "%s%d", i < 3 ? "x" : "id", i);
        in[i] = hd_graph_input(g, name, t, HD_TIME_SPLIT);
    }
    y = hd_graph_node(g, "attention", "y", &at, in, 7);
    hd_graph_output(g, "y", hd_reduce(g, "reduce_sum", "sum", y, 7, false, HD_F32));
    partition(g, &c);
    for (size_t i = 0, step = 0; i < g->n_nodes; i++) {
        const hd_node *n = g->nodes[i];
        if (strcmp(n->op->name, "attention")) continue;
        for (int64_t r = 0; r < ranks; r++) {
            int64_t a, b, u, v;
            hd_split(tokens, 1, (int)r, ranks, &a, &b);
            hd_split(tokens, 1, (int)((r + (int64_t)step) % ranks), ranks, &u, &v);
            pairs += ((const hd_attention_attrs *)n->attrs)->share * (double)((b - a) * (v - u));
        }
        step++;
    }
    for (int64_t i = 0; i < tokens; i++) seen += (double)(window && window < i + 1 ? window : i + 1);
    if (!(fabs(pairs - seen) <= 1e-6 * seen + 1e-4)) fail_msg("%s over %d, %d tokens, window %d: %g pairs, not %g", axis, ranks, (int)tokens, (int)window, pairs, seen);
    hd_graph_free(g);
}

/* Keys and values go round instead of being gathered: uneven pieces, groups of heads on several ranks, bf16, tokens dealt. */
static void test_ring(void **state)
{
    (void)state;
    const layout_case two = {"ring 2", {1, {{"ring", 2, HD_AXIS_DATA}}}, {ROWS("ring"), {"samples", "ring"}}};
    const layout_case four = {"ring 4", {1, {{"ring", 4, HD_AXIS_DATA}}}, {ROWS("ring")}}; /* 2, 2, 1 and 1 of 6 tokens */
    const layout_case empty = {"ring of more ranks than tokens", {1, {{"ring", 8, HD_AXIS_DATA}}}, {ROWS("ring")}};
    const layout_case dealt = {"dealt over 4", {1, {{"dealt", 4, HD_AXIS_DATA}}}, {ROWS("dealt"), {"samples", "dealt"}}};
    const layout_case both = {"dp 4 x dealt 2", {2, {DP(4), {"dealt", 2, HD_AXIS_DATA}}}, {ROWS("dp*6.dealt")}};
    const layout_case heads = {"dealt 3 x tp 2 x 2", {3, {{"dealt", 3, HD_AXIS_DATA}, FACTORED}},
                               {ROWS("dealt"), {"layers.*.attn.q", "x.y,-,-"}, {"layers.*.attn.k", "x,-,-"}, {"layers.*.attn.v", "x,-,-"},
                                {"layers.*.attn.o", "-,x.y,-"}, {"layers.*.mlp.gate", "x.y,-"}, {"layers.*.mlp.up", "x.y,-"}, {"layers.*.mlp.down", "-,x.y"},
                                {"embed.tokens", "x.y,-"}, {"head", "y.x,-"}}};
    model_case g1 = gpt2, l1 = llama, e1 = llama_even, wide = llama_even;
    g1.sequences = l1.sequences = e1.sequences = 1;
    expect_same_model(&g1, &two);
    expect_same_model(&l1, &four);
    expect_same_model(&l1, &empty);
    expect_same_model(&g1, &dealt);
    expect_same_model(&wide, &both);
    expect_same_model(&e1, &heads);
    for (int ranks = 2; ranks < 6; ranks++)
        for (int64_t tokens = 11; tokens < 45; tokens += 11)
            for (int64_t window = 0; window < 30; window += 7) expect_all_pairs("ring", ranks, tokens, window), expect_all_pairs("dealt", ranks, tokens, window);
    hd_graph *g = build_model(&l1, 2);
    partition(g, &four);
    assert_int_equal(count_nodes(g, "attention", HD_FORWARD), 2 * 4);
    assert_int_equal(count_nodes(g, "attention_merge", HD_FORWARD), 2 * 3);
    assert_int_equal(count_nodes(g, "permute", HD_FORWARD), 2 * 2 * 3 + 2 * 3);  /* keys and values of each layer; positions and segments once */
    assert_int_equal(count_nodes(g, "permute", HD_BACKWARD), 2 * (2 * 3 + 2 * 3)); /* keys and values again, and their gradients home */
    assert_int_equal(count_nodes(g, "all_gather", HD_FORWARD) + count_nodes(g, "all_gather", HD_BACKWARD), 0);
    hd_graph_free(g);
}

/* More ranks than key heads: the axis that is left splits the query heads that share one. */
static void test_more_ranks_than_key_heads(void **state)
{
    (void)state;
    const layout_case c = {"tp 2 x 2", {2, {FACTORED}},
                           {{"layers.*.attn.q", "x.y,-,-"}, {"layers.*.attn.k", "x,-,-"}, {"layers.*.attn.v", "x,-,-"}, {"layers.*.attn.o", "-,x.y,-"},
                            {"layers.*.mlp.gate", "x.y,-"}, {"layers.*.mlp.up", "x.y,-"}, {"layers.*.mlp.down", "-,x.y"}, {"embed.tokens", "x.y,-"},
                            {"head", "y.x,-"}}};
    hd_graph *g = build_model(&llama_even, 2);
    partition(g, &c);
    for (size_t i = 0; i < g->n_nodes; i++)
        if (!strcmp(g->nodes[i]->op->name, "attention")) assert_int_equal(g->nodes[i]->n_splits, 2);
    hd_graph_free(g);
    expect_same_model(&llama_even, &c);
}

static void test_sequence_and_context_parallel(void **state)
{
    (void)state;
    const layout_case sp = {"sp 2", {1, {TP(2)}}, {GPT2_TP_PINS, {"layers.*.norm1", "tp,-"}, {"layers.*.norm2", "tp,-"}, {"norm", "tp,-"}}};
    const layout_case sp_llama = {"sp 3", {1, {TP(3)}}, {LLAMA_TP_PINS("tp*2,-,-"), {"layers.*.norm1", "tp,-"}, {"layers.*.norm2", "tp,-"}}};
    const layout_case cp = {"cp 2", {1, {{"cp", 2, HD_AXIS_DATA}}}, {ROWS("cp"), {"samples", "cp"}}};
    const layout_case both = {"dp 4 x cp 2", {2, {DP(4), {"cp", 2, HD_AXIS_DATA}}}, {ROWS("dp*6.cp")}};
    const layout_case uneven = {"dp 2 x cp 4", {2, {DP(2), {"cp", 4, HD_AXIS_DATA}}}, {ROWS("dp*6.cp*5")}};
    expect_same_model(&gpt2, &sp);
    expect_same_model(&llama, &sp_llama);
    expect_same_model(&gpt2, &cp);
    expect_same_model(&llama_even, &both);
    expect_same_model(&llama, &uneven);
}

static void test_zero(void **state)
{
    (void)state;
    const layout_case one = {"zero 1", {1, {DP(2)}}, {ROWS("dp*6"), {"exp_avg*.attn.q", "dp,-,-"}, {"exp_avg*.attn.o", "dp,-,-"}, {"exp_avg*.mlp.up", "-,dp"}, {"exp_avg*.head", "dp,-"}}};
    const layout_case two = {"zero 2", {1, {DP(3)}},
                             {ROWS("dp*6"), {"exp_avg*.attn.q", "dp,-,-"}, {"exp_avg*.attn.o", "dp,-,-"}, {"grad.*.attn.q", "dp,-,-"}, {"exp_avg*.*.mlp.up", "-,dp"}, {"grad.*.mlp.up", "-,dp"}}};
    const layout_case three = {"zero 3 x tp", {2, {DP(2), TP(2)}},
                               {ROWS("dp*6"), LLAMA_TP_PINS("tp.dp,-,-"), {"layers.*.attn.k", "tp,dp,-"}, {"layers.*.mlp.up", "tp,dp"},
                                {"layers.*.gamma", "dp"}, {"embed.tokens", "tp.dp,-"}, {"head", "dp,-"}}};
    expect_same_model(&llama_even, &one);
    expect_same_model(&llama_even, &two);
    expect_same_model(&llama_even, &three);
    expect_same_model(&llama, &three);
}

/* Sums of bf16 addends are made in f32, and rounded once. */
static void test_bf16(void **state)
{
    (void)state;
    const layout_case c = {"dp 2 x tp 2", {2, {DP(2), TP(2)}}, {ROWS("dp*6"), LLAMA_TP_PINS("tp,-,-"), {"head", "tp,-"}}};
    model_case m = llama_even;
    m.compute = HD_BF16;
    hd_graph *g = build_model(&m, 2);
    partition(g, &c);
    for (size_t i = 0; i < g->n_nodes; i++) {
        const hd_node *n = g->nodes[i];
        for (int k = 0; k < n->n_out; k++) {
            const hd_value_info *v = &g->values[n->out[k]];
            if (v->layout->partial && v->type.dtype != HD_F32) fail_msg("%s is partial in %s", v->path, hd_dtype_name(v->type.dtype));
        }
    }
    hd_graph_free(g);
    tolerance = 3e-2;
    expect_same_model(&m, &c);
    tolerance = 1e-5;
}

/* More axes than are tried jointly. */
static void test_four_axes(void **state)
{
    (void)state;
    const layout_case c = {"dp 2 x cp 2 x tp 2 x 2", {4, {DP(2), {"cp", 2, HD_AXIS_DATA}, FACTORED}},
                           {ROWS("dp*6.cp"), {"layers.*.attn.q", "x.y,-,-"}, {"layers.*.attn.k", "x,-,-"}, {"layers.*.attn.v", "x,-,-"},
                            {"layers.*.attn.o", "-,x.y,-"}, {"layers.*.mlp.gate", "x.y,-"}, {"layers.*.mlp.up", "x.y,-"}, {"layers.*.mlp.down", "-,x.y"},
                            {"embed.tokens", "x.y,-"}, {"exp_avg*.mlp.up", "x.y,dp"}}};
    expect_same_model(&llama_even, &c);
}

static void test_other_networks(void **state)
{
    (void)state;
    const layout_case mlp = {"dp 3 x tp 2", {2, {DP(3), TP(2)}},
                             {{"image", "dp,-"}, {"label", "dp"}, {"samples", "dp"}, {"positions", "dp"}, {"fc1.w", "tp,-"}, {"fc1.b", "tp"}, {"fc2.w", "-,tp"},
                              {"logits.w", "tp,-"}}};
    const layout_case conv = {"dp 2 x tp 2", {2, {DP(2), TP(2)}}, {{"image", "dp,-,-,-"}, {"label", "dp"}, {"stage*.a.w", "tp,-,-,-"}, {"stage*.b.w", "-,tp,-,-"}}};
    const layout_case images = {"dp 3", {1, {DP(3)}}, {{"image", "dp,-,-,-"}, {"label", "dp"}}};
    expect_same(build_file("convnet.json", 4), build_file("convnet.json", 4), &conv, "convnet");
    expect_same(build_file("mlp.json", 7), build_file("mlp.json", 7), &mlp, "mlp");
    expect_same(build_file("convnet.json", 5), build_file("convnet.json", 5), &images, "convnet");
}

/* Samples in uneven and in empty pieces, channels cut as well, rows of the images cut: everything as on one rank, running averages too. */
static void test_batch_norm(void **state)
{
    (void)state;
    const layout_case empty = {"dp 4 of 5 samples in threes", {1, {DP(4)}}, {{"image", "dp*3,-,-,-"}, {"label", "dp*3"}}};
    const layout_case both = {"dp 3 x tp 2 of channels", {2, {DP(3), TP(2)}}, {{"image", "dp,-,-,-"}, {"label", "dp"}, {"stage*.w", "tp,-,-,-"}}};
    const layout_case two = {"samples over two axes", {2, {DP(2), {"cp", 2, HD_AXIS_DATA}}}, {{"image", "dp*3.cp,-,-,-"}, {"label", "dp*3.cp"}}};
    const layout_case rows = {"rows of images", {1, {TP(3)}}, {{"stem.conv", "-,-,tp,-"}, {"stage2.a.conv", "-,tp,-,-"}, {"stage3.b.conv", "-,-,-,tp"}}};
    const layout_case zero = {"zero 3", {1, {DP(3)}}, {{"image", "dp,-,-,-"}, {"label", "dp"}, {"stage*.gamma", "dp"}, {"exp_avg*.beta", "dp"}, {"grad.*.gamma", "dp"}}};
    const layout_case *const cases[] = {&empty, &both, &two, &rows, &zero};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) expect_same(build_file("convnet.json", 5), build_file("convnet.json", 5), cases[i], "convnet");
}

/* ---- any pins: never the best choice, always the right result ---- */

static void random_layout(hd_rng *r, const hd_mesh *mesh, const hd_shape *s, bool partial, char *out, size_t size)
{
    hd_layout l = {0};
    for (int a = 0; a < mesh->n; a++) {
        int d = (int)hd_rng_below(r, (uint64_t)s->rank + 2);
        if (d > s->rank && partial) l.partial |= 1u << a;
        if (d >= s->rank) continue;
        hd_dim_layout *at = &l.dim[d];
        at->axis[at->n] = (int8_t)a;
        at->unit[at->n++] = 1 + (int64_t)hd_rng_below(r, 5);
        if (at->n == 2 && hd_rng_below(r, 2)) {
            at->axis[1] = at->axis[0];
            at->axis[0] = (int8_t)a;
        }
    }
    hd_str text = HD_STR_INIT;
    hd_layout_print(mesh, &l, s->rank, &text);
    snprintf(out, size, "%s", text.data);
    hd_str_free(&text);
}

static void random_case(const hd_graph *g, uint64_t seed, layout_case *c, char *name, size_t size)
{
    static const char *const axes[] = {"a", "b", "c", "d"};
    hd_rng r = hd_rng_new(seed);
    *c = (layout_case){.name = name, .mesh.n = 1 + (int)hd_rng_below(&r, 4)};
    for (int a = 0; a < c->mesh.n; a++) {
        c->mesh.axis[a] = (hd_mesh_axis){.size = c->mesh.n > 2 ? 2 : 2 + (int)hd_rng_below(&r, 2), .role = hd_rng_below(&r, 2) ? HD_AXIS_DATA : HD_AXIS_MODEL};
        snprintf(c->mesh.axis[a].name, sizeof c->mesh.axis[a].name, "%s", axes[a]);
    }
    for (int k = 0; k < 12;) {
        hd_value v = (hd_value)hd_rng_below(&r, g->n_values);
        const hd_value_info *i = &g->values[v];
        if (i->kind == HD_RESULT && (i->node < 0 || (size_t)i->node >= g->n_nodes || g->nodes[i->node]->out[i->result] != v)) continue;
        if (strlen(i->path) >= sizeof c->pins[k].pattern) continue;
        snprintf(c->pins[k].pattern, sizeof c->pins[k].pattern, "%s", i->path);
        bool partial = i->kind == HD_RESULT && i->type.dtype == HD_F32;
        random_layout(&r, &c->mesh, &i->type.shape, partial, c->pins[k].layout, sizeof c->pins[k].layout);
        k++;
    }
    for (int k = 0; k < 12 && seed > 24; k++) { /* how nodes leave them, as far as they can */
        char layout[sizeof c->pins[k].layout];
        snprintf(layout, sizeof layout, "=%.*s", (int)sizeof layout - 2, c->pins[k].layout);
        if (hd_info(g, hd_graph_find(g, c->pins[k].pattern))->kind == HD_RESULT && hd_rng_below(&r, 2)) memcpy(c->pins[k].layout, layout, sizeof layout);
    }
    size_t at = (size_t)snprintf(name, size, "seed %llu:", (unsigned long long)seed);
    for (int k = 0; k < 12 && at < size; k++) at += (size_t)snprintf(name + at, size - at, " %s = \"%s\"", c->pins[k].pattern, c->pins[k].layout);
}

static void test_random_pins(void **state)
{
    (void)state;
    const char *rounds = getenv("HEDDLE_TEST_ROUNDS");
    static const model_case *const models[] = {&gpt2, &llama, &llama_even, &qwen_tied};
    for (uint64_t seed = 1; seed <= (rounds ? strtoull(rounds, NULL, 10) : 36); seed++) {
        model_case narrow = llama_even;
        narrow.compute = HD_BF16;
        const model_case *m = seed % 5 ? models[seed % 4] : &narrow;
        tolerance = seed % 5 ? 1e-5 : 5e-2;
        char name[1600];
        layout_case c;
        bool images = seed % 24 == 9;
        hd_graph *plain = images ? build_file("convnet.json", 3) : build_model(m, 1);
        if (images) tolerance = 1e-4; /* relu's kinks and 1 / sqrt(var) of few elements */
        random_case(plain, seed, &c, name, sizeof name);
        expect_same(plain, images ? build_file("convnet.json", 3) : build_model(m, 1), &c, images ? "convnet" : m->name);
    }
    tolerance = 1e-5;
}

/* A pin says how its node leaves a value, whatever that sends; or, of what it cannot leave so, nothing. */
static void test_said_ways(void **state)
{
    (void)state;
    static const layout_case said = {"said ways", {1, {TP(2)}}, {{"layers.*.mlp.out", "=-,- +tp"}, {"layers.*.mlp.hidden", "=tp,-"}, {"layers.*.norm1", "=-,tp"}}};
    static const struct { const char *path, *layout; } want[] = {{"layers.0.mlp.out", "-,- +tp"}, {"layers.1.mlp.out", "-,- +tp"}, {"layers.0.mlp.hidden", "tp,-"}};
    hd_graph *g = build_model(&gpt2_even, 2);
    partition(g, &said);
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        const hd_value_info *v = hd_info(g, hd_graph_find(g, want[i].path));
        hd_str text = HD_STR_INIT;
        hd_layout_print(&g->mesh, v->layout, v->whole.rank, &text);
        assert_string_equal(text.data, want[i].layout);
        hd_str_free(&text);
    }
    hd_graph_free(g);
    expect_same_model(&gpt2_even, &said);
}

/* ---- the collectives that there are ---- */

/* Collectives whose result has rank 2 and T whole rows. */
static int count_rows(const hd_graph *g, const char *op, int64_t rows)
{
    int n = 0;
    for (size_t i = 0; i < g->n_nodes; i++) {
        const hd_value_info *v = g->nodes[i]->n_out ? &g->values[g->nodes[i]->out[0]] : NULL;
        n += v && !strcmp(g->nodes[i]->op->name, op) && v->whole.rank >= 2 && v->whole.dim[0] == rows;
    }
    return n;
}

static const char *const collectives[] = {"all_reduce", "all_gather", "reduce_scatter", "all_to_all"};

/* Of activations, in one more layer. */
static void expect_per_layer(const model_case *m, const layout_case *c, const int *want)
{
    hd_graph *two = build_model(m, 2), *three = build_model(m, 3);
    partition(two, c);
    partition(three, c);
    for (int i = 0; i < 4; i++) {
        int64_t rows = SEQUENCE * m->sequences;
        int got = count_rows(three, collectives[i], rows) - count_rows(two, collectives[i], rows);
        if (got != want[i]) fail_msg("%s over %s: %d %s in a layer, not %d", m->name, c->name, got, collectives[i], want[i]);
    }
    hd_graph_free(two);
    hd_graph_free(three);
}

static void test_activations_moved_in_a_layer(void **state)
{
    (void)state;
    const layout_case tp = {"tp 2", {1, {TP(2)}}, {GPT2_TP_PINS}}, dp = {"dp 2", {1, {DP(2)}}, {ROWS("dp*6"), {"samples", "dp*6"}}};
    const layout_case tp_llama = {"tp 2", {1, {TP(2)}}, {LLAMA_TP_PINS("tp,-,-"), {"head", "tp,-"}}};
    const layout_case sp = {"sp 2", {1, {TP(2)}}, {GPT2_TP_PINS, {"layers.*.norm1", "tp,-"}, {"layers.*.norm2", "tp,-"}, {"norm", "tp,-"}}};
    const layout_case sp_llama = {"sp 2", {1, {TP(2)}}, {LLAMA_TP_PINS("tp,-,-"), {"layers.*.norm1", "tp,-"}, {"layers.*.norm2", "tp,-"}, {"norm", "tp,-"}, {"head", "tp,-"}}};
    expect_per_layer(&gpt2_even, &tp, (int[]){4, 0, 0, 0});
    expect_per_layer(&llama_even, &tp_llama, (int[]){4, 0, 0, 0});
    /* backward gathers again what the products' weights need */
    expect_per_layer(&gpt2_even, &sp, (int[]){0, 6, 4, 0});
    expect_per_layer(&llama_even, &sp_llama, (int[]){0, 6, 4, 0});
    expect_per_layer(&gpt2_even, &dp, (int[]){0, 0, 0, 0});
    model_case narrow = llama_even; /* sums are f32, what is gathered is not: reducing to pieces and gathering those moves less */
    narrow.compute = HD_BF16;
    expect_per_layer(&narrow, &tp_llama, (int[]){0, 6, 4, 0});
}

/* The collectives that read v, or what such collectives made of it. */
static int count_from(const hd_graph *g, hd_value v, const char *op)
{
    int n = 0;
    for (size_t i = 0; i < g->n_nodes; i++) {
        const hd_node *node = g->nodes[i];
        if (!node->op->is_comm || node->in[0] != v) continue;
        n += !strcmp(node->op->name, op) + count_from(g, node->out[0], op);
    }
    return n;
}

/* How the gradient of a parameter and the parameter itself travel. */
static void expect_traffic(const model_case *m, const layout_case *c, const char *param, const char *of, const int *want)
{
    char path[100];
    hd_graph *g = build_model(m, 2);
    partition(g, c);
    snprintf(path, sizeof path, "%s%s", of, param);
    hd_value v = hd_graph_find(g, path);
    assert_true(v != HD_NONE);
    for (int i = 0; i < 4; i++) {
        int got = count_from(g, v, collectives[i]);
        if (got != want[i]) fail_msg("%s over %s: %d %s of %s, not %d", m->name, c->name, got, collectives[i], path, want[i]);
    }
    hd_graph_free(g);
}

static void test_parameters_and_gradients_moved(void **state)
{
    (void)state;
    const char *q = "layers.0.attn.q";
    const layout_case dp = {"dp 2", {1, {DP(2)}}, {ROWS("dp*6")}};
    const layout_case one = {"zero 1", {1, {DP(2)}}, {ROWS("dp*6"), {"exp_avg*.attn.q", "dp,-,-"}}};
    const layout_case two = {"zero 2", {1, {DP(2)}}, {ROWS("dp*6"), {"exp_avg*.attn.q", "dp,-,-"}, {"grad.*.attn.q", "dp,-,-"}}};
    const layout_case three = {"zero 3", {1, {DP(2)}}, {ROWS("dp*6"), {"layers.*.attn.q", "dp,-,-"}}};
    expect_traffic(&llama_even, &dp, q, "grad.", (int[]){1, 0, 0, 0});
    expect_traffic(&llama_even, &dp, q, "", (int[]){0, 0, 0, 0});
    expect_traffic(&llama_even, &one, q, "grad.", (int[]){0, 0, 1, 0});
    expect_traffic(&llama_even, &one, q, "update.", (int[]){0, 1, 0, 0});
    expect_traffic(&llama_even, &two, q, "grad.", (int[]){0, 0, 0, 0}); /* in each micro-batch, before it is summed */
    expect_traffic(&llama_even, &two, q, "update.", (int[]){0, 1, 0, 0});
    expect_traffic(&llama_even, &three, q, "", (int[]){0, 2, 0, 0}); /* forward, backward */
    expect_traffic(&llama_even, &three, q, "grad.", (int[]){0, 0, 1, 0});
    expect_traffic(&llama_even, &three, q, "update.", (int[]){0, 0, 0, 0});
}

static int count_ops(const hd_graph *g, hd_phase phase, const char *op, int rank)
{
    int n = 0;
    for (size_t i = 0; i < g->n_nodes; i++)
        n += g->nodes[i]->phase == phase && !strcmp(g->nodes[i]->op->name, op) && g->values[g->nodes[i]->out[0]].whole.rank == rank;
    return n;
}

/* Two sums of a number for each channel, forward and backward; no image. Where a sum of two is differentiated, beta's gradient serves both. */
static void test_moved_for_batch_norm(void **state)
{
    (void)state;
    enum { NORMS = 9, SHARED = 2 };
    const layout_case c = {"dp 2", {1, {DP(2)}}, {{"image", "dp,-,-,-"}, {"label", "dp"}}};
    hd_graph *g = build_file("convnet.json", 6);
    partition(g, &c);
    assert_int_equal(count_ops(g, HD_FORWARD, "batch_norm_finish", 4), NORMS);
    assert_int_equal(count_ops(g, HD_FORWARD, "all_reduce", 1), 2 * NORMS);
    assert_int_equal(count_ops(g, HD_BACKWARD, "all_reduce", 1), 2 * NORMS - SHARED);
    for (int i = 0; i < 4; i++)
        for (int phase = HD_FORWARD; phase <= HD_BACKWARD; phase++) assert_int_equal(count_ops(g, (hd_phase)phase, collectives[i], 4), 0);
    hd_graph_free(g);
}

/* Ranks that share a key head divide the queries' work in backward as in forward, although bf16 operands would be gathered for less than their sums take;
 * keys' gradients in pieces join the others' addends where they lie. */
static void test_work_divided_in_backward(void **state)
{
    (void)state;
    const layout_case c = {"tp 2 x 2, sp", {2, {FACTORED}},
                           {{"layers.*.attn.q", "x*2.y,-,-"}, {"layers.*.attn.k", "x,-,-"}, {"layers.*.attn.v", "x,-,-"}, {"layers.*.attn.o", "-,x*2.y,-"},
                            {"layers.*.mlp.gate", "x.y,-"}, {"layers.*.mlp.up", "x.y,-"}, {"layers.*.mlp.down", "-,x.y"}, {"embed.tokens", "x.y,-"},
                            {"layers.*.norm1", "x.y,-"}, {"layers.*.norm2", "x.y,-"}, {"norm", "x.y,-"}, {"head", "x.y,-"},
                            {"layers.*.attn.out", "x.y,-"}, {"layers.*.mlp.out", "x.y,-"}, {"grad.layers.*.attn.query.add", "x.y,-"}}};
    model_case m = llama_even;
    m.compute = HD_BF16;
    m.heads = 4;
    hd_graph *g = build_model(&m, 2);
    partition(g, &c);
    for (size_t i = 0; i < g->n_nodes; i++) {
        const hd_node *n = g->nodes[i];
        if (strcmp(n->op->name, "attention_grad")) continue;
        assert_int_equal(4 * hd_shape_count(&g->values[n->out[0]].type.shape), hd_shape_count(&g->values[n->out[0]].whole));
    }
    assert_int_equal(count_rows(g, "all_reduce", SEQUENCE * m.sequences), 0);
    assert_int_equal(count_rows(g, "place", SEQUENCE * m.sequences), 2);
    hd_graph_free(g);
    tolerance = 3e-2;
    expect_same_model(&m, &c);
    tolerance = 1e-5;
}

static void test_bad_pins(void **state)
{
    (void)state;
    const layout_case bad[] = {
        {"no such value", {1, {DP(2)}}, {{"layers.*.attn.nothing", "dp"}}},
        {"no such axis", {1, {DP(2)}}, {{"layers.*.attn.q", "tp,-,-"}}},
        {"wrong rank", {1, {DP(2)}}, {{"layers.*.attn.q", "dp,-"}}},
        {"pipeline", {1, {{"pp", 2, HD_AXIS_PIPELINE}}}, {{"layers.*.attn.q", "pp,-,-"}}},
        {"partial parameter", {1, {DP(2)}}, {{"layers.*.attn.q", "-,-,- +dp"}}},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        hd_graph *g = build_model(&llama, 1);
        assert_true(hd_pass_partition(g, &bad[i].mesh, bad[i].pins, count_pins(&bad[i]), false) < 0);
        assert_true(g->err.message[0]);
        hd_graph_free(g);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_pinned),
        cmocka_unit_test(test_data_parallel),
        cmocka_unit_test(test_tensor_parallel),
        cmocka_unit_test(test_data_and_tensor_parallel),
        cmocka_unit_test(test_more_ranks_than_key_heads),
        cmocka_unit_test(test_sequence_and_context_parallel), cmocka_unit_test(test_ring),
        cmocka_unit_test(test_zero),
        cmocka_unit_test(test_other_networks),
        cmocka_unit_test(test_batch_norm),
        cmocka_unit_test(test_moved_for_batch_norm),
        cmocka_unit_test(test_work_divided_in_backward),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_four_axes),
        cmocka_unit_test(test_random_pins), cmocka_unit_test(test_said_ways),
        cmocka_unit_test(test_activations_moved_in_a_layer),
        cmocka_unit_test(test_parameters_and_gradients_moved),
        cmocka_unit_test(test_bad_pins),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
