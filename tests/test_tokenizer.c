/* test_tokenizer.c: the tokenizer against what Hugging Face `tokenizers` gave (tests/data/tokenizer, see make_tokenizer_fixtures.py). */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/json.h"
#include "data/tokenizer_int.h"
#include "tokenizer_cases.h"

#define DATA TEST_SOURCE_DIR "/tests/data/tokenizer/"

static hd_tokenizer *load(const char *path) {
    hd_error err = {0};
    hd_tokenizer *t = hd_tokenizer_load(path, &err);
    if (!t) fail_msg("%s", err.message);
    return t;
}

static hd_tokenizer *load_named(int k) {
    char path[4096];
    snprintf(path, sizeof path, DATA "%s.json", case_tokenizers[k]);
    return load(path);
}

static void open_cases(case_file *f) {
    hd_error err = {0};
    if (case_open(f, DATA "cases.bin", &err)) fail_msg("%s", err.message);
}

/* ---- ids -------------------------------------------------------------------------------------------------------- */

static void encodes_as_tokenizers(void **state) {
    (void)state;
    hd_error err = {0};
    case_file f;
    text_case c;
    int valid = 0, seen[CASE_CLASSES] = {0}, classes = 0;
    open_cases(&f);
    hd_encoder *e[CASE_TOKENIZERS];
    hd_tokenizer *t[CASE_TOKENIZERS];
    for (int k = 0; k < CASE_TOKENIZERS; k++) e[k] = hd_encoder_new(t[k] = load_named(k), &err);
    while (case_next(&f, &c)) {
        bool is_valid = hd_utf8_valid((const unsigned char *)c.text, c.size) == c.size;
        valid += is_valid;
        classes += is_valid && !seen[c.class]++;
        for (int k = 0; k < CASE_TOKENIZERS; k++) {
            hd_ids ids = {0};
            assert_int_equal(hd_encoder_run(e[k], c.text, c.size, true, &ids, &err), 0);
            if (!case_same(&c, k, &ids)) fail_msg("%s, %s: other ids for \"%.*s\"", case_tokenizers[k], f.name[c.class], (int)c.size, c.text);
            hd_ids_free(&ids);
        }
    }
    assert_true(valid >= 2000 && classes >= 20);
    for (int k = 0; k < CASE_TOKENIZERS; k++) {
        hd_encoder_free(e[k]);
        hd_tokenizer_free(t[k]);
    }
    hd_map_close(&f.map);
}

static void check_ids(const hd_tokenizer *t, const char *name, const json_t *text, const json_t *want) {
    hd_error err = {0};
    hd_ids ids = {0};
    assert_int_equal(hd_tokenizer_encode(t, json_string_value(text), json_string_length(text), true, &ids, &err), 0);
    bool same = ids.len == json_array_size(want);
    for (size_t i = 0; same && i < ids.len; i++) same = ids.data[i] == json_integer_value(json_array_get(want, i));
    if (!same) fail_msg("%s: other ids for \"%s\"", name, json_string_value(text));
    hd_ids_free(&ids);
}

static void every_setting_as_tokenizers(void **state) {
    (void)state;
    hd_error err = {0};
    json_t *all = hd_json_load(DATA "variants.json", &err), *one, *pair;
    assert_non_null(all);
    size_t i, k;
    assert_true(json_array_size(all) >= 30);
    json_array_foreach(all, i, one) {
        const char *name = json_string_value(json_array_get(one, 0));
        char *text = json_dumps(json_array_get(one, 1), 0);
        hd_tokenizer *t = hd_tokenizer_parse(text, strlen(text), name, &err);
        if (!t) fail_msg("%s: %s", name, err.message);
        json_array_foreach(json_array_get(one, 2), k, pair) check_ids(t, name, json_array_get(pair, 0), json_array_get(pair, 1));
        hd_tokenizer_free(t);
        free(text);
    }
    json_decref(all);
}

/* ---- scanners against the patterns they stand for ----------------------------------------------------------------- */

