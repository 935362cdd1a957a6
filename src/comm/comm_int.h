/* comm_int.h: what the files of this folder share: an endpoint, its groups, and its operations under way.
 *
 * Invariants:
 *  - A transport's endpoint begins with an hd_comm, its operations with an hd_comm_op.
 *  - Operations are pooled per endpoint: once as many were under way at a time as ever will be, starting one allocates nothing.
 *  - All of it is touched by the endpoint's own thread alone, unless a transport says otherwise. */
#ifndef HD_COMM_COMM_INT_H
#define HD_COMM_COMM_INT_H

#include <stdatomic.h>

#include "comm/comm.h"

typedef struct hd_comm_op {
    hd_transfer t;          /* a copy; what it points to is the caller's */
    hd_comm_group *group;
    uint32_t index;         /* in hd_comm.ops */
    uint32_t generation;    /* counts the uses of this place, so that a stale ticket is known */
    bool used;
} hd_comm_op;

typedef struct hd_transport {
    const char *name;
    size_t op_size;
    int (*group_init)(hd_comm *c, hd_comm_group *g, hd_error *err); /* sets g->state */
    void (*group_free)(hd_comm_group *g);
    int (*start)(hd_comm *c, hd_comm_op *op, hd_error *err);
    int (*wait)(hd_comm *c, hd_comm_op *op, hd_error *err);         /* the op is given back by the caller */
    void (*abort)(hd_comm *c, const char *why);
    bool (*aborted)(const hd_comm *c, char *why, size_t size);
    void (*free)(hd_comm *c);                                       /* with the memory of c */
} hd_transport;

struct hd_comm {
    const hd_transport *transport;
    int rank, size;
    double deadline; /* seconds; 0: none */
    _Atomic bool waiting; /* the rank's thread is in hd_comm_wait */
    hd_comm_group **groups; size_t n_groups, cap_groups;
    hd_comm_op **ops; size_t n_ops, cap_ops; /* all ever made; free ones wait to be used again */
    int64_t sent[HD_TRANSFER_KINDS];
};

struct hd_comm_group {
    hd_comm *comm;
    int n, index;
    void *state; /* the transport's */
    int rank[];  /* [n] */
};

/* "all_reduce", ... */
const char *hd_comm_kind_name(hd_transfer_kind kind);
/* What all members must agree on, as one number: kind, dtype, extents, pieces, peer (tag and memory are not in it). */
uint64_t hd_comm_fingerprint(const hd_transfer *t, int n);
/* Gives the operations and groups back; for the transports' free. */
void hd_comm_free_common(hd_comm *c);
bool hd_comm_is_reduction(hd_transfer_kind kind);

#endif
