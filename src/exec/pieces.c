/* pieces.c: whole tensors in files, pieces of them in stores. */
#include "exec/pieces.h"

/* ---- what there is in all ---- */

hd_shape hd_store_tensor_whole(const hd_store_tensor *t)
{
    return t->layout ? t->whole : t->type.shape;
}

static bool is_listed(const hd_store *s, const char *path)
{
    for (size_t i = 0; i < s->n_all; i++)
        if (!strcmp(s->all[i].path, path)) return true;
    return false;
}

int hd_store_list_graph(hd_store *s, const hd_graph *g, int stage, hd_error *err)
{
    hd_whole *all = hd_arena_alloc(&s->memory, (s->n_all + g->n_values) * sizeof *all);
    if (!all) return hd_fail_memory(err, g->n_values * sizeof *all, "the list of a model's state");
    if (s->n_all) memcpy(all, s->all, s->n_all * sizeof *all);
    bool first = !s->n_all;
    size_t n = s->n_all;
    for (size_t i = 0; i < g->n_values; i++) {
        const hd_value_info *v = &g->values[i];
        if ((v->kind != HD_PARAM && v->kind != HD_STATE) || (!first && is_listed(s, v->path))) continue;
        all[n] = (hd_whole){.path = hd_arena_strdup(&s->memory, v->path), .type = v->type, .kind = v->kind, .stage = stage};
        if (v->layout) {
            all[n].type.shape = v->whole;
            all[n].layout = hd_arena_copy(&s->memory, v->layout, sizeof *v->layout);
        }
        if (!all[n++].path) return hd_fail_memory(err, strlen(v->path), "the list of a model's state");
    }
    s->all = all;
    s->n_all = n;
    return 0;
}

int hd_store_wholes(const hd_store *s, hd_whole **out, size_t *n, hd_error *err)
{
    *n = s->all ? s->n_all : s->n_tensors;
    *out = hd_calloc(*n + 1, sizeof **out);
    if (!*out) return hd_fail_memory(err, *n * sizeof **out, "the list of a model's state");
    if (s->all) {
        memcpy(*out, s->all, *n * sizeof **out);
        return 0;
    }
    for (size_t i = 0; i < *n; i++) {
        const hd_store_tensor *t = s->tensors[i];
        (*out)[i] = (hd_whole){t->path, t->type, t->kind, t->layout, 0};
        (*out)[i].type.shape = hd_store_tensor_whole(t);
    }
    return 0;
}

/* ---- files ---- */

bool hd_piece_is_ours(const hd_store *s, const hd_store_tensor *t)
{
    uint32_t cut = hd_layout_axes(t->layout, t->type.shape.rank);
    for (int a = 0; a < s->mesh.n; a++) {
        bool held_whole = !(cut >> a & 1) && s->mesh.axis[a].role != HD_AXIS_PIPELINE;
        if (held_whole && hd_mesh_coordinate(&s->mesh, s->rank, a)) return false;
    }
    return !t->guest;
}

/* The next elements of *r that lie together in the file, taken off its front. */
static hd_run take_row(hd_run *r, hd_file_place at)
{
    hd_run row = *r;
    if (at.run) {
        int64_t column = r->whole % at.run;
        if (at.run - column < row.count) row.count = at.run - column;
        row.whole = at.first + r->whole / at.run * at.stride + column;
    }
    r->whole += row.count;
    r->piece += row.count;
    r->count -= row.count;
    return row;
}

static hd_run_iter runs_of(const hd_store *s, const hd_store_tensor *t)
{
    hd_shape whole = hd_store_tensor_whole(t);
    return hd_layout_runs(&s->mesh, t->layout, &whole, s->rank);
}

int hd_piece_write(hd_safetensors_writer *w, size_t which, const hd_store *s, const hd_store_tensor *t, hd_file_place at, hd_error *err)
{
    hd_run_iter it = runs_of(s, t);
    size_t size = hd_dtype_size(t->type.dtype);
    for (hd_run r; hd_run_next(&it, &r);) {
        while (r.count) {
            hd_run row = take_row(&r, at);
            int rc = hd_safetensors_write(w, which, row.whole, row.count, (const char *)t->data + (size_t)row.piece * size, t->type.dtype, err);
            if (rc) return rc;
        }
    }
    return 0;
}

void hd_piece_load(const hd_weight *w, const hd_store *s, const hd_store_tensor *t, hd_file_place at)
{
    hd_run_iter it = runs_of(s, t);
    size_t size = hd_dtype_size(t->type.dtype);
    for (hd_run r; hd_run_next(&it, &r);) {
        while (r.count) {
            hd_run row = take_row(&r, at);
            hd_weight_load(w, row.whole, row.count, (char *)t->data + (size_t)row.piece * size, t->type.dtype);
        }
    }
}

static int write_ours(hd_safetensors_writer *w, const hd_store *s, const hd_whole *list, size_t n, hd_error *err)
{
    for (size_t i = 0; i < n; i++) {
        const hd_store_tensor *t = hd_store_find(s, list[i].path);
        int rc = t && hd_piece_is_ours(s, t) ? hd_piece_write(w, i, s, t, (hd_file_place){0}, err) : 0;
        if (rc) return rc;
    }
    return 0;
}

int hd_wholes_save(const hd_store *s, const hd_whole *list, size_t n, const char *path, hd_share *share, hd_error *err)
{
    hd_weight_spec *specs = hd_calloc(n + 1, sizeof *specs);
    if (!specs) return hd_fail_memory(err, n * sizeof *specs, path);
    for (size_t i = 0; i < n; i++) {
        specs[i] = (hd_weight_spec){.name = list[i].path, .dtype = list[i].type.dtype, .rank = list[i].type.shape.rank};
        memcpy(specs[i].dim, list[i].type.shape.dim, sizeof specs[i].dim);
    }
    hd_safetensors_writer *w = hd_safetensors_begin(share, path, specs, n, NULL, err);
    int rc = w ? 0 : err->code;
    if (!rc && !(share && share->part == HD_SHARE_FRAME)) rc = write_ours(w, s, list, n, err);
    rc = hd_safetensors_end(share, w, rc, err);
    hd_free(specs);
    return rc;
}
