/* partition_int.h: what the files of the partitioner share.
 *
 *   partition.c  the walk over the nodes, pins, states and outputs
 *   strategy.c   which loops of a node are split over which axes: what is possible, and what it costs
 *   convert.c    from one layout to another: which collectives, what they cost, and the nodes for them
 *   expand.c     nodes that only split as several nodes; expand_norm.c those of batch norm
 *   ring.c       attention as one of them: keys and values go round
 *   meshes.c     stages of different meshes: what crosses from one to another, and all of them from one graph
 *
 * Nodes are taken in order. Each value has a list of the forms in which it is held: as its node left it, and as conversions made it. */
#ifndef HD_PASSES_PARTITION_INT_H
#define HD_PASSES_PARTITION_INT_H

#include "graph/op.h"
#include "passes/partition.h"

/* A value as it lies somewhere in the new graph. */
typedef struct hd_held {
    hd_layout layout;
    hd_value value;  /* in the graph; f32 where the value's own dtype is narrower and `layout` is (or was) Partial */
    int phase;       /* usable by nodes of this phase only; -1: by all */
    int chunk;       /* and of this chunk; -1: of all */
    bool gathered;   /* larger than what it was made of: another phase had better make it again than find it kept */
    struct hd_held *next;
} hd_held;

/* What is known of a value of the graph before it was partitioned. */
typedef struct hd_part_value {
    hd_held *held;
    hd_dtype dtype;   /* for its readers */
    hd_shape whole;
    bool used;        /* some node, output or state reads it */
    int readers;      /* nodes */
    bool weight;      /* made of parameters, states and constants alone */
    bool gradient;    /* leads into sums over micro-batches only, or is one: belongs to a parameter as far as traffic goes */
    bool has_target;  /* pinned, or what a state becomes: it ends in this layout */
    bool pinned;      /* every reader starts from that layout */
    hd_layout target;
    bool has_home;    /* a gradient, or an addend of one: once it is summed, it lies as the optimizer's state */
    hd_layout home;
    bool shared;      /* a gradient that another is added to */
    bool each;        /* ... that is reduced in every micro-batch */
} hd_part_value;

typedef struct hd_part {
    hd_graph *g;
    const hd_mesh *mesh;
    hd_part_value *value; /* [n_values] */
    size_t n_values;      /* of the graph before */
    struct hd_ring_block *ring; /* ring.c: what went round already */
    bool keep_gathered;   /* what is gathered of parameters stays for the whole step */
    const hd_graph *like; /* g is a stage: the whole graph on this mesh, which says how what is received is wanted; NULL: g is no stage */
    int axis[HD_MAX_AXES], n_axes; /* that cut values: more than one rank, not the pipeline's */
} hd_part;

/* ---- convert.c ---- */

#define HD_MAX_STEPS (4 * HD_MAX_AXES)

/* One collective. */
typedef struct hd_convert_step {
    const char *op;
    int8_t axes[HD_MAX_AXES];
    int n_axes, dim, to;
    bool max;
    hd_layout after;
} hd_convert_step;

/* The collectives from one layout to another, cheapest order; returns how many. */
int hd_part_steps(const hd_mesh *mesh, const hd_shape *whole, const hd_layout *from, const hd_layout *to, hd_convert_step *steps);
/* Bytes that a rank sends to bring v from one layout to another, weighted by what should not be moved over which axis. */
double hd_part_conversion_cost(const hd_part *p, hd_value v, const hd_layout *from, const hd_layout *to);
/* The same of what is brought to where it is to end; a result that is pinned has been thought about: moving it costs what it sends, over DATA axes too. */
double hd_part_pin_cost(const hd_part *p, hd_value v, const hd_layout *from, const hd_layout *to);
/* The same of a table's gradient's rows: over DATA axes the bytes of all micro-batches, for that is beside a sum once a step. */
double hd_part_rows_cost(const hd_part *p, hd_value v, const hd_layout *from, const hd_layout *to);
/* Weight of moving v over an axis: activations stay where they are over DATA axes, parameters over MODEL axes. */
double hd_part_weight(const hd_part *p, hd_value v, int axis);
/* Bytes of one piece of v under a layout. */
double hd_part_bytes(const hd_part *p, hd_value v, const hd_layout *layout);

/* Whether a form of v may be read by nodes of that phase and chunk: what was gathered, of a parameter or an activation, is given up at the end of a
 * phase (Korthikanti et al. 2022, section 4.2.2: backward gathers again). */