static void compare_words(const hd_scanner *s, const hd_regex *re, hd_regex_scratch *scratch, const hd_unicode_classes *classes, const char *text,
                          size_t n) {
    hd_error err = {0};
    for (size_t at = 0, begin, end; at < n; at = end) {
        assert_int_equal(hd_regex_find(re, scratch, (const unsigned char *)text, n, at, &begin, &end, &err), 1);
        assert_int_equal(begin, at);
        size_t length = s->scan(classes, (const unsigned char *)text + at, n - at);
        if (length != end - at) fail_msg("%s: %zu bytes instead of %zu at %zu of \"%.*s\"", s->name, length, end - at, at, (int)n, text);
    }
}

/* Whether PCRE2 is of Unicode 14, whose letters and numbers the scanners have. */
static bool same_unicode(hd_regex_scratch *scratch) {
    hd_error err = {0};
    hd_regex *re = hd_regex_compile("\\p{L}", 5, "test", &err);
    size_t begin, end;
    bool newer = hd_regex_find(re, scratch, (const unsigned char *)"\xf0\x91\xbc\x84", 4, 0, &begin, &end, &err) == 1; /* U+11F04, of Unicode 15 */
    hd_regex_free(re);
    return !newer;
}

static void scanners_equal_their_patterns(void **state) {
    (void)state;
    hd_error err = {0};
    static hd_unicode_classes classes;
    hd_unicode_classes_fill(&classes);
    hd_regex_scratch *scratch = hd_regex_scratch_new(&err);
    uint32_t most = same_unicode(scratch) ? 0x110000 : 0x300;
    for (int k = 0; k < HD_PRETOK_COUNT; k++) {
        const hd_scanner *s = &hd_scanners[k];
        hd_regex *re = hd_regex_compile(s->pattern, strlen(s->pattern), "test", &err);
        if (!re) fail_msg("%s", err.message);
        case_file f;
        text_case c;
        open_cases(&f);
        while (case_next(&f, &c))
            if (hd_utf8_valid((const unsigned char *)c.text, c.size) == c.size) compare_words(s, re, scratch, &classes, c.text, c.size);
        hd_map_close(&f.map);
        for (uint32_t cp = 1; cp < most; cp += cp < 0x3100 ? 1 : 13) {
            if (cp >= 0xd800 && cp < 0xe000) continue;
            unsigned char u[5] = {0};
            char text[64];
            hd_utf8_put(cp, u);
            compare_words(s, re, scratch, &classes, text, (size_t)snprintf(text, sizeof text, "a%s1 %s '%s%sx\n%s", u, u, u, u, u));
        }
        hd_regex_free(re);
    }
    hd_regex_scratch_free(scratch);
}

/* ---- decoding ----------------------------------------------------------------------------------------------------- */

static void decodes_what_it_encoded(void **state) {
    (void)state;
    hd_error err = {0};
    case_file f;
    text_case c;
    hd_tokenizer *t = load_named(1);
    hd_str want, got, streamed;
    hd_str_init(&want);
    hd_str_init(&got);
    hd_str_init(&streamed);
    open_cases(&f);
    while (case_next(&f, &c)) {
        hd_ids ids = {0};
        hd_token_stream s = {0};
        hd_str_clear(&want);
        hd_str_clear(&got);
        hd_str_clear(&streamed);
        hd_utf8_replace(&want, (const unsigned char *)c.text, c.size);
        assert_int_equal(hd_tokenizer_encode(t, c.text, c.size, false, &ids, &err), 0);
        assert_int_equal(hd_tokenizer_decode(t, ids.data, ids.len, false, &got, &err), 0);
        assert_int_equal(want.len, got.len);
        assert_memory_equal(want.data, got.data, want.len);
        for (size_t i = 0; i < ids.len; i++) {
            assert_int_equal(hd_token_stream_push(t, &s, ids.data[i], false, &streamed, &err), 0);
            assert_int_equal(hd_utf8_valid((unsigned char *)streamed.data, streamed.len), streamed.len); /* never half a character */
        }
        hd_token_stream_end(&s, &streamed, &err);
        assert_string_equal(streamed.data, got.data);
        hd_ids_free(&ids);
    }
    hd_map_close(&f.map);
    hd_str_free(&want);
    hd_str_free(&got);
    hd_str_free(&streamed);
    hd_tokenizer_free(t);
}

