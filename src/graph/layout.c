/* layout.c: meshes and layouts: which piece of a value lies where. */
#include "graph/layout.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/thread.h"

/* ---- meshes ---- */

int hd_mesh_size(const hd_mesh *m)
{
    int n = 1;
    for (int a = 0; a < m->n; a++) n *= m->axis[a].size;
    return n;
}

int hd_mesh_find(const hd_mesh *m, const char *name)
{
    for (int a = 0; a < m->n; a++)
        if (!strcmp(m->axis[a].name, name)) return a;
    return -1;
}

/* Ranks from one coordinate of the axis to the next. */
static int stride_of(const hd_mesh *m, int axis)
{
    int n = 1;
    for (int a = axis + 1; a < m->n; a++) n *= m->axis[a].size;
    return n;
}

int hd_mesh_coordinate(const hd_mesh *m, int rank, int axis)
{
    return rank / stride_of(m, axis) % m->axis[axis].size;
}

int hd_mesh_index(const hd_mesh *m, int rank, const int8_t *axes, int n, int *count)
{
    int index = 0, all = 1;
    for (int i = 0; i < n; i++) {
        index = index * m->axis[axes[i]].size + hd_mesh_coordinate(m, rank, axes[i]);
        all *= m->axis[axes[i]].size;
    }
    if (count) *count = all;
    return index;
}

int hd_mesh_group(const hd_mesh *m, int rank, const int8_t *axes, int n, int *ranks)
{
    int base = rank, count = 1;
    for (int i = 0; i < n; i++) base -= hd_mesh_coordinate(m, rank, axes[i]) * stride_of(m, axes[i]);
    for (int i = 0; i < n; i++) count *= m->axis[axes[i]].size;
    for (int j = 0; j < count; j++) {
        ranks[j] = base;
        for (int i = n, left = j; i-- > 0; left /= m->axis[axes[i]].size) ranks[j] += left % m->axis[axes[i]].size * stride_of(m, axes[i]);
    }
    return count;
}

int hd_mesh_parse_axes(const hd_mesh *m, const char *text, int8_t *axes)
{
    int n = 0;
    while (*text) {
        size_t length = strcspn(text, ".");
        int found = -1;
        for (int a = 0; a < m->n; a++)
            if (strlen(m->axis[a].name) == length && !strncmp(m->axis[a].name, text, length)) found = a;
        if (found < 0 || n == HD_MAX_AXES) return -1;
        axes[n++] = (int8_t)found;
        text += length;
        if (*text == '.') text++;
    }
    return n;
}

void hd_mesh_print_axes(const hd_mesh *m, const int8_t *axes, int n, char *out, size_t size)
{
    size_t at = 0;
    if (size) *out = 0;
    for (int i = 0; i < n && at < size; i++) at += (size_t)snprintf(out + at, size - at, "%s%s", i ? "." : "", m->axis[axes[i]].name);
}

/* ---- pieces ---- */

void hd_dim_piece(const hd_mesh *m, const hd_dim_layout *d, int64_t extent, int rank, int64_t *begin, int64_t *end)
{
    *begin = 0;
    *end = extent;
    for (int i = 0; i < d->n; i++) {
        int64_t first, last;
        int size = m->axis[d->axis[i]].size;
        hd_split(*end - *begin, d->unit[i], (hd_mesh_coordinate(m, rank, d->axis[i]) + d->shift[i]) % size, size, &first, &last);
        *end = *begin + last;
        *begin += first;
    }
}

hd_shape hd_layout_shape(const hd_mesh *m, const hd_layout *layout, const hd_shape *whole, int rank)
{
    hd_shape s = *whole;
    for (int i = 0; layout && i < s.rank; i++) {
        int64_t begin, end;
        hd_dim_piece(m, &layout->dim[i], whole->dim[i], rank, &begin, &end);
        s.dim[i] = end - begin;
    }
    return s;
}

hd_shape hd_layout_largest(const hd_mesh *m, const hd_layout *layout, const hd_shape *whole)
{
    hd_layout l = layout ? *layout : (hd_layout){0};
    for (int i = 0; i < whole->rank; i++) memset(l.dim[i].shift, 0, sizeof l.dim[i].shift);
    return hd_layout_shape(m, &l, whole, 0);
}

uint32_t hd_layout_axes(const hd_layout *layout, int rank)
{
    uint32_t mask = 0;
    for (int i = 0; layout && i < rank; i++)
        for (int k = 0; k < layout->dim[i].n; k++) mask |= 1u << layout->dim[i].axis[k];
    return mask;
}

