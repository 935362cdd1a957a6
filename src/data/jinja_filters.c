/* jinja_filters.c: filters and tests, as Jinja2's filters.py and tests.py have them; tojson as transformers replaces it. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "data/jinja_int.h"

typedef hd_j_ctx ctx;
typedef hd_j_val val;
#define ARGS ctx *c, val v, const val *a, const hd_j_call *call
#define UNUSED (void)c, (void)v, (void)a, (void)call

static bool given(val v) { return v.kind != J_ABSENT; }
static bool flag(val v) { return given(v) && hd_j_truth(v); }

static int64_t whole(ctx *c, val v, int64_t fallback) {
    if (!given(v)) return fallback;
    if (hd_j_is_int(v)) return v.u.i;
    hd_j_fail(c, "an integer expected, not %s", hd_j_type_name(v));
    return fallback;
}

static val text_arg(ctx *c, val v, const char *fallback) { return given(v) ? hd_j_to_str(c, v) : hd_j_str(fallback, strlen(fallback)); }

/* ---- strings ---- */

static val f_upper(ARGS) { UNUSED; return hd_j_recase(c, hd_j_to_str(c, v), HD_J_UPPER); }
static val f_lower(ARGS) { UNUSED; return hd_j_recase(c, hd_j_to_str(c, v), HD_J_LOWER); }
static val f_capitalize(ARGS) { UNUSED; return hd_j_recase(c, hd_j_to_str(c, v), HD_J_CAPITALIZE); }
static val f_string(ARGS) { UNUSED; return hd_j_to_str(c, v); }

static val f_trim(ARGS) {
    UNUSED;
    val chars = given(a[0]) && a[0].kind != J_NONE ? hd_j_to_str(c, a[0]) : a[0];
    return hd_j_strip(hd_j_to_str(c, v), chars.kind == J_STR ? &chars : NULL, true, true);
}

/* Words begin behind white space, a hyphen or an opening bracket. */
static val f_title(ARGS) {
    UNUSED;
    v = hd_j_to_str(c, v);
    hd_str out;
    hd_str_init(&out);
    size_t length;
    for (size_t i = 0; i < v.n && !c->rc;) {
        size_t begin = i;
        while (i < v.n && !(strchr("-({[<", v.u.s[i]) && v.u.s[i]) && !hd_j_space(v.u.s + i, v.n - i, &length)) i += hd_j_char_at(v.u.s + i, v.n - i, 1);
        size_t first = i > begin ? hd_j_char_at(v.u.s + begin, i - begin, 1) : 0;
        val head = hd_j_recase(c, hd_j_str(v.u.s + begin, first), HD_J_UPPER),
            tail = hd_j_recase(c, hd_j_str(v.u.s + begin + first, i - begin - first), HD_J_LOWER);
        hd_str_add(&out, head.u.s, head.n);
        hd_str_add(&out, tail.u.s, tail.n);
        length = i < v.n ? hd_j_char_at(v.u.s + i, v.n - i, 1) : 0;
        hd_str_add(&out, v.u.s + i, length);
        i += length;
    }
    return hd_j_take(c, &out);
}

static val f_replace(ARGS) {
    UNUSED;
    return hd_j_replace(c, hd_j_to_str(c, v), hd_j_to_str(c, a[0]), hd_j_to_str(c, a[1]), given(a[2]) && a[2].kind != J_NONE ? whole(c, a[2], -1) : -1);
}

static val f_escape(ARGS) {
    UNUSED;
    static const struct { char c; const char *text; } escapes[] = {{'&', "&amp;"}, {'<', "&lt;"}, {'>', "&gt;"}, {'"', "&#34;"}, {'\'', "&#39;"}};
    v = hd_j_to_str(c, v);
    hd_str out;
    hd_str_init(&out);
    for (size_t i = 0; i < v.n && hd_j_charge(c, i % 16 == 0); i++) {
        const char *text = NULL;
        for (size_t k = 0; k < 5; k++)
            if (escapes[k].c == v.u.s[i]) text = escapes[k].text;
        if (text) hd_str_puts(&out, text);
        else hd_str_putc(&out, v.u.s[i]);
    }
    return hd_j_take(c, &out);
}

