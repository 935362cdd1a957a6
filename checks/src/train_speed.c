/* train_speed.c: a training step's speed and memory against PyTorch's, in one run with the sides taking turns; see checks/train-speed.
 *
 *   check_train_speed BENCH_TRAIN --model NAME KEYS... [--peer PYTHON PEER_SCRIPT] [--rounds N] [--seconds X] [--only TEXT]
 *
 * --model gives the shape of a model that comparisons name, as keys ("layers=12 width=768 ...") that both sides take.
 * Both sides are processes that stay resident and run N steps when told to (bench_train serve=1, bench/peer_torch_train.py). A round is:
 * read bandwidth, our steps, read bandwidth, their steps, read bandwidth; where these three differ by over 10 %, the round is done again, a
 * few times at most. The peer first runs under each of several settings from outside, and keeps the fastest. Memory is VmHWM of processes
 * that do nothing else. */
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/mem.h"
#include "base/term.h"
#include "cluster/measure.h"

enum { MAX_ROUNDS = 99, TRIES = 4, MEMORY_STEPS = 3, MAX_MODELS = 4, MAX_KEYS = 8 };

/* A model's shape as keys that both sides take; NULL ends. */
typedef struct shape { const char *model, *key[MAX_KEYS + 1]; } shape;

typedef struct comparison {
    const char *name;
    const char *model;    /* one whose shape was given with --model */
    const char *sequence; /* key */
    const char *precision;
    int tokens;           /* of a step */
    double speed, memory; /* least ratio of tokens/s; most ratio of peak memory, 0: not asked */
} comparison;

static const comparison comparisons[] = {
    {"124M, 4 x 256, f32", "gpt2-124m", "sequence=256", "f32", 1024, 1.2, 0.7},
    {"124M, 4 x 256, bf16", "gpt2-124m", "sequence=256", "bf16", 1024, 1.15, 0.7},
    {"124M, 4 x 64, f32", "gpt2-124m", "sequence=64", "f32", 256, 1.2, 0.8},
    {"124M, 4 x 64, bf16", "gpt2-124m", "sequence=64", "bf16", 256, 1.15, 0.8},
    {"10M, 4 x 256, f32", "gpt2-10m", "sequence=256", "f32", 1024, 1.25, 0.7},
    {"10M, 4 x 256, bf16", "gpt2-10m", "sequence=256", "bf16", 1024, 1.25, 0.7},
};

/* What PyTorch is told from outside. Freed memory stays mapped; huge pages; which OpenBLAS stands behind libblas. */
#define LIBRARIES "/usr/lib/x86_64-linux-gnu/"
#define KEEP_MAPPED "MALLOC_MMAP_MAX_=0", "MALLOC_TRIM_THRESHOLD_=100000000000", "MALLOC_TOP_PAD_=67108864", "MALLOC_ARENA_MAX=1"
typedef struct variant { const char *name; const char *set[12]; } variant;
static const variant variants[] = {
    {"OpenBLAS with OpenMP, memory kept", {"OMP_NUM_THREADS=2", "LD_LIBRARY_PATH=" LIBRARIES "openblas-openmp", KEEP_MAPPED}},
    {"the same, huge pages",
     {"OMP_NUM_THREADS=2", "LD_LIBRARY_PATH=" LIBRARIES "openblas-openmp", KEEP_MAPPED, "GLIBC_TUNABLES=glibc.malloc.hugetlb=1"}},
    {"the same, AVX-512 in ATen",
     {"OMP_NUM_THREADS=2", "LD_LIBRARY_PATH=" LIBRARIES "openblas-openmp", KEEP_MAPPED, "GLIBC_TUNABLES=glibc.malloc.hugetlb=1",
      "ATEN_CPU_CAPABILITY=avx512"}},
    {"OpenBLAS with pthreads, memory kept, huge pages",
     {"OMP_NUM_THREADS=2", "OPENBLAS_NUM_THREADS=2", "LD_LIBRARY_PATH=" LIBRARIES "openblas-pthread", KEEP_MAPPED,
      "GLIBC_TUNABLES=glibc.malloc.hugetlb=1"}},
};
/* Where speed does not count: glibc as it is. */
static const variant plain_malloc = {"glibc's malloc as it is", {"OMP_NUM_THREADS=2", "LD_LIBRARY_PATH=" LIBRARIES "openblas-openmp"}};
#define N_VARIANTS ((int)(sizeof variants / sizeof variants[0]))

