/* network_task.c: a network file learning from the data that it names. */
#include <math.h>
#include <stdio.h>
#include "base/file.h"
#include "base/json.h"
#include "data/dataset.h"
#include "data/metrics.h"
#include "data/shuffle.h"
#include "models/network.h"
#include "tensor/safetensors.h"
#include "train/task.h"

#define PATH_SIZE 4096

typedef struct network_task {
    hd_task task;
    hd_network *network;
    const json_t *data;    /* its section; owned by network */
    hd_dataset train, test;
    uint32_t *order;       /* [train.count] of the samples in `epoch` */
    int64_t epoch;         /* -1: none yet */
    int64_t *row;          /* [batch] rows of the micro-batch being filled */
    int64_t *samples;      /* [batch] their numbers */
    float *scores;         /* [test.count, classes] of an evaluation */
    void *column; size_t column_cap; /* bytes: one column of the batch, on its way to an input */
} network_task;

/* ---- inputs ---- */

/* Rows of column c as input `name` of the program, whole. */
static int put_column(network_task *t, const hd_column *c, hd_exec *e, const char *name, const int64_t *row, int64_t n, hd_error *err)
{
    const hd_program *p = hd_exec_program(e);
    const hd_buffer *b = &p->buffers[hd_program_input(p, name)];
    int64_t count = hd_shape_count(b->layout ? &b->whole : &b->type.shape);
    if (c->elements * n != count)
        return hd_fail(err, HD_EINVAL, "input \"%s\" takes %lld numbers a sample, column \"%s\" has %lld", name, (long long)(count / n), c->name,
                       (long long)c->elements);
    size_t bytes = (size_t)count * hd_dtype_size(b->type.dtype);
    if (hd_grow(&t->column, &t->column_cap, bytes, 1)) return hd_fail_memory(err, bytes, "a batch");
    hd_dataset_rows(c, row, n, b->type.dtype, t->column);
    return hd_exec_put(e, name, t->column, err);
}

static int fill_columns(network_task *t, const hd_dataset *d, hd_exec *e, const int64_t *row, int64_t n, hd_error *err)
{
    const char *name;
    json_t *column;
    json_object_foreach(json_object_get(t->data, "inputs"), name, column) {
        const hd_column *c = hd_dataset_column(d, json_string_value(column));
        if (hd_program_input(hd_exec_program(e), name) < 0) continue;
        if (!c) return hd_fail(err, HD_EINVAL, "\"data\": there is no column \"%s\"", json_string_value(column));
        int rc = put_column(t, c, e, name, row, n, err);
        if (rc) return rc;
    }
    return 0;
}

static int begin_step(hd_task *base, hd_exec *e, int64_t first, int64_t step, hd_error *err)
{
    (void)first;
    int rc = hd_task_set_scalar(e, "inv_divisor", 1.0 / (double)(base->config->batch * base->config->micro_batches), err);
    return rc ? rc : hd_exec_put(e, "key", (int64_t[]){base->config->seed, step}, err);
}

/* Which training sample number `index` of the endless shuffled sequence is. */
static int64_t sample_row(network_task *t, int64_t index)
{
    int64_t epoch = index / t->train.count;
    if (epoch != t->epoch) hd_shuffle(t->order, (uint32_t)t->train.count, hd_hash_mix((uint64_t)t->task.config->seed, (uint64_t)epoch), true);
    t->epoch = epoch;
    return t->order[index % t->train.count];
}

static int fill(hd_task *base, hd_exec *e, int64_t first, hd_error *err)
{
    network_task *t = (network_task *)base;
    int64_t batch = base->config->batch;
    if (!t->data) return hd_fail(err, HD_EINVAL, "%s has no \"data\" section: what should it learn from?", base->config->model);
    for (int64_t k = 0; k < batch; k++) t->row[k] = sample_row(t, first + k);
    int rc = hd_task_number_samples(e, first, 1, batch, t->samples, err);
    return rc ? rc : fill_columns(t, &t->train, e, t->row, batch, err);
}

/* ---- evaluation ---- */

/* Scores (output `name`) of this batch's first n samples, copied behind those of the batches before. */
static int keep_scores(network_task *t, hd_exec *e, const char *name, int64_t first, int64_t n, int64_t *classes, hd_error *err)
{
    float *out;
    int64_t count, rows = t->task.config->batch;
    int rc = hd_ranks_output(e, name, &out, &count, err);
    if (!rc && !out) rc = hd_fail(err, HD_EINVAL, "\"data\": the metric's scores \"%s\" are no output of the network", name);
    if (rc) return rc;
    *classes = count / rows;
    size_t room = (size_t)(t->test.count * *classes);
    if (!t->scores && !(t->scores = hd_calloc(room, sizeof(float)))) rc = hd_fail_memory(err, room * sizeof(float), "scores");
    if (!rc) memcpy(t->scores + first * *classes, out, (size_t)(n * *classes) * sizeof(float));
    hd_free(out);
    return rc;
}

