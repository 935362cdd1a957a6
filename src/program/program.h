/* program.h: the Program: what one rank does, as segments of instructions over buffers, and a schedule of calls to them.
 *
 * Invariants (checked by hd_program_verify):
 *  - Read-only after hd_lower or hd_program_parse: executor and simulator keep their state beside it.
 *  - One buffer per value. A buffer with view_of >= 0 has no memory of its own: it is the memory of that buffer (a root, never a view itself),
 *    from its first byte. Results computed in place, reshapes and accumulated contributions are such views.
 *  - CONSTANT and STATE roots live in the Store and are bound by path, except those with `data`, which the Program carries itself.
 *    All other roots lie in the Program's arena at offset .. offset + bytes; two may overlap only when they are never live together.
 *  - In every order of calls that the schedule gives, a buffer is written before it is read, and nothing it shares memory with is written between.
 *  - Until somebody waits for the token of a COMM of stream 1, nobody reads or writes its result or writes to its operand; a token may come in a later
 *    segment, and all have come at the end of a step.
 *  - Shapes, bytes and offsets are at the symbols' maxima. */
#ifndef HD_PROGRAM_PROGRAM_H
#define HD_PROGRAM_PROGRAM_H

#include "base/trace.h"
#include "graph/op.h"
#include "kernels/attrs.h"
#include "plan/plan.h"

#define HD_MAX_SYMBOLS 8   /* as hd_graph.symbols */
#define HD_MAX_ATTRS 1024  /* bytes of any op's parameter struct */
#define HD_MAX_LIST 256    /* transfers of one COMM */
#define HD_MAX_WAITS (HD_MAX_LIST + 16) /* of one instruction */

/* ---- the data ---- */

typedef enum hd_buffer_class {
    HD_BUFFER_CONSTANT, /* never written by this program */
    HD_BUFFER_STATE,    /* outlives a step */
    HD_BUFFER_SAVED,    /* made in one segment, read in a later one */
    HD_BUFFER_SCRATCH,  /* within one segment */
    HD_BUFFER_INPUT,    /* filled by the caller before a call */
    HD_BUFFER_OUTPUT,   /* read by the caller after a call; memory of its own for the whole step */
    HD_BUFFER_CLASS_COUNT
} hd_buffer_class;

/* What memory is spent on, for people. */
typedef enum hd_role {
    HD_ROLE_PARAMETER, HD_ROLE_OPTIMIZER /* state read only by the update */, HD_ROLE_STATE /* other state */, HD_ROLE_CONSTANT,
    HD_ROLE_GRADIENT /* of a parameter, over the whole step */, HD_ROLE_ACTIVATION /* kept for a later segment */, HD_ROLE_SCRATCH,
    HD_ROLE_WORKSPACE, HD_ROLE_INPUT, HD_ROLE_OUTPUT,
    HD_ROLE_COUNT
} hd_role;

typedef enum hd_tier { HD_TIER_DEVICE, HD_TIER_HOST, HD_TIER_DISK, HD_TIER_COUNT } hd_tier;

typedef struct hd_buffer {
    const char *path;
    hd_type type;         /* of the largest piece, that of coordinate 0 */
    hd_shape whole;       /* of all ranks' pieces together; meaningless where layout is NULL */
    const hd_layout *layout; /* over the program's mesh; NULL: whole on every rank */
    hd_format format;
    hd_buffer_class class;
    hd_role role;
    hd_tier tier;
    hd_time_layout micro; /* INPUT: HD_TIME_REPLICATE is filled once per step, HD_TIME_SPLIT before every forward call */
    int arena;            /* number of the arena; 0: the only one so far */
    int copies;           /* 1; more when several micro-batches are under way: a CALL uses copy micro % copies, at offset + that times bytes */
    int view_of;          /* the root whose memory this is, or -1 */
    int64_t offset;       /* bytes from the arena's start; 0 in the Store */
    int64_t bytes;        /* of one copy */
    const void *data;     /* CONSTANT: elements that the Program carries; else NULL */
} hd_buffer;

typedef enum hd_opcode {
    HD_KERNEL, /* out... = op(in...) */
    HD_VIEW,   /* out[0] names the contents of in[0] anew, same memory: nothing to do at run time */
    HD_ZERO,   /* out[0] = 0 */
    HD_COPY,   /* out[0] = in[0], as bytes */
    HD_COMM,   /* out[0] = op(in[0]) between ranks: op->is_comm; a list (reductions): out[k] = op(in[k]) for every k, as one transfer */
    HD_WAIT,   /* nothing but its waits */
    HD_OPCODE_COUNT
} hd_opcode;

