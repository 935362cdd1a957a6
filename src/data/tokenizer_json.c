/* tokenizer_json.c: reading a tokenizer.json: the model and the added tokens. The small sections: tokenizer_sections.c. */
#include <string.h>
#include "base/file.h"
#include "base/json.h"
#include "data/tokenizer_int.h"

enum { MAX_JSON = 512 << 20, MAX_TEXT = 1 << 20 };

/* Ids may have holes, but not so many that a small file asks for much memory. */
static int64_t most_id(size_t tokens) {
    int64_t most = (int64_t)tokens * 8 + 65536;
    return most < INT32_MAX ? most : INT32_MAX - 1;
}

/* ---- vocabulary ------------------------------------------------------------------------------------------------- */

static int check_vocab(const json_t *vocab, int64_t most, int64_t *largest, const char *name, hd_error *err) {
    const char *key;
    json_t *value;
    *largest = -1;
    json_object_foreach((json_t *)vocab, key, value) {
        if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) > most)
            return hd_fail(err, HD_EFORMAT, "%s: model.vocab: \"%.60s\" has no sensible id", name, key);
        if (json_integer_value(value) > *largest) *largest = json_integer_value(value);
    }
    return 0;
}

/* Room for the tokens of ids 0 .. largest. */
static int make_tokens(hd_tokenizer *t, int64_t largest, hd_error *err) {
    t->id_count = (int32_t)(largest + 1);
    t->tokens = hd_arena_alloc(&t->arena, (size_t)t->id_count * sizeof *t->tokens);
    return t->tokens ? 0 : hd_fail_memory(err, (size_t)t->id_count * sizeof *t->tokens, "vocabulary of a tokenizer");
}

static int set_text(hd_tokenizer *t, hd_token *k, const char *text, size_t n, hd_error *err) {
    char *copy = hd_arena_alloc(&t->arena, n + 1);
    if (!copy) return hd_fail_memory(err, n, "vocabulary of a tokenizer");
    memcpy(copy, text, n);
    k->text = copy;
    k->text_size = (uint32_t)n;
    return 0;
}

static int read_vocab(hd_tokenizer *t, const json_t *vocab, const char *name, hd_error *err) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)vocab, key, value) {
        hd_token *k = &t->tokens[json_integer_value(value)];
        if (k->text)
            return hd_fail(err, HD_EFORMAT, "%s: model.vocab: \"%.60s\" and \"%.60s\" have the same id", name, k->text, key);
        if (strlen(key) > MAX_TEXT) return hd_fail(err, HD_EFORMAT, "%s: model.vocab: a token of over a MiB", name);
        if (set_text(t, k, key, strlen(key), err)) return HD_ENOMEM;
    }
    return 0;
}

/* ---- added tokens ----------------------------------------------------------------------------------------------- */

/* The id that `tokenizers` gives: the vocabulary's own, else one after all that are there. */
static int64_t expected_id(const json_t *vocab, const char *content, int64_t largest_added) {
    const json_t *known = json_object_get(vocab, content);
    if (known) return json_integer_value(known);
    int64_t size = (int64_t)json_object_size(vocab);
    return largest_added >= size ? largest_added + 1 : size;
}

static int read_added_one(hd_tokenizer *t, const json_t *j, hd_added_token *a, const char *where, hd_error *err) {
    static const char *const needed[] = {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"};
    int64_t id = -1;
    const char *content = NULL;
    if (!json_is_object(j)) return hd_fail(err, HD_EFORMAT, "%s: must be an object", where);
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++)
        if (hd_json_need(j, needed[i], where, err)) return HD_EFORMAT;
    if (hd_json_int(j, "id", 0, INT32_MAX - 1, &id, where, err) || hd_json_string(j, "content", &content, where, err)
        || hd_json_bool(j, "single_word", &a->single_word, where, err) || hd_json_bool(j, "lstrip", &a->lstrip, where, err)
        || hd_json_bool(j, "rstrip", &a->rstrip, where, err) || hd_json_bool(j, "normalized", &a->normalized, where, err)
        || hd_json_bool(j, "special", &a->special, where, err))
        return HD_EFORMAT;
    if (!content) return hd_fail(err, HD_EFORMAT, "%s: \"content\" must be a string", where);
    a->content_size = json_string_length(json_object_get(j, "content"));
    if (strlen(content) != a->content_size || a->content_size > MAX_TEXT) return hd_fail(err, HD_EUNSUPPORTED, "%s: a NUL in its text, or over a MiB", where);
    a->content = hd_arena_strdup(&t->arena, content);
    a->id = (int32_t)id;
    return a->content ? 0 : hd_fail_memory(err, a->content_size, "added tokens");
}

