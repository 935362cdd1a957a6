#include "models/config.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "models/rope.h"
#include "tensor/dtype.h"

/* ---- architectures ---- */

static const struct {
    const char *name, *type;
    hd_family family;
} architectures[HD_ARCH_COUNT] = {
    [HD_ARCH_GPT2] = { "GPT2LMHeadModel", "gpt2", HD_FAMILY_GPT2 },
    [HD_ARCH_LLAMA] = { "LlamaForCausalLM", "llama", HD_FAMILY_LLAMA },
    [HD_ARCH_MISTRAL] = { "MistralForCausalLM", "mistral", HD_FAMILY_LLAMA },
    [HD_ARCH_QWEN2] = { "Qwen2ForCausalLM", "qwen2", HD_FAMILY_LLAMA },
    [HD_ARCH_QWEN3] = { "Qwen3ForCausalLM", "qwen3", HD_FAMILY_LLAMA },
    [HD_ARCH_PHI3] = { "Phi3ForCausalLM", "phi3", HD_FAMILY_LLAMA },
    [HD_ARCH_GEMMA2] = { "Gemma2ForCausalLM", "gemma2", HD_FAMILY_GEMMA },
    [HD_ARCH_GEMMA3] = { "Gemma3ForCausalLM", "gemma3_text", HD_FAMILY_GEMMA },
};
#define KNOWN "GPT2LMHeadModel, LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Phi3ForCausalLM, Gemma2ForCausalLM, Gemma3ForCausalLM"

const char *hd_architecture_name(hd_architecture a) { return architectures[a].name; }
const char *hd_architecture_type(hd_architecture a) { return architectures[a].type; }

int hd_architecture_parse(const char *name, hd_architecture *out)
{
    for (int i = 0; i < HD_ARCH_COUNT; i++)
        if (!strcmp(name, architectures[i].name) || !strcmp(name, architectures[i].type)) {
            *out = (hd_architecture)i;
            return HD_OK;
        }
    return HD_EINVAL;
}

static const struct {
    const char *name;
    hd_ew op;
} activations[] = {
    { "gelu_new", HD_EW_GELU_TANH }, { "gelu_pytorch_tanh", HD_EW_GELU_TANH }, { "gelu_fast", HD_EW_GELU_TANH }, { "gelu", HD_EW_GELU },
    { "silu", HD_EW_SILU },          { "swish", HD_EW_SILU },                  { "relu", HD_EW_RELU },           { "tanh", HD_EW_TANH },
    { "sigmoid", HD_EW_SIGMOID },
};

/* ---- fields that are read, checked and written alike ---- */

typedef enum field_kind { FIELD_INT, FIELD_NUMBER, FIELD_BOOL, FIELD_CAP /* a number, or null for 0: none */ } field_kind;
typedef struct field {
    const char *key;
    field_kind kind;
    bool needed;
    size_t offset;
    double lo, hi;
    unsigned archs; /* that have it */
} field;

/* Bounds far above any model in use, and low enough that products of four of them stay below 2^63. */
#define MAX_VOCAB 0x1p24
#define MAX_WIDTH 0x1p18
#define MAX_LAYERS 2048
#define MAX_HEADS 4096
#define MAX_POSITIONS 0x1p27
#define AT(member) offsetof(hd_lm_config, member)

enum {
    ANY = (1 << HD_ARCH_COUNT) - 1, GPT2 = 1 << HD_ARCH_GPT2, PHI3 = 1 << HD_ARCH_PHI3, GEMMA2 = 1 << HD_ARCH_GEMMA2, GEMMA3 = 1 << HD_ARCH_GEMMA3,
    GEMMA = GEMMA2 | GEMMA3, ROTARY = ANY & ~GPT2,
};

