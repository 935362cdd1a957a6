#include "cluster/curve.h"

#include <math.h>
#include <string.h>

#include "kernels/attrs.h"
#include "kernels/einsum.h"

/* x / (x + half): 1/2 at half, 1 far beyond it. */
static double saturate(double x, double half) { return x > 0 ? x / (x + half) : 0; }

double hd_curve_product(const hd_efficiency *e, const hd_product_shape *s)
{
    double flops = 2 * s->batch * s->m * s->n * s->k, side = fmin(s->m, s->n);
    return e->product * saturate(flops, e->product_half) * saturate(s->k, e->depth_half) * saturate(side, e->depth_half);
}

static hd_tensor shape_only(const hd_type *t)
{
    hd_tensor x = {.dtype = t->dtype, .rank = t->shape.rank};
    memcpy(x.dim, t->shape.dim, sizeof x.dim);
    return x;
}

static bool contract_shape(const hd_sig *sig, hd_product_shape *out)
{
    const hd_contract_attrs *at = sig->attrs;
    hd_tensor a = shape_only(&sig->in[0]), b = shape_only(&sig->in[1]);
    int64_t extent[HD_EINSUM_LABELS];
    double group[HD_EINSUM_GROUPS] = {1, 1, 1, 1};
    hd_einsum e;
    if (hd_einsum_parse(&e, at->spec, NULL) || hd_einsum_extents(&e, &a, &b, extent, NULL)) return false;
    for (int i = 0; i < e.count; i++) group[hd_einsum_group(&e, i)] *= (double)extent[i];
    *out = (hd_product_shape){group[HD_EINSUM_BATCH], group[HD_EINSUM_M], group[HD_EINSUM_N], group[HD_EINSUM_K]};
    return true;
}

/* One product for each head and sequence: a block of queries against what keys each of them can see. The two (gradient: five) products of
 * a pair are alike but for which side the head's features stand on: the summed one, or the shorter of the result. */
static bool attention_shape(const hd_sig *sig, int q, hd_product_shape *out)
{
    const hd_attention_attrs *p = sig->attrs;
    double queries = (double)sig->in[q].shape.dim[0], keys = (double)sig->in[q + 1].shape.dim[0], heads = (double)sig->in[q].shape.dim[1];
    double seen = p->max_keys > 0 ? fmin((double)p->max_keys, keys) : keys;
    double rows = fmin(queries, p->block > 0 ? (double)p->block : seen);
    *out = (hd_product_shape){heads * fmax(queries / fmax(rows, 1), 1), rows, seen, (double)sig->in[q].shape.dim[2]};
    return true;
}

/* One product for each head and sequence: its queries against the keys that they see on average. */
static bool paged_shape(const hd_sig *sig, hd_product_shape *out)
{
    hd_cost c;
    sig->op->cost(sig, &c);
    const int64_t *q = sig->in[0].shape.dim;
    double queries = (double)q[0], heads = (double)q[1], features = (double)(q[2] + sig->out[0].shape.dim[2]), sequences = (double)sig->in[5].shape.dim[0];
    if (!(queries > 0 && heads > 0 && features > 0 && sequences > 0)) return false;
    *out = (hd_product_shape){heads * fmin(queries, sequences), fmax(queries / sequences, 1), c.flops / (2 * queries * heads * features), (double)q[2]};
    return true;
}

/* A convolution as the product that it is computed by: the result's elements, each a sum over what its FLOPs say. */
static bool conv_shape(const hd_sig *sig, int channels, hd_product_shape *out)
{
    hd_cost c;
    sig->op->cost(sig, &c);
    double elements = (double)hd_shape_count(&sig->out[0].shape), m = (double)sig->out[0].shape.dim[channels];
    if (!(elements > 0 && m > 0)) return false;
    *out = (hd_product_shape){1, m, elements / m, c.flops / (2 * elements)};
    return true;
}

bool hd_curve_shape(const hd_sig *sig, hd_product_shape *out)
{
    const char *name = sig->op->name;
    if (!strcmp(name, "contract")) return contract_shape(sig, out);
    if (!strcmp(name, "attention")) return attention_shape(sig, 0, out);
    if (!strcmp(name, "paged_attention")) return paged_shape(sig, out);
    if (!strcmp(name, "attention_grad")) return attention_shape(sig, 1, out);
    if (!strcmp(name, "conv2d") || !strcmp(name, "conv2d_grad_x")) return conv_shape(sig, 1, out);
    if (!strcmp(name, "conv2d_grad_w")) return conv_shape(sig, 0, out);
    return false;
}
