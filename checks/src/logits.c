/* logits.c: the measuring half of checks/logits: the logits of Hugging Face models against those that PyTorch computed in f32.
 *
 *   check_logits [--f32] DIR[:GGUF]...    each DIR a model with reference.safetensors (tests/make_model_fixtures.py); GGUF: a file of the same model, to be
 *                                         taken in its place. --f32: only what has a bound in f32, by the fast kernels
 *
 * f32: max |difference| <= 1e-4 x max |logit|. bf16: the same most likely token wherever the reference's two best are further apart than
 * 2 % of max |logit|. All sequences of a reference run as one row of tokens, told apart by segments. */
#include "model_run.h"
#include "models/gguf.h"

#define F32_BOUND 1e-4
#define BF16_GAP 0.02

typedef struct reference {
    int64_t rows, vocab, longest;
    double *tokens, *positions, *segments, *logits; /* [rows], [rows, vocab] */
} reference;

static void reference_free(reference *r)
{
    free(r->tokens);
    free(r->positions);
    free(r->segments);
    free(r->logits);
}

static int reference_open(reference *r, const char *dir, int64_t vocab, hd_error *err)
{
    char path[4096];
    hd_safetensors s = { 0 };
    int64_t sequences = 0, n = 0, at = 0;
    *r = (reference){ .vocab = vocab };
    int rc = hd_path_join(path, sizeof path, dir, "reference.safetensors", err);
    if (!rc) rc = hd_safetensors_open(&s, path, err);
    if (rc) return rc;
    double *lengths = reference_load(&s, "lengths", &sequences, err);
    r->tokens = lengths ? reference_load(&s, "tokens", &r->rows, err) : NULL;
    r->logits = r->tokens ? reference_load(&s, "logits", &n, err) : NULL;
    r->positions = malloc((size_t)r->rows * sizeof(double) + 1);
    r->segments = malloc((size_t)r->rows * sizeof(double) + 1);
    if (r->logits && n != r->rows * vocab) hd_fail(err, HD_EFORMAT, "%s: logits are not of every token", path);
    for (int64_t i = 0; lengths && i < sequences; i++) {
        r->longest = (int64_t)fmax((double)r->longest, lengths[i]);
        for (int64_t k = 0; k < (int64_t)lengths[i] && at < r->rows; k++, at++) r->positions[at] = (double)k, r->segments[at] = (double)i;
    }
    if (at != r->rows) hd_fail(err, HD_EFORMAT, "%s: lengths do not add up", path);
    free(lengths);
    hd_safetensors_close(&s);
    return err->code;
}

static double largest(const double *x, int64_t n)
{
    double m = 0;
    for (int64_t i = 0; i < n; i++) m = fmax(m, fabs(x[i]));
    return m;
}

/* Infinity where a value is not finite. */
static double worst_difference(const reference *r, const hd_tensor *got)
{
    double worst = 0;
    for (int64_t i = 0; i < r->rows * r->vocab; i++) {
        double d = fabs(hd_load_f64(got->data, got->dtype, i) - r->logits[i]);
        if (!(d <= worst)) worst = isfinite(d) ? d : INFINITY;
    }
    return worst;
}

static int64_t best_of(const hd_tensor *got, int64_t row, int64_t vocab)
{
    int64_t best = 0;
    for (int64_t v = 1; v < vocab; v++)
        if (hd_load_f64(got->data, got->dtype, row * vocab + v) > hd_load_f64(got->data, got->dtype, row * vocab + best)) best = v;
    return best;
}

/* The reference's best token of a row, and by how much. */
static int64_t best_reference(const double *x, int64_t vocab, double *gap)
{
    int64_t best = 0;
    for (int64_t v = 1; v < vocab; v++)
        if (x[v] > x[best]) best = v;
    *gap = INFINITY;
    for (int64_t v = 0; v < vocab; v++)
        if (v != best) *gap = fmin(*gap, x[best] - x[v]);
    return best;
}