static const field fields[] = {
    { "vocab_size", FIELD_INT, true, AT(vocab), 1, MAX_VOCAB, ANY },
    { "n_positions", FIELD_INT, true, AT(max_positions), 1, MAX_POSITIONS, GPT2 },
    { "n_embd", FIELD_INT, true, AT(width), 1, MAX_WIDTH, GPT2 },
    { "n_layer", FIELD_INT, true, AT(layers), 1, MAX_LAYERS, GPT2 },
    { "n_head", FIELD_INT, true, AT(heads), 1, MAX_HEADS, GPT2 },
    { "n_inner", FIELD_INT, false, AT(mlp_width), 1, 4 * MAX_WIDTH, GPT2 },
    { "layer_norm_epsilon", FIELD_NUMBER, false, AT(norm_eps), 1e-20, 1, GPT2 },
    { "max_position_embeddings", FIELD_INT, false, AT(max_positions), 1, MAX_POSITIONS, ROTARY },
    { "hidden_size", FIELD_INT, true, AT(width), 1, MAX_WIDTH, ROTARY },
    { "num_hidden_layers", FIELD_INT, true, AT(layers), 1, MAX_LAYERS, ROTARY },
    { "num_attention_heads", FIELD_INT, true, AT(heads), 1, MAX_HEADS, ROTARY },
    { "num_key_value_heads", FIELD_INT, false, AT(kv_heads), 1, MAX_HEADS, ROTARY },
    { "head_dim", FIELD_INT, false, AT(head_dim), 2, 4096, ROTARY },
    { "intermediate_size", FIELD_INT, true, AT(mlp_width), 1, 4 * MAX_WIDTH, ROTARY },
    { "rms_norm_eps", FIELD_NUMBER, false, AT(norm_eps), 1e-20, 1, ROTARY },
    { "rope_theta", FIELD_NUMBER, false, AT(rope.theta), 1.0001, 1e12, ROTARY },
    { "attention_dropout", FIELD_NUMBER, false, AT(attn_dropout), 0, 0.99, ROTARY },
    { "rope_local_base_freq", FIELD_NUMBER, false, AT(local_theta), 1.0001, 1e12, GEMMA3 },
    { "query_pre_attn_scalar", FIELD_NUMBER, false, AT(query_scalar), 0, 1e6, GEMMA },
    { "attn_logit_softcapping", FIELD_CAP, false, AT(attn_softcap), 0, 1e6, GEMMA2 },
    { "final_logit_softcapping", FIELD_CAP, false, AT(final_softcap), 0, 1e6, GEMMA2 },
    { "sliding_window", FIELD_INT, false, AT(window), 0, 0x1p40, GEMMA },
    { "sliding_window_pattern", FIELD_INT, false, AT(window_period), 0, MAX_LAYERS, GEMMA3 },
    { "initializer_range", FIELD_NUMBER, false, AT(init_std), 0, 100, ANY },
    { "embd_pdrop", FIELD_NUMBER, false, AT(embd_dropout), 0, 0.99, GPT2 | PHI3 },
    { "resid_pdrop", FIELD_NUMBER, false, AT(resid_dropout), 0, 0.99, GPT2 | PHI3 },
    { "attn_pdrop", FIELD_NUMBER, false, AT(attn_dropout), 0, 0.99, GPT2 },
    { "scale_attn_weights", FIELD_BOOL, false, AT(scale_attention), 0, 1, GPT2 },
    { "scale_attn_by_inverse_layer_idx", FIELD_BOOL, false, AT(scale_by_layer), 0, 1, GPT2 },
    { "tie_word_embeddings", FIELD_BOOL, false, AT(tie_embeddings), 0, 1, ANY },
};
enum { FIELDS = sizeof fields / sizeof *fields };

static bool has_field(const hd_lm_config *c, const field *f) { return f->archs >> c->arch & 1; }

static int read_field(const json_t *j, const field *f, hd_lm_config *c, const char *name, hd_error *err)
{
    void *at = (char *)c + f->offset;
    if (f->needed) {
        int rc = hd_json_need(j, f->key, name, err);
        if (rc) return rc;
    }
    if (f->kind == FIELD_CAP && json_is_null(json_object_get(j, f->key))) *(double *)at = 0;
    switch (f->kind) {
    case FIELD_INT: return hd_json_int(j, f->key, (int64_t)f->lo, (int64_t)f->hi, at, name, err);
    case FIELD_CAP:
    case FIELD_NUMBER: return hd_json_number(j, f->key, f->lo, f->hi, at, name, err);
    case FIELD_BOOL: return hd_json_bool(j, f->key, at, name, err);
    }
    return HD_EINVAL;
}

