/* Language models and tokenizers in GGUF files: against llama.cpp (tests/make_gguf_fixtures.py), against the directories that they were made from, and what
 * is no model. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "../checks/src/model_run.h"
#include "data/tokenizer_gguf.h"
#include "models/gguf.h"
#include "tokenizer_cases.h"

#define DATA TEST_SOURCE_DIR "/tests/data/"

static void need(int rc, const hd_error *err)
{
    if (rc) fail_msg("%s", err->message);
}

static char path[256];

static int make_dir(void **state)
{
    char *dir = strdup("/tmp/heddle-test-XXXXXX");
    *state = dir;
    if (!mkdtemp(dir)) return -1;
    snprintf(path, sizeof path, "%s/m.gguf", dir);
    return 0;
}

static int remove_dir(void **state)
{
    int rc = hd_remove_tree(*state, NULL);
    free(*state);
    return rc;
}

static void open_run(model_run *m, const hd_lm_config *c, int64_t tokens, const char *from)
{
    hd_error e = {0};
    hd_lm_options o = {.mode = HD_LM_EVAL, .tokens = tokens, .logits = true, .compute = HD_F32, .param = HD_F32};
    need(model_run_open(m, hd_lm_graph(c, &o, &e), "cpu", 1, 1, &e), &e);
    need(hd_lm_weights_load(m->store, c, from, &e), &e);
}

/* ---- a file of every block type ---- */

static void load(const hd_safetensors *s, const char *name, void *out, hd_dtype t, int64_t n)
{
    const hd_weight *w = hd_safetensors_find(s, name);
    assert_non_null(w);
    assert_int_equal(w->bytes / hd_dtype_size(w->dtype), n);
    hd_weight_load(w, 0, n, out, t);
}

static void test_mixed(void **state)
{
    enum { T = 17 };
    hd_safetensors ref;
    hd_lm_config c;
    hd_error e = {0};
    model_run m;
    hd_tensor out;
    double tokens[T], positions[T], zero[T] = {0}, one = 1;
    (void)state;
    need(hd_lm_config_open(&c, DATA "gguf/llama-mixed.gguf", &e), &e);
    assert_true(c.arch == HD_ARCH_LLAMA && c.width == 256 && c.layers == 2 && c.heads == 2 && c.kv_heads == 1 && c.head_dim == 32 && c.vocab == 416);
    assert_true(c.norm_eps == 1e-5 && c.rope.theta == 5000 && !c.tie_embeddings && c.bos == 1 && c.n_eos == 1 && c.eos[0] == 2);
    need(hd_safetensors_open(&ref, DATA "gguf/reference.safetensors", &e), &e);
    open_run(&m, &c, T, DATA "gguf/llama-mixed.gguf");
    load(&ref, "tokens", tokens, HD_F64, T);
    for (int i = 0; i < T; i++) positions[i] = i;
    need(model_run_set(&m, "tokens", tokens, T, &e), &e);
    need(model_run_set(&m, "positions", positions, T, &e), &e);
    need(model_run_set(&m, "segments", zero, T, &e), &e);
    need(model_run_set(&m, "targets", zero, T, &e), &e);
    need(model_run_set(&m, "inv_divisor", &one, 1, &e), &e);
    need(hd_exec_step(m.exec, NULL, &e), &e);
    need(hd_exec_output(m.exec, "logits", &out, &e), &e);
    float *want = malloc(T * 416 * 4), largest = 0, worst = 0;
    load(&ref, "logits", want, HD_F32, T * 416);
    for (int i = 0; i < T * 416; i++) {
        float difference = fabsf(((float *)out.data)[i] - want[i]);
        assert_true(isfinite(difference));
        largest = fmaxf(largest, fabsf(want[i]));
        worst = fmaxf(worst, difference);
    }
    assert_true(largest > 1 && worst <= 1e-5f * largest);
    free(want);
    model_run_close(&m);
    hd_safetensors_close(&ref);
}

