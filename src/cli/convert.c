/* convert.c: heddle convert: a model directory or GGUF file in another element type, cut into other shards, or as a GGUF file. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/file.h"
#include "base/term.h"
#include "cli/cli.h"
#include "base/json.h"
#include "data/chat_template.h"
#include "data/tokenizer_gguf.h"
#include "models/gguf.h"
#include "models/lm.h"
#include "models/weights.h"

#define PATH_SIZE 4096

typedef struct config {
    const char *dtype, *out;
    double shard_size;
    bool quiet;
} config;

#define AT(field) offsetof(config, field)
static const hd_setting settings[] = {
    {"dtype", HD_SET_STRING, AT(dtype), NULL, 0, 0, "f32|bf16|f16|q8_0|q4_0",
     "element type of the weights written, the last two in GGUF files; without it, the one that SRC names"},
    {"out", HD_SET_STRING, AT(out), NULL, 0, 0, "PATH", "another way to name DST"},
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

/* ---- GGUF files ---- */

/* The tokenizer of SRC; none is no error. */
static int open_tokenizer(hd_tokenizer **out, const char *from, hd_error *err)
{
    char path[PATH_SIZE];
    *out = NULL;
    if (hd_gguf_is(from)) return hd_tokenizer_open_gguf(out, from, err);
    int rc = hd_path_join(path, sizeof path, from, "tokenizer.json", err);
    if (rc || !hd_file_exists(path)) return rc;
    *out = hd_tokenizer_load(path, err);
    return *out ? 0 : err->code;
}

/* The directory's chat template, where there is one. */
static int put_chat_template(hd_gguf_writer *w, const char *from, hd_error *err)
{
    hd_str text;
    hd_str_init(&text);
    int rc = hd_chat_template_find(from, &text, err);
    if (!rc && text.len) hd_gguf_put_string(w, "tokenizer.chat_template", text.data, text.len);
    hd_str_free(&text);
    return rc;
}

/* Every tokenizer there is goes from one GGUF file to another. */
static int copy_tokenizer(hd_gguf_writer *w, const char *from, hd_error *err)
{
    static const char prefix[] = "tokenizer.", ours[] = "heddle.tokenizer.";
    hd_gguf g;
    int rc = hd_gguf_open(&g, from, err);
    if (rc) return rc;
    for (size_t i = 0; i < g.value_count; i++)
        if (!strncmp(g.values[i].key, prefix, sizeof prefix - 1) || !strncmp(g.values[i].key, ours, sizeof ours - 1)) hd_gguf_put_value(w, &g.values[i]);
    hd_gguf_close(&g);
    return 0;
}

static int put_tokenizer(hd_gguf_writer *w, const hd_lm_config *c, const char *from, hd_error *err)
{
    hd_tokenizer *t = NULL;
    int rc = open_tokenizer(&t, from, err);
    if (!rc && !t) hd_gguf_put_string(w, "tokenizer.ggml.model", "no_vocab", 8);
    if (!rc && t) rc = hd_tokenizer_to_gguf(t, c->vocab, c->bos, c->n_eos ? c->eos[0] : -1, w, err);
    if (!rc) rc = put_chat_template(w, from, err);
    hd_tokenizer_free(t);
    return rc;
}

static int declare(hd_gguf_writer *w, const hd_lm_config *c, const char *from, const hd_quant *type, hd_error *err)
{
    int rc = hd_lm_gguf_declare(w, c, type, err);
    if (rc) return rc;
    return hd_gguf_is(from) ? copy_tokenizer(w, from, err) : put_tokenizer(w, c, from, err);
}

