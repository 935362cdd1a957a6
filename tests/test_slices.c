/* test_slices.c: sequences cut into slices of tokens: the same loss and gradients, calls in the right order, programs of all stages that get to the end
 * of a step together, and what cannot be cut. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include "graph/op.h"
#include "models/lm.h"
#include "train/session.h"

enum { MOST_STAGES = 4 };

typedef struct job {
    hd_architecture arch;
    int64_t batch, sequence, micro;
    double dropout;
} job;

/* ---- a small model ---- */

static hd_graph *make_graph(const job *j, hd_lm_mode mode)
{
    hd_lm_config c;
    hd_error err = {0};
    hd_lm_config_preset(&c, j->arch);
    c.layers = 4, c.width = 18, c.heads = 3, c.kv_heads = j->arch == HD_ARCH_GPT2 ? 3 : 1, c.mlp_width = 29, c.vocab = 37;
    c.max_positions = 64, c.init_std = 0.1;
    c.embd_dropout = c.resid_dropout = j->dropout;
    assert_int_equal(hd_lm_config_check(&c, "test", &err), 0);
    hd_lm_options o = {.mode = mode, .compute = HD_F32, .param = HD_F32, .tokens = j->batch * j->sequence, .sequence = j->sequence, .logits = mode == HD_LM_EVAL};
    hd_graph *g = hd_lm_graph(&c, &o, &err);
    assert_non_null(g);
    return g;
}

static hd_session_options options(const job *j, const char *parallel)
{
    hd_session_options o = {.plan = hd_plan_default(), .seed = 3, .sequence = j->sequence};
    hd_error err = {0};
    o.plan.micro_batches = j->micro;
    o.plan.threads = 1;
    o.step = (hd_step_options){.optimizer = HD_SGD, .momentum = 0.9, .clip = 0};
    if (*parallel && hd_parallel_parse(parallel, &o.parallel, &err)) fail_msg("%s", err.message);
    return o;
}

static void open_session(hd_session *s, const job *j, const char *parallel, int rank)
{
    hd_session_options o = options(j, parallel);
    hd_error err = {0};
    o.rank.rank = rank;
    if (hd_session_init(s, make_graph(j, HD_LM_TRAIN), NULL, &o, &err)) fail_msg("%s: %s", parallel, err.message);
}

/* ---- one step on one rank ---- */

static int fill(void *arg, hd_exec *e, hd_segment_kind kind, hd_call *call, hd_error *err)
{
    static const char *const names[] = {"tokens", "targets", "positions", "segments"};
    const job *j = arg;
    int64_t n = j->batch * j->sequence;
    int32_t data[4][128];
    int64_t samples[128];
    if (kind != HD_SEGMENT_FORWARD || call->slice) return 0;
    for (int64_t i = 0; i < n; i++) {
        data[0][i] = (int32_t)((i * 7 + call->micro * 5 + i * i) % 37);
        data[1][i] = i % 6 == 4 ? -1 : (int32_t)((i * 11 + call->micro) % 37);
        data[2][i] = (int32_t)(i % j->sequence);
        data[3][i] = (int32_t)(i / j->sequence);
        samples[i] = call->micro * j->batch + i / j->sequence;
    }
    for (int k = 0; k < 4; k++)
        if (hd_exec_put(e, names[k], data[k], err)) return err->code;
    return hd_exec_put(e, "samples", samples, err);
}

static double run_step(hd_session *s, const job *j, const char *parallel)
{
    hd_session_options o = options(j, parallel);
    hd_error err = {0};
    float lr = 0.01f, step = 1, inverse = 0.02f;
    int64_t key[2] = {5, 1};
    hd_exec_hooks hooks = {.arg = (void *)j, .before = fill};
    hd_tensor loss;
    assert_int_equal(hd_session_start(s, &o, &err), 0);
    hd_exec *e = s->exec[HD_TRAIN_PROGRAM];
    hd_exec_put(e, "lr", &lr, &err);
    hd_exec_put(e, "step", &step, &err);
    hd_exec_put(e, "inv_divisor", &inverse, &err);
    hd_exec_put(e, "key", key, &err);
    if (hd_exec_step(e, &hooks, &err)) fail_msg("%s", err.message);
    assert_int_equal(hd_exec_output(e, "loss", &loss, &err), 0);
    return hd_load_f64(loss.data, loss.dtype, 0);
}

