/* Traces: what calls they make of events, Chrome's form and back, who waits for whom, memory over time; the report as one HTML file. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/file.h"
#include "base/json.h"
#include "models/lm.h"
#include "plan/parallel.h"
#include "report/parts.h"
#include "report/plan_html.h"
#include "report/trace_chrome.h"
#include "train/session.h"

#define COUNT(a) (int)(sizeof(a) / sizeof *(a))

static void need(int rc, const hd_error *e)
{
    if (rc) fail_msg("%s", e->message);
}

static char *file_in(void **state, const char *name)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", (char *)*state, name);
    return path;
}

/* ---- traces by hand ---- */

static const hd_program two_by_two = {.mesh = {2, {{"pp", 2, HD_AXIS_PIPELINE}, {"dp", 2, HD_AXIS_DATA}}}, .stages = 2};

/* Rank 0 forwards and sends, rank 2 receives and waits for that; both reduce beside computing, and update together. */
static const hd_trace_event events[] = {
    {0, 0, HD_EVENT_PRODUCT, "contract", "layers.0.\"q\"", "forward", 0, 0, 0, 1, 0.0, 1.0, 0},
    {0, 0, HD_EVENT_PIPELINE_COMM, "send", "layers.0.sum.to1", "forward", 0, 0, 0, 2, 1.0, 1.1, 4096},
    {0, 1, HD_EVENT_DATA_COMM, "all_reduce", "grad.a.all_reduce", "backward", 0, 0, 0, 0, 1.1, 2.0, 64},
    {0, 1, HD_EVENT_DATA_COMM, "all_reduce", "grad.b.all_reduce", "backward", 0, 0, 0, 1, 1.5, 2.5, 64},
    {0, 0, HD_EVENT_MEMORY_BOUND, "add", "x", "backward", 0, 0, 0, 2, 1.6, 1.8, 0},
    {0, 0, HD_EVENT_WAIT, "wait", "y", "backward", 0, 0, 0, 3, 1.8, 2.5, 0},
    {0, 0, HD_EVENT_DATA_COMM, "all_reduce", "norm.all", "update", 0, 0, 0, 0, 2.5, 4.2, 4},
    {2, 0, HD_EVENT_PIPELINE_COMM, "recv", "layers.0.sum", "forward", 0, 0, 0, 0, 0.1, 1.3, 4096},
    {2, 0, HD_EVENT_PRODUCT, "contract", "layers.1.q", "forward", 0, 0, 0, 1, 1.3, 4.0, 0},
    {2, 0, HD_EVENT_DATA_COMM, "all_reduce", "norm.all", "update", 0, 0, 0, 0, 4.0, 4.2, 4},
};

static void fill_trace(hd_trace *t, bool by_call)
{
    hd_error e = {0};
    t->by_call = by_call;
    t->seconds = 4.2;
    t->steps = 1;
    for (int i = 0; i < COUNT(events); i++) need(hd_trace_add(t, &events[i], &e), &e);
    for (int i = 0; i < 4; i++) need(hd_trace_add_memory(t, &(hd_memory_sample){i % 2 * 2, 0.5 * i, 1000 + i}, &e), &e);
}

static void test_calls(void **state)
{
    (void)state;
    hd_trace t = {0}, coarse = {0};
    fill_trace(&t, false);
    fill_trace(&coarse, true);
    assert_int_equal(t.ranks, 3);
    assert_int_equal(t.n_calls, 5);
    assert_int_equal(coarse.n_calls, 5);
    assert_int_equal(coarse.n_events, 0);
    assert_int_equal(coarse.n_memory, 0);
    for (int i = 0; i < 5; i++) {
        coarse.calls[i].bytes = 0; /* known there only */
        assert_memory_equal(&t.calls[i], &coarse.calls[i], sizeof t.calls[i]);
    }
    assert_string_equal(t.calls[1].segment, "backward");
    assert_true(t.calls[1].start == 1.6 && t.calls[1].end == 2.5); /* what goes on beside doesn't count */
    assert_true(fabs(t.calls[1].seconds[HD_EVENT_WAIT] - 0.7) < 1e-12);
    hd_trace_free(&t);
    hd_trace_free(&coarse);
}