static int write_gguf(const hd_lm_config *c, const char *from, const char *to, const hd_quant *type, hd_error *err)
{
    hd_dtype param = type->plain && type->dtype == HD_BF16 ? HD_BF16 : HD_F32;
    if (hd_file_exists(to)) return hd_fail(err, HD_EINVAL, "%s is there already", to);
    int rc = check_memory(c, param, err);
    if (rc) return rc;
    hd_gguf_writer *w = hd_gguf_writer_new(err);
    if (!w) return err->code;
    rc = declare(w, c, from, type, err);
    hd_store *store = rc ? NULL : empty_store(c, param, err);
    if (!rc && !store) rc = err->code;
    if (!rc) rc = hd_lm_weights_load(store, c, from, err);
    if (!rc) {
        rc = hd_gguf_begin(w, to, err);
        if (!rc) rc = hd_lm_gguf_write(w, c, store, err);
        rc = hd_gguf_end(w, rc, err);
    } else {
        hd_gguf_writer_free(w);
    }
    hd_store_free(store);
    return rc;
}

/* ---- directories ---- */

/* What a directory has beside its weights; of a GGUF file, the tokenizer. */
static int write_companions(const char *from, const char *to, hd_error *err)
{
    char path[PATH_SIZE];
    int rc = 0;
    if (!hd_gguf_is(from)) {
        for (size_t i = 0; i < sizeof companions / sizeof companions[0] && !rc; i++) rc = copy_file(from, to, companions[i], err);
        return rc;
    }
    hd_tokenizer *t;
    rc = open_tokenizer(&t, from, err);
    if (!rc && t && !(rc = hd_path_join(path, sizeof path, to, "tokenizer.json", err))) rc = hd_tokenizer_save(t, path, err);
    hd_tokenizer_free(t);
    return rc;
}

static int write_all(const hd_lm_config *c, const char *from, const char *to, hd_dtype dtype, uint64_t shard_bytes, hd_error *err)
{
    hd_dtype param = dtype == HD_BF16 ? HD_BF16 : HD_F32; /* what the graph knows; f32 holds bf16 and f16 exactly */
    int rc = check_memory(c, param, err);
    hd_store *store = rc ? NULL : empty_store(c, param, err);
    if (!store) return err->code;
    rc = hd_lm_weights_load(store, c, from, err);
    if (!rc) rc = hd_lm_save(store, c, to, dtype, shard_bytes, err);
    if (!rc) rc = write_companions(from, to, err);
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

static bool names_gguf(const char *path)
{
    size_t n = strlen(path);
    return n > 5 && !strcmp(path + n - 5, ".gguf");
}

static int run(const void *config_, const char *const *words, int n_words, hd_error *err)
{
    const config *c = config_;
    hd_lm_config model;
    const char *to = c->out ? c->out : n_words == 2 ? words[1] : NULL;
    if (!to || n_words != (c->out ? 1 : 2)) return hd_fail(err, HD_EINVAL, "name the model to read and the one to write");
    int rc = hd_lm_config_open(&model, words[0], err);
    if (rc) return rc;
    const hd_quant *type = c->dtype ? hd_quant_by_name(c->dtype) : hd_quant_of_dtype(model.dtype);
    if (names_gguf(to)) rc = write_gguf(&model, words[0], to, type, err);
    else if (!type->plain) rc = hd_fail(err, HD_EINVAL, "weights in %s are for GGUF files: name one (FILE.gguf)", type->name);
    else rc = write_aside(&model, words[0], to, type->dtype, (uint64_t)c->shard_size, err);
    if (!rc && !c->quiet)
        printf("%s: %s, %lld parameters in %s\n", to, hd_architecture_name(model.arch), (long long)hd_lm_config_parameters(&model),
               type->plain ? hd_dtype_name(type->dtype) : type->name);
    return rc;
}

const hd_command hd_cmd_convert = {
    .name = "convert",
    .usage = "[flags] SRC DST",
    .summary = "write a model in another element type, in other shards, or as a GGUF file",
    .details = "SRC is a Hugging Face model directory or a GGUF file; DST becomes the one or, where its name ends in .gguf, the other, with the\n"
               "tokenizer, and must not be there yet (a directory may be empty). Numbers are rounded once, to nearest even, and to Q8_0 and Q4_0 as\n"
               "ggml does. DST appears under its name when it is whole.",
    .settings = settings,
    .config_size = sizeof(config),
    .max_words = 2,
    .run = run,
};
