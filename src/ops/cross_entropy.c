/* cross_entropy.c: the loss of each row of logits against its target, and its gradient, without ever holding the probabilities:
 * what is kept of a row is its log-sum-exp. A target outside [0, V) is ignored: loss 0, gradient 0. */
#include <math.h>

#include "ops/ops.h"
#include "ops/ops_int.h"

/* ---- infer ---- */

static int check_logits(const hd_sig *s, int logits, int target, hd_error *err)
{
    int rc = hd_need_float(s, logits, "logits", err);
    if (!rc) rc = hd_need_rank(s, logits, "logits", 2, 2, err);
    if (!rc) rc = hd_need_integer(s, target, "target", err);
    if (rc) return rc;
    hd_shape rows = hd_shape_drop_last(&s->in[logits].shape);
    if (hd_shape_equal(&s->in[target].shape, &rows)) return 0;
    char is[160];
    return hd_op_fail(s, err, "target must have one entry for each of the %lld rows of logits, is %s", (long long)rows.dim[0],
                      hd_type_format(is, sizeof is, &s->in[target], NULL));
}

static int infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    int rc = check_logits(s, 0, 1, err);
    if (rc) return rc;
    hd_shape rows = hd_shape_drop_last(&s->in[0].shape);
    out[0] = out[1] = hd_type_shaped(hd_stat_dtype(s->in[0].dtype), &rows);
    return 2;
}

static int check_classes(const hd_sig *s, hd_error *err)
{
    const hd_entropy_attrs *at = s->attrs;
    if (at->first >= 0 && at->classes >= 0) return 0;
    return hd_op_fail(s, err, "first and classes must not be negative, are %lld and %lld", (long long)at->first, (long long)at->classes);
}

static int grad_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_entropy_attrs *at = s->attrs;
    int rc = check_logits(s, 1, 2, err);
    if (!rc) rc = check_classes(s, err);
    if (rc) return rc;
    hd_shape rows = hd_shape_drop_last(&s->in[1].shape);
    rc = hd_need_shape(s, 0, "dloss", &rows, err);
    if (!rc) rc = hd_need_shape(s, 3, "lse", &rows, err);
    if (!rc) rc = hd_need_result_dtype(s, "dtype", at->dtype, true, err);
    if (rc) return rc;
    out[0] = hd_type_shaped(at->dtype, &s->in[1].shape);
    return 1;
}

static int part_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    int rc = check_logits(s, 0, 1, err);
    if (!rc) rc = check_classes(s, err);
    if (rc) return rc;
    hd_shape rows = hd_shape_drop_last(&s->in[0].shape);
    out[0] = out[1] = out[2] = hd_type_shaped(hd_stat_dtype(s->in[0].dtype), &rows);
    return 3;
}

static int finish_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    static const char *const names[] = {"max", "sum", "picked"};
    int rc = hd_need_integer(s, 3, "target", err);
    if (!rc) rc = hd_need_rank(s, 3, "target", 1, 1, err);
    for (int i = 0; i < 3 && !rc; i++) rc = hd_need_shape(s, i, names[i], &s->in[3].shape, err);
    if (!rc) rc = check_classes(s, err);
    if (rc) return rc;
    out[0] = out[1] = hd_type_shaped(hd_stat_dtype(s->in[0].dtype), &s->in[0].shape);
    return 2;
}

/* ---- loops: rows split. The vocabulary stays whole in the loss (passes/expand.c splits it by parts), and splits in the gradient ---- */

static void loops(const hd_sig *s, hd_loops *l)
{
    int row = hd_loop_new(l, s->in[0].shape.dim[0], false);
    for (int i = 0; i < s->n_in; i++) hd_loop_in(l, i, 0, row);
    for (int r = 0; r < s->n_out; r++) hd_loop_out(l, r, 0, row);
}

/* Loops 0 and 1: rows and columns. */
static void grad_loops(const hd_sig *s, hd_loops *l)
{
    loops(s, l);
    int column = hd_loop_new(l, s->in[1].shape.dim[1], false);
    hd_loop_in(l, 1, 1, column);
    hd_loop_out(l, 0, 1, column);
}

/* The parts of several ranks combine in their own way, not as a sum: nobody splits columns by the loop alone. */
static void part_loops(const hd_sig *s, hd_loops *l)
{
    loops(s, l);
    int column = hd_loop_new(l, s->in[0].shape.dim[1], true);
    l->whole |= 1u << column;
    hd_loop_in(l, 0, 1, column);
}

