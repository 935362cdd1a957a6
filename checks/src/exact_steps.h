/* exact_steps.h: layouts of whole training steps beside CBC's: networks of examples/layouts in several sizes, on several meshes, without and with a limit. */
#ifndef HD_CHECKS_EXACT_STEPS_H
#define HD_CHECKS_EXACT_STEPS_H

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/term.h"
#include "models/model.h"
#include "planners/layouts.h"
#include "train/step.h"

#define CBC_SECONDS 60 /* that CBC has for one problem; one that it doesn't end is no comparison */

typedef struct step_mesh { int x, y; } step_mesh;
static const step_mesh step_meshes[] = {{2, 1}, {3, 1}, {4, 1}, {8, 1}, {2, 2}, {2, 3}, {2, 4}};

/* meshes: bit k, of step_meshes; quick: those of the short form. */
static const struct { const char *file, *define; int batch; bool adamw; unsigned meshes, quick; } step_nets[] = {
    {"mlp-512", "", 64, false, 0x0f, 0x04},
    {"mlp-128", "width=90", 4096, true, 0x0f, 0x02},
    {"perceptron", "blocks=2 width=256 hidden=1024", 256, true, 0x1f, 0x04},
    {"perceptron", "blocks=1 width=72 hidden=210", 1000, false, 0x7f, 0x10},
    {"perceptron", "blocks=3 width=130 hidden=257", 33, false, 0x0b, 0},
    {"attention", "width=96 heads=6 head=16", 300, true, 0x0f, 0x04},
    {"attention", "width=250 heads=5 head=50", 120, false, 0x34, 0},
    {"transformer", "layers=1 width=192 heads=6 head=32 hidden=500", 96, false, 0x0f, 0x04},
    {"transformer", "layers=2 width=128 heads=4 head=32 hidden=340", 700, true, 0x0e, 0},
    {"moe", "layers=1 group=48 width=64 hidden=200 experts=8 capacity=12", 12, false, 0x0f, 0x04},
    {"moe", "layers=1 group=30 width=50 hidden=90 experts=6 capacity=10", 6, true, 0x03, 0},
    {"residual", "blocks=1 channels=64 size=14", 32, true, 0x0f, 0x04},
    {"residual", "blocks=1 channels=24 size=9", 50, false, 0x34, 0},
    {"residual", "blocks=2 channels=48 size=28", 9, false, 0x0a, 0},
    {"batch-norm", "blocks=1 channels=36 size=11", 24, false, 0x1f, 0x04},
    {"batch-norm", "blocks=2 channels=64 size=7", 48, true, 0x06, 0},
};

typedef struct step_tally { int all, equal, ended, held; double ours, cbc, slowest, gap; } step_tally;

static void redefine(hd_network *n, const char *define)
{
    json_t *to = (json_t *)(uintptr_t)hd_network_section(n, "define");
    char name[32];
    int value, used;
    for (; sscanf(define, " %31[^=]=%d%n", name, &value, &used) == 2; define += used) json_object_set_new(to, name, json_integer(value));
}

static hd_graph *step_graph(const char *root, int net, hd_error *err)
{
    char path[600];
    hd_model m;
    snprintf(path, sizeof path, "%s/examples/layouts/%s.json", root, step_nets[net].file);
    if (hd_model_open(&m, path, err)) return NULL;
    redefine(m.network, step_nets[net].define);
    hd_graph *g = hd_model_graph(&m, &(hd_model_options){.mode = HD_LM_TRAIN, .precision = HD_F32, .batch = step_nets[net].batch}, err);
    hd_model_close(&m);
    hd_step_options o = {.optimizer = step_nets[net].adamw ? HD_ADAMW : HD_SGD, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8};
    if (g && hd_step_append(g, &o)) *err = g->err;
    return g;
}

static hd_layout_problem step_problem(const hd_graph *g, step_mesh m)
{
    return (hd_layout_problem){.graph = g, .mesh = {.n = m.y > 1 ? 2 : 1, .axis = {{"x", m.x, HD_AXIS_MODEL}, {"y", m.y, HD_AXIS_MODEL}}}, .alpha = {1e-5, 2e-5},
                               .beta = {1e-10, 3e-10}, .memory = -1};
}

