/* lora.c: a model with adapters against the model that they were merged into.
 *
 *   check_lora ADAPTED MERGED BASE RANK
 *
 * ADAPTED: a checkpoint of `heddle train --lora-rank RANK` (base weights, adapters in its state); MERGED: the directory that the same run
 * wrote; BASE: the model it began with. Prints two figures, in f32 on the same tokens: the largest difference of logits between the first two,
 * and between adapted and base, both over the largest logit. */
#include "model_run.h"
#include "train/checkpoint.h"
#include "train/config.h"

enum { TOKENS = 48 };

static int lora_options(int64_t rank, const char *model, hd_lora_options *out, hd_settings_memory *memory, hd_error *err)
{
    hd_train_config c = {0};
    hd_session_options session;
    hd_lr_schedule lr;
    int rc = hd_settings_preset(hd_train_settings, &c, memory, err);
    c.model = model;
    c.lora_rank = rank;
    return rc ? rc : hd_train_config_check(&c, &session, out, &lr, err);
}

static int fill_inputs(model_run *m, const hd_lm_config *c, hd_error *err)
{
    double token[TOKENS], position[TOKENS], segment[TOKENS] = {0};
    for (int i = 0; i < TOKENS; i++) token[i] = (double)((i * 37 + 11) % c->vocab), position[i] = i;
    int rc = model_run_set(m, "tokens", token, TOKENS, err);
    if (!rc) rc = model_run_set(m, "positions", position, TOKENS, err);
    if (!rc) rc = model_run_set(m, "segments", segment, TOKENS, err);
    if (!rc) rc = model_run_set(m, "targets", segment, TOKENS, err);
    return rc ? rc : model_run_set(m, "inv_divisor", &(double){1}, 1, err);
}

/* Logits of the model in dir, with adapters from its state if lora is given: f64, [TOKENS, vocab], to be freed. */
static double *logits_of(const char *dir, const hd_lora_options *lora, int64_t *n, hd_error *err)
{
    hd_lm_config c;
    model_run m = {0};
    hd_tensor t;
    double *out = NULL;
    int rc = hd_lm_config_load(&c, dir, err);
    hd_lm_options o = {.mode = HD_LM_EVAL, .compute = HD_F32, .param = HD_F32, .tokens = TOKENS, .logits = true};
    hd_graph *g = rc ? NULL : hd_lm_graph(&c, &o, err);
    if (g && lora && hd_pass_lora(g, lora)) hd_fail(err, g->err.code, "%s", g->err.message);
    rc = model_run_open(&m, g, "cpu", 1, 1, err);
    if (!rc) rc = hd_lm_weights_load(m.store, &c, dir, err);
    if (!rc && lora) rc = hd_checkpoint_load_state(dir, m.store, err);
    if (!rc) rc = fill_inputs(&m, &c, err);
    if (!rc) rc = hd_exec_step(m.exec, NULL, err);
    if (!rc) rc = hd_exec_output(m.exec, "logits", &t, err);
    *n = rc ? 0 : hd_tensor_count(&t);
    if (!rc && (out = malloc((size_t)*n * sizeof *out + 1)))
        for (int64_t i = 0; i < *n; i++) out[i] = hd_load_f64(t.data, t.dtype, i);
    model_run_close(&m);
    return out;
}

/* Infinity where a value is not finite. */
static double apart(const double *a, const double *b, int64_t n)
{
    double worst = 0, largest = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = fabs(a[i] - b[i]);
        largest = fmax(largest, fabs(a[i]));
        if (!(d <= worst)) worst = isfinite(d) ? d : INFINITY;
    }
    return n && largest > 0 ? worst / largest : INFINITY;
}

int main(int argc, char **argv)
{
    hd_error err = {0};
    hd_lora_options lora = {0};
    hd_settings_memory memory = {0};
    if (argc != 5) return fprintf(stderr, "usage: check_lora ADAPTED MERGED BASE RANK\n"), 2;
    int64_t n[3] = {0};
    int rc = lora_options(atoll(argv[4]), argv[1], &lora, &memory, &err);
    double *adapted = rc ? NULL : logits_of(argv[1], &lora, &n[0], &err);
    double *merged = adapted ? logits_of(argv[2], NULL, &n[1], &err) : NULL, *base = merged ? logits_of(argv[3], NULL, &n[2], &err) : NULL;
    if (base && n[0] == n[1] && n[1] == n[2]) printf("%.3g %.3g\n", apart(adapted, merged, n[0]), apart(adapted, base, n[0]));
    else fprintf(stderr, "check_lora: %s\n", err.message);
    free(adapted);
    free(merged);
    free(base);
    hd_settings_free(&memory);
    return !base;
}
