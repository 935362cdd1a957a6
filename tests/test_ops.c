/* Every entry of the op table: no facet missing; types and messages; gradients of the reference kernels in f64 against central
 * differences; the loops facet, by computing the pieces; linearity; parameters as text; and every fast kernel of the CPU back end, under
 * each instruction set of this machine, against the reference. Nothing is skipped silently: --table prints what was done for each op,
 * --long does more instances. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/term.h"
#include "ops_harness.h"
#include "tensor/quant.h"

#define MAX_OPS 256

/* ---- what was done, and what went wrong ---- */

typedef struct record {
    int typed, rejected, bounded; /* infer: instances typed; broken ones refused; instances with a bounded dimension */
    int instances;                /* gradients: random instances */
    int64_t elements, kinks;      /* gradients: partial derivatives compared; those at a kink, left out */
    double grad_error;
    bool differentiated;          /* ran as part of a graph whose gradient was compared */
    int pieces, linear, texts;
    int kernels, runs;            /* fast kernels: pairs of kernel and instance; runs of them, all variations */
    double f32_error, bf16_error;
    int failures;
} record;

static record records[MAX_OPS];
static hd_isa best_isa;
static int scale_up = 1; /* --long: more instances */

static record *record_of(const hd_op *op)
{
    for (int i = 0; i < hd_op_count; i++)
        if (hd_ops[i] == op) return &records[i];
    must(false, "a node has an op that is not in the table");
    return NULL;
}

static int failures;

static void HD_PRINTF(2, 3) fail_op(const hd_op *op, const char *fmt, ...)
{
    va_list ap;
    failures++;
    if (++record_of(op)->failures > 4) return; /* the first few say it */
    fprintf(stderr, "  %s: ", op->name);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "\n");
}

/* Parameters and operand types, for messages. */
static const char *describe(const instance *x)
{
    static char text[1024];
    hd_str s;
    hd_str_init(&s);
    for (int i = 0; i < x->n_in; i++) hd_str_printf(&s, "%s%s", i ? ", " : "(", hd_type_format((char[160]){0}, 160, &x->in_type[i], NULL));
    hd_str_puts(&s, ") ");
    hd_attrs_print(x->op, x->attrs, &s);
    snprintf(text, sizeof text, "%s", s.data);
    hd_str_free(&s);
    return text;
}

/* ---- walking the table ---- */

/* Calls f on `count` instances of one op, if it has samples; made larger within a budget of flops and bytes, unless that is 0. */
static void for_instances_of(const hd_op *op, int count, mode m, double budget, void (*f)(hd_arena *arena, instance *x, uint64_t seed))
{
    for (int seed = 0; op->sample && seed < count; seed++) {
        hd_arena arena = {0};
        instance x;
        hd_error err = {0};
        if (instance_new(&arena, &x, op, m, budget, (uint64_t)seed, &err)) f(&arena, &x, (uint64_t)seed);
        else fail_op(op, "no instance in %s: %s", mode_names[m], err.message);
        hd_arena_free(&arena);
    }
}

static void for_instances(int count, mode m, void (*f)(hd_arena *arena, instance *x, uint64_t seed))
{
    for (int i = 0; i < hd_op_count; i++) for_instances_of(hd_ops[i], count, m, 0, f);
}

/* ---- facets ---- */

static void check_facets(const hd_op *op)
{
    if (!op->summary || !*op->summary) fail_op(op, "no summary");
    if (op->min_in < 0 || op->max_in < op->min_in || op->max_in > HD_MAX_OPERANDS) fail_op(op, "%d to %d operands", op->min_in, op->max_in);
    if (!op->infer) fail_op(op, "no infer");
    if (!op->loops) fail_op(op, "no loops");
    if (!op->cost) fail_op(op, "no cost");
    if (op->is_comm) return; /* its meaning lies in layouts: tests/test_partition.c and test_ranks.c */
    if (!op->reference == !op->is_view) fail_op(op, "a reference kernel or is_view, not both, not neither");
    if (!op->grad == !op->no_gradient) fail_op(op, "a gradient or no_gradient, not both, not neither");
    if (!op->sample == !op->is_backward) fail_op(op, "a sample or is_backward, not both, not neither");
    if (!op->attrs != !op->attrs_size) fail_op(op, "parameters and their description must go together");
    if (op->attrs_size > sizeof((hd_sample){0}.attrs)) fail_op(op, "its parameters are too large");
    for (int i = 0; i < hd_op_count; i++)
        if (hd_ops[i] != op && !strcmp(hd_ops[i]->name, op->name)) fail_op(op, "another op has its name");
    if (hd_op_find(op->name) != op) fail_op(op, "hd_op_find does not find it");
}

static void test_facets(void **state)
{
    (void)state;
    int before = failures;
    must(hd_op_count <= MAX_OPS, "MAX_OPS is too small");
    for (int i = 0; i < hd_op_count; i++) check_facets(hd_ops[i]);
    assert_int_equal(failures, before);
}

/* ---- infer, loops, cost: consistent with each other ---- */

static void check_map(const instance *x, const hd_loops *l, const hd_shape *s, const hd_dim_map *map, const char *what, int index)
{
    for (int d = 0; d < s->rank; d++) {
        int64_t product = 1;
        for (int k = 0; k < map[d].n; k++) {
            if (map[d].loop[k] < 0 || map[d].loop[k] >= l->n) fail_op(x->op, "%s %d: no loop %d", what, index, map[d].loop[k]);
            else product *= l->extent[map[d].loop[k]];
        }
        if (map[d].n && product != s->dim[d])
            fail_op(x->op, "%s %d: loops of dimension %d multiply to %lld, not %lld: %s", what, index, d, (long long)product,
                    (long long)s->dim[d], describe(x));
    }
}

static hd_loops loops_of(const instance *x)
{
    hd_loops l = {0};
    hd_sig s = instance_sig(x);
    x->op->loops(&s, &l);
    return l;
}

