/* tokenizer_sections.c: the normalizer, pre_tokenizer, post_processor and decoder of a tokenizer.json, one table of readers for each.
 * A component that isn't in its table is refused by name. */
#include <string.h>
#include "base/json.h"
#include "data/tokenizer_int.h"

typedef struct reader_state {
    hd_tokenizer *t;
    const char *where;  /* "tokenizer.json: pre_tokenizer" */
    bool byte_level;    /* the pre-tokenizer had its ByteLevel */
    size_t step_cap, normalizer_cap, before_cap, after_cap;
    int depth;
    hd_error *err;
} reader_state;

typedef int read_fn(reader_state *r, const json_t *j);
typedef struct component { const char *type; read_fn *read; } component;

static int dispatch(reader_state *r, const json_t *j, const component *table) {
    const char *type = NULL;
    if (!json_is_object(j)) return hd_fail(r->err, HD_EFORMAT, "%s: must be an object", r->where);
    if (hd_json_string(j, "type", &type, r->where, r->err)) return HD_EFORMAT;
    if (!type) return hd_fail(r->err, HD_EFORMAT, "%s: \"type\" is missing", r->where);
    for (; table->type; table++)
        if (!strcmp(type, table->type)) return table->read(r, j);
    return hd_fail(r->err, HD_EUNSUPPORTED, "%s: \"%.60s\" isn't supported", r->where, type);
}

static int each(reader_state *r, const json_t *j, const char *key, const component *table) {
    const json_t *list = json_object_get(j, key), *item;
    if (!json_is_array(list)) return hd_fail(r->err, HD_EFORMAT, "%s: \"%s\" must be a list", r->where, key);
    if (r->depth >= 8) return hd_fail(r->err, HD_EFORMAT, "%s: sequences nested too deep", r->where);
    size_t i;
    int rc = 0;
    r->depth++;
    json_array_foreach(list, i, item) {
        if ((rc = dispatch(r, item, table))) break;
    }
    r->depth--;
    return rc;
}

/* Makes room in an arena array that grows one by one (there are only a few). */
static void *push(reader_state *r, void *old, size_t count, size_t *cap, size_t size) {
    if (count < *cap) return old;
    size_t want = *cap ? *cap * 2 : 4;
    void *p = hd_arena_alloc(&r->t->arena, want * size);
    if (!p) {
        hd_fail_memory(r->err, want * size, "a tokenizer");
        return NULL;
    }
    if (count) memcpy(p, old, count * size);
    *cap = want;
    return p;
}

/* ---- normalizer ------------------------------------------------------------------------------------------------- */

static int add_normalizer(reader_state *r, hd_normalizer z) {
    hd_normalizer *list = push(r, r->t->normalizers, r->t->normalizer_count, &r->normalizer_cap, sizeof z);
    if (!list) return HD_ENOMEM;
    r->t->normalizers = list;
    list[r->t->normalizer_count++] = z;
    return 0;
}

/* A string member copied to the arena; HD_EFORMAT when it isn't one. */
static int copy_string(reader_state *r, const json_t *j, const char *key, const char **text, size_t *n) {
    const json_t *v = json_object_get(j, key);
    if (!json_is_string(v)) return hd_fail(r->err, HD_EFORMAT, "%s: \"%s\" must be a string", r->where, key);
    *n = json_string_length(v);
    *text = hd_arena_copy(&r->t->arena, json_string_value(v), *n + 1);
    return *text ? 0 : hd_fail_memory(r->err, *n, "a tokenizer");
}

static bool is_text(const json_t *j, const char *key, const char *text) {
    const char *v = json_string_value(json_object_get(j, key));
    return v && !strcmp(v, text);
}

static int read_nfc(reader_state *r, const json_t *j) {
    (void)j;
    return add_normalizer(r, (hd_normalizer){.kind = HD_NORM_NFC});
}

static int read_prepend(reader_state *r, const json_t *j) {
    hd_normalizer z = {.kind = HD_NORM_PREPEND};
    int rc = copy_string(r, j, "prepend", &z.to, &z.to_size);
    return rc ? rc : add_normalizer(r, z);
}

