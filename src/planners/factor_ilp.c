/* factor_ilp.c: the same problem as an integer programme for CBC: x[v][s] in {0, 1}, one of each variable; y[link][s][t] >= 0 with x as its margins, as Alpa
 * writes it (Zheng et al. 2022, section 4.2). */
#include <dlfcn.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "planners/factor_int.h"

/* ---- CBC's C interface (coin/Cbc_C_Interface.h, version 2.10), found at run time: nothing is linked ---- */

typedef struct cbc {
    void *library;
    void *(*new_model)(void);
    void (*delete_model)(void *model);
    void (*load)(void *model, int columns, int rows, const int *start, const int *index, const double *value, const double *low, const double *high,
                 const double *objective, const double *row_low, const double *row_high);
    void (*set_integer)(void *model, int column);
    void (*set_parameter)(void *model, const char *name, const char *value);
    int (*solve)(void *model);
    int (*is_infeasible)(void *model);
    int (*is_optimal)(void *model);
    const double *(*solution)(void *model);
    double (*bound)(void *model);
} cbc;

static int find_cbc(cbc *c, hd_error *err)
{
    static const char *const files[] = {"libCbcSolver.so.3", "libCbcSolver.so"};
    const struct { const char *name; void *to; } functions[] = {
        {"Cbc_newModel", &c->new_model}, {"Cbc_deleteModel", &c->delete_model}, {"Cbc_loadProblem", &c->load}, {"Cbc_setInteger", &c->set_integer},
        {"Cbc_setParameter", &c->set_parameter}, {"Cbc_solve", &c->solve}, {"Cbc_isProvenInfeasible", &c->is_infeasible},
        {"Cbc_isProvenOptimal", &c->is_optimal}, {"Cbc_getColSolution", &c->solution}, {"Cbc_getBestPossibleObjValue", &c->bound}};
    *c = (cbc){0};
    for (size_t i = 0; !c->library && i < sizeof files / sizeof *files; i++) c->library = dlopen(files[i], RTLD_NOW | RTLD_LOCAL);
    if (!c->library) return hd_fail(err, HD_EUNSUPPORTED, "CBC is not installed (libCbcSolver.so.3; Debian: coinor-libcbc3): install it, or leave --solver out");
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        void *f = dlsym(c->library, functions[i].name);
        if (!f) return hd_fail(err, HD_EUNSUPPORTED, "the CBC that is installed has no %s", functions[i].name);
        memcpy(functions[i].to, &f, sizeof f);
    }
    return 0;
}

/* ---- the programme ---- */

typedef struct programme {
    const hd_factor_problem *p;
    int *first;            /* [n]: column of x[v][0] */
    int columns, rows, used;
    int *start, *row;      /* by column */
    double *value, *low, *high, *cost, *row_low, *row_high;
    int64_t entries;
} programme;

static int64_t pairs(const hd_factor_problem *p, const hd_factor_link *l) { return (int64_t)p->states[l->a] * p->states[l->b]; }

/* Rows: one a variable, then for each link one a state of either end, then the limit. */
static bool size_up(programme *m)
{
    const hd_factor_problem *p = m->p;
    int64_t columns = 0, rows = p->n + 1;
    for (int v = 0; v < p->n; v++) columns += p->states[v];
    m->entries = 2 * columns;
    for (int i = 0; i < p->n_links; i++) {
        const hd_factor_link *l = &p->links[i];
        columns += pairs(p, l), rows += p->states[l->a] + p->states[l->b];
        m->entries += 2 * pairs(p, l) + p->states[l->a] + p->states[l->b];
    }
    if (columns > 1 << 28 || rows > 1 << 28 || m->entries > 1 << 30) return false;
    m->columns = (int)columns, m->rows = (int)rows;
    return true;
}

static bool take_memory(programme *m)
{
    size_t c = (size_t)m->columns + 1, r = (size_t)m->rows + 1, e = (size_t)m->entries + 1;
    m->first = hd_calloc((size_t)m->p->n + 1, sizeof(int));
    m->start = hd_calloc(c, sizeof(int)), m->row = hd_calloc(e, sizeof(int)), m->value = hd_calloc(e, sizeof(double));
    m->low = hd_calloc(c, sizeof(double)), m->high = hd_calloc(c, sizeof(double)), m->cost = hd_calloc(c, sizeof(double));
    m->row_low = hd_calloc(r, sizeof(double)), m->row_high = hd_calloc(r, sizeof(double));
    return m->first && m->start && m->row && m->value && m->low && m->high && m->cost && m->row_low && m->row_high;
}

static void free_programme(programme *m)
{
    hd_free(m->first), hd_free(m->start), hd_free(m->row), hd_free(m->value), hd_free(m->low), hd_free(m->high), hd_free(m->cost);
    hd_free(m->row_low), hd_free(m->row_high);
}

