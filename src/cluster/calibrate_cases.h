/* calibrate_cases.h: which kernels are measured, as a table of texts. */
#ifndef HD_CLUSTER_CALIBRATE_CASES_H
#define HD_CLUSTER_CALIBRATE_CASES_H

#include <stdint.h>
#include "kernels/kernel.h"

/* Extents by letter, 'A'..'Z'; 0: not used. */
typedef struct hd_case_size { int64_t of[26]; } hd_case_size;

/* One op at one size: attrs and operand types in which '@' is the dtype under test and capital letters are the size's extents ("$S" in attrs).
 *   operands: "@[T,D] f32[D] - i32[T]:p", parted by blanks; '-': absent; of integers :p positions within sequences of S, :l the last of them, :s sequence numbers, :v below V, :i
 *   0, 1, 2, ...; "Q4_K[N,K]": in those blocks */
typedef struct hd_case {
    const char *op, *attrs, *operands;
    uint32_t warm;     /* operands that the kernel before it has just written, where they fit a cache; all others come from memory */
    uint32_t in_place; /* result i is operand i's memory */
    uint32_t unread;   /* results that nobody reads */
    bool packed;       /* operand 1 of contract lies packed */
    hd_dtype dtype;
    hd_case_size size;
} hd_case;

/* All cases; *n of them. Caller hd_frees the list; NULL when out of memory. */
hd_case *hd_calibrate_cases(int *n);

#endif
