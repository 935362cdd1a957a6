/* reduce.c: reduce_sum, reduce_mean, reduce_max over any dimensions, and sum_squares.
 *
 * Trailing dimensions are reduced row by row, others as column sums (columns.h), of one matrix or of one for each index in front (the same
 * bits); any other pattern element by element in f64. */
#include "kernels/cpu/isa/columns.h"
#include "kernels/cpu/isa/vmath.h"

#if HD_ISA_LEVEL <= 2

typedef enum reduction { REDUCE_SUM, REDUCE_MEAN, REDUCE_MAX } reduction;

/* Dimensions after merging neighbours that are both kept or both reduced; extents of 1 are dropped. */
typedef struct groups {
    int n;
    int64_t dim[HD_MAX_RANK];
    bool reduced[HD_MAX_RANK];
    int64_t kept, count; /* elements of the result; elements reduced into each */
} groups;

static groups group_dims(const hd_tensor *x, uint32_t axes)
{
    groups g = {.kept = 1, .count = 1};
    for (int i = 0; i < x->rank; i++) {
        bool reduced = axes >> i & 1;
        if (reduced) g.count *= x->dim[i];
        else g.kept *= x->dim[i];
        if (x->dim[i] == 1) continue;
        if (g.n > 0 && g.reduced[g.n - 1] == reduced) {
            g.dim[g.n - 1] *= x->dim[i];
        } else {
            g.dim[g.n] = x->dim[i];
            g.reduced[g.n++] = reduced;
        }
    }
    return g;
}

static bool is_rows(const groups *g)
{
    return g->n == 0 || (g->n == 1 && g->reduced[0]) || (g->n == 2 && g->reduced[1]);
}

static bool is_columns(const groups *g)
{
    return g->n == 2 && g->reduced[0];
}

/* Columns of one matrix for each index in front. */
static bool is_stack(const groups *g)
{
    return g->n == 3 && g->reduced[1];
}

static void put(const hd_kernel_args *a, int64_t i, double v)
{
    hd_tensor *y = &a->out[0];
    if (a->accumulate) v += f32_load_as(y->data, y->dtype, i);
    f32_store_as(y->data, y->dtype, i, (float)v);
}

static double row_total(const hd_tensor *x, int64_t at, int64_t n)
{
    float buffer[HD_SUM_BLOCK];
    double total = 0;
    for (int64_t j = 0; j < n; j += HD_SUM_BLOCK) {
        int64_t m = n - j < HD_SUM_BLOCK ? n - j : HD_SUM_BLOCK;
        row_load(buffer, x->data, x->dtype, at + j, m);
        total += row_sum(buffer, m);
    }
    return total;
}

static float row_max(const hd_tensor *x, int64_t at, int64_t n)
{
    vf m = vf_set1(-INFINITY);
    int64_t j = 0;
    for (; j + HD_VL <= n; j += HD_VL) m = vf_larger(vf_load_as(x->data, x->dtype, at + j), m);
    float best = m[0];
    for (int l = 1; l < HD_VL; l++) best = m[l] > best || m[l] != m[l] ? m[l] : best;
    for (; j < n; j++) {
        float v = f32_load_as(x->data, x->dtype, at + j);
        best = v > best || v != v ? v : best;
    }
    return best;
}

static void reduce_rows(const hd_kernel_args *a, reduction kind, const groups *g)
{
    int64_t begin, end, n = g->count;
    hd_split(g->kept, 1, a->tid, a->threads, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        if (kind == REDUCE_MAX) put(a, r, row_max(&a->in[0], r * n, n));
        else put(a, r, row_total(&a->in[0], r * n, n) / (kind == REDUCE_MEAN ? (double)n : 1));
    }
}

/* Index of the first element that goes into result i, and of the k-th after it. */
static int64_t element_at(const groups *g, int64_t i, int64_t k)
{
    int64_t at = 0, step = 1;
    for (int d = g->n - 1; d >= 0; d--) {
        int64_t *rest = g->reduced[d] ? &k : &i;
        at += *rest % g->dim[d] * step;
        *rest /= g->dim[d];
        step *= g->dim[d];
    }
    return at;
}

static void reduce_any(const hd_kernel_args *a, reduction kind, const groups *g)
{
    const hd_tensor *x = &a->in[0];
    int64_t begin, end, run = g->n > 0 && g->reduced[g->n - 1] ? g->dim[g->n - 1] : 1;
    hd_split(g->kept, 1, a->tid, a->threads, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        double v = kind == REDUCE_MAX ? -INFINITY : 0;
        for (int64_t k = 0; k < g->count; k += run) {
            int64_t at = element_at(g, i, k);
            double part = run == 1 ? f32_load_as(x->data, x->dtype, at) : kind == REDUCE_MAX ? row_max(x, at, run) : row_total(x, at, run);
            if (kind != REDUCE_MAX) v += part;
            else if (part > v || part != part) v = part;
        }
        put(a, i, kind == REDUCE_MEAN ? v / (double)g->count : v);
    }
}

HD_INLINE vf term_value(const column_source *c, int64_t row, int64_t at, int n)
{
    (void)row;
    return vf_load_upto(c->x->data, c->x->dtype, at, n);
}