typedef enum hd_accumulate {
    HD_ACCUMULATE_NEVER,  /* overwrite */
    HD_ACCUMULATE_LATER,  /* overwrite in micro-batch 0, add from then on */
    HD_ACCUMULATE_ALWAYS, /* add */
} hd_accumulate;

typedef struct hd_instr {
    hd_opcode opcode;
    const hd_op *op;     /* KERNEL, VIEW; NULL for others */
    const void *attrs;   /* [op->attrs_size] or NULL; of the whole op: what a rank uses follows from its splits (hd_op_localise) */
    const hd_loop_split *splits; int n_splits;
    const char *path;    /* of the node */
    int n_in, n_out;
    const int *in, *out; /* buffer indices; -1: an absent operand, a result nobody reads */
    int workspace;       /* buffer index or -1 */
    hd_accumulate accumulate;
    bool last;           /* COMM of stream 1: done only in the last micro-batch of a step */
    int stream;          /* 1: a COMM that is only started here; 0: all others */
    int n_waits;
    const int *waits;    /* tokens that must have come before it; one that nobody has started since it last came is there already */
    int signal;          /* of stream 1: the token that comes when the transfer has ended, no other instruction's; else -1 */
} hd_instr;

typedef enum hd_segment_kind {
    HD_SEGMENT_PREPARE,  /* once per step, before the first micro-batch */
    HD_SEGMENT_FORWARD, HD_SEGMENT_BACKWARD, /* per micro-batch */
    HD_SEGMENT_WEIGHT,   /* per micro-batch: gradients of weights, where the schedule separates them (zero bubble) */
    HD_SEGMENT_UPDATE,   /* once per step, after the last */
    HD_SEGMENT_KINDS
} hd_segment_kind;

typedef struct hd_segment {
    hd_segment_kind kind;
    int chunk;           /* of the stage's own chunks, per micro-batch; slice s of S: chunk * S + s; 0 for prepare and update */
    int n_instrs;
    const hd_instr *instrs;
} hd_segment;

typedef struct hd_call {
    int segment;                     /* index into hd_program.segments */
    int micro, slice;
    int64_t binding[HD_MAX_SYMBOLS]; /* of each symbol; negative: its maximum */
} hd_call;

typedef struct hd_port { const char *name; int buffer; } hd_port; /* a named output */

typedef struct hd_program {
    hd_arena memory; /* owns everything below */
    int threads;     /* of the team that workspaces were sized for */
    hd_mesh mesh;    /* n = 0: one rank. Peers, shapes and attributes of a rank follow from its coordinates (hd_buffer_piece, hd_instr_attrs): of the rank's
                      * number in this mesh, which is hd_program_place of its number in the job */
    int stage, stages; /* which part of the pipeline this is; 0, 1 without one */
    hd_stages meshes; /* stages of different meshes: all of them, `mesh` being that of this stage; n = 0: all are of `mesh` */
    hd_symbol symbols[HD_MAX_SYMBOLS]; int n_symbols;
    hd_buffer *buffers; int n_buffers;
    hd_segment *segments; int n_segments;
    hd_call *calls; int n_calls; /* the schedule of one step */
    hd_port *outputs; int n_outputs;
    /* Segments repeat_first .. repeat_last may be called again and again once those before them have run: the micro-batches of a step, or the
     * forward calls of a program without backward, whose prepare is then needed only after the Store has changed. -1, -1: none. */
    int repeat_first, repeat_last;
    int64_t arena_bytes;
    int64_t arena_bound; /* most bytes that are live at once: no placement can do with less */
} hd_program;

/* ---- life cycle ---- */

/* What lowering must know of a back end; every hd_backend (exec/backend.h) begins with one. */
typedef struct hd_target hd_target;
struct hd_target {
    /* Bytes of workspace that op takes with these operands on a team of `threads`. */
    size_t (*workspace)(const hd_target *t, const hd_op *op, const hd_kernel_args *a, int threads);
    /* Bytes of operand `i` in HD_PACKED form if the kernel for these operands can take it so; 0: it cannot. NULL: never. */
    size_t (*packed_bytes)(const hd_target *t, const hd_op *op, const hd_kernel_args *a, int i);
};