static void check_types(hd_arena *arena, instance *x, uint64_t seed)
{
    (void)arena, (void)seed;
    hd_loops l = loops_of(x);
    hd_sig s = instance_sig(x);
    hd_cost c = {NAN, NAN};
    if (x->n_out < 1 || x->n_out > HD_MAX_RESULTS) fail_op(x->op, "%d results", x->n_out);
    for (int i = 0; i < x->n_in; i++)
        if (!x->in_type[i].absent) check_map(x, &l, &x->in_type[i].shape, l.in[i], "operand", i);
    for (int i = 0; i < x->n_out; i++) check_map(x, &l, &x->out_type[i].shape, l.out[i], "result", i);
    x->op->cost(&s, &c);
    if (!(c.flops >= 0) || !(c.bytes >= 0) || !isfinite(c.flops) || !isfinite(c.bytes))
        fail_op(x->op, "cost is %g flops, %g bytes", c.flops, c.bytes);
    if (!x->op->is_view && !(c.bytes > 0)) fail_op(x->op, "moves no bytes");
    record_of(x->op)->typed++;
}

/* One operand made wrong at random: missing, of one dimension less, with a longer dimension, of the other kind of dtype. */
static void break_operand(instance *x, hd_rng *r)
{
    hd_type *t = &x->in_type[hd_rng_below(r, (uint64_t)x->n_in)];
    int d = t->shape.rank ? (int)hd_rng_below(r, (uint64_t)t->shape.rank) : 0;
    switch (hd_rng_below(r, 5)) {
    case 0: *t = (hd_type){.absent = true, .shape.sym = -1}; break;
    case 1: t->shape.rank -= t->shape.rank > 0; break;
    case 2: t->shape.dim[d]++; break;
    case 3: t->dtype = hd_dtype_is_float(t->dtype) ? HD_I32 : HD_F32; break;
    default:
        t->shape.rank += t->shape.rank < HD_MAX_RANK;
        t->shape.dim[t->shape.rank - 1] = 2;
    }
}

/* What infer then says names the op; what it accepts has consistent loops. */
static void check_refusals(hd_arena *arena, instance *x, uint64_t seed)
{
    hd_rng r = hd_rng_new(hd_hash_mix(seed, 77));
    size_t n = strlen(x->op->name);
    for (int trial = 0; x->n_in && trial < 12; trial++) {
        instance y = *x;
        hd_error err = {0};
        break_operand(&y, &r);
        int rc = instance_infer(&y, &err);
        if (rc >= 0) {
            check_types(arena, &y, seed);
            continue;
        }
        record_of(x->op)->rejected++;
        if (err.code != rc || strncmp(err.message, x->op->name, n) != 0)
            fail_op(x->op, "refuses with code %d, message \"%s\"", rc, err.message);
    }
}

/* A loop that is the outermost dimension of every operand and result that has it, alone, may be bounded by a symbol: so are its results. */
static bool loop_is_outermost(const instance *x, const hd_loops *l, int loop, uint32_t *in, uint32_t *out)
{
    const hd_dim_map *maps[HD_MAX_OPERANDS + HD_MAX_RESULTS];
    int ranks[HD_MAX_OPERANDS + HD_MAX_RESULTS], n = 0;
    for (int i = 0; i < x->n_in; i++) maps[n] = l->in[i], ranks[n++] = x->in_type[i].absent ? 0 : x->in_type[i].shape.rank;
    for (int i = 0; i < x->n_out; i++) maps[n] = l->out[i], ranks[n++] = x->out_type[i].shape.rank;
    *in = *out = 0;
    for (int i = 0; i < n; i++) {
        if (!map_has(maps[i], ranks[i], loop)) continue;
        if (maps[i][0].n != 1 || maps[i][0].loop[0] != loop || map_has(maps[i] + 1, ranks[i] - 1, loop)) return false;
        if (i < x->n_in) *in |= 1u << i;
        else *out |= 1u << (i - x->n_in);
    }
    return *in != 0;
}

/* y becomes x with the loop bounded by symbol 0; out: which results then are. */
static bool bound_loop(const instance *x, const hd_loops *l, int loop, instance *y, uint32_t *out)
{
    uint32_t in;
    *y = *x;
    if (l->extent[loop] < 2 || !loop_is_outermost(x, l, loop, &in, out)) return false;
    for (int i = 0; i < x->n_in; i++)
        if (in >> i & 1) y->in_type[i].shape.sym = 0;
    return true;
}

static void check_bounded(hd_arena *arena, instance *x, uint64_t seed)
{
    (void)arena, (void)seed;
    hd_loops l = loops_of(x);
    for (int loop = 0; loop < l.n; loop++) {
        uint32_t out;
        instance y;
        hd_error err = {0};
        if (!bound_loop(x, &l, loop, &y, &out)) continue;
        if (instance_infer(&y, &err) < 0) {
            fail_op(x->op, "does not take a bounded outermost dimension: %s: %s", err.message, describe(x));
            continue;
        }
        for (int i = 0; i < y.n_out; i++)
            if (y.out_type[i].shape.sym != (out >> i & 1 ? 0 : -1))
                fail_op(x->op, "result %d is%s bounded: %s", i, out >> i & 1 ? " not" : "", describe(x));
        record_of(x->op)->bounded++;
    }
}

static void test_infer(void **state)
{
    (void)state;
    int before = failures;
    for_instances(20 * scale_up, IN_F64, check_types);
    for_instances(10 * scale_up, IN_F64, check_refusals);
    for_instances(10 * scale_up, IN_F64, check_bounded);
    for (int i = 0; i < hd_op_count; i++)
        if (hd_ops[i]->sample && !records[i].rejected) fail_op(hd_ops[i], "no wrong operand was refused");
    assert_int_equal(failures, before);
}

/* ---- parameters as text ---- */

