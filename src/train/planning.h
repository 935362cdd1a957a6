/* planning.h: a model's training job as planners see it: its network (planners/planner.h), lowered as `heddle train` lowers it. */
#ifndef HD_TRAIN_PLANNING_H
#define HD_TRAIN_PLANNING_H

#include "models/model.h"
#include "planners/planner.h"
#include "train/session.h"

/* What is trained, and how; borrowed by the network that is made of it. */
typedef struct hd_planning {
    const hd_model *model;
    const hd_cluster *cluster;   /* what ranks run on: back end and threads */
    hd_dtype precision;          /* of products and activations */
    bool half_stream;            /* as hd_model_options */
    hd_attention_form attention;
    hd_step_options step;
    int64_t samples;             /* of a step: sequences of a language model */
    int64_t sequence;            /* tokens in a sequence; not read of another network */
    int threads;                 /* of a rank on CPUs; 0: a node's cores over its ranks */
} hd_planning;

/* Fills *out, whose context is p. HD_EINVAL and one line where the model has no training graph for such samples. */
int hd_planning_network(const hd_planning *p, hd_planner_network *out, hd_error *err);

/* Sets what a plan says of the machine: the back end, and the threads of one of so many ranks: `threads`, or, of 0, a node's cores over its ranks, one at least. */
void hd_planning_target(const hd_cluster *c, int ranks, int threads, hd_plan *plan);

#endif
