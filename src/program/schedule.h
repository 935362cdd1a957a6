/* schedule.h: the order of calls of a pipeline's stages. Pure functions of the numbers given. */
#ifndef HD_PROGRAM_SCHEDULE_H
#define HD_PROGRAM_SCHEDULE_H

#include "plan/plan.h"

typedef enum hd_slot_kind { HD_SLOT_FORWARD, HD_SLOT_BACKWARD, HD_SLOT_WEIGHT } hd_slot_kind;

/* One call. chunk counts the stage's own chunks: 0 is chunk `stage` of the model, 1 is `stage + stages`, ... WEIGHT only with ZERO_BUBBLE. */
typedef struct hd_slot { hd_slot_kind kind; int chunk, micro; } hd_slot;

/* The slots of one stage for one step (one stage of one chunk: forward and backward of each micro-batch in turn, whatever the schedule); *out is malloced (hd_free). HD_EINVAL where the numbers contradict each other (INTERLEAVED wants micro to be a
 * multiple of stages; other schedules one chunk a stage). */
int hd_schedule_make(hd_schedule_kind kind, int stage, int stages, int chunks, int micro, hd_slot **out, int *n, hd_error *err);

/* Most micro-batches that are between slot kinds `from` and `to` of a chunk at once: how many copies a buffer needs that is written in one and last read
 * in the other. */
int hd_schedule_in_flight(const hd_slot *slots, int n, int chunk, hd_slot_kind from, hd_slot_kind to);

#endif
