/* mpi.c: an endpoint of an MPI world. MPI moves bytes; the order of sums is ours (reduce.h).
 *
 * One *communication thread* makes all MPI calls and all reductions, so that transfers go on while the caller computes. The caller hands it operations
 * through the inbox and waits until their state changes.
 *
 * Collectives are made of messages: every member sends every other its block (block.h), in phase 0; a reduction sums what came, in the order of indices;
 * ALL_REDUCE then sends its piece of the sum to all others, in phase 1. Between two ranks MPI keeps the order of messages of one tag, so each group has
 * a tag per phase, and both sides post a phase's messages in the order of the group's transfers. Tags are chosen by the sender, who tells each receiver
 * once, before the first use, by a control message (OPEN) with the list of ranks; messages of HD_SEND have one per group, peer and tag. So nothing
 * is agreed on beforehand, and groups need no communicators.
 *
 * Control messages have tag 0, and a receive for any of them is always posted: OPEN, ABORT (a rank's cause), BYE (an aborted world's rank will exit). */
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>

#include "base/mem.h"
#include "comm/bell.h"
#include "comm/block.h"
#include "comm/comm_int.h"
#include "comm/mpi_load.h"
#include "comm/reduce.h"

enum { CONTROL_TAG = 0, WHY_SIZE = 400, PHASES = 2, COLLECTIVE = 0, MESSAGE = 1 };
#define PART_BYTES ((size_t)1 << 30) /* longer messages are cut: MPI counts in int */
#define IDLE_NAP 20e-3               /* seconds between looks for control messages while nothing is under way */
#define BUSY_NAP 50e-6               /* seconds between looks at messages that take long */
#define BUSY_SPIN 500e-6             /* seconds without news after which it naps */
#define LONG_WAIT 1.0                /* seconds without news after which it naps longer: a served model's ranks wait for the next request */
#define LONG_NAP 1e-3
#define BYE_WAIT 3.0                 /* seconds that an aborted world's ranks wait for each other */

typedef enum op_state { OP_PENDING, OP_DONE, OP_FAILED } op_state;

typedef struct mpi_op {
    hd_comm_op op;
    _Atomic int state;
    /* The communication thread's: */
    int phase;              /* phases posted */
    int parts;              /* of messages not done */
    bool late;              /* was found overdue once */
    char *stage; size_t stage_bytes; /* packed blocks: n to send, then n that came */
    struct mpi_op *next;
} mpi_op;

/* One message or a part of it under way. */
typedef struct part {
    hd_mpi_request request;
    mpi_op *op;             /* NULL: a control message */
    bool recv;
    int peer;
    size_t bytes;
    char *owned;            /* to be freed when it is done */
} part;

typedef enum control_type { CONTROL_OPEN, CONTROL_ABORT, CONTROL_BYE } control_type;
typedef struct control { int32_t type, kind, tag, mpi_tag, n; char why[WHY_SIZE]; int32_t rank[]; } control;

/* The MPI tag of what another rank sends in a group: collectives (phase 0; phase 1 is the next), or messages of one tag. */
typedef struct opened { int from, kind, tag, mpi_tag, n, *rank; } opened;
/* The same of what we send. */
typedef struct opening { hd_comm_group *group; int peer, tag, mpi_tag; } opening;

typedef struct mpi_group {
    hd_comm_group *group;
    int mpi_tag;            /* of our collectives; 0: not told yet */
    int *peer_tag;          /* [n] of theirs; 0: not known yet */
    mpi_op *first, **last;  /* under way, in order: collectives and receives */
    struct mpi_group *next;
} mpi_group;

typedef struct mpi_comm {
    hd_comm c;
    const hd_mpi_plugin *mpi;
    pthread_t thread;
    pthread_mutex_t lock;   /* inbox, why, new groups */
    mpi_op *inbox, **inbox_last;
    mpi_group *new_groups;
    char why[WHY_SIZE];
    hd_bell work, news;     /* for the communication thread; for the caller */
    _Atomic bool aborted, stop;
    _Atomic bool tell;      /* the cause is ours: the others are to be told */
    _Atomic int started;    /* 1: MPI runs; -1: it doesn't */
    _Atomic uint64_t progress; /* parts done */
    _Atomic(mpi_op *) overdue; /* what the caller has waited for too long */
    /* The communication thread's: */
    int next_tag, greatest_tag, byes;
    mpi_group *groups;
    part *parts; size_t n_parts, cap_parts;
    opened *opened; size_t n_opened, cap_opened;
    opening *openings; size_t n_openings, cap_openings;
    control *heard;         /* the posted receive's */
    size_t control_bytes;
    hd_mpi_request hearing;
    bool told, cleared;
} mpi_comm;

static mpi_comm *mpi_of(const hd_comm *c) { return (mpi_comm *)c; }

