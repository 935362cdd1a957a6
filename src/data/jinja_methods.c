/* jinja_methods.c: methods of strings, lists, dicts and loops, and the functions that a template can call. */
#include <string.h>
#include <time.h>
#include <utf8proc.h>
#include "data/jinja_int.h"
#include "data/unicode.h"

typedef hd_j_ctx ctx;
typedef hd_j_val val;
#define ARGS ctx *c, val v, const val *a, const hd_j_call *call
#define UNUSED (void)c, (void)v, (void)a, (void)call

static bool given(val v) { return v.kind != J_ABSENT && v.kind != J_NONE; }

static int64_t whole(ctx *c, val v, int64_t fallback) {
    if (!given(v)) return fallback;
    if (hd_j_is_int(v)) return v.u.i;
    hd_j_fail(c, "an integer expected, not %s", hd_j_type_name(v));
    return fallback;
}

static bool is_text(ctx *c, val v) {
    if (v.kind != J_STR) hd_j_fail(c, "a string expected, not %s", hd_j_type_name(v));
    return !c->rc;
}

/* ---- strings ---- */

static val m_upper(ARGS) { UNUSED; return hd_j_recase(c, v, HD_J_UPPER); }
static val m_lower(ARGS) { UNUSED; return hd_j_recase(c, v, HD_J_LOWER); }
static val m_title(ARGS) { UNUSED; return hd_j_recase(c, v, HD_J_TITLE); }
static val m_capitalize(ARGS) { UNUSED; return hd_j_recase(c, v, HD_J_CAPITALIZE); }
static val m_swapcase(ARGS) { UNUSED; return hd_j_recase(c, v, HD_J_SWAP); }

static val stripped(ctx *c, val v, val chars, bool left, bool right) {
    if (!given(chars)) return hd_j_strip(v, NULL, left, right);
    return is_text(c, chars) ? hd_j_strip(v, &chars, left, right) : v;
}

static val m_strip(ARGS) { UNUSED; return stripped(c, v, a[0], true, true); }
static val m_lstrip(ARGS) { UNUSED; return stripped(c, v, a[0], true, false); }
static val m_rstrip(ARGS) { UNUSED; return stripped(c, v, a[0], false, true); }

static bool begins(val v, val with, bool end) { return v.n >= with.n && !memcmp(v.u.s + (end ? v.n - with.n : 0), with.u.s, with.n); }

/* One text or a tuple of them. */
static val affix(ctx *c, val v, val with, bool end) {
    if (with.kind != J_TUPLE) return hd_j_bool(is_text(c, with) && begins(v, with, end));
    for (size_t i = 0; i < with.u.list->n && hd_j_charge(c, 1); i++)
        if (is_text(c, with.u.list->items[i]) && begins(v, with.u.list->items[i], end)) return hd_j_bool(true);
    return hd_j_bool(false);
}

static val m_startswith(ARGS) { UNUSED; return affix(c, v, a[0], false); }
static val m_endswith(ARGS) { UNUSED; return affix(c, v, a[0], true); }
static val m_removeprefix(ARGS) { UNUSED; return is_text(c, a[0]) && begins(v, a[0], false) ? hd_j_str(v.u.s + a[0].n, v.n - a[0].n) : v; }
static val m_removesuffix(ARGS) { UNUSED; return is_text(c, a[0]) && begins(v, a[0], true) ? hd_j_str(v.u.s, v.n - a[0].n) : v; }

static val m_replace(ARGS) { UNUSED; return is_text(c, a[0]) && is_text(c, a[1]) ? hd_j_replace(c, v, a[0], a[1], whole(c, a[2], -1)) : v; }

/* Split at white space from the left, at most `most` times. */
static val split_space(ctx *c, val v, int64_t most) {
    val out = hd_j_list_new(c, 0, J_LIST);
    size_t length;
    v = hd_j_strip(v, NULL, true, false);
    while (v.n && hd_j_charge(c, 1)) {
        size_t i = 0;
        if (most-- == 0) {
            hd_j_push(c, out, v);
            break;
        }
        while (i < v.n && !hd_j_space(v.u.s + i, v.n - i, &length)) i += hd_j_char_at(v.u.s + i, v.n - i, 1);
        hd_j_push(c, out, hd_j_str(v.u.s, i));
        v = hd_j_strip(hd_j_str(v.u.s + i, v.n - i), NULL, true, false);
    }
    return out;
}

