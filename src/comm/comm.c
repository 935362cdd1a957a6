/* comm.c: what all transports have in common: endpoints, groups, tickets, what was sent. */
#include "comm/comm.h"

#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "comm/block.h"
#include "comm/comm_int.h"

static const char *const kind_names[HD_TRANSFER_KINDS] = {"all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast", "permute", "send", "recv"};

const char *hd_comm_kind_name(hd_transfer_kind kind) { return kind_names[kind]; }

bool hd_comm_is_reduction(hd_transfer_kind kind) { return kind == HD_ALL_REDUCE || kind == HD_REDUCE_SCATTER; }

static bool is_cut(hd_transfer_kind kind) { return kind == HD_REDUCE_SCATTER || kind == HD_ALL_GATHER || kind == HD_ALL_TO_ALL || kind == HD_PERMUTE; }
static bool has_peer(hd_transfer_kind kind) { return kind == HD_BROADCAST || kind == HD_PERMUTE || kind == HD_SEND || kind == HD_RECV; }

int hd_comm_rank(const hd_comm *c) { return c->rank; }
int hd_comm_size(const hd_comm *c) { return c->size; }
const char *hd_comm_transport(const hd_comm *c) { return c->transport->name; }
void hd_comm_abort(hd_comm *c, const char *why) { c->transport->abort(c, why); }
bool hd_comm_aborted(const hd_comm *c, char *why, size_t size) { return c->transport->aborted(c, why, size); }
bool hd_comm_is_waiting(const hd_comm *c) { return atomic_load(&c->waiting); }
void hd_comm_sent(const hd_comm *c, int64_t bytes[HD_TRANSFER_KINDS]) { memcpy(bytes, c->sent, sizeof c->sent); }

void hd_comm_free(hd_comm *c)
{
    if (c) c->transport->free(c);
}

void hd_comm_free_common(hd_comm *c)
{
    for (size_t i = 0; i < c->n_groups; i++) {
        c->transport->group_free(c->groups[i]);
        hd_free(c->groups[i]);
    }
    for (size_t i = 0; i < c->n_ops; i++) hd_free(c->ops[i]);
    hd_free(c->groups);
    hd_free(c->ops);
}

/* ---- groups ---- */

int hd_comm_group_index(const hd_comm_group *g) { return g->index; }
int hd_comm_group_size(const hd_comm_group *g) { return g->n; }

static hd_comm_group *find_group(hd_comm *c, const int *ranks, int n)
{
    for (size_t i = 0; i < c->n_groups; i++)
        if (c->groups[i]->n == n && !memcmp(c->groups[i]->rank, ranks, (size_t)n * sizeof *ranks)) return c->groups[i];
    return NULL;
}

/* The index of this rank, or HD_EINVAL when the list is no group of it. */
static int check_ranks(const hd_comm *c, const int *ranks, int n, hd_error *err)
{
    int index = -1;
    if (n < 1 || n > c->size) return hd_fail(err, HD_EINVAL, "a group of %d ranks in a world of %d", n, c->size);
    for (int i = 0; i < n; i++) {
        if (ranks[i] < 0 || ranks[i] >= c->size) return hd_fail(err, HD_EINVAL, "a group with rank %d in a world of %d", ranks[i], c->size);
        for (int k = 0; k < i; k++)
            if (ranks[k] == ranks[i]) return hd_fail(err, HD_EINVAL, "a group with rank %d twice", ranks[i]);
        if (ranks[i] == c->rank) index = i;
    }
    return index >= 0 ? index : hd_fail(err, HD_EINVAL, "a group without rank %d, which asks for it", c->rank);
}

hd_comm_group *hd_comm_group_get(hd_comm *c, const int *ranks, int n, hd_error *err)
{
    hd_comm_group *g = n > 0 ? find_group(c, ranks, n) : NULL;
    if (g) return g;
    int index = check_ranks(c, ranks, n, err);
    if (index < 0) return NULL;
    g = hd_calloc(1, sizeof *g + (size_t)n * sizeof *ranks);
    if (!g || hd_grow(&c->groups, &c->cap_groups, c->n_groups + 1, sizeof *c->groups)) {
        hd_free(g);
        hd_fail_memory(err, sizeof *g, "a group of ranks");
        return NULL;
    }
    g->comm = c;
    g->n = n;
    g->index = index;
    memcpy(g->rank, ranks, (size_t)n * sizeof *ranks);
    if (c->transport->group_init(c, g, err)) {
        hd_free(g);
        return NULL;
    }
    c->groups[c->n_groups++] = g;
    return g;
}