/* Whether a line break (as str.splitlines has it, of those in ASCII) is at s. */
static size_t line_break(const char *s, size_t n) {
    if (n > 1 && s[0] == '\r' && s[1] == '\n') return 2;
    return n && ((s[0] >= 10 && s[0] <= 13) || (s[0] >= 28 && s[0] <= 30)) ? 1 : 0;
}

static val indentation(ctx *c, val width) {
    if (width.kind == J_STR) return width;
    int64_t n = whole(c, width, 4);
    return hd_j_binary(c, '*', hd_j_str(" ", 1), hd_j_int(n));
}

static val f_indent(ARGS) {
    UNUSED;
    val pad = indentation(c, a[0]);
    bool first = flag(a[1]), blank = flag(a[2]);
    if (v.kind != J_STR) return hd_j_fail(c, "indent: a string expected, not %s", hd_j_type_name(v));
    hd_str out;
    hd_str_init(&out);
    if (first && !c->rc) hd_str_add(&out, pad.u.s, pad.n);
    for (size_t i = 0, line = 0; i < v.n && hd_j_charge(c, 1) && out.len <= (size_t)c->limit.bytes; line++) {
        size_t end = i;
        while (end < v.n && !line_break(v.u.s + end, v.n - end)) end++;
        if (line && (blank || end > i)) hd_str_add(&out, pad.u.s, pad.n);
        hd_str_add(&out, v.u.s + i, end - i);
        size_t length = line_break(v.u.s + end, v.n - end);
        if (length) hd_str_putc(&out, '\n');
        if (length && end + length == v.n && blank) hd_str_add(&out, pad.u.s, pad.n);
        i = end + length;
    }
    return hd_j_take(c, &out);
}

static val f_wordcount(ARGS) {
    UNUSED;
    v = hd_j_to_str(c, v);
    int64_t words = 0;
    bool inside = false;
    for (size_t i = 0; i < v.n && hd_j_charge(c, i % 16 == 0);) {
        size_t length = hd_j_char_at(v.u.s + i, v.n - i, 1);
        bool word = v.u.s[i] == '_' || hd_j_is_alnum(v.u.s + i);
        words += word && !inside;
        inside = word;
        i += length;
    }
    return hd_j_int(words);
}

static val f_format(ARGS) {
    UNUSED;
    return hd_j_percent(c, hd_j_to_str(c, v), call->pos, call->n, false);
}

static val f_tojson(ARGS) {
    UNUSED;
    bool indented = given(a[0]) && a[0].kind != J_NONE, own = given(a[2]) && a[2].kind != J_NONE;
    int64_t indent = indented ? whole(c, a[0], 0) : -1;
    if (indent > 64) return hd_j_fail(c, "tojson: an indent of more than 64");
    hd_j_json how = {(int)(indented && indent < 0 ? 0 : indent), flag(a[3]), flag(a[1]), hd_j_str(", ", indented ? 1 : 2), hd_j_str(": ", 2)};
    if (own) {
        if (!hd_j_is_seq(a[2]) || a[2].u.list->n != 2 || a[2].u.list->items[0].kind != J_STR || a[2].u.list->items[1].kind != J_STR)
            return hd_j_fail(c, "tojson: separators must be two strings");
        how.comma = a[2].u.list->items[0];
        how.colon = a[2].u.list->items[1];
    }
    hd_str out;
    hd_str_init(&out);
    hd_j_write_json(c, &out, v, &how, 0);
    return hd_j_take(c, &out);
}

/* ---- numbers ---- */

