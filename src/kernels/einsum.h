/* einsum.h: the einsum notation of contract ("td,hed->the"), parsed and sorted into what a matrix product needs.
 *
 * Invariants of a parsed hd_einsum: labels are single letters, none occurs twice in one operand; label[] is ordered by group (batch, M,
 * N, K), and begin[g] .. begin[g+1]-1 are the labels of group g: batch, M and N in the order of c, K in the order of a, then those only
 * in b.
 *     batch  in a, b and c        M  in a and c        N  in b and c        K  not in c: summed (in a, in b, or in both)
 * With c[batch, m, n] = sum over k of a[batch, m, k] * b[batch, n, k], each of the four being a tuple of labels. */
#ifndef HD_KERNELS_EINSUM_H
#define HD_KERNELS_EINSUM_H

#include "base/error.h"
#include "tensor/dtype.h"

enum { HD_EINSUM_BATCH, HD_EINSUM_M, HD_EINSUM_N, HD_EINSUM_K, HD_EINSUM_GROUPS };

#define HD_EINSUM_LABELS (2 * HD_MAX_RANK)

typedef struct hd_einsum_label {
    char name;
    int dim[3]; /* which dimension of a, b, c it is; -1: it does not occur there */
} hd_einsum_label;

typedef struct hd_einsum {
    int rank[3]; /* of a, b, c */
    int count;   /* labels in all */
    int begin[HD_EINSUM_GROUPS + 1];
    hd_einsum_label label[HD_EINSUM_LABELS];
} hd_einsum;

/* Parses spec; HD_EINVAL and a message when it breaks a rule of the notation (kernels/attrs.h). err may be NULL. */
int hd_einsum_parse(hd_einsum *e, const char *spec, hd_error *err);

/* The group (HD_EINSUM_BATCH ...) of label i. */
int hd_einsum_group(const hd_einsum *e, int i);

/* Checks the ranks of a and b and that shared labels have one extent; writes each label's extent to extent[count]. Only shapes are read. */
int hd_einsum_extents(const hd_einsum *e, const hd_tensor *a, const hd_tensor *b, int64_t *extent, hd_error *err);

/* The extents of c, from those of the labels. */
void hd_einsum_result_dims(const hd_einsum *e, const int64_t *extent, int64_t *dim);

/* One group's loops, outermost first, with the step in elements that each operand takes; neighbours that are one loop in all of the
 * operands are merged. An operand without the label has stride 0. */
typedef struct hd_einsum_nest {
    int n;
    int64_t total; /* product of the extents; 1 when n == 0 */
    int64_t extent[HD_EINSUM_LABELS];
    int64_t stride[3][HD_EINSUM_LABELS]; /* of a, b, c */
} hd_einsum_nest;

/* The loops of a group for row-major contiguous operands of the given extents (one for each label). */
void hd_einsum_loops(const hd_einsum *e, const int64_t *extent, int group, hd_einsum_nest *loops);

/* Offset in elements of operand 0, 1 or 2 at the loops' linear index i. */
int64_t hd_einsum_offset(const hd_einsum_nest *loops, int operand, int64_t i);

#endif
