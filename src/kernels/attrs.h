/* attrs.h: the parameter struct of each op, as its kernels see it, with the op's operands and results.
 *
 * A struct is plain data of fixed size, zero-initialised before it is filled, so that two can be compared with memcmp.
 * "T" is tokens (rows); "..." any leading dimensions. An operand marked ? may be absent. Results marked ? are computed only when read. */
#ifndef HD_KERNELS_ATTRS_H
#define HD_KERNELS_ATTRS_H

#include "heddle/heddle.h"

/* ---- contract: (a, b) -> c. A contraction of any rank in einsum notation, single-letter labels: "td,hed->the".
 * Each label of c occurs in a or b; a label in both a and b but not c is summed; in all three it is a batch dimension; no label occurs
 * twice in one operand; every label of a and b missing from c is summed. Sums in f32 (f64 for f64 operands; i32 for i8).
 * Summation order, the same in every kernel of one instruction set: over k ascending (bf16: hardware pairs). can_accumulate. */
typedef struct hd_contract_attrs {
    char spec[64];
    hd_dtype dtype; /* of c */
} hd_contract_attrs;

/* ---- elementwise family. Operands broadcast as NumPy's: aligned at the last dimension, extent 1 stretches.
 * unary (x) -> y; binary (a, b) -> y; select (cond, a, b) -> y. Computed in f32 (f64 for f64 results, i64 for integers), rounded once. */
typedef enum hd_ew {
    /* unary */
    HD_EW_COPY, HD_EW_NEG, HD_EW_ABS, HD_EW_SQUARE, HD_EW_SQRT, HD_EW_RSQRT, HD_EW_RECIP, HD_EW_EXP, HD_EW_LOG, HD_EW_TANH, HD_EW_SIGMOID,
    HD_EW_SOFTPLUS, HD_EW_RELU, HD_EW_GELU /* erf form */, HD_EW_GELU_TANH, HD_EW_SILU, HD_EW_ERF, HD_EW_SIN, HD_EW_COS, HD_EW_SIGN,
    HD_EW_ISFINITE /* 1 or 0 */,
    /* unary with the immediate */
    HD_EW_SCALE /* x*imm */, HD_EW_OFFSET /* x+imm */, HD_EW_POWI /* pow(x, imm) */, HD_EW_MINI, HD_EW_MAXI,
    HD_EW_CAST /* to dtype; inside a chain: rounds to dtype and goes on in f32 */,
    /* binary */
    HD_EW_ADD, HD_EW_SUB, HD_EW_MUL, HD_EW_DIV, HD_EW_MAX, HD_EW_MIN, HD_EW_POW, HD_EW_LT, HD_EW_LE, HD_EW_EQ /* 1 or 0 */,
    /* binary: derivatives, (x, dy) -> dx */
    HD_EW_RELU_GRAD, HD_EW_GELU_GRAD, HD_EW_GELU_TANH_GRAD, HD_EW_SILU_GRAD,
    /* binary on the result: (y, dy) -> dx */
    HD_EW_TANH_GRAD, HD_EW_SIGMOID_GRAD,
    /* ternary */
    HD_EW_SELECT /* cond != 0 ? a : b */,
    HD_EW_COUNT
} hd_ew;

typedef struct hd_ew_attrs {
    double imm;     /* SCALE, OFFSET, POWI, MINI, MAXI */
    hd_dtype dtype; /* of the result */
} hd_ew_attrs;

/* Operands (1, 2 or 3) and the lower-case name of an opcode ("gelu_tanh"): kernels/elementwise.c. */
int hd_ew_arity(hd_ew op);
const char *hd_ew_name(hd_ew op);
/* The definition, in f64. Unused operands are ignored. CAST and COPY return a. */
double hd_ew_eval(hd_ew op, double imm, double a, double b, double c);

/* ---- fused: (operands...) -> (results...). A chain of elementwise steps that reads and writes each element once.
 * Registers 0 .. n_in-1 are the operands, n_in+i is what step i computes. All results have the shape to which everything broadcasts. */
#define HD_CHAIN_MAX 24
typedef struct hd_chain_step {
    uint8_t op;                /* hd_ew */
    uint8_t arg[3];            /* registers */
    uint32_t dtype;            /* CAST: the dtype to round to */
    double imm;
} hd_chain_step;
typedef struct hd_fused_attrs {
    int32_t n_in, n_steps, n_out;
    hd_chain_step step[HD_CHAIN_MAX];
    uint8_t out[8];            /* register of each result */
    hd_dtype out_dtype[8];
} hd_fused_attrs;

