/* predict_local.c: what the simulator says of small training jobs and of generating, against what they take on this machine; see checks/predict-local.
 *
 *   check_predict_local CLUSTER [--only N] [--short] [--gguf FILE]   all jobs: predicted, measured, judged; FILE: a model in blocks for generating, too
 *   check_predict_local --ops CLUSTER N                job N's time by op: predicted, measured
 *   check_predict_local --run N FILE, --predict CLUSTER N GB/S FILE   (the same program as a child: job N alone in a process, run or predicted)
 *
 * Each job runs in a process of its own, so that its peak memory (VmHWM) is its own, and takes a step when it is told to. The read bandwidth of all cores is
 * measured before and after each: memory of shared machines moves between regimes. Steps count where it is what it was in calibration to 10 %; where too few
 * are such, all count, and the prediction is for memory as it was around them (hd_cost_set_bandwidth); the line says so. */
#include <fcntl.h>
#include <math.h>
#include <sys/wait.h>
#include <unistd.h>
#include "cluster/measure.h"
#include "predict_ops.h"
#include "predict_run.h"
#include "serve/generator.h"
#include "sim/sim.h"

enum { MOST_STEPS = 15, GENERATED = 32, BANDWIDTH_ROUNDS = 5 };
#define MOST_ERROR 0.15
#define MEAN_ERROR 0.08
#define MEMORY_ERROR 0.05
#define SAME_BANDWIDTH 0.10

static const predict_model models[] = {
    {"gpt2-10m", HD_ARCH_GPT2, 6, 384, 6, 6, 1536, 4096},
    {"llama-20m", HD_ARCH_LLAMA, 4, 512, 8, 4, 1376, 8192},
};
#define GPT2 &models[0]
#define LLAMA &models[1]
enum { JUDGED = 12 };
static const predict_job jobs[] = {
    /* model, plan, precision, micro-batches, batch, sequence, ranks, threads of each */
    {GPT2, "", HD_F32, 1, 4, 256, 1, 2},
    {GPT2, "", HD_BF16, 2, 2, 256, 1, 2},
    {LLAMA, "", HD_F32, 1, 4, 256, 1, 2},
    {LLAMA, "", HD_BF16, 1, 4, 256, 1, 2},
    {GPT2, "dp=2", HD_F32, 1, 4, 256, 2, 1},
    {LLAMA, "dp=2,zero=1", HD_BF16, 1, 4, 256, 2, 1},
    {GPT2, "dp=2,zero=3", HD_BF16, 1, 4, 256, 2, 1},
    {GPT2, "tp=2", HD_BF16, 1, 4, 256, 2, 1},
    {LLAMA, "tp=2,sp", HD_F32, 1, 4, 256, 2, 1},
    {GPT2, "pp=2", HD_F32, 4, 1, 256, 2, 1},
    {LLAMA, "pp=2", HD_BF16, 4, 1, 256, 2, 1},
    {LLAMA, "dp=2,zero=2", HD_F32, 2, 2, 256, 2, 1},
    /* reported, not judged: more ranks than cores */
    {GPT2, "dp=2,pp=2", HD_F32, 4, 2, 256, 4, 1},
    {LLAMA, "dp=2,tp=2", HD_BF16, 1, 4, 256, 4, 1},
};
enum { JOBS = sizeof jobs / sizeof jobs[0] };

/* Generating on all cores, as `heddle generate` does it: by random weights, or (no model) by those of the GGUF file that the check was given. */
typedef struct generation { const predict_model *model; hd_dtype precision; int64_t prompt, context; } generation;
static const predict_model served[] = {{"gpt2-124m", HD_ARCH_GPT2, 12, 768, 12, 12, 3072, 50257}, {"llama-135m", HD_ARCH_LLAMA, 30, 576, 9, 3, 1536, 49152}};
static const generation generations[] = {{&served[0], HD_BF16, 256, 512}, {&served[1], HD_F32, 256, 512}, {NULL, HD_F32, 256, 512}};
enum { GENERATIONS = sizeof generations / sizeof generations[0] };

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, int n)
{
    qsort(x, (size_t)n, sizeof *x, by_value);
    return x[n / 2];
}

static hd_lm_config config_of(const predict_model *m)
{
    hd_lm_config c;
    hd_lm_config_preset(&c, m->arch);
    c.layers = m->layers, c.width = m->width, c.heads = m->heads, c.kv_heads = m->kv_heads, c.vocab = m->vocab, c.mlp_width = m->mlp;
    c.max_positions = 1024;
    return c;
}

