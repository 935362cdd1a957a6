/* constrain_json.h: the rules of JSON that constraints share. For the files constrain*.c only. */
#ifndef HD_SERVE_CONSTRAIN_JSON_H
#define HD_SERVE_CONSTRAIN_JSON_H

#include "serve/constrain_int.h"

/* Rules of any JSON; numbers of rules, made on first use (0: not yet, else the rule + 1). */
typedef struct hd_json_rules {
    hd_rules *g;
    int space, string, number, integer, value, object, array;
} hd_json_rules;

hd_expr *hd_jrule_space(hd_json_rules *j);     /* nothing, a space, or a new line and up to 20 spaces */
hd_expr *hd_jrule_string(hd_json_rules *j);
hd_expr *hd_jrule_character(hd_json_rules *j); /* of a string, or a short escape: counted, so kept small */
hd_expr *hd_jrule_number(hd_json_rules *j);
hd_expr *hd_jrule_integer(hd_json_rules *j);
hd_expr *hd_jrule_value(hd_json_rules *j);
hd_expr *hd_jrule_object(hd_json_rules *j);
hd_expr *hd_jrule_array(hd_json_rules *j);

/* `"key":` and space; and between brackets with space at the ends; and a comma and space. */
hd_expr *hd_jrule_key(hd_json_rules *j, hd_expr *key);
hd_expr *hd_jrule_between(hd_json_rules *j, const char *open, hd_expr *e, const char *close);
hd_expr *hd_jrule_comma(hd_json_rules *j);
/* e, or e and more of it with commas: from min to max of them (max -1: any number). */
hd_expr *hd_jrule_list(hd_json_rules *j, hd_expr *e, int min, int max);

#endif
