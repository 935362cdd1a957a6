/* Network files: what is wrong in one is said in one line; the examples build, and their training steps verify; the data they train on. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/mem.h"
#include "data/dataset.h"
#include "data/metrics.h"
#include "data/synthetic.h"
#include "graph/op.h"
#include "models/network.h"
#include "train/step.h"

#define EXAMPLES TEST_SOURCE_DIR "/examples/"

static const char *const examples[] = {"mlp.json", "convnet.json", "two_tower.json"};
enum { N_EXAMPLES = sizeof examples / sizeof *examples };

static const hd_step_options adamw = {.optimizer = HD_ADAMW, .beta1 = .9, .beta2 = .99, .eps = 1e-8, .weight_decay = .1, .clip = 1};

static hd_network *load_example(const char *name)
{
    char path[1024];
    hd_error e = {0};
    snprintf(path, sizeof path, EXAMPLES "%s", name);
    hd_network *n = hd_network_load(path, &e);
    if (!n) fail_msg("%s", e.message);
    return n;
}

/* Builds text for training with batch 5; NULL and a message. */
static hd_graph *build(const char *text, bool train, hd_error *e)
{
    hd_network *n = hd_network_parse(text, strlen(text), "net", e);
    hd_graph *g = n ? hd_network_graph(n, &(hd_network_options){.batch = 5, .train = train}, e) : NULL;
    hd_network_free(n);
    return g;
}

static hd_graph *must_build(const char *text, bool train)
{
    hd_error e = {0};
    hd_graph *g = build(text, train, &e);
    if (!g) fail_msg("%s", e.message);
    return g;
}

static hd_type type_at(const hd_graph *g, const char *path)
{
    hd_value v = hd_graph_find(g, path);
    if (v == HD_NONE) fail_msg("no value %s", path);
    return *hd_type_in(g, v);
}

/* ---- examples ---- */

static void check_example(const hd_network *n, bool train, int64_t batch)
{
    hd_error e = {0};
    hd_graph *g = hd_network_graph(n, &(hd_network_options){.batch = batch, .train = train}, &e);
    if (!g) fail_msg("%s", e.message);
    assert_true(hd_graph_find_output(g, "loss") != HD_NONE);
    if (train && hd_step_append(g, &adamw)) fail_msg("%s", g->err.message);
    if (hd_graph_verify(g, &e)) fail_msg("%s", e.message);
    for (size_t i = 0; train && i < g->n_values; i++) {
        if (g->values[i].kind != HD_PARAM && g->values[i].kind != HD_STATE) continue;
        bool updated = false;
        for (size_t k = 0; k < g->n_pairs; k++) updated |= g->pairs[k].in == (hd_value)i;
        if (!updated) fail_msg("%s: %s never changes", hd_network_name(n), g->values[i].path);
    }
    hd_graph_free(g);
}

static void test_examples(void **state)
{
    (void)state;
    for (int i = 0; i < N_EXAMPLES; i++) {
        hd_network *n = load_example(examples[i]);
        check_example(n, true, 1);
        check_example(n, true, 7);
        check_example(n, false, 7);
        assert_non_null(hd_network_section(n, "data"));
        assert_null(hd_network_section(n, "no such section"));
        hd_network_free(n);
    }
}

/* Every input that the example's data feeds takes a whole column, and its metric names an output and a column. */
static void test_examples_data(void **state)
{
    (void)state;
    for (int i = 0; i < N_EXAMPLES; i++) {
        hd_network *n = load_example(examples[i]);
        hd_error e = {0};
        json_t *data = json_deep_copy(hd_network_section(n, "data"));
        json_object_set_new(data, "test", json_integer(50));
        hd_graph *g = hd_network_graph(n, &(hd_network_options){.batch = 3}, &e);
        hd_dataset d;
        if (!g || hd_dataset_open(&d, data, true, hd_network_name(n), &e)) fail_msg("%s", e.message);
        assert_int_equal(d.count, 50);
        const char *input;
        json_t *column;
        json_object_foreach(json_object_get(data, "inputs"), input, column) {
            const hd_column *c = hd_dataset_column(&d, json_string_value(column));
            hd_type t = type_at(g, input);
            assert_non_null(c);
            assert_int_equal(t.shape.dim[0], 3);
            assert_int_equal(hd_shape_count(&t.shape), 3 * c->elements);
        }
        const json_t *metric = json_object_get(data, "metric");
        assert_true(hd_graph_find_output(g, json_string_value(json_object_get(metric, "scores"))) != HD_NONE);
        assert_non_null(hd_dataset_column(&d, json_string_value(json_object_get(metric, "labels"))));
        hd_dataset_free(&d);
        hd_graph_free(g);
        json_decref(data);
        hd_network_free(n);
    }
}

