/* The cost of transfers against values computed by hand, and the clusters that are known by name. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "cluster/cost.h"
#include "cluster/curve.h"

static void assert_close(double value, double expected)
{
    if (!(fabs(value - expected) <= 1e-9 * fabs(expected))) fail_msg("%.12g instead of %.12g", value, expected);
}

/* Nodes of 4 devices at 100 B/s, 1 s a message; between nodes `ports` ports of 10 B/s, 5 s; every second of the bandwidth is reached. */
static hd_cluster small(int nodes, int ports)
{
    hd_cluster c = {.n_levels = 2,
                    .level = {{.name = "inside", .fanout = 4, .latency = 1, .bandwidth = 200, .efficiency = 0.5, .ports = 1},
                              {.name = "between", .fanout = nodes, .latency = 5, .bandwidth = 20, .efficiency = 0.5, .ports = ports}}};
    return c;
}

static hd_move_cost cost(const hd_cluster *c, hd_move kind, int first, int step, int n, int world, int64_t bytes)
{
    int ranks[64];
    hd_move_cost m;
    for (int i = 0; i < n; i++) ranks[i] = first + i * step;
    hd_cost_move(c, kind, ranks, n, world, bytes, HD_F32, &m);
    return m;
}

static void test_inside(void **state)
{
    (void)state;
    hd_cluster c = small(2, 4);
    /* 4 ranks, a ring: 3 steps and 3/4 of 4000 bytes at 100 B/s. */
    hd_move_cost m = cost(&c, HD_MOVE_ALL_GATHER, 0, 1, 4, 8, 4000);
    assert_close(m.seconds, 3 + 30);
    assert_close(m.bytes[0], 3000);
    assert_close(m.bytes[1] + 1, 1);
    assert_close(cost(&c, HD_MOVE_REDUCE_SCATTER, 4, 1, 4, 8, 4000).seconds, 33);
    assert_close(cost(&c, HD_MOVE_ALL_REDUCE, 0, 1, 4, 8, 4000).seconds, 66);
    /* 4 bytes: a tree has 2 * 2 messages and 2 * 4 bytes, a ring 6 messages. */
    assert_close(cost(&c, HD_MOVE_ALL_REDUCE, 0, 1, 4, 8, 4).seconds, 4 + 0.08);
    assert_close(cost(&c, HD_MOVE_BROADCAST, 0, 1, 4, 8, 400).seconds, 2 + 4);
    assert_close(cost(&c, HD_MOVE_ALL_TO_ALL, 0, 1, 4, 8, 400).seconds, 3 + 3);
    assert_close(cost(&c, HD_MOVE_SEND, 0, 1, 2, 8, 400).seconds, 1 + 4);
    c.device.cores = 1; /* recursive halving: 2 messages instead of 3 */
    assert_close(cost(&c, HD_MOVE_ALL_GATHER, 0, 1, 4, 8, 4000).seconds, 2 + 30);
    assert_close(cost(&c, HD_MOVE_ALL_GATHER, 0, 1, 3, 8, 3000).seconds, 2 + 20); /* not with 3 */
    assert_close(cost(&c, HD_MOVE_ALL_GATHER, 0, 1, 1, 8, 3000).seconds + 1, 1);
}

static void test_between(void **state)
{
    (void)state;
    hd_cluster c = small(8, 4);
    /* One rank a node, each with a port of its own: 7 messages of 5 s, 7/8 of 800 bytes at 10 B/s. */
    hd_move_cost m = cost(&c, HD_MOVE_ALL_GATHER, 1, 4, 8, 32, 800);
    assert_close(m.seconds, 35 + 70);
    assert_close(m.bytes[1], 700);
    /* One port for the four groups that go from a node at once. */
    hd_cluster narrow = small(8, 1);
    assert_close(cost(&narrow, HD_MOVE_ALL_GATHER, 1, 4, 8, 32, 800).seconds, 35 + 280);
    /* A job of one rank in a node has it alone; of two, half of it. */
    assert_close(cost(&narrow, HD_MOVE_ALL_GATHER, 0, 4, 8, 1, 800).seconds, 35 + 70);
    assert_close(cost(&narrow, HD_MOVE_ALL_GATHER, 0, 4, 8, 2, 800).seconds, 35 + 140);
    assert_close(cost(&c, HD_MOVE_ALL_GATHER, 0, 4, 8, 1, 800).seconds, 35 + 70); /* no more than its own port */
    /* Twice as many ports as devices: two each. */
    hd_cluster wide = small(8, 8);
    assert_close(cost(&wide, HD_MOVE_ALL_GATHER, 1, 4, 8, 32, 800).seconds, 35 + 35);
}

