/* gguf.c: one table for what GGUF metadata says of a model, read and written alike; the tensors' names stand in weights.c.
 *
 * "llama" files hold Llama and Mistral, their queries and keys in another order of rows: there rotary embedding turns neighbours, here features half a
 * head apart. Frequencies scaled as Llama 3's are a tensor of divisors, rope_freqs.weight. */
#include "models/gguf.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/lm.h"

/* ---- architectures and their keys ---- */

static const struct {
    const char *name; /* general.architecture */
    hd_architecture arch;
} architectures[] = {
    {"gpt2", HD_ARCH_GPT2},   {"llama", HD_ARCH_LLAMA}, {"llama", HD_ARCH_MISTRAL},
    {"qwen2", HD_ARCH_QWEN2}, {"qwen3", HD_ARCH_QWEN3}, {"gemma3", HD_ARCH_GEMMA3},
    {"gemma2", HD_ARCH_GEMMA2}, {"phi3", HD_ARCH_PHI3},
};
enum { ARCHITECTURES = sizeof architectures / sizeof *architectures };

enum {
    ANY = (1 << HD_ARCH_COUNT) - 1, GPT2 = 1 << HD_ARCH_GPT2, PHI3 = 1 << HD_ARCH_PHI3, GEMMA2 = 1 << HD_ARCH_GEMMA2, GEMMA3 = 1 << HD_ARCH_GEMMA3,
    ROTARY = ANY & ~GPT2,
};

/* Keys behind "<architecture>.". Bounds: those of config.c, which checks again; low ones here keep nonsense out of products. */
typedef struct key {
    const char *name;
    size_t at;
    bool real, needed;
    int archs; /* that have it */
    double lo, hi;
} key;

#define AT(field) offsetof(hd_lm_config, field)
static const key keys[] = {
    {"context_length", AT(max_positions), false, false, ANY, 1, 0x1p27},
    {"embedding_length", AT(width), false, true, ANY, 1, 0x1p18},
    {"block_count", AT(layers), false, true, ANY, 1, 2048},
    {"feed_forward_length", AT(mlp_width), false, true, ANY, 1, 0x1p20},
    {"attention.head_count", AT(heads), false, true, ANY, 1, 4096},
    {"attention.head_count_kv", AT(kv_heads), false, false, ROTARY, 1, 4096},
    {"attention.key_length", AT(head_dim), false, false, ROTARY, 2, 4096},
    {"rope.dimension_count", AT(rotary_dim), false, false, ROTARY, 2, 4096},
    {"attention.layer_norm_epsilon", AT(norm_eps), true, true, GPT2, 1e-20, 1},
    {"attention.layer_norm_rms_epsilon", AT(norm_eps), true, true, ROTARY, 1e-20, 1},
    {"rope.freq_base", AT(rope.theta), true, false, ROTARY, 1.0001, 1e12},
    {"rope.freq_base_swa", AT(local_theta), true, false, GEMMA3, 1.0001, 1e12},
    {"attention.sliding_window", AT(window), false, false, GEMMA2 | GEMMA3 | PHI3, 0, 0x1p30},
    {"attention.sliding_window_pattern", AT(window_period), false, false, GEMMA3, 0, 2048},
    {"attn_logit_softcapping", AT(attn_softcap), true, false, GEMMA2, 0, 1e6},
    {"final_logit_softcapping", AT(final_softcap), true, false, GEMMA2, 0, 1e6},
};
enum { KEYS = sizeof keys / sizeof *keys };

static void full_key(char *out, size_t n, const char *arch, const char *name) { snprintf(out, n, "%s.%s", arch, name); }

/* The f32 as the person wrote it: the shortest decimal that rounds to it. */
static double as_written(double v)
{
    char text[40];
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, v);
        if ((float)strtod(text, NULL) == (float)v) return strtod(text, NULL);
    }
    return v;
}

static int read_real(const hd_gguf *g, const char *key, double lo, double hi, double *out, hd_error *err)
{
    double v = *out;
    int rc = hd_gguf_real(g, key, lo, hi, &v, err);
    if (!rc && hd_gguf_get(g, key)) *out = as_written(v);
    return rc;
}

