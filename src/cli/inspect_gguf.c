/* inspect_gguf.c: heddle inspect of GGUF files: the model, the metadata, the tensors with their types and sizes. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "base/json.h"
#include "cli/inspect.h"
#include "models/gguf.h"

enum { SHOWN = 8, SHOWN_BYTES = 200 };

/* ---- metadata ---- */

/* Text that isn't UTF-8 is shown by its length. */
static json_t *describe_text(const hd_gguf_text *t)
{
    size_t n = t->size < SHOWN_BYTES ? t->size : SHOWN_BYTES;
    while (n < t->size && n && ((unsigned char)t->data[n] & 0xc0) == 0x80) n--; /* whole characters */
    json_t *j = json_stringn(t->data, n);
    if (j && n == t->size) return j;
    hd_str s;
    hd_str_init(&s);
    if (j) hd_str_add(&s, t->data, n);
    hd_str_printf(&s, "%s(%zu bytes)", j ? "... " : "", t->size);
    json_decref(j);
    j = json_string(s.data);
    hd_str_free(&s);
    return j;
}

static json_t *describe_element(const hd_gguf_value *v, uint64_t i)
{
    if (v->texts) return describe_text(&v->texts[i]);
    if (v->element == HD_GGUF_BOOL) return json_boolean(hd_gguf_integer(v, i) != 0);
    if (hd_gguf_has_integers(v)) return json_integer((json_int_t)hd_gguf_integer(v, i));
    double d = hd_gguf_number(v, i);
    return isfinite(d) ? json_real(d) : json_string(isnan(d) ? "nan" : d > 0 ? "inf" : "-inf");
}

static json_t *describe_value(const hd_gguf_value *v)
{
    char type[64];
    snprintf(type, sizeof type, v->kind == HD_GGUF_ARRAY ? "%s[%llu]" : "%s", hd_gguf_kind_name(v->element), (unsigned long long)v->count);
    json_t *value = v->kind == HD_GGUF_ARRAY ? json_array() : describe_element(v, 0);
    for (uint64_t i = 0; v->kind == HD_GGUF_ARRAY && i < v->count && i < SHOWN; i++) json_array_append_new(value, describe_element(v, i));
    return json_pack("{s:s, s:s, s:o}", "key", v->key, "type", type, "value", value);
}

/* ---- tensors ---- */

static json_t *describe_tensor(const hd_gguf *g, const hd_weight *w, int64_t *elements)
{
    json_t *shape = json_array();
    *elements = 1;
    for (int i = 0; i < w->rank; i++) {
        json_array_append_new(shape, json_integer((json_int_t)w->dim[i]));
        *elements *= w->bytes ? w->dim[i] : 0;
    }
    return json_pack("{s:s, s:s, s:o, s:I}", "name", w->name, "type", hd_gguf_type(g, w)->name, "shape", shape, "bytes", (json_int_t)w->bytes);
}

static void add_tensors(json_t *out, const hd_gguf *g)
{
    json_t *tensors = json_array(), *types = json_object();
    int64_t parameters = 0, bytes = 0, elements;
    for (size_t i = 0; i < g->count; i++) {
        const char *type = hd_gguf_type(g, &g->tensors[i])->name;
        json_array_append_new(tensors, describe_tensor(g, &g->tensors[i], &elements));
        json_object_set_new(types, type, json_integer(json_integer_value(json_object_get(types, type)) + (json_int_t)elements));
        parameters += elements;
        bytes += (int64_t)g->tensors[i].bytes;
    }
    json_object_set_new(out, "parameters", json_integer((json_int_t)parameters));
    json_object_set_new(out, "bytes", json_integer((json_int_t)bytes));
    json_object_set_new(out, "types", types);
    json_object_set_new(out, "tensors", tensors);
}

/* ---- */

/* A model that heddle cannot run is described all the same, with the reason. */
static void add_model(json_t *out, const hd_gguf *g, const char *path)
{
    hd_lm_config c;
    hd_error e = {0};
    if (!hd_lm_gguf_config(&c, g, &e)) json_object_set_new(out, "config", hd_inspect_describe_config(&c, path));
    else json_object_set_new(out, "unsupported", json_string(e.message));
}

int hd_inspect_gguf(const char *path, json_t **out, hd_error *err)
{
    hd_gguf g;
    int rc = hd_gguf_open(&g, path, err);
    if (rc) return rc;
    json_t *metadata = json_array();
    for (size_t i = 0; i < g.value_count; i++) json_array_append_new(metadata, describe_value(&g.values[i]));
    *out = json_pack("{s:s, s:s, s:i, s:i, s:o}", "kind", "gguf", "path", path, "version", (int)g.version, "alignment", (int)g.alignment, "metadata", metadata);
    if (*out) {
        add_model(*out, &g, path);
        add_tensors(*out, &g);
    }
    hd_gguf_close(&g);
    return *out ? 0 : hd_fail_memory(err, 0, "a description");
}