/* ---- aborting ---- */

static void set_aborted(mpi_comm *m, const char *why, bool tell)
{
    pthread_mutex_lock(&m->lock);
    if (!atomic_load(&m->aborted)) {
        snprintf(m->why, sizeof m->why, "%s", why);
        atomic_store(&m->tell, tell);
        atomic_store(&m->aborted, true);
    }
    pthread_mutex_unlock(&m->lock);
    hd_bell_ring(&m->work);
    hd_bell_ring(&m->news);
}

static void mpi_abort(hd_comm *c, const char *why)
{
    char text[WHY_SIZE];
    snprintf(text, sizeof text, "rank %d: %s", c->rank, why && *why ? why : "stopped");
    set_aborted(mpi_of(c), text, true);
}

static bool mpi_aborted(const hd_comm *c, char *why, size_t size)
{
    mpi_comm *m = mpi_of(c);
    if (!atomic_load(&m->aborted)) return false;
    pthread_mutex_lock(&m->lock);
    if (why && size) snprintf(why, size, "%s", m->why);
    pthread_mutex_unlock(&m->lock);
    return true;
}

static int fail_aborted(const hd_comm *c, hd_error *err)
{
    char why[WHY_SIZE];
    return mpi_aborted(c, why, sizeof why) ? hd_fail(err, HD_ECOMM, "%s", why) : 0;
}

/* ---- messages ---- */

static part *new_part(mpi_comm *m)
{
    if (hd_grow(&m->parts, &m->cap_parts, m->n_parts + 1, sizeof *m->parts)) {
        mpi_abort(&m->c, "out of memory for messages");
        return NULL;
    }
    return &m->parts[m->n_parts++];
}

static void post_part(mpi_comm *m, mpi_op *op, bool recv, char *data, size_t bytes, int peer, int tag, char *owned)
{
    part *p = new_part(m);
    if (!p) return;
    *p = (part){.op = op, .recv = recv, .peer = peer, .bytes = bytes, .owned = owned};
    int rc = recv ? m->mpi->irecv(data, bytes, peer, tag, &p->request) : m->mpi->isend(data, bytes, peer, tag, &p->request);
    if (!rc) {
        if (op) op->parts++;
        return;
    }
    m->n_parts--;
    hd_free(owned);
    mpi_abort(&m->c, m->mpi->why());
}

/* A message of 0 bytes isn't sent; both sides know that it is. */
static void post(mpi_comm *m, mpi_op *op, bool recv, const void *data, size_t bytes, int peer, int tag)
{
    for (size_t at = 0; at < bytes; at += PART_BYTES)
        post_part(m, op, recv, (char *)data + at, bytes - at < PART_BYTES ? bytes - at : PART_BYTES, peer, tag, NULL);
}

static void send_control(mpi_comm *m, int to, control_type type, const hd_comm_group *g, int kind, int tag, int mpi_tag)
{
    control *k = hd_calloc(1, m->control_bytes);
    if (!k) {
        set_aborted(m, "out of memory for messages", false);
        return;
    }
    *k = (control){.type = type, .kind = kind, .tag = tag, .mpi_tag = mpi_tag, .n = g ? g->n : 0};
    if (g) memcpy(k->rank, g->rank, (size_t)g->n * sizeof *g->rank);
    pthread_mutex_lock(&m->lock);
    if (type == CONTROL_ABORT) memcpy(k->why, m->why, sizeof k->why);
    pthread_mutex_unlock(&m->lock);
    post_part(m, NULL, false, (char *)k, sizeof *k + (size_t)k->n * sizeof *k->rank, to, CONTROL_TAG, (char *)k);
}

static void listen_control(mpi_comm *m)
{
    if (m->mpi->irecv(m->heard, m->control_bytes, HD_MPI_ANY, CONTROL_TAG, &m->hearing)) set_aborted(m, m->mpi->why(), false);
}

static void note_opened(mpi_comm *m, int from)
{
    const control *k = m->heard;
    int *ranks = hd_malloc((size_t)k->n * sizeof *ranks);
    if (!ranks || hd_grow(&m->opened, &m->cap_opened, m->n_opened + 1, sizeof *m->opened)) {
        hd_free(ranks);
        mpi_abort(&m->c, "out of memory for groups");
        return;
    }
    memcpy(ranks, k->rank, (size_t)k->n * sizeof *ranks);
    m->opened[m->n_opened++] = (opened){from, k->kind, k->tag, k->mpi_tag, k->n, ranks};
}

static bool hear(mpi_comm *m)
{
    bool done = false;
    int from = 0;
    size_t bytes = 0;
    if (m->mpi->test(&m->hearing, &done, &from, &bytes) || !done) return false;
    switch (m->heard->type) {
    case CONTROL_OPEN: note_opened(m, from); break;
    case CONTROL_ABORT: set_aborted(m, m->heard->why, false); break;
    default: m->byes++; break;
    }
    listen_control(m);
    return true;
}

