/* op.c: looking ops up, and the facets that many of them share. */
#include "graph/op.h"

#include <assert.h>

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

const hd_op *hd_op_find(const char *name)
{
    for (int i = 0; i < hd_op_count; i++)
        if (!strcmp(hd_ops[i]->name, name)) return hd_ops[i];
    return NULL;
}

int hd_op_fail(const hd_sig *s, hd_error *err, const char *fmt, ...)
{
    char text[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return hd_fail(err, HD_EINVAL, "%s: %s", s->op->name, text);
}

bool hd_sig_has(const hd_sig *s, int operand)
{
    return operand < s->n_in && !s->in[operand].absent;
}

/* ---- loops ---- */

int hd_loop_new(hd_loops *l, int64_t extent, bool reduced)
{
    assert(l->n < HD_MAX_LOOPS);
    l->extent[l->n] = extent;
    if (reduced) l->reduced |= 1u << l->n;
    return l->n++;
}

static void map_append(hd_dim_map *m, int loop)
{
    assert(m->n < (int)sizeof m->loop);
    m->loop[m->n++] = (int8_t)loop;
}

void hd_loop_in(hd_loops *l, int operand, int dim, int loop)
{
    map_append(&l->in[operand][dim], loop);
}

void hd_loop_out(hd_loops *l, int result, int dim, int loop)
{
    map_append(&l->out[result][dim], loop);
}

void hd_loops_elementwise(const hd_sig *s, hd_loops *l)
{
    const hd_shape *y = &s->out[0].shape;
    for (int d = 0; d < y->rank; d++) {
        int loop = hd_loop_new(l, y->dim[d], false);
        for (int r = 0; r < s->n_out; r++) hd_loop_out(l, r, d, loop);
        for (int i = 0; i < s->n_in; i++) {
            int at = d - (y->rank - s->in[i].shape.rank);
            if (hd_sig_has(s, i) && at >= 0 && (s->in[i].shape.dim[at] != 1 || y->dim[d] == 1)) hd_loop_in(l, i, at, loop);
        }
    }
}

void hd_loops_rows(const hd_sig *s, hd_loops *l, int whole)
{
    const hd_shape *y = &s->out[0].shape;
    for (int d = 0; d < y->rank - whole; d++) {
        int loop = hd_loop_new(l, y->dim[d], false);
        for (int r = 0; r < s->n_out; r++)
            if (d < s->out[r].shape.rank) hd_loop_out(l, r, d, loop);
        for (int i = 0; i < s->n_in; i++)
            if (hd_sig_has(s, i) && s->in[i].shape.rank >= y->rank - whole) hd_loop_in(l, i, d, loop);
    }
}

/* ---- cost and aliasing ---- */

double hd_cost_bytes(const hd_sig *s)
{
    double bytes = 0;
    for (int i = 0; i < s->n_in; i++)
        bytes += (double)hd_type_bytes(&s->in[i]);
    for (int i = 0; i < s->n_out; i++) bytes += (double)hd_type_bytes(&s->out[i]);
    return bytes;
}

void hd_cost_default(const hd_sig *s, hd_cost *c)
{
    c->flops = (double)hd_shape_count(&s->out[0].shape);
    c->bytes = hd_cost_bytes(s);
}

uint32_t hd_alias_same_type(const hd_sig *s, int result)
{
    uint32_t mask = 0;
    for (int i = 0; i < s->n_in; i++) {
        const hd_type *t = &s->in[i];
        if (!t->absent && t->dtype == s->out[result].dtype && hd_shape_equal(&t->shape, &s->out[result].shape)) mask |= 1u << i;
    }
    return mask;
}

/* ---- one rank's piece ---- */

void hd_op_localise(const hd_sig *whole, const hd_loop_split *splits, int n_splits, const hd_mesh *mesh, int rank, void *attrs)
{
    hd_loops loops = {0};
    if (!n_splits || !whole->op->localise) return;
    whole->op->loops(whole, &loops);
    for (int i = 0; i < n_splits; i++) {
        int64_t begin, end;
        hd_dim_piece(mesh, &splits[i].over, loops.extent[splits[i].loop], rank, &begin, &end);
        whole->op->localise(whole, &loops, splits[i].loop, begin, end, attrs);
    }
}