static void check_text(hd_arena *arena, instance *x, uint64_t seed)
{
    (void)arena, (void)seed;
    _Alignas(16) char back[1024] = {0};
    hd_error err = {0};
    hd_str text;
    hd_str_init(&text);
    hd_attrs_print(x->op, x->attrs, &text);
    hd_attrs_preset(x->op, back);
    if (hd_attrs_parse(x->op, text.data, back, &err)) fail_op(x->op, "\"%s\" does not read back: %s", text.data, err.message);
    else if (memcmp(back, x->attrs, x->op->attrs_size)) fail_op(x->op, "\"%s\" reads back as something else", text.data);
    hd_str_free(&text);
    record_of(x->op)->texts++;
}

static void test_text(void **state)
{
    (void)state;
    int before = failures;
    for_instances(20 * scale_up, IN_F64, check_text);
    for_instances(10 * scale_up, IN_MIXED, check_text);
    assert_int_equal(failures, before);
}

/* ---- an op's graph: operands as inputs, a loss that weighs every differentiable result, and the gradients ---- */

typedef struct net {
    hd_graph *g;
    hd_value in[HD_MAX_OPERANDS], grad[HD_MAX_OPERANDS];
    hd_tensor weight[HD_MAX_RESULTS]; /* data NULL: the result doesn't count */
    hd_tensor *at;                    /* [g->n_values] after running */
} net;

static void net_inputs(net *n, const instance *x, hd_rng *r)
{
    for (int i = 0; i < x->n_in; i++)
        if (!x->in_type[i].absent && x->in_type[i].shape.sym == 0 && !n->g->n_symbols)
            hd_graph_symbol(n->g, "n", x->in_type[i].shape.dim[0]);
    for (int i = 0; i < x->n_in; i++) {
        char name[16];
        snprintf(name, sizeof name, "in%d", i);
        /* Some are the same for all micro-batches, as parameters are. */
        hd_time_layout micro = i && hd_rng_u32(r) & 1 ? HD_TIME_REPLICATE : HD_TIME_SPLIT;
        n->in[i] = x->in_type[i].absent ? HD_NONE : hd_graph_input(n->g, name, x->in_type[i], micro);
    }
}

/* Sum of the results times fixed random weights; HD_NONE when no result is differentiable. */
static hd_value net_loss(net *n, hd_arena *arena, const instance *x, hd_value first, hd_rng *r)
{
    hd_value loss = HD_NONE;
    for (int k = 0; k < x->n_out; k++) {
        if (!hd_dtype_is_float(x->out_type[k].dtype) || results_without_flow(x->op->name) >> k & 1) continue;
        char name[16];
        snprintf(name, sizeof name, "w%d", k);
        n->weight[k] = tensor_of(arena, &x->out_type[k]);
        tensor_fill(&n->weight[k], HD_FILL_NORMAL, 0, r);
        hd_value w = hd_graph_const(n->g, name, x->out_type[k], n->weight[k].data);
        hd_value product = hd_mul(n->g, hd_graph_result(n->g, first, k), w);
        uint32_t axes = (1u << x->out_type[k].shape.rank) - 1;
        hd_dtype sum = x->out_type[k].dtype == HD_F64 ? HD_F64 : HD_F32;
        loss = hd_add(n->g, loss, hd_reduce(n->g, "reduce_sum", NULL, product, axes, false, sum));
    }
    return loss;
}

static bool net_build(net *n, hd_arena *arena, const instance *x, uint64_t seed)
{
    hd_rng r = hd_rng_new(hd_hash_mix(seed, 5));
    hd_error err = {0};
    *n = (net){.g = hd_graph_new()};
    must(n->g != NULL, "out of memory");
    net_inputs(n, x, &r);
    hd_value first = hd_graph_node(n->g, x->op->name, "node", x->attrs, n->in, x->n_in), wrt[HD_MAX_OPERANDS], grad[HD_MAX_OPERANDS];
    int count = 0, place[HD_MAX_OPERANDS];
    for (int i = 0; i < HD_MAX_OPERANDS; i++) n->grad[i] = HD_NONE;
    for (int i = 0; i < x->n_in; i++)
        if (n->in[i] != HD_NONE && hd_dtype_is_float(x->in_type[i].dtype)) place[count] = i, wrt[count++] = n->in[i];
    if (!x->op->no_gradient && count && first != HD_NONE) {
        hd_value loss = net_loss(n, arena, x, first, &r);
        if (loss != HD_NONE && !hd_graph_backward(n->g, loss, wrt, count, grad))
            for (int i = 0; i < count; i++) n->grad[place[i]] = grad[i];
    }
    if (n->g->err.code) fail_op(x->op, "its graph: %s: %s", n->g->err.message, describe(x));
    else if (hd_graph_verify(n->g, &err)) fail_op(x->op, "its graph is not valid: %s: %s", err.message, describe(x));
    return !n->g->err.code && !err.code;
}

static void net_run(net *n, hd_arena *arena, const instance *x, void (*visit)(void *, const hd_node *, const instance *), void *arg)
{
    n->at = hd_arena_alloc(arena, n->g->n_values * sizeof *n->at);
    must(n->at != NULL, "out of memory");
    for (int i = 0; i < x->n_in; i++)
        if (n->in[i] != HD_NONE) n->at[n->in[i]] = x->in[i];
    interpret(arena, n->g, n->at, visit, arg);
}

/* ---- gradients ---- */

static double loss_at(const instance *x, const net *n, hd_tensor *out)
{
    double loss = 0;
    reference_run(x, out, false);
    for (int k = 0; k < x->n_out; k++) {
        int64_t count = n->weight[k].data ? hd_tensor_count(&out[k]) : 0;
        for (int64_t i = 0; i < count; i++) loss += get(&out[k], i) * get(&n->weight[k], i);
    }
    return loss;
}

/* d loss / d element e of operand i, from the two sides with step h. */
static void differences(const instance *x, const net *n, hd_tensor *out, int i, int64_t e, double h, double *left, double *right)
{
    double *v = (double *)x->in[i].data + e, was = *v, at = loss_at(x, n, out);
    *v = was + h;
    *right = (loss_at(x, n, out) - at) / h;
    *v = was - h;
    *left = (at - loss_at(x, n, out)) / h;
    *v = was;
}

