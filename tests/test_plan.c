/* The Plan of many ranks: its JSON and its errors, and the by-hand form written out for the builders' networks. */
#include "small_graphs.h"
#include "models/lm.h"
#include "models/network.h"
#include "passes/passes.h"
#include "plan/parallel.h"

enum { SEQ = 6 };

/* ---- JSON ---- */

static const char whole_plan[] =
    "{\"micro_batches\": 4, \"mesh\": [{\"name\": \"pp\", \"size\": 2, \"role\": \"pipeline\"}, {\"name\": \"dp\", \"size\": 3, \"role\": \"data\"},"
    " {\"name\": \"tp\", \"size\": 2, \"role\": \"model\"}], \"pins\": [{\"values\": \"layers.*.attn.q\", \"layout\": \"-,tp*2,dp\"},"
    " {\"values\": \"x\", \"layout\": \"dp*6.tp,- +tp\"}], \"schedule\": \"interleaved\", \"chunks\": 2, \"cuts\": [\"layers.1\", \"layers.2\", \"layers.3\"],"
    " \"keep_gathered\": true, \"scatter\": true, \"half_wire\": true, \"regather\": true, \"recompute\": [\"layers.*.mlp.*\"], \"ring\": \"dp.tp\", \"zigzag\": \"dp\"}";

static void test_json_both_ways(void **state)
{
    (void)state;
    hd_plan p, q;
    hd_error err = {0};
    hd_str text, again;
    hd_str_init(&text);
    hd_str_init(&again);
    if (hd_plan_parse(whole_plan, strlen(whole_plan), "plan", &p, &err)) fail_msg("%s", err.message);
    assert_int_equal(p.mesh.n, 3);
    assert_true(p.keep_gathered);
    assert_int_equal(hd_mesh_size(&p.mesh), 12);
    assert_int_equal(hd_plan_stages(&p), 2);
    assert_string_equal(p.pins[1].layout, "dp*6.tp,- +tp");
    assert_true(p.schedule == HD_SCHEDULE_INTERLEAVED && p.chunks == 2 && p.n_cuts == 3 && p.n_recompute == 1);
    assert_string_equal(p.cuts[2], "layers.3");
    assert_int_equal(hd_plan_print(&p, &text), 0);
    assert_int_equal(hd_plan_parse(text.data, text.len, "plan", &q, &err), 0);
    assert_int_equal(hd_plan_print(&q, &again), 0);
    assert_string_equal(text.data, again.data);
    assert_non_null(strstr(text.data, "layers.*.mlp.*"));
    assert_true(q.scatter && q.half_wire && q.regather);
    assert_true(!strcmp(q.ring, "dp.tp") && !strcmp(q.zigzag, "dp"));
    hd_str_clear(&text);
    p = hd_plan_default();
    assert_int_equal(hd_plan_print(&p, &text), 0);
    static const char *const keys[] = {"mesh", "pins", "schedule", "chunks", "cuts", "recompute", "ring", "zigzag", "scatter", "half_wire", "regather"};
    for (int i = 0; i < 11; i++) assert_null(strstr(text.data, keys[i]));
    hd_str_free(&text);
    hd_str_free(&again);
}

