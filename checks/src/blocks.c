/* blocks.c: random operations on the pool of K/V blocks (src/serve/kv.h) beside a naive model that keeps for every block all that it should be, searched
 * from end to end.
 *
 *   check_blocks [OPERATIONS [SEED]]        1,000,000 operations; after each the pool is counted again, and compared with the model
 * Sequences do what the engine's do: they find beginnings, take, write, publish, fork, copy on write, release. A block's content is modelled by the whole
 * text up to its end, so that a share of unequal beginnings shows. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "serve/kv.h"

enum { BLOCKS = 40, BLOCK = 3, SEQUENCES = 12, LONGEST = 12, SALTS = 2, TOKENS = 2 };

typedef struct text { int salt, n; int32_t tokens[LONGEST * BLOCK]; } text; /* all up to the end of a block */
typedef struct model_block { int refs, fill; bool findable; uint64_t used; text content; } model_block;
typedef struct sequence { bool live; text all; int n_table, known; int32_t table[LONGEST]; } sequence;

static hd_kv kv;
static model_block model[BLOCKS];
static sequence sequences[SEQUENCES];
static hd_rng rng;
static uint64_t clock_now;
static uint64_t counts[10];
enum { TAKES, EVICTIONS, FINDS, MISSES, PUBLISHED, MERGED, FORKS, COPIES, RELEASES, SHORTAGES };

static int pick(int n) { return (int)hd_rng_below(&rng, (uint64_t)n); }

static void fail(const char *what, const char *more)
{
    printf("  %s: %s\n", what, more);
    exit(1);
}

static text beginning(const sequence *s, int blocks)
{
    text t = s->all;
    t.n = blocks * BLOCK;
    memset(t.tokens + t.n, 0, sizeof t.tokens - (size_t)t.n * sizeof *t.tokens);
    return t;
}

static bool same(const text *a, const text *b) { return a->salt == b->salt && a->n == b->n && !memcmp(a->tokens, b->tokens, (size_t)a->n * sizeof *a->tokens); }

/* ---- the model ---- */

static int model_find(const text *t)
{
    for (int b = 0; b < BLOCKS; b++)
        if (model[b].findable && same(&model[b].content, t)) return b;
    return -1;
}

static int model_free(void)
{
    int n = 0;
    for (int b = 0; b < BLOCKS; b++) n += !model[b].refs;
    return n;
}

/* Which may be taken: any free one, else only the cached one that was used longest ago. */
static void model_take(int b)
{
    int oldest = -1;
    bool any_free = false;
    for (int i = 0; i < BLOCKS; i++) {
        if (model[i].refs) continue;
        if (!model[i].findable) any_free = true;
        else if (oldest < 0 || model[i].used < model[oldest].used) oldest = i;
    }
    if (model[b].refs) fail("take", "a block that is held");
    if (any_free && model[b].findable) fail("take", "a cached block where one is free");
    if (!any_free && b != oldest) fail("take", "not the block that was used longest ago");
    counts[EVICTIONS] += model[b].findable;
    model[b] = (model_block){.refs = 1};
}

static void model_release(int b)
{
    if (--model[b].refs == 0) model[b].used = ++clock_now;
}

/* ---- operations ---- */

static bool take(sequence *s, int at)
{
    int32_t b = hd_kv_take(&kv);
    if ((b < 0) != (model_free() == 0)) fail("take", "a shortage where there is none");
    if (b < 0) {
        counts[SHORTAGES]++;
        return false;
    }
    model_take(b);
    counts[TAKES]++;
    s->table[at] = b;
    return true;
}

static uint64_t parent_of(const sequence *s, int i) { return i ? hd_kv_serial(&kv, s->table[i - 1]) : 0; }

static void begin(sequence *s)
{
    *s = (sequence){.live = true, .all = {.salt = pick(SALTS), .n = 1 + pick(LONGEST * BLOCK)}};
    for (int i = 0; i < s->all.n; i++) s->all.tokens[i] = pick(TOKENS);
    int length = s->all.n;
    s->all.n = 0;
    while ((s->known + 1) * BLOCK <= length) {
        text t = s->all;
        t.n = (s->known + 1) * BLOCK;
        int want = model_find(&t);
        int32_t got = hd_kv_find(&kv, parent_of(s, s->known), (uint64_t)t.salt, t.tokens + s->known * BLOCK);
        if (got >= 0 && !same(&model[got].content, &t)) fail("find", "a block of another text");
        if (got >= 0 && got != want) fail("find", "another block than the model's");
        if (got < 0 && want >= 0 && s->known == 0) fail("find", "nothing where the model has a first block");
        if (got < 0) {
            counts[MISSES]++;
            break;
        }
        counts[FINDS]++;
        model[got].refs++;
        s->table[s->known++] = got;
        s->n_table = s->known;
        s->all.n = t.n;
    }
}

