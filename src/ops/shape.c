/* shape.c: ops that only move elements: slice, pad, concat, reshape, broadcast, transpose. Any dtype, kept as it is.
 *
 * A dimension that is cut, padded or joined is a window onto its operand and can't be split; all others can. */
#include "ops/facets.h"

#define MAX_EXTENT ((int64_t)1 << 40)

static const hd_attr slice_attrs[] = {
    {"axis", HD_ATTR_INT32, offsetof(hd_slice_attrs, axis), NAN},
    {"begin", HD_ATTR_INT64, offsetof(hd_slice_attrs, begin), 0},
    {"end", HD_ATTR_INT64, offsetof(hd_slice_attrs, end), NAN},
    {0},
};
static const hd_attr pad_attrs[] = {
    {"axis", HD_ATTR_INT32, offsetof(hd_slice_attrs, axis), NAN},
    {"before", HD_ATTR_INT64, offsetof(hd_slice_attrs, begin), 0},
    {"after", HD_ATTR_INT64, offsetof(hd_slice_attrs, end), 0},
    {0},
};
static const hd_attr axis_attrs[] = {
    {"axis", HD_ATTR_INT32, offsetof(hd_axis_attrs, axis), NAN},
    {0},
};
static const hd_attr dims_attrs[] = {
    {"dims", HD_ATTR_DIMS, 0, NAN},
    {0},
};
static const hd_attr perm_attrs[] = {
    {"perm", HD_ATTR_DIMS, 0, NAN},
    {0},
};

/* ---- what several of them share ---- */

static int check_axis(const hd_sig *s, int axis, bool may_be_bounded, hd_error *err)
{
    const hd_shape *x = &s->in[0].shape;
    if (axis < 0 || axis >= x->rank) return hd_op_fail(s, err, "axis must be a dimension of x %s, is %d", HD_TYPE_TEXT(&s->in[0]), axis);
    if (axis == 0 && x->sym >= 0 && !may_be_bounded) return hd_op_fail(s, err, "axis 0 of x is bounded: its extent changes from call to call");
    return 0;
}

/* Every dimension of x but `axis` (-1: every one) goes straight to the result. */
static void loops_but(const hd_sig *s, hd_loops *l, int axis)
{
    for (int d = 0; d < s->in[0].shape.rank; d++) {
        if (d == axis) continue;
        int loop = hd_loop_through(s, l, 0, d, d);
        for (int i = 1; i < s->n_in; i++) hd_loop_in(l, i, d, loop);
    }
}

static void move_cost(const hd_sig *s, hd_cost *c)
{
    c->flops = 0;
    c->bytes = 2.0 * (double)hd_shape_count(&s->out[0].shape) * (double)hd_dtype_size(s->out[0].dtype);
}

/* Writes `count` indices along an axis of y, from index y_at on, from x's index x_at on. The other extents agree. */
static void copy_along(const hd_tensor *y, int64_t y_at, const hd_tensor *x, int64_t x_at, int axis, int64_t count)
{
    int64_t outer = hd_dims_product(y->dim, 0, axis);
    size_t unit = (size_t)hd_dims_product(y->dim, axis + 1, y->rank) * hd_dtype_size(y->dtype);
    if (!unit || count <= 0) return;
    for (int64_t o = 0; o < outer; o++)
        memcpy((char *)y->data + (size_t)(o * y->dim[axis] + y_at) * unit, (const char *)x->data + (size_t)(o * x->dim[axis] + x_at) * unit,
               (size_t)count * unit);
}

/* A random shape; returns an axis of it. */
static int sample_shape(hd_rng *r, int64_t *dims, int *rank)
{
    *rank = hd_sample_dims(r, 1, 4, 5, dims);
    return (int)hd_pick(r, 0, *rank - 1);
}

/* ---- slice, pad ---- */

static int slice_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_slice_attrs *p = s->attrs;
    if (check_axis(s, p->axis, false, err)) return HD_EINVAL;
    int64_t extent = s->in[0].shape.dim[p->axis];
    if (p->begin < 0 || p->end < p->begin || p->end > extent)
        return hd_op_fail(s, err, "begin and end must be in order and within the %lld of axis %d, are %lld and %lld", (long long)extent, p->axis,
                          (long long)p->begin, (long long)p->end);
    out[0] = s->in[0];
    out[0].shape.dim[p->axis] = p->end - p->begin;
    return 1;
}

