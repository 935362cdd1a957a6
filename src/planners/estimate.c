#include "planners/estimate.h"

#include <math.h>
#include <string.h>

/* Of a stage. */
typedef struct stage {
    double forward, backward; /* a micro-batch */
    double last, once;
    int64_t fixed, saved, rest, sent;
    double beside_forward, beside_backward;
} stage;

typedef struct work {
    const hd_planner_job *job;
    const hd_form *f;
    hd_estimate *out;
    const hd_blocks *blocks; /* how many there are, and of which class */
    hd_block kept[HD_BLOCK_CLASSES], again[HD_BLOCK_CLASSES]; /* by class */
    bool choose;             /* layers to be made again are to be found */
    stage stages[HD_MAX_CUTS + 1];
} work;

static const hd_block *block_at(const work *w, int i) { return &w->kept[hd_block_class(w->blocks, i)]; }
static double time_of(const hd_block *b) { return b->forward + b->backward; }

/* ---- layers to chunks ---- */

/* One each, then each further one to the stage, and chunk of it, that has least to do: the first and last blocks weigh what they weigh. */
static void deal_layers(work *w)
{
    const hd_form *f = w->f;
    int chunks = f->pp * f->chunks, n = w->blocks->n;
    double time[HD_MAX_CUTS + 1] = {0}, each = time_of(block_at(w, n > 2 ? 1 : 0));
    int *layers = w->out->layers;
    for (int c = 0; c < chunks; c++) layers[c] = 1, time[c % f->pp] += each;
    time[0] += time_of(block_at(w, 0)) - each;
    time[f->pp - 1] += time_of(block_at(w, n - 1)) - each;
    for (int left = n - chunks; left > 0; left--) {
        int s = 0, best = 0;
        for (int i = 1; i < f->pp; i++)
            if (time[i] < time[s] - 1e-12 * time[s]) s = i;
        best = s;
        for (int c = s; c < chunks; c += f->pp)
            if (layers[c] < layers[best]) best = c;
        layers[best]++;
        time[s] += each;
    }
}

/* Blocks that differ: chunks with as equal a time as can be, by filling up to a growing share. One chunk a stage. */
static void cut_blocks(work *w)
{
    int chunks = w->f->pp * w->f->chunks, c = 0, n = w->blocks->n;
    double total = 0, before = 0;
    for (int i = 0; i < chunks; i++) w->out->layers[i] = 0;
    for (int i = 0; i < n; i++) total += time_of(block_at(w, i));
    for (int i = 0; i < n; i++) {
        double own = time_of(block_at(w, i));
        bool must = n - i <= chunks - 1 - c;
        if (c < chunks - 1 && w->out->layers[c] && (must || before + own / 2 > total * (c + 1) / chunks)) c++;
        w->out->layers[c]++;
        before += own;
    }
}

static void place_layers(work *w)
{
    const hd_parallel *p = &w->job->pinned;
    int chunks = w->f->pp * w->f->chunks;
    bool given = p->given >> HD_KEY_LAYERS & 1 && p->n_layers == chunks;
    if (given) for (int c = 0; c < chunks; c++) w->out->layers[c] = (int)p->layers[c];
    else if (w->job->network.layers) deal_layers(w);
    else cut_blocks(w);
}

/* ---- stages ---- */

/* Micro-batches (of a chunk) that stage s keeps at once. */
static double in_flight(const hd_form *f, int s)
{
    double m = (double)f->micro_batches, p = f->pp, v = f->chunks;
    if (f->pp == 1) return 1;
    if (f->schedule == HD_SCHEDULE_GPIPE) return m;
    if (f->schedule == HD_SCHEDULE_INTERLEAVED) return fmin(m * v, 2 * (p - s - 1) + (v - 1) * p + 1) / v;
    return fmin(m, p - s);
}

/* So many of such a block; negative: taken away again, but for what the stage needs while calls run. */
static void add_blocks(stage *s, const hd_block *b, double flight, int n)
{
    s->forward += n * b->forward, s->backward += n * b->backward;
    s->beside_forward += n * b->beside_forward, s->beside_backward += n * b->beside_backward;
    s->last += n * b->beside_last, s->once += n * b->once;
    s->fixed += n * (b->params + b->optimizer + b->gradients + b->held);
    s->saved += (int64_t)(flight * (double)b->saved) * n;
    s->rest = b->rest > s->rest ? b->rest : s->rest;
    if (n > 0) s->sent = b->sent;
}

static int first_of_chunk(const work *w, int chunk)
{
    int first = 0;
    for (int c = 0; c < chunk; c++) first += w->out->layers[c];
    return first;
}

static void sum_stage(work *w, int s)
{
    const hd_form *f = w->f;
    stage *x = &w->stages[s];
    double flight = in_flight(f, s);
    *x = (stage){0};
    for (int c = s; c < f->pp * f->chunks; c += f->pp) {
        int begin = first_of_chunk(w, c), end = begin + w->out->layers[c];
        for (int i = begin, same; i < end; i += same) {
            for (same = 1; i + same < end && hd_block_class(w->blocks, i + same) == hd_block_class(w->blocks, i);) same++;
            add_blocks(x, block_at(w, i), flight, same);
        }
    }
}

