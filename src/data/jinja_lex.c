/* jinja_lex.c: a template's text to tokens, with Jinja2's rules for white space around tags (trim_blocks and lstrip_blocks on, the last newline dropped). */
#include <stdlib.h>
#include <string.h>
#include "data/jinja_int.h"
#include "data/unicode.h"

typedef struct lexer {
    hd_jinja *j;
    const char *s;
    size_t n, at;
    size_t place, line_start; /* how far lines are counted, and where the current one begins */
    uint32_t line;
    bool line_starting;       /* what was matched last ended a line: Jinja2's own rule for lstrip_blocks */
    hd_j_token *tokens;
    size_t len, cap;
    hd_error *err;
} lexer;

static void count_lines(lexer *x, size_t to) {
    for (; x->place < to; x->place++)
        if (x->s[x->place] == '\n') x->line++, x->line_start = x->place + 1;
}

static int fail_at(lexer *x, size_t where, const char *what) {
    count_lines(x, where);
    return hd_fail(x->err, HD_EFORMAT, "%s: line %u, column %zu: %s", x->j->name, x->line, where - x->line_start + 1, what);
}

static int add(lexer *x, size_t where, hd_j_token t) {
    if (hd_grow(&x->tokens, &x->cap, x->len + 1, sizeof t)) return hd_fail_memory(x->err, x->len * sizeof t, "a template");
    count_lines(x, where);
    t.line = x->line;
    t.column = (uint32_t)(where - x->line_start + 1);
    x->tokens[x->len++] = t;
    return 0;
}

static int add_text(lexer *x, hd_j_token_type type, size_t begin, size_t end) {
    if (type == T_DATA && begin == end) return 0;
    return add(x, begin, (hd_j_token){.type = (uint8_t)type, .value = hd_j_str(x->s + begin, end - begin)});
}

static size_t skip_space(const lexer *x, size_t at) {
    size_t length;
    while (at < x->n && hd_j_space(x->s + at, x->n - at, &length)) at += length;
    return at;
}

static size_t find2(const lexer *x, size_t at, char a, char b) {
    for (; at + 1 < x->n; at++)
        if (x->s[at] == a && x->s[at + 1] == b) return at;
    return x->n;
}

static char at(const lexer *x, size_t i) { return i < x->n ? x->s[i] : 0; }

/* ---- inside a tag ---- */

/* The end of a tag that closes at `end` ("%}"): white space or one newline that goes with it. sign: what stands before. */
static size_t after_close(const lexer *x, size_t end, char sign, bool trim) {
    end += 2;
    if (sign == '-') return skip_space(x, end);
    return trim && sign != '+' && at(x, end) == '\n' ? end + 1 : end;
}

static size_t digits(const lexer *x, size_t i) {
    while ((at(x, i) >= '0' && at(x, i) <= '9') || (at(x, i) == '_' && at(x, i + 1) >= '0' && at(x, i + 1) <= '9')) i++;
    return i;
}

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

static int lex_number(lexer *x) {
    size_t begin = x->at, end = digits(x, begin);
    bool real = false;
    if (at(x, begin) == '0' && strchr("xXoObB", at(x, begin + 1)) && at(x, begin + 1)) return fail_at(x, begin, "only decimal numbers are supported");
    if (!(begin && x->s[begin - 1] == '.')) {
        if (at(x, end) == '.' && is_digit(at(x, end + 1))) real = true, end = digits(x, end + 1);
        size_t e = end;
        if (at(x, e) == 'e' || at(x, e) == 'E') {
            e += at(x, e + 1) == '+' || at(x, e + 1) == '-' ? 2 : 1;
            if (is_digit(at(x, e))) real = true, end = digits(x, e);
        }
    }
    char text[64];
    size_t n = 0;
    for (size_t i = begin; i < end; i++) {
        if (n + 1 >= sizeof text) return fail_at(x, begin, "a number that is too long");
        if (x->s[i] != '_') text[n++] = x->s[i];
    }
    text[n] = 0;
    if (!real && (n > 18 || (text[0] == '0' && strspn(text, "0") != n))) return fail_at(x, begin, "a number that makes no sense here");
    x->at = end;
    return add(x, begin, (hd_j_token){.type = real ? T_FLOAT : T_INT, .value = real ? hd_j_float(strtod(text, NULL)) : hd_j_int(strtoll(text, NULL, 10))});
}

/* \xhh, \uhhhh, \Uhhhhhhhh at p[0..n): the code point, and how many characters of the escape were used (0: it isn't one). */
static size_t hex_escape(const char *p, size_t n, uint32_t *cp) {
    size_t want = p[0] == 'x' ? 2 : p[0] == 'u' ? 4 : 8;
    *cp = 0;
    if (n < want + 1) return 0;
    for (size_t i = 1; i <= want; i++) {
        const char *hex = "0123456789abcdef", *d = strchr(hex, p[i] | (p[i] >= 'A' ? 32 : 0));
        if (!d || !p[i]) return 0;
        *cp = *cp << 4 | (uint32_t)(d - hex);
    }
    return *cp > 0x10ffff || (*cp >= 0xd800 && *cp < 0xe000) ? 0 : want + 1;
}

