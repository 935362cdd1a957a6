/* local.c: a world whose ranks are threads of this process.
 *
 * Each group has a *channel*, shared by its members; a collective is a *slot* of it, found by its number in the group's order. Starting one publishes
 * where this rank's data lies. Once all members have, the work is cut into chunks, and whoever waits takes the next one, whichever rank's piece
 * it is: it reads all inputs and writes straight into all outputs. So the last to come can do a small transfer alone, and a rank that is late in waiting
 * holds nobody up. A message (SEND) goes straight into memory of a receiver that is there already, else into a mailbox.
 *
 * A wait works on everything that its endpoint has under way, so the order of waits is free. It sleeps on its rank's own bell, which is rung when
 * something has become possible or has ended for it. Locks: a channel's guards its slots, a mailbox's its lists, the world's all else; none is
 * taken under another but pool.lock. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/thread.h"
#include "comm/bell.h"
#include "comm/block.h"
#include "comm/comm_int.h"
#include "comm/reduce.h"

enum { CHUNK_BYTES = 256 << 10, POOL_CLASSES = 48, SMALLEST_CLASS = 8, WHY_SIZE = 400, NO_DEADLINE_NAP = 60 };
#define STREAM_BYTES ((int64_t)8 << 20) /* outputs of a collective that together are longer than this are written past the caches */

typedef struct slot {
    int64_t number;
    uint64_t fingerprint;
    hd_transfer_kind kind;  /* the first member's */
    int arrived, left;      /* members that published, and that need it no longer */
    int active;             /* threads inside a chunk */
    bool open, dead;        /* somebody gave up: no more chunks */
    int job, jobs;          /* the next chunk: of which block of all, from which element */
    int64_t at;
    bool stream;
    struct slot *next_free;
    const hd_transfer **of; /* [n] each member's own, with its memory; as long as its operation is under way */
    bool *here;             /* [n] */
} slot;

typedef struct channel {
    pthread_mutex_t lock;
    int n, *rank;
    slot **ring; size_t cap; /* a power of two; slot `number` at number % cap */
    int64_t first, last;    /* numbers in use */
    slot *free;
    struct channel *next;
} channel;

typedef struct message { struct message *next; const channel *channel; int from, tag, class; size_t bytes; _Alignas(16) char data[]; } message;

typedef enum recv_state { RECV_POSTED, RECV_BUSY, RECV_DONE, RECV_WRONG } recv_state;

typedef struct local_op {
    hd_comm_op op;
    slot *slot;             /* of a collective */
    _Atomic int state;      /* recv_state */
    struct local_op *next;  /* in the mailbox, while posted */
} local_op;

typedef struct mailbox {
    pthread_mutex_t lock;
    message *first, **last;
    local_op *wanted, **last_wanted;
} mailbox;

typedef struct world {
    int n, alive;           /* endpoints not freed yet */
    bool spin;
    _Atomic bool aborted;
    _Atomic int gone;       /* endpoints freed */
    _Atomic bool *left;     /* [n] which */
    pthread_mutex_t lock;   /* why, channels, alive */
    char why[WHY_SIZE];
    channel *channels;
    struct { pthread_mutex_t lock; message *free[POOL_CLASSES]; } pool;
    hd_bell *bell;          /* [n] */
    mailbox *box;           /* [n] */
} world;

typedef struct local_comm { hd_comm c; world *w; } local_comm;
typedef struct local_group { channel *channel; int64_t next; } local_group;

static world *world_of(const hd_comm *c) { return ((const local_comm *)c)->w; }
static channel *channel_of(const hd_comm_group *g) { return ((local_group *)g->state)->channel; }

static void ring_all(world *w)
{
    for (int r = 0; r < w->n; r++) hd_bell_ring(&w->bell[r]);
}

static void ring_members(world *w, const channel *ch, int but)
{
    for (int i = 0; i < ch->n; i++)
        if (ch->rank[i] != but) hd_bell_ring(&w->bell[ch->rank[i]]);
}

/* ---- aborting ---- */

static void world_abort(world *w, int rank, const char *why)
{
    pthread_mutex_lock(&w->lock);
    if (!atomic_load(&w->aborted)) {
        snprintf(w->why, sizeof w->why, "rank %d: %s", rank, why && *why ? why : "stopped");
        atomic_store(&w->aborted, true);
    }
    pthread_mutex_unlock(&w->lock);
    ring_all(w);
}

