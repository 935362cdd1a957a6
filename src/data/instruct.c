/* instruct.c: see instruct.h. */
#include "data/instruct.h"
#include <string.h>
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "data/shuffle.h"
#include "data/tokenizer_int.h"

typedef struct example {
    int64_t begin;          /* of its ids */
    int32_t size, prompt;   /* ids, and how many of them are the prompt */
    int32_t next;           /* the example behind it in its row, -1: none */
} example;

typedef struct row { int32_t first, last, used; } row; /* examples, and tokens used */

struct hd_instruct {
    hd_instruct_spec spec;
    hd_ids ids;
    example *examples;
    size_t count, example_cap;
    row *rows;
    size_t row_count, row_cap;
    int64_t cut;
    int64_t epoch;          /* of order; -1: none yet */
    uint32_t *order;        /* [row_count] */
};

/* ---- reading ---------------------------------------------------------------------------------------------------- */

static int add_text(hd_instruct *d, hd_encoder *e, const json_t *j, const char *key, const char *where, hd_error *err) {
    const json_t *text = json_object_get(j, key);
    if (!json_is_string(text)) return hd_fail(err, HD_EFORMAT, "%s: no text under \"%s\"", where, key);
    return hd_encoder_run(e, json_string_value(text), json_string_length(text), false, &d->ids, err);
}

/* What the post-processor puts after a text is left out: the end token stands there. */
static int add_example(hd_instruct *d, hd_encoder *e, const json_t *j, const char *where, hd_error *err) {
    const hd_instruct_spec *spec = &d->spec;
    const hd_tokenizer *t = spec->tokenizer;
    size_t begin = d->ids.len;
    int rc = 0;
    for (size_t i = 0; i < t->before_count && !rc; i++) rc = hd_ids_append(&d->ids, t->before[i], err);
    if (!rc) rc = add_text(d, e, j, spec->prompt_key, where, err);
    size_t prompt = d->ids.len - begin;
    if (!rc) rc = add_text(d, e, j, spec->answer_key, where, err);
    if (!rc && spec->end_id >= 0) rc = hd_ids_append(&d->ids, spec->end_id, err);
    if (rc) return rc;
    size_t most = (size_t)spec->length + 1; /* a row's last token has its target, too */
    if (d->ids.len - begin > most) {
        d->ids.len = begin + most;
        d->cut++;
    }
    if (d->ids.len - begin <= (prompt ? prompt : 1))
        return hd_fail(err, HD_EINVAL, "%s: no token of the answer fits into a row of %d (the prompt has %zu)", where, spec->length, prompt);
    if (hd_grow(&d->examples, &d->example_cap, d->count + 1, sizeof *d->examples)) return hd_fail_memory(err, d->count * sizeof *d->examples, "examples");
    d->examples[d->count++] = (example){(int64_t)begin, (int32_t)(d->ids.len - begin), (int32_t)prompt, -1};
    return 0;
}

static bool is_blank(const char *p, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (p[i] != ' ' && p[i] != '\t' && p[i] != '\r') return false;
    return true;
}

static int read_lines(hd_instruct *d, hd_encoder *e, const hd_map *m, const char *path, hd_error *err) {
    const char *p = (const char *)m->data, *end = p + m->size;
    int rc = 0;
    for (long line = 1; p < end && !rc; line++) {
        const char *newline = memchr(p, '\n', (size_t)(end - p)), *stop = newline ? newline : end;
        char where[300];
        snprintf(where, sizeof where, "%.250s: line %ld", path, line);
        json_error_t why;
        json_t *j = is_blank(p, (size_t)(stop - p)) ? NULL : json_loadb(p, (size_t)(stop - p), JSON_ALLOW_NUL, &why);
        if (j) rc = add_example(d, e, j, where, err);
        else if (!is_blank(p, (size_t)(stop - p))) rc = hd_fail(err, HD_EFORMAT, "%s: not JSON: %s (column %d)", where, why.text, why.column);
        json_decref(j);
        p = stop + 1;
    }
    return rc;
}

/* ---- packing ---------------------------------------------------------------------------------------------------- */

/* Tokens that an example takes in a row: its last id is only a target. */
static int32_t room(const example *x) {
    return x->size - 1;
}

