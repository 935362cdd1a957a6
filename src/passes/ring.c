/* ring.c: attention over tokens that are cut over a mesh axis, as a ring (Liu et al. 2023): each rank keeps its queries, and the blocks of keys and
 * values go round, from each rank to the one before it.
 *
 * In step s a rank has the block of the rank s behind it (a layout shifted by s). Step s + 1's block is under way meanwhile: its permute stands
 * before the attention of step s. Forward merges the steps' results (attention_merge). In backward keys and values go round once more; with out and lse
 * of all keys each step's gradients are addends of the whole ones. dQ is added up where it is; dK and dV travel with their block, and the last permute
 * brings them home, where those of the rank's own queries have waited: (n - 1) blocks are sent of each, as by a gather and a reduce-scatter, but two
 * blocks at a time is all that is held. Positions and segments go round once for all layers of a chunk.
 *
 * The axes other than the ring's are cut as they would be without it. */
#include <math.h>

#include "passes/partition_int.h"

enum { Q, K, V, QPOS, KPOS, QSEG, KSEG, FORWARD_IN };                                  /* of attention */
enum { G_DOUT, G_Q, G_K, G_V, G_OUT, G_LSE, G_QPOS, G_KPOS, G_QSEG, G_KSEG, GRAD_IN }; /* of attention_grad */
enum { BLOCK_K, BLOCK_V, BLOCK_POS, BLOCK_SEG, BLOCK_N };                              /* what goes round */

/* A value that went round already. */
struct hd_ring_block { hd_value home, value; int shift, chunk; hd_phase phase; struct hd_ring_block *next; };

typedef struct ring {
    hd_part *p;
    hd_node *n;
    int axis, size;
    hd_layout in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS];
} ring;

/* ---- whether it is one ---- */

static bool is_cut(const hd_part *p, const hd_node *n, int operand, int axis)
{
    for (const hd_held *h = p->value[n->in[operand]].held; h; h = h->next) {
        const hd_dim_layout *d = &h->layout.dim[0];
        if (hd_part_usable(p, n->in[operand], h, n->phase, n->chunk) && d->n && d->axis[d->n - 1] == axis) return true;
    }
    return false;
}

/* The axis over which n's tokens are cut, and which is to be gone round; -1: none. */
static int find_axis(const hd_part *p, const hd_node *n)
{
    bool grad = !strcmp(n->op->name, "attention_grad");
    if (!grad && strcmp(n->op->name, "attention")) return -1;
    int q = grad ? G_Q : Q;
    if (p->value[n->in[q]].whole.dim[0] != p->value[n->in[q + 1]].whole.dim[0]) return -1; /* queries of one part of the sequence, keys of another */
    for (int i = 0; i < p->n_axes; i++) {
        int a = p->axis[i];
        if (p->g->ring >> a & 1 && p->mesh->axis[a].size <= INT16_MAX && is_cut(p, n, q, a) && is_cut(p, n, q + 1, a)) return a;
    }
    return -1;
}

/* Rows are cut over the axis, behind what else cuts them, and nothing else is. */
static void cut_rows(const ring *r, hd_layout *l, int rank)
{
    for (int d = 0; d < rank; d++) {
        hd_dim_layout *x = &l->dim[d], kept = {0};
        for (int k = 0; k < x->n; k++) {
            if (x->axis[k] == r->axis) continue;
            kept.axis[kept.n] = x->axis[k];
            kept.unit[kept.n++] = x->unit[k];
        }
        *x = kept;
    }
    l->partial &= ~(1u << r->axis);
    if (l->dim[0].n == HD_MAX_SPLITS) {
        hd_fail(&r->p->g->err, HD_EUNSUPPORTED, "%s: tokens are cut over more than %d axes", r->n->path, HD_MAX_SPLITS);
        return;
    }
    l->dim[0].unit[l->dim[0].n] = 1;
    l->dim[0].axis[l->dim[0].n++] = (int8_t)r->axis;
}

