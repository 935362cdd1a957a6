#include <ctype.h>
#include <string.h>
#include "base/rng.h"
#include "data/unicode.h"
#include "serve/constrain_int.h"

/* The notation of llama.cpp's GBNF files (grammars/README.md there): rules `name ::= ...` of literals, classes, groups, alternatives and repetitions. */

typedef struct named { const char *name; bool defined; size_t at; } named;

typedef struct reader {
    hd_rules *g;
    const unsigned char *text;
    size_t at, n;
    int depth;
    named *names; size_t n_names, cap_names; /* by rule */
    int32_t *table; size_t table_size;       /* of names by hash: rule + 1 */
} reader;

static size_t line_of(const reader *r, size_t at)
{
    size_t line = 1;
    for (size_t i = 0; i < at && i < r->n; i++) line += r->text[i] == '\n';
    return line;
}

static hd_expr *refuse(reader *r, int code, const char *what)
{
    hd_fail(r->g->err, code, "grammar, line %zu: %s%s", line_of(r, r->at), what, code == HD_EUNSUPPORTED ? " isn't supported" : "");
    return NULL;
}

static int peek(const reader *r) { return r->at < r->n ? r->text[r->at] : -1; }
static bool is_name(int c) { return c >= 0 && (isalnum(c) || c == '-' || c == '_'); }

static bool take(reader *r, const char *text)
{
    size_t n = strlen(text);
    if (r->n - r->at < n || memcmp(r->text + r->at, text, n)) return false;
    r->at += n;
    return true;
}

static void skip(reader *r)
{
    for (;;) {
        while (peek(r) >= 0 && strchr(" \t\r\n", peek(r)) && peek(r)) r->at++;
        if (peek(r) != '#') return;
        while (r->at < r->n && peek(r) != '\n') r->at++;
    }
}

/* ---- names ---- */

static int grow_table(reader *r)
{
    size_t size = r->table_size ? 2 * r->table_size : 64;
    int32_t *table = hd_calloc(size, sizeof *table);
    if (!table) return hd_fail_memory(r->g->err, size * sizeof *table, "a grammar");
    for (size_t i = 0; i < r->n_names; i++) {
        size_t h = (size_t)hd_hash_mix(hd_hash_string(r->names[i].name), 0) & (size - 1);
        while (table[h]) h = (h + 1) & (size - 1);
        table[h] = (int32_t)i + 1;
    }
    hd_free(r->table);
    r->table = table;
    r->table_size = size;
    return 0;
}

static int rule_of(reader *r, const char *name)
{
    if (2 * r->n_names >= r->table_size && grow_table(r)) return -1;
    size_t h = (size_t)hd_hash_mix(hd_hash_string(name), 0) & (r->table_size - 1);
    for (; r->table[h]; h = (h + 1) & (r->table_size - 1))
        if (!strcmp(r->names[r->table[h] - 1].name, name)) return r->table[h] - 1;
    if (hd_grow(&r->names, &r->cap_names, r->n_names + 1, sizeof *r->names)) return hd_fail_memory(r->g->err, 64, "a grammar"), -1;
    int rule = hd_rules_add(r->g, name, false);
    if (rule < 0) return -1;
    r->names[r->n_names++] = (named){.name = r->g->rules[rule].name, .at = r->at};
    r->table[h] = rule + 1;
    return rule;
}

/* The name at the reader, which stays behind it; false when it is too long or none. */
static bool read_name(reader *r, char out[128])
{
    size_t n = 0;
    for (; is_name(peek(r)) && n < 127; r->at++) out[n++] = (char)peek(r);
    out[n] = 0;
    return n && !is_name(peek(r));
}

/* Whether `name ::=` begins here. */
static bool at_definition(reader *r)
{
    size_t at = r->at;
    while (is_name(peek(r))) r->at++;
    bool is = r->at > at;
    skip(r);
    is = is && r->n - r->at >= 3 && !memcmp(r->text + r->at, "::=", 3);
    r->at = at;
    return is;
}

/* ---- characters ---- */