static void compare_stores(const hd_store *a, const hd_store *b)
{
    int compared = 0;
    for (size_t i = 0; i < b->n_tensors; i++) {
        const hd_store_tensor *y = b->tensors[i], *x = hd_store_find(a, y->path);
        double apart = 0, norm = 0;
        assert_non_null(x);
        if (strncmp(y->path, "momentum.", 9)) continue;
        for (int64_t k = 0; k < hd_shape_count(&y->type.shape); k++) {
            double v = ((const float *)y->data)[k], d = ((const float *)x->data)[k] - v;
            apart += d * d, norm += v * v;
        }
        if (!(sqrt(apart) <= 2e-6 * fmax(sqrt(norm), 1e-3))) fail_msg("%s: %g apart, norm %g", y->path, sqrt(apart), sqrt(norm));
        compared++;
    }
    assert_true(compared > 20);
}

static void check_same(const job *j, const char *parallel)
{
    hd_session whole, cut;
    open_session(&whole, j, "", 0);
    open_session(&cut, j, parallel, 0);
    double a = run_step(&whole, j, ""), b = run_step(&cut, j, parallel);
    if (!(fabs(a - b) <= 1e-6 * fabs(a))) fail_msg("%s: loss %.9g, not %.9g", parallel, b, a);
    compare_stores(cut.store, whole.store);
    hd_session_free(&whole);
    hd_session_free(&cut);
}

static void test_same_gradients(void **state)
{
    (void)state;
    check_same(&(job){HD_ARCH_GPT2, 1, 13, 1, 0}, "slices=2");
    check_same(&(job){HD_ARCH_GPT2, 3, 13, 2, 0.2}, "slices=5:7:1");
    check_same(&(job){HD_ARCH_LLAMA, 2, 11, 3, 0}, "slices=11");
    check_same(&(job){HD_ARCH_LLAMA, 1, 17, 2, 0}, "slices=1:15:1");
}

/* ---- the order of calls ---- */

static void test_calls(void **state)
{
    (void)state;
    hd_session s;
    open_session(&s, &(job){HD_ARCH_GPT2, 1, 12, 2, 0}, "slices=3", 0);
    const hd_program *p = s.program[HD_TRAIN_PROGRAM];
    int forward = 0, backward = 0;
    for (int i = 0; i < p->n_calls; i++) {
        const hd_call *c = &p->calls[i];
        hd_segment_kind kind = p->segments[c->segment].kind;
        if (kind == HD_SEGMENT_FORWARD) assert_int_equal(c->slice, forward++ % 3);
        if (kind == HD_SEGMENT_BACKWARD) assert_int_equal(c->slice, 2 - backward++ % 3);
        if (kind == HD_SEGMENT_FORWARD || kind == HD_SEGMENT_BACKWARD) assert_int_equal(c->slice, p->segments[c->segment].chunk);
    }
    assert_int_equal(forward, 6);
    assert_int_equal(backward, 6);
    hd_session_free(&s);
}

/* Nodes of a slice are in that slice's segments: nothing is put off to a later one. */
static void test_slices_apart(void **state)
{
    (void)state;
    hd_session s;
    open_session(&s, &(job){HD_ARCH_LLAMA, 1, 12, 1, 0}, "slices=3", 0);
    const hd_program *p = s.program[HD_TRAIN_PROGRAM];
    int found[2] = {0};
    for (int g = 0; g < p->n_segments; g++)
        for (int i = 0; i < p->segments[g].n_instrs; i++) {
            const hd_instr *x = &p->segments[g].instrs[i];
            bool grad = x->op && !strcmp(x->op->name, "attention_grad"), attention = x->op && !strcmp(x->op->name, "attention");
            if (!grad && !attention) continue;
            assert_int_equal(p->segments[g].kind, grad ? HD_SEGMENT_BACKWARD : HD_SEGMENT_FORWARD);
            assert_int_equal(atoi(strchr(x->path, '@') + 1), p->segments[g].chunk);
            assert_int_equal(p->buffers[x->in[grad ? 2 : 1]].type.shape.dim[0], 4 * (p->segments[g].chunk + 1)); /* its keys */
            found[grad]++;
        }
    assert_int_equal(found[0], 12);
    assert_int_equal(found[1], 12);
    hd_session_free(&s);
}

/* ---- stages ---- */

