#include "serve/model.h"

#include <stdio.h>
#include <stdlib.h>
#include "base/file.h"
#include "base/term.h"
#include "data/tokenizer_gguf.h"
#include "kernels/cpu/blocks.h"
#include "models/weights.h"
#include "passes/passes.h"

/* ---- files ---- */

/* None is no error. */
static int open_tokenizer(hd_model_files *m, hd_error *err)
{
    char path[4096];
    if (m->is_gguf) return hd_tokenizer_open_gguf(&m->tokenizer, m->path, err);
    int rc = hd_path_join(path, sizeof path, m->path, "tokenizer.json", err);
    if (!rc && hd_file_exists(path) && !(m->tokenizer = hd_tokenizer_load(path, err))) rc = err->code;
    return rc;
}

int hd_model_files_open(hd_model_files *m, const char *path, hd_error *err)
{
    *m = (hd_model_files){.path = path, .keep_blocks = true};
    int rc = hd_lm_config_open(&m->config, path, err);
    if (!rc && hd_gguf_is(path)) {
        rc = hd_gguf_open(&m->file, path, err);
        m->is_gguf = !rc;
    }
    if (!rc) rc = open_tokenizer(m, err);
    if (rc) hd_model_files_close(m);
    return rc;
}

void hd_model_files_close(hd_model_files *m)
{
    if (m->is_gguf) hd_gguf_close(&m->file);
    hd_tokenizer_free(m->tokenizer);
    *m = (hd_model_files){0};
}

/* ---- types ---- */

/* Products of this instruction set take the type: asked for one panel of the longest block. */
static bool has_product(hd_isa isa, const hd_quant *type)
{
    bool elements = type->plain && (type->dtype == HD_F32 || type->dtype == HD_BF16); /* the dense products take these */
    return !elements && hd_blocks_packed_bytes(isa, type, 16, 256) > 0;
}

bool hd_model_files_in_blocks(const hd_model_files *m, hd_isa isa)
{
    for (size_t i = 0; m->is_gguf && m->keep_blocks && i < m->file.count; i++)
        if (m->file.tensors[i].rank == 2 && has_product(isa, m->file.types[i])) return true;
    return false;
}

typedef struct share { const hd_quant *type; size_t bytes; } share;

static int by_bytes(const void *a, const void *b)
{
    const share *x = a, *y = b;
    return (x->bytes < y->bytes) - (x->bytes > y->bytes);
}

const char *hd_model_files_types(const hd_model_files *m, char *out, size_t n)
{
    share all[64] = {0};
    int count = 0, at = 0;
    snprintf(out, n, "%s", m->path ? hd_dtype_name(m->config.dtype) : "random");
    for (size_t i = 0; m->is_gguf && i < m->file.count; i++) {
        int k = 0;
        while (k < count && all[k].type != m->file.types[i]) k++;
        if (k == 64) continue;
        if (k == count) all[count++].type = m->file.types[i];
        all[k].bytes += m->file.tensors[i].bytes;
    }
    qsort(all, (size_t)count, sizeof *all, by_bytes);
    for (int k = 0; k < count && (size_t)at < n; k++) at += snprintf(out + at, n - (size_t)at, "%s%s", k ? ", " : "", all[k].type->name);
    return out;
}

int64_t hd_model_files_bytes(const hd_model_files *m, hd_dtype precision)
{
    int64_t plain = hd_lm_config_parameters(&m->config) * (int64_t)hd_dtype_size(precision), kept = 0;
    for (size_t i = 0; m->is_gguf && i < m->file.count; i++) kept += (int64_t)m->file.tensors[i].bytes;
    return m->is_gguf && m->keep_blocks && kept < plain ? kept : plain;
}

/* ---- ready for use ---- */

static bool takes(void *arg, const hd_quant *type)
{
    return has_product(((const hd_backend *)arg)->isa, type);
}

