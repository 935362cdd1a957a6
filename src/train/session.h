/* session.h: graphs made ready to run: passes, lowering, a store that they share, and an executor each.
 *
 * A session holds up to two programs over one Store: "train" (one whole step) and "eval" (forward only). They take turns on one team. With a plan that has
 * a mesh it is one rank's: the graphs are cut for that rank, and every rank of the job makes a session of the same graphs. */
#ifndef HD_TRAIN_SESSION_H
#define HD_TRAIN_SESSION_H

#include "exec/exec.h"
#include "passes/passes.h"
#include "plan/parallel.h"
#include "program/programs.h"
#include "train/step.h"

typedef enum hd_role_of_program { HD_TRAIN_PROGRAM, HD_EVAL_PROGRAM, HD_SESSION_PROGRAMS } hd_role_of_program;

typedef struct hd_session_options {
    hd_step_options step;
    hd_plan plan;                /* micro-batches, precision, threads, back end; the mesh and what goes with it */
    hd_parallel parallel;        /* the by-hand form, written out over each graph into a plan of its own; dp 0: none, plan.mesh is used */
    int64_t sequence;            /* tokens in a sequence, for that; 0: a network that has none */
    hd_rank rank;                /* of plan.mesh; {0}: the only one */
    const hd_lora_options *lora; /* NULL: none */
    uint64_t seed;               /* of initial values */
    bool unfused;                /* neither fuses elementwise operations nor makes their results again in backward: for measuring what each value takes */
    bool share_arena;            /* evaluation works in the training program's arena: inputs and outputs of one are lost when the other runs */
    int64_t device_memory;       /* bytes of this rank's arena and store at most; 0: no limit */
    int64_t memory;              /* bytes that may be used at most; 0: what the machine has available */
} hd_session_options;

typedef struct hd_session {
    hd_graph *graph[HD_SESSION_PROGRAMS]; /* NULL where there is none; owned */
    hd_program *program[HD_SESSION_PROGRAMS];
    hd_exec *exec[HD_SESSION_PROGRAMS];   /* made by hd_session_start */
    hd_backend backend;
    hd_team *team;
    hd_store *store;
    hd_rank rank;
    hd_store *names;                      /* empty but for its list: the state of all stages; NULL with one rank */
    int64_t predicted_bytes;              /* peak of the process, with all of its ranks */
    int64_t rank_bytes;                   /* of them this rank's arena and store */
    double flops[HD_SESSION_PROGRAMS];    /* of one step; of one call */
} hd_session;

int hd_session_ranks(const hd_session_options *o); /* how many the plan is for; 1 also without a mesh */
bool hd_session_is_rank(const hd_session_options *o); /* whether the plan has a mesh */
/* Threads of a rank's team: as the plan says, else this machine's cores over the job's ranks on it. */
int hd_session_threads(const hd_session_options *o);

/* Takes over the forward graphs (with an output "loss"; either may be NULL), makes them whole, and lowers them. Nothing big is allocated yet.
 * On failure *s is empty, and the graphs are freed. */
int hd_session_init(hd_session *s, hd_graph *train, hd_graph *eval, const hd_session_options *o, hd_error *err);
void hd_session_free(hd_session *s);

/* Compares the predicted peak with what is available (or o->memory): HD_EMEMCAP, saying needed and available bytes, when it does not fit.
 * Then makes store and executors. */
int hd_session_start(hd_session *s, const hd_session_options *o, hd_error *err);

/* Merges adapters into the parameters they adapt, in the store. */
int hd_session_merge_lora(hd_session *s, const hd_session_options *o, hd_error *err);

/* ---- the programs of all stages, without weights, data or executors: for inspecting and simulating ---- */

/* Takes over the forward graph g, makes it whole and lowers each stage of it. On failure *p is empty, and g is freed. */
int hd_programs_make(hd_programs *p, hd_graph *g, bool train, const hd_session_options *o, hd_error *err);

/* Makes a forward graph what is cut over a mesh and lowered: precision, adapters, slices, backward and update. The error is g's own too. */
int hd_session_whole(hd_graph *g, bool train, const hd_session_options *o, hd_error *err);

/* Floating-point operations of every node of a graph. */
double hd_graph_flops(const hd_graph *g);

#endif
