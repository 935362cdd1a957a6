/* machine.c: keeping what was calibrated. */
#include "cluster/machine.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/file.h"
#include "cluster/calibrate.h"
#include "cluster/measure.h"

enum {
    MANY_CORES = 16, /* more of them don't read faster, as a guess */
    ROUNDS = 8       /* of some 5 ms */
};
#define SAME_MEMORY 0.02 /* a kernel keeps a little more or less for itself */

int hd_machine_path(char *out, size_t size, hd_error *err)
{
    char host[128] = "";
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    bool cached = cache && *cache == '/'; /* the XDG base directory specification: a relative path is no path */
    if (gethostname(host, sizeof host - 1) || !*host || strchr(host, '/')) snprintf(host, sizeof host, "this-machine");
    if (!cached && (!home || !*home)) return hd_fail(err, HD_EINVAL, "neither XDG_CACHE_HOME nor HOME is set");
    int n = snprintf(out, size, "%s%s/heddle/cluster-%s.json", cached ? cache : home, cached ? "" : "/.cache", host);
    return n < (int)size ? 0 : hd_fail(err, HD_EINVAL, "the path of the cache is too long");
}

static bool is_this_machine(const hd_device *d)
{
    hd_device here = {0};
    hd_calibrate_device(&here);
    return d->cores == here.cores && !strcmp(d->name, here.name) && fabs((double)d->memory - (double)here.memory) <= SAME_MEMORY * (double)here.memory;
}

bool hd_machine_load(const char *path, hd_cluster *out)
{
    hd_error ignored = {0};
    if (!hd_file_exists(path) || hd_cluster_load(path, out, &ignored)) return false;
    if (hd_cluster_nodes(out) == 1 && is_this_machine(&out->device)) return true;
    hd_cluster_free(out);
    return false;
}

static int make_folder(const char *path, hd_error *err)
{
    char folder[4096];
    int n = snprintf(folder, sizeof folder, "%.*s", (int)(strrchr(path, '/') - path), path);
    return n < (int)sizeof folder ? hd_make_dirs(folder, err) : hd_fail(err, HD_EINVAL, "the path of the cache is too long");
}

/* A file beside it, which the kernel unlocks when its holder ends. */
static int take_lock(const char *path, hd_error *err)
{
    char lock[4096 + 8];
    snprintf(lock, sizeof lock, "%s.lock", path);
    int fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0 || flock(fd, LOCK_EX)) hd_fail_errno(err, "%s", lock);
    else return fd;
    if (fd >= 0) close(fd);
    return -1;
}

static int measure(const char *path, double seconds, bool quiet, hd_cluster *out, hd_error *err)
{
    hd_calibrate_options o = {.seconds = seconds, .on_host = 1};
    hd_progress bar;
    hd_progress_begin(&bar, "calibrate", hd_calibrate_work(&o), quiet);
    o.progress = &bar;
    int rc = hd_calibrate(&o, out, err);
    hd_progress_end(&bar, NULL);
    if (rc) return rc;
    snprintf(out->name, sizeof out->name, "this machine");
    snprintf(out->note, sizeof out->note, "measured for %.0f s before training", seconds);
    rc = hd_cluster_save(out, path, err);
    if (rc) hd_cluster_free(out);
    return rc;
}

int hd_machine_calibrate(const char *path, double seconds, bool quiet, hd_cluster *out, hd_error *err)
{
    int rc = make_folder(path, err), lock = rc ? -1 : take_lock(path, err);
    if (lock < 0) return err->code;
    rc = hd_machine_load(path, out) ? 0 : measure(path, seconds, quiet, out, err);
    close(lock);
    return rc;
}

/* ---- a guess ---- */

/* On a machine that is busy with something else a moment says little: not less than a fifth of the like machine's. */
static double measure_peak(hd_bound b, hd_team *team, double like)
{
    double peak = hd_measure(b, team, hd_isa_detect(), ROUNDS, NULL);
    return peak > like / 5 ? peak : like / 5;
}

int hd_machine_guess(hd_cluster *out, hd_error *err)
{
    static const hd_dtype dtypes[] = {[HD_BOUND_F32] = HD_F32, [HD_BOUND_BF16] = HD_BF16, [HD_BOUND_I8] = HD_I8};
    char name[32];
    hd_device here = {0};
    hd_calibrate_device(&here);
    snprintf(name, sizeof name, "cpu:%d", here.cores);
    int rc = hd_cluster_find(name, out, err);
    hd_team *team = rc ? NULL : hd_team_new(here.cores, true, err);
    if (!rc && !team) hd_cluster_free(out);
    if (!team) return err->code;
    hd_device *d = &out->device;
    for (hd_bound b = HD_BOUND_F32; b <= HD_BOUND_I8; b++) d->flops[dtypes[b]] = measure_peak(b, team, d->flops[dtypes[b]] * here.cores / d->cores);
    d->flops[HD_F64] = d->flops[HD_F32] / 2;
    d->bandwidth *= (double)(here.cores < MANY_CORES ? here.cores : MANY_CORES) / d->cores;
    hd_team_free(team);
    snprintf(out->name, sizeof out->name, "this machine, not calibrated");
    snprintf(d->name, sizeof d->name, "%s", here.name);
    d->cores = here.cores, d->memory = here.memory, d->reserved = here.reserved;
    out->level[0].fanout = here.cores;
    return 0;
}
