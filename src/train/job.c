/* job.c: the supervisor of a training job: it starts the ranks, watches over them, says what went wrong first, and starts them again. */
#include "train/job.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "base/file.h"
#include "base/mem.h"
#include "base/term.h"
#include "train/checkpoint.h"
#include "train/choose.h"
#include "train/stop.h"

#define SILENCE 6.0  /* seconds without a sign of life: stopped, or its machine is gone */
#define LAST_LINE 0.5 /* seconds that a dead process's last line may take to come here */
#define DYING_LOOKS 30 /* 10 ms apart, for a process that is dying */
#define PATIENCE 6.0 /* seconds from the first failure, or from being told to go, until force is used */

#define ENDED_EARLY "its process ended early"

enum { CRASHED = 1 }; /* in the place of an error's code: nobody could say one */

/* What is known of one start of the job. */
typedef struct watch {
    const hd_job *job;
    pid_t pid;          /* of the child: all ranks, or the launcher */
    int fd[2];          /* what it tells; a launcher's standard output, or -1 */
    int input;          /* rank 0's standard input; -1: without a launcher */
    FILE *log;          /* the launcher's talk; NULL: none */
    char log_path[4096];
    struct process { bool known; long pid; double silent, gone; int death; bool done, dead, crashed; } *rank; /* [ranks]; MPI: each is a process; else [0] is all of them */
    int code;           /* of the first cause; 0: nothing went wrong so far */
    char cause[600];
    double failing;     /* seconds since the first failure */
    int force;          /* signals sent to end it */
    bool passed_on;     /* the person's request to stop */
    int deaths;         /* epoll of the MPI processes of this machine, which tells when one ends */
    int first_dead;     /* the first that ended without having done its work; -1: none */
    bool banner;        /* MPICH has begun to say on standard output what went wrong */
    hd_str line[2];     /* of each fd: begun, not ended */
} watch;

/* ---- causes ---- */

