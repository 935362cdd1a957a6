/* flops.c: what a model's products take, by formula; the Graph counts the same node by node. */
#include "models/lm.h"

/* Products of one token in one layer's weights: q, o [width x heads], k, v [width x kv heads], and two or three of the feed-forward's. */
static double layer_weights(const hd_lm_config *c)
{
    double width = (double)c->width, q = (double)(c->heads * c->head_dim), kv = (double)(c->kv_heads * c->head_dim), mlp = (double)c->mlp_width;
    return width * (2 * q + 2 * kv + (c->family == HD_FAMILY_GPT2 ? 2 : 3) * mlp);
}

/* Keys that a query sees, on average; all of them where scores are written out. */
static double keys_seen(const hd_lm_config *c, int64_t layer, int64_t sequence, hd_attention_form form)
{
    double s = (double)sequence, window = (double)hd_lm_config_window(c, layer);
    if (form == HD_ATTENTION_MATERIALISED) return s;
    if (window <= 0 || window >= s) return (s + 1) / 2;
    return (window * (window + 1) / 2 + (s - window) * window) / s;
}

double hd_lm_forward_flops(const hd_lm_config *c, int64_t tokens, int64_t sequence, hd_attention_form form, double *layers)
{
    double each = 0;
    for (int64_t i = 0; i < c->layers; i++)
        each += 2 * layer_weights(c) + 4 * keys_seen(c, i, sequence, form) * (double)(c->heads * c->head_dim);
    if (layers) *layers = each * (double)tokens;
    return (each + 2 * (double)(c->width * c->vocab)) * (double)tokens;
}

double hd_lm_train_flops(const hd_lm_config *c, int64_t tokens, int64_t sequence, hd_attention_form form, bool recompute)
{
    double layers, forward = hd_lm_forward_flops(c, tokens, sequence, form, &layers);
    return 3 * forward + (recompute ? layers : 0);
}
