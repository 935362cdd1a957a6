/* thread.h: a team of threads that stays alive and runs one function on all members at once.
 *
 * The caller of hd_team_run is member 0. Waits spin only while there are no more threads than cores, and fall back to a futex. */
#ifndef HD_BASE_THREAD_H
#define HD_BASE_THREAD_H

#include <stdbool.h>
#include <stdint.h>
#include "base/error.h"

typedef struct hd_team hd_team;

/* Starts threads-1 helpers (1 <= threads <= 256). With pin, each keeps to a core of its own, provided that the team takes all cores that the
 * caller may run on: a smaller team may have neighbours. The caller is left where it is. NULL on failure. */
hd_team *hd_team_new(int threads, bool pin, hd_error *err);
void hd_team_free(hd_team *t);
int hd_team_size(const hd_team *t);

/* Runs fn(arg, tid) on every member, tid = 0 .. size-1; returns when all are done. Not reentrant. */
void hd_team_run(hd_team *t, void (*fn)(void *arg, int tid), void *arg);

/* Meets all members of the team; to be called from inside hd_team_run by every member. Full memory barrier. */
void hd_team_barrier(hd_team *t, int tid);

/* The balanced piece [*begin, *end) of n items for member tid of count, in multiples of unit (the last may be short). */
void hd_split(int64_t n, int64_t unit, int tid, int count, int64_t *begin, int64_t *end);

/* Cores this process may run on, wherever the calling thread was pinned. */
int hd_core_count(void);

/* Keeps the calling thread, and those that it starts from now on, to cores first .. first + count - 1 of the process's; a wish, left alone
 * where there are not as many. Not for the thread of main: what it may run on is what the process may. */
void hd_thread_pin(int first, int count);

/* Asks the scheduler to run the calling thread as soon as it wakes, before threads that compute: for one that works in short pieces. A wish: Linux grants it
 * from 6.12 on (slices of a thread's own), and without a privilege. */
void hd_thread_wake_soon(void);

#endif
