/* calibrate_cases.c: which kernels are measured. Shapes cover what training and serving of models of a few hundred million parameters ask of one rank; what is
 * larger runs as the largest of these does. */
#include "cluster/calibrate_cases.h"

#include <string.h>

#include "base/mem.h"

typedef struct family {
    const char *op, *attrs, *operands;
    uint32_t warm, in_place, unread;
    enum { BOTH, F32_ONLY, BF16_ONLY } dtypes;
    const char *letters;          /* of the sizes' columns */
    const int64_t (*sizes)[4];    /* ended by a zero row */
} family;

static const int64_t plane[][4] = {{16, 64}, {128, 256}, {256, 512}, {1024, 512}, {1024, 1536}, {2048, 2048}, {0}};
static const int64_t rows[][4] = {{16, 256}, {256, 128}, {256, 512}, {1024, 384}, {1024, 1024}, {2048, 1024}, {0}};
static const int64_t state[][4] = {{1, 512}, {64, 512}, {384, 384}, {1024, 384}, {1024, 1024}, {4096, 768}, {0}};
static const int64_t losses[][4] = {{64, 1024}, {256, 4096}, {1024, 4096}, {256, 32000}, {0}};
static const int64_t tables[][4] = {{64, 256, 1024}, {1024, 384, 4096}, {1024, 768, 16384}, {0}};
/* queries, sequence, heads, features of a head */
static const int64_t attentions[][4] = {{256, 64, 4, 32},   {256, 64, 8, 64},  {256, 256, 6, 64},   {1024, 128, 8, 64}, {1024, 256, 6, 64},
                                        {1024, 256, 8, 32}, {512, 512, 8, 64}, {1024, 1024, 4, 64}, {512, 256, 4, 128}, {128, 128, 3, 64}, {0}};
/* queries, sequence, heads, key heads: a prompt of one sequence, a token */
static const int64_t prompts[][4] = {{16, 16, 8, 8}, {64, 64, 8, 8}, {256, 256, 6, 6}, {256, 256, 12, 12}, {256, 256, 16, 4}, {512, 512, 8, 8}, {512, 512, 16, 4}, {0}};
static const int64_t decodes[][4] = {{1, 32, 6, 6},   {1, 128, 6, 6},   {1, 128, 12, 12}, {1, 128, 16, 4},  {1, 512, 6, 6},
                                     {1, 512, 12, 12}, {1, 512, 16, 4}, {1, 1024, 16, 16}, {1, 2048, 32, 8}, {0}};

#define SCALES "eps=1e-05 dtype=@ sum_dtype=f32"
#define RMS "eps=1e-06 offset=0 dtype=@ sum_dtype=f32"
#define GRADS "eps=1e-05 dtype=f32 sum_dtype=f32"
#define RMS_GRADS "eps=1e-06 offset=0 dtype=f32 sum_dtype=f32"
#define SEEN "scale=0.125 causal=true window=0 max_keys=$S block=$S dtype=@"

#define PAGED(keys) "scale=0.125 softcap=0 window=0 block=16 mean_keys=" keys " dtype=@"
#define BLOCKS(positions) "@[T,H,E] @[R,G,E] @[R,G,E] i32[T]:" positions " i32[T] i32[O,B]:i"

