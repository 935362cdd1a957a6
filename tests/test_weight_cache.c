/* A folder of packed weights: the same logits to the bit with it and without, over one rank and several; a second start packs nothing; files that are damaged,
 * cut short, of another model, or can't be written; several processes at once, and one that is killed. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/file.h"
#include "base/mem.h"
#include "serve/generator.h"
#include "random_steps.h"

#define DATA TEST_SOURCE_DIR "/tests/data/"

static char work[] = "/tmp/heddle-weights-XXXXXX";
static char folder[256], model[256], second[256], notes[256];
static int standard_error; /* the test's own */

/* ---- models ---- */

/* A Llama whose matrices are all of one type, with a head of its own; `seed` draws the numbers. */
static void write_gguf(const char *path, const char *type, uint64_t seed)
{
    hd_error e = {0};
    hd_lm_config c;
    hd_lm_tensor *list = NULL;
    size_t n = 0;
    hd_rng rng = hd_rng_new(seed);
    hd_lm_config_preset(&c, HD_ARCH_LLAMA);
    c.width = 256, c.layers = 2, c.heads = 4, c.kv_heads = 2, c.head_dim = 64, c.mlp_width = 256, c.vocab = 101, c.max_positions = 64;
    need(hd_lm_tensors(&c, &list, &n, &e), &e);
    hd_gguf_writer *w = hd_gguf_writer_new(&e);
    assert_non_null(w);
    need(hd_lm_gguf_metadata(w, &c, hd_quant_by_name(type), &e), &e);
    for (size_t i = 0; i < n; i++) need(hd_gguf_add(w, list[i].gguf, hd_quant_by_name(list[i].rank == 1 ? "F32" : type), list[i].rank, list[i].dim, &e), &e);
    need(hd_gguf_begin(w, path, &e), &e);
    for (size_t i = 0; i < n; i++) {
        const hd_quant *q = hd_quant_by_name(list[i].rank == 1 ? "F32" : type);
        int64_t count = list[i].dim[0] * (list[i].rank == 2 ? list[i].dim[1] : 1), bytes = count / q->block * q->bytes;
        unsigned char *x = hd_malloc((size_t)bytes);
        for (int64_t k = 0; k < bytes; k++) x[k] = (unsigned char)hd_rng_below(&rng, 256);
        for (int64_t k = 0; k < bytes; k += q->bytes) { /* scales and minima, or the numbers themselves, of a sensible size */
            uint16_t scale = hd_f16_from_f64((q->plain ? 0.1 : 0.002) * (hd_rng_uniform(&rng) - (q->plain ? 0.5 : 0)));
            float one = 1;
            if (list[i].rank == 1) memcpy(x + k, &one, 4);
            else memcpy(x + k, &scale, 2);
            if (!strcmp(q->name, "Q4_K")) memcpy(x + k + 2, &scale, 2);
        }
        need(hd_gguf_write_blocks(w, x, (size_t)bytes, &e), &e);
        hd_free(x);
    }
    hd_free(list);
    need(hd_gguf_end(w, 0, &e), &e);
}

static void copy(const char *from, const char *to)
{
    hd_error e = {0};
    hd_str s;
    hd_str_init(&s);
    need(hd_file_read(&s, from, 0, &e), &e);
    need(hd_file_write_atomic(to, s.data, s.len, &e), &e);
    hd_str_free(&s);
}

/* ---- running ---- */

typedef struct how { const char *path, *cache, *parallel; hd_dtype precision; int threads; } how;

/* `got`: the logits. */
static hd_lm_runner_info run(how h)
{
    hd_runner *r;
    hd_lm_runner_info info;
    hd_error e = {0};
    hd_lm_runner_options o = hd_lm_runner_options_default();
    o.threads = h.threads ? h.threads : 2, o.context = LENGTH, o.block = BLOCK, o.max_tokens = 40, o.max_parts = SEQUENCES, o.max_rows = 40;
    o.parallel = h.parallel;
    o.weight_cache = h.cache;
    if (h.precision) o.precision = h.precision, o.kv = h.precision;
    memset(got, 0, sizeof got);
    int rc = hd_lm_runner_open(&r, h.path, &o, &info, &e);
    if (rc) dup2(standard_error, 2);
    need(rc, &e);
    draw_text(3, r->vocab);
    run_all(r, 7);
    r->close(r);
    return info;
}

