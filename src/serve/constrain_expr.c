#include <stdlib.h>
#include <string.h>
#include "serve/constrain_int.h"

enum { MOST_EXPRS = 400000, MOST_BYTES = 48 << 20 };

void hd_rules_init(hd_rules *g, const hd_constraint_limits *l, hd_error *err)
{
    *g = (hd_rules){.err = err};
    if (l) g->limits = *l;
    if (!g->limits.states) g->limits.states = 200000;
    if (!g->limits.bytes) g->limits.bytes = 64 * 1024;
    if (!g->limits.depth) g->limits.depth = 64;
}

void hd_rules_free(hd_rules *g)
{
    hd_arena_free(&g->arena);
    hd_free(g->rules);
    g->rules = NULL;
    g->n_rules = g->cap_rules = 0;
}

int hd_rules_check_bytes(hd_rules *g, size_t n)
{
    if ((int64_t)n <= g->limits.bytes) return 0;
    return hd_fail(g->err, HD_EMEMCAP, "a constraint of %zu bytes is longer than the limit of %lld", n, (long long)g->limits.bytes);
}

int hd_rules_check_depth(hd_rules *g, int depth)
{
    if (depth <= g->limits.depth) return 0;
    return hd_fail(g->err, HD_EMEMCAP, "a constraint nested deeper than the limit of %d", g->limits.depth);
}

static void *get(hd_rules *g, size_t bytes)
{
    void *p = hd_arena_alloc(&g->arena, bytes);
    if (!p) hd_fail_memory(g->err, bytes, "a constraint");
    return p;
}

static hd_expr *new_expr(hd_rules *g, hd_expr_kind kind)
{
    if (++g->n_exprs > MOST_EXPRS || g->arena.used > MOST_BYTES) {
        hd_fail(g->err, HD_EMEMCAP, "a constraint with too many parts or classes of characters");
        return NULL;
    }
    hd_expr *e = get(g, sizeof *e);
    if (e) e->kind = kind;
    return e;
}

static void *copied(hd_rules *g, const void *p, size_t bytes)
{
    void *to = get(g, bytes);
    if (to && bytes) memcpy(to, p, bytes);
    return to;
}

hd_expr *hd_expr_bytes(hd_rules *g, const void *bytes, size_t n)
{
    hd_expr *e = new_expr(g, HD_EXPR_BYTES);
    if (!e || !(e->bytes = copied(g, bytes, n))) return NULL;
    e->count = (int32_t)n;
    return e;
}

hd_expr *hd_expr_text(hd_rules *g, const char *text) { return hd_expr_bytes(g, text, strlen(text)); }

static int by_first(const void *a, const void *b)
{
    const hd_chars *x = a, *y = b;
    return (x->first > y->first) - (x->first < y->first);
}

int hd_chars_merge(hd_chars *c, int n)
{
    int kept = 0;
    if (n > 1) qsort(c, (size_t)n, sizeof *c, by_first);
    for (int i = 0; i < n; i++) {
        if (kept && c[i].first <= c[kept - 1].last + 1) c[kept - 1].last = c[i].last > c[kept - 1].last ? c[i].last : c[kept - 1].last;
        else c[kept++] = c[i];
    }
    for (int i = 0; i < kept; i++) {
        if (c[i].last < 0xd800 || c[i].first > 0xdfff) continue;
        hd_chars high = {0xe000, c[i].last};
        if (c[i].first < 0xd800) {
            c[i].last = 0xd7ff;
            if (high.last < high.first) continue;
            memmove(c + i + 2, c + i + 1, (size_t)(kept++ - i - 1) * sizeof *c);
            c[++i] = high;
        } else if (high.last >= high.first) {
            c[i] = high;
        } else {
            memmove(c + i, c + i + 1, (size_t)(--kept - i) * sizeof *c);
            i--;
        }
    }
    return kept;
}

int hd_chars_negate(const hd_chars *c, int n, hd_chars *out)
{
    uint32_t from = 0;
    int kept = 0;
    for (int i = 0; i < n; i++) {
        if (c[i].first > from) out[kept++] = (hd_chars){from, c[i].first - 1};
        from = c[i].last + 1;
    }
    if (from <= 0x10ffff) out[kept++] = (hd_chars){from, 0x10ffff};
    return hd_chars_merge(out, kept);
}

hd_expr *hd_expr_chars(hd_rules *g, const hd_chars *c, int n, bool json)
{
    hd_expr *e = new_expr(g, HD_EXPR_CHARS);
    hd_chars *own = e ? get(g, (size_t)(n + 2) * sizeof *own) : NULL;
    if (!own) return NULL;
    if (n) memcpy(own, c, (size_t)n * sizeof *own);
    e->count = hd_chars_merge(own, n);
    e->chars = own;
    e->json = json;
    return e;
}

hd_expr *hd_expr_list(hd_rules *g, hd_expr_kind kind, hd_expr **parts, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!parts[i]) return NULL;
    if (n == 1) return parts[0];
    hd_expr *e = new_expr(g, kind);
    if (!e || !(e->parts = copied(g, parts, n * sizeof *parts))) return NULL;
    e->count = (int32_t)n;
    return e;
}

hd_expr *hd_expr_two(hd_rules *g, hd_expr_kind kind, hd_expr *a, hd_expr *b) { return hd_expr_list(g, kind, (hd_expr *[]){a, b}, 2); }

hd_expr *hd_expr_repeat(hd_rules *g, hd_expr *e, int min, int max)
{
    hd_expr *r = e ? new_expr(g, HD_EXPR_REPEAT) : NULL;
    if (!r || !(r->parts = copied(g, &e, sizeof e))) return NULL;
    r->count = 1;
    r->min = min;
    r->max = max;
    return r;
}

hd_expr *hd_expr_rule(hd_rules *g, int rule)
{
    hd_expr *e = rule < 0 ? NULL : new_expr(g, HD_EXPR_RULE);
    if (e) e->rule = rule;
    return e;
}

bool hd_parts_add(hd_rules *g, hd_parts *l, hd_expr *e)
{
    if (!e) return false;
    if (hd_grow(&l->e, &l->cap, l->n + 1, sizeof *l->e)) return hd_fail_memory(g->err, l->n * sizeof *l->e, "a constraint"), false;
    l->e[l->n++] = e;
    return true;
}

hd_expr *hd_parts_end(hd_rules *g, hd_expr_kind kind, hd_parts *l, bool ok)
{
    hd_expr *e = ok ? hd_expr_list(g, kind, l->e, l->n) : NULL;
    hd_free(l->e);
    *l = (hd_parts){0};
    return e;
}

int hd_rules_add(hd_rules *g, const char *name, bool apart)
{
    if (hd_grow(&g->rules, &g->cap_rules, g->n_rules + 1, sizeof *g->rules)) return hd_fail_memory(g->err, sizeof *g->rules, "a rule");
    char *own = hd_arena_strdup(&g->arena, name);
    if (!own) return hd_fail_memory(g->err, strlen(name), "a rule");
    g->rules[g->n_rules] = (hd_rule){.name = own, .apart = apart};
    return (int)g->n_rules++;
}
