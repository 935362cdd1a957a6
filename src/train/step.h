/* step.h: from a graph that ends in a loss to a whole training step: backward, clipping, optimizer, all in the Graph. */
#ifndef HD_TRAIN_STEP_H
#define HD_TRAIN_STEP_H

#include "graph/graph.h"

typedef enum hd_optimizer { HD_ADAMW, HD_SGD } hd_optimizer;

typedef struct hd_step_options {
    hd_optimizer optimizer;
    double beta1, beta2, eps; /* adamw */
    double momentum;          /* sgd; 0: no momentum state */
    bool nesterov;
    double weight_decay;      /* of parameters whose `decay` is set */
    double clip;              /* largest global gradient norm; 0: no clipping, and no norm is computed */
} hd_step_options;

/* Appends to g, whose output "loss" is a scalar (one micro-batch's part of the step's loss), what a training step needs:
 *  inputs  "lr" f32 and "step" f32 (1, 2, ...), once per step;
 *  states  exp_avg.<param>, exp_avg_sq.<param> (adamw) or momentum.<param> (sgd), f32;
 *  pairs   of every trainable parameter and optimizer state;
 *  outputs "loss" (now the sum over micro-batches), "ok" (0 when the loss, or with clipping the norm, is not finite: the update was
 *          skipped by select) and, with clipping, "grad_norm".
 * Then merges common subexpressions and drops dead nodes. Returns 0 or the graph's error. */
int hd_step_append(hd_graph *g, const hd_step_options *o);

/* The same in two: gradients only, as outputs "grad.<param>", for tests. */
int hd_step_append_gradients(hd_graph *g);

#endif
