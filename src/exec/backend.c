/* backend.c: the tables of the back ends on this machine's processor. */
#include "exec/backend.h"

#include "kernels/cpu/blocks.h"
#include "kernels/cpu/gemm.h"
#include "kernels/null/null.h"
#include "ops/ops.h"

/* ---- shared ---- */

static void *map_alloc(const hd_backend *b, size_t bytes)
{
    (void)b;
    return hd_map_memory(bytes ? bytes : 1);
}

static void map_free(const hd_backend *b, void *p, size_t bytes)
{
    (void)b;
    hd_unmap_memory(p, bytes ? bytes : 1);
}

static const hd_backend *backend_of(const hd_target *t)
{
    return (const hd_backend *)t; /* target is the first member */
}

static size_t ask_workspace(const hd_target *t, const hd_op *op, const hd_kernel_args *a, int threads)
{
    const hd_backend *b = backend_of(t);
    hd_kernel k = b->find(b, op, a);
    return k.workspace ? k.workspace(a, threads) : 0;
}

/* ---- null ---- */

static hd_kernel find_null(const hd_backend *b, const hd_op *op, const hd_kernel_args *a)
{
    (void)b;
    return *hd_null_kernel_find(op->name, a);
}

/* ---- reference ---- */

static hd_kernel find_reference(const hd_backend *b, const hd_op *op, const hd_kernel_args *a)
{
    (void)b, (void)a;
    return (hd_kernel){.op = op->name, .run = op->reference};
}

/* ---- cpu ---- */

static hd_kernel find_cpu(const hd_backend *b, const hd_op *op, const hd_kernel_args *a)
{
    const hd_kernel *k = hd_cpu_kernel_find(op->name, b->isa, a);
    return k ? *k : find_reference(b, op, a);
}

/* Columns of operand 1 of a product, and the elements of each: its labels that the result has come first, those that are summed last. False: they don't. */
static bool columns_of(const char *spec, const hd_tensor *w, int64_t *columns, int64_t *k)
{
    const char *labels = strchr(spec, ','), *result = strstr(spec, "->");
    *columns = *k = 1;
    for (int i = 0; labels && result && i < w->rank; i++) {
        bool kept = strchr(result, labels[1 + i]) != NULL;
        if (kept && *k > 1) return false;
        *(kept ? columns : k) *= w->dim[i];
    }
    return labels && result;
}

static size_t packed_bytes(const hd_target *t, const hd_op *op, const hd_kernel_args *a, int i)
{
    if (op != &hd_op_contract || i != 1) return 0;
    const hd_contract_attrs *attrs = a->attrs;
    const hd_tensor *w = &a->in[1];
    int64_t columns, k;
    if (!w->blocks) return hd_gemm_packed_bytes(backend_of(t)->isa, attrs->spec, w);
    return columns_of(attrs->spec, w, &columns, &k) ? hd_blocks_packed_bytes(backend_of(t)->isa, w->blocks, columns, k) : 0;
}

static void pack(const hd_backend *b, const hd_op *op, const hd_kernel_args *a, int i, const void *plain, void *packed)
{
    (void)op;
    const hd_contract_attrs *attrs = a->attrs;
    hd_tensor t = a->in[i];
    t.data = (void *)plain;
    t.format = HD_PLAIN;
    int64_t columns, k;
    if (t.blocks && columns_of(attrs->spec, &t, &columns, &k)) hd_blocks_pack(b->isa, t.blocks, plain, columns, k, packed, a->tid, a->threads);
    else hd_gemm_pack(b->isa, attrs->spec, &t, packed, a->tid, a->threads);
}

/* ---- the list ---- */

static const hd_backend backends[] = {
    {.target = {.workspace = ask_workspace, .packed_bytes = packed_bytes}, .name = "cpu", .alloc = map_alloc, .free = map_free, .find = find_cpu, .pack = pack},
    {.target = {.workspace = ask_workspace}, .name = "reference", .alloc = map_alloc, .free = map_free, .find = find_reference},
    {.target = {.workspace = ask_workspace}, .name = "null", .alloc = map_alloc, .free = map_free, .find = find_null},
};

int hd_backend_open(hd_backend *out, const char *name, hd_error *err)
{
    for (size_t i = 0; i < sizeof backends / sizeof backends[0]; i++) {
        if (strcmp(backends[i].name, name)) continue;
        *out = backends[i];
        if (out->find == find_cpu) out->isa = hd_isa_detect();
        return 0;
    }
    return hd_fail(err, HD_EINVAL, "there is no back end \"%s\"; there are cpu, reference and null", name);
}
