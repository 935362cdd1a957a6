/* machine.h: the cluster that this machine is: calibrated once and kept in the user's cache, $XDG_CACHE_HOME/heddle/cluster-HOST.json (or under ~/.cache). */
#ifndef HD_CLUSTER_MACHINE_H
#define HD_CLUSTER_MACHINE_H

#include <stdbool.h>

#include "cluster/cluster.h"

/* Where it is kept. HD_EINVAL where there is neither a cache nor a home. */
int hd_machine_path(char *out, size_t size, hd_error *err);

/* Reads what is kept into *out, which the caller frees. False where there is nothing that can be read, or it is of another machine: with other cores, another
 * processor or other memory. */
bool hd_machine_load(const char *path, hd_cluster *out);

/* Calibrates for about so many seconds and keeps the result. A process that does so at this moment is waited for, and its result taken. */
int hd_machine_calibrate(const char *path, double seconds, bool quiet, hd_cluster *out, hd_error *err);

/* Without calibrating: the figures of a like machine with this one's cores, memory and peaks, which take a moment to measure. */
int hd_machine_guess(hd_cluster *out, hd_error *err);

#endif
