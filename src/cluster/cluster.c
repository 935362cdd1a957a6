/* cluster.c: clusters as JSON, and where their devices are. */
#include "cluster/cluster.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "base/file.h"
#include "base/json.h"

/* ---- the fields, as both directions know them ---- */

typedef enum field_kind { NUMBER, BYTES /* int64_t */, COUNT /* int */, TEXT /* char[size] */ } field_kind;
typedef enum field_range { POSITIVE, NOT_NEGATIVE, SHARE /* above 0, at most 1 */, PART /* at least 0, below 1 */, ANY } field_range;

typedef struct field {
    const char *key;
    field_kind kind;
    field_range range;
    bool needed;
    size_t offset, size;
} field;

#define FIELD(type, member, kind, range, needed) {#member, kind, range, needed, offsetof(type, member), sizeof((type *)0)->member}

static const field cluster_fields[] = {
    FIELD(hd_cluster, name, TEXT, ANY, true), FIELD(hd_cluster, note, TEXT, ANY, false),
    FIELD(hd_cluster, price, NUMBER, NOT_NEGATIVE, false), FIELD(hd_cluster, node_level, COUNT, NOT_NEGATIVE, false),
};
static const field device_fields[] = {
    FIELD(hd_device, name, TEXT, ANY, true), FIELD(hd_device, bandwidth, NUMBER, POSITIVE, true), FIELD(hd_device, memory, BYTES, POSITIVE, true),
    FIELD(hd_device, reserved, BYTES, NOT_NEGATIVE, false), FIELD(hd_device, launch, NUMBER, NOT_NEGATIVE, true),
    FIELD(hd_device, host_memory, BYTES, NOT_NEGATIVE, false), FIELD(hd_device, host_bandwidth, NUMBER, NOT_NEGATIVE, false),
    FIELD(hd_device, disk, BYTES, NOT_NEGATIVE, false), FIELD(hd_device, disk_bandwidth, NUMBER, NOT_NEGATIVE, false),
    FIELD(hd_device, cores, COUNT, NOT_NEGATIVE, false),
};
static const field efficiency_fields[] = {
    FIELD(hd_efficiency, product, NUMBER, SHARE, true), FIELD(hd_efficiency, product_half, NUMBER, NOT_NEGATIVE, true),
    FIELD(hd_efficiency, depth_half, NUMBER, NOT_NEGATIVE, true), FIELD(hd_efficiency, memory, NUMBER, SHARE, true),
};
static const field level_fields[] = {
    FIELD(hd_level, name, TEXT, ANY, true), FIELD(hd_level, fanout, COUNT, POSITIVE, true), FIELD(hd_level, latency, NUMBER, NOT_NEGATIVE, true),
    FIELD(hd_level, bandwidth, NUMBER, POSITIVE, true), FIELD(hd_level, efficiency, NUMBER, SHARE, true), FIELD(hd_level, ports, COUNT, POSITIVE, true),
    FIELD(hd_level, contention, NUMBER, PART, false), FIELD(hd_level, drag, NUMBER, PART, false),
};
static const field entry_fields[] = {
    FIELD(hd_profile_entry, op, TEXT, ANY, true), FIELD(hd_profile_entry, threads, COUNT, POSITIVE, true), FIELD(hd_profile_entry, teams, COUNT, POSITIVE, true),
    FIELD(hd_profile_entry, seconds, NUMBER, POSITIVE, true),
};
#define N(list) ((int)(sizeof(list) / sizeof *(list)))

/* Keys that are no plain fields. */
static const char *const cluster_keys[] = {"version", "device", "levels", "profile", NULL};
static const char *const device_keys[] = {"flops", "efficiency", NULL};
static const char *const entry_keys[] = {"dtype", "x", NULL};
static const char *const no_keys[] = {NULL};

#define MAX_COUNT (1 << 24) /* of anything that is counted: devices, cores, ports */
#define MAX_DEVICES (1 << 24)
#define MAX_PROFILE (1 << 20)

/* ---- reading ---- */

static const char *const range_texts[] = {
    [POSITIVE] = "greater than 0", [NOT_NEGATIVE] = "of at least 0", [SHARE] = "greater than 0 and at most 1", [PART] = "of at least 0 and less than 1", [ANY] = "",
};

static bool in_range(field_range r, double v)
{
    return isfinite(v) && (r == ANY || v > 0 || (v == 0 && (r == NOT_NEGATIVE || r == PART))) && (r != SHARE || v <= 1) && (r != PART || v < 1);
}

