/* pins.h: from a layout for each of many values to as few pins as say so. */
#ifndef HD_PLAN_PINS_H
#define HD_PLAN_PINS_H

#include "graph/graph.h"
#include "passes/partition.h"

bool hd_value_is_live(const hd_graph *g, hd_value v); /* not left over from a node that was dropped */

typedef struct hd_pinning {
    const hd_graph *graph;
    const hd_mesh *mesh;
    const hd_layout *layout; /* [values] */
    const bool *pinned;      /* [values] is to have its layout */
    const bool *same;        /* [values] a pattern may match it if it names that layout, and need not; NULL: none */
    bool sliced;             /* the graph's sequences are cut into slices */
} hd_pinning;

/* Fills pins[most]; a pattern is taken only if all it matches is to have that layout, so their order does not matter. *n: how many; most + 1 where
 * they don't suffice, which is no error. HD_EINVAL: a path or layout that is too long for a pin. */
int hd_pins_write(const hd_pinning *s, hd_pin *pins, int most, int *n, hd_error *err);

#endif
