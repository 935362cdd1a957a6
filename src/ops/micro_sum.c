/* micro_sum.c: (x) -> y, the same memory. x is a piece per micro-batch, accumulated over the calls of a step; y is the step's sum.
 * Only the time layout changes, so there is nothing to compute. */
#include "ops/ops.h"
#include "ops/ops_int.h"

static int infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    if (s->in[0].absent) return hd_op_fail(s, err, "x is missing");
    out[0] = s->in[0];
    return 1;
}

static void cost(const hd_sig *s, hd_cost *c)
{
    (void)s;
    *c = (hd_cost){0};
}

static hd_value grad(hd_graph *g, const hd_node *n, const hd_value *dy, int i)
{
    (void)g, (void)n, (void)i;
    return dy[0];
}

static uint32_t may_alias(const hd_sig *s, int result)
{
    (void)s;
    return result == 0 ? 1 : 0;
}

static void sample(hd_rng *r, hd_sample *s)
{
    int64_t dims[HD_MAX_RANK];
    int rank = hd_sample_dims(r, 0, 3, 7, dims);
    hd_sample_set(s, 0, HD_F64, rank, dims, HD_FILL_NORMAL, 0);
}

const hd_op hd_op_micro_sum = {
    .name = "micro_sum",
    .summary = "(x) -> y, x summed over the step's micro-batches: the same memory",
    .min_in = 1, .max_in = 1,
    .linear = {1},
    .is_view = true,
    .infer = infer,
    .loops = hd_loops_elementwise,
    .cost = cost,
    .grad = grad,
    .may_alias = may_alias,
    .sample = sample,
};
