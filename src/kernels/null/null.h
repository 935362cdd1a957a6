/* null.h: the back end that computes nothing: a thousand ranks' schedules can be run and tested without arithmetic. */
#ifndef HD_KERNELS_NULL_H
#define HD_KERNELS_NULL_H

#include "kernels/kernel.h"

/* A kernel for any op, dtype and shape that leaves its results as they are and needs no workspace. Never NULL. */
const hd_kernel *hd_null_kernel_find(const char *op, const hd_kernel_args *a);

#endif
