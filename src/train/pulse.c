#include "train/pulse.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* System calls that end when somebody else does something, or after a time: what a hanging thread sits in. All others move data. */
static const long waits[] = {
    SYS_futex, SYS_nanosleep, SYS_clock_nanosleep, SYS_ppoll, SYS_pselect6, SYS_epoll_pwait, SYS_rt_sigsuspend, SYS_rt_sigtimedwait,
#ifdef SYS_pause
    SYS_pause, SYS_poll, SYS_select, SYS_epoll_wait,
#endif
};

static bool read_text(const char *task, const char *name, char *text, size_t size)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/task/%.20s/%s", task, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, size - 1);
    if (fd >= 0) close(fd);
    text[n > 0 ? n : 0] = 0;
    return n > 0;
}

static bool is_wait(long call)
{
    for (size_t i = 0; i < sizeof waits / sizeof *waits; i++)
        if (waits[i] == call) return true;
    return false;
}

/* A thread's rank when it works for one, else -1; its processor time; whether it sleeps in a wait. What cannot be read does not hang. */
static int look_at_thread(const char *task, long long *ticks, bool *sleeps)
{
    char text[512], state = 0, *end;
    unsigned long long user = 0, system = 0;
    if (!read_text(task, "comm", text, sizeof text) || strncmp(text, "rank ", 5)) return -1;
    long rank = strtol(text + 5, &end, 10);
    if (*end != '\n' || !read_text(task, "stat", text, sizeof text)) return -1;
    const char *at = strrchr(text, ')'); /* fields from the third on: proc(5) */
    if (!at || sscanf(at + 1, " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu", &state, &user, &system) != 3) return -1;
    *ticks = (long long)(user + system);
    *sleeps = state == 'S' && read_text(task, "syscall", text, sizeof text) && strncmp(text, "running", 7) && is_wait(strtol(text, NULL, 10));
    return (int)rank;
}

static hd_pulse *find(hd_pulse *p, int n, int rank)
{
    for (int i = 0; i < n; i++)
        if (p[i].rank == rank) return &p[i];
    return NULL;
}

int hd_pulse_look(hd_pulse *p, int n)
{
    long long ticks[n];
    bool asleep[n], found[n];
    for (int i = 0; i < n; i++) {
        const hd_comm *c = atomic_load(&p[i].comm);
        ticks[i] = 0;
        found[i] = false;
        asleep[i] = c && !hd_comm_is_waiting(c);
    }
    DIR *d = opendir("/proc/self/task");
    if (!d) return -1;
    for (struct dirent *e; (e = readdir(d));) {
        long long t = 0;
        bool sleeps = false;
        hd_pulse *of = *e->d_name == '.' ? NULL : find(p, n, look_at_thread(e->d_name, &t, &sleeps));
        if (!of) continue;
        ticks[of - p] += t;
        found[of - p] = true;
        asleep[of - p] &= sleeps;
    }
    closedir(d);
    int hangs = -1;
    for (int i = 0; i < n; i++) {
        const hd_comm *c = atomic_load(&p[i].comm);
        p[i].quiet = asleep[i] && found[i] && ticks[i] == p[i].ticks && c && !hd_comm_is_waiting(c) ? p[i].quiet + 1 : 0;
        p[i].ticks = ticks[i];
        if (p[i].quiet >= HD_PULSE_LOOKS && hangs < 0) hangs = i;
    }
    return hangs;
}
