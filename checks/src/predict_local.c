/* predict_local.c: what the simulator says of small training jobs and of generating, against what they take on this machine; see checks/predict-local.
 *
 *   check_predict_local CLUSTER [--only N] [--short]   all jobs: predicted, measured, judged
 *   check_predict_local --ops CLUSTER N                job N's time by op: predicted, measured
 *   check_predict_local --run N, --predict CLUSTER N GB/S   (the same program as a child: job N alone in a process, run or predicted)
 *
 * Each job runs in a process of its own, so that its peak memory (VmHWM) is its own. The read bandwidth of all cores is measured before and after it: memory
 * of shared machines moves between regimes. Where it is not what it was in calibration to 10 %, the job is run again, a few times at most; at last what
 * memory bounds in the prediction is scaled with it, and the line says so. */
#include <math.h>
#include <sys/wait.h>
#include <unistd.h>
#include "cluster/measure.h"
#include "predict_ops.h"
#include "predict_run.h"
#include "serve/generator.h"
#include "sim/sim.h"

enum { TRIES = 4, GENERATED = 32, BANDWIDTH_ROUNDS = 7 };
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

/* Generating on all cores, weights packed, as `heddle generate` does it. */
typedef struct generation { const predict_model *model; hd_dtype precision; int64_t prompt, context; } generation;
static const predict_model served[] = {{"gpt2-124m", HD_ARCH_GPT2, 12, 768, 12, 12, 3072, 50257}, {"llama-135m", HD_ARCH_LLAMA, 30, 576, 9, 3, 1536, 49152}};
static const generation generations[] = {{&served[0], HD_BF16, 256, 512}, {&served[1], HD_F32, 256, 512}};
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

static int open_generator(hd_generator *g, const generation *x, hd_error *err)
{
    hd_lm_config c = config_of(x->model);
    hd_generator_options o = {.precision = x->precision, .threads = hd_core_count(), .context = x->context, .pack = true, .chunk = x->prompt};
    int rc = hd_lm_config_check(&c, x->model->name, err);
    return rc ? rc : hd_generator_open_random(g, &c, 1, &o, err);
}

/* ---- the child: one job, measured ---- */