static void test_json_errors(void **state)
{
#define AXIS(name, size, role) "{\"name\": \"" name "\", \"size\": " size ", \"role\": \"" role "\"}"
#define MESH(axes) "{\"mesh\": [" axes "]}"
    static const struct { const char *text, *message; } cases[] = {
        {"{\"mesh\": 3}", "must be a list"},
        {MESH("4"), "must be an object"},
        {"{\"mesh\": [{\"name\": \"dp\", \"size\": 2, \"roles\": \"data\"}]}", "no key \"roles\""},
        {MESH(AXIS("dp", "0", "data")), "size"},
        {MESH(AXIS("dp", "2", "date")), "must be \"data\", \"model\" or \"pipeline\""},
        {MESH(AXIS("dp", "2", "data") "," AXIS("dp", "2", "data")), "two axes"},
        {MESH(AXIS("dp", "2", "data") "," AXIS("pp", "2", "pipeline")), "must come first"},
        {MESH(AXIS("pp", "2", "data")), "is \"pipeline\", not \"data\""},
        {MESH(AXIS("stage", "2", "pipeline")), "must be named \"pp\""},
        {MESH(AXIS("tp", "2", "data")), "is \"model\""},
        {MESH(AXIS("d.p", "2", "data")), "lower-case"},
        {MESH(AXIS("muchtoolongname", "2", "data")), "longer than 11"},
        {MESH(AXIS("dp", "65536", "data") "," AXIS("tp", "2", "model")), "more than 65536 ranks"},
        {MESH(AXIS("a", "1", "data") "," AXIS("b", "1", "data") "," AXIS("c", "1", "data") "," AXIS("d", "1", "data") "," AXIS("e", "1", "data") ","
              AXIS("f", "1", "data") "," AXIS("g", "1", "data") "," AXIS("h", "1", "data") "," AXIS("i", "1", "data")), "can have 8"},
        {"{\"mesh\": [" AXIS("dp", "2", "data") "], \"pins\": [{\"values\": \"x\", \"layout\": \"tp\"}]}", "no axis \"tp\""},
        {"{\"mesh\": [" AXIS("pp", "2", "pipeline") "], \"pins\": [{\"values\": \"x\", \"layout\": \"pp\"}]}", "cuts no value"},
        {"{\"mesh\": [" AXIS("dp", "2", "data") "], \"pins\": [{\"values\": \"x\", \"layout\": \"dp;\"}]}", "is none"},
        {"{\"pins\": [{\"layout\": \"\"}]}", "missing"},
        {"{\"pins\": [{\"values\": \"x\"}]}", "layout"},
        {"{\"pins\": [{\"value\": \"x\", \"layout\": \"\"}]}", "no key \"value\""},
        {"{\"schedule\": \"gpip\"}", "not \"gpip\""},
        {"{\"chunks\": 0}", "chunks"},
        {"{\"bucket\": -1}", "bucket"},
        {"{\"sparse\": 1}", "sparse"},
        {"{\"chunks\": 2}", "interleaved"},
        {"{\"cuts\": [\"layers.1\"]}", "need 0 cuts"},
        {"{\"mesh\": [" AXIS("pp", "3", "pipeline") "], \"cuts\": [\"a\", \"a\"]}", "named twice"},
        {"{\"mesh\": [" AXIS("pp", "300", "pipeline") "]}", "257 chunks"},
        {"{\"meshes\": [[" AXIS("dp", "2", "data") "]]}", "at least two stages"},
        {"{\"meshes\": [[" AXIS("dp", "2", "data") "], []], \"stages\": [0, 2]}", "stage 1 is of mesh 2"},
        {"{\"meshes\": [[" AXIS("dp", "2", "data") "], []], \"stages\": [0, -1]}", "numbers of \"meshes\""},
        {"{\"meshes\": [[" AXIS("pp", "2", "pipeline") "], []], \"stages\": [0, 1]}", "has no axis \"pp\""},
        {"{\"meshes\": [" AXIS("dp", "2", "data") "], \"stages\": [0, 0]}", "lists of axes"},
        {"{\"mesh\": [" AXIS("dp", "2", "data") "], \"meshes\": [[]], \"stages\": [0, 0]}", "mesh and meshes"},
        {"{\"stages\": [0, 0]}", "no list \"meshes\""},
        {"{\"meshes\": [[], [" AXIS("dp", "2", "data") "]], \"stages\": [0, 1], \"pins\": [{\"values\": \"x\", \"layout\": \"dp\"}]}", "no axis \"dp\""},
        {"{\"meshes\": [[], []], \"stages\": [0, 1], \"pins\": [{\"values\": \"x\", \"layout\": \"-\", \"mesh\": 2}]}", "over mesh 2"},
        {"{\"meshes\": [[], []], \"stages\": [0, 1], \"cuts\": [\"a\", \"b\"]}", "need 1 cuts"},
        {"{\"recompute\": [3]}", "list of strings"},
        {"{\"ring\": \"cp\"}", "no axes of the mesh"},
        {"{\"mesh\": [" AXIS("pp", "2", "pipeline") "], \"zigzag\": \"pp\"}", "cuts no tokens"},
        {"{\"ring\": 3}", "ring"},
        {"{\"recompute\": [\"\"]}", "empty"},
        {"{\"recompute\": [\"0123456789012345678901234567890123456789012345678901234567890123\"]}", "longer than 63"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hd_error err = {0};
        hd_plan p;
        if (!hd_plan_parse(cases[i].text, strlen(cases[i].text), "plan", &p, &err)) fail_msg("%s: was taken", cases[i].text);
        if (!strstr(err.message, cases[i].message)) fail_msg("%s: \"%s\" instead of \"%s\"", cases[i].text, err.message, cases[i].message);
    }
}

/* ---- the by-hand form ---- */

static void test_form_errors(void **state)
{
    static const struct { const char *text, *message; } cases[] = {
        {"dq=2", "no \"dq\""}, {"dp=2,dp=2", "twice"}, {"dp=0", "from 1"}, {"dp=2x", "not \"2x\""}, {"dp=-1", "from 1"}, {"dp", "needs a value"}, {"dp=", "needs a value"},
        {"zero=4,dp=2", "from 0 to 3"}, {"zero=1", "give dp=2"}, {"tables=rows", "give tp=2"}, {"tp=2,tables=some", "rows or columns"}, {"bucket=-1", "bucket must be"}, {"sparse=2", "from 0 to 1"}, {"sp", "give tp=2"}, {"v=2", "give pp=2"}, {"pp=2,v=2,schedule=1f1b", "interleaved"},
        {"schedule=2f", "schedule must be"}, {"recompute=every:0", "every:K"}, {"recompute=every:", "every:K"}, {"recompute=some", "recompute must be"},
        {"pp=2,layers=3", "layers names 1"}, {"pp=2,layers=3:", "layers must be"}, {"pp=2,layers=3;4", "layers must be"}, {"dp=2,", "last comma"}, {",", "no \"\""},
        {"dp=2|", "a stage of one rank is dp=1"}, {"|dp=2", "a stage of one rank is dp=1"}, {"dp=2|sp", "give tp=2"}, {"dp=2|zero=1,tp=2", "give dp=2"},
        {"dp=2,keep|tp=2", "give zero=3"}, {"dp=2,schedule=gpipe|tp=2,schedule=1f1b", "twice"}, {"dp=2|tp=2,tp=2", "twice"}, {"dp=2|tp=2,layers=1:2:3", "layers names 3"},
        {"dp=65535|tp=2", "more than 65536 ranks"}, {"dp=1|dp=2|dp=3|dp=4|dp=5|dp=6|dp=7|dp=8|dp=9|tp=2|tp=3|tp=4|tp=5|tp=6|tp=7|tp=8|tp=9", "more than 16 meshes"},
        {"dp=65536,tp=2", "more than 65536 ranks"}, {"pp=200,v=2", "257 chunks"}, {"dp=99999999999999999999", "from 1"},
        {"attention=ring", "cp=2 or more"}, {"order=plain", "cp=2 or more"}, {"cp=2,attention=tree", "ring or gather"}, {"cp=2,order=zig", "zigzag or plain"},
        {"cp=2,order", "needs a value"},
        {"tp=2,scatter", "give tp=2 and pp=2"}, {"pp=2,scatter", "give tp=2 and pp=2"}, {"dp=2,regather", "give zero=3"}, {"dp=2,tp=2,scatter|tp=2", "leave scatter out"},
        {"half_wire=2", "from 0 to 1"},
    };
    (void)state;
    hd_parallel p;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hd_error err = {0};
        if (!hd_parallel_parse(cases[i].text, &p, &err)) fail_msg("%s: was taken", cases[i].text);
        if (!strstr(err.message, cases[i].message)) fail_msg("%s: \"%s\" instead of \"%s\"", cases[i].text, err.message, cases[i].message);
    }
    hd_error err = {0};
    assert_int_equal(hd_parallel_parse("dp=2,tp=3,sp,zero=2,pp=2,v=2,recompute=every:3,layers=1:2:3:4", &p, &err), 0);
    assert_true(p.dp == 2 && p.tp == 3 && p.sp && p.zero == 2 && p.pp == 2 && p.chunks == 2 && p.every == 3 && p.n_layers == 4 && p.layers[3] == 4);
    assert_int_equal(hd_parallel_ranks(&p), 12);
}