static int open_generator(hd_generator *g, const generation *x, const char *file, hd_error *err)
{
    hd_generator_options o = {.precision = x->precision, .threads = hd_core_count(), .context = x->context, .chunk = x->prompt};
    if (!x->model) return hd_generator_open(g, file, &o, err);
    hd_lm_config c = config_of(x->model);
    int rc = hd_lm_config_check(&c, x->model->name, err);
    return rc ? rc : hd_generator_open_random(g, &c, 1, &o, err);
}

/* ---- the child: one job, measured ---- */

/* For each line of standard input a step, of generating a prompt and some tokens, and its seconds on a line; at the input's end the peak memory. */
static int run_training(const predict_job *j, hd_error *err)
{
    static predict_crew crew;
    int rc = predict_measure(&crew, j, false, true, err);
    if (!rc) printf("%.9g 0\n", (double)hd_memory_peak());
    return rc;
}

static int generate_once(hd_generator *g, const generation *x, const int32_t *tokens, double *prompt, double *token, hd_error *err)
{
    const float *logits;
    hd_generator_reset(g);
    double begin = hd_time();
    int rc = hd_generator_feed(g, tokens, x->prompt, &logits, err);
    *prompt = hd_time() - begin;
    begin = hd_time();
    for (int i = 0; i < GENERATED && !rc; i++) rc = hd_generator_feed(g, tokens + x->prompt + i, 1, &logits, err);
    *token = (hd_time() - begin) / GENERATED;
    return rc;
}

static int run_generation(const generation *x, const char *file, hd_error *err)
{
    hd_generator g;
    int rc = open_generator(&g, x, file, err);
    if (rc) return rc;
    int32_t *tokens = hd_calloc((size_t)x->context, sizeof *tokens);
    double prompt, token;
    char line[16];
    for (int64_t i = 0; i < x->context && tokens; i++) tokens[i] = (int32_t)(i * 7919 % g.info.config->vocab);
    if (!tokens) rc = hd_fail_memory(err, 0, "tokens");
    while (!rc && fgets(line, sizeof line, stdin)) {
        rc = generate_once(&g, x, tokens, &prompt, &token, err);
        if (!rc) printf("%.9g %.9g\n", prompt, token), fflush(stdout);
    }
    if (!rc) printf("%.9g 0\n", (double)hd_memory_peak());
    hd_generator_close(&g);
    hd_free(tokens);
    return rc;
}

/* ---- the child: one job, predicted ---- */

/* Peak memory: what the process has before anything big is allocated (its graphs and Programs too), and what the ranks' Programs will hold. */
static int predict_training(const hd_cluster *c, const predict_job *j, hd_error *err)
{
    static predict_programs p;
    hd_sim_result r = {0};
    int rc = predict_programs_make(j, &p, err);
    double peak = (double)hd_memory_resident();
    if (!rc) rc = hd_simulate(p.program, p.n, c, NULL, &r, err);
    for (int i = 0; i < r.n_ranks; i++) peak += (double)r.rank[i].peak * r.rank[i].alike;
    if (!rc) printf("%.9g %.9g\n", r.step, peak);
    hd_sim_result_free(&r);
    predict_programs_free(&p);
    return rc;
}

/* So many tokens, which see so many keys on average. */
static int predict_call(const hd_cluster *c, const hd_program *p, int64_t tokens, int64_t keys, double *seconds, hd_error *err)
{
    int64_t binding[HD_MAX_SYMBOLS];
    hd_trace t = {.by_call = true};
    hd_sim_result r = {0};
    for (int i = 0; i < HD_MAX_SYMBOLS; i++) binding[i] = -1;
    for (int i = 0; i < p->n_symbols; i++) binding[i] = !strcmp(p->symbols[i].name, "tokens") ? tokens : -1;
    int rc = hd_simulate(&p, 1, c, &(hd_sim_options){.binding = binding, .keys = keys, .trace = &t}, &r, err);
    *seconds = 0;
    for (int64_t i = 0; !rc && i < t.n_calls; i++)
        if (!strcmp(t.calls[i].segment, hd_segment_name(HD_SEGMENT_FORWARD))) *seconds += t.calls[i].end - t.calls[i].start;
    hd_trace_free(&t);
    hd_sim_result_free(&r);
    return rc;
}

