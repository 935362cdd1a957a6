/* megatron.c: Megatron-LM's published rules (Narayanan et al. 2021, sections 3 and 5; Korthikanti et al. 2022).
 *
 *   Takeaway #1: tensor parallelism up to the devices of a node, pipeline stages across nodes from there on.
 *   Takeaway #2: as few ranks t x p for one copy of the model as hold it; data parallelism for all others.
 *   Takeaway #3: the micro-batch that is best for these, by trying them (formula 1 of section 3.4 leaves out communication).
 * Stages have equal numbers of layers (so p divides them), 1F1B or, where layers divide further, interleaved; with scatter/gather between stages
 * (section 4.1). Layers are computed again whole, or (Korthikanti et al. 2022) only in part with sequence parallelism, or kept. */
#include <string.h>

#include "planners/rival.h"

enum { MOST_CHUNKS = 6, MOST_PLACES = 256 };

typedef struct megatron_place { int64_t tp, pp; } megatron_place;

typedef struct megatron_policy { hd_recompute recompute; bool sp; } megatron_policy;
/* From what needs least memory on. */
static const megatron_policy policies[] = {
    {HD_RECOMPUTE_FULL, true}, {HD_RECOMPUTE_FULL, false}, {HD_RECOMPUTE_SELECTIVE, true}, {HD_RECOMPUTE_NONE, true}, {HD_RECOMPUTE_NONE, false},
};
enum { POLICIES = sizeof policies / sizeof *policies, SELECTIVE = 2 };

typedef struct megatron_best { bool found; double step; int64_t micro_batches; megatron_policy policy; } megatron_best;

static hd_parallel form_of(const hd_rival *r, const megatron_place *at, const megatron_policy *policy, int64_t chunks)
{
    hd_parallel f = hd_parallel_default();
    int64_t parts = at->pp * chunks, layers = r->job->network.layers;
    f.tp = at->tp;
    f.pp = at->pp;
    f.dp = r->ranks / (at->tp * at->pp);
    f.chunks = chunks;
    f.sp = policy->sp && at->tp > 1;
    f.recompute = policy->recompute;
    f.scatter = at->tp > 1 && at->pp > 1 && !f.sp;
    for (int64_t i = 0; i < parts && parts > 1; i++) f.layers[f.n_layers++] = layers / parts;
    return f;
}

/* ---- where ---- */

static bool is_place(const hd_rival *r, int64_t tp, int64_t pp)
{
    const hd_planner_network *n = &r->job->network;
    int64_t ranks = tp * pp;
    if (r->ranks % ranks || n->layers % pp || pp > HD_MAX_CUTS || n->heads % tp || (tp > n->kv_heads && tp % n->kv_heads)) return false;
    return n->samples % (r->ranks / ranks) == 0;
}

/* In the order of t x p; wide ones first among equals, as takeaway #1 says. */
static int list_places(const hd_rival *r, megatron_place *out)
{
    const hd_cluster *c = r->job->cluster;
    const hd_parallel *pinned = &r->job->pinned;
    int node = hd_cluster_group(c, c->node_level), n = 0;
    bool tp_given = pinned->given >> HD_KEY_TP & 1, pp_given = pinned->given >> HD_KEY_PP & 1;
    for (int64_t tp = 1; tp <= r->ranks; tp++) {
        bool wide = tp * 2 > node || tp * 2 > r->ranks || r->job->network.heads % (tp * 2);
        if (tp_given ? tp != pinned->tp : tp > node || tp & (tp - 1)) continue;
        for (int64_t pp = 1; tp * pp <= r->ranks && (pp == 1 || wide || tp_given || pp_given); pp++)
            if ((!pp_given || pp == pinned->pp) && is_place(r, tp, pp) && n < MOST_PLACES) out[n++] = (megatron_place){tp, pp};
    }
    return n;
}

/* Whether it fits with the smallest micro-batch. */
static int check_place(hd_rival *r, const megatron_place *at, const megatron_policy *policy, bool *fits, hd_error *err)
{
    hd_parallel f = form_of(r, at, policy, 1);
    hd_rival_tried t;
    int64_t list[HD_RIVAL_DIVISORS];
    int n = hd_rival_micro_batches(r, hd_rival_settle(r, &f).dp, list), rc = n ? hd_rival_try(r, &f, list[n - 1], &t, err) : 0;
    *fits = n && !rc && t.fits;
    return rc;
}

