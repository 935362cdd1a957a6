/* tokenizer_gguf.c: tokenizers of GGUF files. "gpt2" becomes the tokenizer.json that it came from, as far as llama.cpp's names of pre-tokenizers tell;
 * "llama" (sentencepiece.c) and "t5" (unigram_gguf.c) have no such file. Writing: byte-level BPE, and unigram models of a tokenizer.json. */
#include "data/tokenizer_gguf.h"

#include <stdio.h>
#include <string.h>
#include "data/tokenizer_int.h"

/* ---- reading: the parts of a tokenizer.json ---- */

typedef struct reader {
    const hd_gguf *g;
    const hd_gguf_value *tokens, *types, *merges;
    const hd_pre *pre;
    bool ignore_merges, nfc;
    json_t *root;
    hd_error *err;
} reader;

/* A string of the file as a C string; it lives until the next call. */
static int text_at(reader *r, hd_str *s, const hd_gguf_value *v, uint64_t i) {
    hd_str_clear(s);
    hd_str_add(s, v->texts[i].data, v->texts[i].size);
    if (s->failed) return hd_fail_memory(r->err, v->texts[i].size, "a tokenizer");
    const unsigned char *p = (const unsigned char *)s->data;
    if (strlen(s->data) == s->len && hd_utf8_valid(p, s->len) == s->len) return 0;
    return hd_fail(r->err, HD_EFORMAT, "%s: metadata \"%s\"[%llu] is not UTF-8 text", r->g->path, v->key, (unsigned long long)i);
}

static int type_at(const reader *r, uint64_t i) {
    return r->types ? (int)hd_gguf_integer(r->types, i) : HD_TOKEN_NORMAL;
}

static json_t *added_token(const char *text, uint64_t id, bool special) {
    return json_pack("{s:I, s:s, s:b, s:b, s:b, s:b, s:b}", "id", (json_int_t)id, "content", text, "single_word", 0, "lstrip", 0, "rstrip", 0, "normalized", 0,
                     "special", (int)special);
}

/* Of two tokens with one text the first counts. */
static int read_tokens(reader *r, json_t *vocab, json_t *added) {
    hd_str s;
    hd_str_init(&s);
    int rc = 0;
    for (uint64_t i = 0; i < r->tokens->count && !rc; i++) {
        int type = type_at(r, i);
        if ((rc = text_at(r, &s, r->tokens, i)) || json_object_get(vocab, s.data)) continue;
        if (json_object_set_new(vocab, s.data, json_integer((json_int_t)i))) rc = hd_fail_memory(r->err, s.len, "a tokenizer");
        bool marked = (type == HD_TOKEN_CONTROL || type == HD_TOKEN_USER) && s.len;
        if (!rc && marked && json_array_append_new(added, added_token(s.data, i, type == HD_TOKEN_CONTROL))) rc = hd_fail_memory(r->err, s.len, "a tokenizer");
    }
    hd_str_free(&s);
    return rc;
}

static int read_merges(reader *r, json_t *merges) {
    hd_str s;
    hd_str_init(&s);
    int rc = 0;
    for (uint64_t i = 0; i < r->merges->count && !rc; i++) {
        rc = text_at(r, &s, r->merges, i);
        if (!rc && json_array_append_new(merges, json_string(s.data))) rc = hd_fail_memory(r->err, s.len, "a tokenizer");
    }
    hd_str_free(&s);
    return rc;
}

static json_t *byte_level(bool regex) {
    return json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1, "use_regex", (int)regex);
}

static json_t *split(const char *pattern) {
    return json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split", "pattern", "Regex", pattern, "behavior", "Isolated", "invert", 0);
}

static json_t *pre_tokenizer(const hd_pre *pre) {
    bool regex = !pre->splits && pre->words == HD_PRETOK_GPT2;
    json_t *list = json_array();
    if (pre->digits) json_array_append_new(list, json_pack("{s:s, s:b}", "type", "Digits", "individual_digits", 1));
    if (!regex && !pre->splits) json_array_append_new(list, split(hd_scanners[pre->words].pattern));
    for (int i = 0; pre->splits && pre->splits[i]; i++) json_array_append_new(list, split(pre->splits[i]));
    if (!json_array_size(list)) {
        json_decref(list);
        return byte_level(regex);
    }
    json_array_append_new(list, byte_level(regex));
    return json_pack("{s:s, s:o}", "type", "Sequence", "pretokenizers", list);
}