static int wrong_type(const json_t *v, const field *f, const char *where, hd_error *err)
{
    static const char *const types[] = {[JSON_OBJECT] = "an object", [JSON_ARRAY] = "a list", [JSON_STRING] = "a string", [JSON_INTEGER] = "a number",
                                        [JSON_REAL] = "a number", [JSON_TRUE] = "true", [JSON_FALSE] = "false", [JSON_NULL] = "null"};
    const char *want = f->kind == TEXT ? "a string" : f->kind == NUMBER ? "a number" : "a whole number";
    return hd_fail(err, HD_EFORMAT, "%s: \"%s\" must be %s, is %s", where, f->key, want, types[json_typeof(v)]);
}

static int read_text(const json_t *v, const field *f, void *to, const char *where, hd_error *err)
{
    if (!json_is_string(v)) return wrong_type(v, f, where, err);
    size_t n = json_string_length(v);
    if (!n && f->needed) return hd_fail(err, HD_EFORMAT, "%s: \"%s\" is empty", where, f->key);
    if (n >= f->size) return hd_fail(err, HD_EFORMAT, "%s: \"%s\" is longer than %zu characters", where, f->key, f->size - 1);
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)json_string_value(v)[i] < ' ') return hd_fail(err, HD_EFORMAT, "%s: \"%s\" holds a control character", where, f->key);
    memcpy(to, json_string_value(v), n + 1);
    return 0;
}

static int read_amount(const json_t *v, const field *f, void *to, const char *where, hd_error *err)
{
    double d = json_number_value(v);
    if (!json_is_number(v)) return wrong_type(v, f, where, err);
    if (!in_range(f->range, d)) return hd_fail(err, HD_EFORMAT, "%s: \"%s\" must be a number %s, is %g", where, f->key, range_texts[f->range], d);
    if (f->kind == NUMBER) {
        *(double *)to = d;
        return 0;
    }
    double most = f->kind == BYTES ? 0x1p62 : MAX_COUNT;
    if (d != rint(d)) return hd_fail(err, HD_EFORMAT, "%s: \"%s\" must be a whole number, is %g", where, f->key, d);
    if (d > most) return hd_fail(err, HD_EFORMAT, "%s: \"%s\" must be at most %.0f, is %g", where, f->key, most, d);
    if (f->kind == BYTES) *(int64_t *)to = json_is_integer(v) ? json_integer_value(v) : (int64_t)d;
    else *(int *)to = (int)d;
    return 0;
}

static bool known_key(const char *key, const field *f, int n, const char *const *others)
{
    for (int i = 0; i < n; i++)
        if (!strcmp(key, f[i].key)) return true;
    for (; *others; others++)
        if (!strcmp(key, *others)) return true;
    return false;
}

/* An object's plain fields into *to; `others` are the keys that the caller reads. */
static int read_fields(const json_t *j, const field *f, int n, const char *const *others, void *to, const char *where, hd_error *err)
{
    const char *key;
    json_t *value;
    int rc = 0;
    if (!json_is_object(j)) return hd_fail(err, HD_EFORMAT, "%s must be an object", where);
    json_object_foreach((json_t *)j, key, value)
        if (!known_key(key, f, n, others)) return hd_fail(err, HD_EFORMAT, "%s: there is no field \"%.60s\"", where, key);
    for (int i = 0; i < n && !rc; i++) {
        const json_t *v = json_object_get(j, f[i].key);
        void *at = (char *)to + f[i].offset;
        if (!v && f[i].needed) return hd_fail(err, HD_EFORMAT, "%s: \"%s\" is missing", where, f[i].key);
        if (v) rc = f[i].kind == TEXT ? read_text(v, &f[i], at, where, err) : read_amount(v, &f[i], at, where, err);
    }
    return rc;
}

/* The member that must be an object or a list. */
static int read_part(const json_t *j, const char *key, bool list, const json_t **out, const char *where, hd_error *err)
{
    *out = json_object_get(j, key);
    if (!*out) return hd_fail(err, HD_EFORMAT, "%s: \"%s\" is missing", where, key);
    if (list ? json_is_array(*out) : json_is_object(*out)) return 0;
    return hd_fail(err, HD_EFORMAT, "%s: \"%s\" must be %s", where, key, list ? "a list" : "an object");
}

