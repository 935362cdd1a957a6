/* rows.c: ops that address rows by index: gather, scatter_add, one_hot, update_rows.
 *
 * "Row" is everything behind a table's outermost dimension. An index out of range reads a zero row and writes nothing, so a shard of the
 * rows [first, first + V) gives its share of the sum (gather) or of the rows (scatter_add, one_hot) with the whole index. */
#include "ops/facets.h"
#include "tensor/quant.h"

static const hd_attr gather_attrs[] = {
    {"first", HD_ATTR_INT64, offsetof(hd_rows_attrs, first), 0},
    {"dtype", HD_ATTR_DTYPE, offsetof(hd_rows_attrs, dtype), NAN},
    {0},
};
static const hd_attr rows_attrs[] = {
    {"rows", HD_ATTR_INT64, offsetof(hd_rows_attrs, rows), NAN},
    {"first", HD_ATTR_INT64, offsetof(hd_rows_attrs, first), 0},
    {"dtype", HD_ATTR_DTYPE, offsetof(hd_rows_attrs, dtype), HD_F32},
    {0},
};

#define MAX_ROWS ((int64_t)1 << 40)

static int check_index(const hd_sig *s, int operand, hd_error *err)
{
    const hd_type *index = &s->in[operand];
    return hd_dtype_is_index(index->dtype) ? 0 : hd_op_fail(s, err, "index must be i32 or i64, is %s", HD_TYPE_TEXT(index));
}

static int check_rows(const hd_sig *s, hd_error *err)
{
    const hd_rows_attrs *p = s->attrs;
    if (p->rows < 0 || p->rows > MAX_ROWS) return hd_op_fail(s, err, "rows must not be negative, is %lld", (long long)p->rows);
    if (p->first < 0) return hd_op_fail(s, err, "first must be at least 0, is %lld", (long long)p->first);
    return hd_need_result_dtype(s, "dtype", p->dtype, true, err);
}

/* Which row of a table of n rows an index means, or -1. */
static int64_t row_of(const hd_kernel_args *a, int operand, int64_t i, int64_t first, int64_t n)
{
    int64_t index = hd_load_i64(a->in[operand].data, a->in[operand].dtype, i);
    return index >= first && index - first < n ? index - first : -1;
}

static int64_t row_size(const hd_tensor *t) { return hd_dims_product(t->dim, 1, t->rank); }

static void move_row(const hd_tensor *to, int64_t to_row, const hd_tensor *from, int64_t from_row, int64_t size)
{
    if (from->blocks) {
        char *row = (char *)to->data + (size_t)(to_row * size) * hd_dtype_size(to->dtype);
        hd_quant_load(from->blocks, from->data, from_row * size, size, row, to->dtype);
        return;
    }
    if (to->dtype == from->dtype) {
        size_t bytes = (size_t)size * hd_dtype_size(to->dtype);
        if (bytes) memcpy((char *)to->data + (size_t)to_row * bytes, (const char *)from->data + (size_t)from_row * bytes, bytes);
        return;
    }
    for (int64_t i = 0; i < size; i++)
        hd_store_f64(to->data, to->dtype, to_row * size + i, hd_load_f64(from->data, from->dtype, from_row * size + i));
}

/* ---- gather ---- */

static int gather_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_rows_attrs *p = s->attrs;
    const hd_type *table = &s->in[0], *index = &s->in[1];
    if (check_index(s, 1, err)) return HD_EINVAL;
    if (p->first < 0) return hd_op_fail(s, err, "first must be at least 0, is %lld", (long long)p->first);
    if (table->shape.rank < 1) return hd_op_fail(s, err, "table must have rows, is %s", HD_TYPE_TEXT(table));
    int rank = index->shape.rank + table->shape.rank - 1;
    if (rank > HD_MAX_RANK) return hd_op_fail(s, err, "the result would have %d dimensions, of at most %d", rank, HD_MAX_RANK);
    hd_dtype dtype = p->dtype;
    if (hd_need_result_dtype(s, "dtype", dtype, false, err)) return HD_EINVAL;
    if (dtype != table->dtype && !(hd_dtype_is_float(dtype) && hd_dtype_is_float(table->dtype)))
        return hd_op_fail(s, err, "a table of %s cannot give rows of %s", hd_dtype_name(table->dtype), hd_dtype_name(dtype));
    out[0] = *index;
    out[0].dtype = dtype;
    out[0].shape.rank = rank;
    for (int i = 1; i < table->shape.rank; i++) out[0].shape.dim[index->shape.rank + i - 1] = table->shape.dim[i];
    return 1;
}

