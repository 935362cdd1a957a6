/* zero.c: ZeRO (Rajbhandari et al. 2020) and FSDP (Zhao et al. 2023) as people use them: all devices are data parallel; the stage is the lowest that fits or any
 * above it, micro-batches are as large as fit, and layers are computed again only where nothing fits without. */
#include "planners/rival.h"

static const hd_recompute policies[] = {HD_RECOMPUTE_NONE, HD_RECOMPUTE_SELECTIVE, HD_RECOMPUTE_FULL};

typedef struct zero_best { bool found; double step; hd_parallel form; } zero_best;

static int try_form(hd_rival *r, const hd_parallel *form, zero_best *best, bool *fits, hd_error *err)
{
    hd_rival_tried t;
    int64_t micro;
    int rc = hd_rival_try_largest(r, form, &t, &micro, err);
    if (fits) *fits = t.fits;
    if (!rc && t.fits && (!best->found || t.step < best->step)) *best = (zero_best){true, t.step, *form};
    return rc;
}

/* One stage, with as little computed again as it takes. */
static int try_stage(hd_rival *r, int stage, zero_best *best, hd_error *err)
{
    int n = r->job->network.recomputes ? 3 : 1, rc = 0;
    bool fits = false;
    for (int i = 0; i < n && !rc && !fits; i++) {
        hd_parallel form = hd_parallel_default();
        form.zero = stage;
        form.recompute = policies[i];
        rc = try_form(r, &form, best, &fits, err);
    }
    return rc;
}

/* FSDP's reshard_after_forward=False, and DeepSpeed's hooks, which gather once more in backward. */
static int try_gathering(hd_rival *r, zero_best *best, hd_error *err)
{
    hd_parallel form = best->form;
    if (!best->found || form.zero != 3) return 0;
    form.keep = 1;
    int rc = try_form(r, &form, best, NULL, err);
    form.keep = 0, form.regather = 1;
    return rc ? rc : try_form(r, &form, best, NULL, err);
}

/* Computing again makes room for larger micro-batches. */
static int try_policies(hd_rival *r, zero_best *best, hd_error *err)
{
    hd_parallel form = best->form;
    int rc = 0;
    for (int i = 0; i < 3 && best->found && r->job->network.recomputes && !rc; i++) {
        form.recompute = policies[i];
        rc = try_form(r, &form, best, NULL, err);
    }
    return rc;
}

static int find(const hd_planner_job *job, hd_planner_answer *out, hd_error *err)
{
    hd_rival r;
    zero_best best = {0}, sharded = {0};
    if (job->n_pins) return hd_rival_decline(out, "zero knows nothing of layouts of named parameters");
    int rc = hd_rival_begin(&r, job, out, err);
    for (int stage = 0; stage < 3 && !rc; stage++) rc = try_stage(&r, stage, &best, err);
    if (!rc) rc = try_stage(&r, 3, &sharded, err);
    if (!rc) rc = try_gathering(&r, &sharded, err);
    if (sharded.found && (!best.found || sharded.step < best.step)) best = sharded;
    if (!rc) rc = try_policies(&r, &best, err);
    hd_rival_end(&r, "zero");
    return rc;
}

const hd_planner hd_planner_zero = {"zero", "data parallel over all devices, states in pieces: the ZeRO stage that is quickest of those that fit", find};
