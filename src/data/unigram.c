/* unigram.c: SentencePiece's unigram model (Kudo, "Subword Regularization", ACL 2018), as Hugging Face `tokenizers` runs it: of all ways to write a word as
 * pieces the one whose scores sum to the most (Viterbi). A character that is no piece by itself may be unknown, at a score below all others; neighbours that
 * are unknown become one, and bytes where every one has a piece. */
#include <stdlib.h>
#include <string.h>
#include "data/tokenizer_int.h"

#define UNKNOWN_PENALTY 10.0 /* below the lowest score (kUnkPenalty) */

typedef struct piece { const char *text; uint32_t size; int32_t id; double score; } piece;

struct hd_unigram {
    piece *pieces; /* [count] sorted by text, so that those with one beginning stand together */
    size_t count;
    size_t first[257]; /* where those that begin with a byte do */
    const double *scores; /* [id_count] */
    double unknown; /* score of an unknown character */
    bool look_up;   /* what is unknown may be a token by its text */
    int32_t listed; /* ids that the model has */
};

/* ---- reading ---- */

static int compare_pieces(const void *a, const void *b) {
    const piece *x = a, *y = b;
    size_t n = x->size < y->size ? x->size : y->size;
    int order = memcmp(x->text, y->text, n);
    return order ? order : (x->size > y->size) - (x->size < y->size);
}

/* The vocabulary as the "vocab" of other models: {text: id}. Of two with one text the last counts. */
json_t *hd_unigram_vocab(const json_t *list, const char *where, hd_error *err) {
    json_t *out = json_object();
    const json_t *item;
    size_t i;
    if (!json_is_array(list) || !out) hd_fail(err, HD_EFORMAT, "%s: \"vocab\" must be a list", where);
    json_array_foreach(list, i, item) {
        const json_t *text = json_array_get(item, 0), *score = json_array_get(item, 1);
        bool sound = json_is_string(text) && strlen(json_string_value(text)) == json_string_length(text) && json_is_number(score);
        if (!sound) hd_fail(err, HD_EFORMAT, "%s: vocab[%zu] must be [text, score]", where, i);
        if (!sound || json_object_set_new(out, json_string_value(text), json_integer((json_int_t)i))) break;
    }
    if (json_is_array(list) && out && i == json_array_size(list)) return out;
    hd_fail_memory(err, 0, "a tokenizer"); /* unless something was said already */
    json_decref(out);
    return NULL;
}

static int read_unknown(hd_tokenizer *t, const json_t *model, const char *where, hd_error *err) {
    const json_t *v = json_object_get(model, "unk_id");
    if (!v || json_is_null(v)) return 0;
    if (!json_is_integer(v) || json_integer_value(v) < 0 || (size_t)json_integer_value(v) >= json_array_size(json_object_get(model, "vocab")))
        return hd_fail(err, HD_EFORMAT, "%s: \"unk_id\" is not in the vocabulary", where);
    t->unk_id = (int32_t)json_integer_value(v);
    if (!t->tokens[t->unk_id].text) return hd_fail(err, HD_EUNSUPPORTED, "%s: \"unk_id\" of a token whose text another one has isn't supported", where);
    return 0;
}

/* First of pieces[lo..hi), which agree on their first `depth` bytes, whose byte at depth is >= byte. */
static size_t narrow(const piece *pieces, size_t lo, size_t hi, size_t depth, int byte) {
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        int at = depth < pieces[mid].size ? (unsigned char)pieces[mid].text[depth] : -1;
        if (at < byte) lo = mid + 1;
        else hi = mid;
    }
    return lo;
}

int hd_unigram_build(hd_tokenizer *t, const double *scores, double least, bool look_up, hd_error *err) {
    size_t n = (size_t)t->id_count;
    hd_unigram *u = hd_arena_alloc(&t->arena, sizeof *u);
    piece *pieces = u ? hd_arena_alloc(&t->arena, (n + 1) * sizeof *pieces) : NULL;
    if (!pieces) return hd_fail_memory(err, n * sizeof *pieces, "vocabulary of a tokenizer");
    for (size_t i = 0; i < n; i++) {
        const hd_token *k = &t->tokens[i];
        if (k->text && k->text_size && !k->added) pieces[u->count++] = (piece){k->text, k->text_size, (int32_t)i, scores[i]};
    }
    if (u->count) qsort(pieces, u->count, sizeof *pieces, compare_pieces);
    *u = (hd_unigram){.pieces = pieces, .count = u->count, .scores = scores, .unknown = least - UNKNOWN_PENALTY, .look_up = look_up, .listed = t->id_count};
    for (int byte = 0; byte <= 256; byte++) u->first[byte] = narrow(pieces, 0, u->count, 0, byte);
    t->unigram = u;
    return 0;
}