/* Replaces an earlier one of the same content, as the last declaration counts. */
static void keep_added(hd_tokenizer *t, const hd_added_token *a) {
    for (size_t i = 0; i < t->added_count; i++)
        if (t->added[i].id == a->id) {
            t->added[i] = *a;
            return;
        }
    t->added[t->added_count++] = *a;
}

static bool added_before(const hd_tokenizer *t, const hd_added_token *a) {
    for (size_t i = 0; i < t->added_count; i++)
        if (t->added[i].id == a->id && !strcmp(t->added[i].content, a->content)) return true;
    return false;
}

/* Reads added_tokens; *largest grows to their largest id. */
static int read_added(hd_tokenizer *t, const json_t *list, const json_t *vocab, int64_t *largest, const char *name, hd_error *err) {
    size_t n = json_array_size(list);
    if (list && !json_is_array(list) && !json_is_null(list)) return hd_fail(err, HD_EFORMAT, "%s: \"added_tokens\" must be a list", name);
    if (n > 20000) return hd_fail(err, HD_EUNSUPPORTED, "%s: %zu added tokens are more than 20000", name, n);
    t->added = hd_arena_alloc(&t->arena, (n + 1) * sizeof *t->added);
    if (!t->added) return hd_fail_memory(err, n * sizeof *t->added, "added tokens");
    int64_t largest_added = -1;
    for (size_t i = 0; i < n; i++) {
        char where[300];
        snprintf(where, sizeof where, "%.200s: added_tokens[%zu]", name, i);
        hd_added_token a = {0};
        int rc = read_added_one(t, json_array_get(list, i), &a, where, err);
        if (rc) return rc;
        if (!a.content_size) continue;
        int64_t expected = expected_id(vocab, a.content, largest_added);
        if (a.id != expected && !added_before(t, &a))
            return hd_fail(err, HD_EFORMAT, "%s: \"%.60s\" has id %d, but the vocabulary makes it %lld", where, a.content, a.id, (long long)expected);
        keep_added(t, &a);
        if (a.id > largest_added) largest_added = a.id;
    }
    if (largest_added > *largest) *largest = largest_added;
    return 0;
}

static int place_added(hd_tokenizer *t, hd_error *err) {
    for (size_t i = 0; i < t->added_count; i++) {
        const hd_added_token *a = &t->added[i];
        hd_token *k = &t->tokens[a->id];
        k->special = a->special;
        if (k->text && !strcmp(k->text, a->content)) continue; /* a token of the model, marked */
        if (k->text) return hd_fail(err, HD_EFORMAT, "added token \"%.60s\" has the id of \"%.60s\"", a->content, k->text);
        if (set_text(t, k, a->content, a->content_size, err)) return HD_ENOMEM;
        k->added = true;
    }
    return 0;
}

/* ---- merges ----------------------------------------------------------------------------------------------------- */

/* The two halves of "a b" or ["a", "b"]. */
static int merge_halves(const json_t *j, const char **a, size_t *na, const char **b, size_t *nb) {
    if (json_is_array(j) && json_array_size(j) == 2) {
        const json_t *x = json_array_get(j, 0), *y = json_array_get(j, 1);
        if (!json_is_string(x) || !json_is_string(y)) return HD_EFORMAT;
        *a = json_string_value(x);
        *b = json_string_value(y);
        *na = json_string_length(x);
        *nb = json_string_length(y);
        return 0;
    }
    const char *text = json_string_value(j), *space = text ? strchr(text, ' ') : NULL;
    if (!space || strchr(space + 1, ' ')) return HD_EFORMAT;
    *a = text;
    *na = (size_t)(space - text);
    *b = space + 1;
    *nb = strlen(space + 1);
    return *na + 1 + *nb == json_string_length(j) ? 0 : HD_EFORMAT;
}

