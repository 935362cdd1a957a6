/* precompiled.c: SentencePiece's table of normalizations ("precompiled_charsmap"), applied as Hugging Face `tokenizers` does.
 *
 * The table is a double array (Darts-clone): the 4 bytes of its size, units of 32 bits, then the replacements, NUL-terminated. A unit: bits 0-7 its label, bit
 * 8 whether a value hangs on it, bits 10-30 the offset to its children, shifted by 8 more where bit 9 is set; a value's unit has bit 31. `tokenizers` looks up
 * grapheme clusters of less than 6 bytes, and characters where that finds nothing, and takes the shortest prefix that has an entry for all of it. */
#include <string.h>
#include <utf8proc.h>
#include "data/tokenizer_int.h"

struct hd_precompiled {
    const uint32_t *units;
    size_t unit_count;
    const char *texts; /* [text_size], the last byte is 0 */
    size_t text_size;
};

/* ---- reading ---- */

static int base64_value(char c) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = c ? strchr(digits, c) : NULL;
    return at ? (int)(at - digits) : -1;
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

int hd_precompiled_read(hd_tokenizer *t, const char *text, size_t n, const hd_precompiled **out, const char *where, hd_error *err) {
    hd_precompiled *p = hd_arena_alloc(&t->arena, sizeof *p);
    unsigned char *bytes = hd_arena_alloc(&t->arena, n + 8);
    if (!p || !bytes) return hd_fail_memory(err, n, "a tokenizer");
    int64_t size = base64(text, n, bytes);
    uint32_t units = 0;
    if (size >= 4) memcpy(&units, bytes, 4);
    if (size < 4 || units % 4 || !units || (int64_t)units >= size - 4 || bytes[size - 1])
        return hd_fail(err, HD_EFORMAT, "%s: a broken \"precompiled_charsmap\"", where);
    *p = (hd_precompiled){(const uint32_t *)(bytes + 4), units / 4, (const char *)bytes + 4 + units, (size_t)size - 4 - units};
    if (hd_utf8_valid((const unsigned char *)p->texts, p->text_size) != p->text_size)
        return hd_fail(err, HD_EFORMAT, "%s: a \"precompiled_charsmap\" that is not UTF-8", where);
    *out = p;
    return 0;
}

/* ---- applying ---- */

static uint32_t unit_at(const hd_precompiled *p, uint32_t i) { return i < p->unit_count ? p->units[i] : 0x80000000u; }
static uint32_t offset_of(uint32_t unit) { return (unit >> 10) << ((unit & 1u << 9) >> 6); }

/* What the shortest prefix of s[0..n) with an entry becomes; NULL: none has one. */
static const char *find(const hd_precompiled *p, const unsigned char *s, size_t n) {
    uint32_t at = offset_of(unit_at(p, 0));
    for (size_t i = 0; i < n && s[i]; i++) {
        at ^= s[i];
        uint32_t unit = unit_at(p, at);
        if ((unit & 0x800000ffu) != s[i]) return NULL;
        at ^= offset_of(unit);
        if (!(unit >> 8 & 1)) continue;
        uint32_t value = unit_at(p, at) & 0x7fffffffu;
        bool whole = value < p->text_size && ((unsigned char)p->texts[value] & 0xc0) != 0x80;
        return whole ? p->texts + value : NULL;
    }
    return NULL;
}

static void put_cluster(const hd_precompiled *p, const unsigned char *s, size_t n, hd_str *out) {
    const char *all = n < 6 ? find(p, s, n) : NULL;
    if (all) {
        hd_str_puts(out, all);
        return;
    }
    for (size_t i = 0; i < n;) {
        int length;
        hd_utf8_get(s + i, &length);
        const char *one = find(p, s + i, (size_t)length);
        if (one) hd_str_puts(out, one);
        else hd_str_add(out, s + i, (size_t)length);
        i += (size_t)length;
    }
}

void hd_precompiled_apply(const hd_precompiled *p, const unsigned char *s, size_t n, hd_str *out) {
    utf8proc_int32_t state = 0, before = 0;
    size_t begin = 0;
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
