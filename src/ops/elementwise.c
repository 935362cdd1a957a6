/* elementwise.c: the elementwise family. One entry per opcode of hd_ew; all share the facets below, which look at op->code.
 * What each computes is hd_ew_eval in kernels/elementwise.c. Results broadcast as NumPy's: aligned at the last dimension. */
#include <math.h>

#include "ops/ops.h"
#include "ops/ops_int.h"

/* ---- infer ---- */

static int ew_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_ew_attrs *a = s->attrs;
    int rc = hd_need_result_dtype(s, "dtype", a->dtype, false, err);
    if (rc) return rc;
    if (!isfinite(a->imm)) return hd_op_fail(s, err, "imm must be finite");
    out[0] = (hd_type){.dtype = a->dtype};
    rc = hd_broadcast_infer(s, &out[0].shape, err);
    return rc ? rc : 1;
}

/* ---- cost ---- */

double hd_ew_flops(hd_ew op)
{
    switch (op) {
    case HD_EW_COPY: case HD_EW_CAST: return 0;
    case HD_EW_EXP: case HD_EW_LOG: case HD_EW_SIN: case HD_EW_COS: return 12;
    case HD_EW_TANH: case HD_EW_SIGMOID: case HD_EW_SILU: case HD_EW_ERF: return 16;
    case HD_EW_SOFTPLUS: case HD_EW_GELU: case HD_EW_GELU_TANH: case HD_EW_SILU_GRAD: return 20;
    case HD_EW_POW: case HD_EW_POWI: return 25;
    case HD_EW_GELU_GRAD: case HD_EW_GELU_TANH_GRAD: return 30;
    case HD_EW_TANH_GRAD: case HD_EW_SIGMOID_GRAD: return 3;
    default: return 1;
    }
}

static void ew_cost(const hd_sig *s, hd_cost *c)
{
    c->flops = hd_ew_flops((hd_ew)s->op->code) * (double)hd_shape_count(&s->out[0].shape);
    c->bytes = hd_cost_bytes(s);
}

/* ---- gradients ---- */

static hd_value un(hd_graph *g, hd_ew op, hd_value x)
{
    return hd_elementwise(g, NULL, op, x, HD_NONE, HD_NONE, 0);
}

static hd_value bin(hd_graph *g, hd_ew op, hd_value a, hd_value b)
{
    return hd_elementwise(g, NULL, op, a, b, HD_NONE, 0);
}

static hd_value powi(hd_graph *g, hd_value x, double e)
{
    return hd_elementwise(g, NULL, HD_EW_POWI, x, HD_NONE, HD_NONE, e);
}

static hd_value scalar_like(hd_graph *g, double v, hd_value x)
{
    return x == HD_NONE ? HD_NONE : hd_graph_scalar(g, v, hd_type_in(g, x)->dtype);
}

/* dy where a < b (or a <= b), else 0. A select, so that infinities in dy where nothing flows give no NaN. */
static hd_value where(hd_graph *g, hd_ew compare, hd_value a, hd_value b, hd_value dy)
{
    hd_value cond = bin(g, compare, a, b);
    return hd_elementwise(g, NULL, HD_EW_SELECT, cond, dy, scalar_like(g, 0, dy), 0);
}

