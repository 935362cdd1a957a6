/* The writing half of gguf.h. */
#include "tensor/gguf.h"

#include <assert.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

enum { ALIGNMENT = 32, MAX_DIMS = 4, BUFFER = 65536 };

typedef struct declared {
    const hd_quant *type;
    uint64_t offset, bytes; /* offset: from the start of the data */
} declared;

struct hd_gguf_writer {
    hd_str values, tensors; /* as they stand in the file */
    uint64_t value_count;
    declared *list;
    size_t count, cap;
    uint64_t total; /* bytes of data, padded */
    char *path, *partial;
    int fd;
    size_t current;    /* tensor being written */
    uint64_t done;     /* bytes of it */
    uint64_t data;     /* offset of the data in the file */
    hd_str buffer;     /* bytes on their way: begins at file offset `at` */
    uint64_t at;
};

hd_gguf_writer *hd_gguf_writer_new(hd_error *err)
{
    hd_gguf_writer *w = hd_calloc(1, sizeof *w);
    if (!w) {
        hd_fail_memory(err, sizeof *w, "a GGUF file");
        return NULL;
    }
    w->fd = -1;
    hd_str_init(&w->values);
    hd_str_init(&w->tensors);
    hd_str_init(&w->buffer);
    return w;
}

void hd_gguf_writer_free(hd_gguf_writer *w)
{
    if (!w) return;
    if (w->fd >= 0) close(w->fd);
    hd_str_free(&w->values);
    hd_str_free(&w->tensors);
    hd_str_free(&w->buffer);
    hd_free(w->list);
    hd_free(w->path);
    hd_free(w->partial);
    hd_free(w);
}

/* ---- declaring ---- */

static void put_little(hd_str *s, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++) hd_str_putc(s, (char)(v >> (8 * i)));
}

static void put_text(hd_str *s, const char *text, size_t n)
{
    put_little(s, n, 8);
    hd_str_add(s, text, n);
}

static void put_key(hd_gguf_writer *w, const char *key, hd_gguf_kind kind)
{
    put_text(&w->values, key, strlen(key));
    put_little(&w->values, kind, 4);
    w->value_count++;
}

static const uint8_t sizes[HD_GGUF_KINDS] = {[HD_GGUF_U8] = 1, [HD_GGUF_I8] = 1, [HD_GGUF_U16] = 2, [HD_GGUF_I16] = 2, [HD_GGUF_U32] = 4, [HD_GGUF_I32] = 4,
                                             [HD_GGUF_F32] = 4, [HD_GGUF_BOOL] = 1, [HD_GGUF_U64] = 8, [HD_GGUF_I64] = 8, [HD_GGUF_F64] = 8};

void hd_gguf_put_int(hd_gguf_writer *w, const char *key, hd_gguf_kind kind, int64_t v)
{
    put_key(w, key, kind);
    put_little(&w->values, (uint64_t)v, sizes[kind]);
}

void hd_gguf_put_real(hd_gguf_writer *w, const char *key, hd_gguf_kind kind, double v)
{
    float f = (float)v;
    put_key(w, key, kind);
    hd_str_add(&w->values, kind == HD_GGUF_F64 ? (const void *)&v : &f, sizes[kind]);
}

void hd_gguf_put_bool(hd_gguf_writer *w, const char *key, bool v) { hd_gguf_put_int(w, key, HD_GGUF_BOOL, v); }

void hd_gguf_put_string(hd_gguf_writer *w, const char *key, const char *text, size_t n)
{
    put_key(w, key, HD_GGUF_STRING);
    put_text(&w->values, text, n);
}

static void put_array(hd_gguf_writer *w, const char *key, hd_gguf_kind element, size_t n)
{
    put_key(w, key, HD_GGUF_ARRAY);
    put_little(&w->values, element, 4);
    put_little(&w->values, n, 8);
}

void hd_gguf_put_texts(hd_gguf_writer *w, const char *key, const hd_gguf_text *texts, size_t n)
{
    put_array(w, key, HD_GGUF_STRING, n);
    for (size_t i = 0; i < n; i++) put_text(&w->values, texts[i].data, texts[i].size);
}

void hd_gguf_put_numbers(hd_gguf_writer *w, const char *key, hd_gguf_kind kind, const void *numbers, size_t n)
{
    put_array(w, key, kind, n);
    hd_str_add(&w->values, numbers, n * sizes[kind]);
}

void hd_gguf_put_value(hd_gguf_writer *w, const hd_gguf_value *v)
{
    if (v->kind == HD_GGUF_ARRAY) put_array(w, v->key, v->element, v->count);
    else put_key(w, v->key, v->kind);
    for (uint64_t i = 0; v->texts && i < v->count; i++) put_text(&w->values, v->texts[i].data, v->texts[i].size);
    if (!v->texts) hd_str_add(&w->values, v->data, (size_t)v->count * sizes[v->element]);
}

