#include "tensor/safetensors.h"

#include <inttypes.h>
#include <stdlib.h>

#include "base/json.h"

#define MAX_HEADER ((uint64_t)100 << 20) /* bytes; the format's own bound */

static const char *const dtype_names[HD_DTYPE_COUNT] = {
    [HD_F64] = "F64", [HD_F32] = "F32", [HD_BF16] = "BF16", [HD_F16] = "F16",
    [HD_I64] = "I64", [HD_I32] = "I32", [HD_I8] = "I8",     [HD_U8] = "U8",
};

const char *hd_safetensors_dtype_name(hd_dtype t) { return dtype_names[t]; }

/* What every message about one tensor begins with. */
#define TENSOR_FMT "%s: tensor \"%.160s\": "

/* ---- one entry of the header ---- */

static int parse_dtype(hd_weight *w, const json_t *entry, hd_error *err)
{
    const char *name = json_string_value(json_object_get(entry, "dtype"));
    if (!name) return hd_fail(err, HD_EFORMAT, TENSOR_FMT "\"dtype\" must be a string", w->file, w->name);
    for (int t = 0; t < HD_DTYPE_COUNT; t++)
        if (!strcmp(name, dtype_names[t])) return w->dtype = (hd_dtype)t, HD_OK;
    if (!strcmp(name, "BOOL")) return w->dtype = HD_U8, HD_OK;
    return hd_fail(err, HD_EFORMAT, TENSOR_FMT "dtype \"%.40s\" is not supported", w->file, w->name, name);
}

/* Also w->bytes, from shape and dtype. An extent of 0 does not excuse others that overflow. */
static int parse_shape(hd_weight *w, const json_t *entry, hd_error *err)
{
    const json_t *shape = json_object_get(entry, "shape");
    if (!json_is_array(shape)) return hd_fail(err, HD_EFORMAT, TENSOR_FMT "\"shape\" must be a list", w->file, w->name);
    size_t rank = json_array_size(shape);
    if (rank > HD_MAX_RANK)
        return hd_fail(err, HD_EFORMAT, TENSOR_FMT "%zu dimensions, at most %d are supported", w->file, w->name, rank, HD_MAX_RANK);
    int64_t bytes = (int64_t)hd_dtype_size(w->dtype);
    bool empty = false;
    w->rank = (int)rank;
    for (size_t i = 0; i < rank; i++) {
        const json_t *extent = json_array_get(shape, i);
        int64_t n = json_is_integer(extent) ? json_integer_value(extent) : -1;
        if (n < 0) return hd_fail(err, HD_EFORMAT, TENSOR_FMT "extent %zu of its shape must be an integer of at least 0", w->file, w->name, i);
        if (n == 0) empty = true;
        else if (__builtin_mul_overflow(bytes, n, &bytes))
            return hd_fail(err, HD_EFORMAT, TENSOR_FMT "its shape overflows 64 bits", w->file, w->name);
        w->dim[i] = n;
    }
    w->bytes = empty ? 0 : (size_t)bytes;
    return HD_OK;
}

/* Sets w->data; data_bytes are all bytes behind the header. */
static int parse_offsets(hd_weight *w, const json_t *entry, const unsigned char *data, size_t data_bytes, hd_error *err)
{
    const json_t *offsets = json_object_get(entry, "data_offsets");
    const json_t *b = json_array_get(offsets, 0), *e = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(b) || !json_is_integer(e))
        return hd_fail(err, HD_EFORMAT, TENSOR_FMT "\"data_offsets\" must be two integers", w->file, w->name);
    int64_t begin = json_integer_value(b), end = json_integer_value(e);
    if (begin < 0 || end < begin)
        return hd_fail(err, HD_EFORMAT, TENSOR_FMT "data offsets %" PRId64 " to %" PRId64 " make no sense", w->file, w->name, begin, end);
    if ((uint64_t)end > data_bytes)
        return hd_fail(err, HD_EFORMAT, TENSOR_FMT "ends at byte %" PRId64 " of the data, but the file has %zu: truncated?", w->file, w->name,
                       end, data_bytes);
    if ((uint64_t)(end - begin) != w->bytes)
        return hd_fail(err, HD_EFORMAT, TENSOR_FMT "has %" PRId64 " bytes, its shape and dtype ask for %zu", w->file, w->name, end - begin,
                       w->bytes);
    w->data = data + begin;
    return HD_OK;
}

/* ---- the header as a whole ---- */

static int by_name(const void *a, const void *b) { return strcmp(((const hd_weight *)a)->name, ((const hd_weight *)b)->name); }

