/* The writing half of safetensors.h. */
#include "tensor/safetensors.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct piece {
    const hd_weight_spec *spec; /* the caller's; only while the header is made */
    hd_dtype dtype;
    uint64_t count;  /* elements */
    uint64_t offset; /* bytes from the start of the file */
} piece;

struct hd_safetensors_writer {
    char *path;
    int fd;
    bool guest;               /* the file is another's: it is there already, and stays */
    size_t count;
    piece *pieces;            /* in the order of the caller's specs */
    uint64_t total;           /* bytes of data */
    _Atomic uint64_t written; /* bytes of data */
};

/* Larger elements first keeps all of them aligned; the order by name makes equal content equal files. */
static int by_place(const void *a, const void *b)
{
    const hd_weight_spec *x = (*(piece *const *)a)->spec, *y = (*(piece *const *)b)->spec;
    size_t i = hd_dtype_size(x->dtype), j = hd_dtype_size(y->dtype);
    if (i != j) return i > j ? -1 : 1;
    return strcmp(x->name, y->name);
}

static uint64_t piece_bytes(const piece *p) { return p->count * hd_dtype_size(p->dtype); }

static int fill_piece(piece *p, const hd_weight_spec *spec, const char *path, hd_error *err)
{
    int64_t n = 1, bytes;
    bool bad = spec->rank < 0 || spec->rank > HD_MAX_RANK;
    for (int i = 0; !bad && i < spec->rank; i++) bad = spec->dim[i] < 0 || __builtin_mul_overflow(n, spec->dim[i], &n);
    if (bad || __builtin_mul_overflow(n, (int64_t)hd_dtype_size(spec->dtype), &bytes))
        return hd_fail(err, HD_EINVAL, "%s: tensor \"%.160s\" has an impossible shape", path, spec->name);
    *p = (piece){ .spec = spec, .dtype = spec->dtype, .count = (uint64_t)n };
    return HD_OK;
}

static json_t *shape_of(const hd_weight_spec *s)
{
    json_t *shape = json_array();
    for (int i = 0; i < s->rank; i++) json_array_append_new(shape, json_integer(s->dim[i]));
    return shape;
}

static json_t *metadata_of(const json_t *extra)
{
    json_t *m = json_pack("{s:s}", "format", "pt");
    if (m && extra) json_object_update(m, (json_t *)extra);
    return m;
}

/* Gives each piece its offset from the start of the data, and makes the header's JSON. */
static int make_header(hd_safetensors_writer *w, piece **sorted, const json_t *extra, json_t **out, hd_error *err)
{
    json_t *header = *out = json_object();
    json_object_set_new(header, "__metadata__", metadata_of(extra));
    for (size_t i = 0; i < w->count; i++) {
        piece *p = sorted[i];
        const char *name = p->spec->name;
        if (json_object_get(header, name)) return hd_fail(err, HD_EINVAL, "%s: tensor \"%.160s\" is named twice", w->path, name);
        p->offset = w->total;
        if (__builtin_add_overflow(w->total, piece_bytes(p), &w->total) || w->total > INT64_MAX / 2)
            return hd_fail(err, HD_EINVAL, "%s: too large", w->path);
        json_t *entry = json_pack("{s:s, s:o, s:[I,I]}", "dtype", hd_safetensors_dtype_name(p->dtype), "shape", shape_of(p->spec),
                                  "data_offsets", (json_int_t)p->offset, (json_int_t)w->total);
        if (!entry || json_object_set_new(header, name, entry))
            return hd_fail(err, HD_EINVAL, "%s: tensor \"%.160s\": its name is not UTF-8, or memory ran out", w->path, name);
    }
    return HD_OK;
}

static int append(const char *bytes, size_t n, void *s)
{
    hd_str_add(s, bytes, n);
    return ((hd_str *)s)->failed ? -1 : 0;
}