static int64_t hexadecimal(reader *r, int digits)
{
    int64_t v = 0;
    for (int i = 0; i < digits; i++, r->at++) {
        int c = peek(r);
        if (c < 0 || !isxdigit(c)) return -1;
        v = v * 16 + (isdigit(c) ? c - '0' : (c | 32) - 'a' + 10);
    }
    return v <= 0x10ffff && (v < 0xd800 || v > 0xdfff) ? v : -1;
}

/* A character of a literal or class, escapes read; negative with an error. */
static int64_t character(reader *r)
{
    static const char from[] = "nrt\\\"[]-^'/", to[] = "\n\r\t\\\"[]-^'/";
    int length;
    if (peek(r) < 0) return refuse(r, HD_EINVAL, "the text ends within a literal or class"), -1;
    if (peek(r) != '\\') {
        uint32_t c = hd_utf8_get(r->text + r->at, &length);
        r->at += (size_t)length;
        return c;
    }
    r->at++;
    int c = peek(r);
    const char *known = c > 0 ? strchr(from, c) : NULL;
    int digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (!known && !digits) return refuse(r, HD_EINVAL, "an unknown escape"), -1;
    r->at++;
    if (known) return to[known - from];
    int64_t v = hexadecimal(r, digits);
    return v < 0 ? (refuse(r, HD_EINVAL, "a malformed \\x, \\u or \\U"), -1) : v;
}

static hd_expr *literal(reader *r)
{
    hd_str s = HD_STR_INIT;
    hd_expr *e = NULL;
    int64_t c = 0;
    while (peek(r) != '"' && (c = character(r)) >= 0) {
        unsigned char bytes[4];
        hd_str_add(&s, bytes, (size_t)hd_utf8_put((uint32_t)c, bytes));
    }
    if (c >= 0 && s.failed) hd_fail_memory(r->g->err, s.len, "a grammar");
    else if (c >= 0) r->at++, e = hd_expr_bytes(r->g, s.data, s.len);
    hd_str_free(&s);
    return e;
}

static hd_expr *class(reader *r)
{
    hd_chars *c = NULL, *other = NULL;
    size_t n = 0, cap = 0;
    hd_expr *e = NULL;
    bool negate = take(r, "^");
    while (!take(r, "]")) {
        int64_t first = character(r), last = first;
        if (first >= 0 && peek(r) == '-' && r->at + 1 < r->n && r->text[r->at + 1] != ']') r->at++, last = character(r);
        if (first < 0 || last < 0) goto done;
        if (last < first) {
            refuse(r, HD_EINVAL, "a range in a class that isn't one");
            goto done;
        }
        if (hd_grow(&c, &cap, n + 3, sizeof *c)) goto memory;
        c[n++] = (hd_chars){(uint32_t)first, (uint32_t)last};
    }
    n = n ? (size_t)hd_chars_merge(c, (int)n) : 0;
    if (!(other = hd_malloc((n + 4) * sizeof *other))) goto memory;
    if (negate) e = hd_expr_chars(r->g, other, hd_chars_negate(c, (int)n, other), false);
    else e = hd_expr_chars(r->g, c, (int)n, false);
    goto done;
memory:
    hd_fail_memory(r->g->err, n * sizeof *c, "a grammar");
done:
    hd_free(c);
    hd_free(other);
    return e;
}

/* ---- expressions ---- */

static hd_expr *alternatives(reader *r);

static hd_expr *atom(reader *r)
{
    char name[128];
    if (take(r, "\"")) return literal(r);
    if (take(r, "[")) return class(r);
    if (take(r, ".")) return hd_expr_chars(r->g, &(hd_chars){0, 0x10ffff}, 1, false);
    if (take(r, "(")) {
        if (hd_rules_check_depth(r->g, ++r->depth)) return NULL;
        hd_expr *e = alternatives(r);
        r->depth--;
        return e && !take(r, ")") ? refuse(r, HD_EINVAL, "a ( without its )") : e;
    }
    if (peek(r) == '<' || peek(r) == '!') return refuse(r, HD_EUNSUPPORTED, "a token by its name");
    if (!is_name(peek(r))) return refuse(r, HD_EINVAL, "something that isn't a literal, a class, a name or a group");
    if (!read_name(r, name)) return refuse(r, HD_EINVAL, "a name of more than 127 characters");
    return hd_expr_rule(r->g, rule_of(r, name));
}

