/* gguf_blocks.c: parameters that stay in a GGUF file's block types, read from the mapped file where they lie as the graph wants them. */
#include "base/rng.h"
#include "models/gguf.h"
#include "passes/passes.h"

/* A file's tensors by the parameter that each holds. */
typedef struct choice {
    const hd_gguf *file;
    const hd_lm_tensor *list;
    size_t n;
    bool (*takes)(void *arg, const hd_quant *type);
    void *arg;
} choice;

static const hd_lm_tensor *tensor_of(const choice *c, const char *path, int *part)
{
    for (size_t i = 0; i < c->n; i++)
        for (*part = 0; *part < c->list[i].parts; ++*part)
            if (!strcmp(c->list[i].path[*part], path)) return &c->list[i];
    return NULL;
}

/* A parameter of another order of elements than the file's can't stay: GPT-2's matrices, and parts side by side in a row. */
static const hd_quant *type_of(void *arg, const hd_value_info *param)
{
    const choice *c = arg;
    int part;
    const hd_lm_tensor *t = tensor_of(c, param->path, &part);
    const hd_weight *w = t && t->rank == 2 && (t->parts == 1 || t->rows[0]) ? hd_gguf_find(c->file, t->gguf) : NULL;
    if (!w || (t->change != HD_GGUF_SAME && t->change != HD_GGUF_PAIRS)) return NULL;
    const hd_quant *type = hd_gguf_type(c->file, w);
    return type->dequantize && c->takes(c->arg, type) ? type : NULL;
}

int hd_lm_gguf_keep_blocks(hd_graph *g, const hd_lm_config *config, const hd_gguf *file, bool (*takes)(void *arg, const hd_quant *type), void *arg, hd_error *err)
{
    hd_lm_tensor *list = NULL;
    choice c = {.file = file, .takes = takes, .arg = arg};
    int rc = hd_lm_tensors(config, &list, &c.n, err);
    c.list = list;
    if (!rc && hd_pass_blocks(g, type_of, &c)) rc = hd_fail(err, g->err.code, "%s", g->err.message);
    hd_free(list);
    return rc;
}

/* A copy whose rows stand as transformers has them: those of a head in halves, not in pairs (models/gguf.c). */
static int copy_unpaired(hd_store *s, const hd_type *type, const char *path, const hd_weight *w, int64_t head_dim, hd_error *err)
{
    hd_store_tensor *t;
    int64_t rows = w->dim[0], bytes = hd_type_bytes(type) / rows, half = head_dim / 2;
    int rc = hd_store_add(s, path, type, HD_PLAIN, HD_PARAM, 0, &t, err);
    for (int64_t r = 0; r < rows && !rc; r++) {
        int64_t head = r / head_dim * head_dim, in = r % head_dim, there = head + in % half * 2 + in / half;
        memcpy((char *)t->data + r * bytes, w->data + there * bytes, (size_t)bytes);
    }
    return rc;
}

static int lend(hd_store *s, const hd_value_info *v, const hd_lm_tensor *t, int part, const hd_weight *w, const hd_lm_config *c, hd_error *err)
{
    int rc = hd_weight_need_shape(w, 2, t->dim, err);
    int64_t row = rc ? 0 : (int64_t)w->bytes / w->dim[0], before = 0, rows = t->parts == 1 ? t->dim[0] : t->rows[part];
    for (int i = 0; i < part; i++) before += t->rows[i];
    if (!rc && hd_type_bytes(&v->type) != rows * row) rc = hd_fail(err, HD_EFORMAT, "%s: tensor %s is not of the size that the metadata call for", w->file, w->name);
    if (rc) return rc;
    return t->change == HD_GGUF_PAIRS ? copy_unpaired(s, &v->type, v->path, w, c->head_dim, err) : hd_store_lend(s, v->path, &v->type, w->data + before * row, err);
}

int hd_lm_gguf_lend(hd_store *s, const hd_graph *g, const hd_lm_config *config, const hd_gguf *file, hd_error *err)
{
    hd_lm_tensor *list = NULL;
    choice c = {.file = file};
    int rc = hd_lm_tensors(config, &list, &c.n, err), part = 0;
    c.list = list;
    for (size_t i = 0; i < g->n_values && !rc; i++) {
        const hd_value_info *v = &g->values[i];
        if (v->kind != HD_PARAM || !v->type.blocks) continue;
        const hd_lm_tensor *t = tensor_of(&c, v->path, &part);
        rc = lend(s, v, t, part, hd_gguf_find(file, t->gguf), config, err);
    }
    hd_free(list);
    return rc;
}
