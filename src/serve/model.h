/* model.h: what a served model is read from (a Hugging Face directory or a GGUF file), and a Graph over it made ready for use. */
#ifndef HD_SERVE_MODEL_H
#define HD_SERVE_MODEL_H

#include "data/tokenizer.h"
#include "exec/backend.h"
#include "exec/exec.h"
#include "exec/packed_file.h"
#include "models/gguf.h"
#include "models/lm.h"
#include "plan/parallel.h"

typedef struct hd_model_files {
    hd_lm_config config;
    hd_tokenizer *tokenizer; /* NULL: the model has none */
    const char *path;        /* NULL: random weights */
    hd_gguf file;            /* open where is_gguf, as long as a store that blocks were lent to */
    bool is_gguf;
    bool keep_blocks;        /* weights stay in the file's block types where the back end has products for them */
    uint64_t seed;           /* of random weights */
} hd_model_files;

/* Reads config and tokenizer, and maps a GGUF file; path must outlive *m. On failure *m is empty. */
int hd_model_files_open(hd_model_files *m, const char *path, hd_error *err);
void hd_model_files_close(hd_model_files *m);

/* Whether weights of the file are in block types, or f16: kept so, they are multiplied with numbers in f32. */
bool hd_model_files_in_blocks(const hd_model_files *m, hd_isa isa);
/* "Q4_K, Q6_K, F32": what a GGUF file's tensors hold, most bytes first; "bf16" of a directory. Written to out, which is returned. */
const char *hd_model_files_types(const hd_model_files *m, char *out, size_t n);
/* Bytes of the weights once they are loaded, in `precision` where they don't stay in blocks. */
int64_t hd_model_files_bytes(const hd_model_files *m, hd_dtype precision);

/* A Graph of the model on its way to running: blocks, fusion, what one rank does of each node. g is the caller's. parallel (NULL: one rank) is written out into
 * *plan, which may then be NULL. */
int hd_model_split_graph(const hd_model_files *m, hd_graph *g, const hd_backend *b, const hd_parallel *parallel, hd_plan *plan, hd_error *err);
/* What a stage of the pipeline (0 of 1: all there is) does of such a graph, ready to be lowered; the caller's. NULL on failure. */
hd_graph *hd_model_stage(const hd_model_files *m, const hd_graph *g, int stage, int stages, hd_error *err);
/* HD_EMEMCAP, naming `advice`, unless so many bytes are available. */
int hd_model_check_memory(int64_t bytes, const char *advice, hd_error *err);
/* A Store with the weights, of one rank of a partitioned graph. Ranks may make theirs at the same time. packed (NULL or empty: none): an open file of all that
 * the rank's program has packed, to borrow that from; plain weights that it then doesn't read are left out. NULL on failure. */
hd_store *hd_model_store(const hd_model_files *m, const hd_graph *g, int rank, const hd_packed_file *packed, hd_error *err);
/* Gives back plain weights that no instruction reads, since they are held packed: once an executor is there. */
void hd_model_drop_plain(hd_store *s, const hd_program *p);

#endif