/* The first cause stays, but what other ranks saw of it (HD_ECOMM) gives way to it. */
static void blame(watch *w, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static void blame(watch *w, int code, const char *fmt, ...)
{
    va_list args;
    if (w->code && (w->code != HD_ECOMM || code == HD_ECOMM)) return;
    w->code = code;
    va_start(args, fmt);
    vsnprintf(w->cause, sizeof w->cause, fmt, args);
    va_end(args);
}

/* What is wrong with the job and not with a rank is said without one. */
static bool is_everyones(int code)
{
    return code == HD_EINVAL || code == HD_EFORMAT || code == HD_EUNSUPPORTED || code == HD_EMEMCAP || code == HD_ENUMERIC || code == HD_EINTR;
}

/* An MPI process of this machine is watched by itself: launchers end all when one has died, and may then name any of them. */
static void watch_death(watch *w, int rank, pid_t pid)
{
    struct epoll_event e = {.events = EPOLLIN, .data.u32 = (uint32_t)rank};
    int fd = w->deaths >= 0 ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;
    if (fd < 0) return;
    w->rank[rank].death = fd;
    epoll_ctl(w->deaths, EPOLL_CTL_ADD, fd, &e);
}

static void note_death(watch *w)
{
    struct epoll_event e;
    if (epoll_wait(w->deaths, &e, 1, 0) != 1) return;
    struct process *p = &w->rank[e.data.u32];
    epoll_ctl(w->deaths, EPOLL_CTL_DEL, p->death, NULL);
    p->dead = true;
    if (w->first_dead < 0 && !p->done) w->first_dead = (int)e.data.u32;
}

static void forget_deaths(watch *w)
{
    for (int r = 0; r < w->job->ranks; r++)
        if (w->rank[r].death > 0) close(w->rank[r].death);
    if (w->deaths >= 0) close(w->deaths);
}

static void blame_death(watch *w, int rank)
{
    blame(w, CRASHED, "rank %d: its process was killed or ended without a word", rank);
}

static bool is_silent(const struct process *p) { return p->dead && !p->done && !p->crashed; }

/* A process of an MPI job that died without a word, the first to die before others: what these had to say may not have been read yet. -1: there is none. */
static int silent_death(watch *w)
{
    note_death(w);
    if (w->first_dead >= 0 && is_silent(&w->rank[w->first_dead])) return w->first_dead;
    for (int r = 0; r < w->job->ranks; r++)
        if (is_silent(&w->rank[r])) return r;
    return -1;
}

/* MPI: the others cannot know of it. An MPI library may abort a process because another is dying, whose connections close before its end is seen: that
 * one is then the cause. */
static void on_crash(watch *w, int rank, int sig)
{
    int silent = -1;
    w->rank[rank].crashed = true;
    for (int i = 0; i < DYING_LOOKS && w->deaths >= 0 && sig == SIGABRT && silent < 0; i++) {
        silent = silent_death(w);
        if (silent < 0) nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
    if (silent >= 0) blame_death(w, silent);
    blame(w, CRASHED, "rank %d: crashed (%s)", rank, strsignal(sig));
    if (w->job->mpi && w->failing < PATIENCE - 1) w->failing = PATIENCE - 1;
}

static void on_record(watch *w, const char *text)
{
    char what[16];
    int rank = 0, at = 0;
    long long number = 0;
    if (sscanf(text, "%15s %d %lld %n", what, &rank, &number, &at) < 3 || rank < 0 || rank >= w->job->ranks) return;
    struct process *p = &w->rank[rank];
    p->silent = 0;
    if (!strcmp(what, "process") && !p->known) {
        *p = (struct process){.known = true, .pid = (long)number};
        watch_death(w, rank, (pid_t)number);
    }
    if (!strcmp(what, "done")) p->done = true;
    else if (!strcmp(what, "crashed")) on_crash(w, rank, (int)number);
    else if (!strcmp(what, "hangs")) blame(w, CRASHED, "rank %d: hangs: for %d s it has neither computed nor waited for another rank", rank, (int)number);
    else if (!strcmp(what, "failed") && is_everyones((int)number)) blame(w, (int)number, "%s", text + at);
    else if (!strcmp(what, "failed")) blame(w, (int)number, "rank %d: %s", rank, text + at);
}

static void refine(watch *w, const char *how)
{
    size_t n = strlen(w->cause);
    if (w->code == CRASHED && n >= strlen(ENDED_EARLY) && !strcmp(w->cause + n - strlen(ENDED_EARLY), ENDED_EARLY))
        snprintf(w->cause + n, sizeof w->cause - n, ": %s", how);
}

/* What launchers say of a process that was killed. Open MPI: "... process rank 1 with PID 7 on node n exited on signal 9 (Killed)."; MPICH: "PID 7 RUNNING AT
 * n", and two lines on "EXIT STRING: Killed (signal 9)". */
static void on_talk(watch *w, const char *text)
{
    int rank = 0, sig = 0;
    long pid = 0;
    const char *found = strstr(text, "process rank "), *id = strstr(text, " PID "), *how = strstr(text, "exited on signal ");
    const char *exit = strstr(text, "EXIT STRING: ");
    if (found && how && sscanf(found, "process rank %d", &rank) == 1 && sscanf(how, "exited on signal %d", &sig) == 1)
        blame(w, CRASHED, "rank %d: its process was ended by a signal (%s)", w->first_dead >= 0 ? w->first_dead : rank, strsignal(sig));
    else if (id && strstr(text, "RUNNING AT") && sscanf(id, " PID %ld", &pid) == 1)
        for (rank = 0; rank < w->job->ranks; rank++)
            if (w->rank[rank].known && w->rank[rank].pid == pid) blame(w, CRASHED, "rank %d: " ENDED_EARLY, w->first_dead >= 0 ? w->first_dead : rank);
    if (exit) refine(w, exit + strlen("EXIT STRING: "));
    bool ours = !strncmp(text, "heddle: ", 8) || !strncmp(text, "training ", 9);
    if (ours && !w->code) fprintf(stderr, "%s\n", text);
    else if (w->log) fprintf(w->log, "%s\n", text);
}

/* The ranks' own output is passed on. */
static void on_output(watch *w, const char *text)
{
    w->banner = w->banner || strspn(text, "=") >= 60;
    if (w->banner) {
        on_talk(w, text);
        return;
    }
    puts(text);
    fflush(stdout);
}

static void on_line(watch *w, int from, const char *text)
{
    const char *record = from == 0 ? strstr(text, HD_JOB_MARK) : NULL;
    if (record) on_record(w, record + strlen(HD_JOB_MARK));
    else if (from == 0) on_talk(w, text);
    else on_output(w, text);
}

static void on_bytes(watch *w, int from, const char *bytes, size_t n)
{
    hd_str *line = &w->line[from];
    for (size_t i = 0; i < n; i++) {
        if (bytes[i] != '\n') {
            hd_str_putc(line, bytes[i]);
            continue;
        }
        on_line(w, from, line->data);
        hd_str_clear(line);
    }
}

/* ---- one start ---- */

static void open_log(watch *w)
{
    const char *out = w->job->config->out, *temporary = getenv("TMPDIR");
    if (!w->job->mpi) return;
    if (out && !hd_make_dirs(out, NULL)) snprintf(w->log_path, sizeof w->log_path, "%s/launcher.log", out);
    else snprintf(w->log_path, sizeof w->log_path, "%s/heddle-launcher-%d.log", temporary ? temporary : "/tmp", (int)getpid());
    w->log = fopen(w->log_path, "we");
}

static int start_child(watch *w, hd_error *err)
{
    int ends[2];
    if (w->job->mpi) return hd_job_launch(w->job, &w->pid, w->fd, &w->input, err);
    if (pipe2(ends, O_CLOEXEC)) return hd_fail_errno(err, "a pipe");
    fflush(stdout);
    w->pid = fork();
    if (w->pid == 0) hd_job_run_threads(w->job, ends[1]);
    close(ends[1]);
    w->fd[0] = ends[0];
    if (w->pid > 0) return 0;
    close(ends[0]);
    return hd_fail_errno(err, "starting the ranks");
}

/* First so that it can end by itself, then at once. A launcher needs its chance to end its processes. */
static void use_force(watch *w)
{
    kill(w->pid, w->job->mpi && w->force == 0 ? SIGTERM : SIGKILL);
    kill(w->pid, SIGCONT);
    w->force++;
    w->failing = 0;
}

static void pass_time(watch *w, double seconds)
{
    int processes = w->job->mpi ? w->job->ranks : 1;
    for (int r = 0; r < processes; r++) {
        if (w->rank[r].known) w->rank[r].silent += seconds;
        if (w->rank[r].silent <= SILENCE || w->code) continue;
        if (w->job->mpi) blame(w, CRASHED, "rank %d: no sign of life from its process for %.0f s", r, SILENCE);
        else blame(w, CRASHED, "no sign of life from the ranks' process for %.0f s", SILENCE);
        w->failing = PATIENCE; /* a stopped process does not end by itself */
    }
    for (int r = 0; r < processes && w->job->mpi && !w->code; r++) {
        if (w->rank[r].dead && !w->rank[r].done) w->rank[r].gone += seconds;
        if (w->rank[r].gone <= LAST_LINE) continue;
        blame_death(w, w->first_dead >= 0 ? w->first_dead : r);
        w->failing = PATIENCE; /* the others cannot know */
    }
    if (w->code) w->failing += seconds;
    if (w->failing > (w->force ? PATIENCE / 2 : PATIENCE)) use_force(w);
    if (hd_stop_asked() && !w->passed_on) {
        if (!w->job->mpi) kill(w->pid, SIGTERM);
        else if (send(w->input, HD_STOP_LINE, strlen(HD_STOP_LINE), MSG_NOSIGNAL) < 0) kill(w->pid, SIGTERM); /* it is ending anyway */
        w->passed_on = true;
    }
}

static void hear(watch *w, int from)
{
    char bytes[4096];
    ssize_t n = read(w->fd[from], bytes, sizeof bytes);
    if (n > 0) on_bytes(w, from, bytes, (size_t)n);
    if (n > 0 || (n < 0 && errno == EINTR)) return;
    close(w->fd[from]);
    w->fd[from] = -1;
}

/* Until the child has closed its ends. */
static void listen_to(watch *w)
{
    double last = hd_time();
    while (w->fd[0] >= 0 || w->fd[1] >= 0) {
        struct pollfd p[3] = {{.fd = w->fd[0], .events = POLLIN}, {.fd = w->fd[1], .events = POLLIN}, {.fd = w->deaths, .events = POLLIN}};
        int ready = poll(p, 3, 500);
        double now = hd_time(), passed = now - last;
        last = now;
        if (ready > 0 && w->deaths >= 0 && p[2].revents) note_death(w);
        for (int i = 0; i < 2 && ready > 0; i++)
            if (w->fd[i] >= 0 && p[i].revents) hear(w, i);
        pass_time(w, passed < 1 ? passed : 1); /* a longer gap is this process's own: it was stopped */
        if (w->force > 1 && waitpid(w->pid, NULL, WNOHANG) == w->pid) {
            w->pid = -1;
            return;
        }
    }
}

/* Every MPI process has said so: a launcher that fails afterwards has lost nothing. */
static bool all_done(const watch *w)
{
    for (int r = 0; r < w->job->ranks && w->job->mpi; r++)
        if (!w->rank[r].done) return false;
    return w->job->mpi;
}

/* Whether the child ended well; else there is a cause. */
static void collect_child(watch *w)
{
    int status = 0;
    if (w->pid < 0 || waitpid(w->pid, &status, 0) < 0) {
        blame(w, HD_ECOMM, "the ranks did not end by themselves");
        return;
    }
    if (WIFEXITED(status) && !WEXITSTATUS(status)) return;
    if (!w->code && all_done(w)) {
        hd_log("all ranks have done their work; then the launcher ended with status %d", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
        return;
    }
    if (w->deaths >= 0 && w->first_dead < 0) note_death(w);
    if (w->first_dead >= 0) blame_death(w, w->first_dead);
    const char *who = w->job->mpi ? "the launcher" : "the ranks' process";
    if (WIFSIGNALED(status)) blame(w, CRASHED, "%s was ended by a signal (%s)", who, strsignal(WTERMSIG(status)));
    else if (w->job->mpi) blame(w, HD_ECOMM, "%s ended with status %d: see %s", who, WEXITSTATUS(status), w->log_path);
    else blame(w, HD_ECOMM, "%s ended with status %d", who, WEXITSTATUS(status));
}

/* How a start of the job ended. */
typedef struct fate {
    int died;    /* the rank that crashed, hung or was gone first; -1: none, or nobody knows */
    int missing; /* MPI processes that nobody has heard of */
} fate;

static void judge(const watch *w, fate *out)
{
    *out = (fate){.died = -1};
    if (w->code != CRASHED || sscanf(w->cause, "rank %d:", &out->died) != 1) out->died = -1;
    for (int r = 0; r < w->job->ranks && w->job->mpi && w->code; r++) out->missing += !w->rank[r].known;
}

static int run_once(const hd_job *job, fate *how, hd_error *err)
{
    watch w = {.job = job, .rank = hd_calloc((size_t)job->ranks, sizeof *w.rank), .fd = {-1, -1}, .input = -1, .deaths = job->mpi ? epoll_create1(EPOLL_CLOEXEC) : -1, .first_dead = -1};
    for (int i = 0; i < 2; i++) hd_str_init(&w.line[i]);
    int rc = w.rank ? 0 : hd_fail_memory(err, sizeof *w.rank, "ranks");
    if (!rc) open_log(&w);
    if (!rc) rc = start_child(&w, err);
    if (!rc) {
        listen_to(&w);
        collect_child(&w);
        for (int i = 0; i < 2; i++)
            if (w.fd[i] >= 0) close(w.fd[i]);
        if (w.input >= 0) close(w.input);
        if (w.code) rc = hd_fail(err, w.code > 0 ? HD_ECOMM : w.code, "%s", w.cause);
        judge(&w, how);
    }
    if (w.log) fclose(w.log);
    if (w.log && (!rc || hd_file_size(w.log_path) == 0)) remove(w.log_path);
    for (int i = 0; i < 2; i++) hd_str_free(&w.line[i]);
    if (w.rank) forget_deaths(&w);
    hd_free(w.rank);
    return rc;
}

/* ---- again and again ---- */

typedef struct history {
    fate last;
    char saved[4096]; /* the newest checkpoint when it began */
} history;

static void note_checkpoint(const hd_job *job, char *dir, size_t size)
{
    *dir = 0;
    if (job->config->out) hd_checkpoint_newest(job->config->out, dir, size);
}

/* A rank is lost when a start of the job after a failure fails before it has saved anything, with processes that never came, or in the rank that failed
 * before. How many ranks can still be had; all of them: none is lost. */
static int ranks_to_be_had(const hd_job *job, const history *h, const fate *now)
{
    char saved[sizeof h->saved];
    note_checkpoint(job, saved, sizeof saved);
    if (!job->again || strcmp(saved, h->saved)) return job->ranks;
    if (now->missing) return now->missing < job->ranks ? job->ranks - now->missing : job->ranks - 1; /* nobody came: who knows */
    return now->died >= 0 && now->died == h->last.died ? job->ranks - 1 : job->ranks;
}

/* What is started next: the same, or fewer ranks. */
static int choose_next(hd_job *job, history *h, const fate *now, hd_train_config *config, int64_t left, const hd_error *cause, hd_error *err)
{
    int ranks = ranks_to_be_had(job, h, now), before = job->ranks;
    h->last = *now;
    if (ranks == before || !job->meshed) {
        hd_log("%s; starting again from the last checkpoint (%lld more if need be)", cause->message, (long long)left);
        return 0;
    }
    int rc = hd_job_shrink(job, ranks, err);
    if (rc) return rc;
    *config = *job->config;
    config->parallel = job->parallel;
    config->ranks = job->ranks;
    job->config = config;
    h->last = (fate){.died = -1};
    hd_log("%s, again; going on with %d rank%s instead of %d, %s, from the last checkpoint (%lld more if need be)", cause->message, job->ranks,
           job->ranks == 1 ? "" : "s", before, job->parallel, (long long)left);
    return 0;
}

static int supervise(hd_job *job, hd_error *err)
{
    int64_t left = job->config->restarts;
    history h = {.last.died = -1};
    hd_train_config smaller;
    hd_stop_catch(HD_STOP_ANYONE);
    for (;;) {
        hd_error this = {0}, why = {0};
        fate how = {.died = -1};
        note_checkpoint(job, h.saved, sizeof h.saved);
        int rc = run_once(job, &how, &this);
        bool hopeless = is_everyones(rc) || !job->config->out || hd_stop_asked();
        if (!rc || !left || hopeless) {
            hd_stop_ignore();
            return rc ? hd_fail(err, rc, "%s", this.message) : 0;
        }
        left--;
        if (choose_next(job, &h, &how, &smaller, left, &this, &why)) {
            hd_stop_ignore();
            return hd_fail(err, rc, "%s, again; %s", this.message, why.message);
        }
        job->again = true;
    }
}

/* Processes that a launcher started aren't asked what they would plan: they would have to agree. */
static int check_launched(const hd_train_config *c, const hd_session_options *o, bool mpi, int size, hd_error *err)
{
    if (!mpi && size > 1)
        return hd_fail(err, HD_EINVAL, "this is one of %d processes that mpirun started: say --transport mpi, or start heddle without mpirun", size);
    if (!mpi || size == hd_session_ranks(o) || !hd_train_config_is_open(c, &o->parallel)) return 0;
    return hd_fail(err, HD_EINVAL, "mpirun started %d processes: say how to split the work over them (--parallel or --plan), or start heddle without mpirun, with --ranks %d",
                   size, size);
}

static int run_job(const hd_train_config *c, bool planned, hd_error *err)
{
    hd_session_options o;
    hd_lora_options lora;
    hd_lr_schedule lr;
    int rc = hd_train_config_check(c, &o, &lora, &lr, err);
    if (rc) return rc;
    hd_job job = {.config = c, .ranks = hd_session_ranks(&o), .meshed = hd_session_is_rank(&o), .mpi = c->transport && !strcmp(c->transport, "mpi"), .planned = planned};
    if (!job.meshed && !c->restarts) return hd_train_rank(c, NULL, err);
    if (!job.meshed) job.mpi = false;
    if (job.mpi) hd_choice_pass_on(c);
    return supervise(&job, err);
}

static int run_launched(const hd_train_config *given, int size, hd_error *err)
{
    hd_session_options o;
    hd_lora_options lora;
    hd_lr_schedule lr;
    hd_train_config c = *given;
    bool mpi = c.transport && !strcmp(c.transport, "mpi");
    int rc = hd_train_config_check(&c, &o, &lora, &lr, err);
    if (!rc) rc = check_launched(&c, &o, mpi, size, err);
    if (rc) return rc;
    if (hd_job_is_supervised()) hd_choice_take_over(&c);
    hd_job job = {.config = &c, .ranks = hd_session_ranks(&o), .meshed = hd_session_is_rank(&o), .mpi = true};
    return mpi ? hd_job_run_mpi(&job, err) : run_job(&c, false, err);
}

int hd_train(const hd_train_config *c, hd_error *err)
{
    int rank = 0, size = 1;
    if (hd_comm_mpi_launched(&rank, &size)) return run_launched(c, size, err);
    hd_choice *choice = hd_calloc(1, sizeof *choice);
    if (!choice) return hd_fail_memory(err, sizeof *choice, "a plan");
    int rc = hd_choose(c, choice, err);
    if (!rc) rc = run_job(&choice->config, choice->planned, err);
    hd_choice_free(choice);
    hd_free(choice);
    return rc;
}
