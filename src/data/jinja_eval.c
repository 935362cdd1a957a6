/* jinja_eval.c: walking the tree: expressions and statements. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "data/jinja_int.h"

/* ---- limits and failures ---- */

hd_j_val hd_j_fail(hd_j_ctx *c, const char *fmt, ...) {
    char text[400];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (!c->rc) c->rc = hd_fail(c->err, HD_EINVAL, "%s: line %u, column %u: %s", c->j->name, c->at ? c->at->line : 0, c->at ? c->at->column : 0, text);
    return hd_j_undef("", 0);
}

static bool over(hd_j_ctx *c, const char *what, int64_t limit) {
    if (!c->rc)
        c->rc = hd_fail(c->err, HD_EMEMCAP, "%s: line %u, column %u: the template needs more than %lld %s", c->j->name, c->at ? c->at->line : 0,
                        c->at ? c->at->column : 0, (long long)limit, what);
    return false;
}

bool hd_j_charge(hd_j_ctx *c, size_t steps) {
    if (c->rc) return false;
    c->steps += (int64_t)steps;
    return c->steps <= c->limit.steps || over(c, "steps", c->limit.steps);
}

/* An expression's or body's level in the source is several of the evaluator's. */
enum { LEVELS = 16 };

bool hd_j_enter(hd_j_ctx *c) {
    if (c->rc) return false;
    return ++c->depth <= c->limit.depth * LEVELS || over(c, "levels of nesting", c->limit.depth);
}

/* Everything on the way together may take eight times what one string may. */
void *hd_j_alloc(hd_j_ctx *c, size_t bytes) {
    if (c->rc) return NULL;
    if (bytes > (size_t)c->limit.bytes * 8 || c->arena.used > (size_t)c->limit.bytes * 8 - bytes) return over(c, "bytes", c->limit.bytes * 8), NULL;
    void *p = hd_arena_alloc(&c->arena, bytes);
    if (!p) c->rc = hd_fail_memory(c->err, bytes, "a rendered template");
    return p;
}

char *hd_j_text(hd_j_ctx *c, size_t n) {
    if (n > (size_t)c->limit.bytes) return over(c, "bytes", c->limit.bytes), NULL;
    return hd_j_charge(c, n / 256) ? hd_j_alloc(c, n + 1) : NULL;
}

/* ---- names ---- */

static hd_j_val look_up(const hd_j_ctx *c, const hd_j_node *n) {
    for (const hd_j_scope *s = c->scope; s; s = s->up)
        for (const hd_j_var *v = s->vars; v; v = v->next)
            if (v->symbol == n->symbol) return v->value;
    hd_j_val g = c->globals[n->symbol];
    return g.kind == J_ABSENT ? hd_j_undef(n->value.u.s, n->value.n) : g;
}

static void assign(hd_j_ctx *c, uint32_t symbol, hd_j_val value) {
    if (c->rc) return;
    for (hd_j_var *v = c->scope->vars; v; v = v->next)
        if (v->symbol == symbol) {
            v->value = value;
            return;
        }
    hd_j_var *v = hd_j_alloc(c, sizeof *v);
    if (!v) return;
    *v = (hd_j_var){symbol, value, c->scope->vars};
    c->scope->vars = v;
}

static hd_j_scope *push_scope(hd_j_ctx *c, hd_j_scope *up) {
    hd_j_scope *s = hd_j_alloc(c, sizeof *s), *before = c->scope;
    if (!s) return NULL;
    s->up = up;
    c->scope = s;
    return before ? before : s;
}

static void unpack(hd_j_ctx *c, const hd_j_node *target, hd_j_val value) {
    if (target->type == N_NAME) {
        assign(c, target->symbol, value);
        return;
    }
    hd_j_val items = hd_j_iterate(c, value);
    if (c->rc) return;
    if (items.u.list->n != target->n) {
        hd_j_fail(c, "%zu values to unpack into %u names", items.u.list->n, target->n);
        return;
    }
    for (uint32_t i = 0; i < target->n; i++) unpack(c, target->items[i], items.u.list->items[i]);
}

/* ---- calls ---- */

