/* jinja.h: the part of the Jinja template language that models' chat templates use, as transformers' apply_chat_template runs it (trim_blocks, lstrip_blocks,
 * loop controls; immutable sandbox).
 *
 * A program is read-only; rendering counts steps and bytes, and stops at its limits. What isn't known (a tag, filter, test, function, method) is an error when
 * a template is read, with line and column. */
#ifndef HD_DATA_JINJA_H
#define HD_DATA_JINJA_H

#include <jansson.h>
#include "base/error.h"
#include "base/str.h"

typedef struct hd_jinja hd_jinja;

typedef struct hd_jinja_limits {
    int64_t steps; /* 0: 2,000,000 */
    int64_t bytes; /* of output and of any string on the way; 0: 16 MiB */
    int depth;     /* of nesting, in the source and of macros; 0: 100 */
} hd_jinja_limits;

/* Reads a template of n bytes; name stands in messages. NULL and err on failure. */
hd_jinja *hd_jinja_parse(const char *text, size_t n, const char *name, hd_error *err);
void hd_jinja_free(hd_jinja *j);
/* Renders with the keys of `variables` (an object) defined, appending to out. `now`: seconds since 1970 for strftime_now. HD_EINVAL: raise_exception, or an
 * operation on the wrong types, with line; HD_EMEMCAP: a limit. */
int hd_jinja_render(const hd_jinja *j, const json_t *variables, const hd_jinja_limits *limits, int64_t now, hd_str *out, hd_error *err);

#endif