/* 3 ranks in each of 2 nodes. Ring: its 6 edges take 4 * 1 + 2 * 5 s, of which a piece goes over 5; 6000 bytes over 3 ports of 10 B/s. By
 * level: 2 * 1 s and 2/3 of 6000 bytes at 100 B/s inside, 5 s and 1/2 of a rank's 2000 bytes at 10 B/s between. */
static void test_two_levels(void **state)
{
    (void)state;
    hd_cluster c = small(2, 4);
    static const int ranks[] = {0, 1, 2, 4, 5, 6};
    hd_move_cost m;
    hd_cost_move(&c, HD_MOVE_REDUCE_SCATTER, ranks, 6, 8, 6000, HD_F32, &m);
    assert_close(m.seconds, 5 / 6.0 * (14 + 200));
    assert_close(m.bytes[0], 5000 * 4 / 6.0);
    assert_close(m.bytes[1], 5000 * 2 / 6.0);
    c.device.cores = 1;
    hd_cost_move(&c, HD_MOVE_REDUCE_SCATTER, ranks, 6, 8, 6000, HD_F32, &m);
    assert_close(m.seconds, 2 + 40 + 5 + 100);
    assert_close(m.bytes[0], 4000);
    assert_close(m.bytes[1], 1000);
    hd_cost_move(&c, HD_MOVE_ALL_REDUCE, ranks, 6, 8, 6000, HD_F32, &m);
    assert_close(m.seconds, 2 * 147);
    /* The ring wins where the levels' times would add up: no latency, ports of 25 B/s. */
    c.level[0].latency = c.level[1].latency = 0;
    c.level[1].bandwidth = 50;
    hd_cost_move(&c, HD_MOVE_REDUCE_SCATTER, ranks, 6, 8, 6000, HD_F32, &m);
    assert_close(m.seconds, 5 / 6.0 * 6000 / 75);
}

static void test_all_to_all(void **state)
{
    (void)state;
    hd_cluster c = small(2, 4);
    /* 8 ranks, 800 bytes each: 300 inside at 100 B/s and 3 messages, 400 between at 10 B/s and 4 messages of 5 s. */
    hd_move_cost m = cost(&c, HD_MOVE_ALL_TO_ALL, 0, 1, 8, 8, 800);
    assert_close(m.bytes[0], 300);
    assert_close(m.bytes[1], 400);
    assert_close(m.seconds, 40 + 20);
}

/* Stages of 2 ranks: from 2 to 4 both ranks leave the node; from 0 to 2 none does. */
static void test_send(void **state)
{
    (void)state;
    hd_cluster narrow = small(2, 1), wide = small(2, 4);
    assert_close(cost(&narrow, HD_MOVE_SEND, 2, 2, 2, 8, 100).seconds, 5 + 20);
    assert_close(cost(&wide, HD_MOVE_SEND, 2, 2, 2, 8, 100).seconds, 5 + 10);
    assert_close(cost(&narrow, HD_MOVE_SEND, 0, 2, 2, 8, 100).seconds, 1 + 1);
    assert_close(cost(&narrow, HD_MOVE_SEND, 7, -6, 2, 8, 100).seconds, 5 + 20); /* from the last stage to the first */
    assert_close(cost(&narrow, HD_MOVE_SEND, 1, 4, 2, 8, 100).seconds, 5 + 40);  /* stages of 4: all four leave */
}

