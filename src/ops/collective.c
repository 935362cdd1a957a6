/* collective.c: conversions between layouts, as ops of a partitioned Graph, and what passes between chunks of a pipeline.
 *
 *   Partial -> Replicate all_reduce;  Partial -> Split reduce_scatter;  Split -> Replicate all_gather;  Split(i) -> Split(j) all_to_all;
 *   Replicate -> Split shard;         Replicate -> Partial keep_first;      Split -> Partial place;      Split -> Split, shifted by one: permute.
 * Shapes here are those at coordinate 0. Which piece is whose follows from the layouts of operand and result (graph/layout.h), so there is
 * nothing to compute without them: no reference kernel; src/exec hands these to src/comm, and does those that send nothing by itself. */
#include "ops/facets.h"

static const hd_attr comm_attrs[] = {
    {"axes", HD_ATTR_STRING, offsetof(hd_comm_attrs, axes), NAN},
    {"dim", HD_ATTR_INT32, offsetof(hd_comm_attrs, dim), 0},
    {"extent", HD_ATTR_INT64, offsetof(hd_comm_attrs, extent), 0},
    {"to", HD_ATTR_INT32, offsetof(hd_comm_attrs, to), 0},
    {"to_extent", HD_ATTR_INT64, offsetof(hd_comm_attrs, to_extent), 0},
    {"max", HD_ATTR_BOOL, offsetof(hd_comm_attrs, max), 0},
    {0},
};

static const hd_attr pipe_attrs[] = {
    {"from", HD_ATTR_INT32, offsetof(hd_pipe_attrs, from), 0},
    {"to", HD_ATTR_INT32, offsetof(hd_pipe_attrs, to), 0},
    {"number", HD_ATTR_INT32, offsetof(hd_pipe_attrs, number), 0},
    {"dtype", HD_ATTR_DTYPE, offsetof(hd_pipe_attrs, dtype), HD_F32},
    {"shape", HD_ATTR_DIMS, offsetof(hd_pipe_attrs, shape), NAN},
    {"symbol", HD_ATTR_INT32, offsetof(hd_pipe_attrs, symbol), 0},
    {"there", HD_ATTR_STRING, offsetof(hd_pipe_attrs, there), 0},
    {0},
};

/* ---- shapes ---- */

static int same_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    if (s->in[0].absent) return hd_op_fail(s, err, "x is missing");
    out[0] = s->in[0];
    return 1;
}

static int set_extent(const hd_sig *s, int dim, int64_t extent, hd_type *out, hd_error *err)
{
    if (dim < 0 || dim >= out->shape.rank) return hd_op_fail(s, err, "there is no dimension %d in %s", dim, HD_TYPE_TEXT(&s->in[0]));
    if (extent < 0) return hd_op_fail(s, err, "an extent must not be negative");
    out->shape.dim[dim] = extent;
    return 0;
}

static int dim_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_comm_attrs *p = s->attrs;
    if (same_infer(s, out, err) < 0 || set_extent(s, p->dim, p->extent, out, err)) return HD_EINVAL;
    return 1;
}

static int all_to_all_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_comm_attrs *p = s->attrs;
    if (dim_infer(s, out, err) < 0 || set_extent(s, p->to, p->to_extent, out, err)) return HD_EINVAL;
    return 1;
}

static int send_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    (void)out;
    return s->in[0].absent ? hd_op_fail(s, err, "x is missing") : 0;
}

static int recv_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_pipe_attrs *p = s->attrs;
    if (p->shape.rank < 0 || p->shape.rank > HD_MAX_RANK) return hd_op_fail(s, err, "shape must have at most %d dimensions", HD_MAX_RANK);
    if (p->symbol < 0 || (p->symbol && !p->shape.rank)) return hd_op_fail(s, err, "there is no such symbol");
    out[0] = hd_type_of(p->dtype, p->shape.rank, p->shape.dim);
    out[0].shape.sym = p->symbol - 1;
    return 1;
}

/* ---- other facets ---- */

static void no_loops(const hd_sig *s, hd_loops *l) { (void)s, (void)l; }

static void cost(const hd_sig *s, hd_cost *c) { *c = (hd_cost){.bytes = hd_cost_bytes(s)}; }

static uint32_t same_memory(const hd_sig *s, int result) { return hd_alias_same_type(s, result); }

#define CONVERSION(op, text, infer_fn, alias, local) \
    const hd_op hd_op_##op = { \
        .name = #op, .summary = text, .min_in = 1, .max_in = 1, .attrs_size = sizeof(hd_comm_attrs), .attrs = comm_attrs, \
        .no_gradient = true, .is_comm = true, .sends_nothing = local, .infer = infer_fn, .loops = no_loops, \
        .cost = cost, .may_alias = alias, \
    }

CONVERSION(all_reduce, "(x) -> the sum (max) of x over the group, on each of its ranks", same_infer, same_memory, false);
CONVERSION(all_gather, "(x) -> the pieces of dimension dim of all ranks of the group, one behind the other", dim_infer, NULL, false);
CONVERSION(reduce_scatter, "(x) -> this rank's piece of dimension dim of the sum (max) of x over the group", dim_infer, NULL, false);
CONVERSION(all_to_all, "(x) -> dimension dim gathered, dimension to cut, over the group", all_to_all_infer, NULL, false);
CONVERSION(shard, "(x) -> this rank's piece of dimension dim; nothing is sent", dim_infer, NULL, true);
CONVERSION(keep_first, "(x) -> x on coordinate 0 of the axes, zeros elsewhere: an addend; nothing is sent", same_infer, same_memory, true);
CONVERSION(place, "(x) -> this rank's piece of dimension dim where it belongs, zeros around it: an addend; nothing is sent", dim_infer, NULL, true);
CONVERSION(deal, "(x) -> this rank's rows, as many as a piece has: half of them early ones, half late ones, so that all ranks' see as many rows before them; "
                 "nothing is sent", dim_infer, NULL, true);
CONVERSION(permute, "(x) -> the piece of the next rank of the group, which gets that of the one behind it, around the end", dim_infer, NULL, false);

const hd_op hd_op_send = {
    .name = "send",
    .summary = "(x) -> nothing: to another chunk, which has a recv of the same number",
    .min_in = 1, .max_in = 1, .attrs_size = sizeof(hd_pipe_attrs), .attrs = pipe_attrs,
    .no_gradient = true, .is_comm = true, .has_effect = true, .infer = send_infer, .loops = no_loops, .cost = cost,
};
const hd_op hd_op_recv = {
    .name = "recv",
    .summary = "() -> what another chunk sends",
    .min_in = 0, .max_in = 0, .attrs_size = sizeof(hd_pipe_attrs), .attrs = pipe_attrs,
    .no_gradient = true, .is_comm = true, .infer = recv_infer, .loops = no_loops, .cost = cost,
};