/* The ids that go around a text, -1 where none does; *eos: the file's eos where it doesn't say. */
static int read_around(const hd_gguf *g, bool bos_wanted, bool eos_wanted, int64_t count, int64_t *bos, int64_t *eos, hd_error *err) {
    *bos = -1;
    int rc = hd_gguf_bool(g, "tokenizer.ggml.add_bos_token", &bos_wanted, err);
    if (!rc) rc = hd_gguf_bool(g, "tokenizer.ggml.add_eos_token", &eos_wanted, err);
    if (!rc && bos_wanted) rc = hd_gguf_int(g, "tokenizer.ggml.bos_token_id", 0, count - 1, bos, err);
    if (!rc && eos_wanted) return hd_gguf_int(g, "tokenizer.ggml.eos_token_id", 0, count - 1, eos, err);
    *eos = -1;
    return rc;
}

static json_t *around(reader *r, int64_t id, json_t *specials) {
    hd_str s;
    hd_str_init(&s);
    json_t *piece = text_at(r, &s, r->tokens, (uint64_t)id) ? NULL : json_pack("{s:{s:s, s:i}}", "SpecialToken", "id", s.data, "type_id", 0);
    if (piece) json_object_set_new(specials, s.data, json_pack("{s:s, s:[I], s:[s]}", "id", s.data, "ids", (json_int_t)id, "tokens", s.data));
    hd_str_free(&s);
    return piece;
}

static int read_post_processor(reader *r) {
    int64_t bos, eos = -1;
    int rc = read_around(r->g, r->pre->bos, false, (int64_t)r->tokens->count, &bos, &eos, r->err);
    if (rc || (bos < 0 && eos < 0)) return rc;
    json_t *single = json_array(), *specials = json_object();
    if (bos >= 0) json_array_append_new(single, around(r, bos, specials));
    json_array_append_new(single, json_pack("{s:{s:s, s:i}}", "Sequence", "id", "A", "type_id", 0));
    if (eos >= 0) json_array_append_new(single, around(r, eos, specials));
    json_t *j = json_pack("{s:s, s:o, s:[], s:o}", "type", "TemplateProcessing", "single", single, "pair", "special_tokens", specials);
    if (!j || json_object_set_new(r->root, "post_processor", j)) return hd_fail_memory(r->err, 0, "a tokenizer");
    return r->err->code;
}

static int read_pre(reader *r) {
    const char *pre = NULL;
    int rc = hd_gguf_need(r->g, "tokenizer.ggml.pre", r->err);
    if (!rc) rc = hd_gguf_string(r->g, "tokenizer.ggml.pre", &pre, r->err);
    if (rc) return rc;
    for (r->pre = hd_pres; r->pre->name && strcmp(pre, r->pre->name);) r->pre++;
    if (!r->pre->name)
        return hd_fail(r->err, HD_EUNSUPPORTED, "%s: pre-tokenizer \"%.60s\" isn't supported (gpt-2, llama-bpe, qwen2, tekken and many others are)", r->g->path,
                       pre);
    r->ignore_merges = r->pre->ignore_merges;
    r->nfc = r->pre->nfc;
    rc = hd_gguf_bool(r->g, "heddle.tokenizer.ignore_merges", &r->ignore_merges, r->err); /* what the names don't say of tokenizers trained here */
    return rc ? rc : hd_gguf_bool(r->g, "heddle.tokenizer.nfc", &r->nfc, r->err);
}