static void local_abort(hd_comm *c, const char *why) { world_abort(world_of(c), c->rank, why); }

static bool local_aborted(const hd_comm *c, char *why, size_t size)
{
    world *w = world_of(c);
    if (!atomic_load(&w->aborted)) return false;
    pthread_mutex_lock(&w->lock);
    if (why && size) snprintf(why, size, "%s", w->why);
    pthread_mutex_unlock(&w->lock);
    return true;
}

static int fail_aborted(const hd_comm *c, hd_error *err)
{
    char why[WHY_SIZE];
    return local_aborted(c, why, sizeof why) ? hd_fail(err, HD_ECOMM, "%s", why) : 0;
}

/* ---- channels and slots ---- */

static void free_channel(channel *ch)
{
    for (size_t i = 0; i < ch->cap; i++) hd_free(ch->ring[i]);
    for (slot *s = ch->free, *next; s; s = next) {
        next = s->next_free;
        hd_free(s);
    }
    pthread_mutex_destroy(&ch->lock);
    hd_free(ch->ring);
    hd_free(ch);
}

static channel *new_channel(const int *ranks, int n)
{
    channel *ch = hd_calloc(1, sizeof *ch + (size_t)n * sizeof *ranks);
    if (!ch) return NULL;
    pthread_mutex_init(&ch->lock, NULL);
    ch->n = n;
    ch->rank = (int *)(ch + 1);
    memcpy(ch->rank, ranks, (size_t)n * sizeof *ranks);
    ch->cap = 4;
    ch->ring = hd_calloc(ch->cap, sizeof *ch->ring);
    if (ch->ring) return ch;
    ch->cap = 0;
    free_channel(ch);
    return NULL;
}

static int local_group_init(hd_comm *c, hd_comm_group *g, hd_error *err)
{
    world *w = world_of(c);
    local_group *l = hd_calloc(1, sizeof *l);
    if (!l) return hd_fail_memory(err, sizeof *l, "a group of ranks");
    pthread_mutex_lock(&w->lock);
    channel *ch = w->channels;
    while (ch && (ch->n != g->n || memcmp(ch->rank, g->rank, (size_t)g->n * sizeof *g->rank))) ch = ch->next;
    if (!ch && (ch = new_channel(g->rank, g->n))) {
        ch->next = w->channels;
        w->channels = ch;
    }
    pthread_mutex_unlock(&w->lock);
    l->channel = ch;
    g->state = l;
    if (ch) return 0;
    hd_free(l);
    return hd_fail_memory(err, sizeof *ch, "a group of ranks");
}

static void local_group_free(hd_comm_group *g) { hd_free(g->state); }

/* Twice as many slots, each at its place. Under the channel's lock, as what follows. */
static bool grow_ring(channel *ch)
{
    slot **ring = hd_calloc(ch->cap * 2, sizeof *ring);
    if (!ring) return false;
    for (size_t i = 0; i < ch->cap; i++)
        if (ch->ring[i]) ring[(size_t)ch->ring[i]->number & (ch->cap * 2 - 1)] = ch->ring[i];
    hd_free(ch->ring);
    ch->ring = ring;
    ch->cap *= 2;
    return true;
}

static slot *new_slot(channel *ch)
{
    slot *s = ch->free;
    size_t n = (size_t)ch->n;
    if (s) {
        ch->free = s->next_free;
    } else {
        s = hd_calloc(1, sizeof *s + n * (sizeof(void *) + sizeof(bool)));
        if (!s) return NULL;
        s->of = (const hd_transfer **)(s + 1);
        s->here = (bool *)(s->of + n);
    }
    s->arrived = s->left = s->active = s->job = 0;
    s->at = 0;
    s->open = s->dead = false;
    memset(s->here, 0, n * sizeof *s->here);
    return s;
}

static slot *slot_at(channel *ch, int64_t number)
{
    while ((size_t)(number - ch->first) >= ch->cap)
        if (!grow_ring(ch)) return NULL;
    slot **at = &ch->ring[(size_t)number & (ch->cap - 1)];
    if (!*at && (*at = new_slot(ch))) (*at)->number = number;
    if (*at && number >= ch->last) ch->last = number + 1;
    return *at;
}

