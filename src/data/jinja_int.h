/* jinja_int.h: the parts of the Jinja interpreter, for jinja*.c only.
 *
 * text -> tokens (jinja_lex.c) -> tree (jinja_parse.c) -> walked by jinja_eval.c over values (jinja_value.c); filters, tests, methods and functions are tables
 * of hd_j_entry. Semantics are Jinja2 3.1's over Python's values. All memory of a template, and of a rendering, is one arena. A failed operation sets ctx.rc
 * and returns undefined: check rc after each call that may fail. */
#ifndef HD_DATA_JINJA_INT_H
#define HD_DATA_JINJA_INT_H

#include "base/mem.h"
#include "data/jinja.h"

/* ---- values ---- */

typedef enum hd_j_kind {
    J_UNDEF, J_NONE, J_BOOL, J_INT, J_FLOAT, J_STR, J_LIST, J_TUPLE, J_DICT, J_NAMESPACE, J_MACRO, J_FUNCTION, J_METHOD, J_LOOP,
    J_ABSENT /* an argument that wasn't given */
} hd_j_kind;

typedef struct hd_j_list hd_j_list;
typedef struct hd_j_dict hd_j_dict;
typedef struct hd_j_macro hd_j_macro;
typedef struct hd_j_method hd_j_method;
typedef struct hd_j_loop hd_j_loop;
typedef struct hd_j_entry hd_j_entry;
typedef struct hd_j_node hd_j_node;
typedef struct hd_j_ctx hd_j_ctx;

typedef struct hd_j_val {
    uint8_t kind;
    uint32_t n; /* of a string: bytes; of undefined: of the name that it is told by */
    union {
        int64_t i; /* J_INT, J_BOOL */
        double f;
        const char *s; /* valid UTF-8, not NUL-terminated */
        hd_j_list *list; /* J_LIST, J_TUPLE */
        hd_j_dict *dict; /* J_DICT, J_NAMESPACE */
        const hd_j_macro *macro;
        const hd_j_entry *function;
        const hd_j_method *method;
        hd_j_loop *loop;
    } u;
} hd_j_val;

struct hd_j_list { hd_j_val *items; size_t n, cap; };
struct hd_j_dict { hd_j_val *keys, *values; size_t n, cap; }; /* in the order of insertion */

typedef struct hd_j_scope hd_j_scope;
struct hd_j_macro { const hd_j_node *node; hd_j_scope *scope; }; /* where it was defined */
struct hd_j_method { hd_j_val self; const hd_j_entry *entry; };
struct hd_j_loop { const hd_j_list *items; size_t at; hd_j_val changed; int depth; };

static inline hd_j_val hd_j_int(int64_t i) { return (hd_j_val){.kind = J_INT, .u.i = i}; }
static inline hd_j_val hd_j_bool(bool b) { return (hd_j_val){.kind = J_BOOL, .u.i = b}; }
static inline hd_j_val hd_j_float(double f) { return (hd_j_val){.kind = J_FLOAT, .u.f = f}; }
static inline hd_j_val hd_j_none(void) { return (hd_j_val){.kind = J_NONE}; }
static inline hd_j_val hd_j_undef(const char *name, size_t n) { return (hd_j_val){.kind = J_UNDEF, .n = (uint32_t)n, .u.s = name}; }
static inline hd_j_val hd_j_str(const char *s, size_t n) { return (hd_j_val){.kind = J_STR, .n = (uint32_t)n, .u.s = s}; }
static inline bool hd_j_is_seq(hd_j_val v) { return v.kind == J_LIST || v.kind == J_TUPLE; }
static inline bool hd_j_is_int(hd_j_val v) { return v.kind == J_INT || v.kind == J_BOOL; } /* as isinstance(v, int) */
static inline bool hd_j_is_number(hd_j_val v) { return hd_j_is_int(v) || v.kind == J_FLOAT; }
static inline double hd_j_number(hd_j_val v) { return v.kind == J_FLOAT ? v.u.f : (double)v.u.i; }

/* ---- what can be called ---- */

typedef struct hd_j_call {
    const hd_j_val *pos; /* [n] */
    size_t n;
    const hd_j_val *kw_names, *kw_values; /* [n_kw] */
    size_t n_kw;
} hd_j_call;

enum { HD_J_PARAMS = 5 };

/* A filter, test, method (self: what stands before it) or function (self is absent). Arguments are bound to params in order or by name: absent ones are
 * J_ABSENT. */
struct hd_j_entry {
    const char *name;
    hd_j_val (*fn)(hd_j_ctx *c, hd_j_val self, const hd_j_val *a, const hd_j_call *call);
    int required;
    const char *params[HD_J_PARAMS]; /* first one "*": any arguments, looked up in call */
};

extern const hd_j_entry hd_j_filters[], hd_j_tests[], hd_j_functions[], hd_j_str_methods[], hd_j_list_methods[], hd_j_dict_methods[], hd_j_loop_methods[];
const hd_j_entry *hd_j_find(const hd_j_entry *table, const char *name, size_t n); /* tables end with a NULL name */

