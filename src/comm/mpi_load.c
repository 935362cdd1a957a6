#include "comm/mpi_load.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "comm/comm.h"

#ifndef HD_COMM_LIBDIR_NAME
#define HD_COMM_LIBDIR_NAME "lib"
#endif
#ifndef HD_COMM_LIBDIR
#define HD_COMM_LIBDIR "/usr/local/lib"
#endif

/* What launchers leave in the environment of what they start. `needs` tells a step of Slurm from the batch script around it. The first that fits is
 * taken, and its plug-ins tried in order. */
typedef struct launcher { const char *rank, *size, *needs, *plugin[2]; } launcher;

static const launcher launchers[] = {
    {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", NULL, {"openmpi"}},                 /* Open MPI's mpirun */
    {"PMI_RANK", "PMI_SIZE", NULL, {"mpich", "openmpi"}},                                /* MPICH's mpirun, srun --mpi=pmi2 */
    {"PMIX_RANK", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID", {"openmpi", "mpich"}},        /* srun --mpi=pmix */
    {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID", {"mpich", "openmpi"}},     /* srun with another default */
};

static bool read_number(const char *name, int *out)
{
    const char *text = getenv(name);
    char *end;
    if (!text || !*text) return false;
    long v = strtol(text, &end, 10);
    if (*end || v < 0 || v > INT_MAX) return false;
    *out = (int)v;
    return true;
}

static const launcher *find_launcher(int *rank, int *size)
{
    for (size_t i = 0; i < sizeof launchers / sizeof *launchers; i++) {
        const launcher *l = &launchers[i];
        if (l->needs && !getenv(l->needs)) continue;
        if (read_number(l->rank, rank) && read_number(l->size, size) && *rank < *size) return l;
    }
    return NULL;
}

bool hd_comm_mpi_launched(int *rank, int *size)
{
    int r = 0, n = 1;
    bool found = find_launcher(&r, &n) != NULL;
    if (rank) *rank = r;
    if (size) *size = n;
    return found;
}

/* The folder of the running program; "" when it can't be told. */
static void program_dir(char *out, size_t size)
{
    ssize_t n = readlink("/proc/self/exe", out, size - 1);
    out[n > 0 ? n : 0] = 0;
    char *slash = strrchr(out, '/');
    *(slash ? slash : out) = 0;
}

static int list_dirs(char dirs[][PATH_MAX])
{
    char here[PATH_MAX / 2];
    const char *given = getenv("HEDDLE_PLUGIN_DIR");
    int n = 0;
    program_dir(here, sizeof here);
    if (given && *given) snprintf(dirs[n++], PATH_MAX, "%s", given);
    if (*here) {
        snprintf(dirs[n++], PATH_MAX, "%s/../lib/heddle", here);
        snprintf(dirs[n++], PATH_MAX, "%s/../" HD_COMM_LIBDIR_NAME "/heddle", here);
        snprintf(dirs[n++], PATH_MAX, "%s/lib/heddle", here);
    }
    snprintf(dirs[n++], PATH_MAX, HD_COMM_LIBDIR "/heddle");
    return n;
}

/* 1 when it was loaded, 0 when there is no such file. */
static int load_from(const char *dir, const char *name, const hd_mpi_plugin **out, hd_error *err)
{
    char path[PATH_MAX + 64];
    snprintf(path, sizeof path, "%s/mpi_%s.so", dir, name);
    if (!hd_file_exists(path)) return 0;
    /* Global: an MPI's own components look for its symbols. */
    void *library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    if (!library) return hd_fail(err, HD_EUNSUPPORTED, "cannot load the MPI plug-in: %s", dlerror());
    const hd_mpi_plugin *p = dlsym(library, HD_MPI_PLUGIN_SYMBOL);
    if (!p || p->version != HD_MPI_PLUGIN_VERSION) return hd_fail(err, HD_EUNSUPPORTED, "%s is not a plug-in of this version", path);
    *out = p;
    return 1;
}

int hd_mpi_load(const hd_mpi_plugin **out, hd_error *err)
{
    enum { MAX_DIRS = 8 };
    int rank, size;
    const launcher *l = find_launcher(&rank, &size);
    if (!l) return hd_fail(err, HD_EINVAL, "MPI asked for, but this process was not started by mpirun or srun");
    char(*dirs)[PATH_MAX] = hd_malloc(MAX_DIRS * sizeof *dirs);
    if (!dirs) return hd_fail_memory(err, MAX_DIRS * sizeof *dirs, "paths");
    int n = list_dirs(dirs), found = 0;
    for (int k = 0; k < 2 && l->plugin[k] && !found; k++)
        for (int i = 0; i < n && !found; i++) found = load_from(dirs[i], l->plugin[k], out, err);
    hd_free(dirs);
    if (found < 0) return found;
    return found ? 0 : hd_fail(err, HD_EUNSUPPORTED, "no plug-in mpi_%s.so: this heddle was built without that MPI; HEDDLE_PLUGIN_DIR may say where it is", l->plugin[0]);
}