static val f_int(ARGS) {
    UNUSED;
    val fallback = given(a[0]) ? a[0] : hd_j_int(0);
    int64_t base = whole(c, a[1], 10);
    if (v.kind == J_UNDEF) return hd_j_fail(c, "'%.*s' is undefined", (int)v.n, v.u.s);
    if (hd_j_is_int(v)) return hd_j_int(v.u.i);
    double f = v.kind == J_FLOAT ? v.u.f : NAN;
    if (v.kind == J_STR) {
        char text[64], *end;
        val s = hd_j_strip(v, NULL, true, true);
        if (!s.n || s.n >= sizeof text || base < 2 || base > 36) return fallback;
        memcpy(text, s.u.s, s.n);
        text[s.n] = 0;
        long long i = strtoll(text, &end, (int)base);
        if (!*end && s.n < 19) return hd_j_int(i);
        f = strchr(text, 'x') || strchr(text, 'X') ? NAN : strtod(text, &end);
        if (*end) return fallback;
    }
    return f > -9.2e18 && f < 9.2e18 ? hd_j_int((int64_t)f) : fallback;
}

static val f_float(ARGS) {
    UNUSED;
    val fallback = given(a[0]) ? a[0] : hd_j_float(0);
    if (v.kind == J_UNDEF) return hd_j_fail(c, "'%.*s' is undefined", (int)v.n, v.u.s);
    if (hd_j_is_number(v)) return hd_j_float(hd_j_number(v));
    if (v.kind != J_STR) return fallback;
    char text[64], *end;
    val s = hd_j_strip(v, NULL, true, true);
    if (!s.n || s.n >= sizeof text) return fallback;
    memcpy(text, s.u.s, s.n);
    text[s.n] = 0;
    double f = strtod(text, &end);
    return *end || strpbrk(text, "xX(") ? fallback : hd_j_float(f);
}

static val round_to(val v, int64_t digits) {
    char text[400];
    if (digits < 0) {
        double unit = pow(10, (double)-digits);
        return v.kind == J_FLOAT ? hd_j_float(rint(v.u.f / unit) * unit) : hd_j_int((int64_t)(rint((double)v.u.i / unit) * unit));
    }
    if (v.kind != J_FLOAT) return hd_j_int(v.u.i);
    snprintf(text, sizeof text, "%.*f", (int)(digits > 50 ? 50 : digits), v.u.f);
    return hd_j_float(strtod(text, NULL));
}

static val f_round(ARGS) {
    UNUSED;
    int64_t digits = whole(c, a[0], 0);
    val how = text_arg(c, a[1], "common");
    if (!hd_j_is_number(v)) return hd_j_fail(c, "round: a number expected, not %s", hd_j_type_name(v));
    if (digits < -30 || digits > 300) return hd_j_fail(c, "round: a precision that makes no sense");
    if (how.n == 6 && !memcmp(how.u.s, "common", 6)) return round_to(v, digits);
    bool up = how.n == 4 && !memcmp(how.u.s, "ceil", 4);
    if (!up && !(how.n == 5 && !memcmp(how.u.s, "floor", 5))) return hd_j_fail(c, "method must be common, ceil or floor");
    double unit = pow(10, (double)digits), f = hd_j_number(v) * unit;
    return hd_j_float((up ? ceil(f) : floor(f)) / unit);
}

static val f_abs(ARGS) {
    UNUSED;
    if (v.kind == J_FLOAT) return hd_j_float(fabs(v.u.f));
    if (!hd_j_is_int(v)) return hd_j_fail(c, "bad operand type for abs(): '%s'", hd_j_type_name(v));
    return v.u.i < 0 ? hd_j_binary(c, '-', hd_j_int(0), v) : hd_j_int(v.u.i);
}

/* ---- sequences ---- */

static val f_length(ARGS) {
    UNUSED;
    int64_t n = hd_j_length(v);
    if (v.kind == J_STR) hd_j_charge(c, v.n / 64);
    return n < 0 ? hd_j_fail(c, "object of type '%s' has no len()", hd_j_type_name(v)) : hd_j_int(n);
}

