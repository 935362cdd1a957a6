/* Constrained answers: expressions against a plain matcher, schemas against a plain validator, masks against reading byte by byte. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "base/rng.h"
#include "base/str.h"
#include "data/regex.h"
#include "serve/constrain.h"

typedef struct fixture {
    hd_tokenizer *t;
    hd_vocabulary *v;
    int32_t eos;
    int32_t byte[256]; /* the token of each byte */
    size_t words;
} fixture;

static fixture fix;

static int open_fixture(const char *path, const char *eos)
{
    hd_error err = {0};
    fix = (fixture){.t = hd_tokenizer_load(path, &err)};
    if (!fix.t) return -1;
    fix.eos = hd_tokenizer_id(fix.t, eos);
    fix.v = hd_vocabulary_new(fix.t, &fix.eos, 1, &err);
    if (!fix.v) return -1;
    for (int32_t i = 0; i < hd_tokenizer_vocab_size(fix.t); i++) {
        size_t n;
        const char *b = hd_tokenizer_bytes(fix.t, i, &n);
        if (b && n == 1 && !hd_tokenizer_is_special(fix.t, i)) fix.byte[(unsigned char)b[0]] = i;
    }
    fix.words = ((size_t)hd_vocabulary_size(fix.v) + 63) / 64;
    return 0;
}

static int set_up(void **state)
{
    (void)state;
    return open_fixture(TEST_SOURCE_DIR "/tests/data/tokenizer/gpt2.json", "<|endoftext|>");
}

static int tear_down(void **state)
{
    (void)state;
    hd_vocabulary_free(fix.v);
    hd_tokenizer_free(fix.t);
    return 0;
}

static bool in_mask(const uint64_t *mask, int32_t t) { return mask[t / 64] >> t % 64 & 1; }

static hd_constraint *must(hd_constraint *c, const hd_error *err)
{
    if (!c) printf("  %s\n", err->message);
    assert_non_null(c);
    return c;
}

static hd_constraint *regex(const char *pattern)
{
    hd_error err = {0};
    return must(hd_constraint_regex(fix.v, pattern, strlen(pattern), NULL, &err), &err);
}

static hd_constraint *grammar(const char *text)
{
    hd_error err = {0};
    return must(hd_constraint_grammar(fix.v, text, strlen(text), NULL, &err), &err);
}

static hd_constraint *schema_or_null(const char *text, hd_error *err)
{
    json_error_t e;
    json_t *j = json_loads(text, JSON_DECODE_ANY, &e);
    if (!j) printf("  %s in %s\n", e.text, text);
    assert_non_null(j);
    hd_constraint *c = hd_constraint_json_schema(fix.v, j, NULL, err);
    json_decref(j);
    return c;
}

static hd_constraint *schema(const char *text)
{
    hd_error err = {0};
    hd_constraint *c = schema_or_null(text, &err);
    if (!c) printf("  %s: %s\n", text, err.message);
    return must(c, &err);
}

/* Whether the constraint accepts a whole text; `begins` (may be NULL): whether it accepts it as a beginning. */
static bool accepts(const hd_constraint *c, const char *text, bool *begins)
{
    hd_error err = {0};
    hd_constraint_state *s = hd_constraint_begin(c, &err);
    bool ok = true;
    for (; *text && ok; text++) ok = hd_constraint_advance(s, fix.byte[(unsigned char)*text], NULL) == 0;
    uint64_t mask[64];
    assert_true(fix.words <= 64);
    if (begins) *begins = ok;
    if (ok) assert_int_equal(hd_constraint_mask(s, mask, &err), 0);
    bool whole = ok && in_mask(mask, fix.eos);
    hd_constraint_end(s);
    return whole;
}

static void check_accepts(const hd_constraint *c, const char *const *good, const char *const *bad)
{
    for (; *good; good++) {
        if (!accepts(c, *good, NULL)) printf("  refused: %s\n", *good);
        assert_true(accepts(c, *good, NULL));
    }
    for (; *bad; bad++) {
        if (accepts(c, *bad, NULL)) printf("  accepted: %s\n", *bad);
        assert_false(accepts(c, *bad, NULL));
    }
}

#define LIST(...) (const char *const[]){__VA_ARGS__, NULL}

/* ---- regular expressions ---- */

