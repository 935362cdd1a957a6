/* corpus.c: Megatron's IndexedDataset files. PREFIX.idx, little-endian, without padding:
 *
 *   9 bytes "MMIDIDX\0\0" | u64 version 1 | u8 type of ids | u64 sequences | u64 document entries
 *   i32 sizes[sequences] | i64 byte offsets[sequences] | i64 first sequence of each document [document entries], the last = sequences */
#include "data/corpus.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>
#include "base/mem.h"

static const char MAGIC[9] = "MMIDIDX\0";
enum { HEADER = 9 + 8 + 1 + 8 + 8, CODE_I32 = 4, CODE_U16 = 8, BUFFER = 1 << 20 };

/* ---- writing ---------------------------------------------------------------------------------------------------- */

struct hd_corpus_writer {
    char *prefix, *bin_tmp;
    int fd;
    int32_t vocab_size;
    int width;
    int32_t *sizes; /* [documents] */
    size_t documents, size_cap;
    unsigned char *buffer;
    size_t used; /* bytes waiting in buffer */
};

static char *with_suffix(const char *prefix, const char *suffix) {
    size_t n = strlen(prefix), m = strlen(suffix) + 1;
    char *s = hd_malloc(n + m);
    if (!s) return NULL;
    memcpy(s, prefix, n);
    memcpy(s + n, suffix, m);
    return s;
}

hd_corpus_writer *hd_corpus_writer_new(const char *prefix, int32_t vocab_size, hd_error *err) {
    hd_corpus_writer *w = hd_calloc(1, sizeof *w);
    if (!w) goto memory;
    w->fd = -1;
    w->vocab_size = vocab_size;
    w->width = vocab_size < 65500 ? 2 : 4;
    w->prefix = hd_strdup(prefix);
    w->bin_tmp = with_suffix(prefix, ".bin.tmp");
    w->buffer = hd_malloc(BUFFER);
    if (!w->prefix || !w->bin_tmp || !w->buffer) goto memory;
    w->fd = open(w->bin_tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (w->fd >= 0) return w;
    hd_fail_errno(err, "%s", w->bin_tmp);
    hd_corpus_writer_free(w);
    return NULL;
memory:
    hd_fail_memory(err, BUFFER, "writing a corpus");
    hd_corpus_writer_free(w);
    return NULL;
}

static int flush(hd_corpus_writer *w, hd_error *err) {
    int rc = hd_write_all(w->fd, w->buffer, w->used, w->bin_tmp, err);
    w->used = 0;
    return rc;
}

int hd_corpus_writer_add(hd_corpus_writer *w, const int32_t *ids, size_t n, hd_error *err) {
    if (!n || n > INT32_MAX) return hd_fail(err, HD_EINVAL, "a document of %zu tokens cannot be stored", n);
    if (hd_grow(&w->sizes, &w->size_cap, w->documents + 1, sizeof *w->sizes)) return hd_fail_memory(err, w->documents * 4, "writing a corpus");
    for (size_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= w->vocab_size) return hd_fail(err, HD_EINVAL, "token id %d is not below the vocabulary's %d", ids[i], w->vocab_size);
        if (w->used + 4 > BUFFER && flush(w, err)) return HD_EIO;
        uint16_t narrow = (uint16_t)ids[i];
        memcpy(w->buffer + w->used, w->width == 2 ? (const void *)&narrow : &ids[i], (size_t)w->width);
        w->used += (size_t)w->width;
    }
    w->sizes[w->documents++] = (int32_t)n;
    return 0;
}

static void put_u64(hd_str *s, uint64_t v) {
    hd_str_add(s, &v, sizeof v);
}

static int write_index(const hd_corpus_writer *w, const char *path, hd_error *err) {
    hd_str s;
    hd_str_init(&s);
    hd_str_add(&s, MAGIC, sizeof MAGIC);
    put_u64(&s, 1);
    hd_str_putc(&s, (char)(w->width == 2 ? CODE_U16 : CODE_I32));
    put_u64(&s, w->documents);
    put_u64(&s, w->documents + 1);
    hd_str_add(&s, w->sizes, w->documents * sizeof *w->sizes);
    uint64_t at = 0;
    for (size_t i = 0; i < w->documents; i++) {
        put_u64(&s, at);
        at += (uint64_t)w->sizes[i] * (uint64_t)w->width;
    }
    for (size_t i = 0; i <= w->documents; i++) put_u64(&s, i);
    int rc = s.failed ? hd_fail_memory(err, s.len, "a corpus index") : hd_file_write_atomic(path, s.data, s.len, err);
    hd_str_free(&s);
    return rc;
}

