#include "models/lm.h"

#include <stdio.h>

#include "base/rng.h"
#include "models/lm_int.h"

static hd_value (*const builders[HD_FAMILY_COUNT])(hd_lm *m) = {
    [HD_FAMILY_GPT2] = hd_gpt2_build,
    [HD_FAMILY_LLAMA] = hd_llama_build,
    [HD_FAMILY_GEMMA] = hd_gemma_build,
};

/* ---- inputs ---- */

/* Keeps keys and values between calls, and gives logits of chosen rows only. */
static bool serves(const hd_lm_options *o) { return o->mode == HD_LM_SERVE; }

static hd_value input_rows(hd_lm *m, const char *name, hd_dtype dtype, int64_t n, int sym)
{
    hd_type t = hd_type_of(dtype, 1, &n);
    t.shape.sym = sym;
    return hd_graph_input(m->g, name, t, HD_TIME_SPLIT);
}

static bool has_dropout(const hd_lm *m)
{
    bool weights = m->o->attention == HD_ATTENTION_MATERIALISED && m->c->attn_dropout > 0;
    return m->o->mode == HD_LM_TRAIN && (m->c->embd_dropout > 0 || m->c->resid_dropout > 0 || weights);
}

static void declare_serving(hd_lm *m)
{
    int64_t tables[2] = { m->o->sequences, (m->o->context + m->o->block - 1) / m->o->block }, rows = m->o->rows ? m->o->rows : 1;
    m->sequences = input_rows(m, "sequences", HD_I32, m->o->tokens, m->sym_tokens);
    m->tables = hd_graph_input(m->g, "tables", hd_type_of(HD_I32, 2, tables), HD_TIME_SPLIT);
    m->slots = input_rows(m, "slots", HD_I32, m->o->tokens, m->sym_tokens);
    m->sym_rows = hd_graph_symbol(m->g, "rows", rows);
    m->rows = input_rows(m, "rows", HD_I32, rows, m->sym_rows);
}

static void declare_inputs(hd_lm *m)
{
    int64_t T = m->o->tokens;
    m->sym_tokens = m->sym_rows = -1;
    if (serves(m->o)) m->sym_tokens = hd_graph_symbol(m->g, "tokens", T);
    m->tokens = input_rows(m, "tokens", HD_I32, T, m->sym_tokens);
    m->positions = input_rows(m, "positions", HD_I32, T, m->sym_tokens);
    if (serves(m->o)) {
        declare_serving(m);
        return;
    }
    m->segments = input_rows(m, "segments", HD_I32, T, -1);
    m->targets = input_rows(m, "targets", HD_I32, T, -1);
    m->inv_divisor = hd_graph_input(m->g, "inv_divisor", hd_type_scalar(HD_F32), HD_TIME_REPLICATE);
    if (!has_dropout(m)) return;
    m->key = hd_graph_input(m->g, "key", hd_type_of(HD_I64, 1, (int64_t[]){ 2 }), HD_TIME_REPLICATE);
    m->samples = input_rows(m, "samples", HD_I64, T, -1);
}

/* ---- parameters ---- */

static hd_value declare(hd_lm *m, const char *name, hd_dtype dtype, int rank, const int64_t *dims, double std, bool decay)
{
    hd_init init = std > 0 ? (hd_init){ HD_INIT_NORMAL, std } : (hd_init){ HD_INIT_CONSTANT, 0 };
    return hd_graph_param(m->g, name, hd_type_of(dtype, rank, dims), init, true, decay);
}

/* Weights are the same in every micro-batch, so their casts are too: once per step. */
static hd_value to_compute(hd_lm *m, const char *name, hd_value v)
{
    char cast[64];
    snprintf(cast, sizeof cast, "%s.%s", name, hd_dtype_name(m->o->compute));
    return hd_cast(m->g, cast, v, m->o->compute);
}

hd_value hd_lm_weight(hd_lm *m, const char *name, int rank, const int64_t *dims, double std)
{
    return to_compute(m, name, declare(m, name, m->o->param, rank, dims, std, true));
}

hd_value hd_lm_bias(hd_lm *m, const char *name, int rank, const int64_t *dims)
{
    return to_compute(m, name, declare(m, name, m->o->param, rank, dims, 0, false));
}

/* ---- pieces ---- */

hd_dtype hd_lm_stream(const hd_lm *m) { return m->o->half_stream ? m->o->compute : HD_F32; }

hd_value hd_lm_embed(hd_lm *m)
{
    const hd_lm_config *c = m->c;
    hd_graph_push(m->g, "embed");
    m->embedding = declare(m, "tokens", m->o->param, 2, (int64_t[]){ c->vocab, c->width }, c->init_std, true);
    hd_value x = hd_graph_node(m->g, "gather", "lookup", &(hd_rows_attrs){ .rows = c->vocab, .dtype = hd_lm_stream(m) },
                               (hd_value[]){ m->embedding, m->tokens }, 2);
    hd_graph_pop(m->g);
    return x;
}