static json_t *write_field(const hd_lm_config *c, const field *f)
{
    const void *at = (const char *)c + f->offset;
    switch (f->kind) {
    case FIELD_INT: return json_integer(*(const int64_t *)at);
    case FIELD_NUMBER: return json_real(*(const double *)at);
    case FIELD_BOOL: return json_boolean(*(const bool *)at);
    case FIELD_CAP: return *(const double *)at > 0 ? json_real(*(const double *)at) : json_null();
    }
    return NULL;
}

/* ---- presets ---- */

static void preset_gemma(hd_lm_config *c)
{
    bool second = c->arch == HD_ARCH_GEMMA2;
    c->head_dim = 256;
    c->max_positions = second ? 8192 : 131072;
    c->tie_embeddings = true;
    c->rope.theta = second ? 1e4 : 1e6;
    c->local_theta = 1e4;
    c->query_scalar = 256;
    c->attn_softcap = second ? 50 : 0;
    c->final_softcap = second ? 30 : 0;
    c->window = 4096;
    c->window_period = second ? 2 : 6;
    c->bos = 2;
    c->eos[c->n_eos++] = 1;
    c->activation_op = HD_EW_GELU_TANH;
    snprintf(c->activation, sizeof c->activation, "gelu_pytorch_tanh");
}

void hd_lm_config_preset(hd_lm_config *c, hd_architecture arch)
{
    bool gpt2 = arch == HD_ARCH_GPT2;
    *c = (hd_lm_config){
        .arch = arch, .family = architectures[arch].family, .init_std = 0.02, .norm_eps = gpt2 ? 1e-5 : 1e-6,
        .tie_embeddings = gpt2, .qkv_bias = gpt2 || arch == HD_ARCH_QWEN2, .o_bias = gpt2, .mlp_bias = gpt2,
        .rope = { .kind = HD_ROPE_PLAIN, .theta = 10000, .factor = 1 }, .scale_attention = true, .bos = -1, .dtype = HD_F32,
        .activation_op = gpt2 ? HD_EW_GELU_TANH : HD_EW_SILU,
    };
    snprintf(c->activation, sizeof c->activation, "%s", gpt2 ? "gelu_new" : "silu");
    c->max_positions = arch == HD_ARCH_QWEN2 ? 32768 : arch == HD_ARCH_MISTRAL ? 131072 : arch == HD_ARCH_LLAMA ? 2048 : 1024;
    if (gpt2) c->embd_dropout = c->resid_dropout = c->attn_dropout = 0.1;
    c->qk_norm = arch == HD_ARCH_QWEN3 || arch == HD_ARCH_GEMMA3;
    if (arch == HD_ARCH_QWEN3) c->head_dim = 128, c->max_positions = 32768;
    if (c->family == HD_FAMILY_GEMMA) preset_gemma(c);
    if (arch == HD_ARCH_PHI3) c->max_positions = 4096, c->norm_eps = 1e-5;
    if (arch == HD_ARCH_LLAMA || arch == HD_ARCH_MISTRAL || arch == HD_ARCH_PHI3) {
        c->bos = 1;
        c->eos[c->n_eos++] = arch == HD_ARCH_PHI3 ? 32000 : 2;
    }
}

/* ---- parts of a config.json ---- */

/* architectures and model_type must be known, and agree where both are given. */
static int read_architecture(const json_t *j, hd_architecture *arch, const char *name, hd_error *err)
{
    const char *type = NULL;
    int rc = hd_json_string(j, "model_type", &type, name, err);
    if (rc) return rc;
    const json_t *list = json_object_get(j, "architectures");
    const json_t *first = json_array_get(list, 0);
    if (list && !json_is_null(list) && !json_is_array(list)) return hd_fail(err, HD_EFORMAT, "%s: \"architectures\" must be a list", name);
    if (first && !json_is_string(first)) return hd_fail(err, HD_EFORMAT, "%s: \"architectures\" must hold strings", name);
    const char *given = first ? json_string_value(first) : type;
    if (!given) return hd_fail(err, HD_EFORMAT, "%s: neither \"architectures\" nor \"model_type\" says what model this is", name);
    if (hd_architecture_parse(given, arch))
        return hd_fail(err, HD_EUNSUPPORTED, "%s: architecture \"%.80s\" is not supported (supported: " KNOWN ")", name, given);
    if (type && strcmp(type, architectures[*arch].type))
        return hd_fail(err, HD_EFORMAT, "%s: architecture \"%.80s\" contradicts model_type \"%.80s\"", name, given, type);
    return HD_OK;
}

