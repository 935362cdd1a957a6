/* build.c: common nodes, named after the op. */
#include <stdio.h>
#include "graph/graph.h"
#include "graph/op.h"

hd_value hd_contract(hd_graph *g, const char *name, const char *spec, hd_value a, hd_value b, hd_dtype dtype)
{
    hd_contract_attrs at = {.dtype = dtype};
    if (strlen(spec) >= sizeof at.spec) return hd_graph_fail(g, HD_EINVAL, "the specification \"%s\" is too long", spec);
    strcpy(at.spec, spec);
    return hd_graph_node(g, "contract", name, &at, (hd_value[]){a, b}, 2);
}

static int dtype_rank(hd_dtype t)
{
    static const int rank[HD_DTYPE_COUNT] = {[HD_F64] = 6, [HD_F32] = 5, [HD_BF16] = 4, [HD_F16] = 4, [HD_I64] = 3, [HD_I32] = 2, [HD_I8] = 1, [HD_U8] = 1};
    return rank[t];
}

static hd_dtype promote(hd_dtype a, hd_dtype b)
{
    if (a == b) return a;
    if (dtype_rank(a) == dtype_rank(b)) return hd_dtype_is_float(a) ? HD_F32 : HD_I32;
    return dtype_rank(a) > dtype_rank(b) ? a : b;
}

hd_value hd_elementwise(hd_graph *g, const char *name, hd_ew op, hd_value a, hd_value b, hd_value c, double imm)
{
    if (g->err.code || a == HD_NONE) return HD_NONE;
    int arity = hd_ew_arity(op);
    hd_dtype t = g->values[op == HD_EW_SELECT ? b : a].type.dtype;
    if (arity == 2 && b != HD_NONE) t = promote(t, g->values[b].type.dtype);
    if (arity == 3 && c != HD_NONE) t = promote(t, g->values[c].type.dtype);
    hd_ew_attrs at = {.imm = imm, .dtype = t};
    return hd_graph_node(g, hd_ew_name(op), name, &at, (hd_value[]){a, b, c}, arity);
}

hd_value hd_cast(hd_graph *g, const char *name, hd_value x, hd_dtype dtype)
{
    if (g->err.code || x == HD_NONE || g->values[x].type.dtype == dtype) return x;
    hd_ew_attrs at = {.dtype = dtype};
    return hd_graph_node(g, "cast", name, &at, &x, 1);
}

hd_value hd_add(hd_graph *g, hd_value a, hd_value b)
{
    if (a == HD_NONE) return b;
    return b == HD_NONE ? a : hd_elementwise(g, NULL, HD_EW_ADD, a, b, HD_NONE, 0);
}

hd_value hd_mul(hd_graph *g, hd_value a, hd_value b)
{
    return hd_elementwise(g, NULL, HD_EW_MUL, a, b, HD_NONE, 0);
}

hd_value hd_scale(hd_graph *g, hd_value a, double factor)
{
    return hd_elementwise(g, NULL, HD_EW_SCALE, a, HD_NONE, HD_NONE, factor);
}

hd_value hd_reduce(hd_graph *g, const char *op, const char *name, hd_value x, uint32_t axes, bool keep, hd_dtype dtype)
{
    hd_reduce_attrs at = {.axes = axes, .keep = keep, .dtype = dtype};
    return hd_graph_node(g, op, name, &at, &x, 1);
}

hd_value hd_sum_to_shape(hd_graph *g, hd_value x, const hd_shape *to)
{
    if (g->err.code || x == HD_NONE) return HD_NONE;
    hd_type from = g->values[x].type;
    if (hd_shape_equal(&from.shape, to)) return x;
    int lead = from.shape.rank - to->rank;
    uint32_t dropped = 0, kept = 0;
    for (int i = 0; i < from.shape.rank; i++) {
        if (i < lead) dropped |= 1u << i;
        else if (to->dim[i - lead] == 1 && from.shape.dim[i] != 1) kept |= 1u << i;
    }
    hd_dtype sum = from.dtype == HD_F64 ? HD_F64 : HD_F32;
    if (kept) x = hd_reduce(g, "reduce_sum", NULL, x, kept, true, sum);
    if (dropped) x = hd_reduce(g, "reduce_sum", NULL, x, dropped, false, sum);
    return x;
}

hd_value hd_reshape(hd_graph *g, const char *name, hd_value x, int rank, const int64_t *dims)
{
    hd_dims_attrs at = {.rank = rank};
    if (rank > HD_MAX_RANK) return hd_graph_fail(g, HD_EINVAL, "reshape: rank %d is too high", rank);
    for (int i = 0; i < rank; i++) at.dim[i] = dims[i];
    return hd_graph_node(g, "reshape", name, &at, &x, 1);
}

hd_value hd_transpose(hd_graph *g, const char *name, hd_value x, const int *perm)
{
    if (g->err.code || x == HD_NONE) return HD_NONE;
    hd_dims_attrs at = {.rank = g->values[x].type.shape.rank};
    for (int i = 0; i < at.rank; i++) at.dim[i] = perm[i];
    return hd_graph_node(g, "transpose", name, &at, &x, 1);
}
