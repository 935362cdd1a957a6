#include "models/weights.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/str.h"
#include "models/gguf.h"
#include "tensor/safetensors.h"

/* ---- the tables ---- */

/* Extents by name. E: head_dim, Q: heads * head_dim, K: the same of key/value heads, Q3: three times Q. Stacked: QKV: Q and twice K; F2: twice F. */
typedef enum extent { NO_DIM, DIM_D, DIM_V, DIM_P, DIM_F, DIM_E, DIM_Q, DIM_K, DIM_Q3, DIM_QKV, DIM_F2, EXTENTS } extent;
typedef enum presence { ALWAYS, IF_QKV_BIAS, IF_O_BIAS, IF_MLP_BIAS, IF_QK_NORM, IF_UNTIED } presence;

/* '*' stands for the layer's number. Names that start with '/' have no prefix. */
typedef struct mapping {
    const char *name;
    extent dim[2];
    presence when;
    const char *path[3];
    const char *gguf;
    hd_gguf_change change;
} mapping;

/* Conv1D keeps weights as [inputs, outputs]. */
static const mapping gpt2_map[] = {
    { "wte.weight", { DIM_V, DIM_D }, ALWAYS, { "embed.tokens" }, "token_embd.weight", HD_GGUF_SAME },
    { "wpe.weight", { DIM_P, DIM_D }, ALWAYS, { "embed.positions" }, "position_embd.weight", HD_GGUF_SAME },
    { "h.*.ln_1.weight", { DIM_D }, ALWAYS, { "layers.*.norm1.gamma" }, "blk.*.attn_norm.weight", HD_GGUF_SAME },
    { "h.*.ln_1.bias", { DIM_D }, ALWAYS, { "layers.*.norm1.beta" }, "blk.*.attn_norm.bias", HD_GGUF_SAME },
    { "h.*.attn.c_attn.weight", { DIM_D, DIM_Q3 }, ALWAYS, { "layers.*.attn.q", "layers.*.attn.k", "layers.*.attn.v" },
      "blk.*.attn_qkv.weight", HD_GGUF_TURNED },
    { "h.*.attn.c_attn.bias", { DIM_Q3 }, ALWAYS, { "layers.*.attn.q_bias", "layers.*.attn.k_bias", "layers.*.attn.v_bias" },
      "blk.*.attn_qkv.bias", HD_GGUF_SAME },
    { "h.*.attn.c_proj.weight", { DIM_Q, DIM_D }, ALWAYS, { "layers.*.attn.o" }, "blk.*.attn_output.weight", HD_GGUF_TURNED },
    { "h.*.attn.c_proj.bias", { DIM_D }, ALWAYS, { "layers.*.attn.o_bias" }, "blk.*.attn_output.bias", HD_GGUF_SAME },
    { "h.*.ln_2.weight", { DIM_D }, ALWAYS, { "layers.*.norm2.gamma" }, "blk.*.ffn_norm.weight", HD_GGUF_SAME },
    { "h.*.ln_2.bias", { DIM_D }, ALWAYS, { "layers.*.norm2.beta" }, "blk.*.ffn_norm.bias", HD_GGUF_SAME },
    { "h.*.mlp.c_fc.weight", { DIM_D, DIM_F }, ALWAYS, { "layers.*.mlp.up" }, "blk.*.ffn_up.weight", HD_GGUF_TURNED },
    { "h.*.mlp.c_fc.bias", { DIM_F }, ALWAYS, { "layers.*.mlp.up_bias" }, "blk.*.ffn_up.bias", HD_GGUF_SAME },
    { "h.*.mlp.c_proj.weight", { DIM_F, DIM_D }, ALWAYS, { "layers.*.mlp.down" }, "blk.*.ffn_down.weight", HD_GGUF_TURNED },
    { "h.*.mlp.c_proj.bias", { DIM_D }, ALWAYS, { "layers.*.mlp.down_bias" }, "blk.*.ffn_down.bias", HD_GGUF_SAME },
    { "ln_f.weight", { DIM_D }, ALWAYS, { "norm.gamma" }, "output_norm.weight", HD_GGUF_SAME },
    { "ln_f.bias", { DIM_D }, ALWAYS, { "norm.beta" }, "output_norm.bias", HD_GGUF_SAME },
    { "/lm_head.weight", { DIM_V, DIM_D }, IF_UNTIED, { "head" }, "output.weight", HD_GGUF_SAME },
    { 0 },
};

