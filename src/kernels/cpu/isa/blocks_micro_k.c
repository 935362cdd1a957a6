/* blocks_micro_k.c: register tiles for K types. */
#include "kernels/cpu/isa/blocks_micro.h"

#if HD_BLOCKS_HERE
HD_BLOCKS_KINDS_K(HD_BLOCKS_KIND)
HD_BLOCKS_KINDS_K(HD_BLOCKS_TILES)

static const hd_blocks_micro tiles[HD_BLOCKS_KIND_COUNT][2][HD_BLOCKS_ROWS] = {HD_BLOCKS_KINDS_K(HD_BLOCKS_ENTRIES)};

hd_blocks_micro HD_ISA(hd_blocks_micro_of_k)(int kind, int rows, int panels)
{
    return tiles[kind][panels > 1][rows - 1];
}
#endif