#define GRAD_TOLERANCE 1e-5

/* |analytic - central difference| over |analytic| + 1e-2 of the operand's largest, for one element. At a kink the two sides differ:
 * counted, not compared. */
static void compare_element(const instance *x, const net *n, hd_tensor *out, int i, int64_t e, double want, double most)
{
    record *rec = record_of(x->op);
    double left, right, bound = fabs(want) + 1e-2 * most + 1e-6;
    differences(x, n, out, i, e, 2e-5, &left, &right);
    double error = fabs(0.5 * (left + right) - want) / bound;
    if (!(error <= GRAD_TOLERANCE)) {
        differences(x, n, out, i, e, 2e-6, &left, &right);
        if (fabs(left - right) > 1e-2 * bound) {
            rec->kinks++;
            return;
        }
        error = fmin(error, fabs(0.5 * (left + right) - want) / bound);
    }
    rec->elements++;
    rec->grad_error = fmax(rec->grad_error, error);
    if (!(error <= GRAD_TOLERANCE))
        fail_op(x->op, "gradient of operand %d, element %lld is %.9g, differences say %.9g: %s", i, (long long)e, want,
                0.5 * (left + right), describe(x));
}

static void mark_differentiated(void *arg, const hd_node *n, const instance *x)
{
    (void)arg, (void)x;
    record_of(n->op)->differentiated = true;
}

static void check_gradient(hd_arena *arena, instance *x, uint64_t seed)
{
    net n;
    hd_tensor out[HD_MAX_RESULTS];
    if (x->op->no_gradient) return;
    if (net_build(&n, arena, x, seed)) {
        net_run(&n, arena, x, mark_differentiated, NULL);
        results_new(arena, x, out, true);
        record_of(x->op)->instances++;
        for (int i = 0; i < x->n_in; i++) {
            if (!x->in[i].data || x->in[i].dtype != HD_F64 || operands_without_flow(x->op->name) >> i & 1) continue;
            const hd_tensor *d = n.grad[i] == HD_NONE ? NULL : &n.at[n.grad[i]];
            if (d && (d->dtype != HD_F64 || hd_tensor_count(d) != hd_tensor_count(&x->in[i]))) {
                fail_op(x->op, "gradient of operand %d is %s", i, hd_type_format((char[160]){0}, 160, hd_type_in(n.g, n.grad[i]), n.g));
                continue;
            }
            double most = d ? tensor_max_abs(d) : 0;
            for (int64_t e = 0; e < hd_tensor_count(&x->in[i]); e++) compare_element(x, &n, out, i, e, d ? get(d, e) : 0, most);
        }
    }
    hd_graph_free(n.g);
}

/* The same with one loop bounded by a symbol: gradients must not turn its extent into a number. */
static void check_bounded_gradient(hd_arena *arena, instance *x, uint64_t seed)
{
    hd_loops l = loops_of(x);
    uint32_t out;
    instance y;
    hd_error err = {0};
    for (int loop = 0; loop < l.n; loop++) {
        if (!bound_loop(x, &l, loop, &y, &out) || instance_infer(&y, &err) < 0) continue;
        check_gradient(arena, &y, seed);
        return;
    }
}

static void test_gradients(void **state)
{
    (void)state;
    int before = failures;
    for_instances(10 * scale_up, IN_F64, check_gradient);
    for_instances(3 * scale_up, IN_F64, check_bounded_gradient);
    for (int i = 0; i < hd_op_count; i++) {
        const hd_op *op = hd_ops[i];
        if (op->is_backward && !records[i].differentiated) fail_op(op, "a backward op that no gradient was made of");
        if (!op->no_gradient && op->sample && !records[i].elements) fail_op(op, "no partial derivative was compared");
        if (records[i].kinks * 50 > records[i].elements) fail_op(op, "%lld of its derivatives are at kinks", (long long)records[i].kinks);
    }
    assert_int_equal(failures, before);
}

/* ---- loops: the pieces make the whole ---- */

/* One result of the two pieces against the whole's. */
static void check_pieces_of(hd_arena *arena, const instance *x, const hd_loops *l, int loop, int64_t cut, int result,
                            const hd_tensor *whole, const hd_tensor part[2])
{
    int rank = whole->rank;
    bool split = map_has(l->out[result], rank, loop), reduced = l->reduced >> loop & 1;
    double worst = 0;
    for (int p = 0; p < 2; p++) {
        hd_tensor want = split ? tensor_slice(arena, whole, l, l->out[result], loop, p ? cut : 0, p ? l->extent[loop] : cut) : *whole;
        if (hd_tensor_count(&want) != hd_tensor_count(&part[p])) {
            fail_op(x->op, "loop %d cut at %lld: result %d of piece %d has the wrong extents: %s", loop, (long long)cut, result, p,
                    describe(x));
            return;
        }
        bool empty = cut == (p ? l->extent[loop] : 0);
        if (split || (!reduced && !empty)) worst = fmax(worst, tensor_error(&part[p], &want, 1e-3, NULL));
    }
    if (!split && reduced) {
        hd_tensor both = tensor_copy(arena, whole);
        for (int64_t i = 0; i < hd_tensor_count(whole); i++) {
            double a = get(&part[0], i), b = get(&part[1], i);
            hd_store_f64(both.data, both.dtype, i, x->op->reduce_max ? fmax(a, b) : a + b);
        }
        worst = tensor_error(&both, whole, 1, NULL);
    }
    if (!(worst <= 1e-12))
        fail_op(x->op, "loop %d cut at %lld of %lld: result %d is off by %.3g: %s", loop, (long long)cut, (long long)l->extent[loop],
                result, worst, describe(x));
}