/* Rows whose best token differs although the reference is clear; *clear: how many are. */
static int64_t wrong_tokens(const reference *r, const hd_tensor *got, int64_t *clear)
{
    double least = BF16_GAP * largest(r->logits, r->rows * r->vocab), gap;
    int64_t wrong = 0;
    *clear = 0;
    for (int64_t t = 0; t < r->rows; t++) {
        int64_t best = best_reference(r->logits + t * r->vocab, r->vocab, &gap);
        if (!(gap > least)) continue;
        ++*clear;
        wrong += best_of(got, t, r->vocab) != best;
    }
    return wrong;
}

static int run(model_run *m, const hd_lm_config *c, const char *model, const reference *r, const char *backend, hd_dtype dtype, hd_error *err)
{
    int64_t longest = r->rows % r->longest ? r->longest : 0; /* a divisor would say that all have that length */
    hd_lm_options o = { .mode = HD_LM_EVAL, .compute = dtype, .param = dtype, .tokens = r->rows, .sequence = longest, .logits = true };
    int rc = model_run_open(m, hd_lm_graph(c, &o, err), backend, 2, 1, err);
    if (!rc) rc = hd_lm_weights_load(m->store, c, model, err);
    if (!rc) rc = model_run_set(m, "tokens", r->tokens, r->rows, err);
    if (!rc) rc = model_run_set(m, "positions", r->positions, r->rows, err);
    if (!rc) rc = model_run_set(m, "segments", r->segments, r->rows, err);
    if (!rc) rc = model_run_set(m, "targets", r->segments, r->rows, err); /* the loss is not looked at */
    if (!rc) rc = model_run_set(m, "inv_divisor", &(double){ 1 }, 1, err);
    return rc ? rc : hd_exec_step(m->exec, NULL, err);
}

/* model: the directory itself, or a GGUF file. */
static int check(const char *dir, const char *model, const char *backend, hd_dtype dtype, bool *pass, hd_error *err)
{
    hd_lm_config c;
    reference r = { 0 };
    model_run m = { 0 };
    hd_tensor logits;
    char what[160];
    double start = hd_time();
    const char *name = strrchr(dir, '/') ? strrchr(dir, '/') + 1 : dir;
    int rc = hd_lm_config_open(&c, model, err);
    if (!rc) rc = reference_open(&r, dir, c.vocab, err);
    if (!rc) rc = run(&m, &c, model, &r, backend, dtype, err);
    if (!rc) rc = hd_exec_output(m.exec, "logits", &logits, err);
    if (!rc && dtype == HD_F32) {
        snprintf(what, sizeof what, "%.60s %s%s f32: max |difference| / max |logit|", name, model == dir ? "" : "GGUF ", backend);
        *pass = figure_at_most(what, worst_difference(&r, &logits) / largest(r.logits, r.rows * r.vocab), F32_BOUND);
    } else if (!rc) {
        int64_t clear, wrong = wrong_tokens(&r, &logits, &clear);
        snprintf(what, sizeof what, "%.60s %s bf16: other tokens of %lld that are clear", name, backend, (long long)clear);
        *pass = figure_at_most(what, isfinite(worst_difference(&r, &logits)) && clear > 0 ? (double)wrong : INFINITY, 0);
    }
    if (rc) hd_error_context(err, "%s", dir);
    else printf("  %*s%.2f s\n", 64, "", hd_time() - start);
    model_run_close(&m);
    reference_free(&r);
    return rc;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *backend;
        hd_dtype dtype;
    } variants[] = { { "cpu", HD_F32 }, { "cpu", HD_BF16 }, { "reference", HD_F32 } };
    double start = hd_time();
    bool f32 = argc > 1 && !strcmp(argv[1], "--f32");
    int failed = argc < 2 + f32;
    for (int i = 1 + f32; i < argc; i++)
        for (size_t k = 0; k < (f32 ? 1 : sizeof variants / sizeof *variants); k++) {
            hd_error err = { 0 };
            bool pass = false;
            char dir[4096];
            snprintf(dir, sizeof dir, "%s", argv[i]);
            char *colon = strchr(dir, ':');
            if (colon) *colon = 0;
            if (check(dir, colon ? colon + 1 : dir, variants[k].backend, variants[k].dtype, &pass, &err)) printf("  %s FAIL\n", err.message);
            failed += !pass;
        }
    printf("logits: %s (%d models, %.1f s)\n", failed ? "FAIL" : "PASS", argc - 1 - f32, hd_time() - start);
    return failed != 0;
}