static void leave_slot(channel *ch, slot *s)
{
    if (++s->left < ch->n) return;
    ch->ring[(size_t)s->number & (ch->cap - 1)] = NULL;
    s->next_free = ch->free;
    ch->free = s;
    while (ch->first < ch->last && !ch->ring[(size_t)ch->first & (ch->cap - 1)]) ch->first++;
}

/* ---- chunks ---- */

/* The blocks that one part of a collective of n is made of. A reduction's block j is everybody's addends to piece j. A list's are numbered part by part. */
static int jobs_of_one(const hd_transfer *t, int n)
{
    switch (t->kind) {
    case HD_ALL_REDUCE: case HD_BROADCAST: return 1;
    case HD_ALL_TO_ALL: return n * n;
    default: return n;
    }
}

/* PERMUTE: who takes the piece of index i. */
static int taker_of(const hd_transfer *t, int n, int i) { return (i + n - t->peer) % n; }

static hd_block job_block(const hd_transfer *t, int n, int job)
{
    switch (t->kind) {
    case HD_ALL_REDUCE: return hd_block_of(&(hd_transfer){.kind = HD_SEND, .count = t->count}, n, 0, 0);
    case HD_BROADCAST: return hd_block_of(t, n, t->peer, 0);
    case HD_REDUCE_SCATTER: return hd_block_of(t, n, 0, job);
    case HD_ALL_TO_ALL: return hd_block_of(t, n, job / n, job % n);
    case HD_PERMUTE: return hd_block_of(t, n, job, taker_of(t, n, job));
    default: return hd_block_of(t, n, job, 0);
    }
}

static void reduce_block(const hd_transfer *t, const void *const *in, void *const *out, int n, int job, const hd_block *b, int64_t lo, int64_t hi, bool stream)
{
    int64_t src, dst, run;
    bool all = t->kind == HD_ALL_REDUCE;
    for (int64_t at = lo; (run = hd_block_next(b, at, hi, &src, &dst)) > 0; at += run)
        hd_comm_reduce(t->dtype, t->max, in, n, src, run, all ? out : out + job, all ? n : 1, dst, stream);
}

/* Elements lo .. hi of block `job` of part `part`. */
static void do_block(const hd_transfer *t, const slot *s, int n, int part, int job, const hd_block *b, int64_t lo, int64_t hi)
{
    size_t size = hd_dtype_size(t->dtype);
    const void *in[n];
    void *out[n];
    for (int i = 0; i < n; i++) in[i] = hd_transfer_part(s->of[i], part)->in, out[i] = hd_transfer_part(s->of[i], part)->out;
    switch (t->kind) {
    case HD_ALL_REDUCE: case HD_REDUCE_SCATTER: reduce_block(t, in, out, n, job, b, lo, hi, s->stream); break;
    case HD_BROADCAST: hd_block_copy(b, lo, hi, size, in[t->peer], out, n, s->stream); break;
    case HD_PERMUTE: hd_block_copy(b, lo, hi, size, in[job], out + taker_of(t, n, job), 1, s->stream); break;
    case HD_ALL_TO_ALL: hd_block_copy(b, lo, hi, size, in[job / n], out + job % n, 1, s->stream); break;
    default: hd_block_copy(b, lo, hi, size, in[job], out, n, s->stream); break;
    }
}

/* Moves (job, at) on by a chunk, or by what is left; with s, does it meanwhile. */
static void walk_chunk(const hd_transfer *t, int n, int *job, int64_t *at, const slot *s)
{
    int64_t quota = CHUNK_BYTES / (int64_t)hd_dtype_size(t->dtype);
    int each = jobs_of_one(t, n), jobs = hd_transfer_parts(t) * each;
    while (quota > 0 && *job < jobs) {
        hd_block b = job_block(hd_transfer_part(t, *job / each), n, *job % each);
        int64_t count = hd_block_count(&b), part = count - *at < quota ? count - *at : quota;
        if (s && part > 0) do_block(t, s, n, *job / each, *job % each, &b, *at, *at + part);
        quota -= part;
        *at += part;
        if (*at < count) break;
        ++*job;
        *at = 0;
    }
}

static bool slot_ended(const slot *s) { return s->open && !s->dead && s->job >= s->jobs && !s->active; }