static int predict_generation(const hd_cluster *c, const generation *x, const char *file, hd_error *err)
{
    double prompt, token;
    hd_generator g;
    int rc = open_generator(&g, x, file, err);
    if (rc) return rc;
    rc = predict_call(c, g.info.program, x->prompt, (x->prompt + 1) / 2, &prompt, err);
    if (!rc) rc = predict_call(c, g.info.program, 1, x->prompt + GENERATED / 2, &token, err);
    if (!rc) printf("%.9g %.9g\n", prompt, token);
    hd_generator_close(&g);
    return rc;
}

static int predict_child(const char *path, int n, double bandwidth, const char *file, hd_error *err)
{
    hd_cluster c;
    if (n < 0 || n >= JOBS + GENERATIONS) return hd_fail(err, HD_EINVAL, "there is no job %d", n);
    int rc = hd_cluster_load(path, &c, err);
    if (rc) return rc;
    if (bandwidth > 0) hd_cost_set_bandwidth(&c, bandwidth);
    rc = n < JOBS ? predict_training(&c, &jobs[n], err) : predict_generation(&c, &generations[n - JOBS], file, err);
    hd_cluster_free(&c);
    return rc;
}

static int run_child(int n, const char *file, hd_error *err)
{
    if (n < 0 || n >= JOBS + GENERATIONS) return hd_fail(err, HD_EINVAL, "there is no job %d", n);
    return n < JOBS ? run_training(&jobs[n], err) : run_generation(&generations[n - JOBS], file, err);
}

/* ---- the parent ---- */

typedef struct check {
    const char *self, *path, *file; /* file: a model in blocks; NULL: none */
    hd_cluster cluster;
    hd_team *team;
    void *buffer; /* for the read bandwidth */
    bool brief;
    int failed;
    double errors; int n_errors;
} check;

/* A child that runs or predicts a job. */
typedef struct child { pid_t pid; FILE *to, *from; } child;

static int start(const check *k, child *c, const char *const *words, hd_error *err)
{
    int to[2], from[2];
    if (pipe2(to, O_CLOEXEC) || pipe2(from, O_CLOEXEC)) return hd_fail_errno(err, "a pipe");
    fflush(NULL);
    c->pid = fork();
    if (c->pid < 0) return hd_fail_errno(err, "a process");
    if (!c->pid) {
        dup2(to[0], 0);
        dup2(from[1], 1);
        execv(k->self, (char *const *)(intptr_t)words);
        _exit(127);
    }
    close(to[0]);
    close(from[1]);
    c->to = fdopen(to[1], "w");
    c->from = fdopen(from[0], "r");
    return 0;
}

static int hear(child *c, double figure[2], hd_error *err)
{
    char line[256];
    bool got = fgets(line, sizeof line, c->from) && sscanf(line, "%lf %lf", &figure[0], &figure[1]) == 2;
    return got ? 0 : hd_fail(err, HD_EIO, "a job ended early");
}

static int tell(child *c, double figure[2], hd_error *err)
{
    fputs("go\n", c->to);
    fflush(c->to);
    return hear(c, figure, err);
}

static void end_input(child *c)
{
    if (c->to) fclose(c->to);
    c->to = NULL;
}

static void stop(child *c)
{
    end_input(c);
    if (c->from) fclose(c->from);
    if (c->pid > 0) waitpid(c->pid, NULL, 0);
}

static double bandwidth(const check *k)
{
    return hd_measure_median(HD_BOUND_READ, k->team, hd_isa_detect(), BANDWIDTH_ROUNDS, k->buffer);
}

/* What a job's steps took: two figures of each, and the read bandwidth around it. */
typedef struct series { double a[MOST_STEPS], b[MOST_STEPS], bandwidth[MOST_STEPS]; int n; } series;

/* Steps at the bandwidth of calibration, until there are enough of them; where there are none such, whatever there is. */
static int take_steps(const check *k, child *c, series *same, series *all, hd_error *err)
{
    double ignored[2], got[2], before, after, normal = k->cluster.device.bandwidth;
    int rc = 0;
    for (int i = 0; i < PREDICT_WARM && !rc; i++) rc = tell(c, ignored, err);
    after = bandwidth(k);
    for (int i = 0; i < MOST_STEPS && same->n < PREDICT_STEPS && !rc; i++) {
        before = after;
        rc = tell(c, got, err);
        after = bandwidth(k);
        bool usual = k->brief || (fabs(before / normal - 1) <= SAME_BANDWIDTH && fabs(after / normal - 1) <= SAME_BANDWIDTH);
        for (int which = !usual; which < 2 && !rc; which++) {
            series *s = which ? all : same;
            s->a[s->n] = got[0], s->b[s->n] = got[1], s->bandwidth[s->n++] = (before + after) / 2;
        }
    }
    return rc;
}

