/* The ground: memory, strings, files, JSON, random numbers, threads, element types. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/term.h"
#include "base/thread.h"
#include "tensor/dtype.h"

/* A directory of its own for each test, removed at its end. */
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

/* ---- errors ---- */

static void test_errors(void **state)
{
    (void)state;
    hd_error e = {0};
    assert_int_equal(hd_error_context(&e, "nothing yet"), 0);
    assert_int_equal(hd_fail(&e, HD_EFORMAT, "value %d\nis odd", 3), HD_EFORMAT);
    assert_int_equal(hd_fail(&e, HD_EIO, "later"), HD_EIO);
    assert_string_equal(e.message, "value 3?is odd");
    assert_int_equal(hd_error_context(&e, "file %s", "a"), HD_EFORMAT);
    assert_string_equal(e.message, "file a: value 3?is odd");
    for (int i = 0; i < 100; i++) hd_error_context(&e, "a long way from here");
    assert_int_equal(strlen(e.message), sizeof e.message - 1);
    assert_int_equal(hd_fail(NULL, HD_EINVAL, "nobody listens"), HD_EINVAL);
    for (int code = -20; code <= 5; code++) assert_non_null(hd_error_name(code));
}

/* ---- memory ---- */

static void test_memory(void **state)
{
    (void)state;
    uint64_t count = hd_mem_count(), failed = hd_mem_failed();
    hd_mem_fail_at(2);
    void *a = hd_malloc(10), *b = hd_malloc(10), *c = hd_malloc(10);
    assert_non_null(a);
    assert_null(b);
    assert_non_null(c);
    assert_int_equal(hd_mem_failed() - failed, 1);
    assert_int_equal(hd_mem_count() - count, 3);
    assert_null(hd_calloc(SIZE_MAX / 2, 4));
    assert_null(hd_realloc_array(NULL, SIZE_MAX / 2, 4));
    hd_free(a);
    hd_free(c);

    unsigned char *m = hd_map_memory(3 << 20);
    assert_non_null(m);
    assert_int_equal((uintptr_t)m % (2 << 20), 0);
    for (size_t i = 0; i < 3 << 20; i += 4096) assert_int_equal(m[i]++, 0);
    hd_unmap_memory(m, 3 << 20);
    assert_null(hd_map_memory(SIZE_MAX));
}

static void test_grow_and_arena(void **state)
{
    (void)state;
    int *array = NULL;
    size_t capacity = 0;
    for (int i = 0; i < 1000; i++) {
        assert_int_equal(hd_grow(&array, &capacity, (size_t)i + 1, sizeof *array), 0);
        array[i] = i;
    }
    for (int i = 0; i < 1000; i++) assert_int_equal(array[i], i);
    hd_mem_fail_at(1);
    assert_int_equal(hd_grow(&array, &capacity, capacity + 1, sizeof *array), HD_ENOMEM);
    assert_int_equal(array[999], 999);
    hd_free(array);

    hd_arena arena = {0};
    unsigned char *pieces[500];
    for (int i = 0; i < 500; i++) {
        size_t n = (size_t)(i * 7919 % 3000);
        pieces[i] = hd_arena_alloc(&arena, n);
        assert_int_equal((uintptr_t)pieces[i] % 16, 0);
        for (size_t k = 0; k < n; k++) assert_int_equal(pieces[i][k], 0);
        memset(pieces[i], i & 255, n);
    }
    for (int i = 0; i < 500; i++)
        for (int k = 0; k < i * 7919 % 3000; k++) assert_int_equal(pieces[i][k], i & 255);
    assert_string_equal(hd_arena_printf(&arena, "%s-%d", "layer", 12), "layer-12");
    assert_string_equal(hd_arena_strdup(&arena, "q"), "q");
    assert_null(hd_arena_alloc(&arena, SIZE_MAX - 3));
    hd_arena_free(&arena);
    assert_null(arena.head);
}

/* ---- strings ---- */

