/* sentencepiece.c: SentencePiece's BPE (Kudo and Richardson 2018; sentencepiece's bpe_model.cc) out of a list of pieces with scores.
 *
 * A text becomes characters, spaces written as U+2581. Of all neighbours that together are a piece, the two whose piece has the highest score become
 * one, the leftmost among equals. So the pairs that may merge are those of which both halves and the whole are pieces, and a pair's rank is its whole's
 * score: the merging itself is bpe.c's. A character that is no piece becomes its UTF-8 bytes, each a piece "<0xE2>" of its own; where there are none,
 * the unknown piece.
 *
 * A tokenizer.json with "byte_fallback" lists its pairs itself; words begin and tokens decode alike. */
#include <math.h>
#include <string.h>
#include "data/tokenizer_int.h"

#define SPACE "\xe2\x96\x81"

/* Descending score as ascending ranks; equal scores have equal ranks. */
static uint32_t rank_of_score(float score) {
    uint32_t u;
    memcpy(&u, &score, 4);
    return ~(u >> 31 ? ~u : u | 0x80000000u);
}

static int type_of(const hd_spm_spec *s, int32_t id) {
    return s->types ? (int)hd_gguf_integer(s->types, (uint64_t)id) : HD_TOKEN_NORMAL;
}

/* Whether a piece may come about by merging. */
static bool is_piece(int type) {
    return type == HD_TOKEN_NORMAL || type == HD_TOKEN_USER || type == HD_TOKEN_UNUSED;
}

static int byte_of(const char *text, size_t n) {
    unsigned v;
    char end;
    return n == 6 && sscanf(text, "<0x%2X%c", &v, &end) == 2 && end == '>' ? (int)v : -1;
}

/* ---- tokens ---- */

size_t hd_spm_bytes(hd_tokenizer *t, int32_t id, bool may_be_byte, char *out) {
    const hd_token *k = &t->tokens[id];
    int byte = may_be_byte ? byte_of(k->text, k->text_size) : -1;
    size_t n = 0;
    if (byte >= 0) {
        out[n++] = (char)byte;
        t->byte_id[byte] = id;
        return n;
    }
    for (size_t i = 0; i < k->text_size;) {
        bool space = k->text_size - i >= 3 && !memcmp(k->text + i, SPACE, 3);
        out[n++] = space ? ' ' : k->text[i];
        i += space ? 3 : 1;
    }
    return n;
}

static int set_bytes(hd_tokenizer *t, hd_token *k, int32_t id, int type, hd_error *err) {
    char *bytes = hd_arena_alloc(&t->arena, k->text_size + 1);
    if (!bytes) return hd_fail_memory(err, k->text_size, "vocabulary of a tokenizer");
    k->bytes = bytes;
    k->bytes_size = (uint32_t)hd_spm_bytes(t, id, type == HD_TOKEN_BYTE, bytes);
    return 0;
}

static int read_token(hd_tokenizer *t, const hd_spm_spec *s, int32_t id, hd_error *err) {
    const hd_gguf_text *text = &s->tokens->texts[id];
    hd_token *k = &t->tokens[id];
    if (text->size > 1 << 20 || memchr(text->data, 0, text->size) || hd_utf8_valid((const unsigned char *)text->data, text->size) != text->size)
        return hd_fail(err, HD_EFORMAT, "%s: metadata \"%s\"[%d] is not UTF-8 text", s->path, s->tokens->key, id);
    if (s->scores && !isfinite(hd_gguf_number(s->scores, (uint64_t)id)))
        return hd_fail(err, HD_EFORMAT, "%s: metadata \"%s\"[%d] is no score", s->path, s->scores->key, id);
    char *copy = hd_arena_alloc(&t->arena, text->size + 1);
    if (!copy) return hd_fail_memory(err, text->size, "vocabulary of a tokenizer");
    memcpy(copy, text->data, text->size);
    k->text = copy;
    k->text_size = (uint32_t)text->size;
    int type = type_of(s, id);
    k->special = type == HD_TOKEN_CONTROL || type == HD_TOKEN_UNKNOWN;
    k->added = !is_piece(type); /* not to be merged */
    return set_bytes(t, k, id, type, err);
}

/* Of two tokens with one text the first counts, one that may be merged before one that may not. */
static int read_tokens(hd_tokenizer *t, const hd_spm_spec *s, hd_error *err) {
    t->id_count = (int32_t)s->tokens->count;
    t->tokens = hd_arena_alloc(&t->arena, (size_t)t->id_count * sizeof *t->tokens);
    if (!t->tokens) return hd_fail_memory(err, (size_t)t->id_count * sizeof *t->tokens, "vocabulary of a tokenizer");
    for (int i = 0; i < 256; i++) t->byte_id[i] = -1;
    int rc = hd_string_table_init(&t->by_text, (size_t)t->id_count, err);
    for (int32_t id = 0; id < t->id_count && !rc; id++) {
        rc = read_token(t, s, id, err);
        int32_t before = rc ? -1 : hd_string_table_get(&t->by_text, t->tokens[id].text, t->tokens[id].text_size);
        bool better = before < 0 || (t->tokens[before].added && !t->tokens[id].added);
        if (!rc && better && t->tokens[id].text_size) hd_string_table_put(&t->by_text, t->tokens[id].text, t->tokens[id].text_size, id);
    }
    return rc;
}

/* ---- pairs ---- */

static int32_t piece_at(const hd_tokenizer *t, const char *text, size_t n) {
    int32_t id = hd_string_table_get(&t->by_text, text, n);
    return id >= 0 && !t->tokens[id].added ? id : -1;
}

typedef struct pair_list {
    hd_merge *data;
    size_t len, cap;
} pair_list;

