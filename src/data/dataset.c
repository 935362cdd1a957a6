#include "data/dataset.h"

#include <stdio.h>

#include "base/json.h"
#include "base/mem.h"
#include "data/synthetic.h"
#include "tensor/safetensors.h"

/* ---- columns ---- */

hd_column *hd_dataset_add(hd_dataset *d, const char *name, hd_dtype dtype, int64_t elements, hd_error *err)
{
    if (d->n_columns == HD_MAX_COLUMNS) return hd_fail(err, HD_EFORMAT, "data has more than %d columns", HD_MAX_COLUMNS), NULL;
    hd_column *c = &d->column[d->n_columns];
    size_t bytes = (size_t)elements * hd_dtype_size(dtype);
    *c = (hd_column){.dtype = dtype, .elements = elements};
    snprintf(c->name, sizeof c->name, "%s", name);
    c->data = hd_calloc((size_t)d->count, bytes ? bytes : 1);
    if (!c->data) return hd_fail_memory(err, (size_t)d->count * bytes, "the data"), NULL;
    d->n_columns++;
    return c;
}

const hd_column *hd_dataset_column(const hd_dataset *d, const char *name)
{
    for (int i = 0; i < d->n_columns; i++)
        if (!strcmp(d->column[i].name, name)) return &d->column[i];
    return NULL;
}

void hd_dataset_rows(const hd_column *c, const int64_t *row, int64_t n, hd_dtype dtype, void *out)
{
    size_t from = (size_t)c->elements * hd_dtype_size(c->dtype), to = (size_t)c->elements * hd_dtype_size(dtype);
    for (int64_t i = 0; i < n; i++)
        hd_convert((char *)out + (size_t)i * to, dtype, (const char *)c->data + (size_t)row[i] * from, c->dtype, c->elements);
}

void hd_dataset_free(hd_dataset *d)
{
    for (int i = 0; i < d->n_columns; i++) hd_free(d->column[i].data);
    *d = (hd_dataset){0};
}

/* ---- sources ---- */

static int open_generator(hd_dataset *d, const char *generator, const json_t *section, bool test, const char *where, hd_error *err)
{
    hd_synthetic o = {.size = 28, .users = 1000, .items = 500, .noise = 0.2, .seed = 1, .count = test ? 2000 : 10000, .test = test};
    int64_t seed = 1;
    int rc = hd_json_int(section, "size", 8, 64, &o.size, where, err);
    if (!rc) rc = hd_json_int(section, "users", 1, 1 << 24, &o.users, where, err);
    if (!rc) rc = hd_json_int(section, "items", 1, 1 << 24, &o.items, where, err);
    if (!rc) rc = hd_json_int(section, test ? "test" : "train", 1, 1 << 28, &o.count, where, err);
    if (!rc) rc = hd_json_int(section, "seed", 0, INT64_MAX, &seed, where, err);
    if (!rc) rc = hd_json_number(section, "noise", 0, 1, &o.noise, where, err);
    o.seed = (uint64_t)seed;
    if (rc) return rc;
    if (!strcmp(generator, "digits")) return hd_synthetic_digits(d, &o, err);
    if (!strcmp(generator, "clicks")) return hd_synthetic_clicks(d, &o, err);
    return hd_fail(err, HD_EFORMAT, "%s: \"generator\" must be \"digits\" or \"clicks\", is \"%.40s\"", where, generator);
}

/* Every tensor of a safetensors file is a column; their outermost extents are the samples, and must agree. */
static int read_columns(hd_dataset *d, const hd_safetensors *s, const char *path, hd_error *err)
{
    if (!s->count) return hd_fail(err, HD_EFORMAT, "%s: holds no tensors", path);
    for (size_t i = 0; i < s->count; i++) {
        const hd_weight *w = &s->tensors[i];
        int64_t elements = 1;
        if (w->rank < 1 || (i && w->dim[0] != d->count) || w->dim[0] < 1)
            return hd_fail(err, HD_EFORMAT, "%s: tensor \"%.60s\" must have one row for each sample, as the others", path, w->name);
        d->count = w->dim[0];
        for (int k = 1; k < w->rank; k++) elements *= w->dim[k];
        hd_column *c = hd_dataset_add(d, w->name, w->dtype, elements, err);
        if (!c) return err->code;
        hd_weight_load(w, 0, d->count * elements, c->data, c->dtype);
    }
    return 0;
}

static int open_file(hd_dataset *d, const char *path, hd_error *err)
{
    hd_safetensors s;
    int rc = hd_safetensors_open(&s, path, err);
    if (rc) return rc;
    rc = read_columns(d, &s, path, err);
    hd_safetensors_close(&s);
    return rc;
}

int hd_dataset_open(hd_dataset *d, const json_t *section, bool test, const char *where, hd_error *err)
{
    static const char *const names[] = {"train_file", "test_file"};
    const char *generator = NULL, *path = NULL;
    *d = (hd_dataset){0};
    int rc = hd_json_string(section, "generator", &generator, where, err);
    if (!rc) rc = hd_json_string(section, names[test], &path, where, err);
    if (rc) return rc;
    if (generator) rc = open_generator(d, generator, section, test, where, err);
    else if (path) rc = open_file(d, path, err);
    else rc = hd_fail(err, HD_EFORMAT, "%s: needs \"generator\" or \"%s\"", where, names[test]);
    if (rc) hd_dataset_free(d);
    return rc;
}
