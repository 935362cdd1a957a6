/* lm_task.c: a language model learning from text, or from prompts and answers. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "base/file.h"
#include "base/term.h"
#include "data/instruct.h"
#include "data/sampler.h"
#include "models/lm.h"
#include "models/weights.h"
#include "train/task.h"

#define PATH_SIZE 4096

/* Rows of one step or one evaluation batch, row after row. */
typedef struct rows {
    int32_t *tokens, *targets, *positions, *segments; /* [count, sequence] */
    int64_t count;
} rows;

typedef struct lm_task {
    hd_task task;
    hd_lm_config model;
    bool has_weights;          /* the model given is a directory with weights */
    char tokenizer_path[PATH_SIZE]; /* "" when there is none */
    hd_tokenizer *tokenizer;   /* NULL when there is none */
    hd_corpus corpus;
    bool corpus_open;
    hd_sampler *train, *valid; /* of --data */
    hd_instruct *instruct;     /* of --instruct */
    rows step, eval;
    int64_t *samples;          /* [batch * sequence] */
    int64_t step_first;        /* number of the sample in row 0 of step */
} lm_task;

/* ---- rows ---- */

static int rows_init(rows *r, int64_t count, int64_t sequence, hd_error *err)
{
    size_t n = (size_t)(count * sequence);
    *r = (rows){.count = count};
    int32_t **arrays[] = {&r->tokens, &r->targets, &r->positions, &r->segments};
    for (int i = 0; i < 4; i++)
        if (!(*arrays[i] = hd_calloc(n, sizeof(int32_t)))) return hd_fail_memory(err, n * sizeof(int32_t), "a batch");
    return 0;
}

static void rows_free(rows *r)
{
    hd_free(r->tokens);
    hd_free(r->targets);
    hd_free(r->positions);
    hd_free(r->segments);
}

/* Row k of r from row `index` of the data; segments of different rows are made different. index < 0: an empty row. */
static int rows_read(lm_task *t, rows *r, int64_t k, hd_sampler *from, int64_t index, hd_error *err)
{
    int64_t n = t->task.config->sequence, at = k * n;
    if (index < 0) {
        for (int64_t i = 0; i < n; i++) r->tokens[at + i] = 0, r->targets[at + i] = r->segments[at + i] = -1, r->positions[at + i] = (int32_t)i;
        return 0;
    }
    int rc = from ? hd_sampler_row(from, index, r->tokens + at, r->targets + at, r->positions + at, r->segments + at, err)
                  : hd_instruct_row(t->instruct, index, r->tokens + at, r->targets + at, r->positions + at, r->segments + at, err);
    for (int64_t i = 0; i < n && !rc; i++)
        if (r->segments[at + i] >= 0) r->segments[at + i] += (int32_t)(k * (n + 1));
    return rc;
}

static int64_t count_targets(const rows *r, int64_t sequence)
{
    int64_t counted = 0;
    for (int64_t i = 0; i < r->count * sequence; i++) counted += r->targets[i] >= 0;
    return counted;
}

static int put_rows(hd_exec *e, const rows *r, int64_t first, int64_t sequence, hd_error *err)
{
    int64_t at = first * sequence;
    int rc = hd_exec_put(e, "tokens", r->tokens + at, err);
    if (!rc) rc = hd_exec_put(e, "targets", r->targets + at, err);
    if (!rc) rc = hd_exec_put(e, "positions", r->positions + at, err);
    return rc ? rc : hd_exec_put(e, "segments", r->segments + at, err);
}

/* ---- the task's functions ---- */

static int begin_step(hd_task *base, hd_exec *e, int64_t first, int64_t step, hd_error *err)
{
    lm_task *t = (lm_task *)base;
    t->step_first = first;
    for (int64_t k = 0; k < t->step.count; k++)
        if (rows_read(t, &t->step, k, t->train, first + k, err)) return err->code;
    int64_t counted = count_targets(&t->step, base->config->sequence);
    int rc = hd_task_set_scalar(e, "inv_divisor", counted ? 1.0 / (double)counted : 0, err);
    return rc ? rc : hd_exec_put(e, "key", (int64_t[]){base->config->seed, step}, err);
}

static int fill(hd_task *base, hd_exec *e, int64_t first, hd_error *err)
{
    lm_task *t = (lm_task *)base;
    int64_t n = base->config->sequence;
    int rc = put_rows(e, &t->step, first - t->step_first, n, err);
    return rc ? rc : hd_task_number_samples(e, first, n, base->config->batch * n, t->samples, err);
}

