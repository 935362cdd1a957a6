/* libFuzzer target: any bytes as a GGUF file; of a sound one, every number and string is read, and what it says of a model. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "data/tokenizer_gguf.h"
#include "models/gguf.h"
#include "tensor/gguf.h"

static void read_tensor(const hd_gguf *g, const hd_weight *w)
{
    float block[64];
    int64_t n = 1;
    const hd_quant *q = hd_gguf_type(g, w);
    for (int i = 0; i < w->rank; i++) n *= w->bytes ? w->dim[i] : 0;
    for (int64_t i = 0; q->dequantize && i < n; i += 64) hd_weight_load(w, i, n - i < 64 ? n - i : 64, block, HD_F32);
    if (hd_gguf_find(g, w->name) != w) abort();
}

static size_t read_value(const hd_gguf *g, const hd_gguf_value *v)
{
    size_t sum = 0;
    for (uint64_t i = 0; i < v->count; i++) {
        sum += hd_gguf_number(v, i) > 0;
        for (size_t k = 0; v->texts && k < v->texts[i].size; k++) sum += (size_t)v->texts[i].data[k];
    }
    if (hd_gguf_get(g, v->key) != v) abort();
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    hd_gguf g;
    hd_error err = {0};
    int rc = hd_gguf_parse(&g, data, size, "input", &err);
    if ((rc != 0) != (err.code != 0) || (rc && (!err.message[0] || g.count))) abort();
    for (size_t i = 0; i < g.count; i++) read_tensor(&g, &g.tensors[i]);
    for (size_t i = 0; i < g.value_count; i++) read_value(&g, &g.values[i]);
    hd_lm_config c;
    hd_error model = {0}, words = {0};
    if (!rc && (hd_lm_gguf_config(&c, &g, &model) != 0) != (model.code != 0)) abort();
    hd_tokenizer *t = rc ? NULL : hd_tokenizer_from_gguf(&g, &words);
    if (!rc && !t != (words.code != 0)) abort();
    hd_ids ids = {0};
    if (t) hd_tokenizer_encode(t, "Hello \xe4\xb8\x96, 12  a\n", 18, true, &ids, &words);
    hd_ids_free(&ids);
    hd_tokenizer_free(t);
    hd_gguf_close(&g);
    return 0;
}
