/* calibrate.c: what is measured, in which order and for how long, and the cluster that comes of it. */
#include "cluster/calibrate_int.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "cluster/measure.h"
#include "kernels/kernel.h"

/* Shares of the time. */
#define FOR_BOUNDS 0.04
#define FOR_OPS 0.8
#define FOR_LINKS 0.12
#define FOR_DISK 0.04

double hd_calibrate_work(const hd_calibrate_options *o) { return o->seconds; }

int hd_calibration_add(hd_calibration *c, const hd_profile_entry *e)
{
    if (hd_grow(&c->out->profile, &c->room, (size_t)c->out->n_profile + 1, sizeof *e)) return hd_fail_memory(&c->err, sizeof *e, "a profile");
    c->out->profile[c->out->n_profile++] = *e;
    return 0;
}

void hd_calibration_step(hd_calibration *c, double seconds, const char *what)
{
    c->done += seconds;
    if (c->options->progress) hd_progress_update(c->options->progress, fmin(c->done, c->options->seconds), what);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double hd_calibration_median(double *x, int n)
{
    qsort(x, (size_t)n, sizeof *x, by_value);
    return n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

/* ---- the device ---- */

/* "AMD EPYC 9R14", as the kernel names it. */
static void name_processor(char *out, size_t size)
{
    char line[256];
    FILE *f = fopen("/proc/cpuinfo", "r");
    snprintf(out, size, "processor");
    while (f && fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) || !colon) continue;
        colon[strcspn(colon, "\n")] = 0;
        snprintf(out, size, "%s", colon + 2);
        break;
    }
    if (f) fclose(f);
}

int hd_calibration_cores(const hd_calibration *c)
{
    int cores = c->out->device.cores, ranks = c->all ? c->options->on_host : 1;
    return cores / ranks > 1 ? cores / ranks : 1;
}

/* All ranks of a job at once: each is one of on_host equal shares of its machine. */
static double measure_bound(const hd_calibration *c, hd_bound bound, hd_team *team, int rounds)
{
    hd_isa isa = hd_isa_detect();
    if (c->all) hd_comm_barrier(c->options->comm, c->all, &(hd_error){0});
    double own = bound == HD_BOUND_READ ? hd_measure_median(bound, team, isa, rounds, NULL) : hd_measure(bound, team, isa, rounds, NULL);
    return c->all ? own * c->options->on_host : own;
}

static int measure_bounds(hd_calibration *c, double seconds)
{
    static const hd_dtype dtypes[] = {[HD_BOUND_F32] = HD_F32, [HD_BOUND_BF16] = HD_BF16, [HD_BOUND_I8] = HD_I8};
    hd_device *d = &c->out->device;
    hd_team *team = hd_team_new(hd_calibration_cores(c), true, &c->err);
    if (!team) return c->err.code;
    int rounds = 1 + (int)(seconds / 0.15);
    for (hd_bound b = HD_BOUND_F32; b <= HD_BOUND_I8; b++) d->flops[dtypes[b]] = measure_bound(c, b, team, rounds);
    d->bandwidth = measure_bound(c, HD_BOUND_READ, team, rounds);
    hd_team_free(team);
    hd_calibration_step(c, seconds, "bounds");
    return d->flops[HD_F32] > 0 && d->bandwidth > 0 ? 0 : hd_fail(&c->err, HD_ENOMEM, "memory for measuring bandwidth");
}

void hd_calibrate_device(hd_device *d)
{
    name_processor(d->name, sizeof d->name);
    d->cores = hd_core_count();
    d->memory = (int64_t)sysconf(_SC_PHYS_PAGES) * (int64_t)sysconf(_SC_PAGESIZE);
    d->reserved = (int64_t)hd_memory_resident();
}

static void describe_device(hd_calibration *c)
{
    hd_device *d = &c->out->device;
    int wanted = c->options->cores;
    hd_calibrate_device(d);
    if (c->all) { /* mpirun may have bound each rank to its share of the cores, or none to any */
        int online = (int)sysconf(_SC_NPROCESSORS_ONLN), most = d->cores * c->options->on_host;
        d->cores = most < online ? most : online;
    }
    if (wanted > 0 && wanted < d->cores) d->cores = wanted;
}

/* ---- what follows from the entries ---- */

/* The median share of the bounds that measured kernels reach, and what the smallest ones take: for ops that were not measured. */
static void derive_efficiency(hd_calibration *c)
{
    hd_device *d = &c->out->device;
    double product[512], memory[512], launch[512];
    int n[3] = {0};
    for (int i = 0; i < c->out->n_profile; i++) {
        const hd_profile_entry *e = &c->out->profile[i];
        bool all = e->threads * e->teams >= d->cores && (e->teams == 1 || c->all);
        double flops = 2 * e->x[0] * e->x[1] * e->x[2] * e->x[3], rate = d->flops[e->dtype] > 0 ? d->flops[e->dtype] : d->flops[HD_F32];
        if (!all) continue;
        bool product_of_floats = !strncmp(e->op, "contract.", 9) && strlen(e->op) == strlen("contract.nt"); /* those in blocks are of integers */
        if (product_of_floats && flops > 1e9 && n[0] < 512) product[n[0]++] = flops / rate * e->teams / e->seconds;
        if (!strcmp(e->op, "mul") && e->x[0] > 2.5e7 && n[1] < 512) memory[n[1]++] = e->x[0] / d->bandwidth * e->teams / e->seconds;
        if (!strcmp(e->op, "mul") && e->x[0] < 3e4 && n[2] < 512) launch[n[2]++] = e->seconds;
    }
    d->efficiency = (hd_efficiency){.product = 0.8, .product_half = 2e6, .depth_half = 16, .memory = 0.8};
    if (n[0]) d->efficiency.product = fmin(hd_calibration_median(product, n[0]), 1);
    if (n[1]) d->efficiency.memory = fmin(hd_calibration_median(memory, n[1]), 1);
    d->launch = n[2] ? hd_calibration_median(launch, n[2]) : 2e-6;
}