static int pad_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_slice_attrs *p = s->attrs;
    if (check_axis(s, p->axis, false, err)) return HD_EINVAL;
    if (p->begin < 0 || p->end < 0 || p->begin > MAX_EXTENT || p->end > MAX_EXTENT)
        return hd_op_fail(s, err, "before and after must not be negative, are %lld and %lld", (long long)p->begin, (long long)p->end);
    out[0] = s->in[0];
    out[0].shape.dim[p->axis] += p->begin + p->end;
    return 1;
}

static void slice_loops(const hd_sig *s, hd_loops *l) { loops_but(s, l, ((const hd_slice_attrs *)s->attrs)->axis); }

static hd_value slice_grad(hd_graph *g, const hd_node *n, const hd_value *dy, int operand)
{
    if (operand || dy[0] == HD_NONE) return HD_NONE;
    hd_slice_attrs p = *(const hd_slice_attrs *)n->attrs;
    p.end = hd_type_in(g, n->in[0])->shape.dim[p.axis] - p.end;
    return hd_grad_fit(g, hd_graph_node(g, "pad", "dx", &p, (hd_value[]){dy[0]}, 1), n->in[0]);
}

static hd_value pad_grad(hd_graph *g, const hd_node *n, const hd_value *dy, int operand)
{
    if (operand || dy[0] == HD_NONE) return HD_NONE;
    hd_slice_attrs p = *(const hd_slice_attrs *)n->attrs;
    p.end = p.begin + hd_type_in(g, n->in[0])->shape.dim[p.axis];
    return hd_grad_fit(g, hd_graph_node(g, "slice", "dx", &p, (hd_value[]){dy[0]}, 1), n->in[0]);
}

static void slice_reference(const hd_kernel_args *a)
{
    const hd_slice_attrs *p = a->attrs;
    if (a->tid || !hd_wants(a, 0)) return;
    copy_along(&a->out[0], 0, &a->in[0], p->begin, p->axis, p->end - p->begin);
}

static void pad_reference(const hd_kernel_args *a)
{
    const hd_slice_attrs *p = a->attrs;
    if (a->tid || !hd_wants(a, 0)) return;
    if (hd_tensor_bytes(&a->out[0])) memset(a->out[0].data, 0, hd_tensor_bytes(&a->out[0]));
    copy_along(&a->out[0], p->begin, &a->in[0], 0, p->axis, a->in[0].dim[p->axis]);
}

static void slice_sample(hd_rng *r, hd_sample *s)
{
    int64_t dims[4];
    int rank, axis = sample_shape(r, dims, &rank);
    int64_t begin = hd_pick(r, 0, dims[axis] - 1);
    *(hd_slice_attrs *)s->attrs = (hd_slice_attrs){.axis = axis, .begin = begin, .end = hd_pick(r, begin + 1, dims[axis])};
    hd_sample_set(s, 0, HD_F64, rank, dims, HD_FILL_NORMAL, 0);
}

static void pad_sample(hd_rng *r, hd_sample *s)
{
    int64_t dims[4];
    int rank, axis = sample_shape(r, dims, &rank);
    *(hd_slice_attrs *)s->attrs = (hd_slice_attrs){.axis = axis, .begin = hd_pick(r, 0, 3), .end = hd_pick(r, 0, 3)};
    hd_sample_set(s, 0, HD_F64, rank, dims, HD_FILL_NORMAL, 0);
}

/* ---- concat ---- */

static int concat_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    int axis = ((const hd_axis_attrs *)s->attrs)->axis;
    if (check_axis(s, axis, true, err)) return HD_EINVAL;
    out[0] = s->in[0];
    for (int i = 1; i < s->n_in; i++) {
        const hd_shape *x = &s->in[0].shape, *other = &s->in[i].shape;
        bool fits = !s->in[i].absent && s->in[i].dtype == s->in[0].dtype && other->rank == x->rank && other->sym == x->sym;
        for (int d = 0; fits && d < x->rank; d++) fits = d == axis || other->dim[d] == x->dim[d];
        if (!fits)
            return hd_op_fail(s, err, "operand %d must be as operand 0, %s, but for axis %d; is %s", i, HD_TYPE_TEXT(&s->in[0]), axis,
                              s->in[i].absent ? "missing" : HD_TYPE_TEXT(&s->in[i]));
        out[0].shape.dim[axis] += other->dim[axis];
    }
    return 1;
}

