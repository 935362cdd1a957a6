/* The reading half of gguf.h. */
#include "tensor/gguf.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

enum { MAX_DIMS = 4 };
#define MAX_KEY 65535 /* bytes of a key; the format's own bound */
#define MAX_NAME 1024 /* bytes of a tensor's name; in practice under 64 */

static const struct { const char *name; uint8_t size; } kinds[HD_GGUF_KINDS] = {
    [HD_GGUF_U8] = {"u8", 1},     [HD_GGUF_I8] = {"i8", 1},   [HD_GGUF_U16] = {"u16", 2},   [HD_GGUF_I16] = {"i16", 2},
    [HD_GGUF_U32] = {"u32", 4},   [HD_GGUF_I32] = {"i32", 4}, [HD_GGUF_F32] = {"f32", 4},   [HD_GGUF_BOOL] = {"bool", 1},
    [HD_GGUF_STRING] = {"string", 0}, [HD_GGUF_ARRAY] = {"array", 0}, [HD_GGUF_U64] = {"u64", 8}, [HD_GGUF_I64] = {"i64", 8},
    [HD_GGUF_F64] = {"f64", 8},
};

const char *hd_gguf_kind_name(hd_gguf_kind k) { return (unsigned)k < HD_GGUF_KINDS ? kinds[k].name : "?"; }

/* ---- a place in the file ---- */

typedef struct cursor {
    const unsigned char *p, *end;
    const char *file;
    char what[200]; /* what is being read, for messages */
    hd_error *err;
} cursor;

static size_t left(const cursor *c) { return (size_t)(c->end - c->p); }

static int truncated(const cursor *c)
{
    return hd_fail(c->err, HD_EFORMAT, "%s: %s goes beyond the file's end: truncated?", c->file, c->what);
}

static uint64_t little(const unsigned char *p, int bytes)
{
    uint64_t v = 0;
    for (int i = 0; i < bytes; i++) v |= (uint64_t)p[i] << (8 * i);
    return v;
}

static int take(cursor *c, int bytes, uint64_t *out)
{
    if (left(c) < (size_t)bytes) return truncated(c);
    *out = little(c->p, bytes);
    c->p += bytes;
    return 0;
}

static int take_text(cursor *c, hd_gguf_text *out)
{
    uint64_t n = 0;
    int rc = take(c, 8, &n);
    if (rc) return rc;
    if (n > left(c)) return truncated(c);
    *out = (hd_gguf_text){(const char *)c->p, (size_t)n};
    c->p += n;
    return 0;
}

/* A name as a C string in the arena: not empty, no NUL or line end, at most `most` bytes. */
static int take_name(cursor *c, hd_arena *arena, size_t most, const char **out)
{
    hd_gguf_text t = {0};
    int rc = take_text(c, &t);
    if (rc) return rc;
    bool bad = !t.size || t.size > most;
    for (size_t i = 0; i < t.size && !bad; i++) bad = (unsigned char)t.data[i] < ' ';
    if (bad) return hd_fail(c->err, HD_EFORMAT, "%s: %s is not a sensible name", c->file, c->what);
    char *copy = hd_arena_alloc(arena, t.size + 1);
    if (!copy) return hd_fail_memory(c->err, t.size, "names of a GGUF file");
    memcpy(copy, t.data, t.size);
    *out = copy;
    return 0;
}

/* ---- metadata ---- */

static int take_kind(cursor *c, const char *which, hd_gguf_kind *out)
{
    uint64_t k = 0;
    int rc = take(c, 4, &k);
    if (!rc && k >= HD_GGUF_KINDS) rc = hd_fail(c->err, HD_EFORMAT, "%s: %s has %s %" PRIu64 ", which is none", c->file, c->what, which, k);
    *out = (hd_gguf_kind)k;
    return rc;
}

/* A string by itself is read as a C string. */
static int copy_text(const cursor *c, hd_arena *arena, hd_gguf_text *t)
{
    char *copy = hd_arena_alloc(arena, t->size + 1);
    if (!copy) return hd_fail_memory(c->err, t->size, "a string of a GGUF file");
    memcpy(copy, t->data, t->size);
    t->data = copy;
    return 0;
}