/* Linear keeps weights as [outputs, inputs]. */
static const mapping llama_map[] = {
    { "embed_tokens.weight", { DIM_V, DIM_D }, ALWAYS, { "embed.tokens" }, "token_embd.weight", HD_GGUF_SAME },
    { "layers.*.input_layernorm.weight", { DIM_D }, ALWAYS, { "layers.*.norm1.gamma" }, "blk.*.attn_norm.weight", HD_GGUF_SAME },
    { "layers.*.self_attn.q_proj.weight", { DIM_Q, DIM_D }, ALWAYS, { "layers.*.attn.q" }, "blk.*.attn_q.weight", HD_GGUF_PAIRS },
    { "layers.*.self_attn.q_proj.bias", { DIM_Q }, IF_QKV_BIAS, { "layers.*.attn.q_bias" }, "blk.*.attn_q.bias", HD_GGUF_PAIRS },
    { "layers.*.self_attn.k_proj.weight", { DIM_K, DIM_D }, ALWAYS, { "layers.*.attn.k" }, "blk.*.attn_k.weight", HD_GGUF_PAIRS },
    { "layers.*.self_attn.k_proj.bias", { DIM_K }, IF_QKV_BIAS, { "layers.*.attn.k_bias" }, "blk.*.attn_k.bias", HD_GGUF_PAIRS },
    { "layers.*.self_attn.q_norm.weight", { DIM_E }, IF_QK_NORM, { "layers.*.attn.q_norm" }, "blk.*.attn_q_norm.weight", HD_GGUF_SAME },
    { "layers.*.self_attn.k_norm.weight", { DIM_E }, IF_QK_NORM, { "layers.*.attn.k_norm" }, "blk.*.attn_k_norm.weight", HD_GGUF_SAME },
    { "layers.*.self_attn.v_proj.weight", { DIM_K, DIM_D }, ALWAYS, { "layers.*.attn.v" }, "blk.*.attn_v.weight", HD_GGUF_SAME },
    { "layers.*.self_attn.v_proj.bias", { DIM_K }, IF_QKV_BIAS, { "layers.*.attn.v_bias" }, "blk.*.attn_v.bias", HD_GGUF_SAME },
    { "layers.*.self_attn.o_proj.weight", { DIM_D, DIM_Q }, ALWAYS, { "layers.*.attn.o" }, "blk.*.attn_output.weight", HD_GGUF_SAME },
    { "layers.*.self_attn.o_proj.bias", { DIM_D }, IF_O_BIAS, { "layers.*.attn.o_bias" }, "blk.*.attn_output.bias", HD_GGUF_SAME },
    { "layers.*.post_attention_layernorm.weight", { DIM_D }, ALWAYS, { "layers.*.norm2.gamma" }, "blk.*.ffn_norm.weight", HD_GGUF_SAME },
    { "layers.*.mlp.gate_proj.weight", { DIM_F, DIM_D }, ALWAYS, { "layers.*.mlp.gate" }, "blk.*.ffn_gate.weight", HD_GGUF_SAME },
    { "layers.*.mlp.gate_proj.bias", { DIM_F }, IF_MLP_BIAS, { "layers.*.mlp.gate_bias" }, "blk.*.ffn_gate.bias", HD_GGUF_SAME },
    { "layers.*.mlp.up_proj.weight", { DIM_F, DIM_D }, ALWAYS, { "layers.*.mlp.up" }, "blk.*.ffn_up.weight", HD_GGUF_SAME },
    { "layers.*.mlp.up_proj.bias", { DIM_F }, IF_MLP_BIAS, { "layers.*.mlp.up_bias" }, "blk.*.ffn_up.bias", HD_GGUF_SAME },
    { "layers.*.mlp.down_proj.weight", { DIM_D, DIM_F }, ALWAYS, { "layers.*.mlp.down" }, "blk.*.ffn_down.weight", HD_GGUF_SAME },
    { "layers.*.mlp.down_proj.bias", { DIM_D }, IF_MLP_BIAS, { "layers.*.mlp.down_bias" }, "blk.*.ffn_down.bias", HD_GGUF_SAME },
    { "norm.weight", { DIM_D }, ALWAYS, { "norm.gamma" }, "output_norm.weight", HD_GGUF_SAME },
    { "/lm_head.weight", { DIM_V, DIM_D }, IF_UNTIED, { "head" }, "output.weight", HD_GGUF_SAME },
    { 0 },
};

