/* jinja_parse.c: tokens to a tree, by the grammar of Jinja2's parser. Nesting is bounded, and so is the parser's own recursion; chains of operators make deep
 * trees without it, and are bounded when they are evaluated. */
#include <string.h>
#include "data/jinja_int.h"

typedef struct parser {
    hd_jinja *j;
    const hd_j_token *t;
    int depth, loops;
    hd_error *err;
} parser;

/* Children while they are gathered. */
typedef struct nodes { hd_j_node **data; size_t len, cap; } nodes;
typedef struct args { hd_j_arg *data; size_t len, cap; } args;

static hd_j_node *parse_expression(parser *p);
static hd_j_node *parse_or(parser *p);
static hd_j_node *parse_unary(parser *p, bool filters);
static hd_j_node *parse_tuple(parser *p, bool conditions);
static hd_j_node *parse_body(parser *p, const char *const *ends);

/* ---- helpers ---- */

static void *fail_code(parser *p, int code, const hd_j_token *t, const char *what, const hd_j_val *name) {
    hd_fail(p->err, code, "%s: line %u, column %u: %s%s%.*s%s", p->j->name, t->line, t->column, what, name ? " \"" : "",
            name ? (int)(name->n < 60 ? name->n : 60) : 0, name ? name->u.s : "", name ? "\"" : "");
    return NULL;
}

static void *fail(parser *p, const char *what) { return fail_code(p, HD_EFORMAT, p->t, what, NULL); }

static void *no_memory(parser *p) {
    hd_fail_memory(p->err, 0, "a template");
    return NULL;
}

static bool enter(parser *p) {
    if (++p->depth <= 3 * HD_J_MAX_DEPTH) return true; /* a bracket takes three */
    fail(p, "nested too deep");
    return false;
}

static hd_j_node *node(parser *p, hd_j_node_type type) {
    hd_j_node *n = hd_arena_alloc(&p->j->arena, sizeof *n);
    if (!n) return no_memory(p);
    n->type = (uint8_t)type;
    n->line = p->t->line;
    n->column = p->t->column;
    return n;
}

static hd_j_node *node2(parser *p, hd_j_node_type type, hd_j_node *a, hd_j_node *b) {
    hd_j_node *n = a && b ? node(p, type) : NULL;
    if (!n) return NULL;
    n->line = a->line;
    n->column = a->column;
    n->a = a;
    n->b = b;
    return n;
}

static bool text_is(const hd_j_val *v, const char *text) { return v->n == strlen(text) && !memcmp(v->u.s, text, v->n); }
static bool is_name(const hd_j_token *t, const char *name) { return t->type == T_NAME && text_is(&t->value, name); }
static bool is_op(const hd_j_token *t, uint16_t op) { return t->type == T_OP && t->op == op; }

static bool skip_op(parser *p, uint16_t op) {
    if (!is_op(p->t, op)) return false;
    p->t++;
    return true;
}

static bool skip_name(parser *p, const char *name) {
    if (!is_name(p->t, name)) return false;
    p->t++;
    return true;
}

static bool expect_op(parser *p, char op) {
    char what[] = "\" \" expected";
    if (skip_op(p, (uint8_t)op)) return true;
    what[1] = op;
    fail(p, what);
    return false;
}

static bool expect_end(parser *p) {
    if (p->t->type == T_BLOCK_END) {
        p->t++;
        return true;
    }
    fail(p, "the end of the tag expected");
    return false;
}

static bool add_node(parser *p, nodes *list, hd_j_node *n) {
    if (!n) return false;
    if (hd_grow(&list->data, &list->cap, list->len + 1, sizeof n)) return no_memory(p) != NULL;
    list->data[list->len++] = n;
    return true;
}

/* Moves what was gathered to the node; the list is freed in any case. */
static hd_j_node *take_nodes(parser *p, nodes *list, hd_j_node *n, bool ok) {
    if (ok && n && list->len) {
        n->items = hd_arena_copy(&p->j->arena, list->data, list->len * sizeof *list->data);
        n->n = (uint32_t)list->len;
        if (!n->items) ok = no_memory(p) != NULL;
    }
    hd_free(list->data);
    return ok ? n : NULL;
}

