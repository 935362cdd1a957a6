/* data.c: heddle data: text into tokenized shards, and tokenizers out of text. */
#include <stdio.h>
#include <string.h>
#include "base/file.h"
#include "base/json.h"
#include "base/term.h"
#include "base/thread.h"
#include "cli/cli.h"
#include "data/corpus.h"

typedef struct config {
    const char *tokenizer, *train_tokenizer, *pretokenizer, *out, *key, *unit, *end;
    int64_t vocab_size, threads;
    bool quiet;
} config;

#define AT(field) offsetof(config, field)
static const hd_setting settings[] = {
    {"out", HD_SET_STRING, AT(out), NULL, 0, 0, "PREFIX", "write PREFIX.bin and PREFIX.idx (Megatron's format)"},
    {"tokenizer", HD_SET_STRING, AT(tokenizer), NULL, 0, 0, "FILE", "tokenizer.json to tokenize with"},
    {"train_tokenizer", HD_SET_STRING, AT(train_tokenizer), NULL, 0, 0, "FILE", "first learn a byte-level BPE from the same text and write it here"},
    {"vocab_size", HD_SET_INT, AT(vocab_size), "8192", 257, 1e6, "N", "tokens of the tokenizer to learn"},
    {"pretokenizer", HD_SET_STRING, AT(pretokenizer), "gpt2", 0, 0, "gpt2|llama3|qwen2", "how it cuts text into words"},
    {"end", HD_SET_STRING, AT(end), "<|endoftext|>", 0, 0, "TOKEN", "special token put after each document; empty: none"},
    {"key", HD_SET_STRING, AT(key), "text", 0, 0, "KEY", "of the text in jsonl files"},
    {"unit", HD_SET_STRING, AT(unit), "paragraph", 0, 0, "file|paragraph|line", "what a document is in plain text; blank lines part paragraphs"},
    {"threads", HD_SET_INT, AT(threads), "0", 0, 256, "N", "0: one per core"},
    {"quiet", HD_SET_BOOL, AT(quiet), NULL, 0, 0, NULL, "no progress bar"},
    {0},
};

/* ---- learning a tokenizer ---- */

static bool is_jsonl(const char *path)
{
    return hd_glob_match("*.jsonl", path) || hd_glob_match("*.ndjson", path);
}

/* Bytes of text fed so far. */
typedef struct meter {
    hd_progress bar;
    double done;
} meter;

static void meter_add(meter *m, size_t bytes)
{
    m->done += (double)bytes;
    hd_progress_update(&m->bar, m->done, NULL);
}

/* Feeds the text of each line of a jsonl file. */
static int feed_jsonl(hd_bpe_trainer *b, const config *c, const char *path, meter *m, hd_error *err)
{
    hd_map map;
    int rc = hd_map_open(&map, path, err);
    if (rc) return rc;
    const char *at = (const char *)map.data, *end = at + map.size;
    for (int64_t line = 1; at < end && !rc; line++) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        size_t n = (size_t)((stop ? stop : end) - at);
        char where[300];
        snprintf(where, sizeof where, "%s:%lld", path, (long long)line);
        if (n && strspn(at, " \t\r") < n) {
            const char *text = NULL;
            json_t *j = hd_json_parse(at, n, where, err);
            rc = j ? hd_json_need(j, c->key, where, err) : err->code;
            if (!rc) rc = hd_json_string(j, c->key, &text, where, err);
            if (!rc) rc = hd_bpe_trainer_feed(b, text, json_string_length(json_object_get(j, c->key)), err);
            json_decref(j);
        }
        at += n + 1;
        meter_add(m, n + 1);
    }
    hd_map_close(&map);
    return rc;
}

static int feed_text(hd_bpe_trainer *b, const char *path, meter *m, hd_error *err)
{
    hd_map map;
    int rc = hd_map_open(&map, path, err);
    if (rc) return rc;
    const char *at = (const char *)map.data, *end = at + map.size;
    while (at < end && !rc) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        size_t n = stop ? (size_t)(stop - at) + 1 : (size_t)(end - at);
        rc = hd_bpe_trainer_feed(b, at, n, err);
        at += n;
        meter_add(m, n);
    }
    hd_map_close(&map);
    return rc;
}

