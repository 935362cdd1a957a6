/* Sizing: published laws at their published points, formulas for parameters and FLOPs against the Graph's own counts, states, money. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "cluster/size.h"
#include "graph/op.h"
#include "models/lm.h"
#include "train/step.h"

static void assert_within(const char *what, double value, double expected, double share)
{
    if (!(fabs(value - expected) <= share * fabs(expected))) fail_msg("%s: %.6g instead of %.6g", what, value, expected);
}

static hd_lm_config gpt2(int64_t layers, int64_t width, int64_t heads)
{
    hd_lm_config c;
    hd_error err = {0};
    hd_lm_config_preset(&c, HD_ARCH_GPT2);
    c.layers = layers, c.width = width, c.heads = heads, c.vocab = 51200, c.max_positions = 2048;
    if (hd_lm_config_check(&c, "model", &err)) fail_msg("%s", err.message);
    return c;
}

/* GPT-3 (Brown et al. 2020, table D.1: 174.6 B, 300 B tokens, 3.14e23 FLOPs) and its 16 bytes of states a parameter; Chinchilla from Gopher's 5.76e23 FLOPs. */
static void test_published(void **state)
{
    (void)state;
    hd_size s;
    hd_lm_config gpt3 = gpt2(96, 12288, 96);
    double n = (double)hd_lm_config_parameters(&gpt3);
    assert_within("GPT-3's parameters", n, 175e9, 0.005);
    assert_within("GPT-3's FLOPs", hd_size_flops(174.6e9, 300e9), 3.14e23, 0.005);
    assert_within("GPT-3's states", hd_size_states(n, 2, 0, 1), 2.8e12, 0.005);
    hd_size_for_flops(HD_SIZE_CHINCHILLA, 5.76e23, &s);
    assert_within("Chinchilla's parameters", s.parameters, 70e9, 0.02);
    assert_within("Chinchilla's tokens", s.tokens, 1.4e12, 0.02);
    hd_size_for_flops(HD_SIZE_CHINCHILLA_LOSS, 5.76e23, &s);
    assert_within("approach 3", s.parameters, 40e9, 0.25); /* table A9: 40 B */
    hd_size_for_flops(HD_SIZE_KAPLAN, 8.64e19, &s);
    assert_within("Kaplan at a PF-day", s.parameters, 1.3e9, 1e-9);
    hd_size_for_flops(HD_SIZE_KAPLAN, 8.64e21, &s);
    assert_within("Kaplan at 100 PF-days", s.parameters, 1.3e9 * pow(100, 0.73), 1e-9);
}

/* Approach 3's size is where its loss is least; tokens lead back to the size; the shape has that many parameters. */
static void test_laws(void **state)
{
    (void)state;
    hd_size s, t;
    for (double c = 1e19; c < 1e26; c *= 37) {
        hd_size_for_flops(HD_SIZE_CHINCHILLA_LOSS, c, &s);
        for (int k = -1; k <= 1; k += 2) {
            double n = s.parameters * (1 + 0.01 * k);
            assert_true(hd_size_loss(n, c / (6 * n)) > s.loss);
        }
        for (int law = 0; law < HD_SIZE_LAWS; law++) {
            int64_t layers, width;
            hd_size_law back;
            hd_size_for_flops((hd_size_law)law, c, &s);
            hd_size_for_tokens((hd_size_law)law, s.tokens, &t);
            assert_within("back from tokens", t.parameters, s.parameters, 1e-6);
            assert_within("6 N D", hd_size_flops(s.parameters, s.tokens), c, 1e-9);
            hd_size_shape(s.parameters, &layers, &width);
            assert_within("shape", 12.0 * (double)(layers * width * width), s.parameters, 0.2);
            assert_int_equal(hd_size_law_parse(hd_size_law_name((hd_size_law)law), &back), 0);
            assert_int_equal(back, law);
        }
    }
}

/* Rajbhandari et al. 2020, figure 1: 7.5 B on 64 ranks. */
static void test_states(void **state)
{
    static const double gb[] = {120, 31.4, 16.6, 1.9};
    (void)state;
    for (int stage = 0; stage < 4; stage++) {
        double bytes = hd_size_states(7.5e9, 2, stage, 64) / 1e9;
        if (!(fabs(bytes - gb[stage]) <= 0.05)) fail_msg("stage %d: %g GB", stage, bytes);
    }
}

/* ---- against the Graph ---- */