/* ---- errors ---- */

#define FILE_OF(rest) "{\"heddle_network\": 1, " rest "}"
#define INPUT "\"inputs\": [{\"name\": \"x\", \"shape\": [\"$batch\", 4]}], "
#define SUM "{\"op\": \"reduce_sum\", \"name\": \"s\", \"in\": [\"x\"], \"axes\": [0, 1]}"

static const struct { const char *text, *message; } bad[] = {
    {"{", "line 1"},
    {"[1]", "must be an object"},
    {"{\"nodes\": []}", "heddle_network"},
    {"{\"heddle_network\": 2, \"nodes\": []}", "\"heddle_network\" must be"},
    {FILE_OF("\"nodes\": [], \"colour\": 3"), "unknown key \"colour\""},
    {FILE_OF("\"loss\": \"s\""), "\"nodes\" is missing"},
    {FILE_OF("\"nodes\": {}"), "\"nodes\" must be a list"},
    {FILE_OF(INPUT "\"nodes\": [" SUM "]"), "\"loss\": is missing"},
    {FILE_OF(INPUT "\"nodes\": [{\"op\": \"reduce\", \"name\": \"s\", \"in\": [\"x\"]}], \"loss\": \"s\""), "net: node \"s\": there is no op \"reduce\""},
    {FILE_OF(INPUT "\"nodes\": [{\"op\": \"conv2d_grad_x\", \"name\": \"s\", \"in\": [\"x\"]}], \"loss\": \"s\""), "there is no op \"conv2d_grad_x\""},
    {FILE_OF(INPUT "\"nodes\": [{\"op\": \"relu\", \"name\": \"s\", \"in\": [\"x\"], \"slope\": 1}], \"loss\": \"s\""), "node \"s\": unknown key \"slope\"; op relu has dtype"},
    {FILE_OF(INPUT "\"nodes\": [{\"op\": \"relu\", \"name\": \"s\", \"in\": [\"x\", \"x\"]}], \"loss\": \"s\""), "op relu takes 1 operands, not 2"},
    {FILE_OF(INPUT "\"nodes\": [{\"op\": \"relu\", \"name\": \"s\", \"in\": [null]}], \"loss\": \"s\""), "operand 0 of op relu can't be left out"},
    {FILE_OF(INPUT "\"nodes\": [{\"op\": \"relu\", \"name\": \"s\", \"in\": [\"y\"]}], \"loss\": \"s\""), "\"y\" is not defined before it is used"},
    {FILE_OF(INPUT "\"nodes\": [{\"op\": \"relu\", \"name\": \"s\", \"in\": [\"s\"]}], \"loss\": \"s\""), "\"s\" is not defined before it is used"},
    {FILE_OF(INPUT "\"nodes\": [{\"op\": \"relu\", \"name\": \"x\", \"in\": [\"x\"]}], \"loss\": \"x\""), "node \"x\": the name is used twice"},
    {FILE_OF(INPUT "\"nodes\": [{\"op\": \"relu\", \"name\": \"step\", \"in\": [\"x\"]}], \"loss\": \"x\""), "Heddle uses this name itself"},
    {FILE_OF(INPUT "\"nodes\": [{\"op\": \"relu\", \"name\": \"a.b\", \"in\": [\"x\"]}], \"loss\": \"x\""), "a name is 1 to 60"},
    {FILE_OF(INPUT "\"nodes\": [{\"op\": \"reduce_sum\", \"name\": \"s\", \"in\": [\"x\"]}], \"loss\": \"s\""), "node \"s\": \"axes\" is missing"},
    {FILE_OF(INPUT "\"nodes\": [{\"op\": \"scale\", \"name\": \"s\", \"in\": [\"x\"], \"imm\": \"two\"}], \"loss\": \"s\""), "\"two\" is no extent"},
    {FILE_OF(INPUT "\"nodes\": [{\"op\": \"scale\", \"name\": \"s\", \"in\": [\"x\"], \"imm\": true}], \"loss\": \"s\""), "\"imm\" must be a number"},
    {FILE_OF(INPUT "\"nodes\": [{\"op\": \"cast\", \"name\": \"s\", \"in\": [\"x\"], \"dtype\": \"f31\"}], \"loss\": \"s\""), "\"dtype\" must be a dtype"},
    {FILE_OF(INPUT "\"nodes\": [{\"op\": \"reshape\", \"name\": \"s\", \"in\": [\"x\"], \"dims\": [3, 7]}], \"loss\": \"s\""), "node \"s\": reshape: x f32[5, 4]"},
    {FILE_OF(INPUT "\"nodes\": [{\"op\": \"broadcast\", \"name\": \"s\", \"in\": [\"x\"], \"dims\": [1099511627776, 5, 4]}], \"loss\": \"s\""), "too many elements"},
    {FILE_OF(INPUT "\"nodes\": [{\"op\": \"relu\", \"name\": \"s\", \"in\": [\"x\"]}], \"loss\": \"s\""), "\"loss\": must be a floating-point scalar"},
    {FILE_OF(INPUT "\"nodes\": [" SUM "], \"loss\": \"t\""), "\"loss\": \"t\" is not defined"},
    {FILE_OF(INPUT "\"nodes\": [" SUM "], \"loss\": \"s\", \"loss_is\": \"max\""), "\"loss_is\" must be"},
    {FILE_OF(INPUT "\"nodes\": [" SUM "], \"loss\": \"s\", \"outputs\": {\"y\": \"z\"}"), "output \"y\": \"z\" is not defined"},
    {FILE_OF("\"inputs\": [{\"name\": \"x\"}], \"nodes\": []"), "input \"x\": \"shape\" is missing"},
    {FILE_OF("\"inputs\": [{\"name\": \"x\", \"shape\": [\"$n\"]}], \"nodes\": []"), "input \"x\": \"$n\" is not defined"},
    {FILE_OF("\"define\": {\"n\": \"$m\", \"m\": \"$n\"}, \"inputs\": [{\"name\": \"x\", \"shape\": [\"$n\"]}], \"nodes\": []"), "definitions run in a circle"},
    {FILE_OF("\"inputs\": [{\"name\": \"x\", \"shape\": [0]}], \"nodes\": []"), "\"shape\" must be from 1"},
    {FILE_OF("\"parameters\": [{\"name\": \"w\", \"shape\": [1000000000, 1000000000]}], \"nodes\": []"), "\"shape\" has too many elements"},
    {FILE_OF("\"parameters\": [{\"name\": \"w\", \"shape\": [2], \"init\": {\"magic\": 1}}], \"nodes\": []"), "unknown key \"magic\""},
    {FILE_OF("\"parameters\": [{\"name\": \"w\", \"shape\": [2], \"init\": {\"normal\": -1}}], \"nodes\": []"), "\"normal\" makes no sense"},
    {FILE_OF("\"parameters\": [{\"name\": \"w\", \"shape\": [2], \"dtype\": \"i32\"}], \"nodes\": []"), "\"dtype\" must be floating-point"},
    {FILE_OF(INPUT "\"state\": [{\"name\": \"m\", \"shape\": [2]}], \"nodes\": [" SUM "], \"loss\": \"s\""), "state \"m\": \"becomes\" is missing"},
    {FILE_OF(INPUT "\"state\": [{\"name\": \"m\", \"shape\": [2], \"becomes\": \"x\"}], \"nodes\": [" SUM "], \"loss\": \"s\""), "state \"m\": the state m cannot become"},
    {FILE_OF(INPUT "\"nodes\": [{\"template\": \"t\", \"name\": \"u\"}], \"loss\": \"u\""), "node \"u\": there is no template \"t\""},
    {FILE_OF(INPUT "\"templates\": {\"t\": {\"nodes\": []}}, \"nodes\": [{\"template\": \"t\", \"name\": \"u\"}], \"loss\": \"u\""), "\"result\" is missing"},
    {FILE_OF(INPUT "\"templates\": {\"t\": {\"nodes\": [{\"template\": \"t\", \"name\": \"v\"}], \"result\": \"v\"}}, \"nodes\": [{\"template\": \"t\", \"name\": \"u\"}], \"loss\": \"u\""),
     "nested too deep"},
    {FILE_OF(INPUT "\"templates\": {\"t\": {\"nodes\": [], \"result\": \"$y\"}}, \"nodes\": [{\"template\": \"t\", \"name\": \"u\", \"with\": {\"x\": \"x\"}}], \"loss\": \"u\""),
     "\"$y\" is not defined"},
    {FILE_OF(INPUT "\"templates\": {\"t\": {\"nodes\": [], \"result\": \"$x\"}}, \"nodes\": [{\"template\": \"t\", \"name\": \"u\", \"times\": 2, \"with\": {\"x\": \"x\"}}], \"loss\": \"u\""),
     "\"times\" needs \"carry\""},
    {FILE_OF(INPUT "\"nodes\": [{\"op\": \"relu\", \"name\": \"s\", \"in\": [\"x\"], \"mode\": \"test\"}], \"loss\": \"s\""), "\"mode\" must be"},
};

