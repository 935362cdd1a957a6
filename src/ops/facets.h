/* facets.h: what the ops that move rows, windows and dimensions share: types as text, and loops written by hand. */
#ifndef HD_OPS_FACETS_H
#define HD_OPS_FACETS_H

#include <math.h>
#include <stddef.h>
#include "ops/ops.h"
#include "ops/ops_int.h"

/* A type as text for messages: "f32[1024, 768]". Lives until the end of the enclosing block. */
#define HD_TYPE_TEXT(t) hd_type_format((char[160]){0}, 160, (t), NULL)

static inline bool hd_dtype_is_index(hd_dtype t) { return t == HD_I32 || t == HD_I64; }

/* Elements of dimensions [from, to). */
static inline int64_t hd_dims_product(const int64_t *dim, int from, int to)
{
    int64_t n = 1;
    for (int i = from; i < to; i++) n *= dim[i];
    return n;
}

/* One parallel loop that runs over dimension `dim` of an operand and dimension `out_dim` of result 0. */
static inline int hd_loop_through(const hd_sig *s, hd_loops *l, int operand, int dim, int out_dim)
{
    int loop = hd_loop_new(l, s->in[operand].shape.dim[dim], false);
    hd_loop_in(l, operand, dim, loop);
    hd_loop_out(l, 0, out_dim, loop);
    return loop;
}

#endif