static val f_list(ARGS) {
    UNUSED;
    val items = hd_j_iterate(c, v), out = hd_j_list_new(c, 0, J_LIST);
    for (size_t i = 0; !c->rc && i < items.u.list->n && hd_j_charge(c, 1); i++) hd_j_push(c, out, items.u.list->items[i]);
    return out;
}

static val end_of(ctx *c, val v, bool last) {
    val items = hd_j_iterate(c, v);
    if (c->rc || !items.u.list->n) return hd_j_undef("an item of an empty sequence", 28);
    return items.u.list->items[last ? items.u.list->n - 1 : 0];
}

static val f_first(ARGS) { UNUSED; return end_of(c, v, false); }
static val f_last(ARGS) { UNUSED; return end_of(c, v, true); }

static val f_reverse(ARGS) {
    UNUSED;
    if (v.kind == J_STR) return hd_j_slice(c, v, hd_j_none(), hd_j_none(), hd_j_int(-1));
    val items = hd_j_iterate(c, v), out = hd_j_list_new(c, 0, J_LIST);
    for (size_t i = c->rc ? 0 : items.u.list->n; i-- > 0 && hd_j_charge(c, 1);) hd_j_push(c, out, items.u.list->items[i]);
    return out;
}

static val f_join(ARGS) {
    UNUSED;
    val between = text_arg(c, a[0], ""), items = hd_j_iterate(c, v);
    hd_str out;
    hd_str_init(&out);
    for (size_t i = 0; !c->rc && i < items.u.list->n; i++) {
        val item = given(a[1]) && a[1].kind != J_NONE ? hd_j_path(c, items.u.list->items[i], a[1]) : items.u.list->items[i];
        if (i) hd_j_write(c, &out, between, false);
        if (!c->rc) hd_j_write(c, &out, item, false);
    }
    return hd_j_take(c, &out);
}

static val f_items(ARGS) {
    UNUSED;
    val out = hd_j_list_new(c, 0, J_LIST);
    if (v.kind == J_UNDEF) return out;
    if (v.kind != J_DICT) return hd_j_fail(c, "Can only get item pairs from a mapping.");
    for (size_t i = 0; i < v.u.dict->n && hd_j_charge(c, 1); i++) hd_j_push(c, out, hd_j_pair(c, v.u.dict->keys[i], v.u.dict->values[i]));
    return out;
}

/* What an item is ordered by: an attribute of it, strings without regard to case unless told otherwise. */
static val sort_key(ctx *c, val item, val attribute, bool cased) {
    if (given(attribute) && attribute.kind != J_NONE) item = hd_j_path(c, item, attribute);
    return item.kind == J_STR && !cased && !c->rc ? hd_j_recase(c, item, HD_J_LOWER) : item;
}

/* Stable merge sort of places by keys. */
static void merge_sort(ctx *c, const val *keys, size_t *order, size_t *spare, size_t n, bool down) {
    for (size_t width = 1; width < n && !c->rc; width *= 2) {
        for (size_t begin = 0; begin < n; begin += 2 * width) {
            size_t middle = begin + width < n ? begin + width : n, end = begin + 2 * width < n ? begin + 2 * width : n, i = begin, k = middle;
            for (size_t out = begin; out < end; out++) {
                bool both = i < middle && k < end && !hd_j_equal(c, keys[order[k]], keys[order[i]]); /* equal ones need no order */
                int sign = both ? hd_j_compare(c, keys[order[k]], keys[order[i]]) : 0;
                bool right = i >= middle || (k < end && (down ? sign == 1 : sign == -1));
                spare[out] = order[right ? k++ : i++];
            }
        }
        memcpy(order, spare, n * sizeof *order);
    }
}

