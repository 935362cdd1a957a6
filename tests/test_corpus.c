/* test_corpus.c: Megatron's files, building corpora from text, samplers, and fine-tuning rows. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/mem.h"
#include "data/instruct.h"
#include "data/sampler.h"

static char dir[64];

static const char *in_dir(const char *name) {
    static char paths[64][128]; /* enough for one test */
    static int turn;
    char *p = paths[turn++ & 63];
    snprintf(p, sizeof paths[0], "%s/%s", dir, name);
    return p;
}

static int make_dir(void **state) {
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/heddle-corpus-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state) {
    (void)state;
    hd_error err = {0};
    return hd_remove_tree(dir, &err);
}

static void write_file(const char *path, const char *text) {
    hd_error err = {0};
    if (hd_file_write_atomic(path, text, strlen(text), &err)) fail_msg("%s", err.message);
}

/* 256 byte tokens (ids 3 to 258) after <s>, </s> and <pad>: text becomes byte + 3 in the order of the alphabet, one id a byte. */
static hd_tokenizer *byte_tokenizer(void) {
    hd_error err = {0};
    static const char *const specials[] = {"<s>", "</s>", "<pad>"};
    hd_bpe_spec spec = {.vocab_size = 259, .specials = specials, .special_count = 3, .quiet = true};
    hd_bpe_trainer *b = hd_bpe_trainer_new(&spec, &err);
    assert_int_equal(hd_bpe_trainer_feed(b, "a", 1, &err), 0);
    hd_tokenizer *t = hd_bpe_trainer_finish(b, &err);
    assert_non_null(t);
    hd_bpe_trainer_free(b);
    return t;
}

/* ---- files -------------------------------------------------------------------------------------------------------- */

/* Documents of sizes 1 .. count; token k of document d is (d * 7 + k) % vocab. */
static void write_corpus(const char *prefix, int count, int vocab) {
    hd_error err = {0};
    hd_corpus_writer *w = hd_corpus_writer_new(prefix, vocab, &err);
    assert_non_null(w);
    int32_t *ids = calloc((size_t)count + 1, sizeof *ids);
    for (int d = 0; d < count; d++) {
        for (int k = 0; k <= d; k++) ids[k] = (d * 7 + k) % vocab;
        assert_int_equal(hd_corpus_writer_add(w, ids, (size_t)d + 1, &err), 0);
    }
    free(ids);
    if (hd_corpus_writer_finish(w, &err)) fail_msg("%s", err.message);
    hd_corpus_writer_free(w);
}

static void reads_what_it_wrote(void **state) {
    (void)state;
    static const int vocabs[] = {100, 65499, 65500, 200000};
    static const int widths[] = {2, 2, 4, 4};
    for (int i = 0; i < 4; i++) {
        hd_error err = {0};
        hd_corpus c;
        write_corpus(in_dir("a"), 50, vocabs[i]);
        if (hd_corpus_open(&c, in_dir("a"), &err)) fail_msg("%s", err.message);
        assert_int_equal(c.width, widths[i]);
        assert_int_equal(c.documents, 50);
        assert_int_equal(hd_corpus_tokens(&c), 50 * 51 / 2);
        for (int d = 0; d < 50; d++) {
            int32_t ids[50];
            assert_int_equal(hd_corpus_size(&c, d), d + 1);
            assert_int_equal(hd_corpus_read(&c, c.start[d], (size_t)d + 1, vocabs[i], ids, &err), 0);
            for (int k = 0; k <= d; k++) assert_int_equal(ids[k], (d * 7 + k) % vocabs[i]);
        }
        int32_t id;
        assert_int_equal(hd_corpus_read(&c, 1275, 1, vocabs[i], &id, &err), HD_EINVAL);
        hd_error large = {0};
        assert_int_equal(hd_corpus_read(&c, 1274, 1, 2, &id, &large), HD_EFORMAT);
        assert_non_null(strstr(large.message, "vocabulary"));
        hd_corpus_close(&c);
    }
}

