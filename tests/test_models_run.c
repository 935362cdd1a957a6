/* Language models at work: the K/V cache against full recomputation, and training in bf16. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "../checks/src/model_run.h"
#include "graph/op.h"
#include "train/step.h"

#define DATA TEST_SOURCE_DIR "/tests/data/models/"
enum { A = 19, B = 12, T = A + B, BLOCK = 8, CONTEXT = 24 }; /* two sequences */

static void need(int rc, const hd_error *err)
{
    if (rc) fail_msg("%s", err->message);
}

static void open_model(model_run *m, hd_lm_config *c, const char *name, hd_lm_options o)
{
    char dir[1024];
    hd_error e = { 0 };
    snprintf(dir, sizeof dir, DATA "%s", name);
    need(hd_lm_config_load(c, dir, &e), &e);
    need(model_run_open(m, hd_lm_graph(c, &o, &e), "cpu", 2, 1, &e), &e);
    need(hd_lm_weights_load(m->store, c, dir, &e), &e);
}

/* Token i of the call's row, and its place in its sequence. */
static double token_at(const hd_lm_config *c, int i) { return (double)((i * 31 + 7) % c->vocab); }
static double position_at(int i) { return i < A ? i : i - A; }
static double segment_at(int i) { return i < A ? 0 : 1; }

static void full_logits(const char *name, float *out)
{
    model_run m;
    hd_lm_config c;
    hd_error e = { 0 };
    hd_tensor logits;
    double x[T], pos[T], seg[T], one = 1;
    open_model(&m, &c, name, (hd_lm_options){ .mode = HD_LM_EVAL, .tokens = T, .logits = true, .compute = HD_F32, .param = HD_F32 });
    for (int i = 0; i < T; i++) x[i] = token_at(&c, i), pos[i] = position_at(i), seg[i] = segment_at(i);
    need(model_run_set(&m, "tokens", x, T, &e), &e);
    need(model_run_set(&m, "positions", pos, T, &e), &e);
    need(model_run_set(&m, "segments", seg, T, &e), &e);
    need(model_run_set(&m, "targets", seg, T, &e), &e);
    need(model_run_set(&m, "inv_divisor", &one, 1, &e), &e);
    need(hd_exec_step(m.exec, NULL, &e), &e);
    need(hd_exec_output(m.exec, "logits", &logits, &e), &e);
    memcpy(out, logits.data, hd_tensor_bytes(&logits));
    model_run_close(&m);
}

static int64_t *binding(const hd_program *p, hd_call *call, const char *symbol)
{
    for (int i = 0; i < p->n_symbols; i++)
        if (!strcmp(p->symbols[i].name, symbol)) return &call->binding[i];
    fail_msg("no symbol %s", symbol);
    return NULL;
}

static int32_t *input(model_run *m, const char *name)
{
    hd_tensor t;
    hd_error e = { 0 };
    need(hd_exec_input(m->exec, name, &t, &e), &e);
    assert_int_equal(t.dtype, HD_I32);
    return t.data;
}

/* Block of a sequence's positions: the two sequences' blocks take turns. */
static int block_of(int sequence, int position) { return 2 * (position / BLOCK) + sequence; }

