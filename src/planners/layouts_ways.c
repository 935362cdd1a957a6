/* layouts_ways.c: nodes that only split as several nodes (passes/expand.c): batch norm of some of the samples, a loss of some of the columns. */
#include <string.h>

#include "planners/layouts_int.h"

/* What is cut besides what the op's own loops say: dimension dim of operand 0, and of result 0 where that has it. */
typedef struct expansion { const char *op; int rank, dim; bool result; } expansion;
static const expansion expansions[] = {{"batch_norm", 4, 0, true}, {"cross_entropy", 2, 1, false}};

static const expansion *find_expansion(const hd_layout_builder *b, const hd_node *x)
{
    for (size_t i = 0; b->p->cluster && i < sizeof expansions / sizeof *expansions; i++)
        if (!strcmp(x->op->name, expansions[i].op) && b->part.value[x->in[0]].whole.rank == expansions[i].rank) return &expansions[i];
    return NULL;
}

static void cut(hd_dim_layout *d, int axis)
{
    d->unit[d->n] = 1;
    d->axis[d->n++] = (int8_t)axis;
}

/* *s with the axes of `mask` cut so. */
static bool expand(const hd_layout_builder *b, const hd_node *x, const expansion *e, uint32_t mask, hd_strategy *s)
{
    int64_t ranks = 1;
    for (int i = 0; i < b->part.n_axes; i++) {
        int a = b->part.axis[i];
        if (s->option[a].kind == HD_PART_LINEAR) return false;
        if (!(mask >> i & 1)) continue;
        if (s->option[a].kind != HD_PART_REPLICATED || s->in[0].dim[e->dim].n == HD_MAX_SPLITS) return false;
        s->option[a].kind = HD_PART_EXPANDED;
        ranks *= b->p->mesh.axis[a].size;
        cut(&s->in[0].dim[e->dim], a);
        if (e->result) cut(&s->out[0].dim[e->dim], a);
    }
    return ranks <= b->part.value[x->in[0]].whole.dim[e->dim];
}

int hd_layout_expand(const hd_layout_builder *b, const hd_node *x, hd_strategy **list, int n)
{
    const expansion *e = find_expansion(b, x);
    size_t room = (size_t)n;
    int all = n;
    for (int i = 0; e && i < n; i++)
        for (uint32_t mask = 1; mask < 1u << b->part.n_axes; mask++) {
            hd_strategy s = (*list)[i];
            if (s.in[0].dim[e->dim].n || !expand(b, x, e, mask, &s)) continue;
            if (hd_grow(list, &room, (size_t)all + 1, sizeof **list)) return HD_ENOMEM;
            (*list)[all++] = s;
        }
    return all;
}