static void test_errors(void **state)
{
    (void)state;
    int wrong = 0;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        hd_error e = {0};
        hd_graph *g = build(bad[i].text, true, &e);
        bool as_said = !g && e.code && strstr(e.message, bad[i].message) && !strchr(e.message, '\n');
        if (!as_said) print_error("%s\n  should say: %s\n  says: %s\n", bad[i].text, bad[i].message, e.message);
        wrong += !as_said;
        hd_graph_free(g);
    }
    assert_int_equal(wrong, 0);
}

/* ---- what files can say ---- */

static void test_templates(void **state)
{
    (void)state;
    static const char text[] = FILE_OF(
        "\"define\": {\"d\": 4}, " INPUT "\"templates\": {\"layer\": {\"parameters\": [{\"name\": \"w\", \"shape\": [\"$n\", \"$n\"]}],"
        "\"nodes\": [{\"op\": \"contract\", \"name\": \"y\", \"in\": [\"$x\", \"w\"], \"spec\": \"$spec\"}], \"result\": \"y\"}},"
        "\"nodes\": [{\"template\": \"layer\", \"name\": \"layers\", \"times\": 3, \"carry\": \"x\", \"with\": {\"x\": \"x\", \"n\": \"$d\", \"spec\": \"ni,oi->no\"}},"
        "{\"op\": \"reshape\", \"name\": \"r\", \"in\": [\"layers\"], \"dims\": [\"$batch*$d\"]}, {\"op\": \"mul\", \"name\": \"m\", \"in\": [\"r\", 0.5]},"
        "{\"op\": \"reduce_sum\", \"name\": \"s\", \"in\": [\"m\"], \"axes\": [0]}], \"loss\": \"s\", \"outputs\": {\"second\": \"layers.1.y\"}");
    hd_graph *g = must_build(text, true);
    assert_int_equal(type_at(g, "layers.2.w").shape.rank, 2);
    assert_int_equal(type_at(g, "r").shape.dim[0], 20);
    assert_int_equal(hd_graph_find_output(g, "second"), hd_graph_find(g, "layers.1.y"));
    assert_int_equal(hd_graph_find(g, "layers.3.w"), HD_NONE);
    const hd_node *last = g->nodes[hd_info(g, hd_graph_find(g, "layers.2.y"))->node];
    assert_int_equal(last->in[0], hd_graph_find(g, "layers.1.y"));
    hd_graph_free(g);
}

