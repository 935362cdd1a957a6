/* What packing writes, pinned: files of packed weights outlive the program that made them. Samples of a large file; weights that nothing reads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>
#include "base/file.h"
#include "base/mem.h"
#include "base/rng.h"
#include "exec/pack.h"
#include "kernels/cpu/blocks.h"
#include "kernels/cpu/gemm.h"

enum { COLUMNS = 37, K = 768 };

static void *random_bytes(size_t n)
{
    hd_rng rng = hd_rng_new(12);
    unsigned char *p = hd_malloc(n);
    for (size_t i = 0; i < n; i++) p[i] = (unsigned char)hd_rng_below(&rng, 256);
    return p;
}

/* If this fails, packing writes something else than it did: raise HD_PACK_VERSION, and put the sums here that it prints. */
static void expect_sum(const char *what, const void *packed, size_t bytes, uint64_t want)
{
    uint64_t sum = hd_checksum(HD_CHECKSUM_INIT, packed, bytes);
    if (sum != want) fail_msg("%s is packed in another way: 0x%016llx. HD_PACK_VERSION (%d) must be raised", what, (unsigned long long)sum, HD_PACK_VERSION);
}

static void test_blocks_pinned(void **state)
{
    (void)state;
    static const struct { const char *type; uint64_t sum; } cases[] = {
        {"F16", 0x2b0f3ea331bb101d}, {"Q8_0", 0xd4b561ea849bf0ed}, {"Q4_0", 0x621f85d00ad28e84}, {"Q4_1", 0xe57e41f74cccd01c},
        {"Q5_0", 0x36d2d5ca8c192e43}, {"Q5_1", 0xf7239fb84d3e8307}, {"IQ4_NL", 0x621f85d00ad28e84}, {"Q2_K", 0xcf3f9e03836787ef},
        {"Q3_K", 0xa4fc42c3130679f0}, {"Q4_K", 0xc3d90131675ee5f0}, {"Q5_K", 0x138a23de0b9abc1d}, {"Q6_K", 0xb6c42861b9a18055},
        {"IQ4_XS", 0x3a0258cd5ce01fb6},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const hd_quant *q = hd_quant_by_name(cases[i].type);
        size_t bytes = hd_blocks_packed_bytes(HD_ISA_PORTABLE, q, COLUMNS, K);
        void *rows = random_bytes((size_t)(COLUMNS * K / q->block * q->bytes)), *packed = hd_calloc(1, bytes);
        hd_blocks_pack(HD_ISA_PORTABLE, q, rows, COLUMNS, K, packed, 0, 1);
        expect_sum(cases[i].type, packed, bytes, cases[i].sum);
        hd_free(rows);
        hd_free(packed);
    }
}

static void test_dense_pinned(void **state)
{
    (void)state;
    static const struct { hd_isa isa; hd_dtype dtype; uint64_t sum; bool trained; } cases[] = {
        {HD_ISA_PORTABLE, HD_F32, 0x64b7abd2bcc4bc9e, false}, {HD_ISA_AVX2, HD_F32, 0xc8cc63ea91375b81, false},
        {HD_ISA_AVX512, HD_F32, 0x78020d450d2fca43, false}, {HD_ISA_PORTABLE, HD_BF16, 0xd1c1d88e42bcefe5, false},
        {HD_ISA_AVX2, HD_BF16, 0x13db780e74e8dcb1, false}, {HD_ISA_BF16, HD_BF16, 0x14dd2a3c65794b8a, false}, {HD_ISA_BF16, HD_BF16, 0xccb7e4b036b919c8, true},
        {HD_ISA_VNNI, HD_I8, 0xbc5d0096c30edf7b, false},
    };
    void *plain = random_bytes(COLUMNS * K * 4), *trained = random_bytes(COLUMNS * K * 4);
    for (size_t i = 1; i < COLUMNS * K * 2; i += 2) ((unsigned char *)trained)[i] = i % 4099 ? (i % 4 > 2) << 7 | (56 + i % 7) : 17;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char name[64];
        hd_tensor b = {.data = cases[i].trained ? trained : plain, .dtype = cases[i].dtype, .rank = 2, .dim = {COLUMNS, K}};
        size_t bytes = hd_gemm_packed_bytes(cases[i].isa, "td,fd->tf", &b);
        void *packed = hd_calloc(1, bytes);
        hd_gemm_pack(cases[i].isa, "td,fd->tf", &b, packed, 0, 1);
        snprintf(name, sizeof name, "%s%s for %s", cases[i].trained ? "trained " : "", hd_dtype_name(cases[i].dtype), hd_isa_name(cases[i].isa));
        expect_sum(name, packed, bytes, cases[i].sum);
        hd_free(packed);
    }
    hd_free(plain);
    hd_free(trained);
}

