#include "serve/constrain_json.h"

#include <string.h>

#define H "[0-9a-fA-F]"
/* \u0000 and surrogates that stand alone are left out: many readers refuse them. */
#define ESCAPE \
    "\\\\(?:[\"\\\\/bfnrt]|u(?:0[1-9a-fA-F]" H "{2}|00[1-9a-fA-F]" H "|000[1-9a-fA-F]|[1-9a-cA-CefEF]" H "{3}|[dD][0-7]" H "{2}|" \
    "[dD][89abAB]" H "{2}\\\\u[dD][c-fC-F]" H "{2}))"
#define CHARACTER "(?:[^\"\\\\\\x00-\\x1f]|" ESCAPE ")"

static hd_expr *pattern(hd_rules *g, const char *text) { return hd_regex_expr(g, text, strlen(text), (hd_regex_dialect){0}); }

static hd_expr *named(hd_json_rules *j, int *rule, const char *name, const char *text, bool apart)
{
    if (!*rule) {
        int r = hd_rules_add(j->g, name, apart);
        if (r < 0) return NULL;
        *rule = r + 1;
        hd_expr *body = pattern(j->g, text);
        j->g->rules[r].body = body;
    }
    return hd_expr_rule(j->g, *rule - 1);
}

hd_expr *hd_jrule_space(hd_json_rules *j) { return named(j, &j->space, "space", "(?: |\\n {0,20})?", true); }
hd_expr *hd_jrule_string(hd_json_rules *j) { return named(j, &j->string, "string", "\"" CHARACTER "*\"", true); }

hd_expr *hd_jrule_character(hd_json_rules *j) { return pattern(j->g, "(?:[^\"\\\\\\x00-\\x1f]|\\\\[\"\\\\/bfnrt])"); }
hd_expr *hd_jrule_number(hd_json_rules *j)
{
    return named(j, &j->number, "number", "-?(?:0|[1-9][0-9]{0,17})(?:\\.[0-9]{1,18})?(?:[eE][+-]?[0-9]{1,2})?", true);
}
hd_expr *hd_jrule_integer(hd_json_rules *j) { return named(j, &j->integer, "integer", "-?(?:0|[1-9][0-9]{0,17})", true); }

hd_expr *hd_jrule_comma(hd_json_rules *j) { return hd_expr_two(j->g, HD_EXPR_SEQ, hd_expr_text(j->g, ","), hd_jrule_space(j)); }

hd_expr *hd_jrule_key(hd_json_rules *j, hd_expr *key)
{
    return hd_expr_list(j->g, HD_EXPR_SEQ, (hd_expr *[]){key, hd_expr_text(j->g, ":"), hd_jrule_space(j)}, 3);
}

hd_expr *hd_jrule_between(hd_json_rules *j, const char *open, hd_expr *e, const char *close)
{
    return hd_expr_list(j->g, HD_EXPR_SEQ, (hd_expr *[]){hd_expr_text(j->g, open), hd_jrule_space(j), e, hd_jrule_space(j), hd_expr_text(j->g, close)}, 5);
}

hd_expr *hd_jrule_list(hd_json_rules *j, hd_expr *e, int min, int max)
{
    if (max == 0) return hd_expr_text(j->g, "");
    hd_expr *rest = hd_expr_repeat(j->g, hd_expr_two(j->g, HD_EXPR_SEQ, hd_jrule_comma(j), e), min > 1 ? min - 1 : 0, max < 0 ? -1 : max - 1);
    hd_expr *some = hd_expr_two(j->g, HD_EXPR_SEQ, e, rest);
    return min > 0 ? some : hd_expr_repeat(j->g, some, 0, 1);
}

hd_expr *hd_jrule_object(hd_json_rules *j)
{
    if (!j->object) {
        int r = hd_rules_add(j->g, "object", true);
        if (r < 0) return NULL;
        j->object = r + 1;
        hd_expr *member = hd_expr_two(j->g, HD_EXPR_SEQ, hd_jrule_key(j, hd_jrule_string(j)), hd_jrule_value(j));
        hd_expr *body = hd_jrule_between(j, "{", hd_jrule_list(j, member, 0, -1), "}");
        j->g->rules[r].body = body;
    }
    return hd_expr_rule(j->g, j->object - 1);
}

hd_expr *hd_jrule_array(hd_json_rules *j)
{
    if (!j->array) {
        int r = hd_rules_add(j->g, "array", true);
        if (r < 0) return NULL;
        j->array = r + 1;
        hd_expr *body = hd_jrule_between(j, "[", hd_jrule_list(j, hd_jrule_value(j), 0, -1), "]");
        j->g->rules[r].body = body;
    }
    return hd_expr_rule(j->g, j->array - 1);
}

hd_expr *hd_jrule_value(hd_json_rules *j)
{
    if (!j->value) {
        int r = hd_rules_add(j->g, "value", true);
        if (r < 0) return NULL;
        j->value = r + 1;
        hd_expr *parts[] = {hd_jrule_object(j), hd_jrule_array(j), hd_jrule_string(j), hd_jrule_number(j), pattern(j->g, "true|false|null")};
        hd_expr *body = hd_expr_list(j->g, HD_EXPR_ALT, parts, 5);
        j->g->rules[r].body = body;
    }
    return hd_expr_rule(j->g, j->value - 1);
}

hd_constraint *hd_constraint_json_object(const hd_vocabulary *v, const hd_constraint_limits *l, hd_error *err)
{
    hd_rules g;
    hd_rules_init(&g, l, err);
    hd_json_rules j = {.g = &g};
    int root = hd_rules_add(&g, "root", true);
    hd_expr *body = root < 0 ? NULL : hd_jrule_object(&j);
    if (root >= 0) g.rules[root].body = body;
    return hd_constraint_from_rules(v, &g, root);
}