/* As it would be on a mesh whose axis had one rank: what is sent over it costs the same however the rest is cut. */
static void choose_others(const ring *r, hd_strategy *s)
{
    hd_mesh mesh = *r->p->mesh;
    hd_part others = *r->p;
    others.mesh = &mesh;
    others.n_axes = 0;
    mesh.axis[r->axis].size = 1;
    for (int i = 0; i < r->p->n_axes; i++)
        if (r->p->axis[i] != r->axis) others.axis[others.n_axes++] = r->p->axis[i];
    hd_part_choose(&others, r->n, s);
}

static void find_layouts(ring *r)
{
    hd_strategy s;
    choose_others(r, &s);
    for (int k = 0; k < r->n->n_in; k++) cut_rows(r, &s.in[k], r->p->value[r->n->in[k]].whole.rank), r->in[k] = s.in[k];
    for (int k = 0; k < r->n->n_out; k++) cut_rows(r, &s.out[k], r->p->value[r->n->out[k]].whole.rank), r->out[k] = s.out[k];
}

/* ---- nodes ---- */

static void build_for(const ring *r)
{
    hd_graph *g = r->p->g;
    g->scope = "";
    g->phase = r->n->phase;
    g->chunk = r->n->chunk;
    g->slice = r->n->slice;
    g->origin = r->n->origin;
}

static const char *name_of(const ring *r, const char *what, int step)
{
    const char *name = hd_arena_printf(&r->p->g->arena, "%s.%s%d", r->n->path, what, step);
    if (!name) hd_fail_memory(&r->p->g->err, 64, "partitioning");
    return name ? name : "";
}

static hd_value node(const ring *r, const char *op, const char *what, int step, const void *attrs, const hd_value *in, int n_in)
{
    if (r->p->g->err.code) return HD_NONE;
    build_for(r);
    return hd_graph_node(r->p->g, op, name_of(r, what, step), attrs, in, n_in);
}

static void lay(const ring *r, hd_value x, hd_layout l, int shift, const hd_shape *whole)
{
    l.dim[0].shift[l.dim[0].n - 1] = (int16_t)shift;
    hd_part_set_layout(r->p, x, &l, whole);
}

/* The blocks one rank on: x, in a layout shifted by shift - 1, becomes one shifted by shift. */
static hd_value pass_on(const ring *r, hd_value x, const char *path, int shift)
{
    if (r->p->g->err.code) return HD_NONE;
    hd_convert_step s = {.op = "permute", .axes = {(int8_t)r->axis}, .n_axes = 1, .after = *r->p->g->values[x].layout};
    s.after.dim[0].shift[s.after.dim[0].n - 1] = (int16_t)(shift % r->size);
    return hd_part_emit(r->p, x, path, &s, r->n);
}

/* As pass_on, for what all layers read: made once. */
static hd_value pass_on_once(const ring *r, hd_value x, hd_value home, const char *path, int shift)
{
    hd_part *p = r->p;
    for (const struct hd_ring_block *b = p->ring; b; b = b->next)
        if (b->home == home && b->shift == shift && b->chunk == r->n->chunk && b->phase <= r->n->phase) return b->value;
    hd_value y = pass_on(r, x, path, shift);
    struct hd_ring_block *b = hd_arena_alloc(&p->g->arena, sizeof *b);
    if (!b) return hd_fail_memory(&p->g->err, sizeof *b, "partitioning"), HD_NONE;
    *b = (struct hd_ring_block){home, y, shift, r->n->chunk, r->n->phase, p->ring};
    p->ring = b;
    return y;
}

static hd_value add(const ring *r, const char *what, int step, hd_value a, hd_value b)
{
    hd_graph *g = r->p->g;
    if (a == HD_NONE || b == HD_NONE) return a == HD_NONE ? b : a;
    hd_ew_attrs at = {.dtype = g->values[a].type.dtype};
    const hd_layout *l = g->values[a].layout;
    hd_value y = node(r, "add", what, step, &at, (hd_value[]){a, b}, 2);
    if (g->err.code || hd_part_set_layout(r->p, y, l, &g->values[a].whole)) return HD_NONE;
    hd_part_split_dims(r->p, g->nodes[g->values[y].node], l, g->values[a].whole.rank);
    return y;
}

/* ---- what each rank sees ---- */

