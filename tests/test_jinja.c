/* test_jinja.c: chat templates against what Jinja2 renders of them (tests/data/templates/fixtures.json, see make_template_fixtures.py), limits, and bad
 * templates. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/json.h"
#include "base/mem.h"
#include "data/chat_template.h"
#include "data/jinja.h"
#include "data/tokenizer.h"
#include "tensor/gguf.h"

#define DATA TEST_SOURCE_DIR "/tests/data/"
enum { NOW = 1700000000 };

static json_t *fixtures(void) {
    hd_error err = {0};
    json_t *all = hd_json_load(DATA "templates/fixtures.json", &err);
    if (!all) fail_msg("%s", err.message);
    return all;
}

static int render(const char *text, size_t n, const json_t *variables, const hd_jinja_limits *limits, hd_str *out, hd_error *err) {
    hd_jinja *j = hd_jinja_parse(text, n, "template", err);
    int rc = j ? hd_jinja_render(j, variables, limits, NOW, out, err) : err->code;
    hd_jinja_free(j);
    return rc;
}

/* Renders and compares with the case's "text", or sees that it fails by itself. */
static void check_case(const char *label, const json_t *text, const json_t *variables, const json_t *item) {
    hd_error err = {0};
    hd_str out;
    hd_str_init(&out);
    int rc = render(json_string_value(text), json_string_length(text), variables, NULL, &out, &err);
    const json_t *want = json_object_get(item, "text");
    if (want && rc) fail_msg("%s: %s", label, err.message);
    if (want && (out.len != json_string_length(want) || memcmp(out.data, json_string_value(want), out.len)))
        fail_msg("%s:\n%s\n-- is not --\n%s", label, out.data, json_string_value(want));
    if (!want && (!rc || !err.message[0] || out.len)) fail_msg("%s: should have been refused, is\n%s", label, out.data);
    hd_str_free(&out);
}

static void renders_conversations(void **state) {
    (void)state;
    json_t *all = fixtures(), *item;
    size_t i, n = 0;
    json_array_foreach(json_object_get(all, "cases"), i, item) {
        char label[200];
        const char *t = json_string_value(json_object_get(item, "template")), *c = json_string_value(json_object_get(item, "conversation"));
        json_t *variables = json_pack("{s:n, s:n, s:s, s:s}", "tools", "documents", "bos_token", "<s>", "eos_token", "</s>");
        json_object_update(variables, json_object_get(json_object_get(all, "conversations"), c));
        snprintf(label, sizeof label, "%s, %s", t, c);
        check_case(label, json_object_get(json_object_get(all, "templates"), t), variables, item);
        json_decref(variables);
        n++;
    }
    assert_true(n >= 150);
    json_decref(all);
}

static void renders_expressions(void **state) {
    (void)state;
    json_t *all = fixtures(), *item;
    size_t i, n = 0, errors = 0;
    json_array_foreach(json_object_get(all, "expressions"), i, item) {
        const json_t *text = json_object_get(item, "template");
        check_case(json_string_value(text), text, json_object_get(all, "variables"), item);
        n++;
        errors += json_object_get(item, "error") != NULL;
    }
    assert_true(n >= 450 && errors >= 40);
    json_decref(all);
}

/* ---- limits ---- */

static void expect(const char *text, const hd_jinja_limits *limits, int code, const char *message) {
    hd_error err = {0};
    hd_str out;
    hd_str_init(&out);
    json_t *none = json_object();
    int rc = render(text, strlen(text), none, limits, &out, &err);
    if (rc != code || (message && !strstr(err.message, message))) fail_msg("%s: code %d, \"%s\"", text, rc, err.message);
    if (rc) assert_int_equal(out.len, 0);
    json_decref(none);
    hd_str_free(&out);
}