static int add_pairs(const hd_tokenizer *t, const hd_spm_spec *s, int32_t id, pair_list *out, hd_error *err) {
    const hd_token *k = &t->tokens[id];
    if (k->added || piece_at(t, k->text, k->text_size) != id) return 0;
    uint32_t rank = rank_of_score((float)hd_gguf_number(s->scores, (uint64_t)id));
    for (size_t i = 1; i < k->text_size; i++) {
        if ((k->text[i] & 0xc0) == 0x80) continue;
        int32_t left = piece_at(t, k->text, i), right = left < 0 ? -1 : piece_at(t, k->text + i, k->text_size - i);
        if (right < 0) continue;
        if (hd_grow(&out->data, &out->cap, out->len + 1, sizeof *out->data)) return hd_fail_memory(err, out->len * sizeof *out->data, "merges of a tokenizer");
        out->data[out->len++] = (hd_merge){(uint64_t)(uint32_t)left << 32 | (uint32_t)right, rank, id};
    }
    return 0;
}

static int make_pairs(hd_tokenizer *t, const hd_spm_spec *s, hd_error *err) {
    pair_list list = {0};
    int rc = 0;
    for (int32_t id = 0; id < t->id_count && !rc; id++) rc = add_pairs(t, s, id, &list, err);
    if (!rc) rc = hd_merge_table_init(&t->merges, list.len, err);
    for (size_t i = 0; i < list.len && !rc; i++) hd_merge_table_put(&t->merges, list.data[i].pair, list.data[i].rank, list.data[i].merged);
    hd_free(list.data);
    return rc;
}

/* ---- what is around the pieces ---- */

/* Control tokens and those that the user defined are found in the text as it stands; one of spaces (U+2581 in the file) comes about by merging, its
 * score being the highest: as in llama.cpp. */
static int mark_added(hd_tokenizer *t, const hd_spm_spec *s, hd_error *err) {
    t->added = hd_arena_alloc(&t->arena, (size_t)t->id_count * sizeof *t->added);
    if (!t->added) return hd_fail_memory(err, (size_t)t->id_count * sizeof *t->added, "added tokens");
    for (int32_t id = 0; id < t->id_count; id++) {
        int type = type_of(s, id);
        const hd_token *k = &t->tokens[id];
        bool marked = type == HD_TOKEN_CONTROL || type == HD_TOKEN_USER || type == HD_TOKEN_UNKNOWN;
        if (!marked || !k->text_size) continue;
        t->added[t->added_count++] = (hd_added_token){.content = k->text, .content_size = k->text_size, .id = id, .special = k->special};
    }
    return hd_tokenizer_index_added(t, err);
}

static int add_normalizers(hd_tokenizer *t, const hd_spm_spec *s, hd_error *err) {
    t->normalizers = hd_arena_alloc(&t->arena, 2 * sizeof *t->normalizers);
    if (!t->normalizers) return hd_fail_memory(err, 2 * sizeof *t->normalizers, "a tokenizer");
    if (s->space_prefix) t->normalizers[t->normalizer_count++] = (hd_normalizer){.kind = HD_NORM_PREPEND, .to = SPACE, .to_size = 3};
    t->normalizers[t->normalizer_count++] = (hd_normalizer){.kind = HD_NORM_REPLACE, .from = " ", .from_size = 1, .to = SPACE, .to_size = 3};
    t->strip_space = s->space_prefix;
    return 0;
}

static int add_around(hd_tokenizer *t, const hd_spm_spec *s, hd_error *err) {
    t->before = hd_arena_alloc(&t->arena, 2 * sizeof *t->before);
    if (!t->before) return hd_fail_memory(err, 2 * sizeof *t->before, "a tokenizer");
    t->after = t->before + 1;
    if (s->bos >= 0) t->before[t->before_count++] = (int32_t)s->bos;
    if (s->eos >= 0) t->after[t->after_count++] = (int32_t)s->eos;
    return 0;
}

hd_tokenizer *hd_spm_new(const hd_spm_spec *s, hd_error *err) {
    hd_tokenizer *t = hd_tokenizer_alloc(err);
    if (!t) return NULL;
    t->by_char = t->byte_pieces = t->fuse_unk = true;
    t->unk_id = (int32_t)s->unk;
    int rc = read_tokens(t, s, err);
    if (!rc) rc = s->unigram ? hd_spm_unigram(t, s, err) : make_pairs(t, s, err);
    if (!rc) rc = s->unigram ? hd_spm_normalizers(t, s, err) : add_normalizers(t, s, err);
    if (!rc) rc = mark_added(t, s, err);
    if (!rc) rc = add_around(t, s, err);
    if (!rc) return t;
    hd_tokenizer_free(t);
    return NULL;
}

/* ---- a word's first symbols ---- */

static bool has_bytes(const hd_tokenizer *t, const unsigned char *p, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (t->byte_id[p[i]] < 0) return false;
    return true;
}

size_t hd_spm_start(const hd_tokenizer *t, const unsigned char *word, size_t n, int32_t *id, size_t stride) {
    size_t count = 0;
    bool unk_before = false;
    for (size_t i = 0, length; i < n; i += length) {
        for (length = 1; i + length < n && (word[i + length] & 0xc0) == 0x80;) length++;
        int32_t piece = piece_at(t, (const char *)word + i, length);
        bool unk = piece < 0 && !has_bytes(t, word + i, length);
        if (piece < 0 && !unk) {
            for (size_t k = 0; k < length; k++) *(int32_t *)((char *)id + count++ * stride) = t->byte_id[word[i + k]];
        } else if (piece >= 0 || (t->unk_id >= 0 && !unk_before)) {
            *(int32_t *)((char *)id + count++ * stride) = unk ? t->unk_id : piece;
        }
        unk_before = unk;
    }
    return count;
}
