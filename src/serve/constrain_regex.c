#include <ctype.h>
#include <string.h>
#include "data/unicode.h"
#include "serve/constrain_int.h"

enum { MOST_TIMES = 1000000, MOST_RANGES = 100000 };

typedef struct parser {
    hd_rules *g;
    hd_regex_dialect d;
    const unsigned char *text;
    size_t at, n;
    int depth;
    bool at_start; /* nothing but anchors was read on the way here */
    bool ended;    /* a $ was read: nothing may follow */
    bool opened;   /* a ^ was read in this branch */
} parser;

typedef struct class_ranges { hd_chars *c; size_t n, cap; } class_ranges;

/* ---- messages ---- */

static hd_expr *refuse(parser *p, size_t at, int code, const char *what)
{
    hd_fail(p->g->err, code, "regular expression, byte %zu: %s%s", at + 1, what, code == HD_EUNSUPPORTED ? " isn't supported" : "");
    return NULL;
}

static bool more(const parser *p) { return p->at < p->n; }
static int peek(const parser *p, size_t ahead) { return p->at + ahead < p->n ? p->text[p->at + ahead] : -1; }
static bool take(parser *p, const char *text)
{
    size_t n = strlen(text);
    if (p->n - p->at < n || memcmp(p->text + p->at, text, n)) return false;
    p->at += n;
    return true;
}

static uint32_t take_code_point(parser *p)
{
    int length;
    uint32_t c = hd_utf8_get(p->text + p->at, &length);
    p->at += (size_t)length;
    return c;
}

/* ---- classes ---- */

static int add_range(parser *p, class_ranges *r, uint32_t first, uint32_t last)
{
    if (r->n > MOST_RANGES) return hd_fail(p->g->err, HD_EMEMCAP, "a class of more than %d ranges of characters", MOST_RANGES);
    if (hd_grow(&r->c, &r->cap, r->n + 3, sizeof *r->c)) return hd_fail_memory(p->g->err, r->n * sizeof *r->c, "a class of characters");
    r->c[r->n++] = (hd_chars){first, last};
    return 0;
}

static int add_ranges(parser *p, class_ranges *r, const hd_chars *c, int n, bool negate)
{
    hd_chars small[8], *other = small;
    int rc = 0;
    if (n > 5 && !(other = hd_malloc(((size_t)n + 3) * sizeof *other))) return hd_fail_memory(p->g->err, (size_t)n * sizeof *other, "a class of characters");
    if (negate) n = hd_chars_negate(c, n, other);
    else memcpy(other, c, (size_t)n * sizeof *c);
    for (int i = 0; i < n && !rc; i++) rc = add_range(p, r, other[i].first, other[i].last);
    if (other != small) hd_free(other);
    return rc;
}

static const hd_chars digits[] = {{'0', '9'}}, word[] = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}}, space[] = {{'\t', '\r'}, {' ', ' '}};
/* What ECMAScript takes for white space: left out of \S, so that it is right in either reading. */
static const hd_chars wide_space[] = {{'\t', '\r'}, {' ', ' '}, {0xa0, 0xa0}, {0x1680, 0x1680}, {0x2000, 0x200a}, {0x2028, 0x2029}, {0x202f, 0x202f},
                                      {0x205f, 0x205f}, {0x3000, 0x3000}, {0xfeff, 0xfeff}};

/* \d, \w, \s and their opposites. 0 when c is none of them, 1 when it is, negative on failure. */
static int add_named(parser *p, class_ranges *r, int c)
{
    int rc;
    switch (c) {
    case 'd': case 'D': rc = add_ranges(p, r, digits, 1, c == 'D'); break;
    case 'w': case 'W': rc = add_ranges(p, r, word, 4, c == 'W'); break;
    case 's': rc = add_ranges(p, r, space, 2, false); break;
    case 'S': rc = p->d.ecma ? add_ranges(p, r, wide_space, 10, true) : add_ranges(p, r, space, 2, true); break;
    default: return 0;
    }
    return rc ? rc : 1;
}

