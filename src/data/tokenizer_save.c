/* tokenizer_save.c: writing a tokenizer.json that `tokenizers` and Heddle read back with identical behaviour. */
#include <string.h>
#include "base/file.h"
#include "base/json.h"
#include "data/tokenizer_int.h"

/* A JSON string; text is valid UTF-8. */
static void put_string(hd_str *s, const char *text, size_t n) {
    hd_str_putc(s, '"');
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '"' || c == '\\') hd_str_putc(s, '\\');
        if (c < 0x20 || c == 0x7f) hd_str_printf(s, "\\u%04x", c);
        else hd_str_putc(s, (char)c);
    }
    hd_str_putc(s, '"');
}

static const char *truth(bool b) {
    return b ? "true" : "false";
}

static void put_added(hd_str *s, const hd_tokenizer *t) {
    hd_str_puts(s, "  \"added_tokens\": [");
    for (size_t i = 0; i < t->added_count; i++) {
        const hd_added_token *a = &t->added[i];
        hd_str_printf(s, "%s\n    {\"id\": %d, \"content\": ", i ? "," : "", a->id);
        put_string(s, a->content, a->content_size);
        hd_str_printf(s, ", \"single_word\": %s, \"lstrip\": %s, \"rstrip\": %s, \"normalized\": %s, \"special\": %s}", truth(a->single_word),
                      truth(a->lstrip), truth(a->rstrip), truth(a->normalized), truth(a->special));
    }
    hd_str_puts(s, "\n  ],\n");
}

static int append(const char *bytes, size_t n, void *s) {
    hd_str_add(s, bytes, n);
    return ((hd_str *)s)->failed ? -1 : 0;
}

static void put_section(hd_str *s, const json_t *sections, const char *key) {
    const json_t *v = json_object_get(sections, key);
    hd_str_printf(s, "  \"%s\": ", key);
    if (v) json_dump_callback(v, append, s, JSON_ENCODE_ANY);
    else hd_str_puts(s, "null");
    hd_str_puts(s, ",\n");
}

/* Merges as "a b", which every version reads, unless a token holds a space itself. */
static bool merges_hold_spaces(const hd_tokenizer *t) {
    for (size_t i = 0; i < t->merge_count; i++)
        if (strchr(t->tokens[t->merge_order[i] >> 32].text, ' ') || strchr(t->tokens[(uint32_t)t->merge_order[i]].text, ' ')) return true;
    return false;
}

static void put_merges(hd_str *s, const hd_tokenizer *t) {
    bool pairs = merges_hold_spaces(t);
    const char *comma = "";
    hd_str_puts(s, "    \"merges\": [");
    for (size_t i = 0; i < t->merge_count; i++) {
        const hd_merge *m = hd_merge_table_get(&t->merges, t->merge_order[i]);
        if (m->rank != i) continue; /* given again later, where it counts */
        const hd_token *a = &t->tokens[t->merge_order[i] >> 32], *b = &t->tokens[(uint32_t)t->merge_order[i]];
        hd_str_printf(s, "%s\n      %s", comma, pairs ? "[" : "");
        comma = ",";
        hd_str both;
        hd_str_init(&both);
        if (!pairs) {
            hd_str_add(&both, a->text, a->text_size);
            hd_str_putc(&both, ' ');
            hd_str_add(&both, b->text, b->text_size);
            put_string(s, both.data, both.len);
            s->failed |= both.failed;
        } else {
            put_string(s, a->text, a->text_size);
            hd_str_puts(s, ", ");
            put_string(s, b->text, b->text_size);
            hd_str_putc(s, ']');
        }
        hd_str_free(&both);
    }
    hd_str_puts(s, "\n    ]\n");
}

