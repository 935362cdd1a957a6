/* shape.c: types and shapes. */
#include <stdio.h>
#include "graph/graph.h"

hd_type hd_type_of(hd_dtype dtype, int rank, const int64_t *dims)
{
    hd_type t = {.dtype = dtype, .shape = {.rank = rank, .sym = -1}};
    for (int i = 0; i < rank && i < HD_MAX_RANK; i++) t.shape.dim[i] = dims[i];
    return t;
}

hd_type hd_type_scalar(hd_dtype dtype)
{
    return hd_type_of(dtype, 0, NULL);
}

int64_t hd_shape_count(const hd_shape *s)
{
    int64_t n = 1;
    for (int i = 0; i < s->rank; i++) n *= s->dim[i];
    return n;
}

bool hd_shape_equal(const hd_shape *a, const hd_shape *b)
{
    if (a->rank != b->rank || a->sym != b->sym) return false;
    for (int i = 0; i < a->rank; i++)
        if (a->dim[i] != b->dim[i]) return false;
    return true;
}

bool hd_type_equal(const hd_type *a, const hd_type *b)
{
    return a->dtype == b->dtype && a->blocks == b->blocks && hd_shape_equal(&a->shape, &b->shape);
}

int64_t hd_type_bytes(const hd_type *t)
{
    if (t->absent) return 0;
    int64_t count = hd_shape_count(&t->shape);
    return t->blocks ? count / t->blocks->block * t->blocks->bytes : count * (int64_t)hd_dtype_size(t->dtype);
}

static size_t append_dim(char *out, size_t n, size_t at, const hd_shape *s, int i, const hd_graph *g)
{
    const char *comma = i ? ", " : "";
    size_t room = at < n ? n - at : 0;
    char *p = room ? out + at : NULL;
    if (i || s->sym < 0) return at + (size_t)snprintf(p, room, "%s%lld", comma, (long long)s->dim[i]);
    if (g) return at + (size_t)snprintf(p, room, "%s%s<=%lld", comma, g->symbols[s->sym].name, (long long)s->dim[i]);
    return at + (size_t)snprintf(p, room, "%s$%d<=%lld", comma, s->sym, (long long)s->dim[i]);
}

char *hd_type_format(char *out, size_t n, const hd_type *t, const hd_graph *g)
{
    if (t->absent) {
        snprintf(out, n, "absent");
        return out;
    }
    size_t at = (size_t)snprintf(out, n, "%s%s%s[", hd_dtype_name(t->dtype), t->blocks ? ":" : "", t->blocks ? t->blocks->name : "");
    for (int i = 0; i < t->shape.rank; i++) at = append_dim(out, n, at, &t->shape, i, g);
    if (at < n) snprintf(out + at, n - at, "]");
    return out;
}
