/* store.c: tensors by path, and their initial values. */
#include "exec/store.h"

#include <math.h>

#include "base/rng.h"
#include "base/thread.h"

enum { ALIGN = 64, HUGE_PAGE = 2 << 20, BLOCK_BYTES = 2 * HUGE_PAGE };

struct hd_store_block {
    struct hd_store_block *next;
    char *data;
    size_t size, used; /* bytes */
};

/* ---- life cycle ---- */

hd_store *hd_store_new(const hd_graph *g, uint64_t seed, hd_error *err)
{
    return hd_store_new_rank(g, seed, 0, err);
}

hd_store *hd_store_new_rank(const hd_graph *g, uint64_t seed, int rank, hd_error *err)
{
    if (g && (rank < 0 || rank >= hd_mesh_size(&g->mesh))) {
        hd_fail(err, HD_EINVAL, "there is no rank %d in a mesh of %d", rank, hd_mesh_size(&g->mesh));
        return NULL;
    }
    hd_store *s = hd_calloc(1, sizeof *s);
    if (!s) {
        hd_fail_memory(err, sizeof *s, "a model's state");
        return NULL;
    }
    if (g) s->mesh = g->mesh;
    s->rank = rank;
    if (g && hd_store_add_graph(s, g, seed, err)) {
        hd_store_free(s);
        return NULL;
    }
    return s;
}

void hd_store_free(hd_store *s)
{
    if (!s) return;
    for (struct hd_store_block *b = s->blocks, *next; b; b = next) {
        next = b->next;
        hd_unmap_memory(b->data, b->size);
        hd_free(b);
    }
    hd_free(s->tensors);
    hd_free(s->index);
    hd_arena_free(&s->memory);
    hd_free(s);
}

/* ---- finding ---- */

static size_t slot_of(const hd_store *s, const char *path)
{
    size_t i = hd_hash_string(path) & (s->index_size - 1);
    while (s->index[i] && strcmp(s->tensors[s->index[i] - 1]->path, path)) i = (i + 1) & (s->index_size - 1);
    return i;
}

hd_store_tensor *hd_store_find(const hd_store *s, const char *path)
{
    if (!s->index_size) return NULL;
    int at = s->index[slot_of(s, path)];
    return at ? s->tensors[at - 1] : NULL;
}

/* Room for one more at a load of at most one half. */
static int grow_index(hd_store *s)
{
    if (2 * (s->n_tensors + 1) <= s->index_size) return 0;
    size_t size = s->index_size ? 2 * s->index_size : 64;
    int *index = hd_calloc(size, sizeof *index);
    if (!index) return HD_ENOMEM;
    hd_free(s->index);
    s->index = index;
    s->index_size = size;
    for (size_t i = 0; i < s->n_tensors; i++) index[slot_of(s, s->tensors[i]->path)] = (int)i + 1;
    return 0;
}

static int type_differs(const hd_store_tensor *t, const hd_type *type, hd_error *err)
{
    char have[160], want[160];
    if (hd_type_equal(&t->type, type)) return 0;
    return hd_fail(err, HD_EINVAL, "%s is %s in the model's state, but the program wants %s", t->path, hd_type_format(have, sizeof have, &t->type, NULL),
                   hd_type_format(want, sizeof want, type, NULL));
}

hd_store_tensor *hd_store_bind(const hd_store *s, const char *path, const hd_type *type, hd_format format, hd_error *err)
{
    hd_store_tensor *t = hd_store_find(s, path);
    if (!t) hd_fail(err, HD_EINVAL, "the model's state has no %s", path);
    else if (t->hollow) hd_fail(err, HD_EINVAL, "the model's state has no values of %s", path);
    else if (t->format != format) hd_fail(err, HD_EINVAL, "%s is not held in the format that the program wants", path);
    else if (!type_differs(t, type, err)) return t;
    return NULL;
}

/* ---- adding ---- */

