/* regex.c: patterns written for Oniguruma (Ruby syntax), which `tokenizers` uses, carried over to PCRE2.
 *
 * Where the two disagree on what a construct means, it is rewritten (\s, \w, scripts) or refused by name; nothing is left to chance. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <ctype.h>
#include <pcre2.h>
#include <string.h>
#include "data/regex.h"

/* ---- translation ------------------------------------------------------------------------------------------------ */

typedef struct translation {
    const char *p, *end;
    const char *where; /* for messages */
    bool in_class;
    hd_str out;
    hd_error *err;
} translation;

static int refuse(translation *t, const char *what) {
    return hd_fail(t->err, HD_EUNSUPPORTED, "%s: regular expression: %s isn't supported", t->where, what);
}

/* Names that mean the same in both; PCRE2 takes a bare script name as Script_Extensions, Oniguruma as Script. */
static const char *const scripts[] = {"Han",   "Hiragana", "Katakana", "Hangul", "Latin",      "Cyrillic", "Greek",
                                      "Arabic", "Hebrew",  "Thai",     "Lao",    "Devanagari", "Bopomofo", NULL};
static const char *const properties[] = {"Alphabetic", "White_Space", NULL};

static bool in_list(const char *const *list, const char *name, size_t n) {
    for (; *list; list++)
        if (strlen(*list) == n && !memcmp(*list, name, n)) return true;
    return false;
}

/* \p{...} and \P{...}; t->p stands at the p. */
static int property(translation *t) {
    char letter = *t->p++;
    const char *close = t->p < t->end && *t->p == '{' ? memchr(t->p, '}', (size_t)(t->end - t->p)) : NULL;
    if (!close) return refuse(t, "\\p without {name}");
    const char *name = t->p + 1;
    if (name < close && *name == '^') {
        letter = letter == 'p' ? 'P' : 'p';
        name++;
    }
    size_t n = (size_t)(close - name);
    bool category = (n == 1 || n == 2) && strchr("LMNPSZC", name[0]) && (n == 1 || islower((unsigned char)name[1]));
    bool script = in_list(scripts, name, n);
    if (!category && !script && !in_list(properties, name, n)) return refuse(t, "a \\p{...} other than a category or a common script");
    hd_str_printf(&t->out, "\\%c{%s%.*s}", letter, script ? "sc:" : "", (int)n, name);
    t->p = close + 1;
    return 0;
}

/* \xHH, \x{H...} and \uHHHH; t->p stands at the x or u. */
static int code_point(translation *t) {
    bool braces = *t->p == 'x' && t->p + 1 < t->end && t->p[1] == '{';
    size_t most = braces ? 8 : *t->p == 'u' ? 4 : 2, n = 0;
    const char *digits = t->p + (braces ? 2 : 1);
    unsigned long cp = 0;
    while (n < most && digits + n < t->end && isxdigit((unsigned char)digits[n])) {
        int c = tolower((unsigned char)digits[n++]);
        cp = cp * 16 + (unsigned long)(c <= '9' ? c - '0' : c - 'a' + 10);
    }
    if (!n || (!braces && n != most)) return refuse(t, "an incomplete \\x or \\u");
    if (!braces && most == 2 && cp >= 0x80) return refuse(t, "a \\x of a byte above 7F");
    if (braces && (digits + n >= t->end || digits[n] != '}')) return refuse(t, "an incomplete \\x{...}");
    hd_str_printf(&t->out, "\\x{%lx}", cp);
    t->p = digits + n + braces;
    return 0;
}

#define WORD "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"

/* What follows a backslash. */
static int escape(translation *t) {
    if (t->p == t->end) return refuse(t, "a backslash at the end");
    char c = *t->p;
    if (c == 'p' || c == 'P') return property(t);
    if (c == 'x' || c == 'u') return code_point(t);
    t->p++;
    switch (c) {
    case 's': hd_str_puts(&t->out, "\\p{White_Space}"); return 0;
    case 'S': hd_str_puts(&t->out, "\\P{White_Space}"); return 0;
    case 'd': hd_str_puts(&t->out, "\\p{Nd}"); return 0;
    case 'D': hd_str_puts(&t->out, "\\P{Nd}"); return 0;
    case 'w': hd_str_puts(&t->out, t->in_class ? WORD : "[" WORD "]"); return 0;
    case 'v': hd_str_puts(&t->out, "\\x{b}"); return 0;
    case 'W':
        if (t->in_class) return refuse(t, "\\W in a character class");
        hd_str_puts(&t->out, "[^" WORD "]");
        return 0;
    default: break;
    }
    bool letter = isalnum((unsigned char)c) || (unsigned char)c >= 0x80;
    char name[] = {'\\', c, 0};
    if (letter && !(c && strchr("rntfae", c)) && (t->in_class || !strchr("Az", c))) return refuse(t, isprint((unsigned char)c) ? name : "an escape");
    hd_str_puts(&t->out, name);
    return c ? 0 : refuse(t, "an escaped NUL");
}