/* Both files are whole on disk before the old ones are touched, so a full disk costs nothing. The old index goes first and the new one comes
 * last, so that an index never stands beside another corpus's tokens. */
static int replace_files(const hd_corpus_writer *w, const char *new_idx, const char *bin, const char *idx, hd_error *err) {
    int rc = write_index(w, new_idx, err);
    if (rc) return rc;
    if (unlink(idx) && errno != ENOENT) rc = hd_fail_errno(err, "%s", idx);
    if (!rc && rename(w->bin_tmp, bin)) rc = hd_fail_errno(err, "%s", bin);
    if (!rc && rename(new_idx, idx)) rc = hd_fail_errno(err, "%s", idx);
    if (rc) unlink(new_idx);
    return rc;
}

int hd_corpus_writer_finish(hd_corpus_writer *w, hd_error *err) {
    int rc = flush(w, err);
    if (!rc && fsync(w->fd)) rc = hd_fail_errno(err, "%s", w->bin_tmp);
    if (rc) return rc;
    char *bin = with_suffix(w->prefix, ".bin"), *idx = with_suffix(w->prefix, ".idx"), *new_idx = with_suffix(w->prefix, ".idx.new");
    rc = bin && idx && new_idx ? replace_files(w, new_idx, bin, idx, err) : hd_fail_memory(err, PATH_MAX, "writing a corpus");
    hd_free(bin);
    hd_free(idx);
    hd_free(new_idx);
    return rc;
}

