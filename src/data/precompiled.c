/* precompiled.c: SentencePiece's table of normalizations ("precompiled_charsmap"), applied as Hugging Face `tokenizers` does.
 *
 * The table is a double array (Darts-clone): the 4 bytes of its size, units of 32 bits, then the replacements, NUL-terminated. A unit: bits 0-7 its label, bit
 * 8 whether a value hangs on it, bits 10-30 the offset to its children, shifted by 8 more where bit 9 is set; a value's unit has bit 31. `tokenizers` looks up
 * grapheme clusters of less than 6 bytes, and characters where that finds nothing, and takes the shortest prefix that has an entry for all of it.
 * SentencePiece itself, and llama.cpp, replace the longest prefix of what is left of the text, and go on behind it. */
#include <string.h>
#include <utf8proc.h>
#include "data/tokenizer_int.h"

struct hd_precompiled {
    const uint32_t *units;
    size_t unit_count;
    const char *texts; /* [text_size], the last byte is 0 */
    size_t text_size;
    bool longest;
};

/* ---- reading ---- */

static const char base64_digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static int base64_value(char c) {
    const char *at = c ? strchr(base64_digits, c) : NULL;
    return at ? (int)(at - base64_digits) : -1;
}

/* Decodes into out, which has room for 3/4 of n. Returns the bytes, or -1. */
static int64_t base64(const char *text, size_t n, unsigned char *out) {
    uint32_t bits = 0;
    int held = 0;
    int64_t len = 0;
    while (n && text[n - 1] == '=') n--;
    for (size_t i = 0; i < n; i++) {
        int v = base64_value(text[i]);
        if (v < 0) return -1;
        bits = bits << 6 | (uint32_t)v;
        held += 6;
        if (held < 8) continue;
        held -= 8;
        out[len++] = (unsigned char)(bits >> held);
    }
    return len;
}

static void put_base64(const unsigned char *p, size_t n, hd_str *out) {
    for (size_t i = 0; i < n; i += 3) {
        uint32_t bits = (uint32_t)p[i] << 16 | (i + 1 < n ? (uint32_t)p[i + 1] << 8 : 0) | (i + 2 < n ? p[i + 2] : 0);
        for (int k = 0; k < 4; k++) hd_str_putc(out, i + (size_t)k > n ? '=' : base64_digits[bits >> (18 - 6 * k) & 63]);
    }
}

int hd_precompiled_parse(hd_tokenizer *t, const unsigned char *bytes, size_t n, bool longest, const hd_precompiled **out, const char *where, hd_error *err) {
    hd_precompiled *p = hd_arena_alloc(&t->arena, sizeof *p);
    if (!p) return hd_fail_memory(err, sizeof *p, "a tokenizer");
    uint32_t units = 0;
    if (n >= 4) memcpy(&units, bytes, 4);
    if (n < 4 || units % 4 || !units || units >= n - 4 || bytes[n - 1]) return hd_fail(err, HD_EFORMAT, "%s: a broken \"precompiled_charsmap\"", where);
    *p = (hd_precompiled){(const uint32_t *)(bytes + 4), units / 4, (const char *)bytes + 4 + units, n - 4 - units, longest};
    if (hd_utf8_valid((const unsigned char *)p->texts, p->text_size) != p->text_size)
        return hd_fail(err, HD_EFORMAT, "%s: a \"precompiled_charsmap\" that is not UTF-8", where);
    for (size_t i = 0; i < p->unit_count; i++)
        if (p->units[i] >> 31 && (p->units[i] & 0x7fffffffu) >= p->text_size)
            return hd_fail(err, HD_EFORMAT, "%s: a \"precompiled_charsmap\" with a place beyond its texts", where);
    *out = p;
    return 0;
}

int hd_precompiled_read(hd_tokenizer *t, const char *text, size_t n, const hd_precompiled **out, const char *where, hd_error *err) {
    unsigned char *bytes = hd_arena_alloc(&t->arena, n + 8);
    if (!bytes) return hd_fail_memory(err, n, "a tokenizer");
    int64_t size = base64(text, n, bytes);
    return hd_precompiled_parse(t, bytes, size < 0 ? 0 : (size_t)size, false, out, where, err);
}

const void *hd_precompiled_bytes(const hd_precompiled *p, size_t *n) {
    *n = 4 + p->unit_count * 4 + p->text_size;
    return (const unsigned char *)p->units - 4;
}

void hd_precompiled_text(const hd_precompiled *p, hd_str *out) {
    size_t n;
    const void *bytes = hd_precompiled_bytes(p, &n);
    put_base64(bytes, n, out);
}

/* ---- applying ---- */

static uint32_t unit_at(const hd_precompiled *p, uint32_t i) { return i < p->unit_count ? p->units[i] : 0x80000000u; }
static uint32_t offset_of(uint32_t unit) { return (unit >> 10) << ((unit & 1u << 9) >> 6); }

/* What the shortest prefix of s[0..n) with an entry becomes, or with `size` the longest, of *size bytes; NULL: none has one. */
static const char *find(const hd_precompiled *p, const unsigned char *s, size_t n, size_t *size) {
    uint32_t at = offset_of(unit_at(p, 0));
    const char *best = NULL;
    for (size_t i = 0; i < n && s[i]; i++) {
        at ^= s[i];
        uint32_t unit = unit_at(p, at);
        if ((unit & 0x800000ffu) != s[i]) return best;
        at ^= offset_of(unit);
        if (!(unit >> 8 & 1)) continue;
        uint32_t value = unit_at(p, at) & 0x7fffffffu;
        bool whole = value < p->text_size && ((unsigned char)p->texts[value] & 0xc0) != 0x80;
        if (!size) return whole ? p->texts + value : NULL;
        if (!whole) continue;
        best = p->texts + value;
        *size = i + 1;
    }
    return best;
}

static void apply_longest(const hd_precompiled *p, const unsigned char *s, size_t n, hd_str *out) {
    for (size_t i = 0, size; i < n; i += size) {
        const char *text = find(p, s + i, n - i, &size);
        int length;
        if (text) {
            hd_str_puts(out, text);
        } else {
            hd_utf8_get(s + i, &length);
            hd_str_add(out, s + i, size = (size_t)length);
        }
    }
}

static void put_cluster(const hd_precompiled *p, const unsigned char *s, size_t n, hd_str *out) {
    const char *all = n < 6 ? find(p, s, n, NULL) : NULL;
    if (all) {
        hd_str_puts(out, all);
        return;
    }
    for (size_t i = 0; i < n;) {
        int length;
        hd_utf8_get(s + i, &length);
        const char *one = find(p, s + i, (size_t)length, NULL);
        if (one) hd_str_puts(out, one);
        else hd_str_add(out, s + i, (size_t)length);
        i += (size_t)length;
    }
}

void hd_precompiled_apply(const hd_precompiled *p, const unsigned char *s, size_t n, hd_str *out) {
    utf8proc_int32_t state = 0, before = 0;
    size_t begin = 0;
    if (p->longest) {
        apply_longest(p, s, n, out);
        return;
    }
    for (size_t i = 0; i < n;) {
        int length;
        utf8proc_int32_t cp = (utf8proc_int32_t)hd_utf8_get(s + i, &length);
        if (i && utf8proc_grapheme_break_stateful(before, cp, &state)) {
            put_cluster(p, s + begin, i - begin, out);
            begin = i;
        }
        before = cp;
        i += (size_t)length;
    }
    if (n) put_cluster(p, s + begin, n - begin, out);
}
