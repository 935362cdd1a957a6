/* ops_harness.h: what test_ops.c stands on: random instances of ops, tensors with guards, a tiny interpreter of graphs by reference
 * kernels, and slicing operands along loops. Everything lives in an arena that the caller frees. */
#ifndef HD_TESTS_OPS_HARNESS_H
#define HD_TESTS_OPS_HARNESS_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/mem.h"
#include "base/rng.h"
#include "base/str.h"
#include "graph/op.h"

#define GUARD 64 /* bytes before and after each tensor, so that a kernel that writes past it is seen */
#define GUARD_BYTE 0xa5

/* What stops the whole run: a failure of the test itself, not of an op. */
static void must(bool ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "test_ops: %s\n", what);
    exit(1);
}

/* ---- tables of what the test must know of single ops ---- */

/* Results that carry no gradient: statistics for the backward pass, indices. */
static const struct { const char *op; uint32_t results; } no_flow_results[] = {
    {"layer_norm", 1u << 1 | 1u << 2}, {"rms_norm", 1u << 1},  {"batch_norm", 1u << 1 | 1u << 2 | 1u << 3},
    {"cross_entropy", 1u << 1},        {"attention", 1u << 1}, {"top_k", 1u << 1}};

/* Float operands on which results depend, and whose gradient is not made on purpose. */
static const struct { const char *op; uint32_t operands; } no_flow_operands[] = {{"rope", 1u << 2}};

/* Loops whose empty piece cannot be typed: without groups a convolution's channels of one group are in no operand. */
static const struct { const char *op; int loop; } never_empty[] = {{"conv2d", 1}, {"conv2d_grad_x", 1}, {"conv2d_grad_w", 1}};

/* Largest |fast - reference| / (|reference| + 0.05 max|reference|), the reference in f64 and not rounded to the result's dtype; for sums
 * the largest |reference| is that of the terms' magnitudes.
 * f32: some roundings of an f32 computation. bf16: half a unit in the last place (2^-8), and 2 % for the f32 computation before it. */
typedef struct tolerance { const char *op; double f32, mixed /* an f32 result of bf16 operands */, bf16; } tolerance;
static const tolerance default_tolerance = {NULL, 1e-5, 1e-5, 0x1.05p-8};
static const tolerance tolerances[] = {
    {"attention", 2e-5, 5e-2, 5e-2},              /* bf16: probabilities are rounded before the second product */
    {"attention_grad", 5e-5, 5e-2, 5e-2},         /* likewise, and dout.v - dout.out cancels when out is rounded */
    {"paged_attention", 2e-5, 5e-2, 5e-2},        /* likewise */
    {"layer_norm_grad_x", 1e-4, 1e-4, 0x1.05p-8}, /* over few features nearly all of it cancels */
};

/* Ops that move elements as they are: compared exactly, in the dtype they have. */
static const char *const moves[] = {"slice", "pad", "concat", "broadcast", "transpose", "update_rows"};

static bool is_move(const char *op)
{
    for (size_t i = 0; i < sizeof moves / sizeof moves[0]; i++)
        if (!strcmp(moves[i], op)) return true;
    return false;
}

static tolerance tolerance_of(const char *op)
{
    for (size_t i = 0; i < sizeof tolerances / sizeof tolerances[0]; i++)
        if (!strcmp(tolerances[i].op, op)) return tolerances[i];
    return is_move(op) ? (tolerance){op, 0, 0, 0} : default_tolerance;
}

static uint32_t results_without_flow(const char *op)
{
    for (size_t i = 0; i < sizeof no_flow_results / sizeof no_flow_results[0]; i++)
        if (!strcmp(no_flow_results[i].op, op)) return no_flow_results[i].results;
    return 0;
}

static uint32_t operands_without_flow(const char *op)
{
    for (size_t i = 0; i < sizeof no_flow_operands / sizeof no_flow_operands[0]; i++)
        if (!strcmp(no_flow_operands[i].op, op)) return no_flow_operands[i].operands;
    return 0;
}

