/* calibrate_int.h: what the files of calibration share. */
#ifndef HD_CLUSTER_CALIBRATE_INT_H
#define HD_CLUSTER_CALIBRATE_INT_H

#include "cluster/calibrate.h"
#include "cluster/cost.h"

typedef struct hd_calibration {
    const hd_calibrate_options *options;
    hd_cluster *out;
    size_t room;          /* of out->profile */
    double done;          /* seconds' worth of work, for the progress bar */
    hd_comm_group *all;   /* with comm: every rank of the job */
    hd_error err;         /* the first; by whoever holds the lock */
} hd_calibration;

int hd_calibration_add(hd_calibration *c, const hd_profile_entry *e); /* a copy; 0 or HD_ENOMEM, in c->err too */
void hd_calibration_step(hd_calibration *c, double seconds, const char *what);
double hd_calibration_median(double *x, int n); /* sorts x */
int hd_calibration_cores(const hd_calibration *c); /* that one rank uses when all of the job's are at work */

/* Kernels on `threads` threads while `teams` ranks of the machine do the same at once. */
int hd_calibrate_ops(hd_calibration *c, int threads, int teams, double seconds);
/* Collectives of `ranks` local ranks; of the job's own ranks where there is one. */
int hd_calibrate_collectives(hd_calibration *c, int ranks, double seconds);
int hd_calibrate_job(hd_calibration *c, double seconds);
int hd_calibrate_disk(hd_calibration *c, const char *dir, double seconds);

#endif