/* The MPI tag under which another sends, 0 while it hasn't said. */
static int find_opened(const mpi_comm *m, const hd_comm_group *g, int peer, int kind, int tag)
{
    for (size_t i = 0; i < m->n_opened; i++) {
        const opened *o = &m->opened[i];
        if (o->from == g->rank[peer] && o->kind == kind && o->tag == tag && o->n == g->n && !memcmp(o->rank, g->rank, (size_t)g->n * sizeof *g->rank))
            return o->mpi_tag;
    }
    return 0;
}

static int take_tags(mpi_comm *m, int n)
{
    int tag = m->next_tag;
    m->next_tag += n;
    if (m->next_tag > m->greatest_tag) mpi_abort(&m->c, "more message tags than MPI has");
    return tag;
}

/* ---- collectives ---- */

static size_t op_bytes(const hd_comm_op *op) { return (size_t)op->t.count * hd_dtype_size(op->t.dtype); }

static void ready_tags(mpi_comm *m, mpi_group *g)
{
    hd_comm_group *h = g->group;
    if (g->mpi_tag) return;
    g->mpi_tag = take_tags(m, PHASES);
    for (int i = 0; i < h->n; i++)
        if (i != h->index) send_control(m, h->rank[i], CONTROL_OPEN, h, COLLECTIVE, 0, g->mpi_tag);
}

static bool know_peers(mpi_comm *m, mpi_group *g)
{
    hd_comm_group *h = g->group;
    bool all = true;
    for (int i = 0; i < h->n; i++) {
        if (i == h->index || g->peer_tag[i]) continue;
        g->peer_tag[i] = find_opened(m, h, i, COLLECTIVE, 0);
        all = all && g->peer_tag[i];
    }
    return all;
}

/* What goes from one index to another is one message, of all parts of a list. */
static size_t block_bytes(const mpi_op *o, int from, int to)
{
    hd_block_list l = hd_blocks_of(&o->op.t, o->op.group->n, from, to);
    const hd_transfer *part;
    int64_t count = 0;
    for (hd_block b; hd_blocks_next(&l, &part, &b);) count += hd_block_count(&b);
    return (size_t)count * hd_dtype_size(o->op.t.dtype);
}

/* Where it lies in `in` (send) or in `out`, if that is one run of memory; else NULL. */
static char *run_of(const mpi_op *o, int from, int to, bool send)
{
    size_t size = hd_dtype_size(o->op.t.dtype);
    hd_block_list l = hd_blocks_of(&o->op.t, o->op.group->n, from, to);
    const hd_transfer *part;
    char *first = NULL, *end = NULL;
    for (hd_block b; hd_blocks_next(&l, &part, &b);) {
        char *at = (send ? (char *)part->in : (char *)part->out) + (size_t)(send ? b.src : b.dst) * size;
        if (!(send ? hd_block_src_contiguous(&b) : hd_block_dst_contiguous(&b)) || (first && at != end)) return NULL;
        if (!first) first = at;
        end = at + (size_t)hd_block_count(&b) * size;
    }
    return first ? first : (char *)o; /* nothing: nobody looks there */
}

static void pack(const mpi_op *o, int to, char *packed)
{
    size_t size = hd_dtype_size(o->op.t.dtype);
    hd_block_list l = hd_blocks_of(&o->op.t, o->op.group->n, o->op.group->index, to);
    const hd_transfer *part;
    for (hd_block b; hd_blocks_next(&l, &part, &b); packed += (size_t)hd_block_count(&b) * size)
        hd_block_pack(&b, 0, hd_block_count(&b), size, part->in, packed);
}

static void unpack(const mpi_op *o, int from, int to, const char *packed)
{
    size_t size = hd_dtype_size(o->op.t.dtype);
    hd_block_list l = hd_blocks_of(&o->op.t, o->op.group->n, from, to);
    const hd_transfer *part;
    for (hd_block b; hd_blocks_next(&l, &part, &b); packed += (size_t)hd_block_count(&b) * size)
        hd_block_unpack(&b, 0, hd_block_count(&b), size, packed, part->out);
}

static size_t align64(size_t n) { return (n + 63) & ~(size_t)63; }

/* Whether the block to (or from) an index must go through the stage: strided ones do, lists that don't lie in one run, and all addends that come. */
static bool send_staged(const mpi_op *o, int to) { return !run_of(o, o->op.group->index, to, true); }

static bool recv_staged(const mpi_op *o, int from)
{
    return hd_comm_is_reduction(o->op.t.kind) || !run_of(o, from, o->op.group->index, false);
}