/* Runs tokens begin .. end-1 of one sequence in one call; logits of all of them (at most 3), or of the last. */
static void decode(model_run *m, const hd_lm_config *c, int begin, int end, float *logits)
{
    hd_error e = { 0 };
    const hd_program *p = hd_exec_program(m->exec);
    hd_call call = hd_program_call(p, hd_program_segment(p, HD_SEGMENT_FORWARD));
    int n = end - begin, rows = n <= 3 ? n : 1;
    for (int i = 0; i < n; i++) {
        int position = (int)position_at(begin + i), sequence = (int)segment_at(begin + i);
        input(m, "tokens")[i] = (int32_t)token_at(c, begin + i);
        input(m, "positions")[i] = position;
        input(m, "sequences")[i] = sequence;
        input(m, "slots")[i] = block_of(sequence, position) * BLOCK + position % BLOCK;
    }
    for (int s = 0; s < 2; s++)
        for (int b = 0; b < CONTEXT / BLOCK; b++) input(m, "tables")[s * (CONTEXT / BLOCK) + b] = block_of(s, b * BLOCK);
    for (int i = 0; i < rows; i++) input(m, "rows")[i] = n - rows + i;
    *binding(p, &call, "tokens") = n;
    *binding(p, &call, "rows") = rows;
    need(hd_exec_call(m->exec, &call, &e), &e);
    hd_tensor t;
    need(hd_exec_output(m->exec, "logits", &t, &e), &e);
    assert_int_equal(t.dim[0], rows);
    memcpy(logits + (end - rows) * c->vocab, t.data, hd_tensor_bytes(&t));
}

static void expect_cached_equals_full(const char *name)
{
    static float full[T * 128], cached[T * 128];
    model_run m;
    hd_lm_config c;
    full_logits(name, full);
    memset(cached, 0xff, sizeof cached);
    hd_lm_options o = { .mode = HD_LM_SERVE, .tokens = 16, .context = CONTEXT, .rows = 3, .compute = HD_F32, .param = HD_F32, .kv = HD_F32, .block = BLOCK,
                        .blocks = 2 * CONTEXT / BLOCK, .sequences = 2 };
    open_model(&m, &c, name, o);
    /* Prefill and single tokens of two sequences, interleaved. */
    static const int calls[][2] = { { 0, 9 }, { A, A + 4 }, { 9, 10 }, { A + 4, A + 5 }, { 10, 13 }, { A + 5, T }, { 13, 14 }, { 14, A } };
    static const int known[] = { 8, 9, 10, 11, 12, 13, A - 1, A + 3, A + 4, T - 1 }; /* rows whose logits were asked for */
    const hd_program *p = hd_exec_program(m.exec);
    hd_error e = { 0 };
    if (hd_program_segment(p, HD_SEGMENT_PREPARE) >= 0) {
        hd_call prepare = hd_program_call(p, hd_program_segment(p, HD_SEGMENT_PREPARE));
        need(hd_exec_call(m.exec, &prepare, &e), &e);
    }
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) decode(&m, &c, calls[i][0], calls[i][1], cached);
    double most = 0, worst = 0;
    for (int i = 0; i < T * c.vocab; i++) most = fmax(most, fabs((double)full[i]));
    for (size_t k = 0; k < sizeof known / sizeof *known; k++)
        for (int v = 0; v < c.vocab; v++) {
            double d = fabs((double)cached[known[k] * c.vocab + v] - (double)full[known[k] * c.vocab + v]);
            if (!(d <= worst)) worst = isfinite(d) ? d : INFINITY;
        }
    if (!(worst <= 1e-5 * most)) fail_msg("%s: cached logits differ by %g of %g", name, worst, most);
    model_run_close(&m);
}

static void test_cache(void **state)
{
    (void)state;
    expect_cached_equals_full("logits/gpt2");
    expect_cached_equals_full("logits/llama3");
    expect_cached_equals_full("logits/mistral-window");
    expect_cached_equals_full("logits/qwen2");
    expect_cached_equals_full("logits/qwen3");
    expect_cached_equals_full("logits/gemma3");
    expect_cached_equals_full("logits/gemma2");
    expect_cached_equals_full("logits/phi3");
    expect_cached_equals_full("logits/phi3-long");
    expect_cached_equals_full("logits/phi3-partial");
}

/* ---- training ---- */

enum { ROWS = 3, LENGTH = 16, STEPS = 15 };