/* Pairs (i, j) with j <= i, and i - j < window where there is one, of i in [a, b) and j in [c, d). */
static double pairs_between(double a, double b, double c, double d, double window)
{
    double sum = 0;
    for (int k = 0; k < 4; k++) { /* keys up to i, less those below c, less those that the window has passed: each a sum of max(0, i + 1 - t) over i */
        if (k >= 2 && window <= 0) break;
        double t = (k % 2 ? d : c) + (k >= 2 ? window : 0), first = a > t ? a : t, n = b - first;
        if (n > 0) sum += (k == 0 || k == 3 ? 1 : -1) * (n * (first + 1 - t) + n * (n - 1) / 2);
    }
    return sum;
}

/* Where rank c's tokens lie in the sequence: [begin, end) twice. As hd_split cuts, and the deal op (src/exec/transfer.c) deals. */
static void tokens_of(const ring *r, int64_t sequence, int64_t c, double at[2][2])
{
    int64_t few = sequence / r->size, more = sequence % r->size, longer = c < more ? c : more, n = few + (c < more); /* of the ranks before c, `longer` have few + 1 */
    int64_t begin = c * few + longer, early = longer * ((few + 2) / 2) + (c - longer) * ((few + 1) / 2), late = sequence - (begin - early) - n / 2;
    bool zigzag = r->p->g->zigzag >> r->axis & 1;
    at[0][0] = (double)(zigzag ? early : begin);
    at[0][1] = (double)(zigzag ? early + (n + 1) / 2 : begin + n);
    at[1][0] = (double)late;
    at[1][1] = (double)(zigzag ? late + n / 2 : late);
}

/* Of the pairs of a step, how many see each other: the mean over the ranks, for sequences whose positions run from 0. */
static double share_of(const ring *r, const hd_attention_attrs *p, int64_t rows, int step)
{
    double seen = 0, all = 0, q[2][2], k[2][2];
    int64_t sequence = rows;
    for (int i = 0; i < r->in[0].dim[0].n - 1; i++) {
        int64_t parts = r->p->mesh->axis[r->in[0].dim[0].axis[i]].size;
        sequence = (sequence + parts - 1) / parts;
    }
    for (int c = 0; c < r->size; c++) {
        tokens_of(r, sequence, c, q);
        tokens_of(r, sequence, (c + step) % r->size, k);
        for (int i = 0; i < 4; i++) {
            const double *x = q[i / 2], *y = k[i % 2];
            all += (x[1] - x[0]) * (y[1] - y[0]);
            seen += pairs_between(x[0], x[1], y[0], y[1], (double)p->window);
        }
    }
    return all > 0 ? fmax(seen / all, 1e-9) : 0;
}

static hd_attention_attrs step_attrs(const ring *r, int step, hd_dtype operands)
{
    hd_attention_attrs at = *(const hd_attention_attrs *)r->n->attrs;
    at.dtype = operands == HD_F64 ? HD_F64 : HD_F32; /* addends */
    at.share = at.causal ? share_of(r, &at, r->p->value[r->n->in[1]].whole.dim[0], step) : 1;
    at.block = at.max_keys = 0;
    return at;
}

/* ---- going round ---- */

/* Operands of n that are the block, in the order of BLOCK_. */
static const int forward_block[BLOCK_N] = {K, V, KPOS, KSEG}, grad_block[BLOCK_N] = {G_K, G_V, G_KPOS, G_KSEG};

static void convert_all(const ring *r, hd_value *in)
{
    for (int k = 0; k < r->n->n_in && !r->p->g->err.code; k++) in[k] = hd_part_convert(r->p, r->n->in[k], &r->in[k], r->n);
}

static void next_block(const ring *r, const hd_value *home, const hd_value *now, const int *operand, int shift, hd_value *next)
{
    for (int b = 0; b < BLOCK_N && !r->p->g->err.code; b++) {
        const char *path = r->p->g->values[home[operand[b]]].path;
        next[b] = b < BLOCK_POS ? pass_on(r, now[operand[b]], path, shift) : pass_on_once(r, now[operand[b]], home[operand[b]], path, shift);
    }
}

/* ---- forward ---- */