/* Binds arguments to an entry's parameters and calls it. */
hd_j_val hd_j_apply(hd_j_ctx *c, const hd_j_entry *e, hd_j_val self, const hd_j_call *call) {
    hd_j_val a[HD_J_PARAMS];
    for (int i = 0; i < HD_J_PARAMS; i++) a[i].kind = J_ABSENT;
    if (e->params[0] && e->params[0][0] == '*') return e->fn(c, self, a, call);
    size_t params = 0;
    while (params < HD_J_PARAMS && e->params[params]) params++;
    if (call->n > params) return hd_j_fail(c, "%s takes at most %zu arguments, not %zu", e->name, params, call->n);
    for (size_t i = 0; i < call->n; i++) a[i] = call->pos[i];
    for (size_t k = 0; k < call->n_kw; k++) {
        size_t i = 0;
        while (i < params && (strlen(e->params[i]) != call->kw_names[k].n || memcmp(e->params[i], call->kw_names[k].u.s, call->kw_names[k].n))) i++;
        if (i == params || a[i].kind != J_ABSENT)
            return hd_j_fail(c, "%s has no argument \"%.*s\", or has it twice", e->name, (int)call->kw_names[k].n, call->kw_names[k].u.s);
        a[i] = call->kw_values[k];
    }
    for (int i = 0; i < e->required; i++)
        if (a[i].kind == J_ABSENT) return hd_j_fail(c, "%s needs \"%s\"", e->name, e->params[i]);
    return e->fn(c, self, a, call);
}

/* Evaluates the arguments of n into memory of the rendering. */
static bool eval_args(hd_j_ctx *c, const hd_j_node *n, hd_j_call *call) {
    hd_j_val *v = n->n_args ? hd_j_alloc(c, n->n_args * 2 * sizeof *v) : NULL;
    *call = (hd_j_call){.pos = v};
    for (uint32_t i = 0; i < n->n_args && !c->rc; i++) {
        hd_j_val x = hd_j_eval(c, n->args[i].value);
        if (n->args[i].name.kind == J_ABSENT) {
            v[call->n++] = x;
        } else {
            if (!call->n_kw) call->kw_values = v + call->n, call->kw_names = v + n->n_args;
            v[call->n + call->n_kw] = x;
            v[n->n_args + call->n_kw++] = n->args[i].name;
        }
    }
    c->at = n;
    return !c->rc;
}

/* Text of a body, taken instead of put out. */
static hd_j_val capture(hd_j_ctx *c, const hd_j_node *body) {
    hd_str text, *out = c->out;
    hd_str_init(&text);
    c->out = &text;
    size_t base = c->base;
    c->base = 0;
    hd_j_exec(c, body);
    c->out = out;
    c->base = base;
    return hd_j_take(c, &text);
}

static void bind_macro(hd_j_ctx *c, const hd_j_node *m, const hd_j_call *call) {
    size_t used = 0;
    if (call->n > m->n_args) {
        hd_j_fail(c, "macro '%.*s' takes not more than %u argument(s)", (int)m->value.n, m->value.u.s, m->n_args);
        return;
    }
    for (uint32_t i = 0; i < m->n_args && !c->rc; i++) {
        const hd_j_arg *p = &m->args[i];
        const hd_j_val *given = i < call->n ? &call->pos[i] : NULL;
        for (size_t k = 0; k < call->n_kw && !given; k++)
            if (call->kw_names[k].n == p->name.n && !memcmp(call->kw_names[k].u.s, p->name.u.s, p->name.n)) given = &call->kw_values[k], used++;
        assign(c, p->symbol, given ? *given : p->value ? hd_j_eval(c, p->value) : hd_j_undef(p->name.u.s, p->name.n));
    }
    if (used < call->n_kw) hd_j_fail(c, "macro '%.*s' has no such keyword argument, or has it twice", (int)m->value.n, m->value.u.s);
}

static hd_j_val call_macro(hd_j_ctx *c, const hd_j_macro *m, const hd_j_call *call) {
    if (c->macros >= c->limit.depth) return over(c, "macros inside one another", c->limit.depth), hd_j_undef("", 0);
    hd_j_scope *before = push_scope(c, m->scope);
    if (!before) return hd_j_undef("", 0);
    c->macros++;
    bind_macro(c, m->node, call);
    hd_j_val text = c->rc ? hd_j_undef("", 0) : capture(c, m->node->b);
    c->macros--;
    c->scope = before;
    return text;
}

