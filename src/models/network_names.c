/* network_names.c: names, definitions and extents of a network file. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/network_int.h"

#define MAX_ELEMENTS ((int64_t)1 << 40)
#define MAX_NESTING 16

net_where net_where_of(const net_builder *b, const net_scope *s, const char *kind, const char *name)
{
    net_where w;
    snprintf(w.text, sizeof w.text, "%s: %s \"%.40s%s%.60s\"", b->net->name, kind, s->path, *s->path ? "." : "", name);
    return w;
}

/* ---- objects ---- */

int net_check_keys(const json_t *j, const char *const *keys, const net_where *w, hd_error *err)
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)j, key, v) {
        bool known = !strcmp(key, "note");
        for (int i = 0; keys[i]; i++) known |= !strcmp(key, keys[i]);
        if (!known) return hd_fail(err, HD_EFORMAT, "%s: unknown key \"%.60s\"", w->text, key);
    }
    return 0;
}

static const char *type_name(json_type t)
{
    switch (t) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "a list";
    case JSON_STRING: return "a string";
    case JSON_INTEGER: return "an integer";
    case JSON_REAL: return "a number";
    case JSON_TRUE: case JSON_FALSE: return "true or false";
    default: return "null";
    }
}

const json_t *net_need(const json_t *j, const char *key, json_type type, const net_where *w, hd_error *err)
{
    const json_t *v = json_object_get(j, key);
    if (!v) hd_fail(err, HD_EFORMAT, "%s: \"%s\" is missing", w->text, key);
    else if (json_typeof(v) != type) hd_fail(err, HD_EFORMAT, "%s: \"%s\" must be %s", w->text, key, type_name(type));
    else return v;
    return NULL;
}

/* ---- names ---- */

static bool is_name(const char *s)
{
    size_t n = strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-");
    return n > 0 && n <= 60 && !s[n];
}

const char *net_item_name(net_builder *b, const net_scope *s, const json_t *item, const char *kind)
{
    static const char *const reserved[] = {"lr", "step", "inv_divisor", "key", "samples", "positions", "loss", "ok", "grad_norm"};
    net_where w = net_where_of(b, s, kind, "?");
    if (!json_is_object(item)) return hd_fail(b->err, HD_EFORMAT, "%s: must be an object", w.text), NULL;
    const json_t *j = net_need(item, "name", JSON_STRING, &w, b->err);
    const char *name = j ? json_string_value(j) : NULL;
    if (!name) return NULL;
    w = net_where_of(b, s, kind, name);
    if (!is_name(name)) return hd_fail(b->err, HD_EFORMAT, "%s: a name is 1 to 60 letters, digits, '_' and '-'", w.text), NULL;
    for (size_t i = 0; i < sizeof reserved / sizeof *reserved && !*s->path; i++)
        if (!strcmp(name, reserved[i])) return hd_fail(b->err, HD_EFORMAT, "%s: Heddle uses this name itself", w.text), NULL;
    return name;
}

/* "path.name" of a scope; false when it is too long. */
static bool full_path(char *out, size_t n, const net_scope *s, const char *name)
{
    int len = snprintf(out, n, "%s%s%s", s->path, *s->path ? "." : "", name);
    return len >= 0 && (size_t)len < n;
}

int net_bind(net_builder *b, const net_scope *s, const char *name, hd_value v, const net_where *w)
{
    char path[600];
    if (!full_path(path, sizeof path, s, name)) return hd_fail(b->err, HD_EFORMAT, "%s: the name is too long", w->text);
    if (json_object_get(b->names, path)) return hd_fail(b->err, HD_EFORMAT, "%s: the name is used twice", w->text);
    return json_object_set_new(b->names, path, json_integer(v)) ? hd_fail_memory(b->err, 0, "names") : 0;
}

