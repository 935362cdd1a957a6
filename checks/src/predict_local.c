/* predict_local.c: what the simulator says of small training jobs against what they take on this machine; see checks/predict-local.
 *
 *   check_predict_local --ops CLUSTER JOB      one job's time by op: predicted, measured
 */
#include <math.h>
#include "predict_ops.h"
#include "predict_run.h"

static const predict_model models[] = {
    {"gpt2", HD_ARCH_GPT2, 6, 384, 6, 6, 1536, 4096},
    {"llama", HD_ARCH_LLAMA, 4, 512, 8, 4, 1376, 8192},
};
static const predict_job jobs[] = {
    {&models[0], "", HD_F32, 1, 4, 256, 1, 2},
    {&models[0], "", HD_BF16, 1, 4, 256, 1, 2},
    {&models[1], "", HD_F32, 1, 4, 256, 1, 2},
    {&models[1], "", HD_BF16, 1, 4, 256, 1, 2},
    {&models[0], "", HD_F32, 1, 4, 256, 1, 1},
    {&models[0], "", HD_BF16, 1, 4, 256, 1, 1},
    {&models[1], "", HD_F32, 1, 4, 256, 1, 1},
    {&models[1], "", HD_BF16, 1, 4, 256, 1, 1},
    {&models[0], "dp=2", HD_F32, 1, 4, 256, 2, 1},
    {&models[1], "dp=2", HD_BF16, 1, 4, 256, 2, 1},
};

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
    printf("%s %s %s threads %d: predicted %.4f measured %.4f ratio %.3f\n", j->model->name, j->parallel, hd_dtype_name(j->precision), j->threads, s.total, most,
           s.total / most);
    for (int i = 0; i < s.n; i++) {
        double m = measured_of(crew.by_op.data, s.list[i].name);
        if (s.list[i].seconds > 0.002 * s.total || m > 0.002 * s.total)
            printf("  %-22s %5lld  %9.5f %9.5f  %6.3f\n", s.list[i].name, (long long)s.list[i].runs, s.list[i].seconds, m, s.list[i].seconds / m);
    }
    hd_str_free(&crew.by_op);
    predict_programs_free(&programs);
    hd_cluster_free(&c);
    return 0;
}

int main(int argc, char **argv)
{
    hd_error err = {0};
    if (argc == 4 && !strcmp(argv[1], "--ops") && !show_ops(argv[2], &jobs[atoi(argv[3])], &err)) return 0;
    fprintf(stderr, "check_predict_local: %s\n", err.message);
    return 1;
}
