/* random_steps.h: some sequences through a runner in random steps, for tests that compare its logits bit for bit. To be included behind cmocka.h. */
#ifndef HD_TESTS_RANDOM_STEPS_H
#define HD_TESTS_RANDOM_STEPS_H

#include <string.h>
#include "base/mem.h"
#include "base/rng.h"
#include "serve/runner.h"

enum { SEQUENCES = 3, LENGTH = 29, BLOCK = 8, BLOCKS_EACH = (LENGTH + BLOCK - 1) / BLOCK, BLOCKS = SEQUENCES * BLOCKS_EACH, MOST_VOCAB = 512 };

static float want[SEQUENCES][LENGTH][MOST_VOCAB], got[SEQUENCES][LENGTH][MOST_VOCAB];
static int32_t text[SEQUENCES][LENGTH];

static void need(int rc, const hd_error *e)
{
    if (rc) fail_msg("%s", e->message);
}

static void draw_text(uint64_t seed, int64_t vocab)
{
    for (int i = 0; i < SEQUENCES * LENGTH; i++) text[i / LENGTH][i % LENGTH] = (int32_t)(hd_hash_mix(seed, (uint64_t)i) % (uint64_t)vocab);
}

/* All tokens of `text` in steps of random parts of random sequences, over blocks in random order: their logits to `got`. */
static void run_all(hd_runner *r, uint64_t seed)
{
    hd_rng rng = hd_rng_new(seed);
    hd_error e = {0};
    int32_t order[BLOCKS];
    int64_t done[SEQUENCES] = {0};
    assert_true(r->blocks >= BLOCKS && r->vocab <= MOST_VOCAB);
    for (int i = 0; i < BLOCKS; i++) order[i] = i;
    for (int i = BLOCKS - 1; i > 0; i--) {
        int k = (int)(hd_rng_uniform(&rng) * (i + 1));
        int32_t x = order[i];
        order[i] = order[k], order[k] = x;
    }
    for (int left = SEQUENCES * LENGTH; left > 0;) {
        hd_batch_part parts[SEQUENCES];
        int who[SEQUENCES];
        hd_batch b = {parts, 0};
        for (int s = 0; s < SEQUENCES; s++) {
            int64_t n = (int64_t)(hd_rng_uniform(&rng) * 13);
            if (n > LENGTH - done[s]) n = LENGTH - done[s];
            if (n == 0) continue;
            parts[b.n_parts] = (hd_batch_part){&text[s][done[s]], n, done[s], order + s * BLOCKS_EACH, n};
            who[b.n_parts++] = s;
        }
        need(hd_runner_step(r, &b, &e), &e);
        int64_t row = 0;
        for (int p = 0; p < b.n_parts; p++)
            for (int i = 0; i < parts[p].n; i++, row++, left--) memcpy(got[who[p]][done[who[p]]++], r->logits(r, row), (size_t)r->vocab * sizeof(float));
    }
}

/* A block copied, or saved and restored elsewhere, serves as well. `text` is there. */
static inline void expect_blocks_move(hd_runner *r)
{
    hd_error e = {0};
    int32_t table[BLOCKS_EACH] = {5, 2, 7, 0}, moved[BLOCKS_EACH] = {1, 3, 7, 0};
    hd_batch_part first = {text[0], 2 * BLOCK, 0, table, 0}, rest = {text[0] + 2 * BLOCK, 3, 2 * BLOCK, table, 1};
    need(hd_runner_step(r, &(hd_batch){&first, 1}, &e), &e);
    need(hd_runner_step(r, &(hd_batch){&rest, 1}, &e), &e);
    memcpy(got[0][0], r->logits(r, 0), (size_t)r->vocab * sizeof(float));
    void *saved = hd_malloc((size_t)r->block_bytes);
    r->copy_block(r, 5, 1);
    r->save_block(r, 2, saved);
    r->restore_block(r, 3, saved);
    first = (hd_batch_part){text[1], 2 * BLOCK, 0, table, 0}; /* over the old ones */
    need(hd_runner_step(r, &(hd_batch){&first, 1}, &e), &e);
    rest.blocks = moved;
    need(hd_runner_step(r, &(hd_batch){&rest, 1}, &e), &e);
    assert_memory_equal(got[0][0], r->logits(r, 0), (size_t)r->vocab * sizeof(float));
    hd_free(saved);
}

#endif