static void stops_at_limits(void **state) {
    (void)state;
    const hd_jinja_limits few = {.steps = 1000}, small = {.bytes = 1000};
    expect("{% for i in range(1000) %}{% for k in range(1000) %}x{% endfor %}{% endfor %}", &few, HD_EMEMCAP, "steps");
    expect("{% for i in range(100000) %}{% for k in range(100000) %}{% endfor %}{% endfor %}", NULL, HD_EMEMCAP, "steps");
    expect("{% for i in range(200) %}0123456789{% endfor %}", &small, HD_EMEMCAP, "bytes");
    expect("{{ 'abc' * 1000 }}", &small, HD_EMEMCAP, "bytes");
    expect("{{ 'abc' * 1000000000000 }}", NULL, HD_EMEMCAP, "bytes");
    expect("{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}", NULL, HD_EMEMCAP, "bytes");
    expect("{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}", NULL, HD_EMEMCAP, NULL);
    expect("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", NULL, HD_EMEMCAP, "macros inside one another");
    expect("{% set ns = namespace() %}{% set ns.me = ns %}{{ ns }}", NULL, HD_EMEMCAP, "nesting");
    expect("{% set ns = namespace(a=[]) %}{% for i in range(5000) %}{% set ns.a = [ns.a] %}{% endfor %}{{ ns.a == ns.a }}", NULL, HD_EMEMCAP, "nesting");
    expect("{% set ns = namespace(a=[]) %}{% for i in range(5000) %}{% set ns.a = [ns.a] %}{% endfor %}{{ ns.a|tojson }}", NULL, HD_EMEMCAP, "nesting");
    expect("{{ range(100001) }}", NULL, HD_EINVAL, "100000");
    expect("{{ 9223372036854775807 }}", NULL, HD_EFORMAT, NULL);
    expect("{{ 3 ** 100 }}", NULL, HD_EINVAL, "64 bits");
}

/* `open` n times, then `inner`, then `close` n times. */
static void nested(const char *open, const char *inner, const char *close, int n, int code) {
    hd_str text;
    hd_str_init(&text);
    for (int i = 0; i < n; i++) hd_str_puts(&text, open);
    hd_str_puts(&text, inner);
    for (int i = 0; i < n; i++) hd_str_puts(&text, close);
    expect(text.data, NULL, code, NULL);
    hd_str_free(&text);
}

static void survives_depth(void **state) {
    (void)state;
    nested("{{", "1", "}}", 5000, HD_EFORMAT);
    nested("{% if 1 %}", "x", "{% endif %}", 40, 0);
    nested("{% if 1 %}", "x", "{% endif %}", 100000, HD_EFORMAT);
    char *text = malloc(1 << 20);
    size_t n = 0;
    for (n = (size_t)sprintf(text, "{{ 1"); n < 1000000; n += 2) memcpy(text + n, "+1", 2);
    strcpy(text + n, " }}");
    expect(text, NULL, HD_EMEMCAP, "nesting");
    n = (size_t)sprintf(text, "{{ ");
    memset(text + n, '(', 100000);
    strcpy(text + n + 100000, "1");
    expect(text, NULL, HD_EFORMAT, "nested");
    memset(text + n, '-', 100000);
    strcpy(text + n + 100000, "1 }}");
    expect(text, NULL, HD_EFORMAT, "nested");
    for (; n < 1000000; n += 4) memcpy(text + n, "not ", 5);
    strcpy(text + n, "1 }}");
    expect(text, NULL, HD_EFORMAT, "nested");
    free(text);
}

static void names_the_place(void **state) {
    (void)state;
    expect("a\n  {{ 1 + 'x' }}", NULL, HD_EINVAL, "line 2, column 6");
    expect("a\n\n{{ x | nope }}", NULL, HD_EUNSUPPORTED, "line 3, column 8: unknown filter \"nope\"");
    expect("{{ x is nope }}", NULL, HD_EUNSUPPORTED, "unknown test");
    expect("{% include 'x' %}", NULL, HD_EUNSUPPORTED, "line 1, column 4");
    expect("{{ nope(1) }}", NULL, HD_EUNSUPPORTED, "unknown function \"nope\"");
    expect("{% if no %}{{ [].append(1) }}{% endif %}", NULL, HD_EUNSUPPORTED, "unknown method \"append\"");
    expect("{{ raise_exception('too bad') }}", NULL, HD_EINVAL, "too bad");
    expect("\xff", NULL, HD_EFORMAT, "UTF-8");
}