static int read_flops(const json_t *j, hd_device *d, const char *where, hd_error *err)
{
    const json_t *rates;
    const char *key;
    json_t *value;
    int rc = read_part(j, "flops", false, &rates, where, err);
    if (rc) return rc;
    json_object_foreach((json_t *)rates, key, value) {
        hd_dtype t;
        if (hd_dtype_parse(key, &t)) return hd_fail(err, HD_EFORMAT, "%s: \"flops\": there is no dtype \"%.30s\"", where, key);
        field f = {key, NUMBER, POSITIVE, true, 0, sizeof(double)};
        rc = read_amount(value, &f, &d->flops[t], where, err);
        if (rc) return rc;
    }
    if (!(d->flops[HD_F32] > 0)) return hd_fail(err, HD_EFORMAT, "%s: \"flops\": \"f32\" is missing", where);
    return 0;
}

static int read_device(const json_t *j, hd_device *d, const char *name, hd_error *err)
{
    char where[320];
    const json_t *device, *efficiency;
    snprintf(where, sizeof where, "%.256s: device", name);
    int rc = read_part(j, "device", false, &device, name, err);
    if (!rc) rc = read_fields(device, device_fields, N(device_fields), device_keys, d, where, err);
    if (!rc) rc = read_flops(device, d, where, err);
    if (!rc) rc = read_part(device, "efficiency", false, &efficiency, where, err);
    snprintf(where, sizeof where, "%.256s: device: efficiency", name);
    if (!rc) rc = read_fields(efficiency, efficiency_fields, N(efficiency_fields), no_keys, &d->efficiency, where, err);
    if (!rc && d->reserved >= d->memory)
        return hd_fail(err, HD_EFORMAT, "%s: device: \"reserved\" (%" PRId64 ") leaves nothing of \"memory\" (%" PRId64 ")", name, d->reserved, d->memory);
    return rc;
}

static int read_levels(const json_t *j, hd_cluster *c, const char *name, hd_error *err)
{
    const json_t *list;
    int64_t devices = 1;
    int rc = read_part(j, "levels", true, &list, name, err);
    if (rc) return rc;
    if (json_array_size(list) > HD_MAX_LEVELS)
        return hd_fail(err, HD_EFORMAT, "%s: \"levels\" has %zu entries, there can be %d", name, json_array_size(list), HD_MAX_LEVELS);
    for (size_t i = 0; i < json_array_size(list); i++) {
        char where[320];
        snprintf(where, sizeof where, "%.256s: levels[%zu]", name, i);
        rc = read_fields(json_array_get(list, i), level_fields, N(level_fields), no_keys, &c->level[c->n_levels], where, err);
        if (rc) return rc;
        devices *= c->level[c->n_levels++].fanout;
        if (devices > MAX_DEVICES) return hd_fail(err, HD_EFORMAT, "%s: more than %d devices", where, MAX_DEVICES);
    }
    if (c->node_level > 0 && c->node_level >= c->n_levels)
        return hd_fail(err, HD_EFORMAT, "%s: \"node_level\" is %d, the levels are 0 to %d", name, c->node_level, c->n_levels - 1);
    return 0;
}

static int read_entry(const json_t *j, hd_profile_entry *e, const char *where, hd_error *err)
{
    const char *dtype = NULL;
    const json_t *x;
    int rc = read_fields(j, entry_fields, N(entry_fields), entry_keys, e, where, err);
    if (!rc) rc = hd_json_need(j, "dtype", where, err);
    if (!rc) rc = hd_json_string(j, "dtype", &dtype, where, err);
    if (!rc && hd_dtype_parse(dtype, &e->dtype)) return hd_fail(err, HD_EFORMAT, "%s: \"dtype\": there is no dtype \"%.30s\"", where, dtype);
    if (!rc) rc = read_part(j, "x", true, &x, where, err);
    if (rc) return rc;
    if (json_array_size(x) > HD_PROFILE_FEATURES)
        return hd_fail(err, HD_EFORMAT, "%s: \"x\" has %zu entries, there can be %d", where, json_array_size(x), HD_PROFILE_FEATURES);
    for (size_t i = 0; i < HD_PROFILE_FEATURES; i++) {
        const json_t *v = json_array_get(x, i);
        e->x[i] = v ? json_number_value(v) : 1;
        if (v && !(json_is_number(v) && in_range(POSITIVE, e->x[i])))
            return hd_fail(err, HD_EFORMAT, "%s: \"x\" must be a list of numbers greater than 0", where);
    }
    return 0;
}

