/* tokenizer_int.h: the tokenizer's parts, for this folder's files only.
 *
 * A text goes through: added tokens that are matched in it as it stands -> normalizer -> added tokens matched in normalized text ->
 * pre-tokenizer steps, which cut it into words -> BPE over each word's bytes -> ids put around it by the post-processor. */
#ifndef HD_DATA_TOKENIZER_INT_H
#define HD_DATA_TOKENIZER_INT_H

#include <jansson.h>
#include "base/mem.h"
#include "data/regex.h"
#include "data/tokenizer.h"
#include "data/unicode.h"
#include "tensor/gguf.h"

/* ---- words: the pre-tokenizer (pretokenize.c, scan.c) ---- */

/* Hand-written scanners for the patterns that most vocabularies use: length of the word at p, n > 0 bytes of valid UTF-8 left. */
typedef size_t (*hd_scan_fn)(const hd_unicode_classes *c, const unsigned char *p, size_t n);

typedef struct hd_scanner {
    const char *name;    /* "gpt2" */
    const char *pattern; /* as it stands in a tokenizer.json */
    hd_scan_fn scan;
} hd_scanner;

extern const hd_scanner hd_scanners[HD_PRETOK_COUNT];

/* What a name of a GGUF file's pre-tokenizer stands for (tokenizer_pre.c). */
typedef struct hd_pre {
    const char *name;
    hd_pretokenizer words;        /* HD_PRETOK_COUNT with splits */
    bool digits;                  /* each digit is a word of its own */
    bool ignore_merges, nfc;
    bool bos;                     /* a leading bos where the file doesn't say */
    const char *const *splits;    /* regular expressions that cut one behind the other, NULL at the end; NULL: a scanner's pattern */
} hd_pre;

extern const hd_pre hd_pres[]; /* name NULL at the end; of several with one meaning the first is written */

typedef enum hd_split_behavior { HD_SPLIT_REMOVED, HD_SPLIT_ISOLATED, HD_SPLIT_PREVIOUS, HD_SPLIT_NEXT, HD_SPLIT_CONTIGUOUS } hd_split_behavior;

typedef struct hd_matcher {
    hd_scan_fn scan;            /* set for a known pattern; */
    const char *literal;        /* or a string of literal_size bytes; */
    size_t literal_size;
    hd_regex *regex;             /* or a regular expression */
} hd_matcher;

/* Metaspace: spaces become U+2581; where one is put before a piece that has none; whether words begin at each. */
typedef enum hd_metaspace { HD_META_NO_STEP, HD_META_NEVER, HD_META_FIRST, HD_META_ALWAYS } hd_metaspace;

typedef struct hd_pretok_step {
    bool prefix_space; /* true: put a space before each piece that has none; the rest of the step is then unused */
    hd_metaspace metaspace; /* not NO_STEP: only this and meta_split count */
    bool meta_split;
    hd_matcher match;
    hd_split_behavior behavior;
    bool invert;
} hd_pretok_step;

typedef struct hd_span { size_t begin, end; } hd_span;
typedef struct hd_spans { hd_span *data; size_t len, cap; } hd_spans;

/* Cuts the spans `in` of text by one step into out (cleared first). prefix_space steps go through hd_pretok_prefix instead. */
int hd_pretok_split(const hd_pretok_step *step, const hd_unicode_classes *classes, hd_regex_scratch *scratch, const unsigned char *text,
                    const hd_spans *in, hd_spans *out, hd_error *err);
/* Copies the spans to text2 (cleared first), a space put before each that doesn't begin with one; out are their places there. */
int hd_pretok_prefix(const unsigned char *text, const hd_spans *in, hd_str *text2, hd_spans *out, hd_error *err);
/* The same for a Metaspace step; first: the text's begin is that of the whole text. */
int hd_pretok_metaspace(const hd_pretok_step *step, bool first, const unsigned char *text, const hd_spans *in, hd_str *text2, hd_spans *out, hd_error *err);
int hd_spans_add(hd_spans *s, size_t begin, size_t end, hd_error *err);

/* ---- BPE (bpe.c) ---- */

