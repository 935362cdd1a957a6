/* exact.c: what the planners say is best, beside brute force over random small problems.
 *
 *   check_exact [SEED [TABLES [GRAPHS [ROOT]]]]     200 tables of stages and of slices, 50 profiled graphs each for one and two levels of machines, 200 networks
 *                                            of costs without and with a limit; as many wider networks, and training steps of ROOT/examples/layouts (a few
 *                                            where TABLES is below 200), against CBC where it is installed
 * Brute force follows the definitions in the headers, by recursion over every choice. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "base/str.h"
#include "base/term.h"
#include "planners/factor.h"
#include "planners/pipedream.h"
#include "planners/slices.h"
#include "planners/stages.h"
#include "exact_steps.h"

static int failed;
static uint64_t seed = 1;

static int pick(hd_rng *r, int n) { return (int)hd_rng_below(r, (uint64_t)n); }
static bool close_to(double a, double b) { return fabs(a - b) <= 1e-9 * (1 + fabs(b)); }

typedef struct tally { int equal, all, infeasible; double ours, brute; } tally;

static void count(tally *t, double mine, double best, double ours_at, double brute_at, double end)
{
    t->all++;
    t->equal += isinf(best) ? isinf(mine) : close_to(mine, best);
    t->infeasible += isinf(best);
    t->ours += brute_at - ours_at;
    t->brute += end - brute_at;
}

static void report(const char *what, const tally *t)
{
    bool ok = t->equal == t->all && t->all > 0;
    printf("  %-40s %4d of %-4d equal (%d infeasible); seconds: %.4f, the other way %.4f  %s\n", what, t->equal, t->all, t->infeasible, t->ours,
           t->brute, ok ? "PASS" : "FAIL");
    failed += !ok;
}

/* ---- stages ---- */

static void stage_text(hd_rng *r, int layers, int devices, hd_str *out)
{
    hd_str_puts(out, "first_layer\tlast_layer\tsubmesh_devices\tconfig\tcost\tmax_succeeding_stages\n");
    for (int i = 0; i < layers; i++)
        for (int j = i; j < layers; j++)
            for (int d = 1; d <= devices; d *= 2)
                for (int c = 0; c < 2; c++)
                    if (pick(r, 5)) hd_str_printf(out, "%d\t%d\t%d\tc%d\t%d.5\t%d\n", i, j, d, c, (j - i + 1) * 40 / d + pick(r, 40), pick(r, layers + 2) - 1);
}

typedef struct stage_search { const hd_stage_profile *p; int64_t micro; double best; } stage_search;

static void try_stages(stage_search *s, int layer, int devices, int64_t allowed, int n, double sum, double greatest)
{
    if (layer > s->p->last) {
        double total = sum + (double)(s->micro - 1) * greatest;
        if (!devices && total < s->best) s->best = total;
        return;
    }
    for (int i = 0; i < s->p->n; i++) {
        const hd_stage_option *o = &s->p->options[i];
        if (o->first != layer || o->devices > devices || !isfinite(o->cost) || allowed == 0) continue;
        int64_t room = allowed - 1 < o->max_succeeding ? allowed - 1 : o->max_succeeding; /* how many may still come behind it */
        if (room < 0) continue;
        try_stages(s, o->last + 1, devices - o->devices, room, n + 1, sum + o->cost, o->cost > greatest ? o->cost : greatest);
    }
}

static void check_stages(int tables)
{
    tally t = {0};
    for (int k = 0; k < tables; k++) {
        hd_rng r = hd_rng_new(hd_hash_mix(seed + (uint64_t)k, 1));
        hd_str text;
        hd_stage_profile p;
        hd_stage_plan plan = {0};
        hd_error err = {0}, none = {0};
        int layers = 3 + pick(&r, 5), devices = 1 + pick(&r, 12);
        hd_str_init(&text);
        stage_text(&r, layers, devices, &text);
        if (hd_stage_profile_parse(text.data, text.len, "table", &p, &err)) {
            hd_str_free(&text);
            continue; /* no row came out */
        }
        stage_search s = {&p, 1 + pick(&r, 12), INFINITY};
        double a = hd_time();
        int rc = hd_stages_solve(&p, devices, s.micro, &plan, &none);
        double b = hd_time();
        try_stages(&s, p.first, devices, 1 << 20, 0, 0, 0);
        count(&t, rc ? INFINITY : plan.objective, s.best, a, b, hd_time());
        hd_stage_plan_free(&plan);
        hd_stage_profile_free(&p);
        hd_str_free(&text);
    }
    report("stages (Alpa's programme)", &t);
}