/* Takes chunks until there is none; rings when the last one ended. Under the channel's lock, which it lets go while it works. */
static void work_on(world *w, channel *ch, slot *s, const hd_transfer *t, int self)
{
    while (s->open && !s->dead && s->job < s->jobs && !atomic_load_explicit(&w->aborted, memory_order_relaxed)) {
        int job = s->job;
        int64_t at = s->at;
        walk_chunk(t, ch->n, &s->job, &s->at, NULL);
        s->active++;
        pthread_mutex_unlock(&ch->lock);
        walk_chunk(t, ch->n, &job, &at, s);
        hd_stream_end();
        pthread_mutex_lock(&ch->lock);
        s->active--;
        if (s->job >= s->jobs && !s->active) ring_members(w, ch, self);
    }
}

/* Bytes that all outputs have together. */
static int64_t output_bytes(const hd_transfer *t, int n)
{
    int64_t bytes = 0;
    for (int p = 0; p < hd_transfer_parts(t); p++)
        for (int job = 0; job < jobs_of_one(t, n); job++) {
            hd_block b = job_block(hd_transfer_part(t, p), n, job);
            bytes += hd_block_count(&b);
        }
    bool everywhere = t->kind != HD_REDUCE_SCATTER && t->kind != HD_ALL_TO_ALL && t->kind != HD_PERMUTE;
    return bytes * (int64_t)hd_dtype_size(t->dtype) * (everywhere ? n : 1);
}

/* All have come. What is one chunk is done on the spot: waking somebody would take longer. */
static void open_slot(world *w, channel *ch, slot *s, const hd_transfer *t, int self)
{
    int64_t bytes = output_bytes(t, ch->n);
    s->open = true;
    s->jobs = bytes ? hd_transfer_parts(t) * jobs_of_one(t, ch->n) : 0;
    s->stream = bytes > STREAM_BYTES;
    if (bytes <= CHUNK_BYTES) {
        if (bytes) work_on(w, ch, s, t, self);
        else ring_members(w, ch, self);
    } else {
        ring_members(w, ch, self);
    }
}

static int start_collective(hd_comm *c, local_op *o, hd_error *err)
{
    world *w = world_of(c);
    local_group *g = o->op.group->state;
    channel *ch = g->channel;
    int self = o->op.group->index;
    uint64_t print = hd_comm_fingerprint(&o->op.t, ch->n);
    pthread_mutex_lock(&ch->lock);
    slot *s = slot_at(ch, g->next);
    bool agrees = s && (!s->arrived || s->fingerprint == print);
    if (agrees) {
        g->next++;
        if (!s->arrived) s->kind = o->op.t.kind, s->fingerprint = print;
        s->of[self] = &o->op.t;
        s->here[self] = true;
        o->slot = s;
        if (++s->arrived == ch->n) open_slot(w, ch, s, &o->op.t, c->rank);
    }
    hd_transfer_kind other = s ? s->kind : 0;
    pthread_mutex_unlock(&ch->lock);
    if (!s) return hd_fail_memory(err, sizeof *s, "a transfer");
    if (agrees) return 0;
    char why[160];
    snprintf(why, sizeof why, "started %s where another rank of the group started %s, or one of other extents", hd_comm_kind_name(o->op.t.kind),
             hd_comm_kind_name(other));
    world_abort(w, c->rank, why);
    return fail_aborted(c, err);
}

/* Works on a collective. Whether it has ended; then the slot is left. */
static bool push_collective(hd_comm *c, local_op *o)
{
    channel *ch = channel_of(o->op.group);
    pthread_mutex_lock(&ch->lock);
    work_on(world_of(c), ch, o->slot, &o->op.t, c->rank);
    bool ended = slot_ended(o->slot);
    pthread_mutex_unlock(&ch->lock);
    return ended;
}

static void leave_collective(local_op *o, bool dead)
{
    channel *ch = channel_of(o->op.group);
    if (!o->slot) return;
    pthread_mutex_lock(&ch->lock);
    if (dead && !slot_ended(o->slot)) o->slot->dead = true;
    while (dead && o->slot->active) { /* somebody is inside a chunk, which is short, and may be in our memory */
        pthread_mutex_unlock(&ch->lock);
        sched_yield();
        pthread_mutex_lock(&ch->lock);
    }
    leave_slot(ch, o->slot);
    pthread_mutex_unlock(&ch->lock);
    o->slot = NULL;
}

/* ---- messages ---- */

