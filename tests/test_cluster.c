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

#include "cluster/cluster.h"

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
    hd_cluster c = parsed(CLUSTER(DEVICE, LEVEL("4") "," LEVEL("3"), ", \"note\": \"a \\\"test\\\"\", \"price\": 12.3, \"profile\": [" ENTRY("8, 0.1, 7") "]"));
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_both_ways),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_bad_files),
        cmocka_unit_test(test_places),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