static hd_value attend(const ring *r, const hd_value *in, int step)
{
    const hd_part *p = r->p;
    hd_attention_attrs at = step_attrs(r, step, p->value[r->n->in[Q]].dtype);
    hd_value y = node(r, "attention", "ring", step, &at, in, FORWARD_IN), lse = hd_graph_result(p->g, y, 1);
    if (p->g->err.code) return HD_NONE;
    lay(r, y, r->out[0], 0, &p->value[r->n->out[0]].whole);
    lay(r, lse, r->out[1], 0, &p->value[r->n->out[1]].whole);
    return y;
}

static hd_value merge(const ring *r, hd_value a, hd_value b, int step)
{
    hd_graph *g = r->p->g;
    if (g->err.code) return HD_NONE;
    hd_dtype_attrs at = {.dtype = g->values[a].type.dtype};
    hd_value y = node(r, "attention_merge", "merged", step, &at, (hd_value[]){a, hd_graph_result(g, a, 1), b, hd_graph_result(g, b, 1)}, 4);
    if (g->err.code) return HD_NONE;
    lay(r, y, r->out[0], 0, &r->p->value[r->n->out[0]].whole);
    lay(r, hd_graph_result(g, y, 1), r->out[1], 0, &r->p->value[r->n->out[1]].whole);
    return y;
}

/* n itself becomes the last merge. */
static void finish_forward(const ring *r, hd_value a, hd_value b)
{
    hd_graph *g = r->p->g;
    hd_node *n = r->n;
    hd_value in[] = {a, hd_graph_result(g, a, 1), b, hd_graph_result(g, b, 1)};
    hd_dtype_attrs at = {.dtype = r->p->value[n->out[0]].dtype};
    n->op = hd_op_find("attention_merge");
    n->in = hd_arena_copy(&g->arena, in, sizeof in);
    n->n_in = 4;
    n->attrs = hd_arena_copy(&g->arena, &at, sizeof at);
    n->n_splits = 0;
    if (!n->in || !n->attrs) hd_fail_memory(&g->err, sizeof at, "partitioning");
    if (g->err.code || hd_part_append(r->p, n)) return;
    for (int k = 0; k < n->n_out && !g->err.code; k++) hd_part_hold_result(r->p, n->out[k], n->out[k], &r->out[k], n);
}

static void go_forward(const ring *r)
{
    hd_graph *g = r->p->g;
    hd_value home[FORWARD_IN], now[FORWARD_IN], next[BLOCK_N], merged = HD_NONE;
    convert_all(r, home);
    memcpy(now, home, sizeof now);
    for (int s = 0; s < r->size && !g->err.code; s++) {
        bool last = s == r->size - 1;
        if (!last) next_block(r, home, now, forward_block, s + 1, next);
        hd_value y = attend(r, now, s);
        if (last) finish_forward(r, merged, y);
        else merged = s ? merge(r, merged, y, s) : y;
        for (int b = 0; b < BLOCK_N && !last; b++) now[forward_block[b]] = next[b];
    }
}

/* ---- backward ---- */

/* x as result k of n, in the dtype that its readers expect unless there are addends to be summed first. */
static void give_result(const ring *r, int k, hd_value x)
{
    hd_part *p = r->p;
    hd_graph *g = p->g;
    hd_value v = r->n->out[k];
    hd_dtype to = p->value[v].dtype;
    if (!g->err.code && !r->out[k].partial && g->values[x].type.dtype != to) {
        hd_shape whole = g->values[x].whole;
        hd_ew_attrs at = {.dtype = to};
        x = node(r, "cast", "rounded", k, &at, &x, 1);
        if (!g->err.code) {
            lay(r, x, r->out[k], 0, &whole);
            hd_part_split_dims(p, g->nodes[g->values[x].node], &r->out[k], whole.rank);
        }
    }
    if (g->err.code) return;
    g->values[v].node = -1; /* nobody makes it any more */
    hd_part_hold_result(p, v, x, &r->out[k], r->n);
}