/* Makes the Program of a verified graph: order, accumulation, views and in-place results, workspaces, placement. plan is completed first
 * (hd_plan_complete). The graph is not needed afterwards. Caller frees *out. */
int hd_lower(const hd_graph *g, const hd_plan *plan, const hd_target *target, hd_program **out, hd_error *err);
void hd_program_free(hd_program *p);

/* ---- text ---- */

/* The text of a program; hd_program_parse gives back one with exactly the same text. */
void hd_program_dump(const hd_program *p, hd_str *out);
/* Reads such text (n bytes; name is used in messages: "NAME:LINE: ..."). The result has been verified. */
int hd_program_parse(const char *text, size_t n, const char *name, hd_program **out, hd_error *err);
int hd_program_load(const char *path, hd_program **out, hd_error *err);

/* ---- walking: the one way in which executor, simulator and verifier go through a program ---- */

typedef struct hd_call_iter { const hd_program *program; int next; } hd_call_iter;
hd_call_iter hd_program_calls(const hd_program *p);
bool hd_call_next(hd_call_iter *it, hd_call *out); /* false at the end of the step */

typedef struct hd_instr_iter { const hd_segment *segment; int next; } hd_instr_iter;
hd_instr_iter hd_segment_instrs(const hd_program *p, int segment);
const hd_instr *hd_instr_next(hd_instr_iter *it); /* NULL at the end */

/* ---- questions ---- */

const char *hd_segment_name(hd_segment_kind k);   /* "prepare", ... */
const char *hd_role_name(hd_role r);              /* "parameters", ... */
const char *hd_buffer_class_name(hd_buffer_class c);
int hd_program_segment(const hd_program *p, hd_segment_kind k); /* index of the first of this kind, or -1: no such segment */
int hd_program_segment_of(const hd_program *p, hd_segment_kind k, int chunk);
hd_call hd_program_call(const hd_program *p, int segment);      /* micro 0, symbols at their maxima */
int hd_program_find(const hd_program *p, const char *path);     /* buffer with that path, or -1 */
int hd_program_input(const hd_program *p, const char *path);    /* INPUT buffer, or -1 */
int hd_program_output(const hd_program *p, const char *name);   /* buffer of a named output, or -1 */
static inline int hd_buffer_root(const hd_program *p, int b) { return p->buffers[b].view_of >= 0 ? p->buffers[b].view_of : b; }
bool hd_buffer_in_arena(const hd_program *p, int b);            /* b is a root with memory in the arena */

/* A buffer as a kernel of coordinate 0 would see it with these bindings (negative or NULL: maxima); data is NULL. */
hd_tensor hd_buffer_tensor(const hd_program *p, int b, const int64_t *binding);
int hd_program_tokens(const hd_program *p);          /* how many there may be: one more than the greatest */
int hd_program_micro_batches(const hd_program *p);   /* of a step: one more than the greatest micro of its calls */
/* Whether call c does instruction x: those marked `last` only in the last micro-batch. */
static inline bool hd_instr_runs(const hd_instr *x, int micro, int micro_batches) { return !x->last || micro == micro_batches - 1; }

/* The same as rank sees it. */
hd_tensor hd_buffer_piece(const hd_program *p, int b, int rank, const int64_t *binding);
/* The parameters of instruction x for rank: written to attrs (op->attrs_size bytes). */
void hd_instr_attrs(const hd_program *p, const hd_instr *x, int rank, void *attrs);

static inline bool hd_instr_is_list(const hd_instr *x) { return x->opcode == HD_COMM && x->n_in > 1; }
/* Transfer k of COMM x alone. Its parameters are x's, but for a list whose `dim` is -1: each cuts the dimension in which the layouts of operand and result
 * differ; they are written to *own, which must last as long. */
hd_instr hd_instr_member(const hd_program *p, const hd_instr *x, int k, hd_comm_attrs *own);
/* How a trace (base/trace.h) shows instruction x: its kind and the name of its op. */
hd_event_kind hd_instr_event_kind(const hd_program *p, const hd_instr *x);
const char *hd_instr_name(const hd_instr *x); /* "contract", ...; "zero", "copy", "wait" */
/* How many events the calls of one step make at most. */
int64_t hd_program_events(const hd_program *p);

/* Adds to t what is live on `rank`, whose program p is, over time: a sample where it changes, from the calls and events that t holds of it (by_call: the most of
 * each of its calls). A micro-batch's values count from its own forward call to its own backward call, the Store and the caller's inputs and outputs always. */