/* ---- there and back ---- */

static int write_model(const hd_lm_config *c, const hd_store *s, const char *type, hd_error *e)
{
    hd_gguf_writer *w = hd_gguf_writer_new(e);
    int rc = hd_lm_gguf_declare(w, c, hd_quant_by_name(type), e);
    if (rc) {
        hd_gguf_writer_free(w);
        return rc;
    }
    rc = hd_gguf_begin(w, path, e);
    if (!rc) rc = hd_lm_gguf_write(w, c, s, e);
    return hd_gguf_end(w, rc, e);
}

/* tolerance: relative to the largest number of a tensor. */
static void expect_same(const hd_store *a, const hd_store *b, double tolerance)
{
    assert_int_equal(a->n_tensors, b->n_tensors);
    for (size_t i = 0; i < a->n_tensors; i++) {
        const hd_store_tensor *x = a->tensors[i], *y = hd_store_find(b, x->path);
        double largest = 0, worst = 0;
        assert_non_null(y);
        for (int64_t k = 0; k < hd_shape_count(&x->type.shape); k++) {
            double u = hd_load_f64(x->data, x->type.dtype, k), v = hd_load_f64(y->data, y->type.dtype, k);
            assert_true(isfinite(u) && isfinite(v));
            largest = fmax(largest, fabs(u));
            worst = fmax(worst, fabs(u - v));
        }
        if (!(worst <= tolerance * largest)) fail_msg("%s differs by %g of %g", x->path, worst, largest);
    }
}

static void there_and_back(const char *name, const char *type, double tolerance)
{
    char dir[512];
    hd_lm_config c, d;
    hd_error e = {0};
    model_run a, b;
    snprintf(dir, sizeof dir, DATA "models/logits/%s", name);
    need(hd_lm_config_load(&c, dir, &e), &e);
    if (c.arch == HD_ARCH_GEMMA2) c.query_scalar = (double)c.head_dim; /* all that its files can say */
    open_run(&a, &c, 8, dir);
    need(write_model(&c, a.store, type, &e), &e);
    need(hd_lm_config_open(&d, path, &e), &e);
    assert_true(d.width == c.width && d.layers == c.layers && d.heads == c.heads && d.kv_heads == c.kv_heads && d.head_dim == c.head_dim);
    assert_true(d.mlp_width == c.mlp_width && d.vocab == c.vocab && d.max_positions == c.max_positions && d.norm_eps == c.norm_eps);
    assert_true(d.tie_embeddings == c.tie_embeddings && d.qkv_bias == c.qkv_bias && d.o_bias == c.o_bias && d.mlp_bias == c.mlp_bias && d.qk_norm == c.qk_norm);
    assert_true(d.activation_op == c.activation_op && d.family == c.family && hd_lm_config_parameters(&d) == hd_lm_config_parameters(&c));
    for (int64_t i = 0; i < c.layers; i++) assert_true(hd_lm_config_window(&c, i) == hd_lm_config_window(&d, i));
    if (c.family != HD_FAMILY_GPT2) {
        float f[2048], g[2048];
        assert_true(c.attn_softcap == d.attn_softcap && c.final_softcap == d.final_softcap && c.local_theta == d.local_theta);
        assert_true(hd_lm_rotary_dim(&c) == hd_lm_rotary_dim(&d));
        for (int64_t length = 1; length < 1 << 20; length += (1 << 20) - 2) {
            assert_true(fabs(hd_lm_rope_frequencies(&c, length, f) - hd_lm_rope_frequencies(&d, length, g)) < 1e-6);
            for (int64_t i = 0; i < hd_lm_rotary_dim(&c) / 2; i++) assert_true(fabsf(f[i] - g[i]) <= 2e-7f * f[i]);
        }
    }
    open_run(&b, &d, 8, path);
    expect_same(a.store, b.store, tolerance);
    model_run_close(&a);
    model_run_close(&b);
}

