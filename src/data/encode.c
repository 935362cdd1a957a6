/* encode.c: a text's way to ids: added tokens, normalizer, added tokens again, words, BPE. */
#include <string.h>
#include <utf8proc.h>
#include "data/tokenizer_int.h"

/* ---- encoders --------------------------------------------------------------------------------------------------- */

hd_encoder *hd_encoder_new(const hd_tokenizer *t, hd_error *err) {
    hd_encoder *e = hd_calloc(1, sizeof *e);
    if (!e) {
        hd_fail_memory(err, sizeof *e, "an encoder");
        return NULL;
    }
    e->t = t;
    hd_str_init(&e->valid);
    for (int k = 0; k < 2; k++) {
        hd_str_init(&e->normal[k]);
        hd_str_init(&e->prefixed[k]);
    }
    e->cache = hd_calloc(HD_CACHE_SLOTS, sizeof *e->cache);
    if (!e->cache) hd_fail_memory(err, HD_CACHE_SLOTS * sizeof *e->cache, "an encoder's cache of words");
    bool regex = false;
    for (size_t i = 0; i < t->step_count; i++) regex |= t->steps[i].match.regex != NULL;
    if (regex) e->regex = hd_regex_scratch_new(err);
    if (e->cache && (!regex || e->regex)) return e;
    hd_encoder_free(e);
    return NULL;
}

void hd_encoder_free(hd_encoder *e) {
    if (!e) return;
    hd_free(e->cache);
    hd_free(e->symbols);
    hd_free(e->heap);
    hd_free(e->path);
    hd_str_free(&e->valid);
    for (int k = 0; k < 2; k++) {
        hd_free(e->spans[k].data);
        hd_str_free(&e->normal[k]);
        hd_str_free(&e->prefixed[k]);
    }
    hd_regex_scratch_free(e->regex);
    hd_free(e);
}

/* ---- normalizers ------------------------------------------------------------------------------------------------ */

static void replace_all(hd_str *out, const unsigned char *text, size_t n, const hd_normalizer *z) {
    const unsigned char *end = text + n, *hit;
    while ((hit = memmem(text, (size_t)(end - text), z->from, z->from_size))) {
        hd_str_add(out, text, (size_t)(hit - text));
        hd_str_add(out, z->to, z->to_size);
        text = hit + z->from_size;
    }
    hd_str_add(out, text, (size_t)(end - text));
}

static void replace_spaces(hd_str *out, const unsigned char *text, size_t n, const hd_normalizer *z) {
    for (size_t i = 0, run; i < n; i += run) {
        for (run = 0; i + run < n && text[i + run] == ' ';) run++;
        if (run > 1) hd_str_add(out, z->to, z->to_size);
        else hd_str_putc(out, (char)text[i]);
        run += !run;
    }
}

static size_t char_before(const unsigned char *text, size_t i);
static bool is_space(const hd_tokenizer *t, const unsigned char *p, int *length);

static void strip(hd_str *out, const hd_tokenizer *t, const unsigned char *text, size_t n, const hd_normalizer *z) {
    int length;
    size_t begin = 0;
    while (z->left && begin < n && is_space(t, text + begin, &length)) begin += (size_t)length;
    while (z->right && n > begin && is_space(t, text + char_before(text, n), &length)) n -= (size_t)length;
    hd_str_add(out, text + begin, n - begin);
}

/* SentencePiece's spaces (normalizer.cc). With merge a word gets one for those before it, with prefix one in any case; without, each is one, and prefix
 * puts one more in front. What follows an added token may begin with a space of its own. */
static void put_meta(hd_str *out, const unsigned char *text, size_t n, const hd_normalizer *z, bool first) {
    static const char meta[] = "\xe2\x96\x81";
    bool inside = false, words = false;
    if (z->prefix && !z->merge) hd_str_add(out, meta, 3); /* of what is normalized to nothing, too */
    for (size_t i = 0; i < n; i++) {
        bool space = text[i] == ' ', begins = !space && !inside;
        if (z->merge ? begins && (z->prefix || (i && (words || !first))) : space) hd_str_add(out, meta, 3);
        if (!space) hd_str_putc(out, (char)text[i]);
        words |= begins;
        inside = !space;
    }
}