static void localise_columns(const hd_sig *s, const hd_loops *loops, int loop, int64_t begin, int64_t end, void *attrs)
{
    hd_entropy_attrs *at = attrs;
    (void)s, (void)end;
    if (loop != 1) return;
    if (!at->classes) at->classes = loops->extent[1];
    at->first += begin;
}

/* Maximum, subtraction, exponential (12), sum. */
static void cost(const hd_sig *s, hd_cost *c)
{
    c->flops = 15 * (double)hd_shape_count(&s->in[0].shape);
    c->bytes = hd_cost_bytes(s);
}

static void grad_cost(const hd_sig *s, hd_cost *c)
{
    c->flops = 14 * (double)hd_shape_count(&s->in[1].shape);
    c->bytes = hd_cost_bytes(s);
}

static hd_value grad(hd_graph *g, const hd_node *n, const hd_value *dy, int i)
{
    if (dy[1] != HD_NONE) return hd_grad_refuse(g, n, "lse");
    if (i != 0 || dy[0] == HD_NONE) return HD_NONE;
    hd_entropy_attrs at = {.dtype = hd_grad_dtype(g, n->in[0])};
    return hd_graph_node(g, "cross_entropy_grad", NULL, &at, (hd_value[]){dy[0], n->in[0], n->in[1], n->out[1]}, 4);
}

/* dlogits over logits: each element is read before it is written. */
static uint32_t grad_may_alias(const hd_sig *s, int result)
{
    return hd_alias_same_type(s, result) & 2u;
}

/* ---- reference ---- */

/* The target of row r, or -1 when it is to be ignored. */
static int64_t target_of(const hd_tensor *target, int64_t r, int64_t classes)
{
    int64_t t = hd_load_i64(target->data, target->dtype, r);
    return t >= 0 && t < classes ? t : -1;
}

static double log_sum_exp(const hd_kernel_args *a, int64_t at, int64_t n)
{
    double most = -INFINITY, sum = 0;
    for (int64_t i = at; i < at + n; i++) most = fmax(most, hd_get(a, 0, i));
    if (most == -INFINITY) return most;
    for (int64_t i = at; i < at + n; i++) sum += exp(hd_get(a, 0, i) - most);
    return most + log(sum);
}

static void reference(const hd_kernel_args *a)
{
    if (a->tid) return;
    int64_t rows, n;
    hd_rows_of(&a->in[0], &rows, &n);
    for (int64_t r = 0; r < rows; r++) {
        int64_t t = target_of(&a->in[1], r, n);
        double lse = log_sum_exp(a, r * n, n);
        hd_put(a, 0, r, t < 0 ? 0 : lse - hd_get(a, 0, r * n + t));
        hd_put(a, 1, r, lse);
    }
}

static void grad_reference(const hd_kernel_args *a)
{
    const hd_entropy_attrs *at = a->attrs;
    if (a->tid || !hd_wants(a, 0)) return;
    int64_t rows, n;
    hd_rows_of(&a->in[1], &rows, &n);
    for (int64_t r = 0; r < rows; r++) {
        int64_t t = target_of(&a->in[2], r, at->classes ? at->classes : n);
        double lse = hd_get(a, 3, r), dloss = hd_get(a, 0, r);
        for (int64_t i = 0; i < n; i++) {
            double p = t < 0 ? 0 : exp(hd_get(a, 1, r * n + i) - lse) - (at->first + i == t);
            hd_put(a, 0, r * n + i, t < 0 ? 0 : p * dloss);
        }
    }
}

static void part_row(const hd_kernel_args *a, int64_t r, int64_t n)
{
    const hd_entropy_attrs *at = a->attrs;
    int64_t t = target_of(&a->in[1], r, at->classes ? at->classes : n), mine = t < 0 ? -1 : t - at->first;
    double most = -INFINITY, sum = 0;
    for (int64_t i = r * n; i < (r + 1) * n; i++) most = fmax(most, hd_get(a, 0, i));
    for (int64_t i = r * n; i < (r + 1) * n && most > -INFINITY; i++) sum += exp(hd_get(a, 0, i) - most);
    hd_put(a, 0, r, most);
    hd_put(a, 1, r, sum);
    hd_put(a, 2, r, mine >= 0 && mine < n ? hd_get(a, 0, r * n + mine) : 0);
}

static void part_reference(const hd_kernel_args *a)
{
    if (a->tid) return;
    int64_t rows, n;
    hd_rows_of(&a->in[0], &rows, &n);
    for (int64_t r = 0; r < rows; r++) part_row(a, r, n);
}