static hd_j_node *take_args(parser *p, args *list, hd_j_node *n, bool ok) {
    if (ok && n && list->len) {
        n->args = hd_arena_copy(&p->j->arena, list->data, list->len * sizeof *list->data);
        n->n_args = (uint32_t)list->len;
        if (!n->args) ok = no_memory(p) != NULL;
    }
    hd_free(list->data);
    return ok ? n : NULL;
}

static int64_t symbol(parser *p, const hd_j_val *name) {
    hd_jinja *j = p->j;
    for (size_t i = 0; i < j->n_symbols; i++)
        if (j->symbols[i].name.n == name->n && !memcmp(j->symbols[i].name.u.s, name->u.s, name->n)) return (int64_t)i;
    if (j->n_symbols >= HD_J_MAX_SYMBOLS) return fail(p, "too many names"), -1;
    if (hd_grow(&j->symbols, &j->symbol_cap, j->n_symbols + 1, sizeof *j->symbols)) return no_memory(p), -1;
    j->symbols[j->n_symbols] = (hd_j_symbol){.name = *name};
    return (int64_t)j->n_symbols++;
}

/* A node of the name at hand, which is passed. */
static hd_j_node *name_node(parser *p, hd_j_node_type type, bool assigned) {
    if (p->t->type != T_NAME) return fail(p, "a name expected");
    hd_j_node *n = node(p, type);
    int64_t s = n ? symbol(p, &p->t->value) : -1;
    if (s < 0) return NULL;
    n->symbol = (uint32_t)s;
    n->value = p->t->value;
    if (assigned) p->j->symbols[s].assigned = true;
    p->t++;
    return n;
}

/* ---- primary expressions ---- */

static hd_j_node *constant(parser *p, hd_j_val v) {
    hd_j_node *n = node(p, N_CONST);
    if (n) n->value = v;
    p->t++;
    return n;
}

/* 'a' 'b' is one string. */
static hd_j_node *parse_string(parser *p) {
    hd_j_node *n = constant(p, p->t->value);
    while (n && p->t->type == T_STRING) {
        char *both = hd_arena_alloc(&p->j->arena, (size_t)n->value.n + p->t->value.n + 1);
        if (!both) return no_memory(p);
        memcpy(both, n->value.u.s, n->value.n);
        memcpy(both + n->value.n, p->t->value.u.s, p->t->value.n);
        n->value = hd_j_str(both, (size_t)n->value.n + p->t->value.n);
        p->t++;
    }
    return n;
}

static hd_j_node *parse_list(parser *p) {
    nodes items = {0};
    hd_j_node *n = node(p, N_LIST);
    p->t++;
    bool ok = n != NULL;
    while (ok && !is_op(p->t, ']')) {
        if (items.len) ok = expect_op(p, ',');
        if (!ok || is_op(p->t, ']')) break;
        ok = add_node(p, &items, parse_expression(p));
    }
    ok = ok && expect_op(p, ']');
    return take_nodes(p, &items, n, ok);
}

static hd_j_node *parse_dict(parser *p) {
    nodes items = {0};
    hd_j_node *n = node(p, N_DICT);
    p->t++;
    bool ok = n != NULL;
    while (ok && !is_op(p->t, '}')) {
        if (items.len) ok = expect_op(p, ',');
        if (!ok || is_op(p->t, '}')) break;
        ok = add_node(p, &items, parse_expression(p)) && expect_op(p, ':') && add_node(p, &items, parse_expression(p));
    }
    ok = ok && expect_op(p, '}');
    return take_nodes(p, &items, n, ok);
}

static hd_j_node *parse_brackets(parser *p) {
    p->t++;
    if (is_op(p->t, ')')) {
        hd_j_node *n = node(p, N_TUPLE);
        p->t++;
        return n;
    }
    hd_j_node *n = parse_tuple(p, true);
    return n && expect_op(p, ')') ? n : NULL;
}