static size_t class_bytes(int class) { return (size_t)1 << (class + SMALLEST_CLASS); }

static message *pool_get(world *w, size_t bytes)
{
    int class = 0;
    while (class < POOL_CLASSES - 1 && class_bytes(class) < bytes) class++;
    pthread_mutex_lock(&w->pool.lock);
    message *m = w->pool.free[class];
    if (m) w->pool.free[class] = m->next;
    pthread_mutex_unlock(&w->pool.lock);
    if (!m && (m = hd_malloc(sizeof *m + class_bytes(class)))) m->class = class;
    return m;
}

static void pool_put(world *w, message *m)
{
    pthread_mutex_lock(&w->pool.lock);
    m->next = w->pool.free[m->class];
    w->pool.free[m->class] = m;
    pthread_mutex_unlock(&w->pool.lock);
}

static size_t op_bytes(const hd_comm_op *op) { return (size_t)op->t.count * hd_dtype_size(op->t.dtype); }

/* Takes the first receive out of the box that wants this message. */
static local_op *take_wanted(mailbox *box, const channel *ch, int from, int tag)
{
    for (local_op **at = &box->wanted; *at; at = &(*at)->next) {
        local_op *o = *at;
        if (channel_of(o->op.group) != ch || o->op.t.peer != from || o->op.t.tag != tag) continue;
        *at = o->next;
        if (!*at) box->last_wanted = at;
        return o;
    }
    return NULL;
}

static message *take_message(mailbox *box, const channel *ch, int from, int tag)
{
    for (message **at = &box->first; *at; at = &(*at)->next) {
        message *m = *at;
        if (m->channel != ch || m->from != from || m->tag != tag) continue;
        *at = m->next;
        if (!*at) box->last = at;
        return m;
    }
    return NULL;
}

static void deliver(world *w, local_op *to, const void *data, size_t bytes, int rank)
{
    bool right = bytes == op_bytes(&to->op);
    if (right && bytes) memcpy(to->op.t.out, data, bytes);
    atomic_store(&to->state, right ? RECV_DONE : RECV_WRONG);
    hd_bell_ring(&w->bell[rank]);
}

/* A receiver that is there gets it at once; else it is copied, so that a send has always ended when it was started. A receive that came while the copy
 * was made is served from the copy. */
static int start_send(hd_comm *c, local_op *o, hd_error *err)
{
    world *w = world_of(c);
    const channel *ch = channel_of(o->op.group);
    int self = o->op.group->index, tag = o->op.t.tag, rank = ch->rank[o->op.t.peer];
    size_t bytes = op_bytes(&o->op);
    mailbox *box = &w->box[rank];
    pthread_mutex_lock(&box->lock);
    local_op *to = take_wanted(box, ch, self, tag);
    if (to) atomic_store(&to->state, RECV_BUSY);
    pthread_mutex_unlock(&box->lock);
    if (to) return deliver(w, to, o->op.t.in, bytes, rank), 0;
    message *m = pool_get(w, bytes);
    if (!m) return hd_fail_memory(err, bytes, "a message to another rank");
    m->next = NULL;
    m->channel = ch;
    m->from = self;
    m->tag = tag;
    m->bytes = bytes;
    if (bytes) memcpy(m->data, o->op.t.in, bytes);
    pthread_mutex_lock(&box->lock);
    to = take_wanted(box, ch, self, tag);
    if (to) atomic_store(&to->state, RECV_BUSY);
    else *box->last = m, box->last = &m->next;
    pthread_mutex_unlock(&box->lock);
    if (!to) return 0;
    deliver(w, to, m->data, bytes, rank);
    pool_put(w, m);
    return 0;
}

static void start_recv(hd_comm *c, local_op *o)
{
    world *w = world_of(c);
    const channel *ch = channel_of(o->op.group);
    mailbox *box = &w->box[c->rank];
    atomic_store(&o->state, RECV_POSTED);
    o->next = NULL;
    pthread_mutex_lock(&box->lock);
    message *m = take_message(box, ch, o->op.t.peer, o->op.t.tag);
    if (!m) *box->last_wanted = o, box->last_wanted = &o->next;
    pthread_mutex_unlock(&box->lock);
    if (!m) return;
    deliver(w, o, m->data, m->bytes, c->rank);
    pool_put(w, m);
}