/* Phi-3: the Llama line with q, k and v in one tensor, and gate and up in another, which GGUF files call ffn_up. */
static const mapping phi3_map[] = {
    { "embed_tokens.weight", { DIM_V, DIM_D }, ALWAYS, { "embed.tokens" }, "token_embd.weight", HD_GGUF_SAME },
    { "layers.*.input_layernorm.weight", { DIM_D }, ALWAYS, { "layers.*.norm1.gamma" }, "blk.*.attn_norm.weight", HD_GGUF_SAME },
    { "layers.*.self_attn.qkv_proj.weight", { DIM_QKV, DIM_D }, ALWAYS, { "layers.*.attn.q", "layers.*.attn.k", "layers.*.attn.v" },
      "blk.*.attn_qkv.weight", HD_GGUF_SAME },
    { "layers.*.self_attn.o_proj.weight", { DIM_D, DIM_Q }, ALWAYS, { "layers.*.attn.o" }, "blk.*.attn_output.weight", HD_GGUF_SAME },
    { "layers.*.post_attention_layernorm.weight", { DIM_D }, ALWAYS, { "layers.*.norm2.gamma" }, "blk.*.ffn_norm.weight", HD_GGUF_SAME },
    { "layers.*.mlp.gate_up_proj.weight", { DIM_F2, DIM_D }, ALWAYS, { "layers.*.mlp.gate", "layers.*.mlp.up" }, "blk.*.ffn_up.weight", HD_GGUF_SAME },
    { "layers.*.mlp.down_proj.weight", { DIM_D, DIM_F }, ALWAYS, { "layers.*.mlp.down" }, "blk.*.ffn_down.weight", HD_GGUF_SAME },
    { "norm.weight", { DIM_D }, ALWAYS, { "norm.gamma" }, "output_norm.weight", HD_GGUF_SAME },
    { "/lm_head.weight", { DIM_V, DIM_D }, IF_UNTIED, { "head" }, "output.weight", HD_GGUF_SAME },
    { 0 },
};

