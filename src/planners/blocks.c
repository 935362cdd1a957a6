#include "planners/blocks.h"

#include <string.h>

#include "base/mem.h"

enum { SHORT = 3, PIECES = HD_BLOCK_CLASSES };

hd_block_key hd_block_key_of(const hd_planner_job *job, const hd_form *f, bool exact)
{
    int64_t batch = job->network.samples / f->micro_batches;
    bool whole = exact || batch % f->dp || job->cluster->device.cores; /* CPU ranks: as many at once as there are */
    return (hd_block_key){
        .dp = whole ? f->dp : 1, .cp = f->cp, .tp = f->tp, .slices = exact ? f->slices : 1, .world = hd_form_ranks(f), .micro_batches = f->micro_batches * (whole ? 1 : f->dp),
        .sp = f->sp, .scatter = f->scatter, .tables = f->tables, .recompute = f->recompute, .zero = whole ? f->zero : 0, .hold = whole ? f->hold : 0,
        .single = exact && f->pp == 1};
}

int hd_block_key_compare(const hd_block_key *a, const hd_block_key *b)
{
    const int64_t x[] = {a->micro_batches, a->tp, a->dp, a->cp, a->slices, a->world, a->sp, a->zero, a->hold, a->recompute, a->tables, a->single, a->scatter};
    const int64_t y[] = {b->micro_batches, b->tp, b->dp, b->cp, b->slices, b->world, b->sp, b->zero, b->hold, b->recompute, b->tables, b->single, b->scatter};
    for (size_t i = 0; i < sizeof x / sizeof *x; i++)
        if (x[i] != y[i]) return x[i] < y[i] ? -1 : 1;
    return 0;
}

/* ---- lowering ---- */

/* GPipe keeps every micro-batch's values: it shows which there are. */
static hd_parallel short_form(const hd_planner_job *job, const hd_block_key *k, int stages)
{
    hd_form f = {.pp = stages, .dp = k->dp, .cp = k->cp, .tp = k->tp, .chunks = 1, .slices = k->slices, .micro_batches = k->micro_batches, .sp = k->sp, .scatter = stages > 1 && k->scatter,
                 .zero = k->zero, .hold = k->hold, .recompute = k->recompute, .schedule = HD_SCHEDULE_GPIPE, .tables = k->tables};
    hd_parallel p;
    hd_form_write(job, &f, NULL, NULL, &p);
    p.n_layers = p.n_first = 0;
    if (p.recompute == HD_RECOMPUTE_FIRST) p.recompute = HD_RECOMPUTE_FULL;
    for (int i = 0; job->network.layers && stages > 1 && i < stages; i++) p.layers[p.n_layers++] = 1;
    return p;
}

/* Fewer pieces where the network has fewer nodes. */
static int lower_short(const hd_planner_job *job, const hd_block_key *k, hd_programs *programs, int *stages, hd_error *err)
{
    int64_t layers = job->network.layers;
    int rc = HD_EINVAL;
    for (*stages = layers ? (int)(layers < SHORT ? layers : SHORT) : PIECES; *stages >= 1 && rc == HD_EINVAL; *stages = layers ? 0 : *stages / 2) {
        hd_parallel p = short_form(job, k, *stages);
        rc = job->network.lower(job->network.context, &p, k->micro_batches, layers ? *stages : 0, programs, err);
        if (!rc) return 0;
    }
    return rc;
}

/* Ranks of the short pipeline are more than the job's: their threads are the job's. */
static void set_threads(const hd_planner_job *job, hd_programs *programs, int world)
{
    const hd_cluster *c = job->cluster;
    int node = hd_cluster_group(c, c->node_level), here = world < node ? world : node, threads = c->device.cores ? c->device.cores / here : 1;
    for (int i = 0; i < programs->n; i++) programs->stage[i]->threads = threads > 0 ? threads : 1;
}

/* ---- measuring ---- */