static int read_merges(hd_tokenizer *t, const json_t *list, const char *name, hd_error *err) {
    if (!json_is_array(list)) return hd_fail(err, HD_EFORMAT, "%s: model: \"merges\" must be a list", name);
    size_t n = json_array_size(list);
    if (n > INT32_MAX) return hd_fail(err, HD_EFORMAT, "%s: model.merges: too many", name);
    t->merge_order = hd_arena_alloc(&t->arena, (n + 1) * sizeof *t->merge_order);
    if (!t->merge_order) return hd_fail_memory(err, n * sizeof *t->merge_order, "merges of a tokenizer");
    for (size_t i = 0; i < n; i++) {
        const json_t *j = json_array_get(list, i);
        const char *a, *b;
        size_t na, nb;
        if (json_is_string(j) && !strncmp(json_string_value(j), "#version", 8)) continue;
        if (merge_halves(j, &a, &na, &b, &nb)) return hd_fail(err, HD_EFORMAT, "%s: model.merges[%zu]: must be \"a b\" or [\"a\", \"b\"]", name, i);
        int32_t left = hd_string_table_get(&t->by_text, a, na), right = hd_string_table_get(&t->by_text, b, nb);
        if (left < 0 || right < 0 || t->tokens[left].added || t->tokens[right].added)
            return hd_fail(err, HD_EFORMAT, "%s: model.merges[%zu]: \"%.60s\" is not in the vocabulary", name, i,
                           left < 0 || t->tokens[left].added ? a : b);
        t->merge_order[t->merge_count++] = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    }
    return 0;
}

/* ---- the model -------------------------------------------------------------------------------------------------- */

static int refuse_affix(const json_t *model, const char *key, const char *where, hd_error *err) {
    const char *text = NULL;
    if (hd_json_string(model, key, &text, where, err)) return HD_EFORMAT;
    return text && *text ? hd_fail(err, HD_EUNSUPPORTED, "%s: \"%s\" isn't supported", where, key) : 0;
}

static bool is_unigram(const json_t *model) {
    const char *type = json_string_value(json_object_get(model, "type"));
    return type && !strcmp(type, "Unigram");
}

static int read_options(hd_tokenizer *t, const json_t *model, const char *where, hd_error *err) {
    const char *type = "BPE";
    double dropout = 0;
    if (!json_is_object(model)) return hd_fail(err, HD_EFORMAT, "%s: must be an object", where);
    if (hd_json_string(model, "type", &type, where, err)) return HD_EFORMAT;
    if (is_unigram(model)) return hd_json_bool(model, "byte_fallback", &t->byte_pieces, where, err);
    if (strcmp(type, "BPE")) return hd_fail(err, HD_EUNSUPPORTED, "%s: type \"%.40s\" isn't supported (BPE and Unigram are)", where, type);
    if (hd_json_number(model, "dropout", 0, 1, &dropout, where, err)) return HD_EFORMAT;
    if (dropout != 0) return hd_fail(err, HD_EUNSUPPORTED, "%s: \"dropout\" isn't supported", where);
    if (refuse_affix(model, "continuing_subword_prefix", where, err) || refuse_affix(model, "end_of_word_suffix", where, err))
        return HD_EUNSUPPORTED;
    if (hd_json_bool(model, "fuse_unk", &t->fuse_unk, where, err) || hd_json_bool(model, "ignore_merges", &t->ignore_merges, where, err)) return HD_EFORMAT;
    if (t->by_char && t->ignore_merges) return hd_fail(err, HD_EUNSUPPORTED, "%s: \"ignore_merges\" isn't supported beside \"byte_fallback\"", where);
    return 0;
}

/* Whether a pre-tokenizer is, or has among its parts, one of this type. */
static bool has_part(const json_t *j, const char *type, int depth) {
    const json_t *item;
    size_t i;
    const char *own = json_string_value(json_object_get(j, "type"));
    if (own && !strcmp(own, type)) return true;
    if (depth > 8 || !json_is_array(json_object_get(j, "pretokenizers"))) return false;
    json_array_foreach(json_object_get(j, "pretokenizers"), i, item)
        if (has_part(item, type, depth + 1)) return true;
    return false;
}

/* SentencePiece's BPE as `tokenizers` writes it: characters, then bytes, without the byte-level alphabet. */
static bool is_by_char(const json_t *root, const json_t *model) {
    return json_is_true(json_object_get(model, "byte_fallback")) && !has_part(json_object_get(root, "pre_tokenizer"), "ByteLevel", 0);
}

