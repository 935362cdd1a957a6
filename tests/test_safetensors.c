/* safetensors: sound files both ways, and every kind of broken one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <signal.h>
#include <unistd.h>

#include "tensor/safetensors.h"

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

static char *in_dir(char *out, void **state, const char *name)
{
    assert_int_equal(hd_path_join(out, 256, *state, name, NULL), 0);
    return out;
}

/* The bytes of a file with this header and data_bytes bytes 0, 1, 2, ... behind it. */
static void build(hd_str *s, const char *header, size_t data_bytes)
{
    uint64_t n = strlen(header);
    hd_str_clear(s);
    for (int i = 0; i < 8; i++) hd_str_putc(s, (char)(n >> (8 * i)));
    hd_str_puts(s, header);
    for (size_t i = 0; i < data_bytes; i++) hd_str_putc(s, (char)i);
    assert_false(s->failed);
}

/* One line that begins with the file's name and contains `message`; nothing of s is left. Parsed from a heap copy of exactly its size. */
static void expect_bad_bytes(const void *bytes, size_t n, const char *message)
{
    hd_safetensors s;
    hd_error e = {0};
    void *copy = malloc(n ? n : 1);
    memcpy(copy, bytes, n);
    int rc = hd_safetensors_parse(&s, copy, n, "w.st", &e);
    free(copy);
    if (rc != HD_EFORMAT || strncmp(e.message, "w.st: ", 6) || !strstr(e.message, message) || strchr(e.message, '\n'))
        fail_msg("wanted \"%s\", got %d \"%s\"", message, rc, e.message);
    assert_null(s.tensors);
    assert_int_equal(s.count, 0);
}

static void expect_bad(const char *header, size_t data_bytes, const char *message)
{
    hd_str s = HD_STR_INIT;
    build(&s, header, data_bytes);
    expect_bad_bytes(s.data, s.len, message);
    hd_str_free(&s);
}

#define T(name, dtype, shape, offsets) "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

static void test_sound(void **state)
{
    (void)state;
    hd_str bytes = HD_STR_INIT;
    hd_safetensors s;
    hd_error e = {0};
    build(&bytes,
          "{\"__metadata__\":{\"format\":\"pt\"}," T("b", "F32", "[2,1]", "[3,11]") "," T("a", "U8", "[3]", "[0,3]") ","
          T("none", "I64", "[0,5]", "[11,11]") "," T("scalar", "BOOL", "[]", "[11,12]") "}   ", 12);
    assert_int_equal(hd_safetensors_parse(&s, bytes.data, bytes.len, "w.st", &e), 0);
    assert_int_equal(s.count, 4);
    assert_string_equal(s.tensors[0].name, "a");
    assert_string_equal(json_string_value(json_object_get(s.metadata, "format")), "pt");
    const hd_weight *b = hd_safetensors_find(&s, "b"), *none = hd_safetensors_find(&s, "none"), *scalar = hd_safetensors_find(&s, "scalar");
    assert_true(b && b->rank == 2 && b->dim[0] == 2 && b->dim[1] == 1 && b->dtype == HD_F32 && b->bytes == 8);
    assert_true(none && none->bytes == 0 && none->dim[1] == 5);
    assert_true(scalar && scalar->rank == 0 && scalar->bytes == 1 && scalar->dtype == HD_U8 && scalar->data[0] == 11);
    assert_null(hd_safetensors_find(&s, "c"));
    /* Three bytes in: not aligned for its elements. */
    float want[2], got[2];
    double wide[2];
    memcpy(want, bytes.data + bytes.len - 9, 8);
    hd_weight_load(b, 0, 2, got, HD_F32);
    assert_memory_equal(got, want, 8);
    hd_weight_load(b, 1, 1, wide, HD_F64);
    assert_true(wide[0] == (double)want[1]);
    assert_int_equal(hd_weight_need_shape(b, 2, (int64_t[]){ 2, 1 }, &e), 0);
    assert_int_equal(hd_weight_need_shape(b, 2, (int64_t[]){ 1, 2 }, &e), HD_EFORMAT);
    assert_string_equal(e.message, "w.st: tensor \"b\": has shape [2, 1], the model needs [1, 2]");
    hd_safetensors_close(&s);

    build(&bytes, "{}", 0);
    assert_int_equal(hd_safetensors_parse(&s, bytes.data, bytes.len, "w.st", NULL), 0);
    assert_null(hd_safetensors_find(&s, "a"));
    hd_safetensors_close(&s);
    hd_str_free(&bytes);
}