/* Byte for byte what Megatron-LM's IndexedDatasetBuilder writes for documents [5, 6] and [7]. */
static void writes_megatrons_bytes(void **state) {
    (void)state;
    static const unsigned char idx[] = {
        'M', 'M', 'I', 'D', 'I', 'D', 'X', 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 8, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0,
        2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0};
    static const unsigned char bin[] = {5, 0, 6, 0, 7, 0};
    hd_error err = {0};
    hd_corpus_writer *w = hd_corpus_writer_new(in_dir("m"), 100, &err);
    assert_int_equal(hd_corpus_writer_add(w, (int32_t[]){5, 6}, 2, &err), 0);
    assert_int_equal(hd_corpus_writer_add(w, (int32_t[]){7}, 1, &err), 0);
    assert_int_equal(hd_corpus_writer_finish(w, &err), 0);
    hd_corpus_writer_free(w);
    hd_str s;
    hd_str_init(&s);
    assert_int_equal(hd_file_read(&s, in_dir("m.idx"), 0, &err), 0);
    assert_int_equal(s.len, sizeof idx);
    assert_memory_equal(s.data, idx, sizeof idx);
    hd_str_clear(&s);
    assert_int_equal(hd_file_read(&s, in_dir("m.bin"), 0, &err), 0);
    assert_int_equal(s.len, sizeof bin);
    assert_memory_equal(s.data, bin, sizeof bin);
    hd_str_free(&s);
}

/* Every truncation of the index, and every byte of it changed, is refused or read as a sound corpus; nothing crashes. */
static void refuses_damaged_files(void **state) {
    (void)state;
    hd_error err = {0};
    hd_str s;
    hd_str_init(&s);
    write_corpus(in_dir("d"), 4, 100);
    assert_int_equal(hd_file_read(&s, in_dir("d.idx"), 0, &err), 0);
    for (size_t n = 0; n < s.len; n++) {
        hd_error e = {0};
        hd_corpus c;
        assert_int_equal(hd_file_write_atomic(in_dir("d.idx"), s.data, n, &err), 0);
        assert_true(hd_corpus_open(&c, in_dir("d"), &e) < 0);
        assert_true(e.message[0]);
    }
    for (size_t n = 0; n < s.len * 2; n++) {
        hd_error e = {0};
        hd_corpus c;
        char old = s.data[n / 2];
        s.data[n / 2] = (char)(n & 1 ? old ^ 0x80 : old + 1);
        assert_int_equal(hd_file_write_atomic(in_dir("d.idx"), s.data, s.len, &err), 0);
        if (!hd_corpus_open(&c, in_dir("d"), &e)) {
            int32_t ids[10];
            assert_true(n / 2 >= 34 + 4 * 12); /* only where documents begin may change: to another order of whole sequences */
            assert_int_equal(hd_corpus_tokens(&c), 10);
            assert_int_equal(hd_corpus_read(&c, 0, 10, 100, ids, &e), 0);
            hd_corpus_close(&c);
        }
        s.data[n / 2] = old;
    }
    assert_int_equal(hd_file_write_atomic(in_dir("d.idx"), s.data, s.len, &err), 0);
    write_file(in_dir("d.bin"), "short");
    hd_corpus c;
    assert_int_equal(hd_corpus_open(&c, in_dir("d"), &err), HD_EFORMAT);
    assert_non_null(strstr(err.message, "d.bin"));
    hd_str_free(&s);
}

/* Tries to write `documents` of `size` tokens each over the corpus f with files limited to a MiB. */
static int write_limited(int documents, int size, hd_error *err) {
    struct rlimit old, small;
    getrlimit(RLIMIT_FSIZE, &old);
    small = old;
    small.rlim_cur = 1 << 20;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    hd_corpus_writer *w = hd_corpus_writer_new(in_dir("f"), 100, err);
    int32_t ids[1000] = {0};
    int rc = 0;
    for (int i = 0; i < documents && !rc; i++) rc = hd_corpus_writer_add(w, ids, (size_t)size, err);
    if (!rc) rc = hd_corpus_writer_finish(w, err);
    hd_corpus_writer_free(w);
    setrlimit(RLIMIT_FSIZE, &old);
    return rc;
}