static double sum_products(const hd_graph *g)
{
    double flops = 0;
    for (size_t i = 0; i < g->n_nodes; i++) {
        const hd_node *n = g->nodes[i];
        hd_cost cost;
        hd_type in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS];
        if (strcmp(n->op->name, "contract") && strcmp(n->op->name, "attention")) continue;
        for (int k = 0; k < n->n_in; k++) in[k] = *hd_type_in(g, n->in[k]);
        for (int k = 0; k < n->n_out; k++) out[k] = *hd_type_in(g, n->out[k]);
        n->op->cost(&(hd_sig){.op = n->op, .in = in, .out = out, .n_in = n->n_in, .n_out = n->n_out, .attrs = n->attrs}, &cost);
        flops += cost.flops;
    }
    return flops;
}

static double sum_parameters(const hd_graph *g)
{
    double n = 0;
    for (size_t v = 0; v < g->n_values; v++)
        if (g->values[v].kind == HD_PARAM) n += (double)hd_shape_count(&g->values[v].type.shape);
    return n;
}

static void check_model(hd_architecture arch, int64_t kv_heads, hd_attention_form form)
{
    hd_lm_config c;
    hd_error err = {0};
    hd_lm_config_preset(&c, arch);
    c.layers = 3, c.width = 48, c.heads = 6, c.kv_heads = kv_heads, c.mlp_width = 100, c.vocab = 97, c.max_positions = 32;
    if (hd_lm_config_check(&c, "model", &err)) fail_msg("%s", err.message);
    hd_lm_options o = {.mode = HD_LM_TRAIN, .attention = form, .compute = HD_F32, .param = HD_F32, .tokens = 96, .sequence = 32};
    hd_graph *g = hd_lm_graph(&c, &o, &err);
    if (!g) fail_msg("%s", err.message);
    assert_within("forward FLOPs", sum_products(g), hd_lm_forward_flops(&c, 96, 32, form, NULL), 1e-9);
    assert_within("parameters", sum_parameters(g), (double)hd_lm_config_parameters(&c), 1e-12);
    hd_step_options so = {.optimizer = HD_SGD};
    if (hd_step_append(g, &so)) fail_msg("%s", g->err.message);
    if (form == HD_ATTENTION_MATERIALISED) assert_within("training FLOPs", sum_products(g), hd_lm_train_flops(&c, 96, 32, form, false), 1e-9);
    hd_graph_free(g);
}

static void test_against_graph(void **state)
{
    (void)state;
    for (int form = 0; form < 2; form++) {
        check_model(HD_ARCH_GPT2, 6, (hd_attention_form)form);
        check_model(HD_ARCH_LLAMA, 2, (hd_attention_form)form);
    }
}

/* Narayanan et al. 2021, section 5.1: F = 96 B s l h^2 (1 + s / 6h + V / 16lh) and P = 12 l h^2 (1 + 13 / 12h + (V + s) / 12lh). */
static void test_against_narayanan(void **state)
{
    (void)state;
    static const struct { int64_t layers, width, heads; } models[] = {{24, 2304, 24}, {80, 12288, 96}, {128, 25600, 160}};
    for (int i = 0; i < 3; i++) {
        hd_lm_config c = gpt2(models[i].layers, models[i].width, models[i].heads);
        double l = (double)c.layers, h = (double)c.width, s = 2048, v = 51200, b = 512;
        double f = 96 * b * s * l * h * h * (1 + s / (6 * h) + v / (16 * l * h)), p = 12 * l * h * h * (1 + 13 / (12 * h) + (v + s) / (12 * l * h));
        assert_within("FLOPs", hd_lm_train_flops(&c, (int64_t)(b * s), 2048, HD_ATTENTION_MATERIALISED, true), f, 1e-9);
        assert_within("parameters", (double)hd_lm_config_parameters(&c), p, 1e-4);
    }
}

static void test_rent(void **state)
{
    (void)state;
    hd_cluster c;
    hd_rental r;
    hd_error err = {0};
    assert_int_equal(hd_cluster_find("dgx-a100-80:16", &c, &err), 0);
    assert_int_equal(hd_size_rent(&c, HD_SIZE_CHINCHILLA, 0.5, 0, 2 * 40.97, &r, &err), 0); /* two nodes for an hour */
    assert_within("seconds", r.seconds, 3600, 1e-9);
    assert_within("FLOPs", r.size.flops, 16 * 312e12 * 0.5 * 3600, 1e-9);
    assert_int_equal(hd_size_rent(&c, HD_SIZE_CHINCHILLA, 0.5, 1e21, 0, &r, &err), 0);
    assert_within("usd", r.usd, 1e21 / (16 * 156e12) / 3600 * 2 * 40.97, 1e-9);
    c.price = 0;
    assert_int_equal(hd_size_rent(&c, HD_SIZE_CHINCHILLA, 0.5, 0, 100, &r, &err), HD_EINVAL);
    assert_non_null(strstr(err.message, "has no price"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published), cmocka_unit_test(test_laws), cmocka_unit_test(test_states), cmocka_unit_test(test_against_graph),
        cmocka_unit_test(test_against_narayanan), cmocka_unit_test(test_rent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
