/* optimizer.c: the update of one parameter, in place: adamw (Loshchilov and Hutter 2019, algorithm 2) and sgd with momentum.
 * Learning rate, step, clipping scale and "ok" are operands, so that one Program runs every step; ok = 0 leaves all as it is. */
#include <math.h>

#include "ops/ops.h"
#include "ops/ops_int.h"

/* ---- infer ---- */

/* The parameter or one of its states: f32 (f64 where all is). */
static int check_state(const hd_sig *s, int i, const char *name, hd_error *err)
{
    int rc = hd_need_shape(s, i, name, &s->in[0].shape, err);
    if (rc || s->in[i].dtype == HD_F64) return rc;
    return hd_need_dtype(s, i, name, HD_F32, err);
}

static int check_scalars(const hd_sig *s, int from, const char *const *names, hd_error *err)
{
    int rc = 0;
    for (int i = from; !rc && i < s->n_in; i++) rc = hd_need_rank(s, i, names[i - from], 0, 0, err);
    return rc;
}

static int check_rates(const hd_sig *s, hd_error *err)
{
    const hd_optimizer_attrs *at = s->attrs;
    const struct { const char *name; double value, below; } rates[] = {
        {"beta1", at->beta1, 1}, {"beta2", at->beta2, 1}, {"eps", at->eps, INFINITY},
        {"weight_decay", at->weight_decay, INFINITY}, {"momentum", at->momentum, INFINITY}};
    for (size_t i = 0; i < sizeof rates / sizeof rates[0]; i++)
        if (!(rates[i].value >= 0 && rates[i].value < rates[i].below))
            return hd_op_fail(s, err, "%s is out of range: %g", rates[i].name, rates[i].value);
    return 0;
}

static int adamw_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    static const char *const states[] = {"p", "m", "v"}, *const scalars[] = {"lr", "step", "scale", "ok"};
    int rc = check_rates(s, err);
    for (int i = 0; !rc && i < 3; i++) rc = check_state(s, i, states[i], err);
    if (!rc) rc = hd_need_shape(s, 3, "g", &s->in[0].shape, err);
    if (!rc) rc = check_scalars(s, 4, scalars, err);
    if (rc) return rc;
    for (int i = 0; i < 3; i++) out[i] = s->in[i];
    out[3] = hd_type_shaped(HD_BF16, &s->in[0].shape);
    return 4;
}

static int sgd_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    static const char *const scalars[] = {"lr", "scale", "ok"};
    const hd_optimizer_attrs *at = s->attrs;
    int rc = check_rates(s, err);
    if (!rc) rc = check_state(s, 0, "p", err);
    if (!rc && hd_sig_has(s, 1)) rc = check_state(s, 1, "m", err);
    if (!rc && !hd_sig_has(s, 1) && at->momentum != 0) rc = hd_op_fail(s, err, "m is missing: momentum is %g", at->momentum);
    if (!rc) rc = hd_need_shape(s, 2, "g", &s->in[0].shape, err);
    if (!rc) rc = check_scalars(s, 3, scalars, err);
    if (rc) return rc;
    out[0] = s->in[0];
    if (hd_sig_has(s, 1)) out[1] = s->in[1];
    return hd_sig_has(s, 1) ? 2 : 1;
}

static void adamw_cost(const hd_sig *s, hd_cost *c)
{
    c->flops = 15 * (double)hd_shape_count(&s->in[0].shape);
    c->bytes = hd_cost_bytes(s);
}

static void sgd_cost(const hd_sig *s, hd_cost *c)
{
    const hd_optimizer_attrs *at = s->attrs;
    c->flops = ((hd_sig_has(s, 1) ? 7 : 5) + 2 * at->nesterov) * (double)hd_shape_count(&s->in[0].shape);
    c->bytes = hd_cost_bytes(s);
}

/* Each new state over its old self; the bf16 copy over nothing. */
static uint32_t may_alias(const hd_sig *s, int result)
{
    return hd_alias_same_type(s, result) & (1u << result) & (s->op->max_in == 8 ? 7u : 3u);
}

/* ---- reference ---- */

/* v as it comes out of being stored as dtype. */
static double rounded(double v, hd_dtype dtype)
{
    char element[8];
    hd_store_f64(element, dtype, 0, v);
    return hd_load_f64(element, dtype, 0);
}

static void keep_all(const hd_kernel_args *a, int states, int64_t i)
{
    double old[3];
    for (int r = 0; r < states; r++) old[r] = hd_given(a, r) ? hd_get(a, r, i) : 0;
    for (int r = 0; r < states; r++) hd_put(a, r, i, old[r]);
}

static void adamw_element(const hd_kernel_args *a, const hd_optimizer_attrs *at, int64_t i)
{
    double lr = hd_get(a, 4, 0), step = hd_get(a, 5, 0), p = hd_get(a, 0, i), g = hd_get(a, 3, i) * hd_get(a, 6, 0);
    double m = at->beta1 * hd_get(a, 1, i) + (1 - at->beta1) * g;
    double v = at->beta2 * hd_get(a, 2, i) + (1 - at->beta2) * g * g;
    double m_hat = m / (1 - pow(at->beta1, step)), v_hat = v / (1 - pow(at->beta2, step));
    p -= lr * (m_hat / (sqrt(v_hat) + at->eps) + at->weight_decay * p);
    hd_put(a, 0, i, p);
    hd_put(a, 1, i, m);
    hd_put(a, 2, i, v);
    hd_put(a, 3, i, rounded(p, a->in[0].dtype)); /* a copy of p', so rounded from that */
}

