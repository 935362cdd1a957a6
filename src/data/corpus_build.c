/* corpus_build.c: text files into a corpus. Documents are cut off one by one, gathered in batches, tokenized by a team of threads, and written
 * in the order in which they came, so that the result is the same for any number of threads. */
#include <stdatomic.h>
#include <string.h>
#include "base/json.h"
#include "base/mem.h"
#include "base/term.h"
#include "base/thread.h"
#include "data/corpus.h"

enum { BATCH_DOCUMENTS = 512, BATCH_BYTES = 4 << 20 };

typedef struct document {
    const char *text;  /* in the mapped file: plain text, or one line of JSON */
    size_t size;
    int64_t line;      /* number of its first line */
    hd_ids ids;
    int64_t bytes;     /* of text, once out of its JSON */
    hd_error err;
} document;

typedef struct builder {
    const hd_corpus_spec *spec;
    hd_corpus_writer *writer;
    hd_team *team;
    hd_encoder **encoders; /* [threads] */
    int threads;
    document *batch;       /* [BATCH_DOCUMENTS] */
    int count;
    size_t batch_bytes;
    atomic_int next;
    const char *path;      /* of the file being read */
    bool json;
    hd_corpus_counts counts;
    hd_progress bar;
    double done, total;    /* input bytes */
} builder;

/* ---- tokenizing ------------------------------------------------------------------------------------------------- */

static int encode_text(builder *b, hd_encoder *e, document *d, const char *text, size_t n) {
    if (!n) return 0;
    d->bytes = (int64_t)n;
    int rc = hd_encoder_run(e, text, n, false, &d->ids, &d->err);
    if (rc) return hd_error_context(&d->err, "%s: line %lld", b->path, (long long)d->line);
    if (b->spec->end_id < 0) return 0;
    if (hd_grow(&d->ids.data, &d->ids.cap, d->ids.len + 1, sizeof *d->ids.data)) return hd_fail_memory(&d->err, d->ids.len * 4, "token ids");
    d->ids.data[d->ids.len++] = b->spec->end_id;
    return 0;
}

static int encode_json(builder *b, hd_encoder *e, document *d) {
    const char *key = b->spec->json_key ? b->spec->json_key : "text";
    json_error_t why;
    json_t *j = json_loadb(d->text, d->size, JSON_ALLOW_NUL, &why), *text = json_object_get(j, key);
    int rc = 0;
    if (!j) rc = hd_fail(&d->err, HD_EFORMAT, "%s: line %lld: not JSON: %s (column %d)", b->path, (long long)d->line, why.text, why.column);
    else if (!json_is_string(text)) rc = hd_fail(&d->err, HD_EFORMAT, "%s: line %lld: no text under \"%s\"", b->path, (long long)d->line, key);
    else rc = encode_text(b, e, d, json_string_value(text), json_string_length(text));
    json_decref(j);
    return rc;
}

static void work(void *arg, int tid) {
    builder *b = arg;
    for (int i; (i = atomic_fetch_add(&b->next, 1)) < b->count;) {
        document *d = &b->batch[i];
        d->ids.len = 0;
        d->bytes = 0;
        d->err.code = 0;
        if (b->json) encode_json(b, b->encoders[tid], d);
        else encode_text(b, b->encoders[tid], d, d->text, d->size);
    }
}

/* Tokenizes and writes what has been gathered. */
static int flush(builder *b, hd_error *err) {
    atomic_store(&b->next, 0);
    hd_team_run(b->team, work, b);
    int rc = 0;
    for (int i = 0; i < b->count && !rc; i++) {
        document *d = &b->batch[i];
        if (d->err.code) rc = hd_fail(err, d->err.code, "%s", d->err.message);
        else if (d->ids.len) rc = hd_corpus_writer_add(b->writer, d->ids.data, d->ids.len, err);
        if (rc || !d->ids.len) continue;
        b->counts.documents++;
        b->counts.tokens += (int64_t)d->ids.len;
        b->counts.bytes += d->bytes;
    }
    b->done += (double)b->batch_bytes;
    b->count = 0;
    b->batch_bytes = 0;
    char tokens[32], bytes[24];
    snprintf(tokens, sizeof tokens, "%lld tokens, ", (long long)b->counts.tokens);
    char detail[64];
    snprintf(detail, sizeof detail, "%s%s", tokens, hd_format_bytes(bytes, (double)b->counts.bytes));
    hd_progress_update(&b->bar, b->done, detail);
    return rc;
}

static int gather(builder *b, const char *text, size_t n, int64_t line, hd_error *err) {
    document *d = &b->batch[b->count++];
    d->text = text;
    d->size = n;
    d->line = line;
    b->batch_bytes += n;
    return b->count == BATCH_DOCUMENTS || b->batch_bytes >= BATCH_BYTES ? flush(b, err) : 0;
}