static double train(const char *name, hd_dtype compute, double dropout)
{
    char dir[1024];
    hd_error e = { 0 };
    hd_lm_config c;
    model_run m;
    snprintf(dir, sizeof dir, DATA "%s", name);
    need(hd_lm_config_load(&c, dir, &e), &e);
    c.resid_dropout = c.embd_dropout = c.family == HD_FAMILY_GPT2 ? dropout : 0;
    hd_lm_options o = { .mode = HD_LM_TRAIN, .tokens = ROWS * LENGTH, .sequence = LENGTH, .compute = compute, .param = HD_F32 };
    hd_step_options so = { .optimizer = HD_ADAMW, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-6, .weight_decay = 0.1, .clip = 1 };
    hd_graph *g = hd_lm_graph(&c, &o, &e);
    if (!g || hd_step_append(g, &so)) fail_msg("%s", g ? g->err.message : e.message);
    need(model_run_open(&m, g, "cpu", 2, 1, &e), &e);
    need(hd_lm_weights_load(m.store, &c, dir, &e), &e);
    double x[ROWS * LENGTH], y[ROWS * LENGTH], pos[ROWS * LENGTH], seg[ROWS * LENGTH], loss = NAN;
    for (int step = 0; step < STEPS; step++) {
        for (int i = 0; i < ROWS * LENGTH; i++) {
            int at = step * 7 + i / LENGTH * 3 + i % LENGTH;
            x[i] = at % 13 * 4, y[i] = (at + 1) % 13 * 4, pos[i] = i % LENGTH, seg[i] = i / LENGTH;
        }
        double lr = 5e-3, number = step + 1, inv = 1.0 / (ROWS * LENGTH), key[2] = { 1, number };
        need(model_run_set(&m, "tokens", x, ROWS * LENGTH, &e), &e);
        need(model_run_set(&m, "targets", y, ROWS * LENGTH, &e), &e);
        need(model_run_set(&m, "positions", pos, ROWS * LENGTH, &e), &e);
        need(model_run_set(&m, "segments", seg, ROWS * LENGTH, &e), &e);
        need(model_run_set(&m, "lr", &lr, 1, &e), &e);
        need(model_run_set(&m, "step", &number, 1, &e), &e);
        need(model_run_set(&m, "inv_divisor", &inv, 1, &e), &e);
        if (dropout > 0) {
            need(model_run_set(&m, "key", key, 2, &e), &e);
            need(model_run_set(&m, "samples", seg, ROWS * LENGTH, &e), &e);
        }
        need(hd_exec_step(m.exec, NULL, &e), &e);
        hd_tensor t;
        need(hd_exec_output(m.exec, "loss", &t, &e), &e);
        loss = hd_load_f64(t.data, t.dtype, 0);
    }
    model_run_close(&m);
    return loss;
}

static void test_training(void **state)
{
    (void)state;
    static const char *const names[] = { "curve/gpt2", "curve/llama" };
    for (int i = 0; i < 2; i++) {
        double f32 = train(names[i], HD_F32, 0), bf16 = train(names[i], HD_BF16, 0);
        if (!(f32 < 2.5)) fail_msg("%s: f32 loss %g after training", names[i], f32); /* 4.1 at the start */
        if (!(fabs(f32 - bf16) <= 0.05)) fail_msg("%s: f32 loss %g, bf16 loss %g", names[i], f32, bf16);
    }
}

/* Dropout changes the course and still lets the model learn. */
static void test_dropout(void **state)
{
    (void)state;
    double none = train("curve/gpt2", HD_F32, 0), some = train("curve/gpt2", HD_F32, 0.1);
    if (!(some > none + 1e-3 && some < none + 1.2)) fail_msg("loss %g without dropout, %g with", none, some);
}

