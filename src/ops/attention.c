/* attention.c: scaled dot-product attention over packed tokens with grouped heads, and its gradient.
 *
 * With s[i,h,j] = scale * q[i,h] . k[j,h'] over the keys that query i sees (h' = h / (Hq/Hk)):
 *   lse[i,h] = log sum_j exp(s), p = exp(s - lse), out[i,h] = sum_j p v[j,h'].
 * With softcap > 0 its place is taken by softcap * tanh(s / softcap), and ds below by ds * (1 - tanh^2).
 * Gradient (Dao et al. 2022, appendix B): dv[j,h'] = sum p dout[i,h]; ds = p * (dout[i,h] . v[j,h'] - dout[i,h] . out[i,h]) * scale;
 *   dq[i,h] = sum_j ds k[j,h']; dk[j,h'] = sum_i,h ds q[i,h]. */
#include "ops/facets.h"

enum { ATT_Q, ATT_K, ATT_V, ATT_QPOS, ATT_KPOS, ATT_QSEG, ATT_KSEG, ATT_N };
enum { GRAD_DOUT, GRAD_Q, GRAD_K, GRAD_V, GRAD_OUT, GRAD_LSE, GRAD_QPOS, GRAD_KPOS, GRAD_QSEG, GRAD_KSEG, GRAD_N };

static const hd_attr attention_attrs[] = {
    {"scale", HD_ATTR_DOUBLE, offsetof(hd_attention_attrs, scale), NAN},
    {"causal", HD_ATTR_BOOL, offsetof(hd_attention_attrs, causal), 0},
    {"window", HD_ATTR_INT64, offsetof(hd_attention_attrs, window), 0},
    {"max_keys", HD_ATTR_INT64, offsetof(hd_attention_attrs, max_keys), 0},
    {"share", HD_ATTR_DOUBLE, offsetof(hd_attention_attrs, share), 0},
    {"block", HD_ATTR_INT64, offsetof(hd_attention_attrs, block), 0},
    {"softcap", HD_ATTR_DOUBLE, offsetof(hd_attention_attrs, softcap), 0},
    {"dtype", HD_ATTR_DTYPE, offsetof(hd_attention_attrs, dtype), NAN},
    {0},
};

/* ---- shapes ---- */

/* i32, one for each row of operand `rows`. */
static int check_ids(const hd_sig *s, int i, int rows, const char *name, hd_error *err)
{
    const hd_shape *t = &s->in[i].shape, *x = &s->in[rows].shape;
    if (s->in[i].dtype == HD_I32 && t->rank == 1 && t->dim[0] == x->dim[0] && t->sym == x->sym) return 0;
    return hd_op_fail(s, err, "%s must be i32[%lld], one for each row of %s, is %s", name, (long long)x->dim[0], HD_TYPE_TEXT(&s->in[rows]),
                      HD_TYPE_TEXT(&s->in[i]));
}

/* q, k, v at operands first.., ids at operands ids.. */
static int check_operands(const hd_sig *s, int first, int ids, hd_error *err)
{
    static const char *const names[] = {"q", "k", "v"}, *const id_names[] = {"qpos", "kpos", "qseg", "kseg"};
    const hd_attention_attrs *p = s->attrs;
    for (int i = 0; i < 3; i++)
        if (hd_need_float(s, first + i, names[i], err) || hd_need_rank(s, first + i, names[i], 3, 3, err)) return HD_EINVAL;
    const hd_shape *q = &s->in[first].shape, *k = &s->in[first + 1].shape, *v = &s->in[first + 2].shape;
    bool grouped = k->dim[1] ? q->dim[1] % k->dim[1] == 0 : q->dim[1] == 0; /* a shard may have no heads */
    if (k->dim[2] != q->dim[2] || !grouped)
        return hd_op_fail(s, err, "k must be [Tk, Hk, %lld] with Hk dividing the %lld heads of q, is %s", (long long)q->dim[2], (long long)q->dim[1],
                          HD_TYPE_TEXT(&s->in[first + 1]));
    if (v->dim[0] != k->dim[0] || v->sym != k->sym || v->dim[1] != k->dim[1])
        return hd_op_fail(s, err, "v must have the rows and heads of k %s, is %s", HD_TYPE_TEXT(&s->in[first + 1]), HD_TYPE_TEXT(&s->in[first + 2]));
    for (int i = 0; i < 4; i++)
        if (check_ids(s, ids + i, first + i % 2, id_names[i], err)) return HD_EINVAL;
    if (!(p->softcap >= 0) || !isfinite(p->softcap)) return hd_op_fail(s, err, "softcap must be finite and not negative");
    if (!(p->share >= 0 && p->share <= 1)) return hd_op_fail(s, err, "share must be from 0 to 1");
    if (p->window < 0 || p->max_keys < 0 || p->block < 0) return hd_op_fail(s, err, "window, max_keys and block must not be negative");
    return hd_need_result_dtype(s, "dtype", p->dtype, true, err);
}