static int check_frame(const hd_safetensors_writer *w, size_t header, hd_error *err)
{
    struct stat st;
    if (fstat(w->fd, &st)) return hd_fail_errno(err, "%s", w->path);
    if ((uint64_t)st.st_size == header + w->total) return HD_OK;
    return hd_fail(err, HD_EIO, "%s has %lld bytes instead of %" PRIu64 ": is this the directory that the first rank made?", w->path, (long long)st.st_size,
                   header + w->total);
}

/* Length, JSON, and spaces up to a multiple of 8 bytes. */
static int write_header(hd_safetensors_writer *w, const json_t *header, hd_error *err)
{
    hd_str s;
    hd_str_init(&s);
    hd_str_add(&s, "\0\0\0\0\0\0\0\0", 8);
    int rc = json_dump_callback(header, append, &s, JSON_COMPACT);
    while (s.len % 8 && !s.failed) hd_str_putc(&s, ' ');
    if (rc || s.failed) {
        rc = hd_fail_memory(err, s.len, w->path);
    } else {
        for (int i = 0; i < 8; i++) s.data[i] = (char)((uint64_t)(s.len - 8) >> (8 * i));
        for (size_t i = 0; i < w->count; i++) w->pieces[i].offset += s.len;
        rc = w->guest ? check_frame(w, s.len, err) : hd_pwrite_all(w->fd, s.data, s.len, 0, w->path, err);
        /* All blocks now, so that a full disk shows before the work; a file system that cannot do this shows it while writing. */
        off_t size = (off_t)(s.len + w->total);
        if (!rc && !w->guest && fallocate(w->fd, 0, 0, size) && (errno == ENOSPC || errno == EDQUOT || errno == EFBIG || ftruncate(w->fd, size)))
            rc = hd_fail_errno(err, "cannot write %s (%" PRIu64 " bytes)", w->path, (uint64_t)size);
    }
    hd_str_free(&s);
    return rc;
}

