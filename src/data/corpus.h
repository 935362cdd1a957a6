/* corpus.h: tokenized documents in Megatron's .bin/.idx files (IndexedDataset, version 1): writing, building from text, and reading.
 *
 * PREFIX.bin holds the ids of all documents one after another, PREFIX.idx where each begins. Ids are u16 when the vocabulary has fewer than
 * 65500 tokens, else i32 (Megatron's own rule). One sequence is one document when Heddle writes. */
#ifndef HD_DATA_CORPUS_H
#define HD_DATA_CORPUS_H

#include "base/file.h"
#include "data/tokenizer.h"

/* ---- writing ---- */

typedef struct hd_corpus_writer hd_corpus_writer;

/* Begins PREFIX.bin; nothing of that name is touched before hd_corpus_writer_finish. NULL and err on failure. */
hd_corpus_writer *hd_corpus_writer_new(const char *prefix, int32_t vocab_size, hd_error *err);
/* Appends one document of n > 0 ids, each in [0, vocab_size). */
int hd_corpus_writer_add(hd_corpus_writer *w, const int32_t *ids, size_t n, hd_error *err);
/* Makes both files appear, on disk, under their names. */
int hd_corpus_writer_finish(hd_corpus_writer *w, hd_error *err);
/* Ends the writer; what was not finished is removed. */
void hd_corpus_writer_free(hd_corpus_writer *w);

/* ---- building from text ---- */

typedef enum hd_text_unit { HD_TEXT_FILE, HD_TEXT_PARAGRAPH, HD_TEXT_LINE } hd_text_unit; /* what one document is: blank lines part paragraphs */

typedef struct hd_corpus_spec {
    const hd_tokenizer *tokenizer;
    hd_text_unit unit;      /* of plain text; files named *.jsonl and *.ndjson hold one JSON object a line */
    const char *json_key;   /* its text; NULL: "text" */
    int32_t end_id;         /* put after each document; -1: none */
    int threads;            /* 0: one */
    bool quiet;
} hd_corpus_spec;

typedef struct hd_corpus_counts { int64_t documents, tokens, bytes; } hd_corpus_counts;

/* Tokenizes files into PREFIX.bin and PREFIX.idx; counts may be NULL. No document at all is an error; so is a line that isn't JSON, named
 * with its number. */
int hd_corpus_build(const hd_corpus_spec *spec, const char *const *paths, int count, const char *prefix, hd_corpus_counts *counts, hd_error *err);

/* ---- reading ---- */

typedef struct hd_corpus {
    hd_map bin, idx;
    int width;         /* bytes of an id: 2 (unsigned) or 4 */
    int64_t documents;
    int64_t *start;    /* [documents + 1] first token of each document; the last is the number of tokens */
} hd_corpus;

/* Maps PREFIX.bin and PREFIX.idx and checks that they fit together. */
int hd_corpus_open(hd_corpus *c, const char *prefix, hd_error *err);
void hd_corpus_close(hd_corpus *c);

static inline int64_t hd_corpus_tokens(const hd_corpus *c) {
    return c->start[c->documents];
}
static inline int64_t hd_corpus_size(const hd_corpus *c, int64_t document) {
    return c->start[document + 1] - c->start[document];
}
/* Copies ids [from, from + n) of the whole corpus to out; HD_EFORMAT when one is outside [0, vocab_size). */
int hd_corpus_read(const hd_corpus *c, int64_t from, size_t n, int32_t vocab_size, int32_t *out, hd_error *err);

#endif