static void test_there_and_back(void **state)
{
    static const char *const models[] = {"gpt2",      "llama-grouped", "llama3", "llama-linear", "llama-yarn",  "qwen2",  "qwen3",
                                         "phi3",      "phi3-full",     "smollm", "gemma2",       "gemma2-head", "gemma3",
                                         "phi3-short", "phi3-long", "phi3-partial", "llama-long"};
    (void)state;
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) there_and_back(models[i], "F32", strncmp(models[i], "gemma", 5) ? 0 : 2e-7); /* norms: one more, one less */
    there_and_back("llama-yarn", "F16", 1e-3);
    there_and_back("llama-yarn", "BF16", 4e-3);
    there_and_back("llama-yarn", "Q8_0", 1.0 / 200);
    there_and_back("llama-yarn", "Q4_0", 1.0 / 7);
}

static void test_not_writable(void **state)
{
    static const struct { const char *model, *message; } cases[] = {{"gpt2-untied", "this activation"}, {"mistral-window", "a sliding window"},
                                                                     {"gemma2", "this query_pre_attn_scalar"}};
    (void)state;
    for (int i = 0; i < 3; i++) {
        char dir[512];
        hd_lm_config c;
        hd_error e = {0};
        snprintf(dir, sizeof dir, DATA "models/logits/%s", cases[i].model);
        need(hd_lm_config_load(&c, dir, &e), &e);
        if (i == 0) c.scale_by_layer = false;
        if (i == 1) c.activation_op = HD_EW_SILU;
        assert_int_equal(write_model(&c, NULL, "F32", &e), HD_EUNSUPPORTED);
        assert_non_null(strstr(e.message, cases[i].message));
    }
}

/* ---- what is no model ---- */

typedef struct broken {
    const char *leave_out, *change; /* a key that is missing; that has the value: */
    int64_t value;
    const char *rename, *to;        /* a tensor */
    const char *message;
} broken;

static void put_int(hd_gguf_writer *w, const broken *b, const char *key, int64_t v)
{
    if (b->leave_out && !strcmp(b->leave_out, key)) return;
    hd_gguf_put_int(w, key, HD_GGUF_U32, b->change && !strcmp(b->change, key) ? b->value : v);
}

static void write_broken(const broken *b)
{
    static const struct { const char *name; int rank; int64_t dim[2]; } tensors[] = {
        {"token_embd.weight", 2, {7, 4}}, {"blk.0.attn_norm.weight", 1, {4}}, {"blk.0.attn_q.weight", 2, {4, 4}}, {"blk.0.attn_k.weight", 2, {4, 4}},
        {"blk.0.attn_v.weight", 2, {4, 4}}, {"blk.0.attn_output.weight", 2, {4, 4}}, {"blk.0.ffn_norm.weight", 1, {4}}, {"blk.0.ffn_gate.weight", 2, {6, 4}},
        {"blk.0.ffn_up.weight", 2, {6, 4}}, {"blk.0.ffn_down.weight", 2, {4, 6}}, {"output_norm.weight", 1, {4}}};
    float x[64] = {0};
    hd_error e = {0};
    hd_gguf_writer *w = hd_gguf_writer_new(&e);
    const char *arch = b->change && !strcmp(b->change, "general.architecture") ? b->to : "llama";
    if (!b->leave_out || strcmp(b->leave_out, "general.architecture")) hd_gguf_put_string(w, "general.architecture", arch, strlen(arch));
    put_int(w, b, "llama.context_length", 16);
    put_int(w, b, "llama.embedding_length", 4);
    put_int(w, b, "llama.block_count", 1);
    put_int(w, b, "llama.feed_forward_length", 6);
    put_int(w, b, "llama.attention.head_count", 2);
    if (!b->leave_out || strcmp(b->leave_out, "eps")) hd_gguf_put_real(w, "llama.attention.layer_norm_rms_epsilon", HD_GGUF_F32, 1e-5);
    put_int(w, b, "llama.rope.dimension_count", 2);
    put_int(w, b, "llama.expert_count", 0);
    put_int(w, b, "split.count", 1);
    for (int i = 0; i < 11; i++) {
        const char *name = b->rename && !b->change && !strcmp(b->rename, tensors[i].name) ? b->to : tensors[i].name;
        need(hd_gguf_add(w, name, hd_quant_by_name("F32"), tensors[i].rank, tensors[i].dim, &e), &e);
    }
    int rc = hd_gguf_begin(w, path, &e);
    for (int i = 0; i < 11 && !rc; i++) rc = hd_gguf_write(w, x, tensors[i].dim[0] * (tensors[i].rank == 2 ? tensors[i].dim[1] : 1), &e);
    need(hd_gguf_end(w, rc, &e), &e);
}