/* The training graph's dropout: embeddings, attention and feed-forward of each layer, in both families; none in evaluation. */
static void test_dropout_is_in_training_alone(void **state)
{
    static const char *const models[] = { "gpt2", "llama-grouped" };
    (void)state;
    for (size_t i = 0; i < 2; i++)
        for (int mode = HD_LM_TRAIN; mode <= HD_LM_EVAL; mode++) {
            char dir[1024];
            hd_lm_config c;
            hd_error e = { 0 };
            snprintf(dir, sizeof dir, DATA "logits/%s", models[i]);
            need(hd_lm_config_load(&c, dir, &e), &e);
            c.embd_dropout = c.resid_dropout = 0.1;
            hd_lm_options o = { .mode = (hd_lm_mode)mode, .tokens = T, .compute = HD_F32, .param = HD_F32 };
            hd_graph *g = hd_lm_graph(&c, &o, &e);
            need(e.code, &e);
            int64_t n = 0;
            for (size_t k = 0; k < g->n_nodes; k++) n += !strcmp(g->nodes[k]->op->name, "dropout");
            assert_int_equal(n, mode == HD_LM_TRAIN ? 1 + 2 * c.layers : 0);
            hd_graph_free(g);
        }
}

/* ---- attention written out, and the residual stream in 16 bits ---- */

typedef struct form_case { const char *model; hd_lm_options o; double attn_dropout; const char *backend; } form_case;

/* Loss and the parameters after one step of SGD, which shows the gradients. Returns how many elements. */
static int64_t one_step(const form_case *f, double *loss, float *out, int64_t most)
{
    char dir[1024];
    hd_error e = { 0 };
    hd_lm_config c;
    model_run m;
    snprintf(dir, sizeof dir, DATA "%s", f->model);
    need(hd_lm_config_load(&c, dir, &e), &e);
    c.resid_dropout = c.embd_dropout = 0, c.attn_dropout = f->attn_dropout;
    hd_lm_options o = f->o;
    o.tokens = ROWS * LENGTH, o.sequence = LENGTH, o.param = HD_F32;
    hd_step_options so = { .optimizer = HD_SGD };
    hd_graph *g = hd_lm_graph(&c, &o, &e);
    if (!g || hd_step_append(g, &so)) fail_msg("%s", g ? g->err.message : e.message);
    need(model_run_open(&m, g, f->backend, 2, 1, &e), &e);
    need(hd_lm_weights_load(m.store, &c, dir, &e), &e);
    double x[ROWS * LENGTH], y[ROWS * LENGTH], pos[ROWS * LENGTH], seg[ROWS * LENGTH], lr = 1, number = 1, inv = 1.0 / (ROWS * LENGTH), key[2] = { 1, 1 };
    for (int i = 0; i < ROWS * LENGTH; i++) x[i] = i % 13 * 4, y[i] = (i + 1) % 13 * 4, pos[i] = i % LENGTH, seg[i] = i % LENGTH == 15 ? -1 : i / LENGTH;
    const struct { const char *name; const double *v; int n; } inputs[] = {
        { "tokens", x, ROWS * LENGTH }, { "targets", y, ROWS * LENGTH }, { "positions", pos, ROWS * LENGTH }, { "segments", seg, ROWS * LENGTH },
        { "lr", &lr, 1 }, { "step", &number, 1 }, { "inv_divisor", &inv, 1 }, { "key", key, 2 }, { "samples", seg, ROWS * LENGTH } };
    for (int i = 0; i < (f->attn_dropout > 0 && o.attention ? 9 : 7); i++)
        if (hd_program_input(m.program, inputs[i].name) >= 0) need(model_run_set(&m, inputs[i].name, inputs[i].v, inputs[i].n, &e), &e);
    need(hd_exec_step(m.exec, NULL, &e), &e);
    hd_tensor t;
    need(hd_exec_output(m.exec, "loss", &t, &e), &e);
    *loss = hd_load_f64(t.data, t.dtype, 0);
    int64_t n = 0;
    for (int b = 0; b < m.program->n_buffers; b++) {
        const hd_buffer *p = &m.program->buffers[b];
        hd_store_tensor *s = p->role == HD_ROLE_PARAMETER && p->view_of < 0 ? hd_store_find(m.store, p->path) : NULL;
        for (int64_t i = 0; s && i < hd_shape_count(&p->type.shape) && n < most; i++) out[n++] = ((const float *)s->data)[i];
    }
    model_run_close(&m);
    return n;
}

