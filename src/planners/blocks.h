/* blocks.h: what the parts of a network take under one way to split a stage: the ground of estimates. Within src/planners.
 *
 * A block is what can be a stage by itself: a layer of a language model (what stands before the layers goes with the first, the head with the last), or one of
 * some pieces of about equal work of another network. Their figures come from Programs, not from formulas: the network is lowered as a pipeline of one
 * block a stage (of a language model its first, a middle and its last layer), and the simulator says what the calls of each stage take. */
#ifndef HD_PLANNERS_BLOCKS_H
#define HD_PLANNERS_BLOCKS_H

#include "planners/forms.h"

typedef struct hd_block_cost {
    double forward, backward;               /* seconds of a micro-batch: computing, and collectives that the rank waits for */
    double beside_forward, beside_backward; /* transfers beside that, in each micro-batch */
    double beside_last, once;               /* in the last one only; once a step */
    int64_t params, optimizer, gradients, held; /* bytes; held: copies of parameters for the step */
    int64_t saved, rest;                    /* of each micro-batch under way; of calls while they run */
    int64_t sent, once_sent;                /* bytes to the next block, of a micro-batch; to another once a step */
} hd_block_cost;

/* Which blocks: of ranks that split a stage so, with that share of the samples. dp = 1: without data parallelism, whose part hd_blocks_spread adds. */
typedef struct hd_block_key {
    int dp, cp, tp, slices, world;
    int64_t micro_batches;
    uint8_t sp, scatter, zero, hold, recompute, tables;
    uint8_t single;          /* exact, and there is one stage */
} hd_block_key;

/* A pipeline of one stage, simulated whole with all but so many of its layers left out, and with one less of those. */
typedef struct hd_single { int layers; double step[2]; int64_t peak[2]; } hd_single;

typedef struct hd_blocks {
    hd_block_key key;
    hd_block_cost *list;          /* [classes]; owned */
    int n, classes;          /* blocks, of which a language model's between the first and the last are alike; n 0: the network cannot be split so */
    hd_single *single;       /* of a key that asks for it; owned */
    char (*cuts)[64];        /* [n - 1] where blocks 1, 2, ... begin; owned; NULL: layers */
} hd_blocks;

enum { HD_BLOCK_CLASSES = 12 };
static inline int hd_block_class(const hd_blocks *b, int i) { return b->n == b->classes || !i ? i : i < b->n - 1 ? 1 : b->classes - 1; }

/* The key under which the form's blocks stand: exact, or without its data parallelism and slices. */
hd_block_key hd_block_key_of(const hd_planner_job *job, const hd_form *f, bool exact);
int hd_block_key_compare(const hd_block_key *a, const hd_block_key *b);

/* Lowers and measures; a network that cannot be split so gives n = 0 and no error. HD_ENOMEM. */
int hd_blocks_make(const hd_planner_job *job, const hd_block_key *key, hd_blocks *out, hd_error *err);
void hd_blocks_free(hd_blocks *b);

/* What a group of data-parallel ranks adds to a block of ranks without it: by the cost model's collectives in buckets, and ZeRO's shares. */
typedef struct hd_spread { double all_reduce, reduce_scatter, all_gather; /* seconds a byte */ int group; uint8_t zero, hold; } hd_spread;
void hd_spread_make(const hd_planner_job *job, const hd_form *f, hd_spread *out);
hd_block_cost hd_block_spread(const hd_block_cost *b, const hd_spread *s);

#endif
