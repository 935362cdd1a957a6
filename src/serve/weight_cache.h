/* weight_cache.h: a folder of packed weights (exec/packed_file.h) beside models: one file for each model, instruction set and set of pieces, made by the first
 * process that opens the model so and mapped by all others.
 *
 * A file is written under a temporary name of its own ("NAME.tmp"), synced and renamed. Whoever writes holds a lock on it, which the kernel takes back when its
 * process ends; others wait, and then map what it made. What doesn't fit the model any more is made anew, with a line that says why; where nothing can be
 * written, a line says so and weights are packed in memory as ever. */
#ifndef HD_SERVE_WEIGHT_CACHE_H
#define HD_SERVE_WEIGHT_CACHE_H

#include "exec/packed_file.h"
#include "serve/model.h"

/* One rank's. Zero-initialise: none. */
typedef struct hd_weight_cache {
    const hd_model_files *model;
    hd_packer packer;
    hd_str source;       /* what tells the model's files from others */
    hd_packed_list list;
    hd_packed_file file; /* mapped; empty: not yet, or never */
    char folder[4096], path[4096], temporary[4096]; /* "": none */
    int lock;            /* of the temporary file that this one is to write; -1: none */
    bool made;           /* the file by this process */
} hd_weight_cache;

/* Finds the file of m's weights, packed as *k packs them, in `folder` (NULL: there is none, and nothing is ever cached), and maps it where it fits. Otherwise
 * takes the right to write it, waiting for another process that is at it. Only HD_ENOMEM is an error. m and what *k names must outlive the cache. */
int hd_weight_cache_open(hd_weight_cache *c, const char *folder, const hd_model_files *m, const hd_packer *k, hd_error *err);
/* With all plain weights in s and none packed: writes the file, unless it is there, and lends it to s. */
int hd_weight_cache_fill(hd_weight_cache *c, hd_store *s, hd_error *err);
/* Once no store borrows from it. */
void hd_weight_cache_close(hd_weight_cache *c);

#endif