static int read_replace(reader_state *r, const json_t *j) {
    hd_normalizer z = {.kind = HD_NORM_REPLACE};
    const json_t *pattern = json_object_get(j, "pattern");
    bool spaces = is_text(pattern, "Regex", " {2,}");
    if (!spaces && !json_object_get(pattern, "String"))
        return hd_fail(r->err, HD_EUNSUPPORTED, "%s: Replace by a regular expression isn't supported", r->where);
    if (spaces) {
        z.kind = HD_NORM_SPACES;
        int bad = copy_string(r, j, "content", &z.to, &z.to_size);
        return bad ? bad : add_normalizer(r, z);
    }
    int rc = copy_string(r, pattern, "String", &z.from, &z.from_size);
    if (!rc) rc = copy_string(r, j, "content", &z.to, &z.to_size);
    if (!rc && !z.from_size) return hd_fail(r->err, HD_EUNSUPPORTED, "%s: Replace of an empty string isn't supported", r->where);
    return rc ? rc : add_normalizer(r, z);
}

static int read_strip(reader_state *r, const json_t *j) {
    hd_normalizer z = {.kind = HD_NORM_STRIP, .left = true, .right = true};
    if (hd_json_bool(j, "strip_left", &z.left, r->where, r->err) || hd_json_bool(j, "strip_right", &z.right, r->where, r->err)) return HD_EFORMAT;
    return add_normalizer(r, z);
}

static int read_precompiled(reader_state *r, const json_t *j) {
    hd_normalizer z = {.kind = HD_NORM_PRECOMPILED};
    const json_t *map = json_object_get(j, "precompiled_charsmap");
    if (!json_is_string(map)) return hd_fail(r->err, HD_EFORMAT, "%s: Precompiled needs a \"precompiled_charsmap\"", r->where);
    int rc = hd_precompiled_read(r->t, json_string_value(map), json_string_length(map), &z.map, r->where, r->err);
    return rc ? rc : add_normalizer(r, z);
}

static int read_normalizer_sequence(reader_state *r, const json_t *j);
static const component normalizers[] = {{"NFC", read_nfc},     {"Prepend", read_prepend},         {"Replace", read_replace},
                                        {"Strip", read_strip}, {"Precompiled", read_precompiled}, {"Sequence", read_normalizer_sequence},
                                        {NULL, NULL}};

static int read_normalizer_sequence(reader_state *r, const json_t *j) {
    return each(r, j, "normalizers", normalizers);
}

/* ---- pre_tokenizer ---------------------------------------------------------------------------------------------- */

static int add_step(reader_state *r, hd_pretok_step s) {
    hd_pretok_step *list = push(r, r->t->steps, r->t->step_count, &r->step_cap, sizeof s);
    if (!list) {
        hd_regex_free(s.match.regex);
        return HD_ENOMEM;
    }
    r->t->steps = list;
    list[r->t->step_count++] = s;
    return 0;
}

static int read_byte_level(reader_state *r, const json_t *j) {
    bool prefix = true, regex = true;
    if (hd_json_bool(j, "add_prefix_space", &prefix, r->where, r->err) || hd_json_bool(j, "use_regex", &regex, r->where, r->err)) return HD_EFORMAT;
    r->byte_level = true;
    if (prefix && add_step(r, (hd_pretok_step){.prefix_space = true})) return HD_ENOMEM;
    if (!regex) return 0;
    return add_step(r, (hd_pretok_step){.match.scan = hd_scanners[HD_PRETOK_GPT2].scan, .behavior = HD_SPLIT_ISOLATED});
}

static int split_behavior(reader_state *r, const char *name, hd_split_behavior *b) {
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    for (int i = 0; i < 5; i++)
        if (name && !strcmp(name, names[i])) {
            *b = (hd_split_behavior)i;
            return 0;
        }
    return hd_fail(r->err, HD_EUNSUPPORTED, "%s: Split behavior \"%.40s\" isn't supported", r->where, name ? name : "null");
}

/* A regular expression of the file: a scanner of our own when it is a known one, else PCRE2. */
static int regex_step(reader_state *r, hd_pretok_step s, const char *pattern, size_t n) {
    for (int i = 0; i < HD_PRETOK_COUNT; i++)
        if (strlen(hd_scanners[i].pattern) == n && !memcmp(hd_scanners[i].pattern, pattern, n)) s.match.scan = hd_scanners[i].scan;
    if (!s.match.scan) s.match.regex = hd_regex_compile(pattern, n, r->where, r->err);
    if (!s.match.scan && !s.match.regex) return HD_EFORMAT;
    bool simple = s.behavior == HD_SPLIT_ISOLATED || s.behavior == HD_SPLIT_REMOVED;
    if (s.match.regex && !simple && hd_regex_may_be_empty(s.match.regex)) {
        hd_regex_free(s.match.regex);
        return hd_fail(r->err, HD_EUNSUPPORTED, "%s: Split by a pattern that matches nothing isn't supported with this behavior", r->where);
    }
    return add_step(r, s);
}

