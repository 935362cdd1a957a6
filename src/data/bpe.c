/* bpe.c: byte pair encoding of one word: of all pairs that have a merge, the one of lowest rank goes first, the leftmost among equals
 * (Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", ACL 2016; Hugging Face's order on ties). */
#include <string.h>
#include "data/tokenizer_int.h"

/* ---- tables ----------------------------------------------------------------------------------------------------- */

static uint64_t slots_for(size_t count) {
    uint64_t slots = 16;
    while (slots < (uint64_t)count * 2) slots *= 2;
    return slots;
}

int hd_merge_table_init(hd_merge_table *m, size_t count, hd_error *err) {
    uint64_t slots = slots_for(count);
    m->slots = hd_realloc_array(NULL, slots, sizeof *m->slots);
    if (!m->slots) return hd_fail_memory(err, slots * sizeof *m->slots, "merges of a tokenizer");
    for (uint64_t i = 0; i < slots; i++) m->slots[i].pair = HD_NO_PAIR;
    m->mask = slots - 1;
    return 0;
}

void hd_merge_table_put(hd_merge_table *m, uint64_t pair, uint32_t rank, int32_t merged) {
    uint64_t i = hd_mix64(pair) & m->mask;
    while (m->slots[i].pair != HD_NO_PAIR && m->slots[i].pair != pair) i = (i + 1) & m->mask;
    m->slots[i] = (hd_merge){pair, rank, merged};
}

uint64_t hd_bytes_hash(const void *p, size_t n) {
    const unsigned char *c = p;
    uint64_t h = n * 0x9e3779b97f4a7c15ull, v;
    for (; n >= 8; n -= 8, c += 8) {
        memcpy(&v, c, 8);
        h = (h ^ v) * 0xff51afd7ed558ccdull;
        h ^= h >> 32;
    }
    v = 0;
    memcpy(&v, c, n);
    h = (h ^ v) * 0xc4ceb9fe1a85ec53ull;
    return h ^ h >> 32;
}

int hd_string_table_init(hd_string_table *s, size_t count, hd_error *err) {
    uint64_t slots = slots_for(count);
    s->slots = hd_realloc_array(NULL, slots, sizeof *s->slots);
    if (!s->slots) return hd_fail_memory(err, slots * sizeof *s->slots, "vocabulary of a tokenizer");
    for (uint64_t i = 0; i < slots; i++) s->slots[i] = (hd_string_slot){NULL, 0, -1};
    s->mask = slots - 1;
    return 0;
}

static hd_string_slot *string_slot(const hd_string_table *s, const char *text, size_t n) {
    for (uint64_t i = hd_bytes_hash(text, n) & s->mask;; i = (i + 1) & s->mask) {
        hd_string_slot *slot = &s->slots[i];
        if (slot->id < 0 || (slot->size == n && !memcmp(slot->text, text, n))) return slot;
    }
}

void hd_string_table_put(hd_string_table *s, const char *text, size_t n, int32_t id) {
    *string_slot(s, text, n) = (hd_string_slot){text, (uint32_t)n, id};
}

int32_t hd_string_table_get(const hd_string_table *s, const char *text, size_t n) {
    return s->slots ? string_slot(s, text, n)->id : -1;
}

/* ---- the byte-level alphabet ------------------------------------------------------------------------------------ */