/* Where the stage has the block to an index (send), or that from an index; not send with i == n: the length of all. */
static size_t stage_at(const mpi_op *o, bool send, int i)
{
    int n = o->op.group->n, self = o->op.group->index;
    size_t at = 0;
    for (int k = 0; k < n && !(send && k == i); k++)
        if (k != self && send_staged(o, k)) at += align64(block_bytes(o, self, k));
    for (int k = 0; !send && k < i; k++) /* a reduction's own addend may be strided: it has a place too */
        if (recv_staged(o, k)) at += align64(block_bytes(o, k, self));
    return at;
}

/* The same in phase 1: the sum's pieces of those indices that don't lie in one run. */
static size_t second_at(const mpi_op *o, int i)
{
    size_t at = 0;
    for (int k = 0; k < i; k++)
        if (!run_of(o, k, k, false)) at += align64(block_bytes(o, k, k));
    return at;
}

static bool ready_stage(mpi_comm *m, mpi_op *o)
{
    size_t bytes = stage_at(o, false, o->op.group->n), second = o->op.t.kind == HD_ALL_REDUCE ? second_at(o, o->op.group->n) : 0;
    if (second > bytes) bytes = second;
    if (bytes <= o->stage_bytes) return true;
    hd_free(o->stage);
    o->stage = hd_malloc(bytes);
    o->stage_bytes = o->stage ? bytes : 0;
    if (!o->stage) mpi_abort(&m->c, "out of memory for a transfer");
    return o->stage != NULL;
}

static void post_send(mpi_comm *m, mpi_group *g, mpi_op *o, int to)
{
    int self = g->group->index;
    char *data = run_of(o, self, to, true);
    if (!data) pack(o, to, data = o->stage + stage_at(o, true, to));
    post(m, o, false, data, block_bytes(o, self, to), g->group->rank[to], g->mpi_tag);
}

static void post_recv(mpi_comm *m, mpi_group *g, mpi_op *o, int from)
{
    int self = g->group->index;
    char *data = recv_staged(o, from) ? o->stage + stage_at(o, false, from) : run_of(o, from, self, false);
    post(m, o, true, data, block_bytes(o, from, self), g->group->rank[from], g->peer_tag[from]);
}

/* The block from this rank to itself, unless it is summed. */
static void copy_own(const mpi_op *o)
{
    int self = o->op.group->index;
    hd_block_list l = hd_blocks_of(&o->op.t, o->op.group->n, self, self);
    const hd_transfer *part;
    for (hd_block b; !hd_comm_is_reduction(o->op.t.kind) && hd_blocks_next(&l, &part, &b);)
        if (part->in != part->out) hd_block_copy(&b, 0, hd_block_count(&b), hd_dtype_size(part->dtype), part->in, &part->out, 1, false);
}

static void post_first(mpi_comm *m, mpi_group *g, mpi_op *o)
{
    int n = g->group->n, self = g->group->index;
    if (!ready_stage(m, o)) return;
    for (int k = 1; k < n; k++) post_recv(m, g, o, (self + n - k) % n);
    for (int k = 1; k < n; k++) post_send(m, g, o, (self + k) % n);
    copy_own(o);
    o->phase = 1;
}

/* Sums the addends: own ones come from `in`, packed where they are strided. */
static void sum(const mpi_op *o)
{
    const hd_transfer *t = &o->op.t, *part;
    int n = o->op.group->n, self = o->op.group->index;
    size_t size = hd_dtype_size(t->dtype), done = 0;
    char *stage[n];
    const void *in[n];
    for (int i = 0; i < n; i++) stage[i] = o->stage + stage_at(o, false, i);
    hd_block_list l = hd_blocks_of(t, n, self, self);
    for (hd_block b; hd_blocks_next(&l, &part, &b);) {
        int64_t count = hd_block_count(&b);
        void *out = (char *)part->out + (size_t)b.dst * size;
        for (int i = 0; i < n; i++) in[i] = stage[i] + done;
        if (hd_block_src_contiguous(&b)) in[self] = (const char *)part->in + (size_t)b.src * size;
        else hd_block_pack(&b, 0, count, size, part->in, stage[self] + done);
        hd_comm_reduce(t->dtype, t->max, in, n, 0, count, &out, 1, 0, false);
        done += (size_t)count * size;
    }
}

static void unpack_first(const mpi_op *o)
{
    int n = o->op.group->n, self = o->op.group->index;
    for (int i = 0; i < n; i++)
        if (i != self && recv_staged(o, i)) unpack(o, i, self, o->stage + stage_at(o, false, i));
}