/* Sum of the losses of one batch of held-out rows from `first` on, and how many targets they have. */
static int evaluate_batch(lm_task *t, hd_exec *e, int64_t first, double *loss, int64_t *counted, hd_error *err)
{
    float *out;
    int64_t total = hd_sampler_rows(t->valid), count;
    for (int64_t k = 0; k < t->eval.count; k++)
        if (rows_read(t, &t->eval, k, t->valid, first + k < total ? first + k : -1, err)) return err->code;
    int rc = put_rows(e, &t->eval, 0, t->task.config->sequence, err);
    if (!rc) rc = hd_exec_step(e, NULL, err);
    if (!rc) rc = hd_ranks_output(e, "loss", &out, &count, err);
    if (rc) return rc;
    *loss += out ? (double)*out : NAN;
    *counted += count_targets(&t->eval, t->task.config->sequence);
    hd_free(out);
    return 0;
}

static int evaluate(hd_task *base, hd_exec *e, int64_t max_batches, hd_evaluation *out, hd_error *err)
{
    lm_task *t = (lm_task *)base;
    double loss = 0;
    int64_t counted = 0, batches = 0;
    *out = (hd_evaluation){0};
    if (!t->valid) return 0;
    if (hd_task_set_scalar(e, "inv_divisor", 1, err)) return err->code;
    for (int64_t first = 0; first < hd_sampler_rows(t->valid) && (!max_batches || batches < max_batches); first += t->eval.count, batches++)
        if (evaluate_batch(t, e, first, &loss, &counted, err)) return err->code;
    loss /= (double)counted;
    out->units = counted;
    out->metric[out->n++] = (hd_metric){"loss", loss};
    out->metric[out->n++] = (hd_metric){"perplexity", exp(loss)};
    double bytes = t->tokenizer ? hd_sampler_bytes_per_token(t->valid, t->tokenizer, err) : 0;
    if (bytes > 0) out->metric[out->n++] = (hd_metric){"bits_per_byte", loss / M_LN2 / bytes};
    return t->tokenizer && !(bytes > 0) ? err->code : 0;
}

static int graphs(hd_task *base, hd_graph **train, hd_graph **eval, hd_error *err)
{
    lm_task *t = (lm_task *)base;
    const hd_train_config *c = base->config;
    hd_lm_options o = {.mode = HD_LM_TRAIN, .compute = strcmp(c->precision, "bf16") ? HD_F32 : HD_BF16, .param = HD_F32,
                       .tokens = c->batch * c->sequence, .sequence = c->sequence};
    *train = *eval = NULL;
    *train = hd_lm_graph(&t->model, &o, err);
    o.mode = HD_LM_EVAL;
    if (*train && t->valid) *eval = hd_lm_graph(&t->model, &o, err);
    if (*train && (*eval || !t->valid)) return 0;
    hd_graph_free(*train);
    return err->code;
}

static int load(hd_task *base, hd_store *store, const char *from, hd_error *err)
{
    lm_task *t = (lm_task *)base;
    if (!from && !t->has_weights) return 0;
    return hd_lm_weights_load(store, &t->model, from ? from : base->config->model, err);
}

static int write_model(hd_task *base, const hd_store *store, const char *dir, hd_share *share, hd_error *err)
{
    lm_task *t = (lm_task *)base;
    char path[PATH_SIZE];
    int rc = hd_lm_save_share(store, &t->model, dir, HD_F32, 0, share, err);
    if (rc || !t->tokenizer_path[0] || (share && share->part == HD_SHARE_PIECES)) return rc;
    hd_str text;
    hd_str_init(&text);
    rc = hd_file_read(&text, t->tokenizer_path, 0, err);
    if (!rc) rc = hd_path_join(path, sizeof path, dir, "tokenizer.json", err);
    if (!rc) rc = hd_file_write_atomic(path, text.data, text.len, err);
    hd_str_free(&text);
    return rc;
}

static void free_task(hd_task *base)
{
    lm_task *t = (lm_task *)base;
    hd_sampler_free(t->train);
    hd_sampler_free(t->valid);
    hd_instruct_free(t->instruct);
    if (t->corpus_open) hd_corpus_close(&t->corpus);
    hd_tokenizer_free(t->tokenizer);
    rows_free(&t->step);
    rows_free(&t->eval);
    hd_free(t->samples);
    hd_free(t);
}

/* ---- opening ---- */