static val sorted(ctx *c, val items, val attribute, bool cased, bool down) {
    size_t n = c->rc ? 0 : items.u.list->n;
    val *keys = hd_j_alloc(c, n * sizeof *keys + 1), out = hd_j_list_new(c, n, J_LIST);
    size_t *order = hd_j_alloc(c, 2 * n * sizeof *order + 1);
    for (size_t i = 0; i < n && !c->rc; i++) {
        keys[i] = sort_key(c, items.u.list->items[i], attribute, cased);
        order[i] = i;
    }
    if (!c->rc) merge_sort(c, keys, order, order + n, n, down);
    for (size_t i = 0; i < n && !c->rc; i++) hd_j_push(c, out, items.u.list->items[order[i]]);
    return out;
}

static val f_sort(ARGS) { UNUSED; return sorted(c, hd_j_iterate(c, v), a[2], flag(a[1]), flag(a[0])); }

static val f_dictsort(ARGS) {
    UNUSED;
    val by = text_arg(c, a[1], "key");
    bool value = by.n == 5 && !memcmp(by.u.s, "value", 5);
    if (v.kind != J_DICT) return hd_j_fail(c, "dictsort: a mapping expected, not %s", hd_j_type_name(v));
    return sorted(c, f_items(c, v, a, call), hd_j_int(value), flag(a[0]), flag(a[2]));
}

static val f_unique(ARGS) {
    UNUSED;
    val items = hd_j_iterate(c, v), out = hd_j_list_new(c, 0, J_LIST), seen = hd_j_dict_new(c, J_DICT);
    for (size_t i = 0; !c->rc && i < items.u.list->n; i++) {
        val key = sort_key(c, items.u.list->items[i], a[1], flag(a[0]));
        if (c->rc || hd_j_get(c, seen, key)) continue;
        hd_j_put(c, seen, key, hd_j_none());
        hd_j_push(c, out, items.u.list->items[i]);
    }
    return out;
}

static val extreme(ctx *c, val v, const val *a, int sign) {
    val items = hd_j_iterate(c, v);
    if (c->rc || !items.u.list->n) return hd_j_undef("the extreme of an empty sequence", 32);
    size_t best = 0;
    val key = sort_key(c, items.u.list->items[0], a[1], flag(a[0]));
    for (size_t i = 1; i < items.u.list->n && !c->rc; i++) {
        val other = sort_key(c, items.u.list->items[i], a[1], flag(a[0]));
        if (c->rc || hd_j_compare(c, other, key) != sign) continue;
        best = i;
        key = other;
    }
    return items.u.list->items[best];
}

static val f_min(ARGS) { UNUSED; return extreme(c, v, a, -1); }
static val f_max(ARGS) { UNUSED; return extreme(c, v, a, 1); }

static val f_sum(ARGS) {
    UNUSED;
    val items = hd_j_iterate(c, v), total = given(a[1]) ? a[1] : hd_j_int(0);
    for (size_t i = 0; !c->rc && i < items.u.list->n; i++) {
        val item = items.u.list->items[i];
        if (given(a[0]) && a[0].kind != J_NONE) item = hd_j_path(c, item, a[0]);
        if (!c->rc) total = hd_j_binary(c, '+', total, item);
    }
    return total;
}

static val f_default(ARGS) {
    UNUSED;
    if (v.kind == J_UNDEF || (flag(a[1]) && !hd_j_truth(v))) return given(a[0]) ? a[0] : hd_j_str("", 0);
    return v;
}

static val f_attr(ARGS) {
    UNUSED;
    if (v.kind == J_DICT || a[0].kind != J_STR) return hd_j_undef("attr", 4); /* attributes only, never items */
    return hd_j_attr(c, v, a[0]);
}

/* ---- over all items ---- */

/* Jinja2 doesn't look at what these filters are given when it is false: none and 0 are empty. */
static val items_of(ctx *c, val v) { return hd_j_truth(v) ? hd_j_iterate(c, v) : hd_j_list_new(c, 0, J_LIST); }

