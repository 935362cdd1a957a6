/* test_pieces.c: pre-tokenizers that GGUF files name, Metaspace, and Unigram against what Hugging Face `tokenizers` gave (see make_pieces_fixtures.py). */
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

#define DATA TEST_SOURCE_DIR "/tests/data/tokenizer/"

static json_t *fixtures(void) {
    hd_error err = {0};
    json_t *all = hd_json_load(DATA "pieces.json", &err);
    if (!all) fail_msg("%s", err.message);
    return all;
}

static void check_ids(const hd_tokenizer *t, const char *name, const json_t *text, const json_t *want, const json_t *decoded) {
    hd_error err = {0};
    hd_ids ids = {0};
    hd_str out;
    hd_str_init(&out);
    if (hd_tokenizer_encode(t, json_string_value(text), json_string_length(text), true, &ids, &err)) fail_msg("%s: %s", name, err.message);
    bool same = ids.len == json_array_size(want);
    for (size_t i = 0; same && i < ids.len; i++) same = ids.data[i] == json_integer_value(json_array_get(want, i));
    if (!same) {
        for (size_t i = 0; i < ids.len; i++) hd_str_printf(&out, "%d(%s) ", ids.data[i], hd_tokenizer_token(t, ids.data[i]));
        char *wanted = json_dumps(want, 0);
        fail_msg("%s: other ids for \"%s\": %s instead of %s", name, json_string_value(text), out.data, wanted);
    }
    if (decoded) {
        assert_int_equal(hd_tokenizer_decode(t, ids.data, ids.len, true, &out, &err), 0);
        bool equal = out.len == json_string_length(decoded) && !memcmp(out.data, json_string_value(decoded), out.len);
        if (!equal) fail_msg("%s: \"%s\" is decoded to \"%s\" instead of \"%s\"", name, json_string_value(text), out.data, json_string_value(decoded));
    }
    hd_ids_free(&ids);
    hd_str_free(&out);
}

static void as_tokenizers(void **state) {
    (void)state;
    json_t *all = fixtures(), *one, *c;
    size_t i, k;
    assert_true(json_array_size(json_object_get(all, "json")) >= 20);
    json_array_foreach(json_object_get(all, "json"), i, one) {
        hd_error err = {0};
        const char *name = json_string_value(json_array_get(one, 0));
        json_t *j = json_copy(json_object_get(json_object_get(all, "bases"), json_string_value(json_array_get(one, 1))));
        json_object_update(j, json_array_get(one, 2));
        char *text = json_dumps(j, 0);
        hd_tokenizer *t = hd_tokenizer_parse(text, strlen(text), name, &err);
        if (!t) fail_msg("%s: %s", name, err.message);
        json_array_foreach(json_array_get(one, 3), k, c) check_ids(t, name, json_array_get(c, 0), json_array_get(c, 1), json_array_get(c, 2));
        hd_tokenizer_free(t);
        free(text);
        json_decref(j);
    }
    json_decref(all);
}

/* ---- GGUF ---- */

static void put_list(hd_gguf_writer *w, const char *key, const json_t *list) {
    size_t n = json_array_size(list);
    hd_gguf_text *texts = calloc(n, sizeof *texts);
    for (size_t i = 0; i < n; i++) texts[i] = (hd_gguf_text){json_string_value(json_array_get(list, i)), json_string_length(json_array_get(list, i))};
    hd_gguf_put_texts(w, key, texts, n);
    free(texts);
}

