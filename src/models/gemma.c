/* gemma.c: Gemma 2 (Gemma Team 2024) and 3 (Gemma Team 2025): the Llama line's sublayers between two RMS norms each, whose weights are relative to one;
 * embeddings times sqrt(width); and, of every so many layers, one that sees everything, the others a window. Gemma 2 caps scores and logits; Gemma 3 norms
 * each head's query and key, and its layers with the window have a rotary base of their own. */
#include <math.h>

#include "models/lm_int.h"

/* Layers with the window are not stretched. */
static hd_lm_rotary declare_local(hd_lm *m)
{
    hd_lm_config local = *m->c;
    local.rope = (hd_rope_config){ .kind = HD_ROPE_PLAIN, .theta = local.local_theta, .factor = 1 };
    return hd_lm_declare_rotary(m, "rope_local", &local);
}

hd_value hd_gemma_build(hd_lm *m)
{
    const hd_lm_config *c = m->c;
    hd_value x = hd_lm_embed(m);
    m->stream = hd_elementwise(m->g, "embed.scaled", HD_EW_SCALE, x, HD_NONE, HD_NONE, sqrt((double)c->width));
    hd_lm_rotary whole = hd_lm_declare_rotary(m, "rope", c), local = c->arch == HD_ARCH_GEMMA3 ? declare_local(m) : whole;
    hd_graph_push(m->g, "layers");
    for (int64_t i = 0; i < c->layers; i++) {
        hd_graph_push(m->g, "%lld", (long long)i);
        hd_value y = hd_lm_attend(m, hd_lm_config_window(c, i) ? &local : &whole, i, hd_lm_norm(m, "norm1"));
        hd_lm_residual(m, "attn.sum", hd_lm_rms(m, "norm1_after", "attn_normed", y, c->width));
        y = hd_lm_gated(m, hd_lm_norm(m, "norm2"));
        hd_lm_residual(m, "mlp_sum", hd_lm_rms(m, "norm2_after", "mlp_normed", y, c->width));
        hd_graph_pop(m->g);
    }
    hd_graph_pop(m->g);
    return hd_lm_norm(m, "norm");
}
