/* quant.h: the element and block types of GGUF files: how many bytes a row takes, and what numbers it holds.
 *
 * A block type keeps a row in blocks of so many elements, each with its scale (and offset), so that a row's length is a multiple of the block. Blocks
 * are as in ggml's files: little endian, f16 scales, at any alignment. Dequantizing is exact to the last bit: the same f32 operations in the same
 * order as ggml's reference and the Python package `gguf`. */
#ifndef HD_TENSOR_QUANT_H
#define HD_TENSOR_QUANT_H

#include "tensor/dtype.h"

typedef struct hd_quant {
    const char *name;  /* "Q4_K" */
    uint32_t id;       /* in GGUF files */
    int32_t block;     /* elements of a block: 1, 32, 64, 128 or 256 */
    int32_t bytes;     /* of a block */
    bool plain;        /* one element after another, of: */
    hd_dtype dtype;
    /* (optional) n blocks to n * block numbers. NULL: the type is known by its size alone. */
    void (*dequantize)(const unsigned char *blocks, int64_t n, float *out);
    /* (optional) n * block numbers to n blocks, as ggml's reference rounds. */
    void (*quantize)(const float *x, int64_t n, unsigned char *blocks);
} hd_quant;

/* The whole table, in order of id. */
extern const hd_quant hd_quants[];
extern const int hd_quant_count;

/* NULL: there is no such type. By name: "Q8_0" or "q8_0". */
const hd_quant *hd_quant_by_id(uint32_t id);
const hd_quant *hd_quant_by_name(const char *name);
const hd_quant *hd_quant_of_dtype(hd_dtype t);

/* Bytes of n elements, n a multiple of the block; false: it isn't one, or the bytes overflow 63 bits. */
bool hd_quant_bytes(const hd_quant *q, int64_t n, int64_t *bytes);

/* Elements [begin, begin + n) of a row (or of many, one behind the other) at data, whatever begin is, as dtype, rounded once from f32. q->dequantize. */
void hd_quant_load(const hd_quant *q, const unsigned char *data, int64_t begin, int64_t n, void *dst, hd_dtype dtype);

#endif