static void adamw_reference(const hd_kernel_args *a)
{
    if (a->tid) return;
    int64_t count = hd_tensor_count(&a->in[0]);
    bool ok = hd_get(a, 7, 0) != 0;
    for (int64_t i = 0; i < count; i++) {
        if (ok) {
            adamw_element(a, a->attrs, i);
        } else {
            double p = hd_get(a, 0, i);
            keep_all(a, 3, i);
            hd_put(a, 3, i, p);
        }
    }
}

static void sgd_element(const hd_kernel_args *a, const hd_optimizer_attrs *at, int64_t i)
{
    double lr = hd_get(a, 3, 0), p = hd_get(a, 0, i), g = hd_get(a, 2, i) * hd_get(a, 4, 0), move = g;
    if (hd_given(a, 1)) {
        double m = at->momentum * hd_get(a, 1, i) + g;
        move = at->nesterov ? g + at->momentum * m : m;
        hd_put(a, 1, i, m);
    }
    hd_put(a, 0, i, p - lr * (move + at->weight_decay * p));
}

static void sgd_reference(const hd_kernel_args *a)
{
    if (a->tid) return;
    int64_t count = hd_tensor_count(&a->in[0]);
    bool ok = hd_get(a, 5, 0) != 0;
    for (int64_t i = 0; i < count; i++) {
        if (ok) sgd_element(a, a->attrs, i);
        else keep_all(a, 2, i);
    }
}

/* ---- samples ---- */

static void set_scalar(hd_sample *s, int i, double v)
{
    hd_sample_set(s, i, HD_F64, 0, NULL, HD_FILL_CONSTANT, v);
}

static void adamw_sample(hd_rng *r, hd_sample *s)
{
    int64_t dims[HD_MAX_RANK];
    int rank = hd_sample_dims(r, 0, 3, 9, dims);
    hd_fill fill[4] = {HD_FILL_NORMAL, HD_FILL_NORMAL, HD_FILL_POSITIVE, HD_FILL_NORMAL};
    for (int i = 0; i < 4; i++) hd_sample_set(s, i, HD_F64, rank, dims, fill[i], 0);
    set_scalar(s, 4, 0.01 * (double)hd_pick(r, 1, 20));
    set_scalar(s, 5, (double)hd_pick(r, 1, 500));
    set_scalar(s, 6, hd_coin(r) ? 1 : 0.375);
    set_scalar(s, 7, hd_rng_below(r, 4) ? 1 : 0);
    *(hd_optimizer_attrs *)s->attrs = (hd_optimizer_attrs){.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = hd_coin(r) ? 0.1 : 0};
}

static void sgd_sample(hd_rng *r, hd_sample *s)
{
    int64_t dims[HD_MAX_RANK];
    int rank = hd_sample_dims(r, 0, 3, 9, dims);
    bool momentum = hd_coin(r);
    for (int i = 0; i < 3; i++) hd_sample_set(s, i, HD_F64, rank, dims, HD_FILL_NORMAL, 0);
    if (!momentum) hd_sample_absent(s, 1);
    set_scalar(s, 3, 0.01 * (double)hd_pick(r, 1, 20));
    set_scalar(s, 4, hd_coin(r) ? 1 : 0.375);
    set_scalar(s, 5, hd_rng_below(r, 4) ? 1 : 0);
    *(hd_optimizer_attrs *)s->attrs =
        (hd_optimizer_attrs){.momentum = momentum ? 0.9 : 0, .nesterov = momentum && hd_coin(r), .weight_decay = hd_coin(r) ? 0.1 : 0};
}

/* ---- the table ---- */

static const hd_attr adamw_attrs[] = {{"beta1", HD_ATTR_DOUBLE, offsetof(hd_optimizer_attrs, beta1), 0.9},
                                      {"beta2", HD_ATTR_DOUBLE, offsetof(hd_optimizer_attrs, beta2), 0.999},
                                      {"eps", HD_ATTR_DOUBLE, offsetof(hd_optimizer_attrs, eps), 1e-8},
                                      {"weight_decay", HD_ATTR_DOUBLE, offsetof(hd_optimizer_attrs, weight_decay), 0.01},
                                      {0}};
static const hd_attr sgd_attrs[] = {{"momentum", HD_ATTR_DOUBLE, offsetof(hd_optimizer_attrs, momentum), 0},
                                    {"weight_decay", HD_ATTR_DOUBLE, offsetof(hd_optimizer_attrs, weight_decay), 0},
                                    {"nesterov", HD_ATTR_BOOL, offsetof(hd_optimizer_attrs, nesterov), 0},
                                    {0}};

const hd_op hd_op_adamw = {
    .name = "adamw",
    .summary = "(p, m, v, g, lr, step, scale, ok) -> (p', m', v', p' in bf16), in place",
    .min_in = 8, .max_in = 8,
    .attrs_size = sizeof(hd_optimizer_attrs),
    .attrs = adamw_attrs,
    .no_gradient = true,
    .infer = adamw_infer,
    .loops = hd_loops_elementwise,
    .cost = adamw_cost,
    .may_alias = may_alias,
    .reference = adamw_reference,
    .sample = adamw_sample,
};

const hd_op hd_op_sgd = {
    .name = "sgd",
    .summary = "(p, m?, g, lr, scale, ok) -> (p', m'), in place; m' only with m",
    .min_in = 6, .max_in = 6,
    .attrs_size = sizeof(hd_optimizer_attrs),
    .attrs = sgd_attrs,
    .no_gradient = true,
    .infer = sgd_infer,
    .loops = hd_loops_elementwise,
    .cost = sgd_cost,
    .may_alias = may_alias,
    .reference = sgd_reference,
    .sample = sgd_sample,
};
