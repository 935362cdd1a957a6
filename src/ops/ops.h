/* ops.h: the extern declarations of every op, made from ops.def. */
#ifndef HD_OPS_OPS_H
#define HD_OPS_OPS_H
#include "graph/op.h"
#define HD_OP(name) extern const hd_op hd_op_##name;
#include "ops/ops.def"
#undef HD_OP
#endif
