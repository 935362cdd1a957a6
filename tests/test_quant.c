/* quant: every block type against what the Python package `gguf` reads and writes (tests/make_quant_fixtures.py), to the last bit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tensor/safetensors.h"

static hd_safetensors reference;

static int open_reference(void **state)
{
    hd_error e = {0};
    (void)state;
    if (!hd_safetensors_open(&reference, TEST_SOURCE_DIR "/tests/data/quant/reference.safetensors", &e)) return 0;
    print_error("%s\n", e.message);
    return -1;
}

static int close_reference(void **state)
{
    (void)state;
    hd_safetensors_close(&reference);
    return 0;
}

static const hd_weight *find(const char *type, const char *what)
{
    char name[64];
    snprintf(name, sizeof name, "%s.%s", type, what);
    return hd_safetensors_find(&reference, name);
}

static void test_blocks(void **state)
{
    int types = 0;
    (void)state;
    for (int t = 0; t < hd_quant_count; t++) {
        const hd_quant *q = &hd_quants[t];
        const hd_weight *blocks = find(q->name, "blocks"), *values = find(q->name, "values");
        if (!blocks) {
            assert_true(q->plain || !q->dequantize || !strcmp(q->name, "F32"));
            continue;
        }
        types++;
        int64_t n = (int64_t)values->bytes / 4;
        float *out = malloc(values->bytes), *want = malloc(values->bytes);
        hd_weight_load(values, 0, n, want, HD_F32);
        assert_int_equal(n / q->block * q->bytes, blocks->bytes);
        q->dequantize(blocks->data, n / q->block, out);
        assert_memory_equal(out, want, values->bytes);
        free(out);
        free(want);
    }
    assert_int_equal(types, 14);
}

/* Any part of a row, in any dtype. */
static void test_parts(void **state)
{
    static const char *const names[] = {"Q4_0", "Q8_0", "Q4_K", "Q6_K"};
    (void)state;
    for (int t = 0; t < 4; t++) {
        const hd_weight *blocks = find(names[t], "blocks"), *values = find(names[t], "values");
        const hd_quant *q = hd_quant_by_name(names[t]);
        hd_weight w = {.dtype = HD_F32, .quant = q, .data = blocks->data};
        int64_t n = (int64_t)values->bytes / 4;
        for (int64_t begin = 0; begin < n; begin += 1 + n / 13) {
            int64_t count = (n - begin) * 2 / 3 + 1;
            if (count > n - begin) count = n - begin;
            float part[4096], want[4096];
            uint16_t half[4096];
            hd_weight_load(&w, begin, count, part, HD_F32);
            hd_weight_load(values, begin, count, want, HD_F32);
            assert_memory_equal(part, want, (size_t)count * 4);
            hd_weight_load(&w, begin, count, half, HD_BF16);
            for (int64_t i = 0; i < count; i++) assert_int_equal(half[i], hd_bf16_from_f32(want[i]));
        }
    }
}

static void test_quantize(void **state)
{
    int types = 0;
    (void)state;
    for (int t = 0; t < hd_quant_count; t++) {
        const hd_quant *q = &hd_quants[t];
        const hd_weight *rows = find(q->name, "rows"), *blocks = find(q->name, "quantized");
        if (!rows) continue;
        types++;
        float x[256];
        unsigned char out[2048];
        hd_weight_load(rows, 0, 256, x, HD_F32);
        q->quantize(x, 256 / q->block, out);
        assert_memory_equal(out, blocks->data, blocks->bytes);
    }
    assert_int_equal(types, 4);
}

/* Numbers that are none don't become undefined behaviour. */
static void test_not_numbers(void **state)
{
    float x[64];
    unsigned char out[256];
    (void)state;
    for (int i = 0; i < 64; i++) x[i] = i % 3 == 0 ? NAN : i % 3 == 1 ? INFINITY : -1e38f;
    for (int t = 0; t < hd_quant_count; t++)
        if (hd_quants[t].quantize) hd_quants[t].quantize(x, 64 / hd_quants[t].block, out);
}

static void test_table(void **state)
{
    int64_t bytes;
    (void)state;
    for (int t = 0; t < hd_quant_count; t++) {
        assert_ptr_equal(hd_quant_by_id(hd_quants[t].id), &hd_quants[t]);
        assert_ptr_equal(hd_quant_by_name(hd_quants[t].name), &hd_quants[t]);
    }
    assert_ptr_equal(hd_quant_by_name("q4_k"), hd_quant_by_id(12));
    assert_null(hd_quant_by_id(4));
    assert_null(hd_quant_by_name("Q9_9"));
    assert_true(hd_quant_bytes(hd_quant_by_name("Q4_0"), 64, &bytes) && bytes == 36);
    assert_false(hd_quant_bytes(hd_quant_by_name("Q4_0"), 65, &bytes));
    assert_false(hd_quant_bytes(hd_quant_by_name("F32"), INT64_MAX / 2, &bytes));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_blocks), cmocka_unit_test(test_parts), cmocka_unit_test(test_quantize),
        cmocka_unit_test(test_not_numbers), cmocka_unit_test(test_table),
    };
    return cmocka_run_group_tests(tests, open_reference, close_reference);
}
