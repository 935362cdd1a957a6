/* strategy.c: how one node is split over the mesh.
 *
 * For each axis there are three kinds of options: cut a loop, compute the same on all ranks, or pass Partial operands on by linearity. What
 * operands must look like and results will look like follows from the op's loops alone. */
#include <math.h>

#include "passes/partition_int.h"

typedef struct chooser {
    const hd_part *p;
    const hd_node *n;
    hd_loops loops;
    hd_type in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS];
    hd_sig sig;
    double flops, share; /* of the whole node; what part of its work the node that it differentiates left to a rank, 1: no telling */
    bool all;          /* every way there is, whatever is held: hd_part_list */
    bool target_first; /* results must come out as they are said to; `sum`: or where they are pinned */
    bool sum;          /* over micro-batches: its operand is then reduced in each */
} chooser;

void hd_part_signature(const hd_part *p, const hd_node *n, hd_sig *sig, hd_type *in, hd_type *out)
{
    for (int k = 0; k < n->n_in; k++) {
        in[k] = (hd_type){.absent = true, .shape.sym = -1};
        if (n->in[k] != HD_NONE) in[k] = (hd_type){.dtype = p->value[n->in[k]].dtype, .shape = p->value[n->in[k]].whole};
    }
    for (int k = 0; k < n->n_out; k++) out[k] = (hd_type){.dtype = p->value[n->out[k]].dtype, .shape = p->value[n->out[k]].whole};
    *sig = (hd_sig){.op = n->op, .in = in, .out = out, .n_in = n->n_in, .n_out = n->n_out, .attrs = n->attrs};
}

static bool given(const chooser *c, int k) { return c->n->in[k] != HD_NONE; }

/* ---- loops and dimensions ---- */

static int64_t inner_extent(const hd_loops *l, const hd_dim_map *m, int from)
{
    int64_t n = 1;
    for (int j = from + 1; j < m->n; j++) n *= l->extent[m->loop[j]];
    return n;
}

static int find_loop(const hd_dim_map *m, int loop)
{
    for (int j = 0; j < m->n; j++)
        if (m->loop[j] == loop) return j;
    return -1;
}

static bool maps_loop(const hd_dim_map *dims, int rank, int loop)
{
    for (int d = 0; d < rank; d++)
        if (find_loop(&dims[d], loop) >= 0) return true;
    return false;
}

/* A product of loops is cut by cutting its outermost loop, or an inner one where those around it are down to one iteration on every rank. */
static bool dim_of_loops(const chooser *c, const hd_strategy *s, const hd_dim_map *m, hd_dim_layout *out)
{
    bool single = true; /* so far */
    *out = (hd_dim_layout){0};
    for (int j = 0; j < m->n; j++) {
        const hd_dim_layout *over = &s->loop[m->loop[j]];
        int64_t extent = c->loops.extent[m->loop[j]], begin = 0, end = extent;
        if (over->n) {
            if (!single || out->n + over->n > HD_MAX_SPLITS) return false;
            for (int k = 0; k < over->n; k++) {
                out->axis[out->n] = over->axis[k];
                out->unit[out->n++] = over->unit[k] * inner_extent(&c->loops, m, j);
            }
            hd_dim_piece(c->p->mesh, over, extent, 0, &begin, &end);
        }
        single &= end - begin <= 1;
    }
    return true;
}

/* ---- cuts of a loop: order and units as those operands (or pinned results) have that are cut so already ---- */

/* Where axis stands among the cuts of a layout's dimensions that run over loop; *unit in iterations of it. -1: nowhere. */
static int find_cut(const chooser *c, const hd_dim_map *maps, int rank, const hd_layout *layout, int loop, int axis, int64_t *unit)
{
    for (int d = 0; d < rank; d++) {
        int j = find_loop(&maps[d], loop);
        if (j < 0) continue;
        int64_t inner = inner_extent(&c->loops, &maps[d], j);
        for (int k = 0; k < layout->dim[d].n; k++) {
            if (layout->dim[d].axis[k] != axis) continue;
            *unit = layout->dim[d].unit[k] % inner ? 1 : layout->dim[d].unit[k] / inner;
            return k;
        }
    }
    return -1;
}

