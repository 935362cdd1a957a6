/* move.c: slice, pad, concat, transpose: copies of whole elements, whatever they are. */
#include "kernels/cpu/isa/rows.h"

#if HD_ISA_LEVEL <= 2

/* `outer` runs of `run` bytes, run i from src + i * src_stride to dst + i * dst_stride; the thread's share of the bytes. */
static void copy_runs(const hd_kernel_args *a, char *dst, int64_t dst_stride, const char *src, int64_t src_stride, int64_t outer,
                      int64_t run)
{
    int64_t begin, end;
    if (run == 0) return;
    hd_split(outer * run, 64, a->tid, a->threads, &begin, &end);
    for (int64_t at = begin; at < end;) {
        int64_t i = at / run, from = at % run, n = run - from < end - at ? run - from : end - at;
        memcpy(dst + i * dst_stride + from, src + i * src_stride + from, (size_t)n);
        at += n;
    }
}

/* A tensor around one axis: outer x (extent x inner bytes). */
typedef struct around {
    int64_t outer, inner;
} around;

static around around_axis(const hd_tensor *t, int axis)
{
    around r = {1, (int64_t)hd_dtype_size(t->dtype)};
    for (int i = 0; i < axis; i++) r.outer *= t->dim[i];
    for (int i = axis + 1; i < t->rank; i++) r.inner *= t->dim[i];
    return r;
}

static void run_slice(const hd_kernel_args *a)
{
    const hd_slice_attrs *at = a->attrs;
    const hd_tensor *x = &a->in[0], *y = &a->out[0];
    if (!y->data) return;
    around r = around_axis(x, at->axis);
    int64_t row = x->dim[at->axis] * r.inner, run = y->dim[at->axis] * r.inner;
    copy_runs(a, y->data, run, (const char *)x->data + at->begin * r.inner, row, r.outer, run);
}

static void run_pad(const hd_kernel_args *a)
{
    const hd_slice_attrs *at = a->attrs;
    const hd_tensor *x = &a->in[0], *y = &a->out[0];
    int64_t begin, end;
    if (!y->data) return;
    around r = around_axis(x, at->axis);
    int64_t row = y->dim[at->axis] * r.inner, run = x->dim[at->axis] * r.inner, front = at->begin * r.inner;
    hd_split(r.outer, 1, a->tid, a->threads, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        char *to = (char *)y->data + i * row;
        memset(to, 0, (size_t)front);
        if (run > 0) memcpy(to + front, (const char *)x->data + i * run, (size_t)run);
        memset(to + front + run, 0, (size_t)(row - front - run));
    }
}

static void run_concat(const hd_kernel_args *a)
{
    int axis = ((const hd_axis_attrs *)a->attrs)->axis;
    const hd_tensor *y = &a->out[0];
    if (!y->data) return;
    around r = around_axis(y, axis);
    int64_t row = y->dim[axis] * r.inner, at = 0;
    for (int i = 0; i < a->n_in; i++) {
        int64_t run = a->in[i].dim[axis] * r.inner;
        copy_runs(a, (char *)y->data + at, row, a->in[i].data, run, r.outer, run);
        at += run;
    }
}

/* ---- transpose ---- */

typedef struct order {
    int rank;
    int64_t dim[HD_MAX_RANK];  /* of y, after merging dimensions that stay neighbours */
    int64_t from[HD_MAX_RANK]; /* elements of x between neighbours of each dimension of y */
} order;

static order order_of(const hd_tensor *x, const hd_dims_attrs *p)
{
    int64_t stride[HD_MAX_RANK], step = 1;
    order o = {0};
    for (int i = x->rank - 1; i >= 0; i--) {
        stride[i] = step;
        step *= x->dim[i];
    }
    for (int i = 0; i < p->rank; i++) {
        int64_t dim = x->dim[p->dim[i]], from = stride[p->dim[i]];
        if (dim == 1) continue;
        if (o.rank > 0 && o.from[o.rank - 1] == from * dim) {
            o.dim[o.rank - 1] *= dim;
            o.from[o.rank - 1] = from;
        } else {
            o.dim[o.rank] = dim;
            o.from[o.rank++] = from;
        }
    }
    return o;
}

