#include "comm/block.h"

#include <string.h>

#include "base/thread.h"
#include "comm/reduce.h"

/* Elements of an even share of ALL_REDUCE: whole cache lines of f32. */
enum { REDUCE_UNIT = 16 };

static hd_block all_to_all_block(const hd_transfer *t, int n, int i, int j)
{
    int64_t a = t->offset[i + 1] - t->offset[i], whole_a = t->offset[n], b = t->to_offset[j + 1] - t->to_offset[j], whole_b = t->to_offset[n];
    int64_t outer = t->outer, middle = t->middle, inner = t->inner;
    if (t->a_first)
        return (hd_block){outer, a * middle, b * inner,
                          t->to_offset[j] * inner, a * middle * whole_b * inner, whole_b * inner,
                          t->offset[i] * middle * b * inner, whole_a * middle * b * inner, b * inner};
    return (hd_block){outer, b * middle, a * inner,
                      t->to_offset[j] * middle * a * inner, whole_b * middle * a * inner, a * inner,
                      t->offset[i] * inner, b * middle * whole_a * inner, whole_a * inner};
}

static hd_block raw_block(const hd_transfer *t, int n, int i, int j)
{
    int64_t begin, end, piece, whole;
    switch (t->kind) {
    case HD_ALL_REDUCE:
        hd_split(t->count, REDUCE_UNIT, j, n, &begin, &end);
        return (hd_block){1, 1, end - begin, begin, 0, 0, begin, 0, 0};
    case HD_REDUCE_SCATTER:
        piece = (t->offset[j + 1] - t->offset[j]) * t->inner;
        whole = t->offset[n] * t->inner;
        return (hd_block){t->outer, 1, piece, t->offset[j] * t->inner, whole, 0, 0, piece, 0};
    case HD_ALL_GATHER:
        piece = (t->offset[i + 1] - t->offset[i]) * t->inner;
        whole = t->offset[n] * t->inner;
        return (hd_block){t->outer, 1, piece, 0, piece, 0, t->offset[i] * t->inner, whole, 0};
    case HD_ALL_TO_ALL: return all_to_all_block(t, n, i, j);
    case HD_PERMUTE:
        piece = (j + t->peer) % n == i ? t->outer * (t->offset[i + 1] - t->offset[i]) * t->inner : 0;
        return (hd_block){1, 1, piece, 0, 0, 0, 0, 0, 0};
    case HD_BROADCAST: return (hd_block){1, 1, i == t->peer ? t->count : 0, 0, 0, 0, 0, 0, 0};
    default: return (hd_block){1, 1, t->count, 0, 0, 0, 0, 0, 0};
    }
}

/* Rows that follow each other on both sides become one, and so do outer ones. */
static hd_block simplify(hd_block b)
{
    if (!b.outer || !b.rows || !b.run) return (hd_block){0};
    if (b.rows > 1 && b.src_row == b.run && b.dst_row == b.run) b.run *= b.rows, b.rows = 1;
    if (b.rows == 1 && b.outer > 1 && b.src_outer == b.run && b.dst_outer == b.run) b.run *= b.outer, b.outer = 1;
    return b;
}

hd_block hd_block_of(const hd_transfer *t, int n, int i, int j) { return simplify(raw_block(t, n, i, j)); }

hd_block_list hd_blocks_of(const hd_transfer *t, int n, int i, int j)
{
    hd_block_list l = {.t = t, .n = n, .i = i, .j = j};
    int64_t total = 0;
    for (int p = 0; p < hd_transfer_parts(t) && t->kind == HD_ALL_REDUCE; p++) total += hd_transfer_part(t, p)->count;
    if (t->kind == HD_ALL_REDUCE) hd_split(total, REDUCE_UNIT, j, n, &l.begin, &l.end);
    return l;
}