static int read_key(hd_lm_config *c, const hd_gguf *g, const char *arch, const key *k, hd_error *err)
{
    char name[128];
    void *at = (char *)c + k->at;
    full_key(name, sizeof name, arch, k->name);
    int rc = k->needed ? hd_gguf_need(g, name, err) : 0;
    if (rc) return rc;
    return k->real ? read_real(g, name, k->lo, k->hi, at, err) : hd_gguf_int(g, name, (int64_t)k->lo, (int64_t)k->hi, at, err);
}

/* ---- reading a config ---- */

static int read_architecture(const hd_gguf *g, const char **name, hd_architecture *arch, hd_error *err)
{
    int rc = hd_gguf_need(g, "general.architecture", err);
    if (!rc) rc = hd_gguf_string(g, "general.architecture", name, err);
    if (rc) return rc;
    for (int i = 0; i < ARCHITECTURES; i++)
        if (!strcmp(*name, architectures[i].name)) return *arch = architectures[i].arch, 0;
    return hd_fail(err, HD_EUNSUPPORTED, "%s: architecture \"%.80s\" is not supported (gpt2, llama, qwen2, qwen3, gemma2, gemma3 and phi3 are)", g->path, *name);
}

static bool has_tensor(const hd_gguf *g, const char *name) { return hd_gguf_find(g, name); }

/* What metadata leave to the tensors. */
static int read_tensors(hd_lm_config *c, const hd_gguf *g, hd_error *err)
{
    const hd_weight *embedding = hd_gguf_find(g, "token_embd.weight");
    if (!embedding || embedding->rank != 2) return hd_fail(err, HD_EFORMAT, "%s: there is no tensor token_embd.weight of two dimensions", g->path);
    c->vocab = embedding->dim[0];
    c->tie_embeddings = !has_tensor(g, "output.weight");
    c->dtype = !embedding->quant && hd_dtype_is_float(embedding->dtype) && embedding->dtype != HD_F64 ? embedding->dtype : HD_F32;
    if (c->family == HD_FAMILY_GPT2) return 0;
    c->qkv_bias = has_tensor(g, "blk.0.attn_q.bias");
    c->o_bias = has_tensor(g, "blk.0.attn_output.bias");
    c->mlp_bias = has_tensor(g, "blk.0.ffn_up.bias");
    return 0;
}

/* Divisors of frequencies. They are no weights: the config has them. */
static const char *const factor_tensors[] = {"rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"};

static bool is_factors(const char *name)
{
    return !strcmp(name, factor_tensors[0]) || !strcmp(name, factor_tensors[1]) || !strcmp(name, factor_tensors[2]);
}

static int load_factors(const hd_lm_config *c, const hd_gguf *g, const char *name, float *out, hd_error *err)
{
    const hd_weight *w = hd_gguf_find(g, name);
    int64_t n = c->rotary_dim ? c->rotary_dim / 2 : c->head_dim ? c->head_dim / 2 : c->heads ? c->width / c->heads / 2 : 0;
    if (!w) return hd_fail(err, HD_EFORMAT, "%s: there is no tensor %s, which longrope scaling calls for", g->path, name);
    if (w->quant || w->dtype != HD_F32 || w->rank != 1 || w->dim[0] != n || n > HD_MAX_ROPE_FACTORS)
        return hd_fail(err, HD_EFORMAT, "%s: tensor %s must be %lld numbers in F32", g->path, name, (long long)n);
    hd_weight_load(w, 0, n, out, HD_F32);
    for (int64_t i = 0; i < n; i++)
        if (!(out[i] > 1e-6f && out[i] < 1e6f)) return hd_fail(err, HD_EFORMAT, "%s: tensor %s: %g is no sensible factor", g->path, name, out[i]);
    return 0;
}

/* longrope's, which files need not name: the length trained on, and a factor on what is rotated, 1 where it is missing. */
static int read_long(hd_lm_config *c, const hd_gguf *g, double attention, hd_error *err)
{
    hd_rope_config *r = &c->rope;
    double original = (double)(r->original_positions ? r->original_positions : c->max_positions);
    if (r->factor != 1) return hd_fail(err, HD_EUNSUPPORTED, "%s: rope_factors_long.weight beside another scaling is not supported", g->path);
    r->kind = HD_ROPE_LONG;
    r->factor = fmax(1, (double)c->max_positions / original);
    bool follows = original > 1 && fabs(sqrt(1 + log(r->factor) / log(original)) - attention) < 1e-6 * attention;
    r->attention_factor = follows ? 0 : attention;
    int rc = load_factors(c, g, "rope_factors_short.weight", r->pair_factor, err);
    return rc ? rc : load_factors(c, g, "rope_factors_long.weight", r->long_factor, err);
}

