/* inspect.c: heddle inspect: finds out what a path is, has it described, and prints the description. */
#include "cli/inspect.h"
#include "graph/layout.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "base/json.h"
#include "cli/cli.h"
#include "plan/plan.h"
#include "tensor/gguf.h"

#define PATH_SIZE 4096

#define AT(field) offsetof(inspect_config, field)
static const hd_setting settings[] = {
    {"json", HD_SET_BOOL, AT(json), NULL, 0, 0, NULL, "one JSON object with the keys of docs/inspect.md"},
    {"mode", HD_SET_STRING, AT(mode), "train", 0, 0, "train|eval|generate", "program, graph: what the model is to do"},
    {"batch", HD_SET_INT, AT(batch), "1", 1, 1e6, "N", "program, graph: sequences (samples) in a micro-batch"},
    {"micro_batches", HD_SET_INT, AT(micro_batches), "1", 1, 1e6, "N", "program: micro-batches in a step"},
    {"sequence", HD_SET_INT, AT(sequence), "0", 0, 1e7, "N", "program, graph: tokens in a sequence; generate: most tokens of a call; 0: 64, or what positions there are"},
    {"context", HD_SET_INT, AT(context), "0", 0, 1e7, "N", "program, graph: generate: most tokens of prompt and text together; 0: 256, or what positions there are"},
    {"precision", HD_SET_STRING, AT(precision), "f32", 0, 0, "f32|bf16", "program, graph: of products and activations"},
    {"threads", HD_SET_INT, AT(threads), "0", 0, 256, "N", "program: threads that workspaces are sized for; 0: one per core"},
    {"parallel", HD_SET_STRING, AT(parallel), NULL, 0, 0, "TEXT", "program, graph: how training is split over ranks, as heddle train takes it"},
    {"rank", HD_SET_INT, AT(rank), "0", 0, HD_MAX_RANKS - 1, "N", "program, graph: whose stage of it"},
    {"count", HD_SET_BOOL, AT(count), NULL, 0, 0, NULL, "program: instead of its text, what a rank sends in one step"},
    {0},
};

/* ---- what it is ---- */

static bool has_file(const char *dir, const char *name)
{
    char path[PATH_SIZE];
    return !hd_path_join(path, sizeof path, dir, name, NULL) && hd_file_exists(path);
}

static int inspect_dir(const inspect_config *c, const char *dir, json_t **out, hd_error *err)
{
    char path[PATH_SIZE];
    if (has_file(dir, "manifest.json")) return hd_inspect_checkpoint(dir, out, err);
    if (has_file(dir, "config.json")) return hd_inspect_model(dir, out, err);
    if (has_file(dir, "model.safetensors") || has_file(dir, "model.safetensors.index.json")) return hd_inspect_weights(dir, out, err);
    if (has_file(dir, "network.json")) {
        int rc = hd_path_join(path, sizeof path, dir, "network.json", err);
        return rc ? rc : hd_inspect_network(c, path, out, err);
    }
    return hd_fail(err, HD_EINVAL, "%s holds neither a model nor a checkpoint (of a training run, name one of its step-N)", dir);
}

/* The directory that a file lies in. */
static void dir_of(char *out, size_t n, const char *path)
{
    const char *slash = strrchr(path, '/');
    if (slash) snprintf(out, n, "%.*s", slash == path ? 1 : (int)(slash - path), path);
    else snprintf(out, n, ".");
}

static int inspect_plan(const char *path, json_t **out, hd_error *err)
{
    hd_plan plan;
    hd_str text;
    hd_str_init(&text);
    int rc = hd_plan_load(path, &plan, err);
    if (!rc) rc = hd_plan_print(&plan, &text) ? hd_fail_memory(err, 1024, "a plan") : 0;
    json_t *j = rc ? NULL : json_loads(text.data, 0, NULL);
    *out = j ? json_pack("{s:s, s:s, s:o}", "kind", "plan", "path", path, "plan", j) : NULL;
    hd_str_free(&text);
    return rc;
}

