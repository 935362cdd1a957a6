/* Transfers beside computing: the same bits as without, programs that verify, and broken ones that don't. */
#include "base/term.h"
#include "../checks/src/ranks_run.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

typedef struct form { const char *model, *parallel; int64_t micro; double clip; bool last; } form; /* last: reduced once, in the last micro-batch */
static const form forms[] = {
    {"gpt2-odd", "dp=2", 1, 0, false}, {"gpt2-odd", "dp=3", 2, 1, true}, {"llama-odd", "dp=2,zero=1", 1, 1, false}, {"gpt2", "dp=2,zero=2", 3, 0, false},
    {"llama", "dp=2,zero=3", 1, 0, false}, {"llama", "dp=2,zero=3", 2, 1, false}, {"gpt2", "dp=2,tp=2,sp", 1, 0, false}, {"llama", "dp=2,pp=2,zero=1", 2, 0, true},
};
enum { FORMS = sizeof forms / sizeof *forms };

typedef enum how { BUCKETS, EACH, BLOCKING } how;

static run_job job_how(const form *f, how h)
{
    static const char *const keys[] = {"", ",bucket=0", ",overlap=0"};
    run_job j = {.micro = f->micro, .batch = 6, .sequence = 8, .precision = HD_F32, .optimizer = HD_ADAMW, .clip = f->clip};
    snprintf(j.model, sizeof j.model, "%s", f->model);
    snprintf(j.parallel, sizeof j.parallel, "%s%s", f->parallel, keys[h]);
    return j;
}

static run_job job_of(const form *f, bool overlap) { return job_how(f, overlap ? EACH : BLOCKING); }

/* Even runs: each gradient by itself; odd: in buckets. */
static void test_same_bits(void **state)
{
    (void)state;
    for (int run = 0; run < 2 * FORMS; run++) {
        static run_result with, without;
        hd_error err = {0};
        int i = run / 2;
        run_job on = job_how(&forms[i], run % 2 ? BUCKETS : EACH), off = job_how(&forms[i], BLOCKING);
        assert_int_equal(run_all_ranks(&on, &with, &err), 0);
        assert_int_equal(run_all_ranks(&off, &without, &err), 0);
        assert_memory_equal(with.loss, without.loss, sizeof with.loss);
        assert_true(isfinite(with.loss[RUN_STEPS - 1]));
        assert_int_equal(with.n_tensors, without.n_tensors);
        for (int t = 0; t < with.n_tensors; t++) {
            const run_tensor *a = &with.tensor[t], *b = run_find_tensor(&without, a->path, a->count);
            assert_memory_equal(a->data, b->data, (size_t)a->count * sizeof *a->data);
        }
        assert_memory_equal(with.rank[0].sent, without.rank[0].sent, sizeof with.rank[0].sent);
        run_result_free(&with);
        run_result_free(&without);
    }
}

/* The text of the first rank's program. */
static void text_of(const run_job *j, hd_str *text)
{
    hd_error err = {0};
    hd_session s = {0};
    hd_session_options o = run_options(j);
    hd_str_init(text);
    assert_int_equal(run_plan(j, &o.plan, &err), 0);
    assert_int_equal(hd_session_init(&s, run_graph(j, &err), NULL, &o, &err), 0);
    hd_program_dump(s.program[HD_TRAIN_PROGRAM], text);
    hd_session_free(&s);
}

static int parse(const char *text, char *message, size_t size)
{
    hd_error err = {0};
    hd_program *p;
    int rc = hd_program_parse(text, strlen(text), "text", &p, &err);
    snprintf(message, size, "%s", err.message);
    if (!rc) hd_program_free(p);
    return rc;
}

static void test_verified(void **state)
{
    (void)state;
    char message[512];
    for (int i = 0; i < FORMS; i++) {
        run_job on = job_of(&forms[i], true), off = job_of(&forms[i], false);
        hd_str text;
        text_of(&on, &text);
        assert_int_equal(parse(text.data, message, sizeof message), 0);
        assert_non_null(strstr(text.data, "@stream=1 @signal="));
        assert_int_equal(strstr(text.data, "@last") != NULL, forms[i].last);
        hd_str_free(&text);
        text_of(&off, &text);
        assert_null(strstr(text.data, "@stream"));
        hd_str_free(&text);
    }
}

/* Transfers of the text's lists, how many lists, and how many transfers there are by themselves. */
static void count_lists(const char *text, int *members, int *lists, int *alone)
{
    *members = *lists = *alone = 0;
    for (const char *line = text, *next; (next = strchr(line, '\n')); line = next + 1) {
        const char *at = strstr(line, " = all_reduce("), *cut = strstr(line, " = reduce_scatter(");
        if (cut && cut < next && (!at || at > next)) at = cut;
        if (!at || at > next || !strstr(at, "axes=dp") || strstr(at, "axes=dp") > next) continue;
        int n = 0;
        for (const char *c = line; c < at; c++) n += *c == '%';
        if (n > 1) ++*lists, *members += n;
        else ++*alone;
    }
}