static hd_j_val eval_call(hd_j_ctx *c, const hd_j_node *n) {
    hd_j_val f = hd_j_eval(c, n->a);
    hd_j_call call;
    if (c->rc || !eval_args(c, n, &call)) return f;
    switch (f.kind) {
    case J_FUNCTION: return hd_j_apply(c, f.u.function, (hd_j_val){.kind = J_ABSENT}, &call);
    case J_METHOD: return hd_j_apply(c, f.u.method->entry, f.u.method->self, &call);
    case J_MACRO: return call_macro(c, f.u.macro, &call);
    case J_UNDEF: return hd_j_fail(c, "'%.*s' is undefined", (int)(f.n < 80 ? f.n : 80), f.u.s);
    default: return hd_j_fail(c, "'%s' object is not callable", hd_j_type_name(f));
    }
}

static hd_j_val eval_filter(hd_j_ctx *c, const hd_j_node *n) {
    hd_j_val v = hd_j_eval(c, n->a);
    hd_j_call call;
    if (c->rc || !eval_args(c, n, &call)) return v;
    v = hd_j_apply(c, n->entry, v, &call);
    return n->type == N_TEST && n->negated ? hd_j_bool(!hd_j_truth(v)) : v;
}

/* ---- expressions ---- */

static hd_j_val eval_items(hd_j_ctx *c, const hd_j_node *n) {
    if (n->type == N_DICT) {
        hd_j_val d = hd_j_dict_new(c, J_DICT);
        for (uint32_t i = 0; i + 1 < n->n && !c->rc; i += 2) {
            hd_j_val key = hd_j_eval(c, n->items[i]), value = hd_j_eval(c, n->items[i + 1]);
            hd_j_put(c, d, key, value);
        }
        return d;
    }
    hd_j_val l = hd_j_list_new(c, n->n, n->type == N_LIST ? J_LIST : J_TUPLE);
    for (uint32_t i = 0; i < n->n && !c->rc; i++) hd_j_push(c, l, hd_j_eval(c, n->items[i]));
    return l;
}

static hd_j_val eval_concat(hd_j_ctx *c, const hd_j_node *n) {
    hd_str s;
    hd_str_init(&s);
    for (uint32_t i = 0; i < n->n && !c->rc; i++) {
        hd_j_val v = hd_j_eval(c, n->items[i]);
        if (!c->rc) hd_j_write(c, &s, v, false);
    }
    return hd_j_take(c, &s);
}

static bool compare_one(hd_j_ctx *c, uint16_t op, hd_j_val a, hd_j_val b) {
    if (op == HD_J_OP('=', '=')) return hd_j_equal(c, a, b);
    if (op == HD_J_OP('!', '=')) return !hd_j_equal(c, a, b);
    if (op == 'i') return hd_j_contains(c, b, a);
    if (op == 'n') return !hd_j_contains(c, b, a);
    int order = hd_j_compare(c, a, b);
    if (order == 2) return false; /* NaN */
    bool equal = op >> 8 == '=';
    return (op & 0xff) == '<' ? order < 0 || (equal && order == 0) : order > 0 || (equal && order == 0);
}

static hd_j_val eval_compare(hd_j_ctx *c, const hd_j_node *n) {
    hd_j_val left = hd_j_eval(c, n->a);
    bool yes = true;
    for (uint32_t i = 0; i < n->n && yes && !c->rc; i++) {
        hd_j_val right = hd_j_eval(c, n->items[i]);
        c->at = n;
        yes = !c->rc && compare_one(c, n->ops[i], left, right);
        left = right;
    }
    return hd_j_bool(yes);
}

static hd_j_val eval_slice(hd_j_ctx *c, const hd_j_node *n) {
    hd_j_val v = hd_j_eval(c, n->a), parts[3];
    for (int i = 0; i < 3; i++) parts[i] = n->items[i] && !c->rc ? hd_j_eval(c, n->items[i]) : hd_j_none();
    c->at = n;
    return c->rc ? v : hd_j_slice(c, v, parts[0], parts[1], parts[2]);
}

static hd_j_val eval_sign(hd_j_ctx *c, const hd_j_node *n) {
    hd_j_val v = hd_j_eval(c, n->a);
    c->at = n;
    if (c->rc) return v;
    if (!hd_j_is_number(v)) return hd_j_fail(c, "bad operand type for unary %c: '%s'", n->type == N_NEG ? '-' : '+', hd_j_type_name(v));
    if (v.kind == J_FLOAT) return hd_j_float(n->type == N_NEG ? -v.u.f : v.u.f);
    return n->type == N_NEG ? hd_j_binary(c, '-', hd_j_int(0), v) : hd_j_int(v.u.i);
}

