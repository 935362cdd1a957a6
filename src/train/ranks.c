#include "train/ranks.h"

#include <stdlib.h>

bool hd_rank_is_first(const hd_rank *rank)
{
    return !rank || rank->rank == 0;
}

int hd_ranks_on_host(int n)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"}; /* Open MPI; MPICH */
    for (int i = 0; i < 2; i++) {
        const char *text = getenv(names[i]);
        if (text && atoi(text) > 0) return atoi(text);
    }
    return n;
}

static hd_comm_group *everyone(const hd_rank *rank, hd_error *err)
{
    int n = hd_comm_size(rank->comm), *list = hd_malloc((size_t)n * sizeof *list);
    if (!list) return hd_fail_memory(err, (size_t)n * sizeof *list, "the list of ranks"), NULL;
    for (int i = 0; i < n; i++) list[i] = i;
    hd_comm_group *g = hd_comm_group_get(rank->comm, list, n, err);
    hd_free(list);
    return g;
}

static int with_everyone(const hd_rank *rank, const hd_transfer *t, hd_error *err)
{
    if (!rank || !rank->comm) return 0;
    hd_comm_group *g = everyone(rank, err);
    return g ? hd_comm_do(rank->comm, g, t, err) : err->code;
}

static hd_transfer reduction(hd_dtype dtype, void *v, int64_t n, bool max)
{
    return (hd_transfer){.kind = HD_ALL_REDUCE, .dtype = dtype, .max = max, .in = v, .out = v, .count = n};
}

int hd_ranks_sum(const hd_rank *rank, int64_t *v, int64_t n, hd_error *err)
{
    hd_transfer t = reduction(HD_I64, v, n, false);
    return with_everyone(rank, &t, err);
}

int hd_ranks_max(const hd_rank *rank, int64_t *v, int64_t n, hd_error *err)
{
    hd_transfer t = reduction(HD_I64, v, n, true);
    return with_everyone(rank, &t, err);
}

int hd_ranks_barrier(const hd_rank *rank, hd_error *err)
{
    int64_t here = 1;
    return hd_ranks_sum(rank, &here, 1, err);
}

int hd_ranks_tell(const hd_rank *rank, int from, void *data, int64_t bytes, hd_error *err)
{
    hd_transfer t = {.kind = HD_BROADCAST, .dtype = HD_U8, .in = data, .out = data, .count = bytes, .peer = from};
    return with_everyone(rank, &t, err);
}

int hd_ranks_give(const hd_rank *rank, int from, int to, void *data, int64_t bytes, hd_error *err)
{
    bool sends = rank && rank->rank == from;
    hd_transfer t = {.kind = sends ? HD_SEND : HD_RECV, .dtype = HD_U8, .in = data, .out = data, .count = bytes, .peer = sends ? to : from};
    return with_everyone(rank, &t, err);
}

int hd_ranks_send(const hd_rank *rank, int to, int tag, const void *data, int64_t bytes, hd_ticket *sent, hd_error *err)
{
    hd_comm_group *all = everyone(rank, err);
    hd_transfer t = {.kind = HD_SEND, .dtype = HD_U8, .in = data, .count = bytes, .peer = to, .tag = tag};
    return all ? hd_comm_start(rank->comm, all, &t, sent, err) : HD_ECOMM;
}

int hd_ranks_receive(const hd_rank *rank, int from, int tag, void *data, int64_t bytes, hd_error *err)
{
    hd_transfer t = {.kind = HD_RECV, .dtype = HD_U8, .out = data, .count = bytes, .peer = from, .tag = tag};
    return with_everyone(rank, &t, err);
}

/* ---- outputs ---- */

/* Whether this rank's piece of buffer b counts: of equal pieces, the one at coordinate 0. */
static bool piece_counts(const hd_program *p, const hd_buffer *b, int rank)
{
    uint32_t cut = hd_layout_axes(b->layout, b->type.shape.rank);
    for (int a = 0; a < p->mesh.n; a++)
        if (!(cut >> a & 1) && p->mesh.axis[a].role != HD_AXIS_PIPELINE && hd_mesh_coordinate(&p->mesh, rank, a)) return false;
    return true;
}

/* This rank's piece, converted, in its place among zeros. */
static int place_piece(hd_exec *e, const char *name, const hd_buffer *b, int rank, float *out, hd_error *err)
{
    const hd_program *p = hd_exec_program(e);
    hd_shape whole = b->layout ? b->whole : b->type.shape;
    hd_run_iter it = hd_layout_runs(&p->mesh, b->layout, &whole, rank);
    hd_tensor t;
    int rc = hd_exec_output(e, name, &t, err);
    size_t size = rc ? 0 : hd_dtype_size(t.dtype);
    for (hd_run r; !rc && hd_run_next(&it, &r);) hd_convert(out + r.whole, HD_F32, (const char *)t.data + (size_t)r.piece * size, t.dtype, r.count);
    return rc;
}

int hd_ranks_output(hd_exec *e, const char *name, float **out, int64_t *count, hd_error *err)
{
    const hd_program *p = hd_exec_program(e);
    const hd_rank *rank = hd_exec_rank(e);
    int at = hd_program_output(p, name), me = rank ? hd_program_place(p, rank->rank) : 0;
    const hd_buffer *b = at < 0 ? NULL : &p->buffers[at];
    int64_t agreed[2] = {0, b ? p->stages - p->stage : 0}; /* elements; the first stage that has it */
    if (b) agreed[0] = hd_shape_count(b->layout ? &b->whole : &b->type.shape);
    *out = NULL;
    int rc = hd_ranks_max(rank, agreed, 2, err);
    *count = agreed[0];
    if (rc || !*count) return rc;
    *out = hd_calloc((size_t)*count, sizeof **out);
    if (!*out) return hd_fail_memory(err, (size_t)*count * sizeof **out, name);
    if (b && p->stages - p->stage == agreed[1] && piece_counts(p, b, me)) rc = place_piece(e, name, b, me, *out, err);
    hd_transfer t = reduction(HD_F32, *out, *count, false);
    if (!rc) rc = with_everyone(rank, &t, err);
    if (!rc) return 0;
    hd_free(*out);
    *out = NULL;
    return rc;
}
