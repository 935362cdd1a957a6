/* jinja_access.c: attributes, items, slices, and operators between two values. */
#include <math.h>
#include <string.h>
#include "data/jinja_int.h"
#include "data/unicode.h"

static bool named(hd_j_val name, const char *text) { return name.n == strlen(text) && !memcmp(name.u.s, text, name.n); }

/* ---- attributes ---- */

static hd_j_val method(hd_j_ctx *c, hd_j_val self, const hd_j_entry *table, hd_j_val name) {
    const hd_j_entry *e = hd_j_find(table, name.u.s, name.n);
    hd_j_method *m = e ? hd_j_alloc(c, sizeof *m) : NULL;
    if (!m) return hd_j_undef(name.u.s, name.n);
    *m = (hd_j_method){self, e};
    return (hd_j_val){.kind = J_METHOD, .u.method = m};
}

static hd_j_val loop_attr(hd_j_ctx *c, hd_j_val v, hd_j_val name) {
    const hd_j_loop *l = v.u.loop;
    int64_t at = (int64_t)l->at, n = (int64_t)l->items->n;
    const struct { const char *name; hd_j_val value; } known[] = {
        {"index", hd_j_int(at + 1)},
        {"index0", hd_j_int(at)},
        {"first", hd_j_bool(at == 0)},
        {"last", hd_j_bool(at == n - 1)},
        {"length", hd_j_int(n)},
        {"revindex", hd_j_int(n - at)},
        {"revindex0", hd_j_int(n - at - 1)},
        {"depth", hd_j_int(1)},
        {"depth0", hd_j_int(0)},
        {"previtem", at ? l->items->items[at - 1] : hd_j_undef(name.u.s, name.n)},
        {"nextitem", at + 1 < n ? l->items->items[at + 1] : hd_j_undef(name.u.s, name.n)}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (named(name, known[i].name)) return known[i].value;
    return method(c, v, hd_j_loop_methods, name);
}

/* What Python's dicts have as attributes beside their methods here, and the sandbox refuses. */
static bool refused(hd_j_val name) {
    static const char *const names[] = {"clear", "fromkeys", "pop", "popitem", "setdefault", "update"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (named(name, names[i])) return true;
    return false;
}

static hd_j_val get_or_undef(hd_j_ctx *c, hd_j_val v, hd_j_val key) {
    const hd_j_val *found = hd_j_get(c, v, key);
    return found ? *found : hd_j_undef(key.kind == J_STR ? key.u.s : "item", key.kind == J_STR ? key.n : 4);
}

static hd_j_val no_undef(hd_j_ctx *c, hd_j_val v) { return hd_j_fail(c, "'%.*s' is undefined", (int)(v.n < 80 ? v.n : 80), v.u.s); }

hd_j_val hd_j_attr(hd_j_ctx *c, hd_j_val v, hd_j_val name) {
    switch (v.kind) {
    case J_UNDEF: return no_undef(c, v);
    case J_NAMESPACE: return get_or_undef(c, v, name);
    case J_LOOP: return loop_attr(c, v, name);
    case J_STR: return method(c, v, hd_j_str_methods, name);
    case J_LIST:
    case J_TUPLE: return method(c, v, hd_j_list_methods, name);
    case J_DICT: {
        if (refused(name)) return hd_j_undef(name.u.s, name.n);
        hd_j_val m = method(c, v, hd_j_dict_methods, name);
        return m.kind == J_METHOD || c->rc ? m : get_or_undef(c, v, name);
    }
    default: return hd_j_undef(name.u.s, name.n);
    }
}

/* ---- items ---- */

static hd_j_val char_at(hd_j_ctx *c, hd_j_val s, int64_t i) {
    hd_j_charge(c, s.n / 64);
    int64_t n = (int64_t)hd_j_chars(s.u.s, s.n);
    if (i < 0) i += n;
    if (i < 0 || i >= n) return hd_j_undef("item", 4);
    size_t at = hd_j_char_at(s.u.s, s.n, (size_t)i);
    return hd_j_str(s.u.s + at, hd_j_char_at(s.u.s + at, s.n - at, 1));
}

hd_j_val hd_j_item(hd_j_ctx *c, hd_j_val v, hd_j_val key) {
    if (v.kind == J_UNDEF) return no_undef(c, v);
    if (v.kind == J_DICT) {
        bool hashable = key.kind != J_LIST && key.kind != J_DICT;
        const hd_j_val *found = hashable ? hd_j_get(c, v, key) : NULL;
        if (found || c->rc) return found ? *found : key;
    } else if (hd_j_is_int(key) && hd_j_is_seq(v)) {
        const hd_j_list *l = v.u.list;
        int64_t i = key.u.i < 0 ? key.u.i + (int64_t)l->n : key.u.i;
        return i < 0 || i >= (int64_t)l->n ? hd_j_undef("item", 4) : l->items[i];
    } else if (hd_j_is_int(key) && v.kind == J_STR) {
        return char_at(c, v, key.u.i);
    }
    return key.kind == J_STR ? hd_j_attr(c, v, key) : hd_j_undef("item", 4);
}

hd_j_val hd_j_path(hd_j_ctx *c, hd_j_val v, hd_j_val path) {
    if (path.kind != J_STR) return hd_j_item(c, v, path);
    for (size_t at = 0; at <= path.n && !c->rc;) {
        const char *dot = memchr(path.u.s + at, '.', path.n - at);
        size_t end = dot ? (size_t)(dot - path.u.s) : path.n;
        hd_j_val part = hd_j_str(path.u.s + at, end - at);
        int64_t number = 0;
        bool digits = part.n > 0 && part.n < 10;
        for (size_t i = 0; i < part.n && digits; i++) {
            digits = part.u.s[i] >= '0' && part.u.s[i] <= '9';
            number = number * 10 + part.u.s[i] - '0';
        }
        v = hd_j_item(c, v, digits ? hd_j_int(number) : part);
        at = end + 1;
    }
    return v;
}

/* ---- slices ---- */

/* Bounds of a slice over n items, as slice.indices() has them. */
static bool slice_bounds(hd_j_ctx *c, hd_j_val from, hd_j_val to, hd_j_val step, int64_t n, int64_t out[3]) {
    const hd_j_val parts[3] = {from, to, step};
    for (int i = 0; i < 3; i++)
        if (parts[i].kind != J_NONE && !hd_j_is_int(parts[i])) return hd_j_fail(c, "slice indices must be integers or None"), false;
    out[2] = step.kind == J_NONE ? 1 : step.u.i;
    if (!out[2]) return hd_j_fail(c, "slice step cannot be zero"), false;
    int64_t low = out[2] < 0 ? -1 : 0, high = out[2] < 0 ? n - 1 : n;
    for (int i = 0; i < 2; i++) {
        if (parts[i].kind == J_NONE) {
            out[i] = (i == 0) == (out[2] > 0) ? low : high;
            continue;
        }
        int64_t x = parts[i].u.i < 0 ? (parts[i].u.i < -n ? low : parts[i].u.i + n) : parts[i].u.i;
        out[i] = x < low ? low : x > high ? high : x;
    }
    if (out[2] > n) out[2] = n + 1; /* no further than that matters */
    if (out[2] < -n) out[2] = -n - 1;
    return true;
}

static hd_j_val slice_text(hd_j_ctx *c, hd_j_val s, const int64_t b[3]) {
    if (!hd_j_charge(c, s.n / 16)) return s;
    if (b[2] == 1) {
        size_t begin = hd_j_char_at(s.u.s, s.n, (size_t)b[0]), n = b[1] > b[0] ? hd_j_char_at(s.u.s + begin, s.n - begin, (size_t)(b[1] - b[0])) : 0;
        return hd_j_str(s.u.s + begin, n);
    }
    hd_j_val chars = hd_j_iterate(c, s);
    hd_str out;
    hd_str_init(&out);
    for (int64_t i = b[0]; !c->rc && (b[2] > 0 ? i < b[1] : i > b[1]); i += b[2]) hd_str_add(&out, chars.u.list->items[i].u.s, chars.u.list->items[i].n);
    return hd_j_take(c, &out);
}

hd_j_val hd_j_slice(hd_j_ctx *c, hd_j_val v, hd_j_val from, hd_j_val to, hd_j_val step) {
    int64_t b[3];
    if (v.kind == J_UNDEF) return no_undef(c, v);
    if (v.kind != J_STR && !hd_j_is_seq(v)) return hd_j_fail(c, "'%s' object cannot be sliced", hd_j_type_name(v));
    if (!slice_bounds(c, from, to, step, hd_j_length(v), b)) return v;
    if (v.kind == J_STR) return slice_text(c, v, b);
    hd_j_val out = hd_j_list_new(c, 0, (hd_j_kind)v.kind);
    for (int64_t i = b[0]; (b[2] > 0 ? i < b[1] : i > b[1]) && hd_j_charge(c, 1); i += b[2]) hd_j_push(c, out, v.u.list->items[i]);
    return out;
}

/* ---- operators ---- */

static hd_j_val wrong_types(hd_j_ctx *c, uint16_t op, hd_j_val a, hd_j_val b) {
    const hd_j_val *u = a.kind == J_UNDEF ? &a : b.kind == J_UNDEF ? &b : NULL;
    char text[3] = {(char)(op & 0xff), (char)(op >> 8), 0};
    if (u) return no_undef(c, *u);
    return hd_j_fail(c, "unsupported operand type(s) for %s: '%s' and '%s'", text, hd_j_type_name(a), hd_j_type_name(b));
}

static hd_j_val join(hd_j_ctx *c, hd_j_val a, hd_j_val b) {
    if (a.kind == J_STR) {
        char *text = hd_j_text(c, (size_t)a.n + b.n);
        if (!text) return a;
        memcpy(text, a.u.s, a.n);
        memcpy(text + a.n, b.u.s, b.n);
        return hd_j_str(text, (size_t)a.n + b.n);
    }
    hd_j_val out = hd_j_list_new(c, a.u.list->n + b.u.list->n, (hd_j_kind)a.kind);
    for (size_t i = 0; i < a.u.list->n && hd_j_charge(c, 1); i++) hd_j_push(c, out, a.u.list->items[i]);
    for (size_t i = 0; i < b.u.list->n && hd_j_charge(c, 1); i++) hd_j_push(c, out, b.u.list->items[i]);
    return out;
}

static hd_j_val repeat(hd_j_ctx *c, hd_j_val a, int64_t times) {
    if (times < 0) times = 0;
    size_t n = a.kind == J_STR ? a.n : a.u.list->n;
    if (n && (uint64_t)times > (uint64_t)c->limit.bytes / n) {
        c->rc = hd_fail(c->err, HD_EMEMCAP, "%s: line %u: a value of more than %lld bytes", c->j->name, c->at ? c->at->line : 0, (long long)c->limit.bytes);
        return a;
    }
    if (!n) times = 0;
    if (a.kind == J_STR) {
        char *text = hd_j_text(c, n * (size_t)times);
        for (int64_t i = 0; text && i < times && hd_j_charge(c, 1 + n / 64); i++) memcpy(text + (size_t)i * n, a.u.s, n);
        return text ? hd_j_str(text, n * (size_t)times) : a;
    }
    hd_j_val out = hd_j_list_new(c, 0, (hd_j_kind)a.kind);
    for (int64_t i = 0; i < times * (int64_t)n && hd_j_charge(c, 1); i++) hd_j_push(c, out, a.u.list->items[(size_t)i % n]);
    return out;
}

static int64_t floor_div(int64_t a, int64_t b) {
    int64_t q = a / b;
    return a % b && (a < 0) != (b < 0) ? q - 1 : q;
}

static hd_j_val power(hd_j_ctx *c, int64_t base, int64_t exponent) {
    int64_t out = 1;
    if (exponent < 0) return base ? hd_j_float(pow((double)base, (double)exponent)) : hd_j_fail(c, "0.0 cannot be raised to a negative power");
    while (exponent) {
        if (exponent & 1 && __builtin_mul_overflow(out, base, &out)) return hd_j_fail(c, "an integer of more than 64 bits");
        exponent >>= 1;
        if (exponent && __builtin_mul_overflow(base, base, &base)) return hd_j_fail(c, "an integer of more than 64 bits");
    }
    return hd_j_int(out);
}

static hd_j_val integers(hd_j_ctx *c, uint16_t op, int64_t a, int64_t b) {
    int64_t out = 0;
    bool over = false;
    if ((op == '/' || op == '%' || op == HD_J_OP('/', '/')) && !b) return hd_j_fail(c, "division by zero");
    if ((op == '%' || op == HD_J_OP('/', '/')) && b == -1)
        return op == '%' ? hd_j_int(0) : a == INT64_MIN ? hd_j_fail(c, "an integer of more than 64 bits") : hd_j_int(-a);
    switch (op) {
    case '+': over = __builtin_add_overflow(a, b, &out); break;
    case '-': over = __builtin_sub_overflow(a, b, &out); break;
    case '*': over = __builtin_mul_overflow(a, b, &out); break;
    case '/': return hd_j_float((double)a / (double)b);
    case '%': out = a - floor_div(a, b) * b; break;
    case HD_J_OP('/', '/'): out = floor_div(a, b); break;
    default: return power(c, a, b);
    }
    return over ? hd_j_fail(c, "an integer of more than 64 bits") : hd_j_int(out);
}

static hd_j_val reals(hd_j_ctx *c, uint16_t op, double a, double b) {
    if ((op == '/' || op == '%' || op == HD_J_OP('/', '/')) && b == 0) return hd_j_fail(c, "float division by zero");
    double m = op == '%' || op == HD_J_OP('/', '/') ? fmod(a, b) : 0;
    if (m != 0 && (m < 0) != (b < 0)) m += b;
    switch (op) {
    case '+': return hd_j_float(a + b);
    case '-': return hd_j_float(a - b);
    case '*': return hd_j_float(a * b);
    case '/': return hd_j_float(a / b);
    case '%': return hd_j_float(m == 0 ? copysign(0, b) : m);
    case HD_J_OP('/', '/'): return hd_j_float(rint((a - m) / b));
    default:
        if ((a == 0 && b < 0) || (a < 0 && b != floor(b))) return hd_j_fail(c, "a power that is no real number");
        return hd_j_float(pow(a, b));
    }
}

hd_j_val hd_j_binary(hd_j_ctx *c, uint16_t op, hd_j_val a, hd_j_val b) {
    if (op == '%' && a.kind == J_STR)
        return hd_j_percent(c, a, b.kind == J_TUPLE ? b.u.list->items : &b, b.kind == J_TUPLE ? b.u.list->n : 1,
                            b.kind == J_LIST || b.kind == J_DICT || b.kind == J_UNDEF);
    if (hd_j_is_int(a) && hd_j_is_int(b)) return integers(c, op, a.u.i, b.u.i);
    if (hd_j_is_number(a) && hd_j_is_number(b)) return reals(c, op, hd_j_number(a), hd_j_number(b));
    if (op == '+' && a.kind == b.kind && (a.kind == J_STR || hd_j_is_seq(a))) return join(c, a, b);
    if (op == '*' && (a.kind == J_STR || hd_j_is_seq(a)) && hd_j_is_int(b)) return repeat(c, a, b.u.i);
    if (op == '*' && (b.kind == J_STR || hd_j_is_seq(b)) && hd_j_is_int(a)) return repeat(c, b, a.u.i);
    return wrong_types(c, op, a, b);
}
