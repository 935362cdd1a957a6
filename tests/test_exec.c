/* The executor: back ends agree, threads and micro-batches change nothing, bounded extents, no allocation, finding NaNs. */
#include "small_graphs.h"

enum { TOKENS = 24, STEPS = 3 };

static void train(rig *r, const char *backend, int micro, int threads, double clip, float *loss)
{
    hd_graph *g = small_training(TOKENS / micro, false, clip);
    rig_open(r, g, backend, micro, threads);
    hd_graph_free(g);
    for (int i = 0; i < STEPS; i++) loss[i] = train_step(r, TOKENS / micro, micro, i + 1);
}

static void compare_training(const char *b1, int micro1, int threads1, const char *b2, int micro2, int threads2, double clip, double tolerance)
{
    rig a, b;
    float x[STEPS], y[STEPS];
    train(&a, b1, micro1, threads1, clip, x);
    train(&b, b2, micro2, threads2, clip, y);
    for (int i = 0; i < STEPS; i++)
        if (!(fabs(x[i] - y[i]) <= tolerance * (1 + fabs(x[i])))) fail_msg("loss of step %d: %.9g and %.9g", i, x[i], y[i]);
    double d = store_distance(a.store, b.store);
    if (!(d <= tolerance)) fail_msg("parameters differ by %g", d);
    rig_close(&a, false);
    rig_close(&b, false);
}

static void test_training_learns(void **state)
{
    (void)state;
    rig r;
    float loss[STEPS];
    train(&r, "cpu", 1, 1, 0, loss);
    float first = 0, last = 0;
    for (int i = 0; i < 40; i++) {
        last = train_step(&r, TOKENS, 1, 4); /* the same data again and again */
        if (i == 0) first = last;
    }
    if (!(last < 0.5 * first)) fail_msg("loss went from %g to %g", first, last);
    rig_close(&r, false);
}

static void test_cpu_is_reference(void **state)
{
    (void)state;
    compare_training("reference", 1, 1, "cpu", 1, 1, 0, 2e-4);
    compare_training("reference", 1, 1, "cpu", 1, 1, 0.5, 2e-4);
}

static void test_micro_batches_are_one_batch(void **state)
{
    (void)state;
    compare_training("reference", 1, 1, "reference", 4, 1, 0, 2e-4);
    compare_training("reference", 1, 1, "reference", 3, 1, 0.5, 2e-4);
    compare_training("cpu", 1, 1, "cpu", 2, 2, 0.5, 2e-4);
}

static void test_threads_are_bitwise_equal(void **state)
{
    (void)state;
    for (int micro = 1; micro <= 2; micro++)
        for (int threads = 2; threads <= 3; threads++) compare_training("cpu", micro, 1, "cpu", micro, threads, 0.5, 0);
}

static void test_null_runs(void **state)
{
    (void)state;
    rig r;
    float loss[STEPS];
    train(&r, "null", 4, 2, 1, loss);
    rig_close(&r, false);
}

static void test_nothing_is_allocated(void **state)
{
    (void)state;
    rig r;
    float loss[STEPS];
    train(&r, "cpu", 2, 2, 1, loss);
    uint64_t before = hd_mem_count();
    for (int i = 0; i < 3; i++) train_step(&r, TOKENS / 2, 2, i + 4);
    assert_int_equal(hd_mem_count() - before, 0);
    rig_close(&r, false);
}

/* ---- bounded extents ---- */

static float call_with(rig *r, int64_t tokens)
{
    hd_call c = hd_program_call(r->program, hd_program_segment(r->program, HD_SEGMENT_FORWARD));
    fill_tokens(r->exec, 0, tokens, 9);
    set_scalar(r->exec, "weight", 1);
    c.binding[0] = tokens;
    assert_int_equal(hd_exec_call(r->exec, &c, &r->err), 0);
    return get_scalar(r->exec, "loss");
}

