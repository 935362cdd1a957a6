/* bench.c: heddle bench: the project's benchmarks, each against the machine's bound; the programs bench_NAME that stand beside this one. */
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/file.h"
#include "base/mem.h"
#include "base/term.h"
#include "cli/cli.h"
#include "cluster/measure.h"

#define PATH_SIZE 4096
#define MOST_WORDS 12

typedef struct config {
    int64_t threads;
    double seconds;
    bool list;
} config;

#define AT(field) offsetof(config, field)
static const hd_setting settings[] = {
    {"threads", HD_SET_INT, AT(threads), "0", 0, 256, "N", "0: one per core"},
    {"seconds", HD_SET_NUMBER, AT(seconds), "4", 0.01, 1e6, "X", "of measuring, for each figure of train, decode and comm"},
    {"list", HD_SET_BOOL, AT(list), NULL, 0, 0, NULL, "only say which there are"},
    {0},
};

/* What one line of the table runs: a program and its words, in which THREADS and SECONDS stand for the flags. */
#define THREADS "threads=%lld"
#define SECONDS "seconds=%g"
typedef struct benchmark {
    const char *name;
    const char *program; /* NULL: in this process */
    const char *words[MOST_WORDS];
} benchmark;

#define SMALL "layers=6", "width=384", "heads=6", "vocab=4096"
static const benchmark benchmarks[] = {
    {"bounds", NULL, {NULL}},
    {"gemm", "bench_gemm", {"%lld"}},
    {"kernels", "bench_kernels", {"--threads", "%lld"}},
    {"blocks", "bench_blocks", {"%lld"}},
    {"train", "bench_train", {"table=GPT-2 10M", SMALL, "precision=f32", THREADS, SECONDS}},
    {"train", "bench_train", {"table=GPT-2 10M", SMALL, "precision=bf16", THREADS, SECONDS}},
    {"train", "bench_train", {"table=GPT-2 124M", "precision=f32", THREADS, SECONDS}},
    {"train", "bench_train", {"table=GPT-2 124M", "precision=bf16", THREADS, SECONDS}},
    {"train", "bench_train", {"table=GPT-2 124M", "sequence=64", "precision=f32", THREADS, SECONDS}},
    {"train", "bench_train", {"table=GPT-2 124M", "sequence=64", "precision=bf16", THREADS, SECONDS}},
    {"decode", "bench_decode", {"table=GPT-2 124M", "precision=bf16", "threads=1", SECONDS}},
    {"decode", "bench_decode", {"table=GPT-2 124M", "precision=bf16", THREADS, SECONDS}},
    {"comm", "bench_comm", {"table=local", "ranks=%lld", SECONDS}},
    {"parallel", "bench_parallel", {"table=GPT-2 46M", "ranks=2"}},
};
#define N_BENCHMARKS (sizeof benchmarks / sizeof benchmarks[0])
static const struct { const char *name, *what; } groups[] = {
    {"bounds", "what this machine reaches at best: arithmetic in registers, reading memory"},
    {"gemm", "dense products, against those bounds and against oneDNN and OpenBLAS where they are"},
    {"kernels", "every other kernel at the shapes of GPT-2 124M"},
    {"blocks", "products with weights in GGUF's block types, one row and many, against the read bandwidth and the int8 bound"},
    {"train", "whole training steps: tokens/s, FLOP/s over the bound, memory beside its prediction"},
    {"decode", "generating: weights read over the read bandwidth, FLOP/s of the prompt over the bound"},
    {"comm", "all-reduce and all-gather between local ranks, one for each thread, against the copy bandwidth"},
    {"parallel", "two local ranks of one thread, data parallel and 1F1B, against one rank of two threads"},
};
#define N_GROUPS (sizeof groups / sizeof groups[0])

/* ---- bounds ---- */

static int print_bounds(int threads, hd_error *err)
{
    hd_team *team = hd_team_new(threads, true, err);
    if (!team) return err->code;
    double figure[4];
    for (int i = 0; i < 4; i++) figure[i] = hd_measure((hd_bound)i, team, hd_isa_detect(), 9, NULL) * 1e-9;
    printf("%d thread%s %8.1f GFLOP/s f32  %8.1f GFLOP/s bf16  %8.1f GOP/s int8  %8.1f GB/s read\n", threads, threads == 1 ? " " : "s",
           figure[HD_BOUND_F32], figure[HD_BOUND_BF16], figure[HD_BOUND_I8], figure[HD_BOUND_READ]);
    hd_team_free(team);
    return 0;
}

