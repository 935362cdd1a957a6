/* network.c: how long transfers take: latency-bandwidth by algorithm and level.
 *
 * Units: bytes, seconds, bytes a second. A group of n ranks; k[l]: how many of them lie in one unit of level l, a unit being what a group
 * of that level is made of (level 0: a device, so k[0] = 1), and k[levels] = n. At level l the group's members go together in fan[l] =
 * k[l+1] / k[l] units.
 *
 * Bandwidth. A unit leaves over its ports, which its devices share evenly. With u devices in a unit, of which `active` take part in
 * transfers of this kind (all of them, in alike groups, or as many as the job has), and p ports, each device has
 *     rate[l] = bandwidth * efficiency * min(max(1, p / u), p / active),
 * and a group of k[l] members in the unit k[l] times that: NCCL lays as many rings as there are NICs. Networks between nodes lie on top of
 * each other: what leaves a rack has left the node before, so a level above the nodes is at most as fast as those between; links inside a
 * node are others than its ports.
 *
 * Time for B bytes (of the larger side), a[l] being the latency; sums go over levels with fan > 1 (Thakur, Rabenseifner and Gropp 2005;
 * Patarasuk and Yuan 2009):
 *     ring          (n-1)/n (sum of a over its n edges + B max 1 / (k rate))   all-gather, reduce-scatter; all-reduce is one of each
 *     hierarchical  sum (fan-1) a + (fan-1)/fan (B / k) / rate          a ring at each level, the outer ones over the inner ones' cuts
 *     halving       sum log2(fan) a + (fan-1)/fan (B / k) / rate        recursive halving and doubling, where fan is a power of two
 *     tree          sum 2 log2(fan) a + 2 B max 1 / (k rate)            all-reduce only: NCCL's double binary trees, pipelined
 * The quickest counts. NCCL gathers and scatters by rings alone, so on GPUs (cores = 0) there is no choice but for all-reduce, ring or
 * tree. Broadcast: a pipelined chain or tree, sum log2(fan) a + B max 1 / (k rate). All-to-all: each pair's piece by itself; levels work
 * side by side, each with what leaves over it. */
#include <math.h>
#include <string.h>

#include "cluster/cost.h"

/* How a group lies in the cluster. */
typedef struct group_shape {
    int levels, n;
    double k[HD_MAX_LEVELS + 1];
    double units[HD_MAX_LEVELS + 1]; /* of level l that hold members */
    double fan[HD_MAX_LEVELS], rate[HD_MAX_LEVELS], latency[HD_MAX_LEVELS];
} group_shape;

/* ---- where a group lies ---- */

static bool seen_before(const int *ranks, int i, int unit)
{
    for (int j = 0; j < i; j++)
        if (ranks[j] / unit == ranks[i] / unit) return true;
    return false;
}

/* How many units of so many devices hold members. Groups of a mesh come in ascending order, so that a unit's members are neighbours. */
static int count_units(const int *ranks, int n, int unit)
{
    int units = n > 0;
    bool ascending = true;
    for (int i = 1; i < n && ascending; i++) ascending = ranks[i] > ranks[i - 1];
    for (int i = 1; i < n; i++) units += ascending ? ranks[i] / unit != ranks[i - 1] / unit : !seen_before(ranks, i, unit);
    return units;
}

static double port_share(const hd_level *l, double unit, double active)
{
    double ports = l->ports;
    return l->bandwidth * l->efficiency * fmin(fmax(1, ports / unit), ports / fmax(active, 1));
}

/* active[l]: devices of a unit of level l that send at the same time. */
static void set_rates(const hd_cluster *c, const double *active, group_shape *g)
{
    double unit = 1, network = INFINITY;
    for (int l = 0; l < c->n_levels; unit *= c->level[l].fanout, l++) {
        g->latency[l] = c->level[l].latency;
        g->rate[l] = port_share(&c->level[l], unit, active[l]);
        if (l <= c->node_level) continue;
        network = fmin(network, g->rate[l]);
        g->rate[l] = network;
    }
}

static void shape_of(const hd_cluster *c, const int *ranks, int n, int world, group_shape *g)
{
    double active[HD_MAX_LEVELS];
    int unit = 1;
    *g = (group_shape){.levels = c->n_levels, .n = n};
    for (int l = 0; l < c->n_levels; unit *= c->level[l].fanout, l++) {
        g->units[l] = l ? count_units(ranks, n, unit) : n;
        active[l] = fmin(unit, world);
    }
    g->units[c->n_levels] = 1;
    for (int l = 0; l <= c->n_levels; l++) g->k[l] = n / g->units[l];
    for (int l = 0; l < c->n_levels; l++) g->fan[l] = g->k[l + 1] / g->k[l];
    set_rates(c, active, g);
}

