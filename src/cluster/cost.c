/* cost.c: what kernels and copies take: measured entries of the same op first, the curves of curve.c elsewhere.
 *
 * An entry is used as a factor on a base that follows from its features alone,
 *     base = flops / rate + bytes / bandwidth          (of the rank's share of the machine; both from x)
 * so that what is between the measured shapes is interpolated in the logarithm of that factor: locally linear in the logarithms of the features (moving least
 * squares), never beyond what the nearest entries show. Features:
 *     contract            rows, columns, depth, batch; its op is "contract.nt", where n and t say that the first and second operand
 *                         have the summed dimension innermost (n, t) or not (t, n), as BLAS calls them; p: it lies packed. Where the second lies in
 *                         blocks of a GGUF file, "contract.Q4_K": the blocks' type
 *     attention           queries, keys that a query sees, features of a head, heads
 *     paged_attention     queries, FLOPs of each, bytes (key heads may be fewer than heads, and of another type)
 *     all other           bytes, FLOPs for each byte, extent of operand 0's last dimension (1 for ops that go element by element) */
#include "cluster/cost.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cluster/curve.h"
#include "kernels/einsum.h"
#include "tensor/quant.h"

/* ---- what an op does ---- */

static bool is_named(const hd_sig *s, const char *name) { return !strcmp(s->op->name, name); }

static bool is_attention(const hd_sig *s) { return !strncmp(s->op->name, "attention", 9); }

static bool reads_blocks(const hd_sig *s) { return is_named(s, "contract") && s->in[1].blocks; }

/* Whether the summed dimension is innermost in each operand of a contraction. */
static void read_form(const hd_sig *s, bool inner[2])
{
    const hd_contract_attrs *at = s->attrs;
    hd_einsum e;
    inner[0] = inner[1] = false;
    if (hd_einsum_parse(&e, at->spec, NULL)) return;
    for (int i = 0; i < e.count; i++)
        for (int o = 0; o < 2; o++)
            if (hd_einsum_group(&e, i) == HD_EINSUM_K && e.label[i].dim[o] == e.rank[o] - 1) inner[o] = true;
}

/* What a kernel does. */
typedef struct work {
    hd_cost_kind kind;
    hd_dtype dtype;
    double flops, bytes;
    hd_product_shape shape; /* PRODUCT */
} work;

hd_dtype hd_cost_dtype(const hd_sig *sig)
{
    const hd_type *best = NULL;
    for (int i = 0; i < sig->n_in; i++) {
        const hd_type *t = &sig->in[i];
        if (!t->absent && hd_dtype_is_float(t->dtype) && (!best || t->shape.rank > best->shape.rank)) best = t;
    }
    return best ? best->dtype : HD_F32;
}

static work work_of(const hd_sig *sig)
{
    hd_cost cost = {0};
    work w = {.kind = HD_COST_MEMORY, .dtype = hd_cost_dtype(sig)};
    if (sig->op->cost) sig->op->cost(sig, &cost);
    else cost.bytes = hd_cost_bytes(sig);
    w.flops = cost.flops;
    w.bytes = cost.bytes;
    if (hd_curve_shape(sig, &w.shape)) w.kind = HD_COST_PRODUCT;
    return w;
}

/* ---- the machine's bounds ---- */

/* FLOP/s of one rank: of a CPU, its threads' share of the cores that all ranks have. */
static double rate_of(const hd_device *d, hd_dtype dtype, int threads, int teams)
{
    double peak = d->flops[dtype] > 0 ? d->flops[dtype] : d->flops[HD_F32];
    if (d->cores <= 0) return peak;
    double share = fmin(threads, d->cores) / d->cores;
    return peak * ((double)threads * teams > d->cores ? fmin(share, 1.0 / teams) : share);
}

static double bandwidth_of(const hd_device *d, int threads, int teams)
{
    if (d->cores <= 0) return d->bandwidth;
    return d->bandwidth * fmin(1, (double)threads * teams / d->cores) / teams;
}