/* A file size limit stands in for a full disk: once for the tokens, once for the index. */
static void full_disk_leaves_the_old_corpus(void **state) {
    (void)state;
    hd_error tokens = {0}, index = {0}, fine = {0};
    hd_corpus c;
    write_corpus(in_dir("f"), 3, 100);
    assert_int_equal(write_limited(2000, 1000, &tokens), HD_EIO);
    assert_non_null(strstr(tokens.message, "f.bin"));
    assert_int_equal(write_limited(100000, 1, &index), HD_EIO);
    assert_non_null(strstr(index.message, "f.idx"));
    assert_false(hd_file_exists(in_dir("f.bin.tmp")) || hd_file_exists(in_dir("f.idx.new")) || hd_file_exists(in_dir("f.idx.new.tmp")));
    assert_int_equal(hd_corpus_open(&c, in_dir("f"), &fine), 0);
    assert_int_equal(c.documents, 3);
    hd_corpus_close(&c);
}

/* ---- building ----------------------------------------------------------------------------------------------------- */

/* The text of a built corpus, documents parted by '|'. */
static void built_text(const hd_tokenizer *t, const char *prefix, hd_str *out) {
    hd_error err = {0};
    hd_corpus c;
    if (hd_corpus_open(&c, prefix, &err)) fail_msg("%s", err.message);
    for (int64_t d = 0; d < c.documents; d++) {
        int32_t ids[4096];
        size_t n = (size_t)hd_corpus_size(&c, d);
        assert_true(n <= 4096);
        assert_int_equal(hd_corpus_read(&c, c.start[d], n, hd_tokenizer_vocab_size(t), ids, &err), 0);
        assert_int_equal(hd_tokenizer_decode(t, ids, n, false, out, &err), 0);
        hd_str_putc(out, '|');
    }
    hd_corpus_close(&c);
}

static void builds_documents_from_text(void **state) {
    (void)state;
    static const struct { const char *name, *text; hd_text_unit unit; const char *want; } cases[] = {
        {"x.txt", "one\ntwo\n\n \nthree\n", HD_TEXT_FILE, "one\ntwo\n\n \nthree\n</s>|"},
        {"x.txt", "one\ntwo\n\n \nthree\n", HD_TEXT_LINE, "one</s>|two</s>|three</s>|"},
        {"x.txt", "\none\ntwo\n\n \nthree\n", HD_TEXT_PARAGRAPH, "one\ntwo</s>|three</s>|"},
        {"x.txt", "a\n\nb", HD_TEXT_PARAGRAPH, "a</s>|b</s>|"},
        {"x.jsonl", "{\"text\":\"a\\nb\"}\n\n{\"text\":\"\"}\n{\"id\":1,\"text\":\"\\u00e9\"}", HD_TEXT_FILE, "a\nb</s>|\xc3\xa9</s>|"},
    };
    hd_error err = {0};
    hd_tokenizer *t = byte_tokenizer();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hd_str got;
        hd_str_init(&got);
        hd_corpus_counts counts;
        const char *path = in_dir(cases[i].name);
        write_file(path, cases[i].text);
        hd_corpus_spec spec = {.tokenizer = t, .unit = cases[i].unit, .end_id = 1, .threads = 1 + (int)i % 3, .quiet = true};
        if (hd_corpus_build(&spec, &path, 1, in_dir("b"), &counts, &err)) fail_msg("%s", err.message);
        built_text(t, in_dir("b"), &got);
        assert_string_equal(got.data, cases[i].want);
        assert_int_equal(counts.bytes + counts.documents, counts.tokens); /* a token a byte, and the ends */
        hd_str_free(&got);
    }
    hd_tokenizer_free(t);
}

