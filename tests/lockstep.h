/* lockstep.h: runs a graph over all ranks of its mesh, node by node, with reference kernels and collectives on assembled data.
 * Nothing of the executor or of src/comm takes part: what is tested is the graph. */
#ifndef TESTS_LOCKSTEP_H
#define TESTS_LOCKSTEP_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include "base/rng.h"
#include "graph/op.h"

typedef struct world {
    const hd_graph *g;
    int ranks;
    void **data; /* [value * ranks + rank]; NULL: not there */
} world;

/* Fills the whole of a leaf: elements by path alone. */
typedef void (*leaf_filler)(const hd_graph *g, hd_value v, const hd_shape *whole, void *data);

static inline hd_shape whole_shape(const hd_graph *g, hd_value v)
{
    return g->values[v].layout ? g->values[v].whole : g->values[v].type.shape;
}

static inline hd_shape local_shape(const world *w, hd_value v, int rank)
{
    hd_shape s = whole_shape(w->g, v);
    return hd_layout_shape(&w->g->mesh, w->g->values[v].layout, &s, rank);
}

static inline void **place(const world *w, hd_value v, int rank) { return &w->data[(size_t)v * (size_t)w->ranks + (size_t)rank]; }

static inline void *new_piece(const world *w, hd_value v, int rank)
{
    hd_shape s = local_shape(w, v, rank);
    size_t bytes = (size_t)hd_shape_count(&s) * hd_dtype_size(w->g->values[v].type.dtype);
    void *p = malloc(bytes + 16); /* poisoned: what nobody writes is no number */
    assert_non_null(p);
    memset(p, 0xff, bytes + 16);
    assert_null(*place(w, v, rank));
    return *place(w, v, rank) = p;
}

static inline void *new_whole(const world *w, hd_value v)
{
    hd_shape s = whole_shape(w->g, v);
    size_t bytes = (size_t)hd_shape_count(&s) * hd_dtype_size(w->g->values[v].type.dtype) + 16;
    void *p = malloc(bytes);
    assert_non_null(p);
    memset(p, 0xff, bytes);
    return p;
}

static inline hd_tensor piece_of(const world *w, hd_value v, int rank)
{
    hd_tensor t = {0};
    if (v == HD_NONE) return t;
    hd_shape s = local_shape(w, v, rank);
    t = (hd_tensor){.data = *place(w, v, rank), .dtype = w->g->values[v].type.dtype, .rank = s.rank};
    for (int d = 0; d < s.rank; d++) t.dim[d] = s.dim[d];
    if (!t.data) fail_msg("%s is read before it is made", w->g->values[v].path);
    return t;
}

/* ---- nodes ---- */

static inline hd_type whole_type_of(const hd_graph *g, hd_value v)
{
    if (v == HD_NONE) return (hd_type){.absent = true, .shape.sym = -1};
    return (hd_type){.dtype = g->values[v].type.dtype, .shape = whole_shape(g, v)};
}

static inline void localise(const world *w, const hd_node *n, int rank, void *attrs)
{
    hd_type in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS];
    if (n->op->attrs_size) memcpy(attrs, n->attrs, n->op->attrs_size);
    if (!n->n_splits) return;
    for (int k = 0; k < n->n_in; k++) in[k] = whole_type_of(w->g, n->in[k]);
    for (int k = 0; k < n->n_out; k++) out[k] = whole_type_of(w->g, n->out[k]);
    hd_sig sig = {.op = n->op, .in = in, .out = out, .n_in = n->n_in, .n_out = n->n_out, .attrs = n->attrs};
    hd_op_localise(&sig, n->splits, n->n_splits, &w->g->mesh, rank, attrs);
}