/* A value by its name in the scope, else in the file; "name.1" is result 1 of the node `name`. HD_NONE if there is none. */
static hd_value find_value(const net_builder *b, const net_scope *s, const char *name)
{
    char path[600];
    const json_t *v = full_path(path, sizeof path, s, name) ? json_object_get(b->names, path) : NULL;
    if (!v) v = json_object_get(b->names, name);
    if (v) return (hd_value)json_integer_value(v);
    const char *dot = strrchr(name, '.');
    size_t n = dot ? (size_t)(dot - name) : 0;
    if (!n || n >= sizeof path || dot[1] < '0' || dot[1] >= '0' + HD_MAX_RESULTS || dot[2]) return HD_NONE;
    char first[600];
    memcpy(first, name, n);
    first[n] = 0;
    return hd_graph_result(b->g, find_value(b, s, first), dot[1] - '0');
}

/* ---- definitions ---- */

static const json_t *find_definition(const net_builder *b, const net_scope *s, const char *name)
{
    const json_t *v = s->args ? json_object_get(s->args, name) : NULL;
    if (!v) v = json_object_get(json_object_get(b->net->root, "define"), name);
    return v ? v : json_object_get(b->given, name);
}

const json_t *net_resolve(net_builder *b, const net_scope *s, const json_t *j, const net_where *w)
{
    for (int i = 0; i < MAX_NESTING; i++) {
        const char *text = json_string_value(j);
        if (!text || text[0] != '$' || strchr(text, '*')) return j;
        j = find_definition(b, s, text + 1);
        if (!j) return hd_fail(b->err, HD_EFORMAT, "%s: \"%.60s\" is not defined", w->text, text), NULL;
    }
    hd_fail(b->err, HD_EFORMAT, "%s: definitions run in a circle", w->text);
    return NULL;
}

static int integer_at(net_builder *b, const net_scope *s, const json_t *j, int depth, int64_t *out, const net_where *w);

/* One factor of a product: digits or "$name". */
static int factor(net_builder *b, const net_scope *s, const char *text, size_t n, int depth, int64_t *out, const net_where *w)
{
    char copy[80], *end;
    if (!n || n >= sizeof copy) return hd_fail(b->err, HD_EFORMAT, "%s: \"%.60s\" is no extent", w->text, text);
    memcpy(copy, text, n);
    copy[n] = 0;
    if (copy[0] == '$') {
        const json_t *j = find_definition(b, s, copy + 1);
        if (!j) return hd_fail(b->err, HD_EFORMAT, "%s: \"%s\" is not defined", w->text, copy);
        return integer_at(b, s, j, depth + 1, out, w);
    }
    *out = strtoll(copy, &end, 10);
    if (copy[0] < '0' || copy[0] > '9' || *end || *out > MAX_ELEMENTS) return hd_fail(b->err, HD_EFORMAT, "%s: \"%s\" is no extent", w->text, copy);
    return 0;
}

static int integer_at(net_builder *b, const net_scope *s, const json_t *j, int depth, int64_t *out, const net_where *w)
{
    if (depth > MAX_NESTING) return hd_fail(b->err, HD_EFORMAT, "%s: definitions run in a circle", w->text);
    if (json_is_integer(j)) return *out = json_integer_value(j), 0;
    const char *text = json_string_value(j);
    if (!text) return hd_fail(b->err, HD_EFORMAT, "%s: an extent must be an integer, \"$name\" or a product of them", w->text);
    int64_t product = 1;
    for (int i = 0;; i++) {
        size_t n = strcspn(text, "*");
        int64_t f;
        if (i == MAX_NESTING) return hd_fail(b->err, HD_EFORMAT, "%s: \"%.60s\" is too long", w->text, text);
        int rc = factor(b, s, text, n, depth, &f, w);
        if (rc) return rc;
        if (__builtin_mul_overflow(product, f, &product)) return hd_fail(b->err, HD_EFORMAT, "%s: an extent is too large", w->text);
        if (!text[n]) break;
        text += n + 1;
    }
    *out = product;
    return 0;
}

int net_integer(net_builder *b, const net_scope *s, const json_t *j, const char *key, int64_t lo, int64_t hi, int64_t *out, const net_where *w)
{
    int64_t v;
    int rc = integer_at(b, s, j, 0, &v, w);
    if (rc) return rc;
    if (v < lo || v > hi)
        return hd_fail(b->err, HD_EFORMAT, "%s: \"%s\" must be from %lld to %lld, is %lld", w->text, key, (long long)lo, (long long)hi, (long long)v);
    *out = v;
    return 0;
}