/* ---- what is asked for ---- */

static int check_cut(const hd_comm_group *g, const int64_t *offset, const char *name, hd_error *err)
{
    if (!offset) return hd_fail(err, HD_EINVAL, "a transfer without %s", name);
    for (int i = 0; i < g->n; i++)
        if (offset[i] > offset[i + 1] || offset[0]) return hd_fail(err, HD_EINVAL, "a transfer whose %s falls, or doesn't begin at 0", name);
    return 0;
}

static int check_one(const hd_comm_group *g, const hd_transfer *t, hd_error *err)
{
    if ((unsigned)t->kind >= HD_TRANSFER_KINDS || (unsigned)t->dtype >= HD_DTYPE_COUNT) return hd_fail(err, HD_EINVAL, "a transfer of no known kind");
    if (has_peer(t->kind) && (t->peer < 0 || t->peer >= g->n))
        return hd_fail(err, HD_EINVAL, "%s: peer %d in a group of %d", kind_names[t->kind], t->peer, g->n);
    if (!is_cut(t->kind)) return t->count < 0 ? hd_fail(err, HD_EINVAL, "%s of %lld elements", kind_names[t->kind], (long long)t->count) : 0;
    if (t->outer < 0 || t->inner < 0 || (t->kind == HD_ALL_TO_ALL && t->middle < 0))
        return hd_fail(err, HD_EINVAL, "%s with a negative extent", kind_names[t->kind]);
    if (check_cut(g, t->offset, "offset", err)) return HD_EINVAL;
    return t->kind == HD_ALL_TO_ALL ? check_cut(g, t->to_offset, "to_offset", err) : 0;
}

static int check_transfer(const hd_comm_group *g, const hd_transfer *t, hd_error *err)
{
    if (!t->n_parts) return check_one(g, t, err);
    if (t->kind != HD_ALL_REDUCE && t->kind != HD_REDUCE_SCATTER && t->kind != HD_ALL_GATHER) return hd_fail(err, HD_EINVAL, "a list of transfers of that kind");
    for (int i = 0; i < t->n_parts; i++) {
        const hd_transfer *p = &t->part[i];
        if (p->kind != t->kind || p->dtype != t->dtype || p->max != t->max || p->n_parts)
            return hd_fail(err, HD_EINVAL, "%s: a list of transfers that aren't alike", kind_names[t->kind]);
        int rc = check_one(g, p, err);
        if (rc) return rc;
    }
    return 0;
}

static uint64_t print_one(const hd_transfer *t, int n)
{
    uint64_t h = hd_hash_mix((uint64_t)t->kind * 64 + (uint64_t)t->dtype * 2 + (t->max && hd_comm_is_reduction(t->kind)), (uint64_t)n);
    if (has_peer(t->kind)) h = hd_hash_mix(h, (uint64_t)t->peer);
    if (!is_cut(t->kind)) return hd_hash_mix(h, (uint64_t)t->count);
    h = hd_hash_mix(hd_hash_mix(h, (uint64_t)t->outer), (uint64_t)t->inner);
    for (int i = 0; i <= n; i++) h = hd_hash_mix(h, (uint64_t)t->offset[i]);
    if (t->kind != HD_ALL_TO_ALL) return h;
    h = hd_hash_mix(h, (uint64_t)t->middle * 2 + t->a_first);
    for (int i = 0; i <= n; i++) h = hd_hash_mix(h, (uint64_t)t->to_offset[i]);
    return h;
}

uint64_t hd_comm_fingerprint(const hd_transfer *t, int n)
{
    uint64_t h = print_one(hd_transfer_part(t, 0), n);
    for (int i = 1; i < t->n_parts; i++) h = hd_hash_mix(h, print_one(&t->part[i], n));
    return h;
}

/* ---- what was sent ---- */

/* Elements of "the data" by which a kind is counted: all of it for what has one whole, this rank's input for all-to-all. */
static int64_t data_count(const hd_comm_group *g, const hd_transfer *t)
{
    if (!is_cut(t->kind)) return t->count;
    if (t->kind == HD_PERMUTE) return t->outer * (t->offset[g->index + 1] - t->offset[g->index]) * t->inner;
    if (t->kind != HD_ALL_TO_ALL) return t->outer * t->offset[g->n] * t->inner;
    return t->outer * (t->offset[g->index + 1] - t->offset[g->index]) * t->middle * t->to_offset[g->n] * t->inner;
}