static int set_activation(hd_lm_config *c, const char *text, const char *name, hd_error *err)
{
    for (size_t i = 0; i < sizeof activations / sizeof *activations; i++)
        if (!strcmp(text, activations[i].name)) {
            snprintf(c->activation, sizeof c->activation, "%s", text);
            c->activation_op = activations[i].op;
            return HD_OK;
        }
    return hd_fail(err, HD_EUNSUPPORTED, "%s: activation \"%.80s\" is not supported", name, text);
}

static const char *const activation_keys[HD_FAMILY_COUNT] = {
    [HD_FAMILY_GPT2] = "activation_function", [HD_FAMILY_LLAMA] = "hidden_act", [HD_FAMILY_GEMMA] = "hidden_activation" };

static int read_activation(const json_t *j, hd_lm_config *c, const char *name, hd_error *err)
{
    const char *text = NULL;
    int rc = hd_json_string(j, activation_keys[c->family], &text, name, err);
    return rc || !text ? rc : set_activation(c, text, name, err);
}

static int read_dtype(const json_t *j, hd_lm_config *c, const char *name, hd_error *err)
{
    const char *text = NULL;
    int rc = hd_json_string(j, "torch_dtype", &text, name, err);
    if (!rc && !text) rc = hd_json_string(j, "dtype", &text, name, err); /* its name from transformers 4.56 on */
    if (rc || !text) return rc;
    hd_dtype t;
    if (hd_dtype_parse(text, &t) || (t != HD_F32 && t != HD_BF16 && t != HD_F16))
        return hd_fail(err, HD_EUNSUPPORTED, "%s: torch_dtype \"%.80s\" is not supported (float32, bfloat16 or float16)", name, text);
    c->dtype = t;
    return HD_OK;
}

/* One id, or a list of them; ids beyond the vocabulary are dropped, since no token can ever be one (small models often keep
 * the ids of a large one). */
static int read_ids(const json_t *j, const char *key, int64_t vocab, int64_t *ids, int max, int *n, const char *name, hd_error *err)
{
    const json_t *v = json_object_get(j, key);
    if (!v) return HD_OK;
    *n = 0;
    if (json_is_null(v)) return HD_OK;
    size_t count = json_is_array(v) ? json_array_size(v) : 1;
    if (count > (size_t)max) return hd_fail(err, HD_EUNSUPPORTED, "%s: \"%s\" lists more than %d ids", name, key, max);
    for (size_t i = 0; i < count; i++) {
        const json_t *e = json_is_array(v) ? json_array_get(v, i) : v;
        int64_t id = json_integer_value(e);
        if (!json_is_integer(e) || id < -1 || id > INT32_MAX)
            return hd_fail(err, HD_EFORMAT, "%s: \"%s\" must be a token id or a list of them", name, key);
        if (id >= 0 && id < vocab) ids[(*n)++] = id;
    }
    return HD_OK;
}

static int read_special_ids(const json_t *j, hd_lm_config *c, const char *name, hd_error *err)
{
    int64_t bos[HD_MAX_EOS];
    int n = -1;
    int rc = read_ids(j, "bos_token_id", c->vocab, bos, HD_MAX_EOS, &n, name, err);
    if (rc) return rc;
    if (n >= 0) c->bos = n ? bos[0] : -1;
    return read_ids(j, "eos_token_id", c->vocab, c->eos, HD_MAX_EOS, &c->n_eos, name, err);
}

/* ---- sliding windows and what the Llama line differs in ---- */

