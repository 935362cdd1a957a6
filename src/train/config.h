/* config.h: what a person can set about a training run: one struct, one table (config.c). */
#ifndef HD_TRAIN_CONFIG_H
#define HD_TRAIN_CONFIG_H

#include "base/settings.h"
#include "train/schedule.h"
#include "train/session.h"

typedef struct hd_train_config {
    /* what */
    const char *model, *data, *tokenizer, *instruct, *out;
    /* how long, how much at once */
    int64_t steps, batch, micro_batches, sequence;
    /* optimizer */
    const char *optimizer, *schedule; /* "adamw", "sgd:0.9"; "cosine", "wsd:200" */
    const char *adam; /* "0.9,0.95,1e-8" */
    double learning_rate, least_learning_rate, weight_decay, clip;
    int64_t warmup;
    /* model */
    const char *precision;
    double dropout; /* negative: what the model says */
    int64_t lora_rank;
    double lora_alpha;
    hd_setting_list lora_targets;
    /* evaluation, saving, reporting */
    double validation;
    const char *eval_every, *save_every; /* "100:20": hd_train_config_rhythm */
    bool eval_only, resume, quiet;
    const char *metrics, *trace, *plan;
    /* machine */
    int64_t seed, threads;
    double memory; /* GiB; 0: what is available */
    const char *device_memory; /* hd_train_config_size */
    /* many ranks */
    const char *parallel, *transport, *planner;
    int64_t ranks, restarts; /* ranks 0: as many as parallel or the plan says */
    /* no settings: what was predicted of a plan that was searched for; 0: nothing was */
    double predicted_step; /* seconds */
    int64_t predicted_rank; /* bytes */
} hd_train_config;

extern const hd_setting hd_train_settings[];

/* Checks what the table cannot (settings that contradict each other) and turns names into values. lora: filled when lora_rank > 0. */
int hd_train_config_check(const hd_train_config *c, hd_session_options *session, hd_lora_options *lora, hd_lr_schedule *lr, hd_error *err);

/* What is done every so many steps (0: at the end only). */
typedef struct hd_train_rhythm { int64_t eval_every, eval_batches, save_every, keep; } hd_train_rhythm; /* eval_batches, keep 0: all */
int hd_train_config_rhythm(const hd_train_config *c, hd_train_rhythm *out, hd_error *err);

/* "512M" in bytes; 0 for NULL. */
int hd_train_config_size(const char *text, int64_t *bytes, hd_error *err);

/* Whether settings leave to a planner how the work is split; p: their --parallel, dp 0 without. */
bool hd_train_config_is_open(const hd_train_config *c, const hd_parallel *p);

/* *ranks: how many --parallel makes, else plan (the one that is replayed). HD_EINVAL when --ranks is another number, and nobody searches for more. */
int hd_train_config_ranks(const hd_train_config *c, const hd_plan *plan, int *ranks, hd_error *err);

#endif