static const mapping gemma_map[] = {
    { "embed_tokens.weight", { DIM_V, DIM_D }, ALWAYS, { "embed.tokens" }, "token_embd.weight", HD_GGUF_SAME },
    { "layers.*.input_layernorm.weight", { DIM_D }, ALWAYS, { "layers.*.norm1.gamma" }, "blk.*.attn_norm.weight", HD_GGUF_PLUS_ONE },
    { "layers.*.self_attn.q_proj.weight", { DIM_Q, DIM_D }, ALWAYS, { "layers.*.attn.q" }, "blk.*.attn_q.weight", HD_GGUF_SAME },
    { "layers.*.self_attn.k_proj.weight", { DIM_K, DIM_D }, ALWAYS, { "layers.*.attn.k" }, "blk.*.attn_k.weight", HD_GGUF_SAME },
    { "layers.*.self_attn.q_norm.weight", { DIM_E }, IF_QK_NORM, { "layers.*.attn.q_norm" }, "blk.*.attn_q_norm.weight", HD_GGUF_PLUS_ONE },
    { "layers.*.self_attn.k_norm.weight", { DIM_E }, IF_QK_NORM, { "layers.*.attn.k_norm" }, "blk.*.attn_k_norm.weight", HD_GGUF_PLUS_ONE },
    { "layers.*.self_attn.v_proj.weight", { DIM_K, DIM_D }, ALWAYS, { "layers.*.attn.v" }, "blk.*.attn_v.weight", HD_GGUF_SAME },
    { "layers.*.self_attn.o_proj.weight", { DIM_D, DIM_Q }, ALWAYS, { "layers.*.attn.o" }, "blk.*.attn_output.weight", HD_GGUF_SAME },
    { "layers.*.post_attention_layernorm.weight", { DIM_D }, ALWAYS, { "layers.*.norm1_after" }, "blk.*.post_attention_norm.weight", HD_GGUF_PLUS_ONE },
    { "layers.*.pre_feedforward_layernorm.weight", { DIM_D }, ALWAYS, { "layers.*.norm2.gamma" }, "blk.*.ffn_norm.weight", HD_GGUF_PLUS_ONE },
    { "layers.*.mlp.gate_proj.weight", { DIM_F, DIM_D }, ALWAYS, { "layers.*.mlp.gate" }, "blk.*.ffn_gate.weight", HD_GGUF_SAME },
    { "layers.*.mlp.up_proj.weight", { DIM_F, DIM_D }, ALWAYS, { "layers.*.mlp.up" }, "blk.*.ffn_up.weight", HD_GGUF_SAME },
    { "layers.*.mlp.down_proj.weight", { DIM_D, DIM_F }, ALWAYS, { "layers.*.mlp.down" }, "blk.*.ffn_down.weight", HD_GGUF_SAME },
    { "layers.*.post_feedforward_layernorm.weight", { DIM_D }, ALWAYS, { "layers.*.norm2_after" }, "blk.*.post_ffw_norm.weight", HD_GGUF_PLUS_ONE },
    { "norm.weight", { DIM_D }, ALWAYS, { "norm.gamma" }, "output_norm.weight", HD_GGUF_PLUS_ONE },
    { "/lm_head.weight", { DIM_V, DIM_D }, IF_UNTIED, { "head" }, "output.weight", HD_GGUF_SAME },
    { 0 },
};

static const struct {
    const mapping *map;
    const char *prefix;
    const char *ignored[4]; /* buffers that older checkpoints hold: masks and tables */
} families[HD_FAMILY_COUNT] = {
    [HD_FAMILY_GPT2] = { gpt2_map, "transformer.", { "*.attn.bias", "*.attn.masked_bias" } },
    [HD_FAMILY_LLAMA] = { llama_map, "model.", { "*.rotary_emb.inv_freq" } },
    [HD_FAMILY_GEMMA] = { gemma_map, "model.", { "*.rotary_emb.inv_freq" } },
};

static const mapping *map_of(const hd_lm_config *c) { return c->arch == HD_ARCH_PHI3 ? phi3_map : families[c->family].map; }

/* ---- writing the table out ---- */

static int64_t extent_of(const hd_lm_config *c, extent e)
{
    const int64_t q = c->heads * c->head_dim;
    const int64_t of[EXTENTS] = {
        [DIM_D] = c->width, [DIM_V] = c->vocab, [DIM_P] = c->max_positions, [DIM_F] = c->mlp_width,
        [DIM_E] = c->head_dim, [DIM_Q] = q, [DIM_K] = c->kv_heads * c->head_dim, [DIM_Q3] = 3 * q,
        [DIM_QKV] = q + 2 * c->kv_heads * c->head_dim, [DIM_F2] = 2 * c->mlp_width,
    };
    return of[e];
}

