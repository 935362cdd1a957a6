/* test_search.c: the joint search: its space, its estimates beside the simulator, and its answers beside trying every form. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/mem.h"
#include "planners/forms.h"
#include "sanitized.h"
#include "train/planning.h"

typedef struct setting {
    hd_model model;
    hd_cluster cluster;
    hd_planning planning;
    hd_planner_job job;
} setting;

/* A Llama of so many layers and features with 4 heads. */
static void start(setting *s, const char *cluster, int layers, int width, int64_t samples, int64_t sequence)
{
    hd_error err = {0};
    memset(s, 0, sizeof *s);
    hd_lm_config *c = &s->model.config;
    hd_lm_config_preset(c, HD_ARCH_LLAMA);
    c->layers = layers, c->width = width, c->heads = 4, c->kv_heads = 2, c->head_dim = width / 4, c->mlp_width = 3 * width,
        c->vocab = 509, c->max_positions = (int)sequence;
    assert_int_equal(hd_cluster_find(cluster, &s->cluster, &err), 0);
    s->planning = (hd_planning){.model = &s->model, .cluster = &s->cluster, .precision = s->cluster.device.cores ? HD_F32 : HD_BF16,
        .samples = samples, .sequence = sequence,
                                .step = {.optimizer = HD_ADAMW, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .clip = 1}};
    assert_int_equal(hd_planning_network(&s->planning, &s->job.network, &err), 0);
    s->job.cluster = &s->cluster;
    s->job.pinned = hd_parallel_default();
    s->job.quiet = true;
}

static void stop(setting *s)
{
    hd_cluster_free(&s->cluster);
}

static void pin(setting *s, const char *text)
{
    hd_error err = {0};
    if (hd_parallel_parse(text, &s->job.pinned, &err)) fail_msg("%s: %s", text, err.message);
}

static hd_planner_answer find(const setting *s, const hd_planner *planner)
{
    hd_planner_answer a;
    hd_error err = {0};
    if (planner->find(&s->job, &a, &err)) fail_msg("%s", err.message);
    assert_int_equal(a.n == 0, a.why[0] != 0);
    for (int i = 0; i < a.n; i++) assert_true(a.best[i].fits && (!i || !(a.best[i].step < a.best[i - 1].step)));
    return a;
}

/* ---- the space ---- */

typedef struct text { char t[200]; } text;

static text text_of(const hd_parallel *p, int64_t micro_batches)
{
    text t;
    hd_str s;
    hd_str_init(&s);
    assert_int_equal(hd_parallel_print(p, &s), 0);
    int n = snprintf(t.t, sizeof t.t, "%s x %" PRId64, s.len ? s.data : "", micro_batches);
    assert_true(n > 0 && n < (int)sizeof t.t);
    hd_str_free(&s);
    return t;
}

static int compare_texts(const void *a, const void *b) { return strcmp(a, b); }

/* Each once, and as pinned and forbidden. Returns how many. */
static size_t check_forms(const setting *s, const char *what)
{
    hd_error err = {0};
    hd_form_list forms;
    int rc = hd_forms_list(&s->job, &forms, &err);
    if (rc) fail_msg("%s: %s", what, err.message);
    text *list = hd_malloc((forms.n + 1) * sizeof *list);
    assert_non_null(list);
    for (size_t i = 0; i < forms.n; i++) {
        const hd_form *f = &forms.list[i];
        hd_parallel p;
        hd_form_write(&s->job, f, NULL, NULL, &p);
        list[i] = text_of(&p, f->micro_batches);
        if (!hd_planner_allows(&s->job, &p, f->micro_batches)) fail_msg("%s: %s is not allowed", what, list[i].t);
        assert_true(hd_form_ranks(f) <= hd_planner_ranks(&s->job) && s->job.network.samples % f->micro_batches == 0);
    }
    qsort(list, forms.n, sizeof *list, compare_texts);
    for (size_t i = 1; i < forms.n; i++)
        if (!strcmp(list[i].t, list[i - 1].t)) fail_msg("%s: %s twice", what, list[i].t);
    hd_free(list);
    hd_free(forms.list);
    return forms.n;
}