static int64_t peak_of(const hd_planner_job *job, const stage *s)
{
    return s->fixed + s->saved + s->rest + (job->cluster->device.cores ? 0 : HD_SIM_WORKSPACE);
}

/* Adds layers to be made again, over the stage's chunks in turn, until it fits; false: not even all of them are enough. */
static bool fit_stage(work *w, int s, int64_t capacity)
{
    const hd_form *f = w->f;
    int *first = w->out->first;
    double flight = in_flight(f, s);
    while (peak_of(w->job, &w->stages[s]) > capacity) {
        int found = -1;
        for (int c = s; c < f->pp * f->chunks; c += f->pp)
            if (first[c] < w->out->layers[c] && (found < 0 || first[c] < first[found])) found = c;
        if (found < 0) return false;
        int class = hd_block_class(w->blocks, first_of_chunk(w, found) + first[found]++);
        add_blocks(&w->stages[s], &w->kept[class], flight, -1);
        add_blocks(&w->stages[s], &w->again[class], flight, 1);
    }
    return true;
}

static bool sum_stages(work *w, int64_t capacity)
{
    int chunks = w->f->pp * w->f->chunks, again = 0, all = 0;
    for (int c = 0; c < chunks; c++) w->out->first[c] = 0;
    for (int s = 0; s < w->f->pp; s++) {
        sum_stage(w, s);
        if (w->choose && !fit_stage(w, s, capacity)) return false;
    }
    for (int c = 0; c < chunks; c++) again += w->out->first[c], all += w->out->layers[c];
    return !w->choose || (again > 0 && again < all);
}

/* ---- the step ---- */

static double transfer_seconds(const work *w)
{
    const hd_form *f = w->f;
    hd_move_cost cost;
    int64_t most = 0;
    if (f->pp == 1) return 0;
    for (int s = 0; s + 1 < f->pp; s++) most = w->stages[s].sent > most ? w->stages[s].sent : most;
    if (f->scatter) most /= f->tp;
    hd_cost_move(w->job->cluster, HD_MOVE_SEND, (int[]){0, f->dp * f->cp * f->tp}, 2, hd_form_ranks(f), most, HD_F32, &cost);
    return cost.seconds;
}

/* Ranks that are threads of one machine, or processes with one wire, do a transfer while they wait for it; others' go beside. */
static double step_seconds(work *w)
{
    const hd_form *f = w->f;
    double m = (double)f->micro_batches, c = transfer_seconds(w), own = w->job->cluster->device.cores ? 2 * c * f->chunks : 0, most = 0, sum = 0, last = 0, once = 0, bubble = 0;
    for (int s = 0; s < f->pp; s++) {
        const stage *x = &w->stages[s];
        double forward = fmax(x->forward, x->beside_forward), backward = fmax(x->backward, x->beside_backward), t = forward + backward + own;
        most = fmax(most, t);
        sum += t;
        last = fmax(last, fmax(x->last - 0.7 * backward, 0.05 * x->last));
        once = fmax(once, x->once);
        bubble = fmax(bubble, fmax(0, forward + backward - 1.9 * forward));
    }
    double fill = (sum - most) / (f->chunks * f->slices);
    if (f->schedule == HD_SCHEDULE_ZERO_BUBBLE && f->pp > 1) fill = (f->pp - 1) * bubble;
    return m * most + fill + 2 * (f->pp - 1) * c / f->slices + last + once;
}

static void take_blocks(work *w, const hd_estimate_blocks *b)
{
    w->blocks = b->kept;
    for (int i = 0; i < b->kept->classes; i++) {
        w->kept[i] = b->spread ? hd_block_spread(&b->kept->list[i], b->spread) : b->kept->list[i];
        if (w->choose) w->again[i] = b->spread ? hd_block_spread(&b->again->list[i], b->spread) : b->again->list[i];
    }
}

void hd_estimate_form(const hd_planner_job *job, const hd_form *f, const hd_estimate_blocks *b, int64_t capacity, hd_estimate *out)
{
    work w;
    w = (work){.job = job, .f = f, .out = out, .choose = f->recompute == HD_RECOMPUTE_FIRST && b->again};
    out->step = INFINITY;
    out->peak = 0;
    if (!b->kept || b->kept->n < f->pp * f->chunks || !b->kept->n || (w.choose && b->again->n != b->kept->n)) return;
    take_blocks(&w, b);
    place_layers(&w);
    bool possible = sum_stages(&w, capacity);
    for (int s = 0; s < f->pp; s++) out->peak = peak_of(job, &w.stages[s]) > out->peak ? peak_of(job, &w.stages[s]) : out->peak;
    if (possible) out->step = step_seconds(&w);
}
