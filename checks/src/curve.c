/* curve.c: the measuring half of checks/curve: training against PyTorch.
 *
 *   check_curve DIR...     each DIR a model with reference.safetensors (tests/make_model_fixtures.py)
 *
 * The same AdamW steps in f32 on the same tokens: each loss within 1e-4 of PyTorch's, each final tensor within 1e-3 by norm, and the loss
 * falls by at least 1 nat. Once with the batch in one piece, once with a micro-batch for each sequence. */
#include "model_run.h"
#include "train/step.h"

#define LOSS_BOUND 1e-4
#define TENSOR_BOUND 1e-3
#define LEAST_FALL 1.0

typedef struct reference {
    hd_safetensors file;
    int64_t steps, batch, length;
    double *tokens, *loss, *hyper; /* [steps, batch, length + 1], [steps], lr, beta1, beta2, eps, decay, clip */
} reference;

static void reference_free(reference *r)
{
    free(r->tokens);
    free(r->loss);
    free(r->hyper);
    hd_safetensors_close(&r->file);
}

static int reference_open(reference *r, const char *dir, hd_error *err)
{
    char path[4096];
    int64_t n, hypers = 0;
    int rc = hd_path_join(path, sizeof path, dir, "reference.safetensors", err);
    if (!rc) rc = hd_safetensors_open(&r->file, path, err);
    if (rc) return rc;
    r->tokens = reference_load(&r->file, "tokens", &n, err);
    r->loss = r->tokens ? reference_load(&r->file, "loss", &r->steps, err) : NULL;
    r->hyper = r->loss ? reference_load(&r->file, "hyper", &hypers, err) : NULL;
    if (!r->hyper) return err->code;
    const hd_weight *t = hd_safetensors_find(&r->file, "tokens");
    if (t->rank != 3 || t->dim[0] != r->steps || t->dim[2] < 2 || hypers != 6)
        return hd_fail(err, HD_EFORMAT, "%s: not a reference of a training curve", path);
    r->batch = t->dim[1];
    r->length = t->dim[2] - 1;
    return HD_OK;
}

/* A training run and where it stands. */
typedef struct trainer {
    model_run m;
    const reference *r;
    int64_t rows; /* sequences in a micro-batch */
    int64_t step;
} trainer;

/* hd_exec_hooks.before: the sequences of one micro-batch. */
static int feed(void *arg, hd_exec *e, hd_segment_kind kind, hd_call *call, hd_error *err)
{
    (void)e;
    trainer *t = arg;
    const reference *r = t->r;
    int64_t n = t->rows * r->length;
    if (kind != HD_SEGMENT_FORWARD) return HD_OK;
    double *x = malloc(4 * (size_t)n * sizeof *x), *y = x + n, *pos = y + n, *seg = pos + n;
    if (!x) return hd_fail_memory(err, (size_t)n, "tokens");
    for (int64_t i = 0; i < n; i++) {
        int64_t b = i / r->length, k = i % r->length;
        const double *row = r->tokens + ((t->step * r->batch + call->micro * t->rows + b) * (r->length + 1));
        x[i] = row[k], y[i] = row[k + 1], pos[i] = (double)k, seg[i] = (double)b;
    }
    int rc = model_run_set(&t->m, "tokens", x, n, err);
    if (!rc) rc = model_run_set(&t->m, "targets", y, n, err);
    if (!rc) rc = model_run_set(&t->m, "positions", pos, n, err);
    if (!rc) rc = model_run_set(&t->m, "segments", seg, n, err);
    free(x);
    return rc;
}

static int open_trainer(trainer *t, const hd_lm_config *c, const char *dir, const reference *r, int64_t micro_batches, hd_error *err)
{
    const double *h = r->hyper;
    *t = (trainer){ .r = r, .rows = r->batch / micro_batches };
    hd_lm_options o = { .mode = HD_LM_TRAIN, .compute = HD_F32, .param = HD_F32, .tokens = t->rows * r->length };
    hd_step_options so = { .optimizer = HD_ADAMW, .beta1 = h[1], .beta2 = h[2], .eps = h[3], .weight_decay = h[4], .clip = h[5] };
    hd_graph *g = hd_lm_graph(c, &o, err);
    if (g && hd_step_append(g, &so)) hd_fail(err, g->err.code, "%s", g->err.message);
    if (err->code) {
        hd_graph_free(g);
        return err->code;
    }
    int rc = model_run_open(&t->m, g, "cpu", 2, micro_batches, err);
    if (!rc) rc = hd_lm_weights_load(t->m.store, c, dir, err);
    if (!rc) rc = model_run_set(&t->m, "lr", &h[0], 1, err);
    double inv_divisor = 1 / (double)(r->batch * r->length);
    return rc ? rc : model_run_set(&t->m, "inv_divisor", &inv_divisor, 1, err);
}

