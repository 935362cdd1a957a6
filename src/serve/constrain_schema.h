/* constrain_schema.h: JSON schemas into rules: constrain_schema.c chooses and merges, constrain_schema_types.c writes values of each type.
 * For these files only. */
#ifndef HD_SERVE_CONSTRAIN_SCHEMA_H
#define HD_SERVE_CONSTRAIN_SCHEMA_H

#include <stdlib.h>
#include "serve/constrain_json.h"

typedef struct hd_schema_ref { const json_t *to; int rule; } hd_schema_ref;

typedef struct hd_schema {
    hd_json_rules j;
    const json_t *root;
    json_t *made; /* schemas made by merging, kept until the end */
    hd_schema_ref *refs;
    size_t n_refs, cap_refs;
    int depth, compiled;
    int64_t work;      /* comparisons and copies of merging and of telling parts apart */
    json_t *yes;       /* true */
    hd_expr *name_end; /* the rest of an additional property's name */
} hd_schema;

/* Fails with `JSON schema: WHAT"NAME"` (and "isn't supported"). NULL. */
hd_expr *hd_schema_fail(hd_schema *x, int code, const char *what, const char *name);
hd_expr *hd_schema_compile(hd_schema *x, const json_t *s);
const json_t *hd_schema_follow(hd_schema *x, const json_t *s); /* through $ref; NULL on failure */
const json_t *hd_schema_merge(hd_schema *x, const json_t *a, const json_t *b);
json_t *hd_schema_without(hd_schema *x, const json_t *s, const char *name); /* and without annotations */

hd_expr *hd_schema_object(hd_schema *x, const json_t *s);
hd_expr *hd_schema_array(hd_schema *x, const json_t *s);
hd_expr *hd_schema_string(hd_schema *x, const json_t *s);
hd_expr *hd_schema_number(hd_schema *x, const json_t *s, bool integer);

#endif