static void threads_build_the_same_files(void **state) {
    (void)state;
    hd_error err = {0};
    hd_tokenizer *t = byte_tokenizer();
    hd_str text, file[2][2]; /* [threads][bin, idx] */
    hd_str_init(&text);
    for (int i = 0; i < 3000; i++) hd_str_printf(&text, "{\"text\": \"document %d %s\"}\n", i, i % 7 ? "with more" : "");
    const char *path = in_dir("t.jsonl");
    write_file(path, text.data);
    for (int threads = 1; threads <= 3; threads += 2) {
        hd_corpus_spec spec = {.tokenizer = t, .end_id = -1, .threads = threads, .quiet = true};
        hd_corpus_counts counts;
        assert_int_equal(hd_corpus_build(&spec, &path, 1, in_dir("t"), &counts, &err), 0);
        assert_true(counts.documents == 3000 && counts.tokens == counts.bytes); /* a token a byte */
        for (int k = 0; k < 2; k++) {
            hd_str_init(&file[threads / 2][k]);
            assert_int_equal(hd_file_read(&file[threads / 2][k], in_dir(k ? "t.idx" : "t.bin"), 0, &err), 0);
        }
    }
    for (int k = 0; k < 2; k++) {
        assert_true(file[0][k].len > 3000 && file[0][k].len == file[1][k].len);
        assert_memory_equal(file[0][k].data, file[1][k].data, file[0][k].len);
        hd_str_free(&file[0][k]);
        hd_str_free(&file[1][k]);
    }
    hd_str_free(&text);
    hd_tokenizer_free(t);
}

static void names_what_is_wrong_with_a_text(void **state) {
    (void)state;
    static const struct { const char *name, *text, *says; } cases[] = {
        {"e.txt", "", "empty"},
        {"e.txt", " \n\n", "empty"},
        {"e.jsonl", "{\"text\":\"\"}\n", "empty"},
        {"e.jsonl", "{\"text\":\"a\"}\n\n{\"text\": \"b\n", "line 3: not JSON"},
        {"e.jsonl", "{\"text\":\"a\"}\n{\"txet\":\"a\"}\n", "line 2: no text under \"text\""},
        {"e.jsonl", "{\"text\":5}\n", "line 1: no text under \"text\""},
        {"missing/e.txt", NULL, "missing/e.txt"},
    };
    hd_tokenizer *t = byte_tokenizer();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hd_error err = {0};
        const char *path = in_dir(cases[i].name);
        if (cases[i].text) write_file(path, cases[i].text);
        hd_corpus_spec spec = {.tokenizer = t, .unit = HD_TEXT_LINE, .end_id = 1, .threads = 2, .quiet = true};
        assert_true(hd_corpus_build(&spec, &path, 1, in_dir("e"), NULL, &err) < 0);
        if (!strstr(err.message, cases[i].says)) fail_msg("\"%s\" doesn't say %s", err.message, cases[i].says);
        assert_false(hd_file_exists(in_dir("e.bin")) || hd_file_exists(in_dir("e.idx")) || hd_file_exists(in_dir("e.bin.tmp")));
    }
    hd_tokenizer_free(t);
}

/* ---- sampling ----------------------------------------------------------------------------------------------------- */

enum { DOCS = 200, LENGTH = 64, VOCAB = 50000 };

/* Document d holds d + 1 tokens; token ids are unique in the whole corpus. */
static void open_unique(hd_corpus *c) {
    hd_error err = {0};
    hd_corpus_writer *w = hd_corpus_writer_new(in_dir("s"), VOCAB, &err);
    int32_t ids[DOCS], next = 0;
    for (int d = 0; d < DOCS; d++) {
        for (int k = 0; k <= d; k++) ids[k] = next++;
        assert_int_equal(hd_corpus_writer_add(w, ids, (size_t)d + 1, &err), 0);
    }
    assert_int_equal(hd_corpus_writer_finish(w, &err), 0);
    hd_corpus_writer_free(w);
    if (hd_corpus_open(c, in_dir("s"), &err)) fail_msg("%s", err.message);
}

static hd_sampler *sampler(hd_sampler_spec spec) {
    hd_error err = {0};
    hd_sampler *s = hd_sampler_new(&spec, &err);
    if (!s) fail_msg("%s", err.message);
    return s;
}