static int model_of_cut(const chooser *c, int loop, int axis, int64_t *unit)
{
    const hd_node *n = c->n;
    for (int i = 0; i < n->n_in; i++) {
        if (!given(c, i)) continue;
        for (const hd_held *h = c->p->value[n->in[i]].held; h; h = h->next) {
            if (!hd_part_usable(c->p, n->in[i], h, n->phase, n->chunk)) continue;
            int at = find_cut(c, c->loops.in[i], c->in[i].shape.rank, &h->layout, loop, axis, unit);
            if (at >= 0) return at;
        }
    }
    for (int r = 0; r < n->n_out; r++) {
        const hd_part_value *v = &c->p->value[n->out[r]];
        const hd_layout *to = v->has_target ? &v->target : v->has_home ? &v->home : NULL;
        int at = to ? find_cut(c, c->loops.out[r], c->out[r].shape.rank, to, loop, axis, unit) : -1;
        if (at >= 0) return at;
    }
    *unit = 1;
    return -1;
}

static bool cut_loops(const chooser *c, hd_strategy *s)
{
    int place[HD_MAX_LOOPS][HD_MAX_SPLITS];
    int64_t ranks[HD_MAX_LOOPS];
    bool modelled[HD_MAX_LOOPS];
    memset(s->loop, 0, sizeof s->loop);
    for (int l = 0; l < c->loops.n; l++) ranks[l] = 1, modelled[l] = true;
    for (int i = 0; i < c->p->n_axes; i++) {
        int axis = c->p->axis[i], loop = s->option[axis].loop;
        int64_t unit;
        if (s->option[axis].kind != HD_PART_LOOP) continue;
        hd_dim_layout *d = &s->loop[loop];
        if (d->n == HD_MAX_SPLITS) return false;
        int at = model_of_cut(c, loop, axis, &unit), k = d->n++;
        ranks[loop] *= c->p->mesh->axis[axis].size;
        modelled[loop] &= at >= 0;
        int rank = at < 0 ? HD_MAX_SPLITS + axis : at;
        for (; k > 0 && place[loop][k - 1] > rank; k--) {
            place[loop][k] = place[loop][k - 1];
            d->axis[k] = d->axis[k - 1];
            d->unit[k] = d->unit[k - 1];
        }
        place[loop][k] = rank;
        d->axis[k] = (int8_t)axis;
        d->unit[k] = unit;
    }
    for (int l = 0; l < c->loops.n; l++)
        if (s->loop[l].n && !modelled[l] && ranks[l] > c->loops.extent[l]) return false; /* nobody asked for empty pieces */
    return true;
}

/* ---- what an option asks of operands and makes of results ---- */

static void mark_partial(hd_layout *l, int axis, bool max)
{
    l->partial |= 1u << axis;
    l->max |= max;
}

static bool result_partials(const chooser *c, hd_strategy *s, int axis)
{
    const hd_part_option *o = &s->option[axis];
    for (int r = 0; r < c->n->n_out; r++) {
        if (o->kind == HD_PART_LINEAR) mark_partial(&s->out[r], axis, false);
        if (o->kind != HD_PART_LOOP || maps_loop(c->loops.out[r], c->out[r].shape.rank, o->loop)) continue;
        if (c->loops.reduced >> o->loop & 1) mark_partial(&s->out[r], axis, c->n->op->reduce_max);
        else if (c->p->value[c->n->out[r]].used) return false;
    }
    return true;
}

static bool fill_layouts(const chooser *c, hd_strategy *s)
{
    memset(s->in, 0, sizeof s->in);
    memset(s->out, 0, sizeof s->out);
    if (!cut_loops(c, s)) return false;
    for (int i = 0; i < c->n->n_in; i++)
        for (int d = 0; given(c, i) && d < c->in[i].shape.rank; d++)
            if (!dim_of_loops(c, s, &c->loops.in[i][d], &s->in[i].dim[d])) return false;
    for (int r = 0; r < c->n->n_out; r++)
        for (int d = 0; d < c->out[r].shape.rank; d++)
            if (!dim_of_loops(c, s, &c->loops.out[r][d], &s->out[r].dim[d])) return false;
    for (int i = 0; i < c->p->n_axes; i++) {
        int axis = c->p->axis[i];
        if (!result_partials(c, s, axis)) return false;
        for (int k = 0; s->option[axis].kind == HD_PART_LINEAR && k < c->n->n_in; k++)
            if (given(c, k) && s->option[axis].set >> k & 1) mark_partial(&s->in[k], axis, false);
    }
    bool sums = false, maxes = false;
    for (int r = 0; r < c->n->n_out; r++) (s->out[r].max ? &maxes : &sums)[0] |= s->out[r].partial != 0;
    for (int i = 0; maxes && i < c->p->n_axes; i++) sums |= s->option[c->p->axis[i]].kind == HD_PART_LINEAR;
    return !(sums && maxes);
}