static bool named(val v, const char *name) { return v.kind == J_STR && v.n == strlen(name) && !memcmp(v.u.s, name, v.n); }

static val f_map(ARGS) {
    UNUSED;
    val items = items_of(c, v), out = hd_j_list_new(c, 0, J_LIST), path = {.kind = J_ABSENT}, fallback = path;
    for (size_t k = 0; k < call->n_kw && !call->n; k++) *(named(call->kw_names[k], "attribute") ? &path : &fallback) = call->kw_values[k];
    const hd_j_entry *e = call->n && call->pos[0].kind == J_STR ? hd_j_find(hd_j_filters, call->pos[0].u.s, call->pos[0].n) : NULL;
    hd_j_call rest = *call;
    if (call->n) rest.pos++, rest.n--;
    if (!e && !given(path)) return hd_j_fail(c, "map requires a filter that is known, or attribute=");
    for (size_t i = 0; !c->rc && i < items.u.list->n; i++) {
        val x = items.u.list->items[i];
        x = e ? hd_j_apply(c, e, x, &rest) : hd_j_path(c, x, path);
        hd_j_push(c, out, x.kind == J_UNDEF && given(fallback) ? fallback : x);
    }
    return out;
}

/* select, reject, selectattr, rejectattr: `first` is where the test's name stands among the arguments. */
static val chosen(ctx *c, val v, const hd_j_call *call, size_t first, bool wanted) {
    val items = items_of(c, v), out = hd_j_list_new(c, 0, J_LIST);
    if (first && !call->n) return hd_j_fail(c, "an attribute's name expected");
    const hd_j_entry *test = NULL;
    hd_j_call rest = {.kw_names = call->kw_names, .kw_values = call->kw_values, .n_kw = call->n_kw};
    if (call->n > first) {
        val name = call->pos[first];
        test = name.kind == J_STR ? hd_j_find(hd_j_tests, name.u.s, name.n) : NULL;
        if (!test) return hd_j_fail(c, "No test named like this");
        rest.pos = call->pos + first + 1;
        rest.n = call->n - first - 1;
    }
    for (size_t i = 0; !c->rc && i < items.u.list->n; i++) {
        val x = items.u.list->items[i], key = first ? hd_j_path(c, x, call->pos[0]) : x;
        if (!c->rc && test) key = hd_j_apply(c, test, key, &rest);
        if (hd_j_charge(c, 1) && hd_j_truth(key) == wanted) hd_j_push(c, out, x);
    }
    return out;
}

static val f_select(ARGS) { UNUSED; return chosen(c, v, call, 0, true); }
static val f_reject(ARGS) { UNUSED; return chosen(c, v, call, 0, false); }
static val f_selectattr(ARGS) { UNUSED; return chosen(c, v, call, 1, true); }
static val f_rejectattr(ARGS) { UNUSED; return chosen(c, v, call, 1, false); }
static val f_safe(ARGS) { UNUSED; return hd_j_to_str(c, v); }