static int load_model(hd_error *e)
{
    hd_lm_config c;
    model_run m;
    int rc = hd_lm_config_open(&c, path, e);
    if (rc) return rc;
    hd_lm_options o = {.mode = HD_LM_EVAL, .tokens = 4, .compute = HD_F32, .param = HD_F32};
    hd_error local = {0};
    need(model_run_open(&m, hd_lm_graph(&c, &o, &local), "cpu", 1, 1, &local), &local);
    rc = hd_lm_weights_load(m.store, &c, path, e);
    model_run_close(&m);
    return rc;
}

static void test_no_model(void **state)
{
    static const broken cases[] = {
        {.leave_out = "general.architecture", .message = "\"general.architecture\" is missing"},
        {.change = "general.architecture", .to = "mamba", .message = "architecture \"mamba\" is not supported"},
        {.change = "general.architecture", .to = "gemma3", .message = "\"gemma3.embedding_length\" is missing"},
        {.leave_out = "llama.block_count", .message = "\"llama.block_count\" is missing"},
        {.leave_out = "eps", .message = "layer_norm_rms_epsilon\" is missing"},
        {.change = "llama.block_count", .value = 0, .message = "\"llama.block_count\" is 0"},
        {.change = "llama.block_count", .value = 100000, .message = "\"llama.block_count\" is 100000"},
        {.change = "llama.block_count", .value = 2, .message = "there is no tensor blk.1.attn_norm.weight"},
        {.change = "llama.embedding_length", .value = 8, .message = "token_embd.weight\": has shape [7, 4]"},
        {.change = "llama.attention.head_count", .value = 3, .message = "3 heads do not divide"},
        {.change = "llama.attention.head_count", .value = 4, .message = "\"head_dim\" is 1"},
        {.change = "llama.rope.dimension_count", .value = 1, .message = "rope.dimension_count"},
        {.change = "llama.rope.dimension_count", .value = 4, .message = "4 features of a head's 2 cannot be rotated"},
        {.change = "llama.rope.dimension_count", .value = 3, .message = "heads of 3 features"},
        {.change = "llama.expert_count", .value = 8, .message = "\"llama.expert_count\" is not supported"},
        {.change = "split.count", .value = 3, .message = "one of 3 files"},
        {.change = "llama.feed_forward_length", .value = 5, .message = "blk.0.ffn_gate.weight\": has shape [6, 4]"},
        {.rename = "token_embd.weight", .to = "token_embedding.weight", .message = "no tensor token_embd.weight"},
        {.rename = "output_norm.weight", .to = "norm.weight", .message = "there is no tensor output_norm.weight"},
        {.rename = "blk.0.ffn_norm.weight", .to = "blk.0.attn_q.bias", .message = "there is no tensor blk.0.attn_k.bias"},
        {.rename = "blk.0.attn_norm.weight", .to = "rope_freqs.weight", .message = "rope_freqs.weight must be 1 numbers"},
        {.rename = "blk.0.attn_norm.weight", .to = "rope_factors_long.weight", .message = "there is no tensor rope_factors_short.weight, which longrope"},
        {.rename = "blk.0.attn_norm.weight", .to = "rope_factors_short.weight", .message = "rope_factors_short.weight must be 1 numbers"},
    };
    (void)state;
    write_broken(&(broken){0});
    hd_error e = {0};
    need(load_model(&e), &e);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        e = (hd_error){0};
        write_broken(&cases[i]);
        int rc = load_model(&e);
        if (rc >= 0 || !strstr(e.message, cases[i].message) || strncmp(e.message, path, strlen(path)) || strchr(e.message, '\n'))
            fail_msg("wanted \"%s\", got %d \"%s\"", cases[i].message, rc, e.message);
    }
}