static void gather_loops(const hd_sig *s, hd_loops *l)
{
    int rank = s->in[1].shape.rank;
    for (int i = 0; i < rank; i++) hd_loop_through(s, l, 1, i, i);
    for (int i = 1; i < s->in[0].shape.rank; i++) hd_loop_through(s, l, 0, i, rank + i - 1);
    hd_loop_in(l, 0, 0, hd_loop_new(l, s->in[0].shape.dim[0], true));
}

/* Only the loop over the table's rows, the last one, touches the parameters. */
static void gather_localise(const hd_sig *s, const hd_loops *loops, int loop, int64_t begin, int64_t end, void *attrs)
{
    (void)s, (void)end;
    if (loop == loops->n - 1) ((hd_rows_attrs *)attrs)->first += begin;
}

/* Reads the rows it wants, not the table. */
static void gather_cost(const hd_sig *s, hd_cost *c)
{
    const hd_quant *q = s->in[0].blocks;
    double elements = (double)hd_shape_count(&s->out[0].shape), size = q ? (double)q->bytes / q->block : (double)hd_dtype_size(s->in[0].dtype);
    c->flops = 0;
    c->bytes = elements * (size + (double)hd_dtype_size(s->out[0].dtype)) +
               (double)hd_shape_count(&s->in[1].shape) * (double)hd_dtype_size(s->in[1].dtype);
}

static hd_value gather_grad(hd_graph *g, const hd_node *n, const hd_value *dy, int operand)
{
    const hd_type *table = hd_type_in(g, n->in[0]);
    if (operand || dy[0] == HD_NONE || !hd_dtype_is_float(table->dtype)) return HD_NONE;
    hd_rows_attrs p = {.rows = table->shape.dim[0], .dtype = hd_stat_dtype(table->dtype), .first = ((const hd_rows_attrs *)n->attrs)->first};
    return hd_grad_fit(g, hd_graph_node(g, "scatter_add", "dtable", &p, (hd_value[]){dy[0], n->in[1]}, 2), n->in[0]);
}

static void gather_reference(const hd_kernel_args *a)
{
    const hd_rows_attrs *p = a->attrs;
    const hd_tensor *table = &a->in[0];
    hd_tensor *y = &a->out[0];
    if (a->tid || !y->data) return;
    int64_t size = row_size(table), count = hd_tensor_count(&a->in[1]);
    for (int64_t i = 0; i < count; i++) {
        int64_t row = row_of(a, 1, i, p->first, table->dim[0]);
        if (row >= 0) move_row(y, i, table, row, size);
        else memset((char *)y->data + (size_t)(i * size) * hd_dtype_size(y->dtype), 0, (size_t)size * hd_dtype_size(y->dtype));
    }
}

/* An index of 1 or 2 dimensions, some of it out of range. */
static void sample_index(hd_rng *r, hd_sample *s, int64_t rows)
{
    int64_t dims[2];
    int rank = hd_sample_dims(r, 1, 2, 5, dims);
    hd_sample_set(s, s->n_in, hd_coin(r) ? HD_I32 : HD_I64, rank, dims, HD_FILL_INDEX, (double)rows);
}

static void gather_sample(hd_rng *r, hd_sample *s)
{
    ((hd_rows_attrs *)s->attrs)->dtype = HD_F64;
    int64_t rows = hd_pick(r, 1, 9);
    hd_sample_set(s, s->n_in, HD_F64, (int)hd_pick(r, 1, 3), (int64_t[]){rows, hd_pick(r, 1, 5), 3}, HD_FILL_NORMAL, 0);
    sample_index(r, s, rows + 2);
}

/* ---- scatter_add ---- */