static void test_bad_length(void **state)
{
    (void)state;
    expect_bad_bytes("", 0, "only 0 bytes");
    expect_bad_bytes("\2\0\0\0\0\0\0", 7, "only 7 bytes");
    expect_bad_bytes("\3\0\0\0\0\0\0\0{}", 10, "a header of 3 bytes goes beyond the file's end (10 bytes)");
    expect_bad_bytes("\1\0\100\6\0\0\0\0{}", 10, "a header of 104857601 bytes");
    expect_bad_bytes("\377\377\377\377\377\377\377\377{}", 10, "a header of 18446744073709551615 bytes");
    expect_bad_bytes("version https://git-lfs.github.com/spec/v1", 42, "not a safetensors file");
}

static void test_bad_header(void **state)
{
    (void)state;
    static const struct { const char *header, *message; } cases[] = {
        { "", "header, column" }, { "{", "header, column" }, { "[]", "must be a JSON object" }, { "{} x", "header, column" },
        { "{\"\xff\":1}", "header, column" }, { "{\"a\\u0000\":1}", "header, column" },
        { "{\"a\":3}", "tensor \"a\": must be an object" }, { "{\"a\":{}}", "tensor \"a\": \"dtype\" must be a string" },
        { "{" T("a", "U8", "[2]", "[0,2]") "," T("a", "U8", "[2]", "[0,2]") "}", "duplicate object key near '\"a\"'" },
        { "{\"__metadata__\":[]," T("a", "U8", "[2]", "[0,2]") "}", "\"__metadata__\" must be an object" },
        { "{\"__metadata__\":{\"k\":1}," T("a", "U8", "[2]", "[0,2]") "}", "\"__metadata__\": \"k\" must be a string" },
        { "{" T("a", "F8_E4M3", "[2]", "[0,2]") "}", "tensor \"a\": dtype \"F8_E4M3\" is not supported" },
        { "{" T("a", "f32", "[2]", "[0,2]") "}", "tensor \"a\": dtype \"f32\" is not supported" },
        { "{" T("a\\n\\u001b[2J", "", "[2]", "[0,2]") "}", "tensor \"a??[2J\": dtype \"\" is not supported" },
        { "{\"a\":{\"dtype\":\"U8\"}}", "tensor \"a\": \"shape\" must be a list" },
        { "{" T("a", "U8", "2", "[0,2]") "}", "tensor \"a\": \"shape\" must be a list" },
        { "{" T("a", "U8", "[-2]", "[0,2]") "}", "tensor \"a\": extent 0 of its shape must be an integer of at least 0" },
        { "{" T("a", "U8", "[1,2.0]", "[0,2]") "}", "tensor \"a\": extent 1 of its shape" },
        { "{" T("a", "U8", "[1,1,1,1,1,1,1,1,2]", "[0,2]") "}", "tensor \"a\": 9 dimensions, at most 8 are supported" },
        { "{" T("a", "U8", "[99999999999999999999]", "[0,2]") "}", "header, column" },
        { "{" T("a", "U8", "[4294967296,4294967296]", "[0,2]") "}", "tensor \"a\": its shape overflows 64 bits" },
        { "{" T("a", "F64", "[2305843009213693952]", "[0,2]") "}", "tensor \"a\": its shape overflows 64 bits" },
        { "{" T("a", "U8", "[0,4294967296,4294967296]", "[0,0]") "}", "tensor \"a\": its shape overflows 64 bits" },
        { "{\"a\":{\"dtype\":\"U8\",\"shape\":[2]}}", "tensor \"a\": \"data_offsets\" must be two integers" },
        { "{" T("a", "U8", "[2]", "[0]") "}", "tensor \"a\": \"data_offsets\" must be two integers" },
        { "{" T("a", "U8", "[2]", "[0,2,4]") "}", "tensor \"a\": \"data_offsets\" must be two integers" },
        { "{" T("a", "U8", "[2]", "[0,\"2\"]") "}", "tensor \"a\": \"data_offsets\" must be two integers" },
        { "{" T("a", "U8", "[2]", "[-2,0]") "}", "tensor \"a\": data offsets -2 to 0 make no sense" },
        { "{" T("a", "U8", "[2]", "[2,0]") "}", "tensor \"a\": data offsets 2 to 0 make no sense" },
        { "{" T("a", "U8", "[3]", "[0,3]") "}", "tensor \"a\": ends at byte 3 of the data, but the file has 2" },
        { "{" T("a", "U8", "[2]", "[9223372036854775805,9223372036854775807]") "}", "tensor \"a\": ends at byte 9223372036854775807" },
        { "{" T("a", "U8", "[1]", "[0,2]") "}", "tensor \"a\": has 2 bytes, its shape and dtype ask for 1" },
        { "{" T("a", "F32", "[2]", "[0,2]") "}", "tensor \"a\": has 2 bytes, its shape and dtype ask for 8" },
        { "{" T("a", "F32", "[]", "[0,2]") "}", "tensor \"a\": has 2 bytes, its shape and dtype ask for 4" },
        { "{" T("a", "U8", "[0]", "[0,2]") "}", "tensor \"a\": has 2 bytes, its shape and dtype ask for 0" },
        { "{" T("a", "U8", "[2]", "[0,2]") "," T("b", "U8", "[2]", "[0,2]") "}", "overlaps tensor" },
        { "{" T("a", "U8", "[2]", "[0,2]") "," T("b", "U8", "[1]", "[1,2]") "}", "tensor \"b\": overlaps tensor \"a\"" },
        { "{" T("a", "U8", "[2]", "[0,2]") "," T("b", "U8", "[0]", "[1,1]") "}", "tensor \"b\": overlaps tensor \"a\"" },
        { "{" T("a", "U8", "[1]", "[1,2]") "}", "tensor \"a\": 1 bytes before it belong to no tensor" },
        { "{" T("a", "U8", "[1]", "[0,1]") "}", "the last 1 bytes belong to no tensor" },
        { "{}", "the last 2 bytes belong to no tensor" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) expect_bad(cases[i].header, 2, cases[i].message);
}

/* Names longer than a message: still one line, and it does not hide what is wrong. */
static void test_long_names(void **state)
{
    (void)state;
    hd_str header = HD_STR_INIT;
    hd_str_puts(&header, "{\"");
    for (int i = 0; i < 5000; i++) hd_str_putc(&header, 'n');
    hd_str_puts(&header, "\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,2]}}");
    expect_bad(header.data, 2, "has 2 bytes, its shape and dtype ask for 3");
    hd_str_clear(&header);
    for (int i = 0; i < 50000; i++) hd_str_puts(&header, "{\"a\":");
    expect_bad(header.data, 0, "header, column");
    hd_str_free(&header);
}

/* Every prefix of a sound file, and every byte of its header replaced: an error or a sound table, never more. */
static void test_truncated_and_damaged(void **state)
{
    (void)state;
    hd_str bytes = HD_STR_INIT;
    build(&bytes, "{" T("a", "F32", "[2]", "[0,8]") "," T("b", "I8", "[1,3]", "[8,11]") "}", 11);
    hd_safetensors s;
    for (size_t n = 0; n < bytes.len; n++) {
        char *copy = malloc(n ? n : 1);
        memcpy(copy, bytes.data, n);
        assert_int_equal(hd_safetensors_parse(&s, copy, n, "w.st", NULL), HD_EFORMAT);
        free(copy);
    }
    for (size_t i = 0; i < bytes.len - 11; i++)
        for (int c = 0; c < 256; c += 3) {
            char *copy = malloc(bytes.len);
            memcpy(copy, bytes.data, bytes.len);
            copy[i] = (char)c;
            if (!hd_safetensors_parse(&s, copy, bytes.len, "w.st", NULL))
                for (size_t k = 0; k < s.count; k++) assert_in_range(s.tensors[k].data + s.tensors[k].bytes - (unsigned char *)copy, 0, bytes.len);
            hd_safetensors_close(&s);
            free(copy);
        }
    hd_str_free(&bytes);
}

static void test_out_of_memory(void **state)
{
    (void)state;
    hd_str bytes = HD_STR_INIT;
    build(&bytes, "{" T("a", "U8", "[2]", "[0,2]") "," T("b", "U8", "[1]", "[2,3]") "}", 3);
    uint64_t before = hd_mem_failed();
    int rc = HD_ENOMEM;
    for (uint64_t n = 1; rc == HD_ENOMEM; n++) {
        hd_safetensors s;
        hd_error e = {0};
        hd_mem_fail_at(n);
        rc = hd_safetensors_parse(&s, bytes.data, bytes.len, "w.st", &e);
        hd_mem_fail_at(0);
        assert_int_equal(rc, e.code);
        hd_safetensors_close(&s);
    }
    assert_int_equal(rc, 0);
    assert_true(hd_mem_failed() > before);
    hd_str_free(&bytes);
}

/* ---- writing ---- */

/* What the Python library (safetensors 0.8.0) writes for the same tensors, metadata and order. */
static const char golden_header[] =
    "{\"__metadata__\":{\"format\":\"pt\"}," T("w.a", "F32", "[2,2]", "[0,16]") "," T("w.b", "F32", "[]", "[16,20]") ","
    T("hid", "BF16", "[3]", "[20,26]") "," T("u", "U8", "[0]", "[26,26]") "}";

static const hd_weight_spec golden_specs[4] = {
    { "u", HD_U8, 1, { 0 } }, { "hid", HD_BF16, 1, { 3 } }, { "w.b", HD_F32, 0, { 0 } }, { "w.a", HD_F32, 2, { 2, 2 } },
};

static void write_golden(const char *path)
{
    hd_error e = {0};
    const double h[3] = { 1, -2, 1 + 0x1p-8 + 0x1p-40 };
    const float a[4] = { 1, 2, 3, 4 }, b = -0.5f;
    hd_safetensors_writer *w = hd_safetensors_create(path, golden_specs, 4, NULL, &e);
    assert_non_null(w);
    assert_int_equal(hd_safetensors_write(w, 3, 2, 2, a + 2, HD_F32, &e), 0);
    assert_int_equal(hd_safetensors_write(w, 1, 0, 3, h, HD_F64, &e), 0);
    assert_int_equal(hd_safetensors_write(w, 3, 0, 2, a, HD_F32, &e), 0);
    assert_int_equal(hd_safetensors_write(w, 2, 0, 1, &b, HD_F32, &e), 0);
    assert_int_equal(hd_safetensors_finish(w, &e), 0);
    assert_int_equal(e.code, 0);
}

static void test_write(void **state)
{
    char path[256];
    hd_str bytes = HD_STR_INIT;
    write_golden(in_dir(path, state, "model.safetensors"));
    assert_int_equal(hd_file_read(&bytes, path, 0, NULL), 0);
    size_t header = (sizeof golden_header - 1 + 7) / 8 * 8;
    assert_int_equal(bytes.len, 8 + header + 26);
    assert_int_equal((unsigned char)bytes.data[0] | (unsigned char)bytes.data[1] << 8, header);
    assert_memory_equal(bytes.data + 8, golden_header, sizeof golden_header - 1);
    for (size_t i = sizeof golden_header - 1; i < header; i++) assert_int_equal(bytes.data[8 + i], ' ');

    hd_weights w;
    assert_int_equal(hd_weights_open(&w, *state, NULL), 0);
    float a[4];
    uint16_t h[3];
    hd_weight_load(hd_weights_find(&w, "w.a"), 0, 4, a, HD_F32);
    hd_weight_load(hd_weights_find(&w, "hid"), 0, 3, h, HD_BF16);
    for (int i = 0; i < 4; i++) assert_true(a[i] == (float)(i + 1));
    assert_int_equal(h[0], 0x3f80);
    assert_int_equal(h[1], 0xc000);
    assert_int_equal(h[2], 0x3f81); /* rounded once */
    hd_weights_close(&w);
    assert_int_equal(hd_weights_open(&w, path, NULL), 0);
    assert_int_equal(w.count, 4);
    hd_weights_close(&w);
    hd_str_free(&bytes);
}

typedef struct half_job { hd_safetensors_writer *w; const float *values; int64_t begin; int rc; } half_job;

static void *write_half(void *p)
{
    half_job *j = p;
    /* Several pieces, the last of more than one 64 KiB block. */
    static const int64_t ends[] = { 0, 1, 1000, 10001, 50000 };
    for (int k = 0; k < 4 && !j->rc; k++) {
        int64_t begin = j->begin + ends[k];
        j->rc = hd_safetensors_write(j->w, 0, begin, ends[k + 1] - ends[k], j->values + begin, HD_F32, NULL);
    }
    return NULL;
}

/* Two threads, converting, over several blocks. */
static void test_write_threads(void **state)
{
    char path[256];
    hd_error e = {0};
    hd_weight_spec spec = { "x", HD_F16, 1, { 100000 } };
    float *values = malloc(100000 * sizeof *values);
    for (int i = 0; i < 100000; i++) values[i] = (float)(i % 2048);
    json_t *extra = json_pack("{s:s}", "step", "12");
    half_job jobs[2] = { { .values = values }, { .values = values, .begin = 50000 } };
    jobs[0].w = jobs[1].w = hd_safetensors_create(in_dir(path, state, "x"), &spec, 1, extra, &e);
    json_decref(extra);
    assert_non_null(jobs[0].w);
    pthread_t t;
    pthread_create(&t, NULL, write_half, &jobs[1]);
    write_half(&jobs[0]);
    pthread_join(t, NULL);
    assert_int_equal(jobs[0].rc | jobs[1].rc, 0);
    assert_int_equal(hd_safetensors_finish(jobs[0].w, &e), 0);
    hd_safetensors s;
    assert_int_equal(hd_safetensors_open(&s, path, &e), 0);
    assert_string_equal(json_string_value(json_object_get(s.metadata, "step")), "12");
    float *back = malloc(100000 * sizeof *back);
    hd_weight_load(s.tensors, 0, 100000, back, HD_F32);
    assert_memory_equal(back, values, 100000 * sizeof *back);
    hd_safetensors_close(&s);
    free(back);
    free(values);
}

static void expect_no_writer(const char *path, const hd_weight_spec *specs, size_t count, int code, const char *message)
{
    hd_error e = {0};
    assert_null(hd_safetensors_create(path, specs, count, NULL, &e));
    if (e.code != code || !strstr(e.message, message)) fail_msg("wanted \"%s\", got %d \"%s\"", message, e.code, e.message);
}

static void test_write_errors(void **state)
{
    char path[256];
    in_dir(path, state, "x");
    hd_error e = {0};
    hd_weight_spec twice[2] = { { "a", HD_F32, 1, { 2 } }, { "a", HD_I8, 1, { 2 } } };
    hd_weight_spec negative = { "a", HD_F32, 1, { -1 } }, huge = { "a", HD_F64, 2, { (int64_t)1 << 31, (int64_t)1 << 31 } };
    hd_weight_spec not_utf8 = { "\xff", HD_F32, 1, { 1 } }, one = { "a", HD_F32, 1, { 2 } };
    expect_no_writer(path, twice, 2, HD_EINVAL, "tensor \"a\" is named twice");
    expect_no_writer(path, &negative, 1, HD_EINVAL, "tensor \"a\" has an impossible shape");
    expect_no_writer(path, &huge, 1, HD_EINVAL, "tensor \"a\" has an impossible shape");
    expect_no_writer(path, &not_utf8, 1, HD_EINVAL, "not UTF-8");
    expect_no_writer("/nowhere/at/all", &one, 1, HD_EIO, "/nowhere/at/all");
    expect_no_writer("/dev/null", &one, 1, HD_EIO, "cannot create /dev/null: not a regular file");
    assert_true(hd_file_exists("/dev/null"));
    hd_safetensors_writer *w = hd_safetensors_create(path, &one, 1, NULL, &e);
    assert_int_equal(hd_safetensors_write(w, 0, 0, 1, (float[]){ 1 }, HD_F32, &e), 0);
    assert_int_equal(hd_safetensors_finish(w, &e), HD_EINVAL);
    assert_non_null(strstr(e.message, "4 bytes of tensors were written, 8 declared"));
    assert_false(hd_file_exists(path));
    w = hd_safetensors_create(path, &one, 1, NULL, NULL);
    hd_safetensors_abandon(w);
    assert_false(hd_file_exists(path));
    for (uint64_t n = 1, failed = 1; failed; n++) {
        uint64_t before = hd_mem_failed();
        hd_mem_fail_at(n);
        w = hd_safetensors_create(path, &one, 1, NULL, NULL);
        hd_mem_fail_at(0);
        failed = hd_mem_failed() - before;
        if (failed) assert_null(w);
        hd_safetensors_abandon(w);
        assert_true(n > 1 || failed);
    }
}

/* A limit on file sizes stands for a full disk: the file must be refused, and not left behind. */
static void test_write_no_space(void **state)
{
    char path[256];
    hd_weight_spec big = { "a", HD_F32, 1, { 1 << 20 } };
    struct rlimit old, small;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    small = old;
    small.rlim_cur = 1 << 20;
    setrlimit(RLIMIT_FSIZE, &small);
    expect_no_writer(in_dir(path, state, "x"), &big, 1, HD_EIO, path);
    setrlimit(RLIMIT_FSIZE, &old);
    signal(SIGXFSZ, handler);
    assert_false(hd_file_exists(path));
}

/* ---- model directories ---- */

static void write_text(void **state, const char *name, const char *text)
{
    char path[256];
    assert_int_equal(hd_file_write_atomic(in_dir(path, state, name), text, strlen(text), NULL), 0);
}

static void write_shard(void **state, const char *name, const char *header, size_t data_bytes)
{
    char path[256];
    hd_str s = HD_STR_INIT;
    build(&s, header, data_bytes);
    assert_int_equal(hd_file_write_atomic(in_dir(path, state, name), s.data, s.len, NULL), 0);
    hd_str_free(&s);
}

static void expect_bad_index(void **state, const char *index, int code, const char *message)
{
    hd_weights w;
    hd_error e = {0};
    write_text(state, "model.safetensors.index.json", index);
    int rc = hd_weights_open(&w, *state, &e);
    if (rc != code || !strstr(e.message, message) || !strstr(e.message, *state)) fail_msg("wanted \"%s\", got %d \"%s\"", message, rc, e.message);
    assert_int_equal(w.count, 0);
}

static void test_index(void **state)
{
    hd_weights w;
    hd_error e = {0};
    assert_int_equal(hd_weights_open(&w, *state, &e), HD_EIO);
    assert_non_null(strstr(e.message, "neither model.safetensors nor"));
    write_shard(state, "one.safetensors", "{" T("a", "U8", "[2]", "[0,2]") "," T("extra", "U8", "[1]", "[2,3]") "}", 3);
    write_shard(state, "two.safetensors", "{" T("b", "U8", "[2]", "[0,2]") "}", 2);
    write_shard(state, "bad.safetensors", "{" T("b", "U8", "[2]", "[0,2]") "}", 1);
    write_text(state, "model.safetensors.index.json",
               "{\"metadata\":{\"total_size\":4},\"weight_map\":{\"b\":\"two.safetensors\",\"a\":\"one.safetensors\"}}");
    assert_int_equal(hd_weights_open(&w, *state, NULL), 0);
    assert_int_equal(w.count, 2);
    assert_int_equal(w.shard_count, 2);
    assert_int_equal(hd_weights_find(&w, "b")->bytes, 2);
    assert_non_null(strstr(hd_weights_find(&w, "b")->file, "two.safetensors"));
    assert_null(hd_weights_find(&w, "extra"));
    hd_weights_close(&w);

    expect_bad_index(state, "{\"weight_map\":{\"a\":\"three.safetensors\"}}", HD_EIO, "names \"three.safetensors\", which is missing");
    expect_bad_index(state, "{\"weight_map\":{\"a\":\"/etc/passwd\"}}", HD_EFORMAT, "names \"/etc/passwd\", which is outside");
    expect_bad_index(state, "{\"weight_map\":{\"a\":\"x/../../one.safetensors\"}}", HD_EFORMAT, "which is outside the directory");
    expect_bad_index(state, "{\"weight_map\":{\"a\":\"\"}}", HD_EFORMAT, "which is outside the directory");
    expect_bad_index(state, "{\"weight_map\":{\"a\":\"one.safetensors\\u0000x\"}}", HD_EFORMAT, "the file of tensor \"a\" must be a string");
    expect_bad_index(state, "{\"weight_map\":{\"a\":\"one.safetensors\",\"c\":\"one.safetensors\"}}", HD_EFORMAT,
                     "tensor \"c\" is not in \"one.safetensors\"");
    expect_bad_index(state, "{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"bad.safetensors\"}}", HD_EFORMAT,
                     "bad.safetensors: tensor \"b\": ends at byte 2 of the data, but the file has 1");
    expect_bad_index(state, "{\"weight_map\":{\"a\":7}}", HD_EFORMAT, "the file of tensor \"a\" must be a string");
    expect_bad_index(state, "{\"weight_map\":[]}", HD_EFORMAT, "\"weight_map\" must be an object");
    expect_bad_index(state, "{}", HD_EFORMAT, "\"weight_map\" must be an object");
    expect_bad_index(state, "{\"weight_map\":", HD_EFORMAT, "line 1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sound),
        cmocka_unit_test(test_bad_length),
        cmocka_unit_test(test_bad_header),
        cmocka_unit_test(test_long_names),
        cmocka_unit_test(test_truncated_and_damaged),
        cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test_setup_teardown(test_write, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_write_threads, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_write_errors, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_write_no_space, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_index, make_dir, remove_dir),
    };
    return cmocka_run_group_tests_name("safetensors", tests, NULL, NULL);
}
