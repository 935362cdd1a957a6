/* equality.c: many ranks against one: the first step's gradients, the losses of ten steps and the running averages after them, and each rank's share of work, memory and traffic.
 *
 *   check_equality TABLE ROOT [--only TEXT] [--every N]
 * Under each job one line a rank: FLOPs of products and attention, bytes of parameters and bytes sent in a step, each beside theory (theory.h, theory_network.h).
 * TABLE: checks/equality.tsv. One line a job, then a summary; exits 1 when one fails. */
#include "base/term.h"
#include "theory_network.h"

#define GRADIENT_BOUND 1e-5 /* times the larger of the tensor's norm and 1e-2 of the global norm */
#define SGD_BOUND 1e-5
#define ADAMW_BOUND 1e-4
enum { BF16_SEEDS = 6 };
#define BF16_FACTOR 1.2 /* of the one-rank bf16 run's own distance from f32 */

typedef struct reference { run_job job; run_result result; bool ok; } reference;
enum { MAX_REFERENCES = 512 };
typedef struct references { reference list[MAX_REFERENCES]; int n; } references;

/* ---- one rank's run of the same job ---- */

static bool same_job(const run_job *a, const run_job *b)
{
    return !strcmp(a->model, b->model) && a->micro == b->micro && a->batch == b->batch && a->sequence == b->sequence && a->precision == b->precision &&
           a->optimizer == b->optimizer && a->seed == b->seed && a->dropout == b->dropout && a->clip == b->clip;
}

static run_result *find_reference(references *all, const run_job *of, hd_dtype precision, hd_error *err)
{
    run_job j = *of;
    j.parallel[0] = 0;
    j.precision = precision;
    for (int i = 0; i < all->n; i++)
        if (same_job(&all->list[i].job, &j)) return all->list[i].ok ? &all->list[i].result : NULL;
    if (all->n == MAX_REFERENCES) return hd_fail(err, HD_EINVAL, "more than %d different jobs", MAX_REFERENCES), NULL;
    reference *r = &all->list[all->n++];
    r->job = j;
    r->ok = !run_all_ranks(&j, &r->result, err);
    return r->ok ? &r->result : NULL;
}

/* ---- distances ---- */

/* Largest distance of a gradient tensor, over what it is allowed to be. */
static double gradient_distance(run_result *a, const run_result *b, const char **worst)
{
    double most = 0, global = run_global_norm(b);
    *worst = "";
    if (a->n_tensors != b->n_tensors) return *worst = "(another number of tensors)", INFINITY;
    for (int i = 0; i < b->n_tensors; i++) {
        const run_tensor *y = &b->tensor[i];
        run_tensor *x = run_find_tensor(a, y->path, y->count);
        if (y->state) continue;
        double allowed = fmax(run_norm(y->data, NULL, y->count), 1e-2 * global), d = run_norm(x->data, y->data, y->count) / allowed;
        if (!(d <= most)) most = d, *worst = y->path;
    }
    return most;
}

/* Of running averages, over their own norm. */
static double state_distance(run_result *a, const run_result *b)
{
    double most = 0;
    for (int i = 0; i < b->n_tensors; i++) {
        const run_tensor *y = &b->tensor[i];
        if (!y->state) continue;
        double d = run_norm(run_find_tensor(a, y->path, y->count)->data, y->data, y->count) / fmax(run_norm(y->data, NULL, y->count), 1e-6);
        if (!(d <= most)) most = d;
    }
    return most;
}

static double total_distance(run_result *a, const run_result *b)
{
    double sum = 0;
    for (int i = 0; i < b->n_tensors; i++) {
        run_tensor *x = run_find_tensor(a, b->tensor[i].path, b->tensor[i].count);
        double d = b->tensor[i].state ? 0 : run_norm(x->data, b->tensor[i].data, b->tensor[i].count);
        sum += d * d;
    }
    return sqrt(sum);
}

static double loss_distance(const run_result *a, const run_result *b)
{
    double most = 0;
    for (int i = 0; i < RUN_STEPS; i++) {
        double d = fabs(a->loss[i] - b->loss[i]) / fmax(1, fabs(b->loss[i]));
        if (!(d <= most)) most = d;
    }
    return most;
}

/* Root mean square over the steps: of ten roundings' sums, steadier than the largest. */
static double loss_rms(const run_result *a, const run_result *b)
{
    double sum = 0;
    for (int i = 0; i < RUN_STEPS; i++) sum += (a->loss[i] - b->loss[i]) * (a->loss[i] - b->loss[i]);
    return sqrt(sum / RUN_STEPS);
}

/* ---- a job ---- */

static bool judge_f32(const run_job *j, run_result *r, const run_result *one)
{
    const char *worst;
    double g = gradient_distance(r, one, &worst), l = loss_distance(r, one), bound = j->optimizer == HD_ADAMW ? ADAMW_BOUND : SGD_BOUND;
    double s = state_distance(r, one);
    bool ok = g <= GRADIENT_BOUND && l <= bound && s <= bound && fabs(one->loss[RUN_STEPS - 1] - one->loss[0]) > 1e-3;
    printf("gradients %.1e (worst %s) losses %.1e states %.1e (%.0e) loss %.4f to %.4f", g, worst, l, s, bound, one->loss[0], one->loss[RUN_STEPS - 1]);
    return ok;
}

