/* attention_parts.c: what stands between the two products of attention where its scores are written out, as before Dao et al. 2022: scale, mask and softmax in one
 * pass (Megatron-LM's fused softmax), and dropout of the weights. Scores are [B, H, Tq, Tk]: B sequences, H heads.
 *
 * A query sees the keys that attention.c says: the same segment, causal, window. One that sees none gives zeros. */
#include "ops/facets.h"

enum { SOFT_X, SOFT_QPOS, SOFT_KPOS, SOFT_QSEG, SOFT_KSEG, SOFT_N };
enum { DROP_X, DROP_KEY, DROP_SAMPLE, DROP_POSITION, DROP_N };

static const hd_attr soft_attrs[] = {
    {"scale", HD_ATTR_DOUBLE, offsetof(hd_masked_softmax_attrs, scale), NAN},
    {"causal", HD_ATTR_BOOL, offsetof(hd_masked_softmax_attrs, causal), 0},
    {"window", HD_ATTR_INT64, offsetof(hd_masked_softmax_attrs, window), 0},
    {"dtype", HD_ATTR_DTYPE, offsetof(hd_masked_softmax_attrs, dtype), NAN},
    {0},
};
static const hd_attr drop_attrs[] = {
    {"p", HD_ATTR_DOUBLE, offsetof(hd_weights_dropout_attrs, p), NAN},
    {"site", HD_ATTR_INT64, offsetof(hd_weights_dropout_attrs, site), 0},
    {"first", HD_ATTR_INT64, offsetof(hd_weights_dropout_attrs, first), 0},
    {"dtype", HD_ATTR_DTYPE, offsetof(hd_weights_dropout_attrs, dtype), NAN},
    {0},
};

/* One for each query of each sequence where dim is 2, for each key where it is 3. */
static int check_ids(const hd_sig *s, int i, const char *name, hd_dtype dtype, int dim, hd_error *err)
{
    const hd_shape *x = &s->in[0].shape, *t = &s->in[i].shape;
    if (s->in[i].dtype == dtype && t->rank == 1 && t->dim[0] == x->dim[0] * x->dim[dim] && t->sym == x->sym) return 0;
    return hd_op_fail(s, err, "%s must be %s[%lld], is %s", name, hd_dtype_name(dtype), (long long)(x->dim[0] * x->dim[dim]), HD_TYPE_TEXT(&s->in[i]));
}

static int check_scores(const hd_sig *s, hd_dtype dtype, hd_error *err)
{
    if (hd_need_float(s, 0, "x", err) || hd_need_rank(s, 0, "x", 4, 4, err)) return HD_EINVAL;
    return hd_need_result_dtype(s, "dtype", dtype, true, err);
}

/* ---- masked_softmax ---- */

static int soft_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    static const char *const names[] = {"qpos", "kpos", "qseg", "kseg"};
    const hd_masked_softmax_attrs *p = s->attrs;
    if (check_scores(s, p->dtype, err)) return HD_EINVAL;
    for (int i = 0; i < 4; i++)
        if (check_ids(s, SOFT_QPOS + i, names[i], HD_I32, 2 + i % 2, err)) return HD_EINVAL;
    if (p->window < 0) return hd_op_fail(s, err, "window must not be negative");
    out[0] = hd_type_shaped(p->dtype, &s->in[0].shape);
    return 1;
}

static int soft_grad_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_masked_softmax_attrs *p = s->attrs;
    if (check_scores(s, p->dtype, err) || hd_need_shape(s, 1, "dy", &s->in[0].shape, err)) return HD_EINVAL;
    out[0] = hd_type_shaped(p->dtype, &s->in[0].shape);
    return 1;
}

/* Keys are seen by all of a row: whole. */
static void soft_loops(const hd_sig *s, hd_loops *l)
{
    int batch = hd_loop_through(s, l, SOFT_X, 0, 0), query, key;
    hd_loop_through(s, l, SOFT_X, 1, 1);
    query = hd_loop_through(s, l, SOFT_X, 2, 2);
    key = hd_loop_through(s, l, SOFT_X, 3, 3);
    l->whole |= 1u << key;
    for (int i = SOFT_QPOS; i <= SOFT_KSEG; i++) {
        hd_loop_in(l, i, 0, batch);
        hd_loop_in(l, i, 0, i == SOFT_QPOS || i == SOFT_QSEG ? query : key);
    }
}