static void concat_loops(const hd_sig *s, hd_loops *l) { loops_but(s, l, ((const hd_axis_attrs *)s->attrs)->axis); }

static hd_value concat_grad(hd_graph *g, const hd_node *n, const hd_value *dy, int operand)
{
    if (dy[0] == HD_NONE) return HD_NONE;
    hd_slice_attrs p = {.axis = ((const hd_axis_attrs *)n->attrs)->axis};
    for (int i = 0; i < operand; i++) p.begin += hd_type_in(g, n->in[i])->shape.dim[p.axis];
    p.end = p.begin + hd_type_in(g, n->in[operand])->shape.dim[p.axis];
    return hd_grad_fit(g, hd_graph_node(g, "slice", "dx", &p, (hd_value[]){dy[0]}, 1), n->in[operand]);
}

static void concat_reference(const hd_kernel_args *a)
{
    int axis = ((const hd_axis_attrs *)a->attrs)->axis;
    if (a->tid || !hd_wants(a, 0)) return;
    int64_t at = 0;
    for (int i = 0; i < a->n_in; i++) {
        copy_along(&a->out[0], at, &a->in[i], 0, axis, a->in[i].dim[axis]);
        at += a->in[i].dim[axis];
    }
}

static void concat_sample(hd_rng *r, hd_sample *s)
{
    int64_t dims[4];
    int rank, axis = sample_shape(r, dims, &rank), n = (int)hd_pick(r, 1, 4);
    ((hd_axis_attrs *)s->attrs)->axis = axis;
    for (int i = 0; i < n; i++) {
        dims[axis] = hd_pick(r, 1, 4);
        hd_sample_set(s, i, HD_F64, rank, dims, HD_FILL_NORMAL, 0);
    }
}

/* ---- reshape ---- */

/* Fills out with the parameter's extents, -1 in dim[0] still as it is. */
static int type_from_dims(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_dims_attrs *p = s->attrs;
    if (p->rank < 0 || p->rank > HD_MAX_RANK) return hd_op_fail(s, err, "dims must be at most %d extents", HD_MAX_RANK);
    for (int d = 0; d < p->rank; d++)
        if (p->dim[d] < (d ? 0 : -1) || p->dim[d] > MAX_EXTENT) return hd_op_fail(s, err, "dims[%d] makes no sense: %lld", d, (long long)p->dim[d]);
    *out = hd_type_of(s->in[0].dtype, p->rank, p->dim);
    return 0;
}

/* Elements of all dimensions from `from` on; -1 when there are too many. */
static int64_t count_from(const hd_shape *s, int from)
{
    int64_t n = 1;
    for (int d = from; d < s->rank; d++)
        if (__builtin_mul_overflow(n, s->dim[d], &n)) return -1;
    return n;
}

static int reshape_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_shape *x = &s->in[0].shape;
    hd_shape *y = &out[0].shape;
    if (type_from_dims(s, out, err)) return HD_EINVAL;
    int64_t row = count_from(y, 1), count = hd_shape_count(x);
    if (y->rank && y->dim[0] < 0) y->dim[0] = row > 0 && count % row == 0 ? count / row : row == 0 ? x->dim[0] : -1;
    if (row < 0 || (y->rank && y->dim[0] < 0) || count_from(y, 0) != count)
        return hd_op_fail(s, err, "x %s has %lld elements, which dims can't hold: %s", HD_TYPE_TEXT(&s->in[0]), (long long)count, HD_TYPE_TEXT(&out[0]));
    if (x->sym < 0) return 1;
    int64_t x_row = count_from(x, 1);
    if (!y->rank || (row && x_row && x_row % row && row % x_row))
        return hd_op_fail(s, err, "dims must keep the rows of the bounded x %s whole", HD_TYPE_TEXT(&s->in[0]));
    y->sym = x->sym;
    return 1;
}

