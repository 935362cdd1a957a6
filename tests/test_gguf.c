/* gguf: what is written is read back; every kind of broken file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensor/gguf.h"

static int make_dir(void **state)
{
    char *dir = strdup("/tmp/heddle-test-XXXXXX");
    *state = dir;
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    int rc = hd_remove_tree(*state, NULL);
    free(*state);
    return rc;
}

/* ---- files built by hand ---- */

static void little(hd_str *s, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++) hd_str_putc(s, i < 8 ? (char)(v >> (8 * i)) : 0);
}

static void text(hd_str *s, const char *t)
{
    little(s, strlen(t), 8);
    hd_str_puts(s, t);
}

static void header(hd_str *s, uint32_t version, uint64_t tensors, uint64_t values)
{
    hd_str_clear(s);
    hd_str_add(s, "GGUF", 4);
    little(s, version, 4);
    little(s, tensors, 8);
    little(s, values, 8);
}

static void tensor(hd_str *s, const char *name, uint32_t type, uint64_t offset, int rank, uint64_t d0, uint64_t d1)
{
    text(s, name);
    little(s, (uint64_t)rank, 4);
    if (rank > 0) little(s, d0, 8);
    if (rank > 1) little(s, d1, 8);
    for (int i = 2; i < rank; i++) little(s, 1, 8);
    little(s, type, 4);
    little(s, offset, 8);
}

static void data(hd_str *s, size_t n)
{
    while (s->len % 32) hd_str_putc(s, 0);
    for (size_t i = 0; i < n; i++) hd_str_putc(s, (char)i);
}

/* One line that begins with the file's name and contains `message`; nothing of g is left. Parsed from a heap copy of exactly its size. */
static void expect_bad(const hd_str *s, const char *message)
{
    hd_gguf g;
    hd_error e = {0};
    void *copy = malloc(s->len ? s->len : 1);
    memcpy(copy, s->data, s->len);
    int rc = hd_gguf_parse(&g, copy, s->len, "w.gguf", &e);
    free(copy);
    if ((rc != HD_EFORMAT && rc != HD_EUNSUPPORTED) || strncmp(e.message, "w.gguf: ", 8) || !strstr(e.message, message) || strchr(e.message, '\n'))
        fail_msg("wanted \"%s\", got %d \"%s\"", message, rc, e.message);
    assert_true(e.code == rc && !g.count && !g.tensors && !g.arena.head);
}

static void test_bad_headers(void **state)
{
    hd_str s;
    (void)state;
    hd_str_init(&s);
    expect_bad(&s, "not a GGUF file");
    hd_str_puts(&s, "GGML");
    expect_bad(&s, "not a GGUF file");
    hd_str_clear(&s);
    hd_str_puts(&s, "GGUF");
    expect_bad(&s, "the header goes beyond");
    header(&s, 1, 0, 0);
    expect_bad(&s, "version 1 is not supported");
    header(&s, 0x03000000, 0, 0);
    expect_bad(&s, "big-endian");
    header(&s, 3, 0, UINT64_MAX);
    expect_bad(&s, "pieces of metadata go beyond");
    header(&s, 3, UINT64_MAX / 2, 0);
    expect_bad(&s, "tensors go beyond");
    hd_str_free(&s);
}

static void value(hd_str *s, const char *key, uint32_t kind)
{
    header(s, 3, 0, 1);
    text(s, key);
    little(s, kind, 4);
}