/* As softmax's: maximum, subtraction, exponential, sum, division. */
static void soft_cost(const hd_sig *s, hd_cost *c) { *c = (hd_cost){16 * (double)hd_shape_count(&s->out[0].shape), hd_cost_bytes(s)}; }
static void soft_grad_cost(const hd_sig *s, hd_cost *c) { *c = (hd_cost){5 * (double)hd_shape_count(&s->out[0].shape), hd_cost_bytes(s)}; }

static hd_value soft_grad(hd_graph *g, const hd_node *n, const hd_value *dy, int operand)
{
    if (operand || dy[0] == HD_NONE) return HD_NONE;
    hd_masked_softmax_attrs p = *(const hd_masked_softmax_attrs *)n->attrs;
    p.dtype = hd_grad_dtype(g, n->in[SOFT_X]);
    return hd_graph_node(g, "masked_softmax_grad", "dx", &p, (hd_value[]){n->out[0], dy[0]}, 2);
}

static int64_t id_at(const hd_kernel_args *a, int operand, int64_t i) { return hd_load_i64(a->in[operand].data, a->in[operand].dtype, i); }

static bool sees(const hd_kernel_args *a, int64_t q, int64_t k)
{
    const hd_masked_softmax_attrs *p = a->attrs;
    int64_t segment = id_at(a, SOFT_QSEG, q), back = id_at(a, SOFT_QPOS, q) - id_at(a, SOFT_KPOS, k);
    return segment >= 0 && segment == id_at(a, SOFT_KSEG, k) && !(p->causal && back < 0) && !(p->window > 0 && back >= p->window);
}

/* Row `at` of n scores, of query q, with the keys that begin at k. */
static void soft_row(const hd_kernel_args *a, int64_t at, int64_t n, int64_t q, int64_t k)
{
    const hd_masked_softmax_attrs *p = a->attrs;
    double most = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++)
        if (sees(a, q, k + i)) most = fmax(most, p->scale * hd_get(a, SOFT_X, at + i));
    for (int64_t i = 0; i < n; i++)
        if (sees(a, q, k + i)) sum += exp(p->scale * hd_get(a, SOFT_X, at + i) - most);
    for (int64_t i = 0; i < n; i++) hd_put(a, 0, at + i, sees(a, q, k + i) ? exp(p->scale * hd_get(a, SOFT_X, at + i) - most) / sum : 0);
}

static void soft_reference(const hd_kernel_args *a)
{
    const int64_t *d = a->in[SOFT_X].dim;
    if (a->tid || !hd_wants(a, 0)) return;
    for (int64_t r = 0; r < d[0] * d[1] * d[2]; r++) {
        int64_t batch = r / (d[1] * d[2]), query = r % d[2];
        soft_row(a, r * d[3], d[3], batch * d[2] + query, batch * d[3]);
    }
}

/* dx = scale * y * (dy - sum of y * dy); y is 0 where nothing is seen. */
static void soft_grad_reference(const hd_kernel_args *a)
{
    int64_t rows, n;
    const hd_masked_softmax_attrs *p = a->attrs;
    if (a->tid || !hd_wants(a, 0)) return;
    hd_rows_of(&a->in[0], &rows, &n);
    for (int64_t r = 0; r < rows; r++) {
        double dot = 0;
        for (int64_t i = r * n; i < (r + 1) * n; i++) dot += hd_get(a, 0, i) * hd_get(a, 1, i);
        for (int64_t i = r * n; i < (r + 1) * n; i++) hd_put(a, 0, i, p->scale * hd_get(a, 0, i) * (hd_get(a, 1, i) - dot));
    }
}

