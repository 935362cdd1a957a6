/* lm_int.h: what the families' builders share. */
#ifndef HD_MODELS_LM_INT_H
#define HD_MODELS_LM_INT_H

#include "models/lm.h"

/* A graph under construction. */
typedef struct hd_lm {
    hd_graph *g;
    const hd_lm_config *c;
    const hd_lm_options *o;
    int sym_tokens, sym_rows; /* -1 unless SERVE */
    hd_value tokens, positions, segments, targets, inv_divisor, key, samples, slots, rows, sequences, tables;
    hd_value embedding; /* parameter embed.tokens [V, D] */
    hd_value stream;    /* residual stream [T, D], as it was before delta */
    hd_value delta;     /* last sublayer's output, still to be added to it: the next norm does both in one pass. HD_NONE: nothing */
} hd_lm;

/* Parameters of the current scope. A weight comes back in the compute dtype (cast once per step where it is stored otherwise);
 * a norm's weight is f32. std 0 fills with zeros. */
hd_value hd_lm_weight(hd_lm *m, const char *name, int rank, const int64_t *dims, double std);
hd_value hd_lm_bias(hd_lm *m, const char *name, int rank, const int64_t *dims);

/* The residual stream's dtype: f32 unless options say otherwise. */
hd_dtype hd_lm_stream(const hd_lm *m);
/* embed.tokens, and the rows that this call's tokens name, as stream [T, D]. */
hd_value hd_lm_embed(hd_lm *m);
/* contraction in the compute dtype, plus bias unless that is HD_NONE. */
hd_value hd_lm_linear(hd_lm *m, const char *name, const char *spec, hd_value x, hd_value w, hd_value bias);
/* stream += delta, and the norm of that in the compute dtype; layer norm with beta for GPT-2, RMS norm for the Llama line. */
hd_value hd_lm_norm(hd_lm *m, const char *name);
/* cap * tanh(x * scale / cap): nodes NAME_scaled, NAME_tanh and NAME_capped. */
hd_value hd_lm_cap(hd_lm *m, const char *name, hd_value x, double scale, double cap);
/* RMS norm of x[..., width] by a parameter of the current scope, in the compute dtype. */
hd_value hd_lm_rms(hd_lm *m, const char *name, const char *result, hd_value x, int64_t width);
/* The stream after a sublayer that gives y: `name` is that of the sum, where there is a node for it. */
void hd_lm_residual(hd_lm *m, const char *name, hd_value y);
/* Rotary embedding: frequencies as a constant "<scope>.inv_freq" [rotary_dim / 2], and x [T, heads, head_dim] turned by them. */
typedef struct hd_lm_rotary {
    hd_value inv_freq; /* f32 [rotary_dim / 2] */
    double scale;
} hd_lm_rotary;
hd_lm_rotary hd_lm_declare_rotary(hd_lm *m, const char *scope, const hd_lm_config *c);
hd_value hd_lm_rotate(hd_lm *m, const hd_lm_rotary *r, const char *name, hd_value x);
/* The Llama line's sublayers, which the Gemma line shares: rotary, grouped attention, and the gated feed-forward, of the normed stream [T, D]. */
hd_value hd_lm_attend(hd_lm *m, const hd_lm_rotary *r, int64_t layer, hd_value x);
hd_value hd_lm_gated(hd_lm *m, hd_value x);
/* Dropout while training, x itself otherwise. */
hd_value hd_lm_dropout(hd_lm *m, const char *name, hd_value x, double p);
/* Causal attention of q [T, heads, E] over k, v [T, key/value heads, E] of this call and, when serving, of the blocks. */
hd_value hd_lm_attention(hd_lm *m, int64_t layer, hd_value q, hd_value k, hd_value v);

/* The families: everything between the inputs and the final norm (that included): returns the normed stream [T, D]. */
hd_value hd_gpt2_build(hd_lm *m);
hd_value hd_llama_build(hd_lm *m);
hd_value hd_gemma_build(hd_lm *m);

#endif
