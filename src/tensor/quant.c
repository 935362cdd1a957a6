/* quant.c: block formats of ggml (ggml-common.h names the layouts, ggml-quants.c the arithmetic).
 *
 * Notation below: d, m: f16 scale and offset; q: 4-bit numbers, low halves of all bytes first, then high halves; h: fifth bits.
 *   Q4_0  32: d, q[16]                    d (q - 8)             Q4_1  32: d, m, q[16]              d q + m
 *   Q5_0  32: d, h[4], q[16]              d (q - 16)            Q5_1  32: d, m, h[4], q[16]        d q + m
 *   Q8_0  32: d, i8[32]                   d q                   IQ4_NL 32: d, q[16]                d value[q]
 * The K types hold 256 numbers in groups of 16 or 32, each with a small integer scale (and offset) under one f16 for all:
 *   Q2_K  groups of 16: scales[16] (4 bits scale, 4 bits offset), 2 bits[64], d, m          d s q - m o
 *   Q3_K  groups of 16: third bits[32], 2 bits[64], 6-bit scales[12], d                     d (s - 32) (q - 4)
 *   Q4_K  groups of 32: d, m, 6-bit scales and offsets[12], q[128]                          d s q - m o
 *   Q5_K  groups of 32: d, m, scales and offsets[12], fifth bits[32], q[128]                d s q - m o
 *   Q6_K  groups of 16: low 4 bits[128], high 2 bits[64], i8 scales[16], d                  d s (q - 32)
 *   IQ4_XS groups of 32: d, high scale bits u16, low scale bits[4], q[128]                  d (s - 32) value[q] */
#include "tensor/quant.h"

#include <math.h>
#include <strings.h>

#include "tensor/safetensors.h"

enum { QK = 256 };

static float f16_at(const unsigned char *p)
{
    return hd_f16_to_f32((uint16_t)(p[0] | p[1] << 8));
}

static void put_f16(unsigned char *p, float v)
{
    uint16_t h = hd_f16_from_f32(v);
    p[0] = (unsigned char)h;
    p[1] = (unsigned char)(h >> 8);
}

static uint32_t u32_at(const unsigned char *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* ---- blocks of 32 ---- */

static void load_q4_0(const unsigned char *p, int64_t n, float *out)
{
    for (; n--; p += 18, out += 32) {
        float d = f16_at(p);
        for (int i = 0; i < 16; i++) {
            out[i] = d * (float)((p[2 + i] & 15) - 8);
            out[16 + i] = d * (float)((p[2 + i] >> 4) - 8);
        }
    }
}

static void load_q4_1(const unsigned char *p, int64_t n, float *out)
{
    for (; n--; p += 20, out += 32) {
        float d = f16_at(p), m = f16_at(p + 2);
        for (int i = 0; i < 16; i++) {
            out[i] = d * (float)(p[4 + i] & 15) + m;
            out[16 + i] = d * (float)(p[4 + i] >> 4) + m;
        }
    }
}

static int fifth(uint32_t high, int i) { return (int)(high >> i & 1) << 4; }

static void load_q5_0(const unsigned char *p, int64_t n, float *out)
{
    for (; n--; p += 22, out += 32) {
        float d = f16_at(p);
        uint32_t high = u32_at(p + 2);
        for (int i = 0; i < 16; i++) {
            out[i] = d * (float)(((p[6 + i] & 15) | fifth(high, i)) - 16);
            out[16 + i] = d * (float)((p[6 + i] >> 4 | fifth(high, 16 + i)) - 16);
        }
    }
}

static void load_q5_1(const unsigned char *p, int64_t n, float *out)
{
    for (; n--; p += 24, out += 32) {
        float d = f16_at(p), m = f16_at(p + 2);
        uint32_t high = u32_at(p + 4);
        for (int i = 0; i < 16; i++) {
            out[i] = d * (float)((p[8 + i] & 15) | fifth(high, i)) + m;
            out[16 + i] = d * (float)(p[8 + i] >> 4 | fifth(high, 16 + i)) + m;
        }
    }
}

static void load_q8_0(const unsigned char *p, int64_t n, float *out)
{
    for (; n--; p += 34, out += 32) {
        float d = f16_at(p);
        for (int i = 0; i < 32; i++) out[i] = d * (float)(int8_t)p[2 + i];
    }
}

/* The 16 numbers of IQ4: closer together around zero. */
static const int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

static void load_iq4_group(const unsigned char *q, float d, float *out)
{
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)iq4_values[q[i] & 15];
        out[16 + i] = d * (float)iq4_values[q[i] >> 4];
    }
}