/* A group's opening; t->p stands after the parenthesis. */
static int group(translation *t) {
    static const char *const openings[] = {"?:", "?=", "?!", "?<=", "?<!", "?>", "?i:", "?i)", "?-i:", "?-i)", NULL};
    hd_str_putc(&t->out, '(');
    if (t->p == t->end || (*t->p != '?' && *t->p != '*')) return 0;
    for (const char *const *o = openings; *o; o++) {
        size_t n = strlen(*o);
        if ((size_t)(t->end - t->p) >= n && !memcmp(t->p, *o, n)) {
            hd_str_add(&t->out, *o, n);
            t->p += n;
            return 0;
        }
    }
    return refuse(t, "a group of an unusual kind");
}

static bool next_is(const translation *t, char c) {
    return t->p < t->end && *t->p == c;
}

static int class_character(translation *t, char c) {
    if (c == '[') return refuse(t, "a character class inside another");
    if (c == '&' && next_is(t, '&')) return refuse(t, "&& in a character class");
    if (c == ']') t->in_class = false;
    hd_str_putc(&t->out, c);
    return 0;
}

static int plain_character(translation *t, char c) {
    if (c == '(') return group(t);
    if (c == '{' && next_is(t, ',')) return refuse(t, "{,n}");
    if (c == '}' && next_is(t, '+')) return refuse(t, "{n,m}+");
    hd_str_putc(&t->out, c);
    if (c != '[') return 0;
    t->in_class = true;
    if (next_is(t, '^')) hd_str_putc(&t->out, *t->p++);
    return next_is(t, ']') ? refuse(t, "a character class that begins with ]") : 0;
}

static int translate(translation *t) {
    int rc = 0;
    while (t->p < t->end && !rc) {
        char c = *t->p++;
        if (!c) return refuse(t, "a NUL character");
        if (c == '\\') rc = escape(t);
        else rc = t->in_class ? class_character(t, c) : plain_character(t, c);
    }
    return rc;
}

/* ---- compiling and matching ------------------------------------------------------------------------------------- */

hd_regex *hd_regex_compile(const char *pattern, size_t n, const char *where, hd_error *err) {
    translation t = {.p = pattern, .end = pattern + n, .where = where, .err = err};
    hd_str_init(&t.out);
    hd_regex *re = NULL;
    int code = 0;
    PCRE2_SIZE at = 0;
    if (translate(&t)) goto done;
    if (t.out.failed) {
        hd_fail_memory(err, n, "a regular expression");
        goto done;
    }
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (context) {
        pcre2_set_newline(context, PCRE2_NEWLINE_LF);
        pcre2_set_parens_nest_limit(context, 100);
    }
    re = pcre2_compile((PCRE2_SPTR)t.out.data, t.out.len, PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &code, &at, context);
    pcre2_compile_context_free(context);
    if (re) {
        pcre2_jit_compile(re, PCRE2_JIT_COMPLETE); /* without it matching is slower, not wrong */
        goto done;
    }
    PCRE2_UCHAR message[128] = "";
    pcre2_get_error_message(code, message, sizeof message);
    hd_fail(err, HD_EFORMAT, "%s: broken regular expression \"%.*s\": %s", where, (int)(n > 100 ? 100 : n), pattern, (char *)message);
done:
    hd_str_free(&t.out);
    return re;
}

void hd_regex_free(hd_regex *re) {
    pcre2_code_free(re);
}

bool hd_regex_may_be_empty(const hd_regex *re) {
    uint32_t empty = 1;
    return pcre2_pattern_info(re, PCRE2_INFO_MATCHEMPTY, &empty) || empty;
}

struct hd_regex_scratch {
    pcre2_match_data *match;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
};

hd_regex_scratch *hd_regex_scratch_new(hd_error *err) {
    hd_regex_scratch *s = hd_calloc(1, sizeof *s);
    if (!s) goto fail;
    s->match = pcre2_match_data_create(1, NULL);
    s->context = pcre2_match_context_create(NULL);
    s->stack = pcre2_jit_stack_create(32 * 1024, 1024 * 1024, NULL);
    if (!s->match || !s->context || !s->stack) goto fail;
    pcre2_set_match_limit(s->context, 1000000); /* a pattern that needs more steps at one place is hostile */
    pcre2_jit_stack_assign(s->context, NULL, s->stack);
    return s;
fail:
    hd_regex_scratch_free(s);
    hd_fail_memory(err, 32 * 1024, "regular expressions");
    return NULL;
}

void hd_regex_scratch_free(hd_regex_scratch *s) {
    if (!s) return;
    pcre2_match_data_free(s->match);
    pcre2_match_context_free(s->context);
    pcre2_jit_stack_free(s->stack);
    hd_free(s);
}

int hd_regex_find(const hd_regex *re, hd_regex_scratch *s, const unsigned char *text, size_t n, size_t from, size_t *begin, size_t *end,
                  hd_error *err) {
    int rc = pcre2_match(re, text, n, from, PCRE2_NO_UTF_CHECK, s->match, s->context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) rc = pcre2_match(re, text, n, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, s->match, s->context);
    if (rc == PCRE2_ERROR_NOMATCH) return 0;
    if (rc < 0) return hd_fail(err, HD_EFORMAT, "the tokenizer's regular expression needs too many steps on this text (PCRE2 error %d)", rc);
    PCRE2_SIZE *offsets = pcre2_get_ovector_pointer(s->match);
    *begin = offsets[0];
    *end = offsets[1] < offsets[0] ? offsets[0] : offsets[1];
    return 1;
}
