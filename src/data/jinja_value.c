/* jinja_value.c: the interpreter's values, with Python's ideas of truth, equality, order and printing. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>
#include "data/jinja_int.h"
#include "data/unicode.h"

/* ---- lists and dicts ---- */

static void *grown(hd_j_ctx *c, const void *old, size_t n, size_t cap, size_t size) {
    void *p = hd_j_alloc(c, cap * size);
    if (p && n) memcpy(p, old, n * size);
    return p;
}

hd_j_val hd_j_list_new(hd_j_ctx *c, size_t cap, hd_j_kind kind) {
    hd_j_list *l = hd_j_alloc(c, sizeof *l);
    if (!l) return hd_j_undef("", 0);
    l->items = cap ? hd_j_alloc(c, cap * sizeof *l->items) : NULL;
    l->cap = l->items ? cap : 0;
    return (hd_j_val){.kind = (uint8_t)kind, .u.list = l};
}

void hd_j_push(hd_j_ctx *c, hd_j_val list, hd_j_val item) {
    if (c->rc) return;
    hd_j_list *l = list.u.list;
    if (l->n == l->cap) {
        size_t cap = l->cap ? l->cap * 2 : 4;
        hd_j_val *items = grown(c, l->items, l->n, cap, sizeof *items);
        if (!items) return;
        l->items = items;
        l->cap = cap;
    }
    l->items[l->n++] = item;
}

hd_j_val hd_j_pair(hd_j_ctx *c, hd_j_val a, hd_j_val b) {
    hd_j_val t = hd_j_list_new(c, 2, J_TUPLE);
    hd_j_push(c, t, a);
    hd_j_push(c, t, b);
    return t;
}

hd_j_val hd_j_dict_new(hd_j_ctx *c, hd_j_kind kind) {
    hd_j_dict *d = hd_j_alloc(c, sizeof *d);
    return d ? (hd_j_val){.kind = (uint8_t)kind, .u.dict = d} : hd_j_undef("", 0);
}

/* Place of a key, -1: none. */
static int64_t dict_find(hd_j_ctx *c, const hd_j_dict *d, hd_j_val key) {
    if (key.kind == J_LIST || key.kind == J_DICT) return hd_j_fail(c, "unhashable type: '%s'", hd_j_type_name(key)), -1;
    if (!hd_j_charge(c, d->n / 8)) return -1;
    for (size_t i = 0; i < d->n; i++) {
        const hd_j_val *k = &d->keys[i];
        if (k->kind == J_STR && key.kind == J_STR ? k->n == key.n && !memcmp(k->u.s, key.u.s, key.n) : hd_j_equal(c, *k, key)) return (int64_t)i;
    }
    return -1;
}

const hd_j_val *hd_j_get(hd_j_ctx *c, hd_j_val dict, hd_j_val key) {
    int64_t i = dict_find(c, dict.u.dict, key);
    return i < 0 ? NULL : &dict.u.dict->values[i];
}

/* Adds a key that isn't there yet. */
static void dict_add(hd_j_ctx *c, hd_j_dict *d, hd_j_val key, hd_j_val value) {
    if (d->n == d->cap) {
        size_t cap = d->cap ? d->cap * 2 : 4;
        hd_j_val *keys = grown(c, d->keys, d->n, cap, sizeof *keys), *values = grown(c, d->values, d->n, cap, sizeof *values);
        if (!keys || !values) return;
        d->keys = keys;
        d->values = values;
        d->cap = cap;
    }
    d->keys[d->n] = key;
    d->values[d->n++] = value;
}

void hd_j_put(hd_j_ctx *c, hd_j_val dict, hd_j_val key, hd_j_val value) {
    if (c->rc) return;
    int64_t i = dict_find(c, dict.u.dict, key);
    if (i >= 0) dict.u.dict->values[i] = value;
    else if (!c->rc) dict_add(c, dict.u.dict, key, value);
}

static hd_j_val from_object(hd_j_ctx *c, const json_t *j) {
    hd_j_val d = hd_j_dict_new(c, J_DICT);
    for (void *it = json_object_iter((json_t *)j); it && !c->rc; it = json_object_iter_next((json_t *)j, it)) {
        const char *key = json_object_iter_key(it);
        dict_add(c, d.u.dict, hd_j_str(key, strlen(key)), hd_j_from_json(c, json_object_iter_value(it)));
    }
    return d;
}