/* layer_types (newer files) must say the same as max_window_layers, or say it in its place. */
static int read_layer_types(const json_t *j, hd_lm_config *c, const char *name, hd_error *err)
{
    const json_t *list = json_object_get(j, "layer_types");
    if (!list || json_is_null(list)) return HD_OK;
    if (!json_is_array(list) || json_array_size(list) != (size_t)c->layers)
        return hd_fail(err, HD_EFORMAT, "%s: \"layer_types\" must list %lld layers", name, (long long)c->layers);
    int64_t full = 0;
    for (int64_t i = 0; i < c->layers; i++) {
        const char *type = json_string_value(json_array_get(list, (size_t)i));
        bool sliding = type && !strcmp(type, "sliding_attention");
        if (!type || (!sliding && strcmp(type, "full_attention")))
            return hd_fail(err, HD_EUNSUPPORTED, "%s: layer type \"%.80s\" is not supported", name, type ? type : "(not a string)");
        if (!sliding && full++ != i)
            return hd_fail(err, HD_EUNSUPPORTED, "%s: full attention behind layers with a sliding window is not supported", name);
    }
    c->window_from = full;
    return HD_OK;
}

/* Gemma's layer_types must be a period: so many layers with the window, then one without. */
static int read_pattern(const json_t *j, hd_lm_config *c, const char *name, hd_error *err)
{
    const json_t *list = json_object_get(j, "layer_types");
    if (!list || json_is_null(list)) return HD_OK;
    if (!json_is_array(list) || json_array_size(list) != (size_t)c->layers)
        return hd_fail(err, HD_EFORMAT, "%s: \"layer_types\" must list %lld layers", name, (long long)c->layers);
    int64_t first = c->layers; /* without a window */
    for (int64_t i = 0; i < c->layers; i++) {
        const char *type = json_string_value(json_array_get(list, (size_t)i));
        bool full = type && !strcmp(type, "full_attention");
        if (!type || (!full && strcmp(type, "sliding_attention")))
            return hd_fail(err, HD_EUNSUPPORTED, "%s: layer type \"%.80s\" is not supported", name, type ? type : "(not a string)");
        if (full && first == c->layers) first = i;
        if (full != ((i + 1) % (first + 1) == 0))
            return hd_fail(err, HD_EUNSUPPORTED, "%s: \"layer_types\" that do not repeat are not supported", name);
    }
    c->window_period = first < c->layers ? first + 1 : 0;
    return HD_OK;
}

static int read_window(const json_t *j, hd_lm_config *c, const char *name, hd_error *err)
{
    if (c->arch == HD_ARCH_LLAMA) return HD_OK;
    if (c->family == HD_FAMILY_GEMMA) return read_pattern(j, c, name, err);
    bool use = c->arch == HD_ARCH_MISTRAL || c->arch == HD_ARCH_PHI3, always = use;
    int64_t window = c->arch == HD_ARCH_PHI3 ? 0 : 4096; /* what transformers takes when the key is missing; null means none */
    const json_t *v = json_object_get(j, "sliding_window");
    if (v && json_is_null(v)) window = 0;
    int rc = hd_json_int(j, "sliding_window", 0, (int64_t)1 << 40, &window, name, err);
    if (!rc && !always) rc = hd_json_bool(j, "use_sliding_window", &use, name, err);
    if (rc || !use || !window) return rc;
    c->window = window;
    if (always) return HD_OK;
    c->window_from = 28;
    rc = hd_json_int(j, "max_window_layers", 0, INT32_MAX, &c->window_from, name, err);
    return rc ? rc : read_layer_types(j, c, name, err);
}

static int read_biases(const json_t *j, hd_lm_config *c, const char *name, hd_error *err)
{
    if (c->arch != HD_ARCH_LLAMA && c->arch != HD_ARCH_QWEN3 && c->family != HD_FAMILY_GEMMA) return HD_OK;
    int rc = hd_json_bool(j, "attention_bias", &c->qkv_bias, name, err);
    c->o_bias = c->qkv_bias;
    if (rc || c->arch == HD_ARCH_LLAMA) return rc ? rc : hd_json_bool(j, "mlp_bias", &c->mlp_bias, name, err);
    return c->qkv_bias && c->family == HD_FAMILY_GEMMA ? hd_fail(err, HD_EUNSUPPORTED, "%s: \"attention_bias\" is not supported", name) : HD_OK;
}

