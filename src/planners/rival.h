/* rival.h: what the planners of published rules share: forms that keep to what is pinned, each tried once, and what to say where none fits. */
#ifndef HD_PLANNERS_RIVAL_H
#define HD_PLANNERS_RIVAL_H

#include "planners/planner.h"

enum { HD_RIVAL_TRIES = 640, HD_RIVAL_DIVISORS = 256 };

/* What trying a form came to. Zeros where the network cannot be split so, or a person's pins forbid it. */
typedef struct hd_rival_tried { bool possible, fits; double step; int64_t peak, capacity; } hd_rival_tried;

typedef struct hd_rival {
    const hd_planner_job *job;
    hd_planner_answer *out;
    int ranks;
    double weights, states;    /* bytes of all parameters; of all that the optimizer keeps for them */
    uint64_t key[HD_RIVAL_TRIES]; hd_rival_tried known[HD_RIVAL_TRIES]; int n_known;
    double lack;               /* of the form that lacks least: needed bytes over those that there are; 0: none was tried */
    hd_rival_tried nearest; char nearest_text[160];
    char refused[192];         /* why the network could not be split so, of the first form */
    int64_t against_pins, over_memory, refusals; /* of the forms considered: cut by what is pinned, by the bound on memory; the network cannot be split so */
    double started;
} hd_rival;

/* Empties *out; measures the network (weights, states). */
int hd_rival_begin(hd_rival *r, const hd_planner_job *job, hd_planner_answer *out, hd_error *err);
/* Fills what is left of the answer; who: how the planner calls itself in `why`. */
void hd_rival_end(hd_rival *r, const char *who);
/* n = 0, for this reason. */
int hd_rival_decline(hd_planner_answer *out, const char *fmt, ...) HD_PRINTF(2, 3);

/* The form with what the person pinned in place of what it says, defaults in place of what is forbidden, and as many data-parallel ranks as are left over
 * (at most one for each sample of a micro-batch). */
hd_parallel hd_rival_settle(const hd_rival *r, const hd_parallel *form);
/* Settles the form and tries it, unless it was tried before, contradicts itself, or its states alone are too large. Kept in the answer if it fits. */
int hd_rival_try(hd_rival *r, const hd_parallel *form, int64_t micro_batches, hd_rival_tried *t, hd_error *err);
/* Whether the job's own limits (nodes, seconds) leave room for another try; else the answer is marked as cut off. */
bool hd_rival_may_go_on(hd_rival *r);
/* Whether the bytes of parameters and states alone leave room. */
bool hd_rival_may_fit(const hd_rival *r, const hd_parallel *form);

/* Over how many ranks a form deals samples: of networks that are no language models, those of tp too. */
int64_t hd_rival_ways(const hd_rival *r, const hd_parallel *form);
/* Numbers of micro-batches that divide a step's samples evenly over dp ranks (or, where dp divides no number of them, as evenly as can be), ascending.
 * Returns how many; out[HD_RIVAL_DIVISORS]. One alone where it is pinned, or part of the model's definition. */
int hd_rival_micro_batches(const hd_rival *r, int64_t dp, int64_t *out);
/* Tries the form with the largest micro-batches that fit, found by halving the list, and with the next smaller ones. *best: the quicker one. */
int hd_rival_try_largest(hd_rival *r, const hd_parallel *form, hd_rival_tried *best, int64_t *micro_batches, hd_error *err);

#endif
