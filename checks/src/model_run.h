/* model_run.h: what checks of language models share: a graph brought to run, and lines of figures. */
#ifndef HD_CHECKS_MODEL_RUN_H
#define HD_CHECKS_MODEL_RUN_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/term.h"
#include "exec/exec.h"
#include "models/lm.h"
#include "models/weights.h"
#include "passes/passes.h"
#include "tensor/safetensors.h"

/* A graph, lowered and bound to a store, on a team of threads. */
typedef struct model_run {
    hd_graph *graph;
    hd_program *program;
    hd_store *store;
    hd_backend backend;
    hd_team *team;
    hd_exec *exec;
} model_run;

/* Takes g over, which may be NULL with err set. The store is filled with initial values. */
static inline int model_run_open(model_run *r, hd_graph *g, const char *backend, int threads, int64_t micro_batches, hd_error *err)
{
    *r = (model_run){ .graph = g };
    if (!g) return err->code;
    hd_plan plan = hd_plan_default();
    plan.threads = threads;
    plan.micro_batches = micro_batches;
    snprintf(plan.backend, sizeof plan.backend, "%s", backend);
    int rc = hd_pass_fuse_elementwise(g);
    if (rc) return hd_fail(err, rc, "%s", g->err.message);
    rc = hd_graph_verify(g, err);
    if (!rc) rc = hd_backend_open(&r->backend, backend, err);
    if (!rc) rc = hd_lower(g, &plan, &r->backend.target, &r->program, err);
    if (rc) return rc;
    r->team = hd_team_new(threads, false, err);
    r->store = r->team ? hd_store_new(g, 1, err) : NULL;
    r->exec = r->store ? hd_exec_new(r->program, r->store, &r->backend, r->team, err) : NULL;
    return r->exec ? HD_OK : err->code;
}

static inline void model_run_close(model_run *r)
{
    hd_exec_free(r->exec);
    hd_store_free(r->store);
    hd_team_free(r->team);
    hd_program_free(r->program);
    hd_graph_free(r->graph);
}

/* Fills an input with n integers or one scalar; an input that the program has not got is left out. */
static inline int model_run_set(model_run *r, const char *name, const double *value, int64_t n, hd_error *err)
{
    hd_tensor t;
    int rc = hd_exec_input(r->exec, name, &t, err);
    if (rc) return rc;
    long long wanted = hd_tensor_count(&t);
    if (wanted != n) return hd_fail(err, HD_EINVAL, "input %s takes %lld elements, not %lld", name, wanted, (long long)n);
    for (int64_t i = 0; i < n; i++) hd_store_f64(t.data, t.dtype, i, value[i]);
    return HD_OK;
}

/* Tensor `name` of a reference file in f64, freed with free(); its elements in *n. NULL and err if there is none. */
static inline double *reference_load(const hd_safetensors *s, const char *name, int64_t *n, hd_error *err)
{
    const hd_weight *w = hd_safetensors_find(s, name);
    if (!w) {
        hd_fail(err, HD_EFORMAT, "the reference has no tensor %s", name);
        return NULL;
    }
    *n = (int64_t)(w->bytes / hd_dtype_size(w->dtype));
    double *x = malloc((size_t)*n * sizeof *x + 1);
    if (x) hd_weight_load(w, 0, *n, x, HD_F64);
    else hd_fail_memory(err, (size_t)*n, name);
    return x;
}

/* One figure with its upper bound. Not a number fails. Returns whether it passed. */
static inline bool figure_at_most(const char *what, double value, double bound)
{
    bool pass = value <= bound;
    printf("  %-64s %-11.3g <= %-9.3g %s\n", what, value, bound, pass ? "PASS" : "FAIL");
    return pass;
}

#endif
