/* index.c: ops whose rows are chosen by data: gather, scatter_add, update_rows, one_hot, top_k and its gradient.
 *
 * Where two positions may mean the same row, threads split the columns and each walks all positions in ascending order. */
#include "kernels/cpu/isa/rows.h"
#include "tensor/quant.h"

#if HD_ISA_LEVEL <= 2

static int64_t index_at(const hd_tensor *index, int64_t i)
{
    return index->dtype == HD_I32 ? ((const int32_t *)index->data)[i] : ((const int64_t *)index->data)[i];
}

static bool is_index(const hd_tensor *t)
{
    return t->dtype == HD_I32 || t->dtype == HD_I64;
}

/* The row that position i means in a table whose row 0 is `first`, or -1. */
static int64_t row_at(const hd_tensor *index, int64_t i, int64_t first, int64_t rows)
{
    int64_t row = index_at(index, i);
    return row >= first && row - first < rows ? row - first : -1;
}

/* Elements behind the outermost dimension. */
static int64_t row_elements(const hd_tensor *t)
{
    int64_t n = 1;
    for (int i = 1; i < t->rank; i++) n *= t->dim[i];
    return n;
}

static void convert_row(const hd_tensor *y, int64_t to, const hd_tensor *x, int64_t from, int64_t n)
{
    for (int64_t j = 0; j < n; j += HD_VL) {
        int m = lanes_left(n, j);
        vf_store_upto(y->data, y->dtype, to + j, vf_load_upto(x->data, x->dtype, from + j, m), m);
    }
}

static void run_gather(const hd_kernel_args *a)
{
    const hd_rows_attrs *at = a->attrs;
    const hd_tensor *table = &a->in[0], *index = &a->in[1], *y = &a->out[0];
    int64_t n = row_elements(table), bytes = n * (int64_t)hd_dtype_size(y->dtype), begin, end;
    if (!y->data || n == 0) return;
    hd_split(hd_tensor_count(index), 1, a->tid, a->threads, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        int64_t row = row_at(index, i, at->first, table->dim[0]);
        char *to = (char *)y->data + i * bytes;
        if (row < 0) memset(to, 0, (size_t)bytes);
        else if (table->blocks) hd_quant_load(table->blocks, table->data, row * n, n, to, y->dtype);
        else if (y->dtype == table->dtype) memcpy(to, (const char *)table->data + row * bytes, (size_t)bytes);
        else convert_row(y, i * n, table, row * n, n);
    }
}

static bool supports_gather(const hd_kernel_args *a)
{
    const hd_quant *blocks = a->in[0].blocks;
    if (a->accumulate || !is_index(&a->in[1])) return false;
    if (blocks) return a->in[0].format == HD_PLAIN && blocks->dequantize && is_vf_dtype(a->out[0].dtype);
    return a->in[0].dtype == a->out[0].dtype || (is_vf_dtype(a->in[0].dtype) && is_vf_dtype(a->out[0].dtype));
}

static void run_scatter_add(const hd_kernel_args *a)
{
    const hd_rows_attrs *at = a->attrs;
    const hd_tensor *y = &a->in[0], *index = &a->in[1], *table = &a->out[0];
    int64_t n = row_elements(table), count = hd_tensor_count(index), begin, end;
    float *t = table->data;
    if (!t || n == 0) return;
    if (!a->accumulate) {
        hd_split(table->dim[0] * n, 64, a->tid, a->threads, &begin, &end);
        if (begin < end) memset(t + begin, 0, (size_t)(end - begin) * sizeof(float));
        hd_team_barrier(a->team, a->tid);
    }
    hd_split(n, HD_VL, a->tid, a->threads, &begin, &end);
    for (int64_t i = 0; i < count && begin < end; i++) {
        int64_t row = row_at(index, i, at->first, table->dim[0]);
        if (row < 0) continue;
        for (int64_t j = begin; j < end; j += HD_VL) {
            int m = lanes_left(end, j);
            vf sum = vf_load_upto(t, HD_F32, row * n + j, m) + vf_load_upto(y->data, y->dtype, i * n + j, m);
            vf_store_upto(t, HD_F32, row * n + j, sum, m);
        }
    }
}

static bool supports_scatter_add(const hd_kernel_args *a)
{
    return is_vf_dtype(a->in[0].dtype) && is_index(&a->in[1]) && a->out[0].dtype == HD_F32;
}

static void run_update_rows(const hd_kernel_args *a)
{
    const hd_tensor *cache = &a->in[0], *rows = &a->in[1], *index = &a->in[2], *out = &a->out[0];
    int64_t bytes = row_elements(cache) * (int64_t)hd_dtype_size(cache->dtype), count = hd_tensor_count(index), begin, end;
    if (!out->data || bytes == 0) return;
    if (out->data != cache->data) {
        hd_split(cache->dim[0] * bytes, 64, a->tid, a->threads, &begin, &end);
        if (begin < end) memcpy((char *)out->data + begin, (const char *)cache->data + begin, (size_t)(end - begin));
        hd_team_barrier(a->team, a->tid);
    }
    hd_split(bytes, 64, a->tid, a->threads, &begin, &end);
    for (int64_t i = 0; i < count && begin < end; i++) {
        int64_t row = row_at(index, i, 0, cache->dim[0]);
        if (row >= 0) memcpy((char *)out->data + row * bytes + begin, (const char *)rows->data + i * bytes + begin, (size_t)(end - begin));
    }
}

