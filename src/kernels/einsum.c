#include "kernels/einsum.h"

#include <ctype.h>

/* Splits "ab,bc->ac" into its three operands; 0 or HD_EINVAL. */
static int split_spec(const char *spec, char part[3][HD_MAX_RANK + 1], hd_error *err)
{
    static const char *const separator[3] = {",", "->", ""};
    const char *p = spec;
    for (int operand = 0; operand < 3; operand++) {
        int n = 0;
        for (; isalpha((unsigned char)*p); p++) {
            if (n == HD_MAX_RANK) return hd_fail(err, HD_EINVAL, "contract \"%s\": more than %d dimensions", spec, HD_MAX_RANK);
            if (memchr(part[operand], *p, (size_t)n))
                return hd_fail(err, HD_EINVAL, "contract \"%s\": label %c twice in one operand", spec, *p);
            part[operand][n++] = *p;
        }
        part[operand][n] = 0;
        size_t len = strlen(separator[operand]);
        if (strncmp(p, separator[operand], len) != 0 || (operand == 2 && *p))
            return hd_fail(err, HD_EINVAL, "contract \"%s\": must be like \"ab,bc->ac\"", spec);
        p += len;
    }
    return HD_OK;
}

static int dim_of(const char *part, char name)
{
    const char *p = strchr(part, name);
    return p ? (int)(p - part) : -1;
}

static int classify(const hd_einsum_label *l)
{
    if (l->dim[2] < 0) return HD_EINSUM_K;
    if (l->dim[0] >= 0 && l->dim[1] >= 0) return HD_EINSUM_BATCH;
    return l->dim[0] >= 0 ? HD_EINSUM_M : HD_EINSUM_N;
}

/* Appends the labels of `from` that belong to group and are not in `seen`. */
static void add_labels(hd_einsum *e, char part[3][HD_MAX_RANK + 1], const char *from, const char *seen, int group)
{
    for (const char *p = from; *p; p++) {
        hd_einsum_label l = {.name = *p, .dim = {dim_of(part[0], *p), dim_of(part[1], *p), dim_of(part[2], *p)}};
        if (classify(&l) == group && !strchr(seen, *p)) e->label[e->count++] = l;
    }
}

int hd_einsum_parse(hd_einsum *e, const char *spec, hd_error *err)
{
    char part[3][HD_MAX_RANK + 1];
    memset(e, 0, sizeof *e);
    if (split_spec(spec, part, err)) return HD_EINVAL;
    for (const char *p = part[2]; *p; p++)
        if (dim_of(part[0], *p) < 0 && dim_of(part[1], *p) < 0)
            return hd_fail(err, HD_EINVAL, "contract \"%s\": label %c of the result is in no operand", spec, *p);
    for (int i = 0; i < 3; i++) e->rank[i] = (int)strlen(part[i]);
    for (int group = 0; group < HD_EINSUM_GROUPS; group++) {
        e->begin[group] = e->count;
        if (group != HD_EINSUM_K) {
            add_labels(e, part, part[2], "", group);
        } else {
            add_labels(e, part, part[0], "", group);
            add_labels(e, part, part[1], part[0], group);
        }
    }
    e->begin[HD_EINSUM_GROUPS] = e->count;
    return HD_OK;
}

int hd_einsum_group(const hd_einsum *e, int i)
{
    int group = 0;
    while (i >= e->begin[group + 1]) group++;
    return group;
}

int hd_einsum_extents(const hd_einsum *e, const hd_tensor *a, const hd_tensor *b, int64_t *extent, hd_error *err)
{
    if (a->rank != e->rank[0] || b->rank != e->rank[1])
        return hd_fail(err, HD_EINVAL, "contract: operands have %d and %d dimensions where the notation says %d and %d", a->rank, b->rank,
                       e->rank[0], e->rank[1]);
    for (int i = 0; i < e->count; i++) {
        const int *dim = e->label[i].dim;
        extent[i] = dim[0] >= 0 ? a->dim[dim[0]] : b->dim[dim[1]];
        if (dim[0] >= 0 && dim[1] >= 0 && a->dim[dim[0]] != b->dim[dim[1]])
            return hd_fail(err, HD_EINVAL, "contract: label %c is %lld in one operand and %lld in the other", e->label[i].name,
                           (long long)a->dim[dim[0]], (long long)b->dim[dim[1]]);
    }
    return HD_OK;
}

void hd_einsum_result_dims(const hd_einsum *e, const int64_t *extent, int64_t *dim)
{
    for (int i = 0; i < e->count; i++)
        if (e->label[i].dim[2] >= 0) dim[e->label[i].dim[2]] = extent[i];
}

/* Elements that one step of label i moves in operand o. */
static int64_t stride_of(const hd_einsum *e, const int64_t *extent, int i, int o)
{
    int dim = e->label[i].dim[o];
    if (dim < 0) return 0;
    int64_t stride = 1;
    for (int j = 0; j < e->count; j++)
        if (e->label[j].dim[o] > dim) stride *= extent[j];
    return stride;
}

void hd_einsum_loops(const hd_einsum *e, const int64_t *extent, int group, hd_einsum_nest *loops)
{
    memset(loops, 0, sizeof *loops);
    loops->total = 1;
    for (int i = e->begin[group]; i < e->begin[group + 1]; i++) {
        loops->total *= extent[i];
        if (extent[i] == 1) continue;
        int64_t stride[3];
        bool merge = loops->n > 0;
        for (int o = 0; o < 3; o++) {
            stride[o] = stride_of(e, extent, i, o);
            if (merge) merge = loops->stride[o][loops->n - 1] == stride[o] * extent[i];
        }
        if (!merge) loops->extent[loops->n++] = 1;
        loops->extent[loops->n - 1] *= extent[i];
        for (int o = 0; o < 3; o++) loops->stride[o][loops->n - 1] = stride[o];
    }
}

int64_t hd_einsum_offset(const hd_einsum_nest *loops, int operand, int64_t i)
{
    int64_t offset = 0;
    for (int j = loops->n - 1; j >= 0; j--) {
        offset += i % loops->extent[j] * loops->stride[operand][j];
        i /= loops->extent[j];
    }
    return offset;
}