/* Of y = f(x). HD_NONE where f is flat. */
static hd_value unary_grad(hd_graph *g, hd_ew op, double imm, hd_value x, hd_value y, hd_value dy)
{
    switch (op) {
    case HD_EW_COPY: case HD_EW_CAST: case HD_EW_OFFSET: return dy;
    case HD_EW_NEG: return un(g, HD_EW_NEG, dy);
    case HD_EW_ABS: return hd_mul(g, dy, un(g, HD_EW_SIGN, x));
    case HD_EW_SQUARE: return hd_mul(g, hd_scale(g, dy, 2), x);
    case HD_EW_SQRT: return bin(g, HD_EW_DIV, hd_scale(g, dy, 0.5), y);
    case HD_EW_RSQRT: return hd_mul(g, hd_scale(g, dy, -0.5), powi(g, y, 3));
    case HD_EW_RECIP: return hd_mul(g, hd_scale(g, dy, -1), un(g, HD_EW_SQUARE, y));
    case HD_EW_EXP: return hd_mul(g, dy, y);
    case HD_EW_LOG: return bin(g, HD_EW_DIV, dy, x);
    case HD_EW_TANH: return bin(g, HD_EW_TANH_GRAD, y, dy);
    case HD_EW_SIGMOID: return bin(g, HD_EW_SIGMOID_GRAD, y, dy);
    case HD_EW_SOFTPLUS: return hd_mul(g, dy, un(g, HD_EW_SIGMOID, x));
    case HD_EW_RELU: return bin(g, HD_EW_RELU_GRAD, x, dy);
    case HD_EW_GELU: return bin(g, HD_EW_GELU_GRAD, x, dy);
    case HD_EW_GELU_TANH: return bin(g, HD_EW_GELU_TANH_GRAD, x, dy);
    case HD_EW_SILU: return bin(g, HD_EW_SILU_GRAD, x, dy);
    case HD_EW_ERF: return hd_mul(g, hd_scale(g, dy, 2 / sqrt(M_PI)), un(g, HD_EW_EXP, un(g, HD_EW_NEG, un(g, HD_EW_SQUARE, x))));
    case HD_EW_SIN: return hd_mul(g, dy, un(g, HD_EW_COS, x));
    case HD_EW_COS: return hd_mul(g, hd_scale(g, dy, -1), un(g, HD_EW_SIN, x));
    case HD_EW_SCALE: return hd_scale(g, dy, imm);
    case HD_EW_POWI: return hd_mul(g, hd_scale(g, dy, imm), powi(g, x, imm - 1));
    case HD_EW_MINI: return where(g, HD_EW_LE, x, scalar_like(g, imm, x), dy);
    case HD_EW_MAXI: return where(g, HD_EW_LE, scalar_like(g, imm, x), x, dy);
    default: return HD_NONE;
    }
}

/* d pow(a, b) / db = y log a, and 0 where a <= 0: there y is 0 or no real function of b. */
static hd_value pow_grad_b(hd_graph *g, hd_value a, hd_value y, hd_value dy)
{
    return where(g, HD_EW_LT, scalar_like(g, 0, a), a, hd_mul(g, dy, hd_mul(g, y, un(g, HD_EW_LOG, a))));
}

/* Of y = f(a, b), in operand i. Ties of max and min go to a. */
static hd_value binary_grad(hd_graph *g, hd_ew op, hd_value a, hd_value b, hd_value y, hd_value dy, int i)
{
    switch (op) {
    case HD_EW_ADD: return dy;
    case HD_EW_SUB: return i ? un(g, HD_EW_NEG, dy) : dy;
    case HD_EW_MUL: return hd_mul(g, dy, i ? a : b);
    case HD_EW_DIV: return bin(g, HD_EW_DIV, i ? hd_mul(g, hd_scale(g, dy, -1), y) : dy, b);
    case HD_EW_MAX: return i ? where(g, HD_EW_LT, a, b, dy) : where(g, HD_EW_LE, b, a, dy);
    case HD_EW_MIN: return i ? where(g, HD_EW_LT, b, a, dy) : where(g, HD_EW_LE, a, b, dy);
    case HD_EW_POW:
        if (i) return pow_grad_b(g, a, y, dy);
        return hd_mul(g, dy, hd_mul(g, b, bin(g, HD_EW_POW, a, hd_elementwise(g, NULL, HD_EW_OFFSET, b, HD_NONE, HD_NONE, -1))));
    default: return HD_NONE;
    }
}

