/* launch.c: starting MPI processes by Open MPI's or MPICH's mpirun, or by Slurm's srun. */
#include "train/job.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>
#include "base/file.h"
#include "base/mem.h"

#define SUPERVISED "HEDDLE_SUPERVISED"

enum { MAX_ARGS = 1024 };

typedef struct command {
    hd_arena memory;
    char *argv[MAX_ARGS + 1];
    int n;
    bool full;
} command;

bool hd_job_is_supervised(void)
{
    return getenv(SUPERVISED) != NULL;
}

static void add(command *c, const char *word)
{
    char *copy = c->n < MAX_ARGS ? hd_arena_strdup(&c->memory, word) : NULL;
    if (copy) c->argv[c->n++] = copy;
    else c->full = true;
}

static void add_words(command *c, const char *text)
{
    char *words = hd_arena_strdup(&c->memory, text), *rest = NULL;
    if (!words) c->full = true;
    for (char *w = words ? strtok_r(words, " ", &rest) : NULL; w; w = strtok_r(NULL, " ", &rest)) add(c, w);
}

static bool is_in_path(const char *name)
{
    char line[64];
    snprintf(line, sizeof line, "command -v %s > /dev/null 2>&1", name);
    return system(line) == 0;
}

/* HEDDLE_MPIRUN may hold arguments too: "mpirun.mpich -hosts a,b", "srun --mpi=pmix". */
static const char *launcher(void)
{
    const char *named = getenv("HEDDLE_MPIRUN");
    if (named && *named) return named;
    return getenv("SLURM_JOB_ID") && !is_in_path("mpirun") && is_in_path("srun") ? "srun" : "mpirun";
}

/* What tells a launcher in what its --version prints, and its arguments: more processes than cores, unbound, the environment passed on, and none ended because
 * another has: the supervisor sees to that. */
typedef struct launcher_kind { const char *version[3], *arguments; } launcher_kind;

static const launcher_kind kinds[] = {
    {{"Open MPI", "OpenRTE", "open-mpi"}, "--oversubscribe --allow-run-as-root --bind-to none -x " SUPERVISED "=1"},
    {{"HYDRA", "MPICH"}, "-disable-auto-cleanup -genv " SUPERVISED " 1"}, /* which names slurm, too, among those that it can start by */
    {{"slurm"}, "--overcommit --cpu-bind=none --kill-on-bad-exit=0 --unbuffered --export=ALL," SUPERVISED "=1"},
};

static int find_kind(const launcher_kind **kind, hd_error *err)
{
    char line[4096], first[256];
    snprintf(first, sizeof first, "%.*s", (int)strcspn(launcher(), " "), launcher());
    snprintf(line, sizeof line, "'%s' --version 2>/dev/null", first);
    FILE *f = popen(line, "re");
    size_t n = f ? fread(line, 1, sizeof line - 1, f) : 0;
    line[n] = 0;
    if (!f || pclose(f) || !n)
        return hd_fail(err, HD_EUNSUPPORTED, "there is no working %s: install Open MPI or MPICH, name its mpirun in HEDDLE_MPIRUN, or use --transport local", first);
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        for (int i = 0; i < 3 && kinds[k].version[i]; i++)
            if (strstr(line, kinds[k].version[i])) return *kind = &kinds[k], 0;
    return hd_fail(err, HD_EUNSUPPORTED, "%s is no launcher that is known", first);
}

/* This program's own arguments, as the system knows them. */
static int add_own_arguments(command *c, hd_error *err)
{
    char path[4096];
    hd_str text;
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    if (n < 0) return hd_fail_errno(err, "/proc/self/exe");
    path[n] = 0;
    hd_str_init(&text);
    int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    char block[4096];
    while (fd >= 0 && (n = read(fd, block, sizeof block)) > 0) hd_str_add(&text, block, (size_t)n);
    if (fd >= 0) close(fd);
    add(c, path);
    for (size_t at = strlen(text.data) + 1; at < text.len; at += strlen(text.data + at) + 1) add(c, text.data + at);
    bool bad = fd < 0 || text.failed;
    hd_str_free(&text);
    return bad ? hd_fail(err, HD_EIO, "/proc/self/cmdline cannot be read") : 0;
}