/* Keys that change what a model computes in ways that nothing here does. */
static int refuse_unknown(const json_t *j, const hd_lm_config *c, const char *name, hd_error *err)
{
    static const char *const refused[] = { "quantization_config", "add_cross_attention", "is_encoder_decoder", "attn_logit_softcapping",
                                            "final_logit_softcapping", "use_bidirectional_attention", "rope_interleaved" };
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        const json_t *v = json_object_get(j, refused[i]);
        bool known = c->arch == HD_ARCH_GEMMA2 && strstr(refused[i], "softcapping");
        if (v && !known && !json_is_null(v) && !json_is_false(v))
            return hd_fail(err, HD_EUNSUPPORTED, "%s: \"%s\" is not supported", name, refused[i]);
    }
    return HD_OK;
}

/* ---- reading ---- */

/* What transformers derives when config.json leaves it out. */
static int complete(hd_lm_config *c, const char *name, hd_error *err)
{
    if (!c->mlp_width && c->family == HD_FAMILY_GPT2) c->mlp_width = 4 * c->width;
    if (!c->kv_heads) c->kv_heads = c->heads;
    if (c->head_dim) return HD_OK;
    if (c->heads < 1 || c->width % c->heads)
        return hd_fail(err, HD_EFORMAT, "%s: %lld heads do not divide a width of %lld", name, (long long)c->heads, (long long)c->width);
    c->head_dim = c->width / c->heads;
    return HD_OK;
}

static int read_object(const json_t *j, hd_lm_config *out, const char *name, hd_error *err)
{
    hd_lm_config c;
    hd_architecture arch = HD_ARCH_GPT2;
    if (!json_is_object(j)) return hd_fail(err, HD_EFORMAT, "%s: must be an object", name);
    int rc = read_architecture(j, &arch, name, err);
    if (rc) return rc;
    hd_lm_config_preset(&c, arch);
    for (int i = 0; !rc && i < FIELDS; i++)
        if (has_field(&c, &fields[i])) rc = read_field(j, &fields[i], &c, name, err);
    if (!rc) rc = refuse_unknown(j, &c, name, err);
    if (!rc) rc = read_activation(j, &c, name, err);
    if (!rc) rc = read_dtype(j, &c, name, err);
    if (!rc && c.family != HD_FAMILY_GPT2) {
        rc = complete(&c, name, err);
        if (!rc) rc = hd_rope_read(j, &c, name, err);
        if (!rc) rc = read_window(j, &c, name, err);
        if (!rc) rc = read_biases(j, &c, name, err);
    }
    if (!rc) rc = read_special_ids(j, &c, name, err);
    if (!rc) rc = hd_lm_config_check(&c, name, err);
    if (!rc) *out = c;
    return rc;
}

int hd_lm_config_parse(hd_lm_config *c, const char *text, size_t n, const char *name, hd_error *err)
{
    json_t *j = hd_json_parse(text, n, name, err);
    if (!j) return err && err->code ? err->code : HD_EFORMAT;
    int rc = read_object(j, c, name, err);
    json_decref(j);
    return rc;
}

static int load_generation(hd_lm_config *c, const char *dir, hd_error *err)
{
    char path[4096];
    int rc = hd_path_join(path, sizeof path, dir, "generation_config.json", err);
    if (rc || !hd_file_exists(path)) return rc;
    json_t *j = hd_json_load(path, err);
    if (!j) return err && err->code ? err->code : HD_EFORMAT;
    rc = read_special_ids(j, c, path, err);
    json_decref(j);
    return rc;
}

int hd_lm_config_load(hd_lm_config *c, const char *dir, hd_error *err)
{
    char path[4096];
    int rc = hd_path_join(path, sizeof path, dir, "config.json", err);
    if (rc) return rc;
    json_t *j = hd_json_load(path, err);
    if (!j) return err && err->code ? err->code : HD_EFORMAT;
    hd_lm_config read;
    rc = read_object(j, &read, path, err);
    json_decref(j);
    if (!rc) rc = load_generation(&read, dir, err);
    if (!rc) *c = read;
    return rc;
}

/* ---- checking ---- */