/* ---- tokens and the tree ---- */

typedef enum hd_j_token_type { T_DATA, T_NAME, T_STRING, T_INT, T_FLOAT, T_OP, T_BLOCK_BEGIN, T_BLOCK_END, T_VAR_BEGIN, T_VAR_END, T_EOF } hd_j_token_type;

/* An operator is its one or two characters. */
#define HD_J_OP(a, b) ((uint16_t)((a) | (b) << 8))

typedef struct hd_j_token {
    uint8_t type;
    uint16_t op;
    uint32_t line, column; /* from 1; column in bytes */
    hd_j_val value;        /* T_DATA, T_NAME, T_STRING: text; T_INT, T_FLOAT: the number */
} hd_j_token;

typedef enum hd_j_node_type {
    /* statements */
    N_BODY, N_DATA, N_PRINT, N_IF, N_FOR, N_SET, N_SET_BLOCK, N_FILTER_BLOCK, N_WITH, N_MACRO, N_BREAK, N_CONTINUE,
    /* expressions */
    N_CONST, N_NAME, N_LIST, N_TUPLE, N_DICT, N_COND, N_AND, N_OR, N_NOT, N_NEG, N_POS, N_BINARY, N_CONCAT, N_COMPARE, N_ATTR, N_ITEM, N_SLICE, N_CALL,
    N_FILTER, N_TEST, N_HELD /* what a block's filters apply to */
} hd_j_node_type;

typedef struct hd_j_arg { hd_j_val name; hd_j_node *value; uint32_t symbol; } hd_j_arg; /* name: J_ABSENT when by position; symbol: a macro's parameter */

struct hd_j_node {
    uint8_t type;
    bool negated;          /* N_TEST: is not */
    uint16_t op;           /* N_BINARY */
    uint32_t line, column;
    uint32_t symbol;       /* N_NAME, N_MACRO */
    uint32_t n, n_args;
    hd_j_val value;        /* N_CONST, N_DATA; N_ATTR, N_NAME: the name */
    hd_j_node *a, *b, *c;  /* N_FOR: target, sequence, condition; N_IF: c is else; N_SET: target, value; N_COND: test, then, else */
    hd_j_node **items;     /* [n] N_BODY: statements; N_IF: condition, body, ...; N_FOR: body, else; N_DICT: key, value, ...; N_COMPARE: the operands */
    uint16_t *ops;         /* [n] N_COMPARE: '<' ..., "in" as 'i', "not in" as 'n' */
    hd_j_arg *args;        /* [n_args] of a call; a macro's parameters; N_WITH's variables */
    const hd_j_entry *entry;
};

enum { HD_J_MAX_TEXT = 4 << 20, HD_J_MAX_SYMBOLS = 2048, HD_J_MAX_DEPTH = 100, HD_J_MAX_ARGS = 64 };

typedef struct hd_j_symbol { hd_j_val name; bool assigned; const hd_j_node *called; } hd_j_symbol;

struct hd_jinja {
    hd_arena arena;
    const char *name, *text;
    size_t n;
    hd_j_symbol *symbols; /* [n_symbols] every name in the template */
    size_t n_symbols, symbol_cap;
    hd_j_node *body;
};

/* Tokens of j->text (to be freed with hd_free), the last T_EOF. */
int hd_j_lex(hd_jinja *j, hd_j_token **tokens, hd_error *err);
int hd_j_parse(hd_jinja *j, const hd_j_token *tokens, hd_error *err);

/* ---- rendering ---- */

typedef struct hd_j_var { uint32_t symbol; hd_j_val value; struct hd_j_var *next; } hd_j_var;
struct hd_j_scope { hd_j_var *vars; hd_j_scope *up; };

struct hd_j_ctx {
    const hd_jinja *j;
    hd_arena arena;
    hd_jinja_limits limit;
    int64_t steps, now;
    int depth, macros, loops;
    hd_j_val *globals; /* [n_symbols] variables and functions by symbol; J_ABSENT: none */
    hd_j_scope *scope;
    hd_j_val held;
    const hd_j_node *at; /* for messages */
    hd_str *out;
    size_t base;         /* where the text of this rendering begins in out */
    enum { HD_J_GO_ON, HD_J_BREAK, HD_J_CONTINUE } jump;
    int rc;
    hd_error *err;
};

/* Fails with the place of what is being evaluated; returns undefined. */
hd_j_val hd_j_fail(hd_j_ctx *c, const char *fmt, ...) HD_PRINTF(2, 3);
/* Counts work: false when the limit is passed. */
bool hd_j_charge(hd_j_ctx *c, size_t steps);
/* Goes one level of recursion down: false when too deep. hd_j_leave goes up again, after success only. */
bool hd_j_enter(hd_j_ctx *c);
static inline void hd_j_leave(hd_j_ctx *c) { c->depth--; }
void *hd_j_alloc(hd_j_ctx *c, size_t bytes); /* NULL: out of memory, or too much of it; c->rc tells */
/* Room for a string of n bytes; NULL when longer than allowed. */
char *hd_j_text(hd_j_ctx *c, size_t n);
/* The string in s, which is freed. */
hd_j_val hd_j_take(hd_j_ctx *c, hd_str *s);