static int attention_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_attention_attrs *p = s->attrs;
    if (check_operands(s, ATT_Q, ATT_QPOS, err)) return HD_EINVAL;
    out[0] = hd_type_shaped(p->dtype, &s->in[ATT_Q].shape);
    out[0].shape.dim[2] = s->in[ATT_V].shape.dim[2];
    hd_shape lse = hd_shape_drop_last(&s->in[ATT_Q].shape);
    out[1] = hd_type_shaped(hd_stat_dtype(s->in[ATT_Q].dtype), &lse);
    return 2;
}

static int grad_infer(const hd_sig *s, hd_type *out, hd_error *err)
{
    const hd_attention_attrs *p = s->attrs;
    if (check_operands(s, GRAD_Q, GRAD_QPOS, err)) return HD_EINVAL;
    hd_shape y = s->in[GRAD_Q].shape, lse = hd_shape_drop_last(&y);
    y.dim[2] = s->in[GRAD_V].shape.dim[2];
    if (hd_need_shape(s, GRAD_DOUT, "dout", &y, err) || hd_need_shape(s, GRAD_OUT, "out", &y, err)) return HD_EINVAL;
    if (hd_need_shape(s, GRAD_LSE, "lse", &lse, err)) return HD_EINVAL;
    for (int i = 0; i < 3; i++) out[i] = hd_type_shaped(p->dtype, &s->in[GRAD_Q + i].shape);
    return 3;
}

/* ---- loops: blocks, queries of a block, key heads, the query heads that share one, and keys of a block. Features are summed inside a nonlinear
 * function: whole. Keys are whole in the forward (splitting them needs the softmax merge), summed in the gradient, where lse is known. ---- */

typedef struct att_loops { int block, tq, head, group, tk; } att_loops; /* block < 0: rows lie in no blocks; tk < 0: keys have no loop */

static att_loops loops_new(const hd_sig *s, hd_loops *l, int q, bool grad)
{
    const hd_attention_attrs *p = s->attrs;
    int64_t tq = s->in[q].shape.dim[0], tk = s->in[q + 1].shape.dim[0], heads = s->in[q + 1].shape.dim[1];
    int64_t n = p->block > 0 && tk % p->block == 0 ? tk / p->block : 0; /* blocks: block keys each, and an equal share of the queries */
    bool blocks = n > 0 && tq % n == 0 && s->in[q].shape.sym < 0 && s->in[q + 1].shape.sym < 0;
    att_loops r = {.block = -1, .tk = -1};
    if (blocks) r.block = hd_loop_new(l, n, false);
    r.tq = hd_loop_new(l, blocks ? tq / n : tq, grad);
    r.head = hd_loop_new(l, heads, false);
    r.group = hd_loop_new(l, heads ? s->in[q].shape.dim[1] / heads : 1, grad);
    if (grad || blocks) r.tk = hd_loop_new(l, blocks ? p->block : tk, grad);
    if (!grad && r.tk >= 0) l->whole |= 1u << r.tk;
    return r;
}