static hd_block_cost block_of(const hd_sim_stage *s)
{
    hd_block_cost b = {.saved = s->saved, .held = s->held, .rest = s->rest};
    const int64_t *role = s->memory.role;
    b.params = role[HD_ROLE_PARAMETER];
    b.optimizer = role[HD_ROLE_OPTIMIZER] + role[HD_ROLE_STATE];
    b.gradients = role[HD_ROLE_GRADIENT];
    for (int i = 0; i < s->n; i++) {
        const hd_sim_segment *x = &s->segment[i];
        b.beside_last += x->beside_last;
        if (x->kind == HD_SEGMENT_PREPARE || x->kind == HD_SEGMENT_UPDATE) b.once += x->seconds + x->beside, b.once_sent += x->sent;
        else if (x->kind == HD_SEGMENT_FORWARD) b.forward += x->seconds, b.beside_forward += x->beside, b.sent += x->sent;
        else b.backward += x->seconds, b.beside_backward += x->beside;
    }
    return b;
}

/* Of a language model the middle stage stands for all layers between. */
static int expand(const hd_planner_job *job, const hd_sim_stage *stages, int n, hd_blocks *out, hd_error *err)
{
    out->list = hd_calloc((size_t)n, sizeof *out->list);
    if (!out->list) return hd_fail_memory(err, 0, "the blocks of a network");
    out->n = job->network.layers ? (int)job->network.layers : n;
    out->classes = n;
    for (int i = 0; i < n; i++) out->list[i] = block_of(&stages[i]);
    return 0;
}

static int copy_cuts(const hd_programs *programs, hd_blocks *out, hd_error *err)
{
    const hd_plan *p = &programs->plan;
    if (p->n_cuts < 1) return 0;
    out->cuts = hd_malloc((size_t)p->n_cuts * sizeof *out->cuts);
    if (!out->cuts) return hd_fail_memory(err, 0, "the blocks of a network");
    memcpy(out->cuts, p->cuts, (size_t)p->n_cuts * sizeof *out->cuts);
    return 0;
}

/* Two simulations of a few layers, or one of a network whose nodes don't repeat. */
static int make_single(const hd_planner_job *job, const hd_block_key *key, hd_blocks *out, hd_error *err)
{
    int layers = (int)job->network.layers, few = layers < SHORT ? layers : SHORT;
    out->single = hd_calloc(1, sizeof *out->single);
    out->list = hd_calloc(1, sizeof *out->list);
    if (!out->single || !out->list) return hd_fail_memory(err, 0, "the blocks of a network");
    out->single->layers = layers ? few : 1;
    out->n = layers ? layers : 1;
    out->classes = 1;
    for (int i = 0; i < 2; i++) {
        hd_parallel p = short_form(job, key, 1);
        hd_programs programs = {0};
        hd_sim_result s = {0};
        hd_error local = {0};
        int use = layers ? few - 1 + i : 0;
        if (!use && !(i && !layers)) continue; /* a single layer, or a network: once */
        int rc = job->network.lower(job->network.context, &p, key->micro_batches, use, &programs, &local);
        if (!rc) rc = hd_simulate((const hd_program *const *)programs.stage, programs.n, job->cluster, NULL, &s, &local);
        out->single->step[i] = s.step;
        for (int r = 0; r < s.n_ranks; r++) out->single->peak[i] = s.rank[r].peak > out->single->peak[i] ? s.rank[r].peak : out->single->peak[i];
        hd_sim_result_free(&s);
        hd_programs_free(&programs);
        if (rc == HD_ENOMEM) return hd_fail_memory(err, 0, "the blocks of a network");
        if (rc) out->n = 0;
    }
    return 0;
}