typedef struct hd_merge {
    uint64_t pair;         /* left id << 32 | right id; HD_NO_PAIR in an empty slot */
    uint32_t rank;         /* place in the list of merges: the lowest goes first */
    int32_t merged;        /* id of the result */
} hd_merge;
#define HD_NO_PAIR UINT64_MAX

/* Open addressing, a power of two of slots. */
typedef struct hd_merge_table {
    hd_merge *slots;
    uint64_t mask;
} hd_merge_table;

int hd_merge_table_init(hd_merge_table *m, size_t count, hd_error *err);
/* Adds or replaces (the last of two equal merges counts). */
void hd_merge_table_put(hd_merge_table *m, uint64_t pair, uint32_t rank, int32_t merged);

static inline uint64_t hd_mix64(uint64_t x) {
    x ^= x >> 32;
    x *= 0x9e3779b97f4a7c15ull;
    return x ^ x >> 29;
}

static inline const hd_merge *hd_merge_table_get(const hd_merge_table *m, uint64_t pair) {
    for (uint64_t i = hd_mix64(pair) & m->mask;; i = (i + 1) & m->mask) {
        const hd_merge *s = &m->slots[i];
        if (s->pair == pair) return s;
        if (s->pair == HD_NO_PAIR) return NULL;
    }
}

/* Byte strings to ids: open addressing over tokens' texts that live elsewhere. */
typedef struct hd_string_slot { const char *text; uint32_t size; int32_t id; } hd_string_slot; /* id -1: empty */
typedef struct hd_string_table { hd_string_slot *slots; uint64_t mask; } hd_string_table;

int hd_string_table_init(hd_string_table *s, size_t count, hd_error *err);
void hd_string_table_put(hd_string_table *s, const char *text, size_t n, int32_t id);
int32_t hd_string_table_get(const hd_string_table *s, const char *text, size_t n); /* -1: not there */
uint64_t hd_bytes_hash(const void *p, size_t n);

/* ---- the tokenizer ---- */

typedef struct hd_token {
    const char *text;  /* as in the file, NUL-terminated; NULL: no token has this id */
    const char *bytes; /* what it stands for */
    uint32_t text_size, bytes_size;
    bool special, added;
} hd_token;

typedef struct hd_added_token {
    const char *content;   /* as in the file */
    const char *pattern;   /* what is searched for: content, normalized when `normalized` */
    size_t content_size, pattern_size;
    int32_t id;
    bool special, lstrip, rstrip, single_word, normalized;
} hd_added_token;

/* Added tokens of one kind, sorted by pattern, so that equal beginnings stand together. */
typedef struct hd_added_set {
    hd_added_token *tokens;
    size_t count;
    bool first[256]; /* bytes that some pattern begins with */
    int only_first;  /* that byte when there is just one, else -1 */
} hd_added_set;

typedef struct hd_precompiled hd_precompiled;
typedef enum hd_normalizer_kind {
    HD_NORM_NFC, HD_NORM_PREPEND, HD_NORM_REPLACE, HD_NORM_SPACES, HD_NORM_STRIP, HD_NORM_PRECOMPILED, HD_NORM_META
} hd_normalizer_kind;
typedef struct hd_normalizer {
    hd_normalizer_kind kind;
    const char *from, *to; /* Replace: literal from -> to; Spaces: two spaces and more -> to; Prepend: to */
    size_t from_size, to_size;
    bool left, right;      /* Strip: white space at which ends */
    bool prefix, merge;    /* Meta: spaces to U+2581; one in front; runs as one, and none at the end */
    const hd_precompiled *map;
} hd_normalizer;

typedef struct hd_unigram hd_unigram;

