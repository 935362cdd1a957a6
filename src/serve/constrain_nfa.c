#include "serve/constrain_nfa.h"

#include <string.h>
#include "data/unicode.h"

enum { MOST_STEPS = 4000000, MOST_MARKS = 50000000, COPIED = 40 };

typedef struct builder {
    hd_rules *g;
    hd_nfa *n;
    int64_t *size; /* [n_rules] states of a copy; 0 not known yet, -1 being found out */
    bool *copied;  /* [n_rules] into its callers */
    int64_t steps;
    bool failed;
} builder;

/* ---- which rules are copied into their callers: small ones that don't refer to themselves ---- */

static int64_t size_of_rule(builder *b, int rule, int depth);

static int64_t size_of(builder *b, const hd_expr *e, int depth)
{
    int64_t sum = 1;
    if (!e || depth > 400) return COPIED + 1;
    switch (e->kind) {
    case HD_EXPR_BYTES: return e->count;
    case HD_EXPR_CHARS: return 1 + 3 * (int64_t)e->count;
    case HD_EXPR_RULE: return size_of_rule(b, e->rule, depth + 1);
    case HD_EXPR_REPEAT: return size_of(b, e->parts[0], depth + 1) * (e->max < 0 ? e->min + 1 : e->max);
    default:
        for (int i = 0; i < e->count && sum <= COPIED; i++) sum += size_of(b, e->parts[i], depth + 1);
        return sum;
    }
}

static int64_t size_of_rule(builder *b, int rule, int depth)
{
    if (b->size[rule] < 0 || b->g->rules[rule].apart || depth > 400) return COPIED + 1; /* one that refers to itself is found to be big */
    if (!b->size[rule]) {
        b->size[rule] = -1;
        int64_t size = size_of(b, b->g->rules[rule].body, depth);
        b->size[rule] = size < 1 ? 1 : size > COPIED ? COPIED + 1 : size;
    }
    return b->size[rule];
}

/* ---- states ---- */

static int32_t add(builder *b, hd_nfa_state s)
{
    hd_nfa *n = b->n;
    if (b->failed) return -1;
    b->failed = true;
    if ((int64_t)n->n >= 2 * b->g->limits.states) {
        hd_fail(b->g->err, HD_EMEMCAP, "a constraint that needs more than %lld states", (long long)b->g->limits.states);
        return -1;
    }
    if (hd_grow(&n->states, &n->cap, n->n + 1, sizeof *n->states)) {
        hd_fail_memory(b->g->err, n->n * sizeof *n->states, "an automaton");
        return -1;
    }
    b->failed = false;
    n->states[n->n] = s;
    return (int32_t)n->n++;
}

static int32_t add_range(builder *b, int low, int high, int32_t next)
{
    return add(b, (hd_nfa_state){.kind = HD_NFA_RANGE, .low = (uint8_t)low, .high = (uint8_t)high, .a = next, .b = -1});
}

static int32_t add_split(builder *b, int32_t x, int32_t y) { return add(b, (hd_nfa_state){.kind = HD_NFA_SPLIT, .a = x, .b = y}); }

static int32_t add_bytes(builder *b, const unsigned char *bytes, int n, int32_t next)
{
    for (int i = n; i-- > 0;) next = add_range(b, bytes[i], bytes[i], next);
    return next;
}

/* ---- characters as UTF-8 ---- */

typedef struct routes {
    builder *b;
    int32_t next, tail[4]; /* tail[i]: any i continuation bytes and next; 0: not made yet */
    int32_t chain;         /* SPLITs over the ways so far, -1: none */
} routes;

static int32_t any_tail(routes *r, int n)
{
    if (n == 0) return r->next;
    if (!r->tail[n]) r->tail[n] = add_range(r->b, 0x80, 0xbf, any_tail(r, n - 1));
    return r->tail[n];
}

static void add_route(routes *r, int32_t state) { r->chain = r->chain < 0 ? state : add_split(r->b, state, r->chain); }

static bool all(const unsigned char *p, int n, unsigned char of)
{
    for (int i = 0; i < n; i++)
        if (p[i] != of) return false;
    return true;
}

/* The state before the bytes from low[0..n) to high[0..n), in lexical order. */
static int32_t between(routes *r, const unsigned char *low, const unsigned char *high, int n)
{
    static const unsigned char lowest[4] = {0x80, 0x80, 0x80, 0x80}, highest[4] = {0xbf, 0xbf, 0xbf, 0xbf};
    if (n == 1) return add_range(r->b, low[0], high[0], r->next);
    if (low[0] == high[0]) return add_range(r->b, low[0], low[0], between(r, low + 1, high + 1, n - 1));
    int from = low[0], to = high[0];
    int32_t way = -1, part;
    if (!all(low + 1, n - 1, 0x80)) {
        part = between(r, low + 1, highest, n - 1);
        way = add_range(r->b, from, from, part);
        from++;
    }
    if (!all(high + 1, n - 1, 0xbf)) {
        part = add_range(r->b, to, to, between(r, lowest, high + 1, n - 1));
        way = way < 0 ? part : add_split(r->b, way, part);
        to--;
    }
    if (from <= to) {
        part = add_range(r->b, from, to, any_tail(r, n - 1));
        way = way < 0 ? part : add_split(r->b, way, part);
    }
    return way;
}

