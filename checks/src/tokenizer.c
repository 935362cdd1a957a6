/* tokenizer.c: the measuring half of checks/tokenizer.
 *
 *   check_tokenizer cases DIR                         compare ids with those stored in DIR/cases.bin; one line per class
 *   check_tokenizer encode TOKENIZER.json FILE [IDS]  load, encode FILE line by line from a cold start; "seconds bytes ids"; ids (i32) to IDS
 *   check_tokenizer train KIND VOCAB OUT.json FILE    train on FILE's lines; "seconds bytes" */
#include <stdlib.h>
#include "../../tests/tokenizer_cases.h"
#include "base/term.h"

static int complain(const hd_error *err) {
    fprintf(stderr, "check_tokenizer: %s\n", err->message);
    return 2;
}

static bool case_matches(hd_encoder *e, const text_case *c, int k, hd_error *err) {
    hd_ids ids = {0};
    bool same = !hd_encoder_run(e, c->text, c->size, true, &ids, err) && case_same(c, k, &ids);
    hd_ids_free(&ids);
    return same;
}

static int report_classes(const case_file *f, const int right[][CASE_TOKENIZERS], const int total[]) {
    int wrong = 0;
    for (uint32_t k = 0; k < f->classes; k++) {
        printf("%-20s", f->name[k]);
        for (int i = 0; i < CASE_TOKENIZERS; i++) {
            printf("  %s %d/%d", case_tokenizers[i], right[k][i], total[k]);
            wrong += total[k] - right[k][i];
        }
        puts("");
    }
    printf("classes %u strings %u wrong %d\n", f->classes, f->cases, wrong);
    return wrong != 0;
}

static int run_cases(const char *dir, hd_error *err) {
    case_file f;
    text_case c;
    char path[4096];
    hd_tokenizer *t[CASE_TOKENIZERS] = {0};
    hd_encoder *e[CASE_TOKENIZERS] = {0};
    static int right[CASE_CLASSES][CASE_TOKENIZERS], total[CASE_CLASSES];
    snprintf(path, sizeof path, "%s/cases.bin", dir);
    int rc = case_open(&f, path, err);
    for (int k = 0; k < CASE_TOKENIZERS && !rc; k++) {
        snprintf(path, sizeof path, "%s/%s.json", dir, case_tokenizers[k]);
        t[k] = hd_tokenizer_load(path, err);
        e[k] = t[k] ? hd_encoder_new(t[k], err) : NULL;
        rc = e[k] ? 0 : err->code;
    }
    while (!rc && case_next(&f, &c)) {
        total[c.class]++;
        for (int k = 0; k < CASE_TOKENIZERS; k++) right[c.class][k] += case_matches(e[k], &c, k, err);
    }
    for (int k = 0; k < CASE_TOKENIZERS; k++) {
        hd_encoder_free(e[k]);
        hd_tokenizer_free(t[k]);
    }
    int wrong = rc ? 0 : report_classes(&f, right, total);
    hd_map_close(&f.map);
    return rc || err->code ? complain(err) : wrong;
}

static int encode_lines(hd_encoder *e, const hd_map *m, hd_ids *ids, hd_error *err) {
    const char *p = (const char *)m->data, *end = p + m->size;
    int rc = 0;
    while (!rc && p < end) {
        const char *newline = memchr(p, '\n', (size_t)(end - p)), *next = newline ? newline + 1 : end;
        rc = hd_encoder_run(e, p, (size_t)(next - p), false, ids, err);
        p = next;
    }
    return rc;
}

static int run_encode(const char *tokenizer, const char *file, const char *out, hd_error *err) {
    double start = hd_time();
    hd_tokenizer *t = hd_tokenizer_load(tokenizer, err);
    hd_encoder *e = t ? hd_encoder_new(t, err) : NULL;
    hd_ids ids = {0};
    hd_map m = {0};
    int rc = e ? hd_map_open(&m, file, err) : err->code;
    if (!rc) rc = encode_lines(e, &m, &ids, err);
    double seconds = hd_time() - start;
    if (!rc) printf("%.3f %zu %zu\n", seconds, m.size, ids.len);
    if (!rc && out) rc = hd_file_write_atomic(out, ids.data, ids.len * sizeof *ids.data, err);
    hd_map_close(&m);
    hd_ids_free(&ids);
    hd_encoder_free(e);
    hd_tokenizer_free(t);
    return rc ? complain(err) : 0;
}

static int run_train(const char *kind, const char *vocab, const char *out, const char *file, hd_error *err) {
    hd_bpe_spec spec = {.vocab_size = atoi(vocab), .quiet = true};
    static const char *const specials[] = {"<|endoftext|>"};
    spec.specials = specials;
    spec.special_count = 1;
    for (int i = 0; i < HD_PRETOK_COUNT; i++)
        if (!strcmp(kind, hd_pretokenizer_name((hd_pretokenizer)i))) spec.pretokenizer = (hd_pretokenizer)i;
    double start = hd_time();
    hd_tokenizer *t = hd_bpe_train_files(&spec, &file, 1, err);
    double seconds = hd_time() - start;
    int rc = t ? hd_tokenizer_save(t, out, err) : err->code;
    if (!rc) printf("%.3f %lld %d\n", seconds, (long long)hd_file_size(file), hd_tokenizer_vocab_size(t));
    hd_tokenizer_free(t);
    return rc ? complain(err) : 0;
}

int main(int argc, char **argv) {
    hd_error err = {0};
    if (argc == 3 && !strcmp(argv[1], "cases")) return run_cases(argv[2], &err);
    if ((argc == 4 || argc == 5) && !strcmp(argv[1], "encode")) return run_encode(argv[2], argv[3], argc == 5 ? argv[4] : NULL, &err);
    if (argc == 6 && !strcmp(argv[1], "train")) return run_train(argv[2], argv[3], argv[4], argv[5], &err);
    fprintf(stderr, "usage: check_tokenizer cases DIR | encode TOKENIZER FILE [IDS] | train KIND VOCAB OUT FILE\n");
    return 2;
}
