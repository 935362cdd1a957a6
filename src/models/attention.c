/* attention.c: causal attention of a model: one fused op, or, as set-ups older than Dao et al. 2022, its scores written out.
 *
 * Written out (Megatron-LM, Korthikanti et al. 2022, section 4.1; B sequences of S tokens, H heads, E features):
 *   scores  [B, H, S, S] = query . key                        2 B S S H E FLOPs
 *   weights [B, H, S, S] = softmax(mask(scale scores))        kept for backward: 2 a s s b bytes in 16 bits
 *   weights_dropped      = dropout(weights), while training   kept too: 2 a s s b; their mask (a s s b) is drawn again instead of kept
 *   attention [B, S, H, E] = weights . value                  2 B S S H E FLOPs */
#include <math.h>
#include <stdio.h>

#include "base/rng.h"
#include "models/lm_int.h"

/* Writes y [T, ...] into this call's rows of the state kv.<layer>.<name> [rows, ...], and gives that. */
static hd_value keep_rows(hd_lm *m, int64_t layer, const char *name, hd_value y, int64_t rows)
{
    hd_graph *g = m->g;
    char path[48], after[64];
    snprintf(path, sizeof path, "%lld.%s", (long long)layer, name);
    snprintf(after, sizeof after, "%s.after", path);
    if (g->err.code) return HD_NONE;
    const char *scope = g->scope;
    g->scope = "kv"; /* states are named from the root, whatever layer declares them */
    hd_type t = *hd_type_in(g, y);
    t.shape.sym = -1;
    t.shape.dim[0] = rows;
    hd_value before = hd_graph_state(g, path, t, (hd_init){ HD_INIT_CONSTANT, 0 });
    hd_value now = hd_graph_node(g, "update_rows", after, NULL, (hd_value[]){ before, y, m->slots }, 3);
    if (!g->err.code) hd_graph_pair(g, before, now);
    g->scope = scope;
    return now;
}

/* Keys or values in their blocks, in the dtype `kv`; *scale: of i8 rows, else HD_NONE. */
static hd_value keep_in_blocks(hd_lm *m, int64_t layer, const char *name, hd_value y, hd_value *scale)
{
    char kept[32], scaled[32];
    int64_t rows = m->o->blocks * m->o->block;
    snprintf(kept, sizeof kept, "%s_kept", name);
    snprintf(scaled, sizeof scaled, "%s_scale", name);
    *scale = HD_NONE;
    if (m->o->kv != HD_I8) return keep_rows(m, layer, name, hd_cast(m->g, kept, y, m->o->kv), rows);
    y = hd_graph_node(m->g, "quantize_rows", kept, NULL, &y, 1);
    *scale = keep_rows(m, layer, scaled, hd_graph_result(m->g, y, 1), rows);
    return keep_rows(m, layer, name, y, rows);
}

static int64_t max_keys(const hd_lm *m, int64_t window)
{
    int64_t n = m->o->sequence ? m->o->sequence : m->o->tokens;
    return window && window < n ? window : n;
}

static double scale_of(const hd_lm_config *c, int64_t layer)
{
    double scale = c->scale_attention ? 1 / sqrt(c->query_scalar > 0 ? c->query_scalar : (double)c->head_dim) : 1;
    return c->scale_by_layer ? scale / (double)(layer + 1) : scale;
}

/* ---- written out ---- */

typedef struct heads { int64_t batch, rows, kv, group, features; } heads;

static hd_value drop_weights(hd_lm *m, hd_value weights)
{
    hd_graph *g = m->g;
    char path[256];
    if (m->o->mode != HD_LM_TRAIN || !(m->c->attn_dropout > 0) || g->err.code) return weights;
    snprintf(path, sizeof path, "%s.weights_dropped", g->scope);
    hd_weights_dropout_attrs at = { .p = m->c->attn_dropout, .site = (int64_t)hd_hash_string(path), .dtype = m->o->compute };
    return hd_graph_node(g, "weights_dropout", "weights_dropped", &at, (hd_value[]){ weights, m->key, m->samples, m->positions, m->positions }, 5);
}