static int take_texts(cursor *c, hd_arena *arena, hd_gguf_value *v)
{
    hd_gguf_text *texts = hd_arena_alloc(arena, (size_t)v->count * sizeof *texts);
    if (!texts) return hd_fail_memory(c->err, (size_t)v->count * sizeof *texts, "strings of a GGUF file");
    v->texts = texts;
    for (uint64_t i = 0; i < v->count; i++) {
        int rc = take_text(c, &texts[i]);
        if (rc) return rc;
    }
    return v->kind == HD_GGUF_STRING ? copy_text(c, arena, texts) : 0;
}

/* Booleans are 0 or 1. */
static int check_bools(const cursor *c, const hd_gguf_value *v)
{
    for (uint64_t i = 0; v->element == HD_GGUF_BOOL && i < v->count; i++)
        if (v->data[i] > 1) return hd_fail(c->err, HD_EFORMAT, "%s: %s: a boolean is %d", c->file, c->what, v->data[i]);
    return 0;
}

static int take_elements(cursor *c, hd_arena *arena, hd_gguf_value *v)
{
    size_t least = v->element == HD_GGUF_STRING ? 8 : kinds[v->element].size; /* of an element in the file: what is left bounds the count */
    if (v->count > left(c) / least) return truncated(c);
    if (v->element == HD_GGUF_STRING) return take_texts(c, arena, v);
    v->data = c->p;
    c->p += (size_t)v->count * least;
    return check_bools(c, v);
}

static int take_value(cursor *c, hd_arena *arena, hd_gguf_value *v)
{
    snprintf(c->what, sizeof c->what, "a metadata key");
    int rc = take_name(c, arena, MAX_KEY, &v->key);
    if (rc) return rc;
    snprintf(c->what, sizeof c->what, "metadata \"%.120s\"", v->key);
    if ((rc = take_kind(c, "type", &v->kind))) return rc;
    v->element = v->kind;
    v->count = 1;
    if (v->kind == HD_GGUF_ARRAY) {
        if ((rc = take_kind(c, "elements of type", &v->element)) || (rc = take(c, 8, &v->count))) return rc;
        if (v->element == HD_GGUF_ARRAY) return hd_fail(c->err, HD_EUNSUPPORTED, "%s: %s: arrays of arrays are not supported", c->file, c->what);
    }
    return take_elements(c, arena, v);
}

static int by_key(const void *a, const void *b)
{
    return strcmp((*(const hd_gguf_value *const *)a)->key, (*(const hd_gguf_value *const *)b)->key);
}

static int index_values(hd_gguf *g, hd_error *err)
{
    g->by_key = hd_arena_alloc(&g->arena, g->value_count * sizeof *g->by_key);
    if (!g->by_key) return hd_fail_memory(err, g->value_count * sizeof *g->by_key, g->path);
    for (size_t i = 0; i < g->value_count; i++) g->by_key[i] = &g->values[i];
    if (g->value_count) qsort(g->by_key, g->value_count, sizeof *g->by_key, by_key);
    for (size_t i = 1; i < g->value_count; i++)
        if (!by_key(&g->by_key[i - 1], &g->by_key[i]))
            return hd_fail(err, HD_EFORMAT, "%s: metadata \"%.120s\" is there twice", g->path, g->by_key[i]->key);
    return 0;
}

const hd_gguf_value *hd_gguf_get(const hd_gguf *g, const char *key)
{
    hd_gguf_value wanted = {.key = key};
    const hd_gguf_value *at = &wanted;
    const hd_gguf_value **found = g->value_count ? bsearch(&at, g->by_key, g->value_count, sizeof at, by_key) : NULL;
    return found ? *found : NULL;
}

/* ---- tensors ---- */

typedef struct entry {
    hd_weight w;
    const hd_quant *type;
    uint64_t offset; /* bytes from the start of the data */
} entry;

#define TENSOR_FMT "%s: tensor \"%.160s\": "

