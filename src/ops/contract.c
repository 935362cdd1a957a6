/* contract.c: (a, b) -> c, a contraction of any rank in einsum notation: matrix products of every kind, batched or not. */
#include <math.h>
#include <stdio.h>

#include "kernels/einsum.h"
#include "ops/ops.h"
#include "ops/ops_int.h"
#include "tensor/quant.h"

/* ---- infer ---- */

/* A type's shape as the parser's helpers want it. */
static hd_tensor shape_only(const hd_type *t)
{
    hd_tensor x = {.dtype = t->dtype, .rank = t->shape.rank};
    for (int d = 0; d < x.rank; d++) x.dim[d] = t->shape.dim[d];
    return x;
}

/* The symbol that bounds a label's extent, -1 if none. */
static int label_symbol(const hd_sig *s, const hd_einsum_label *l)
{
    for (int o = 0; o < 2; o++)
        if (l->dim[o] == 0 && s->in[o].shape.sym >= 0) return s->in[o].shape.sym;
    return -1;
}

static int check_symbols(const hd_sig *s, const hd_einsum *e, hd_error *err)
{
    for (int i = 0; i < e->count; i++) {
        const hd_einsum_label *l = &e->label[i];
        int sym = label_symbol(s, l);
        if (sym < 0) continue;
        for (int o = 0; o < 2; o++)
            if (l->dim[o] >= 0 && (l->dim[o] > 0 || s->in[o].shape.sym != sym))
                return hd_op_fail(s, err, "label %c is bounded by a symbol in one operand and not in operand %d", l->name, o);
        if (l->dim[2] > 0)
            return hd_op_fail(s, err, "label %c is bounded by a symbol, so it must be the result's outermost dimension", l->name);
    }
    return 0;
}

static int check_dtypes(const hd_sig *s, hd_error *err)
{
    static const char *const names[] = {"a", "b"};
    const hd_contract_attrs *at = s->attrs;
    int rc = hd_need_result_dtype(s, "dtype", at->dtype, false, err);
    if (rc) return rc;
    if (s->in[0].absent || s->in[1].absent) return hd_op_fail(s, err, "%s is missing", names[s->in[1].absent]);
    bool is_float = hd_dtype_is_float(s->in[0].dtype);
    if (is_float != hd_dtype_is_float(s->in[1].dtype))
        return hd_op_fail(s, err, "a is %s and b is %s: both must be floating-point, or both integers", hd_dtype_name(s->in[0].dtype),
                          hd_dtype_name(s->in[1].dtype));
    if (is_float && !hd_dtype_is_float(at->dtype))
        return hd_op_fail(s, err, "dtype must be floating-point for floating-point operands, is %s", hd_dtype_name(at->dtype));
    return 0;
}

/* Parses the specification and reads the labels' extents off the operands. */
static int read_spec(const hd_sig *s, hd_einsum *e, int64_t *extent, hd_error *err)
{
    const hd_contract_attrs *at = s->attrs;
    hd_tensor a = shape_only(&s->in[0]), b = shape_only(&s->in[1]);
    hd_error why = {0};
    if (!memchr(at->spec, 0, sizeof at->spec)) return hd_op_fail(s, err, "spec is not ended");
    int rc = hd_einsum_parse(e, at->spec, &why);
    if (!rc) rc = hd_einsum_extents(e, &a, &b, extent, &why);
    return rc ? hd_fail(err, rc, "%s", why.message) : 0;
}

static int infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_contract_attrs *at = s->attrs;
    hd_einsum e;
    int64_t extent[HD_EINSUM_LABELS];
    int rc = check_dtypes(s, err);
    if (!rc) rc = read_spec(s, &e, extent, err);
    if (!rc) rc = check_symbols(s, &e, err);
    if (rc) return rc;
    out[0] = (hd_type){.dtype = at->dtype, .shape = {.rank = e.rank[2], .sym = -1}};
    hd_einsum_result_dims(&e, extent, out[0].shape.dim);
    for (int i = 0; i < e.count; i++)
        if (e.label[i].dim[2] == 0) out[0].shape.sym = label_symbol(s, &e.label[i]);
    return 1;
}

/* ---- loops: one for each label; those that c does not have are summed ---- */

static void loops(const hd_sig *s, hd_loops *l)
{
    hd_einsum e;
    int64_t extent[HD_EINSUM_LABELS];
    if (read_spec(s, &e, extent, NULL)) return;
    for (int i = 0; i < e.count && i < HD_MAX_LOOPS; i++) {
        const int *dim = e.label[i].dim;
        int loop = hd_loop_new(l, extent[i], dim[2] < 0);
        for (int o = 0; o < 2; o++)
            if (dim[o] >= 0) hd_loop_in(l, o, dim[o], loop);
        if (dim[2] >= 0) hd_loop_out(l, 0, dim[2], loop);
    }
}

