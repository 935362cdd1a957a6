/* libFuzzer target: any bytes as a tokenizer.json (up to a NUL; what follows is a text of its own to encode); one that is accepted encodes and
 * decodes some strings. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "data/tokenizer.h"
#include "data/unicode.h"

static void encode(const hd_tokenizer *t, hd_encoder *e, const char *text, size_t n)
{
    hd_error err = {0};
    hd_ids ids = {0};
    hd_str out;
    hd_str_init(&out);
    if (!hd_encoder_run(e, text, n, true, &ids, &err)) {
        for (size_t i = 0; i < ids.len; i++)
            if (!hd_tokenizer_token(t, ids.data[i])) abort(); /* every id that comes out has a token */
        if (hd_tokenizer_decode(t, ids.data, ids.len, false, &out, &err)) abort();
        if (hd_utf8_valid((const unsigned char *)out.data, out.len) != out.len) abort();
    } else if (!err.message[0]) {
        abort();
    }
    hd_ids_free(&ids);
    hd_str_free(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const texts[] = {"", "ab abb a", "It's 12345, isn't\r\n  it?\n\n", "e\xcc\x81 \xf0\x9f\x98\x80\xc2\xa0\xff\xed\xa0\x80<s>", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"};
    hd_error err = {0};
    const uint8_t *nul = memchr(data, 0, size);
    size_t n = nul ? (size_t)(nul - data) : size;
    hd_tokenizer *t = hd_tokenizer_parse((const char *)data, n, "tokenizer.json", &err);
    if ((t == NULL) != (err.code != 0) || (!t && !err.message[0])) abort();
    if (!t) return 0;
    hd_encoder *e = hd_encoder_new(t, &err);
    if (!e) abort();
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) encode(t, e, texts[i], strlen(texts[i]));
    if (nul) encode(t, e, (const char *)nul + 1, size - n - 1);
    hd_encoder_free(e);
    hd_tokenizer_free(t);
    return 0;
}
