#include <stdlib.h>
#include <string.h>
#include "base/rng.h"
#include "serve/constrain_nfa.h"

/* Bounds on the subset construction (Rabin and Scott 1959), which may take exponential room. */
enum { MOST_WORK = 60000000, MOST_ITEMS = 8000000, MOST_CELLS = 16000000, MOST_REFINING = 20000000 };

typedef struct subset { size_t at; int32_t count; } subset; /* of items */

typedef struct maker {
    hd_rules *g;
    hd_nfa *n;
    hd_automata *a;
    int32_t *items; size_t n_items, cap_items; /* NFA states, set after set */
    subset *sets; size_t n_sets, cap_sets;     /* one a DFA state */
    int32_t *table; size_t table_size;         /* by hash: set + 1 */
    int32_t *list;                             /* [n->n] the set being made */
    int32_t *targets, *before;                 /* [n->n] of a class of bytes, and of the one before */
    size_t cap_next, cap_flags, cap_from, cap_calls, n_calls;
    int64_t work;
} maker;

static int past_limit(maker *m)
{
    return hd_fail(m->g->err, HD_EMEMCAP, "a constraint whose automaton is larger than the limit (%lld states)", (long long)m->g->limits.states);
}

/* ---- classes of bytes that no edge tells apart: ranges, in order ---- */

static void find_classes(const hd_nfa *n, const bool spelled[256], hd_automata *a)
{
    bool begins[257] = {true};
    for (size_t i = 0; i < n->n; i++) {
        if (n->states[i].kind != HD_NFA_RANGE || !n->alive[i]) continue;
        begins[n->states[i].low] = true;
        begins[n->states[i].high + 1] = true;
    }
    for (int c = 1; c < 256; c++) begins[c] |= spelled[c] != spelled[c - 1];
    int at = -1;
    for (int c = 0; c < 256; c++) a->class_of[c] = (uint8_t)(at += begins[c]);
    a->n_classes = at + 1;
}

/* ---- sets of NFA states ---- */

static int by_number(const void *x, const void *y)
{
    int32_t a = *(const int32_t *)x, b = *(const int32_t *)y;
    return (a > b) - (a < b);
}

static void sort(int32_t *v, size_t n)
{
    if (n > 24) {
        qsort(v, n, sizeof *v, by_number);
        return;
    }
    for (size_t i = 1; i < n; i++)
        for (size_t j = i; j > 0 && v[j - 1] > v[j]; j--) {
            int32_t x = v[j];
            v[j] = v[j - 1];
            v[j - 1] = x;
        }
}

static uint64_t hash_of(const int32_t *v, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++) h = (h ^ (uint32_t)v[i]) * 0x9e3779b97f4a7c15u, h ^= h >> 29;
    return h;
}

static int grow_table(maker *m)
{
    size_t size = m->table_size ? 2 * m->table_size : 1024;
    int32_t *table = hd_calloc(size, sizeof *table);
    if (!table) return hd_fail_memory(m->g->err, size * sizeof *table, "an automaton");
    for (size_t i = 0; i < m->n_sets; i++) {
        size_t h = hash_of(m->items + m->sets[i].at, (size_t)m->sets[i].count) & (size - 1);
        while (table[h]) h = (h + 1) & (size - 1);
        table[h] = (int32_t)i + 1;
    }
    hd_free(m->table);
    m->table = table;
    m->table_size = size;
    return 0;
}