static bool same_list(const int64_t *a, int n, const int64_t *b, int m)
{
    return n == m && !memcmp(a, b, (size_t)n * sizeof *a);
}

/* All that a text can say, but which keys it named and auto. */
static bool same_form(const hd_parallel *a, const hd_parallel *b)
{
    const int64_t of[2][17] = {
        {a->overlap, a->bucket, a->sparse, a->tables, a->pp, a->has_attention, a->gather, a->has_order, a->plain, a->keep, a->scatter, a->half_wire, a->regather, a->chunks, a->slices,
         a->has_schedule, a->schedule},
        {b->overlap, b->bucket, b->sparse, b->tables, b->pp, b->has_attention, b->gather, b->has_order, b->plain, b->keep, b->scatter, b->half_wire, b->regather, b->chunks, b->slices,
         b->has_schedule, b->schedule},
    };
    bool same = a->n_parts == b->n_parts && a->recompute == b->recompute && a->every == b->every && !memcmp(of[0], of[1], sizeof of[0]);
    for (int i = 0; same && i < (a->n_parts ? a->n_parts : 1); i++) {
        hd_parallel x = hd_parallel_of_part(a, i), y = hd_parallel_of_part(b, i);
        same = x.dp == y.dp && x.tp == y.tp && x.cp == y.cp && x.sp == y.sp && x.zero == y.zero && (!a->n_parts || a->part[i].pp == b->part[i].pp);
    }
    return same && same_list(a->first, a->n_first, b->first, b->n_first) && same_list(a->layers, a->n_layers, b->layers, b->n_layers) && same_list(a->lengths, a->n_lengths, b->lengths, b->n_lengths);
}

/* What is printed reads back as the same form, and prints the same. */
static void expect_printed(const char *text)
{
    hd_error err = {0};
    hd_parallel p, q;
    hd_str once, twice;
    hd_str_init(&once);
    hd_str_init(&twice);
    if (hd_parallel_parse(text, &p, &err)) fail_msg("%s: %s", text, err.message);
    assert_int_equal(hd_parallel_print(&p, &once), 0);
    if (hd_parallel_parse(once.data, &q, &err)) fail_msg("%s is printed as %s: %s", text, once.data, err.message);
    if (!same_form(&p, &q)) fail_msg("%s is printed as %s, which is another form", text, once.data);
    assert_int_equal(hd_parallel_print(&q, &twice), 0);
    assert_string_equal(once.data, twice.data);
    hd_str_free(&once);
    hd_str_free(&twice);
}