/* Dimensions x[i0, i1) and y[j0, j1) hold the same elements: cuts them into common factors, outermost first, each a loop; maps nothing
 * where the cuts of one fall inside a factor of the other (as 4 x 6 against 6 x 4). */
static void loops_of_group(const hd_sig *s, hd_loops *l, int i0, int i1, int j0, int j1)
{
    hd_loops trial = *l;
    const int64_t *x = s->in[0].shape.dim, *y = s->out[0].shape.dim;
    int i = i0, j = j0;
    int64_t left_x = i < i1 ? x[i] : 1, left_y = j < j1 ? y[j] : 1;
    while (i < i1 && j < j1) {
        int64_t f = left_x < left_y ? left_x : left_y;
        if (f < 1 || left_x % f || left_y % f || trial.n == HD_MAX_LOOPS || trial.in[0][i].n == 4 || trial.out[0][j].n == 4) return;
        int loop = hd_loop_new(&trial, f, false);
        hd_loop_in(&trial, 0, i, loop);
        hd_loop_out(&trial, 0, j, loop);
        left_x /= f;
        left_y /= f;
        if (left_x == 1 && ++i < i1) left_x = x[i];
        if (left_y == 1 && ++j < j1) left_y = y[j];
    }
    if (left_x == 1 && left_y == 1) *l = trial;
}

static void reshape_loops(const hd_sig *s, hd_loops *l)
{
    const hd_shape *x = &s->in[0].shape, *y = &s->out[0].shape;
    for (int i = 0, j = 0; i < x->rank && j < y->rank;) {
        int i0 = i, j0 = j;
        int64_t nx = x->dim[i++], ny = y->dim[j++];
        while (nx != ny) {
            if (nx < ny && i < x->rank) nx *= x->dim[i++];
            else if (nx > ny && j < y->rank) ny *= y->dim[j++];
            else return; /* an extent of 0 somewhere */
        }
        loops_of_group(s, l, i0, i, j0, j);
    }
}

/* The extents of the result that run over the loop shrink with it (reshape, broadcast). */
static void dims_localise(const hd_sig *s, const hd_loops *loops, int loop, int64_t begin, int64_t end, void *attrs)
{
    hd_dims_attrs *p = attrs;
    for (int d = 0; d < s->out[0].shape.rank; d++)
        for (int k = 0; k < loops->out[0][d].n; k++)
            if (loops->out[0][d].loop[k] == loop && p->dim[d] > 0) p->dim[d] = p->dim[d] / loops->extent[loop] * (end - begin);
}

static void view_cost(const hd_sig *s, hd_cost *c)
{
    (void)s;
    *c = (hd_cost){0};
}

static hd_value reshape_grad(hd_graph *g, const hd_node *n, const hd_value *dy, int operand)
{
    if (operand || dy[0] == HD_NONE) return HD_NONE;
    const hd_shape *x = &hd_type_in(g, n->in[0])->shape;
    hd_dims_attrs p = {.rank = x->rank};
    for (int d = 0; d < x->rank; d++) p.dim[d] = d == 0 && x->sym >= 0 ? -1 : x->dim[d];
    return hd_grad_fit(g, hd_graph_node(g, "reshape", "dx", &p, (hd_value[]){dy[0]}, 1), n->in[0]);
}

static void reshape_sample(hd_rng *r, hd_sample *s)
{
    static const int64_t from[][4] = {{6, 4, 5, 1}, {24, 5, 1, 1}, {2, 3, 4, 5}, {120, 1, 1, 1}, {3, 40, 1, 1}};
    static const hd_dims_attrs to[] = {{2, {24, 5}}, {4, {2, 3, 4, 5}}, {2, {6, 20}}, {1, {120}}, {3, {-1, 5, 4}}, {2, {4, 30}}, {3, {-1, 1, 5}}};
    *(hd_dims_attrs *)s->attrs = to[hd_pick(r, 0, 6)];
    hd_sample_set(s, 0, HD_F64, 4, from[hd_pick(r, 0, 4)], HD_FILL_NORMAL, 0);
}

/* ---- broadcast ---- */

