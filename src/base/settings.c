#include "base/settings.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/json.h"
#include "base/mem.h"

/* ---- memory of strings ---- */

typedef struct hd_settings_piece {
    struct hd_settings_piece *next;
    void *memory;
} hd_settings_piece;

void hd_settings_free(hd_settings_memory *m)
{
    while (m->head) {
        hd_settings_piece *p = m->head;
        m->head = p->next;
        hd_free(p->memory);
        hd_free(p);
    }
}

static void *keep(hd_settings_memory *m, void *memory)
{
    hd_settings_piece *p = memory ? hd_malloc(sizeof *p) : NULL;
    if (!p) {
        hd_free(memory);
        return NULL;
    }
    *p = (hd_settings_piece){m->head, memory};
    m->head = p;
    return memory;
}

/* ---- one value from text ---- */

static void flag_name(char *out, size_t n, const char *name)
{
    snprintf(out, n, "--%s", name);
    for (char *c = out + 2; *c; c++)
        if (*c == '_') *c = '-';
}

static int bad_value(const hd_setting *s, const char *text, const char *must, hd_error *err)
{
    char flag[64];
    flag_name(flag, sizeof flag, s->name);
    return hd_fail(err, HD_EINVAL, "%s must be %s, not \"%s\"", flag, must, text);
}

static int set_number(const hd_setting *s, char *at, const char *text, hd_error *err)
{
    char *end, range[96];
    errno = 0;
    double v = strtod(text, &end);
    bool whole = s->type != HD_SET_INT || (v == floor(v) && fabs(v) < 9e15);
    if (end == text || *end || errno || !(v >= s->lo && v <= s->hi) || !whole) {
        snprintf(range, sizeof range, "%s from %g to %g", s->type == HD_SET_INT ? "a whole number" : "a number", s->lo, s->hi);
        return bad_value(s, text, range, err);
    }
    if (s->type == HD_SET_INT) *(int64_t *)at = (int64_t)v;
    else *(double *)at = v;
    return 0;
}

static int set_bool(const hd_setting *s, char *at, const char *text, hd_error *err)
{
    bool yes = !strcmp(text, "true") || !strcmp(text, "yes") || !strcmp(text, "1");
    if (!yes && strcmp(text, "false") && strcmp(text, "no") && strcmp(text, "0")) return bad_value(s, text, "true or false", err);
    *(bool *)at = yes;
    return 0;
}

static bool is_choice(const char *choices, const char *text)
{
    size_t n = strlen(text);
    for (const char *c = choices; c; c = strchr(c, '|') ? strchr(c, '|') + 1 : NULL)
        if (!strncmp(c, text, n) && (c[n] == '|' || !c[n])) return true;
    return false;
}

static int set_string(const hd_setting *s, char *at, const char *text, hd_settings_memory *m, hd_error *err)
{
    if (s->value && strchr(s->value, '|') && !is_choice(s->value, text)) return bad_value(s, text, s->value, err);
    char *copy = keep(m, hd_strdup(text));
    if (!copy) return hd_fail_memory(err, strlen(text), "settings");
    *(const char **)at = copy;
    return 0;
}

static int add_item(char *at, const char *text, hd_settings_memory *m, hd_error *err)
{
    hd_setting_list *list = (hd_setting_list *)at;
    const char **items = keep(m, hd_calloc((size_t)list->n + 1, sizeof *items));
    char *copy = keep(m, hd_strdup(text));
    if (!items || !copy) return hd_fail_memory(err, strlen(text), "settings");
    if (list->n) memcpy(items, list->item, (size_t)list->n * sizeof *items);
    items[list->n++] = copy;
    list->item = items;
    return 0;
}

static int set_value(const hd_setting *s, void *into, const char *text, hd_settings_memory *m, hd_error *err)
{
    char *at = (char *)into + s->offset;
    switch (s->type) {
    case HD_SET_INT: case HD_SET_NUMBER: return set_number(s, at, text, err);
    case HD_SET_BOOL: return set_bool(s, at, text, err);
    case HD_SET_STRING: return set_string(s, at, text, m, err);
    case HD_SET_LIST: return add_item(at, text, m, err);
    }
    return 0;
}

int hd_settings_preset(const hd_setting *table, void *into, hd_settings_memory *m, hd_error *err)
{
    for (const hd_setting *s = table; s->name; s++) {
        static const size_t size[] = {[HD_SET_INT] = sizeof(int64_t), [HD_SET_NUMBER] = sizeof(double), [HD_SET_BOOL] = sizeof(bool),
                                      [HD_SET_STRING] = sizeof(char *), [HD_SET_LIST] = sizeof(hd_setting_list)};
        memset((char *)into + s->offset, 0, size[s->type]);
        if (s->preset && set_value(s, into, s->preset, m, err)) return err ? err->code : HD_EINVAL;
    }
    return 0;
}

/* ---- the file ---- */

static const hd_setting *find(const hd_setting *table, const char *name)
{
    for (; table->name; table++)
        if (!strcmp(table->name, name)) return table;
    return NULL;
}

static int set_json(const hd_setting *s, void *into, const json_t *v, hd_settings_memory *m, hd_error *err)
{
    char text[64];
    if (json_is_string(v)) return set_value(s, into, json_string_value(v), m, err);
    if (json_is_boolean(v)) return set_value(s, into, json_is_true(v) ? "true" : "false", m, err);
    if (!json_is_number(v)) return hd_fail(err, HD_EINVAL, "\"%s\" must be a string, number or boolean", s->name);
    if (json_is_integer(v)) snprintf(text, sizeof text, "%lld", (long long)json_integer_value(v));
    else snprintf(text, sizeof text, "%.17g", json_real_value(v));
    return set_value(s, into, text, m, err);
}

