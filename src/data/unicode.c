/* unicode.c: see unicode.h. */
#include "data/unicode.h"
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* ---- classes ---------------------------------------------------------------------------------------------------- */

static void mark(hd_unicode_classes *c, const hd_unicode_range *r, int count, uint8_t bit) {
    for (int i = 0; i < count; i++)
        for (uint32_t cp = r[i].first; cp <= r[i].last && cp < HD_CP_TABLE; cp++) c->of[cp] |= bit;
}

void hd_unicode_classes_fill(hd_unicode_classes *c) {
    memset(c, 0, sizeof *c);
    mark(c, hd_unicode_letters, hd_unicode_letters_count, HD_CP_LETTER);
    mark(c, hd_unicode_numbers, hd_unicode_numbers_count, HD_CP_NUMBER);
    mark(c, hd_unicode_spaces, hd_unicode_spaces_count, HD_CP_SPACE);
    c->of['\n'] |= HD_CP_NEWLINE;
    c->of['\r'] |= HD_CP_NEWLINE;
}

static bool in_ranges(const hd_unicode_range *r, int count, uint32_t cp) {
    int lo = 0, hi = count;
    while (lo < hi) {
        int mid = (lo + hi) / 2;
        if (r[mid].last < cp) lo = mid + 1;
        else hi = mid;
    }
    return lo < count && r[lo].first <= cp;
}

uint8_t hd_unicode_class_high(uint32_t cp) {
    if (in_ranges(hd_unicode_letters, hd_unicode_letters_count, cp)) return HD_CP_LETTER;
    if (in_ranges(hd_unicode_numbers, hd_unicode_numbers_count, cp)) return HD_CP_NUMBER;
    return in_ranges(hd_unicode_spaces, hd_unicode_spaces_count, cp) ? HD_CP_SPACE : 0;
}

/* ---- UTF-8 ------------------------------------------------------------------------------------------------------ */

int hd_utf8_put(uint32_t cp, unsigned char *out) {
    if (cp < 0x80) {
        out[0] = (unsigned char)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (unsigned char)(0xc0 | cp >> 6);
        out[1] = (unsigned char)(0x80 | (cp & 0x3f));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (unsigned char)(0xe0 | cp >> 12);
        out[1] = (unsigned char)(0x80 | (cp >> 6 & 0x3f));
        out[2] = (unsigned char)(0x80 | (cp & 0x3f));
        return 3;
    }
    out[0] = (unsigned char)(0xf0 | cp >> 18);
    out[1] = (unsigned char)(0x80 | (cp >> 12 & 0x3f));
    out[2] = (unsigned char)(0x80 | (cp >> 6 & 0x3f));
    out[3] = (unsigned char)(0x80 | (cp & 0x3f));
    return 4;
}

/* The second byte's legal range depends on the first (Unicode 14, table 3-7). */
static bool second_byte(unsigned char first, unsigned char second) {
    unsigned lo = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
    unsigned hi = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
    return second >= lo && second <= hi;
}

int hd_utf8_unit(const unsigned char *p, size_t n, bool *ok, bool *cut) {
    *ok = *cut = false;
    if (p[0] < 0x80) {
        *ok = true;
        return 1;
    }
    if (p[0] < 0xc2 || p[0] > 0xf4) return 1;
    int length = p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
    for (int i = 1; i < length; i++) {
        if ((size_t)i == n) {
            *cut = true;
            return i;
        }
        bool good = i == 1 ? second_byte(p[0], p[1]) : (p[i] & 0xc0) == 0x80;
        if (!good) return i;
    }
    *ok = true;
    return length;
}

size_t hd_utf8_valid(const unsigned char *text, size_t n) {
    size_t i = 0;
    while (i < n) {
        uint64_t eight;
        while (n - i >= 8 && (memcpy(&eight, text + i, 8), !(eight & 0x8080808080808080ull))) i += 8;
        if (i == n) break;
        bool ok, cut;
        int length = hd_utf8_unit(text + i, n - i, &ok, &cut);
        if (!ok) return i;
        i += (size_t)length;
    }
    return n;
}

void hd_utf8_replace(hd_str *out, const unsigned char *text, size_t n) {
    while (n) {
        size_t valid = hd_utf8_valid(text, n);
        hd_str_add(out, text, valid);
        text += valid;
        n -= valid;
        if (!n) return;
        bool ok, cut;
        int length = hd_utf8_unit(text, n, &ok, &cut);
        hd_str_add(out, "\xef\xbf\xbd", 3);
        text += length;
        n -= (size_t)length;
    }
}

