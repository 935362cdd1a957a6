/* checkpoint.h: training checkpoints: OUT/step-N, a model directory as the ecosystem knows it plus the optimizer's state and a manifest.
 *
 * A checkpoint is written as OUT/.step-N.partial, synced, and renamed: it is there whole or not at all, and what was there before stays
 * until it is. It holds whole tensors, whatever ranks wrote it: any number of ranks goes on from it. The manifest names every file with its size and checksum; random and data state are (seed, step, samples). */
#ifndef HD_TRAIN_CHECKPOINT_H
#define HD_TRAIN_CHECKPOINT_H

#include <jansson.h>
#include "exec/pieces.h"
#include "train/ranks.h"

typedef struct hd_progress_point {
    int64_t step;    /* steps done */
    int64_t samples; /* samples (sequences) consumed */
    uint64_t seed;
} hd_progress_point;

/* Writes the model's part of a checkpoint into the directory dir: its frame, or this rank's pieces. */
typedef struct hd_model_writer {
    int (*write)(void *arg, const char *dir, hd_share *share, hd_error *err);
    void *arg;
} hd_model_writer;

typedef struct hd_saving {
    const char *out;
    hd_progress_point at;
    hd_model_writer model;
    const hd_store *store; /* of it every state (but caches, "kv.*") and adapter ("*.lora_?") goes into state.safetensors */
} hd_saving;

/* Saves OUT/step-N; of many ranks, each calls this and writes its pieces. settings (may be NULL) goes into the manifest as it is. Then removes the oldest
 * until `keep` are left (0: all stay). A failure leaves nothing new behind. */
int hd_checkpoint_save(const hd_saving *s, const json_t *settings, int64_t keep, const hd_rank *rank, hd_error *err);

/* Its parts: the first rank makes files and headers, then each writes its pieces, and once all have, the first adds the manifest and renames. */
int hd_saving_frame(const hd_saving *s, hd_share *share, hd_error *err);
int hd_saving_pieces(const hd_saving *s, hd_share *share, hd_error *err);
int hd_saving_finish(const hd_saving *s, const json_t *settings, int64_t keep, hd_error *err);

/* The newest whole checkpoint under out, as a path in dir (of n bytes); false if there is none. Unfinished ones are removed; damaged ones are
 * logged and passed over. */
bool hd_checkpoint_newest(const char *out, char *dir, size_t n);

/* Checks sizes and checksums, and reads the manifest. settings (may be NULL) gets what was saved, to be json_decref'ed. */
int hd_checkpoint_open(const char *dir, hd_progress_point *at, json_t **settings, hd_error *err);

/* Fills the states and adapters of the store from dir/state.safetensors; every one that the store has (but caches) must be there. */
int hd_checkpoint_load_state(const char *dir, hd_store *store, hd_error *err);

#endif
