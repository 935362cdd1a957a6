/* columns.h: sums over rows for each column: y[D] = sum over t of term(t, column).
 *
 * Rows are cut into blocks of COLUMN_BLOCK. Within a block a column is summed in f32 in ascending order; the blocks' sums are added in
 * f64 in ascending order. Which thread does which block or strip of columns therefore changes nothing. */
#ifndef HD_KERNELS_CPU_COLUMNS_H
#define HD_KERNELS_CPU_COLUMNS_H

#include "kernels/cpu/isa/rows.h"

#define COLUMN_BLOCK 64
#define COLUMN_VECTORS 8
#define COLUMN_STRIP (COLUMN_VECTORS * HD_VL)

typedef struct column_source {
    const hd_tensor *x, *s; /* [T, D] */
    const float *mean, *rstd; /* [T] */
} column_source;

/* Term at row and elements at .. at+n-1 of the matrix; lanes past n are ignored. */
typedef vf (*column_term)(const column_source *c, int64_t row, int64_t at, int n);

/* Bytes for the blocks' sums. */
HD_INLINE size_t column_workspace(int64_t rows, int64_t columns)
{
    return (size_t)((rows + COLUMN_BLOCK - 1) / COLUMN_BLOCK) * (size_t)columns * sizeof(float);
}

HD_INLINE void column_strip(float *sum, const column_source *c, int64_t row0, int64_t row1, int64_t columns, int64_t col, column_term term)
{
    int64_t width = columns - col < COLUMN_STRIP ? columns - col : COLUMN_STRIP;
    if (width == COLUMN_STRIP) {
        vf acc[COLUMN_VECTORS];
        for (int v = 0; v < COLUMN_VECTORS; v++) acc[v] = vf_zero();
        for (int64_t r = row0; r < row1; r++)
            for (int v = 0; v < COLUMN_VECTORS; v++) acc[v] = acc[v] + term(c, r, r * columns + col + v * HD_VL, HD_VL);
        for (int v = 0; v < COLUMN_VECTORS; v++) vf_store(sum + col + v * HD_VL, acc[v]);
        return;
    }
    for (int64_t j = 0; j < width; j += HD_VL) {
        int n = lanes_left(width, j);
        vf acc = vf_zero();
        for (int64_t r = row0; r < row1; r++) acc = acc + term(c, r, r * columns + col + j, n);
        vf_store_n(sum + col + j, acc, n);
    }
}

/* y = scale * (sum of the blocks), or y += it. Columns [begin, end). */
static inline void column_finish(const hd_kernel_args *a, int64_t blocks, int64_t columns, double scale, int64_t begin, int64_t end)
{
    const float *part = a->workspace;
    hd_tensor *y = &a->out[0];
    enum { CHUNK = 64 };
    for (int64_t c = begin; c < end; c += CHUNK) {
        int n = (int)(end - c < CHUNK ? end - c : CHUNK);
        double sum[CHUNK] = {0};
        for (int64_t b = 0; b < blocks; b++)
            for (int j = 0; j < n; j++) sum[j] += part[b * columns + c + j];
        for (int j = 0; j < n; j++) {
            float v = (float)(sum[j] * scale);
            f32_store_as(y->data, y->dtype, c + j, a->accumulate ? f32_load_as(y->data, y->dtype, c + j) + v : v);
        }
    }
}

/* The same for one matrix of several, by one thread: c and y begin at the matrix, part is the thread's own. Bits as of column_sum. */
HD_INLINE void column_sum_alone(const hd_kernel_args *a, const column_source *c, void *y, float *part, int64_t rows, int64_t columns,
                                double scale, column_term term)
{
    int64_t blocks = (rows + COLUMN_BLOCK - 1) / COLUMN_BLOCK;
    hd_tensor to = a->out[0];
    hd_kernel_args mine = *a;
    to.data = y;
    mine.out = &to;
    mine.workspace = part;
    for (int64_t b = 0; b < blocks; b++)
        for (int64_t col = 0; col < columns; col += COLUMN_STRIP) {
            int64_t row0 = b * COLUMN_BLOCK, row1 = row0 + COLUMN_BLOCK < rows ? row0 + COLUMN_BLOCK : rows;
            column_strip(part + b * columns, c, row0, row1, columns, col, term);
        }
    column_finish(&mine, blocks, columns, scale, 0, columns);
}

/* out[0][D] = scale * sum over rows of term; workspace as column_workspace says. */
HD_INLINE void column_sum(const hd_kernel_args *a, const column_source *c, int64_t rows, int64_t columns, double scale, column_term term)
{
    int64_t blocks = (rows + COLUMN_BLOCK - 1) / COLUMN_BLOCK, strips = (columns + COLUMN_STRIP - 1) / COLUMN_STRIP, begin, end;
    float *part = a->workspace;
    if (!a->out[0].data) return;
    hd_split(blocks * strips, 1, a->tid, a->threads, &begin, &end);
    for (int64_t u = begin; u < end; u++) {
        int64_t b = u / strips, row0 = b * COLUMN_BLOCK, row1 = row0 + COLUMN_BLOCK < rows ? row0 + COLUMN_BLOCK : rows;
        column_strip(part + b * columns, c, row0, row1, columns, u % strips * COLUMN_STRIP, term);
    }
    hd_team_barrier(a->team, a->tid);
    hd_split(columns, HD_VL, a->tid, a->threads, &begin, &end);
    column_finish(a, blocks, columns, scale, begin, end);
}

#endif