static void test_bounded_calls(void **state)
{
    (void)state;
    rig r;
    hd_graph *g = small_model(TOKENS, true);
    rig_open(&r, g, "cpu", 1, 2);
    hd_graph_free(g);
    static const int64_t extents[] = {TOKENS, 1, 7, 0, 13, TOKENS, 2};
    for (size_t i = 0; i < sizeof extents / sizeof extents[0]; i++) {
        rig exact;
        hd_graph *same = small_model(extents[i], false);
        rig_open(&exact, same, "cpu", 1, 1);
        hd_graph_free(same);
        fill_tokens(exact.exec, 0, extents[i], 9);
        set_scalar(exact.exec, "weight", 1);
        assert_int_equal(hd_exec_step(exact.exec, NULL, &exact.err), 0);
        float want = get_scalar(exact.exec, "loss"), got = call_with(&r, extents[i]);
        if (!(fabsf(want - got) <= 1e-5f * (1 + fabsf(want)))) fail_msg("%d tokens: %g instead of %g", (int)extents[i], got, want);
        rig_close(&exact, false);
    }
    hd_call c = hd_program_call(r.program, 0);
    c.binding[0] = TOKENS + 1;
    assert_int_equal(hd_exec_call(r.exec, &c, &r.err), HD_EINVAL);
    rig_close(&r, false);
}

/* ---- packed constants ---- */

static void test_packed_constants(void **state)
{
    (void)state;
    hd_graph *g = small_model(TOKENS, false);
    for (size_t v = 0; v < g->n_values; v++) g->values[v].trainable = false;
    rig plain, packed;
    rig_open(&plain, g, "cpu", 1, 1);
    rig_open_store(&packed, g, "cpu", 1, 2, true, plain.store);
    hd_graph_free(g);
    rig *both[] = {&plain, &packed};
    float loss[2];
    for (int i = 0; i < 2; i++) {
        fill_tokens(both[i]->exec, 0, TOKENS, 9);
        set_scalar(both[i]->exec, "weight", 1);
        assert_int_equal(hd_exec_step(both[i]->exec, NULL, &both[i]->err), 0);
        loss[i] = get_scalar(both[i]->exec, "loss");
    }
    assert_true(hd_store_find(plain.store, "layers.0.up.packed(td,dh->th)") != NULL || hd_isa_detect() == HD_ISA_PORTABLE);
    if (!(loss[0] == loss[1])) fail_msg("packed: %.9g instead of %.9g", loss[1], loss[0]);
    if (hd_store_find(plain.store, "layers.0.up.packed(td,dh->th)")) assert_int_equal(hd_program_find(packed.program, "layers.0.up"), -1);
    assert_true(hd_program_find(packed.program, "embed") >= 0); /* read by rows too */
    rig_close(&packed, true);
    rig_close(&plain, false);
}

/* ---- finding what is not finite ---- */

static void test_find_nonfinite(void **state)
{
    (void)state;
    char path[200];
    rig r;
    float loss[STEPS];
    feeder f = {TOKENS / 2, 1};
    hd_exec_hooks hooks = {.arg = &f, .before = feed_micro};
    train(&r, "cpu", 2, 2, 0, loss);
    hd_store_tensor *up = hd_store_find(r.store, "layers.1.up"), *gate = hd_store_find(r.store, "layers.1.gate");
    float before = *(float *)up->data;
    assert_int_equal(hd_exec_find_nonfinite(r.exec, &hooks, path, sizeof path, &r.err), 0);
    assert_string_equal(path, "");
    assert_true(*(float *)up->data == before);
    for (int64_t i = 0; i < WIDTH * HIDDEN; i++) ((float *)gate->data)[i] = 3e38f;
    assert_int_equal(hd_exec_find_nonfinite(r.exec, &hooks, path, sizeof path, &r.err), 0);
    assert_string_equal(path, "layers.1.v");
    ((float *)gate->data)[5] = NAN;
    assert_int_equal(hd_exec_find_nonfinite(r.exec, &hooks, path, sizeof path, &r.err), 0);
    assert_string_equal(path, "layers.1.gate");
    /* The step itself refuses the update. */
    before = *(float *)up->data;
    train_step(&r, TOKENS / 2, 2, 9);
    assert_true(get_scalar(r.exec, "ok") == 0);
    assert_true(*(float *)up->data == before);
    rig_close(&r, false);
}

/* ---- stopping, watching ---- */

static void test_abort(void **state)
{
    (void)state;
    rig r;
    float loss[STEPS];
    train(&r, "cpu", 1, 2, 0, loss);
    hd_exec_abort(r.exec);
    assert_int_equal(hd_exec_step(r.exec, NULL, &r.err), HD_EINTR);
    r.err = (hd_error){0};
    assert_int_equal(hd_exec_step(r.exec, NULL, &r.err), 0);
    rig_close(&r, false);
}

/* A back end whose every kernel asks the executor to stop. */
static struct { hd_exec *exec; int runs; } stopper;

static void run_stopping(const hd_kernel_args *a)
{
    if (a->tid != 0) return;
    stopper.runs++;
    if (stopper.exec) hd_exec_abort(stopper.exec);
}