/* An argument keeps meaning the caller's value, whatever the template calls its own. */
static void test_arguments_keep_their_scope(void **state)
{
    (void)state;
    static const char text[] = FILE_OF(
        INPUT "\"templates\": {\"t\": {\"nodes\": [{\"op\": \"neg\", \"name\": \"h\", \"in\": [\"$x\"]}, {\"op\": \"add\", \"name\": \"y\", \"in\": [\"$x\", \"h\"]}],"
        "\"result\": \"y\"}}, \"nodes\": [{\"op\": \"exp\", \"name\": \"h\", \"in\": [\"x\"]}, {\"template\": \"t\", \"name\": \"u\", \"with\": {\"x\": \"h\"}}],"
        "\"outputs\": {\"u\": \"u\"}");
    hd_graph *g = must_build(text, false);
    const hd_node *y = g->nodes[hd_info(g, hd_graph_find(g, "u.y"))->node];
    assert_int_equal(y->in[0], hd_graph_find(g, "h"));
    assert_int_equal(y->in[1], hd_graph_find(g, "u.h"));
    hd_graph_free(g);
}

/* Several results, the mode of a node, dropout's inputs and site, and the states of a step. */
static void test_modes_and_states(void **state)
{
    (void)state;
    hd_network *n = load_example("convnet.json");
    hd_error e = {0};
    hd_graph *train = hd_network_graph(n, &(hd_network_options){.batch = 4, .train = true}, &e);
    hd_graph *eval = hd_network_graph(n, &(hd_network_options){.batch = 4}, &e);
    assert_non_null(train);
    assert_non_null(eval);
    assert_int_equal(train->n_pairs, 2 * 9);
    assert_int_equal(eval->n_pairs, 0);
    for (size_t i = 0; i < train->n_pairs; i++) assert_int_equal(hd_info(train, train->pairs[i].out)->micro, HD_TIME_REPLICATE);
    assert_string_equal(train->nodes[hd_info(train, hd_graph_find(train, "stem.bn.y"))->node]->op->name, "batch_norm");
    assert_string_equal(eval->nodes[hd_info(eval, hd_graph_find(eval, "stem.bn.y"))->node]->op->name, "add");
    hd_graph_free(train);
    hd_graph_free(eval);
    hd_network_free(n);

    n = load_example("mlp.json");
    train = hd_network_graph(n, &(hd_network_options){.batch = 4, .train = true}, &e);
    eval = hd_network_graph(n, &(hd_network_options){.batch = 4}, &e);
    const hd_node *drop = train->nodes[hd_info(train, hd_graph_find(train, "h1"))->node];
    assert_true(((const hd_dropout_attrs *)drop->attrs)->site == (int64_t)hd_hash_string("h1"));
    assert_int_equal(hd_info(train, drop->in[1])->micro, HD_TIME_REPLICATE);
    assert_int_equal(hd_graph_find(eval, "key"), HD_NONE);
    hd_graph_free(train);
    hd_graph_free(eval);
    hd_network_free(n);
}