/* ---- reduce_sum, reduce_mean, reduce_max: (x) -> y over the dimensions in axes. can_accumulate (sum). Sums accumulate in f64 or compensated. */
typedef struct hd_reduce_attrs {
    uint32_t axes; /* bit i: dimension i */
    bool keep;     /* keep reduced dimensions with extent 1 */
    hd_dtype dtype;
} hd_reduce_attrs;
/* ---- sum_squares: (x) -> f32 scalar. No parameters. */

/* ---- softmax: (x[..., D]) -> y. softmax_grad: (y, dy) -> dx. */
typedef struct hd_dtype_attrs { hd_dtype dtype; } hd_dtype_attrs; /* of the (first) result */

/* ---- layer_norm: (x[..., D], gamma[D], beta[D]?, residual[..., D]?) -> (y, mean[...]? f32, rstd[...]? f32, sum[..., D]?)
 *      normalises s = x + residual; `sum` is s, in sum_dtype.
 *      layer_norm_grad_x: (dy, s[..., D], gamma, mean, rstd, add[..., D]?) -> dx = gradient + add, in dtype.
 *      layer_norm_grad_gamma: (dy, s, mean, rstd) -> dgamma[D] f32. can_accumulate. (dbeta is reduce_sum of dy.)
 *      rms_norm: (x, gamma, residual?) -> (y, rstd?, sum?); y = s * rstd * (gamma + offset).
 *      rms_norm_grad_x: (dy, s, gamma, rstd, add?) -> dx.  rms_norm_grad_gamma: (dy, s, rstd) -> dgamma. can_accumulate. */
typedef struct hd_norm_attrs {
    double eps;
    double offset; /* rms_norm only; 0, or 1 where the stored weight is relative to one */
    hd_dtype dtype, sum_dtype;
    int64_t count; /* batch_norm's parts: elements of a channel in all pieces; 0: there are no others */
} hd_norm_attrs;

/* ---- batch_norm: (x[N, C, H, W], gamma[C], beta[C]) -> (y, mean[C]? f32, rstd[C]? f32, var[C]? f32, biased) over N, H, W.
 *      batch_norm_grad_x: (dy, x, gamma, mean, rstd, dgamma, dbeta) -> dx.  batch_norm_grad_gamma: (dy, x, mean, rstd) -> dgamma[C] f32.
 *      batch_norm_squares: (x, sum[C]) -> squares[C] f32 about sum / count; batch_norm_finish: (x, gamma, beta, sum, squares) -> as batch_norm: of
 *      images in pieces, sums and count being those of all. Uses hd_norm_attrs. */

/* ---- conv2d: (x[N, C, H, W], w[O, C/groups, kh, kw]) -> y[N, O, H', W'].
 *      conv2d_grad_x: (dy, w) -> dx[N, C, in_h, in_w].  conv2d_grad_w: (dy, x) -> dw[O, C/groups, kernel], f32. can_accumulate (grad_w). */
typedef struct hd_conv_attrs {
    int32_t stride[2], pad[2], dilation[2], groups;
    int32_t kernel[2]; /* pooling, and conv2d_grad_w */
    int32_t in[2];     /* conv2d_grad_x, avg_pool2d_grad: H, W of x */
    hd_dtype dtype;
} hd_conv_attrs;
/* ---- max_pool2d: (x[N, C, H, W]) -> y.  max_pool2d_grad: (dy, x, y) -> dx (first maximum of a window gets it all).
 *      avg_pool2d: (x) -> y, padding counted as zeros.  avg_pool2d_grad: (dy) -> dx. hd_conv_attrs; groups unused. */

/* ---- gather: (table[V, ...], index[I...]) -> y[I..., ...]; rows of table. scatter_add: (y[I..., ...], index[I...]) -> table[V, ...] f32;
 *      can_accumulate; rows added in ascending order of position in index. */
typedef struct hd_rows_attrs {
    int64_t rows; /* V, scatter_add and one_hot */
    hd_dtype dtype;
    int64_t first; /* the index that row 0 stands for: not 0 in a shard of the rows; an index outside is as one out of range */
} hd_rows_attrs;
/* ---- one_hot: (index[...]) -> y[..., rows].
 * ---- update_rows: (cache[R, ...], y[I..., ...], index[I...]) -> cache': rows replaced; in place. */

/* ---- top_k: (x[..., D]) -> (values[..., k], index[..., k] i32), descending, lower index first among equals; NaN counts as lowest.
 *      top_k_grad: (dvalues, index) -> dx[..., extent]. */
typedef struct hd_topk_attrs { int64_t k, extent; hd_dtype dtype; } hd_topk_attrs;

