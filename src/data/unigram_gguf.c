/* unigram_gguf.c: unigram models in GGUF files ("t5"): pieces and scores as in sentencepiece.c, SentencePiece's table of normalizations, and what becomes of
 * spaces. Both ways; what is written comes from a tokenizer.json. And the sections of a tokenizer.json for a file. */
#include <string.h>
#include "data/tokenizer_int.h"

#define SPACE "\xe2\x96\x81"
#define PAD_SCORE -10000.0f /* as converters have it: never chosen */

/* ---- reading ---- */

static int charsmap(hd_tokenizer *t, const hd_spm_spec *s, const hd_precompiled **out, hd_error *err) {
    const hd_gguf_value *v = s->charsmap;
    char where[300];
    snprintf(where, sizeof where, "%.200s: metadata \"%.80s\"", s->path, v->key);
    if (v->element != HD_GGUF_U8 && v->element != HD_GGUF_I8) return hd_fail(err, HD_EFORMAT, "%s must be an array of bytes", where);
    unsigned char *bytes = hd_arena_copy(&t->arena, v->data, (size_t)v->count);
    return bytes ? hd_precompiled_parse(t, bytes, (size_t)v->count, true, out, where, err) : hd_fail_memory(err, (size_t)v->count, "a tokenizer");
}

int hd_spm_normalizers(hd_tokenizer *t, const hd_spm_spec *s, hd_error *err) {
    t->normalizers = hd_arena_alloc(&t->arena, 2 * sizeof *t->normalizers);
    if (!t->normalizers) return hd_fail_memory(err, 2 * sizeof *t->normalizers, "a tokenizer");
    if (s->charsmap && s->charsmap->count) {
        hd_normalizer *z = &t->normalizers[t->normalizer_count++];
        z->kind = HD_NORM_PRECOMPILED;
        int rc = charsmap(t, s, &z->map, err);
        if (rc) return rc;
    }
    t->normalizers[t->normalizer_count++] = (hd_normalizer){.kind = HD_NORM_META, .prefix = s->space_prefix, .merge = s->merge_spaces};
    t->strip_space = s->space_prefix;
    return 0;
}

/* Pieces that the user defined score 0, above all others: as in llama.cpp. */
int hd_spm_unigram(hd_tokenizer *t, const hd_spm_spec *s, hd_error *err) {
    double *scores = hd_arena_alloc(&t->arena, (size_t)t->id_count * sizeof *scores), least = 0;
    if (!scores) return hd_fail_memory(err, (size_t)t->id_count * sizeof *scores, "vocabulary of a tokenizer");
    bool any = false;
    for (int32_t id = 0; id < t->id_count; id++) {
        int type = s->types ? (int)hd_gguf_integer(s->types, (uint64_t)id) : HD_TOKEN_NORMAL;
        double score = hd_gguf_number(s->scores, (uint64_t)id);
        scores[id] = type == HD_TOKEN_USER ? 0 : score;
        if (type != HD_TOKEN_NORMAL || (any && score >= least)) continue;
        least = score;
        any = true;
    }
    return hd_unigram_build(t, scores, least, false, err);
}

/* ---- writing ---- */

/* What a tokenizer.json's normalizers and pre-tokenizers come to. */
typedef struct shape {
    const hd_precompiled *map;
    bool prefix, merge;
} shape;

static bool is_text(const char *text, size_t n, const char *want) { return n == strlen(want) && !memcmp(text, want, n); }
static bool spaces_to_meta(const hd_normalizer *z) {
    return z->kind == HD_NORM_REPLACE && is_text(z->from, z->from_size, " ") && is_text(z->to, z->to_size, SPACE);
}

/* The three that converters write: [Prepend,] Replace (Llama); Strip, Replace of runs, Metaspace (T5); WhitespaceSplit, Metaspace (XLM-RoBERTa). */
static bool find_shape(const hd_tokenizer *t, shape *s) {
    const hd_normalizer *z = t->normalizers;
    size_t n = t->normalizer_count, steps = t->step_count;
    *s = (shape){0};
    if (n && z->kind == HD_NORM_PRECOMPILED) {
        s->map = z->map;
        z++;
        n--;
    }
    if (!steps) {
        s->prefix = n == 2 && z->kind == HD_NORM_PREPEND && is_text(z->to, z->to_size, SPACE);
        return n && n == 1u + s->prefix && spaces_to_meta(&z[n - 1]);
    }
    s->prefix = s->merge = true;
    if (t->steps[steps - 1].metaspace != HD_META_ALWAYS) return false;
    bool runs = n == 2 && z[1].kind == HD_NORM_SPACES && (is_text(z[1].to, z[1].to_size, SPACE) || is_text(z[1].to, z[1].to_size, " "));
    if (steps == 1) return runs && z[0].kind == HD_NORM_STRIP && z[0].right;
    const json_t *first = json_array_get(json_object_get(json_object_get(t->sections, "pre_tokenizer"), "pretokenizers"), 0);
    const char *type = json_string_value(json_object_get(first, "type"));
    return steps == 2 && !n && s->map && type && !strcmp(type, "WhitespaceSplit");
}

bool hd_unigram_writable(const hd_tokenizer *t) {
    shape s;
    return t->sections && find_shape(t, &s);
}

