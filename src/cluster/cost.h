/* cost.h: how long a kernel or a collective takes on a cluster. Pure functions of their arguments.
 *
 * Kernels: the roofline max(flops / rate, bytes / bandwidth) at the efficiency of the shape, plus the launch; measured entries (hd_cluster.profile) of the same
 * op, dtype, threads and teams come first, interpolated over features in log space as a factor on the roofline. Collectives: latency-bandwidth (alpha-beta)
 * by algorithm and level (Thakur et al. 2005; hierarchical rings), the quickest of those that the level allows; groups that run at once share the ports
 * through which they leave a group. */
#ifndef HD_CLUSTER_COST_H
#define HD_CLUSTER_COST_H

#include "cluster/cluster.h"
#include "graph/op.h"

typedef enum hd_cost_kind { HD_COST_PRODUCT, HD_COST_MEMORY, HD_COST_KINDS } hd_cost_kind; /* what bounds a kernel */

typedef struct hd_kernel_cost {
    double seconds;    /* launch included */
    double flops;      /* that are done */
    hd_cost_kind kind; /* PRODUCT for contractions, convolutions and attention; MEMORY for all others */
} hd_kernel_cost;

/* sig: a rank's own pieces. threads: of the rank's team; teams: how many ranks of one device's node compute at once (CPUs share cores' memory bandwidth). */
void hd_cost_kernel(const hd_cluster *c, const hd_sig *sig, int threads, int teams, hd_kernel_cost *out);
/* The same where operands lie in the back end's own form (HD_PACKED), bit i: operand i. */
void hd_cost_kernel_packed(const hd_cluster *c, const hd_sig *sig, uint32_t packed, int threads, int teams, hd_kernel_cost *out);
/* Zeroing or copying so many bytes. */
double hd_cost_copy(const hd_cluster *c, int64_t bytes, int threads, int teams);

/* Makes a profile what it would have been with memory of this bandwidth, which machines that others use too have more or less of: of entries that move more
 * than caches hold the time that memory takes changes, the rest stays. Sets c->device.bandwidth. */
void hd_cost_set_bandwidth(hd_cluster *c, double bandwidth);
/* Seconds of an entry that was measured while all cores together read `from` bytes/s, at `to`. */
double hd_cost_at_bandwidth(const hd_cluster *c, const hd_profile_entry *e, double from, double to);

/* The features of an op's operands that entries of the profile carry: x[HD_PROFILE_FEATURES], all positive. Returns how many are used. */
int hd_cost_features(const hd_sig *sig, double *x);
/* The name under which such kernels stand in the profile: the op's; of contract with its form ("contract.nt"). Written to key[HD_COST_KEY]. */
#define HD_COST_KEY 32
void hd_cost_key(const hd_sig *sig, uint32_t packed, char *key);
/* The dtype under which: of the first floating-point operand of the most dimensions. */
hd_dtype hd_cost_dtype(const hd_sig *sig);

typedef enum hd_move { /* what a collective does */
    HD_MOVE_ALL_REDUCE, HD_MOVE_ALL_GATHER, HD_MOVE_REDUCE_SCATTER, HD_MOVE_ALL_TO_ALL, HD_MOVE_BROADCAST, HD_MOVE_SEND, HD_MOVE_KINDS
} hd_move;

typedef struct hd_move_cost {
    double seconds;
    double bytes[HD_MAX_LEVELS]; /* that this rank sends over links of each level */
    double contention, drag;     /* shares of this rank's computing, and of its own speed, that are lost while it goes on beside computing (hd_level) */
} hd_move_cost;

/* ranks[n]: the group (SEND: from, to), in the job of `world` ranks of which alike groups do the same at the same time: for each rank of a node that is not
 * in this group there is another group of the same form. bytes: of the larger side, as hd_comm_count counts elements. */
void hd_cost_move(const hd_cluster *c, hd_move kind, const int *ranks, int n, int world, int64_t bytes, hd_dtype dtype, hd_move_cost *out);

#endif