static void put(programme *m, int row, double value) { m->row[m->used] = row, m->value[m->used++] = value; }

static void set_cost(programme *m, int column, int64_t cost)
{
    m->high[column] = cost < HD_NEVER;
    m->cost[column] = cost < HD_NEVER ? (double)cost : 0;
}

static void write_variable(programme *m, int v, int column, const int *row_of_link)
{
    const hd_factor_problem *p = m->p;
    for (int s = 0; s < p->states[v]; s++, column++) {
        m->start[column] = m->used;
        set_cost(m, column, p->cost[v][s]);
        put(m, v, 1);
        for (int i = 0; i < p->n_links; i++) {
            const hd_factor_link *l = &p->links[i];
            if (l->a == v) put(m, row_of_link[i] + s, -1);
            if (l->b == v) put(m, row_of_link[i] + p->states[l->a] + s, -1);
        }
        if (p->bytes && p->bytes[v][s]) put(m, m->rows - 1, (double)p->bytes[v][s]);
    }
}

static int write_link(programme *m, int link, int column, int row)
{
    const hd_factor_link *l = &m->p->links[link];
    int nb = m->p->states[l->b];
    for (int i = 0; i < pairs(m->p, l); i++, column++) {
        m->start[column] = m->used;
        set_cost(m, column, l->cost[i]);
        put(m, row + i / nb, 1);
        put(m, row + m->p->states[l->a] + i % nb, 1);
    }
    return column;
}

static bool write_programme(programme *m)
{
    const hd_factor_problem *p = m->p;
    int *row_of_link = hd_calloc((size_t)p->n_links + 1, sizeof(int)), row = p->n, column = 0;
    if (!row_of_link) return false;
    for (int i = 0; i < p->n_links; i++) row_of_link[i] = row, row += p->states[p->links[i].a] + p->states[p->links[i].b];
    for (int v = 0; v < p->n; column += p->states[v++]) m->first[v] = column, write_variable(m, v, column, row_of_link), m->row_low[v] = m->row_high[v] = 1;
    for (int i = 0; i < p->n_links; i++) column = write_link(m, i, column, row_of_link[i]);
    m->start[column] = m->used;
    m->row_low[m->rows - 1] = 0;
    m->row_high[m->rows - 1] = p->limit >= 0 && p->bytes ? (double)p->limit : DBL_MAX;
    hd_free(row_of_link);
    return true;
}

static void read_choice(const programme *m, const double *x, hd_factor_answer *out)
{
    for (int v = 0; v < m->p->n; v++)
        for (int s = 0; s < m->p->states[v]; s++)
            if (x[m->first[v] + s] > x[m->first[v] + out->choice[v]]) out->choice[v] = s;
    out->cost = hd_factor_total(m->p, out->choice, &out->bytes);
    out->feasible = out->cost < HD_NEVER && (m->p->limit < 0 || out->bytes <= m->p->limit);
}

static void run_cbc(const cbc *c, programme *m, double seconds, hd_factor_answer *out)
{
    void *model = c->new_model();
    char text[32];
    snprintf(text, sizeof text, "%g", seconds);
    c->load(model, m->columns, m->rows, m->start, m->row, m->value, m->low, m->high, m->cost, m->row_low, m->row_high);
    for (int v = 0; v < m->p->n; v++)
        for (int s = 0; s < m->p->states[v]; s++) c->set_integer(model, m->first[v] + s);
    c->set_parameter(model, "log", "0");
    c->set_parameter(model, "ratioGap", "0");
    c->set_parameter(model, "allowableGap", "0");
    if (seconds > 0) c->set_parameter(model, "sec", text);
    c->solve(model);
    const double *x = c->is_infeasible(model) ? NULL : c->solution(model);
    if (x) read_choice(m, x, out);
    out->bound = !out->feasible ? HD_NEVER : c->is_optimal(model) ? out->cost : (int64_t)ceil(c->bound(model) - 0.5);
    c->delete_model(model);
}

int hd_factor_solve_ilp(const hd_factor_problem *p, double seconds, hd_factor_answer *out, hd_error *err)
{
    programme m = {.p = p};
    cbc c;
    *out = (hd_factor_answer){.choice = hd_calloc((size_t)p->n + 1, sizeof(int)), .bound = HD_NEVER};
    int rc = find_cbc(&c, err);
    if (rc) goto end;
    if (!size_up(&m)) rc = hd_fail(err, HD_EUNSUPPORTED, "the integer programme has over 2^28 columns or rows: too large for CBC");
    else if (!out->choice || !take_memory(&m) || !write_programme(&m)) rc = hd_fail_memory(err, (size_t)m.entries * 12, "an integer programme");
    else run_cbc(&c, &m, seconds, out);
    free_programme(&m);
end:
    if (c.library) dlclose(c.library);
    if (rc) hd_factor_answer_free(out);
    return rc;
}