static hd_kernel find_stopping(const hd_backend *b, const hd_op *op, const hd_kernel_args *a)
{
    (void)b, (void)a;
    return (hd_kernel){.op = op->name, .run = run_stopping};
}

static void test_abort_inside_a_call(void **state)
{
    (void)state;
    rig r;
    hd_graph *g = small_training(4, false, 0);
    rig_open(&r, g, "null", 1, 2);
    hd_graph_free(g);
    hd_exec_free(r.exec);
    r.backend.find = find_stopping;
    stopper.exec = NULL;
    r.exec = hd_exec_new(r.program, r.store, &r.backend, r.team, &r.err);
    assert_int_equal(hd_exec_step(r.exec, NULL, &r.err), 0);
    int all = stopper.runs;
    stopper.exec = r.exec;
    stopper.runs = 0;
    assert_int_equal(hd_exec_step(r.exec, NULL, &r.err), HD_EINTR);
    assert_in_range(stopper.runs, 1, all / 4);
    rig_close(&r, false);
}

static void test_trace_and_profile(void **state)
{
    (void)state;
    rig r;
    float loss[STEPS];
    hd_str text;
    hd_str_init(&text);
    train(&r, "cpu", 1, 2, 0, loss);
    hd_trace t = {0};
    assert_int_equal(hd_exec_trace(r.exec, 2, NULL), 0);
    assert_int_equal(hd_exec_profile(r.exec, true, NULL), 0);
    for (int step = 1; step < 4; step++) {
        assert_int_equal(hd_exec_trace_full(r.exec), step > 2);
        train_step(&r, TOKENS, 1, step);
    }
    double zero = hd_exec_trace_begin(r.exec);
    assert_true(zero > 0);
    assert_int_equal(hd_exec_trace_take(r.exec, zero, &t, NULL), 0);
    assert_int_equal(t.steps, 2);
    assert_int_equal(t.n_events, 2 * hd_program_events(hd_exec_program(r.exec)));
    for (int64_t i = 0; i < t.n_events; i++) {
        assert_true(t.events[i].end >= t.events[i].start && t.events[i].start >= (i ? t.events[i - 1].end : 0));
        assert_true(t.events[i].end <= t.seconds);
    }
    assert_int_equal(t.n_calls, 2 * hd_exec_program(r.exec)->n_calls);
    assert_string_equal(t.events[0].segment, t.events[t.n_events / 2].segment);
    assert_string_equal(t.events[0].path, t.events[t.n_events / 2].path);
    hd_trace_free(&t);
    hd_exec_profile_print(r.exec, &text);
    assert_non_null(strstr(text.data, "adamw"));
    assert_non_null(strstr(text.data, "contract"));
    hd_str_free(&text);
    rig_close(&r, false);
}

/* ---- the Store ---- */

static void test_store(void **state)
{
    (void)state;
    hd_error err = {0};
    hd_graph *g = small_training(TOKENS, false, 0), *other = hd_graph_new();
    hd_store *a = hd_store_new(g, 5, &err), *b = hd_store_new(g, 5, &err), *c = hd_store_new(g, 6, &err);
    assert_true(store_distance(a, b) == 0);
    assert_true(store_distance(a, c) > 0.1);
    hd_store_tensor *t = hd_store_find(a, "embed");
    double sum = 0, squares = 0;
    for (int i = 0; i < VOCAB * WIDTH; i++) {
        double v = ((float *)t->data)[i];
        sum += v, squares += v * v;
    }
    double deviation = sqrt(squares / (VOCAB * WIDTH));
    if (!(fabs(sum / (VOCAB * WIDTH)) < 0.06 && fabs(deviation - 0.3) < 0.04)) fail_msg("deviation %g", deviation);
    hd_graph_param(other, "embed", hd_type_of(HD_F32, 1, (int64_t[]){7}), (hd_init){HD_INIT_NORMAL, 1}, false, false);
    assert_int_equal(hd_store_add_graph(a, other, 1, &err), HD_EINVAL);
    assert_non_null(strstr(err.message, "embed is f32[23, 12] in the model's state, but the program wants f32[7]"));
    hd_store_free(a);
    hd_store_free(b);
    hd_store_free(c);
    hd_graph_free(g);
    hd_graph_free(other);
}

