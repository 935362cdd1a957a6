/* test_unigram.c: unigram tokenizers in GGUF files against what SentencePiece and llama.cpp gave (see make_unigram_fixtures.py). */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/json.h"
#include "base/mem.h"
#include "data/tokenizer.h"
#include "data/tokenizer_gguf.h"

#define DATA TEST_SOURCE_DIR "/tests/data/gguf/"
#define KEY(name) "tokenizer.ggml." name

static void need(int rc, const hd_error *err) {
    if (rc) fail_msg("%d: %s", rc, err->message);
}

static json_t *fixtures(void) {
    hd_error err = {0};
    json_t *all = hd_json_load(DATA "unigram.json", &err);
    if (!all) fail_msg("%s", err.message);
    return all;
}

static hd_tokenizer *open_file(const char *name) {
    char path[512];
    hd_error err = {0};
    hd_tokenizer *t = NULL;
    snprintf(path, sizeof path, DATA "unigram-%s.gguf", name);
    need(hd_tokenizer_open_gguf(&t, path, &err), &err);
    return t;
}

static void check_ids(hd_encoder *e, const hd_tokenizer *t, const char *name, const json_t *text, const json_t *want) {
    hd_error err = {0};
    hd_ids ids = {0};
    need(hd_encoder_run(e, json_string_value(text), json_string_length(text), true, &ids, &err), &err);
    bool same = ids.len == json_array_size(want);
    for (size_t i = 0; same && i < ids.len; i++) same = ids.data[i] == json_integer_value(json_array_get(want, i));
    if (!same) {
        hd_str got;
        hd_str_init(&got);
        for (size_t i = 0; i < ids.len; i++) hd_str_printf(&got, "%d(%s) ", ids.data[i], hd_tokenizer_token(t, ids.data[i]));
        fail_msg("%s: other ids for \"%s\": %s instead of %s", name, json_string_value(text), got.data, json_dumps(want, 0));
    }
    hd_ids_free(&ids);
}

static void check_decoded(const hd_tokenizer *t, const char *name, const json_t *ids, const json_t *want) {
    hd_error err = {0};
    int32_t list[512];
    size_t n = json_array_size(ids);
    hd_str out;
    hd_str_init(&out);
    assert_true(n <= 512);
    for (size_t i = 0; i < n; i++) list[i] = (int32_t)json_integer_value(json_array_get(ids, i));
    need(hd_tokenizer_decode(t, list, n, true, &out, &err), &err);
    bool same = out.len == json_string_length(want) && !memcmp(out.data, json_string_value(want), out.len);
    if (!same) fail_msg("%s: decoded to \"%s\" instead of \"%s\"", name, out.data, json_string_value(want));
    hd_str_free(&out);
}

/* Ids, and texts where there are any, of all the texts by t, which is used up. */
static size_t check_all(hd_tokenizer *t, const char *name, const json_t *texts, const json_t *ids, const json_t *decoded) {
    hd_error err = {0};
    size_t i, n = 0;
    json_t *text;
    hd_encoder *e = hd_encoder_new(t, &err);
    json_array_foreach(texts, i, text) {
        const json_t *want = json_array_get(ids, i), *back = json_array_get(decoded, i);
        if (json_is_null(want)) continue;
        check_ids(e, t, name, text, want);
        if (json_is_string(back)) check_decoded(t, name, want, back);
        n++;
    }
    hd_encoder_free(e);
    hd_tokenizer_free(t);
    return n;
}

static void as_written(void **state) {
    static const struct { const char *name; size_t least; } files[] = {{"t5", 130}, {"keep", 120}, {"plain", 130}, {"bare", 110}, {"bytes", 110}};
    (void)state;
    json_t *all = fixtures(), *decoded = json_object_get(all, "decoded");
    for (size_t k = 0; k < sizeof files / sizeof *files; k++) {
        const char *name = files[k].name;
        const json_t *ids = json_object_get(json_object_get(all, "ids"), name);
        size_t n = check_all(open_file(name), name, json_object_get(all, "texts"), ids, json_object_get(decoded, name));
        if (n < files[k].least) fail_msg("%s: %zu texts only", name, n);
    }
    json_decref(all);
}

