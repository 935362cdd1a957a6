/* plan_quality.c: the planner `search` beside planners of published rules, on pairs of a network and a cluster, by the simulator.
 *
 *   check_plan_quality ROOT [--short] [--table FILE] [--only FIRST LAST] [--planner NAME]
 * Lines "pair NUMBER NAME CLUSTER SEARCH BEST RATIO" for the script (seconds of a step; inf: no plan fits), and "published NAME SEARCH PLAN RATIO". --table:
 * the same as Markdown. --planner: only this one, without judging. */
#include <math.h>

#include "plan_case.h"

enum { RIVALS = 4, FLEXFLOW = 3 };
static const char *const rivals[RIVALS] = {"megatron", "zero", "data-parallel", "flexflow"};

/* GPT, mixtures of experts and residual networks up to 70 B as in Zheng et al. 2022 (Alpa), tables 5 to 7: batch and sequence of section 8.1, on its machines
 * (p3.16xlarge), 16-bit but for the residual networks. 175 B and above: Narayanan et al. 2021, section 5. */
#define ALPA_GPT(size, gpus) {"GPT " size, "examples/planning/gpt-" size, "p3.16xlarge:" #gpus, 1024, 1024, .f32 = false}
#define MEGATRON_2021 "half_wire"
#define X16(x) x x x x x x x x x x x x x x x x
#define ONES_105 X16("1:") X16("1:") X16("1:") X16("1:") X16("1:") X16("1:") "1:1:1:1:1:1:1:1:1"
#define TWOS_64 X16("2:") X16("2:") X16("2:") "2:2:2:2:2:2:2:2:2:2:2:2:2:2:2:2"
#define RECOMPUTED ",scatter,half_wire,recompute=full"

static const plan_case cases[] = {
    ALPA_GPT("350m", 1), ALPA_GPT("1.3b", 4), ALPA_GPT("2.6b", 8), ALPA_GPT("6.7b", 16), ALPA_GPT("15b", 32), ALPA_GPT("39b", 64),
    {"GPT 350m", "examples/planning/gpt-350m", "dgx-a100-40:8", 512, 1024, .f32 = false},
    {"GPT 2.6b", "examples/planning/gpt-2.6b", "dgx-a100-40:16", 512, 1024, .f32 = false},
    {"GPT 6.7b", "examples/planning/gpt-6.7b", "dgx-h100:8", 512, 1024, .f32 = false},
    {"GPT 15b", "examples/planning/gpt-15b", "dgx-h100:16", 512, 1024, .f32 = false},
    {"GPT 39b", "examples/planning/gpt-39b", "dgx-h100:128", 1536, 1024, .f32 = false},
    {"GPT 175b", "examples/gpt3", "dgx-a100-80:1024", 1536, 2048, .f32 = false},
    {"GPT 175b", "examples/gpt3", "dgx-h100:512", 1536, 2048, .f32 = false},
    {"GPT 530b", "examples/planning/gpt-530b", "dgx-a100-80:2520", 2520, 2048, .as_2021 = true, .pinned = MEGATRON_2021,
     .published = "dp=9,tp=8,pp=35,v=3,layers=" ONES_105 RECOMPUTED, .published_micro_batches = 280},
    {"GPT 1t", "examples/planning/gpt-1t", "dgx-a100-80:3072", 3072, 2048, .as_2021 = true, .pinned = MEGATRON_2021,
     .published = "dp=6,tp=8,pp=64,layers=" TWOS_64 RECOMPUTED, .published_micro_batches = 512},
    {"GPT 350m", "examples/planning/gpt-350m", "cpu:2", 8, 512, .f32 = false},
    {"GPT 350m", "examples/planning/gpt-350m", "cpu-25g:16", 64, 1024, .f32 = false},
    {"GPT 1.3b", "examples/planning/gpt-1.3b", "cpu-100g:32", 128, 1024, .f32 = false},
    {"MoE 380m", "examples/planning/moe-380m.json", "p3.16xlarge:1", 1024, .f32 = false},
    {"MoE 2.4b", "examples/planning/moe-2.4b.json", "p3.16xlarge:8", 1024, .f32 = false},
    {"MoE 10b", "examples/planning/moe-10b.json", "p3.16xlarge:16", 1024, .f32 = false},
    {"MoE 27b", "examples/planning/moe-27b.json", "dgx-a100-80:32", 1024, .f32 = false},
    {"MoE 70b", "examples/planning/moe-70b.json", "dgx-a100-80:64", 1024, .f32 = false},
    {"Wide-ResNet 250m", "examples/planning/wresnet-250m.json", "p3.16xlarge:1", 1536, .f32 = true, .micro_batches = 64},
    {"Wide-ResNet 2b", "examples/planning/wresnet-2b.json", "p3.16xlarge:8", 1536, .f32 = true, .micro_batches = 48},
    {"Wide-ResNet 6.8b", "examples/planning/wresnet-6.8b.json", "dgx-a100-80:32", 1536, .f32 = true, .micro_batches = 24},
    {"Wide-ResNet 13b", "examples/planning/wresnet-13b.json", "dgx-a100-80:64", 1536, .f32 = true, .micro_batches = 24},
    {"DLRM 8x4m", "examples/planning/dlrm-8x4m.json", "dgx-a100-80:8", 65536, .f32 = true, .sgd = true},
    {"DLRM 26x4m", "examples/planning/dlrm-26x4m.json", "p3.16xlarge:16", 65536, .f32 = true, .sgd = true},
    {"DLRM 26x40m", "examples/planning/dlrm-26x40m.json", "dgx-h100:128", 65536, .f32 = true, .sgd = true},
};
enum { CASES = sizeof cases / sizeof *cases };

