/* constrain_int.h: from expressions over characters to automata over bytes. For the files constrain*.c only.
 *
 * Words: an *expression* is a tree of characters, sequences, choices, repetitions and rules; a *rule* is a named expression that others refer to.
 * Each rule is compiled to a deterministic automaton whose edges are bytes and calls of rules;
 * a place in an answer is a set of (automaton state, stack of states to return to). */
#ifndef HD_SERVE_CONSTRAIN_INT_H
#define HD_SERVE_CONSTRAIN_INT_H

#include <pthread.h>
#include "base/mem.h"
#include "serve/constrain.h"

/* ---- tokens as a tree: nodes in preorder, so that a subtree is a range ---- */

enum { HD_TOKEN_BYTES = 255 }; /* longer tokens are never allowed */

typedef struct hd_trie_node {
    uint64_t pairs; /* which pairs of ASCII bytes (2i and 2i + 1: bit i) are below this node; all bits where other bytes are */
    int32_t size;   /* nodes of the subtree, itself included */
    int32_t first;  /* its own tokens and those below it begin here in the order */
    uint8_t byte, depth;
} hd_trie_node;

struct hd_vocabulary {
    int64_t size;
    hd_trie_node *nodes; /* [n_nodes + 1], the last for the end of the order */
    int32_t n_nodes;
    int32_t *order;      /* tokens by their bytes, those with the same bytes side by side */
    const char **bytes;  /* [size] of the tokenizer; NULL where a token is never allowed */
    uint8_t *lengths;    /* [size] */
    int longest;         /* bytes of a token */
    int32_t *eos;
    int n_eos;
    bool spelled[256];   /* bytes that are tokens by themselves */
};

/* ---- expressions ---- */

typedef struct hd_chars { uint32_t first, last; } hd_chars; /* code points */

typedef enum hd_expr_kind { HD_EXPR_BYTES, HD_EXPR_CHARS, HD_EXPR_SEQ, HD_EXPR_ALT, HD_EXPR_REPEAT, HD_EXPR_RULE } hd_expr_kind;

typedef struct hd_expr hd_expr;
struct hd_expr {
    hd_expr_kind kind;
    bool json;                        /* CHARS: written as inside a JSON string */
    int32_t count;                    /* bytes, ranges or parts */
    int32_t rule, min, max;           /* RULE; REPEAT, max -1: without end */
    const unsigned char *bytes;
    const hd_chars *chars;            /* sorted, disjoint */
    hd_expr **parts;
};

typedef struct hd_rule { const char *name; hd_expr *body; bool apart; /* never copied into its callers */ } hd_rule;

/* Once something failed, everything returns NULL and err says why: check at the end. */
typedef struct hd_rules {
    hd_arena arena;
    hd_rule *rules;
    size_t n_rules, cap_rules;
    hd_constraint_limits limits;
    size_t n_exprs;
    hd_error *err;
} hd_rules;

void hd_rules_init(hd_rules *g, const hd_constraint_limits *l, hd_error *err);
void hd_rules_free(hd_rules *g);
int hd_rules_check_bytes(hd_rules *g, size_t n); /* the source text's limit */
int hd_rules_check_depth(hd_rules *g, int depth);

hd_expr *hd_expr_bytes(hd_rules *g, const void *bytes, size_t n);
hd_expr *hd_expr_text(hd_rules *g, const char *text);
/* Sorts and merges the ranges, and leaves out surrogates. */
hd_expr *hd_expr_chars(hd_rules *g, const hd_chars *c, int n, bool json);
hd_expr *hd_expr_list(hd_rules *g, hd_expr_kind kind, hd_expr **parts, size_t n); /* SEQ, ALT; copies the list. An ALT of none matches nothing */
hd_expr *hd_expr_two(hd_rules *g, hd_expr_kind kind, hd_expr *a, hd_expr *b);
hd_expr *hd_expr_repeat(hd_rules *g, hd_expr *e, int min, int max);
hd_expr *hd_expr_rule(hd_rules *g, int rule);
/* A growing list of parts; hd_free its e. Appending gives false when e is NULL or memory ends. */
typedef struct hd_parts { hd_expr **e; size_t n, cap; } hd_parts;
bool hd_parts_add(hd_rules *g, hd_parts *l, hd_expr *e);
/* The list as one expression when ok, else NULL; frees the list. */
hd_expr *hd_parts_end(hd_rules *g, hd_expr_kind kind, hd_parts *l, bool ok);
/* A rule without a body yet: its number, or negative. */
int hd_rules_add(hd_rules *g, const char *name, bool apart);

/* Normalises ranges in place: sorted, merged, without surrogates. Returns how many are left (at most n + 1: c has room). */
int hd_chars_merge(hd_chars *c, int n);
/* The complement, into out (room for n + 2). */
int hd_chars_negate(const hd_chars *c, int n, hd_chars *out);

/* ---- front ends used by others ---- */

typedef struct hd_regex_dialect {
    bool json;   /* characters stand in a JSON string */
    bool ecma;   /* as JSON Schema has it: found anywhere unless anchored, `.` is not a line separator */
} hd_regex_dialect;
hd_expr *hd_regex_expr(hd_rules *g, const char *pattern, size_t n, hd_regex_dialect d);

/* Numbers of JSON within bounds (INT64_MIN, INT64_MAX: none). */
hd_expr *hd_expr_integers(hd_rules *g, int64_t low, int64_t high);
hd_expr *hd_expr_numbers(hd_rules *g, int64_t low, bool low_open, int64_t high, bool high_open);
/* The contents of a string of a format, NULL when there is no such. */
const char *hd_format_pattern(const char *name);

/* ---- automata ---- */

typedef struct hd_call_edge { int32_t rule, then; } hd_call_edge;

enum { HD_AUTO_FINAL = 1, HD_AUTO_BYTES = 2, HD_AUTO_CALLS = 4 };

typedef struct hd_automata {
    int32_t n_states, n_classes;
    uint8_t class_of[256];
    int32_t *next;       /* [n_states, n_classes], -1: none */
    uint8_t *flags;      /* [n_states] */
    int32_t *calls_from; /* [n_states + 1] into calls */
    hd_call_edge *calls;
    int32_t *start;      /* [n_rules] state, or -1: matches nothing */
    int32_t n_rules;
    uint64_t (*first)[4]; /* [n_rules] bytes that it can begin with */
    int32_t root;
    int32_t *alike; /* [n_states] the first state that no token tells apart from it */
} hd_automata;

int hd_automata_compile(hd_rules *g, int root, const bool spelled[256], hd_automata *out);
/* Fills alike for tokens of up to that many bytes. */
int hd_automata_group(hd_automata *a, int longest, hd_error *err);
void hd_automata_free(hd_automata *a);

/* Takes over the rules (and frees them); NULL when they failed or can't be compiled. */
hd_constraint *hd_constraint_from_rules(const hd_vocabulary *v, hd_rules *g, int root);

#endif