/* The Nth allocation fails: each time a clean HD_ENOMEM, until none is left to fail. */
static void survives_failed_allocations(void **state) {
    (void)state;
    json_t *all = fixtures(), *variables = json_pack("{s:O, s:n, s:s, s:b}", "messages",
                                                     json_object_get(json_object_get(json_object_get(all, "conversations"), "calls"), "messages"), "tools",
                                                     "bos_token", "<s>", "add_generation_prompt", 1);
    const json_t *text = json_object_get(json_object_get(all, "templates"), "thinking");
    uint64_t n = 1, failed = 1;
    for (; failed && n < 5000; n++) {
        hd_error err = {0};
        hd_str out;
        hd_str_init(&out);
        hd_mem_fail_at(n);
        uint64_t before = hd_mem_failed();
        int rc = render(json_string_value(text), json_string_length(text), variables, NULL, &out, &err);
        hd_mem_fail_at(0);
        failed = hd_mem_failed() - before;
        if (failed && rc != HD_ENOMEM && !out.failed) fail_msg("allocation %d failed: code %d, \"%s\"", (int)n, rc, err.message);
        hd_str_free(&out);
    }
    assert_true(n > 10 && n < 5000);
    json_decref(variables);
    json_decref(all);
}

/* ---- chat templates ---- */

static void check_builtin(const char *name, const char *want) {
    hd_error err = {0};
    const char *text = hd_chat_template_named(name);
    hd_str out;
    hd_str_init(&out);
    json_t *messages = json_pack("[{s:s, s:s}, {s:s, s:s}, {s:s, s:s}, {s:s, s:[{s:s, s:s}]}]", "role", "system", "content", "Be.", "role", "user", "content",
                                 "A?", "role", "assistant", "content", "B!", "role", "user", "content", "type", "text", "text", "C?");
    json_t *extra = json_pack("{s:s}", "eos_token", "</s>");
    hd_chat_template *c = hd_chat_template_parse(text, strlen(text), name, NULL, &err);
    if (!c || hd_chat_template_render(c, messages, NULL, extra, true, &out, &err)) fail_msg("%s: %s", name, err.message);
    assert_string_equal(out.data, want);
    hd_chat_template_free(c);
    json_decref(messages);
    json_decref(extra);
    hd_str_free(&out);
}

static void builtins_are_as_models_want(void **state) {
    (void)state;
    check_builtin("chatml",
                  "<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\nA?<|im_end|>\n<|im_start|>assistant\nB!<|im_end|>\n<|im_start|>user\nC?<|im_end|>\n"
                  "<|im_start|>assistant\n");
    check_builtin("llama3",
                  "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nA?<|eot_id|>"
                  "<|start_header_id|>assistant<|end_header_id|>\n\nB!<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nC?<|eot_id|>"
                  "<|start_header_id|>assistant<|end_header_id|>\n\n");
    check_builtin("gemma", "<bos><start_of_turn>user\nBe.\n\nA?<end_of_turn>\n<start_of_turn>model\nB!<end_of_turn>\n<start_of_turn>user\nC?<end_of_turn>\n"
                           "<start_of_turn>model\n");
    check_builtin("phi3", "<|system|>\nBe.<|end|>\n<|user|>\nA?<|end|>\n<|assistant|>\nB!<|end|>\n<|user|>\nC?<|end|>\n<|assistant|>\n");
    check_builtin("zephyr", "<|system|>\nBe.</s>\n<|user|>\nA?</s>\n<|assistant|>\nB!</s>\n<|user|>\nC?</s>\n<|assistant|>\n");
    check_builtin("mistral", "<s>[INST] Be.\n\nA?[/INST] B!</s>[INST] C?[/INST]");
    check_builtin("llama2", "<s>[INST] <<SYS>>\nBe.\n<</SYS>>\n\nA? [/INST] B! </s><s>[INST] C? [/INST]");
    check_builtin("plain", "Be.\nQuestion: A?\nAnswer: B!\nQuestion: C?\nAnswer:");
}