static int add_set(maker *m, size_t count)
{
    hd_automata *a = m->a;
    size_t nc = (size_t)a->n_classes;
    if ((int64_t)m->n_sets >= m->g->limits.states || m->n_items + count > MOST_ITEMS || (m->n_sets + 1) * nc > MOST_CELLS) return past_limit(m);
    if (hd_grow(&m->sets, &m->cap_sets, m->n_sets + 1, sizeof *m->sets) || hd_grow(&m->items, &m->cap_items, m->n_items + count, sizeof *m->items) ||
        hd_grow(&a->next, &m->cap_next, (m->n_sets + 1) * nc, sizeof *a->next) || hd_grow(&a->flags, &m->cap_flags, m->n_sets + 1, 1) ||
        hd_grow(&a->calls_from, &m->cap_from, m->n_sets + 2, sizeof *a->calls_from))
        return hd_fail_memory(m->g->err, m->n_sets * nc * 4, "an automaton");
    memcpy(m->items + m->n_items, m->list, count * sizeof *m->items);
    m->sets[m->n_sets] = (subset){m->n_items, (int32_t)count};
    m->n_items += count;
    return 0;
}

/* The number of the set in m->list, a new one if it isn't there yet; -1 for the empty set; -2 on failure. */
static int32_t intern(maker *m, size_t count)
{
    if (!count) return -1;
    sort(m->list, count);
    if (2 * m->n_sets >= m->table_size && grow_table(m)) return -2;
    size_t h = hash_of(m->list, count) & (m->table_size - 1);
    for (; m->table[h]; h = (h + 1) & (m->table_size - 1)) {
        const subset *s = &m->sets[m->table[h] - 1];
        if ((size_t)s->count == count && !memcmp(m->items + s->at, m->list, count * sizeof *m->list)) return m->table[h] - 1;
    }
    if (add_set(m, count)) return -2;
    m->table[h] = (int32_t)++m->n_sets;
    return (int32_t)m->n_sets - 1;
}

static int32_t intern_targets(maker *m, const int32_t *targets, size_t n)
{
    size_t count = 0;
    m->n->round++;
    for (size_t i = 0; i < n; i++) count = hd_nfa_closure(m->n, targets[i], m->list, count);
    m->work += (int64_t)count;
    return intern(m, count);
}

/* ---- edges ---- */

static int add_bytes(maker *m, int32_t set)
{
    hd_automata *a = m->a;
    size_t before = SIZE_MAX;
    int32_t last = -1;
    for (int c = 0, byte = 0; c < a->n_classes; c++) {
        size_t n = 0;
        while (a->class_of[byte] != c) byte++;
        const int32_t *items = m->items + m->sets[set].at;
        for (int32_t i = 0; i < m->sets[set].count; i++) {
            const hd_nfa_state *s = &m->n->states[items[i]];
            if (s->kind == HD_NFA_RANGE && s->low <= byte && byte <= s->high) m->targets[n++] = s->a;
        }
        if ((m->work += m->sets[set].count + 1) > MOST_WORK) return past_limit(m);
        if (n != before || memcmp(m->targets, m->before, n * sizeof *m->targets)) last = intern_targets(m, m->targets, n);
        if (last == -2) return HD_EMEMCAP;
        a->next[(size_t)set * (size_t)a->n_classes + (size_t)c] = last;
        int32_t *swap = m->targets;
        m->targets = m->before;
        m->before = swap;
        before = n;
    }
    return 0;
}

static void forget_unspelled(hd_automata *a, int32_t set, const bool spelled[256])
{
    for (int c = 0; c < 256; c++)
        if (!spelled[c]) a->next[(size_t)set * (size_t)a->n_classes + a->class_of[c]] = -1;
}

