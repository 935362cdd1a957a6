/* Meshes and layouts: pieces against their definition, text there and back, data out of and into a whole. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <string.h>

#include "base/rng.h"
#include "graph/layout.h"

static const hd_mesh mesh = {3, {{"pp", 2, HD_AXIS_PIPELINE}, {"dp", 3, HD_AXIS_DATA}, {"tp", 2, HD_AXIS_MODEL}}};

static void test_mesh(void **state)
{
    (void)state;
    int8_t axes[4], back[2] = {2, 1};
    int ranks[12], count;
    char text[32];
    assert_int_equal(hd_mesh_size(&mesh), 12);
    assert_int_equal(hd_mesh_coordinate(&mesh, 9, 0), 1); /* 9 = (1, 1, 1) */
    assert_int_equal(hd_mesh_coordinate(&mesh, 9, 1), 1);
    assert_int_equal(hd_mesh_coordinate(&mesh, 9, 2), 1);
    assert_int_equal(hd_mesh_parse_axes(&mesh, "tp.dp", axes), 2);
    assert_memory_equal(axes, back, 2);
    assert_int_equal(hd_mesh_parse_axes(&mesh, "cp", axes), -1);
    hd_mesh_print_axes(&mesh, back, 2, text, sizeof text);
    assert_string_equal(text, "tp.dp");
    for (int r = 0; r < 12; r++) {
        int n = hd_mesh_group(&mesh, r, back, 2, ranks), index = hd_mesh_index(&mesh, r, back, 2, &count);
        assert_int_equal(n, 6);
        assert_int_equal(count, 6);
        assert_int_equal(ranks[index], r);
        for (int i = 0; i < n; i++) assert_int_equal(hd_mesh_coordinate(&mesh, ranks[i], 0), hd_mesh_coordinate(&mesh, r, 0));
    }
}

/* Pieces are in order, leave nothing out, and the first is the largest. */
static void test_pieces(void **state)
{
    (void)state;
    hd_rng r = hd_rng_new(1);
    for (int round = 0; round < 2000; round++) {
        hd_dim_layout d = {.n = 2, .axis = {1, 2}, .unit = {1 + (int64_t)hd_rng_below(&r, 4), 1 + (int64_t)hd_rng_below(&r, 3)}};
        int64_t extent = (int64_t)hd_rng_below(&r, 30), at = 0, begin, end, first = 0;
        for (int rank = 0; rank < 6; rank++) {
            hd_dim_piece(&mesh, &d, extent, rank, &begin, &end);
            assert_int_equal(begin, at);
            assert_true(end >= begin && end <= extent);
            if (rank == 0) first = end - begin;
            assert_true(end - begin <= first);
            at = end;
        }
        assert_int_equal(at, extent);
    }
}

static void test_text(void **state)
{
    (void)state;
    const char *good[] = {"-,-", "dp*64.tp,-", "-,tp +dp", "tp,dp*2", "-,- +dp +tp max", "dp*2>2,tp>1", "tp.dp>1,-"};
    const char *bad[] = {"-", "-,-,-", "xx,-", "dp,dp", "dp*0,-", "dp*,-", "-,- dp", "", "dp,- +dp", "-,-+", "-,tp.", "dp>3,-", "dp>0,-", "dp>,-", "tp>-1,-"};
    hd_layout l;
    hd_str s;
    hd_str_init(&s);
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        hd_error err = {0};
        assert_int_equal(hd_layout_parse(&mesh, good[i], 2, &l, &err), 0);
        hd_str_clear(&s);
        hd_layout_print(&mesh, &l, 2, &s);
        assert_string_equal(s.data, good[i]);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        hd_error err = {0};
        assert_int_equal(hd_layout_parse(&mesh, bad[i], 2, &l, &err), HD_EFORMAT);
        assert_true(err.message[0]);
    }
    hd_str_free(&s);
}