static void test_forms(void **state)
{
    static const char *const pins[] = {"tp=2,auto", "pp=2,auto", "dp=4,auto", "cp=2,auto", "zero=3,auto", "zero=0,auto", "zero=2,auto",
        "keep,auto", "regather,auto", "sp,auto", "scatter,auto",
                                       "v=2,auto", "schedule=gpipe,auto", "schedule=interleaved,auto", "recompute=full,auto",
                                       "recompute=none,auto", "recompute=every:2,auto", "slices=2,auto",
                                       "recompute=2:1:0:1,auto", "layers=3:2,auto", "order=plain,auto", "attention=ring,auto",
                                       "half_wire,auto", "tp=2,pp=2,zero=1,auto"};
    static const hd_parallel_key keys[] = {HD_KEY_TP, HD_KEY_PP, HD_KEY_CP, HD_KEY_DP, HD_KEY_ZERO, HD_KEY_RECOMPUTE, HD_KEY_SCHEDULE,
        HD_KEY_SLICES, HD_KEY_SP};
    (void)state;
    for (int gpu = 0; gpu < 2; gpu++) {
        setting s;
        start(&s, gpu ? "dgx-a100-80:8" : "cpu:6", 5, 32, 12, 256);
        size_t all = check_forms(&s, "nothing pinned");
        assert_true(all > 100);
        for (size_t i = 0; i < sizeof pins / sizeof *pins; i++) {
            if (!gpu && !strcmp(pins[i], "tp=2,pp=2,zero=1,auto")) continue; /* more than 6 devices */
            pin(&s, pins[i]);
            size_t n = check_forms(&s, pins[i]);
            bool fewer = strncmp(pins[i], "half_wire", 9) && strncmp(pins[i], "recompute", 9);
            if (!n || (fewer && n >= all)) fail_msg("%s: %zu forms of %zu", pins[i], n, all);
        }
        s.job.pinned = hd_parallel_default();
        for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
            s.job.forbidden = 1u << keys[i];
            size_t n = check_forms(&s, hd_parallel_key_name(keys[i]));
            assert_true(n > 0 && n < all);
        }
        s.job.forbidden = 0;
        s.job.micro_batches = 3;
        assert_true(check_forms(&s, "3 micro-batches") > 0);
        stop(&s);
    }
}

static void test_sizes_left_open(void **state)
{
    static const struct { const char *text; bool good; } cases[] = {
        {"zero=3,auto", true}, {"zero=3", false}, {"zero=3,dp=1,auto", false}, {"keep,auto", true}, {"keep,zero=1,auto", false},
        {"sp,auto", true}, {"sp,tp=1,auto", false}, {"v=2,auto", true},
        {"v=2,pp=1,auto", false}, {"v=2,schedule=1f1b,auto", false}, {"scatter,auto", true}, {"scatter,pp=1,auto", false},
        {"order=plain,auto", true}, {"order=plain,cp=1,auto", false},
        {"layers=3:2,auto", true}, {"layers=3:2,pp=4,auto", false}, {"tables=rows,auto", true}, {"recompute=2:1:0,auto", true},
        {"layers=2:1,recompute=1:0:1,auto", false}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hd_parallel p;
        hd_error err = {0};
        bool taken = !hd_parallel_parse(cases[i].text, &p, &err);
        if (taken != cases[i].good) fail_msg("%s: %s", cases[i].text, taken ? "was taken" : err.message);
    }
}

/* ---- estimates ---- */

