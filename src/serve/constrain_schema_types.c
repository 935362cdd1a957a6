#include <math.h>
#include <string.h>
#include "data/unicode.h"
#include "serve/constrain_schema.h"

enum { MOST_PREFIX = 256, MOST_NAME = 200, MOST_NUMBER_BOUND = 1 << 30 };

/* A count that a keyword gives; *out stays when it isn't there. */
static int count_of(hd_schema *x, const json_t *s, const char *key, int *out)
{
    const json_t *v = json_object_get(s, key);
    if (!v) return 0;
    double n = json_is_number(v) ? json_number_value(v) : -1;
    if (!(n >= 0 && n == floor(n))) return hd_schema_fail(x, HD_EINVAL, "not a count: ", key), HD_EINVAL;
    *out = n > 1e6 ? 1000000 : (int)n;
    return 0;
}

static int refuse_keyword(hd_schema *x, const json_t *s, const char *key)
{
    return json_object_get(s, key) ? (hd_schema_fail(x, HD_EUNSUPPORTED, "", key), HD_EUNSUPPORTED) : 0;
}

/* An expression used in several places: a rule of its own. */
static hd_expr *as_rule(hd_schema *x, const char *name, hd_expr *e)
{
    int rule = e ? hd_rules_add(x->j.g, name, true) : -1;
    if (rule < 0) return NULL;
    x->j.g->rules[rule].body = e;
    return hd_expr_rule(x->j.g, rule);
}

