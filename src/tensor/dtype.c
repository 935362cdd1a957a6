#include "tensor/dtype.h"

#include <assert.h>
#include <math.h>

static const struct { const char *name; size_t size; bool is_float; } types[HD_DTYPE_COUNT] = {
    [HD_F64] = { "f64", 8, true },  [HD_F32] = { "f32", 4, true },  [HD_BF16] = { "bf16", 2, true }, [HD_F16] = { "f16", 2, true },
    [HD_I64] = { "i64", 8, false }, [HD_I32] = { "i32", 4, false }, [HD_I8] = { "i8", 1, false },    [HD_U8] = { "u8", 1, false },
};

/* What else the world calls them: safetensors, PyTorch, NumPy. */
static const struct { const char *name; hd_dtype type; } aliases[] = {
    { "F64", HD_F64 }, { "float64", HD_F64 }, { "double", HD_F64 },
    { "F32", HD_F32 }, { "float32", HD_F32 }, { "float", HD_F32 },
    { "BF16", HD_BF16 }, { "bfloat16", HD_BF16 },
    { "F16", HD_F16 }, { "float16", HD_F16 }, { "half", HD_F16 },
    { "I64", HD_I64 }, { "int64", HD_I64 }, { "I32", HD_I32 }, { "int32", HD_I32 },
    { "I8", HD_I8 }, { "int8", HD_I8 }, { "U8", HD_U8 }, { "uint8", HD_U8 }, { "BOOL", HD_U8 }, { "bool", HD_U8 },
};

size_t hd_dtype_size(hd_dtype t) { return types[t].size; }
const char *hd_dtype_name(hd_dtype t) { return (unsigned)t < HD_DTYPE_COUNT ? types[t].name : "?"; }
bool hd_dtype_is_float(hd_dtype t) { return types[t].is_float; }

int hd_dtype_parse(const char *name, hd_dtype *out)
{
    for (int t = 0; t < HD_DTYPE_COUNT; t++)
        if (!strcmp(name, types[t].name)) return *out = (hd_dtype)t, HD_OK;
    for (size_t i = 0; i < sizeof aliases / sizeof *aliases; i++)
        if (!strcmp(name, aliases[i].name)) return *out = aliases[i].type, HD_OK;
    return HD_EINVAL;
}

/* ---- 16-bit floats ---- */

/* f64 to a float of 1 sign, `exponent` and `mantissa` bits (16 in all), rounded once to nearest, ties to even. */
static inline uint16_t narrow(double d, int exponent, int mantissa)
{
    uint64_t u;
    memcpy(&u, &d, 8);
    uint32_t sign = (uint32_t)(u >> 63) << 15;
    uint32_t infinity = ((1u << exponent) - 1) << mantissa;
    int e = (int)(u >> 52 & 0x7ff);
    uint64_t m = u & 0xfffffffffffffull;
    if (e == 0x7ff) return (uint16_t)(sign | infinity | (m ? 1u << (mantissa - 1) | (uint32_t)(m >> (52 - mantissa)) : 0));
    if (e == 0) return (uint16_t)sign; /* zero, or a subnormal f64: far below half of our least subnormal */
    m |= 1ull << 52;
    int target = e - 1023 + ((1 << (exponent - 1)) - 1); /* biased exponent over there; <= 0: a subnormal */
    if (target >= (1 << exponent)) return (uint16_t)(sign | infinity);
    int shift = 52 - mantissa + (target <= 0 ? 1 - target : 0);
    if (shift > 54) return (uint16_t)sign;
    uint64_t rounded = (m + (1ull << (shift - 1)) - 1 + (m >> shift & 1)) >> shift;
    /* A carry out of the mantissa moves into the exponent by itself, up to infinity. */
    uint32_t bits = (target > 0 ? (uint32_t)(target - 1) << mantissa : 0) + (uint32_t)rounded;
    return (uint16_t)(sign | (bits < infinity ? bits : infinity));
}

uint16_t hd_bf16_from_f64(double d) { return narrow(d, 8, 7); }
uint16_t hd_f16_from_f64(double d) { return narrow(d, 5, 10); }
uint16_t hd_f16_from_f32(float f) { return narrow(f, 5, 10); } /* f32 to f64 is exact */

float hd_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, bits = (uint32_t)(h & 0x7fff) << 13, u;
    float f;
    if (bits >= 0x0f800000u) { /* infinity or NaN, kept quiet */
        u = sign | 0x7f800000u | (bits & 0x7fffffu) | (bits & 0x7fffffu ? 0x400000u : 0);
        memcpy(&f, &u, 4);
        return f;
    }
    /* Read as an f32 it is 2^112 too small, its subnormals as well; the product is exact. */
    memcpy(&f, &bits, 4);
    f *= 0x1p112f;
    memcpy(&u, &f, 4);
    u |= sign;
    memcpy(&f, &u, 4);
    return f;
}

/* ---- elements ---- */

