/* table.c: finds a kernel: walks the instruction sets from the best one allowed down, and in each the tables of its files in order. */
#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include "base/error.h"
#include "kernels/kernel.h"
#if defined(__x86_64__)
#include <cpuid.h>
#endif

/* The files in isa/, by the name of the table that each exports: `const hd_kernel HD_ISA(hd_kernels_NAME)[]`, ended by op == NULL. */
#define HD_KERNEL_TABLES(X) \
    X(blocks) \
    X(contract) \
    X(conv) \
    X(elementwise) \
    X(norm) \
    X(reduce) \
    X(loss) \
    X(optimizer) \
    X(attention) \
    X(attention_grad) \
    X(attention_merge) \
    X(paged) \
    X(quantize) \
    X(index) \
    X(move) \
    X(position) \
    X(image) \
    X(measure)

#define DECLARE_PORTABLE(name) extern const hd_kernel hd_kernels_##name##_portable[];
#define ENTRY_PORTABLE(name) hd_kernels_##name##_portable,
HD_KERNEL_TABLES(DECLARE_PORTABLE)

#if defined(__x86_64__)
#define DECLARE_X86(name) \
    extern const hd_kernel hd_kernels_##name##_avx2[], hd_kernels_##name##_avx512[], hd_kernels_##name##_vnni[], hd_kernels_##name##_bf16[];
HD_KERNEL_TABLES(DECLARE_X86)
#define ENTRY_AVX2(name) hd_kernels_##name##_avx2,
#define ENTRY_AVX512(name) hd_kernels_##name##_avx512,
#define ENTRY_VNNI(name) hd_kernels_##name##_vnni,
#define ENTRY_BF16(name) hd_kernels_##name##_bf16,
#endif

static const hd_kernel *const portable_tables[] = {HD_KERNEL_TABLES(ENTRY_PORTABLE) NULL};
#if defined(__x86_64__)
static const hd_kernel *const avx2_tables[] = {HD_KERNEL_TABLES(ENTRY_AVX2) NULL};
static const hd_kernel *const avx512_tables[] = {HD_KERNEL_TABLES(ENTRY_AVX512) NULL};
static const hd_kernel *const vnni_tables[] = {HD_KERNEL_TABLES(ENTRY_VNNI) NULL};
static const hd_kernel *const bf16_tables[] = {HD_KERNEL_TABLES(ENTRY_BF16) NULL};
#else
static const hd_kernel *const no_tables[] = {NULL};
#define avx2_tables no_tables
#define avx512_tables no_tables
#define vnni_tables no_tables
#define bf16_tables no_tables
#endif

static const hd_kernel *const *const tables[HD_ISA_COUNT] = {
    [HD_ISA_PORTABLE] = portable_tables, [HD_ISA_AVX2] = avx2_tables, [HD_ISA_AVX512] = avx512_tables,
    [HD_ISA_VNNI] = vnni_tables,         [HD_ISA_BF16] = bf16_tables,
};

static const char *const isa_names[HD_ISA_COUNT] = {
    [HD_ISA_PORTABLE] = "portable", [HD_ISA_AVX2] = "avx2", [HD_ISA_AVX512] = "avx512", [HD_ISA_VNNI] = "vnni", [HD_ISA_BF16] = "bf16",
};

const char *hd_isa_name(hd_isa isa)
{
    return (unsigned)isa < HD_ISA_COUNT ? isa_names[isa] : "?";
}

int hd_isa_parse(const char *name, hd_isa *out)
{
    for (int i = 0; i < HD_ISA_COUNT; i++)
        if (strcmp(name, isa_names[i]) == 0) {
            *out = (hd_isa)i;
            return HD_OK;
        }
    return HD_EINVAL;
}

static hd_isa detect_machine(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    unsigned eax, ebx, ecx = 0, edx;
    bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !f16c) return HD_ISA_PORTABLE;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512vl"))
        return HD_ISA_AVX2;
    if (!__builtin_cpu_supports("avx512vnni")) return HD_ISA_AVX512;
    return __builtin_cpu_supports("avx512bf16") ? HD_ISA_BF16 : HD_ISA_VNNI;
#else
    return HD_ISA_PORTABLE;
#endif
}

hd_isa hd_isa_detect(void)
{
    hd_isa best = detect_machine(), wanted;
    const char *name = getenv("HEDDLE_ISA");
    if (name && hd_isa_parse(name, &wanted) == HD_OK && wanted < best) return wanted;
    return best;
}

const hd_kernel *hd_cpu_kernel_find(const char *op, hd_isa isa, const hd_kernel_args *a)
{
    for (int level = (int)isa; level >= 0; level--)
        for (const hd_kernel *const *table = tables[level]; *table; table++)
            for (const hd_kernel *k = *table; k->op; k++)
                if (strcmp(k->op, op) == 0 && (!k->supports || k->supports(a))) return k;
    return NULL;
}

/* The tables of each instruction set as one list: constant, but only known after linking, so it is filled on first use. */
#define MAX_KERNELS 256
static const hd_kernel *flat[HD_ISA_COUNT][MAX_KERNELS];
static int flat_count[HD_ISA_COUNT];
static pthread_once_t flat_once = PTHREAD_ONCE_INIT;

static void fill_flat(void)
{
    for (int isa = 0; isa < HD_ISA_COUNT; isa++)
        for (const hd_kernel *const *table = tables[isa]; *table; table++)
            for (const hd_kernel *k = *table; k->op; k++) {
                assert(flat_count[isa] < MAX_KERNELS);
                flat[isa][flat_count[isa]++] = k;
            }
}

const hd_kernel *const *hd_cpu_kernels(hd_isa isa, int *count)
{
    pthread_once(&flat_once, fill_flat);
    *count = flat_count[isa];
    return flat[isa];
}