static void test_estimates(void **state)
{
    static const struct { const char *pinned; int64_t micro_batches; } cases[] = {
        {"pp=1,recompute=none,auto", 2}, {"pp=1,tp=2,sp,recompute=full,zero=1,auto", 2},
        {"pp=4,tp=1,schedule=1f1b,slices=1,recompute=none,auto", 8}, {"pp=2,schedule=1f1b,slices=1,recompute=full,auto", 4},
        {"pp=4,schedule=zero-bubble,recompute=none,zero=0,auto", 8}, {"pp=2,v=2,schedule=interleaved,recompute=none,auto", 8},
        {"pp=4,v=2,schedule=interleaved,recompute=none,auto", 8},
        {"pp=4,slices=4,schedule=1f1b,recompute=none,auto", 2}, {"pp=8,dp=1,slices=2,schedule=1f1b,recompute=none,auto", 4}};
    (void)state;
    setting s;
    start(&s, "dgx-a100-80:8", 16, 1024, 32, 1024);
    int looked = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i += SANITIZED ? 2 : 1) {
        pin(&s, cases[i].pinned);
        s.job.micro_batches = cases[i].micro_batches;
        s.job.nodes = 4;
        hd_planner_answer a = find(&s, &hd_planner_search);
        assert_true(a.n > 0);
        for (int k = 0; k < a.n; k++) {
            const hd_plan_found *f = &a.best[k];
            if (f->pins) continue; /* layouts of its own: no estimate */
            looked++;
            if (!(fabs(f->estimate / f->step - 1) <= 0.1))
                fail_msg("%s: %s: estimated %g s, simulated %g s", cases[i].pinned, text_of(&f->form, f->micro_batches).t, f->estimate, f->step);
        }
        hd_planner_answer_free(&a);
    }
    assert_true(looked >= (SANITIZED ? 6 : 12));
    stop(&s);
}

/* ---- answers ---- */

static void test_search_is_exhaustive(void **state)
{
    (void)state;
    for (int gpu = 0; gpu < 2; gpu++) {
        setting s;
        start(&s, gpu ? "p3.16xlarge:8" : "cpu:4", 2, 32, 2, 24);
        s.job.ranks = 4;
        pin(&s, gpu ? "cp=1,slices=1,auto" : "recompute=none,slices=1,auto");
        hd_planner_answer a = find(&s, &hd_planner_search), all = find(&s, &hd_planner_exhaustive);
        assert_true(a.n > 0 && all.n > 0 && all.tried > a.tried);
        if (!(a.best[0].step <= all.best[0].step * (1 + 1e-12)))
            fail_msg("%s of %g s, and %s takes %g", text_of(&a.best[0].form, a.best[0].micro_batches).t, a.best[0].step,
                text_of(&all.best[0].form, all.best[0].micro_batches).t, all.best[0].step);
        hd_planner_answer_free(&a);
        hd_planner_answer_free(&all);
        stop(&s);
    }
}

static void test_threads_change_nothing(void **state)
{
    (void)state;
    setting s;
    start(&s, "dgx-a100-80:8", SANITIZED ? 2 : 3, 64, 2, 32);
    hd_planner_answer first = {0};
    for (int threads = 1; threads <= 3; threads += 2) {
        s.job.threads = threads;
        hd_planner_answer a = find(&s, &hd_planner_search);
        if (threads > 1) {
            assert_true(a.n == first.n && a.tried == first.tried && a.estimated == first.estimated && a.considered == first.considered);
            for (int i = 0; i < a.n; i++) {
                const hd_plan_found *f = &a.best[i], *one = &first.best[i];
                assert_string_equal(text_of(&f->form, f->micro_batches).t, text_of(&one->form, one->micro_batches).t);
                assert_true(f->step == one->step && f->estimate == one->estimate && f->peak == one->peak);
            }
            hd_planner_answer_free(&a);
        } else first = a;
    }
    hd_planner_answer_free(&first);
    stop(&s);
}