/* Own piece of a list's sum into the stage, where it doesn't lie in one run. */
static char *packed_sum(const mpi_op *o)
{
    int self = o->op.group->index;
    size_t size = hd_dtype_size(o->op.t.dtype);
    char *packed = o->stage + second_at(o, self), *at = packed;
    hd_block_list l = hd_blocks_of(&o->op.t, o->op.group->n, self, self);
    const hd_transfer *part;
    for (hd_block b; hd_blocks_next(&l, &part, &b); at += (size_t)hd_block_count(&b) * size)
        memcpy(at, (const char *)part->out + (size_t)b.dst * size, (size_t)hd_block_count(&b) * size);
    return packed;
}

/* ALL_REDUCE: each one's piece of the sum to all. */
static void post_second(mpi_comm *m, mpi_group *g, mpi_op *o)
{
    int n = g->group->n, self = g->group->index;
    char *own = run_of(o, self, self, false);
    size_t own_bytes = block_bytes(o, self, self);
    if (!own) own = packed_sum(o);
    for (int k = 1; k < n; k++) {
        int from = (self + n - k) % n, to = (self + k) % n;
        char *data = run_of(o, from, from, false);
        if (!data) data = o->stage + second_at(o, from);
        post(m, o, true, data, block_bytes(o, from, from), g->group->rank[from], g->peer_tag[from] + 1);
        post(m, o, false, own, own_bytes, g->group->rank[to], g->mpi_tag + 1);
    }
    o->phase = 2;
}

static void unpack_second(const mpi_op *o)
{
    for (int i = 0; i < o->op.group->n; i++)
        if (i != o->op.group->index && !run_of(o, i, i, false)) unpack(o, i, i, o->stage + second_at(o, i));
}

/* ---- single messages ---- */

static int sending_tag(mpi_comm *m, const mpi_op *o)
{
    hd_comm_group *g = o->op.group;
    for (size_t i = 0; i < m->n_openings; i++) {
        const opening *p = &m->openings[i];
        if (p->group == g && p->peer == o->op.t.peer && p->tag == o->op.t.tag) return p->mpi_tag;
    }
    if (hd_grow(&m->openings, &m->cap_openings, m->n_openings + 1, sizeof *m->openings)) {
        mpi_abort(&m->c, "out of memory for messages");
        return 0;
    }
    int tag = take_tags(m, 1);
    m->openings[m->n_openings++] = (opening){g, o->op.t.peer, o->op.t.tag, tag};
    send_control(m, g->rank[o->op.t.peer], CONTROL_OPEN, g, MESSAGE, o->op.t.tag, tag);
    return tag;
}

static void post_message(mpi_comm *m, mpi_op *o)
{
    hd_comm_group *g = o->op.group;
    int tag = sending_tag(m, o);
    if (!tag) return;
    /* Even an empty one is sent: it has its place in the order, and a receiver that asked for more must hear of it. */
    if (!o->op.t.count) post_part(m, o, false, NULL, 0, g->rank[o->op.t.peer], tag, NULL);
    post(m, o, false, o->op.t.in, op_bytes(&o->op), g->rank[o->op.t.peer], tag);
    o->phase = 1;
}

/* Receives of one sender and tag are posted in order, so none may overtake one that is waiting for its tag; which is the same for both. */
static void post_receive(mpi_comm *m, mpi_op *o)
{
    hd_comm_group *g = o->op.group;
    int tag = find_opened(m, g, o->op.t.peer, MESSAGE, o->op.t.tag);
    if (!tag) return;
    if (!o->op.t.count) post_part(m, o, true, NULL, 0, g->rank[o->op.t.peer], tag, NULL);
    post(m, o, true, o->op.t.out, op_bytes(&o->op), g->rank[o->op.t.peer], tag);
    o->phase = 1;
}

/* ---- the communication thread ---- */

static void end_op(mpi_comm *m, mpi_op *o, op_state state)
{
    atomic_store(&o->state, state);
    hd_bell_ring(&m->news);
}

/* What a group's operations can do now. `first` and `second`: all before it have posted that phase. */
static bool push_op(mpi_comm *m, mpi_group *g, mpi_op *o, bool *first, bool *second)
{
    hd_transfer_kind kind = o->op.t.kind;
    if (kind == HD_RECV || kind == HD_SEND) {
        if (!o->phase) kind == HD_RECV ? post_receive(m, o) : post_message(m, o);
        return o->phase && !o->parts;
    }
    if (!o->phase && *first && know_peers(m, g)) post_first(m, g, o);
    *first = *first && o->phase;
    if (o->phase == 1 && !o->parts && (kind != HD_ALL_REDUCE || *second)) {
        if (hd_comm_is_reduction(kind)) sum(o);
        else unpack_first(o);
        if (kind != HD_ALL_REDUCE) return true;
        post_second(m, g, o);
    }
    if (kind == HD_ALL_REDUCE) *second = *second && o->phase == 2;
    if (o->phase != 2 || o->parts) return false;
    unpack_second(o);
    return true;
}