static double by_curve(const hd_device *d, const work *w, int threads, int teams)
{
    double memory = w->bytes / (bandwidth_of(d, threads, teams) * d->efficiency.memory);
    double share = w->kind == HD_COST_PRODUCT ? hd_curve_product(&d->efficiency, &w->shape) : 0;
    double seconds = share > 0 ? w->flops / (rate_of(d, w->dtype, threads, teams) * share) : 0;
    return d->launch + fmax(memory, seconds);
}

/* ---- features ---- */

static bool goes_by_element(const hd_op *op)
{
    return op->loops == hd_loops_elementwise || !strcmp(op->name, "fused") || !strcmp(op->name, "adamw") || !strcmp(op->name, "sgd");
}

static double at_least(double x, double least) { return x > least ? x : least; }

int hd_cost_features(const hd_sig *sig, double *x)
{
    work w = work_of(sig);
    for (int i = 0; i < HD_PROFILE_FEATURES; i++) x[i] = 1;
    if (is_named(sig, "contract")) {
        x[0] = at_least(w.shape.m, 1), x[1] = at_least(w.shape.n, 1), x[2] = at_least(w.shape.k, 1), x[3] = at_least(w.shape.batch, 1);
        return 4;
    }
    if (is_attention(sig)) {
        const hd_shape *q = &sig->in[sig->op->is_backward ? 1 : 0].shape; /* [queries, heads, features] */
        double products = sig->op->is_backward ? 5 : 2;
        x[0] = at_least((double)q->dim[0], 1), x[2] = at_least((double)q->dim[2], 1), x[3] = at_least((double)q->dim[1], 1);
        x[1] = at_least(w.flops / (2 * products * x[0] * x[2] * x[3]), 1);
        return 4;
    }
    if (is_named(sig, "paged_attention")) {
        x[0] = at_least((double)sig->in[0].shape.dim[0], 1);
        x[1] = at_least(w.flops / x[0], 1), x[2] = at_least(w.bytes, 1);
        return 3;
    }
    const hd_shape *row = sig->n_in ? &sig->in[0].shape : NULL;
    x[0] = at_least(w.bytes, 1);
    x[1] = at_least(w.flops / x[0], 1.0 / 16);
    if (goes_by_element(sig->op) || !row || row->rank == 0) return 2;
    x[2] = at_least((double)row->dim[row->rank - 1], 1);
    return 3;
}

void hd_cost_key(const hd_sig *sig, uint32_t packed, char *key)
{
    bool inner[2];
    if (!is_named(sig, "contract")) {
        snprintf(key, HD_COST_KEY, "%s", sig->op->name);
        return;
    }
    if (reads_blocks(sig)) {
        snprintf(key, HD_COST_KEY, "contract.%s", sig->in[1].blocks->name);
        return;
    }
    read_form(sig, inner);
    snprintf(key, HD_COST_KEY, "%s.%c%c", sig->op->name, inner[0] ? 'n' : 't', packed & 2 ? 'p' : inner[1] ? 't' : 'n');
}

/* Bytes of an element of a product's second operand; op: its name in the profile. */
static double weight_size(const char *op, hd_dtype dtype)
{
    const hd_quant *q = !strncmp(op, "contract.", 9) ? hd_quant_by_name(op + 9) : NULL;
    return q ? (double)q->bytes / q->block : (double)hd_dtype_size(dtype);
}

/* ---- interpolation ---- */

typedef enum base_kind { BASE_CONTRACT, BASE_ATTENTION, BASE_ATTENTION_GRAD, BASE_PAGED, BASE_OTHER } base_kind;

typedef struct query {
    const hd_cluster *cluster;
    const char *key;
    base_kind kind;
    hd_dtype dtype;
    int threads, teams;
    double in_blocks; /* CONTRACT: bytes of an element of the second operand, where that lies in blocks; else 0 */
    double x[HD_PROFILE_FEATURES];
} query;