static void load_iq4_nl(const unsigned char *p, int64_t n, float *out)
{
    for (; n--; p += 18, out += 32) load_iq4_group(p + 2, f16_at(p), out);
}

/* ---- blocks of 256 ---- */

static void load_q2_k(const unsigned char *p, int64_t n, float *out)
{
    for (; n--; p += 84, out += QK) {
        float d = f16_at(p + 80), m = f16_at(p + 82);
        for (int g = 0; g < 16; g++) { /* of each 32 bytes, bits 0-1 are the first 32 numbers, bits 2-3 the next */
            const unsigned char *q = p + 16 + g / 8 * 32 + g % 2 * 16;
            float scale = d * (float)(p[g] & 15), offset = m * (float)(p[g] >> 4);
            int shift = g / 2 % 4 * 2;
            for (int i = 0; i < 16; i++) out[16 * g + i] = scale * (float)(q[i] >> shift & 3) - offset;
        }
    }
}

/* 16 scales of 6 bits in 12 bytes: four low bits of numbers g and g + 8 share a byte; the high two of g, g+4, g+8, g+12 share one behind them. */
static int q3_scale(const unsigned char *p, int g)
{
    int low = g < 8 ? p[g] & 15 : p[g - 8] >> 4;
    return (low | (p[8 + g % 4] >> (g / 4 * 2) & 3) << 4) - 32;
}

static void load_q3_k(const unsigned char *p, int64_t n, float *out)
{
    for (; n--; p += 110, out += QK) {
        float d = f16_at(p + 108);
        for (int g = 0; g < 16; g++) {
            const unsigned char *q = p + 32 + g / 8 * 32 + g % 2 * 16, *high = p + g % 2 * 16;
            float scale = d * (float)q3_scale(p + 96, g);
            int shift = g / 2 % 4 * 2, bit = g / 2;
            for (int i = 0; i < 16; i++) out[16 * g + i] = scale * (float)((q[i] >> shift & 3) - (high[i] >> bit & 1 ? 0 : 4));
        }
    }
}

/* 8 scales and 8 offsets of 6 bits in 12 bytes: those of groups 0-3 lie in the low bits of bytes 0-3 and 4-7; those of 4-7 have their low four bits in
 * bytes 8-11 and their high two on top of the first ones'. */
static void q4_scale(const unsigned char *p, int g, int *scale, int *offset)
{
    if (g < 4) {
        *scale = p[g] & 63;
        *offset = p[4 + g] & 63;
    } else {
        *scale = (p[4 + g] & 15) | (p[g - 4] >> 6) << 4;
        *offset = p[4 + g] >> 4 | (p[g] >> 6) << 4;
    }
}

/* Q4_K, and Q5_K where high != NULL: a bit of each byte there for each group. */
static void load_k_groups(const unsigned char *p, const unsigned char *q, const unsigned char *high, float *out)
{
    float d = f16_at(p), m = f16_at(p + 2);
    for (int g = 0; g < 8; g++, out += 32) {
        int s, o, shift = g % 2 * 4;
        q4_scale(p + 4, g, &s, &o);
        float scale = d * (float)s, offset = m * (float)o;
        const unsigned char *low = q + g / 2 * 32;
        for (int i = 0; i < 32; i++) {
            int v = (low[i] >> shift & 15) | (high ? (high[i] >> g & 1) << 4 : 0);
            out[i] = scale * (float)v - offset;
        }
    }
}

static void load_q4_k(const unsigned char *p, int64_t n, float *out)
{
    for (; n--; p += 144, out += QK) load_k_groups(p, p + 16, NULL, out);
}

static void load_q5_k(const unsigned char *p, int64_t n, float *out)
{
    for (; n--; p += 176, out += QK) load_k_groups(p, p + 48, p + 16, out);
}

static void load_q6_k(const unsigned char *p, int64_t n, float *out)
{
    for (; n--; p += 210, out += QK) {
        float d = f16_at(p + 208);
        for (int g = 0; g < 16; g++) { /* of each 128 numbers: 64 bytes of low bits, 32 of high ones */
            int half = g / 8, quarter = g / 2 % 4, first = g % 2 * 16;
            const unsigned char *low = p + half * 64 + quarter % 2 * 32 + first, *high = p + 128 + half * 32 + first;
            float scale = d * (float)(int8_t)p[192 + g];
            for (int i = 0; i < 16; i++) {
                int v = (low[i] >> (quarter / 2 * 4) & 15) | (high[i] >> (quarter * 2) & 3) << 4;
                out[16 * g + i] = scale * (float)(v - 32);
            }
        }
    }
}