static void expect_same_trace(const hd_trace *a, const hd_trace *b)
{
    assert_int_equal(a->n_calls, b->n_calls);
    assert_int_equal(a->n_memory, b->n_memory);
    assert_int_equal(a->n_events, b->n_events);
    assert_true(fabs(a->seconds - b->seconds) < 1e-8);
    for (int rank = 0; rank < a->ranks; rank++)
        for (int stream = 0; stream < 2; stream++)
            for (int64_t i = 0, k = 0; i < a->n_events; i++) {
                const hd_trace_event *x = &a->events[i], *y;
                if (x->rank != rank || x->stream != stream) continue;
                while (k < b->n_events && (b->events[k].rank != rank || b->events[k].stream != stream)) k++;
                assert_true(k < b->n_events);
                y = &b->events[k++];
                assert_int_equal(x->kind, y->kind);
                assert_string_equal(x->name, y->name);
                assert_string_equal(x->path, y->path);
                assert_string_equal(x->segment, y->segment);
                assert_int_equal(x->instr, y->instr);
                assert_int_equal(x->bytes, y->bytes);
                if (!(fabs(x->start - y->start) < 2e-9 && fabs(x->end - y->end) < 2e-9)) fail_msg("%s: %.12g is %.12g", x->path, x->start,
                                                                                                  y->start);
            }
}

static void test_chrome(void **state)
{
    hd_error e = {0};
    for (int by_call = 0; by_call < 2; by_call++) {
        hd_trace t = {0}, back;
        fill_trace(&t, by_call);
        need(hd_chrome_write(file_in(state, "t.json"), &t, &two_by_two, false, &e), &e);
        need(hd_chrome_read(file_in(state, "t.json"), &back, &e), &e);
        assert_int_equal(back.by_call, by_call);
        expect_same_trace(&t, &back);
        hd_trace_free(&t);
        hd_trace_free(&back);
    }
    assert_false(hd_file_exists(file_in(state, "t.json.tmp")));
}

/* Of one thread of a process, events lie beside or inside each other: what viewers need. */
static void test_chrome_nests(void **state)
{
    hd_error e = {0};
    hd_trace t = {0};
    fill_trace(&t, false);
    need(hd_chrome_write(file_in(state, "n.json"), &t, &two_by_two, false, &e), &e);
    hd_trace_free(&t);
    json_t *j = hd_json_load(file_in(state, "n.json"), &e), *list = json_object_get(j, "traceEvents");
    assert_non_null(list);
    int pairs = 0;
    for (size_t i = 0; i < json_array_size(list); i++) {
        for (size_t k = 0; k < i; k++) {
            const json_t *x = json_array_get(list, i), *y = json_array_get(list, k);
            if (!json_object_get(x, "dur") || !json_object_get(y, "dur")) continue;
            if (json_integer_value(json_object_get(x, "pid")) != json_integer_value(json_object_get(y, "pid"))) continue;
            if (json_integer_value(json_object_get(x, "tid")) != json_integer_value(json_object_get(y, "tid"))) continue;
            double a = json_number_value(json_object_get(x, "ts")), b = a + json_number_value(json_object_get(x, "dur"));
            double c = json_number_value(json_object_get(y, "ts")), d = c + json_number_value(json_object_get(y, "dur"));
            assert_true(b <= c + 1e-3 || d <= a + 1e-3 || (a >= c - 1e-3 && b <= d + 1e-3) || (c >= a - 1e-3 && d <= b + 1e-3));
            pairs++;
        }
    }
    assert_true(pairs > 10);
    json_decref(j);
}

static void test_one_per_stage(void **state)
{
    hd_error e = {0};
    hd_trace t = {0}, back;
    for (int rank = 0; rank < 4; rank++) {
        hd_trace_event x = events[0];
        x.rank = rank;
        need(hd_trace_add(&t, &x, &e), &e);
    }
    need(hd_chrome_write(file_in(state, "s.json"), &t, &two_by_two, true, &e), &e);
    need(hd_chrome_read(file_in(state, "s.json"), &back, &e), &e);
    assert_int_equal(back.n_events, 2);
    assert_int_equal(back.events[0].rank, 0);
    assert_int_equal(back.events[1].rank, 2);
    assert_int_equal(back.ranks, 4);
    hd_trace_free(&t);
    hd_trace_free(&back);
}