static void push_group(mpi_comm *m, mpi_group *g)
{
    bool first = true, second = true;
    for (mpi_op **at = &g->first; *at && !atomic_load(&m->aborted);) {
        mpi_op *o = *at;
        if (!push_op(m, g, o, &first, &second)) {
            at = &o->next;
            continue;
        }
        *at = o->next;
        if (!*at) g->last = at;
        end_op(m, o, OP_DONE);
    }
}

static bool take_inbox(mpi_comm *m)
{
    pthread_mutex_lock(&m->lock);
    mpi_op *o = m->inbox;
    m->inbox = NULL;
    m->inbox_last = &m->inbox;
    while (m->new_groups) {
        mpi_group *g = m->new_groups;
        m->new_groups = g->next;
        g->next = m->groups;
        m->groups = g;
    }
    pthread_mutex_unlock(&m->lock);
    bool any = o != NULL;
    for (mpi_op *next; o; o = next) {
        next = o->next;
        mpi_group *g = o->op.group->state;
        o->next = NULL;
        *g->last = o;
        g->last = &o->next;
        if (o->op.t.kind != HD_SEND && o->op.t.kind != HD_RECV) ready_tags(m, g);
    }
    return any;
}

static bool test_parts(mpi_comm *m)
{
    bool any = false;
    for (size_t i = 0; i < m->n_parts;) {
        part *p = &m->parts[i];
        bool done = false;
        size_t bytes = p->bytes;
        if (m->mpi->test(&p->request, &done, NULL, p->recv ? &bytes : NULL)) {
            mpi_abort(&m->c, m->mpi->why());
            return any;
        }
        if (!done) {
            i++;
            continue;
        }
        if (bytes != p->bytes) mpi_abort(&m->c, "a message is not as long as was asked for");
        if (p->op) p->op->parts--;
        hd_free(p->owned);
        m->parts[i] = m->parts[--m->n_parts];
        atomic_fetch_add(&m->progress, 1);
        any = true;
    }
    return any;
}

/* An aborted world: nothing more comes into the caller's memory, and all its waits end. */
static void clear_all(mpi_comm *m)
{
    size_t kept = 0;
    for (size_t i = 0; i < m->n_parts; i++) {
        part *p = &m->parts[i];
        if (p->recv) m->mpi->cancel(&p->request);
        else m->parts[kept++] = *p;
    }
    m->n_parts = kept;
    for (size_t i = 0; i < kept; i++) m->parts[i].op = NULL;
    for (mpi_group *g = m->groups; g; g = g->next) {
        for (mpi_op *o = g->first, *next; o; o = next) {
            next = o->next;
            end_op(m, o, OP_FAILED);
        }
        g->first = NULL;
        g->last = &g->first;
    }
    m->cleared = true;
}

static void tell_all(mpi_comm *m, control_type type)
{
    for (int r = 0; r < m->c.size; r++)
        if (r != m->c.rank) send_control(m, r, type, NULL, 0, 0, 0);
}

static bool under_way(const mpi_comm *m)
{
    for (const mpi_group *g = m->groups; g; g = g->next)
        if (g->first) return true;
    return m->n_parts > 0;
}

/* ---- who is silent ---- */

static void add_silent(char *text, size_t size, int *n, int rank)
{
    size_t at = strlen(text);
    char name[16];
    snprintf(name, sizeof name, " %d,", rank);
    if (strstr(text, name) || at + 24 > size) return;
    snprintf(text + at, size - at, "%s", name);
    ++*n;
}

/* The ranks that an operation still needs something from: what it receives, else tags that nobody told us, else who doesn't take what is sent. */
static int list_silent(const mpi_comm *m, const mpi_op *o, char *text, size_t size)
{
    const hd_comm_group *h = o->op.group;
    const mpi_group *g = h->state;
    bool single = o->op.t.kind == HD_SEND || o->op.t.kind == HD_RECV;
    int n = 0;
    *text = 0;
    if (single) return add_silent(text, size, &n, h->rank[o->op.t.peer]), n;
    for (size_t i = 0; i < m->n_parts; i++)
        if (m->parts[i].op == o && m->parts[i].recv) add_silent(text, size, &n, m->parts[i].peer);
    for (int i = 0; i < h->n && !o->phase; i++)
        if (i != h->index && !g->peer_tag[i]) add_silent(text, size, &n, h->rank[i]);
    for (size_t i = 0; i < m->n_parts && !n; i++)
        if (m->parts[i].op == o) add_silent(text, size, &n, m->parts[i].peer);
    return n;
}