static int read_split(reader_state *r, const json_t *j) {
    hd_pretok_step s = {0};
    const char *behavior = NULL;
    const json_t *pattern = json_object_get(j, "pattern"), *regex = json_object_get(pattern, "Regex");
    if (hd_json_string(j, "behavior", &behavior, r->where, r->err) || hd_json_bool(j, "invert", &s.invert, r->where, r->err)) return HD_EFORMAT;
    int rc = split_behavior(r, behavior, &s.behavior);
    if (rc) return rc;
    if (json_is_string(regex)) return regex_step(r, s, json_string_value(regex), json_string_length(regex));
    if (regex || !json_object_get(pattern, "String"))
        return hd_fail(r->err, HD_EFORMAT, "%s: Split needs a \"pattern\" with \"Regex\" or \"String\"", r->where);
    rc = copy_string(r, pattern, "String", &s.match.literal, &s.match.literal_size);
    if (!rc && !s.match.literal_size) return hd_fail(r->err, HD_EUNSUPPORTED, "%s: Split by an empty string isn't supported", r->where);
    return rc ? rc : add_step(r, s);
}

static int read_digits(reader_state *r, const json_t *j) {
    bool individual = false;
    if (hd_json_bool(j, "individual_digits", &individual, r->where, r->err)) return HD_EFORMAT;
    return regex_step(r, (hd_pretok_step){.behavior = individual ? HD_SPLIT_ISOLATED : HD_SPLIT_CONTIGUOUS}, "\\p{N}", 5);
}

static int read_whitespace(reader_state *r, const json_t *j) {
    static const char words[] = "[\\w\\x{200c}\\x{200d}]+|[^\\w\\x{200c}\\x{200d}\\s]+"; /* \w as the Rust crate `regex` has it */
    (void)j;
    return regex_step(r, (hd_pretok_step){.behavior = HD_SPLIT_REMOVED, .invert = true}, words, sizeof words - 1);
}

static int read_whitespace_split(reader_state *r, const json_t *j) {
    (void)j;
    return regex_step(r, (hd_pretok_step){.behavior = HD_SPLIT_REMOVED}, "\\s", 2);
}

/* prepend_scheme; before it there was add_prefix_space. */
static int metaspace_scheme(reader_state *r, const json_t *j, hd_metaspace *scheme) {
    static const struct { const char *name; hd_metaspace scheme; } schemes[] = {{"always", HD_META_ALWAYS}, {"first", HD_META_FIRST}, {"never", HD_META_NEVER}};
    const char *name = NULL;
    bool prefix = true;
    if (hd_json_string(j, "prepend_scheme", &name, r->where, r->err) || hd_json_bool(j, "add_prefix_space", &prefix, r->where, r->err)) return HD_EFORMAT;
    if (!is_text(j, "replacement", "\xe2\x96\x81"))
        return hd_fail(r->err, HD_EUNSUPPORTED, "%s: Metaspace with another character than U+2581 isn't supported", r->where);
    *scheme = prefix ? HD_META_ALWAYS : HD_META_NEVER;
    for (int i = 0; i < 3 && name; i++)
        if (!strcmp(schemes[i].name, name)) *scheme = schemes[i].scheme, name = NULL;
    return name ? hd_fail(r->err, HD_EFORMAT, "%s: unknown prepend_scheme \"%.40s\"", r->where, name) : 0;
}

static int read_metaspace(reader_state *r, const json_t *j) {
    hd_pretok_step s = {.meta_split = true};
    int rc = metaspace_scheme(r, j, &s.metaspace);
    if (rc || hd_json_bool(j, "split", &s.meta_split, r->where, r->err)) return HD_EFORMAT;
    if (!r->t->by_char) return hd_fail(r->err, HD_EUNSUPPORTED, "%s: Metaspace isn't supported beside byte-level BPE", r->where);
    return add_step(r, s);
}

static int read_pretok_sequence(reader_state *r, const json_t *j);
static const component pretokenizers[] = {
    {"ByteLevel", read_byte_level}, {"Split", read_split}, {"Digits", read_digits}, {"Whitespace", read_whitespace}, {"Metaspace", read_metaspace},
    {"WhitespaceSplit", read_whitespace_split}, {"Sequence", read_pretok_sequence}, {NULL, NULL}};