/* ---- how ---- */

static int try_one(hd_rival *r, const hd_parallel *f, int64_t micro, const megatron_policy *policy, megatron_best *best, bool *better, hd_error *err)
{
    hd_rival_tried t;
    int rc = hd_rival_try(r, f, micro, &t, err);
    *better = !rc && t.fits && (!best->found || t.step < best->step);
    if (*better) *best = (megatron_best){true, t.step, micro, *policy};
    return rc;
}

/* Micro-batches of 1, 2, 4, ... sequences a rank, for as long as they get quicker. */
static int try_micro_batches(hd_rival *r, const megatron_place *at, const megatron_policy *policy, megatron_best *best, hd_error *err)
{
    hd_parallel f = form_of(r, at, policy, 1);
    int64_t list[HD_RIVAL_DIVISORS];
    megatron_best own = {0};
    int n = hd_rival_micro_batches(r, hd_rival_settle(r, &f).dp, list), rc = 0;
    bool better = true;
    for (int i = n - 1; i >= 0 && better && !rc; i--)
        if (i == n - 1 || (list[n - 1] / list[i] & (list[n - 1] / list[i] - 1)) == 0) rc = try_one(r, &f, list[i], policy, &own, &better, err);
    if (own.found && (!best->found || own.step < best->step)) *best = own;
    return rc;
}

/* Virtual stages, with the micro-batches that were best without and half of them. */
static int try_chunks(hd_rival *r, const megatron_place *at, megatron_best *best, hd_error *err)
{
    int64_t each = r->job->network.layers / at->pp, micro = best->micro_batches;
    megatron_policy policy = best->policy;
    bool better;
    int rc = 0;
    for (int64_t v = 2; v <= MOST_CHUNKS && v <= each && at->pp > 1 && best->found && !rc; v++) {
        if (each % v || v * at->pp > HD_MAX_CUTS) continue;
        hd_parallel f = form_of(r, at, &policy, v);
        for (int64_t m = micro; m <= micro * 2 && !rc; m *= 2)
            if (m % at->pp == 0 && r->job->network.samples % (m * f.dp) == 0) rc = try_one(r, &f, m, &policy, best, &better, err);
    }
    return rc;
}

static int try_place(hd_rival *r, const megatron_place *at, hd_error *err)
{
    megatron_best best = {0};
    int rc = 0;
    for (int i = 0; i < POLICIES && !rc; i++)
        if (at->tp > 1 || !policies[i].sp || policies[i].recompute == HD_RECOMPUTE_SELECTIVE) rc = try_micro_batches(r, at, &policies[i], &best, err);
    return rc ? rc : try_chunks(r, at, &best, err);
}

/* The least t x p that holds the model with everything computed again, and the least that does with no more than parts of layers. */
static int find_places(hd_rival *r, hd_error *err)
{
    megatron_place place[MOST_PLACES];
    int n = list_places(r, place), rc = 0;
    bool full = false, selective = false;
    for (int i = 0; i < n && !rc && !selective; i++) {
        bool fits = true;
        if (!full) rc = check_place(r, &place[i], &policies[0], &fits, err);
        if (rc || !fits) continue;
        rc = check_place(r, &place[i], &policies[SELECTIVE], &selective, err);
        if (!rc && (!full || selective)) rc = try_place(r, &place[i], err);
        full = true;
    }
    return rc;
}

static int find(const hd_planner_job *job, hd_planner_answer *out, hd_error *err)
{
    hd_rival r;
    if (!job->network.layers) return hd_rival_decline(out, "megatron's rules are for Transformer language models: this is another network");
    if (job->n_pins) return hd_rival_decline(out, "megatron's rules know nothing of layouts of named parameters");
    int rc = hd_rival_begin(&r, job, out, err);
    if (!rc) rc = find_places(&r, err);
    hd_rival_end(&r, "megatron");
    return rc;
}

const hd_planner hd_planner_megatron = {
    "megatron", "Megatron-LM's published rules: tensor parallel in a node, pipeline across nodes, data parallel for the rest", find,
};
