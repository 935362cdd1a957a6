/* bpe_count.h: counting the distinct words of a corpus, for training. For this folder's files only.
 *
 * Invariant: slots are a power of two and at most half full; a word's bytes lie at text.data[offset..offset+size). */
#ifndef HD_DATA_BPE_COUNT_H
#define HD_DATA_BPE_COUNT_H

#include <stdint.h>
#include "base/error.h"
#include "base/str.h"

typedef struct hd_word_count {
    uint64_t offset;
    uint32_t size, hash;
    int64_t count; /* 0: empty slot */
} hd_word_count;

typedef struct hd_word_table {
    hd_word_count *slots;
    uint64_t mask, used;
    hd_str text;
} hd_word_table;

int hd_word_table_init(hd_word_table *w, hd_error *err);
void hd_word_table_free(hd_word_table *w);
/* Counts one more of word[0..n), n > 0. */
int hd_word_table_add(hd_word_table *w, const unsigned char *word, size_t n, hd_error *err);

#endif