static void same_as_without(how h)
{
    memcpy(want, got, sizeof want);
    h.cache = NULL;
    run(h);
    if (memcmp(want, got, sizeof want)) fail_msg("%s: other logits than without the cache", h.path);
}

/* What a run writes to standard error goes to `notes`. */
static hd_lm_runner_info run_noting(how h)
{
    int fd = open(notes, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    dup2(fd, 2);
    close(fd);
    hd_lm_runner_info info = run(h);
    dup2(standard_error, 2);
    return info;
}

/* It is one line, and says so. NULL: there is none. */
static void noted(const char *words)
{
    hd_error e = {0};
    hd_str s;
    size_t lines = 0;
    hd_str_init(&s);
    need(hd_file_read(&s, notes, 0, &e), &e);
    for (size_t i = 0; i < s.len; i++) lines += s.data[i] == '\n';
    if (lines != (words != NULL) || (words && !strstr(s.data, words))) fail_msg("expected one line with \"%s\", not \"%s\"", words ? words : "", s.data);
    hd_str_free(&s);
}

/* Files in the folder that end so; path (may be NULL) gets the last one's. */
static int files(const char *end, char *path)
{
    int n = 0;
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));) {
        size_t length = strlen(e->d_name);
        if (length < strlen(end) || strcmp(e->d_name + length - strlen(end), end)) continue;
        n++;
        if (path) snprintf(path, 1024, "%s/%s", folder, e->d_name);
    }
    if (d) closedir(d);
    return n;
}

static void empty_folder(void)
{
    hd_error e = {0};
    need(hd_remove_tree(folder, &e), &e);
}

/* ---- tests ---- */

