/* jinja_text.c: strings as Python has them: code points, white space, cases, replacing, and the % operator. */
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>
#include "data/jinja_int.h"
#include "data/unicode.h"

size_t hd_j_chars(const char *s, size_t n) {
    size_t count = 0;
    for (size_t i = 0; i < n; i++) count += ((unsigned char)s[i] & 0xc0) != 0x80;
    return count;
}

size_t hd_j_char_at(const char *s, size_t n, size_t index) {
    size_t i = 0;
    while (index && i < n) {
        do i++;
        while (i < n && ((unsigned char)s[i] & 0xc0) == 0x80);
        index--;
    }
    return i;
}

static bool is_space(uint32_t cp) {
    return (cp >= 9 && cp <= 13) || (cp >= 28 && cp <= 32) || cp == 0x85 || cp == 0xa0 || cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200a) || cp == 0x2028
        || cp == 0x2029 || cp == 0x202f || cp == 0x205f || cp == 0x3000;
}

bool hd_j_space(const char *s, size_t n, size_t *length) {
    int bytes;
    if (!n || !is_space(hd_utf8_get((const unsigned char *)s, &bytes))) return false;
    *length = (size_t)bytes;
    return true;
}

static size_t last_char(const char *s, size_t n) {
    size_t i = n - 1;
    while (i && ((unsigned char)s[i] & 0xc0) == 0x80) i--;
    return i;
}

bool hd_j_space_before(const char *s, size_t n, size_t *length) {
    if (!n) return false;
    size_t i = last_char(s, n);
    return hd_j_space(s + i, n - i, length);
}

/* Whether the character s[0..n) is one of chars. */
static bool among(const char *s, size_t n, const hd_j_val *chars) {
    size_t length;
    if (!chars) return hd_j_space(s, n, &length);
    for (size_t i = 0; i + n <= chars->n; i++)
        if (!memcmp(chars->u.s + i, s, n)) return true;
    return false;
}

hd_j_val hd_j_strip(hd_j_val v, const hd_j_val *chars, bool left, bool right) {
    const char *s = v.u.s;
    size_t n = v.n;
    while (left && n) {
        size_t length = hd_j_char_at(s, n, 1);
        if (!among(s, length, chars)) break;
        s += length;
        n -= length;
    }
    while (right && n) {
        size_t at = last_char(s, n);
        if (!among(s + at, n - at, chars)) break;
        n = at;
    }
    return hd_j_str(s, n);
}

hd_j_val hd_j_find_text(hd_j_val s, hd_j_val part, size_t from, bool last) {
    if (last) {
        for (size_t i = s.n >= part.n ? s.n - part.n + 1 : 0; i-- > from;)
            if (!memcmp(s.u.s + i, part.u.s, part.n)) return hd_j_int((int64_t)i);
        return hd_j_int(-1);
    }
    if (from > s.n) return hd_j_int(-1);
    const char *found = part.n ? memmem(s.u.s + from, s.n - from, part.u.s, part.n) : s.u.s + from;
    return hd_j_int(found ? found - s.u.s : -1);
}

/* An empty `from` stands before every character and at the end. */
hd_j_val hd_j_replace(hd_j_ctx *c, hd_j_val s, hd_j_val from, hd_j_val to, int64_t count) {
    hd_str out;
    hd_str_init(&out);
    size_t at = 0;
    if (count < 0) count = INT64_MAX;
    for (; count > 0 && hd_j_charge(c, 1 + to.n / 64); count--) {
        int64_t found = hd_j_find_text(s, from, at, false).u.i;
        if (found < 0 || out.len > (size_t)c->limit.bytes) break;
        hd_str_add(&out, s.u.s + at, (size_t)found - at);
        hd_str_add(&out, to.u.s, to.n);
        at = (size_t)found + from.n;
        if (from.n) continue;
        if (at >= s.n) break;
        size_t length = hd_j_char_at(s.u.s + at, s.n - at, 1);
        hd_str_add(&out, s.u.s + at, length);
        at += length;
    }
    if (at < s.n) hd_str_add(&out, s.u.s + at, s.n - at);
    hd_j_charge(c, s.n / 64);
    return hd_j_take(c, &out);
}

/* ---- cases ---- */

static void put_cp(hd_str *out, uint32_t cp) {
    unsigned char bytes[4];
    hd_str_add(out, bytes, (size_t)hd_utf8_put(cp, bytes));
}

static void put_case(hd_str *out, uint32_t cp, bool upper, bool title) {
    if (cp == 0xdf && upper) {
        hd_str_puts(out, title ? "Ss" : "SS");
        return;
    }
    utf8proc_int32_t p = (utf8proc_int32_t)cp;
    put_cp(out, (uint32_t)(!upper ? utf8proc_tolower(p) : title ? utf8proc_totitle(p) : utf8proc_toupper(p)));
}

static bool is_cased(uint32_t cp) {
    unsigned category = (unsigned)utf8proc_category((utf8proc_int32_t)cp);
    return category == UTF8PROC_CATEGORY_LU || category == UTF8PROC_CATEGORY_LL || category == UTF8PROC_CATEGORY_LT;
}

static bool is_upper(uint32_t cp) {
    return utf8proc_category((utf8proc_int32_t)cp) == UTF8PROC_CATEGORY_LU;
}