static int read_factors(hd_lm_config *c, const hd_gguf *g, double attention, hd_error *err)
{
    bool shared = has_tensor(g, "rope_freqs.weight"), two = has_tensor(g, "rope_factors_short.weight") || has_tensor(g, "rope_factors_long.weight");
    hd_rope_kind kind = c->rope.kind;
    if ((shared || two) && kind != HD_ROPE_PLAIN && !(two && kind == HD_ROPE_LONG))
        return hd_fail(err, HD_EUNSUPPORTED, "%s: %s beside another scaling is not supported", g->path, factor_tensors[shared ? 0 : 2]);
    if (shared && two) return hd_fail(err, HD_EUNSUPPORTED, "%s: rope_freqs.weight beside rope_factors_long.weight is not supported", g->path);
    if (two || kind == HD_ROPE_LONG) return read_long(c, g, attention, err);
    if (attention != 1) return hd_fail(err, HD_EUNSUPPORTED, "%s: rope.scaling.attn_factor is not supported without rope_factors_long.weight", g->path);
    if (!shared) return 0;
    c->rope.kind = HD_ROPE_FACTORS;
    return load_factors(c, g, "rope_freqs.weight", c->rope.pair_factor, err);
}

static int read_rope(hd_lm_config *c, const hd_gguf *g, const char *arch, hd_error *err)
{
    char name[128];
    const char *type = NULL;
    double attention = 1;
    hd_rope_config *r = &c->rope;
    full_key(name, sizeof name, arch, "rope.scaling.type");
    int rc = hd_gguf_string(g, name, &type, err);
    if (rc) return rc;
    if (type && !strcmp(type, "linear")) r->kind = HD_ROPE_LINEAR;
    else if (type && !strcmp(type, "yarn")) *r = (hd_rope_config){.kind = HD_ROPE_YARN, .theta = r->theta, .factor = 1, .beta_fast = 32, .beta_slow = 1};
    else if (type && !strcmp(type, "longrope")) r->kind = HD_ROPE_LONG;
    else if (type && strcmp(type, "none")) return hd_fail(err, HD_EUNSUPPORTED, "%s: metadata \"%s\": \"%.40s\" is not supported", g->path, name, type);
    full_key(name, sizeof name, arch, "rope.scaling.factor");
    rc = read_real(g, name, 1, 1e6, &r->factor, err);
    if (!rc && !type && r->factor != 1) r->kind = HD_ROPE_LINEAR; /* as llama.cpp takes it */
    full_key(name, sizeof name, arch, "rope.scaling.original_context_length");
    if (!rc) rc = hd_gguf_int(g, name, 1, 1 << 27, &r->original_positions, err);
    full_key(name, sizeof name, arch, "rope.scaling.yarn_beta_fast");
    if (!rc) rc = read_real(g, name, 1e-3, 1e6, &r->beta_fast, err);
    full_key(name, sizeof name, arch, "rope.scaling.yarn_beta_slow");
    if (!rc) rc = read_real(g, name, 1e-3, 1e6, &r->beta_slow, err);
    full_key(name, sizeof name, arch, "rope.scaling.attn_factor");
    if (!rc) rc = read_real(g, name, 1e-3, 1e3, &attention, err);
    return rc ? rc : read_factors(c, g, attention, err);
}

/* Keys that change what a model computes in ways that nothing here does. */
static int refuse_unknown(const hd_lm_config *c, const hd_gguf *g, const char *arch, hd_error *err)
{
    static const char *const zero[] = {"expert_count", "attention.clamp_kqv", "final_logit_softcapping", "attn_logit_softcapping", "attention.scale",
                                       "logit_scale", "embedding_scale", "residual_scale"};
    char name[128];
    double v = 0;
    int rc = 0;
    for (size_t i = 0; i < sizeof zero / sizeof *zero && !rc; i++) {
        if (c->arch == HD_ARCH_GEMMA2 && strstr(zero[i], "softcapping")) continue;
        full_key(name, sizeof name, arch, zero[i]);
        v = 0;
        rc = hd_gguf_real(g, name, -1e30, 1e30, &v, err);
        if (!rc && v != 0) rc = hd_fail(err, HD_EUNSUPPORTED, "%s: metadata \"%s\" is not supported", g->path, name);
    }
    if (rc || c->family == HD_FAMILY_GPT2) return rc;
    full_key(name, sizeof name, arch, "attention.value_length");
    v = (double)c->head_dim;
    rc = hd_gguf_real(g, name, 0, 1e9, &v, err);
    if (rc || v == (double)c->head_dim) return rc;
    return hd_fail(err, HD_EUNSUPPORTED, "%s: metadata \"%s\" is %g; other than a head's %lld features is not supported", g->path, name, v,
                   (long long)c->head_dim);
}

