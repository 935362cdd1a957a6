/* plan_speed.c: on 8 devices the joint search finds what trying every form finds.
 *
 *   check_plan_speed ROOT [--short]
 * Lines "same WHAT SEARCH EXHAUSTIVE" for the script: seconds of a step. */
#include "plan_case.h"

/* Small: trying everything takes a lowering for each form. */
static const plan_case small[] = {
    {"two_tower", "examples/two_tower.json", "cpu-25g:8", 256, .f32 = true},
    {"mlp", "examples/mlp.json", "dgx-a100-80:8", 256, .f32 = true},
    {"convnet", "examples/convnet.json", "dgx-a100-80:8", 128, .f32 = true, .micro_batches = 2},
    {"demo", "examples/demo", "p3.16xlarge:8", 16, 128, .f32 = false},
    {"demo_pinned", "examples/demo", "cpu-25g:8", 16, 128, .f32 = true, .pinned = "overlap=1,half_wire=0"},
};
enum { SMALL = sizeof small / sizeof *small };

static int failed;

static int run(const plan_case *c, const char *root, const char *planner, hd_planner_answer *a, double *wall)
{
    plan_run r;
    hd_error err = {0};
    double began = hd_time();
    memset(a, 0, sizeof *a);
    int rc = plan_run_open(&r, c, root, &err);
    if (!rc) {
        rc = hd_planner_find(planner)->find(&r.job, a, &err);
        plan_run_close(&r);
    }
    *wall = hd_time() - began;
    if (rc) printf("failed: %s, %s: %s\n", c->name, planner, err.message), failed++;
    return rc;
}

static void print_best(const char *planner, const hd_planner_answer *a, double wall)
{
    char text[320] = "nothing fits";
    if (a->n) plan_text(&a->best[0], text, sizeof text);
    printf("    %-12s %10.6f s a step, %6.2f s, %lld considered, %lld tried: %s x %lld%s\n", planner, a->n ? a->best[0].step : 0, wall, (long long)a->considered,
           (long long)a->tried, text, a->n ? (long long)a->best[0].micro_batches : 0, a->cut_off ? " (cut off)" : "");
}

static void compare(const plan_case *c, const char *root)
{
    hd_planner_answer a, b;
    double wall_a, wall_b;
    if (run(c, root, "search", &a, &wall_a)) return;
    if (!run(c, root, "exhaustive", &b, &wall_b)) {
        printf("  %s\n", c->name);
        print_best("search", &a, wall_a);
        print_best("exhaustive", &b, wall_b);
        printf("same %s %.9g %.9g\n", c->name, a.n ? a.best[0].step : 0, b.n ? b.best[0].step : 0);
        hd_planner_answer_free(&b);
    }
    fflush(stdout);
    hd_planner_answer_free(&a);
}

int main(int argc, char **argv)
{
    const char *root = argc > 1 ? argv[1] : ".";
    bool brief = argc > 2 && !strcmp(argv[2], "--short");
    for (int i = 0; i < (brief ? 2 : SMALL); i++) compare(&small[i], root);
    return failed > 0;
}
