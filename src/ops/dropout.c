/* dropout.c: zeros a random share p of the features and scales the rest by 1/(1-p) (Srivastava et al. 2014). What is kept depends on
 * (seed, step, site, sample, position, feature) alone, so any sharding and any recomputation draws the same numbers. */
#include "ops/facets.h"

enum { DROP_X, DROP_KEY, DROP_SAMPLE, DROP_POSITION };

static const hd_attr dropout_attrs[] = {
    {"p", HD_ATTR_DOUBLE, offsetof(hd_dropout_attrs, p), NAN},
    {"site", HD_ATTR_INT64, offsetof(hd_dropout_attrs, site), 0},
    {"dtype", HD_ATTR_DTYPE, offsetof(hd_dropout_attrs, dtype), NAN},
    {0},
};

/* An integer operand with one element for each row of x. */
static int check_per_row(const hd_sig *s, int i, const char *name, hd_dtype dtype, hd_error *err)
{
    const hd_shape *x = &s->in[DROP_X].shape, *t = &s->in[i].shape;
    if (s->in[i].dtype == dtype && t->rank == 1 && t->dim[0] == x->dim[0] && t->sym == x->sym) return 0;
    return hd_op_fail(s, err, "%s must be %s[%lld], one for each row of x, is %s", name, hd_dtype_name(dtype), (long long)x->dim[0],
                      HD_TYPE_TEXT(&s->in[i]));
}

static int dropout_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_dropout_attrs *p = s->attrs;
    if (!(p->p >= 0 && p->p < 1)) return hd_op_fail(s, err, "p must be in [0, 1), is %g", p->p);
    if (hd_need_float(s, DROP_X, "x", err) || hd_need_rank(s, DROP_X, "x", 1, HD_MAX_RANK, err)) return HD_EINVAL;
    if (hd_need_result_dtype(s, "dtype", p->dtype, true, err)) return HD_EINVAL;
    const hd_type *key = &s->in[DROP_KEY];
    if (key->dtype != HD_I64 || key->shape.rank != 1 || key->shape.dim[0] != 2)
        return hd_op_fail(s, err, "key must be i64[2], is %s", HD_TYPE_TEXT(key));
    if (check_per_row(s, DROP_SAMPLE, "sample", HD_I64, err) || check_per_row(s, DROP_POSITION, "position", HD_I32, err)) return HD_EINVAL;
    out[0] = hd_type_shaped(p->dtype, &s->in[DROP_X].shape);
    return 1;
}

/* Features draw by their index within the row, so only rows split. */
static void dropout_loops(const hd_sig *s, hd_loops *l)
{
    int rows = hd_loop_through(s, l, DROP_X, 0, 0);
    hd_loop_in(l, DROP_SAMPLE, 0, rows);
    hd_loop_in(l, DROP_POSITION, 0, rows);
}

static hd_value dropout_grad(hd_graph *g, const hd_node *n, const hd_value *dy, int operand)
{
    if (operand || dy[0] == HD_NONE) return HD_NONE;
    hd_dropout_attrs p = *(const hd_dropout_attrs *)n->attrs;
    p.dtype = hd_grad_dtype(g, n->in[DROP_X]);
    return hd_graph_node(g, "dropout", "dx", &p, (hd_value[]){dy[0], n->in[DROP_KEY], n->in[DROP_SAMPLE], n->in[DROP_POSITION]}, 4);
}

static uint32_t dropout_alias(const hd_sig *s, int result) { return hd_alias_same_type(s, result) & 1u << DROP_X; }

static void dropout_reference(const hd_kernel_args *a)
{
    const hd_dropout_attrs *p = a->attrs;
    const hd_tensor *x = &a->in[DROP_X], *keys = &a->in[DROP_KEY], *sample = &a->in[DROP_SAMPLE], *position = &a->in[DROP_POSITION];
    if (a->tid) return;
    int64_t size = hd_dims_product(x->dim, 1, x->rank);
    uint64_t seed = (uint64_t)hd_load_i64(keys->data, keys->dtype, 0), step = (uint64_t)hd_load_i64(keys->data, keys->dtype, 1);
    uint64_t key = hd_hash_mix(hd_hash_mix(seed, step), (uint64_t)p->site);
    for (int64_t row = 0; row < x->dim[0]; row++)
        for (int64_t f = 0; f < size; f++) {
            uint64_t at = (uint64_t)(uint32_t)hd_load_i64(position->data, position->dtype, row) << 32 | (uint64_t)(f / 4);
            hd_philox block = hd_philox_block(key, (uint64_t)hd_load_i64(sample->data, sample->dtype, row), at);
            bool keep = (double)hd_uniform24(block.word[f % 4]) >= p->p;
            hd_put(a, 0, row * size + f, keep ? hd_get(a, DROP_X, row * size + f) / (1 - p->p) : 0);
        }
}

static void dropout_sample(hd_rng *r, hd_sample *s)
{
    static const double shares[] = {0, .1, .5};
    int64_t dims[3];
    int rank = hd_sample_dims(r, 1, 3, 7, dims);
    *(hd_dropout_attrs *)s->attrs = (hd_dropout_attrs){.p = shares[hd_pick(r, 0, 2)], .site = hd_pick(r, 0, 1 << 30), .dtype = HD_F64};
    hd_sample_set(s, DROP_X, HD_F64, rank, dims, HD_FILL_NORMAL, 0);
    hd_sample_set(s, DROP_KEY, HD_I64, 1, (int64_t[]){2}, HD_FILL_INDEX, 1000);
    hd_sample_set(s, DROP_SAMPLE, HD_I64, 1, dims, HD_FILL_INDEX, 1000);
    hd_sample_set(s, DROP_POSITION, HD_I32, 1, dims, HD_FILL_RAMP, 0);
}

const hd_op hd_op_dropout = {
    .name = "dropout",
    .summary = "(x[T, ...], key[2], sample[T], position[T]) -> y: a random share p of the features zero, the rest times 1/(1-p)",
    .min_in = 4, .max_in = 4,
    .attrs_size = sizeof(hd_dropout_attrs), .attrs = dropout_attrs,
    .linear = {1},
    .infer = dropout_infer, .loops = dropout_loops, .cost = hd_cost_default, .grad = dropout_grad, .may_alias = dropout_alias,
    .reference = dropout_reference, .sample = dropout_sample,
};