/* Chunks for the stages of a pipeline, then every node becomes what one rank does of it. */
static int partition(hd_graph *g, const hd_parallel *parallel, hd_plan *plan, hd_error *err)
{
    const char *first[HD_MAX_CUTS];
    int rc = hd_parallel_expand(parallel, g, 0, plan, err);
    plan->fingerprint = 0; /* of the whole graph, not of a rank's */
    for (int i = 0; i < plan->n_cuts; i++) first[i] = plan->cuts[i];
    if (!rc && ((plan->n_cuts && hd_pass_chunks(g, first, plan->n_cuts)) || hd_pass_partition(g, &plan->mesh, plan->pins, plan->n_pins, false)))
        rc = hd_fail(err, g->err.code, "%s", g->err.message);
    return rc;
}

int hd_model_split_graph(const hd_model_files *m, hd_graph *g, const hd_backend *b, const hd_parallel *parallel, hd_plan *plan, hd_error *err)
{
    int rc = m->is_gguf && m->keep_blocks && !strcmp(b->name, "cpu") ? hd_lm_gguf_keep_blocks(g, &m->config, &m->file, takes, (void *)b, err) : 0;
    if (rc) return rc;
    hd_pass_fuse_residual_norm(g);
    hd_graph_cse(g);
    hd_graph_dce(g);
    return parallel ? partition(g, parallel, plan, err) : 0;
}

hd_graph *hd_model_stage(const hd_model_files *m, const hd_graph *g, int stage, int stages, hd_error *err)
{
    hd_graph *part = hd_graph_stage(g, stage, stages, true, err);
    if (!part) return NULL;
    part->stage = stage;
    hd_pass_fuse_elementwise(part);
    hd_graph_sort_by_depth(part); /* for one token, what counts is how often the threads must meet */
    for (size_t i = 0; m->path && i < part->n_values; i++)
        if (part->values[i].kind == HD_PARAM) part->values[i].init = NULL; /* all are read from the files: none is drawn first */
    if (!hd_graph_verify(part, err)) return part;
    hd_graph_free(part);
    return NULL;
}

int hd_model_check_memory(int64_t bytes, const char *advice, hd_error *err)
{
    char need[24], have[24];
    uint64_t available = hd_memory_available();
    if ((uint64_t)bytes <= available) return 0;
    return hd_fail(err, HD_EMEMCAP, "this model needs %lld bytes (%s) and %llu (%s) are available: try %s", (long long)bytes,
                   hd_format_bytes(need, (double)bytes), (unsigned long long)available, hd_format_bytes(have, (double)available), advice);
}

static int load(const hd_model_files *m, hd_store *s, hd_error *err)
{
    if (!m->path) return 0;
    return m->is_gguf ? hd_lm_gguf_load(s, &m->config, &m->file, err) : hd_lm_weights_load(s, &m->config, m->path, err);
}

/* What the program doesn't read plain isn't read from the model's files either. */
static int borrow(hd_store *s, const hd_graph *g, const hd_packed_file *packed, hd_error *err)
{
    int rc = hd_packed_file_lend(packed, s, err);
    for (size_t i = 0; i < g->n_values && !rc; i++)
        if (g->values[i].kind == HD_PARAM && hd_program_find(packed->list->program, g->values[i].path) < 0) rc = hd_store_add_hollow(s, g, &g->values[i], err);
    return rc;
}

hd_store *hd_model_store(const hd_model_files *m, const hd_graph *g, int rank, const hd_packed_file *packed, hd_error *err)
{
    hd_store *s = hd_store_new_rank(NULL, m->seed, rank, err);
    if (!s) return NULL;
    int rc = packed && packed->data ? borrow(s, g, packed, err) : 0;
    if (!rc && m->is_gguf) rc = hd_lm_gguf_lend(s, g, &m->config, &m->file, err);
    if (!rc) rc = hd_store_add_graph(s, g, m->seed, err);
    if (!rc) rc = load(m, s, err);
    if (!rc) return s;
    hd_store_free(s);
    return NULL;
}

void hd_model_drop_plain(hd_store *s, const hd_program *p)
{
    for (size_t i = s->n_tensors; i-- > 0;) {
        const char *path = s->tensors[i]->path;
        if (s->tensors[i]->format == HD_PLAIN && hd_program_find(p, path) < 0) hd_store_drop(s, path);
    }
}
