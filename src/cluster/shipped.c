/* shipped.c: clusters that Heddle knows by name, of any size.
 *
 * Rates and sizes are the vendors' figures (sources beside each). What kernels and links reach of them stands in `efficiency`: for GPUs the five constants that
 * were fitted to Narayanan et al. 2021, table 1 (checks/predict-megatron; reasons in curve.h), for other links what the sources beside them measured. Prices are
 * public list prices on demand of a node of that kind, in USD an hour. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cluster/cluster.h"

#define GIB ((int64_t)1 << 30)
#define GB ((int64_t)1000000000)
#define Gbps (1e9 / 8) /* bytes a second */

typedef struct shipped {
    int devices; /* where no number is given */
    hd_cluster cluster; /* the outermost level's fanout follows from the number of devices */
} shipped;

/* ---- what is common to GPUs ---- */

/* Of large products, 16-bit, by cuBLAS; half reached at so many FLOPs and at such a depth; of streaming kernels (curve.h). */
#define GPU_EFFICIENCY {.product = 0.65, .product_half = 4e9, .depth_half = 64, .memory = 0.77}

/* What is gone before anything of ours: the CUDA context (about 0.5 GB), cuBLAS's workspace, the buffers of NCCL's channels (4 to 10 MB a channel and peer). */
#define GPU_RESERVED (3 * GIB / 2)

/* From one kernel's end to the next one's begin in a queue that is full: 2 to 4 us on Volta to Hopper. */
#define GPU_LAUNCH 3e-6

/* Of one hop of a ring that moves large messages: NCCL's own table (tuning.cc, hwLat, ring, protocol Simple). */
#define NVLINK_LATENCY 3.4e-6
#define IB_LATENCY 14e-6