static int read_byte_level(reader *r) {
    json_t *vocab = json_object(), *merges = json_array(), *added = json_array();
    int rc = read_tokens(r, vocab, added);
    if (!rc) rc = read_merges(r, merges);
    r->root = json_pack("{s:s, s:o, s:o, s:{s:s, s:b, s:o, s:o}, s:o}", "version", "1.0", "added_tokens", added, "decoder", byte_level(true), "model",
                        "type", "BPE", "ignore_merges", (int)r->ignore_merges, "vocab", vocab, "merges", merges, "pre_tokenizer", pre_tokenizer(r->pre));
    if (!rc && !r->root) rc = hd_fail_memory(r->err, 0, "a tokenizer");
    if (!rc && r->nfc) json_object_set_new(r->root, "normalizer", json_pack("{s:s}", "type", "NFC"));
    return rc ? rc : read_post_processor(r);
}

static int need_list(const hd_gguf *g, const char *key, bool strings, uint64_t count, const hd_gguf_value **out, hd_error *err) {
    int rc = hd_gguf_array(g, key, strings, out, err);
    if (!rc && *out && count && (*out)->count != count)
        rc = hd_fail(err, HD_EFORMAT, "%s: metadata \"%s\" has %llu elements, and there are %llu tokens", g->path, key,
                     (unsigned long long)(*out)->count, (unsigned long long)count);
    return rc;
}

static hd_tokenizer *open_byte_level(reader *r) {
    int rc = hd_gguf_need(r->g, "tokenizer.ggml.merges", r->err);
    if (!rc) rc = need_list(r->g, "tokenizer.ggml.merges", true, 0, &r->merges, r->err);
    if (!rc) rc = read_pre(r);
    if (!rc) rc = read_byte_level(r);
    if (!rc) return hd_tokenizer_from_root(r->root, r->g->path, r->err);
    json_decref(r->root);
    return NULL;
}

/* The last token of this type, or else `otherwise`, where there is such an id. */
static int64_t find_type(const reader *r, int type, int64_t otherwise) {
    int64_t count = (int64_t)r->tokens->count;
    for (int64_t i = count - 1; i >= 0; i--)
        if (type_at(r, (uint64_t)i) == type) return i;
    return otherwise < count ? otherwise : -1;
}

/* "llama" or, unigram, "t5", with llama.cpp's defaults for either. */
static hd_tokenizer *open_sentencepiece(reader *r, bool unigram) {
    hd_spm_spec s = {.path = r->g->path, .tokens = r->tokens, .types = r->types, .unk = -1, .eos = -1, .space_prefix = !unigram, .unigram = unigram};
    int64_t count = (int64_t)r->tokens->count;
    if (unigram) s.unk = find_type(r, HD_TOKEN_UNKNOWN, 2);
    if (unigram && count > 1) s.eos = 1;
    int rc = hd_gguf_need(r->g, "tokenizer.ggml.scores", r->err);
    if (!rc) rc = need_list(r->g, "tokenizer.ggml.scores", false, r->tokens->count, &s.scores, r->err);
    if (!rc) rc = hd_gguf_bool(r->g, "tokenizer.ggml.add_space_prefix", &s.space_prefix, r->err);
    if (!rc) rc = hd_gguf_int(r->g, "tokenizer.ggml.unknown_token_id", 0, count - 1, &s.unk, r->err);
    if (!rc && unigram) rc = hd_gguf_bool(r->g, "tokenizer.ggml.remove_extra_whitespaces", &s.merge_spaces, r->err);
    if (!rc && unigram) rc = hd_gguf_array(r->g, "tokenizer.ggml.precompiled_charsmap", false, &s.charsmap, r->err);
    if (!rc) rc = read_around(r->g, !unigram, unigram, count, &s.bos, &s.eos, r->err);
    return rc ? NULL : hd_spm_new(&s, r->err);
}