/* What may stand in any text, one of which follows another: all keys, each with what is its default and what isn't. */
static const char *const anywhere[] = {
    "", "overlap=0", "overlap=1", "bucket=0", "bucket=4194304", "bucket=77", "sparse=0", "sparse=1", "half_wire", "half_wire=0", "recompute=none", "recompute=full", "recompute=selective",
    "recompute=every:3", "slices=1", "slices=4", "slices=5:1:2", "schedule=gpipe", "schedule=1f1b", "schedule=zero-bubble", "auto", "keep=0", "scatter=0", "regather=0", "sp=0",
    "zero=0", "v=1", "cp=1",
};

static void test_forms_both_ways(void **state)
{
    static const char *const bases[] = {
        "dp=1", "dp=2,tp=3,pp=4", "pp=2,v=3", "pp=3,v=2,schedule=interleaved", "pp=2,layers=5:7", "tp=2,sp", "tp=2,sp=1,dp=3", "dp=2,zero=1", "dp=2,zero=3,keep", "dp=5,zero=3,regather",
        "cp=2,attention=ring", "cp=3,attention=gather,order=plain,zero=2", "cp=2,order=zigzag", "tp=2,pp=2,scatter", "tp=2,tables=rows", "dp=2,tp=2,tables=columns",
        "dp=2|tp=2|dp=3", "pp=2,dp=2|tp=4", "dp=1|dp=2,zero=3,keep", "tp=2,sp|dp=2,zero=1|dp=1", "cp=2|cp=2,tp=2,attention=gather", "pp=2|tp=2,layers=1:2:3", "dp=2|dp=2", "dp=2|tp=2,v=2",
        "recompute=3", "pp=2,recompute=0:7,zero=0", "dp=2|tp=2,recompute=1:2", "pp=2,v=2,recompute=1:0:0:2,layers=1:2:3:4",
    };
    (void)state;
    expect_printed("");
    for (size_t i = 0; i < sizeof bases / sizeof *bases; i++) {
        expect_printed(bases[i]);
        for (size_t k = 0; k < sizeof anywhere / sizeof *anywhere; k++)
            for (size_t m = 0; m < sizeof anywhere / sizeof *anywhere; m++) {
                char text[256];
                hd_parallel p;
                hd_error err = {0};
                snprintf(text, sizeof text, "%s%s%s%s%s", bases[i], *anywhere[k] ? "," : "", anywhere[k], *anywhere[m] ? "," : "", anywhere[m]);
                if (!hd_parallel_parse(text, &p, &err)) expect_printed(text); /* a key twice, or v with another schedule, is refused */
            }
    }
}

static void test_given(void **state)
{
    (void)state;
    hd_error err = {0};
    hd_str text;
    hd_parallel p, none = hd_parallel_default();
    assert_int_equal(hd_parallel_parse("", &p, &err), 0);
    assert_true(same_form(&p, &none) && !p.given && !p.open && hd_parallel_ranks(&none) == 1);
    hd_str_init(&text);
    assert_true(!hd_parallel_print(&none, &text) && text.len == 0);
    hd_str_free(&text);
    assert_int_equal(hd_parallel_parse("tp=1,zero=0,schedule=1f1b,auto", &p, &err), 0);
    assert_true(p.open && p.given == (1u << HD_KEY_TP | 1u << HD_KEY_ZERO | 1u << HD_KEY_SCHEDULE | 1u << HD_KEY_AUTO));
    assert_int_equal(hd_parallel_parse("dp=2,bucket=5|tp=2,recompute=full", &p, &err), 0);
    assert_true(!p.open && p.given == (1u << HD_KEY_DP | 1u << HD_KEY_BUCKET | 1u << HD_KEY_TP | 1u << HD_KEY_RECOMPUTE));
    assert_int_equal(hd_parallel_parse("auto=1", &p, &err), HD_EINVAL);
    assert_non_null(strstr(err.message, "auto takes no value"));
    for (int i = 0; i < HD_PARALLEL_KEYS; i++) {
        err.message[0] = 0;
        hd_parallel_parse(hd_parallel_key_name((hd_parallel_key)i), &p, &err);
        assert_null(strstr(err.message, "there is no"));
    }
}

