/* Clusters: their files both ways, what is wrong with bad ones, where devices are. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "cluster/calibrate_cases.h"
#include "cluster/cost.h"
#include "graph/op.h"
#include "tensor/quant.h"

#define EFFICIENCY "\"efficiency\": {\"product\": 0.8, \"product_half\": 1e8, \"depth_half\": 100, \"memory\": 0.85}"
#define DEVICE "\"device\": {\"name\": \"chip\", \"flops\": {\"f32\": 1e13, \"bf16\": 1e14}, \"bandwidth\": 1e12, \"memory\": 80000000000, \"launch\": 5e-6, " EFFICIENCY "}"
#define LEVEL(fanout) "{\"name\": \"wire\", \"fanout\": " fanout ", \"latency\": 1e-6, \"bandwidth\": 1e11, \"efficiency\": 0.9, \"ports\": 1}"
#define ENTRY(x) "{\"op\": \"contract\", \"dtype\": \"f32\", \"threads\": 2, \"teams\": 1, \"x\": [" x "], \"seconds\": 0.001}"
#define CLUSTER(device, levels, more) "{\"version\": 1, \"name\": \"pod\", " device ", \"levels\": [" levels "]" more "}"

static hd_cluster parsed(const char *text)
{
    hd_cluster c = {0};
    hd_error err = {0};
    if (hd_cluster_parse(text, strlen(text), "pod.json", &c, &err)) fail_msg("%s", err.message);
    return c;
}

static void test_both_ways(void **state)
{
    (void)state;
    hd_cluster c = parsed(CLUSTER(DEVICE, LEVEL("4") "," LEVEL("3, \"contention\": 0.2, \"drag\": 0.05"), ", \"note\": \"a \\\"test\\\"\", \"price\": 12.3, \"profile\": [" ENTRY("8, 0.1, 7") "]"));
    hd_str text, again;
    hd_str_init(&text);
    hd_str_init(&again);
    assert_string_equal(c.device.name, "chip");
    assert_true(c.device.flops[HD_BF16] == 1e14 && c.device.memory == 80000000000 && c.device.efficiency.depth_half == 100);
    assert_true(c.n_profile == 1 && c.profile[0].x[1] == 0.1 && c.profile[0].x[3] == 1 && c.profile[0].seconds == 0.001);
    assert_int_equal(hd_cluster_print(&c, &text), 0);
    hd_cluster d = parsed(text.data);
    assert_int_equal(hd_cluster_print(&d, &again), 0);
    assert_string_equal(text.data, again.data);
    assert_string_equal(d.note, "a \"test\"");
    assert_memory_equal(&c.device, &d.device, sizeof c.device);
    assert_memory_equal(c.level, d.level, sizeof c.level);
    hd_cluster_free(&c);
    hd_cluster_free(&d);
    hd_str_free(&text);
    hd_str_free(&again);
}

static void test_files(void **state)
{
    (void)state;
    hd_cluster c = parsed(CLUSTER(DEVICE, LEVEL("2"), "")), d;
    hd_error err = {0};
    char path[64];
    snprintf(path, sizeof path, "/tmp/heddle-cluster-%d.json", (int)getpid());
    assert_int_equal(hd_cluster_save(&c, path, &err), 0);
    assert_int_equal(hd_cluster_load(path, &d, &err), 0);
    assert_int_equal(hd_cluster_devices(&d), 2);
    unlink(path);
    assert_int_equal(hd_cluster_load(path, &d, &err), HD_EIO);
    hd_cluster_free(&c);
    hd_cluster_free(&d);
}

static void test_bad_files(void **state)
{
    (void)state;
#define BARE(more) "\"device\": {\"name\": \"chip\", \"flops\": {\"f32\": 1e13}, \"bandwidth\": 1e12, \"memory\": 1000, \"launch\": 0" more "}"
    static const struct { const char *text, *message; } cases[] = {
        {"{", "pod.json: line 1"},
        {"[]", "pod.json: a cluster must be an object"},
        {"{\"name\": \"pod\"}", "pod.json: \"version\" is missing"},
        {"{\"version\": 2}", "pod.json: the cluster is of version 2, this program reads version 1"},
        {"{\"version\": 1, \"name\": \"pod\", \"colour\": 3}", "pod.json: there is no field \"colour\""},
        {"{\"version\": 1}", "pod.json: \"name\" is missing"},
        {"{\"version\": 1, \"name\": \"\"}", "pod.json: \"name\" is empty"},
        {"{\"version\": 1, \"name\": 7}", "pod.json: \"name\" must be a string, is a number"},
        {"{\"version\": 1, \"name\": \"pod\"}", "pod.json: \"device\" is missing"},
        {"{\"version\": 1, \"name\": \"pod\", \"device\": 1}", "pod.json: \"device\" must be an object"},
        {"{\"version\": 1, \"name\": \"pod\", " DEVICE "}", "pod.json: \"levels\" is missing"},
        {CLUSTER("\"device\": {\"name\": \"chip\"}", "", ""), "pod.json: device: \"bandwidth\" is missing"},
        {CLUSTER(BARE(""), "", ""), "pod.json: device: \"efficiency\" is missing"},
        {CLUSTER(BARE(", \"reserved\": 1000, " EFFICIENCY), "", ""), "pod.json: device: \"reserved\" (1000) leaves nothing of \"memory\" (1000)"},
        {CLUSTER(BARE(", \"reserved\": -1, " EFFICIENCY), "", ""), "pod.json: device: \"reserved\" must be a number of at least 0, is -1"},
        {CLUSTER(BARE(", \"reserved\": 1.5, " EFFICIENCY), "", ""), "pod.json: device: \"reserved\" must be a whole number, is 1.5"},
        {CLUSTER(BARE(", \"efficiency\": {\"product\": 1.2}"), "", ""), "pod.json: device: efficiency: \"product\" must be a number greater than 0 and at most 1, is 1.2"},
        {CLUSTER(BARE(", \"efficiency\": {\"products\": 1}"), "", ""), "pod.json: device: efficiency: there is no field \"products\""},
        {CLUSTER("\"device\": {\"name\": \"chip\", \"flops\": {\"f32\": 1e13}, \"bandwidth\": -2, \"memory\": 1, \"launch\": 0}", "", ""),
         "pod.json: device: \"bandwidth\" must be a number greater than 0, is -2"},
        {CLUSTER("\"device\": {\"name\": \"chip\", \"flops\": {\"f31\": 1e13}, \"bandwidth\": 2, \"memory\": 1, \"launch\": 0}", "", ""),
         "pod.json: device: \"flops\": there is no dtype \"f31\""},
        {CLUSTER("\"device\": {\"name\": \"chip\", \"flops\": {\"bf16\": 1e13}, \"bandwidth\": 2, \"memory\": 1, \"launch\": 0}", "", ""),
         "pod.json: device: \"flops\": \"f32\" is missing"},
        {CLUSTER("\"device\": {\"name\": \"chip\", \"flops\": {\"f32\": 0}, \"bandwidth\": 2, \"memory\": 1, \"launch\": 0}", "", ""),
         "pod.json: device: \"f32\" must be a number greater than 0, is 0"},
        {CLUSTER(DEVICE, "7", ""), "pod.json: levels[0] must be an object"},
        {CLUSTER(DEVICE, LEVEL("2") ",{\"name\": \"x\"}", ""), "pod.json: levels[1]: \"fanout\" is missing"},
        {CLUSTER(DEVICE, LEVEL("2, \"drag\": 1"), ""), "pod.json: levels[0]: \"drag\" must be a number of at least 0 and less than 1, is 1"},
        {CLUSTER(DEVICE, LEVEL("2, \"contention\": -0.1"), ""), "pod.json: levels[0]: \"contention\" must be a number of at least 0 and less than 1, is -0.1"},
        {CLUSTER(DEVICE, LEVEL("0"), ""), "pod.json: levels[0]: \"fanout\" must be a number greater than 0, is 0"},
        {CLUSTER(DEVICE, LEVEL("10000") "," LEVEL("10000"), ""), "pod.json: levels[1]: more than"},
        {CLUSTER(DEVICE, LEVEL("1") "," LEVEL("1") "," LEVEL("1") "," LEVEL("1") "," LEVEL("1") "," LEVEL("1") "," LEVEL("1"), ""), "\"levels\" has 7 entries, there can be 6"},
        {CLUSTER(DEVICE, LEVEL("2"), ", \"node_level\": 1"), "pod.json: \"node_level\" is 1, the levels are 0 to 0"},
        {CLUSTER(DEVICE, LEVEL("2"), ", \"price\": -1"), "pod.json: \"price\" must be a number of at least 0, is -1"},
        {CLUSTER(DEVICE, LEVEL("2"), ", \"profile\": {}"), "pod.json: \"profile\" must be a list"},
        {CLUSTER(DEVICE, LEVEL("2"), ", \"profile\": [" ENTRY("1") "," ENTRY("0") "]"), "pod.json: profile[1]: \"x\" must be a list of numbers greater than 0"},
        {CLUSTER(DEVICE, LEVEL("2"), ", \"profile\": [" ENTRY("1,1,1,1,1") "]"), "pod.json: profile[0]: \"x\" has 5 entries, there can be 4"},
        {CLUSTER(DEVICE, LEVEL("2"), ", \"profile\": [{\"op\": \"x\", \"dtype\": \"f3\", \"threads\": 1, \"teams\": 1, \"seconds\": 1, \"x\": []}]"),
         "pod.json: profile[0]: \"dtype\": there is no dtype \"f3\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hd_cluster c;
        hd_error err = {0};
        int rc = hd_cluster_parse(cases[i].text, strlen(cases[i].text), "pod.json", &c, &err);
        if (rc >= 0) fail_msg("taken: %s", cases[i].text);
        if (!strstr(err.message, cases[i].message)) fail_msg("\"%s\" instead of \"%s\"", err.message, cases[i].message);
    }
}

static void test_places(void **state)
{
    (void)state;
    hd_cluster c = parsed(CLUSTER(DEVICE, LEVEL("4") "," LEVEL("3") "," LEVEL("5"), ", \"node_level\": 1"));
    assert_int_equal(hd_cluster_devices(&c), 60);
    assert_int_equal(hd_cluster_nodes(&c), 5);
    assert_int_equal(hd_cluster_group(&c, 0), 4);
    assert_int_equal(hd_cluster_group(&c, 1), 12);
    assert_int_equal(hd_cluster_level(&c, 7, 7), -1);
    assert_int_equal(hd_cluster_level(&c, 0, 3), 0);
    assert_int_equal(hd_cluster_level(&c, 3, 4), 1);
    assert_int_equal(hd_cluster_level(&c, 11, 12), 2);
    hd_cluster_free(&c);
    c = parsed(CLUSTER(DEVICE, "", ""));
    assert_int_equal(hd_cluster_devices(&c), 1);
    assert_int_equal(hd_cluster_nodes(&c), 1);
    hd_cluster_free(&c);
}

/* ---- measured entries ---- */