/* Three starts of each: without, first and second. */
static void test_same_bits(void **state)
{
    (void)state;
    static const struct { const char *type, *path; hd_dtype precision; const char *parallel; } cases[] = {
        {.type = "Q8_0"}, {.type = "Q4_K"}, {.type = "F16"}, {.type = "F32"}, {.type = "Q8_0", .parallel = "tp=2"}, {.type = "Q4_K", .parallel = "tp=4"},
        {.type = "F16", .precision = HD_BF16}, {.path = "gguf/llama-mixed.gguf"}, {.path = "gguf/llama-mixed.gguf", .parallel = "tp=2"},
        {.path = "models/logits/llama3", .precision = HD_F32}, {.path = "models/logits/mistral-window", .precision = HD_BF16},
        {.path = "models/logits/gpt2", .precision = HD_F32, .parallel = "tp=2"}, {.path = "models/logits/phi3", .precision = HD_BF16, .parallel = "tp=2"},
        {.path = "models/logits/gemma3", .precision = HD_F32}, {.type = "Q8_0", .parallel = "pp=2"}, {.type = "Q4_K", .parallel = "tp=2,pp=2"},
        {.path = "models/logits/gemma3", .precision = HD_BF16, .parallel = "pp=2"}, {.path = "models/logits/gpt2", .precision = HD_F32, .parallel = "pp=2"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char path[1024];
        snprintf(path, sizeof path, "%s", model);
        if (cases[i].type) write_gguf(path, cases[i].type, i);
        else snprintf(path, sizeof path, DATA "%s", cases[i].path);
        how h = {path, folder, cases[i].parallel, cases[i].precision, 3};
        int ranks = 1;
        for (const char *p = cases[i].parallel; p && (p = strchr(p, '=')); p++) ranks *= p[1] - '0';
        empty_folder();
        hd_lm_runner_info first = run_noting(h);
        noted(NULL);
        if (first.mapped || !first.packed || !first.mapped_bytes) fail_msg("%s: %d mapped and %d packed at first", path, first.mapped, first.packed);
        assert_int_equal(files(".packed", NULL), ranks);
        assert_int_equal(files(".tmp", NULL), 0);
        same_as_without(h);
        hd_lm_runner_info again = run_noting(h);
        noted(NULL);
        if (again.mapped != first.packed || again.packed) fail_msg("%s: %d mapped and %d packed at the second start", path, again.mapped, again.packed);
        assert_int_equal(again.mapped_bytes, first.mapped_bytes);
        same_as_without(h);
        assert_int_equal(files("", NULL), ranks + 2); /* and the folder itself and the one above */
    }
}

/* Another number of threads, and `heddle generate` at the same precision, use the same file. */
static void test_shared_by_all(void **state)
{
    (void)state;
    empty_folder();
    write_gguf(model, "Q8_0", 1);
    run((how){.path = model, .cache = folder, .threads = 1});
    assert_int_equal(run((how){.path = model, .cache = folder, .threads = 3}).packed, 0);
    hd_generator g;
    hd_error e = {0};
    hd_generator_options o = {.precision = HD_BF16, .threads = 2, .context = LENGTH, .weight_cache = folder};
    need(hd_generator_open(&g, model, &o, &e), &e);
    assert_int_equal(g.info.packed, 0);
    assert_int_equal(files(".packed", NULL), 1);
    hd_generator_close(&g);
}

/* Opens after the file was spoiled: told, packed anew, the same logits; then it is good again. */
static void expect_anew(how h, const char *words)
{
    hd_lm_runner_info info = run_noting(h);
    noted(words);
    if (info.mapped || !info.packed) fail_msg("%s: %d mapped and %d packed of a file that doesn't fit", words, info.mapped, info.packed);
    if (memcmp(want, got, sizeof want)) fail_msg("%s: other logits", words);
}

static void test_cut_short(void **state)
{
    (void)state;
    char path[1024];
    empty_folder();
    write_gguf(model, "Q4_K", 1);
    how h = {.path = model, .cache = folder};
    run(h);
    memcpy(want, got, sizeof want);
    assert_int_equal(files(".packed", path), 1);
    int64_t size = hd_file_size(path);
    assert_true(size > 64 * 4096);
    static const int64_t odd[] = {0, 1, 47, 48, 63, 4095};
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
        assert_int_equal(truncate(path, odd[i]), 0);
        expect_anew(h, odd[i] < 48 ? "holds no packed weights" : "cut short");
    }
    for (int64_t at = 4096; at < size; at += 4096) {
        assert_int_equal(truncate(path, at), 0);
        expect_anew(h, "cut short");
    }
    assert_int_equal(truncate(path, size + 4096), 0);
    expect_anew(h, "too long");
    assert_int_equal(run(h).packed, 0);
}

static void flip(const char *path, int64_t bit)
{
    unsigned char byte;
    int fd = open(path, O_RDWR);
    assert_int_equal(pread(fd, &byte, 1, bit / 8), 1);
    byte = (unsigned char)(byte ^ 1u << bit % 8);
    assert_int_equal(pwrite(fd, &byte, 1, bit / 8), 1);
    close(fd);
}

/* Bits of every number, and random ones of the rest of the header and of the data. */
static void test_flipped_bits(void **state)
{
    (void)state;
    char path[1024];
    hd_rng rng = hd_rng_new(4);
    empty_folder();
    write_gguf(model, "Q8_0", 1);
    how h = {.path = model, .cache = folder};
    run(h);
    memcpy(want, got, sizeof want);
    assert_int_equal(files(".packed", path), 1);
    int64_t bits = hd_file_size(path) * 8, header = 4096 * 8;
    for (int i = 0; i < 48 * 8; i += 13) {
        flip(path, i);
        expect_anew(h, "packed anew");
    }
    for (int i = 0; i < 20; i++) {
        flip(path, (int64_t)hd_rng_below(&rng, (uint64_t)header));
        expect_anew(h, "packed anew");
    }
    for (int i = 0; i < 12; i++) {
        int64_t bit = header + (int64_t)hd_rng_below(&rng, (uint64_t)(bits - header));
        flip(path, bit);
        hd_lm_runner_info info = run_noting(h);
        if (info.packed) noted("is damaged"); /* else it is between two tensors */
        assert_memory_equal(want, got, sizeof want);
        if (!info.packed) flip(path, bit);
    }
}