struct hd_tokenizer {
    hd_arena arena; /* everything below that isn't freed by name */
    hd_token *tokens;      /* [id_count] */
    int32_t id_count;
    hd_string_table by_text, by_bytes; /* by_bytes only with ignore_merges, model tokens only */
    hd_merge_table merges;
    uint64_t *merge_order;  /* [merge_count] pairs by rank */
    size_t merge_count;
    int32_t byte_id[256];   /* the token of one byte, -1 when the vocabulary hasn't got it */
    int32_t unk_id;         /* for bytes without a token; -1: such a byte is left out */
    bool fuse_unk, ignore_merges;
    hd_unigram *unigram;    /* (unigram.c) instead of merges; NULL: BPE */
    bool byte_pieces;       /* characters without a piece may become those of their bytes */
    bool strip_first;       /* a decoded text's first token loses its spaces */
    bool by_char;           /* SentencePiece: words begin as characters; byte_id are for those without a piece */
    bool strip_space;       /* a decoded text begins with a space that encoding put there */
    hd_added_set raw, normalized;
    hd_added_token *added;  /* [added_count], in the file's order */
    size_t added_count;
    hd_normalizer *normalizers;
    size_t normalizer_count;
    hd_pretok_step *steps;
    size_t step_count;
    int32_t *before, *after; /* what the post-processor puts around a text */
    size_t before_count, after_count;
    json_t *sections;       /* the file without its model and added tokens, for saving */
    hd_unicode_classes *classes;
};

/* One word already encoded: 64 bytes, a cache line. */
enum { HD_CACHE_KEY = 28, HD_CACHE_IDS = 8, HD_CACHE_SLOTS = 1 << 16 };
typedef struct hd_cached_word {
    uint8_t size;  /* bytes of the word; 0: empty slot */
    uint8_t count; /* ids */
    uint8_t unused[2];
    unsigned char key[HD_CACHE_KEY]; /* zero-padded */
    int32_t ids[HD_CACHE_IDS];
} hd_cached_word;

/* A symbol of a word being merged. */
typedef struct hd_symbol { int32_t id, prev, next; } hd_symbol; /* id -1: merged into its left neighbour */
typedef struct hd_candidate { uint32_t rank; int32_t at, merged; } hd_candidate;

/* The best way to a place in a word: its score, the place before, and the piece between (-1: an unknown character). */
typedef struct hd_path_node { double score; int32_t from, id, next; } hd_path_node;

struct hd_encoder {
    const hd_tokenizer *t;
    bool first;             /* the gap between added tokens that is being encoded begins where the text does */
    hd_path_node *path;
    size_t path_cap;
    hd_cached_word *cache;  /* [HD_CACHE_SLOTS] direct-mapped */
    hd_symbol *symbols;
    size_t symbol_cap;
    hd_candidate *heap;
    size_t heap_len, heap_cap;
    hd_spans spans[2];
    hd_str valid, normal[2], prefixed[2];
    hd_regex_scratch *regex;
};

/* Appends the ids of one word. */
int hd_bpe_word(hd_encoder *e, const unsigned char *word, size_t n, hd_ids *out, hd_error *err);

/* Byte-level alphabet of GPT-2: the code point that stands for a byte, and back (-1: none). */
int hd_byte_to_cp(int byte);
int hd_cp_to_byte(uint32_t cp);

/* ---- putting a tokenizer together (tokenizer.c), used by the loader and the trainer ---- */

hd_tokenizer *hd_tokenizer_alloc(hd_error *err);
/* Tables that follow from tokens: by_text, byte_id, by_bytes. Tokens' text must be set. */
int hd_tokenizer_index(hd_tokenizer *t, hd_error *err);
/* Sorts t->added into t->raw and t->normalized, and marks their tokens. */
int hd_tokenizer_index_added(hd_tokenizer *t, hd_error *err);
/* Fills t->merges from t->merge_order (pairs whose concatenation must be a token). */
int hd_tokenizer_index_merges(hd_tokenizer *t, hd_error *err);
/* Applies the normalizers; result points at text or into one of the two buffers. first: text begins where the whole text does. */
int hd_tokenizer_normalize(const hd_tokenizer *t, bool first, hd_str normal[2], const unsigned char **text, size_t *n, hd_error *err);

/* A tokenizer of a tokenizer.json's root, which is used up. NULL and err on failure. */
hd_tokenizer *hd_tokenizer_from_root(json_t *root, const char *name, hd_error *err);

/* ---- SentencePiece (sentencepiece.c) ---- */

/* tokenizer.ggml.token_type */
enum { HD_TOKEN_NORMAL = 1, HD_TOKEN_UNKNOWN, HD_TOKEN_CONTROL, HD_TOKEN_USER, HD_TOKEN_UNUSED, HD_TOKEN_BYTE };

