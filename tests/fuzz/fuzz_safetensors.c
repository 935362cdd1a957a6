/* libFuzzer target: any bytes as a safetensors file; of a sound one, every element is read. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "tensor/safetensors.h"

static void read_all(const hd_weight *w)
{
    double block[64];
    int64_t n = (int64_t)(w->bytes / hd_dtype_size(w->dtype));
    for (int64_t i = 0; i < n; i += 64) hd_weight_load(w, i, n - i < 64 ? n - i : 64, block, HD_F64);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    hd_safetensors s;
    hd_error err = {0};
    int rc = hd_safetensors_parse(&s, data, size, "input", &err);
    if ((rc != 0) != (err.code != 0) || (rc && (!err.message[0] || s.count))) abort();
    for (size_t i = 0; i < s.count; i++) {
        read_all(&s.tensors[i]);
        if (hd_safetensors_find(&s, s.tensors[i].name) != &s.tensors[i]) abort();
    }
    hd_safetensors_close(&s);
    return 0;
}