/* ---- NFC -------------------------------------------------------------------------------------------------------- */

bool hd_nfc_quick(const unsigned char *text, size_t n) {
    unsigned char high = 0;
    for (size_t i = 0; i < n; i++) high |= (unsigned char)(text[i] >= 0xcc);
    return !high;
}

/* Characters that came to Unicode after the tables of the normalizer in `tokenizers` (the crate unicode-normalization-alignments) or whose
 * combining class changed since: it leaves them where they stand. Found by comparing its NFC with Unicode 15's for every character in
 * five contexts. */
static const hd_unicode_range inert[] = {
    {0x7fd, 0x7fd}, {0x898, 0x89f}, {0x8ca, 0x8d3}, {0x9fe, 0x9fe}, {0xc3c, 0xc3c}, {0xd3b, 0xd3c}, {0xeba, 0xeba}, {0x1715, 0x1715},
    {0x1abf, 0x1ace}, {0x1df6, 0x1dfa}, {0xa82c, 0xa82c}, {0x10d24, 0x10d27}, {0x10eab, 0x10eac}, {0x10efd, 0x10eff}, {0x10f46, 0x10f50},
    {0x10f82, 0x10f85}, {0x11070, 0x11070}, {0x1133b, 0x1133b}, {0x1145e, 0x1145e}, {0x11839, 0x1183a}, {0x11930, 0x11930},
    {0x1193d, 0x1193e}, {0x11943, 0x11943}, {0x119e0, 0x119e0}, {0x11a34, 0x11a34}, {0x11a47, 0x11a47}, {0x11a99, 0x11a99},
    {0x11d42, 0x11d42}, {0x11d44, 0x11d45}, {0x11d97, 0x11d97}, {0x11f41, 0x11f42}, {0x16ff0, 0x16ff1}, {0x1e08f, 0x1e08f},
    {0x1e130, 0x1e136}, {0x1e2ae, 0x1e2ae}, {0x1e2ec, 0x1e2ef}, {0x1e4ec, 0x1e4ef},
};

static bool is_inert(uint32_t cp) {
    return cp >= inert[0].first && in_ranges(inert, (int)(sizeof inert / sizeof *inert), cp);
}

/* Whether nothing before cp can change it or be changed by it in NFC: combining class 0 and never second in a composition. Says no
 * more often than needed (every mark, every Jamo), which costs time only. */
static bool is_boundary(uint32_t cp) {
    if (cp < 0x300 || (cp >= 0x4e00 && cp < 0xa000) || (cp >= 0xac00 && cp < 0xd7a4)) return true;
    if (cp >= 0x1100 && cp < 0x1200) return false;
    const utf8proc_property_t *p = utf8proc_get_property((utf8proc_int32_t)cp);
    bool is_mark = p->category == UTF8PROC_CATEGORY_MN || p->category == UTF8PROC_CATEGORY_MC || p->category == UTF8PROC_CATEGORY_ME;
    return !is_mark && p->combining_class == 0 && p->decomp_seqindex == UINT16_MAX;
}

static int normalize_piece(hd_str *out, const unsigned char *text, size_t n, hd_error *err) {
    utf8proc_uint8_t *result = NULL;
    utf8proc_ssize_t length = utf8proc_map(text, (utf8proc_ssize_t)n, &result, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    if (length < 0) return hd_fail(err, length == UTF8PROC_ERROR_NOMEM ? HD_ENOMEM : HD_EFORMAT, "NFC: %s", utf8proc_errmsg(length));
    hd_str_add(out, result, (size_t)length);
    free(result); /* allocated by utf8proc with malloc */
    return 0;
}

int hd_nfc(hd_str *out, const unsigned char *text, size_t n, hd_error *err) {
    size_t done = 0, last = 0, i = 0; /* text[done..last) is final as it stands; text[last..i) begins with a boundary */
    bool dirty = false;
    while (i <= n) {
        int length = 1;
        uint32_t cp = i < n ? hd_utf8_get(text + i, &length) : 0;
        bool inert = i < n && is_inert(cp);
        if (i == n || inert || is_boundary(cp)) {
            if (dirty) {
                hd_str_add(out, text + done, last - done);
                int rc = normalize_piece(out, text + last, i - last, err);
                if (rc) return rc;
                done = i;
            }
            dirty = false;
            last = inert ? i + (size_t)length : i;
        } else {
            dirty = true;
        }
        i += (size_t)length;
    }
    hd_str_add(out, text + done, n - done);
    return out->failed ? hd_fail_memory(err, n, "normalized text") : 0;
}
