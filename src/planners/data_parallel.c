/* data_parallel.c: plain data parallelism: every device has the whole network and a share of the samples (Li et al. 2020, "PyTorch Distributed"). */
#include "planners/rival.h"

/* The largest micro-batch that fits, with and without computing layers again. */
static int find(const hd_planner_job *job, hd_planner_answer *out, hd_error *err)
{
    static const hd_recompute policies[] = {HD_RECOMPUTE_NONE, HD_RECOMPUTE_SELECTIVE, HD_RECOMPUTE_FULL};
    hd_rival r;
    if (job->n_pins) return hd_rival_decline(out, "data-parallel knows nothing of layouts of named parameters");
    int rc = hd_rival_begin(&r, job, out, err);
    for (int i = 0; i < (job->network.recomputes ? 3 : 1) && !rc; i++) {
        hd_parallel form = hd_parallel_default();
        hd_rival_tried t;
        int64_t micro;
        form.recompute = policies[i];
        rc = hd_rival_try_largest(&r, &form, &t, &micro, err);
    }
    hd_rival_end(&r, "data-parallel");
    return rc;
}

const hd_planner hd_planner_data_parallel = {"data-parallel", "the whole network on every device, samples over all of them", find};
