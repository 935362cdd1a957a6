/* backend.h: a back end: where memory comes from and which function computes an op. One table each; the executor knows no other way.
 *
 * "null" computes nothing (schedules and memory can be tested without arithmetic), "reference" is the definition of every op on one thread,
 * "cpu" the fast kernels, falling back to the reference. */
#ifndef HD_EXEC_BACKEND_H
#define HD_EXEC_BACKEND_H

#include "program/program.h"

typedef struct hd_backend hd_backend;
struct hd_backend {
    hd_target target; /* what lowering asks; first, so that &b->target is b */
    const char *name;
    hd_isa isa;       /* "cpu": the most it uses */
    /* Zeroed memory, at least 64-byte aligned; NULL on failure. */
    void *(*alloc)(const hd_backend *b, size_t bytes);
    void (*free)(const hd_backend *b, void *p, size_t bytes);
    /* The kernel for op with these operands (data pointers may be NULL). Always finds one: the reference at worst. */
    hd_kernel (*find)(const hd_backend *b, const hd_op *op, const hd_kernel_args *a);
    /* (optional) Fills packed (target.packed_bytes) from plain operand i: member a->tid's share of a->threads. */
    void (*pack)(const hd_backend *b, const hd_op *op, const hd_kernel_args *a, int i, const void *plain, void *packed);
};

/* Fills *out for "cpu", "reference" or "null"; "cpu" uses the best instruction set of this machine (HEDDLE_ISA lowers it). Nothing to free. */
int hd_backend_open(hd_backend *out, const char *name, hd_error *err);

#endif