static hd_j_val eval_two(hd_j_ctx *c, const hd_j_node *n) {
    hd_j_val a = hd_j_eval(c, n->a);
    if (c->rc) return a;
    hd_j_val b = hd_j_eval(c, n->b);
    c->at = n;
    if (c->rc) return a;
    return n->type == N_ITEM ? hd_j_item(c, a, b) : hd_j_binary(c, n->op, a, b);
}

static hd_j_val eval_choice(hd_j_ctx *c, const hd_j_node *n) {
    hd_j_val a = hd_j_eval(c, n->a);
    if (c->rc) return a;
    if (n->type == N_COND) return hd_j_truth(a) ? hd_j_eval(c, n->b) : n->c ? hd_j_eval(c, n->c) : hd_j_undef("the inline if-expression without else", 37);
    return hd_j_truth(a) == (n->type == N_OR) ? a : hd_j_eval(c, n->b);
}

static hd_j_val eval_attr(hd_j_ctx *c, const hd_j_node *n) {
    hd_j_val v = hd_j_eval(c, n->a);
    c->at = n;
    return c->rc ? v : hd_j_attr(c, v, n->value);
}

static hd_j_val eval_inner(hd_j_ctx *c, const hd_j_node *n) {
    switch ((hd_j_node_type)n->type) {
    case N_LIST:
    case N_TUPLE:
    case N_DICT: return eval_items(c, n);
    case N_COND:
    case N_AND:
    case N_OR: return eval_choice(c, n);
    case N_NOT: return hd_j_bool(!hd_j_truth(hd_j_eval(c, n->a)));
    case N_NEG:
    case N_POS: return eval_sign(c, n);
    case N_ITEM:
    case N_BINARY: return eval_two(c, n);
    case N_CONCAT: return eval_concat(c, n);
    case N_COMPARE: return eval_compare(c, n);
    case N_ATTR: return eval_attr(c, n);
    case N_SLICE: return eval_slice(c, n);
    case N_CALL: return eval_call(c, n);
    case N_FILTER:
    case N_TEST: return eval_filter(c, n);
    default: return hd_j_undef("", 0);
    }
}

hd_j_val hd_j_eval(hd_j_ctx *c, const hd_j_node *n) {
    c->at = n;
    if (!hd_j_charge(c, 1)) return hd_j_undef("", 0);
    if (n->type == N_CONST) return n->value;
    if (n->type == N_NAME) return look_up(c, n);
    if (n->type == N_HELD) return c->held;
    if (!hd_j_enter(c)) return hd_j_undef("", 0);
    hd_j_val v = eval_inner(c, n);
    if (!c->rc) hd_j_leave(c);
    return v;
}

/* ---- statements ---- */

static void exec_if(hd_j_ctx *c, const hd_j_node *n) {
    for (uint32_t i = 0; i + 1 < n->n; i += 2) {
        bool yes = hd_j_truth(hd_j_eval(c, n->items[i]));
        if (c->rc) return;
        if (yes) {
            hd_j_exec(c, n->items[i + 1]);
            return;
        }
    }
    if (n->c) hd_j_exec(c, n->c);
}

/* The items that the loop's condition lets through. */
static hd_j_val filtered(hd_j_ctx *c, const hd_j_node *n, hd_j_val items) {
    hd_j_val out = hd_j_list_new(c, 0, J_LIST);
    for (size_t i = 0; i < items.u.list->n && !c->rc; i++) {
        hd_j_scope *before = push_scope(c, c->scope);
        if (!before) break;
        unpack(c, n->a, items.u.list->items[i]);
        if (!c->rc && hd_j_truth(hd_j_eval(c, n->c))) hd_j_push(c, out, items.u.list->items[i]);
        c->scope = before;
    }
    return out;
}

/* "loop" is a name like any other: its symbol, -1 when the template doesn't use it. */
static int64_t loop_symbol(const hd_jinja *j) {
    for (size_t i = 0; i < j->n_symbols; i++)
        if (j->symbols[i].name.n == 4 && !memcmp(j->symbols[i].name.u.s, "loop", 4)) return (int64_t)i;
    return -1;
}

static void exec_once(hd_j_ctx *c, const hd_j_node *n, hd_j_val loop, int64_t symbol, hd_j_val item) {
    hd_j_scope *before = push_scope(c, c->scope);
    if (!before) return;
    if (symbol >= 0) assign(c, (uint32_t)symbol, loop);
    unpack(c, n->a, item);
    if (!c->rc) hd_j_exec(c, n->items[0]);
    c->scope = before;
}