static bool is_present(const hd_lm_config *c, presence when)
{
    const bool there[] = { [ALWAYS] = true, [IF_QKV_BIAS] = c->qkv_bias, [IF_O_BIAS] = c->o_bias, [IF_MLP_BIAS] = c->mlp_bias,
                           [IF_QK_NORM] = c->qk_norm, [IF_UNTIED] = !c->tie_embeddings };
    return there[when];
}

/* The pattern with the layer's number in the place of '*'. */
static void fill_in(char *out, size_t n, const char *prefix, const char *pattern, int64_t layer)
{
    const char *star = strchr(pattern, '*');
    if (star) snprintf(out, n, "%s%.*s%" PRId64 "%s", prefix, (int)(star - pattern), pattern, layer, star + 1);
    else snprintf(out, n, "%s%s", prefix, pattern);
}

static hd_lm_tensor write_out(const hd_lm_config *c, const mapping *m, int64_t layer)
{
    hd_lm_tensor t = { .rank = m->dim[1] ? 2 : 1 };
    bool bare = *m->name == '/';
    fill_in(t.name, sizeof t.name, bare ? "" : families[c->family].prefix, m->name + bare, layer);
    static const extent stacked[EXTENTS][3] = { [DIM_QKV] = { DIM_Q, DIM_K, DIM_K }, [DIM_F2] = { DIM_F, DIM_F } };
    for (int i = 0; i < t.rank; i++) t.dim[i] = extent_of(c, m->dim[i]);
    for (int i = 0; i < 3; i++) t.rows[i] = extent_of(c, stacked[m->dim[0]][i]);
    fill_in(t.gguf, sizeof t.gguf, "", m->gguf, layer);
    bool in_halves = c->arch != HD_ARCH_LLAMA && c->arch != HD_ARCH_MISTRAL; /* GGUF's "llama" alone turns neighbours */
    t.change = m->change == HD_GGUF_PAIRS && in_halves ? HD_GGUF_SAME : m->change;
    for (; t.parts < 3 && m->path[t.parts]; t.parts++) fill_in(t.path[t.parts], sizeof t.path[0], "", m->path[t.parts], layer);
    return t;
}

/* Layered rows stand together in a table, so that each layer's tensors can follow one another. */
static size_t list_tensors(const hd_lm_config *c, hd_lm_tensor *out)
{
    size_t n = 0;
    const mapping *m = map_of(c);
    while (m->name) {
        const mapping *end = m + 1;
        bool layered = strchr(m->name, '*');
        while (layered && end->name && strchr(end->name, '*')) end++;
        for (int64_t layer = 0; layer < (layered ? c->layers : 1); layer++)
            for (const mapping *i = m; i < end; i++)
                if (is_present(c, i->when)) out[n++] = write_out(c, i, layer);
        m = end;
    }
    return n;
}

int hd_lm_tensors(const hd_lm_config *c, hd_lm_tensor **out, size_t *count, hd_error *err)
{
    size_t rows = 0;
    for (const mapping *m = map_of(c); m->name; m++) rows += strchr(m->name, '*') ? (size_t)c->layers : 1;
    *out = hd_calloc(rows, sizeof **out);
    if (!*out) return hd_fail_memory(err, rows * sizeof **out, "the list of weights");
    *count = list_tensors(c, *out);
    return HD_OK;
}

/* ---- parts of a tensor ---- */

int64_t hd_lm_tensor_part(const hd_lm_tensor *t, int part, hd_file_place *place)
{
    int64_t last = t->dim[t->rank - 1], all = t->dim[0] * (t->rank == 2 ? t->dim[1] : 1), above = 0;
    *place = (hd_file_place){ 0 };
    if (t->parts == 1) return all;
    if (!t->rows[0]) {
        *place = (hd_file_place){ last / t->parts, last, part * (last / t->parts) };
        return all / t->parts;
    }
    int64_t row = t->rank == 2 ? last : 1, count = t->rows[part] * row;
    for (int i = 0; i < part; i++) above += t->rows[i];
    *place = (hd_file_place){ count, count, above * row };
    return count;
}

