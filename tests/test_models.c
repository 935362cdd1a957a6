/* Language models: configs good and bad, graphs of every family and mode, weights both ways. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/json.h"
#include "graph/op.h"
#include "models/lm.h"
#include "models/weights.h"
#include "tensor/safetensors.h"

#define DATA TEST_SOURCE_DIR "/tests/data/models/logits/"

static const char *const fixtures[] = { "gpt2",         "gpt2-untied", "llama-grouped",  "llama3",
                                        "llama-linear", "llama-yarn",  "mistral-window", "qwen2", "qwen3", "gemma3",
                                        "gemma2",       "gemma2-head", "phi3", "phi3-full",      "mistral", "smollm", "qwen2.5",
                                        "phi3-short",   "phi3-long",   "phi3-partial", "llama-long" };
enum { FIXTURES = sizeof fixtures / sizeof *fixtures };

static const char *fixture_path(const char *name)
{
    static char path[1024];
    snprintf(path, sizeof path, DATA "%s", name);
    return path;
}

static hd_lm_config load_config(const char *name)
{
    hd_lm_config c;
    hd_error e = { 0 };
    if (hd_lm_config_load(&c, fixture_path(name), &e)) fail_msg("%s", e.message);
    return c;
}

static int make_dir(void **state)
{
    char *dir = strdup("/tmp/heddle-test-XXXXXX");
    *state = dir;
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    int rc = hd_remove_tree(*state, NULL);
    free(*state);
    return rc;
}

/* ---- configs ---- */

static void test_config_fields(void **state)
{
    (void)state;
    hd_lm_config c = load_config("gpt2");
    assert_int_equal(c.arch, HD_ARCH_GPT2);
    assert_int_equal(c.head_dim, 7);
    assert_int_equal(c.mlp_width, 51);
    assert_int_equal(c.max_positions, 40);
    assert_true(c.tie_embeddings && c.qkv_bias && c.o_bias && c.mlp_bias);
    assert_int_equal(c.activation_op, HD_EW_GELU_TANH);
    assert_int_equal(c.bos, 100);
    c = load_config("gpt2-untied");
    assert_true(!c.tie_embeddings && c.scale_by_layer && c.bos == -1 && c.n_eos == 0);
    assert_int_equal(c.mlp_width, 4 * 24);
    assert_int_equal(c.dtype, HD_BF16);
    c = load_config("llama3");
    assert_int_equal(c.head_dim, 10);
    assert_int_equal(c.kv_heads, 3);
    assert_true(c.qkv_bias && c.o_bias && c.mlp_bias && c.tie_embeddings);
    assert_int_equal(c.rope.kind, HD_ROPE_LLAMA3);
    assert_int_equal(c.rope.original_positions, 16);
    assert_true(c.n_eos == 2 && c.eos[0] == 2 && c.eos[1] == 7);
    c = load_config("mistral-window");
    assert_int_equal(c.window, 5);
    assert_int_equal(hd_lm_config_window(&c, 0), 5);
    c = load_config("qwen2");
    assert_true(c.qkv_bias && !c.o_bias && !c.mlp_bias && c.window == 0);
    c = load_config("gemma2");
    assert_true(c.attn_softcap == 2 && c.final_softcap == 25 && c.query_scalar == 12 && !c.qk_norm);
    for (int i = 0; i < 4; i++) assert_int_equal(hd_lm_config_window(&c, i), i % 2 ? 0 : 5);
    c = load_config("phi3");
    assert_true(c.window == 7 && hd_lm_config_window(&c, 0) == 7 && !c.tie_embeddings && c.norm_eps == 1e-5 && c.n_eos == 1);
    c = load_config("phi3-full");
    assert_true(c.window == 0 && c.tie_embeddings);
    c = load_config("phi3-long");
    assert_true(c.rope.kind == HD_ROPE_LONG && c.rope.original_positions == 16 && c.rope.factor == 4 && c.rope.attention_factor == 0);
    assert_true(c.rope.pair_factor[3] == 1.7f && c.rope.long_factor[3] == 7.9f && hd_lm_rotary_dim(&c) == 8);
    c = load_config("phi3-partial");
    assert_true(hd_lm_rotary_dim(&c) == 12 && c.head_dim == 16);
    c = load_config("mistral");
    assert_true(c.window == 0 && c.head_dim == 12);
    c = load_config("smollm");
    assert_true(c.arch == HD_ARCH_LLAMA && c.tie_embeddings && c.heads == 9 && c.kv_heads == 3 && c.rope.theta == 1e5);
    c = load_config("qwen2.5");
    assert_true(c.qkv_bias && !c.tie_embeddings && c.window == 0);
}

/* The text of fixture `name` with the keys of `changes` put over it; a value of "DELETE" takes the key away. */
static char *edited(const char *name, const char *changes)
{
    char path[1100];
    snprintf(path, sizeof path, "%s/config.json", fixture_path(name));
    json_t *j = hd_json_load(path, NULL), *edit = json_loads(changes, 0, NULL), *v;
    assert_non_null(j);
    assert_non_null(edit);
    const char *key;
    json_object_foreach(edit, key, v)
    {
        if (json_is_string(v) && !strcmp(json_string_value(v), "DELETE")) json_object_del(j, key);
        else json_object_set(j, key, v);
    }
    char *text = json_dumps(j, 0);
    json_decref(j);
    json_decref(edit);
    return text;
}