/* What the parent reads: figures on one line. Of training: median step, peak bytes; of generating: a prompt, a token. */
static int run_training(const predict_job *j, hd_error *err)
{
    static predict_crew crew;
    int rc = predict_measure(&crew, j, false, err);
    if (rc) return rc;
    double peak = (double)hd_memory_peak();
    printf("measured %.9g %.9g\n", median(crew.seconds + PREDICT_WARM, PREDICT_STEPS), peak);
    return 0;
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

static int run_generation(const generation *x, hd_error *err)
{
    hd_generator g;
    int rc = open_generator(&g, x, err);
    if (rc) return rc;
    int32_t *tokens = hd_calloc((size_t)x->context, sizeof *tokens);
    double prompt[PREDICT_STEPS + 1], token[PREDICT_STEPS + 1];
    for (int64_t i = 0; i < x->context && tokens; i++) tokens[i] = (int32_t)(i * 7919 % x->model->vocab);
    if (!tokens) rc = hd_fail_memory(err, 0, "tokens");
    for (int i = 0; i <= PREDICT_STEPS && !rc; i++) rc = generate_once(&g, x, tokens, &prompt[i], &token[i], err);
    if (!rc) printf("measured %.9g %.9g\n", median(prompt + 1, PREDICT_STEPS), median(token + 1, PREDICT_STEPS));
    hd_generator_close(&g);
    hd_free(tokens);
    return rc;
}

/* ---- the child: one job, predicted ---- */

/* The cluster as it would have been measured with memory as it is now: what streams more than the caches hold takes so much longer. */
#define STREAMS 1.6e7
static void scale_bandwidth(hd_cluster *c, double now)
{
    double slower = c->device.bandwidth / now;
    c->device.bandwidth = now;
    for (int i = 0; i < c->n_profile; i++) {
        hd_profile_entry *e = &c->profile[i];
        bool product = !strncmp(e->op, "contract", 8), streams = product ? e->x[0] <= 8 && e->x[1] * e->x[2] >= STREAMS / 4 : e->x[0] >= STREAMS;
        if (streams && strncmp(e->op, "attention", 9)) e->seconds *= slower;
    }
}

/* Peak memory: what the process has before anything big is allocated (its graphs and Programs too), and what the ranks' Programs will hold. */
static int predict_training(const hd_cluster *c, const predict_job *j, hd_error *err)
{
    static predict_programs p;
    hd_sim_result r = {0};
    int rc = predict_programs_make(j, &p, err);
    double peak = (double)hd_memory_resident();
    if (!rc) rc = hd_simulate(p.program, p.n, c, NULL, &r, err);
    for (int i = 0; i < r.n_ranks; i++) peak += (double)r.rank[i].peak * r.rank[i].alike;
    if (!rc) printf("predicted %.9g %.9g\n", r.step, peak);
    hd_sim_result_free(&r);
    predict_programs_free(&p);
    return rc;
}

static int predict_call(const hd_cluster *c, const hd_program *p, int64_t tokens, int64_t context, double *seconds, hd_error *err)
{
    int64_t binding[HD_MAX_SYMBOLS];
    hd_trace t = {.by_call = true};
    hd_sim_result r = {0};
    for (int i = 0; i < HD_MAX_SYMBOLS; i++) binding[i] = -1;
    for (int i = 0; i < p->n_symbols; i++) binding[i] = !strcmp(p->symbols[i].name, "tokens") ? tokens : !strcmp(p->symbols[i].name, "context") ? context : -1;
    int rc = hd_simulate(&p, 1, c, &(hd_sim_options){.binding = binding, .trace = &t}, &r, err);
    *seconds = 0;
    for (int64_t i = 0; !rc && i < t.n_calls; i++)
        if (!strcmp(t.calls[i].segment, hd_segment_name(HD_SEGMENT_FORWARD))) *seconds += t.calls[i].end - t.calls[i].start;
    hd_trace_free(&t);
    hd_sim_result_free(&r);
    return rc;
}

static int predict_generation(const hd_cluster *c, const generation *x, hd_error *err)
{
    double prompt, token;
    hd_generator g;
    int rc = open_generator(&g, x, err);
    if (rc) return rc;
    rc = predict_call(c, g.program, x->prompt, x->prompt, &prompt, err);
    if (!rc) rc = predict_call(c, g.program, 1, x->prompt + GENERATED / 2, &token, err);
    if (!rc) printf("predicted %.9g %.9g\n", prompt, token);
    hd_generator_close(&g);
    return rc;
}

static int predict_child(const char *path, int n, double bandwidth, hd_error *err)
{
    hd_cluster c;
    if (n < 0 || n >= JOBS + GENERATIONS) return hd_fail(err, HD_EINVAL, "there is no job %d", n);
    int rc = hd_cluster_load(path, &c, err);
    if (rc) return rc;
    if (bandwidth > 0) scale_bandwidth(&c, bandwidth);
    rc = n < JOBS ? predict_training(&c, &jobs[n], err) : predict_generation(&c, &generations[n - JOBS], err);
    hd_cluster_free(&c);
    return rc;
}

static int run_child(int n, hd_error *err)
{
    if (n < 0 || n >= JOBS + GENERATIONS) return hd_fail(err, HD_EINVAL, "there is no job %d", n);
    return n < JOBS ? run_training(&jobs[n], err) : run_generation(&generations[n - JOBS], err);
}

/* ---- the parent ---- */

typedef struct check {
    const char *self, *path;
    hd_cluster cluster;
    hd_team *team;
    void *buffer; /* for the read bandwidth */
    bool brief;
    int failed;
    double errors; int n_errors;
} check;

static int start_child(const check *k, const char *words, const char *answer, double figure[2], hd_error *err)
{
    char command[8400], line[256] = "";
    snprintf(command, sizeof command, "'%s' %s", k->self, words);
    fflush(NULL);
    FILE *f = popen(command, "r");
    bool got = f && fgets(line, sizeof line, f) && sscanf(line, answer, &figure[0], &figure[1]) == 2;
    if (f && pclose(f)) got = false;
    return got ? 0 : hd_fail(err, HD_EIO, "%s did not work", words);
}

static double bandwidth(const check *k)
{
    return hd_measure_median(HD_BOUND_READ, k->team, hd_isa_detect(), BANDWIDTH_ROUNDS, k->buffer);
}

/* Runs it; *now becomes the bandwidth around the run that is kept. */
static int measure(const check *k, int n, double figure[2], double *now, hd_error *err)
{
    double best = INFINITY;
    for (int i = 0; i < TRIES && best > SAME_BANDWIDTH; i++) {
        char words[32];
        snprintf(words, sizeof words, "--run %d", n);
        double got[2], before = bandwidth(k);
        int rc = start_child(k, words, "measured %lf %lf", got, err);
        if (rc) return rc;
        double after = bandwidth(k), off = fmax(fabs(before / k->cluster.device.bandwidth - 1), fabs(after / k->cluster.device.bandwidth - 1));
        if (k->brief) off = 0;
        if (off >= best) continue;
        best = off;
        *now = (before + after) / 2;
        figure[0] = got[0], figure[1] = got[1];
    }
    if (best <= SAME_BANDWIDTH) *now = k->cluster.device.bandwidth;
    return 0;
}

static int predict(const check *k, int n, double now, double figure[2], hd_error *err)
{
    char words[4200];
    snprintf(words, sizeof words, "--predict '%s' %d %.9g", k->path, n, now == k->cluster.device.bandwidth ? 0 : now);
    return start_child(k, words, "predicted %lf %lf", figure, err);
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
    double got[2], said[2], now;
    int rc = measure(k, n, got, &now, err);
    if (!rc) rc = predict(k, n, now, said, err);
    if (rc) return rc;
    bool judged = n < JUDGED;
    printf("  %-9s %-11s %-4s %d rank%s  step %7.4f s, predicted %7.4f", j->model->name, j->parallel[0] ? j->parallel : "-", hd_dtype_name(j->precision), j->ranks,
           j->ranks == 1 ? " " : "s", got[0], said[0]);
    verdict(k, said[0] / got[0] - 1, MOST_ERROR, judged && !k->brief);
    printf("  peak %6.1f MiB, predicted %6.1f", got[1] / 1048576, said[1] / 1048576);
    verdict(k, said[1] / got[1] - 1, MEMORY_ERROR, judged);
    say_bandwidth(k, now);
    printf("%s\n", judged ? "" : "  not judged");
    if (judged) k->errors += fabs(said[0] / got[0] - 1), k->n_errors++;
    return 0;
}

static int check_generation(check *k, int n, hd_error *err)
{
    const generation *x = &generations[n];
    double got[2], said[2], now;
    int rc = measure(k, JOBS + n, got, &now, err);
    if (!rc) rc = predict(k, JOBS + n, now, said, err);
    if (rc) return rc;
    printf("  %-10s generate %-4s  prompt of %lld %7.4f s, predicted %7.4f", x->model->name, hd_dtype_name(x->precision), (long long)x->prompt, got[0], said[0]);
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
        if ((only < 0 && !k->brief) || only == JOBS + i) rc = check_generation(k, i, err);
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
    if (!rc) rc = predict_measure(&crew, j, true, err);
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
    }
    if (argc == 3 && !strcmp(argv[1], "--run")) rc = run_child(atoi(argv[2]), &err);
    else if (argc == 5 && !strcmp(argv[1], "--predict")) rc = predict_child(argv[2], atoi(argv[3]), atof(argv[4]), &err);
    else if (argc == 4 && !strcmp(argv[1], "--ops") && atoi(argv[3]) >= 0 && atoi(argv[3]) < JOBS) rc = show_ops(argv[2], &jobs[atoi(argv[3])], &err);
    else if (argc >= 2 && argv[1][0] != '-') rc = run_check(&k, argv[1], only, &err);
    else return fprintf(stderr, "check_predict_local CLUSTER [--only N] [--short] | --ops CLUSTER N | --run N\n"), 2;
    if (err.code) fprintf(stderr, "check_predict_local: %s\n", err.message);
    return rc ? 1 : 0;
}