static bool may_be_empty(const char *op, int loop)
{
    for (size_t i = 0; i < sizeof never_empty / sizeof never_empty[0]; i++)
        if (!strcmp(never_empty[i].op, op) && never_empty[i].loop == loop) return false;
    return true;
}

/* ---- tensors ---- */

static hd_tensor tensor_new(hd_arena *arena, hd_dtype dtype, int rank, const int64_t *dim)
{
    hd_tensor t = {.dtype = dtype, .rank = rank};
    for (int d = 0; d < rank; d++) t.dim[d] = dim[d];
    size_t bytes = hd_tensor_bytes(&t);
    char *p = hd_arena_alloc(arena, bytes + 2 * GUARD + 64);
    must(p != NULL, "out of memory");
    p += 64 - (uintptr_t)p % 64;
    memset(p, GUARD_BYTE, GUARD + bytes + GUARD);
    t.data = p + GUARD;
    return t;
}

static hd_tensor tensor_of(hd_arena *arena, const hd_type *type)
{
    return tensor_new(arena, type->dtype, type->shape.rank, type->shape.dim);
}

static hd_tensor tensor_as(hd_arena *arena, const hd_tensor *t, hd_dtype dtype)
{
    hd_tensor c = tensor_new(arena, dtype, t->rank, t->dim);
    int64_t n = hd_tensor_count(t);
    if (dtype == t->dtype) {
        memcpy(c.data, t->data, hd_tensor_bytes(t));
        return c;
    }
    for (int64_t i = 0; i < n; i++) hd_store_f64(c.data, dtype, i, hd_load_f64(t->data, t->dtype, i));
    return c;
}

static hd_tensor tensor_copy(hd_arena *arena, const hd_tensor *t)
{
    return tensor_as(arena, t, t->dtype);
}

/* Whether nothing was written around t. */
static bool tensor_guarded(const hd_tensor *t)
{
    const unsigned char *before = (const unsigned char *)t->data - GUARD, *after = (const unsigned char *)t->data + hd_tensor_bytes(t);
    for (int i = 0; i < GUARD; i++)
        if (before[i] != GUARD_BYTE || after[i] != GUARD_BYTE) return false;
    return true;
}

static hd_type type_of_tensor(const hd_tensor *t)
{
    return t->data ? hd_type_of(t->dtype, t->rank, t->dim) : (hd_type){.absent = true, .shape.sym = -1};
}

static double get(const hd_tensor *t, int64_t i) { return hd_load_f64(t->data, t->dtype, i); }

static double tensor_max_abs(const hd_tensor *t)
{
    double most = 0;
    int64_t n = hd_tensor_count(t);
    for (int64_t i = 0; i < n; i++)
        if (isfinite(get(t, i))) most = fmax(most, fabs(get(t, i)));
    return most;
}

/* The largest |a - b| / (|b| + floor * max|b|) over the elements, or with size in the place of max|b| where that is larger (size may be
 * NULL); infinite where only one is a number. Equal infinities are equal. */
static double tensor_error(const hd_tensor *a, const hd_tensor *b, double floor, const hd_tensor *size)
{
    double most = tensor_max_abs(b), worst = 0;
    int64_t n = hd_tensor_count(b);
    for (int64_t i = 0; i < n; i++) {
        double x = get(a, i), y = get(b, i), bound = fabs(y) + floor * (size ? fmax(most, get(size, i)) : most);
        if (x == y || (x != x && y != y)) continue;
        double e = isfinite(x) && isfinite(y) ? fabs(x - y) / (bound > 0 ? bound : 1) : INFINITY;
        worst = fmax(worst, e);
    }
    return worst;
}

static bool tensor_same_bits(const hd_tensor *a, const hd_tensor *b)
{
    return hd_tensor_bytes(a) == hd_tensor_bytes(b) && !memcmp(a->data, b->data, hd_tensor_bytes(a));
}

/* ---- filling ---- */

static void fill_unique(hd_tensor *t, int64_t limit, hd_rng *r)
{
    int64_t n = hd_tensor_count(t), *all = hd_calloc((size_t)limit + 1, sizeof *all);
    must(all && n <= limit, "a sample wants more distinct integers than there are");
    for (int64_t i = 0; i < limit; i++) all[i] = i;
    for (int64_t i = 0; i < n; i++) {
        int64_t j = i + (int64_t)hd_rng_below(r, (uint64_t)(limit - i)), v = all[j];
        all[j] = all[i];
        hd_store_f64(t->data, t->dtype, i, (double)v);
    }
    hd_free(all);
}

