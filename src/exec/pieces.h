/* pieces.h: the pieces that a rank's store holds, to and from files of whole tensors.
 *
 * Of the ranks that hold the same piece one writes it: the one at coordinate 0 of every axis over which the value is held whole. A tensor lies in its
 * stage's stores only; where several stages hold one, the first does (hd_store_tensor.guest marks the others). */
#ifndef HD_EXEC_PIECES_H
#define HD_EXEC_PIECES_H

#include "exec/store.h"
#include "tensor/safetensors.h"

/* ---- what there is in all ---- */

/* One tensor of the model's state, whichever ranks hold it. */
typedef struct hd_whole {
    const char *path;
    hd_type type; /* of the whole */
    hd_kind kind; /* HD_PARAM or HD_STATE */
    const hd_layout *layout; /* NULL: whole on every rank that has it */
    int stage; /* stages of different meshes: the first that has it, over whose mesh the layout is; else 0 */
} hd_whole;

/* What a graph (partitioned, but not cut into stages; or one stage of those of different meshes) keeps, added to s's list of everything; what the list has
 * already is passed over. */
int hd_store_list_graph(hd_store *s, const hd_graph *g, int stage, hd_error *err);
/* All tensors: that list, or without one what s holds. The caller frees *out (hd_free); paths are the store's. */
int hd_store_wholes(const hd_store *s, hd_whole **out, size_t *n, hd_error *err);
hd_shape hd_store_tensor_whole(const hd_store_tensor *t); /* shape of all ranks' pieces together */

/* ---- files ---- */

/* Where a whole value lies in a tensor of a file: rows of `run` elements, `stride` apart from element `first` on. {0}: one after another, from 0. */
typedef struct hd_file_place { int64_t run, stride, first; } hd_file_place;

bool hd_piece_is_ours(const hd_store *s, const hd_store_tensor *t); /* whether this rank is the one that writes it */
int hd_piece_write(hd_safetensors_writer *w, size_t which, const hd_store *s, const hd_store_tensor *t, hd_file_place at, hd_error *err);
/* The piece out of the whole tensor w, converted to t's dtype. */
void hd_piece_load(const hd_weight *w, const hd_store *s, const hd_store_tensor *t, hd_file_place at);

/* Writes list[n], in the store's dtypes, into one file: all of it, its frame, or this store's pieces (share NULL: alone). */
int hd_wholes_save(const hd_store *s, const hd_whole *list, size_t n, const char *path, hd_share *share, hd_error *err);

#endif