int hd_unigram_put(const hd_tokenizer *t, int64_t vocab, int32_t *types, hd_gguf_writer *w, hd_error *err) {
    shape s;
    float *scores = hd_malloc((size_t)vocab * sizeof *scores);
    if (!scores) return hd_fail_memory(err, (size_t)vocab * sizeof *scores, "scores of a GGUF file");
    for (int64_t i = 0; i < vocab; i++) scores[i] = types[i] == HD_TOKEN_UNUSED ? PAD_SCORE : i < t->id_count ? (float)hd_unigram_scores(t, NULL)[i] : 0;
    hd_gguf_put_numbers(w, "tokenizer.ggml.scores", HD_GGUF_F32, scores, (size_t)vocab);
    hd_free(scores);
    for (int i = 0; t->byte_pieces && i < 256; i++)
        if (t->byte_id[i] >= 0) types[t->byte_id[i]] = HD_TOKEN_BYTE;
    if (t->unk_id >= 0) types[t->unk_id] = HD_TOKEN_UNKNOWN;
    if (t->unk_id >= 0) hd_gguf_put_int(w, "tokenizer.ggml.unknown_token_id", HD_GGUF_U32, t->unk_id);
    find_shape(t, &s);
    hd_gguf_put_bool(w, "tokenizer.ggml.add_space_prefix", s.prefix);
    hd_gguf_put_bool(w, "tokenizer.ggml.remove_extra_whitespaces", s.merge);
    if (!s.map) return 0;
    size_t n;
    const void *bytes = hd_precompiled_bytes(s.map, &n);
    const hd_gguf_value v = {.key = "tokenizer.ggml.precompiled_charsmap", .kind = HD_GGUF_ARRAY, .element = HD_GGUF_U8, .count = n, .data = bytes};
    hd_gguf_put_value(w, &v);
    return 0;
}

/* ---- the sections of a tokenizer.json ---- */

static json_t *replace(const char *kind, const char *from, const char *to) {
    return json_pack("{s:s, s:{s:s}, s:s}", "type", "Replace", "pattern", kind, from, "content", to);
}

static json_t *normalizer(const hd_tokenizer *t, const hd_normalizer *meta) {
    json_t *list = json_array();
    if (meta != t->normalizers) {
        hd_str text;
        hd_str_init(&text);
        hd_precompiled_text(t->normalizers->map, &text);
        json_array_append_new(list, text.failed ? NULL : json_pack("{s:s, s:s}", "type", "Precompiled", "precompiled_charsmap", text.data));
        hd_str_free(&text);
    }
    if (meta->merge) json_array_append_new(list, json_pack("{s:s, s:b, s:b}", "type", "Strip", "strip_left", 0, "strip_right", 1));
    else if (meta->prefix) json_array_append_new(list, json_pack("{s:s, s:s}", "type", "Prepend", "prepend", SPACE));
    json_array_append_new(list, meta->merge ? replace("Regex", " {2,}", SPACE) : replace("String", " ", SPACE));
    return json_pack("{s:s, s:o}", "type", "Sequence", "normalizers", list);
}

static json_t *metaspace(bool prefix) {
    return json_pack("{s:s, s:s, s:s, s:b}", "type", "Metaspace", "replacement", SPACE, "prepend_scheme", prefix ? "always" : "never", "split", 1);
}

static json_t *decoder(const hd_tokenizer *t, bool prefix) {
    bool bytes = false;
    for (int i = 0; i < 256; i++) bytes |= t->byte_id[i] >= 0;
    if (!bytes) return metaspace(prefix);
    json_t *list = json_pack("[o, {s:s}, {s:s}]", replace("String", SPACE, " "), "type", "ByteFallback", "type", "Fuse");
    if (prefix) json_array_append_new(list, json_pack("{s:s, s:s, s:i, s:i}", "type", "Strip", "content", " ", "start", 1, "stop", 0));
    return json_pack("{s:s, s:o}", "type", "Sequence", "decoders", list);
}

static void put_around(const hd_tokenizer *t, const int32_t *ids, size_t n, json_t *single, json_t *specials) {
    for (size_t i = 0; i < n; i++) {
        const char *text = t->tokens[ids[i]].text;
        json_array_append_new(single, json_pack("{s:{s:s, s:i}}", "SpecialToken", "id", text, "type_id", 0));
        json_object_set_new(specials, text, json_pack("{s:s, s:[i], s:[s]}", "id", text, "ids", (int)ids[i], "tokens", text));
    }
}

static json_t *post_processor(const hd_tokenizer *t) {
    if (!t->before_count && !t->after_count) return json_null();
    json_t *single = json_array(), *specials = json_object();
    put_around(t, t->before, t->before_count, single, specials);
    json_array_append_new(single, json_pack("{s:{s:s, s:i}}", "Sequence", "id", "A", "type_id", 0));
    put_around(t, t->after, t->after_count, single, specials);
    return json_pack("{s:s, s:o, s:[], s:o}", "type", "TemplateProcessing", "single", single, "pair", "special_tokens", specials);
}

json_t *hd_unigram_sections(const hd_tokenizer *t, hd_error *err) {
    const hd_normalizer *meta = &t->normalizers[t->normalizer_count - 1];
    if (meta->merge && !meta->prefix) {
        hd_fail(err, HD_EUNSUPPORTED, "a unigram tokenizer that removes spaces and puts none in front cannot be written as a tokenizer.json");
        return NULL;
    }
    json_t *pre = meta->merge ? metaspace(true) : json_null();
    json_t *j = json_pack("{s:o, s:o, s:o, s:o}", "normalizer", normalizer(t, meta), "pre_tokenizer", pre, "post_processor", post_processor(t), "decoder",
                          decoder(t, meta->prefix));
    if (!j) hd_fail_memory(err, 0, "a tokenizer.json");
    return j;
}