/* Materialised equals fused, gradients too; dropout of the weights changes the loss; a stream in 16 bits is close. */
static void test_materialised(void **state)
{
    enum { MOST = 1 << 19 };
    static float fused[MOST], written[MOST];
    static const char *const models[] = { "curve/gpt2", "curve/llama", "logits/gemma2" };
    static const double within[] = { 1e-5, 1e-5, 5e-5 };
    (void)state;
    for (int i = 0; i < 3; i++) {
        form_case f = { .model = models[i], .o = { .compute = HD_F32 }, .backend = "reference" };
        double a, b, worst = 0;
        int64_t n = one_step(&f, &a, fused, MOST);
        f.o.attention = HD_ATTENTION_MATERIALISED;
        assert_int_equal(one_step(&f, &b, written, MOST), n);
        assert_true(n > 1000);
        for (int64_t k = 0; k < n; k++)
            if (!(fabs((double)fused[k] - (double)written[k]) <= worst)) worst = fabs((double)fused[k] - (double)written[k]);
        if (!(fabs(a - b) <= 1e-6 * fabs(a)) || !(worst <= within[i])) fail_msg("%s: loss %.9g fused, %.9g written out; parameters differ by %g", models[i], a, b, worst);
        f.attn_dropout = 0.5;
        one_step(&f, &b, written, MOST);
        if (!(fabs(a - b) > 1e-4)) fail_msg("%s: dropout of the weights changes nothing", models[i]);
        f = (form_case){ .model = models[i], .o = { .compute = HD_BF16, .half_stream = true, .attention = HD_ATTENTION_MATERIALISED }, .backend = "cpu" };
        one_step(&f, &b, written, MOST);
        if (!(fabs(a - b) <= 0.02 * a)) fail_msg("%s: loss %g in f32, %g with all in bf16", models[i], a, b);
    }
}

/* A forward pass of products alone: 24 b s h h + 4 b s s h FLOPs a layer (Narayanan et al. 2021, appendix), b s s h halved by none of it. */
static void test_materialised_flops(void **state)
{
    (void)state;
    hd_lm_config c;
    hd_error e = { 0 };
    hd_lm_config_preset(&c, HD_ARCH_GPT2);
    c.layers = 3, c.width = 64, c.heads = c.kv_heads = 4, c.head_dim = 16, c.mlp_width = 256, c.vocab = 96, c.max_positions = 32;
    double b = 2, s = 32, h = 64, expected = 3 * (24 * b * s * h * h + 4 * b * s * s * h) + 2 * b * s * h * 96, flops = 0;
    hd_lm_options o = { .mode = HD_LM_EVAL, .attention = HD_ATTENTION_MATERIALISED, .compute = HD_F32, .param = HD_F32, .tokens = 64, .sequence = 32 };
    hd_graph *g = hd_lm_graph(&c, &o, &e);
    if (!g) fail_msg("%s", e.message);
    for (size_t i = 0; i < g->n_nodes; i++) {
        const hd_node *n = g->nodes[i];
        hd_cost cost;
        if (strcmp(n->op->name, "contract")) continue;
        hd_type in[2] = { *hd_type_in(g, n->in[0]), *hd_type_in(g, n->in[1]) }, out = *hd_type_in(g, n->out[0]);
        n->op->cost(&(hd_sig){ .op = n->op, .in = in, .out = &out, .n_in = 2, .n_out = 1, .attrs = n->attrs }, &cost);
        flops += cost.flops;
    }
    if (!(fabs(flops - expected) <= 1e-9 * expected)) fail_msg("%g FLOPs instead of %g", flops, expected);
    hd_graph_free(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dropout_is_in_training_alone),
        cmocka_unit_test(test_cache),
        cmocka_unit_test(test_training),
        cmocka_unit_test(test_dropout),
        cmocka_unit_test(test_materialised),
        cmocka_unit_test(test_materialised_flops),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