static hd_tokenizer *open_as(const json_t *pre, const char *name) {
    hd_error err = {0};
    char path[] = "/tmp/heddle-pieces-XXXXXX";
    close(mkstemp(path));
    hd_gguf_writer *w = hd_gguf_writer_new(&err);
    hd_gguf_put_string(w, "tokenizer.ggml.model", "gpt2", 4);
    hd_gguf_put_string(w, "tokenizer.ggml.pre", name, strlen(name));
    hd_gguf_put_bool(w, "tokenizer.ggml.add_bos_token", false);
    put_list(w, "tokenizer.ggml.tokens", json_object_get(pre, "tokens"));
    put_list(w, "tokenizer.ggml.merges", json_object_get(pre, "merges"));
    hd_tokenizer *t = NULL;
    if (hd_gguf_end(w, hd_gguf_begin(w, path, &err), &err) || hd_tokenizer_open_gguf(&t, path, &err)) fail_msg("%s: %s", name, err.message);
    unlink(path);
    return t;
}

static void named_pre_tokenizers(void **state) {
    (void)state;
    json_t *all = fixtures(), *pre = json_object_get(all, "pre"), *list, *c;
    const char *name;
    size_t k, n = 0;
    json_object_foreach(json_object_get(pre, "cases"), name, list) {
        hd_tokenizer *t = open_as(pre, name);
        json_array_foreach(list, k, c) check_ids(t, name, json_array_get(c, 0), json_array_get(c, 1), NULL);
        hd_tokenizer_free(t);
        n++;
    }
    assert_true(n >= 18);
    json_decref(all);
}

/* ---- bad files ---- */

static void refuse(const char *json, const char *message) {
    hd_error err = {0};
    hd_tokenizer *t = hd_tokenizer_parse(json, strlen(json), "t", &err);
    if (t || !strstr(err.message, message)) fail_msg("%s: \"%s\"", json, err.message);
}

static void refuses_bad_unigrams(void **state) {
    (void)state;
    refuse("{\"model\": {\"type\": \"Unigram\", \"vocab\": {}}}", "must be a list");
    refuse("{\"model\": {\"type\": \"Unigram\", \"vocab\": [[\"a\"]]}}", "vocab[0] must be");
    refuse("{\"model\": {\"type\": \"Unigram\", \"vocab\": [[\"a\", 0]], \"unk_id\": 1}, \"decoder\": {\"type\": \"Metaspace\", \"replacement\": "
           "\"\xe2\x96\x81\"}}",
           "unk_id");
    refuse("{\"model\": {\"type\": \"Unigram\", \"vocab\": [[\"a\", 0]]}, \"decoder\": {\"type\": \"Metaspace\", \"replacement\": \"_\"}}", "U+2581");
    refuse("{\"model\": {\"type\": \"Unigram\", \"vocab\": [[\"a\", 0]]}, \"normalizer\": {\"type\": \"Precompiled\"}, \"decoder\": null}", "Precompiled");
    refuse("{\"model\": {\"type\": \"Unigram\", \"vocab\": [[\"a\", 0], [\"a\", 1]], \"unk_id\": 0}, \"decoder\": null}", "whose text another one has");
    refuse("{\"model\": {\"type\": \"Unigram\", \"vocab\": [[\"a\", 0]]}, \"normalizer\": {\"type\": \"Precompiled\", \"precompiled_charsmap\": \"AAAA\"}}",
           "broken");
    hd_error err = {0};
    hd_ids ids = {0};
    static const char plain[] = "{\"model\": {\"type\": \"Unigram\", \"vocab\": [[\"a\", -1], [\"aa\", -1.5]]}, \"decoder\": {\"type\": \"Metaspace\", "
                                "\"replacement\": \"\xe2\x96\x81\"}}";
    hd_tokenizer *t = hd_tokenizer_parse(plain, sizeof plain - 1, "t", &err);
    if (!t) fail_msg("%s", err.message);
    assert_int_equal(hd_tokenizer_encode(t, "aaa", 3, true, &ids, &err), 0);
    assert_int_equal(ids.len, 2);
    assert_true(hd_tokenizer_encode(t, "ab", 2, true, &ids, &err) == HD_EINVAL && strstr(err.message, "unknown"));
    hd_ids_free(&ids);
    hd_tokenizer_free(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(as_tokenizers), cmocka_unit_test(named_pre_tokenizers), cmocka_unit_test(refuses_bad_unigrams)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