static bool stands_for_itself(int byte) {
    return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

int hd_byte_to_cp(int byte) {
    if (stands_for_itself(byte)) return byte;
    int cp = 256; /* the others, in order: 0..32, 127..160, 173 */
    for (int b = 0; b < byte; b++) cp += !stands_for_itself(b);
    return cp;
}

int hd_cp_to_byte(uint32_t cp) {
    if (cp < 256) return stands_for_itself((int)cp) ? (int)cp : -1;
    if (cp < 256 + 33) return (int)cp - 256;
    if (cp < 256 + 33 + 34) return (int)cp - 256 - 33 + 127;
    return cp == 256 + 33 + 34 ? 173 : -1;
}

/* ---- short words: everything in registers and two cache lines --------------------------------------------------- */

enum { SHORT_WORD = 48 };

static uint64_t pair_of(int32_t left, int32_t right) {
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

static uint32_t rank_of(const hd_tokenizer *t, int32_t left, int32_t right, int32_t *merged) {
    const hd_merge *m = hd_merge_table_get(&t->merges, pair_of(left, right));
    if (!m) return UINT32_MAX;
    *merged = m->merged;
    return m->rank;
}

/* Merges id[0..n) in place; returns how many are left. */
static int merge_short(const hd_tokenizer *t, int32_t *id, int n) {
    uint32_t rank[SHORT_WORD];
    int32_t merged[SHORT_WORD];
    for (int i = 0; i + 1 < n; i++) rank[i] = rank_of(t, id[i], id[i + 1], &merged[i]);
    while (n > 1) {
        int best = 0;
        for (int i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best]) best = i;
        if (rank[best] == UINT32_MAX) break;
        id[best] = merged[best];
        n--;
        for (int i = best + 1; i < n; i++) id[i] = id[i + 1];
        for (int i = best; i + 1 < n; i++) {
            rank[i] = rank[i + 1];
            merged[i] = merged[i + 1];
        }
        if (best > 0) rank[best - 1] = rank_of(t, id[best - 1], id[best], &merged[best - 1]);
        if (best + 1 < n) rank[best] = rank_of(t, id[best], id[best + 1], &merged[best]);
    }
    return n;
}

/* ---- long words: a linked list and a heap of (rank, place), so that a megabyte without a space takes n log n ----- */

static bool heap_before(const hd_candidate *a, const hd_candidate *b) {
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static int heap_push(hd_encoder *e, hd_candidate c, hd_error *err) {
    if (hd_grow(&e->heap, &e->heap_cap, e->heap_len + 1, sizeof *e->heap)) return hd_fail_memory(err, e->heap_len, "merging a long word");
    size_t i = e->heap_len++;
    for (; i && heap_before(&c, &e->heap[(i - 1) / 2]); i = (i - 1) / 2) e->heap[i] = e->heap[(i - 1) / 2];
    e->heap[i] = c;
    return 0;
}

static hd_candidate heap_pop(hd_encoder *e) {
    hd_candidate top = e->heap[0], last = e->heap[--e->heap_len];
    size_t i = 0, n = e->heap_len;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= n) break;
        if (child + 1 < n && heap_before(&e->heap[child + 1], &e->heap[child])) child++;
        if (!heap_before(&e->heap[child], &last)) break;
        e->heap[i] = e->heap[child];
        i = child;
    }
    e->heap[i] = last;
    return top;
}

static int push_pair(hd_encoder *e, int32_t at, hd_error *err) {
    const hd_symbol *s = &e->symbols[at];
    if (s->next < 0) return 0;
    hd_candidate c = {.at = at, .merged = -1};
    c.rank = rank_of(e->t, s->id, e->symbols[s->next].id, &c.merged);
    return c.rank == UINT32_MAX ? 0 : heap_push(e, c, err);
}

static int apply_merge(hd_encoder *e, const hd_candidate *c, hd_error *err) {
    hd_symbol *s = &e->symbols[c->at];
    if (s->id < 0 || s->next < 0) return 0;
    int32_t merged = -1;
    hd_symbol *right = &e->symbols[s->next];
    if (rank_of(e->t, s->id, right->id, &merged) != c->rank) return 0; /* stale: one of the two was merged with another since */
    s->id = merged;
    right->id = -1;
    s->next = right->next;
    if (s->next >= 0) e->symbols[s->next].prev = c->at;
    int rc = push_pair(e, c->at, err);
    return rc || s->prev < 0 ? rc : push_pair(e, s->prev, err);
}

