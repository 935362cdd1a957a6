#include "base/str.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

/* What data points at while cap == 0; never written to. */
static char empty[1];

void hd_str_init(hd_str *s) { *s = (hd_str){ .data = empty }; }

void hd_str_free(hd_str *s)
{
    if (s->cap) hd_free(s->data);
    hd_str_init(s);
}

void hd_str_clear(hd_str *s)
{
    if (s->cap) s->data[0] = 0;
    s->len = 0;
    s->failed = false;
}

/* Room for n more bytes and the NUL. */
static bool reserve(hd_str *s, size_t n)
{
    if (s->failed) return false;
    void *p = s->cap ? s->data : NULL;
    if (n > SIZE_MAX / 2 - s->len || hd_grow(&p, &s->cap, s->len + n + 1, 1)) {
        s->failed = true;
        return false;
    }
    s->data = p;
    return true;
}

void hd_str_add(hd_str *s, const void *bytes, size_t n)
{
    if (!reserve(s, n)) return;
    if (n) memcpy(s->data + s->len, bytes, n);
    s->len += n;
    s->data[s->len] = 0;
}

void hd_str_puts(hd_str *s, const char *text) { hd_str_add(s, text, strlen(text)); }
void hd_str_putc(hd_str *s, char c) { hd_str_add(s, &c, 1); }

void hd_str_printf(hd_str *s, const char *fmt, ...)
{
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, args);
    if (n < 0) {
        s->failed = true;
    } else if (reserve(s, (size_t)n)) {
        vsnprintf(s->data + s->len, (size_t)n + 1, fmt, again);
        s->len += (size_t)n;
    }
    va_end(again);
    va_end(args);
}

char *hd_format_bytes(char *out, double bytes)
{
    static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
    int u = 0;
    while (fabs(bytes) >= 1023.95 && u < 6) {
        bytes /= 1024;
        u++;
    }
    snprintf(out, 24, u ? "%.1f %s" : "%.0f %s", bytes, units[u]);
    return out;
}

char *hd_format_seconds(char *out, double seconds)
{
    if (!(seconds >= 0) || seconds > 1e12) {
        snprintf(out, 24, "?");
        return out;
    }
    long long s = llround(seconds);
    if (s < 60) snprintf(out, 24, "%lld s", s);
    else if (s < 3600) snprintf(out, 24, "%lld m %02lld s", s / 60, s % 60);
    else snprintf(out, 24, "%lld h %02lld m", s / 3600, s / 60 % 60);
    return out;
}

/* "<3-5>" against the digits of a number; moves both behind what matched. */
static bool take_range(const char **pattern, const char **text)
{
    char *end;
    long low, high, is;
    if (**pattern != '<' || (*pattern)[1] < '0' || (*pattern)[1] > '9' || **text < '0' || **text > '9') return false;
    low = strtol(*pattern + 1, &end, 10);
    if (*end != '-' || end[1] < '0' || end[1] > '9') return false;
    high = strtol(end + 1, &end, 10);
    if (*end != '>') return false;
    is = strtol(*text, (char **)text, 10);
    *pattern = end + 1;
    return is >= low && is <= high;
}

/* Greedy with one point to fall back to, the last '*': linear in pattern x text at worst, no recursion. */
bool hd_glob_match(const char *pattern, const char *text)
{
    const char *star = NULL, *resume = NULL;
    while (*text) {
        if (*pattern == '*') {
            star = ++pattern;
            resume = text;
        } else if (*pattern == *text) {
            pattern++;
            text++;
        } else if (*pattern == '<' && take_range(&pattern, &text)) {
            continue;
        } else if (star) {
            pattern = star;
            text = ++resume;
        } else {
            return false;
        }
    }
    while (*pattern == '*') pattern++;
    return !*pattern;
}