static void test_regex(void **state)
{
    (void)state;
    static const struct { const char *pattern, *good[6], *bad[6]; } cases[] = {
        {"", {""}, {"a"}},
        {"abc|de*", {"abc", "d", "deee"}, {"", "ab", "abcd", "abcde"}},
        {"[a-c]{2,3}", {"ab", "ccc"}, {"a", "abca", "ad"}},
        {"(?:x?y)+", {"y", "xy", "yxyy"}, {"", "x", "xx"}},
        {"^\\d{3}-\\w+$", {"123-a_B9"}, {"12-a", "123-", "123-a b"}},
        {"a.c", {"abc", "a\xc3\xa9" "c", "a\xf0\x9f\x98\x80" "c"}, {"a\nc", "ac", "a\xc3\xa9\xc3\xa9" "c"}},
        {"[^a]", {"b", "\n", "\xe2\x82\xac"}, {"a", ""}},
        {"[\\]\\-x]+", {"]-x"}, {"\\"}},
        {"[]a]+", {"]a"}, {"b"}},
        {"\\x41\\u00e9\\n\\t\\x{1F600}", {"A\xc3\xa9\n\t\xf0\x9f\x98\x80"}, {"A"}},
        {"a{,2}", {"a{,2}"}, {"a", "aa"}},
        {"a{2}{", {"aa{"}, {"aa"}},
        {"(?P<year>\\d{4})(?<m>[01]\\d)", {"202611"}, {"2026"}},
        {"a*?b+?", {"b", "aabb"}, {"a"}},
        {"(a|b|)c", {"c", "ac"}, {"abc"}},
        {"\\p{L}+\\p{N}", {"\xc3\xa9" "a1"}, {"1", "a"}},
        {"\\W\\S\\D", {"-ax"}, {"aax", "- x", "-a1"}},
        {"[\\d\\s.]+", {"1 2.", "\t"}, {"a"}},
        {"(^a|b)c$", {"ac", "bc"}, {"c"}},
        {"[\xd0\xb0-\xd1\x8f]+", {"\xd0\xb6\xd1\x83\xd0\xba"}, {"a", "\xd0\x96"}},
        {"(a*)*", {"", "aaa"}, {"b"}},
        {"(a|aa|aaa){3}", {"aaa", "aaaaaaaaa"}, {"aa", "aaaaaaaaaa"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hd_constraint *c = regex(cases[i].pattern);
        check_accepts(c, cases[i].good, cases[i].bad);
        hd_constraint_release(c);
    }
}

static void test_regex_refused(void **state)
{
    (void)state;
    static const struct { const char *pattern; int code; const char *says; } cases[] = {
        {"(a)\\1", HD_EUNSUPPORTED, "back reference"}, {"(?=a)b", HD_EUNSUPPORTED, "look-around"}, {"(?<!a)b", HD_EUNSUPPORTED, "look-around"},
        {"a\\b", HD_EUNSUPPORTED, "word boundary"},    {"a++", HD_EUNSUPPORTED, "possessive"},     {"(?i)a", HD_EUNSUPPORTED, "group of this kind"},
        {"a$b", HD_EUNSUPPORTED, "$"},                 {"ab^", HD_EUNSUPPORTED, "^"},              {"a**", HD_EUNSUPPORTED, "repetition of a repetition"},
        {"(^a)*", HD_EUNSUPPORTED, "anchor"},          {"[[:alpha:]]", HD_EUNSUPPORTED, "[: :]"},  {"\\p{Han}", HD_EUNSUPPORTED, "property"},
        {"\\q", HD_EUNSUPPORTED, "escape"},            {"(a", HD_EINVAL, "without its )"},         {"a)", HD_EINVAL, "without its ("},
        {"[a", HD_EINVAL, "without its ]"},            {"*a", HD_EINVAL, "repetition of nothing"}, {"a{3,2}", HD_EINVAL, "wrong way"},
        {"[b-a]", HD_EINVAL, "range"},                 {"\\", HD_EINVAL, "backslash"},             {"\xff", HD_EINVAL, "UTF-8"},
        {"\\xg0", HD_EINVAL, "\\x"},                   {"[^\\s\\S]", HD_EINVAL, "no text"},        {"a{1000}{1000}", HD_EUNSUPPORTED, "repetition of a repetition"},
        {"(a{1000}){1000}", HD_EMEMCAP, "states"},     {"(((((){1000}){1000}){1000}){1000}){1000}", HD_EMEMCAP, "repeats too much"},
        {"(a|b)*a(a|b){30}", HD_EMEMCAP, "limit"},     {"(.*.*.*.*.*.*a){200}", 0, ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hd_error err = {0};
        clock_t from = clock();
        hd_constraint *c = hd_constraint_regex(fix.v, cases[i].pattern, strlen(cases[i].pattern), NULL, &err);
        double took = (double)(clock() - from) / CLOCKS_PER_SEC;
        if (err.code != cases[i].code || !strstr(err.message, cases[i].says)) printf("  %s: %d %s\n", cases[i].pattern, err.code, err.message);
        assert_int_equal(err.code, cases[i].code);
        assert_non_null(strstr(err.message, cases[i].says));
        assert_true((c == NULL) == (cases[i].code != 0));
        if (took > 1) printf("  %s took %.2f s\n", cases[i].pattern, took);
        hd_constraint_release(c);
    }
    char deep[400] = "";
    hd_error err = {0};
    for (int i = 0; i < 100; i++) strcat(deep, "(");
    assert_null(hd_constraint_regex(fix.v, deep, strlen(deep), NULL, &err));
    assert_int_equal(err.code, HD_EMEMCAP);
}

/* A random expression over a, b, c and e acute, as a tree that a plain matcher walks. */
typedef struct tree { int kind; struct tree *a, *b; int min, max; char set[8]; } tree;
enum { SET, CAT, OR, REP };

static tree *random_tree(hd_rng *r, int depth)
{
    tree *t = calloc(1, sizeof *t);
    int kind = depth ? (int)hd_rng_below(r, 4) : SET;
    t->kind = kind;
    if (kind == SET)
        for (int i = 0; i < 4; i++) t->set[i] = (char)(hd_rng_below(r, 3) == 0 || i == (int)hd_rng_below(r, 4));
    if (kind == CAT || kind == OR) t->a = random_tree(r, depth - 1), t->b = random_tree(r, depth - 1);
    if (kind == REP) {
        t->a = random_tree(r, depth - 1);
        t->min = (int)hd_rng_below(r, 3);
        t->max = hd_rng_below(r, 2) ? -1 : t->min + (int)hd_rng_below(r, 3);
    }
    return t;
}

static void free_tree(tree *t)
{
    if (!t) return;
    free_tree(t->a);
    free_tree(t->b);
    free(t);
}

static const char *const letters[] = {"a", "b", "c", "\xc3\xa9"};

static void print_tree(const tree *t, hd_str *s)
{
    hd_str_puts(s, t->kind == SET ? "[" : "(?:");
    for (int i = 0; t->kind == SET && i < 4; i++)
        if (t->set[i]) hd_str_puts(s, letters[i]);
    if (t->kind == SET && !(t->set[0] | t->set[1] | t->set[2] | t->set[3])) hd_str_puts(s, "z");
    if (t->a) print_tree(t->a, s);
    if (t->kind == OR) hd_str_puts(s, "|");
    if (t->b) print_tree(t->b, s);
    hd_str_puts(s, t->kind == SET ? "]" : ")");
    if (t->kind == REP && t->max < 0) hd_str_printf(s, "{%d,}", t->min);
    if (t->kind == REP && t->max >= 0) hd_str_printf(s, "{%d,%d}", t->min, t->max);
}

/* Ends (a bit each) that are reached from any of the starts. text: letter numbers. */
static uint32_t match(const tree *t, const int *text, int n, uint32_t from)
{
    uint32_t to = 0, all;
    switch (t->kind) {
    case SET:
        for (int i = 0; i < n; i++)
            if (from >> i & 1 && t->set[text[i]]) to |= 2u << i;
        return to;
    case CAT: return match(t->b, text, n, match(t->a, text, n, from));
    case OR: return match(t->a, text, n, from) | match(t->b, text, n, from);
    default: break;
    }
    for (int i = 0; i < t->min; i++) from = match(t->a, text, n, from);
    all = from;
    for (int i = t->min; t->max < 0 ? i < t->min + 40 : i < t->max; i++) all |= from = match(t->a, text, n, from);
    return all;
}

static void test_regex_against_plain(void **state)
{
    (void)state;
    hd_rng r = hd_rng_new(31);
    int matched = 0, checked = 0;
    for (int trial = 0; trial < 400; trial++) {
        tree *t = random_tree(&r, 4);
        hd_str s = HD_STR_INIT;
        hd_error err = {0};
        print_tree(t, &s);
        hd_constraint *c = hd_constraint_regex(fix.v, s.data, s.len, NULL, &err);
        assert_true(c || err.code == HD_EINVAL);
        for (int k = 0; k < 60; k++) {
            int n = (int)hd_rng_below(&r, 9), text[9];
            char bytes[32] = "";
            for (int i = 0; i < n; i++) text[i] = (int)hd_rng_below(&r, 4), strcat(bytes, letters[text[i]]);
            bool plain = match(t, text, n, 1) >> n & 1, ours = c && accepts(c, bytes, NULL);
            if (plain != ours) printf("  %s on %s: %d, not %d\n", s.data, bytes, ours, plain);
            assert_int_equal(ours, plain);
            matched += plain;
            checked++;
        }
        hd_constraint_release(c);
        hd_str_free(&s);
        free_tree(t);
    }
    assert_true(matched > checked / 50);
}

/* ---- masks ---- */

/* The mask against reading each token from a fork. */
static void check_mask(const hd_constraint_state *s, const uint64_t *mask)
{
    hd_error err = {0};
    for (int32_t t = 0; t < hd_vocabulary_size(fix.v); t++) {
        hd_constraint_state *f = hd_constraint_fork(s, &err);
        bool can = hd_constraint_advance(f, t, NULL) == 0;
        if (can != in_mask(mask, t)) printf("  token %d (%s): mask %d, reading %d\n", t, hd_tokenizer_token(fix.t, t), in_mask(mask, t), can);
        assert_int_equal(can, in_mask(mask, t));
        hd_constraint_end(f);
    }
}

static int32_t random_allowed(hd_rng *r, const uint64_t *mask)
{
    int32_t count = 0, chosen = -1;
    for (int32_t t = 0; t < hd_vocabulary_size(fix.v); t++)
        if (in_mask(mask, t) && hd_rng_below(r, (uint64_t)++count) == 0) chosen = t;
    return chosen;
}

/* A token that tends towards an end. */
static int32_t ending(const uint64_t *mask)
{
    static const char wanted[] = "\"}]0,:tfn";
    if (in_mask(mask, fix.eos)) return fix.eos;
    for (const char *w = wanted; *w; w++)
        if (in_mask(mask, fix.byte[(unsigned char)*w])) return fix.byte[(unsigned char)*w];
    return -1;
}

/* A random walk; the text when it came to an end within the steps, else empty. full: every mask is checked. */
static bool walk(const hd_constraint *c, hd_rng *r, int steps, bool full, hd_str *text)
{
    hd_error err = {0};
    uint64_t mask[64];
    hd_constraint_state *s = hd_constraint_begin(c, &err);
    hd_str_clear(text);
    for (int i = 0; i < 6 * steps; i++) {
        assert_int_equal(hd_constraint_mask(s, mask, &err), 0);
        int32_t t = random_allowed(r, mask);
        assert_true(t >= 0); /* never empty */
        if (hd_constraint_complete(s)) assert_int_equal(t, fix.eos);
        if (full && i % 7 == 0) check_mask(s, mask);
        if (i > steps && ending(mask) >= 0) t = ending(mask);
        assert_int_equal(hd_constraint_advance(s, t, &err), 0);
        if (t == fix.eos) {
            hd_constraint_end(s);
            return true;
        }
        size_t n;
        const char *b = hd_tokenizer_bytes(fix.t, t, &n);
        hd_str_add(text, b, n);
    }
    hd_constraint_end(s);
    return false;
}

/* Long chains and counts, in which places that tokens can't tell apart share a mask. */
static void test_masks(void **state)
{
    (void)state;
    static const char *const patterns[] = {"\\x00\\x00\\x14\\x00\\x00\\x00\\x30\\x00\\x30", "[a-z]{60}", "(the|of|and| ){25,40}", "[^\"]{0,50}\"[0-9]{30}", "(ab|a|b){30}c"};
    hd_rng r = hd_rng_new(32);
    hd_str text = HD_STR_INIT;
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        hd_constraint *c = regex(patterns[i]);
        for (int k = 0; k < 3; k++) walk(c, &r, 40, true, &text);
        hd_constraint_release(c);
    }
    hd_str_free(&text);
}

/* ---- a plain validator of what the schemas here use ---- */

static const json_t *schema_root;

static bool valid(const json_t *s, const json_t *v);

static bool is_type(const char *type, const json_t *v)
{
    if (!strcmp(type, "integer")) return json_is_integer(v) || (json_is_real(v) && floor(json_real_value(v)) == json_real_value(v));
    return (!strcmp(type, "number") && json_is_number(v)) || (!strcmp(type, "string") && json_is_string(v)) || (!strcmp(type, "null") && json_is_null(v)) ||
           (!strcmp(type, "boolean") && json_is_boolean(v)) || (!strcmp(type, "object") && json_is_object(v)) || (!strcmp(type, "array") && json_is_array(v));
}

static size_t code_points(const char *s)
{
    size_t n = 0;
    for (; *s; s++) n += (*s & 0xc0) != 0x80;
    return n;
}

static bool found(const char *pattern, const char *text)
{
    hd_error err = {0};
    hd_regex *re = hd_regex_compile(pattern, strlen(pattern), "test", &err);
    assert_non_null(re);
    hd_regex_scratch *scratch = hd_regex_scratch_new(&err);
    size_t begin, end;
    bool is = hd_regex_find(re, scratch, (const unsigned char *)text, strlen(text), 0, &begin, &end, &err) == 1;
    hd_regex_scratch_free(scratch);
    hd_regex_free(re);
    return is;
}

static bool valid_object(const json_t *s, const json_t *v)
{
    const json_t *properties = json_object_get(s, "properties"), *more = json_object_get(s, "additionalProperties"), *p;
    const char *key;
    json_t *value;
    size_t i;
    json_array_foreach(json_object_get(s, "required"), i, p) if (!json_object_get(v, json_string_value(p))) return false;
    json_object_foreach((json_t *)(uintptr_t)v, key, value) {
        p = json_object_get(properties, key);
        if (!p) p = more;
        if (p && !valid(p, value)) return false;
    }
    return true;
}

static bool valid_array(const json_t *s, const json_t *v)
{
    const json_t *prefix = json_object_get(s, "prefixItems"), *items = json_object_get(s, "items"), *min = json_object_get(s, "minItems"),
                 *max = json_object_get(s, "maxItems"), *e;
    size_t i;
    if (min && json_array_size(v) < (size_t)json_integer_value(min)) return false;
    if (max && json_array_size(v) > (size_t)json_integer_value(max)) return false;
    json_array_foreach(v, i, e) {
        const json_t *by = i < json_array_size(prefix) ? json_array_get(prefix, i) : items;
        if (by && !valid(by, e)) return false;
    }
    return true;
}

static bool valid_scalar(const json_t *s, const json_t *v)
{
    const json_t *k;
    double x = json_number_value(v);
    if (json_is_number(v)) {
        if ((k = json_object_get(s, "minimum")) && x < json_number_value(k)) return false;
        if ((k = json_object_get(s, "maximum")) && x > json_number_value(k)) return false;
        if ((k = json_object_get(s, "exclusiveMinimum")) && x <= json_number_value(k)) return false;
        if ((k = json_object_get(s, "exclusiveMaximum")) && x >= json_number_value(k)) return false;
    }
    if (json_is_string(v)) {
        size_t n = code_points(json_string_value(v));
        if ((k = json_object_get(s, "minLength")) && n < (size_t)json_integer_value(k)) return false;
        if ((k = json_object_get(s, "maxLength")) && n > (size_t)json_integer_value(k)) return false;
        if ((k = json_object_get(s, "pattern")) && !found(json_string_value(k), json_string_value(v))) return false;
    }
    return true;
}

static int count_valid(const json_t *parts, const json_t *v)
{
    int n = 0;
    size_t i;
    const json_t *p;
    json_array_foreach(parts, i, p) n += valid(p, v);
    return n;
}

static bool valid(const json_t *s, const json_t *v)
{
    const json_t *k, *p;
    size_t i;
    bool any = false;
    if (!json_is_object(s)) return json_is_true(s);
    if ((k = json_object_get(s, "$ref"))) {
        const char *ref = json_string_value(k);
        return valid(!strcmp(ref, "#") ? schema_root : json_object_get(json_object_get(schema_root, "$defs"), strrchr(ref, '/') + 1), v);
    }
    if ((k = json_object_get(s, "type"))) {
        if (json_is_string(k)) any = is_type(json_string_value(k), v);
        json_array_foreach(k, i, p) any |= is_type(json_string_value(p), v);
        if (!any) return false;
    }
    if ((k = json_object_get(s, "const")) && !json_equal(k, v)) return false;
    any = false;
    json_array_foreach(json_object_get(s, "enum"), i, p) any |= json_equal(p, v);
    if (json_object_get(s, "enum") && !any) return false;
    if ((k = json_object_get(s, "anyOf")) && !count_valid(k, v)) return false;
    if ((k = json_object_get(s, "oneOf")) && count_valid(k, v) != 1) return false;
    if ((k = json_object_get(s, "allOf")) && count_valid(k, v) != (int)json_array_size(k)) return false;
    if (json_is_object(v) && !valid_object(s, v)) return false;
    if (json_is_array(v) && !valid_array(s, v)) return false;
    return valid_scalar(s, v);
}

/* ---- JSON ---- */

static void test_json_object(void **state)
{
    (void)state;
    hd_error err = {0};
    hd_rng r = hd_rng_new(33);
    hd_str text = HD_STR_INIT;
    hd_constraint *c = must(hd_constraint_json_object(fix.v, NULL, &err), &err);
    check_accepts(c, LIST("{}", "{ }", "{\"a\": [1, -2.5e3, true, null, {}], \"b\":\"\\u00e9\\ud83d\\ude00\"}", "{\n  \"x\": \"\xc3\xa9\"\n}"),
                  LIST("", "[]", "{", "{\"a\"}", "{\"a\":01}", "{\"a\":1,}", "{\"a\":\"\\ud83d\"}", "{\"a\":\"\n\"}", "{} ", "{   }", "{\"a\":\"\\u0000\"}"));
    int ends = 0;
    for (int i = 0; i < 60; i++) {
        if (!walk(c, &r, 60, i < 3, &text)) continue;
        json_error_t e;
        json_t *j = json_loadb(text.data, text.len, 0, &e);
        if (!j) printf("  %s: %s\n", e.text, text.data);
        assert_true(json_is_object(j));
        json_decref(j);
        ends++;
    }
    assert_true(ends > 30);
    hd_str_free(&text);
    hd_constraint_release(c);
}

static const char *const schemas[] = {
    "true", "{}", "{\"type\":\"object\"}", "{\"type\":\"string\"}", "{\"type\":\"integer\"}", "{\"type\":\"number\"}", "{\"type\":[\"string\",\"null\"]}",
    "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"},\"b\":{\"type\":\"string\"}},\"required\":[\"a\",\"b\"],\"additionalProperties\":false}",
    "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"},\"b\":{\"type\":\"boolean\"},\"c\":{\"type\":\"null\"}},\"additionalProperties\":false}",
    "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"},\"b\":{\"type\":\"boolean\"},\"c\":{\"type\":\"null\"}},\"required\":[\"c\"],\"additionalProperties\":false}",
    "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"},\"ab\":{\"type\":\"boolean\"},\"\\u00e9\":{\"const\":1}}}",
    "{\"properties\":{\"a\":{\"const\":\"x\"}},\"required\":[\"a\",\"z\"],\"additionalProperties\":{\"type\":\"integer\"}}",
    "{\"type\":\"object\",\"additionalProperties\":{\"type\":\"number\"},\"minProperties\":1,\"maxProperties\":3}",
    "{\"type\":\"array\",\"items\":{\"type\":\"integer\",\"minimum\":-5,\"maximum\":120},\"minItems\":2,\"maxItems\":4}",
    "{\"type\":\"array\",\"prefixItems\":[{\"type\":\"string\"},{\"type\":\"integer\"}],\"items\":false}",
    "{\"type\":\"array\",\"prefixItems\":[{\"const\":1},{\"const\":2}],\"items\":{\"const\":3},\"minItems\":1,\"maxItems\":5}",
    "{\"enum\":[\"red\",\"re\",1,2.5,null,{\"a\":[1,2]},\"\\n\\\"\"]}", "{\"enum\":[\"a\",1,2],\"type\":\"integer\"}", "{\"const\":\"caf\\u00e9\"}",
    "{\"type\":\"string\",\"minLength\":2,\"maxLength\":5}", "{\"type\":\"string\",\"pattern\":\"^[A-Z]{2}-[0-9]+$\"}", "{\"type\":\"string\",\"pattern\":\"ab|^c\"}",
    "{\"type\":\"string\",\"pattern\":\"^[\\\"\\\\\\\\\\n]+$\"}", "{\"type\":\"integer\",\"exclusiveMinimum\":7,\"maximum\":1023}", "{\"type\":\"integer\",\"minimum\":-17,\"exclusiveMaximum\":-3}",
    "{\"type\":\"integer\",\"minimum\":1000}", "{\"type\":\"integer\",\"maximum\":-1.5}", "{\"type\":\"number\",\"minimum\":0,\"maximum\":1}",
    "{\"type\":\"number\",\"exclusiveMinimum\":-3,\"exclusiveMaximum\":12}", "{\"type\":\"number\",\"exclusiveMaximum\":0}",
    "{\"anyOf\":[{\"type\":\"integer\"},{\"type\":\"array\",\"items\":{\"$ref\":\"#\"}}]}",
    "{\"oneOf\":[{\"type\":\"object\",\"properties\":{\"k\":{\"const\":\"a\"},\"v\":{\"type\":\"integer\"}},\"required\":[\"k\",\"v\"]},"
    "{\"type\":\"object\",\"properties\":{\"k\":{\"const\":\"b\"}},\"required\":[\"k\"],\"additionalProperties\":false}]}",
    "{\"allOf\":[{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"}},\"required\":[\"a\"]},{\"$ref\":\"#/$defs/more\"}],"
    "\"$defs\":{\"more\":{\"type\":\"object\",\"properties\":{\"b\":{\"enum\":[1,2]}},\"required\":[\"b\"]}}}",
    "{\"$ref\":\"#/$defs/node\",\"$defs\":{\"node\":{\"type\":\"object\",\"properties\":{\"v\":{\"type\":\"integer\"},\"next\":{\"anyOf\":[{\"$ref\":\"#/$defs/node\"},{\"type\":\"null\"}]}},"
    "\"required\":[\"v\",\"next\"],\"additionalProperties\":false}}}",
    "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"string\"}},\"anyOf\":[{\"required\":[\"a\"]},{\"properties\":{\"b\":{\"type\":\"null\"}},\"required\":[\"b\"]}]}",
    "{\"type\":\"object\",\"title\":\"T\",\"description\":\"d\",\"properties\":{\"tags\":{\"type\":\"array\",\"items\":{\"type\":\"string\",\"maxLength\":8}},\"x-note\":{\"type\":[\"number\",\"null\"],\"default\":1}}}",
};