/* Seconds at the machine's bounds, from the features alone. */
static double base_seconds(const query *q, const double *x, hd_dtype dtype, int threads, int teams)
{
    const hd_device *d = &q->cluster->device;
    double rate = rate_of(d, dtype, threads, teams), bandwidth = bandwidth_of(d, threads, teams);
    double size = (double)hd_dtype_size(dtype), flops, bytes;
    switch (q->kind) {
    case BASE_CONTRACT:
        flops = 2 * x[0] * x[1] * x[2] * x[3];
        bytes = x[3] * (size * (x[0] * x[2] + x[0] * x[1]) + (q->in_blocks > 0 ? q->in_blocks : size) * x[1] * x[2]);
        break;
    case BASE_ATTENTION: case BASE_ATTENTION_GRAD:
        flops = (q->kind == BASE_ATTENTION ? 4 : 10) * x[0] * x[1] * x[2] * x[3];
        bytes = size * 4 * x[0] * x[2] * x[3];
        break;
    case BASE_PAGED: flops = x[0] * x[1], bytes = x[2]; break;
    default: flops = x[0] * x[1], bytes = x[0];
    }
    return flops / rate + bytes / bandwidth;
}

/* How far an entry's team is from the asked one; a machine that other ranks use too is nearer than a larger team. */
static double team_distance(const query *q, const hd_profile_entry *e)
{
    return 2 * fabs(log2((double)e->threads / q->threads)) + fabs(log2((double)e->teams / q->teams));
}

enum { MOST_NEAR = 24, UNKNOWNS = HD_PROFILE_FEATURES + 1 };

typedef struct near_entry { double distance, factor, step[HD_PROFILE_FEATURES]; } near_entry;
typedef struct near_set { near_entry list[MOST_NEAR]; int n; } near_set;

/* Keeps the nearest, in order. */
static void keep_near(near_set *s, const near_entry *e)
{
    if (s->n == MOST_NEAR && s->list[MOST_NEAR - 1].distance <= e->distance) return;
    int at = s->n < MOST_NEAR ? s->n++ : MOST_NEAR - 1;
    for (; at > 0 && s->list[at - 1].distance > e->distance; at--) s->list[at] = s->list[at - 1];
    s->list[at] = *e;
}

static bool same_kernel(const query *q, const hd_profile_entry *e, hd_dtype dtype)
{
    return e->dtype == dtype && !strcmp(e->op, q->key);
}

static void find_near(const query *q, hd_dtype dtype, near_set *out)
{
    const hd_cluster *c = q->cluster;
    double least = INFINITY;
    out->n = 0;
    for (int i = 0; i < c->n_profile; i++)
        if (same_kernel(q, &c->profile[i], dtype)) least = fmin(least, team_distance(q, &c->profile[i]));
    for (int i = 0; i < c->n_profile; i++) {
        const hd_profile_entry *e = &c->profile[i];
        near_entry near = {0};
        if (!same_kernel(q, e, dtype) || team_distance(q, e) > least + 1e-9) continue;
        for (int k = 0; k < HD_PROFILE_FEATURES; k++) {
            near.step[k] = log2(e->x[k] / q->x[k]);
            near.distance += near.step[k] * near.step[k];
        }
        near.factor = log(e->seconds / base_seconds(q, e->x, dtype, e->threads, e->teams));
        keep_near(out, &near);
    }
}

/* Solves a (n x n, symmetric and positive) times x = b in place, by Gauss without pivoting; b becomes x. */
static void solve(double a[UNKNOWNS][UNKNOWNS], double *b)
{
    for (int i = 0; i < UNKNOWNS; i++)
        for (int k = i + 1; k < UNKNOWNS; k++) {
            double f = a[k][i] / a[i][i];
            for (int j = i; j < UNKNOWNS; j++) a[k][j] -= f * a[i][j];
            b[k] -= f * b[i];
        }
    for (int i = UNKNOWNS - 1; i >= 0; i--) {
        for (int j = i + 1; j < UNKNOWNS; j++) b[i] -= a[i][j] * b[j];
        b[i] /= a[i][i];
    }
}