/* \p{L}, \p{N}, \pL, ...; p->at stands behind the p. */
static int add_property(parser *p, class_ranges *r, bool negate)
{
    static const struct { const char *name; const hd_unicode_range *ranges; const int *count; } known[] = {
        {"{L}", hd_unicode_letters, &hd_unicode_letters_count}, {"L", hd_unicode_letters, &hd_unicode_letters_count},
        {"{Letter}", hd_unicode_letters, &hd_unicode_letters_count},
        {"{N}", hd_unicode_numbers, &hd_unicode_numbers_count}, {"N", hd_unicode_numbers, &hd_unicode_numbers_count},
        {"{Number}", hd_unicode_numbers, &hd_unicode_numbers_count},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (take(p, known[i].name)) return add_ranges(p, r, (const hd_chars *)known[i].ranges, *known[i].count, negate);
    return refuse(p, p->at, HD_EUNSUPPORTED, "a Unicode property other than L and N"), HD_EUNSUPPORTED;
}

static int64_t hexadecimal(parser *p, int most, bool braces)
{
    int64_t v = 0;
    int n = 0;
    for (; n < most && isxdigit(peek(p, 0)) && more(p); n++, p->at++) v = v * 16 + (isdigit(peek(p, 0)) ? peek(p, 0) - '0' : (peek(p, 0) | 32) - 'a' + 10);
    if (!n || (!braces && n < most) || (braces && !take(p, "}")) || v > 0x10ffff || (v >= 0xd800 && v < 0xe000)) return -1;
    return v;
}

/* A character written with a backslash; p->at stands behind it. Negative when it is none, and err says so. */
static int64_t escaped(parser *p)
{
    static const char from[] = "tnrfva0", to[] = "\t\n\r\f\v\a\0";
    size_t at = p->at - 1;
    if (!more(p)) return refuse(p, at, HD_EINVAL, "a backslash at the end"), -1;
    int c = p->text[p->at];
    if (c >= 0x80) return take_code_point(p);
    p->at++;
    const char *known = strchr(from, c);
    if (c == '0' && isdigit(peek(p, 0)) && more(p)) return refuse(p, at, HD_EUNSUPPORTED, "an octal escape"), -1;
    if (known && c) return to[known - from];
    if (c == 'x' || c == 'u') {
        bool braces = take(p, "{");
        int64_t v = hexadecimal(p, braces ? 6 : c == 'x' ? 2 : 4, braces);
        return v < 0 ? (refuse(p, at, HD_EINVAL, "a malformed \\x or \\u"), -1) : v;
    }
    if (!isalnum(c)) return c;
    if (isdigit(c) || c == 'k') refuse(p, at, HD_EUNSUPPORTED, "a back reference");
    else if (c == 'b' || c == 'B') refuse(p, at, HD_EUNSUPPORTED, "a word boundary");
    else refuse(p, at, HD_EUNSUPPORTED, "this escape");
    return -1;
}

/* One element of a class: a character in *out, or a named class added (*out -1). */
static int class_element(parser *p, class_ranges *r, int64_t *out)
{
    *out = -1;
    if (peek(p, 0) == '[' && (peek(p, 1) == ':' || peek(p, 1) == '.' || peek(p, 1) == '='))
        return refuse(p, p->at, HD_EUNSUPPORTED, "a class in [: :]"), HD_EUNSUPPORTED;
    if (!take(p, "\\")) return *out = take_code_point(p), 0;
    int c = peek(p, 0), rc = c < 0 ? 0 : add_named(p, r, c);
    if (rc) return p->at++, rc < 0 ? rc : 0;
    if (c == 'p' || c == 'P') return p->at++, add_property(p, r, c == 'P');
    if (take(p, "b")) return *out = '\b', 0;
    *out = escaped(p);
    return *out < 0 ? HD_EINVAL : 0;
}

static int class_body(parser *p, class_ranges *r, size_t begin)
{
    int64_t first, last;
    int rc = 0;
    for (bool any = p->d.ecma; !rc; any = true) {
        if (!more(p)) return refuse(p, begin, HD_EINVAL, "a class without its ]"), HD_EINVAL;
        if (any && take(p, "]")) return 0;
        size_t at = p->at;
        rc = class_element(p, r, &first);
        if (rc || peek(p, 0) != '-' || peek(p, 1) == ']' || peek(p, 1) < 0) {
            if (!rc && first >= 0) rc = add_range(p, r, (uint32_t)first, (uint32_t)first);
            continue;
        }
        p->at++;
        rc = class_element(p, r, &last);
        if (rc) break;
        if (first < 0 || last < 0 || last < first) return refuse(p, at, HD_EINVAL, "a range in a class that isn't one"), HD_EINVAL;
        rc = add_range(p, r, (uint32_t)first, (uint32_t)last);
    }
    return rc;
}

static hd_expr *class_expr(parser *p, class_ranges *r, bool negate)
{
    int n = hd_chars_merge(r->c, (int)r->n);
    if (!negate) return hd_expr_chars(p->g, r->c, n, p->d.json);
    hd_chars *other = hd_arena_alloc(&p->g->arena, ((size_t)n + 4) * sizeof *other);
    if (!other) return hd_fail_memory(p->g->err, (size_t)n * sizeof *other, "a class of characters"), NULL;
    return hd_expr_chars(p->g, other, hd_chars_negate(r->c, n, other), p->d.json);
}

static hd_expr *parse_class(parser *p)
{
    class_ranges r = {0};
    size_t begin = p->at - 1;
    bool negate = take(p, "^");
    hd_expr *e = class_body(p, &r, begin) ? NULL : class_expr(p, &r, negate);
    hd_free(r.c);
    return e;
}

static hd_expr *one_character(parser *p, uint32_t c) { return hd_expr_chars(p->g, &(hd_chars){c, c}, 1, p->d.json); }

static hd_expr *parse_escape(parser *p)
{
    class_ranges r = {0};
    int c = peek(p, 0), rc = c < 0 ? 0 : add_named(p, &r, c);
    hd_expr *e = NULL;
    if (rc > 0) {
        p->at++;
        e = class_expr(p, &r, false);
    } else if (!rc && (c == 'p' || c == 'P')) {
        p->at++;
        if (!add_property(p, &r, c == 'P')) e = class_expr(p, &r, false);
    } else if (!rc) {
        int64_t v = escaped(p);
        e = v < 0 ? NULL : one_character(p, (uint32_t)v);
    }
    hd_free(r.c);
    return e;
}

/* Any character but a line's end. */
static hd_expr *parse_dot(parser *p)
{
    static const hd_chars plain[] = {{0, 9}, {11, 0x10ffff}}, ecma[] = {{0, 9}, {11, 12}, {14, 0x2027}, {0x202a, 0x10ffff}};
    return p->d.ecma ? hd_expr_chars(p->g, ecma, 4, p->d.json) : hd_expr_chars(p->g, plain, 2, p->d.json);
}

/* ---- groups, repetitions, alternatives ---- */

static hd_expr *parse_alternatives(parser *p);

static int group_kind(parser *p)
{
    size_t at = p->at - 1;
    if (!take(p, "?")) return 0;
    if (take(p, ":")) return 0;
    bool named = take(p, "P<") || (peek(p, 0) == '<' && peek(p, 1) != '=' && peek(p, 1) != '!' && take(p, "<"));
    if (named) {
        while (isalnum(peek(p, 0)) || peek(p, 0) == '_') p->at++;
        return take(p, ">") ? 0 : (refuse(p, at, HD_EINVAL, "a malformed name of a group"), HD_EINVAL);
    }
    bool look = peek(p, 0) == '=' || peek(p, 0) == '!' || peek(p, 0) == '<';
    return refuse(p, at, HD_EUNSUPPORTED, look ? "look-around" : "a group of this kind"), HD_EUNSUPPORTED;
}

static hd_expr *parse_group(parser *p)
{
    size_t at = p->at - 1;
    if (group_kind(p) || hd_rules_check_depth(p->g, ++p->depth)) return NULL;
    hd_expr *e = parse_alternatives(p);
    p->depth--;
    return e && !take(p, ")") ? refuse(p, at, HD_EINVAL, "a group without its )") : e;
}

static hd_expr *parse_atom(parser *p)
{
    size_t at = p->at;
    if (p->ended) return refuse(p, at, HD_EUNSUPPORTED, "something behind $");
    if (take(p, "(")) return parse_group(p);
    p->at_start = false;
    if (take(p, "[")) return parse_class(p);
    if (take(p, ".")) return parse_dot(p);
    if (take(p, "\\")) return parse_escape(p);
    int c = peek(p, 0);
    if (c == '*' || c == '+' || c == '?') return refuse(p, at, HD_EINVAL, "a repetition of nothing");
    return one_character(p, take_code_point(p));
}

static int number(parser *p)
{
    int v = 0;
    for (; isdigit(peek(p, 0)) && more(p); p->at++) v = v > MOST_TIMES ? v : v * 10 + peek(p, 0) - '0';
    return v > MOST_TIMES ? MOST_TIMES : v;
}

/* {n}, {n,}, {n,m}: whether there is one; otherwise the brace is a character. */
static bool take_counts(parser *p, int *min, int *max)
{
    size_t at = p->at;
    if (take(p, "{") && isdigit(peek(p, 0)) && more(p)) {
        *min = *max = number(p);
        if (take(p, ",")) *max = isdigit(peek(p, 0)) && more(p) ? number(p) : -1;
        if (take(p, "}")) return true;
    }
    p->at = at;
    return false;
}

static hd_expr *parse_repeated(parser *p)
{
    bool opened = p->opened;
    p->opened = false;
    hd_expr *e = parse_atom(p);
    bool anchored = p->opened || p->ended;
    p->opened |= opened;
    for (int times = 0; e; times++) {
        int min = 0, max = -1;
        size_t at = p->at;
        if (take(p, "*")) min = 0;
        else if (take(p, "+")) min = 1;
        else if (take(p, "?")) max = 1;
        else if (!take_counts(p, &min, &max)) return e;
        if (times) return refuse(p, at, HD_EUNSUPPORTED, "a repetition of a repetition (put it in a group)");
        if (anchored) return refuse(p, at, HD_EUNSUPPORTED, "a repeated anchor");
        if (max >= 0 && max < min) return refuse(p, at, HD_EINVAL, "a repetition whose bounds are the wrong way round");
        if (peek(p, 0) == '+') return refuse(p, p->at, HD_EUNSUPPORTED, "a possessive repetition");
        take(p, "?"); /* the shortest first: the same texts */
        e = hd_expr_repeat(p->g, e, min, max);
    }
    return NULL;
}

/* Whether an anchor was read; -1 when it stands where it can't. */
static int take_anchor(parser *p)
{
    size_t at = p->at;
    if (p->d.ecma && p->depth && (peek(p, 0) == '^' || peek(p, 0) == '$')) return refuse(p, at, HD_EUNSUPPORTED, "an anchor in a group"), -1;
    if (take(p, "^") || (!p->d.ecma && take(p, "\\A"))) {
        p->opened = true;
        return p->at_start ? 1 : (refuse(p, at, HD_EUNSUPPORTED, "^ other than at the beginning"), -1);
    }
    if (take(p, "$") || (!p->d.ecma && (take(p, "\\z") || take(p, "\\Z")))) return p->ended = true, 1;
    return 0;
}

static hd_expr *anything(parser *p) { return hd_expr_repeat(p->g, hd_expr_chars(p->g, &(hd_chars){0, 0x10ffff}, 1, p->d.json), 0, -1); }

static hd_expr *parse_sequence(parser *p)
{
    hd_parts l = {0};
    bool ok = true, search = p->d.ecma && !p->depth;
    if (search && peek(p, 0) != '^') ok = hd_parts_add(p->g, &l, anything(p));
    while (ok && more(p) && peek(p, 0) != '|' && peek(p, 0) != ')') {
        int anchor = take_anchor(p);
        ok = anchor > 0 || (anchor == 0 && hd_parts_add(p->g, &l, parse_repeated(p)));
    }
    if (ok && search && !p->ended) ok = hd_parts_add(p->g, &l, anything(p));
    return hd_parts_end(p->g, HD_EXPR_SEQ, &l, ok);
}

static hd_expr *parse_alternatives(parser *p)
{
    hd_parts l = {0};
    bool at_start = p->at_start, ended = p->ended, any_ended = false, still_start = true, ok = true;
    do {
        p->at_start = at_start;
        p->ended = ended;
        ok = hd_parts_add(p->g, &l, parse_sequence(p));
        any_ended |= p->ended;
        still_start &= p->at_start;
    } while (ok && take(p, "|"));
    p->ended = any_ended;
    p->at_start = at_start && still_start;
    return hd_parts_end(p->g, HD_EXPR_ALT, &l, ok);
}

hd_expr *hd_regex_expr(hd_rules *g, const char *pattern, size_t n, hd_regex_dialect d)
{
    parser p = {.g = g, .d = d, .text = (const unsigned char *)pattern, .n = n, .at_start = true};
    size_t valid = hd_utf8_valid(p.text, n);
    if (valid < n) return refuse(&p, valid, HD_EINVAL, "not UTF-8");
    hd_expr *e = parse_alternatives(&p);
    return e && more(&p) ? refuse(&p, p.at, HD_EINVAL, "a ) without its (") : e;
}

hd_constraint *hd_constraint_regex(const hd_vocabulary *v, const char *pattern, size_t n, const hd_constraint_limits *l, hd_error *err)
{
    hd_rules g;
    hd_rules_init(&g, l, err);
    int root = hd_rules_check_bytes(&g, n) ? -1 : hd_rules_add(&g, "root", true);
    if (root >= 0) g.rules[root].body = hd_regex_expr(&g, pattern, n, (hd_regex_dialect){0});
    return hd_constraint_from_rules(v, &g, root);
}