static int read_profile(const json_t *j, hd_cluster *c, const char *name, hd_error *err)
{
    const json_t *list = json_object_get(j, "profile");
    if (!list) return 0;
    if (!json_is_array(list)) return hd_fail(err, HD_EFORMAT, "%s: \"profile\" must be a list", name);
    size_t n = json_array_size(list);
    if (n > MAX_PROFILE) return hd_fail(err, HD_EFORMAT, "%s: \"profile\" has %zu entries, there can be %d", name, n, MAX_PROFILE);
    c->profile = hd_calloc(n ? n : 1, sizeof *c->profile);
    if (!c->profile) return hd_fail_memory(err, n * sizeof *c->profile, "a profile");
    for (size_t i = 0; i < n; i++) {
        char where[320];
        snprintf(where, sizeof where, "%.256s: profile[%zu]", name, i);
        int rc = read_entry(json_array_get(list, i), &c->profile[c->n_profile++], where, err);
        if (rc) return rc;
    }
    return 0;
}

static int read_version(const json_t *j, const char *name, hd_error *err)
{
    int64_t version = 0;
    if (!json_is_object(j)) return hd_fail(err, HD_EFORMAT, "%s: a cluster must be an object", name);
    int rc = hd_json_need(j, "version", name, err);
    if (!rc) rc = hd_json_int(j, "version", 1, INT32_MAX, &version, name, err);
    if (rc || version == HD_CLUSTER_VERSION) return rc;
    return hd_fail(err, HD_EUNSUPPORTED, "%s: the cluster is of version %" PRId64 ", this program reads version %d", name, version, HD_CLUSTER_VERSION);
}

static int read_cluster(const json_t *j, const char *name, hd_cluster *c, hd_error *err)
{
    int rc = read_version(j, name, err);
    if (!rc) rc = read_fields(j, cluster_fields, N(cluster_fields), cluster_keys, c, name, err);
    if (!rc) rc = read_device(j, &c->device, name, err);
    if (!rc) rc = read_levels(j, c, name, err);
    return rc ? rc : read_profile(j, c, name, err);
}

int hd_cluster_parse(const char *text, size_t n, const char *name, hd_cluster *out, hd_error *err)
{
    json_t *j = hd_json_parse(text, n, name, err);
    if (!j) return HD_EFORMAT;
    hd_cluster c = {0};
    int rc = read_cluster(j, name, &c, err);
    json_decref(j);
    if (rc) hd_cluster_free(&c);
    else *out = c;
    return rc;
}

#define MAX_FILE ((size_t)256 << 20)

int hd_cluster_load(const char *path, hd_cluster *out, hd_error *err)
{
    hd_str text;
    hd_str_init(&text);
    int rc = hd_file_read(&text, path, MAX_FILE, err);
    if (!rc) rc = hd_cluster_parse(text.data, text.len, path, out, err);
    hd_str_free(&text);
    return rc;
}

void hd_cluster_free(hd_cluster *c)
{
    hd_free(c->profile);
    *c = (hd_cluster){0};
}

/* ---- writing ---- */

/* Appends "key": for what is a field of an object at so much indent; *first says whether a comma is due. */
static void print_key(hd_str *out, const char *key, int indent, bool *first)
{
    hd_str_printf(out, "%s\n%*s\"%s\": ", *first ? "" : ",", indent, "", key);
    *first = false;
}

static void print_text(hd_str *out, const char *text)
{
    hd_str_putc(out, '"');
    for (; *text; text++) {
        if (*text == '"' || *text == '\\') hd_str_putc(out, '\\');
        hd_str_putc(out, *text);
    }
    hd_str_putc(out, '"');
}

/* The shortest of the forms that read back as the same number. */
static void print_number(hd_str *out, double v)
{
    char text[40];
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, v);
        if (strtod(text, NULL) == v) break;
    }
    hd_str_puts(out, text);
}

static bool is_preset(const field *f, const void *at)
{
    if (f->needed) return false;
    if (f->kind == TEXT) return !*(const char *)at;
    if (f->kind == NUMBER) return *(const double *)at == 0;
    return f->kind == BYTES ? *(const int64_t *)at == 0 : *(const int *)at == 0;
}

static void print_fields(hd_str *out, const field *f, int n, const void *from, int indent, bool *first)
{
    for (int i = 0; i < n; i++) {
        const void *at = (const char *)from + f[i].offset;
        if (is_preset(&f[i], at)) continue;
        print_key(out, f[i].key, indent, first);
        if (f[i].kind == TEXT) print_text(out, at);
        else if (f[i].kind == NUMBER) print_number(out, *(const double *)at);
        else if (f[i].kind == BYTES) hd_str_printf(out, "%" PRId64, *(const int64_t *)at);
        else hd_str_printf(out, "%d", *(const int *)at);
    }
}