static void set_time(const char *path, const struct stat *st)
{
    assert_int_equal(utimensat(AT_FDCWD, path, (struct timespec[]){st->st_mtim, st->st_mtim}, 0), 0);
}

/* Of another time, of other numbers at the same time, of another model. */
static void test_changed_model(void **state)
{
    (void)state;
    struct stat st;
    empty_folder();
    write_gguf(model, "Q8_0", 1);
    how h = {.path = model, .cache = folder};
    run(h);
    memcpy(want, got, sizeof want);
    assert_int_equal(stat(model, &st), 0);
    struct stat later = st;
    later.st_mtim.tv_nsec ^= 1;
    set_time(model, &later);
    expect_anew(h, "was made from other weights");
    flip(model, (int64_t)st.st_size * 8 - 5); /* the low bits of a number */
    set_time(model, &later);
    run_noting(h);
    noted("was made from other weights");
    same_as_without(h);
    write_gguf(second, "Q8_0", 2);
    assert_int_equal(rename(second, model), 0);
    set_time(model, &later);
    run_noting(h);
    noted("was made from other weights");
    same_as_without(h);
    assert_int_equal(run(h).packed, 0);
    assert_int_equal(files(".packed", NULL), 1);
    write_gguf(second, "Q8_0", 3); /* beside it */
    assert_int_not_equal(run((how){.path = second, .cache = folder}).packed, 0);
    assert_int_equal(files(".packed", NULL), 2);
    assert_int_equal(run(h).packed, 0);
}

/* One shard of four, at the same time and of the same size. */
static void test_changed_shard(void **state)
{
    (void)state;
    static const char *const names[] = {"config.json", "model.safetensors.index.json", "model-00001-of-00004.safetensors", "model-00002-of-00004.safetensors",
                                        "model-00003-of-00004.safetensors", "model-00004-of-00004.safetensors"};
    char dir[300], from[1024], to[1024];
    struct stat st;
    hd_error e = {0};
    snprintf(dir, sizeof dir, "%s/sharded", work);
    need(hd_make_dirs(dir, &e), &e);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(from, sizeof from, DATA "models/logits/llama3/%s", names[i]);
        snprintf(to, sizeof to, "%s/%s", dir, names[i]);
        copy(from, to);
    }
    how h = {.path = dir, .cache = folder, .precision = HD_F32};
    empty_folder();
    run(h);
    assert_int_equal(run(h).packed, 0);
    assert_int_equal(stat(to, &st), 0);
    flip(to, (int64_t)st.st_size * 8 - 20);
    set_time(to, &st);
    run_noting(h);
    noted("was made from other weights");
    same_as_without(h);
}

/* ---- processes ---- */

/* In a process of its own: exits with the number of packed weights, or 99 where the logits aren't those of `want`. */
static pid_t start(how h)
{
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid) return pid;
    int packed = run(h).packed;
    _exit(memcmp(want, got, sizeof want) ? 99 : packed);
}

static void test_processes_at_once(void **state)
{
    (void)state;
    enum { PROCESSES = 4 };
    write_gguf(model, "Q4_K", 1);
    how h = {.path = model, .cache = folder};
    run((how){.path = model});
    memcpy(want, got, sizeof want);
    for (int round = 0; round < 3; round++) {
        pid_t pid[PROCESSES];
        int made = 0;
        empty_folder();
        h.parallel = round % 2 ? "tp=2" : NULL;
        for (int i = 0; i < PROCESSES; i++) pid[i] = start(h);
        for (int i = 0; i < PROCESSES; i++) {
            int status;
            assert_int_equal(waitpid(pid[i], &status, 0), pid[i]);
            if (!WIFEXITED(status) || WEXITSTATUS(status) == 99) fail_msg("a process of several ended with %x", status);
            made += WEXITSTATUS(status);
        }
        assert_int_equal(made, 15 * (1 + round % 2)); /* each weight once */
        assert_int_equal(files(".packed", NULL), 1 + round % 2);
        assert_int_equal(files(".tmp", NULL), 0);
    }
}