int net_number(net_builder *b, const net_scope *s, const json_t *j, const char *key, double *out, const net_where *w)
{
    int64_t v;
    j = net_resolve(b, s, j, w);
    if (!j) return b->err->code;
    if (json_is_number(j)) return *out = json_number_value(j), 0;
    if (!json_is_string(j)) return hd_fail(b->err, HD_EFORMAT, "%s: \"%s\" must be a number", w->text, key);
    int rc = integer_at(b, s, j, 0, &v, w);
    if (!rc) *out = (double)v;
    return rc;
}

int net_shape(net_builder *b, const net_scope *s, const json_t *j, const char *key, hd_type *out, const net_where *w)
{
    j = net_resolve(b, s, j, w);
    if (!j) return b->err->code;
    if (!json_is_array(j) || json_array_size(j) > HD_MAX_RANK)
        return hd_fail(b->err, HD_EFORMAT, "%s: \"%s\" must be a list of at most %d extents", w->text, key, HD_MAX_RANK);
    int64_t dim[HD_MAX_RANK], count = 1;
    int rank = (int)json_array_size(j);
    for (int i = 0; i < rank; i++) {
        int rc = net_integer(b, s, json_array_get(j, (size_t)i), key, 1, MAX_ELEMENTS, &dim[i], w);
        if (rc) return rc;
        if (__builtin_mul_overflow(count, dim[i], &count) || count > MAX_ELEMENTS)
            return hd_fail(b->err, HD_EFORMAT, "%s: \"%s\" has too many elements", w->text, key);
    }
    *out = hd_type_of(out->dtype, rank, dim);
    return 0;
}

int net_check_size(const net_builder *b, hd_value v, const net_where *w)
{
    const hd_shape *s = &hd_type_in(b->g, v)->shape;
    int64_t count = 1;
    for (int i = 0; i < s->rank; i++)
        if (s->dim[i] < 0 || s->dim[i] > MAX_ELEMENTS || __builtin_mul_overflow(count, s->dim[i], &count) || count > MAX_ELEMENTS)
            return hd_fail(b->err, HD_EFORMAT, "%s: its result has too many elements", w->text);
    return 0;
}

/* ---- values ---- */

/* "$key", "$samples", "$positions": inputs made when first used. */
static int given_value(net_builder *b, const char *name, hd_value *out)
{
    int64_t two = 2, batch = b->o->batch;
    const struct { const char *name; hd_type type; hd_time_layout micro; } table[] = {
        {"key", hd_type_of(HD_I64, 1, &two), HD_TIME_REPLICATE},
        {"samples", hd_type_of(HD_I64, 1, &batch), HD_TIME_SPLIT},
        {"positions", hd_type_of(HD_I32, 1, &batch), HD_TIME_SPLIT},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        if (strcmp(table[i].name, name)) continue;
        const char *scope = b->g->scope;
        b->g->scope = "";
        *out = hd_graph_find(b->g, name);
        if (*out == HD_NONE) *out = hd_graph_input(b->g, name, table[i].type, table[i].micro);
        b->g->scope = scope;
        return 1;
    }
    return 0;
}

int net_value(net_builder *b, const net_scope *s, const json_t *j, hd_value *out, const net_where *w)
{
    const char *text = json_string_value(j);
    *out = HD_NONE;
    if (text && text[0] == '$') {
        const json_t *bound = s->bound ? json_object_get(s->bound, text + 1) : NULL;
        if (bound) return *out = (hd_value)json_integer_value(bound), 0;
        if (!find_definition(b, s, text + 1) && given_value(b, text + 1, out)) return 0;
        j = net_resolve(b, s, j, w);
        if (!j) return b->err->code;
        text = json_string_value(j);
    }
    if (json_is_null(j)) return 0;
    if (json_is_number(j)) return *out = hd_graph_scalar(b->g, json_number_value(j), HD_F32), 0;
    if (!text) return hd_fail(b->err, HD_EFORMAT, "%s: an operand must be a name, a number or null", w->text);
    *out = find_value(b, s, text);
    if (*out == HD_NONE) return hd_fail(b->err, HD_EFORMAT, "%s: \"%.60s\" is not defined before it is used", w->text, text);
    return 0;
}