static hd_value score(hd_lm *m, hd_value q, hd_value k, const heads *h)
{
    hd_graph *g = m->g;
    k = hd_reshape(g, "key_rows", k, 4, (int64_t[]){ h->batch, h->rows, h->kv, h->features });
    if (h->group == 1) {
        q = hd_reshape(g, "query_rows", q, 4, (int64_t[]){ h->batch, h->rows, h->kv, h->features });
        return hd_contract(g, "scores", "bqhe,bkhe->bhqk", q, k, m->o->compute);
    }
    q = hd_reshape(g, "query_rows", q, 5, (int64_t[]){ h->batch, h->rows, h->kv, h->group, h->features });
    hd_value s = hd_contract(g, "scores", "bqhge,bkhe->bhgqk", q, k, m->o->compute);
    return hd_reshape(g, "scores_by_head", s, 4, (int64_t[]){ h->batch, h->kv * h->group, h->rows, h->rows });
}

static hd_value weigh(hd_lm *m, hd_value w, hd_value v, const heads *h)
{
    hd_graph *g = m->g;
    v = hd_reshape(g, "value_rows", v, 4, (int64_t[]){ h->batch, h->rows, h->kv, h->features });
    if (h->group == 1) {
        v = hd_contract(g, "context", "bhqk,bkhe->bqhe", w, v, m->o->compute);
    } else {
        w = hd_reshape(g, "weights_by_group", w, 5, (int64_t[]){ h->batch, h->kv, h->group, h->rows, h->rows });
        v = hd_contract(g, "context", "bhgqk,bkhe->bqhge", w, v, m->o->compute);
    }
    return hd_reshape(g, "attention", v, 3, (int64_t[]){ h->batch * h->rows, h->kv * h->group, h->features });
}

static hd_value write_out(hd_lm *m, int64_t layer, hd_value q, hd_value k, hd_value v)
{
    const hd_lm_config *c = m->c;
    int64_t rows = m->o->sequence ? m->o->sequence : m->o->tokens;
    heads h = { m->o->tokens / rows, rows, c->kv_heads, c->heads / c->kv_heads, c->head_dim };
    hd_masked_softmax_attrs at = { .scale = scale_of(c, layer), .causal = true, .window = hd_lm_config_window(c, layer), .dtype = m->o->compute };
    hd_value scores = score(m, q, k, &h);
    if (c->attn_softcap > 0) {
        scores = hd_lm_cap(m, "scores", scores, at.scale, c->attn_softcap);
        at.scale = 1;
    }
    hd_value in[5] = { scores, m->positions, m->positions, m->segments, m->segments };
    hd_value w = hd_graph_node(m->g, "masked_softmax", "weights", &at, in, 5);
    return weigh(m, drop_weights(m, w), v, &h);
}

/* ---- */

static hd_value attend_blocks(hd_lm *m, int64_t layer, hd_value q, hd_value k, hd_value v)
{
    hd_value kscale, vscale;
    k = keep_in_blocks(m, layer, "k", k, &kscale);
    v = keep_in_blocks(m, layer, "v", v, &vscale);
    hd_paged_attrs at = { .scale = scale_of(m->c, layer), .softcap = m->c->attn_softcap, .window = hd_lm_config_window(m->c, layer),
                          .block = m->o->block, .dtype = m->o->compute };
    hd_value in[8] = { q, k, v, m->positions, m->sequences, m->tables, kscale, vscale };
    return hd_graph_node(m->g, "paged_attention", "attention", &at, in, 8);
}

hd_value hd_lm_attention(hd_lm *m, int64_t layer, hd_value q, hd_value k, hd_value v)
{
    const hd_lm_config *c = m->c;
    if (m->o->attention == HD_ATTENTION_MATERIALISED) return write_out(m, layer, q, k, v);
    if (m->o->mode == HD_LM_SERVE) return attend_blocks(m, layer, q, k, v);
    int64_t window = hd_lm_config_window(c, layer);
    hd_attention_attrs at = { .scale = scale_of(c, layer), .causal = true, .window = window, .max_keys = max_keys(m, window),
                              .softcap = c->attn_softcap, .dtype = m->o->compute };
    bool rows_of_sequences = m->o->sequence > 0 && m->o->tokens % m->o->sequence == 0;
    if (rows_of_sequences) at.block = m->o->sequence;
    return hd_graph_node(m->g, "attention", "attention", &at, (hd_value[]){ q, k, v, m->positions, m->positions, m->segments, m->segments }, 7);
}