static size_t aligned(size_t bytes)
{
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

/* A current block with room for `bytes`. NULL when out of memory. */
static struct hd_store_block *reserve(hd_store *s, size_t bytes)
{
    struct hd_store_block *b = s->blocks;
    if (b && b->size - b->used >= bytes) return b;
    b = hd_calloc(1, sizeof *b);
    if (!b) return NULL;
    b->size = bytes > BLOCK_BYTES ? bytes : BLOCK_BYTES;
    if (b->size < SIZE_MAX - HUGE_PAGE) b->size = (b->size + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE; /* as much is mapped, and touched, in any case */
    b->data = hd_map_memory(b->size);
    if (!b->data) {
        hd_free(b);
        return NULL;
    }
    b->next = s->blocks;
    return s->blocks = b;
}

static void *take_memory(hd_store *s, size_t bytes)
{
    bytes = aligned(bytes);
    struct hd_store_block *b = reserve(s, bytes);
    if (!b) return NULL;
    b->used += bytes;
    return b->data + b->used - bytes;
}

/* data NULL: memory of the store's own. */
static int add_tensor(hd_store *s, const char *path, const hd_type *type, hd_format format, hd_kind kind, int64_t bytes, void *data, hd_store_tensor **out, hd_error *err)
{
    if (hd_store_find(s, path)) return hd_fail(err, HD_EINVAL, "%s is in the model's state already", path);
    hd_store_tensor *t = hd_arena_alloc(&s->memory, sizeof *t);
    char *name = hd_arena_strdup(&s->memory, path);
    if (!t || !name || grow_index(s) || hd_grow(&s->tensors, &s->cap_tensors, s->n_tensors + 1, sizeof *s->tensors))
        return hd_fail_memory(err, sizeof *t, path);
    *t = (hd_store_tensor){.path = name, .type = *type, .format = format, .kind = kind, .bytes = bytes, .lent = data != NULL,
                             .data = data ? data : take_memory(s, (size_t)bytes)};
    if (!t->data) return hd_fail_memory(err, (size_t)bytes, path);
    s->index[slot_of(s, path)] = (int)s->n_tensors + 1;
    s->tensors[s->n_tensors++] = t;
    if (out) *out = t;
    return 0;
}

int hd_store_add(hd_store *s, const char *path, const hd_type *type, hd_format format, hd_kind kind, int64_t bytes, hd_store_tensor **out, hd_error *err)
{
    return add_tensor(s, path, type, format, kind, bytes ? bytes : hd_type_bytes(type), NULL, out, err);
}

int hd_store_lend(hd_store *s, const char *path, const hd_type *type, const void *data, hd_error *err)
{
    return add_tensor(s, path, type, HD_PLAIN, HD_PARAM, hd_type_bytes(type), (void *)data, NULL, err);
}

int hd_store_lend_packed(hd_store *s, const char *path, const hd_type *type, int64_t bytes, const void *data, hd_error *err)
{
    return add_tensor(s, path, type, HD_PACKED, HD_PARAM, bytes, (void *)data, NULL, err);
}

static void clear(char *from, const char *to)
{
    if (to > from) memset(from, 0, (size_t)(to - from));
}

/* What came last into a block leaves room for the next, zeros again, and with it goes what its huge pages touched beyond it. */
static void give_back(hd_store *s, const hd_store_tensor *t)
{
    enum { PAGE = 4096 };
    char *data = t->data, *end = data + aligned((size_t)t->bytes);
    struct hd_store_block *b = s->blocks;
    while (b && (data < b->data || end > b->data + b->size)) b = b->next;
    if (!b || end != b->data + b->used) {
        hd_release_pages(data, (size_t)t->bytes);
        return;
    }
    char *first = (char *)(((uintptr_t)data + PAGE - 1) / PAGE * PAGE), *last = (char *)((uintptr_t)(b->data + b->size) / PAGE * PAGE);
    b->used = (size_t)(data - b->data);
    clear(data, first < end ? first : end);
    clear(last > data ? last : data, end);
    if (last > first) hd_release_pages(first, (size_t)(last - first));
}

void hd_store_drop(hd_store *s, const char *path)
{
    hd_store_tensor *t = hd_store_find(s, path);
    if (!t) return;
    size_t at = 0;
    while (s->tensors[at] != t) at++;
    memmove(&s->tensors[at], &s->tensors[at + 1], (s->n_tensors - at - 1) * sizeof *s->tensors);
    s->n_tensors--;
    if (!t->lent) give_back(s, t);
    memset(s->index, 0, s->index_size * sizeof *s->index);
    for (size_t i = 0; i < s->n_tensors; i++) s->index[slot_of(s, s->tensors[i]->path)] = (int)i + 1;
}

hd_tensor hd_store_tensor_view(const hd_store_tensor *t)
{
    hd_tensor v = {.data = t->data, .dtype = t->type.dtype, .format = t->format, .blocks = t->type.blocks, .rank = t->type.shape.rank};
    memcpy(v.dim, t->type.shape.dim, sizeof v.dim);
    return v;
}

int64_t hd_store_bytes(const hd_store *s)
{
    int64_t sum = 0;
    for (size_t i = 0; i < s->n_tensors; i++) sum += s->tensors[i]->lent ? 0 : s->tensors[i]->bytes;
    return sum;
}

/* ---- initial values ---- */

typedef struct filling {
    const hd_store_tensor *tensor;
    hd_init init;
    uint64_t key;
    const hd_mesh *mesh; /* the tensor is a piece, of rank `rank`; NULL: whole */
    int rank;
} filling;

/* Values of elements 4*block .. 4*block+3 of the whole, from one counter. */
static void draw_block(const filling *f, int64_t block, double *v)
{
    hd_philox r = hd_philox_block(f->key, (uint64_t)block, 0);
    for (int i = 0; i < 4; i += 2) {
        double u = hd_uniform_open(r.word[i]), w = hd_uniform_open(r.word[i + 1]);
        if (f->init.how == HD_INIT_UNIFORM) {
            v[i] = f->init.a * (2 * u - 1);
            v[i + 1] = f->init.a * (2 * w - 1);
            continue;
        }
        double radius = f->init.a * sqrt(-2 * log(u)), angle = 2 * M_PI * w; /* Box and Muller 1958 */
        v[i] = radius * cos(angle);
        v[i + 1] = radius * sin(angle);
    }
}

/* As many of the block's elements as there are. */
static void fill_block(const filling *f, int64_t block, int64_t count)
{
    double v[4];
    draw_block(f, block, v);
    for (int i = 0; i < 4 && 4 * block + i < count; i++) hd_store_f64(f->tensor->data, f->tensor->type.dtype, 4 * block + i, v[i]);
}

/* Index in the whole of the first element of row `row` (along the last dimension) of this rank's piece. */
static int64_t row_in_whole(const filling *f, int64_t row)
{
    const hd_store_tensor *t = f->tensor;
    int rank = t->whole.rank;
    int64_t index = 0, stride = 1;
    for (int d = rank - 1; d >= 0; d--) {
        int64_t begin, end, at = 0;
        hd_dim_piece(f->mesh, &t->layout->dim[d], t->whole.dim[d], f->rank, &begin, &end);
        if (d < rank - 1) at = row % (end - begin), row /= end - begin;
        index += (begin + at) * stride;
        stride *= t->whole.dim[d];
    }
    return index;
}

/* Rows [begin, end) of a piece, with what the whole has there. */
static void fill_rows(const filling *f, int64_t length, int64_t begin, int64_t end)
{
    double v[4];
    for (int64_t row = begin; row < end; row++) {
        int64_t from = row_in_whole(f, row);
        for (int64_t k = 0; k < length; k++) {
            if (k == 0 || (from + k) % 4 == 0) draw_block(f, (from + k) / 4, v);
            hd_store_f64(f->tensor->data, f->tensor->type.dtype, row * length + k, v[(from + k) % 4]);
        }
    }
}

static void fill_piece(const filling *f, int tid, int threads)
{
    const hd_shape *s = &f->tensor->type.shape;
    int64_t length = s->rank ? s->dim[s->rank - 1] : 1, begin, end;
    if (hd_shape_count(s) == 0) return;
    hd_split(hd_shape_count(s) / length, 1, tid, threads, &begin, &end);
    fill_rows(f, length, begin, end);
}

typedef struct fill_job { hd_team *team; const filling *list; size_t n; } fill_job;

static void fill_all(void *arg, int tid)
{
    const fill_job *job = arg;
    for (size_t i = 0; i < job->n; i++) {
        const filling *f = &job->list[i];
        int64_t count = hd_shape_count(&f->tensor->type.shape), begin, end;
        bool random = f->init.how != HD_INIT_CONSTANT;
        if (f->mesh && random) {
            fill_piece(f, tid, hd_team_size(job->team));
            continue;
        }
        hd_split(random ? (count + 3) / 4 : count, 1, tid, hd_team_size(job->team), &begin, &end);
        for (int64_t k = begin; k < end; k++) {
            if (random) fill_block(f, k, count);
            else hd_store_f64(f->tensor->data, f->tensor->type.dtype, k, f->init.a);
        }
    }
}

static int run_fillings(const filling *list, size_t n, hd_error *err)
{
    int64_t elements = 0;
    for (size_t i = 0; i < n; i++) elements += hd_shape_count(&list[i].tensor->type.shape);
    fill_job job = {hd_team_new(elements > 1 << 18 ? hd_core_count() : 1, false, err), list, n};
    if (!job.team) return err ? err->code : HD_ENOMEM;
    hd_team_run(job.team, fill_all, &job);
    hd_team_free(job.team);
    return 0;
}

/* The type of this rank's piece. */
static hd_type piece_type(const hd_store *s, const hd_value_info *v)
{
    hd_type t = v->type;
    if (v->layout) t.shape = hd_layout_shape(&s->mesh, v->layout, &v->whole, s->rank);
    t.shape.sym = v->type.shape.sym;
    return t;
}

static int keep_layout(hd_store *s, hd_store_tensor *t, const hd_value_info *v, hd_error *err)
{
    if (!v->layout) return 0;
    t->whole = v->whole;
    t->layout = hd_arena_copy(&s->memory, v->layout, sizeof *v->layout);
    return t->layout ? 0 : hd_fail_memory(err, sizeof *v->layout, v->path);
}

int hd_store_add_hollow(hd_store *s, const hd_graph *g, const hd_value_info *v, hd_error *err)
{
    static const char nothing;
    hd_store_tensor *t;
    if (!s->mesh.n) s->mesh = g->mesh;
    hd_type type = piece_type(s, v);
    int rc = add_tensor(s, v->path, &type, HD_PLAIN, v->kind, 0, (void *)&nothing, &t, err);
    if (!rc) t->data = NULL, t->hollow = true;
    return rc ? rc : keep_layout(s, t, v, err);
}

static int add_value(hd_store *s, const hd_value_info *v, uint64_t seed, filling *out, hd_error *err)
{
    hd_store_tensor *t = hd_store_find(s, v->path);
    hd_type type = piece_type(s, v);
    *out = (filling){0};
    if (t) return type_differs(t, &type, err);
    int rc = hd_store_add(s, v->path, &type, HD_PLAIN, v->kind, 0, &t, err);
    if (!rc) rc = keep_layout(s, t, v, err);
    if (rc) return rc;
    if (v->data) hd_layout_take(&s->mesh, v->layout, v->layout ? &v->whole : &v->type.shape, s->rank, hd_dtype_size(type.dtype), v->data, t->data);
    else if (v->init && (v->init->how != HD_INIT_CONSTANT || v->init->a != 0))
        *out = (filling){t, *v->init, hd_hash_mix(seed, hd_hash_string(v->path)), t->layout ? &s->mesh : NULL, s->rank};
    return 0;
}

static bool is_kept(const hd_value_info *v)
{
    return v->kind == HD_PARAM || v->kind == HD_STATE;
}

/* One block for all that will be added: pieces of blocks left over would cost up to a huge page each. */
static int reserve_for_graph(hd_store *s, const hd_graph *g, hd_error *err)
{
    size_t bytes = 0;
    for (size_t i = 0; i < g->n_values; i++) {
        const hd_value_info *v = &g->values[i];
        if (is_kept(v) && !hd_store_find(s, v->path)) bytes += aligned((size_t)hd_type_bytes(&v->type));
    }
    return !bytes || reserve(s, bytes) ? 0 : hd_fail_memory(err, bytes, "a model's state");
}

int hd_store_add_graph(hd_store *s, const hd_graph *g, uint64_t seed, hd_error *err)
{
    hd_error local = {0};
    if (!err) err = &local;
    filling *list = hd_malloc((g->n_values + 1) * sizeof *list);
    if (!list) return hd_fail_memory(err, g->n_values * sizeof *list, "a model's state");
    size_t n = 0;
    if (!s->mesh.n) s->mesh = g->mesh; /* the first graph of an empty store */
    int rc = reserve_for_graph(s, g, err);
    for (size_t i = 0; i < g->n_values && !rc; i++) {
        const hd_value_info *v = &g->values[i];
        if (!is_kept(v)) continue;
        rc = add_value(s, v, seed, &list[n], err);
        if (list[n].tensor) n++;
    }
    if (!rc && n) rc = run_fillings(list, n, err);
    hd_free(list);
    return rc;
}
