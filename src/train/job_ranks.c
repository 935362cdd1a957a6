/* job_ranks.c: the ranks of a job: threads of this process, or this process itself. */
#include "train/job.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>
#include "base/mem.h"
#include "base/term.h"
#include "base/thread.h"
#include "train/pulse.h"
#include "train/stop.h"

#define LAST_WORDS 4.0 /* seconds that the other ranks have for ending once one has failed */
#define HANG_WORDS 1.0 /* the same once one hangs, which cannot end */

double hd_job_deadline(void)
{
    const char *text = getenv("HEDDLE_COMM_DEADLINE");
    double seconds = text ? atof(text) : 0;
    return seconds > 0 ? seconds : 300;
}

/* ---- telling the supervisor ---- */

static void tell(int fd, const char *what, int rank, long long number, const char *message)
{
    char line[HD_JOB_LINE];
    int n = snprintf(line, sizeof line - 1, HD_JOB_MARK "%s %d %lld %s", what, rank, number, message);
    if (n > (int)sizeof line - 2) n = sizeof line - 2;
    for (int i = 1; i < n; i++)
        if (line[i] == '\n') line[i] = ' ';
    line[n++] = '\n';
    if (write(fd, line, (size_t)n) < 0) return; /* nobody listens any more */
}

static volatile sig_atomic_t crash_fd; /* a signal handler cannot be told otherwise */

static char *put_number(char *out, int v)
{
    char digits[12];
    int n = 0;
    do digits[n++] = (char)('0' + v % 10);
    while (v /= 10);
    while (n) *out++ = digits[--n];
    return out;
}

/* Threads are named after their rank, and a rank's team takes over the name of the thread that starts it. */
static void on_crash(int sig)
{
    char name[16] = "", line[80], *at = line;
    prctl(PR_GET_NAME, name);
    int rank = strncmp(name, "rank ", 5) ? 0 : atoi(name + 5);
    const char start[] = HD_JOB_MARK "crashed ";
    memcpy(at, start, sizeof start - 1);
    at = put_number(at + sizeof start - 1, rank);
    *at++ = ' ';
    at = put_number(at, sig);
    *at++ = '\n';
    if (write(crash_fd, line, (size_t)(at - line)) < 0) _exit(1);
    signal(sig, SIG_DFL);
    raise(sig);
}

static void catch_crashes(int fd)
{
    static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
    struct sigaction a = {.sa_handler = on_crash};
    sigemptyset(&a.sa_mask);
    crash_fd = fd;
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) sigaction(signals[i], &a, NULL);
}

static void name_thread(int rank)
{
    char name[16];
    snprintf(name, sizeof name, "rank %d", rank);
    prctl(PR_SET_NAME, name);
}

/* ---- threads ---- */

typedef struct crew {
    const hd_job *job;
    int fd;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int running; /* ranks that have not ended; lock */
    int failed;  /* lock */
} crew;

typedef struct member {
    crew *crew;
    hd_rank rank;
    hd_pulse *pulse; /* [rank] of the job's */
    pthread_t thread;
} member;

/* Ranks that have cores enough keep to their own: a kernel may leave two threads that wait for each other on one core. A quota below the cores (of a
 * container) is left to the kernel. */
static void pin_member(const member *m)
{
    int ranks = m->crew->job->ranks, threads = (int)m->crew->job->config->threads, cores = hd_core_count();
    if (!threads) threads = cores / ranks;
    if (m->crew->job->meshed && threads * ranks <= cores) hd_thread_pin(m->rank.rank * threads, threads);
}

static void *run_member(void *arg)
{
    member *m = arg;
    crew *c = m->crew;
    hd_error err = {0};
    name_thread(m->rank.rank);
    pin_member(m);
    int rc = hd_train_rank(c->job->config, c->job->meshed ? &m->rank : NULL, &err);
    if (rc) {
        tell(c->fd, "failed", m->rank.rank, rc, err.message);
        if (m->rank.comm) hd_comm_abort(m->rank.comm, err.message);
    }
    atomic_store(&m->pulse->comm, NULL);
    pthread_mutex_lock(&c->lock);
    c->running--;
    c->failed += rc != 0;
    pthread_cond_signal(&c->changed);
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

/* Once a second: ends what a hanging rank keeps others from. Whether one hangs. */
static bool look_for_hangs(int fd, hd_pulse *pulse, int n)
{
    int at = hd_pulse_look(pulse, n);
    if (at < 0) return false;
    if (fd >= 0) tell(fd, "hangs", pulse[at].rank, HD_PULSE_LOOKS, "");
    else hd_log("rank %d: hangs: for %d s it has neither computed nor waited for another rank", pulse[at].rank, HD_PULSE_LOOKS);
    hd_comm_abort(atomic_load(&pulse[at].comm), "hangs");
    return true;
}

/* Until all have ended; false when those that live on after a failure took too long. */
static bool wait_for_members(crew *c, hd_pulse *pulse)
{
    double failed_at = 0, patience = LAST_WORDS;
    bool late = false;
    pthread_mutex_lock(&c->lock);
    while (c->running && !late) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        t.tv_sec++;
        if (pthread_cond_timedwait(&c->changed, &c->lock, &t) == ETIMEDOUT) {
            pthread_mutex_unlock(&c->lock);
            tell(c->fd, "alive", 0, 0, "");
            bool hangs = failed_at == 0 && look_for_hangs(c->fd, pulse, c->job->ranks);
            pthread_mutex_lock(&c->lock);
            if (hangs) c->failed++, patience = HANG_WORDS;
        }
        if (c->failed && failed_at == 0) failed_at = hd_time();
        late = failed_at > 0 && hd_time() > failed_at + patience;
    }
    pthread_mutex_unlock(&c->lock);
    return !late;
}

