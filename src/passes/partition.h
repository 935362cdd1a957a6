/* partition.h: passes that make a Graph for one rank out of the Graph of the whole: over a mesh (layouts), and over a pipeline (chunks).
 *
 * Order: hd_pass_slices on the forward graph; after differentiation and the update hd_pass_slices_backward, hd_pass_chunks, hd_pass_partition,
 * then hd_graph_stage for each stage. */
#ifndef HD_PASSES_PARTITION_H
#define HD_PASSES_PARTITION_H

#include "graph/graph.h"

/* The layout of all values whose path matches the glob, as text (graph/layout.h): it is brought there at once. With "=" before it, the layout in which their node
 * leaves them, which says how that is divided: "=tp,- +dp". Later pins override earlier ones, of either kind. */
typedef struct hd_pin { char pattern[64]; char layout[64]; } hd_pin;

/* In place, after differentiation and the update: gives every value a layout, every node the split of its loops, and puts conversions between them.
 * Types become those at coordinate 0. Pins are kept to; everything else follows by choosing, node by node, the strategy that moves the fewest bytes:
 * over DATA axes parameters and gradients are moved rather than activations, over MODEL axes activations rather than parameters. A state keeps the
 * layout of the value it becomes, by conversion of that. What is gathered of a parameter over DATA axes for forward or backward is gathered in each call,
 * and lives around its use only; keep_gathered: once per step, for all calls. Over the axes of g->ring attention is a ring (ring.c). With g->rows_micro a
 * table's gradient is, where that is fewer bytes over DATA axes, made by every rank of all ranks' indices and rows, instead of being summed: in one order,
 * that of one rank. Error (in g->err too): an unknown axis, a pin that matches nothing or has
 * another rank. */
int hd_pass_partition(hd_graph *g, const hd_mesh *mesh, const hd_pin *pins, int n_pins, bool keep_gathered);
/* Whether v, a value of a partitioned graph, is gathered of a parameter (or of what is computed from it once a step) in each call. */
bool hd_is_regathered(const hd_graph *g, hd_value v);

/* In place, after differentiation and the update: sets node->chunk for every node. first[c - 1] is a path (or the beginning of one, up to a dot) of the
 * first node of chunk c: forward nodes go by position, backward nodes to the chunk of the forward node they differentiate, updates to their
 * parameter's. A sum of gradients from several chunks of a parameter used in several becomes a sum of sums over the step. Scalars of the update get
 * chunk -1: every stage computes them. A norm that adds what comes from earlier chunks gets the sum from there. n_first 0: all is chunk 0.
 * After recomputation and before hd_pass_fuse_elementwise, which then keeps to the borders. */
int hd_pass_chunks(hd_graph *g, const char *const *first, int n_first);

/* In place, on a partitioned graph with chunks: activations and their gradients that go to another stage, and are whole on the ranks of the MODEL axes, are cut over
 * these in rows, sent so, and gathered where they are read (Narayanan et al. 2021, section 4.1). */
int hd_pass_scatter(hd_graph *g, int stages);
/* In place, on a partitioned graph: sums of gradients over DATA axes, and of activations that are rounded to `wire` anyway, are sent in it. f32: nothing is done. */
int hd_pass_narrow_sums(hd_graph *g, hd_dtype wire);

/* The part that stage (0 .. stages-1) does: chunks stage, stage + stages, ... with send and recv where values cross chunks: activations and their
 * gradients per call; a parameter that several chunks read is sent from its home (the chunk of its first use) once per step, and its gradient comes
 * back once. Scalars of the update that are sums over chunks (loss, squares of gradients) become all_reduce over the mesh axis "pp". Values keep
 * their paths. frozen: of a graph without backward and update, every stage has all parameters that it reads, and none is sent. The caller frees it. NULL and
 * err on failure. */
hd_graph *hd_graph_stage(const hd_graph *g, int stage, int stages, bool frozen, hd_error *err);

/* In place, last, on a partitioned graph or that of one stage: inputs of tokens that are cut over an axis of g->zigzag are held whole over it, and
 * each rank takes an early and a late part of every sequence (the op deal) instead of a piece in a row. */
int hd_pass_deal(hd_graph *g);
/* The layouts of one stage, and over which axes of its mesh attention is a ring and tokens are dealt; stages with the same list and equal meshes are worked
 * out together. */
typedef struct hd_stage_pins { const hd_pin *pins; int n; uint32_t ring, zigzag; } hd_stage_pins;

/* All stages of g, which has its chunks but is not partitioned, each on a mesh of its own: out[s] is cut as hd_graph_stage does, then partitioned over s->mesh[s]
 * with pins[s] (those that match nothing in it are passed over; in g each must match something). A value that crosses arrives in pieces of rows, each from one of its holders, and is then
 * gathered to how the whole graph would hold it on that mesh; attributes of send and recv say how it lies at the other end. A sum over stages is one
 * all_reduce "pp" over all ranks, each stage's part counted once. only: the one stage that is to be run; others may then be cut only, with layouts for
 * parameters and states (-1: all are to be run). The caller frees out[0 .. n-1], NULL after an error. */
int hd_graph_stages(const hd_graph *g, const hd_stages *s, const hd_stage_pins *pins, bool keep_gathered, int only, hd_graph **out, hd_error *err);

/* ---- slices of tokens ---- */

enum { HD_MAX_SLICES = 64 };

/* In place, on a forward graph of a language model before differentiation: cuts each sequence of a call into n slices of length[i] tokens, which add up
 * to the sequence. Nodes over tokens become one node for each slice, "<path>@<slice>", with node->slice set; inputs stay whole. Error (in g->err too):
 * lengths that don't make up whole sequences, and nodes that mix tokens in another way than causal attention does. n <= 1: nothing is done. */
int hd_pass_slices(hd_graph *g, const int64_t *length, int n);
/* After differentiation, with the same lengths: sets node->slice of the nodes of backward, and keeps keys and values once for all slices. */
int hd_pass_slices_backward(hd_graph *g, const int64_t *length, int n);
/* Whether a pattern (hd_glob_match) names the path, or the path without the mark of a slice. */
bool hd_path_match(const char *pattern, const char *path);

/* For a schedule that cuts backward in two: sets flags[i] for the nodes of backward that nothing which is sent on depends on, so that they may be
 * done later: gradients of weights. Where nothing is sent (the first stage) that is all of backward. flags: [n_nodes]. Returns how many, or HD_ENOMEM. */
int hd_graph_weight_parts(const hd_graph *g, bool *flags);

#endif