/* ---- cost ---- */

static bool is_wide(hd_dtype t) { return t == HD_F32 || t == HD_F64; }

/* Whether operand i is to be had in pieces over the axis only, and the loop is what cuts it. */
static bool operand_comes_cut(const chooser *c, int i, int loop, int axis)
{
    bool cut = false;
    int64_t unit;
    for (const hd_held *h = given(c, i) ? c->p->value[c->n->in[i]].held : NULL; h; h = h->next) {
        if (!hd_part_usable(c->p, c->n->in[i], h, c->n->phase, c->n->chunk)) continue;
        if (!((hd_layout_axes(&h->layout, c->in[i].shape.rank) | h->layout.partial) >> axis & 1)) return false;
        cut |= find_cut(c, c->loops.in[i], c->in[i].shape.rank, &h->layout, loop, axis, &unit) >= 0;
    }
    return cut;
}

/* Whether a result that is in pieces over the axis is so because some operand is, or is wanted so. */
static bool comes_cut(const chooser *c, const hd_strategy *s, int axis)
{
    int loop = s->option[axis].loop;
    int64_t unit;
    if (s->option[axis].kind != HD_PART_LOOP) return false;
    for (int i = 0; i < c->n->n_in; i++)
        if (operand_comes_cut(c, i, loop, axis)) return true;
    for (int r = 0; r < c->n->n_out; r++) {
        const hd_part_value *v = &c->p->value[c->n->out[r]];
        if (v->pinned && find_cut(c, c->loops.out[r], c->out[r].shape.rank, &v->target, loop, axis, &unit) >= 0) return true;
    }
    return false;
}

static bool read_before(const chooser *c, const hd_strategy *s, int i)
{
    for (int k = 0; k < i; k++)
        if (c->n->in[k] == c->n->in[i] && hd_layout_equal(c->p->mesh, &s->in[k], &s->in[i], &c->in[i].shape)) return true;
    return false;
}

/* A preference between what costs the same. */
#define SLIGHT 1e-3

/* Whether n makes a table's gradient alone of rows that ranks may exchange instead of reducing the table: index-value pairs, as sparse gradients elsewhere
 * (TensorFlow's IndexedSlices). What is added to another gradient of the table would have to be reduced all the same. */
static bool may_exchange_rows(const chooser *c)
{
    const hd_part_value *out = &c->p->value[c->n->out[0]];
    return c->p->g->rows_micro && !strcmp(c->n->op->name, "scatter_add") && out->has_home && !out->shared;
}

/* Whether somebody has said where n's results lie, and they are no parameters' states: the rest follows from what is sent. */
static bool all_said(const chooser *c)
{
    for (int r = 0; r < c->n->n_out; r++)
        if (c->p->value[c->n->out[r]].used && !c->p->value[c->n->out[r]].pinned) return false;
    return true;
}

/* What one operand's conversion costs. A whole activation of the result's size that becomes an addend is a pass over memory for nothing; an addend
 * that several nodes read had better be summed for all of them. */
static double operand_cost(const chooser *c, const hd_strategy *s, int i)
{
    hd_value v = c->n->in[i];
    double cost;
    const hd_held *from = hd_part_nearest(c->p, v, &s->in[i], c->n->phase, c->n->chunk, &cost);
    if (from && may_exchange_rows(c)) return hd_part_rows_cost(c->p, v, &from->layout, &s->in[i]);
    if (from && cost > 0 && c->p->value[v].pinned && all_said(c)) cost = fmin(cost, hd_part_pin_cost(c->p, v, &from->layout, &s->in[i]));
    bool stretched = from && s->in[i].partial & ~from->layout.partial;
    bool large = c->in[i].shape.rank && hd_shape_equal(&c->in[i].shape, &c->out[0].shape);
    if (stretched && large && c->p->g->values[v].micro != HD_TIME_REPLICATE) cost += hd_part_bytes(c->p, v, &s->in[i]) / 16;
    if (from && from->layout.partial & s->in[i].partial && c->p->value[v].readers > 1) cost += SLIGHT * hd_part_bytes(c->p, v, &s->in[i]);
    return cost;
}

