/* sim_int.h: the simulator's state, shared by place.c (which ranks there are, who talks to whom), alike.c (which of them do the same), steps.c (what each
 * instruction takes) and run.c (going through the step).
 *
 *   sim -> actors: one for each class of alike ranks, with its program's instructions as steps that know what they take
 *       -> meetings: where actors do collectives together, an instance for each that is under way
 *       -> channels: where one actor sends to another, a message for each that is under way
 *
 * Times are seconds since the step began. All of it follows from maxima and sums, so the order in which actors are looked at makes no difference. */
#ifndef HD_SIM_SIM_INT_H
#define HD_SIM_SIM_INT_H

#include "sim/sim.h"

/* ---- what an instruction takes ---- */

typedef enum sim_verb { SIM_COMPUTE, SIM_COLLECTIVE, SIM_SEND, SIM_RECV, SIM_WAIT } sim_verb;

typedef struct sim_step {
    const hd_instr *instr;
    int index;                /* in its segment */
    sim_verb verb;
    hd_event_kind event;
    hd_sim_part part;         /* what its time counts to */
    double seconds;           /* of a transfer: once all are there */
    double flops, hardware;   /* of the model; all that is done */
    const hd_move_cost *move; /* NULL: none */
    int64_t bytes;            /* of a transfer: the larger side */
    bool across;              /* a collective over stages */
    int place;                /* meeting */
    int member;               /* of it */
    const int *channels; int n_channels;
} sim_step;

/* A segment at one binding of the symbols. */
typedef struct sim_variant {
    int segment;
    int64_t binding[HD_MAX_SYMBOLS];
    sim_step *steps; int n;
} sim_variant;

/* ---- under way ---- */

typedef struct sim_instance { /* of a meeting */
    int arrived, left;
    bool resolved, hurried, charged; /* hurried: somebody waited for it before it had ended; charged: later ones know what computing lost to it */
    double latest, seconds, begin, end;
} sim_instance;

typedef struct sim_meeting {
    int axes, n, *actor;          /* [n] ascending */
    int64_t *joined;        /* [n] how many each has begun */
    sim_instance *ring; size_t cap; /* those from `first` on; number k at k % cap, a power of two */
    int64_t first, last;
} sim_meeting;

typedef struct sim_message { /* of a channel */
    bool sent, wanted, resolved;
    int left;
    double sent_at, wanted_at, seconds, begin, end; /* seconds: the transfer's */
} sim_message;

typedef struct sim_channel {
    int sender, receiver, from, to, number;
    int64_t sent, received;
    sim_message *ring; size_t cap;
    int64_t first, last;
} sim_channel;

typedef struct sim_token { bool pending, waiting; int meeting; int64_t number, event; const sim_step *step; } sim_token; /* event: in the trace, or -1 */
typedef struct sim_pending { int channel, segment; int64_t instr, number; } sim_pending; /* one message of the actor's send `instr` */
typedef struct sim_queued { int meeting; int64_t number; } sim_queued;            /* a transfer beside computing */

typedef struct sim_actor {
    int rank, alike, stage;
    const hd_program *program;
    int micro_batches;
    sim_variant **variants; size_t n_variants, cap_variants;
    sim_token *tokens; int n_tokens;
    sim_pending *sends; size_t n_sends, cap_sends;
    sim_queued *queue; size_t n_queue, cap_queue, head; /* begun, in order; from head on not yet settled */

    hd_call_iter calls;
    hd_call call;
    const sim_variant *variant;
    int at;                  /* the next step of it */
    bool ready, done, in_call, moved; /* moved: its queue may go on */
    bool waiting, awaited, begun; /* of step `at`: stands before tokens, has them all, has been entered */
    int64_t number, n_sent;  /* of the instance that it stands at; sends so far */
    double since;            /* when it came there */
    double time;             /* up to where it has got */
    double beside;           /* when its last settled transfer beside computing ends */
    hd_sim_rank out;
} sim_actor;

/* ---- all of it ---- */

typedef struct sim_axes { int stage; char text[64]; int8_t axis[HD_MAX_AXES]; int n; int size; int *offset; /* [size] from the group's first rank */ bool across; } sim_axes; /* stage: whose mesh */
typedef struct sim_end { int rank; int64_t bytes; } sim_end; /* of a message: the other rank */

typedef struct sim {
    const hd_program *const *programs; int stages;
    const hd_cluster *cluster;
    const hd_sim_options *options;
    hd_error *err;
    hd_arena memory;
    int world, *first;       /* ranks; [stages + 1] the first of each stage */
    bool meshes;             /* stages are of different meshes */
    int teams;               /* ranks of a node that compute at once */
    bool buffered;           /* sends don't hold up the sender's next call */
    bool in_process;         /* all ranks are threads of one machine: transfers are done by those who wait for them */
    double offset;           /* of this step from the trace's begin */

    sim_axes *axes; size_t n_axes, cap_axes;
    int *class_of;           /* [world] the actor that stands for the rank */
    sim_actor *actors; int n_actors;
    sim_meeting *meetings; size_t n_meetings, cap_meetings;
    sim_channel *channels; size_t n_channels, cap_channels;
    int *ready; int n_ready; /* [n_actors] may get on */
    int *moved; int n_moved; /* [n_actors] */
} sim;

int sim_no_memory(sim *s);

/* place.c: the one place that knows how ranks are numbered over stages */
int sim_place_init(sim *s);
int sim_stage_of(const sim *s, int rank);
int sim_first_rank(const sim *s, int stage);
int sim_other_stage(const sim *s, const hd_instr *x);                /* of a send or receive */
int sim_ends(sim *s, const hd_program *p, const hd_instr *x, int rank, sim_end *list); /* its other ends: fills list[world], returns how many, or negative */
int sim_find_axes(sim *s, int stage, const char *text);              /* index, or negative */
int sim_group(const sim *s, int axes, int rank, int *ranks);         /* [size] of the job; returns how many */
bool sim_is_pipe(const hd_instr *x);
bool sim_is_collective(const hd_instr *x);                           /* something is sent to several */
hd_move sim_move_kind(const hd_instr *x);

/* profile.c */
int sim_teams(const hd_cluster *c, int world);                       /* ranks of a node that compute at once */

/* alike.c */
int sim_find_alike(sim *s);

/* steps.c */
const sim_variant *sim_variant_of(sim *s, sim_actor *a, const hd_call *call); /* NULL: out of memory */
void sim_kernel_cost(const sim *s, const hd_program *p, const hd_instr *x, int rank, const int64_t *binding, hd_kernel_cost *out);
double sim_collective_cost(sim *s, const hd_program *p, const hd_instr *x, const int *ranks, int n, int own, int64_t bytes, hd_move_cost *out);
double sim_copy_cost(const sim *s, const hd_program *p, const hd_instr *x, int rank, const int64_t *binding);
int64_t sim_transfer_bytes(const hd_program *p, const hd_instr *x, int rank, const int64_t *binding);

/* run.c */
int sim_run_step(sim *s);

#endif
