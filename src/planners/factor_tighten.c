/* factor_tighten.c: moves costs between the variables and links of a core, so that its constant, a lower bound, grows. All numbers are integers. */
#include <math.h>
#include <string.h>

#include "planners/factor_core.h"

/* ---- order ---- */

/* From the first variable outwards: neighbours stand near each other. */
int hd_core_order(const core *c, int *order, int *rank)
{
    int n = 0;
    for (int v = 0; v < c->n; v++) rank[v] = -1;
    for (int first = 0; first < c->n; first++) {
        if (c->var[first].gone || rank[first] >= 0) continue;
        rank[first] = n, order[n++] = first;
        for (int at = rank[first]; at < n; at++) {
            const core_var *x = &c->var[order[at]];
            for (int k = 0; k < x->n_links; k++) {
                const core_link *l = &c->link[x->link[k]];
                int u = l->a == order[at] ? l->b : l->a;
                if (rank[u] < 0) rank[u] = n, order[n++] = u;
            }
        }
    }
    return n;
}

/* ---- one link ---- */

/* The least of each state of v over the link goes to the state. */
static void collect(core *c, int v, core_link *l)
{
    core_var *x = &c->var[v];
    int n = x->n, m = c->var[l->a == v ? l->b : l->a].n;
    if (l->a == v) {
        for (int i = 0; i < n; i++) {
            double least = INFINITY, *row = &l->cost[i * m];
            for (int j = 0; j < m; j++) least = row[j] < least ? row[j] : least;
            x->cost[i] += least;
            for (int j = 0; least != 0 && least < INFINITY && j < m; j++) row[j] -= least;
        }
        return;
    }
    double least[n];
    bool any = false;
    for (int i = 0; i < n; i++) least[i] = INFINITY;
    for (int j = 0; j < m; j++)
        for (int i = 0; i < n; i++) least[i] = l->cost[j * n + i] < least[i] ? l->cost[j * n + i] : least[i];
    for (int i = 0; i < n; i++) {
        x->cost[i] += least[i];
        if (!(least[i] < INFINITY)) least[i] = 0;
        any |= least[i] != 0;
    }
    for (int j = 0; any && j < m; j++)
        for (int i = 0; i < n; i++) l->cost[j * n + i] -= least[i];
}

static void give(core *c, int v, core_link *l, const double *share)
{
    int n = c->var[v].n, m = c->var[l->a == v ? l->b : l->a].n;
    if (l->a == v) {
        for (int i = 0; i < n; i++)
            for (int j = 0; j < m; j++) l->cost[i * m + j] += share[i];
        return;
    }
    for (int j = 0; j < m; j++)
        for (int i = 0; i < n; i++) l->cost[j * n + i] += share[i];
}

/* ---- one variable ---- */

static void pick(const core *c, int v, const int *rank, bool backwards, int *round)
{
    const core_var *x = &c->var[v];
    double least = INFINITY;
    round[v] = 0;
    for (int i = 0; i < x->n; i++) {
        double sum = x->cost[i];
        for (int k = 0; k < x->n_links; k++) {
            const core_link *l = &c->link[x->link[k]];
            int u = l->a == v ? l->b : l->a;
            if ((rank[u] < rank[v]) != backwards) sum += l->cost[l->a == v ? i * c->var[u].n + round[u] : round[u] * x->n + i];
        }
        if (sum < least) least = sum, round[v] = i;
    }
}

static void visit(core *c, int v, const int *rank, bool backwards, double below, int *round)
{
    core_var *x = &c->var[v];
    double least = INFINITY, share[x->n];
    int ahead = 0;
    for (int k = 0; k < x->n_links; k++) {
        core_link *l = &c->link[x->link[k]];
        collect(c, v, l);
        ahead += (rank[l->a == v ? l->b : l->a] > rank[v]) != backwards;
    }
    for (int i = 0; i < x->n; i++) least = fmin(least, x->cost[i]);
    if (!(least < INFINITY)) {
        c->impossible = true;
        return;
    }
    c->constant += least;
    for (int i = 0; i < x->n; i++) {
        x->cost[i] -= least;
        if (c->constant + x->cost[i] > below - 0.5) x->cost[i] = INFINITY;
    }
    if (round) pick(c, v, rank, backwards, round);
    int most = ahead > x->n_links - ahead ? ahead : x->n_links - ahead;
    if (!ahead) return;
    for (int i = 0; i < x->n; i++) share[i] = x->cost[i] < INFINITY ? floor(x->cost[i] / most) : INFINITY;
    for (int k = 0; k < x->n_links; k++) {
        core_link *l = &c->link[x->link[k]];
        if ((rank[l->a == v ? l->b : l->a] > rank[v]) != backwards) give(c, v, l, share);
    }
    for (int i = 0; i < x->n; i++)
        if (share[i] < INFINITY) x->cost[i] -= ahead * share[i];
}

void hd_core_pass(core *c, const int *order, const int *rank, int n, bool backwards, double below, int *round)
{
    for (int i = 0; i < n && !c->impossible; i++) visit(c, order[backwards ? n - 1 - i : i], rank, backwards, below, round);
}

/* ---- choices ---- */

static double cost_at(const core *c, int v, int i, const int *at)
{
    const core_var *x = &c->var[v];
    double sum = x->cost[i];
    for (int k = 0; k < x->n_links; k++) {
        const core_link *l = &c->link[x->link[k]];
        sum += l->a == v ? l->cost[i * c->var[l->b].n + at[l->b]] : l->cost[at[l->a] * x->n + i];
    }
    return sum;
}

static double total_of(const core *c, const int *at)
{
    double sum = c->constant;
    for (int v = 0; v < c->n; v++)
        if (!c->var[v].gone) sum += c->var[v].cost[at[v]];
    for (int i = 0; i < c->n_links; i++)
        if (!c->link[i].gone) sum += c->link[i].cost[at[c->link[i].a] * c->var[c->link[i].b].n + at[c->link[i].b]];
    return sum;
}

double hd_core_descend(const core *c, int *at)
{
    bool better = true;
    for (int round = 0; better && round < 20; round++) {
        better = false;
        for (int v = 0; v < c->n; v++) {
            if (c->var[v].gone) continue;
            double here = cost_at(c, v, at[v], at);
            for (int i = 0; i < c->var[v].n; i++) {
                double there = i == at[v] ? INFINITY : cost_at(c, v, i, at);
                if (there < here) here = there, at[v] = i, better = true;
            }
        }
    }
    return total_of(c, at);
}

void hd_core_margins(const core *c, int v, double *out)
{
    const core_var *x = &c->var[v];
    for (int i = 0; i < x->n; i++) out[i] = c->constant + x->cost[i];
    for (int k = 0; k < x->n_links; k++) {
        const core_link *l = &c->link[x->link[k]];
        int m = c->var[l->a == v ? l->b : l->a].n;
        for (int i = 0; i < x->n; i++) {
            double least = INFINITY;
            for (int j = 0; j < m; j++) least = fmin(least, l->cost[l->a == v ? i * m + j : j * x->n + i]);
            out[i] += least;
        }
    }
}
