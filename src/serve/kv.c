#include "serve/kv.h"

#include <assert.h>
#include <string.h>
#include "base/mem.h"
#include "base/rng.h"

/* ---- lists ---- */

static void list_append(hd_kv *k, hd_kv_list *l, int32_t b)
{
    k->of[b].next = -1;
    k->of[b].prev = l->last;
    if (l->last >= 0) k->of[l->last].next = b;
    else l->first = b;
    l->last = b;
    l->count++;
}

static void list_remove(hd_kv *k, hd_kv_list *l, int32_t b)
{
    hd_kv_block *x = &k->of[b];
    if (x->prev >= 0) k->of[x->prev].next = x->next;
    else l->first = x->next;
    if (x->next >= 0) k->of[x->next].prev = x->prev;
    else l->last = x->prev;
    x->next = x->prev = -1;
    l->count--;
}

/* ---- life cycle ---- */

int hd_kv_init(hd_kv *k, int64_t blocks, int64_t block, hd_error *err)
{
    *k = (hd_kv){.blocks = blocks, .block = block, .buckets = 16, .free = {-1, -1, 0}, .cached = {-1, -1, 0}, .next_serial = 1};
    if (blocks < 1 || block < 1 || blocks > INT32_MAX / 2 || block > INT32_MAX / 2)
        return hd_fail(err, HD_EINVAL, "no pool of %lld K/V blocks of %lld tokens", (long long)blocks, (long long)block);
    while (k->buckets < 2 * blocks) k->buckets *= 2;
    k->of = hd_calloc((size_t)blocks, sizeof *k->of);
    k->tokens = hd_calloc((size_t)blocks, (size_t)block * sizeof *k->tokens);
    k->bucket = hd_calloc((size_t)k->buckets, sizeof *k->bucket);
    k->count = hd_calloc((size_t)blocks, sizeof *k->count);
    if (!k->of || !k->tokens || !k->bucket || !k->count) {
        hd_kv_clear(k);
        return hd_fail_memory(err, (size_t)blocks * (sizeof *k->of + (size_t)block * 4), "the table of K/V blocks");
    }
    for (int64_t i = 0; i < k->buckets; i++) k->bucket[i] = -1;
    for (int32_t b = 0; b < blocks; b++) {
        k->of[b].chain = -1;
        list_append(k, &k->free, b);
    }
    return 0;
}

void hd_kv_clear(hd_kv *k)
{
    hd_free(k->of);
    hd_free(k->tokens);
    hd_free(k->bucket);
    hd_free(k->count);
    *k = (hd_kv){0};
}

/* ---- finding ---- */

static int64_t bucket_of(const hd_kv *k, uint64_t parent, uint64_t salt, const int32_t *tokens)
{
    uint64_t h = hd_hash_mix(parent, salt);
    for (int64_t i = 0; i < k->block; i++) {
        h = (h ^ (uint32_t)tokens[i]) * 0x9e3779b97f4a7c15u;
        h ^= h >> 29;
    }
    return (int64_t)(h & (uint64_t)(k->buckets - 1));
}

static int32_t *tokens_of(const hd_kv *k, int32_t b) { return k->tokens + b * k->block; }

static int32_t look_up(const hd_kv *k, int64_t bucket, uint64_t parent, uint64_t salt, const int32_t *tokens)
{
    for (int32_t b = k->bucket[bucket]; b >= 0; b = k->of[b].chain) {
        const hd_kv_block *x = &k->of[b];
        if (x->parent == parent && x->salt == salt && !memcmp(tokens_of(k, b), tokens, (size_t)k->block * sizeof *tokens)) return b;
    }
    return -1;
}

static void unlink_findable(hd_kv *k, int32_t b)
{
    hd_kv_block *x = &k->of[b];
    int32_t *at = &k->bucket[bucket_of(k, x->parent, x->salt, tokens_of(k, b))];
    while (*at != b) at = &k->of[*at].chain;
    *at = x->chain;
    x->chain = -1;
    x->serial = 0;
    k->findable--;
}

int32_t hd_kv_find(hd_kv *k, uint64_t parent, uint64_t salt, const int32_t *tokens)
{
    int32_t b = look_up(k, bucket_of(k, parent, salt, tokens), parent, salt, tokens);
    if (b >= 0) hd_kv_retain(k, b);
    return b;
}

int32_t hd_kv_publish(hd_kv *k, int32_t b, uint64_t parent, uint64_t salt, const int32_t *tokens)
{
    hd_kv_block *x = &k->of[b];
    assert(x->refs > 0);
    if (x->serial) return b;
    int64_t bucket = bucket_of(k, parent, salt, tokens);
    int32_t same = look_up(k, bucket, parent, salt, tokens);
    if (same >= 0) {
        hd_kv_retain(k, same);
        hd_kv_release(k, b);
        return same;
    }
    memcpy(tokens_of(k, b), tokens, (size_t)k->block * sizeof *tokens);
    hd_kv_fill(k, b, k->block);
    x->serial = k->next_serial++;
    x->parent = parent;
    x->salt = salt;
    x->chain = k->bucket[bucket];
    k->bucket[bucket] = b;
    k->findable++;
    return b;
}

