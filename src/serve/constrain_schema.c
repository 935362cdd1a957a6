#include <math.h>
#include <string.h>
#include "serve/constrain_json.h"
#include "serve/constrain_schema.h"

enum { T_NULL = 1, T_BOOLEAN = 2, T_INTEGER = 4, T_NUMBER = 8, T_STRING = 16, T_ARRAY = 32, T_OBJECT = 64, T_ALL = 127 & ~T_INTEGER };

static const struct { const char *name; int bit; } types[] = {
    {"null", T_NULL}, {"boolean", T_BOOLEAN}, {"integer", T_INTEGER}, {"number", T_NUMBER}, {"string", T_STRING}, {"array", T_ARRAY}, {"object", T_OBJECT},
};

/* What a keyword says something about: types of values; ANY: all; NOTE: nothing, an annotation. */
enum { ANY = 256, NOTE = 512, CHOICE = 1024 };
static const struct { const char *name; int about; } keywords[] = {
    {"type", ANY}, {"enum", ANY}, {"const", ANY}, {"$ref", CHOICE}, {"anyOf", CHOICE}, {"oneOf", CHOICE}, {"allOf", CHOICE},
    {"properties", T_OBJECT}, {"required", T_OBJECT}, {"additionalProperties", T_OBJECT}, {"minProperties", T_OBJECT}, {"maxProperties", T_OBJECT},
    {"items", T_ARRAY}, {"prefixItems", T_ARRAY}, {"minItems", T_ARRAY}, {"maxItems", T_ARRAY}, {"uniqueItems", T_ARRAY},
    {"minLength", T_STRING}, {"maxLength", T_STRING}, {"pattern", T_STRING}, {"format", T_STRING},
    {"minimum", T_NUMBER}, {"maximum", T_NUMBER}, {"exclusiveMinimum", T_NUMBER}, {"exclusiveMaximum", T_NUMBER}, {"multipleOf", T_NUMBER},
    {"title", NOTE}, {"description", NOTE}, {"default", NOTE}, {"examples", NOTE}, {"example", NOTE}, {"$schema", NOTE}, {"$id", NOTE}, {"$comment", NOTE},
    {"deprecated", NOTE}, {"readOnly", NOTE}, {"writeOnly", NOTE}, {"$defs", NOTE}, {"definitions", NOTE}, {"discriminator", NOTE},
    {"contentMediaType", NOTE}, {"contentEncoding", NOTE}, {"$anchor", NOTE},
};

static int about(const char *keyword)
{
    for (size_t i = 0; i < sizeof keywords / sizeof *keywords; i++)
        if (!strcmp(keywords[i].name, keyword)) return keywords[i].about;
    return !strncmp(keyword, "x-", 2) ? NOTE : 0;
}

/* ---- messages ---- */

hd_expr *hd_schema_fail(hd_schema *x, int code, const char *what, const char *name)
{
    hd_fail(x->j.g->err, code, "JSON schema: %s\"%.100s\"%s", what, name, code == HD_EUNSUPPORTED ? " isn't supported" : "");
    return NULL;
}

enum { MOST_WORK = 3000000 };

static int check_work(hd_schema *x)
{
    return x->work > MOST_WORK ? hd_fail(x->j.g->err, HD_EMEMCAP, "JSON schema: too much in oneOf or allOf") : 0;
}

/* ---- types ---- */

static int type_bit(const json_t *name)
{
    for (size_t i = 0; json_is_string(name) && i < 7; i++)
        if (!strcmp(types[i].name, json_string_value(name))) return types[i].bit;
    return 0;
}

/* The types that `type` allows; without it those that the keywords speak of. 0 and an error when it makes no sense. */
static int types_of(hd_schema *x, const json_t *s)
{
    const json_t *type = json_object_get(s, "type"), *one;
    int set = 0, bit;
    size_t i;
    const char *key;
    json_t *value;
    if (json_is_array(type)) {
        json_array_foreach(type, i, one) {
            if (!(bit = type_bit(one))) return hd_schema_fail(x, HD_EINVAL, "a type that isn't one in ", "type"), 0;
            set |= bit;
        }
        if (!set) hd_schema_fail(x, HD_EINVAL, "no type in ", "type");
    } else if (type) {
        if (!(set = type_bit(type))) hd_schema_fail(x, HD_EINVAL, "not a type: ", json_is_string(type) ? json_string_value(type) : "type");
    } else {
        json_object_foreach((json_t *)(uintptr_t)s, key, value) if (about(key) < ANY) set |= about(key);
        if (!set) set = T_ALL;
    }
    return set & T_NUMBER ? set & ~T_INTEGER : set;
}