static void put_model(hd_str *s, const hd_tokenizer *t) {
    hd_str_puts(s, "  \"model\": {\n    \"type\": \"BPE\",\n    \"dropout\": null,\n    \"unk_token\": ");
    if (t->unk_id >= 0) put_string(s, t->tokens[t->unk_id].text, t->tokens[t->unk_id].text_size);
    else hd_str_puts(s, "null");
    hd_str_printf(s, ",\n    \"continuing_subword_prefix\": null,\n    \"end_of_word_suffix\": null,\n    \"fuse_unk\": %s,\n"
                     "    \"byte_fallback\": %s,\n    \"ignore_merges\": %s,\n    \"vocab\": {", truth(t->fuse_unk), truth(t->by_char), truth(t->ignore_merges));
    const char *comma = "";
    for (int32_t i = 0; i < t->id_count; i++) {
        const hd_token *k = &t->tokens[i];
        if (!k->text || k->added) continue;
        hd_str_printf(s, "%s\n      ", comma);
        comma = ",";
        put_string(s, k->text, k->text_size);
        hd_str_printf(s, ": %d", i);
    }
    hd_str_puts(s, "\n    },\n");
    put_merges(s, t);
    hd_str_puts(s, "  }\n");
}

/* All digits: sums that are equal must stay so. */
static void put_score(hd_str *s, double score) {
    size_t at = s->len;
    hd_str_printf(s, "%.17g", score);
    if (!s->failed && !strpbrk(s->data + at, ".e")) hd_str_puts(s, ".0");
}

static void put_unigram(hd_str *s, const hd_tokenizer *t) {
    int32_t n;
    const double *scores = hd_unigram_scores(t, &n);
    bool bytes = false;
    for (int i = 0; i < 256; i++) bytes |= t->byte_pieces && t->byte_id[i] >= 0;
    hd_str_puts(s, "  \"model\": {\n    \"type\": \"Unigram\",\n    \"unk_id\": ");
    if (t->unk_id >= 0) hd_str_printf(s, "%d", t->unk_id);
    else hd_str_puts(s, "null");
    hd_str_printf(s, ",\n    \"byte_fallback\": %s,\n    \"vocab\": [", truth(bytes || (t->byte_pieces && t->sections)));
    for (int32_t i = 0; i < n; i++) {
        hd_str_puts(s, i ? ",\n      [" : "\n      [");
        put_string(s, t->tokens[i].text, t->tokens[i].text_size);
        hd_str_puts(s, ", ");
        put_score(s, scores[i]);
        hd_str_putc(s, ']');
    }
    hd_str_puts(s, "\n    ]\n  }\n");
}

/* The sections to write, a new reference. */
static json_t *find_sections(const hd_tokenizer *t, const char *path, hd_error *err) {
    int32_t n = 0;
    if (t->unigram) hd_unigram_scores(t, &n);
    for (int32_t i = 0; i < n; i++) {
        const hd_token *k = &t->tokens[i];
        if (k->text && k->text_size && hd_string_table_get(&t->by_text, k->text, k->text_size) == i) continue;
        hd_fail(err, HD_EUNSUPPORTED, "%s: a unigram tokenizer with two pieces of one text, or an empty one, cannot be written", path);
        return NULL;
    }
    if (t->sections) return json_incref(t->sections);
    if (t->unigram) return hd_unigram_sections(t, err);
    if (!t->by_char) return json_object();
    hd_fail(err, HD_EUNSUPPORTED, "%s: a SentencePiece tokenizer cannot be written as a tokenizer.json", path);
    return NULL;
}

int hd_tokenizer_save(const hd_tokenizer *t, const char *path, hd_error *err) {
    static const char *const keys[] = {"normalizer", "pre_tokenizer", "post_processor", "decoder"};
    hd_error local = {0};
    json_t *sections = find_sections(t, path, err ? err : &local);
    if (!sections) return err ? err->code : local.code;
    hd_str s;
    hd_str_init(&s);
    hd_str_puts(&s, "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n");
    put_added(&s, t);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) put_section(&s, sections, keys[i]);
    if (t->unigram) put_unigram(&s, t);
    else put_model(&s, t);
    hd_str_puts(&s, "}\n");
    int rc = s.failed ? hd_fail_memory(err, s.len, "a tokenizer.json") : hd_file_write_atomic(path, s.data, s.len, err);
    hd_str_free(&s);
    json_decref(sections);
    return rc;
}