static val reversed(ctx *c, val list) {
    for (size_t i = 0, n = c->rc ? 0 : list.u.list->n; i < n / 2; i++) {
        val x = list.u.list->items[i];
        list.u.list->items[i] = list.u.list->items[n - 1 - i];
        list.u.list->items[n - 1 - i] = x;
    }
    return list;
}

static val rsplit_space(ctx *c, val v, int64_t most) {
    val out = hd_j_list_new(c, 0, J_LIST);
    size_t length;
    v = hd_j_strip(v, NULL, false, true);
    while (v.n && hd_j_charge(c, 1)) {
        size_t i = v.n;
        if (most-- == 0) {
            hd_j_push(c, out, v);
            break;
        }
        while (i && !hd_j_space_before(v.u.s, i, &length)) i--;
        hd_j_push(c, out, hd_j_str(v.u.s + i, v.n - i));
        v = hd_j_strip(hd_j_str(v.u.s, i), NULL, false, true);
    }
    return reversed(c, out);
}

static val split_at(ctx *c, val v, val by, int64_t most, bool right) {
    val out = hd_j_list_new(c, 0, J_LIST);
    for (; most != 0 && hd_j_charge(c, 1); most--) {
        int64_t at = hd_j_find_text(v, by, 0, right).u.i;
        if (at < 0) break;
        size_t end = (size_t)at + by.n;
        hd_j_push(c, out, right ? hd_j_str(v.u.s + end, v.n - end) : hd_j_str(v.u.s, (size_t)at));
        v = right ? hd_j_str(v.u.s, (size_t)at) : hd_j_str(v.u.s + end, v.n - end);
    }
    hd_j_push(c, out, v);
    return right ? reversed(c, out) : out;
}

static val split(ctx *c, val v, const val *a, bool right) {
    int64_t most = whole(c, a[1], -1);
    if (!hd_j_charge(c, v.n / 16)) return v;
    if (!given(a[0])) return right ? rsplit_space(c, v, most) : split_space(c, v, most);
    if (!is_text(c, a[0])) return v;
    return a[0].n ? split_at(c, v, a[0], most, right) : hd_j_fail(c, "empty separator");
}

static val m_split(ARGS) { UNUSED; return split(c, v, a, false); }
static val m_rsplit(ARGS) { UNUSED; return split(c, v, a, true); }

static val partition(ctx *c, val v, val by, bool right) {
    val out = hd_j_list_new(c, 3, J_TUPLE), none = hd_j_str("", 0);
    if (!is_text(c, by) || !by.n) return hd_j_fail(c, "empty separator");
    int64_t at = hd_j_find_text(v, by, 0, right).u.i;
    size_t end = (size_t)at + by.n;
    hd_j_push(c, out, at < 0 ? (right ? none : v) : hd_j_str(v.u.s, (size_t)at));
    hd_j_push(c, out, at < 0 ? none : by);
    hd_j_push(c, out, at < 0 ? (right ? v : none) : hd_j_str(v.u.s + end, v.n - end));
    return out;
}

static val m_partition(ARGS) { UNUSED; return partition(c, v, a[0], false); }
static val m_rpartition(ARGS) { UNUSED; return partition(c, v, a[0], true); }

static size_t line_break(const char *s, size_t n) {
    if (n > 1 && s[0] == '\r' && s[1] == '\n') return 2;
    if (n && ((s[0] >= 10 && s[0] <= 13) || (s[0] >= 28 && s[0] <= 30))) return 1;
    if (n > 1 && !memcmp(s, "\xc2\x85", 2)) return 2;
    return n > 2 && (!memcmp(s, "\xe2\x80\xa8", 3) || !memcmp(s, "\xe2\x80\xa9", 3)) ? 3 : 0;
}

static val m_splitlines(ARGS) {
    UNUSED;
    bool keep = given(a[0]) && hd_j_truth(a[0]);
    val out = hd_j_list_new(c, 0, J_LIST);
    for (size_t begin = 0; begin < v.n && hd_j_charge(c, 1);) {
        size_t end = begin;
        while (end < v.n && !line_break(v.u.s + end, v.n - end)) end++;
        size_t length = line_break(v.u.s + end, v.n - end);
        hd_j_push(c, out, hd_j_str(v.u.s + begin, end - begin + (keep ? length : 0)));
        begin = end + length;
    }
    return out;
}