static int scatter_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_rows_attrs *p = s->attrs;
    const hd_shape *y = &s->in[0].shape, *index = &s->in[1].shape;
    if (check_index(s, 1, err) || check_rows(s, err)) return HD_EINVAL;
    if (!hd_dtype_is_float(s->in[0].dtype)) return hd_op_fail(s, err, "y must be a float, is %s", HD_TYPE_TEXT(&s->in[0]));
    bool fits = y->rank >= index->rank && y->rank - index->rank < HD_MAX_RANK && (!index->rank || y->sym == index->sym);
    for (int i = 0; fits && i < index->rank; i++) fits = y->dim[i] == index->dim[i];
    if (!fits)
        return hd_op_fail(s, err, "y must begin with the dimensions of index %s, is %s", HD_TYPE_TEXT(&s->in[1]), HD_TYPE_TEXT(&s->in[0]));
    int64_t dim[HD_MAX_RANK] = {p->rows};
    for (int i = index->rank; i < y->rank; i++) dim[i - index->rank + 1] = y->dim[i];
    out[0] = hd_type_of(p->dtype, y->rank - index->rank + 1, dim);
    return 1;
}

static void scatter_loops(const hd_sig *s, hd_loops *l)
{
    int rank = s->in[1].shape.rank;
    for (int i = 0; i < rank; i++) {
        int loop = hd_loop_new(l, s->in[1].shape.dim[i], true);
        hd_loop_in(l, 0, i, loop);
        hd_loop_in(l, 1, i, loop);
    }
    for (int i = rank; i < s->in[0].shape.rank; i++) hd_loop_through(s, l, 0, i, i - rank + 1);
    hd_loop_out(l, 0, 0, hd_loop_new(l, s->out[0].shape.dim[0], false));
}

/* The loop over rows is the last one, in scatter_add and one_hot. */
static void rows_localise(const hd_sig *s, const hd_loops *loops, int loop, int64_t begin, int64_t end, void *attrs)
{
    (void)s;
    if (loop != loops->n - 1) return;
    ((hd_rows_attrs *)attrs)->first += begin;
    ((hd_rows_attrs *)attrs)->rows = end - begin;
}

static void scatter_cost(const hd_sig *s, hd_cost *c)
{
    c->flops = (double)hd_shape_count(&s->in[0].shape);
    c->bytes = hd_cost_bytes(s);
}

static hd_value scatter_grad(hd_graph *g, const hd_node *n, const hd_value *dy, int operand)
{
    if (operand || dy[0] == HD_NONE) return HD_NONE;
    hd_rows_attrs p = {.dtype = hd_grad_dtype(g, n->in[0]), .first = ((const hd_rows_attrs *)n->attrs)->first};
    return hd_graph_node(g, "gather", "dy", &p, (hd_value[]){dy[0], n->in[1]}, 2);
}

/* One element of the table: its rows in ascending order of position. */
static double scatter_at(const hd_kernel_args *a, int64_t row, int64_t feature, int64_t size)
{
    const hd_rows_attrs *p = a->attrs;
    int64_t count = hd_tensor_count(&a->in[1]);
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        if (row_of(a, 1, i, p->first, p->rows) == row) sum += hd_get(a, 0, i * size + feature);
    return sum;
}

static void scatter_reference(const hd_kernel_args *a)
{
    hd_tensor *table = &a->out[0];
    if (a->tid || !table->data) return;
    int64_t size = row_size(table);
    for (int64_t row = 0; row < table->dim[0]; row++)
        for (int64_t f = 0; f < size; f++) hd_put(a, 0, row * size + f, scatter_at(a, row, f, size));
}

static void scatter_sample(hd_rng *r, hd_sample *s)
{
    hd_rows_attrs *p = (hd_rows_attrs *)s->attrs;
    *p = (hd_rows_attrs){.rows = hd_pick(r, 1, 7), .dtype = HD_F64};
    int64_t dim[4] = {hd_pick(r, 1, 7), hd_pick(r, 1, 3), hd_pick(r, 1, 3), 3};
    int rank = (int)hd_pick(r, 1, 2);
    hd_sample_set(s, s->n_in, HD_F64, rank + (int)hd_pick(r, 0, 2), dim, HD_FILL_NORMAL, 0);
    hd_sample_set(s, s->n_in, HD_I32, rank, dim, HD_FILL_INDEX, (double)(p->rows + 2));
}