static void an_epoch_holds_each_target_once(void **state) {
    (void)state;
    hd_error err = {0};
    hd_corpus c;
    open_unique(&c);
    for (int keep = 0; keep < 2; keep++) {
        hd_sampler *s = sampler((hd_sampler_spec){.corpus = &c, .length = LENGTH, .vocab_size = VOCAB, .seed = 3, .shuffle = true, .keep_tail = keep});
        for (int epoch = 0; epoch < 2; epoch++) {
            static int seen[VOCAB];
            memset(seen, 0, sizeof seen);
            int targets_seen = 0;
            for (int64_t i = 0; i < hd_sampler_rows(s); i++) {
                int32_t tokens[LENGTH], targets[LENGTH];
                assert_int_equal(hd_sampler_row(s, epoch * hd_sampler_rows(s) + i, tokens, targets, NULL, NULL, &err), 0);
                for (int k = 0; k < LENGTH; k++) {
                    if (targets[k] < 0) continue;
                    assert_int_equal(seen[targets[k]]++, 0);
                    targets_seen++;
                    if (k + 1 < LENGTH) assert_int_equal(targets[k], tokens[k + 1]);
                }
            }
            int64_t all = hd_corpus_tokens(&c) - 1;
            assert_int_equal(targets_seen, keep ? all : all / LENGTH * LENGTH);
        }
        hd_sampler_free(s);
    }
    hd_corpus_close(&c);
}

static void resumes_in_the_middle_of_an_epoch(void **state) {
    (void)state;
    hd_error err = {0};
    hd_corpus c;
    open_unique(&c);
    hd_sampler_spec spec = {.corpus = &c, .length = LENGTH, .vocab_size = VOCAB, .seed = 11, .shuffle = true};
    hd_sampler *straight = sampler(spec);
    int64_t rows = hd_sampler_rows(straight);
    int differ_by_epoch = 0, differ_by_seed = 0;
    spec.seed = 12;
    hd_sampler *other = sampler(spec);
    spec.seed = 11;
    for (int64_t i = 0; i < 3 * rows; i++) {
        int32_t a[LENGTH], b[LENGTH], x[LENGTH];
        hd_sampler *resumed = sampler(spec);
        assert_int_equal(hd_sampler_row(straight, i, a, x, NULL, NULL, &err), 0);
        assert_int_equal(hd_sampler_row(resumed, i, b, x, NULL, NULL, &err), 0);
        assert_memory_equal(a, b, sizeof a);
        assert_int_equal(hd_sampler_row(resumed, i + rows, b, x, NULL, NULL, &err), 0);
        differ_by_epoch += memcmp(a, b, sizeof a) != 0;
        assert_int_equal(hd_sampler_row(other, i, b, x, NULL, NULL, &err), 0);
        differ_by_seed += memcmp(a, b, sizeof a) != 0;
        hd_sampler_free(resumed);
    }
    assert_true(differ_by_epoch > 2 * rows && differ_by_seed > 2 * rows);
    hd_sampler_free(straight);
    hd_sampler_free(other);
    hd_corpus_close(&c);
}

/* Marks the documents that a side's rows touch. */
static void mark_documents(const hd_corpus *c, hd_split_side side, double fraction, int *touched) {
    hd_error err = {0};
    hd_sampler *s = sampler((hd_sampler_spec){.corpus = c, .side = side, .valid_fraction = fraction, .length = 8, .vocab_size = VOCAB, .keep_tail = true});
    for (int64_t i = 0; i < hd_sampler_rows(s); i++) {
        int32_t tokens[8], targets[8];
        assert_int_equal(hd_sampler_row(s, i, tokens, targets, NULL, NULL, &err), 0);
        for (int k = 0; k < 8; k++) {
            int64_t d = 0;
            if (targets[k] < 0) continue;
            while (c->start[d + 1] <= targets[k]) d++;
            touched[d] |= 1 << side;
        }
    }
    hd_sampler_free(s);
}