/* One row for each query or key. */
static void map_row(hd_dim_map *map, const att_loops *r, int loop)
{
    if (loop < 0) return;
    map->n = 0;
    if (r->block >= 0) map->loop[map->n++] = (int8_t)r->block;
    map->loop[map->n++] = (int8_t)loop;
}

static void map_query(hd_dim_map *map, const att_loops *r)
{
    map_row(&map[0], r, r->tq);
    map[1] = (hd_dim_map){2, {(int8_t)r->head, (int8_t)r->group}};
}

static void map_key(hd_dim_map *map, const att_loops *r)
{
    map_row(&map[0], r, r->tk);
    map[1] = (hd_dim_map){1, {(int8_t)r->head}};
}

/* Positions and segments, at operands ids.. */
static void map_ids(hd_loops *l, const att_loops *r, int ids)
{
    for (int i = 0; i < 4; i++) map_row(&l->in[ids + i][0], r, i % 2 ? r->tk : r->tq);
}

static void attention_loops(const hd_sig *s, hd_loops *l)
{
    att_loops r = loops_new(s, l, ATT_Q, false);
    map_query(l->in[ATT_Q], &r);
    map_key(l->in[ATT_K], &r);
    map_key(l->in[ATT_V], &r);
    map_ids(l, &r, ATT_QPOS);
    map_query(l->out[0], &r);
    map_query(l->out[1], &r);
}

/* Queries, the heads of a group, and keys are each summed into the gradients that don't run over them. */
static void grad_loops(const hd_sig *s, hd_loops *l)
{
    att_loops r = loops_new(s, l, GRAD_Q, true);
    static const int by_query[] = {GRAD_DOUT, GRAD_Q, GRAD_OUT, GRAD_LSE};
    for (int i = 0; i < 4; i++) map_query(l->in[by_query[i]], &r);
    map_key(l->in[GRAD_K], &r);
    map_key(l->in[GRAD_V], &r);
    map_ids(l, &r, GRAD_QPOS);
    map_query(l->out[0], &r);
    map_key(l->out[1], &r);
    map_key(l->out[2], &r);
}

/* ---- cost ---- */

/* Sum of min(i + 1, window) over positions i in [begin, end). */
static double seen_within(double begin, double end, double window)
{
    double short_end = fmin(fmax(window, begin), end); /* positions before it see all that came before them */
    return (short_end - begin) * (begin + short_end + 1) / 2 + (end - short_end) * window;
}

/* (query, key) pairs that see each other. What segments and positions will be is data; assumed: sequences of `keys` = max_keys tokens (all of
 * the keys if 0), filled by the queries one after the other, the last of them ending where the keys end. */
static double pairs_seen(const hd_attention_attrs *p, double queries, double all_keys)
{
    if (p->share > 0) return p->share * queries * all_keys;
    double keys = p->max_keys > 0 && (double)p->max_keys < all_keys ? (double)p->max_keys : all_keys;
    double window = p->window > 0 && (double)p->window < keys ? (double)p->window : keys;
    if (keys <= 0 || queries <= 0) return 0;
    double block = fmin(queries, keys), blocks = queries / block; /* queries of one sequence, and sequences */
    if (p->causal) return blocks * seen_within(keys - block, keys, window);
    if (p->window <= 0) return queries * keys;
    double past = seen_within(keys - block, keys, window), first = keys - block;
    return blocks * (past + block * (keys - first - 1) - block * (block - 1) / 2); /* and all keys ahead */
}

/* Products only: s and out in the forward, s, dp, dv, dq, dk in the gradient. */
static double pair_flops(const hd_sig *s, int q, double qk_products, double v_products)
{
    const int64_t *dq = s->in[q].shape.dim;
    double e = (double)dq[2], f = (double)s->in[q + 2].shape.dim[2];
    return 2 * pairs_seen(s->attrs, (double)dq[0], (double)s->in[q + 1].shape.dim[0]) * (double)dq[1] * (qk_products * e + v_products * f);
}