/* A random order of n steps of at least 0.012, shifted to be about zero: no two closer than 0.01. */
static void fill_distinct(hd_tensor *t, hd_rng *r)
{
    int64_t n = hd_tensor_count(t);
    double *v = hd_calloc((size_t)n + 1, sizeof *v), at = 0;
    must(v != NULL, "out of memory");
    for (int64_t i = 0; i < n; i++) v[i] = at += 0.012 + 0.02 * hd_rng_uniform(r);
    for (int64_t i = n - 1; i > 0; i--) {
        int64_t j = (int64_t)hd_rng_below(r, (uint64_t)i + 1);
        double x = v[i];
        v[i] = v[j], v[j] = x;
    }
    for (int64_t i = 0; i < n; i++) hd_store_f64(t->data, t->dtype, i, v[i] - at / 2);
    hd_free(v);
}

static double fill_element(hd_fill how, double limit, int64_t i, hd_rng *r)
{
    switch (how) {
    case HD_FILL_NORMAL: return hd_rng_normal(r);
    case HD_FILL_POSITIVE: return 0.5 + hd_rng_uniform(r);
    case HD_FILL_INDEX: return (double)hd_rng_below(r, limit >= 1 ? (uint64_t)limit : 1);
    case HD_FILL_RAMP: return (double)i;
    case HD_FILL_CONSTANT: return limit;
    default: return 0;
    }
}

static void tensor_fill(hd_tensor *t, hd_fill how, double limit, hd_rng *r)
{
    int64_t n = hd_tensor_count(t), segment = 0;
    if (how == HD_FILL_UNIQUE) {
        fill_unique(t, (int64_t)limit, r);
    } else if (how == HD_FILL_DISTINCT) {
        fill_distinct(t, r);
    } else {
        for (int64_t i = 0; i < n; i++) {
            if (how == HD_FILL_SEGMENTS) segment += i && hd_rng_below(r, 4) == 0;
            hd_store_f64(t->data, t->dtype, i, how == HD_FILL_SEGMENTS ? (double)segment : fill_element(how, limit, i, r));
        }
    }
}

/* ---- an instance: an op on operands ---- */

/* What the float operands of a sample become. Mixed: f32 or bf16, each by chance. i8: products of integers, with i32 results. */
typedef enum mode { IN_F64, IN_F32, IN_BF16, IN_MIXED, FLOAT_MODES, IN_I8 = FLOAT_MODES, MODES } mode;
static const char *const mode_names[MODES] = {"f64", "f32", "bf16", "mixed", "i8"};

typedef struct instance {
    const hd_op *op;
    _Alignas(16) char attrs[1024];
    hd_tensor in[HD_MAX_OPERANDS];
    hd_type in_type[HD_MAX_OPERANDS], out_type[HD_MAX_RESULTS];
    int n_in, n_out;
} instance;

static hd_sig instance_sig(const instance *x)
{
    return (hd_sig){.op = x->op, .in = x->in_type, .out = x->out_type, .n_in = x->n_in, .n_out = x->n_out, .attrs = x->attrs};
}

/* Types the results; their number or a negative code. */
static int instance_infer(instance *x, hd_error *err)
{
    hd_sig s = {.op = x->op, .in = x->in_type, .n_in = x->n_in, .attrs = x->attrs};
    memset(x->out_type, 0, sizeof x->out_type);
    int n = x->op->infer(&s, x->out_type, err);
    x->n_out = n < 0 ? 0 : n;
    return n;
}

static hd_dtype pick_dtype(mode m, hd_rng *r)
{
    static const hd_dtype of[] = {[IN_F64] = HD_F64, [IN_F32] = HD_F32, [IN_BF16] = HD_BF16, [IN_I8] = HD_I8};
    return m == IN_MIXED ? (hd_rng_u32(r) & 1 ? HD_F32 : HD_BF16) : of[m];
}

