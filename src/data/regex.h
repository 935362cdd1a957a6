/* regex.h: regular expressions as `tokenizers` understands them, run by PCRE2. For this folder's files only. */
#ifndef HD_DATA_REGEX_H
#define HD_DATA_REGEX_H

#include "base/mem.h"
#include "data/unicode.h"

typedef struct pcre2_real_code_8 hd_regex;
typedef struct hd_regex_scratch hd_regex_scratch; /* one caller's match data and JIT stack */

/* Compiles a pattern in the syntax of Oniguruma; where stands in messages. NULL and err when it is broken or cannot be carried over. */
hd_regex *hd_regex_compile(const char *pattern, size_t n, const char *where, hd_error *err);
void hd_regex_free(hd_regex *re);
/* Whether re can match an empty piece of text. */
bool hd_regex_may_be_empty(const hd_regex *re);

hd_regex_scratch *hd_regex_scratch_new(hd_error *err);
void hd_regex_scratch_free(hd_regex_scratch *s);

/* Looks for re in valid UTF-8 text[0..n) from offset `from` on. 1 and [*begin, *end) when found, 0 when not, negative on failure. */
int hd_regex_find(const hd_regex *re, hd_regex_scratch *s, const unsigned char *text, size_t n, size_t from, size_t *begin, size_t *end,
                  hd_error *err);

#endif