/* Two sequences. kv: key/value heads; 0: GPT-2. */
static hd_graph *language_model_of(int64_t vocab, int64_t kv, hd_dtype compute, bool train)
{
    hd_error err = {0};
    hd_lm_config c;
    hd_lm_config_preset(&c, kv ? HD_ARCH_LLAMA : HD_ARCH_GPT2);
    c.vocab = vocab, c.width = 24, c.layers = 5, c.heads = 4, c.kv_heads = kv, c.head_dim = 6, c.mlp_width = 40, c.max_positions = 16;
    hd_lm_options o = {.mode = train ? HD_LM_TRAIN : HD_LM_EVAL, .compute = compute, .param = HD_F32, .tokens = 2 * SEQ, .sequence = SEQ};
    hd_graph *g = hd_lm_graph(&c, &o, &err);
    if (!g) fail_msg("%s", err.message);
    hd_step_options s = {.optimizer = HD_ADAMW, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .clip = 1};
    if (train) hd_step_append(g, &s);
    assert_string_equal(g->err.message, "");
    return g;
}

static hd_graph *language_model(int64_t kv, hd_dtype compute, bool train)
{
    return language_model_of(29, kv, compute, train);
}

static hd_graph *network(const char *name, int64_t batch)
{
    hd_error err = {0};
    char path[1024];
    snprintf(path, sizeof path, TEST_SOURCE_DIR "/examples/%s", name);
    hd_network *n = hd_network_load(path, &err);
    hd_graph *g = n ? hd_network_graph(n, &(hd_network_options){.batch = batch, .train = true}, &err) : NULL;
    if (!g) fail_msg("%s", err.message);
    hd_network_free(n);
    hd_step_append(g, &(hd_step_options){.optimizer = HD_SGD, .momentum = 0.9});
    assert_string_equal(g->err.message, "");
    return g;
}

static int try_expand(const char *text, const hd_graph *g, int64_t sequence, hd_plan *plan, hd_error *err)
{
    hd_parallel p;
    *plan = hd_plan_default();
    plan->micro_batches = 4;
    int rc = hd_parallel_parse(text, &p, err);
    return rc ? rc : hd_parallel_expand(&p, g, sequence, plan, err);
}

static bool is_live(const hd_graph *g, size_t v)
{
    const hd_value_info *i = &g->values[v];
    return i->kind != HD_RESULT || ((size_t)i->node < g->n_nodes && i->result < g->nodes[i->node]->n_out && g->nodes[i->node]->out[i->result] == (hd_value)v);
}

/* Attention's scores written out, its weights dropped or not; one sequence for each of two data-parallel ranks. */
static hd_graph *written_out(double dropout)
{
    hd_error err = {0};
    hd_lm_config c;
    hd_lm_config_preset(&c, HD_ARCH_GPT2);
    c.vocab = 29, c.width = 24, c.layers = 1, c.heads = 4, c.kv_heads = 4, c.head_dim = 6, c.mlp_width = 40, c.max_positions = 16, c.attn_dropout = dropout;
    hd_lm_options o = {.mode = HD_LM_TRAIN, .compute = HD_F32, .param = HD_F32, .tokens = 2 * SEQ, .sequence = SEQ, .attention = HD_ATTENTION_MATERIALISED};
    hd_graph *g = hd_lm_graph(&c, &o, &err);
    if (!g) fail_msg("%s", err.message);
    hd_step_append(g, &(hd_step_options){.optimizer = HD_SGD});
    return g;
}

static void test_order_of_dropped_weights(void **state)
{
    (void)state;
    hd_error err = {0};
    hd_plan plan;
    hd_graph *g = written_out(0.1), *undropped = written_out(0);
    assert_int_equal(try_expand("dp=2,cp=2,order=zigzag", g, SEQ, &plan, &err), HD_EINVAL);
    assert_non_null(strstr(err.message, "give order=plain"));
    assert_int_equal(try_expand("dp=2,cp=2,order=plain", g, SEQ, &plan, &err), 0);
    assert_int_equal(try_expand("dp=2,cp=2", g, SEQ, &plan, &err), 0);
    assert_string_equal(plan.zigzag, "");
    assert_int_equal(try_expand("dp=2,cp=2,order=zigzag", undropped, SEQ, &plan, &err), 0);
    assert_string_equal(plan.zigzag, "cp");
    hd_graph_free(undropped);
    hd_graph_free(g);
}

/* Each pin matches something, and its layout is one of whatever it matches. */
static void expand(const char *text, const hd_graph *g, int64_t sequence, hd_plan *plan)
{
    hd_error err = {0};
    if (try_expand(text, g, sequence, plan, &err)) fail_msg("%s: %s", text, err.message);
    for (int k = 0; k < plan->n_pins; k++) {
        int matched = 0;
        for (size_t v = 0; v < g->n_values; v++) {
            hd_layout l;
            if (!hd_glob_match(plan->pins[k].pattern, g->values[v].path)) continue;
            matched += is_live(g, v);
            const hd_mesh *mesh = plan->n_meshes ? &plan->meshes[plan->pin_mesh[k]] : &plan->mesh;
            if (hd_layout_parse(mesh, plan->pins[k].layout, g->values[v].type.shape.rank, &l, &err))
                fail_msg("%s: %s and pin %s: %s", text, g->values[v].path, plan->pins[k].pattern, err.message);
        }
        if (!matched) fail_msg("%s: pin %s matches nothing", text, plan->pins[k].pattern);
    }
    hd_str json;
    hd_plan again;
    hd_str_init(&json);
    assert_int_equal(hd_plan_print(plan, &json), 0);
    if (hd_plan_parse(json.data, json.len, "plan", &again, &err)) fail_msg("%s: %s", text, err.message);
    hd_str_free(&json);
}

