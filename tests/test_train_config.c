/* Settings of a training run that contradict each other, or are no number: one clear line. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "train/config.h"

typedef struct read_settings {
    hd_train_config c;
    hd_session_options session;
    hd_lora_options lora;
    hd_lr_schedule lr;
    hd_settings_memory memory;
    hd_error err;
} read_settings;

static int check(read_settings *r, char *flags)
{
    char *argv[24] = {"train"};
    int argc = 1, n_words;
    const char *words[1];
    *r = (read_settings){0};
    for (char *at = strtok(flags, " "); at; at = strtok(NULL, " ")) argv[argc++] = at;
    int rc = hd_settings_preset(hd_train_settings, &r->c, &r->memory, &r->err);
    r->c.model = "m";
    if (!rc) rc = hd_settings_parse(hd_train_settings, &r->c, argc, argv, words, 1, &n_words, &r->memory, &r->err);
    if (!rc) rc = hd_train_config_check(&r->c, &r->session, &r->lora, &r->lr, &r->err);
    return rc;
}

static void test_at_most_40_settings(void **state)
{
    int n = 0;
    (void)state;
    while (hd_train_settings[n].name) n++;
    assert_true(n <= 40);
}

static void test_contradictions(void **state)
{
    static const struct { const char *flags, *message; } cases[] = {
        {"--ranks 4 --planner given", "such as --parallel dp=4"}, {"--ranks 4 --parallel dp=2 --planner given", "which is 2 ranks"},
        {"--ranks 4 --lora-rank 2", "one rank only"}, {"--ranks 4 --eval-only", "such as --parallel"}, {"--planner best", "one of search, exhaustive"},
        {"--eval-every x", "N:BATCHES"}, {"--eval-every 3:", "N:BATCHES, not \"3:\""}, {"--eval-every :3", "N:BATCHES"}, {"--save-every 3:-1", "N:KEEP"}, {"--save-every 3:1:2", "N:KEEP"},
        {"--device-memory much", "such as 512M"}, {"--device-memory 0", "such as 512M"}, {"--device-memory 3X", "such as 512M"}, {"--device-memory 3GB", "such as 512M"}, {"--ranks 3 --parallel tp=2,pp=2", "which is 4 ranks"},
        {"--parallel dp=2 --plan x", "not both"}, {"--restarts 2", "needs --out"}, {"--parallel dq=2", "no \"dq\""}, {"--transport tcp", "transport"},
        {"--adam 0.9,0.95", "three numbers"}, {"--adam 0.9,1,1e-8", "below 1"}, {"--adam 0.9,0.95,1e-8,3", "three numbers"}, {"--schedule wsd:", "wsd:N"},
        {"--schedule wsd:0", "wsd:N"}, {"--schedule cosine:3", "wsd:N"}, {"--schedule round", "--schedule must be"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        read_settings r;
        char flags[200];
        snprintf(flags, sizeof flags, "%s", cases[i].flags);
        if (!check(&r, flags)) fail_msg("%s: was taken", cases[i].flags);
        if (!strstr(r.err.message, cases[i].message)) fail_msg("%s: \"%s\" instead of \"%s\"", cases[i].flags, r.err.message, cases[i].message);
        hd_settings_free(&r.memory);
    }
}

static void test_values(void **state)
{
    (void)state;
    read_settings r;
    int ranks;
    char flags[] = "--ranks 12 --parallel dp=2,tp=3,pp=2 --adam 0.8,0.9,1e-6 --schedule wsd:7 --restarts 2 --out o --transport mpi", none[] = "";
    if (check(&r, flags)) fail_msg("%s", r.err.message);
    assert_int_equal(hd_train_config_ranks(&r.c, &r.session.plan, &ranks, &r.err), 0);
    assert_int_equal(ranks, 12);
    assert_true(r.session.step.beta1 == 0.8 && r.session.step.beta2 == 0.9 && r.session.step.eps == 1e-6);
    assert_true(r.lr.shape == HD_LR_WSD && r.lr.decay == 7);
    hd_settings_free(&r.memory);
    if (check(&r, none)) fail_msg("%s", r.err.message);
    assert_int_equal(hd_train_config_ranks(&r.c, &r.session.plan, &ranks, &r.err), 0);
    assert_true(ranks == 1 && r.session.step.beta2 == 0.95 && r.lr.shape == HD_LR_COSINE && r.lr.decay == 100);
    hd_settings_free(&r.memory);
}

static void test_numbers_of_two(void **state)
{
    static const struct { const char *flags; hd_train_rhythm rhythm; } cases[] = {
        {"", {0, 0, 0, 3}}, {"--eval-every 7", {7, 0, 0, 3}}, {"--eval-every 7:2 --save-every 5", {7, 2, 5, 3}}, {"--eval-every 0:9 --save-every 5:0", {0, 9, 5, 0}},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        read_settings r;
        hd_train_rhythm rhythm;
        char flags[100];
        snprintf(flags, sizeof flags, "%s", cases[i].flags);
        if (check(&r, flags)) fail_msg("%s", r.err.message);
        assert_int_equal(hd_train_config_rhythm(&r.c, &rhythm, &r.err), 0);
        assert_memory_equal(&rhythm, &cases[i].rhythm, sizeof rhythm);
        hd_settings_free(&r.memory);
    }
}

static void test_sizes(void **state)
{
    static const struct { const char *text; int64_t bytes; } cases[] = {{NULL, 0}, {"7", 7}, {"3K", 3072}, {"1.5M", 1572864}, {"2G", (int64_t)2 << 30}, {"1T", (int64_t)1 << 40}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t bytes;
        hd_error err = {0};
        assert_int_equal(hd_train_config_size(cases[i].text, &bytes, &err), 0);
        assert_int_equal(bytes, cases[i].bytes);
    }
}

static void test_what_is_open(void **state)
{
    static const struct { const char *flags; bool open; } cases[] = {
        {"", true}, {"--ranks 4", true}, {"--parallel dp=2", false}, {"--parallel dp=2 --ranks 2", false}, {"--parallel dp=2 --ranks 3", true}, {"--parallel tp=2,auto", true},
        {"--planner given", false}, {"--parallel dp=2,auto --planner given", false}, {"--eval-only", false}, {"--lora-rank 2", false}, {"--parallel dp=2 --planner zero", false},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        read_settings r;
        char flags[100];
        snprintf(flags, sizeof flags, "%s", cases[i].flags);
        if (check(&r, flags)) fail_msg("%s: %s", cases[i].flags, r.err.message);
        if (hd_train_config_is_open(&r.c, &r.session.parallel) != cases[i].open) fail_msg("%s", cases[i].flags);
        hd_settings_free(&r.memory);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_at_most_40_settings), cmocka_unit_test(test_contradictions), cmocka_unit_test(test_values),
                                       cmocka_unit_test(test_numbers_of_two), cmocka_unit_test(test_sizes), cmocka_unit_test(test_what_is_open)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
