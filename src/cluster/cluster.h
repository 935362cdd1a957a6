/* cluster.h: the machines: devices, what they hold and reach, and the links between them. Plain data, read from a file, shipped with Heddle, or measured by
 * `heddle calibrate`.
 *
 * A cluster is regular: `levels` of links from the inside out, each grouping `fanout` of what is below it (the innermost groups devices). Devices are numbered
 * so that those of one innermost group are neighbours; rank r of a job runs on device r. Two devices talk over the innermost level that holds both.
 * Rates are bytes or operations a second, times seconds, sizes bytes; every rate is positive. */
#ifndef HD_CLUSTER_CLUSTER_H
#define HD_CLUSTER_CLUSTER_H

#include "base/mem.h"
#include "base/str.h"
#include "tensor/dtype.h"

#define HD_CLUSTER_VERSION 1
#define HD_MAX_LEVELS 6
#define HD_PROFILE_FEATURES 4

/* What kernels reach of a device's peaks, by documented curves (cost.h): used where there is no measured entry. */
typedef struct hd_efficiency {
    double product;        /* share of the peak that a very large matrix product reaches, 0..1 */
    double product_half;   /* FLOPs in one product at which half of that is reached: launch ramps and partial waves (FLOP) */
    double depth_half;     /* extent of the summed dimension, and of the shorter side, at which half of it is reached (elements) */
    double memory;         /* share of the memory's bandwidth that streaming kernels reach, 0..1 */
} hd_efficiency;

typedef struct hd_device {
    char name[48];
    double flops[HD_DTYPE_COUNT];   /* peak of products with operands of this dtype, FLOP/s; 0: no such units, products of it run at f32's rate */
    double bandwidth;          /* of device memory */
    int64_t memory;            /* of one device; of a CPU, the node's, which its ranks share (as they do flops, bandwidth and cores) */
    int64_t reserved;          /* of it, taken by the driver, the runtime and libraries before anything of ours */
    double launch;             /* seconds from one kernel's end to the next one's begin */
    int64_t host_memory;       /* of the node, shared by its devices; 0: none beside the device's own */
    double host_bandwidth;     /* between a device and host memory; 0: none */
    int64_t disk; double disk_bandwidth; /* of the node; 0: none */
    hd_efficiency efficiency;
    int cores;                 /* of a CPU device: threads that one rank may use; 0: not a CPU */
} hd_device;

typedef struct hd_level {
    char name[24];     /* "nvlink", "infiniband", "ethernet" */
    int fanout;        /* how many of the groups (devices) below one group of this level holds, >= 1 */
    double latency;    /* of one message, seconds */
    double bandwidth;  /* of one port, one direction, as the vendor says it */
    double efficiency; /* share of it that large messages reach, 0..1 */
    int ports;         /* through which a group of the level below leaves it: its devices share them evenly. 8 NICs of a node of 8: 8 */
    /* Of CPUs, whose own cores move the bytes: */
    double contention; /* share of a rank's computing that is lost while a transfer over it goes on beside, 0 .. 1 */
    double drag;       /* share of a transfer's speed that is lost while its ranks compute, 0 .. 1 */
} hd_level;

/* One measured time: of a kernel or a collective. Features are what the cost model interpolates over (cost.h says which for each op). */
typedef struct hd_profile_entry {
    char op[32];         /* of a kernel: hd_cost_key, or "(copy)"; of a collective: its name in the op table ("all_reduce"), "broadcast" or "send" */
    hd_dtype dtype;      /* hd_cost_dtype; of a collective: of its elements */
    int threads;         /* of the team; collectives: ranks */
    int teams;           /* how many ranks of the machine did the same at once */
    double x[HD_PROFILE_FEATURES];
    double seconds;
} hd_profile_entry;

typedef struct hd_cluster {
    char name[64], note[256];
    hd_device device;
    int n_levels;
    hd_level level[HD_MAX_LEVELS];
    double price;           /* of one node (a group of `node_level`) for an hour, in USD; 0: unknown */
    int node_level;         /* which level's groups are nodes */
    hd_profile_entry *profile; int n_profile; /* owned */
} hd_cluster;

/* JSON, versioned; an unknown key, a missing or negative field is one clear line naming it. *out is valid only on success. */
int hd_cluster_parse(const char *text, size_t n, const char *name, hd_cluster *out, hd_error *err);
int hd_cluster_load(const char *path, hd_cluster *out, hd_error *err);
int hd_cluster_print(const hd_cluster *c, hd_str *out);
int hd_cluster_save(const hd_cluster *c, const char *path, hd_error *err);
void hd_cluster_free(hd_cluster *c);

/* What `--cluster` takes: a file, or the name of a shipped one with a number of devices ("dgx-a100-80:3072", "cpu:2"); hd_cluster_shipped_name lists them. */
int hd_cluster_find(const char *name, hd_cluster *out, hd_error *err);
const char *hd_cluster_shipped_name(int i); /* NULL past the last */

int hd_cluster_devices(const hd_cluster *c);
int hd_cluster_nodes(const hd_cluster *c);
/* The innermost level whose one group holds both; -1: the same device. */
int hd_cluster_level(const hd_cluster *c, int a, int b);
/* How many devices one group of this level holds. */
int hd_cluster_group(const hd_cluster *c, int level);

#endif