static int take_dims(cursor *c, hd_weight *w)
{
    uint64_t rank = 0, n = 0;
    int rc = take(c, 4, &rank);
    if (rc) return rc;
    if (rank > MAX_DIMS) return hd_fail(c->err, HD_EFORMAT, TENSOR_FMT "%" PRIu64 " dimensions, at most %d are supported", c->file, w->name, rank, MAX_DIMS);
    w->rank = (int)rank;
    for (int i = w->rank - 1; i >= 0; i--) {
        if ((rc = take(c, 8, &n))) return rc;
        if (n > INT64_MAX) return hd_fail(c->err, HD_EFORMAT, TENSOR_FMT "an extent of %" PRIu64, c->file, w->name, n);
        w->dim[i] = (int64_t)n;
    }
    return 0;
}

static int take_type(cursor *c, entry *e)
{
    uint64_t id = 0;
    int rc = take(c, 4, &id);
    if (rc) return rc;
    e->type = hd_quant_by_id((uint32_t)id);
    if (!e->type) return hd_fail(c->err, HD_EUNSUPPORTED, TENSOR_FMT "type %" PRIu64 " is not supported", c->file, e->w.name, id);
    e->w.dtype = e->type->dtype;
    e->w.quant = e->type->plain ? NULL : e->type;
    return 0;
}

/* Bytes of the shape. An extent of 0 does not excuse others that overflow. */
static int measure(const cursor *c, entry *e)
{
    int64_t n = 1, bytes = 0, row = e->w.rank ? e->w.dim[e->w.rank - 1] : 1;
    bool empty = false, overflow = false;
    for (int i = 0; i < e->w.rank; i++) {
        if (e->w.dim[i] == 0) empty = true;
        else overflow |= __builtin_mul_overflow(n, e->w.dim[i], &n);
    }
    if (row % e->type->block)
        return hd_fail(c->err, HD_EFORMAT, TENSOR_FMT "rows of %" PRId64 " numbers are not whole blocks of %s (%d)", c->file, e->w.name, row, e->type->name,
                       e->type->block);
    if (overflow || (!empty && !hd_quant_bytes(e->type, n, &bytes)))
        return hd_fail(c->err, HD_EFORMAT, TENSOR_FMT "its shape overflows 64 bits", c->file, e->w.name);
    e->w.bytes = empty ? 0 : (size_t)bytes;
    return 0;
}

static int take_tensor(cursor *c, hd_arena *arena, entry *e)
{
    snprintf(c->what, sizeof c->what, "a tensor's name");
    e->w = (hd_weight){.file = c->file};
    int rc = take_name(c, arena, MAX_NAME, &e->w.name);
    if (rc) return rc;
    snprintf(c->what, sizeof c->what, "tensor \"%.120s\"", e->w.name);
    if (!rc) rc = take_dims(c, &e->w);
    if (!rc) rc = take_type(c, e);
    if (!rc) rc = take(c, 8, &e->offset);
    return rc ? rc : measure(c, e);
}

/* Sets w.data of all; data_bytes lie behind the metadata. */
static int place(hd_gguf *g, entry *e, size_t n, const unsigned char *data, size_t data_bytes, hd_error *err)
{
    for (size_t i = 0; i < n; i++) {
        hd_weight *w = &e[i].w;
        if (e[i].offset % g->alignment)
            return hd_fail(err, HD_EFORMAT, TENSOR_FMT "its offset %" PRIu64 " is not a multiple of %u", g->path, w->name, e[i].offset, g->alignment);
        if (e[i].offset > data_bytes || w->bytes > data_bytes - e[i].offset)
            return hd_fail(err, HD_EFORMAT, TENSOR_FMT "its %zu bytes at offset %" PRIu64 " go beyond the file's end: truncated?", g->path, w->name, w->bytes,
                           e[i].offset);
        w->data = data + e[i].offset;
    }
    return 0;
}

