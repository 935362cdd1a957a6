#include "planners/own_layouts.h"

#include <stdio.h>
#include <string.h>

#include "planners/layouts.h"

enum { FEW_LAYERS = 3, BRANCHES = 8 /* seconds near a tight limit, mostly proven before */, TABLE = 1 << 18 };

static void add_axis(hd_mesh *m, const char *name, int size, hd_axis_role role)
{
    if (size == 1) return;
    hd_mesh_axis *x = &m->axis[m->n++];
    *x = (hd_mesh_axis){.size = size, .role = role};
    snprintf(x->name, sizeof x->name, "%s", name);
}

int hd_own_layouts(const hd_planner_job *job, const hd_form *f, int64_t memory, hd_pin *pins, int *n, hd_error *err)
{
    const hd_planner_network *net = &job->network;
    const hd_cluster *c = job->cluster;
    int ranks = hd_form_ranks(f), node = hd_cluster_group(c, c->node_level), here = ranks < node ? ranks : node, few = net->layers < FEW_LAYERS ? (int)net->layers : FEW_LAYERS;
    hd_layout_problem p = {.cluster = c, .world = ranks, .threads = c->device.cores ? c->device.cores / here : 1, .teams = c->device.cores ? here : 1,
                           .micro_batches = f->micro_batches, .keep_gathered = f->hold == HD_HOLD_STEP, .memory = memory, .overlap = HD_LAYOUT_OVERLAP,
                           .search = {.table = TABLE, .nodes = BRANCHES}};
    hd_layout_answer a = {0};
    hd_error local = {0};
    *n = 0;
    if (p.threads < 1) p.threads = 1;
    add_axis(&p.mesh, "dp", f->dp, HD_AXIS_DATA);
    add_axis(&p.mesh, "tp", f->tp, HD_AXIS_MODEL);
    if (!p.mesh.n || f->cp > 1 || (f->tp > net->kv_heads && net->kv_heads > 1)) return 0;
    hd_graph *g = net->graph(net->context, f->micro_batches, few, &local);
    if (!g) return local.code == HD_ENOMEM ? hd_fail(err, local.code, "%s", local.message) : 0;
    if (few && memory > 0) p.memory = memory / net->layers * few;
    p.graph = g;
    int rc = hd_layouts_solve(&p, &a, &local);
    if (!rc && a.feasible) rc = hd_layout_pins(&p, &a, few > 0, pins, HD_MESH_PINS, n, &local);
    if (rc) *n = 0;
    hd_layout_answer_free(&a);
    hd_graph_free(g);
    return rc == HD_ENOMEM ? hd_fail(err, rc, "%s", local.message) : 0;
}