static void test_bad_values(void **state)
{
    hd_str s;
    (void)state;
    hd_str_init(&s);
    header(&s, 3, 0, 1);
    little(&s, UINT64_MAX - 7, 8);
    little(&s, 0, 8);
    expect_bad(&s, "a metadata key goes beyond");
    value(&s, "", HD_GGUF_U64);
    little(&s, 0, 8);
    expect_bad(&s, "not a sensible name");
    value(&s, "a\nb", HD_GGUF_U8);
    little(&s, 0, 8);
    expect_bad(&s, "not a sensible name");
    value(&s, "k", 13);
    expect_bad(&s, "metadata \"k\" has type 13");
    value(&s, "k", HD_GGUF_U64);
    little(&s, 0, 7);
    expect_bad(&s, "metadata \"k\" goes beyond");
    value(&s, "k", HD_GGUF_STRING);
    little(&s, 1ull << 63, 8);
    expect_bad(&s, "metadata \"k\" goes beyond");
    value(&s, "k", HD_GGUF_BOOL);
    little(&s, 2, 8);
    expect_bad(&s, "a boolean is 2");
    value(&s, "k", HD_GGUF_ARRAY);
    little(&s, HD_GGUF_ARRAY, 4);
    little(&s, 1, 8);
    expect_bad(&s, "arrays of arrays");
    value(&s, "k", HD_GGUF_ARRAY);
    little(&s, 77, 4);
    little(&s, 1, 8);
    expect_bad(&s, "elements of type 77");
    for (int kind = 0; kind < HD_GGUF_KINDS; kind++) { /* counts whose bytes wrap */
        if (kind == HD_GGUF_ARRAY) continue;
        value(&s, "k", HD_GGUF_ARRAY);
        little(&s, (uint64_t)kind, 4);
        little(&s, (1ull << 61) + 1, 8);
        little(&s, 0, 16);
        expect_bad(&s, "metadata \"k\" goes beyond");
    }
    header(&s, 3, 0, 2);
    for (int i = 0; i < 2; i++) {
        text(&s, "twice");
        little(&s, HD_GGUF_U8, 4);
        little(&s, 1, 1);
    }
    expect_bad(&s, "\"twice\" is there twice");
    value(&s, "general.alignment", HD_GGUF_U32);
    little(&s, 24, 4);
    expect_bad(&s, "general.alignment is 24");
    value(&s, "general.alignment", HD_GGUF_U32);
    little(&s, 0, 4);
    expect_bad(&s, "general.alignment");
    value(&s, "general.alignment", HD_GGUF_STRING);
    text(&s, "32");
    expect_bad(&s, "must be an integer, is string");
    hd_str_free(&s);
}

static void one_tensor(hd_str *s, const char *name, uint32_t type, uint64_t offset, int rank, uint64_t d0, uint64_t d1, size_t bytes)
{
    header(s, 3, 1, 0);
    tensor(s, name, type, offset, rank, d0, d1);
    data(s, bytes);
}

static void test_bad_tensors(void **state)
{
    hd_str s;
    (void)state;
    hd_str_init(&s);
    one_tensor(&s, "t", 0, 0, 2, 3, 4, 47);
    expect_bad(&s, "tensor \"t\": its 48 bytes at offset 0 go beyond");
    one_tensor(&s, "t", 0, 64, 2, 3, 4, 100);
    expect_bad(&s, "at offset 64 go beyond");
    one_tensor(&s, "t", 0, UINT64_MAX - 31, 1, 8, 0, 100);
    expect_bad(&s, "go beyond");
    one_tensor(&s, "t", 0, 4, 1, 8, 0, 100);
    expect_bad(&s, "its offset 4 is not a multiple of 32");
    one_tensor(&s, "t", 0, 0, 2, 1ull << 32, 1ull << 32, 100);
    expect_bad(&s, "overflows");
    one_tensor(&s, "t", 0, 0, 1, 1ull << 62, 0, 100);
    expect_bad(&s, "overflows");
    one_tensor(&s, "t", 0, 0, 1, 1ull << 63, 0, 100);
    expect_bad(&s, "an extent of");
    one_tensor(&s, "t", 2, 0, 1, 33, 0, 100);
    expect_bad(&s, "rows of 33 numbers are not whole blocks of Q4_0 (32)");
    one_tensor(&s, "t", 4, 0, 1, 32, 0, 100);
    expect_bad(&s, "type 4 is not supported");
    one_tensor(&s, "t", 0, 0, 5, 1, 1, 100);
    expect_bad(&s, "5 dimensions");
    one_tensor(&s, "", 0, 0, 1, 1, 0, 100);
    expect_bad(&s, "not a sensible name");
    header(&s, 3, 2, 0);
    tensor(&s, "a", 0, 0, 1, 16, 0);
    tensor(&s, "b", 0, 32, 1, 4, 0);
    data(&s, 100);
    expect_bad(&s, "\"b\": overlaps tensor \"a\"");
    header(&s, 3, 2, 0);
    tensor(&s, "a", 0, 0, 1, 4, 0);
    tensor(&s, "a", 0, 32, 1, 4, 0);
    data(&s, 100);
    expect_bad(&s, "\"a\": is there twice");
    hd_str_free(&s);
}