/* One escape sequence at p (behind the backslash), as Python has them; appends to out. Returns the characters used, 0 when it is broken. */
static size_t unescape_one(const char *p, size_t n, char *out, size_t *len) {
    static const char from[] = "\\'\"abfnrtv", to[] = "\\'\"\a\b\f\n\r\t\v";
    const char *known = *p ? strchr(from, *p) : NULL;
    uint32_t cp = 0;
    if (known) {
        out[(*len)++] = to[known - from];
        return 1;
    }
    if (*p == '\n') return 1;
    if (*p == 'x' || *p == 'u' || *p == 'U') {
        size_t used = hex_escape(p, n, &cp);
        if (used) *len += (size_t)hd_utf8_put(cp, (unsigned char *)out + *len);
        return used;
    }
    if (*p >= '0' && *p <= '7') {
        size_t used = 0;
        while (used < 3 && used < n && p[used] >= '0' && p[used] <= '7') cp = cp * 8 + (uint32_t)(p[used++] - '0');
        *len += (size_t)hd_utf8_put(cp, (unsigned char *)out + *len);
        return used;
    }
    if (*p == 'N') return 0;
    out[(*len)++] = '\\'; /* Python keeps an escape that it doesn't know */
    return (size_t)-1;
}

static int lex_string(lexer *x) {
    size_t begin = x->at, end = begin + 1;
    char quote = x->s[begin];
    while (end < x->n && x->s[end] != quote) end += x->s[end] == '\\' ? 2 : 1;
    if (end >= x->n) return fail_at(x, begin, "a string that doesn't end");
    char *out = hd_arena_alloc(&x->j->arena, (end - begin) * 2);
    if (!out) return hd_fail_memory(x->err, end - begin, "a template");
    size_t n = 0;
    for (size_t i = begin + 1; i < end;) {
        if (x->s[i] != '\\') {
            out[n++] = x->s[i++];
            continue;
        }
        size_t used = unescape_one(x->s + i + 1, end - i - 1, out, &n);
        if (!used) return fail_at(x, i, "an escape sequence that isn't supported");
        i += used == (size_t)-1 ? 1 : used + 1;
    }
    x->at = end + 1;
    return add(x, begin, (hd_j_token){.type = T_STRING, .value = hd_j_str(out, n)});
}

static bool is_name(char c, bool first) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (unsigned char)c >= 0x80 || (!first && is_digit(c));
}