/* The factor's logarithm at the query: moving least squares, weights 1 / (d^2 + SOFT)^2, slopes held small by RIDGE where the entries don't say them. */
#define SOFT 0.02
#define RIDGE 0.03
enum { BOUNDING = 6 }; /* so many of the nearest say between which values the result lies */

static double fit(const near_set *s)
{
    double a[UNKNOWNS][UNKNOWNS] = {{0}}, b[UNKNOWNS] = {0}, low = INFINITY, high = -INFINITY, total = 0;
    for (int i = 0; i < s->n; i++) {
        const near_entry *e = &s->list[i];
        double w = 1 / ((e->distance + SOFT) * (e->distance + SOFT)), row[UNKNOWNS] = {1};
        memcpy(row + 1, e->step, sizeof e->step);
        for (int r = 0; r < UNKNOWNS; r++) {
            for (int k = 0; k < UNKNOWNS; k++) a[r][k] += w * row[r] * row[k];
            b[r] += w * row[r] * e->factor;
        }
        total += w;
        if (i < BOUNDING) low = fmin(low, e->factor), high = fmax(high, e->factor);
    }
    for (int r = 1; r < UNKNOWNS; r++) a[r][r] += RIDGE * total;
    solve(a, b);
    return fmin(fmax(b[0], low), high);
}

/* Seconds by measured entries, or a negative number where there are none. */
static double measured_seconds(query *q)
{
    near_set near;
    find_near(q, q->dtype, &near);
    if (!near.n && q->dtype != HD_F32) find_near(q, HD_F32, &near);
    if (!near.n) return -1;
    return base_seconds(q, q->x, q->dtype, q->threads, q->teams) * exp(fit(&near));
}

/* ---- other bandwidths ---- */

#define CACHED_BYTES 1.6e7      /* of activations less than this is in some cache, or half of it; weights and the optimizer's state come from memory */
#define CACHED_TRANSFER 2.5e5   /* between ranks: what one has written lies in its own cache */