/* Whether every piece has the same number of elements whatever the unit of its cuts: the units then say nothing. */
static bool is_even(const hd_mesh *m, const hd_dim_layout *d, int64_t extent)
{
    for (int i = 0; i < d->n; i++) {
        int64_t step = d->unit[i] * m->axis[d->axis[i]].size;
        if (extent % step) return false;
        extent /= m->axis[d->axis[i]].size;
    }
    return true;
}

bool hd_dim_layout_equal(const hd_mesh *m, const hd_dim_layout *a, const hd_dim_layout *b, int64_t extent)
{
    if (a->n != b->n) return false;
    bool units = true;
    for (int i = 0; i < a->n; i++) {
        if (a->axis[i] != b->axis[i] || a->shift[i] != b->shift[i]) return false;
        units &= a->unit[i] == b->unit[i];
    }
    return units || (is_even(m, a, extent) && is_even(m, b, extent));
}

bool hd_layout_equal(const hd_mesh *m, const hd_layout *a, const hd_layout *b, const hd_shape *whole)
{
    static const hd_layout none;
    if (!a) a = &none;
    if (!b) b = &none;
    if (a->partial != b->partial || (a->partial && a->max != b->max)) return false;
    for (int i = 0; i < whole->rank; i++)
        if (!hd_dim_layout_equal(m, &a->dim[i], &b->dim[i], whole->dim[i])) return false;
    return true;
}

/* ---- text ---- */

void hd_layout_print(const hd_mesh *m, const hd_layout *layout, int rank, hd_str *out)
{
    for (int i = 0; i < rank; i++) {
        const hd_dim_layout *d = layout ? &layout->dim[i] : NULL;
        if (i) hd_str_putc(out, ',');
        if (!d || !d->n) hd_str_putc(out, '-');
        for (int k = 0; d && k < d->n; k++) {
            hd_str_printf(out, "%s%s", k ? "." : "", m->axis[d->axis[k]].name);
            if (d->unit[k] != 1) hd_str_printf(out, "*%lld", (long long)d->unit[k]);
            if (d->shift[k]) hd_str_printf(out, ">%d", d->shift[k]);
        }
    }
    if (!layout || !layout->partial) return;
    for (int a = 0, any = 0; a < m->n; a++)
        if (layout->partial >> a & 1) hd_str_printf(out, "%s+%s", any++ || rank ? " " : "", m->axis[a].name);
    if (layout->max) hd_str_puts(out, " max");
}

typedef struct layout_reader { const hd_mesh *m; const char *at, *text; uint32_t used; hd_error *err; } layout_reader;

static int bad_layout(const layout_reader *r, const char *why)
{
    return hd_fail(r->err, HD_EFORMAT, "layout \"%s\": %s", r->text, why);
}

/* The axis named at r->at, passed over; -1 and an error if there is none or it was named before. */
static int read_axis(layout_reader *r)
{
    size_t n = strcspn(r->at, ".,*>+ ");
    for (int a = 0; a < r->m->n; a++) {
        if (strlen(r->m->axis[a].name) != n || strncmp(r->m->axis[a].name, r->at, n)) continue;
        if (r->used >> a & 1) return bad_layout(r, "an axis is named twice"), -1;
        r->used |= 1u << a;
        r->at += n;
        return a;
    }
    hd_fail(r->err, HD_EFORMAT, "layout \"%s\": the mesh has no axis \"%.*s\"", r->text, (int)n, r->at);
    return -1;
}

static int read_dim(layout_reader *r, hd_dim_layout *d)
{
    if (*r->at == '-') return r->at++, 0;
    for (;;) {
        int axis = read_axis(r);
        if (axis < 0) return HD_EFORMAT;
        if (d->n == HD_MAX_SPLITS) return bad_layout(r, "too many axes over one dimension");
        d->axis[d->n] = (int8_t)axis;
        d->unit[d->n] = 1;
        if (*r->at == '*') {
            char *end;
            d->unit[d->n] = strtoll(r->at + 1, &end, 10);
            if (end == r->at + 1 || d->unit[d->n] < 1) return bad_layout(r, "a unit is a number of at least 1");
            r->at = end;
        }
        if (*r->at == '>') {
            char *end;
            long shift = strtol(r->at + 1, &end, 10);
            if (end == r->at + 1 || shift < 1 || shift >= r->m->axis[axis].size || shift > INT16_MAX)
                return bad_layout(r, "a shift is a number from 1 to one less than the axis has ranks");
            d->shift[d->n] = (int16_t)shift;
            r->at = end;
        }
        d->n++;
        if (*r->at != '.') return 0;
        r->at++;
    }
}