static void test_schemas(void **state)
{
    (void)state;
    hd_rng r = hd_rng_new(34);
    hd_str text = HD_STR_INIT;
    for (size_t i = 0; i < sizeof schemas / sizeof *schemas; i++) {
        hd_constraint *c = schema(schemas[i]);
        json_t *s = json_loads(schemas[i], JSON_DECODE_ANY, NULL);
        schema_root = s;
        int ends = 0;
        for (int k = 0; k < 40; k++) {
            if (!walk(c, &r, 25, k == 0, &text)) continue;
            json_error_t e;
            json_t *j = json_loadb(text.data, text.len, JSON_DECODE_ANY, &e);
            if (!j || !valid(s, j)) printf("  %s\n  for %s: %s\n", text.data, schemas[i], j ? "not valid" : e.text);
            assert_true(j && valid(s, j));
            json_decref(j);
            ends++;
        }
        if (!ends) printf("  %s: no walk ends\n", schemas[i]);
        assert_true(ends > 0);
        json_decref(s);
        hd_constraint_release(c);
    }
    hd_str_free(&text);
}

static void test_schema_texts(void **state)
{
    (void)state;
    hd_constraint *c = schema("{\"properties\":{\"a\":{\"type\":\"integer\"},\"b\":{\"type\":\"integer\"}},\"required\":[\"b\"],\"additionalProperties\":false}");
    check_accepts(c, LIST("{\"a\":1,\"b\":2}", "{\"b\":2}", "{\n  \"a\": 1,\n  \"b\": 2\n}"), LIST("{\"a\":1}", "{\"b\":2,\"a\":1}", "{\"a\":1,\"b\":2,\"c\":3}", "{}"));
    hd_constraint_release(c);
    c = schema("{\"properties\":{\"ab\":{\"type\":\"integer\"}}}");
    check_accepts(c, LIST("{\"ab\":1,\"a\":\"x\",\"abc\":[]}", "{\"\":0}", "{\"ac\":1}"), LIST("{\"ab\":\"x\"}", "{\"a\":1,\"ab\":2}", "{\"\\u0061b\":\"x\"}"));
    hd_constraint_release(c);
    c = schema("{\"type\":\"integer\",\"minimum\":-12,\"maximum\":305}");
    for (int i = -400; i <= 400; i++) {
        char text[16];
        snprintf(text, sizeof text, "%d", i);
        if (accepts(c, text, NULL) != (i >= -12 && i <= 305)) printf("  %s\n", text);
        assert_int_equal(accepts(c, text, NULL), i >= -12 && i <= 305);
    }
    hd_constraint_release(c);
    c = schema("{\"type\":\"number\",\"exclusiveMinimum\":-2,\"maximum\":3}");
    for (int i = -400; i <= 400; i++) {
        char text[16];
        snprintf(text, sizeof text, "%.2f", i / 100.0);
        if (accepts(c, text, NULL) != (i > -200 && i <= 300)) printf("  %s\n", text);
        if (strcmp(text, "-0.00")) assert_int_equal(accepts(c, text, NULL), i > -200 && i <= 300);
    }
    hd_constraint_release(c);
    static const struct { const char *format, *good[6], *bad[6]; } formats[] = {
        {"date", {"\"2024-02-29\"", "\"1999-12-31\""}, {"\"2023-02-29\"", "\"1900-02-29\"", "\"2023-04-31\"", "\"2023-4-01\""}},
        {"date-time", {"\"2024-02-29T23:59:59Z\"", "\"2020-01-01T00:00:00.5+01:30\""}, {"\"2024-02-29\"", "\"2020-01-01T24:00:00Z\""}},
        {"uuid", {"\"123e4567-e89b-12d3-a456-426614174000\""}, {"\"123e4567\""}},
        {"ipv4", {"\"192.168.0.255\"", "\"0.0.0.0\""}, {"\"256.1.1.1\"", "\"1.1.1\"", "\"01.1.1.1\""}},
        {"ipv6", {"\"::\"", "\"::1\"", "\"fe80::1:2\"", "\"1:2:3:4:5:6:7:8\""}, {"\"1:2\"", "\":::\""}},
        {"email", {"\"a.b@c.org\""}, {"\"a@b\"", "\"@c.org\""}},
        {"hostname", {"\"a-b.example\""}, {"\"-a\"", "\"a_b\""}},
        {"uri", {"\"https://example.org/a?b=c#d\""}, {"\"example.org\"", "\"http://a b\""}},
        {"duration", {"\"P1Y2M3D\"", "\"PT5M\"", "\"P3W\""}, {"\"P\"", "\"PT\""}},
        {"time", {"\"12:00:00Z\""}, {"\"12:00\""}},
    };
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        char text[100];
        snprintf(text, sizeof text, "{\"type\":\"string\",\"format\":\"%s\"}", formats[i].format);
        c = schema(text);
        check_accepts(c, formats[i].good, formats[i].bad);
        hd_constraint_release(c);
    }
}