/* JSON files tell by their keys what they are. */
static int inspect_json(const inspect_config *c, const char *path, json_t **out, hd_error *err)
{
    char dir[PATH_SIZE];
    json_t *j = hd_json_load(path, err);
    if (!j) return err->code;
    dir_of(dir, sizeof dir, path);
    int rc;
    if (json_object_get(j, "heddle_network")) rc = hd_inspect_network(c, path, out, err);
    else if (json_object_get(j, "heddle_checkpoint")) rc = hd_inspect_checkpoint(dir, out, err);
    else if (json_object_get(j, "weight_map")) rc = hd_inspect_weights(dir, out, err);
    else if (json_object_get(json_object_get(j, "model"), "vocab")) rc = hd_inspect_tokenizer(path, out, err);
    else if (json_object_get(j, "architectures") || json_object_get(j, "model_type")) rc = hd_inspect_config(path, out, err);
    else if (json_object_get(json_object_get(j, "otherData"), "heddle_trace")) rc = hd_inspect_trace(path, out, err);
    else if (json_object_get(j, "fingerprint") && json_object_get(j, "micro_batches")) rc = inspect_plan(path, out, err);
    else rc = hd_fail(err, HD_EINVAL, "%s is JSON, but no config.json, tokenizer.json, index of weights, network file, manifest, plan or trace",
                      path);
    json_decref(j);
    return rc;
}

static bool ends_with(const char *path, const char *end)
{
    size_t n = strlen(path), m = strlen(end);
    return n > m && !strcmp(path + n - m, end);
}

/* PREFIX, PREFIX.idx or PREFIX.bin of shards; "" when there are none. */
static void corpus_prefix(char *out, size_t n, const char *path)
{
    char index[PATH_SIZE];
    size_t cut = ends_with(path, ".idx") || ends_with(path, ".bin") ? 4 : 0;
    int length = (int)(strlen(path) - cut);
    snprintf(out, n, "%.*s", length, path);
    if (snprintf(index, sizeof index, "%.*s.idx", length, path) >= (int)sizeof index || !hd_file_exists(index)) *out = 0;
}

static char first_character(const char *path)
{
    FILE *f = fopen(path, "r");
    int c = f ? fgetc(f) : EOF;
    while (c == ' ' || c == '\n' || c == '\r' || c == '\t') c = fgetc(f);
    if (f) fclose(f);
    return c == EOF ? 0 : (char)c;
}

static int inspect_any(const inspect_config *c, const char *path, json_t **out, hd_error *err)
{
    char prefix[PATH_SIZE];
    corpus_prefix(prefix, sizeof prefix, path);
    if (*prefix) return hd_inspect_corpus(prefix, out, err);
    if (!hd_file_exists(path)) return hd_fail(err, HD_EINVAL, "%s: there is no such file or directory", path);
    if (hd_is_dir(path)) return inspect_dir(c, path, out, err);
    if (hd_gguf_is(path) || ends_with(path, ".gguf")) return hd_inspect_gguf(path, out, err);
    if (ends_with(path, ".safetensors")) return hd_inspect_weights(path, out, err);
    if (hd_inspect_is_program(path)) return hd_inspect_program(c, path, out, err);
    if (first_character(path) == '{') return inspect_json(c, path, out, err);
    return hd_fail(err, HD_EFORMAT, "%s is nothing that heddle knows", path);
}

/* ---- printing ---- */

static void print_scalar(const json_t *v)
{
    if (json_is_string(v)) printf("%s", json_string_value(v));
    else if (json_is_integer(v)) printf("%lld", (long long)json_integer_value(v));
    else if (json_is_real(v)) printf("%g", json_real_value(v));
    else printf("%s", json_is_true(v) ? "yes" : json_is_false(v) ? "no" : "none");
}

/* A scalar, or "[2, 3]", or "name 5, other 6" on one line. */
static void print_inline(const json_t *v)
{
    const char *key, *comma = "";
    json_t *item;
    size_t i;
    if (json_is_array(v)) {
        putchar('[');
        json_array_foreach(v, i, item) printf("%s", i ? ", " : ""), print_inline(item);
        putchar(']');
    } else if (json_is_object(v)) {
        json_object_foreach((json_t *)v, key, item) {
            printf("%s%s ", comma, key);
            print_inline(item);
            comma = ", ";
        }
    } else {
        print_scalar(v);
    }
}