hd_value hd_lm_linear(hd_lm *m, const char *name, const char *spec, hd_value x, hd_value w, hd_value bias)
{
    hd_value y = hd_contract(m->g, name, spec, x, w, m->o->compute);
    char biased[64];
    snprintf(biased, sizeof biased, "%s_biased", name);
    return bias == HD_NONE ? y : hd_elementwise(m->g, biased, HD_EW_ADD, y, bias, HD_NONE, 0);
}

hd_value hd_lm_norm(hd_lm *m, const char *name)
{
    hd_graph *g = m->g;
    bool layer_norm = m->c->family == HD_FAMILY_GPT2;
    hd_graph_push(g, "%s", name);
    hd_type t = hd_type_of(HD_F32, 1, &m->c->width);
    double offset = m->c->family == HD_FAMILY_GEMMA; /* weights relative to one */
    hd_value gamma = hd_graph_param(g, "gamma", t, (hd_init){ HD_INIT_CONSTANT, 1 - offset }, true, false);
    hd_value beta = layer_norm ? hd_graph_param(g, "beta", t, (hd_init){ HD_INIT_CONSTANT, 0 }, true, false) : HD_NONE;
    hd_graph_pop(g);
    bool add = m->delta != HD_NONE;
    hd_value x = add ? m->delta : m->stream, residual = add ? m->stream : HD_NONE;
    hd_norm_attrs at = { .eps = m->c->norm_eps, .offset = offset, .dtype = m->o->compute, .sum_dtype = HD_F32 };
    hd_value y = layer_norm ? hd_graph_node(g, "layer_norm", name, &at, (hd_value[]){ x, gamma, beta, residual }, 4)
                            : hd_graph_node(g, "rms_norm", name, &at, (hd_value[]){ x, gamma, residual }, 3);
    if (add) m->stream = hd_graph_result(g, y, layer_norm ? 3 : 2);
    m->delta = HD_NONE;
    return y;
}

hd_value hd_lm_rms(hd_lm *m, const char *name, const char *result, hd_value x, int64_t width)
{
    double offset = m->c->family == HD_FAMILY_GEMMA;
    hd_value gamma = hd_graph_param(m->g, name, hd_type_of(HD_F32, 1, &width), (hd_init){ HD_INIT_CONSTANT, 1 - offset }, true, false);
    hd_norm_attrs at = { .eps = m->c->norm_eps, .offset = offset, .dtype = m->o->compute, .sum_dtype = HD_F32 };
    return hd_graph_node(m->g, "rms_norm", result, &at, (hd_value[]){ x, gamma, HD_NONE }, 3);
}

hd_value hd_lm_cap(hd_lm *m, const char *name, hd_value x, double scale, double cap)
{
    char path[3][64];
    static const char *const suffixes[] = { "scaled", "tanh", "capped" };
    for (int i = 0; i < 3; i++) snprintf(path[i], sizeof path[i], "%s_%s", name, suffixes[i]);
    x = hd_elementwise(m->g, path[0], HD_EW_SCALE, x, HD_NONE, HD_NONE, scale / cap);
    x = hd_elementwise(m->g, path[1], HD_EW_TANH, x, HD_NONE, HD_NONE, 0);
    return hd_elementwise(m->g, path[2], HD_EW_SCALE, x, HD_NONE, HD_NONE, cap);
}

/* In f32 the next norm adds; a sum that is rounded stands by itself, so that what is normalised is what is kept. */
void hd_lm_residual(hd_lm *m, const char *name, hd_value y)
{
    if (hd_lm_stream(m) == HD_F32) m->delta = y;
    else m->stream = hd_elementwise(m->g, name, HD_EW_ADD, m->stream, y, HD_NONE, 0);
}

hd_value hd_lm_dropout(hd_lm *m, const char *name, hd_value x, double p)
{
    hd_graph *g = m->g;
    if (m->o->mode != HD_LM_TRAIN || !(p > 0) || g->err.code) return x;
    char path[256];
    snprintf(path, sizeof path, "%s%s%s", g->scope, *g->scope ? "." : "", name);
    hd_dropout_attrs at = { .p = p, .site = (int64_t)hd_hash_string(path), .dtype = hd_type_in(g, x)->dtype };
    return hd_graph_node(g, "dropout", name, &at, (hd_value[]){ x, m->key, m->samples, m->positions }, 4);
}

/* ---- head and loss ---- */

static hd_value head(hd_lm *m, hd_value x)
{
    const hd_lm_config *c = m->c;
    hd_value w = m->embedding;
    if (!c->tie_embeddings) w = declare(m, "head", m->o->param, 2, (int64_t[]){ c->vocab, c->width }, c->init_std, true);
    w = to_compute(m, "head", w);
    bool wide = serves(m->o) || m->o->logits;
    hd_value logits = hd_contract(m->g, "logits", "td,vd->tv", x, w, wide ? HD_F32 : m->o->compute);
    return c->final_softcap > 0 ? hd_lm_cap(m, "logits", logits, 1, c->final_softcap) : logits;
}

