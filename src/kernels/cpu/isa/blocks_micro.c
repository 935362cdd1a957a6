/* blocks_micro.c: register tiles for f16 and for blocks of 32. */
#include "kernels/cpu/isa/blocks_micro.h"

#if HD_BLOCKS_HERE
HD_BLOCKS_KINDS_32(HD_BLOCKS_KIND)
HD_BLOCKS_KINDS_32(HD_BLOCKS_TILES)

static const hd_blocks_micro tiles[HD_BLOCKS_KIND_COUNT][2][HD_BLOCKS_ROWS] = {HD_BLOCKS_KINDS_32(HD_BLOCKS_ENTRIES)};

hd_blocks_micro HD_ISA(hd_blocks_micro_of)(int kind, int rows, int panels)
{
    if (hd_blocks_kinds[kind].super) return HD_ISA(hd_blocks_micro_of_k)(kind, rows, panels);
    return tiles[kind][panels > 1][rows - 1];
}
#endif