/* Distances from the f32 run are sums of roundings, so those of many ranks and of one are compared over several seeds together. */
static bool judge_bf16(references *all, const run_job *of, hd_error *err)
{
    double g = 0, g1 = 0, l = 0, l1 = 0;
    for (int seed = 0; seed < BF16_SEEDS; seed++) {
        run_job j = *of;
        j.seed = seed;
        run_result r, *exact = find_reference(all, &j, HD_F32, err), *one = exact ? find_reference(all, &j, HD_BF16, err) : NULL;
        if (!one || run_all_ranks(&j, &r, err)) return false;
        g += pow(total_distance(&r, exact), 2), g1 += pow(total_distance(one, exact), 2);
        l += pow(loss_rms(&r, exact), 2), l1 += pow(loss_rms(one, exact), 2);
        run_result_free(&r);
    }
    g = sqrt(g / BF16_SEEDS), g1 = sqrt(g1 / BF16_SEEDS), l = sqrt(l / BF16_SEEDS), l1 = sqrt(l1 / BF16_SEEDS);
    printf("from f32, %d seeds: gradients %.2g, %.2f of the one-rank bf16 run's; losses %.2g, %.2f (%.1f)", BF16_SEEDS, g, g / g1, l, l / l1, BF16_FACTOR);
    return g <= BF16_FACTOR * g1 && l <= BF16_FACTOR * l1;
}

/* ---- shares ---- */

#define SHARE 1.02 /* of theory, that no rank may be above */

static bool judge_share(const char *what, double value, double bound, double allowance)
{
    bool ok = value <= SHARE * bound + allowance;
    printf("  %s %.6g of %.6g", what, value, bound);
    if (bound > 0) printf(" (%.3f)", value / bound);
    if (!ok) printf(" FAIL");
    return ok;
}

static double bytes_sent(const run_rank *r)
{
    int64_t sent = 0;
    for (int k = 0; k < HD_TRANSFER_KINDS; k++) sent += r->sent[k];
    return (double)sent / RUN_STEPS;
}

static bool judge_shares(const run_job *j, const run_result *r)
{
    bool ok = true;
    for (int i = 0; i < r->ranks; i++) {
        const run_rank *x = &r->rank[i];
        theory t = run_find_model(j->model) ? theory_of_rank(j, r->plan, i) : theory_of_network(j, r->plan, i);
        printf("    rank %-2d", i);
        ok &= judge_share("FLOPs", x->product_flops, t.flops, t.uneven);
        ok &= judge_share("parameter bytes", (double)x->parameter_bytes, t.parameter_bytes, 0);
        ok &= judge_share("bytes sent", bytes_sent(x), t.sent, t.scalars);
        printf(t.scalars > 0 ? " + at most %.0f of scalars\n" : "\n", t.scalars);
    }
    return ok;
}

static bool run_one(references *all, const run_job *j)
{
    hd_error err = {0};
    run_result r;
    printf("%-12s %-58s %2lldx%lldx%-3lld %s %s%s%s: ", j->model, j->parallel, (long long)j->micro, (long long)j->batch, (long long)j->sequence,
           hd_dtype_name(j->precision), j->optimizer == HD_ADAMW ? "adamw" : "sgd", j->dropout > 0 ? " dropout" : "", j->clip > 0 ? " clip" : "");
    fflush(stdout);
    const run_result *one = find_reference(all, j, j->precision, &err);
    bool ok = one && !run_all_ranks(j, &r, &err);
    if (ok) ok = j->precision == HD_F32 ? judge_f32(j, &r, one) : judge_bf16(all, j, &err);
    if (!one || err.code) return printf("FAIL %s\n", err.message), false;
    printf("; %d ranks; %.1f s %s\n", r.ranks, r.seconds, ok ? "PASS" : "FAIL");
    bool least, shares = searched_form(j->parallel, &least) || judge_shares(j, &r); /* what a search divides nobody has a theory of */
    if (ok && !shares) printf("    above its share: FAIL\n");
    ok &= shares;
    run_result_free(&r);
    return ok;
}

int main(int argc, char **argv)
{
    const char *only = NULL;
    int every = 1, n = 0, run = 0, failed = 0;
    char line[512];
    if (argc < 3) return fprintf(stderr, "check_equality TABLE ROOT [--only TEXT] [--every N]\n"), 2;
    for (int i = 3; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--only")) only = argv[i + 1];
        else if (!strcmp(argv[i], "--every")) every = atoi(argv[i + 1]);
    }
    FILE *f = fopen(argv[1], "r");
    if (!f) return perror(argv[1]), 2;
    references *all = calloc(1, sizeof *all);
    while (fgets(line, sizeof line, f)) {
        run_job j;
        char copy[512];
        snprintf(copy, sizeof copy, "%s", line);
        if (line[0] == '#' || (only && !strstr(line, only)) || n++ % every) continue;
        if (!run_read_job(copy, argv[2], &j)) return fprintf(stderr, "%s: not a job: %s", argv[1], line), 2;
        run++;
        failed += !run_one(all, &j);
        fflush(stdout);
    }
    fclose(f);
    printf("%d configurations, %d failed\n", run, failed);
    for (int i = 0; i < all->n; i++) run_result_free(&all->list[i].result);
    free(all);
    return failed > 0;
}