static void test_memory_runs_out(void **state)
{
    (void)state;
    uint64_t injected = 0;
    for (uint64_t nth = 1; nth < 5000; nth++) {
        hd_error e = {0};
        uint64_t before = hd_mem_failed();
        hd_mem_fail_at(nth);
        hd_network *n = hd_network_load(EXAMPLES "two_tower.json", &e);
        hd_graph *g = n ? hd_network_graph(n, &(hd_network_options){.batch = 2, .train = true}, &e) : NULL;
        hd_mem_fail_at(0);
        bool failed = hd_mem_failed() > before;
        if (failed != !g || (failed && e.code != HD_ENOMEM)) fail_msg("allocation %d: %s", (int)nth, e.message);
        injected += failed;
        hd_graph_free(g);
        hd_network_free(n);
        if (!failed) break;
    }
    assert_true(injected > 0);
}

/* ---- documentation ---- */

static const char *const not_for_files[] = {"fused", "micro_sum", "adamw", "sgd"};

/* docs/network-files.md has a row for every op that files may name, with all its parameters, and for no other. */
static void test_documentation(void **state)
{
    (void)state;
    hd_str doc;
    hd_str_init(&doc);
    assert_int_equal(hd_file_read(&doc, TEST_SOURCE_DIR "/docs/network-files.md", 0, NULL), 0);
    int wrong = 0;
    for (int i = 0; i < hd_op_count; i++) {
        const hd_op *op = hd_ops[i];
        char key[80];
        bool hidden = op->is_backward || op->is_comm;
        for (size_t k = 0; k < sizeof not_for_files / sizeof *not_for_files; k++) hidden |= !strcmp(op->name, not_for_files[k]);
        snprintf(key, sizeof key, "\n| `%s` |", op->name);
        const char *row = strstr(doc.data, key);
        if (!row != hidden) print_error("op %s is %s\n", op->name, hidden ? "documented, though files can't name it" : "not documented"), wrong++;
        for (const hd_attr *a = op->attrs; row && a && a->name; a++) {
            snprintf(key, sizeof key, "`%s`", a->name);
            const char *at = strstr(row + 1, key);
            if (!at || at > strchr(row + 1, '\n')) print_error("op %s: parameter %s is not documented\n", op->name, a->name), wrong++;
        }
    }
    hd_str example;
    hd_str_init(&example);
    assert_int_equal(hd_file_read(&example, EXAMPLES "mlp.json", 0, NULL), 0);
    for (char *line = strtok(example.data, "\n"); line; line = strtok(NULL, "\n"))
        if (!strstr(doc.data, line)) print_error("the whole file that is shown lacks: %s\n", line), wrong++;
    hd_str_free(&example);
    hd_str_free(&doc);
    assert_int_equal(wrong, 0);
}

/* ---- data ---- */