static val m_join(ARGS) {
    UNUSED;
    val items = hd_j_iterate(c, a[0]);
    hd_str out;
    hd_str_init(&out);
    for (size_t i = 0; !c->rc && i < items.u.list->n; i++) {
        if (!is_text(c, items.u.list->items[i])) break;
        if (i) hd_j_write(c, &out, v, false);
        if (!c->rc) hd_j_write(c, &out, items.u.list->items[i], false);
    }
    return hd_j_take(c, &out);
}

/* Byte bounds of the characters from a[1] to a[2], as a slice has them. */
static bool bounds(ctx *c, val v, const val *a, size_t *from, size_t *to) {
    val part = hd_j_slice(c, v, given(a[1]) ? a[1] : hd_j_none(), given(a[2]) ? a[2] : hd_j_none(), hd_j_none());
    *from = part.kind == J_STR && !c->rc ? (size_t)(part.u.s - v.u.s) : 0;
    *to = *from + part.n;
    int64_t start = given(a[1]) ? whole(c, a[1], 0) : 0;
    return !c->rc && start <= hd_j_length(v);
}

static val find(ctx *c, val v, const val *a, bool last) {
    size_t from, to;
    if (!is_text(c, a[0]) || !hd_j_charge(c, v.n / 32) || !bounds(c, v, a, &from, &to)) return hd_j_int(-1);
    int64_t at = hd_j_find_text(hd_j_str(v.u.s, to), a[0], from, last).u.i;
    return hd_j_int(at < 0 ? -1 : (int64_t)hd_j_chars(v.u.s, (size_t)at));
}

static val m_find(ARGS) { UNUSED; return find(c, v, a, false); }
static val m_rfind(ARGS) { UNUSED; return find(c, v, a, true); }

static val m_count(ARGS) {
    UNUSED;
    size_t from, to;
    int64_t n = 0, at;
    if (!is_text(c, a[0]) || !bounds(c, v, a, &from, &to)) return hd_j_int(0);
    if (!a[0].n) return hd_j_int((int64_t)hd_j_chars(v.u.s + from, to - from) + 1);
    for (v.n = (uint32_t)to; hd_j_charge(c, 1) && (at = hd_j_find_text(v, a[0], from, false).u.i) >= 0; from = (size_t)at + a[0].n) n++;
    return hd_j_int(n);
}

typedef bool char_test(uint32_t cp);
static unsigned category(uint32_t cp) { return (unsigned)utf8proc_category((utf8proc_int32_t)cp); }
static bool is_alpha(uint32_t cp) { return category(cp) >= UTF8PROC_CATEGORY_LU && category(cp) <= UTF8PROC_CATEGORY_LO; }
static bool is_digit(uint32_t cp) {
    return category(cp) == UTF8PROC_CATEGORY_ND || cp == 0xb2 || cp == 0xb3 || cp == 0xb9 ||
           (cp >= 0x2070 && cp <= 0x2089 && category(cp) == UTF8PROC_CATEGORY_NO);
}
static bool is_decimal(uint32_t cp) { return category(cp) == UTF8PROC_CATEGORY_ND; }
static bool is_numeric(uint32_t cp) { return category(cp) >= UTF8PROC_CATEGORY_ND && category(cp) <= UTF8PROC_CATEGORY_NO; }
static bool is_alnum(uint32_t cp) { return is_alpha(cp) || is_numeric(cp); }

bool hd_j_is_alnum(const char *s) {
    int length;
    return is_alnum(hd_utf8_get((const unsigned char *)s, &length));
}

static bool is_space(uint32_t cp) {
    unsigned char bytes[4];
    size_t length;
    return hd_j_space((char *)bytes, (size_t)hd_utf8_put(cp, bytes), &length);
}

static val all_chars(ctx *c, val v, char_test *is) {
    for (size_t i = 0; i < v.n && hd_j_charge(c, i % 16 == 0);) {
        int length;
        if (!is(hd_utf8_get((const unsigned char *)v.u.s + i, &length))) return hd_j_bool(false);
        i += (size_t)length;
    }
    return hd_j_bool(v.n > 0);
}

static val m_isalpha(ARGS) { UNUSED; return all_chars(c, v, is_alpha); }
static val m_isdigit(ARGS) { UNUSED; return all_chars(c, v, is_digit); }
static val m_isdecimal(ARGS) { UNUSED; return all_chars(c, v, is_decimal); }
static val m_isnumeric(ARGS) { UNUSED; return all_chars(c, v, is_numeric); }
static val m_isalnum(ARGS) { UNUSED; return all_chars(c, v, is_alnum); }
static val m_isspace(ARGS) { UNUSED; return all_chars(c, v, is_space); }