/* Gives every f64 operand and parameter of a sample a dtype of the mode. */
static void sample_retype(const hd_op *op, hd_sample *s, mode m, hd_rng *r)
{
    for (int i = 0; i < s->n_in; i++)
        if (!s->in[i].absent && s->in[i].dtype == HD_F64) s->in[i].dtype = pick_dtype(m, r);
    for (const hd_attr *a = op->attrs; a && a->name; a++) {
        hd_dtype *t = (hd_dtype *)(s->attrs + a->offset);
        hd_fused_attrs *chain = (hd_fused_attrs *)(s->attrs + a->offset);
        if (a->type == HD_ATTR_DTYPE && *t == HD_F64) *t = m == IN_I8 ? HD_I32 : pick_dtype(m, r);
        if (a->type != HD_ATTR_CHAIN) continue;
        for (int k = 0; k < chain->n_out; k++) chain->out_dtype[k] = pick_dtype(m, r);
    }
}

/* ---- larger instances: what the vectors, tiles and blocks of fast kernels need, and gradients by differences could not afford ---- */

/* Dimensions that no loop runs over, tied together: the same extent in each (operand, dimension); dimension -1 is the last. */
static const struct { const char *op; int tied[4][2], n; } whole_dims[] = {
    {"softmax", {{0, -1}}, 1},
    {"layer_norm", {{0, -1}, {1, 0}, {2, 0}, {3, -1}}, 4},
    {"rms_norm", {{0, -1}, {1, 0}, {2, -1}}, 3},
    {"cross_entropy", {{0, 1}}, 1},
    {"attention", {{0, 2}, {1, 2}}, 2},
    {"attention", {{2, 2}}, 1},
    {"attention", {{1, 0}, {2, 0}, {4, 0}, {6, 0}}, 4},
    {"paged_attention", {{0, 2}, {1, 2}}, 2},
    {"paged_attention", {{2, 2}}, 1},
    {"quantize_rows", {{0, 2}}, 1},
    {"dropout", {{0, 1}}, 1},
    {"reduce_mean", {{0, -1}}, 1},
    {"batch_norm", {{0, 0}}, 1},
    {"batch_norm", {{0, 3}}, 1},
    {"top_k", {{0, -1}}, 1},
    {"max_pool2d", {{0, 3}}, 1},
    {"avg_pool2d", {{0, 3}}, 1},
    {"conv2d", {{0, 3}}, 1},
    {"rope", {{0, 2}}, 1},
};

static void grow_whole_dims(const hd_op *op, hd_sample *s, hd_rng *r)
{
    static const int64_t extents[] = {16, 33, 64, 100, 131, 257};
    for (size_t k = 0; k < sizeof whole_dims / sizeof whole_dims[0]; k++) {
        if (strcmp(whole_dims[k].op, op->name) != 0 || hd_rng_below(r, 3) == 0) continue;
        int64_t extent = extents[hd_rng_below(r, sizeof extents / sizeof extents[0])];
        for (int i = 0; i < whole_dims[k].n; i++) {
            hd_type *t = &s->in[whole_dims[k].tied[i][0]];
            int d = whole_dims[k].tied[i][1];
            if (!t->absent && t->shape.rank) t->shape.dim[d < 0 ? t->shape.rank - 1 : d] = extent;
        }
    }
}

/* Some loops get a longer extent, and every operand dimension that they run over with them. */
static void grow_loops(const hd_op *op, hd_sample *s, hd_rng *r)
{
    static const int64_t extents[] = {13, 17, 33, 67, 129, 200};
    hd_type out[HD_MAX_RESULTS] = {0};
    hd_loops l = {0};
    hd_sig sig = {.op = op, .in = s->in, .out = out, .n_in = s->n_in, .attrs = s->attrs};
    if (op->localise || (sig.n_out = op->infer(&sig, out, NULL)) < 0) return;
    op->loops(&sig, &l);
    for (int i = 0; i < l.n; i++)
        if (hd_rng_u32(r) & 1) l.extent[i] = extents[hd_rng_below(r, sizeof extents / sizeof extents[0])];
    for (int i = 0; i < s->n_in; i++)
        for (int d = 0; !s->in[i].absent && d < s->in[i].shape.rank; d++) {
            int64_t product = 1;
            for (int k = 0; k < l.in[i][d].n; k++) product *= l.extent[l.in[i][d].loop[k]];
            if (l.in[i][d].n) s->in[i].shape.dim[d] = product;
        }
}