/* ---- algorithms ---- */

typedef struct algorithm {
    double (*seconds)(const group_shape *g, double bytes); /* of a reduce-scatter or an all-gather */
    bool by_level; /* cuts level by level: each sends what the inner ones have left; not on GPUs. Else one ring through all */
} algorithm;

/* 1 / bandwidth of the narrowest level that the group goes over. */
static double slowest(const group_shape *g)
{
    double most = 0;
    for (int l = 0; l < g->levels; l++)
        if (g->fan[l] > 1) most = fmax(most, 1 / (g->k[l] * g->rate[l]));
    return most;
}

/* How many of a ring's n edges go between units of level l within one group of it. The outermost level that is crossed has the closing
 * ones. */
static double ring_edges(const group_shape *g, int l)
{
    double above = g->units[l + 1] > 1 ? g->units[l + 1] : 0;
    return g->fan[l] > 1 ? g->units[l] - above : 0;
}

/* A piece goes all the way round but for one edge. */
static double ring(const group_shape *g, double bytes)
{
    double latency = 0;
    for (int l = 0; l < g->levels; l++) latency += ring_edges(g, l) * g->latency[l];
    return (g->n - 1.0) / g->n * (latency + bytes * slowest(g));
}

static double hierarchical(const group_shape *g, double bytes)
{
    double sum = 0;
    for (int l = 0; l < g->levels; l++)
        if (g->fan[l] > 1) sum += (ceil(g->fan[l]) - 1) * g->latency[l] + (g->fan[l] - 1) / g->fan[l] * bytes / g->k[l] / g->rate[l];
    return sum;
}

static double halving(const group_shape *g, double bytes)
{
    double sum = 0;
    for (int l = 0; l < g->levels; l++) {
        double rounds = log2(g->fan[l]);
        if (!(g->fan[l] > 1)) continue;
        if (rounds != rint(rounds)) return INFINITY;
        sum += rounds * g->latency[l] + (g->fan[l] - 1) / g->fan[l] * bytes / g->k[l] / g->rate[l];
    }
    return sum;
}

static const algorithm algorithms[] = {{ring, false}, {hierarchical, true}, {halving, true}};
enum { N_ALGORITHMS = sizeof algorithms / sizeof *algorithms };

static double tree_latency(const group_shape *g)
{
    double sum = 0;
    for (int l = 0; l < g->levels; l++)
        if (g->fan[l] > 1) sum += ceil(log2(g->fan[l])) * g->latency[l];
    return sum;
}

static double tree(const group_shape *g, double bytes) { return 2 * tree_latency(g) + 2 * bytes * slowest(g); }

/* ---- bytes by level, the mean of the group's ranks ---- */

static void count_by_level(const group_shape *g, double bytes, double *out)
{
    for (int l = 0; l < g->levels; l++)
        if (g->fan[l] > 1) out[l] += (g->fan[l] - 1) / g->fan[l] * bytes / g->k[l];
}

static void count_ring(const group_shape *g, double bytes, double *out)
{
    double each = (g->n - 1.0) / g->n * bytes;
    for (int l = 0; l < g->levels; l++) out[l] += each * ring_edges(g, l) / g->n;
}

/* ---- the moves ---- */

static void scatter_or_gather(const hd_cluster *c, const group_shape *g, double bytes, double times, hd_move_cost *out)
{
    const algorithm *best = NULL;
    for (int i = 0; i < N_ALGORITHMS; i++) {
        if (algorithms[i].by_level && !c->device.cores) continue;
        double t = times * algorithms[i].seconds(g, bytes);
        if (!best || t < out->seconds) best = &algorithms[i], out->seconds = t;
    }
    (best->by_level ? count_by_level : count_ring)(g, times * bytes, out->bytes);
}

static void all_reduce(const hd_cluster *c, const group_shape *g, double bytes, hd_move_cost *out)
{
    scatter_or_gather(c, g, bytes, 2, out);
    double t = tree(g, bytes);
    if (!(t < out->seconds)) return;
    *out = (hd_move_cost){.seconds = t};
    count_by_level(g, 2 * bytes, out->bytes);
}

static void gather(const hd_cluster *c, const group_shape *g, double bytes, hd_move_cost *out) { scatter_or_gather(c, g, bytes, 1, out); }