/* ---- what is written ---- */

static hd_gguf_writer *declare(hd_error *e)
{
    static const hd_gguf_text words[3] = {{"one", 3}, {"", 0}, {"a\0b", 3}};
    static const float scores[3] = {0.5f, -1, 3e30f};
    hd_gguf_writer *w = hd_gguf_writer_new(e);
    hd_gguf_put_string(w, "general.architecture", "llama", 5);
    hd_gguf_put_int(w, "n.u8", HD_GGUF_U8, 200);
    hd_gguf_put_int(w, "n.i8", HD_GGUF_I8, -100);
    hd_gguf_put_int(w, "n.i16", HD_GGUF_I16, -30000);
    hd_gguf_put_int(w, "n.u32", HD_GGUF_U32, 4000000000);
    hd_gguf_put_int(w, "n.i64", HD_GGUF_I64, INT64_MIN);
    hd_gguf_put_int(w, "n.u64", HD_GGUF_U64, -1);
    hd_gguf_put_real(w, "x.f32", HD_GGUF_F32, 0.1);
    hd_gguf_put_real(w, "x.f64", HD_GGUF_F64, 0.1);
    hd_gguf_put_bool(w, "b", true);
    hd_gguf_put_texts(w, "words", words, 3);
    hd_gguf_put_numbers(w, "scores", HD_GGUF_F32, scores, 3);
    assert_int_equal(hd_gguf_add(w, "z.weight", hd_quant_by_name("F32"), 3, (int64_t[]){2, 3, 5}, e), 0);
    assert_int_equal(hd_gguf_add(w, "a.weight", hd_quant_by_name("Q8_0"), 2, (int64_t[]){3, 64}, e), 0);
    assert_int_equal(hd_gguf_add(w, "m", hd_quant_by_name("BF16"), 1, (int64_t[]){7}, e), 0);
    assert_int_equal(hd_gguf_add(w, "scalar", hd_quant_by_name("F16"), 0, NULL, e), 0);
    return w;
}

static void write_file(const char *path)
{
    float x[192];
    hd_error e = {0};
    hd_gguf_writer *w = declare(&e);
    for (int i = 0; i < 192; i++) x[i] = (float)i;
    int rc = hd_gguf_begin(w, path, &e);
    if (!rc) rc = hd_gguf_write(w, x, 12, &e);
    if (!rc) rc = hd_gguf_write(w, x + 12, 18, &e);
    if (!rc) rc = hd_gguf_write(w, x, 192, &e);
    if (!rc) rc = hd_gguf_write(w, x, 7, &e);
    if (!rc) rc = hd_gguf_write(w, x + 3, 1, &e);
    assert_int_equal(hd_gguf_end(w, rc, &e), 0);
}