const double *hd_unigram_scores(const hd_tokenizer *t, int32_t *listed) {
    if (listed) *listed = t->unigram->listed;
    return t->unigram->scores;
}

int hd_unigram_read(hd_tokenizer *t, const json_t *model, const char *where, hd_error *err) {
    const json_t *list = json_object_get(model, "vocab"), *item;
    double *scores = hd_arena_alloc(&t->arena, ((size_t)t->id_count + 1) * sizeof *scores), least = 0;
    size_t i;
    if (!scores) return hd_fail_memory(err, (size_t)t->id_count * sizeof *scores, "vocabulary of a tokenizer");
    json_array_foreach(list, i, item) {
        scores[i] = json_number_value(json_array_get(item, 1));
        if (!i || scores[i] < least) least = scores[i];
    }
    int rc = hd_unigram_build(t, scores, least, true, err);
    if (rc) return rc;
    t->unigram->listed = (int32_t)json_array_size(list);
    return read_unknown(t, model, where, err);
}

/* ---- a word ---- */

static void reach(hd_path_node *node, double score, size_t from, int32_t id) {
    if (node->from >= 0 && score <= node->score) return;
    *node = (hd_path_node){.score = score, .from = (int32_t)from, .id = id};
}

/* Best ways on from place `at`, whose character has `length` bytes. */
static void step(const hd_tokenizer *t, hd_path_node *path, const unsigned char *word, size_t n, size_t at, size_t length) {
    const hd_unigram *u = t->unigram;
    bool single = false;
    size_t lo = u->first[word[at]], hi = u->first[word[at] + 1];
    for (size_t depth = 0; at + depth < n; depth++) {
        if (depth) lo = narrow(u->pieces, lo, hi, depth, word[at + depth]);
        if (depth) hi = narrow(u->pieces, lo, hi, depth, word[at + depth] + 1);
        if (lo >= hi) break;
        if (u->pieces[lo].size != depth + 1) continue;
        reach(&path[at + depth + 1], path[at].score + u->pieces[lo].score, at, u->pieces[lo].id);
        single |= depth + 1 == length;
    }
    if (!single) reach(&path[at + length], path[at].score + u->unknown, at, -1);
}

/* Bytes word[from..to) that no piece covers. */
static int add_unknown(const hd_tokenizer *t, const unsigned char *word, size_t from, size_t to, hd_ids *out, hd_error *err) {
    int32_t whole = t->unigram->look_up ? hd_string_table_get(&t->by_text, (const char *)word + from, to - from) : -1;
    bool bytes = t->byte_pieces;
    for (size_t i = from; i < to && bytes; i++) bytes = t->byte_id[word[i]] >= 0;
    if (whole >= 0 && !t->tokens[whole].added) return hd_ids_append(out, whole, err);
    if (!bytes && t->unk_id < 0) return hd_fail(err, HD_EINVAL, "the tokenizer has no token for a character of this text, and none for what is unknown");
    if (!bytes) return hd_ids_append(out, t->unk_id, err);
    int rc = 0;
    for (size_t i = from; i < to && !rc; i++) rc = hd_ids_append(out, t->byte_id[word[i]], err);
    return rc;
}

int hd_unigram_word(hd_encoder *e, const unsigned char *word, size_t n, hd_ids *out, hd_error *err) {
    const hd_tokenizer *t = e->t;
    if (hd_grow(&e->path, &e->path_cap, n + 1, sizeof *e->path)) return hd_fail_memory(err, n * sizeof *e->path, "a long word");
    hd_path_node *path = e->path;
    for (size_t i = 0; i <= n; i++) path[i] = (hd_path_node){.from = -1, .id = -1};
    for (size_t at = 0, length; at < n; at += length) {
        for (length = 1; at + length < n && (word[at + length] & 0xc0) == 0x80;) length++;
        step(t, path, word, n, at, length);
    }
    for (int32_t at = (int32_t)n, next = -1; at >= 0; next = at, at = at ? path[at].from : -1) path[at].next = next; /* the way back, turned round */
    int rc = 0;
    for (size_t at = 0; at < n && !rc;) {
        size_t end = (size_t)path[at].next;
        bool unknown = path[end].id < 0 || path[end].id == t->unk_id;
        while (unknown && end < n && (path[path[end].next].id < 0 || path[path[end].next].id == t->unk_id)) end = (size_t)path[end].next;
        rc = unknown ? add_unknown(t, word, at, end, out, err) : hd_ids_append(out, path[end].id, err);
        at = end;
    }
    return rc;
}
