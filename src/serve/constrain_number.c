#include <stdio.h>
#include <string.h>
#include "serve/constrain_int.h"

/* Numbers have at most 18 digits before the point, so that readers with 64-bit integers take them, and exponents of two digits. */
#define MOST 999999999999999999
#define FRACTION "(?:\\.[0-9]{1,6})?"

/* ---- decimal numbers within bounds, as regular expressions ---- */

static void digit_range(hd_str *s, char low, char high)
{
    if (low == high) hd_str_putc(s, low);
    else hd_str_printf(s, "[%c-%c]", low, high);
}

static void any_digits(hd_str *s, int n)
{
    if (n) hd_str_printf(s, "[0-9]{%d}", n);
}

/* n digits that are at least (at most) d. */
static void digits_from(hd_str *s, const char *d, int n)
{
    if (!n) return;
    hd_str_puts(s, "(?:");
    hd_str_putc(s, d[0]);
    digits_from(s, d + 1, n - 1);
    if (d[0] < '9') {
        hd_str_putc(s, '|');
        digit_range(s, (char)(d[0] + 1), '9');
        any_digits(s, n - 1);
    }
    hd_str_putc(s, ')');
}

static void digits_to(hd_str *s, const char *d, int n)
{
    if (!n) return;
    hd_str_puts(s, "(?:");
    hd_str_putc(s, d[0]);
    digits_to(s, d + 1, n - 1);
    if (d[0] > '0') {
        hd_str_putc(s, '|');
        digit_range(s, '0', (char)(d[0] - 1));
        any_digits(s, n - 1);
    }
    hd_str_putc(s, ')');
}

/* n digits from low to high. */
static void digits_between(hd_str *s, const char *low, const char *high, int n)
{
    for (; n && *low == *high; n--, high++) hd_str_putc(s, *low++);
    if (!n) return;
    hd_str_puts(s, "(?:");
    hd_str_putc(s, low[0]);
    digits_from(s, low + 1, n - 1);
    if (low[0] + 1 < high[0]) {
        hd_str_putc(s, '|');
        digit_range(s, (char)(low[0] + 1), (char)(high[0] - 1));
        any_digits(s, n - 1);
    }
    hd_str_putc(s, '|');
    hd_str_putc(s, high[0]);
    digits_to(s, high + 1, n - 1);
    hd_str_putc(s, ')');
}

/* Whole numbers with 0 <= low <= x <= high, without leading zeros. */
static void naturals(hd_str *s, int64_t low, int64_t high)
{
    char from[24], to[24];
    hd_str_puts(s, "(?:");
    for (int64_t lowest = low; lowest <= high;) {
        int n = snprintf(from, sizeof from, "%lld", (long long)lowest);
        int64_t power = 1;
        for (int i = 0; i < n; i++) power *= 10;
        snprintf(to, sizeof to, "%lld", (long long)(power - 1 < high ? power - 1 : high));
        if (lowest > low) hd_str_putc(s, '|');
        digits_between(s, from, to, n);
        lowest = power;
    }
    hd_str_putc(s, ')');
}

static hd_expr *parsed(hd_rules *g, hd_str *s, bool empty)
{
    hd_expr *e = NULL;
    if (s->failed) hd_fail_memory(g->err, s->len, "bounds of a number");
    else if (empty) e = hd_expr_list(g, HD_EXPR_ALT, NULL, 0);
    else e = hd_regex_expr(g, s->data, s->len, (hd_regex_dialect){0});
    hd_str_free(s);
    return e;
}

static int64_t clip(int64_t x) { return x > MOST ? MOST : x < -MOST ? -MOST : x; }

hd_expr *hd_expr_integers(hd_rules *g, int64_t low, int64_t high)
{
    hd_str s = HD_STR_INIT;
    if (low == INT64_MIN && high == INT64_MAX) {
        hd_str_puts(&s, "-?(?:0|[1-9][0-9]{0,17})");
        return parsed(g, &s, false);
    }
    if (low > MOST || high < -MOST) return parsed(g, &s, true);
    low = clip(low);
    high = clip(high);
    bool positive = high >= 0 && low <= high, negative = low < 0 && low <= high;
    if (positive) naturals(&s, low > 0 ? low : 0, high);
    if (positive && negative) hd_str_putc(&s, '|');
    if (negative) hd_str_putc(&s, '-');
    if (negative) naturals(&s, high < 0 ? -high : 1, -low);
    return parsed(g, &s, !positive && !negative);
}