static void test_strings(void **state)
{
    (void)state;
    hd_str s = HD_STR_INIT;
    assert_string_equal(s.data, "");
    for (int i = 0; i < 300; i++) hd_str_printf(&s, "%d,", i);
    hd_str_add(&s, "\0x", 2);
    hd_str_putc(&s, '!');
    assert_false(s.failed);
    assert_memory_equal(s.data + s.len - 7, "299,\0x!", 8);
    hd_str_clear(&s);
    assert_string_equal(s.data, "");
    hd_str_free(&s);
    hd_mem_fail_at(1);
    hd_str_puts(&s, "lost");
    hd_str_puts(&s, "too late");
    assert_true(s.failed);
    assert_int_equal(s.len, 0);
    hd_str_free(&s);

    char out[24];
    assert_string_equal(hd_format_bytes(out, 1000), "1000 B");
    assert_string_equal(hd_format_bytes(out, 1.2 * 1048576), "1.2 MiB");
    assert_string_equal(hd_format_bytes(out, 1048575), "1.0 MiB");
    assert_string_equal(hd_format_seconds(out, 45), "45 s");
    assert_string_equal(hd_format_seconds(out, 200), "3 m 20 s");
    assert_string_equal(hd_format_seconds(out, 7500), "2 h 05 m");
    assert_string_equal(hd_format_seconds(out, NAN), "?");
}

static void test_glob(void **state)
{
    (void)state;
    static const struct { const char *pattern, *text; bool match; } cases[] = {
        { "", "", true }, { "", "a", false }, { "*", "", true }, { "*", "a/b.c", true }, { "a", "a", true }, { "a", "ab", false },
        { "layers.*.attn.q", "layers.11.attn.q", true }, { "layers.*.attn.q", "layers.11.attn.qk", false },
        { "*.weight", "a.weight.weight", true }, { "a*b*c", "aXbYbZc", true }, { "a*b*c", "aXbYbZ", false }, { "**", "x", true },
        { "l.<3-5>.q", "l.3.q", true }, { "l.<3-5>.q", "l.5.q", true },
        { "l.<3-5>.q", "l.2.q", false }, { "l.<3-5>.q", "l.6.q", false }, { "l.<3-5>.q", "l.35.q", false }, { "l.<3-5>.q", "l.4", false }, { "<9-11>", "10", true }, { "<9-11>", "1", false },
        { "<9-11>", "110", false }, { "*.<0-2>.*.w", "a.7.b.1.c.w", true }, { "*.<0-2>.*.w", "a.7.b.3.c.w", false }, { "<3-5", "<3-5", true }, { "<3-5", "4", false },
        { "<3-5>", "", false }, { "<3-5>", "x", false }, { "<5-3>", "4", false }, { "*a", "aaaaab", false }, { "a*", "a", true }, { "?", "x", false }, { "*ab", "aab", true },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) assert_int_equal(hd_glob_match(cases[i].pattern, cases[i].text), cases[i].match);
    /* The shape on which a recursive matcher takes exponential time. */
    char text[2001];
    memset(text, 'a', 2000);
    text[2000] = 0;
    assert_false(hd_glob_match("*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*b", text));
}

/* ---- files ---- */

static void test_atomic_write(void **state)
{
    char path[256], temporary[256];
    hd_error e = {0};
    hd_str s = HD_STR_INIT;
    in_dir(path, state, "file");
    in_dir(temporary, state, "file.tmp");
    assert_int_equal(hd_file_write_atomic(path, "first", 5, &e), 0);
    assert_int_equal(hd_file_write_atomic(path, "second", 6, &e), 0);
    assert_false(hd_file_exists(temporary));

    /* A full disk: the temporary file is the device that always is. */
    assert_int_equal(symlink("/dev/full", temporary), 0);
    assert_int_equal(hd_file_write_atomic(path, "third", 5, &e), HD_EIO);
    assert_non_null(strstr(e.message, path));
    assert_non_null(strstr(e.message, "No space left"));
    assert_false(hd_file_exists(temporary));
    assert_int_equal(hd_file_read(&s, path, 0, NULL), 0);
    assert_string_equal(s.data, "second");

    e = (hd_error){0};
    assert_int_equal(hd_file_read(&s, path, 5, &e), HD_EFORMAT);
    assert_int_equal(hd_file_read(&s, *state, 0, NULL), HD_EIO);
    e = (hd_error){0};
    assert_int_equal(hd_file_write_atomic("/nowhere/at/all", "x", 1, &e), HD_EIO);
    assert_non_null(strstr(e.message, "/nowhere/at/all"));
    hd_str_free(&s);
}

