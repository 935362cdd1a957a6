/* api_format.c: what an answer's text must be: response_format and its relatives, compiled on the pool. */
#include <string.h>
#include "base/json.h"
#include "serve/server_int.h"

static int refused(hd_call *c, const char *param, const hd_error *err, int code)
{
    if (code == HD_ENOMEM) return hd_call_no_memory(c);
    return hd_call_wrong(c, 400, param, code == HD_EUNSUPPORTED ? "unsupported" : code == HD_EMEMCAP ? "too_complex" : "invalid_value", "'%s': %s", param,
                         err->message);
}

static int keep(hd_call *c, const char *param, hd_constraint *made, const hd_error *err)
{
    if (!made) return refused(c, param, err, err->code);
    c->constraint = made;
    return 0;
}

static int set_schema(hd_call *c, const char *param, const json_t *schema)
{
    hd_error err = {0};
    if (!json_is_object(schema) && !json_is_boolean(schema)) return hd_call_wrong(c, 400, param, "invalid_type", "'%s': the schema must be an object", param);
    return keep(c, param, hd_constraint_json_schema(c->server->model->vocabulary, schema, NULL, &err), &err);
}

static int set_json(hd_call *c, const char *param, const json_t *v)
{
    hd_error err = {0};
    json_t *parsed = json_is_string(v) ? hd_json_parse(json_string_value(v), json_string_length(v), "schema", &err) : NULL;
    if (json_is_string(v) && !parsed) return refused(c, param, &err, HD_EINVAL);
    int rc = set_schema(c, param, parsed ? parsed : v);
    json_decref(parsed);
    return rc;
}

static int set_regex(hd_call *c, const char *param, const json_t *v)
{
    hd_error err = {0};
    if (!json_is_string(v)) return hd_call_wrong(c, 400, param, "invalid_type", "'%s' must be a string", param);
    return keep(c, param, hd_constraint_regex(c->server->model->vocabulary, json_string_value(v), json_string_length(v), NULL, &err), &err);
}

static int set_grammar(hd_call *c, const char *param, const json_t *v)
{
    hd_error err = {0};
    if (!json_is_string(v)) return hd_call_wrong(c, 400, param, "invalid_type", "'%s' must be a string", param);
    return keep(c, param, hd_constraint_grammar(c->server->model->vocabulary, json_string_value(v), json_string_length(v), NULL, &err), &err);
}

static void put_literal(hd_str *o, const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (p[i] && strchr("\\^$.|?*+()[]{}/-", p[i])) hd_str_putc(o, '\\');
        hd_str_putc(o, p[i]);
    }
}

/* One of some texts: as an expression of alternatives. */
static int set_choice(hd_call *c, const char *param, const json_t *v)
{
    hd_error err = {0};
    hd_str o;
    size_t n = json_array_size(v);
    if (!n || n > 1024) return hd_call_wrong(c, 400, param, "invalid_type", "'%s' must be an array of 1 to 1024 strings", param);
    for (size_t i = 0; i < n; i++)
        if (!json_is_string(json_array_get(v, i))) return hd_call_wrong(c, 400, param, "invalid_type", "'%s' must be an array of strings", param);
    hd_str_init(&o);
    for (size_t i = 0; i < n; i++) {
        if (i) hd_str_putc(&o, '|');
        put_literal(&o, json_string_value(json_array_get(v, i)), json_string_length(json_array_get(v, i)));
    }
    int rc = o.failed ? hd_call_no_memory(c) : keep(c, param, hd_constraint_regex(c->server->model->vocabulary, o.data, o.len, NULL, &err), &err);
    hd_str_free(&o);
    return rc;
}

/* {"type": "text"}, {"type": "json_object"}, {"type": "json_schema", "json_schema": {"name", "schema", "strict"}}. */
static int set_response_format(hd_call *c, const char *param, const json_t *v)
{
    hd_error err = {0};
    const char *type = json_string_value(json_object_get(v, "type"));
    const json_t *schema = json_object_get(v, "json_schema"), *inner = json_object_get(schema, "schema");
    if (!type) return hd_call_wrong(c, 400, param, "invalid_type", "'%s' must be an object with a \"type\"", param);
    if (!strcmp(type, "text")) return 0;
    if (!strcmp(type, "json_object")) return keep(c, param, hd_constraint_json_object(c->server->model->vocabulary, NULL, &err), &err);
    if (strcmp(type, "json_schema")) return hd_call_wrong(c, 400, param, NULL, "'%s': the type must be \"text\", \"json_object\" or \"json_schema\"", param);
    if (!json_is_object(schema) || !inner) return hd_call_wrong(c, 400, "response_format.json_schema", NULL, "'%s' needs \"json_schema\" with a \"schema\"",
                                                                param);
    return set_schema(c, param, inner);
}

static const struct { const char *name; int (*set)(hd_call *c, const char *param, const json_t *v); } forms[] = {
    {"response_format", set_response_format}, {"guided_json", set_json}, {"guided_regex", set_regex}, {"regex", set_regex},
    {"guided_grammar", set_grammar}, {"grammar", set_grammar}, {"guided_choice", set_choice},
};
#define N_FORMS (sizeof forms / sizeof forms[0])

bool hd_fields_have_constraint(const json_t *root)
{
    for (size_t i = 0; i < N_FORMS; i++)
        if (json_object_get(root, forms[i].name)) return true;
    return false;
}

int hd_fields_constraint(hd_call *c, const json_t *root)
{
    for (size_t i = 0; i < N_FORMS; i++) {
        const json_t *v = json_object_get(root, forms[i].name);
        if (!v || json_is_null(v)) continue;
        if (c->constraint) return hd_call_wrong(c, 400, forms[i].name, NULL, "'%s': the answer is constrained already; only one constraint may be given",
                                                forms[i].name);
        if (!c->server->model->vocabulary) return hd_call_wrong(c, 400, forms[i].name, "unsupported", "'%s': this model has no tokenizer to constrain",
                                                                forms[i].name);
        int rc = forms[i].set(c, forms[i].name, v);
        if (rc) return rc;
    }
    if (c->constraint && c->params.ignore_eos) return hd_call_wrong(c, 400, "ignore_eos", NULL, "'ignore_eos' contradicts a constraint");
    return 0;
}
