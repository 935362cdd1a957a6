/* lm.h: the Graph of a decoder-only language model, built from its config.
 *
 * All tokens of a call lie in one row of T: sequences are told apart by segment ids, and order within one by positions. Batch and sequence
 * length are no part of the graph's mathematics.
 *
 * Inputs (i32 unless said otherwise; one piece per call unless said "per step"):
 *   tokens[T], positions[T], segments[T]   negative segment: padding
 *   targets[T]                             TRAIN, EVAL: the token to be predicted at each place; negative: not counted
 *   inv_divisor f32 scalar, per step       TRAIN, EVAL: 1 / number of counted targets of the whole step
 *   key i64[2] {seed, step}, per step      TRAIN with dropout only
 *   samples i64[T]                         TRAIN with dropout only: number of the sequence in the data, for the random counters
 *   rows[R]                                SERVE: places in 0..T-1 whose logits are wanted
 *   slots[T], sequences[T], tables[S, B]   SERVE, instead of segments: row of kv.N that takes each token; whose token it is (a row of tables); the blocks that
 *                                          hold each sequence's positions, `block` in each
 * Outputs: "loss" f32 scalar (TRAIN, EVAL): this call's share of the step's mean loss; "logits" [T, V] (EVAL with logits) or [R, V] f32; "hidden" [R, D] f32
 * (SERVE): what the head multiplies.
 * States (SERVE): kv.N.k, kv.N.v [blocks * block, key/value heads, head_dim] in the dtype `kv`; of i8 also kv.N.k_scale, kv.N.v_scale
 * [blocks * block, key/value heads] f32.
 * Symbols (SERVE): "tokens", "rows".
 *
 * Parameters' paths, N the layer: embed.tokens [V, D]; embed.positions [P, D]; layers.N.norm1.gamma, .beta, layers.N.norm2.gamma, .beta,
 * norm.gamma, .beta [D]; with query/key norms layers.N.attn.q_norm, .k_norm [head_dim]; Gemma's layers.N.norm1_after, .norm2_after [D];
 * layers.N.attn.q, .k, .v [heads, head_dim, D] (GPT-2: [D, heads, head_dim]), .o [D, heads, head_dim] (GPT-2: [heads, head_dim, D]),
 * .q_bias ... [heads, head_dim], .o_bias [D]; layers.N.mlp.gate, .up [F, D], .down [D, F] (GPT-2: transposed, no gate), .up_bias [F],
 * .down_bias [D]; head [V, D] unless tied. No dimension is fused, so that each can be split over devices. */
#ifndef HD_MODELS_LM_H
#define HD_MODELS_LM_H

#include "graph/graph.h"
#include "models/config.h"

/* SERVE: text out of the model, for one sequence or many, whose keys and values lie in blocks (op paged_attention). */
typedef enum hd_lm_mode { HD_LM_TRAIN, HD_LM_EVAL, HD_LM_SERVE } hd_lm_mode;

/* MATERIALISED: scores, softmax and dropout of the weights (attn_dropout) each written to memory, as before fused attention: to say what set-ups of that time
 * take (src/models/attention.c). Needs sequences of one length. */
typedef enum hd_attention_form { HD_ATTENTION_FUSED, HD_ATTENTION_MATERIALISED } hd_attention_form;

typedef struct hd_lm_options {
    hd_lm_mode mode;
    hd_attention_form attention;
    bool half_stream;  /* the residual stream is in the compute dtype, as Megatron-LM's; else in f32 */
    hd_dtype compute;  /* of contractions, attention and activations: f32 or bf16. The residual stream and losses are f32 */
    hd_dtype param;    /* of weights as stored: f32 (masters, for training), or bf16. Norms' weights are f32 always */
    int64_t tokens;    /* T: of every call (TRAIN, EVAL), or at most (SERVE) */
    int64_t sequence;  /* longest sequence; 0: T. Where it divides T, no sequence lies across a multiple of it: tokens split there */
    int64_t context;   /* SERVE: tokens of the longest sequence */
    int64_t rows;      /* SERVE: most rows of logits in one call; 0: 1 */
    hd_dtype kv;       /* SERVE: of keys and values in their blocks: f32, bf16, f16 or i8 */
    int64_t block, blocks, sequences; /* SERVE: positions in a block, a power of two from 8 to 256; blocks; most sequences in a call */
    bool logits;       /* EVAL: give "logits" of every row too, in f32 */
} hd_lm_options;

/* Builds the graph. NULL and err when options make no sense or memory ran out. The caller frees it with hd_graph_free. */
hd_graph *hd_lm_graph(const hd_lm_config *c, const hd_lm_options *o, hd_error *err);

/* FLOPs of all products of a forward pass over so many tokens, in sequences of that length; *layers (may be NULL): without the head. Of a training step, backward
 * twice the forward: Narayanan et al. 2021, equation 3 and its appendix, for GPT-2 with attention written out; recompute: all layers' forward again. */
double hd_lm_forward_flops(const hd_lm_config *c, int64_t tokens, int64_t sequence, hd_attention_form form, double *layers);
double hd_lm_train_flops(const hd_lm_config *c, int64_t tokens, int64_t sequence, hd_attention_form form, bool recompute);

/* Writes the rotary frequencies (radians per position), one for each pair of hd_lm_rotary_dim, after scaling to out; length: of the longest sequence, by which
 * longrope's short or long factors are taken. Returns the factor on the rotated features. */
double hd_lm_rope_frequencies(const hd_lm_config *c, int64_t length, float *out);

#endif