static void test_files(void **state)
{
    char path[256], inner[256];
    hd_map m;
    hd_error e = {0};
    assert_int_equal(hd_make_dirs(in_dir(path, state, "a/b//c/"), NULL), 0);
    assert_true(hd_is_dir(path));
    assert_int_equal(hd_file_write_atomic(in_dir(inner, state, "a/b/c/empty"), NULL, 0, NULL), 0);
    assert_int_equal(hd_map_open(&m, inner, NULL), 0);
    assert_int_equal(m.size, 0);
    hd_map_close(&m);
    assert_int_equal(hd_file_size(inner), 0);
    assert_int_equal(hd_make_dirs(inner, &e), HD_EIO);
    /* A link is removed, what it points at is not. */
    assert_int_equal(hd_make_dirs(in_dir(path, state, "kept"), NULL), 0);
    assert_int_equal(hd_file_write_atomic(in_dir(inner, state, "kept/file"), "x", 1, NULL), 0);
    assert_int_equal(symlink(path, in_dir(inner, state, "a/link")), 0);
    assert_int_equal(hd_remove_tree(in_dir(path, state, "a"), NULL), 0);
    assert_false(hd_file_exists(path));
    assert_int_equal(hd_file_size(in_dir(inner, state, "kept/file")), 1);
    assert_int_equal(hd_remove_tree(path, NULL), 0);
    assert_int_equal(hd_file_size(path), -1);
    e = (hd_error){0};
    assert_int_equal(hd_map_open(&m, path, &e), HD_EIO);
    assert_non_null(strstr(e.message, "No such file"));
}

static void test_paths(void **state)
{
    (void)state;
    char out[8];
    assert_int_equal(hd_path_join(out, sizeof out, "ab", "cd", NULL), 0);
    assert_string_equal(out, "ab/cd");
    assert_int_equal(hd_path_join(out, sizeof out, "ab/", "cd", NULL), 0);
    assert_string_equal(out, "ab/cd");
    assert_int_equal(hd_path_join(out, sizeof out, "abcd", "efg", NULL), HD_EINVAL);
    static const char *const inside[] = { "a", "a/b", ".a", "..a", "a..", "a/...", "a//b" };
    static const char *const outside[] = { "", "/", "/a", "..", "../a", "a/..", "a/../b", "a/b/.." };
    for (size_t i = 0; i < sizeof inside / sizeof *inside; i++) assert_true(hd_path_is_inside(inside[i]));
    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++) assert_false(hd_path_is_inside(outside[i]));
}

static void test_checksum(void **state)
{
    (void)state;
    unsigned char bytes[67];
    for (int i = 0; i < 67; i++) bytes[i] = (unsigned char)(i * 37);
    uint64_t whole = hd_checksum(HD_CHECKSUM_INIT, bytes, 67);
    assert_true(hd_checksum(hd_checksum(HD_CHECKSUM_INIT, bytes, 24), bytes + 24, 43) == whole);
    for (int bit = 0; bit < 67 * 8; bit++) {
        bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
        assert_true(hd_checksum(HD_CHECKSUM_INIT, bytes, 67) != whole);
        bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
    }
    bytes[7] ^= 0x80;
    bytes[15] ^= 0x80; /* the pair of flips that plain FNV over words cannot see */
    assert_true(hd_checksum(HD_CHECKSUM_INIT, bytes, 67) != whole);
}

/* ---- JSON ---- */

static json_t *parse(const char *text, hd_error *e) { return hd_json_parse(text, strlen(text), "conf", e); }