static void splits_by_document(void **state) {
    (void)state;
    static const double fractions[] = {0.3, 1e-12};
    hd_corpus c;
    open_unique(&c);
    for (int i = 0; i < 2; i++) {
        int touched[DOCS] = {0}, valid = 0;
        mark_documents(&c, HD_SPLIT_TRAIN, fractions[i], touched);
        mark_documents(&c, HD_SPLIT_VALID, fractions[i], touched);
        for (int d = 1; d < DOCS; d++) { /* document 0 has one token, which may be no row's target */
            assert_true(touched[d] == 1 << HD_SPLIT_TRAIN || touched[d] == 1 << HD_SPLIT_VALID);
            valid += touched[d] == 1 << HD_SPLIT_VALID;
        }
        assert_true(i ? valid == 1 : valid > 30 && valid < 90);
    }
    hd_corpus_close(&c);
}

static void parts_documents_when_asked(void **state) {
    (void)state;
    hd_error err = {0};
    hd_corpus c;
    open_unique(&c);
    hd_sampler *s = sampler((hd_sampler_spec){.corpus = &c, .length = LENGTH, .vocab_size = VOCAB, .separate = true, .keep_tail = true, .pad_id = 9});
    for (int64_t i = 0; i < hd_sampler_rows(s); i++) {
        int32_t tokens[LENGTH], targets[LENGTH], positions[LENGTH], segments[LENGTH];
        assert_int_equal(hd_sampler_row(s, i, tokens, targets, positions, segments, &err), 0);
        for (int k = 0; k < LENGTH; k++) {
            bool padding = i * LENGTH + k >= hd_corpus_tokens(&c);
            if (padding) {
                assert_true(tokens[k] == 9 && targets[k] == -1);
                continue;
            }
            bool begins = false, ends = false;
            for (int d = 0; d < DOCS; d++) {
                begins |= c.start[d] == tokens[k];
                ends |= c.start[d + 1] == tokens[k] + 1;
            }
            if (k == 0 || begins) assert_int_equal(positions[k], 0);
            else assert_int_equal(positions[k], positions[k - 1] + 1);
            if (k) assert_int_equal(segments[k], segments[k - 1] + begins);
            assert_int_equal(targets[k], ends ? -1 : tokens[k] + 1);
        }
    }
    hd_sampler_free(s);
    hd_corpus_close(&c);
}

static void too_small_a_corpus_is_named(void **state) {
    (void)state;
    hd_error err = {0};
    hd_corpus c;
    write_corpus(in_dir("z"), 3, 100);
    assert_int_equal(hd_corpus_open(&c, in_dir("z"), &err), 0);
    hd_sampler_spec spec = {.corpus = &c, .length = 64, .vocab_size = 100};
    assert_null(hd_sampler_new(&spec, &err));
    assert_non_null(strstr(err.message, "6 tokens in 3 documents"));
    hd_corpus_close(&c);
}

static void counts_bytes_per_token(void **state) {
    (void)state;
    hd_error err = {0};
    hd_corpus c;
    hd_tokenizer *t = byte_tokenizer();
    const char *path = in_dir("p.txt");
    write_file(path, "abc\nabcdefg\n");
    hd_corpus_spec spec = {.tokenizer = t, .unit = HD_TEXT_LINE, .end_id = 1, .quiet = true};
    assert_int_equal(hd_corpus_build(&spec, &path, 1, in_dir("p"), NULL, &err), 0);
    assert_int_equal(hd_corpus_open(&c, in_dir("p"), &err), 0);
    hd_sampler *s = sampler((hd_sampler_spec){.corpus = &c, .length = 4, .vocab_size = 259});
    assert_true(hd_sampler_bytes_per_token(s, t, &err) == 10.0 / 12.0); /* ten letters, two ends */
    hd_sampler_free(s);
    hd_corpus_close(&c);
    hd_tokenizer_free(t);
}

/* ---- fine-tuning rows ---------------------------------------------------------------------------------------------- */

