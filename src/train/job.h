/* job.h: a training job of many ranks, within src/train: its supervisor and its ranks.
 *
 * Ranks tell their supervisor what happens in lines of text, by a pipe (threads of one child) or on standard error (MPI processes, whose launcher brings it
 * there). Such a line begins with HD_JOB_MARK; everything else on a launcher's standard error is talk.
 *
 *     MARK process RANK PID            there is such a process
 *     MARK alive RANK 0                once a second, by a thread that does nothing else: silence means stopped or gone
 *     MARK done RANK 0                 an MPI process has done its work and will end
 *     MARK failed RANK CODE MESSAGE    the rank ends with this error
 *     MARK crashed RANK SIGNAL         the same, from a signal handler
 *     MARK hangs RANK SECONDS          the rank neither computes nor waits for another (pulse.h); its process ends itself */
#ifndef HD_TRAIN_JOB_H
#define HD_TRAIN_JOB_H

#include <sys/types.h>
#include "base/str.h"
#include "train/trainer.h"

#define HD_JOB_MARK "\x1eheddle "
#define HD_JOB_LINE 640 /* bytes of a line at most; below PIPE_BUF, so that lines don't mix */

typedef struct hd_job {
    const hd_train_config *config;
    int ranks;
    bool meshed; /* the plan has a mesh: else one rank, which is no rank of anything */
    bool mpi;
    bool again;  /* not the first start: goes on from the newest checkpoint, whatever --resume says */
    bool planned; /* config is not what this program's arguments say: a plan was searched for */
    char parallel[2048]; /* in place of the config's, once there are fewer ranks than at the start; else "" */
} hd_job;

/* ---- ranks (job_ranks.c) ---- */

double hd_job_deadline(void); /* seconds that a rank may wait without progress: HEDDLE_COMM_DEADLINE, or 300 */
/* All ranks as threads of this process, which tells `fd` what happens. Ends the process. */
void hd_job_run_threads(const hd_job *job, int fd) __attribute__((noreturn));
/* This process is one rank of an MPI job. Supervised (by hd_job_launch), it ends the process on failure. */
int hd_job_run_mpi(const hd_job *job, hd_error *err);

/* ---- fewer ranks (shrink.c) ---- */

/* Makes the job one of at most so many ranks: sets its parallel, ranks, meshed and mpi, and leaves config alone. HD_EUNSUPPORTED and one line where its plan
 * has no smaller form; job is then as it was. */
int hd_job_shrink(hd_job *job, int ranks, hd_error *err);

/* ---- starting (launch.c) ---- */

/* Starts mpirun with this program and its arguments; its standard error comes out of fd[0], its standard output out of fd[1], and what is written to the
 * socket *input is rank 0's standard input. */
int hd_job_launch(const hd_job *job, pid_t *pid, int fd[2], int *input, hd_error *err);
bool hd_job_is_supervised(void);

#endif