static bool is_table(const json_t *v)
{
    return json_is_array(v) && json_is_object(json_array_get(v, 0));
}

static bool is_section(const json_t *v)
{
    const char *key;
    json_t *item;
    if (is_table(v)) return true;
    if (!json_is_object(v)) return false;
    json_object_foreach((json_t *)v, key, item)
        if (is_section(item)) return true;
    return json_object_size(v) > 4;
}

/* Rows of a table begin with their first member, padded; the rest follows in order without names. */
static void print_table(const json_t *rows, int indent)
{
    size_t i, width = 0;
    json_t *row, *item;
    const char *key;
    json_array_foreach(rows, i, row) {
        const char *name = json_string_value(json_object_iter_value(json_object_iter(row)));
        if (name && strlen(name) > width) width = strlen(name);
    }
    json_array_foreach(rows, i, row) {
        bool first = true;
        printf("%*s", indent, "");
        json_object_foreach(row, key, item) {
            if (first && json_is_string(item)) printf("%-*s", (int)width, json_string_value(item));
            else printf("%s", first ? "" : "  "), print_inline(item);
            first = false;
        }
        putchar('\n');
    }
}

static void print_members(const json_t *j, int indent)
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)j, key, v) {
        if (!strcmp(key, "text")) continue;
        printf("%*s%s:", indent, "", key);
        if (!is_section(v)) {
            putchar(' ');
            print_inline(v);
        }
        putchar('\n');
        if (is_table(v)) print_table(v, indent + 2);
        else if (is_section(v)) print_members(v, indent + 2);
    }
    const char *text = json_string_value(json_object_get(j, "text"));
    if (text) printf("\n%s", text);
}

static int print(const inspect_config *c, json_t *j, bool text_only, hd_error *err)
{
    const char *text = json_string_value(json_object_get(j, "text"));
    if (c->json) {
        if (json_dumpf(j, stdout, JSON_INDENT(2))) return hd_fail(err, HD_EIO, "the description could not be written");
        putchar('\n');
    } else if (text_only) {
        fputs(text ? text : "", stdout);
    } else {
        print_members(j, 0);
    }
    return fflush(stdout) ? hd_fail_errno(err, "standard output") : 0;
}

static int run(const void *config_, const char *const *words, int n_words, hd_error *err)
{
    const inspect_config *c = config_;
    json_t *j = NULL;
    int rc;
    bool program = n_words == 2 && !strcmp(words[0], "program"), graph = n_words == 2 && !strcmp(words[0], "graph");
    if (program) rc = hd_inspect_program(c, words[1], &j, err);
    else if (graph) rc = hd_inspect_graph(c, words[1], &j, err);
    else if (n_words == 1) rc = inspect_any(c, words[0], &j, err);
    else return hd_fail(err, HD_EINVAL, "name one file or directory, or \"program\" or \"graph\" and a model");
    if (!rc && !j) rc = hd_fail_memory(err, 0, "a description");
    if (!rc) rc = print(c, j, program || graph, err);
    json_decref(j);
    return rc;
}

const hd_command hd_cmd_inspect = {
    .name = "inspect",
    .usage = "[program | graph] PATH [flags]",
    .summary = "what is in a model, GGUF file, shards, tokenizer, network, program or checkpoint",
    .details = "PATH is a model directory, GGUF file, safetensors file, config.json, tokenizer.json, network file, PREFIX of shards (or its .idx),\n"
               "checkpoint, plan or program text. `inspect program MODEL` prints the Program that a model becomes, one line per\n"
               "instruction, and `inspect graph MODEL` its Graph; MODEL is a directory, a config.json or a network file.\n"
               "`inspect program FILE` reads such a text back, verifies it and prints it again, unchanged.",
    .settings = settings,
    .config_size = sizeof(inspect_config),
    .max_words = 2,
    .run = run,
};