/* Runs the batch; *loss gets its loss. */
static int run_batch(hd_exec *e, double *loss, hd_error *err)
{
    float *out;
    int64_t count;
    int rc = hd_exec_step(e, NULL, err);
    if (!rc) rc = hd_ranks_output(e, "loss", &out, &count, err);
    if (rc) return rc;
    *loss = out ? (double)*out : NAN;
    hd_free(out);
    return 0;
}

static int measure(network_task *t, const char *kind, const char *labels, int64_t classes, int64_t counted, hd_evaluation *out, hd_error *err)
{
    const hd_column *c = hd_dataset_column(&t->test, labels);
    if (!c || c->dtype != HD_I32) return hd_fail(err, HD_EINVAL, "\"data\": the metric's labels \"%s\" are no column of i32", labels);
    hd_metric *m = &out->metric[out->n++];
    m->name = !strcmp(kind, "auc") ? "auc" : "accuracy";
    if (!strcmp(kind, "auc")) return hd_metric_auc(t->scores, c->data, counted, &m->value, err);
    m->value = hd_metric_accuracy(t->scores, c->data, counted, classes);
    return 0;
}

/* All held-out samples in batches; the last batch is filled up with its first sample, which counts neither in loss nor in metric. */
static int evaluate(hd_task *base, hd_exec *e, int64_t max_batches, hd_evaluation *out, hd_error *err)
{
    network_task *t = (network_task *)base;
    const json_t *metric = json_object_get(t->data, "metric");
    const char *kind = json_string_value(json_object_get(metric, "kind")), *scores = json_string_value(json_object_get(metric, "scores"));
    int64_t batch = base->config->batch, counted = 0, in_loss = 0, classes = 1;
    double loss = 0;
    *out = (hd_evaluation){0};
    if (!t->test.count) return 0; /* no data section, or none held out */
    if (hd_task_set_scalar(e, "inv_divisor", 1.0 / (double)batch, err)) return err->code;
    for (int64_t b = 0; counted < t->test.count && (!max_batches || b < max_batches); b++) {
        int64_t n = t->test.count - counted < batch ? t->test.count - counted : batch;
        double this = 0;
        for (int64_t k = 0; k < batch; k++) t->row[k] = counted + (k < n ? k : 0);
        int rc = fill_columns(t, &t->test, e, t->row, batch, err);
        if (!rc) rc = run_batch(e, &this, err);
        if (!rc && kind) rc = keep_scores(t, e, scores ? scores : "", counted, n, &classes, err);
        if (rc) return rc;
        if (n == batch || b == 0) loss += this, in_loss++;
        counted += n;
    }
    out->units = counted;
    out->metric[out->n++] = (hd_metric){"loss", loss / (double)in_loss};
    return kind ? measure(t, kind, json_string_value(json_object_get(metric, "labels")), classes, counted, out, err) : 0;
}

/* ---- graphs and weights ---- */

static int graphs(hd_task *base, hd_graph **train, hd_graph **eval, hd_error *err)
{
    network_task *t = (network_task *)base;
    hd_network_options o = {.batch = base->config->batch, .train = true};
    *eval = NULL;
    *train = hd_network_graph(t->network, &o, err);
    o.train = false;
    if (*train) *eval = hd_network_graph(t->network, &o, err);
    if (*eval) return 0;
    hd_graph_free(*train);
    return err->code;
}

/* Parameters, and states that are part of the model (running statistics); the optimizer's are named after a parameter. */
static bool of_model(const hd_whole *list, size_t n, const hd_whole *w)
{
    const char *dot = strchr(w->path, '.');
    if (w->kind == HD_PARAM || !dot) return true;
    for (size_t i = 0; i < n; i++)
        if (!strcmp(list[i].path, dot + 1)) return false;
    return true;
}

/* The model's tensors in the store, or of all stages. The caller frees *out. */
static int list_model(const hd_store *s, hd_whole **out, size_t *n, hd_error *err)
{
    size_t all = 0;
    hd_whole *list = NULL;
    int rc = hd_store_wholes(s, &list, &all, err);
    if (!rc && !(*out = hd_calloc(all + 1, sizeof **out))) rc = hd_fail_memory(err, all * sizeof **out, "a list of tensors");
    *n = 0;
    for (size_t i = 0; i < all && !rc; i++)
        if (of_model(list, all, &list[i])) (*out)[(*n)++] = list[i];
    hd_free(list);
    return rc;
}

