/* tokenizer.c: life cycle, the tables behind a tokenizer, the vocabulary, and decoding. Encoding: encode.c. */
#include "data/tokenizer.h"
#include <stdlib.h>
#include <string.h>
#include "data/tokenizer_int.h"

void hd_ids_free(hd_ids *ids) {
    hd_free(ids->data);
    *ids = (hd_ids){0};
}

/* ---- life cycle ------------------------------------------------------------------------------------------------- */

hd_tokenizer *hd_tokenizer_alloc(hd_error *err) {
    hd_tokenizer *t = hd_calloc(1, sizeof *t);
    if (t) t->classes = hd_malloc(sizeof *t->classes);
    if (!t || !t->classes) {
        hd_fail_memory(err, sizeof *t->classes, "a tokenizer");
        hd_free(t);
        return NULL;
    }
    hd_unicode_classes_fill(t->classes);
    t->unk_id = -1;
    return t;
}

void hd_tokenizer_free(hd_tokenizer *t) {
    if (!t) return;
    for (size_t i = 0; i < t->step_count; i++) hd_regex_free(t->steps[i].match.regex);
    hd_free(t->classes);
    hd_free(t->by_text.slots);
    hd_free(t->by_bytes.slots);
    hd_free(t->merges.slots);
    json_decref(t->sections);
    hd_arena_free(&t->arena);
    hd_free(t);
}

/* ---- tables ----------------------------------------------------------------------------------------------------- */

/* The bytes that a token's text stands for: each character's byte when all have one, else the text itself (as the ByteLevel decoder
 * does). out has room for text. Returns how many; *mapped tells which of the two. */
static size_t token_bytes(const char *text, size_t n, char *out, bool *mapped) {
    const unsigned char *p = (const unsigned char *)text;
    size_t count = 0;
    for (size_t i = 0; i < n;) {
        int length, byte = hd_cp_to_byte(hd_utf8_get(p + i, &length));
        if (byte < 0) {
            memcpy(out, text, n);
            *mapped = false;
            return n;
        }
        out[count++] = (char)byte;
        i += (size_t)length;
    }
    *mapped = true;
    return count;
}

int hd_tokenizer_index(hd_tokenizer *t, hd_error *err) {
    size_t bytes = 0, count = 0;
    for (int32_t i = 0; i < t->id_count; i++) {
        bytes += t->tokens[i].text_size;
        count += t->tokens[i].text != NULL;
    }
    char *pool = hd_arena_alloc(&t->arena, bytes + 1);
    if (!pool) return hd_fail_memory(err, bytes, "vocabulary of a tokenizer");
    if (hd_string_table_init(&t->by_text, count, err) || (t->ignore_merges && hd_string_table_init(&t->by_bytes, count, err))) return HD_ENOMEM;
    for (int i = 0; i < 256; i++) t->byte_id[i] = -1;
    for (int32_t i = 0; i < t->id_count; i++) {
        hd_token *k = &t->tokens[i];
        if (!k->text) continue;
        bool mapped = false;
        k->bytes = pool;
        k->bytes_size = (uint32_t)(t->by_char ? hd_spm_bytes(t, i, !k->added && t->byte_pieces, pool) : token_bytes(k->text, k->text_size, pool, &mapped));
        pool += k->bytes_size;
        hd_string_table_put(&t->by_text, k->text, k->text_size, i);
        if (t->by_char || k->added || !mapped) continue;
        if (k->bytes_size == 1) t->byte_id[(unsigned char)k->bytes[0]] = i;
        if (t->ignore_merges && k->bytes_size) hd_string_table_put(&t->by_bytes, k->bytes, k->bytes_size, i);
    }
    return 0;
}

