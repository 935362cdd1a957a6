/* comm.h: moving data between ranks: one world of ranks, groups of them, collectives over a group.
 *
 * Invariants:
 *  - Every member of a group starts the same transfers of that group in the same order; what is started must be waited for, in any order.
 *  - Reductions have one order on every transport: element by element, addends are taken in the order of the group's indices, f32 and bf16
 *    summed in f32 and rounded once (f64 in f64, integers exactly). So `local` and `mpi` agree to the bit.
 *  - Pieces may be of any length, 0 included, and in and out may be the same memory only for HD_ALL_REDUCE and HD_BROADCAST.
 *  - Every wait ends: with the data, or with HD_ECOMM once some rank has called hd_comm_abort, died, or been silent for longer than the deadline.
 * A rank's endpoint is used by one thread of that rank at a time. */
#ifndef HD_COMM_COMM_H
#define HD_COMM_COMM_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "tensor/dtype.h"

typedef struct hd_comm hd_comm;             /* one rank's endpoint of a world */
typedef struct hd_comm_group hd_comm_group; /* of one endpoint: some ranks in an order; owned by the endpoint */

/* ---- worlds ---- */

/* A world of n ranks inside this process; out[r] becomes rank r's endpoint, to be used by rank r's thread. A deadline in seconds (0: none) is how
 * long a wait may see no progress. */
int hd_comm_local(int n, double deadline, hd_comm **out, hd_error *err);
/* This process's endpoint of the MPI world that mpirun started: finds the plug-in for the MPI that it was started by, and loads it. One in a process. */
int hd_comm_mpi(double deadline, hd_comm **out, hd_error *err);
/* Whether this process was started by an mpirun or srun, and as which rank of how many (from the environment; nothing is loaded). */
bool hd_comm_mpi_launched(int *rank, int *size);
/* Ends an endpoint. Of an MPI world: collective unless the world was aborted. */
void hd_comm_free(hd_comm *c);

int hd_comm_rank(const hd_comm *c);
int hd_comm_size(const hd_comm *c);
const char *hd_comm_transport(const hd_comm *c); /* "local", "mpi" */

/* Ends every wait of every rank with HD_ECOMM and `why` (the first caller's is kept, with the rank that said it). Safe from any thread. */
void hd_comm_abort(hd_comm *c, const char *why);
bool hd_comm_aborted(const hd_comm *c, char *why, size_t size);
/* Whether the rank's thread is in a wait at this moment. From any thread. */
bool hd_comm_is_waiting(const hd_comm *c);

/* ---- groups ---- */

/* ranks[n] in order of index; must contain this rank; the same list on every member. Asked for twice, the same group comes back. Nothing is sent. */
hd_comm_group *hd_comm_group_get(hd_comm *c, const int *ranks, int n, hd_error *err);
int hd_comm_group_index(const hd_comm_group *g); /* of this rank */
int hd_comm_group_size(const hd_comm_group *g);

/* ---- transfers ---- */

typedef enum hd_transfer_kind {
    HD_ALL_REDUCE,     /* in [outer * extent * inner] -> out, the same on all */
    HD_REDUCE_SCATTER, /* in [outer][extent][inner] -> out [outer][piece of this index][inner] */
    HD_ALL_GATHER,     /* in [outer][piece of this index][inner] -> out [outer][extent][inner] */
    HD_ALL_TO_ALL,     /* two dimensions, see below */
    HD_BROADCAST,      /* in on index `peer` -> out on all */
    HD_PERMUTE,        /* in [piece of this index] -> out [piece of index + peer]: each takes what the index `peer` behind it has (around the end) */
    HD_SEND, HD_RECV,  /* to or from index `peer`; messages between two ranks with one tag arrive in order; a send ends once `in` may be changed */
    HD_TRANSFER_KINDS
} hd_transfer_kind;

typedef struct hd_transfer {
    hd_transfer_kind kind;
    hd_dtype dtype;
    bool max; /* reductions: the greatest instead of the sum */
    const void *in;
    void *out;
    int64_t outer, inner;  /* elements before and behind the dimension that is cut */
    const int64_t *offset; /* [size + 1]: index j has offset[j] .. offset[j + 1]-1 of that dimension, whose extent is offset[size] (ALL_REDUCE,
                            * BROADCAST, SEND, RECV: only count is used) */
    int64_t count;         /* ALL_REDUCE, BROADCAST, SEND, RECV: elements */
    /* ALL_TO_ALL: dimension a (offset) is cut in `in` and whole in `out`; dimension b (to_offset) the other way round. In memory a stands before b
     * (a_first: in [outer][a piece][middle][b][inner], out [outer][a][middle][b piece][inner]) or behind it (the same with a and b swapped). */
    const int64_t *to_offset;
    int64_t middle;
    bool a_first;
    int peer, tag;
    /* ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER: a list of transfers of this kind, dtype and max that are done as one, with one message to each member; in, out
     * and the extents are then each part's own. Nothing is packed where parts lie side by side in memory. 0: no list. */
    const struct hd_transfer *part; int n_parts;
} hd_transfer;

typedef struct hd_ticket { int64_t number; } hd_ticket;

/* Starts a transfer. *t may go after the call, but in, out, offset, to_offset and part must stay as they are until the wait. `local` does the work in the wait;
 * `mpi` has a thread that does it meanwhile. A send may wait for room. */
int hd_comm_start(hd_comm *c, hd_comm_group *g, const hd_transfer *t, hd_ticket *out, hd_error *err);
int hd_comm_wait(hd_comm *c, hd_ticket ticket, hd_error *err);
int hd_comm_do(hd_comm *c, hd_comm_group *g, const hd_transfer *t, hd_error *err); /* start and wait */
/* Ends when all members have begun it. */
int hd_comm_barrier(hd_comm *c, hd_comm_group *g, hd_error *err);

/* Bytes that this rank has sent, by kind, since the start: of a group of n, (n - 1) / n of the data for gather, scatter and all-to-all, twice that for
 * all-reduce, its piece for permute, whatever the transport really does. */
void hd_comm_sent(const hd_comm *c, int64_t bytes[HD_TRANSFER_KINDS]);

#endif