static void test_json_parse_errors(void **state)
{
    (void)state;
    static const struct { const char *text, *message; } cases[] = {
        { "{\n  \"a\": }", "conf: line 2, column" }, { "", "conf: line 1" }, { "{\"a\":1", "conf: line 1" }, { "[1] x", "conf: line 1" },
        { "{\"a\": \"\xff\"}", "conf: line 1" }, { "{\"a\": NaN}", "conf: line 1" }, { "{\"a\": 1e999}", "conf: line 1" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hd_error e = {0};
        assert_null(parse(cases[i].text, &e));
        assert_int_equal(e.code, HD_EFORMAT);
        assert_ptr_equal(strstr(e.message, cases[i].message), e.message);
    }
    hd_error e = {0};
    assert_null(hd_json_load("/nowhere.json", &e));
    assert_int_equal(e.code, HD_EIO);
    char deep[20001];
    memset(deep, '[', 20000);
    deep[20000] = 0;
    assert_null(parse(deep, NULL));
}

static void test_json_members(void **state)
{
    (void)state;
    hd_error e = {0};
    json_t *j = parse("{\"i\": 5, \"r\": 12.0, \"h\": 0.5, \"b\": true, \"s\": \"x\", \"n\": null, \"z\": \"a\\u0000b\"}", &e);
    assert_non_null(j);
    int64_t i = 7;
    double d = 7;
    bool b = false;
    const char *s = "kept";
    assert_int_equal(hd_json_int(j, "absent", 0, 9, &i, "conf", &e), 0);
    assert_int_equal(hd_json_int(j, "n", 0, 9, &i, "conf", &e), 0);
    assert_int_equal(i, 7);
    assert_int_equal(hd_json_int(j, "i", 0, 9, &i, "conf", &e), 0);
    assert_int_equal(i, 5);
    assert_int_equal(hd_json_int(j, "r", INT64_MIN, INT64_MAX, &i, "conf", &e), 0);
    assert_int_equal(i, 12);
    assert_int_equal(hd_json_number(j, "i", 0, 9, &d, "conf", &e), 0);
    assert_true(d == 5);
    assert_int_equal(hd_json_bool(j, "b", &b, "conf", &e), 0);
    assert_true(b);
    assert_int_equal(hd_json_string(j, "s", &s, "conf", &e), 0);
    assert_string_equal(s, "x");
    assert_int_equal(hd_json_need(j, "i", "conf", &e), 0);
    assert_int_equal(e.code, 0);

    assert_int_equal(hd_json_int(j, "i", 6, 9, &i, "conf", &e), HD_EFORMAT);
    assert_string_equal(e.message, "conf: \"i\" must be an integer from 6 to 9");
    e.code = 0;
    assert_int_equal(hd_json_int(j, "h", 0, INT64_MAX, &i, "conf", &e), HD_EFORMAT);
    assert_string_equal(e.message, "conf: \"h\" must be an integer of at least 0");
    e.code = 0;
    assert_int_equal(hd_json_number(j, "h", 1, 2, &d, "conf", &e), HD_EFORMAT);
    assert_string_equal(e.message, "conf: \"h\" must be a number from 1 to 2");
    assert_int_equal(hd_json_number(j, "s", 1, 2, &d, "conf", NULL), HD_EFORMAT);
    assert_int_equal(hd_json_bool(j, "i", &b, "conf", NULL), HD_EFORMAT);
    assert_int_equal(hd_json_string(j, "i", &s, "conf", NULL), HD_EFORMAT);
    assert_int_equal(hd_json_string(j, "z", &s, "conf", NULL), HD_EFORMAT);
    e.code = 0;
    assert_int_equal(hd_json_need(j, "n", "conf", &e), HD_EFORMAT);
    assert_string_equal(e.message, "conf: \"n\" is missing");
    json_decref(j);
}

static void test_json_files(void **state)
{
    char path[256];
    hd_error e = {0};
    /* As tokenizer_config.json writes "no limit". */
    json_t *j = parse("{\"model_max_length\": 1000000000000000019884624838656, \"vocab\": 32000}", &e);
    assert_non_null(j);
    int64_t vocab = 0;
    assert_int_equal(hd_json_int(j, "vocab", 1, INT64_MAX, &vocab, "conf", &e), 0);
    assert_int_equal(vocab, 32000);
    json_decref(j);

    j = json_pack("{s:s, s:[i,f], s:s}", "z", "é\n", "list", 1, 0.1, "a", "");
    assert_int_equal(hd_json_save(j, in_dir(path, state, "x.json"), &e), 0);
    json_t *back = hd_json_load(path, &e);
    assert_true(json_equal(j, back));
    json_decref(back);
    hd_mem_fail_at(1);
    assert_int_equal(hd_json_save(j, path, &e), HD_ENOMEM);
    json_decref(j);
}

/* ---- random numbers ---- */

/* Known answers of Random123 (kat_vectors, philox4x32 10). */
static void test_philox(void **state)
{
    (void)state;
    static const struct { uint64_t key, low, high; uint32_t word[4]; } kat[] = {
        { 0, 0, 0, { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 } },
        { ~0ull, ~0ull, ~0ull, { 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd } },
        { 0x299f31d0a4093822ull, 0x85a308d3243f6a88ull, 0x0370734413198a2eull, { 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 } },
    };
    for (size_t i = 0; i < 3; i++) {
        hd_philox p = hd_philox_block(kat[i].key, kat[i].low, kat[i].high);
        assert_memory_equal(p.word, kat[i].word, sizeof p.word);
    }
    hd_rng r = hd_rng_new(0);
    assert_int_equal(hd_rng_u32(&r), 0x6627e8d5);
    assert_int_equal(hd_rng_u32(&r), 0xe169c58d);
}

static void test_rng_draws(void **state)
{
    (void)state;
    hd_rng r = hd_rng_new(42);
    double sum = 0, squares = 0, least = 1, most = 0;
    int count[7] = {0}, n = 70000;
    for (int i = 0; i < n; i++) {
        double z = hd_rng_normal(&r), u = hd_rng_uniform(&r);
        sum += z;
        squares += z * z;
        least = fmin(least, u);
        most = fmax(most, u);
        count[hd_rng_below(&r, 7)]++;
    }
    /* Five standard errors each. */
    assert_true(fabs(sum / n) < 5 / sqrt(n));
    assert_true(fabs(squares / n - 1) < 5 * sqrt(2.0 / n));
    assert_true(least >= 0 && least < 1e-3 && most < 1 && most > 1 - 1e-3);
    for (int i = 0; i < 7; i++) assert_true(abs(count[i] - n / 7) < 5 * sqrt(n / 7.0));
    assert_int_equal(hd_rng_below(&r, 1), 0);
    assert_true(hd_uniform24(0xffffffffu) < 1 && hd_uniform_open(0) > 0 && hd_uniform_open(0xffffffffu) == 1);
    assert_true(hd_hash_string("") == 0xcbf29ce484222325ull && hd_hash_string("a") == 0xaf63dc4c8601ec8cull);
    assert_true(hd_hash_mix(1, 2) != hd_hash_mix(2, 1));
}

/* ---- threads ---- */

static void test_split(void **state)
{
    (void)state;
    for (int64_t n = 0; n < 70; n++)
        for (int64_t unit = 1; unit < 20; unit += 3)
            for (int count = 1; count < 9; count++) {
                int64_t at = 0, least = INT64_MAX, most = 0;
                for (int tid = 0; tid < count; tid++) {
                    int64_t b, e;
                    hd_split(n, unit, tid, count, &b, &e);
                    assert_int_equal(b, at);
                    assert_true(e >= b && (e == n || e % unit == 0));
                    int64_t units = (e - b + unit - 1) / unit;
                    least = units < least ? units : least;
                    most = units > most ? units : most;
                    at = e;
                }
                assert_int_equal(at, n);
                assert_true(most - least <= 1);
            }
    int64_t b, e;
    hd_split(INT64_MAX, 64, 255, 256, &b, &e);
    assert_true(e == INT64_MAX && b < e);
}

typedef struct rounds {
    hd_team *team;
    int size, wrong[5];
    long slot[5][8]; /* each member's own, a line apart; plain memory that only the barrier makes visible */
    int ran[5];
} rounds;

/* Each round every member writes its slot, meets the others, and must read all slots of this very round. */
static void run_rounds(void *arg, int tid)
{
    rounds *r = arg;
    r->ran[tid]++;
    for (long round = 1; round <= 300; round++) {
        r->slot[tid][0] = round;
        hd_team_barrier(r->team, tid);
        for (int i = 0; i < r->size; i++) r->wrong[tid] += r->slot[i][0] != round;
        hd_team_barrier(r->team, tid);
    }
}

static void test_team(void **state)
{
    (void)state;
    for (int size = 1; size <= 5; size++) {
        hd_error e = {0};
        rounds r = { .team = hd_team_new(size, size == 2, &e), .size = size };
        assert_non_null(r.team);
        assert_int_equal(hd_team_size(r.team), size);
        for (int k = 0; k < 3; k++) {
            hd_team_run(r.team, run_rounds, &r);
            if (k == 1) usleep(2000); /* long enough for the helpers to stop spinning */
        }
        for (int i = 0; i < size; i++) {
            assert_int_equal(r.wrong[i], 0);
            assert_int_equal(r.ran[i], 3);
        }
        hd_team_free(r.team);
    }
}

static void add_one(void *arg, int tid)
{
    (void)tid;
    atomic_fetch_add((_Atomic int *)arg, 1);
}

static void test_team_many_runs(void **state)
{
    (void)state;
    _Atomic int total = 0;
    hd_team *t = hd_team_new(3, false, NULL);
    for (int i = 0; i < 2000; i++) hd_team_run(t, add_one, &total);
    hd_team_free(t);
    assert_int_equal(total, 6000);
}

static double process_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void test_idle_team_sleeps(void **state)
{
    (void)state;
    _Atomic int total = 0;
    hd_team *t = hd_team_new(2, false, NULL);
    hd_team_run(t, add_one, &total);
    usleep(5000);
    double before = process_seconds();
    usleep(60000);
    double used = process_seconds() - before;
    hd_team_free(t);
    assert_true(used < 0.01);
}

typedef struct pinned { int cores, count, outside; } pinned;

static void *pin_and_look(void *arg)
{
    pinned *p = arg;
    cpu_set_t set;
    hd_thread_pin(p->cores - 1, 1);
    p->count = sched_getaffinity(0, sizeof set, &set) ? -1 : CPU_COUNT(&set);
    p->outside = hd_core_count();
    hd_thread_pin(p->cores, 1); /* there is none: nothing happens */
    if (sched_getaffinity(0, sizeof set, &set) || CPU_COUNT(&set) != 1) p->count = -2;
    return NULL;
}

/* A pinned thread has one core, and the process all that it had. */
static void test_pinned_thread(void **state)
{
    (void)state;
    pthread_t thread;
    cpu_set_t set;
    assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
    pinned p = {.cores = CPU_COUNT(&set)};
    int before = hd_core_count();
    assert_int_equal(pthread_create(&thread, NULL, pin_and_look, &p), 0);
    pthread_join(thread, NULL);
    assert_int_equal(p.count, 1);
    assert_int_equal(p.outside, before);
}

static void test_team_failures(void **state)
{
    (void)state;
    hd_error e = {0};
    assert_null(hd_team_new(0, false, &e));
    assert_int_equal(e.code, HD_EINVAL);
    assert_null(hd_team_new(257, false, NULL));
    e = (hd_error){0};
    hd_mem_fail_at(1);
    assert_null(hd_team_new(2, false, &e));
    assert_int_equal(e.code, HD_ENOMEM);
    assert_true(hd_core_count() >= 1);
    hd_team_free(NULL);
}

/* ---- terminal ---- */

static void test_term(void **state)
{
    (void)state;
    double t = hd_time();
    assert_true(hd_time() >= t);
    assert_true(hd_memory_peak() > 100000 && hd_memory_resident() > 100000);
    assert_true(hd_memory_available() > 1 << 20);
    hd_progress p;
    hd_progress_begin(&p, "quiet", 10, true);
    hd_progress_update(&p, 5, NULL);
    hd_progress_end(&p, NULL);
}

/* ---- element types ---- */

typedef struct half_kind {
    uint16_t infinity; /* bits; all below are finite */
    uint16_t quiet;
    float (*to_f32)(uint16_t);
    uint16_t (*from_f32)(float);
    uint16_t (*from_f64)(double);
} half_kind;

static float bf16_to_f32(uint16_t h) { return hd_bf16_to_f32(h); }
static uint16_t bf16_from_f32(float f) { return hd_bf16_from_f32(f); }

static const half_kind kinds[2] = {
    { 0x7f80, 0x40, bf16_to_f32, bf16_from_f32, hd_bf16_from_f64 },
    { 0x7c00, 0x200, hd_f16_to_f32, hd_f16_from_f32, hd_f16_from_f64 },
};

static void test_half_round_trip(void **state)
{
    (void)state;
    for (int k = 0; k < 2; k++)
        for (uint32_t h = 0; h < 65536; h++) {
            const half_kind *kind = &kinds[k];
            bool nan = (h & 0x7fff) > kind->infinity;
            uint16_t expected = (uint16_t)(nan ? h | kind->quiet : h);
            float f = kind->to_f32((uint16_t)h);
            assert_int_equal(isnan(f) != 0, nan);
            assert_int_equal(kind->from_f32(f), expected);
            assert_int_equal(kind->from_f64(f), expected);
        }
    assert_true(hd_f16_to_f32(0x3c00) == 1 && hd_f16_to_f32(0x7bff) == 65504 && hd_f16_to_f32(1) == 0x1p-24f);
    assert_true(hd_f16_to_f32(0x3ff) == 0x3ffp-24f && hd_f16_to_f32(0xc000) == -2 && isinf(hd_f16_to_f32(0xfc00)));
    assert_true(hd_bf16_to_f32(0x3f80) == 1 && hd_bf16_to_f32(0xc000) == -2);
}

/* Between any two neighbours: the middle goes to the even one, a hair beside it to the nearer one. */
static void test_half_rounding(void **state)
{
    (void)state;
    for (int k = 0; k < 2; k++)
        for (uint32_t h = 0; h + 1 < kinds[k].infinity; h++) {
            const half_kind *kind = &kinds[k];
            double low = kind->to_f32((uint16_t)h), high = kind->to_f32((uint16_t)(h + 1)), middle = low + (high - low) / 2;
            uint16_t even = (uint16_t)(h & 1 ? h + 1 : h);
            assert_int_equal(kind->from_f64(middle), even);
            assert_int_equal(kind->from_f64(-middle), even | 0x8000);
            assert_int_equal(kind->from_f64(nextafter(middle, 0)), h);
            assert_int_equal(kind->from_f64(nextafter(middle, INFINITY)), h + 1);
            if ((double)(float)middle == middle) {
                assert_int_equal(kind->from_f32((float)middle), even);
                assert_int_equal(kind->from_f32(nextafterf((float)middle, 0)), h);
                assert_int_equal(kind->from_f32(nextafterf((float)middle, INFINITY)), h + 1);
            }
        }
    assert_int_equal(hd_f16_from_f64(65519.99), 0x7bff);
    assert_int_equal(hd_f16_from_f64(65520), 0x7c00);
    assert_int_equal(hd_f16_from_f64(1e300), 0x7c00);
    assert_int_equal(hd_bf16_from_f64(-1e300), 0xff80);
    assert_int_equal(hd_bf16_from_f64(4.9e-324), 0);
    assert_int_equal(hd_bf16_from_f64(-1e-300), 0x8000);
    assert_int_equal(hd_f16_from_f64(0x1p-25), 0);
    assert_int_equal(hd_f16_from_f64(0x1.0001p-25), 1);
}

/* Through f32 this value would be rounded twice: first to the middle, then from there to even. */
static void test_single_rounding(void **state)
{
    (void)state;
    double v = 1 + 0x1p-8 + 0x1p-40;
    assert_int_equal(hd_bf16_from_f32((float)v), 0x3f80);
    assert_int_equal(hd_bf16_from_f64(v), 0x3f81);
    uint16_t out;
    hd_convert(&out, HD_BF16, &v, HD_F64, 1);
    assert_int_equal(out, 0x3f81);
    hd_store_f64(&out, HD_BF16, 0, v);
    assert_int_equal(out, 0x3f81);
    /* The same from an integer: 2^62 + 2^54 is a middle, one more is above it, and f64 cannot hold that one. */
    int64_t i[2] = { ((int64_t)1 << 62) + ((int64_t)1 << 54), ((int64_t)1 << 62) + ((int64_t)1 << 54) + 1 };
    uint16_t h[2];
    hd_convert(h, HD_BF16, i, HD_I64, 2);
    assert_int_equal(h[0], hd_bf16_from_f64(0x1p62));
    assert_int_equal(h[1], h[0] + 1);
    float f;
    int64_t j = -(((int64_t)1 << 62) + ((int64_t)1 << 38) + 1);
    hd_convert(&f, HD_F32, &j, HD_I64, 1);
    assert_true(f == (float)j);
}

static void test_dtypes(void **state)
{
    (void)state;
    hd_dtype t;
    for (int k = 0; k < HD_DTYPE_COUNT; k++) {
        assert_int_equal(hd_dtype_parse(hd_dtype_name((hd_dtype)k), &t), 0);
        assert_int_equal(t, k);
        /* Every dtype to every other: small whole numbers survive. */
        for (int d = 0; d < HD_DTYPE_COUNT; d++) {
            unsigned char a[8 * 5], b[8 * 5];
            for (int i = 0; i < 5; i++) hd_store_f64(a, (hd_dtype)k, i, i * 25);
            hd_convert(b, (hd_dtype)d, a, (hd_dtype)k, 5);
            for (int i = 0; i < 5; i++) assert_true(hd_load_f64(b, (hd_dtype)d, i) == i * 25);
        }
    }
    assert_int_equal(hd_dtype_parse("BF16", &t) | (t != HD_BF16), 0);
    assert_int_equal(hd_dtype_parse("float32", &t) | (t != HD_F32), 0);
    assert_int_equal(hd_dtype_parse("int4", &t), HD_EINVAL);

    int64_t i64;
    int8_t i8;
    uint8_t u8;
    hd_store_f64(&i64, HD_I64, 0, 1e19);
    assert_true(i64 == INT64_MAX);
    hd_store_f64(&i64, HD_I64, 0, -INFINITY);
    assert_true(i64 == INT64_MIN);
    hd_store_f64(&i64, HD_I64, 0, NAN);
    assert_true(i64 == 0);
    hd_store_f64(&i8, HD_I8, 0, 2.5);
    assert_int_equal(i8, 2);
    hd_store_f64(&i8, HD_I8, 0, -200);
    assert_int_equal(i8, -128);
    i64 = -1;
    hd_convert(&u8, HD_U8, &i64, HD_I64, 1);
    assert_int_equal(u8, 0);

    hd_tensor x = { .dtype = HD_BF16, .rank = 3, .dim = { 2, 3, 4 } }, scalar = { .dtype = HD_F64 };
    assert_int_equal(hd_tensor_bytes(&x), 48);
    assert_int_equal(hd_tensor_count(&scalar), 1);
    x.dim[1] = 0;
    assert_int_equal(hd_tensor_bytes(&x), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_grow_and_arena),
        cmocka_unit_test(test_strings),
        cmocka_unit_test(test_glob),
        cmocka_unit_test_setup_teardown(test_atomic_write, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_files, make_dir, remove_dir),
        cmocka_unit_test(test_paths),
        cmocka_unit_test(test_checksum),
        cmocka_unit_test(test_json_parse_errors),
        cmocka_unit_test(test_json_members),
        cmocka_unit_test_setup_teardown(test_json_files, make_dir, remove_dir),
        cmocka_unit_test(test_philox),
        cmocka_unit_test(test_rng_draws),
        cmocka_unit_test(test_split),
        cmocka_unit_test(test_team),
        cmocka_unit_test(test_team_many_runs),
        cmocka_unit_test(test_idle_team_sleeps),
        cmocka_unit_test(test_team_failures),
        cmocka_unit_test(test_pinned_thread),
        cmocka_unit_test(test_term),
        cmocka_unit_test(test_half_round_trip),
        cmocka_unit_test(test_half_rounding),
        cmocka_unit_test(test_single_rounding),
        cmocka_unit_test(test_dtypes),
    };
    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