static const shipped table[] = {
    /* AWS p3.16xlarge: 8 V100 SXM2 16 GB ("Amazon EC2 P3 Instances"; "NVIDIA V100" data sheet: 125 TFLOP/s f16, 15.7 f32, 7.8 f64, 900 GB/s).
     * V100 has no bf16: plans of 16 bits stand for f16, of the same size and rate. NVLink 2: six links of 25 GB/s a direction, as a cube mesh, of which NCCL's
     * rings reach some 130 GB/s. 25 Gb/s a node; 488 GiB host memory over PCIe 3 x16; no local disk. */
    {8, {.name = "p3.16xlarge",
         .note = "AWS p3.16xlarge: 8 x V100-16GB, NVLink, 25 Gb/s a node. 16-bit products are f16: V100 has no bf16",
         .device = {.name = "V100-SXM2-16GB", .flops = {[HD_F64] = 7.8e12, [HD_F32] = 15.7e12, [HD_F16] = 125e12, [HD_BF16] = 125e12, [HD_I8] = 62.8e12},
                    .bandwidth = 900e9, .memory = 16 * GIB, .reserved = GIB, .launch = 4e-6, .host_memory = 488 * GIB, .host_bandwidth = 12e9,
                    .efficiency = GPU_EFFICIENCY},
         .n_levels = 2,
         .level = {{.name = "nvlink", .fanout = 8, .latency = NVLINK_LATENCY, .bandwidth = 150e9, .efficiency = 0.87, .ports = 1},
                   {.name = "ethernet", .latency = 30e-6, .bandwidth = 25 * Gbps, .efficiency = 0.85, .ports = 1}},
         .price = 24.48}}, /* us-east-1, Linux */
    /* "NVIDIA A100 Tensor Core GPU" data sheet: 312 TFLOP/s bf16 and f16, 19.5 f32, 19.5 f64 (tensor cores), 624 TOP/s int8; 40 GB HBM2 at 1,555 GB/s;
     * NVLink 3: 12 links of 25 GB/s a direction through NVSwitch. "DGX A100" data sheet: 8 GPUs, 8 ConnectX-6 of 200 Gb/s for computing, 1 TB host memory,
     * PCIe 4 x16, 15 TB NVMe at 25 GB/s. nccl-tests' all-reduce reaches 230 GB/s of 300 inside a node. The price is that of AWS p4d.24xlarge, the same node with
     * 4 x 100 Gb/s. */
    {8, {.name = "dgx-a100-40",
         .note = "pod of DGX A100 40GB: 8 x A100-40GB a node, NVSwitch, 8 x 200 Gb/s InfiniBand a node",
         .device = {.name = "A100-SXM4-40GB", .flops = {[HD_F64] = 19.5e12, [HD_F32] = 19.5e12, [HD_F16] = 312e12, [HD_BF16] = 312e12, [HD_I8] = 624e12},
                    .bandwidth = 1555e9, .memory = 40 * GIB, .reserved = GPU_RESERVED, .launch = GPU_LAUNCH, .host_memory = 1000 * GB, .host_bandwidth = 25e9,
                    .disk = 15000 * GB, .disk_bandwidth = 25e9, .efficiency = GPU_EFFICIENCY},
         .n_levels = 2,
         .level = {{.name = "nvlink", .fanout = 8, .latency = NVLINK_LATENCY, .bandwidth = 300e9, .efficiency = 0.77, .ports = 1},
                   {.name = "infiniband", .latency = IB_LATENCY, .bandwidth = 200 * Gbps, .efficiency = 0.8, .ports = 8}},
         .price = 32.77}},
    /* The same with 80 GB HBM2e at 2,039 GB/s, 2 TB host memory, 30 TB NVMe. The price is that of AWS p4de.24xlarge. */
    {8, {.name = "dgx-a100-80",
         .note = "pod of DGX A100 80GB (Selene): 8 x A100-80GB a node, NVSwitch, 8 x 200 Gb/s InfiniBand a node",
         .device = {.name = "A100-SXM4-80GB", .flops = {[HD_F64] = 19.5e12, [HD_F32] = 19.5e12, [HD_F16] = 312e12, [HD_BF16] = 312e12, [HD_I8] = 624e12},
                    .bandwidth = 2039e9, .memory = 80 * GIB, .reserved = GPU_RESERVED, .launch = GPU_LAUNCH, .host_memory = 2000 * GB, .host_bandwidth = 25e9,
                    .disk = 30000 * GB, .disk_bandwidth = 25e9, .efficiency = GPU_EFFICIENCY},
         .n_levels = 2,
         .level = {{.name = "nvlink", .fanout = 8, .latency = NVLINK_LATENCY, .bandwidth = 300e9, .efficiency = 0.77, .ports = 1},
                   {.name = "infiniband", .latency = IB_LATENCY, .bandwidth = 200 * Gbps, .efficiency = 0.8, .ports = 8}},
         .price = 40.97}},
    /* "NVIDIA H100 Tensor Core GPU" data sheet (SXM; dense rates, half of those with sparsity): 989.4 TFLOP/s bf16 and f16, 67 f32, 67 f64 (tensor cores), 1,979
     * TOP/s int8, 80 GB HBM3 at 3.35 TB/s; NVLink 4: 18 links of 25 GB/s a direction. "DGX H100" data sheet: 8 ConnectX-7 of 400 Gb/s, 2 TB host memory, PCIe 5
     * x16, 30 TB NVMe. The price is that of AWS p5.48xlarge as first listed. */
    {8, {.name = "dgx-h100",
         .note = "pod of DGX H100: 8 x H100-80GB a node, NVSwitch, 8 x 400 Gb/s InfiniBand a node",
         .device = {.name = "H100-SXM5-80GB", .flops = {[HD_F64] = 67e12, [HD_F32] = 67e12, [HD_F16] = 989.4e12, [HD_BF16] = 989.4e12, [HD_I8] = 1979e12},
                    .bandwidth = 3350e9, .memory = 80 * GIB, .reserved = GPU_RESERVED, .launch = GPU_LAUNCH, .host_memory = 2000 * GB, .host_bandwidth = 50e9,
                    .disk = 30000 * GB, .disk_bandwidth = 50e9, .efficiency = GPU_EFFICIENCY},
         .n_levels = 2,
         .level = {{.name = "nvlink", .fanout = 8, .latency = NVLINK_LATENCY, .bandwidth = 450e9, .efficiency = 0.8, .ports = 1},
                   {.name = "infiniband", .latency = IB_LATENCY, .bandwidth = 400 * Gbps, .efficiency = 0.8, .ports = 8}},
         .price = 98.32}},
    /* A virtual machine with two cores of AMD EPYC (Zen 4, 2.6 GHz, AVX-512) and 24 GB, as measured by `heddle bench bounds` (docs/benchmarks.md): 117 GFLOP/s f32 a
     * core, twice that in bf16, four times in int8; both cores read 60 GB/s at best. Two ranks of one core each, or one rank of two. Ranks copy through memory. */
    {2, {.name = "cpu",
         .note = "a node of two CPU cores with AVX-512 (Zen 4), 24 GB; `heddle calibrate` measures yours",
         .device = {.name = "2 cores of EPYC", .flops = {[HD_F64] = 117e9, [HD_F32] = 234e9, [HD_BF16] = 468e9, [HD_I8] = 936e9}, .bandwidth = 60e9,
                    .memory = 24 * GIB, .reserved = GIB / 2, .launch = 2e-6, .disk = 100 * GB, .disk_bandwidth = 1e9,
                    .efficiency = {.product = 0.9, .product_half = 1e6, .depth_half = 16, .memory = 0.8}, .cores = 2},
         .n_levels = 1, .level = {{.name = "memory", .latency = 2e-6, .bandwidth = 20e9, .efficiency = 0.8, .ports = 1}}}},
    /* Nodes of two AMD EPYC 9334 (data sheet: 32 cores Zen 4 at 2.7 GHz, 12 channels DDR5-4800 = 460.8 GB/s). A core does 32 f32 FLOPs a cycle (two 256-bit
     * multiply-adds), 64 bf16 (VDPBF16PS), 128 int8 (VPDPBUSD). One rank a socket; of a CPU the device's figures are the node's. Sockets: xGMI, three links of 16 lanes at 32 GT/s, of which copies reach a third. */
#define CPU_CLUSTER(speed, microseconds) \
    {16, {.name = "cpu-" #speed "g", \
          .note = "CPU cluster: nodes of two EPYC 9334 (32 cores each), one port of " #speed " Gb/s Ethernet a node", \
          .device = {.name = "2 x EPYC-9334", .flops = {[HD_F64] = 2.76e12, [HD_F32] = 5.53e12, [HD_BF16] = 11.1e12, [HD_I8] = 22.1e12}, .bandwidth = 921.6e9, \
                     .memory = 384 * GIB, .reserved = 4 * GIB, .launch = 5e-6, .disk = 2000 * GB, .disk_bandwidth = 3e9, \
                     .efficiency = {.product = 0.8, .product_half = 5e7, .depth_half = 32, .memory = 0.8}, .cores = 64}, \
          .n_levels = 2, \
          .level = {{.name = "xgmi", .fanout = 2, .latency = 3e-6, .bandwidth = 192e9, .efficiency = 0.33, .ports = 1}, \
                    {.name = "ethernet", .latency = microseconds * 1e-6, .bandwidth = speed * Gbps, .efficiency = 0.9, .ports = 1}}}}
    /* TCP over the kernel's stack: 30 us half a round trip at 10 Gb/s, less with faster cards; about 90 % of the wire's rate after headers. */
    CPU_CLUSTER(10, 30), CPU_CLUSTER(25, 20), CPU_CLUSTER(100, 15),
};
enum { N_TABLE = sizeof table / sizeof *table, MOST_DEVICES = 1 << 20 };

