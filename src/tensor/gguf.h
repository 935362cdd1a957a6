/* gguf.h: reading and writing GGUF files (versions 2 and 3, little endian): typed metadata and tensors in ggml's block types.
 *
 * A file is "GGUF", a version, counts of tensors and of metadata; the metadata (key, type, value); for each tensor its name, dimensions, type and
 * offset; and, from the next multiple of the alignment (general.alignment, or 32) on, the data. A file that is opened without error is sound: every
 * string and array lies inside it, names and keys are unique and hold no NUL, every tensor's bytes lie inside the data at an aligned offset and overlap
 * no other's. Bytes that belong to no tensor are allowed: they are padding.
 *
 * Dimensions are turned round on the way in and out: here they are row-major, as everywhere in Heddle. */
#ifndef HD_TENSOR_GGUF_H
#define HD_TENSOR_GGUF_H

#include "base/file.h"
#include "base/mem.h"
#include "tensor/safetensors.h"

/* As numbered in files. */
typedef enum hd_gguf_kind {
    HD_GGUF_U8, HD_GGUF_I8, HD_GGUF_U16, HD_GGUF_I16, HD_GGUF_U32, HD_GGUF_I32, HD_GGUF_F32, HD_GGUF_BOOL, HD_GGUF_STRING, HD_GGUF_ARRAY,
    HD_GGUF_U64, HD_GGUF_I64, HD_GGUF_F64, HD_GGUF_KINDS
} hd_gguf_kind;

/* Bytes in the file; those of a string that stands by itself are a copy with a NUL behind. Either may hold NULs of its own. */
typedef struct hd_gguf_text {
    const char *data;
    size_t size;
} hd_gguf_text;

typedef struct hd_gguf_value {
    const char *key;
    hd_gguf_kind kind;
    hd_gguf_kind element;       /* of an array's elements; kind itself otherwise. Arrays of arrays are refused */
    uint64_t count;             /* an array's; 1 otherwise */
    const unsigned char *data;  /* numbers: little endian, any alignment, in the file */
    const hd_gguf_text *texts;  /* [count] where element is STRING */
} hd_gguf_value;

/* One open file. Zero-initialise. */
typedef struct hd_gguf {
    const char *path;
    uint32_t version, alignment;
    hd_gguf_value *values; /* in the file's order */
    size_t value_count;
    hd_weight *tensors;        /* sorted by name; dtype F32 and `quant` set where the type is one of blocks */
    const hd_quant **types;    /* [count] of each, plain ones too */
    size_t count;
    const hd_gguf_value **by_key; /* sorted */
    hd_map map;            /* empty when parsed from memory */
    hd_arena arena;
} hd_gguf;

/* ---- reading ---- */

/* Maps the file at path and checks all of it but the numbers. On failure *g is empty and err names file and field, in one line. */
int hd_gguf_open(hd_gguf *g, const char *path, hd_error *err);
/* The same over n bytes of memory, which must outlive g; name stands for the file in messages. */
int hd_gguf_parse(hd_gguf *g, const void *bytes, size_t n, const char *name, hd_error *err);
void hd_gguf_close(hd_gguf *g);
/* Whether a file begins as a GGUF file does. */
bool hd_gguf_is(const char *path);

/* NULL when there is none. */
const hd_weight *hd_gguf_find(const hd_gguf *g, const char *name);
const hd_gguf_value *hd_gguf_get(const hd_gguf *g, const char *key);
const char *hd_gguf_kind_name(hd_gguf_kind k); /* "u32", "array", ... */
/* The type of a tensor of this file. */
const hd_quant *hd_gguf_type(const hd_gguf *g, const hd_weight *tensor);

/* Element i of a value of numbers or booleans; as an integer, where they are (0 otherwise), u64 beyond i64 saturating. */
double hd_gguf_number(const hd_gguf_value *v, uint64_t i);
int64_t hd_gguf_integer(const hd_gguf_value *v, uint64_t i);
bool hd_gguf_has_integers(const hd_gguf_value *v);

/* Typed reads. A missing key leaves *out alone and returns 0; one of another type, or out of [lo, hi], is HD_EFORMAT naming file and key. Any integer
 * type serves as an integer, and any number as a number. */
int hd_gguf_int(const hd_gguf *g, const char *key, int64_t lo, int64_t hi, int64_t *out, hd_error *err);
int hd_gguf_real(const hd_gguf *g, const char *key, double lo, double hi, double *out, hd_error *err);
int hd_gguf_bool(const hd_gguf *g, const char *key, bool *out, hd_error *err);
/* The text lives as long as g; refused where it holds a NUL. */
int hd_gguf_string(const hd_gguf *g, const char *key, const char **out, hd_error *err);
/* An array of strings, or of numbers where `element` isn't STRING; *out NULL when it is missing. */
int hd_gguf_array(const hd_gguf *g, const char *key, bool strings, const hd_gguf_value **out, hd_error *err);
/* HD_EFORMAT unless key is there. */
int hd_gguf_need(const hd_gguf *g, const char *key, hd_error *err);

/* ---- writing: version 3 ---- */

typedef struct hd_gguf_writer hd_gguf_writer;

/* A file to be: first its metadata and tensors are declared, in the order that they get, then it is begun and filled. NULL on failure. */
hd_gguf_writer *hd_gguf_writer_new(hd_error *err);
/* What fails here (memory) shows in hd_gguf_begin. */
void hd_gguf_put_int(hd_gguf_writer *w, const char *key, hd_gguf_kind kind, int64_t v);
void hd_gguf_put_real(hd_gguf_writer *w, const char *key, hd_gguf_kind kind, double v);
void hd_gguf_put_bool(hd_gguf_writer *w, const char *key, bool v);
void hd_gguf_put_string(hd_gguf_writer *w, const char *key, const char *text, size_t n);
/* Arrays: of n strings, or of n numbers (kind: I32 or F32). */
void hd_gguf_put_texts(hd_gguf_writer *w, const char *key, const hd_gguf_text *texts, size_t n);
void hd_gguf_put_numbers(hd_gguf_writer *w, const char *key, hd_gguf_kind kind, const void *numbers, size_t n);
/* As it stands in another file. */
void hd_gguf_put_value(hd_gguf_writer *w, const hd_gguf_value *v);
/* Declares a tensor, row-major; its number is the count of those before it. HD_EINVAL: rank over 4, or a row that isn't whole blocks. */
int hd_gguf_add(hd_gguf_writer *w, const char *name, const hd_quant *type, int rank, const int64_t *dim, hd_error *err);

/* Writes "<path>.partial" up to the data. */
int hd_gguf_begin(hd_gguf_writer *w, const char *path, hd_error *err);
/* n numbers of the next tensor or the rest of the last one, in order, quantized to its type. n: whole blocks. */
int hd_gguf_write(hd_gguf_writer *w, const float *x, int64_t n, hd_error *err);
/* The same, of the type's own bytes. */
int hd_gguf_write_blocks(hd_gguf_writer *w, const void *blocks, size_t bytes, hd_error *err);
/* Syncs, renames to path and frees w. rc: what went wrong since begin (0: nothing), which is then returned, and the file removed. */
int hd_gguf_end(hd_gguf_writer *w, int rc, hd_error *err);
/* Frees w, which was not begun (may be NULL). */
void hd_gguf_writer_free(hd_gguf_writer *w);

#endif