typedef struct check {
    const char *bench, *python, *peer, *only;
    shape shapes[MAX_MODELS];
    int n_shapes;
    int rounds;
    double seconds;
    hd_team *team;
    void *buffer; /* for the read bandwidth */
    int failed;
} check;

/* ---- a resident process that runs steps ---- */

typedef struct side {
    pid_t pid;
    FILE *to, *from;
    double flops;   /* of a step; 0: the side does not say */
    int foreach;    /* PyTorch: the way it chose */
    double seconds; /* of the last run */
    double peak;    /* VmHWM in bytes after it */
} side;

static void stop(side *s)
{
    if (!s->pid) return;
    fclose(s->to); /* the end of its input ends it */
    fclose(s->from);
    waitpid(s->pid, NULL, 0);
    *s = (side){0};
}

static void run_child(const char *const *argv, const variant *v, int in, int out)
{
    dup2(in, 0);
    dup2(out, 1);
    for (int fd = 3; fd < 64; fd++) close(fd);
    for (int i = 0; v && i < 12 && v->set[i]; i++) putenv((char *)(intptr_t)v->set[i]);
    execvp(argv[0], (char *const *)(intptr_t)argv);
    fprintf(stderr, "check_train_speed: %s cannot be run\n", argv[0]);
    _exit(127);
}

static bool start(side *s, const char *const *argv, const variant *v)
{
    int to[2], from[2];
    char line[256];
    if (pipe(to) || pipe(from)) return false;
    fflush(NULL);
    *s = (side){.pid = fork()};
    if (s->pid < 0) return s->pid = 0, false;
    if (!s->pid) run_child(argv, v, to[0], from[1]);
    close(to[0]);
    close(from[1]);
    s->to = fdopen(to[1], "w");
    s->from = fdopen(from[0], "r");
    if (fgets(line, sizeof line, s->from) && sscanf(line, "ready %lf %d", &s->flops, &s->foreach) >= 1) return true;
    stop(s);
    return false;
}

static bool run_steps(side *s, int steps)
{
    char line[256];
    fprintf(s->to, "run %d\n", steps);
    fflush(s->to);
    return fgets(line, sizeof line, s->from) && sscanf(line, "ran %lf %lf", &s->seconds, &s->peak) == 2;
}

static const shape *shape_of(const check *k, const char *model)
{
    for (int i = 0; i < k->n_shapes; i++)
        if (!strcmp(k->shapes[i].model, model)) return &k->shapes[i];
    return NULL;
}

static int put_keys(const check *k, const char **argv, int n, const comparison *c, const char *precision)
{
    for (const char *const *key = shape_of(k, c->model)->key; *key; key++) argv[n++] = *key;
    argv[n++] = "batch=4";
    argv[n++] = c->sequence;
    argv[n++] = precision;
    argv[n++] = "threads=2";
    return n;
}

static bool start_ours(const check *k, side *s, const comparison *c)
{
    char precision[32];
    const char *argv[MAX_KEYS + 8] = {k->bench, "serve=1"};
    snprintf(precision, sizeof precision, "precision=%s", c->precision);
    put_keys(k, argv, 2, c, precision);
    return start(s, argv, NULL);
}

/* foreach: "choose", or the way that was chosen before. */
static bool start_theirs(const check *k, side *s, const comparison *c, const variant *v, const char *foreach)
{
    char precision[32], way[32];
    const char *argv[MAX_KEYS + 8] = {k->python, k->peer};
    snprintf(precision, sizeof precision, "precision=%s", c->precision);
    snprintf(way, sizeof way, "foreach=%s", foreach);
    argv[put_keys(k, argv, 2, c, precision)] = way;
    return start(s, argv, v);
}

/* ---- figures ---- */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const double *x, int n)
{
    double sorted[MAX_ROUNDS];
    if (n < 1) return 0;
    memcpy(sorted, x, (size_t)n * sizeof *x);
    qsort(sorted, (size_t)n, sizeof *sorted, by_value);
    return n % 2 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}

static void verdict(check *k, const char *what, double value, const char *relation, double bound)
{
    bool ok = *relation == '>' ? value >= bound : value <= bound;
    if (!ok) k->failed++;
    printf("  %-44s %8.3f  %s %-6.4g %s\n", what, value, relation, bound, ok ? "PASS" : "FAIL");
    fflush(stdout);
}

static double read_bandwidth(const check *k)
{
    return hd_measure_median(HD_BOUND_READ, k->team, hd_isa_detect(), 5, k->buffer);
}

static double flop_bound(const check *k, const comparison *c)
{
    return hd_measure(strcmp(c->precision, "bf16") ? HD_BOUND_F32 : HD_BOUND_BF16, k->team, hd_isa_detect(), 9, NULL);
}