static hd_j_node *parse_name(parser *p) {
    static const struct { const char *name; hd_j_val value; } constants[] = {
        {"true", {.kind = J_BOOL, .u.i = 1}}, {"True", {.kind = J_BOOL, .u.i = 1}},   {"false", {.kind = J_BOOL}},
        {"False", {.kind = J_BOOL}},          {"none", {.kind = J_NONE}}, {"None", {.kind = J_NONE}}};
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++)
        if (is_name(p->t, constants[i].name)) return constant(p, constants[i].value);
    return name_node(p, N_NAME, false);
}

static hd_j_node *parse_primary(parser *p) {
    if (!enter(p)) return NULL;
    hd_j_node *n = NULL;
    switch (p->t->type) {
    case T_NAME: n = parse_name(p); break;
    case T_STRING: n = parse_string(p); break;
    case T_INT:
    case T_FLOAT: n = constant(p, p->t->value); break;
    default:
        if (is_op(p->t, '(')) n = parse_brackets(p);
        else if (is_op(p->t, '[')) n = parse_list(p);
        else if (is_op(p->t, '{')) n = parse_dict(p);
        else fail(p, "an expression expected");
    }
    p->depth--;
    return n;
}

/* ---- what stands behind an expression ---- */

static hd_j_node *parse_dot(parser *p, hd_j_node *a) {
    p->t++;
    hd_j_node *n = node2(p, p->t->type == T_NAME ? N_ATTR : N_ITEM, a, a);
    if (!n) return NULL;
    n->b = NULL;
    if (p->t->type == T_NAME) {
        n->value = p->t->value;
        p->t++;
        return n;
    }
    if (p->t->type != T_INT) return fail(p, "a name or number expected after \".\"");
    n->b = constant(p, p->t->value);
    return n->b ? n : NULL;
}

/* [a], [a:b], [a:b:c]; absent parts are NULL. */
static hd_j_node *parse_subscript(parser *p, hd_j_node *a) {
    hd_j_node *parts[3] = {0};
    int colons = 0;
    p->t++;
    while (!is_op(p->t, ']')) {
        if (skip_op(p, ':')) {
            if (++colons > 2) return fail(p, "a slice with too many parts");
        } else if (parts[colons]) {
            return fail(p, "\"]\" expected");
        } else if (!(parts[colons] = parse_expression(p))) {
            return NULL;
        }
    }
    p->t++;
    if (!colons && !parts[0]) return fail(p, "a subscript without an index");
    hd_j_node *n = node2(p, colons ? N_SLICE : N_ITEM, a, a);
    if (!n) return NULL;
    n->b = parts[0];
    if (!colons) return n;
    n->items = hd_arena_copy(&p->j->arena, parts, sizeof parts);
    n->n = 3;
    return n->items ? n : no_memory(p);
}

static bool parse_arg(parser *p, args *list) {
    hd_j_arg a = {.name = {.kind = J_ABSENT}};
    if (is_op(p->t, '*') || is_op(p->t, HD_J_OP('*', '*'))) return fail_code(p, HD_EUNSUPPORTED, p->t, "arguments by * are not supported", NULL) != NULL;
    if (p->t->type == T_NAME && is_op(p->t + 1, '=')) {
        a.name = p->t->value;
        p->t += 2;
    } else if (list->len && list->data[list->len - 1].name.kind != J_ABSENT) {
        return fail(p, "an argument by position behind one by name") != NULL;
    }
    a.value = parse_expression(p);
    if (!a.value) return false;
    if (list->len >= HD_J_MAX_ARGS) return fail(p, "too many arguments") != NULL;
    if (hd_grow(&list->data, &list->cap, list->len + 1, sizeof a)) return no_memory(p) != NULL;
    list->data[list->len++] = a;
    return true;
}