void hd_corpus_writer_free(hd_corpus_writer *w) {
    if (!w) return;
    if (w->fd >= 0) {
        close(w->fd);
        unlink(w->bin_tmp); /* no error when it was renamed */
    }
    hd_free(w->prefix);
    hd_free(w->bin_tmp);
    hd_free(w->buffer);
    hd_free(w->sizes);
    hd_free(w);
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

static int64_t get_i64(const unsigned char *p) {
    int64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static int32_t get_i32(const unsigned char *p) {
    int32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

typedef struct index_view {
    int64_t sequences, entries;
    const unsigned char *sizes, *offsets, *firsts;
} index_view;

static int view_index(hd_corpus *c, index_view *v, const char *prefix, hd_error *err) {
    const unsigned char *p = c->idx.data;
    if (c->idx.size < HEADER || memcmp(p, MAGIC, sizeof MAGIC)) return hd_fail(err, HD_EFORMAT, "%s.idx: not the index of a Megatron dataset", prefix);
    if (get_i64(p + 9) != 1) return hd_fail(err, HD_EUNSUPPORTED, "%s.idx: version %lld isn't supported", prefix, (long long)get_i64(p + 9));
    if (p[17] != CODE_I32 && p[17] != CODE_U16) return hd_fail(err, HD_EUNSUPPORTED, "%s.idx: ids of type %d aren't supported", prefix, p[17]);
    c->width = p[17] == CODE_U16 ? 2 : 4;
    v->sequences = get_i64(p + 18);
    v->entries = get_i64(p + 26);
    uint64_t room = (c->idx.size - HEADER) / 8; /* bounds both counts before they are multiplied */
    bool sane = v->sequences >= 0 && v->entries >= 1 && (uint64_t)v->sequences <= room && (uint64_t)v->entries <= room;
    if (!sane || HEADER + (uint64_t)v->sequences * 12 + (uint64_t)v->entries * 8 != c->idx.size)
        return hd_fail(err, HD_EFORMAT, "%s.idx: corrupt or truncated (%zu bytes don't hold what its header says)", prefix, c->idx.size);
    v->sizes = p + HEADER;
    v->offsets = v->sizes + v->sequences * 4;
    v->firsts = v->offsets + v->sequences * 8;
    return 0;
}

/* Fills c->start; every sequence must lie right behind the one before, and every document hold whole sequences in order. */
static int place_documents(hd_corpus *c, const index_view *v, const char *prefix, hd_error *err) {
    int64_t tokens = 0, document = 0;
    if (get_i64(v->firsts) != 0 || get_i64(v->firsts + (v->entries - 1) * 8) != v->sequences)
        return hd_fail(err, HD_EFORMAT, "%s.idx: its documents don't cover its sequences", prefix);
    for (int64_t i = 0; i <= v->sequences; i++) {
        for (; document < v->entries && get_i64(v->firsts + document * 8) <= i; document++) {
            if (get_i64(v->firsts + document * 8) != i) return hd_fail(err, HD_EFORMAT, "%s.idx: document %lld is out of order", prefix, (long long)document);
            c->start[document] = tokens;
        }
        if (i == v->sequences) break;
        int32_t size = get_i32(v->sizes + i * 4);
        if (size < 0 || get_i64(v->offsets + i * 8) != tokens * c->width)
            return hd_fail(err, HD_EFORMAT, "%s.idx: sequence %lld doesn't begin where the one before ends", prefix, (long long)i);
        tokens += size;
    }
    if (document != v->entries) return hd_fail(err, HD_EFORMAT, "%s.idx: document %lld is out of order", prefix, (long long)document);
    if ((uint64_t)tokens * (uint64_t)c->width != c->bin.size)
        return hd_fail(err, HD_EFORMAT, "%s.bin: has %zu bytes where its index says %lld", prefix, c->bin.size, (long long)tokens * c->width);
    return 0;
}

static int open_map(hd_map *m, const char *prefix, const char *suffix, hd_error *err) {
    char *path = with_suffix(prefix, suffix);
    int rc = path ? hd_map_open(m, path, err) : hd_fail_memory(err, PATH_MAX, "opening a corpus");
    hd_free(path);
    return rc;
}

int hd_corpus_open(hd_corpus *c, const char *prefix, hd_error *err) {
    index_view v = {0};
    *c = (hd_corpus){0};
    int rc = open_map(&c->idx, prefix, ".idx", err);
    if (!rc) rc = open_map(&c->bin, prefix, ".bin", err);
    if (!rc) rc = view_index(c, &v, prefix, err);
    if (!rc && v.sequences == 0) rc = hd_fail(err, HD_EFORMAT, "%s.idx: the corpus is empty", prefix);
    if (!rc) {
        c->documents = v.entries - 1;
        c->start = hd_calloc((size_t)v.entries, sizeof *c->start);
        rc = c->start ? place_documents(c, &v, prefix, err) : hd_fail_memory(err, (size_t)v.entries * 8, "a corpus index");
    }
    if (!rc && hd_corpus_tokens(c) == 0) rc = hd_fail(err, HD_EFORMAT, "%s.idx: the corpus is empty", prefix);
    if (rc) hd_corpus_close(c);
    return rc;
}

void hd_corpus_close(hd_corpus *c) {
    hd_map_close(&c->bin);
    hd_map_close(&c->idx);
    hd_free(c->start);
    *c = (hd_corpus){0};
}

int hd_corpus_read(const hd_corpus *c, int64_t from, size_t n, int32_t vocab_size, int32_t *out, hd_error *err) {
    if (from < 0 || from > hd_corpus_tokens(c) || n > (size_t)(hd_corpus_tokens(c) - from))
        return hd_fail(err, HD_EINVAL, "tokens %lld to %lld are outside the corpus", (long long)from, (long long)from + (long long)n);
    const unsigned char *p = c->bin.data + from * c->width;
    for (size_t i = 0; i < n; i++, p += c->width) {
        uint16_t narrow;
        if (c->width == 4) out[i] = get_i32(p);
        else memcpy(&narrow, p, 2), out[i] = narrow;
        if (out[i] < 0 || out[i] >= vocab_size)
            return hd_fail(err, HD_EFORMAT, "token %lld of the corpus has id %d, which the model's vocabulary of %d hasn't got: made with another tokenizer?",
                           (long long)(from + (int64_t)i), out[i], vocab_size);
    }
    return 0;
}