/* The layout that the last pin that matches gives; "(none)" without one. */
static const char *layout_of(const hd_graph *g, const hd_plan *plan, const char *path)
{
    const char *text = "(none)";
    if (hd_graph_find(g, path) == HD_NONE) fail_msg("there is no %s", path);
    for (int k = 0; k < plan->n_pins; k++)
        if (hd_glob_match(plan->pins[k].pattern, path)) text = plan->pins[k].layout;
    return text;
}

#define expect_layout(path, layout) assert_string_equal(layout_of(g, &plan, path), layout)

static void test_gpt2(void **state)
{
    (void)state;
    hd_graph *g = language_model(0, HD_F32, true);
    hd_plan plan;
    expand("tp=3", g, SEQ, &plan); /* uneven: 4 heads over 3 */
    assert_string_equal(plan.mesh.axis[0].name, "tp");
    expect_layout("layers.0.attn.q", "-,tp,-");
    expect_layout("layers.4.attn.k", "-,tp,-");
    expect_layout("layers.4.attn.k_bias", "tp,-");
    expect_layout("layers.3.attn.o", "tp,-,-");
    expect_layout("layers.3.attn.o_bias", "-");
    expect_layout("layers.3.mlp.up", "-,tp");
    expect_layout("layers.3.mlp.up_bias", "tp");
    expect_layout("layers.3.mlp.down", "tp,-");
    expect_layout("layers.3.mlp.down_bias", "-");
    expect_layout("embed.tokens", "tp,-");
    expect_layout("embed.positions", "-,-");
    expect_layout("exp_avg.layers.1.mlp.up", "-,tp");
    expect_layout("exp_avg_sq.embed.tokens", "tp,-");
    expect_layout("tokens", "-");
    expand("pp=2,dp=2,tp=2,sp,zero=1,recompute=full", g, SEQ, &plan);
    assert_true(plan.mesh.n == 3 && plan.mesh.axis[0].role == HD_AXIS_PIPELINE && plan.mesh.axis[1].role == HD_AXIS_DATA);
    assert_true(plan.schedule == HD_SCHEDULE_1F1B && plan.n_cuts == 1);
    assert_string_equal(plan.cuts[0], "layers.3");
    expect_layout("tokens", "dp*6");
    expect_layout("samples", "dp*6");
    expect_layout("layers.2.norm1", "dp*6.tp,-");
    expect_layout("layers.2.norm1.1", "dp*6.tp");
    expect_layout("norm.3", "dp*6.tp,-");
    expect_layout("layers.2.mlp.dropout", "dp*6.tp,-");
    expect_layout("embed.sum", "dp*6.tp,-");
    expect_layout("grad.layers.1.norm2.layer_norm_grad_x", "dp*6.tp,-");
    expect_layout("layers.2.mlp.up", "-,tp");
    expect_layout("exp_avg.layers.2.mlp.up", "dp,tp");
    expect_layout("exp_avg.layers.2.norm1.gamma", "dp");
    expect_layout("grad.layers.2.mlp.up", "(none)");
    expand("pp=5,v=1,layers=1:1:1:1:1,schedule=zero-bubble,recompute=every:2", g, SEQ, &plan);
    assert_true(plan.n_cuts == 4 && plan.n_pins == 0 && plan.n_recompute == 3 && plan.schedule == HD_SCHEDULE_ZERO_BUBBLE);
    assert_string_equal(plan.recompute[2], "layers.4.*");
    expand("", g, SEQ, &plan);
    assert_true(plan.mesh.n == 0 && plan.n_pins == 0);
    hd_graph_free(g);
}

/* As many words as tokens in a micro-batch: the table's gradient is not taken for the residual stream's, which has its shape. */
static void test_tables_like_the_stream(void **state)
{
    (void)state;
    hd_graph *g = language_model_of(2 * SEQ, 0, HD_F32, true);
    hd_plan plan;
    expand("dp=2,tp=2,sp", g, SEQ, &plan);
    expect_layout("grad.embed.lookup.dtable", "(none)");
    expect_layout("embed.lookup", "dp*6.tp,-");
    expect_layout("grad.layers.0.norm1.layer_norm_grad_x", "dp*6.tp,-");
    expect_layout("grad.layers.0.norm1.layer_norm_grad_gamma", "(none)");
    hd_graph_free(g);
}