/* Numbers from low to high, both at least 0; appends nothing when there is none. */
static void reals(hd_str *s, const char *sign, int64_t low, bool low_open, int64_t high, bool high_open)
{
    if (low > high || (low == high && (low_open || high_open))) return;
    const char *bar = s->len ? "|" : "";
    hd_str_printf(s, "%s%s(?:", bar, sign);
    bool first = true;
    if (low < high) { /* those with low before the point */
        if (low_open) hd_str_printf(s, "%lld\\.[0-9]{0,5}[1-9]0{0,5}", (long long)low);
        else hd_str_printf(s, "%lld" FRACTION, (long long)low);
        first = false;
    }
    if (low + 1 < high) {
        hd_str_putc(s, '|');
        naturals(s, low + 1, high - 1);
        hd_str_puts(s, FRACTION);
    }
    if (!high_open) hd_str_printf(s, "%s%lld(?:\\.0{1,6})?", first ? "" : "|", (long long)high);
    hd_str_putc(s, ')');
}

hd_expr *hd_expr_numbers(hd_rules *g, int64_t low, bool low_open, int64_t high, bool high_open)
{
    hd_str s = HD_STR_INIT;
    if (low == INT64_MIN && high == INT64_MAX) {
        hd_str_puts(&s, "-?(?:0|[1-9][0-9]{0,17})(?:\\.[0-9]{1,18})?(?:[eE][+-]?[0-9]{1,2})?");
        return parsed(g, &s, false);
    }
    low = clip(low);
    high = clip(high);
    if (high >= 0) reals(&s, "", low > 0 ? low : 0, low >= 0 && low_open, high, high_open);
    if (low < 0) reals(&s, "-", high < 0 ? -high : 0, high >= 0 || high_open, -low, low_open);
    return parsed(g, &s, !s.len);
}

/* ---- formats of strings ---- */

#define DAYS "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
#define LEAP "(?:(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29)"
#define DATE "(?:(?:[1-9][0-9]{3}|0[0-9]{2}[1-9]|0[0-9][1-9]0|0[1-9]00)-" DAYS "|" LEAP ")"
#define TIME "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
#define LABEL "[A-Za-z0-9](?:[A-Za-z0-9-]{0,14}[A-Za-z0-9])?"
#define HOST LABEL "(?:\\." LABEL "){0,3}"
#define BYTE "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
#define IPV4 BYTE "(?:\\." BYTE "){3}"
#define HEX "[0-9A-Fa-f]{1,4}"
#define IPV6 "(?:(?:" HEX ":){7}" HEX "|::(?:(?:" HEX ":){0,5}" HEX ")?|" HEX "::(?:(?:" HEX ":){0,4}" HEX ")?|" HEX ":" HEX "::(?:(?:" HEX ":){0,3}" HEX ")?)"
#define UNIT "[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2}"

/* Each is a subset that any reader of the format accepts. */
const char *hd_format_pattern(const char *name)
{
    static const struct { const char *name, *pattern; } known[] = {
        {"date", DATE},
        {"time", TIME},
        {"date-time", DATE "T" TIME},
        {"duration",
         "P(?:[0-9]{1,4}W|[0-9]{1,4}D(?:T[0-9]{1,4}H)?|[0-9]{1,4}Y(?:[0-9]{1,4}M(?:[0-9]{1,4}D)?)?"
         "|T(?:[0-9]{1,4}H(?:[0-9]{1,4}M(?:[0-9]{1,4}S)?)?|[0-9]{1,4}M(?:[0-9]{1,4}S)?|[0-9]{1,4}S))"},
        {"email", "[A-Za-z0-9_+-]{1,24}(?:\\.[A-Za-z0-9_+-]{1,12}){0,2}@" LABEL "(?:\\." LABEL "){1,3}"},
        {"hostname", HOST},
        {"ipv4", IPV4},
        {"ipv6", IPV6},
        {"uuid", "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"},
        {"uri", "[A-Za-z][A-Za-z0-9+.-]{0,15}://" HOST "(?::[0-9]{1,4})?(?:/(?:" UNIT ")*)*(?:\\?(?:" UNIT "|[/?])*)?(?:#(?:" UNIT "|[/?])*)?"},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(known[i].name, name)) return known[i].pattern;
    return NULL;
}