static void test_chrome_refuses(void **state)
{
    static const char *const bad[] = {
        "{", "[]", "{}", "{\"otherData\": {\"heddle_trace\": 2}, \"traceEvents\": []}", "{\"otherData\": {\"heddle_trace\": 1}}",
        "{\"otherData\": {\"heddle_trace\": 1}, \"traceEvents\": [{\"ts\": 1}]}",
            "{\"otherData\": {\"heddle_trace\": 1}, \"traceEvents\": [5]}",
        "{\"otherData\": {\"heddle_trace\": 1}, \"traceEvents\": [{\"ph\": \"X\", \"cat\": \"gemm\", \"pid\": 70000}]}",
        "{\"otherData\": {\"heddle_trace\": 1}, \"traceEvents\": [{\"ph\": \"X\", \"cat\": \"gemm\", \"pid\": 0, \"dur\": -1}]}",
        "{\"otherData\": {\"heddle_trace\": 1}, \"traceEvents\": [{\"ph\": \"C\", \"pid\": -1}]}",
        "{\"otherData\": {\"heddle_trace\": 1, \"ranks\": -3}, \"traceEvents\": []}",
        "{\"otherData\": {\"heddle_trace\": 1}, \"traceEvents\": [{\"ph\": \"X\", \"cat\": \"gemm\", \"name\": 5}]}",
    };
    for (int i = 0; i < COUNT(bad); i++) {
        hd_error e = {0};
        hd_trace t;
        need(hd_file_write_atomic(file_in(state, "bad.json"), bad[i], strlen(bad[i]), &e), &e);
        if (!hd_chrome_read(file_in(state, "bad.json"), &t, &e)) fail_msg("read: %s", bad[i]);
        assert_non_null(strstr(e.message, "bad.json"));
        assert_null(t.events);
    }
}

/* ---- who waits for whom ---- */

static void test_parts(void **state)
{
    (void)state;
    hd_error e = {0};
    hd_trace t = {0};
    double *waiting, part[HD_SIM_PARTS];
    fill_trace(&t, false);
    need(hd_trace_waiting(&t, &two_by_two, &waiting, &e), &e);
    hd_trace_parts(&t, waiting, 0, part);
    const double first[HD_SIM_PARTS] = {[HD_SIM_GEMM] = 1, [HD_SIM_MEMORY_BOUND] = 0.2, [HD_SIM_PIPELINE] = 0.1, [HD_SIM_BUBBLE] = 1.5,
                                        [HD_SIM_DATA] = 0.9, [HD_SIM_IDLE] = 0.5};
    for (int k = 0; k < HD_SIM_PARTS; k++)
        if (!(fabs(part[k] - first[k]) < 1e-12)) fail_msg("part %d of rank 0: %g, not %g", k, part[k], first[k]);
    hd_trace_parts(&t, waiting, 2, part);
    const double second[HD_SIM_PARTS] = {[HD_SIM_GEMM] = 2.7, [HD_SIM_PIPELINE] = 0.3, [HD_SIM_BUBBLE] = 0.9, [HD_SIM_DATA] = 0.2,
                                         [HD_SIM_IDLE] = 0.1};
    for (int k = 0; k < HD_SIM_PARTS; k++)
        if (!(fabs(part[k] - second[k]) < 1e-12)) fail_msg("part %d of rank 2: %g, not %g", k, part[k], second[k]);
    hd_free(waiting);
    hd_trace_free(&t);
}

/* ---- a plan ---- */

typedef struct plan_rig { hd_programs programs; hd_cluster cluster; hd_sim_result sim; hd_trace trace; } plan_rig;

static void open_rig(plan_rig *r, const char *parallel, int64_t micro)
{
    static const char text[] = "{\"architectures\": [\"GPT2LMHeadModel\"], \"model_type\": \"gpt2\", \"n_embd\": 24, \"n_head\": 2, \"n_layer\": 4, \"n_positions\": 16, "
                               "\"vocab_size\": 61}";
    hd_error e = {0};
    hd_lm_config c;
    *r = (plan_rig){0};
    hd_session_options o = {.plan = hd_plan_default(), .sequence = 12, .step = {.optimizer = HD_ADAMW, .beta1 = 0.9, .beta2 = 0.95,
                                                                                .eps = 1e-8, .clip = 1}};
    o.plan.micro_batches = micro;
    o.plan.threads = 1;
    need(hd_lm_config_parse(&c, text, sizeof text - 1, "config", &e), &e);
    hd_lm_options lm = {.mode = HD_LM_TRAIN, .compute = HD_F32, .param = HD_F32, .tokens = 24, .sequence = 12};
    if (*parallel) need(hd_parallel_parse(parallel, &o.parallel, &e), &e);
    hd_graph *g = hd_lm_graph(&c, &lm, &e);
    need(g ? 0 : -1, &e);
    need(hd_programs_make(&r->programs, g, true, &o, &e), &e);
    need(hd_cluster_find("cpu:8", &r->cluster, &e), &e);
    need(hd_simulate((const hd_program *const *)r->programs.stage, r->programs.n, &r->cluster, &(hd_sim_options){.trace = &r->trace},
                     &r->sim, &e), &e);
}