static void check_cut(hd_arena *arena, const instance *x, const hd_loops *l, int loop, int64_t cut, const hd_tensor *whole)
{
    hd_tensor out[2][HD_MAX_RESULTS];
    for (int p = 0; p < 2; p++) {
        instance part;
        hd_error err = {0};
        int n = instance_slice(arena, x, l, loop, p ? cut : 0, p ? l->extent[loop] : cut, &part, &err);
        if (n != x->n_out) {
            fail_op(x->op, "loop %d cut at %lld of %lld: piece %d is not valid: %s: %s", loop, (long long)cut, (long long)l->extent[loop],
                    p, err.message, describe(x));
            return;
        }
        results_new(arena, &part, out[p], true);
        reference_run(&part, out[p], false);
        record_of(x->op)->pieces++;
    }
    for (int k = 0; k < x->n_out; k++) check_pieces_of(arena, x, l, loop, cut, k, &whole[k], (hd_tensor[]){out[0][k], out[1][k]});
}

static void check_loops_of(hd_arena *arena, const instance *x, hd_rng *r)
{
    hd_tensor whole[HD_MAX_RESULTS];
    hd_loops l = loops_of(x);
    results_new(arena, x, whole, true);
    reference_run(x, whole, false);
    for (int loop = 0; loop < l.n; loop++) {
        int64_t least = may_be_empty(x->op->name, loop) ? 0 : 1, most = l.extent[loop] - least;
        if (most < least || l.whole >> loop & 1) continue;
        int64_t cut = hd_rng_below(r, 5) ? least + (int64_t)hd_rng_below(r, (uint64_t)(most - least) + 1) : least;
        check_cut(arena, x, &l, loop, cut, whole);
    }
}

typedef struct loop_visit { hd_arena *arena; hd_rng rng; const char *prefix; } loop_visit;

/* Backward ops are reached through the graph of the op that they belong to. */
static void visit_loops(void *arg, const hd_node *n, const instance *x)
{
    loop_visit *v = arg;
    if (n->op->is_backward) check_loops_of(v->arena, x, &v->rng);
}

static void check_loops(hd_arena *arena, instance *x, uint64_t seed)
{
    net n;
    loop_visit v = {.arena = arena, .rng = hd_rng_new(hd_hash_mix(seed, 9))};
    check_loops_of(arena, x, &v.rng);
    if (net_build(&n, arena, x, seed)) net_run(&n, arena, x, visit_loops, &v);
    hd_graph_free(n.g);
}

static void test_loops(void **state)
{
    (void)state;
    int before = failures;
    for_instances(10 * scale_up, IN_F64, check_loops);
    for (int i = 0; i < hd_op_count; i++)
        if (!records[i].pieces && !hd_ops[i]->is_comm) fail_op(hd_ops[i], "no loop was cut");
    assert_int_equal(failures, before);
}

/* ---- linearity: f(s x + t y) = s f(x) + t f(y) in each set of operands that the op calls jointly linear ---- */

/* to[e] = s a[e] + t b[e] */
static void combine(hd_tensor *to, double s, const hd_tensor *a, double t, const hd_tensor *b)
{
    for (int64_t e = 0; e < hd_tensor_count(to); e++) hd_store_f64(to->data, to->dtype, e, s * get(a, e) + t * get(b, e));
}

/* The op's results with s a + t b in the place of each operand of the set. */
static void run_with(hd_arena *arena, const instance *x, uint32_t set, const hd_tensor *a, double s, const hd_tensor *b, double t,
                     hd_tensor *out)
{
    instance y = *x;
    for (int i = 0; i < x->n_in; i++) {
        if (!(set >> i & 1) || !x->in[i].data) continue;
        y.in[i] = tensor_copy(arena, &x->in[i]);
        combine(&y.in[i], s, &a[i], t, &b[i]);
    }
    results_new(arena, x, out, true);
    reference_run(&y, out, false);
}

static void check_linear_set(hd_arena *arena, const instance *x, uint32_t set, hd_rng *r)
{
    hd_tensor other[HD_MAX_OPERANDS] = {0}, fx[HD_MAX_RESULTS], fy[HD_MAX_RESULTS], both[HD_MAX_RESULTS];
    for (int i = 0; i < x->n_in; i++) {
        if (!(set >> i & 1) || !x->in[i].data) continue;
        if (!hd_dtype_is_float(x->in[i].dtype)) return; /* an instance on integers */
        other[i] = tensor_copy(arena, &x->in[i]);
        tensor_fill(&other[i], HD_FILL_NORMAL, 0, r);
    }
    run_with(arena, x, set, x->in, 1, x->in, 0, fx);
    run_with(arena, x, set, other, 1, other, 0, fy);
    run_with(arena, x, set, x->in, 1.5, other, -0.75, both);
    for (int k = 0; k < x->n_out; k++) {
        if (!hd_dtype_is_float(both[k].dtype) || results_without_flow(x->op->name) >> k & 1) continue;
        combine(&fx[k], 1.5, &fx[k], -0.75, &fy[k]);
        double error = tensor_error(&both[k], &fx[k], 1, NULL);
        if (!(error <= 1e-11)) fail_op(x->op, "result %d is not linear in operands %#x (%.3g): %s", k, set, error, describe(x));
    }
    record_of(x->op)->linear++;
}

static void visit_linear(void *arg, const hd_node *n, const instance *x)
{
    loop_visit *v = arg;
    for (int i = 0; n->op->is_backward && i < 4 && n->op->linear[i]; i++) check_linear_set(v->arena, x, n->op->linear[i], &v->rng);
}

static void check_linear(hd_arena *arena, instance *x, uint64_t seed)
{
    net n;
    loop_visit v = {.arena = arena, .rng = hd_rng_new(hd_hash_mix(seed, 31))};
    for (int i = 0; i < 4 && x->op->linear[i]; i++) check_linear_set(arena, x, x->op->linear[i], &v.rng);
    if (net_build(&n, arena, x, seed)) net_run(&n, arena, x, visit_linear, &v);
    hd_graph_free(n.g);
}