/* ---- one_hot ---- */

static int one_hot_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_rows_attrs *p = s->attrs;
    if (check_index(s, 0, err) || check_rows(s, err)) return HD_EINVAL;
    if (s->in[0].shape.rank == HD_MAX_RANK) return hd_op_fail(s, err, "index has %d dimensions already", HD_MAX_RANK);
    out[0] = s->in[0];
    out[0].dtype = p->dtype;
    out[0].shape.dim[out[0].shape.rank++] = p->rows;
    return 1;
}

static void one_hot_loops(const hd_sig *s, hd_loops *l)
{
    int rank = s->in[0].shape.rank;
    for (int i = 0; i < rank; i++) hd_loop_through(s, l, 0, i, i);
    hd_loop_out(l, 0, rank, hd_loop_new(l, s->out[0].shape.dim[rank], false));
}

static void one_hot_reference(const hd_kernel_args *a)
{
    const hd_rows_attrs *p = a->attrs;
    hd_tensor *y = &a->out[0];
    if (a->tid || !y->data) return;
    int64_t count = hd_tensor_count(&a->in[0]);
    for (int64_t i = 0; i < count; i++) {
        int64_t row = row_of(a, 0, i, p->first, p->rows);
        for (int64_t j = 0; j < p->rows; j++) hd_store_f64(y->data, y->dtype, i * p->rows + j, j == row);
    }
}

static void one_hot_sample(hd_rng *r, hd_sample *s)
{
    hd_rows_attrs *p = (hd_rows_attrs *)s->attrs;
    *p = (hd_rows_attrs){.rows = hd_pick(r, 1, 7), .dtype = HD_F64};
    sample_index(r, s, p->rows + 1);
}

/* ---- update_rows ---- */

static int update_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_type *cache = &s->in[0], *y = &s->in[1], *index = &s->in[2];
    if (check_index(s, 2, err)) return HD_EINVAL;
    int lead = index->shape.rank;
    bool fits = cache->shape.rank >= 1 && y->dtype == cache->dtype && y->shape.rank == lead + cache->shape.rank - 1;
    fits = fits && (!lead || y->shape.sym == index->shape.sym);
    for (int i = 0; fits && i < lead; i++) fits = y->shape.dim[i] == index->shape.dim[i];
    for (int i = 1; fits && i < cache->shape.rank; i++) fits = y->shape.dim[lead + i - 1] == cache->shape.dim[i];
    if (!fits)
        return hd_op_fail(s, err, "y must be one row of cache %s for each element of index %s, is %s", HD_TYPE_TEXT(cache), HD_TYPE_TEXT(index),
                          HD_TYPE_TEXT(y));
    out[0] = *cache;
    return 1;
}

/* Rows themselves cannot be split: which rows are replaced is data. */
static void update_loops(const hd_sig *s, hd_loops *l)
{
    int lead = s->in[2].shape.rank;
    for (int i = 1; i < s->in[0].shape.rank; i++) {
        int loop = hd_loop_through(s, l, 0, i, i);
        hd_loop_in(l, 1, lead + i - 1, loop);
    }
}

/* In place: the new rows are read and written, the others stay. */
static void update_cost(const hd_sig *s, hd_cost *c)
{
    c->flops = 0;
    c->bytes = 2.0 * (double)hd_shape_count(&s->in[1].shape) * (double)hd_dtype_size(s->in[1].dtype) +
               (double)hd_shape_count(&s->in[2].shape) * (double)hd_dtype_size(s->in[2].dtype);
}