static void load_iq4_xs(const unsigned char *p, int64_t n, float *out)
{
    for (; n--; p += 136, out += QK) {
        float d = f16_at(p);
        int high = p[2] | p[3] << 8;
        for (int g = 0; g < 8; g++) {
            int s = (p[4 + g / 2] >> (g % 2 * 4) & 15) | (high >> (2 * g) & 3) << 4;
            load_iq4_group(p + 8 + 16 * g, d * (float)(s - 32), out + 32 * g);
        }
    }
}

/* ---- plain types ---- */

static void load_plain(hd_dtype t, const unsigned char *p, int64_t n, float *out)
{
    hd_weight w = {.dtype = t, .data = p};
    hd_weight_load(&w, 0, n, out, HD_F32);
}
static void load_f32(const unsigned char *p, int64_t n, float *out) { load_plain(HD_F32, p, n, out); }
static void load_f16(const unsigned char *p, int64_t n, float *out) { load_plain(HD_F16, p, n, out); }
static void load_bf16(const unsigned char *p, int64_t n, float *out) { load_plain(HD_BF16, p, n, out); }
static void load_f64(const unsigned char *p, int64_t n, float *out) { load_plain(HD_F64, p, n, out); }
static void load_i8(const unsigned char *p, int64_t n, float *out) { load_plain(HD_I8, p, n, out); }
static void load_i32(const unsigned char *p, int64_t n, float *out) { load_plain(HD_I32, p, n, out); }
static void load_i64(const unsigned char *p, int64_t n, float *out) { load_plain(HD_I64, p, n, out); }

static void store_f32(const float *x, int64_t n, unsigned char *p) { memcpy(p, x, (size_t)n * 4); }

static void store_f16(const float *x, int64_t n, unsigned char *p)
{
    for (int64_t i = 0; i < n; i++) put_f16(p + 2 * i, x[i]);
}

static void store_bf16(const float *x, int64_t n, unsigned char *p)
{
    for (int64_t i = 0; i < n; i++) {
        uint16_t h = hd_bf16_from_f32(x[i]);
        memcpy(p + 2 * i, &h, 2);
    }
}

/* ---- quantizing, as ggml's quantize_row_*_ref ---- */

/* The number of largest magnitude becomes -8; halves go up. */
static void store_q4_0(const float *x, int64_t n, unsigned char *p)
{
    for (; n--; p += 18, x += 32) {
        float most = 0, signed_most = 0;
        for (int i = 0; i < 32; i++)
            if (fabsf(x[i]) > most) most = fabsf(signed_most = x[i]);
        float d = signed_most / -8, inverse = d != 0 ? 1.0f / d : 0;
        unsigned char q[32];
        for (int i = 0; i < 32; i++) {
            float v = x[i] * inverse + 8.5f;
            q[i] = !(v > 0) ? 0 : v >= 15 ? 15 : (unsigned char)v; /* a NaN too becomes something */
        }
        put_f16(p, d);
        for (int i = 0; i < 16; i++) p[2 + i] = (unsigned char)(q[i] | q[16 + i] << 4);
    }
}

/* The largest magnitude becomes 127; halves go away from zero. */
static void store_q8_0(const float *x, int64_t n, unsigned char *p)
{
    for (; n--; p += 34, x += 32) {
        float most = 0;
        for (int i = 0; i < 32; i++) most = fmaxf(most, fabsf(x[i]));
        float d = most / 127, inverse = d != 0 ? 1.0f / d : 0;
        put_f16(p, d);
        for (int i = 0; i < 32; i++) {
            float v = roundf(x[i] * inverse);
            p[2 + i] = (unsigned char)(int8_t)(v >= -127 && v <= 127 ? v : 0);
        }
    }
}

/* ---- the table ---- */

#define PLAIN(name, id, size, dtype, load, store) { name, id, 1, size, true, dtype, load, store }
#define BLOCKS(name, id, block, bytes, load, store) { name, id, block, bytes, false, HD_F32, load, store }