/* What a gradient costs until it lies as the optimizer wants it; of ways that cost the same, one that makes less of it. */
static double gradient_owes(const chooser *c, hd_value v, const hd_layout *l)
{
    const hd_part_value *info = &c->p->value[v];
    double cost = hd_part_conversion_cost(c->p, v, l, &info->home), bytes = hd_part_bytes(c->p, v, l);
    uint32_t home = hd_layout_axes(&info->home, info->whole.rank), cut = hd_layout_axes(l, info->whole.rank) | l->partial;
    for (int i = 0; i < c->p->n_axes; i++)
        if (home & ~cut & 1u << c->p->axis[i]) cost += SLIGHT * bytes;
    return cost;
}

/* What is still to be paid for a result: sums that are owed; gathering what was not in pieces before. */
static double result_owes(const chooser *c, const hd_strategy *s, int r)
{
    hd_value v = c->n->out[r];
    const hd_layout *l = &s->out[r];
    if (c->p->value[v].has_home) return gradient_owes(c, v, l) * (may_exchange_rows(c) && c->p->value[v].each ? (double)c->p->g->rows_micro : 1);
    double cost = 0, bytes = hd_part_bytes(c->p, v, l), gathered = bytes, summed = 1; /* bytes after the gathers so far; ranks of one all-reduce */
    uint32_t cut = hd_layout_axes(l, c->out[r].shape.rank);
    for (int i = 0; i < c->p->n_axes; i++) {
        int a = c->p->axis[i];
        double n = c->p->mesh->axis[a].size, weight = hd_part_weight(c->p, v, a);
        if (l->partial >> a & 1) {
            if (weight > 1) cost += 1.01 * weight * bytes * (n - 1) / n; /* over DATA axes activations are in pieces: a reduce-scatter, and the sooner the less work */
            else summed *= n;
        }
        bool at_home = weight > 1 && c->p->mesh->axis[a].role == HD_AXIS_DATA;
        if (!(cut >> a & 1) || at_home || comes_cut(c, s, a)) continue;
        cost += weight * gathered * (n - 1);
        gathered *= n;
    }
    return cost + 2 * bytes * (summed - 1) / summed;
}

/* To where a result is to end. To compute more of it than that takes a little longer. */
static double target_cost(const chooser *c, const hd_strategy *s, int r)
{
    hd_value v = c->n->out[r];
    const hd_layout *to = &c->p->value[v].target;
    double more = hd_part_bytes(c->p, v, &s->out[r]) - hd_part_bytes(c->p, v, to);
    return hd_part_pin_cost(c->p, v, &s->out[r], to) + (more > 0 ? SLIGHT * more : 0);
}

/* Work that a rank does beyond the share of it that forward left to a rank. Gathering narrow operands to have all ranks do all of it may send less than
 * the wide sums that pieces owe, but a plan that divides a product means its gradients, too. A flop counts as a byte sent, though it takes far less. */
static double repeated_work(const chooser *c, const hd_strategy *s)
{
    hd_type in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS];
    hd_sig piece = c->sig;
    hd_cost work = {0};
    if (c->share >= 1) return 0;
    memcpy(in, c->in, sizeof in);
    memcpy(out, c->out, sizeof out);
    for (int i = 0; i < c->n->n_in; i++)
        if (given(c, i)) in[i].shape = hd_layout_shape(c->p->mesh, &s->in[i], &c->in[i].shape, 0);
    for (int r = 0; r < c->n->n_out; r++) out[r].shape = hd_layout_shape(c->p->mesh, &s->out[r], &c->out[r].shape, 0);
    piece.in = in;
    piece.out = out;
    c->n->op->cost(&piece, &work);
    return work.flops > c->share * c->flops ? work.flops - c->share * c->flops : 0;
}

static double strategy_cost(const chooser *c, const hd_strategy *s)
{
    double cost = repeated_work(c, s);
    for (int i = 0; i < c->n->n_in; i++)
        if (given(c, i) && !read_before(c, s, i)) cost += operand_cost(c, s, i);
    if (!strcmp(c->n->op->name, "micro_sum")) cost *= 16; /* in each micro-batch, instead of once */
    for (int r = 0; r < c->n->n_out; r++) {
        const hd_part_value *v = &c->p->value[c->n->out[r]];
        if (!v->used) continue;
        cost += v->has_target ? target_cost(c, s, r) : result_owes(c, s, r);
    }
    return cost;
}