static int broadcast_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_shape *x = &s->in[0].shape;
    hd_shape *y = &out[0].shape;
    if (type_from_dims(s, out, err)) return HD_EINVAL;
    int shift = y->rank - x->rank;
    if (y->rank && y->dim[0] < 0 && shift == 0) y->dim[0] = x->dim[0];
    bool fits = shift >= 0 && (!y->rank || y->dim[0] >= 0) && (x->sym < 0 || (shift == 0 && y->dim[0] == x->dim[0]));
    for (int d = 0; fits && d < x->rank; d++) fits = x->dim[d] == y->dim[d + shift] || x->dim[d] == 1;
    if (!fits || count_from(y, 0) < 0)
        return hd_op_fail(s, err, "x %s can't be stretched to dims %s", HD_TYPE_TEXT(&s->in[0]), HD_TYPE_TEXT(&out[0]));
    y->sym = x->sym;
    return 1;
}

static hd_value broadcast_grad(hd_graph *g, const hd_node *n, const hd_value *dy, int operand)
{
    return operand ? HD_NONE : hd_grad_fit(g, dy[0], n->in[0]);
}

static void broadcast_reference(const hd_kernel_args *a)
{
    const hd_tensor *x = &a->in[0], *y = &a->out[0];
    if (a->tid || !hd_wants(a, 0)) return;
    size_t unit = hd_dtype_size(y->dtype);
    int64_t count = hd_tensor_count(y);
    int shift = y->rank - x->rank;
    for (int64_t at = 0; at < count; at++) {
        int64_t rest = at, from = 0, stride = 1;
        for (int d = y->rank - 1; d >= 0; d--) {
            int64_t i = rest % y->dim[d];
            rest /= y->dim[d];
            if (d < shift) continue;
            if (x->dim[d - shift] != 1) from += i * stride;
            stride *= x->dim[d - shift];
        }
        memcpy((char *)y->data + (size_t)at * unit, (const char *)x->data + (size_t)from * unit, unit);
    }
}

static void broadcast_sample(hd_rng *r, hd_sample *s)
{
    hd_dims_attrs *p = (hd_dims_attrs *)s->attrs;
    p->rank = hd_sample_dims(r, 1, 4, 5, p->dim);
    int rank = (int)hd_pick(r, 0, p->rank);
    int64_t dims[4];
    for (int d = 0; d < rank; d++) dims[d] = hd_coin(r) ? 1 : p->dim[p->rank - rank + d];
    hd_sample_set(s, 0, HD_F64, rank, dims, HD_FILL_NORMAL, 0);
}

/* ---- transpose ---- */

static int transpose_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_dims_attrs *p = s->attrs;
    const hd_shape *x = &s->in[0].shape;
    unsigned seen = 0;
    for (int d = 0; d < p->rank && p->rank <= HD_MAX_RANK; d++)
        if (p->dim[d] >= 0 && p->dim[d] < x->rank) seen |= 1u << p->dim[d];
    if (p->rank != x->rank || seen != (1u << x->rank) - 1)
        return hd_op_fail(s, err, "perm must name each of the %d dimensions of x %s once", x->rank, HD_TYPE_TEXT(&s->in[0]));
    if (x->sym >= 0 && p->dim[0] != 0) return hd_op_fail(s, err, "the bounded dimension 0 of x must stay outermost");
    out[0] = s->in[0];
    for (int d = 0; d < p->rank; d++) out[0].shape.dim[d] = x->dim[p->dim[d]];
    return 1;
}

static void transpose_loops(const hd_sig *s, hd_loops *l)
{
    const hd_dims_attrs *p = s->attrs;
    for (int d = 0; d < p->rank; d++) hd_loop_through(s, l, 0, (int)p->dim[d], d);
}

static hd_value transpose_grad(hd_graph *g, const hd_node *n, const hd_value *dy, int operand)
{
    if (operand || dy[0] == HD_NONE) return HD_NONE;
    const hd_dims_attrs *p = n->attrs;
    hd_dims_attrs inverse = {.rank = p->rank};
    for (int d = 0; d < p->rank; d++) inverse.dim[p->dim[d]] = d;
    return hd_grad_fit(g, hd_graph_node(g, "transpose", "dx", &inverse, (hd_value[]){dy[0]}, 1), n->in[0]);
}

