#include "kernels/cpu/isa/gemm_isa.h"

const hd_kernel HD_ISA(hd_kernels_conv)[] = {
    {0},
};