static int start_members(crew *c, member *m, hd_comm **comm, hd_pulse *pulse, hd_error *err)
{
    int n = c->job->ranks;
    int rc = c->job->meshed ? hd_comm_local(n, hd_job_deadline(), comm, err) : 0;
    for (int r = 0; r < n && !rc; r++) {
        m[r] = (member){.crew = c, .rank = {.rank = r, .comm = comm[r]}, .pulse = &pulse[r]};
        pulse[r].rank = r;
        atomic_store(&pulse[r].comm, comm[r]);
        pthread_mutex_lock(&c->lock);
        c->running++;
        pthread_mutex_unlock(&c->lock);
        if (pthread_create(&m[r].thread, NULL, run_member, &m[r])) rc = hd_fail(err, HD_ENOMEM, "no thread for rank %d of %d", r, n);
    }
    return rc;
}

void hd_job_run_threads(const hd_job *job, int fd)
{
    hd_train_config config = *job->config;
    hd_job mine = *job;
    crew c = {.job = &mine, .fd = fd, .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    member *m = hd_calloc((size_t)job->ranks, sizeof *m);
    hd_comm **comm = hd_calloc((size_t)job->ranks, sizeof *comm);
    hd_pulse *pulse = hd_calloc((size_t)job->ranks, sizeof *pulse);
    hd_error err = {0};
    config.resume |= job->again;
    mine.config = &config;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    catch_crashes(fd);
    hd_stop_catch(HD_STOP_PARENT);
    tell(fd, "process", 0, getpid(), "");
    int rc = m && comm && pulse ? start_members(&c, m, comm, pulse, &err) : hd_fail_memory(&err, sizeof *m, "ranks");
    if (rc) tell(fd, "failed", 0, rc, err.message);
    bool whole = !rc && wait_for_members(&c, pulse);
    for (int r = 0; r < job->ranks && whole; r++) pthread_join(m[r].thread, NULL);
    for (int r = 0; r < job->ranks && whole; r++) hd_comm_free(comm[r]);
    fflush(stdout);
    _exit(!whole || c.failed ? 1 : 0);
}

/* ---- an MPI process ---- */

typedef struct process {
    hd_rank rank;
    hd_pulse pulse;
    pthread_mutex_t judging; /* what pulse.comm points to stays as long as this is held */
    bool supervised;
} process;

static void judge(process *p, hd_comm *comm)
{
    pthread_mutex_lock(&p->judging);
    atomic_store(&p->pulse.comm, comm);
    pthread_mutex_unlock(&p->judging);
}

/* Says once a second that this process is there, and looks whether its rank hangs; then the others are told, and it ends. */
static void *beat(void *arg)
{
    process *p = arg;
    char name[24];
    bool hangs = false;
    snprintf(name, sizeof name, "rank %d beat", p->rank.rank);
    prctl(PR_SET_NAME, name);
    for (; !hangs; sleep(1)) {
        if (p->supervised) tell(STDERR_FILENO, "alive", p->rank.rank, 0, "");
        pthread_mutex_lock(&p->judging);
        hangs = look_for_hangs(p->supervised ? STDERR_FILENO : -1, &p->pulse, 1);
        pthread_mutex_unlock(&p->judging);
    }
    _exit(1);
}

static void report_to_launcher(process *p)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* a launcher that dies leaves nobody behind */
    tell(STDERR_FILENO, "process", p->rank.rank, getpid(), "");
    catch_crashes(STDERR_FILENO);
}

int hd_job_run_mpi(const hd_job *job, hd_error *err)
{
    int size = 0;
    static process p = {.judging = PTHREAD_MUTEX_INITIALIZER}; /* as long as the program: the beating thread looks at it */
    pthread_t thread;
    hd_rank *rank = &p.rank;
    p.supervised = hd_job_is_supervised();
    hd_comm_mpi_launched(&rank->rank, &size);
    p.pulse.rank = rank->rank;
    name_thread(rank->rank);
    if (p.supervised) report_to_launcher(&p);
    if (!pthread_create(&thread, NULL, beat, &p)) pthread_detach(thread);
    hd_stop_catch(p.supervised ? HD_STOP_INPUT : HD_STOP_LAUNCHER);
    int rc = size == job->ranks ? hd_comm_mpi(hd_job_deadline(), &rank->comm, err)
                                : hd_fail(err, HD_EINVAL, "the plan is for %d rank%s, and mpirun started %d", job->ranks, job->ranks == 1 ? "" : "s", size);
    judge(&p, rank->comm);
    if (!rc) rc = hd_train_rank(job->config, job->meshed ? rank : NULL, err);
    judge(&p, NULL);
    if (rc && p.supervised) tell(STDERR_FILENO, "failed", rank->rank, rc, err->message);
    if (rc && rank->comm) hd_comm_abort(rank->comm, err->message);
    fflush(stdout);
    if (rc && p.supervised) _exit(1);
    if (!rc && p.supervised) tell(STDERR_FILENO, "done", rank->rank, 0, "");
    if (rc) hd_error_context(err, "rank %d", rank->rank);
    hd_comm_free(rank->comm);
    return rc;
}