/* Takes a receive back; one that is being written to right now is waited for. */
static void leave_recv(hd_comm *c, local_op *o)
{
    mailbox *box = &world_of(c)->box[c->rank];
    pthread_mutex_lock(&box->lock);
    for (local_op **at = &box->wanted; *at; at = &(*at)->next) {
        if (*at != o) continue;
        *at = o->next;
        if (!*at) box->last_wanted = at;
        break;
    }
    pthread_mutex_unlock(&box->lock);
    while (atomic_load(&o->state) == RECV_BUSY) sched_yield();
}

/* ---- waiting ---- */

/* Does what can be done for an operation. Whether it has ended. */
static bool push(hd_comm *c, local_op *o)
{
    switch (o->op.t.kind) {
    case HD_SEND: return true;
    case HD_RECV: return atomic_load(&o->state) >= RECV_DONE;
    default: return o->slot && push_collective(c, o); /* no slot: withdrawn */
    }
}

static void push_others(hd_comm *c, const local_op *but)
{
    for (size_t i = 0; i < c->n_ops; i++) {
        local_op *o = (local_op *)c->ops[i];
        if (o != but && o->op.used && o->op.t.kind != HD_SEND && o->op.t.kind != HD_RECV && o->slot) push_collective(c, o);
    }
}

/* After this nobody touches the memory of anything that this endpoint has under way. */
static void withdraw_all(hd_comm *c)
{
    for (size_t i = 0; i < c->n_ops; i++) {
        local_op *o = (local_op *)c->ops[i];
        if (!o->op.used) continue;
        if (o->op.t.kind == HD_RECV) leave_recv(c, o);
        else leave_collective(o, true);
    }
}

/* The first rank that this operation still needs; -1 when there is none. */
static int missing_rank(local_op *o, bool only_gone)
{
    hd_comm_group *g = o->op.group;
    world *w = world_of(g->comm);
    channel *ch = channel_of(g);
    int missing = -1;
    if (o->op.t.kind == HD_RECV) {
        int peer = ch->rank[o->op.t.peer];
        return !only_gone || atomic_load(&w->left[peer]) ? peer : -1;
    }
    pthread_mutex_lock(&ch->lock);
    for (int i = 0; i < ch->n && missing < 0; i++)
        if (!o->slot->here[i] && (!only_gone || atomic_load(&w->left[ch->rank[i]]))) missing = ch->rank[i];
    pthread_mutex_unlock(&ch->lock);
    return missing;
}

static void abort_waiting(hd_comm *c, local_op *o, int missing, const char *how)
{
    char why[160];
    if (missing < 0) snprintf(why, sizeof why, "%s: %s", hd_comm_kind_name(o->op.t.kind), how);
    else snprintf(why, sizeof why, "%s: rank %d %s", hd_comm_kind_name(o->op.t.kind), missing, how);
    world_abort(world_of(c), c->rank, why);
}

/* A receive that is posted may end between the look at it and the look at who is gone: a sender leaves only after it delivered. */
static bool gone_for_good(hd_comm *c, local_op *o)
{
    world *w = world_of(c);
    if (!atomic_load(&w->gone)) return false;
    int missing = missing_rank(o, true);
    if (missing < 0 || push(c, o)) return false;
    abort_waiting(c, o, missing, "has left");
    return true;
}

static void nap(hd_comm *c, local_op *o, uint32_t seen)
{
    world *w = world_of(c);
    bool limited = c->deadline > 0;
    if (hd_bell_wait(&w->bell[c->rank], seen, w->spin, limited ? c->deadline : NO_DEADLINE_NAP) || !limited) return;
    char how[64];
    snprintf(how, sizeof how, "has been silent for %.3g s", c->deadline);
    abort_waiting(c, o, missing_rank(o, false), how);
}

static int local_wait(hd_comm *c, hd_comm_op *op, hd_error *err)
{
    local_op *o = (local_op *)op;
    world *w = world_of(c);
    for (;;) {
        uint32_t seen = hd_bell_read(&w->bell[c->rank]);
        if (push(c, o)) break;
        if (atomic_load(&w->aborted)) {
            withdraw_all(c);
            return fail_aborted(c, err);
        }
        push_others(c, o);
        if (!gone_for_good(c, o)) nap(c, o, seen);
    }
    if (op->t.kind == HD_RECV && atomic_load(&o->state) == RECV_WRONG) {
        abort_waiting(c, o, -1, "the message is not as long as was asked for");
        return fail_aborted(c, err);
    }
    if (op->t.kind != HD_RECV && op->t.kind != HD_SEND) leave_collective(o, false);
    return 0;
}