static hd_type matrix(hd_dtype t, int64_t rows, int64_t columns)
{
    return hd_type_of(t, 2, (int64_t[]){rows, columns});
}

static double weighted_seconds(const hd_cluster *c, hd_dtype t, const hd_quant *blocks, int64_t m, int64_t n, int64_t k, int threads, int teams)
{
    hd_contract_attrs at = {.spec = "mk,nk->mn", .dtype = t};
    hd_type in[2] = {matrix(t, m, k), matrix(t, n, k)}, out = matrix(t, m, n);
    hd_sig s = {hd_op_find("contract"), in, &out, 2, 1, &at};
    hd_kernel_cost cost;
    in[1].blocks = blocks;
    hd_cost_kernel_packed(c, &s, blocks ? 2 : 0, threads, teams, &cost);
    assert_true(cost.kind == HD_COST_PRODUCT && cost.flops == 2.0 * (double)(m * n * k));
    return cost.seconds;
}

static double product_seconds(const hd_cluster *c, hd_dtype t, int64_t m, int64_t n, int64_t k, int threads, int teams)
{
    return weighted_seconds(c, t, NULL, m, n, k, threads, teams);
}

static void near(double value, double expected, double share)
{
    if (!(fabs(value - expected) <= share * expected)) fail_msg("%g instead of %g", value, expected);
}