hd_j_val hd_j_from_json(hd_j_ctx *c, const json_t *j) {
    hd_j_val v = hd_j_none();
    if (!hd_j_charge(c, 1) || !hd_j_enter(c)) return v;
    switch (json_typeof(j)) {
    case JSON_TRUE:
    case JSON_FALSE: v = hd_j_bool(json_is_true(j)); break;
    case JSON_INTEGER: v = hd_j_int(json_integer_value(j)); break;
    case JSON_REAL: v = hd_j_float(json_real_value(j)); break;
    case JSON_STRING:
        if (json_string_length(j) > (size_t)c->limit.bytes)
            c->rc = hd_fail(c->err, HD_EMEMCAP, "%s: a string of more than %lld bytes", c->j->name, (long long)c->limit.bytes);
        else v = hd_j_str(json_string_value(j), json_string_length(j));
        break;
    case JSON_ARRAY:
        v = hd_j_list_new(c, json_array_size(j), J_LIST);
        for (size_t i = 0; i < json_array_size(j) && !c->rc; i++) hd_j_push(c, v, hd_j_from_json(c, json_array_get(j, i)));
        break;
    case JSON_OBJECT: v = from_object(c, j); break;
    default: break;
    }
    if (!c->rc) hd_j_leave(c);
    return v;
}

/* ---- truth, equality, order ---- */

int64_t hd_j_length(hd_j_val v) {
    switch (v.kind) {
    case J_UNDEF: return 0;
    case J_STR: return (int64_t)hd_j_chars(v.u.s, v.n);
    case J_LIST:
    case J_TUPLE: return (int64_t)v.u.list->n;
    case J_DICT: return (int64_t)v.u.dict->n;
    default: return -1;
    }
}

bool hd_j_truth(hd_j_val v) {
    switch (v.kind) {
    case J_UNDEF:
    case J_ABSENT:
    case J_NONE: return false;
    case J_BOOL:
    case J_INT: return v.u.i != 0;
    case J_FLOAT: return v.u.f != 0;
    case J_STR: return v.n > 0;
    case J_LIST:
    case J_TUPLE: return v.u.list->n > 0;
    case J_DICT: return v.u.dict->n > 0;
    default: return true;
    }
}

static bool equal_dicts(hd_j_ctx *c, const hd_j_dict *a, hd_j_val b) {
    if (a->n != b.u.dict->n) return false;
    for (size_t i = 0; i < a->n; i++) {
        const hd_j_val *other = hd_j_get(c, b, a->keys[i]);
        if (!other || !hd_j_equal(c, a->values[i], *other)) return false;
    }
    return true;
}

static bool equal_lists(hd_j_ctx *c, const hd_j_list *a, const hd_j_list *b) {
    if (a->n != b->n) return false;
    for (size_t i = 0; i < a->n; i++)
        if (!hd_j_equal(c, a->items[i], b->items[i])) return false;
    return true;
}

bool hd_j_equal(hd_j_ctx *c, hd_j_val a, hd_j_val b) {
    if (!hd_j_charge(c, 1)) return false;
    if (hd_j_is_number(a) && hd_j_is_number(b)) return a.kind == J_FLOAT || b.kind == J_FLOAT ? hd_j_number(a) == hd_j_number(b) : a.u.i == b.u.i;
    if (a.kind != b.kind) return false;
    if (a.kind == J_UNDEF || a.kind == J_NONE) return true;
    if (a.kind == J_STR) return a.n == b.n && hd_j_charge(c, a.n / 256) && !memcmp(a.u.s, b.u.s, a.n);
    if (!hd_j_is_seq(a) && a.kind != J_DICT) return a.u.s == b.u.s; /* one object */
    if (!hd_j_enter(c)) return false;
    bool same = a.kind == J_DICT ? equal_dicts(c, a.u.dict, b) : equal_lists(c, a.u.list, b.u.list);
    if (!c->rc) hd_j_leave(c);
    return same;
}

