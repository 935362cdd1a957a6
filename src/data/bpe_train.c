/* bpe_train.c: training a byte-level BPE tokenizer: counting words, learning merges, and putting the tokenizer together. */
#include <string.h>
#include "base/file.h"
#include "base/term.h"
#include "data/bpe_count.h"
#include "data/bpe_merge.h"
#include "data/tokenizer_int.h"

struct hd_bpe_trainer {
    hd_bpe_spec spec;
    hd_word_table words;
    hd_unicode_classes classes;
    hd_str valid, normal;
};

hd_bpe_trainer *hd_bpe_trainer_new(const hd_bpe_spec *spec, hd_error *err) {
    if ((unsigned)spec->pretokenizer >= HD_PRETOK_COUNT || spec->vocab_size < 256 + spec->special_count || spec->vocab_size > 1 << 24) {
        hd_fail(err, HD_EINVAL, "a vocabulary of %d tokens cannot be trained: it must hold 256 bytes and %d special tokens, and at most 2^24 tokens",
                spec->vocab_size, spec->special_count);
        return NULL;
    }
    hd_bpe_trainer *b = hd_calloc(1, sizeof *b);
    if (!b || hd_word_table_init(&b->words, err)) {
        hd_fail_memory(err, sizeof *b, "training a tokenizer");
        hd_free(b);
        return NULL;
    }
    b->spec = *spec;
    hd_unicode_classes_fill(&b->classes);
    hd_str_init(&b->valid);
    hd_str_init(&b->normal);
    return b;
}

void hd_bpe_trainer_free(hd_bpe_trainer *b) {
    if (!b) return;
    hd_word_table_free(&b->words);
    hd_str_free(&b->valid);
    hd_str_free(&b->normal);
    hd_free(b);
}

int hd_bpe_trainer_feed(hd_bpe_trainer *b, const char *text, size_t n, hd_error *err) {
    const unsigned char *p = (const unsigned char *)text;
    if (hd_utf8_valid(p, n) != n) {
        hd_str_clear(&b->valid);
        hd_utf8_replace(&b->valid, p, n);
        if (b->valid.failed) return hd_fail_memory(err, n, "text");
        p = (const unsigned char *)b->valid.data;
        n = b->valid.len;
    }
    if (b->spec.nfc && !hd_nfc_quick(p, n)) {
        hd_str_clear(&b->normal);
        int rc = hd_nfc(&b->normal, p, n, err);
        if (rc) return rc;
        p = (const unsigned char *)b->normal.data;
        n = b->normal.len;
    }
    hd_scan_fn scan = hd_scanners[b->spec.pretokenizer].scan;
    while (n) {
        size_t length = scan(&b->classes, p, n);
        int rc = length > INT32_MAX ? hd_fail(err, HD_EINVAL, "a word of over 2 GiB") : hd_word_table_add(&b->words, p, length, err);
        if (rc) return rc;
        p += length;
        n -= length;
    }
    return 0;
}

/* ---- the tokenizer ---------------------------------------------------------------------------------------------- */

/* Special tokens first, then the bytes in the order of the code points that stand for them. */
static int start_vocab(hd_bpe_vocab *v, const hd_bpe_spec *spec, int32_t byte_ids[256], hd_error *err) {
    v->capacity = spec->vocab_size + 1;
    v->text = hd_arena_alloc(v->arena, (size_t)v->capacity * sizeof *v->text);
    v->size = hd_arena_alloc(v->arena, (size_t)v->capacity * sizeof *v->size);
    if (!v->text || !v->size || hd_string_table_init(&v->ids, (size_t)v->capacity, err)) return hd_fail_memory(err, 64, "a vocabulary");
    for (int i = 0; i < spec->special_count; i++)
        if (hd_bpe_vocab_add(v, spec->specials[i], strlen(spec->specials[i]), err) < 0) return HD_ENOMEM;
    for (uint32_t cp = 0; cp < 256 + 33 + 34 + 1; cp++) {
        unsigned char text[4];
        int byte = hd_cp_to_byte(cp);
        if (byte >= 0 && (byte_ids[byte] = hd_bpe_vocab_add(v, (char *)text, (size_t)hd_utf8_put(cp, text), err)) < 0) return HD_ENOMEM;
    }
    return 0;
}

static json_t *make_sections(const hd_bpe_spec *spec) {
    json_t *pre = spec->pretokenizer == HD_PRETOK_GPT2
        ? json_pack("{s:s,s:b,s:b,s:b}", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1, "use_regex", 1)
        : json_pack("{s:s,s:[{s:s,s:{s:s},s:s,s:b},{s:s,s:b,s:b,s:b}]}", "type", "Sequence", "pretokenizers", "type", "Split", "pattern", "Regex",
                    hd_scanners[spec->pretokenizer].pattern, "behavior", "Isolated", "invert", 0, "type", "ByteLevel", "add_prefix_space", 0,
                    "trim_offsets", 1, "use_regex", 0);
    json_t *normalizer = spec->nfc ? json_pack("{s:s}", "type", "NFC") : json_null();
    return json_pack("{s:o,s:o,s:{s:s,s:b,s:b,s:b},s:{s:s,s:b,s:b,s:b}}", "normalizer", normalizer, "pre_tokenizer", pre, "post_processor", "type",
                     "ByteLevel", "add_prefix_space", 1, "trim_offsets", 0, "use_regex", 1, "decoder", "type", "ByteLevel", "add_prefix_space", 1,
                     "trim_offsets", 1, "use_regex", 1);
}