static int load_config(lm_task *t, hd_error *err)
{
    const char *path = t->task.config->model;
    double dropout = t->task.config->dropout;
    hd_str text;
    hd_str_init(&text);
    int rc;
    t->has_weights = hd_is_dir(path);
    if (t->has_weights) {
        rc = hd_lm_config_load(&t->model, path, err);
    } else {
        rc = hd_file_read(&text, path, 16 << 20, err);
        if (!rc) rc = hd_lm_config_parse(&t->model, text.data, text.len, path, err);
    }
    hd_str_free(&text);
    if (rc) return rc;
    if (dropout >= 0) t->model.embd_dropout = t->model.resid_dropout = dropout;
    const char *note = hd_lm_config_note(&t->model);
    if (note && !t->task.config->quiet) hd_log("%s: %s", path, note);
    if (t->model.family == HD_FAMILY_GPT2 && t->task.config->sequence > t->model.max_positions)
        return hd_fail(err, HD_EINVAL, "--sequence %lld is more than the %lld positions of %s", (long long)t->task.config->sequence,
                       (long long)t->model.max_positions, path);
    return 0;
}

/* --tokenizer, or tokenizer.json in or beside the model. */
static int load_tokenizer(lm_task *t, hd_error *err)
{
    const hd_train_config *c = t->task.config;
    const char *slash = strrchr(c->model, '/');
    if (c->tokenizer) snprintf(t->tokenizer_path, PATH_SIZE, "%s", c->tokenizer);
    else if (t->has_weights) snprintf(t->tokenizer_path, PATH_SIZE, "%s/tokenizer.json", c->model);
    else snprintf(t->tokenizer_path, PATH_SIZE, "%.*stokenizer.json", slash ? (int)(slash - c->model) + 1 : 0, c->model);
    if (!c->tokenizer && !hd_file_exists(t->tokenizer_path)) return t->tokenizer_path[0] = 0, 0;
    t->tokenizer = hd_tokenizer_load(t->tokenizer_path, err);
    if (!t->tokenizer) return err->code;
    if (hd_tokenizer_vocab_size(t->tokenizer) <= t->model.vocab) return 0;
    return hd_fail(err, HD_EINVAL, "%s has %d tokens, more than the model's vocabulary of %lld", t->tokenizer_path, hd_tokenizer_vocab_size(t->tokenizer),
                   (long long)t->model.vocab);
}

static int32_t end_token(const lm_task *t)
{
    if (t->model.n_eos) return (int32_t)t->model.eos[0];
    return hd_tokenizer_id(t->tokenizer, "<|endoftext|>");
}

static int need_tokenizer(const lm_task *t, hd_error *err)
{
    if (t->tokenizer) return 0;
    return hd_fail(err, HD_EINVAL, "text needs a tokenizer: give --tokenizer FILE, or make one with heddle data --train-tokenizer");
}

static int build_shards(lm_task *t, const char *path, const char *prefix, hd_error *err)
{
    const hd_train_config *c = t->task.config;
    hd_corpus_spec spec = {.tokenizer = t->tokenizer, .unit = HD_TEXT_PARAGRAPH, .end_id = end_token(t), .threads = (int)(c->threads ? c->threads : hd_core_count()),
                           .quiet = c->quiet};
    return hd_corpus_build(&spec, &path, 1, prefix, NULL, err);
}

static void remove_shards(const char *prefix)
{
    char file[PATH_SIZE + 8];
    for (int i = 0; i < 2; i++) {
        snprintf(file, sizeof file, "%s.%s", prefix, i ? "idx" : "bin");
        remove(file);
    }
}

/* Shards of a text or jsonl file, under --out or in the directory for temporary files (removed once they are mapped). The first rank makes them. */
static int open_text(lm_task *t, const char *path, hd_error *err)
{
    const hd_train_config *c = t->task.config;
    char prefix[PATH_SIZE] = "";
    const char *temporary = getenv("TMPDIR");
    bool first = hd_rank_is_first(t->task.rank);
    int rc = need_tokenizer(t, err);
    if (!rc && c->out) rc = hd_make_dirs(c->out, err);
    if (rc) return rc;
    if (c->out) snprintf(prefix, sizeof prefix, "%s/data", c->out);
    else snprintf(prefix, sizeof prefix, "%s/heddle-%d", temporary ? temporary : "/tmp", (int)getpid());
    rc = hd_ranks_tell(t->task.rank, 0, prefix, sizeof prefix, err);
    if (!rc && first) rc = build_shards(t, path, prefix, err);
    if (!rc) rc = hd_ranks_barrier(t->task.rank, err);
    if (!rc) rc = hd_corpus_open(&t->corpus, prefix, err);
    t->corpus_open = !rc;
    if (!rc) rc = hd_ranks_barrier(t->task.rank, err);
    if (first && !c->out) remove_shards(prefix);
    return rc;
}