static void add_eos(hd_lm_config *c, int64_t id)
{
    for (int i = 0; i < c->n_eos; i++)
        if (c->eos[i] == id) return;
    if (id >= 0 && c->n_eos < HD_MAX_EOS) c->eos[c->n_eos++] = id;
}

/* Control tokens that end a turn by their name, whatever the metadata say of them: as llama.cpp. */
static int add_turn_ends(hd_lm_config *c, const hd_gguf *g, hd_error *err)
{
    static const char *const names[] = {"<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>"};
    const hd_gguf_value *tokens, *types;
    int rc = hd_gguf_array(g, "tokenizer.ggml.tokens", true, &tokens, err);
    if (!rc) rc = hd_gguf_array(g, "tokenizer.ggml.token_type", false, &types, err);
    if (rc || !tokens || !types) return rc;
    for (uint64_t i = 0; i < tokens->count && i < types->count; i++) {
        if (hd_gguf_integer(types, i) != 3) continue; /* control */
        for (size_t k = 0; k < sizeof names / sizeof *names; k++)
            if (tokens->texts[i].size == strlen(names[k]) && !memcmp(tokens->texts[i].data, names[k], strlen(names[k]))) add_eos(c, (int64_t)i);
    }
    return 0;
}

static int read_ids(hd_lm_config *c, const hd_gguf *g, hd_error *err)
{
    static const char *const ends[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};
    c->bos = -1;
    c->n_eos = 0;
    int rc = hd_gguf_int(g, "tokenizer.ggml.bos_token_id", 0, UINT32_MAX, &c->bos, err);
    for (int i = 0; i < 3 && !rc; i++) {
        int64_t id = -1;
        rc = hd_gguf_int(g, ends[i], 0, UINT32_MAX, &id, err);
        add_eos(c, id);
    }
    return rc ? rc : add_turn_ends(c, g, err);
}

/* llama.cpp knows by the count of layers that Gemma 2 27B and Gemma 3 27B scale otherwise. 0: by the width of a head. */
static double known_scalar(const hd_lm_config *c)
{
    return c->layers == (c->arch == HD_ARCH_GEMMA2 ? 46 : 62) && c->heads ? (double)(c->width / c->heads) : 0;
}

int hd_lm_gguf_config(hd_lm_config *out, const hd_gguf *g, hd_error *err)
{
    hd_lm_config c;
    const char *name = NULL;
    hd_architecture arch = HD_ARCH_GPT2;
    int rc = read_architecture(g, &name, &arch, err);
    if (rc) return rc;
    int64_t parts = 1;
    rc = hd_gguf_int(g, "split.count", 0, UINT16_MAX, &parts, err);
    if (!rc && parts > 1)
        rc = hd_fail(err, HD_EUNSUPPORTED, "%s: one of %lld files that a model is split into: that is not supported", g->path, (long long)parts);
    if (rc) return rc;
    hd_lm_config_preset(&c, arch);
    c.head_dim = c.kv_heads = 0;
    if (arch == HD_ARCH_GEMMA3) c.window = 0;
    for (int i = 0; i < KEYS && !rc; i++)
        if (keys[i].archs >> c.arch & 1) rc = read_key(&c, g, name, &keys[i], err);
    if (!rc) rc = read_tensors(&c, g, err);
    if (!rc && c.family != HD_FAMILY_GPT2) rc = read_rope(&c, g, name, err);
    if (!rc) rc = read_ids(&c, g, err);
    if (!rc && c.family == HD_FAMILY_GEMMA) c.query_scalar = known_scalar(&c);
    if (!rc) rc = hd_lm_config_check(&c, g->path, err);
    if (!rc) rc = refuse_unknown(&c, g, name, err);
    if (!rc) *out = c;
    return rc;
}