/* Some cased character, and none of the other case. */
static val cased(ctx *c, val v, hd_j_case how) {
    return hd_j_bool(hd_j_equal(c, hd_j_recase(c, v, how), v) && !hd_j_equal(c, hd_j_recase(c, v, how == HD_J_UPPER ? HD_J_LOWER : HD_J_UPPER), v));
}

static val m_isupper(ARGS) { UNUSED; return cased(c, v, HD_J_UPPER); }
static val m_islower(ARGS) { UNUSED; return cased(c, v, HD_J_LOWER); }

/* left and right: columns of padding. */
static val padded(ctx *c, val v, int64_t left, int64_t right, val with) {
    val fill = given(with) ? with : hd_j_str(" ", 1);
    if (!is_text(c, fill) || hd_j_chars(fill.u.s, fill.n) != 1) return hd_j_fail(c, "The fill character must be exactly one character long");
    val l = hd_j_binary(c, '*', fill, hd_j_int(left)), r = hd_j_binary(c, '*', fill, hd_j_int(right));
    if (c->rc) return v;
    l = hd_j_binary(c, '+', l, v);
    return c->rc ? v : hd_j_binary(c, '+', l, r);
}

static int64_t missing(ctx *c, val v, val width) {
    int64_t n = whole(c, width, 0) - hd_j_length(v);
    return n > 0 ? n : 0;
}

static val m_ljust(ARGS) { UNUSED; return padded(c, v, 0, missing(c, v, a[0]), a[1]); }
static val m_rjust(ARGS) { UNUSED; return padded(c, v, missing(c, v, a[0]), 0, a[1]); }

static val m_zfill(ARGS) {
    UNUSED;
    int64_t n = missing(c, v, a[0]);
    size_t sign = v.n && (v.u.s[0] == '-' || v.u.s[0] == '+') ? 1 : 0;
    val rest = padded(c, hd_j_str(v.u.s + sign, v.n - sign), n, 0, hd_j_str("0", 1));
    return c->rc ? v : hd_j_binary(c, '+', hd_j_str(v.u.s, sign), rest);
}

/* What a replacement field names: the next argument, one by number, or one by name. */
static const val *field(const hd_j_call *call, const char *s, size_t n, size_t *next) {
    size_t number = 0;
    if (!n) return *next < call->n ? &call->pos[(*next)++] : NULL;
    for (size_t k = 0; k < call->n_kw; k++)
        if (call->kw_names[k].n == n && !memcmp(call->kw_names[k].u.s, s, n)) return &call->kw_values[k];
    for (size_t i = 0; i < n; i++) {
        if (s[i] < '0' || s[i] > '9' || number > 1000) return NULL;
        number = number * 10 + (size_t)(s[i] - '0');
    }
    return number < call->n ? &call->pos[number] : NULL;
}

/* "{} {0} {name}" without conversions and format specifications. */
static val m_format(ARGS) {
    UNUSED;
    hd_str out;
    hd_str_init(&out);
    size_t next = 0;
    for (size_t i = 0; i < v.n && hd_j_charge(c, 1); i++) {
        char x = v.u.s[i];
        if ((x == '{' || x == '}') && i + 1 < v.n && v.u.s[i + 1] == x) {
            hd_str_putc(&out, x);
            i++;
        } else if (x == '{') {
            const char *end = memchr(v.u.s + i, '}', v.n - i);
            const val *arg = end ? field(call, v.u.s + i + 1, (size_t)(end - v.u.s) - i - 1, &next) : NULL;
            if (arg) hd_j_write(c, &out, *arg, false);
            else hd_j_fail(c, "str.format: a field that names no argument, or a format specification (not supported)");
            if (end) i = (size_t)(end - v.u.s);
        } else if (x == '}') {
            hd_j_fail(c, "Single '}' encountered in format string");
        } else {
            hd_str_putc(&out, x);
        }
    }
    return hd_j_take(c, &out);
}

static val m_index(ARGS) {
    UNUSED;
    val at = find(c, v, a, false);
    return !c->rc && at.u.i < 0 ? hd_j_fail(c, "substring not found") : at;
}