static const family families[] = {
    {"add", "dtype=@", "@[T,D] @[T,D]", 3, 1, 0, BOTH, "TD", plane},
    {"add", "dtype=@", "@[T,D] @[D]", 1, 1, 0, BOTH, "TD", plane},
    {"mul", "dtype=@", "@[T,D] @[T,D]", 1, 0, 0, BOTH, "TD", plane},
    {"cast", "dtype=bf16", "f32[T,D]", 0, 0, 0, F32_ONLY, "TD", plane},
    {"cast", "dtype=f32", "bf16[T,D]", 1, 0, 0, BF16_ONLY, "TD", plane},
    {"gelu_tanh", "dtype=@", "@[T,D]", 1, 0, 0, BOTH, "TD", plane},
    {"gelu_tanh_grad", "dtype=@", "@[T,D] @[T,D]", 2, 2, 0, BOTH, "TD", plane},
    {"fused", "chain=2:silu(0;0;@),mul(2,1;0;@)>3:@", "@[T,D] @[T,D]", 3, 0, 0, BOTH, "TD", plane},
    {"fused", "chain=2:add(0,1;0;@),cast(2;0;@),gelu_tanh(3;0;@)>3:@,4:@", "@[T,D] @[D]", 1, 1, 0, BOTH, "TD", plane},
    {"fused", "chain=3:mul(0,1;0;@),silu_grad(2,3;0;@)>4:@", "@[T,D] @[T,D] @[T,D]", 1, 0, 0, BOTH, "TD", plane},
    {"fused", "chain=3:add(0,1;0;@),add(3,2;0;@)>4:@", "@[T,D] @[T,D] @[T,D]", 7, 1, 0, BOTH, "TD", plane},
    {"relu", "dtype=@", "@[T,D]", 1, 0, 0, BOTH, "TD", plane},
    {"dropout", "p=0.1 site=5 dtype=@", "@[T,D] i64[K] i64[T]:v i32[T]:p", 1, 0, 0, BOTH, "TD", plane},
    {"layer_norm", SCALES, "@[T,D] f32[D] f32[D] f32[T,D]", 9, 0, 0, BOTH, "TD", rows},
    {"layer_norm_grad_x", GRADS, "@[T,D] f32[T,D] f32[D] f32[T] f32[T] f32[T,D]", 33, 0, 0, BOTH, "TD", rows},
    {"layer_norm_grad_gamma", SCALES, "@[T,D] f32[T,D] f32[T] f32[T]", 3, 0, 0, BOTH, "TD", rows},
    {"rms_norm", RMS, "@[T,D] f32[D] f32[T,D]", 5, 0, 0, BOTH, "TD", rows},
    {"rms_norm_grad_x", RMS_GRADS, "@[T,D] f32[T,D] f32[D] f32[T] f32[T,D]", 17, 0, 0, BOTH, "TD", rows},
    {"rms_norm_grad_gamma", RMS, "@[T,D] f32[T,D] f32[T]", 3, 0, 0, BOTH, "TD", rows},
    {"reduce_sum", "axes=1 keep=false dtype=f32", "@[T,D]", 1, 0, 0, BOTH, "TD", rows},
    {"softmax", "dtype=@", "@[T,D]", 1, 0, 0, BOTH, "TD", rows},
    {"sum_squares", "", "f32[T,D]", 1, 0, 0, F32_ONLY, "TD", state},
    {"adamw", "beta1=0.9 beta2=0.95 eps=1e-08 weight_decay=0.1", "f32[T,D] f32[T,D] f32[T,D] f32[T,D] f32[] f32[] f32[] f32[]", 8, 7, 8, F32_ONLY, "TD", state},
    {"sgd", "momentum=0.9 weight_decay=0 nesterov=false", "f32[T,D] f32[T,D] f32[T,D] f32[] f32[] f32[]", 4, 3, 0, F32_ONLY, "TD", state},
    {"cross_entropy", "", "@[T,V] i32[T]:v", 1, 0, 0, BOTH, "TV", losses},
    {"cross_entropy_grad", "first=0 classes=0 dtype=@", "f32[T] @[T,V] i32[T]:v f32[T]", 2, 2, 0, BOTH, "TV", losses},
    {"gather", "first=0 dtype=f32", "f32[V,D] i32[T]:v", 0, 0, 0, F32_ONLY, "TDV", tables},
    {"scatter_add", "rows=$V first=0 dtype=f32", "@[T,D] i32[T]:v", 1, 0, 0, BOTH, "TDV", tables},
    {"rope", "interleaved=false inverse=false scale=1 dtype=@", "@[T,H,E] i32[T]:p f32[F]", 1, 1, 0, BOTH, "TSHE", attentions},
    {"attention", SEEN, "@[T,H,E] @[T,H,E] @[T,H,E] i32[T]:p i32[T]:p i32[T]:s i32[T]:s", 7, 0, 0, BOTH, "TSHE", attentions},
    {"attention_grad", SEEN, "@[T,H,E] @[T,H,E] @[T,H,E] @[T,H,E] @[T,H,E] f32[T,H] i32[T]:p i32[T]:p i32[T]:s i32[T]:s", 1, 0, 0, BOTH, "TSHE", attentions},
    {"paged_attention", PAGED("$M"), BLOCKS("p"), 7, 0, 0, BOTH, "TSHG", prompts},
    {"paged_attention", PAGED("$S"), BLOCKS("l"), 1, 0, 0, BOTH, "TSHG", decodes},
};
enum { FAMILIES = sizeof families / sizeof families[0], LETTERS = 26 };

