#include "base/json.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/file.h"

#define MAX_FILE ((size_t)1 << 30)

json_t *hd_json_parse(const char *text, size_t n, const char *name, hd_error *err)
{
    json_error_t e;
    json_t *j = json_loadb(text, n, JSON_ALLOW_NUL, &e);
    /* Configurations in the wild hold integers beyond 64 bits ("model_max_length": 1e30 written out): take numbers as reals then. */
    if (!j && json_error_code(&e) == json_error_numeric_overflow) j = json_loadb(text, n, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &e);
    if (!j) hd_fail(err, HD_EFORMAT, "%s: line %d, column %d: %s", name, e.line, e.column, e.text);
    return j;
}

json_t *hd_json_load(const char *path, hd_error *err)
{
    hd_str s;
    hd_str_init(&s);
    json_t *j = NULL;
    if (!hd_file_read(&s, path, MAX_FILE, err)) j = hd_json_parse(s.data, s.len, path, err);
    hd_str_free(&s);
    return j;
}

/* json_dump_callback: appends to an hd_str. */
static int append(const char *bytes, size_t n, void *s)
{
    hd_str_add(s, bytes, n);
    return ((hd_str *)s)->failed ? -1 : 0;
}

int hd_json_save(const json_t *j, const char *path, hd_error *err)
{
    hd_str s;
    hd_str_init(&s);
    int rc = json_dump_callback(j, append, &s, JSON_INDENT(2) | JSON_ENCODE_ANY);
    hd_str_putc(&s, '\n');
    if (s.failed) rc = hd_fail_memory(err, s.len, path);
    else if (rc) rc = hd_fail(err, HD_EINVAL, "%s: cannot be written as JSON", path);
    else rc = hd_file_write_atomic(path, s.data, s.len, err);
    hd_str_free(&s);
    return rc;
}

/* The member, or NULL when it is missing or null. */
static const json_t *member(const json_t *j, const char *key)
{
    const json_t *v = json_object_get(j, key);
    return json_is_null(v) ? NULL : v;
}

static int wrong(hd_error *err, const char *where, const char *key, const char *what)
{
    return hd_fail(err, HD_EFORMAT, "%s: \"%s\" must be %s", where, key, what);
}

/* An integer, also one that a parser took for a real (12.0) while it is exact. */
static bool as_integer(const json_t *v, int64_t *out)
{
    if (json_is_integer(v)) {
        *out = json_integer_value(v);
        return true;
    }
    double d = json_real_value(v);
    if (!json_is_real(v) || !(fabs(d) <= 0x1p53) || d != rint(d)) return false;
    *out = (int64_t)d;
    return true;
}

int hd_json_int(const json_t *j, const char *key, int64_t lo, int64_t hi, int64_t *out, const char *where, hd_error *err)
{
    const json_t *v = member(j, key);
    int64_t i;
    if (!v) return HD_OK;
    if (as_integer(v, &i) && i >= lo && i <= hi) {
        *out = i;
        return HD_OK;
    }
    char what[96] = "an integer";
    if (lo != INT64_MIN && hi != INT64_MAX) snprintf(what, sizeof what, "an integer from %" PRId64 " to %" PRId64, lo, hi);
    else if (lo != INT64_MIN) snprintf(what, sizeof what, "an integer of at least %" PRId64, lo);
    else if (hi != INT64_MAX) snprintf(what, sizeof what, "an integer of at most %" PRId64, hi);
    return wrong(err, where, key, what);
}

int hd_json_number(const json_t *j, const char *key, double lo, double hi, double *out, const char *where, hd_error *err)
{
    const json_t *v = member(j, key);
    if (!v) return HD_OK;
    double d = json_number_value(v);
    if (json_is_number(v) && d >= lo && d <= hi) {
        *out = d;
        return HD_OK;
    }
    char what[96] = "a number";
    if (isfinite(lo) && isfinite(hi)) snprintf(what, sizeof what, "a number from %g to %g", lo, hi);
    else if (isfinite(lo)) snprintf(what, sizeof what, "a number of at least %g", lo);
    else if (isfinite(hi)) snprintf(what, sizeof what, "a number of at most %g", hi);
    return wrong(err, where, key, what);
}

int hd_json_bool(const json_t *j, const char *key, bool *out, const char *where, hd_error *err)
{
    const json_t *v = member(j, key);
    if (!v) return HD_OK;
    if (!json_is_boolean(v)) return wrong(err, where, key, "true or false");
    *out = json_is_true(v);
    return HD_OK;
}

int hd_json_string(const json_t *j, const char *key, const char **out, const char *where, hd_error *err)
{
    const json_t *v = member(j, key);
    if (!v) return HD_OK;
    if (!json_is_string(v)) return wrong(err, where, key, "a string");
    if (strlen(json_string_value(v)) != json_string_length(v)) return wrong(err, where, key, "a string without NUL");
    *out = json_string_value(v);
    return HD_OK;
}

int hd_json_need(const json_t *j, const char *key, const char *where, hd_error *err)
{
    return member(j, key) ? HD_OK : hd_fail(err, HD_EFORMAT, "%s: \"%s\" is missing", where, key);
}