hd_j_val hd_j_recase(hd_j_ctx *c, hd_j_val s, hd_j_case how) {
    hd_str out;
    hd_str_init(&out);
    bool inside = false; /* a word */
    for (size_t i = 0; i < s.n && hd_j_charge(c, i % 16 == 0);) {
        int length;
        uint32_t cp = hd_utf8_get((const unsigned char *)s.u.s + i, &length);
        bool first = how == HD_J_CAPITALIZE ? i == 0 : !inside;
        bool upper = how == HD_J_UPPER || (how != HD_J_LOWER && how != HD_J_SWAP && first) || (how == HD_J_SWAP && !is_upper(cp));
        put_case(&out, cp, upper, how == HD_J_TITLE || how == HD_J_CAPITALIZE);
        inside = is_cased(cp);
        i += (size_t)length;
    }
    return hd_j_take(c, &out);
}

/* ---- the % operator ---- */

typedef struct spec { bool left, zero, plus, space; int width, precision; char type; } spec;

static size_t read_number(const char *s, size_t n, size_t i, int *out) {
    for (*out = 0; i < n && s[i] >= '0' && s[i] <= '9' && *out < 100000; i++) *out = *out * 10 + s[i] - '0';
    return i;
}

/* Behind the '%': the place after the type letter. */
static size_t read_spec(const char *s, size_t n, size_t i, spec *p) {
    *p = (spec){.precision = -1};
    for (; i < n && strchr("-0+ ", s[i]) && s[i]; i++) {
        p->left |= s[i] == '-';
        p->zero |= s[i] == '0';
        p->plus |= s[i] == '+';
        p->space |= s[i] == ' ';
    }
    i = read_number(s, n, i, &p->width);
    if (i < n && s[i] == '.') i = read_number(s, n, i + 1, &p->precision);
    p->type = i < n ? s[i++] : 0;
    return i;
}

static void put_padded(hd_str *out, const spec *p, hd_j_val text) {
    size_t chars = hd_j_chars(text.u.s, text.n), pad = (size_t)p->width > chars ? (size_t)p->width - chars : 0;
    for (size_t i = 0; !p->left && i < pad; i++) hd_str_putc(out, ' ');
    hd_str_add(out, text.u.s, text.n);
    for (size_t i = 0; p->left && i < pad; i++) hd_str_putc(out, ' ');
}

static void put_number(hd_j_ctx *c, hd_str *out, const spec *p, hd_j_val v) {
    char format[32], sign[5] = "", text[512];
    bool whole = strchr("dixXo", p->type) != NULL;
    if (!hd_j_is_number(v)) {
        hd_j_fail(c, "%%%c format: a number is required, not %s", p->type, hd_j_type_name(v));
        return;
    }
    if (p->width > 200 || p->precision > 100) {
        hd_j_fail(c, "a number's format is too wide");
        return;
    }
    snprintf(sign, sizeof sign, "%s%s%s%s", p->plus ? "+" : "", p->left ? "-" : "", p->zero ? "0" : "", p->space ? " " : "");
    if (whole) {
        snprintf(format, sizeof format, "%%%s%d.%dll%c", sign, p->width, p->precision < 0 ? 1 : p->precision, p->type);
        if (p->precision < 0) snprintf(format, sizeof format, "%%%s%dll%c", sign, p->width, p->type);
        if (v.kind == J_FLOAT && !(v.u.f > -9e18 && v.u.f < 9e18)) hd_j_fail(c, "a number that is too large");
        else snprintf(text, sizeof text, format, v.kind == J_FLOAT ? (long long)v.u.f : (long long)v.u.i);
    } else {
        snprintf(format, sizeof format, "%%%s%d.%d%c", sign, p->width, p->precision < 0 ? 6 : p->precision, p->type);
        snprintf(text, sizeof text, format, hd_j_number(v));
    }
    if (!c->rc) hd_str_puts(out, text);
}

static void put_one(hd_j_ctx *c, hd_str *out, const spec *p, hd_j_val v) {
    if (p->type == 's' || p->type == 'r') {
        hd_str s;
        hd_str_init(&s);
        hd_j_write(c, &s, v, p->type == 'r');
        hd_j_val text = hd_j_take(c, &s);
        if (p->precision >= 0) text.n = (uint32_t)hd_j_char_at(text.u.s, text.n, (size_t)p->precision);
        put_padded(out, p, text);
    } else if (p->type && strchr("dixXofFeEgG", p->type)) {
        put_number(c, out, p, v);
    } else {
        hd_j_fail(c, "unsupported format character '%c'", p->type ? p->type : ' ');
    }
}

hd_j_val hd_j_percent(hd_j_ctx *c, hd_j_val format, const hd_j_val *args, size_t n, bool may_be_unused) {
    hd_str out;
    hd_str_init(&out);
    const char *s = format.u.s;
    size_t used = 0;
    for (size_t i = 0; i < format.n && hd_j_charge(c, 1);) {
        if (s[i] != '%') {
            hd_str_putc(&out, s[i++]);
            continue;
        }
        spec p;
        i = read_spec(s, format.n, i + 1, &p);
        if (p.type == '%') hd_str_putc(&out, '%');
        else if (used >= n) hd_j_fail(c, "not enough arguments for format string");
        else put_one(c, &out, &p, args[used++]);
        if (out.len > (size_t)c->limit.bytes) break;
    }
    if (used < n && !may_be_unused) hd_j_fail(c, "not all arguments converted during string formatting");
    return hd_j_take(c, &out);
}
