/* Problems of choices (planners/factor.h): what shrinks them keeps every total; the least is brute force's; bounds are bounds when time or branches run out. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/rng.h"
#include "planners/factor_core.h"

enum { VARS = 8, STATES = 4, LINKS = 16 };

typedef struct random_problem {
    hd_factor_problem p;
    int states[VARS];
    int64_t cost[VARS][STATES], bytes[VARS][STATES], table[LINKS][STATES * STATES];
    const int64_t *costs[VARS], *all_bytes[VARS];
    hd_factor_link links[LINKS];
} random_problem;

static int pick(hd_rng *r, int n) { return (int)hd_rng_below(r, (uint64_t)n); }

static void make(random_problem *x, uint64_t seed, bool limited)
{
    hd_rng r = hd_rng_new(seed);
    *x = (random_problem){.p = {.n = 2 + pick(&r, VARS - 1), .limit = -1}};
    for (int v = 0; v < x->p.n; v++) {
        x->states[v] = 1 + pick(&r, STATES), x->costs[v] = x->cost[v], x->all_bytes[v] = x->bytes[v];
        for (int s = 0; s < x->states[v]; s++) x->cost[v][s] = pick(&r, 12) ? pick(&r, 50) : HD_NEVER, x->bytes[v][s] = pick(&r, 20);
    }
    int n = pick(&r, LINKS);
    for (int i = 0; i < n; i++) {
        int a = pick(&r, x->p.n), b = pick(&r, x->p.n);
        if (a == b) continue;
        for (int k = 0; k < STATES * STATES; k++) x->table[i][k] = pick(&r, 9) ? pick(&r, 40) : HD_NEVER;
        x->links[x->p.n_links++] = (hd_factor_link){a, b, x->table[i]};
    }
    x->p.states = x->states, x->p.cost = x->costs, x->p.bytes = x->all_bytes, x->p.links = x->links;
    if (limited) x->p.limit = 6 * x->p.n;
}

static bool next(const hd_factor_problem *p, int *choice)
{
    int d = p->n - 1;
    for (; d >= 0 && ++choice[d] == p->states[d]; d--) choice[d] = 0;
    return d >= 0;
}

static int64_t brute(const hd_factor_problem *p)
{
    int choice[VARS] = {0};
    int64_t best = HD_NEVER;
    do {
        int64_t bytes, cost = hd_factor_total(p, choice, &bytes);
        if ((p->limit < 0 || bytes <= p->limit) && cost < best) best = cost;
    } while (next(p, choice));
    return best;
}

static void test_least(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 600; seed++) {
        random_problem x;
        hd_factor_answer a;
        hd_error err = {0};
        make(&x, seed, seed % 2);
        assert_int_equal(hd_factor_solve(&x.p, seed % 3 ? NULL : &(hd_factor_options){.table = 6}, &a, &err), 0);
        int64_t best = brute(&x.p), bytes;
        assert_int_equal(a.feasible, best < HD_NEVER);
        if (a.feasible) {
            assert_int_equal(a.cost, best);
            assert_int_equal(a.bound, best);
            assert_int_equal(hd_factor_total(&x.p, a.choice, &bytes), best);
            assert_true(x.p.limit < 0 || bytes <= x.p.limit);
        }
        hd_factor_answer_free(&a);
    }
}

/* Of a choice by position of what is left: constant, costs and links together are what the problem says of the choice that it stands for. */
static void assert_same_total(const core *c, const random_problem *x, uint64_t seed)
{
    int at[VARS], choice[VARS];
    hd_rng r = hd_rng_new(seed);
    for (int round = 0; round < 20; round++) {
        double total = c->constant;
        for (int v = 0; v < c->n; v++) at[v] = c->var[v].gone ? 0 : pick(&r, c->var[v].n);
        for (int v = 0; v < c->n; v++) total += c->var[v].gone ? 0 : c->var[v].cost[at[v]];
        for (int i = 0; i < c->n_links; i++)
            if (!c->link[i].gone) total += c->link[i].cost[at[c->link[i].a] * c->var[c->link[i].b].n + at[c->link[i].b]];
        hd_core_expand(c, at, choice);
        int64_t meant = hd_factor_total(&x->p, choice, NULL);
        if (meant >= HD_NEVER) assert_true(isinf(total));
        else assert_true(total == (double)meant);
    }
}

static void test_totals(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 400; seed++) {
        random_problem x;
        core c;
        int order[VARS], rank[VARS];
        make(&x, seed, false);
        assert_int_equal(hd_core_open(&c, &x.p, false, NULL, NULL), 0);
        for (int round = 0; round < 4 && !c.impossible; round++) {
            double before = c.constant;
            int n = hd_core_order(&c, order, rank);
            hd_core_pass(&c, order, rank, n, round % 2, INFINITY, NULL);
            if (c.impossible) break;
            assert_true(c.constant >= before);
            assert_true(c.constant <= (double)brute(&x.p));
            if (round == 1) assert_int_equal(hd_core_reduce(&c), 0);
            if (!c.impossible) hd_core_drop_infinite(&c);
            if (!c.impossible) assert_same_total(&c, &x, seed);
        }
        assert_true(!c.impossible || brute(&x.p) >= HD_NEVER);
        hd_core_close(&c);
    }
}

/* With next to no time or branches the bound stays one. */
static void test_gap(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 200; seed++) {
        random_problem x;
        hd_factor_answer a;
        hd_error err = {0};
        make(&x, seed, seed % 2);
        assert_int_equal(hd_factor_solve(&x.p, &(hd_factor_options){.table = 5, .nodes = 1, .seconds = 1e-9}, &a, &err), 0);
        int64_t best = brute(&x.p);
        assert_true(a.bound <= best);
        assert_true(!a.feasible || a.cost >= best);
        hd_factor_answer_free(&a);
    }
}

static void test_memory(void **state)
{
    (void)state;
    for (int limited = 0; limited < 2; limited++)
        for (uint64_t nth = 1;; nth++) {
            random_problem x;
            hd_factor_answer a;
            hd_error err = {0};
            make(&x, 5 + (uint64_t)limited, limited);
            uint64_t failed = hd_mem_failed();
            hd_mem_fail_at(nth);
            int rc = hd_factor_solve(&x.p, &(hd_factor_options){.table = 6}, &a, &err);
            hd_mem_fail_at(0);
            assert_true(rc == 0 || rc == HD_ENOMEM);
            hd_factor_answer_free(&a);
            if (hd_mem_failed() == failed) break;
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_least), cmocka_unit_test(test_totals), cmocka_unit_test(test_gap), cmocka_unit_test(test_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