/* As dispatch; ByteLevel rewrites bytes as other characters, so what would follow it would see those. */
static int read_pretok_one(reader_state *r, const json_t *j) {
    if (r->byte_level) return hd_fail(r->err, HD_EUNSUPPORTED, "%s: a component after ByteLevel isn't supported", r->where);
    return dispatch(r, j, pretokenizers);
}

static int read_pretok_sequence(reader_state *r, const json_t *j) {
    const json_t *list = json_object_get(j, "pretokenizers"), *item;
    size_t i;
    if (!json_is_array(list)) return hd_fail(r->err, HD_EFORMAT, "%s: \"pretokenizers\" must be a list", r->where);
    if (r->depth >= 8) return hd_fail(r->err, HD_EFORMAT, "%s: sequences nested too deep", r->where);
    int rc = 0;
    r->depth++;
    json_array_foreach(list, i, item) {
        if ((rc = read_pretok_one(r, item))) break;
    }
    r->depth--;
    return rc;
}

/* ---- post_processor --------------------------------------------------------------------------------------------- */

static int add_around(reader_state *r, bool after, const json_t *id) {
    hd_tokenizer *t = r->t;
    json_int_t value = json_is_integer(id) ? json_integer_value(id) : -1;
    if (value < 0 || value >= t->id_count || !hd_tokenizer_token(t, (int32_t)value)) /* ids may leave gaps */
        return hd_fail(r->err, HD_EFORMAT, "%s: an id that is not in the vocabulary", r->where);
    int32_t **list = after ? &t->after : &t->before;
    size_t *count = after ? &t->after_count : &t->before_count, *cap = after ? &r->after_cap : &r->before_cap;
    int32_t *p = push(r, *list, *count, cap, sizeof *p);
    if (!p) return HD_ENOMEM;
    *list = p;
    p[(*count)++] = (int32_t)value;
    return 0;
}

/* One piece of a template: a special token's ids, or the text itself. */
static int template_piece(reader_state *r, const json_t *piece, const json_t *specials, bool *seen_text) {
    const json_t *special = json_object_get(piece, "SpecialToken"), *sequence = json_object_get(piece, "Sequence"), *id;
    const char *name = json_string_value(json_object_get(special ? special : sequence, "id"));
    if (sequence && name && !strcmp(name, "A") && !*seen_text) {
        *seen_text = true;
        return 0;
    }
    const json_t *ids = special && name ? json_object_get(json_object_get(specials, name), "ids") : NULL;
    if (!json_is_array(ids)) return hd_fail(r->err, HD_EFORMAT, "%s: a piece of \"single\" that makes no sense", r->where);
    size_t i;
    json_array_foreach(ids, i, id) {
        int rc = add_around(r, *seen_text, id);
        if (rc) return rc;
    }
    return 0;
}

static int read_template(reader_state *r, const json_t *j) {
    const json_t *single = json_object_get(j, "single"), *specials = json_object_get(j, "special_tokens"), *piece;
    bool seen_text = false;
    size_t i;
    if (r->t->before_count || r->t->after_count) return hd_fail(r->err, HD_EUNSUPPORTED, "%s: two templates aren't supported", r->where);
    if (!json_is_array(single)) return hd_fail(r->err, HD_EFORMAT, "%s: \"single\" must be a list", r->where);
    json_array_foreach(single, i, piece) {
        int rc = template_piece(r, piece, specials, &seen_text);
        if (rc) return rc;
    }
    return seen_text ? 0 : hd_fail(r->err, HD_EUNSUPPORTED, "%s: a template without the text isn't supported", r->where);
}

/* RobertaProcessing: cls and sep, each [token, id]. Its add_prefix_space and trim_offsets touch offsets only. */
static int read_roberta(reader_state *r, const json_t *j) {
    if (r->t->before_count || r->t->after_count) return hd_fail(r->err, HD_EUNSUPPORTED, "%s: two templates aren't supported", r->where);
    int rc = add_around(r, false, json_array_get(json_object_get(j, "cls"), 1));
    return rc ? rc : add_around(r, true, json_array_get(json_object_get(j, "sep"), 1));
}

/* The ByteLevel post-processor moves offsets only. */
static int read_nothing(reader_state *r, const json_t *j) {
    (void)r;
    (void)j;
    return 0;
}

static int read_post_sequence(reader_state *r, const json_t *j);
static const component post_processors[] = {{"ByteLevel", read_nothing}, {"TemplateProcessing", read_template}, {"RobertaProcessing", read_roberta},
                                            {"Sequence", read_post_sequence}, {NULL, NULL}};