const hd_j_entry hd_j_filters[] = {
    {"abs", f_abs, 0, {0}},
    {"attr", f_attr, 1, {"name"}},
    {"capitalize", f_capitalize, 0, {0}},
    {"count", f_length, 0, {0}},
    {"d", f_default, 0, {"default_value", "boolean"}},
    {"default", f_default, 0, {"default_value", "boolean"}},
    {"dictsort", f_dictsort, 0, {"case_sensitive", "by", "reverse"}},
    {"e", f_escape, 0, {0}},
    {"escape", f_escape, 0, {0}},
    {"first", f_first, 0, {0}},
    {"float", f_float, 0, {"default"}},
    {"format", f_format, 0, {"*"}},
    {"indent", f_indent, 0, {"width", "first", "blank"}},
    {"int", f_int, 0, {"default", "base"}},
    {"items", f_items, 0, {0}},
    {"join", f_join, 0, {"d", "attribute"}},
    {"last", f_last, 0, {0}},
    {"length", f_length, 0, {0}},
    {"list", f_list, 0, {0}},
    {"lower", f_lower, 0, {0}},
    {"map", f_map, 0, {"*"}},
    {"max", f_max, 0, {"case_sensitive", "attribute"}},
    {"min", f_min, 0, {"case_sensitive", "attribute"}},
    {"reject", f_reject, 0, {"*"}},
    {"rejectattr", f_rejectattr, 0, {"*"}},
    {"replace", f_replace, 2, {"old", "new", "count"}},
    {"reverse", f_reverse, 0, {0}},
    {"round", f_round, 0, {"precision", "method"}},
    {"safe", f_safe, 0, {0}},
    {"select", f_select, 0, {"*"}},
    {"selectattr", f_selectattr, 0, {"*"}},
    {"sort", f_sort, 0, {"reverse", "case_sensitive", "attribute"}},
    {"string", f_string, 0, {0}},
    {"sum", f_sum, 0, {"attribute", "start"}},
    {"title", f_title, 0, {0}},
    {"tojson", f_tojson, 0, {"indent", "ensure_ascii", "separators", "sort_keys"}},
    {"trim", f_trim, 0, {"chars"}},
    {"unique", f_unique, 0, {"case_sensitive", "attribute"}},
    {"upper", f_upper, 0, {0}},
    {"wordcount", f_wordcount, 0, {0}},
    {0},
};

/* ---- tests ---- */

static val t_defined(ARGS) { UNUSED; return hd_j_bool(v.kind != J_UNDEF); }
static val t_undefined(ARGS) { UNUSED; return hd_j_bool(v.kind == J_UNDEF); }
static val t_none(ARGS) { UNUSED; return hd_j_bool(v.kind == J_NONE); }
static val t_string(ARGS) { UNUSED; return hd_j_bool(v.kind == J_STR); }
static val t_number(ARGS) { UNUSED; return hd_j_bool(hd_j_is_number(v)); }
static val t_integer(ARGS) { UNUSED; return hd_j_bool(v.kind == J_INT); }
static val t_float(ARGS) { UNUSED; return hd_j_bool(v.kind == J_FLOAT); }
static val t_boolean(ARGS) { UNUSED; return hd_j_bool(v.kind == J_BOOL); }
static val t_true(ARGS) { UNUSED; return hd_j_bool(v.kind == J_BOOL && v.u.i); }
static val t_false(ARGS) { UNUSED; return hd_j_bool(v.kind == J_BOOL && !v.u.i); }
static val t_mapping(ARGS) { UNUSED; return hd_j_bool(v.kind == J_DICT); }
static val t_sequence(ARGS) { UNUSED; return hd_j_bool(v.kind == J_UNDEF || hd_j_length(v) >= 0); }
static val t_iterable(ARGS) { UNUSED; return hd_j_bool(v.kind == J_UNDEF || v.kind == J_LOOP || hd_j_length(v) >= 0); }
static val t_callable(ARGS) { UNUSED; return hd_j_bool(v.kind == J_MACRO || v.kind == J_FUNCTION || v.kind == J_METHOD || v.kind == J_UNDEF); }
static val t_lower(ARGS) {
    UNUSED;
    v = hd_j_to_str(c, v);
    return hd_j_bool(!hd_j_equal(c, hd_j_recase(c, v, HD_J_UPPER), v) && hd_j_equal(c, hd_j_recase(c, v, HD_J_LOWER), v));
}
static val t_upper(ARGS) {
    UNUSED;
    v = hd_j_to_str(c, v);
    return hd_j_bool(!hd_j_equal(c, hd_j_recase(c, v, HD_J_LOWER), v) && hd_j_equal(c, hd_j_recase(c, v, HD_J_UPPER), v));
}
static val t_eq(ARGS) { UNUSED; return hd_j_bool(hd_j_equal(c, v, a[0])); }
static val t_ne(ARGS) { UNUSED; return hd_j_bool(!hd_j_equal(c, v, a[0])); }
static val t_lt(ARGS) { UNUSED; return hd_j_bool(hd_j_compare(c, v, a[0]) == -1); }
static val t_gt(ARGS) { UNUSED; return hd_j_bool(hd_j_compare(c, v, a[0]) == 1); }
static val t_le(ARGS) { UNUSED; int o = hd_j_compare(c, v, a[0]); return hd_j_bool(o == -1 || o == 0); }
static val t_ge(ARGS) { UNUSED; int o = hd_j_compare(c, v, a[0]); return hd_j_bool(o == 1 || o == 0); }
static val t_in(ARGS) { UNUSED; return hd_j_bool(hd_j_contains(c, a[0], v)); }