/* Of a large file the head, every MiB and the end count; of a small one all. */
static void test_samples(void **state)
{
    (void)state;
    enum { LARGE = 70 << 20, HEAD = 9997 /* of whole words, 10000 */ };
    static const size_t seen[] = {0, HEAD - 17, HEAD - 1, HEAD, 10000 + 4095, 10000 + (1 << 20), 10000 + 5 * (1 << 20) + 4095, LARGE - 4096, LARGE - 1};
    static const size_t unseen[] = {10000 + 4096, LARGE / 2};
    unsigned char *p = hd_map_memory(LARGE);
    assert_non_null(p);
    hd_map large = {p, LARGE}, small = {p, 64 << 20};
    uint64_t sum = hd_checksum_samples(&large, HEAD), all = hd_checksum_samples(&small, HEAD);
    assert_true(sum == hd_checksum_samples(&large, HEAD) && sum != all);
    for (size_t i = 0; i < sizeof seen / sizeof *seen; i++) {
        p[seen[i]] ^= 4;
        if (hd_checksum_samples(&large, HEAD) == sum) fail_msg("byte %zu of a large file doesn't count", seen[i]);
        p[seen[i]] ^= 4;
    }
    for (size_t i = 0; i < sizeof unseen / sizeof *unseen; i++) {
        p[unseen[i]] ^= 4;
        assert_true(hd_checksum_samples(&large, HEAD) == sum);
        assert_true(hd_checksum_samples(&small, HEAD) != all);
        p[unseen[i]] ^= 4;
    }
    hd_unmap_memory(p, LARGE);
}

/* Any bit, in each of the chains and behind them. */
static void test_fast_checksum(void **state)
{
    (void)state;
    unsigned char p[4 * 32 + 13];
    for (size_t n = 0; n <= sizeof p; n += 7) {
        for (size_t i = 0; i < sizeof p; i++) p[i] = (unsigned char)(i * 37);
        uint64_t sum = hd_checksum_fast(p, n);
        for (size_t bit = 0; bit < n * 8; bit++) {
            p[bit / 8] ^= (unsigned char)(1u << bit % 8);
            assert_true(hd_checksum_fast(p, n) != sum);
            p[bit / 8] ^= (unsigned char)(1u << bit % 8);
        }
    }
}

/* It takes no memory, binds to no program, and stays as it is when the graph is added. */
static void test_hollow(void **state)
{
    (void)state;
    hd_error e = {0};
    hd_store *s = hd_store_new(NULL, 1, &e);
    hd_graph *g = hd_graph_new();
    assert_true(s && g);
    hd_type type = hd_type_of(HD_F32, 2, (int64_t[]){3, 5});
    hd_value v = hd_graph_param(g, "w", type, (hd_init){.how = HD_INIT_CONSTANT, .a = 2}, true, false);
    assert_int_equal(hd_store_add_hollow(s, g, &g->values[v], &e), 0);
    assert_int_equal(hd_store_add_graph(s, g, 1, &e), 0);
    assert_int_equal(hd_store_bytes(s), 0);
    hd_store_tensor *t = hd_store_find(s, "w");
    assert_true(t && t->hollow && !t->data);
    assert_null(hd_store_bind(s, "w", &type, HD_PLAIN, &e));
    assert_int_equal(e.code, HD_EINVAL);
    hd_store_drop(s, "w");
    assert_null(hd_store_find(s, "w"));
    hd_graph_free(g);
    hd_store_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_blocks_pinned), cmocka_unit_test(test_dense_pinned), cmocka_unit_test(test_samples), cmocka_unit_test(test_fast_checksum),
        cmocka_unit_test(test_hollow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