typedef struct hd_spm_spec {
    const char *path; /* for messages */
    const hd_gguf_value *tokens, *scores, *types; /* of one length; types may be NULL */
    const hd_gguf_value *charsmap; /* bytes; NULL: none. This, and merge_spaces, of unigram models */
    int64_t unk, bos, eos; /* -1: none; bos and eos go around a text */
    bool space_prefix, merge_spaces;
    bool unigram; /* else BPE by scores */
} hd_spm_spec;

hd_tokenizer *hd_spm_new(const hd_spm_spec *s, hd_error *err);
/* The normalizers of a unigram model (unigram_gguf.c). */
int hd_spm_normalizers(hd_tokenizer *t, const hd_spm_spec *s, hd_error *err);
/* Its pieces and scores. */
int hd_spm_unigram(hd_tokenizer *t, const hd_spm_spec *s, hd_error *err);
/* The sections of a tokenizer.json for t, of a GGUF file; NULL and err where it has no such. */
json_t *hd_unigram_sections(const hd_tokenizer *t, hd_error *err);
/* Whether a GGUF file can say what t, unigram and of a tokenizer.json, does with a text. */
bool hd_unigram_writable(const hd_tokenizer *t);
/* Declares its scores, padded, and the rest but for the tokens; types [vocab] get those of the unknown piece and of bytes. */
int hd_unigram_put(const hd_tokenizer *t, int64_t vocab, int32_t *types, hd_gguf_writer *w, hd_error *err);
/* The bytes that a piece stands for, into out, which has room for its text; that of a byte's piece ("<0xE2>") also goes to t->byte_id. */
size_t hd_spm_bytes(hd_tokenizer *t, int32_t id, bool may_be_byte, char *out);
/* A word's characters as ids (stride in bytes between them), at most n of them. Returns how many. */
size_t hd_spm_start(const hd_tokenizer *t, const unsigned char *word, size_t n, int32_t *id, size_t stride);

/* ---- SentencePiece's table of normalizations (precompiled.c) ---- */

/* From n characters of base64, into t's arena: applied as `tokenizers` does. */
int hd_precompiled_read(hd_tokenizer *t, const char *text, size_t n, const hd_precompiled **out, const char *where, hd_error *err);
/* From the table's own bytes, which are in t's arena at a multiple of 4. longest: applied as SentencePiece does. */
int hd_precompiled_parse(hd_tokenizer *t, const unsigned char *bytes, size_t n, bool longest, const hd_precompiled **out, const char *where, hd_error *err);
/* The table's bytes, *n of them; and as base64. */
const void *hd_precompiled_bytes(const hd_precompiled *p, size_t *n);
void hd_precompiled_text(const hd_precompiled *p, hd_str *out);
/* Appends the normalized form of s[0..n), valid UTF-8. */
void hd_precompiled_apply(const hd_precompiled *p, const unsigned char *s, size_t n, hd_str *out);

/* ---- unigram models (unigram.c) ---- */

/* {text: id} of a Unigram model's [[text, score], ...]; NULL and err on failure. */
json_t *hd_unigram_vocab(const json_t *list, const char *where, hd_error *err);
/* Reads scores and the unknown piece; t->tokens are there. */
int hd_unigram_read(hd_tokenizer *t, const json_t *model, const char *where, hd_error *err);
/* Makes t->unigram of scores [t->id_count], in t's arena, over all tokens that aren't added ones; least: the lowest that counts; look_up: what is unknown may
 * be a token by its text, as in `tokenizers`. */
int hd_unigram_build(hd_tokenizer *t, const double *scores, double least, bool look_up, hd_error *err);
/* [id_count]; *listed (may be NULL): ids from it on are of added tokens that the model itself doesn't have. */
const double *hd_unigram_scores(const hd_tokenizer *t, int32_t *listed);
/* Appends the ids of one word. */
int hd_unigram_word(hd_encoder *e, const unsigned char *word, size_t n, hd_ids *out, hd_error *err);

/* Reads the small sections of a tokenizer.json into t (tokenizer_sections.c). */
int hd_sections_read(hd_tokenizer *t, const char *name, hd_error *err);

#endif
