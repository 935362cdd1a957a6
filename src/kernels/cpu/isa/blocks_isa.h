/* blocks_isa.h: what the files of the product with block-quantized weights share at one instruction set: the rounded operand, and the register tiles.
 *
 * Levels with kernels of their own: portable, avx2 and vnni. */
#ifndef HD_KERNELS_CPU_BLOCKS_ISA_H
#define HD_KERNELS_CPU_BLOCKS_ISA_H

#include "kernels/cpu/blocks_int.h"
#include "kernels/cpu/isa/blocks_vec.h"

#define HD_BLOCKS_HERE (HD_ISA_LEVEL == 0 || HD_ISA_LEVEL == 1 || HD_ISA_LEVEL == 3)

/* Rows and panels of the largest register tile. */
#if HD_ISA_LEVEL == 3
#define HD_BLOCKS_ROWS 6
#define HD_BLOCKS_PANELS 2
#else
#define HD_BLOCKS_ROWS 1
#define HD_BLOCKS_PANELS 1
#endif

/* A chunk of one row of x, rounded; sub-blocks are the weights'. F16 weights take 256 floats instead. */
typedef struct hd_blocks_row {
    int8_t q[HD_BLOCKS_CHUNK];
    union {
        int32_t init[16]; /* [sub-block] -offset * sum of q: where a chain of products begins */
        int16_t sum[16];  /* [sub-block] K types with minima */
        float scaled[8];  /* [block] blocks of 32 with minima: scale * sum of q */
    };
    float scale[8];       /* [block] */
    char pad[32];
} hd_blocks_row;

/* One register tile over consecutive chunks of k. Rows of x lie next to each other. */
typedef struct hd_blocks_tile {
    const uint8_t *w;       /* the first panel's first chunk */
    int64_t panel_bytes, chunk_bytes;
    const uint8_t *fetch;   /* what to fetch into the second-level cache: 8 * fetch_lines lines a chunk, from here on in each panel */
    int64_t fetch_chunk_bytes;
    int fetch_lines;
    const char *x;          /* the first row's first chunk */
    int64_t x_chunk_bytes;  /* from one chunk to the next */
    int64_t k;              /* elements */
    float *acc;             /* [row][panel][16], added to */
} hd_blocks_tile;

typedef void (*hd_blocks_micro)(const hd_blocks_tile *t);

/* The tile of rows <= HD_BLOCKS_ROWS and panels (1 or HD_BLOCKS_PANELS) for a kind. */
hd_blocks_micro HD_ISA(hd_blocks_micro_of)(int kind, int rows, int panels);
/* The same for kinds of K types. */
hd_blocks_micro HD_ISA(hd_blocks_micro_of_k)(int kind, int rows, int panels);

static inline int64_t hd_blocks_row_bytes(const hd_blocks_kind *kind)
{
    return kind->bits == 16 ? HD_BLOCKS_CHUNK * 4 : (int64_t)sizeof(hd_blocks_row);
}

#endif
