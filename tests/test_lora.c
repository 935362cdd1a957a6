/* LoRA: adapters begin as nothing, train alone, merge into the weights that they adapt, and a run with them goes on where it stopped. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>
#include <cmocka.h>

#include "../checks/src/model_run.h"
#include "base/file.h"
#include "train/session.h"
#include "train/trainer.h"

#define DATA TEST_SOURCE_DIR "/tests/data/"
enum { TOKENS = 24, RANK = 3 };

static const char *const all_products[] = {"layers.*.attn.q", "layers.*.attn.k", "layers.*.attn.v", "layers.*.attn.o",
                                           "layers.*.mlp.gate", "layers.*.mlp.up", "layers.*.mlp.down"};
static const hd_lora_options adapters = {.pattern = all_products, .n_patterns = 7, .rank = RANK, .alpha = 6};

static void need(int rc, const hd_error *err)
{
    if (rc) fail_msg("%s", err->message);
}

/* ---- one model, adapted ---- */

typedef struct adapted {
    hd_lm_config c;
    hd_session session;
    hd_session_options options;
} adapted;

static void open_adapted(adapted *a, const char *name, hd_dtype precision)
{
    char dir[1024];
    hd_error e = {0};
    snprintf(dir, sizeof dir, DATA "models/logits/%s", name);
    *a = (adapted){.options = {.lora = &adapters, .plan = hd_plan_default()}};
    a->options.plan.precision = precision;
    a->options.plan.threads = 2;
    need(hd_lm_config_load(&a->c, dir, &e), &e);
    hd_lm_options o = {.mode = HD_LM_EVAL, .tokens = TOKENS, .logits = true, .compute = precision, .param = HD_F32};
    hd_graph *g = hd_lm_graph(&a->c, &o, &e);
    need(e.code, &e);
    need(hd_session_init(&a->session, NULL, g, &a->options, &e), &e);
    need(hd_session_start(&a->session, &a->options, &e), &e);
    need(hd_lm_weights_load(a->session.store, &a->c, dir, &e), &e);
}

static void put(hd_exec *x, const char *name, double (*value)(const adapted *a, int i), const adapted *a)
{
    hd_tensor t;
    hd_error e = {0};
    need(hd_exec_input(x, name, &t, &e), &e);
    for (int i = 0; i < (int)hd_tensor_count(&t); i++) hd_store_f64(t.data, t.dtype, i, value(a, i));
}

static double token(const adapted *a, int i) { return (i * 29 + 3) % (int)a->c.vocab; }
static double place(const adapted *a, int i) { return (void)a, i; }
static double zero(const adapted *a, int i) { return (void)a, (void)i, 0; }

/* Logits in f32, to be freed with hd_free; their number in *n. */
static float *logits(adapted *a, int64_t *n)
{
    hd_exec *x = a->session.exec[HD_EVAL_PROGRAM];
    hd_tensor t;
    hd_error e = {0};
    put(x, "tokens", token, a);
    put(x, "positions", place, a);
    put(x, "segments", zero, a);
    put(x, "targets", zero, a);
    put(x, "inv_divisor", zero, a);
    need(hd_exec_step(x, NULL, &e), &e);
    need(hd_exec_output(x, "logits", &t, &e), &e);
    *n = hd_tensor_count(&t);
    float *out = hd_malloc((size_t)*n * sizeof *out);
    for (int64_t i = 0; i < *n; i++) out[i] = (float)hd_load_f64(t.data, t.dtype, i);
    return out;
}

/* Sets all B factors: to scale times a fixed pattern. Returns how many there are. */
static int set_up_factors(hd_store *s, double scale)
{
    int n = 0;
    for (size_t i = 0; i < s->n_tensors; i++) {
        hd_store_tensor *t = s->tensors[i];
        if (!hd_glob_match("*.lora_b", t->path)) continue;
        for (int64_t k = 0; k < hd_shape_count(&t->type.shape); k++) hd_store_f64(t->data, t->type.dtype, k,
            scale * sin((double)(3 * k + n)));
        n++;
    }
    return n;
}

static double apart(const float *a, const float *b, int64_t n)
{
    double worst = 0, largest = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - b[i]);
        largest = fmax(largest, fabs(a[i]));
        if (!(d <= worst)) worst = isfinite(d) ? d : INFINITY;
    }
    return worst / largest;
}

static void expect_merge(const char *name, hd_dtype precision, double tolerance)
{
    adapted a;
    hd_error e = {0};
    int64_t n;
    open_adapted(&a, name, precision);
    float *base = logits(&a, &n);
    int per_layer = a.c.family == HD_FAMILY_GPT2 ? 6 : 7; /* no gate there */
    assert_int_equal(set_up_factors(a.session.store, 0.1), per_layer * a.c.layers);
    float *with = logits(&a, &n);
    need(hd_session_merge_lora(&a.session, &a.options, &e), &e);
    set_up_factors(a.session.store, 0);
    float *merged = logits(&a, &n);
    if (!(apart(with, base, n) > 0.02)) fail_msg("%s: adapters change logits by %g", name, apart(with, base, n));
    if (!(apart(with, merged, n) <= tolerance)) fail_msg("%s: merged and adapted logits differ by %g", name, apart(with, merged, n));
    hd_free(base);
    hd_free(with);
    hd_free(merged);
    hd_session_free(&a.session);
}