static int by_place(const void *a, const void *b)
{
    const hd_weight *x = &((const entry *)a)->w, *y = &((const entry *)b)->w;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static int by_name(const void *a, const void *b) { return strcmp(((const entry *)a)->w.name, ((const entry *)b)->w.name); }
static int weight_by_name(const void *a, const void *b) { return strcmp(((const hd_weight *)a)->name, ((const hd_weight *)b)->name); }

static int check_apart(const hd_gguf *g, entry *e, size_t n, hd_error *err)
{
    if (n) qsort(e, n, sizeof *e, by_place);
    for (size_t i = 1; i < n; i++)
        if (e[i].w.bytes && e[i].w.data < e[i - 1].w.data + e[i - 1].w.bytes)
            return hd_fail(err, HD_EFORMAT, TENSOR_FMT "overlaps tensor \"%.100s\"", g->path, e[i].w.name, e[i - 1].w.name);
    if (n) qsort(e, n, sizeof *e, by_name);
    for (size_t i = 1; i < n; i++)
        if (!by_name(&e[i - 1], &e[i])) return hd_fail(err, HD_EFORMAT, TENSOR_FMT "is there twice", g->path, e[i].w.name);
    return 0;
}

static int keep(hd_gguf *g, const entry *e, size_t n, hd_error *err)
{
    g->tensors = hd_arena_alloc(&g->arena, n * sizeof *g->tensors);
    g->types = hd_arena_alloc(&g->arena, n * sizeof *g->types);
    if (!g->tensors || !g->types) return hd_fail_memory(err, n * sizeof *g->tensors, g->path);
    for (size_t i = 0; i < n; i++) {
        g->tensors[i] = e[i].w;
        g->types[i] = e[i].type;
    }
    g->count = n;
    return 0;
}

/* ---- the file ---- */

/* Metadata and tensors take at least 12 and 24 bytes each, so that what is left bounds what their tables take. */
static int take_counts(cursor *c, hd_gguf *g, uint64_t *tensors, uint64_t *values)
{
    uint64_t version = 0;
    if (left(c) < 4 || memcmp(c->p, "GGUF", 4)) return hd_fail(c->err, HD_EFORMAT, "%s: not a GGUF file", c->file);
    c->p += 4;
    snprintf(c->what, sizeof c->what, "the header");
    int rc = take(c, 4, &version);
    if (rc) return rc;
    if (version == 0x02000000 || version == 0x03000000) return hd_fail(c->err, HD_EUNSUPPORTED, "%s: big-endian GGUF files are not supported", c->file);
    if (version != 2 && version != 3) return hd_fail(c->err, HD_EUNSUPPORTED, "%s: GGUF version %" PRIu64 " is not supported (2 and 3 are)", c->file, version);
    g->version = (uint32_t)version;
    if ((rc = take(c, 8, tensors)) || (rc = take(c, 8, values))) return rc;
    if (*values > left(c) / 12) return hd_fail(c->err, HD_EFORMAT, "%s: %" PRIu64 " pieces of metadata go beyond the file's end: truncated?", c->file, *values);
    if (*tensors > left(c) / 24) return hd_fail(c->err, HD_EFORMAT, "%s: %" PRIu64 " tensors go beyond the file's end: truncated?", c->file, *tensors);
    return 0;
}

static int take_values(cursor *c, hd_gguf *g, uint64_t n)
{
    g->values = hd_arena_alloc(&g->arena, (size_t)n * sizeof *g->values);
    if (!g->values) return hd_fail_memory(c->err, (size_t)n * sizeof *g->values, c->file);
    for (; g->value_count < n; g->value_count++) {
        int rc = take_value(c, &g->arena, &g->values[g->value_count]);
        if (rc) return rc;
    }
    return index_values(g, c->err);
}

static int read_alignment(hd_gguf *g, hd_error *err)
{
    int64_t alignment = 32;
    int rc = hd_gguf_int(g, "general.alignment", 1, 1 << 20, &alignment, err);
    if (!rc && alignment & (alignment - 1)) rc = hd_fail(err, HD_EFORMAT, "%s: general.alignment is %" PRId64 ", not a power of two", g->path, alignment);
    g->alignment = (uint32_t)alignment;
    return rc;
}

static int take_tensors(cursor *c, hd_gguf *g, entry *e, uint64_t n, const unsigned char *begin)
{
    int rc = 0;
    for (uint64_t i = 0; i < n && !rc; i++) rc = take_tensor(c, &g->arena, &e[i]);
    if (rc) return rc;
    size_t at = (size_t)(c->p - begin), padding = (g->alignment - at % g->alignment) % g->alignment;
    const unsigned char *data = padding < left(c) ? c->p + padding : c->end; /* a file without tensors may end before it */
    rc = place(g, e, (size_t)n, data, (size_t)(c->end - data), c->err);
    if (!rc) rc = check_apart(g, e, (size_t)n, c->err);
    return rc ? rc : keep(g, e, (size_t)n, c->err);
}

static int parse(hd_gguf *g, const unsigned char *p, size_t n, const char *name, hd_error *err)
{
    uint64_t tensors = 0, values = 0;
    g->path = hd_arena_strdup(&g->arena, name);
    if (!g->path) return hd_fail_memory(err, strlen(name), "a file's name");
    cursor c = {.p = p, .end = p + n, .file = g->path, .err = err};
    int rc = take_counts(&c, g, &tensors, &values);
    if (!rc) rc = take_values(&c, g, values);
    if (!rc) rc = read_alignment(g, err);
    if (rc) return rc;
    entry *e = hd_calloc((size_t)tensors + 1, sizeof *e);
    if (!e) return hd_fail_memory(err, (size_t)tensors * sizeof *e, name);
    rc = take_tensors(&c, g, e, tensors, p);
    hd_free(e);
    return rc;
}

int hd_gguf_parse(hd_gguf *g, const void *bytes, size_t n, const char *name, hd_error *err)
{
    hd_error local = {0};
    if (!err) err = &local;
    *g = (hd_gguf){0};
    int rc = parse(g, bytes, n, name, err);
    if (rc) hd_gguf_close(g);
    return rc;
}

int hd_gguf_open(hd_gguf *g, const char *path, hd_error *err)
{
    hd_map map;
    *g = (hd_gguf){0};
    int rc = hd_map_open(&map, path, err);
    if (rc) return rc;
    rc = hd_gguf_parse(g, map.data, map.size, path, err);
    if (rc) hd_map_close(&map);
    else g->map = map;
    return rc;
}

void hd_gguf_close(hd_gguf *g)
{
    hd_arena_free(&g->arena);
    hd_map_close(&g->map);
    *g = (hd_gguf){0};
}

bool hd_gguf_is(const char *path)
{
    char magic[4];
    FILE *f = hd_is_dir(path) ? NULL : fopen(path, "rb");
    bool yes = f && fread(magic, 1, 4, f) == 4 && !memcmp(magic, "GGUF", 4);
    if (f) fclose(f);
    return yes;
}

const hd_weight *hd_gguf_find(const hd_gguf *g, const char *name)
{
    hd_weight key = {.name = name};
    return g->count ? bsearch(&key, g->tensors, g->count, sizeof key, weight_by_name) : NULL;
}

const hd_quant *hd_gguf_type(const hd_gguf *g, const hd_weight *tensor) { return g->types[tensor - g->tensors]; }

/* ---- values ---- */

static bool is_integer(hd_gguf_kind k) { return k <= HD_GGUF_I32 || k == HD_GGUF_U64 || k == HD_GGUF_I64; }
static bool is_number(hd_gguf_kind k) { return is_integer(k) || k == HD_GGUF_F32 || k == HD_GGUF_F64; }

/* Sign-extended; u64 beyond i64 saturates. */
static int64_t integer_at(const hd_gguf_value *v, uint64_t i)
{
    int bytes = kinds[v->element].size;
    uint64_t u = little(v->data + i * (uint64_t)bytes, bytes);
    bool is_signed = v->element == HD_GGUF_I8 || v->element == HD_GGUF_I16 || v->element == HD_GGUF_I32;
    if (is_signed && u >> (8 * bytes - 1)) u |= ~0ull << (8 * bytes - 1);
    if (v->element == HD_GGUF_U64 && u > INT64_MAX) return INT64_MAX;
    return (int64_t)u;
}

double hd_gguf_number(const hd_gguf_value *v, uint64_t i)
{
    float f;
    double d;
    if (v->element == HD_GGUF_F32) return memcpy(&f, v->data + 4 * i, 4), f;
    if (v->element == HD_GGUF_F64) return memcpy(&d, v->data + 8 * i, 8), d;
    return v->texts ? 0 : (double)integer_at(v, i);
}

static int of_kind(const hd_gguf *g, const hd_gguf_value *v, bool right, const char *what, hd_error *err)
{
    if (right) return 0;
    return hd_fail(err, HD_EFORMAT, "%s: metadata \"%.120s\" must be %s, is %s%s", g->path, v->key, what, v->kind == HD_GGUF_ARRAY ? "an array of " : "",
                   kinds[v->element].name);
}

bool hd_gguf_has_integers(const hd_gguf_value *v) { return is_integer(v->element); }

int64_t hd_gguf_integer(const hd_gguf_value *v, uint64_t i) { return is_integer(v->element) || v->element == HD_GGUF_BOOL ? integer_at(v, i) : 0; }

int hd_gguf_int(const hd_gguf *g, const char *key, int64_t lo, int64_t hi, int64_t *out, hd_error *err)
{
    const hd_gguf_value *v = hd_gguf_get(g, key);
    if (!v) return 0;
    int rc = of_kind(g, v, is_integer(v->kind), "an integer", err);
    if (rc) return rc;
    int64_t i = integer_at(v, 0);
    if (i < lo || i > hi)
        return hd_fail(err, HD_EFORMAT, "%s: metadata \"%.120s\" is %" PRId64 ", must be from %" PRId64 " to %" PRId64, g->path, key, i, lo, hi);
    *out = i;
    return 0;
}

int hd_gguf_real(const hd_gguf *g, const char *key, double lo, double hi, double *out, hd_error *err)
{
    const hd_gguf_value *v = hd_gguf_get(g, key);
    if (!v) return 0;
    int rc = of_kind(g, v, is_number(v->kind), "a number", err);
    if (rc) return rc;
    double d = hd_gguf_number(v, 0);
    if (!(d >= lo && d <= hi)) return hd_fail(err, HD_EFORMAT, "%s: metadata \"%.120s\" is %g, must be from %g to %g", g->path, key, d, lo, hi);
    *out = d;
    return 0;
}

int hd_gguf_bool(const hd_gguf *g, const char *key, bool *out, hd_error *err)
{
    const hd_gguf_value *v = hd_gguf_get(g, key);
    if (!v) return 0;
    int rc = of_kind(g, v, v->kind == HD_GGUF_BOOL, "a boolean", err);
    if (!rc) *out = v->data[0];
    return rc;
}

int hd_gguf_string(const hd_gguf *g, const char *key, const char **out, hd_error *err)
{
    const hd_gguf_value *v = hd_gguf_get(g, key);
    if (!v) return 0;
    int rc = of_kind(g, v, v->kind == HD_GGUF_STRING, "a string", err);
    if (rc) return rc;
    const hd_gguf_text *t = v->texts;
    if (memchr(t->data, 0, t->size)) return hd_fail(err, HD_EFORMAT, "%s: metadata \"%.120s\" holds a NUL", g->path, key);
    *out = t->data;
    return 0;
}

int hd_gguf_array(const hd_gguf *g, const char *key, bool strings, const hd_gguf_value **out, hd_error *err)
{
    const hd_gguf_value *v = *out = hd_gguf_get(g, key);
    if (!v) return 0;
    bool right = v->kind == HD_GGUF_ARRAY && (strings ? v->element == HD_GGUF_STRING : is_number(v->element));
    return of_kind(g, v, right, strings ? "an array of strings" : "an array of numbers", err);
}

int hd_gguf_need(const hd_gguf *g, const char *key, hd_error *err)
{
    return hd_gguf_get(g, key) ? 0 : hd_fail(err, HD_EFORMAT, "%s: metadata \"%.120s\" is missing", g->path, key);
}