static void test_linear(void **state)
{
    (void)state;
    int before = failures;
    for_instances(6 * scale_up, IN_F64, check_linear);
    for (int i = 0; i < hd_op_count; i++)
        if (hd_ops[i]->linear[0] && !records[i].linear) fail_op(hd_ops[i], "its linear operands were not tried");
    assert_int_equal(failures, before);
}

/* ---- fast kernels ---- */

#define MAX_TEAM 3
#define MAX_KERNELS 256
static hd_team *teams[MAX_TEAM + 1];
static int kernel_runs[HD_ISA_COUNT][MAX_KERNELS]; /* by place in hd_cpu_kernels */

typedef struct job { const hd_kernel *kernel; hd_kernel_args args; } job;

static void run_member(void *arg, int tid)
{
    const job *j = arg;
    hd_kernel_args a = j->args;
    a.tid = tid;
    j->kernel->run(&a);
}

static hd_kernel_args kernel_args(const instance *x, hd_tensor *out)
{
    return (hd_kernel_args){.in = x->in, .out = out, .n_in = x->n_in, .n_out = x->n_out, .code = x->op->code, .attrs = x->attrs,
                            .threads = 1};
}

/* Runs a kernel; checks that it wrote nowhere but its results and workspace. */
static void kernel_run(hd_arena *arena, const hd_kernel *k, const instance *x, hd_tensor *out, int threads, bool accumulate)
{
    job j = {k, kernel_args(x, out)};
    j.args.threads = threads;
    j.args.accumulate = accumulate;
    j.args.team = teams[threads];
    int64_t bytes = k->workspace ? (int64_t)k->workspace(&j.args, threads) : 0;
    hd_tensor workspace = tensor_new(arena, HD_U8, 1, &bytes);
    j.args.workspace = workspace.data;
    hd_team_run(teams[threads], run_member, &j);
    for (int i = 0; i < x->n_in; i++)
        if (x->in[i].data && !tensor_guarded(&x->in[i])) fail_op(x->op, "writes beside operand %d: %s", i, describe(x));
    for (int i = 0; i < x->n_out; i++)
        if (out[i].data && !tensor_guarded(&out[i])) fail_op(x->op, "writes beside result %d: %s", i, describe(x));
    if (!tensor_guarded(&workspace)) fail_op(x->op, "writes beside its workspace of %lld bytes: %s", (long long)bytes, describe(x));
    record_of(x->op)->runs++;
}

/* Results that a kernel must overwrite: not a number until then. */
static void results_poisoned(hd_arena *arena, const instance *x, hd_tensor *out)
{
    results_new(arena, x, out, false);
    for (int i = 0; i < x->n_out; i++) memset(out[i].data, 0xff, hd_tensor_bytes(&out[i]));
}

static void check_same_bits(const instance *x, hd_isa isa, const hd_tensor *out, const hd_tensor *first, const char *what)
{
    for (int i = 0; i < x->n_out; i++)
        if (out[i].data && first[i].data && !tensor_same_bits(&out[i], &first[i]))
            fail_op(x->op, "%s: result %d has other bits %s: %s", hd_isa_name(isa), i, what, describe(x));
}

/* What a kernel is judged by: the reference's results in f64, and the size of what they are sums of. */
typedef struct truth { hd_tensor want[HD_MAX_RESULTS], size[HD_MAX_RESULTS]; } truth;

/* A sum of terms of both signs is only as exact as its terms are large: where an op is linear in every float operand, its results for the
 * operands' magnitudes; else 0. */
static void truth_size(hd_arena *arena, const instance *x, truth *t)
{
    instance y = *x;
    uint32_t linear = 0;
    bool sums = true;
    for (int i = 0; i < 4; i++) linear |= x->op->linear[i];
    results_new(arena, x, t->size, !is_move(x->op->name));
    for (int i = 0; i < x->n_in; i++) {
        if (!x->in[i].data || !hd_dtype_is_float(x->in[i].dtype)) continue;
        sums = sums && linear >> i & 1;
        y.in[i] = tensor_copy(arena, &x->in[i]);
        for (int64_t e = 0; e < hd_tensor_count(&y.in[i]); e++) hd_store_f64(y.in[i].data, y.in[i].dtype, e, fabs(get(&x->in[i], e)));
    }
    if (sums) reference_run(&y, t->size, false);
    else for (int i = 0; i < x->n_out; i++) memset(t->size[i].data, 0, hd_tensor_bytes(&t->size[i]));
}

static bool has_bf16(const instance *x)
{
    for (int i = 0; i < x->n_in; i++)
        if (x->in[i].data && x->in[i].dtype == HD_BF16) return true;
    return false;
}

static void check_accuracy(const instance *x, hd_isa isa, const hd_tensor *out, const truth *is, const char *what)
{
    tolerance t = tolerance_of(x->op->name);
    record *rec = record_of(x->op);
    for (int i = 0; i < x->n_out; i++) {
        bool is_bf16 = out[i].dtype == HD_BF16;
        double error = tensor_error(&out[i], &is->want[i], 0.05, &is->size[i]), bound = 0;
        if (is_bf16) bound = t.bf16;
        else if (hd_dtype_is_float(out[i].dtype)) bound = has_bf16(x) ? t.mixed : t.f32;
        double *worst = is_bf16 ? &rec->bf16_error : &rec->f32_error;
        *worst = fmax(*worst, error);
        if (!(error <= bound))
            fail_op(x->op, "%s%s: result %d is off by %.3g (allowed %.3g): %s", hd_isa_name(isa), what, i, error, bound, describe(x));
    }
}

/* Results that may lie over operands do: each over a copy of its own. */
static void check_alias(hd_arena *arena, hd_isa isa, const hd_kernel *k, const instance *x, const hd_tensor *first)
{
    instance y = *x;
    hd_tensor out[HD_MAX_RESULTS];
    hd_sig s = instance_sig(x);
    uint32_t taken = 0;
    results_poisoned(arena, x, out);
    for (int r = 0; r < x->n_out; r++) {
        uint32_t over = x->op->may_alias(&s, r) & ~taken;
        if (!over) continue;
        int i = __builtin_ctz(over);
        taken |= 1u << i;
        y.in[i] = tensor_copy(arena, &x->in[i]);
        out[r] = y.in[i];
    }
    if (!taken) return;
    kernel_run(arena, k, &y, out, 2, false);
    check_same_bits(x, isa, out, first, "when it lies over an operand");
}