static int type_of_value(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_NULL: return T_NULL;
    case JSON_TRUE: case JSON_FALSE: return T_BOOLEAN;
    case JSON_INTEGER: return T_INTEGER | T_NUMBER;
    case JSON_REAL: return json_real_value(v) == floor(json_real_value(v)) ? T_INTEGER | T_NUMBER : T_NUMBER;
    case JSON_STRING: return T_STRING;
    case JSON_ARRAY: return T_ARRAY;
    default: return T_OBJECT;
    }
}

/* ---- enum and const ---- */

static hd_expr *literal(hd_schema *x, const json_t *v)
{
    char *text = json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(17));
    if (!text) return hd_fail_memory(x->j.g->err, 64, "a JSON schema"), NULL;
    hd_expr *e = hd_expr_text(x->j.g, text);
    free(text);
    return e;
}

static hd_expr *compile_enum(hd_schema *x, const json_t *s)
{
    const json_t *values = json_object_get(s, "enum"), *only = json_object_get(s, "const"), *v;
    hd_parts l = {0};
    const char *key;
    json_t *other;
    size_t i;
    int allowed = T_ALL | T_INTEGER;
    json_object_foreach((json_t *)(uintptr_t)s, key, other)
        if (about(key) != NOTE && strcmp(key, "enum") && strcmp(key, "const") && strcmp(key, "type"))
            return hd_schema_fail(x, HD_EUNSUPPORTED, "enum or const beside ", key);
    if (json_object_get(s, "type") && !(allowed = types_of(x, s))) return NULL;
    if (values && !json_is_array(values)) return hd_schema_fail(x, HD_EINVAL, "not an array: ", "enum");
    bool ok = true;
    if (!values) ok = !(type_of_value(only) & allowed) || hd_parts_add(x->j.g, &l, literal(x, only));
    json_array_foreach(values, i, v) {
        if (!ok || !(type_of_value(v) & allowed) || (only && !json_equal(only, v))) continue;
        ok = hd_parts_add(x->j.g, &l, literal(x, v));
    }
    return hd_parts_end(x->j.g, HD_EXPR_ALT, &l, ok);
}

/* ---- $ref: each place of the schema that is referred to is a rule ---- */

/* What a local JSON pointer leads to, or NULL. */
static const json_t *resolve(hd_schema *x, const char *ref)
{
    const json_t *at = x->root;
    char part[256];
    if (*ref++ != '#') return NULL;
    while (at && *ref == '/') {
        size_t n = 0;
        for (ref++; *ref && *ref != '/' && n < sizeof part - 1; ref++) {
            bool tilde = *ref == '~' && (ref[1] == '0' || ref[1] == '1');
            part[n++] = !tilde ? *ref : ref[1] == '0' ? '~' : '/';
            ref += tilde;
        }
        part[n] = 0;
        at = json_is_array(at) ? json_array_get(at, (size_t)strtoul(part, NULL, 10)) : json_object_get(at, part);
    }
    return *ref ? NULL : at;
}

const json_t *hd_schema_follow(hd_schema *x, const json_t *s)
{
    for (int i = 0; i < 100; i++) {
        const json_t *ref = json_object_get(s, "$ref");
        if (!ref) return s;
        s = json_is_string(ref) ? resolve(x, json_string_value(ref)) : NULL;
        if (!s) return hd_schema_fail(x, HD_EUNSUPPORTED, "what $ref leads to, ", json_is_string(ref) ? json_string_value(ref) : "?"), NULL;
    }
    return hd_schema_fail(x, HD_EINVAL, "a circle of ", "$ref"), NULL;
}

static hd_expr *compile_ref(hd_schema *x, const json_t *s)
{
    const json_t *to = hd_schema_follow(x, s);
    const char *key;
    json_t *other;
    json_object_foreach((json_t *)(uintptr_t)s, key, other)
        if (about(key) != NOTE && strcmp(key, "$ref")) return hd_schema_fail(x, HD_EUNSUPPORTED, "$ref beside ", key);
    if (!to) return NULL;
    for (size_t i = 0; i < x->n_refs; i++)
        if (x->refs[i].to == to) return hd_expr_rule(x->j.g, x->refs[i].rule);
    int rule = hd_rules_add(x->j.g, json_string_value(json_object_get(s, "$ref")), true);
    if (rule < 0) return NULL;
    if (hd_grow(&x->refs, &x->cap_refs, x->n_refs + 1, sizeof *x->refs)) return hd_fail_memory(x->j.g->err, 16, "a JSON schema"), NULL;
    x->refs[x->n_refs++] = (hd_schema_ref){to, rule};
    int depth = x->depth;
    hd_expr *body = hd_schema_compile(x, to);
    x->depth = depth;
    x->j.g->rules[rule].body = body;
    return body ? hd_expr_rule(x->j.g, rule) : NULL;
}