static void test_store_drops(void **state)
{
    (void)state;
    hd_error err = {0};
    hd_store *s = hd_store_new(NULL, 0, &err);
    char name[16];
    for (int i = 0; i < 40; i++) {
        hd_type t = hd_type_of(HD_F32, 1, (int64_t[]){i % 3 ? 100 * i : 300000 + i});
        hd_store_tensor *x;
        snprintf(name, sizeof name, "t%d", i);
        assert_int_equal(hd_store_add(s, name, &t, HD_PLAIN, HD_PARAM, 0, &x, &err), 0);
        assert_true((uintptr_t)x->data % 64 == 0);
        for (int64_t k = 0; k < t.shape.dim[0]; k++) ((float *)x->data)[k] = (float)i;
    }
    for (int i = 0; i < 40; i += 2) {
        snprintf(name, sizeof name, "t%d", i);
        hd_store_drop(s, name);
    }
    assert_int_equal(s->n_tensors, 20);
    for (int i = 0; i < 40; i++) {
        snprintf(name, sizeof name, "t%d", i);
        hd_store_tensor *x = hd_store_find(s, name);
        assert_true((x != NULL) == (i % 2 == 1));
        for (int64_t k = 0; x && k < x->type.shape.dim[0]; k++) assert_true(((float *)x->data)[k] == (float)i);
    }
    hd_store_free(s);
}

/* What is dropped at once leaves its room, in zeros, to what comes next. */
static void test_store_reuses(void **state)
{
    (void)state;
    hd_error err = {0};
    static const int64_t counts[] = {5, 1000, 1024, 1025, 500000, 700000, 3000000, 1, 2999999};
    hd_store *s = hd_store_new(NULL, 0, &err);
    hd_store_tensor *kept, *x;
    char *first = NULL;
    hd_type t = hd_type_of(HD_F32, 1, (int64_t[]){77});
    assert_int_equal(hd_store_add(s, "kept", &t, HD_PLAIN, HD_PARAM, 0, &kept, &err), 0);
    for (int k = 0; k < 77; k++) ((float *)kept->data)[k] = 3;
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        t = hd_type_of(HD_F32, 1, &counts[i]);
        assert_int_equal(hd_store_add(s, "x", &t, HD_PLAIN, HD_PARAM, 0, &x, &err), 0);
        for (int64_t k = 0; k < counts[i]; k++) assert_true(((float *)x->data)[k] == 0);
        if (counts[i] == 3000000) first = x->data;
        if (first) assert_ptr_equal(x->data, first);
        memset(x->data, 0xff, (size_t)x->bytes);
        hd_store_drop(s, "x");
    }
    for (int k = 0; k < 77; k++) assert_true(((float *)kept->data)[k] == 3);
    hd_store_free(s);
}

/* Every allocation of lowering and setting up fails once: a clean error each time. */
static void test_out_of_memory(void **state)
{
    (void)state;
    hd_graph *g = small_training(4, false, 1);
    hd_backend backend;
    hd_backend_open(&backend, "reference", NULL);
    hd_team *team = hd_team_new(1, false, NULL);
    uint64_t failures = hd_mem_failed();
    for (uint64_t nth = 1; nth < 2000; nth++) {
        hd_error err = {0};
        hd_program *p = NULL;
        hd_plan plan = hd_plan_default();
        plan.threads = 1;
        plan.micro_batches = 2;
        hd_mem_fail_at(nth);
        hd_store *store = hd_store_new(g, 1, &err);
        int rc = store ? hd_lower(g, &plan, &backend.target, &p, &err) : err.code;
        hd_exec *e = rc ? NULL : hd_exec_new(p, store, &backend, team, &err);
        hd_mem_fail_at(0);
        assert_int_equal(err.code, e ? 0 : HD_ENOMEM);
        hd_exec_free(e);
        hd_program_free(p);
        hd_store_free(store);
        if (e) break;
    }
    assert_true(hd_mem_failed() - failures > 20);
    hd_team_free(team);
    hd_graph_free(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_training_learns),
        cmocka_unit_test(test_cpu_is_reference),
        cmocka_unit_test(test_micro_batches_are_one_batch),
        cmocka_unit_test(test_threads_are_bitwise_equal),
        cmocka_unit_test(test_null_runs),
        cmocka_unit_test(test_nothing_is_allocated),
        cmocka_unit_test(test_bounded_calls),
        cmocka_unit_test(test_packed_constants),
        cmocka_unit_test(test_find_nonfinite),
        cmocka_unit_test(test_abort),
        cmocka_unit_test(test_abort_inside_a_call),
        cmocka_unit_test(test_trace_and_profile),
        cmocka_unit_test(test_store),
        cmocka_unit_test(test_store_drops), cmocka_unit_test(test_store_reuses),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