static bool meets_target(const chooser *c, const hd_strategy *s)
{
    for (int r = 0; c->target_first && r < c->n->n_out; r++) {
        const hd_part_value *v = &c->p->value[c->n->out[r]];
        if (v->has_made && !hd_layout_equal(c->p->mesh, &s->out[r], &v->made, &v->whole)) return false;
        if (c->sum && !v->has_made && v->pinned && !hd_layout_equal(c->p->mesh, &s->out[r], &v->target, &v->whole)) return false;
    }
    return true;
}

/* ---- options ---- */

#define MAX_OPTIONS (HD_MAX_LOOPS + 6)

/* A dimension that a symbol bounds stays whole. */
static bool is_bounded(const chooser *c, int loop)
{
    for (int i = 0; i < c->n->n_in; i++)
        if (given(c, i) && c->in[i].shape.sym >= 0 && find_loop(&c->loops.in[i][0], loop) >= 0) return true;
    for (int r = 0; r < c->n->n_out; r++)
        if (c->out[r].shape.sym >= 0 && find_loop(&c->loops.out[r][0], loop) >= 0) return true;
    return false;
}

/* Whether a form of operand i is an addend over one of the axes. */
static bool is_addend(const chooser *c, int i, uint32_t axes)
{
    for (const hd_held *h = c->p->value[c->n->in[i]].held; h; h = h->next)
        if (hd_part_usable(c->p, c->n->in[i], h, c->n->phase, c->n->chunk) && (h->layout.partial & axes) && !h->layout.max) return true;
    return false;
}

/* Addends of narrow numbers are held in f32: a sum of such is made in f32 as well, and rounded when it is complete. */
static bool sums_narrow(const chooser *c) { return !strcmp(c->n->op->name, "add"); }

/* A forward op's results but the first are statistics, which are no sums: where they are read nothing is passed on. */
static bool may_pass(const chooser *c, int axis, uint32_t set)
{
    bool any = false;
    for (int r = 0; r < c->n->n_out; r++) {
        if (!c->p->value[c->n->out[r]].used) continue;
        if ((!is_wide(c->out[r].dtype) && !sums_narrow(c)) || (r && !c->n->op->is_backward)) return false;
    }
    for (int i = 0; i < c->n->n_in; i++) {
        if (!(set >> i & 1) || !given(c, i)) continue;
        if (!is_wide(c->in[i].dtype) && !((c->all || is_addend(c, i, UINT32_MAX)) && sums_narrow(c))) return false;
        any |= c->all || is_addend(c, i, 1u << axis);
    }
    return any;
}

/* In order of preference where costs are equal: sums are put off, results are whole rather than in pieces. */
static int list_options(const chooser *c, int axis, hd_part_option *list)
{
    int n = 0;
    for (int k = 0; k < 4 && c->n->op->linear[k]; k++)
        if (may_pass(c, axis, c->n->op->linear[k])) list[n++] = (hd_part_option){.kind = HD_PART_LINEAR, .set = c->n->op->linear[k]};
    list[n++] = (hd_part_option){.kind = HD_PART_REPLICATED};
    for (int l = 0; l < c->loops.n; l++)
        if (c->loops.extent[l] >= 2 && !(c->loops.whole >> l & 1) && !is_bounded(c, l)) list[n++] = (hd_part_option){.kind = HD_PART_LOOP, .loop = l};
    return n;
}

/* A parameter in blocks is read as it lies: only those who load it know where they may be cut. */
static bool leaves_blocks(const chooser *c, const hd_strategy *s)
{
    for (int i = 0; i < c->n->n_in; i++) {
        if (!given(c, i) || !c->p->g->values[c->n->in[i]].type.blocks) continue;
        if (!hd_layout_equal(c->p->mesh, &s->in[i], &c->p->value[c->n->in[i]].held->layout, &c->in[i].shape)) return false;
    }
    return true;
}

/* Takes s if it is possible and clearly cheaper than the best. */
static void consider(const chooser *c, hd_strategy *s, hd_strategy *best)
{
    if (!fill_layouts(c, s) || !leaves_blocks(c, s) || !meets_target(c, s)) return;
    s->cost = strategy_cost(c, s);
    if (best->cost < 0 || s->cost < best->cost * (1 - 1e-9)) *best = *s;
}

static void try_all(const chooser *c, hd_part_option list[][MAX_OPTIONS], const int *count, int i, hd_strategy *s, hd_strategy *best)
{
    if (i == c->p->n_axes) {
        consider(c, s, best);
        return;
    }
    for (int k = 0; k < count[i]; k++) {
        s->option[c->p->axis[i]] = list[i][k];
        try_all(c, list, count, i + 1, s, best);
    }
}