static void all_to_all(const hd_cluster *c, const group_shape *g, double bytes, hd_move_cost *out)
{
    for (int l = 0; l < c->n_levels; l++) {
        double others = g->k[l + 1] - g->k[l], leaving = others / g->n * bytes;
        out->bytes[l] = leaving;
        out->seconds = fmax(out->seconds, leaving / g->rate[l] + others * g->latency[l]);
    }
}

static void broadcast(const hd_cluster *c, const group_shape *g, double bytes, hd_move_cost *out)
{
    (void)c;
    out->seconds = tree_latency(g) + bytes * slowest(g);
    count_ring(g, bytes, out->bytes);
}

/* ---- one rank to another ---- */

static int64_t gcd(int64_t a, int64_t b) { return b ? gcd(b, a % b) : a; }

/* A send is between stages of a pipeline, whose ranks are neighbours, at equal places in both: all of a stage send at once. The stage has
 * as many ranks as divide both the job and the way. Counted are those that leave the sender's unit. */
static double senders(int from, int to, int unit, int world)
{
    int stage = (int)gcd(world, to > from ? to - from : from - to), count = 0;
    int first = from / stage * stage, begin = from / unit * unit;
    for (int r = first > begin ? first : begin; r < first + stage && r < begin + unit; r++) count += (r + to - from) / unit != r / unit;
    return count;
}

static void send(const hd_cluster *c, int from, int to, int world, double bytes, hd_move_cost *out)
{
    double active[HD_MAX_LEVELS];
    group_shape g = {0};
    int level = hd_cluster_level(c, from, to), unit = 1;
    if (level < 0) return;
    for (int l = 0; l < c->n_levels; unit *= c->level[l].fanout, l++) active[l] = senders(from, to, unit, world);
    set_rates(c, active, &g);
    out->seconds = g.latency[level] + bytes / g.rate[level];
    out->bytes[level] = bytes;
}

/* ---- measured ---- */

typedef struct move { const char *name; void (*cost)(const hd_cluster *c, const group_shape *g, double bytes, hd_move_cost *out); } move;

static const move moves[HD_MOVE_KINDS] = { /* without a function: of two ranks */
    [HD_MOVE_ALL_REDUCE] = {"all_reduce", all_reduce}, [HD_MOVE_ALL_GATHER] = {"all_gather", gather},
    [HD_MOVE_REDUCE_SCATTER] = {"reduce_scatter", gather}, [HD_MOVE_ALL_TO_ALL] = {"all_to_all", all_to_all},
    [HD_MOVE_BROADCAST] = {"broadcast", broadcast}, [HD_MOVE_SEND] = {"send", NULL},
};

/* Entries of collectives: threads are ranks, x[0] bytes of the larger side. The nearest below and above; between them in log-log, below
 * the least its time, above the greatest in proportion. 0: not measured. */
static double measured(const hd_cluster *c, const char *name, hd_dtype dtype, int n, double bytes)
{
    const hd_profile_entry *below = NULL, *above = NULL;
    for (int i = 0; i < c->n_profile; i++) {
        const hd_profile_entry *e = &c->profile[i];
        if (e->threads != n || e->dtype != dtype || strcmp(e->op, name)) continue;
        if (e->x[0] <= bytes && (!below || e->x[0] > below->x[0])) below = e;
        if (e->x[0] >= bytes && (!above || e->x[0] < above->x[0])) above = e;
    }
    if (!below) return above ? above->seconds : 0;
    if (!above) return below->seconds * bytes / below->x[0];
    if (above->x[0] <= below->x[0]) return below->seconds;
    double t = log(bytes / below->x[0]) / log(above->x[0] / below->x[0]);
    return below->seconds * pow(above->seconds / below->seconds, t);
}

void hd_cost_move(const hd_cluster *c, hd_move kind, const int *ranks, int n, int world, int64_t bytes, hd_dtype dtype, hd_move_cost *out)
{
    group_shape g;
    *out = (hd_move_cost){0};
    if (n < 2 || bytes <= 0) return;
    shape_of(c, ranks, n, world, &g);
    if (moves[kind].cost) moves[kind].cost(c, &g, (double)bytes, out);
    else send(c, ranks[0], ranks[1], world, (double)bytes, out);
    double known = measured(c, moves[kind].name, dtype, n, (double)bytes);
    if (known > 0) out->seconds = known;
    for (int l = 0; l < c->n_levels; l++)
        if (out->bytes[l] > 0) {
            out->contention = fmax(out->contention, c->level[l].contention);
            out->drag = fmax(out->drag, c->level[l].drag);
        }
}