static void sample_scores(hd_rng *r, hd_sample *s, int64_t *d)
{
    d[0] = hd_pick(r, 1, 3), d[1] = hd_pick(r, 1, 3), d[2] = hd_pick(r, 1, 5), d[3] = hd_pick(r, 1, 7);
    hd_sample_set(s, 0, HD_F64, 4, d, HD_FILL_NORMAL, 0);
}

static void soft_sample(hd_rng *r, hd_sample *s)
{
    int64_t d[4];
    sample_scores(r, s, d);
    *(hd_masked_softmax_attrs *)s->attrs = (hd_masked_softmax_attrs){.scale = 0.7, .causal = hd_coin(r), .dtype = HD_F64};
    if (hd_coin(r)) ((hd_masked_softmax_attrs *)s->attrs)->window = hd_pick(r, 1, 5);
    for (int i = 0; i < 4; i++)
        hd_sample_set(s, SOFT_QPOS + i, HD_I32, 1, (int64_t[]){d[0] * d[2 + i % 2]}, i < 2 ? HD_FILL_RAMP : HD_FILL_CONSTANT, 0);
}

const hd_op hd_op_masked_softmax = {
    .name = "masked_softmax",
    .summary = "(x[B, H, Tq, Tk], qpos[B Tq], kpos[B Tk], qseg, kseg) -> y: softmax of scale x over the keys that a query sees",
    .min_in = SOFT_N, .max_in = SOFT_N,
    .attrs_size = sizeof(hd_masked_softmax_attrs), .attrs = soft_attrs,
    .infer = soft_infer, .loops = soft_loops, .cost = soft_cost, .grad = soft_grad, .may_alias = hd_alias_same_type, .reference = soft_reference,
    .sample = soft_sample,
};
static void soft_grad_loops(const hd_sig *s, hd_loops *l) { hd_loops_rows(s, l, 1); }
const hd_op hd_op_masked_softmax_grad = {
    .name = "masked_softmax_grad",
    .summary = "(y[B, H, Tq, Tk], dy[B, H, Tq, Tk]) -> dx of y = masked_softmax(x, ...)",
    .min_in = 2, .max_in = 2,
    .attrs_size = sizeof(hd_masked_softmax_attrs), .attrs = soft_attrs,
    .linear = {2}, .no_gradient = true, .is_backward = true,
    .infer = soft_grad_infer, .loops = soft_grad_loops, .cost = soft_grad_cost, .may_alias = hd_alias_same_type, .reference = soft_grad_reference,
};

/* ---- weights_dropout: draws by (sample, position of the query, head and key), so that sequences, heads and queries split ---- */

static int drop_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_weights_dropout_attrs *p = s->attrs;
    if (!(p->p >= 0 && p->p < 1)) return hd_op_fail(s, err, "p must be in [0, 1), is %g", p->p);
    if (p->first < 0) return hd_op_fail(s, err, "first must not be negative");
    if (check_scores(s, p->dtype, err)) return HD_EINVAL;
    const hd_type *key = &s->in[DROP_KEY];
    if (key->dtype != HD_I64 || key->shape.rank != 1 || key->shape.dim[0] != 2)
        return hd_op_fail(s, err, "key must be i64[2], is %s", HD_TYPE_TEXT(key));
    if (check_ids(s, DROP_SAMPLE, "sample", HD_I64, 2, err) || check_ids(s, DROP_POSITION, "position", HD_I32, 2, err)) return HD_EINVAL;
    out[0] = hd_type_shaped(p->dtype, &s->in[0].shape);
    return 1;
}

static void drop_loops(const hd_sig *s, hd_loops *l)
{
    hd_loop_through(s, l, DROP_X, 1, 1); /* heads: loop 0, which localise knows it by */
    int batch = hd_loop_through(s, l, DROP_X, 0, 0), query = hd_loop_through(s, l, DROP_X, 2, 2);
    for (int i = DROP_SAMPLE; i <= DROP_POSITION; i++) hd_loop_in(l, i, 0, batch), hd_loop_in(l, i, 0, query);
}