static int compare_lists(hd_j_ctx *c, const hd_j_list *a, const hd_j_list *b) {
    for (size_t i = 0; i < a->n && i < b->n && !c->rc; i++)
        if (!hd_j_equal(c, a->items[i], b->items[i])) return hd_j_compare(c, a->items[i], b->items[i]);
    return (a->n > b->n) - (a->n < b->n);
}

int hd_j_compare(hd_j_ctx *c, hd_j_val a, hd_j_val b) {
    if (!hd_j_charge(c, 1)) return 0;
    if (hd_j_is_number(a) && hd_j_is_number(b)) {
        if (a.kind != J_FLOAT && b.kind != J_FLOAT) return (a.u.i > b.u.i) - (a.u.i < b.u.i);
        double x = hd_j_number(a), y = hd_j_number(b);
        return x != x || y != y ? 2 : (x > y) - (x < y);
    }
    if (a.kind == J_STR && b.kind == J_STR) {
        size_t n = a.n < b.n ? a.n : b.n;
        int order = memcmp(a.u.s, b.u.s, n); /* UTF-8 orders as code points do */
        return order ? (order > 0) - (order < 0) : (a.n > b.n) - (a.n < b.n);
    }
    if (a.kind == b.kind && hd_j_is_seq(a)) {
        if (!hd_j_enter(c)) return 0;
        int order = compare_lists(c, a.u.list, b.u.list);
        if (!c->rc) hd_j_leave(c);
        return order;
    }
    if (a.kind == J_UNDEF || b.kind == J_UNDEF) {
        hd_j_val u = a.kind == J_UNDEF ? a : b;
        hd_j_fail(c, "'%.*s' is undefined", (int)u.n, u.u.s);
    } else {
        hd_j_fail(c, "'%s' and '%s' cannot be ordered", hd_j_type_name(a), hd_j_type_name(b));
    }
    return 0;
}

bool hd_j_contains(hd_j_ctx *c, hd_j_val all, hd_j_val one) {
    if (all.kind == J_STR) {
        if (one.kind == J_STR) return hd_j_charge(c, all.n / 64) && hd_j_find_text(all, one, 0, false).u.i >= 0;
        hd_j_fail(c, "'in <string>' requires string as left operand, not %s", hd_j_type_name(one));
    } else if (hd_j_is_seq(all)) {
        for (size_t i = 0; i < all.u.list->n && !c->rc; i++)
            if (hd_j_equal(c, all.u.list->items[i], one)) return true;
    } else if (all.kind == J_DICT) {
        return hd_j_get(c, all, one) != NULL;
    } else if (all.kind != J_UNDEF) {
        hd_j_fail(c, "argument of type '%s' is not iterable", hd_j_type_name(all));
    }
    return false;
}

const char *hd_j_type_name(hd_j_val v) {
    static const char *const names[] = {"Undefined", "NoneType",  "bool",  "int",      "float",  "str",         "list",  "tuple",
                                        "dict",      "Namespace", "Macro", "function", "method", "LoopContext", "absent"};
    return names[v.kind];
}

hd_j_val hd_j_iterate(hd_j_ctx *c, hd_j_val v) {
    if (hd_j_is_seq(v)) return v;
    if (v.kind != J_UNDEF && v.kind != J_STR && v.kind != J_DICT) return hd_j_fail(c, "'%s' object is not iterable", hd_j_type_name(v));
    hd_j_val list = hd_j_list_new(c, v.kind == J_DICT ? v.u.dict->n : 0, J_LIST);
    if (v.kind == J_DICT)
        for (size_t i = 0; i < v.u.dict->n && !c->rc; i++) hd_j_push(c, list, v.u.dict->keys[i]);
    if (v.kind != J_STR) return list;
    if (!hd_j_charge(c, v.n)) return list;
    for (size_t i = 0; i < v.n && !c->rc;) {
        int length;
        hd_utf8_get((const unsigned char *)v.u.s + i, &length);
        hd_j_push(c, list, hd_j_str(v.u.s + i, (size_t)length));
        i += (size_t)length;
    }
    return list;
}

/* ---- printing ---- */