static void exec_for(hd_j_ctx *c, const hd_j_node *n) {
    hd_j_val v = hd_j_eval(c, n->b);
    hd_j_val items = c->rc ? v : hd_j_iterate(c, v);
    if (!c->rc && n->c) items = filtered(c, n, items);
    hd_j_loop *l = hd_j_alloc(c, sizeof *l);
    if (c->rc) return;
    *l = (hd_j_loop){.items = items.u.list, .changed = {.kind = J_ABSENT}};
    int64_t symbol = loop_symbol(c->j);
    bool whole = false; /* as in Jinja2, "else" is for a loop that no item went all the way through */
    for (l->at = 0; l->at < l->items->n && !c->rc; l->at++) {
        exec_once(c, n, (hd_j_val){.kind = J_LOOP, .u.loop = l}, symbol, l->items->items[l->at]);
        bool end = c->jump == HD_J_BREAK;
        whole |= c->jump == HD_J_GO_ON;
        c->jump = HD_J_GO_ON;
        if (end) break;
    }
    if (!whole && n->n > 1 && !c->rc) hd_j_exec(c, n->items[1]);
}

static void set_to(hd_j_ctx *c, const hd_j_node *target, hd_j_val value) {
    if (c->rc) return;
    if (target->type != N_ATTR) {
        unpack(c, target, value);
        return;
    }
    hd_j_val space = look_up(c, target->a);
    if (space.kind != J_NAMESPACE) hd_j_fail(c, "cannot assign attribute on non-namespace object");
    else hd_j_put(c, space, target->value, value);
}

static hd_j_val held_text(hd_j_ctx *c, const hd_j_node *n) {
    hd_j_scope *outer = push_scope(c, c->scope); /* what a block sets is its own */
    if (!outer) return hd_j_undef("", 0);
    hd_j_val text = capture(c, n->b), before = c->held;
    c->scope = outer;
    c->held = text;
    if (!c->rc) text = hd_j_eval(c, n->c);
    c->held = before;
    return text;
}

static void exec_with(hd_j_ctx *c, const hd_j_node *n) {
    hd_j_val *values = hd_j_alloc(c, (n->n_args + 1) * sizeof *values);
    for (uint32_t i = 0; i < n->n_args && !c->rc; i++) values[i] = hd_j_eval(c, n->args[i].value);
    hd_j_scope *before = c->rc ? NULL : push_scope(c, c->scope);
    if (!before) return;
    for (uint32_t i = 0; i < n->n_args; i++) assign(c, n->args[i].symbol, values[i]);
    hd_j_exec(c, n->b);
    c->scope = before;
}

static void exec_macro(hd_j_ctx *c, const hd_j_node *n) {
    hd_j_macro *m = hd_j_alloc(c, sizeof *m);
    if (!m) return;
    *m = (hd_j_macro){n, c->scope};
    assign(c, n->symbol, (hd_j_val){.kind = J_MACRO, .u.macro = m});
}

static void exec_body(hd_j_ctx *c, const hd_j_node *n) {
    for (uint32_t i = 0; i < n->n && !c->rc && c->jump == HD_J_GO_ON; i++) hd_j_exec(c, n->items[i]);
}

static void put(hd_j_ctx *c, hd_j_val v) {
    if (!c->rc) hd_j_write(c, c->out, v, false);
}

void hd_j_exec(hd_j_ctx *c, const hd_j_node *n) {
    c->at = n;
    if (!hd_j_charge(c, 1) || !hd_j_enter(c)) return;
    switch ((hd_j_node_type)n->type) {
    case N_BODY: exec_body(c, n); break;
    case N_DATA: put(c, n->value); break;
    case N_PRINT: put(c, hd_j_eval(c, n->a)); break;
    case N_IF: exec_if(c, n); break;
    case N_FOR: exec_for(c, n); break;
    case N_SET: set_to(c, n->a, hd_j_eval(c, n->b)); break;
    case N_SET_BLOCK: set_to(c, n->a, held_text(c, n)); break;
    case N_FILTER_BLOCK: put(c, held_text(c, n)); break;
    case N_WITH: exec_with(c, n); break;
    case N_MACRO: exec_macro(c, n); break;
    case N_BREAK: c->jump = HD_J_BREAK; break;
    case N_CONTINUE: c->jump = HD_J_CONTINUE; break;
    default: break;
    }
    if (!c->rc) hd_j_leave(c);
}
