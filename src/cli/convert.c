/* convert.c: heddle convert: a model directory in another element type, or cut into other shards. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "base/term.h"
#include "cli/cli.h"
#include "models/lm.h"
#include "models/weights.h"

#define PATH_SIZE 4096

typedef struct config {
    const char *dtype;
    double shard_size;
    bool quiet;
} config;

#define AT(field) offsetof(config, field)
static const hd_setting settings[] = {
    {"dtype", HD_SET_STRING, AT(dtype), NULL, 0, 0, "f32|bf16|f16",
     "element type of the weights written; without it, the one that SRC's config.json names"},
    {"shard_size", HD_SET_NUMBER, AT(shard_size), "0", 0, 1e18, "BYTES",
     "most bytes of tensors in one file (5e9: five gigabytes); 0: all in one file"},
    {"quiet", HD_SET_BOOL, AT(quiet), NULL, 0, 0, NULL, "say nothing when all went well"},
    {0},
};

/* What belongs to a model besides config and weights; each is copied when it is there. */
static const char *const companions[] = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt",
                                         "chat_template.jinja"};

static int copy_file(const char *from_dir, const char *to_dir, const char *name, hd_error *err)
{
    char from[PATH_SIZE], to[PATH_SIZE];
    hd_str text;
    int rc = hd_path_join(from, sizeof from, from_dir, name, err);
    if (!rc) rc = hd_path_join(to, sizeof to, to_dir, name, err);
    if (rc || !hd_file_exists(from)) return rc;
    hd_str_init(&text);
    rc = hd_file_read(&text, from, 0, err);
    if (!rc) rc = hd_file_write_atomic(to, text.data, text.len, err);
    hd_str_free(&text);
    return rc;
}

/* Zeroed parameters of the model: no initial values are drawn, since all of them are read. */
static hd_store *empty_store(const hd_lm_config *c, hd_dtype param, hd_error *err)
{
    hd_lm_options o = {.mode = HD_LM_EVAL, .compute = HD_F32, .param = param, .tokens = 1};
    hd_graph *g = hd_lm_graph(c, &o, err);
    hd_store *s = g ? hd_store_new(NULL, 0, err) : NULL;
    int rc = s ? 0 : err->code;
    for (size_t i = 0; g && i < g->n_values && !rc; i++) {
        const hd_value_info *v = &g->values[i];
        if (v->kind == HD_PARAM) rc = hd_store_add(s, v->path, &v->type, HD_PLAIN, HD_PARAM, 0, NULL, err);
    }
    hd_graph_free(g);
    if (!rc) return s;
    hd_store_free(s);
    return NULL;
}

static int check_memory(const hd_lm_config *c, hd_dtype param, hd_error *err)
{
    char need[24], have[24];
    double bytes = (double)hd_lm_config_parameters(c) * (double)hd_dtype_size(param), available = (double)hd_memory_available();
    if (bytes <= available) return 0;
    hd_format_bytes(need, bytes);
    hd_format_bytes(have, available);
    return hd_fail(err, HD_EMEMCAP, "the weights need %.0f bytes (%s) of memory and %.0f (%s) are available", bytes, need, available, have);
}

static int write_all(const hd_lm_config *c, const char *from, const char *to, hd_dtype dtype, uint64_t shard_bytes, hd_error *err)
{
    hd_dtype param = dtype == HD_BF16 ? HD_BF16 : HD_F32; /* what the graph knows; f32 holds bf16 and f16 exactly */
    int rc = check_memory(c, param, err);
    hd_store *store = rc ? NULL : empty_store(c, param, err);
    if (!store) return err->code;
    rc = hd_lm_weights_load(store, c, from, err);
    if (!rc) rc = hd_lm_save(store, c, to, dtype, shard_bytes, err);
    for (size_t i = 0; i < sizeof companions / sizeof companions[0] && !rc; i++) rc = copy_file(from, to, companions[i], err);
    hd_store_free(store);
    return rc ? rc : hd_sync_dir(to, err);
}

/* Said before the work, not after it. */
static int check_target(const char *to, hd_error *err)
{
    int entries = 0;
    DIR *d = opendir(to);
    if (!d) return errno == ENOENT ? 0 : hd_fail_errno(err, "%s", to);
    while (readdir(d)) entries++;
    closedir(d);
    return entries <= 2 ? 0 : hd_fail(err, HD_EINVAL, "%s is there already, and isn't empty", to);
}

/* Written beside DST and renamed when whole. */
static int write_aside(const hd_lm_config *c, const char *from, const char *to, hd_dtype dtype, uint64_t shard_bytes, hd_error *err)
{
    char partial[PATH_SIZE];
    size_t n = strlen(to);
    while (n > 1 && to[n - 1] == '/') n--;
    if (snprintf(partial, sizeof partial, "%.*s.partial", (int)n, to) >= (int)sizeof partial)
        return hd_fail(err, HD_EINVAL, "the path %s is too long", to);
    int rc = check_target(to, err);
    if (!rc) rc = hd_remove_tree(partial, err);
    if (!rc) rc = write_all(c, from, partial, dtype, shard_bytes, err);
    if (!rc && rename(partial, to)) rc = hd_fail_errno(err, "renaming %s to %s", partial, to);
    if (rc) hd_remove_tree(partial, NULL);
    return rc;
}

static int run(const void *config_, const char *const *words, int n_words, hd_error *err)
{
    const config *c = config_;
    hd_lm_config model;
    if (n_words != 2) return hd_fail(err, HD_EINVAL, "name the model directory to read and the one to write");
    int rc = hd_lm_config_load(&model, words[0], err);
    if (rc) return rc;
    hd_dtype dtype = model.dtype;
    if (c->dtype) hd_dtype_parse(c->dtype, &dtype);
    rc = write_aside(&model, words[0], words[1], dtype, (uint64_t)c->shard_size, err);
    if (!rc && !c->quiet)
        printf("%s: %s, %lld parameters in %s\n", words[1], hd_architecture_name(model.arch), (long long)hd_lm_config_parameters(&model),
               hd_dtype_name(dtype));
    return rc;
}

const hd_command hd_cmd_convert = {
    .name = "convert",
    .usage = "[flags] SRC DST",
    .summary = "write a model in another element type, or in other shards",
    .details = "SRC is a Hugging Face model directory; DST becomes one, with its tokenizer, and must not be there yet (or be empty).\n"
               "Numbers are rounded once, to nearest even. DST appears under its name when it is whole.",
    .settings = settings,
    .config_size = sizeof(config),
    .max_words = 2,
    .run = run,
};
