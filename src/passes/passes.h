/* passes.h: Graph -> Graph passes that know particular ops. Each works in place, keeps the graph verified, and returns 0 or the graph's error. */
#ifndef HD_PASSES_PASSES_H
#define HD_PASSES_PASSES_H

#include "graph/graph.h"

/* Before differentiation: norm(a + b) becomes one norm with a residual operand, whose `sum` result replaces a + b. */
int hd_pass_fuse_residual_norm(hd_graph *g);

/* Before differentiation: operands of f32 contractions are cast to dtype (HD_BF16; HD_F32 changes nothing). */
int hd_pass_precision(hd_graph *g, hd_dtype dtype);

/* After differentiation and common subexpressions (which would undo it): elementwise results that backward reads are computed a second time there,
 * instead of being kept, where their operands are kept anyway. The same bits. */
int hd_pass_recompute_elementwise(hd_graph *g);

/* After differentiation and common subexpressions, before or after partitioning, and before the pass above: forward values whose path matches one of n
 * patterns (a plan's `recompute`) are computed again in backward by clones of their nodes (again.<path>; origin: the forward node), just before they are
 * first read there. Collectives over named values are cloned too; outputs and values of the whole step are kept. The same bits. */
int hd_pass_recompute(hd_graph *g, const char (*patterns)[64], int n);

/* After both: what backward gathers twice, once for a node made again and once for one of its own, is gathered once, and held from the one to the other. */
int hd_pass_share_gathers(hd_graph *g);

/* After differentiation: runs of elementwise nodes of one shape become one `fused` node, which reads and writes each element once
 * (bias + activation is such a run). Results are bit for bit those of the nodes alone. */
int hd_pass_fuse_elementwise(hd_graph *g);

/* For serving: parameters for which type_of gives a type stay in its blocks (hd_type.blocks), where all that read them can take blocks: products that sum their
 * last dimensions, and lookups of rows. */
int hd_pass_blocks(hd_graph *g, const hd_quant *(*type_of)(void *arg, const hd_value_info *param), void *arg);

/* Before differentiation: low-rank adapters (Hu et al. 2021). Each product with a parameter W whose path matches one of the patterns becomes
 * x W + alpha/rank (x A) B, with new parameters W.lora_a [rank, summed dimensions] (normal) and W.lora_b [others, rank] (zero), f32. Every other
 * parameter stops being trainable. HD_EINVAL when nothing matches. */
typedef struct hd_lora_options {
    const char *const *pattern; /* globs over parameter paths: "layers.*.attn.q" */
    int n_patterns;
    int64_t rank;
    double alpha;
} hd_lora_options;
int hd_pass_lora(hd_graph *g, const hd_lora_options *o);

/* The graph whose one update adds alpha/rank A B to every adapted W of g (a graph that hd_pass_lora went over); to be run once over the store of g.
 * W has the type it has in g. The caller frees it. */
hd_graph *hd_lora_merge_graph(const hd_graph *g, const hd_lora_options *o, hd_error *err);

#endif
