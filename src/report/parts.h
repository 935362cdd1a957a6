/* parts.h: where the time of ranks goes, by the events of a trace, in the parts that the simulator tells apart (sim.h). For traces of
 * real runs, which say when a rank came to a transfer and when it was done with it, and not which part of that was waiting for others. */
#ifndef HD_REPORT_PARTS_H
#define HD_REPORT_PARTS_H

#include "sim/sim.h"

/* *out[n_events]: how many seconds at the begin of each event are waiting for another stage: of a recv until its send has been begun, of
 * a collective between stages until the last of them has come. Events of other kinds wait for nobody. *out is to be freed with hd_free.
 * program:
 * of any stage. */
int hd_trace_waiting(const hd_trace *t, const hd_program *program, double **out, hd_error *err);

/* Seconds of one step of a rank (t's seconds over its steps); waiting: as above. They add up to the step; what lies between instructions
 * counts as idle. */
void hd_trace_parts(const hd_trace *t, const double *waiting, int rank, double part[HD_SIM_PARTS]);

#endif
