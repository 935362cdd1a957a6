/* reduce.h: the one order of sums: element by element, addends in the order given; f32, bf16 and f16 in f32, f64 in f64, integers exactly (modulo
 * 2^64, cut to the dtype), rounded once. The greatest of some floats is NaN when one of them is. */
#ifndef HD_COMM_REDUCE_H
#define HD_COMM_REDUCE_H

#include "tensor/dtype.h"

/* Elements [first, first + count) of each of n_in >= 1 arrays, reduced, to elements [to, to + count) of each of n_out arrays. An output may be the same
 * memory as an input when first == to. stream: write past the caches. */
void hd_comm_reduce(hd_dtype dtype, bool max, const void *const *in, int n_in, int64_t first, int64_t count, void *const *out, int n_out, int64_t to, bool stream);

/* memcpy that doesn't pass through the caches where the machine can. Followed by hd_stream_end before others are told. */
void hd_copy_stream(void *to, const void *from, size_t bytes);
/* The same to two places, reading once. */
void hd_copy_stream_two(void *to, void *also, const void *from, size_t bytes);
void hd_stream_end(void);

#endif