/* "(...)" into n's arguments. */
static hd_j_node *parse_args(parser *p, hd_j_node *n) {
    args list = {0};
    bool ok = n && expect_op(p, '(');
    while (ok && !is_op(p->t, ')')) {
        if (list.len) ok = expect_op(p, ',');
        if (!ok || is_op(p->t, ')')) break;
        ok = parse_arg(p, &list);
    }
    ok = ok && expect_op(p, ')');
    return take_args(p, &list, n, ok);
}

static bool known_method(const hd_j_val *name) {
    static const hd_j_entry *const tables[] = {hd_j_str_methods, hd_j_list_methods, hd_j_dict_methods, hd_j_loop_methods};
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
        if (hd_j_find(tables[i], name->u.s, name->n)) return true;
    return false;
}

static hd_j_node *parse_call(parser *p, hd_j_node *a) {
    if (a->type == N_ATTR && !known_method(&a->value)) return fail_code(p, HD_EUNSUPPORTED, p->t, "unknown method", &a->value);
    hd_j_node *n = node2(p, N_CALL, a, a);
    if (!n) return NULL;
    n->b = NULL;
    if (a->type == N_NAME && !p->j->symbols[a->symbol].called) p->j->symbols[a->symbol].called = n;
    return parse_args(p, n);
}

static hd_j_node *parse_postfix(parser *p, hd_j_node *n) {
    while (n) {
        if (is_op(p->t, '.')) n = parse_dot(p, n);
        else if (is_op(p->t, '[')) n = parse_subscript(p, n);
        else if (is_op(p->t, '(')) n = parse_call(p, n);
        else break;
    }
    return n;
}

/* The filter at hand, behind its "|". */
static hd_j_node *parse_filter(parser *p, hd_j_node *a) {
    if (p->t->type != T_NAME) return fail(p, "a filter's name expected");
    hd_j_node *n = node2(p, N_FILTER, a, a);
    if (!n) return NULL;
    n->b = NULL;
    n->entry = hd_j_find(hd_j_filters, p->t->value.u.s, p->t->value.n);
    if (!n->entry) return fail_code(p, HD_EUNSUPPORTED, p->t, "unknown filter", &p->t->value);
    p->t++;
    return is_op(p->t, '(') ? parse_args(p, n) : n;
}