/* Those that are quick: a few devices, small networks. */
static const plan_case short_cases[] = {
    {"GPT 350m", "examples/planning/gpt-350m", "p3.16xlarge:8", 64, 1024, .f32 = false},
    {"GPT 1.3b", "examples/planning/gpt-1.3b", "cpu-100g:4", 16, 1024, .f32 = false},
    {"MoE 380m", "examples/planning/moe-380m.json", "p3.16xlarge:4", 64, .f32 = false},
    {"Wide-ResNet 250m", "examples/planning/wresnet-250m.json", "dgx-a100-40:8", 128, .f32 = true, .micro_batches = 2},
    {"DLRM 8x4m", "examples/planning/dlrm-8x4m.json", "dgx-a100-80:4", 8192, .f32 = true, .sgd = true, .walk = true},
};
enum { SHORT_CASES = sizeof short_cases / sizeof *short_cases };

typedef struct found { double step, seconds; int64_t tried; char text[400], why[512]; } found;

typedef struct options { const char *root, *only; FILE *table; int first, last; bool brief; } options;

static int failed;

/* ---- one planner ---- */

static found run_planner(const char *name, const hd_planner_job *job)
{
    found f = {.step = INFINITY};
    hd_planner_answer a = {0};
    hd_error err = {0};
    char text[320];
    double began = hd_time();
    int rc = hd_planner_find(name)->find(job, &a, &err);
    f.seconds = hd_time() - began;
    f.tried = a.tried;
    if (rc) printf("failed: %s: %s\n", name, err.message), failed++;
    else if (!a.n) snprintf(f.why, sizeof f.why, "%s", a.why);
    else {
        f.step = a.best[0].step;
        plan_text(&a.best[0], text, sizeof text);
        snprintf(f.text, sizeof f.text, "%s x %lld", text, (long long)a.best[0].micro_batches);
    }
    if (!rc) hd_planner_answer_free(&a);
    return f;
}

static void say(const char *name, const found *f)
{
    if (isfinite(f->step)) printf("    %-14s %10.5f s  %6.1f s, %4lld tried  %s\n", name, f->step, f->seconds, (long long)f->tried, f->text);
    else printf("    %-14s      no plan  %6.1f s, %4lld tried  %s\n", name, f->seconds, (long long)f->tried, f->why);
    fflush(stdout);
}

/* ---- the published plan: with its transfers beside computing or not, whichever is quicker ---- */

