/* bell.h: a word that one thread watches and others change to say that there is something to see. */
#ifndef HD_COMM_BELL_H
#define HD_COMM_BELL_H

#include <linux/futex.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/term.h"

#define HD_BELL_SPIN 50e-6 /* seconds; then sleep: a waiting rank must not take a core from those that it waits for */

typedef struct hd_bell {
    _Alignas(64) _Atomic uint32_t value;
    _Atomic uint32_t sleepers; /* in futex_wait or about to be; makes the waking system call rare */
} hd_bell;

static inline uint32_t hd_bell_read(hd_bell *b) { return atomic_load(&b->value); }

static inline void hd_bell_ring(hd_bell *b)
{
    atomic_fetch_add(&b->value, 1);
    if (atomic_load(&b->sleepers)) syscall(SYS_futex, &b->value, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

static inline bool hd_bell_spin(hd_bell *b, uint32_t seen)
{
    for (double end = hd_time() + HD_BELL_SPIN; hd_time() < end;)
        for (int i = 0; i < 64; i++) {
            if (atomic_load_explicit(&b->value, memory_order_acquire) != seen) return true;
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        }
    return false;
}

/* Waits until the value is no longer `seen`, at most some seconds. Whether it changed. Both sides are sequentially consistent: the waiter sees the new
 * value, or the ringer the sleeper. */
static inline bool hd_bell_wait(hd_bell *b, uint32_t seen, bool spin, double seconds)
{
    if (hd_bell_read(b) != seen || (spin && hd_bell_spin(b, seen))) return true;
    atomic_fetch_add(&b->sleepers, 1);
    double left = seconds;
    for (double end = hd_time() + seconds; left > 0 && atomic_load(&b->value) == seen; left = end - hd_time()) {
        struct timespec limit = {(time_t)left, (long)((left - (double)(time_t)left) * 1e9)};
        syscall(SYS_futex, &b->value, FUTEX_WAIT_PRIVATE, seen, &limit, NULL, 0); /* a signal ends it early */
    }
    atomic_fetch_sub(&b->sleepers, 1);
    return hd_bell_read(b) != seen;
}

#endif