/* Digits and decimal exponent of the shortest text that reads back as v. */
static int shortest(double v, char digits[20]) {
    char text[40];
    for (int precision = 0; precision < 17; precision++) {
        snprintf(text, sizeof text, "%.*e", precision, v);
        if (strtod(text, NULL) == v) break;
    }
    size_t n = 0;
    for (const char *p = text; *p != 'e'; p++)
        if (*p >= '0' && *p <= '9') digits[n++] = *p;
    while (n > 1 && digits[n - 1] == '0') n--;
    digits[n] = 0;
    return atoi(strchr(text, 'e') + 1);
}

void hd_j_float_text(char out[40], double v) {
    char digits[20];
    if (v != v || isinf(v)) {
        snprintf(out, 40, "%s", v != v ? "nan" : v > 0 ? "inf" : "-inf");
        return;
    }
    int exponent = shortest(fabs(v), digits), n = (int)strlen(digits);
    const char *sign = signbit(v) ? "-" : "";
    if (exponent < -4 || exponent >= 16)
        snprintf(out, 40, "%s%c%s%se%c%02d", sign, digits[0], n > 1 ? "." : "", digits + 1, exponent < 0 ? '-' : '+', abs(exponent));
    else if (exponent < 0) snprintf(out, 40, "%s0.%.*s%s", sign, -exponent - 1, "0000", digits);
    else if (n <= exponent + 1) snprintf(out, 40, "%s%s%.*s.0", sign, digits, exponent + 1 - n, "0000000000000000");
    else snprintf(out, 40, "%s%.*s.%s", sign, exponent + 1, digits, digits + exponent + 1);
}

static bool printable(uint32_t cp) {
    static const bool no[] = {[UTF8PROC_CATEGORY_CN] = true, [UTF8PROC_CATEGORY_CC] = true, [UTF8PROC_CATEGORY_CF] = true, [UTF8PROC_CATEGORY_CS] = true,
                              [UTF8PROC_CATEGORY_CO] = true, [UTF8PROC_CATEGORY_ZL] = true, [UTF8PROC_CATEGORY_ZP] = true, [UTF8PROC_CATEGORY_ZS] = true};
    unsigned category = (unsigned)utf8proc_category((utf8proc_int32_t)cp);
    return cp == ' ' || !(category < sizeof no && no[category]);
}

static void write_quoted(hd_str *out, hd_j_val v) {
    static const char special[] = "\\\n\r\t", letter[] = "\\nrt";
    bool single = memchr(v.u.s, '\'', v.n), both = single && memchr(v.u.s, '"', v.n);
    char quote = single && !both ? '"' : '\'';
    hd_str_putc(out, quote);
    for (size_t i = 0; i < v.n;) {
        int length;
        uint32_t cp = hd_utf8_get((const unsigned char *)v.u.s + i, &length);
        const char *known = cp && cp < 0x80 ? strchr(special, (int)cp) : NULL;
        if (known) hd_str_add(out, (char[]){'\\', letter[known - special]}, 2);
        else if (cp == (uint32_t)quote) hd_str_printf(out, "\\%c", quote);
        else if (printable(cp)) hd_str_add(out, v.u.s + i, (size_t)length);
        else hd_str_printf(out, cp < 0x100 ? "\\x%02x" : cp < 0x10000 ? "\\u%04x" : "\\U%08x", cp);
        i += (size_t)length;
    }
    hd_str_putc(out, quote);
}

static void write_list(hd_j_ctx *c, hd_str *out, hd_j_val v) {
    const hd_j_list *l = v.u.list;
    hd_str_putc(out, v.kind == J_LIST ? '[' : '(');
    for (size_t i = 0; i < l->n && !c->rc; i++) {
        if (i) hd_str_puts(out, ", ");
        hd_j_write(c, out, l->items[i], true);
    }
    hd_str_puts(out, v.kind == J_LIST ? "]" : l->n == 1 ? ",)" : ")");
}

static void write_dict(hd_j_ctx *c, hd_str *out, const hd_j_dict *d) {
    hd_str_putc(out, '{');
    for (size_t i = 0; i < d->n && !c->rc; i++) {
        if (i) hd_str_puts(out, ", ");
        hd_j_write(c, out, d->keys[i], true);
        hd_str_puts(out, ": ");
        hd_j_write(c, out, d->values[i], true);
    }
    hd_str_putc(out, '}');
}

