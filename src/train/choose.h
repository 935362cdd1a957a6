/* choose.h: how a job's work is split when the person leaves that open: on which machine, by which planner, and what is said of it. */
#ifndef HD_TRAIN_CHOOSE_H
#define HD_TRAIN_CHOOSE_H

#include "train/config.h"

/* A job with a plan. Not to be moved: config points into it. */
typedef struct hd_choice {
    bool planned;             /* config says what was found; else it is the one that was given */
    hd_train_config config;
    char parallel[2048], eval_every[64];
    char plan_path[4096];     /* a plan that has no text, in a file */
    bool temporary;           /* which goes when the job ends */
} hd_choice;

/* Finds a plan where settings leave it open (hd_train_config_is_open), and says what and why; a job that isn't worth it stays as it is. HD_ENOPLAN where nothing
 * fits. The caller frees *out in any case. */
int hd_choose(const hd_train_config *c, hd_choice *out, hd_error *err);
void hd_choice_free(hd_choice *choice);

/* A prediction on its way to the ranks that a launcher starts, which get nothing but arguments: in the environment. */
void hd_choice_pass_on(const hd_train_config *c);
void hd_choice_take_over(hd_train_config *c);

#endif