static void close_rig(plan_rig *r)
{
    hd_trace_free(&r->trace);
    hd_sim_result_free(&r->sim);
    hd_cluster_free(&r->cluster);
    hd_programs_free(&r->programs);
}

static hd_report report_of(const plan_rig *r)
{
    return (hd_report){.title = "A <script>alert(1)</script> & \"plan\"", .command = "heddle plan", .plan = &r->programs.plan,
                       .programs = (const hd_program *const *)r->programs.stage,
                       .n_programs = r->programs.n, .cluster = &r->cluster, .sim = &r->sim, .predicted = &r->trace, .tokens = 96};
}

/* Memory over time stays within what placement found, comes near it, and ends as it began. */
static void test_memory(void **state)
{
    (void)state;
    static const char *const plans[] = {"", "pp=2", "pp=2,schedule=zero-bubble", "pp=2,schedule=gpipe", "pp=2,v=2", "pp=2,slices=3",
                                        "dp=2,zero=3", "dp=2,pp=2,zero=2", "tp=2,pp=2,recompute=full", "dp=2|tp=2"};
    for (int i = 0; i < COUNT(plans); i++) {
        plan_rig r;
        open_rig(&r, plans[i], 4);
        for (int s = 0; s < r.programs.n; s++) {
            hd_error e = {0};
            hd_memory m;
            int64_t most = 0, last = 0;
            const hd_program *p = r.programs.stage[s];
            int rank = hd_program_first_rank(p);
            need(hd_program_memory(p, &m, &e), &e);
            for (int64_t k = 0; k < r.trace.n_memory; k++) {
                if (r.trace.memory[k].rank != rank) continue;
                most = r.trace.memory[k].bytes > most ? r.trace.memory[k].bytes : most;
                last = r.trace.memory[k].bytes;
            }
            if (most > m.store + p->arena_bound || most < (m.store + p->arena_bound) * 3 / 4 || last > most || last < m.store)
                fail_msg("%s, stage %d: %lld at most and %lld at the end, of %lld + %lld", plans[i], s, (long long)most, (long long)last,
                         (long long)m.store, (long long)p->arena_bound);
        }
        close_rig(&r);
    }
}

/* What the page draws. */
static json_t *data_of(const char *path)
{
    static const char begin[] = "<script type=\"application/json\" id=\"data\">";
    hd_error e = {0};
    hd_str s;
    hd_str_init(&s);
    need(hd_file_read(&s, path, 0, &e), &e);
    char *at = strstr(s.data, begin), *end = at ? strstr(at, "</script>") : NULL;
    assert_non_null(end);
    assert_null(strstr(s.data, "@DATA@"));
    assert_null(strstr(s.data, "<script>alert"));
    json_t *j = hd_json_parse(at + sizeof begin - 1, (size_t)(end - at) - sizeof begin + 1, "data", &e);
    need(j ? 0 : -1, &e);
    hd_str_free(&s);
    return j;
}