/* ---- one comparison ---- */

typedef struct rounds {
    double ours[MAX_ROUNDS], theirs[MAX_ROUNDS], ratio[MAX_ROUNDS], fraction[MAX_ROUNDS]; /* tokens/s; of the bound */
    double their_fraction[MAX_ROUNDS];
    double slowest_read, fastest_read;
    int n, repeated, uneven;
} rounds;

/* Steps per run so that the slower side takes about k->seconds. */
static int steps_for(const check *k, double seconds_per_step)
{
    int n = (int)(k->seconds / seconds_per_step + 0.5);
    return n < 2 ? 2 : n;
}

static void note_read(rounds *r, double read)
{
    if (!r->slowest_read || read < r->slowest_read) r->slowest_read = read;
    if (read > r->fastest_read) r->fastest_read = read;
}

/* theirs may be NULL. False when a side died. */
static bool one_round(const check *k, const comparison *c, side *ours, side *theirs, int steps, rounds *r)
{
    for (int attempt = 0; attempt < TRIES; attempt++) {
        double read[3], bound = flop_bound(k, c), tokens = (double)c->tokens * steps;
        read[0] = read_bandwidth(k);
        if (!run_steps(ours, steps)) return false;
        read[1] = read[2] = read_bandwidth(k);
        if (theirs && !run_steps(theirs, steps)) return false;
        if (theirs) read[2] = read_bandwidth(k);
        bound = fmax(bound, flop_bound(k, c));
        double least = fmin(read[0], fmin(read[1], read[2])), most = fmax(read[0], fmax(read[1], read[2]));
        bool uneven = most > 1.1 * least;
        if (uneven && attempt + 1 < TRIES) {
            r->repeated++;
            continue;
        }
        int i = r->n++;
        r->uneven += uneven;
        note_read(r, least), note_read(r, most);
        r->ours[i] = tokens / ours->seconds;
        r->fraction[i] = ours->flops * steps / ours->seconds / bound;
        if (!theirs) break;
        r->theirs[i] = tokens / theirs->seconds;
        r->ratio[i] = r->ours[i] / r->theirs[i];
        r->their_fraction[i] = ours->flops * steps / theirs->seconds / bound;
        break;
    }
    return true;
}

/* The fastest variant, started and warm; -1 when none runs. */
static int choose_variant(const check *k, const comparison *c, side *best)
{
    int chosen = -1;
    double best_seconds = INFINITY;
    printf("  PyTorch's settings, s/step:");
    for (int v = 0; v < N_VARIANTS; v++) {
        side s;
        if (!start_theirs(k, &s, c, &variants[v], "choose") || !run_steps(&s, 2)) continue;
        double seconds = s.seconds / 2;
        printf("%s %.3f (%s)", v ? "," : "", seconds, variants[v].name);
        fflush(stdout);
        if (seconds < best_seconds) {
            stop(best);
            *best = s;
            best_seconds = seconds;
            chosen = v;
        } else {
            stop(&s);
        }
    }
    printf("\n");
    return chosen;
}

static double our_peak(const check *k, const comparison *c)
{
    side s = {0};
    double peak = start_ours(k, &s, c) && run_steps(&s, MEMORY_STEPS) ? s.peak : 0;
    stop(&s);
    return peak;
}

/* The smaller of the peaks with the fastest settings and with malloc left alone. */
static double their_peak(const check *k, const comparison *c, int chosen, int foreach)
{
    const variant *const tried[] = {&variants[chosen], &plain_malloc};
    double least = INFINITY;
    for (int i = 0; i < 2; i++) {
        side s = {0};
        if (start_theirs(k, &s, c, tried[i], foreach ? "1" : "0") && run_steps(&s, MEMORY_STEPS)) {
            printf("  PyTorch's peak: %.0f MB (%s)\n", s.peak * 1e-6, tried[i]->name);
            least = fmin(least, s.peak);
        }
        stop(&s);
    }
    return least;
}

static void print_rounds(const rounds *r, bool peer)
{
    printf("  read bandwidth %.1f to %.1f GB/s; %d rounds, %d done again, %d uneven all the same\n", r->slowest_read * 1e-9,
           r->fastest_read * 1e-9, r->n, r->repeated, r->uneven);
    printf("  tokens/s (medians): Heddle %.0f", median(r->ours, r->n));
    if (peer) printf(", PyTorch %.0f", median(r->theirs, r->n));
    printf("\n  FLOP/s over the bound (medians): Heddle %.3f", median(r->fraction, r->n));
    if (peer) printf(", PyTorch %.3f", median(r->their_fraction, r->n));
    printf("\n");
}