/* Never over a device or a pipe: what fails later is removed. */
static int create_file(hd_safetensors_writer *w, hd_error *err)
{
    struct stat st;
    if (w->guest) {
        w->fd = open(w->path, O_RDWR | O_CLOEXEC);
        return w->fd < 0 ? hd_fail_errno(err, "cannot write %s", w->path) : HD_OK;
    }
    if (stat(w->path, &st) == 0 && !S_ISREG(st.st_mode)) return hd_fail(err, HD_EIO, "cannot create %s: not a regular file", w->path);
    w->fd = open(w->path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    return w->fd < 0 ? hd_fail_errno(err, "cannot create %s", w->path) : HD_OK;
}

static int start(hd_safetensors_writer *w, const hd_weight_spec *specs, const json_t *extra, hd_error *err)
{
    json_t *header = NULL;
    piece **sorted = hd_calloc(w->count, sizeof *sorted);
    int rc = sorted ? HD_OK : hd_fail_memory(err, w->count * sizeof *sorted, w->path);
    for (size_t i = 0; i < w->count && !rc; i++) {
        rc = fill_piece(&w->pieces[i], &specs[i], w->path, err);
        sorted[i] = &w->pieces[i];
    }
    if (!rc && w->count) qsort(sorted, w->count, sizeof *sorted, by_place);
    if (!rc) rc = make_header(w, sorted, extra, &header, err);
    hd_free(sorted);
    if (!rc) rc = create_file(w, err);
    if (!rc) rc = write_header(w, header, err);
    json_decref(header);
    for (size_t i = 0; i < w->count; i++) w->pieces[i].spec = NULL;
    return rc;
}

static hd_safetensors_writer *open_writer(const char *path, const hd_weight_spec *specs, size_t count, const json_t *extra, bool guest, hd_error *err)
{
    hd_safetensors_writer *w = hd_calloc(1, sizeof *w);
    if (!w) {
        hd_fail_memory(err, sizeof *w, path);
        return NULL;
    }
    *w = (hd_safetensors_writer){ .path = hd_strdup(path), .fd = -1, .guest = guest, .count = count, .pieces = hd_calloc(count, sizeof(piece)) };
    int rc = HD_OK;
    if (!w->path || !w->pieces) {
        w->count = 0;
        rc = hd_fail_memory(err, count * sizeof(piece), path);
    } else {
        rc = start(w, specs, extra, err);
    }
    if (!rc) return w;
    hd_safetensors_abandon(w);
    return NULL;
}

hd_safetensors_writer *hd_safetensors_create(const char *path, const hd_weight_spec *specs, size_t count, const json_t *extra, hd_error *err)
{
    return open_writer(path, specs, count, extra, false, err);
}

hd_safetensors_writer *hd_safetensors_begin(const hd_share *share, const char *path, const hd_weight_spec *specs, size_t count, const json_t *extra, hd_error *err)
{
    return open_writer(path, specs, count, extra, share && share->part == HD_SHARE_PIECES, err);
}

int hd_safetensors_write(hd_safetensors_writer *w, size_t which, int64_t begin, int64_t n, const void *src, hd_dtype from, hd_error *err)
{
    enum { BLOCK = 65536 };
    assert(which < w->count && begin >= 0 && n >= 0 && (uint64_t)begin + (uint64_t)n <= w->pieces[which].count);
    const piece *p = &w->pieces[which];
    size_t to_size = hd_dtype_size(p->dtype), from_size = hd_dtype_size(from);
    uint64_t at = p->offset + (uint64_t)begin * to_size;
    int rc = HD_OK;
    if (from == p->dtype) {
        rc = hd_pwrite_all(w->fd, src, (size_t)n * to_size, at, w->path, err);
    } else {
        _Alignas(8) unsigned char block[BLOCK];
        int64_t per_block = (int64_t)(BLOCK / to_size);
        for (int64_t i = 0; i < n && !rc; i += per_block) {
            int64_t k = n - i < per_block ? n - i : per_block;
            hd_convert(block, p->dtype, (const unsigned char *)src + (size_t)i * from_size, from, k);
            rc = hd_pwrite_all(w->fd, block, (size_t)k * to_size, at + (uint64_t)i * to_size, w->path, err);
        }
    }
    if (!rc) atomic_fetch_add(&w->written, (uint64_t)n * to_size);
    return rc;
}

static void free_writer(hd_safetensors_writer *w)
{
    hd_free(w->pieces);
    hd_free(w->path);
    hd_free(w);
}

int hd_safetensors_finish(hd_safetensors_writer *w, hd_error *err)
{
    uint64_t written = atomic_load(&w->written);
    int rc = HD_OK;
    if (written != w->total)
        rc = hd_fail(err, HD_EINVAL, "%s: %" PRIu64 " bytes of tensors were written, %" PRIu64 " declared", w->path, written, w->total);
    else if (fsync(w->fd))
        rc = hd_fail_errno(err, "cannot write %s", w->path);
    if (close(w->fd) && !rc) rc = hd_fail_errno(err, "cannot write %s", w->path);
    if (rc) unlink(w->path);
    free_writer(w);
    return rc;
}

void hd_safetensors_abandon(hd_safetensors_writer *w)
{
    if (!w) return;
    if (w->fd >= 0) {
        close(w->fd);
        if (!w->guest) unlink(w->path);
    }
    free_writer(w);
}

int hd_safetensors_end(hd_share *share, hd_safetensors_writer *w, int rc, hd_error *err)
{
    if (!w) return rc;
    if (!rc && (!share || share->part == HD_SHARE_ALONE)) return hd_safetensors_finish(w, err);
    if (!rc && fsync(w->fd)) rc = hd_fail_errno(err, "cannot write %s", w->path);
    if (rc) {
        hd_safetensors_abandon(w);
        return rc;
    }
    if (share->part == HD_SHARE_FRAME) share->total += (int64_t)w->total;
    share->written += (int64_t)atomic_load(&w->written);
    if (close(w->fd)) rc = hd_fail_errno(err, "cannot write %s", w->path);
    free_writer(w);
    return rc;
}