static bool begins_test_argument(const hd_j_token *t) {
    static const char *const words[] = {"else", "or", "and", "if", "in", "not", "is"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (is_name(t, words[i])) return false;
    return t->type == T_NAME || t->type == T_STRING || t->type == T_INT || t->type == T_FLOAT || is_op(t, '[') || is_op(t, '{');
}

static hd_j_node *parse_test(parser *p, hd_j_node *a) {
    p->t++;
    hd_j_node *n = node2(p, N_TEST, a, a);
    if (!n) return NULL;
    n->b = NULL;
    n->negated = skip_name(p, "not");
    if (p->t->type != T_NAME) return fail(p, "a test's name expected");
    n->entry = hd_j_find(hd_j_tests, p->t->value.u.s, p->t->value.n);
    if (!n->entry) return fail_code(p, HD_EUNSUPPORTED, p->t, "unknown test", &p->t->value);
    p->t++;
    if (is_op(p->t, '(')) return parse_args(p, n);
    if (!begins_test_argument(p->t)) return n;
    hd_j_arg arg = {.name = {.kind = J_ABSENT}, .value = parse_postfix(p, parse_primary(p))};
    if (!arg.value) return NULL;
    n->args = hd_arena_copy(&p->j->arena, &arg, sizeof arg);
    n->n_args = 1;
    return n->args ? n : no_memory(p);
}

static hd_j_node *parse_filters(parser *p, hd_j_node *n) {
    while (n) {
        if (skip_op(p, '|')) n = parse_filter(p, n);
        else if (is_name(p->t, "is")) n = parse_test(p, n);
        else if (is_op(p->t, '(')) n = parse_call(p, n);
        else break;
    }
    return n;
}

/* ---- operators, from the tightest ---- */

static hd_j_node *parse_unary(parser *p, bool filters) {
    if (!enter(p)) return NULL;
    hd_j_node *n;
    if (is_op(p->t, '-') || is_op(p->t, '+')) {
        n = node(p, is_op(p->t, '-') ? N_NEG : N_POS);
        p->t++;
        if (n && !(n->a = parse_unary(p, false))) n = NULL;
    } else {
        n = parse_primary(p);
    }
    n = parse_postfix(p, n);
    if (filters) n = parse_filters(p, n);
    p->depth--;
    return n;
}

static const uint16_t level_pow[] = {HD_J_OP('*', '*'), 0}, level_mul[] = {'*', '/', HD_J_OP('/', '/'), '%', 0}, level_add[] = {'+', '-', 0};

static bool op_among(const hd_j_token *t, const uint16_t *ops) {
    for (; *ops; ops++)
        if (is_op(t, *ops)) return true;
    return false;
}

static hd_j_node *parse_pow(parser *p) {
    hd_j_node *n = parse_unary(p, true);
    while (n && op_among(p->t, level_pow)) {
        uint16_t op = p->t++->op;
        n = node2(p, N_BINARY, n, parse_unary(p, true));
        if (n) n->op = op;
    }
    return n;
}

static hd_j_node *parse_mul(parser *p) {
    hd_j_node *n = parse_pow(p);
    while (n && op_among(p->t, level_mul)) {
        uint16_t op = p->t++->op;
        n = node2(p, N_BINARY, n, parse_pow(p));
        if (n) n->op = op;
    }
    return n;
}

static hd_j_node *parse_concat(parser *p) {
    hd_j_node *first = parse_mul(p);
    if (!first || !is_op(p->t, '~')) return first;
    nodes items = {0};
    hd_j_node *n = node(p, N_CONCAT);
    bool ok = n && add_node(p, &items, first);
    while (ok && skip_op(p, '~')) ok = add_node(p, &items, parse_mul(p));
    return take_nodes(p, &items, n, ok);
}

static hd_j_node *parse_add(parser *p) {
    hd_j_node *n = parse_concat(p);
    while (n && op_among(p->t, level_add)) {
        uint16_t op = p->t++->op;
        n = node2(p, N_BINARY, n, parse_concat(p));
        if (n) n->op = op;
    }
    return n;
}

/* The comparison at hand, which is passed; 0: none. */
static uint16_t comparison(parser *p) {
    static const uint16_t ops[] = {HD_J_OP('=', '='), HD_J_OP('!', '='), '<', '>', HD_J_OP('<', '='), HD_J_OP('>', '='), 0};
    if (op_among(p->t, ops)) return p->t++->op;
    if (skip_name(p, "in")) return 'i';
    if (!is_name(p->t, "not") || !is_name(p->t + 1, "in")) return 0;
    p->t += 2;
    return 'n';
}

static hd_j_node *parse_compare(parser *p) {
    hd_j_node *first = parse_add(p), *n = first;
    nodes items = {0};
    uint16_t op, ops[16];
    bool ok = n != NULL;
    while (ok && (op = comparison(p))) {
        if (items.len == 16) ok = fail(p, "too many comparisons in one chain") != NULL;
        if (ok) ops[items.len] = op;
        ok = ok && add_node(p, &items, parse_add(p));
    }
    if (ok && items.len) {
        n = node2(p, N_COMPARE, first, first);
        if (n) n->b = NULL, n->ops = hd_arena_copy(&p->j->arena, ops, items.len * sizeof *ops);
        if (n && !n->ops) n = no_memory(p);
    }
    return take_nodes(p, &items, n, ok && n);
}

static hd_j_node *parse_not(parser *p) {
    if (!is_name(p->t, "not")) return parse_compare(p);
    if (!enter(p)) return NULL;
    hd_j_node *n = node(p, N_NOT);
    p->t++;
    if (n && !(n->a = parse_not(p))) n = NULL;
    p->depth--;
    return n;
}

static hd_j_node *parse_and(parser *p) {
    hd_j_node *n = parse_not(p);
    while (n && skip_name(p, "and")) n = node2(p, N_AND, n, parse_not(p));
    return n;
}

static hd_j_node *parse_or(parser *p) {
    hd_j_node *n = parse_and(p);
    while (n && skip_name(p, "or")) n = node2(p, N_OR, n, parse_and(p));
    return n;
}

static hd_j_node *parse_expression(parser *p) {
    if (!enter(p)) return NULL;
    hd_j_node *n = parse_or(p);
    while (n && skip_name(p, "if")) {
        hd_j_node *c = node2(p, N_COND, parse_or(p), n);
        if (!c) return NULL;
        if (skip_name(p, "else") && !(c->c = parse_expression(p))) return NULL;
        n = c;
    }
    p->depth--;
    return n;
}

/* a, b, c: a tuple; one without a comma is itself. conditions: each may be "x if y else z". */
static hd_j_node *parse_tuple(parser *p, bool conditions) {
    nodes items = {0};
    hd_j_node *first = conditions ? parse_expression(p) : parse_or(p);
    if (!first || !is_op(p->t, ',')) return first;
    hd_j_node *n = node(p, N_TUPLE);
    bool ok = n && add_node(p, &items, first);
    while (ok && skip_op(p, ',')) {
        if (p->t->type == T_VAR_END || p->t->type == T_BLOCK_END || is_op(p->t, ')')) break;
        ok = add_node(p, &items, conditions ? parse_expression(p) : parse_or(p));
    }
    return take_nodes(p, &items, n, ok);
}

/* ---- statements ---- */

static bool among(const hd_j_token *t, const char *const *names) {
    for (; names && *names; names++)
        if (is_name(t, *names)) return true;
    return false;
}

/* A body and its end tag, of which the name is passed, and the tag's end, too. */
static hd_j_node *parse_to(parser *p, const char *end) {
    const char *const ends[] = {end, NULL};
    hd_j_node *n = parse_body(p, ends);
    if (!n) return NULL;
    p->t++;
    return expect_end(p) ? n : NULL;
}

static hd_j_node *parse_if(parser *p) {
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    nodes items = {0};
    hd_j_node *n = node(p, N_IF);
    bool ok = n != NULL;
    do {
        p->t++;
        ok = ok && add_node(p, &items, parse_tuple(p, false)) && expect_end(p) && add_node(p, &items, parse_body(p, ends));
    } while (ok && is_name(p->t, "elif"));
    if (ok && skip_name(p, "else")) ok = expect_end(p) && (n->c = parse_to(p, "endif"));
    else if (ok) ok = skip_name(p, "endif") && expect_end(p);
    return take_nodes(p, &items, n, ok);
}

static hd_j_node *parse_names(parser *p, bool brackets);

/* A name, or names in brackets. */
static hd_j_node *parse_target_one(parser *p) {
    if (!skip_op(p, '(')) return name_node(p, N_NAME, true);
    if (!enter(p)) return NULL;
    hd_j_node *n = parse_names(p, true);
    p->depth--;
    return n && expect_op(p, ')') ? n : NULL;
}

static hd_j_node *parse_names(parser *p, bool brackets) {
    nodes items = {0};
    hd_j_node *first = parse_target_one(p);
    if (!first || !is_op(p->t, ',')) return first;
    hd_j_node *n = node(p, N_TUPLE);
    bool ok = n && add_node(p, &items, first);
    while (ok && skip_op(p, ',') && (p->t->type == T_NAME || is_op(p->t, '('))) {
        if (!brackets && is_name(p->t, "in")) break;
        ok = add_node(p, &items, parse_target_one(p));
    }
    return take_nodes(p, &items, n, ok);
}

/* One or several names to assign to, or (set only) namespace.name. */
static hd_j_node *parse_target(parser *p, bool attributes) {
    if (attributes && p->t->type == T_NAME && is_op(p->t + 1, '.')) return parse_dot(p, name_node(p, N_NAME, false));
    return parse_names(p, false);
}

static hd_j_node *parse_for(parser *p) {
    static const char *const ends[] = {"else", "endfor", NULL};
    nodes items = {0};
    hd_j_node *n = node(p, N_FOR);
    p->t++;
    if (!n || !(n->a = parse_target(p, false))) return NULL;
    if (!skip_name(p, "in")) return fail(p, "\"in\" expected");
    if (!(n->b = parse_tuple(p, false))) return NULL;
    if (skip_name(p, "if") && !(n->c = parse_expression(p))) return NULL;
    if (is_name(p->t, "recursive")) return fail_code(p, HD_EUNSUPPORTED, p->t, "recursive loops are not supported", NULL);
    p->loops++;
    bool ok = expect_end(p) && add_node(p, &items, parse_body(p, ends));
    p->loops--;
    if (ok && skip_name(p, "else")) ok = expect_end(p) && add_node(p, &items, parse_to(p, "endfor"));
    else if (ok) ok = skip_name(p, "endfor") && expect_end(p);
    return take_nodes(p, &items, n, ok);
}

/* A block's filters, over what the block says. */
static hd_j_node *parse_held_filters(parser *p) {
    hd_j_node *n = node(p, N_HELD);
    while (n && skip_op(p, '|')) n = parse_filter(p, n);
    return n;
}

static hd_j_node *parse_set(parser *p) {
    hd_j_node *n = node(p, N_SET);
    p->t++;
    if (!n || !(n->a = parse_target(p, true))) return NULL;
    if (skip_op(p, '=')) return (n->b = parse_tuple(p, true)) && expect_end(p) ? n : NULL;
    n->type = N_SET_BLOCK;
    return (n->c = parse_held_filters(p)) && expect_end(p) && (n->b = parse_to(p, "endset")) ? n : NULL;
}

static hd_j_node *parse_filter_block(parser *p) {
    hd_j_node *n = node(p, N_FILTER_BLOCK);
    p->t++;
    if (!n || !(n->c = node(p, N_HELD)) || !(n->c = parse_filter(p, n->c))) return NULL;
    while (skip_op(p, '|'))
        if (!(n->c = parse_filter(p, n->c))) return NULL;
    return expect_end(p) && (n->b = parse_to(p, "endfilter")) ? n : NULL;
}

/* name, name=value, ... up to a closing bracket or the tag's end: a macro's parameters, or a with's variables. */
static hd_j_node *parse_params(parser *p, hd_j_node *n, bool values) {
    args list = {0};
    bool ok = true;
    while (ok && p->t->type == T_NAME) {
        hd_j_node *name = name_node(p, N_NAME, true);
        hd_j_arg a = {.name = name ? name->value : (hd_j_val){0}, .symbol = name ? name->symbol : 0};
        ok = name != NULL && list.len < HD_J_MAX_ARGS;
        if (name && !ok) fail(p, "too many parameters");
        if (ok && values && !is_op(p->t, '=')) ok = expect_op(p, '=');
        if (ok && skip_op(p, '=')) ok = (a.value = parse_expression(p)) != NULL;
        if (ok && hd_grow(&list.data, &list.cap, list.len + 1, sizeof a)) ok = no_memory(p) != NULL;
        if (ok) list.data[list.len++] = a;
        if (ok && !skip_op(p, ',')) break;
    }
    return take_args(p, &list, n, ok);
}

static hd_j_node *parse_with(parser *p) {
    hd_j_node *n = node(p, N_WITH);
    p->t++;
    return n && parse_params(p, n, true) && expect_end(p) && (n->b = parse_to(p, "endwith")) ? n : NULL;
}

static hd_j_node *parse_macro(parser *p) {
    p->t++;
    int loops = p->loops;
    hd_j_node *n = name_node(p, N_MACRO, true);
    if (!n || !expect_op(p, '(') || !parse_params(p, n, false) || !expect_op(p, ')') || !expect_end(p)) return NULL;
    p->loops = 0;
    n->b = parse_to(p, "endmacro");
    p->loops = loops;
    return n->b ? n : NULL;
}

static hd_j_node *parse_jump(parser *p) {
    hd_j_node *n = node(p, is_name(p->t, "break") ? N_BREAK : N_CONTINUE);
    if (!p->loops) return fail(p, "break and continue belong into a loop");
    p->t++;
    return n && expect_end(p) ? n : NULL;
}

/* Marks what the model itself said, for training: to a rendering, a scope of its own. */
static hd_j_node *parse_generation(parser *p) {
    hd_j_node *n = node(p, N_WITH);
    p->t++;
    return n && expect_end(p) && (n->b = parse_to(p, "endgeneration")) ? n : NULL;
}

static const struct { const char *name; hd_j_node *(*parse)(parser *p); } statements[] = {
    {"if", parse_if}, {"for", parse_for}, {"set", parse_set}, {"macro", parse_macro}, {"break", parse_jump}, {"continue", parse_jump},
    {"generation", parse_generation}, {"filter", parse_filter_block}, {"with", parse_with}};

static hd_j_node *parse_statement(parser *p) {
    if (p->t->type != T_NAME) return fail(p, "the name of a tag expected");
    for (size_t i = 0; i < sizeof statements / sizeof *statements; i++)
        if (is_name(p->t, statements[i].name)) return statements[i].parse(p);
    return fail_code(p, HD_EUNSUPPORTED, p->t, "unknown tag, or one that stands where it may not:", &p->t->value);
}

static hd_j_node *parse_print(parser *p) {
    hd_j_node *n = node(p, N_PRINT);
    if (!n || !(n->a = parse_tuple(p, true))) return NULL;
    if (p->t->type != T_VAR_END) return fail(p, "\"}}\" expected");
    p->t++;
    return n;
}

static hd_j_node *parse_data(parser *p) {
    hd_j_node *n = node(p, N_DATA);
    if (n) n->value = p->t->value;
    p->t++;
    return n;
}

/* Up to one of `ends` (stopping at its name) or, for NULL, the end of the text. */
static hd_j_node *parse_body(parser *p, const char *const *ends) {
    nodes items = {0};
    if (!enter(p)) return NULL;
    hd_j_node *n = node(p, N_BODY);
    bool ok = n != NULL, end = false;
    while (ok && !end) {
        const hd_j_token *t = p->t;
        if (t->type == T_EOF) {
            end = true;
            if (ends) ok = fail(p, "a block that doesn't end") != NULL;
        } else if (t->type == T_DATA) {
            ok = add_node(p, &items, parse_data(p));
        } else {
            p->t++;
            end = t->type == T_BLOCK_BEGIN && among(p->t, ends);
            if (!end) ok = add_node(p, &items, t->type == T_BLOCK_BEGIN ? parse_statement(p) : parse_print(p));
        }
    }
    p->depth--;
    return take_nodes(p, &items, n, ok);
}

/* A name that is called is a function, or one that the template itself sets. */
static int check_calls(hd_jinja *j, hd_error *err) {
    for (size_t i = 0; i < j->n_symbols; i++) {
        const hd_j_symbol *s = &j->symbols[i];
        if (s->called && !s->assigned && !hd_j_find(hd_j_functions, s->name.u.s, s->name.n))
            return hd_fail(err, HD_EUNSUPPORTED, "%s: line %u, column %u: unknown function \"%.*s\"", j->name, s->called->line, s->called->column,
                           (int)(s->name.n < 60 ? s->name.n : 60), s->name.u.s);
    }
    return 0;
}

int hd_j_parse(hd_jinja *j, const hd_j_token *tokens, hd_error *err) {
    parser p = {.j = j, .t = tokens, .err = err};
    j->body = parse_body(&p, NULL);
    return j->body ? check_calls(j, err) : err->code;
}
