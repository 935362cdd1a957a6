#include "planners/slice_lengths.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "planners/slices.h"

enum { LAYERS = 3, UNITS = 32 /* of a sequence: slices are whole numbers of them */, TERMS = 3 };

typedef struct fit { double a[TERMS][TERMS], b[TERMS]; } fit; /* normal equations */

static void terms_of(double length, double context, double *t) { t[0] = 1, t[1] = length, t[2] = length * (context + length / 2); }

/* Points weigh by the inverse of what they take: relative errors count. */
static void add_point(fit *f, double length, double context, double seconds)
{
    double t[TERMS], w = 1 / (seconds * seconds);
    terms_of(length, context, t);
    for (int i = 0; i < TERMS; i++) {
        f->b[i] += w * t[i] * seconds;
        for (int k = 0; k < TERMS; k++) f->a[i][k] += w * t[i] * t[k];
    }
}

/* By Gauss, without pivoting: the matrix is positive. False: the points don't say it. */
static bool solve(fit *f)
{
    for (int i = 0; i < TERMS; i++)
        for (int k = i + 1; k < TERMS; k++) {
            if (!(fabs(f->a[i][i]) > 0)) return false;
            double x = f->a[k][i] / f->a[i][i];
            for (int j = i; j < TERMS; j++) f->a[k][j] -= x * f->a[i][j];
            f->b[k] -= x * f->b[i];
        }
    for (int i = TERMS - 1; i >= 0; i--) {
        for (int j = i + 1; j < TERMS; j++) f->b[i] -= f->a[i][j] * f->b[j];
        if (!(fabs(f->a[i][i]) > 0)) return false;
        f->b[i] /= f->a[i][i];
    }
    return true;
}

static double seconds_of(const fit *f, double length, double context)
{
    double t[TERMS], sum = 0;
    terms_of(length, context, t);
    for (int i = 0; i < TERMS; i++) sum += f->b[i] * t[i];
    return fmax(sum, 1e-9);
}

/* What a middle layer takes for each of n equal slices. */
static int add_points(const hd_planner_job *job, const hd_parallel *form, int64_t micro_batches, int n, fit *f, hd_error *err)
{
    hd_parallel p = *form;
    hd_programs programs = {0};
    hd_sim_stage stages[LAYERS];
    hd_error local = {0};
    double seconds[HD_MAX_SLICES] = {0}, length = (double)job->network.sequence / n;
    p.pp = LAYERS, p.chunks = 1, p.slices = n, p.n_lengths = p.n_first = 0, p.n_layers = LAYERS;
    if (p.recompute == HD_RECOMPUTE_FIRST) p.recompute = HD_RECOMPUTE_FULL;
    p.has_schedule = true, p.schedule = HD_SCHEDULE_GPIPE;
    for (int i = 0; i < LAYERS; i++) p.layers[i] = 1;
    int rc = job->network.lower(job->network.context, &p, micro_batches, LAYERS, &programs, &local);
    if (!rc) rc = hd_sim_stages((const hd_program *const *)programs.stage, programs.n, job->cluster, (int)hd_parallel_ranks(form), stages, &local);
    for (int i = 0; !rc && i < stages[1].n; i++) {
        const hd_sim_segment *x = &stages[1].segment[i];
        if (x->kind != HD_SEGMENT_PREPARE && x->kind != HD_SEGMENT_UPDATE) seconds[x->chunk % n] += x->seconds;
    }
    for (int i = 0; !rc && i < n; i++)
        if (seconds[i] > 0) add_point(f, length, length * i, seconds[i]);
    if (!rc) hd_sim_stages_free(stages, LAYERS);
    hd_programs_free(&programs);
    return rc == HD_ENOMEM ? hd_fail(err, rc, "%s", local.message) : 0;
}

static int choose_lengths(const hd_planner_job *job, const fit *f, int64_t micro_batches, hd_parallel *p, hd_error *err)
{
    int64_t unit = job->network.sequence / UNITS;
    hd_slice_profile profile = {.tokens = (int)job->network.sequence};
    hd_slice_plan plan = {0};
    hd_error local = {0};
    profile.options = hd_malloc(UNITS * (UNITS + 1) / 2 * sizeof *profile.options);
    if (!profile.options) return hd_fail_memory(err, 0, "lengths of slices");
    for (int from = 0; from < UNITS; from++)
        for (int n = 1; from + n <= UNITS; n++)
            profile.options[profile.n++] = (hd_slice_option){(int)(n * unit), (int)(from * unit), seconds_of(f, (double)(n * unit), (double)(from * unit))};
    int rc = hd_slices_solve(&profile, (int)((p->pp - 1 + micro_batches - 1) / micro_batches) + 1, &plan, &local);
    if (!rc && plan.n > 1 && plan.n <= HD_MAX_SLICES) {
        p->slices = p->n_lengths = plan.n;
        for (int i = 0; i < plan.n; i++) p->lengths[i] = profile.options[plan.option[i]].length;
    }
    hd_slice_plan_free(&plan);
    hd_slice_profile_free(&profile);
    return rc == HD_ENOMEM ? hd_fail(err, rc, "%s", local.message) : 0;
}

int hd_slice_lengths(const hd_planner_job *job, hd_parallel *p, int64_t micro_batches, hd_error *err)
{
    fit f = {0};
    p->n_lengths = 0;
    if (job->network.layers < LAYERS || job->network.sequence % UNITS || p->pp < 2) return 0;
    int rc = add_points(job, p, micro_batches, 4, &f, err);
    if (!rc) rc = add_points(job, p, micro_batches, 8, &f, err);
    return rc || !solve(&f) ? rc : choose_lengths(job, &f, micro_batches, p, err);
}
