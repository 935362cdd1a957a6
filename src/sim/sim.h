/* sim.h: the simulator: reads the Programs that the executor runs, and says what a step will take.
 *
 * Event-driven: every rank (or one for all that are alike: same program, same pieces, same place in the cluster) goes through its calls and instructions by
 * the Program's own iterators; kernels take hd_cost_kernel, collectives begin when all members have come and take hd_cost_move, transfers of stream 1 run
 * beside computing, tokens order them as in the executor. Nothing is computed and no tensor is allocated. */
#ifndef HD_SIM_SIM_H
#define HD_SIM_SIM_H

#include "base/trace.h"
#include "cluster/cost.h"
#include "program/program.h"

/* Where a rank's step goes; the parts add up to the step. */
typedef enum hd_sim_part {
    HD_SIM_GEMM, HD_SIM_MEMORY_BOUND, /* computing; launches included */
    HD_SIM_TENSOR,   /* exposed: waiting for or doing collectives over MODEL axes */
    HD_SIM_PIPELINE, /* exposed transfer of activations between stages, beyond waiting for the other stage's work */
    HD_SIM_BUBBLE,   /* waiting for another stage's work */
    HD_SIM_DATA,     /* exposed collectives over DATA axes and the update's */
    HD_SIM_IDLE,     /* the rest: waiting for others at the step's end */
    HD_SIM_PARTS
} hd_sim_part;

typedef struct hd_sim_options {
    bool no_merge;     /* every rank by itself */
    int steps;         /* 0: one; the last one's time is what counts */
    hd_trace *trace;   /* NULL: none; else every simulated rank's events */
} hd_sim_options;

typedef struct hd_sim_rank {
    int rank, alike;                 /* this one stands for so many */
    double part[HD_SIM_PARTS];       /* seconds */
    double hidden;                   /* seconds of communication beside computing */
    double flops, hardware_flops;    /* of the model; with what is computed again */
    double bytes[HD_MAX_LEVELS];     /* sent in a step by link level */
    hd_memory memory;                /* predicted peak by role */
    int64_t capacity;                /* of the device */
} hd_sim_rank;

typedef struct hd_sim_result {
    double step;                     /* seconds */
    int ranks;
    hd_sim_rank *rank; int n_ranks;  /* those simulated; owned */
    double flops;                    /* of the model in a step, all ranks */
    double hardware_flops;
    double bubble;                   /* of all ranks' time, as a fraction */
    const char *limit;               /* what limits the step most: a part's name */
} hd_sim_result;

const char *hd_sim_part_name(hd_sim_part p);

/* programs[n]: one of each stage, rank numbering as the executor's. HD_EINVAL where the cluster has fewer devices than ranks. A rank that needs more memory
 * than its device has is no error here (hd_sim_check_memory). Free the result with hd_sim_result_free. */
int hd_simulate(const hd_program *const *programs, int n, const hd_cluster *c, const hd_sim_options *o, hd_sim_result *out, hd_error *err);
void hd_sim_result_free(hd_sim_result *r);

/* HD_EMEMCAP and one line naming the rank, what kind of memory takes most, by how much it is exceeded, and what would help. */
int hd_sim_check_memory(const hd_sim_result *r, hd_error *err);

#endif