/* dy: its rows of dcache'. dcache: dcache' with those rows zero. */
static hd_value update_grad(hd_graph *g, const hd_node *n, const hd_value *dy, int operand)
{
    if (operand > 1 || dy[0] == HD_NONE) return HD_NONE;
    const hd_type *y = hd_type_in(g, n->in[1]);
    if (!hd_dtype_is_float(y->dtype)) return HD_NONE;
    hd_rows_attrs p = {.dtype = operand ? hd_grad_dtype(g, n->in[1]) : hd_type_in(g, dy[0])->dtype};
    hd_value rows = hd_graph_node(g, "gather", "dy", &p, (hd_value[]){dy[0], n->in[2]}, 2);
    if (operand == 1 || rows == HD_NONE) return rows;
    return hd_graph_node(g, "update_rows", "dcache", NULL, (hd_value[]){dy[0], hd_scale(g, rows, 0), n->in[2]}, 3);
}

static uint32_t update_alias(const hd_sig *s, int result)
{
    (void)s, (void)result;
    return 1;
}

static void update_reference(const hd_kernel_args *a)
{
    const hd_tensor *cache = &a->in[0];
    hd_tensor *y = &a->out[0];
    if (a->tid || !y->data) return;
    if (y->data != cache->data && hd_tensor_bytes(y)) memcpy(y->data, cache->data, hd_tensor_bytes(y));
    int64_t size = row_size(cache), count = hd_tensor_count(&a->in[2]);
    for (int64_t i = 0; i < count; i++) {
        int64_t row = row_of(a, 2, i, 0, cache->dim[0]);
        if (row >= 0) move_row(y, row, &a->in[1], i, size);
    }
}

static void update_sample(hd_rng *r, hd_sample *s)
{
    int64_t rows = hd_pick(r, 3, 9), count = hd_pick(r, 1, 3), width = hd_pick(r, 1, 5);
    hd_sample_set(s, s->n_in, HD_F64, 2, (int64_t[]){rows, width}, HD_FILL_NORMAL, 0);
    hd_sample_set(s, s->n_in, HD_F64, 2, (int64_t[]){count, width}, HD_FILL_NORMAL, 0);
    hd_sample_set(s, s->n_in, HD_I32, 1, (int64_t[]){count}, HD_FILL_UNIQUE, (double)rows + 1);
}

const hd_op hd_op_gather = {
    .name = "gather",
    .summary = "(table[V, ...], index[I...]) -> y[I..., ...]: rows of table; zeros where index is out of range",
    .min_in = 2, .max_in = 2,
    .attrs_size = sizeof(hd_rows_attrs), .attrs = gather_attrs,
    .linear = {1},
    .infer = gather_infer, .loops = gather_loops, .localise = gather_localise, .cost = gather_cost, .grad = gather_grad,
    .reference = gather_reference, .sample = gather_sample,
};
const hd_op hd_op_scatter_add = {
    .name = "scatter_add",
    .summary = "(y[I..., ...], index[I...]) -> table[rows, ...]: adds the rows of y into a table of zeros",
    .min_in = 2, .max_in = 2,
    .attrs_size = sizeof(hd_rows_attrs), .attrs = rows_attrs,
    .linear = {1}, .can_accumulate = true,
    .infer = scatter_infer, .loops = scatter_loops, .localise = rows_localise, .cost = scatter_cost, .grad = scatter_grad,
    .reference = scatter_reference, .sample = scatter_sample,
};
const hd_op hd_op_one_hot = {
    .name = "one_hot",
    .summary = "(index[...]) -> y[..., rows]: 1 at the index, 0 elsewhere",
    .min_in = 1, .max_in = 1,
    .attrs_size = sizeof(hd_rows_attrs), .attrs = rows_attrs,
    .no_gradient = true,
    .infer = one_hot_infer, .loops = one_hot_loops, .localise = rows_localise, .cost = hd_cost_default, .reference = one_hot_reference,
    .sample = one_hot_sample,
};
const hd_op hd_op_update_rows = {
    .name = "update_rows",
    .summary = "(cache[R, ...], y[I..., ...], index[I...]) -> cache': rows replaced, in place where the cache dies here",
    .min_in = 3, .max_in = 3,
    .linear = {3},
    .infer = update_infer, .loops = update_loops, .cost = update_cost, .grad = update_grad, .may_alias = update_alias,
    .reference = update_reference, .sample = update_sample,
};
