/* exec_int.h: the executor's state, shared by exec.c (resolving), run.c (running) and look.c (looking inside). */
#ifndef HD_EXEC_EXEC_INT_H
#define HD_EXEC_EXEC_INT_H

#include <stdatomic.h>

#include "exec/exec.h"

/* One rank's message of a send or recv: `count` elements from `offset` on of its operand or result. */
typedef struct hd_message {
    hd_transfer transfer;
    hd_comm_group *group;
    int64_t offset; /* bytes */
    hd_ticket ticket;
    bool pending;   /* has been started */
} hd_message;

/* One instruction, resolved. VIEWs have none. */
typedef struct hd_step {
    const hd_instr *instr;
    int index;            /* in its segment */
    hd_kernel_args args;  /* in, out: tensors at the segment's bindings; tid and accumulate are set for each run */
    hd_kernel kernel;     /* KERNEL only */
    int64_t workspace_bytes;
    bool sync;            /* the team meets before it: it conflicts with something since the last meeting */
    bool solo;            /* so small that member 0 computes it alone: a meeting would cost more than the other members save */
    bool bounded;         /* an operand's or result's extent follows a symbol */
    bool updates_only;    /* writes nothing but states that nothing else reads: left out when looking for NaNs */
    bool copied;          /* an operand's or result's memory follows the micro-batch */
    /* COMM only */
    bool local;           /* nothing is sent: the team does it */
    int member, members;  /* this rank's index in its group, and how many there are */
    hd_transfer transfer; /* in and out are set for each run; so are those of its parts, where it is a list */
    hd_comm_group *group; /* NULL: nobody to talk to */
    hd_message *messages; int n_messages; /* send, recv: with each rank of the other stage that has or wants a part */
    /* while profiling; by member 0 */
    double seconds, flops, bytes;
    int64_t runs;
} hd_step;

typedef struct hd_steps {
    hd_step *steps;
    int n;
    int64_t binding[HD_MAX_SYMBOLS]; /* that the tensors are at */
    int micro;                       /* likewise */
} hd_steps;

/* A transfer beside computing. By member 0. */
typedef struct hd_token { hd_ticket ticket; hd_step *step; bool pending; int64_t note; } hd_token; /* note: of the transfer in the trace, or -1 */

/* ---- what a trace keeps, by member 0 (trace.c) ---- */

typedef struct hd_note { int call, instr; bool wait; double start, end; } hd_note; /* one event. wait: for tokens */
typedef struct hd_call_note { int segment, micro, slice; int64_t binding[HD_MAX_SYMBOLS]; } hd_call_note;

typedef struct hd_notes {
    hd_note *events; int64_t n, room;
    hd_call_note *calls; int n_calls, calls_room;
    int steps, most_steps; /* those that have ended; those to keep */
    double begin, end;     /* of the first step and the last */
} hd_notes;

struct hd_exec {
    const hd_program *program;
    hd_store *store;
    const hd_backend *backend;
    hd_team *team;
    hd_team *alone;     /* of one member: for solo steps, whose kernels must not wait for the others */
    int threads;
    hd_arena memory;
    void *arena;        /* program->arena_bytes */
    void *own_arena;    /* the same, or NULL when it is another executor's */
    void **data;        /* [n_buffers] where each buffer's memory is: its first copy */
    hd_rank rank;
    int place;          /* of the rank in the program's mesh */
    bool ranked;        /* one of many */
    hd_steps *segments; /* [n_segments] */
    hd_token *tokens; int n_tokens;
    int micro_batches;  /* of a step */
    int64_t binding[HD_MAX_SYMBOLS]; /* of the last call */

    /* the running call */
    int segment, micro;
    int only;           /* >= 0: run just this step */
    _Atomic bool abort;
    int comm_rc; hd_error comm_err; /* of the first transfer that failed; by member 0 */
    bool stop[2], stopped; /* member 0 decides before a meeting, all read behind it; two, so that none is written while another still reads */

    hd_notes *notes;    /* NULL: no trace is kept */
    bool profiling, print_profile;
};

/* Buffer b as this rank sees it in the running call's micro-batch. */
hd_tensor hd_exec_tensor(const hd_exec *e, int b, const int64_t *binding);
void *hd_exec_copy(const hd_exec *e, int b, int micro); /* where b is in that micro-batch */

/* transfer.c */
int hd_exec_resolve_transfer(hd_exec *e, hd_step *s, hd_error *err);   /* its tensors are there */
void hd_exec_rebind_transfer(hd_step *s);                              /* its tensors are at new bindings */
void hd_exec_transfer(hd_exec *e, hd_step *s);                         /* member 0 */
void hd_exec_move_local(const hd_exec *e, const hd_step *s, int tid);  /* what sends nothing (shard, ...): the team, or member 0 alone */
bool hd_exec_wait_tokens(hd_exec *e, const hd_instr *x);               /* member 0: those that x waits for; whether there were any */
int hd_exec_finish_tokens(hd_exec *e, hd_error *err);                 /* all that are under way */
int hd_exec_finish_sends(hd_exec *e, int segment, hd_error *err);
int hd_exec_finish_all_sends(hd_exec *e, hd_error *err);

/* trace.c; member 0, while e->notes is there */
void hd_exec_note_call(hd_exec *e, const hd_call *c);
int64_t hd_exec_note(hd_exec *e, int instr, bool wait, double start, double end); /* where it stands, or -1: no more are kept */
void hd_exec_note_step(hd_exec *e, double begin, double end);
void hd_exec_free_notes(hd_exec *e);

void hd_exec_run_team(hd_exec *e);                                  /* the running call, by the team */
hd_cost hd_step_cost(const hd_step *s);                             /* at the bindings that its tensors are at */
bool hd_step_choose_solo(const hd_exec *e, hd_step *s);             /* sets s->solo; whether it changed */
int hd_exec_find_meetings(hd_exec *e, hd_steps *segment, hd_error *err); /* where the team meets: sets sync, from solo and what each step touches */
int hd_exec_bind(hd_exec *e, const hd_call *call, hd_error *err);  /* checks the call, brings tensors to its bindings, makes it the running call */
void hd_exec_count_cost(hd_step *s, double seconds);                /* adds one run to the profile */

#endif