static void masks_prompts(void **state) {
    (void)state;
    hd_error err = {0};
    hd_tokenizer *t = byte_tokenizer();
    const char *path = in_dir("i.jsonl");
    write_file(path, "{\"prompt\":\"ab\",\"answer\":\"XY\"}\n\n{\"prompt\":\"c\",\"answer\":\"Z\"}\n{\"prompt\":\"\",\"answer\":\"0123456789\"}\n");
    for (int pack = 0; pack < 2; pack++) {
        hd_instruct_spec spec = {.tokenizer = t, .end_id = 1, .pad_id = 2, .length = 8, .pack = pack, .seed = 5};
        hd_instruct *d = hd_instruct_load(&spec, &path, 1, &err);
        if (!d) fail_msg("%s", err.message);
        assert_int_equal(hd_instruct_examples(d), 3);
        assert_int_equal(hd_instruct_cut(d), 1);
        assert_true(pack ? hd_instruct_rows(d) <= 3 : hd_instruct_rows(d) == 3);
        hd_str predicted;
        hd_str_init(&predicted);
        int masked = 0, ends = 0;
        for (int64_t i = 0; i < hd_instruct_rows(d); i++) {
            int32_t tokens[8], targets[8], positions[8], segments[8];
            assert_int_equal(hd_instruct_row(d, i, tokens, targets, positions, segments, &err), 0);
            for (int k = 0; k < 8; k++) {
                masked += targets[k] < 0;
                ends += targets[k] == 1;
                if (k && segments[k] == segments[k - 1] && tokens[k] != 2) assert_int_equal(positions[k], positions[k - 1] + 1);
                if (targets[k] >= 0) assert_int_equal(hd_tokenizer_decode(t, &targets[k], 1, true, &predicted, &err), 0);
            }
        }
        assert_int_equal(predicted.len, 2 + 1 + 8); /* XY, Z, and 1 to 8 of the digits: the first has nothing before it, the last is cut */
        assert_null(strpbrk(predicted.data, "abc09"));
        assert_int_equal(ends, 2);
        assert_int_equal(masked, 8 * hd_instruct_rows(d) - 13);
        hd_str_free(&predicted);
        hd_instruct_free(d);
    }
    hd_tokenizer_free(t);
}

static void names_what_is_wrong_with_examples(void **state) {
    (void)state;
    static const struct { const char *text, *says; } cases[] = {
        {"", "no example"},
        {"{\"prompt\":\"a\"}", "line 1: no text under \"answer\""},
        {"{\"prompt\":\"a\",\"answer\":\"b\"}\n{", "line 2: not JSON"},
        {"{\"prompt\":\"0123456789\",\"answer\":\"b\"}", "line 1: no token of the answer fits"},
    };
    hd_tokenizer *t = byte_tokenizer();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hd_error err = {0};
        const char *path = in_dir("j.jsonl");
        write_file(path, cases[i].text);
        hd_instruct_spec spec = {.tokenizer = t, .end_id = 1, .length = 8};
        assert_null(hd_instruct_load(&spec, &path, 1, &err));
        if (!strstr(err.message, cases[i].says)) fail_msg("\"%s\" doesn't say %s", err.message, cases[i].says);
    }
    hd_tokenizer_free(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_what_it_wrote), cmocka_unit_test(writes_megatrons_bytes), cmocka_unit_test(refuses_damaged_files),
        cmocka_unit_test(full_disk_leaves_the_old_corpus), cmocka_unit_test(builds_documents_from_text), cmocka_unit_test(threads_build_the_same_files),
        cmocka_unit_test(names_what_is_wrong_with_a_text), cmocka_unit_test(an_epoch_holds_each_target_once),
        cmocka_unit_test(resumes_in_the_middle_of_an_epoch), cmocka_unit_test(splits_by_document), cmocka_unit_test(parts_documents_when_asked),
        cmocka_unit_test(too_small_a_corpus_is_named), cmocka_unit_test(counts_bytes_per_token), cmocka_unit_test(masks_prompts),
        cmocka_unit_test(names_what_is_wrong_with_examples),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