/* As many reductions as before, most of them in lists; what is read back is the same text. */
static void test_buckets(void **state)
{
    (void)state;
    for (int i = 0; i < FORMS; i++) {
        run_job j = job_how(&forms[i], BUCKETS), each = job_how(&forms[i], EACH);
        int members, lists, alone, zero, none, all;
        hd_error err = {0};
        hd_program *p;
        hd_str text, again;
        text_of(&j, &text);
        count_lists(text.data, &members, &lists, &alone);
        assert_true(lists > 1 && lists <= 24);
        assert_int_equal(hd_program_parse(text.data, text.len, "text", &p, &err), 0);
        hd_str_init(&again);
        hd_program_dump(p, &again);
        assert_string_equal(text.data, again.data);
        hd_program_free(p);
        hd_str_free(&text);
        hd_str_free(&again);
        text_of(&each, &text);
        count_lists(text.data, &zero, &none, &all);
        assert_int_equal(none, 0);
        assert_int_equal(members + alone, all);
        assert_true(members >= alone);
        hd_str_free(&text);
    }
}

/* The text with the first `old` put for `new`. */
static char *changed(const char *text, const char *old, const char *new)
{
    const char *at = strstr(text, old);
    assert_non_null(at);
    char *out = malloc(strlen(text) + strlen(new) + 1);
    sprintf(out, "%.*s%s%s", (int)(at - text), text, new, at + strlen(old));
    return out;
}

static void assert_refused(const char *text, const char *old, const char *new, const char *why)
{
    char message[512], *broken = changed(text, old, new);
    assert_int_equal(parse(broken, message, sizeof message), HD_EFORMAT);
    if (!strstr(message, why)) fail_msg("%s, not: %s", message, why);
    free(broken);
}

static void test_broken_refused(void **state)
{
    (void)state;
    run_job j = job_of(&forms[0], true), many = job_of(&forms[1], true), cut = job_of(&forms[2], true);
    hd_str text;
    text_of(&j, &text);
    assert_refused(text.data, " @wait=3 ", " ", "before its transfer is waited for");
    assert_refused(text.data, " @wait=3 ", " @wait=3 @wait=9999 ", "nobody signals");
    assert_refused(text.data, " @signal=3 ", " @signal=4 ", "signals a token that another signals");
    assert_refused(text.data, " @stream=1 @signal=3 ", " @stream=1 ", "of stream 1 without a token");
    hd_str_free(&text);
    text_of(&many, &text);
    assert_refused(text.data, " @last @stream=1 @signal=2 ", " @stream=1 @signal=2 ", "");
    assert_refused(text.data, " @stream=1 @signal=2 ", " ", "is done in the last micro-batch only");
    hd_str_free(&text);
    text_of(&cut, &text); /* new parameters are gathered to the end: nobody reads them any more in the step */
    char message[512];
    hd_str broken;
    hd_str_init(&broken);
    for (const char *line = text.data; *line; line = strchr(line, '\n') + 1)
        if (strncmp(line, "  () = .wait()", 14)) hd_str_printf(&broken, "%.*s", (int)(strchr(line, '\n') + 1 - line), line);
    assert_int_equal(parse(broken.data, message, sizeof message), HD_EFORMAT);
    assert_non_null(strstr(message, "is never waited for"));
    hd_str_free(&broken);
    hd_str_free(&text);
}

static void test_broken_lists_refused(void **state)
{
    (void)state;
    const char *head = "program threads=1 arena=1024 bound=0 mesh=dp:2:data\n"
                       "buffer %0 scratch f32[4] plain scratch device micro=replicate arena=0 copies=1 offset=0 bytes=16 ; a\n"
                       "buffer %1 scratch f32[4] plain scratch device micro=replicate arena=0 copies=1 offset=64 bytes=16 ; b\n"
                       "buffer %2 scratch f64[2] plain scratch device micro=replicate arena=0 copies=1 offset=128 bytes=16 ; c\n"
                       "segment backward\n  %0 = .zero() ; a\n  %1 = .zero() ; b\n  %2 = .zero() ; c\n  ";
    static const struct { const char *list, *why; } cases[] = {
        {"%0, %1 = all_reduce(%0, %1) axes=dp", NULL},
        {"%0, %0 = all_reduce(%0, %1) axes=dp", "another of its operands"},
        {"%1, %0 = all_reduce(%0, %1) axes=dp", "another of its operands"},
        {"%0 = all_reduce(%0, %1) axes=dp", "as many results"},
        {"%0, %2 = all_reduce(%0, %2) axes=dp", "several dtypes"},
        {"%0, %1 = all_gather(%0, %1) axes=dp extent=4", "no reduction"},
        {"%0, - = all_reduce(%0, %1) axes=dp", "wrong operands"},
        {"%0, %1 = reduce_scatter(%0, %1) axes=dp dim=-1", "no dimension -1"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[2048], message[512];
        snprintf(text, sizeof text, "%s%s ; list\ncall backward micro=0 slice=0\n", head, cases[i].list);
        int rc = parse(text, message, sizeof message);
        if (cases[i].why ? rc != HD_EFORMAT || !strstr(message, cases[i].why) : rc) fail_msg("%s: %d: %s", cases[i].list, rc, message);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_bits), cmocka_unit_test(test_verified), cmocka_unit_test(test_buckets), cmocka_unit_test(test_broken_lists_refused),
                                       cmocka_unit_test(test_broken_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
