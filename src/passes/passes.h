/* passes.h: Graph -> Graph passes that know particular ops. Each works in place, keeps the graph verified, and returns 0 or the graph's error. */
#ifndef HD_PASSES_PASSES_H
#define HD_PASSES_PASSES_H

#include "graph/graph.h"

/* Before differentiation: norm(a + b) becomes one norm with a residual operand, whose `sum` result replaces a + b. */
int hd_pass_fuse_residual_norm(hd_graph *g);

/* After differentiation: runs of elementwise nodes of one shape become one `fused` node, which reads and writes each element once
 * (bias + activation is such a run). Results are bit for bit those of the nodes alone. */
int hd_pass_fuse_elementwise(hd_graph *g);

#endif