/* Whether out has grown beyond what a string may be. */
static bool too_long(hd_j_ctx *c, const hd_str *out) {
    if (!c->rc && out->failed) c->rc = hd_fail_memory(c->err, out->len, "a rendered template");
    if (!c->rc && (out == c->out ? out->len - c->base : out->len) > (size_t)c->limit.bytes)
        c->rc = hd_fail(c->err, HD_EMEMCAP, "%s: a text of more than %lld bytes", c->j->name, (long long)c->limit.bytes);
    return c->rc != 0;
}

static void write_nested(hd_j_ctx *c, hd_str *out, hd_j_val v) {
    if (!hd_j_enter(c)) return;
    if (v.kind == J_NAMESPACE) hd_str_puts(out, "<Namespace ");
    if (hd_j_is_seq(v)) write_list(c, out, v);
    else write_dict(c, out, v.u.dict);
    if (v.kind == J_NAMESPACE) hd_str_putc(out, '>');
    if (!c->rc) hd_j_leave(c);
}

void hd_j_write(hd_j_ctx *c, hd_str *out, hd_j_val v, bool repr) {
    char number[40];
    if (!hd_j_charge(c, 1 + (v.kind == J_STR ? v.n / 64 : 0))) return;
    switch (v.kind) {
    case J_UNDEF: hd_str_puts(out, repr ? "Undefined" : ""); break;
    case J_NONE: hd_str_puts(out, "None"); break;
    case J_BOOL: hd_str_puts(out, v.u.i ? "True" : "False"); break;
    case J_INT: hd_str_printf(out, "%lld", (long long)v.u.i); break;
    case J_FLOAT:
        hd_j_float_text(number, v.u.f);
        hd_str_puts(out, number);
        break;
    case J_STR:
        if (repr) write_quoted(out, v);
        else hd_str_add(out, v.u.s, v.n);
        break;
    case J_LIST:
    case J_TUPLE:
    case J_DICT:
    case J_NAMESPACE: write_nested(c, out, v); break;
    default: hd_str_printf(out, "<%s>", hd_j_type_name(v));
    }
    too_long(c, out);
}

hd_j_val hd_j_take(hd_j_ctx *c, hd_str *s) {
    hd_j_val v = hd_j_str("", 0);
    char *copy = too_long(c, s) ? NULL : hd_j_text(c, s->len);
    if (copy) {
        memcpy(copy, s->data, s->len);
        v = hd_j_str(copy, s->len);
    }
    hd_str_free(s);
    return v;
}

hd_j_val hd_j_to_str(hd_j_ctx *c, hd_j_val v) {
    if (v.kind == J_STR) return v;
    hd_str s;
    hd_str_init(&s);
    hd_j_write(c, &s, v, false);
    return hd_j_take(c, &s);
}

/* ---- JSON, as json.dumps writes it ---- */

/* A character beyond ASCII as \uhhhh, or two of them. */
static size_t write_escaped(hd_str *out, const char *s) {
    int length;
    uint32_t cp = hd_utf8_get((const unsigned char *)s, &length);
    if (cp < 0x10000) hd_str_printf(out, "\\u%04x", cp);
    else hd_str_printf(out, "\\u%04x\\u%04x", 0xd800 + ((cp - 0x10000) >> 10), 0xdc00 + (cp & 0x3ff));
    return (size_t)length;
}

static void write_json_string(hd_str *out, hd_j_val v, bool ascii) {
    static const char special[] = "\"\\\n\r\t\b\f", letter[] = "\"\\nrtbf";
    hd_str_putc(out, '"');
    size_t done = 0;
    for (size_t i = 0; i < v.n; i++) {
        unsigned char b = (unsigned char)v.u.s[i];
        if (b >= 0x20 && b != '"' && b != '\\' && !(ascii && b >= 0x80)) continue;
        hd_str_add(out, v.u.s + done, i - done);
        if (b >= 0x80) {
            i += write_escaped(out, v.u.s + i) - 1;
            done = i + 1;
            continue;
        }
        const char *known = b ? strchr(special, b) : NULL;
        if (known) hd_str_add(out, (char[]){'\\', letter[known - special]}, 2);
        else hd_str_printf(out, "\\u%04x", b);
        done = i + 1;
    }
    hd_str_add(out, v.u.s + done, v.n - done);
    hd_str_putc(out, '"');
}