int hd_tokenizer_normalize(const hd_tokenizer *t, bool first, hd_str normal[2], const unsigned char **text, size_t *n, hd_error *err) {
    for (size_t i = 0; i < t->normalizer_count; i++) {
        const hd_normalizer *z = &t->normalizers[i];
        if (z->kind == HD_NORM_NFC && hd_nfc_quick(*text, *n)) continue;
        hd_str *out = (const char *)*text == normal[0].data ? &normal[1] : &normal[0];
        hd_str_clear(out);
        int rc = 0;
        if (z->kind == HD_NORM_NFC) rc = hd_nfc(out, *text, *n, err);
        if (z->kind == HD_NORM_SPACES) replace_spaces(out, *text, *n, z);
        if (z->kind == HD_NORM_STRIP) strip(out, t, *text, *n, z);
        if (z->kind == HD_NORM_PRECOMPILED) hd_precompiled_apply(z->map, *text, *n, out);
        if (z->kind == HD_NORM_META) put_meta(out, *text, *n, z, first);
        if (z->kind == HD_NORM_REPLACE) replace_all(out, *text, *n, z);
        if (z->kind == HD_NORM_PREPEND) {
            hd_str_add(out, z->to, *n ? z->to_size : 0);
            hd_str_add(out, *text, *n);
        }
        if (rc) return rc;
        if (out->failed) return hd_fail_memory(err, *n, "normalized text");
        *text = (const unsigned char *)out->data;
        *n = out->len;
    }
    return 0;
}

/* ---- words ------------------------------------------------------------------------------------------------------ */

static bool tiles_by_scan(const hd_pretok_step *s) {
    return !s->prefix_space && !s->metaspace && s->match.scan && s->behavior == HD_SPLIT_ISOLATED && !s->invert;
}

static int encode_scanned(hd_encoder *e, hd_scan_fn scan, const unsigned char *text, size_t n, hd_ids *out, hd_error *err) {
    const hd_unicode_classes *classes = e->t->classes;
    int rc = 0;
    while (n && !rc) {
        size_t length = scan(classes, text, n);
        rc = hd_bpe_word(e, text, length, out, err);
        text += length;
        n -= length;
    }
    return rc;
}

/* All steps in turn, then BPE. The last step, when it is a scanner, hands its words straight to BPE. */
static int encode_words(hd_encoder *e, const unsigned char *text, size_t n, hd_ids *out, hd_error *err) {
    const hd_tokenizer *t = e->t;
    hd_scan_fn last_scan = t->step_count && tiles_by_scan(&t->steps[t->step_count - 1]) ? t->steps[t->step_count - 1].match.scan : NULL;
    size_t steps = t->step_count - (last_scan != NULL);
    if (!steps && last_scan) return encode_scanned(e, last_scan, text, n, out, err);
    hd_spans *spans = &e->spans[0], *next = &e->spans[1];
    spans->len = 0;
    int rc = hd_spans_add(spans, 0, n, err);
    for (size_t i = 0, copies = 0; i < steps && !rc; i++) {
        if (t->steps[i].prefix_space) {
            hd_str *copy = &e->prefixed[copies++ & 1];
            rc = hd_pretok_prefix(text, spans, copy, next, err);
            text = (const unsigned char *)copy->data;
        } else if (t->steps[i].metaspace) {
            hd_str *copy = &e->prefixed[copies++ & 1];
            rc = hd_pretok_metaspace(&t->steps[i], e->first, text, spans, copy, next, err);
            text = (const unsigned char *)copy->data;
        } else {
            rc = hd_pretok_split(&t->steps[i], t->classes, e->regex, text, spans, next, err);
        }
        hd_spans *swap = spans;
        spans = next;
        next = swap;
    }
    for (size_t i = 0; i < spans->len && !rc; i++) {
        const unsigned char *p = text + spans->data[i].begin;
        size_t size = spans->data[i].end - spans->data[i].begin;
        rc = last_scan ? encode_scanned(e, last_scan, p, size, out, err) : hd_bpe_word(e, p, size, out, err);
    }
    return rc;
}

/* ---- added tokens ----------------------------------------------------------------------------------------------- */

/* First of set->tokens[lo..hi), which agree on their first `depth` bytes, whose byte at depth is >= byte. */
static size_t narrow(const hd_added_set *set, size_t lo, size_t hi, size_t depth, int byte) {
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        const hd_added_token *a = &set->tokens[mid];
        int at = depth < a->pattern_size ? (unsigned char)a->pattern[depth] : -1;
        if (at < byte) lo = mid + 1;
        else hi = mid;
    }
    return lo;
}

/* The longest added token that text begins with, or NULL. */
static const hd_added_token *longest_at(const hd_added_set *set, const unsigned char *text, size_t n) {
    const hd_added_token *best = NULL;
    size_t lo = 0, hi = set->count;
    for (size_t depth = 0; depth < n && lo < hi; depth++) {
        lo = narrow(set, lo, hi, depth, text[depth]);
        hi = narrow(set, lo, hi, depth, text[depth] + 1);
        if (lo < hi && set->tokens[lo].pattern_size == depth + 1) best = &set->tokens[lo];
    }
    return best;
}

/* The leftmost, then longest, match at or after *at; *at becomes its place. */
static const hd_added_token *find_added(const hd_added_set *set, const unsigned char *text, size_t n, size_t *at) {
    for (size_t i = *at; i < n; i++) {
        if (set->only_first >= 0) {
            const unsigned char *hit = memchr(text + i, set->only_first, n - i);
            if (!hit) return NULL;
            i = (size_t)(hit - text);
        }
        if (!set->first[text[i]]) continue;
        const hd_added_token *a = longest_at(set, text + i, n - i);
        if (!a) continue;
        *at = i;
        return a;
    }
    return NULL;
}