static void drop_localise(const hd_sig *s, const hd_loops *loops, int loop, int64_t begin, int64_t end, void *attrs)
{
    (void)s, (void)loops, (void)end;
    if (loop == 0) ((hd_weights_dropout_attrs *)attrs)->first += begin;
}

static hd_value drop_grad(hd_graph *g, const hd_node *n, const hd_value *dy, int operand)
{
    if (operand || dy[0] == HD_NONE) return HD_NONE;
    hd_weights_dropout_attrs p = *(const hd_weights_dropout_attrs *)n->attrs;
    p.dtype = hd_grad_dtype(g, n->in[DROP_X]);
    return hd_graph_node(g, "weights_dropout", "dx", &p, (hd_value[]){dy[0], n->in[DROP_KEY], n->in[DROP_SAMPLE], n->in[DROP_POSITION]}, 4);
}

static uint32_t drop_alias(const hd_sig *s, int result) { return hd_alias_same_type(s, result) & 1u << DROP_X; }

static void drop_row(const hd_kernel_args *a, int64_t row, int64_t head, int64_t query, uint64_t key)
{
    const hd_weights_dropout_attrs *p = a->attrs;
    int64_t keys = a->in[DROP_X].dim[3];
    uint64_t position = (uint64_t)(uint32_t)id_at(a, DROP_POSITION, query) << 32;
    for (int64_t k = 0; k < keys; k++) {
        int64_t feature = head * keys + k;
        hd_philox block = hd_philox_block(key, (uint64_t)id_at(a, DROP_SAMPLE, query), position | (uint64_t)(feature / 4));
        bool keep = (double)hd_uniform24(block.word[feature % 4]) >= p->p;
        hd_put(a, 0, row * keys + k, keep ? hd_get(a, DROP_X, row * keys + k) / (1 - p->p) : 0);
    }
}

static void drop_reference(const hd_kernel_args *a)
{
    const hd_weights_dropout_attrs *p = a->attrs;
    const int64_t *d = a->in[DROP_X].dim;
    if (a->tid || !hd_wants(a, 0)) return;
    uint64_t key = hd_hash_mix(hd_hash_mix((uint64_t)id_at(a, DROP_KEY, 0), (uint64_t)id_at(a, DROP_KEY, 1)), (uint64_t)p->site);
    for (int64_t r = 0; r < d[0] * d[1] * d[2]; r++)
        drop_row(a, r, p->first + r / d[2] % d[1], r / (d[1] * d[2]) * d[2] + r % d[2], key);
}

static void drop_sample(hd_rng *r, hd_sample *s)
{
    static const double shares[] = {0, .1, .5};
    int64_t d[4];
    sample_scores(r, s, d);
    *(hd_weights_dropout_attrs *)s->attrs = (hd_weights_dropout_attrs){.p = shares[hd_pick(r, 0, 2)], .site = hd_pick(r, 0, 1 << 30), .dtype = HD_F64};
    hd_sample_set(s, DROP_KEY, HD_I64, 1, (int64_t[]){2}, HD_FILL_INDEX, 1000);
    hd_sample_set(s, DROP_SAMPLE, HD_I64, 1, (int64_t[]){d[0] * d[2]}, HD_FILL_INDEX, 1000);
    hd_sample_set(s, DROP_POSITION, HD_I32, 1, (int64_t[]){d[0] * d[2]}, HD_FILL_RAMP, 0);
}

const hd_op hd_op_weights_dropout = {
    .name = "weights_dropout",
    .summary = "(x[B, H, Tq, Tk], key[2], sample[B Tq], position[B Tq]) -> y: a random share p of the attention weights zero, the rest times 1/(1-p)",
    .min_in = DROP_N, .max_in = DROP_N,
    .attrs_size = sizeof(hd_weights_dropout_attrs), .attrs = drop_attrs,
    .linear = {1},
    .infer = drop_infer, .loops = drop_loops, .localise = drop_localise, .cost = hd_cost_default, .grad = drop_grad, .may_alias = drop_alias,
    .reference = drop_reference, .sample = drop_sample,
};