/* Merges e->symbols[0..n), whose ids are set, and appends what is left. */
static int merge_long(hd_encoder *e, size_t n, hd_ids *out, hd_error *err) {
    for (size_t i = 0; i < n; i++) {
        e->symbols[i].prev = (int32_t)i - 1;
        e->symbols[i].next = i + 1 < n ? (int32_t)i + 1 : -1;
    }
    e->heap_len = 0;
    int rc = 0;
    for (size_t i = 0; i + 1 < n && !rc; i++) rc = push_pair(e, (int32_t)i, err);
    while (e->heap_len && !rc) {
        hd_candidate c = heap_pop(e);
        rc = apply_merge(e, &c, err);
    }
    if (rc) return rc;
    if (hd_grow(&out->data, &out->cap, out->len + n, sizeof *out->data)) return hd_fail_memory(err, n * sizeof *out->data, "token ids");
    for (int32_t i = n ? 0 : -1; i >= 0; i = e->symbols[i].next) out->data[out->len++] = e->symbols[i].id;
    return 0;
}

/* ---- a word ----------------------------------------------------------------------------------------------------- */

/* The tokens of single bytes into id (stride in bytes between them); bytes without one become unk or vanish. Returns how many. */
static size_t start_ids(const hd_tokenizer *t, const unsigned char *word, size_t n, int32_t *id, size_t stride) {
    size_t count = 0;
    bool unk_before = false;
    if (t->by_char) return hd_spm_start(t, word, n, id, stride);
    for (size_t i = 0; i < n; i++) {
        int32_t v = t->byte_id[word[i]];
        bool unk = v < 0;
        if (unk && (t->unk_id < 0 || (unk_before && t->fuse_unk))) continue;
        *(int32_t *)((char *)id + count++ * stride) = unk ? t->unk_id : v;
        unk_before = unk;
    }
    return count;
}

static int append(hd_ids *out, const int32_t *id, size_t n, hd_error *err) {
    if (out->len + n > out->cap && hd_grow(&out->data, &out->cap, out->len + n, sizeof *out->data))
        return hd_fail_memory(err, n * sizeof *out->data, "token ids");
    for (size_t i = 0; i < n; i++) out->data[out->len + i] = id[i];
    out->len += n;
    return 0;
}

static int encode_word(hd_encoder *e, const unsigned char *word, size_t n, hd_ids *out, hd_error *err) {
    const hd_tokenizer *t = e->t;
    if (t->unigram) return hd_unigram_word(e, word, n, out, err);
    if (t->ignore_merges) {
        int32_t whole = hd_string_table_get(&t->by_bytes, (const char *)word, n);
        if (whole >= 0) return append(out, &whole, 1, err);
    }
    if (n <= SHORT_WORD) {
        int32_t id[SHORT_WORD];
        int count = (int)start_ids(t, word, n, id, sizeof *id);
        return append(out, id, (size_t)merge_short(t, id, count), err);
    }
    if (hd_grow(&e->symbols, &e->symbol_cap, n, sizeof *e->symbols)) return hd_fail_memory(err, n * sizeof *e->symbols, "merging a long word");
    return merge_long(e, start_ids(t, word, n, &e->symbols->id, sizeof *e->symbols), out, err);
}

int hd_bpe_word(hd_encoder *e, const unsigned char *word, size_t n, hd_ids *out, hd_error *err) {
    if (!n) return 0;
    if (n > HD_CACHE_KEY) return encode_word(e, word, n, out, err);
    unsigned char key[HD_CACHE_KEY] = {0};
    memcpy(key, word, n);
    uint64_t hash = hd_bytes_hash(word, n);
    hd_cached_word *slot = &e->cache[hash >> 7 & (HD_CACHE_SLOTS - 1)];
    if (slot->size == n && !memcmp(slot->key, key, HD_CACHE_KEY)) return append(out, slot->ids, slot->count, err);
    size_t before = out->len;
    int rc = encode_word(e, word, n, out, err);
    size_t count = out->len - before;
    if (rc || !count || count > HD_CACHE_IDS) return rc;
    slot->size = (uint8_t)n;
    slot->count = (uint8_t)count;
    memcpy(slot->key, key, sizeof key);
    memcpy(slot->ids, out->data + before, count * sizeof *slot->ids);
    return 0;
}