static int load_tensor(const hd_weights *w, const hd_store *s, const hd_whole *to, const char *from, hd_error *err)
{
    const hd_weight *f = hd_weights_find(w, to->path);
    const hd_store_tensor *t = hd_store_find(s, to->path);
    if (!f) return hd_fail(err, HD_EFORMAT, "%s has no tensor \"%s\"", from, to->path);
    int rc = hd_weight_need_shape(f, to->type.shape.rank, to->type.shape.dim, err);
    if (!rc && t) hd_piece_load(f, s, t, (hd_file_place){0});
    return rc;
}

static int load(hd_task *base, hd_store *store, const char *from, hd_error *err)
{
    (void)base;
    hd_weights w = {0};
    hd_whole *list = NULL;
    size_t n = 0;
    if (!from) return 0;
    int rc = hd_weights_open(&w, from, err);
    if (!rc) rc = list_model(store, &list, &n, err);
    for (size_t i = 0; i < n && !rc; i++) rc = load_tensor(&w, store, &list[i], from, err);
    hd_free(list);
    hd_weights_close(&w);
    return rc;
}

static int copy_network(const char *from, const char *dir, hd_error *err)
{
    char path[PATH_SIZE];
    hd_str text;
    hd_str_init(&text);
    int rc = hd_file_read(&text, from, 0, err);
    if (!rc) rc = hd_path_join(path, sizeof path, dir, "network.json", err);
    if (!rc) rc = hd_file_write_atomic(path, text.data, text.len, err);
    hd_str_free(&text);
    return rc;
}

static int write_model(hd_task *base, const hd_store *store, const char *dir, hd_share *share, hd_error *err)
{
    char path[PATH_SIZE];
    hd_whole *list = NULL;
    size_t n = 0;
    int rc = hd_path_join(path, sizeof path, dir, "model.safetensors", err);
    if (!rc) rc = list_model(store, &list, &n, err);
    if (!rc) rc = hd_wholes_save(store, list, n, path, share, err);
    hd_free(list);
    return rc || (share && share->part == HD_SHARE_PIECES) ? rc : copy_network(base->config->model, dir, err);
}

static void free_task(hd_task *base)
{
    network_task *t = (network_task *)base;
    hd_network_free(t->network);
    hd_dataset_free(&t->train);
    hd_dataset_free(&t->test);
    hd_free(t->order);
    hd_free(t->row);
    hd_free(t->samples);
    hd_free(t->column);
    hd_free(t->scores);
    hd_free(t);
}

/* ---- opening ---- */

static int open_all(network_task *t, hd_error *err)
{
    const hd_train_config *c = t->task.config;
    t->network = hd_network_load(c->model, err);
    if (!t->network) return err->code;
    t->data = hd_network_section(t->network, "data");
    int rc = t->data ? hd_dataset_open(&t->train, t->data, false, c->model, err) : 0;
    if (!rc && t->data) rc = hd_dataset_open(&t->test, t->data, true, c->model, err);
    if (!rc && t->data && t->train.count < 1) rc = hd_fail(err, HD_EINVAL, "%s: its data holds no sample", c->model);
    if (!rc && t->data && !(t->order = hd_calloc((size_t)t->train.count, sizeof *t->order))) rc = hd_fail_memory(err, (size_t)t->train.count, "the order of samples");
    if (!rc && !(t->row = hd_calloc((size_t)c->batch, sizeof *t->row))) rc = hd_fail_memory(err, (size_t)c->batch, "a batch");
    if (!rc && !(t->samples = hd_calloc((size_t)c->batch, sizeof *t->samples))) rc = hd_fail_memory(err, (size_t)c->batch, "a batch");
    return rc;
}

hd_task *hd_network_task_new(const hd_train_config *c, const hd_rank *rank, hd_error *err)
{
    network_task *t = hd_calloc(1, sizeof *t);
    if (!t) return hd_fail_memory(err, sizeof *t, "a task"), NULL;
    t->task = (hd_task){.config = c, .rank = rank, .unit = "samples", .units_per_sample = 1, .free = free_task, .graphs = graphs, .load = load, .begin_step = begin_step,
                        .fill = fill, .evaluate = evaluate, .write_model = write_model};
    t->epoch = -1;
    if (!open_all(t, err)) return &t->task;
    free_task(&t->task);
    return NULL;
}