/* Rows of y are runs of x. */
static void transpose_runs(const hd_kernel_args *a, const order *o, int64_t size)
{
    int64_t rows = 1, run = o->dim[o->rank - 1] * size, begin, end;
    for (int d = 0; d + 1 < o->rank; d++) rows *= o->dim[d];
    hd_split(rows, 1, a->tid, a->threads, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        int64_t from = 0, rest = i;
        for (int d = o->rank - 2; d >= 0; d--) {
            from += rest % o->dim[d] * o->from[d];
            rest /= o->dim[d];
        }
        memcpy((char *)a->out[0].data + i * run, (const char *)a->in[0].data + from * size, (size_t)run);
    }
}

#define BLOCK 16

/* y[i][j] = x[i + j * ld] for a piece of at most BLOCK x BLOCK elements of `size` bytes; rows of y are y_ld apart. */
HD_INLINE void transpose_piece(char *y, int64_t y_ld, const char *x, int64_t ld, int64_t rows, int64_t columns, size_t size)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) memcpy(y + (size_t)(i * y_ld + j) * size, x + (size_t)(i + j * ld) * size, size);
}

static void transpose_any_size(char *y, int64_t y_ld, const char *x, int64_t ld, int64_t rows, int64_t columns, size_t size)
{
    if (size == 4) transpose_piece(y, y_ld, x, ld, rows, columns, 4);
    else if (size == 2) transpose_piece(y, y_ld, x, ld, rows, columns, 2);
    else if (size == 8) transpose_piece(y, y_ld, x, ld, rows, columns, 8);
    else transpose_piece(y, y_ld, x, ld, rows, columns, 1);
}

/* The dimension of y in which x is contiguous goes with y's last one, in blocks; the others are walked outside. */
static void transpose_blocks(const hd_kernel_args *a, const order *o, size_t size)
{
    int last = o->rank - 1, q = 0;
    int64_t step[HD_MAX_RANK], outer = 1, begin, end;
    while (o->from[q] != 1) q++;
    for (int64_t d = last, s = 1; d >= 0; d--) {
        step[d] = s;
        s *= o->dim[d];
        if (d != last && d != q) outer *= o->dim[d];
    }
    int64_t strips = (o->dim[q] + BLOCK - 1) / BLOCK;
    hd_split(outer * strips, 1, a->tid, a->threads, &begin, &end);
    for (int64_t u = begin; u < end; u++) {
        int64_t i = u % strips * BLOCK, rest = u / strips, to = i * step[q], from = i;
        for (int d = last - 1; d >= 0; d--) {
            if (d == q) continue;
            to += rest % o->dim[d] * step[d];
            from += rest % o->dim[d] * o->from[d];
            rest /= o->dim[d];
        }
        int64_t rows = o->dim[q] - i < BLOCK ? o->dim[q] - i : BLOCK;
        for (int64_t j = 0; j < o->dim[last]; j += BLOCK) {
            int64_t columns = o->dim[last] - j < BLOCK ? o->dim[last] - j : BLOCK;
            transpose_any_size((char *)a->out[0].data + (size_t)(to + j) * size, step[q],
                               (const char *)a->in[0].data + (size_t)(from + j * o->from[last]) * size, o->from[last], rows, columns, size);
        }
    }
}

static void run_transpose(const hd_kernel_args *a)
{
    const hd_tensor *x = &a->in[0];
    size_t size = hd_dtype_size(x->dtype);
    order o = order_of(x, a->attrs);
    if (!a->out[0].data || hd_tensor_count(x) == 0) return;
    if (o.rank <= 1) copy_runs(a, a->out[0].data, 0, x->data, 0, 1, (int64_t)hd_tensor_bytes(x));
    else if (o.from[o.rank - 1] == 1) transpose_runs(a, &o, (int64_t)size);
    else transpose_blocks(a, &o, size);
}

static bool supports_move(const hd_kernel_args *a)
{
    if (a->accumulate) return false;
    for (int i = 0; i < a->n_in; i++)
        if (a->in[i].dtype != a->out[0].dtype || a->in[i].rank == 0) return false;
    return true;
}

const hd_kernel HD_ISA(hd_kernels_move)[] = {
    {"slice", supports_move, NULL, run_slice},
    {"pad", supports_move, NULL, run_pad},
    {"concat", supports_move, NULL, run_concat},
    {"transpose", supports_move, NULL, run_transpose},
    {0},
};

#else
const hd_kernel HD_ISA(hd_kernels_move)[] = {{0}};
#endif