/* ---- anyOf, oneOf, allOf ---- */

/* Whether no value can be both, as far as types, constants and discriminating properties show. */
static bool disjoint(hd_schema *x, const json_t *a, const json_t *b, int depth);

static bool distinct_values(hd_schema *x, const json_t *a, const json_t *b)
{
    json_t *const_a = json_object_get(a, "const"), *const_b = json_object_get(b, "const");
    const json_t *many_a = json_object_get(a, "enum"), *many_b = json_object_get(b, "enum");
    size_t na = const_a ? 1 : json_array_size(many_a), nb = const_b ? 1 : json_array_size(many_b);
    x->work += (int64_t)(na * nb) + 8;
    if (x->work > MOST_WORK) return false;
    for (size_t i = 0; i < na; i++)
        for (size_t k = 0; k < nb; k++)
            if (json_equal(const_a ? const_a : json_array_get(many_a, i), const_b ? const_b : json_array_get(many_b, k))) return false;
    return na && nb;
}

static bool is_required(hd_schema *x, const json_t *s, const char *name)
{
    size_t i;
    x->work += (int64_t)json_array_size(json_object_get(s, "required"));
    const json_t *r;
    json_array_foreach(json_object_get(s, "required"), i, r) if (json_is_string(r) && !strcmp(json_string_value(r), name)) return true;
    return false;
}

static bool disjoint(hd_schema *x, const json_t *a, const json_t *b, int depth)
{
    const char *key;
    json_t *pa;
    if (depth > 8 || !(a = hd_schema_follow(x, a)) || !(b = hd_schema_follow(x, b))) return false;
    if (!json_is_object(a) || !json_is_object(b)) return json_is_false(a) || json_is_false(b);
    if (distinct_values(x, a, b)) return true;
    if (!json_object_get(a, "type") || !json_object_get(b, "type")) return false;
    int ta = types_of(x, a), tb = types_of(x, b);
    if (ta & T_NUMBER) ta |= T_INTEGER;
    if (tb & T_NUMBER) tb |= T_INTEGER;
    if (!(ta & tb)) return true;
    if ((ta & tb) != T_OBJECT) return false;
    json_object_foreach(json_object_get(a, "properties"), key, pa) {
        const json_t *pb = json_object_get(json_object_get(b, "properties"), key);
        if (pb && x->work < MOST_WORK && is_required(x, a, key) && is_required(x, b, key) && disjoint(x, pa, pb, depth + 1)) return true;
    }
    return false;
}

static int check_disjoint(hd_schema *x, const json_t *parts)
{
    for (size_t i = 0; i < json_array_size(parts); i++)
        for (size_t k = 0; k < i; k++)
            if (!disjoint(x, json_array_get(parts, i), json_array_get(parts, k), 0) && x->work <= MOST_WORK)
                return hd_schema_fail(x, HD_EUNSUPPORTED, "with parts that may overlap, ", "oneOf"), HD_EUNSUPPORTED;
            else if (x->work > MOST_WORK) return check_work(x);
    return 0;
}

static hd_expr *compile_choice(hd_schema *x, const json_t *s, const char *name)
{
    const json_t *parts = json_object_get(s, name), *part;
    hd_parts l = {0};
    size_t i;
    if (!json_is_array(parts) || !json_array_size(parts)) return hd_schema_fail(x, HD_EINVAL, "not an array of schemas: ", name);
    if (!strcmp(name, "oneOf") && check_disjoint(x, parts)) return NULL;
    json_t *base = hd_schema_without(x, s, name);
    bool ok = base != NULL;
    json_array_foreach(parts, i, part) {
        const json_t *whole = !ok ? NULL : json_object_size(base) ? hd_schema_merge(x, base, part) : part;
        ok = ok && whole && hd_parts_add(x->j.g, &l, hd_schema_compile(x, whole));
        if (!ok) break;
    }
    return hd_parts_end(x->j.g, HD_EXPR_ALT, &l, ok);
}