static int open_data(lm_task *t, hd_error *err)
{
    const char *data = t->task.config->data;
    char index[PATH_SIZE];
    snprintf(index, sizeof index, "%s.idx", data);
    if (!hd_file_exists(index)) {
        if (hd_file_exists(data)) return open_text(t, data, err);
        return hd_fail(err, HD_EINVAL, "--data %s: there are no shards %s and %s.bin, and no such text file", data, index, data);
    }
    int rc = hd_corpus_open(&t->corpus, data, err);
    t->corpus_open = !rc;
    return rc;
}

static int open_samplers(lm_task *t, hd_error *err)
{
    const hd_train_config *c = t->task.config;
    bool whole = c->eval_only && c->validation <= 0;
    hd_sampler_spec spec = {.corpus = &t->corpus, .side = HD_SPLIT_TRAIN, .valid_fraction = c->validation < 1 ? c->validation : 0.999999, .split_seed = 0,
                            .seed = (uint64_t)c->seed, .length = (int32_t)c->sequence, .vocab_size = (int32_t)t->model.vocab, .shuffle = true};
    if (c->validation <= 0) spec.side = HD_SPLIT_ALL, spec.valid_fraction = 0;
    if (!c->eval_only && !(t->train = hd_sampler_new(&spec, err))) return err->code;
    if (c->validation <= 0 && !whole) return 0;
    spec.side = whole || c->validation >= 1 ? HD_SPLIT_ALL : HD_SPLIT_VALID;
    spec.shuffle = false;
    spec.keep_tail = true;
    t->valid = hd_sampler_new(&spec, err);
    return t->valid ? 0 : hd_error_context(err, "held-out documents (--validation %g)", c->validation);
}

static int open_instruct(lm_task *t, hd_error *err)
{
    const hd_train_config *c = t->task.config;
    int rc = need_tokenizer(t, err);
    if (rc) return rc;
    hd_instruct_spec spec = {.tokenizer = t->tokenizer, .end_id = end_token(t), .pad_id = 0, .length = (int32_t)c->sequence, .pack = true, .seed = (uint64_t)c->seed};
    t->instruct = hd_instruct_load(&spec, &c->instruct, 1, err);
    if (!t->instruct) return err->code;
    if (hd_instruct_cut(t->instruct) && hd_rank_is_first(t->task.rank)) hd_log("%lld of %lld examples are longer than --sequence %lld and were cut", (long long)hd_instruct_cut(t->instruct),
                                             (long long)hd_instruct_examples(t->instruct), (long long)c->sequence);
    return 0;
}

static int open_all(lm_task *t, hd_error *err)
{
    const hd_train_config *c = t->task.config;
    int rc = load_config(t, err);
    if (!rc) rc = load_tokenizer(t, err);
    if (!rc && c->instruct) rc = open_instruct(t, err);
    else if (!rc && !c->data) rc = hd_fail(err, HD_EINVAL, "--data (or --instruct) is missing: what should the model learn from?");
    else if (!rc) rc = open_data(t, err);
    if (!rc && c->data) rc = open_samplers(t, err);
    size_t samples = (size_t)(c->batch * c->sequence);
    if (!rc && !(t->samples = hd_calloc(samples, sizeof *t->samples))) rc = hd_fail_memory(err, samples * sizeof *t->samples, "a batch");
    if (!rc) rc = rows_init(&t->step, c->batch * c->micro_batches, c->sequence, err);
    return rc ? rc : rows_init(&t->eval, c->batch, c->sequence, err);
}

hd_task *hd_lm_task_new(const hd_train_config *c, const hd_rank *rank, hd_error *err)
{
    lm_task *t = hd_calloc(1, sizeof *t);
    if (!t) return hd_fail_memory(err, sizeof *t, "a task"), NULL;
    t->task = (hd_task){.config = c, .rank = rank, .unit = "tokens", .units_per_sample = (double)c->sequence, .free = free_task, .graphs = graphs, .load = load,
                        .begin_step = begin_step, .fill = fill, .evaluate = evaluate, .write_model = write_model};
    if (!open_all(t, err)) return &t->task;
    free_task(&t->task);
    return NULL;
}