/* Trains and gives the largest difference of a loss, and by how much it fell. */
static int train(trainer *t, double *worst, double *fall, hd_error *err)
{
    const hd_exec_hooks hooks = { .arg = t, .before = feed };
    hd_tensor loss;
    double first = 0, now = 0;
    *worst = 0;
    for (t->step = 0; t->step < t->r->steps; t->step++) {
        int rc = model_run_set(&t->m, "step", &(double){ (double)t->step + 1 }, 1, err);
        if (!rc) rc = hd_exec_step(t->m.exec, &hooks, err);
        if (!rc) rc = hd_exec_output(t->m.exec, "loss", &loss, err);
        if (rc) return rc;
        now = hd_load_f64(loss.data, loss.dtype, 0);
        if (!t->step) first = now;
        double d = fabs(now - t->r->loss[t->step]);
        if (!(d <= *worst)) *worst = isfinite(d) ? d : INFINITY;
    }
    *fall = first - now;
    return HD_OK;
}

/* Element i of a Hugging Face tensor, from the parameters that lie in it. */
static double element(const hd_store *s, const hd_lm_tensor *t, int64_t i)
{
    int64_t last = t->dim[t->rank - 1], run = last / t->parts, row = i / last, part = i % last / run;
    const hd_store_tensor *p = hd_store_find(s, t->path[part]);
    return hd_load_f64(p->data, p->type.dtype, row * run + i % run);
}

/* |got - want| / |want| of one tensor after the last step. */
static int tensor_difference(const trainer *t, const hd_lm_tensor *which, double *out, hd_error *err)
{
    int64_t n;
    double *want = reference_load(&t->r->file, which->name, &n, err), difference = 0, norm = 0;
    if (!want) return err->code;
    for (int64_t i = 0; i < n; i++) {
        double d = element(t->m.store, which, i) - want[i];
        difference += d * d;
        norm += want[i] * want[i];
    }
    free(want);
    *out = sqrt(difference / norm);
    return HD_OK;
}

static int worst_tensor(const trainer *t, const hd_lm_config *c, double *worst, char *name, size_t size, hd_error *err)
{
    hd_lm_tensor *list = NULL;
    size_t n = 0;
    double d;
    int rc = hd_lm_tensors(c, &list, &n, err);
    *worst = 0;
    for (size_t i = 0; !rc && i < n; i++) {
        rc = tensor_difference(t, &list[i], &d, err);
        if (!rc && !(d <= *worst)) {
            *worst = isfinite(d) ? d : INFINITY;
            snprintf(name, size, "%s", list[i].name);
        }
    }
    hd_free(list);
    return rc;
}

static int check(const char *dir, const hd_lm_config *c, const reference *r, int64_t micro_batches, bool *pass, hd_error *err)
{
    trainer t = { 0 };
    double loss = 0, fall = 0, tensor = 0, start = hd_time();
    char name[128] = "", what[300];
    const char *model = strrchr(dir, '/') ? strrchr(dir, '/') + 1 : dir;
    int rc = open_trainer(&t, c, dir, r, micro_batches, err);
    if (!rc) rc = train(&t, &loss, &fall, err);
    if (!rc) rc = worst_tensor(&t, c, &tensor, name, sizeof name, err);
    if (!rc) {
        snprintf(what, sizeof what, "%s, %lld micro-batches: |loss - PyTorch's|, worst of %lld", model,
                 (long long)micro_batches, (long long)r->steps);
        *pass = figure_at_most(what, loss, LOSS_BOUND);
        snprintf(what, sizeof what, "%s: tensor after, by norm: %s", model, name);
        *pass &= figure_at_most(what, tensor, TENSOR_BOUND);
        printf("  %-64s %-11.3g >= %-9.3g %s\n", "the loss fell by (nats)", fall, LEAST_FALL, fall >= LEAST_FALL ? "PASS" : "FAIL");
        *pass &= fall >= LEAST_FALL;
        printf("  %*s%.2f s\n", 64, "", hd_time() - start);
    }
    model_run_close(&t.m);
    return rc;
}

static int check_model(const char *dir, bool *pass, hd_error *err)
{
    hd_lm_config c;
    reference r = { 0 };
    bool one = false, many = false;
    int rc = hd_lm_config_load(&c, dir, err);
    if (!rc) rc = reference_open(&r, dir, err);
    if (!rc) rc = check(dir, &c, &r, 1, &one, err);
    if (!rc) rc = check(dir, &c, &r, r.batch, &many, err);
    reference_free(&r);
    *pass = one && many;
    return rc ? hd_error_context(err, "%s", dir) : HD_OK;
}

int main(int argc, char **argv)
{
    double start = hd_time();
    int failed = argc < 2;
    for (int i = 1; i < argc; i++) {
        hd_error err = { 0 };
        bool pass = false;
        if (check_model(argv[i], &pass, &err)) printf("  %s FAIL\n", err.message);
        failed += !pass;
    }
    printf("curve: %s (%d models, %.1f s)\n", failed ? "FAIL" : "PASS", argc - 1, hd_time() - start);
    return failed != 0;
}
