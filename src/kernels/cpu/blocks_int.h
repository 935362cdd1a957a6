/* blocks_int.h: how block-quantized weights lie when packed (blocks.h), shared by the packing and the kernels of each instruction set.
 *
 * A panel is 16 columns; its k goes in chunks of 256 (the last may be shorter), one after the other, and panels lie one after the other. A word is four
 * neighbours in k of one column, a vector the same word of the panel's 16 columns (64 bytes); integers are unsigned: the type's number plus `offset`.
 * A chunk is a header, then the integers, each a multiple of 64 bytes:
 *   f16           no header; for each k, 16 f16
 *   blocks of 32  header: f16 scales [block][16], then (minimum) f16 minima [block][16]
 *   K types       header: f16 scale [16], f16 minimum [16] (or 32 bytes of nothing), i8 scales [sub-block][16], (minimum) u8 [pair of sub-blocks][16][2]
 * The integers keep the order of words in the file:
 *   8 bits        vectors of words 0, 1, 2, ...
 *   4 bits        blocks of 32: four vectors a block, words i in the low and i + 4 in the high halves of bytes; K types: eight vectors for 64 k, words i and i + 8
 *   5 bits        five vectors for 32 k: words 0 .. 4 in the low five bits of bytes; words 5, 6 and 7 in the high three, in pieces (put_five)
 *   6 bits        three vectors for 16 k: words 0, 1, 2 in the low six bits of bytes; word 3 in the high two, its lowest bits in the first vector */
#ifndef HD_KERNELS_CPU_BLOCKS_INT_H
#define HD_KERNELS_CPU_BLOCKS_INT_H

#include "kernels/cpu/blocks.h"

#define HD_BLOCKS_WIDTH 16  /* columns of a panel */
#define HD_BLOCKS_CHUNK 256 /* k of a chunk */

/* name, bits, elements of a scale, K type (integer scales under one f16), minima, numbers by table (IQ4), offset */
#define HD_BLOCKS_KINDS_32(X) \
    X(F16, 16, 1, false, false, false, 0) \
    X(B8, 8, 32, false, false, false, 128) \
    X(B4, 4, 32, false, false, false, 8) \
    X(B4T, 4, 32, false, false, true, 128) \
    X(B4M, 4, 32, false, true, false, 0) \
    X(B5, 5, 32, false, false, false, 16) \
    X(B5M, 5, 32, false, true, false, 0)
#define HD_BLOCKS_KINDS_K(X) \
    X(K4M, 4, 32, true, true, false, 0) \
    X(K5M, 5, 32, true, true, false, 0) \
    X(K6, 6, 16, true, false, false, 32) \
    X(K4S, 4, 16, true, false, false, 4) \
    X(K4SM, 4, 16, true, true, false, 0) \
    X(K4T, 4, 32, true, false, true, 128)
#define HD_BLOCKS_KINDS(X) HD_BLOCKS_KINDS_32(X) HD_BLOCKS_KINDS_K(X)

#define HD_BLOCKS_ENUM(name, ...) HD_BLOCKS_##name,
enum { HD_BLOCKS_KINDS(HD_BLOCKS_ENUM) HD_BLOCKS_KIND_COUNT };

typedef struct hd_blocks_kind {
    int bits, sub;
    bool super, minimum, table;
    int offset;
} hd_blocks_kind;

extern const hd_blocks_kind hd_blocks_kinds[HD_BLOCKS_KIND_COUNT];

/* The kind that a type is packed as (HD_BLOCKS_...), or -1. */
int hd_blocks_kind_of(const hd_quant *type);

/* Bytes of a chunk's header, and of the whole chunk, when it has n elements of k. */
static inline int64_t hd_blocks_header_bytes(const hd_blocks_kind *kind, int64_t n)
{
    if (kind->bits == 16) return 0;
    int64_t scales = n / kind->sub * 16 * (1 + kind->minimum);
    return kind->super ? 64 + scales : (2 * scales + 63) / 64 * 64;
}
static inline int64_t hd_blocks_chunk_bytes(const hd_blocks_kind *kind, int64_t n)
{
    return hd_blocks_header_bytes(kind, n) + (n * 2 * kind->bits + 63) / 64 * 64;
}
static inline int64_t hd_blocks_panel_bytes(const hd_blocks_kind *kind, int64_t k)
{
    int64_t tail = k % HD_BLOCKS_CHUNK;
    return k / HD_BLOCKS_CHUNK * hd_blocks_chunk_bytes(kind, HD_BLOCKS_CHUNK) + (tail ? hd_blocks_chunk_bytes(kind, tail) : 0);
}

#endif