/* One that waited until another had renamed its file, which then doesn't fit, makes its own: that one is mapped elsewhere. */
static void test_renamed_by_another(void **state)
{
    (void)state;
    char path[1024], temporary[1100], junk[5000] = "junk", after[sizeof junk];
    int status;
    empty_folder();
    write_gguf(model, "Q8_0", 1);
    how h = {.path = model, .cache = folder};
    run(h);
    memcpy(want, got, sizeof want);
    assert_int_equal(files(".packed", path), 1);
    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    assert_int_equal(unlink(path), 0);
    int fd = open(temporary, O_RDWR | O_CREAT | O_EXCL, 0666);
    assert_true(fd >= 0 && !flock(fd, LOCK_EX));
    pid_t pid = start(h);
    usleep(100 * 1000);
    assert_int_equal(waitpid(pid, &status, WNOHANG), 0); /* it waits */
    assert_int_equal(pwrite(fd, junk, sizeof junk, 0), sizeof junk);
    assert_int_equal(rename(temporary, path), 0);
    assert_int_equal(flock(fd, LOCK_UN), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 15);
    assert_int_equal(pread(fd, after, sizeof after, 0), sizeof after);
    assert_memory_equal(after, junk, sizeof junk);
    close(fd);
    assert_int_equal(run(h).packed, 0);
}

static void test_killed(void **state)
{
    (void)state;
    hd_rng rng = hd_rng_new(9);
    int halves = 0;
    write_gguf(model, "Q4_K", 1);
    how h = {.path = model, .cache = folder};
    run((how){.path = model});
    memcpy(want, got, sizeof want);
    for (int round = 0; round < 10; round++) {
        empty_folder();
        pid_t pid = start(h);
        for (int i = 0; i < 4000 && !files("", NULL); i++) usleep(100);
        usleep((useconds_t)hd_rng_below(&rng, 6000));
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        halves += files(".tmp", NULL);
        run_noting(h);
        noted(NULL); /* what is there is good */
        assert_memory_equal(want, got, sizeof want);
        assert_int_equal(run(h).packed, 0);
        assert_int_equal(files(".tmp", NULL), 0);
    }
    assert_true(halves > 0);
}

/* ---- what can't be written ---- */

static void expect_without(how h, const char *words)
{
    hd_lm_runner_info info = run_noting(h);
    noted(words);
    if (info.mapped || info.mapped_bytes || !info.packed) fail_msg("%s: %d mapped", words, info.mapped);
    assert_memory_equal(want, got, sizeof want);
}

static void test_unwritable(void **state)
{
    (void)state;
    char inside[600], path[1024];
    write_gguf(model, "F16", 1);
    run((how){.path = model});
    memcpy(want, got, sizeof want);
    snprintf(inside, sizeof inside, "%s/folder", model);
    expect_without((how){.path = model, .cache = inside}, "going on without");
    expect_without((how){.path = model, .cache = "/proc/nowhere"}, "going on without");
    expect_without((how){.path = model, .cache = ""}, "going on without");

    struct rlimit old, small = {.rlim_cur = 100000}; /* a disk that is soon full */
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small.rlim_max = old.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    empty_folder();
    setrlimit(RLIMIT_FSIZE, &small);
    expect_without((how){.path = model, .cache = folder}, "File too large");
    setrlimit(RLIMIT_FSIZE, &old);
    assert_int_equal(files("", NULL), 2);

    run((how){.path = model, .cache = folder}); /* a good file, then a folder that nobody may write to */
    assert_int_equal(chmod(folder, 0500), 0);
    assert_int_equal(run((how){.path = model, .cache = folder}).packed, 0);
    assert_int_equal(files(".packed", path), 1);
    if (geteuid()) { /* root may */
        assert_int_equal(truncate(path, 4096), 0);
        run_noting((how){.path = model, .cache = folder});
        assert_memory_equal(want, got, sizeof want);
    }
    assert_int_equal(chmod(folder, 0700), 0);
    assert_int_equal(unlink(path), 0); /* a folder in the file's place */
    assert_int_equal(mkdir(path, 0777), 0);
    run_noting((how){.path = model, .cache = folder});
    assert_memory_equal(want, got, sizeof want);
}