bool hd_part_usable(const hd_part *p, hd_value v, const hd_held *h, int phase, int chunk);
/* The form of v from which `to` is reached most cheaply, and (may be NULL) that cost. */
const hd_held *hd_part_nearest(const hd_part *p, hd_value v, const hd_layout *to, int phase, int chunk, double *cost);
/* v in layout `to` and its own dtype, by nodes appended to the graph for `reader` (whose phase and chunk they take). HD_NONE: out of memory. */
hd_value hd_part_convert(hd_part *p, hd_value v, const hd_layout *to, const hd_node *reader);
/* Appends the node of one step; reader as above. */
hd_value hd_part_emit(hd_part *p, hd_value x, const char *path, const hd_convert_step *s, const hd_node *reader);

/* What is built from now on is for that reader: its phase, chunk, slice and origin, and no scope. */
void hd_part_build_for(hd_graph *g, const hd_node *reader);

/* Makes `layout` that of graph value x of that whole shape, and its type that of coordinate 0. */
int hd_part_set_layout(hd_part *p, hd_value x, const hd_layout *layout, const hd_shape *whole);
/* Cuts the loops of x's node, whose loop d runs over dimension d, as its result is cut. */
void hd_part_split_dims(hd_part *p, hd_node *n, const hd_layout *layout, int rank);
/* Remembers that v is held as x. */
int hd_part_hold(hd_part *p, hd_value v, hd_value x, const hd_layout *layout, int phase, int chunk);

/* ---- partition.c ---- */

/* Whether n is of an op that keeps a gradient what it is: it then only leads to sums over micro-batches if its results do. */
bool hd_part_passes_gradient(const hd_node *n);

/* v, a result of maker's, is there as x in that layout; if it is pinned to another, it is brought there. Errors in g->err. */
void hd_part_hold_result(hd_part *p, hd_value v, hd_value x, const hd_layout *layout, const hd_node *maker);

/* ---- strategy.c ---- */

/* What is done about one axis. */
typedef struct hd_part_option {
    enum { HD_PART_REPLICATED, HD_PART_LINEAR, HD_PART_LOOP, HD_PART_EXPANDED /* as several nodes: only planners list it */ } kind;
    int loop;     /* LOOP: split over the axis */
    uint32_t set; /* LINEAR: these operands are Partial, the others whole; so are the results */
} hd_part_option;

typedef struct hd_strategy {
    hd_part_option option[HD_MAX_AXES]; /* by axis of the mesh */
    hd_dim_layout loop[HD_MAX_LOOPS];   /* cuts of each loop */
    hd_layout in[HD_MAX_OPERANDS], out[HD_MAX_RESULTS];
    double cost;
} hd_strategy;

/* The strategy of least cost for n, whose operands are held somehow. */
void hd_part_choose(const hd_part *p, const hd_node *n, hd_strategy *best);
/* All ways to divide n by its loops alone, of a graph of which nothing is held yet; fills list[most], returns how many there are. At most 3 axes. */
int hd_part_list(const hd_part *p, const hd_node *n, hd_strategy *list, int most);
/* Appends n by a strategy, behind the conversions that it asks for (partition.c). */
void hd_part_apply(hd_part *p, hd_node *n, const hd_strategy *s);
/* Types of the whole operands and results. */
void hd_part_signature(const hd_part *p, const hd_node *n, hd_sig *sig, hd_type *in, hd_type *out);

/* ---- expand.c ---- */

/* Replaces n by several nodes where that is how it splits (cross entropy over a split vocabulary). Returns whether it did; errors in g->err. */
bool hd_part_expand(hd_part *p, hd_node *n);
/* The same for batch norm of samples that are cut (expand_norm.c). */
bool hd_part_expand_batch_norm(hd_part *p, hd_node *n);

/* ---- ring.c ---- */

/* As hd_part_expand, for attention whose tokens are cut over an axis that is a ring. */
bool hd_part_ring(hd_part *p, hd_node *n);

/* ---- partition.c ---- */

/* hd_pass_partition; like: as in hd_part. */
int hd_part_run(hd_graph *g, const hd_mesh *mesh, const hd_pin *pins, int n_pins, bool keep_gathered, const hd_graph *like);
/* Gives g its mesh, and layouts to parameters, states, inputs and constants; no more. */
int hd_part_leaves(hd_graph *g, const hd_mesh *mesh, const hd_pin *pins, int n_pins);
/* Appends n to the new graph as it is. */
int hd_part_append(hd_part *p, hd_node *n);
/* Gives n's results these layouts, and brings them to those that they are pinned to. */
void hd_part_hold_results(hd_part *p, const hd_node *n, const hd_layout *out);

/* ---- meshes.c ---- */

/* Does n, if it is a stage's send, recv or sum over stages. Returns whether it is. */
bool hd_part_cross(hd_part *p, hd_node *n);
/* Whether what n receives is made of parameters. */
bool hd_part_receives_weight(const hd_part *p, const hd_node *n);

#endif