/* ---- tokenizers ---- */

/* The fixture's file with or without a space put before a text. */
static hd_tokenizer *open_pieces(bool prefix)
{
    static const char key[] = "tokenizer.ggml.add_space_prefix";
    hd_str s;
    hd_gguf g;
    hd_error e = {0};
    hd_str_init(&s);
    need(hd_file_read(&s, DATA "gguf/llama-mixed.gguf", 0, &e), &e);
    char *at = memmem(s.data, s.len, key, sizeof key - 1);
    assert_non_null(at);
    at[sizeof key - 1 + 4] = prefix;
    need(hd_gguf_parse(&g, s.data, s.len, "pieces", &e), &e);
    hd_tokenizer *t = hd_tokenizer_from_gguf(&g, &e);
    need(t ? 0 : e.code, &e);
    hd_gguf_close(&g);
    hd_str_free(&s);
    return t;
}

/* ids of the reference's texts: "prefix" or "plain". Uses t up. */
static void check_pieces(hd_tokenizer *t, const char *name)
{
    enum { TEXTS = 150 };
    static char strings[65536];
    static int32_t lengths[TEXTS], counts[TEXTS], want[65536];
    char key[32];
    hd_safetensors ref;
    hd_error e = {0};
    need(hd_safetensors_open(&ref, DATA "gguf/reference.safetensors", &e), &e);
    hd_encoder *encoder = hd_encoder_new(t, &e);
    const hd_weight *text = hd_safetensors_find(&ref, "strings");
    memcpy(strings, text->data, text->bytes);
    load(&ref, "lengths", lengths, HD_I32, TEXTS);
    snprintf(key, sizeof key, "%s.counts", name);
    load(&ref, key, counts, HD_I32, TEXTS);
    snprintf(key, sizeof key, "%s.ids", name);
    const hd_weight *ids = hd_safetensors_find(&ref, key);
    hd_weight_load(ids, 0, (int64_t)(ids->bytes / 4), want, HD_I32);
    const char *at = strings;
    const int32_t *expected = want;
    for (int i = 0; i < TEXTS; i++) {
        hd_ids got = {0};
        hd_str back;
        hd_str_init(&back);
        need(hd_encoder_run(encoder, at, (size_t)lengths[i], true, &got, &e), &e);
        if (got.len != (size_t)counts[i] || memcmp(got.data, expected, got.len * 4)) fail_msg("%s: text %d \"%.*s\" has other ids", name, i, lengths[i], at);
        need(hd_tokenizer_decode(t, got.data, got.len, true, &back, &e), &e);
        bool controls = memmem(at, (size_t)lengths[i], "<start>", 7) || memmem(at, (size_t)lengths[i], "<b>", 3) || memmem(at, (size_t)lengths[i], "\xe2\x96\x81", 3) ||
                        memmem(at, (size_t)lengths[i], "\n\n", 2); /* a space is put behind those, too */
        if (!controls && (back.len != (size_t)lengths[i] || memcmp(back.data, at, back.len))) fail_msg("%s: text %d came back as \"%s\"", name, i, back.data);
        at += lengths[i];
        expected += counts[i];
        hd_ids_free(&got);
        hd_str_free(&back);
    }
    hd_encoder_free(encoder);
    hd_tokenizer_free(t);
    hd_safetensors_close(&ref);
}