static void add_code_points(routes *r, uint32_t first, uint32_t last)
{
    static const uint32_t most[] = {0x7f, 0x7ff, 0xffff, 0x10ffff};
    for (int i = 0; i < 4 && first <= last; i++) {
        if (first > most[i]) continue;
        uint32_t end = last < most[i] ? last : most[i];
        unsigned char low[4], high[4];
        int n = hd_utf8_put(first, low);
        hd_utf8_put(end, high);
        add_route(r, between(r, low, high, n));
        first = end + 1;
    }
}

/* A character that JSON escapes: a quotation mark, a backslash or a control character. */
static void add_escaped(routes *r, uint32_t c)
{
    static const char from[] = "\"\\\b\f\n\r\t", to[] = "\"\\bfnrt", digits[] = "0123456789abcdef";
    const char *at = c ? strchr(from, (int)c) : NULL;
    unsigned char text[6] = {'\\', 'u', '0', '0', (unsigned char)digits[c >> 4 & 15], (unsigned char)digits[c & 15]};
    if (at) text[1] = (unsigned char)to[at - from];
    add_route(r, add_bytes(r->b, text, at ? 2 : 6, r->next));
}

/* U+0000 is left out: many readers of JSON refuse it. */
static void add_json_points(routes *r, uint32_t first, uint32_t last)
{
    static const hd_chars plain[] = {{0x20, 0x21}, {0x23, 0x5b}, {0x5d, 0x10ffff}};
    for (uint32_t c = first ? first : 1; c <= last && c <= '\\'; c++)
        if (c < 0x20 || c == '"' || c == '\\') add_escaped(r, c);
    for (int i = 0; i < 3; i++) {
        uint32_t low = plain[i].first > first ? plain[i].first : first, high = plain[i].last < last ? plain[i].last : last;
        if (low <= high) add_code_points(r, low, high);
    }
}

static int32_t build_chars(builder *b, const hd_expr *e, int32_t next)
{
    routes r = {.b = b, .next = next, .chain = -1};
    for (int i = 0; i < e->count && !b->failed; i++) {
        if (e->json) add_json_points(&r, e->chars[i].first, e->chars[i].last);
        else add_code_points(&r, e->chars[i].first, e->chars[i].last);
    }
    return r.chain < 0 ? add_split(b, -1, -1) : r.chain; /* a class of nothing */
}

/* ---- expressions ---- */

static int32_t build(builder *b, const hd_expr *e, int32_t next);

static int32_t build_repeat(builder *b, const hd_expr *e, int32_t next)
{
    const hd_expr *part = e->parts[0];
    if (e->max < 0) {
        int32_t loop = add_split(b, -1, next);
        if (loop < 0) return -1;
        int32_t body = build(b, part, loop);
        if (body < 0) return -1;
        b->n->states[loop].a = body;
        next = loop;
    }
    int32_t end = next;
    for (int i = e->min; i < e->max && !b->failed; i++) next = add_split(b, build(b, part, next), end);
    for (int i = 0; i < e->min && !b->failed; i++) next = build(b, part, next);
    return next;
}

static int32_t build_alt(builder *b, const hd_expr *e, int32_t next)
{
    int32_t chain = -1;
    for (int i = e->count; i-- > 0 && !b->failed;) {
        int32_t part = build(b, e->parts[i], next);
        chain = chain < 0 ? part : add_split(b, part, chain);
    }
    return chain < 0 ? add_split(b, -1, -1) : chain;
}

/* The state from which e, then what next stands for, is matched; -1 on failure. */
static int32_t build(builder *b, const hd_expr *e, int32_t next)
{
    if (b->failed) return -1;
    if (!e || ++b->steps > MOST_STEPS) {
        b->failed = true;
        hd_fail(b->g->err, HD_EMEMCAP, "a constraint that repeats too much");
        return -1;
    }
    switch (e->kind) {
    case HD_EXPR_BYTES: return add_bytes(b, e->bytes, e->count, next);
    case HD_EXPR_CHARS: return build_chars(b, e, next);
    case HD_EXPR_SEQ:
        for (int i = e->count; i-- > 0 && !b->failed;) next = build(b, e->parts[i], next);
        return next;
    case HD_EXPR_ALT: return build_alt(b, e, next);
    case HD_EXPR_REPEAT: return build_repeat(b, e, next);
    default: break;
    }
    if (b->copied[e->rule]) return build(b, b->g->rules[e->rule].body, next);
    return add(b, (hd_nfa_state){.kind = HD_NFA_CALL, .rule = e->rule, .a = next, .b = -1});
}

