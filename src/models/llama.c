/* llama.c: the Llama line (Touvron et al. 2023): RMS norms before each sublayer, rotary positions, grouped key/value heads (Ainslie et al.
 * 2023), a gated feed-forward (Shazeer 2020). Mistral adds a sliding window, Qwen 2 biases on q, k, v, Qwen 3 norms of each head's q and k;
 * Phi-3's checkpoints keep q, k and v, and gate and up, in one tensor each. */
#include "models/lm_int.h"

/* Once for all calls: keys that are kept were turned by the same frequencies, however long the sequence was by then. */
static int64_t longest_sequence(const hd_lm_options *o)
{
    return o->mode == HD_LM_SERVE ? o->context : o->sequence ? o->sequence : o->tokens;
}

hd_lm_rotary hd_lm_declare_rotary(hd_lm *m, const char *scope, const hd_lm_config *c)
{
    float f[2048]; /* config.c: head_dim is at most 4096 */
    hd_lm_rotary r = { .scale = hd_lm_rope_frequencies(c, longest_sequence(m->o), f) };
    hd_graph_push(m->g, "%s", scope);
    r.inv_freq = hd_graph_const(m->g, "inv_freq", hd_type_of(HD_F32, 1, (int64_t[]){ hd_lm_rotary_dim(c) / 2 }), f);
    hd_graph_pop(m->g);
    return r;
}

/* One of q, k, v: [T, heads, head_dim]. */
static hd_value project(hd_lm *m, const char *name, const char *bias, const char *result, int64_t heads, hd_value x)
{
    const hd_lm_config *c = m->c;
    hd_value w = hd_lm_weight(m, name, 3, (int64_t[]){ heads, c->head_dim, c->width }, c->init_std);
    hd_value b = c->qkv_bias ? hd_lm_bias(m, bias, 2, (int64_t[]){ heads, c->head_dim }) : HD_NONE;
    return hd_lm_linear(m, result, "td,hed->the", x, w, b);
}

hd_value hd_lm_rotate(hd_lm *m, const hd_lm_rotary *r, const char *name, hd_value x)
{
    hd_rope_attrs at = { .scale = r->scale, .dtype = m->o->compute };
    return hd_graph_node(m->g, "rope", name, &at, (hd_value[]){ x, m->positions, r->inv_freq }, 3);
}

hd_value hd_lm_attend(hd_lm *m, const hd_lm_rotary *r, int64_t layer, hd_value x)
{
    const hd_lm_config *c = m->c;
    hd_graph_push(m->g, "attn");
    hd_value q = project(m, "q", "q_bias", "query", c->heads, x);
    hd_value k = project(m, "k", "k_bias", "key", c->kv_heads, x);
    if (c->qk_norm) {
        q = hd_lm_rms(m, "q_norm", "query_normed", q, c->head_dim);
        k = hd_lm_rms(m, "k_norm", "key_normed", k, c->head_dim);
    }
    q = hd_lm_rotate(m, r, "query_rotated", q);
    k = hd_lm_rotate(m, r, "key_rotated", k);
    hd_value v = project(m, "v", "v_bias", "value", c->kv_heads, x);
    hd_value y = hd_lm_attention(m, layer, q, k, v);
    hd_value o = hd_lm_weight(m, "o", 3, (int64_t[]){ c->width, c->heads, c->head_dim }, c->init_std);
    y = hd_lm_linear(m, "out", "the,dhe->td", y, o, c->o_bias ? hd_lm_bias(m, "o_bias", 1, &c->width) : HD_NONE);
    y = hd_lm_dropout(m, "dropout", y, c->resid_dropout);
    hd_graph_pop(m->g);
    return y;
}

/* [T, F] from a weight stored [F, D]. */
static hd_value widen(hd_lm *m, const char *name, const char *bias, const char *result, hd_value x)
{
    const hd_lm_config *c = m->c;
    hd_value w = hd_lm_weight(m, name, 2, (int64_t[]){ c->mlp_width, c->width }, c->init_std);
    return hd_lm_linear(m, result, "td,fd->tf", x, w, c->mlp_bias ? hd_lm_bias(m, bias, 1, &c->mlp_width) : HD_NONE);
}

hd_value hd_lm_gated(hd_lm *m, hd_value x)
{
    const hd_lm_config *c = m->c;
    hd_graph_push(m->g, "mlp");
    hd_value gate = widen(m, "gate", "gate_bias", "gated", x);
    hd_value up = widen(m, "up", "up_bias", "hidden", x);
    hd_value h = hd_elementwise(m->g, "activation", c->activation_op, gate, HD_NONE, HD_NONE, 0);
    h = hd_elementwise(m->g, "product", HD_EW_MUL, h, up, HD_NONE, 0);
    hd_value w = hd_lm_weight(m, "down", 2, (int64_t[]){ c->width, c->mlp_width }, c->init_std);
    hd_value y = hd_lm_linear(m, "out", "tf,df->td", h, w, c->mlp_bias ? hd_lm_bias(m, "down_bias", 1, &c->width) : HD_NONE);
    y = hd_lm_dropout(m, "dropout", y, c->resid_dropout);
    hd_graph_pop(m->g);
    return y;
}

hd_value hd_llama_build(hd_lm *m)
{
    m->stream = hd_lm_dropout(m, "embed.dropout", hd_lm_embed(m), m->c->embd_dropout);
    hd_lm_rotary r = hd_lm_declare_rotary(m, "rope", m->c);
    hd_graph_push(m->g, "layers");
    for (int64_t i = 0; i < m->c->layers; i++) {
        hd_graph_push(m->g, "%lld", (long long)i);
        hd_lm_residual(m, "attn.sum", hd_lm_attend(m, &r, i, hd_lm_norm(m, "norm1")));
        hd_lm_residual(m, "mlp_sum", hd_lm_gated(m, hd_lm_norm(m, "norm2")));
        hd_graph_pop(m->g);
    }
    hd_graph_pop(m->g);
    return hd_lm_norm(m, "norm");
}
