#include <stdlib.h>
#include <string.h>
#include "serve/constrain_int.h"

typedef struct spelling { const unsigned char *bytes; int32_t id; uint8_t n; } spelling;

static int by_bytes(const void *x, const void *y)
{
    const spelling *a = x, *b = y;
    int order = memcmp(a->bytes, b->bytes, a->n < b->n ? a->n : b->n);
    if (order) return order;
    return a->n != b->n ? (a->n > b->n) - (a->n < b->n) : (a->id > b->id) - (a->id < b->id);
}

static bool is_eos(const hd_vocabulary *v, int32_t id)
{
    for (int i = 0; i < v->n_eos; i++)
        if (v->eos[i] == id) return true;
    return false;
}

/* Tokens that stand for text, sorted by their bytes. */
static size_t list_tokens(hd_vocabulary *v, const hd_tokenizer *t, spelling *list)
{
    size_t n = 0, size;
    for (int32_t id = 0; id < v->size; id++) {
        const char *bytes = hd_tokenizer_bytes(t, id, &size);
        if (!bytes || !size || size > HD_TOKEN_BYTES || hd_tokenizer_is_special(t, id) || is_eos(v, id)) continue;
        v->bytes[id] = bytes;
        v->lengths[id] = (uint8_t)size;
        if (size == 1) v->spelled[(unsigned char)bytes[0]] = true;
        list[n++] = (spelling){(const unsigned char *)bytes, id, (uint8_t)size};
    }
    qsort(list, n, sizeof *list, by_bytes);
    return n;
}

static int shared(const spelling *a, const spelling *b)
{
    int n = 0, most = a->n < b->n ? a->n : b->n;
    while (n < most && a->bytes[n] == b->bytes[n]) n++;
    return n;
}

/* Sorted tokens in preorder: each adds a node for every byte it doesn't share with the one before. */
static void add_nodes(hd_vocabulary *v, const spelling *list, int32_t n)
{
    int32_t path[HD_TOKEN_BYTES + 1] = {0};
    int depth = 0;
    v->nodes[v->n_nodes++] = (hd_trie_node){0};
    for (int32_t i = 0; i < n; i++) {
        int common = i ? shared(&list[i - 1], &list[i]) : 0;
        for (; depth > common; depth--) v->nodes[path[depth]].size = v->n_nodes - path[depth];
        for (; depth < list[i].n; depth++) {
            path[depth + 1] = v->n_nodes;
            v->nodes[v->n_nodes++] = (hd_trie_node){.first = i, .byte = list[i].bytes[depth], .depth = (uint8_t)(depth + 1)};
        }
        v->order[i] = list[i].id;
        v->longest = list[i].n > v->longest ? list[i].n : v->longest;
    }
    for (; depth >= 0; depth--) v->nodes[path[depth]].size = v->n_nodes - path[depth];
    v->nodes[v->n_nodes] = (hd_trie_node){.first = n};
}

/* Each node's set goes to the node above it, from the last to the first. */
static void add_pairs(hd_vocabulary *v)
{
    int32_t path[HD_TOKEN_BYTES + 1] = {0};
    for (int32_t i = 0; i < v->n_nodes; i++) {
        const hd_trie_node *t = &v->nodes[i];
        path[t->depth] = i;
        uint64_t pair = t->byte < 128 ? 1ull << t->byte / 2 : UINT64_MAX;
        for (int d = t->depth - 1; d >= 0 && (v->nodes[path[d]].pairs & pair) != pair; d--) v->nodes[path[d]].pairs |= pair;
    }
}

static int build(hd_vocabulary *v, const hd_tokenizer *t, hd_error *err)
{
    size_t size = (size_t)v->size, bytes = 1;
    spelling *list = hd_malloc((size + 1) * sizeof *list);
    v->bytes = hd_calloc(size + 1, sizeof *v->bytes);
    v->lengths = hd_calloc(size + 1, 1);
    v->order = hd_calloc(size + 1, sizeof *v->order);
    int rc = list && v->bytes && v->lengths && v->order ? 0 : hd_fail_memory(err, size * 32, "a vocabulary");
    size_t n = rc ? 0 : list_tokens(v, t, list);
    for (size_t i = 0; i < n; i++) bytes += (size_t)(list[i].n - (i ? shared(&list[i - 1], &list[i]) : 0));
    if (!rc && bytes > INT32_MAX / 2) rc = hd_fail(err, HD_EMEMCAP, "a vocabulary with more than 2^30 bytes of tokens");
    if (!rc && !(v->nodes = hd_malloc((bytes + 1) * sizeof *v->nodes))) rc = hd_fail_memory(err, bytes * sizeof *v->nodes, "a vocabulary");
    if (!rc) add_nodes(v, list, (int32_t)n);
    if (!rc) add_pairs(v);
    hd_free(list);
    return rc;
}

hd_vocabulary *hd_vocabulary_new(const hd_tokenizer *t, const int32_t *eos, int n_eos, hd_error *err)
{
    int32_t size = hd_tokenizer_vocab_size(t);
    for (int i = 0; i < n_eos; i++)
        if (eos[i] < 0 || eos[i] >= size) return hd_fail(err, HD_EINVAL, "token %d, which ends an answer, isn't in the vocabulary", eos[i]), NULL;
    if (n_eos < 1) return hd_fail(err, HD_EINVAL, "without a token that ends an answer, answers can't be constrained"), NULL;
    hd_vocabulary *v = hd_calloc(1, sizeof *v);
    if (!v || !(v->eos = hd_malloc((size_t)n_eos * sizeof *eos))) {
        hd_free(v);
        return hd_fail_memory(err, sizeof *v, "a vocabulary"), NULL;
    }
    memcpy(v->eos, eos, (size_t)n_eos * sizeof *eos);
    v->n_eos = n_eos;
    v->size = size;
    if (!build(v, t, err)) return v;
    hd_vocabulary_free(v);
    return NULL;
}

void hd_vocabulary_free(hd_vocabulary *v)
{
    if (!v) return;
    hd_free(v->nodes);
    hd_free(v->order);
    hd_free(v->bytes);
    hd_free(v->lengths);
    hd_free(v->eos);
    hd_free(v);
}

int64_t hd_vocabulary_size(const hd_vocabulary *v) { return v->size; }
