/* contract: any two-operand einsum, as a dense product over strided operands. */
#include "kernels/cpu/isa/gemm_isa.h"

static bool supports(const hd_kernel_args *a)
{
    hd_gemm g;
    if (a->in[0].blocks || a->in[1].blocks) return false; /* isa/blocks.c */
    return hd_gemm_from_contract(&g, a) && HD_ISA(hd_gemm_takes)(&g);
}

static size_t workspace(const hd_kernel_args *a, int threads)
{
    hd_gemm g;
    return hd_gemm_from_contract(&g, a) ? HD_ISA(hd_gemm_workspace)(&g, threads) : 0;
}

static void run(const hd_kernel_args *a)
{
    hd_gemm g;
    if (hd_gemm_from_contract(&g, a)) HD_ISA(hd_gemm_run)(&g, a);
}

const hd_kernel HD_ISA(hd_kernels_contract)[] = {
    {"contract", supports, workspace, run},
    {0},
};