/* What the reference kernel will have to do for a sample, about; infinite when it is no longer valid. */
static double sample_work(const hd_op *op, const hd_sample *s)
{
    hd_type out[HD_MAX_RESULTS] = {0};
    hd_cost c = {INFINITY, INFINITY};
    hd_sig sig = {.op = op, .in = s->in, .out = out, .n_in = s->n_in, .attrs = s->attrs};
    sig.n_out = op->infer(&sig, out, NULL);
    if (sig.n_out > 0) op->cost(&sig, &c);
    return c.flops + c.bytes;
}

/* Makes a sample larger within a budget of flops and bytes; leaves it when it finds no way. */
static void sample_grow(const hd_op *op, hd_sample *s, double budget, hd_rng *r)
{
    for (int attempt = 0; attempt < 30; attempt++) {
        hd_sample big = *s;
        grow_loops(op, &big, r);
        grow_whole_dims(op, &big, r);
        if (!(sample_work(op, &big) <= budget)) continue;
        for (int i = 0; i < big.n_in; i++) /* distinct indices need room */
            if (big.fill[i].how == HD_FILL_UNIQUE) big.fill[i].limit = fmax(big.fill[i].limit, (double)hd_shape_count(&big.in[i].shape));
        *s = big;
        return;
    }
}

/* A random instance, made larger within a budget unless that is 0; where the op doesn't take the mode's dtypes (parameters that must be
 * f32), mixtures are tried. */
static bool instance_new(hd_arena *arena, instance *x, const hd_op *op, mode m, double budget, uint64_t seed, hd_error *err)
{
    hd_rng r = hd_rng_new(hd_hash_mix(hd_hash_string(op->name), seed));
    hd_sample first = {0};
    op->sample(&r, &first);
    if (budget > 0) sample_grow(op, &first, budget, &r);
    for (int attempt = 0; attempt < 200; attempt++) {
        hd_sample s = first;
        sample_retype(op, &s, attempt && m == IN_BF16 ? IN_MIXED : m, &r);
        *x = (instance){.op = op, .n_in = s.n_in};
        memcpy(x->attrs, s.attrs, sizeof x->attrs);
        memcpy(x->in_type, s.in, sizeof x->in_type);
        *err = (hd_error){0};
        if (instance_infer(x, err) < 0) continue;
        for (int i = 0; i < s.n_in; i++) {
            if (s.in[i].absent) continue;
            x->in[i] = tensor_of(arena, &s.in[i]);
            tensor_fill(&x->in[i], s.fill[i].how, s.fill[i].limit, &r);
            for (int64_t e = 0; m == IN_I8 && e < hd_tensor_count(&x->in[i]); e++) ((int8_t *)x->in[i].data)[e] = (int8_t)hd_rng_u32(&r);
        }
        return true;
    }
    return false;
}

/* Runs the reference, or hands the operand's memory on for a view. out[] are there. */
static void reference_run(const instance *x, hd_tensor *out, bool accumulate)
{
    hd_kernel_args a = {.in = x->in, .out = out, .n_in = x->n_in, .n_out = x->n_out, .code = x->op->code, .accumulate = accumulate,
                        .attrs = x->attrs, .tid = 0, .threads = 1};
    if (x->op->is_view) memcpy(out[0].data, x->in[0].data, hd_tensor_bytes(&out[0]));
    else x->op->reference(&a);
}

static void results_new(hd_arena *arena, const instance *x, hd_tensor *out, bool f64)
{
    for (int i = 0; i < x->n_out; i++) {
        out[i] = tensor_of(arena, &x->out_type[i]);
        if (f64 && hd_dtype_is_float(out[i].dtype)) out[i] = tensor_new(arena, HD_F64, out[i].rank, out[i].dim);
    }
}

/* ---- the interpreter ---- */