/* A machine of four cores whose products reach half of the bounds on one thread and 0.8 of that on four. */
static void test_measured_products(void **state)
{
    (void)state;
    static hd_profile_entry entries[256];
    hd_cluster c = {.device = {.flops[HD_F32] = 4e11, .bandwidth = 4e10, .memory = 1 << 30, .cores = 4, .efficiency = {0.9, 1e6, 10, 0.8}}, .profile = entries};
    int64_t sizes[] = {16, 64, 256, 1024};
    for (int i = 0; i < 64; i++)
        for (int wide = 0; wide < 2; wide++) {
            double m = (double)sizes[i / 16], n = (double)sizes[i / 4 % 4], k = (double)sizes[i % 4];
            double bound = 2 * m * n * k / (wide ? 4e11 : 1e11) + 4 * (m * k + n * k + m * n) / (wide ? 4e10 : 1e10);
            entries[c.n_profile++] = (hd_profile_entry){"contract.nt", HD_F32, wide ? 4 : 1, 1, {m, n, k, 1}, bound / (wide ? 0.4 : 0.5)};
        }
    for (int64_t m = 20; m < 1000; m += 97) {
        double bytes = 4.0 * (double)(m * 300 + 500 * 300 + m * 500), flops = 2.0 * (double)m * 500 * 300;
        near(product_seconds(&c, HD_F32, m, 500, 300, 1, 1), (flops / 1e11 + bytes / 1e10) / 0.5, 1e-6);
        near(product_seconds(&c, HD_F32, m, 500, 300, 4, 1), (flops / 4e11 + bytes / 4e10) / 0.4, 1e-6);
        /* Not measured: four ranks at once, by the nearest team's factor; bf16 without units of its own, by f32's. */
        near(product_seconds(&c, HD_F32, m, 500, 300, 1, 4), (flops / 1e11 + bytes / 1e10) / 0.5, 1e-6);
        near(product_seconds(&c, HD_BF16, m, 500, 300, 1, 1), (flops / 1e11 + bytes / 2 / 1e10) / 0.5, 1e-6);
    }
    /* Far beyond what was measured: the nearest entries' share of the bounds. */
    near(product_seconds(&c, HD_F32, 65536, 8192, 8192, 1, 1), 2 * 65536.0 * 8192 * 8192 / 1e11 / 0.5, 0.05);
    c.n_profile = 0;
    assert_true(product_seconds(&c, HD_F32, 512, 512, 512, 1, 1) > 2 * 512.0 * 512 * 512 / 1e11);
}

