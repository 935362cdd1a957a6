/* pretokenize.c: cutting text into words by any chain of steps. Empty pieces are dropped after each step, as `tokenizers` does. */
#include <string.h>
#include "data/tokenizer_int.h"

int hd_spans_add(hd_spans *s, size_t begin, size_t end, hd_error *err) {
    if (begin >= end) return 0;
    if (s->len == s->cap && hd_grow(&s->data, &s->cap, s->len + 1, sizeof *s->data))
        return hd_fail_memory(err, s->len * sizeof *s->data, "words of a text");
    s->data[s->len++] = (hd_span){begin, end};
    return 0;
}

/* Goes through the matches in one text. last_end: where the match before ended, SIZE_MAX when there was none. */
typedef struct finder {
    const hd_matcher *m;
    const hd_unicode_classes *classes;
    hd_regex_scratch *scratch;
    const unsigned char *text;
    size_t n, from, last_end;
} finder;

/* An empty match right behind the last match is skipped, as the iterator that `tokenizers` uses does. */
static int next_regex(finder *f, hd_span *found, hd_error *err) {
    while (f->from <= f->n) {
        int rc = hd_regex_find(f->m->regex, f->scratch, f->text, f->n, f->from, &found->begin, &found->end, err);
        if (rc <= 0) return rc;
        if (found->begin != found->end || found->end != f->last_end) {
            f->from = f->last_end = found->end;
            return 1;
        }
        int length = 1;
        if (f->from < f->n) hd_utf8_get(f->text + f->from, &length);
        f->from += (size_t)length;
    }
    return 0;
}

/* Finds the next match and moves behind it. 1: found, 0: no more, negative: failed. */
static int next_match(finder *f, hd_span *found, hd_error *err) {
    if (f->m->regex) return next_regex(f, found, err);
    if (f->from >= f->n) return 0;
    const unsigned char *p = f->text + f->from;
    if (f->m->scan) {
        *found = (hd_span){f->from, f->from + f->m->scan(f->classes, p, f->n - f->from)};
    } else {
        const unsigned char *hit = memmem(p, f->n - f->from, f->m->literal, f->m->literal_size);
        if (!hit) return 0;
        *found = (hd_span){(size_t)(hit - f->text), (size_t)(hit - f->text) + f->m->literal_size};
    }
    f->from = found->end;
    return 1;
}

/* Merges pieces of one text by the behaviour that its step names. */
typedef struct joiner {
    hd_split_behavior behavior;
    hd_spans *out;
    size_t first;    /* where this text's pieces begin in out */
    bool last_match; /* whether the piece before was a match */
} joiner;

static int join(joiner *j, hd_span piece, bool is_match, hd_error *err) {
    bool has = j->out->len > j->first, last_match = j->last_match;
    hd_span *last = has ? &j->out->data[j->out->len - 1] : NULL;
    j->last_match = is_match;
    switch (j->behavior) {
    case HD_SPLIT_REMOVED: return is_match ? 0 : hd_spans_add(j->out, piece.begin, piece.end, err);
    case HD_SPLIT_ISOLATED: break;
    case HD_SPLIT_CONTIGUOUS:
        if (!has || is_match != last_match) break;
        last->end = piece.end;
        return 0;
    case HD_SPLIT_PREVIOUS:
        if (!is_match || last_match || !has) break;
        last->end = piece.end;
        return 0;
    case HD_SPLIT_NEXT: /* a match takes what follows it, unless that is a match too */
        if (is_match || !last_match || !has) break;
        last->end = piece.end;
        return 0;
    }
    return hd_spans_add(j->out, piece.begin, piece.end, err);
}

static int split_one(const hd_pretok_step *step, const hd_unicode_classes *classes, hd_regex_scratch *scratch, const unsigned char *text,
                     hd_span span, hd_spans *out, hd_error *err) {
    joiner j = {step->behavior, out, out->len, false};
    size_t done = 0, n = span.end - span.begin;
    finder f = {&step->match, classes, scratch, text + span.begin, n, 0, SIZE_MAX};
    hd_span m;
    int rc;
    while ((rc = next_match(&f, &m, err)) > 0) {
        if (m.begin > done) rc = join(&j, (hd_span){span.begin + done, span.begin + m.begin}, step->invert, err);
        if (rc >= 0) rc = join(&j, (hd_span){span.begin + m.begin, span.begin + m.end}, !step->invert, err);
        if (rc < 0) return rc;
        done = m.end;
    }
    if (rc < 0) return rc;
    return done < n ? join(&j, (hd_span){span.begin + done, span.end}, step->invert, err) : 0;
}

int hd_pretok_split(const hd_pretok_step *step, const hd_unicode_classes *classes, hd_regex_scratch *scratch, const unsigned char *text,
                    const hd_spans *in, hd_spans *out, hd_error *err) {
    out->len = 0;
    for (size_t i = 0; i < in->len; i++) {
        int rc = split_one(step, classes, scratch, text, in->data[i], out, err);
        if (rc) return rc;
    }
    return 0;
}

int hd_pretok_prefix(const unsigned char *text, const hd_spans *in, hd_str *text2, hd_spans *out, hd_error *err) {
    hd_str_clear(text2);
    out->len = 0;
    for (size_t i = 0; i < in->len; i++) {
        size_t begin = text2->len, n = in->data[i].end - in->data[i].begin;
        const unsigned char *p = text + in->data[i].begin;
        if (*p != ' ') hd_str_putc(text2, ' ');
        hd_str_add(text2, p, n);
        if (text2->failed) return hd_fail_memory(err, n, "words of a text");
        int rc = hd_spans_add(out, begin, text2->len, err);
        if (rc) return rc;
    }
    return 0;
}

#define META "\xe2\x96\x81"

/* text with its spaces as U+2581. */
static void put_meta(hd_str *out, const unsigned char *p, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (p[i] == ' ') hd_str_add(out, META, 3);
        else hd_str_putc(out, (char)p[i]);
    }
}

/* Words of text[begin..end): each U+2581 begins one. */
static int split_meta(const hd_str *text, size_t begin, hd_spans *out, hd_error *err) {
    int rc = 0;
    for (size_t i = begin + 1; i + 2 < text->len && !rc; i++) {
        if (memcmp(text->data + i, META, 3)) continue;
        rc = hd_spans_add(out, begin, i, err);
        begin = i;
    }
    return rc ? rc : hd_spans_add(out, begin, text->len, err);
}

int hd_pretok_metaspace(const hd_pretok_step *step, bool first, const unsigned char *text, const hd_spans *in, hd_str *text2, hd_spans *out, hd_error *err) {
    hd_str_clear(text2);
    out->len = 0;
    for (size_t i = 0; i < in->len; i++) {
        size_t begin = text2->len, n = in->data[i].end - in->data[i].begin;
        const unsigned char *p = text + in->data[i].begin;
        bool has = *p == ' ' || (n >= 3 && !memcmp(p, META, 3)),
             wanted = step->metaspace == HD_META_ALWAYS || (step->metaspace == HD_META_FIRST && first && !in->data[i].begin);
        if (wanted && !has) hd_str_add(text2, META, 3);
        put_meta(text2, p, n);
        if (text2->failed) return hd_fail_memory(err, n, "words of a text");
        int rc = step->meta_split ? split_meta(text2, begin, out, err) : hd_spans_add(out, begin, text2->len, err);
        if (rc) return rc;
    }
    return 0;
}