int hd_tokenizer_index_merges(hd_tokenizer *t, hd_error *err) {
    if (hd_merge_table_init(&t->merges, t->merge_count, err)) return HD_ENOMEM;
    hd_str both;
    hd_str_init(&both);
    int rc = 0;
    for (size_t i = 0; i < t->merge_count && !rc; i++) {
        const hd_token *a = &t->tokens[t->merge_order[i] >> 32], *b = &t->tokens[(uint32_t)t->merge_order[i]];
        hd_str_clear(&both);
        hd_str_add(&both, a->text, a->text_size);
        hd_str_add(&both, b->text, b->text_size);
        if (both.failed) rc = hd_fail_memory(err, 64, "merges of a tokenizer");
        int32_t id = rc ? -1 : hd_string_table_get(&t->by_text, both.data, both.len);
        if (!rc && (id < 0 || t->tokens[id].added))
            rc = hd_fail(err, HD_EFORMAT, "merge %zu: \"%.60s\" + \"%.60s\" is not in the vocabulary", i, a->text, b->text);
        if (!rc) hd_merge_table_put(&t->merges, t->merge_order[i], (uint32_t)i, id);
    }
    hd_str_free(&both);
    return rc;
}

static int compare_added(const void *a, const void *b) {
    const hd_added_token *x = a, *y = b;
    size_t n = x->pattern_size < y->pattern_size ? x->pattern_size : y->pattern_size;
    int c = memcmp(x->pattern, y->pattern, n);
    if (c) return c;
    if (x->pattern_size != y->pattern_size) return x->pattern_size < y->pattern_size ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static void finish_set(hd_added_set *s) {
    if (s->count) qsort(s->tokens, s->count, sizeof *s->tokens, compare_added);
    int kinds = 0;
    s->only_first = -1;
    for (size_t i = 0; i < s->count; i++) {
        unsigned char c = (unsigned char)s->tokens[i].pattern[0];
        kinds += !s->first[c];
        s->first[c] = true;
        s->only_first = c;
    }
    if (kinds > 1) s->only_first = -1;
}

/* What is searched for in normalized text: the content, normalized alike. */
static int normalize_pattern(hd_tokenizer *t, hd_added_token *a, hd_error *err) {
    hd_str buffers[2];
    hd_str_init(&buffers[0]);
    hd_str_init(&buffers[1]);
    const unsigned char *text = (const unsigned char *)a->content;
    size_t n = a->content_size;
    int rc = hd_tokenizer_normalize(t, true, buffers, &text, &n, err);
    a->pattern = rc ? NULL : hd_arena_copy(&t->arena, text, n);
    a->pattern_size = n;
    hd_str_free(&buffers[0]);
    hd_str_free(&buffers[1]);
    if (!rc && !a->pattern) return hd_fail_memory(err, n, "added tokens");
    if (!rc && !n) return hd_fail(err, HD_EUNSUPPORTED, "added token \"%.60s\" is normalized to nothing", a->content);
    return rc;
}

int hd_tokenizer_index_added(hd_tokenizer *t, hd_error *err) {
    hd_added_set *sets[2] = {&t->raw, &t->normalized};
    for (int k = 0; k < 2; k++) {
        sets[k]->tokens = hd_arena_alloc(&t->arena, (t->added_count + 1) * sizeof *sets[k]->tokens);
        if (!sets[k]->tokens) return hd_fail_memory(err, t->added_count * sizeof *sets[k]->tokens, "added tokens");
    }
    for (size_t i = 0; i < t->added_count; i++) {
        hd_added_token a = t->added[i];
        a.pattern = a.content;
        a.pattern_size = a.content_size;
        if (a.normalized && t->normalizer_count) {
            int rc = normalize_pattern(t, &a, err);
            if (rc) return rc;
        }
        hd_added_set *s = sets[a.normalized];
        s->tokens[s->count++] = a;
    }
    finish_set(&t->raw);
    finish_set(&t->normalized);
    return 0;
}

/* ---- the vocabulary --------------------------------------------------------------------------------------------- */

int32_t hd_tokenizer_vocab_size(const hd_tokenizer *t) {
    return t->id_count;
}

int32_t hd_tokenizer_id(const hd_tokenizer *t, const char *token) {
    return hd_string_table_get(&t->by_text, token, strlen(token));
}

static const hd_token *token_at(const hd_tokenizer *t, int32_t id) {
    return id >= 0 && id < t->id_count && t->tokens[id].text ? &t->tokens[id] : NULL;
}

const char *hd_tokenizer_token(const hd_tokenizer *t, int32_t id) {
    const hd_token *k = token_at(t, id);
    return k ? k->text : NULL;
}

const char *hd_tokenizer_bytes(const hd_tokenizer *t, int32_t id, size_t *n) {
    const hd_token *k = token_at(t, id);
    *n = k ? k->bytes_size : 0;
    return k ? k->bytes : NULL;
}

bool hd_tokenizer_is_special(const hd_tokenizer *t, int32_t id) {
    const hd_token *k = token_at(t, id);
    return k && k->special;
}

/* ---- decoding --------------------------------------------------------------------------------------------------- */

/* Drops the spaces of out from `begin` on. */
static void drop_spaces(hd_str *out, size_t begin) {
    size_t n = begin;
    for (size_t i = begin; i < out->len; i++)
        if (out->data[i] != ' ') out->data[n++] = out->data[i];
    out->data[out->len = n] = 0;
}

int hd_tokenizer_decode(const hd_tokenizer *t, const int32_t *ids, size_t n, bool skip_special, hd_str *out, hd_error *err) {
    hd_token_stream s = {0};
    size_t begin = out->len;
    int rc = 0;
    bool first = t->strip_first;
    for (size_t i = 0; i < n && !rc; i++) {
        size_t before = out->len;
        rc = hd_token_stream_push(t, &s, ids[i], skip_special, out, err);
        const hd_token *k = token_at(t, ids[i]);
        if (!rc && first && k && !k->added) drop_spaces(out, before);
        first = first && (!k || (skip_special && k->special));
    }
    if (!rc) rc = hd_token_stream_end(&s, out, err);
    if (!rc && t->strip_space && out->len > begin && out->data[begin] == ' ') {
        memmove(out->data + begin, out->data + begin + 1, out->len - begin); /* with the NUL */
        out->len--;
    }
    return rc;
}

/* One byte more. Whole characters go out, bytes that cannot become one go out as U+FFFD, the beginning of one waits. */
static void push_byte(hd_token_stream *s, unsigned char byte, hd_str *out) {
    s->pending[s->count++] = byte;
    while (s->count) {
        bool ok, cut;
        int length = hd_utf8_unit(s->pending, (size_t)s->count, &ok, &cut);
        if (cut) return;
        if (ok) hd_str_add(out, s->pending, (size_t)length);
        else hd_str_add(out, "\xef\xbf\xbd", 3);
        s->count -= length;
        memmove(s->pending, s->pending + length, (size_t)s->count);
    }
}

int hd_token_stream_push(const hd_tokenizer *t, hd_token_stream *s, int32_t id, bool skip_special, hd_str *out, hd_error *err) {
    const hd_token *k = token_at(t, id);
    if (!k || (skip_special && k->special)) return 0;
    const unsigned char *p = (const unsigned char *)k->bytes;
    size_t n = k->bytes_size, i = 0;
    while (i < n) {
        size_t valid = s->count ? 0 : hd_utf8_valid(p + i, n - i);
        hd_str_add(out, p + i, valid);
        i += valid;
        if (i < n) push_byte(s, p[i++], out);
    }
    return out->failed ? hd_fail_memory(err, n, "decoded text") : 0;
}

int hd_token_stream_end(hd_token_stream *s, hd_str *out, hd_error *err) {
    if (s->count) hd_str_add(out, "\xef\xbf\xbd", 3);
    s->count = 0;
    return out->failed ? hd_fail_memory(err, 3, "decoded text") : 0;
}