/* Weights in blocks: of a type that was measured, by its entries and the bytes of its blocks; of another, as plain ones less the bytes that aren't there. */
static void test_products_in_blocks(void **state)
{
    (void)state;
    static hd_profile_entry entries[32];
    static const double sizes[] = {1, 64, 256, 1024};
    hd_cluster c = {.device = {.flops[HD_F32] = 1e11, .bandwidth = 1e10, .memory = 1 << 30, .cores = 1}, .profile = entries};
    for (int i = 0; i < 32; i++) {
        double m = sizes[i / 8], n = i & 2 ? 512 : 2048, k = i & 4 ? 512 : 2048, weight = i & 1 ? 4 : 34.0 / 32;
        double seconds = 2 * m * n * k / 1e11 + (4 * (m * k + m * n) + weight * n * k) / 1e10;
        entries[c.n_profile++] = (hd_profile_entry){"", HD_F32, 1, 1, {m, n, k, 1}, seconds / (i & 1 ? 0.5 : 0.8)};
        snprintf(entries[i].op, sizeof entries[i].op, "contract.%s", i & 1 ? "np" : "Q8_0");
    }
    for (int64_t m = 1; m < 800; m = m * 3 + 4) {
        double flops = 2.0 * (double)m * 1024 * 1536, activations = 4.0 * (double)(m * (1024 + 1536)), elements = 1024 * 1536;
        near(weighted_seconds(&c, HD_F32, hd_quant_by_name("Q8_0"), m, 1024, 1536, 1, 1), (flops / 1e11 + (activations + elements * 34 / 32) / 1e10) / 0.8, 1e-6);
        double plain = (flops / 1e11 + (activations + 4 * elements) / 1e10) / 0.5, saved = elements * (4 - 18.0 / 32) / 1e10;
        near(weighted_seconds(&c, HD_F32, hd_quant_by_name("Q4_0"), m, 1024, 1536, 1, 1), plain - saved, 1e-6);
    }
}

/* Attention over blocks: what a query reads of 2 key heads in f16, and its products of 8 heads, from entries at half of the bounds. */
static void test_measured_paged(void **state)
{
    (void)state;
    static hd_profile_entry entries[36];
    hd_cluster c = {.device = {.flops[HD_F32] = 1e11, .bandwidth = 1e10, .memory = 1 << 30, .cores = 1}, .profile = entries};
    for (int i = 0; i < 36; i++) {
        double queries = i % 3 ? (i % 3) * 128 : 1, flops = 1e4 * pow(16, i / 3 % 4), bytes = 1e4 * pow(32, i / 12);
        entries[c.n_profile++] = (hd_profile_entry){"paged_attention", HD_F32, 1, 1, {queries, flops, bytes, 1}, (queries * flops / 1e11 + bytes / 1e10) / 0.5};
    }
    for (int64_t queries = 1; queries < 300; queries = queries * 4 + 3)
        for (int64_t keys = 100; keys < 3000; keys *= 5) {
            hd_paged_attrs at = {.scale = 1, .block = 16, .mean_keys = keys, .dtype = HD_F32};
            hd_type in[8] = {hd_type_of(HD_F32, 3, (int64_t[]){queries, 8, 64}), hd_type_of(HD_F16, 3, (int64_t[]){4096, 2, 64}), hd_type_of(HD_F16, 3, (int64_t[]){4096, 2, 64}),
                             hd_type_of(HD_I32, 1, &queries), hd_type_of(HD_I32, 1, &queries), hd_type_of(HD_I32, 2, (int64_t[]){1, 256}), {.absent = true}, {.absent = true}};
            hd_type out = in[0];
            hd_sig s = {hd_op_find("paged_attention"), in, &out, 8, 1, &at};
            hd_kernel_cost cost;
            hd_cost_kernel(&c, &s, 1, 1, &cost);
            double flops = (double)(4 * queries * keys * 8 * 64), bytes = (double)(keys * 2 * 64 * 2 * 2 + queries * (8 * 64 * 2 * 4 + 8) + 4 * 256);
            assert_true(cost.flops == flops && cost.kind == HD_COST_PRODUCT);
            near(cost.seconds, (flops / 1e11 + bytes / 1e10) / 0.5, 1e-6);
        }
}