double hd_load_f64(const void *p, hd_dtype t, int64_t i)
{
    switch (t) {
    case HD_F64: return ((const double *)p)[i];
    case HD_F32: return ((const float *)p)[i];
    case HD_BF16: return hd_bf16_to_f32(((const uint16_t *)p)[i]);
    case HD_F16: return hd_f16_to_f32(((const uint16_t *)p)[i]);
    default: return (double)hd_load_i64(p, t, i);
    }
}

int64_t hd_load_i64(const void *p, hd_dtype t, int64_t i)
{
    switch (t) {
    case HD_I64: return ((const int64_t *)p)[i];
    case HD_I32: return ((const int32_t *)p)[i];
    case HD_I8: return ((const int8_t *)p)[i];
    case HD_U8: return ((const uint8_t *)p)[i];
    default: assert(!"an integer dtype"); return 0;
    }
}

static int64_t clamp_i64(int64_t v, int64_t lo, int64_t hi) { return v < lo ? lo : v > hi ? hi : v; }

static void store_i64(void *p, hd_dtype t, int64_t i, int64_t v)
{
    switch (t) {
    case HD_I64: ((int64_t *)p)[i] = v; return;
    case HD_I32: ((int32_t *)p)[i] = (int32_t)clamp_i64(v, INT32_MIN, INT32_MAX); return;
    case HD_I8: ((int8_t *)p)[i] = (int8_t)clamp_i64(v, INT8_MIN, INT8_MAX); return;
    case HD_U8: ((uint8_t *)p)[i] = (uint8_t)clamp_i64(v, 0, UINT8_MAX); return;
    default: assert(!"an integer dtype");
    }
}

/* To the nearest integer, ties to even, saturating; NaN gives 0. */
static int64_t round_to_i64(double v)
{
    if (isnan(v)) return 0;
    if (v >= 0x1p63) return INT64_MAX;
    if (v < -0x1p63) return INT64_MIN;
    return (int64_t)rint(v);
}

void hd_store_f64(void *p, hd_dtype t, int64_t i, double v)
{
    switch (t) {
    case HD_F64: ((double *)p)[i] = v; return;
    case HD_F32: ((float *)p)[i] = (float)v; return;
    case HD_BF16: ((uint16_t *)p)[i] = hd_bf16_from_f64(v); return;
    case HD_F16: ((uint16_t *)p)[i] = hd_f16_from_f64(v); return;
    default: store_i64(p, t, i, round_to_i64(v));
    }
}

/* ---- whole arrays ---- */

/* An integer as f64 that rounds to f32 and below as the integer itself would: what does not fit leaves a sticky bit. */
static double sticky_f64(int64_t v)
{
    if (v > -((int64_t)1 << 53) && v < (int64_t)1 << 53) return (double)v;
    int64_t high = v & ~(int64_t)0x3ff;
    return (double)(high == v ? v : high | 0x400);
}

static void convert_one(void *dst, hd_dtype dt, const void *src, hd_dtype st, int64_t i)
{
    if (hd_dtype_is_float(st)) hd_store_f64(dst, dt, i, hd_load_f64(src, st, i));
    else if (!hd_dtype_is_float(dt)) store_i64(dst, dt, i, hd_load_i64(src, st, i));
    else if (dt == HD_F64) hd_store_f64(dst, dt, i, hd_load_f64(src, st, i));
    else hd_store_f64(dst, dt, i, sticky_f64(hd_load_i64(src, st, i)));
}

/* The common pairs as loops that a compiler can vectorise. */
static bool convert_fast(void *dst, hd_dtype dt, const void *src, hd_dtype st, int64_t n)
{
    if (dt == HD_F32 && st == HD_BF16)
        for (int64_t i = 0; i < n; i++) ((float *)dst)[i] = hd_bf16_to_f32(((const uint16_t *)src)[i]);
    else if (dt == HD_BF16 && st == HD_F32)
        for (int64_t i = 0; i < n; i++) ((uint16_t *)dst)[i] = hd_bf16_from_f32(((const float *)src)[i]);
    else if (dt == HD_F32 && st == HD_F64)
        for (int64_t i = 0; i < n; i++) ((float *)dst)[i] = (float)((const double *)src)[i];
    else if (dt == HD_F64 && st == HD_F32)
        for (int64_t i = 0; i < n; i++) ((double *)dst)[i] = ((const float *)src)[i];
    else return false;
    return true;
}

void hd_convert(void *dst, hd_dtype dt, const void *src, hd_dtype st, int64_t n)
{
    if (n <= 0) return;
    if (dt == st) {
        if (dst != src) memmove(dst, src, (size_t)n * hd_dtype_size(dt));
        return;
    }
    if (convert_fast(dst, dt, src, st, n)) return;
    for (int64_t i = 0; i < n; i++) convert_one(dst, dt, src, st, i);
}

/* ---- tensors ---- */

int64_t hd_tensor_count(const hd_tensor *t)
{
    int64_t n = 1;
    for (int i = 0; i < t->rank; i++) n *= t->dim[i];
    return n;
}

size_t hd_tensor_bytes(const hd_tensor *t) { return (size_t)hd_tensor_count(t) * hd_dtype_size(t->dtype); }