static void check_accumulate(hd_arena *arena, hd_isa isa, const hd_kernel *k, const instance *x, const truth *is, hd_rng *r)
{
    hd_tensor out[HD_MAX_RESULTS];
    truth sum = *is;
    results_new(arena, x, out, false);
    for (int i = 0; i < x->n_out; i++) {
        tensor_fill(&out[i], HD_FILL_NORMAL, 0, r);
        sum.want[i] = tensor_as(arena, &out[i], hd_dtype_is_float(out[i].dtype) ? HD_F64 : out[i].dtype);
    }
    hd_kernel_args a = kernel_args(x, out);
    a.accumulate = true;
    if (k->supports && !k->supports(&a)) return;
    reference_run(x, sum.want, true);
    kernel_run(arena, k, x, out, 2, true);
    check_accuracy(x, isa, out, &sum, " accumulating");
}

static void check_unread(hd_arena *arena, hd_isa isa, const hd_kernel *k, const instance *x, const hd_tensor *first, hd_rng *r)
{
    hd_tensor out[HD_MAX_RESULTS];
    results_poisoned(arena, x, out);
    uint32_t keep = (uint32_t)hd_rng_below(r, 1u << x->n_out);
    for (int i = 0; i < x->n_out; i++)
        if (!(keep >> i & 1)) out[i].data = NULL;
    hd_kernel_args a = kernel_args(x, out);
    if (k->supports && !k->supports(&a)) return;
    kernel_run(arena, k, x, out, 2, false);
    check_same_bits(x, isa, out, first, "when others are not read");
}

/* A loop that is the outermost dimension of operand 0 and of every result: rows. -1 if there is none. */
static int row_loop(const instance *x, const hd_loops *l)
{
    if (!x->n_in || x->in_type[0].absent || !x->in_type[0].shape.rank || l->in[0][0].n != 1) return -1;
    int loop = l->in[0][0].loop[0];
    for (int r = 0; r < x->n_out; r++)
        if (!x->out_type[r].shape.rank || l->out[r][0].n != 1 || l->out[r][0].loop[0] != loop) return -1;
    return l->reduced >> loop & 1 ? -1 : loop;
}

/* The same rows computed in two calls: bit for bit what one call gives, whatever kernels are found for the pieces. */
static void check_chunks(hd_arena *arena, hd_isa isa, const hd_kernel *k, const instance *x, const hd_tensor *first, hd_rng *r)
{
    hd_loops l = loops_of(x);
    int loop = row_loop(x, &l);
    if (loop < 0) return;
    int64_t cut = (int64_t)hd_rng_below(r, (uint64_t)l.extent[loop] + 1);
    hd_tensor whole[HD_MAX_RESULTS];
    hd_kernel_args a = kernel_args(x, (hd_tensor *)first);
    if (hd_cpu_kernel_find(x->op->name, isa, &a) != k) return; /* another is preferred, and then compared */
    for (int i = 0; i < x->n_out; i++) whole[i] = first[i];
    for (int p = 0; p < 2; p++) {
        instance part;
        hd_error err = {0};
        hd_tensor out[HD_MAX_RESULTS], want[HD_MAX_RESULTS];
        if (instance_slice(arena, x, &l, loop, p ? cut : 0, p ? l.extent[loop] : cut, &part, &err) < 0) return; /* said by the loops test */
        results_poisoned(arena, &part, out);
        a = kernel_args(&part, out);
        const hd_kernel *mine = hd_cpu_kernel_find(x->op->name, isa, &a);
        if (!mine) {
            fail_op(x->op, "%s: no kernel takes rows of which it took more: %s", hd_isa_name(isa), describe(&part));
            return;
        }
        kernel_run(arena, mine, &part, out, 1 + p, false);
        for (int i = 0; i < x->n_out; i++)
            want[i] = tensor_slice(arena, &whole[i], &l, l.out[i], loop, p ? cut : 0, p ? l.extent[loop] : cut);
        check_same_bits(&part, isa, out, want, "when rows are computed in pieces");
    }
}

static void check_kernel(hd_arena *arena, hd_isa isa, const hd_kernel *k, const instance *x, const truth *is, hd_rng *r)
{
    hd_tensor first[HD_MAX_RESULTS], out[HD_MAX_RESULTS];
    results_poisoned(arena, x, first);
    kernel_run(arena, k, x, first, 1, false);
    check_accuracy(x, isa, first, is, "");
    for (int threads = 2; threads <= MAX_TEAM; threads++) {
        results_poisoned(arena, x, out);
        kernel_run(arena, k, x, out, threads, false);
        check_same_bits(x, isa, out, first, threads == 2 ? "on 2 threads" : "on 3 threads");
    }
    if (x->op->may_alias) check_alias(arena, isa, k, x, first);
    if (x->op->can_accumulate) check_accumulate(arena, isa, k, x, is, r);
    if (x->n_out > 1) check_unread(arena, isa, k, x, first, r);
    check_chunks(arena, isa, k, x, first, r);
    record_of(x->op)->kernels++;
}

static void check_kernels_of(hd_arena *arena, const instance *x, hd_rng *r)
{
    hd_tensor out[HD_MAX_RESULTS];
    truth is;
    results_new(arena, x, is.want, !is_move(x->op->name));
    reference_run(x, is.want, false);
    truth_size(arena, x, &is);
    results_new(arena, x, out, false);
    hd_kernel_args a = kernel_args(x, out);
    for (int isa = 0; isa <= (int)best_isa; isa++) {
        int count;
        const hd_kernel *const *all = hd_cpu_kernels((hd_isa)isa, &count);
        for (int k = 0; k < count && k < MAX_KERNELS; k++) {
            if (strcmp(all[k]->op, x->op->name) != 0 || (all[k]->supports && !all[k]->supports(&a))) continue;
            kernel_runs[isa][k]++;
            check_kernel(arena, (hd_isa)isa, all[k], x, &is, r);
        }
    }
}

