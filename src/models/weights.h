/* weights.h: which tensors a Hugging Face checkpoint keeps the parameters of a language model in, and moving them to and from a Store.
 *
 * One table per family (weights.c) names every tensor with its shape and the parameters that lie in it; loading, saving and checking are
 * loops over hd_lm_tensors, which is that table written out for one config. */
#ifndef HD_MODELS_WEIGHTS_H
#define HD_MODELS_WEIGHTS_H

#include "exec/pieces.h"
#include "models/config.h"

/* What lies otherwise in a GGUF file than in a Hugging Face checkpoint (models/gguf.c). */
typedef enum hd_gguf_change {
    HD_GGUF_SAME,
    HD_GGUF_TURNED,   /* transposed: GPT-2's Conv1D */
    HD_GGUF_PAIRS,    /* rows of a head in another order: features that rotate together are neighbours */
    HD_GGUF_PLUS_ONE, /* norms' weights with the one that they are relative to */
    HD_GGUF_CHANGES
} hd_gguf_change;

/* One Hugging Face tensor: one parameter, or several of one size side by side along its last dimension (GPT-2's c_attn), or several one below the other
 * (Phi-3's qkv_proj and gate_up_proj). */
typedef struct hd_lm_tensor {
    char name[96];    /* as transformers writes it: "model.layers.3.self_attn.q_proj.weight" */
    int rank;         /* 1 or 2 */
    int64_t dim[2];
    int parts;
    char gguf[64];    /* its name in GGUF files: "blk.3.attn_q.weight" */
    hd_gguf_change change;
    int64_t rows[3];  /* of each part where they lie one below the other; 0: each has dim[rank-1] / parts of the last dimension */
    char path[3][48]; /* parameters: "layers.3.attn.q" */
} hd_lm_tensor;

/* Every tensor of a checkpoint of c, in the order of the model. The caller frees *out with hd_free. */
int hd_lm_tensors(const hd_lm_config *c, hd_lm_tensor **out, size_t *count, hd_error *err);

/* Elements of one of a tensor's parts, and where they lie in it. */
int64_t hd_lm_tensor_part(const hd_lm_tensor *t, int part, hd_file_place *place);

/* Fills t's parameters from w, which must have its shape. Those that another stage of a pipeline holds, and hollow ones, are passed over. */
int hd_lm_tensor_load(hd_store *s, const hd_lm_tensor *t, const hd_weight *w, hd_error *err);

/* Fills the parameters of s from a model directory, one safetensors file or a GGUF file, converting to the store's dtypes. Names may lack the prefix
 * ("transformer.", "model."). Buffers that hold no parameters are skipped; a missing, unexpected or misshapen tensor is HD_EFORMAT. A
 * store that is one rank's takes its pieces. */
int hd_lm_weights_load(hd_store *s, const hd_lm_config *c, const char *path, hd_error *err);

/* Writes dir/model.safetensors in dtype (f32, bf16, f16), or shards of at most shard_bytes (0: no limit) with an index, as transformers
 * does. Writes no config.json: see hd_lm_save. */
int hd_lm_weights_save(const hd_store *s, const hd_lm_config *c, const char *dir, hd_dtype dtype, uint64_t shard_bytes, hd_error *err);

/* Makes dir and writes weights, config.json and generation_config.json: what transformers' from_pretrained loads. */
int hd_lm_save(const hd_store *s, const hd_lm_config *c, const char *dir, hd_dtype dtype, uint64_t shard_bytes, hd_error *err);
/* The same as one of several ranks, each with a store of its pieces: the frame (files, headers, what is small), or these pieces. share NULL: alone. */
int hd_lm_save_share(const hd_store *s, const hd_lm_config *c, const char *dir, hd_dtype dtype, uint64_t shard_bytes, hd_share *share, hd_error *err);

#endif