static void cost(const hd_sig *s, hd_cost *c)
{
    hd_einsum e;
    int64_t extent[HD_EINSUM_LABELS];
    *c = (hd_cost){.bytes = hd_cost_bytes(s)};
    if (read_spec(s, &e, extent, NULL)) return;
    bool sums = e.begin[HD_EINSUM_K] < e.begin[HD_EINSUM_GROUPS];
    c->flops = sums ? 2 : 1;
    for (int i = 0; i < e.count; i++) c->flops *= (double)extent[i];
}

/* ---- gradient ---- */

/* One operand's labels as they stand in the specification. */
typedef struct spec_parts { char a[HD_MAX_RANK + 1], b[HD_MAX_RANK + 1], c[HD_MAX_RANK + 1]; } spec_parts;

static spec_parts split_spec(const hd_einsum *e)
{
    spec_parts p = {0};
    char *to[3] = {p.a, p.b, p.c};
    for (int i = 0; i < e->count; i++)
        for (int o = 0; o < 3; o++)
            if (e->label[i].dim[o] >= 0) to[o][e->label[i].dim[o]] = e->label[i].name;
    return p;
}

/* Those labels of want that first or second has. */
static void labels_had(char *out, const char *want, const char *first, const char *second)
{
    for (; *want; want++)
        if (strchr(first, *want) || strchr(second, *want)) *out++ = *want;
    *out = 0;
}

/* Stretches x, which has the labels `have`, to operand v, which has the labels `want`: those missing were summed over. */
static hd_value stretch(hd_graph *g, hd_value x, const char *have, const char *want, hd_value v)
{
    hd_shape shape = hd_type_in(g, v)->shape;
    hd_dims_attrs at = {.rank = shape.rank};
    if (x == HD_NONE || !strcmp(have, want)) return x;
    for (int d = 0; d < shape.rank; d++) at.dim[d] = strchr(have, want[d]) ? (d == 0 && shape.sym >= 0 ? -1 : shape.dim[d]) : 1;
    x = hd_reshape(g, NULL, x, at.rank, at.dim);
    if (shape.sym >= 0 && !strchr(have, want[0]))
        return hd_graph_fail(g, HD_EUNSUPPORTED, "contract: no gradient for an operand whose bounded dimension occurs nowhere else");
    for (int d = 1; d < shape.rank; d++) at.dim[d] = shape.dim[d];
    if (shape.rank && shape.sym < 0) at.dim[0] = shape.dim[0];
    return hd_graph_node(g, "broadcast", NULL, &at, &x, 1);
}

/* dy in the dtype of the other factor, so that both are of one dtype: products of bf16 weights stay bf16 products going backward. */
static hd_value match_dtype(hd_graph *g, hd_value dy, hd_value other)
{
    hd_dtype t = hd_type_in(g, other)->dtype;
    return hd_type_in(g, dy)->dtype == t ? dy : hd_cast(g, NULL, dy, t);
}

/* The other factor and dy contracted to what this operand has. The factor with the result's outermost label goes first: then the result
 * is written in the order in which the product yields it. */
static hd_value grad(hd_graph *g, const hd_node *n, const hd_value *dy, int i)
{
    const hd_contract_attrs *at = n->attrs;
    hd_einsum e;
    hd_value v = n->in[i], other = n->in[1 - i], d;
    if (dy[0] == HD_NONE || !hd_dtype_is_float(hd_type_in(g, v)->dtype)) return HD_NONE;
    if (hd_einsum_parse(&e, at->spec, &g->err)) return HD_NONE;
    spec_parts p = split_spec(&e);
    const char *mine = i ? p.b : p.a, *theirs = i ? p.a : p.b;
    char have[HD_MAX_RANK + 1], spec[64];
    labels_had(have, mine, p.c, theirs);
    hd_dtype dtype = hd_grad_dtype(g, v);
    d = match_dtype(g, dy[0], other);
    bool dy_first = strchr(p.c, have[0]) != NULL;
    snprintf(spec, sizeof spec, "%s,%s->%s", dy_first ? p.c : theirs, dy_first ? theirs : p.c, have);
    hd_value dx = dy_first ? hd_contract(g, NULL, spec, d, other, dtype) : hd_contract(g, NULL, spec, other, d, dtype);
    return stretch(g, dx, have, mine, v);
}

/* ---- reference ---- */

/* Elements between neighbours of each label in each of a, b, c; 0 where the label does not occur. */
static void label_strides(const hd_einsum *e, const hd_tensor *const t[3], int64_t stride[HD_EINSUM_LABELS][3])
{
    for (int i = 0; i < e->count; i++)
        for (int o = 0; o < 3; o++) {
            stride[i][o] = e->label[i].dim[o] < 0 ? 0 : 1;
            for (int d = e->label[i].dim[o] + 1; stride[i][o] && d < t[o]->rank; d++) stride[i][o] *= t[o]->dim[d];
        }
}

