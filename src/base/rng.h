/* rng.h: Philox4x32-10, a counter-based generator (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011).
 * The same key and counter give the same four words on any machine, in any order, by any thread. */
#ifndef HD_BASE_RNG_H
#define HD_BASE_RNG_H

#include <stdint.h>

typedef struct hd_philox { uint32_t word[4]; } hd_philox;

hd_philox hd_philox_block(uint64_t key, uint64_t counter_low, uint64_t counter_high);

/* 64-bit hash of a string (FNV-1a), for sites: a value's stable path. */
uint64_t hd_hash_string(const char *s);
/* Mixes b into a, for keys made of (seed, step, site). */
uint64_t hd_hash_mix(uint64_t a, uint64_t b);

/* Uniform in [0, 1) with 24 bits, and in (0, 1] with 32 bits, from one word. */
static inline float hd_uniform24(uint32_t w) { return (float)(w >> 8) * 0x1p-24f; }
static inline double hd_uniform_open(uint32_t w) { return ((double)w + 1.0) * 0x1p-32; }

/* A sequential stream over the same generator. */
typedef struct hd_rng { uint64_t key, counter; hd_philox block; int left; } hd_rng;
hd_rng hd_rng_new(uint64_t seed);
uint32_t hd_rng_u32(hd_rng *r);
uint64_t hd_rng_below(hd_rng *r, uint64_t n); /* unbiased, in [0, n), n > 0 */
double hd_rng_uniform(hd_rng *r);             /* [0, 1), 53 bits */
double hd_rng_normal(hd_rng *r);              /* mean 0, variance 1 (Box-Muller) */

#endif
