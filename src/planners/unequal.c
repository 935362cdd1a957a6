#include "planners/unequal.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "planners/stages.h"

enum { MOST_BLOCKS = 48, SIZES = 8, MOST_STAGES = HD_MAX_MESHES };

/* What blocks take on each number of ranks. */
typedef struct sizes { hd_blocks of[SIZES]; int n; } sizes;

static int measure(const hd_planner_job *job, int64_t micro_batches, sizes *s, hd_error *err)
{
    int ranks = hd_planner_ranks(job), rc = 0;
    int64_t batch = job->network.samples / micro_batches;
    for (int d = 1; d < ranks && s->n < SIZES && !rc; d *= 2) {
        hd_block_key key = {.dp = d, .cp = 1, .tp = 1, .slices = 1, .world = ranks, .micro_batches = micro_batches};
        if (batch % d) break;
        rc = hd_blocks_make(job, &key, &s->of[s->n], err);
        if (!rc && !s->of[s->n].n) break;
        s->n++;
    }
    return rc;
}

/* Stages that may follow one that keeps so much of each micro-batch; -1: it doesn't fit alone. */
static int followers(const hd_planner_job *job, const hd_block_cost *sum)
{
    int64_t room = hd_planner_capacity(job, hd_planner_ranks(job)) - sum->params - sum->optimizer - sum->gradients - sum->held - sum->rest
                   - (job->cluster->device.cores ? 0 : HD_SIM_WORKSPACE);
    if (room < sum->saved) return -1;
    return sum->saved ? (int)(room / sum->saved < 1000 ? room / sum->saved - 1 : 1000) : 1000;
}

static void add(hd_block_cost *sum, const hd_block_cost *b)
{
    sum->forward += b->forward > b->beside_forward ? b->forward : b->beside_forward;
    sum->backward += b->backward > b->beside_backward ? b->backward : b->beside_backward;
    sum->once += b->once + 0.3 * b->beside_last;
    sum->params += b->params, sum->optimizer += b->optimizer, sum->gradients += b->gradients, sum->held += b->held, sum->saved += b->saved;
    sum->rest = b->rest > sum->rest ? b->rest : sum->rest;
}

/* Blocks first .. last on so many ranks, for all of them. What is done once a step is shared out among the micro-batches. */
static int list_options(const hd_planner_job *job, const sizes *s, int64_t micro_batches, hd_stage_profile *out, hd_error *err)
{
    int n = s->of[0].n;
    out->options = hd_malloc((size_t)s->n * (size_t)n * (size_t)(n + 1) / 2 * sizeof *out->options);
    if (!out->options) return hd_fail_memory(err, 0, "stages of different meshes");
    out->first = 0, out->last = n - 1;
    for (int first = 0; first < n; first++) /* hd_stages_solve wants them in this order */
        for (int k = 0; k < s->n; k++) {
            hd_block_cost sum = {0};
            for (int last = first; last < n; last++) {
                add(&sum, &s->of[k].list[hd_block_class(&s->of[k], last)]);
                hd_stage_option *o = &out->options[out->n++];
                *o = (hd_stage_option){.first = first, .last = last, .devices = 1 << k, .cost = sum.forward + sum.backward + sum.once / (double)micro_batches,
                                       .max_succeeding = followers(job, &sum)};
                snprintf(o->config, sizeof o->config, "dp=%d", 1 << k);
            }
        }
    return 0;
}

static void write_form(const hd_planner_job *job, const sizes *s, const hd_stage_profile *profile, const hd_stage_plan *plan, char (*cuts)[64], hd_parallel *out)
{
    *out = hd_parallel_default();
    out->pp = plan->n;
    out->has_schedule = true, out->schedule = HD_SCHEDULE_1F1B;
    for (int i = 0; i < plan->n; i++) {
        const hd_stage_option *o = &profile->options[plan->option[i]];
        hd_parallel_part *last = out->n_parts ? &out->part[out->n_parts - 1] : NULL;
        if (last && last->dp == o->devices) last->pp++;
        else out->part[out->n_parts++] = (hd_parallel_part){.pp = 1, .dp = o->devices, .tp = 1, .cp = 1};
        if (job->network.layers) out->layers[out->n_layers++] = o->last - o->first + 1;
        else if (i) memcpy(cuts[i - 1], s->of[0].cuts[o->first - 1], sizeof *cuts);
    }
    if (!job->network.layers) out->cuts = (const char (*)[64])cuts, out->n_cuts = plan->n - 1;
}

static int solve(const hd_planner_job *job, const sizes *s, int64_t micro_batches, char (*cuts)[64], hd_parallel *out, int *stages, hd_error *err)
{
    hd_stage_profile profile = {0};
    hd_stage_plan plan = {0};
    hd_error local = {0};
    int rc = list_options(job, s, micro_batches, &profile, err);
    if (!rc && !hd_stages_solve(&profile, hd_planner_ranks(job), micro_batches, &plan, &local) && plan.n > 1 && plan.n <= MOST_STAGES) {
        write_form(job, s, &profile, &plan, cuts, out);
        if (out->n_parts > 1) *stages = plan.n;
    }
    hd_stage_plan_free(&plan);
    hd_stage_profile_free(&profile);
    return rc;
}

int hd_unequal_stages(const hd_planner_job *job, int64_t micro_batches, char (*cuts)[64], hd_parallel *out, int *stages, hd_error *err)
{
    sizes s = {0};
    int rc = 0;
    *stages = 0;
    if (!job->network.whole_batch || micro_batches > 1) rc = measure(job, micro_batches, &s, err);
    bool cut = s.n > 1 && s.of[0].n > 1 && s.of[0].n <= MOST_BLOCKS && (job->network.layers || s.of[0].cuts);
    for (int k = 1; k < s.n; k++) cut &= s.of[k].n == s.of[0].n;
    if (!rc && cut) rc = solve(job, &s, micro_batches, cuts, out, stages, err);
    for (int k = 0; k < s.n; k++) hd_blocks_free(&s.of[k]);
    return rc;
}