/* Past three axes one after the other, the others as they are best so far; twice, since what one does may open or close what another can. */
static void try_in_turn(const chooser *c, hd_part_option list[][MAX_OPTIONS], const int *count, hd_strategy *best)
{
    hd_strategy s = {0};
    consider(c, &s, best);
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < c->p->n_axes; i++) {
            memcpy(s.option, best->option, sizeof s.option);
            for (int k = 0; k < count[i]; k++) {
                s.option[c->p->axis[i]] = list[i][k];
                consider(c, &s, best);
            }
        }
}

static void search(const chooser *c, hd_strategy *best)
{
    hd_part_option list[HD_MAX_AXES][MAX_OPTIONS];
    int count[HD_MAX_AXES];
    hd_strategy s = {0};
    *best = (hd_strategy){.cost = -1};
    for (int i = 0; i < c->p->n_axes; i++) count[i] = list_options(c, c->p->axis[i], list[i]);
    if (c->p->n_axes <= 3) try_all(c, list, count, 0, &s, best);
    else try_in_turn(c, list, count, best);
}

/* What rank 0 has of the work of a node of the new graph. */
static double share_of(const hd_graph *g, const hd_node *n)
{
    hd_type in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS];
    hd_sig sig = {.op = n->op, .in = in, .out = out, .n_in = n->n_in, .n_out = n->n_out, .attrs = n->attrs};
    hd_cost piece = {0}, whole = {0};
    for (int k = 0; k < n->n_in; k++) in[k] = n->in[k] == HD_NONE ? (hd_type){.absent = true, .shape.sym = -1} : g->values[n->in[k]].type;
    for (int r = 0; r < n->n_out; r++) out[r] = g->values[n->out[r]].type;
    n->op->cost(&sig, &piece);
    for (int k = 0; k < n->n_in; k++)
        if (n->in[k] != HD_NONE) in[k].shape = g->values[n->in[k]].whole;
    for (int r = 0; r < n->n_out; r++) out[r].shape = g->values[n->out[r]].whole;
    n->op->cost(&sig, &whole);
    return whole.flops > 0 ? piece.flops / whole.flops : 1;
}

static void set_share(chooser *c)
{
    const hd_node *of = c->n->phase == HD_BACKWARD ? c->n->origin : NULL;
    hd_cost work = {0};
    c->share = of && of->n_splits ? share_of(c->p->g, of) : 1;
    c->n->op->cost(&c->sig, &work);
    c->flops = work.flops;
}

void hd_part_choose(const hd_part *p, const hd_node *n, hd_strategy *best)
{
    chooser c = {.p = p, .n = n, .target_first = true, .sum = !strcmp(n->op->name, "micro_sum")};
    hd_part_signature(p, n, &c.sig, c.in, c.out);
    n->op->loops(&c.sig, &c.loops);
    set_share(&c);
    search(&c, best);
    if (best->cost >= 0) return;
    c.target_first = false; /* a pin that no way of computing gives: it is converted to afterwards */
    search(&c, best);
}

/* ---- all there are ---- */

typedef struct listing { hd_strategy *list; int n, most; } listing;

static void list_from(const chooser *c, hd_part_option list[][MAX_OPTIONS], const int *count, int i, hd_strategy *s, listing *out)
{
    if (i == c->p->n_axes) {
        if (!fill_layouts(c, s)) return;
        if (out->n < out->most) out->list[out->n] = *s;
        out->n++;
        return;
    }
    for (int k = 0; k < count[i]; k++) {
        s->option[c->p->axis[i]] = list[i][k];
        list_from(c, list, count, i + 1, s, out);
    }
}

int hd_part_list(const hd_part *p, const hd_node *n, hd_strategy *list, int most)
{
    chooser c = {.p = p, .n = n, .all = true, .share = 1};
    hd_part_option options[HD_MAX_AXES][MAX_OPTIONS];
    int count[HD_MAX_AXES];
    hd_strategy s = {0};
    listing out = {list, 0, most};
    hd_part_signature(p, n, &c.sig, c.in, c.out);
    n->op->loops(&c.sig, &c.loops);
    for (int i = 0; i < p->n_axes; i++) count[i] = list_options(&c, p->axis[i], options[i]);
    list_from(&c, options, count, 0, &s, &out);
    return out.n;
}