/* ---- slice: (x) -> x[begin:end] along axis. pad: (x) -> zeros before and after along axis. */
typedef struct hd_slice_attrs { int32_t axis; int64_t begin, end; /* pad: before, after */ } hd_slice_attrs;
/* ---- concat: (x...) -> y along axis. */
typedef struct hd_axis_attrs { int32_t axis; } hd_axis_attrs;
/* ---- reshape (same memory), broadcast: (x) -> y of these extents; -1 in dim[0] keeps a bounded outermost dimension.
 *      transpose: (x) -> y, dimension i of y is dimension dim[i] of x. */
typedef struct hd_dims_attrs { int32_t rank; int64_t dim[HD_MAX_RANK]; } hd_dims_attrs;

/* ---- dropout: (x[T, ...], key[2] i64 {seed, step}, sample[T] i64, position[T] i32) -> y = x * keep / (1-p).
 *      keep of feature f (index within the row) is word f%4 of philox(key = mix(mix(seed, step), site), counter = (sample, position<<32 | f/4)),
 *      kept when hd_uniform24(word) >= p. Its gradient is the same op on dy. */
typedef struct hd_dropout_attrs {
    double p;
    int64_t site; /* hash of the value's stable path */
    hd_dtype dtype;
} hd_dropout_attrs;

/* ---- rope: (x[T, H, E], position[T] i32, inv_freq[R/2] f32) -> y: the first R of E features rotated by position * inv_freq, times scale
 *      (Su et al. 2021). Pairs (i, i+R/2), or (2i, 2i+1) when interleaved. inverse rotates back: the gradient. Angles in f64. */
typedef struct hd_rope_attrs {
    bool interleaved, inverse;
    double scale; /* 1, or YaRN's attention factor */
    hd_dtype dtype;
} hd_rope_attrs;

/* ---- attention: (q[Tq, Hq, E], k[Tk, Hk, E], v[Tk, Hk, F], qpos[Tq], kpos[Tk], qseg[Tq], kseg[Tk]; all i32) -> (out[Tq, Hq, F], lse[Tq, Hq]? f32)
 *      key j is seen by query i when qseg[i] == kseg[j] (negative segments are padding and see nothing), and causal: kpos[j] <= qpos[i], and
 *      window > 0: qpos[i] - kpos[j] < window. Query head h reads key head h / (Hq/Hk). A query that sees nothing gives 0 and lse = -inf.
 *      Tiles of keys at absolute index, online softmax in f32 (Dao et al. 2022; Milakov and Gimelshein 2018): the (T x T) matrix never exists.
 *      attention_grad: (dout, q, k, v, out, lse, qpos, kpos, qseg, kseg) -> (dq, dk, dv). One node for three gradients, since they share the
 *      recomputed scores and none of them is a weight's.
 *      attention_merge: (out[T, H, F], lse[T, H], out, lse) -> (out, lse): attention to some keys and to others made into that to all of them: the
 *      softmax-merge (Milakov and Gimelshein 2018), each part in units of its own exp(lse). hd_dtype_attrs. lse may be -inf. */
typedef struct hd_attention_attrs {
    double scale;
    bool causal;
    int64_t window;   /* 0: none */
    int64_t max_keys; /* most keys that one query sees, for cost; 0: all */
    double share;     /* of the pairs of query and key, how many see each other, for cost; 0: as causal, window and max_keys say */
    int64_t block;    /* queries and keys lie in blocks of so many rows, and a query sees keys of its own block only; 0: no such blocks. Says how
                       * rows may be split; segments say the same to kernels */
    double softcap;   /* scores become softcap * tanh(score / softcap) (Gemma Team 2024, section 2); 0: as they are */
    hd_dtype dtype;
} hd_attention_attrs;

/* ---- paged_attention: (q[T, Hq, E], k[R, Hk, E], v[R, Hk, F], qpos[T], qseq[T], tables[S, B]; i32, kscale[R, Hk]? f32, vscale[R, Hk]? f32) -> out[T, Hq, F]
 *      Attention over keys and values in blocks of `block` rows (Kwon et al. 2023, section 4.1): the key at position p of sequence s lies in row
 *      tables[s, p / block] * block + p % block. Query i sees positions 0 .. qpos[i] of sequence qseq[i] (with a window those with qpos[i] - p < window); a
 *      negative or too large qseq, or a row out of range, sees nothing: 0. Query head h reads key head h / (Hq/Hk). i8 keys and values are times the scale of
 *      their row and head. Tiles of keys are at absolute positions, so that an output row depends on its own sequence's keys alone, whatever block they lie in
 *      and whatever else is in the call.
 *      quantize_rows: (y[T, H, E]) -> (q i8[T, H, E], scale[T, H] f32): scale = max |y| / 127, q = y / scale to nearest even; 0 of zeros. */