static void opens_models(void **state) {
    (void)state;
    hd_error err = {0};
    hd_str out;
    hd_str_init(&out);
    json_t *messages = json_pack("[{s:s, s:s}]", "role", "user", "content", "Hi");
    hd_tokenizer *t = hd_tokenizer_load(DATA "templates/model/tokenizer.json", &err);
    if (!t) fail_msg("%s", err.message);
    hd_chat_template *c = hd_chat_template_open(DATA "templates/model", t, &err);
    if (!c || hd_chat_template_render(c, messages, NULL, NULL, true, &out, &err)) fail_msg("%s", err.message);
    assert_string_equal(out.data, "<|bos|><|turn|>user: Hi<|end|><|turn|>assistant:");
    assert_string_equal(hd_chat_template_stop(c), "<|end|>");
    hd_chat_template_free(c);
    hd_str_clear(&out);
    c = hd_chat_template_open(DATA "templates", t, &err); /* which has none: the tokenizer's tokens tell nothing */
    if (!c || hd_chat_template_render(c, messages, NULL, NULL, true, &out, &err)) fail_msg("%s", err.message);
    assert_string_equal(out.data, "Question: Hi\nAnswer:");
    assert_string_equal(hd_chat_template_stop(c), "\nQuestion:");
    hd_chat_template_free(c);
    hd_tokenizer_free(t);
    json_decref(messages);
    hd_str_free(&out);
}

static void opens_gguf(void **state) {
    (void)state;
    hd_error err = {0};
    hd_str out;
    hd_str_init(&out);
    char path[] = "/tmp/heddle-jinja-XXXXXX";
    close(mkstemp(path));
    static const char text[] = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}";
    hd_tokenizer *t = hd_tokenizer_load(DATA "templates/model/tokenizer.json", &err);
    json_t *messages = json_pack("[{s:s, s:s}]", "role", "user", "content", "Hi");
    hd_gguf_writer *w = hd_gguf_writer_new(&err);
    hd_gguf_put_string(w, "tokenizer.chat_template", text, sizeof text - 1);
    hd_gguf_put_int(w, "tokenizer.ggml.bos_token_id", HD_GGUF_U32, 257);
    hd_gguf_put_int(w, "tokenizer.ggml.eos_token_id", HD_GGUF_U32, 258);
    if (!t || hd_gguf_end(w, hd_gguf_begin(w, path, &err), &err)) fail_msg("%s", err.message);
    hd_chat_template *c = hd_chat_template_open(path, t, &err);
    if (!c || hd_chat_template_render(c, messages, NULL, NULL, true, &out, &err)) fail_msg("%s", err.message);
    assert_string_equal(out.data, "<|turn|>[user] Hi<|end|>");
    assert_string_equal(hd_chat_template_stop(c), "<|end|>");
    unlink(path);
    hd_chat_template_free(c);
    hd_tokenizer_free(t);
    json_decref(messages);
    hd_str_free(&out);
}

int main(void) {
    setenv("TZ", "UTC", 1);
    tzset();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(renders_conversations),
        cmocka_unit_test(renders_expressions),
        cmocka_unit_test(stops_at_limits),
        cmocka_unit_test(survives_depth),
        cmocka_unit_test(names_the_place),
        cmocka_unit_test(survives_failed_allocations),
        cmocka_unit_test(builtins_are_as_models_want),
        cmocka_unit_test(opens_models), cmocka_unit_test(opens_gguf),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
