/* libFuzzer target: any bytes as a JSON schema; of one that is accepted, random answers: what ends is JSON. */
#include <stddef.h>

#include "constrain_walk.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    hd_error err = {0};
    json_t *schema = json_loadb((const char *)data, size, JSON_DECODE_ANY, NULL);
    if (!schema) return 0;
    walk_init();
    hd_constraint_limits small = {.states = 2000};
    hd_constraint *c = hd_constraint_json_schema(walk_vocabulary, schema, size % 64 ? &small : NULL, &err);
    json_decref(schema);
    if (!c != (err.code != 0) || (!c && !err.message[0])) abort();
    if (!c) return 0;
    for (uint64_t seed = 0; seed < 3; seed++) {
        hd_str text = HD_STR_INIT;
        if (walk(c, seed, 60, &text)) {
            json_t *j = json_loadb(text.data, text.len, JSON_DECODE_ANY, NULL);
            if (!j) abort();
            json_decref(j);
        }
        hd_str_free(&text);
    }
    hd_constraint_release(c);
    return 0;
}