static hd_expr *compile_all(hd_schema *x, const json_t *s)
{
    const json_t *parts = json_object_get(s, "allOf"), *part;
    size_t i;
    if (!json_is_array(parts) || !json_array_size(parts)) return hd_schema_fail(x, HD_EINVAL, "not an array of schemas: ", "allOf");
    json_t *base = hd_schema_without(x, s, "allOf");
    if (!base) return NULL;
    if (!json_object_size(base) && json_array_size(parts) == 1) return hd_schema_compile(x, json_array_get(parts, 0));
    const json_t *whole = base;
    json_array_foreach(parts, i, part) if (whole) whole = hd_schema_merge(x, whole, part);
    return whole ? hd_schema_compile(x, whole) : NULL;
}

/* ---- merging, for allOf and for what stands beside anyOf: whatever both restrict must be the same, or objects' properties that differ ---- */

static json_t *own(hd_schema *x, json_t *j)
{
    if (j && !json_array_append(x->made, j)) {
        json_decref(j); /* x->made holds it */
        return j;
    }
    json_decref(j);
    hd_fail_memory(x->j.g->err, 64, "a JSON schema");
    return NULL;
}

json_t *hd_schema_without(hd_schema *x, const json_t *s, const char *name)
{
    json_t *base = own(x, json_object()), *value;
    const char *key;
    json_object_foreach((json_t *)(uintptr_t)s, key, value)
        if (base && strcmp(key, name) && about(key) != NOTE && json_object_set(base, key, value)) return hd_fail_memory(x->j.g->err, 64, "a JSON schema"), NULL;
    return base;
}

static int merge_properties(json_t *out, const json_t *more)
{
    json_t *to = json_object_get(out, "properties"), *value, *both;
    const char *key;
    if (!json_is_object(to) || !json_is_object(more)) return HD_EINVAL;
    to = json_copy(to);
    if (json_object_set_new(out, "properties", to)) return HD_ENOMEM;
    json_object_foreach((json_t *)(uintptr_t)more, key, value) {
        json_t *had = json_object_get(to, key);
        if (!had || json_equal(had, value)) both = json_incref(value);
        else both = json_pack("{s:[O,O]}", "allOf", had, value);
        if (!both || json_object_set_new(to, key, both)) return HD_ENOMEM;
    }
    return 0;
}

static int merge_required(json_t *out, const json_t *more)
{
    json_t *to = json_object_get(out, "required");
    if (!json_is_array(to) || !json_is_array(more)) return HD_EINVAL;
    to = json_copy(to);
    if (json_object_set_new(out, "required", to) || json_array_extend(to, (json_t *)(uintptr_t)more)) return HD_ENOMEM;
    return 0;
}

/* Whether what closes an object in a hides properties that only b names. */
static bool closes(const json_t *a, const json_t *b)
{
    const json_t *more = json_object_get(a, "additionalProperties");
    json_t *value;
    const char *key;
    if (!more || json_is_true(more)) return false;
    json_object_foreach(json_object_get(b, "properties"), key, value)
        if (!json_object_get(json_object_get(a, "properties"), key)) return true;
    return false;
}

const json_t *hd_schema_merge(hd_schema *x, const json_t *a, const json_t *b)
{
    json_t *value;
    const char *key;
    if (json_is_true(b)) return a;
    if (!(a = hd_schema_follow(x, a)) || !(b = hd_schema_follow(x, b))) return NULL;
    if (json_is_true(a)) return b;
    if (json_is_false(a) || json_is_false(b)) return json_is_false(a) ? a : b;
    if (!json_is_object(a) || !json_is_object(b)) return hd_schema_fail(x, HD_EINVAL, "not a schema in ", "allOf"), NULL;
    if (closes(a, b) || closes(b, a)) return hd_schema_fail(x, HD_EUNSUPPORTED, "in parts of allOf or beside anyOf, ", "additionalProperties"), NULL;
    json_t *out = own(x, json_copy((json_t *)(uintptr_t)a));
    if (!out) return NULL;
    json_object_foreach((json_t *)(uintptr_t)b, key, value) {
        json_t *had = json_object_get(out, key);
        int rc = 0;
        x->work += 10 + 10 * (int64_t)json_object_size(had) + 10 * (int64_t)json_array_size(had);
        if (check_work(x)) return NULL;
        if (about(key) == NOTE || (had && json_equal(had, value))) continue;
        if (!had) rc = json_object_set(out, key, value) ? HD_ENOMEM : 0;
        else if (!strcmp(key, "properties")) rc = merge_properties(out, value);
        else if (!strcmp(key, "required")) rc = merge_required(out, value);
        else return hd_schema_fail(x, HD_EUNSUPPORTED, "in two parts of allOf or beside anyOf, different values of ", key), NULL;
        if (rc) return hd_schema_fail(x, rc, "can't be merged: ", key), NULL;
    }
    return out;
}

