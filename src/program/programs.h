/* programs.h: the Programs of all stages of a plan, without weights, data or executors: for inspecting, simulating and planning. Made by src/train/session.h. */
#ifndef HD_PROGRAM_PROGRAMS_H
#define HD_PROGRAM_PROGRAMS_H

#include "program/program.h"

typedef struct hd_programs {
    hd_program **stage; int n; /* [n] one of each stage; owned */
    hd_graph *graph;           /* cut into chunks and over the mesh, not into stages; of one stage, as it was lowered; owned */
    bool train;
    hd_plan plan;              /* with all that was open filled in */
    uint64_t fingerprint;      /* of the graph before it was cut */
    int64_t parameters;
    double flops;              /* of products, convolutions and attention in a step (a call), all ranks, nothing computed again */
} hd_programs;

void hd_programs_free(hd_programs *p); /* of none, too */

#endif