/* *out NULL: another stage of the pipeline has it. */
static int bind(const hd_store *s, const hd_lm_tensor *t, int part, hd_store_tensor **out, hd_file_place *place, hd_error *err)
{
    int64_t count = hd_lm_tensor_part(t, part, place);
    *out = hd_store_find(s, t->path[part]);
    if (!*out && s->all) return HD_OK;
    if (!*out) return hd_fail(err, HD_EINVAL, "the model has no parameter %s, where %s belongs", t->path[part], t->name);
    hd_shape whole = hd_store_tensor_whole(*out);
    if ((*out)->format != HD_PLAIN || hd_shape_count(&whole) != count)
        return hd_fail(err, HD_EINVAL, "parameter %s is not of the size that %s has", t->path[part], t->name);
    return HD_OK;
}

/* ---- loading ---- */

static void print_dims(char *out, size_t n, int rank, const int64_t *dim)
{
    size_t at = (size_t)snprintf(out, n, "[");
    for (int i = 0; i < rank && at < n; i++) at += (size_t)snprintf(out + at, n - at, "%s%" PRId64, i ? ", " : "", dim[i]);
    if (at < n) snprintf(out + at, n - at, "]");
}

static int check_shape(const hd_weight *w, const hd_lm_tensor *t, hd_error *err)
{
    bool same = w->rank == t->rank;
    for (int i = 0; same && i < t->rank; i++) same = w->dim[i] == t->dim[i];
    if (!hd_dtype_is_float(w->dtype))
        return hd_fail(err, HD_EFORMAT, "%s: %s holds %s, not numbers of a weight", w->file, w->name, hd_dtype_name(w->dtype));
    if (same) return HD_OK;
    char is[192], should[64];
    print_dims(is, sizeof is, w->rank, w->dim);
    print_dims(should, sizeof should, t->rank, t->dim);
    return hd_fail(err, HD_EFORMAT, "%s: %s is %s, config.json says %s", w->file, w->name, is, should);
}

int hd_lm_tensor_load(hd_store *s, const hd_lm_tensor *t, const hd_weight *w, hd_error *err)
{
    int rc = check_shape(w, t, err);
    for (int part = 0; !rc && part < t->parts; part++) {
        hd_store_tensor *to = NULL;
        hd_file_place place;
        rc = bind(s, t, part, &to, &place, err);
        if (!rc && to && !to->hollow) hd_piece_load(w, s, to, place);
    }
    return rc;
}

/* With the family's prefix, or without: a base model saved by itself has none. */
static const hd_weight *find_weight(const hd_weights *w, const hd_lm_tensor *t, const char *prefix)
{
    const hd_weight *found = hd_weights_find(w, t->name);
    size_t n = strlen(prefix);
    if (!found && !strncmp(t->name, prefix, n)) found = hd_weights_find(w, t->name + n);
    return found;
}

/* Tensors that hold nothing to load: masks, tables, and the head of a model whose head is its embedding. */
static bool is_ignored(const hd_lm_config *c, const char *name)
{
    if (c->tie_embeddings && !strcmp(name, "lm_head.weight")) return true;
    for (int i = 0; i < 4 && families[c->family].ignored[i]; i++)
        if (hd_glob_match(families[c->family].ignored[i], name)) return true;
    return false;
}

