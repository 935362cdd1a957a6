#include "serve/constrain.h"

#include <stdlib.h>
#include <string.h>
#include "serve/constrain_int.h"

/* MASKS: kept per constraint (a dense one has a bit for each token); PLACES: ways to read the answer so far; MOST_DEPTH: of a stack. */
enum { MASKS = 256, PLACES = 1024, MOST_DEPTH = 100000 };

/* What a call returns to. Counted; a constraint's lock guards the counts. */
typedef struct frame frame;
struct frame { frame *below; int32_t state; int32_t refs, depth; };

typedef struct place { int32_t state; frame *stack; } place; /* stack NULL: the end of the root ends the answer */

/* The tokens that may follow in a state whatever it returns to: a set, or a list when few; and where tokens go on after it has returned. */
typedef struct mask {
    int32_t state;
    uint64_t *bits;      /* [words] or NULL */
    int32_t *tokens; size_t n_tokens, cap_tokens;
    int32_t *escapes; size_t n_escapes, cap_escapes; /* nodes of the tree of tokens */
    bool narrow;         /* not all of them: the walk was too long */
} mask;

struct hd_constraint {
    const hd_vocabulary *v;
    hd_automata a;
    int refs;               /* by __atomic */
    pthread_mutex_t lock;   /* over masks and frames */
    mask masks[MASKS];
    int32_t *mask_of;       /* [n_states] into masks, -1 */
    int n_masks;
    unsigned evict;
};

struct hd_constraint_state {
    const hd_constraint *c;
    place *places;
    int n, cap;
    bool done; /* eos was seen */
};

static size_t words_of(const hd_vocabulary *v) { return ((size_t)v->size + 63) / 64; }
static hd_constraint *writable(const hd_constraint *c) { return (hd_constraint *)(uintptr_t)c; } /* its cache and counts, under its lock */

/* ---- life cycle ---- */

hd_constraint *hd_constraint_from_rules(const hd_vocabulary *v, hd_rules *g, int root)
{
    bool bad = root < 0;
    for (size_t i = 0; i < g->n_rules; i++) bad |= !g->rules[i].body;
    hd_constraint *c = bad ? NULL : hd_calloc(1, sizeof *c);
    if (!c) {
        if (!bad) hd_fail_memory(g->err, sizeof *c, "a constraint");
        hd_rules_free(g);
        return NULL;
    }
    c->v = v;
    c->refs = 1;
    pthread_mutex_init(&c->lock, NULL);
    int rc = hd_automata_compile(g, root, v->spelled, &c->a);
    if (!rc) rc = hd_automata_group(&c->a, v->longest, g->err);
    if (!rc && !(c->mask_of = hd_malloc((size_t)c->a.n_states * sizeof *c->mask_of)))
        rc = hd_fail_memory(g->err, (size_t)c->a.n_states * sizeof *c->mask_of, "a constraint");
    hd_rules_free(g);
    if (rc) {
        hd_constraint_release(c);
        return NULL;
    }
    memset(c->mask_of, -1, (size_t)c->a.n_states * sizeof *c->mask_of);
    return c;
}

hd_constraint *hd_constraint_retain(const hd_constraint *c)
{
    __atomic_add_fetch(&writable(c)->refs, 1, __ATOMIC_RELAXED);
    return writable(c);
}

static void mask_free(mask *m)
{
    hd_free(m->bits);
    hd_free(m->tokens);
    hd_free(m->escapes);
    *m = (mask){0};
}

void hd_constraint_release(const hd_constraint *constant)
{
    hd_constraint *c = writable(constant);
    if (!c || __atomic_sub_fetch(&c->refs, 1, __ATOMIC_ACQ_REL)) return;
    for (int i = 0; i < c->n_masks; i++) mask_free(&c->masks[i]);
    hd_automata_free(&c->a);
    hd_free(c->mask_of);
    pthread_mutex_destroy(&c->lock);
    hd_free(c);
}

/* ---- stacks ---- */

static frame *frame_push(frame *below, int32_t state)
{
    frame *f = hd_malloc(sizeof *f);
    if (!f) return NULL;
    *f = (frame){below, state, 1, below ? below->depth + 1 : 1};
    if (below) below->refs++;
    return f;
}

static void frame_release(frame *f)
{
    while (f && --f->refs == 0) {
        frame *below = f->below;
        hd_free(f);
        f = below;
    }
}

