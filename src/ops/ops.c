#include "ops/ops.h"

const hd_op *const hd_ops[] = {
#define HD_OP(name) &hd_op_##name,
#include "ops/ops.def"
#undef HD_OP
};
const int hd_op_count = sizeof hd_ops / sizeof hd_ops[0];