static int feed_files(hd_bpe_trainer *b, const config *c, const char *const *paths, int n, hd_error *err)
{
    meter m = {.done = 0};
    double total = 0;
    int rc = 0;
    for (int i = 0; i < n; i++) total += (double)hd_file_size(paths[i]);
    hd_progress_begin(&m.bar, "counting words", total, c->quiet);
    for (int i = 0; i < n && !rc; i++) rc = is_jsonl(paths[i]) ? feed_jsonl(b, c, paths[i], &m, err) : feed_text(b, paths[i], &m, err);
    if (rc) hd_progress_hide(&m.bar);
    else hd_progress_end(&m.bar, NULL);
    return rc;
}

static hd_pretokenizer pretokenizer_of(const char *name)
{
    int p = 0;
    while (p + 1 < HD_PRETOK_COUNT && strcmp(name, hd_pretokenizer_name((hd_pretokenizer)p))) p++;
    return (hd_pretokenizer)p;
}

static int learn(const config *c, const char *const *paths, int n, hd_error *err)
{
    hd_bpe_spec spec = {.pretokenizer = pretokenizer_of(c->pretokenizer), .vocab_size = (int32_t)c->vocab_size, .specials = &c->end,
                        .special_count = *c->end ? 1 : 0, .nfc = !strcmp(c->pretokenizer, "qwen2"), .quiet = c->quiet};
    hd_bpe_trainer *b = hd_bpe_trainer_new(&spec, err);
    hd_tokenizer *t = NULL;
    int rc = b ? 0 : err->code;
    if (!rc) rc = feed_files(b, c, paths, n, err);
    if (!rc && !(t = hd_bpe_trainer_finish(b, err))) rc = err->code;
    if (!rc) rc = hd_tokenizer_save(t, c->train_tokenizer, err);
    if (!rc) printf("%s: %d tokens\n", c->train_tokenizer, hd_tokenizer_vocab_size(t));
    hd_tokenizer_free(t);
    hd_bpe_trainer_free(b);
    return rc;
}

/* ---- tokenizing ---- */

static int end_id(const config *c, const hd_tokenizer *t, int32_t *id, hd_error *err)
{
    *id = *c->end ? hd_tokenizer_id(t, c->end) : -1;
    return *c->end && *id < 0 ? hd_fail(err, HD_EINVAL, "the tokenizer has no token \"%s\": name its end-of-text token with --end", c->end) : 0;
}

static hd_text_unit unit_of(const char *name)
{
    return !strcmp(name, "file") ? HD_TEXT_FILE : !strcmp(name, "line") ? HD_TEXT_LINE : HD_TEXT_PARAGRAPH;
}

static int tokenize(const config *c, const char *const *paths, int n, hd_error *err)
{
    const char *file = c->tokenizer ? c->tokenizer : c->train_tokenizer;
    if (!file) return hd_fail(err, HD_EINVAL, "--tokenizer FILE is missing (or --train-tokenizer FILE, to learn one)");
    hd_tokenizer *t = hd_tokenizer_load(file, err);
    hd_corpus_spec spec = {.tokenizer = t, .unit = unit_of(c->unit), .json_key = c->key, .threads = (int)(c->threads ? c->threads : hd_core_count()), .quiet = c->quiet};
    hd_corpus_counts counts;
    double start = hd_time();
    int rc = t ? end_id(c, t, &spec.end_id, err) : err->code;
    if (!rc) rc = hd_corpus_build(&spec, paths, n, c->out, &counts, err);
    if (!rc)
        printf("%s: %lld documents, %lld tokens of %lld bytes (%.2f bytes a token) in %.1f s\n", c->out, (long long)counts.documents,
               (long long)counts.tokens, (long long)counts.bytes, (double)counts.bytes / (double)counts.tokens, hd_time() - start);
    hd_tokenizer_free(t);
    return rc;
}

static int run(const void *config_, const char *const *words, int n_words, hd_error *err)
{
    const config *c = config_;
    if (!n_words) return hd_fail(err, HD_EINVAL, "name one or more text or jsonl files");
    if (!c->out && !c->train_tokenizer) return hd_fail(err, HD_EINVAL, "nothing to do: give --out PREFIX, --train-tokenizer FILE, or both");
    int rc = c->train_tokenizer ? learn(c, words, n_words, err) : 0;
    return rc || !c->out ? rc : tokenize(c, words, n_words, err);
}

const hd_command hd_cmd_data = {
    .name = "data",
    .usage = "[flags] FILE...",
    .summary = "tokenize a corpus into memory-mapped shards; learn a tokenizer",
    .details = "FILEs are plain text, or jsonl (*.jsonl, *.ndjson) with one object and its text on each line.",
    .settings = settings,
    .config_size = sizeof(config),
    .max_words = 64,
    .run = run,
};