/* Ranks on one machine meet in its memory. */
static void describe_levels(hd_calibration *c, int ranks)
{
    hd_cluster *k = c->out;
    int world = c->all ? hd_comm_size(c->options->comm) : ranks, on_host = c->all ? c->options->on_host : ranks;
    k->n_levels = 0;
    k->level[k->n_levels++] =
        (hd_level){.name = "memory", .fanout = on_host, .latency = 2e-6, .bandwidth = k->device.bandwidth / 2, .efficiency = 1, .ports = 1};
    if (world > on_host)
        k->level[k->n_levels++] = (hd_level){.name = "network", .fanout = world / on_host, .latency = 2e-5, .bandwidth = 1e9, .efficiency = 1, .ports = 1};
    k->node_level = 0;
}

/* Latency and bandwidth of messages between threads. */
static void derive_memory_level(hd_calibration *c)
{
    double small = INFINITY, large = 0, bytes = 0;
    for (int i = 0; i < c->out->n_profile; i++) {
        const hd_profile_entry *e = &c->out->profile[i];
        if (strcmp(e->op, "send") || e->threads != 2) continue;
        small = fmin(small, e->seconds);
        if (e->x[0] > bytes) bytes = e->x[0], large = e->seconds;
    }
    if (!(bytes > 0)) return;
    c->out->level[0].latency = small;
    c->out->level[0].bandwidth = bytes / fmax(large - small, 1e-9);
}

/* ---- the whole ---- */

/* A rank with all cores; one with a core to itself; as many ranks as there are cores, or as the job has on this machine. */
static int measure_ops(hd_calibration *c, double seconds)
{
    int cores = c->out->device.cores, n = 0;
    struct { int threads, teams; } list[3];
    if (c->all) {
        list[n].threads = hd_calibration_cores(c), list[n++].teams = c->options->on_host;
    } else {
        list[n].threads = 1, list[n++].teams = 1;
        if (cores > 1) list[n].threads = cores, list[n++].teams = 1;
        if (cores > 1) list[n].threads = 1, list[n++].teams = cores;
    }
    int rc = 0;
    for (int i = 0; i < n && !rc; i++) rc = hd_calibrate_ops(c, list[i].threads, list[i].teams, seconds / n);
    return rc;
}

static int measure_links(hd_calibration *c, int ranks, double seconds)
{
    if (c->all) return hd_calibrate_job(c, seconds);
    int rc = 0, groups = 0;
    for (int n = 2; n <= ranks; n *= 2) groups++;
    for (int n = 2; n <= ranks && !rc; n *= 2) rc = hd_calibrate_collectives(c, n, seconds / groups);
    if (!rc) derive_memory_level(c);
    return rc;
}

static int join_job(hd_calibration *c)
{
    hd_comm *comm = c->options->comm;
    if (!comm) return 0;
    int n = hd_comm_size(comm), *ranks = hd_malloc((size_t)n * sizeof *ranks);
    for (int i = 0; i < n && ranks; i++) ranks[i] = i;
    c->all = ranks ? hd_comm_group_get(comm, ranks, n, &c->err) : NULL;
    hd_free(ranks);
    if (c->all) return 0;
    return c->err.code ? c->err.code : hd_fail_memory(&c->err, (size_t)n * sizeof *ranks, "the job's ranks");
}

static int measure_all(hd_calibration *c)
{
    const hd_calibrate_options *o = c->options;
    int rc = join_job(c);
    if (rc) return rc;
    describe_device(c);
    int ranks = o->ranks > 0 ? o->ranks : c->out->device.cores;
    rc = measure_bounds(c, FOR_BOUNDS * o->seconds);
    if (rc) return rc;
    describe_levels(c, ranks);
    rc = measure_ops(c, FOR_OPS * o->seconds);
    if (!rc) rc = measure_links(c, ranks, FOR_LINKS * o->seconds);
    if (!rc && o->disk) rc = hd_calibrate_disk(c, o->disk, FOR_DISK * o->seconds);
    if (!rc) derive_efficiency(c);
    return rc;
}

int hd_calibrate(const hd_calibrate_options *o, hd_cluster *out, hd_error *err)
{
    hd_cluster cluster = {0};
    hd_calibration c = {.options = o, .out = &cluster};
    int rc = measure_all(&c);
    if (rc) {
        hd_cluster_free(&cluster);
        return hd_fail(err, rc, "%s", c.err.message);
    }
    *out = cluster;
    return 0;
}