/* ---- slices ---- */

typedef struct slice_search { const hd_slice_profile *p; int stages; double best; } slice_search;

static void try_slices(slice_search *s, int at, double sum, double greatest)
{
    if (at == s->p->tokens) {
        double total = sum + (s->stages - 1) * greatest;
        if (total < s->best) s->best = total;
        return;
    }
    for (int i = 0; i < s->p->n; i++) {
        const hd_slice_option *o = &s->p->options[i];
        if (o->context == at && isfinite(o->cost)) try_slices(s, at + o->length, sum + o->cost, o->cost > greatest ? o->cost : greatest);
    }
}

static void check_slices(int tables)
{
    tally t = {0};
    for (int k = 0; k < tables; k++) {
        hd_rng r = hd_rng_new(hd_hash_mix(seed + (uint64_t)k, 2));
        hd_str text;
        hd_slice_profile p;
        hd_slice_plan plan = {0};
        hd_error err = {0}, none = {0};
        int pieces = 2 + pick(&r, 14), unit = 1 + pick(&r, 64);
        hd_str_init(&text);
        for (int ctx = 0; ctx < pieces; ctx++)
            for (int len = 1; ctx + len <= pieces; len++)
                if (pick(&r, 6)) hd_str_printf(&text, "%d\t%d\t%.3f\n", len * unit, ctx * unit, 1 + len * (1 + 0.1 * ctx) + 0.001 * pick(&r, 900));
        if (!hd_slice_profile_parse(text.data, text.len, "table", &p, &err)) {
            slice_search s = {&p, 1 + pick(&r, 12), INFINITY};
            double a = hd_time();
            int rc = hd_slices_solve(&p, s.stages, &plan, &none);
            double b = hd_time();
            try_slices(&s, 0, 0, 0);
            count(&t, rc ? INFINITY : plan.objective, s.best, a, b, hd_time());
            hd_slice_plan_free(&plan);
            hd_slice_profile_free(&p);
        }
        hd_str_free(&text);
    }
    report("slices (TeraPipe's programme)", &t);
}

/* ---- PipeDream ---- */

static void graph_text(hd_rng *r, int nodes, hd_str *out)
{
    for (int i = 0; i < nodes; i++)
        hd_str_printf(out, "node%d -- Layer(%d) -- forward_compute_time=%d.25, backward_compute_time=%d.5, activation_size=%d.0, parameter_size=%d.000\n", i, i,
                      1 + pick(r, 20), 1 + pick(r, 40), pick(r, 3000), pick(r, 9000));
    for (int i = 1; i < nodes; i++) {
        hd_str_printf(out, "\tnode%d -- node%d\n", pick(r, 3) ? i - 1 : pick(r, i), i);
        if (!pick(r, 3) && i > 1) hd_str_printf(out, "\tnode%d -- node%d\n", pick(r, i - 1), i);
    }
}

typedef struct dream { const hd_profiled_graph *g; const hd_pipedream_machines *m; } dream;

static bool is_closed(const hd_profiled_graph *g, unsigned set)
{
    for (int e = 0; e < g->n_edges; e++)
        if ((set >> g->edges[e][1] & 1) && !(set >> g->edges[e][0] & 1)) return false;
    return true;
}

static double crossing(const hd_profiled_graph *g, unsigned set)
{
    double bytes = 0;
    for (int i = 0; i < g->n; i++)
        for (int e = 0; (set >> i & 1) && e < g->n_edges; e++)
            if (g->edges[e][0] == i && !(set >> g->edges[e][1] & 1)) {
                bytes += g->nodes[i].activation;
                break;
            }
    return bytes;
}

static double best_run(const dream *d, int level, unsigned from, unsigned to, int m);

