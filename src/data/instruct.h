/* instruct.h: fine-tuning rows out of jsonl files of prompt and answer.
 *
 * An example is the prompt's ids (with what the post-processor puts before a text), the answer's, and the end token. Only the answer and the
 * end are predicted: other targets are -1. Examples are packed several to a row, each its own segment with positions from 0. */
#ifndef HD_DATA_INSTRUCT_H
#define HD_DATA_INSTRUCT_H

#include "data/tokenizer.h"

typedef struct hd_instruct_spec {
    const hd_tokenizer *tokenizer;            /* used while loading only */
    const char *prompt_key, *answer_key;      /* NULL: "prompt", "answer" */
    int32_t end_id;                           /* after the answer; -1: none */
    int32_t pad_id;
    int32_t length;                           /* tokens in a row */
    bool pack;                                /* false: one example a row */
    uint64_t seed;                            /* of the rows' order */
} hd_instruct_spec;

typedef struct hd_instruct hd_instruct;

/* Reads all examples. One that is longer than a row is cut at its end; one of which no answer remains is an error, named with its line. */
hd_instruct *hd_instruct_load(const hd_instruct_spec *spec, const char *const *paths, int count, hd_error *err);
void hd_instruct_free(hd_instruct *d);

int64_t hd_instruct_examples(const hd_instruct *d);
int64_t hd_instruct_cut(const hd_instruct *d);   /* examples that were cut */
int64_t hd_instruct_rows(const hd_instruct *d);  /* rows of an epoch */

/* Row `index` >= 0 of the endless shuffled sequence; arrays as hd_sampler_row's. */
int hd_instruct_row(hd_instruct *d, int64_t index, int32_t *tokens, int32_t *targets, int32_t *positions, int32_t *segments, hd_error *err);

#endif
