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
    HD_SIM_BUBBLE,   /* waiting for another stage's work, at the step's end too */
    HD_SIM_DATA,     /* exposed collectives over DATA axes and the update's */
    HD_SIM_IDLE,     /* the rest: waiting for others of the same stage at the step's end */
    HD_SIM_PARTS
} hd_sim_part;

/* Memory for people: roles gathered. */
typedef enum hd_sim_kind {
    HD_SIM_PARAMETERS, HD_SIM_GRADIENTS, HD_SIM_OPTIMIZER, HD_SIM_ACTIVATIONS,
    HD_SIM_BUFFERS, /* the rest: scratch, inputs and outputs, holes in the arena, workspace */
    HD_SIM_KINDS
} hd_sim_kind;

/* Allowed for what libraries take for products, on devices that are no CPUs (there lowering places it): cuBLAS takes 32 MiB on H100 and 4 on A100, and
 * communication libraries as much for their channels. */
#define HD_SIM_WORKSPACE ((int64_t)64 << 20)

typedef struct hd_sim_options {
    bool no_merge;     /* every rank by itself */
    int steps;         /* 0: one. All ranks begin each together; the last one is what counts */
    const int64_t *binding; /* [HD_MAX_SYMBOLS] of calls that leave theirs open; NULL: maxima */
    int64_t keys;      /* of paged_attention, that one query sees on average; 0: as the op says */
    hd_trace *trace;   /* NULL: none; else every simulated rank's events, and what memory holds something (by_call may be set) */
} hd_sim_options;

typedef struct hd_sim_rank {
    int rank, alike;                 /* this one stands for so many */
    double part[HD_SIM_PARTS];       /* seconds */
    double hidden;                   /* seconds of communication beside computing */
    double flops, hardware_flops;    /* of the model's products; with what is computed again */
    double bytes[HD_MAX_LEVELS];     /* sent in a step by link level */
    hd_memory memory;                /* predicted peak by role */
    int64_t kind[HD_SIM_KINDS];      /* the same gathered, with the workspace: the sum is `peak` */
    int64_t peak, workspace;
    int64_t capacity;                /* of the device, without what is reserved */
} hd_sim_rank;

typedef struct hd_sim_result {
    double step;                     /* seconds */
    int ranks;
    hd_sim_rank *rank; int n_ranks;  /* those simulated; owned */
    double part[HD_SIM_PARTS], hidden; /* means over all ranks; the parts add up to the step */
    double bytes[HD_MAX_LEVELS];     /* sent in a step by link level, all ranks */
    double flops;                    /* of the model's products in a step, all ranks */
    double hardware_flops;
    double bubble;                   /* of all ranks' time, as a fraction */
    const char *limit;               /* what limits the step most: a part's name */
} hd_sim_result;

const char *hd_sim_part_name(hd_sim_part p); /* "gemm", "memory-bound", "tensor-parallel", "pipeline-transfer", "bubble", "data-parallel", "idle" */
const char *hd_sim_kind_name(hd_sim_kind k); /* "parameters", ... */

/* programs[n]: one of each stage, rank numbering as the executor's. HD_EINVAL where the cluster has fewer devices than ranks. A rank that needs more memory
 * than its device has is no error here (hd_sim_check_memory). Free the result with hd_sim_result_free. */
int hd_simulate(const hd_program *const *programs, int n, const hd_cluster *c, const hd_sim_options *o, hd_sim_result *out, hd_error *err);
void hd_sim_result_free(hd_sim_result *r);

/* ---- stages by themselves: for planners, which put estimates together from them ---- */

/* One call of a segment on its stage's first rank. */
typedef struct hd_sim_segment {
    hd_segment_kind kind;
    int chunk;
    double seconds;      /* of computing, and of collectives that the rank does or waits for itself */
    double moving;       /* of that, collectives */
    double beside;       /* of transfers beside computing, in each call */
    double beside_last;  /* of those that are done in the last micro-batch only */
    int64_t sent;        /* bytes to other stages */
} hd_sim_segment;

typedef struct hd_sim_stage {
    hd_sim_segment *segment; int n; /* [n]; owned */
    hd_memory memory;
    int64_t saved;       /* bytes that each micro-batch under way keeps (a program of several micro-batches, GPipe: tells them from what is held) */
    int64_t held;        /* what is made once a step and kept: copies of parameters in another type */
    int64_t rest;        /* of the arena beyond that and gradients */
} hd_sim_stage;

/* What one call of every segment of every stage takes: out[n], to be freed with hd_sim_stages_free. `world`: ranks of the job that the stages stand for (its
 * alike groups share ports); each stage's groups lie as if it began on the cluster's first device. */
int hd_sim_stages(const hd_program *const *programs, int n, const hd_cluster *c, int world, hd_sim_stage *out, hd_error *err);
void hd_sim_stages_free(hd_sim_stage *stages, int n);

/* HD_EMEMCAP and one line naming the rank, what kind of memory takes most, by how much it is exceeded, and what would help. */
int hd_sim_check_memory(const hd_sim_result *r, hd_error *err);

#endif
