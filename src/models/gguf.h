/* gguf.h: language models in GGUF files: the config in their metadata, their weights, and writing both. */
#ifndef HD_MODELS_GGUF_H
#define HD_MODELS_GGUF_H

#include "exec/store.h"
#include "models/config.h"
#include "models/weights.h"
#include "tensor/gguf.h"

/* What a file's metadata and tensors say of its model. HD_EFORMAT or HD_EUNSUPPORTED, naming file and key, otherwise. */
int hd_lm_gguf_config(hd_lm_config *c, const hd_gguf *g, hd_error *err);
/* Fills the parameters of s, dequantized. A missing, unexpected or misshapen tensor is HD_EFORMAT. */
int hd_lm_gguf_load(hd_store *s, const hd_lm_config *c, const hd_gguf *g, hd_error *err);
/* Marks the parameters of a graph without precision passes that can stay in the file's own block types, those that `takes` takes (hd_type.blocks). */
int hd_lm_gguf_keep_blocks(hd_graph *g, const hd_lm_config *c, const hd_gguf *file, bool (*takes)(void *arg, const hd_quant *type), void *arg, hd_error *err);
/* Adds those parameters that s has not got (of a partitioned graph, the pieces of s's rank) to s, where hd_store_add_graph and hd_lm_gguf_load then pass them over; the file must
 * stay open as long as s. */
int hd_lm_gguf_lend(hd_store *s, const hd_graph *g, const hd_lm_config *c, const hd_gguf *file, hd_error *err);
/* hd_lm_gguf_load from a path. */
int hd_lm_gguf_open_and_load(hd_store *s, const hd_lm_config *c, const char *path, hd_error *err);

/* Declares a model's metadata but for its tokenizer. HD_EUNSUPPORTED where the format cannot say what the model is. */
int hd_lm_gguf_metadata(hd_gguf_writer *w, const hd_lm_config *c, const hd_quant *type, hd_error *err);
/* Declares all of a model but its tokenizer, in `type` (F32, F16, BF16, Q8_0 or Q4_0). Norms and biases stay F32; with Q4_0, the embedding and the head
 * are Q8_0; rows that are not whole blocks are F16. HD_EUNSUPPORTED where the format cannot say what the model is. */
int hd_lm_gguf_declare(hd_gguf_writer *w, const hd_lm_config *c, const hd_quant *type, hd_error *err);
/* Writes what was declared, out of a store that holds all of it. */
int hd_lm_gguf_write(hd_gguf_writer *w, const hd_lm_config *c, const hd_store *s, hd_error *err);

/* The config of a model directory or a GGUF file. */
int hd_lm_config_open(hd_lm_config *c, const char *path, hd_error *err);

#endif