/* Where the linear index i over labels [from, to) lies in each of a, b, c; added to at[]. */
static void locate(const int64_t *extent, int64_t stride[HD_EINSUM_LABELS][3], int from, int to, int64_t i, int64_t at[3])
{
    for (int l = to - 1; l >= from; l--) {
        for (int o = 0; o < 3; o++) at[o] += i % extent[l] * stride[l][o];
        i /= extent[l];
    }
}

static int64_t extents_product(const int64_t *extent, int from, int to)
{
    int64_t n = 1;
    for (int l = from; l < to; l++) n *= extent[l];
    return n;
}

/* Reads an operand's elements; of one in blocks, a block at a time. */
typedef struct reader { const hd_kernel_args *a; int operand; int64_t block; float numbers[256]; } reader;

static double read_element(reader *r, int64_t i)
{
    const hd_tensor *t = &r->a->in[r->operand];
    if (!t->blocks) return hd_get(r->a, r->operand, i);
    int64_t block = i / t->blocks->block;
    if (block != r->block) t->blocks->dequantize((const unsigned char *)t->data + block * t->blocks->bytes, 1, r->numbers);
    r->block = block;
    return r->numbers[i % t->blocks->block];
}

/* An operand in blocks must be HD_PLAIN. */
static void reference(const hd_kernel_args *a)
{
    const hd_contract_attrs *at = a->attrs;
    hd_einsum e;
    int64_t extent[HD_EINSUM_LABELS], stride[HD_EINSUM_LABELS][3];
    if (a->tid || !hd_wants(a, 0)) return;
    if (hd_einsum_parse(&e, at->spec, NULL) || hd_einsum_extents(&e, &a->in[0], &a->in[1], extent, NULL)) return;
    label_strides(&e, (const hd_tensor *const[]){&a->in[0], &a->in[1], &a->out[0]}, stride);
    int k0 = e.begin[HD_EINSUM_K];
    reader x = {.a = a, .operand = 0, .block = -1}, y = {.a = a, .operand = 1, .block = -1};
    int64_t elements = extents_product(extent, 0, k0), terms = extents_product(extent, k0, e.count);
    for (int64_t i = 0; i < elements; i++) {
        int64_t base[3] = {0};
        double sum = 0;
        locate(extent, stride, 0, k0, i, base);
        for (int64_t k = 0; k < terms; k++) {
            int64_t p[3] = {base[0], base[1], base[2]};
            locate(extent, stride, k0, e.count, k, p);
            sum += read_element(&x, p[0]) * read_element(&y, p[1]);
        }
        hd_put(a, 0, base[2], sum);
    }
}

/* ---- sample ---- */

static void sample(hd_rng *r, hd_sample *s)
{
    static const char *const specs[] = {"td,hed->the", "td,od->to", "td,df->tf", "the,ohe->to", "bhqe,bhke->bhqk",
                                        "bhqk,bhke->bhqe", "ab,b->a", "a,a->", "ij,kj->ki", "bij,bjk->bik", "a,b->ab",
                                        "ab,ab->ab", "abc,cbd->da", "tx,td->d",
                                        "abcd,dcba->", "nij,i->nj", "ab,cb->c", "a,b->a"};
    hd_contract_attrs *at = (hd_contract_attrs *)s->attrs;
    hd_einsum e;
    int64_t extent[HD_EINSUM_LABELS], dims[HD_MAX_RANK];
    snprintf(at->spec, sizeof at->spec, "%s", specs[hd_pick(r, 0, sizeof specs / sizeof specs[0] - 1)]);
    at->dtype = HD_F64;
    hd_einsum_parse(&e, at->spec, NULL);
    for (int i = 0; i < e.count; i++) extent[i] = hd_pick(r, 1, e.count > 3 ? 5 : 13);
    for (int o = 0; o < 2; o++) {
        for (int i = 0; i < e.count; i++)
            if (e.label[i].dim[o] >= 0) dims[e.label[i].dim[o]] = extent[i];
        hd_sample_set(s, o, HD_F64, e.rank[o], dims, HD_FILL_NORMAL, 0);
    }
}

static const hd_attr attrs[] = {{"spec", HD_ATTR_STRING, offsetof(hd_contract_attrs, spec), NAN},
                                {"dtype", HD_ATTR_DTYPE, offsetof(hd_contract_attrs, dtype), NAN},
                                {0}};

const hd_op hd_op_contract = {
    .name = "contract",
    .summary = "(a, b) -> c, products summed as the einsum specification says: \"td,hed->the\"",
    .min_in = 2, .max_in = 2,
    .attrs_size = sizeof(hd_contract_attrs),
    .attrs = attrs,
    .linear = {1, 2},
    .can_accumulate = true,
    .infer = infer,
    .loops = loops,
    .cost = cost,
    .grad = grad,
    .reference = reference,
    .sample = sample,
};