static void add_number(command *c, const char *flag, int64_t n)
{
    char text[24];
    snprintf(text, sizeof text, "%lld", (long long)n);
    add(c, flag);
    add(c, text);
}

static void add_text(command *c, const char *flag, const char *text)
{
    add(c, flag);
    add(c, text);
}

/* How the work is split, where that isn't what the arguments say. */
static void add_plan(const hd_job *job, command *c)
{
    const hd_train_config *k = job->config;
    const char *parallel = job->parallel[0] ? job->parallel : k->parallel;
    add_text(c, "--parallel", parallel ? parallel : "");
    if (k->plan) add_text(c, "--plan", k->plan);
    add_number(c, "--ranks", job->ranks);
    add_text(c, "--planner", "given");
    if (!job->planned) return;
    add_number(c, "--batch", k->batch);
    add_number(c, "--micro-batches", k->micro_batches);
    add_text(c, "--eval-every", k->eval_every);
}

static int make_command(const hd_job *job, command *c, hd_error *err)
{
    char ranks[16];
    const launcher_kind *kind = NULL;
    int rc = find_kind(&kind, err);
    if (rc) return rc;
    snprintf(ranks, sizeof ranks, "%d", job->ranks);
    add_words(c, launcher());
    add(c, "-n");
    add(c, ranks);
    add_words(c, kind->arguments);
    rc = add_own_arguments(c, err);
    if (job->again) add(c, "--resume");
    if (job->planned || job->parallel[0]) add_plan(job, c); /* the last of several is taken */
    c->argv[c->n] = NULL;
    return !rc && c->full ? hd_fail(err, HD_ENOMEM, "too many arguments for %s", launcher()) : rc;
}

/* In a group of its own: an interrupt from the terminal is the supervisor's to pass on. */
static void become(command *c, int in, int out, int fd)
{
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    dup2(in, STDIN_FILENO);
    dup2(out, STDOUT_FILENO);
    dup2(fd, STDERR_FILENO);
    setenv(SUPERVISED, "1", 1);
    execvp(c->argv[0], c->argv);
    dprintf(STDERR_FILENO, HD_JOB_MARK "failed 0 %d %s cannot be started: %s\n", HD_EIO, c->argv[0], strerror(errno));
    _exit(127);
}

enum { IN, OUT, ERR, STREAMS }; /* of the launcher */

static void close_ends(int end[STREAMS][2], int which)
{
    for (int i = 0; i < STREAMS; i++)
        if (end[i][which] >= 0) close(end[i][which]);
}

/* [0] is the supervisor's. A socket for what it says: writing to one that nobody reads any more is no signal. */
static int open_streams(int end[STREAMS][2], hd_error *err)
{
    int rc = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, end[IN]);
    for (int i = OUT; i < STREAMS && !rc; i++) rc = pipe2(end[i], O_CLOEXEC);
    if (!rc) return 0;
    rc = hd_fail_errno(err, "a pipe");
    for (int k = 0; k < 2; k++) close_ends(end, k);
    return rc;
}

int hd_job_launch(const hd_job *job, pid_t *pid, int fd[2], int *input, hd_error *err)
{
    command c = {.n = 0};
    int end[STREAMS][2] = {{-1, -1}, {-1, -1}, {-1, -1}};
    int rc = make_command(job, &c, err);
    if (!rc) rc = open_streams(end, err);
    if (!rc) {
        fflush(stdout);
        *pid = fork();
        if (*pid == 0) become(&c, end[IN][1], end[OUT][1], end[ERR][1]);
        if (*pid < 0) rc = hd_fail_errno(err, "starting %s", launcher()), close_ends(end, 0);
        else *input = end[IN][0], fd[0] = end[ERR][0], fd[1] = end[OUT][0];
        close_ends(end, 1);
    }
    hd_arena_free(&c.memory);
    return rc;
}