/* ---- cutting files into documents ------------------------------------------------------------------------------- */

static bool is_blank(const char *p, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!strchr(" \t\r\n\v\f", p[i]) || !p[i]) return false;
    return true;
}

static bool is_json_file(const char *path) {
    const char *dot = strrchr(path, '.');
    return dot && (!strcmp(dot, ".jsonl") || !strcmp(dot, ".ndjson"));
}

/* Goes through lines; a document is one line, or the lines up to a blank one, without the line end after its last. */
static int cut_lines(builder *b, const char *p, const char *end, bool paragraphs, hd_error *err) {
    const char *first = NULL; /* of the paragraph being gathered */
    const char *last = p;     /* end of its last line */
    int64_t line = 1, first_line = 1;
    int rc = 0;
    for (; p < end && !rc; line++) {
        const char *newline = memchr(p, '\n', (size_t)(end - p)), *stop = newline ? newline : end;
        bool blank = is_blank(p, (size_t)(stop - p));
        if (!blank && !paragraphs) rc = gather(b, p, (size_t)(stop - p), line, err);
        if (paragraphs && blank && first) rc = gather(b, first, (size_t)(last - first), first_line, err);
        if (blank) {
            first = NULL;
        } else if (!first) {
            first = p;
            first_line = line;
        }
        last = stop;
        p = stop + 1;
    }
    if (paragraphs && first && !rc) rc = gather(b, first, (size_t)(last - first), first_line, err);
    return rc;
}

static int read_file(builder *b, const char *path, hd_error *err) {
    hd_map m;
    int rc = hd_map_open(&m, path, err);
    if (rc) return rc;
    const char *p = (const char *)m.data;
    b->path = path;
    b->json = is_json_file(path);
    double before = b->done;
    if (!b->json && b->spec->unit == HD_TEXT_FILE) rc = m.size ? gather(b, p, m.size, 1, err) : 0;
    else if (m.size) rc = cut_lines(b, p, p + m.size, !b->json && b->spec->unit == HD_TEXT_PARAGRAPH, err);
    if (!rc) rc = flush(b, err); /* the batch points into the map */
    b->done = before + (double)m.size;
    hd_map_close(&m);
    return rc;
}

/* ---- the whole -------------------------------------------------------------------------------------------------- */

static int start(builder *b, const char *const *paths, int count, const char *prefix, hd_error *err) {
    b->threads = b->spec->threads > 0 ? b->spec->threads : 1;
    b->batch = hd_calloc(BATCH_DOCUMENTS, sizeof *b->batch);
    b->encoders = hd_calloc((size_t)b->threads, sizeof *b->encoders);
    if (!b->batch || !b->encoders) return hd_fail_memory(err, BATCH_DOCUMENTS * sizeof *b->batch, "building a corpus");
    for (int i = 0; i < b->threads; i++)
        if (!(b->encoders[i] = hd_encoder_new(b->spec->tokenizer, err))) return HD_ENOMEM;
    if (!(b->team = hd_team_new(b->threads, false, err))) return HD_ENOMEM;
    for (int i = 0; i < count; i++) {
        int64_t size = hd_file_size(paths[i]);
        if (size < 0) return hd_fail(err, HD_EIO, "%s: no such file", paths[i]);
        b->total += (double)size;
    }
    b->writer = hd_corpus_writer_new(prefix, hd_tokenizer_vocab_size(b->spec->tokenizer), err);
    return b->writer ? 0 : HD_EIO;
}

static void finish(builder *b) {
    hd_corpus_writer_free(b->writer);
    hd_team_free(b->team);
    for (int i = 0; b->encoders && i < b->threads; i++) hd_encoder_free(b->encoders[i]);
    for (int i = 0; b->batch && i < BATCH_DOCUMENTS; i++) hd_ids_free(&b->batch[i].ids);
    hd_free(b->encoders);
    hd_free(b->batch);
}

int hd_corpus_build(const hd_corpus_spec *spec, const char *const *paths, int count, const char *prefix, hd_corpus_counts *counts, hd_error *err) {
    builder b = {.spec = spec};
    int rc = start(&b, paths, count, prefix, err);
    if (!rc) {
        hd_progress_begin(&b.bar, "tokenizing", b.total, spec->quiet);
        for (int i = 0; i < count && !rc; i++) rc = read_file(&b, paths[i], err);
        if (!rc && !b.counts.documents) rc = hd_fail(err, HD_EINVAL, "the corpus is empty: no text in %s%s", count ? paths[0] : "no files", count > 1 ? " and the others" : "");
        if (rc) hd_progress_hide(&b.bar);
        else hd_progress_end(&b.bar, NULL);
    }
    if (!rc) rc = hd_corpus_writer_finish(b.writer, err);
    if (!rc && counts) *counts = b.counts;
    finish(&b);
    return rc;
}