/* Wherever memory runs out, opening fails with that or works, and the folder holds a good file or none. */
static void test_out_of_memory(void **state)
{
    (void)state;
    hd_lm_runner_options o = hd_lm_runner_options_default();
    write_gguf(model, "Q8_0", 1);
    run((how){.path = model});
    memcpy(want, got, sizeof want);
    o.threads = 1, o.context = LENGTH, o.block = BLOCK, o.max_tokens = 40, o.max_parts = SEQUENCES, o.max_rows = 40, o.weight_cache = folder;
    for (int warm = 0; warm < 2; warm++) {
        uint64_t step = warm ? 1 : 3, done = 0;
        bool over = false;
        for (uint64_t n = 1; !over; n += 1 + n / 40 * step) {
            hd_runner *r = NULL;
            hd_error e = {0};
            if (!warm) empty_folder();
            uint64_t failed = hd_mem_failed();
            hd_mem_fail_at(n);
            int rc = hd_lm_runner_open(&r, model, &o, NULL, &e);
            over = hd_mem_failed() == failed;
            hd_mem_fail_at(0);
            if (rc && rc != HD_ENOMEM) fail_msg("allocation %llu: %s", (unsigned long long)n, e.message);
            if (!rc) r->close(r);
            assert_int_equal(files(".tmp", NULL), 0);
            done++;
        }
        assert_true(done > 40);
        run((how){.path = model, .cache = folder});
        assert_memory_equal(want, got, sizeof want);
    }
}

/* Weights of random numbers have no file. */
static void test_no_files(void **state)
{
    (void)state;
    hd_runner *r;
    hd_error e = {0};
    hd_lm_config c;
    hd_lm_runner_info info;
    hd_lm_runner_options o = hd_lm_runner_options_default();
    hd_lm_config_preset(&c, HD_ARCH_LLAMA);
    c.width = 16, c.layers = 1, c.heads = 2, c.kv_heads = 1, c.head_dim = 8, c.mlp_width = 32, c.vocab = 50, c.max_positions = 64;
    o.weight_cache = folder;
    o.kv_bytes = 1 << 20;
    empty_folder();
    need(hd_lm_runner_open_random(&r, &c, 1, &o, &info, &e), &e);
    r->close(r);
    assert_int_equal(info.mapped, 0);
    assert_int_equal(files("", NULL), 0);
}

static int set_up(void **state)
{
    (void)state;
    standard_error = dup(2);
    if (!mkdtemp(work) || standard_error < 0) return -1;
    snprintf(folder, sizeof folder, "%s/cache", work);
    snprintf(model, sizeof model, "%s/model.gguf", work);
    snprintf(second, sizeof second, "%s/second.gguf", work);
    snprintf(notes, sizeof notes, "%s/notes", work);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    return hd_remove_tree(work, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits), cmocka_unit_test(test_shared_by_all), cmocka_unit_test(test_cut_short), cmocka_unit_test(test_flipped_bits),
        cmocka_unit_test(test_changed_model), cmocka_unit_test(test_changed_shard), cmocka_unit_test(test_processes_at_once),
        cmocka_unit_test(test_renamed_by_another), cmocka_unit_test(test_killed), cmocka_unit_test(test_unwritable), cmocka_unit_test(test_out_of_memory), cmocka_unit_test(test_no_files),
    };
#ifdef __SANITIZE_THREAD__
    cmocka_set_test_filter("test_s*"); /* ranks that share a folder; the others would take a minute, of one rank each */
#endif
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