/* Where llama.cpp and SentencePiece say nothing alike: no space is made up in front, and one that is there beside an added token stays. */
static void spaces_beside_added_tokens(void **state) {
    static const struct { const char *text, *same; } pairs[] = {{"<b>  the", "<b> the"}, {" <b>the ", "<b>the"}};
    (void)state;
    hd_error err = {0};
    hd_tokenizer *t = open_file("bare");
    int32_t b = hd_tokenizer_id(t, "<b>");
    for (int i = 0; i < 2; i++) {
        hd_ids x = {0}, y = {0};
        need(hd_tokenizer_encode(t, pairs[i].text, strlen(pairs[i].text), true, &x, &err), &err);
        need(hd_tokenizer_encode(t, pairs[i].same, strlen(pairs[i].same), true, &y, &err), &err);
        assert_true(x.len == y.len && x.len >= 2 && !memcmp(x.data, y.data, x.len * 4) && x.data[0] == b);
        assert_int_equal(hd_tokenizer_token(t, x.data[1])[0] == '\xe2', i == 0);
        hd_ids_free(&x);
        hd_ids_free(&y);
    }
    hd_tokenizer_free(t);
}

/* ---- from a tokenizer.json ---- */

static hd_tokenizer *parse(const json_t *j, hd_error *err) {
    char *text = json_dumps(j, 0);
    hd_tokenizer *t = hd_tokenizer_parse(text, strlen(text), "tokenizer.json", err);
    free(text);
    return t;
}

/* t, which is used up, through a GGUF file with three tokens more. */
static hd_tokenizer *through_file(hd_tokenizer *t, hd_error *err) {
    char path[] = "/tmp/heddle-unigram-XXXXXX";
    close(mkstemp(path));
    hd_tokenizer *back = NULL;
    hd_gguf_writer *w = hd_gguf_writer_new(err);
    int rc = hd_tokenizer_to_gguf(t, hd_tokenizer_vocab_size(t) + 3, 1, 2, w, err);
    if (rc) hd_gguf_writer_free(w);
    else rc = hd_gguf_end(w, hd_gguf_begin(w, path, err), err);
    if (!rc) rc = hd_tokenizer_open_gguf(&back, path, err);
    unlink(path);
    hd_tokenizer_free(t);
    return back;
}

static void there_and_back(void **state) {
    (void)state;
    hd_error err = {0};
    json_t *all = fixtures(), *texts = json_object_get(all, "texts"), *ids = json_object_get(all, "json_ids"), *j = json_object_get(all, "json");
    hd_tokenizer *t = parse(j, &err);
    need(t ? 0 : err.code, &err);
    hd_tokenizer *back = through_file(t, &err);
    need(back ? 0 : err.code, &err);
    assert_int_equal(check_all(parse(j, &err), "json", texts, ids, NULL), json_array_size(texts));
    size_t i, n = json_array_size(texts);
    json_t *text;
    json_array_foreach(texts, i, text) /* `tokenizers` takes a byte piece's name in a text for it */
        if (!strcmp(json_string_value(text), "<0x0A>")) json_array_set_new(ids, i, json_null());
    assert_int_equal(check_all(back, "json through gguf", texts, ids, json_object_get(json_object_get(all, "decoded"), "bytes")), n - 1);
    json_decref(all);
}

/* Normalizers and pre-tokenizers that a GGUF file can say, and some that it cannot. */
static void other_sections(void **state) {
    static const char spaces[] = "{\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"Strip\", \"strip_left\": false, \"strip_right\": true}, "
                                 "{\"type\": \"Replace\", \"pattern\": {\"Regex\": \" {2,}\"}, \"content\": \"\xe2\x96\x81\"}]}";
    static const struct { const char *normalizer, *pre; bool written; } cases[] = {
        {spaces, "{\"type\": \"Metaspace\", \"replacement\": \"\xe2\x96\x81\", \"prepend_scheme\": \"always\"}", true},
        {spaces, "{\"type\": \"Metaspace\", \"replacement\": \"\xe2\x96\x81\", \"prepend_scheme\": \"first\"}", false},
        {"{\"type\": \"Replace\", \"pattern\": {\"String\": \" \"}, \"content\": \"\xe2\x96\x81\"}", "null", true},
        {"{\"type\": \"Replace\", \"pattern\": {\"String\": \" \"}, \"content\": \"_\"}", "null", false},
        {"null", "null", false},
        {"null", "{\"type\": \"Metaspace\", \"replacement\": \"\xe2\x96\x81\", \"prepend_scheme\": \"always\"}", false},
    };
    (void)state;
    json_t *all = fixtures(), *j = json_object_get(all, "json");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hd_error err = {0};
        json_object_set_new(j, "normalizer", json_loads(cases[i].normalizer, JSON_DECODE_ANY, NULL));
        json_object_set_new(j, "pre_tokenizer", json_loads(cases[i].pre, JSON_DECODE_ANY, NULL));
        hd_tokenizer *t = parse(j, &err), *back = t ? through_file(t, &err) : NULL;
        if (!t || !back != !cases[i].written || (!back && err.code != HD_EUNSUPPORTED)) fail_msg("case %zu: \"%s\"", i, err.message);
        hd_tokenizer_free(back);
    }
    json_decref(all);
}