static void note_one(hd_comm *c, const hd_comm_group *g, const hd_transfer *t)
{
    int64_t bytes = data_count(g, t) * (int64_t)hd_dtype_size(t->dtype), others = g->n - 1, sent = bytes * others / g->n;
    switch (t->kind) {
    case HD_ALL_REDUCE: sent = 2 * bytes * others / g->n; break;
    case HD_BROADCAST: sent = t->peer == g->index ? bytes * others : 0; break;
    case HD_PERMUTE: sent = t->peer ? bytes : 0; break;
    case HD_SEND: sent = t->peer == g->index ? 0 : bytes; break;
    case HD_RECV: sent = 0; break;
    default: break;
    }
    c->sent[t->kind] += sent;
}

static void note_sent(hd_comm *c, const hd_comm_group *g, const hd_transfer *t)
{
    for (int i = 0; i < hd_transfer_parts(t); i++) note_one(c, g, hd_transfer_part(t, i));
}

/* ---- tickets ---- */

#define INDEX_BITS 24

static hd_comm_op *new_op(hd_comm *c, hd_error *err)
{
    for (size_t i = 0; i < c->n_ops; i++)
        if (!c->ops[i]->used) return c->ops[i];
    size_t size = c->transport->op_size;
    hd_comm_op *op = c->n_ops < ((size_t)1 << INDEX_BITS) - 1 ? hd_calloc(1, size) : NULL;
    if (!op || hd_grow(&c->ops, &c->cap_ops, c->n_ops + 1, sizeof *c->ops)) {
        hd_free(op);
        hd_fail_memory(err, size, "a transfer");
        return NULL;
    }
    op->index = (uint32_t)c->n_ops;
    c->ops[c->n_ops++] = op;
    return op;
}

static hd_comm_op *find_op(const hd_comm *c, hd_ticket ticket)
{
    uint64_t index = (uint64_t)ticket.number & (((uint64_t)1 << INDEX_BITS) - 1), generation = (uint64_t)ticket.number >> INDEX_BITS;
    hd_comm_op *op = index && index <= c->n_ops ? c->ops[index - 1] : NULL;
    return op && op->used && op->generation == generation ? op : NULL;
}

/* ---- transfers ---- */

/* A group of one: its input is its output. */
static void copy_alone(const hd_transfer *t)
{
    hd_block_list l = hd_blocks_of(t, 1, 0, 0);
    const hd_transfer *p;
    for (hd_block b; hd_blocks_next(&l, &p, &b);)
        if (p->in != p->out) hd_block_copy(&b, 0, hd_block_count(&b), hd_dtype_size(p->dtype), p->in, &p->out, 1, false);
}

int hd_comm_start(hd_comm *c, hd_comm_group *g, const hd_transfer *t, hd_ticket *out, hd_error *err)
{
    out->number = 0;
    int rc = check_transfer(g, t, err);
    if (rc) return rc;
    if (g->n == 1 && t->kind != HD_SEND && t->kind != HD_RECV) {
        copy_alone(t);
        return 0;
    }
    hd_comm_op *op = new_op(c, err);
    if (!op) return HD_ENOMEM;
    op->t = *t;
    op->group = g;
    op->generation++;
    op->used = true;
    rc = c->transport->start(c, op, err);
    op->used = !rc;
    if (rc) return rc;
    note_sent(c, g, t);
    out->number = (int64_t)((uint64_t)op->generation << INDEX_BITS | (op->index + 1));
    return 0;
}

int hd_comm_wait(hd_comm *c, hd_ticket ticket, hd_error *err)
{
    if (!ticket.number) return 0;
    hd_comm_op *op = find_op(c, ticket);
    if (!op) return hd_fail(err, HD_EINVAL, "waiting for a transfer that isn't under way");
    atomic_store(&c->waiting, true);
    int rc = c->transport->wait(c, op, err);
    atomic_store(&c->waiting, false);
    op->used = false;
    return rc;
}

int hd_comm_do(hd_comm *c, hd_comm_group *g, const hd_transfer *t, hd_error *err)
{
    hd_ticket ticket;
    int rc = hd_comm_start(c, g, t, &ticket, err);
    return rc ? rc : hd_comm_wait(c, ticket, err);
}

int hd_comm_barrier(hd_comm *c, hd_comm_group *g, hd_error *err)
{
    uint8_t here = 1, all[g->n]; /* a gather: everybody hears of everybody, not of one who waits for the others */
    int64_t offset[g->n + 1];
    for (int i = 0; i <= g->n; i++) offset[i] = i;
    return hd_comm_do(c, g, &(hd_transfer){.kind = HD_ALL_GATHER, .dtype = HD_U8, .in = &here, .out = all, .outer = 1, .inner = 1, .offset = offset}, err);
}