static bool same_stack(const frame *a, const frame *b)
{
    while (a != b) {
        if (!a || !b || a->state != b->state || a->depth != b->depth) return false;
        a = a->below;
        b = b->below;
    }
    return true;
}

/* ---- sets of places ---- */

typedef struct places {
    const hd_constraint *c;
    place *at;
    int n, cap;
    int rc; /* why nothing more is added */
} places;

static void places_add(places *p, int32_t state, frame *stack)
{
    for (int i = 0; i < p->n; i++)
        if (p->at[i].state == state && same_stack(p->at[i].stack, stack)) return;
    if (p->rc) return;
    if (p->n == PLACES) {
        p->rc = HD_EMEMCAP;
        return;
    }
    if (p->n == p->cap) {
        int cap = p->cap ? 2 * p->cap : 4;
        place *at = hd_realloc_array(p->at, (size_t)cap, sizeof *at);
        if (!at) {
            p->rc = HD_ENOMEM;
            return;
        }
        p->at = at;
        p->cap = cap;
    }
    if (stack) stack->refs++;
    p->at[p->n++] = (place){state, stack};
}

static void places_free(place *at, int n)
{
    for (int i = 0; i < n; i++) frame_release(at[i].stack);
    hd_free(at);
}

static bool only_returns(const hd_automata *a, int32_t state) { return a->flags[state] == HD_AUTO_FINAL; }

static int32_t next_state(const hd_automata *a, int32_t state, unsigned char byte)
{
    return a->next[(size_t)state * (size_t)a->n_classes + a->class_of[byte]];
}

/* Where a byte leads from a state and from the rules that it calls. A call whose return is only a return leaves no frame. */
static void step_calls(places *out, int32_t state, frame *stack, unsigned char byte)
{
    const hd_automata *a = &out->c->a;
    int32_t next = next_state(a, state, byte);
    if (next >= 0) places_add(out, next, stack);
    for (int32_t k = a->calls_from[state]; k < a->calls_from[state + 1] && !out->rc; k++) {
        const hd_call_edge *e = &a->calls[k];
        if (!(a->first[e->rule][byte / 64] >> byte % 64 & 1)) continue;
        if (only_returns(a, e->then)) {
            step_calls(out, a->start[e->rule], stack, byte);
            continue;
        }
        frame *f = frame_push(stack, e->then);
        if (!f || f->depth > MOST_DEPTH) out->rc = f ? HD_EMEMCAP : HD_ENOMEM;
        else step_calls(out, a->start[e->rule], f, byte);
        frame_release(f);
    }
}

static void step_place(places *out, place p, unsigned char byte)
{
    const hd_automata *a = &out->c->a;
    step_calls(out, p.state, p.stack, byte);
    while ((a->flags[p.state] & HD_AUTO_FINAL) && p.stack && !out->rc) {
        p = (place){p.stack->state, p.stack->below};
        step_calls(out, p.state, p.stack, byte);
    }
}

/* ---- the walk over the tree of tokens ---- */

typedef struct walk {
    const hd_constraint *c;
    mask *into;        /* an unknown stack: escapes are noted here */
    uint64_t *allowed; /* [words] */
    int64_t steps;     /* that may still be made */
    bool stopped;      /* for want of steps or memory */
    int rc;
    int32_t states[HD_TOKEN_BYTES + 1]; /* by depth in the tree */
} walk;

static frame unknown_stack; /* only its address counts */

static void walk_from(walk *w, int32_t state, int32_t node, frame *stack);

/* The tokens that end at nodes from a to before b. */
static void allow(walk *w, const hd_trie_node *a, const hd_trie_node *b)
{
    for (int32_t i = a->first; i < b->first; i++) w->allowed[w->c->v->order[i] / 64] |= 1ull << w->c->v->order[i] % 64;
}

/* Pairs of bytes that leave a state as it is, where nothing is called or returned from: a subtree of such bytes is allowed as a whole. */
static uint64_t loops_of(const hd_automata *a, int32_t state)
{
    uint64_t pairs = 0;
    if (a->flags[state] != HD_AUTO_BYTES) return 0;
    for (int i = 0; i < 64; i++)
        if (next_state(a, state, (unsigned char)(2 * i)) == state && next_state(a, state, (unsigned char)(2 * i + 1)) == state) pairs |= 1ull << i;
    return pairs;
}

