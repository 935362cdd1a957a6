/* search.c: the joint search. */
#include "planners/planner.h"

static int find(const hd_planner_job *job, hd_planner_answer *out, hd_error *err)
{
    (void)job;
    *out = (hd_planner_answer){0};
    return hd_fail(err, HD_EUNSUPPORTED, "not yet");
}

const hd_planner hd_planner_search = {"search", "everything together", find};
const hd_planner hd_planner_exhaustive = {"exhaustive", "everything, each simulated", find};