static void test_schema_refused(void **state)
{
    (void)state;
    static const struct { const char *schema; int code; const char *says; } cases[] = {
        {"{\"not\":{}}", HD_EUNSUPPORTED, "\"not\""}, {"{\"if\":{}}", HD_EUNSUPPORTED, "\"if\""}, {"{\"type\":\"number\",\"multipleOf\":3}", HD_EUNSUPPORTED, "multipleOf"},
        {"{\"type\":\"array\",\"uniqueItems\":true}", HD_EUNSUPPORTED, "uniqueItems"}, {"{\"patternProperties\":{}}", HD_EUNSUPPORTED, "patternProperties"},
        {"{\"type\":\"strin\"}", HD_EINVAL, "strin"}, {"{\"type\":[]}", HD_EINVAL, "type"}, {"[]", HD_EINVAL, "schema"}, {"false", HD_EINVAL, "no text"},
        {"{\"type\":\"string\",\"format\":\"color\"}", HD_EUNSUPPORTED, "color"}, {"{\"type\":\"string\",\"pattern\":\"(?=a)\"}", HD_EUNSUPPORTED, "look-around"},
        {"{\"oneOf\":[{\"type\":\"integer\"},{\"type\":\"number\"}]}", HD_EUNSUPPORTED, "oneOf"}, {"{\"$ref\":\"http://x/y\"}", HD_EUNSUPPORTED, "$ref"},
        {"{\"$ref\":\"#\"}", HD_EINVAL, "$ref"}, {"{\"type\":\"object\",\"properties\":{\"a\":false},\"required\":[\"a\"]}", HD_EINVAL, "no text"},
        {"{\"type\":\"object\",\"properties\":{\"a\":{\"$ref\":\"#\"}},\"required\":[\"a\"]}", HD_EINVAL, "no text"},
        {"{\"type\":\"array\",\"minItems\":3,\"maxItems\":1}", HD_EINVAL, "no text"}, {"{\"type\":\"string\",\"minLength\":-1}", HD_EINVAL, "minLength"},
        {"{\"type\":\"string\",\"minLength\":1000000000}", HD_EMEMCAP, "states"}, {"{\"allOf\":[{\"type\":\"string\"},{\"type\":\"integer\"}]}", HD_EUNSUPPORTED, "type"},
        {"{\"anyOf\":[{\"$ref\":\"#\"},{\"$ref\":\"#\"}],\"type\":\"object\"}", HD_EMEMCAP, ""},
        {"{\"type\":\"string\",\"pattern\":\"a\",\"maxLength\":3}", HD_EUNSUPPORTED, "pattern"}, {"{\"anyOf\":[]}", HD_EINVAL, "anyOf"}, {"{\"required\":[1]}", HD_EINVAL, "required"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hd_error err = {0};
        hd_constraint *c = schema_or_null(cases[i].schema, &err);
        if (c || err.code != cases[i].code || !strstr(err.message, cases[i].says)) printf("  %s: %d %s\n", cases[i].schema, err.code, err.message);
        assert_null(c);
        assert_int_equal(err.code, cases[i].code);
        assert_non_null(strstr(err.message, cases[i].says));
    }
    json_t *deep = json_true();
    for (int i = 0; i < 500; i++) deep = json_pack("{s:s,s:o}", "type", "array", "items", deep);
    hd_error err = {0};
    assert_null(hd_constraint_json_schema(fix.v, deep, NULL, &err));
    assert_int_equal(err.code, HD_EMEMCAP);
    json_decref(deep);
}

/* ---- grammars ---- */

static void test_grammar(void **state)
{
    (void)state;
    hd_constraint *c = grammar("# arithmetic\nroot ::= expr\nexpr ::= term ([-+*/] term)*\nterm ::= num | \"(\" ws expr ws \")\"\nnum ::= [0-9]+\nws ::= [ \\t\\n]*\n");
    check_accepts(c, LIST("1", "1+2*3", "(1+(2))/34", "( 1 )"), LIST("", "1+", "(1", "1 2", "a"));
    hd_rng r = hd_rng_new(35);
    hd_str text = HD_STR_INIT;
    for (int i = 0; i < 5; i++) walk(c, &r, 30, true, &text);
    hd_constraint_release(c);
    c = grammar("root ::= \"a\" root \"b\" | \"\"");
    check_accepts(c, LIST("", "ab", "aaabbb"), LIST("a", "aab", "abb", "ba"));
    for (int i = 0; i < 5; i++) walk(c, &r, 10, true, &text);
    hd_constraint_release(c);
    c = grammar("root ::= item\n  | item \",\" root\nitem ::= [^,\\x00-\\x1f]{1,3} | \"\\u00e9\\\"\" | (\"x\")?");
    check_accepts(c, LIST("a", "a,bcd", "", ",", "\xc3\xa9\",x"), LIST("abcd", "a\n"));
    for (int i = 0; i < 5; i++) walk(c, &r, 10, true, &text);
    hd_constraint_release(c);
    c = grammar("root ::= a a\na ::= b* \nb ::= \"x\" | c \nc ::= \"y\"? \"z\"");
    check_accepts(c, LIST("", "x", "xyz", "zzx"), LIST("y", "xy"));
    for (int i = 0; i < 5; i++) walk(c, &r, 10, true, &text);
    hd_constraint_release(c);
    c = grammar("root ::= (s \" \")* \n s ::= \"a\" s | \"a\" s s | \"b\"");
    check_accepts(c, LIST("ab ", "aabb ", "aaabbb b "), LIST("a", "ab", "a "));
    for (int i = 0; i < 3; i++) walk(c, &r, 8, true, &text);
    hd_constraint_release(c);
    hd_str_free(&text);
    static const struct { const char *text; int code; const char *says; } bad[] = {
        {"root ::= root \"a\" | \"a\"", HD_EUNSUPPORTED, "left recursion"}, {"root ::= x", HD_EINVAL, "no rule \"x\""}, {"a ::= \"b\"", HD_EINVAL, "no rule \"root\""},
        {"root ::= \"a", HD_EINVAL, "ends within"}, {"root ::= (\"a\"", HD_EINVAL, "without its )"}, {"root ::= \"a\" )", HD_EINVAL, "without its ("},
        {"root ::= \"a\"\nroot ::= \"b\"", HD_EINVAL, "line 2"}, {"root ::= [a", HD_EINVAL, "ends within"}, {"root ::= \"a\"{3,2}", HD_EINVAL, "{m,n}"},
        {"root ::= a\na ::= b\nb ::= a", HD_EINVAL, "no text"}, {"root ::= \"\\q\"", HD_EINVAL, "escape"}, {"root", HD_EINVAL, "beginning of a rule"},
        {"root ::= a \"x\"\na ::= b?\nb ::= a \"y\"", HD_EUNSUPPORTED, "left recursion"}, {"", HD_EINVAL, "root"}, {"root ::= <tok>", HD_EUNSUPPORTED, "token"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        hd_error err = {0};
        hd_constraint *none = hd_constraint_grammar(fix.v, bad[i].text, strlen(bad[i].text), NULL, &err);
        if (none || err.code != bad[i].code || !strstr(err.message, bad[i].says)) printf("  %s: %d %s\n", bad[i].text, err.code, err.message);
        assert_null(none);
        assert_int_equal(err.code, bad[i].code);
        assert_non_null(strstr(err.message, bad[i].says));
    }
}

/* ---- states ---- */

static void test_forks_and_ends(void **state)
{
    (void)state;
    hd_error err = {0};
    uint64_t mask[64];
    hd_constraint *c = regex("ab?");
    hd_constraint_state *s = hd_constraint_begin(c, &err);
    assert_int_equal(hd_constraint_mask(s, mask, &err), 0);
    assert_false(in_mask(mask, fix.eos));
    assert_int_equal(hd_constraint_advance(s, fix.eos, NULL), HD_EINVAL);
    assert_int_equal(hd_constraint_advance(s, -1, NULL), HD_EINVAL);
    assert_int_equal(hd_constraint_advance(s, 1 << 20, NULL), HD_EINVAL);
    assert_int_equal(hd_constraint_advance(s, fix.byte['b'], NULL), HD_EINVAL);
    assert_int_equal(hd_constraint_advance(s, fix.byte['a'], &err), 0);
    hd_constraint_state *f = hd_constraint_fork(s, &err);
    assert_int_equal(hd_constraint_advance(f, fix.byte['b'], &err), 0);
    assert_true(hd_constraint_complete(f));
    assert_false(hd_constraint_complete(s));
    hd_constraint_release(c); /* states keep it */
    assert_int_equal(hd_constraint_mask(s, mask, &err), 0);
    assert_true(in_mask(mask, fix.eos) && in_mask(mask, fix.byte['b']) && !in_mask(mask, fix.byte['a']));
    assert_int_equal(hd_constraint_advance(s, fix.eos, &err), 0);
    assert_true(hd_constraint_complete(s));
    assert_int_equal(hd_constraint_mask(s, mask, &err), 0);
    assert_true(in_mask(mask, fix.eos) && !in_mask(mask, fix.byte['b']));
    assert_int_equal(hd_constraint_advance(s, fix.byte['b'], NULL), HD_EINVAL);
    hd_constraint_end(s);
    hd_constraint_end(f);
    assert_null(hd_vocabulary_new(fix.t, NULL, 0, &err));
}

/* A grammar that can be read in exponentially many ways ends with an error, not without end. */
static void test_ambiguity(void **state)
{
    (void)state;
    hd_error err = {0};
    uint64_t mask[64];
    hd_constraint *c = grammar("root ::= p\np ::= \"a\" p \"1\" | \"a\" q \"2\" | \"x\"\nq ::= \"a\" p \"3\" | \"a\" q \"4\" | \"x\"");
    hd_constraint_state *s = hd_constraint_begin(c, &err);
    int rc = 0, steps = 0;
    for (; !rc && steps < 40; steps++) {
        rc = hd_constraint_mask(s, mask, &err);
        if (!rc) assert_true(in_mask(mask, fix.byte['a']) && in_mask(mask, fix.byte['x']));
        if (!rc) rc = hd_constraint_advance(s, fix.byte['a'], &err);
    }
    assert_true(steps > 8 && rc == HD_EMEMCAP);
    assert_non_null(strstr(err.message, "ambiguous"));
    hd_constraint_end(s);
    hd_constraint_release(c);
}

static void test_limits(void **state)
{
    (void)state;
    hd_error err = {0};
    hd_constraint_limits l = {.states = 50, .bytes = 100, .depth = 3};
    assert_null(hd_constraint_regex(fix.v, "a{200}", 6, &l, &err));
    assert_int_equal(err.code, HD_EMEMCAP);
    err = (hd_error){0};
    char big[102], *long_text = malloc(65000);
    memset(big, 'a', sizeof big);
    assert_null(hd_constraint_regex(fix.v, big, sizeof big, &l, &err));
    assert_int_equal(err.code, HD_EMEMCAP);
    err = (hd_error){0};
    assert_null(hd_constraint_regex(fix.v, "((((a))))", 9, &l, &err));
    assert_int_equal(err.code, HD_EMEMCAP);
    static const char *const pieces[] = {"\\pL", "\\p{L}x", "(?:a|b)*", "[^ab]", "a?", "(.*b)", "[a-z]{0,9}"};
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) { /* whatever becomes of them: soon, and in little memory */
        size_t n = 0, m = strlen(pieces[i]);
        for (; n + m < 64000; n += m) memcpy(long_text + n, pieces[i], m);
        err = (hd_error){0};
        clock_t from = clock();
        hd_constraint *c = hd_constraint_regex(fix.v, long_text, n, NULL, &err);
        double took = (double)(clock() - from) / CLOCKS_PER_SEC;
        if (took > 0.5) printf("  %s...: %.2f s\n", pieces[i], took);
        assert_true(c || err.code == HD_EMEMCAP);
        hd_constraint_release(c);
    }
    free(long_text);
}

static void test_allocations(void **state)
{
    (void)state;
    const char *text = "root ::= \"{\" x \"}\" | [a-f]+\nx ::= \"1\" x | \"(\" x \")\" | \"\"";
    int failures = 0;
    for (uint64_t nth = 1;; nth++) {
        hd_error err = {0};
        uint64_t mask[64], failed = hd_mem_failed();
        int rc = 0;
        hd_constraint_state *s = NULL, *f = NULL;
        hd_mem_fail_at(nth);
        json_t *j = json_loads("{\"properties\":{\"a\":{\"pattern\":\"^a+$\"}},\"anyOf\":[{\"required\":[\"a\"]},{\"required\":[\"b\"]}]}", 0, NULL);
        hd_constraint *c = hd_constraint_grammar(fix.v, text, strlen(text), NULL, &err), *c2 = c ? hd_constraint_json_schema(fix.v, j, NULL, &err) : NULL;
        if (c2) s = hd_constraint_begin(c, &err);
        if (s) rc = hd_constraint_mask(s, mask, &err);
        if (s && !rc) rc = hd_constraint_advance(s, fix.byte['{'], &err);
        if (s && !rc) rc = hd_constraint_advance(s, fix.byte['('], &err);
        if (s && !rc) f = hd_constraint_fork(s, &err);
        if (f) rc = hd_constraint_mask(f, mask, &err);
        hd_mem_fail_at(0);
        bool done = f && !rc;
        if (hd_mem_failed() > failed) {
            failures++;
            if (!done) assert_int_equal(err.code, HD_ENOMEM);
        }
        hd_constraint_end(s);
        hd_constraint_end(f);
        hd_constraint_release(c);
        hd_constraint_release(c2);
        json_decref(j);
        if (done && hd_mem_failed() == failed) break;
    }
    assert_true(failures > 50);
}

/* SentencePiece: pieces with U+2581 for spaces, bytes as <0xHH>, control tokens that never come out. */
static void test_pieces(void **state)
{
    tear_down(NULL);
    assert_int_equal(open_fixture(TEST_SOURCE_DIR "/tests/data/gguf/pieces.json", "</s>"), 0);
    hd_rng r = hd_rng_new(38);
    hd_str text = HD_STR_INIT;
    hd_constraint *c = regex("[a-z\xc3\xa9\xe2\x82\xac ]{3,30}!");
    assert_true(accepts(c, "a b \xe2\x82\xac!", NULL));
    int spaces = 0, ends = 0;
    for (int i = 0; i < 30; i++)
        if (walk(c, &r, 8, i < 4, &text)) spaces += strchr(text.data, ' ') != NULL;
    assert_true(spaces > 3);
    hd_constraint_release(c);
    c = schema("{\"type\":\"object\",\"properties\":{\"a b\":{\"type\":\"string\"}},\"required\":[\"a b\"],\"additionalProperties\":false}");
    for (int i = 0; i < 10; i++) {
        if (!walk(c, &r, 20, i == 0, &text)) continue;
        json_t *j = json_loadb(text.data, text.len, 0, NULL);
        assert_true(json_is_string(json_object_get(j, "a b")));
        json_decref(j);
        ends++;
    }
    assert_true(ends > 0);
    hd_constraint_release(c);
    hd_str_free(&text);
    tear_down(NULL);
    assert_int_equal(set_up(state), 0);
}

/* ---- speed: printed; bounds belong to checks ---- */

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A tokenizer of 150,000 made-up words over the byte alphabet of GPT-2. */
static hd_tokenizer *big_tokenizer(void)
{
    hd_str s = HD_STR_INIT;
    hd_rng r = hd_rng_new(36);
    hd_error err = {0};
    int32_t id = 0;
    hd_str_puts(&s, "{\"version\":\"1.0\",\"added_tokens\":[{\"id\":0,\"content\":\"<|end|>\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false,\"special\":true}],"
                    "\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":true},\"post_processor\":null,"
                    "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,\"continuing_subword_prefix\":null,"
                    "\"end_of_word_suffix\":null,\"fuse_unk\":false,\"byte_fallback\":false,\"vocab\":{\"<|end|>\":0");
    for (int32_t i = 0; i < hd_tokenizer_vocab_size(fix.t); i++) {
        size_t n;
        if (hd_tokenizer_bytes(fix.t, i, &n) && n == 1 && !hd_tokenizer_is_special(fix.t, i)) {
            json_t *name = json_string(hd_tokenizer_token(fix.t, i));
            char *text = json_dumps(name, JSON_ENCODE_ANY);
            hd_str_printf(&s, ",%s:%d", text, ++id);
            free(text);
            json_decref(name);
        }
    }
    static const char *const pieces[] = {"er", "in", "th", "a", "o", "st", "re", "on", "e", "l", "ma", "co", "S", "T", "un", "ing", "tion", "1", "9", "_"};
    static const char *const ends[] = {"\\\"", "\\\",", "\\\":", "(", ".", ",", ")", "}", "]", ";"}; /* of one token in 50 */
    while (id < 150000) { /* a number written in base 20 in these pieces: each is another */
        hd_str_printf(&s, ",\"%s", hd_rng_below(&r, 2) ? "\xc4\xa0" : "");
        for (int32_t n = ++id; n; n /= 20) hd_str_puts(&s, pieces[n % 20]);
        hd_str_printf(&s, "Z%d%s\":%d", id % 7, id % 50 ? "" : ends[hd_rng_below(&r, 10)], id);
    }
    hd_str_puts(&s, "},\"merges\":[]}}");
    hd_tokenizer *t = hd_tokenizer_parse(s.data, s.len, "big", &err);
    if (!t) printf("  %s\n", err.message);
    hd_str_free(&s);
    return t;
}