static double run_published(const plan_case *c, const hd_planner_job *job)
{
    double best = INFINITY;
    for (int overlap = 0; overlap < 2; overlap++) {
        hd_parallel form;
        hd_plan_found f;
        hd_error err = {0};
        int rc = hd_parallel_parse(c->published, &form, &err);
        form.overlap = overlap;
        if (!rc) rc = hd_planner_try(job, &form, c->published_micro_batches, &f, &err);
        if (rc) {
            printf("failed: the published plan: %s\n", err.message), failed++;
            return NAN;
        }
        if (f.fits && f.step < best) best = f.step;
        hd_plan_found_free(&f);
    }
    return best;
}

/* ---- a pair ---- */

static void print_cell(FILE *out, double step)
{
    if (isfinite(step)) fprintf(out, " %.4g |", step);
    else fprintf(out, " - |");
}

static void print_row(const options *o, const plan_case *c, const found *search, const found *rival, double best, double published)
{
    if (!o->table) return;
    fprintf(o->table, "| %s | %s |", c->name, c->cluster);
    print_cell(o->table, search->step);
    for (int i = 0; i < RIVALS; i++) print_cell(o->table, rival[i].step);
    print_cell(o->table, published);
    if (isfinite(search->step) && isfinite(best)) fprintf(o->table, " %.3f |", search->step / best);
    else fprintf(o->table, " %s |", isfinite(search->step) ? "alone" : "-");
    fprintf(o->table, " `%s` |\n", search->text);
    fflush(o->table);
}

static void judge(const options *o, int number, const plan_case *c, const plan_run *r)
{
    found search = run_planner("search", &r->job), rival[RIVALS];
    double best = INFINITY, published = INFINITY;
    say("search", &search);
    for (int i = 0; i < RIVALS; i++) {
        rival[i] = i == FLEXFLOW && o->brief && !c->walk ? (found){.step = INFINITY, .why = "left out of the short form"} : run_planner(rivals[i], &r->job);
        say(rivals[i], &rival[i]);
        if (rival[i].step < best) best = rival[i].step;
    }
    printf("pair %d %s_%s %.9g %.9g %.6f\n", number, c->model, c->cluster, search.step, best, isfinite(best) ? search.step / best : isfinite(search.step) ? 0 : 1);
    if (c->published) {
        published = run_published(c, &r->job);
        printf("published %s_%s %.9g %.9g %.6f\n", c->model, c->cluster, search.step, published, search.step / published);
    }
    print_row(o, c, &search, rival, best, published);
    fflush(stdout);
}

static void run_case(const options *o, int number, const plan_case *c)
{
    plan_run r;
    hd_error err = {0};
    printf("  %d: %s on %s, %lld samples a step\n", number, c->name, c->cluster, (long long)c->samples);
    fflush(stdout);
    if (plan_run_open(&r, c, o->root, &err)) {
        printf("failed: %s\n", err.message), failed++;
        return;
    }
    if (o->only) {
        found f = run_planner(o->only, &r.job);
        say(o->only, &f);
    } else judge(o, number, c, &r);
    plan_run_close(&r);
}

/* ---- */

static int read_options(int argc, char **argv, options *o)
{
    *o = (options){.root = argc > 1 ? argv[1] : ".", .first = 1, .last = 1000};
    for (int i = 2; i < argc; i++) {
        if (!strcmp(argv[i], "--short")) o->brief = true;
        else if (!strcmp(argv[i], "--table") && i + 1 < argc) o->table = fopen(argv[++i], "w");
        else if (!strcmp(argv[i], "--only") && i + 2 < argc) o->first = atoi(argv[i + 1]), o->last = atoi(argv[i + 2]), i += 2;
        else if (!strcmp(argv[i], "--planner") && i + 1 < argc && hd_planner_find(argv[i + 1])) o->only = argv[++i];
        else return printf("failed: %s: unknown, or something is missing behind it\n", argv[i]), 1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    options o;
    if (read_options(argc, argv, &o)) return 1;
    if (o.table)
        fprintf(o.table, "| network | cluster | search | megatron | zero | data-parallel | flexflow | published | search / best rival "
                         "| the plan, x micro-batches |\n|---|---|---|---|---|---|---|---|---|---|\n");
    const plan_case *list = o.brief ? short_cases : cases;
    for (int i = 0; i < (o.brief ? SHORT_CASES : CASES); i++)
        if (i + 1 >= o.first && i + 1 <= o.last) run_case(&o, i + 1, &list[i]);
    if (o.table) fclose(o.table);
    return failed > 0;
}