/* Of select(cond, a, b). */
static hd_value select_grad(hd_graph *g, hd_value cond, hd_value dy, int i)
{
    if (i == 0) return HD_NONE;
    hd_value zero = scalar_like(g, 0, dy);
    return hd_elementwise(g, NULL, HD_EW_SELECT, cond, i == 1 ? dy : zero, i == 1 ? zero : dy, 0);
}

static hd_value ew_grad(hd_graph *g, const hd_node *n, const hd_value *dy, int i)
{
    const hd_ew_attrs *a = n->attrs;
    if (dy[0] == HD_NONE || !hd_dtype_is_float(hd_type_in(g, n->in[i])->dtype)) return HD_NONE;
    hd_ew op = (hd_ew)n->op->code;
    hd_value dx;
    if (op == HD_EW_SELECT) dx = select_grad(g, n->in[0], dy[0], i);
    else if (n->op->max_in == 2) dx = binary_grad(g, op, n->in[0], n->in[1], n->out[0], dy[0], i);
    else dx = unary_grad(g, op, a->imm, n->in[0], n->out[0], dy[0]);
    return hd_grad_fit(g, dx, n->in[i]);
}

/* ---- reference ---- */

/* i64 arithmetic where all is integers, since f64 cannot hold every i64. Returns false for what has no integer form. */
static bool integer_eval(hd_ew op, const int64_t *x, int64_t *y)
{
    uint64_t a = (uint64_t)x[0], b = (uint64_t)x[1];
    switch (op) {
    case HD_EW_COPY: case HD_EW_CAST: *y = x[0]; return true;
    case HD_EW_NEG: *y = (int64_t)(0 - a); return true;
    case HD_EW_ADD: *y = (int64_t)(a + b); return true;
    case HD_EW_SUB: *y = (int64_t)(a - b); return true;
    case HD_EW_MUL: *y = (int64_t)(a * b); return true;
    case HD_EW_MAX: *y = x[0] > x[1] ? x[0] : x[1]; return true;
    case HD_EW_MIN: *y = x[0] < x[1] ? x[0] : x[1]; return true;
    case HD_EW_LT: *y = x[0] < x[1]; return true;
    case HD_EW_LE: *y = x[0] <= x[1]; return true;
    case HD_EW_EQ: *y = x[0] == x[1]; return true;
    case HD_EW_SELECT: *y = x[0] ? x[1] : x[2]; return true;
    default: return false;
    }
}

/* Only i64 results need more than f64 has; narrower integers fit it exactly. */
static bool all_i64(const hd_kernel_args *a)
{
    bool integers = a->out[0].dtype == HD_I64;
    for (int o = 0; o < a->n_in; o++) integers = integers && !hd_dtype_is_float(a->in[o].dtype);
    return integers;
}

static void ew_reference(const hd_kernel_args *a)
{
    if (a->tid || !hd_wants(a, 0)) return;
    const hd_ew_attrs *at = a->attrs;
    int64_t stride[3][HD_MAX_RANK], count = hd_tensor_count(&a->out[0]);
    bool i64 = all_i64(a);
    for (int o = 0; o < a->n_in; o++) hd_broadcast_strides(&a->in[o], &a->out[0], stride[o]);
    for (int64_t i = 0; i < count; i++) {
        double x[3] = {0};
        int64_t n[3] = {0}, whole;
        for (int o = 0; o < a->n_in; o++) {
            int64_t e = hd_broadcast_index(&a->out[0], stride[o], i);
            x[o] = hd_get(a, o, e);
            if (i64) n[o] = hd_load_i64(a->in[o].data, a->in[o].dtype, e);
        }
        if (i64 && integer_eval((hd_ew)a->code, n, &whole)) ((int64_t *)a->out[0].data)[i] = whole;
        else hd_put(a, 0, i, hd_ew_eval((hd_ew)a->code, at->imm, x[0], x[1], x[2]));
    }
}

/* ---- samples ---- */