/* What the leanest of all forms needs, by trying them. */
static int64_t least_need(const setting *s)
{
    hd_error err = {0};
    hd_form_list forms;
    int64_t least = INT64_MAX;
    assert_int_equal(hd_forms_list(&s->job, &forms, &err), 0);
    for (size_t i = 0; i < forms.n; i++) {
        hd_parallel p;
        hd_plan_found f;
        hd_error refused = {0};
        if (forms.list[i].recompute == HD_RECOMPUTE_FIRST) continue;
        hd_form_write(&s->job, &forms.list[i], NULL, NULL, &p);
        if (hd_planner_try(&s->job, &p, forms.list[i].micro_batches, &f, &refused)) continue;
        if (f.peak < least) least = f.peak;
        hd_plan_found_free(&f);
    }
    hd_free(forms.list);
    return least;
}

static void test_memory_is_used_to_the_last_byte(void **state)
{
    static const char *const clusters[] = {"cpu:3", "dgx-a100-80:8"};
    (void)state;
    for (size_t i = SANITIZED; i < sizeof clusters / sizeof *clusters; i++) {
        setting s;
        start(&s, clusters[i], 2, 48, i ? 8 : 3, 20);
        if (i) pin(&s, "cp=1,tp=2,schedule=1f1b,slices=1,auto"); /* fewer forms */
        int64_t least = least_need(&s);
        s.job.memory = least;
        hd_planner_answer a = find(&s, &hd_planner_search);
        if (!a.n) fail_msg("%s: rejected with what the leanest form needs, %" PRId64 ": %s", clusters[i], least, a.why);
        assert_true(a.best[0].peak <= least);
        hd_planner_answer_free(&a);
        s.job.memory = least / 2;
        a = find(&s, &hd_planner_search);
        assert_int_equal(a.n, 0);
        const char *remedy = strstr(a.why, "what would help: --device-memory ");
        if (!remedy) fail_msg("no remedy: %s", a.why);
        s.job.memory = strtoll(remedy + strlen("what would help: --device-memory "), NULL, 10);
        assert_true(s.job.memory >= least / 2);
        a = find(&s, &hd_planner_search);
        assert_true(a.n > 0);
        hd_planner_answer_free(&a);
        stop(&s);
    }
}

static void test_constraints_are_named(void **state)
{
    (void)state;
    setting s;
    start(&s, "cpu:4", 3, 64, 8, 32);
    pin(&s, "tp=1,pp=1,zero=0,auto");
    s.job.memory = least_need(&s) * 3 / 4;
    hd_planner_answer a = find(&s, &hd_planner_search);
    assert_int_equal(a.n, 0);
    if (!strstr(a.why, "leaving tp out of --parallel") || !strstr(a.why, "leaving pp out of --parallel")) fail_msg("%s", a.why);
    s.job.memory = 0;
    pin(&s, "pp=2,v=8,auto"); /* 16 chunks of 3 layers */
    a = find(&s, &hd_planner_search);
    assert_int_equal(a.n, 0);
    if (!strstr(a.why, "pp=2,v=8") || !strstr(a.why, "leaving v out of --parallel")) fail_msg("%s", a.why);
    hd_error err = {0};
    pin(&s, "tp=4,pp=2,auto");
    assert_int_equal(hd_planner_search.find(&s.job, &a, &err), HD_ENOPLAN);
    stop(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forms),
        cmocka_unit_test(test_sizes_left_open),
        cmocka_unit_test(test_estimates),
        cmocka_unit_test(test_search_is_exhaustive),
        cmocka_unit_test(test_threads_change_nothing),
        cmocka_unit_test(test_memory_is_used_to_the_last_byte),
        cmocka_unit_test(test_constraints_are_named),
    };
#ifdef __SANITIZE_THREAD__
    cmocka_set_test_filter("test_threads_*"); /* the others let threads do the same, for minutes */
#endif
    return cmocka_run_group_tests(tests, NULL, NULL);
}
