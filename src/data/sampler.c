/* sampler.c: see sampler.h. */
#include "data/sampler.h"
#include <string.h>
#include "base/mem.h"
#include "data/shuffle.h"

enum { HASHED_TOKENS = 64, CHUNK = 65536 };

struct hd_sampler {
    hd_sampler_spec spec;
    uint32_t count;      /* documents of this side */
    uint32_t *documents; /* [count] their numbers in the corpus */
    int64_t tokens, rows;
    int64_t epoch;       /* the one that order, start and windows stand for; -1: none yet */
    uint32_t *order;     /* [count] places in documents */
    int64_t *start;      /* [count + 1] first token of each, laid end to end in that order */
    uint32_t *windows;   /* [rows] */
    int32_t *window;     /* [length + 1] scratch */
};

/* ---- the split -------------------------------------------------------------------------------------------------- */

/* A number in [0, 1) that follows from a document's size, its first tokens and the seed: equal documents get equal numbers. */
static int document_place(const hd_sampler_spec *spec, int64_t d, double *place, hd_error *err) {
    int32_t ids[HASHED_TOKENS];
    int64_t size = hd_corpus_size(spec->corpus, d);
    size_t n = size < HASHED_TOKENS ? (size_t)size : HASHED_TOKENS;
    int rc = hd_corpus_read(spec->corpus, spec->corpus->start[d], n, INT32_MAX, ids, err);
    if (rc) return rc;
    uint64_t hash = hd_checksum(HD_CHECKSUM_INIT, ids, n * sizeof *ids);
    hd_philox p = hd_philox_block(spec->split_seed, hash, (uint64_t)size);
    *place = (double)((uint64_t)p.word[0] << 21 | p.word[1] >> 11) * 0x1p-53;
    return 0;
}

/* The document that the split takes for validation when its hash picks none: the one of lowest place. -1 when one was picked, or none is wanted. */
static int forced_document(const hd_sampler_spec *spec, int64_t *forced, hd_error *err) {
    double least = 2, place = 0;
    *forced = -1;
    if (spec->side == HD_SPLIT_ALL || spec->valid_fraction <= 0) return 0;
    for (int64_t d = 0; d < spec->corpus->documents; d++) {
        int rc = document_place(spec, d, &place, err);
        if (rc) return rc;
        if (place < least && hd_corpus_size(spec->corpus, d)) {
            least = place;
            *forced = d;
        }
    }
    if (least < spec->valid_fraction) *forced = -1;
    return 0;
}

static int choose_documents(hd_sampler *s, hd_error *err) {
    const hd_sampler_spec *spec = &s->spec;
    int64_t forced;
    int rc = forced_document(spec, &forced, err);
    for (int64_t d = 0; d < spec->corpus->documents && !rc; d++) {
        double place = 1;
        if (spec->side != HD_SPLIT_ALL) rc = document_place(spec, d, &place, err);
        bool valid = place < spec->valid_fraction || d == forced;
        if (rc || !hd_corpus_size(spec->corpus, d) || (spec->side == HD_SPLIT_VALID && !valid) || (spec->side == HD_SPLIT_TRAIN && valid)) continue;
        s->documents[s->count++] = (uint32_t)d;
        s->tokens += hd_corpus_size(spec->corpus, d);
    }
    return rc;
}

/* ---- life cycle ------------------------------------------------------------------------------------------------- */

static const char *side_name(hd_split_side side) {
    return side == HD_SPLIT_ALL ? "corpus" : side == HD_SPLIT_TRAIN ? "training side of the corpus" : "validation side of the corpus";
}

static int count_rows(hd_sampler *s, hd_error *err) {
    const hd_sampler_spec *spec = &s->spec;
    s->rows = s->tokens < 2 ? 0 : (s->tokens - 1 + (spec->keep_tail ? spec->length - 1 : 0)) / spec->length;
    if (s->rows > UINT32_MAX) return hd_fail(err, HD_EUNSUPPORTED, "over 2^32 rows of %d tokens in an epoch", spec->length);
    if (s->rows) return 0;
    return hd_fail(err, HD_EINVAL, "the %s has %lld tokens in %u documents: too few for one row of %d and the token after it", side_name(spec->side),
                   (long long)s->tokens, s->count, spec->length);
}

static int allocate(hd_sampler *s, hd_error *err) {
    s->order = hd_realloc_array(NULL, s->count, sizeof *s->order);
    s->start = hd_realloc_array(NULL, (size_t)s->count + 1, sizeof *s->start);
    s->windows = hd_realloc_array(NULL, (size_t)s->rows, sizeof *s->windows);
    s->window = hd_realloc_array(NULL, (size_t)s->spec.length + 1, sizeof *s->window);
    return s->order && s->start && s->windows && s->window ? 0 : hd_fail_memory(err, (size_t)s->rows * 4, "a sampler");
}

hd_sampler *hd_sampler_new(const hd_sampler_spec *spec, hd_error *err) {
    if (spec->length < 1 || !(spec->valid_fraction >= 0 && spec->valid_fraction < 1) || spec->corpus->documents > UINT32_MAX) {
        hd_fail(err, HD_EINVAL, "rows of %d tokens with %g of the documents for validation make no sense", spec->length, spec->valid_fraction);
        return NULL;
    }
    hd_sampler *s = hd_calloc(1, sizeof *s);
    if (s) s->documents = hd_realloc_array(NULL, (size_t)spec->corpus->documents + 1, sizeof *s->documents);
    if (!s || !s->documents) {
        hd_fail_memory(err, (size_t)spec->corpus->documents * 4, "a sampler");
        hd_free(s);
        return NULL;
    }
    s->spec = *spec;
    s->epoch = -1;
    if (!choose_documents(s, err) && !count_rows(s, err) && !allocate(s, err)) return s;
    hd_sampler_free(s);
    return NULL;
}

