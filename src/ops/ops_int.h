/* ops_int.h: what the files of this folder share: checks for infer, storing in reference kernels, gradients' dtypes, random instances. */
#ifndef HD_OPS_OPS_INT_H
#define HD_OPS_OPS_INT_H

#include "graph/op.h"

/* ---- checks of operands and parameters; each returns 0 or HD_EINVAL with a message naming the operand ---- */

int hd_need_float(const hd_sig *s, int i, const char *name, hd_error *err);
int hd_need_integer(const hd_sig *s, int i, const char *name, hd_error *err);
int hd_need_dtype(const hd_sig *s, int i, const char *name, hd_dtype dtype, hd_error *err);
int hd_need_rank(const hd_sig *s, int i, const char *name, int lo, int hi, hd_error *err);
/* Exactly this shape, any float dtype. */
int hd_need_shape(const hd_sig *s, int i, const char *name, const hd_shape *shape, hd_error *err);
int hd_need_vector(const hd_sig *s, int i, const char *name, int64_t n, hd_error *err);
/* A parameter that says a result's dtype: one that exists, and a float one where `is_float`. */
int hd_need_result_dtype(const hd_sig *s, const char *name, hd_dtype dtype, bool is_float, hd_error *err);

hd_shape hd_shape_drop_last(const hd_shape *s); /* without the last dimension; rank >= 1 */
hd_type hd_type_shaped(hd_dtype dtype, const hd_shape *shape);
/* Of statistics, losses and parameters' gradients: f32, and f64 where x is f64. */
hd_dtype hd_stat_dtype(hd_dtype x);
hd_dtype hd_float_wider(hd_dtype a, hd_dtype b); /* f64 > f32 > bf16 = f16; bf16 with f16 gives f32 */

/* ---- broadcasting, as NumPy's: aligned at the last dimension, extent 1 stretches ---- */

/* The shape to which all operands broadcast; 0 or HD_EINVAL. */
int hd_broadcast_infer(const hd_sig *s, hd_shape *out, hd_error *err);
/* Elements between neighbours of each of the result's dimensions in an operand; 0 where it is stretched. */
void hd_broadcast_strides(const hd_tensor *in, const hd_tensor *out, int64_t *stride);
/* Where element i of the result lies in an operand of these strides. */
int64_t hd_broadcast_index(const hd_tensor *out, const int64_t *stride, int64_t i);

/* ---- reference kernels ---- */

/* Whether result i is read by anyone. */
static inline bool hd_wants(const hd_kernel_args *a, int i) { return i < a->n_out && a->out[i].data; }
static inline bool hd_given(const hd_kernel_args *a, int i) { return i < a->n_in && a->in[i].data; }
static inline double hd_get(const hd_kernel_args *a, int operand, int64_t i)
{
    return hd_load_f64(a->in[operand].data, a->in[operand].dtype, i);
}
/* Stores element i of a result, added to what is there when accumulating; nothing when nobody reads it. */
void hd_put(const hd_kernel_args *a, int result, int64_t i, double v);
/* Rows and features of [..., D]. */
void hd_rows_of(const hd_tensor *t, int64_t *rows, int64_t *features);

/* Additions and multiplications that a vector kernel spends on one element of an elementwise op; polynomials count as what they take. */
double hd_ew_flops(hd_ew op);

/* ---- gradients ---- */

/* Of the gradient of v: its own dtype, but f32 for what is the same in all micro-batches (parameters, and parameters cast for computing),
 * so that sums over micro-batches lose nothing. */
hd_dtype hd_grad_dtype(const hd_graph *g, hd_value v);
/* dx summed over what broadcasting stretched and cast, so that it is a gradient of v. HD_NONE stays. */
hd_value hd_grad_fit(hd_graph *g, hd_value dx, hd_value v);
/* dx summed to shape [D] over all dimensions but the last: the gradient of a bias. */
hd_value hd_grad_bias(hd_graph *g, hd_value dy, hd_value bias);
/* Records that nothing is differentiated through result i of n. Returns HD_NONE. */
hd_value hd_grad_refuse(hd_graph *g, const hd_node *n, const char *result);

/* ---- random instances ---- */

int64_t hd_pick(hd_rng *r, int64_t lo, int64_t hi); /* uniform in [lo, hi] */
bool hd_coin(hd_rng *r);
/* Sets operand i (n_in grows to hold it). */
void hd_sample_set(hd_sample *s, int i, hd_dtype dtype, int rank, const int64_t *dims, hd_fill how, double limit);
void hd_sample_absent(hd_sample *s, int i);
/* A random shape of rank lo..hi with extents 1..most; returns the rank. */
int hd_sample_dims(hd_rng *r, int lo, int hi, int64_t most, int64_t *dims);
/* n operands that broadcast to one shape, each perhaps with fewer dimensions or stretched ones. */
void hd_sample_broadcast(hd_rng *r, hd_sample *s, int n, hd_fill how);

#endif