static bool supports_update_rows(const hd_kernel_args *a)
{
    return !a->accumulate && is_index(&a->in[2]) && a->in[1].dtype == a->in[0].dtype && a->out[0].dtype == a->in[0].dtype;
}

static void run_one_hot(const hd_kernel_args *a)
{
    const hd_rows_attrs *at = a->attrs;
    const hd_tensor *index = &a->in[0], *y = &a->out[0];
    int64_t bytes = at->rows * (int64_t)hd_dtype_size(y->dtype), begin, end;
    if (!y->data) return;
    hd_split(hd_tensor_count(index), 1, a->tid, a->threads, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        int64_t row = row_at(index, i, at->first, at->rows);
        memset((char *)y->data + i * bytes, 0, (size_t)bytes);
        if (row >= 0) f32_store_as(y->data, y->dtype, i * at->rows + row, 1);
    }
}

static bool supports_one_hot(const hd_kernel_args *a)
{
    return !a->accumulate && is_index(&a->in[0]) && is_vf_dtype(a->out[0].dtype);
}

/* ---- top_k: the k best so far are kept in the result, in order ---- */

/* Whether v goes before what is at a higher position or worse: NaN is lowest, and equals keep their order. */
static bool goes_before(float v, float w)
{
    return v > w || (v == v && w != w);
}

static void top_k_row(const hd_tensor *x, int64_t from, int64_t d, float *best, int32_t *where, int64_t k)
{
    int64_t held = 0;
    for (int64_t j = 0; j < d; j++) {
        float v = f32_load_as(x->data, x->dtype, from + j);
        if (held == k && !goes_before(v, best[k - 1])) continue;
        int64_t i = held < k ? held++ : k - 1;
        for (; i > 0 && goes_before(v, best[i - 1]); i--) {
            best[i] = best[i - 1];
            where[i] = where[i - 1];
        }
        best[i] = v;
        where[i] = (int32_t)j;
    }
}

static size_t workspace_top_k(const hd_kernel_args *a, int threads)
{
    return (size_t)threads * (size_t)((const hd_topk_attrs *)a->attrs)->k * 8;
}

static void run_top_k(const hd_kernel_args *a)
{
    int64_t k = ((const hd_topk_attrs *)a->attrs)->k, d = tensor_columns(&a->in[0]), begin, end;
    hd_tensor *values = &a->out[0], *index = a->n_out > 1 ? &a->out[1] : NULL;
    float *best = (float *)a->workspace + 2 * k * a->tid;
    int32_t *where = (int32_t *)(best + k);
    hd_split(tensor_rows(&a->in[0]), 1, a->tid, a->threads, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        top_k_row(&a->in[0], r * d, d, best, where, k);
        for (int64_t i = 0; values->data && i < k; i++) f32_store_as(values->data, values->dtype, r * k + i, best[i]);
        if (index && index->data) memcpy((int32_t *)index->data + r * k, where, (size_t)k * sizeof *where);
    }
}

static bool supports_top_k(const hd_kernel_args *a)
{
    const hd_topk_attrs *at = a->attrs;
    if (a->accumulate || !is_vf_dtype(a->in[0].dtype) || !is_vf_dtype(a->out[0].dtype) || a->in[0].rank == 0) return false;
    return at->k <= tensor_columns(&a->in[0]) && (a->n_out < 2 || a->out[1].dtype == HD_I32);
}

static void run_top_k_grad(const hd_kernel_args *a)
{
    int64_t d = ((const hd_topk_attrs *)a->attrs)->extent, k = tensor_columns(&a->in[0]), begin, end;
    const hd_tensor *dv = &a->in[0], *index = &a->in[1], *dx = &a->out[0];
    int64_t bytes = d * (int64_t)hd_dtype_size(dx->dtype);
    if (!dx->data) return;
    hd_split(tensor_rows(dv), 1, a->tid, a->threads, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        memset((char *)dx->data + r * bytes, 0, (size_t)bytes);
        for (int64_t i = 0; i < k; i++) {
            int64_t j = row_at(index, r * k + i, 0, d);
            if (j < 0) continue;
            float old = f32_load_as(dx->data, dx->dtype, r * d + j);
            f32_store_as(dx->data, dx->dtype, r * d + j, old + f32_load_as(dv->data, dv->dtype, r * k + i));
        }
    }
}

static bool supports_top_k_grad(const hd_kernel_args *a)
{
    return !a->accumulate && is_vf_dtype(a->in[0].dtype) && is_index(&a->in[1]) && is_vf_dtype(a->out[0].dtype) && a->in[0].rank > 0;
}

const hd_kernel HD_ISA(hd_kernels_index)[] = {
    {"gather", supports_gather, NULL, run_gather},
    {"scatter_add", supports_scatter_add, NULL, run_scatter_add},
    {"update_rows", supports_update_rows, NULL, run_update_rows},
    {"one_hot", supports_one_hot, NULL, run_one_hot},
    {"top_k", supports_top_k, workspace_top_k, run_top_k},
    {"top_k_grad", supports_top_k_grad, NULL, run_top_k_grad},
    {0},
};

#else
const hd_kernel HD_ISA(hd_kernels_index)[] = {{0}};
#endif