static int load_all(hd_store *s, const hd_lm_config *c, const hd_weights *w, const hd_lm_tensor *list, size_t n, bool *used,
                    const char *path, hd_error *err)
{
    for (size_t i = 0; i < n; i++) {
        const hd_weight *from = find_weight(w, &list[i], families[c->family].prefix);
        if (!from) return hd_fail(err, HD_EFORMAT, "%s: there is no tensor %s, which config.json calls for", path, list[i].name);
        used[from - w->tensors] = true;
        int rc = hd_lm_tensor_load(s, &list[i], from, err);
        if (rc) return rc;
    }
    for (size_t i = 0; i < w->count; i++)
        if (!used[i] && !is_ignored(c, w->tensors[i].name))
            return hd_fail(err, HD_EFORMAT, "%s: tensor %s has no place in the model that config.json describes", path, w->tensors[i].name);
    return HD_OK;
}

int hd_lm_weights_load(hd_store *s, const hd_lm_config *c, const char *path, hd_error *err)
{
    hd_weights w = { 0 };
    hd_lm_tensor *list = NULL;
    size_t n = 0;
    if (hd_gguf_is(path)) return hd_lm_gguf_open_and_load(s, c, path, err);
    int rc = hd_weights_open(&w, path, err);
    if (rc) return rc;
    bool *used = hd_calloc(w.count ? w.count : 1, sizeof *used);
    rc = used ? hd_lm_tensors(c, &list, &n, err) : hd_fail_memory(err, w.count, "loading weights");
    if (!rc) rc = load_all(s, c, &w, list, n, used, path, err);
    hd_free(list);
    hd_free(used);
    hd_weights_close(&w);
    return rc;
}

/* ---- saving ---- */

static uint64_t tensor_bytes(const hd_lm_tensor *t, hd_dtype dtype)
{
    return (uint64_t)t->dim[0] * (uint64_t)(t->rank == 2 ? t->dim[1] : 1) * hd_dtype_size(dtype);
}

/* The end of the shard that starts at `begin`: as many tensors as fit, at least one. */
static size_t shard_end(const hd_lm_tensor *list, size_t n, size_t begin, hd_dtype dtype, uint64_t limit)
{
    uint64_t bytes = tensor_bytes(&list[begin], dtype);
    size_t end = begin + 1;
    while (end < n && (!limit || bytes + tensor_bytes(&list[end], dtype) <= limit)) bytes += tensor_bytes(&list[end++], dtype);
    return end;
}

static int write_tensor(hd_safetensors_writer *w, size_t which, const hd_store *s, const hd_lm_tensor *t, hd_error *err)
{
    int rc = HD_OK;
    for (int part = 0; !rc && part < t->parts; part++) {
        hd_store_tensor *from = NULL;
        hd_file_place place;
        rc = bind(s, t, part, &from, &place, err);
        if (!rc && from && hd_piece_is_ours(s, from)) rc = hd_piece_write(w, which, s, from, place, err);
    }
    return rc;
}

static int write_shard(const hd_store *s, const hd_lm_tensor *list, size_t n, const char *path, hd_dtype dtype, hd_share *share, hd_error *err)
{
    hd_weight_spec *specs = hd_calloc(n, sizeof *specs);
    if (!specs) return hd_fail_memory(err, n * sizeof *specs, path);
    for (size_t i = 0; i < n; i++)
        specs[i] = (hd_weight_spec){ list[i].name, dtype, list[i].rank, { list[i].dim[0], list[i].dim[1] } };
    hd_safetensors_writer *w = hd_safetensors_begin(share, path, specs, n, NULL, err);
    int rc = w ? HD_OK : err && err->code ? err->code : HD_EIO;
    bool frame = share && share->part == HD_SHARE_FRAME;
    for (size_t i = 0; !rc && !frame && i < n; i++) rc = write_tensor(w, i, s, &list[i], err);
    rc = hd_safetensors_end(share, w, rc, err);
    hd_free(specs);
    return rc;
}

typedef struct shards {
    size_t count;
    json_t *map; /* weight_map of the index */
    uint64_t bytes;
    bool failed;
} shards;

static void shard_name(char *out, size_t n, size_t shard, size_t count)
{
    if (count == 1) snprintf(out, n, "model.safetensors");
    else snprintf(out, n, "model-%05zu-of-%05zu.safetensors", shard + 1, count);
}

