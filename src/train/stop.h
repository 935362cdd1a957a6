/* stop.h: asking a training run to stop by a signal. The one state of the process that Heddle keeps: signal handlers have no other. */
#ifndef HD_TRAIN_STOP_H
#define HD_TRAIN_STOP_H

#include <stdbool.h>

/* Who is listened to. A process under a supervisor leaves what a terminal sends to all of its processes to that one, which passes it on. */
typedef enum hd_stop_from {
    HD_STOP_ANYONE, HD_STOP_PARENT,
    HD_STOP_LAUNCHER, /* SIGUSR1: launchers keep SIGINT and SIGTERM for themselves */
    HD_STOP_INPUT     /* a line on standard input, which launchers bring to rank 0: MPICH's sends SIGUSR1 by itself to those whom a dead process leaves behind */
} hd_stop_from;

#define HD_STOP_LINE "stop\n"

/* From now on SIGINT and SIGTERM (or what else that one sends) are requests to stop; a second one ends the process at once. */
void hd_stop_catch(hd_stop_from who);
void hd_stop_ignore(void); /* back to the system's way */
bool hd_stop_asked(void);

#endif
