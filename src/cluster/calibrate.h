/* calibrate.h: measuring this machine, or the MPI job that this process is a rank of, into a cluster: single kernels by shape and dtype as the executor runs
 * them, collectives by size and group, memory, disk; never a model. */
#ifndef HD_CLUSTER_CALIBRATE_H
#define HD_CLUSTER_CALIBRATE_H

#include "base/term.h"
#include "cluster/cluster.h"
#include "comm/comm.h"
#include "kernels/kernel.h"

typedef struct hd_calibrate_options {
    double seconds;        /* to spend, about */
    int cores;             /* of each machine that jobs will use; 0: all */
    int ranks;             /* that the cluster's node is to have room for; 0: one for each core */
    const char *disk;      /* directory to write a file of some 100 MB to; NULL: disk is left out */
    hd_comm *comm;         /* of the MPI job; NULL: this machine with ranks that are threads of one process */
    int on_host;           /* with comm: ranks on each machine */
    hd_progress *progress; /* begun by the caller with hd_calibrate_work as its total; may be NULL */
} hd_calibrate_options;

double hd_calibrate_work(const hd_calibrate_options *o); /* seconds, about */

/* Every rank of the job calls it; *out is valid on all, and the measured entries are those of rank 0's machine. The caller frees it. */
int hd_calibrate(const hd_calibrate_options *o, hd_cluster *out, hd_error *err);

/* Fills the processor's name, cores, memory, and what this process takes of it. */
void hd_calibrate_device(hd_device *d);

#endif
