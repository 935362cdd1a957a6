/* fused.c: a chain of elementwise steps over broadcast operands that reads and writes each element once. Made by the fusion pass, which
 * runs after differentiation: nothing is differentiated through it. */
#include <math.h>

#include "ops/ops.h"
#include "ops/ops_int.h"

/* ---- infer ---- */

static int check_step(const hd_sig *s, const hd_fused_attrs *at, int i, hd_error *err)
{
    const hd_chain_step *step = &at->step[i];
    if (step->op >= HD_EW_COUNT) return hd_op_fail(s, err, "step %d has no such opcode (%d)", i, step->op);
    if (!isfinite(step->imm)) return hd_op_fail(s, err, "step %d: imm must be finite", i);
    if (step->op == HD_EW_CAST && step->dtype >= HD_DTYPE_COUNT) return hd_op_fail(s, err, "step %d casts to no dtype", i);
    for (int k = 0; k < hd_ew_arity((hd_ew)step->op); k++)
        if (step->arg[k] >= at->n_in + i) return hd_op_fail(s, err, "step %d reads register %d, which is not there yet", i, step->arg[k]);
    return 0;
}

static int check_chain(const hd_sig *s, hd_error *err)
{
    const hd_fused_attrs *at = s->attrs;
    if (at->n_in != s->n_in) return hd_op_fail(s, err, "the chain takes %d operands, %d are given", at->n_in, s->n_in);
    if (at->n_steps < 1 || at->n_steps > HD_CHAIN_MAX) return hd_op_fail(s, err, "%d steps are not in 1..%d", at->n_steps, HD_CHAIN_MAX);
    if (at->n_out < 1 || at->n_out > HD_MAX_RESULTS) return hd_op_fail(s, err, "%d results are not in 1..%d", at->n_out, HD_MAX_RESULTS);
    for (int i = 0; i < at->n_steps; i++) {
        int rc = check_step(s, at, i, err);
        if (rc) return rc;
    }
    for (int r = 0; r < at->n_out; r++)
        if (at->out[r] >= at->n_in + at->n_steps || (unsigned)at->out_dtype[r] >= HD_DTYPE_COUNT)
            return hd_op_fail(s, err, "result %d has no such register or dtype", r);
    return 0;
}

static int infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_fused_attrs *at = s->attrs;
    hd_shape shape;
    int rc = check_chain(s, err);
    if (!rc) rc = hd_broadcast_infer(s, &shape, err);
    if (rc) return rc;
    for (int r = 0; r < at->n_out; r++) out[r] = hd_type_shaped(at->out_dtype[r], &shape);
    return at->n_out;
}

/* What the steps cost as ops of their own, without the memory traffic between them. */
static void cost(const hd_sig *s, hd_cost *c)
{
    const hd_fused_attrs *at = s->attrs;
    double per_element = 0;
    for (int i = 0; i < at->n_steps; i++) per_element += hd_ew_flops((hd_ew)at->step[i].op);
    c->flops = per_element * (double)hd_shape_count(&s->out[0].shape);
    c->bytes = hd_cost_bytes(s);
}

/* ---- reference ---- */

static double cast(double v, hd_dtype dtype)
{
    char element[8];
    hd_store_f64(element, dtype, 0, v);
    return hd_load_f64(element, dtype, 0);
}

/* Fills registers n_in and above from those below. */
static void run_steps(const hd_fused_attrs *at, double *reg)
{
    for (int i = 0; i < at->n_steps; i++) {
        const hd_chain_step *step = &at->step[i];
        double x[3] = {0};
        for (int k = 0; k < hd_ew_arity((hd_ew)step->op); k++) x[k] = reg[step->arg[k]];
        double *y = &reg[at->n_in + i];
        if (step->op == HD_EW_CAST) *y = cast(x[0], (hd_dtype)step->dtype);
        else *y = hd_ew_eval((hd_ew)step->op, step->imm, x[0], x[1], x[2]);
    }
}

static const hd_tensor *any_result(const hd_kernel_args *a)
{
    for (int r = 0; r < a->n_out; r++)
        if (a->out[r].data) return &a->out[r];
    return NULL;
}