/* Stages of different meshes: whose pins are whose, ranks one stage after another, work by ranks. */
static void test_meshes(void **state)
{
    (void)state;
    hd_graph *g = language_model(0, HD_F32, true);
    hd_plan plan, back, one;
    hd_error err = {0};
    hd_str text, again;
    hd_str_init(&text);
    hd_str_init(&again);
    expand("dp=2,zero=1|tp=2,sp,dp=1|dp=2,zero=1,schedule=gpipe", g, SEQ, &plan);
    assert_true(plan.mesh.n == 0 && plan.n_meshes == 2 && plan.n_stages == 3 && plan.schedule == HD_SCHEDULE_GPIPE);
    assert_true(plan.stages[0] == 0 && plan.stages[1] == 1 && plan.stages[2] == 0);
    assert_true(hd_plan_stages(&plan) == 3 && hd_plan_ranks(&plan) == 6 && hd_plan_first_rank(&plan, 2) == 4);
    assert_true(hd_plan_stage_of(&plan, 1) == 0 && hd_plan_stage_of(&plan, 2) == 1 && hd_plan_stage_of(&plan, 5) == 2);
    bool tp = false, dp = false;
    for (int i = 0; i < plan.n_pins; i++) {
        tp |= plan.pin_mesh[i] == 1 && strstr(plan.pins[i].layout, "tp");
        dp |= plan.pin_mesh[i] == 0 && strstr(plan.pins[i].layout, "dp");
        assert_null(strstr(plan.pins[i].layout, plan.pin_mesh[i] ? "dp" : "tp"));
    }
    assert_true(tp && dp);
    assert_int_equal(hd_plan_print(&plan, &text), 0);
    if (hd_plan_parse(text.data, text.len, "plan", &back, &err)) fail_msg("%s", err.message);
    assert_int_equal(hd_plan_print(&back, &again), 0);
    assert_string_equal(text.data, again.data);
    hd_str_clear(&text);
    hd_str_clear(&again);
    expand("dp=2|dp=2|dp=2,zero=0", g, SEQ, &plan); /* all alike: one mesh */
    expand("pp=3,dp=2", g, SEQ, &one);
    assert_int_equal(hd_plan_print(&plan, &text), 0);
    assert_int_equal(hd_plan_print(&one, &again), 0);
    assert_string_equal(text.data, again.data);
    expand("dp=1|dp=2,tp=2", g, SEQ, &plan); /* a fifth of the ranks has a fifth of the layers */
    assert_string_equal(plan.cuts[0], "layers.1");
    expand("pp=2,dp=2|tp=3", g, SEQ, &plan);
    assert_true(plan.n_stages == 3 && plan.stages[1] == 0 && plan.stages[2] == 1 && hd_plan_ranks(&plan) == 7);
    hd_str_free(&text);
    hd_str_free(&again);
    hd_graph_free(g);
}

/* A head as large as 3.4 of the 5 layers: what comes before it gets more of them, in training and evaluation alike. */
static void test_cuts_by_work(void **state)
{
    (void)state;
    for (int train = 0; train < 2; train++) {
        hd_graph *g = language_model_of(600, 0, HD_F32, train);
        hd_plan plan;
        expand("pp=2", g, SEQ, &plan);
        assert_string_equal(plan.cuts[0], "layers.4");
        expand("pp=3", g, SEQ, &plan);
        assert_string_equal(plan.cuts[0], "layers.2");
        assert_string_equal(plan.cuts[1], "layers.4");
        expand("pp=2,layers=2:3", g, SEQ, &plan);
        assert_string_equal(plan.cuts[0], "layers.2");
        hd_graph_free(g);
    }
}

static void test_llama(void **state)
{
    (void)state;
    hd_graph *g = language_model(2, HD_BF16, true), *eval = language_model(2, HD_BF16, false), *one = language_model(1, HD_F32, true);
    hd_plan plan;
    expand("tp=2", g, SEQ, &plan);
    expect_layout("layers.0.attn.q", "tp*2,-,-");
    expect_layout("layers.0.attn.k", "tp,-,-");
    expand("dp=2,cp=3,tp=4,zero=3,sp", g, SEQ, &plan);
    assert_int_equal(hd_mesh_size(&plan.mesh), 24);
    assert_true(!strcmp(plan.ring, "cp") && !strcmp(plan.zigzag, "cp"));
    expect_layout("tokens", "dp*6.cp");
    expect_layout("layers.0.attn.q", "tp0*2.tp1,-,dp.cp");
    expect_layout("layers.0.attn.v", "tp0,-,dp.cp");
    expect_layout("layers.0.attn.o", "dp.cp,tp0*2.tp1,-");
    expect_layout("layers.1.mlp.gate", "tp0.tp1,dp.cp");
    expect_layout("head", "tp0.tp1,dp.cp");
    expect_layout("exp_avg_sq.layers.1.mlp.gate", "tp0.tp1,dp.cp");
    expect_layout("grad.layers.1.mlp.gate.bf16", "tp0.tp1,dp.cp"); /* the accumulator is that of the rounded weight */
    expect_layout("grad.layers.0.norm2.gamma", "dp.cp");
    expect_layout("layers.4.norm1.2", "dp*6.cp.tp0.tp1,-");
    expand("dp=2,cp=3,tp=4,zero=3,sp", eval, SEQ, &plan);
    expand("dp=2,cp=4", one, SEQ, &plan); /* one key/value head */
    assert_string_equal(plan.ring, "cp");
    expand("dp=2,cp=3,attention=gather,order=plain", g, SEQ, &plan);
    assert_true(!plan.ring[0] && !plan.zigzag[0]);
    expand("pp=2,v=2,recompute=selective", g, SEQ, &plan);
    assert_true(plan.schedule == HD_SCHEDULE_INTERLEAVED && plan.n_cuts == 3);
    assert_string_equal(plan.cuts[0], "layers.2");
    hd_graph_free(g);
    g = one;
    expand("tp=4", g, SEQ, &plan); /* one key/value head: whole on every rank */
    expect_layout("layers.0.attn.q", "tp,-,-");
    expect_layout("layers.0.attn.k", "-,-,-");
    hd_graph_free(one);
    hd_graph_free(eval);
}