static int by_data(const void *a, const void *b)
{
    const hd_weight *x = a, *y = b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

/* The tensors, sorted by place, must cover the data from end to end: neither holes (where anything could hide) nor overlaps. */
static int check_cover(hd_safetensors *s, const unsigned char *data, size_t data_bytes, const char *file, hd_error *err)
{
    const unsigned char *at = data;
    if (s->count) qsort(s->tensors, s->count, sizeof *s->tensors, by_data);
    for (size_t i = 0; i < s->count; i++) {
        const hd_weight *w = &s->tensors[i];
        if (w->data < at) return hd_fail(err, HD_EFORMAT, TENSOR_FMT "overlaps tensor \"%.100s\"", file, w->name, w[-1].name);
        if (w->data > at)
            return hd_fail(err, HD_EFORMAT, TENSOR_FMT "%zu bytes before it belong to no tensor", file, w->name, (size_t)(w->data - at));
        at = w->data + w->bytes;
    }
    if (at != data + data_bytes)
        return hd_fail(err, HD_EFORMAT, "%s: the last %zu bytes belong to no tensor", file, (size_t)(data + data_bytes - at));
    return HD_OK;
}

static int take_metadata(hd_safetensors *s, json_t *metadata, const char *file, hd_error *err)
{
    const char *key;
    json_t *value;
    if (!json_is_object(metadata)) return hd_fail(err, HD_EFORMAT, "%s: \"__metadata__\" must be an object", file);
    json_object_foreach(metadata, key, value)
        if (!json_is_string(value)) return hd_fail(err, HD_EFORMAT, "%s: \"__metadata__\": \"%.100s\" must be a string", file, key);
    s->metadata = json_incref(metadata);
    return HD_OK;
}

static int parse_tensor(hd_safetensors *s, const char *name, const json_t *entry, const unsigned char *data, size_t data_bytes,
                        const char *file, hd_error *err)
{
    hd_weight *w = &s->tensors[s->count++];
    *w = (hd_weight){ .name = hd_arena_strdup(&s->arena, name), .file = file };
    if (!w->name) return hd_fail_memory(err, strlen(name), file);
    if (!json_is_object(entry)) return hd_fail(err, HD_EFORMAT, TENSOR_FMT "must be an object", file, name);
    int rc = parse_dtype(w, entry, err);
    if (!rc) rc = parse_shape(w, entry, err);
    if (!rc) rc = parse_offsets(w, entry, data, data_bytes, err);
    return rc;
}

static int parse_tensors(hd_safetensors *s, json_t *header, const unsigned char *data, size_t data_bytes, const char *file, hd_error *err)
{
    size_t most = json_object_size(header);
    const char *name;
    json_t *entry;
    s->tensors = hd_arena_alloc(&s->arena, most * sizeof *s->tensors);
    file = hd_arena_strdup(&s->arena, file);
    if (!s->tensors || !file) return hd_fail_memory(err, most * sizeof *s->tensors, "a table of tensors");
    json_object_foreach(header, name, entry) {
        bool is_metadata = !strcmp(name, "__metadata__");
        int rc = is_metadata ? take_metadata(s, entry, file, err) : parse_tensor(s, name, entry, data, data_bytes, file, err);
        if (rc) return rc;
    }
    int rc = check_cover(s, data, data_bytes, file, err);
    if (!rc && s->count) qsort(s->tensors, s->count, sizeof *s->tensors, by_name);
    return rc;
}

/* The length of the header in the file's first 8 bytes, checked against the file's own. */
static int header_length(const unsigned char *p, size_t n, size_t *length, const char *file, hd_error *err)
{
    uint64_t h = 0;
    if (n < 8) return hd_fail(err, HD_EFORMAT, "%s: not a safetensors file: only %zu bytes", file, n);
    for (int i = 0; i < 8; i++) h |= (uint64_t)p[i] << (8 * i);
    if (h > MAX_HEADER) return hd_fail(err, HD_EFORMAT, "%s: not a safetensors file: a header of %" PRIu64 " bytes", file, h);
    if (h > n - 8)
        return hd_fail(err, HD_EFORMAT, "%s: a header of %" PRIu64 " bytes goes beyond the file's end (%zu bytes): truncated?", file, h, n);
    *length = (size_t)h;
    return HD_OK;
}

static int parse(hd_safetensors *s, const unsigned char *p, size_t n, const char *file, hd_error *err)
{
    size_t length = 0;
    int rc = header_length(p, n, &length, file, err);
    if (rc) return rc;
    json_error_t e;
    json_t *header = json_loadb((const char *)p + 8, length, JSON_REJECT_DUPLICATES, &e);
    if (!header) return hd_fail(err, HD_EFORMAT, "%s: header, column %d: %s", file, e.column, e.text);
    if (!json_is_object(header)) rc = hd_fail(err, HD_EFORMAT, "%s: the header must be a JSON object", file);
    else rc = parse_tensors(s, header, p + 8 + length, n - 8 - length, file, err);
    json_decref(header);
    return rc;
}

int hd_safetensors_parse(hd_safetensors *s, const void *bytes, size_t n, const char *name, hd_error *err)
{
    *s = (hd_safetensors){0};
    int rc = parse(s, bytes, n, name, err);
    if (rc) hd_safetensors_close(s);
    return rc;
}

int hd_safetensors_open(hd_safetensors *s, const char *path, hd_error *err)
{
    hd_map map;
    *s = (hd_safetensors){0};
    int rc = hd_map_open(&map, path, err);
    if (rc) return rc;
    rc = hd_safetensors_parse(s, map.data, map.size, path, err);
    if (rc) hd_map_close(&map);
    else s->map = map;
    return rc;
}

void hd_safetensors_close(hd_safetensors *s)
{
    json_decref(s->metadata);
    hd_arena_free(&s->arena);
    hd_map_close(&s->map);
    *s = (hd_safetensors){0};
}

static const hd_weight *find(const hd_weight *tensors, size_t count, const char *name)
{
    hd_weight key = { .name = name };
    return count ? bsearch(&key, tensors, count, sizeof key, by_name) : NULL;
}

const hd_weight *hd_safetensors_find(const hd_safetensors *s, const char *name) { return find(s->tensors, s->count, name); }
const hd_weight *hd_weights_find(const hd_weights *w, const char *name) { return find(w->tensors, w->count, name); }

/* ---- one tensor ---- */

void hd_weight_load(const hd_weight *w, int64_t begin, int64_t n, void *dst, hd_dtype dtype)
{
    enum { BLOCK = 4096 };
    size_t from = hd_dtype_size(w->dtype), to = hd_dtype_size(dtype);
    const unsigned char *src = w->data + (size_t)begin * from;
    if (n <= 0) return;
    if (w->quant) {
        hd_quant_load(w->quant, w->data, begin, n, dst, dtype);
        return;
    }
    if (w->dtype == dtype) {
        memcpy(dst, src, (size_t)n * from);
        return;
    }
    if ((uintptr_t)src % from == 0) {
        hd_convert(dst, dtype, src, w->dtype, n);
        return;
    }
    _Alignas(8) unsigned char aligned[BLOCK];
    int64_t per_block = (int64_t)(BLOCK / from);
    for (int64_t i = 0; i < n; i += per_block) {
        int64_t k = n - i < per_block ? n - i : per_block;
        memcpy(aligned, src + (size_t)i * from, (size_t)k * from);
        hd_convert((unsigned char *)dst + (size_t)i * to, dtype, aligned, w->dtype, k);
    }
}

/* "[2, 3]" into out, cut off when it is long. */
static const char *format_shape(char *out, size_t size, int rank, const int64_t *dim)
{
    size_t at = (size_t)snprintf(out, size, "[");
    for (int i = 0; i < rank && at < size; i++) at += (size_t)snprintf(out + at, size - at, "%s%" PRId64, i ? ", " : "", dim[i]);
    if (at < size) snprintf(out + at, size - at, "]");
    return out;
}

int hd_weight_need_shape(const hd_weight *w, int rank, const int64_t *dim, hd_error *err)
{
    char have[128], want[128];
    if (w->rank == rank && (rank == 0 || !memcmp(w->dim, dim, (size_t)rank * sizeof *dim))) return HD_OK;
    return hd_fail(err, HD_EFORMAT, TENSOR_FMT "has shape %s, the model needs %s", w->file, w->name,
                   format_shape(have, sizeof have, w->rank, w->dim), format_shape(want, sizeof want, rank, dim));
}

/* ---- model directories ---- */

/* The shard of this file name, opened when it is the first time; `opened` maps names to positions in w->shards. */
static int open_shard(hd_weights *w, json_t *opened, const char *dir, const char *index, const char *file, const hd_safetensors **out,
                      hd_error *err)
{
    char path[4096];
    const json_t *known = json_object_get(opened, file);
    if (known) return *out = &w->shards[json_integer_value(known)], HD_OK;
    if (!hd_path_is_inside(file)) return hd_fail(err, HD_EFORMAT, "%s: names \"%.160s\", which is outside the directory", index, file);
    int rc = hd_path_join(path, sizeof path, dir, file, err);
    if (rc) return rc;
    if (!hd_file_exists(path)) return hd_fail(err, HD_EIO, "%s: names \"%.160s\", which is missing", index, file);
    hd_safetensors *shard = &w->shards[w->shard_count];
    rc = hd_safetensors_open(shard, path, err);
    if (rc) return rc;
    w->shard_count++;
    if (json_object_set_new(opened, file, json_integer((json_int_t)w->shard_count - 1))) return hd_fail_memory(err, sizeof *shard, index);
    *out = shard;
    return HD_OK;
}

static int take_indexed(hd_weights *w, json_t *opened, const char *dir, const char *index, const char *name, const json_t *file,
                        hd_error *err)
{
    const hd_safetensors *shard = NULL;
    const char *text = json_string_value(file);
    if (!text || strlen(text) != json_string_length(file))
        return hd_fail(err, HD_EFORMAT, "%s: the file of tensor \"%.160s\" must be a string", index, name);
    int rc = open_shard(w, opened, dir, index, text, &shard, err);
    if (rc) return rc;
    const hd_weight *found = hd_safetensors_find(shard, name);
    if (!found) return hd_fail(err, HD_EFORMAT, "%s: tensor \"%.160s\" is not in \"%.100s\"", index, name, text);
    w->tensors[w->count++] = *found;
    return HD_OK;
}

/* How many different files the map names: so many shards at most. */
static size_t count_files(const json_t *map)
{
    const char *key;
    json_t *value, *files = json_object();
    json_object_foreach((json_t *)map, key, value)
        if (json_is_string(value)) json_object_set_new(files, json_string_value(value), json_true());
    size_t n = json_object_size(files);
    json_decref(files);
    return n;
}

static int take_map(hd_weights *w, json_t *map, const char *dir, const char *index, hd_error *err)
{
    const char *name;
    json_t *file;
    size_t tensors = json_object_size(map), shards = count_files(map);
    if (!tensors) return hd_fail(err, HD_EFORMAT, "%s: \"weight_map\" must be an object that names tensors", index);
    w->tensors = hd_arena_alloc(&w->arena, tensors * sizeof *w->tensors);
    w->shards = hd_arena_alloc(&w->arena, shards * sizeof *w->shards);
    json_t *opened = json_object();
    int rc = w->tensors && w->shards && opened ? HD_OK : hd_fail_memory(err, tensors * sizeof *w->tensors, index);
    json_object_foreach(map, name, file) {
        if (rc) break;
        rc = take_indexed(w, opened, dir, index, name, file, err);
    }
    json_decref(opened);
    if (!rc) qsort(w->tensors, w->count, sizeof *w->tensors, by_name);
    return rc;
}

static int open_index(hd_weights *w, const char *dir, const char *index, hd_error *err)
{
    json_t *j = hd_json_load(index, err);
    if (!j) return err && err->code ? err->code : HD_EFORMAT;
    int rc = take_map(w, json_object_get(j, "weight_map"), dir, index, err);
    json_decref(j);
    return rc;
}

static int open_single(hd_weights *w, const char *path, hd_error *err)
{
    w->shards = hd_arena_alloc(&w->arena, sizeof *w->shards);
    if (!w->shards) return hd_fail_memory(err, sizeof *w->shards, path);
    int rc = hd_safetensors_open(w->shards, path, err);
    if (rc) return rc;
    w->shard_count = 1;
    w->tensors = w->shards[0].tensors;
    w->count = w->shards[0].count;
    return HD_OK;
}

/* As transformers: one whole file goes before an index. */
static int open_any(hd_weights *w, const char *path, hd_error *err)
{
    char single[4096], index[4096];
    if (!hd_is_dir(path)) return open_single(w, path, err);
    int rc = hd_path_join(single, sizeof single, path, "model.safetensors", err);
    if (!rc) rc = hd_path_join(index, sizeof index, path, "model.safetensors.index.json", err);
    if (rc) return rc;
    if (hd_file_exists(single)) return open_single(w, single, err);
    if (hd_file_exists(index)) return open_index(w, path, index, err);
    return hd_fail(err, HD_EIO, "%s: neither model.safetensors nor model.safetensors.index.json is there", path);
}

int hd_weights_open(hd_weights *w, const char *path, hd_error *err)
{
    *w = (hd_weights){0};
    int rc = open_any(w, path, err);
    if (rc) hd_weights_close(w);
    return rc;
}

void hd_weights_close(hd_weights *w)
{
    for (size_t i = 0; i < w->shard_count; i++) hd_safetensors_close(&w->shards[i]);
    hd_arena_free(&w->arena);
    *w = (hd_weights){0};
}
