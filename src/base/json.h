/* json.h: reading JSON (jansson) with messages that say which file, line and key. */
#ifndef HD_BASE_JSON_H
#define HD_BASE_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include "base/error.h"

/* Parses a file of at most 1 GiB, or text of n bytes (name is used in messages). NULL and err on failure; caller json_decrefs. */
json_t *hd_json_load(const char *path, hd_error *err);
json_t *hd_json_parse(const char *text, size_t n, const char *name, hd_error *err);
/* Writes JSON with indent 2 and sorted or insertion-ordered keys, atomically. */
int hd_json_save(const json_t *j, const char *path, hd_error *err);

/* Typed member reads. A missing (or null) key leaves *out alone and returns 0; one of the wrong type or out of [lo, hi] is HD_EFORMAT
 * with "<where>: \"key\" must be ...". The string stays owned by j. */
int hd_json_int(const json_t *j, const char *key, int64_t lo, int64_t hi, int64_t *out, const char *where, hd_error *err);
int hd_json_number(const json_t *j, const char *key, double lo, double hi, double *out, const char *where, hd_error *err);
int hd_json_bool(const json_t *j, const char *key, bool *out, const char *where, hd_error *err);
int hd_json_string(const json_t *j, const char *key, const char **out, const char *where, hd_error *err);
/* HD_EFORMAT unless key is there. */
int hd_json_need(const json_t *j, const char *key, const char *where, hd_error *err);

#endif