int hd_lm_config_open(hd_lm_config *c, const char *path, hd_error *err)
{
    hd_gguf g;
    if (!hd_gguf_is(path)) return hd_lm_config_load(c, path, err);
    int rc = hd_gguf_open(&g, path, err);
    if (rc) return rc;
    rc = hd_lm_gguf_config(c, &g, err);
    hd_gguf_close(&g);
    return rc;
}

/* ---- what lies otherwise ---- */

typedef void change_fn(const hd_lm_tensor *t, const hd_lm_config *c, bool reading, const float *x, float *y);

static void keep(const hd_lm_tensor *t, const hd_lm_config *c, bool reading, const float *x, float *y)
{
    (void)c, (void)reading;
    memcpy(y, x, (size_t)(t->dim[0] * (t->rank == 2 ? t->dim[1] : 1)) * sizeof *x);
}

static void turn(const hd_lm_tensor *t, const hd_lm_config *c, bool reading, const float *x, float *y)
{
    (void)c;
    int64_t rows = reading ? t->dim[1] : t->dim[0], columns = reading ? t->dim[0] : t->dim[1]; /* of x */
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) y[j * rows + i] = x[i * columns + j];
}

/* Row 2i + h of a head's R rotated ones there is row h R/2 + i here. */
static void pair(const hd_lm_tensor *t, const hd_lm_config *c, bool reading, const float *x, float *y)
{
    int64_t length = t->rank == 2 ? t->dim[1] : 1, rotary = hd_lm_rotary_dim(c), half = rotary / 2;
    for (int64_t r = 0; r < t->dim[0]; r++) {
        int64_t in = r % c->head_dim, there = r - in + (in < rotary ? in % half * 2 + in / half : in);
        memcpy(y + (reading ? r : there) * length, x + (reading ? there : r) * length, (size_t)length * sizeof *x);
    }
}

static void shift(const hd_lm_tensor *t, const hd_lm_config *c, bool reading, const float *x, float *y)
{
    (void)c;
    for (int64_t i = 0; i < t->dim[0]; i++) y[i] = x[i] + (reading ? -1 : 1);
}

static change_fn *const changes[HD_GGUF_CHANGES] = {[HD_GGUF_SAME] = keep, [HD_GGUF_TURNED] = turn, [HD_GGUF_PAIRS] = pair, [HD_GGUF_PLUS_ONE] = shift};

static int64_t count_of(const hd_lm_tensor *t) { return t->dim[0] * (t->rank == 2 ? t->dim[1] : 1); }

/* The tensor's shape in the file. */
static void dims_of(const hd_lm_tensor *t, int64_t dim[2])
{
    bool turned = t->change == HD_GGUF_TURNED;
    dim[0] = t->dim[turned];
    dim[1] = t->dim[!turned];
}

/* ---- loading ---- */

static int check(const hd_gguf *g, const hd_weight *w, const hd_lm_tensor *t, hd_error *err)
{
    int64_t dim[2];
    dims_of(t, dim);
    if (!hd_gguf_type(g, w)->dequantize || !hd_dtype_is_float(w->dtype))
        return hd_fail(err, HD_EUNSUPPORTED, "%s: tensor %s: weights in %s are not supported", g->path, w->name, hd_gguf_type(g, w)->name);
    return hd_weight_need_shape(w, t->rank, t->rank == 1 ? t->dim : dim, err);
}

static int load_changed(hd_store *s, const hd_lm_tensor *t, const hd_weight *w, const hd_lm_config *c, hd_error *err)
{
    int64_t n = count_of(t);
    float *x = hd_realloc_array(NULL, (size_t)n, sizeof *x), *y = hd_realloc_array(NULL, (size_t)n, sizeof *y);
    int rc = x && y ? 0 : hd_fail_memory(err, (size_t)n * 8, w->name);
    if (!rc) {
        hd_weight_load(w, 0, n, x, HD_F32);
        changes[t->change](t, c, true, x, y);
        hd_weight plain = {.name = w->name, .file = w->file, .dtype = HD_F32, .rank = t->rank, .dim = {t->dim[0], t->dim[1]},
                           .data = (const unsigned char *)y, .bytes = (size_t)n * sizeof *y};
        rc = hd_lm_tensor_load(s, t, &plain, err);
    }
    hd_free(x);
    hd_free(y);
    return rc;
}