static void attention_cost(const hd_sig *s, hd_cost *c)
{
    c->flops = pair_flops(s, ATT_Q, 1, 1);
    c->bytes = hd_cost_bytes(s);
}

static void grad_cost(const hd_sig *s, hd_cost *c)
{
    c->flops = pair_flops(s, GRAD_Q, 3, 2);
    c->bytes = hd_cost_bytes(s);
}

/* ---- gradient ---- */

static hd_value attention_grad(hd_graph *g, const hd_node *n, const hd_value *dy, int operand)
{
    if (operand > ATT_V) return HD_NONE;
    if (dy[1] != HD_NONE) return hd_grad_refuse(g, n, "lse");
    if (dy[0] == HD_NONE) return HD_NONE;
    const hd_value *in = n->in;
    hd_value grad_in[GRAD_N] = {dy[0], in[ATT_Q], in[ATT_K], in[ATT_V], n->out[0], n->out[1], in[ATT_QPOS], in[ATT_KPOS], in[ATT_QSEG], in[ATT_KSEG]};
    hd_attention_attrs p = *(const hd_attention_attrs *)n->attrs;
    p.dtype = hd_type_in(g, in[ATT_Q])->dtype;
    hd_value node = hd_graph_node(g, "attention_grad", "grad", &p, grad_in, GRAD_N);
    return node == HD_NONE ? HD_NONE : hd_grad_fit(g, hd_graph_result(g, node, operand), in[operand]);
}

/* ---- the definition ---- */

/* Where the operands that forward and gradient share stand. */
typedef struct att_view {
    const hd_kernel_args *a;
    const hd_attention_attrs *p;
    int q, qpos;                 /* operands; k, v and kpos, qseg, kseg follow them */
    int64_t tq, tk, hq, hk, group, e, f;
} att_view;

static att_view view_of(const hd_kernel_args *a, int q, int qpos)
{
    const hd_tensor *tq = &a->in[q], *tk = &a->in[q + 1];
    att_view w = {.a = a, .p = a->attrs, .q = q, .qpos = qpos, .tq = tq->dim[0], .tk = tk->dim[0], .hq = tq->dim[1], .e = tq->dim[2]};
    w.hk = tk->dim[1];
    w.group = w.hk ? w.hq / w.hk : 0;
    w.f = a->in[q + 2].dim[2];
    return w;
}

static int64_t id_at(const att_view *w, int which, int64_t i)
{
    const hd_tensor *t = &w->a->in[w->qpos + which];
    return hd_load_i64(t->data, t->dtype, i);
}

/* Whether query i sees key j. */
static bool sees(const att_view *w, int64_t i, int64_t j)
{
    int64_t qpos = id_at(w, 0, i), kpos = id_at(w, 1, j), qseg = id_at(w, 2, i);
    if (qseg < 0 || qseg != id_at(w, 3, j)) return false;
    if (w->p->causal && kpos > qpos) return false;
    return w->p->window <= 0 || qpos - kpos < w->p->window;
}

/* First element of query row i, head h in a [Tq, Hq, size] tensor; of the key row that it reads in a [Tk, Hk, size] one. */
static int64_t at_query(const att_view *w, int64_t i, int64_t h, int64_t size) { return (i * w->hq + h) * size; }
static int64_t at_key(const att_view *w, int64_t j, int64_t h, int64_t size) { return (j * w->hk + h / w->group) * size; }

static double dot(const hd_kernel_args *a, int x, int64_t x_at, int y, int64_t y_at, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += hd_get(a, x, x_at + i) * hd_get(a, y, y_at + i);
    return sum;
}

static double score(const att_view *w, int64_t i, int64_t h, int64_t j)
{
    double x = w->p->scale * dot(w->a, w->q, at_query(w, i, h, w->e), w->q + 1, at_key(w, j, h, w->e), w->e), cap = w->p->softcap;
    return cap > 0 ? cap * tanh(x / cap) : x;
}