static void build_rule(builder *b, int32_t rule)
{
    int32_t final = add(b, (hd_nfa_state){.kind = HD_NFA_FINAL, .a = -1, .b = -1});
    b->n->start[rule] = build(b, b->g->rules[rule].body, final);
}

/* Builds root and what is called from what is built. */
static int build_rules(builder *b, int root)
{
    hd_nfa *n = b->n;
    build_rule(b, root);
    for (size_t i = 0; i < n->n && !b->failed; i++)
        if (n->states[i].kind == HD_NFA_CALL && n->start[n->states[i].rule] < 0) build_rule(b, n->states[i].rule);
    return b->failed ? HD_EMEMCAP : 0;
}

/* ---- what is alive ---- */

static bool range_spelled(const hd_nfa_state *s, const bool spelled[256])
{
    for (int c = s->low; c <= s->high; c++)
        if (spelled[c]) return true;
    return false;
}

static bool is(const bool *of, int32_t state) { return state >= 0 && of[state]; }

/* One pass over all states, most of whose successors have lower numbers; whether something changed. */
static bool mark_alive(hd_nfa *n, const bool spelled[256])
{
    bool changed = false;
    for (size_t i = 0; i < n->n; i++) {
        const hd_nfa_state *s = &n->states[i];
        if (n->alive[i]) continue;
        bool alive = s->kind == HD_NFA_FINAL || (s->kind == HD_NFA_SPLIT && (is(n->alive, s->a) || is(n->alive, s->b))) ||
                     (s->kind == HD_NFA_RANGE && is(n->alive, s->a) && range_spelled(s, spelled)) ||
                     (s->kind == HD_NFA_CALL && is(n->alive, s->a) && is(n->alive, n->start[s->rule]));
        changed |= n->alive[i] = alive;
    }
    return changed;
}

static bool mark_ends(hd_nfa *n)
{
    bool changed = false;
    for (size_t i = 0; i < n->n; i++) {
        const hd_nfa_state *s = &n->states[i];
        if (n->ends[i]) continue;
        bool ends = s->kind == HD_NFA_FINAL || (s->kind == HD_NFA_SPLIT && (is(n->ends, s->a) || is(n->ends, s->b))) ||
                    (s->kind == HD_NFA_CALL && is(n->ends, s->a) && is(n->ends, n->start[s->rule]));
        changed |= n->ends[i] = ends;
    }
    return changed;
}

/* Whether a byte can be reached from the start of a rule; calls count by what is known of the rules called. */
static bool has_bytes(hd_nfa *n, size_t rule)
{
    size_t top = 0;
    if (!is(n->alive, n->start[rule])) return false;
    n->round++;
    n->stack[top++] = n->start[rule];
    while (top) {
        int32_t i = n->stack[--top];
        if (i < 0 || !n->alive[i] || n->seen[i] == n->round) continue;
        n->seen[i] = n->round;
        const hd_nfa_state *s = &n->states[i];
        if (s->kind == HD_NFA_RANGE || (s->kind == HD_NFA_CALL && n->substantial[s->rule])) return true;
        n->stack[top++] = s->a;
        n->stack[top++] = s->b;
    }
    return false;
}

size_t hd_nfa_closure(hd_nfa *n, int32_t from, int32_t *list, size_t count)
{
    size_t top = 0;
    n->stack[top++] = from;
    while (top) {
        int32_t i = n->stack[--top];
        if (i < 0 || !n->alive[i] || n->seen[i] == n->round) continue;
        n->seen[i] = n->round;
        const hd_nfa_state *s = &n->states[i];
        bool call = s->kind == HD_NFA_CALL;
        if (s->kind == HD_NFA_FINAL || s->kind == HD_NFA_RANGE || (call && n->substantial[s->rule])) list[count++] = i;
        if (s->kind == HD_NFA_SPLIT || (call && n->nullable[s->rule])) n->stack[top++] = s->a;
        if (s->kind == HD_NFA_SPLIT) n->stack[top++] = s->b;
    }
    return count;
}

/* ---- left recursion: a rule that can call itself before any byte ---- */

typedef struct left { hd_nfa *n; int8_t *colour; int32_t *path, *list; } left;

