#include "planners/estimate.h"

#include <math.h>
#include <string.h>

/* Of a stage. */
typedef struct stage_cost {
    double forward, backward; /* a micro-batch */
    double last, once;
    int64_t fixed, saved, rest, sent, once_sent;
    double beside_forward, beside_backward;
    double time, transfer;     /* of a micro-batch, both ways; to the next stage and back, of one slice */
} stage_cost;

typedef struct work {
    const hd_planner_job *job;
    const hd_form *f;
    hd_estimate *out;
    const hd_blocks *blocks; /* how many there are, and of which class */
    hd_block_cost kept[HD_BLOCK_CLASSES], again[HD_BLOCK_CLASSES]; /* by class */
    bool choose;             /* layers to be made again are to be found */
    stage_cost stages[HD_MAX_CUTS + 1];
} work;

static const hd_block_cost *block_at(const work *w, int i) { return &w->kept[hd_block_class(w->blocks, i)]; }
static double time_of(const hd_block_cost *b) { return b->forward + b->backward; }

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
static void add_blocks(stage_cost *s, const hd_block_cost *b, double flight, int n)
{
    s->forward += n * b->forward, s->backward += n * b->backward;
    s->beside_forward += n * b->beside_forward, s->beside_backward += n * b->beside_backward;
    s->last += n * b->beside_last, s->once += n * b->once;
    s->fixed += n * (b->params + b->optimizer + b->gradients + b->held);
    s->saved += (int64_t)(flight * (double)b->saved) * n;
    s->rest = b->rest > s->rest ? b->rest : s->rest;
    s->once_sent += n * b->once_sent;
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
    stage_cost *x = &w->stages[s];
    double flight = in_flight(f, s);
    *x = (stage_cost){0};
    for (int c = s; c < f->pp * f->chunks; c += f->pp) {
        int begin = first_of_chunk(w, c), end = begin + w->out->layers[c];
        for (int i = begin, same; i < end; i += same) {
            for (same = 1; i + same < end && hd_block_class(w->blocks, i + same) == hd_block_class(w->blocks, i);) same++;
            add_blocks(x, block_at(w, i), flight, same);
        }
    }
}

static int64_t peak_of(const hd_planner_job *job, const stage_cost *s)
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

/* From each stage to the next, there and back. */
static void find_transfers(work *w)
{
    const hd_form *f = w->f;
    int stage = f->dp * f->cp * f->tp;
    for (int s = 0; s + 1 < f->pp; s++) {
        stage_cost *x = &w->stages[s];
        hd_move_cost cost;
        bool same = s && x->sent == x[-1].sent && hd_cluster_level(w->job->cluster, s * stage, (s + 1) * stage) == hd_cluster_level(w->job->cluster, (s - 1) * stage, s * stage);
        if (!same) hd_cost_move(w->job->cluster, HD_MOVE_SEND, (int[]){s * stage, (s + 1) * stage}, 2, hd_form_ranks(f), x->sent, HD_F32, &cost);
        x->transfer = same ? x[-1].transfer : 2 * cost.seconds / f->slices;
    }
}

/* Seconds between two micro-batches in the steady state. Each of neighbouring stages a .. b waits for the others' results in turn, and over such a round
 * b - a + 1 micro-batches go by: the slowest round counts. */
static double cycle_seconds(const work *w)
{
    const hd_form *f = w->f;
    double most = 0;
    for (int a = 0; a < f->pp; a++) {
        double sum = 0;
        for (int b = a; b < f->pp; b++) {
            sum += w->stages[b].time + (b > a ? f->chunks * f->slices * w->stages[b - 1].transfer : 0);
            most = fmax(most, sum / (b - a + 1));
        }
    }
    return most;
}

/* What goes between the first and the last stage once a step: a tied embedding and its gradient. */
static double tied_seconds(const work *w)
{
    const hd_form *f = w->f;
    int64_t bytes = 0;
    hd_move_cost cost;
    for (int s = 0; s < f->pp; s++) bytes += w->stages[s].once_sent;
    if (f->pp == 1 || !bytes) return 0;
    hd_cost_move(w->job->cluster, HD_MOVE_SEND, (int[]){0, (f->pp - 1) * f->dp * f->cp * f->tp}, 2, hd_form_ranks(f), bytes, HD_F32, &cost);
    return cost.seconds;
}

/* Chunks of different lengths hold up each other's turns: of what they would if every turn took the longest one's time a third was seen. */
static double uneven_chunks(const work *w)
{
    const hd_form *f = w->f;
    int most = 0, all = 0;
    if (f->chunks == 1) return 1;
    for (int c = 0; c < f->pp * f->chunks; c++) {
        most = w->out->layers[c] > most ? w->out->layers[c] : most;
        all += w->out->layers[c];
    }
    return 1 + 0.35 * ((double)most * f->pp * f->chunks / all - 1);
}

static double step_seconds(work *w)
{
    const hd_form *f = w->f;
    double most = 0, sum = 0, last = 0, once = 0, bubble = 0, bubbles = 0, way = 0;
    find_transfers(w);
    for (int s = 0; s < f->pp; s++) {
        stage_cost *x = &w->stages[s];
        double forward = fmax(x->forward, x->beside_forward), backward = fmax(x->backward, x->beside_backward);
        x->time = forward + backward;
        most = fmax(most, x->time);
        sum += x->time;
        way += x->transfer;
        last = fmax(last, fmax(x->last - 0.7 * backward, 0.05 * x->last));
        once = fmax(once, x->once);
        bubbles += fmax(0, backward - 0.9 * forward), bubble = fmax(bubble, fmax(0, backward - 0.9 * forward));
    }
    double fill = (sum - most) / (f->chunks * f->slices);
    if (f->schedule == HD_SCHEDULE_ZERO_BUBBLE && f->pp > 1) fill = bubbles - bubble;
    return ((double)f->micro_batches - 1) * cycle_seconds(w) * uneven_chunks(w) + most + fill + way + last + once + tied_seconds(w);
}

/* A single stage was simulated with fewer layers: each further one takes what the last of those did. */
static void estimate_single(work *w, const hd_estimate_blocks *b, int64_t capacity)
{
    const hd_single *kept = b->kept->single, *again = w->choose ? b->again->single : kept;
    int more = w->blocks->n - kept->layers, first = 0;
    double layer = kept->step[1] - kept->step[0], made = again->step[1] - again->step[0];
    int64_t bytes = kept->peak[1] - kept->peak[0], less = bytes - (again->peak[1] - again->peak[0]);
    w->out->peak = kept->peak[1] + more * bytes;
    w->out->step = kept->step[1] + more * layer;
    if (!w->choose) return;
    while (w->out->peak > capacity && less > 0 && first < w->blocks->n) first++, w->out->peak -= less, w->out->step += made - layer;
    w->out->first[0] = first;
    if (!first || first == w->blocks->n || w->out->peak > capacity) w->out->step = INFINITY;
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
    if (f->pp == 1 && b->kept->single) {
        estimate_single(&w, b, capacity);
        return;
    }
    place_layers(&w);
    bool possible = sum_stages(&w, capacity);
    for (int s = 0; s < f->pp; s++) out->peak = peak_of(job, &w.stages[s]) > out->peak ? peak_of(job, &w.stages[s]) : out->peak;
    if (possible) out->step = step_seconds(&w);
}