static double whole_stage(const dream *d, int level, unsigned from, unsigned to, int m)
{
    double work = 0, bytes = 0;
    for (int i = 0; i < d->g->n; i++)
        if ((to & ~from) >> i & 1) work += d->g->nodes[i].forward + d->g->nodes[i].backward, bytes += d->g->nodes[i].parameters;
    if (level) work = best_run(d, level - 1, from, to, d->m->count[level - 1]);
    return fmax(work, 2.0 * (m - 1) * bytes / (d->m->bandwidth[level] / 1e3)) / m;
}

/* The last stage is whole; what is before it anything. */
static double best_run(const dream *d, int level, unsigned from, unsigned to, int m)
{
    double best = whole_stage(d, level, from, to, m);
    for (unsigned s = from; s < to; s++) {
        if ((s & from) != from || (s & ~to) || s == from || s == to || !is_closed(d->g, s)) continue;
        double cross = 2 * crossing(d->g, s) / (d->m->bandwidth[level] / 1e3);
        for (int k = 1; k < m; k++)
            best = fmin(best, fmax(cross, fmax(best_run(d, level, from, s, m - k), whole_stage(d, level, s, to, k))));
    }
    return best;
}

static void check_pipedream(int graphs, int levels)
{
    tally t = {0};
    for (int k = 0; k < graphs; k++) {
        hd_rng r = hd_rng_new(hd_hash_mix(seed + (uint64_t)k, 2 + (uint64_t)levels));
        hd_str text;
        hd_profiled_graph g;
        hd_pipedream_plan plan = {0};
        hd_error err = {0};
        hd_str_init(&text);
        graph_text(&r, 3 + pick(&r, levels > 1 ? 3 : 6), &text);
        hd_pipedream_machines m = {.levels = levels, .count = {1 + pick(&r, levels > 1 ? 3 : 4), 1 + pick(&r, 3)}, .bandwidth = {5e4 + pick(&r, 400000), 1e5 + pick(&r, 100000)}};
        int rc = hd_profiled_graph_parse(text.data, text.len, "graph", &g, &err);
        double a = hd_time();
        if (!rc) rc = hd_pipedream_solve(&g, &m, &plan, &err);
        double b = hd_time(), best = rc ? 0 : best_run(&(dream){&g, &m}, levels - 1, 0, (1u << g.n) - 1, m.count[levels - 1]);
        if (rc) printf("  %s\n", err.message);
        count(&t, rc ? INFINITY : plan.bottleneck, best, a, b, hd_time());
        hd_pipedream_plan_free(&plan);
        if (!rc) hd_profiled_graph_free(&g);
        hd_str_free(&text);
    }
    report(levels > 1 ? "PipeDream's optimizer, two levels" : "PipeDream's optimizer, one level", &t);
}

/* ---- networks of costs ---- */

enum { MOST_VARS = 64, MOST_LINKS = 160 };

typedef struct random_network {
    int states[MOST_VARS];
    int64_t *cost[MOST_VARS], *bytes[MOST_VARS];
    hd_factor_link links[MOST_LINKS];
    hd_factor_problem p;
} random_network;

static int64_t *random_costs(hd_rng *r, int n, int most, int never)
{
    int64_t *x = malloc((size_t)n * sizeof *x);
    for (int i = 0; i < n; i++) x[i] = never && !pick(r, never) ? HD_NEVER : pick(r, most);
    return x;
}

/* A chain with links back to earlier variables here and there. */
static void open_network(random_network *n, hd_rng *r, int vars, int most_states, bool limited)
{
    int64_t least = 0, greatest = 0;
    *n = (random_network){.p = {.n = vars, .limit = -1}};
    n->p.states = n->states, n->p.cost = (const int64_t *const *)n->cost, n->p.bytes = (const int64_t *const *)n->bytes, n->p.links = n->links;
    for (int v = 0; v < vars; v++) {
        n->states[v] = 1 + pick(r, most_states);
        n->cost[v] = random_costs(r, n->states[v], 100, 15);
        n->bytes[v] = random_costs(r, n->states[v], 50, 0);
        int64_t low = n->bytes[v][0], high = low;
        for (int s = 1; s < n->states[v]; s++) {
            if (n->bytes[v][s] < low) low = n->bytes[v][s];
            if (n->bytes[v][s] > high) high = n->bytes[v][s];
        }
        least += low, greatest += high;
        for (int k = 0; v && k < 2; k++) {
            if (k && pick(r, 3)) continue;
            int u = k ? pick(r, v) : v - 1;
            n->links[n->p.n_links++] = (hd_factor_link){u, v, random_costs(r, n->states[u] * n->states[v], 60, 8)};
        }
    }
    if (limited) n->p.limit = least + pick(r, (int)(greatest - least) / 2 + 1);
}

