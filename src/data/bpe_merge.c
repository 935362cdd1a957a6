/* bpe_merge.c: learning merges: the most frequent pair of neighbours is merged everywhere, again and again.
 *
 * The result must equal that of `tokenizers` to the last merge, so what its BpeTrainer does is done here too: ties go to the smaller pair of
 * ids; counts in the queue are checked when they come to the top; a pair's count is never reset once merged; and a pair that comes back
 * (because two ways lead to the same token) waits in the queue twice, each time with the words that it was then seen in. */
#include "data/bpe_merge.h"
#include <string.h>
#include "base/term.h"

/* Places of a pair: indices of words, ascending, each once. */
typedef struct places { int32_t *data; size_t len, cap; } places;

typedef struct pair_slot {
    uint64_t pair;   /* HD_NO_PAIR: empty */
    int64_t count;
    places seen;     /* words of this round in which it came to be */
} pair_slot;

typedef struct queued { uint64_t count, pair; places where; } queued;

typedef struct word { uint64_t begin; uint32_t len; int64_t count; } word; /* symbols[begin .. begin+len) */

typedef struct learner {
    hd_bpe_vocab *v;
    word *words;
    size_t word_count;
    int32_t *symbols;
    pair_slot *pairs;    /* open addressing */
    uint64_t mask, used;
    queued *queue;       /* binary heap */
    size_t queue_len, queue_cap;
    uint64_t *touched;   /* pairs that came to be this round */
    size_t touched_len, touched_cap;
    hd_error *err;
} learner;

int32_t hd_bpe_vocab_add(hd_bpe_vocab *v, const char *text, size_t n, hd_error *err) {
    int32_t id = hd_string_table_get(&v->ids, text, n);
    if (id >= 0) return id;
    char *copy = v->count < v->capacity ? hd_arena_alloc(v->arena, n + 1) : NULL;
    if (!copy) return hd_fail_memory(err, n, "a vocabulary");
    memcpy(copy, text, n);
    v->text[v->count] = copy;
    v->size[v->count] = (uint32_t)n;
    hd_string_table_put(&v->ids, copy, n, v->count);
    return v->count++;
}

static int no_memory(learner *l) {
    return hd_fail_memory(l->err, l->used * sizeof *l->pairs, "training a tokenizer");
}

/* ---- the queue: highest count first, then the smaller pair ------------------------------------------------------- */

static bool goes_before(const queued *a, const queued *b) {
    return a->count != b->count ? a->count > b->count : a->pair < b->pair;
}

static int queue_push(learner *l, queued q) {
    if (hd_grow(&l->queue, &l->queue_cap, l->queue_len + 1, sizeof q)) return no_memory(l);
    size_t i = l->queue_len++;
    for (; i && goes_before(&q, &l->queue[(i - 1) / 2]); i = (i - 1) / 2) l->queue[i] = l->queue[(i - 1) / 2];
    l->queue[i] = q;
    return 0;
}

static void sift_down(learner *l, size_t i, queued q) {
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= l->queue_len) break;
        if (child + 1 < l->queue_len && goes_before(&l->queue[child + 1], &l->queue[child])) child++;
        if (!goes_before(&l->queue[child], &q)) break;
        l->queue[i] = l->queue[child];
        i = child;
    }
    l->queue[i] = q;
}

static queued queue_pop(learner *l) {
    queued top = l->queue[0], last = l->queue[--l->queue_len];
    if (l->queue_len) sift_down(l, 0, last);
    return top;
}

/* ---- counts of pairs -------------------------------------------------------------------------------------------- */

static pair_slot *find_slot(pair_slot *pairs, uint64_t mask, uint64_t pair) {
    uint64_t i = hd_mix64(pair) & mask;
    while (pairs[i].pair != pair && pairs[i].pair != HD_NO_PAIR) i = (i + 1) & mask;
    return &pairs[i];
}

static pair_slot *new_slots(uint64_t count) {
    pair_slot *p = hd_calloc(count, sizeof *p);
    for (uint64_t i = 0; p && i < count; i++) p[i].pair = HD_NO_PAIR;
    return p;
}

static int grow_pairs(learner *l) {
    uint64_t mask = l->mask * 2 + 1;
    pair_slot *pairs = new_slots(mask + 1);
    if (!pairs) return no_memory(l);
    for (uint64_t i = 0; i <= l->mask; i++)
        if (l->pairs[i].pair != HD_NO_PAIR) *find_slot(pairs, mask, l->pairs[i].pair) = l->pairs[i];
    hd_free(l->pairs);
    l->pairs = pairs;
    l->mask = mask;
    return 0;
}

/* Adds change to a pair's count; one that grows notes the word. */
static int count_pair(learner *l, int32_t left, int32_t right, int64_t change, int32_t at) {
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    pair_slot *s = find_slot(l->pairs, l->mask, pair);
    if (s->pair == HD_NO_PAIR) {
        if (l->used * 2 > l->mask) {
            if (grow_pairs(l)) return HD_ENOMEM;
            s = find_slot(l->pairs, l->mask, pair);
        }
        s->pair = pair;
        l->used++;
    }
    s->count += change;
    if (change < 0) return 0;
    if (!s->seen.len) {
        if (hd_grow(&l->touched, &l->touched_cap, l->touched_len + 1, sizeof *l->touched)) return no_memory(l);
        l->touched[l->touched_len++] = pair;
    } else if (s->seen.data[s->seen.len - 1] == at) {
        return 0;
    }
    if (hd_grow(&s->seen.data, &s->seen.cap, s->seen.len + 1, sizeof *s->seen.data)) return no_memory(l);
    s->seen.data[s->seen.len++] = at;
    return 0;
}

