/* expand_norm.c: batch norm of images of which each rank has some of the samples (or rows, or pixels).
 *
 * Statistics are sums, so that a rank adds up its own elements and what passes between ranks is two numbers a channel each way:
 *   forward    sum = all-reduced sum of x; squares = all-reduced sum of (x - sum / count)^2; the rest is each rank's own
 *   backward   dx takes the all-reduced gradients of gamma and beta, which the op's own loops say: there is nothing to expand
 * Two passes, as batch norm itself makes: the sum of squares alone, less the mean's, would cancel. An empty piece adds zeros. */
#include <stdio.h>

#include "passes/partition_int.h"

enum { ALL_BUT_CHANNELS = 1u << 0 | 1u << 2 | 1u << 3 };

typedef struct expansion {
    hd_part *p;
    hd_node *n;
    hd_layout image, channels; /* of x and y; of a vector of one number a channel, complete */
    uint32_t addends;          /* axes that cut anything but channels */
} expansion;

/* Whether y is pinned to something that none of the addends' axes cuts: then each rank had better have all of x. */
static bool is_wanted_whole(const expansion *x)
{
    const hd_part_value *y = &x->p->value[x->n->out[0]];
    uint32_t axes = 0;
    for (int d = 0; d < 4; d++)
        for (int k = 0; ALL_BUT_CHANNELS >> d & 1 && k < y->target.dim[d].n; k++) axes |= 1u << y->target.dim[d].axis[k];
    return y->pinned && !(axes & x->addends);
}

/* The form of x that its own node left it in, if samples, rows or columns are cut; conversion puts right what else is wrong with it. */
static bool find_cut(expansion *x)
{
    const hd_part *p = x->p;
    hd_value v = x->n->in[0];
    const hd_held *h = p->value[v].held;
    if (!h || p->g->values[v].type.shape.sym >= 0) return false;
    x->image = h->layout;
    x->image.partial = 0;
    x->image.max = false;
    x->channels.dim[0] = x->image.dim[1];
    for (int d = 0; d < 4; d++)
        for (int k = 0; ALL_BUT_CHANNELS >> d & 1 && k < x->image.dim[d].n; k++) x->addends |= 1u << x->image.dim[d].axis[k];
    return x->addends != 0 && !is_wanted_whole(x);
}

static hd_type whole_type(const hd_graph *g, hd_value v)
{
    return (hd_type){.dtype = g->values[v].type.dtype, .shape = g->values[v].layout ? g->values[v].whole : g->values[v].type.shape};
}

/* Cuts the loops of n, which reads x first, as x is cut. */
static void split_as_image(const expansion *x, hd_node *n)
{
    hd_graph *g = x->p->g;
    hd_type in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS];
    hd_sig sig = {.op = n->op, .in = in, .out = out, .n_in = n->n_in, .n_out = n->n_out, .attrs = n->attrs};
    hd_loops loops = {0};
    hd_loop_split splits[4];
    int count = 0;
    for (int k = 0; k < n->n_in; k++) in[k] = whole_type(g, n->in[k]);
    for (int r = 0; r < n->n_out; r++) out[r] = whole_type(g, n->out[r]);
    n->op->loops(&sig, &loops);
    for (int d = 0; d < 4; d++)
        if (x->image.dim[d].n) splits[count++] = (hd_loop_split){loops.in[0][d].loop[0], x->image.dim[d]};
    n->splits = hd_arena_copy(&g->arena, splits, (size_t)count * sizeof *splits);
    n->n_splits = n->splits ? count : 0;
    if (!n->splits) hd_fail_memory(&g->err, sizeof splits, "partitioning");
}

/* A sum over this rank's part of x for each channel, then over the ranks. */
static hd_value sum_of_all(const expansion *x, const char *op, const char *what, const void *attrs, const hd_value *in, int n_in)
{
    hd_graph *g = x->p->g;
    char name[300];
    const hd_shape whole = {.rank = 1, .dim = {x->p->value[x->n->in[0]].whole.dim[1]}, .sym = -1};
    hd_convert_step step = {.op = "all_reduce", .after = x->channels};
    hd_layout partial = x->channels;
    partial.partial = x->addends;
    for (int a = 0; a < x->p->mesh->n; a++)
        if (x->addends >> a & 1) step.axes[step.n_axes++] = (int8_t)a;
    snprintf(name, sizeof name, "%s.%s", x->n->path, what);
    hd_part_build_for(g, x->n);
    hd_value v = g->err.code ? HD_NONE : hd_graph_node(g, op, name, attrs, in, n_in);
    if (v == HD_NONE || hd_part_set_layout(x->p, v, &partial, &whole)) return HD_NONE;
    split_as_image(x, g->nodes[g->values[v].node]);
    return hd_part_emit(x->p, v, g->values[v].path, &step, x->n);
}

/* n itself becomes the node that gives its results from the sums. */
static void finish(const expansion *x, const hd_value in[5])
{
    hd_graph *g = x->p->g;
    hd_node *n = x->n;
    const hd_layout out[] = {x->image, x->channels, x->channels, x->channels};
    n->op = hd_op_find("batch_norm_finish");
    n->in = hd_arena_copy(&g->arena, in, 5 * sizeof *in);
    n->n_in = 5;
    if (!n->in) hd_fail_memory(&g->err, 5 * sizeof *in, "partitioning");
    if (g->err.code || hd_part_append(x->p, n)) return;
    split_as_image(x, n);
    hd_part_hold_results(x->p, n, out);
}

bool hd_part_expand_batch_norm(hd_part *p, hd_node *n)
{
    hd_graph *g = p->g;
    expansion x = {.p = p, .n = n};
    if (!find_cut(&x)) return false;
    hd_value image = hd_part_convert(p, n->in[0], &x.image, n);
    hd_value gamma = hd_part_convert(p, n->in[1], &x.channels, n), beta = hd_part_convert(p, n->in[2], &x.channels, n);
    if (g->err.code) return true;
    const hd_reduce_attrs over = {.axes = ALL_BUT_CHANNELS, .dtype = g->values[n->out[1]].type.dtype};
    hd_value sum = sum_of_all(&x, "reduce_sum", "sum", &over, &image, 1);
    const hd_norm_attrs squares_at = {0};
    hd_value squares = sum_of_all(&x, "batch_norm_squares", "squares", &squares_at, (hd_value[]){image, sum}, 2);
    if (!g->err.code) finish(&x, (hd_value[]){image, gamma, beta, sum, squares});
    return true;
}