/* Start of the character that ends before offset i > 0. */
static size_t char_before(const unsigned char *text, size_t i) {
    do i--;
    while (i && (text[i] & 0xc0) == 0x80);
    return i;
}

/* \w as the Rust crate `regex` has it: alphabetic, marks, decimal digits, connector punctuation, join controls. */
static bool is_word(const unsigned char *p) {
    int length;
    uint32_t cp = hd_utf8_get(p, &length);
    if (cp == 0x200c || cp == 0x200d) return true;
    if ((cp >= 0x24b6 && cp <= 0x24e9) || (cp >= 0x1f130 && cp <= 0x1f149) || (cp >= 0x1f150 && cp <= 0x1f169) || (cp >= 0x1f170 && cp <= 0x1f189))
        return true; /* alphabetic symbols */
    utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
    return (c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_NL) || c == UTF8PROC_CATEGORY_PC;
}

static bool is_space(const hd_tokenizer *t, const unsigned char *p, int *length) {
    return hd_unicode_class(t->classes, hd_utf8_get(p, length)) & HD_CP_SPACE;
}

static size_t extend_left(const hd_tokenizer *t, const unsigned char *text, size_t begin, size_t least) {
    int length;
    while (begin > least && is_space(t, text + char_before(text, begin), &length)) begin = char_before(text, begin);
    return begin;
}

static size_t extend_right(const hd_tokenizer *t, const unsigned char *text, size_t n, size_t end) {
    int length;
    while (end < n && is_space(t, text + end, &length)) end += (size_t)length;
    return end;
}

typedef int gap_fn(hd_encoder *e, const unsigned char *text, size_t n, hd_ids *out, hd_error *err);

/* Cuts text at the tokens of set: their ids go to out, what lies between goes to gap. A token that must stand alone as a word but does not
 * is skipped whole, and white space that a token takes in is taken from the gaps (AddedVocabulary::find_matches of `tokenizers`). */
static int split_added(hd_encoder *e, const hd_added_set *set, const unsigned char *text, size_t n, gap_fn *gap, hd_ids *out, hd_error *err) {
    bool first = e->first;
    size_t at = 0, done = 0;
    const hd_added_token *a;
    int rc = 0;
    while (!rc && set->count && (a = find_added(set, text, n, &at))) {
        size_t begin = at, end = at + a->pattern_size;
        at = end;
        if (a->single_word && ((begin && is_word(text + char_before(text, begin))) || (end < n && is_word(text + end)))) continue;
        if (a->lstrip && begin > done) begin = extend_left(e->t, text, begin, done);
        if (a->rstrip) end = extend_right(e->t, text, n, end);
        e->first = first && !done;
        if (begin > done) rc = gap(e, text + done, begin - done, out, err);
        if (!rc) rc = hd_ids_append(out, a->id, err);
        done = end;
    }
    e->first = first && !done;
    return rc || done >= n ? rc : gap(e, text + done, n - done, out, err);
}

static int encode_raw_gap(hd_encoder *e, const unsigned char *text, size_t n, hd_ids *out, hd_error *err) {
    int rc = hd_tokenizer_normalize(e->t, e->first, e->normal, &text, &n, err);
    return rc ? rc : split_added(e, &e->t->normalized, text, n, encode_words, out, err);
}

/* ---- a text ----------------------------------------------------------------------------------------------------- */

int hd_encoder_run(hd_encoder *e, const char *text, size_t n, bool add_special, hd_ids *out, hd_error *err) {
    const hd_tokenizer *t = e->t;
    const unsigned char *p = (const unsigned char *)text;
    if (n > INT32_MAX / 4) return hd_fail(err, HD_EINVAL, "a text of %zu bytes is too long to encode at once: cut it into documents", n);
    if (hd_utf8_valid(p, n) != n) {
        hd_str_clear(&e->valid);
        hd_utf8_replace(&e->valid, p, n);
        if (e->valid.failed) return hd_fail_memory(err, n, "text");
        p = (const unsigned char *)e->valid.data;
        n = e->valid.len;
    }
    int rc = 0;
    for (size_t i = 0; add_special && i < t->before_count && !rc; i++) rc = hd_ids_append(out, t->before[i], err);
    e->first = true;
    if (!rc && n) rc = split_added(e, &t->raw, p, n, encode_raw_gap, out, err);
    for (size_t i = 0; add_special && i < t->after_count && !rc; i++) rc = hd_ids_append(out, t->after[i], err);
    return rc;
}

int hd_tokenizer_encode(const hd_tokenizer *t, const char *text, size_t n, bool add_special, hd_ids *out, hd_error *err) {
    hd_encoder *e = hd_encoder_new(t, err);
    if (!e) return HD_ENOMEM;
    int rc = hd_encoder_run(e, text, n, add_special, out, err);
    hd_encoder_free(e);
    return rc;
}