static void skips_specials_and_unknown_ids(void **state) {
    (void)state;
    hd_error err = {0};
    hd_tokenizer *t = load_named(1);
    hd_str out;
    hd_str_init(&out);
    hd_ids ids = {0};
    int32_t bos = hd_tokenizer_id(t, "<|begin_of_text|>");
    assert_int_equal(hd_tokenizer_encode(t, "hi", 2, true, &ids, &err), 0);
    assert_int_equal(ids.data[0], bos);
    assert_true(hd_tokenizer_is_special(t, bos));
    ids.data[0] = -5;
    assert_int_equal(hd_tokenizer_decode(t, ids.data, ids.len, false, &out, &err), 0);
    assert_string_equal(out.data, "hi");
    ids.data[0] = bos;
    hd_str_clear(&out);
    assert_int_equal(hd_tokenizer_decode(t, ids.data, ids.len, true, &out, &err), 0);
    assert_string_equal(out.data, "hi");
    hd_str_clear(&out);
    assert_int_equal(hd_tokenizer_decode(t, ids.data, ids.len, false, &out, &err), 0);
    assert_string_equal(out.data, "<|begin_of_text|>hi");
    int32_t cut = hd_tokenizer_id(t, "\xc3\xa2"); /* stands for the byte E2 */
    hd_str_clear(&out);
    assert_int_equal(hd_tokenizer_decode(t, &cut, 1, false, &out, &err), 0);
    assert_string_equal(out.data, "\xef\xbf\xbd");
    assert_int_equal(hd_tokenizer_id(t, "no such token"), -1);
    assert_null(hd_tokenizer_token(t, hd_tokenizer_vocab_size(t)));
    hd_str_free(&out);
    hd_ids_free(&ids);
    hd_tokenizer_free(t);
}

/* ---- saving and training ------------------------------------------------------------------------------------------ */

static void assert_same_ids(const hd_tokenizer *a, const hd_tokenizer *b) {
    hd_error err = {0};
    case_file f;
    text_case c;
    open_cases(&f);
    hd_encoder *e[2] = {hd_encoder_new(a, &err), hd_encoder_new(b, &err)};
    while (case_next(&f, &c)) {
        hd_ids x = {0}, y = {0};
        assert_int_equal(hd_encoder_run(e[0], c.text, c.size, true, &x, &err), 0);
        assert_int_equal(hd_encoder_run(e[1], c.text, c.size, true, &y, &err), 0);
        assert_int_equal(x.len, y.len);
        if (x.len) assert_memory_equal(x.data, y.data, x.len * sizeof *x.data);
        hd_ids_free(&x);
        hd_ids_free(&y);
    }
    hd_encoder_free(e[0]);
    hd_encoder_free(e[1]);
    hd_map_close(&f.map);
}

static void saves_what_it_loads_again(void **state) {
    (void)state;
    hd_error err = {0};
    char path[64];
    snprintf(path, sizeof path, "/tmp/heddle-tokenizer-%d.json", (int)getpid());
    for (int k = 0; k < CASE_TOKENIZERS; k++) {
        hd_tokenizer *a = load_named(k);
        assert_int_equal(hd_tokenizer_save(a, path, &err), 0);
        hd_tokenizer *b = load(path);
        assert_same_ids(a, b);
        hd_tokenizer_free(a);
        hd_tokenizer_free(b);
    }
    unlink(path);
}