/* Each example goes to the last row when it fits there (examples are taken in a shuffled order, so rows mix them), else it opens one. */
static int pack_rows(hd_instruct *d, hd_error *err) {
    uint32_t *order = hd_realloc_array(NULL, d->count, sizeof *order);
    if (!order) return hd_fail_memory(err, d->count * sizeof *order, "packing examples");
    hd_shuffle(order, (uint32_t)d->count, hd_hash_mix(d->spec.seed, 3), d->spec.pack);
    int rc = 0;
    for (size_t i = 0; i < d->count && !rc; i++) {
        example *x = &d->examples[order[i]];
        row *last = d->row_count ? &d->rows[d->row_count - 1] : NULL;
        if (last && d->spec.pack && last->used + room(x) <= d->spec.length) {
            d->examples[last->last].next = (int32_t)order[i];
            last->last = (int32_t)order[i];
            last->used += room(x);
        } else if (hd_grow(&d->rows, &d->row_cap, d->row_count + 1, sizeof *d->rows)) {
            rc = hd_fail_memory(err, d->row_count * sizeof *d->rows, "packing examples");
        } else {
            d->rows[d->row_count++] = (row){(int32_t)order[i], (int32_t)order[i], room(x)};
        }
    }
    hd_free(order);
    return rc;
}

hd_instruct *hd_instruct_load(const hd_instruct_spec *spec, const char *const *paths, int count, hd_error *err) {
    hd_instruct *d = hd_calloc(1, sizeof *d);
    hd_encoder *e = d ? hd_encoder_new(spec->tokenizer, err) : NULL;
    int rc = e ? 0 : hd_fail_memory(err, sizeof *d, "examples");
    if (d) d->spec = *spec;
    if (d && !spec->prompt_key) d->spec.prompt_key = "prompt";
    if (d && !spec->answer_key) d->spec.answer_key = "answer";
    if (!rc && spec->length < 1) rc = hd_fail(err, HD_EINVAL, "rows of %d tokens", spec->length);
    for (int i = 0; i < count && !rc; i++) {
        hd_map m;
        if ((rc = hd_map_open(&m, paths[i], err))) break;
        rc = read_lines(d, e, &m, paths[i], err);
        hd_map_close(&m);
    }
    if (!rc && !d->count) rc = hd_fail(err, HD_EINVAL, "no example in %s", count ? paths[0] : "no files");
    if (!rc && d->count > INT32_MAX) rc = hd_fail(err, HD_EUNSUPPORTED, "over 2^31 examples");
    if (!rc) rc = pack_rows(d, err);
    if (!rc) d->order = hd_realloc_array(NULL, d->row_count, sizeof *d->order);
    if (!rc && !d->order) rc = hd_fail_memory(err, d->row_count * 4, "examples");
    hd_encoder_free(e);
    if (d) d->epoch = -1;
    if (!rc) return d;
    hd_instruct_free(d);
    return NULL;
}

void hd_instruct_free(hd_instruct *d) {
    if (!d) return;
    hd_ids_free(&d->ids);
    hd_free(d->examples);
    hd_free(d->rows);
    hd_free(d->order);
    hd_free(d);
}

int64_t hd_instruct_examples(const hd_instruct *d) {
    return (int64_t)d->count;
}

int64_t hd_instruct_cut(const hd_instruct *d) {
    return d->cut;
}

int64_t hd_instruct_rows(const hd_instruct *d) {
    return (int64_t)d->row_count;
}

/* ---- rows ------------------------------------------------------------------------------------------------------- */

int hd_instruct_row(hd_instruct *d, int64_t index, int32_t *tokens, int32_t *targets, int32_t *positions, int32_t *segments, hd_error *err) {
    if (index < 0) return hd_fail(err, HD_EINVAL, "row %lld of the examples", (long long)index);
    int64_t epoch = index / (int64_t)d->row_count;
    if (epoch != d->epoch) {
        hd_shuffle(d->order, (uint32_t)d->row_count, hd_hash_mix(hd_hash_mix(d->spec.seed, (uint64_t)epoch), 4), true);
        d->epoch = epoch;
    }
    int32_t at = 0, segment = 0;
    for (int32_t k = d->rows[d->order[index % (int64_t)d->row_count]].first; k >= 0; k = d->examples[k].next, segment++) {
        const example *x = &d->examples[k];
        const int32_t *ids = d->ids.data + x->begin;
        for (int32_t i = 0; i < room(x); i++, at++) {
            tokens[at] = ids[i];
            targets[at] = i + 1 >= x->prompt ? ids[i + 1] : -1;
            if (positions) positions[at] = i;
            if (segments) segments[at] = segment;
        }
    }
    for (; at < d->spec.length; at++) {
        tokens[at] = d->spec.pad_id;
        targets[at] = -1;
        if (positions) positions[at] = 0;
        if (segments) segments[at] = segment;
    }
    return 0;
}