static void test_networks(void **state)
{
    (void)state;
    hd_graph *g = network("mlp.json", 8);
    hd_plan plan;
    expand("dp=3,zero=2,pp=2", g, 0, &plan);
    assert_int_equal(plan.n_cuts, 1);
    for (size_t v = 0; v < g->n_values; v++)
        if (g->values[v].kind == HD_INPUT && g->values[v].micro == HD_TIME_SPLIT) assert_true(!strncmp(layout_of(g, &plan, g->values[v].path), "dp", 2));
    hd_graph_free(g);
    g = network("convnet.json", 8);
    expand("dp=4,zero=3", g, 0, &plan);
    for (size_t v = 0; v < g->n_values; v++)
        if (g->values[v].kind == HD_PARAM) assert_non_null(strstr(layout_of(g, &plan, g->values[v].path), "dp"));
    expand("pp=4", g, 0, &plan);
    assert_int_equal(plan.n_cuts, 3);
    hd_graph_free(g);
}

static void test_what_cannot_be(void **state)
{
    static const struct { const char *text; int model; const char *message; } cases[] = {
        {"dp=3", 2, "at most dp=2"}, {"dp=2|dp=3", 2, "at most dp=2"}, {"dp=2|tp=5", 2, "at most tp=4"}, {"dp=1|cp=2", 2, "--batch 1"},
        {"dp=2,cp=2|dp=2,tp=2,order=zigzag", 2, "same dp and cp"}, {"tp=5", 2, "at most tp=4"}, {"tp=3", 2, "multiple"}, {"pp=6", 2, "at most 5"}, {"pp=2,layers=2:2", 2, "adds up to 4"},
        {"cp=2", 2, "--batch 1"}, {"dp=2,cp=7", 2, "cannot be split"}, {"pp=2,slices=5:5", 2, "slices adds up to 10"}, {"slices=60", 2, "60 slices"},
        {"dp=2,cp=2,slices=2,attention=ring", 2, "slices with cp"}, {"dp=2,cp=2,slices=2,order=zigzag", 2, "slices with cp"},
        {"dp=2,cp=3,slices=4:2", 2, "a slice of 2 tokens"}, {"slices=2", -1, "a language model"}, {"tp=2", -1, "give tables=columns"},
        {"cp=2", -1, "dp, tp with tables, zero and pp"}, {"recompute=full", -1, "zero and pp"}, {"dp=4,tp=4,tables=rows", -1, "give --batch 16"},
        {"dp=9", -1, "at most dp=8"}, {"pp=200", -1, "at most"}, {"pp=3,schedule=interleaved", 2, "multiple of pp=3"},
        {"recompute=every:1", 2, "recompute=full"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hd_error err = {0};
        hd_plan plan;
        hd_graph *g = cases[i].model < 0 ? network("mlp.json", 8) : language_model(cases[i].model, HD_F32, true);
        if (!try_expand(cases[i].text, g, cases[i].model < 0 ? 0 : SEQ, &plan, &err)) fail_msg("%s: was taken", cases[i].text);
        if (!strstr(err.message, cases[i].message)) fail_msg("%s: \"%s\" instead of \"%s\"", cases[i].text, err.message, cases[i].message);
        hd_graph_free(g);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_json_both_ways), cmocka_unit_test(test_json_errors), cmocka_unit_test(test_form_errors), cmocka_unit_test(test_gpt2),
        cmocka_unit_test(test_tables_like_the_stream),
        cmocka_unit_test(test_cuts_by_work), cmocka_unit_test(test_llama), cmocka_unit_test(test_networks), cmocka_unit_test(test_what_cannot_be),
        cmocka_unit_test(test_meshes), cmocka_unit_test(test_forms_both_ways), cmocka_unit_test(test_given), cmocka_unit_test(test_order_of_dropped_weights),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