/* A GGUF file's tokenizer, t, as a tokenizer.json, and read again. Uses t up. */
static hd_tokenizer *through_json(hd_tokenizer *t, hd_error *err) {
    char path[] = "/tmp/heddle-unigram-XXXXXX";
    close(mkstemp(path));
    hd_tokenizer *back = hd_tokenizer_save(t, path, err) ? NULL : hd_tokenizer_load(path, err);
    unlink(path);
    hd_tokenizer_free(t);
    return back;
}

/* `tokenizers` looks for normalizations cluster by cluster, puts no space before a U+2581, and takes a byte piece's name in a text for it. */
static bool differs_there(const char *text) {
    static const char *const marks[] = {"\xe2\x96\x81", "\xe3\x80\x80", "\xc2\xad", "\r", "<0x0A>", "[PAD"};
    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++)
        if (strstr(text, marks[i])) return true;
    return false;
}

static void as_json(void **state) {
    static const char *const files[] = {"t5", "keep", "plain", "bytes"};
    (void)state;
    json_t *all = fixtures(), *texts = json_object_get(all, "texts"), *text;
    size_t i;
    for (int k = 0; k < 4; k++) {
        hd_error err = {0};
        hd_tokenizer *t = through_json(open_file(files[k]), &err);
        if (!t) fail_msg("%s: %s", files[k], err.message);
        json_t *ids = json_object_get(json_object_get(all, "ids"), files[k]), *decoded = json_object_get(json_object_get(all, "decoded"), files[k]);
        json_array_foreach(texts, i, text)
            if (differs_there(json_string_value(text))) json_array_set_new(ids, i, json_null());
        assert_true(check_all(t, files[k], texts, ids, k == 1 ? NULL : decoded) >= 40);
        t = through_json(through_json(open_file(files[k]), &err), &err); /* and what came from a tokenizer.json */
        if (!t) fail_msg("%s: %s", files[k], err.message);
        check_all(t, files[k], texts, ids, NULL);
    }
    hd_error err = {0};
    assert_null(through_json(open_file("bare"), &err));
    assert_int_equal(err.code, HD_EUNSUPPORTED);
    json_decref(all);
}

/* ---- files that lack something, or have it wrong ---- */

typedef struct change {
    const char *key;  /* of the fixture's, left out or replaced; or a new one */
    void (*put)(hd_gguf_writer *w, const char *key, const hd_gguf_value *old);
    const char *message; /* NULL: it opens */
} change;

/* The file t5 with one piece of its metadata changed. */
static int open_changed(const change *c, hd_tokenizer **t, hd_error *err) {
    char path[] = "/tmp/heddle-unigram-XXXXXX";
    hd_gguf g;
    close(mkstemp(path));
    need(hd_gguf_open(&g, DATA "unigram-t5.gguf", err), err);
    hd_gguf_writer *w = hd_gguf_writer_new(err);
    for (size_t i = 0; i < g.value_count; i++)
        if (strncmp(g.values[i].key, "GGUF.", 5) && strcmp(g.values[i].key, c->key)) hd_gguf_put_value(w, &g.values[i]);
    if (c->put) c->put(w, c->key, hd_gguf_get(&g, c->key));
    need(hd_gguf_end(w, hd_gguf_begin(w, path, err), err), err);
    hd_gguf_close(&g);
    int rc = hd_tokenizer_open_gguf(t, path, err);
    unlink(path);
    return rc;
}

static void put_one_less(hd_gguf_writer *w, const char *key, const hd_gguf_value *old) {
    hd_gguf_value v = *old;
    v.key = key;
    v.count--;
    hd_gguf_put_value(w, &v);
}

static void put_not_finite(hd_gguf_writer *w, const char *key, const hd_gguf_value *old) {
    float *x = malloc(old->count * 4);
    for (uint64_t i = 0; i < old->count; i++) x[i] = i == 7 ? -1.0f / 0.0f : -1;
    hd_gguf_put_numbers(w, key, HD_GGUF_F32, x, old->count);
    free(x);
}

static void put_text(hd_gguf_writer *w, const char *key, const hd_gguf_value *old) {
    (void)old;
    hd_gguf_put_string(w, key, "a", 1);
}

static void put_floats(hd_gguf_writer *w, const char *key, const hd_gguf_value *old) {
    static const float x[4] = {0};
    (void)old;
    hd_gguf_put_numbers(w, key, HD_GGUF_F32, x, 4);
}

