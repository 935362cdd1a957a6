/* dtype.h: element types, shapes and tensors over raw memory. */
#ifndef HD_TENSOR_DTYPE_H
#define HD_TENSOR_DTYPE_H

#include <string.h>
#include "base/error.h"

size_t hd_dtype_size(hd_dtype t);          /* bytes per element */
const char *hd_dtype_name(hd_dtype t);     /* "f32", "bf16", ... */
int hd_dtype_parse(const char *name, hd_dtype *out); /* 0 or HD_EINVAL; also takes "float32", "bfloat16", "F32", "I64", ... */
bool hd_dtype_is_float(hd_dtype t);

/* Round to nearest even, NaN kept quiet; as the hardware's conversions do. */
static inline uint16_t hd_bf16_from_f32(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}
static inline float hd_bf16_to_f32(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
uint16_t hd_f16_from_f32(float f);
float hd_f16_to_f32(uint16_t h);
/* f64 rounded once to bf16 or f16 (through f32 it would be rounded twice). */
uint16_t hd_bf16_from_f64(double d);
uint16_t hd_f16_from_f64(double d);

/* Element i of an array of any dtype as f64 / stored from f64 with one rounding (integers: toward nearest, saturating). */
double hd_load_f64(const void *p, hd_dtype t, int64_t i);
void hd_store_f64(void *p, hd_dtype t, int64_t i, double v);
/* Integer element (I64, I32, I8, U8). */
int64_t hd_load_i64(const void *p, hd_dtype t, int64_t i);

/* Converts n elements; dst and src may be the same array only when the dtypes are. Rounds once. */
void hd_convert(void *dst, hd_dtype dt, const void *src, hd_dtype st, int64_t n);

/* How a piece lies in memory. Chosen at lowering, never seen by the Graph's mathematics. */
typedef enum hd_format {
    HD_PLAIN,  /* row-major, contiguous at the actual extents */
    HD_PACKED, /* a contraction's constant operand in the panels of the back end (kernels/cpu/gemm.h) */
} hd_format;

/* One tensor as a kernel sees it. The memory belongs to someone else. */
struct hd_quant;
typedef struct hd_tensor {
    void *data;     /* NULL: an optional operand that is absent, or (when asking for workspace) not there yet */
    hd_dtype dtype;
    hd_format format;
    const struct hd_quant *blocks; /* (tensor/quant.h) the elements lie in blocks of this type, row after row as in a GGUF file (HD_PLAIN) or as a product takes
                                    * them (HD_PACKED, kernels/cpu/blocks.h); dtype is then what they count as. NULL: elements of dtype */
    int rank;       /* 0: a scalar */
    int64_t dim[HD_MAX_RANK]; /* actual extents; 0 is legal */
} hd_tensor;

int64_t hd_tensor_count(const hd_tensor *t); /* elements */
size_t hd_tensor_bytes(const hd_tensor *t);  /* bytes, HD_PLAIN */

#endif
