/* expand.c: nodes that split only as several nodes: the loss of rows of which each rank has some of the columns.
 *
 * With m, s and t a rank's own maximum, sum of exp(l - m) and target's logit (0 where it is not among its columns):
 *   M = max over ranks of m; S = sum over ranks of s exp(m - M); T = sum over ranks of t; lse = log S + M; loss = lse - T. */
#include <stdio.h>

#include "passes/partition_int.h"

/* The form of v that its own node left it in, if that is cut in dimension 1; what else is wrong with it is put right by conversion. */
static const hd_held *cut_columns(const hd_part *p, hd_value v)
{
    const hd_held *h = p->value[v].held;
    return h && p->value[v].whole.rank == 2 && h->layout.dim[1].n ? h : NULL;
}

typedef struct expansion {
    hd_part *p;
    hd_node *n;
    hd_layout rows;   /* of one value a row, the same on all ranks that share rows */
    uint32_t columns; /* axes that cut the columns */
    hd_shape whole;   /* [T] */
} expansion;

static void set_row_split(const expansion *x, hd_node *n)
{
    if (!x->rows.dim[0].n) return;
    hd_loop_split split = {0, x->rows.dim[0]};
    n->splits = hd_arena_copy(&x->p->g->arena, &split, sizeof split);
    n->n_splits = 1;
    if (!n->splits) hd_fail_memory(&x->p->g->err, sizeof split, "partitioning");
}

static void lay(const expansion *x, hd_value v, bool partial, bool max)
{
    hd_layout l = x->rows;
    if (partial) l.partial = x->columns;
    l.max = max;
    hd_part_set_layout(x->p, v, &l, &x->whole);
}

static hd_value row_op(const expansion *x, const char *what, hd_ew op, hd_value a, hd_value b)
{
    hd_graph *g = x->p->g;
    char name[300];
    snprintf(name, sizeof name, "%s.%s", x->n->path, what);
    hd_value y = hd_elementwise(g, name, op, a, b, HD_NONE, 0);
    if (y == HD_NONE || g->err.code) return HD_NONE;
    lay(x, y, true, false);
    set_row_split(x, g->nodes[g->values[y].node]);
    return y;
}

static hd_value all_reduce(const expansion *x, hd_value v, bool max)
{
    hd_convert_step s = {.op = "all_reduce", .max = max, .after = x->rows};
    for (int a = 0; a < x->p->mesh->n; a++)
        if (x->columns >> a & 1) s.axes[s.n_axes++] = (int8_t)a;
    return x->p->g->err.code ? HD_NONE : hd_part_emit(x->p, v, x->p->g->values[v].path, &s, x->n);
}

static hd_value local_part(const expansion *x, hd_value logits, hd_value target, const hd_layout *cut)
{
    hd_graph *g = x->p->g;
    char name[300];
    hd_entropy_attrs at = {.dtype = HD_F32, .classes = x->p->value[x->n->in[0]].whole.dim[1]};
    snprintf(name, sizeof name, "%s.part", x->n->path);
    hd_value max = hd_graph_node(g, "cross_entropy_part", name, &at, (hd_value[]){logits, target}, 2);
    if (max == HD_NONE) return HD_NONE;
    hd_loop_split splits[2];
    int n = 0;
    for (int d = 0; d < 2; d++)
        if (cut->dim[d].n) splits[n++] = (hd_loop_split){d, cut->dim[d]};
    hd_node *part = g->nodes[g->values[max].node];
    part->splits = hd_arena_copy(&g->arena, splits, (size_t)n * sizeof *splits);
    part->n_splits = n;
    if (!part->splits) hd_fail_memory(&g->err, sizeof splits, "partitioning");
    for (int r = 0; r < 3; r++) lay(x, part->out[r], true, r == 0);
    return max;
}

/* n itself becomes the node that gives its results from the reduced parts. */
static void finish_rows(const expansion *x, hd_value max, hd_value sum, hd_value picked, hd_value target)
{
    hd_graph *g = x->p->g;
    hd_node *n = x->n;
    hd_entropy_attrs at = {.dtype = HD_F32, .classes = x->p->value[n->in[0]].whole.dim[1]};
    hd_value in[] = {max, sum, picked, target};
    n->op = hd_op_find("cross_entropy_finish");
    n->in = hd_arena_copy(&g->arena, in, sizeof in);
    n->n_in = 4;
    n->attrs = hd_arena_copy(&g->arena, &at, sizeof at);
    if (!n->in || !n->attrs) hd_fail_memory(&g->err, sizeof at, "partitioning");
    if (g->err.code || hd_part_append(x->p, n)) return;
    set_row_split(x, n);
    for (int r = 0; r < n->n_out && !g->err.code; r++) {
        hd_part_set_layout(x->p, n->out[r], &x->rows, &x->whole);
        hd_part_hold(x->p, n->out[r], n->out[r], &x->rows, -1, -1);
    }
}

static void expand_cross_entropy(hd_part *p, hd_node *n, const hd_held *from)
{
    hd_graph *g = p->g;
    hd_layout cut = from->layout;
    cut.partial = 0;
    cut.max = false;
    expansion x = {.p = p, .n = n, .rows.dim[0] = cut.dim[0], .whole = p->value[n->out[0]].whole};
    for (int k = 0; k < cut.dim[1].n; k++) x.columns |= 1u << cut.dim[1].axis[k];
    hd_value logits = hd_part_convert(p, n->in[0], &cut, n), target = hd_part_convert(p, n->in[1], &x.rows, n);
    if (g->err.code) return;
    hd_part_build_for(g, n);
    hd_value m = local_part(&x, logits, target, &cut), most = all_reduce(&x, m, true);
    hd_value s = hd_graph_result(g, m, 1), t = hd_graph_result(g, m, 2);
    hd_value scale = row_op(&x, "rescale", HD_EW_EXP, row_op(&x, "below", HD_EW_SUB, m, most), HD_NONE);
    hd_value sum = all_reduce(&x, row_op(&x, "sum", HD_EW_MUL, s, scale), false);
    hd_value picked = all_reduce(&x, t, false);
    if (!g->err.code) finish_rows(&x, most, sum, picked, target);
}

bool hd_part_expand(hd_part *p, hd_node *n)
{
    if (!strcmp(n->op->name, "batch_norm")) return hd_part_expand_batch_norm(p, n);
    if (hd_part_ring(p, n)) return true;
    if (strcmp(n->op->name, "cross_entropy")) return false;
    const hd_held *from = cut_columns(p, n->in[0]);
    if (!from) return false;
    expand_cross_entropy(p, n, from);
    return true;
}