/* Racks: what leaves one shares the nodes' ports first. 2 racks of 2 nodes of 4; the racks' ports could do 1000 B/s. */
static void test_racks(void **state)
{
    (void)state;
    hd_cluster c = small(2, 4);
    c.level[2] = (hd_level){.name = "spine", .fanout = 2, .latency = 7, .bandwidth = 2000, .efficiency = 0.5, .ports = 8};
    c.n_levels = 3;
    assert_close(cost(&c, HD_MOVE_SEND, 0, 8, 2, 16, 100).seconds, 7 + 10);
    c.level[2].bandwidth = 4; /* 2 B/s each of 8 ports for 8 devices: now that bounds */
    assert_close(cost(&c, HD_MOVE_SEND, 0, 8, 2, 16, 100).seconds, 7 + 50);
    c.node_level = 1; /* links inside a node: not on top of each other */
    c.level[2].bandwidth = 2000;
    assert_close(cost(&c, HD_MOVE_SEND, 0, 8, 2, 16, 100).seconds, 7.1);
}

/* The bytes of all levels together are what hd_program_count says. */
static void test_bytes_add_up(void **state)
{
    (void)state;
    static const struct { hd_move kind; double factor; } kinds[] = {{HD_MOVE_ALL_REDUCE, 2}, {HD_MOVE_ALL_GATHER, 1}, {HD_MOVE_ALL_TO_ALL,
                                                                                                                       1}};
    hd_cluster c = small(8, 4);
    for (int k = 0; k < 3; k++)
        for (int n = 2; n <= 16; n *= 2) {
            hd_move_cost m = cost(&c, kinds[k].kind, 0, 2, n, 32, 960000);
            assert_close(m.bytes[0] + m.bytes[1], kinds[k].factor * 960000 * (n - 1) / n);
        }
}

static void test_measured(void **state)
{
    (void)state;
    hd_profile_entry entries[] = {
        {.op = "all_reduce", .dtype = HD_F32, .threads = 4, .x = {100}, .seconds = 2},
        {.op = "all_reduce", .dtype = HD_F32, .threads = 4, .x = {10000}, .seconds = 8},
        {.op = "all_reduce", .dtype = HD_F32, .threads = 2, .x = {100}, .seconds = 77},
    };
    hd_cluster c = small(2, 4);
    c.profile = entries, c.n_profile = 3;
    assert_close(cost(&c, HD_MOVE_ALL_REDUCE, 0, 1, 4, 8, 100).seconds, 2);
    assert_close(cost(&c, HD_MOVE_ALL_REDUCE, 0, 1, 4, 8, 1000).seconds, 4); /* halfway in log-log */
    assert_close(cost(&c, HD_MOVE_ALL_REDUCE, 0, 1, 4, 8, 4).seconds, 2);
    assert_close(cost(&c, HD_MOVE_ALL_REDUCE, 0, 1, 4, 8, 20000).seconds, 16);
    assert_close(cost(&c, HD_MOVE_ALL_GATHER, 0, 1, 4, 8, 4000).seconds, 33);
}

/* ---- shipped clusters ---- */

static void test_shipped(void **state)
{
    (void)state;
    hd_error err = {0};
    hd_cluster c;
    int n = 0;
    for (const char *name; (name = hd_cluster_shipped_name(n)); n++) {
        assert_int_equal(hd_cluster_find(name, &c, &err), 0);
        assert_string_equal(c.name, name);
        hd_str text, again;
        hd_str_init(&text);
        hd_str_init(&again);
        assert_int_equal(hd_cluster_print(&c, &text), 0); /* a file of it is read back the same: no field is missing or negative */
        hd_cluster d;
        if (hd_cluster_parse(text.data, text.len, name, &d, &err)) fail_msg("%s", err.message);
        assert_int_equal(hd_cluster_print(&d, &again), 0);
        assert_string_equal(text.data, again.data);
        hd_str_free(&text);
        hd_str_free(&again);
        hd_cluster_free(&c);
        hd_cluster_free(&d);
    }
    assert_true(n >= 8);
    assert_int_equal(hd_cluster_find("dgx-a100-80:3072", &c, &err), 0);
    assert_int_equal(hd_cluster_devices(&c), 3072);
    assert_int_equal(hd_cluster_nodes(&c), 384);
    assert_int_equal(hd_cluster_find("dgx-a100-80:4", &c, &err), 0);
    assert_int_equal(hd_cluster_devices(&c), 4);
    assert_int_equal(hd_cluster_nodes(&c), 1);
    assert_int_equal(hd_cluster_find("cpu:2", &c, &err), 0);
    assert_int_equal(hd_cluster_devices(&c), 2);
}