const hd_j_entry hd_j_str_methods[] = {
    {"capitalize", m_capitalize, 0, {0}}, {"casefold", m_lower, 0, {0}},
    {"count", m_count, 1, {"sub", "start", "end"}}, {"endswith", m_endswith, 1, {"suffix"}},
    {"find", m_find, 1, {"sub", "start", "end"}}, {"format", m_format, 0, {"*"}},
    {"index", m_index, 1, {"sub", "start", "end"}}, {"isalnum", m_isalnum, 0, {0}},
    {"isalpha", m_isalpha, 0, {0}}, {"isdecimal", m_isdecimal, 0, {0}},
    {"isdigit", m_isdigit, 0, {0}}, {"islower", m_islower, 0, {0}},
    {"isnumeric", m_isnumeric, 0, {0}}, {"isspace", m_isspace, 0, {0}},
    {"isupper", m_isupper, 0, {0}}, {"join", m_join, 1, {"iterable"}},
    {"ljust", m_ljust, 1, {"width", "fillchar"}}, {"lower", m_lower, 0, {0}},
    {"lstrip", m_lstrip, 0, {"chars"}}, {"partition", m_partition, 1, {"sep"}},
    {"removeprefix", m_removeprefix, 1, {"prefix"}}, {"removesuffix", m_removesuffix, 1, {"suffix"}},
    {"replace", m_replace, 2, {"old", "new", "count"}}, {"rfind", m_rfind, 1, {"sub", "start", "end"}},
    {"rjust", m_rjust, 1, {"width", "fillchar"}}, {"rpartition", m_rpartition, 1, {"sep"}},
    {"rsplit", m_rsplit, 0, {"sep", "maxsplit"}}, {"rstrip", m_rstrip, 0, {"chars"}},
    {"split", m_split, 0, {"sep", "maxsplit"}}, {"splitlines", m_splitlines, 0, {"keepends"}},
    {"startswith", m_startswith, 1, {"prefix"}}, {"strip", m_strip, 0, {"chars"}},
    {"swapcase", m_swapcase, 0, {0}}, {"title", m_title, 0, {0}},
    {"upper", m_upper, 0, {0}}, {"zfill", m_zfill, 1, {"width"}}, {0},
};

/* ---- lists, dicts, loops ---- */

static val l_count(ARGS) {
    UNUSED;
    int64_t n = 0;
    for (size_t i = 0; i < v.u.list->n && !c->rc; i++) n += hd_j_equal(c, v.u.list->items[i], a[0]);
    return hd_j_int(n);
}

static val l_index(ARGS) {
    UNUSED;
    for (size_t i = 0; i < v.u.list->n && !c->rc; i++)
        if (hd_j_equal(c, v.u.list->items[i], a[0])) return hd_j_int((int64_t)i);
    return hd_j_fail(c, "the value is not in the list");
}

const hd_j_entry hd_j_list_methods[] = {{"count", l_count, 1, {"value"}}, {"index", l_index, 1, {"value"}}, {0}};

static val d_get(ARGS) {
    UNUSED;
    const val *found = hd_j_get(c, v, a[0]);
    return found ? *found : a[1].kind == J_ABSENT ? hd_j_none() : a[1];
}

static val d_list(ctx *c, val v, bool keys, bool values) {
    val out = hd_j_list_new(c, v.u.dict->n, J_LIST);
    for (size_t i = 0; i < v.u.dict->n && hd_j_charge(c, 1); i++) {
        val key = v.u.dict->keys[i], value = v.u.dict->values[i];
        hd_j_push(c, out, !values ? key : !keys ? value : hd_j_pair(c, key, value));
    }
    return out;
}

static val d_items(ARGS) { UNUSED; return d_list(c, v, true, true); }
static val d_keys(ARGS) { UNUSED; return d_list(c, v, true, false); }
static val d_values(ARGS) { UNUSED; return d_list(c, v, false, true); }
static val d_copy(ARGS) { UNUSED; return v; } /* nothing changes a dict */

const hd_j_entry hd_j_dict_methods[] = {
    {"copy", d_copy, 0, {0}}, {"get", d_get, 1, {"key", "default"}}, {"items", d_items, 0, {0}}, {"keys", d_keys, 0, {0}}, {"values", d_values, 0, {0}}, {0}};

static val o_cycle(ARGS) {
    UNUSED;
    return call->n ? call->pos[v.u.loop->at % call->n] : hd_j_fail(c, "no items for cycling given");
}

static val o_changed(ARGS) {
    UNUSED;
    val now = hd_j_list_new(c, call->n, J_TUPLE);
    for (size_t i = 0; i < call->n; i++) hd_j_push(c, now, call->pos[i]);
    bool same = v.u.loop->changed.kind == J_TUPLE && hd_j_equal(c, v.u.loop->changed, now);
    v.u.loop->changed = now;
    return hd_j_bool(!same);
}