static void reduce_stack(const hd_kernel_args *a, const groups *g, double scale)
{
    const hd_tensor *x = &a->in[0];
    int64_t begin, end, rows = g->dim[1], columns = g->dim[2];
    float *part = (float *)((char *)a->workspace + (size_t)a->tid * column_workspace(rows, columns));
    hd_split(g->dim[0], 1, a->tid, a->threads, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        hd_tensor matrix = *x;
        matrix.data = (char *)x->data + (size_t)(i * rows * columns) * hd_dtype_size(x->dtype);
        column_source c = {.x = &matrix};
        char *y = (char *)a->out[0].data + (size_t)(i * columns) * hd_dtype_size(a->out[0].dtype);
        column_sum_alone(a, &c, y, part, rows, columns, scale, term_value);
    }
}

static void reduce(const hd_kernel_args *a, reduction kind)
{
    const hd_reduce_attrs *at = a->attrs;
    groups g = group_dims(&a->in[0], at->axes);
    if (!a->out[0].data) return;
    if (is_rows(&g)) {
        reduce_rows(a, kind, &g);
    } else if (is_columns(&g) && kind != REDUCE_MAX) {
        column_source c = {.x = &a->in[0]};
        column_sum(a, &c, g.dim[0], g.dim[1], kind == REDUCE_MEAN ? 1.0 / (double)g.count : 1, term_value);
    } else if (is_stack(&g) && kind != REDUCE_MAX) {
        reduce_stack(a, &g, kind == REDUCE_MEAN ? 1.0 / (double)g.count : 1);
    } else {
        reduce_any(a, kind, &g);
    }
}

static void run_reduce_sum(const hd_kernel_args *a)
{
    reduce(a, REDUCE_SUM);
}

static void run_reduce_mean(const hd_kernel_args *a)
{
    reduce(a, REDUCE_MEAN);
}

static void run_reduce_max(const hd_kernel_args *a)
{
    reduce(a, REDUCE_MAX);
}

static size_t workspace_reduce(const hd_kernel_args *a, int threads)
{
    const hd_reduce_attrs *at = a->attrs;
    groups g = group_dims(&a->in[0], at->axes);
    if (is_stack(&g)) return (size_t)threads * column_workspace(g.dim[1], g.dim[2]);
    return is_columns(&g) ? column_workspace(g.dim[0], g.dim[1]) : 0;
}

static bool supports_reduce(const hd_kernel_args *a)
{
    return is_vf_dtype(a->in[0].dtype) && is_vf_dtype(a->out[0].dtype);
}

/* ---- sum_squares ---- */

#define SQUARES_BLOCK (16 * HD_SUM_BLOCK) /* elements of one partial sum */

static size_t workspace_squares(const hd_kernel_args *a, int threads)
{
    (void)threads;
    return (size_t)((hd_tensor_count(&a->in[0]) + SQUARES_BLOCK - 1) / SQUARES_BLOCK) * sizeof(double);
}

static double block_squares(const hd_tensor *x, int64_t at, int64_t n)
{
    double total = 0;
    for (int64_t b = 0; b < n; b += HD_SUM_BLOCK) {
        int64_t end = b + HD_SUM_BLOCK < n ? b + HD_SUM_BLOCK : n, j = b;
        vf s[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
        for (; j + 4 * HD_VL <= end; j += 4 * HD_VL)
            for (int k = 0; k < 4; k++) {
                vf v = vf_load_as(x->data, x->dtype, at + j + k * HD_VL);
                s[k] = vf_fma(v, v, s[k]);
            }
        for (; j < end; j += HD_VL) {
            vf v = vf_load_upto(x->data, x->dtype, at + j, lanes_left(end, j));
            s[0] = vf_fma(v, v, s[0]);
        }
        vf sum = (s[0] + s[1]) + (s[2] + s[3]);
        total += vd_hsum(vd_low(sum) + vd_high(sum));
    }
    return total;
}

static void run_sum_squares(const hd_kernel_args *a)
{
    const hd_tensor *x = &a->in[0];
    int64_t n = hd_tensor_count(x), blocks = (n + SQUARES_BLOCK - 1) / SQUARES_BLOCK, begin, end;
    double *part = a->workspace, total = 0;
    if (!a->out[0].data) return;
    hd_split(blocks, 1, a->tid, a->threads, &begin, &end);
    for (int64_t b = begin; b < end; b++) {
        int64_t at = b * SQUARES_BLOCK;
        part[b] = block_squares(x, at, n - at < SQUARES_BLOCK ? n - at : SQUARES_BLOCK);
    }
    hd_team_barrier(a->team, a->tid);
    if (a->tid != 0) return;
    for (int64_t b = 0; b < blocks; b++) total += part[b];
    put(a, 0, total);
}

const hd_kernel HD_ISA(hd_kernels_reduce)[] = {
    {"reduce_sum", supports_reduce, workspace_reduce, run_reduce_sum},
    {"reduce_mean", supports_reduce, workspace_reduce, run_reduce_mean},
    {"reduce_max", supports_reduce, workspace_reduce, run_reduce_max},
    {"sum_squares", supports_reduce, workspace_squares, run_sum_squares},
    {0},
};

#else
const hd_kernel HD_ISA(hd_kernels_reduce)[] = {{0}};
#endif