hd_tokenizer *hd_tokenizer_from_gguf(const hd_gguf *g, hd_error *err) {
    hd_error local = {0};
    reader r = {.g = g, .err = err ? err : &local};
    const char *model = NULL;
    int rc = hd_gguf_need(g, "tokenizer.ggml.model", r.err);
    if (!rc) rc = hd_gguf_string(g, "tokenizer.ggml.model", &model, r.err);
    if (!rc) rc = hd_gguf_need(g, "tokenizer.ggml.tokens", r.err);
    if (!rc) rc = need_list(g, "tokenizer.ggml.tokens", true, 0, &r.tokens, r.err);
    if (!rc && (r.tokens->count < 1 || r.tokens->count > 1 << 24)) rc = hd_fail(r.err, HD_EFORMAT, "%s: a tokenizer without tokens, or with too many", g->path);
    if (!rc) rc = need_list(g, "tokenizer.ggml.token_type", false, r.tokens->count, &r.types, r.err);
    if (!rc && r.types && !hd_gguf_has_integers(r.types))
        rc = hd_fail(r.err, HD_EFORMAT, "%s: metadata \"tokenizer.ggml.token_type\" must be integers", g->path);
    if (rc) return NULL;
    if (!strcmp(model, "gpt2")) return open_byte_level(&r);
    if (!strcmp(model, "llama") || !strcmp(model, "t5")) return open_sentencepiece(&r, *model == 't');
    hd_fail(r.err, HD_EUNSUPPORTED, "%s: tokenizer model \"%.60s\" isn't supported (gpt2, llama and t5 are)", g->path, model);
    return NULL;
}

int hd_tokenizer_open_gguf(hd_tokenizer **out, const char *path, hd_error *err) {
    hd_gguf g;
    *out = NULL;
    int rc = hd_gguf_open(&g, path, err);
    if (rc) return rc;
    const char *model = "no_vocab";
    rc = hd_gguf_string(&g, "tokenizer.ggml.model", &model, err);
    bool none = !strcmp(model, "no_vocab") || !strcmp(model, "none");
    if (!rc && !none && !(*out = hd_tokenizer_from_gguf(&g, err))) rc = err->code;
    hd_gguf_close(&g);
    return rc;
}

/* ---- writing ---- */

/* The name whose words are those of t; NULL: none. */
static const hd_pre *find_pre(const hd_tokenizer *t) {
    const json_t *section = json_object_get(t->sections, "pre_tokenizer");
    const json_t *first = json_array_get(json_object_get(section, "pretokenizers"), 0);
    const char *type = json_string_value(json_object_get(first, "type"));
    bool digits = t->step_count == 2 && type && !strcmp(type, "Digits") && json_is_true(json_object_get(first, "individual_digits"));
    if (t->step_count != 1 && !digits) return NULL;
    const hd_pretok_step *last = &t->steps[t->step_count - 1];
    bool plain = !last->prefix_space && last->behavior == HD_SPLIT_ISOLATED && !last->invert && last->match.scan;
    for (const hd_pre *p = hd_pres; plain && p->name; p++)
        if (!p->splits && hd_scanners[p->words].scan == last->match.scan && p->digits == digits) return p;
    return NULL;
}

static int check_writable(const hd_tokenizer *t, int64_t vocab, hd_error *err) {
    const char *what = NULL;
    bool nfc = t->normalizer_count == 1 && t->normalizers[0].kind == HD_NORM_NFC;
    if (t->unigram) what = hd_unigram_writable(t) ? NULL : "these normalizers and pre-tokenizers beside a unigram model";
    else if (t->by_char) what = "SentencePiece's BPE";
    else if (!find_pre(t)) what = "this pre-tokenizer";
    else if (t->normalizer_count && !nfc) what = "this normalizer";
    if (!what && (t->before_count > 1 || t->after_count > 1)) what = "several tokens around a text";
    for (size_t i = 0; i < t->added_count && !what; i++)
        if (t->added[i].lstrip || t->added[i].rstrip || t->added[i].single_word) what = "added tokens that take in what is beside them";
    if (what) return hd_fail(err, HD_EUNSUPPORTED, "a tokenizer with %s cannot be written to a GGUF file", what);
    if (t->id_count > vocab) return hd_fail(err, HD_EINVAL, "the tokenizer has %d tokens, and the model %lld", t->id_count, (long long)vocab);
    return 0;
}

static void put_around(const hd_tokenizer *t, int64_t bos, int64_t eos, hd_gguf_writer *w) {
    if (t->before_count) bos = t->before[0];
    if (t->after_count) eos = t->after[0];
    if (bos >= 0) hd_gguf_put_int(w, "tokenizer.ggml.bos_token_id", HD_GGUF_U32, bos);
    if (eos >= 0) hd_gguf_put_int(w, "tokenizer.ggml.eos_token_id", HD_GGUF_U32, eos);
    hd_gguf_put_bool(w, "tokenizer.ggml.add_bos_token", t->before_count > 0);
    hd_gguf_put_bool(w, "tokenizer.ggml.add_eos_token", t->after_count > 0);
}