const hd_j_entry hd_j_loop_methods[] = {{"changed", o_changed, 0, {"*"}}, {"cycle", o_cycle, 0, {"*"}}, {0}};

/* ---- functions ---- */

static val g_raise(ARGS) {
    UNUSED;
    val text = hd_j_to_str(c, a[0]);
    return hd_j_fail(c, "the template refuses: %.*s", (int)(text.n < 300 ? text.n : 300), text.u.s);
}

enum { MOST_RANGE = 100000 }; /* the sandbox's own */

static val g_range(ARGS) {
    UNUSED;
    int64_t from = a[1].kind == J_ABSENT ? 0 : whole(c, a[0], 0), to = whole(c, a[1].kind == J_ABSENT ? a[0] : a[1], 0), step = whole(c, a[2], 1);
    if (c->rc || !step) return hd_j_fail(c, "range() arg 3 must not be zero");
    if (from < -(1ll << 53) || from > 1ll << 53 || to < -(1ll << 53) || to > 1ll << 53 || step < -(1ll << 53) || step > 1ll << 53)
        return hd_j_fail(c, "range() of numbers that are too large");
    int64_t n = step > 0 ? (to > from ? (to - from + step - 1) / step : 0) : (from > to ? (from - to - step - 1) / -step : 0);
    if (n > MOST_RANGE) return hd_j_fail(c, "range() of more than %d numbers", MOST_RANGE);
    val out = hd_j_list_new(c, (size_t)n, J_LIST);
    for (int64_t i = 0; i < n && hd_j_charge(c, 1); i++) hd_j_push(c, out, hd_j_int(from + i * step));
    return out;
}

/* From a dict or pairs, and arguments by name. */
static val make(ctx *c, const hd_j_call *call, hd_j_kind kind) {
    val out = hd_j_dict_new(c, kind), from = call->n ? call->pos[0] : hd_j_none();
    if (call->n > 1) return hd_j_fail(c, "expected at most 1 argument, got %zu", call->n);
    if (from.kind == J_DICT)
        for (size_t i = 0; i < from.u.dict->n && !c->rc; i++) hd_j_put(c, out, from.u.dict->keys[i], from.u.dict->values[i]);
    else if (call->n) {
        val pairs = hd_j_iterate(c, from);
        for (size_t i = 0; !c->rc && i < pairs.u.list->n; i++) {
            val pair = hd_j_iterate(c, pairs.u.list->items[i]);
            if (!c->rc && pair.u.list->n != 2) return hd_j_fail(c, "dictionary update sequence element has length %zu; 2 is required", pair.u.list->n);
            if (!c->rc) hd_j_put(c, out, pair.u.list->items[0], pair.u.list->items[1]);
        }
    }
    for (size_t k = 0; k < call->n_kw; k++) hd_j_put(c, out, call->kw_names[k], call->kw_values[k]);
    return out;
}

static val g_namespace(ARGS) { UNUSED; return make(c, call, J_NAMESPACE); }
static val g_dict(ARGS) { UNUSED; return make(c, call, J_DICT); }

static val g_strftime(ARGS) {
    UNUSED;
    char format[256], text[1024];
    struct tm tm;
    time_t now = (time_t)c->now;
    if (!is_text(c, a[0])) return a[0];
    if (a[0].n >= sizeof format - 1) return hd_j_fail(c, "strftime_now: a format that is too long");
    memcpy(format, a[0].u.s, a[0].n);
    format[a[0].n] = '|'; /* so that an empty result isn't a failure */
    format[a[0].n + 1] = 0;
    localtime_r(&now, &tm);
    size_t n = strftime(text, sizeof text, format, &tm);
    if (!n) return hd_j_fail(c, "strftime_now: a format that makes no sense");
    hd_str out;
    hd_str_init(&out);
    hd_str_add(&out, text, n - 1);
    return hd_j_take(c, &out);
}

const hd_j_entry hd_j_functions[] = {
    {"dict", g_dict, 0, {"*"}},
    {"namespace", g_namespace, 0, {"*"}},
    {"raise_exception", g_raise, 1, {"message"}},
    {"range", g_range, 1, {"start", "stop", "step"}},
    {"strftime_now", g_strftime, 1, {"format"}},
    {0},
};

const hd_j_entry *hd_j_find(const hd_j_entry *table, const char *name, size_t n) {
    for (; table->name; table++)
        if (strlen(table->name) == n && !memcmp(table->name, name, n)) return table;
    return NULL;
}