int hd_gguf_add(hd_gguf_writer *w, const char *name, const hd_quant *type, int rank, const int64_t *dim, hd_error *err)
{
    int64_t n = 1, bytes = 0;
    bool bad = rank < 0 || rank > MAX_DIMS || (rank && dim[rank - 1] % type->block);
    for (int i = 0; i < rank && !bad; i++) bad = dim[i] < 1 || __builtin_mul_overflow(n, dim[i], &n);
    if (bad || !hd_quant_bytes(type, n, &bytes) || bytes > INT64_MAX / 4)
        return hd_fail(err, HD_EINVAL, "tensor \"%.160s\" cannot be written in %s", name, type->name);
    if (hd_grow(&w->list, &w->cap, w->count + 1, sizeof *w->list)) return hd_fail_memory(err, sizeof *w->list, "a GGUF file");
    put_text(&w->tensors, name, strlen(name));
    put_little(&w->tensors, (uint64_t)rank, 4);
    for (int i = rank - 1; i >= 0; i--) put_little(&w->tensors, (uint64_t)dim[i], 8);
    put_little(&w->tensors, type->id, 4);
    put_little(&w->tensors, w->total, 8);
    w->list[w->count++] = (declared){type, w->total, (uint64_t)bytes};
    w->total += ((uint64_t)bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return 0;
}

/* ---- writing ---- */

static int flush(hd_gguf_writer *w, hd_error *err)
{
    if (w->buffer.failed) return hd_fail_memory(err, BUFFER, w->path);
    int rc = hd_pwrite_all(w->fd, w->buffer.data, w->buffer.len, w->at, w->partial, err);
    w->at += w->buffer.len;
    hd_str_clear(&w->buffer);
    return rc;
}

static void pad(hd_gguf_writer *w)
{
    while ((w->at + w->buffer.len) % ALIGNMENT) hd_str_putc(&w->buffer, 0);
}

static int put_header(hd_gguf_writer *w, hd_error *err)
{
    if (w->values.failed || w->tensors.failed) return hd_fail_memory(err, w->values.len + w->tensors.len, w->path);
    hd_str_add(&w->buffer, "GGUF", 4);
    put_little(&w->buffer, 3, 4);
    put_little(&w->buffer, w->count, 8);
    put_little(&w->buffer, w->value_count, 8);
    hd_str_add(&w->buffer, w->values.data, w->values.len);
    hd_str_add(&w->buffer, w->tensors.data, w->tensors.len);
    pad(w);
    w->data = w->buffer.len;
    return flush(w, err);
}

int hd_gguf_begin(hd_gguf_writer *w, const char *path, hd_error *err)
{
    hd_str partial;
    hd_str_init(&partial);
    hd_str_printf(&partial, "%s.partial", path);
    w->path = hd_strdup(path);
    w->partial = hd_strdup(partial.data);
    bool failed = partial.failed || !w->path || !w->partial;
    hd_str_free(&partial);
    if (failed) return hd_fail_memory(err, strlen(path), "a file's name");
    w->fd = open(w->partial, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (w->fd < 0) return hd_fail_errno(err, "cannot create %s", w->partial);
    return put_header(w, err);
}

/* Bytes of the current tensor; it is followed by its padding. */
static int put_bytes(hd_gguf_writer *w, const void *bytes, size_t n, hd_error *err)
{
    const declared *d = &w->list[w->current];
    assert(w->done + n <= d->bytes);
    hd_str_add(&w->buffer, bytes, n);
    w->done += n;
    if (w->done == d->bytes) {
        pad(w);
        w->current++;
        w->done = 0;
    }
    return w->buffer.len >= BUFFER || w->buffer.failed ? flush(w, err) : 0;
}

int hd_gguf_write_blocks(hd_gguf_writer *w, const void *blocks, size_t bytes, hd_error *err)
{
    int rc = 0;
    for (size_t i = 0; i < bytes && !rc; i += BUFFER) rc = put_bytes(w, (const char *)blocks + i, bytes - i < BUFFER ? bytes - i : BUFFER, err);
    return rc;
}

int hd_gguf_write(hd_gguf_writer *w, const float *x, int64_t n, hd_error *err)
{
    enum { BLOCKS = 256 };
    unsigned char out[BLOCKS * 256];
    assert(w->current < w->count);
    const hd_quant *q = w->list[w->current].type;
    assert(q->quantize && n % q->block == 0 && q->bytes <= 256);
    int rc = 0;
    for (int64_t i = 0; i < n && !rc; i += (int64_t)BLOCKS * q->block) {
        int64_t blocks = (n - i) / q->block < BLOCKS ? (n - i) / q->block : BLOCKS;
        q->quantize(x + i, blocks, out);
        rc = put_bytes(w, out, (size_t)(blocks * q->bytes), err);
    }
    return rc;
}

int hd_gguf_end(hd_gguf_writer *w, int rc, hd_error *err)
{
    if (!rc) rc = flush(w, err);
    if (!rc && w->current < w->count) rc = hd_fail(err, HD_EIO, "%s: only %zu of %zu tensors were written", w->path, w->current, w->count);
    if (!rc && fsync(w->fd)) rc = hd_fail_errno(err, "%s", w->partial);
    if (!rc && rename(w->partial, w->path)) rc = hd_fail_errno(err, "renaming %s to %s", w->partial, w->path);
    if (rc && w->partial) unlink(w->partial);
    hd_gguf_writer_free(w);
    return rc;
}