/* ---- a schema ---- */

static int check_keywords(hd_schema *x, const json_t *s)
{
    json_t *value;
    const char *key;
    json_object_foreach((json_t *)(uintptr_t)s, key, value)
        if (!about(key)) return hd_schema_fail(x, HD_EUNSUPPORTED, "", key), HD_EUNSUPPORTED;
    return 0;
}

static hd_expr *compile_types(hd_schema *x, const json_t *s)
{
    hd_parts l = {0};
    hd_rules *g = x->j.g;
    int set = types_of(x, s);
    bool ok = set != 0;
    json_t *rest = hd_schema_without(x, s, "type");
    if (set == T_ALL && rest && !json_object_size(rest)) return hd_jrule_value(&x->j);
    if (ok && set & T_OBJECT) ok = hd_parts_add(g, &l, hd_schema_object(x, s));
    if (ok && set & T_ARRAY) ok = hd_parts_add(g, &l, hd_schema_array(x, s));
    if (ok && set & T_STRING) ok = hd_parts_add(g, &l, hd_schema_string(x, s));
    if (ok && set & (T_NUMBER | T_INTEGER)) ok = hd_parts_add(g, &l, hd_schema_number(x, s, !(set & T_NUMBER)));
    if (ok && set & T_BOOLEAN) ok = hd_parts_add(g, &l, hd_expr_two(g, HD_EXPR_ALT, hd_expr_text(g, "true"), hd_expr_text(g, "false")));
    if (ok && set & T_NULL) ok = hd_parts_add(g, &l, hd_expr_text(g, "null"));
    return hd_parts_end(g, HD_EXPR_ALT, &l, ok);
}

hd_expr *hd_schema_compile(hd_schema *x, const json_t *s)
{
    hd_expr *e = NULL;
    if (json_is_true(s)) return hd_jrule_value(&x->j);
    if (json_is_false(s)) return hd_expr_list(x->j.g, HD_EXPR_ALT, NULL, 0);
    if (!json_is_object(s)) return hd_schema_fail(x, HD_EINVAL, "neither an object nor true or false: ", "a schema");
    if (hd_rules_check_depth(x->j.g, ++x->depth) || check_keywords(x, s)) return NULL;
    if (++x->compiled > 20000) return hd_fail(x->j.g->err, HD_EMEMCAP, "a JSON schema with more than 20,000 parts"), NULL;
    if (json_object_get(s, "$ref") && json_object_get(s, "allOf") == NULL && json_object_get(s, "anyOf") == NULL && json_object_get(s, "oneOf") == NULL)
        e = compile_ref(x, s);
    else if (json_object_get(s, "allOf")) e = compile_all(x, s);
    else if (json_object_get(s, "anyOf")) e = compile_choice(x, s, "anyOf");
    else if (json_object_get(s, "oneOf")) e = compile_choice(x, s, "oneOf");
    else if (json_object_get(s, "enum") || json_object_get(s, "const")) e = compile_enum(x, s);
    else e = compile_types(x, s);
    x->depth--;
    return e;
}

hd_constraint *hd_constraint_json_schema(const hd_vocabulary *v, const json_t *schema, const hd_constraint_limits *l, hd_error *err)
{
    hd_rules g;
    hd_rules_init(&g, l, err);
    hd_schema x = {.j = {.g = &g}, .root = schema, .made = json_array(), .yes = json_true()};
    int root = -1;
    size_t bytes = json_dumpb(schema, NULL, 0, JSON_COMPACT | JSON_ENCODE_ANY);
    if (!x.made) hd_fail_memory(err, 64, "a JSON schema");
    else if (!bytes) hd_fail(err, HD_EINVAL, "JSON schema: it refers to itself, or isn't JSON");
    else if (!hd_rules_check_bytes(&g, bytes)) root = hd_rules_add(&g, "root", true);
    if (root >= 0) {
        hd_expr *body = hd_schema_compile(&x, schema);
        g.rules[root].body = body;
    }
    json_decref(x.made);
    hd_free(x.refs);
    return hd_constraint_from_rules(v, &g, root);
}