/* Runs it: the medians of its figures, its peak memory, and the bandwidth that was *now: calibration's, or another. */
static int measure(const check *k, int n, double figure[2], double *peak, double *now, hd_error *err)
{
    char number[16];
    child c = {0};
    series same = {.n = 0}, all = {.n = 0};
    double last[2];
    snprintf(number, sizeof number, "%d", n);
    int rc = start(k, &c, (const char *const[]){k->self, "--run", number, k->file ? k->file : "", NULL}, err);
    if (!rc) rc = take_steps(k, &c, &same, &all, err);
    end_input(&c);
    if (!rc) rc = hear(&c, last, err);
    stop(&c);
    if (rc) return rc;
    bool usual = same.n >= PREDICT_STEPS;
    series *s = usual ? &same : &all;
    figure[0] = median(s->a, s->n), figure[1] = median(s->b, s->n);
    *now = usual ? k->cluster.device.bandwidth : median(s->bandwidth, s->n);
    *peak = last[0];
    return 0;
}

static int predict(const check *k, int n, double now, double figure[2], hd_error *err)
{
    char number[16], gb[32];
    child c = {0};
    snprintf(number, sizeof number, "%d", n);
    snprintf(gb, sizeof gb, "%.9g", now == k->cluster.device.bandwidth ? 0 : now);
    int rc = start(k, &c, (const char *const[]){k->self, "--predict", k->path, number, gb, k->file ? k->file : "", NULL}, err);
    if (!rc) rc = hear(&c, figure, err);
    stop(&c);
    return rc;
}

static void say_bandwidth(const check *k, double now)
{
    if (now != k->cluster.device.bandwidth) printf("  (memory at %.1f GB/s, not %.1f)", 1e-9 * now, 1e-9 * k->cluster.device.bandwidth);
}

static void verdict(check *k, double error, double most, bool judged)
{
    bool pass = !(fabs(error) > most) && isfinite(error);
    if (judged && !pass) k->failed++;
    printf(" %+6.1f %%%s", 100 * error, !judged ? "     " : pass ? " PASS" : " FAIL");
}

static int check_training(check *k, int n, hd_error *err)
{
    const predict_job *j = &jobs[n];
    double got[2], said[2], peak, now;
    int rc = measure(k, n, got, &peak, &now, err);
    if (!rc) rc = predict(k, n, now, said, err);
    if (rc) return rc;
    bool judged = n < JUDGED;
    printf("  %-9s %-11s %-4s %d rank%s  step %7.4f s, predicted %7.4f", j->model->name, j->parallel[0] ? j->parallel : "-", hd_dtype_name(j->precision), j->ranks,
           j->ranks == 1 ? " " : "s", got[0], said[0]);
    verdict(k, said[0] / got[0] - 1, MOST_ERROR, judged && !k->brief);
    printf("  peak %6.1f MiB, predicted %6.1f", peak / 1048576, said[1] / 1048576);
    verdict(k, said[1] / peak - 1, MEMORY_ERROR, judged);
    say_bandwidth(k, now);
    printf("%s\n", judged ? "" : "  not judged");
    if (judged) k->errors += fabs(said[0] / got[0] - 1), k->n_errors++;
    return 0;
}

static int check_generation(check *k, int n, hd_error *err)
{
    const generation *x = &generations[n];
    double got[2], said[2], peak, now;
    int rc = measure(k, JOBS + n, got, &peak, &now, err);
    if (!rc) rc = predict(k, JOBS + n, now, said, err);
    if (rc) return rc;
    printf("  %-10s generate %-4s  prompt of %lld %7.4f s, predicted %7.4f", x->model ? x->model->name : "in blocks", hd_dtype_name(x->precision), (long long)x->prompt,
           got[0], said[0]);
    verdict(k, said[0] / got[0] - 1, MOST_ERROR, true);
    printf("  token %8.5f s, predicted %8.5f", got[1], said[1]);
    verdict(k, said[1] / got[1] - 1, MOST_ERROR, true);
    say_bandwidth(k, now);
    printf("\n");
    return 0;
}

static int check_all(check *k, int only, hd_error *err)
{
    int rc = 0;
    for (int i = 0; i < JOBS && !rc; i++) {
        bool skipped = (only >= 0 && i != only) || (k->brief && i != 1 && i != 5 && i != 10) || jobs[i].ranks > hd_cluster_devices(&k->cluster);
        if (!skipped) rc = check_training(k, i, err);
    }
    for (int i = 0; i < GENERATIONS && !rc; i++)
        if (((only < 0 && !k->brief) || only == JOBS + i) && (generations[i].model || k->file)) rc = check_generation(k, i, err);
    if (rc || k->n_errors < JUDGED) return rc;
    printf("  mean over %d configurations", k->n_errors);
    verdict(k, k->errors / k->n_errors, MEAN_ERROR, true);
    printf("\n");
    return 0;
}