/* Ids without a token get a name of their own, as converters do. */
static int put_tokens(const hd_tokenizer *t, int64_t vocab, hd_arena *a, hd_gguf_writer *w, hd_error *err) {
    hd_gguf_text *texts = hd_arena_alloc(a, (size_t)vocab * sizeof *texts);
    int32_t *types = hd_arena_alloc(a, (size_t)vocab * sizeof *types);
    if (!texts || !types) return hd_fail_memory(err, (size_t)vocab * sizeof *texts, "tokens of a GGUF file");
    for (int64_t i = 0; i < vocab; i++) {
        const hd_token *k = i < t->id_count && t->tokens[i].text ? &t->tokens[i] : NULL;
        const char *pad = k ? NULL : hd_arena_printf(a, "[PAD%lld]", (long long)i);
        if (!k && !pad) return hd_fail_memory(err, 16, "tokens of a GGUF file");
        texts[i] = k ? (hd_gguf_text){k->text, k->text_size} : (hd_gguf_text){pad, strlen(pad)};
        types[i] = k ? HD_TOKEN_NORMAL : HD_TOKEN_UNUSED;
    }
    for (size_t i = 0; i < t->added_count; i++) types[t->added[i].id] = t->added[i].special ? HD_TOKEN_CONTROL : HD_TOKEN_USER;
    hd_gguf_put_texts(w, "tokenizer.ggml.tokens", texts, (size_t)vocab);
    int rc = t->unigram ? hd_unigram_put(t, vocab, types, w, err) : 0;
    hd_gguf_put_numbers(w, "tokenizer.ggml.token_type", HD_GGUF_I32, types, (size_t)vocab);
    return rc;
}

static int put_merges(const hd_tokenizer *t, hd_arena *a, hd_gguf_writer *w, hd_error *err) {
    hd_gguf_text *texts = hd_arena_alloc(a, (t->merge_count + 1) * sizeof *texts);
    if (!texts) return hd_fail_memory(err, t->merge_count * sizeof *texts, "merges of a GGUF file");
    for (size_t i = 0; i < t->merge_count; i++) {
        const char *left = t->tokens[t->merge_order[i] >> 32].text, *right = t->tokens[(uint32_t)t->merge_order[i]].text;
        const char *both = hd_arena_printf(a, "%s %s", left, right);
        if (!both) return hd_fail_memory(err, 16, "merges of a GGUF file");
        texts[i] = (hd_gguf_text){both, strlen(both)};
    }
    hd_gguf_put_texts(w, "tokenizer.ggml.merges", texts, t->merge_count);
    return 0;
}

int hd_tokenizer_to_gguf(const hd_tokenizer *t, int64_t vocab, int64_t bos, int64_t eos, hd_gguf_writer *w, hd_error *err) {
    hd_arena a = {0};
    int rc = check_writable(t, vocab, err);
    if (rc) return rc;
    const hd_pre *pre = t->unigram ? NULL : find_pre(t);
    const char *name = pre ? pre->name : "default";
    hd_gguf_put_string(w, "tokenizer.ggml.model", pre ? "gpt2" : "t5", pre ? 4 : 2);
    hd_gguf_put_string(w, "tokenizer.ggml.pre", name, strlen(name));
    rc = put_tokens(t, vocab, &a, w, err);
    if (!rc && pre) rc = put_merges(t, &a, w, err);
    if (!rc) put_around(t, bos, eos, w);
    if (pre && t->ignore_merges != pre->ignore_merges) hd_gguf_put_bool(w, "heddle.tokenizer.ignore_merges", t->ignore_merges);
    if (pre && (t->normalizer_count > 0) != pre->nfc) hd_gguf_put_bool(w, "heddle.tokenizer.nfc", t->normalizer_count > 0);
    hd_arena_free(&a);
    return rc;
}