static void close_network(random_network *n)
{
    for (int v = 0; v < n->p.n; v++) free(n->cost[v]), free(n->bytes[v]);
    for (int i = 0; i < n->p.n_links; i++) free((void *)n->links[i].cost);
}

static double brute_network(const hd_factor_problem *p)
{
    int choice[MOST_VARS] = {0}, d;
    double best = INFINITY;
    do {
        int64_t bytes, cost = hd_factor_total(p, choice, &bytes);
        if (cost < HD_NEVER && (p->limit < 0 || bytes <= p->limit) && (double)cost < best) best = (double)cost;
        for (d = p->n - 1; d >= 0 && ++choice[d] == p->states[d]; d--) choice[d] = 0;
    } while (d >= 0);
    return best;
}

static double cbc_network(const hd_factor_problem *p)
{
    hd_factor_answer a;
    hd_error err = {0};
    if (hd_factor_solve_ilp(p, 0, &a, &err)) return NAN;
    double cost = a.feasible ? (double)a.cost : INFINITY;
    hd_factor_answer_free(&a);
    return cost;
}

static bool has_cbc(void)
{
    int states = 1;
    int64_t zero = 0;
    const int64_t *cost = &zero;
    return !isnan(cbc_network(&(hd_factor_problem){.n = 1, .states = &states, .cost = &cost, .limit = -1}));
}

static void check_networks(const char *what, int count_of, int vars, int states, bool limited, int64_t table, double (*other)(const hd_factor_problem *))
{
    tally t = {0};
    for (int k = 0; k < count_of; k++) {
        hd_rng r = hd_rng_new(hd_hash_mix(seed + (uint64_t)k, 7));
        random_network n;
        hd_factor_answer a;
        hd_error err = {0};
        open_network(&n, &r, 2 + pick(&r, vars - 1), states, limited);
        double start = hd_time();
        int rc = hd_factor_solve(&n.p, &(hd_factor_options){.table = table}, &a, &err);
        double middle = hd_time(), best = other(&n.p);
        int64_t bytes, cost = a.feasible ? hd_factor_total(&n.p, a.choice, &bytes) : 0;
        bool honest = !rc && (!a.feasible || (cost == a.cost && (n.p.limit < 0 || bytes <= n.p.limit))) && a.bound >= (a.feasible ? a.cost : HD_NEVER);
        count(&t, honest ? a.feasible ? (double)a.cost : INFINITY : -1, best, start, middle, hd_time());
        hd_factor_answer_free(&a);
        close_network(&n);
    }
    report(what, &t);
}

int main(int argc, char **argv)
{
    if (argc > 1) seed = strtoull(argv[1], NULL, 10);
    int tables = argc > 2 ? atoi(argv[2]) : 200, graphs = argc > 3 ? atoi(argv[3]) : 50;
    check_stages(tables);
    check_slices(tables);
    check_pipedream(graphs, 1);
    check_pipedream(graphs, 2);
    check_networks("networks of costs", tables, 7, 4, false, 0, brute_network);
    check_networks("the same, tables of 8 entries at most", tables, 7, 4, false, 8, brute_network);
    check_networks("the same within a limit of bytes", tables, 7, 4, true, 0, brute_network);
    if (has_cbc()) {
        check_networks("wider networks, against CBC", tables, 40, 8, false, 0, cbc_network);
        check_networks("the same within a limit of bytes", tables, 40, 8, true, 0, cbc_network);
        if (argc > 4) failed += hd_check_steps(argv[4], tables < 200);
    }
    return failed != 0;
}