static void trains_the_merges_of_tokenizers(void **state) {
    (void)state;
    hd_error err = {0};
    const char *path = DATA "train.txt", *specials[] = {"<|endoftext|>"};
    hd_bpe_spec spec = {.pretokenizer = HD_PRETOK_LLAMA3, .vocab_size = 1500, .specials = specials, .special_count = 1, .quiet = true};
    hd_tokenizer *got = hd_bpe_train_files(&spec, &path, 1, &err), *want = load(DATA "trained.json");
    if (!got) fail_msg("%s", err.message);
    assert_int_equal(hd_tokenizer_vocab_size(got), 1500);
    for (int32_t i = 0; i < 1500; i++) assert_string_equal(hd_tokenizer_token(got, i), hd_tokenizer_token(want, i));
    size_t order = 0; /* the file holds no merge twice, ours may find one twice: the last counts */
    for (size_t i = 0; i < got->merge_count; i++) {
        if (hd_merge_table_get(&got->merges, got->merge_order[i])->rank != i) continue;
        assert_true(order < want->merge_count);
        assert_true(got->merge_order[i] == want->merge_order[order++]);
    }
    assert_int_equal(order, want->merge_count);
    assert_same_ids(got, want);
    hd_tokenizer_free(got);
    hd_tokenizer_free(want);
}

static void refuses_to_train_on_nothing(void **state) {
    (void)state;
    hd_error err = {0};
    hd_bpe_spec spec = {.vocab_size = 300, .quiet = true};
    char name[64];
    const char *path = name;
    snprintf(name, sizeof name, "/tmp/heddle-empty-%d", (int)getpid());
    assert_int_equal(hd_file_write_atomic(name, "", 0, &err), 0);
    assert_null(hd_bpe_train_files(&spec, &path, 1, &err));
    assert_non_null(strstr(err.message, "empty"));
    unlink(name);
    hd_error small = {0};
    spec.vocab_size = 255;
    assert_null(hd_bpe_trainer_new(&spec, &small));
    assert_int_equal(small.code, HD_EINVAL);
}

/* ---- bad files ---------------------------------------------------------------------------------------------------- */

#define TAIL "\"decoder\":{\"type\":\"ByteLevel\"}}"
#define MODEL "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]},"
#define PRETOK "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},"
#define SPLIT(pattern) "{" MODEL "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" pattern \
    "\"},\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\",\"use_regex\":false}]}," TAIL
#define ADDED(fields) "{\"added_tokens\":[{" fields "}]," MODEL PRETOK TAIL
#define FLAGS ",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false,\"special\":true"

static const struct { const char *json, *says; } bad_files[] = {
    {"{" MODEL PRETOK TAIL, NULL},
    {"", "line 1"},
    {"[]", "object"},
    {"{\"model\":3}", "model"},
    {"{\"model\":{\"type\":\"WordPiece\"}}", "WordPiece"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":[],\"merges\":[]}}", "vocab"},
    {"{\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}}", "sensible id"},
    {"{\"model\":{\"vocab\":{\"a\":4000000000},\"merges\":[]}}", "sensible id"},
    {"{\"model\":{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}", "same id"},
    {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a a\"]}," PRETOK TAIL, "not in the vocabulary"},
    {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a c\"]}," PRETOK TAIL, "\"c\" is not in the vocabulary"},
    {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"aa\"]}," PRETOK TAIL, "merges[0]"},
    {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]}," PRETOK TAIL, "merges[0]"},
    {"{\"model\":{\"dropout\":0.1,\"vocab\":{},\"merges\":[]}}", "dropout"},
    {"{\"model\":{\"end_of_word_suffix\":\"</w>\",\"vocab\":{},\"merges\":[]}}", "end_of_word_suffix"},
    {"{\"model\":{\"continuing_subword_prefix\":\"##\",\"vocab\":{},\"merges\":[]}}", "continuing_subword_prefix"},
    {"{\"model\":{\"byte_fallback\":true,\"vocab\":{\"a\":0},\"merges\":[]}}", "byte_fallback"},
    {"{\"model\":{\"unk_token\":\"?\",\"vocab\":{\"a\":0},\"merges\":[]}}", "unk_token"},
    {"{\"truncation\":{\"max_length\":5}," MODEL PRETOK TAIL, "truncation"},
    {"{" MODEL TAIL, "ByteLevel"},
    {"{" MODEL PRETOK "\"decoder\":null}", "decoder"},
    {"{" MODEL PRETOK "\"decoder\":{\"type\":\"WordPiece\"}}", "WordPiece"},
    {"{" MODEL "\"pre_tokenizer\":{\"type\":\"Metaspace\"}," TAIL, "Metaspace"},
    {"{\"normalizer\":{\"type\":\"Lowercase\"}," MODEL PRETOK TAIL, "Lowercase"},
    {"{\"post_processor\":{\"type\":\"BertProcessing\"}," MODEL PRETOK TAIL, "BertProcessing"},
    {SPLIT("a|b(?!c)"), NULL},
    {SPLIT("(a"), "broken regular expression"},
    {SPLIT("[a"), "broken regular expression"},
    {SPLIT("\\\\p{L"), "\\p without"},
    {SPLIT("\\\\p{Xyz}"), "category"},
    {SPLIT("[a&&b]"), "&&"},
    {SPLIT("\\\\bx"), "\\b"},
    {SPLIT("(*FAIL)"), "group"},
    {SPLIT("\\\\"), "backslash"},
    {ADDED("\"id\":3,\"content\":\"x\"" FLAGS), NULL},
    {ADDED("\"id\":7,\"content\":\"x\"" FLAGS), "has id 7"},
    {ADDED("\"id\":3,\"content\":\"x\""), "single_word"},
    {ADDED("\"id\":3,\"content\":5" FLAGS), "content"},
};