static int run_bounds(int threads, hd_error *err)
{
    int rc = print_bounds(1, err);
    return rc || threads == 1 ? rc : print_bounds(threads, err);
}

/* ---- programs ---- */

/* The program in the build folder's bin, beside this one, or where it is installed. */
static int find_program(char *path, const char *name, hd_error *err)
{
    static const char *const places[] = {"bin/", "", "../libexec/heddle/"};
    char self[PATH_SIZE - 64];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0) return hd_fail_errno(err, "/proc/self/exe");
    self[n] = 0;
    *strrchr(self, '/') = 0;
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        snprintf(path, PATH_SIZE, "%s/%s%s", self, places[i], name);
        if (!access(path, X_OK)) return 0;
    }
    return hd_fail(err, HD_EIO, "%s is not there, neither in %s/bin, nor in %s, nor in %s/../libexec/heddle: build or install it", name,
                   self, self, self);
}

extern char **environ;

static int spawn_and_wait(const char *path, char *const *argv, hd_error *err)
{
    pid_t pid;
    int status = 0;
    fflush(stdout);
    if (posix_spawn(&pid, path, NULL, NULL, argv, environ)) return hd_fail_errno(err, "%s", path);
    if (waitpid(pid, &status, 0) != pid) return hd_fail_errno(err, "%s", path);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return 0;
    return hd_fail(err, HD_EIO, "%s failed (status %d)", path, WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

static int run_program(const benchmark *b, long long threads, double seconds, hd_error *err)
{
    char path[PATH_SIZE], word[MOST_WORDS][64], *argv[MOST_WORDS + 2] = {path};
    int rc = find_program(path, b->program, err);
    for (int i = 0; i < MOST_WORDS && b->words[i]; i++) {
        const char *w = b->words[i];
        if (strstr(w, "%lld")) snprintf(word[i], sizeof word[i], "%.*s%lld", (int)(strchr(w, '%') - w), w, threads);
        else if (strstr(w, "%g")) snprintf(word[i], sizeof word[i], "%.*s%g", (int)(strchr(w, '%') - w), w, seconds);
        else snprintf(word[i], sizeof word[i], "%s", w);
        argv[i + 1] = word[i];
    }
    return rc ? rc : spawn_and_wait(path, argv, err);
}

/* ---- the command ---- */

static bool is_wanted(const char *name, const char *const *words, int n_words)
{
    for (int i = 0; i < n_words; i++)
        if (!strcmp(name, words[i])) return true;
    return !n_words;
}

static int check_words(const char *const *words, int n_words, hd_error *err)
{
    for (int i = 0; i < n_words; i++) {
        bool known = false;
        for (size_t k = 0; k < N_GROUPS; k++) known |= !strcmp(words[i], groups[k].name);
        if (!known)
            return hd_fail(err, HD_EINVAL, "there is no benchmark \"%s\": they are bounds, gemm, kernels, train, decode, comm and parallel", words[i]);
    }
    return 0;
}

static int run_group(const char *name, int threads, double seconds, hd_error *err)
{
    int rc = 0;
    for (size_t i = 0; i < N_BENCHMARKS && !rc; i++) {
        const benchmark *b = &benchmarks[i];
        if (strcmp(b->name, name)) continue;
        rc = b->program ? run_program(b, threads, seconds, err) : run_bounds(threads, err);
    }
    return rc;
}

static int run(const void *config_, const char *const *words, int n_words, hd_error *err)
{
    const config *c = config_;
    int threads = c->threads ? (int)c->threads : hd_core_count(), rc = check_words(words, n_words, err);
    for (size_t i = 0; i < N_GROUPS && !rc; i++) {
        if (!is_wanted(groups[i].name, words, n_words)) continue;
        printf("%s%s: %s\n", i && !c->list ? "\n" : "", groups[i].name, groups[i].what);
        if (!c->list) rc = run_group(groups[i].name, threads, c->seconds, err);
    }
    return rc;
}

const hd_command hd_cmd_bench = {
    .name = "bench",
    .usage = "[bounds|gemm|kernels|train|decode|comm|parallel ...] [flags]",
    .summary = "measure this machine and Heddle on it",
    .details = "Runs the project's benchmarks, all or those named, each beside the bound that it is held against, measured in the same run.\n"
               "Figures mean something only while the machine does nothing else (docs/benchmarks.md).",
    .settings = settings,
    .config_size = sizeof(config),
    .max_words = 7,
    .run = run,
};
