/* exec.h: the executor: runs a Program's calls on a team of threads, over a Store and an arena of its own.
 *
 * Invariants: everything is resolved (kernels, operands, barriers) in hd_exec_new; after the first call of each segment nothing is allocated.
 * Results are bitwise the same for any number of threads. One executor runs one call at a time; several may share a Store and a team as long
 * as they take turns. */
#ifndef HD_EXEC_EXEC_H
#define HD_EXEC_EXEC_H

#include "base/trace.h"
#include "exec/backend.h"
#include "exec/store.h"
#include "comm/comm.h"

typedef struct hd_exec hd_exec;

/* Which rank of a program's mesh an executor is, and how it reaches the others. NULL where a rank is wanted: one rank, program->mesh.n == 0. */
typedef struct hd_rank {
    int rank;      /* in the mesh, the pipeline's axis included */
    hd_comm *comm; /* NULL: nobody to talk to (the null back end needs none) */
} hd_rank;

/* ---- life cycle ---- */

/* program, store, backend and team must outlive it. The team may be smaller than program->threads, not larger. NULL on failure. Packed
 * constants that the store has not got are made from the plain ones here. */
hd_exec *hd_exec_new(const hd_program *program, hd_store *store, const hd_backend *backend, hd_team *team, hd_error *err);
/* The same with the arena of `host` (which must outlive it; NULL: none) where that is large enough: what one of them holds between its steps, inputs and
 * outputs too, is lost when the other runs. */
hd_exec *hd_exec_new_sharing(const hd_program *program, hd_store *store, const hd_backend *backend, hd_team *team, hd_exec *host, hd_error *err);
/* The same as one rank of many (rank NULL: the only one; host may be NULL). */
hd_exec *hd_exec_new_rank(const hd_program *program, hd_store *store, const hd_backend *backend, hd_team *team, hd_exec *host, const hd_rank *rank, hd_error *err);
const hd_rank *hd_exec_rank(const hd_exec *e); /* NULL: the only one */
void hd_exec_free(hd_exec *e);
const hd_program *hd_exec_program(const hd_exec *e);

/* ---- data in and out ---- */

/* The tensor of an input (to fill, at the symbols' maxima: the leading rows are what a smaller binding uses), or of an output, by name; or of any
 * buffer by path (its contents are of use only while it is live: outputs, inputs and store tensors always). HD_EINVAL if there is none. */
int hd_exec_input(hd_exec *e, const char *name, hd_tensor *out, hd_error *err);
int hd_exec_output(hd_exec *e, const char *name, hd_tensor *out, hd_error *err); /* at the bindings of the last call */

/* Copies the whole of an input (row-major, the program's dtype) in: this rank's piece of it. Call it before the call that reads it, or in hooks.before,
 * where it goes to the copy of that call's micro-batch. Nothing happens if the program has no such input. */
int hd_exec_put(hd_exec *e, const char *name, const void *whole, hd_error *err);

/* ---- running ---- */

/* Runs one call. HD_EINVAL for a binding out of range, HD_EINTR after hd_exec_abort. */
int hd_exec_call(hd_exec *e, const hd_call *call, hd_error *err);

/* What the caller does around each call of a step; both may be NULL. Non-zero returns end the step with that code. */
typedef struct hd_exec_hooks {
    void *arg;
    /* Fills inputs, and may set call->binding. Called before every call; a micro-batch's inputs belong before HD_SEGMENT_FORWARD, those of the
     * step before the first call (or before the step). Inputs are those of the whole micro-batch, filled with slice 0 if there are slices. */
    int (*before)(void *arg, hd_exec *e, hd_segment_kind kind, hd_call *call, hd_error *err);
    int (*after)(void *arg, hd_exec *e, hd_segment_kind kind, const hd_call *call, hd_error *err);
} hd_exec_hooks;

/* The whole schedule once; hooks may be NULL. */
int hd_exec_step(hd_exec *e, const hd_exec_hooks *hooks, hd_error *err);

/* Makes the running call, or the next, stop at its next barrier with HD_EINTR; safe from other threads and signal handlers. */
void hd_exec_abort(hd_exec *e);

/* ---- looking inside ---- */

/* Runs the schedule once more, instruction by instruction, and writes the path of the first input, parameter, state or value that holds a NaN or
 * infinity to `path` ("" if none does). States whose new value nothing else reads are left alone: parameters do not move. */
int hd_exec_find_nonfinite(hd_exec *e, const hd_exec_hooks *hooks, char *path, size_t path_size, hd_error *err);

/* Keeps what happens from the next call on, of so many steps (0 switches tracing off and forgets what was kept). Memory is taken here; while steps run nothing
 * is allocated, and each instruction costs two looks at the clock of member 0. Without tracing it costs nothing. */
int hd_exec_trace(hd_exec *e, int steps, hd_error *err);
bool hd_exec_trace_full(const hd_exec *e);         /* all those steps have been */
double hd_exec_trace_begin(const hd_exec *e);      /* hd_time at the first of them; 0: none yet */
/* Appends what was kept to t as this rank's events (base/trace.h), with `zero` (of hd_time) as time 0, and forgets it. Names are the program's. Raises t's steps
 * and seconds to those of this rank. */
int hd_exec_trace_take(hd_exec *e, double zero, hd_trace *t, hd_error *err);

/* Sums time by op from now on (also switched on by HEDDLE_PROFILE=1, which prints the table on stderr when the executor is freed).
 * While on, every instruction ends in a barrier. */
int hd_exec_profile(hd_exec *e, bool on, hd_error *err);
void hd_exec_profile_print(const hd_exec *e, hd_str *out); /* op, calls, seconds, share, GFLOP/s, GB/s; most time first */

int64_t hd_exec_arena_bytes(const hd_exec *e); /* of its own */

#endif