static void test_speed(void **state)
{
    (void)state;
    hd_error err = {0};
    hd_tokenizer *t = big_tokenizer();
    assert_non_null(t);
    int32_t eos = 0;
    double from = seconds();
    hd_vocabulary *v = hd_vocabulary_new(t, &eos, 1, &err);
    assert_non_null(v);
    printf("  vocabulary of %lld tokens: %.1f ms\n", (long long)hd_vocabulary_size(v), 1e3 * (seconds() - from));
    size_t words = ((size_t)hd_vocabulary_size(v) + 63) / 64;
    uint64_t *mask = calloc(words, sizeof *mask);
    static const char *const texts[] = {
        "{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\"},\"age\":{\"type\":\"integer\"},\"tags\":{\"type\":\"array\",\"items\":{\"type\":\"string\"}},"
        "\"address\":{\"type\":\"object\",\"properties\":{\"street\":{\"type\":\"string\"},\"city\":{\"type\":\"string\"}},\"required\":[\"street\",\"city\"],"
        "\"additionalProperties\":false}},\"required\":[\"name\",\"age\",\"tags\",\"address\"],\"additionalProperties\":false}",
        "{\"type\":\"object\",\"properties\":{\"note\":{\"type\":\"string\",\"maxLength\":300}},\"required\":[\"note\"],\"additionalProperties\":false}", "{}",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        json_t *j = json_loads(texts[i], 0, NULL);
        from = seconds();
        hd_constraint *c = must(hd_constraint_json_schema(v, j, NULL, &err), &err);
        double compiled = seconds() - from, sum = 0, worst = 0;
        int n = 0;
        hd_rng r = hd_rng_new(37);
        for (int k = 0; k < 5; k++) {
            hd_constraint_state *s = hd_constraint_begin(c, &err);
            for (int step = 0; step < 100; step++, n++) {
                from = seconds();
                assert_int_equal(hd_constraint_mask(s, mask, &err), 0);
                double took = seconds() - from;
                sum += took;
                worst = took > worst ? took : worst;
                int32_t count = 0, chosen = -1;
                for (int32_t id = 0; id < hd_vocabulary_size(v); id++)
                    if (in_mask(mask, id) && hd_rng_below(&r, (uint64_t)++count) == 0) chosen = id;
                assert_int_equal(hd_constraint_advance(s, chosen, &err), 0);
                if (chosen == eos) break;
            }
            hd_constraint_end(s);
        }
        printf("  schema %zu: compiled in %.2f ms; %d masks, %.1f us on average, %.0f us at worst\n", i, compiled * 1e3, n, sum / n * 1e6, worst * 1e6);
        json_decref(j);
        hd_constraint_release(c);
    }
    free(mask);
    hd_vocabulary_free(v);
    hd_tokenizer_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_regex),       cmocka_unit_test(test_regex_refused),  cmocka_unit_test(test_regex_against_plain), cmocka_unit_test(test_json_object),
        cmocka_unit_test(test_schemas),     cmocka_unit_test(test_schema_texts),   cmocka_unit_test(test_schema_refused),      cmocka_unit_test(test_grammar),
        cmocka_unit_test(test_masks),       cmocka_unit_test(test_pieces),         cmocka_unit_test(test_forks_and_ends), cmocka_unit_test(test_limits), cmocka_unit_test(test_ambiguity),     cmocka_unit_test(test_allocations),         cmocka_unit_test(test_speed),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
