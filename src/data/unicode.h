/* unicode.h: what the tokenizer needs of Unicode: UTF-8 in and out, letters, numbers and white space, and NFC.
 *
 * Letters, numbers and spaces are those of Unicode 14.0 whatever the system's libraries know, because Hugging Face `tokenizers` has them so. */
#ifndef HD_DATA_UNICODE_H
#define HD_DATA_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/error.h"
#include "base/str.h"

typedef struct hd_unicode_range { uint32_t first, last; } hd_unicode_range;

extern const hd_unicode_range hd_unicode_letters[], hd_unicode_numbers[], hd_unicode_spaces[];
extern const int hd_unicode_letters_count, hd_unicode_numbers_count, hd_unicode_spaces_count;

/* Classes of a code point; a scanner's bits. */
enum { HD_CP_LETTER = 1, HD_CP_NUMBER = 2, HD_CP_SPACE = 4, HD_CP_NEWLINE = 8 /* only \r and \n, which are spaces too */ };

#define HD_CP_TABLE 0x20000 /* code points looked up directly; the few classed ones above are searched */
typedef struct hd_unicode_classes { uint8_t of[HD_CP_TABLE]; } hd_unicode_classes;

void hd_unicode_classes_fill(hd_unicode_classes *c);
/* The class of a code point at or above HD_CP_TABLE. */
uint8_t hd_unicode_class_high(uint32_t cp);

static inline uint8_t hd_unicode_class(const hd_unicode_classes *c, uint32_t cp) {
    return cp < HD_CP_TABLE ? c->of[cp] : hd_unicode_class_high(cp);
}

/* Decodes one code point of valid UTF-8 at p; *length gets its bytes. */
static inline uint32_t hd_utf8_get(const unsigned char *p, int *length) {
    if (p[0] < 0x80) {
        *length = 1;
        return p[0];
    }
    if (p[0] < 0xe0) {
        *length = 2;
        return (uint32_t)(p[0] & 0x1f) << 6 | (p[1] & 0x3f);
    }
    if (p[0] < 0xf0) {
        *length = 3;
        return (uint32_t)(p[0] & 0x0f) << 12 | (uint32_t)(p[1] & 0x3f) << 6 | (p[2] & 0x3f);
    }
    *length = 4;
    return (uint32_t)(p[0] & 0x07) << 18 | (uint32_t)(p[1] & 0x3f) << 12 | (uint32_t)(p[2] & 0x3f) << 6 | (p[3] & 0x3f);
}

/* Writes a code point as UTF-8 to out (of at least 4 bytes). Returns the bytes written. */
int hd_utf8_put(uint32_t cp, unsigned char *out);
/* Length of the valid prefix of text: n when all of it is valid UTF-8. */
size_t hd_utf8_valid(const unsigned char *text, size_t n);
/* Length of the well-formed or ill-formed unit at p[0..n): a whole character gives its length and *ok; otherwise the longest piece that
 * one U+FFFD stands for (Unicode 14, section 3.9, "substitution of maximal subparts"), and *cut tells whether it only lacks bytes at the end. */
int hd_utf8_unit(const unsigned char *p, size_t n, bool *ok, bool *cut);
/* Appends text with every ill-formed piece replaced by U+FFFD, as Python's bytes.decode(errors="replace"). */
void hd_utf8_replace(hd_str *out, const unsigned char *text, size_t n);

/* Whether text is certainly in NFC already (quick: no character from U+0300 on). */
bool hd_nfc_quick(const unsigned char *text, size_t n);
/* Appends the NFC of valid UTF-8 to out, over the characters that the normalizer of `tokenizers` knows. */
int hd_nfc(hd_str *out, const unsigned char *text, size_t n, hd_error *err);

#endif