static void check_values(const hd_gguf *g)
{
    int64_t i = 0;
    double d = 0;
    bool b = false;
    const char *s = NULL;
    const hd_gguf_value *v;
    hd_error e = {0};
    static const struct { const char *key; int64_t value; } integers[] = {
        {"n.u8", 200}, {"n.i8", -100}, {"n.i16", -30000}, {"n.u32", 4000000000}, {"n.i64", INT64_MIN}, {"n.u64", INT64_MAX}};
    for (int k = 0; k < 6; k++) {
        assert_int_equal(hd_gguf_int(g, integers[k].key, INT64_MIN, INT64_MAX, &i, &e), 0);
        assert_true(i == integers[k].value);
    }
    assert_int_equal(hd_gguf_real(g, "x.f32", 0, 1, &d, &e), 0);
    assert_true(d == 0.1f);
    assert_int_equal(hd_gguf_real(g, "x.f64", 0, 1, &d, &e), 0);
    assert_true(d == 0.1);
    assert_int_equal(hd_gguf_bool(g, "b", &b, &e), 0);
    assert_true(b);
    assert_int_equal(hd_gguf_string(g, "general.architecture", &s, &e), 0);
    assert_string_equal(s, "llama");
    assert_int_equal(hd_gguf_array(g, "words", true, &v, &e), 0);
    assert_true(v->count == 3 && v->texts[0].size == 3 && !memcmp(v->texts[2].data, "a\0b", 3));
    assert_int_equal(hd_gguf_array(g, "scores", false, &v, &e), 0);
    assert_true(v->count == 3 && hd_gguf_number(v, 1) == -1 && hd_gguf_number(v, 2) == 3e30f);
    i = 5;
    assert_int_equal(hd_gguf_int(g, "absent", 0, 1, &i, &e), 0);
    assert_true(i == 5 && !hd_gguf_get(g, "absent") && !e.code);
    assert_int_equal(hd_gguf_int(g, "n.i8", 0, 10, &i, &e), HD_EFORMAT);
    e = (hd_error){0};
    assert_int_equal(hd_gguf_int(g, "x.f32", 0, 10, &i, &e), HD_EFORMAT);
    e = (hd_error){0};
    assert_int_equal(hd_gguf_array(g, "words", false, &v, &e), HD_EFORMAT);
    assert_non_null(strstr(e.message, "\"words\" must be an array of numbers, is an array of string"));
    e = (hd_error){0};
    assert_int_equal(hd_gguf_need(g, "absent", &e), HD_EFORMAT);
}

static void test_round_trip(void **state)
{
    char path[256];
    hd_gguf g;
    hd_error e = {0};
    snprintf(path, sizeof path, "%s/a.gguf", (char *)*state);
    write_file(path);
    assert_true(hd_gguf_is(path));
    assert_int_equal(hd_gguf_open(&g, path, &e), 0);
    assert_true(g.version == 3 && g.count == 4 && g.value_count == 12);
    check_values(&g);
    const hd_weight *z = hd_gguf_find(&g, "z.weight"), *a = hd_gguf_find(&g, "a.weight"), *m = hd_gguf_find(&g, "m"), *s = hd_gguf_find(&g, "scalar");
    assert_true(z->rank == 3 && z->dim[0] == 2 && z->dim[1] == 3 && z->dim[2] == 5 && z->bytes == 120 && !z->quant);
    assert_true(a->rank == 2 && a->dim[0] == 3 && a->dim[1] == 64 && a->bytes == 204 && a->quant == hd_gguf_type(&g, a) && a->dtype == HD_F32);
    assert_true(m->dtype == HD_BF16 && m->bytes == 14 && s->rank == 0 && s->bytes == 2 && !hd_gguf_find(&g, "b"));
    float x[192];
    hd_weight_load(z, 0, 30, x, HD_F32);
    for (int i = 0; i < 30; i++) assert_true(x[i] == (float)i);
    hd_weight_load(a, 5, 187, x, HD_F32);
    for (int i = 0; i < 187; i++) assert_true(!(x[i] - (float)(i + 5) > 1 || (float)(i + 5) - x[i] > 1));
    hd_weight_load(s, 0, 1, x, HD_F32);
    assert_true(x[0] == 3);
    hd_gguf_close(&g);
}

/* A file cut at any byte is refused, or whole but for its last padding. */
static void test_truncation(void **state)
{
    char path[256];
    hd_str all;
    hd_error e = {0};
    hd_gguf g;
    snprintf(path, sizeof path, "%s/b.gguf", (char *)*state);
    write_file(path);
    hd_str_init(&all);
    assert_int_equal(hd_file_read(&all, path, 0, &e), 0);
    size_t needed = all.len - 30; /* the last tensor has 2 bytes of 32 */
    for (size_t n = 0; n < all.len; n++) {
        char *copy = malloc(n ? n : 1);
        memcpy(copy, all.data, n);
        e = (hd_error){0};
        int rc = hd_gguf_parse(&g, copy, n, "w", &e);
        if (n < needed) assert_true(rc == HD_EFORMAT && e.message[0] && !strchr(e.message, '\n'));
        else assert_int_equal(rc, 0);
        hd_gguf_close(&g);
        free(copy);
    }
    hd_str_free(&all);
}