void hd_sampler_free(hd_sampler *s) {
    if (!s) return;
    hd_free(s->documents);
    hd_free(s->order);
    hd_free(s->start);
    hd_free(s->windows);
    hd_free(s->window);
    hd_free(s);
}

int64_t hd_sampler_documents(const hd_sampler *s) {
    return s->count;
}

int64_t hd_sampler_tokens(const hd_sampler *s) {
    return s->tokens;
}

int64_t hd_sampler_rows(const hd_sampler *s) {
    return s->rows;
}

/* ---- rows ------------------------------------------------------------------------------------------------------- */

static void enter_epoch(hd_sampler *s, int64_t epoch) {
    uint64_t key = hd_hash_mix(s->spec.seed, (uint64_t)epoch);
    hd_shuffle(s->order, s->count, hd_hash_mix(key, 1), s->spec.shuffle);
    hd_shuffle(s->windows, (uint32_t)s->rows, hd_hash_mix(key, 2), s->spec.shuffle);
    int64_t at = 0;
    for (uint32_t i = 0; i < s->count; i++) {
        s->start[i] = at;
        at += hd_corpus_size(s->spec.corpus, s->documents[s->order[i]]);
    }
    s->start[s->count] = at;
    s->epoch = epoch;
}

/* The place in the epoch's order of the document that holds token `at`. */
static uint32_t place_of(const hd_sampler *s, int64_t at) {
    uint32_t lo = 0, hi = s->count - 1;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo + 1) / 2;
        if (s->start[mid] <= at) lo = mid;
        else hi = mid - 1;
    }
    return lo;
}

/* The row's tokens from document to document: count of them into window, with positions and segments. */
static int fill_window(hd_sampler *s, int64_t from, int32_t count, int32_t *positions, int32_t *segments, int32_t *ends, hd_error *err) {
    uint32_t place = place_of(s, from);
    int32_t done = 0, length = s->spec.length;
    for (int32_t segment = 0; done < count; place++, segment++) {
        int64_t inside = from + done - s->start[place], left = s->start[place + 1] - (from + done);
        int32_t n = left < count - done ? (int32_t)left : count - done;
        int64_t at = s->spec.corpus->start[s->documents[s->order[place]]] + inside;
        int rc = hd_corpus_read(s->spec.corpus, at, (size_t)n, s->spec.vocab_size, s->window + done, err);
        if (rc) return rc;
        for (int32_t i = done; i < done + n && i < length; i++) {
            if (positions) positions[i] = s->spec.separate ? i - done : i;
            if (segments) segments[i] = s->spec.separate ? segment : 0;
            ends[i] = s->spec.separate && i == done + n - 1 && n == left ? -1 : 0;
        }
        done += n;
    }
    return 0;
}

int hd_sampler_row(hd_sampler *s, int64_t index, int32_t *tokens, int32_t *targets, int32_t *positions, int32_t *segments, hd_error *err) {
    int32_t length = s->spec.length;
    if (index < 0) return hd_fail(err, HD_EINVAL, "row %lld of a corpus", (long long)index);
    if (index / s->rows != s->epoch) enter_epoch(s, index / s->rows);
    int64_t from = (int64_t)s->windows[index % s->rows] * length, left = s->tokens - from;
    int32_t count = left < length + 1 ? (int32_t)left : length + 1;
    int rc = fill_window(s, from, count, positions, segments, targets, err);
    if (rc) return rc;
    for (int32_t i = 0; i < length; i++) {
        bool inside = i < count;
        tokens[i] = inside ? s->window[i] : s->spec.pad_id;
        targets[i] = i + 1 < count && targets[i] != -1 ? s->window[i + 1] : -1;
        if (inside) continue;
        if (positions) positions[i] = s->spec.separate ? 0 : i;
        if (segments) segments[i] = s->spec.separate ? length : 0;
    }
    return 0;
}

/* ---- bits per byte ---------------------------------------------------------------------------------------------- */

static int64_t text_bytes(const hd_tokenizer *t, const int32_t *ids, size_t n) {
    int64_t bytes = 0;
    for (size_t i = 0; i < n; i++) {
        size_t size;
        hd_tokenizer_bytes(t, ids[i], &size);
        bytes += hd_tokenizer_is_special(t, ids[i]) ? 0 : (int64_t)size;
    }
    return bytes;
}

double hd_sampler_bytes_per_token(const hd_sampler *s, const hd_tokenizer *t, hd_error *err) {
    int32_t *ids = hd_realloc_array(NULL, CHUNK, sizeof *ids);
    if (!ids) return hd_fail_memory(err, CHUNK * sizeof *ids, "counting bytes"), 0;
    int64_t bytes = 0;
    for (uint32_t i = 0; i < s->count; i++) {
        int64_t at = s->spec.corpus->start[s->documents[i]], end = s->spec.corpus->start[s->documents[i] + 1];
        for (; at < end; at += CHUNK) {
            size_t n = end - at < CHUNK ? (size_t)(end - at) : CHUNK;
            if (hd_corpus_read(s->spec.corpus, at, n, s->spec.vocab_size, ids, err)) {
                hd_free(ids);
                return 0;
            }
            bytes += text_bytes(t, ids, n);
        }
    }
    hd_free(ids);
    return (double)bytes / (double)s->tokens;
}