static hd_lm_config parse_edited(const char *name, const char *changes)
{
    char *text = edited(name, changes);
    hd_lm_config c = { 0 };
    hd_error e = { 0 };
    if (hd_lm_config_parse(&c, text, strlen(text), "config.json", &e)) fail_msg("%s: %s", changes, e.message);
    free(text);
    return c;
}

static void test_config_variants(void **state)
{
    (void)state;
    hd_lm_config c = parse_edited("gpt2", "{\"n_inner\": null, \"torch_dtype\": \"DELETE\", \"dtype\": \"float16\"}");
    assert_true(c.mlp_width == 4 * 35 && c.dtype == HD_F16);
    c = parse_edited("llama3", "{\"rope_scaling\": \"DELETE\", \"rope_theta\": \"DELETE\","
                               " \"rope_parameters\": {\"rope_type\": \"yarn\", \"rope_theta\": 77.5, \"factor\": 3}}");
    assert_true(c.rope.kind == HD_ROPE_YARN && c.rope.theta == 77.5 && c.rope.factor == 3 && c.rope.beta_fast == 32);
    c = parse_edited("llama3", "{\"head_dim\": null, \"num_key_value_heads\": null,"
                               " \"architectures\": \"DELETE\", \"attention_bias\": false}");
    assert_true(c.head_dim == 6 && c.kv_heads == 6 && c.arch == HD_ARCH_LLAMA && !c.qkv_bias && !c.o_bias);
    c = parse_edited("llama3", "{\"bos_token_id\": 128000, \"eos_token_id\": [128001, 5]}"); /* beyond the vocabulary: cannot occur */
    assert_true(c.bos == -1 && c.n_eos == 1 && c.eos[0] == 5);
    c = parse_edited("llama3", "{\"rms_norm_eps\": 0.25, \"initializer_range\": 0.5,"
                               " \"attention_dropout\": 0.125, \"max_position_embeddings\": 99}");
    assert_true(c.norm_eps == 0.25 && c.init_std == 0.5 && c.attn_dropout == 0.125 && c.max_positions == 99);
    c = parse_edited("gpt2", "{\"layer_norm_epsilon\": 0.25, \"embd_pdrop\": 0.5, \"resid_pdrop\": 0.75, \"scale_attn_weights\": false}");
    assert_true(c.norm_eps == 0.25 && c.embd_dropout == 0.5 && c.resid_dropout == 0.75 && !c.scale_attention);
    c = parse_edited("gemma2", "{\"attn_logit_softcapping\": null, \"final_logit_softcapping\": \"DELETE\", \"sliding_window\": \"DELETE\"}");
    assert_true(c.attn_softcap == 0 && c.final_softcap == 30 && c.window == 4096);
    c = parse_edited("phi3", "{\"sliding_window\": \"DELETE\", \"resid_pdrop\": 0.25}");
    assert_true(c.window == 0 && c.resid_dropout == 0.25);
    c = parse_edited("phi3-long", "{\"original_max_position_embeddings\": \"DELETE\", \"max_position_embeddings\": 8192, \"rope_scaling\": {\"type\": \"su\","
                                  " \"short_factor\": [1, 1, 1, 2], \"long_factor\": [1, 1, 1, 3]}}"); /* Phi-3's default */
    assert_true(c.rope.kind == HD_ROPE_LONG && c.rope.original_positions == 4096 && c.rope.factor == 2);
    c = parse_edited("phi3-long", "{\"rope_scaling\": {\"type\": \"yarn\", \"short_factor\": [1, 1, 1, 2], \"long_factor\": [1, 1, 1, 3]}}");
    assert_true(c.rope.kind == HD_ROPE_LONG && c.rope.factor == 4);
    c = parse_edited("llama-long", "{\"original_max_position_embeddings\": \"DELETE\", \"rope_scaling\": {\"rope_type\": \"longrope\", \"factor\": 3.5,"
                                   " \"attention_factor\": 1.25, \"short_factor\": [1, 1, 1, 2], \"long_factor\": [1, 1, 1, 3]}}");
    assert_true(c.rope.original_positions == 0 && c.rope.factor == 3.5 && c.rope.attention_factor == 1.25);
    c = parse_edited("llama3", "{\"rope_scaling\": \"DELETE\", \"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 9.5,"
                               " \"partial_rotary_factor\": 0.4}}");
    assert_true(c.rope.kind == HD_ROPE_PLAIN && c.rope.theta == 9.5 && c.rotary_dim == 4);
    c = parse_edited("mistral-window", "{\"sliding_window\": null}");
    assert_int_equal(c.window, 0);
    c = parse_edited("mistral-window", "{\"sliding_window\": \"DELETE\"}");
    assert_int_equal(c.window, 4096);
    c = parse_edited("qwen2", "{\"use_sliding_window\": true, \"sliding_window\": 9, \"max_window_layers\": 2}");
    assert_true(hd_lm_config_window(&c, 1) == 0 && hd_lm_config_window(&c, 2) == 9);
    c = parse_edited("qwen2", "{\"use_sliding_window\": true, \"sliding_window\": 9,"
                              " \"layer_types\": [\"full_attention\", \"sliding_attention\", \"sliding_attention\"]}");
    assert_int_equal(c.window_from, 1);
}