static void write_break(hd_str *out, int indent, int level) {
    if (indent < 0) return;
    hd_str_putc(out, '\n');
    for (int i = 0; i < indent * level; i++) hd_str_putc(out, ' ');
}

static void write_json_number(hd_str *out, double f) {
    char text[40];
    hd_j_float_text(text, f);
    hd_str_puts(out, f != f ? "NaN" : isinf(f) ? (f > 0 ? "Infinity" : "-Infinity") : text);
}

static void write_json_key(hd_j_ctx *c, hd_str *out, hd_j_val key, const hd_j_json *how) {
    bool text = key.kind == J_STR;
    if (!text && key.kind != J_NONE && !hd_j_is_number(key)) {
        hd_j_fail(c, "keys must be str, int, float, bool or None, not %s", hd_j_type_name(key));
        return;
    }
    if (!text) hd_str_putc(out, '"');
    hd_j_write_json(c, out, key, how, 0);
    if (!text) hd_str_putc(out, '"');
}

/* The places of a dict's keys in their order, for sort_keys. */
static size_t *sorted_keys(hd_j_ctx *c, const hd_j_dict *d) {
    size_t *order = hd_j_alloc(c, d->n * sizeof *order + 1);
    for (size_t i = 0; order && i < d->n; i++) {
        size_t at = i;
        for (; at && hd_j_compare(c, d->keys[i], d->keys[order[at - 1]]) < 0; at--) order[at] = order[at - 1];
        order[at] = i;
    }
    return order;
}

static void write_json_dict(hd_j_ctx *c, hd_str *out, const hd_j_dict *d, const hd_j_json *how, int level) {
    size_t *order = how->sort ? sorted_keys(c, d) : NULL;
    hd_str_putc(out, '{');
    for (size_t i = 0; i < d->n && !c->rc; i++) {
        size_t at = order ? order[i] : i;
        if (i) hd_str_add(out, how->comma.u.s, how->comma.n);
        write_break(out, how->indent, level + 1);
        write_json_key(c, out, d->keys[at], how);
        hd_str_add(out, how->colon.u.s, how->colon.n);
        hd_j_write_json(c, out, d->values[at], how, level + 1);
    }
    if (d->n) write_break(out, how->indent, level);
    hd_str_putc(out, '}');
}

static void write_json_list(hd_j_ctx *c, hd_str *out, const hd_j_list *l, const hd_j_json *how, int level) {
    hd_str_putc(out, '[');
    for (size_t i = 0; i < l->n && !c->rc; i++) {
        if (i) hd_str_add(out, how->comma.u.s, how->comma.n);
        write_break(out, how->indent, level + 1);
        hd_j_write_json(c, out, l->items[i], how, level + 1);
    }
    if (l->n) write_break(out, how->indent, level);
    hd_str_putc(out, ']');
}

void hd_j_write_json(hd_j_ctx *c, hd_str *out, hd_j_val v, const hd_j_json *how, int level) {
    if (!hd_j_charge(c, 1 + (v.kind == J_STR ? v.n / 16 : 0)) || !hd_j_enter(c)) return;
    switch (v.kind) {
    case J_NONE: hd_str_puts(out, "null"); break;
    case J_BOOL: hd_str_puts(out, v.u.i ? "true" : "false"); break;
    case J_INT: hd_str_printf(out, "%lld", (long long)v.u.i); break;
    case J_FLOAT: write_json_number(out, v.u.f); break;
    case J_STR: write_json_string(out, v, how->ascii); break;
    case J_LIST:
    case J_TUPLE: write_json_list(c, out, v.u.list, how, level); break;
    case J_DICT: write_json_dict(c, out, v.u.dict, how, level); break;
    default: hd_j_fail(c, "Object of type %s is not JSON serializable", hd_j_type_name(v));
    }
    if (!too_long(c, out)) hd_j_leave(c);
}