/* One more token: in the last block where it may be written to, else in a copy of it or in a new one. */
static void write_token(sequence *s)
{
    int at = s->all.n / BLOCK, filled = s->all.n % BLOCK;
    if (at >= LONGEST) return;
    if (!filled) {
        if (!take(s, at)) return;
        s->n_table = at + 1;
    } else {
        int32_t old = s->table[at];
        bool mine = model[old].refs == 1 && !model[old].findable;
        if (hd_kv_writable(&kv, old) != mine) fail("writable", "the pool and the model differ");
        if (!mine) {
            if (!take(s, at)) return;
            hd_kv_release(&kv, old);
            model_release(old);
            counts[COPIES]++;
        }
    }
    s->all.tokens[s->all.n++] = pick(TOKENS);
    hd_kv_fill(&kv, s->table[at], filled + 1);
    model[s->table[at]].fill = filled + 1;
    if (filled + 1 < BLOCK || s->known != at || !pick(4)) return;
    text t = beginning(s, at + 1);
    int want = model_find(&t);
    int32_t old = s->table[at], got = hd_kv_publish(&kv, old, parent_of(s, at), (uint64_t)t.salt, t.tokens + at * BLOCK);
    if (got != old) {
        if (got != want || !same(&model[got].content, &t)) fail("publish", "moved to another block than the model's");
        model[got].refs++;
        model_release(old);
        counts[MERGED]++;
    } else {
        if (want >= 0 && !at) fail("publish", "two equal blocks");
        model[got].findable = true;
        model[got].content = t;
        counts[PUBLISHED]++;
    }
    s->table[at] = got;
    s->known = at + 1;
}

static void release(sequence *s)
{
    for (int i = s->n_table; i-- > 0;) {
        hd_kv_release(&kv, s->table[i]);
        model_release(s->table[i]);
        counts[RELEASES]++;
    }
    *s = (sequence){0};
}

static void fork_into(const sequence *from, sequence *to)
{
    *to = *from;
    for (int i = 0; i < to->n_table; i++) {
        hd_kv_retain(&kv, to->table[i]);
        model[to->table[i]].refs++;
    }
    counts[FORKS]++;
}

static void operate(void)
{
    sequence *s = &sequences[pick(SEQUENCES)], *other = &sequences[pick(SEQUENCES)];
    int what = pick(20);
    if (!s->live) begin(s);
    else if (what < 2) release(s);
    else if (what < 6 && !other->live) fork_into(s, other);
    else write_token(s);
}

/* ---- comparing ---- */

static void compare(uint64_t at)
{
    int32_t holds[BLOCKS] = {0};
    hd_error err = {0};
    int64_t rows = 0, cached = 0, held = 0;
    for (int i = 0; i < SEQUENCES; i++)
        for (int j = 0; j < sequences[i].n_table; j++) holds[sequences[i].table[j]]++;
    if (hd_kv_check(&kv, holds, &err)) fail("recount", err.message);
    for (int b = 0; b < BLOCKS; b++) {
        if (holds[b] != model[b].refs || kv.of[b].refs != model[b].refs) fail("compare", "a count of holds");
        if ((hd_kv_serial(&kv, b) != 0) != model[b].findable) fail("compare", "whether a block can be found");
        rows += model[b].refs ? model[b].findable ? BLOCK : model[b].fill : 0;
        cached += !model[b].refs && model[b].findable;
        held += model[b].refs > 0;
    }
    if (rows != kv.rows_held || cached != kv.cached.count || held != hd_kv_held(&kv) || BLOCKS - held != hd_kv_available(&kv)) fail("compare", "a sum");
    (void)at;
}

int main(int argc, char **argv)
{
    uint64_t operations = argc > 1 ? strtoull(argv[1], NULL, 10) : 1000000, seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    static const char *names[] = {"taken", "evicted", "found", "not found", "published", "merged", "forked", "copied on write", "released", "shortages"};
    hd_error err = {0};
    bool bad = false;
    if (hd_kv_init(&kv, BLOCKS, BLOCK, &err)) fail("pool", err.message);
    rng = hd_rng_new(seed);
    for (uint64_t i = 0; i < operations; i++) {
        operate();
        compare(i);
    }
    for (int i = 0; i < SEQUENCES; i++) release(&sequences[i]);
    compare(operations);
    for (int i = 0; i < 10; i++) {
        bool ok = counts[i] >= operations / 2000;
        bad |= !ok;
        printf("  %-64s %-11llu >= %-9llu %s\n", names[i], (unsigned long long)counts[i], (unsigned long long)(operations / 2000), ok ? "PASS" : "FAIL");
    }
    printf("  %-64s %-11lld == %-9d %s\n", "blocks still held at the end", (long long)hd_kv_held(&kv), 0, hd_kv_held(&kv) ? "FAIL" : "PASS");
    bad |= hd_kv_held(&kv) != 0;
    printf("  %llu operations, each followed by a recount and a comparison with the model: no difference\n", (unsigned long long)operations);
    hd_kv_clear(&kv);
    return bad;
}