static int write_shards(const hd_store *s, const hd_lm_tensor *list, size_t n, const char *dir, hd_dtype dtype, uint64_t limit, hd_share *share,
                        shards *o, hd_error *err)
{
    for (size_t at = 0; at < n; at = shard_end(list, n, at, dtype, limit)) o->count++;
    size_t at = 0;
    for (size_t i = 0; i < o->count; i++) {
        char name[64], path[4096];
        size_t end = shard_end(list, n, at, dtype, limit);
        shard_name(name, sizeof name, i, o->count);
        int rc = hd_path_join(path, sizeof path, dir, name, err);
        if (!rc) rc = write_shard(s, list + at, end - at, path, dtype, share, err);
        if (rc) return rc;
        for (; at < end; at++) {
            o->bytes += tensor_bytes(&list[at], dtype);
            if (json_object_set_new(o->map, list[at].name, json_string(name))) o->failed = true;
        }
    }
    return HD_OK;
}

/* The index of several shards; where there is one file, an old index that would be read in its place goes, and the other way round. */
static int write_index(const char *dir, shards *o, hd_error *err)
{
    char index[4096], single[4096];
    int rc = hd_path_join(index, sizeof index, dir, "model.safetensors.index.json", err);
    if (!rc) rc = hd_path_join(single, sizeof single, dir, "model.safetensors", err);
    if (rc) return rc;
    if (o->count == 1) {
        unlink(index);
        return HD_OK;
    }
    unlink(single);
    json_t *j = json_pack("{s:{s:I}, s:O}", "metadata", "total_size", (json_int_t)o->bytes, "weight_map", o->map);
    rc = j && !o->failed ? hd_json_save(j, index, err) : hd_fail_memory(err, 0, "the index of weights");
    json_decref(j);
    return rc;
}

static int save_weights(const hd_store *s, const hd_lm_config *c, const char *dir, hd_dtype dtype, uint64_t shard_bytes, hd_share *share, hd_error *err)
{
    hd_lm_tensor *list = NULL;
    size_t n = 0;
    if (dtype != HD_F32 && dtype != HD_BF16 && dtype != HD_F16)
        return hd_fail(err, HD_EUNSUPPORTED, "weights are saved in f32, bf16 or f16, not %s", hd_dtype_name(dtype));
    int rc = hd_lm_tensors(c, &list, &n, err);
    if (rc) return rc;
    shards o = { .map = json_object() };
    rc = o.map ? write_shards(s, list, n, dir, dtype, shard_bytes, share, &o, err) : hd_fail_memory(err, 0, "the index of weights");
    if (!rc && !(share && share->part == HD_SHARE_PIECES)) rc = write_index(dir, &o, err);
    json_decref(o.map);
    hd_free(list);
    return rc;
}

int hd_lm_weights_save(const hd_store *s, const hd_lm_config *c, const char *dir, hd_dtype dtype, uint64_t shard_bytes, hd_error *err)
{
    return save_weights(s, c, dir, dtype, shard_bytes, NULL, err);
}

int hd_lm_save_share(const hd_store *s, const hd_lm_config *c, const char *dir, hd_dtype dtype, uint64_t shard_bytes, hd_share *share, hd_error *err)
{
    hd_lm_config written = *c;
    written.dtype = dtype;
    if (share && share->part == HD_SHARE_PIECES) return save_weights(s, c, dir, dtype, shard_bytes, share, err);
    int rc = hd_make_dirs(dir, err);
    if (!rc) rc = save_weights(s, c, dir, dtype, shard_bytes, share, err);
    return rc ? rc : hd_lm_config_save(&written, dir, err);
}

int hd_lm_save(const hd_store *s, const hd_lm_config *c, const char *dir, hd_dtype dtype, uint64_t shard_bytes, hd_error *err)
{
    return hd_lm_save_share(s, c, dir, dtype, shard_bytes, NULL, err);
}