int hd_blocks_make(const hd_planner_job *job, const hd_block_key *key, hd_blocks *out, hd_error *err)
{
    hd_programs programs = {0};
    hd_sim_stage stage[PIECES];
    int n = 0;
    *out = (hd_blocks){.key = *key};
    if (key->single) return make_single(job, key, out, err);
    int rc = lower_short(job, key, &programs, &n, err);
    if (rc) {
        hd_programs_free(&programs);
        return rc == HD_ENOMEM ? rc : 0;
    }
    set_threads(job, &programs, key->world);
    rc = hd_sim_stages((const hd_program *const *)programs.stage, programs.n, job->cluster, key->world, stage, err);
    if (!rc) {
        rc = expand(job, stage, n, out, err);
        if (!rc && !job->network.layers) rc = copy_cuts(&programs, out, err);
        hd_sim_stages_free(stage, n);
    }
    hd_programs_free(&programs);
    return rc;
}

void hd_blocks_free(hd_blocks *b)
{
    hd_free(b->list);
    hd_free(b->single);
    hd_free(b->cuts);
    *b = (hd_blocks){0};
}

/* ---- data parallelism ---- */

static double seconds_a_byte(const hd_planner_job *job, const hd_form *f, hd_move kind, int *ranks, int n, int64_t bytes)
{
    hd_move_cost cost;
    hd_cost_move(job->cluster, kind, ranks, n, hd_form_ranks(f), bytes, HD_F32, &cost);
    return cost.seconds / (double)bytes;
}

void hd_spread_make(const hd_planner_job *job, const hd_form *f, hd_spread *out)
{
    int64_t bucket = job->pinned.dp && job->pinned.bucket ? job->pinned.bucket : HD_PLAN_BUCKET;
    int n = f->dp * f->cp, *ranks = n > 1 ? hd_malloc((size_t)n * sizeof *ranks) : NULL;
    *out = (hd_spread){.group = n, .zero = f->zero, .hold = f->hold};
    if (!ranks) return;
    for (int i = 0; i < n; i++) ranks[i] = i * f->tp;
    out->all_reduce = seconds_a_byte(job, f, HD_MOVE_ALL_REDUCE, ranks, n, bucket);
    out->reduce_scatter = seconds_a_byte(job, f, HD_MOVE_REDUCE_SCATTER, ranks, n, bucket);
    out->all_gather = seconds_a_byte(job, f, HD_MOVE_ALL_GATHER, ranks, n, 8 * bucket); /* whole parameters */
    hd_free(ranks);
}

/* Parameters are gathered in the type of products, if a copy of them is held in it. */
hd_block_cost hd_block_spread(const hd_block_cost *b, const hd_spread *s)
{
    hd_block_cost x = *b;
    if (s->group == 1) return x;
    double gradients = (double)(b->gradients > b->params ? b->gradients : b->params), wire = (double)(b->held ? b->params / 2 : b->params);
    int n = s->group;
    if (s->zero) x.once *= 0.75 / n + 0.25; /* casts of parameters stay: about a quarter */
    x.beside_last = s->zero ? 0 : s->all_reduce * gradients;
    if (s->zero == 1) x.beside_last = s->reduce_scatter * gradients;
    if (s->zero == 1 || s->zero == 2) x.once += s->all_gather * (double)b->params;
    if (s->zero >= 2) x.beside_backward += s->reduce_scatter * gradients;
    if (s->zero == 3 && s->hold == HD_HOLD_STEP) x.once += s->all_gather * wire;
    if (s->zero == 3 && s->hold != HD_HOLD_STEP) x.beside_forward += s->all_gather * wire, x.beside_backward += s->all_gather * wire * (s->hold == HD_HOLD_BRIEFLY ? 2 : 1);
    if (s->zero) x.optimizer /= n;
    if (s->zero >= 2) x.gradients /= n;
    if (s->zero == 3) {
        x.params /= n;
        if (s->hold != HD_HOLD_STEP) x.rest += x.held, x.held /= n;
        else x.held = b->held ? b->held : b->params;
    }
    return x;
}
