/* ops_int.c: checks, gradients' dtypes and random instances that many ops need. */
#include "ops/ops_int.h"

#include <stdio.h>

/* ---- checks ---- */

static int wrong(const hd_sig *s, int i, const char *name, const char *want, hd_error *err)
{
    char is[160];
    if (s->in[i].absent) return hd_op_fail(s, err, "%s is missing: must be %s", name, want);
    return hd_op_fail(s, err, "%s must be %s, is %s", name, want, hd_type_format(is, sizeof is, &s->in[i], NULL));
}

int hd_need_float(const hd_sig *s, int i, const char *name, hd_error *err)
{
    if (!s->in[i].absent && hd_dtype_is_float(s->in[i].dtype)) return 0;
    return wrong(s, i, name, "floating-point", err);
}

int hd_need_integer(const hd_sig *s, int i, const char *name, hd_error *err)
{
    if (!s->in[i].absent && !hd_dtype_is_float(s->in[i].dtype)) return 0;
    return wrong(s, i, name, "of an integer dtype", err);
}

int hd_need_dtype(const hd_sig *s, int i, const char *name, hd_dtype dtype, hd_error *err)
{
    if (!s->in[i].absent && s->in[i].dtype == dtype) return 0;
    return wrong(s, i, name, hd_dtype_name(dtype), err);
}

int hd_need_rank(const hd_sig *s, int i, const char *name, int lo, int hi, hd_error *err)
{
    char want[64];
    if (!s->in[i].absent && s->in[i].shape.rank >= lo && s->in[i].shape.rank <= hi) return 0;
    if (lo == hi) snprintf(want, sizeof want, "of rank %d", lo);
    else snprintf(want, sizeof want, "of rank %d to %d", lo, hi);
    return wrong(s, i, name, want, err);
}

int hd_need_shape(const hd_sig *s, int i, const char *name, const hd_shape *shape, hd_error *err)
{
    char want[160];
    if (!s->in[i].absent && hd_dtype_is_float(s->in[i].dtype) && hd_shape_equal(&s->in[i].shape, shape)) return 0;
    bool is_float = !s->in[i].absent && hd_dtype_is_float(s->in[i].dtype);
    hd_type t = hd_type_shaped(is_float ? s->in[i].dtype : HD_F32, shape);
    return wrong(s, i, name, hd_type_format(want, sizeof want, &t, NULL), err);
}

int hd_need_vector(const hd_sig *s, int i, const char *name, int64_t n, hd_error *err)
{
    hd_type t = hd_type_of(HD_F32, 1, &n);
    return hd_need_shape(s, i, name, &t.shape, err);
}

int hd_need_result_dtype(const hd_sig *s, const char *name, hd_dtype dtype, bool is_float, hd_error *err)
{
    if ((unsigned)dtype >= HD_DTYPE_COUNT) return hd_op_fail(s, err, "%s is no dtype (%d)", name, (int)dtype);
    if (!is_float || hd_dtype_is_float(dtype)) return 0;
    return hd_op_fail(s, err, "%s must be floating-point, is %s", name, hd_dtype_name(dtype));
}

hd_shape hd_shape_drop_last(const hd_shape *s)
{
    hd_shape r = *s;
    r.rank--;
    r.dim[r.rank] = 0;
    if (r.rank == 0) r.sym = -1;
    return r;
}

hd_type hd_type_shaped(hd_dtype dtype, const hd_shape *shape)
{
    hd_type t = {.dtype = dtype, .shape = *shape};
    return t;
}

hd_dtype hd_stat_dtype(hd_dtype x)
{
    return x == HD_F64 ? HD_F64 : HD_F32;
}

hd_dtype hd_float_wider(hd_dtype a, hd_dtype b)
{
    if (a == b) return a;
    return a == HD_F64 || b == HD_F64 ? HD_F64 : HD_F32;
}

/* ---- broadcasting ---- */

/* One more operand broadcast into out; rank is the result's. */
static int broadcast_operand(const hd_sig *s, int operand, hd_shape *out, hd_error *err)
{
    char whole[160];
    const hd_shape *in = &s->in[operand].shape;
    int shift = out->rank - in->rank;
    if (in->sym >= 0 && shift)
        return hd_op_fail(s, err, "operand %d is bounded by a symbol, which must be the result's outermost dimension", operand);
    for (int d = 0; d < in->rank; d++) {
        int64_t *dim = &out->dim[d + shift];
        bool bounds_differ = d + shift == 0 && in->dim[d] != 1 && *dim != 1 && in->sym != out->sym;
        if ((in->dim[d] != *dim && in->dim[d] != 1 && *dim != 1) || bounds_differ) {
            hd_type t = s->in[operand];
            return hd_op_fail(s, err, "operand %d is %s: dimension %d (%lld) does not broadcast with %lld%s", operand,
                              hd_type_format(whole, sizeof whole, &t, NULL), d, (long long)in->dim[d], (long long)*dim,
                              bounds_differ ? " (one is bounded by a symbol, the other is not)" : "");
        }
        if (*dim == 1) {
            *dim = in->dim[d];
            if (d + shift == 0) out->sym = in->sym;
        }
    }
    return 0;
}