static bool is_transfer(const char *op)
{
    static const char *const names[] = {"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(op, names[i])) return true;
    return false;
}

/* Seconds of an entry in which memory is what it waits for, while all cores together read so many bytes/s. Products wait for it only where they do little else. */
static double streaming_seconds(const hd_profile_entry *e, double bandwidth)
{
    double size = (double)hd_dtype_size(e->dtype), all = e->teams / bandwidth;
    if (!strncmp(e->op, "attention", 9) || !strcmp(e->op, "paged_attention")) return 0;
    if (!strncmp(e->op, "contract", 8)) {
        double memory = all * e->x[3] * (size * (e->x[0] * e->x[2] + e->x[0] * e->x[1]) + weight_size(e->op, e->dtype) * e->x[1] * e->x[2]);
        return memory > 0.5 * e->seconds ? fmin(memory, e->seconds) : 0;
    }
    bool cold = !strcmp(e->op, "adamw") || !strcmp(e->op, "sgd");
    return cold || e->x[0] >= CACHED_BYTES ? fmin(all * e->x[0], e->seconds) : 0;
}

double hd_cost_at_bandwidth(const hd_cluster *c, const hd_profile_entry *e, double from, double to)
{
    const hd_device *d = &c->device;
    if (is_transfer(e->op)) return e->x[0] >= CACHED_TRANSFER && c->n_levels == 1 ? e->seconds * from / to : e->seconds;
    if (d->cores <= 0 || e->threads * e->teams < d->cores) return e->seconds; /* so few threads get what they can take either way */
    return e->seconds + streaming_seconds(e, from) * (from / to - 1);
}

void hd_cost_set_bandwidth(hd_cluster *c, double bandwidth)
{
    for (int i = 0; i < c->n_profile; i++) c->profile[i].seconds = hd_cost_at_bandwidth(c, &c->profile[i], c->device.bandwidth, bandwidth);
    c->device.bandwidth = bandwidth;
}

/* ---- the cost ---- */

/* On CPUs the first thread computes what is so small by itself (the executor does: a meeting would cost more than the others save). */
#define SOLO_BYTES 32768
#define SOLO_FLOPS 65536

static int threads_used(const hd_cluster *c, const work *w, int threads)
{
    if (c->device.cores <= 0) return 1;
    return w->bytes <= SOLO_BYTES && w->flops <= SOLO_FLOPS ? 1 : threads;
}

/* A product with blocks of a type that wasn't measured: as by packed weights of the first operand's dtype, less the time of the bytes that needn't be read. */
static double as_plain(query *q, const hd_sig *sig, const work *w)
{
    double elements = (double)hd_shape_count(&sig->in[1].shape), bandwidth = bandwidth_of(&q->cluster->device, q->threads, q->teams);
    double saved = elements * (double)hd_dtype_size(q->dtype) - (double)hd_type_bytes(&sig->in[1]);
    q->in_blocks = 0;
    q->key = "contract.np";
    double seconds = measured_seconds(q);
    return seconds < 0 ? seconds : fmax(seconds - saved / bandwidth, w->bytes / bandwidth);
}

static double by_profile(const hd_cluster *c, const hd_sig *sig, uint32_t packed, const work *w, int threads, int teams)
{
    char key[HD_COST_KEY];
    query q = {.cluster = c, .key = key, .dtype = w->dtype, .threads = threads, .teams = teams < 1 ? 1 : teams, .kind = BASE_OTHER};
    hd_cost_key(sig, packed, key);
    hd_cost_features(sig, q.x);
    if (is_named(sig, "contract")) q.kind = BASE_CONTRACT;
    if (reads_blocks(sig)) q.in_blocks = weight_size(key, q.dtype);
    if (is_named(sig, "paged_attention")) q.kind = BASE_PAGED;
    if (is_attention(sig)) q.kind = sig->op->is_backward ? BASE_ATTENTION_GRAD : BASE_ATTENTION;
    double seconds = measured_seconds(&q);
    if (seconds < 0 && goes_by_element(sig->op)) q.key = "fused", seconds = measured_seconds(&q);
    if (seconds < 0 && reads_blocks(sig)) seconds = as_plain(&q, sig, w);
    return seconds;
}

void hd_cost_kernel(const hd_cluster *c, const hd_sig *sig, int threads, int teams, hd_kernel_cost *out)
{
    hd_cost_kernel_packed(c, sig, 0, threads, teams, out);
}

void hd_cost_kernel_packed(const hd_cluster *c, const hd_sig *sig, uint32_t packed, int threads, int teams, hd_kernel_cost *out)
{
    work w = work_of(sig);
    threads = threads_used(c, &w, threads < 1 ? 1 : threads);
    double seconds = c->n_profile ? by_profile(c, sig, packed, &w, threads, teams) : -1;
    if (seconds < 0) seconds = by_curve(&c->device, &w, threads, teams < 1 ? 1 : teams);
    *out = (hd_kernel_cost){.seconds = seconds, .flops = w.flops, .kind = w.kind};
}

double hd_cost_copy(const hd_cluster *c, int64_t bytes, int threads, int teams)
{
    work w = {.kind = HD_COST_MEMORY, .dtype = HD_U8, .bytes = 2 * (double)bytes};
    query q = {.cluster = c, .key = "(copy)", .kind = BASE_OTHER, .dtype = HD_U8, .teams = teams < 1 ? 1 : teams};
    if (bytes <= 0) return 0;
    q.threads = threads_used(c, &w, threads < 1 ? 1 : threads);
    q.x[0] = w.bytes, q.x[1] = 1.0 / 16, q.x[2] = q.x[3] = 1;
    double seconds = c->n_profile ? measured_seconds(&q) : -1;
    return seconds < 0 ? by_curve(&c->device, &w, q.threads, q.teams) : seconds;
}