/* Puts what came to be this round into the queue. */
static int queue_touched(learner *l) {
    int rc = 0;
    for (size_t i = 0; i < l->touched_len; i++) {
        pair_slot *s = find_slot(l->pairs, l->mask, l->touched[i]);
        places where = s->seen;
        s->seen = (places){0};
        if (s->count > 0 && !rc) rc = queue_push(l, (queued){(uint64_t)s->count, s->pair, where});
        else hd_free(where.data);
    }
    l->touched_len = 0;
    return rc;
}

/* ---- words ------------------------------------------------------------------------------------------------------ */

static int place_words(learner *l, const hd_word_table *w, const int32_t byte_ids[256]) {
    l->words = hd_calloc(w->used + 1, sizeof *l->words);
    l->symbols = hd_calloc(w->text.len + 1, sizeof *l->symbols);
    if (!l->words || !l->symbols) return no_memory(l);
    uint64_t at = 0;
    for (uint64_t i = 0; i <= w->mask; i++) {
        const hd_word_count *c = &w->slots[i];
        if (!c->count) continue;
        l->words[l->word_count++] = (word){at, c->size, c->count};
        for (uint32_t k = 0; k < c->size; k++) l->symbols[at++] = byte_ids[(unsigned char)w->text.data[c->offset + k]];
    }
    return l->word_count > INT32_MAX ? hd_fail(l->err, HD_EINVAL, "over 2^31 distinct words in a corpus") : 0;
}

static int count_all(learner *l) {
    for (size_t w = 0; w < l->word_count; w++) {
        const int32_t *s = l->symbols + l->words[w].begin;
        for (uint32_t k = 0; k + 1 < l->words[w].len; k++)
            if (count_pair(l, s[k], s[k + 1], l->words[w].count, (int32_t)w)) return HD_ENOMEM;
    }
    return queue_touched(l);
}

/* Replaces left, right by merged in word w, from left to right, and counts what changes around it. */
static int merge_word(learner *l, int32_t w, int32_t left, int32_t right, int32_t merged) {
    word *k = &l->words[w];
    int32_t *s = l->symbols + k->begin;
    uint32_t out = 0;
    int rc = 0;
    for (uint32_t i = 0; i < k->len; i++) {
        if (i + 1 == k->len || s[i] != left || s[i + 1] != right) {
            s[out++] = s[i];
            continue;
        }
        if (out) rc |= count_pair(l, s[out - 1], left, -k->count, w) | count_pair(l, s[out - 1], merged, k->count, w);
        if (i + 2 < k->len) rc |= count_pair(l, right, s[i + 2], -k->count, w) | count_pair(l, merged, s[i + 2], k->count, w);
        s[out++] = merged;
        i++;
    }
    k->len = out;
    return rc ? HD_ENOMEM : 0;
}

/* ---- the loop --------------------------------------------------------------------------------------------------- */

static int merge_pair(learner *l, const queued *top) {
    hd_bpe_vocab *v = l->v;
    int32_t left = (int32_t)(top->pair >> 32), right = (int32_t)(uint32_t)top->pair;
    hd_str text;
    hd_str_init(&text);
    hd_str_add(&text, v->text[left], v->size[left]);
    hd_str_add(&text, v->text[right], v->size[right]);
    int32_t merged = text.failed ? no_memory(l) : hd_bpe_vocab_add(v, text.data, text.len, l->err);
    hd_str_free(&text);
    if (merged < 0) return merged;
    if (hd_grow(&v->merges, &v->merge_cap, v->merge_count + 1, sizeof *v->merges)) return no_memory(l);
    v->merges[v->merge_count++] = top->pair;
    for (size_t i = 0; i < top->where.len; i++)
        if (merge_word(l, top->where.data[i], left, right, merged)) return HD_ENOMEM;
    return queue_touched(l);
}

static int learn(learner *l, int32_t vocab_size, int64_t min_frequency, bool quiet) {
    hd_progress bar;
    hd_progress_begin(&bar, "learning merges", vocab_size, quiet);
    int rc = 0;
    while (!rc && l->v->count < vocab_size && l->queue_len) {
        queued *first = &l->queue[0];
        uint64_t now = (uint64_t)find_slot(l->pairs, l->mask, first->pair)->count;
        if (first->count != now) {
            queued stale = *first;
            stale.count = now;
            sift_down(l, 0, stale); /* when it rose it stays on top, where it belongs */
            continue;
        }
        if (now < 1 || (int64_t)now < min_frequency) break;
        queued top = queue_pop(l);
        rc = merge_pair(l, &top);
        hd_free(top.where.data);
        if ((l->v->merge_count & 63) == 0) hd_progress_update(&bar, l->v->count, NULL);
    }
    if (rc) hd_progress_hide(&bar);
    else hd_progress_end(&bar, NULL);
    return rc;
}

int hd_bpe_learn(hd_bpe_vocab *v, const hd_word_table *words, const int32_t byte_ids[256], int32_t vocab_size, int64_t min_frequency, bool quiet,
                 hd_error *err) {
    learner l = {.v = v, .mask = (1 << 16) - 1, .err = err};
    l.pairs = new_slots(l.mask + 1);
    int rc = l.pairs ? place_words(&l, words, byte_ids) : no_memory(&l);
    if (!rc) rc = count_all(&l);
    if (!rc) rc = learn(&l, vocab_size, min_frequency, quiet);
    for (size_t i = 0; i < l.queue_len; i++) hd_free(l.queue[i].where.data);
    for (uint64_t i = 0; l.pairs && i <= l.mask; i++) hd_free(l.pairs[i].seen.data);
    hd_free(l.pairs);
    hd_free(l.queue);
    hd_free(l.touched);
    hd_free(l.words);
    hd_free(l.symbols);
    return rc;
}