static void blame_silent(mpi_comm *m)
{
    mpi_op *o = atomic_exchange(&m->overdue, NULL);
    char ranks[200], why[320];
    if (!o || atomic_load(&o->state) != OP_PENDING) return;
    if (o->phase == 2 && !o->late) { /* the sum's owner waits for the silent one: it has the first word */
        o->late = true;
        return;
    }
    int n = list_silent(m, o, ranks, sizeof ranks);
    if (n) ranks[strlen(ranks) - 1] = 0;
    snprintf(why, sizeof why, "%s: %s%s %s been silent for %.3g s", hd_comm_kind_name(o->op.t.kind), n > 1 ? "ranks" : n ? "rank" : "another rank", n ? ranks : "",
             n > 1 ? "have" : "has", m->c.deadline);
    mpi_abort(&m->c, why);
}

static bool step(mpi_comm *m)
{
    bool any = take_inbox(m);
    blame_silent(m);
    any |= hear(m);
    if (!atomic_load(&m->aborted)) any |= test_parts(m);
    if (atomic_load(&m->aborted)) {
        if (atomic_load(&m->tell) && !m->told) tell_all(m, CONTROL_ABORT);
        m->told = true;
        clear_all(m);
        return test_parts(m) || any;
    }
    for (mpi_group *g = m->groups; g; g = g->next) push_group(m, g);
    return any;
}

static void communicate(mpi_comm *m)
{
    double quiet = hd_time();
    while (!atomic_load(&m->stop) || under_way(m)) {
        uint32_t seen = hd_bell_read(&m->work);
        if (atomic_load(&m->stop) && atomic_load(&m->aborted)) return;
        if (step(m)) {
            quiet = hd_time();
            continue;
        }
        if (!under_way(m)) hd_bell_wait(&m->work, seen, false, IDLE_NAP);
        else if (hd_time() - quiet > BUSY_SPIN) hd_bell_wait(&m->work, seen, false, hd_time() - quiet > LONG_WAIT ? LONG_NAP : BUSY_NAP);
        else sched_yield();
    }
}

/* Of an aborted world: lets the others finish what they have to say, as a launcher kills all when one exits. Whether all were heard. */
static bool part_company(mpi_comm *m)
{
    step(m);
    tell_all(m, CONTROL_BYE);
    for (double end = hd_time() + BYE_WAIT; m->byes < m->c.size - 1 && hd_time() < end;)
        if (!step(m)) usleep(200);
    for (double end = hd_time() + 0.2; m->n_parts && hd_time() < end;)
        if (!step(m)) usleep(200);
    return m->byes >= m->c.size - 1;
}

static void end_mpi(mpi_comm *m)
{
    if (atomic_load(&m->aborted) && !part_company(m)) {
        char why[WHY_SIZE];
        mpi_aborted(&m->c, why, sizeof why);
        hd_log("%s; not all ranks answer, so MPI ends them", why);
        m->mpi->abort(1);
    }
    if (m->n_parts) return; /* somebody never took them: MPI_Finalize could wait for ever */
    m->mpi->cancel(&m->hearing);
    m->mpi->finalize();
}

static void *mpi_main(void *arg)
{
    mpi_comm *m = arg;
    int rank = 0, size = 0;
    char name[24];
    snprintf(name, sizeof name, "rank %d mpi", m->c.rank);
    prctl(PR_SET_NAME, name);
    if (m->mpi->init(&rank, &size, &m->greatest_tag)) {
        snprintf(m->why, sizeof m->why, "%s", m->mpi->why());
        atomic_store(&m->started, -1);
        hd_bell_ring(&m->news);
        return NULL;
    }
    if (rank != m->c.rank || size != m->c.size) {
        snprintf(m->why, sizeof m->why, "the plug-in for %s finds rank %d of %d where the launcher said rank %d of %d: it is another MPI's launcher",
                 m->mpi->name, rank, size, m->c.rank, m->c.size);
        m->mpi->finalize();
        atomic_store(&m->started, -1);
        hd_bell_ring(&m->news);
        return NULL;
    }
    listen_control(m);
    atomic_store(&m->started, 1);
    hd_bell_ring(&m->news);
    communicate(m);
    end_mpi(m);
    return NULL;
}

/* ---- the caller's side ---- */

static int mpi_group_init(hd_comm *c, hd_comm_group *g, hd_error *err)
{
    mpi_comm *m = mpi_of(c);
    mpi_group *s = hd_calloc(1, sizeof *s + (size_t)g->n * sizeof *s->peer_tag);
    if (!s) return hd_fail_memory(err, sizeof *s, "a group of ranks");
    s->group = g;
    s->peer_tag = (int *)(s + 1);
    s->last = &s->first;
    g->state = s;
    pthread_mutex_lock(&m->lock);
    s->next = m->new_groups;
    m->new_groups = s;
    pthread_mutex_unlock(&m->lock);
    return 0;
}

static void mpi_group_free(hd_comm_group *g) { hd_free(g->state); }