/* Takes over the vocabulary, whose arena is the tokenizer's. */
static int fill_tokenizer(hd_tokenizer *t, const hd_bpe_vocab *v, const hd_bpe_spec *spec, hd_error *err) {
    t->id_count = v->count;
    t->tokens = hd_arena_alloc(&t->arena, (size_t)v->count * sizeof *t->tokens);
    t->merge_order = hd_arena_copy(&t->arena, v->merges, v->merge_count * sizeof *v->merges);
    t->added = hd_arena_alloc(&t->arena, ((size_t)spec->special_count + 1) * sizeof *t->added);
    t->sections = make_sections(spec);
    if (!t->tokens || !t->merge_order || !t->added || !t->sections) return hd_fail_memory(err, 64, "a tokenizer");
    t->merge_count = v->merge_count;
    for (int32_t i = 0; i < v->count; i++) {
        t->tokens[i].text = v->text[i];
        t->tokens[i].text_size = v->size[i];
    }
    for (int i = 0; i < spec->special_count; i++) {
        int32_t id = hd_string_table_get(&v->ids, spec->specials[i], strlen(spec->specials[i]));
        if (!v->size[id] || t->tokens[id].special) continue;
        t->tokens[id].special = true;
        t->added[t->added_count++] = (hd_added_token){.content = v->text[id], .content_size = v->size[id], .id = id, .special = true};
    }
    int rc = hd_tokenizer_index(t, err);
    if (!rc) rc = hd_tokenizer_index_merges(t, err);
    if (!rc) rc = hd_sections_read(t, "trained tokenizer", err);
    return rc ? rc : hd_tokenizer_index_added(t, err);
}

hd_tokenizer *hd_bpe_trainer_finish(hd_bpe_trainer *b, hd_error *err) {
    if (!b->words.used) {
        hd_fail(err, HD_EINVAL, "the corpus is empty: there is nothing to train a tokenizer on");
        return NULL;
    }
    hd_tokenizer *t = hd_tokenizer_alloc(err);
    if (!t) return NULL;
    hd_bpe_vocab v = {.arena = &t->arena};
    int32_t byte_ids[256];
    int rc = start_vocab(&v, &b->spec, byte_ids, err);
    if (!rc) rc = hd_bpe_learn(&v, &b->words, byte_ids, b->spec.vocab_size, b->spec.min_frequency, b->spec.quiet, err);
    if (!rc) rc = fill_tokenizer(t, &v, &b->spec, err);
    hd_free(v.ids.slots);
    hd_free(v.merges);
    if (!rc) return t;
    hd_tokenizer_free(t);
    return NULL;
}

/* ---- files ------------------------------------------------------------------------------------------------------ */

static int feed_lines(hd_bpe_trainer *b, const hd_map *m, hd_progress *bar, double before, hd_error *err) {
    const char *p = (const char *)m->data, *end = p + m->size;
    int rc = 0;
    for (size_t lines = 0; p < end && !rc; lines++) {
        const char *newline = memchr(p, '\n', (size_t)(end - p)), *next = newline ? newline + 1 : end;
        rc = hd_bpe_trainer_feed(b, p, (size_t)(next - p), err);
        p = next;
        if ((lines & 4095) == 0) hd_progress_update(bar, before + (double)(p - (const char *)m->data), NULL);
    }
    return rc;
}

hd_tokenizer *hd_bpe_train_files(const hd_bpe_spec *spec, const char *const *paths, int count, hd_error *err) {
    hd_tokenizer *t = NULL;
    hd_bpe_trainer *b = hd_bpe_trainer_new(spec, err);
    if (!b) return NULL;
    double total = 0, done = 0;
    for (int i = 0; i < count; i++) total += (double)hd_file_size(paths[i]);
    hd_progress bar;
    hd_progress_begin(&bar, "counting words", total, spec->quiet);
    int rc = 0;
    for (int i = 0; i < count && !rc; i++) {
        hd_map m;
        if ((rc = hd_map_open(&m, paths[i], err))) break;
        rc = feed_lines(b, &m, &bar, done, err);
        done += (double)m.size;
        hd_map_close(&m);
    }
    if (rc) hd_progress_hide(&bar);
    else hd_progress_end(&bar, NULL);
    if (!rc) t = hd_bpe_trainer_finish(b, err);
    hd_bpe_trainer_free(b);
    return t;
}