static int lex_operator(lexer *x, char *open, int *depth) {
    static const char *const two[] = {"==", "!=", ">=", "<=", "**", "//"};
    size_t begin = x->at;
    char c = x->s[begin];
    for (size_t i = 0; i < 6; i++)
        if (two[i][0] == c && two[i][1] == at(x, begin + 1)) {
            x->at += 2;
            return add(x, begin, (hd_j_token){.type = T_OP, .op = HD_J_OP(two[i][0], two[i][1])});
        }
    if (!strchr("+-*/%~<>=.,:|()[]{};", c) || !c) return fail_at(x, begin, "a character that means nothing here");
    const char *opening = strchr("([{", c), *closing = strchr(")]}", c);
    if (opening) {
        if (*depth >= HD_J_MAX_DEPTH) return fail_at(x, begin, "brackets nested too deep");
        open[(*depth)++] = c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (closing && (!*depth || open[--*depth] != c)) {
        return fail_at(x, begin, "a bracket that closes none");
    }
    x->at++;
    return add(x, begin, (hd_j_token){.type = T_OP, .op = (uint8_t)c});
}

/* Whether the tag ends here; then its end is added and passed. kind: '%' or '}' before the last '}'. */
static bool tag_ends(lexer *x, char kind, int *rc) {
    char c = at(x, x->at);
    size_t sign = c == '-' || (c == '+' && kind == '%') ? 1 : 0;
    if (at(x, x->at + sign) != kind || at(x, x->at + sign + 1) != '}') return false;
    size_t begin = x->at;
    *rc = add(x, begin, (hd_j_token){.type = kind == '%' ? T_BLOCK_END : T_VAR_END});
    x->at = after_close(x, begin + sign, sign ? c : 0, kind == '%');
    x->line_starting = x->s[x->at - 1] == '\n';
    return true;
}

static int lex_tag(lexer *x, char kind, size_t begin) {
    char open[HD_J_MAX_DEPTH];
    int depth = 0, rc = 0;
    while (!rc) {
        if (!depth && x->at < x->n && tag_ends(x, kind, &rc)) return rc;
        size_t next = skip_space(x, x->at);
        if (next >= x->n) return fail_at(x, begin, "a tag that doesn't end");
        if (next > x->at) {
            x->at = next;
            continue;
        }
        char c = x->s[x->at];
        if (is_digit(c)) rc = lex_number(x);
        else if (c == '"' || c == '\'') rc = lex_string(x);
        else if (is_name(c, true)) {
            size_t name = x->at;
            while (x->at < x->n && is_name(x->s[x->at], false)) x->at++;
            rc = add_text(x, T_NAME, name, x->at);
        } else rc = lex_operator(x, open, &depth);
    }
    return rc;
}

/* ---- outside ---- */

/* Text before a tag, without the white space that the tag takes: all of it ('-'), or what stands between the line's begin and a block. */
static int add_before(lexer *x, size_t begin, size_t end, char sign, bool variable) {
    size_t length, line = end;
    if (sign == '-') {
        while (end > begin && hd_j_space_before(x->s + begin, end - begin, &length)) end -= length;
    } else if (sign != '+' && !variable) {
        while (line > begin && x->s[line - 1] != '\n') line--;
        if ((line > begin || x->line_starting) && skip_space(x, line) >= end) end = line;
    }
    return add_text(x, T_DATA, begin, end);
}

static int lex_comment(lexer *x, size_t begin) {
    size_t end = find2(x, x->at, '#', '}');
    if (end >= x->n) return fail_at(x, begin, "a comment that doesn't end");
    x->at = after_close(x, end, end > x->at ? x->s[end - 1] : 0, true);
    x->line_starting = x->s[x->at - 1] == '\n';
    return 0;
}

static bool word_at(const lexer *x, size_t *i, const char *word) {
    size_t p = skip_space(x, *i), n = strlen(word);
    if (p + n > x->n || memcmp(x->s + p, word, n)) return false;
    *i = p + n;
    return true;
}

/* "{% raw %}": sets *end behind it. */
static bool is_raw(const lexer *x, size_t i, size_t *end) {
    if (!word_at(x, &i, "raw")) return false;
    i = skip_space(x, i);
    bool minus = at(x, i) == '-';
    i += minus;
    if (at(x, i) != '%' || at(x, i + 1) != '}') return false;
    *end = minus ? skip_space(x, i + 2) : i + 2;
    return true;
}

static int lex_raw(lexer *x, size_t begin) {
    x->line_starting = x->s[x->at - 1] == '\n';
    for (size_t i = find2(x, x->at, '{', '%'); i < x->n; i = find2(x, i + 1, '{', '%')) {
        char sign = at(x, i + 2) == '-' || at(x, i + 2) == '+' ? at(x, i + 2) : 0, close = 0;
        size_t p = i + 2 + (sign != 0);
        if (!word_at(x, &p, "endraw")) continue;
        p = skip_space(x, p);
        if (at(x, p) == '-' || at(x, p) == '+') close = at(x, p++);
        if (at(x, p) != '%' || at(x, p + 1) != '}') continue;
        int rc = add_before(x, x->at, i, sign, false);
        x->at = after_close(x, p, close, true);
        x->line_starting = x->s[x->at - 1] == '\n';
        return rc;
    }
    return fail_at(x, begin, "a raw block that doesn't end");
}

static size_t next_tag(const lexer *x) {
    for (size_t i = x->at; i + 1 < x->n; i++)
        if (x->s[i] == '{' && strchr("{%#", x->s[i + 1]) && x->s[i + 1]) return i;
    return x->n;
}

static int lex_one(lexer *x) {
    size_t begin = next_tag(x), raw;
    if (begin >= x->n) {
        int rc = add_text(x, T_DATA, x->at, x->n);
        x->at = x->n;
        return rc;
    }
    char kind = x->s[begin + 1], sign = at(x, begin + 2);
    if (sign != '-' && sign != '+') sign = 0;
    int rc = add_before(x, x->at, begin, sign, kind == '{');
    x->at = begin + 2 + (sign != 0);
    x->line_starting = false;
    if (rc) return rc;
    if (kind == '#') return lex_comment(x, begin);
    if (kind == '%' && is_raw(x, x->at, &raw)) {
        x->at = raw;
        return lex_raw(x, begin);
    }
    rc = add(x, begin, (hd_j_token){.type = kind == '%' ? T_BLOCK_BEGIN : T_VAR_BEGIN});
    return rc ? rc : lex_tag(x, kind == '%' ? '%' : '}', begin);
}

int hd_j_lex(hd_jinja *j, hd_j_token **tokens, hd_error *err) {
    lexer x = {.j = j, .s = j->text, .n = j->n, .line = 1, .line_starting = true, .err = err};
    int rc = 0;
    while (!rc && x.at < x.n) rc = lex_one(&x);
    if (!rc) rc = add(&x, x.n, (hd_j_token){.type = T_EOF});
    *tokens = x.tokens;
    return rc;
}