static void test_merged_weights_give_adapted_logits(void **state)
{
    (void)state;
    expect_merge("gpt2", HD_F32, 1e-5);
    expect_merge("llama-grouped", HD_F32, 1e-5);
    expect_merge("qwen2", HD_F32, 1e-5);
    expect_merge("gpt2", HD_BF16, 0.05);
    expect_merge("llama-grouped", HD_BF16, 0.05);
}

/* B is zero at first: the same logits as without adapters, to the last bit. */
static void test_new_adapters_do_nothing(void **state)
{
    (void)state;
    adapted with, without;
    hd_error e = {0};
    char dir[1024];
    int64_t n;
    open_adapted(&with, "llama-grouped", HD_F32);
    without = (adapted){.c = with.c, .options = with.options};
    without.options.lora = NULL;
    hd_lm_options o = {.mode = HD_LM_EVAL, .tokens = TOKENS, .logits = true, .compute = HD_F32, .param = HD_F32};
    need(hd_session_init(&without.session, NULL, hd_lm_graph(&with.c, &o, &e), &without.options, &e), &e);
    need(hd_session_start(&without.session, &without.options, &e), &e);
    snprintf(dir, sizeof dir, DATA "models/logits/llama-grouped");
    need(hd_lm_weights_load(without.session.store, &without.c, dir, &e), &e);
    float *x = logits(&with, &n), *y = logits(&without, &n);
    assert_memory_equal(x, y, (size_t)n * sizeof *x);
    hd_free(x);
    hd_free(y);
    hd_session_free(&with.session);
    hd_session_free(&without.session);
}

/* ---- what the pass makes ---- */

static hd_graph *training_graph(const char *name, hd_lm_config *c)
{
    char dir[1024];
    hd_error e = {0};
    snprintf(dir, sizeof dir, DATA "models/logits/%s", name);
    need(hd_lm_config_load(c, dir, &e), &e);
    hd_lm_options o = {.mode = HD_LM_TRAIN, .tokens = TOKENS, .compute = HD_BF16, .param = HD_F32};
    hd_graph *g = hd_lm_graph(c, &o, &e);
    need(e.code, &e);
    return g;
}

static void test_only_adapters_train(void **state)
{
    (void)state;
    hd_lm_config c;
    hd_error e = {0};
    hd_graph *g = training_graph("gpt2", &c);
    assert_int_equal(hd_pass_lora(g, &adapters), 0);
    need(hd_graph_verify(g, &e), &e);
    int trained = 0;
    for (size_t v = 0; v < g->n_values; v++) {
        if (g->values[v].kind != HD_PARAM || !g->values[v].trainable) continue;
        trained++;
        if (!hd_glob_match("*.lora_*", g->values[v].path)) fail_msg("%s is trained", g->values[v].path);
        if (g->values[v].type.dtype != HD_F32) fail_msg("%s is not in f32", g->values[v].path);
    }
    assert_int_equal(trained, 12 * c.layers);
    hd_step_options o = {.optimizer = HD_ADAMW, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .clip = 1};
    assert_int_equal(hd_step_append(g, &o), 0);
    need(hd_graph_verify(g, &e), &e);
    assert_int_equal(g->n_pairs, 3 * trained); /* nothing else is written */
    hd_graph_free(g);
}

static void test_targets_that_match_nothing(void **state)
{
    (void)state;
    hd_lm_config c;
    hd_graph *g = training_graph("llama-grouped", &c);
    const char *const none[] = {"layers.*.attn.query", "embed.tokens"}; /* the second is no product */
    hd_lora_options o = {.pattern = none, .n_patterns = 2, .rank = 4, .alpha = 8};
    assert_int_equal(hd_pass_lora(g, &o), HD_EINVAL);
    assert_non_null(strstr(g->err.message, "layers.0.attn.q"));
    hd_graph_free(g);
}

/* ---- whole runs ---- */

static char work[64];

static const char *in_work(char *out, size_t n, const char *name)
{
    snprintf(out, n, "%s/%s", work, name);
    return out;
}

static const char gpt2_config[] = "{\"model_type\": \"gpt2\", \"architectures\": [\"GPT2LMHeadModel\"], \"n_embd\": 24, \"n_layer\": 2,"
                                  " \"n_head\": 3, \"n_positions\": 64, \"vocab_size\": 2048}";