/* Nothing reads any part of it. */
static bool is_hollow(const hd_store *s, const hd_lm_tensor *t)
{
    for (int part = 0; part < t->parts; part++) {
        const hd_store_tensor *there = hd_store_find(s, t->path[part]);
        if (!there || !there->hollow) return false;
    }
    return true;
}

static int load_all(hd_store *s, const hd_lm_config *c, const hd_gguf *g, const hd_lm_tensor *list, size_t n, bool *used, hd_error *err)
{
    for (size_t i = 0; i < n; i++) {
        const hd_weight *w = hd_gguf_find(g, list[i].gguf);
        if (!w) return hd_fail(err, HD_EFORMAT, "%s: there is no tensor %s, which the metadata call for", g->path, list[i].gguf);
        used[w - g->tensors] = true;
        const hd_store_tensor *there = hd_store_find(s, list[i].path[0]);
        if (there && there->type.blocks) continue; /* in the file's own blocks already */
        int rc = check(g, w, &list[i], err);
        if (!rc && is_hollow(s, &list[i])) continue;
        if (!rc) rc = list[i].change ? load_changed(s, &list[i], w, c, err) : hd_lm_tensor_load(s, &list[i], w, err);
        if (rc) return rc;
    }
    for (size_t i = 0; i < g->count; i++)
        if (!used[i] && !is_factors(g->tensors[i].name))
            return hd_fail(err, HD_EFORMAT, "%s: tensor %s has no place in the model that the metadata describe", g->path, g->tensors[i].name);
    return 0;
}

int hd_lm_gguf_load(hd_store *s, const hd_lm_config *c, const hd_gguf *g, hd_error *err)
{
    hd_lm_tensor *list = NULL;
    size_t n = 0;
    bool *used = hd_calloc(g->count + 1, sizeof *used);
    int rc = used ? hd_lm_tensors(c, &list, &n, err) : hd_fail_memory(err, g->count, "loading weights");
    if (!rc) rc = load_all(s, c, g, list, n, used, err);
    hd_free(list);
    hd_free(used);
    return rc;
}

int hd_lm_gguf_open_and_load(hd_store *s, const hd_lm_config *c, const char *path, hd_error *err)
{
    hd_gguf g;
    int rc = hd_gguf_open(&g, path, err);
    if (rc) return rc;
    rc = hd_lm_gguf_load(s, c, &g, err);
    hd_gguf_close(&g);
    return rc;
}

/* ---- writing ---- */

static const char *name_of(hd_architecture arch)
{
    for (int i = 0; i < ARCHITECTURES; i++)
        if (architectures[i].arch == arch) return architectures[i].name;
    return NULL;
}

static void put_rope(hd_gguf_writer *w, const hd_lm_config *c, const char *arch)
{
    char key[128];
    const hd_rope_config *r = &c->rope;
    static const char *const types[HD_ROPE_COUNT] = {[HD_ROPE_LINEAR] = "linear", [HD_ROPE_YARN] = "yarn", [HD_ROPE_LONG] = "longrope"};
    const char *type = types[r->kind];
    float unused[2048];
    if (!type) return;
    full_key(key, sizeof key, arch, "rope.scaling.type");
    hd_gguf_put_string(w, key, type, strlen(type));
    full_key(key, sizeof key, arch, r->kind == HD_ROPE_LONG ? "rope.scaling.attn_factor" : "rope.scaling.factor");
    hd_gguf_put_real(w, key, HD_GGUF_F32, r->kind == HD_ROPE_LONG ? hd_lm_rope_frequencies(c, 1, unused) : r->factor);
    if (r->kind == HD_ROPE_LINEAR) return;
    full_key(key, sizeof key, arch, "rope.scaling.original_context_length");
    hd_gguf_put_int(w, key, HD_GGUF_U32, r->original_positions ? r->original_positions : c->max_positions);
    if (r->kind != HD_ROPE_YARN) return;
    full_key(key, sizeof key, arch, "rope.scaling.yarn_beta_fast");
    hd_gguf_put_real(w, key, HD_GGUF_F32, r->beta_fast);
    full_key(key, sizeof key, arch, "rope.scaling.yarn_beta_slow");
    hd_gguf_put_real(w, key, HD_GGUF_F32, r->beta_slow);
}

