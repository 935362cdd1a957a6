/* constrain_walk.h: what the fuzzers of constraints share: a small vocabulary, and a random walk that checks a constraint's promises. */
#ifndef TESTS_FUZZ_CONSTRAIN_WALK_H
#define TESTS_FUZZ_CONSTRAIN_WALK_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "base/str.h"
#include "data/unicode.h"
#include "serve/constrain.h"

static hd_tokenizer *walk_tokenizer;
static hd_vocabulary *walk_vocabulary;

/* GPT-2's characters for bytes: those that print stand for themselves, the others for U+0100 and on. */
static void byte_name(hd_str *s, int byte)
{
    static int other = 256;
    unsigned char text[4];
    bool prints = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
    if (byte == '"' || byte == '\\') hd_str_putc(s, '\\');
    hd_str_add(s, text, (size_t)hd_utf8_put((uint32_t)(prints ? byte : other++), text));
}

/* 256 bytes, an end, and some tokens that reach over the ends of strings and numbers. */
static void walk_init(void)
{
    static const char *const more[] = {"\\\",", "\\\":", "\\\"}", "{\\\"", "[[", "]]", "true", "12", "0.5", "\xc4\xa0{", "ab", "abc", "aaaaaaaa", "\xc3\x83\xc2\xa9", "\\\\\\\""};
    hd_str s = HD_STR_INIT;
    hd_error err = {0};
    int32_t id = 0, eos = 0;
    if (walk_vocabulary) return;
    hd_str_puts(&s, "{\"version\":\"1.0\",\"added_tokens\":[{\"id\":0,\"content\":\"<|end|>\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false,\"special\":true}],"
                    "\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":true},\"post_processor\":null,"
                    "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,\"continuing_subword_prefix\":null,"
                    "\"end_of_word_suffix\":null,\"fuse_unk\":false,\"byte_fallback\":false,\"vocab\":{\"<|end|>\":0");
    for (int b = 0; b < 256; b++) {
        hd_str_puts(&s, ",\"");
        byte_name(&s, b);
        hd_str_printf(&s, "\":%d", ++id);
    }
    for (size_t i = 0; i < sizeof more / sizeof *more; i++) hd_str_printf(&s, ",\"%s\":%d", more[i], ++id);
    hd_str_puts(&s, "},\"merges\":[]}}");
    walk_tokenizer = hd_tokenizer_parse(s.data, s.len, "fuzz", &err);
    hd_str_free(&s);
    if (!walk_tokenizer || !(walk_vocabulary = hd_vocabulary_new(walk_tokenizer, &eos, 1, &err))) abort();
}

/* Up to `steps` allowed tokens at random, appended to text. Whether the end was reached. Stops where the constraint says that it is too ambiguous. */
static bool walk(const hd_constraint *c, uint64_t seed, int steps, hd_str *text)
{
    hd_rng r = hd_rng_new(seed);
    hd_error err = {0};
    uint64_t mask[8];
    bool ended = false;
    if ((hd_vocabulary_size(walk_vocabulary) + 63) / 64 > 8) abort();
    hd_constraint_state *s = hd_constraint_begin(c, &err);
    if (!s) abort();
    for (int i = 0; i < steps && !ended; i++) {
        int32_t count = 0, chosen = -1;
        size_t n = 0;
        if (hd_constraint_mask(s, mask, &err)) break;
        for (int32_t t = 0; t < hd_vocabulary_size(walk_vocabulary); t++)
            if (mask[t / 64] >> t % 64 & 1 && hd_rng_below(&r, (uint64_t)++count) == 0) chosen = t;
        if (chosen < 0) abort(); /* never empty */
        if (hd_constraint_complete(s) && chosen != 0) abort();
        if (mask[0] & 1 && hd_rng_below(&r, 3) == 0) chosen = 0;
        if (hd_constraint_advance(s, chosen, &err)) {
            if (err.code == HD_EINVAL) abort();
            break;
        }
        ended = chosen == 0;
        const char *bytes = ended ? NULL : hd_tokenizer_bytes(walk_tokenizer, chosen, &n);
        if (!ended) hd_str_add(text, bytes, n);
    }
    if (err.code && err.code != HD_EMEMCAP) abort();
    hd_constraint_end(s);
    return ended;
}

#endif