static void walk_calls(walk *w, int32_t state, int32_t node, frame *stack)
{
    const hd_automata *a = &w->c->a;
    for (int32_t k = a->calls_from[state]; k < a->calls_from[state + 1] && !w->stopped; k++) {
        frame f = {.below = stack, .state = a->calls[k].then};
        bool tail = only_returns(a, f.state);
        walk_from(w, a->start[a->calls[k].rule], node, tail ? stack : &f);
    }
}

/* The end of a rule within a token. */
static void walk_return(walk *w, int32_t node, frame *stack)
{
    if (stack == &unknown_stack) {
        mask *m = w->into;
        if (hd_grow(&m->escapes, &m->cap_escapes, m->n_escapes + 1, sizeof *m->escapes)) w->rc = HD_ENOMEM, w->stopped = true;
        else m->escapes[m->n_escapes++] = node;
        return;
    }
    if (!stack || w->stopped) return;
    walk_from(w, stack->state, node, stack->below);
    if (w->c->a.flags[stack->state] & HD_AUTO_FINAL) walk_return(w, node, stack->below);
}

/* Allows the tokens below a node that a state can read; not those it can only read by returning before their first byte. */
static void walk_from(walk *w, int32_t state, int32_t node, frame *stack)
{
    const hd_automata *a = &w->c->a;
    const hd_trie_node *nodes = w->c->v->nodes;
    int32_t end = node + nodes[node].size;
    walk_calls(w, state, node, stack);
    if (!(a->flags[state] & HD_AUTO_BYTES)) return;
    w->states[nodes[node].depth] = state;
    int32_t looping = -1;
    uint64_t loops = 0;
    for (int32_t i = node + 1; i < end && !w->stopped;) {
        const hd_trie_node *t = &nodes[i];
        int32_t next = next_state(a, w->states[t->depth - 1], t->byte);
        w->stopped |= --w->steps < 0;
        if (next < 0) {
            i += t->size;
            continue;
        }
        uint8_t flags = a->flags[next];
        if (next != looping && next == w->states[t->depth - 1]) {
            looping = next;
            loops = loops_of(a, next);
        }
        if (next == looping && !(t->pairs & ~loops)) {
            allow(w, t, t + t->size);
            i += t->size;
            continue;
        }
        allow(w, t, t + 1);
        if (t->size > 1 && (flags & (HD_AUTO_CALLS | HD_AUTO_FINAL))) {
            if (flags & HD_AUTO_CALLS) walk_calls(w, next, i, stack);
            if (flags & HD_AUTO_FINAL) walk_return(w, i, stack);
        }
        w->states[t->depth] = next;
        i += flags & HD_AUTO_BYTES ? 1 : t->size;
    }
}

/* ---- masks ---- */

/* A list when it is much shorter than the set. */
static int keep_tokens(mask *m, const uint64_t *bits, size_t words)
{
    size_t count = 0;
    for (size_t i = 0; i < words; i++) count += (size_t)__builtin_popcountll(bits[i]);
    if (count * 2 > words) {
        m->bits = hd_malloc(words * sizeof *bits);
        if (m->bits) memcpy(m->bits, bits, words * sizeof *bits);
        return m->bits ? 0 : HD_ENOMEM;
    }
    if (hd_grow(&m->tokens, &m->cap_tokens, count, sizeof *m->tokens)) return HD_ENOMEM;
    for (size_t i = 0; i < words; i++)
        for (uint64_t left = bits[i]; left; left &= left - 1) m->tokens[m->n_tokens++] = (int32_t)(i * 64) + __builtin_ctzll(left);
    return 0;
}

/* A walk that isn't ambiguous comes to each node once. */
static int64_t most_steps(const hd_vocabulary *v) { return 3 * (int64_t)v->n_nodes + 50000; }

static int make_mask(hd_constraint *c, int32_t state, mask *m)
{
    size_t words = words_of(c->v);
    walk w = {.c = c, .into = m, .allowed = hd_calloc(words, sizeof(uint64_t)), .steps = most_steps(c->v)};
    *m = (mask){.state = state};
    if (!w.allowed) return HD_ENOMEM;
    walk_from(&w, state, 0, &unknown_stack);
    m->narrow = w.stopped;
    int rc = w.rc ? w.rc : keep_tokens(m, w.allowed, words);
    hd_free(w.allowed);
    if (rc) mask_free(m);
    return rc;
}