static void finish_reference(const hd_kernel_args *a)
{
    const hd_entropy_attrs *at = a->attrs;
    if (a->tid) return;
    for (int64_t r = 0; r < a->in[0].dim[0]; r++) {
        int64_t t = hd_load_i64(a->in[3].data, a->in[3].dtype, r);
        double lse = log(hd_get(a, 1, r)) + hd_get(a, 0, r);
        hd_put(a, 0, r, t >= 0 && t < at->classes ? lse - hd_get(a, 2, r) : 0);
        hd_put(a, 1, r, lse);
    }
}

/* ---- sample: now and then a target one past the end, to be ignored ---- */

static void sample(hd_rng *r, hd_sample *s)
{
    int64_t dims[2] = {hd_pick(r, 1, 9), hd_pick(r, 1, 45)};
    hd_sample_set(s, 0, HD_F64, 2, dims, HD_FILL_NORMAL, 0);
    hd_sample_set(s, 1, HD_I32, 1, dims, HD_FILL_INDEX, (double)(dims[1] + 1));
}

static void part_sample(hd_rng *r, hd_sample *s)
{
    hd_entropy_attrs *at = (hd_entropy_attrs *)s->attrs;
    sample(r, s);
    at->dtype = HD_F64;
    at->first = hd_pick(r, 0, 3);
    at->classes = hd_pick(r, 1, 50);
}

static void finish_sample(hd_rng *r, hd_sample *s)
{
    hd_entropy_attrs *at = (hd_entropy_attrs *)s->attrs;
    int64_t rows = hd_pick(r, 1, 9);
    at->dtype = HD_F64;
    at->classes = hd_pick(r, 1, 9);
    for (int i = 0; i < 3; i++) hd_sample_set(s, i, HD_F64, 1, &rows, i == 1 ? HD_FILL_POSITIVE : HD_FILL_NORMAL, 0);
    hd_sample_set(s, 3, HD_I32, 1, &rows, HD_FILL_INDEX, (double)(at->classes + 1));
}

static const hd_attr grad_attrs[] = {{"first", HD_ATTR_INT64, offsetof(hd_entropy_attrs, first), 0},
                                     {"classes", HD_ATTR_INT64, offsetof(hd_entropy_attrs, classes), 0},
                                     {"dtype", HD_ATTR_DTYPE, offsetof(hd_entropy_attrs, dtype), NAN},
                                     {0}};
static const hd_attr part_attrs[] = {{"first", HD_ATTR_INT64, offsetof(hd_entropy_attrs, first), 0},
                                     {"classes", HD_ATTR_INT64, offsetof(hd_entropy_attrs, classes), 0},
                                     {0}};

const hd_op hd_op_cross_entropy = {
    .name = "cross_entropy",
    .summary = "(logits[T, V], target[T]) -> (loss[T], lse[T]): minus the log-probability of the target; a target outside [0, V) gives 0",
    .min_in = 2, .max_in = 2,
    .infer = infer,
    .loops = loops,
    .cost = cost,
    .grad = grad,
    .reference = reference,
    .sample = sample,
};

const hd_op hd_op_cross_entropy_grad = {
    .name = "cross_entropy_grad",
    .summary = "(dloss[T], logits[T, V], target[T], lse[T]) -> dlogits = (exp(logits - lse) - onehot(target)) * dloss",
    .min_in = 4, .max_in = 4,
    .attrs_size = sizeof(hd_entropy_attrs),
    .attrs = grad_attrs,
    .linear = {1},
    .no_gradient = true,
    .is_backward = true,
    .infer = grad_infer,
    .loops = grad_loops,
    .localise = localise_columns,
    .cost = grad_cost,
    .may_alias = grad_may_alias,
    .reference = grad_reference,
};

const hd_op hd_op_cross_entropy_part = {
    .name = "cross_entropy_part",
    .summary = "(logits[T, V], target[T]) -> (max[T], sum[T], picked[T]): what some of the columns add to the loss of a row",
    .min_in = 2, .max_in = 2,
    .attrs_size = sizeof(hd_entropy_attrs),
    .attrs = part_attrs,
    .no_gradient = true,
    .infer = part_infer,
    .loops = part_loops,
    .localise = localise_columns,
    .cost = cost,
    .reference = part_reference,
    .sample = part_sample,
};

const hd_op hd_op_cross_entropy_finish = {
    .name = "cross_entropy_finish",
    .summary = "(max[T], sum[T], picked[T], target[T]) -> (loss[T], lse[T]) from what the columns of all ranks come to",
    .min_in = 4, .max_in = 4,
    .attrs_size = sizeof(hd_entropy_attrs),
    .attrs = part_attrs,
    .no_gradient = true,
    .infer = finish_infer,
    .loops = loops,
    .cost = hd_cost_default,
    .reference = finish_reference,
    .sample = finish_sample,
};