static double log_sum_exp(const att_view *w, int64_t i, int64_t h)
{
    double max = -INFINITY, sum = 0;
    for (int64_t j = 0; j < w->tk; j++)
        if (sees(w, i, j)) max = fmax(max, score(w, i, h, j));
    for (int64_t j = 0; j < w->tk; j++)
        if (sees(w, i, j)) sum += exp(score(w, i, h, j) - max);
    return sum > 0 ? max + log(sum) : isnan(sum) ? NAN : -INFINITY;
}

/* Sums run over a chunk of features at a time, so that each score is computed once a chunk and not once a feature. */
enum { CHUNK = 64 };

static void add_row(double *sum, double weight, const hd_kernel_args *a, int operand, int64_t at, int64_t n)
{
    for (int64_t c = 0; c < n; c++) sum[c] += weight * hd_get(a, operand, at + c);
}

static void put_row(const hd_kernel_args *a, int result, int64_t at, const double *sum, int64_t n)
{
    for (int64_t c = 0; c < n; c++) hd_put(a, result, at + c, sum[c]);
}

static void forward_row(const att_view *w, int64_t i, int64_t h)
{
    double lse = log_sum_exp(w, i, h);
    hd_put(w->a, 1, i * w->hq + h, lse);
    for (int64_t c = 0; c < w->f; c += CHUNK) {
        int64_t n = w->f - c < CHUNK ? w->f - c : CHUNK;
        double sum[CHUNK] = {0};
        for (int64_t j = 0; j < w->tk; j++)
            if (sees(w, i, j)) add_row(sum, exp(score(w, i, h, j) - lse), w->a, w->q + 2, at_key(w, j, h, w->f) + c, n);
        put_row(w->a, 0, at_query(w, i, h, w->f) + c, sum, n);
    }
}

static void attention_reference(const hd_kernel_args *a)
{
    if (a->tid) return;
    att_view w = view_of(a, ATT_Q, ATT_QPOS);
    for (int64_t i = 0; i < w.tq; i++)
        for (int64_t h = 0; h < w.hq; h++) forward_row(&w, i, h);
}

/* p and ds of one (query, head, key); both 0 where it isn't seen. */
typedef struct att_pair { double p, ds; } att_pair;

static att_pair pair_of(const att_view *w, int64_t i, int64_t h, int64_t j)
{
    att_pair r = {0};
    if (!sees(w, i, j)) return r;
    int64_t y = at_query(w, i, h, w->f);
    double dp = dot(w->a, GRAD_DOUT, y, GRAD_V, at_key(w, j, h, w->f), w->f), delta = dot(w->a, GRAD_DOUT, y, GRAD_OUT, y, w->f);
    double x = score(w, i, h, j), capped = w->p->softcap > 0 ? x / w->p->softcap : 0;
    r.p = exp(x - hd_get(w->a, GRAD_LSE, i * w->hq + h));
    r.ds = r.p * (dp - delta) * w->p->scale * (1 - capped * capped);
    return r;
}

static void grad_query_row(const att_view *w, int64_t i, int64_t h)
{
    for (int64_t c = 0; c < w->e; c += CHUNK) {
        int64_t n = w->e - c < CHUNK ? w->e - c : CHUNK;
        double sum[CHUNK] = {0};
        for (int64_t j = 0; j < w->tk; j++)
            if (sees(w, i, j)) add_row(sum, pair_of(w, i, h, j).ds, w->a, GRAD_K, at_key(w, j, h, w->e) + c, n);
        put_row(w->a, 0, at_query(w, i, h, w->e) + c, sum, n);
    }
}