static void loss(hd_lm *m, hd_value logits)
{
    hd_graph *g = m->g;
    hd_value rows = hd_graph_node(g, "cross_entropy", "loss.rows", &(hd_dtype_attrs){ HD_F32 }, (hd_value[]){ logits, m->targets }, 2);
    hd_value sum = hd_reduce(g, "reduce_sum", "loss.sum", rows, 1, false, HD_F32);
    hd_graph_output(g, "loss", hd_elementwise(g, "loss", HD_EW_MUL, sum, m->inv_divisor, HD_NONE, 0));
}

/* ---- the whole ---- */

static int check_serving(const hd_lm_options *o, hd_error *err)
{
    bool power = o->block >= 8 && o->block <= 256 && !(o->block & (o->block - 1));
    if (!power) return hd_fail(err, HD_EINVAL, "a block of %lld positions: must be 8, 16, 32, 64, 128 or 256", (long long)o->block);
    if (o->blocks < 1 || o->blocks > INT32_MAX / 2 / o->block)
        return hd_fail(err, HD_EINVAL, "%lld blocks of %lld positions: there must be at least one, and less than 2^30 positions in all", (long long)o->blocks,
                       (long long)o->block);
    if (o->sequences < 1 || o->sequences > 65536) return hd_fail(err, HD_EINVAL, "%lld sequences in a call: must be 1 to 65536", (long long)o->sequences);
    bool known = o->kv == HD_F32 || o->kv == HD_BF16 || o->kv == HD_F16 || o->kv == HD_I8;
    return known ? HD_OK : hd_fail(err, HD_EUNSUPPORTED, "keys and values are kept in f32, bf16, f16 or i8, not %s", hd_dtype_name(o->kv));
}

static int check_options(const hd_lm_options *o, hd_error *err)
{
    const int64_t most = INT32_MAX / 2;
    if (o->compute != HD_F32 && o->compute != HD_BF16)
        return hd_fail(err, HD_EUNSUPPORTED, "language models compute in f32 or bf16, not %s", hd_dtype_name(o->compute));
    if (o->param != HD_F32 && o->param != HD_BF16)
        return hd_fail(err, HD_EUNSUPPORTED, "language models keep weights in f32 or bf16, not %s", hd_dtype_name(o->param));
    if (o->tokens < 1 || o->tokens > most)
        return hd_fail(err, HD_EINVAL, "%lld tokens in a call: must be 1 to %lld", (long long)o->tokens, (long long)most);
    if (o->attention == HD_ATTENTION_MATERIALISED && (serves(o) || (o->sequence && o->tokens % o->sequence)))
        return hd_fail(err, HD_EINVAL, "materialised attention takes whole sequences of one length, in training and evaluation");
    if (!serves(o)) return HD_OK;
    if (o->context < 1 || o->context > most)
        return hd_fail(err, HD_EINVAL, "a context of %lld tokens: must be 1 to %lld", (long long)o->context, (long long)most);
    if (o->rows < 0 || o->rows > o->tokens)
        return hd_fail(err, HD_EINVAL, "%lld rows of logits from at most %lld tokens", (long long)o->rows, (long long)o->tokens);
    return check_serving(o, err);
}

static void build(hd_lm *m)
{
    declare_inputs(m);
    hd_value x = builders[m->c->family](m);
    hd_rows_attrs at = { .rows = m->o->tokens, .dtype = m->o->compute };
    bool rows = serves(m->o);
    if (rows) x = hd_graph_node(m->g, "gather", "wanted", &at, (hd_value[]){ x, m->rows }, 2);
    if (rows) hd_graph_output(m->g, "hidden", hd_cast(m->g, "hidden", x, HD_F32));
    hd_value logits = head(m, x);
    if (rows || (m->o->mode == HD_LM_EVAL && m->o->logits)) hd_graph_output(m->g, "logits", logits);
    if (!rows) loss(m, logits);
}

hd_graph *hd_lm_graph(const hd_lm_config *c, const hd_lm_options *o, hd_error *err)
{
    hd_lm_config checked = *c;
    if (hd_lm_config_check(&checked, "model", err) || check_options(o, err)) return NULL;
    hd_lm m = { .c = &checked, .o = o, .g = hd_graph_new(), .stream = HD_NONE, .delta = HD_NONE, .key = HD_NONE, .samples = HD_NONE,
                .segments = HD_NONE };
    if (!m.g) {
        hd_fail_memory(err, sizeof *m.g, "a graph");
        return NULL;
    }
    build(&m);
    if (!m.g->err.code) return m.g;
    hd_fail(err, m.g->err.code, "%s", m.g->err.message);
    hd_graph_free(m.g);
    return NULL;
}