static void sample_operands(hd_rng *r, hd_sample *s, int n, hd_fill how)
{
    hd_sample_broadcast(r, s, n, how);
    ((hd_ew_attrs *)s->attrs)->dtype = HD_F64;
}

static void set_imm(hd_sample *s, double imm)
{
    ((hd_ew_attrs *)s->attrs)->imm = imm;
}

static void unary_sample(hd_rng *r, hd_sample *s) { sample_operands(r, s, 1, HD_FILL_NORMAL); }
static void binary_sample(hd_rng *r, hd_sample *s) { sample_operands(r, s, 2, HD_FILL_NORMAL); }
static void positive_sample(hd_rng *r, hd_sample *s) { sample_operands(r, s, 1, HD_FILL_POSITIVE); }
static void positive2_sample(hd_rng *r, hd_sample *s) { sample_operands(r, s, 2, HD_FILL_POSITIVE); }

static void imm_sample(hd_rng *r, hd_sample *s)
{
    unary_sample(r, s);
    set_imm(s, 0.375 + (double)hd_pick(r, -8, 8));
}

static void small_imm_sample(hd_rng *r, hd_sample *s)
{
    unary_sample(r, s);
    set_imm(s, 0.1875 * (double)hd_pick(r, -6, 6) + 0.015625);
}

static void powi_sample(hd_rng *r, hd_sample *s)
{
    static const double exponents[] = {2, 3, -1, 0.5, -0.5, 1};
    positive_sample(r, s);
    set_imm(s, exponents[hd_pick(r, 0, 5)]);
}

/* A coarse grid, so that some pairs are equal. */
static void compare_sample(hd_rng *r, hd_sample *s)
{
    sample_operands(r, s, 2, HD_FILL_INDEX);
    for (int o = 0; o < 2; o++) s->fill[o].limit = 4;
}

static void select_sample(hd_rng *r, hd_sample *s)
{
    sample_operands(r, s, 3, HD_FILL_NORMAL);
    s->in[0].dtype = HD_I32;
    s->fill[0].how = HD_FILL_INDEX;
    s->fill[0].limit = 2;
}

/* ---- the table ---- */

static const hd_attr dtype_only[] = {{"dtype", HD_ATTR_DTYPE, offsetof(hd_ew_attrs, dtype), NAN}, {0}};
static const hd_attr imm_and_dtype[] = {{"imm", HD_ATTR_DOUBLE, offsetof(hd_ew_attrs, imm), NAN},
                                        {"dtype", HD_ATTR_DTYPE, offsetof(hd_ew_attrs, dtype), NAN},
                                        {0}};

/* What all members share; the fields behind it are each one's own. */
#define EW(id, opcode, arity, formula)                                                                                            \
    .name = #id, .code = opcode, .min_in = arity, .max_in = arity, .summary = formula, .attrs_size = sizeof(hd_ew_attrs),         \
    .infer = ew_infer, .loops = hd_loops_elementwise, .cost = ew_cost, .may_alias = hd_alias_same_type, .reference = ew_reference
#define PLAIN .attrs = dtype_only
#define IMM .attrs = imm_and_dtype
#define SMOOTH .grad = ew_grad
#define FLAT .no_gradient = true
/* Derivatives: (x or y, dy) -> dx, linear in dy. */
#define DERIVATIVE .attrs = dtype_only, .is_backward = true, .no_gradient = true, .linear = {2}