static void test_config_bad(void **state)
{
    (void)state;
    static const struct {
        const char *base, *changes, *message;
    } cases[] = {
        { "gpt2", "{\"architectures\": [\"BertForMaskedLM\"]}", "architecture \"BertForMaskedLM\" is not supported" },
        { "gpt2", "{\"architectures\": [\"LlamaForCausalLM\"]}", "contradicts model_type \"gpt2\"" },
        { "gpt2", "{\"architectures\": \"DELETE\", \"model_type\": \"DELETE\"}", "neither" },
        { "gpt2", "{\"architectures\": 3}", "\"architectures\" must be a list" },
        { "gpt2", "{\"architectures\": [[]]}", "must hold strings" },
        { "gpt2", "{\"n_head\": 4}", "4 heads do not divide a width of 35" },
        { "gemma3", "{\"final_logit_softcapping\": 30.0}", "\"final_logit_softcapping\" is not supported" },
        { "gemma3", "{\"layer_types\": [\"full_attention\"]}", "\"layer_types\" must list 7 layers" },
        { "gemma3", "{\"layer_types\": [\"sliding_attention\", \"full_attention\", \"full_attention\", \"sliding_attention\", "
                    "\"sliding_attention\", \"sliding_attention\", \"sliding_attention\"]}", "that do not repeat" },
        { "gemma3", "{\"attention_bias\": true}", "\"attention_bias\" is not supported" },
        { "gemma3", "{\"rope_local_base_freq\": 0}", "\"rope_local_base_freq\" must be" },
        { "gpt2", "{\"n_embd\": \"DELETE\"}", "\"n_embd\" is missing" },
        { "gpt2", "{\"n_layer\": 0}", "\"n_layer\" must be an integer from 1 to" },
        { "gpt2", "{\"vocab_size\": 1e30}", "\"vocab_size\" must be" },
        { "gpt2", "{\"layer_norm_epsilon\": -1}", "\"layer_norm_epsilon\" must be a number" },
        { "gpt2", "{\"resid_pdrop\": 1.5}", "\"resid_pdrop\" must be a number" },
        { "gpt2", "{\"activation_function\": \"mish\"}", "activation \"mish\" is not supported" },
        { "gpt2", "{\"torch_dtype\": \"float8\"}", "torch_dtype \"float8\" is not supported" },
        { "gpt2", "{\"bos_token_id\": \"x\"}", "\"bos_token_id\" must be a token id" },
        { "gpt2", "{\"eos_token_id\": [0,1,2,3,4,5,6,7,8]}", "lists more than 8 ids" },
        { "gpt2", "{\"quantization_config\": {\"bits\": 4}}", "\"quantization_config\" is not supported" },
        { "llama3", "{\"num_key_value_heads\": 4}", "4 key/value heads do not divide 6 heads" },
        { "llama3", "{\"num_key_value_heads\": 12}", "12 key/value heads do not divide 6 heads" },
        { "llama3", "{\"head_dim\": \"DELETE\", \"hidden_size\": 37}", "6 heads do not divide a width of 37" },
        { "llama3", "{\"head_dim\": 9}", "heads of 9 features cannot be rotated in pairs" },
        { "llama3", "{\"rope_scaling\": {\"rope_type\": \"dynamic\", \"factor\": 2}}", "type \"dynamic\" is not supported" },
        { "llama3", "{\"rope_scaling\": {\"factor\": 2}}", "no \"rope_type\"" },
        { "llama3", "{\"rope_scaling\": {\"type\": \"linear\"}}", "\"factor\" is missing" },
        { "llama3", "{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 0.5}}", "\"factor\" must be a number" },
        { "llama3", "{\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 2, \"mscale\": 0.7}}", "\"mscale\" is not supported" },
        { "llama3", "{\"rope_scaling\": {\"type\": \"llama3\", \"factor\": 2, \"low_freq_factor\": 4, \"high_freq_factor\": 4,"
                    " \"original_max_position_embeddings\": 16}}", "low_freq_factor must be below" },
        { "llama3", "{\"rope_scaling\": 7}", "\"rope_scaling\" must be an object" },
        { "llama3", "{\"rope_theta\": 0}", "\"rope_theta\" must be a number" },
        { "llama3", "{\"partial_rotary_factor\": 0.5}", "\"partial_rotary_factor\" makes 5 of 10 features" },
        { "llama3", "{\"partial_rotary_factor\": 0.1}", "makes 1 of 10 features" },
        { "llama3", "{\"partial_rotary_factor\": 2}", "\"partial_rotary_factor\" must be a number" },
        { "qwen2", "{\"use_sliding_window\": true, \"sliding_window\": 4, \"layer_types\": [\"full_attention\"]}",
          "\"layer_types\" must list 3 layers" },
        { "qwen2", "{\"use_sliding_window\": true, \"sliding_window\": 4,"
                   " \"layer_types\": [\"sliding_attention\", \"full_attention\", \"full_attention\"]}",
          "full attention behind layers with a sliding window" },
        { "gemma2", "{\"attn_logit_softcapping\": -1}", "\"attn_logit_softcapping\" must be" },
        { "gemma2", "{\"attn_logit_softcapping\": \"much\"}", "\"attn_logit_softcapping\" must be" },
        { "phi3", "{\"rope_scaling\": {\"type\": \"longrope\", \"short_factor\": [1], \"long_factor\": [2]}}", "\"short_factor\" must be a list of 4 numbers" },
        { "phi3", "{\"rope_scaling\": {\"type\": \"longrope\", \"short_factor\": [1, 1, 1, 1]}}", "\"long_factor\" is missing" },
        { "phi3", "{\"rope_scaling\": {\"type\": \"longrope\", \"short_factor\": [1, 1, 1, 1], \"long_factor\": [1, 1, 0, 1]}}", "\"long_factor\"[2] is no" },
        { "phi3", "{\"original_max_position_embeddings\": 1,"
                  " \"rope_scaling\": {\"type\": \"su\", \"short_factor\": [1, 1, 1, 1], \"long_factor\": [1, 1, 1, 1]}}",
          "\"original_max_position_embeddings\" must be" },
        { "llama-long", "{\"original_max_position_embeddings\": null}", "neither \"factor\" nor \"original_max_position_embeddings\"" },
        { "phi3", "{\"partial_rotary_factor\": 0.4}", "makes 3 of 8 features" },
        { "smollm", "{\"rope_interleaved\": true}", "\"rope_interleaved\" is not supported" },
        { "mistral-window", "{\"sliding_window\": -3}", "\"sliding_window\" must be" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = edited(cases[i].base, cases[i].changes);
        hd_lm_config c;
        hd_error e = { 0 };
        int rc = hd_lm_config_parse(&c, text, strlen(text), "config.json", &e);
        if (!rc || strncmp(e.message, "config.json: ", 13) || !strstr(e.message, cases[i].message))
            fail_msg("%s: wanted \"%s\", got %d \"%s\"", cases[i].changes, cases[i].message, rc, e.message);
        free(text);
    }
    hd_lm_config c;
    hd_error e = { 0 };
    assert_int_equal(hd_lm_config_parse(&c, "[1, 2", 5, "config.json", &e), HD_EFORMAT);
    assert_non_null(strstr(e.message, "line 1"));
    e = (hd_error){ 0 };
    assert_int_equal(hd_lm_config_parse(&c, "[]", 2, "config.json", &e), HD_EFORMAT);
    e = (hd_error){ 0 };
    assert_int_equal(hd_lm_config_load(&c, "/nonexistent", &e), HD_EIO);
}

/* What is written is read back as it was, and by field. */
static void test_config_save(void **state)
{
    for (int i = 0; i < FIXTURES; i++) {
        hd_lm_config c = load_config(fixtures[i]), again;
        hd_error e = { 0 };
        if (hd_lm_config_save(&c, *state, &e) || hd_lm_config_load(&again, *state, &e)) fail_msg("%s: %s", fixtures[i], e.message);
        assert_int_equal(c.n_eos, again.n_eos);
        assert_int_equal(c.rope.original_positions, again.rope.original_positions);
        assert_memory_equal(&c.vocab, &again.vocab, sizeof c.vocab * 8);
        assert_true(c.norm_eps == again.norm_eps && c.arch == again.arch && c.tie_embeddings == again.tie_embeddings);
        assert_true(c.qkv_bias == again.qkv_bias && c.o_bias == again.o_bias && c.mlp_bias == again.mlp_bias);
        assert_true(c.rope.kind == again.rope.kind && c.rope.theta == again.rope.theta && c.rope.factor == again.rope.factor);
        assert_true(c.rope.low_freq == again.rope.low_freq && c.rope.beta_slow == again.rope.beta_slow);
        assert_true(c.rope.attention_factor == again.rope.attention_factor && hd_lm_rotary_dim(&c) == hd_lm_rotary_dim(&again));
        assert_memory_equal(c.rope.pair_factor, again.rope.pair_factor, sizeof c.rope.pair_factor);
        assert_memory_equal(c.rope.long_factor, again.rope.long_factor, sizeof c.rope.long_factor);
        assert_true(c.window_period == again.window_period && c.query_scalar == again.query_scalar && c.local_theta == again.local_theta);
        assert_true(c.attn_softcap == again.attn_softcap && c.final_softcap == again.final_softcap);
        assert_true(c.window == again.window && c.window_from == again.window_from && c.dtype == again.dtype && c.bos == again.bos);
        assert_string_equal(c.activation, again.activation);
        assert_true(c.embd_dropout == again.embd_dropout && c.scale_by_layer == again.scale_by_layer);
        assert_memory_equal(c.eos, again.eos, sizeof *c.eos * (size_t)c.n_eos);
    }
}

static void test_rope_frequencies(void **state)
{
    (void)state;
    float f[8];
    hd_lm_config c;
    hd_lm_config_preset(&c, HD_ARCH_LLAMA);
    c.head_dim = 8;
    assert_true(hd_lm_rope_frequencies(&c, 1, f) == 1);
    assert_true(f[0] == 1 && fabsf(f[1] - 0.1f) < 1e-7f && fabsf(f[3] - 0.001f) < 1e-9f);
    c.rope.kind = HD_ROPE_LINEAR;
    c.rope.factor = 4;
    hd_lm_rope_frequencies(&c, 1, f);
    assert_true(f[0] == 0.25f);
    c.rope.kind = HD_ROPE_LLAMA3; /* 2048 positions: pair 0 turns 326 times, pair 2 3.26 times, pair 3 0.33 times */
    c.rope.low_freq = 1, c.rope.high_freq = 4;
    hd_lm_rope_frequencies(&c, 1, f);
    assert_true(f[0] == 1 && f[2] < 0.01f && f[2] > 0.0025f && fabsf(f[3] - 0.00025f) < 1e-9f);
    c.rope.kind = HD_ROPE_YARN;
    c.rope.beta_fast = 32, c.rope.beta_slow = 1;
    assert_true(fabs(hd_lm_rope_frequencies(&c, 1, f) - (0.1 * log(4) + 1)) < 1e-12);
    assert_true(f[0] == 1 && fabsf(f[3] - 0.00025f) < 1e-9f);
    c = load_config("phi3-long"); /* trained on 16 positions */
    for (int length = 16; length <= 17; length++) {
        assert_true(fabs(hd_lm_rope_frequencies(&c, length, f) - sqrt(1.5)) < 1e-12); /* ln 4 / ln 16 */
        assert_true(fabsf(f[3] - 0.001f / (length > 16 ? 7.9f : 1.7f)) < 1e-9f);
    }
    c = load_config("phi3-partial");
    hd_lm_rope_frequencies(&c, 12, f);
    assert_true(fabs(f[5] - pow(1000, -10.0 / 12) / 2) < 1e-8);
}

/* The graph takes its frequencies by the longest sequence that it is made for. */
static void test_rope_by_length(void **state)
{
    (void)state;
    hd_lm_config c = load_config("phi3-long");
    static const struct { hd_lm_mode mode; int64_t tokens, sequence, context; float divisor; } cases[] = {
        { HD_LM_TRAIN, 48, 16, 0, 1.7f }, { HD_LM_TRAIN, 48, 24, 0, 7.9f }, { HD_LM_EVAL, 16, 0, 0, 1.7f }, { HD_LM_EVAL, 17, 0, 0, 7.9f },
        { HD_LM_SERVE, 48, 0, 16, 1.7f }, { HD_LM_SERVE, 8, 0, 17, 7.9f } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hd_error e = { 0 };
        hd_lm_options o = { .mode = cases[i].mode, .compute = HD_F32, .param = HD_F32, .tokens = cases[i].tokens, .sequence = cases[i].sequence,
                            .context = cases[i].context, .kv = HD_F32, .block = 8, .blocks = 10, .sequences = 2 };
        hd_graph *g = hd_lm_graph(&c, &o, &e);
        if (!g) fail_msg("%s", e.message);
        const float *f = NULL;
        for (size_t v = 0; v < g->n_values && !f; v++)
            if (g->values[v].kind == HD_CONST && !strcmp(g->values[v].path, "rope.inv_freq")) f = g->values[v].data;
        assert_true(f && fabsf(f[3] - 0.001f / cases[i].divisor) < 1e-9f);
        hd_graph_free(g);
    }
}

/* ---- graphs ---- */

static hd_graph *build(const hd_lm_config *c, hd_lm_options o)
{
    hd_error e = { 0 };
    hd_graph *g = hd_lm_graph(c, &o, &e);
    if (!g) fail_msg("%s", e.message);
    if (hd_graph_verify(g, &e)) fail_msg("%s", e.message);
    return g;
}

static hd_lm_options options(hd_lm_mode mode, hd_dtype compute, hd_dtype param)
{
    return (hd_lm_options){ .mode = mode, .compute = compute, .param = param, .tokens = 24, .context = 48, .rows = 3, .kv = compute, .block = 8, .blocks = 10, .sequences = 2,
                            .logits = mode == HD_LM_EVAL };
}

static int64_t count_parameters(const hd_graph *g)
{
    int64_t n = 0;
    for (size_t i = 0; i < g->n_values; i++)
        if (g->values[i].kind == HD_PARAM) n += hd_shape_count(&g->values[i].type.shape);
    return n;
}

static void expect_type(const hd_graph *g, const char *path, const char *type)
{
    char is[128];
    hd_value v = hd_graph_find(g, path);
    if (v == HD_NONE) fail_msg("no value %s", path);
    hd_type_format(is, sizeof is, hd_type_in(g, v), g);
    if (strcmp(is, type)) fail_msg("%s is %s, not %s", path, is, type);
}

static void test_every_graph(void **state)
{
    (void)state;
    for (int i = 0; i < FIXTURES; i++)
        for (int mode = HD_LM_TRAIN; mode <= HD_LM_SERVE; mode++)
            for (int kind = 0; kind < 3; kind++) {
                hd_lm_config c = load_config(fixtures[i]);
                hd_graph *g = build(&c, options(mode, kind ? HD_BF16 : HD_F32, kind == 2 ? HD_BF16 : HD_F32));
                assert_int_equal(count_parameters(g), hd_lm_config_parameters(&c));
                assert_true((hd_graph_find_output(g, "loss") != HD_NONE) == (mode != HD_LM_SERVE));
                assert_true((hd_graph_find_output(g, "logits") != HD_NONE) == (mode != HD_LM_TRAIN));
                assert_int_equal(g->n_pairs, mode == HD_LM_SERVE ? 2 * c.layers : 0);
                hd_graph_free(g);
            }
}

static void test_graph_types(void **state)
{
    (void)state;
    hd_lm_config c = load_config("llama3");
    hd_graph *g = build(&c, options(HD_LM_TRAIN, HD_BF16, HD_F32));
    expect_type(g, "layers.1.attn.q", "f32[6, 10, 36]");
    expect_type(g, "layers.1.attn.q.bf16", "bf16[6, 10, 36]");
    expect_type(g, "layers.1.attn.k_bias", "f32[3, 10]");
    expect_type(g, "layers.1.attn.o", "f32[36, 6, 10]");
    expect_type(g, "layers.1.mlp.down", "f32[36, 70]");
    expect_type(g, "layers.1.attn.query", "bf16[24, 6, 10]");
    expect_type(g, "layers.1.norm1", "bf16[24, 36]");
    expect_type(g, "layers.1.norm1.2", "f32[24, 36]"); /* the residual stream */
    expect_type(g, "logits", "bf16[24, 101]");
    expect_type(g, "loss", "f32[]");
    assert_int_equal(g->values[hd_graph_find(g, "layers.1.attn.q.bf16")].micro, HD_TIME_REPLICATE);
    assert_false(g->values[hd_graph_find(g, "layers.1.norm1.gamma")].decay);
    assert_false(g->values[hd_graph_find(g, "layers.1.attn.q_bias")].decay);
    assert_true(g->values[hd_graph_find(g, "layers.1.attn.q")].decay);
    assert_int_equal(hd_graph_find(g, "head"), HD_NONE);
    hd_graph_free(g);
    g = build(&c, options(HD_LM_SERVE, HD_BF16, HD_BF16));
    expect_type(g, "kv.2.v", "bf16[80, 3, 10]");
    expect_type(g, "tables", "i32[2, 6]");
    expect_type(g, "logits", "f32[rows<=3, 101]");
    expect_type(g, "layers.0.norm1.gamma", "f32[36]");
    hd_graph_free(g);
}

static void test_graph_dropout(void **state)
{
    (void)state;
    hd_lm_config c = load_config("gpt2");
    hd_graph *g = build(&c, options(HD_LM_TRAIN, HD_F32, HD_F32));
    int sites = 0;
    for (size_t i = 0; i < g->n_nodes; i++)
        if (!strcmp(g->nodes[i]->op->name, "dropout")) {
            const hd_dropout_attrs *at = g->nodes[i]->attrs;
            assert_int_equal(at->site, (int64_t)hd_hash_string(g->nodes[i]->path)); /* so that each site draws its own numbers */
            sites++;
        }
    assert_int_equal(sites, 1 + 2 * 3);
    hd_graph_free(g);
    g = build(&c, options(HD_LM_EVAL, HD_F32, HD_F32));
    assert_int_equal(hd_graph_find(g, "key"), HD_NONE);
    hd_graph_free(g);
    assert_non_null(hd_lm_config_note(&c));
}

static void test_graph_options(void **state)
{
    (void)state;
    hd_lm_config c = load_config("gpt2");
    hd_lm_options bad[6];
    for (int i = 0; i < 6; i++) bad[i] = options(HD_LM_SERVE, HD_F32, HD_F32);
    bad[0].compute = HD_I8;
    bad[1].tokens = 0;
    bad[2].context = 0;
    bad[3].rows = 25;
    bad[4].block = 12;
    bad[5].sequences = 0;
    for (int i = 0; i < 6; i++) {
        hd_error e = { 0 };
        assert_null(hd_lm_graph(&c, &bad[i], &e));
        assert_true(e.code < 0 && *e.message);
    }
    c.heads = 3;
    c.head_dim = 0;
    hd_error e = { 0 };
    assert_null(hd_lm_graph(&c, &bad[1], &e));
}

/* Every allocation of a build fails once: NULL and an error each time. */
static void test_graph_memory(void **state)
{
    (void)state;
    hd_lm_config c = load_config("llama-linear");
    hd_lm_options o = options(HD_LM_SERVE, HD_F32, HD_F32);
    uint64_t before = hd_mem_failed(), n = 1;
    for (;; n++) {
        hd_error e = { 0 };
        hd_mem_fail_at(n);
        hd_graph *g = hd_lm_graph(&c, &o, &e);
        bool failed = hd_mem_failed() > before;
        hd_mem_fail_at(0);
        before = hd_mem_failed();
        if (!failed) {
            assert_non_null(g);
            hd_graph_free(g);
            break;
        }
        assert_null(g);
        assert_int_equal(e.code, HD_ENOMEM);
    }
    assert_true(n > 5);
}

/* ---- weights ---- */

static hd_store *load_store(const hd_lm_config *c, const char *dir, hd_dtype param)
{
    hd_error e = { 0 };
    hd_graph *g = build(c, options(HD_LM_EVAL, HD_F32, param));
    hd_store *s = hd_store_new(g, 1, &e);
    hd_graph_free(g);
    if (!s || hd_lm_weights_load(s, c, dir, &e)) fail_msg("%s", e.message);
    return s;
}

static void test_weights_split(void **state)
{
    (void)state;
    hd_lm_config c = load_config("gpt2");
    hd_store *s = load_store(&c, fixture_path("gpt2"), HD_F32);
    hd_weights w = { 0 };
    assert_int_equal(hd_weights_open(&w, fixture_path("gpt2"), NULL), 0);
    const hd_weight *qkv = hd_weights_find(&w, "transformer.h.2.attn.c_attn.weight");
    const float *k = hd_store_find(s, "layers.2.attn.k")->data; /* [D, H, E] */
    for (int d = 0; d < 35; d++)
        for (int i = 0; i < 35; i++) {
            float want;
            hd_weight_load(qkv, d * 105 + 35 + i, 1, &want, HD_F32);
            assert_true(k[d * 35 + i] == want);
        }
    hd_weights_close(&w);
    hd_store_free(s);
}

static void expect_equal_stores(const hd_store *a, const hd_store *b)
{
    assert_int_equal(a->n_tensors, b->n_tensors);
    for (size_t i = 0; i < a->n_tensors; i++) {
        const hd_store_tensor *t = a->tensors[i], *u = hd_store_find(b, t->path);
        assert_non_null(u);
        assert_int_equal(t->bytes, u->bytes);
        if (memcmp(t->data, u->data, (size_t)t->bytes)) fail_msg("%s differs", t->path);
    }
}

/* Saved, in one file or in shards, and loaded again: the same bits; and the names are those that transformers wrote. */
static void test_weights_round_trip(void **state)
{
    for (int i = 0; i < FIXTURES; i++) {
        hd_error e = { 0 };
        hd_lm_config c = load_config(fixtures[i]);
        hd_store *s = load_store(&c, fixture_path(fixtures[i]), HD_F32);
        char dir[300];
        snprintf(dir, sizeof dir, "%s/%s", (char *)*state, fixtures[i]);
        if (hd_lm_save(s, &c, dir, HD_F32, i % 2 ? 20000 : 0, &e)) fail_msg("%s", e.message);
        hd_store *again = load_store(&c, dir, HD_F32);
        expect_equal_stores(s, again);
        hd_store_free(again);
        hd_weights theirs = { 0 }, ours = { 0 };
        assert_int_equal(hd_weights_open(&theirs, fixture_path(fixtures[i]), NULL), 0);
        assert_int_equal(hd_weights_open(&ours, dir, NULL), 0);
        assert_int_equal(theirs.count, ours.count);
        assert_true((ours.shard_count > 1) == (i % 2));
        for (size_t k = 0; k < ours.count; k++) assert_string_equal(theirs.tensors[k].name, ours.tensors[k].name);
        hd_weights_close(&theirs);
        hd_weights_close(&ours);
        hd_store_free(s);
    }
}

/* From shards to one file and back in the same place: what is no longer valid goes. */
static void test_weights_overwrite(void **state)
{
    hd_lm_config c = load_config("gpt2");
    hd_store *s = load_store(&c, fixture_path("gpt2"), HD_F32);
    for (int i = 0; i < 4; i++) {
        hd_error e = { 0 };
        if (hd_lm_save(s, &c, *state, HD_BF16, i % 2 ? 0 : 20000, &e)) fail_msg("%s", e.message);
        hd_store_free(load_store(&c, *state, HD_BF16));
    }
    hd_store_free(s);
}

/* A copy of the fixture's weights with one change. */
typedef struct change {
    const char *drop, *add, *swap; /* swap: exchanges the two extents */
    const char *strip;             /* takes this prefix from every name */
} change;

static const char *stripped(const char *name, const char *prefix)
{
    return prefix && !strncmp(name, prefix, strlen(prefix)) ? name + strlen(prefix) : name;
}

static void copy_changed(const char *fixture, const char *dir, change ch)
{
    hd_weights w = { 0 };
    hd_weight_spec specs[128] = { 0 };
    const hd_weight *from[128] = { 0 };
    char path[400];
    size_t n = 0;
    assert_int_equal(hd_weights_open(&w, fixture_path(fixture), NULL), 0);
    for (size_t i = 0; i < w.count; i++) {
        const hd_weight *t = &w.tensors[i];
        if (ch.drop && !strcmp(t->name, ch.drop)) continue;
        hd_weight_spec s = { .name = stripped(t->name, ch.strip), .dtype = t->dtype, .rank = t->rank, .dim = { t->dim[0], t->dim[1] } };
        if (ch.swap && !strcmp(t->name, ch.swap)) s.dim[0] = t->dim[1], s.dim[1] = t->dim[0];
        from[n] = t;
        specs[n++] = s;
    }
    if (ch.add) specs[n++] = (hd_weight_spec){ .name = ch.add, .dtype = HD_F32, .rank = 1, .dim = { 1 } };
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    hd_safetensors_writer *out = hd_safetensors_create(path, specs, n, NULL, NULL);
    assert_non_null(out);
    for (size_t i = 0; i < n; i++) {
        double block[20000] = { 0 };
        int64_t count = specs[i].dim[0] * (specs[i].rank == 2 ? specs[i].dim[1] : 1);
        assert_true(count <= 20000);
        if (from[i]) hd_weight_load(from[i], 0, count, block, HD_F64);
        assert_int_equal(hd_safetensors_write(out, i, 0, count, block, HD_F64, NULL), 0);
    }
    assert_int_equal(hd_safetensors_finish(out, NULL), 0);
    hd_weights_close(&w);
}

static void expect_load(const char *fixture, const char *dir, const char *message)
{
    hd_lm_config c = load_config(fixture);
    hd_error e = { 0 };
    hd_graph *g = build(&c, options(HD_LM_EVAL, HD_F32, HD_F32));
    hd_store *s = hd_store_new(g, 1, &e);
    int rc = hd_lm_weights_load(s, &c, dir, &e);
    bool wrong = message ? rc != HD_EFORMAT || !strstr(e.message, message) : rc;
    if (wrong) fail_msg("wanted \"%s\", got %d \"%s\"", message ? message : "success", rc, e.message);
    hd_store_free(s);
    hd_graph_free(g);
}

static void test_weights_bad(void **state)
{
    const char *dir = *state;
    copy_changed("qwen2", dir, (change){ .drop = "model.layers.1.self_attn.k_proj.bias" });
    expect_load("qwen2", dir, "there is no tensor model.layers.1.self_attn.k_proj.bias");
    copy_changed("qwen2", dir, (change){ .add = "model.layers.3.self_attn.k_proj.bias" });
    expect_load("qwen2", dir, "tensor model.layers.3.self_attn.k_proj.bias has no place");
    copy_changed("qwen2", dir, (change){ .swap = "model.layers.2.mlp.up_proj.weight" });
    expect_load("qwen2", dir, "model.layers.2.mlp.up_proj.weight is [56, 70], config.json says [70, 56]");
    copy_changed("gpt2", dir, (change){ .drop = "transformer.h.0.attn.c_attn.bias", .add = "transformer.h.0.attn.bias" });
    expect_load("gpt2", dir, "there is no tensor transformer.h.0.attn.c_attn.bias");
}

static void test_weights_tolerated(void **state)
{
    const char *dir = *state;
    copy_changed("gpt2", dir, (change){ .strip = "transformer.", .add = "h.1.attn.masked_bias" });
    expect_load("gpt2", dir, NULL);
    copy_changed("qwen2", dir, (change){ .add = "lm_head.weight" });
    expect_load("qwen2", dir, NULL);
    copy_changed("llama-linear", dir, (change){ .strip = "model.", .add = "layers.0.self_attn.rotary_emb.inv_freq" });
    expect_load("llama-linear", dir, NULL);
}

/* Every allocation of a load and of a save fails once: an error each time, and the next try succeeds. */
static void test_weights_memory(void **state)
{
    hd_lm_config c = load_config("gpt2");
    hd_store *s = load_store(&c, fixture_path("gpt2"), HD_F32);
    for (int save = 0; save < 2; save++)
        for (uint64_t n = 1, before;; n++) {
            hd_error e = { 0 };
            before = hd_mem_failed();
            hd_mem_fail_at(n);
            int rc = save ? hd_lm_save(s, &c, *state, HD_F32, 0, &e) : hd_lm_weights_load(s, &c, fixture_path("gpt2"), &e);
            hd_mem_fail_at(0);
            if (hd_mem_failed() == before) {
                assert_int_equal(rc, 0);
                assert_true(n > 5);
                break;
            }
            if (rc != HD_ENOMEM || e.code != HD_ENOMEM) fail_msg("allocation %d: %d \"%s\"", (int)n, rc, e.message);
        }
    hd_store_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_config_fields),
        cmocka_unit_test(test_config_variants),
        cmocka_unit_test(test_config_bad),
        cmocka_unit_test_setup_teardown(test_config_save, make_dir, remove_dir),
        cmocka_unit_test(test_rope_frequencies),
        cmocka_unit_test(test_rope_by_length),
        cmocka_unit_test(test_every_graph),
        cmocka_unit_test(test_graph_types),
        cmocka_unit_test(test_graph_dropout),
        cmocka_unit_test(test_graph_options),
        cmocka_unit_test(test_graph_memory),
        cmocka_unit_test(test_weights_split),
        cmocka_unit_test_setup_teardown(test_weights_round_trip, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_weights_overwrite, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_weights_bad, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_weights_tolerated, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_weights_memory, make_dir, remove_dir),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
