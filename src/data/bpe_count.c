/* bpe_count.c: see bpe_count.h. */
#include "data/bpe_count.h"
#include <string.h>
#include "data/tokenizer_int.h"

int hd_word_table_init(hd_word_table *w, hd_error *err) {
    *w = (hd_word_table){.mask = (1 << 16) - 1};
    hd_str_init(&w->text);
    w->slots = hd_calloc(w->mask + 1, sizeof *w->slots);
    return w->slots ? 0 : hd_fail_memory(err, (w->mask + 1) * sizeof *w->slots, "counting words");
}

void hd_word_table_free(hd_word_table *w) {
    hd_free(w->slots);
    hd_str_free(&w->text);
    *w = (hd_word_table){0};
}

static int grow(hd_word_table *w, hd_error *err) {
    uint64_t mask = w->mask * 2 + 1;
    hd_word_count *slots = hd_calloc(mask + 1, sizeof *slots);
    if (!slots) return hd_fail_memory(err, (mask + 1) * sizeof *slots, "counting words");
    for (uint64_t i = 0; i <= w->mask; i++) {
        if (!w->slots[i].count) continue;
        uint64_t at = w->slots[i].hash & mask;
        while (slots[at].count) at = (at + 1) & mask;
        slots[at] = w->slots[i];
    }
    hd_free(w->slots);
    w->slots = slots;
    w->mask = mask;
    return 0;
}

int hd_word_table_add(hd_word_table *w, const unsigned char *word, size_t n, hd_error *err) {
    uint32_t hash = (uint32_t)(hd_bytes_hash(word, n) >> 3);
    uint64_t at = hash & w->mask;
    for (hd_word_count *s = &w->slots[at]; s->count; at = (at + 1) & w->mask, s = &w->slots[at])
        if (s->hash == hash && s->size == n && !memcmp(w->text.data + s->offset, word, n)) {
            s->count++;
            return 0;
        }
    w->slots[at] = (hd_word_count){w->text.len, (uint32_t)n, hash, 1};
    hd_str_add(&w->text, word, n);
    if (w->text.failed) return hd_fail_memory(err, n, "counting words");
    return ++w->used * 2 > w->mask && w->mask < UINT32_MAX ? grow(w, err) : 0;
}