static inline void run_compute(const world *w, const hd_node *n, int rank)
{
    _Alignas(16) char attrs[1024] = {0};
    hd_tensor in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS];
    localise(w, n, rank, attrs);
    for (int k = 0; k < n->n_in; k++) in[k] = piece_of(w, n->in[k], rank);
    for (int k = 0; k < n->n_out; k++) {
        new_piece(w, n->out[k], rank);
        out[k] = piece_of(w, n->out[k], rank);
    }
    if (n->op->is_view) {
        assert_int_equal(hd_tensor_bytes(&in[0]), hd_tensor_bytes(&out[0]));
        memcpy(out[0].data, in[0].data, hd_tensor_bytes(&in[0]));
        return;
    }
    hd_kernel_args a = {.in = in, .out = out, .n_in = n->n_in, .n_out = n->n_out, .code = n->op->code, .attrs = attrs, .threads = 1};
    n->op->reference(&a);
}

/* ---- collectives ---- */

/* The sum (or maximum) over the group of each element of rank's piece; all pieces of a group are of one shape here. */
static inline void *reduce_group(const world *w, hd_value x, const int *group, int n, bool max)
{
    hd_tensor first = piece_of(w, x, group[0]);
    char *sum = malloc(hd_tensor_bytes(&first) + 16);
    for (int64_t i = 0; i < hd_tensor_count(&first); i++) {
        double s = max ? -INFINITY : 0;
        for (int k = 0; k < n; k++) {
            hd_tensor t = piece_of(w, x, group[k]);
            assert_int_equal(hd_tensor_count(&t), hd_tensor_count(&first));
            double e = hd_load_f64(t.data, t.dtype, i);
            s = max ? fmax(s, e) : s + e;
        }
        hd_store_f64(sum, first.dtype, i, s);
    }
    return sum;
}

static inline void run_gathering(const world *w, const hd_node *n, int rank, const int *group, int count)
{
    const hd_graph *g = w->g;
    hd_value x = n->in[0], y = n->out[0];
    hd_shape whole = whole_shape(g, x);
    size_t size = hd_dtype_size(g->values[x].type.dtype);
    char *all = new_whole(w, x);
    bool reduces = !strcmp(n->op->name, "reduce_scatter");
    if (reduces) {
        void *sum = reduce_group(w, x, group, count, ((const hd_comm_attrs *)n->attrs)->max);
        hd_layout_put(&g->mesh, g->values[x].layout, &whole, rank, size, sum, all);
        free(sum);
    }
    bool alone = !strcmp(n->op->name, "place");
    if (alone) memset(all, 0, (size_t)hd_shape_count(&whole) * size);
    for (int k = 0; k < count && !reduces; k++)
        if (!alone || group[k] == rank) hd_layout_put(&g->mesh, g->values[x].layout, &whole, group[k], size, *place(w, x, group[k]), all);
    hd_layout_take(&g->mesh, g->values[y].layout, &whole, rank, size, all, new_piece(w, y, rank));
    free(all);
}

static inline void run_keep_first(const world *w, const hd_node *n, int rank, int index)
{
    hd_tensor x = piece_of(w, n->in[0], rank);
    void *y = new_piece(w, n->out[0], rank);
    if (index) memset(y, 0, hd_tensor_bytes(&x));
    else memcpy(y, x.data, hd_tensor_bytes(&x));
}

/* The piece of the next rank of the group. */
static inline void run_permute(const world *w, const hd_node *n, int rank, const int *group, int count)
{
    int next = 0;
    while (group[next] != rank) next++;
    hd_tensor x = piece_of(w, n->in[0], group[(next + 1) % count]), y;
    new_piece(w, n->out[0], rank);
    y = piece_of(w, n->out[0], rank);
    assert_int_equal(hd_tensor_bytes(&x), hd_tensor_bytes(&y));
    memcpy(y.data, x.data, hd_tensor_bytes(&x));
}

/* Rows of the whole by their numbers: each rank's first rows one rank after the other, then all second ones from the end on. */
static inline void run_deal(const world *w, const hd_node *n, int rank, const int *group, int count)
{
    hd_tensor x = piece_of(w, n->in[0], rank), y;
    int64_t low = 0, high = x.dim[0];
    new_piece(w, n->out[0], rank);
    y = piece_of(w, n->out[0], rank);
    size_t row = x.dim[0] ? hd_tensor_bytes(&x) / (size_t)x.dim[0] : 0;
    for (int k = 0; k < count; k++) {
        hd_shape s = local_shape(w, n->out[0], group[k]);
        int64_t late = s.dim[0] / 2, early = s.dim[0] - late;
        high -= late;
        if (group[k] == rank) {
            memcpy(y.data, (char *)x.data + (size_t)low * row, (size_t)early * row);
            memcpy((char *)y.data + (size_t)early * row, (char *)x.data + (size_t)high * row, (size_t)late * row);
        }
        low += early;
    }
    assert_int_equal(low, high);
}