/* Forms of a product: of activations by weights, of gradients by weights, of activations by gradients (into f32), and what serves: by packed weights. */
typedef struct product { const char *attrs, *operands; bool packed; int64_t m[8], n[8], k[8]; } product;
static const product products[] = {
    {"spec=mk,nk->mn dtype=@", "@[M,K] @[N,K]", false, {1, 16, 128, 1024}, {64, 128, 256, 512, 1024, 4096}, {64, 256, 1024, 4096}},
    {"spec=mk,kn->mn dtype=@", "@[M,K] @[K,N]", false, {16, 128, 1024}, {64, 128, 256, 512, 1024, 4096}, {64, 256, 1024, 4096}},
    {"spec=km,kn->mn dtype=f32", "@[K,M] @[K,N]", false, {64, 256, 1024, 4096}, {64, 128, 256, 512, 1024, 4096}, {32, 256, 1024}},
    {"spec=mk,nk->mn dtype=@", "@[M,K] @[N,K]", true, {1, 8, 64, 512}, {64, 256, 1024, 4096, 16384}, {64, 256, 1024, 4096}},
};
/* By weights in the block types of GGUF files that models mostly come in. */
static const product in_blocks[] = {
#define BY(type) {"spec=mk,nk->mn dtype=@", "@[M,K] " type "[N,K]", true, {1, 8, 64, 256}, {256, 1024, 4096, 16384}, {1024, 4096}}
    BY("Q4_0"), BY("Q5_0"), BY("Q8_0"), BY("Q4_K"), BY("Q5_K"), BY("Q6_K"), BY("F16"),
};
enum { PRODUCTS = sizeof products / sizeof products[0], IN_BLOCKS = sizeof in_blocks / sizeof in_blocks[0] };
#define MOST_FLOPS 2.3e9          /* of one product: beyond it, what it reaches stays the same */
#define MOST_WEIGHTS (1 << 24)    /* elements: 64 MiB are far beyond any cache */

typedef struct case_list { hd_case *list; size_t n, cap; bool failed; } case_list;

static void add_case(case_list *l, const hd_case *c)
{
    if (l->failed || hd_grow(&l->list, &l->cap, l->n + 1, sizeof *l->list)) l->failed = true;
    else l->list[l->n++] = *c;
}

static bool wants(const family *f, hd_dtype t)
{
    return f->dtypes == BOTH || (t == HD_F32) == (f->dtypes == F32_ONLY);
}

static void add_family(case_list *l, const family *f, hd_dtype t)
{
    for (const int64_t (*s)[4] = f->sizes; wants(f, t) && (*s)[0]; s++) {
        hd_case c = {f->op, f->attrs, f->operands, f->warm, f->in_place, f->unread, false, t, {{0}}};
        for (int i = 0; f->letters[i]; i++) c.size.of[f->letters[i] - 'A'] = (*s)[i];
        if (!c.size.of['E' - 'A']) c.size.of['E' - 'A'] = 64;
        c.size.of['F' - 'A'] = c.size.of['E' - 'A'] / 2;
        c.size.of['K' - 'A'] = 2;
        if (!c.size.of['S' - 'A']) c.size.of['S' - 'A'] = 64;
        if (!c.size.of['V' - 'A']) c.size.of['V' - 'A'] = 64;
        c.size.of['M' - 'A'] = (c.size.of['S' - 'A'] + 1) / 2; /* keys that a token of a prompt sees, on average */
        c.size.of['O' - 'A'] = 1;
        c.size.of['B' - 'A'] = (c.size.of['S' - 'A'] + 15) / 16; /* blocks of 16, and their rows */
        c.size.of['R' - 'A'] = 16 * c.size.of['B' - 'A'];
        add_case(l, &c);
    }
}

static void add_product(case_list *l, const product *p, hd_dtype t)
{
    for (int m = 0; p->m[m]; m++)
        for (int n = 0; p->n[n]; n++)
            for (int k = 0; p->k[k]; k++) {
                hd_case c = {"contract", p->attrs, p->operands, 1, 0, 0, p->packed, t, {{0}}};
                if (2.0 * (double)p->m[m] * (double)p->n[n] * (double)p->k[k] > MOST_FLOPS || p->n[n] * p->k[k] > MOST_WEIGHTS) continue;
                c.size.of['M' - 'A'] = p->m[m], c.size.of['N' - 'A'] = p->n[n], c.size.of['K' - 'A'] = p->k[k];
                add_case(l, &c);
            }
}

hd_case *hd_calibrate_cases(int *n)
{
    static const hd_dtype dtypes[] = {HD_F32, HD_BF16};
    case_list l = {0};
    for (int i = 0; i < IN_BLOCKS; i++) add_product(&l, &in_blocks[i], HD_F32);
    for (int t = 0; t < 2; t++) {
        for (int i = 0; i < PRODUCTS; i++) add_product(&l, &products[i], dtypes[t]);
        for (int i = 0; i < FAMILIES; i++) add_family(&l, &families[i], dtypes[t]);
    }
    *n = (int)l.n;
    if (!l.failed) return l.list;
    hd_free(l.list);
    return NULL;
}