static void put_bytes(hd_gguf_writer *w, const char *key, const hd_gguf_value *old, size_t n, size_t at, unsigned char byte) {
    unsigned char *copy = malloc(n);
    memcpy(copy, old->data, n);
    copy[at] = byte;
    hd_gguf_put_value(w, &(hd_gguf_value){.key = key, .kind = HD_GGUF_ARRAY, .element = HD_GGUF_U8, .count = n, .data = copy});
    free(copy);
}

static void put_short_map(hd_gguf_writer *w, const char *key, const hd_gguf_value *old) { put_bytes(w, key, old, 3, 0, 0); }
static void put_long_table(hd_gguf_writer *w, const char *key, const hd_gguf_value *old) { put_bytes(w, key, old, old->count, 2, 0x7f); }
static void put_open_end(hd_gguf_writer *w, const char *key, const hd_gguf_value *old) { put_bytes(w, key, old, old->count, old->count - 1, 'x'); }
static void put_no_utf8(hd_gguf_writer *w, const char *key, const hd_gguf_value *old) { put_bytes(w, key, old, old->count, old->count - 2, 0xff); }
static void put_large_id(hd_gguf_writer *w, const char *key, const hd_gguf_value *old) { hd_gguf_put_int(w, key, HD_GGUF_U32, old ? 5000 : 0); }

/* A value, bit 31 of its unit, far behind the texts. */
static void put_far_text(hd_gguf_writer *w, const char *key, const hd_gguf_value *old) {
    size_t unit = 4;
    while (!(old->data[unit + 3] & 0x80)) unit += 4;
    put_bytes(w, key, old, old->count, unit + 2, 0x7f);
}

static void other_files(void **state) {
    static const change changes[] = {
        {KEY("scores"), NULL, "\"tokenizer.ggml.scores\" is missing"},
        {KEY("tokens"), NULL, "\"tokenizer.ggml.tokens\" is missing"},
        {KEY("scores"), put_one_less, "\"tokenizer.ggml.scores\" has 202 elements, and there are 203 tokens"},
        {KEY("token_type"), put_one_less, "\"tokenizer.ggml.token_type\" has 202 elements"},
        {KEY("scores"), put_not_finite, "\"tokenizer.ggml.scores\"[7] is no score"},
        {KEY("add_space_prefix"), put_text, "add_space_prefix"},
        {KEY("remove_extra_whitespaces"), put_text, "remove_extra_whitespaces"},
        {KEY("unknown_token_id"), put_large_id, "unknown_token_id"},
        {KEY("eos_token_id"), put_large_id, "eos_token_id"},
        {KEY("precompiled_charsmap"), put_text, "precompiled_charsmap"},
        {KEY("precompiled_charsmap"), put_floats, "must be an array of bytes"},
        {KEY("precompiled_charsmap"), put_short_map, "a broken \"precompiled_charsmap\""},
        {KEY("precompiled_charsmap"), put_long_table, "a broken \"precompiled_charsmap\""},
        {KEY("precompiled_charsmap"), put_open_end, "a broken \"precompiled_charsmap\""},
        {KEY("precompiled_charsmap"), put_no_utf8, "not UTF-8"},
        {KEY("precompiled_charsmap"), put_far_text, "beyond its texts"},
        {KEY("precompiled_charsmap"), NULL, NULL},
        {KEY("token_type"), NULL, NULL},
        {KEY("unknown_token_id"), NULL, NULL},
        {KEY("eos_token_id"), NULL, NULL},
        {KEY("add_eos_token"), NULL, NULL},
    };
    (void)state;
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        hd_error err = {0};
        hd_ids ids = {0};
        hd_tokenizer *t = NULL;
        int rc = open_changed(&changes[i], &t, &err);
        const char *wanted = changes[i].message;
        bool as_wanted = wanted ? rc < 0 && !t && strstr(err.message, wanted) && !strchr(err.message, '\n') : !rc;
        if (!as_wanted) fail_msg("%s: wanted \"%s\", got %d \"%s\"", changes[i].key, wanted ? wanted : "", rc, err.message);
        if (t) need(hd_tokenizer_encode(t, "the \xe6\x97\xa5", 7, true, &ids, &err), &err);
        bool eos = ids.len && ids.data[ids.len - 1] == (strcmp(changes[i].key, KEY("eos_token_id")) ? 2 : 1);
        bool unk = ids.len > 1 && ids.data[ids.len - 2] == 0;
        if (t && !(eos && unk)) fail_msg("%s: other defaults", changes[i].key);
        hd_ids_free(&ids);
        hd_tokenizer_free(t);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(as_written), cmocka_unit_test(spaces_beside_added_tokens), cmocka_unit_test(there_and_back),
                                       cmocka_unit_test(other_sections), cmocka_unit_test(as_json), cmocka_unit_test(other_files)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
