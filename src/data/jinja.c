/* jinja.c: reading and rendering a template. */
#include "data/jinja.h"

#include <string.h>
#include "data/jinja_int.h"
#include "data/unicode.h"

/* Line ends become "\n", and one at the end is dropped, as Jinja2 does by default. */
static size_t normalize_lines(char *out, const char *text, size_t n) {
    size_t len = 0;
    for (size_t i = 0; i < n; i++) {
        out[len++] = text[i] == '\r' ? '\n' : text[i];
        if (text[i] == '\r' && i + 1 < n && text[i + 1] == '\n') i++;
    }
    return len && out[len - 1] == '\n' ? len - 1 : len;
}

static int set_up(hd_jinja *j, const char *text, size_t n, const char *name, hd_error *err) {
    if (n > HD_J_MAX_TEXT) return hd_fail(err, HD_EFORMAT, "%s: a template of more than %d MiB", name, HD_J_MAX_TEXT >> 20);
    if (hd_utf8_valid((const unsigned char *)text, n) != n) return hd_fail(err, HD_EFORMAT, "%s: a template that is not UTF-8", name);
    char *copy = hd_arena_alloc(&j->arena, n + 1);
    j->name = hd_arena_strdup(&j->arena, name);
    if (!copy || !j->name) return hd_fail_memory(err, n, "a template");
    j->n = normalize_lines(copy, text, n);
    copy[j->n] = 0;
    j->text = copy;
    return 0;
}

hd_jinja *hd_jinja_parse(const char *text, size_t n, const char *name, hd_error *err) {
    hd_error local = {0};
    hd_j_token *tokens = NULL;
    hd_jinja *j = hd_calloc(1, sizeof *j);
    err = err ? err : &local;
    int rc = j ? set_up(j, text, n, name, err) : hd_fail_memory(err, sizeof *j, "a template");
    if (!rc) rc = hd_j_lex(j, &tokens, err);
    if (!rc) rc = hd_j_parse(j, tokens, err);
    hd_free(tokens);
    if (!rc) return j;
    hd_jinja_free(j);
    return NULL;
}

void hd_jinja_free(hd_jinja *j) {
    if (!j) return;
    hd_arena_free(&j->arena);
    hd_free(j->symbols);
    hd_free(j);
}

/* What the template's names stand for before it sets any: variables, else functions. */
static void find_globals(hd_j_ctx *c, const json_t *variables) {
    c->globals = hd_j_alloc(c, (c->j->n_symbols + 1) * sizeof *c->globals);
    for (size_t i = 0; i < c->j->n_symbols && !c->rc; i++) {
        hd_j_val name = c->j->symbols[i].name;
        const json_t *v = json_object_getn(variables, name.u.s, name.n);
        const hd_j_entry *f = hd_j_find(hd_j_functions, name.u.s, name.n);
        c->globals[i] = v ? hd_j_from_json(c, v) : f ? (hd_j_val){.kind = J_FUNCTION, .u.function = f} : (hd_j_val){.kind = J_ABSENT};
    }
}

int hd_jinja_render(const hd_jinja *j, const json_t *variables, const hd_jinja_limits *limits, int64_t now, hd_str *out, hd_error *err) {
    hd_j_ctx c = {.j = j, .now = now, .out = out, .base = out->len, .err = err};
    if (limits) c.limit = *limits;
    if (c.limit.steps <= 0) c.limit.steps = 2000000;
    if (c.limit.bytes <= 0) c.limit.bytes = 16 << 20;
    if (c.limit.bytes > 1 << 30) c.limit.bytes = 1 << 30;
    if (c.limit.depth <= 0) c.limit.depth = HD_J_MAX_DEPTH;
    if (c.limit.depth > 4 * HD_J_MAX_DEPTH) c.limit.depth = 4 * HD_J_MAX_DEPTH;
    find_globals(&c, variables);
    c.scope = hd_j_alloc(&c, sizeof *c.scope);
    if (!c.rc) hd_j_exec(&c, j->body);
    hd_arena_free(&c.arena);
    if (c.rc && out->len > c.base) out->data[out->len = c.base] = 0;
    return c.rc;
}