/* What of this part is in the piece of all parts. */
static hd_block reduced_block(hd_block_list *l, const hd_transfer *part)
{
    int64_t begin = l->begin - l->before, end = l->end - l->before;
    l->before += part->count;
    if (begin < 0) begin = 0;
    if (end > part->count) end = part->count;
    return end > begin ? (hd_block){1, 1, end - begin, begin, 0, 0, begin, 0, 0} : (hd_block){0};
}

bool hd_blocks_next(hd_block_list *l, const hd_transfer **part, hd_block *b)
{
    while (l->next < hd_transfer_parts(l->t)) {
        *part = hd_transfer_part(l->t, l->next++);
        *b = l->t->kind == HD_ALL_REDUCE ? reduced_block(l, *part) : hd_block_of(*part, l->n, l->i, l->j);
        if (hd_block_count(b)) return true;
    }
    return false;
}

int64_t hd_block_count(const hd_block *b) { return b->outer * b->rows * b->run; }

static bool contiguous(const hd_block *b, int64_t row, int64_t outer)
{
    return (b->rows <= 1 || row == b->run) && (b->outer <= 1 || outer == b->rows * b->run);
}

bool hd_block_src_contiguous(const hd_block *b) { return contiguous(b, b->src_row, b->src_outer); }
bool hd_block_dst_contiguous(const hd_block *b) { return contiguous(b, b->dst_row, b->dst_outer); }

int64_t hd_block_next(const hd_block *b, int64_t at, int64_t hi, int64_t *src, int64_t *dst)
{
    if (at >= hi) return 0;
    int64_t line = at / b->run, inside = at % b->run, o = line / b->rows, r = line % b->rows, left = b->run - inside;
    *src = b->src + o * b->src_outer + r * b->src_row + inside;
    *dst = b->dst + o * b->dst_outer + r * b->dst_row + inside;
    return left < hi - at ? left : hi - at;
}

/* To many outputs by pieces that stay in the first cache, so that memory is read once. */
static void copy_to_all(const char *from, void *const *out, int n_out, size_t at, size_t bytes, bool stream)
{
    enum { PIECE = 8192 };
    if (stream && n_out == 2 && (char *)out[0] + at != from && (char *)out[1] + at != from) {
        hd_copy_stream_two((char *)out[0] + at, (char *)out[1] + at, from, bytes);
        return;
    }
    size_t piece = n_out > 1 ? PIECE : bytes;
    for (size_t k = 0; k < bytes; k += piece) {
        size_t n = bytes - k < piece ? bytes - k : piece;
        for (int o = 0; o < n_out; o++) {
            char *to = (char *)out[o] + at + k;
            if (to == from + k) continue;
            if (stream) hd_copy_stream(to, from + k, n);
            else memcpy(to, from + k, n);
        }
    }
}

void hd_block_copy(const hd_block *b, int64_t lo, int64_t hi, size_t size, const void *in, void *const *out, int n_out, bool stream)
{
    int64_t src, dst, n;
    for (int64_t at = lo; (n = hd_block_next(b, at, hi, &src, &dst)) > 0; at += n)
        copy_to_all((const char *)in + (size_t)src * size, out, n_out, (size_t)dst * size, (size_t)n * size, stream);
}

void hd_block_pack(const hd_block *b, int64_t lo, int64_t hi, size_t size, const void *in, void *packed)
{
    int64_t src, dst, n;
    for (int64_t at = lo; (n = hd_block_next(b, at, hi, &src, &dst)) > 0; at += n)
        memcpy((char *)packed + (size_t)(at - lo) * size, (const char *)in + (size_t)src * size, (size_t)n * size);
}

void hd_block_unpack(const hd_block *b, int64_t lo, int64_t hi, size_t size, const void *packed, void *out)
{
    int64_t src, dst, n;
    for (int64_t at = lo; (n = hd_block_next(b, at, hi, &src, &dst)) > 0; at += n)
        memcpy((char *)out + (size_t)dst * size, (const char *)packed + (size_t)(at - lo) * size, (size_t)n * size);
}