static void test_html(void **state)
{
    hd_error e = {0};
    plan_rig r;
    open_rig(&r, "pp=2,dp=2", 3);
    hd_report report = report_of(&r);
    report.measured = &r.trace;
    need(hd_report_html(&report, file_in(state, "r.html"), &e), &e);
    json_t *j = data_of(file_in(state, "r.html"));
    assert_string_equal(json_string_value(json_object_get(j, "title")), report.title);
    json_t *predicted = json_object_get(j, "predicted"), *row = json_array_get(json_object_get(predicted, "rows"), 0);
    assert_int_equal(json_array_size(json_object_get(row, "calls")), 6 * r.programs.stage[0]->n_calls);
    assert_true(json_array_size(json_object_get(row, "events")) > 100);
    assert_int_equal(json_array_size(json_object_get(row, "memory")), 700);
    assert_int_equal(json_array_size(json_object_get(j, "stages")), 2);
    assert_true(json_array_size(json_object_get(json_object_get(j, "measured"), "rows")) > 0);
    double step = json_number_value(json_object_get(j, "step")), sum = 0;
    json_t *parts = json_object_get(json_array_get(json_object_get(j, "ranks"), 0), "parts");
    for (int k = 0; k < HD_SIM_PARTS; k++) sum += json_number_value(json_array_get(parts, (size_t)k));
    if (!(fabs(sum - step) < 1e-4 * step)) fail_msg("parts add up to %g, the step is %g", sum, step);
    json_decref(j);
    close_rig(&r);
}

/* 64 stages of 1,026 calls: the trillion-parameter plan's. */
static void test_html_size(void **state)
{
    enum { STAGES = 64, CALLS = 1026 };
    hd_error e = {0};
    plan_rig r;
    hd_trace big = {.by_call = true, .seconds = 100, .steps = 1};
    open_rig(&r, "pp=2", 2);
    for (int s = 0; s < STAGES; s++)
        for (int i = 0; i < CALLS; i++)
            for (int k = 0; k < 3; k++) {
                double start = i * 0.097 + s * 1e-3 + k * 0.03;
                hd_trace_event x = {s, 0, (hd_event_kind)(k * 2), "contract", "a", i % 2 ? "backward" : "forward", 0, i / 2, 0, k, start,
                                    start + 0.02, 0};
                need(hd_trace_add(&big, &x, &e), &e);
            }
    hd_report report = report_of(&r);
    report.predicted = &big;
    need(hd_report_html(&report, file_in(state, "big.html"), &e), &e);
    assert_in_range(hd_file_size(file_in(state, "big.html")), 500000, 10000000);
    json_t *j = data_of(file_in(state, "big.html")), *rows = json_object_get(json_object_get(j, "predicted"), "rows");
    assert_int_equal(json_array_size(rows), STAGES);
    assert_int_equal(json_array_size(json_object_get(json_array_get(rows, 63), "calls")), 6 * CALLS);
    json_decref(j);
    hd_trace_free(&big);
    close_rig(&r);
}

static void test_out_of_memory(void **state)
{
    hd_error e = {0};
    plan_rig r;
    hd_trace t = {0}, back;
    int failures = 0;
    open_rig(&r, "pp=2", 2);
    hd_report report = report_of(&r);
    report.measured = &r.trace;
    fill_trace(&t, false);
    for (uint64_t n = 1;; n++) {
        hd_error err = {0};
        uint64_t before = hd_mem_failed();
        hd_mem_fail_at(n);
        int rc = hd_report_html(&report, file_in(state, "oom.html"), &err);
        if (!rc) rc = hd_chrome_write(file_in(state, "oom.json"), &t, &two_by_two, false, &err);
        if (!rc) rc = hd_chrome_read(file_in(state, "oom.json"), &back, &err);
        if (!rc) hd_trace_free(&back);
        hd_mem_fail_at(0);
        if (hd_mem_failed() == before) break;
        if (rc != HD_ENOMEM) fail_msg("allocation %d of them failed, and %d came back: %s", (int)n, rc, err.message);
        failures++;
    }
    assert_true(failures > 30);
    need(hd_report_html(&report, file_in(state, "oom.html"), &e), &e);
    hd_trace_free(&t);
    close_rig(&r);
}

static int make_dir(void **state)
{
    static char dir[] = "/tmp/heddle-report-XXXXXX";
    *state = mkdtemp(dir);
    return *state ? 0 : -1;
}

static int remove_dir(void **state)
{
    return hd_remove_tree(*state, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_calls),  cmocka_unit_test(test_chrome), cmocka_unit_test(test_chrome_nests),
                                       cmocka_unit_test(test_one_per_stage),
                                       cmocka_unit_test(test_chrome_refuses), cmocka_unit_test(test_parts), cmocka_unit_test(test_memory),
                                           cmocka_unit_test(test_html),
                                       cmocka_unit_test(test_html_size), cmocka_unit_test(test_out_of_memory)};
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