static void go_backward(const ring *r)
{
    hd_graph *g = r->p->g;
    hd_value home[GRAD_IN], now[GRAD_IN], next[BLOCK_N], dq = HD_NONE, own[2] = {HD_NONE, HD_NONE}, travelling[2] = {HD_NONE, HD_NONE};
    static const char *const names[] = {"dk", "dv"}, *const own_names[] = {"dk.all", "dv.all"};
    convert_all(r, home);
    memcpy(now, home, sizeof now);
    for (int s = 0; s < r->size && !g->err.code; s++) {
        bool last = s == r->size - 1;
        if (!last) next_block(r, home, now, grad_block, s + 1, next);
        for (int k = 0; k < 2 && s > 1; k++) travelling[k] = pass_on(r, travelling[k], name_of(r, names[k], s), s);
        hd_attention_attrs at = step_attrs(r, s, r->p->value[r->n->in[G_Q]].dtype);
        hd_value d = node(r, "attention_grad", "ring", s, &at, now, GRAD_IN);
        for (int k = 0; k < 3 && !g->err.code; k++) lay(r, hd_graph_result(g, d, k), r->out[k], k ? s : 0, &r->p->value[r->n->out[k]].whole);
        if (g->err.code) return;
        dq = add(r, "dq", s, dq, d);
        for (int k = 0; k < 2; k++) {
            hd_value part = hd_graph_result(g, d, k + 1);
            if (s == 0) own[k] = part;
            else travelling[k] = add(r, names[k], s, travelling[k], part);
        }
        for (int b = 0; b < BLOCK_N && !last; b++) now[grad_block[b]] = next[b];
    }
    give_result(r, 0, dq);
    for (int k = 0; k < 2; k++) give_result(r, k + 1, add(r, own_names[k], r->size, own[k], pass_on(r, travelling[k], name_of(r, names[k], r->size), r->size)));
}

/* ---- a slice's queries, all keys up to their end ---- */

/* The axis over which the queries of a slice are cut, where keys are of more tokens than those; -1: none. */
static int find_sliced_axis(const hd_part *p, const hd_node *n)
{
    bool grad = !strcmp(n->op->name, "attention_grad");
    if (!grad && strcmp(n->op->name, "attention")) return -1;
    int q = grad ? G_Q : Q;
    if (p->value[n->in[q]].whole.dim[0] >= p->value[n->in[q + 1]].whole.dim[0]) return -1;
    for (int i = 0; i < p->n_axes; i++)
        if (p->mesh->axis[p->axis[i]].role == HD_AXIS_DATA && is_cut(p, n, q, p->axis[i]) && !is_cut(p, n, q + 1, p->axis[i])) return p->axis[i];
    return -1;
}

/* Queries stay where they are, so that each rank has its share of the work, however long the keys of the slices before are that are to be sent for it. */
static void attend_in_slice(const ring *r)
{
    static const int queries[] = {Q, QPOS, QSEG}, grad_queries[] = {G_DOUT, G_Q, G_OUT, G_LSE, G_QPOS, G_QSEG};
    bool grad = !strcmp(r->n->op->name, "attention_grad");
    hd_strategy s;
    choose_others(r, &s);
    for (int k = 0; k < (grad ? 6 : 3); k++) {
        int i = grad ? grad_queries[k] : queries[k];
        cut_rows(r, &s.in[i], r->p->value[r->n->in[i]].whole.rank);
    }
    for (int k = 0; k < r->n->n_out; k++) {
        if (grad && k) s.out[k].partial |= 1u << r->axis;
        else cut_rows(r, &s.out[k], r->p->value[r->n->out[k]].whole.rank);
    }
    if (!r->p->g->err.code) hd_part_apply(r->p, r->n, &s);
}

bool hd_part_ring(hd_part *p, hd_node *n)
{
    ring r = {.p = p, .n = n, .axis = find_sliced_axis(p, n)};
    if (r.axis >= 0) return attend_in_slice(&r), true;
    r.axis = find_axis(p, n);
    if (r.axis < 0) return false;
    r.size = p->mesh->axis[r.axis].size;
    find_layouts(&r);
    if (p->g->err.code) return true;
    if (strcmp(n->op->name, "attention")) go_backward(&r);
    else go_forward(&r);
    return true;
}