static void compare(check *k, const comparison *c)
{
    side ours = {0}, theirs = {0};
    rounds r = {.n = 0};
    int chosen = -1;
    double slowest = 0;
    printf("%s\n", c->name);
    bool ok = !k->peer || (chosen = choose_variant(k, c, &theirs)) >= 0;
    ok = ok && start_ours(k, &ours, c) && run_steps(&ours, 2);
    if (ok) slowest = fmax(ours.seconds, theirs.seconds) / 2;
    int steps = ok ? steps_for(k, slowest) : 0, foreach = theirs.foreach;
    for (int i = 0; i < k->rounds && ok; i++) ok = one_round(k, c, &ours, k->peer ? &theirs : NULL, steps, &r);
    stop(&ours);
    stop(&theirs);
    if (!ok) {
        k->failed++;
        printf("  a side did not run FAIL\n");
        return;
    }
    print_rounds(&r, k->peer != NULL);
    double peak = our_peak(k, c), their = k->peer ? their_peak(k, c, chosen, foreach) : 0;
    printf("  Heddle's peak: %.0f MB\n", peak * 1e-6);
    if (!k->peer) {
        printf("  against PyTorch: SKIP\n");
        return;
    }
    verdict(k, "tokens/s over PyTorch's (median of rounds)", median(r.ratio, r.n), ">=", c->speed);
    verdict(k, "peak memory over PyTorch's", peak > 0 ? peak / their : INFINITY, "<=", c->memory);
}

/* ---- the command ---- */

static bool add_shape(check *k, const char *model, char *keys)
{
    if (k->n_shapes == MAX_MODELS) return false;
    shape *s = &k->shapes[k->n_shapes++];
    s->model = model;
    for (int n = 0; n < MAX_KEYS && (s->key[n] = strtok(n ? NULL : keys, " ")); n++) {}
    return true;
}

static bool parse(check *k, int argc, char **argv)
{
    *k = (check){.rounds = 5, .seconds = 4};
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--peer") && i + 2 < argc) k->python = argv[i + 1], k->peer = argv[i + 2], i += 2;
        else if (!strcmp(argv[i], "--model") && i + 2 < argc && add_shape(k, argv[i + 1], argv[i + 2])) i += 2;
        else if (!strcmp(argv[i], "--rounds") && i + 1 < argc) k->rounds = atoi(argv[++i]);
        else if (!strcmp(argv[i], "--seconds") && i + 1 < argc) k->seconds = atof(argv[++i]);
        else if (!strcmp(argv[i], "--only") && i + 1 < argc) k->only = argv[++i];
        else if (*argv[i] != '-' && !k->bench) k->bench = argv[i];
        else return false;
    }
    return k->bench && k->rounds > 0 && k->rounds <= MAX_ROUNDS && k->seconds > 0;
}

int main(int argc, char **argv)
{
    check k;
    hd_error err = {0};
    if (!parse(&k, argc, argv))
        return fprintf(stderr, "usage: check_train_speed BENCH_TRAIN --model NAME KEYS... [--peer PYTHON SCRIPT] [--rounds N] [--seconds X] [--only TEXT]\n"), 2;
    signal(SIGPIPE, SIG_IGN);
    k.team = hd_team_new(hd_core_count() < 2 ? hd_core_count() : 2, true, &err);
    k.buffer = hd_map_memory(HD_MEASURE_READ_BYTES);
    if (!k.team || !k.buffer) return fprintf(stderr, "check_train_speed: out of memory\n"), 1;
    memset(k.buffer, 1, HD_MEASURE_READ_BYTES);
    double load = 0;
    if (getloadavg(&load, 1) == 1 && load > 0.5)
        printf("the machine is busy with other work (load %.1f): speeds are not to be trusted\n", load);
    int compared = 0;
    for (size_t i = 0; i < sizeof comparisons / sizeof comparisons[0]; i++)
        if (shape_of(&k, comparisons[i].model) && (!k.only || strstr(comparisons[i].name, k.only))) compared++, compare(&k,
            &comparisons[i]);
    if (!compared) fprintf(stderr, "check_train_speed: no comparison of these models has \"%s\" in its name\n", k.only ? k.only : "");
    hd_unmap_memory(k.buffer, HD_MEASURE_READ_BYTES);
    hd_team_free(k.team);
    return k.failed > 0 || !compared;
}