const hd_quant hd_quants[] = {
    PLAIN("F32", 0, 4, HD_F32, load_f32, store_f32),
    PLAIN("F16", 1, 2, HD_F16, load_f16, store_f16),
    BLOCKS("Q4_0", 2, 32, 18, load_q4_0, store_q4_0),
    BLOCKS("Q4_1", 3, 32, 20, load_q4_1, NULL),
    BLOCKS("Q5_0", 6, 32, 22, load_q5_0, NULL),
    BLOCKS("Q5_1", 7, 32, 24, load_q5_1, NULL),
    BLOCKS("Q8_0", 8, 32, 34, load_q8_0, store_q8_0),
    BLOCKS("Q2_K", 10, QK, 84, load_q2_k, NULL),
    BLOCKS("Q3_K", 11, QK, 110, load_q3_k, NULL),
    BLOCKS("Q4_K", 12, QK, 144, load_q4_k, NULL),
    BLOCKS("Q5_K", 13, QK, 176, load_q5_k, NULL),
    BLOCKS("Q6_K", 14, QK, 210, load_q6_k, NULL),
    BLOCKS("IQ2_XXS", 16, QK, 66, NULL, NULL),
    BLOCKS("IQ2_XS", 17, QK, 74, NULL, NULL),
    BLOCKS("IQ3_XXS", 18, QK, 98, NULL, NULL),
    BLOCKS("IQ1_S", 19, QK, 50, NULL, NULL),
    BLOCKS("IQ4_NL", 20, 32, 18, load_iq4_nl, NULL),
    BLOCKS("IQ3_S", 21, QK, 110, NULL, NULL),
    BLOCKS("IQ2_S", 22, QK, 82, NULL, NULL),
    BLOCKS("IQ4_XS", 23, QK, 136, load_iq4_xs, NULL),
    PLAIN("I8", 24, 1, HD_I8, load_i8, NULL),
    PLAIN("I32", 26, 4, HD_I32, load_i32, NULL),
    PLAIN("I64", 27, 8, HD_I64, load_i64, NULL),
    PLAIN("F64", 28, 8, HD_F64, load_f64, NULL),
    BLOCKS("IQ1_M", 29, QK, 56, NULL, NULL),
    PLAIN("BF16", 30, 2, HD_BF16, load_bf16, store_bf16),
    BLOCKS("TQ1_0", 34, QK, 54, NULL, NULL),
    BLOCKS("TQ2_0", 35, QK, 66, NULL, NULL),
    BLOCKS("MXFP4", 39, 32, 17, NULL, NULL),
};
const int hd_quant_count = sizeof hd_quants / sizeof *hd_quants;

const hd_quant *hd_quant_by_id(uint32_t id)
{
    for (int i = 0; i < hd_quant_count; i++)
        if (hd_quants[i].id == id) return &hd_quants[i];
    return NULL;
}

const hd_quant *hd_quant_by_name(const char *name)
{
    for (int i = 0; i < hd_quant_count; i++)
        if (!strcasecmp(hd_quants[i].name, name)) return &hd_quants[i];
    return NULL;
}

const hd_quant *hd_quant_of_dtype(hd_dtype t)
{
    for (int i = 0; i < hd_quant_count; i++)
        if (hd_quants[i].plain && hd_quants[i].dtype == t) return &hd_quants[i];
    return NULL;
}

bool hd_quant_bytes(const hd_quant *q, int64_t n, int64_t *bytes)
{
    return n >= 0 && n % q->block == 0 && !__builtin_mul_overflow(n / q->block, (int64_t)q->bytes, bytes);
}

/* Whole blocks into a buffer; what of them is wanted goes on. */
void hd_quant_load(const hd_quant *q, const unsigned char *data, int64_t begin, int64_t n, void *dst, hd_dtype dtype)
{
    enum { BUFFER = 1024 };
    float buffer[BUFFER];
    char *out = dst;
    while (n > 0) {
        int64_t block = begin / q->block, skip = begin % q->block, most = BUFFER / q->block;
        int64_t blocks = (skip + n + q->block - 1) / q->block;
        if (blocks > most) blocks = most;
        int64_t take = blocks * q->block - skip;
        if (take > n) take = n;
        q->dequantize(data + block * q->bytes, blocks, buffer);
        hd_convert(out, dtype, buffer + skip, HD_F32, take);
        out += (size_t)take * hd_dtype_size(dtype);
        begin += take;
        n -= take;
    }
}
