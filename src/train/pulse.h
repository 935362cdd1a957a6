/* pulse.h: which of this process's ranks hang, seen from outside their threads.
 *
 * A rank that computes for long uses processor time, one that reads or writes is inside such a system call, and one that waits for other ranks says so
 * (hd_comm_is_waiting). A rank of which none of this holds and whose threads all sleep, look after look, hangs. A loop without end is not told from
 * computation: for that there is the deadline of the ranks that wait. */
#ifndef HD_TRAIN_PULSE_H
#define HD_TRAIN_PULSE_H

#include <stdatomic.h>
#include "comm/comm.h"

enum { HD_PULSE_LOOKS = 5 }; /* quiet looks in a row, a second apart, after which a rank hangs */

typedef struct hd_pulse {
    int rank;
    _Atomic(hd_comm *) comm; /* NULL: not to be judged now */
    long long ticks;         /* of processor time, at the last look */
    int quiet;               /* looks since anything was seen */
} hd_pulse;

/* One look at n ranks of this process, whose threads are named "rank N". The index in p of one that hangs, or -1. */
int hd_pulse_look(hd_pulse *p, int n);

#endif
