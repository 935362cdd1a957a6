/* gpt2.c: GPT-2 (Radford et al. 2019): learned positions, layer norms before each sublayer, biases everywhere, one GELU.
 * Weights keep the order that GPT-2 stores them in, inputs first. */
#include <math.h>

#include "models/lm_int.h"

/* One of q, k, v: [T, heads, head_dim]. */
static hd_value project(hd_lm *m, const char *name, const char *bias, const char *result, hd_value x)
{
    const hd_lm_config *c = m->c;
    hd_value w = hd_lm_weight(m, name, 3, (int64_t[]){ c->width, c->heads, c->head_dim }, c->init_std);
    hd_value b = hd_lm_bias(m, bias, 2, (int64_t[]){ c->heads, c->head_dim });
    return hd_lm_linear(m, result, "td,dhe->the", x, w, b);
}

/* Projections that end a sublayer start smaller, so that the stream's variance doesn't grow with depth. */
static double residual_std(const hd_lm_config *c) { return c->init_std / sqrt(2 * (double)c->layers); }

static hd_value attend(hd_lm *m, int64_t layer, hd_value x)
{
    const hd_lm_config *c = m->c;
    hd_graph_push(m->g, "attn");
    hd_value q = project(m, "q", "q_bias", "query", x);
    hd_value k = project(m, "k", "k_bias", "key", x);
    hd_value v = project(m, "v", "v_bias", "value", x);
    hd_value y = hd_lm_attention(m, layer, q, k, v);
    hd_value o = hd_lm_weight(m, "o", 3, (int64_t[]){ c->heads, c->head_dim, c->width }, residual_std(c));
    y = hd_lm_linear(m, "out", "the,hed->td", y, o, hd_lm_bias(m, "o_bias", 1, &c->width));
    y = hd_lm_dropout(m, "dropout", y, c->resid_dropout);
    hd_graph_pop(m->g);
    return y;
}

static hd_value feed_forward(hd_lm *m, hd_value x)
{
    const hd_lm_config *c = m->c;
    hd_graph_push(m->g, "mlp");
    hd_value up = hd_lm_weight(m, "up", 2, (int64_t[]){ c->width, c->mlp_width }, c->init_std);
    hd_value h = hd_lm_linear(m, "hidden", "td,df->tf", x, up, hd_lm_bias(m, "up_bias", 1, &c->mlp_width));
    h = hd_elementwise(m->g, "activation", c->activation_op, h, HD_NONE, HD_NONE, 0);
    hd_value down = hd_lm_weight(m, "down", 2, (int64_t[]){ c->mlp_width, c->width }, residual_std(c));
    hd_value y = hd_lm_linear(m, "out", "tf,fd->td", h, down, hd_lm_bias(m, "down_bias", 1, &c->width));
    y = hd_lm_dropout(m, "dropout", y, c->resid_dropout);
    hd_graph_pop(m->g);
    return y;
}

/* Token plus position. */
static hd_value embed(hd_lm *m)
{
    const hd_lm_config *c = m->c;
    hd_value x = hd_lm_embed(m);
    hd_graph_push(m->g, "embed");
    hd_type t = hd_type_of(m->o->param, 2, (int64_t[]){ c->max_positions, c->width });
    hd_value table = hd_graph_param(m->g, "positions", t, (hd_init){ HD_INIT_NORMAL, c->init_std }, true, true);
    hd_rows_attrs at = { .rows = c->max_positions, .dtype = hd_lm_stream(m) };
    hd_value p = hd_graph_node(m->g, "gather", "place", &at, (hd_value[]){ table, m->positions }, 2);
    x = hd_elementwise(m->g, "sum", HD_EW_ADD, x, p, HD_NONE, 0);
    x = hd_lm_dropout(m, "dropout", x, c->embd_dropout);
    hd_graph_pop(m->g);
    return x;
}

hd_value hd_gpt2_build(hd_lm *m)
{
    m->stream = embed(m);
    hd_graph_push(m->g, "layers");
    for (int64_t i = 0; i < m->c->layers; i++) {
        hd_graph_push(m->g, "%lld", (long long)i);
        hd_lm_residual(m, "attn.sum", attend(m, i, hd_lm_norm(m, "norm1")));
        hd_lm_residual(m, "mlp_sum", feed_forward(m, hd_lm_norm(m, "norm2")));
        hd_graph_pop(m->g);
    }
    hd_graph_pop(m->g);
    return hd_lm_norm(m, "norm");
}