const hd_op hd_op_copy = {EW(copy, HD_EW_COPY, 1, "(x) -> x"), PLAIN, SMOOTH, .linear = {1}, .sample = unary_sample};
const hd_op hd_op_neg = {EW(neg, HD_EW_NEG, 1, "(x) -> -x"), PLAIN, SMOOTH, .linear = {1}, .sample = unary_sample};
const hd_op hd_op_abs = {EW(abs, HD_EW_ABS, 1, "(x) -> |x|"), PLAIN, SMOOTH, .sample = unary_sample};
const hd_op hd_op_square = {EW(square, HD_EW_SQUARE, 1, "(x) -> x^2"), PLAIN, SMOOTH, .sample = unary_sample};
const hd_op hd_op_sqrt = {EW(sqrt, HD_EW_SQRT, 1, "(x) -> the square root of x"), PLAIN, SMOOTH, .sample = positive_sample};
const hd_op hd_op_rsqrt = {EW(rsqrt, HD_EW_RSQRT, 1, "(x) -> 1 / the square root of x"), PLAIN, SMOOTH, .sample = positive_sample};
const hd_op hd_op_recip = {EW(recip, HD_EW_RECIP, 1, "(x) -> 1 / x"), PLAIN, SMOOTH, .sample = positive_sample};
const hd_op hd_op_exp = {EW(exp, HD_EW_EXP, 1, "(x) -> e^x"), PLAIN, SMOOTH, .sample = unary_sample};
const hd_op hd_op_log = {EW(log, HD_EW_LOG, 1, "(x) -> the natural logarithm of x"), PLAIN, SMOOTH, .sample = positive_sample};
const hd_op hd_op_tanh = {EW(tanh, HD_EW_TANH, 1, "(x) -> tanh x"), PLAIN, SMOOTH, .sample = unary_sample};
const hd_op hd_op_sigmoid = {EW(sigmoid, HD_EW_SIGMOID, 1, "(x) -> 1 / (1 + e^-x)"), PLAIN, SMOOTH, .sample = unary_sample};
const hd_op hd_op_softplus = {EW(softplus, HD_EW_SOFTPLUS, 1, "(x) -> log(1 + e^x)"), PLAIN, SMOOTH, .sample = unary_sample};
const hd_op hd_op_relu = {EW(relu, HD_EW_RELU, 1, "(x) -> max(x, 0)"), PLAIN, SMOOTH, .sample = unary_sample};
const hd_op hd_op_gelu = {EW(gelu, HD_EW_GELU, 1, "(x) -> x * Phi(x), the erf form"), PLAIN, SMOOTH, .sample = unary_sample};
const hd_op hd_op_gelu_tanh = {EW(gelu_tanh, HD_EW_GELU_TANH, 1, "(x) -> x * Phi(x), approximated by tanh"), PLAIN, SMOOTH,
                                .sample = unary_sample};
const hd_op hd_op_silu = {EW(silu, HD_EW_SILU, 1, "(x) -> x * sigmoid(x)"), PLAIN, SMOOTH, .sample = unary_sample};
const hd_op hd_op_erf = {EW(erf, HD_EW_ERF, 1, "(x) -> erf x"), PLAIN, SMOOTH, .sample = unary_sample};
const hd_op hd_op_sin = {EW(sin, HD_EW_SIN, 1, "(x) -> sin x"), PLAIN, SMOOTH, .sample = unary_sample};
const hd_op hd_op_cos = {EW(cos, HD_EW_COS, 1, "(x) -> cos x"), PLAIN, SMOOTH, .sample = unary_sample};
const hd_op hd_op_sign = {EW(sign, HD_EW_SIGN, 1, "(x) -> -1, 0 or 1"), PLAIN, FLAT, .sample = unary_sample};
const hd_op hd_op_isfinite = {EW(isfinite, HD_EW_ISFINITE, 1, "(x) -> 1 where x is finite, else 0"), PLAIN, FLAT, .sample = unary_sample};
const hd_op hd_op_scale = {EW(scale, HD_EW_SCALE, 1, "(x) -> x * imm"), IMM, SMOOTH, .linear = {1}, .sample = imm_sample};
const hd_op hd_op_offset = {EW(offset, HD_EW_OFFSET, 1, "(x) -> x + imm"), IMM, SMOOTH, .sample = imm_sample};
const hd_op hd_op_powi = {EW(powi, HD_EW_POWI, 1, "(x) -> x^imm"), IMM, SMOOTH, .sample = powi_sample};
const hd_op hd_op_mini = {EW(mini, HD_EW_MINI, 1, "(x) -> min(x, imm)"), IMM, SMOOTH, .sample = small_imm_sample};
const hd_op hd_op_maxi = {EW(maxi, HD_EW_MAXI, 1, "(x) -> max(x, imm)"), IMM, SMOOTH, .sample = small_imm_sample};
const hd_op hd_op_cast = {EW(cast, HD_EW_CAST, 1, "(x) -> x rounded to dtype"), PLAIN, SMOOTH, .linear = {1}, .sample = unary_sample};