hd_j_val hd_j_eval(hd_j_ctx *c, const hd_j_node *n);
void hd_j_exec(hd_j_ctx *c, const hd_j_node *n);
hd_j_val hd_j_apply(hd_j_ctx *c, const hd_j_entry *e, hd_j_val self, const hd_j_call *call);

/* ---- values: jinja_value.c ---- */

hd_j_val hd_j_list_new(hd_j_ctx *c, size_t cap, hd_j_kind kind);
void hd_j_push(hd_j_ctx *c, hd_j_val list, hd_j_val item);
hd_j_val hd_j_pair(hd_j_ctx *c, hd_j_val a, hd_j_val b); /* a tuple */
hd_j_val hd_j_dict_new(hd_j_ctx *c, hd_j_kind kind);
void hd_j_put(hd_j_ctx *c, hd_j_val dict, hd_j_val key, hd_j_val value);
const hd_j_val *hd_j_get(hd_j_ctx *c, hd_j_val dict, hd_j_val key); /* NULL: not there */
hd_j_val hd_j_from_json(hd_j_ctx *c, const json_t *j);
bool hd_j_truth(hd_j_val v);
bool hd_j_equal(hd_j_ctx *c, hd_j_val a, hd_j_val b);
/* -1, 0 or 1; fails for what Python doesn't order. */
int hd_j_compare(hd_j_ctx *c, hd_j_val a, hd_j_val b);
bool hd_j_contains(hd_j_ctx *c, hd_j_val all, hd_j_val one);
/* str() and repr(), appended. */
void hd_j_write(hd_j_ctx *c, hd_str *out, hd_j_val v, bool repr);
hd_j_val hd_j_to_str(hd_j_ctx *c, hd_j_val v);
typedef struct hd_j_json { int indent; bool sort, ascii; hd_j_val comma, colon; } hd_j_json; /* as json.dumps's arguments; indent < 0: on one line */
void hd_j_write_json(hd_j_ctx *c, hd_str *out, hd_j_val v, const hd_j_json *how, int level);
/* What a for loop goes over, as a list; fails when v cannot be gone over. */
hd_j_val hd_j_iterate(hd_j_ctx *c, hd_j_val v);
const char *hd_j_type_name(hd_j_val v); /* Python's */
int64_t hd_j_length(hd_j_val v);        /* -1: it has none */

/* ---- strings: jinja_text.c ---- */

size_t hd_j_chars(const char *s, size_t n);                   /* code points */
size_t hd_j_char_at(const char *s, size_t n, size_t index);   /* byte offset of code point index (n when past the end) */
bool hd_j_space(const char *s, size_t n, size_t *length);     /* whether s begins with white space as str.isspace has it */
bool hd_j_space_before(const char *s, size_t n, size_t *length); /* whether s ends with it */
bool hd_j_is_alnum(const char *s);                               /* a letter or number, as str.isalnum has it */
/* Without the characters of `chars` (NULL: white space) at its ends. */
hd_j_val hd_j_strip(hd_j_val v, const hd_j_val *chars, bool left, bool right);
hd_j_val hd_j_replace(hd_j_ctx *c, hd_j_val s, hd_j_val from, hd_j_val to, int64_t count);
typedef enum hd_j_case { HD_J_UPPER, HD_J_LOWER, HD_J_CAPITALIZE, HD_J_TITLE, HD_J_SWAP } hd_j_case;
hd_j_val hd_j_recase(hd_j_ctx *c, hd_j_val s, hd_j_case how);
hd_j_val hd_j_percent(hd_j_ctx *c, hd_j_val format, const hd_j_val *args, size_t n, bool may_be_unused); /* "%s" % (...) */
hd_j_val hd_j_find_text(hd_j_val s, hd_j_val part, size_t from, bool last); /* J_INT: byte offset, -1 */
void hd_j_float_text(char out[40], double v);                               /* Python's repr */

/* Items and attributes: jinja_access.c */
hd_j_val hd_j_attr(hd_j_ctx *c, hd_j_val v, hd_j_val name);
hd_j_val hd_j_item(hd_j_ctx *c, hd_j_val v, hd_j_val key);
hd_j_val hd_j_slice(hd_j_ctx *c, hd_j_val v, hd_j_val from, hd_j_val to, hd_j_val step);
/* "a.b.0" from v, as filters' attribute= takes it. */
hd_j_val hd_j_path(hd_j_ctx *c, hd_j_val v, hd_j_val path);
hd_j_val hd_j_binary(hd_j_ctx *c, uint16_t op, hd_j_val a, hd_j_val b);

#endif
