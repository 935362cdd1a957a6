/* inspect_files.c: descriptions of files and directories: weights, models, tokenizers, shards, checkpoints. */
#include <stdio.h>
#include <string.h>
#include "base/file.h"
#include "base/json.h"
#include "cli/inspect.h"
#include "data/corpus.h"
#include "models/config.h"
#include "tensor/safetensors.h"
#include "train/checkpoint.h"

#define PATH_SIZE 4096

static int need(json_t *j, json_t **out, hd_error *err)
{
    *out = j;
    return j ? 0 : hd_fail_memory(err, 0, "a description");
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* ---- weights ---- */

static json_t *describe_tensor(const hd_weight *w, bool sharded)
{
    json_t *shape = json_array(), *j;
    for (int i = 0; i < w->rank; i++) json_array_append_new(shape, json_integer((json_int_t)w->dim[i]));
    j = json_pack("{s:s, s:s, s:o, s:I}", "name", w->name, "dtype", hd_dtype_name(w->dtype), "shape", shape, "bytes", (json_int_t)w->bytes);
    if (j && sharded) json_object_set_new(j, "file", json_string(base_name(w->file)));
    return j;
}

static int64_t elements_of(const hd_weight *w)
{
    int64_t n = 1;
    for (int i = 0; i < w->rank; i++) n *= w->dim[i];
    return n;
}

int hd_inspect_weights(const char *path, json_t **out, hd_error *err)
{
    hd_weights w;
    int64_t elements[HD_DTYPE_COUNT] = {0}, parameters = 0, bytes = 0;
    int rc = hd_weights_open(&w, path, err);
    if (rc) return rc;
    json_t *tensors = json_array(), *dtypes = json_object();
    for (size_t i = 0; i < w.count; i++) {
        json_array_append_new(tensors, describe_tensor(&w.tensors[i], w.shard_count > 1));
        elements[w.tensors[i].dtype] += elements_of(&w.tensors[i]);
        parameters += elements_of(&w.tensors[i]);
        bytes += (int64_t)w.tensors[i].bytes;
    }
    for (int t = 0; t < HD_DTYPE_COUNT; t++)
        if (elements[t]) json_object_set_new(dtypes, hd_dtype_name((hd_dtype)t), json_integer((json_int_t)elements[t]));
    const json_t *metadata = w.shard_count == 1 ? w.shards[0].metadata : NULL;
    json_t *j = json_pack("{s:s, s:s, s:I, s:I, s:I, s:o, s:O*, s:o}", "kind", "weights", "path", path,
                          "files", (json_int_t)w.shard_count, "parameters", (json_int_t)parameters, "bytes", (json_int_t)bytes,
                          "dtypes", dtypes, "metadata", (json_t *)metadata, "tensors", tensors);
    hd_weights_close(&w);
    return need(j, out, err);
}

/* ---- models ---- */

json_t *hd_inspect_describe_config(const hd_lm_config *c, const char *path)
{
    const struct { const char *key; int64_t value; } numbers[] = {
        {"parameters", hd_lm_config_parameters(c)}, {"vocab", c->vocab}, {"width", c->width}, {"layers", c->layers}, {"heads", c->heads},
        {"kv_heads", c->kv_heads}, {"head_dim", c->head_dim}, {"mlp_width", c->mlp_width}, {"max_positions", c->max_positions},
        {"window", c->window},
    };
    json_t *j = json_pack("{s:s, s:s, s:s}", "kind", "config", "path", path, "architecture", hd_architecture_name(c->arch));
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        json_object_set_new(j, numbers[i].key, json_integer((json_int_t)numbers[i].value));
    json_object_set_new(j, "activation", json_string(c->activation));
    json_object_set_new(j, "tie_embeddings", json_boolean(c->tie_embeddings));
    json_object_set_new(j, "norm_eps", json_real(c->norm_eps));
    json_object_set_new(j, "dtype", json_string(hd_dtype_name(c->dtype)));
    return j;
}

int hd_inspect_config(const char *path, json_t **out, hd_error *err)
{
    hd_lm_config c;
    hd_str text;
    hd_str_init(&text);
    int rc = hd_file_read(&text, path, 16 << 20, err);
    if (!rc) rc = hd_lm_config_parse(&c, text.data, text.len, path, err);
    hd_str_free(&text);
    return rc ? rc : need(hd_inspect_describe_config(&c, path), out, err);
}

/* A member that is described where its file is there. */
static int add_part(json_t *j, const char *key, const char *dir, const char *name, int (*describe)(const char *, json_t **, hd_error *),
                    hd_error *err)
{
    char path[PATH_SIZE];
    json_t *part = NULL;
    int rc = hd_path_join(path, sizeof path, dir, name, err);
    if (rc || !hd_file_exists(path)) return rc;
    rc = describe(path, &part, err);
    if (part) json_object_set_new(j, key, part);
    return rc;
}

/* Model directories without weights (a config.json and a tokenizer to start from) are models too. */
static int add_weights(json_t *j, const char *dir, hd_error *err)
{
    char one[PATH_SIZE], index[PATH_SIZE];
    json_t *part = NULL;
    int rc = hd_path_join(one, sizeof one, dir, "model.safetensors", err);
    if (!rc) rc = hd_path_join(index, sizeof index, dir, "model.safetensors.index.json", err);
    if (rc || (!hd_file_exists(one) && !hd_file_exists(index))) return rc;
    rc = hd_inspect_weights(dir, &part, err);
    if (part) json_object_set_new(j, "weights", part);
    return rc;
}

int hd_inspect_model(const char *dir, json_t **out, hd_error *err)
{
    hd_lm_config c;
    char path[PATH_SIZE];
    int rc = hd_path_join(path, sizeof path, dir, "config.json", err);
    if (!rc) rc = hd_lm_config_load(&c, dir, err);
    if (!rc) rc = need(json_pack("{s:s, s:s, s:o}", "kind", "model", "path", dir, "config", hd_inspect_describe_config(&c, path)), out, err);
    if (!rc) rc = add_part(*out, "tokenizer", dir, "tokenizer.json", hd_inspect_tokenizer, err);
    if (!rc) rc = add_weights(*out, dir, err);
    return rc;
}

/* ---- tokenizers ---- */

static json_t *types_of(const json_t *component, const char *list)
{
    json_t *out = json_array(), *item;
    size_t i;
    if (json_is_array(json_object_get(component, list))) {
        json_array_foreach(json_object_get(component, list), i, item) json_array_append(out, json_object_get(item, "type"));
    } else if (json_is_object(component)) {
        json_array_append(out, json_object_get(component, "type"));
    }
    return out;
}

/* The regular expressions that words are cut by; ByteLevel's own is GPT-2's. */
static void add_patterns(json_t *out, const json_t *component)
{
    json_t *item, *list = json_object_get(component, "pretokenizers");
    size_t i;
    const json_t *regex = json_object_get(json_object_get(component, "pattern"), "Regex");
    if (regex) json_array_append(out, (json_t *)regex);
    json_array_foreach(list, i, item) add_patterns(out, item);
}

static json_t *special_tokens(const hd_tokenizer *t)
{
    json_t *out = json_object();
    for (int32_t id = 0; id < hd_tokenizer_vocab_size(t); id++)
        if (hd_tokenizer_token(t, id) && hd_tokenizer_is_special(t, id))
            json_object_set_new(out, hd_tokenizer_token(t, id), json_integer(id));
    return out;
}

int hd_inspect_tokenizer(const char *path, json_t **out, hd_error *err)
{
    hd_tokenizer *t = hd_tokenizer_load(path, err);
    if (!t) return err->code;
    json_t *file = hd_json_load(path, err), *patterns = json_array();
    const json_t *model = json_object_get(file, "model"), *pre = json_object_get(file, "pre_tokenizer");
    add_patterns(patterns, pre);
    json_int_t merges = (json_int_t)json_array_size(json_object_get(model, "merges"));
    json_t *normalizer = types_of(json_object_get(file, "normalizer"), "normalizers");
    json_t *j = json_pack("{s:s, s:s, s:i, s:I, s:o, s:o, s:o, s:o}", "kind", "tokenizer", "path", path,
                          "vocab", hd_tokenizer_vocab_size(t), "merges", merges, "normalizer", normalizer,
                          "pre_tokenizer", types_of(pre, "pretokenizers"), "patterns", patterns,
                          "special_tokens", special_tokens(t));
    json_decref(file);
    hd_tokenizer_free(t);
    return err->code ? err->code : need(j, out, err);
}

/* ---- shards ---- */

int hd_inspect_corpus(const char *prefix, json_t **out, hd_error *err)
{
    hd_corpus c;
    int64_t shortest = INT64_MAX, longest = 0;
    int rc = hd_corpus_open(&c, prefix, err);
    if (rc) return rc;
    for (int64_t d = 0; d < c.documents; d++) {
        int64_t n = hd_corpus_size(&c, d);
        if (n < shortest) shortest = n;
        if (n > longest) longest = n;
    }
    json_t *j = json_pack("{s:s, s:s, s:I, s:I, s:I, s:i, s:I, s:I}", "kind", "corpus", "path", prefix,
                          "documents", (json_int_t)c.documents, "tokens", (json_int_t)hd_corpus_tokens(&c),
                          "bytes", (json_int_t)(c.bin.size + c.idx.size), "bytes_per_token", c.width,
                          "shortest_document", (json_int_t)(c.documents ? shortest : 0), "longest_document", (json_int_t)longest);
    hd_corpus_close(&c);
    return need(j, out, err);
}

/* ---- checkpoints ---- */

static json_t *list_files(const json_t *manifest)
{
    json_t *out = json_array(), *f;
    const char *name;
    json_object_foreach(json_object_get(manifest, "files"), name, f)
        json_array_append_new(out, json_pack("{s:s, s:O*, s:O*}", "name", name, "bytes", json_object_get(f, "bytes"),
                                             "checksum", json_object_get(f, "checksum")));
    return out;
}

/* The tensors of the optimizer and of adapters are described with it. */
int hd_inspect_checkpoint(const char *dir, json_t **out, hd_error *err)
{
    char path[PATH_SIZE];
    hd_progress_point at;
    json_t *settings = NULL;
    int rc = hd_checkpoint_open(dir, &at, &settings, err);
    if (!rc) rc = hd_path_join(path, sizeof path, dir, "manifest.json", err);
    json_t *manifest = rc ? NULL : hd_json_load(path, err);
    if (!manifest) {
        json_decref(settings);
        return err->code;
    }
    rc = need(json_pack("{s:s, s:s, s:I, s:I, s:I, s:o*, s:o}", "kind", "checkpoint", "path", dir, "step", (json_int_t)at.step, "samples",
                        (json_int_t)at.samples, "seed", (json_int_t)at.seed, "settings", settings, "files", list_files(manifest)),
              out, err);
    json_decref(manifest);
    if (!rc) rc = add_part(*out, "config", dir, "config.json", hd_inspect_config, err);
    if (!rc) rc = add_part(*out, "tokenizer", dir, "tokenizer.json", hd_inspect_tokenizer, err);
    if (!rc) rc = add_part(*out, "state", dir, "state.safetensors", hd_inspect_weights, err);
    return rc ? rc : add_weights(*out, dir, err);
}