/* Row j, key head hk of dk (result 1, weights ds on q) or dv (result 2, weights p on dout). */
static void grad_key_row(const att_view *w, int result, int64_t j, int64_t hk)
{
    int64_t size = result == 1 ? w->e : w->f;
    for (int64_t c = 0; c < size; c += CHUNK) {
        int64_t n = size - c < CHUNK ? size - c : CHUNK;
        double sum[CHUNK] = {0};
        for (int64_t i = 0; i < w->tq; i++) {
            if (!sees(w, i, j)) continue;
            for (int64_t h = hk * w->group; h < (hk + 1) * w->group; h++) {
                att_pair pair = pair_of(w, i, h, j);
                add_row(sum, result == 1 ? pair.ds : pair.p, w->a, result == 1 ? GRAD_Q : GRAD_DOUT, at_query(w, i, h, size) + c, n);
            }
        }
        put_row(w->a, result, (j * w->hk + hk) * size + c, sum, n);
    }
}

static void grad_reference(const hd_kernel_args *a)
{
    if (a->tid) return;
    att_view w = view_of(a, GRAD_Q, GRAD_QPOS);
    if (hd_wants(a, 0))
        for (int64_t i = 0; i < w.tq; i++)
            for (int64_t h = 0; h < w.hq; h++) grad_query_row(&w, i, h);
    for (int result = 1; result < 3; result++)
        if (hd_wants(a, result))
            for (int64_t j = 0; j < w.tk; j++)
                for (int64_t hk = 0; hk < w.hk; hk++) grad_key_row(&w, result, j, hk);
}

static void attention_sample(hd_rng *r, hd_sample *s)
{
    hd_attention_attrs *p = (hd_attention_attrs *)s->attrs;
    int64_t tq = hd_pick(r, 1, 9), tk = hd_coin(r) ? tq : hd_pick(r, 1, 11), hk = hd_pick(r, 1, 2), e = hd_pick(r, 1, 5), f = hd_pick(r, 1, 5);
    *p = (hd_attention_attrs){.scale = 1 / sqrt((double)e), .dtype = HD_F64};
    p->causal = hd_coin(r);
    p->window = hd_coin(r) ? 0 : hd_pick(r, 1, 5);
    p->softcap = hd_coin(r) ? 0 : 1.25;
    hd_sample_set(s, ATT_Q, HD_F64, 3, (int64_t[]){tq, hk * hd_pick(r, 1, 3), e}, HD_FILL_NORMAL, 0);
    hd_sample_set(s, ATT_K, HD_F64, 3, (int64_t[]){tk, hk, e}, HD_FILL_NORMAL, 0);
    hd_sample_set(s, ATT_V, HD_F64, 3, (int64_t[]){tk, hk, f}, HD_FILL_NORMAL, 0);
    hd_fill segments = hd_coin(r) ? HD_FILL_SEGMENTS : HD_FILL_CONSTANT;
    for (int i = 0; i < 4; i++) hd_sample_set(s, ATT_QPOS + i, HD_I32, 1, i % 2 ? &tk : &tq, i < 2 ? HD_FILL_RAMP : segments, 0);
}

const hd_op hd_op_attention = {
    .name = "attention",
    .summary = "(q[Tq, Hq, E], k[Tk, Hk, E], v[Tk, Hk, F], qpos, kpos, qseg, kseg) -> (out[Tq, Hq, F], lse[Tq, Hq])",
    .min_in = ATT_N, .max_in = ATT_N,
    .attrs_size = sizeof(hd_attention_attrs), .attrs = attention_attrs,
    .linear = {1 << ATT_V},
    .infer = attention_infer, .loops = attention_loops, .cost = attention_cost, .grad = attention_grad, .reference = attention_reference,
    .sample = attention_sample,
};
const hd_op hd_op_attention_grad = {
    .name = "attention_grad",
    .summary = "(dout, q, k, v, out, lse, qpos, kpos, qseg, kseg) -> (dq, dk, dv)",
    .min_in = GRAD_N, .max_in = GRAD_N,
    .attrs_size = sizeof(hd_attention_attrs), .attrs = attention_attrs,
    .linear = {1 << GRAD_DOUT}, .no_gradient = true, .is_backward = true,
    .infer = grad_infer, .loops = grad_loops, .cost = grad_cost, .reference = grad_reference,
};