/* The mask of a state, from the cache or made now in the place of the oldest. NULL and *rc on failure. */
static const mask *mask_for(hd_constraint *c, int32_t state, int *rc)
{
    mask m;
    state = c->a.alike[state];
    if (c->mask_of[state] >= 0) return &c->masks[c->mask_of[state]];
    if ((*rc = make_mask(c, state, &m))) return NULL;
    bool full = c->n_masks == MASKS;
    int at = full ? (int)(c->evict++ % MASKS) : c->n_masks++;
    if (full) c->mask_of[c->masks[at].state] = -1;
    mask_free(&c->masks[at]);
    c->masks[at] = m;
    c->mask_of[state] = at;
    return &c->masks[at];
}

static void add_mask(walk *w, const mask *m, frame *stack)
{
    size_t words = words_of(w->c->v);
    for (size_t i = 0; m->bits && i < words; i++) w->allowed[i] |= m->bits[i];
    for (size_t i = 0; i < m->n_tokens; i++) w->allowed[m->tokens[i] / 64] |= 1ull << m->tokens[i] % 64;
    for (size_t i = 0; stack && i < m->n_escapes && !w->stopped; i++) walk_return(w, m->escapes[i], stack);
}

/* The places and those that they return to before another byte; *ends: the answer may end. */
static void with_returns(const hd_constraint_state *s, places *all, bool *ends)
{
    const hd_automata *a = &s->c->a;
    *ends = false;
    for (int i = 0; i < s->n; i++) places_add(all, s->places[i].state, s->places[i].stack);
    for (int i = 0; i < all->n && !all->rc; i++) {
        place p = all->at[i];
        if (!(a->flags[p.state] & HD_AUTO_FINAL)) continue;
        if (p.stack) places_add(all, p.stack->state, p.stack->below);
        else *ends = true;
    }
}

static int fail(hd_error *err, int rc)
{
    if (rc == HD_ENOMEM) return hd_fail_memory(err, sizeof(hd_constraint_state), "following a constraint");
    return hd_fail(err, rc, "the constraint is too ambiguous: the answer so far can be read in too many ways");
}

/* The tokens of one byte, found by reading it: at least one of them is always allowed, even where a walk over all tokens would be too long. */
static int add_bytes(const hd_constraint_state *s, const places *all, walk *w)
{
    const hd_trie_node *nodes = s->c->v->nodes;
    for (int32_t i = 1; i < s->c->v->n_nodes; i += nodes[i].size) {
        places next = {.c = s->c};
        for (int k = 0; k < all->n && !next.n && !next.rc; k++) step_calls(&next, all->at[k].state, all->at[k].stack, nodes[i].byte);
        bool can = next.n > 0;
        int rc = next.rc;
        places_free(next.at, next.n);
        if (rc) return rc;
        int32_t end = nodes[i].size > 1 ? nodes[i + 1].first : nodes[i + nodes[i].size].first;
        for (int32_t t = nodes[i].first; can && t < end; t++) w->allowed[s->c->v->order[t] / 64] |= 1ull << s->c->v->order[t] % 64;
    }
    return 0;
}

static int fill(hd_constraint_state *s, uint64_t *allowed, bool *ends)
{
    places all = {.c = s->c};
    walk w = {.c = s->c, .allowed = allowed, .steps = most_steps(s->c->v)};
    bool narrow = false;
    with_returns(s, &all, ends);
    int rc = all.rc;
    for (int i = 0; i < all.n && !rc; i++) {
        const mask *m = mask_for(writable(s->c), all.at[i].state, &rc);
        if (m) add_mask(&w, m, all.at[i].stack);
        if (m) narrow |= m->narrow || w.stopped;
        if (!rc) rc = w.rc;
    }
    if (!rc && narrow) rc = add_bytes(s, &all, &w);
    places_free(all.at, all.n);
    return rc;
}

int hd_constraint_mask(hd_constraint_state *s, uint64_t *allowed, hd_error *err)
{
    bool ends = s->done;
    int rc = 0;
    memset(allowed, 0, words_of(s->c->v) * sizeof *allowed);
    if (!s->done) {
        pthread_mutex_lock(&writable(s->c)->lock);
        rc = fill(s, allowed, &ends);
        pthread_mutex_unlock(&writable(s->c)->lock);
    }
    if (rc) return fail(err, rc);
    for (int i = 0; ends && i < s->c->v->n_eos; i++) allowed[s->c->v->eos[i] / 64] |= 1ull << s->c->v->eos[i] % 64;
    return 0;
}

/* ---- states ---- */