static int add_calls(maker *m, int32_t set)
{
    hd_automata *a = m->a;
    a->calls_from[set] = (int32_t)m->n_calls;
    for (int32_t i = 0; i < m->sets[set].count; i++) {
        const hd_nfa_state *s = &m->n->states[m->items[m->sets[set].at + (size_t)i]];
        if (s->kind != HD_NFA_CALL) continue;
        bool had = false;
        for (size_t k = (size_t)a->calls_from[set]; k < m->n_calls; k++) had |= a->calls[k].rule == s->rule;
        if (had) continue;
        size_t n = 0;
        for (int32_t j = i; j < m->sets[set].count; j++) {
            const hd_nfa_state *t = &m->n->states[m->items[m->sets[set].at + (size_t)j]];
            if (t->kind == HD_NFA_CALL && t->rule == s->rule) m->targets[n++] = t->a;
        }
        if ((m->work += m->sets[set].count) > MOST_WORK) return past_limit(m);
        int32_t rule = s->rule, then = intern_targets(m, m->targets, n);
        if (then == -2) return HD_EMEMCAP;
        if (hd_grow(&a->calls, &m->cap_calls, m->n_calls + 1, sizeof *a->calls)) return hd_fail_memory(m->g->err, m->n_calls * 8, "an automaton");
        a->calls[m->n_calls++] = (hd_call_edge){rule, then};
    }
    a->calls_from[set + 1] = (int32_t)m->n_calls;
    return 0;
}

static void add_flags(maker *m, int32_t set)
{
    hd_automata *a = m->a;
    uint8_t flags = a->calls_from[set + 1] > a->calls_from[set] ? HD_AUTO_CALLS : 0;
    for (int c = 0; c < a->n_classes; c++)
        if (a->next[(size_t)set * (size_t)a->n_classes + (size_t)c] >= 0) flags |= HD_AUTO_BYTES;
    for (int32_t i = 0; i < m->sets[set].count; i++)
        if (m->n->states[m->items[m->sets[set].at + (size_t)i]].kind == HD_NFA_FINAL) flags |= HD_AUTO_FINAL;
    a->flags[set] = flags;
}

/* ---- what bytes a rule begins with ---- */

static void first_bytes(hd_automata *a)
{
    for (int32_t r = 0; r < a->n_rules; r++)
        for (int c = 0; c < 256 && a->start[r] >= 0; c++)
            if (a->next[(size_t)a->start[r] * (size_t)a->n_classes + a->class_of[c]] >= 0) a->first[r][c / 64] |= 1ull << c % 64;
    for (bool changed = true; changed;) {
        changed = false;
        for (int32_t r = a->n_rules; r-- > 0;) {
            if (a->start[r] < 0) continue;
            for (int32_t k = a->calls_from[a->start[r]]; k < a->calls_from[a->start[r] + 1]; k++)
                for (int w = 0; w < 4; w++) {
                    uint64_t more = a->first[a->calls[k].rule][w] & ~a->first[r][w];
                    changed |= more != 0;
                    a->first[r][w] |= more;
                }
        }
    }
}

static int make(maker *m, int root, const bool spelled[256])
{
    hd_automata *a = m->a;
    find_classes(m->n, spelled, a);
    a->n_rules = (int32_t)m->g->n_rules;
    a->start = hd_calloc(m->g->n_rules, sizeof *a->start);
    a->first = hd_calloc(m->g->n_rules, sizeof *a->first);
    m->list = hd_calloc(m->n->n + 1, sizeof *m->list);
    m->targets = hd_calloc(m->n->n + 1, sizeof *m->targets);
    m->before = hd_calloc(m->n->n + 1, sizeof *m->before);
    if (!a->start || !a->first || !m->list || !m->targets || !m->before) return hd_fail_memory(m->g->err, m->n->n * 12, "an automaton");
    for (size_t r = 0; r < m->g->n_rules; r++) {
        a->start[r] = -1;
        if (m->n->start[r] >= 0 && (a->start[r] = intern_targets(m, &m->n->start[r], 1)) == -2) return HD_EMEMCAP;
    }
    a->root = a->start[root];
    for (size_t set = 0; set < m->n_sets; set++) {
        int rc = add_bytes(m, (int32_t)set);
        if (!rc) forget_unspelled(a, (int32_t)set, spelled);
        if (!rc) rc = add_calls(m, (int32_t)set);
        if (rc) return rc;
        add_flags(m, (int32_t)set);
    }
    a->n_states = (int32_t)m->n_sets;
    first_bytes(a);
    return 0;
}