/* A factor that grows as a power of a feature is met between the measured sizes. */
static void test_measured_bytes(void **state)
{
    (void)state;
    hd_profile_entry entries[12];
    hd_cluster c = {.device = {.flops[HD_F32] = 1e11, .bandwidth = 1e10, .memory = 1 << 30, .cores = 1}, .profile = entries, .n_profile = 12};
    for (int i = 0; i < 12; i++) {
        double bytes = 1024 * pow(4, i);
        entries[i] = (hd_profile_entry){"(copy)", HD_U8, 1, 1, {bytes, 1.0 / 16, 1, 1}, 1e-10 * bytes * pow(bytes, 0.1)};
    }
    for (double bytes = 9e4; bytes < 1e8; bytes *= 1.7) near(hd_cost_copy(&c, (int64_t)(bytes / 2), 1, 1), 1e-10 * bytes * pow(bytes, 0.1), 0.02);
}

/* With memory half as fast, what streams takes longer by what it moves, products and small operands take the same. */
static void test_other_bandwidth(void **state)
{
    (void)state;
    hd_profile_entry entries[] = {
        {"add", HD_F32, 2, 1, {1e8, 0.1, 1, 1}, 0.012},          {"add", HD_F32, 1, 1, {1e8, 0.1, 1, 1}, 0.012},
        {"add", HD_F32, 2, 1, {1e6, 0.1, 1, 1}, 0.0001},         {"contract.nt", HD_F32, 2, 1, {1, 4096, 4096, 1}, 0.007},
        {"contract.nt", HD_F32, 2, 1, {64, 64, 64, 1}, 0.0001},  {"all_reduce", HD_F32, 2, 1, {1e6, 1, 1, 1}, 0.0002},
        {"all_reduce", HD_F32, 2, 1, {64, 1, 1, 1}, 0.000003},   {"add", HD_F32, 1, 2, {1e8, 0.1, 1, 1}, 0.021},
    };
    static const double expected[] = {0.022, 0.012, 0.0001, 0.007 + 4 * (4096.0 * 4096 + 8192) / 1e10, 0.0001, 0.0004, 0.000003, 0.041};
    hd_cluster c = {.device = {.flops[HD_F32] = 1e11, .bandwidth = 1e10, .memory = 1 << 30, .cores = 2}, .n_levels = 1, .profile = entries, .n_profile = 8};
    hd_cost_set_bandwidth(&c, 5e9);
    assert_true(c.device.bandwidth == 5e9);
    for (int i = 0; i < 8; i++) near(entries[i].seconds, expected[i], 1e-9);
}

/* Every case of calibration names an op, and none is there twice. */
static void test_cases(void **state)
{
    (void)state;
    int n;
    hd_case *list = hd_calibrate_cases(&n);
    assert_non_null(list);
    assert_true(n > 300);
    for (int i = 0; i < n; i++) {
        if (!hd_op_find(list[i].op)) fail_msg("there is no op %s", list[i].op);
        for (int k = 0; k < i; k++)
            if (list[i].op == list[k].op && list[i].attrs == list[k].attrs && list[i].operands == list[k].operands && list[i].dtype == list[k].dtype &&
                list[i].packed == list[k].packed && !memcmp(&list[i].size, &list[k].size, sizeof list[i].size))
                fail_msg("%s is there twice", list[i].op);
    }
    hd_free(list);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_both_ways),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_bad_files),
        cmocka_unit_test(test_places),
        cmocka_unit_test(test_measured_products),
        cmocka_unit_test(test_products_in_blocks), cmocka_unit_test(test_measured_paged), cmocka_unit_test(test_measured_bytes),
        cmocka_unit_test(test_other_bandwidth),
        cmocka_unit_test(test_cases),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