hd_constraint_state *hd_constraint_begin(const hd_constraint *c, hd_error *err)
{
    hd_constraint_state *s = hd_calloc(1, sizeof *s);
    if (s) s->places = hd_calloc(1, sizeof *s->places);
    if (!s || !s->places) {
        hd_free(s);
        hd_fail_memory(err, sizeof *s, "following a constraint");
        return NULL;
    }
    s->c = hd_constraint_retain(c);
    s->n = s->cap = 1;
    s->places[0].state = c->a.root;
    return s;
}

hd_constraint_state *hd_constraint_fork(const hd_constraint_state *s, hd_error *err)
{
    hd_constraint_state *f = hd_calloc(1, sizeof *f);
    if (f) f->places = hd_calloc((size_t)s->n, sizeof *f->places);
    if (!f || !f->places) {
        hd_free(f);
        hd_fail_memory(err, (size_t)s->n * sizeof *f->places, "following a constraint");
        return NULL;
    }
    pthread_mutex_lock(&writable(s->c)->lock);
    memcpy(f->places, s->places, (size_t)s->n * sizeof *f->places);
    for (int i = 0; i < s->n; i++)
        if (s->places[i].stack) s->places[i].stack->refs++;
    pthread_mutex_unlock(&writable(s->c)->lock);
    f->c = hd_constraint_retain(s->c);
    f->n = f->cap = s->n;
    f->done = s->done;
    return f;
}

void hd_constraint_end(hd_constraint_state *s)
{
    if (!s) return;
    pthread_mutex_lock(&writable(s->c)->lock);
    places_free(s->places, s->n);
    pthread_mutex_unlock(&writable(s->c)->lock);
    hd_constraint_release(s->c);
    hd_free(s);
}

/* ---- going on ---- */

static bool ends_here(hd_constraint_state *s, bool *more, int *rc)
{
    places all = {.c = s->c};
    bool ends;
    with_returns(s, &all, &ends);
    *more = false;
    for (int i = 0; i < all.n; i++) *more |= (s->c->a.flags[all.at[i].state] & (HD_AUTO_BYTES | HD_AUTO_CALLS)) != 0;
    *rc = all.rc;
    places_free(all.at, all.n);
    return ends;
}

/* Reads bytes; on failure the state stays as it was. 0, HD_EINVAL when they don't fit, or another code. */
static int read_bytes(hd_constraint_state *s, const unsigned char *bytes, int n)
{
    places now = {.c = s->c};
    for (int i = 0; i < s->n; i++) places_add(&now, s->places[i].state, s->places[i].stack);
    for (int i = 0; i < n && !now.rc && now.n; i++) {
        places next = {.c = s->c};
        for (int k = 0; k < now.n && !next.rc; k++) step_place(&next, now.at[k], bytes[i]);
        places_free(now.at, now.n);
        now = next;
    }
    if (now.rc || !now.n) {
        places_free(now.at, now.n);
        return now.rc ? now.rc : HD_EINVAL;
    }
    places_free(s->places, s->n);
    s->places = now.at;
    s->n = now.n;
    s->cap = now.cap;
    return 0;
}

static bool is_eos(const hd_vocabulary *v, int32_t token)
{
    for (int i = 0; i < v->n_eos; i++)
        if (v->eos[i] == token) return true;
    return false;
}

static int advance(hd_constraint_state *s, int32_t token)
{
    const hd_vocabulary *v = s->c->v;
    bool more;
    int rc = 0;
    if (is_eos(v, token)) {
        bool ends = s->done || ends_here(s, &more, &rc);
        if (!rc && ends) s->done = true;
        return rc ? rc : ends ? 0 : HD_EINVAL;
    }
    if (s->done || token < 0 || token >= v->size || !v->bytes[token]) return HD_EINVAL;
    return read_bytes(s, (const unsigned char *)v->bytes[token], v->lengths[token]);
}

int hd_constraint_advance(hd_constraint_state *s, int32_t token, hd_error *err)
{
    pthread_mutex_lock(&writable(s->c)->lock);
    int rc = advance(s, token);
    pthread_mutex_unlock(&writable(s->c)->lock);
    if (rc == HD_EINVAL) return hd_fail(err, rc, "token %d isn't allowed here", token);
    return rc ? fail(err, rc) : 0;
}

bool hd_constraint_complete(const hd_constraint_state *s)
{
    bool more = false;
    int rc = 0;
    if (s->done) return true;
    pthread_mutex_lock(&writable(s->c)->lock);
    bool ends = ends_here((hd_constraint_state *)(uintptr_t)s, &more, &rc);
    pthread_mutex_unlock(&writable(s->c)->lock);
    return !rc && ends && !more;
}
