/* planner.h: Graph x Cluster x limits -> Plan: what a planner is given, and what it gives.
 *
 * A planner's space are the forms of --parallel (plan/parallel.h), with layouts of its own where it found some. It knows no model files and lowers nothing
 * itself: the job brings a function that does. What a form takes is said by the simulator alone (hd_planner_try); everything quicker is an estimate, which may
 * only decide what is looked at first and what cannot win. Equal jobs give equal answers, whatever the number of threads, unless `seconds` cut the search off. */
#ifndef HD_PLANNERS_PLANNER_H
#define HD_PLANNERS_PLANNER_H

#include "cluster/cluster.h"
#include "plan/parallel.h"
#include "program/programs.h"
#include "sim/sim.h"

/* The network, as planners see it. Functions may be called from several threads at once. */
typedef struct hd_planner_network {
    const void *context;
    /* The Programs of all stages of a form that divides a step's samples into so many micro-batches; layers: of a language model's only the first so many (0: all
     * of them). HD_EINVAL and one line where the network cannot be split so. */
    int (*lower)(const void *context, const hd_parallel *form, int64_t micro_batches, int layers, hd_programs *out, hd_error *err);
    /* The training graph of one of so many micro-batches, differentiated and with its update, not cut over anything. The caller frees it. NULL and err. */
    hd_graph *(*graph)(const void *context, int64_t micro_batches, int layers, hd_error *err);
    int64_t layers, heads, kv_heads, sequence; /* of a language model; 0: another network */
    int64_t samples;     /* of a step: sequences of a language model */
    bool whole_batch;    /* an op mixes samples (batch norm): the number of micro-batches is part of the model's definition */
    bool recomputes;     /* recompute=... is possible */
    bool tables;         /* tables=... is: lookups read embedding tables, of a network that is no language model */
} hd_planner_network;

typedef struct hd_planner_job {
    hd_planner_network network;
    const hd_cluster *cluster;
    int ranks;               /* devices that may be used; 0: all of the cluster's */
    hd_parallel pinned;      /* what is `given` in it stays so */
    int64_t micro_batches;   /* 0: searched */
    uint32_t forbidden;      /* bit hd_parallel_key: this key has its default, except where pinned gives it */
    const hd_pin *pins; int n_pins; /* layouts of named parameters, kept to whatever else is chosen */
    int64_t memory;          /* bytes of a device at most; 0: as the cluster says */
    int64_t nodes;           /* forms that are lowered and simulated whole, at most; 0: the planner's own number. Deterministic */
    double seconds;          /* stop then, with the best so far; 0: no limit. Not deterministic */
    int threads;             /* that search; 0: one per core of this machine */
    bool quiet;              /* no progress on a terminal */
} hd_planner_job;

/* One form, tried. */
typedef struct hd_plan_found {
    hd_parallel form;        /* its pins and cuts point to those below */
    hd_pin *pins;            /* owned; NULL: the form's own layouts */
    char (*cuts)[64];        /* owned; NULL: the form's own */
    int64_t micro_batches;
    double estimate, step;   /* seconds of a step: before it was lowered whole (0: none was made); by the simulator */
    int64_t peak, capacity;  /* bytes of the rank that has least left */
    bool fits;
    hd_sim_part most;        /* of its step */
    double part[HD_SIM_PARTS]; /* as hd_sim_result */
    const char *limit;       /* hd_sim_result.limit */
} hd_plan_found;

/* For --explain: candidates by dimension ("zero", "recompute", ...) or bound. */
typedef struct hd_planner_count { char what[96]; int64_t considered, cut; } hd_planner_count;

enum { HD_PLANNER_BEST = 8, HD_PLANNER_COUNTS = 48 };

typedef struct hd_planner_answer {
    hd_plan_found best[HD_PLANNER_BEST]; int n; /* tried and fitting, quickest first; 0: nothing fits */
    hd_planner_count count[HD_PLANNER_COUNTS]; int n_counts;
    int64_t considered, estimated, tried; /* forms: in the space, not cut by a bound, lowered whole and simulated */
    bool cut_off;            /* by nodes or seconds before the bounds said that nothing better is left */
    double seconds;          /* that the search took */
    char why[512];           /* n == 0: the tightest constraint and the cheapest relaxation, one line */
} hd_planner_answer;

typedef struct hd_planner {
    const char *name, *summary;
    /* 0 also where nothing fits (n == 0, why filled). Other errors: a job that contradicts itself, or no memory. */
    int (*find)(const hd_planner_job *job, hd_planner_answer *out, hd_error *err);
} hd_planner;

extern const hd_planner hd_planner_search, hd_planner_exhaustive, hd_planner_megatron, hd_planner_zero, hd_planner_data_parallel, hd_planner_flexflow;
const hd_planner *hd_planner_find(const char *name); /* NULL: there is none */
const char *hd_planner_name(int i);                  /* NULL past the last; the first is the one that is used unless another is named */

void hd_planner_answer_free(hd_planner_answer *a);

/* ---- for planners ---- */

int hd_planner_ranks(const hd_planner_job *job);
/* Bytes of a device that a rank may use, of `ranks`: ranks on CPUs share their node's. */
int64_t hd_planner_capacity(const hd_planner_job *job, int ranks);
/* Whether the form keeps to what is pinned and forbidden. */
bool hd_planner_allows(const hd_planner_job *job, const hd_parallel *form, int64_t micro_batches);
/* Lowers the form whole and simulates a step; copies its pins and cuts. HD_EINVAL where the network cannot be split so; that it doesn't fit is no error. */
int hd_planner_try(const hd_planner_job *job, const hd_parallel *form, int64_t micro_batches, hd_plan_found *out, hd_error *err);
void hd_plan_found_free(hd_plan_found *f);
/* Takes a tried form over into the answer's list, in its place (by step, then by text), or frees it. */
void hd_planner_keep(hd_planner_answer *a, hd_plan_found *f);

#endif