int hd_broadcast_infer(const hd_sig *s, hd_shape *out, hd_error *err)
{
    *out = (hd_shape){.sym = -1};
    for (int i = 0; i < s->n_in; i++)
        if (s->in[i].shape.rank > out->rank) out->rank = s->in[i].shape.rank;
    for (int d = 0; d < out->rank; d++) out->dim[d] = 1;
    for (int i = 0; i < s->n_in; i++) {
        if (s->in[i].absent) return hd_op_fail(s, err, "operand %d is missing", i);
        int rc = broadcast_operand(s, i, out, err);
        if (rc) return rc;
    }
    return 0;
}

/* Elements between neighbours of each of the result's dimensions in an operand; 0 where it is stretched. */
void hd_broadcast_strides(const hd_tensor *in, const hd_tensor *out, int64_t *stride)
{
    int64_t step = 1;
    for (int d = 0; d < out->rank; d++) stride[d] = 0;
    for (int d = in->rank - 1; d >= 0; d--) {
        if (in->dim[d] != 1) stride[d + out->rank - in->rank] = step;
        step *= in->dim[d];
    }
}

/* Where element i of the result lies in an operand. */
int64_t hd_broadcast_index(const hd_tensor *out, const int64_t *stride, int64_t i)
{
    int64_t at = 0;
    for (int d = out->rank - 1; d >= 0; d--) {
        at += i % out->dim[d] * stride[d];
        i /= out->dim[d];
    }
    return at;
}

/* ---- reference kernels ---- */

void hd_put(const hd_kernel_args *a, int result, int64_t i, double v)
{
    if (!hd_wants(a, result)) return;
    const hd_tensor *t = &a->out[result];
    if (a->accumulate) v += hd_load_f64(t->data, t->dtype, i);
    hd_store_f64(t->data, t->dtype, i, v);
}

void hd_rows_of(const hd_tensor *t, int64_t *rows, int64_t *features)
{
    *rows = 1;
    for (int d = 0; d + 1 < t->rank; d++) *rows *= t->dim[d];
    *features = t->rank ? t->dim[t->rank - 1] : 1;
}

/* ---- gradients ---- */

hd_dtype hd_grad_dtype(const hd_graph *g, hd_value v)
{
    const hd_value_info *i = hd_info(g, v);
    bool once_per_step = i->kind == HD_PARAM || i->micro == HD_TIME_REPLICATE;
    return once_per_step ? hd_stat_dtype(i->type.dtype) : i->type.dtype;
}

hd_value hd_grad_fit(hd_graph *g, hd_value dx, hd_value v)
{
    if (dx == HD_NONE || v == HD_NONE) return HD_NONE;
    hd_shape shape = hd_type_in(g, v)->shape; /* a copy: building nodes moves g->values */
    dx = hd_sum_to_shape(g, dx, &shape);
    return dx == HD_NONE ? HD_NONE : hd_cast(g, NULL, dx, hd_grad_dtype(g, v));
}

hd_value hd_grad_bias(hd_graph *g, hd_value dy, hd_value bias)
{
    if (dy == HD_NONE) return HD_NONE;
    int rank = hd_type_in(g, dy)->shape.rank;
    hd_dtype dtype = hd_stat_dtype(hd_type_in(g, dy)->dtype);
    hd_value sum = rank > 1 ? hd_reduce(g, "reduce_sum", NULL, dy, (1u << (rank - 1)) - 1, false, dtype) : dy;
    return hd_grad_fit(g, sum, bias);
}

hd_value hd_grad_refuse(hd_graph *g, const hd_node *n, const char *result)
{
    return hd_graph_fail(g, HD_EUNSUPPORTED, "%s: nothing can be differentiated through its result %s", n->op->name, result);
}

/* ---- random instances ---- */

int64_t hd_pick(hd_rng *r, int64_t lo, int64_t hi)
{
    return lo + (int64_t)hd_rng_below(r, (uint64_t)(hi - lo + 1));
}

bool hd_coin(hd_rng *r)
{
    return hd_rng_u32(r) & 1;
}

void hd_sample_set(hd_sample *s, int i, hd_dtype dtype, int rank, const int64_t *dims, hd_fill how, double limit)
{
    s->in[i] = hd_type_of(dtype, rank, dims);
    s->fill[i].how = how;
    s->fill[i].limit = limit;
    if (s->n_in <= i) s->n_in = i + 1;
}

void hd_sample_absent(hd_sample *s, int i)
{
    s->in[i] = (hd_type){.absent = true, .shape.sym = -1};
    if (s->n_in <= i) s->n_in = i + 1;
}

int hd_sample_dims(hd_rng *r, int lo, int hi, int64_t most, int64_t *dims)
{
    int rank = (int)hd_pick(r, lo, hi);
    for (int d = 0; d < rank; d++) dims[d] = hd_pick(r, 1, most);
    return rank;
}

/* Operands of one result shape, each perhaps with fewer dimensions or stretched ones; operand `whole` has them all. */
void hd_sample_broadcast(hd_rng *r, hd_sample *s, int n, hd_fill how)
{
    int64_t dims[HD_MAX_RANK], mine[HD_MAX_RANK];
    int rank = hd_sample_dims(r, 1, 4, 4, dims), whole = (int)hd_pick(r, 0, n - 1);
    dims[rank - 1] = hd_pick(r, 1, 23);
    for (int o = 0; o < n; o++) {
        int drop = o == whole ? 0 : (int)hd_pick(r, 0, rank);
        if (hd_coin(r)) drop = 0;
        for (int d = drop; d < rank; d++) mine[d - drop] = o != whole && hd_rng_below(r, 4) == 0 ? 1 : dims[d];
        hd_sample_set(s, o, HD_F64, rank - drop, mine, how, 0);
    }
}