static const char llama_config[] = "{\"model_type\": \"llama\", \"architectures\": [\"LlamaForCausalLM\"], \"hidden_size\": 24,"
                                   " \"intermediate_size\": 40, \"num_hidden_layers\": 2, \"num_attention_heads\": 4,"
                                   " \"num_key_value_heads\": 2, \"max_position_embeddings\": 64, \"vocab_size\": 2048, \"rms_norm_eps\": 1e-5}";

static void write_inputs(const char *family)
{
    char path[256];
    hd_str s;
    hd_error e = {0};
    hd_str_init(&s);
    need(hd_make_dirs(work, &e), &e);
    for (int i = 0; i < 40; i++) hd_str_printf(&s, "{\"prompt\": \"%d and %d make\", \"answer\": \" %d.\"}\n", i, 2 * i, 3 * i);
    need(hd_file_write_atomic(in_work(path, sizeof path, "instruct.jsonl"), s.data, s.len, &e), &e);
    hd_str_clear(&s);
    for (int i = 0; i < 60; i++) hd_str_printf(&s, "%d and %d make %d.\n\n", i, i + 1, 2 * i + 1);
    need(hd_file_write_atomic(in_work(path, sizeof path, "text.txt"), s.data, s.len, &e), &e);
    hd_str_clear(&s);
    hd_str_puts(&s, !strcmp(family, "gpt2") ? gpt2_config : llama_config);
    need(hd_file_write_atomic(in_work(path, sizeof path, "config.json"), s.data, s.len, &e), &e);
    hd_str_free(&s);
}

static hd_train_config preset(hd_settings_memory *m)
{
    hd_train_config c = {0};
    hd_error e = {0};
    need(hd_settings_preset(hd_train_settings, &c, m, &e), &e);
    c.quiet = true;
    c.batch = 2;
    c.sequence = 32;
    c.threads = 1;
    c.learning_rate = 0.01;
    c.schedule = "constant";
    c.validation = 0;
    return c;
}

static void train(const hd_train_config *c)
{
    hd_error e = {0};
    need(hd_train(c, &e), &e);
}

static void expect_same_file(const char *a, const char *b)
{
    hd_str x, y;
    hd_error e = {0};
    hd_str_init(&x);
    hd_str_init(&y);
    need(hd_file_read(&x, a, 0, &e), &e);
    need(hd_file_read(&y, b, 0, &e), &e);
    if (x.len != y.len || memcmp(x.data, y.data, x.len)) fail_msg("%s and %s differ", a, b);
    hd_str_free(&x);
    hd_str_free(&y);
}

/* Six steps at once, and in two runs: the same state and the same merged model. */
static void resume(const char *family, const char *precision, int64_t micro_batches)
{
    char config[256], text[256], base[256], tuned[300], whole[256], parts[256], a[512], b[512];
    hd_settings_memory memory = {0};
    hd_error e = {0};
    write_inputs(family);
    hd_train_config c = preset(&memory);
    c.tokenizer = DATA "tokenizer/gpt2.json";
    c.model = in_work(config, sizeof config, "config.json");
    c.data = in_work(text, sizeof text, "text.txt");
    c.out = in_work(base, sizeof base, "base");
    c.steps = 2;
    train(&c);
    snprintf(tuned, sizeof tuned, "%s/step-2", base);
    c.model = tuned;
    c.tokenizer = NULL;
    c.data = NULL;
    c.instruct = in_work(text, sizeof text, "instruct.jsonl");
    c.lora_rank = RANK;
    c.precision = precision;
    c.micro_batches = micro_batches;
    c.steps = 6;
    c.out = in_work(whole, sizeof whole, "whole");
    train(&c);
    c.out = in_work(parts, sizeof parts, "parts");
    c.steps = 3;
    train(&c);
    c.steps = 6;
    train(&c);
    const char *const files[] = {"step-6/model.safetensors", "step-6/state.safetensors", "merged/model.safetensors"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(a, sizeof a, "%s/%s", whole, files[i]);
        snprintf(b, sizeof b, "%s/%s", parts, files[i]);
        expect_same_file(a, b);
    }
    snprintf(b, sizeof b, "%s/model.safetensors", tuned); /* what is adapted stays as it was */
    snprintf(a, sizeof a, "%s/step-6/model.safetensors", whole);
    expect_same_file(a, b);
    hd_settings_free(&memory);
    need(hd_remove_tree(work, &e), &e);
}

static void test_run_goes_on_where_it_stopped(void **state)
{
    (void)state;
    snprintf(work, sizeof work, "/tmp/heddle-lora-%d", (int)getpid());
    resume("llama", "f32", 1);
    resume("llama", "bf16", 2);
    resume("gpt2", "bf16", 1);
    resume("gpt2", "f32", 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_merged_weights_give_adapted_logits), cmocka_unit_test(test_new_adapters_do_nothing),
            cmocka_unit_test(test_only_adapters_train),
        cmocka_unit_test(test_targets_that_match_nothing),         cmocka_unit_test(test_run_goes_on_where_it_stopped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
