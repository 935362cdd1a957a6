#include "base/rng.h"

#include <math.h>

/* The constants of Salmon et al., section 3.3 (philox4x32, ten rounds). */
static const uint32_t multiplier[2] = { 0xd2511f53u, 0xcd9e8d57u };
static const uint32_t weyl[2] = { 0x9e3779b9u, 0xbb67ae85u };

hd_philox hd_philox_block(uint64_t key, uint64_t counter_low, uint64_t counter_high)
{
    uint32_t c0 = (uint32_t)counter_low, c1 = (uint32_t)(counter_low >> 32);
    uint32_t c2 = (uint32_t)counter_high, c3 = (uint32_t)(counter_high >> 32);
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)multiplier[0] * c0, p1 = (uint64_t)multiplier[1] * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        k0 += weyl[0];
        k1 += weyl[1];
    }
    return (hd_philox){ { c0, c1, c2, c3 } };
}

uint64_t hd_hash_string(const char *s)
{
    uint64_t h = 0xcbf29ce484222325ull;
    for (; *s; s++) h = (h ^ (unsigned char)*s) * 0x100000001b3ull;
    return h;
}

/* The finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014) over both words. */
uint64_t hd_hash_mix(uint64_t a, uint64_t b)
{
    uint64_t x = a + 0x9e3779b97f4a7c15ull + (b ^ (b >> 29)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

hd_rng hd_rng_new(uint64_t seed) { return (hd_rng){ .key = seed }; }

uint32_t hd_rng_u32(hd_rng *r)
{
    if (r->left <= 0) {
        r->block = hd_philox_block(r->key, r->counter++, 0);
        r->left = 4;
    }
    return r->block.word[4 - r->left--];
}

static uint64_t next_u64(hd_rng *r)
{
    uint64_t low = hd_rng_u32(r);
    return low | (uint64_t)hd_rng_u32(r) << 32;
}

uint64_t hd_rng_below(hd_rng *r, uint64_t n)
{
    uint64_t reject_below = -n % n; /* 2^64 mod n: what is left is a multiple of n */
    uint64_t x;
    do x = next_u64(r);
    while (x < reject_below);
    return x % n;
}

double hd_rng_uniform(hd_rng *r) { return (double)(next_u64(r) >> 11) * 0x1p-53; }

double hd_rng_normal(hd_rng *r)
{
    double radius = sqrt(-2 * log(1 - hd_rng_uniform(r)));
    return radius * cos(2 * M_PI * hd_rng_uniform(r));
}