/* llama.cpp's names of a file's main type. */
static int file_type(const hd_quant *q)
{
    static const struct { const char *name; int type; } types[] = {{"F32", 0}, {"F16", 1}, {"Q4_0", 2}, {"Q8_0", 7}, {"BF16", 32}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (!strcmp(q->name, types[i].name)) return types[i].type;
    return 0;
}

static void put_metadata(hd_gguf_writer *w, const hd_lm_config *c, const hd_quant *type)
{
    char name[128];
    const char *arch = name_of(c->arch);
    hd_gguf_put_string(w, "general.architecture", arch, strlen(arch));
    hd_gguf_put_string(w, "general.type", "model", 5);
    hd_gguf_put_int(w, "general.quantization_version", HD_GGUF_U32, 2);
    hd_gguf_put_int(w, "general.file_type", HD_GGUF_U32, file_type(type));
    for (int i = 0; i < KEYS; i++) {
        if (!(keys[i].archs >> c->arch & 1)) continue;
        const void *at = (const char *)c + keys[i].at;
        full_key(name, sizeof name, arch, keys[i].name);
        if (keys[i].at == AT(rotary_dim)) hd_gguf_put_int(w, name, HD_GGUF_U32, hd_lm_rotary_dim(c));
        else if (keys[i].real) hd_gguf_put_real(w, name, HD_GGUF_F32, *(const double *)at);
        else hd_gguf_put_int(w, name, HD_GGUF_U32, *(const int64_t *)at);
    }
    full_key(name, sizeof name, arch, "vocab_size");
    hd_gguf_put_int(w, name, HD_GGUF_U32, c->vocab);
    if (c->family == HD_FAMILY_GPT2) return;
    full_key(name, sizeof name, arch, "attention.value_length");
    hd_gguf_put_int(w, name, HD_GGUF_U32, c->head_dim);
    put_rope(w, c, arch);
}

/* What llama.cpp would compute otherwise. */
static int check_writable(const hd_lm_config *c, hd_error *err)
{
    hd_lm_config standard;
    hd_lm_config_preset(&standard, c->arch);
    bool gemma = c->family == HD_FAMILY_GEMMA;
    double scalar = c->query_scalar > 0 ? c->query_scalar : (double)c->head_dim, known = known_scalar(c) > 0 ? known_scalar(c) : (double)c->head_dim;
    const char *what = !gemma && c->arch != HD_ARCH_PHI3 && c->window ? "a sliding window" : NULL;
    if (c->scale_by_layer || !c->scale_attention) what = "this scaling of attention";
    if (gemma && scalar != known) what = "this query_pre_attn_scalar";
    if (c->arch == HD_ARCH_GEMMA2 && !(c->attn_softcap > 0 && c->final_softcap > 0)) what = "scores or logits that are not capped";
    if (gemma && c->window && c->window_period != standard.window_period) what = "this sliding_window_pattern";
    if (c->rope.kind == HD_ROPE_YARN && c->rope.attention_factor > 0) what = "an attention_factor";
    bool llama = !strcmp(name_of(c->arch), "llama");
    if (c->rope.kind == HD_ROPE_LONG && !llama && c->arch != HD_ARCH_PHI3) what = "longrope scaling";
    if (c->family != HD_FAMILY_GPT2 && hd_lm_rotary_dim(c) != c->head_dim && c->arch != HD_ARCH_PHI3) what = "a partial rotary embedding";
    if (standard.activation_op != c->activation_op) what = "this activation";
    return what ? hd_fail(err, HD_EUNSUPPORTED, "GGUF files of architecture %s cannot say %s", name_of(c->arch), what) : 0;
}

/* Norms and biases are too small to be worth the rounding. */
static const hd_quant *type_of(const hd_lm_tensor *t, const hd_quant *wanted)
{
    int64_t dim[2];
    dims_of(t, dim);
    if (t->rank == 1) return hd_quant_of_dtype(HD_F32);
    bool ends = !strcmp(t->gguf, "token_embd.weight") || !strcmp(t->gguf, "output.weight");
    if (ends && !strcmp(wanted->name, "Q4_0")) wanted = hd_quant_by_name("Q8_0");
    return dim[1] % wanted->block ? hd_quant_of_dtype(HD_F16) : wanted;
}

int hd_lm_gguf_metadata(hd_gguf_writer *w, const hd_lm_config *c, const hd_quant *type, hd_error *err)
{
    int rc = check_writable(c, err);
    if (!rc) put_metadata(w, c, type);
    return rc;
}

/* The tensors of divisors that say how frequencies are scaled: places in factor_tensors. */
static int factors_of(const hd_lm_config *c, int *first)
{
    bool one = c->rope.kind == HD_ROPE_LLAMA3 || c->rope.kind == HD_ROPE_FACTORS;
    *first = !one;
    return c->family == HD_FAMILY_GPT2 ? 0 : one ? 1 : c->rope.kind == HD_ROPE_LONG ? 2 : 0;
}

int hd_lm_gguf_declare(hd_gguf_writer *w, const hd_lm_config *c, const hd_quant *type, hd_error *err)
{
    hd_lm_tensor *list = NULL;
    size_t n = 0;
    int rc = hd_lm_tensors(c, &list, &n, err);
    if (!rc) rc = hd_lm_gguf_metadata(w, c, type, err);
    int first, factors = factors_of(c, &first);
    for (int i = first; i < first + factors && !rc; i++)
        rc = hd_gguf_add(w, factor_tensors[i], hd_quant_of_dtype(HD_F32), 1, (int64_t[]){hd_lm_rotary_dim(c) / 2}, err);
    for (size_t i = 0; i < n && !rc; i++) {
        int64_t dim[2];
        dims_of(&list[i], dim);
        rc = hd_gguf_add(w, list[i].gguf, type_of(&list[i], type), list[i].rank, list[i].rank == 1 ? list[i].dim : dim, err);
    }
    hd_free(list);
    return rc;
}

/* The whole tensor as a checkpoint has it, of all its parts. */
static int gather(const hd_lm_tensor *t, const hd_store *s, float *x, hd_error *err)
{
    for (int part = 0; part < t->parts; part++) {
        const hd_store_tensor *from = hd_store_find(s, t->path[part]);
        hd_file_place at;
        int64_t count = hd_lm_tensor_part(t, part, &at), run = at.run ? at.run : count;
        if (!from || from->format != HD_PLAIN || hd_shape_count(&from->type.shape) != count)
            return hd_fail(err, HD_EINVAL, "parameter %s is not of the size that %s has", t->path[part], t->gguf);
        size_t size = hd_dtype_size(from->type.dtype);
        for (int64_t r = 0; r < count / run; r++)
            hd_convert(x + at.first + r * at.stride, HD_F32, (const char *)from->data + (size_t)(r * run) * size, from->type.dtype, run);
    }
    return 0;
}

static int write_one(hd_gguf_writer *w, const hd_lm_config *c, const hd_lm_tensor *t, const hd_store *s, hd_error *err)
{
    size_t n = (size_t)count_of(t);
    float *x = hd_realloc_array(NULL, n, sizeof *x), *y = hd_realloc_array(NULL, n, sizeof *y);
    int rc = x && y ? gather(t, s, x, err) : hd_fail_memory(err, n * 8, t->gguf);
    if (!rc) {
        changes[t->change](t, c, false, x, y);
        rc = hd_gguf_write(w, y, (int64_t)n, err);
    }
    hd_free(x);
    hd_free(y);
    return rc;
}

/* How much slower than unscaled each pair turns. */
static int write_factors(hd_gguf_writer *w, const hd_lm_config *c, hd_error *err)
{
    float scaled[2048], factor[2048];
    int64_t features = hd_lm_rotary_dim(c), n = features / 2;
    if (c->rope.kind != HD_ROPE_LLAMA3) {
        int rc = hd_gguf_write(w, c->rope.pair_factor, n, err);
        return rc || c->rope.kind != HD_ROPE_LONG ? rc : hd_gguf_write(w, c->rope.long_factor, n, err);
    }
    hd_lm_rope_frequencies(c, 1, scaled);
    for (int64_t i = 0; i < n; i++) factor[i] = (float)(pow(c->rope.theta, -2 * (double)i / (double)features) / scaled[i]);
    return hd_gguf_write(w, factor, n, err);
}

int hd_lm_gguf_write(hd_gguf_writer *w, const hd_lm_config *c, const hd_store *s, hd_error *err)
{
    hd_lm_tensor *list = NULL;
    size_t n = 0;
    int rc = hd_lm_tensors(c, &list, &n, err);
    int first;
    if (!rc && factors_of(c, &first)) rc = write_factors(w, c, err);
    for (size_t i = 0; i < n && !rc; i++) rc = write_one(w, c, &list[i], s, err);
    hd_free(list);
    return rc;
}
