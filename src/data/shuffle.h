/* shuffle.h: a random order of n things that follows from its key alone.. */
#ifndef HD_DATA_SHUFFLE_H
#define HD_DATA_SHUFFLE_H

#include "base/rng.h"

/* Fills order[0..n) with 0 .. n-1, shuffled (Fisher and Yates) when `shuffle`. */
static inline void hd_shuffle(uint32_t *order, uint32_t n, uint64_t key, bool shuffle) {
    hd_rng r = hd_rng_new(key);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t j = shuffle ? (uint32_t)hd_rng_below(&r, (uint64_t)i + 1) : i;
        order[i] = order[j];
        order[j] = i;
    }
}

#endif