static int read_post_sequence(reader_state *r, const json_t *j) {
    return each(r, j, "processors", post_processors);
}

/* ---- decoder ---------------------------------------------------------------------------------------------------- */

static int read_decoder_sequence(reader_state *r, const json_t *j);
static const component decoders[] = {{"ByteLevel", read_nothing}, {"Sequence", read_decoder_sequence}, {NULL, NULL}};

static int read_decoder_sequence(reader_state *r, const json_t *j) {
    if (json_array_size(json_object_get(j, "decoders")) != 1) return hd_fail(r->err, HD_EUNSUPPORTED, "%s: a chain of decoders isn't supported", r->where);
    return each(r, j, "decoders", decoders);
}

/* SentencePiece's: U+2581 to spaces, "<0xE2>" to bytes, all in one piece, and perhaps without the first space. Anything else is another decoder. */
static int read_piece_decoder(reader_state *r, const json_t *j) {
    if (is_text(j, "type", "Metaspace")) {
        hd_metaspace scheme;
        int rc = metaspace_scheme(r, j, &scheme);
        r->t->strip_first = !rc && scheme != HD_META_NEVER;
        return rc ? rc : r->t->byte_pieces ? hd_fail(r->err, HD_EUNSUPPORTED, "%s: Metaspace alone isn't supported with \"byte_fallback\"", r->where) : 0;
    }
    if (!r->t->byte_pieces) return hd_fail(r->err, HD_EUNSUPPORTED, "%s: one other than Metaspace isn't supported without \"byte_fallback\"", r->where);
    static const char *const order[] = {"Replace", "ByteFallback", "Fuse", "Strip"};
    const json_t *list = json_object_get(j, "decoders");
    size_t n = json_array_size(list);
    bool same = n == 3 || n == 4;
    for (size_t i = 0; i < n && same; i++) {
        const char *type = json_string_value(json_object_get(json_array_get(list, i), "type"));
        same = type && !strcmp(type, order[i]);
    }
    const json_t *replace = json_array_get(list, 0), *strip = json_array_get(list, 3);
    const char *from = json_string_value(json_object_get(json_object_get(replace, "pattern"), "String"));
    const char *to = json_string_value(json_object_get(replace, "content"));
    same = same && from && to && !strcmp(from, "\xe2\x96\x81") && !strcmp(to, " ");
    const char *space = json_string_value(json_object_get(strip, "content"));
    bool first = json_integer_value(json_object_get(strip, "start")) == 1 && json_integer_value(json_object_get(strip, "stop")) == 0;
    if (strip) same = same && first && space && !strcmp(space, " ");
    if (!same) return hd_fail(r->err, HD_EUNSUPPORTED, "%s: one other than SentencePiece's isn't supported with \"byte_fallback\"", r->where);
    r->t->strip_space = strip != NULL;
    return 0;
}

/* ---- all of them ------------------------------------------------------------------------------------------------ */

static int refuse_section(reader_state *r, const char *key) {
    const json_t *v = json_object_get(r->t->sections, key);
    return !v || json_is_null(v) ? 0 : hd_fail(r->err, HD_EUNSUPPORTED, "%s: isn't supported", r->where);
}

int hd_sections_read(hd_tokenizer *t, const char *name, hd_error *err) {
    static const struct { const char *key; const component *table; } sections[] = {
        {"truncation", NULL}, {"padding", NULL}, {"normalizer", normalizers}, {"pre_tokenizer", pretokenizers},
        {"post_processor", post_processors}, {"decoder", decoders}};
    char where[300];
    reader_state r = {.t = t, .where = where, .err = err};
    for (size_t i = 0; i < sizeof sections / sizeof *sections; i++) {
        const json_t *v = json_object_get(t->sections, sections[i].key);
        snprintf(where, sizeof where, "%.200s: %s", name, sections[i].key);
        bool missing = !v || json_is_null(v);
        bool pieces = sections[i].table == decoders && t->by_char;
        int rc = !sections[i].table ? refuse_section(&r, sections[i].key) : pieces ? read_piece_decoder(&r, v)
               : missing ? 0 : dispatch(&r, v, sections[i].table);
        if (rc) return rc;
        if (sections[i].table == decoders && missing) return hd_fail(err, HD_EUNSUPPORTED, "%s: one other than ByteLevel isn't supported", where);
        if (sections[i].table == pretokenizers && !r.byte_level && !t->by_char)
            return hd_fail(err, HD_EUNSUPPORTED, "%s: one without ByteLevel isn't supported (only byte-level BPE is)", where);
    }
    return 0;
}