int hd_settings_apply(const hd_setting *table, void *into, const json_t *object, hd_settings_memory *m, hd_error *err)
{
    int rc = json_is_object(object) ? 0 : hd_fail(err, HD_EFORMAT, "settings must be a JSON object");
    const char *key;
    json_t *v, *item;
    json_object_foreach((json_t *)object, key, v) {
        const hd_setting *s = find(table, key);
        size_t i;
        if (rc) break;
        if (!s) rc = hd_fail(err, HD_EINVAL, "there is no setting \"%s\"", key);
        else if (json_is_array(v) && s->type == HD_SET_LIST) json_array_foreach(v, i, item) rc = rc ? rc : set_json(s, into, item, m, err);
        else rc = set_json(s, into, v, m, err);
    }
    return rc;
}

static int read_config(const hd_setting *table, void *into, const char *path, hd_settings_memory *m, hd_error *err)
{
    json_t *j = hd_json_load(path, err);
    if (!j) return err->code;
    int rc = hd_settings_apply(table, into, j, m, err);
    json_decref(j);
    return rc ? hd_error_context(err, "%s", path) : 0;
}

/* ---- the command line ---- */

typedef struct flag {
    const hd_setting *setting; /* NULL for --config */
    const char *value;
    int used; /* words of argv */
} flag;

static int parse_flag(const hd_setting *table, int argc, char **argv, int i, flag *out, hd_error *err)
{
    char name[64];
    size_t n = strcspn(argv[i] + 2, "=");
    const char *eq = argv[i][2 + n] ? argv[i] + 3 + n : NULL;
    if (n >= sizeof name) return hd_fail(err, HD_EINVAL, "there is no flag %s", argv[i]);
    memcpy(name, argv[i] + 2, n);
    name[n] = 0;
    for (char *c = name; *c; c++)
        if (*c == '-') *c = '_';
    bool config = !strcmp(name, "config");
    *out = (flag){.setting = find(table, name), .value = eq, .used = 1};
    if (!out->setting && !strncmp(name, "no_", 3) && !eq) {
        out->setting = find(table, name + 3);
        if (out->setting && out->setting->type == HD_SET_BOOL) return out->value = "false", 0;
        out->setting = NULL;
    }
    if (!out->setting && !config) return hd_fail(err, HD_EINVAL, "there is no flag %.*s (see --help)", (int)(n + 2), argv[i]);
    if (out->value) return 0;
    if (out->setting && out->setting->type == HD_SET_BOOL) return out->value = "true", 0;
    if (i + 1 >= argc) return hd_fail(err, HD_EINVAL, "%s needs a value", argv[i]);
    out->value = argv[i + 1];
    out->used = 2;
    return 0;
}

static int walk(const hd_setting *table, void *into, int argc, char **argv, bool config, const char **words, int max, int *n, hd_settings_memory *m,
                hd_error *err)
{
    *n = 0;
    for (int i = 1; i < argc;) {
        if (strncmp(argv[i], "--", 2)) {
            if (*n == max) return hd_fail(err, HD_EINVAL, "\"%s\" is one word too many", argv[i]);
            words[(*n)++] = argv[i++];
            continue;
        }
        flag f = {0};
        int rc = parse_flag(table, argc, argv, i, &f, err);
        if (!rc && !f.setting && config) rc = read_config(table, into, f.value, m, err);
        if (!rc && f.setting && !config) rc = set_value(f.setting, into, f.value, m, err);
        if (rc) return rc;
        i += f.used;
    }
    return 0;
}

int hd_settings_parse(const hd_setting *table, void *into, int argc, char **argv, const char **words, int max_words, int *n_words,
                      hd_settings_memory *m, hd_error *err)
{
    int rc = walk(table, into, argc, argv, true, words, max_words, n_words, m, err);
    return rc ? rc : walk(table, into, argc, argv, false, words, max_words, n_words, m, err);
}

/* ---- help ---- */

#define HELP_COLUMN 32
#define HELP_WIDTH 110

static void wrap(const char *text, size_t column, hd_str *out)
{
    size_t at = column;
    while (*text) {
        size_t n = strcspn(text, " ");
        if (at + n > HELP_WIDTH && at > column) {
            hd_str_printf(out, "\n%*s", (int)column, "");
            at = column;
        } else if (at > column) {
            hd_str_putc(out, ' ');
        }
        hd_str_add(out, text, n);
        at += n + 1;
        text += n;
        while (*text == ' ') text++;
    }
    hd_str_putc(out, '\n');
}

void hd_settings_help(const hd_setting *table, hd_str *out)
{
    for (const hd_setting *s = table; s->name; s++) {
        char flag[64], head[160], help[600];
        flag_name(flag, sizeof flag, s->name);
        int n = snprintf(head, sizeof head, "  %s%s%s", flag, s->type == HD_SET_BOOL ? "" : " ", s->type == HD_SET_BOOL ? "" : s->value ? s->value : "X");
        hd_str_printf(out, "%-*s", HELP_COLUMN, head);
        if (n >= HELP_COLUMN) hd_str_printf(out, "\n%*s", HELP_COLUMN, "");
        if (s->preset) snprintf(help, sizeof help, "%s [%s]", s->help, s->preset);
        else snprintf(help, sizeof help, "%s", s->help);
        wrap(help, HELP_COLUMN, out);
    }
}