/* Value v's tensor is at[v]; inputs are filled by the caller. */
static void interpret(hd_arena *arena, const hd_graph *g, hd_tensor *at, void (*visit)(void *arg, const hd_node *n, const instance *x),
                      void *arg)
{
    for (size_t v = 0; v < g->n_values; v++) {
        if (g->values[v].kind != HD_CONST) continue;
        at[v] = tensor_of(arena, &g->values[v].type);
        memcpy(at[v].data, g->values[v].data, hd_tensor_bytes(&at[v]));
    }
    for (size_t i = 0; i < g->n_nodes; i++) {
        const hd_node *n = g->nodes[i];
        instance x = {.op = n->op, .n_in = n->n_in, .n_out = n->n_out};
        if (n->op->attrs_size) memcpy(x.attrs, n->attrs, n->op->attrs_size);
        for (int k = 0; k < n->n_in; k++) {
            if (n->in[k] != HD_NONE) x.in[k] = at[n->in[k]];
            x.in_type[k] = type_of_tensor(&x.in[k]);
        }
        hd_tensor out[HD_MAX_RESULTS];
        for (int k = 0; k < n->n_out; k++) x.out_type[k] = g->values[n->out[k]].type;
        results_new(arena, &x, out, false);
        reference_run(&x, out, false);
        for (int k = 0; k < n->n_out; k++) at[n->out[k]] = out[k];
        if (visit) visit(arg, n, &x);
    }
}

/* ---- slicing along a loop ---- */

/* Whether index i of a dimension with this map lies in [begin, end) of the loop. */
static bool in_slice(const hd_loops *l, const hd_dim_map *m, int loop, int64_t begin, int64_t end, int64_t i)
{
    for (int k = m->n - 1; k >= 0; k--) {
        int64_t digit = i % l->extent[m->loop[k]];
        if (m->loop[k] == loop) return digit >= begin && digit < end;
        i /= l->extent[m->loop[k]];
    }
    return true;
}

static bool map_has(const hd_dim_map *map, int rank, int loop)
{
    for (int d = 0; d < rank; d++)
        for (int k = 0; k < map[d].n; k++)
            if (map[d].loop[k] == loop) return true;
    return false;
}

/* The part of t that belongs to [begin, end) of the loop. */
static hd_tensor tensor_slice(hd_arena *arena, const hd_tensor *t, const hd_loops *l, const hd_dim_map *map, int loop, int64_t begin,
                              int64_t end)
{
    int64_t dim[HD_MAX_RANK], n = hd_tensor_count(t), to = 0;
    for (int d = 0; d < t->rank; d++) {
        dim[d] = 0;
        for (int64_t i = 0; i < t->dim[d]; i++) dim[d] += in_slice(l, &map[d], loop, begin, end, i);
    }
    hd_tensor s = tensor_new(arena, t->dtype, t->rank, dim);
    size_t size = hd_dtype_size(t->dtype);
    for (int64_t i = 0; i < n; i++) {
        int64_t rest = i;
        bool in = true;
        for (int d = t->rank - 1; d >= 0; d--) {
            in = in && in_slice(l, &map[d], loop, begin, end, rest % t->dim[d]);
            rest /= t->dim[d];
        }
        if (in) memcpy((char *)s.data + (size_t)to++ * size, (const char *)t->data + (size_t)i * size, size);
    }
    return s;
}

/* x restricted to [begin, end) of a loop: operands sliced, parameters localised, results typed anew. A negative code if it isn't valid. */
static int instance_slice(hd_arena *arena, const instance *x, const hd_loops *l, int loop, int64_t begin, int64_t end, instance *part,
                          hd_error *err)
{
    *part = *x;
    hd_sig s = instance_sig(x);
    for (int i = 0; i < x->n_in; i++) {
        if (!x->in[i].data) continue;
        part->in[i] = tensor_slice(arena, &x->in[i], l, l->in[i], loop, begin, end);
        part->in_type[i] = type_of_tensor(&part->in[i]);
    }
    if (x->op->localise) x->op->localise(&s, l, loop, begin, end, part->attrs);
    return instance_infer(part, err);
}

#endif
