/* kernel.h: what a kernel is: a plain function over raw buffers that every member of a thread team calls at once.
 *
 * Rules that every kernel keeps:
 *  - It cannot fail: shapes and dtypes were checked when the graph was built. Index data out of range reads as a zero row and is
 *    not written; never a crash. Extent 0 is legal everywhere.
 *  - Operands are row-major and contiguous at their actual extents (hd_tensor). An absent optional operand has data == NULL.
 *  - A row's result depends on that row alone: bitwise the same for any row count, chunking and number of threads. Reduced loops
 *    are cut into fixed-size blocks, never by thread. f32 results of long sums (norms, losses) accumulate in f64 or compensated f32.
 *  - Any internal meeting of threads is hd_team_barrier(a->team, a->tid). The executor puts a barrier after each kernel, so a
 *    kernel needs none at its end. Nothing is allocated: scratch is a->workspace, shared by the team.
 *  - A result may be the same memory as an operand only where the op says so (hd_op.may_alias). */
#ifndef HD_KERNELS_KERNEL_H
#define HD_KERNELS_KERNEL_H

#include "base/thread.h"
#include "kernels/attrs.h"
#include "tensor/dtype.h"

#define HD_MAX_OPERANDS 24
#define HD_MAX_RESULTS 8

typedef struct hd_kernel_args {
    const hd_tensor *in;  /* [n_in] */
    hd_tensor *out;       /* [n_out]; a result nobody reads has data == NULL and is not computed */
    int n_in, n_out;
    int code;             /* hd_op.code: tells the members of an op family apart (an hd_ew for elementwise ops) */
    bool accumulate;      /* add to the results instead of overwriting them (only ops that say can_accumulate) */
    const void *attrs;    /* the op's parameter struct (kernels/attrs.h) */
    void *workspace;      /* as many bytes as hd_kernel.workspace asked for, 64-byte aligned; contents undefined */
    hd_team *team;
    int tid, threads;
} hd_kernel_args;

/* Instruction sets, each including those before it. */
typedef enum hd_isa {
    HD_ISA_PORTABLE, /* plain C; any little-endian 64-bit machine */
    HD_ISA_AVX2,     /* AVX2 + FMA + F16C */
    HD_ISA_AVX512,   /* F, BW, DQ, VL */
    HD_ISA_VNNI,     /* AVX-512 VNNI: int8 dot products */
    HD_ISA_BF16,     /* AVX-512 BF16: bf16 dot products */
    HD_ISA_COUNT
} hd_isa;

typedef struct hd_kernel {
    const char *op; /* name in the op table */
    /* Whether it takes these dtypes, shapes and attributes (data pointers may be NULL). NULL: always. */
    bool (*supports)(const hd_kernel_args *a);
    /* Bytes of workspace at these extents for a team of `threads`. Monotone in the outermost extents. NULL: none. */
    size_t (*workspace)(const hd_kernel_args *a, int threads);
    void (*run)(const hd_kernel_args *a);
} hd_kernel;

/* The best instruction set of this machine, or the one that HEDDLE_ISA names (portable, avx2, avx512, vnni, bf16) if it is lower. */
hd_isa hd_isa_detect(void);
const char *hd_isa_name(hd_isa isa);
int hd_isa_parse(const char *name, hd_isa *out); /* 0 or HD_EINVAL */

/* The fastest kernel of the CPU back end for op that takes a, using at most isa; NULL if there is none (use the reference). */
const hd_kernel *hd_cpu_kernel_find(const char *op, hd_isa isa, const hd_kernel_args *a);
/* All kernels of one instruction set, for tests: *count entries. */
const hd_kernel *const *hd_cpu_kernels(hd_isa isa, int *count);

#endif
