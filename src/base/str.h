/* str.h: a growing byte string.
 *
 * Invariants: data[len] == 0 always (data points at a static empty string while cap == 0); len never counts that NUL.
 * An append that runs out of memory sets `failed` and does nothing from then on: check once at the end. */
#ifndef HD_BASE_STR_H
#define HD_BASE_STR_H

#include <stdbool.h>
#include <stdarg.h>
#include <stddef.h>

typedef struct hd_str {
    char *data;
    size_t len, cap;
    bool failed;
} hd_str;

#define HD_STR_INIT { .data = (char[1]){0} }

void hd_str_init(hd_str *s);
void hd_str_free(hd_str *s); /* also makes it empty and usable again */
void hd_str_clear(hd_str *s); /* keeps the memory */

void hd_str_add(hd_str *s, const void *bytes, size_t n);
void hd_str_puts(hd_str *s, const char *text);
void hd_str_putc(hd_str *s, char c);
void hd_str_printf(hd_str *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* "1.2 MiB", "3.4 GiB"; written to out (of at least 24 bytes), which is returned. */
char *hd_format_bytes(char *out, double bytes);
/* "45 s", "3 m 20 s", "2 h 05 m". out of at least 24 bytes. */
char *hd_format_seconds(char *out, double seconds);

/* Whether text matches a pattern in which '*' stands for any run of characters, and "<3-5>" for a number from 3 to 5. */
bool hd_glob_match(const char *pattern, const char *text);

#endif