static hd_expr *literal_string(hd_schema *x, const char *text, size_t n, bool quoted)
{
    json_t *j = json_stringn(text, n);
    char *s = j ? json_dumps(j, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
    json_decref(j);
    if (!s) return hd_fail_memory(x->j.g->err, n, "a JSON schema"), NULL;
    hd_expr *e = hd_expr_bytes(x->j.g, s + !quoted, strlen(s) - 2 * !quoted);
    free(s);
    return e;
}

/* ---- objects ---- */

typedef struct member { const char *name; const json_t *schema; bool required; } member;
typedef struct members { member *m; size_t n, cap; } members;

static int add_member(hd_schema *x, members *l, const char *name, const json_t *schema)
{
    if (hd_grow(&l->m, &l->cap, l->n + 1, sizeof *l->m)) return hd_fail_memory(x->j.g->err, l->n * sizeof *l->m, "a JSON schema");
    l->m[l->n++] = (member){.name = name, .schema = schema};
    return 0;
}

static member *find_member(members *l, const char *name)
{
    for (size_t i = 0; i < l->n; i++)
        if (!strcmp(l->m[i].name, name)) return &l->m[i];
    return NULL;
}

/* The properties in the schema's order, then what else is required. */
static int list_members(hd_schema *x, const json_t *s, const json_t *more, members *l)
{
    const json_t *properties = json_object_get(s, "properties"), *required = json_object_get(s, "required"), *name;
    const char *key;
    json_t *value;
    size_t i;
    int rc = 0;
    if (properties && !json_is_object(properties)) return hd_schema_fail(x, HD_EINVAL, "not an object: ", "properties"), HD_EINVAL;
    if (required && !json_is_array(required)) return hd_schema_fail(x, HD_EINVAL, "not an array: ", "required"), HD_EINVAL;
    json_object_foreach((json_t *)(uintptr_t)properties, key, value) if (!rc) rc = add_member(x, l, key, value);
    json_array_foreach(required, i, name) {
        if (rc) break;
        if (!json_is_string(name)) return hd_schema_fail(x, HD_EINVAL, "something other than names in ", "required"), HD_EINVAL;
        if (!find_member(l, json_string_value(name))) rc = add_member(x, l, json_string_value(name), more);
        if (!rc) find_member(l, json_string_value(name))->required = true;
    }
    return rc;
}

/* What follows a prefix that some names share, so that the whole is none of them: more characters and the closing quotation mark. from: where in the names. */
static hd_expr *other_name(hd_schema *x, const char *const *names, size_t n, size_t from)
{
    hd_rules *g = x->j.g;
    hd_parts l = {0};
    bool ok = true, is_name = false;
    hd_chars *next = hd_arena_alloc(&g->arena, (n + 4) * sizeof *next), *rest = hd_arena_alloc(&g->arena, (n + 8) * sizeof *rest);
    int n_next = 0;
    if (!next || !rest) return hd_fail_memory(g->err, n * sizeof *next, "a JSON schema"), NULL;
    for (size_t i = 0; i < n && ok;) {
        const unsigned char *at = (const unsigned char *)names[i] + from;
        size_t end = i + 1;
        int length = 1;
        if (!*at) is_name = true;
        uint32_t c = *at ? hd_utf8_get(at, &length) : 0;
        while (end < n && !strncmp(names[end] + from, (const char *)at, (size_t)length)) end++;
        if (*at) {
            next[n_next++] = (hd_chars){c, c};
            hd_expr *first = hd_expr_chars(g, &(hd_chars){c, c}, 1, true);
            ok = hd_parts_add(g, &l, hd_expr_two(g, HD_EXPR_SEQ, first, other_name(x, names + i, end - i, from + (size_t)length)));
        }
        i = end;
    }
    if (ok && !is_name) ok = hd_parts_add(g, &l, hd_expr_text(g, "\""));
    n_next = hd_chars_merge(next, n_next);
    hd_expr *other = hd_expr_chars(g, rest, hd_chars_negate(next, n_next, rest), true);
    if (!x->name_end) {
        hd_expr *any = hd_expr_repeat(g, hd_expr_chars(g, &(hd_chars){1, 0x10ffff}, 1, true), 0, -1);
        x->name_end = as_rule(x, "name", hd_expr_two(g, HD_EXPR_SEQ, any, hd_expr_text(g, "\"")));
    }
    if (ok) ok = hd_parts_add(g, &l, hd_expr_two(g, HD_EXPR_SEQ, other, x->name_end));
    return hd_parts_end(g, HD_EXPR_ALT, &l, ok);
}

static int by_name(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

static hd_expr *additional_name(hd_schema *x, const members *l)
{
    if (!l->n) return hd_jrule_string(&x->j);
    const char **names = hd_malloc(l->n * sizeof *names);
    if (!names) return hd_fail_memory(x->j.g->err, l->n * sizeof *names, "a JSON schema"), NULL;
    hd_expr *e = NULL;
    bool ok = true;
    for (size_t i = 0; i < l->n; i++) {
        names[i] = l->m[i].name;
        ok &= strlen(names[i]) <= MOST_NAME;
    }
    qsort(names, l->n, sizeof *names, by_name);
    if (!ok) hd_fail(x->j.g->err, HD_EMEMCAP, "JSON schema: a name of more than %d bytes beside additional properties", MOST_NAME);
    else e = hd_expr_two(x->j.g, HD_EXPR_SEQ, hd_expr_text(x->j.g, "\""), other_name(x, names, l->n, 0));
    hd_free(names);
    return e;
}

static hd_expr *listed_member(hd_schema *x, const member *m)
{
    hd_expr *value = hd_schema_compile(x, m->schema);
    return hd_expr_two(x->j.g, HD_EXPR_SEQ, hd_jrule_key(&x->j, literal_string(x, m->name, strlen(m->name), true)), value);
}

/* Members from i on, each with a comma before it. */
static hd_expr *later_members(hd_schema *x, const members *l, hd_expr **listed, size_t i, hd_expr *more)
{
    hd_rules *g = x->j.g;
    hd_parts p = {0};
    bool ok = true;
    for (; i < l->n && ok; i++) {
        hd_expr *e = hd_expr_two(g, HD_EXPR_SEQ, hd_jrule_comma(&x->j), listed[i]);
        ok = hd_parts_add(g, &p, l->m[i].required ? e : hd_expr_repeat(g, e, 0, 1));
    }
    if (ok && more) ok = hd_parts_add(g, &p, hd_expr_repeat(g, hd_expr_two(g, HD_EXPR_SEQ, hd_jrule_comma(&x->j), more), 0, -1));
    return hd_parts_end(g, HD_EXPR_SEQ, &p, ok);
}

/* Any of the first members may be the first of the object; a chain of rules holds what follows each, so that the whole stays of the members' size. */
static hd_expr *all_members(hd_schema *x, const members *l, hd_expr **listed, hd_expr *more)
{
    hd_rules *g = x->j.g;
    hd_parts p = {0};
    size_t first = 0;
    bool ok = true;
    while (first < l->n && !l->m[first].required) first++;
    if (first == 0 && l->n) return hd_expr_two(g, HD_EXPR_SEQ, listed[0], later_members(x, l, listed, 1, more));
    hd_expr *rest = later_members(x, l, listed, first + 1 < l->n ? first + 1 : l->n, more);
    if (first < l->n) ok = hd_parts_add(g, &p, hd_expr_two(g, HD_EXPR_SEQ, listed[first], rest));
    else ok = hd_parts_add(g, &p, more ? hd_jrule_list(&x->j, more, 0, -1) : hd_expr_text(g, ""));
    if (first < l->n) rest = hd_expr_list(g, HD_EXPR_SEQ, (hd_expr *[]){hd_jrule_comma(&x->j), listed[first], rest}, 3);
    for (size_t i = first; i-- > 0 && ok;) {
        rest = as_rule(x, "members", rest);
        ok = hd_parts_add(g, &p, hd_expr_two(g, HD_EXPR_SEQ, listed[i], rest));
        hd_expr *own = hd_expr_repeat(g, hd_expr_two(g, HD_EXPR_SEQ, hd_jrule_comma(&x->j), listed[i]), 0, 1);
        rest = hd_expr_two(g, HD_EXPR_SEQ, own, rest);
    }
    return hd_parts_end(g, HD_EXPR_ALT, &p, ok);
}

static hd_expr *members_expr(hd_schema *x, const json_t *s, const members *l, const json_t *additional)
{
    hd_rules *g = x->j.g;
    int min = 0, max = -1;
    hd_expr *more = NULL;
    if (count_of(x, s, "minProperties", &min) || count_of(x, s, "maxProperties", &max)) return NULL;
    if (l->n && json_object_get(s, "maxProperties")) return hd_schema_fail(x, HD_EUNSUPPORTED, "beside properties, ", "maxProperties");
    if (l->n && min > 0) {
        size_t required = 0;
        for (size_t i = 0; i < l->n; i++) required += l->m[i].required;
        if ((size_t)min > required) return hd_schema_fail(x, HD_EUNSUPPORTED, "beside properties, ", "minProperties");
    }
    if (min > 1 && !l->n) return hd_schema_fail(x, HD_EUNSUPPORTED, "above 1, ", "minProperties"); /* a name may come twice */
    if (!json_is_false(additional)) {
        hd_expr *name = additional_name(x, l);
        more = name ? hd_expr_two(g, HD_EXPR_SEQ, hd_jrule_key(&x->j, name), hd_schema_compile(x, additional)) : NULL;
        more = as_rule(x, "additional", more);
        if (!more) return NULL;
    }
    if (!l->n && more) return hd_jrule_list(&x->j, more, min, max);
    if (!l->n) return min ? hd_expr_list(g, HD_EXPR_ALT, NULL, 0) : hd_expr_text(g, "");
    hd_expr **listed = hd_calloc(l->n, sizeof *listed);
    hd_expr *e = NULL;
    bool ok = listed != NULL;
    if (!ok) hd_fail_memory(g->err, l->n * sizeof *listed, "a JSON schema");
    for (size_t i = 0; i < l->n && ok; i++) ok = (listed[i] = listed_member(x, &l->m[i])) != NULL;
    if (ok) e = all_members(x, l, listed, more);
    hd_free(listed);
    return e;
}

hd_expr *hd_schema_object(hd_schema *x, const json_t *s)
{
    const json_t *additional = json_object_get(s, "additionalProperties");
    members l = {0};
    hd_expr *e = NULL;
    if (!additional) additional = x->yes;
    if (!list_members(x, s, additional, &l)) {
        bool any = !l.n && json_is_true(additional) && !json_object_get(s, "minProperties") && !json_object_get(s, "maxProperties");
        if (any) e = hd_jrule_object(&x->j);
        else if ((e = members_expr(x, s, &l, additional))) e = as_rule(x, "object", hd_jrule_between(&x->j, "{", e, "}"));
    }
    hd_free(l.m);
    return e;
}

/* ---- arrays ---- */

static hd_expr *elements(hd_schema *x, hd_expr **prefix, int n, hd_expr *rest, int min, int max)
{
    hd_rules *g = x->j.g;
    hd_expr *e = hd_expr_text(g, "");
    if (rest && max != n) {
        int least = min > n ? min - n : 0, most = max < 0 ? -1 : max - n;
        if (n == 0) return hd_jrule_list(&x->j, rest, min, max);
        e = hd_expr_repeat(g, hd_expr_two(g, HD_EXPR_SEQ, hd_jrule_comma(&x->j), rest), least, most);
    }
    for (int i = n; i-- > 0;) {
        e = hd_expr_two(g, HD_EXPR_SEQ, prefix[i], e);
        if (i) e = hd_expr_two(g, HD_EXPR_SEQ, hd_jrule_comma(&x->j), e);
        if (i >= min) e = hd_expr_repeat(g, e, 0, 1);
    }
    return e;
}

hd_expr *hd_schema_array(hd_schema *x, const json_t *s)
{
    const json_t *prefix = json_object_get(s, "prefixItems"), *items = json_object_get(s, "items");
    hd_expr *parts[MOST_PREFIX], *rest = NULL;
    int min = 0, max = -1, n = 0;
    if (json_is_true(json_object_get(s, "uniqueItems"))) return hd_schema_fail(x, HD_EUNSUPPORTED, "", "uniqueItems");
    if (count_of(x, s, "minItems", &min) || count_of(x, s, "maxItems", &max)) return NULL;
    if (prefix && !json_is_array(prefix)) return hd_schema_fail(x, HD_EINVAL, "not an array: ", "prefixItems");
    if (json_array_size(prefix) > MOST_PREFIX) return hd_schema_fail(x, HD_EMEMCAP, "more than 256 parts in ", "prefixItems");
    for (size_t i = 0; i < json_array_size(prefix) && (max < 0 || (int)i < max); i++)
        if (!(parts[n++] = hd_schema_compile(x, json_array_get(prefix, i)))) return NULL;
    if (!json_is_false(items) && !(rest = items ? hd_schema_compile(x, items) : hd_jrule_value(&x->j))) return NULL;
    if ((max >= 0 && min > max) || (!rest && min > n)) return hd_expr_list(x->j.g, HD_EXPR_ALT, NULL, 0);
    hd_expr *e = elements(x, parts, n, rest, min, max);
    return as_rule(x, "array", hd_jrule_between(&x->j, "[", e, "]"));
}

/* ---- strings ---- */

static hd_expr *quoted(hd_schema *x, hd_expr *e)
{
    hd_rules *g = x->j.g;
    return as_rule(x, "string", hd_expr_list(g, HD_EXPR_SEQ, (hd_expr *[]){hd_expr_text(g, "\""), e, hd_expr_text(g, "\"")}, 3));
}

static hd_expr *by_pattern(hd_schema *x, const json_t *pattern)
{
    if (!json_is_string(pattern)) return hd_schema_fail(x, HD_EINVAL, "not a string: ", "pattern");
    hd_expr *e = hd_regex_expr(x->j.g, json_string_value(pattern), json_string_length(pattern), (hd_regex_dialect){.json = true, .ecma = true});
    if (!e) hd_error_context(x->j.g->err, "JSON schema: pattern");
    return e ? quoted(x, e) : NULL;
}

static hd_expr *by_format(hd_schema *x, const json_t *format)
{
    if (!json_is_string(format)) return hd_schema_fail(x, HD_EINVAL, "not a string: ", "format");
    const char *pattern = hd_format_pattern(json_string_value(format));
    if (!pattern) return hd_schema_fail(x, HD_EUNSUPPORTED, "format ", json_string_value(format));
    hd_expr *e = hd_regex_expr(x->j.g, pattern, strlen(pattern), (hd_regex_dialect){.json = true});
    return e ? quoted(x, e) : NULL;
}

hd_expr *hd_schema_string(hd_schema *x, const json_t *s)
{
    const json_t *pattern = json_object_get(s, "pattern"), *format = json_object_get(s, "format");
    int min = 0, max = -1;
    if (count_of(x, s, "minLength", &min) || count_of(x, s, "maxLength", &max)) return NULL;
    bool lengths = min > 0 || max >= 0;
    if (!!pattern + !!format + lengths > 1)
        return hd_schema_fail(x, HD_EUNSUPPORTED, "beside another restriction of a string, ", pattern ? "pattern" : "format");
    if (pattern) return by_pattern(x, pattern);
    if (format) return by_format(x, format);
    if (!lengths) return hd_jrule_string(&x->j);
    if (max >= 0 && max < min) return hd_expr_list(x->j.g, HD_EXPR_ALT, NULL, 0);
    hd_expr *one = hd_jrule_character(&x->j);
    return quoted(x, hd_expr_repeat(x->j.g, one, min, max));
}

/* ---- numbers ---- */

typedef struct bound { bool given, open; double at; } bound;

static int read_bound(hd_schema *x, const json_t *s, const char *closed, const char *open, int side, bound *b)
{
    const char *const keys[] = {closed, open};
    for (int i = 0; i < 2; i++) {
        const json_t *v = json_object_get(s, keys[i]);
        if (!v) continue;
        if (!json_is_number(v)) return hd_schema_fail(x, HD_EINVAL, "not a number: ", keys[i]), HD_EINVAL;
        double at = json_number_value(v);
        bool tighter = !b->given || (at - b->at) * side > 0 || (at == b->at && i == 1);
        if (tighter) *b = (bound){true, i == 1, at};
    }
    return 0;
}

static hd_expr *integer_within(hd_schema *x, bound low, bound high)
{
    int64_t from = INT64_MIN, to = INT64_MAX;
    if (low.given) {
        double at = ceil(low.at) + (low.open && ceil(low.at) == low.at);
        if (fabs(at) > 9e15) return hd_schema_fail(x, HD_EUNSUPPORTED, "beyond 9e15, ", "minimum");
        from = (int64_t)at;
    }
    if (high.given) {
        double at = floor(high.at) - (high.open && floor(high.at) == high.at);
        if (fabs(at) > 9e15) return hd_schema_fail(x, HD_EUNSUPPORTED, "beyond 9e15, ", "maximum");
        to = (int64_t)at;
    }
    return hd_expr_integers(x->j.g, from, to);
}

hd_expr *hd_schema_number(hd_schema *x, const json_t *s, bool integer)
{
    bound low = {0}, high = {0};
    const json_t *multiple = json_object_get(s, "multipleOf");
    bool whole = json_is_number(multiple) && json_number_value(multiple) == 1;
    if (multiple && !whole && refuse_keyword(x, s, "multipleOf")) return NULL;
    integer |= whole;
    if (read_bound(x, s, "minimum", "exclusiveMinimum", 1, &low) || read_bound(x, s, "maximum", "exclusiveMaximum", -1, &high)) return NULL;
    if (!low.given && !high.given) return integer ? hd_jrule_integer(&x->j) : hd_jrule_number(&x->j);
    if (integer) return integer_within(x, low, high);
    if (low.at != floor(low.at) || high.at != floor(high.at))
        return hd_schema_fail(x, HD_EUNSUPPORTED, "of a number, other than a whole one, ", "minimum or maximum");
    if (fabs(low.at) > MOST_NUMBER_BOUND || fabs(high.at) > MOST_NUMBER_BOUND)
        return hd_schema_fail(x, HD_EUNSUPPORTED, "of a number, beyond 2^30, ", "minimum or maximum");
    return hd_expr_numbers(x->j.g, low.given ? (int64_t)low.at : INT64_MIN, low.open, high.given ? (int64_t)high.at : INT64_MAX, high.open);
}
