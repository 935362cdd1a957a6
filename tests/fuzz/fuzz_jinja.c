/* libFuzzer target: any bytes as a template (up to a NUL; what follows is JSON of its variables), rendered under small limits. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "data/jinja.h"
#include "data/unicode.h"

static const char usual[] =
    "{\"messages\": [{\"role\": \"system\", \"content\": \"S\"}, {\"role\": \"user\", \"content\": \" na\\u00efve \\n\"}, {\"role\": \"assistant\","
    " \"content\": null, \"n\": 1.5}], \"s\": \"a b,c\", \"l\": [3, 1, 2, [\"x\"]], \"d\": {\"a\": 1, \"b\": {}}, \"t\": true, \"add_generation_prompt\": "
    "true}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const hd_jinja_limits limits = {.steps = 20000, .bytes = 1 << 18};
    hd_error err = {0};
    const uint8_t *nul = memchr(data, 0, size);
    size_t n = nul ? (size_t)(nul - data) : size;
    hd_jinja *j = hd_jinja_parse((const char *)data, n, "template", &err);
    if ((j == NULL) != (err.code != 0) || (!j && !err.message[0])) abort();
    if (!j) return 0;
    json_t *variables = nul ? json_loadb((const char *)nul + 1, size - n - 1, JSON_ALLOW_NUL, NULL) : NULL;
    if (!json_is_object(variables)) {
        json_decref(variables);
        variables = json_loads(usual, 0, NULL);
    }
    hd_str out;
    hd_str_init(&out);
    int rc = hd_jinja_render(j, variables, &limits, 1700000000, &out, &err);
    if (rc ? !err.message[0] || out.len : hd_utf8_valid((const unsigned char *)out.data, out.len) != out.len) abort();
    hd_str_free(&out);
    json_decref(variables);
    hd_jinja_free(j);
    return 0;
}
