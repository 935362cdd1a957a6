/* hf.c: the measuring half of checks/hf: writes checkpoints and the logits that Heddle computes from them, for transformers to repeat.
 *
 *   check_hf --logits DIR...   DIR/heddle.safetensors: the logits of a model that is there, such as a checkpoint of heddle train
 *   check_hf OUT DIR...    for each model DIR: OUT/NAME, initialised anew, trained for a few steps and saved, in shards if large enough;
 *                          with heddle.safetensors: tokens i32 [tokens], logits f32 [tokens, vocabulary] */
#include "model_run.h"
#include "train/step.h"

enum { TOKENS = 24, STEPS = 3 };
#define SHARD_BYTES 40000

static double token_at(const hd_lm_config *c, int i) { return (double)((i * 29 + 3) % c->vocab); }

static int set_tokens(model_run *m, const hd_lm_config *c, hd_error *err)
{
    double x[TOKENS], y[TOKENS], pos[TOKENS], seg[TOKENS] = { 0 }, inv = 1.0 / TOKENS;
    for (int i = 0; i < TOKENS; i++) x[i] = token_at(c, i), y[i] = token_at(c, i + 1), pos[i] = i;
    int rc = model_run_set(m, "tokens", x, TOKENS, err);
    if (!rc) rc = model_run_set(m, "targets", y, TOKENS, err);
    if (!rc) rc = model_run_set(m, "positions", pos, TOKENS, err);
    if (!rc) rc = model_run_set(m, "segments", seg, TOKENS, err);
    return rc ? rc : model_run_set(m, "inv_divisor", &inv, 1, err);
}

static int train(hd_lm_config *c, const char *out, hd_error *err)
{
    model_run m = { 0 };
    c->embd_dropout = c->resid_dropout = 0;
    hd_lm_options o = { .mode = HD_LM_TRAIN, .compute = HD_F32, .param = HD_F32, .tokens = TOKENS };
    hd_step_options so = { .optimizer = HD_ADAMW, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .clip = 1 };
    hd_graph *g = hd_lm_graph(c, &o, err);
    if (g && hd_step_append(g, &so)) hd_fail(err, g->err.code, "%s", g->err.message);
    int rc = err->code ? err->code : model_run_open(&m, g, "cpu", 2, 1, err);
    if (rc && !m.graph) hd_graph_free(g);
    if (!rc) rc = set_tokens(&m, c, err);
    if (!rc) rc = model_run_set(&m, "lr", &(double){ 0.01 }, 1, err);
    for (int i = 0; !rc && i < STEPS; i++) {
        rc = model_run_set(&m, "step", &(double){ i + 1 }, 1, err);
        if (!rc) rc = hd_exec_step(m.exec, NULL, err);
    }
    if (!rc) rc = hd_lm_save(m.store, c, out, c->dtype, SHARD_BYTES, err);
    model_run_close(&m);
    return rc;
}

static int write_logits(const hd_tensor *logits, const hd_lm_config *c, const char *out, hd_error *err)
{
    char path[4096];
    int32_t tokens[TOKENS];
    const hd_weight_spec specs[] = { { .name = "tokens", .dtype = HD_I32, .rank = 1, .dim = { TOKENS } },
                                     { .name = "logits", .dtype = HD_F32, .rank = 2, .dim = { TOKENS, c->vocab } } };
    for (int i = 0; i < TOKENS; i++) tokens[i] = (int32_t)token_at(c, i);
    int rc = hd_path_join(path, sizeof path, out, "heddle.safetensors", err);
    hd_safetensors_writer *w = rc ? NULL : hd_safetensors_create(path, specs, 2, NULL, err);
    if (!w) return err->code;
    rc = hd_safetensors_write(w, 0, 0, TOKENS, tokens, HD_I32, err);
    if (!rc) rc = hd_safetensors_write(w, 1, 0, TOKENS * c->vocab, logits->data, HD_F32, err);
    if (!rc) return hd_safetensors_finish(w, err);
    hd_safetensors_abandon(w);
    return rc;
}

/* From the files alone, as any other program would. */
static int compute_logits(const char *out, hd_error *err)
{
    model_run m = { 0 };
    hd_lm_config c;
    hd_tensor logits;
    hd_lm_options o = { .mode = HD_LM_EVAL, .compute = HD_F32, .param = HD_F32, .tokens = TOKENS, .logits = true };
    int rc = hd_lm_config_load(&c, out, err);
    if (!rc) rc = model_run_open(&m, hd_lm_graph(&c, &o, err), "cpu", 2, 1, err);
    if (!rc) rc = hd_lm_weights_load(m.store, &c, out, err);
    if (!rc) rc = set_tokens(&m, &c, err);
    if (!rc) rc = hd_exec_step(m.exec, NULL, err);
    if (!rc) rc = hd_exec_output(m.exec, "logits", &logits, err);
    if (!rc) rc = write_logits(&logits, &c, out, err);
    model_run_close(&m);
    return rc;
}

/* A model made here, from the config of DIR. */
static int make(const char *out_dir, const char *dir, hd_error *err)
{
    hd_lm_config c;
    char out[4096];
    const char *name = strrchr(dir, '/') ? strrchr(dir, '/') + 1 : dir;
    int rc = hd_path_join(out, sizeof out, out_dir, name, err);
    if (!rc) rc = hd_lm_config_load(&c, dir, err);
    if (!rc) rc = train(&c, out, err);
    return rc ? rc : compute_logits(out, err);
}

int main(int argc, char **argv)
{
    for (int i = 2; i < argc; i++) {
        hd_error err = { 0 };
        if (!strcmp(argv[1], "--logits") ? compute_logits(argv[i], &err) : make(argv[1], argv[i], &err)) {
            fprintf(stderr, "check_hf: %s: %s\n", argv[i], err.message);
            return 1;
        }
    }
    return argc < 3;
}