static void test_pieces(void **state)
{
    (void)state;
    check_pieces(open_pieces(true), "prefix");
    check_pieces(open_pieces(false), "plain");
    hd_tokenizer *t = open_pieces(true);
    hd_error e = {0};
    assert_int_equal(hd_tokenizer_save(t, path, &e), HD_EUNSUPPORTED);
    assert_true(hd_tokenizer_vocab_size(t) == 416 && hd_tokenizer_id(t, "<start>") >= 0 && hd_tokenizer_is_special(t, 1));
    hd_tokenizer_free(t);
}

/* The same as a tokenizer.json, which is also written back. */
static void test_pieces_json(void **state)
{
    char file[300];
    hd_error e = {0};
    hd_tokenizer *t = hd_tokenizer_load(DATA "gguf/pieces.json", &e);
    need(t ? 0 : e.code, &e);
    snprintf(file, sizeof file, "%s/again.json", (char *)*state);
    need(hd_tokenizer_save(t, file, &e), &e);
    check_pieces(t, "prefix");
    t = hd_tokenizer_load(file, &e);
    need(t ? 0 : e.code, &e);
    check_pieces(t, "prefix");
    static const struct { const char *from, *to, *message; } cases[] = {
        {"\"ByteFallback\"", "\"BitFallback\"", "decoder: one other than SentencePiece's"}, {"\"ignore_merges\": false", "\"ignore_merges\": true", "\"ignore_merges\""},
        {"\"Prepend\"", "\"Lowercase\"", "\"Lowercase\" isn't supported"}};
    for (int i = 0; i < 3; i++) {
        hd_str s, bad;
        hd_str_init(&s);
        hd_str_init(&bad);
        need(hd_file_read(&s, DATA "gguf/pieces.json", 0, &e), &e);
        char *at = strstr(s.data, cases[i].from);
        assert_non_null(at);
        hd_str_add(&bad, s.data, (size_t)(at - s.data));
        hd_str_puts(&bad, cases[i].to);
        hd_str_puts(&bad, at + strlen(cases[i].from));
        assert_null(hd_tokenizer_parse(bad.data, bad.len, "bad.json", &e));
        if (e.code != HD_EUNSUPPORTED || !strstr(e.message, cases[i].message)) fail_msg("\"%s\"", e.message);
        e = (hd_error){0};
        hd_str_free(&s);
        hd_str_free(&bad);
    }
}

/* A tokenizer.json through a GGUF file. */
static hd_tokenizer *through_file(const hd_tokenizer *t, hd_error *e)
{
    hd_tokenizer *back = NULL;
    hd_gguf_writer *w = hd_gguf_writer_new(e);
    int rc = hd_tokenizer_to_gguf(t, hd_tokenizer_vocab_size(t) + 3, -1, 0, w, e);
    if (!rc) rc = hd_gguf_begin(w, path, e);
    if (w && rc) hd_gguf_writer_free(w);
    else rc = hd_gguf_end(w, rc, e);
    if (!rc) rc = hd_tokenizer_open_gguf(&back, path, e);
    return back;
}

static void test_byte_level(void **state)
{
    (void)state;
    for (int k = 0; k < 2; k++) {
        char file[512];
        case_file f;
        text_case c;
        hd_error e = {0};
        int cases = 0;
        snprintf(file, sizeof file, DATA "tokenizer/%s.json", case_tokenizers[k]);
        hd_tokenizer *t = hd_tokenizer_load(file, &e), *back = t ? through_file(t, &e) : NULL;
        need(back ? 0 : e.code, &e);
        hd_encoder *encoder = hd_encoder_new(back, &e);
        need(case_open(&f, DATA "tokenizer/cases.bin", &e), &e);
        for (; case_next(&f, &c); cases++) {
            hd_ids got = {0};
            need(hd_encoder_run(encoder, c.text, c.size, true, &got, &e), &e);
            if (!case_same(&c, k, &got)) fail_msg("%s: case %d differs", case_tokenizers[k], cases);
            hd_ids_free(&got);
        }
        assert_true(cases > 100);
        hd_map_close(&f.map);
        hd_encoder_free(encoder);
        hd_tokenizer_free(back);
        hd_tokenizer_free(t);
    }
}

