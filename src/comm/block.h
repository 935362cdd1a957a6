/* block.h: what one index of a group gives another: a strided block of elements, and walking through a part of it.
 *
 * A block is [outer][rows][run] elements, runs being contiguous on both sides. Element e counts through all of it in that order, so that a part is
 * a range [lo, hi) that both sides cut in the same way. */
#ifndef HD_COMM_BLOCK_H
#define HD_COMM_BLOCK_H

#include "comm/comm.h"

typedef struct hd_block {
    int64_t outer, rows, run;
    int64_t src, src_outer, src_row; /* elements: first one in `in` of the giver, strides */
    int64_t dst, dst_outer, dst_row; /* the same in `out` of the taker */
} hd_block;

/* What index i of n gives to index j: of ALL_GATHER i's piece, of REDUCE_SCATTER and ALL_REDUCE i's addend to j's piece, of BROADCAST everything
 * when i is the root (else nothing), of PERMUTE i's piece to the index `peer` before it, of ALL_TO_ALL a piece of b out of a piece of a. Strides are as simple as can be. */
hd_block hd_block_of(const hd_transfer *t, int n, int i, int j);

/* Of a transfer that is a list: its parts; one, itself, where it is none. */
static inline int hd_transfer_parts(const hd_transfer *t) { return t->n_parts ? t->n_parts : 1; }
static inline const hd_transfer *hd_transfer_part(const hd_transfer *t, int i) { return t->n_parts ? &t->part[i] : t; }

/* What index i of n gives to index j, part by part; of ALL_REDUCE a piece of all parts one behind the other, so that it is whole where they lie so in memory. */
typedef struct hd_block_list { const hd_transfer *t; int n, i, j, next; int64_t begin, end, before; } hd_block_list;
hd_block_list hd_blocks_of(const hd_transfer *t, int n, int i, int j);
/* The next block that isn't empty and the part it is of; false at the end. */
bool hd_blocks_next(hd_block_list *l, const hd_transfer **part, hd_block *b);

int64_t hd_block_count(const hd_block *b);
bool hd_block_src_contiguous(const hd_block *b);
bool hd_block_dst_contiguous(const hd_block *b);

/* Walking: `at` is the element reached; next gives the longest run from there that is contiguous on both sides and ends by hi; 0 at the end. */
int64_t hd_block_next(const hd_block *b, int64_t at, int64_t hi, int64_t *src, int64_t *dst);

/* Copies elements [lo, hi) of `size` bytes to the same place of n_out memories. stream: past the caches, for what is far larger than they are. */
void hd_block_copy(const hd_block *b, int64_t lo, int64_t hi, size_t size, const void *in, void *const *out, int n_out, bool stream);
/* Elements [lo, hi) from `in` into contiguous memory, and from contiguous memory into `out`. */
void hd_block_pack(const hd_block *b, int64_t lo, int64_t hi, size_t size, const void *in, void *packed);
void hd_block_unpack(const hd_block *b, int64_t lo, int64_t hi, size_t size, const void *packed, void *out);

#endif
