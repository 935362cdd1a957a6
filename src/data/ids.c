/* ids.c: growing lists of token ids. */
#include "base/mem.h"
#include "data/tokenizer.h"

int hd_ids_append(hd_ids *ids, int32_t id, hd_error *err)
{
    if (hd_grow(&ids->data, &ids->cap, ids->len + 1, sizeof *ids->data)) return hd_fail_memory(err, ids->len * sizeof *ids->data, "token ids");
    ids->data[ids->len++] = id;
    return 0;
}