static void test_bad_names(void **state)
{
    (void)state;
    static const struct { const char *name, *message; } cases[] = {
        {"dgx-a100-80:12", "--cluster dgx-a100-80:12: a node has 8 devices, so 8 or 16 would do"},
        {"dgx-a100-80:0", "the number of devices must be 1 to"},
        {"dgx-a100-80:-8", "the number of devices must be 1 to"},
        {"dgx-a100-80:", "the number of devices must be 1 to"},
        {"dgx-a100-80:8x", "the number of devices must be 1 to"},
        {"dgx-a100-80:99999999999999999999", "the number of devices must be 1 to"},
        {"dgx-z100", "neither a file nor the name of a known cluster (p3.16xlarge, dgx-a100-40,"},
        {"no/such.json", "no/such.json"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hd_error err = {0};
        hd_cluster c;
        assert_true(hd_cluster_find(cases[i].name, &c, &err) < 0);
        if (!strstr(err.message, cases[i].message)) fail_msg("%s: %s", cases[i].name, err.message);
    }
}

/* ---- the curve ---- */

static void test_curve(void **state)
{
    (void)state;
    hd_efficiency e = {.product = 0.8, .product_half = 2e9, .depth_half = 64, .memory = 0.9};
    assert_close(hd_curve_product(&e, &(hd_product_shape){1, 1e15, 1e15, 1e15}), 0.8);
    assert_close(hd_curve_product(&e, &(hd_product_shape){1e6, 64, 1e15, 1e15}), 0.4);                    /* a short side */
    assert_close(hd_curve_product(&e, &(hd_product_shape){1e6, 1e15, 1e15, 64}), 0.4);                    /* a short sum */
    e.depth_half = 0;
    assert_close(hd_curve_product(&e, &(hd_product_shape){1, 1000, 1000, 1000}), 0.4);                   /* 2e9 FLOPs */
    assert_close(hd_curve_product(&e, &(hd_product_shape){4, 1000, 1000, 250}), 0.4);                    /* four together */
    assert_close(hd_curve_product(&e, &(hd_product_shape){1, 0, 1000, 1000}) + 1, 1);
}

static void test_curve_shapes(void **state)
{
    (void)state;
    hd_type in[2] = {hd_type_of(HD_BF16, 4, (int64_t[]){2, 5, 3, 7}), hd_type_of(HD_BF16, 4, (int64_t[]){2, 11, 3, 7})};
    hd_type out = hd_type_of(HD_BF16, 4, (int64_t[]){2, 3, 5, 11});
    hd_contract_attrs at = {.spec = "bqhe,bkhe->bhqk", .dtype = HD_BF16};
    hd_sig s = {.op = hd_op_find("contract"), .in = in, .out = &out, .n_in = 2, .n_out = 1, .attrs = &at};
    hd_product_shape p;
    assert_true(hd_curve_shape(&s, &p));
    assert_close(p.batch, 6), assert_close(p.m, 5), assert_close(p.n, 11), assert_close(p.k, 7);
    s.op = hd_op_find("softmax");
    assert_false(hd_curve_shape(&s, &p));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_inside), cmocka_unit_test(test_between), cmocka_unit_test(test_two_levels), cmocka_unit_test(test_all_to_all),
        cmocka_unit_test(test_send), cmocka_unit_test(test_racks), cmocka_unit_test(test_bytes_add_up), cmocka_unit_test(test_measured),
        cmocka_unit_test(test_shipped), cmocka_unit_test(test_bad_names), cmocka_unit_test(test_curve), cmocka_unit_test(test_curve_shapes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