static void names_what_is_wrong_with_a_file(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof bad_files / sizeof *bad_files; i++) {
        hd_error err = {0};
        hd_tokenizer *t = hd_tokenizer_parse(bad_files[i].json, strlen(bad_files[i].json), "bad.json", &err);
        if (bad_files[i].says) {
            if (t || !strstr(err.message, bad_files[i].says)) fail_msg("case %zu: \"%s\" doesn't say %s", i, err.message, bad_files[i].says);
        } else if (!t) {
            fail_msg("case %zu: %s", i, err.message);
        }
        hd_tokenizer_free(t);
    }
    hd_error err = {0};
    assert_null(hd_tokenizer_load("/nonexistent/tokenizer.json", &err));
    assert_int_equal(err.code, HD_EIO);
}

/* Every allocation of loading, encoding and training fails once; nothing may crash or leak, and each failure must be reported. */
static void survives_failing_allocations(void **state) {
    (void)state;
    uint64_t injected = 0;
    static const char json[] = "{" MODEL PRETOK TAIL;
    for (uint64_t n = 1; n < 200; n++) {
        hd_error err = {0};
        hd_ids ids = {0};
        uint64_t before = hd_mem_failed();
        hd_mem_fail_at(n);
        hd_tokenizer *t = hd_tokenizer_parse(json, sizeof json - 1, "small.json", &err);
        int rc = t ? hd_tokenizer_encode(t, "ab\xff" "ab ab", 8, true, &ids, &err) : err.code;
        hd_mem_fail_at(0);
        bool failed = hd_mem_failed() > before;
        assert_int_equal(failed ? HD_ENOMEM : 0, rc);
        hd_ids_free(&ids);
        hd_tokenizer_free(t);
        if (!failed) break;
        injected++;
    }
    assert_true(injected > 5);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(encodes_as_tokenizers), cmocka_unit_test(every_setting_as_tokenizers), cmocka_unit_test(scanners_equal_their_patterns),
        cmocka_unit_test(decodes_what_it_encoded), cmocka_unit_test(skips_specials_and_unknown_ids), cmocka_unit_test(saves_what_it_loads_again),
        cmocka_unit_test(trains_the_merges_of_tokenizers), cmocka_unit_test(refuses_to_train_on_nothing),
        cmocka_unit_test(names_what_is_wrong_with_a_file), cmocka_unit_test(survives_failing_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
