#include "train/stop.h"

#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <unistd.h>

static volatile sig_atomic_t requests;
static volatile sig_atomic_t hears_input; /* standard input is looked at, and has not ended */

static void on_signal(int sig)
{
    if (++requests > 1) _exit(128 + sig);
}

static void on_parents_signal(int sig, siginfo_t *info, void *context)
{
    (void)context;
    if (info->si_pid == getppid()) on_signal(sig);
}

static void set(int sig, const struct sigaction *a)
{
    sigaction(sig, a, NULL);
}

void hd_stop_catch(hd_stop_from who)
{
    struct sigaction a = {.sa_handler = on_signal};
    sigemptyset(&a.sa_mask);
    requests = 0;
    hears_input = who == HD_STOP_INPUT;
    if (who == HD_STOP_PARENT) {
        a.sa_sigaction = on_parents_signal;
        a.sa_flags = SA_SIGINFO;
    }
    if (who == HD_STOP_LAUNCHER) {
        set(SIGUSR1, &a);
        return;
    }
    if (who == HD_STOP_INPUT) {
        signal(SIGUSR1, SIG_IGN);
        return;
    }
    set(SIGINT, &a);
    set(SIGTERM, &a);
}

void hd_stop_ignore(void)
{
    struct sigaction a = {.sa_handler = SIG_DFL};
    sigemptyset(&a.sa_mask);
    set(SIGINT, &a);
    set(SIGTERM, &a);
}

static void look_at_input(void)
{
    char text[64];
    struct pollfd p = {.fd = STDIN_FILENO, .events = POLLIN};
    if (poll(&p, 1, 0) <= 0) return;
    if (read(STDIN_FILENO, text, sizeof text) > 0) requests = 1;
    hears_input = false;
}

bool hd_stop_asked(void)
{
    if (hears_input) look_at_input();
    return requests > 0;
}
