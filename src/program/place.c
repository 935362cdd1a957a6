/* place.c: offsets for blocks whose lifetimes are known: several greedy orders, best fit, the least arena wins. */
#include <assert.h>
#include <stdlib.h>

#include "program/program.h"

enum { ALIGN = 64, PAGE = 4096 };
#define BIG (1 << 20)

static int64_t aligned_size(int64_t bytes)
{
    int64_t unit = bytes >= BIG ? PAGE : ALIGN;
    return (bytes + unit - 1) / unit * unit;
}

static int64_t align_offset(int64_t offset, int64_t bytes)
{
    int64_t unit = bytes >= BIG ? PAGE : ALIGN;
    return (offset + unit - 1) / unit * unit;
}

static bool overlap_in_time(const hd_block *a, const hd_block *b)
{
    return a->first <= b->last && b->first <= a->last;
}

/* ---- the order in which blocks are placed ---- */

typedef struct entry {
    double key; /* larger first */
    int block;
} entry;

static int compare_entries(const void *x, const void *y)
{
    const entry *a = x, *b = y;
    if (a->key != b->key) return a->key < b->key ? 1 : -1;
    return a->block - b->block;
}

static double key_size(const hd_block *b) { return (double)b->bytes; }
static double key_area(const hd_block *b) { return (double)b->bytes * (b->last - b->first + 1); }
static double key_life(const hd_block *b) { return (double)(b->last - b->first) * 0x1p40 + (double)b->bytes; }
static double key_start(const hd_block *b) { return -(double)b->first * 0x1p40 + (double)b->bytes; }

static double (*const keys[])(const hd_block *) = {key_size, key_area, key_life, key_start};

/* ---- one greedy placement ---- */

typedef struct placing {
    const hd_block *blocks;
    int n;
    entry *order;
    int64_t *offset, *best; /* [n] */
    int *placed;            /* blocks placed so far, by offset; n_placed of them */
    int n_placed;
} placing;

/* The offset in the smallest gap that holds block b among those live with it, or behind them all. */
static int64_t find_offset(const placing *p, int b)
{
    const hd_block *block = &p->blocks[b];
    int64_t size = aligned_size(block->bytes), end = 0, best = -1, best_gap = INT64_MAX;
    for (int i = 0; i < p->n_placed; i++) {
        int other = p->placed[i];
        if (!overlap_in_time(block, &p->blocks[other])) continue;
        int64_t at = align_offset(end, block->bytes), gap = p->offset[other] - at;
        if (gap >= size && gap < best_gap) best = at, best_gap = gap;
        int64_t other_end = p->offset[other] + aligned_size(p->blocks[other].bytes);
        if (other_end > end) end = other_end;
    }
    return best >= 0 ? best : align_offset(end, block->bytes);
}

static void insert_placed(placing *p, int b)
{
    int i = p->n_placed++;
    for (; i > 0 && p->offset[p->placed[i - 1]] > p->offset[b]; i--) p->placed[i] = p->placed[i - 1];
    p->placed[i] = b;
}

static int64_t place_in_order(placing *p, double (*key)(const hd_block *))
{
    int64_t size = 0;
    for (int i = 0; i < p->n; i++) p->order[i] = (entry){key(&p->blocks[i]), i};
    qsort(p->order, (size_t)p->n, sizeof *p->order, compare_entries);
    p->n_placed = 0;
    for (int i = 0; i < p->n; i++) {
        int b = p->order[i].block;
        p->offset[b] = 0;
        if (p->blocks[b].bytes <= 0) continue;
        p->offset[b] = find_offset(p, b);
        insert_placed(p, b);
        int64_t end = p->offset[b] + aligned_size(p->blocks[b].bytes);
        if (end > size) size = end;
    }
    return size;
}

/* ---- the lower bound ---- */

typedef struct edge { int time; int64_t change; } edge;

static int compare_edges(const void *x, const void *y)
{
    const edge *a = x, *b = y;
    if (a->time != b->time) return a->time < b->time ? -1 : 1;
    return (a->change > b->change) - (a->change < b->change); /* frees first */
}

static int64_t most_live(const hd_block *blocks, int n, edge *edges)
{
    int64_t live = 0, most = 0;
    for (int i = 0; i < n; i++) {
        int64_t size = blocks[i].bytes > 0 ? aligned_size(blocks[i].bytes) : 0;
        edges[2 * i] = (edge){blocks[i].first, size};
        edges[2 * i + 1] = (edge){blocks[i].last + 1, -size};
    }
    qsort(edges, 2 * (size_t)n, sizeof *edges, compare_edges);
    for (int i = 0; i < 2 * n; i++) {
        live += edges[i].change;
        if (live > most) most = live;
    }
    return most;
}

static int64_t place_best(placing *p, int64_t bound)
{
    int64_t best = -1;
    for (size_t k = 0; k < sizeof keys / sizeof keys[0] && best != bound; k++) {
        int64_t size = place_in_order(p, keys[k]);
        if (best >= 0 && size >= best) continue;
        best = size;
        memcpy(p->best, p->offset, (size_t)p->n * sizeof *p->best);
    }
    return best;
}

int hd_place(hd_block *blocks, int n, int64_t *size, int64_t *bound, hd_error *err)
{
    *size = *bound = 0;
    if (n == 0) return 0;
    for (int i = 0; i < n; i++) assert(blocks[i].first <= blocks[i].last);
    size_t count = (size_t)n;
    placing p = {.blocks = blocks, .n = n};
    p.order = hd_malloc(count * sizeof *p.order);
    p.offset = hd_malloc(count * sizeof *p.offset);
    p.best = hd_malloc(count * sizeof *p.best);
    p.placed = hd_malloc(count * sizeof *p.placed);
    edge *edges = hd_malloc(2 * count * sizeof *edges);
    int rc = 0;
    if (!p.order || !p.offset || !p.best || !p.placed || !edges) {
        rc = hd_fail_memory(err, count * sizeof *edges, "placing buffers");
    } else {
        *bound = most_live(blocks, n, edges);
        *size = place_best(&p, *bound);
        for (int i = 0; i < n; i++) blocks[i].offset = p.best[i];
    }
    hd_free(p.order);
    hd_free(p.offset);
    hd_free(p.best);
    hd_free(p.placed);
    hd_free(edges);
    return rc;
}