static void transpose_reference(const hd_kernel_args *a)
{
    const hd_dims_attrs *p = a->attrs;
    const hd_tensor *x = &a->in[0], *y = &a->out[0];
    if (a->tid || !hd_wants(a, 0)) return;
    size_t unit = hd_dtype_size(y->dtype);
    int64_t count = hd_tensor_count(y);
    for (int64_t at = 0; at < count; at++) {
        int64_t rest = at, from = 0;
        for (int d = y->rank - 1; d >= 0; d--) {
            from += rest % y->dim[d] * hd_dims_product(x->dim, (int)p->dim[d] + 1, x->rank);
            rest /= y->dim[d];
        }
        memcpy((char *)y->data + (size_t)at * unit, (const char *)x->data + (size_t)from * unit, unit);
    }
}

static void transpose_sample(hd_rng *r, hd_sample *s)
{
    hd_dims_attrs *p = (hd_dims_attrs *)s->attrs;
    int64_t dims[4];
    p->rank = hd_sample_dims(r, 1, 4, 5, dims);
    for (int d = 0; d < p->rank; d++) {
        int64_t other = hd_pick(r, 0, d);
        p->dim[d] = p->dim[other];
        p->dim[other] = d;
    }
    hd_sample_set(s, 0, HD_F64, p->rank, dims, HD_FILL_NORMAL, 0);
}

const hd_op hd_op_slice = {
    .name = "slice",
    .summary = "(x) -> x[begin:end] along an axis",
    .min_in = 1, .max_in = 1,
    .attrs_size = sizeof(hd_slice_attrs), .attrs = slice_attrs,
    .linear = {1},
    .infer = slice_infer, .loops = slice_loops, .cost = move_cost, .grad = slice_grad, .reference = slice_reference, .sample = slice_sample,
};
const hd_op hd_op_pad = {
    .name = "pad",
    .summary = "(x) -> y: zeros before and after x along an axis",
    .min_in = 1, .max_in = 1,
    .attrs_size = sizeof(hd_slice_attrs), .attrs = pad_attrs,
    .linear = {1},
    .infer = pad_infer, .loops = slice_loops, .cost = move_cost, .grad = pad_grad, .reference = pad_reference, .sample = pad_sample,
};
const hd_op hd_op_concat = {
    .name = "concat",
    .summary = "(x...) -> y: joined along an axis",
    .min_in = 1, .max_in = HD_MAX_OPERANDS,
    .attrs_size = sizeof(hd_axis_attrs), .attrs = axis_attrs,
    .linear = {(1u << HD_MAX_OPERANDS) - 1},
    .infer = concat_infer, .loops = concat_loops, .cost = move_cost, .grad = concat_grad, .reference = concat_reference, .sample = concat_sample,
};
const hd_op hd_op_reshape = {
    .name = "reshape",
    .summary = "(x) -> y: the same elements in the same order and memory under other extents; -1 first: what is left",
    .min_in = 1, .max_in = 1,
    .attrs_size = sizeof(hd_dims_attrs), .attrs = dims_attrs,
    .linear = {1}, .is_view = true,
    .infer = reshape_infer, .loops = reshape_loops, .localise = dims_localise, .cost = view_cost, .grad = reshape_grad, .sample = reshape_sample,
};
const hd_op hd_op_broadcast = {
    .name = "broadcast",
    .summary = "(x) -> y: stretched to these extents, aligned at the last; -1 first: as x",
    .min_in = 1, .max_in = 1,
    .attrs_size = sizeof(hd_dims_attrs), .attrs = dims_attrs,
    .linear = {1},
    .infer = broadcast_infer, .loops = hd_loops_elementwise, .localise = dims_localise, .cost = move_cost, .grad = broadcast_grad,
    .reference = broadcast_reference, .sample = broadcast_sample,
};
const hd_op hd_op_transpose = {
    .name = "transpose",
    .summary = "(x) -> y: dimension i of y is dimension perm[i] of x",
    .min_in = 1, .max_in = 1,
    .attrs_size = sizeof(hd_dims_attrs), .attrs = perm_attrs,
    .linear = {1},
    .infer = transpose_infer, .loops = transpose_loops, .cost = move_cost, .grad = transpose_grad, .reference = transpose_reference,
    .sample = transpose_sample,
};