int hd_automata_compile(hd_rules *g, int root, const bool spelled[256], hd_automata *out)
{
    hd_nfa n;
    *out = (hd_automata){0};
    int rc = hd_nfa_build(g, root, spelled, &n);
    if (rc) return rc;
    maker m = {.g = g, .n = &n, .a = out};
    rc = make(&m, root, spelled);
    hd_free(m.items);
    hd_free(m.sets);
    hd_free(m.table);
    hd_free(m.list);
    hd_free(m.targets);
    hd_free(m.before);
    hd_nfa_free(&n);
    if (rc) hd_automata_free(out);
    return rc;
}

/* ---- states that tokens can't tell apart ---- */

/* A number for what can be read from a state within one more byte than the labels before stand for. */
static uint64_t label_of(const hd_automata *a, const uint64_t *label, int32_t state)
{
    const int32_t *next = a->next + (size_t)state * (size_t)a->n_classes;
    uint64_t h = label[state];
    for (int c = 0; c < a->n_classes; c++) h = hd_hash_mix(h, next[c] < 0 ? 0 : label[next[c]]);
    for (int32_t k = a->calls_from[state]; k < a->calls_from[state + 1]; k++) 
        h = hd_hash_mix(h, hd_hash_mix((uint64_t)a->calls[k].rule, label[a->calls[k].then]));
    return h;
}

/* alike[state]: the first state with its label. Returns how many labels there are. table: [size], a power of 2 above twice the states. */
static int32_t group(const hd_automata *a, const uint64_t *label, int32_t *alike, int32_t *table, size_t size)
{
    int32_t count = 0;
    memset(table, -1, size * sizeof *table);
    for (int32_t i = 0; i < a->n_states; i++) {
        size_t h = (size_t)(label[i] >> 7) & (size - 1);
        while (table[h] >= 0 && label[table[h]] != label[i]) h = (h + 1) & (size - 1);
        if (table[h] < 0) table[h] = i, count++;
        alike[i] = table[h];
    }
    return count;
}

static void refine(hd_automata *a, int longest, uint64_t *label, uint64_t *other, int32_t *table, size_t size)
{
    int64_t cost = (int64_t)a->n_states * (a->n_classes + 4);
    for (int32_t i = 0; i < a->n_states; i++) label[i] = hd_hash_mix(a->flags[i], 1);
    int32_t before = group(a, label, a->alike, table, size);
    for (int round = 0; round < longest; round++) {
        for (int32_t i = 0; i < a->n_states; i++) other[i] = label_of(a, label, i);
        uint64_t *swap = label;
        label = other;
        other = swap;
        int32_t count = group(a, label, a->alike, table, size);
        if (count == before) return;
        before = count;
        if (count < a->n_states && cost * (round + 1) < MOST_REFINING) continue;
        for (int32_t i = 0; i < a->n_states; i++) a->alike[i] = i;
        return;
    }
}

/* Moore's refinement, stopped where no token is long enough to tell more: the places of a counted string far from its end become one. */
int hd_automata_group(hd_automata *a, int longest, hd_error *err)
{
    size_t size = 16, n = (size_t)a->n_states;
    while (size < 2 * n) size *= 2;
    uint64_t *label = hd_malloc(n * sizeof *label), *other = hd_malloc(n * sizeof *other);
    int32_t *table = hd_malloc(size * sizeof *table);
    a->alike = hd_malloc(n * sizeof *a->alike);
    int rc = label && other && table && a->alike ? 0 : hd_fail_memory(err, n * 24, "an automaton");
    if (!rc) refine(a, longest, label, other, table, size);
    hd_free(label);
    hd_free(other);
    hd_free(table);
    return rc;
}

void hd_automata_free(hd_automata *a)
{
    hd_free(a->alike);
    hd_free(a->next);
    hd_free(a->flags);
    hd_free(a->calls_from);
    hd_free(a->calls);
    hd_free(a->start);
    hd_free(a->first);
    *a = (hd_automata){0};
}
