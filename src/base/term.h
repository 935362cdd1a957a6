/* term.h: time, log lines and progress bars. */
#ifndef HD_BASE_TERM_H
#define HD_BASE_TERM_H

#include <stdbool.h>
#include <stdint.h>

double hd_time(void);            /* monotonic seconds */
uint64_t hd_memory_peak(void);   /* this process's VmHWM in bytes */
uint64_t hd_memory_resident(void); /* VmRSS in bytes */
uint64_t hd_memory_available(void); /* bytes that can be had now without swapping: MemAvailable, or less under a cgroup limit */

/* One line on stderr, "heddle: ..." ; clears a progress bar's line first. */
void hd_log(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* A bar on a terminal (stderr), a plain line every few seconds elsewhere. Zero-initialise through hd_progress_begin. */
typedef struct hd_progress {
    const char *label; /* not owned */
    double total;      /* units of work; 0 when not known */
    double first;      /* units that were done before the start; for the time left */
    double start, last_draw;
    bool terminal, quiet;
} hd_progress;

void hd_progress_begin(hd_progress *p, const char *label, double total, bool quiet);
/* Draws at most ten times a second (terminal) or once in 5 s (elsewhere); detail may be NULL. */
void hd_progress_update(hd_progress *p, double done, const char *detail);
/* Takes the bar off the terminal's line, so that something else can be printed; the next update draws it again. */
void hd_progress_hide(hd_progress *p);
void hd_progress_end(hd_progress *p, const char *detail);

#endif
