/* calibrate.c: heddle calibrate: measures this machine, or the MPI job that it is started in, into a cluster file. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "base/mem.h"
#include "cli/cli.h"
#include "cluster/calibrate.h"
#include "train/ranks.h"

#define SILENCE 60 /* seconds after which a rank of the job counts as lost */

typedef struct config {
    const char *out, *name, *disk;
    double seconds;
    int64_t cores, ranks;
    bool json, quiet;
} config;

#define AT(field) offsetof(config, field)
static const hd_setting settings[] = {
    {"out", HD_SET_STRING, AT(out), "cluster.json", 0, 0, "FILE", "the cluster file to write"},
    {"name", HD_SET_STRING, AT(name), "", 0, 0, "NAME", "what the cluster is called; empty: the machine's name"},
    {"seconds", HD_SET_NUMBER, AT(seconds), "90", 1, 3600, "X", "to measure for, about"},
    {"cores", HD_SET_INT, AT(cores), "0", 0, 4096, "N", "of each machine that jobs will use; 0: all"},
    {"ranks", HD_SET_INT, AT(ranks), "0", 0, 64, "N", "that the machine is to have room for; 0: one for each core. More than that share the cores"},
    {"disk", HD_SET_STRING, AT(disk), ".", 0, 0, "DIR", "where a file of 128 MiB is written and read; empty: disk is left out"},
    {"json", HD_SET_BOOL, AT(json), NULL, 0, 0, NULL, "print the cluster file on standard output too, instead of a summary"},
    {"quiet", HD_SET_BOOL, AT(quiet), NULL, 0, 0, NULL, "no progress bar"},
    {0},
};

static int join_job(hd_calibrate_options *o, hd_error *err)
{
    int rank, size;
    if (!hd_comm_mpi_launched(&rank, &size) || size < 2) return 0;
    int rc = hd_comm_mpi(SILENCE, &o->comm, err);
    o->on_host = hd_ranks_on_host(size);
    if (!rc && size % o->on_host)
        rc = hd_fail(err, HD_EINVAL, "%d ranks with %d on this machine: each machine must have as many", size, o->on_host);
    return rc;
}

/* Said before measuring for minutes. */
static int check_out(const char *path, hd_error *err)
{
    char trial[4096];
    snprintf(trial, sizeof trial, "%s.%d", path, (int)getpid());
    int fd = open(trial, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) return hd_fail_errno(err, "%s cannot be written", path);
    close(fd);
    unlink(trial);
    return 0;
}

static void name_cluster(const config *c, hd_cluster *k)
{
    if (*c->name) snprintf(k->name, sizeof k->name, "%s", c->name);
    else if (gethostname(k->name, sizeof k->name - 1) || !k->name[0]) snprintf(k->name, sizeof k->name, "this machine");
    snprintf(k->note, sizeof k->note, "measured by heddle %s, kernels for %s", HEDDLE_VERSION, hd_isa_name(hd_isa_detect()));
}

static void print_summary(const hd_cluster *k, const char *path)
{
    const hd_device *d = &k->device;
    char memory[24];
    printf("%s: %s, %d core%s, %s\n", k->name, d->name, d->cores, d->cores == 1 ? "" : "s", hd_format_bytes(memory, (double)d->memory));
    printf("  products      %8.1f GFLOP/s f32, %.1f bf16, %.1f GOP/s int8; large ones reach %.0f %%\n", 1e-9 * d->flops[HD_F32], 1e-9 * d->flops[HD_BF16],
           1e-9 * d->flops[HD_I8], 100 * d->efficiency.product);
    printf("  memory        %8.1f GB/s; streaming kernels reach %.0f %%\n", 1e-9 * d->bandwidth, 100 * d->efficiency.memory);
    for (int i = 0; i < k->n_levels; i++)
        printf("  %-12s  %8.1f GB/s, %.1f us, %d ranks\n", k->level[i].name, 1e-9 * k->level[i].bandwidth, 1e6 * k->level[i].latency, hd_cluster_group(k, i));
    if (d->disk_bandwidth > 0) printf("  disk          %8.2f GB/s, %s free\n", 1e-9 * d->disk_bandwidth, hd_format_bytes(memory, (double)d->disk));
    printf("%d measured times in %s\n", k->n_profile, path);
}

static int report(const config *c, hd_cluster *k, hd_error *err)
{
    name_cluster(c, k);
    int rc = hd_cluster_save(k, c->out, err);
    if (rc) return rc;
    if (!c->json) return print_summary(k, c->out), 0;
    hd_str text;
    hd_str_init(&text);
    rc = hd_cluster_print(k, &text) ? hd_fail_memory(err, text.len, "a cluster") : 0;
    if (!rc) fwrite(text.data, 1, text.len, stdout);
    hd_str_free(&text);
    return rc;
}

static int run(const void *config_, const char *const *words, int n_words, hd_error *err)
{
    const config *c = config_;
    hd_calibrate_options o = {.seconds = c->seconds, .cores = (int)c->cores, .ranks = (int)c->ranks, .disk = *c->disk ? c->disk : NULL, .on_host = 1};
    hd_cluster k = {0};
    hd_progress bar;
    (void)words, (void)n_words;
    int rc = join_job(&o, err);
    bool first = !o.comm || hd_comm_rank(o.comm) == 0;
    if (!rc && first) rc = check_out(c->out, err);
    if (!rc) {
        hd_progress_begin(&bar, "calibrate", hd_calibrate_work(&o), c->quiet || !first);
        o.progress = &bar;
        rc = hd_calibrate(&o, &k, err);
        hd_progress_end(&bar, NULL);
    }
    if (rc && o.comm) hd_comm_abort(o.comm, err->message);
    if (!rc && first) rc = report(c, &k, err);
    hd_cluster_free(&k);
    if (o.comm) hd_comm_free(o.comm);
    return rc;
}

const hd_command hd_cmd_calibrate = {
    .name = "calibrate",
    .usage = "[flags]",
    .summary = "measure this machine, or the MPI job it runs in, into a cluster file",
    .details = "Times single operations by shape and element type, memory, every collective by size and group, and the disk; never a model. heddle plan\n"
               "predicts from the file (docs/cluster-files.md) what a run will take. Started by mpirun it measures the job's links, with as many ranks on each\n"
               "machine as the job has. Measure while the machine does nothing else.",
    .settings = settings,
    .config_size = sizeof(config),
    .run = run,
};