/* The op and what its gradient is made of, but not the loss around it. */
static void visit_kernels(void *arg, const hd_node *n, const instance *x)
{
    loop_visit *v = arg;
    if (n->op->is_view) return;
    if (!strncmp(n->path, "node", 4) || !strncmp(n->path, "grad.node", 9)) check_kernels_of(v->arena, x, &v->rng);
}

static void check_kernels(hd_arena *arena, instance *x, uint64_t seed)
{
    net n;
    loop_visit v = {.arena = arena, .rng = hd_rng_new(hd_hash_mix(seed, 41))};
    if (net_build(&n, arena, x, seed)) net_run(&n, arena, x, visit_kernels, &v);
    hd_graph_free(n.g);
}

/* Products with packed blocks: no instance here has such weights (tests/test_blocks.c). */
static bool takes_blocks(const hd_kernel *k)
{
    hd_tensor in[2] = {{.dtype = HD_F32, .rank = 2, .dim = {1, 32}},
                       {.format = HD_PACKED, .blocks = hd_quant_by_name("Q8_0"), .rank = 2, .dim = {16, 32}}};
    hd_tensor out = {.dtype = HD_F32, .rank = 2, .dim = {1, 16}};
    hd_contract_attrs attrs = {.spec = "td,fd->tf", .dtype = HD_F32};
    hd_kernel_args a = {.in = in, .out = &out, .n_in = 2, .n_out = 1, .attrs = &attrs};
    return !strcmp(k->op, "contract") && k->supports(&a);
}

/* Kernels whose op is not in the table (measurements of the machine) are not this test's. */
static void check_all_kernels_ran(void)
{
    for (int isa = 0; isa <= (int)best_isa; isa++) {
        int count;
        const hd_kernel *const *all = hd_cpu_kernels((hd_isa)isa, &count);
        must(count <= MAX_KERNELS, "MAX_KERNELS is too small");
        for (int k = 0; k < count; k++) {
            const hd_op *op = hd_op_find(all[k]->op);
            if (op && !op->is_view && !kernel_runs[isa][k] && !takes_blocks(all[k]))
                fail_op(op, "%s: its kernel (place %d) took no instance", hd_isa_name((hd_isa)isa), k);
        }
    }
}

static void test_kernels(void **state)
{
    (void)state;
    int before = failures;
    hd_error err = {0};
    for (int n = 1; n <= MAX_TEAM; n++) must((teams[n] = hd_team_new(n, false, &err)) != NULL, err.message);
    for (int m = IN_F32; m < FLOAT_MODES; m++) {
        for_instances(3 * scale_up, (mode)m, check_kernels);
        for (int i = 0; i < hd_op_count; i++) for_instances_of(hd_ops[i], scale_up, (mode)m, scale_up > 1 ? 1e6 : 1e5, check_kernels);
    }
    for_instances_of(hd_op_find("contract"), 8 * scale_up, IN_I8, 0, check_kernels);
    for_instances_of(hd_op_find("contract"), 4 * scale_up, IN_I8, 2e6, check_kernels);
    check_all_kernels_ran();
    for (int n = 1; n <= MAX_TEAM; n++) hd_team_free(teams[n]);
    assert_int_equal(failures, before);
}

/* ---- the table ---- */

static void print_cell(double e, bool any)
{
    if (any && e > 0) printf(" %8.1e", e);
    else printf(" %8s", any ? "0" : "-");
}

static void print_table(void)
{
    int kernels = 0, runs = 0, without = 0;
    int64_t elements = 0;
    printf("%-22s %5s %5s %5s | %5s %6s %5s %8s | %6s %6s %5s | %7s %7s %8s %8s\n", "op", "typed", "wrong", "bound", "inst", "derivs",
           "kinks", "error", "pieces", "linear", "texts", "kernels", "runs", "f32", "bf16");
    for (int i = 0; i < hd_op_count; i++) {
        const record *r = &records[i];
        const hd_op *op = hd_ops[i];
        printf("%-22s %5d %5d %5d", op->name, r->typed, r->rejected, r->bounded);
        printf(" | %5d %6lld %5lld", r->instances, (long long)r->elements, (long long)r->kinks);
        print_cell(r->grad_error, r->elements > 0);
        printf(" | %6d %6d %5d | %7d %7d", r->pieces, r->linear, r->texts, r->kernels, r->runs);
        print_cell(r->f32_error, r->kernels > 0);
        print_cell(r->bf16_error, r->kernels > 0);
        printf("%s%s%s%s\n", op->is_backward ? "  backward" : op->no_gradient ? "  no gradient" : "", op->is_view ? "  view" : "",
               !r->kernels && !op->is_view ? "  reference only" : "", r->failures ? "  FAIL" : "");
        kernels += r->kernels, runs += r->runs, elements += r->elements, without += !r->kernels && !op->is_view;
    }
    printf("%d ops; %lld derivatives; %d kernel instances in %d runs up to %s; %d ops have no fast kernel; %d failures\n", hd_op_count,
           (long long)elements, kernels, runs, hd_isa_name(best_isa), without, failures);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_facets),    cmocka_unit_test(test_infer), cmocka_unit_test(test_text),
                                       cmocka_unit_test(test_gradients), cmocka_unit_test(test_loops), cmocka_unit_test(test_linear),
                                       cmocka_unit_test(test_kernels)};
    bool table = false;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--table")) table = true;
        else if (!strcmp(argv[i], "--long")) scale_up = 5;
        else must(false, "takes --table and --long");
    }
    best_isa = hd_isa_detect();
    int failed = cmocka_run_group_tests_name("ops", tests, NULL, NULL);
    if (table) print_table();
    return failed;
}