/* What goes round: each coordinate has the piece of a later one, and memory is for the largest of all. */
static void test_shift(void **state)
{
    (void)state;
    hd_layout home, round;
    hd_shape whole = {.rank = 1, .dim = {8}};
    hd_error err = {0};
    assert_int_equal(hd_layout_parse(&mesh, "dp", 1, &home, &err), 0);
    for (int shift = 1; shift < 3; shift++) {
        round = home;
        round.dim[0].shift[0] = (int16_t)shift;
        assert_false(hd_layout_equal(&mesh, &home, &round, &whole));
        assert_int_equal(hd_layout_largest(&mesh, &round, &whole).dim[0], 3);
        for (int rank = 0; rank < 12; rank++) {
            int64_t begin, end, b, e;
            int from = rank / 6 * 6 + (rank % 6 / 2 + shift) % 3 * 2 + rank % 2; /* pp 2 x dp 3 x tp 2 */
            hd_dim_piece(&mesh, &round.dim[0], 8, rank, &begin, &end);
            hd_dim_piece(&mesh, &home.dim[0], 8, from, &b, &e);
            assert_true(begin == b && end == e);
        }
    }
}

static void test_equal(void **state)
{
    (void)state;
    hd_error err = {0};
    hd_layout a, b;
    hd_shape even = {.rank = 1, .dim = {24}}, uneven = {.rank = 1, .dim = {21}};
    assert_int_equal(hd_layout_parse(&mesh, "dp*4", 1, &a, &err), 0);
    assert_int_equal(hd_layout_parse(&mesh, "dp", 1, &b, &err), 0);
    assert_true(hd_layout_equal(&mesh, &a, &b, &even));
    assert_false(hd_layout_equal(&mesh, &a, &b, &uneven));
    assert_false(hd_layout_equal(&mesh, &a, NULL, &even));
    assert_true(hd_layout_equal(&mesh, NULL, NULL, &even));
}

static void test_data(void **state)
{
    (void)state;
    const char *texts[] = {"-,-,-", "dp,-,-", "-,dp.tp,-", "tp,-,dp", "dp,tp,-", "-,-,tp*2"};
    hd_shape whole = {.rank = 3, .dim = {5, 7, 3}};
    int32_t all[105], back[105], piece[105];
    for (int i = 0; i < 105; i++) all[i] = i;
    for (size_t t = 0; t < sizeof texts / sizeof *texts; t++) {
        hd_error err = {0};
        hd_layout l;
        assert_int_equal(hd_layout_parse(&mesh, texts[t], 3, &l, &err), 0);
        memset(back, -1, sizeof back);
        for (int rank = 0; rank < 6; rank++) {
            hd_shape s = hd_layout_shape(&mesh, &l, &whole, rank);
            hd_layout_take(&mesh, &l, &whole, rank, 4, all, piece);
            int64_t at = 0, b[3], e[3];
            for (int i = 0; i < 3; i++) hd_dim_piece(&mesh, &l.dim[i], whole.dim[i], rank, &b[i], &e[i]);
            for (int64_t i = b[0]; i < e[0]; i++)
                for (int64_t j = b[1]; j < e[1]; j++)
                    for (int64_t k = b[2]; k < e[2]; k++) assert_int_equal(piece[at++], (i * 7 + j) * 3 + k);
            assert_int_equal(at, s.dim[0] * s.dim[1] * s.dim[2]);
            hd_layout_put(&mesh, &l, &whole, rank, 4, piece, back);
        }
        assert_memory_equal(all, back, sizeof all);
    }
    int32_t one = 7, copy = 0;
    hd_layout_take(&mesh, NULL, &(hd_shape){.rank = 0}, 0, 4, &one, &copy);
    assert_int_equal(copy, 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mesh), cmocka_unit_test(test_pieces), cmocka_unit_test(test_text), cmocka_unit_test(test_shift), cmocka_unit_test(test_equal), cmocka_unit_test(test_data),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