int hd_program_trace_memory(const hd_program *p, int rank, hd_trace *t, hd_error *err);

/* What data is set to where an operand is there but its memory is not known yet: tells it from an absent one. Never read through. */
#define HD_TENSOR_PRESENT ((void *)64)

/* Whether the loop's calls come micro-batch by micro-batch, each going through its segments in their order. If not, what passes from one call to another
 * is kept through the whole loop. */
bool hd_program_in_order(const hd_program *p);

/* From the first to the last instruction (numbered through all segments, in order) between which a root must keep its contents; empty: first > last. */
typedef struct hd_life { int first, last; } hd_life;
void hd_program_lives(const hd_program *p, hd_life *lives); /* [n_buffers]; only roots in the arena get one */

/* Bytes by role: what lies in the Store, and what is live in the arena at the moment when most is. */
typedef struct hd_memory {
    int64_t role[HD_ROLE_COUNT];
    int64_t store, arena; /* arena: as placed; at least the sum of its roles at the peak */
    int64_t total;        /* store + arena */
} hd_memory;
int hd_program_memory(const hd_program *p, hd_memory *out, hd_error *err);
void hd_memory_print(const hd_memory *m, hd_str *out); /* a small table */

/* The invariants above. 0, or the first fault found as HD_EFORMAT. */
int hd_program_verify(const hd_program *p, hd_error *err);

/* ---- many ranks (world.c) ---- */

int hd_program_ranks(const hd_program *p);           /* of the job: of all stages */
int hd_program_first_rank(const hd_program *p);      /* the first in the job whose program this is */
int hd_program_stage_of(const hd_program *p, int rank); /* the stage that a rank of the job is in; p: any stage's program */
bool hd_program_leads_stage(const hd_program *p, int rank); /* it is the first of its stage */
int hd_program_place(const hd_program *p, int rank); /* number in p->mesh of a rank of the job: the same unless stages are of different meshes */

/* A send or recv between stages of different meshes: both ends. */
typedef struct hd_crossing {
    hd_layout layout[2]; /* of the sender, of the receiver */
    hd_end sender, receiver;
    int from, to;        /* first rank in the job of their stages */
    hd_shape whole;
} hd_crossing;
int hd_program_crossing(const hd_program *p, const hd_instr *x, hd_crossing *out, hd_error *err); /* *out must stay where it is. HD_EFORMAT */

/* Whether the stages of a pipeline get to the end of a step together: each stage's calls are walked in order, a recv waits until its send has
 * been started; a send starts at once and is waited for, until its recv has taken it, before the next call of its segment, around prepare and update and at the
 * step's end, as in the executor (no buffering beyond that); a collective over the pipeline's axis waits until all stages are at the same one. One rank stands for each stage: ranks of a stage do the same in the same order.
 * HD_EFORMAT says who waits for what, or which two ends don't agree in type. */
int hd_program_verify_world(const hd_program *const *stages, int n, hd_error *err);

/* What a rank (the one at coordinate 0) sends in one step, by kind and axes. */
typedef struct hd_comm_count {
    const char *op;   /* "all_reduce", ...; those that send nothing (shard, ...) are left out */
    char axes[64];    /* "dp.tp"; of send and recv "pp", and of sums over stages of different meshes, which all ranks of the job are in */
    int64_t transfers;
    int64_t elements; /* of the larger side: what all_gather makes, reduce_scatter takes */
    int64_t bytes;    /* sent by this rank: (n - 1) / n of the larger side in a group of n, twice that for all_reduce, all of it for permute; of a send between
                       * stages of different meshes its share of the rows; received for recv */
} hd_comm_count;

/* Fills out[most]; returns how many kinds there are (all are counted, at most `most` are written). */
int hd_program_count(const hd_program *p, hd_comm_count *out, int most);

/* ---- placement (place.c), by itself for tests and the planner ---- */

typedef struct hd_block {
    int64_t bytes;
    int first, last; /* live from .. to, inclusive */
    int64_t offset;  /* result */
} hd_block;

/* Gives every block an offset so that no two that are live together overlap; 64-byte aligned, 4096 from 1 MiB on. *size: bytes of the arena,
 * *bound: most (aligned) bytes live at once. 0 or HD_ENOMEM. */
int hd_place(hd_block *blocks, int n, int64_t *size, int64_t *bound, hd_error *err);

#endif
