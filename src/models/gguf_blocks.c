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

/* One parameter of a tensor: its rows in the file, as the graph wants them. */
typedef struct rows {
    const unsigned char *data; /* of its first row */
    int64_t length, bytes;     /* of one, in elements and in the file */
    int64_t head_dim;          /* > 0: rows of a head stand in pairs there, and in halves here, as transformers has them (models/gguf.c) */
} rows;

static const unsigned char *row_at(const rows *w, int64_t row)
{
    int64_t half = w->head_dim / 2, head = half ? row / w->head_dim * w->head_dim : row, in = row - head, there = half ? head + in % half * 2 + in / half : row;
    return w->data + there * w->bytes;
}

/* This rank's rows of v: lent where they lie in the file as they are wanted, else copied. */
static int add_rows(hd_store *s, const hd_graph *g, const hd_value_info *v, const rows *w, hd_error *err)
{
    hd_shape whole = v->layout ? v->whole : v->type.shape;
    hd_type type = v->type;
    hd_run_iter it = hd_layout_runs(&g->mesh, v->layout, &whole, s->rank);
    hd_store_tensor *t;
    if (it.runs > 1 || it.run % w->length) return hd_fail(err, HD_EUNSUPPORTED, "%s: its layout cuts rows, which are in blocks", v->path);
    type.shape = hd_layout_shape(&g->mesh, v->layout, &whole, s->rank);
    if (!w->head_dim) return hd_store_lend(s, v->path, &type, row_at(w, it.first / w->length), err);
    int rc = hd_store_add(s, v->path, &type, HD_PLAIN, HD_PARAM, 0, &t, err);
    for (int64_t r = 0, n = it.run / w->length; r < n && !rc; r++)
        memcpy((char *)t->data + r * w->bytes, row_at(w, it.first / w->length + r), (size_t)w->bytes);
    return rc;
}

static int lend(hd_store *s, const hd_graph *g, const hd_value_info *v, const hd_lm_tensor *t, int part, const hd_weight *w, const hd_lm_config *c,
                hd_error *err)
{
    int rc = hd_weight_need_shape(w, 2, t->dim, err);
    int64_t row = rc ? 0 : (int64_t)w->bytes / w->dim[0], before = 0, count = t->parts == 1 ? t->dim[0] : t->rows[part];
    hd_type whole = v->type;
    if (v->layout) whole.shape = v->whole;
    for (int i = 0; i < part; i++) before += t->rows[i];
    if (!rc && hd_type_bytes(&whole) != count * row)
        rc = hd_fail(err, HD_EFORMAT, "%s: tensor %s is not of the size that the metadata call for", w->file, w->name);
    if (rc) return rc;
    rows in = {w->data + before * row, w->dim[1], row, t->change == HD_GGUF_PAIRS ? c->head_dim : 0};
    return add_rows(s, g, v, &in, err);
}

int hd_lm_gguf_lend(hd_store *s, const hd_graph *g, const hd_lm_config *config, const hd_gguf *file, hd_error *err)
{
    hd_lm_tensor *list = NULL;
    choice c = {.file = file};
    int rc = hd_lm_tensors(config, &list, &c.n, err), part = 0;
    c.list = list;
    for (size_t i = 0; i < g->n_values && !rc; i++) {
        const hd_value_info *v = &g->values[i];
        if (v->kind != HD_PARAM || !v->type.blocks || hd_store_find(s, v->path)) continue;
        const hd_lm_tensor *t = tensor_of(&c, v->path, &part);
        rc = lend(s, g, v, t, part, hd_gguf_find(file, t->gguf), config, err);
    }
    hd_free(list);
    return rc;
}
