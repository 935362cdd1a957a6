/* curve.c: what kernels reach of a device's peaks where nothing was measured.
 *
 *     seconds = launch + max(flops / (rate * e), bytes / (bandwidth * memory))
 *     e = product * h(flops, product_half) * h(k, depth_half) * h(min(m, n), depth_half)      h(x, half) = x / (x + half)
 *
 * product, product_half (FLOP), depth_half (elements) and memory are the device's hd_efficiency. flops are those of one product of a batch times the
 * batch: a batched product fills the device as one product of all its work does. Attention reaches what a product of its heads' size does:
 * its summed dimension is a head's features, and they are few. */
#include "cluster/curve.h"

#include <math.h>

static double half_reached(double x, double half)
{
    return x > 0 ? x / (x + half) : 1;
}

double hd_curve_rate(const hd_device *d, hd_dtype dtype, int threads, int teams)
{
    double peak = d->flops[dtype] > 0 ? d->flops[dtype] : d->flops[HD_F32];
    if (d->cores <= 0) return peak;
    double wanted = (double)threads * teams; /* of the node's cores */
    double share = fmin(threads, d->cores) / d->cores;
    return peak * (wanted > d->cores ? fmin(share, 1.0 / teams) : share);
}

double hd_curve_bandwidth(const hd_device *d, int threads, int teams)
{
    if (d->cores <= 0) return d->bandwidth;
    return d->bandwidth * fmin(1, (double)threads * teams / d->cores) / teams;
}

double hd_curve_seconds(const hd_device *d, const hd_work *w, int threads, int teams)
{
    const hd_efficiency *e = &d->efficiency;
    double memory = w->bytes / (hd_curve_bandwidth(d, threads, teams) * e->memory);
    if (w->kind != HD_COST_PRODUCT || !(w->flops > 0)) return d->launch + memory;
    double reached = e->product * half_reached(w->flops, e->product_half) * half_reached(w->k, e->depth_half) * half_reached(fmin(w->m, w->n), e->depth_half);
    return d->launch + fmax(memory, w->flops / (hd_curve_rate(d, w->dtype, threads, teams) * reached));
}
