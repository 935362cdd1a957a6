/* safetensors.h: reading and writing safetensors files, and the weights of a Hugging Face model directory.
 *
 * A file is 8 bytes of header length (little endian), a JSON header {name: {dtype, shape, data_offsets}}, and the data. A file that is
 * opened without error is sound: every tensor lies inside it, has the bytes that its shape and dtype ask for, and overlaps no other.
 *
 * Nothing promises that a tensor's data is aligned for its dtype: read it through hd_weight_load. */
#ifndef HD_TENSOR_SAFETENSORS_H
#define HD_TENSOR_SAFETENSORS_H

#include <jansson.h>
#include "base/file.h"
#include "base/mem.h"
#include "tensor/dtype.h"
#include "tensor/quant.h"

/* A named tensor in a file; everything belongs to the table that it stands in. */
typedef struct hd_weight {
    const char *name;
    const char *file; /* the path it was read from, for messages */
    hd_dtype dtype;   /* BOOL is read as U8 */
    int rank;
    int64_t dim[HD_MAX_RANK];
    const unsigned char *data; /* mapped, read-only, any alignment; NULL when bytes is 0 */
    size_t bytes;
    const hd_quant *quant; /* of a GGUF file's tensor in blocks (tensor/quant.h), whose dtype says F32; NULL: plain */
} hd_weight;

/* One open file. Zero-initialise. */
typedef struct hd_safetensors {
    hd_weight *tensors; /* sorted by name */
    size_t count;
    json_t *metadata; /* "__metadata__": strings by name; NULL when absent */
    hd_map map;       /* empty when parsed from memory */
    hd_arena arena;
} hd_safetensors;

/* A model directory: model.safetensors, or model.safetensors.index.json and its shards. Zero-initialise. */
typedef struct hd_weights {
    hd_weight *tensors; /* sorted by name; the index's tensors only */
    size_t count;
    hd_safetensors *shards;
    size_t shard_count;
    hd_arena arena;
} hd_weights;

/* ---- reading ---- */

/* Maps the file at path and checks all of it but the values. On failure *s is empty and err names file and tensor. */
int hd_safetensors_open(hd_safetensors *s, const char *path, hd_error *err);
/* The same over n bytes of memory, which must outlive s; name stands for the file in messages. */
int hd_safetensors_parse(hd_safetensors *s, const void *bytes, size_t n, const char *name, hd_error *err);
void hd_safetensors_close(hd_safetensors *s);
/* NULL when there is no tensor of this name. */
const hd_weight *hd_safetensors_find(const hd_safetensors *s, const char *name);

/* Opens a model directory, or one safetensors file. Every tensor that an index names is there, in a file inside the directory. */
int hd_weights_open(hd_weights *w, const char *path, hd_error *err);
void hd_weights_close(hd_weights *w);
const hd_weight *hd_weights_find(const hd_weights *w, const char *name);

/* Elements [begin, begin + n) converted to dtype, rounded once, into dst. */
void hd_weight_load(const hd_weight *w, int64_t begin, int64_t n, void *dst, hd_dtype dtype);
/* HD_EFORMAT, naming file and tensor, unless w has this shape. */
int hd_weight_need_shape(const hd_weight *w, int rank, const int64_t *dim, hd_error *err);

/* ---- writing ---- */

/* What is to be written, declared up front. */
typedef struct hd_weight_spec {
    const char *name; /* UTF-8 */
    hd_dtype dtype;
    int rank;
    int64_t dim[HD_MAX_RANK];
} hd_weight_spec;

typedef struct hd_safetensors_writer hd_safetensors_writer;

/* Creates the file at path at its full size and writes its header, with metadata {"format": "pt"} and what `extra` (an object of strings,
 * or NULL) adds. The data lies in order of decreasing element size, then name, whatever the order of specs. NULL on failure. */
hd_safetensors_writer *hd_safetensors_create(const char *path, const hd_weight_spec *specs, size_t count, const json_t *extra, hd_error *err);
/* Writes n elements of tensor specs[which], starting at element begin, from src of dtype `from`, converting them to the file's. In any
 * order; several threads may write at once. */
int hd_safetensors_write(hd_safetensors_writer *w, size_t which, int64_t begin, int64_t n, const void *src, hd_dtype from, hd_error *err);
/* Syncs the file and frees w. When not everything was written, or syncing fails, the file is removed and that is an error. */
int hd_safetensors_finish(hd_safetensors_writer *w, hd_error *err);
/* Removes the unfinished file and frees w (may be NULL). */
void hd_safetensors_abandon(hd_safetensors_writer *w);

/* Several processes writing one file: one makes the frame (the file at its full size, with its header), then each opens it and writes the pieces that it has.
 * Every call is given the same specs. */
typedef enum hd_share_part { HD_SHARE_ALONE, HD_SHARE_FRAME, HD_SHARE_PIECES } hd_share_part;
typedef struct hd_share {
    hd_share_part part;
    int64_t total, written; /* bytes of tensors: added up over frames; over pieces. All is there once everybody's `written` make up `total` */
} hd_share;

/* As hd_safetensors_create, for this part (NULL: alone). */
hd_safetensors_writer *hd_safetensors_begin(const hd_share *share, const char *path, const hd_weight_spec *specs, size_t count, const json_t *extra, hd_error *err);
/* Syncs the file and frees w; alone, as hd_safetensors_finish. rc: what went wrong since (0: nothing), which is returned; the file is then removed by those
 * who created it. */
int hd_safetensors_end(hd_share *share, hd_safetensors_writer *w, int rc, hd_error *err);

/* The dtype's name in the format: "F32", "BF16", ... */
const char *hd_safetensors_dtype_name(hd_dtype t);

#endif