static void test_digits(void **state)
{
    (void)state;
    hd_synthetic o = {.count = 400, .seed = 3, .size = 16, .noise = .1};
    hd_dataset a = {0}, b = {0}, test = {0};
    assert_int_equal(hd_synthetic_digits(&a, &o, NULL), 0);
    assert_int_equal(hd_synthetic_digits(&b, &o, NULL), 0);
    o.test = true;
    assert_int_equal(hd_synthetic_digits(&test, &o, NULL), 0);
    assert_memory_equal(a.column[0].data, b.column[0].data, 400 * 256 * sizeof(float));
    assert_memory_not_equal(a.column[0].data, test.column[0].data, 256 * sizeof(float));
    int seen[10] = {0};
    const float *image = a.column[0].data;
    const int32_t *label = a.column[1].data;
    for (int i = 0; i < 400; i++) {
        double ink = 0;
        seen[label[i]]++;
        for (int k = 0; k < 256; k++) ink += image[i * 256 + k];
        if (!(ink > 5 && ink < 130)) fail_msg("digit %d: ink of %g pixels", label[i], ink);
    }
    for (int c = 0; c < 10; c++) assert_in_range(seen[c], 15, 75);
    int64_t rows[2] = {7, 2};
    double out[2];
    hd_dataset_rows(hd_dataset_column(&a, "label"), rows, 2, HD_F64, out);
    assert_true(out[0] == label[7] && out[1] == label[2]);
    hd_dataset_free(&a);
    hd_dataset_free(&b);
    hd_dataset_free(&test);
}

static void test_clicks(void **state)
{
    (void)state;
    hd_synthetic o = {.count = 20000, .seed = 3, .users = 50, .items = 40};
    hd_dataset d = {0};
    assert_int_equal(hd_synthetic_clicks(&d, &o, NULL), 0);
    const int32_t *user = d.column[0].data, *item = d.column[1].data, *click = d.column[2].data;
    double clicks = 0, first_half = 0;
    for (int64_t i = 0; i < d.count; i++) {
        assert_in_range(user[i], 0, 49);
        assert_in_range(item[i], 0, 39);
        clicks += click[i];
        first_half += item[i] < 20;
    }
    assert_true(clicks > .2 * 20000 && clicks < .6 * 20000);
    assert_true(first_half > .6 * 20000);
    hd_dataset_free(&d);
}

static void test_metrics(void **state)
{
    (void)state;
    static const float scores[] = {.1f, .4f, .4f, .9f};
    double auc;
    assert_int_equal(hd_metric_auc(scores, (int32_t[]){0, 0, 1, 1}, 4, &auc, NULL), 0);
    assert_true(fabs(auc - .875) < 1e-12); /* pairs: (.1,.4) (.1,.9) (.4,.9) in order, (.4,.4) a tie */
    assert_int_equal(hd_metric_auc(scores, (int32_t[]){1, 1, 1, 1}, 4, &auc, NULL), 0);
    assert_true(isnan(auc));
    assert_int_equal(hd_metric_auc((float[]){NAN, 1}, (int32_t[]){0, 1}, 2, &auc, NULL), 0);
    assert_true(isnan(auc));
    assert_true(hd_metric_accuracy(scores, (int32_t[]){1, 0}, 2, 2) == .5);
    assert_true(hd_metric_accuracy((float[]){NAN, NAN}, (int32_t[]){0}, 1, 2) == 0);
}

static void test_data_errors(void **state)
{
    (void)state;
    static const struct { const char *text, *message; } cases[] = {
        {"{}", "needs \"generator\" or \"train_file\""},
        {"{\"generator\": \"cats\"}", "must be \"digits\" or \"clicks\""},
        {"{\"generator\": \"digits\", \"size\": 4}", "\"size\" must be"},
        {"{\"train_file\": \"/no/such/file\"}", "/no/such/file"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hd_error e = {0};
        hd_dataset d;
        json_t *j = json_loads(cases[i].text, 0, NULL);
        assert_true(hd_dataset_open(&d, j, false, "data", &e) < 0);
        if (!strstr(e.message, cases[i].message)) fail_msg("%s", e.message);
        json_decref(j);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_examples),         cmocka_unit_test(test_examples_data),    cmocka_unit_test(test_errors),
        cmocka_unit_test(test_templates),        cmocka_unit_test(test_arguments_keep_their_scope),
        cmocka_unit_test(test_modes_and_states), cmocka_unit_test(test_memory_runs_out),  cmocka_unit_test(test_digits),
        cmocka_unit_test(test_documentation),   cmocka_unit_test(test_clicks),           cmocka_unit_test(test_metrics),          cmocka_unit_test(test_data_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
