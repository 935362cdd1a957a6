/* searched.h: layouts from the exact search in place of a form's own, for checks that compare plans: "searched:dp=2,tp=2", or "least:..." in as little memory
 * as there are layouts for. On a cluster made up so that small networks are worth dividing: slow devices, quick links. */
#ifndef CHECK_SEARCHED_H
#define CHECK_SEARCHED_H

#include <string.h>

#include "plan/parallel.h"
#include "planners/layouts.h"

/* The form behind the mark; *least: of the second kind. NULL: there is no mark. */
static inline const char *searched_form(const char *text, bool *least)
{
    *least = !strncmp(text, "least:", 6);
    return *least ? text + 6 : !strncmp(text, "searched:", 9) ? text + 9 : NULL;
}

static inline hd_cluster searched_cluster(int ranks)
{
    hd_cluster c = {.name = "made up", .n_levels = 1};
    c.device = (hd_device){.flops = {[HD_F64] = 1e9, [HD_F32] = 1e9}, .bandwidth = 2e9, .memory = (int64_t)1 << 34, .launch = 1e-8, .efficiency = {.product = 1, .memory = 1}};
    c.level[0] = (hd_level){.name = "link", .fanout = ranks, .latency = 1e-8, .bandwidth = 1e9, .efficiency = 1, .ports = 1};
    return c;
}

static inline void searched_axis(hd_mesh *m, const char *name, int64_t size, hd_axis_role role)
{
    if (size == 1) return;
    hd_mesh_axis *x = &m->axis[m->n++];
    *x = (hd_mesh_axis){.size = (int)size, .role = role};
    strcpy(x->name, name);
}

/* Pins for p, over whose dp and tp g is laid; into pins[HD_MAX_PINS], which p then borrows. Not searched to the end: a good answer is as good a test. */
static inline int searched_pins(const hd_graph *g, hd_parallel *p, int64_t micro_batches, bool least, hd_pin *pins, hd_error *err)
{
    hd_cluster c = searched_cluster((int)hd_parallel_ranks(p));
    hd_layout_problem q = {.graph = g, .cluster = &c, .threads = 1, .micro_batches = micro_batches, .memory = least ? 1 : -1, .search = {.table = 1 << 18, .nodes = 60}};
    hd_layout_answer a;
    searched_axis(&q.mesh, "dp", p->dp, HD_AXIS_DATA);
    searched_axis(&q.mesh, "tp", p->tp, HD_AXIS_MODEL);
    int rc = hd_layouts_solve(&q, &a, err);
    if (!rc && !a.feasible && least) {
        q.memory = a.memory;
        hd_layout_answer_free(&a);
        rc = hd_layouts_solve(&q, &a, err);
    }
    if (!rc) rc = hd_layout_pins(&q, &a, false, pins, HD_MAX_PINS, &p->n_pins, err);
    p->pins = pins;
    hd_layout_answer_free(&a);
    return rc;
}

#endif