static inline void run_comm(const world *w, const hd_node *n, int rank)
{
    const hd_comm_attrs *at = n->attrs;
    int8_t axes[HD_MAX_AXES];
    int group[64], count, n_axes = hd_mesh_parse_axes(&w->g->mesh, at->axes, axes);
    assert_true(n_axes > 0 && w->ranks <= 64);
    count = hd_mesh_group(&w->g->mesh, rank, axes, n_axes, group);
    if (!strcmp(n->op->name, "all_reduce")) {
        hd_tensor x = piece_of(w, n->in[0], rank);
        void *sum = reduce_group(w, n->in[0], group, count, at->max);
        memcpy(new_piece(w, n->out[0], rank), sum, hd_tensor_bytes(&x));
        free(sum);
    } else if (!strcmp(n->op->name, "keep_first")) {
        run_keep_first(w, n, rank, hd_mesh_index(&w->g->mesh, rank, axes, n_axes, NULL));
    } else if (!strcmp(n->op->name, "permute")) {
        run_permute(w, n, rank, group, count);
    } else if (!strcmp(n->op->name, "deal")) {
        run_deal(w, n, rank, group, count);
    } else {
        run_gathering(w, n, rank, group, count);
    }
}

/* ---- the whole ---- */

static inline void world_run(world *w, const hd_graph *g, leaf_filler fill)
{
    *w = (world){.g = g, .ranks = hd_mesh_size(&g->mesh)};
    w->data = calloc(g->n_values * (size_t)w->ranks, sizeof *w->data);
    for (size_t v = 0; v < g->n_values; v++) {
        if (g->values[v].kind == HD_RESULT) continue;
        hd_shape whole = whole_shape(g, (hd_value)v);
        void *all = new_whole(w, (hd_value)v);
        fill(g, (hd_value)v, &whole, all);
        for (int r = 0; r < w->ranks; r++)
            hd_layout_take(&g->mesh, g->values[v].layout, &whole, r, hd_dtype_size(g->values[v].type.dtype), all, new_piece(w, (hd_value)v, r));
        free(all);
    }
    for (size_t i = 0; i < g->n_nodes; i++)
        for (int r = 0; r < w->ranks; r++) (g->nodes[i]->op->is_comm ? run_comm : run_compute)(w, g->nodes[i], r);
}

static inline void world_free(world *w)
{
    for (size_t i = 0; i < w->g->n_values * (size_t)w->ranks; i++) free(w->data[i]);
    free(w->data);
}

/* Largest difference of what each rank has of v to that piece of the whole `truth`, relative to the largest element; infinite for what is no number. */
static inline double piece_distance(const world *w, hd_value v, const void *truth, hd_dtype dtype)
{
    const hd_graph *g = w->g;
    hd_shape whole = whole_shape(g, v);
    double most = 0, scale = 1e-3;
    char *piece = malloc((size_t)hd_shape_count(&whole) * hd_dtype_size(dtype) + 16);
    for (int64_t i = 0; i < hd_shape_count(&whole); i++) scale = fmax(scale, fabs(hd_load_f64(truth, dtype, i)));
    assert_int_equal(g->values[v].type.dtype, dtype);
    for (int r = 0; r < w->ranks; r++) {
        hd_tensor t = piece_of(w, v, r);
        hd_layout_take(&g->mesh, g->values[v].layout, &whole, r, hd_dtype_size(dtype), truth, piece);
        for (int64_t i = 0; i < hd_tensor_count(&t); i++) {
            double d = fabs(hd_load_f64(t.data, dtype, i) - hd_load_f64(piece, dtype, i)) / scale;
            if (!(d <= most)) most = isfinite(d) ? d : INFINITY;
        }
    }
    free(piece);
    return most;
}

#endif