static void reference(const hd_kernel_args *a)
{
    const hd_fused_attrs *at = a->attrs;
    const hd_tensor *y = any_result(a);
    if (a->tid || !y) return;
    int64_t stride[HD_MAX_OPERANDS][HD_MAX_RANK], count = hd_tensor_count(y);
    for (int o = 0; o < a->n_in; o++) hd_broadcast_strides(&a->in[o], y, stride[o]);
    for (int64_t i = 0; i < count; i++) {
        double reg[HD_MAX_OPERANDS + HD_CHAIN_MAX];
        for (int o = 0; o < a->n_in; o++) reg[o] = hd_get(a, o, hd_broadcast_index(y, stride[o], i));
        run_steps(at, reg);
        for (int r = 0; r < at->n_out; r++) hd_put(a, r, i, reg[at->out[r]]);
    }
}

/* ---- sample ---- */

/* Steps whose results are near those of rounded operands: no comparison of computed values, no singularity. */
static void sample_step(hd_rng *r, hd_fused_attrs *at, int i)
{
    static const hd_ew ops[] = {HD_EW_NEG, HD_EW_RELU, HD_EW_TANH, HD_EW_SIGMOID, HD_EW_GELU, HD_EW_GELU_TANH, HD_EW_SILU,
                                HD_EW_SCALE, HD_EW_OFFSET, HD_EW_ADD, HD_EW_SUB, HD_EW_MUL, HD_EW_ADD, HD_EW_MUL, HD_EW_MAX,
                                HD_EW_MIN, HD_EW_SILU_GRAD, HD_EW_TANH_GRAD};
    hd_chain_step *step = &at->step[i];
    step->op = (uint8_t)ops[hd_pick(r, 0, sizeof ops / sizeof ops[0] - 1)];
    for (int k = 0; k < hd_ew_arity((hd_ew)step->op); k++) step->arg[k] = (uint8_t)hd_pick(r, 0, at->n_in + i - 1);
    if (step->op == HD_EW_SCALE || step->op == HD_EW_OFFSET) step->imm = 0.125 * (double)hd_pick(r, -6, 6);
}

static void sample_chain(hd_rng *r, hd_fused_attrs *at, int n_in)
{
    at->n_in = n_in;
    at->n_steps = (int32_t)hd_pick(r, 1, hd_coin(r) ? 4 : HD_CHAIN_MAX);
    for (int i = 0; i < at->n_steps; i++) sample_step(r, at, i);
    /* Rounding an operand gives the same in f32 as in f64. */
    if (hd_coin(r)) at->step[0] = (hd_chain_step){.op = HD_EW_CAST, .arg = {0}, .dtype = HD_BF16};
    at->n_out = (int32_t)hd_pick(r, 1, 3);
    for (int o = 0; o < at->n_out; o++) {
        at->out[o] = (uint8_t)(o == 0 ? n_in + at->n_steps - 1 : hd_pick(r, n_in, n_in + at->n_steps - 1));
        at->out_dtype[o] = HD_F64;
    }
}

static void sample(hd_rng *r, hd_sample *s)
{
    int n_in = (int)hd_pick(r, 1, 4);
    hd_sample_broadcast(r, s, n_in, HD_FILL_NORMAL);
    sample_chain(r, (hd_fused_attrs *)s->attrs, n_in);
}

static const hd_attr attrs[] = {{"chain", HD_ATTR_CHAIN, 0, NAN}, {0}};

const hd_op hd_op_fused = {
    .name = "fused",
    .summary = "(operands...) -> (results...), a chain of elementwise steps in one pass over memory",
    .min_in = 1, .max_in = HD_MAX_OPERANDS,
    .attrs_size = sizeof(hd_fused_attrs),
    .attrs = attrs,
    .no_gradient = true,
    .infer = infer,
    .loops = hd_loops_elementwise,
    .cost = cost,
    .may_alias = hd_alias_same_type,
    .reference = reference,
    .sample = sample,
};