static int check_field(const hd_lm_config *c, const field *f, const char *name, hd_error *err)
{
    const void *at = (const char *)c + f->offset;
    if (f->kind == FIELD_BOOL) return HD_OK;
    double v = f->kind == FIELD_INT ? (double)*(const int64_t *)at : *(const double *)at;
    if (v >= f->lo && v <= f->hi) return HD_OK;
    return hd_fail(err, HD_EINVAL, "%s: \"%s\" is %.10g, must be from %.10g to %.10g", name, f->key, v, f->lo, f->hi);
}

int hd_lm_config_check(hd_lm_config *c, const char *name, hd_error *err)
{
    int rc = complete(c, name, err);
    for (int i = 0; !rc && i < FIELDS; i++)
        if (has_field(c, &fields[i])) rc = check_field(c, &fields[i], name, err);
    if (rc) return rc;
    if (c->heads % c->kv_heads)
        return hd_fail(err, HD_EFORMAT, "%s: %lld key/value heads do not divide %lld heads", name, (long long)c->kv_heads,
                       (long long)c->heads);
    if (c->family == HD_FAMILY_GPT2 && (c->kv_heads != c->heads || c->head_dim * c->heads != c->width))
        return hd_fail(err, HD_EFORMAT, "%s: %lld heads do not divide a width of %lld", name, (long long)c->heads, (long long)c->width);
    if (c->head_dim > 4096)
        return hd_fail(err, HD_EUNSUPPORTED, "%s: heads of %lld features are not supported", name, (long long)c->head_dim);
    if (c->bos >= c->vocab) c->bos = -1;
    int n = 0;
    for (int i = 0; i < c->n_eos; i++)
        if (c->eos[i] >= 0 && c->eos[i] < c->vocab) c->eos[n++] = c->eos[i];
    c->n_eos = n;
    return c->family != HD_FAMILY_GPT2 ? hd_rope_check(c, name, err) : HD_OK;
}

/* ---- writing ---- */

/* Steals v; out of memory shows as a NULL v and makes the whole object fail. */
static void put(json_t *j, const char *key, json_t *v, bool *failed)
{
    if (json_object_set_new(j, key, v)) *failed = true;
}

static void put_ids(json_t *j, const char *key, const int64_t *ids, int n, bool *failed)
{
    if (n == 0) return;
    if (n == 1) {
        put(j, key, json_integer(ids[0]), failed);
        return;
    }
    json_t *list = json_array();
    for (int i = 0; i < n; i++)
        if (json_array_append_new(list, json_integer(ids[i]))) *failed = true;
    put(j, key, list, failed);
}

/* null where there is no id: a missing key would mean the architecture's default. */
static void put_special_ids(json_t *j, const hd_lm_config *c, bool *failed)
{
    put(j, "bos_token_id", c->bos >= 0 ? json_integer(c->bos) : json_null(), failed);
    if (c->n_eos) put_ids(j, "eos_token_id", c->eos, c->n_eos, failed);
    else put(j, "eos_token_id", json_null(), failed);
}

static void put_layer_types(json_t *j, const hd_lm_config *c, bool *failed)
{
    json_t *list = json_array();
    for (int64_t i = 0; i < c->layers; i++)
        if (json_array_append_new(list, json_string(hd_lm_config_window(c, i) ? "sliding_attention" : "full_attention"))) *failed = true;
    put(j, "layer_types", list, failed);
}

static void put_llama(json_t *j, const hd_lm_config *c, bool *failed)
{
    put(j, activation_keys[c->family], json_string(c->activation), failed);
    hd_rope_write(j, c, failed);
    if (c->family == HD_FAMILY_GEMMA) {
        put(j, "attention_bias", json_false(), failed);
        put_layer_types(j, c, failed);
        return;
    }
    if (c->arch == HD_ARCH_LLAMA || c->arch == HD_ARCH_QWEN3) put(j, "attention_bias", json_boolean(c->qkv_bias), failed);
    if (c->arch == HD_ARCH_LLAMA) {
        put(j, "mlp_bias", json_boolean(c->mlp_bias), failed);
        return;
    }
    put(j, "sliding_window", c->window ? json_integer(c->window) : json_null(), failed);
    if (c->arch == HD_ARCH_PHI3) put(j, "pad_token_id", json_null(), failed); /* its default may lie beyond the vocabulary */
    if (c->arch == HD_ARCH_MISTRAL || c->arch == HD_ARCH_PHI3) return;
    put(j, "use_sliding_window", json_boolean(c->window > 0), failed);
    put(j, "max_window_layers", json_integer(c->window ? c->window_from : c->layers), failed);
}