uint64_t hd_kv_serial(const hd_kv *k, int32_t b) { return k->of[b].serial; }

/* ---- holding ---- */

int64_t hd_kv_available(const hd_kv *k) { return k->free.count + k->cached.count; }
int64_t hd_kv_held(const hd_kv *k) { return k->blocks - k->free.count - k->cached.count; }

int32_t hd_kv_take(hd_kv *k)
{
    hd_kv_list *from = k->free.count ? &k->free : &k->cached;
    int32_t b = from->first;
    if (b < 0) return -1;
    list_remove(k, from, b);
    if (k->of[b].serial) unlink_findable(k, b);
    k->of[b].refs = 1;
    k->of[b].fill = 0;
    return b;
}

void hd_kv_retain(hd_kv *k, int32_t b)
{
    hd_kv_block *x = &k->of[b];
    assert(x->refs > 0 || x->serial);
    if (x->refs++) return;
    list_remove(k, &k->cached, b);
    k->rows_held += x->fill;
}

void hd_kv_release(hd_kv *k, int32_t b)
{
    hd_kv_block *x = &k->of[b];
    assert(x->refs > 0);
    if (--x->refs) return;
    k->rows_held -= x->fill;
    list_append(k, x->serial ? &k->cached : &k->free, b);
}

bool hd_kv_writable(const hd_kv *k, int32_t b) { return k->of[b].refs == 1 && !k->of[b].serial; }

void hd_kv_fill(hd_kv *k, int32_t b, int64_t rows)
{
    k->rows_held += rows - k->of[b].fill;
    k->of[b].fill = (int32_t)rows;
}

/* ---- checking ---- */

/* Walks a list both ways at once; its blocks get 1 more in k->count. */
static int check_list(hd_kv *k, const hd_kv_list *l, bool cached, hd_error *err)
{
    const char *name = cached ? "cached" : "free";
    int64_t n = 0;
    int32_t before = -1;
    for (int32_t b = l->first; b >= 0; before = b, b = k->of[b].next) {
        const hd_kv_block *x = &k->of[b];
        if (++n > k->blocks) return hd_fail(err, HD_EINVAL, "the list of %s blocks is a ring", name);
        if (x->prev != before) return hd_fail(err, HD_EINVAL, "block %d: broken list of %s blocks", b, name);
        if (x->refs) return hd_fail(err, HD_EINVAL, "block %d is %s and held %d times", b, name, x->refs);
        if ((x->serial != 0) != cached) return hd_fail(err, HD_EINVAL, "block %d is %s and %s", b, name, x->serial ? "findable" : "can't be found");
        k->count[b]++;
    }
    if (l->last != before || l->count != n)
        return hd_fail(err, HD_EINVAL, "%lld %s blocks are listed, %lld counted", (long long)n, name, (long long)l->count);
    return 0;
}

static int check_buckets(hd_kv *k, hd_error *err)
{
    int64_t n = 0;
    for (int64_t i = 0; i < k->buckets; i++)
        for (int32_t b = k->bucket[i]; b >= 0; b = k->of[b].chain) {
            const hd_kv_block *x = &k->of[b];
            if (++n > k->blocks) return hd_fail(err, HD_EINVAL, "a chain of findable blocks is a ring");
            if (!x->serial || x->serial >= k->next_serial || x->parent >= x->serial)
                return hd_fail(err, HD_EINVAL, "block %d: findable without a right serial", b);
            if (bucket_of(k, x->parent, x->salt, tokens_of(k, b)) != i) return hd_fail(err, HD_EINVAL, "block %d is in a wrong bucket", b);
            if (look_up(k, i, x->parent, x->salt, tokens_of(k, b)) != b) return hd_fail(err, HD_EINVAL, "block %d is findable twice", b);
        }
    if (n != k->findable) return hd_fail(err, HD_EINVAL, "%lld blocks can be found, %lld counted", (long long)n, (long long)k->findable);
    return 0;
}

int hd_kv_check(hd_kv *k, const int32_t *holds, hd_error *err)
{
    memset(k->count, 0, (size_t)k->blocks * sizeof *k->count);
    int rc = check_list(k, &k->free, false, err);
    if (!rc) rc = check_list(k, &k->cached, true, err);
    if (!rc) rc = check_buckets(k, err);
    int64_t rows = 0, findable = 0;
    for (int32_t b = 0; b < k->blocks && !rc; b++) {
        const hd_kv_block *x = &k->of[b];
        if (k->count[b] + (x->refs > 0) != 1)
            rc = hd_fail(err, HD_EINVAL, "block %d is in %d lists and held %d times", b, k->count[b], x->refs);
        if (!rc && holds && holds[b] != x->refs) rc = hd_fail(err, HD_EINVAL, "block %d is held %d times, counted %d", b, holds[b], x->refs);
        if (x->refs) rows += x->fill;
        findable += x->serial != 0;
    }
    if (!rc && rows != k->rows_held) rc = hd_fail(err, HD_EINVAL, "%lld rows are in held blocks, counted %lld", (long long)rows, (long long)k->rows_held);
    if (!rc && findable != k->findable)
        rc = hd_fail(err, HD_EINVAL, "%lld blocks have a serial, %lld can be found", (long long)findable, (long long)k->findable);
    return rc;
}
