/* kv.h: the pool of K/V blocks: who holds which, which are free, and which hold a beginning that another sequence may share.
 *
 * The pool moves numbers only; what is in a block is the runner's. Everything here belongs to one thread, the engine's: no lock.
 *
 * Access rules
 *  1. A block is in one of three states: *held* (refs >= 1), *cached* (refs 0, findable, in the list by time of last use) or *free* (refs 0, not findable).
 *  2. Only who holds a block may read it, retain it or release it; each hold is released once.
 *  3. A block may be written to only while it is held once and isn't findable (hd_kv_writable). Whoever wants to write to another takes a new one, has it
 *     copied, and releases the old one after that.
 *  4. Only full blocks are made findable, after all of their rows are computed; they never change again.
 *  5. What is found by is (parent, salt, tokens): the *serial* of the block before it (0: none), and its own tokens, all compared. A serial is given once in
 *     the life of a pool, and stands for the whole beginning up to there: equal serials mean equal tokens from the first on and an equal salt. No wrong
 *     share is possible, whatever the hash.
 *  6. hd_kv_take gives a free block, else the cached one that was released longest ago. A sequence releases its last block first, so that a beginning
 *     outlives what follows it. */
#ifndef HD_SERVE_KV_H
#define HD_SERVE_KV_H

#include "base/error.h"

typedef struct hd_kv_block {
    int32_t refs;
    int32_t fill;            /* rows in use; counted in rows_held while held */
    int32_t next, prev;      /* in the list of free or cached blocks; -1: none */
    int32_t chain;           /* next of the same bucket; -1: none */
    uint64_t serial, parent; /* serial 0: not findable */
    uint64_t salt;
} hd_kv_block;

typedef struct hd_kv_list { int32_t first, last; int64_t count; } hd_kv_list;

typedef struct hd_kv {
    int64_t blocks, block;   /* how many; tokens in each */
    hd_kv_block *of;         /* [blocks] */
    int32_t *tokens;         /* [blocks][block]: of findable blocks */
    int32_t *bucket;         /* [buckets]: first of the chain; -1: empty */
    int32_t *count;          /* [blocks]: for hd_kv_check */
    int64_t buckets;         /* a power of two */
    hd_kv_list free, cached; /* taken from the front; released to the back */
    int64_t findable, rows_held;
    uint64_t next_serial;
} hd_kv;

/* ---- life cycle ---- */

int hd_kv_init(hd_kv *k, int64_t blocks, int64_t block, hd_error *err); /* HD_ENOMEM leaves *k empty */
void hd_kv_clear(hd_kv *k);                                             /* frees it all */

/* ---- holding ---- */

int64_t hd_kv_available(const hd_kv *k);           /* blocks that can be taken: free and cached ones */
int64_t hd_kv_held(const hd_kv *k);
int32_t hd_kv_take(hd_kv *k);                      /* a block held once, empty; -1: there is none */
void hd_kv_retain(hd_kv *k, int32_t block);
void hd_kv_release(hd_kv *k, int32_t block);
bool hd_kv_writable(const hd_kv *k, int32_t block);
void hd_kv_fill(hd_kv *k, int32_t block, int64_t rows); /* notes how many rows are in use */

/* ---- finding ---- */

/* The block with these tokens after that parent, now held once more; -1: there is none. tokens: [block]. */
int32_t hd_kv_find(hd_kv *k, uint64_t parent, uint64_t salt, const int32_t *tokens);
/* Makes a full block findable. Where an equal one is findable already, the caller's hold moves to that one, which is returned; else `block` is. */
int32_t hd_kv_publish(hd_kv *k, int32_t block, uint64_t parent, uint64_t salt, const int32_t *tokens);
uint64_t hd_kv_serial(const hd_kv *k, int32_t block);

/* ---- checking ---- */

/* Counts everything again. holds (may be NULL): [blocks] how often each is held, as its holders know. HD_EINVAL and one sentence where something doesn't
 * agree. */
int hd_kv_check(hd_kv *k, const int32_t *holds, hd_error *err);

#endif