static int local_start(hd_comm *c, hd_comm_op *op, hd_error *err)
{
    local_op *o = (local_op *)op;
    o->slot = NULL;
    if (atomic_load(&world_of(c)->aborted)) return fail_aborted(c, err);
    if (op->t.kind == HD_SEND) return start_send(c, o, err);
    if (op->t.kind != HD_RECV) return start_collective(c, o, err);
    start_recv(c, o);
    return 0;
}

/* ---- worlds ---- */

static void free_world(world *w)
{
    for (channel *ch = w->channels, *next; ch; ch = next) {
        next = ch->next;
        free_channel(ch);
    }
    for (int r = 0; r < w->n && w->box; r++) {
        for (message *m = w->box[r].first, *next; m; m = next) {
            next = m->next;
            hd_free(m);
        }
        pthread_mutex_destroy(&w->box[r].lock);
    }
    for (int k = 0; k < POOL_CLASSES; k++)
        for (message *m = w->pool.free[k], *next; m; m = next) {
            next = m->next;
            hd_free(m);
        }
    pthread_mutex_destroy(&w->pool.lock);
    pthread_mutex_destroy(&w->lock);
    if (w->bell) hd_unmap_memory(w->bell, (size_t)w->n * sizeof *w->bell);
    hd_free(w->box);
    hd_free((void *)w->left);
    hd_free(w);
}

static bool has_work(const hd_comm *c)
{
    for (size_t i = 0; i < c->n_ops; i++)
        if (c->ops[i]->used && c->ops[i]->t.kind != HD_SEND) return true;
    return false;
}

static void local_free(hd_comm *c)
{
    world *w = world_of(c);
    if (has_work(c)) world_abort(w, c->rank, "left with transfers under way");
    withdraw_all(c);
    hd_comm_free_common(c);
    atomic_store(&w->left[c->rank], true);
    atomic_fetch_add(&w->gone, 1);
    ring_all(w);
    pthread_mutex_lock(&w->lock);
    bool last = --w->alive == 0;
    pthread_mutex_unlock(&w->lock);
    hd_free(c);
    if (last) free_world(w);
}

static const hd_transport local_transport = {
    .name = "local", .op_size = sizeof(local_op),
    .group_init = local_group_init, .group_free = local_group_free,
    .start = local_start, .wait = local_wait,
    .abort = local_abort, .aborted = local_aborted,
    .free = local_free,
};

static world *new_world(int n)
{
    world *w = hd_calloc(1, sizeof *w);
    if (!w) return NULL;
    w->n = n;
    w->spin = n <= hd_core_count();
    pthread_mutex_init(&w->lock, NULL);
    pthread_mutex_init(&w->pool.lock, NULL);
    w->left = hd_calloc((size_t)n, sizeof *w->left);
    w->box = hd_calloc((size_t)n, sizeof *w->box);
    w->bell = hd_map_memory((size_t)n * sizeof *w->bell);
    for (int r = 0; r < n && w->box; r++) {
        pthread_mutex_init(&w->box[r].lock, NULL);
        w->box[r].last = &w->box[r].first;
        w->box[r].last_wanted = &w->box[r].wanted;
    }
    if (w->left && w->box && w->bell) return w;
    free_world(w);
    return NULL;
}

int hd_comm_local(int n, double deadline, hd_comm **out, hd_error *err)
{
    if (n < 1 || n > 4096) return hd_fail(err, HD_EINVAL, "%d ranks asked for, must be 1 to 4096", n);
    world *w = new_world(n);
    if (!w) return hd_fail_memory(err, sizeof *w, "a world of ranks");
    int made = 0;
    for (; made < n; made++) {
        local_comm *l = hd_calloc(1, sizeof *l);
        if (!l) break;
        l->c = (hd_comm){.transport = &local_transport, .rank = made, .size = n, .deadline = deadline};
        l->w = w;
        out[made] = &l->c;
    }
    w->alive = made;
    if (made == n) return 0;
    for (int r = 0; r < made; r++) hd_comm_free(out[r]);
    if (!made) free_world(w);
    return hd_fail_memory(err, sizeof(local_comm), "a world of ranks");
}
