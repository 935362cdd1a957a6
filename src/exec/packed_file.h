/* packed_file.h: packed constants (pack.h) in a file, mapped read-only by any number of processes.
 *
 *     header      "HDPACKED", the file's version, counts and sizes, a checksum of the whole header (packed_file.c: struct header)
 *     text        what is in the file and what it was made from, a line each; below
 *     checksums   64 bits of each tensor
 *     tensors     each from the next page on
 *
 * All but the checksums follows from the Program, the rank, the back end and what the weights were read from: a file fits if its text is, byte for byte, the
 * one that would be written now. Little endian. */
#ifndef HD_EXEC_PACKED_FILE_H
#define HD_EXEC_PACKED_FILE_H

#include "exec/pack.h"

typedef struct hd_packed_tensor {
    int buffer;    /* of the program */
    int64_t bytes;
    uint64_t offset; /* in the file */
} hd_packed_tensor;

/* What one rank of a Program has packed, as a file would hold it. */
typedef struct hd_packed_list {
    const hd_program *program; /* not owned */
    int place;
    hd_str text;  /* "heddle VERSION packing N", the lines of `source`, "isa NAME", "rank K of N", and for each tensor "tensor PATH TYPE LAYOUT BYTES" */
    size_t form;  /* where the part of it that says nothing of the source begins ("isa ...") */
    hd_packed_tensor *tensors; size_t n;
    uint64_t header_bytes, file_bytes;
} hd_packed_list;

/* source: whole lines, each beginning with the word "source". */
int hd_packed_list_init(hd_packed_list *l, const hd_packer *k, const char *source, hd_error *err);
void hd_packed_list_free(hd_packed_list *l);

/* A file of such a list, open. Zero-initialise. */
typedef struct hd_packed_file {
    const hd_packed_list *list;
    const unsigned char *data; /* NULL: none is open */
    size_t size;
} hd_packed_file;

/* Maps the file at path, if it fits the list: the header is checked to its last bit, and with a team also every tensor (without one they are taken for good).
 * HD_EIO: it can't be read; HD_EFORMAT and "PATH: why": it doesn't fit. On failure *f is empty. */
int hd_packed_file_open(hd_packed_file *f, const hd_packed_list *l, const char *path, hd_team *team, hd_error *err);
/* Lends all tensors to a store that has none of them; the file must stay open as long as the store. */
int hd_packed_file_lend(const hd_packed_file *f, hd_store *s, hd_error *err);
void hd_packed_file_close(hd_packed_file *f);

/* Packs what the list names out of the plain tensors of s, one after another, into the file open at fd (path is for messages), and syncs it. What has been
 * written is dropped from s: no more than one tensor is there twice. */
int hd_packed_file_write(const hd_packed_list *l, const hd_packer *k, hd_store *s, int fd, const char *path, hd_error *err);

#endif