const char *hd_cluster_shipped_name(int i)
{
    return i >= 0 && i < N_TABLE ? table[i].cluster.name : NULL;
}

static const shipped *find(const char *name, size_t n)
{
    for (int i = 0; i < N_TABLE; i++)
        if (strlen(table[i].cluster.name) == n && !memcmp(table[i].cluster.name, name, n)) return &table[i];
    return NULL;
}

/* Fewer devices than a node's are a part of one. */
static int set_size(hd_cluster *c, int64_t devices, hd_error *err)
{
    int64_t node = c->n_levels > 1 ? c->level[0].fanout : devices;
    if (devices > node && devices % node)
        return hd_fail(err, HD_EINVAL, "--cluster %s:%" PRId64 ": a node has %" PRId64 " devices, so %" PRId64 " or %" PRId64 " would do", c->name, devices, node,
                       devices / node * node, (devices / node + 1) * node);
    c->level[0].fanout = (int)(devices < node ? devices : node);
    if (c->n_levels > 1) c->level[1].fanout = (int)((devices + node - 1) / node);
    return 0;
}

static int fail_unknown(const char *name, hd_error *err)
{
    char known[256] = "";
    for (int i = 0; i < N_TABLE; i++) snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "", table[i].cluster.name);
    return hd_fail(err, HD_EINVAL, "--cluster %.100s: neither a file nor the name of a known cluster (%s; NAME:DEVICES sets its size)", name, known);
}

int hd_cluster_find(const char *name, hd_cluster *out, hd_error *err)
{
    const char *colon = strchr(name, ':');
    const shipped *s = find(name, colon ? (size_t)(colon - name) : strlen(name));
    if (!s) {
        size_t n = strlen(name);
        bool path = strchr(name, '/') || (n > 5 && !strcmp(name + n - 5, ".json"));
        hd_error tried = {0};
        int rc = hd_cluster_load(name, out, &tried);
        if (!rc) return 0;
        return rc == HD_EIO && !path ? fail_unknown(name, err) : hd_fail(err, tried.code, "%s", tried.message);
    }
    char *end = NULL;
    long long devices = colon ? strtoll(colon + 1, &end, 10) : s->devices;
    if (colon && (!colon[1] || *end || devices < 1 || devices > MOST_DEVICES))
        return hd_fail(err, HD_EINVAL, "--cluster %.100s: the number of devices must be 1 to %d", name, MOST_DEVICES);
    hd_cluster c = s->cluster;
    int rc = set_size(&c, devices, err);
    if (!rc) *out = c;
    return rc;
}
