/* libFuzzer target: any bytes as a regular expression (after the letter r) or as a grammar (after g); of what is accepted, random answers are UTF-8. */
#include <stddef.h>

#include "constrain_walk.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    hd_error err = {0};
    if (!size) return 0;
    walk_init();
    const char *text = (const char *)data + 1;
    hd_constraint_limits small = {.states = 2000}, *limits = size % 64 ? &small : NULL;
    hd_constraint *c = data[0] == 'g' ? hd_constraint_grammar(walk_vocabulary, text, size - 1, limits, &err)
                                      : hd_constraint_regex(walk_vocabulary, text, size - 1, limits, &err);
    if (!c != (err.code != 0) || (!c && !err.message[0])) abort();
    if (!c) return 0;
    for (uint64_t seed = 0; seed < 3; seed++) {
        hd_str out = HD_STR_INIT;
        if (walk(c, seed, 40, &out) && hd_utf8_valid((const unsigned char *)out.data, out.len) != out.len) abort();
        hd_str_free(&out);
    }
    hd_constraint_release(c);
    return 0;
}