static int mpi_start(hd_comm *c, hd_comm_op *op, hd_error *err)
{
    mpi_comm *m = mpi_of(c);
    mpi_op *o = (mpi_op *)op;
    if (atomic_load(&m->aborted)) return fail_aborted(c, err);
    atomic_store(&o->state, OP_PENDING);
    o->phase = o->parts = 0;
    o->late = false;
    o->next = NULL;
    pthread_mutex_lock(&m->lock);
    *m->inbox_last = o;
    m->inbox_last = &o->next;
    pthread_mutex_unlock(&m->lock);
    hd_bell_ring(&m->work);
    return 0;
}

static int mpi_wait(hd_comm *c, hd_comm_op *op, hd_error *err)
{
    enum { LOOKS = 8 }; /* at the progress, per deadline */
    mpi_comm *m = mpi_of(c);
    mpi_op *o = (mpi_op *)op;
    double quiet = hd_time(), nap = c->deadline > 0 ? c->deadline / LOOKS : 60;
    uint64_t progress = atomic_load(&m->progress);
    for (;;) {
        uint32_t seen = hd_bell_read(&m->news);
        int state = atomic_load(&o->state);
        if (state == OP_DONE) return 0;
        if (state == OP_FAILED) return fail_aborted(c, err);
        bool news = hd_bell_wait(&m->news, seen, false, nap);
        uint64_t now = atomic_load(&m->progress);
        if (news || now != progress) quiet = hd_time();
        else if (c->deadline > 0 && hd_time() - quiet >= c->deadline) {
            atomic_store(&m->overdue, o);
            hd_bell_ring(&m->work);
            quiet += nap;
        }
        progress = now;
    }
}

static void free_mpi(mpi_comm *m)
{
    for (size_t i = 0; i < m->c.n_ops; i++) hd_free(((mpi_op *)m->c.ops[i])->stage);
    hd_comm_free_common(&m->c);
    for (size_t i = 0; i < m->n_opened; i++) hd_free(m->opened[i].rank);
    hd_free(m->opened);
    hd_free(m->openings);
    hd_free(m->parts);
    hd_free(m->heard);
    pthread_mutex_destroy(&m->lock);
    hd_unmap_memory(m, sizeof *m);
}

static void mpi_free(hd_comm *c)
{
    mpi_comm *m = mpi_of(c);
    for (size_t i = 0; i < c->n_ops; i++)
        if (c->ops[i]->used && atomic_load(&((mpi_op *)c->ops[i])->state) == OP_PENDING) mpi_abort(c, "left with transfers under way");
    atomic_store(&m->stop, true);
    hd_bell_ring(&m->work);
    pthread_join(m->thread, NULL);
    free_mpi(m);
}

static const hd_transport mpi_transport = {
    .name = "mpi", .op_size = sizeof(mpi_op),
    .group_init = mpi_group_init, .group_free = mpi_group_free,
    .start = mpi_start, .wait = mpi_wait,
    .abort = mpi_abort, .aborted = mpi_aborted,
    .free = mpi_free,
};

static mpi_comm *new_mpi(const hd_mpi_plugin *mpi, int rank, int size, double deadline)
{
    mpi_comm *m = hd_map_memory(sizeof *m); /* for its alignment: bells */
    if (!m) return NULL;
    m->c = (hd_comm){.transport = &mpi_transport, .rank = rank, .size = size, .deadline = deadline};
    m->mpi = mpi;
    m->inbox_last = &m->inbox;
    m->next_tag = CONTROL_TAG + 1;
    m->control_bytes = sizeof(control) + (size_t)size * sizeof(int32_t);
    pthread_mutex_init(&m->lock, NULL);
    m->heard = hd_calloc(1, m->control_bytes);
    if (m->heard) return m;
    free_mpi(m);
    return NULL;
}

int hd_comm_mpi(double deadline, hd_comm **out, hd_error *err)
{
    const hd_mpi_plugin *mpi = NULL;
    int rank = 0, size = 1, rc = hd_mpi_load(&mpi, err);
    *out = NULL;
    if (rc) return rc;
    hd_comm_mpi_launched(&rank, &size);
    mpi_comm *m = new_mpi(mpi, rank, size, deadline);
    if (!m) return hd_fail_memory(err, sizeof *m, "an MPI world");
    if (pthread_create(&m->thread, NULL, mpi_main, m)) {
        free_mpi(m);
        return hd_fail(err, HD_ENOMEM, "cannot start the communication thread");
    }
    while (!atomic_load(&m->started)) {
        uint32_t seen = hd_bell_read(&m->news);
        if (!atomic_load(&m->started)) hd_bell_wait(&m->news, seen, false, 1);
    }
    if (atomic_load(&m->started) > 0) return *out = &m->c, 0;
    rc = hd_fail(err, HD_ECOMM, "MPI cannot start: %s", m->why);
    pthread_join(m->thread, NULL);
    free_mpi(m);
    return rc;
}