static void check_world(const job *j, const char *parallel, int stages)
{
    hd_session s[MOST_STAGES];
    const hd_program *programs[MOST_STAGES] = {0};
    hd_error err = {0};
    for (int i = 0; i < stages; i++) {
        open_session(&s[i], j, parallel, i);
        programs[i] = s[i].program[HD_TRAIN_PROGRAM];
        if (hd_program_verify(programs[i], &err)) fail_msg("%s: stage %d: %s", parallel, i, err.message);
    }
    if (hd_program_verify_world(programs, stages, &err)) fail_msg("%s: %s", parallel, err.message);
    for (int i = 0; i < stages; i++) {
        hd_str text, again;
        hd_program *back = NULL;
        hd_str_init(&text);
        hd_str_init(&again);
        hd_program_dump(programs[i], &text);
        if (hd_program_parse(text.data, text.len, "text", &back, &err)) fail_msg("%s", err.message);
        hd_program_dump(back, &again);
        assert_string_equal(text.data, again.data);
        hd_program_free(back);
        hd_str_free(&text);
        hd_str_free(&again);
        hd_session_free(&s[i]);
    }
}

static void test_stages(void **state)
{
    (void)state;
    check_world(&(job){HD_ARCH_GPT2, 1, 13, 1, 0}, "pp=2,slices=4", 2);
    check_world(&(job){HD_ARCH_GPT2, 2, 13, 3, 0.1}, "pp=3,slices=6:4:3", 3);
    check_world(&(job){HD_ARCH_LLAMA, 2, 13, 4, 0}, "pp=4,slices=3,schedule=gpipe,recompute=full", 4);
    check_world(&(job){HD_ARCH_LLAMA, 2, 13, 4, 0}, "pp=2,v=2,slices=3", 2);
    check_world(&(job){HD_ARCH_GPT2, 1, 13, 5, 0}, "pp=3,slices=2,schedule=zero-bubble", 3);
}

/* ---- names, texts, refusals ---- */

static void test_names(void **state)
{
    (void)state;
    assert_true(hd_path_match("layers.*.norm1", "layers.3.norm1@12"));
    assert_true(hd_path_match("layers.*.norm1.2", "layers.3.norm1@12.2"));
    assert_true(hd_path_match("layers.*.norm1@*", "layers.3.norm1@12"));
    assert_false(hd_path_match("layers.*.norm1", "layers.3.norm1@12.2"));
    assert_false(hd_path_match("tokens", "slice.tokens@1"));
}

static void test_plan_text(void **state)
{
    (void)state;
    hd_plan p = hd_plan_default(), q;
    hd_parallel by_hand;
    hd_error err = {0};
    hd_str text;
    assert_int_equal(hd_parallel_parse("slices=5:7:1", &by_hand, &err), 0);
    assert_int_equal(hd_parallel_slices(&by_hand, 13, &p, &err), 0);
    hd_str_init(&text);
    assert_int_equal(hd_plan_print(&p, &text), 0);
    if (hd_plan_parse(text.data, text.len, "plan", &q, &err)) fail_msg("%s", err.message);
    assert_int_equal(q.n_slices, 3);
    assert_int_equal(q.slices[1], 7);
    hd_str_free(&text);
    assert_int_equal(hd_parallel_slices(&by_hand, 14, &p, &err), HD_EINVAL);
    static const char *const bad[] = {"slices=", "slices=0", "slices=3:0", "slices=a", "slices=3:", "slices=65", "slices=2,slices=2"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) assert_int_equal(hd_parallel_parse(bad[i], &by_hand, &err), HD_EINVAL);
}

static void check_refused(hd_graph *g, const int64_t *length, int n, const char *says)
{
    assert_int_not_equal(hd_pass_slices(g, length, n), 0);
    if (!strstr(g->err.message, says)) fail_msg("\"%s\" doesn't say \"%s\"", g->err.message, says);
    hd_graph_free(g);
}

static void test_refusals(void **state)
{
    (void)state;
    job j = {HD_ARCH_GPT2, 2, 12, 1, 0};
    check_refused(make_graph(&j, HD_LM_TRAIN), (int64_t[]){5, 6}, 2, "don't make up sequences");
    check_refused(make_graph(&j, HD_LM_TRAIN), (int64_t[]){12, 0}, 2, "has 0 tokens");
    check_refused(make_graph(&j, HD_LM_TRAIN), (int64_t[]){3, 3}, 2, "isn't known to keep to its sequence");
    check_refused(make_graph(&j, HD_LM_EVAL), (int64_t[]){6, 6}, 2, "the output logits has a row for each");
    hd_graph *g = hd_graph_new();
    hd_graph_input(g, "x", hd_type_of(HD_F32, 1, (int64_t[]){4}), HD_TIME_SPLIT);
    check_refused(g, (int64_t[]){2, 2}, 2, "need a language model");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_gradients), cmocka_unit_test(test_calls), cmocka_unit_test(test_slices_apart), cmocka_unit_test(test_stages),
        cmocka_unit_test(test_names), cmocka_unit_test(test_plan_text), cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