static void test_version_2(void **state)
{
    hd_str s;
    hd_gguf g;
    hd_error e = {0};
    (void)state;
    hd_str_init(&s);
    one_tensor(&s, "t", 24, 0, 2, 3, 4, 12);
    s.data[4] = 2;
    assert_int_equal(hd_gguf_parse(&g, s.data, s.len, "w", &e), 0);
    assert_true(g.version == 2 && g.tensors[0].dim[0] == 4 && g.tensors[0].dim[1] == 3 && g.tensors[0].dtype == HD_I8);
    hd_gguf_close(&g);
    one_tensor(&s, "t", 0, 0, 2, 0, 4, 0);
    assert_int_equal(hd_gguf_parse(&g, s.data, s.len, "w", &e), 0);
    hd_gguf_close(&g);
    hd_str_free(&s);
}

/* What cannot be written is said, and what isn't finished is not left behind. */
static void test_bad_writing(void **state)
{
    char path[256];
    hd_error e = {0};
    hd_gguf_writer *w = hd_gguf_writer_new(&e);
    assert_int_equal(hd_gguf_add(w, "t", hd_quant_by_name("Q4_0"), 2, (int64_t[]){32, 33}, &e), HD_EINVAL);
    e = (hd_error){0};
    assert_int_equal(hd_gguf_add(w, "t", hd_quant_by_name("F32"), 5, (int64_t[]){1, 1, 1, 1, 1}, &e), HD_EINVAL);
    e = (hd_error){0};
    assert_int_equal(hd_gguf_add(w, "t", hd_quant_by_name("F32"), 2, (int64_t[]){INT64_MAX / 2, 3}, &e), HD_EINVAL);
    hd_gguf_writer_free(w);
    e = (hd_error){0};
    w = declare(&e);
    int rc = hd_gguf_begin(w, "/nonexistent/x.gguf", &e);
    assert_int_equal(hd_gguf_end(w, rc, &e), HD_EIO);
    e = (hd_error){0};
    snprintf(path, sizeof path, "%s/c.gguf", (char *)*state);
    w = declare(&e);
    rc = hd_gguf_begin(w, path, &e);
    assert_int_equal(hd_gguf_end(w, rc, &e), HD_EIO);
    assert_non_null(strstr(e.message, "only 0 of 4 tensors"));
    assert_false(hd_file_exists(path));
    strcat(path, ".partial");
    assert_false(hd_file_exists(path));
}

/* Every allocation fails in turn: an error, and nothing leaks (under AddressSanitizer). */
static void test_no_memory(void **state)
{
    char path[256];
    hd_str all;
    hd_error e = {0};
    hd_gguf g;
    snprintf(path, sizeof path, "%s/d.gguf", (char *)*state);
    write_file(path);
    hd_str_init(&all);
    assert_int_equal(hd_file_read(&all, path, 0, &e), 0);
    int failures = 0;
    for (uint64_t n = 1;; n++) {
        uint64_t before = hd_mem_failed();
        e = (hd_error){0};
        hd_mem_fail_at(n);
        int rc = hd_gguf_parse(&g, all.data, all.len, "w", &e);
        hd_mem_fail_at(0);
        hd_gguf_close(&g);
        if (hd_mem_failed() == before) break;
        failures++;
        assert_int_equal(rc, HD_ENOMEM);
    }
    assert_true(failures >= 2);
    hd_str_free(&all);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_headers),
        cmocka_unit_test(test_bad_values),
        cmocka_unit_test(test_bad_tensors),
        cmocka_unit_test_setup_teardown(test_round_trip, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_truncation, make_dir, remove_dir),
        cmocka_unit_test(test_version_2),
        cmocka_unit_test_setup_teardown(test_bad_writing, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_no_memory, make_dir, remove_dir),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