static val t_sameas(ARGS) {
    UNUSED;
    bool simple = v.kind == J_NONE || v.kind == J_BOOL || v.kind == J_INT;
    return hd_j_bool(v.kind == a[0].kind && (v.kind == J_NONE || (v.u.s == a[0].u.s && (simple || v.n == a[0].n))));
}

static val divides(ctx *c, val v, int64_t by, int64_t rest) {
    val m = hd_j_binary(c, '%', v, hd_j_int(by));
    return hd_j_bool(!c->rc && hd_j_equal(c, m, hd_j_int(rest)));
}

static val t_odd(ARGS) { UNUSED; return divides(c, v, 2, 1); }
static val t_even(ARGS) { UNUSED; return divides(c, v, 2, 0); }
static val t_divisibleby(ARGS) { UNUSED; return divides(c, v, whole(c, a[0], 1), 0); }
static val t_filter(ARGS) { UNUSED; return hd_j_bool(v.kind == J_STR && hd_j_find(hd_j_filters, v.u.s, v.n)); }
static val t_test(ARGS) { UNUSED; return hd_j_bool(v.kind == J_STR && hd_j_find(hd_j_tests, v.u.s, v.n)); }
static val t_escaped(ARGS) { UNUSED; return hd_j_bool(false); }

const hd_j_entry hd_j_tests[] = {
    {"boolean", t_boolean, 0, {0}},       {"callable", t_callable, 0, {0}},   {"defined", t_defined, 0, {0}},   {"divisibleby", t_divisibleby, 1, {"num"}},
    {"eq", t_eq, 1, {"b"}},               {"equalto", t_eq, 1, {"b"}},        {"escaped", t_escaped, 0, {0}},   {"even", t_even, 0, {0}},
    {"false", t_false, 0, {0}},           {"filter", t_filter, 0, {0}},       {"float", t_float, 0, {0}},       {"ge", t_ge, 1, {"b"}},
    {"greaterthan", t_gt, 1, {"b"}},      {"gt", t_gt, 1, {"b"}},             {"in", t_in, 1, {"seq"}},         {"integer", t_integer, 0, {0}},
    {"iterable", t_iterable, 0, {0}},     {"le", t_le, 1, {"b"}},             {"lessthan", t_lt, 1, {"b"}},     {"lower", t_lower, 0, {0}},
    {"lt", t_lt, 1, {"b"}},               {"mapping", t_mapping, 0, {0}},     {"ne", t_ne, 1, {"b"}},           {"none", t_none, 0, {0}},
    {"number", t_number, 0, {0}},         {"odd", t_odd, 0, {0}},             {"sameas", t_sameas, 1, {"other"}}, {"sequence", t_sequence, 0, {0}},
    {"string", t_string, 0, {0}},         {"test", t_test, 0, {0}},           {"true", t_true, 0, {0}},         {"undefined", t_undefined, 0, {0}},
    {"upper", t_upper, 0, {0}},           {0},
};
