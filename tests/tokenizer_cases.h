/* tokenizer_cases.h: reads cases.bin (see make_tokenizer_fixtures.py) and compares. For test_tokenizer.c and checks/src/tokenizer.c. */
#ifndef TOKENIZER_CASES_H
#define TOKENIZER_CASES_H

#include <stdio.h>
#include <string.h>
#include "base/file.h"
#include "data/tokenizer.h"

enum { CASE_CLASSES = 40, CASE_TOKENIZERS = 3 };
static const char *const case_tokenizers[CASE_TOKENIZERS] = {"gpt2", "llama3", "qwen2"};

typedef struct case_file {
    hd_map map;
    size_t at;          /* reading place */
    uint32_t classes, cases;
    char name[CASE_CLASSES][64];
} case_file;

typedef struct text_case {
    int class;
    const char *text;
    uint32_t size;
    uint32_t count[CASE_TOKENIZERS];
    const unsigned char *ids[CASE_TOKENIZERS]; /* u16 each, unaligned */
} text_case;

static inline const unsigned char *case_take(case_file *f, size_t n) {
    if (f->map.size - f->at < n) return NULL;
    f->at += n;
    return f->map.data + f->at - n;
}

static inline uint32_t case_u32(case_file *f) {
    uint32_t v = 0;
    const unsigned char *p = case_take(f, 4);
    if (p) memcpy(&v, p, 4);
    return v;
}

/* 0 when the file is one. */
static inline int case_open(case_file *f, const char *path, hd_error *err) {
    memset(f, 0, sizeof *f);
    int rc = hd_map_open(&f->map, path, err);
    if (rc) return rc;
    const unsigned char *magic = case_take(f, 4);
    f->classes = magic && !memcmp(magic, "HDTC", 4) ? case_u32(f) : 0;
    f->cases = case_u32(f);
    if (!f->classes || f->classes > CASE_CLASSES) return hd_fail(err, HD_EFORMAT, "%s: not a file of tokenizer cases", path);
    for (uint32_t k = 0; k < f->classes; k++) {
        const unsigned char *n = case_take(f, 1), *text = n ? case_take(f, *n) : NULL;
        if (text) snprintf(f->name[k], sizeof f->name[k], "%.*s", *n, (const char *)text);
    }
    return 0;
}

/* Whether there was another case. */
static inline bool case_next(case_file *f, text_case *c) {
    const unsigned char *class = case_take(f, 1);
    if (!class || *class >= f->classes) return false;
    c->class = *class;
    c->size = case_u32(f);
    c->text = (const char *)case_take(f, c->size);
    for (int k = 0; k < CASE_TOKENIZERS; k++) {
        c->count[k] = case_u32(f);
        c->ids[k] = case_take(f, (size_t)c->count[k] * 2);
        if (!c->ids[k]) return false;
    }
    return c->text != NULL;
}

static inline int case_id(const text_case *c, int tokenizer, size_t i) {
    return c->ids[tokenizer][2 * i] | c->ids[tokenizer][2 * i + 1] << 8;
}

/* Whether got equals what tokenizer k should give. */
static inline bool case_same(const text_case *c, int k, const hd_ids *got) {
    if (got->len != c->count[k]) return false;
    for (size_t i = 0; i < got->len; i++)
        if (got->data[i] != case_id(c, k, i)) return false;
    return true;
}

#endif
