/* constrain_nfa.h: rules as one nondeterministic automaton, built from the end of each rule backwards (Thompson 1968).
 * For constrain_nfa.c and constrain_auto.c. */
#ifndef HD_SERVE_CONSTRAIN_NFA_H
#define HD_SERVE_CONSTRAIN_NFA_H

#include "serve/constrain_int.h"

typedef enum hd_nfa_kind { HD_NFA_FINAL, HD_NFA_SPLIT, HD_NFA_RANGE, HD_NFA_CALL } hd_nfa_kind;

typedef struct hd_nfa_state {
    uint8_t kind, low, high; /* RANGE: bytes */
    int32_t rule;            /* CALL */
    int32_t a, b;            /* what follows; b: a SPLIT's other way, or -1 */
} hd_nfa_state;

typedef struct hd_nfa {
    hd_nfa_state *states;
    size_t n, cap;
    int32_t *start;    /* [n_rules], -1: not built (copied into its callers, or not used) */
    bool *alive;       /* [n] the end of its rule can be reached */
    bool *ends;        /* [n] ... without a byte */
    bool *nullable;    /* [n_rules] */
    bool *substantial; /* [n_rules] matches something other than nothing */
    int32_t *stack;    /* [n] scratch */
    uint32_t *seen, round; /* [n] scratch: states seen in this round */
    size_t n_rules;
} hd_nfa;

/* Builds the rules that root needs; marks what is alive, nullable and substantial. Refuses left recursion, and a root that matches nothing. */
int hd_nfa_build(hd_rules *g, int root, const bool spelled[256], hd_nfa *out);
void hd_nfa_free(hd_nfa *n);

/* Appends the RANGE, CALL and FINAL states that from leads to without a byte, unless seen in this round. Returns the new count. list has room for n->n. */
size_t hd_nfa_closure(hd_nfa *n, int32_t from, int32_t *list, size_t count);

#endif
