/* attention_merge.c: two attentions over different keys into one, row by row of (token, head). */
#include <math.h>

#include "kernels/cpu/isa/rows.h"

#if HD_ISA_LEVEL <= 2

enum { OUT_A, LSE_A, OUT_B, LSE_B };

static void run_attention_merge(const hd_kernel_args *a)
{
    const hd_tensor *xa = &a->in[OUT_A], *xb = &a->in[OUT_B], *y = &a->out[0];
    const float *la = a->in[LSE_A].data, *lb = a->in[LSE_B].data;
    float *lse = a->n_out > 1 ? a->out[1].data : NULL;
    int64_t n = tensor_columns(xa), begin, end;
    hd_split(tensor_rows(xa), 1, a->tid, a->threads, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        double p = la[r], q = lb[r], most = fmax(p, q), base = most > -INFINITY ? most : 0;
        double wp = exp(p - base), wq = exp(q - base), sum = wp + wq, scale = sum == 0 ? 0 : 1 / sum;
        float fp = (float)(wp * scale), fq = (float)(wq * scale);
        for (int64_t j = 0; y->data && j < n; j += HD_VL) {
            int m = lanes_left(n, j);
            vf v = vf_load_upto(xa->data, xa->dtype, r * n + j, m) * fp;
            vf_store_upto(y->data, y->dtype, r * n + j, vf_fma(vf_load_upto(xb->data, xb->dtype, r * n + j, m), vf_set1(fq), v), m);
        }
        if (lse) lse[r] = (float)(base + log(sum));
    }
}

static bool supports_attention_merge(const hd_kernel_args *a)
{
    bool stats = a->in[LSE_A].dtype == HD_F32 && a->in[LSE_B].dtype == HD_F32 && (is_absent(&a->out[1]) || a->out[1].dtype == HD_F32);
    return !a->accumulate && stats && operands_are_vf(a, OUT_A, OUT_A) && operands_are_vf(a, OUT_B, OUT_B) && (is_vf_dtype(a->out[0].dtype) || is_absent(&a->out[0]));
}

const hd_kernel HD_ISA(hd_kernels_attention_merge)[] = {
    {"attention_merge", supports_attention_merge, NULL, run_attention_merge},
    {0},
};

#else
const hd_kernel HD_ISA(hd_kernels_attention_merge)[] = {{0}};
#endif