static void print_device(hd_str *out, const hd_device *d)
{
    bool first = true, first_rate = true, first_part = true;
    hd_str_putc(out, '{');
    print_fields(out, device_fields, N(device_fields), d, 4, &first);
    print_key(out, "flops", 4, &first);
    hd_str_putc(out, '{');
    for (int t = 0; t < HD_DTYPE_COUNT; t++) {
        if (!(d->flops[t] > 0)) continue;
        hd_str_printf(out, "%s\"%s\": ", first_rate ? "" : ", ", hd_dtype_name((hd_dtype)t));
        print_number(out, d->flops[t]);
        first_rate = false;
    }
    hd_str_putc(out, '}');
    print_key(out, "efficiency", 4, &first);
    hd_str_putc(out, '{');
    print_fields(out, efficiency_fields, N(efficiency_fields), &d->efficiency, 6, &first_part);
    hd_str_puts(out, "\n    }\n  }");
}

static void print_levels(hd_str *out, const hd_cluster *c)
{
    hd_str_putc(out, '[');
    for (int i = 0; i < c->n_levels; i++) {
        bool first = true;
        hd_str_printf(out, "%s\n    {", i ? "," : "");
        print_fields(out, level_fields, N(level_fields), &c->level[i], 6, &first);
        hd_str_puts(out, "\n    }");
    }
    hd_str_puts(out, c->n_levels ? "\n  ]" : "]");
}

/* One line an entry: there are hundreds. */
static void print_profile(hd_str *out, const hd_cluster *c)
{
    hd_str_putc(out, '[');
    for (int i = 0; i < c->n_profile; i++) {
        const hd_profile_entry *e = &c->profile[i];
        hd_str_printf(out, "%s\n    {\"op\": ", i ? "," : "");
        print_text(out, e->op);
        hd_str_printf(out, ", \"dtype\": \"%s\", \"threads\": %d, \"teams\": %d, \"x\": [", hd_dtype_name(e->dtype), e->threads, e->teams);
        for (int k = 0; k < HD_PROFILE_FEATURES; k++) {
            if (k) hd_str_puts(out, ", ");
            print_number(out, e->x[k]);
        }
        hd_str_puts(out, "], \"seconds\": ");
        print_number(out, e->seconds);
        hd_str_putc(out, '}');
    }
    hd_str_puts(out, "\n  ]");
}

int hd_cluster_print(const hd_cluster *c, hd_str *out)
{
    bool first = false;
    hd_str_printf(out, "{\n  \"version\": %d", HD_CLUSTER_VERSION);
    print_fields(out, cluster_fields, N(cluster_fields), c, 2, &first);
    print_key(out, "device", 2, &first);
    print_device(out, &c->device);
    print_key(out, "levels", 2, &first);
    print_levels(out, c);
    if (c->n_profile) {
        print_key(out, "profile", 2, &first);
        print_profile(out, c);
    }
    hd_str_puts(out, "\n}\n");
    return out->failed ? HD_ENOMEM : 0;
}

int hd_cluster_save(const hd_cluster *c, const char *path, hd_error *err)
{
    hd_str text;
    hd_str_init(&text);
    int rc = hd_cluster_print(c, &text) ? hd_fail_memory(err, text.len, "a cluster") : hd_file_write_atomic(path, text.data, text.len, err);
    hd_str_free(&text);
    return rc;
}

/* ---- where devices are ---- */

int hd_cluster_group(const hd_cluster *c, int level)
{
    int n = 1;
    for (int i = 0; i <= level && i < c->n_levels; i++) n *= c->level[i].fanout;
    return n;
}

int hd_cluster_devices(const hd_cluster *c)
{
    return hd_cluster_group(c, c->n_levels - 1);
}

int hd_cluster_nodes(const hd_cluster *c)
{
    return hd_cluster_devices(c) / hd_cluster_group(c, c->node_level);
}

int hd_cluster_level(const hd_cluster *c, int a, int b)
{
    if (a == b) return -1;
    for (int i = 0, n = 1; i < c->n_levels; i++) {
        n *= c->level[i].fanout;
        if (a / n == b / n) return i;
    }
    return c->n_levels - 1;
}