/* Beside CBC: equal to 1e-6, or a gap that holds CBC's optimum. */
static void compare_step(step_tally *t, hd_layout_problem p, const char *what)
{
    hd_layout_answer a, b;
    hd_error err = {0};
    double start = hd_time(), middle;
    int rc = hd_layouts_solve(&p, &a, &err);
    middle = hd_time();
    p.ilp = true, p.ilp_seconds = CBC_SECONDS;
    if (!rc) rc = hd_layouts_solve(&p, &b, &err);
    t->all++;
    if (rc) {
        printf("    %s: %s\n", what, err.message);
        return;
    }
    double ours = middle - start, cbc = hd_time() - middle;
    bool close = a.feasible && b.feasible && fabs(a.seconds - b.seconds) <= 1e-6 * b.seconds, equal = close && a.proven;
    bool holds = a.feasible && b.feasible && a.bound <= b.seconds * (1 + 1e-6) && b.seconds <= a.seconds * (1 + 1e-6);
    t->ours += ours, t->cbc += cbc;
    if (ours > t->slowest) t->slowest = ours;
    if (b.proven) t->ended++, t->equal += equal, t->held += equal || holds;
    if (a.feasible && a.seconds > 0 && 1 - a.bound / a.seconds > t->gap) t->gap = 1 - a.bound / a.seconds;
    if (!b.proven) printf("    %s: CBC has not ended in %d s; ours: %.6g s%s\n", what, CBC_SECONDS, a.seconds, a.proven ? ", proven" : "");
    else if (!equal) printf("    %s: ours %.9g s, bound %.9g; CBC %.9g\n", what, a.seconds, a.bound, b.seconds);
    hd_layout_answer_free(&a), hd_layout_answer_free(&b);
}

/* Between the least memory and that of the unlimited optimum: that share of the way. */
static bool limit_step(hd_layout_problem *p, double share)
{
    hd_layout_answer a;
    hd_error err = {0};
    if (hd_layouts_solve(p, &a, &err)) return false;
    int64_t most = a.memory, least;
    hd_layout_answer_free(&a);
    p->memory = 1;
    if (hd_layouts_solve(p, &a, &err)) return false;
    least = a.memory;
    hd_layout_answer_free(&a);
    p->memory = least + (int64_t)((double)(most - least) * share);
    return true;
}

static int report_steps(const char *what, const step_tally *t, double share, int wanted)
{
    bool ok = t->ended >= wanted && t->equal >= share * t->ended && t->held == t->ended;
    printf("  %-40s %4d of %-4d equal to 1e-6 (>= %g %%, >= %d that CBC ends in %d s: %d of %d), gap holds CBC's on %d; seconds: %.3f (slowest %.3f), CBC %.1f  %s\n",
           what, t->equal, t->ended, 100 * share, wanted, CBC_SECONDS, t->ended, t->all, t->held - t->equal, t->ours, t->slowest, t->cbc, ok ? "PASS" : "FAIL");
    return !ok;
}

/* How many of the two claims fail. */
static int hd_check_steps(const char *root, bool quick)
{
    static const double shares[] = {0.3, 0.6, 0.1, 0.85, 0};
    step_tally free = {0}, limited = {0};
    int n_nets = (int)(sizeof step_nets / sizeof *step_nets), n_meshes = (int)(sizeof step_meshes / sizeof *step_meshes), n = 0;
    for (int net = 0; net < n_nets; net++) {
        hd_error err = {0};
        hd_graph *g = step_graph(root, net, &err);
        if (err.code) printf("    %s\n", err.message), free.all++, limited.all++;
        for (int k = 0; !err.code && k < n_meshes; k++) {
            char what[200];
            if (!((quick ? step_nets[net].quick : step_nets[net].meshes) >> k & 1)) continue;
            hd_layout_problem p = step_problem(g, step_meshes[k]);
            snprintf(what, sizeof what, "%s %s on %dx%d", step_nets[net].file, step_nets[net].define, step_meshes[k].x, step_meshes[k].y);
            compare_step(&free, p, what);
            double share = shares[n++ % 5];
            if (!limit_step(&p, share)) continue;
            snprintf(what, sizeof what, "%s %s on %dx%d within %lld bytes", step_nets[net].file, step_nets[net].define, step_meshes[k].x, step_meshes[k].y,
                     (long long)p.memory);
            compare_step(&limited, p, what);
        }
        hd_graph_free(g);
    }
    int wanted = quick ? 5 : 50;
    return report_steps("training steps", &free, 1, wanted) + report_steps("the same within a limit of memory", &limited, 0.95, wanted);
}

#endif