static const char *torch_dtype(hd_dtype t) { return t == HD_BF16 ? "bfloat16" : t == HD_F16 ? "float16" : "float32"; }

static json_t *config_object(const hd_lm_config *c, bool *failed)
{
    json_t *j = json_object();
    put(j, "architectures", json_pack("[s]", architectures[c->arch].name), failed);
    put(j, "model_type", json_string(architectures[c->arch].type), failed);
    for (const field *f = fields; f < fields + FIELDS; f++) {
        if (!has_field(c, f)) continue;
        /* head_dim is written only where it isn't the quotient: transformers' Qwen2 has no such key. */
        bool always = c->arch == HD_ARCH_QWEN3 || c->family == HD_FAMILY_GEMMA; /* their default is another */
        if (!strcmp(f->key, "head_dim") && !always && c->head_dim * c->heads == c->width) continue;
        put(j, f->key, write_field(c, f), failed);
    }
    if (c->family == HD_FAMILY_GPT2) put(j, "activation_function", json_string(c->activation), failed);
    else put_llama(j, c, failed);
    put_special_ids(j, c, failed);
    put(j, "torch_dtype", json_string(torch_dtype(c->dtype)), failed);
    put(j, "use_cache", json_true(), failed);
    return j;
}

/* Steals j. */
static int save_object(json_t *j, bool failed, const char *dir, const char *file, hd_error *err)
{
    char path[4096];
    int rc = failed ? hd_fail_memory(err, 0, file) : hd_path_join(path, sizeof path, dir, file, err);
    if (!rc) rc = hd_json_save(j, path, err);
    json_decref(j);
    return rc;
}

int hd_lm_config_save(const hd_lm_config *c, const char *dir, hd_error *err)
{
    bool failed = false;
    json_t *j = config_object(c, &failed);
    int rc = save_object(j, failed, dir, "config.json", err);
    if (rc) return rc;
    j = json_object();
    failed = false;
    if (c->bos >= 0) put(j, "bos_token_id", json_integer(c->bos), &failed);
    put_ids(j, "eos_token_id", c->eos, c->n_eos, &failed);
    return save_object(j, failed, dir, "generation_config.json", err);
}

/* ---- questions ---- */

int64_t hd_lm_config_parameters(const hd_lm_config *c)
{
    int64_t q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim, d = c->width, f = c->mlp_width;
    bool gpt2 = c->family == HD_FAMILY_GPT2;
    bool gemma = c->family == HD_FAMILY_GEMMA;
    int64_t layer = 2 * d * q + 2 * d * kv + (gpt2 ? 2 : 3) * d * f + (gpt2 || gemma ? 4 : 2) * d;
    if (c->qk_norm) layer += 2 * c->head_dim;
    if (c->qkv_bias) layer += q + 2 * kv;
    if (c->o_bias) layer += d;
    if (c->mlp_bias) layer += (gpt2 ? 1 : 2) * f + d;
    int64_t total = c->layers * layer + c->vocab * d + (gpt2 ? 2 : 1) * d;
    if (gpt2) total += c->max_positions * d;
    if (!c->tie_embeddings) total += c->vocab * d;
    return total;
}

const char *hd_lm_config_note(const hd_lm_config *c)
{
    return c->attn_dropout > 0 ? "dropout of attention weights (attn_pdrop, attention_dropout) is not applied in training; "
                                 "dropout of embeddings and sublayer outputs is" : NULL;
}

int64_t hd_lm_config_window(const hd_lm_config *c, int64_t layer)
{
    bool full = layer < c->window_from || (c->window_period && (layer + 1) % c->window_period == 0);
    return c->window > 0 && !full ? c->window : 0;
}