/* What bytes without a token of their own become. */
static int read_unknown(hd_tokenizer *t, const json_t *model, const char *where, hd_error *err) {
    const char *unk = NULL;
    bool fallback = false, complete = true;
    if (hd_json_string(model, "unk_token", &unk, where, err) || hd_json_bool(model, "byte_fallback", &fallback, where, err)) return HD_EFORMAT;
    for (int i = 0; i < 256; i++) complete &= t->byte_id[i] >= 0;
    if (complete) return 0; /* neither is ever used */
    if (fallback && !t->by_char) return hd_fail(err, HD_EUNSUPPORTED, "%s: \"byte_fallback\" isn't supported where bytes are missing in the vocabulary", where);
    if (!unk) return 0;
    t->unk_id = hd_tokenizer_id(t, unk);
    if (t->unk_id >= 0 && !t->tokens[t->unk_id].added) return 0;
    return hd_fail(err, HD_EFORMAT, "%s: \"unk_token\" \"%.60s\" is not in the vocabulary, which lacks bytes", where, unk);
}

static int read_tokens(hd_tokenizer *t, const json_t *root, const json_t *vocab, const char *name, hd_error *err) {
    int64_t largest;
    int rc;
    size_t tokens = json_object_size(vocab) + json_array_size(json_object_get(root, "added_tokens"));
    if ((rc = check_vocab(vocab, most_id(tokens), &largest, name, err))) return rc;
    if ((rc = read_added(t, json_object_get(root, "added_tokens"), vocab, &largest, name, err))) return rc;
    if ((rc = make_tokens(t, largest, err))) return rc;
    if ((rc = read_vocab(t, vocab, name, err))) return rc;
    return (rc = place_added(t, err)) ? rc : hd_tokenizer_index(t, err);
}

static int read_unigram(hd_tokenizer *t, const json_t *root, const json_t *model, const char *name, const char *where, hd_error *err) {
    json_t *vocab = hd_unigram_vocab(json_object_get(model, "vocab"), where, err);
    int rc = vocab ? read_tokens(t, root, vocab, name, err) : HD_EFORMAT;
    json_decref(vocab);
    return rc ? rc : hd_unigram_read(t, model, where, err);
}

static int read_model(hd_tokenizer *t, const json_t *root, const char *name, hd_error *err) {
    const json_t *model = json_object_get(root, "model"), *vocab = json_object_get(model, "vocab");
    char where[256];
    snprintf(where, sizeof where, "%.200s: model", name);
    t->byte_pieces = is_by_char(root, model);
    t->by_char = t->byte_pieces || is_unigram(model);
    int rc = read_options(t, model, where, err);
    if (rc) return rc;
    if (is_unigram(model)) return read_unigram(t, root, model, name, where, err);
    if (!json_is_object(vocab)) return hd_fail(err, HD_EFORMAT, "%s: \"vocab\" must be an object", where);
    if ((rc = read_tokens(t, root, vocab, name, err))) return rc;
    if ((rc = read_unknown(t, model, where, err)) || (rc = read_merges(t, json_object_get(model, "merges"), name, err))) return rc;
    return hd_tokenizer_index_merges(t, err);
}

/* ---- the file --------------------------------------------------------------------------------------------------- */

hd_tokenizer *hd_tokenizer_from_root(json_t *root, const char *name, hd_error *err) {
    hd_tokenizer *t = root ? hd_tokenizer_alloc(err) : NULL;
    if (!t) goto fail;
    if (!json_is_object(root)) {
        hd_fail(err, HD_EFORMAT, "%s: a tokenizer must be a JSON object", name);
        goto fail;
    }
    if (read_model(t, root, name, err)) goto fail;
    t->sections = root;
    root = NULL;
    json_object_del(t->sections, "model");
    json_object_del(t->sections, "added_tokens");
    if (hd_sections_read(t, name, err) || hd_tokenizer_index_added(t, err)) goto fail;
    return t;
fail:
    if (err && !err->code) hd_fail(err, HD_EFORMAT, "%s: not a tokenizer", name);
    json_decref(root);
    hd_tokenizer_free(t);
    return NULL;
}

hd_tokenizer *hd_tokenizer_parse(const char *json, size_t n, const char *name, hd_error *err) {
    return hd_tokenizer_from_root(hd_json_parse(json, n, name, err), name, err);
}

hd_tokenizer *hd_tokenizer_load(const char *path, hd_error *err) {
    hd_str text;
    hd_str_init(&text);
    hd_tokenizer *t = hd_file_read(&text, path, MAX_JSON, err) ? NULL : hd_tokenizer_parse(text.data, text.len, path, err);
    hd_str_free(&text);
    return t;
}
