/* crossing.c: what passes between stages of different meshes: each byte once, from one of its holders; it spreads in the receiving mesh afterwards (Zhuang et al.
 * 2022, "On optimizing the communication of model parallelism", section 3).
 *
 * Only the outermost dimension of a crossing value is cut, at both ends. The ranks of the sending mesh that hold the same rows answer for equal shares of
 * them; a receiving rank gets the rows of its piece from those who answer for them. So every message is one run of rows, in both ends' memory. */
#include "base/thread.h"
#include "graph/layout.h"

/* ---- meshes of stages ---- */

int hd_stages_ranks(const hd_stages *s)
{
    return s->n ? s->first[s->n] : 1;
}

int hd_stages_of_rank(const hd_stages *s, int rank)
{
    int stage = 0;
    while (stage + 1 < s->n && rank >= s->first[stage + 1]) stage++;
    return stage;
}

int hd_stages_copy(hd_stages *to, const hd_stages *from, hd_arena *memory)
{
    *to = (hd_stages){0};
    if (!from->n) return 0;
    to->mesh = hd_arena_copy(memory, from->mesh, (size_t)from->n * sizeof *from->mesh);
    to->first = hd_arena_copy(memory, from->first, ((size_t)from->n + 1) * sizeof *from->first);
    if (!to->mesh || !to->first) return HD_ENOMEM;
    to->n = from->n;
    return 0;
}

/* ---- layouts at the border ---- */

bool hd_crossing_fits(const hd_layout *l, int rank)
{
    for (int d = 1; d < rank; d++)
        if (l->dim[d].n) return false;
    return !l->partial;
}

static void add_axis(hd_dim_layout *d, int axis)
{
    if (d->n == HD_MAX_SPLITS) return;
    d->axis[d->n] = (int8_t)axis;
    d->unit[d->n++] = 1;
}

hd_layout hd_crossing_start(const hd_layout *l, int rank)
{
    hd_layout to = {0};
    if (!rank) return to;
    to.dim[0] = l->dim[0];
    for (int d = 1; d < rank; d++)
        for (int k = 0; k < l->dim[d].n; k++) add_axis(&to.dim[0], l->dim[d].axis[k]);
    for (int a = 0; a < HD_MAX_AXES; a++)
        if (l->partial >> a & 1) add_axis(&to.dim[0], a);
    return to;
}

hd_layout hd_crossing_landing(const hd_mesh *m, const hd_layout *wanted, int rank)
{
    hd_layout at = {0};
    if (!rank) return at;
    at.dim[0] = wanted->dim[0];
    uint32_t there = hd_layout_axes(&at, 1);
    for (int a = 0; a < m->n; a++)
        if (m->axis[a].size > 1 && m->axis[a].role != HD_AXIS_PIPELINE && !(there >> a & 1)) add_axis(&at.dim[0], a);
    return at;
}

/* ---- who sends what to whom ---- */

/* Index of rank among the ranks of the mesh that hold the same rows, and how many those are. */
static int replica(const hd_mesh *m, const hd_layout *l, int rank, int *count)
{
    int8_t axes[HD_MAX_AXES];
    int n = 0;
    uint32_t cut = hd_layout_axes(l, 1);
    for (int a = 0; a < m->n; a++)
        if (!(cut >> a & 1)) axes[n++] = (int8_t)a;
    return hd_mesh_index(m, rank, axes, n, count);
}

static void rows_answered_for(const hd_end *e, const hd_shape *whole, int rank, int64_t *begin, int64_t *end)
{
    int count, index = replica(e->mesh, e->layout, rank, &count);
    int64_t first, last, from, to;
    hd_dim_piece(e->mesh, &e->layout->dim[0], whole->dim[0], rank, &first, &last);
    hd_split(last - first, 1, index, count, &from, &to);
    *begin = first + from;
    *end = first + to;
}

int64_t hd_crossing_rows(const hd_end *sender, int from, const hd_end *receiver, int to, const hd_shape *whole, int64_t *begin)
{
    int64_t end, first, last;
    *begin = 0;
    if (!whole->rank) return to % hd_mesh_size(sender->mesh) == from; /* a scalar: to every rank, by turns */
    rows_answered_for(sender, whole, from, begin, &end);
    hd_dim_piece(receiver->mesh, &receiver->layout->dim[0], whole->dim[0], to, &first, &last);
    if (first > *begin) *begin = first;
    if (last < end) end = last;
    return end > *begin ? end - *begin : 0;
}

int64_t hd_row_elements(const hd_shape *whole)
{
    int64_t n = 1;
    for (int d = 1; d < whole->rank; d++) n *= whole->dim[d];
    return n;
}
