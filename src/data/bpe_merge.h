/* bpe_merge.h: learning merges from counted words. For this folder's files only. */
#ifndef HD_DATA_BPE_MERGE_H
#define HD_DATA_BPE_MERGE_H

#include "base/mem.h"
#include "data/bpe_count.h"
#include "data/tokenizer_int.h"

/* The vocabulary as it grows: texts of tokens in an arena, and the merges found. */
typedef struct hd_bpe_vocab {
    hd_arena *arena;
    const char **text;     /* [capacity] */
    uint32_t *size;        /* [capacity] */
    int32_t count, capacity;
    hd_string_table ids;
    uint64_t *merges;      /* pairs in the order found; one may be found twice */
    size_t merge_count, merge_cap;
} hd_bpe_vocab;

/* The id of a token, which is added when it is new; negative on failure. */
int32_t hd_bpe_vocab_add(hd_bpe_vocab *v, const char *text, size_t n, hd_error *err);

/* Merges until v->count reaches vocab_size or no pair is seen min_frequency times. byte_ids: the tokens of single bytes. */
int hd_bpe_learn(hd_bpe_vocab *v, const hd_word_table *words, const int32_t byte_ids[256], int32_t vocab_size, int64_t min_frequency, bool quiet,
                 hd_error *err);

#endif
