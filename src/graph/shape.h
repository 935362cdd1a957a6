/* shape.h: the extents of a value. */
#ifndef HD_GRAPH_SHAPE_H
#define HD_GRAPH_SHAPE_H

#include <stdbool.h>
#include <stdint.h>

#include "tensor/dtype.h"

typedef struct hd_shape {
    int rank; /* 0: scalar */
    int sym;  /* symbol that bounds dim[0], or -1. Actual extent: binding * (dim[0] / the symbol's maximum) */
    int64_t dim[HD_MAX_RANK];
} hd_shape;

int64_t hd_shape_count(const hd_shape *s);               /* elements at the maximum */
bool hd_shape_equal(const hd_shape *a, const hd_shape *b);

#endif