static int read_partial(layout_reader *r, hd_layout *out)
{
    while (*r->at == ' ') r->at++;
    while (*r->at == '+') {
        r->at++;
        int axis = read_axis(r);
        if (axis < 0) return HD_EFORMAT;
        out->partial |= 1u << axis;
        while (*r->at == ' ') r->at++;
    }
    if (!strcmp(r->at, "max")) return out->max = true, 0;
    return *r->at ? bad_layout(r, "something is left over at its end") : 0;
}

int hd_layout_parse(const hd_mesh *m, const char *text, int rank, hd_layout *out, hd_error *err)
{
    layout_reader r = {.m = m, .at = text, .text = text, .err = err};
    *out = (hd_layout){0};
    for (int i = 0; i < rank; i++) {
        if (i && *r.at++ != ',') return hd_fail(err, HD_EFORMAT, "layout \"%s\" must have %d dimensions", text, rank);
        int rc = read_dim(&r, &out->dim[i]);
        if (rc) return rc;
    }
    return read_partial(&r, out);
}

/* ---- data ---- */

typedef struct piece_copy {
    const hd_shape *whole;
    int64_t begin[HD_MAX_RANK], count[HD_MAX_RANK];
    size_t size;
    bool put;
} piece_copy;

/* Dimension `dim` and all behind it; returns the piece's end. */
static char *copy_dim(const piece_copy *c, int dim, char *whole, char *piece)
{
    size_t row = c->size;
    for (int i = dim + 1; i < c->whole->rank; i++) row *= (size_t)c->whole->dim[i];
    bool rest = true; /* everything behind is whole: one run of memory */
    for (int i = dim + 1; i < c->whole->rank; i++) rest &= c->count[i] == c->whole->dim[i];
    whole += row * (size_t)c->begin[dim];
    if (rest) {
        size_t n = row * (size_t)c->count[dim];
        if (n) memcpy(c->put ? whole : piece, c->put ? piece : whole, n);
        return piece + n;
    }
    for (int64_t k = 0; k < c->count[dim]; k++, whole += row) piece = copy_dim(c, dim + 1, whole, piece);
    return piece;
}

static void copy_piece(const hd_mesh *m, const hd_layout *layout, const hd_shape *whole, int rank, size_t size, bool put, char *all, char *piece)
{
    piece_copy c = {.whole = whole, .size = size, .put = put};
    for (int i = 0; i < whole->rank; i++) {
        int64_t end = whole->dim[i];
        if (layout) hd_dim_piece(m, &layout->dim[i], whole->dim[i], rank, &c.begin[i], &end);
        c.count[i] = end - c.begin[i];
    }
    if (whole->rank) copy_dim(&c, 0, all, piece);
    else memcpy(put ? all : piece, put ? piece : all, size);
}

void hd_layout_take(const hd_mesh *m, const hd_layout *layout, const hd_shape *whole, int rank, size_t size, const void *from_whole, void *to_piece)
{
    copy_piece(m, layout, whole, rank, size, false, (char *)from_whole, to_piece);
}

void hd_layout_put(const hd_mesh *m, const hd_layout *layout, const hd_shape *whole, int rank, size_t size, const void *from_piece, void *to_whole)
{
    copy_piece(m, layout, whole, rank, size, true, to_whole, (char *)from_piece);
}

/* ---- runs ---- */

hd_run_iter hd_layout_runs(const hd_mesh *m, const hd_layout *layout, const hd_shape *whole, int rank)
{
    hd_run_iter it = {.run = 1, .runs = 1};
    int64_t stride = 1;
    bool in_run = true; /* dimensions so far are whole: one run of memory goes through them */
    for (int i = whole->rank; i-- > 0; stride *= whole->dim[i]) {
        int64_t begin = 0, end = whole->dim[i];
        if (layout) hd_dim_piece(m, &layout->dim[i], whole->dim[i], rank, &begin, &end);
        it.first += begin * stride;
        if (in_run) {
            it.run *= end - begin;
            in_run = end - begin == whole->dim[i];
            continue;
        }
        it.count[it.dims] = end - begin; /* the innermost first */
        it.stride[it.dims++] = stride;
        it.runs *= end - begin;
    }
    if (!it.run) it.runs = 0;
    return it;
}

bool hd_run_next(hd_run_iter *it, hd_run *out)
{
    if (it->next >= it->runs) return false;
    int64_t at = it->first, left = it->next;
    for (int i = 0; i < it->dims; i++) {
        at += left % it->count[i] * it->stride[i];
        left /= it->count[i];
    }
    *out = (hd_run){at, it->next++ * it->run, it->run};
    return true;
}