const hd_op hd_op_add = {EW(add, HD_EW_ADD, 2, "(a, b) -> a + b"), PLAIN, SMOOTH, .linear = {3}, .sample = binary_sample};
const hd_op hd_op_sub = {EW(sub, HD_EW_SUB, 2, "(a, b) -> a - b"), PLAIN, SMOOTH, .linear = {3}, .sample = binary_sample};
const hd_op hd_op_mul = {EW(mul, HD_EW_MUL, 2, "(a, b) -> a * b"), PLAIN, SMOOTH, .linear = {1, 2}, .sample = binary_sample};
const hd_op hd_op_div = {EW(div, HD_EW_DIV, 2, "(a, b) -> a / b"), PLAIN, SMOOTH, .linear = {1}, .sample = positive2_sample};
const hd_op hd_op_max = {EW(max, HD_EW_MAX, 2, "(a, b) -> the larger"), PLAIN, SMOOTH, .sample = binary_sample};
const hd_op hd_op_min = {EW(min, HD_EW_MIN, 2, "(a, b) -> the smaller"), PLAIN, SMOOTH, .sample = binary_sample};
const hd_op hd_op_pow = {EW(pow, HD_EW_POW, 2, "(a, b) -> a^b"), PLAIN, SMOOTH, .sample = positive2_sample};
const hd_op hd_op_lt = {EW(lt, HD_EW_LT, 2, "(a, b) -> 1 where a < b, else 0"), PLAIN, FLAT, .sample = compare_sample};
const hd_op hd_op_le = {EW(le, HD_EW_LE, 2, "(a, b) -> 1 where a <= b, else 0"), PLAIN, FLAT, .sample = compare_sample};
const hd_op hd_op_eq = {EW(eq, HD_EW_EQ, 2, "(a, b) -> 1 where a = b, else 0"), PLAIN, FLAT, .sample = compare_sample};

const hd_op hd_op_relu_grad = {EW(relu_grad, HD_EW_RELU_GRAD, 2, "(x, dy) -> dx of relu"), DERIVATIVE};
const hd_op hd_op_gelu_grad = {EW(gelu_grad, HD_EW_GELU_GRAD, 2, "(x, dy) -> dx of gelu"), DERIVATIVE};
const hd_op hd_op_gelu_tanh_grad = {EW(gelu_tanh_grad, HD_EW_GELU_TANH_GRAD, 2, "(x, dy) -> dx of gelu_tanh"), DERIVATIVE};
const hd_op hd_op_silu_grad = {EW(silu_grad, HD_EW_SILU_GRAD, 2, "(x, dy) -> dx of silu"), DERIVATIVE};
const hd_op hd_op_tanh_grad = {EW(tanh_grad, HD_EW_TANH_GRAD, 2, "(y, dy) -> dx of y = tanh x"), DERIVATIVE};
const hd_op hd_op_sigmoid_grad = {EW(sigmoid_grad, HD_EW_SIGMOID_GRAD, 2, "(y, dy) -> dx of y = sigmoid x"), DERIVATIVE};

const hd_op hd_op_select = {EW(select, HD_EW_SELECT, 3, "(cond, a, b) -> a where cond is not 0, else b"), PLAIN, SMOOTH, .linear = {6},
                            .sample = select_sample};