static int run_check(check *k, const char *path, int only, hd_error *err)
{
    k->path = path;
    int rc = hd_cluster_load(path, &k->cluster, err);
    if (rc) return rc;
    k->team = hd_team_new(hd_core_count(), true, err);
    k->buffer = hd_map_memory(HD_MEASURE_READ_BYTES);
    if (!k->team || !k->buffer) rc = hd_fail_memory(err, HD_MEASURE_READ_BYTES, "measuring");
    if (!rc) memset(k->buffer, 1, HD_MEASURE_READ_BYTES);
    if (!rc) rc = check_all(k, only, err);
    if (k->buffer) hd_unmap_memory(k->buffer, HD_MEASURE_READ_BYTES);
    hd_team_free(k->team);
    hd_cluster_free(&k->cluster);
    return rc ? rc : k->failed;
}

/* ---- time by op ---- */

static double measured_of(const char *table, const char *name)
{
    char line[160], op[64];
    double seconds;
    for (const char *p = table; p && *p; p = strchr(p, '\n') ? strchr(p, '\n') + 1 : NULL) {
        snprintf(line, sizeof line, "%s", p);
        if (sscanf(line, "%63s %*d %lf", op, &seconds) == 2 && !strcmp(op, name)) return seconds / PREDICT_STEPS;
    }
    return 0;
}

static int show_ops(const char *path, const predict_job *j, hd_error *err)
{
    static predict_programs programs;
    static predict_crew crew;
    hd_cluster c;
    int rc = hd_cluster_load(path, &c, err);
    if (!rc) rc = predict_programs_make(j, &programs, err);
    if (!rc) rc = predict_measure(&crew, j, true, false, err);
    if (rc) return rc;
    op_sums s = predict_op_sums(&c, programs.program[0], 0, j->threads, j->ranks);
    double most = 0;
    for (int i = PREDICT_WARM; i < crew.steps; i++) most += crew.seconds[i] / PREDICT_STEPS;
    printf("%s %s %s, rank 0: predicted %.4f s of computing, measured %.4f of step, ratio %.3f\n", j->model->name, j->parallel, hd_dtype_name(j->precision), s.total, most,
           s.total / most);
    for (int i = 0; i < s.n; i++) {
        double m = measured_of(crew.by_op.data, s.list[i].name);
        if (s.list[i].seconds > 0.002 * s.total || m > 0.002 * s.total)
            printf("  %-22s %5lld calls  %9.5f %9.5f  %6.3f\n", s.list[i].name, (long long)s.list[i].runs, s.list[i].seconds, m, s.list[i].seconds / m);
    }
    hd_str_free(&crew.by_op);
    predict_programs_free(&programs);
    hd_cluster_free(&c);
    return 0;
}

int main(int argc, char **argv)
{
    static check k;
    hd_error err = {0};
    int rc, only = -1;
    k.self = argv[0];
    for (int i = 2; i < argc; i++) {
        if (!strcmp(argv[i], "--short")) k.brief = true;
        if (!strcmp(argv[i], "--only") && i + 1 < argc) only = atoi(argv[i + 1]);
        if (!strcmp(argv[i], "--gguf") && i + 1 < argc) k.file = argv[i + 1];
    }
    if (argc == 4 && !strcmp(argv[1], "--run")) rc = run_child(atoi(argv[2]), argv[3], &err);
    else if (argc == 6 && !strcmp(argv[1], "--predict")) rc = predict_child(argv[2], atoi(argv[3]), atof(argv[4]), argv[5], &err);
    else if (argc == 4 && !strcmp(argv[1], "--ops") && atoi(argv[3]) >= 0 && atoi(argv[3]) < JOBS) rc = show_ops(argv[2], &jobs[atoi(argv[3])], &err);
    else if (argc >= 2 && argv[1][0] != '-') rc = run_check(&k, argv[1], only, &err);
    else return fprintf(stderr, "check_predict_local CLUSTER [--only N] [--short] [--gguf FILE] | --ops CLUSTER N\n"), 2;
    if (err.code) fprintf(stderr, "check_predict_local: %s\n", err.message);
    return rc ? 1 : 0;
}