typedef struct hd_paged_attrs {
    double scale;
    double softcap;   /* scores become softcap * tanh(score / softcap) (Gemma Team 2024, section 2); 0: as they are */
    int64_t window;   /* 0: none */
    int64_t block;    /* rows of a block: a power of two, 8 to 256 */
    int64_t mean_keys; /* keys that one query sees, for cost; 0: half of B * block */
    hd_dtype dtype;
} hd_paged_attrs;

/* ---- masked_softmax: (x[B, H, Tq, Tk], qpos[B Tq], kpos[B Tk], qseg[B Tq], kseg[B Tk]; i32) -> y: softmax of scale * x over the keys that a query sees, as
 *      attention does; 0 elsewhere.  masked_softmax_grad: (y, dy) -> dx. For attention whose scores are written out. */
typedef struct hd_masked_softmax_attrs {
    double scale;
    bool causal;
    int64_t window; /* 0: none */
    hd_dtype dtype;
} hd_masked_softmax_attrs;
/* ---- weights_dropout: (x[B, H, Tq, Tk], key[2] i64, sample[B Tq] i64, qpos[B Tq] i32, kpos[B Tk] i32) -> y, as dropout with qpos for
 *      the position; feature: (first + head) * Tk + kpos. */
typedef struct hd_weights_dropout_attrs {
    double p;
    int64_t site;
    int64_t first;  /* the head that index 0 stands for: not 0 in a shard of the heads */
    hd_dtype dtype;
} hd_weights_dropout_attrs;

/* ---- cross_entropy: (logits[T, V], target[T] i32) -> (loss[T] f32, lse[T]? f32); target < 0 or >= V is ignored: loss 0.
 *      cross_entropy_grad: (dloss[T] f32, logits, target, lse) -> dlogits = (exp(logits - lse) - onehot) * dloss; may alias logits, so that
 *      no probability matrix exists beside it.
 *      cross_entropy_part: (logits, target) -> (max[T], sum[T] of exp(logits - max), picked[T]: the target's logit, 0 where it is not among these)
 *      of some of the columns; cross_entropy_finish: (max[T], sum[T], picked[T], target) -> (loss[T], lse[T]) of all of them. */
typedef struct hd_entropy_attrs {
    hd_dtype dtype;  /* cross_entropy_grad: of dlogits */
    int64_t first;   /* the class that column 0 stands for: not 0 in a shard of the vocabulary */
    int64_t classes; /* V of the whole; 0: as many as there are columns */
} hd_entropy_attrs;

/* ---- micro_sum: (x) -> y, the same memory: a piece per micro-batch, accumulated over the calls, becomes a value of the step. */

/* ---- adamw: (p, m, v, g, lr, step, scale, ok) -> (p', m', v', p16'? bf16 copy), in place; all but p16 f32. Scalars f32: lr; step (1, 2, ...);
 *      scale (multiplies g: clipping); ok (0: leave everything as it is). Loshchilov and Hutter 2019, algorithm 2; bias corrections in f64.
 *      sgd: (p, m?, g, lr, scale, ok) -> (p', m'?); m' = momentum*m + g; p' = p - lr*(m' + decay*p), nesterov: g + momentum*m'. */
typedef struct hd_optimizer_attrs {
    double beta1, beta2, eps, weight_decay; /* adamw */
    double momentum;                        /* sgd */
    bool nesterov;
} hd_optimizer_attrs;

/* ---- collectives: between the ranks that differ in the named mesh axes only (src/ops/collective.c). Which piece is whose follows from the layouts
 *      of operand and result. */
typedef struct hd_comm_attrs {
    char axes[64];     /* mesh axes in order, the outermost first: "dp.tp"; "pp" where stages are of different meshes: all ranks of all stages */
    int32_t dim;       /* the dimension that is gathered or cut (all_to_all: gathered) */
    int32_t to;        /* all_to_all: the one that is cut */
    int64_t extent;    /* of dimension dim of the result, at coordinate 0 */
    int64_t to_extent; /* all_to_all: of dimension to */
    bool max;          /* reductions: the greatest instead of the sum */
} hd_comm_attrs;

/* Between chunks of the pipeline: where the stages are of one mesh, at equal coordinates in all other axes; where they are of different meshes, runs of rows
 * between those that hold and want them (graph/layout.h, hd_crossing_rows). */
typedef struct hd_pipe_attrs {
    int32_t from, to;  /* chunks */
    int32_t number;    /* tells apart what one chunk sends to another in one call, in order */
    hd_dtype dtype;    /* recv: of the result */
    hd_dims_attrs shape; /* recv: of the result at coordinate 0 */
    int32_t symbol;      /* recv: bounds the result's rows, counted from 1; 0: their number is fixed */
    char there[64];      /* different meshes: how the value lies at the other end, as text over the other stage's mesh */
} hd_pipe_attrs;

#endif