static int number(reader *r)
{
    int v = 0;
    skip(r);
    if (peek(r) < 0 || !isdigit(peek(r))) return -1;
    for (; peek(r) >= 0 && isdigit(peek(r)); r->at++) v = v > 100000 ? v : v * 10 + peek(r) - '0';
    skip(r);
    return v;
}

static bool read_counts(reader *r, int *min, int *max)
{
    *min = *max = number(r);
    if (take(r, ",")) {
        *max = number(r);
        if (*min < 0) *min = 0;
        else if (*max < 0) return take(r, "}");
        else return take(r, "}") && *min <= *max;
    }
    return *max >= 0 && take(r, "}");
}

static hd_expr *repeated(reader *r)
{
    hd_expr *e = atom(r);
    while (e) {
        int min = 0, max = -1;
        skip(r);
        if (take(r, "*")) min = 0;
        else if (take(r, "+")) min = 1;
        else if (take(r, "?")) max = 1;
        else if (!take(r, "{")) return e;
        else if (!read_counts(r, &min, &max)) return refuse(r, HD_EINVAL, "a malformed {m,n}");
        e = hd_expr_repeat(r->g, e, min, max);
        if (hd_rules_check_depth(r->g, ++r->depth)) return NULL;
    }
    return NULL;
}

static hd_expr *sequence(reader *r)
{
    hd_parts l = {0};
    bool ok = true;
    int depth = r->depth;
    for (skip(r); ok && peek(r) >= 0 && peek(r) != '|' && peek(r) != ')' && !(depth == 0 && at_definition(r)); skip(r)) {
        ok = hd_parts_add(r->g, &l, repeated(r));
        r->depth = depth;
    }
    return hd_parts_end(r->g, HD_EXPR_SEQ, &l, ok);
}

static hd_expr *alternatives(reader *r)
{
    hd_parts l = {0};
    bool ok;
    do ok = hd_parts_add(r->g, &l, sequence(r));
    while (ok && take(r, "|"));
    return hd_parts_end(r->g, HD_EXPR_ALT, &l, ok);
}

static int definition(reader *r)
{
    char name[128];
    if (!at_definition(r)) return refuse(r, HD_EINVAL, "not the beginning of a rule (name ::= ...)"), HD_EINVAL;
    if (!read_name(r, name)) return refuse(r, HD_EINVAL, "a name of more than 127 characters"), HD_EINVAL;
    skip(r);
    take(r, "::=");
    int rule = rule_of(r, name);
    if (rule < 0) return HD_ENOMEM;
    if (r->names[rule].defined) return refuse(r, HD_EINVAL, "a rule that was there before"), HD_EINVAL;
    r->names[rule].defined = true;
    hd_expr *e = alternatives(r);
    if (e && peek(r) == ')') e = refuse(r, HD_EINVAL, "a ) without its (");
    r->g->rules[rule].body = e;
    return e ? 0 : HD_EINVAL;
}

static int read_rules(reader *r)
{
    size_t valid = hd_utf8_valid(r->text, r->n);
    int root = rule_of(r, "root"), rc = root < 0 ? HD_ENOMEM : 0;
    if (valid < r->n) return hd_fail(r->g->err, HD_EINVAL, "grammar, byte %zu: not UTF-8", valid + 1);
    for (skip(r); !rc && r->at < r->n; skip(r)) rc = definition(r);
    for (size_t i = 0; i < r->n_names && !rc; i++)
        if (!r->names[i].defined)
            rc = hd_fail(r->g->err, HD_EINVAL, "grammar, line %zu: there is no rule \"%s\"", line_of(r, r->names[i].at), r->names[i].name);
    return rc ? rc : root;
}

hd_constraint *hd_constraint_grammar(const hd_vocabulary *v, const char *text, size_t n, const hd_constraint_limits *l, hd_error *err)
{
    hd_rules g;
    hd_rules_init(&g, l, err);
    reader r = {.g = &g, .text = (const unsigned char *)text, .n = n};
    int root = hd_rules_check_bytes(&g, n) ? -1 : read_rules(&r);
    hd_free(r.names);
    hd_free(r.table);
    return hd_constraint_from_rules(v, &g, root);
}