/* Depth first over rules without recursion of ours: path holds (rule, place in its calls) pairs as one list of calls each time recomputed. */
static int32_t left_recursive(left *l, int32_t from)
{
    hd_nfa *n = l->n;
    size_t depth = 0;
    l->path[depth++] = from;
    while (depth) {
        int32_t rule = l->path[depth - 1], next = -1;
        l->colour[rule] = 1;
        n->round++;
        size_t count = hd_nfa_closure(n, n->start[rule], l->list, 0);
        for (size_t i = 0; i < count && next < 0; i++) {
            const hd_nfa_state *s = &n->states[l->list[i]];
            if (s->kind != HD_NFA_CALL) continue;
            if (l->colour[s->rule] == 1) return s->rule;
            if (l->colour[s->rule] == 0) next = s->rule;
        }
        if (next >= 0) l->path[depth++] = next;
        else l->colour[l->path[--depth]] = 2;
    }
    return -1;
}

static int check_left(hd_rules *g, hd_nfa *n)
{
    left l = {n, hd_calloc(n->n_rules, 1), hd_calloc(n->n_rules + 1, sizeof(int32_t)), hd_calloc(n->n + 1, sizeof(int32_t))};
    int rc = l.colour && l.path && l.list ? 0 : hd_fail_memory(g->err, n->n, "an automaton");
    for (size_t r = 0; r < n->n_rules && !rc; r++) {
        if (n->start[r] < 0 || !n->alive[n->start[r]] || l.colour[r]) continue;
        int32_t at = left_recursive(&l, (int32_t)r);
        if (at >= 0) rc = hd_fail(g->err, HD_EUNSUPPORTED, "left recursion (rule \"%.100s\" begins with itself) isn't supported", g->rules[at].name);
    }
    hd_free(l.colour);
    hd_free(l.path);
    hd_free(l.list);
    return rc;
}

/* ---- all together ---- */

static int analyse(hd_rules *g, hd_nfa *n, int root, const bool spelled[256])
{
    n->alive = hd_calloc(n->n, sizeof *n->alive);
    n->ends = hd_calloc(n->n, sizeof *n->ends);
    n->nullable = hd_calloc(n->n_rules, sizeof *n->nullable);
    n->substantial = hd_calloc(n->n_rules, sizeof *n->substantial);
    n->stack = hd_calloc(2 * n->n + 8, sizeof *n->stack);
    n->seen = hd_calloc(n->n, sizeof *n->seen);
    if (!n->alive || !n->ends || !n->nullable || !n->substantial || !n->stack || !n->seen) return hd_fail_memory(g->err, n->n, "an automaton");
    int64_t passes = 0;
    while (mark_alive(n, spelled) || mark_ends(n))
        if (++passes * (int64_t)n->n > MOST_MARKS) return hd_fail(g->err, HD_EMEMCAP, "a constraint whose rules refer to each other too deeply");
    if (!n->alive[n->start[root]]) return hd_fail(g->err, HD_EINVAL, "no text can match this constraint");
    for (size_t r = 0; r < n->n_rules; r++) n->nullable[r] = is(n->ends, n->start[r]);
    bool changed = true;
    for (passes = 0; changed; passes++) {
        if (passes * (int64_t)n->n > MOST_MARKS) return hd_fail(g->err, HD_EMEMCAP, "a constraint whose rules refer to each other too deeply");
        changed = false;
        for (size_t r = n->n_rules; r-- > 0;)
            if (!n->substantial[r]) changed |= n->substantial[r] = has_bytes(n, r);
    }
    return check_left(g, n);
}

int hd_nfa_build(hd_rules *g, int root, const bool spelled[256], hd_nfa *out)
{
    *out = (hd_nfa){.n_rules = g->n_rules};
    builder b = {.g = g, .n = out};
    int rc = 0;
    b.size = hd_calloc(g->n_rules, sizeof *b.size);
    b.copied = hd_calloc(g->n_rules, sizeof *b.copied);
    out->start = hd_calloc(g->n_rules, sizeof *out->start);
    if (!b.size || !b.copied || !out->start) rc = hd_fail_memory(g->err, g->n_rules * 16, "an automaton");
    for (size_t i = 0; i < g->n_rules && !rc; i++) {
        out->start[i] = -1;
        b.copied[i] = size_of_rule(&b, (int)i, 0) <= COPIED && (int)i != root;
    }
    if (!rc) rc = build_rules(&b, root);
    if (!rc) rc = analyse(g, out, root, spelled);
    hd_free(b.size);
    hd_free(b.copied);
    if (rc) hd_nfa_free(out);
    return rc;
}

void hd_nfa_free(hd_nfa *n)
{
    hd_free(n->states);
    hd_free(n->start);
    hd_free(n->alive);
    hd_free(n->ends);
    hd_free(n->nullable);
    hd_free(n->substantial);
    hd_free(n->stack);
    hd_free(n->seen);
    *n = (hd_nfa){0};
}