/* Tokenizers trained here, with every choice that names of pre-tokenizers don't say. */
static void test_trained(void **state)
{
    static const char text[] = "Caf\xc3\xa9s e\xcc\x81 12345 don't THEY'LL  \n\n x\xe6\x97\xa5";
    (void)state;
    for (int k = 0; k < 2 * HD_PRETOK_COUNT; k++) {
        hd_error e = {0};
        hd_ids a = {0}, b = {0};
        const char *const specials[] = {"<|end|>"};
        hd_bpe_spec spec = {.pretokenizer = (hd_pretokenizer)(k / 2), .vocab_size = 300, .specials = specials, .special_count = 1, .nfc = k % 2, .quiet = true};
        hd_bpe_trainer *trainer = hd_bpe_trainer_new(&spec, &e);
        need(hd_bpe_trainer_feed(trainer, text, sizeof text - 1, &e), &e);
        hd_tokenizer *t = hd_bpe_trainer_finish(trainer, &e), *back = t ? through_file(t, &e) : NULL;
        need(back ? 0 : e.code, &e);
        need(hd_tokenizer_encode(t, text, sizeof text - 1, true, &a, &e), &e);
        need(hd_tokenizer_encode(back, text, sizeof text - 1, true, &b, &e), &e);
        assert_true(a.len == b.len && !memcmp(a.data, b.data, a.len * 4));
        assert_true(hd_tokenizer_is_special(back, hd_tokenizer_id(back, "<|end|>")));
        hd_ids_free(&a);
        hd_ids_free(&b);
        hd_bpe_trainer_free(trainer);
        hd_tokenizer_free(back);
        hd_tokenizer_free(t);
    }
}

static void test_other_tokenizers(void **state)
{
    hd_error e = {0};
    (void)state;
    hd_tokenizer *t = hd_tokenizer_load(DATA "tokenizer/qwen2.json", &e);
    need(t ? 0 : e.code, &e);
    assert_null(through_file(t, &e));
    assert_true(e.code == HD_EUNSUPPORTED && strstr(e.message, "added tokens that take in"));
    hd_tokenizer_free(t);
    static const struct { const char *model, *pre, *message; } cases[] = {
        {"bert", "default", "tokenizer model \"bert\""}, {"gpt2", "unheard-of", "pre-tokenizer \"unheard-of\""}, {"gpt2", "gpt-2", "\"tokenizer.ggml.merges\" is missing"},
        {"llama", "default", "\"tokenizer.ggml.scores\" is missing"}};
    for (int i = 0; i < 4; i++) {
        e = (hd_error){0};
        hd_gguf_writer *w = hd_gguf_writer_new(&e);
        hd_gguf_put_string(w, "tokenizer.ggml.model", cases[i].model, strlen(cases[i].model));
        hd_gguf_put_string(w, "tokenizer.ggml.pre", cases[i].pre, strlen(cases[i].pre));
        hd_gguf_put_texts(w, "tokenizer.ggml.tokens", &(hd_gguf_text){"a", 1}, 1);
        if (i < 2) hd_gguf_put_texts(w, "tokenizer.ggml.merges", NULL, 0);
        need(hd_gguf_end(w, hd_gguf_begin(w, path, &e), &e), &e);
        assert_true(hd_tokenizer_open_gguf(&t, path, &e) && !t);
        if (!strstr(e.message, cases[i].message) || strncmp(e.message, path, strlen(path))) fail_msg("\"%s\"", e.message);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mixed),
        cmocka_unit_test_setup_teardown(test_there_and_back, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_not_writable, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_no_model, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_pieces, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_pieces_json, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_byte_level, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_trained, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_other_tokenizers, make_dir, remove_dir),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
